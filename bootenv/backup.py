"""The backup: a system's files in one file, and back. What it looks like is in archive.py.

Worker processes read, compress, unpack and write (collect.py, extract.py); this is what they are told to do, in which
order, and what becomes of it. No layout, ASR disk or root is needed: any tree can be packed and extracted.
"""

import errno
import os
import re
import sqlite3
import stat
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Collection, Generator, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import astuple, dataclass
from functools import partial
from itertools import groupby, islice
from operator import itemgetter
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import NamedTuple

import zstandard

from bootenv.archive import (
    DamagedFrame,
    Frame,
    Index,
    Output,
    Place,
    Record,
    Spool,
    Volumes,
    Writer,
    at_end,
    pack,
    parse_records,
    unpack,
)
from bootenv.collect import (
    BATCH,
    CHANGED,
    LOST,
    PIECE,
    Batch,
    Collector,
    Reading,
    Tree,
    changed,
    extents_of,
    flags_of,
    identity,
    open_file,
    unread,
    xattrs_of,
)
from bootenv.crew import Block, Crew, Message, Task
from bootenv.directories import Directories, allow_depth
from bootenv.errors import AsrError, DamagedBackup, DestinationFull, DestinationRefused, TargetNotMounted
from bootenv.events import Difference, Event, Progress
from bootenv.exclude import ASKED, LISTED, TAG, is_tag
from bootenv.extract import MALFORMED, Extractor, News, Taken, TargetFull, is_wanted
from bootenv.member import Member, Placement, decode, encode, from_stat

LEVELS = (1, 3, 5, 7)          # of zstd; above, a worker's tables would take more memory than it may
_SECONDS_OF_LEVEL = 1.0        # until it is looked at again
_NEAR, _MOST_WAITING = 16 * 2**20, 64      # bytes of the backup, pieces: of one large file while another is begun
_MOST_DIRECTORIES = 2**16      # that are held in memory until they are read
_FILES = 64                    # of several names, that a worker is told of at a time
_AHEAD = 8 * PIECE             # bytes of a large file that are on their way into memory before they are asked for
_OPENED_AHEAD = 4              # large files of which that is so
_MOST_FRAMES = 2**27          # of a backup, that are remembered; of 1 MiB, 128 TiB
_FIRST_MOST = 4 * 2**20       # the first member is small; a reader that believed any size could be made to run out
_SECONDS_OF_SILENCE = 2.0      # until it is said that the destination is what all wait for
_SECONDS_OF_PATIENCE = 120.0   # for one frame; then the destination counts as gone
_SECONDS_BETWEEN = 0.1         # of Progress
_SECONDS_OF_JOURNAL = 20.0     # after which the target is synced; what is lost at a power cut takes as long again

# Kinds of file systems with nothing on them that is the machine's to keep, and those that keep no owners or modes.
PSEUDO = frozenset((
    "autofs", "binfmt_misc", "bpf", "cgroup", "cgroup2", "configfs", "debugfs", "devpts", "devtmpfs", "efivarfs",
    "fusectl", "hugetlbfs", "mqueue", "nsfs", "overlay", "proc", "pstore", "ramfs", "rpc_pipefs", "securityfs",
    "selinuxfs", "squashfs", "sysfs", "tmpfs", "tracefs"))
_FOREIGN = frozenset(("exfat", "msdos", "ntfs", "ntfs3", "vfat"))

INDEX = "the backup's index"           # named among what is damaged, and no file
_ALONE = "It was another name of {}, which changed meanwhile; it comes back as a file of its own."
_NAMELESS = "A part of the backup is damaged, and the index that names its files is lost, too."
_OTHER = "Another file system is mounted there; it is not in this backup."


@dataclass(frozen=True)
class Source:
    """One file system to back up, mounted at a directory, and its path in the backup ("" for /, "home")."""

    directory: str | bytes | Path
    prefix: str = ""


@dataclass(frozen=True)
class Selection:
    """What there is to back up."""

    files: int                 # all but directories, each name of a hard link
    bytes: int                 # of content that is to be stored


class _Names:
    """Of files that have several names, the first that came by, until all have.

    In a table on the disk, of which little is held in memory: a system may hold millions of such files, above all one
    that keeps copies of others. Raises OSError when there is no room for it.
    """

    def __init__(self) -> None:
        # Without a name it is a temporary file. What is done is never undone, so it needs no journal.
        self._table = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._do("PRAGMA journal_mode = OFF")
        self._do("CREATE TABLE files (inode BLOB PRIMARY KEY, name BLOB, state BLOB, still INTEGER) WITHOUT ROWID")
        self._do("BEGIN")

    def _do(self, statement: str, *values: object) -> tuple | None:
        try:
            return self._table.execute(statement, values).fetchone()
        except sqlite3.Error as error:
            raise OSError(errno.ENOSPC, f"A temporary file could not be written: {error}") from error

    def first(self, inode: bytes, name: bytes, names: int, size: int, mtime: int) -> tuple[bytes | None, bytes]:
        """A file's first name, None if this one, of so many, is the first; and whose other name it may have been.

        One that has another size or time may be another file: names can go before they come by, and the inode is given
        to the next.
        """
        state = b"%d %d" % (size, mtime)
        first, known, still = self._do("SELECT name, state, still FROM files WHERE inode = ?", inode) or (b"", b"", 0)
        if known != state:
            self._do("INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?)", inode, name, state, names - 1)
            return None, first
        if still > 1:
            self._do("UPDATE files SET still = ? WHERE inode = ?", still - 1, inode)
        else:                                  # all its names have come by
            self._do("DELETE FROM files WHERE inode = ?", inode)
        return first, b""

    def close(self) -> None:
        self._table.close()


class _Pace:
    """Tells when the next Progress is due."""

    def __init__(self) -> None:
        self._next = 0.0

    def due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + _SECONDS_BETWEEN
        return True


# Counting

def select(sources: Sequence[Source], *, exclude: Sequence[str] = (), include: Sequence[str] = (),
           caches: bool = True) -> Generator[Progress, None, Selection]:
    """Count what write_backup() would store of the sources; returns the Selection."""
    reading = _reading(sources, b"", exclude, include, caches)
    pace = _Pace()
    files = size = 0
    with closing(_Names()) as names:
        for tree, status, name in _walk(reading):
            files += 1
            if (status.st_dev, status.st_ino) in reading.swaps:
                continue
            if status.st_nlink < 2 or names.first(
                    identity(status), b"", status.st_nlink, status.st_size, status.st_mtime_ns)[0] is None:
                size += min(status.st_size, status.st_blocks * 512)
            if pace.due():
                yield Progress("Counting files...", done=size, item=os.fsdecode(tree.name(name)), files=files)
    yield Progress("Counting files...", done=size, total=size, files=files, total_files=files)
    return Selection(files, size)


