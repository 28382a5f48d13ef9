"""The backup engine: everything comes back, damage costs what is damaged, nothing leads out of the target."""

import errno
import hashlib
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import zstandard
from xxhash import xxh3_64_hexdigest

from bootenv import archive
from bootenv import backup as backup_room
from bootenv.archive import Frame, Index, Output, Place, Volumes, Writer, pack
from bootenv.backup import (
    Source,
    check_whole,
    list_backup,
    read_first,
    restore_backup,
    select,
    verify_backup,
    write_backup,
)
from bootenv.collect import (
    BATCH,
    HELD,
    MANY,
    PIECE,
    REPLACED,
    SWAP,
    VANISHED,
    Batch,
    Collector,
    Reading,
    Tree,
    identity,
    open_file,
)
from bootenv.directories import Directories
from bootenv.errors import (
    BackupNotFound,
    DamagedBackup,
    DestinationFull,
    DestinationRefused,
    TargetNotMounted,
)
from bootenv.events import Difference, Event, Progress
from bootenv.exclude import CACHE, LISTED, TAGGED, TEMPORARY
from bootenv.extract import NEEDS_ROOT, Extractor
from bootenv.member import Member, decode, encode
from tests import adversarial
from tests.harm import Here

FIRST = "var/lib/asr/repair/asr.sif"
FIRST_AND_ABOVE = (b"var", b"var/lib", b"var/lib/asr", b"var/lib/asr/repair", FIRST.encode())
SIF = b"the state file\n" * 100
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can make this tree")


@pytest.fixture(autouse=True)
def no_real_commands() -> None:
    """Other readers of the format are what the engine is compared with, so here commands may run."""


# What a tree holds, as a value to compare

def described(root: Path) -> dict[bytes, tuple]:
    """Every path below root and all that can be compared of it."""
    found: dict[bytes, tuple] = {}
    names: dict[tuple[int, int], bytes] = {}

    def look(directory: int, prefix: bytes) -> None:
        with os.scandir(directory) as listing:
            entries = sorted(os.fsencode(entry.name) for entry in listing)
        for name in entries:
            path = prefix + name
            status = os.lstat(name, dir_fd=directory)
            there = b"/proc/self/fd/%d/%b" % (directory, name)
            xattrs = {key: os.getxattr(there, key, follow_symlinks=False)
                      for key in os.listxattr(there, follow_symlinks=False)}
            first = names.setdefault((status.st_dev, status.st_ino), path)
            special: tuple = ()
            if stat.S_ISLNK(status.st_mode):
                special = (os.readlink(name, dir_fd=directory),)
            elif stat.S_ISREG(status.st_mode):
                special = content(directory, name, status)
            elif stat.S_ISDIR(status.st_mode):
                inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_NOATIME, dir_fd=directory)
                special = (adversarial.get_flags(inner),)
                look(inner, path + b"/")
            found[path] = (oct(status.st_mode), status.st_uid, status.st_gid, status.st_mtime_ns, status.st_rdev,
                           first, xattrs, special)
        os.close(directory)

    look(os.open(root, os.O_RDONLY | os.O_DIRECTORY), b"")
    return found


def content(directory: int, name: bytes, status: os.stat_result) -> tuple:
    """Size, hash of what isn't a hole, about how much that is, and flags."""
    fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME, dir_fd=directory)
    digest = hashlib.sha256()
    at = 0
    try:
        while at < status.st_size:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError:                    # nothing but a hole
                break
            end = os.lseek(fd, at, os.SEEK_HOLE)
            data = os.pread(fd, end - at, at)
            digest.update(b"%d %d" % (at, len(data)) + data)
            at = end
        return status.st_size, digest.hexdigest(), adversarial.get_flags(fd)
    finally:
        os.close(fd)


def without(tree: dict[bytes, tuple], *paths: bytes) -> dict[bytes, tuple]:
    return {path: what for path, what in tree.items() if path not in paths}


def differences(events: Iterator[Event]) -> list[Difference]:
    return [event for event in events if isinstance(event, Difference)]


def pack_tree(tree: Path, backup: Path, **options) -> list[Difference]:
    return differences(write_backup(backup, [Source(tree)], **options))


def extract(backup: Path, target: Path, **options) -> list[Difference]:
    return differences(restore_backup(backup, target, anywhere=True, **options))


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Iterator[Path]:
    """A directory whose trees can be removed although they forbid it."""
    path = tmp_path_factory.mktemp("backup")
    yield path
    adversarial.remove(path)


@pytest.fixture(scope="module")
def tree(place) -> Path:
    adversarial.make(place / "tree")
    return place / "tree"


@pytest.fixture(scope="module")
def backup(place, tree) -> Path:
    assert [d.what for d in pack_tree(tree, place / "tree.tar.zst", first=(FIRST, SIF))] == ["special/socket"]
    return place / "tree.tar.zst"


@pytest.fixture
def scratch(tmp_path) -> Iterator[Path]:
    yield tmp_path
    for path in tmp_path.iterdir():
        if path.is_dir():
            adversarial.remove(path)


@pytest.fixture
def small(scratch) -> Path:
    """A tree of 300 files in 20 directories, and one larger than a frame."""
    seeded = random.Random(2)
    for number in range(300):
        path = scratch / "small" / f"d{number % 20}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(seeded.randbytes(seeded.randrange(40_000)))
    (scratch / "small" / "large").write_bytes(seeded.randbytes(9 * 2**20))
    return scratch / "small"


# Everything comes back

@as_root
def test_the_adversarial_tree_comes_back(tree, backup, scratch):
    assert extract(backup, scratch / "out") == []
    expected = without(described(tree), b"special/socket")
    assert without(described(scratch / "out"), *FIRST_AND_ABOVE) == expected
    assert (scratch / "out").stat().st_mtime_ns == tree.stat().st_mtime_ns


@as_root
def test_holes_take_no_room(backup, scratch):
    extract(backup, scratch / "out", only=["holes"])
    assert (scratch / "out" / "holes" / "very large").stat().st_blocks * 512 < 10 * 2**20


@as_root
def test_each_large_file_has_its_own_content(scratch):
    # So many of one size, one after another, that descriptors' numbers come again while a worker still has older ones.
    (scratch / "tree").mkdir()
    for number in range(24):
        (scratch / "tree" / str(number)).write_bytes(bytes([number]) * (PIECE + 1))
    assert pack_tree(scratch / "tree", scratch / "b", workers=6) == []
    extract(scratch / "b", scratch / "out")
    assert described(scratch / "out") == described(scratch / "tree")


def test_frames_have_a_size_that_readers_rely_on(scratch):
    # Hard links and empty directories, and nothing else that would fill a frame.
    for number in range(60):
        (scratch / "tree" / f"{number}").mkdir(parents=True)
        (scratch / "tree" / f"{number}" / "file").write_bytes(os.urandom(100_000))
        os.link(scratch / "tree" / f"{number}" / "file", scratch / "tree" / f"{number}" / "link")
    for number in range(4000):
        (scratch / "tree" / "empty" / f"{number}").mkdir(parents=True)
    assert pack_tree(scratch / "tree", scratch / "b", workers=1) == []
    with Volumes(scratch / "b") as volumes:
        sizes = [frame.size for frame in Index(volumes).frames() if frame.kind == "m"]
    assert len(sizes) > 5
    assert max(sizes) <= BATCH + PIECE
    assert differences(verify_backup(scratch / "b")) == []


def test_a_directory_of_more_names_than_are_held_at_a_time(scratch):
    (scratch / "tree").mkdir()
    names = {b"%05d" % number for number in range(HELD + 3 * MANY)}
    for name in names:
        os.close(os.open(os.fsencode(scratch / "tree") + b"/" + name, os.O_CREAT | os.O_WRONLY))
    (scratch / "tree" / "directory").mkdir()
    assert pack_tree(scratch / "tree", scratch / "b") == []
    assert sorted(r.path for r in list_backup(scratch / "b")) == sorted(names | {b"", b"directory"})


def test_more_directories_than_are_held_at_a_time(small, scratch, monkeypatch):
    for number in range(50):
        (small / "d1" / f"{number}" / "below").mkdir(parents=True)
        (small / "d1" / f"{number}" / "below" / "file").write_text(f"{number}")
    monkeypatch.setattr(backup_room, "_MOST_DIRECTORIES", 8)
    assert pack_tree(small, scratch / "b") == []
    assert extract(scratch / "b", scratch / "out") == []
    assert described(scratch / "out") == described(small)


def test_a_directory_that_cannot_be_opened_leads_to_no_other(tmp_path):
    (tmp_path / "a/b").mkdir(parents=True)
    directories = Directories(tmp_path)
    with pytest.raises(FileNotFoundError):
        directories.open(b"a/b/gone")
    for path in (b"", b"a", b"a/b"):
        assert os.path.samestat(os.stat(directories.open(path)), os.stat(os.fsencode(tmp_path) + b"/" + path))
    directories.close()


def test_gnu_tar_restores_it(tree, backup, scratch):
    (scratch / "out").mkdir()
    done = subprocess.run(("tar", "--zstd", "--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner",
                           "--delay-directory-restore", "-xpf", backup, "-C", scratch / "out"),
                          capture_output=True, text=True, check=False)
    deep = [path for path in described(tree) if len(path) > 3800]      # tar has no way to make longer paths
    mine, theirs = described(tree), described(scratch / "out")
    assert [path for path in mine if path not in theirs and path not in deep] == [b"special/socket"], done.stderr
    for path, what in theirs.items():
        if path in mine and path not in deep and not path.startswith(b"deep"):
            # tar has no flags.
            assert plain(what) == plain(mine[path]), path


