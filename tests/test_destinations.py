"""Where a backup may be written: as lsblk and findmnt tell it, and with real volumes in user-mode Linux."""

import fcntl
import json
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from threading import Timer

import pytest

from bootenv import destinations, prepare
from bootenv.backup import Source, write_backup
from bootenv.destinations import Place, alone, at, backup_size, destination, parse_places, reached, seconds_for
from bootenv.errors import Busy, DestinationRefused, NetworkPlaceFailed
from bootenv.layout import Disk, Layout
from bootenv.probe import Mounted
from bootenv.sif import AsrSet, write_sif
from tests.test_sif import SET
from tests.uml import run_in_uml

MiB, GiB = 2**20, 2**30
SYSTEM = Layout((Disk("a", "/dev/sda", 100 * GiB),))


def a_set(layout: Layout) -> AsrSet:
    return AsrSet(id="", created=datetime(2026, 3, 14, 15, 9, tzinfo=UTC), host="sample", layout=layout)


def device(path, type, fstype="", label="", size=10 * GiB, ro=False, children=()):
    return {"path": path, "type": type, "fstype": fstype or None, "label": label or None, "size": size, "ro": ro,
            "children": list(children)}


def found(devices, *mounted):
    return {place.where: place for place in
            parse_places(json.dumps({"blockdevices": devices}), mounted, SYSTEM)}


def test_every_volume_is_a_place_and_what_will_not_do_says_why():
    volume = device("/dev/mapper/vg-data", "lvm", "ext4")
    seen = found([
        device("/dev/sda", "disk", children=[device("/dev/sda1", "part", "vfat"), device("/dev/sda2", "part", "swap"),
                                             device("/dev/sda3", "part", "ext4", "root")]),
        device("/dev/sdb", "disk", children=[device("/dev/sdb1", "part", "ext4", "BACKUP"),
                                             device("/dev/sdb2", "part", "ntfs", "PHOTOS", ro=True)]),
        device("/dev/sdc", "disk", "LVM2_member", children=[volume]),
        device("/dev/sdd", "disk", children=[device("/dev/sdd1", "part", "LVM2_member", children=[volume])]),
        device("/dev/loop0", "loop", "ext4"),
        device("/dev/sr0", "rom", "iso9660"),
    ], Mounted("/", "/dev/sda3", "ext4", "/"), Mounted("/data", "/dev/mapper/vg-data", "ext4", "/"))
    assert seen.keys() == {"/dev/sda1", "/", "/dev/sdb1", "/dev/sdb2", "/data"}
    assert seen["/dev/sdb1"].refused == ""
    assert seen["/dev/sdb1"].label == "BACKUP"
    assert seen["/"].refused == ("/dev/sda3 lies on /dev/sda, which holds a part of this system: recovery formats it, "
                                 "and the backup with it.")
    assert "lies on /dev/sda" in seen["/dev/sda1"].refused
    assert seen["/dev/sdb2"].refused == "/dev/sdb2 is read-only."
    assert "of the kind lvm" in seen["/data"].refused


def test_a_volume_that_is_mounted_twice_is_one_place_and_it_is_the_whole_volume():
    seen = found([device("/dev/sdb1", "part", "btrfs")],
                 Mounted("/a", "/dev/sdb1", "btrfs", "/@"), Mounted("/mnt/whole", "/dev/sdb1", "btrfs", "/"))
    assert seen.keys() == {"/mnt/whole"}


def test_network_places_are_places_and_memory_is_none():
    seen = found([], Mounted("/mnt/nas", "nas:/backups", "nfs4", "/"), Mounted("/tmp", "tmpfs", "tmpfs", "/"))
    assert seen == {"/mnt/nas": Place("/mnt/nas", "nas:/backups", "nfs4")}


@pytest.mark.parametrize(("source", "type", "doubted"), [
    ("nas:/backups", "nfs4", False), ("//nas/share", "cifs", False), ("ann@nas:/x", "fuse.sshfs", False),
    ("local.example:/x", "nfs", False), ("/home/ann/cipher", "fuse.gocryptfs", True), ("a:b", "fuse.mergerfs", True),
    ("localhost:/export", "nfs4", True), ("127.0.0.1:/export", "nfs", True), ("[::1]:/export", "nfs", True),
    ("//localhost/share", "cifs", True), ("ann@localhost:/x", "fuse.sshfs", True),
])
def test_what_may_lie_on_this_computers_disks_is_doubted(source, type, doubted):
    [place] = found([], Mounted("/mnt/x", source, type, "/")).values()
    assert bool(place.doubt) == doubted


