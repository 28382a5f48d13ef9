"""A live file system read into frames: what the backup's worker processes do.

Everything goes through directory descriptors, a file is opened once, and what is kept of it comes from that
descriptor: a name that is replaced meanwhile can't mix two files. What goes wrong with a file is a difference and
costs that file alone.
"""

import errno
import fcntl
import os
import re
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from stat import S_ISREG
from typing import Any

from xxhash import xxh3_64_hexdigest

from bootenv.archive import Frame, member_record, pack
from bootenv.crew import Message
from bootenv.directories import Directories, allow_depth
from bootenv.exclude import TAG, TAGGED, Excluder, is_tag
from bootenv.member import BLOCK, FLAGS, Extent, Member, encode, encode_plain, from_stat, kind_of, swap_extents

BATCH = 2**20                  # members are gathered to this size, so that damage is bounded
PIECE = 2 * 2**20              # stored bytes of a large file in one frame; more would only cost memory
_ROOM = BATCH + PIECE + 2**16   # of a batch's buffer: full but for a byte, then the largest small file
AHEAD = 16                     # files opened before they are read, so that the disk has more than one to fetch
HELD = 2**15                   # names of a directory that are held at a time
MANY = 2000                    # of them, or half, are for whoever lists it; the others are for all, so many at a time
MOST_EXTENTS = 2**16           # of one file; beyond, its smallest holes are stored as zeros

VANISHED = "It vanished while the backup was made."
CHANGED = "It changed while it was read; the backup holds what was read."
LOST = ("It cannot be read", "Not all of it can be read")      # how the sentences about what is missing begin
REPLACED = "It was replaced by something else while the backup was made."
SWAP = "The pages in a swap file are not backed up; it comes back empty."
ITSELF = "It is the backup that was being made."
SOCKET = "A socket is made anew by its program; it is not in the backup."

# O_NONBLOCK: a name that becomes a fifo must not stop the backup. O_NOATIME: reading must leave no trace.
_OPEN = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
_GETFLAGS = 0x80006601 | struct.calcsize("l") << 16        # FS_IOC_GETFLAGS is _IOR('f', 1, long)
_NO_FLAGS = bytes(8)
# The file system has none; removed meanwhile; not for this user to read.
_NO_XATTRS = (errno.ENOTSUP, errno.ENOSYS, errno.ENODATA, errno.ENOENT, errno.EACCES, errno.EPERM)
_ZEROS = bytes(BLOCK)
_ENCODING = sys.getfilesystemencoding()


@dataclass(frozen=True)
class Tree:
    """One file system to be read."""

    directory: bytes           # where it is mounted
    prefix: bytes              # its path in the backup, b"" for the root

    def name(self, path: bytes) -> bytes:
        """The path in the backup of a path below the directory."""
        return b"%b/%b" % (self.prefix, path) if self.prefix and path else self.prefix or path


@dataclass(frozen=True)
class Reading:
    """What all workers of one backup are told: all plain values, for they cross to other processes."""

    trees: tuple[Tree, ...]
    first: bytes                                       # path in the backup of the caller's member, b"" for none
    mounts: frozenset[bytes]                           # paths in the backup where another file system begins
    left_out: frozenset[tuple[int, int]]               # device and inode of the backup itself
    folder: bytes = b""                                # identity of the directory where it is made, and its name:
    name: bytes = b""                                  # it may get more volumes
    swaps: frozenset[tuple[int, int]] = frozenset()    # device and inode of swap files: only their headers are kept
    exclude: tuple[str, ...] = ()                      # patterns, see exclude.py
    include: tuple[str, ...] = ()
    caches: bool = True                                # False: what a CACHEDIR.TAG marks is left out

    def excluder(self) -> Excluder:
        return Excluder(self.exclude, self.include, self.first)


# Looking at one file

def open_file(name: bytes, directory: int) -> int:
    try:
        return os.open(name, _OPEN | os.O_NOATIME, dir_fd=directory)
    except PermissionError:                    # O_NOATIME is for the owner and root
        return os.open(name, _OPEN, dir_fd=directory)