def plain(what: tuple) -> tuple:
    """Without chattr's flags, which are the last of a file's or directory's own part."""
    *rest, special = what
    return (*rest, special[:-1] if what[0].startswith(("0o10", "0o4")) else special)


@as_root
def test_bsdtar_restores_it(tree, backup, scratch):
    (scratch / "out").mkdir()
    done = subprocess.run(("bsdtar", "--acls", "--xattrs", "--numeric-owner", "-xpf", backup, "-C", scratch / "out",
                           "--exclude", "deep"), capture_output=True, text=True, check=False,
                          env=os.environ | {"LC_ALL": "C.UTF-8"})
    mine, theirs = described(tree), described(scratch / "out")
    assert {p for p in mine if p not in theirs and not p.startswith(b"deep")} == {b"special/socket"}, done.stderr
    for path, what in theirs.items():
        # bsdtar leaves an "=" in an attribute's name as GNU tar's %3D, and reads "-0.5" seconds as 0.5.
        if path in mine and path not in (b"attributes/user", b"times/1969", b"times/half before"):
            assert plain(what) == plain(mine[path]), path


def test_the_first_member_is_read_alone(backup):
    assert read_first(backup) == SIF


def test_a_damaged_first_member_is_said_to_be(scratch):
    (scratch / "x").write_bytes(b"not a backup at all")
    with pytest.raises(DamagedBackup):
        read_first(scratch / "x")


def test_the_selection_is_what_is_written(small, scratch):
    counting = select([Source(small)])
    while True:
        try:
            next(counting)
        except StopIteration as end:
            selection = end.value
            break
    *_, last = write_backup(scratch / "b", [Source(small)], selection=selection)
    assert last == Progress("Backing up files...", selection.bytes, selection.bytes, "", "", 301, 301)


def test_the_path_of_the_first_member_is_left_out(scratch):
    (scratch / "tree" / FIRST).parent.mkdir(parents=True)
    (scratch / "tree" / FIRST).write_text("an older set's")
    pack_tree(scratch / "tree", scratch / "b", first=(FIRST, SIF))
    assert extract(scratch / "b", scratch / "out") == []
    assert (scratch / "out" / FIRST).read_bytes() == SIF


def test_several_file_systems_are_one_tree(scratch):
    for name in ("root/home", "root/etc", "home/user"):
        (scratch / name).mkdir(parents=True)
    (scratch / "home").chmod(0o711)
    (scratch / "home" / "user" / "file").write_text("x")
    list(write_backup(scratch / "b", [Source(scratch / "root"), Source(scratch / "home", "home")]))
    assert extract(scratch / "b", scratch / "out") == []
    assert (scratch / "out" / "home" / "user" / "file").read_text() == "x"
    assert (scratch / "out" / "home").stat().st_mode == (scratch / "home").stat().st_mode


def test_the_backup_leaves_itself_out(small):
    found = pack_tree(small, small / "b.tar.zst")
    assert [d.what for d in found] == ["b.tar.zst.part"]
    assert verify(small / "b.tar.zst") == []


def test_patterns_leave_files_out(small, scratch):
    pack_tree(small, scratch / "b", exclude=["d1*", "large"])
    names = {record.path.split(b"/")[0] for record in list_backup(scratch / "b")}
    assert names == {b"", b"d0", *(b"d%d" % n for n in range(2, 10))}


def kept(backup: Path) -> set[str]:
    return {os.fsdecode(record.path) for record in list_backup(backup) if record.kind != "d"}


def test_what_is_left_out_by_a_pattern_is_named_once_and_include_overrides_it(scratch):
    for name in ("home/ann/.cache/a", "home/ann/.cache/b/c", "home/ann/work", "tmp/x", "tmp/keep/y", "tmp/keep/z/z"):
        (scratch / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / "t" / name).write_text(name)
    found = pack_tree(scratch / "t", scratch / "b", exclude=LISTED, include=["tmp/keep"])
    assert found == [Difference("home/*/.cache/*", CACHE + " (2 names)"), Difference("tmp/*", TEMPORARY + " (1 name)")]
    assert kept(scratch / "b") == {"home/ann/work", "tmp/keep/y", "tmp/keep/z/z"}
    pack_tree(scratch / "t", scratch / "c", exclude=["home"], include=["home/ann/.c*/b"])
    assert kept(scratch / "c") == {"home/ann/.cache/b/c", "tmp/x", "tmp/keep/y", "tmp/keep/z/z"}


def test_a_tagged_cache_keeps_its_tag_alone_where_that_is_wished(scratch):
    for name in ("cache/sub/x", "cache/y", "lies/z", "wanted/w"):
        (scratch / "t" / name).parent.mkdir(parents=True, exist_ok=True)
        (scratch / "t" / name).write_text(name)
    for name in ("cache", "wanted"):
        (scratch / "t" / name / "CACHEDIR.TAG").write_text("Signature: 8a477f597d28d172789f06886806bc55\n")
    (scratch / "t" / "lies" / "CACHEDIR.TAG").write_text("no signature")
    assert pack_tree(scratch / "t", scratch / "all") == []
    assert "cache/sub/x" in kept(scratch / "all")
    found = pack_tree(scratch / "t", scratch / "b", caches=False, include=["wanted"])
    assert found == [Difference("cache", TAGGED)]
    assert kept(scratch / "b") == {"cache/CACHEDIR.TAG", "lies/CACHEDIR.TAG", "lies/z", "wanted/CACHEDIR.TAG",
                                   "wanted/w"}


def test_a_swap_file_comes_back_empty_and_without_holes(scratch):
    (scratch / "t" / "etc").mkdir(parents=True)
    (scratch / "t" / "etc" / "fstab").write_text("# a comment\n/swap\\040file none swap sw 0 0\n")
    header = b"h" * 4086 + b"SWAPSPACE2"
    (scratch / "t" / "swap file").write_bytes(header + b"somebody's memory" * 300_000)
    (scratch / "t" / "swap file").chmod(0o600)
    size = (scratch / "t" / "swap file").stat().st_size
    assert pack_tree(scratch / "t", scratch / "b") == [Difference("swap file", SWAP)]
    assert (scratch / "b").stat().st_size < 10_000
    assert extract(scratch / "b", scratch / "out") == []
    status = (scratch / "out" / "swap file").stat()
    assert (status.st_size, stat.S_IMODE(status.st_mode)) == (size, 0o600)
    assert status.st_blocks * 512 >= size
    assert (scratch / "out" / "swap file").read_bytes() == header.ljust(size, b"\0")


def test_a_swap_file_on_a_file_system_of_its_own_is_known_by_the_systems_name(scratch):
    for name in ("root/etc", "swaps"):
        (scratch / name).mkdir(parents=True)
    (scratch / "root/etc/fstab").write_text("/swaps/file none swap sw 0 0\n/other/file none swap sw 0 0\n")
    (scratch / "swaps/file").write_bytes(b"h" * 4086 + b"SWAPSPACE2" + b"somebody's memory" * 300_000)
    assert differences(write_backup(scratch / "b", [Source(scratch / "root"), Source(scratch / "swaps", "swaps")])) == [
        Difference("swaps/file", SWAP)]
def test_a_swap_file_is_known_on_whatever_file_system_of_its_machine_it_lies(scratch):
    (scratch / "root/etc").mkdir(parents=True)
    (scratch / "root/etc/fstab").write_text("/swap/swap\\040file none swap sw 0 0\n/swapped none swap sw 0 0\n")
    (scratch / "volume").mkdir()
    here = [scratch / "root/swapped", scratch / "volume/swap file"]
    for path in here:
        path.touch()
    trees = [Tree(bytes(scratch / "root"), b""), Tree(bytes(scratch / "volume"), b"swap")]
    assert {*backup_room._swap_files(trees)} >= {(path.stat().st_dev, path.stat().st_ino) for path in here}


def verify(backup: Path) -> list[Difference]:
    return differences(verify_backup(backup))


# What changes while it is read

def test_files_that_change_are_named(small, scratch):
    """Vanished, shrunk, grown and replaced ones, while the others come back as they are."""
    before = described(small)
    writing = write_backup(scratch / "b", [Source(small)], workers=1)
    (small / "large").unlink()
    (small / "d3" / "f3").unlink()
    found = differences(writing)
    assert extract(scratch / "b", scratch / "out") == []
    after = described(scratch / "out")
    assert {d.what for d in found} <= {"large", "d3/f3"}
    assert after[b"d4/f4"] == before[b"d4/f4"]


def test_a_slow_destination_gets_a_higher_level(scratch, monkeypatch):
    (scratch / "tree").mkdir()
    for number in range(6):                # each has pieces, which are asked for one by one, at the level of the moment
        words = random.Random(number).choices([f"{word:x}" for word in range(4000)], k=900_000)
        (scratch / "tree" / f"{number}").write_text(" ".join(words))
    pack_tree(scratch / "tree", scratch / "fast", level=1)
    real = os.write

    def write(fd: int, data: memoryview) -> int:
        if len(data) > 1000 and os.readlink(f"/proc/self/fd/{fd}").endswith(".part"):
            time.sleep(0.3)            # far longer than a frame takes, whatever else the machine does
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(backup_room, "_SECONDS_OF_LEVEL", 0.001)
    pack_tree(scratch / "tree", scratch / "slow", workers=1)
    assert (scratch / "slow").stat().st_size < (scratch / "fast").stat().st_size
    assert extract(scratch / "slow", scratch / "out") == []


