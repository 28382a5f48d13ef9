"""A floppy drive, and a stick, with every kind of disk that a technician finds in a drawer."""

from itertools import count
from pathlib import Path

import pytest

from bootenv.asr_disk import make_image, read_asr_disk, write_asr_disk
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
    blank, used, protected, other, worn, dying = (disks / f"{name}.img" for name in (
        "blank", "used", "protected", "other", "worn", "dying"))
    make_disk(blank, FLOPPY)
    for image in (used, protected, worn, dying):
        make_image(str(image))
        write_asr_disk(str(image), {"letter.txt": b"Dear all"})
    make_disk(other, FLOPPY)
    machines.run("mkfs.ext2", "-q", "-F", "-L", "LETTERS", str(other))
    untouched = [digest(image) for image in (protected, other, dying)]

    with boot(Machine(disks=(Drive(backup),), cdrom=iso), tmp_path / "machine") as guest:
        guest.wait_for_text("Welcome to Setup", 300)
        guest.press("alt-f2")
        said(guest, "mount -r /dev/vda /mnt")

        def make(options: str = "", device: str = "/dev/fd0") -> str:
            return said(guest, f"asr make-disk --from /mnt/{SET.backup.name} --disk {device} {options}")

        assert "There is no disk in /dev/fd0." in make()
        guest.insert_floppy(blank)
        assert "is not formatted" in make()
        assert "It was read back and matches." in make("--format-disk")
        guest.insert_floppy(used)
        assert "It was read back and matches." in make("--format-disk")
        guest.insert_floppy(protected, read_only=True)
        assert "is write-protected" in make("--format-disk")
        guest.insert_floppy(other)
        assert "a file system [ext2] labeled LETTERS, not FAT. It is left alone." in make("--format-disk")
        # QEMU's drive gives zeros for a sector that can't be read: written, it reads back differently.
        add_unreadable(guest, "worn", worn)
        guest.eject()
        guest.command("blockdev-insert-medium", id=FLOPPY_DRIVE, **{"node-name": "worn"})
        guest.command("blockdev-close-tray", id=FLOPPY_DRIVE)
        assert "ASR-016" in (answer := make("--format-disk"))
        assert "no ASR disk was made" in answer
        guest.eject()
        # A stick says that it can't.
        add_unreadable(guest, "dying", dying)
        guest.command("device_add", driver="usb-storage", id="stick", drive="dying", bus="usb.0", removable=True)
        said(guest, "for try in $(seq 60); do test -e /dev/sda && break; sleep 1; done; udevadm settle")
        assert "cannot be read: Input/output error. Nothing was changed. It is worn out: insert another one." in make(
            "--format-disk", "/dev/sda")

    for image in (blank, used):
        assert read_asr_disk(str(image)) == {"": write_sif(SET)}
    assert machines.run("mtype", "-i", str(used), "::letter.txt") == "Dear all"
    assert [digest(image) for image in (protected, other, dying)] == untouched


def said(guest: Guest, command: str) -> str:
    """What a command on the second console says, in one line: the terminal breaks words at its edge."""
    number = next(_NUMBERS)            # what is on the screen from the command before is no answer
    guest.type(f"clear; {command}; echo stat''us-{number}\n")
    screen = guest.wait_for_text(f"status-{number}", 300)
    return " ".join(screen.replace("\n", "").split())


def add_unreadable(guest: Guest, name: str, image: Path) -> None:
    """A block device of QEMU none of whose sectors can be read."""
    guest.command("blockdev-add", **{
        "node-name": name, "driver": "blkdebug", "image": {"driver": "file", "filename": str(image)},
        "inject-error": [{"event": "none", "iotype": "read", "errno": 5}]})
