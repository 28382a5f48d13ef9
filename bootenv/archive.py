"""The backup file NAME.tar.zst: frames, their descriptions, the index; written once, read from either end.

The format, for whoever writes another reader. Integers in binary are little-endian; places are bytes from the start.

    file        = frame description frame description ... index index tail
    frame       = one zstd frame with content size and content checksum
    description = a skippable zstd frame: "ASRFRAME", u32 CRC-32 of the frame record that follows
    index       = a skippable zstd frame: "ASRINDEX", u64 length of the table, the table, the members
    tail        = a skippable zstd frame of 44 bytes: "ASR-TAIL", u64 place of the first index, u64 of the second,
                  u64 bytes of one index (both are the same bytes), u64 XXH3 of these, u32 CRC-32 of the 40 bytes
                  before it

zstd skips what is skippable, so that the frames together are one standard pax tar: `tar --zstd -xf` reads it (add
`--xattrs --xattrs-include='*' --acls --numeric-owner`, and `--delay-directory-restore`: where a directory has symbolic
links that lead out of it, tar makes them last and would leave the directory with a new time). Skippable frames have
the magic 0x184D2A5A here.

Every frame is a whole number of tar members, so that each can be read alone. A file too large for a frame has frames
of its own: the first ("m") with its header, the following ("+") with nothing but what comes next of its stored bytes.

A frame record is text that ends with NUL, its fields parted by a blank:

    SEQ KIND PLACE PACKED SIZE CHECKSUM AT FILES PATH
    SEQ       0, 1, 2, ... in the order of the file
    KIND      m members; + more of the file whose header is in the last "m" before it; h hard links, to be made when
              everything before is there; d directories once more, to be given their times when nothing is made any more
    PLACE PACKED SIZE     where the zstd frame begins, its bytes, its bytes unpacked
    CHECKSUM  the zstd frame's content checksum (its last four bytes), 8 hex digits
    AT        "+": how many of the member's stored bytes come before this frame; else 0
    FILES     members that begin in it and aren't directories
    PATH      "+": the member's path, in the description only

Descriptions come after their frame: with PACKED, one that is found by its signature gives the frame before it, even
where bytes are missing, so a file without its end is read up to its last whole frame.

The index's table is one or more zstd frames (with checksums) of all frame records. The members are zstd frames, too,
of text: "=SEQ", then a record for each member in that frame ("d" frames have none, for their members are repeated),
each ended by NUL:

    KIND OFFSET HEAD CHECKSUM STORED SHA256 SIZE PATH
    KIND      f file, d directory, l symlink, h hard link, c b devices, p fifo; "+": a "+" frame's part of a file
    OFFSET HEAD           where in the unpacked frame its headers begin, and their bytes (with a map of holes)
    CHECKSUM  XXH3 (64 bits, seed 0) of these headers and of the content after them, 16 hex digits
    STORED    bytes of that content, in this frame
    SHA256    of it; "-" where there is none
    SIZE      the file's bytes as a program reads them
    PATH      any bytes but NUL

Verifying compares CHECKSUM, which takes next to no time on any processor; what is restored from a damaged frame must
have its SHA256, too.

Volumes NAME.001, NAME.002, ... joined are the same file.
"""

import errno
import fcntl
import os
import re
import struct
import tempfile
import time
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from itertools import chain, count, pairwise
from pathlib import Path
from typing import IO, NamedTuple, Self
from zlib import crc32

import zstandard
from xxhash import xxh3_64

from bootenv.errors import BackupNotFound, DamagedBackup, DestinationFull, DestinationRefused, refused

SKIPPABLE = 0x184D2A5A
STDOUT = Path("/dev/stdout")
FRAME, INDEX, TAIL = b"ASRFRAME", b"ASRINDEX", b"ASR-TAIL"
MAX_FRAME = 64 * 2**20         # no writer makes larger ones; a reader that believed any size could be made to run out
_MAX_PACKED = MAX_FRAME + 2**20
_TAIL_SIZE = 8 + 44
_FLUSH = _AHEAD = 32 * 2**20
_CHUNK = 2**20                 # of index text under one checksum
_MOST_MISSING = 100            # volumes in a row


