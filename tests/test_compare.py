"""The comparison that end-to-end tests trust sees every kind of change, on trees and disks small enough to be fast."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from bootenv.rehearsal import MiB, make_disk
from tests.on_changes import CHANGES, DAMAGE
from tests.uml import run_in_uml
from tests.vm.compare import Allowed, differences, digest, mtree, walk
from tests.vm.inside import fstab, settings, xfs_info
from tests.vm.machines import MEMORY, make_difficult, run

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, as the machines it looks at do")


@pytest.fixture(autouse=True)
def no_real_commands():
    """The comparison is no part of the product: it runs the tools it needs."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    top = tmp_path / "tree"
    for name in ("a", "b", "d/e"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text("content of a file")
    (top / "again").hardlink_to(top / "a")
    (top / "d/link").symlink_to("e")
    (top / "d").chmod(0o750)
    with (top / "sparse").open("wb") as file:
        file.write(b"start")
        file.truncate(MiB)
    os.setxattr(top / "a", "user.note", b"1")
    os.mknod(top / "device", 0o600 | stat.S_IFCHR, os.makedev(1, 3))
    for path in top.rglob("*"):
        os.utime(path, ns=(1, 1_500_000_000_123_456_789), follow_symlinks=False)
    os.utime(top, (1, 1))
    return top


def make_immutable(path: Path) -> None:
    subprocess.run(("chattr", "+i", path), check=True)


def fill_hole(path: Path) -> None:
    path.write_bytes(path.read_bytes())


def turn(path: Path, target: str) -> None:
    path.unlink()
    path.symlink_to(target)


def make_device(path: Path, minor: int) -> None:
    path.unlink()
    os.mknod(path, 0o600 | stat.S_IFCHR, os.makedev(1, minor))


def same_bytes_new_inode(path: Path) -> None:
    content, note = path.read_bytes(), os.getxattr(path, "user.note")
    path.unlink()
    path.write_bytes(content)
    os.setxattr(path, "user.note", note)


EDITS = {
    "existence": ("new", lambda path: path.touch()),
    "type": ("b", lambda path: (path.unlink(), os.mkfifo(path))),
    "mode": ("b", lambda path: path.chmod(0o4755)),
    "owner": ("b", lambda path: os.chown(path, 0, 2**31)),
    "mtime": ("b", lambda path: os.utime(path, ns=(1, 1_500_000_000_123_456_788))),
    "links": ("b", lambda path: (path.parent / "twin").hardlink_to(path)),
    "same file as": ("again", same_bytes_new_inode),
    "size": ("b", lambda path: path.write_text("content of a file.")),
    "content": ("b", lambda path: path.write_text("content of a tile")),
    "allocated": ("sparse", fill_hole),
    "target": ("d/link", lambda path: turn(path, "E")),
    "device": ("device", lambda path: make_device(path, 5)),
    "attribute user.note": ("a", lambda path: os.setxattr(path, "user.note", b"2")),
    "attribute trusted.note": ("d", lambda path: os.setxattr(path, "trusted.note", b"")),
    "attribute security.capability": ("b", lambda path: run("setcap", "cap_net_raw=ep", str(path))),
    "attribute system.posix_acl_access": ("b", lambda path: run("setfacl", "-m", "u:12345:r", str(path))),
    "attribute system.posix_acl_default": ("d", lambda path: run("setfacl", "-d", "-m", "u:12345:r", str(path))),
    "flags": ("b", make_immutable),
}

# Where mtree and getfattr tell the same in other words.
OTHERS = {"owner": "gid", "mtime": "time", "links": "nlink", "content": "sha256digest", "target": "link",
          "same file as": "nlink"}


@pytest.mark.parametrize("property", EDITS)
def test_every_kind_of_change_is_seen(tree, property):
    path, change = EDITS[property]
    before = walk(tree)
    assert differences(before, walk(tree)) == []
    change(tree / path)
    try:
        found = differences(before, walk(tree))
    finally:
        subprocess.run(("chattr", "-i", tree / path), check=False, stderr=subprocess.DEVNULL)
    text = f"/{path} was not there before." if property == "existence" else f"/{path}: {property} was "
    assert any(line.startswith(text) for line in found), found


@pytest.mark.parametrize("property", [name for name in EDITS if name != "allocated"])     # holes are not its business
def test_other_tools_see_it_too(tree, property):
    path, change = EDITS[property]
    before = mtree(tree)
    assert differences(before, mtree(tree)) == []
    change(tree / path)
    try:
        found = differences(before, mtree(tree))
    finally:
        subprocess.run(("chattr", "-i", tree / path), check=False, stderr=subprocess.DEVNULL)
    word = "attributes" if property.startswith("attribute ") else OTHERS.get(property, property)
    text = f"/{path} was not there before." if property == "existence" else f"/{path}: {word} was "
    assert any(line.startswith(text) for line in found), found


def test_what_is_missing_is_said(tree):
    before = walk(tree)
    (tree / "b").unlink()
    assert "/b is missing." in differences(before, walk(tree))


def test_a_difference_is_allowed_by_path_and_property(tree):
    before = walk(tree)
    (tree / "b").write_text("other")
    (tree / "b").chmod(0o600)
    after = walk(tree)
    assert len(differences(before, after)) == 4                    # content, mode, mtime, size
    assert differences(before, after, [Allowed("/[bc]", "it is a log")]) == []
    left = differences(before, after, [Allowed("/b", "it is a log", ("content", "mtime", "size"))])
    assert left == ["/b: mode was 0644, is 0600."]


def test_names_that_do_not_print_are_quoted():
    assert differences({"/a\nb": {}, "/\udcff": {}}, {}) == ["'/a\\nb' is missing.", "'/\\udcff' is missing."]


def test_of_a_list_only_what_differs_is_shown():
    was = {"sda1": {"boot sector": ["a" * 300, "cluster 512"]}}
    now = {"sda1": {"boot sector": ["a" * 300, "cluster 4096"]}}
    assert differences(was, now) == ["sda1: boot sector was ['cluster 512'], is ['cluster 4096']."]


def test_a_hole_and_its_zeros_have_one_content(tmp_path):
    for name, fill in (("hole", lambda f: f.truncate(MiB)), ("zeros", lambda f: f.write(bytes(MiB)))):
        with (tmp_path / name).open("wb") as file:
            fill(file)
    digests = set()
    for name in ("hole", "zeros"):
        file = os.open(tmp_path / name, os.O_RDONLY)
        digests.add(digest(file))
        os.close(file)
    assert len(digests) == 1


def test_a_moved_island_changes_the_content(tmp_path):
    digests = set()
    for at in (0, 65536, 65537, 500_000):
        with (tmp_path / "file").open("wb") as writer:
            writer.seek(at)
            writer.write(b"island")
            writer.truncate(MiB)
        file = os.open(tmp_path / "file", os.O_RDONLY)
        digests.add(digest(file))
        os.close(file)
    assert len(digests) == 4


def test_every_difficult_file_has_its_name_in_both_looks(tmp_path):
    top = tmp_path / "difficult"
    make_difficult(top)
    try:
        ours, others = walk(top), mtree(top)
    finally:
        run("chattr", "-R", "-ia", str(top / "flags"))
    assert set(ours) == set(others)
    assert len(ours) > 500
    assert {entry["type"] for entry in ours.values()} == {
        "file", "directory", "symlink", "fifo", "block device", "character device"}


# Disks

@pytest.fixture(scope="module")
def changed(tmp_path_factory: pytest.TempPathFactory):
    folder = tmp_path_factory.mktemp("changed")
    images = [make_disk(folder / f"{number}.img", size * MiB) for number, size in enumerate((300, 160, 400, 400))]
    return run_in_uml("tests.on_changes", "all", images, memory=MEMORY, seconds=900)


@pytest.mark.disks
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("change", CHANGES)
def test_changes_of_tables_and_file_systems_are_seen(changed, change):
    assert any(line.startswith(CHANGES[change]) for line in changed["seen"][change]), changed["seen"][change]


@pytest.mark.disks
@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_seen(changed, damage):
    assert any(line.startswith(DAMAGE[damage]) for line in changed["seen"][damage]), changed["seen"][damage]


@pytest.mark.disks
@pytest.mark.timeout(900)
def test_two_looks_are_alike_and_nothing_is_wrong_with_what_is_well(changed):
    assert (changed["same"], changed["well"]) == ([], [])


@pytest.mark.disks
@pytest.mark.timeout(900)
def test_files_are_found_under_their_mount_points(changed):
    assert set(changed["files"]) == {"/", "/home", "/boot/efi"}
    assert changed["files"]["/"]["/home"]["mode"] == "0710"              # the directory that the mount hides
    assert changed["files"]["/home"]["/."]["mode"] == "0755"
    assert changed["files"]["/home"]["/file"]["size"] == 6


def test_fstab_and_tools_are_read():
    assert fstab("# UUID=no /no\n\nUUID=ab-c / ext4\n/dev/mapper/a  /x y  z 0 0\n") == [
        ("UUID=ab-c", "/", "ext4"), ("/dev/mapper/a", "/x", "y", "z")]
    assert settings("Inode size:\t 256\nMount count:  3\nFilesystem features: b a\n") == {
        "Inode size": "256", "Filesystem features": "a b"}
    assert xfs_info("meta-data=/dev/a   isize=512    agcount=4, agsize=25600 blks\n"
                    "         =         sectsz=512   attr=2\nlog      =internal log   bsize=4096\n") == {
        "meta-data isize": "512", "meta-data agcount": "4", "meta-data agsize": "25600", "meta-data sectsz": "512",
        "meta-data attr": "2", "log bsize": "4096"}
