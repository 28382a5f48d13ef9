"""A system that does not run, as its files and lsblk tell of it."""

import json
import struct
import uuid
from dataclasses import replace

import pytest

from bootenv import drift, offline, prepare, probe, snapshot
from bootenv.backup import Source
from bootenv.errors import Asleep, CommandFailed, FirmwareDiffers, NoSystem, SystemIncomplete
from bootenv.layout import Disk, Filesystem, Layout, Mount, Partition, SwapFile
from bootenv.offline import (
    Block,
    Line,
    System,
    devices_of,
    find_systems,
    is_root,
    mount,
    names_agree,
    parse_arrays,
    parse_blocks,
    parse_lines,
)
from tests.scenarios import SCENARIOS
from tests.uml import run_in_uml

FSTAB = r"""
# <file system> <mount point> <type> <options> <dump> <pass>
UUID=b007 /boot ext4 defaults 0 2
/dev/mapper/vg-root / ext4 errors=remount-ro 0 1
UUID=E5B0-1 /boot/efi vfat umask=0077 0 1
LABEL=data /srv/my\040data xfs nofail,x-systemd.device-timeout=5 0 2
UUID=late /backup ext4 noauto,x-systemd.automount 0 2
/dev/sr0 /media/cdrom0 udf,iso9660 user,noauto 0 0
/srv/my\040data/www /var/www none bind 0 0
/dev/disk/by-uuid/5000 /view none rbind 0 0
nas:/home /home/nas nfs _netdev 0 0
UUID=15c51 /iscsi ext4 _netdev 0 0
tmpfs /tmp tmpfs nosuid 0 0
UUID=5a0 none swap sw 0 0
/swapfile none swap sw 0 0
"""


def row(path, type, fstype="", children=(), **more):
    return {"path": path, "type": type, "fstype": fstype or None, "size": 2**30, "uuid": None, "label": None,
            "partuuid": None, "partlabel": None, "children": list(children)} | more


def blocks(*rows):
    return parse_blocks(json.dumps({"blockdevices": list(rows)}))


def test_what_an_fstab_mounts_from_disks_is_in_the_order_in_which_it_can_be_mounted():
    lines = parse_lines(FSTAB)
    assert [line.point for line in lines] == ["/", "/backup", "/boot", "/boot/efi", "/srv/my data"]
    assert [line.point for line in lines if not line.needed] == ["/srv/my data"]
    assert lines[3] == Line("UUID=E5B0-1", "/boot/efi", "vfat", ("umask=0077",))


def test_each_device_is_there_once_and_an_open_container_names_what_is_in_it():
    root = row("/dev/mapper/vg-root", "lvm", "ext4", uuid="r")
    open_ = row("/dev/mapper/luks-c", "crypt", "LVM2_member", [root])
    found = blocks(row("/dev/vda", "disk", children=[row("/dev/vda1", "part", "crypto_LUKS", [open_], uuid="c")]),
                   row("/dev/vdb", "disk", "LVM2_member", [root]), row("/dev/vdc", "disk", "crypto_LUKS"))
    assert [block.path for block in found] == [
        "/dev/vda", "/dev/vda1", "/dev/mapper/luks-c", "/dev/mapper/vg-root", "/dev/vdb", "/dev/vdc"]
    assert {block.path: block.inner for block in found if block.content == "crypto_LUKS"} == {
        "/dev/vda1": "/dev/mapper/luks-c", "/dev/vdc": ""}


@pytest.mark.parametrize(("source", "path"), [
    ("UUID=ABCD-12", "/dev/vda1"), ("UUID=abcd-12", "/dev/vda1"), ('LABEL="My Disk"', "/dev/vda1"),
    ("PARTUUID=99-01", "/dev/vda1"), ("PARTLABEL=esp", "/dev/vda1"), ("/dev/vda1", "/dev/vda1"),
    ("UUID=abcd", None), ("LABEL=my disk", None), ("/dev/vdb1", None), ("nas:/x", None),
])
def test_a_device_is_known_by_whatever_an_fstab_calls_it(source, path):
    found = devices_of(source, blocks(row("/dev/vda", "disk", children=[
        row("/dev/vda1", "part", "vfat", uuid="ABCD-12", label="My Disk", partuuid="99-01", partlabel="esp")])))
    assert [block.path for block in found] == ([path] if path else [])