class Frame(NamedTuple):
    """A frame ready to be written, and what the index is to say of it."""

    kind: str
    packed: bytes | memoryview
    size: int
    files: int
    records: bytes             # the members, each ended by NUL
    at: int = 0
    path: bytes = b""


class Place(NamedTuple):
    """A frame record: where a frame of a backup lies."""

    seq: int
    kind: str
    place: int
    packed: int
    size: int
    checksum: int
    at: int
    files: int
    path: bytes


class Record(NamedTuple):
    """A member record of the index."""

    kind: str
    offset: int
    head: int
    checksum: str
    stored: int
    sha256: str
    size: int
    path: bytes


class DamagedFrame(Exception):
    """A frame isn't what its checksum says."""


@lru_cache(maxsize=2)
def _compressor(level: int) -> zstandard.ZstdCompressor:
    return zstandard.ZstdCompressor(level=level, write_checksum=True, write_content_size=True)


def pack(data: bytes | memoryview, level: int) -> bytes:
    return _compressor(level).compress(data)


def unpack(packed: bytes, place: Place) -> bytes:
    """The content of a frame. Raises DamagedFrame unless it is, to the last bit, what was written."""
    if len(packed) != place.packed or int.from_bytes(packed[-4:], "little") != place.checksum:
        raise DamagedFrame
    try:
        if zstandard.frame_content_size(packed) != place.size or place.size > MAX_FRAME:
            raise DamagedFrame
        return _decompressor().decompress(packed)
    except zstandard.ZstdError as error:
        raise DamagedFrame from error


def salvage(packed: bytes, place: Place) -> bytes:
    """What a damaged frame still unpacks to; any byte of it may be wrong, and the end may be missing."""
    stream = _decompressor().decompressobj()
    pieces = []
    size = 0
    # Small bites: a call that fails gives nothing of what it had already unpacked. The checksum is the last bite.
    cuts = [*range(0, max(len(packed) - 4, 0), 1024), max(len(packed) - 4, 0), len(packed)]
    try:
        for start, end in pairwise(cuts):
            pieces.append(stream.decompress(packed[start:end]))
            size += len(pieces[-1])
            if size > place.size or stream.eof:
                break
    except zstandard.ZstdError:
        pass                                   # as far as it goes is what was asked for
    return b"".join(pieces)[:place.size]


@lru_cache(maxsize=1)
def _decompressor() -> zstandard.ZstdDecompressor:
    return zstandard.ZstdDecompressor()


def _skippable(*parts: bytes) -> bytes:
    return struct.pack("<II", SKIPPABLE, sum(map(len, parts))) + b"".join(parts)


def _description(place: Place) -> bytes:
    text = _frame_record(place)
    return _skippable(FRAME, struct.pack("<I", crc32(text)), text)


def _frame_record(place: Place) -> bytes:
    return b"%d %b %d %d %d %08x %d %d %b\0" % (
        place.seq, place.kind.encode(), place.place, place.packed, place.size, place.checksum, place.at, place.files,
        place.path)


def _parse_frame_record(text: bytes) -> Place:
    seq, kind, place, packed, size, checksum, at, files, path = text.split(b" ", 8)
    if int(packed) > _MAX_PACKED:
        raise ValueError("a frame is larger than any can be")
    return Place(int(seq), kind.decode(), int(place), int(packed), int(size), int(checksum, 16), int(at), int(files),
                 path)


def member_record(kind: str, offset: int, head: int, checksum: str, stored: int, sha256: str, size: int,
                  path: bytes) -> bytes:
    return f"{kind} {offset} {head} {checksum} {stored} {sha256} {size} ".encode() + path + b"\0"


def parse_records(text: bytes) -> list[Record]:
    """The records of a frame's members, each ended by NUL."""
    return [_parse_member_record(record) for record in text.split(b"\0") if record]


def _parse_member_record(text: bytes) -> Record:
    kind, offset, head, checksum, stored, sha256, size, path = text.split(b" ", 7)
    return Record(kind.decode(), int(offset), int(head), checksum.decode(), int(stored), sha256.decode(), int(size),
                  path)


# Writing