@pytest.mark.parametrize(("level", "waiting", "then"), [(1, 0.9, 3), (7, 0.9, 7), (5, 0.5, 5), (3, 0.1, 1), (1, 0, 1)])
def test_the_level_follows_what_all_wait_for(level, waiting, then):
    assert backup_room.next_level(level, waiting) == then


def test_a_file_that_shrinks_while_it_is_read(scratch, monkeypatch):
    from bootenv import collect

    (scratch / "tree").mkdir()
    (scratch / "tree" / "log").write_bytes(b"x" * 9000)
    status = os.stat(scratch / "tree" / "log")
    (scratch / "tree" / "log").write_bytes(b"x" * 100)
    fd = os.open(scratch / "tree" / "log", os.O_RDONLY)
    data = bytearray(b"?" * status.st_size)
    why = collect.read_into(memoryview(data), fd, 0)
    os.close(fd)
    assert (len(data), data.rstrip(b"\0"), why) == (9000, b"x" * 100, collect.CHANGED)


def test_a_bad_sector_costs_itself(scratch, monkeypatch):
    from bootenv import collect

    (scratch / "file").write_bytes(bytes(range(256)) * 64)
    real = os.preadv

    def preadv(fd: int, views: tuple[memoryview], offset: int) -> int:
        view, = views
        if offset <= 8192 < offset + len(view):
            if offset == 8192:
                raise OSError(errno.EIO, "bad")
            view = view[:8192 - offset]
        return real(fd, (view,), offset)

    monkeypatch.setattr(os, "preadv", preadv)
    fd = os.open(scratch / "file", os.O_RDONLY)
    data = bytearray(b"?" * 16384)
    why = collect.read_into(memoryview(data), fd, 0)
    os.close(fd)
    expected = bytearray(bytes(range(256)) * 64)
    expected[8192:12288] = bytes(4096)
    assert data == expected
    assert "Input/output error" in why


@as_root
def test_what_an_ordinary_user_cannot_do_is_named():
    place = Path(tempfile.mkdtemp(prefix="asr-"))          # pytest's own are closed to others
    for name in ("tree", "out"):
        (place / name).mkdir()
        (place / name).chmod(0o777)
    place.chmod(0o755)
    for name in ("open", "secret"):
        (place / "tree" / name).write_text("x")
        os.chown(place / "tree" / name, 65534 if name == "open" else 0, 0)
        (place / "tree" / name).chmod(0o600)
    os.seteuid(65534)
    try:
        collector = Collector(Reading((Tree(os.fsencode(place / "tree"), b""),), b"", frozenset(), frozenset()))
        *_, (found, _) = collector(("walk", 1, 0, [b""]))
        (_, *_, records), packed = next(collector(("flush", 1)))
        extractor = Extractor(None, os.fsencode(place / "out"), (), ())
        for member, content in extractor.members(zstandard.decompress(packed)):
            extractor.make(member, content)
        extractor.make(Member(b"null", "c", device=os.makedev(1, 3)), memoryview(b""))
    finally:
        os.seteuid(0)
    assert found[-2] == [(b"secret", "It cannot be read: Permission denied.")]
    assert records.count(b"\0") == 2
    assert [path.name for path in (place / "out").iterdir()] == ["open"]
    assert extractor.differences == [(b"null", NEEDS_ROOT)]
    shutil.rmtree(place)


@pytest.fixture
def open_place() -> Iterator[Path]:
    """A directory that every user reaches: pytest's own are closed to others."""
    path = Path(tempfile.mkdtemp(prefix="asr-"))
    path.chmod(0o755)
    yield path
    adversarial.remove(path)


def as_nobody(script: str, *arguments: object) -> str:
    """What a program of an ordinary user prints."""
    # The paths are its parent's: a user's own Python may be where nobody else can look.
    drop = "import os, sys; os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    return subprocess.run((sys.executable, "-c", PRELOADED + drop + script, *map(str, arguments)),
                          env=os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
                          capture_output=True, text=True, check=True).stdout


PRELOADED = """\
from pathlib import Path
from bootenv import backup, collect, extract
from tests.harm import Here
backup.Crew = Here
"""

EXTRACT = """\
print([e for e in backup.restore_backup(Path(sys.argv[1]), Path(sys.argv[2]), anywhere=True)
       if isinstance(e, backup.Difference)])
"""


@as_root
@pytest.mark.parametrize("others", [False, True])
def test_an_ordinary_user_is_told_of_owners_where_they_differ(open_place, others):
    (open_place / "tree").mkdir()
    (open_place / "out").mkdir()
    for name in ("mine", "other"):
        (open_place / "tree" / name).write_text(name)
    for path in (open_place / "tree", *(open_place / "tree").iterdir(), open_place / "out"):
        os.chown(path, 65534, 65534)
    if others:
        os.chown(open_place / "tree" / "other", 0, 65534)
    pack_tree(open_place / "tree", open_place / "b")
    (open_place / "b").chmod(0o644)
    said = as_nobody(EXTRACT, open_place / "b", open_place / "out")
    assert ("Only root can give files to others" in said) == others, said
    assert (open_place / "out" / "other").read_text() == "other"


# The destination

def test_a_full_destination_leaves_nothing(small, scratch, monkeypatch):
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if os.readlink(f"/proc/self/fd/{fd}").endswith(".part") and os.fstat(fd).st_size > 2**20:
            raise OSError(errno.ENOSPC, "full")
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(DestinationFull):
        pack_tree(small, scratch / "b")
    assert list(scratch.iterdir()) == [small]


def test_a_destination_that_takes_nothing_any_more_is_noticed(small, scratch, monkeypatch):
    hangs = threading.Event()
    real = os.write

    def write(fd: int, data: bytes) -> int:
        if threading.current_thread() is not threading.main_thread() and os.fstat(fd).st_size > 2**20:
            hangs.wait(20)
        return real(fd, data)

    monkeypatch.setattr(os, "write", write)
    monkeypatch.setattr(backup_room, "_SECONDS_OF_SILENCE", 0.05)
    monkeypatch.setattr(backup_room, "_SECONDS_OF_PATIENCE", 0.5)
    told: list[Progress] = []
    with pytest.raises(DestinationRefused, match="has taken no data for"):
        told.extend(write_backup(scratch / "b", [Source(small)]))
    assert "Waiting for the destination..." in {event.status for event in told}
    monkeypatch.undo()
    hangs.set()
    assert not (scratch / "b").exists()
    assert pack_tree(small, scratch / "b") == []
    assert verify(scratch / "b") == []


def test_a_destination_that_is_not_there(small, scratch):
    with pytest.raises(DestinationRefused):
        pack_tree(small, scratch / "no" / "b")


def test_giving_up_leaves_nothing(small, scratch):
    writing = write_backup(scratch / "b", [Source(small)])
    next(writing)
    assert (scratch / "b.part").exists()
    writing.close()
    assert list(scratch.iterdir()) == [small]


def test_volumes_joined_are_the_file(small, scratch):
    pack_tree(small, scratch / "b", volume_size=3_000_000)
    volumes = sorted(scratch.glob("b.*"))
    assert [v.name for v in volumes][:2] == ["b.001", "b.002"]
    assert {v.stat().st_size for v in volumes[:-1]} == {3_000_000}
    assert extract(scratch / "b", scratch / "out") == []
    assert described(scratch / "out") == described(small)
    (scratch / "joined").write_bytes(b"".join(v.read_bytes() for v in volumes))
    assert verify(scratch / "joined") == []


def test_a_missing_volume_costs_its_files(small, scratch):
    pack_tree(small, scratch / "b", volume_size=3_000_000)
    (scratch / "b.002").unlink()
    found = extract(scratch / "b", scratch / "out")
    assert Difference("b.002", "This volume of the backup is missing.") in found
    everything_right_or_named(small, scratch / "out", found)


def test_a_copy_that_was_not_finished_is_known_at_once(small, scratch):
    pack_tree(small, scratch / "v", volume_size=3_000_000)
    pack_tree(small, scratch / "b")
    check_whole(scratch / "v")
    check_whole(scratch / "b")
    *_, last = sorted(scratch.glob("v.*"))
    last.unlink()
    with pytest.raises(DamagedBackup, match="The end of the backup v is missing, or its last volumes are"):
        check_whole(scratch / "v")
    (scratch / "v.002").unlink()
    with pytest.raises(DamagedBackup, match=r"v\.002 is missing"):
        check_whole(scratch / "v")
    os.truncate(scratch / "b", (scratch / "b").stat().st_size - 1)
    with pytest.raises(DamagedBackup, match="The end"):
        check_whole(scratch / "b")


@pytest.mark.parametrize("work", [
    lambda backup, out: restore_backup(backup, out, anywhere=True), lambda backup, out: verify_backup(backup)])
def test_a_backup_that_goes_away_is_not_a_damaged_one(work, small, scratch):
    pack_tree(small, scratch / "b")
    (scratch / "out").mkdir()
    events = work(scratch / "b", scratch / "out")
    next(events)
    (scratch / "b").write_bytes(b"")           # zeros are what is read where the medium gives an error
    with pytest.raises(BackupNotFound, match="cannot be read any more"):
        differences(events)


def test_volumes_begin_by_themselves_where_files_must_be_small(small, scratch, monkeypatch):
    real = os.write

    def write(fd: int, data: memoryview) -> int:
        if not os.readlink(f"/proc/self/fd/{fd}").endswith(".part"):
            return real(fd, data)
        room = 2_500_000 - os.fstat(fd).st_size
        if not room:
            raise OSError(errno.EFBIG, "as vfat does at 4 GiB")
        return real(fd, data[:room])

    monkeypatch.setattr(os, "write", write)
    pack_tree(small, scratch / "b")
    assert not (scratch / "b").exists()
    assert (scratch / "b.001").stat().st_size == 2_500_000
    assert verify(scratch / "b") == []
    assert extract(scratch / "b", scratch / "out") == []
    assert described(scratch / "out") == described(small)


