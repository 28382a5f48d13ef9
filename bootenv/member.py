"""One member of the backup as tar blocks: pax headers of POSIX.1-2001 with the keys that GNU tar, star and bsdtar know.

Where a key isn't in POSIX: SCHILY.acl.access and SCHILY.acl.default (ACLs as text, numeric ids), SCHILY.xattr.NAME
(every other extended attribute, raw bytes), GNU.sparse.* 1.0 (holes), and one of our own, ASR.flags (the letters of
lsattr). Names are bytes, times are integers in nanoseconds: floats and text lose some.
"""

import os
import stat
import struct
from bisect import bisect_right
from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import NamedTuple
from zlib import adler32

BLOCK = 512
_PAGE = os.sysconf("SC_PAGE_SIZE")

# Letters of lsattr(1) for the FS_*_FL bits of linux/fs.h that can be set again. What a file system shows for
# itself (extents, index, inline data, verity, encryption) is left out.
FLAGS = {
    "s": 0x1, "u": 0x2, "c": 0x4, "S": 0x8, "i": 0x10, "a": 0x20, "d": 0x40, "A": 0x80, "m": 0x400, "j": 0x4000,
    "t": 0x8000, "D": 0x10000, "T": 0x20000, "C": 0x800000, "x": 0x2000000, "P": 0x20000000, "F": 0x40000000,
}

_TYPES = {"f": b"0", "h": b"1", "l": b"2", "c": b"3", "b": b"4", "d": b"5", "p": b"6", "x": b"x"}
_KINDS = {code: kind for kind, code in _TYPES.items() if kind != "x"}
_ACLS = {"system.posix_acl_access": b"SCHILY.acl.access", "system.posix_acl_default": b"SCHILY.acl.default"}
_ACL_NAMES = {key: name for name, key in _ACLS.items()}
_ACL_TAGS = {0x01: b"user", 0x02: b"user", 0x04: b"group", 0x08: b"group", 0x10: b"mask", 0x20: b"other"}
_PLAIN_FILL = bytes(BLOCK - 60)
_NOW = 10**18                  # ns, 2001; ten times as much is 2286
_MAX_OCTAL7, _MAX_OCTAL11 = 8**7, 8**11
_MAX_SIZE = 2**63 - 1          # off_t

Extent = tuple[int, int]       # offset and length, bytes


class Member(NamedTuple):
    """A file, directory, link or special file and all that is kept of it but its content.

    A NamedTuple: a frozen dataclass takes four times as long to make, and there is one for every file.
    """

    path: bytes                # relative, without a slash at either end; b"" is the tree's root
    kind: str                  # f file, d directory, l symlink, h hard link, c and b devices, p fifo
    mode: int = 0              # permission bits with setuid, setgid, sticky
    uid: int = 0
    gid: int = 0
    mtime: int = 0             # ns since 1970, may be negative
    atime: int = 0
    size: int = 0              # bytes of content as a program reads them
    link: bytes = b""          # what a symlink holds; the path in the archive that a hard link is another name of
    device: int = 0            # st_rdev of c and b
    xattrs: tuple[tuple[str, bytes], ...] = ()       # ACLs among them, as the kernel's system.posix_acl_*
    flags: str = ""            # letters of FLAGS
    extents: tuple[Extent, ...] | None = None        # where the data of a file with holes lie; None: no holes


def kind_of(status: os.stat_result) -> str:
    """A Member's kind; "s" for a socket, which no archive can hold."""
    return _STAT_KINDS.get(status.st_mode & 0o170000, "s")


def from_stat(path: bytes, status: os.stat_result, xattrs: tuple[tuple[str, bytes], ...], flags: str = "",
              extents: tuple[Extent, ...] | None = None, link: bytes = b"") -> Member:
    """What stat knows of a file, and what else was found out."""
    kind = kind_of(status)
    return Member(path, kind, status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_mtime_ns,
                  status.st_atime_ns, status.st_size if kind == "f" else 0, link,
                  status.st_rdev if kind in "cb" else 0, xattrs, flags, extents)