def _walk(reading: Reading) -> Iterator[tuple[Tree, os.stat_result, bytes]]:
    """Everything in the trees but directories, and what can't be read."""
    allow_depth()
    excluder = reading.excluder()
    for tree in reading.trees:
        directories = Directories(tree.directory)
        stack = [b""]
        while stack:
            path = stack.pop()
            try:
                directory = directories.open(path)
                cache = not reading.caches and is_tag(directory) and not excluder.is_included(tree.name(path))
                with os.scandir(directory) as listing:
                    for entry in listing:
                        name = os.fsencode(entry.name)
                        below = b"%b/%b" % (path, name) if path else name
                        if (cache and name != TAG) or excluder.pattern(tree.name(below)) is not None:
                            continue
                        if not entry.is_dir(follow_symlinks=False):
                            yield tree, entry.stat(follow_symlinks=False), below
                        elif tree.name(below) not in reading.mounts:
                            stack.append(below)
            except OSError:
                continue                       # write_backup() names it
        directories.close()


def _reading(sources: Sequence[Source], first: bytes, exclude: Sequence[str], include: Sequence[str], caches: bool,
             output: Output | None = None) -> Reading:
    """What the workers are told."""
    trees = tuple(Tree(os.path.realpath(os.fsencode(s.directory)), os.fsencode(s.prefix.strip("/"))) for s in sources)
    mounts = frozenset(tree.name(path) for tree in trees for path, _ in _mounts_below(tree.directory))
    # What lies hidden below another source's mount point has that source's names: it must not replace its files.
    mounts |= {tree.prefix for tree in trees if tree.prefix}
    swaps = frozenset(_swap_files(trees))
    folder = name = b""
    if output and output.parts:
        folder, name = identity(os.stat(output.destination.parent)), os.fsencode(output.destination.name)
    left_out = frozenset((output.inode(),)) if output else frozenset()
    return Reading(trees, first, mounts, left_out, folder, name, swaps, tuple(exclude), tuple(include), caches)


def _mounts_below(directory: bytes) -> Iterator[tuple[bytes, str]]:
    """Mount points below a directory, relative to it, and their kinds of file system.

    Device numbers wouldn't do: each subvolume of a btrfs has its own.
    """
    above = directory.rstrip(b"/") + b"/"
    for point, kind, _ in mounts():
        if point.startswith(above) and point != above:
            yield point[len(above):], kind


def mounts() -> Iterator[tuple[bytes, str, int]]:
    """Mount points of this process, their kind and device. proc(5), mountinfo; blanks in names are octal."""
    with open("/proc/self/mountinfo", "rb") as lines:
        for line in lines:
            fields = line.split(b" ")
            major, _, minor = fields[2].partition(b":")
            yield _unescaped(fields[4]), fields[fields.index(b"-") + 1].decode(), os.makedev(int(major), int(minor))


def _unescaped(path: bytes) -> bytes:
    return re.sub(rb"\\(\d{3})", lambda code: bytes((int(code[1], 8),)), path)


def _swap_files(trees: Sequence[Tree]) -> Iterator[tuple[int, int]]:
    """Device and inode of the swap files that are in use, and of those in the fstab of what is backed up."""
    with open("/proc/swaps", "rb") as lines:
        paths = [fields[0] for fields in map(bytes.split, list(lines)[1:]) if fields[1] == b"file"]
    for tree in trees:
        with suppress(OSError), open(tree.directory + b"/etc/fstab", "rb") as lines:
            paths += [fields[0] for fields in map(bytes.split, lines)
                      if len(fields) > 2 and fields[2] == b"swap" and fields[0].startswith(b"/")]
    for path in map(_unescaped, paths):
        # As it is, and wherever the file systems of the system that names it so are read from.
        below = ((tree.directory, _below(tree.prefix, path)) for tree in trees)
        for place in (path, *(directory + name for directory, name in below if name)):
            with suppress(OSError):
                status = os.stat(place)
                if stat.S_ISREG(status.st_mode):
                    yield status.st_dev, status.st_ino


def _below(prefix: bytes, path: bytes) -> bytes:
    """A system's path, from the mount point on that is its tree's prefix; b"" if it is not below that."""
    if not prefix:
        return path
    return path[len(prefix) + 1:] if path.startswith(b"/%b/" % prefix) else b""


# Writing

def write_backup(destination: Path, sources: Sequence[Source], first: tuple[str, bytes] | None = None, *,
                 selection: Selection | None = None, exclude: Sequence[str] = (), include: Sequence[str] = (),
                 caches: bool = True, level: int | None = None, volume_size: int = 0,
                 workers: int | None = None) -> Iterator[Event]:
    """Back up the sources to one file, or to volumes of volume_size bytes (NAME.001, ...).

    first: name and content of a member to be the very first; what lies at its path in the sources is left out.
    selection: what select() counted, for the progress. exclude, include: patterns, see exclude.py; caches: False leaves
    out what a CACHEDIR.TAG marks. level: of zstd; None begins with the fastest and uses what time a slow destination
    leaves for higher ones. The backup has its name only when it is whole. Files that can't be read as they were are
    Differences, see is_lost(). Raises DestinationFull, DestinationRefused.
    """
    output = Output(destination, volume_size)
    try:
        reading = _reading(sources, os.fsencode(first[0]) if first else b"", exclude, include, caches, output)
        yield from _mounted_elsewhere(reading)
        with Crew("bootenv.collect:work", astuple(reading), workers) as crew, \
                closing(_Writing(reading, crew, output, selection or Selection(0, 0), level)) as writing:
            yield from writing.events(first)
        output.commit()
    finally:
        output.abort()


def is_lost(difference: Difference) -> bool:
    """Could something not be read? What changed, is made anew or is left out has a difference, too."""
    return difference.why.startswith(LOST)


def damaged_files(damaged: Sequence[Difference]) -> int:
    """How many files are among what verify_backup() tells of: the index of the backup is none."""
    return sum(difference.what != INDEX for difference in damaged)


