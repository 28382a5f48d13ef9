"""A machine is prepared, lost, and brought back by somebody who presses F2 and inserts the ASR disk."""

import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from bootenv.rehearsal import Guest, boot
from tests.vm import machines, story
from tests.vm.compare import Facts, differences, look
from tests.vm.samples import SAMPLES

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]

SCREENS = Path(__file__).parents[1] / "screens"
ALWAYS = ("gpt", "uefi")               # BIOS, and Secure Boot
GOLDEN = "gpt"                         # the machine that the goldens show
POWER_CUT = "xfs"                      # in the middle of its restore
CRASHES = "raid"                       # its console is killed in the middle of the work, in either stage
WAYS = {"raid": story.by_wizard, "xfs": story.by_copy, "btrfs": story.by_provider, "luks": story.by_job}
INSTALLED = "luks"                     # the program is, and the ASR disk is a stick; the others are prepared by command
SAME_BOARD = "btrfs"                   # only its disk was lost: its UEFI variables still name the lost one


@pytest.mark.parametrize("kind", [
    pytest.param(kind, marks=[] if kind in ALWAYS else pytest.mark.long) for kind in SAMPLES])
def test_a_lost_machine_comes_back(kind, iso, sample, backup_disk, floppy, disks, tmp_path, request):
    lost = sample(kind)
    asr_disk = floppy
    if kind == INSTALLED:
        machines.run("debugfs", "-w", "-R", f"write {request.getfixturevalue('package')} asr.deb", str(backup_disk))
        asr_disk = disks / "stick.img"
        machines.run("mkfs.fat", "-C", "-n", "ASR-STICK", str(asr_disk), "65536")
    printed, ran = story.prepare(SAMPLES[kind], lost, backup_disk, asr_disk, iso, tmp_path / "prepare",
                                 WAYS.get(kind))
    print(printed)
    recovered = machines.blank(lost, disks / "blank")
    if kind == SAME_BOARD:
        shutil.copyfile(lost.variables, recovered.variables)
    pages: dict[str, str] = {}

    def seen(name: str, screen: str) -> None:
        pages[name] = screen
        guest.screenshot(tmp_path / f"{name}.png")
        if kind == CRASHES and name in ("09-copy", "14-progress"):
            kill_console(guest)

    machine = story.with_medium(recovered, backup_disk, iso)
    with boot(machine, tmp_path / "recover") as guest:
        story.recover(guest, asr_disk, disks=len(recovered.disks), encrypted=SAMPLES[kind].encrypted, seen=seen)
        if kind == POWER_CUT:
            story.see(guest, "Restoring files", 900)
            guest.power_cut()
        else:
            runs = finish(guest, kind, seen)
    if kind == POWER_CUT:
        with boot(machine, tmp_path / "again") as guest:
            runs = finish(guest, kind, seen)

    before, after = look(lost), look(recovered)
    assert after.health == []
    assert differences(ran, runs) == []
    assert differences(before.facts, after.facts, story.EXPECTED_FACTS) == []
    allowed = story.EXPECTED + (story.NOT_BY_TAR if WAYS.get(kind) == story.by_provider else [])
    assert differences(before.files, after.files, allowed) == []
    assert differences(before.second_opinion, after.second_opinion, allowed) == []
    if kind == GOLDEN:
        for name, screen in pages.items():
            assert story.shape(screen) == story.shape((SCREENS / f"{name}.txt").read_text()), f"page {name}:\n{screen}"
        assert len(pages) == 15
    for pulled in range(len(recovered.disks) if len(recovered.disks) > 1 else 0):
        alone = machines.copy(recovered, disks / f"without {pulled}")
        left = replace(alone, disks=alone.disks[:pulled] + alone.disks[pulled + 1:])
        with boot(left, tmp_path / f"without {pulled}") as guest:
            machines.log_in(guest, SAMPLES[kind])


def kill_console(guest: Guest) -> None:
    """What it was doing goes on meanwhile, and is shown again."""
    guest.press("alt-f2")
    guest.wait_for_text("# ", 120)
    story.at_shell(guest, "pkill -9 -f 'm console'; echo do''ne", "done", 120)
    guest.wait_for_text("The recovery console ended unexpectedly (status 137)", 120)
    pages = "Setup copies files|Your computer will reboot|Restoring files|has been recovered"
    guest.wait_for_text(re.compile(pages), 600)


def finish(guest: Guest, kind: str, seen: story.Seen) -> Facts:
    story.restore(guest, encrypted=SAMPLES[kind].encrypted, seen=seen)
    machines.log_in(guest, SAMPLES[kind])
    if WAYS.get(kind) == story.by_provider:
        assert story.done(guest, "cat /var/log/commands").splitlines() == [
            "before in recovery", "after in recovery", "after in system"]
        assert "minix" in story.done(guest, "grep -h minix /var/log/asr/setup.log")
    # Arrays are compared, and one of their disks pulled, when both hold everything.
    story.done(guest, "! command -v mdadm || mdadm --wait /dev/md/* || true", seconds=900)
    facts = story.running(guest)
    story.switch_off(guest)
    return facts