_STAT_KINDS = {stat.S_IFREG: "f", stat.S_IFDIR: "d", stat.S_IFLNK: "l", stat.S_IFCHR: "c", stat.S_IFBLK: "b",
               stat.S_IFIFO: "p"}


def padding(size: int) -> int:
    """Bytes that fill the last tar block."""
    return -size % BLOCK


def stored_size(member: Member) -> int:
    """Bytes of content that follow encode()'s blocks, without the padding."""
    if member.kind != "f":
        return 0
    return member.size if member.extents is None else sum(length for _, length in member.extents)


def swap_extents(size: int) -> tuple[Extent, ...]:
    """What is kept of a swap file: its first page, where its UUID and label are."""
    return ((0, _PAGE), (size, 0))


def is_swap(member: Member, content: bytes | memoryview) -> bool:
    """Is it a swap file of which only the first page was kept? It needs all its blocks: swapon(8) takes no holes."""
    return member.extents == swap_extents(member.size) and content[_PAGE - 10:_PAGE] == b"SWAPSPACE2"


def encode(member: Member) -> bytes:
    """The blocks that stand before the member's content: pax header, ustar header and, with holes, their map."""
    path, kind, mode, uid, gid, mtime, atime, size, _, _, xattrs, flags, extents = member
    if kind == "f" and not xattrs and not flags and extents is None:
        return _encode_plain(path, mode, uid, gid, size, mtime, atime) or _encode_any(member)
    return _encode_any(member)


def encode_plain(path: bytes, status: os.stat_result) -> bytes:
    """encode() of a file that has no holes, extended attributes or flags; b"" if its headers aren't plain."""
    return _encode_plain(path, status.st_mode & 0o7777, status.st_uid, status.st_gid, status.st_size,
                         status.st_mtime_ns, status.st_atime_ns)


def _encode_plain(path: bytes, mode: int, uid: int, gid: int, size: int, mtime: int, atime: int) -> bytes:
    """Most files: nothing in their pax header but times of this age. All at once, for it is done for each file."""
    if not (len(path) < 100 and path.isascii() and uid < _MAX_OCTAL7 and gid < _MAX_OCTAL7 and size < _MAX_OCTAL11
            and _NOW <= mtime < 10 * _NOW and _NOW <= atime < 10 * _NOW):
        return b""
    seconds, fraction = divmod(mtime, 10**9)
    head = b"%b%b%011o\0%011o\0" % (path.ljust(100, b"\0"), _owner(mode, uid, gid), size, seconds)
    pax, end, end_sum = _plain_parts()
    return b"%b30 mtime=%d.%09d\n30 atime=%d.%09d\n%b%b%06o\0 %b" % (
        pax, seconds, fraction, *divmod(atime, 10**9), _PLAIN_FILL, head, (adler32(head) & 0xFFFF) - 1 + end_sum, end)


@lru_cache(maxsize=1)
def _plain_parts() -> tuple[bytes, bytes, int]:
    """The pax header of two times, what follows a file's sum, and what that and the sum's blanks add up to."""
    end = b"0" + bytes(100) + _end(0)
    return _pax_header(60), end, _byte_sum(end, b"        ")


def _encode_any(member: Member) -> bytes:
    records = [_times(member.mtime, member.atime)]
    holes = b""
    size = stored_size(member)
    path = name = _name(member)
    if member.extents is not None:
        holes = _sparse_map(member.extents)
        size += len(holes)
        records += [_record(b"GNU.sparse.major", b"1"), _record(b"GNU.sparse.minor", b"0"),
                    _record(b"GNU.sparse.name", path), _record(b"GNU.sparse.realsize", b"%d" % member.size)]
        name = b"GNUSparseFile.0/" + path.rpartition(b"/")[2]       # the name that a reader without holes shows
    elif len(path) >= 100:
        records.append(_record(b"path", path))
    if len(member.link) >= 100:
        records.append(_record(b"linkpath", member.link))
    if size >= _MAX_OCTAL11:
        records.append(_record(b"size", b"%d" % size))
    if member.uid >= _MAX_OCTAL7:
        records.append(_record(b"uid", b"%d" % member.uid))
    if member.gid >= _MAX_OCTAL7:
        records.append(_record(b"gid", b"%d" % member.gid))
    for key, value in member.xattrs:
        records.append(_xattr_record(key, value))
    if member.flags:
        records.append(_record(b"ASR.flags", member.flags.encode()))
    if not (path.isascii() and member.link.isascii()) and not (_is_utf8(path) and _is_utf8(member.link)):
        records.insert(0, _record(b"hdrcharset", b"BINARY"))        # POSIX: the names that follow aren't UTF-8
    return _pax(b"".join(records)) + _ustar(name, member, size) + holes