def _mounted_elsewhere(reading: Reading) -> Iterator[Difference]:
    prefixes = {tree.prefix for tree in reading.trees}
    for tree in reading.trees:
        for path, kind in _mounts_below(tree.directory):
            if kind not in PSEUDO and tree.name(path) not in prefixes:
                yield Difference(os.fsdecode(tree.name(path)), _OTHER)


class _Large(NamedTuple):
    """A large file while it is read: its descriptor stays open, so that what is read is one file."""

    fd: int
    status: os.stat_result
    archived: bytes
    why: str                   # what could not be read of its attributes


class _Pump:
    """A thread that does what may never end: a write to a disk or a server that is gone.

    It isn't waited for at the end of the program, if it hangs.
    """

    def __init__(self) -> None:
        self._tasks: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._ends: SimpleQueue[BaseException | None] = SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def do(self, task: Callable[[], None]) -> Iterator[float]:
        """Returns when it is done, and raises what it raises; until then, now and then, the seconds so far."""
        started = time.monotonic()
        self._tasks.put(task)
        while True:
            try:
                error = self._ends.get(timeout=_SECONDS_OF_SILENCE)
            except Empty:
                yield time.monotonic() - started
                continue
            if error:
                raise error
            return

    def close(self) -> None:
        self._tasks.put(None)

    def _work(self) -> None:
        while task := self._tasks.get():
            try:
                task()
            except BaseException as error:     # the other thread's to deal with
                self._ends.put(error)
            else:
                self._ends.put(None)