ROOT, COPY = Block("/dev/vda3", "part", "ext4", uuid="r"), Block("/dev/vdb3", "part", "ext4", uuid="r")
BTRFS, SECOND = Block("/dev/vda2", "part", "btrfs", uuid="b"), Block("/dev/vdb2", "part", "btrfs", uuid="b")
ALL = (ROOT, COPY, BTRFS, SECOND)


def system(block, source, options="defaults", **more):
    lines = (Line(source, "/", block.content, tuple(options.split(","))),) if source else ()
    return System(block, "Debian", "sample", lines=lines, **more)


@pytest.mark.parametrize(("found", "root"), [
    (system(ROOT, "UUID=r"), True),
    (system(COPY, "UUID=r"), True),                    # a clone: a person chooses
    (system(COPY, "/dev/vda3"), True),                 # the kernel's name says nothing
    (system(ROOT, "UUID=other"), False),
    (system(ROOT, ""), True),
    (system(BTRFS, "UUID=b", "subvol=@,compress=zstd:1", subvolume="@"), True),
    (system(BTRFS, "UUID=b", "subvol=/@", subvolume="@"), True),
    (system(BTRFS, "UUID=b", "subvol=/@", subvolume="@snapshots/1/snapshot"), False),
    (system(BTRFS, "UUID=b", "subvolid=257", subvolume="root", ids={"257": "root"}), True),
    (system(BTRFS, "UUID=b", subvolume="@/.snapshots/1/snapshot", default="@/.snapshots/1/snapshot"), True),
    (system(BTRFS, "UUID=b", subvolume="@/.snapshots/2/snapshot", default="@/.snapshots/1/snapshot"), False),
    (system(BTRFS, "", subvolume="docker/layer"), False),
])
def test_a_system_is_one_only_where_it_starts_from(found, root):
    assert is_root(found, ALL) is root


def test_the_kernels_names_are_believed_only_if_that_of_the_root_is_right():
    assert names_agree(system(ROOT, "/dev/vda3"), ALL)
    assert not names_agree(system(ROOT, "/dev/sda3"), ALL)
    assert not names_agree(system(ROOT, "UUID=r"), ALL)


# Finding and mounting, without a disk

@pytest.fixture
def commands(monkeypatch, tmp_path):
    """What is run; nothing is, and all of it goes well."""
    ran = []
    monkeypatch.setattr(offline, "run", lambda argv, **_: ran.append(argv) or "")
    monkeypatch.setattr(offline, "OFFLINE", tmp_path / "offline")
    monkeypatch.setattr(offline, "_blocks", lambda: ALL)
    monkeypatch.setattr(offline, "forget", lambda: None)
    return ran


def mounts(commands):
    return [argv[1:] for argv in commands if argv[0] == "mount"]


def with_lines(*lines):
    return replace(system(ROOT, "/dev/vda3"), lines=(Line("/dev/vda3", "/", "ext4", ("noatime",)), *lines))


def test_a_system_is_mounted_with_its_own_options_parents_first(commands, tmp_path):
    chosen = with_lines(Line("UUID=b", "/home", "auto", ("subvol=@home",)))
    (tmp_path / "offline/home").mkdir(parents=True)
    assert mount(chosen) == ()
    top = str(tmp_path / "offline")
    assert mounts(commands) == [("-t", "ext4", "-o", "noatime", "/dev/vda3", top),
                                ("-o", "subvol=@home", "/dev/vda2", f"{top}/home")]