def _name(member: Member) -> bytes:
    if member.kind == "d":
        return member.path + b"/" if member.path else b"./"
    return member.path


def decode(data: bytes | memoryview, at: int) -> tuple[Member, int]:
    """The member whose blocks begin at `at`, and where its content begins. Raises ValueError on anything else."""
    return _decode_plain(bytes(data[at:at + 3 * BLOCK]), at + 3 * BLOCK) or _decode_any(data, at)


def _decode_plain(blocks: bytes, content: int) -> tuple[Member, int] | None:
    """What _encode_plain() made; None for anything else, right or wrong."""
    pax, end, end_sum = _plain_parts()
    head = blocks[1024:1172]
    if not (blocks.startswith(pax) and blocks.endswith(end) and len(blocks) == 3 * BLOCK
            and blocks[512:521] == b"30 mtime=" and blocks[542:551] == b"30 atime="
            and _byte_sum(head) + end_sum == _octal(blocks[1172:1180])):
        return None
    return Member(
        _text(head[:100]), "f", *_parse_owner(head[100:124]),
        int(blocks[521:531]) * 10**9 + int(blocks[532:541]), int(blocks[551:561]) * 10**9 + int(blocks[562:571]),
        int(head[124:135], 8)), content


def _decode_any(data: bytes | memoryview, at: int) -> tuple[Member, int]:
    fields: dict[bytes, bytes] = {}
    block = _checked(data, at)
    if block[156:157] == b"x":
        size = _octal(block[124:136])
        at += BLOCK
        fields = dict(_pax_records(bytes(data[at:at + size]), size))
        at += size + padding(size)
        block = _checked(data, at)
    at += BLOCK
    if block[156:157] not in _KINDS:
        raise ValueError("a kind of member that no backup has")
    kind = _KINDS[block[156:157]]
    size = int(fields[b"size"]) if b"size" in fields else _octal(block[124:136])
    extents = None
    if b"GNU.sparse.realsize" in fields:
        extents, at = _parse_sparse_map(data, at)
        size = int(fields[b"GNU.sparse.realsize"])
    name = fields.get(b"GNU.sparse.name") or fields.get(b"path") or _text(block[0:100])
    if not 0 <= size <= _MAX_SIZE or any(offset < 0 or length < 0 for offset, length in extents or ()):
        raise ValueError("a file's size is wrong")
    mtime = _parse_time(fields[b"mtime"]) if b"mtime" in fields else _octal(block[136:148]) * 10**9
    return Member(
        b"" if kind == "d" and name == b"./" else name[:-1] if kind == "d" and name.endswith(b"/") else name,
        kind,
        _octal(block[100:108]),
        int(fields[b"uid"]) if b"uid" in fields else _octal(block[108:116]),
        int(fields[b"gid"]) if b"gid" in fields else _octal(block[116:124]),
        mtime,
        _parse_time(fields[b"atime"]) if b"atime" in fields else mtime,
        size if kind == "f" else 0,
        fields.get(b"linkpath") or _text(block[157:257]),
        os.makedev(_octal(block[329:337]), _octal(block[337:345])) if kind in "cb" else 0,
        tuple(_xattrs(fields)) if len(fields) > 2 else (),
        fields.get(b"ASR.flags", b"").decode("ascii", "replace"),
        extents,
    ), at