def test_a_backup_into_a_pipe(small, scratch):
    os.mkfifo(scratch / "pipe")
    with open(scratch / "b", "wb") as file:
        reader = subprocess.Popen(("cat", scratch / "pipe"), stdout=file)
        pack_tree(small, scratch / "pipe")
        reader.wait()
    assert verify(scratch / "b") == []


def test_two_backups_to_one_name_do_not_spoil_each_other(small, scratch):
    for mine, theirs in ((0, 0), (3_000_000, 0), (0, 3_000_000), (3_000_000, 3_000_000)):
        writing = write_backup(scratch / "b", [Source(small)], volume_size=mine)
        next(writing)
        with pytest.raises(DestinationRefused, match="is being written by another backup"):
            pack_tree(small, scratch / "b", volume_size=theirs)
        differences(writing)
        assert verify(scratch / "b") == []
        assert not list(scratch.glob("*.part"))
        for path in scratch.glob("b*"):
            path.unlink()


def test_volumes_that_began_by_themselves_are_locked_too(small, scratch):
    output = Output(scratch / "b")
    output.write(b"first")
    output.volume_size = 5
    output.write(b"more")
    for size in (0, 5):
        with pytest.raises(DestinationRefused, match="is being written by another backup"):
            Output(scratch / "b", size)
    output.commit()
    assert {path.name: path.read_bytes() for path in scratch.glob("b*")} == {"b.001": b"first", "b.002": b"more"}


def test_the_file_that_was_waited_for_is_not_taken_when_it_has_its_name(small, scratch, monkeypatch):
    """The other backup ends after its temporary file was opened and before that is locked."""
    other = Output(scratch / "b")
    other.write(b"whole")
    real = archive.fcntl.flock

    def flock(fd: int, how: int) -> None:
        monkeypatch.setattr(archive.fcntl, "flock", real)
        other.commit()
        real(fd, how)

    monkeypatch.setattr(archive.fcntl, "flock", flock)
    with pytest.raises(DestinationRefused, match="b is there already"):
        Output(scratch / "b")
    assert {path.name: path.read_bytes() for path in scratch.glob("b*")} == {"b": b"whole"}


def test_what_a_killed_backup_has_left_is_written_over(small, scratch):
    (scratch / "b.part").write_bytes(b"x" * 20_000_000)
    pack_tree(small, scratch / "b")
    assert verify(scratch / "b") == []
    assert not (scratch / "b.part").exists()


@pytest.mark.parametrize("there", ["b", "b.001", "b.002"])
@pytest.mark.parametrize("size", [0, 3_000_000])
def test_no_backup_is_overwritten_nor_mixed_with_another(there, size, small, scratch):
    (scratch / there).write_text("an older one")
    with pytest.raises(DestinationRefused, match=f"{there} is there already"):
        pack_tree(small, scratch / "b", volume_size=size)
    assert [(path.name, path.read_text()) for path in scratch.glob("b*")] == [(there, "an older one")]


@pytest.mark.parametrize("name", ["etc.2024", "etc.20261126", "etc.007"])
def test_one_file_with_a_number_at_its_end_is_one_file(name, small, scratch):
    """And one that was cut off is no volume of what has thousands."""
    for other in ("etc.2023", "etc.001", "etc.002"):
        (scratch / other).write_bytes(b"something else")
    pack_tree(small, scratch / "b")
    (scratch / "b").rename(scratch / name)
    assert verify(scratch / name) == []
    for other in ("etc.001", "etc.002"):
        (scratch / other).unlink()
    os.truncate(scratch / name, 5_000_000)
    extract(scratch / name, scratch / "out")
    mine, theirs = described(small), described(scratch / "out")
    assert len(theirs) > 20
    assert all(alone(what) == alone(mine[path]) for path, what in theirs.items())


def test_volumes_are_read_by_the_name_of_any_and_without_what_has_a_far_number(small, scratch):
    (scratch / "b.20261126").write_bytes(b"x")
    pack_tree(small, scratch / "b", volume_size=3_000_000)
    for name in ("b", "b.001", "b.002", max(path.name for path in scratch.glob("b.0*"))):
        assert verify(scratch / name) == []
    for path in scratch.glob("b.0*"):
        path.unlink()
    with pytest.raises(BackupNotFound):
        verify(scratch / "b")


def test_all_volumes_are_a_backups_files_and_a_date_is_none(scratch):
    numbers = [*range(2, 1003), 1005, 20261126]
    for number in numbers:
        (scratch / f"b.{number:03d}").touch()
    assert archive.files_of(scratch / "b") == [scratch / f"b.{number:03d}" for number in numbers[:-2]]
    (scratch / "b").touch()
    assert archive.files_of(scratch / "b")[0] == scratch / "b"


def test_no_backup_there(scratch):
    with pytest.raises(BackupNotFound):
        differences(restore_backup(scratch / "no", scratch, anywhere=True))


# Damage

def everything_right_or_named(tree: Path, restored: Path, found: list[Difference]) -> int:
    """Nothing is restored wrongly, and what isn't restored is named; returns how many are missing."""
    mine, theirs = described(tree), described(restored)
    named = {os.fsencode(d.what) for d in found}
    for path, what in theirs.items():
        assert alone(what) == alone(mine[path]), path
    missing = {path for path in mine if path not in theirs}
    assert missing == named & mine.keys()
    return len(missing)


def alone(what: tuple) -> tuple:
    """Without the first of a file's names, which may be the one that is lost."""
    return what[:5] + what[6:]


@pytest.mark.parametrize("seed", range(4))
def test_damage_costs_what_is_damaged(small_backup, scratch, seed):
    tree, whole = small_backup
    damaged = bytearray(whole)
    seeded = random.Random(seed)
    at = seeded.randrange(len(damaged) - 4096)
    kind = ("flip", "zero", "swap", "noise")[seed % 4]
    other = seeded.randrange(len(damaged) - 4096)
    if kind == "flip":
        damaged[at] ^= 1 << seeded.randrange(8)
    elif kind == "zero":
        damaged[at:at + 4096] = bytes(4096)
    elif kind == "noise":
        damaged[at:at + 4096] = seeded.randbytes(4096)
    else:
        damaged[at:at + 4096], damaged[other:other + 4096] = damaged[other:other + 4096], damaged[at:at + 4096]
    (scratch / "b").write_bytes(damaged)
    found = extract(scratch / "b", scratch / "out")
    lost = everything_right_or_named(tree, scratch / "out", found)
    assert lost <= {"flip": 2, "swap": 2 * 80}.get(kind, 80)       # a swap damages two places


@pytest.mark.parametrize("seed", range(2))
def test_a_cut_off_backup_is_read_up_to_its_last_frame(small_backup, scratch, seed):
    tree, whole = small_backup
    length = random.Random(seed).randrange(300_000, len(whole))
    (scratch / "b").write_bytes(whole[:length])
    found = extract(scratch / "b", scratch / "out")
    mine, theirs = described(tree), described(scratch / "out")
    for path, what in theirs.items():
        assert alone(what) == alone(mine[path]), path
    with Volumes(scratch / "b") as volumes:
        index = Index(volumes)
        if not index.whole:
            assert found[0].what == "the backup's index"
        frames = [place for place in index.frames() if place.kind == "m"]
    assert len(theirs) > 5 * len(frames)


@pytest.fixture(scope="module")
def small_backup(tmp_path_factory) -> tuple[Path, bytes]:
    """A tree and its backup's bytes, in many frames."""
    place = tmp_path_factory.mktemp("small")
    seeded = random.Random(3)
    for number in range(400):
        path = place / "tree" / f"d{number % 10}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((seeded.randbytes(200) * 100)[:seeded.randrange(20_000)] + seeded.randbytes(4000))
    (place / "tree" / "large").write_bytes(seeded.randbytes(6 * 2**20))
    os.link(place / "tree" / "d0" / "f0", place / "tree" / "d1" / "linked")
    pack_tree(place / "tree", place / "b")
    return place / "tree", (place / "b").read_bytes()


def test_verify_names_what_is_damaged(small_backup, scratch):
    _, whole = small_backup
    (scratch / "b").write_bytes(whole)
    assert verify(scratch / "b") == []
    with Volumes(scratch / "b") as volumes:
        place = next(p for p in Index(volumes).frames() if p.kind == "+")
    damaged = bytearray(whole)
    damaged[place.place + 1000] ^= 1
    (scratch / "b").write_bytes(damaged)
    assert verify(scratch / "b") == [Difference("large", "It is damaged in the backup.")]


def test_verify_compares_each_file_though_its_frame_is_what_was_compressed(scratch):
    """As memory does it that gives back another bit than it was given, before the frame is compressed."""
    output = Output(scratch / "b")
    writer = Writer(output)
    batch = Batch()
    for name in (b"one", b"two"):
        batch.add(Member(name, "f", 0o644, size=4), b"1234")
    frame = batch.frame(1)
    data = zstandard.decompress(frame.packed)
    at = data.rindex(b"1234")
    writer.add(frame._replace(packed=pack(data[:at] + b"1235" + data[at + 4:], 1)))
    writer.finish()
    output.commit()
    assert verify(scratch / "b") == [Difference("two", "It is damaged in the backup.")]