def test_what_the_system_starts_without_is_named_and_what_it_needs_is_an_error(commands):
    missing = Line("LABEL=data", "/srv", "xfs", ("defaults",))
    with pytest.raises(SystemIncomplete, match=r"/srv of sample cannot be mounted: there is no LABEL=data on this"):
        mount(with_lines(missing))
    assert mounts(commands) == [], "something was mounted before everything was known to be there"
    [left] = mount(with_lines(replace(missing, needed=False)))
    assert left.what == "/srv"


def test_a_name_that_may_be_another_disks_is_not_believed(commands):
    with pytest.raises(SystemIncomplete, match="may be another disk's here"):
        mount(replace(system(ROOT, "UUID=r"), lines=(Line("/dev/vdb3", "/home", "ext4", ()),)))


def test_of_a_volume_and_its_copy_none_is_taken_for_the_other(commands):
    with pytest.raises(SystemIncomplete, match="/dev/vda3, /dev/vdb3 are each UUID=r: one is a copy"):
        mount(with_lines(Line("UUID=r", "/home", "ext4", ())))


def test_a_file_system_that_fails_unmounts_the_others(commands, monkeypatch, tmp_path):
    def run(argv, **_):
        commands.append(argv)
        if argv[0] == "mount" and argv[-1].endswith("/home"):
            raise CommandFailed("mount failed: wrong fs type")
        return ""

    monkeypatch.setattr(offline, "run", run)
    (tmp_path / "offline/home").mkdir(parents=True)
    home = Line("UUID=b", "/home", "btrfs", ())
    with pytest.raises(SystemIncomplete, match="/home could not be mounted from /dev/vda2: mount failed: wrong fs"):
        mount(with_lines(home))
    assert commands[-1] == ("umount", "--recursive", str(tmp_path / "offline"))
    [left] = mount(with_lines(replace(home, needed=False)))
    assert left.what == "/home"


def test_no_mount_leaves_the_system_by_a_symlink(commands, tmp_path):
    (tmp_path / "offline").mkdir()
    (tmp_path / "offline/home").symlink_to("/tmp")
    with pytest.raises(SystemIncomplete, match="there is a symlink in its path"):
        mount(with_lines(Line("UUID=b", "/home", "btrfs", ())))


def test_a_computer_that_sleeps_is_left_alone(commands, monkeypatch):
    with pytest.raises(Asleep):
        mount(replace(with_lines(), asleep=True))
    monkeypatch.setattr(offline, "_blocks", lambda: (Block("/dev/vda4", "part", "swsuspend"),))
    with pytest.raises(Asleep):
        find_systems()
    assert mounts(commands) == []


def test_systems_are_found_in_subvolumes_and_snapshots_of_them_are_not(commands, monkeypatch, tmp_path):
    """A symlink of the system means nothing in the medium's own tree."""
    for top in ("@", "@snapshots/1"):
        for name, content in {"etc/fstab": "UUID=b / btrfs subvol=@ 0 0\n/swap none swap sw\n", "etc/hostname": "web\n",
                              "usr/lib/os-release": 'PRETTY_NAME="openSUSE"\n'}.items():
            path = tmp_path / "vda2" / top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        (tmp_path / "vda2" / top / "etc/os-release").symlink_to("/usr/lib/os-release")
    monkeypatch.setattr(offline, "_blocks", lambda: (BTRFS, SECOND, Block("/dev/vdc1", "part", "vfat")))
    monkeypatch.setattr(offline.Volume, "mount", lambda self, options: self.device == "/dev/vda2")
    monkeypatch.setattr(offline.Volume, "point", tmp_path / "vda2")
    monkeypatch.setattr(offline, "run", lambda argv, **_: (
        "ID 256 gen 9 top level 5 parent_uuid - uuid u1 path @\n"
        "ID 257 gen 9 top level 5 parent_uuid u1 uuid u2 path @snapshots/1\n" if "list" in argv else
        "ID 5 (FS_TREE)\n" if "get-default" in argv else ""))
    [found] = find_systems()
    assert (found.host, found.name, found.subvolume, found.points) == ("web", "openSUSE", "@", ("/",))
    assert not found.asleep
    (tmp_path / "vda2/@/swap").write_bytes(bytes(4086) + b"S1SUSPEND\0")
    [found] = find_systems()
    assert found.asleep
    (tmp_path / "vda2/@/etc/fstab").unlink()
    with pytest.raises(NoSystem):
        find_systems()