class Placement:
    """Where the bytes that a backup stores of a file belong in the file: the same but for its holes."""

    def __init__(self, member: Member):
        self._extents = [e for e in member.extents if e[1]] if member.extents is not None else [(0, member.size)]
        self._starts = [0, *accumulate(length for _, length in self._extents)]
        self.stored = self._starts[-1]

    def between(self, start: int, end: int) -> list[Extent]:
        """The extents of the stored bytes from start to end."""
        run = []
        at = bisect_right(self._starts, start) - 1
        while start < end:
            offset, length = self._extents[at]
            skip = start - self._starts[at]
            count = min(length - skip, end - start)
            run.append((offset + skip, count))
            start += count
            at += 1
        return run


# The ustar header

def _ustar(name: bytes, member: Member, size: int) -> bytes:
    seconds = member.mtime // 10**9
    head = b"%b%b%011o\0%011o\0" % (
        name[:100].ljust(100, b"\0"), _owner(member.mode, member.uid, member.gid),
        size if size < _MAX_OCTAL11 else 0, seconds if 0 <= seconds < _MAX_OCTAL11 else 0)
    kind, link = _TYPES[member.kind], member.link[:100].ljust(100, b"\0")
    end = _end(member.device)
    return b"%b%06o\0 %b%b%b" % (head, _byte_sum(head, b"        ", kind, link, end), kind, link, end)


@lru_cache(maxsize=1024)
def _owner(mode: int, uid: int, gid: int) -> bytes:
    return b"%07o\0%07o\0%07o\0" % (mode, uid if uid < _MAX_OCTAL7 else 0, gid if gid < _MAX_OCTAL7 else 0)


@lru_cache(maxsize=1024)
def _parse_owner(fields: bytes) -> tuple[int, int, int]:
    return _octal(fields[:8]), _octal(fields[8:16]), _octal(fields[16:])


@lru_cache(maxsize=256)
def _end(device: int) -> bytes:
    """What follows the link: without names of owners, so that an extractor takes the numbers."""
    return b"ustar\x0000%b%07o\0%07o\0%b" % (bytes(64), os.major(device), os.minor(device), bytes(167))


@lru_cache(maxsize=256)
def _pax_header(size: int) -> bytes:
    return _ustar(b"././@PaxHeader", Member(b"", "x", 0o644), size)


def _pax(records: bytes) -> bytes:
    return _pax_header(len(records)) + records + bytes(padding(len(records)))


def _byte_sum(part: bytes, *more: bytes) -> int:
    # Adler-32's low half is 1 + the sum of the bytes modulo 65521, and no header's bytes add up to that much
    # (two names of 100 bytes and octal digits); it takes a tenth of the time of sum().
    total = (adler32(part) & 0xFFFF) - 1
    return total + _byte_sum(*more) if more else total


def _checked(data: bytes | memoryview, at: int) -> bytes:
    block = bytes(data[at:at + BLOCK])
    if len(block) != BLOCK or block[257:262] != b"ustar":
        raise ValueError("not a tar header")
    if _byte_sum(block[:148], b"        ", block[156:]) != _octal(block[148:156]):
        raise ValueError("a tar header's sum is wrong")
    return block


def _octal(field: bytes) -> int:
    return int(field.rstrip(b"\0 ") or b"0", 8)


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


# pax records: "LENGTH KEY=VALUE\n"

def _record(key: bytes, value: bytes) -> bytes:
    rest = len(key) + len(value) + 3           # blank, "=", newline
    length = rest + len(str(rest))
    if len(str(length)) > len(str(rest)):
        length += 1                            # the length counts its own digits
    return b"%d %b=%b\n" % (length, key, value)


def _pax_records(data: bytes, size: int) -> Iterator[tuple[bytes, bytes]]:
    if len(data) != size:
        raise ValueError("a pax header is cut off")
    at = 0
    while at < size:
        blank = data.index(b" ", at, at + 20)
        end = at + int(data[at:blank])
        if end <= blank or end > size:
            raise ValueError("a pax record's length is wrong")
        key, _, value = data[blank + 1:end - 1].partition(b"=")
        yield key, value
        at = end