def test_a_folder_that_shows_another_is_cautioned_of(on_another_disk, tmp_path):
    on_another_disk |= {"fstype": "fuse.gocryptfs", "source": "/home/ann/cipher", "options": "rw", "uuid": ""}
    warnings = destination(a_set(SYSTEM), MiB, str(tmp_path)).warnings
    assert warnings[0].startswith(f"{tmp_path} (fuse.gocryptfs) is not known to be elsewhere")
    assert not any("on the network" in warning for warning in warnings)


def test_a_file_system_that_recovery_cannot_read_will_not_do():
    assert "[zfs_member]" in found([device("/dev/sdb1", "part", "zfs_member")],
                                   Mounted("/tank", "/dev/sdb1", "zfs", "/"))["/tank"].refused


def test_the_largest_suitable_volume_comes_first_and_networks_after_volumes(monkeypatch):
    room = {"/dev/sdb1": (9 * GiB, 2 * GiB), "/dev/sdc1": (9 * GiB, 5 * GiB), "/mnt/nas": (99 * GiB, 90 * GiB),
            "/dev/sdd1": (GiB, 80 * MiB)}
    monkeypatch.setattr(destinations, "_room", lambda place: room[place.where])
    monkeypatch.setattr(destinations, "mount_table", lambda: [Mounted("/mnt/nas", "nas:/x", "nfs4", "/")])
    monkeypatch.setattr(destinations, "run", lambda argv, **_: json.dumps({"blockdevices": [
        device(f"/dev/sd{disk}1", "part", "ext4") for disk in "bcd"]}))
    found = destinations.places(a_set(SYSTEM), 3 * GiB)
    assert [place.where for place in found] == ["/dev/sdc1", "/dev/sdb1", "/mnt/nas", "/dev/sdd1"]
    assert found[-1].refused == "/dev/sdd1 has 80 MB free, which cannot hold a backup of 3072 MB of files."


def test_a_server_that_does_not_answer_is_said_and_not_waited_for(monkeypatch):
    monkeypatch.setattr(destinations, "mount_table", lambda: [Mounted("/mnt/nas", "nas:/x", "nfs4", "/")])
    asked = []
    monkeypatch.setattr(destinations, "run", lambda argv, **_: asked.append(argv) or ('{"blockdevices": []}'
                                                                                     if argv[0] == "lsblk" else ""))
    [place] = destinations.places(a_set(SYSTEM), GiB)
    assert place.refused == "/mnt/nas does not answer."
    assert asked[1][:2] == ("timeout", "--signal=KILL")


def test_a_folder_on_a_server_is_recorded_by_the_servers_address(on_another_disk, tmp_path):
    on_another_disk |= {"fstype": "nfs4", "source": "nas:/export", "options": "rw,vers=4.2", "uuid": "",
                        "target": str(tmp_path.parent)}
    found = destination(a_set(SYSTEM), MiB, str(tmp_path))
    assert found.reference.network == f"nfs://nas/export/{tmp_path.name}"
    assert found.reference.place == str(tmp_path)
    [warning] = found.warnings
    assert warning == f"{tmp_path} is on the network: recovery gets an address by DHCP and mounts it by itself."
    on_another_disk |= {"fstype": "cifs", "source": "//nas/share", "options": "rw,username=ann"}
    found = destination(a_set(SYSTEM), MiB, str(tmp_path))
    assert found.reference.network == f"smb://ann@nas/share/{tmp_path.name}"
    assert "asks for the password of ann, which is not kept" in found.warnings[0]


@pytest.fixture
def points(tmp_path, monkeypatch):
    """Where things are mounted, and the lock on that."""
    monkeypatch.setattr(destinations, "POINT", tmp_path / "point")
    monkeypatch.setattr(destinations, "LOCK", tmp_path / "state/prepare.lock")
    monkeypatch.setattr(prepare, "SOURCES", tmp_path / "sources")


def test_what_another_process_has_mounted_is_left_to_it(points, monkeypatch):
    ran = []
    for module in (destinations, prepare):
        monkeypatch.setattr(module, "run", lambda argv, **_: ran.append(argv))
    with alone(), alone():
        pass
    with destinations.LOCK.open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        for work in (reached("/dev/sdb1"), prepare.sources(SYSTEM)):
            with pytest.raises(Busy, match="is being prepared right now"), work:
                pass
    assert ran == []
    with alone(), prepare.sources(SYSTEM):     # it is given back when it ends
        pass