def xattrs_of(file: int | bytes) -> tuple[tuple[tuple[str, bytes], ...], str]:
    """Every extended attribute that can be read, ACLs among them, and why some can't, "" if none.

    Of a descriptor, or of a path not followed.
    """
    follow = isinstance(file, int)
    found = []
    why = ""
    try:
        for name in sorted(os.listxattr(file, follow_symlinks=follow)):
            try:
                found.append((name, os.getxattr(file, name, follow_symlinks=follow)))
            except OSError as error:
                why = why or _unread_xattrs(error)
    except OSError as error:
        why = _unread_xattrs(error)
    return tuple(found), why


def _unread_xattrs(error: OSError) -> str:
    if error.errno in _NO_XATTRS:
        return ""
    return f"{LOST[1]} ({os.strerror(error.errno or errno.EIO)}): extended attributes are missing."


def flags_of(fd: int) -> str:
    try:
        return _letters(fcntl.ioctl(fd, _GETFLAGS, _NO_FLAGS))
    except OSError:                            # the file system has none
        return ""


def has_more(fd: int) -> bool:
    """Are there extended attributes or flags?"""
    try:
        return bool(os.listxattr(fd) or _letters(fcntl.ioctl(fd, _GETFLAGS, _NO_FLAGS)))
    except OSError:                            # one of them is unknown to the file system; the other may be there
        return True


@lru_cache(maxsize=64)
def _letters(bits: bytes) -> str:
    present = int.from_bytes(bits[:4], "little")
    return "".join(letter for letter, bit in FLAGS.items() if present & bit)