def test_verify_names_a_large_file_once_however_much_of_it_is_damaged(small_backup, scratch):
    _, whole = small_backup
    (scratch / "b").write_bytes(whole)
    damaged = bytearray(whole)
    with Volumes(scratch / "b") as volumes:
        for place in Index(volumes).frames():
            if place.kind == "+":
                damaged[place.place + 1000] ^= 1
    (scratch / "b").write_bytes(damaged)
    assert verify(scratch / "b") == [Difference("large", "It is damaged in the backup.")]


def test_frames_change_places(small_backup, scratch):
    """Two whole frames that are right in themselves, but not where they belong."""
    tree, whole = small_backup
    (scratch / "b").write_bytes(whole)
    with Volumes(scratch / "b") as volumes:
        first, second = [p for p in Index(volumes).frames() if p.kind == "m"][:2]
    damaged = bytearray(whole)
    size = min(first.packed, second.packed)
    damaged[first.place:first.place + size] = whole[second.place:second.place + size]
    (scratch / "b").write_bytes(damaged)
    found = extract(scratch / "b", scratch / "out")
    everything_right_or_named(tree, scratch / "out", found)


def test_both_indexes_lost_costs_no_file(small_backup, scratch):
    tree, whole = small_backup
    damaged = bytearray(whole)
    at = whole.index(b"ASRINDEX")
    damaged[at + 30] ^= 1
    damaged[whole.index(b"ASRINDEX", at + 1) + 30] ^= 1
    (scratch / "b").write_bytes(damaged)
    found = extract(scratch / "b", scratch / "out")
    assert [d.what for d in found] == ["the backup's index"]
    assert described(scratch / "out") == described(tree)


@pytest.mark.parametrize("indexes", [0, 1])
def test_a_backup_in_the_backup_is_a_file(small, scratch, indexes):
    """Also where no end says which frames, and which index, are its own."""
    pack_tree(small, scratch / "old")
    (scratch / "old").rename(small / "old")
    for number in range(0, 300, 3):
        (small / f"d{number % 20}" / f"f{number}").write_text("newer")
    for number in range(20):
        (small / f"d{number}").chmod(0o711)
    pack_tree(small, scratch / "b")
    with Volumes(scratch / "b") as volumes:
        places = archive.at_end(volumes)
    assert places
    os.truncate(scratch / "b", places[indexes])
    found = extract(scratch / "b", scratch / "out")
    assert [d.what for d in found] == (["the backup's index"] if not indexes else [])
    assert described(scratch / "out") == described(small)


def test_nothing_but_noise(scratch):
    (scratch / "b").write_bytes(random.Random(4).randbytes(100_000))
    with pytest.raises(DamagedBackup):
        extract(scratch / "b", scratch / "out")


# Out of the target

def hostile(backup: Path, *members: tuple[Member, bytes]) -> None:
    """A backup that our writer wouldn't make."""
    output = Output(backup)
    writer = Writer(output)
    for member, content in members:
        batch = Batch("h" if member.kind == "h" else "m")
        batch.add(member, content)
        writer.add(batch.frame(1))
    writer.finish()
    output.commit()


@pytest.mark.parametrize("path", [b"/tmp/asr-escaped", b"../asr-escaped", b"a/../../asr-escaped", b"a//b", b"./a",
                                  b"..", b"a/.."])
def test_a_path_that_leads_out_is_refused(scratch, path):
    hostile(scratch / "b", (Member(path, "f", 0o644, size=1), b"x"), (Member(path, "d", 0o777), b""),
            (Member(b"right", "f", 0o644, size=1), b"x"))
    found = extract(scratch / "b", scratch / "out")
    assert {os.fsencode(d.what) for d in found} == {path}
    assert [p.name for p in (scratch / "out").iterdir()] == ["right"]
    assert not (scratch / "asr-escaped").exists()
    assert not Path("/tmp/asr-escaped").exists()


@pytest.mark.parametrize("link", [b"..", b"../outside", b"/"])
def test_a_symlinked_parent_is_refused(scratch, link):
    (scratch / "outside").mkdir()
    hostile(scratch / "b", (Member(b"a", "l", link=link), b""), (Member(b"a/escaped", "f", 0o644, size=1), b"x"),
            (Member(b"a/outside/deeper", "p", 0o644), b""), (Member(b"a", "d", 0o777), b""))
    found = extract(scratch / "b", scratch / "out", workers=1)
    assert {"a/escaped", "a/outside/deeper"} <= {d.what for d in found}
    assert not list((scratch / "outside").iterdir())
    assert not (scratch / "escaped").exists()


def test_hard_links_to_the_outside_are_refused(scratch):
    (scratch / "secret").write_text("x")
    hostile(scratch / "b", (Member(b"a", "h", link=b"../secret"), b""), (Member(b"b", "h", link=b"/etc/passwd"), b""),
            (Member(b"c", "l", link=b"../secret"), b""), (Member(b"d", "h", link=b"c"), b""))
    found = extract(scratch / "b", scratch / "out")
    assert sorted(d.what for d in found) == ["a", "b"]
    assert (scratch / "secret").stat().st_nlink == 1


def test_the_target_has_to_be_mounted(small, scratch):
    pack_tree(small, scratch / "b")
    with pytest.raises(TargetNotMounted):
        differences(restore_backup(scratch / "b", scratch))


# Again, after an interruption

@as_root
def test_an_interrupted_restore_is_made_good_by_another(tree, backup, scratch):
    (scratch / "out").mkdir()
    half = restore_backup(backup, scratch / "out", anywhere=True, workers=1)
    for _ in range(3):
        next(half)
    half.close()
    expected = without(described(tree), b"special/socket")
    for _ in range(2):                         # the second time over a finished one, with all that forbids changes
        assert extract(backup, scratch / "out") == []
        assert without(described(scratch / "out"), *FIRST_AND_ABOVE) == expected


def test_with_a_journal_it_goes_on_where_it_was(small, scratch, monkeypatch):
    pack_tree(small, scratch / "b")
    monkeypatch.setattr(backup_room, "_SECONDS_OF_JOURNAL", 0)
    assert extract(scratch / "b", scratch / "out", journal=scratch / "journal") == []
    head, *lines = (scratch / "journal").read_text().splitlines()
    (scratch / "journal").write_text("\n".join((head, *lines[:3])) + "\n9 9")      # cut off while it was written
    (scratch / "again").mkdir()
    assert extract(scratch / "b", scratch / "again", journal=scratch / "journal") == []
    with Volumes(scratch / "b") as volumes:
        seqs = {int(line.split()[0]) for line in lines[:3]}
        done = {record.path for _, records in Index(volumes).members(seqs) for record in records}
    for path, what in described(scratch / "out").items():
        if path in done and what[0].startswith("0o10"):
            assert not os.path.lexists(scratch / "again" / os.fsdecode(path))
        else:
            assert described_again(scratch / "again", path) == what
    pack_tree(small / "d1", scratch / "c")
    assert extract(scratch / "c", scratch / "third", journal=scratch / "journal") == []
    assert described(scratch / "third") == described(small / "d1")                   # another backup's journal


def test_a_journal_that_ends_within_a_large_file(scratch, monkeypatch):
    # What it has of the second file's frames is but the first; the others are on the disk all the same, and are not
    # pieces of the file before it.
    (scratch / "tree").mkdir()
    for name in ("one", "two"):
        (scratch / "tree" / name).write_bytes(name.encode() * PIECE)
    pack_tree(scratch / "tree", scratch / "b", workers=1)
    monkeypatch.setattr(backup_room, "_SECONDS_OF_JOURNAL", 0)
    assert extract(scratch / "b", scratch / "out", journal=scratch / "journal") == []
    with Volumes(scratch / "b") as volumes:
        second = [frame.seq for frame in Index(volumes).frames() if frame.kind == "m"][-1]
    (scratch / "journal").write_text(f"{(scratch / 'journal').read_text().split()[0]}\n{second} {second}\n")
    assert extract(scratch / "b", scratch / "out", journal=scratch / "journal", workers=1) == []
    assert described(scratch / "out") == described(scratch / "tree")


def described_again(root: Path, path: bytes) -> tuple:
    return described(root)[path]


def test_what_differs_is_told_again_by_a_restore_that_goes_on(small, scratch, monkeypatch):
    os.setxattr(small / "large", "user.kept", b"value")
    pack_tree(small, scratch / "b")
    monkeypatch.setattr(backup_room, "_SECONDS_OF_JOURNAL", 0)

    def setxattr(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "bad")

    monkeypatch.setattr(os, "setxattr", setxattr)          # a large file is finished in this process
    for _ in range(2):
        found = extract(scratch / "b", scratch / "out", journal=scratch / "journal")
        assert [d.what for d in found] == ["large"]


def test_a_restore_can_do_without_its_journal(small, scratch, monkeypatch):
    pack_tree(small, scratch / "b")
    monkeypatch.setattr(backup_room, "_SECONDS_OF_JOURNAL", 0)
    assert extract(scratch / "b", scratch / "out", journal=scratch / "nowhere" / "journal") == []
    (scratch / "folder").mkdir()
    journal = scratch / "folder" / "journal"
    events = restore_backup(scratch / "b", scratch / "again", anywhere=True, journal=journal)
    next(events)                               # it has begun
    shutil.rmtree(scratch / "folder")
    assert differences(events) == []
    assert described(scratch / "again") == described(small)


def test_other_things_in_the_way_are_replaced(small, scratch):
    pack_tree(small, scratch / "b")
    for name in ("d1", "out"):
        (scratch / "out" / name).mkdir(parents=True)
    (scratch / "out" / "large").mkdir()
    (scratch / "out" / "d1" / "f1").symlink_to("/etc/passwd")
    (scratch / "out" / "d1" / "f21").write_text("half")
    (scratch / "out" / "d1" / "f21").chmod(0o400)
    assert extract(scratch / "b", scratch / "out") == []
    assert without(described(scratch / "out"), b"out") == described(small)