def test_one_that_nobody_watches_waits_for_the_other(points):
    with alone():
        pass
    other = destinations.LOCK.open("w")
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    said = []

    def told(text):
        said.append(text)
        Timer(0.2, other.close).start()

    with alone(told):
        assert other.closed
        with destinations.LOCK.open("w") as third, pytest.raises(BlockingIOError):
            fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert said == ["Another ASR set of this computer is being prepared right now; this one waits until that has "
                    "ended."]


def test_an_address_is_mounted_as_long_as_it_is_needed(on_another_disk, points, tmp_path, monkeypatch):
    on_another_disk |= {"fstype": "cifs", "source": "//nas/share", "options": "rw,guest,username=root", "uuid": ""}
    mounted = []

    @contextmanager
    def unmounting(point):
        yield
        mounted.append(point)

    def mount(place, point, *, write):
        mounted.append((place.url, write))
        return tmp_path

    monkeypatch.setattr(destinations, "unmounting", unmounting)
    monkeypatch.setattr(destinations.network, "mount", mount)
    found = destination(a_set(SYSTEM), MiB, "smb://NAS/share//folder/", "monday")
    assert found.device == found.reference.place == found.reference.network == "smb://nas/share/folder"
    assert found.path == tmp_path / "monday.tar.zst"
    assert "password" not in found.warnings[0]
    with at(found):
        assert mounted[::2] == [("smb://nas/share/folder", True)] * 2
    assert mounted[-1] == tmp_path / "point"


def test_a_server_that_fails_is_said_and_what_is_no_address_too(points, monkeypatch):
    monkeypatch.setattr(destinations, "unmounting", lambda point: nullcontext())

    def mount(place, point, *, write):
        raise NetworkPlaceFailed("The server nas does not answer.")

    monkeypatch.setattr(destinations.network, "mount", mount)
    with pytest.raises(NetworkPlaceFailed, match="does not answer"):
        destination(a_set(SYSTEM), MiB, "nfs://nas/x")
    with pytest.raises(NetworkPlaceFailed, match="is no address"):
        destination(a_set(SYSTEM), MiB, "smb://nas")


@pytest.mark.parametrize("name", ["a/b", ".hidden", "../x"])
def test_a_name_is_a_name(name, tmp_path):
    with pytest.raises(DestinationRefused, match="is not a file's name"):
        destination(a_set(SYSTEM), GiB, str(tmp_path), name)


@pytest.fixture
def on_another_disk(monkeypatch):
    """Any folder lies on /dev/sdb1."""
    volume = {"target": "/", "source": "/dev/sdb1", "fstype": "ext4", "uuid": "u-1", "label": "BACKUP"}
    monkeypatch.setattr(destinations, "volume_of", lambda folder: volume)
    monkeypatch.setattr(destinations, "run", lambda argv, **_: "part" if "TYPE" in argv else "/dev/sdb1\n/dev/sdb\n")
    return volume


def test_the_file_gets_the_name_that_was_typed(on_another_disk, tmp_path):
    found = destination(a_set(SYSTEM), GiB, str(tmp_path), "monday")
    assert found.path == tmp_path / "monday.tar.zst"
    assert found.speed > 0
    assert [path.name for path in tmp_path.iterdir()] == ["setup.log"], "what measured the speed is still there"
    assert found.warnings == ()
    assert destination(a_set(SYSTEM), GiB, str(tmp_path)).path.name == "sample-20260314-1509.tar.zst"


def test_nothing_is_overwritten(on_another_disk, tmp_path):
    (tmp_path / "monday.tar.zst.001").touch()
    with pytest.raises(DestinationRefused, match="is there already"):
        destination(a_set(SYSTEM), GiB, str(tmp_path), "monday")


def test_what_a_backup_of_this_computer_that_was_killed_has_left_is_removed(on_another_disk, tmp_path):
    folder, tree = tmp_path / "to", tmp_path / "tree"
    folder.mkdir()
    tree.mkdir()
    mine, anothers = SET, replace(SET, host="another")
    for name, set, volumes in (("killed", mine, 0), ("in-volumes", mine, 4096), ("at-work", mine, 0),
                               ("whole", mine, 0), ("theirs", anothers, 0)):
        for _ in write_backup(folder / f"{name}.tar.zst", [Source(tree)], ("asr.sif", write_sif(set)),
                              volume_size=volumes, workers=1):
            pass
    for path in folder.iterdir():
        if not path.name.startswith("whole"):
            path.rename(f"{path}.part")
    (folder / "letter.tar.zst.part").write_text("somebody's")
    with (folder / "at-work.tar.zst.part").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        destination(SET, MiB, str(folder))
    assert sorted(path.name for path in folder.iterdir()) == [
        "at-work.tar.zst.part", "letter.tar.zst.part", "theirs.tar.zst.part", "whole.tar.zst"]