def extents_of(fd: int, status: os.stat_result) -> tuple[Extent, ...] | None:
    """Where a file's data lie, ending with its size as GNU tar wants it; None if it has no holes."""
    size = status.st_size
    extents: list[Extent] = []
    at = 0
    while at < size:
        try:
            if len(extents) >= 2 * MOST_EXTENTS:
                extents = _fewer(extents)
            start = os.lseek(fd, at, os.SEEK_DATA)
            at = min(os.lseek(fd, start, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:     # nothing but a hole up to the end
                break
            return None
        if start < at:
            extents.append((start, at - start))
    if extents == [(0, size)]:
        return None
    extents = _fewer(extents)
    if not extents or sum(extents[-1]) < size:
        extents.append((size, 0))
    return tuple(extents)


def _fewer(extents: list[Extent]) -> list[Extent]:
    least = 4096
    while len(extents) > MOST_EXTENTS:
        least *= 2
        joined = [extents[0]]
        for start, length in extents[1:]:
            before, size = joined[-1]
            if start - before - size < least:
                joined[-1] = (before, start + length - before)
            else:
                joined.append((start, length))
        extents = joined
    return extents


def read_into(view: memoryview, fd: int, offset: int) -> str:
    """As many bytes as the view has, zeros for those that can't be had; returns why some can't, "" if none."""
    try:
        if os.preadv(fd, (view,), offset) == len(view):
            return ""
    except OSError:
        pass                                   # what follows deals with it
    why = ""
    at = 0
    while at < len(view):
        try:
            # After an error block by block, so that a bad sector costs itself and no more.
            count = os.preadv(fd, (view[at:at + BLOCK * 8] if why else view[at:],), offset + at)
        except OSError as error:
            why = f"{LOST[1]} ({os.strerror(error.errno or errno.EIO)}); zeros are in its place."
            count = min(len(view) - at, BLOCK * 8 - (offset + at) % (BLOCK * 8))
            view[at:at + count] = bytes(count)
        if not count:                          # it shrank
            view[at:] = bytes(len(view) - at)
            return why or CHANGED
        at += count
    return why


def unread(error: OSError) -> str:
    if error.errno in (errno.ENOENT, errno.ESTALE):
        return VANISHED
    if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.ENXIO):
        return REPLACED
    return f"{LOST[0]}: {os.strerror(error.errno or errno.EIO)}."


def changed(before: os.stat_result, fd: int) -> bool:
    try:
        after = os.fstat(fd)
    except OSError:                            # removed on a server, or that is gone: who knows what was read
        return True
    return before.st_mtime_ns != after.st_mtime_ns or before.st_size != after.st_size


def identity(status: os.stat_result) -> bytes:
    """By which a file is known that has several names."""
    return b"%d %d" % (status.st_dev, status.st_ino)


# Members gathered into a frame

class Batch:
    """Members on their way into one frame.

    They are put together in one buffer that is used again for the next frame, and small files are read straight into
    it: memory that is asked for and given back for each file costs more than the reading.
    """

    def __init__(self, kind: str = "m") -> None:
        self._kind = kind
        self._buffer = memoryview(bytearray(_ROOM))
        self._clear()

    def _clear(self) -> None:
        self._records: list[bytes] = []
        self.size = 0
        self.files = 0
        self.bytes = 0
        self.item = b""

    def add(self, member: Member, content: bytes = b"") -> bytes:
        """Returns the member's headers."""
        head = encode(member)
        at = self._begin(head, len(content))
        self._buffer[at:at + len(content)] = content
        self._end(member.kind, head, at, len(content), member.size, member.path)
        return head

    def add_file(self, head: bytes, path: bytes, size: int, fd: int) -> str:
        """A file without holes, read from its descriptor; returns why it isn't as it was, "" if it is."""
        at = self._begin(head, size)
        why = read_into(self._buffer[at:at + size], fd, 0) if size else ""
        self._end("f", head, at, size, size, path)
        return why

    def add_piece(self, head: bytes, path: bytes, size: int, fd: int, extents: Sequence[Extent], *,
                  last: bool) -> str:
        """What lies there of a file of so many bytes; without a head it is more of one that began in another frame."""
        stored = sum(length for _, length in extents)
        at = start = self._begin(head, stored)
        if not last:
            self.size = start + stored         # what fills the last block comes with the last piece
        whys = []
        for offset, length in extents:
            whys.append(read_into(self._buffer[at:at + length], fd, offset))
            at += length
        self._end("f" if head else "+", head, start, stored, size, path)
        return next(filter(None, whys), "")

    def _begin(self, head: bytes, size: int) -> int:
        """Where the content goes."""
        at = self.size
        content = at + len(head)
        fill = content + size
        self.size = end = fill + (-size % BLOCK)
        if end > len(self._buffer):
            buffer = memoryview(bytearray(2 * end))
            buffer[:at] = self._buffer[:at]
            self._buffer = buffer
        self._buffer[at:content] = head
        self._buffer[fill:end] = _ZEROS[:end - fill]
        return content

    def _end(self, kind: str, head: bytes, at: int, stored: int, size: int, path: bytes) -> None:
        start, end = at - len(head), at + stored
        digest = sha256(self._buffer[at:end]).hexdigest() if stored else "-"
        checksum = xxh3_64_hexdigest(self._buffer[start:end])
        self._records.append(member_record(kind, start, len(head), checksum, stored, digest, size, path))
        self.files += kind != "d"
        self.bytes += stored
        self.item = path

    def frame(self, level: int) -> Frame:
        """What was gathered, and begin anew."""
        frame = Frame(self._kind, pack(self._buffer[:self.size], level), self.size, self.files,
                      b"".join(self._records))
        self._clear()
        return frame


# The worker

@dataclass
class Found:
    """What a task came upon that isn't for this worker alone to deal with."""

    directories: list[bytes]
    linked: list[tuple[bytes, bytes, int, int, int]]   # has several names: path, identity, names, size, mtime (ns)
    large: list[tuple[bytes, bytes]]           # more than a frame holds; identity, if it has several names
    lost: list[bytes]                          # several names, and this one can't be read
    differences: list[tuple[bytes, str]]
    excluded: dict[str, int]                   # a pattern, and how many names it left out


class Collector:
    """Reads directories of the trees into frames, as the tasks of backup.write_backup ask.

    Tasks, each with the level to compress at: ("walk", level, tree, directories), ("names", level, tree, directory,
    names joined by NUL, each after the letter of its kind), ("files", level, tree, paths with their identities) for
    those with several names, ("piece", ...) and ("flush", level).
    """

    def __init__(self, reading: Reading):
        allow_depth()
        self._trees = reading.trees
        self._excluder = reading.excluder()
        self._caches = reading.caches
        self._left_out = reading.left_out
        self._folder = reading.folder
        self._volume = re.compile(re.escape(reading.name) + rb"(\.\d{3,})?\.part", re.DOTALL)
        self._swaps = reading.swaps
        self._noted = {inode for _, inode in (*reading.left_out, *reading.swaps)}
        self._mounts = reading.mounts
        self._prefixes = {tree.prefix for tree in reading.trees}
        self._directories = [Directories(tree.directory) for tree in reading.trees]
        self._batch = Batch()
        self._again: list[bytes] = []          # headers of directories, to be repeated at the end
        self._found = Found([], [], [], [], [], {})
        self._piece_of = (-1, -1)

    def close(self) -> None:
        for directories in self._directories:
            directories.close()

    def __call__(self, task: tuple) -> Iterator[Message]:
        kind, level, *rest = task
        if kind == "piece":
            yield from self._piece(level, *rest)
            return
        if kind == "flush":
            yield from self._flush(level)
            return
        if kind == "walk":
            yield from self._walk(level, *rest)
        elif kind == "names":
            yield from self._names(level, *rest)
        else:
            tree, files = rest
            for path, inode in files:
                self._one(tree, path, inode)
                yield from self._flush_full(level)
        yield self._report(rest[0])

    def _report(self, tree: int, last: bool = True) -> Message:
        found, self._found = self._found, Found([], [], [], [], [], {})
        return ("found", last, tree, *vars(found).values()), b""

    def _flush(self, level: int) -> Iterator[Message]:
        if self._batch.size:
            size, item = self._batch.bytes, self._batch.item
            frame = self._batch.frame(level)
            yield ("frame", size, item, frame.size, frame.files, frame.records), frame.packed
        if self._again:
            yield ("again",), b"".join(self._again)
            self._again = []

    def _flush_full(self, level: int) -> Iterable[Message]:
        """To be asked after each member: a frame has a size that readers can rely on."""
        return self._flush(level) if self._batch.size >= BATCH else ()

    def _walk(self, level: int, tree: int, paths: list[bytes]) -> Iterator[Message]:
        for path in paths:
            name = self._trees[tree].name(path)
            try:
                directory = self._directories[tree].open(path)
                own = identity(self._directory(directory, name, path)) == self._folder
            except OSError as error:
                self._differs(name, unread(error))
                continue
            yield from self._flush_full(level)
            if path and name in self._mounts:
                continue                       # an empty directory here, whatever is mounted there
            below, archived = path and path + b"/", name and name + b"/"
            tagged = not self._caches and self._is_cache(directory, name)
            concerned = self._excluder.concerns(name)
            for entries in self._listed(directory, name):
                if own:
                    entries = [entry for entry in entries if not self._is_volume(archived, entry[0])]
                if tagged:
                    entries = [entry for entry in entries if entry[0] == TAG]
                if concerned:
                    entries = [entry for entry in entries if not self._excluded(archived + entry[0])]
                mine = max(MANY, len(entries) // 2)
                for start in range(mine, len(entries), MANY):
                    share = [kind + entry for entry, kind in entries[start:start + MANY]]
                    yield ("names", tree, path, b"\0".join(share)), b""
                yield from self._entries(level, directory, below, archived, entries[:mine])
                if len(self._found.directories) + len(self._found.linked) + len(self._found.differences) >= MANY:
                    yield self._report(tree, last=False)

    def _listed(self, directory: int, name: bytes) -> Iterator[list[tuple[bytes, bytes]]]:
        """Name and kind of what is in a directory; in the order of inodes, which on a disk is the order of what is to
        be read."""
        try:
            with os.scandir(directory) as listing:
                while entries := [(entry.inode(), entry.name.encode(_ENCODING, "surrogateescape"),
                                   b"f" if entry.is_file(follow_symlinks=False) else _type(entry))
                                  for entry in islice(listing, HELD)]:
                    yield [entry[1:] for entry in sorted(entries)]
        except OSError as error:
            self._differs(name, unread(error))

    def _names(self, level: int, tree: int, path: bytes, names: bytes) -> Iterator[Message]:
        archived = self._trees[tree].name(path)
        try:
            directory = self._directories[tree].open(path)
        except OSError as error:
            self._differs(archived, unread(error))
            return
        below, archived = path and path + b"/", archived and archived + b"/"
        entries = [(name[1:], name[:1]) for name in names.split(b"\0")]
        yield from self._entries(level, directory, below, archived, entries)

    def _entries(self, level: int, directory: int, below: bytes, archived: bytes,
                 entries: Sequence[tuple[bytes, bytes]]) -> Iterator[Message]:
        """What has these names and kinds in a directory."""
        for start in range(0, len(entries), AHEAD):
            group = entries[start:start + AHEAD]
            opened = [self._open_ahead(directory, name) if kind == b"f" else -1 for name, kind in group]
            for (name, kind), fd in zip(group, opened, strict=True):
                if fd < 0 or not self._plain(fd, archived + name):
                    self._entry(directory, name, below + name, archived + name, kind, fd)
                yield from self._flush_full(level)

    def _one(self, tree: int, path: bytes, inode: bytes) -> None:
        """A file that is to be this one, for it has other names."""
        parent, _, name = path.rpartition(b"/")
        before = len(self._found.differences)
        try:
            directory = self._directories[tree].open(parent)
        except OSError as error:
            self._differs(self._trees[tree].name(path), unread(error))
        else:
            self._entry(directory, name, path, self._trees[tree].name(path), b"?", inode=inode)
        if any(why != CHANGED for _, why in self._found.differences[before:]):
            self._found.lost.append(self._trees[tree].name(path))

    def _excluded(self, archived: bytes) -> bool:
        pattern = self._excluder.pattern(archived)
        if pattern:
            self._found.excluded[pattern] = self._found.excluded.get(pattern, 0) + 1
        return pattern is not None

    def _is_volume(self, archived: bytes, name: bytes) -> bool:
        if not self._volume.fullmatch(name):
            return False
        self._differs(archived + name, ITSELF)
        return True

    def _is_cache(self, directory: int, name: bytes) -> bool:
        if not is_tag(directory) or self._excluder.is_included(name):
            return False
        self._differs(name, TAGGED)
        return True

    def _directory(self, fd: int, name: bytes, path: bytes) -> os.stat_result:
        status = os.fstat(fd)
        xattrs, why = xattrs_of(fd)
        head = self._batch.add(from_stat(name, status, xattrs, flags_of(fd)))
        if why:
            self._differs(name, why)
        # Where another tree goes, its own root is what the directory is like once that is mounted.
        if not path or name not in self._prefixes:
            self._again.append(head)
        return status

    @staticmethod
    def _open_ahead(directory: int, name: bytes) -> int:
        """A file's descriptor, and its content on the way into memory while those before it are dealt with."""
        try:
            fd = open_file(name, directory)
            os.posix_fadvise(fd, 0, PIECE, os.POSIX_FADV_WILLNEED)
        except OSError:                        # _entry() comes upon it again, and names it
            return -1
        return fd

    def _plain(self, fd: int, archived: bytes) -> bool:
        """The way of most files, all at once: True if this one is in the batch, and closed."""
        try:
            status = os.fstat(fd)
        except OSError:                        # _file() comes upon it again, and names it
            return False
        size = status.st_size
        if (size > PIECE or status.st_nlink != 1 or status.st_blocks * 512 < size or not S_ISREG(status.st_mode)
                or status.st_ino in self._noted or has_more(fd)):
            return False
        head = encode_plain(archived, status)
        if not head:
            return False
        why = self._batch.add_file(head, archived, size, fd)
        if size and not why and changed(status, fd):
            why = CHANGED
        if why:
            self._differs(archived, why)
        os.close(fd)
        return True

    def _entry(self, directory: int, name: bytes, path: bytes, archived: bytes, kind: bytes, fd: int = -1,
               inode: bytes = b"") -> None:
        """fd: a file that is open already; it is closed.

        inode: what it is to be, by the main process, which knows the names that others found. Without, several names
        make it one for the main process.
        """
        try:
            if kind == b"?":
                kind = kind_of(os.lstat(name, dir_fd=directory)).encode()
            if kind == b"f":
                self._file(fd if fd >= 0 else open_file(name, directory), path, archived, inode)
            elif kind != b"d":
                self._special(directory, name, path, archived, inode)
            elif inode:
                self._differs(archived, REPLACED)
            else:
                self._found.directories.append(path)
        except OSError as error:
            self._differs(archived, unread(error))

    def _file(self, fd: int, path: bytes, archived: bytes, inode: bytes) -> None:
        try:
            status = os.fstat(fd)
            if not S_ISREG(status.st_mode):
                self._differs(archived, REPLACED)
            elif self._elsewhere(status, path, archived, inode):
                pass
            elif (status.st_dev, status.st_ino) in self._swaps:
                self._swap(fd, status, archived)
            elif status.st_size > PIECE:
                self._found.large.append((path, inode))
            else:
                self._small(fd, status, archived)
        finally:
            os.close(fd)

    def _elsewhere(self, status: os.stat_result, path: bytes, archived: bytes, inode: bytes) -> bool:
        """Is it left out, or the main process's to deal with?"""
        why = ITSELF if (status.st_dev, status.st_ino) in self._left_out else ""
        if inode and inode != identity(status):
            why = REPLACED                     # the other names are not this file's
        if why:
            self._differs(archived, why)
            return True
        if not inode and status.st_nlink > 1:
            self._found.linked.append(
                (path, identity(status), status.st_nlink, status.st_size, status.st_mtime_ns))
            return True
        return False

    def _small(self, fd: int, status: os.stat_result, archived: bytes) -> None:
        size = status.st_size
        extents = extents_of(fd, status) if status.st_blocks * 512 < size else None
        xattrs, missing = xattrs_of(fd)
        head = encode(from_stat(archived, status, xattrs, flags_of(fd), extents))
        why = self._batch.add_piece(head, archived, size, fd, extents or ((0, size),), last=True) or missing
        if size and not why and changed(status, fd):
            why = CHANGED
        if why:
            self._differs(archived, why)

    def _swap(self, fd: int, status: os.stat_result, archived: bytes) -> None:
        """A swap file's size, and the page with its UUID and label: what it takes to make it anew."""
        extents = swap_extents(status.st_size)
        head = encode(from_stat(archived, status, xattrs_of(fd)[0], flags_of(fd), extents))
        self._differs(archived, self._batch.add_piece(head, archived, status.st_size, fd, extents, last=True) or SWAP)

    def _special(self, directory: int, name: bytes, path: bytes, archived: bytes, inode: bytes) -> None:
        status = os.lstat(name, dir_fd=directory)
        kind = kind_of(status)
        if kind == "s":
            self._differs(archived, SOCKET)
        elif kind in "fd":
            self._differs(archived, REPLACED)
        elif not self._elsewhere(status, path, archived, inode):
            link = os.readlink(name, dir_fd=directory) if kind == "l" else b""
            # No descriptor of these can be had that would do for attributes.
            xattrs, why = xattrs_of(b"/proc/self/fd/%d/%b" % (directory, name))
            self._batch.add(from_stat(archived, status, xattrs, link=link))
            if why:
                self._differs(archived, why)

    def _piece(self, level: int, number: int, first: int, source: bytes, head: bytes, extents: list[Extent], at: int,
               size: int, last: bool, archived: bytes) -> Iterator[Message]:
        """One frame of a large file, through the descriptor that the main process has open.

        The file is known by the number of its first piece: its source is soon another file's.
        """
        if self._piece_of[0] != first:
            if self._piece_of[1] >= 0:
                os.close(self._piece_of[1])
            try:
                self._piece_of = (first, os.open(source, os.O_RDONLY | os.O_CLOEXEC))
            except OSError:                    # removed on a server: as with any that can't be read, zeros and a name
                self._piece_of = (first, -1)
        why = self._batch.add_piece(head, archived, size, self._piece_of[1], extents, last=last)
        stored = self._batch.bytes
        frame = self._batch.frame(level)
        yield ("piece", number, why, stored, frame.size, frame.records, at, archived), frame.packed

    def _differs(self, path: bytes, why: str) -> None:
        self._found.differences.append((path, why))


def _type(entry: os.DirEntry) -> bytes:
    if entry.is_dir(follow_symlinks=False):
        return b"d"
    return b"l" if entry.is_symlink() else b"?"


def work(trees: tuple[tuple[bytes, bytes], ...], *rest: Any) -> Collector:
    """Begin as a worker process, with the fields of a Reading; see crew."""
    return Collector(Reading(tuple(Tree(*tree) for tree in trees), *rest))