# Where files are in use

def half_as_old(tree: Path, out: Path) -> None:
    """A directory with a file of its own, and an older one in the place of each of the tree's."""
    shutil.copytree(tree, out)
    for path in out.rglob("*"):
        if path.is_file():
            path.write_bytes(b"older")
    (out / "own").write_bytes(b"own")


def whole_or_older(tree: Path, out: Path) -> int:
    """Each file is what the backup has or what it was, and there is nothing else. How many are older ones."""
    found = {path.relative_to(out): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    assert found.pop(Path("own")) == b"own"
    mine = {path.relative_to(tree): path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert found.keys() == mine.keys()
    older = [path for path, data in found.items() if data != mine[path]]
    assert all(found[path] == b"older" for path in older)
    return len(older)


def damage(backup: Path, kind: str) -> None:
    """In the first frame of this kind."""
    with Volumes(backup) as volumes:
        place = next(place for place in Index(volumes).frames() if place.kind == kind)
    data = bytearray(backup.read_bytes())
    data[place.place + place.packed // 2] ^= 1
    backup.write_bytes(data)


@pytest.mark.parametrize("kind", ["m", "+"])
def test_what_is_damaged_in_the_backup_leaves_the_older_file(small, scratch, kind):
    pack_tree(small, scratch / "b")
    damage(scratch / "b", kind)
    half_as_old(small, scratch / "out")
    found = extract(scratch / "b", scratch / "out")
    assert whole_or_older(small, scratch / "out") == len(found) > 0


def test_a_hard_link_is_never_made_to_an_older_file(scratch):
    (scratch / "tree").mkdir()
    (scratch / "tree/a").write_bytes(random.Random(1).randbytes(PIECE + 1))
    os.link(scratch / "tree/a", scratch / "tree/b")
    pack_tree(scratch / "tree", scratch / "b")
    damage(scratch / "b", "+")
    (scratch / "out").mkdir()
    for name in ("a", "b"):
        (scratch / "out" / name).write_text(f"older {name}")
    found = extract(scratch / "b", scratch / "out")
    assert {d.what: d.why.split(".")[0] for d in found}.keys() == {"a", "b"}
    assert [(scratch / "out" / name).read_text() for name in ("a", "b")] == ["older a", "older b"]


@pytest.fixture
def in_this_process(monkeypatch) -> None:
    """No workers, so that what they call can be replaced."""
    monkeypatch.setattr(backup_room, "Crew", Here)


def full_at(path: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows so many bytes of the tree's file does not fit into the target."""
    wanted = path.read_bytes()[after:after + 4096]
    for call in ("write", "pwrite"):
        real = getattr(os, call)

        def write(fd: int, data: memoryview, *offset: int, real=real) -> int:
            at = bytes(data).find(wanted)
            if at == 0:
                raise OSError(errno.ENOSPC, "full")
            return real(fd, data if at < 0 else data[:at], *offset)

        monkeypatch.setattr(os, call, write)


@pytest.mark.parametrize("name", ["d5/f205", "large"])
@pytest.mark.parametrize("old", [False, True])
def test_a_full_target_names_the_file_and_has_no_half_one(small, scratch, monkeypatch, in_this_process, name, old):
    (small / "d5/f205").write_bytes(random.Random(5).randbytes(20_000))
    pack_tree(small, scratch / "b")
    if old:
        half_as_old(small, scratch / "out")
    full_at(small / name, 5000, monkeypatch)
    with pytest.raises(DestinationFull, match=f"{name} does not fit"):
        extract(scratch / "b", scratch / "out")
    monkeypatch.undo()
    if old:
        assert whole_or_older(small, scratch / "out") > 0
    else:
        there = [path for path in (scratch / "out").rglob("*") if path.is_file()]
        assert all(path.read_bytes() == (small / path.relative_to(scratch / "out")).read_bytes() for path in there)


def test_a_quota_that_is_told_of_at_the_end_of_a_file(small, scratch, monkeypatch, in_this_process):
    pack_tree(small, scratch / "b")
    real = os.close

    def close(fd: int) -> None:
        over = os.readlink(f"/proc/self/fd/{fd}").endswith("/out/d5/f205")
        real(fd)
        if over:
            raise OSError(errno.EDQUOT, "over")

    monkeypatch.setattr(os, "close", close)
    with pytest.raises(DestinationFull, match="d5/f205 does not fit"):
        extract(scratch / "b", scratch / "out")
    monkeypatch.undo()
    assert not (scratch / "out/d5/f205").exists()


def test_a_full_system_disk_has_no_half_file(small, scratch, monkeypatch, in_this_process):
    pack_tree(small, scratch / "b")
    (scratch / "out").mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: True)
    full_at(small / "large", 8 * 2**20, monkeypatch)
    with pytest.raises(DestinationFull, match="large does not fit"):
        differences(restore_backup(scratch / "b", scratch / "out"))
    assert not (scratch / "out/large").exists()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("seed", range(2))
def test_an_interruption_leaves_each_file_whole_or_as_it_was(small, scratch, monkeypatch, old, seed):
    pack_tree(small, scratch / "b")
    if old:
        half_as_old(small, scratch / "out")
    else:
        (scratch / "out").mkdir()
    monkeypatch.setattr(backup_room, "_SECONDS_BETWEEN", 0)
    events = restore_backup(scratch / "b", scratch / "out", anywhere=True, workers=2)
    for _ in range(2 + seed):
        next(events)
    with pytest.raises(KeyboardInterrupt):
        events.throw(KeyboardInterrupt())
    if old:
        assert whole_or_older(small, scratch / "out") > 0
    for path in (scratch / "out").rglob("*"):
        if path.is_file() and not old:
            assert path.read_bytes() == (small / path.relative_to(scratch / "out")).read_bytes()


@as_root
def test_what_forbids_changes_is_replaced_when_the_new_one_is_whole(scratch):
    (scratch / "tree").mkdir()
    (scratch / "tree/file").write_text("new")
    pack_tree(scratch / "tree", scratch / "b")
    (scratch / "out").mkdir()
    (scratch / "out/file").write_text("old")
    adversarial.set_flags(scratch / "out/file", 0x10)
    assert extract(scratch / "b", scratch / "out") == []
    assert (scratch / "out/file").read_text() == "new"


def test_a_large_file_comes_back_by_a_name_that_takes_more_headers(scratch):
    (scratch / "tree").mkdir()
    (scratch / "tree/a").write_bytes(os.urandom(2 * PIECE))
    long = scratch / "tree" / ("n" * 230) / ("m" * 230)
    long.parent.mkdir()
    os.link(scratch / "tree/a", long)
    pack_tree(scratch / "tree", scratch / "b", workers=1)
    assert extract(scratch / "b", scratch / "out", only=[str(long.relative_to(scratch / "tree"))]) == []
    assert (scratch / "out" / long.relative_to(scratch / "tree")).read_bytes() == (scratch / "tree/a").read_bytes()


@as_root
def test_a_directory_that_was_there_lets_in_nobody_who_is_not_in_the_backup(small, scratch):
    pack_tree(small, scratch / "b")
    (scratch / "out/d1").mkdir(parents=True)
    subprocess.run(("setfacl", "-m", "user:1234:rwx", scratch / "out/d1"), check=True)
    assert extract(scratch / "b", scratch / "out") == []
    assert described(scratch / "out") == described(small)


def test_a_name_as_long_as_may_be_is_replaced(scratch):
    (scratch / "tree").mkdir()
    (scratch / "tree" / ("n" * 255)).write_text("new")
    pack_tree(scratch / "tree", scratch / "b")
    for _ in range(2):
        assert extract(scratch / "b", scratch / "out") == []
    assert [path.name for path in (scratch / "out").iterdir()] == ["n" * 255]


@as_root
def test_an_ordinary_user_keeps_the_file_where_a_device_cannot_be_made(open_place):
    hostile(open_place / "b", (Member(b"null", "c", 0o666, device=os.makedev(1, 3)), b""))
    (open_place / "b").chmod(0o644)
    (open_place / "out").mkdir()
    (open_place / "out/null").write_text("a file")
    for path in (open_place / "out", open_place / "out/null"):
        os.chown(path, 65534, 65534)
    assert NEEDS_ROOT in as_nobody(EXTRACT, open_place / "b", open_place / "out")
    assert (open_place / "out/null").read_text() == "a file"


@as_root
def test_an_ordinary_user_gets_a_large_file_that_is_read_only(open_place):
    (open_place / "tree").mkdir()
    (open_place / "out").mkdir()
    (open_place / "tree/file").write_bytes(b"x" * 3 * PIECE)
    (open_place / "tree/file").chmod(0o444)
    for path in (open_place / "tree", open_place / "out", open_place / "tree/file"):
        os.chown(path, 65534, 65534)
    pack_tree(open_place / "tree", open_place / "b")
    (open_place / "b").chmod(0o644)
    assert as_nobody(EXTRACT, open_place / "b", open_place / "out") == "[]\n"
    assert described(open_place / "out") == described(open_place / "tree")


def test_a_large_file_is_whole_where_its_attributes_are_not_to_be_had(small, scratch, monkeypatch):
    monkeypatch.setattr(backup_room, "flags_of", lambda fd: "C")           # no copy-on-write: ext4 has no such thing
    pack_tree(small, scratch / "b")
    assert {d.what for d in extract(scratch / "b", scratch / "out")} <= {"large"}
    assert (scratch / "out/large").read_bytes() == (small / "large").read_bytes()


# Directories, there and missing

def of_directory(path: Path) -> tuple:
    """What is a directory's own, but its times."""
    status = path.stat()
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return (oct(status.st_mode), status.st_uid, status.st_gid, adversarial.get_flags(fd),
                {name: os.getxattr(fd, name) for name in os.listxattr(fd)})
    finally:
        os.close(fd)


@pytest.fixture
def special_directories(scratch) -> Path:
    """A tree whose directories have a group of their own, a default ACL, setgid and append-only; and its backup."""
    tree = scratch / "tree"
    (tree / "a/b/c").mkdir(parents=True)
    (tree / "a/b/c/file").write_text("x")
    (tree / "a/b/other").write_text("x")
    (tree / "a/more").mkdir()
    for name in ("a", "a/b", "a/b/c"):
        make_special(tree / name)
    pack_tree(tree, scratch / "b")
    return tree


def make_special(directory: Path, owner: int = 1234) -> None:
    os.chown(directory, owner, 5678)
    directory.chmod(0o2771)
    acl = adversarial._acl(((1, 7, -1), (2, 5, 12), (4, 5, -1), (16, 7, -1), (32, 0, -1)))
    adversarial._set(directory, "system.posix_acl_default", acl)
    os.utime(directory, ns=(5, 1_400_000_000_000_000_005))
    adversarial.set_flags(directory, 0x20)


@as_root
def test_directories_that_were_missing_are_as_they_were(special_directories, scratch):
    assert extract(scratch / "b", scratch / "out", only=["a/b/c/file"]) == []
    for name in (".", "a", "a/b", "a/b/c"):
        assert of_directory(scratch / "out" / name) == of_directory(special_directories / name), name
        assert (scratch / "out" / name).stat().st_mtime_ns == (special_directories / name).stat().st_mtime_ns
    assert {str(path.relative_to(scratch / "out")) for path in (scratch / "out").rglob("*")} == {
        "a", "a/b", "a/b/c", "a/b/c/file"}


@as_root
@pytest.mark.parametrize("all_of_it", [False, True])
def test_a_directory_in_use_keeps_what_is_its_own(special_directories, scratch, all_of_it):
    (scratch / "out/a").mkdir(parents=True)
    (scratch / "out/a/own").write_text("own")
    for name in ("out", "out/a"):
        make_special(scratch / name, 4321)
    before = [of_directory(scratch / name) for name in ("out", "out/a")]
    assert extract(scratch / "b", scratch / "out", only=[] if all_of_it else ["a/b/c/file"]) == []
    after = [of_directory(scratch / name) for name in ("out", "out/a")]
    # What is asked for by name is as it was in the backup; the place that all goes to never is.
    assert after == [before[0], of_directory(special_directories / "a") if all_of_it else before[1]]
    assert (scratch / "out").stat().st_mtime_ns == 1_400_000_000_000_000_005
    assert of_directory(scratch / "out/a/b") == of_directory(special_directories / "a/b")
    assert (scratch / "out/a/b/c/file").stat().st_gid == (special_directories / "a/b/c/file").stat().st_gid


@as_root
def test_directories_are_as_they_should_be_also_when_the_target_is_full(special_directories, scratch, monkeypatch,
                                                                        in_this_process):
    (special_directories / "a/b/other").write_bytes(random.Random(1).randbytes(20_000))
    pack_tree(special_directories, scratch / "c")
    (scratch / "out/a").mkdir(parents=True)
    make_special(scratch / "out/a")
    before = of_directory(scratch / "out/a")
    full_at(special_directories / "a/b/other", 100, monkeypatch)
    with pytest.raises(DestinationFull, match="a/b/other"):
        extract(scratch / "c", scratch / "out", only=["a/b/other"])
    assert of_directory(scratch / "out/a") == before
    assert of_directory(scratch / "out/a/b") == of_directory(special_directories / "a/b")


@as_root
def test_a_directory_in_use_keeps_what_is_its_own_also_at_an_interruption(small, scratch, monkeypatch):
    pack_tree(small, scratch / "b")
    for number in range(20):
        (scratch / f"out/d{number}").mkdir(parents=True)
        make_special(scratch / f"out/d{number}")
    before = of_directory(scratch / "out/d0")
    monkeypatch.setattr(backup_room, "_SECONDS_BETWEEN", 0)
    events = restore_backup(scratch / "b", scratch / "out", anywhere=True, workers=2)
    next(events)
    events.close()
    assert {str(of_directory(scratch / f"out/d{number}")) for number in range(20)} == {str(before)}


@as_root
def test_a_directory_that_was_missing_is_as_it_was_though_its_frame_at_the_end_is_damaged(special_directories, scratch):
    damage(scratch / "b", "d")
    assert extract(scratch / "b", scratch / "out", only=["a/b/c/file"]) == []
    for name in ("a", "a/b", "a/b/c"):
        assert of_directory(scratch / "out" / name) == of_directory(special_directories / name), name


@as_root
def test_an_ordinary_user_does_not_lose_what_they_cannot_put_back(open_place):
    (open_place / "tree").mkdir()
    (open_place / "tree/file").write_text("x")
    pack_tree(open_place / "tree", open_place / "b")
    (open_place / "b").chmod(0o644)
    (open_place / "out").mkdir()
    for owner, mode in ((65534, 0o2755), (0, 0o3777)):
        os.chown(open_place / "out", owner, 1234)
        (open_place / "out").chmod(mode)
        assert "could not" not in as_nobody(EXTRACT, open_place / "b", open_place / "out")
        assert (open_place / "out/file").read_text() == "x"
        assert stat.S_IMODE((open_place / "out").stat().st_mode) == mode


# Single files

def test_single_files_are_read_alone(small, scratch):
    pack_tree(small, scratch / "b")
    assert extract(scratch / "b", scratch / "out", only=["d7", "/large"]) == []
    mine = described(small)
    assert described(scratch / "out") == {p: w for p, w in mine.items() if p.split(b"/")[0] in (b"d7", b"large")}


@pytest.mark.parametrize("name", ["./d7/f7", "d7//f7", "/./d7/f7", "d7/./f7/"])
def test_a_path_may_be_written_as_a_shell_completes_it(small, scratch, name):
    pack_tree(small, scratch / "b")
    assert extract(scratch / "b", scratch / "out", only=[name]) == []
    assert (scratch / "out/d7/f7").read_bytes() == (small / "d7/f7").read_bytes()


@pytest.fixture
def linked(scratch) -> Path:
    """A tree with a small file, a large one and a symlink of three names each."""
    tree = scratch / "linked"
    for name in ("a", "b", "c"):
        (tree / name).mkdir(parents=True)
    (tree / "a/small").write_text("small")
    (tree / "a/large").write_bytes(random.Random(6).randbytes(2 * PIECE + 5))
    (tree / "a/symlink").symlink_to("small")
    for kind in ("small", "large", "symlink"):
        for name in ("b", "c"):
            os.link(tree / "a" / kind, tree / name / kind, follow_symlinks=False)
    return tree


@pytest.mark.parametrize(("kind", "index"), [("small", True), ("large", True), ("symlink", True), ("large", False)])
@pytest.mark.parametrize("names", ["a", "b", "c", "bc", "abc"])
def test_a_file_comes_back_by_whichever_of_its_names_are_asked_for(linked, scratch, names, kind, index):
    pack_tree(linked, scratch / "b", workers=1)
    if not index:
        data = (scratch / "b").read_bytes()
        (scratch / "b").write_bytes(data.replace(b"ASRINDEX", b"asrindex"))
    wanted = [f"{name}/{kind}" for name in names]
    found = extract(scratch / "b", scratch / "out", only=wanted, workers=1)
    assert [d.what for d in found] == ([] if index else ["the backup's index"])
    there = [path for path in (scratch / "out").rglob("*") if path.is_symlink() or path.is_file()]
    assert sorted(str(path.relative_to(scratch / "out")) for path in there) == wanted
    assert len({path.lstat().st_ino for path in there}) == 1
    assert there[0].lstat().st_nlink == len(names)
    if kind == "symlink":
        assert os.readlink(there[0]) == "small"
    else:
        assert there[0].read_bytes() == (linked / "a" / kind).read_bytes()


def becomes(path: Path, what: str) -> None:
    """A name goes, or is another thing's from now on."""
    path.unlink()
    if what == "a file":
        path.write_text("another")
    elif what == "a symlink":
        path.symlink_to("../b/" + path.name)
    elif what == "a directory":
        path.mkdir()
    elif what == "a fifo":
        os.mkfifo(path)


@pytest.mark.parametrize("names", [1, 2])
@pytest.mark.parametrize("what", ["nothing", "a file", "a symlink", "a directory", "a fifo"])
@pytest.mark.parametrize("kind", ["small", "large", "symlink"])
def test_a_file_whose_first_names_become_another_is_read_by_the_next(linked, scratch, monkeypatch, kind, what, names):
    real = backup_room._Writing._linked
    replaced: list[str] = []

    def replace(self, tree: int, path: bytes, *file: object) -> Iterator[Difference]:
        yield from real(self, tree, path, *file)
        if path.endswith(kind.encode()) and len(replaced) < names:
            replaced.append(os.fsdecode(path))
            becomes(linked / replaced[-1], what)

    monkeypatch.setattr(backup_room._Writing, "_linked", replace)
    assert {d.what for d in pack_tree(linked, scratch / "b", workers=1)} == set(replaced)
    assert len(replaced) == names
    assert verify(scratch / "b") == []
    assert extract(scratch / "b", scratch / "out") == []
    for name in replaced if what != "nothing" else ():     # what has the name now was named, and is not there
        (linked / name).rmdir() if what == "a directory" else (linked / name).unlink()
    directories = (b"a", b"b", b"c")           # these changed after they were read
    assert without(described(scratch / "out"), *directories) == without(described(linked), *directories)


@pytest.mark.parametrize("what", ["nothing", "a symlink", "a directory", "a fifo"])
def test_a_large_file_that_becomes_another_thing_is_named(small, scratch, monkeypatch, what):
    def opened(name: bytes, directory: int) -> int:
        becomes(small / "large", what)
        return open_file(name, directory)

    monkeypatch.setattr(backup_room, "open_file", opened)
    found = pack_tree(small, scratch / "b")
    assert [(d.what, d.why) for d in found] == [("large", VANISHED if what == "nothing" else REPLACED)]
    assert extract(scratch / "b", scratch / "out") == []
    assert without(described(scratch / "out"), b"large") == without(described(small), b"large")


def test_an_inode_that_is_used_again_is_another_file():
    with closing(backup_room._Names()) as names:
        assert names.first(b"1 2", b"a", 3, 10, 5) == (None, b"")
        assert names.first(b"1 2", b"b", 3, 10, 5) == (b"a", b"")
        assert names.first(b"1 2", b"new", 2, 10, 6) == (None, b"a")
        assert names.first(b"1 2", b"link", 2, 10, 6) == (b"new", b"")
        assert names.first(b"1 2", b"newest", 2, 10, 6) == (None, b"")     # all of the one before have come by


def test_a_file_that_changes_between_its_names_is_named_and_whole(linked, scratch, monkeypatch):
    real = backup_room._Writing._linked
    seen: list[bytes] = []

    def changing(self, tree: int, path: bytes, inode: bytes, names: int, size: int, mtime: int) -> Iterator[Difference]:
        seen.append(path)
        yield from real(self, tree, path, inode, names, size, mtime + (len(seen) > 6))     # the third directory's

    monkeypatch.setattr(backup_room._Writing, "_linked", changing)
    found = pack_tree(linked, scratch / "b", workers=1)
    assert sorted(d.what for d in found) == sorted(map(os.fsdecode, seen[6:]))
    assert all("a file of its own" in d.why for d in found)
    assert extract(scratch / "b", scratch / "out") == []
    for path in seen:
        there, here = scratch / "out" / os.fsdecode(path), linked / os.fsdecode(path)
        assert there.is_symlink() or there.read_bytes() == here.read_bytes()
        assert there.lstat().st_nlink == (1 if path in seen[6:] else 2)


def test_a_table_of_names_without_room_is_an_error_of_the_system():
    def fill(names: backup_room._Names) -> None:
        for number in range(1000):
            names.first(b"1 %d" % number, b"x" * 100, 2, 0, 0)

    with closing(backup_room._Names()) as names:
        names._do("COMMIT")
        names._do("PRAGMA max_page_count = 4")
        with pytest.raises(OSError, match="A temporary file could not be written"):
            fill(names)


@pytest.mark.parametrize("name", ["d4/f4", "large", "d4"])
def test_attributes_that_cannot_be_read_are_named(small, scratch, monkeypatch, in_this_process, name):
    inode = (small / name).stat().st_ino
    real = os.listxattr

    def listxattr(file: int | bytes, **options: bool) -> list[str]:
        if isinstance(file, int) and os.fstat(file).st_ino == inode:
            raise OSError(errno.EIO, "bad")
        return real(file, **options)

    monkeypatch.setattr(os, "listxattr", listxattr)
    found = pack_tree(small, scratch / "b")
    assert [(d.what, backup_room.is_lost(d)) for d in found] == [(name, True)]
    monkeypatch.undo()
    assert extract(scratch / "b", scratch / "out") == []
    assert described(scratch / "out") == described(small)


def test_more_volumes_of_the_backup_itself_are_left_out(small):
    for name in ("b.part", "b.002.part", "b.1002.part", "b.002", "c.002.part"):
        (small / name).touch()
    folder = identity(small.stat())
    reading = Reading((Tree(os.fsencode(small), b""),), b"", frozenset(), frozenset(), folder, b"b")
    with closing(Collector(reading)) as collector:
        told = [value for value, _ in collector(("walk", 1, 0, [b""])) if value[0] == "found"]
    assert {os.fsdecode(path) for value in told for path, _ in value[-2]} == {"b.part", "b.002.part", "b.1002.part"}


def test_a_file_by_another_name_is_lost_by_that_name_and_leaves_what_has_the_first(linked, scratch):
    pack_tree(linked, scratch / "b")
    damage(scratch / "b", "+")
    (scratch / "out/a").mkdir(parents=True)
    (scratch / "out/a/large").write_text("own")
    found = extract(scratch / "b", scratch / "out", only=["b/large", "c/large"])
    assert {d.what for d in found} == {"b/large", "c/large"}
    assert [path.name for path in (scratch / "out").rglob("*") if path.is_file()] == ["large"]
    assert (scratch / "out/a/large").read_text() == "own"


def test_the_list_has_every_path(tree, backup):
    listed = {record.path for record in list_backup(backup)}
    assert listed == {*described(tree), b"", FIRST.encode()} - {b"special/socket"}


# The formats' own corners

@pytest.mark.parametrize("member", [
    Member(b"a", "f", 0o4755, 1, 2, -1, -1_500_000_000, 9 * 2**33),
    Member(b"n" * 98 + b"/x", "d", 0o1777, 2**32 - 2, 2**21, 10**20, 0),
    Member(b"s", "f", mtime=1, size=2**40, extents=((0, 512), (2**39, 1), (2**40, 0))),
    Member(b"l" * 300, "l", 0o777, link=b"\xff" * 300),
    Member(b"x", "f", xattrs=(("user.a=%3D", b"\n\0="), ("system.posix_acl_access", struct.pack(
        "<IHHIHHIHHIHHIHHI", 2, 1, 7, 2**32 - 1, 2, 5, 12, 4, 5, 2**32 - 1, 16, 7, 2**32 - 1, 32, 0, 2**32 - 1))),
        flags="iC"),
    Member(b"c", "c", 0o600, device=os.makedev(4095, 1_048_575)),
    Member(b"", "d", 0o755),
    *(Member(b"p" * n, "f", link=b"") for n in (90, 99, 100, 101, 990, 1000)),
])
def test_a_member_is_read_as_it_was_written(member):
    blocks = encode(member)
    assert len(blocks) % 512 == 0
    assert decode(memoryview(blocks), 0) == (member, len(blocks))


def test_a_size_that_no_file_has_is_refused():
    blocks = encode(Member(b"x", "f", size=8**11)).replace(b"size=8589934592", b"size=-589934592")
    with pytest.raises(ValueError, match="size"):
        decode(blocks, 0)


def test_a_frame_that_claims_too_much_is_refused(scratch):
    hostile(scratch / "b", (Member(b"a", "f", 0o644, size=1), b"x"))
    output = Output(scratch / "c")
    writer = Writer(output)
    writer.add(Frame("m", pack(bytes(80 * 2**20), 1), 80 * 2**20, 0, b""))
    writer.finish()
    output.commit()
    assert [d.what for d in verify(scratch / "c")] == ["frame 0"]


def test_progress_comes_a_few_times_a_second(small, scratch):
    started = time.monotonic()
    events = list(write_backup(scratch / "b", [Source(small)]))
    assert len(events) <= 3 + 11 * (time.monotonic() - started)


def test_a_place_is_what_it_says(small_backup, scratch):
    """What another reader would do with the index alone."""
    tree, whole = small_backup
    (scratch / "b").write_bytes(whole)
    with Volumes(scratch / "b") as volumes:
        index = Index(volumes)
        places: dict[int, Place] = {place.seq: place for place in index.frames()}
        for seq, records in index.members():
            done = subprocess.run(("zstd", "-dcq"), input=volumes.read(places[seq].place, places[seq].packed),
                                  capture_output=True, check=True)
            for record in records:
                at = record.offset + record.head
                assert xxh3_64_hexdigest(done.stdout[record.offset:at + record.stored]) == record.checksum
                if record.kind == "f" and record.stored == record.size:
                    data = done.stdout[at:at + record.stored]
                    assert hashlib.sha256(data).hexdigest() == record.sha256 or not data
                    assert data == (tree / os.fsdecode(record.path)).read_bytes()


@pytest.mark.skipif(not shutil.which("zstd"), reason="zstd is not installed")
def test_the_frames_are_one_plain_tar(small_backup, scratch):
    tree, whole = small_backup
    done = subprocess.run(("zstd", "-dcq"), input=whole, capture_output=True, check=True)
    listed = subprocess.run(("tar", "-tf", "-"), input=done.stdout, capture_output=True, check=True).stdout
    assert {line.rstrip(b"/") for line in listed.split(b"\n")} >= described(tree).keys()


def test_old_files_hidden_below_a_mount_do_not_replace_the_current_ones(tmp_path):
    """/home moved to a file system of its own, the old one is still there below the mount point."""
    for folder, text in (("root/home", "old"), ("home", "current")):
        (tmp_path / folder).mkdir(parents=True)
        (tmp_path / folder / "file").write_text(text)
    (tmp_path / "root/home/only-old").touch()
    backup, target = tmp_path / "b.tar.zst", tmp_path / "target"
    target.mkdir()
    for _ in write_backup(backup, [Source(tmp_path / "root"), Source(tmp_path / "home", "home")]):
        pass
    for _ in restore_backup(backup, target, anywhere=True):
        pass
    assert (target / "home/file").read_text() == "current"
    assert not (target / "home/only-old").exists()