class Output:
    """Where a backup is written: NAME.part, renamed to NAME when it is whole, or NAME.001.part, ... for volumes.

    What a run that was killed has left there is written over; what another one is writing is not, nor is a backup that
    has its name. STDOUT, whatever it leads to, and what is no regular file (a pipe, a terminal, a tape) are written to
    as they are. Volumes are begun by themselves where the file system holds no larger file. Raises DestinationFull,
    DestinationRefused.
    """

    def __init__(self, destination: Path, volume_size: int = 0):
        self.destination = destination
        self.volume_size = volume_size
        self.written = 0
        self.seconds = 0.0                     # spent waiting for the destination
        self.parts: list[Path] = []            # the temporary names, in order
        self._here = 0                         # bytes in the newest volume
        self._flushed = 0                      # of them on their way to the disk
        self._fd = -1
        self._first = -1                       # the first volume's; its lock says that this backup is being written
        try:
            if destination == STDOUT:
                # Not by its name: to be opened again it would have to be a file, and be written over from its start.
                self._fd, self.volume_size = os.dup(1), 0
            elif destination.exists() and not destination.is_file():
                self.volume_size = 0
                self._fd = os.open(destination, os.O_WRONLY | os.O_CLOEXEC)
            else:
                self._begin_alone()
        except OSError as error:
            self.abort()
            raise self._failure(error) from error
        except DestinationRefused:
            self.abort()
            raise

    def inode(self) -> tuple[int, int]:
        """Device and inode of what is being written, so that a backup of its own place leaves it out."""
        status = os.fstat(self._fd)
        return status.st_dev, status.st_ino

    def write(self, *pieces: bytes | memoryview) -> None:
        started = time.monotonic()
        try:
            for piece in pieces:
                self._write(memoryview(piece))
        except OSError as error:
            raise self._failure(error) from error
        self.seconds += time.monotonic() - started

    def sync(self) -> None:
        """Wait until what is written is safely on the disk."""
        try:
            if self.parts:
                os.fsync(self._fd)
        except OSError as error:
            raise self._failure(error) from error

    def give_up(self) -> None:
        """Leave all as it is, for the next backup to remove: whatever were done could hang."""
        _given_up.update({self._fd, self._first} - {-1})
        self._fd = self._first = -1
        self.parts = []

    def commit(self) -> None:
        """Give what is written its name, once it is safely on the disk."""
        self.sync()
        try:
            # The first volume last: a set without it doesn't look whole.
            for part in reversed(self.parts):
                part.rename(part.with_suffix(""))
            if self.parts:
                fsync_directory(self.destination.parent)
            self._close()
        except OSError as error:
            raise self._failure(error) from error
        self.parts = []

    def abort(self) -> None:
        """Remove what isn't whole; after commit() there is nothing to remove."""
        for part in self.parts:
            with suppress(OSError):            # a destination that is gone: what went wrong first is what matters
                part.unlink(missing_ok=True)
        self.parts = []
        with suppress(OSError):
            self._close()

    def _close(self) -> None:
        """Only when nothing has the temporary names any more: without its lock, the next backup writes over it."""
        open = {self._fd, self._first} - {-1}
        self._fd = self._first = -1
        for fd in open:
            os.close(fd)

    def _write(self, data: memoryview) -> None:
        while data:
            room = self.volume_size - self._here if self.volume_size else len(data)
            if not room:
                self._next_volume()
                continue
            try:
                count = os.write(self._fd, data[:room])
            except OSError as error:
                if error.errno != errno.EFBIG or not self._here or not self.parts:
                    raise
                self.volume_size = self.volume_size or self._here
                self._next_volume()
                continue
            self._here += count
            self.written += count
            if self.parts and self._here - self._flushed >= _FLUSH:        # a pipe has no such thing
                # Begins to write it to the disk now, so that there is little left to wait for at the end, and keeps
                # the backup from driving the machine's own files out of its memory.
                os.posix_fadvise(self._fd, 0, self._here, os.POSIX_FADV_DONTNEED)
                self._flushed = self._here
            data = data[count:]

    def _next_volume(self) -> None:
        if len(self.parts) == 1 and self.parts[0] == _part(self.destination):
            first = _part(self._volume(1))
            self.parts[0].rename(first)
            self.parts[0] = first
        os.fsync(self._fd)
        if self._fd != self._first:
            os.close(self._fd)
        self._fd = -1
        self._begin(self._volume(len(self.parts) + 1))

    def _begin_alone(self) -> None:
        """Raises DestinationRefused if another backup has the name, or is about to."""
        one, first = _part(self.destination), _part(self._volume(1))
        self._begin(self._volume(1) if self.volume_size else self.destination)
        self._first = self._fd
        # One that is written in the other way, as one file or as volumes, is locked by the other name.
        if (other := one if self.volume_size else first).exists():
            os.close(_locked(other))
        _check_free(self.destination)

    def _begin(self, name: Path) -> None:
        part = _part(name)
        self._fd = _locked(part)
        self.parts.append(part)
        os.ftruncate(self._fd, 0)
        self._here = self._flushed = 0

    def _volume(self, number: int) -> Path:
        return self.destination.with_name(f"{self.destination.name}.{number:03d}")

    def _failure(self, error: OSError) -> DestinationFull | DestinationRefused:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return DestinationFull(f"{self.destination.parent} is full: the backup does not fit.",
                                   hint="Make room there, or choose another place for the backup.")
        return DestinationRefused(f"{self.destination} cannot be written: {os.strerror(error.errno or errno.EIO)}.",
                                  hint="Check the place for the backup and its cable or network, then try again.")


