"""What can be wrong before the first write: each gives its page, harms no disk, and goes on once put right."""

import hashlib
import subprocess
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import sleep

import pytest
import tomli_w

from bootenv import sif
from bootenv.asr_disk import SIF, make_image, write_asr_disk
from bootenv.backup import Source, write_backup
from bootenv.drift import REPAIR
from bootenv.layout import Disk, Filesystem, Layout, Mount, Partition
from bootenv.rehearsal import Drive, Machine, MiB, boot, make_disk
from bootenv.sif import AsrSet, BackupReference, new_id, now, write_sif
from tests.vm import story
from tests.vm.story import shape
from tests.vm.test_recovery import SCREENS

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

GIB = 2**30
PLUGGED = 15                           # seconds for the guest's kernel to find a new disk, which no page shows
BACKUP_UUID = "5a7e1d52-0000-4000-8000-00000000b0cc"
ROOT = Filesystem("root", "t/1", "ext4", "5a7e1d52-0000-4000-8000-000000000001", "", {
    "features": ["ext_attr", "extent", "filetype", "has_journal", "sparse_super"], "block_size": 4096,
    "blocks": 2 * GIB // 4096, "inode_size": 256, "inodes": 131072, "reserved_blocks": 0, "mount_options": [],
    "errors": "continue", "max_mount_count": "-1", "check_days": 0})
SET = AsrSet(
    new_id(), now(), "lost", "Debian GNU/Linux 13 (trixie)", "6.12", "x86_64", "bios", GIB,
    Layout((Disk("t", "/dev/vda", 3 * GIB, label="dos", label_id="0x0badcafe"),),
           (Partition("t/1", "t", 1, 2**20, 2 * GIB, "83"),), (ROOT,), (Mount("root", "/"),)),
    BackupReference("lost.tar.zst", "/mnt/backups", BACKUP_UUID, "/", "KEEP"))


def test_each_mistake_gives_its_page_and_changes_nothing(iso, disks, tmp_path):
    good = write_sif(SET)
    small = make_disk(disks / "small.img", GIB)
    foreign = disks / "foreign.img"
    file_system(foreign, 3 * GIB, "-L", "ACCOUNTS")
    before = [digest(small), digest(foreign)]
    other = floppy(disks, "other", write_sif(replace(SET, id=new_id(), host="other")))
    backup = disks / "backup.img"
    backup_disk(backup, good, disks)

    with boot(Machine(disks=(Drive(small),), cdrom=iso), tmp_path / "machine") as guest:
        sees = partial(story.sees, guest)

        def inserts(image: Path | None) -> None:
            sees("Please insert the disk labeled")
            if image:
                guest.insert_floppy(image)
            guest.press("spc")

        guest.wait_for_text("Press F2", 300)
        guest.press("f2")

        inserts(None)
        sees("could not find an ASR disk in any drive", "Nothing was changed", "ASR-010")
        guest.press("ret")
        inserts(floppy(disks, "blank", None))
        sees("could not find an ASR disk in any drive")
        guest.press("ret")
        for name, data in (("truncated", good[:len(good) // 2]), ("flipped", flipped(good))):
            inserts(floppy(disks, name, data))
            sees("The file ASR.SIF is damaged", "No disk of this computer was changed", "ASR-011")
            guest.eject()
            guest.press("ret")
        inserts(floppy(disks, "newer", newer()))
        sees("written by a newer version", "ASR-012")
        guest.eject()
        sees("F3=Quit")
        guest.press("esc")
        sees("Welcome to Setup", "F2=ASR")
        sleep(2)                       # until the page is painted whole
        welcome = guest.screen()
        guest.attach_stick(other)
        guest.insert_floppy(floppy(disks, "good", good))
        sleep(PLUGGED)
        guest.press("f2")
        sees("Which computer?", "lost", "other", "ENTER=Choose")
        guest.detach_stick(other)
        guest.press("esc")
        sees("Welcome to Setup", "F2=ASR")
        guest.press("f2")
        sees("An ASR disk was found", "lost")
        sees("The backup lost.tar.zst", "was not found", "ASR-030")
        guest.attach_stick(backup)
        sleep(PLUGGED)
        guest.press("ret")
        sees("Disk 0 needs at least 2049 MB; the largest free disk has 1024 MB", "ASR-020")
        guest.command("blockdev-add", node_name="big", driver="raw",
                      file={"driver": "file", "filename": str(foreign)})
        guest.command("device_add", driver="virtio-blk-pci", id="big", drive="big")
        sleep(PLUGGED)
        guest.press("ret")
        sees("will recover these disks", "WILL BE LOST", "ACCOUNTS [ext4]", "press F8")
        guest.press("ret", "spc", "n")
        sees("WILL BE LOST")

    assert [digest(small), digest(foreign)] == before
    assert shape(welcome) == shape((SCREENS / "04-welcome.txt").read_text())


def floppy(folder: Path, name: str, data: bytes | None) -> Path:
    image = folder / f"{name}.img"
    make_image(str(image))
    write_asr_disk(str(image), {"readme.txt": b"-"} if data is None else {SIF: data})
    return image


def flipped(data: bytes) -> bytes:
    place = data.index(b"0x0badcafe") + 4
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1:]


def newer() -> bytes:
    text = tomli_w.dumps({"signature": sif.SIGNATURE, "schema": sif.SCHEMA + 1}).encode()
    return text + b"\n[checksum]\nsha256 = \"" + sif._digest(text).encode() + b"\"\n"


def backup_disk(image: Path, data: bytes, folder: Path) -> None:
    """A disk with the set's backup of a tree of one file."""
    tree, kept = folder / "tree", folder / "kept"
    tree.mkdir()
    kept.mkdir()
    (tree / "file").write_text("x")
    for _ in write_backup(kept / SET.backup.name, [Source(tree)], (REPAIR, data)):
        pass
    file_system(image, 64 * MiB, "-L", "KEEP", "-U", BACKUP_UUID, "-d", str(kept))


def file_system(image: Path, size: int, *options: str) -> None:
    make_disk(image, size)
    subprocess.run(("mkfs.ext4", "-q", "-F", *options, image), check=True)


def digest(image: Path) -> str:
    with image.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