def test_a_container_gets_the_name_that_its_system_has_for_it(commands, monkeypatch, tmp_path):
    monkeypatch.setattr(offline, "_OPENED", tmp_path / "opened")
    (tmp_path / "opened").write_text("cryptsetup close luks-c || left=yes\nvgchange --activate n vg || left=yes\n")
    container = Block("/dev/vda3", "part", "crypto_LUKS", uuid="c", inner="/dev/mapper/luks-c")
    closed = Block("/dev/vda4", "part", "crypto_LUKS", uuid="d")
    named = replace(system(ROOT, ""), crypttab=(("UUID=c", ("vda3_crypt", "")), ("UUID=d", ("home", "/etc/home.key"))))
    assert offline._put_right(named, tmp_path, (container, closed))
    assert commands == [("dmsetup", "rename", "luks-c", "vda3_crypt")]
    commands.clear()
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/home.key").touch()
    assert offline._put_right(named, tmp_path, (replace(container, inner="/dev/mapper/vda3_crypt"), closed))
    assert next(argv for argv in commands if argv[0] == "cryptsetup") == (
        "cryptsetup", "open", "--key-file", str(tmp_path / "etc/home.key"), "/dev/vda4", "luks-d")
    assert (tmp_path / "opened").read_text() == "".join(f"{line} || left=yes\n" for line in (
        "cryptsetup close vda3_crypt", "vgchange --activate n vg", "cryptsetup close luks-d"))


def test_an_array_has_the_number_that_it_has_on_its_own_host():
    text = """ARRAY /dev/md/0  metadata=1.2 UUID=5a3b1e00:c0ffee00:0badcafe:00c0ffee name=sample:0
ARRAY /dev/md/root  metadata=1.2 UUID=a:b:c:d name=sample:root
   spares=1
ARRAY /dev/md3 UUID=1:2:3:4
ARRAY metadata=imsm UUID=5:6:7:8
"""
    assert list(parse_arrays(text)) == [
        ("/dev/md0", "5a3b1e00:c0ffee00:0badcafe:00c0ffee"), ("/dev/md/root", "a:b:c:d"), ("/dev/md3", "1:2:3:4")]


# What preparation says of a system that does not run

@pytest.fixture
def at_rest(monkeypatch, tmp_path):
    """A system's root, below which nothing runs."""
    for room in (drift, probe, snapshot):
        monkeypatch.setattr(room, "RUNNING", False)
        monkeypatch.setattr(room, "ROOT", tmp_path)
    return tmp_path


def put(root, name, content=b""):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_bytes(content)


def test_its_name_kernel_and_architecture_are_its_own(at_rest):
    assert probe.host_name(at_rest) == "localhost"
    put(at_rest, "etc/hostname", b"# ours\nweb.example.org\n")
    assert probe.host_name(at_rest) == "web.example.org"
    for version in ("6.12.9-amd64", "6.12.41+deb13-amd64", "6.12.100-removed"):
        (at_rest / "usr/lib/modules" / version).mkdir(parents=True)
    assert probe.kernel_release() == ""
    put(at_rest, "boot/vmlinuz-6.12.9-amd64")
    put(at_rest, "usr/lib/modules/6.12.41+deb13-amd64/vmlinuz")
    assert probe.kernel_release() == "6.12.41+deb13-amd64"
    put(at_rest, "usr/bin/coreutils", b"\x7fELF\2\1\1" + bytes(11) + b"\xb7\0")
    (at_rest / "usr/bin/env").symlink_to("/usr/bin/coreutils")
    assert probe.architecture() == "aarch64"


def swap_page(pages, id=7, label=b"sw\xc3\xa4p"):
    head = bytes(1024) + struct.pack("<III", 1, pages - 1, 0) + uuid.UUID(int=id).bytes + label.ljust(16, b"\0")
    return head.ljust(4086, b"\0") + b"SWAPSPACE2"


