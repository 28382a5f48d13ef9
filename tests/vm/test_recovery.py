"""A machine is prepared, lost, and brought back by somebody who presses F2 and inserts a floppy."""

import time
from pathlib import Path

import pytest

from bootenv.rehearsal import Drive, Guest, Machine, NotSeen, boot, make_disk
from tests.vm.compare import Allowed, differences, facts_of_disk, health, manifest, second_opinion
from tests.vm.machines import PASSWORD, SAMPLES

pytestmark = [pytest.mark.vm, pytest.mark.timeout(3600)]

# What a machine writes while it runs, between the backup and our look at its disk, and what recovery makes anew.
LIVED = [
    Allowed("/var/log/*", "the machine ran and wrote its logs"),
    Allowed("/var/lib/systemd/random-seed", "every start writes a new one"),
]


@pytest.mark.parametrize("kind", SAMPLES)
def test_a_lost_machine_comes_back(kind, iso, sample, backup_disk, floppy, disks, tmp_path):
    lost = sample(kind)
    prepare(lost, backup_disk, floppy, iso, tmp_path / "prepare")
    blank = make_disk(disks / "blank.img", SAMPLES[kind].size)
    recover(blank, backup_disk, floppy, iso, tmp_path / "recover")

    assert health(blank) == []
    assert differences(facts_of_disk(lost), facts_of_disk(blank)) == []
    assert differences(manifest(lost), manifest(blank), LIVED) == []
    assert differences(second_opinion(lost), second_opinion(blank), LIVED) == []


def prepare(disk: Path, backup_disk: Path, floppy: Path, iso: Path, folder: Path) -> None:
    """Switch the healthy machine on, prepare it from the medium, switch it off."""
    with boot(Machine(disks=(Drive(disk), Drive(backup_disk)), cdrom=iso, floppy=floppy, boot=("disk",)),
              folder) as guest:
        guest.serial.login("root", PASSWORD)
        done(guest, "mkdir /run/cd /run/backup && mount -o ro /dev/sr0 /run/cd && mount /dev/vdb /run/backup")
        print(done(guest, "sh /run/cd/asr prepare --to /run/backup --disk /dev/fd0", seconds=1800))
        done(guest, "umount /run/backup /run/cd")
        switch_off(guest)


def recover(disk: Path, backup_disk: Path, floppy: Path, iso: Path, folder: Path) -> None:
    """What a technician does: any key, F2, the floppy, any key; then hands off until the login prompt."""
    with boot(Machine(disks=(Drive(disk), Drive(backup_disk)), cdrom=iso), folder) as guest:
        guest.wait_for_text("Press any key to boot from CD", 60)
        guest.press("spc")
        guest.wait_for_text("Press F2", 300)
        guest.press("f2")
        guest.wait_for_text("Please insert the disk labeled", 300)
        guest.insert_floppy(floppy)
        guest.press("ret")
        hands_off(guest, 1800)
        hands_off(guest, 3600)
        guest.serial.login("root", PASSWORD)
        switch_off(guest)


def hands_off(guest: Guest, seconds: float) -> None:
    """Until it restarts by itself. What it showed on the way is in film.txt; a page that waits is a failure."""
    deadline = time.monotonic() + seconds
    last = ""
    with (guest.folder / "film.txt").open("a") as film:
        while time.monotonic() < deadline:
            try:
                guest.wait_for_reboot(5)
            except NotSeen:
                pass
            else:
                return
            if (screen := guest.screen()) != last:
                film.write(f"{time.strftime('%T')}\n{screen}\n\n")
                last = screen
            assert "ASR-" not in screen, f"Setup stopped:\n{screen}"
    pytest.fail(f"No restart within {seconds:.0f} s. The last screen:\n{last}")


def done(guest: Guest, command: str, seconds: float = 120) -> str:
    """A command that must succeed, and its output."""
    status, output = guest.serial.run(command, seconds)
    assert status == 0, f"{command}: exit {status}\n{output}"
    return output


def switch_off(guest: Guest) -> None:
    guest.serial.send("systemctl poweroff\n")
    guest.wait_for_shutdown(300)
