"""Which disks recovery must never write to."""

from types import SimpleNamespace

import pytest

from bootenv import recover
from bootenv.layout import Disk, Filesystem, Layout, Partition

STICK, BACKUP, FLOPPY, BLANK = (Disk(name, f"/dev/{name}", 2**33, label="dos") for name in ("sda", "sdb", "sdc", "sdd"))
PRESENT = Layout(
    disks=(STICK, BACKUP, FLOPPY, BLANK),
    partitions=tuple(Partition(f"{d.id}/1", d.id, 1, 2**20, 2**30, "83") for d in (STICK, BACKUP, FLOPPY)),
    filesystems=(Filesystem("kept", "sdb/1", "ext4", "uuid-of-the-backups"),))


@pytest.fixture
def disk():
    backup = SimpleNamespace(filesystem="uuid-of-the-backups")
    return SimpleNamespace(device="/dev/sdc1", set=SimpleNamespace(backup=backup))


@pytest.mark.parametrize("copied", [False, True])
def test_the_medium_the_asr_disk_and_the_backup_are_no_targets(copied, disk, tmp_path, monkeypatch):
    mounts = [] if copied else [SimpleNamespace(source="/dev/sda1")]
    monkeypatch.setattr(recover, "mount_table", lambda: mounts)
    monkeypatch.setattr(recover, "COPIED", tmp_path / "device")
    if copied:
        (tmp_path / "device").write_text("/dev/sda1\n")
    assert recover.excluded(disk, PRESENT) == {
        "/dev/sda": "it is this recovery medium", "/dev/sdb": "it holds the backup", "/dev/sdc": "it is the ASR disk"}