def test_a_disk_of_the_set_is_refused(on_another_disk, tmp_path):
    with pytest.raises(DestinationRefused, match="lies on /dev/sdb, a disk that recovery will format"):
        destination(a_set(Layout((Disk("b", "/dev/sdb", GiB),))), GiB, str(tmp_path))


def test_what_may_be_too_small_or_away_is_warned_of(on_another_disk, tmp_path, monkeypatch):
    on_another_disk |= {"fstype": "fuse.sshfs", "source": "nas:/x", "options": "rw"}
    status = destinations.os.statvfs(tmp_path)
    free = status.f_bavail * status.f_frsize
    warnings = destination(a_set(SYSTEM), free * 2, str(tmp_path)).warnings
    assert "no set is made" in warnings[0]
    assert "must be mounted by hand" in warnings[1]
    on_another_disk |= {"fstype": "vfat", "source": "/dev/sdb1"}
    assert "split into numbered files" in destination(a_set(SYSTEM), 8 * GiB, str(tmp_path)).warnings[-1]


def test_an_estimate_has_the_time_to_read_it_back_and_never_more_speed_than_the_engine():
    slow = seconds_for(GiB, MiB)
    assert slow == pytest.approx(2 * backup_size(GiB) / MiB)
    assert seconds_for(GiB, 10 * GiB) > GiB / (150 * MiB)


# In a kernel with disks of its own

@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("destinations")
    disks = []
    for name, size in (("a", 64), ("b", 100), ("c", 320), ("d", 16)):
        disks.append(folder / f"{name}.img")
        with disks[-1].open("wb") as file:
            file.truncate(size * MiB)
    return run_in_uml("tests.on_destinations", "-", disks, seconds=280)


@pytest.mark.disks
@pytest.mark.timeout(300)
class TestRealVolumes:
    def test_they_are_listed_best_first_with_what_is_free(self, outcome):
        listed = [Place(**place) for place in outcome["places"] if place["device"].startswith("/dev/ubd")]
        assert [(p.where, p.label, bool(p.refused)) for p in listed] == [
            ("/dev/ubdc", "BACKUP", False), ("/dev/ubdb", "SMALLER", False),
            ("/dev/ubdd", "TINY", True), ("/run/system", "root", True)]
        assert 200 * MiB < listed[0].free < 320 * MiB
        assert replace(listed[0], free=0, size=0) == Place("/dev/ubdc", "/dev/ubdc", "xfs", "BACKUP")

    def test_a_refusal_says_why(self, outcome):
        said = outcome["refused"]
        assert said["/dev/ubda1"] == "/run/system lies on /dev/ubda, a disk that recovery will format."
        assert said["/run/system"] == said["/dev/ubda1"]
        assert said["/run"] == "/run is in this computer's memory and will be gone at the next start."
        assert "which cannot hold a backup" in said["/dev/ubdd"]
        assert said["/dev/ubdz"] == "There is no device /dev/ubdz."
        assert said["/nowhere"] == "There is no folder /nowhere."
        assert outcome["read-only"] == "/run/look/other.tar.zst is not writable."
        assert outcome["again"] == "sample-20260314-1509.tar.zst is there already."

    def test_a_volume_is_mounted_only_as_long_as_it_is_needed(self, outcome):
        assert outcome["mounts before"] == outcome["mounts between"] == outcome["mounts after"] == ["/run/system"]
        assert outcome["mounts meanwhile"] == ["/run/system", "/run/asr/destination"]
        assert outcome["on the disk"] == ["sample-20260314-1509.tar.zst"]
        found = outcome["found"]
        assert found["path"] == "/run/asr/destination/sample-20260314-1509.tar.zst"
        assert found["speed"] > 0
        reference = found["reference"]
        assert (reference["place"], reference["path"], reference["label"]) == ("/dev/ubdc", "/", "BACKUP")
        assert len(reference["filesystem"]) == 36

    def test_a_killed_program_leaves_nothing_mounted(self, outcome):
        assert outcome["killed"] == [["/run/system", "/run/asr/destination"], ["/run/system"]]

    def test_backups_are_found_compared_and_removed_also_where_their_volume_is_mounted(self, outcome):
        said = outcome["media"]
        assert said["places"] == ["/sample-20260314-1509.tar.zst on BACKUP (/dev/ubdc)"] * 2
        assert said["size"] > 1000
        assert said["damaged"] == []
        assert said["verified"] == [False, True]
        assert said["left"] == []
        assert said["again"] == 0
        assert said["mounts"] == ["/run/system"]
