"""A floppy drive with every kind of disk that a technician finds in a drawer."""

from itertools import count
from pathlib import Path

import pytest

from bootenv.asr_disk import SIF, make_image, read_asr_disk, write_asr_disk
from bootenv.rehearsal import FLOPPY_DRIVE, Drive, Guest, Machine, boot, make_disk
from bootenv.sif import write_sif
from tests.vm import machines
from tests.vm.test_bad_input import SET, backup_disk, digest

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(1800)]

FLOPPY = 1440 * 1024                   # bytes
_NUMBERS = count(1)


def test_an_asr_disk_is_written_to_what_will_do_and_to_nothing_else(iso, disks, tmp_path):
    backup = disks / "backup.img"
    backup_disk(backup, write_sif(SET), disks)
    blank, used, protected, other, worn = (disks / f"{name}.img" for name in
                                           ("blank", "used", "protected", "other", "worn"))
    make_disk(blank, FLOPPY)
    for image in (used, protected, worn):
        make_image(str(image))
        write_asr_disk(str(image), {"letter.txt": b"Dear all"})
    make_disk(other, FLOPPY)
    machines.run("mkfs.ext2", "-q", "-F", "-L", "LETTERS", str(other))
    untouched = [digest(image) for image in (protected, other, worn)]

    with boot(Machine(disks=(Drive(backup),), cdrom=iso), tmp_path / "machine") as guest:
        guest.wait_for_text("Welcome to Setup", 300)
        guest.press("alt-f2")
        said(guest, "mount -r /dev/vda /mnt")

        def make(options: str = "") -> str:
            return said(guest, f"asr make-disk --from /mnt/{SET.backup.name} --disk /dev/fd0 {options}")

        assert "There is no disk in /dev/fd0." in make()
        guest.insert_floppy(blank)
        assert "is not formatted" in make()
        assert "It was read back and matches." in make("--format-disk")
        guest.insert_floppy(used)
        assert "It was read back and matches." in make()
        guest.insert_floppy(protected, read_only=True)
        assert "is write-protected" in make("--format-disk")
        guest.insert_floppy(other)
        assert "a file system [ext2] labeled LETTERS, not FAT. It is left alone." in make("--format-disk")
        insert_worn_out(guest, worn)
        assert "It is worn out: insert another one." in make("--format-disk")
        guest.eject()

    for image in (blank, used):
        assert read_asr_disk(str(image)) == {"": write_sif(SET)}
    assert machines.run("mtype", "-i", str(used), "::letter.txt") == "Dear all"
    assert [digest(image) for image in (protected, other, worn)] == untouched
    assert SIF not in machines.run("mdir", "-b", "-i", str(worn), "::/").lower()


def said(guest: Guest, command: str) -> str:
    """What a command on the second console says, in one line: the terminal breaks words at its edge."""
    number = next(_NUMBERS)            # what is on the screen from the command before is no answer
    guest.type(f"clear; {command}; echo stat''us-{number}\n")
    screen = guest.wait_for_text(f"status-{number}", 300)
    return " ".join(screen.replace("\n", "").split())


def insert_worn_out(guest: Guest, image: Path) -> None:
    """A disk none of whose sectors can be read."""
    guest.eject()
    guest.command("blockdev-add", **{
        "node-name": "worn", "driver": "blkdebug", "image": {"driver": "file", "filename": str(image)},
        "inject-error": [{"event": "read_aio", "errno": 5}]})
    guest.command("blockdev-insert-medium", id=FLOPPY_DRIVE, **{"node-name": "worn"})
    guest.command("blockdev-close-tray", id=FLOPPY_DRIVE)