def check_new(path: Path) -> None:
    """Raises DestinationRefused for a backup that is there already, or can't be for want of a folder."""
    if not path.parent.is_dir():
        raise refused(f"There is no folder {path.parent}.", "Make it first, or mount the disk that has it.")
    _check_free(path)


def _check_free(path: Path) -> None:
    if there := files_of(path):
        raise refused(f"{there[0].name} is there already.", "Choose another name; nothing is overwritten.")


_given_up: set[int] = set()            # descriptors that are locked as long as this process lives


def _part(name: Path) -> Path:
    return name.with_name(name.name + ".part")


def _locked(part: Path) -> int:
    """Opens a file, made if it is not there, that no other process writes. Raises DestinationRefused if one does."""
    while True:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                return fd                      # a file system without locks
            ours = any(os.path.samestat(os.fstat(fd), os.fstat(other)) for other in _given_up)
            os.close(fd)
            if ours:                           # a new file: what is on its way into that one may arrive yet
                part.unlink(missing_ok=True)
                continue
            raise refused(f"{part.stem} is being written by another backup.",
                          "Wait until that has ended, or choose another name.") from None
        # Between the two, the one that had the lock may have given the file its name, or removed it.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.lstat(part)):
                return fd
        os.close(fd)


def lock_if_abandoned(part: Path) -> int:
    """The descriptor of what a backup has begun, locked now as by that; -1 if one under way has the lock, or may."""
    try:
        fd = os.open(part, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return -1
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(fd)
        return -1
    return fd


def fsync_directory(directory: Path) -> None:
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class Writer:
    """Frames to an Output, and the index to its end.

    The index waits in unnamed temporary files, compressed: at two million files it would not fit into the memory
    that the whole engine may take.
    """

    def __init__(self, output: Output):
        self._output = output
        self._table = Spool()
        self._members = Spool()
        self._seq = 0

    def add(self, frame: Frame) -> None:
        place = Place(self._seq, frame.kind, self._output.written, len(frame.packed), frame.size,
                      int.from_bytes(frame.packed[-4:], "little"), frame.at, frame.files, frame.path)
        self._output.write(frame.packed, _description(place))
        self._table.add(_frame_record(place._replace(path=b"")))
        if frame.records:
            self._members.add(b"=%d\0%b" % (self._seq, frame.records))
        self._seq += 1

    def finish(self) -> None:
        table, members = self._table.flush(), self._members.flush()
        head = struct.pack("<II8sQ", SKIPPABLE, 8 + 8 + table + members, INDEX, table)
        places = []
        for _ in range(2):
            places.append(self._output.written)
            checksum = xxh3_64()
            for piece in chain((head,), self._table.packed(), self._members.packed()):
                checksum.update(piece)
                self._output.write(piece)
        tail = TAIL + struct.pack("<QQQQ", *places, len(head) + table + members, checksum.intdigest())
        self._output.write(_skippable(tail, struct.pack("<I", crc32(tail))))


def _temporary_directory() -> str | None:
    """For files that may be large: /tmp lies in memory on many systems. None: where the user's environment says."""
    return "/var/tmp" if "TMPDIR" not in os.environ and os.access("/var/tmp", os.W_OK | os.X_OK) else None


class Spool:
    """Bytes that wait in an unnamed temporary file, in zstd frames of about 1 MiB."""

    def __init__(self) -> None:
        self._file: IO[bytes] = tempfile.TemporaryFile(dir=_temporary_directory())      # noqa: SIM115 - lives as long
        self._pending: list[bytes] = []
        self._size = 0
        self.flushed = 0                       # bytes that are in the file

    def __bool__(self) -> bool:
        return bool(self._size or self.flushed)

    def add(self, data: bytes) -> None:
        self._pending.append(data)
        self._size += len(data)
        if self._size >= _CHUNK:
            self.flush()

    def flush(self) -> int:
        """All that was added is in the file; its bytes."""
        if self._size:
            try:
                self.flushed += self._file.write(pack(b"".join(self._pending), 1))
                self._file.flush()             # else an error would come later, from anywhere
            except OSError as error:
                raise OSError(error.errno, f"A temporary file could not be written: {error.strerror}") from error
            self._pending, self._size = [], 0
        return self.flushed

    def packed(self) -> Iterator[bytes]:
        self._file.seek(0)
        while piece := self._file.read(_CHUNK):
            yield piece

    def unpacked(self) -> Iterator[bytes]:
        """What was added, in pieces that each are the whole of one or more of those added."""
        self.flush()
        self._file.seek(0)
        data = b""
        while data or self._file.tell() < self.flushed:
            data += self._file.read(_CHUNK)
            stream = _decompressor().decompressobj()
            pieces = [stream.decompress(data)]
            while not stream.eof:
                pieces.append(stream.decompress(self._file.read(_CHUNK)))
            data = stream.unused_data
            yield b"".join(pieces)


# Reading

class Volumes:
    """A backup's bytes, be they in one file or in volumes. A missing volume reads as zeros, which no frame is."""

    def __init__(self, path: Path):
        """Raises BackupNotFound."""
        self._parts: list[tuple[int, int, int]] = []       # where it begins, its size, its descriptor or -1
        paths = _volume_paths(path)
        sizes = [p.stat().st_size if p.exists() else None for p in paths]
        full = max((s for s in sizes if s is not None), default=0)
        start = 0
        for volume, size in zip(paths, sizes, strict=True):
            fd = os.open(volume, os.O_RDONLY | os.O_CLOEXEC) if size is not None else -1
            self._parts.append((start, full if size is None else size, fd))
            start += full if size is None else size
        self._path = path
        self._first = [self._beginning(fd) for _, _, fd in self._parts]
        self.missing = [p.name for p, s in zip(paths, sizes, strict=True) if s is None]
        self.size = start
        self._prefetched = 0

    def read(self, place: int, size: int) -> bytes:
        """Bytes at a place; fewer at the end; zeros where the medium gives an error."""
        pieces = []
        for start, length, fd in self._parts:
            if start < place + size and place < start + length:
                begin = max(place, start)
                count = min(place + size, start + length) - begin
                pieces.append(_pread(fd, count, begin - start))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def prefetch(self, place: int) -> None:
        """Have what follows a place read into memory, for the workers: each alone seems to jump about in the file."""
        if place + _AHEAD // 2 < self._prefetched:
            return
        for start, length, fd in self._parts:
            begin, end = max(place, self._prefetched, start), min(place + _AHEAD, start + length)
            if begin < end and fd >= 0:
                os.posix_fadvise(fd, begin - start, end - begin, os.POSIX_FADV_WILLNEED)
        self._prefetched = place + _AHEAD

    def check_there(self) -> None:
        """Raises BackupNotFound if what was read at first can't be read again: its disk is gone, or its server."""
        for (_, _, fd), first in zip(self._parts, self._first, strict=True):
            if first and self._beginning(fd) != first:
                raise BackupNotFound(f"The backup {self._path.name} cannot be read any more: its disk was "
                                     "disconnected, or fails, or its server does not answer.", untouched="",
                                     hint="Connect it again and press ENTER.")

    @staticmethod
    def _beginning(fd: int) -> bytes:
        """Of a volume, from its medium and not from memory; b"" if that gives an error."""
        try:
            os.posix_fadvise(fd, 0, _CHUNK, os.POSIX_FADV_DONTNEED)
            return os.pread(fd, 4096, 0)
        except OSError:
            return b""

    def close(self) -> None:
        for _, _, fd in self._parts:
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _pread(fd: int, count: int, offset: int) -> bytes:
    if fd < 0:
        return bytes(count)
    data = b""
    while len(data) < count:
        try:
            piece = os.pread(fd, count - len(data), offset + len(data))
        except OSError:
            piece = bytes(min(4096, count - len(data)))    # a bad sector costs its frame and no more
        if not piece:
            break
        data = data + piece if data else piece
    return data


def _volume_paths(path: Path) -> list[Path]:
    numbered = re.fullmatch(r"(.+)\.(\d{3,})", path.name)
    is_file = path.is_file()
    if is_file and (not numbered or _is_one(path)):
        return [path]
    base = path.with_name(numbered[1]) if is_file and numbered else path
    found = _numbered(base)
    last = 0                                   # of the set: a number far beyond it is part of a name
    for number in sorted(found):
        if number - last > _MOST_MISSING:
            break
        last = number
    if is_file and numbered and int(numbered[2]) > last:
        return [path]
    if not last:
        raise BackupNotFound(f"There is no backup at {base}.", hint="Connect the disk that holds the backup.")
    return [found.get(n, base.with_name(f"{base.name}.{n:03d}")) for n in range(1, last + 1)]


def _is_one(path: Path) -> bool:
    """Is a whole backup in this one file, whatever its name? Then its end says that it is where the file ends."""
    with path.open("rb") as file, suppress(OSError):
        size = os.fstat(file.fileno()).st_size
        tail = _parse_tail(os.pread(file.fileno(), _TAIL_SIZE, max(size - _TAIL_SIZE, 0)))
        return tail is not None and tail.second + tail.size + _TAIL_SIZE == size
    return False


def _numbered(path: Path) -> dict[int, Path]:
    """What has a backup's name and a volume's number."""
    return {int(p.suffix[1:]): p for p in path.parent.glob(_glob_escape(path.name) + ".*")
            if re.fullmatch(r"\.\d{3,}", p.suffix)}


def files_of(path: Path) -> list[Path]:
    """What there is of a backup: its file, or its volumes."""
    found = _numbered(path)
    end = next(number for number in count(1000) if number not in found)        # NAME.20261127 is none
    return [file for file in (path, *(found[number] for number in sorted(found) if number < end)) if file.exists()]


def _glob_escape(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


class Tail(NamedTuple):
    """What a backup's end says of its indexes."""

    first: int                 # place
    second: int
    size: int                  # bytes of each
    checksum: int


def at_end(volumes: Volumes) -> Tail | None:
    """None if a backup's last bytes are not there."""
    return _parse_tail(volumes.read(max(volumes.size - _TAIL_SIZE, 0), _TAIL_SIZE))


def _parse_tail(data: bytes) -> Tail | None:
    if data[8:16] != TAIL or data[48:] != struct.pack("<I", crc32(data[8:48])):
        return None
    return Tail(*struct.unpack_from("<QQQQ", data, 16))


_NO_INDEX = (zstandard.ZstdError, ValueError, struct.error)    # what reading something else for one may raise


class Index:
    """What a backup says of its frames and members, from the index or, without one, from the frames themselves.

    `whole` is False where the index is lost: then there are no member records, and the frames are those found.
    Raises DamagedBackup if there is neither.
    """

    def __init__(self, volumes: Volumes):
        self._volumes = volumes
        self._place = self._find()
        self.whole = self._place >= 0
        if not self.whole and next(self._scan(), None) is None:
            raise DamagedBackup("Nothing in the backup can be read.", hint="Use another backup of this computer.")

    def frames(self) -> Iterator[Place]:
        """Every frame, in the order of the file."""
        if not self.whole:
            yield from self._scan()
            return
        with self._still_whole():
            table, _ = self._parts(self._place)
            for text in self._chunks(table):
                yield from map(_parse_frame_record, text.split(b"\0")[:-1])

    def members(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, list[Record]]]:
        """Each frame's members, by its number; of the frames wanted, or all."""
        for seq, records in self.groups(wanted):
            yield seq, parse_records(records)

    def groups(self, wanted: Collection[int] | None = None) -> Iterator[tuple[int, bytes]]:
        """The same, as parse_records() takes them."""
        if not self.whole:
            return
        with self._still_whole():
            _, members = self._parts(self._place)
            for text in self._chunks(members):
                for group in text[1:].split(b"\0="):
                    head, _, rest = group.partition(b"\0")
                    if wanted is None or int(head) in wanted:
                        yield int(head), rest

    @contextmanager
    def _still_whole(self) -> Iterator[None]:
        try:
            yield
        except _NO_INDEX:
            self._volumes.check_there()
            raise DamagedBackup("The backup's index could be read, and cannot be any more.", untouched="",
                                hint="Its disk is failing: try another copy of it.") from None

    def _find(self) -> int:
        """The place of an index that is whole, -1 if there is none."""
        if tail := at_end(self._volumes):
            for place in (tail.first, tail.second):
                if self._checksum(place, tail.size) == tail.checksum:
                    return place
            return -1
        for place, size in self._search(INDEX):
            if self._end_of_frames(place) not in (place, place - size):
                continue
            try:
                for part in self._parts(place):
                    for _ in self._chunks(part):
                        pass
            except _NO_INDEX:
                continue
            return place
        return -1

    def _checksum(self, place: int, size: int) -> int:
        checksum = xxh3_64()
        for at in range(0, size, _CHUNK):
            checksum.update(self._volumes.read(place + at, min(_CHUNK, size - at)))
        return checksum.intdigest()

    def _end_of_frames(self, place: int) -> int:
        """Where the frames end by the index at a place; elsewhere than at an index if it is the one of a backup that
        lies in this one, as a file. -1 if it can't be read."""
        try:
            text, = deque(self._chunks(self._parts(place)[0]), 1)
            last = _parse_frame_record(text.split(b"\0")[-2])
        except (*_NO_INDEX, IndexError):
            return -1
        return last.place + last.packed + len(_description(last))

    def _parts(self, place: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(place, bytes) of an index's table and of its members."""
        head = self._volumes.read(place, 24)
        magic, length, signature, table = struct.unpack("<II8sQ", head)
        members = length - 16 - table
        if magic != SKIPPABLE or signature != INDEX or members < 0 or place + 8 + length > self._volumes.size:
            raise ValueError("not an index")
        return (place + 24, table), (place + 24 + table, members)

    def _chunks(self, part: tuple[int, int]) -> Iterator[bytes]:
        place, left = part
        data = b""
        while left or data:
            stream = _decompressor().decompressobj()
            pieces = []
            while not stream.eof:
                if not data:
                    if not left:
                        raise zstandard.ZstdError("cut off")
                    data = self._volumes.read(place, min(left, _CHUNK))
                    place += len(data)
                    left -= len(data) or left
                pieces.append(stream.decompress(data))
                data = stream.unused_data
            yield b"".join(pieces)

    def _search(self, signature: bytes) -> Iterator[tuple[int, int]]:
        """(place, bytes) of the skippable frames with this signature."""
        place, step = 0, 8 * 2**20
        while place < self._volumes.size:
            data = self._volumes.read(place, step + 16)
            at = data.find(signature, 8)
            while at >= 0:
                magic, length = struct.unpack_from("<II", data, at - 8)
                if magic == SKIPPABLE:
                    yield place + at - 8, 8 + length
                at = data.find(signature, at + 1)
            place += step

    def _scan(self) -> Iterator[Place]:
        """The frames by their descriptions: what is left when the index is lost."""
        last, least = -1, self._volumes.size
        for place, size in self._search(FRAME):
            try:
                data = self._volumes.read(place + 16, min(size, 2**17) - 16)
                if crc32(data[4:]) != int.from_bytes(data[:4], "little"):
                    continue
                frame = _parse_frame_record(data[4:].removesuffix(b"\0"))
            except ValueError:
                continue
            # One that lies where two searches overlap is found twice. Where bytes are missing, what follows is nearer
            # to the start than it says; one that is farther belongs to a backup that lies in this one, as a file.
            shift = place - frame.packed - frame.place
            if place > last and shift <= least:
                last, least = place, shift
                yield frame._replace(place=place - frame.packed)
