"""Which disks recovery must never write to, and which it asks for."""

from types import SimpleNamespace

import pytest

from bootenv import recover
from bootenv.errors import CommandFailed
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


@pytest.fixture
def lost(tmp_path, monkeypatch):
    """A set of one disk, and a file in its place."""
    new = Disk("new", str(tmp_path / "disk"), 2**33, serial="NEW")
    recorded = Layout((Disk("t", "/dev/sda", 2**33, serial="OLD", label="gpt", label_id="t"),))
    monkeypatch.setattr(recover, "probe", lambda: Layout((new,)))
    monkeypatch.setattr(recover, "find_backup", lambda _: None)
    monkeypatch.setattr(recover, "forget", lambda: None)
    monkeypatch.setattr(recover, "excluded", lambda *_: {})
    monkeypatch.setattr(recover, "BEGUN", tmp_path / "begun")
    set = SimpleNamespace(id="id", host="lost", layout=recorded, backup=SimpleNamespace(network=""))
    return SimpleNamespace(device="", set=set)


@pytest.mark.parametrize(("head", "content"), [
    (bytes(2**20) + b"x", "blank"), (bytes(2**20 - 1) + b"x", "unknown content"), (None, "unknown content")])
def test_a_disk_without_signatures_is_blank_if_it_begins_with_zeros(head, content, lost, tmp_path):
    if head:
        (tmp_path / "disk").write_bytes(head)
    choice = recover.match_disks(lost).choices[0]
    assert (choice.content, choice.consent) == (content, content != "blank")


@pytest.mark.parametrize(("number", "consent"), [("7", False), ("8", True), ("", True)])
def test_a_disk_that_a_failed_attempt_has_cleared_is_not_asked_for_again(number, consent, lost, tmp_path, monkeypatch):
    def fail(*_):
        raise CommandFailed("sfdisk failed")

    (tmp_path / "disk").write_bytes(b"x")
    found = recover.match_disks(lost)
    assert found.choices[0].consent
    monkeypatch.setattr(recover, "execute", fail)
    monkeypatch.setattr(recover, "_number", lambda _: number and "7")
    with pytest.raises(CommandFailed):
        list(recover.recover(lost, found))
    monkeypatch.setattr(recover, "_number", lambda _: number)
    assert recover.match_disks(lost).choices[0].consent is consent
