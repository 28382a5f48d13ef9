"""Which disks recovery must never write to, which it asks for, and which passphrases."""

from pathlib import Path
from types import SimpleNamespace

import pytest

import bootenv.run
from bootenv import recover, restore, target
from bootenv.errors import CommandFailed
from bootenv.events import Difference
from bootenv.layout import Disk, Filesystem, Layout, LuksContainer, Mount, Partition

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
    mounts = [] if copied else [SimpleNamespace(source="/dev/sda1", point="/run/medium")]
    monkeypatch.setattr(recover, "mount_table", lambda: mounts)
    monkeypatch.setattr(recover, "COPIED", tmp_path / "device")
    if copied:
        (tmp_path / "device").write_text("/dev/sda1\n")
    assert recover.excluded(disk, PRESENT) == {
        "/dev/sda": "it is this recovery medium", "/dev/sdb": "it holds the backup", "/dev/sdc": "it is the ASR disk"}


def test_a_disk_that_somebody_has_mounted_is_no_target_and_its_mount_is_named(disk, tmp_path, monkeypatch):
    monkeypatch.setattr(recover, "mount_table", lambda: [SimpleNamespace(source="/dev/sda1", point="/mnt")])
    monkeypatch.setattr(recover, "COPIED", tmp_path / "device")
    assert recover.excluded(disk, PRESENT)["/dev/sda"] == "it is mounted at /mnt"


# Encrypted volumes

NAMED, CLOSED = LuksContainer("n", "sda/1", "crypt", 2**30), LuksContainer("c", "sda/2", "", 2**30)


@pytest.mark.parametrize(("saved", "asked"), [((), ["n", "c"]), (("n", "c"), ["n"]), (("n",), ["n", "c"])])
def test_a_passphrase_is_asked_for_what_is_opened_or_gets_a_new_header(saved, asked, tmp_path, monkeypatch):
    """One that was closed when the set was made has no name: it is not opened, but needs a header all the same."""
    monkeypatch.setattr(recover, "HEADERS", tmp_path)
    monkeypatch.setattr(recover, "_fetch_headers", lambda set: [
        (tmp_path / f"{id}.img").write_bytes(b"") for id in saved])
    disk = SimpleNamespace(set=SimpleNamespace(provider=None, layout=Layout(containers=(NAMED, CLOSED))))
    found = recover.locks(disk)
    assert [lock.container.id for lock in found] == asked
    assert [lock.header for lock in found] == [id in saved for id in asked]


@pytest.mark.parametrize(("status", "opens"), [(0, True), (2, False), (3, None)])
def test_too_little_memory_for_a_header_is_no_wrong_passphrase(status, opens, monkeypatch):
    """cryptsetup(8): 2 is a key that does not fit, 3 is out of memory."""
    def run(argv, **_):
        if status:
            raise CommandFailed("cryptsetup failed: Not enough available memory to open a keyslot.", status=status)
        return ""

    monkeypatch.setattr(recover, "run", run)
    if opens is None:
        with pytest.raises(CommandFailed, match="memory"):
            recover.opens(recover.Lock(NAMED, True), b"right")
    else:
        assert recover.opens(recover.Lock(NAMED, True), b"right") is opens


@pytest.mark.parametrize("names", [("crypt", "swap"), ("data", "data2"), ("luks", "lukshome")])
def test_a_passphrase_is_tried_on_its_own_volume_and_those_below(names, tmp_path, monkeypatch):
    """Of "crypt", the words "The encrypted volume swap needs its passphrase" have the name, too."""
    containers = tuple(LuksContainer(name, f"sda/{name}", name, 2**30) for name in names)
    layout = Layout(disks=(STICK,), containers=containers, partitions=tuple(
        Partition(f"sda/{name}", "sda", number, 2**20, 2**30, "83") for number, name in enumerate(names, 1)))

    def run(argv, *, input=b"", **_):
        if argv[:2] == ("cryptsetup", "open") and input != f"key of {argv[-1]}".encode():
            raise CommandFailed("cryptsetup failed: No key available with this passphrase.", status=2)
        return ""

    monkeypatch.setattr(target, "run", run)
    monkeypatch.setattr(restore, "located", lambda layout, present: layout)
    monkeypatch.setattr(restore, "probe", Layout)
    set = SimpleNamespace(layout=layout)
    secrets = {}
    for lock in restore.locks(set):
        assert not restore.opens(set, lock, secrets, b"wrong")
        secrets[lock.container.id] = f"key of {lock.container.name}".encode()
        assert restore.opens(set, lock, secrets, secrets[lock.container.id])


def test_what_is_at_work_in_the_recovered_system_does_not_make_it_unrecovered(monkeypatch):
    ran = []

    def run(argv, **_):
        ran.append(argv)
        if argv == ("umount", "/target/home"):
            raise CommandFailed("umount failed: target is busy.", status=32)
        return ""

    monkeypatch.setattr(target, "run", run)
    target._unmount(Path("/target/home"))
    assert ran[-1] == ("umount", "--lazy", "/target/home")


def test_what_the_disk_has_lost_after_it_was_written_is_a_difference(monkeypatch):
    """Not an exception: the other file systems are asked, too."""
    def run(argv):
        assert argv[:2] == ("sync", "--file-system")
        if argv[2] == "/target/home":
            raise CommandFailed("sync failed: error syncing '/target/home': Input/output error")
        asked.append(argv[2])

    asked = []
    monkeypatch.setattr(bootenv.run, "run", run)
    layout = Layout(mounts=(Mount("b", "/home"), Mount("a", "/"), Mount("c", "/srv/data")))
    events = list(target.write_all_out(layout, Path("/target")))
    assert asked == ["/target", "/target/srv/data"]
    assert [event for event in events if isinstance(event, Difference)] == [Difference(
        "/home", "Not all of it could be written to its disk: sync failed: error syncing '/target/home': "
                 "Input/output error")]


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