def _times(mtime: int, atime: int) -> bytes:
    if _NOW <= mtime < 10 * _NOW and _NOW <= atime < 10 * _NOW:        # nearly all: of one length
        return b"30 mtime=%d.%09d\n30 atime=%d.%09d\n" % (*divmod(mtime, 10**9), *divmod(atime, 10**9))
    return _record(b"mtime", _time(mtime)) + _record(b"atime", _time(atime))


def _time(ns: int) -> bytes:
    seconds, fraction = divmod(abs(ns), 10**9)
    sign = b"-" if ns < 0 else b""
    return b"%b%d.%09d" % (sign, seconds, fraction) if fraction else b"%b%d" % (sign, seconds)


def _parse_time(text: bytes) -> int:
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    ns = int(whole) * 10**9 + int(fraction[:9].ljust(9, b"0"))
    return -ns if text.startswith(b"-") else ns


def _is_utf8(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True


# Extended attributes

def _xattr_record(name: str, value: bytes) -> bytes:
    if name in _ACLS:
        text = _acl_text(value)
        if text:
            return _record(_ACLS[name], text)
    # "=" ends a key, so GNU tar writes it, and the per cent sign, as hex.
    return _record(b"SCHILY.xattr." + os.fsencode(name).replace(b"%", b"%25").replace(b"=", b"%3D"), value)


def _xattrs(fields: dict[bytes, bytes]) -> Iterator[tuple[str, bytes]]:
    for key, value in fields.items():
        if key in _ACL_NAMES:
            yield _ACL_NAMES[key], _acl_bytes(value)
        elif key.startswith(b"SCHILY.xattr."):
            yield os.fsdecode(key[13:].replace(b"%3D", b"=").replace(b"%25", b"%")), value


def _acl_text(value: bytes) -> bytes:
    """The kernel's posix_acl_xattr (version 2, then tag, permissions, id) as acl(5)'s short text; b"" if unknown."""
    if len(value) < 4 or (len(value) - 4) % 8 or struct.unpack_from("<I", value)[0] != 2:
        return b""
    entries = []
    for tag, permissions, number in struct.iter_unpack("<HHI", value[4:]):
        if tag not in _ACL_TAGS:
            return b""
        who = b"%d" % number if tag in (0x02, 0x08) else b""
        letters = bytes(letter if permissions & bit else 0x2D for letter, bit in zip(b"rwx", (4, 2, 1), strict=True))
        entries.append(b"%b:%b:%b" % (_ACL_TAGS[tag], who, letters))
    return b",".join(entries)


def _acl_bytes(text: bytes) -> bytes:
    entries = [struct.pack("<I", 2)]
    for entry in text.split(b","):
        kind, who, letters = entry.split(b":")
        tag = {b"user": 0x02 if who else 0x01, b"group": 0x08 if who else 0x04, b"mask": 0x10, b"other": 0x20}[kind]
        permissions = sum(bit for letter, bit in ((b"r", 4), (b"w", 2), (b"x", 1)) if letter in letters)
        entries.append(struct.pack("<HHI", tag, permissions, int(who) if who else 0xFFFFFFFF))
    return b"".join(entries)


# GNU.sparse 1.0: decimal lines, the number of extents, then offset and length of each, to a whole block

def _sparse_map(extents: tuple[Extent, ...]) -> bytes:
    text = b"%d\n" % len(extents) + b"".join(b"%d\n%d\n" % extent for extent in extents)
    return text + bytes(padding(len(text)))


def _parse_sparse_map(data: bytes | memoryview, at: int) -> tuple[tuple[Extent, ...], int]:
    def number(start: int) -> tuple[int, int]:
        text = bytes(data[start:start + 24])
        end = text.index(b"\n")
        return int(text[:end]), start + end + 1

    count, here = number(at)
    extents = []
    for _ in range(count):
        offset, here = number(here)
        length, here = number(here)
        extents.append((offset, length))
    return tuple(extents), here + padding(here - at)
