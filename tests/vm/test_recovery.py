"""A machine is prepared, lost, and brought back by somebody who presses F2 and inserts a floppy."""

from pathlib import Path

import pytest

from bootenv.rehearsal import Drive, Guest, Machine, boot, make_disk
from tests.vm import story
from tests.vm.compare import differences, facts_of_disk, health, manifest, second_opinion
from tests.vm.machines import SAMPLES

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]

SCREENS = Path(__file__).parents[1] / "screens"


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_lost_machine_comes_back(kind, iso, sample, backup_disk, floppy, disks, tmp_path):
    lost = sample(kind)
    print(story.prepare(lost, backup_disk, floppy, iso, tmp_path / "prepare"))
    blank = make_disk(disks / "blank.img", SAMPLES[kind].size)
    pages: dict[str, str] = {}

    def seen(name: str, screen: str) -> None:
        pages[name] = screen
        guest.screenshot(tmp_path / f"{name}.png")

    machine = Machine(disks=(Drive(blank, serial="NEW1"), Drive(backup_disk)), cdrom=iso)
    with boot(machine, tmp_path / "recover") as guest:
        story.recover(guest, floppy, seen=seen)
        if kind == "mbr":              # the power fails in the middle of the restore
            story.see(guest, "Restoring files", 900)
            guest.power_cut()
        else:
            finish(guest, seen)
    if kind == "mbr":
        with boot(machine, tmp_path / "again") as guest:
            finish(guest, seen)

    assert health(blank) == []
    assert differences(facts_of_disk(lost), facts_of_disk(blank)) == []
    assert differences(manifest(lost), manifest(blank), story.EXPECTED) == []
    assert differences(second_opinion(lost), second_opinion(blank), story.EXPECTED) == []
    if kind == "gpt":                  # the machine that the goldens show
        for name, screen in pages.items():
            assert story.shape(screen) == story.shape((SCREENS / f"{name}.txt").read_text()), f"page {name}:\n{screen}"
        assert len(pages) == 15


def finish(guest: Guest, seen: story.Seen) -> None:
    story.restore(guest, seen=seen)
    story.log_in(guest)
    story.switch_off(guest)