def test_its_swap_files_are_those_of_its_fstab(at_rest):
    put(at_rest, "swapfile", swap_page(16384))
    put(at_rest, "plain", bytes(8192))
    fstab = "".join(f"{source} none swap sw\n" for source in ("/swapfile", "/plain", "/gone", "UUID=5a0", "/dev/vda4"))
    assert list(probe.swap_files_of(at_rest, fstab)) == [
        SwapFile("/swapfile", 64 * 2**20, "00000000-0000-0000-0000-000000000007", "swäp")]
    assert probe.parse_swap_header(swap_page(2, 0, b"")) == (8192, "", "")
    assert probe.parse_swap_header(b"SWAPSPACE2") is None


def test_what_its_boot_loader_calls_by_the_kernels_name_is_told(at_rest):
    put(at_rest, "boot/grub/grub.cfg", b"linux /vmlinuz root=/dev/vda3 ro\nlinux /vmlinuz root=/dev/vda3 single\n")
    put(at_rest, "proc/cmdline", b"root=/dev/vda9")
    assert probe.kernel_names() == {"/boot/grub/grub.cfg": ("/dev/vda3",)}


def test_nothing_holds_it_still_since_nothing_moves_and_no_hook_runs(at_rest):
    put(at_rest, "etc/asr/hooks.d/10-stop")
    (at_rest / "etc/asr/hooks.d/10-stop").chmod(0o755)
    told = []
    with snapshot.held_still([Source("/run/asr/sources/0")], told) as found:
        assert [source.directory for source in found] == ["/run/asr/sources/0"]
    assert told == []


def test_notices_wait_for_its_next_start(at_rest):
    drift.notice("drift", "A set is due.")
    assert (at_rest / "var/lib/asr/notices/drift.txt").exists()
    assert not (at_rest / "run").exists()


ESP = Layout((Disk("d", "/dev/vda", 2**30, label="gpt"),),
             (Partition("d/1", "d", 1, 2**20, 2**28, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"),),
             (Filesystem("e", "d/1", "vfat"),), (Mount("e", "/boot/efi"),))


@pytest.mark.parametrize(("layout", "firmware", "loader", "said"), [
    (ESP, "uefi", "grub", []),
    (Layout(), "bios", "grub", []),
    (Layout(), "uefi", "other", "it starts by BIOS"),
    (ESP, "bios", "other", "starts by UEFI: it has its boot loader on /boot/efi"),
    (ESP, "bios", "grub", ["firmware"]),
])
def test_a_medium_that_the_other_firmware_started_says_so(layout, firmware, loader, said):
    if isinstance(said, str):
        with pytest.raises(FirmwareDiffers, match=said):
            list(prepare.other_firmware(layout, firmware, loader))
    else:
        assert [told.what for told in prepare.other_firmware(layout, firmware, loader)] == said


# On real disks, in user-mode Linux

ALWAYS = ("luks-guided", "lvm-on-luks-on-md", "btrfs-on-luks")
MORE = ("gpt-odd", "btrfs", "btrfs-raid", "luks1", "luks-on-lvm", "whole-disks", "md-mirror", "lvm-thin", "xfs")


@pytest.mark.disks
@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [*ALWAYS, *(pytest.param(name, marks=pytest.mark.long) for name in MORE)])
def test_what_is_known_of_a_machine_at_rest_is_what_is_known_of_it_when_it_runs(name, tmp_path):
    images = [tmp_path / f"{number}.img" for number in range(SCENARIOS[name].disks)]
    for image in images:
        with image.open("wb") as file:
            file.truncate(SCENARIOS[name].size * 2**20)
    outcome = run_in_uml("tests.on_offline", name, images, memory=2**30, seconds=280)
    assert outcome["at rest"] == outcome["running"]
    assert (outcome["host"], outcome["left out"]) == ("uml", [])
    assert (outcome["closed"], outcome["after"]) == (0, outcome["before"])
    assert outcome["after a kill"] == outcome["before"]