class _Writing:
    """One backup under way.

    Its order is what a plain tar needs: whatever fits into a frame as it comes, then the large files, each in one
    run, then hard links, whose files must be there, then the directories' times.
    """

    def __init__(self, reading: Reading, crew: Crew, output: Output, selection: Selection, level: int | None):
        self._reading = reading
        self._crew = crew
        self._output = output
        self._writer = Writer(output)
        self._pump = _Pump()
        self._selection = selection
        self._adapts = level is None
        self._level = LEVELS[0] if level is None else level
        self._level_since = (time.monotonic(), 0.0)        # and the seconds of the output then
        self._pace = _Pace()
        self._files = self._bytes = 0
        self._unanswered = 0
        self._directories: list[list[bytes]] = [[b""] for _ in reading.trees]       # of each tree, still to be read
        self._later = Spool()                  # rows of those for which there was no room in these lists
        self._next_later: Iterator[tuple[int, bytes, bytes, bytes]] = iter(())
        self._tasks: deque[Task] = deque()
        self._names = _Names()
        # Rows, see _row(): files of several names, those larger than a frame, the other names.
        self._several = Spool()
        self._large = Spool()
        self._links = Spool()
        self._again = Spool()
        self._lost: set[bytes] = set()
        self._opened_ahead: deque[tuple[_Large, Member]] = deque()
        self._ends: dict[int, _Large] = {}     # by the number of a large file's last piece
        self._held: dict[int, Message] = {}    # pieces that came before their turn
        self._number = 0                       # of the piece to be read next
        self._next = 0                         # of the piece to be written next
        self._unread: list[Difference] = []    # large files that couldn't be opened
        self._excluded: Counter[str] = Counter()           # names that a pattern left out
        self._told = b""                       # the large file of which a difference was told

    def close(self) -> None:
        """What is read may be unmounted next, also when this ends early."""
        for large in (*self._ends.values(), *(large for large, _ in self._opened_ahead)):
            os.close(large.fd)
        self._names.close()
        self._pump.close()

    def _write(self, do: Callable[[], None]) -> Iterator[Progress]:
        """What writes to the destination. Raises what it raises, and DestinationRefused when it takes too long."""
        for waited in self._pump.do(do):
            if waited >= _SECONDS_OF_PATIENCE:
                self._output.give_up()
                raise DestinationRefused(
                    f"{self._output.destination.parent} has taken no data for {waited:.0f} seconds.",
                    hint="Check the disk or network and its cable, then make the backup again.")
            yield Progress("Waiting for the destination...", self._bytes, max(self._selection.bytes, self._bytes),
                           "", "", self._files, max(self._selection.files, self._files))

    def events(self, first: tuple[str, bytes] | None) -> Iterator[Event]:
        if first:
            yield from self._write(partial(self._writer.add, _first_frame(*first)))
        for value, block in self._crew.run(self._walking()):
            yield from self._take(value, block)
        for value, block in self._crew.run(self._files_of_several_names()):
            yield from self._take(value, block)
        for value, block in self._crew.each(("flush", self._level)):
            yield from self._take(value, block)
        yield from self._add_large()
        for pattern, count in sorted(self._excluded.items()):
            yield Difference(pattern, f"{LISTED.get(pattern, ASKED)} ({count:,} name{'s' * (count != 1)})")
        with closing(Collector(self._reading)) as collector:       # closed: what it reads is unmounted next
            yield from self._add_links(collector)
        yield from self._add_directories()
        yield from self._write(self._writer.finish)
        yield from self._write(self._output.sync)
        yield Progress("Backing up files...", self._bytes, self._bytes, "", "", self._files, self._files)

    # Small files

    def _walking(self) -> Iterator[Task | None]:
        while self._tasks or self._has_directories() or self._unanswered:
            if self._tasks:
                self._unanswered += 1
                yield self._tasks.popleft()
            elif any(self._directories):
                self._unanswered += 1
                yield self._walk_task()
            else:
                yield None

    def _has_directories(self) -> bool:
        """Are there some to be read next? Brings those that wait, when no other is left."""
        while not any(self._directories):
            for tree, path, *_ in islice(self._next_later, _MOST_DIRECTORIES // 2):
                self._directories[tree].append(path)
            if not any(self._directories):
                if not self._later:
                    return False
                self._next_later, self._later = _rows(self._later), Spool()
        return True

    def _add_directories_to_read(self, tree: int, paths: list[bytes]) -> None:
        known = self._directories[tree]
        known += paths
        if len(known) > _MOST_DIRECTORIES:
            for path in known[:_MOST_DIRECTORIES // 2]:
                self._later.add(_row(tree, path))
            del known[:_MOST_DIRECTORIES // 2]

    def _walk_task(self) -> Task:
        # The newest first: that keeps neighbours together and the list short. A share of what is there, so that
        # no worker is left with all of the rest.
        tree, directories = next((n, paths) for n, paths in enumerate(self._directories) if paths)
        share = min(max(len(directories) // (4 * len(self._crew)), 1), 32)
        paths = directories[:-share - 1:-1]
        del directories[-share:]
        return ("walk", self._level, tree, paths)

    def _take(self, value: tuple, block: Block) -> Iterator[Event]:
        kind, *rest = value
        if kind == "frame":
            size, item, unpacked, files, records = rest
            yield from self._write(partial(self._writer.add, Frame("m", block, unpacked, files, records)))
            self._files += files
            self._bytes += size
            yield from self._progress(item)
        elif kind == "again":
            self._again.add(bytes(block))
        elif kind == "names":
            self._tasks.append(("names", self._level, *rest))
        else:
            answered, tree, directories, linked, large, lost, differences, excluded = rest
            self._unanswered -= answered
            self._excluded.update(excluded)
            self._add_directories_to_read(tree, directories)
            for path, inode in large:
                self._large.add(_row(tree, path, inode))
            self._lost.update(lost)
            for link in linked:
                yield from self._linked(tree, *link)
            for path, why in differences:
                yield Difference(os.fsdecode(path), why)

    def _linked(self, tree: int, path: bytes, inode: bytes, names: int, size: int, mtime: int) -> Iterator[Difference]:
        """The first name of a file is the file, the others are links to it."""
        archived = self._reading.trees[tree].name(path)
        first, other = self._names.first(inode, archived, names, size, mtime)
        if other:
            yield Difference(os.fsdecode(archived), _ALONE.format(os.fsdecode(other)))
        if first is not None:
            self._links.add(_row(tree, path, inode, first))
        elif size > PIECE:
            self._large.add(_row(tree, path, inode))
        else:
            self._several.add(_row(tree, path, inode))

    def _files_of_several_names(self) -> Iterator[Task]:
        for tree, rows in groupby(_rows(self._several), key=itemgetter(0)):
            while files := [(path, inode) for _, path, inode, _ in islice(rows, _FILES)]:
                yield ("files", self._level, tree, files)

    def _progress(self, item: bytes) -> Iterator[Progress]:
        self._adapt_level()
        if self._pace.due():
            yield Progress("Backing up files...", self._bytes, max(self._selection.bytes, self._bytes),
                           os.fsdecode(item), "", self._files, max(self._selection.files, self._files))

    def _adapt_level(self) -> None:
        since, waited = self._level_since
        now = time.monotonic()
        if any(self._directories) or self._tasks or self._ends:
            self._crew.grow()
        if self._adapts and now - since >= _SECONDS_OF_LEVEL:
            self._level = next_level(self._level, (self._output.seconds - waited) / (now - since))
            self._level_since = now, self._output.seconds

    # Large files

    def _add_large(self) -> Iterator[Event]:
        for value, block in self._crew.run(self._pieces()):
            yield from self._take_piece(value, block)
        yield from self._unread
        self._unread = []

    def _pieces(self) -> Iterator[Task | None]:
        found, self._large = self._large, Spool()
        files = self._opened(found)
        while True:
            self._opened_ahead += islice(files, _OPENED_AHEAD - len(self._opened_ahead))
            if not self._opened_ahead:
                return
            large, member = self._opened_ahead.popleft()
            archived = large.archived
            placement = Placement(member)
            source = b"/proc/%d/fd/%d" % (os.getpid(), large.fd)
            first = self._number
            self._ends[first + max(placement.stored - 1, 0) // PIECE] = large
            for at in range(0, max(placement.stored, 1), PIECE):
                end = min(at + PIECE, placement.stored)
                if at % _AHEAD == 0:
                    os.posix_fadvise(large.fd, at + _AHEAD, _AHEAD, os.POSIX_FADV_WILLNEED)
                last = end == placement.stored
                while self._number - self._next > len(self._crew) + 2:
                    yield None                 # one is late: don't fill the memory with those behind it
                yield ("piece", self._level, self._number, first, source, b"" if at else encode(member),
                       placement.between(at, end), at, member.size, last, archived)
                self._number += 1

    def _opened(self, found: Spool) -> Iterator[tuple[_Large, Member]]:
        """Large files, with their beginnings on the way into memory."""
        for tree, path, inode, _ in _rows(found):
            archived = self._reading.trees[tree].name(path)
            try:
                large, member = self._open_large(tree, path, archived, inode)
            except OSError as error:
                self._lost.add(archived)
                self._unread.append(Difference(os.fsdecode(archived), unread(error)))
                continue
            yield large, member

    def _open_large(self, tree: int, path: bytes, archived: bytes, inode: bytes) -> tuple[_Large, Member]:
        parent, _, name = path.rpartition(b"/")
        directories = Directories(self._reading.trees[tree].directory)
        try:
            fd = open_file(name, directories.open(parent))
        finally:
            directories.close()
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or (inode and inode != identity(status)):
                raise OSError(errno.ENXIO, "replaced")
            extents = extents_of(fd, status) if status.st_blocks * 512 < status.st_size else None
            xattrs, why = xattrs_of(fd)
            os.posix_fadvise(fd, 0, _AHEAD, os.POSIX_FADV_WILLNEED)
            return (_Large(fd, status, archived, why),
                    from_stat(archived, status, xattrs, flags_of(fd), extents))
        except BaseException:
            os.close(fd)
            raise

    def _take_piece(self, value: tuple, block: Block) -> Iterator[Event]:
        """Write the pieces in their order."""
        # The block is lent until the next message, so one that must wait for its turn is copied.
        self._held[value[1]] = value, block if value[1] == self._next else bytes(block)
        while self._next in self._held:
            (_, *rest), block = self._held.pop(self._next)
            yield from self._write_piece(block, *rest)
            self._next += 1

    def _write_piece(self, block: Block, number: int, why: str, stored: int, size: int, record: bytes, at: int,
                     archived: bytes) -> Iterator[Event]:
        frame = Frame("+" if at else "m", block, size, 0 if at else 1, record, at, archived if at else b"")
        yield from self._write(partial(self._writer.add, frame))
        self._bytes += stored
        self._files += not at
        large = self._ends.pop(number, None)
        if large:
            why = why or large.why or (CHANGED if changed(large.status, large.fd) else "")
            os.close(large.fd)
        if why and archived != self._told:
            self._told = archived
            yield Difference(os.fsdecode(archived), why)
        yield from self._progress(archived)

    # What comes last

    def _add_links(self, collector: Collector) -> Iterator[Event]:
        batch = Batch("h")
        instead: dict[bytes, bytes] = {}       # a file that was lost, and the name that it was read by after all
        for tree, path, inode, target in _rows(self._links):
            archived = self._reading.trees[tree].name(path)
            if target in self._lost and target not in instead:
                before = len(self._lost)
                for task in (("files", self._level, tree, [(path, inode)]), ("flush", self._level)):
                    for value, block in collector(task):
                        yield from self._take(value, block)
                yield from self._add_large()
                if len(self._lost) == before:
                    instead[target] = archived
                continue
            batch.add(Member(archived, "h", link=instead.get(target, target)))
            self._files += 1
            if batch.size >= BATCH:
                yield from self._write(partial(self._writer.add, batch.frame(self._level)))
        if batch.size:
            yield from self._write(partial(self._writer.add, batch.frame(self._level)))

    def _add_directories(self) -> Iterator[Event]:
        for data in self._again.unpacked():
            frame = Frame("d", pack(data, self._level), len(data), 0, b"")
            yield from self._write(partial(self._writer.add, frame))


def next_level(level: int, waiting: float) -> int:
    """The level to go on with, by the share of time in which the destination was what all waited for."""
    at = LEVELS.index(level)
    if waiting > 0.6:
        return LEVELS[min(at + 1, len(LEVELS) - 1)]
    return LEVELS[max(at - 1, 0)] if waiting < 0.3 else level


def _row(tree: int, path: bytes, inode: bytes = b"", target: bytes = b"") -> bytes:
    """What waits for its turn. inode: its identity, if it has several names; target: of another name, the first."""
    return b"%d\0%b\0%b\0%b\0" % (tree, path, inode, target)


def _rows(spool: Spool) -> Iterator[tuple[int, bytes, bytes, bytes]]:
    for text in spool.unpacked():
        fields = iter(text.split(b"\0")[:-1])
        for tree, path, inode, target in zip(fields, fields, fields, fields, strict=True):
            yield int(tree), path, inode, target


def _first_frame(name: str, content: bytes) -> Frame:
    batch = Batch()
    now = time.time_ns()
    batch.add(Member(os.fsencode(name), "f", 0o600, mtime=now, atime=now, size=len(content)), content)
    return batch.frame(LEVELS[0])


# Reading

def read_first(path: Path) -> bytes:
    """Content of the first member, from the first frame alone. Raises BackupNotFound, DamagedBackup."""
    with Volumes(path) as volumes:
        # A stream: the frame's end is not known yet, and the content can't be believed to be small.
        stream = zstandard.ZstdDecompressor().decompressobj()
        data, place = bytearray(), 0
        try:
            while not stream.eof and len(data) < _FIRST_MOST and place < volumes.size:
                data += stream.decompress(volumes.read(place, 4096))
                place += 4096
            member, at = decode(memoryview(data), 0)
        except (zstandard.ZstdError, *MALFORMED) as error:
            raise _damaged_first(path) from error
        if not stream.eof or member.kind != "f" or len(data) < at + member.size:
            raise _damaged_first(path)
        return bytes(data[at:at + member.size])


def _damaged_first(path: Path) -> DamagedBackup:
    return DamagedBackup(f"The beginning of {path} is damaged or is no backup.",
                         hint="Choose another backup, or read this one with the ASR disk's state file.")


def list_backup(path: Path) -> Iterator[Record]:
    """What a backup holds, in its order; directories and the beginnings of files, without reading them.

    Raises BackupNotFound, DamagedBackup (also when the index is lost: restoring finds what is there).
    """
    with Volumes(path) as volumes:
        for _, records in _whole_index(volumes).members():
            yield from (record for record in records if record.kind != "+")


def check_whole(path: Path) -> None:
    """Whether all volumes are there, and the index at the end is: what a copy that was not finished lacks.

    Raises BackupNotFound, DamagedBackup.
    """
    with Volumes(path) as volumes:
        if volumes.missing:
            raise DamagedBackup(f"Of the backup {path.name}, {', '.join(volumes.missing)} is missing.", hint=COPY)
        if not at_end(volumes) or not Index(volumes).whole:
            raise DamagedBackup(f"The end of the backup {path.name} is missing, or its last volumes are.", hint=COPY)


COPY = "Was it copied completely? Connect the disk that has all of it. What is left can be restored all the same."


def _whole_index(volumes: Volumes) -> Index:
    index = Index(volumes)
    if not index.whole:
        raise DamagedBackup("The backup's index is lost, so it can't be listed.",
                            hint="What is left of the backup can be restored.")
    return index


class Entry(NamedTuple):
    """A name in a directory of a backup."""

    name: bytes
    kind: str                  # as a Member's
    size: int                  # bytes, of a file


def list_directory(path: Path, directory: bytes) -> list[Entry]:
    """What lies directly in a directory of the backup (b"" is its root), directories first.

    The index is searched, not parsed: it may have millions of records. Raises as list_backup() does.
    """
    above = directory and directory + b"/"
    record = re.compile(rb"(?:\A|\0)([fdlhcbp]) \d+ \d+ [0-9a-f]{16} \d+ [0-9a-f-]+ (\d+) " + re.escape(above)
                        + rb"([^/\0]+)(?=\0|\Z)")
    with Volumes(path) as volumes:
        index = _whole_index(volumes)
        found = {name: Entry(name, kind.decode(), int(size))
                 for _, records in index.groups() for kind, size, name in record.findall(records)}
    return sorted(found.values(), key=lambda entry: (entry.kind != "d", entry.name))


def verify_backup(path: Path, *, workers: int | None = None) -> Generator[Event, None, None]:
    """Read every frame and every file and compare with their checksums; what is lost is a Difference.

    Raises BackupNotFound, DamagedBackup.
    """
    # The workers first: they start while the index is read.
    with Volumes(path) as volumes, Crew("bootenv.extract:check", (str(path),), workers) as crew:
        index = Index(volumes)
        yield from _whole(volumes, index)
        total = total_files = done = files = 0
        for place in index.frames():
            total += place.size
            total_files += place.files
        pace = _Pace()
        told: set[bytes] = set()               # a large file is in many frames, and has one name
        for (_, fields, whole, lost, item), _ in crew.run(_with_records(volumes, index)):
            place = Place(*fields)
            done += place.size
            files += place.files
            if not whole:
                volumes.check_there()
            for name in lost:
                if name not in told:
                    yield Difference(os.fsdecode(name), "It is damaged in the backup.")
            told.update(lost)
            if not whole and not lost:
                yield Difference(f"frame {place.seq}", _damage_without_loss(place, index))
            if pace.due():
                yield Progress("Verifying the backup...", done, total, os.fsdecode(item), "", files, total_files)
        yield Progress("Verifying the backup...", done, total, "", "", files, total_files)


def _with_records(volumes: Volumes, index: Index) -> Iterator[Task | None]:
    groups = index.groups()
    seq, records = next(groups, (-1, b""))
    for place in index.frames():
        volumes.prefetch(place.place)
        if place.seq == seq:
            yield (tuple(place), records)
            seq, records = next(groups, (-1, b""))
        else:
            yield (tuple(place), b"")


def _damage_without_loss(place: Place, index: Index) -> str:
    if place.kind == "d":
        return "It is damaged, and holds directories' owners and times once more; the first ones will do."
    if not index.whole:
        return _NAMELESS
    return "It is damaged where no file is, and directories come once more."


def _whole(volumes: Volumes, index: Index) -> Iterator[Difference]:
    """What is missing of the backup as a whole."""
    for name in volumes.missing:
        yield Difference(name, "This volume of the backup is missing.")
    if index.whole:
        return
    yield Difference(INDEX, "It is lost or cut off. What follows the last whole frame is lost.")
    expected = 0
    for place in index.frames():
        if place.seq != expected:
            yield Difference(f"frames {expected} to {place.seq - 1}", _NAMELESS)
        expected = place.seq + 1


# Restoring

def restore_backup(path: Path, target: Path, *, only: Collection[str] = (), anywhere: bool = False,
                   journal: Path | None = None, workers: int | None = None) -> Generator[Event, None, None]:
    """Make the backup's files, or only those paths and what is below them, in the target directory.

    What stands in a file's place is replaced; running it again after an interruption gives the same result, and with
    the same journal (a file, on the target or elsewhere) it goes on where it was. What is damaged or can't be made is
    a Difference and costs nothing else. No half file stays where it ends early.

    anywhere: the target is any directory, which may be in use; what stands in a file's place is replaced when the new
    one is whole, and else stays. The target itself stays as it is, and so do directories in it that were not asked for;
    it is made if it isn't there. Without, it must be a mount point.

    Raises TargetNotMounted; DestinationFull when the target is full; BackupNotFound, DamagedBackup (nothing can be
    read).
    """
    if not anywhere and not os.path.ismount(target):
        raise TargetNotMounted(f"Nothing is mounted at {target}.", hint="Mount the file system to restore to.")
    wanted = tuple(_as_stored(name) for name in only)
    # Of a directory in use, its times; one that is made here gets its own, with all the rest.
    times = None
    if anywhere and target.exists():
        status = os.stat(target)
        times = status.st_atime_ns, status.st_mtime_ns
    elif anywhere:
        target.mkdir(0o700, parents=True)
    devices = frozenset(device for _, kind, device in mounts() if kind in _FOREIGN)
    directory = os.fsencode(target)
    # The workers start while the index is read. All are closed at once at the end: the target is unmounted next.
    with Volumes(path) as volumes, closing(Extractor(None, directory, devices, wanted, anywhere)) as extractor, \
            Crew("bootenv.extract:work", (str(path), directory, devices, wanted, anywhere), workers) as crew:
        index = Index(volumes)
        yield from _whole(volumes, index)
        yield from _Restoring(volumes, index, crew, extractor, wanted, _Journal(journal, index), anywhere,
                              times).events()


def _as_stored(name: str) -> bytes:
    """A path as people and shells write it, as the backup has it: "./a//x/" is a/x, "/" is all."""
    return b"/".join(part for part in os.fsencode(name).split(b"/") if part not in (b"", b"."))


class _Seqs:
    """Frames' numbers, a byte for each: a backup of many TB has millions."""

    def __init__(self) -> None:
        self._has = bytearray()

    def add(self, first: int, last: int) -> None:
        """From the first to the last; what no backup could have is not remembered."""
        first, end = max(first, 0), min(last + 1, _MOST_FRAMES)
        if end <= first:
            return
        if len(self._has) < end:
            self._has.extend(bytes(max(end, 2 * len(self._has)) - len(self._has)))
        self._has[first:end] = b"\1" * (end - first)

    def __contains__(self, seq: int) -> bool:
        return 0 <= seq < len(self._has) and bool(self._has[seq])


class _Journal:
    """Which frames are restored and on the disk for good: their first and last, after a line that names the backup."""

    def __init__(self, path: Path | None, index: Index):
        self._path = path
        self._head = "".join(f"{place.checksum:08x}{place.packed}" for place in islice(index.frames(), 2)) + "\n"
        self._new: list[str] = []
        self._next = time.monotonic() + _SECONDS_OF_JOURNAL
        self.done = _Seqs()
        if path:
            try:
                self.done = self._read(path)
            except OSError:                    # it saves time after an interruption, and the restore can do without
                self._path = None

    def _read(self, path: Path) -> _Seqs:
        done = _Seqs()
        try:
            with open(path) as lines:
                if next(lines, "") == self._head:
                    for line in lines:
                        if line.endswith("\n"):
                            first, last = line.split()
                            done.add(int(first), int(last))
                    return done
        except (FileNotFoundError, ValueError):          # ValueError: a power cut left garbage
            pass
        path.write_text(self._head)
        return _Seqs()

    def add(self, first: int, last: int) -> None:
        """All frames from the first to the last are restored."""
        if not self._path:
            return
        self._new.append(f"{first} {last}\n")
        if time.monotonic() >= self._next:
            os.sync()                          # the files first: what is in here isn't looked at again
            try:
                with open(self._path, "a") as file:
                    file.write("".join(self._new))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError:
                self._path = None
            self._new = []
            self._next = time.monotonic() + _SECONDS_OF_JOURNAL


@dataclass
class _Growing:
    """A large file while its pieces are restored."""

    member: Member
    placement: Placement
    left: int                  # stored bytes still to come
    last: int                  # the number of its last frame so far
    in_work: int = 0           # pieces that workers have in hand
    damaged: bool = False
    differs: bool = False      # something of it could not be made as it was


class _Restoring:
    """One restore under way: members, hard links, directories' own data, flags that forbid changes."""

    def __init__(self, volumes: Volumes, index: Index, crew: Crew, extractor: Extractor, only: tuple[bytes, ...],
                 journal: _Journal, anywhere: bool, times: tuple[int, int] | None):
        self._volumes = volumes
        self._index = index
        self._crew = crew
        self._extractor = extractor
        self._journal = journal
        self._pace = _Pace()
        self._missing = set(only) if index.whole else set()
        self._wanted = self._frames_of(only) if only and index.whole else None         # all frames, if None
        self._other_names: dict[bytes, bytes] = {}         # of files that are wanted by later names only
        self._names_in: dict[int, dict[bytes, bytes]] = {}  # of these, the ones in a frame
        if only:
            self._find_other_names(only)
        self._stored_names = {other: stored for stored, other in self._other_names.items()}
        if self._wanted is not None:
            for seq, path in self._holding(self._other_names):
                self._wanted.add(seq, seq)
                self._names_in.setdefault(seq, {})[path] = self._other_names[path]
        self._total = sum(place.size for place in self._frames("m+h"))
        self._total_files = sum(place.files for place in self._frames("m+h"))
        self._done = self._files = 0
        self._unanswered: set[int] = set()     # frames in work
        self._growing: dict[int, _Growing] = {}            # by the number of their first frame
        self._heads: dict[int, int] = {}       # a piece in work, and that number
        self._damaged: dict[int, Place] = {}
        self._flags: list[tuple[bytes, str]] = []
        self._others = False
        self._lost: set[bytes] = set()         # what was not made
        self._only = only
        self._anywhere = anywhere
        self._times = times                    # the target's, that are to stay
        self._made = {b""} if anywhere and not times else set()      # directories; what was taken from others:
        self._taken: dict[bytes, Taken] = {b"": Taken()} if times else {}

    def events(self) -> Iterator[Event]:
        try:
            self._extractor.open_target()
            yield from self._work()
        except BaseException as error:         # also Ctrl+C, and a caller that goes away
            self._undo()
            if isinstance(error, TargetFull):
                raise DestinationFull(f"The target is full: {os.fsdecode(error.path)} does not fit.", untouched="",
                                      hint="Recover to larger disks, or extract to where there is room.") from error
            raise

    def _undo(self) -> None:
        """What is half made is removed, and directories are as they were or as they are to be."""
        try:
            # A worker that failed has nothing to say any more, nor has one that was cut short in the middle of it.
            with suppress(AsrError, ValueError, EOFError, TypeError):
                for (_, _, place, _, large, _, news), _ in self._crew.each(("rest",)):
                    self._remember(News(*news))
                    if large:
                        self._begin(Place(*place), *large)
        finally:                               # Ctrl+C once more
            for growing in self._growing.values():
                self._extractor.remove(growing.member.path)
            self._remember(self._extractor.news())
            with suppress(AsrError, DamagedFrame, TargetFull):
                self._finish_made()
            self._give_back()

    def _finish_made(self) -> None:
        """The directories that were missing, so that what is in them can be reached."""
        for place in self._frames("d") if self._made else ():
            data = unpack(self._volumes.read(place.place, place.packed), place)
            for member, _ in self._extractor.members(data, self._made):
                if member.kind == "d" and member.path in self._made:
                    self._extractor.finish_directory(member)
        for path, letters in self._extractor.news().flags:
            self._extractor.forbid(path, letters)

    def _give_back(self) -> None:
        """To directories that were there, what was taken from them, unless their own header has brought its own."""
        for path, taken in self._taken.items() if self._anywhere else ():
            self._extractor.give_back(path, taken, None if path else self._times)

    def _work(self) -> Iterator[Event]:
        for path in sorted(self._missing):
            yield Difference(os.fsdecode(path), "It is not in the backup.")
        for value, _ in self._crew.run(self._members()):
            yield from self._take(value)
        yield from self._save_damaged()
        yield from self._give_up_incomplete()
        for value, _ in self._crew.run(self._frame_task(place) for place in self._frames("h")):
            yield from self._take(value)
        yield from self._save_damaged()
        yield from self._finish_directories()
        for path, letters in self._flags:
            self._extractor.forbid(path, letters)
        self._give_back()
        yield from self._tell(self._extractor.news())
        if self._others:
            yield Difference("owners", "Only root can give files to others; all belong to the user who extracted them.")
        yield Progress("Restoring files...", self._total, self._total, "", "", self._total_files, self._total_files)

    def _frames_of(self, only: tuple[bytes, ...]) -> _Seqs:
        """The frames that hold these paths, or what is below them."""
        found = _Seqs()
        needles = [b" " + path + end for path in only for end in (b"\0", b"/")]
        for seq, text in self._index.groups():
            if b"" not in only and not any(needle in text + b"\0" for needle in needles):
                continue                       # most are looked at no closer
            for record in parse_records(text):
                if is_wanted(record.path, only):
                    found.add(seq, seq)
                    self._missing -= {path for path in self._missing if is_wanted(record.path, (path,))}
        return found

    def _holding(self, paths: Collection[bytes]) -> Iterator[tuple[int, bytes]]:
        """Which of these paths a frame holds, and its number; of all frames."""
        for seq, records in self._index.members() if paths else ():
            for record in records:
                if record.path in paths:
                    yield seq, record.path

    def _find_other_names(self, only: tuple[bytes, ...]) -> None:
        """Of files that are wanted by later names only: the one that the backup has it under, and the first wanted."""
        for place in self._frames("h"):
            with suppress(DamagedFrame):       # the links in it that can be saved say what they lack
                data = unpack(self._volumes.read(place.place, place.packed), place)
                for member, _ in self._extractor.members(data):
                    if member.kind == "h" and not is_wanted(member.link, only):
                        other = self._other_names.setdefault(member.link, member.path)
                        self._names_in.setdefault(place.seq, {})[member.link] = other

    def _frames(self, kinds: str) -> Iterator[Place]:
        for place in self._index.frames():
            if place.kind in kinds and (self._wanted is None or place.seq in self._wanted or place.kind == "d"):
                yield place

    def _members(self) -> Iterator[Task | None]:
        """Frames in the order of the file; a large file's pieces once it is made, and what is near meanwhile."""
        frames = self._frames("m+")
        waiting: list[tuple[int, Place]] = []  # a large file's first frame, and a piece of it
        head = -1
        more = True
        while more or waiting:
            near = more and (not waiting or (
                len(waiting) < _MOST_WAITING and waiting[-1][1].place - waiting[0][1].place < _NEAR))
            if found := self._next_piece(waiting, alone=near):
                waiting.remove(found)
                yield from self._piece_tasks(*found)
            elif not near:
                yield None
            elif not (place := next(frames, None)):
                more = False
            else:
                self._volumes.prefetch(place.place)
                if place.kind == "m":
                    head = place.seq
                if place.seq in self._journal.done:
                    self._done += place.size
                    self._files += place.files
                elif place.kind == "+":
                    waiting.append((head, place))
                else:
                    self._unanswered.add(head)
                    yield self._frame_task(place)

    def _next_piece(self, waiting: list[tuple[int, Place]], alone: bool) -> tuple[int, Place] | None:
        """One of a file that is made; where there is a choice, of one that no other worker writes.

        The kernel lets one process at a time write to a file.
        """
        ready = [piece for piece in waiting if piece[0] not in self._unanswered]
        for head, place in ready:
            growing = self._growing.get(head)
            if not (growing and growing.in_work):
                return head, place
        return ready[0] if ready and not alone else None

    def _piece_tasks(self, head: int, place: Place) -> Iterator[Task]:
        growing = self._growing.get(head)
        # Without an index a frame may be missing, and then this is the piece of some other file.
        if growing and place.path in (b"", growing.member.path, self._stored_names.get(growing.member.path)):
            growing.in_work += 1
            self._heads[place.seq] = head
            end = min(place.at + place.size, growing.placement.stored)
            yield ("piece", tuple(place), growing.member.path, growing.placement.between(place.at, end))

    def _frame_task(self, place: Place, records: bytes | None = None) -> Task:
        lost = frozenset(self._lost) if place.kind == "h" else ()
        # Without the index nobody knows which frame has which.
        names = self._names_in.get(place.seq, {}) if self._index.whole else self._other_names
        return ("frame", tuple(place), records, names, lost)

    def _take(self, value: tuple) -> Iterator[Event]:
        _, kind, place, item, large, damaged, told = value
        place, news = Place(*place), News(*told)
        if large:
            self._begin(place, *large)
            self._growing[place.seq].differs = bool(news.differences)
        yield from self._tell(news)
        if news.full:
            raise TargetFull(news.full[0])
        self._done += place.size if kind != "directories" else 0
        self._files += place.files
        if damaged:
            self._volumes.check_there()        # what a disk that was pulled out can't give is not damaged
            self._damaged[place.seq] = place
        if kind == "frame" and not (large or damaged or news.differences or news.flags):
            self._journal.add(place.seq, place.seq)
        if kind == "piece":
            self._grow(place, damaged)
        self._unanswered.discard(place.seq)
        yield from self._tell(self._extractor.news())
        if self._pace.due():
            yield Progress("Restoring files...", self._done, self._total, os.fsdecode(item), "", self._files,
                           self._total_files)

    def _tell(self, news: News) -> Iterator[Difference]:
        """What the workers, or the one in this process, have to tell."""
        # Of a large file each piece would be a difference. All is remembered before the first yield may be the last.
        unlike = [Difference(os.fsdecode(path), why) for path, why in news.differences if path not in self._lost]
        self._remember(news)
        yield from unlike

    def _remember(self, news: News) -> None:
        self._flags += news.flags
        self._others |= news.others
        self._lost.update(news.lost)
        self._made.update(news.made)
        for path, taken in news.taken:         # two workers may each have taken a part
            flags, setgid, acl = self._taken.get(path, Taken())
            self._taken[path] = Taken(flags | taken[0], setgid | taken[1], acl or taken[2])
        for path in news.headed:
            self._taken.pop(path, None)

    # Large files

    def _begin(self, place: Place, member: tuple, stored: int) -> None:
        """stored: bytes of its content that came with its head."""
        placement = Placement(Member(*member))
        self._growing[place.seq] = _Growing(Member(*member), placement, placement.stored - stored, place.seq)

    def _grow(self, place: Place, damaged: bool) -> None:
        seq = self._heads.pop(place.seq)
        growing = self._growing[seq]
        growing.in_work -= 1
        growing.left -= min(place.size, growing.placement.stored - place.at)
        growing.damaged |= damaged
        growing.last = max(growing.last, place.seq)
        if not growing.left and not growing.damaged and growing.member.path not in self._lost:
            self._extractor.finish(growing.member)
            # What differs is made and told again by another run.
            if not (growing.member.flags or growing.differs or self._extractor.differences):
                self._journal.add(seq, growing.last)
            del self._growing[seq]

    def _give_up_incomplete(self) -> Iterator[Event]:
        while self._growing:
            _, growing = self._growing.popitem()
            self._extractor.give_up(growing.member.path)
            yield from self._tell(self._extractor.news())

    # Damage

    def _save_damaged(self) -> Iterator[Event]:
        """From damaged frames, the members that the index proves to be right."""
        damaged, self._damaged = self._damaged, {}
        if not damaged:
            return
        if not self._index.whole:
            for seq in damaged:
                yield Difference(f"frame {seq}", _NAMELESS)
            return
        tasks = (self._frame_task(damaged[seq], records)
                 for seq, records in self._index.groups(damaged) if damaged[seq].kind != "+")
        for value, _ in self._crew.run(tasks):
            yield from self._take(value)

    def _finish_directories(self) -> Iterator[Event]:
        """From the frames that repeat the directories; where one of these is lost, from the first ones as well."""
        for kinds in ("d", "m", "d"):
            self._damaged = {}
            if kinds == "m" and self._made and self._wanted is not None:
                for seq, _ in self._holding(self._made):
                    self._wanted.add(seq, seq)
            also, tell = frozenset(self._made), frozenset(self._taken if self._anywhere else ())
            for value, _ in self._crew.run(("directories", tuple(place), also, tell) for place in self._frames(kinds)):
                yield from self._take(value)
            if kinds == "d" and self._index.whole and not self._damaged:
                return
            if kinds == "m":
                yield from self._unfinished_directories()

    def _is_due(self, path: bytes) -> bool:
        """Is a directory to be given what its header says?"""
        if path in self._made:
            return True
        return (bool(path) or not self._anywhere) and (not self._only or is_wanted(path, self._only))

    def _unfinished_directories(self) -> Iterator[Difference]:
        for _, records in self._index.members(self._damaged):
            for record in records:
                if record.kind == "d" and self._is_due(record.path):
                    yield Difference(os.fsdecode(record.path), "Its owner, mode and times are damaged in the backup.")
