"""Holds one machine against another: every file, every device, every file system, by our eyes and by others'.

All facts have the same shape: what was looked at -> property -> value. `differences` compares two of them.

    before, after = look(lost), look(recovered)
    allowed = [Allowed("/var/lib/systemd/random-seed", "every start writes a new one")]
    assert differences(before.files, after.files, allowed) == []
"""

import errno
import fcntl
import hashlib
import os
import re
import stat
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bootenv.rehearsal import Machine
from tests.uml import run_in_uml
from tests.vm.machines import MEMORY, run

Facts = Mapping[str, Mapping[str, object]]

FS_IOC_GETFLAGS = 0x80086601      # linux/fs.h
# Flags that people set (chattr's letters). The others tell how the kernel laid the file out: that may differ.
FLAGS = {0x1: "s", 0x2: "u", 0x4: "c", 0x8: "S", 0x10: "i", 0x20: "a", 0x40: "d", 0x80: "A", 0x4000: "j", 0x8000: "t",
         0x10000: "D", 0x20000: "T", 0x800000: "C", 0x2000000: "x", 0x20000000: "P", 0x40000000: "F"}
KINDS = {stat.S_IFREG: "file", stat.S_IFDIR: "directory", stat.S_IFLNK: "symlink", stat.S_IFIFO: "fifo",
         stat.S_IFCHR: "character device", stat.S_IFBLK: "block device", stat.S_IFSOCK: "socket"}
BLOCK = 64 * 1024


@dataclass(frozen=True)
class Allowed:
    """A difference that is no fault: the paths (a glob; * is also for /), why, and which properties (none: all)."""

    path: str
    why: str
    properties: tuple[str, ...] = ()

    def covers(self, path: str, property: str) -> bool:
        return fnmatchcase(path, self.path) and (not self.properties or property in self.properties)


def differences(before: Facts, after: Facts, allowed: Sequence[Allowed] = ()) -> list[str]:
    """A sentence for each difference that is not allowed. The property of a path that came or went is "existence"."""
    return [sentence for name, property, sentence in _differences(before, after)
            if not any(exception.covers(name, property) for exception in allowed)]


def _differences(before: Facts, after: Facts) -> Iterator[tuple[str, str, str]]:
    for name in sorted({*before, *after}):
        shown = repr(name) if os.fsencode(name).decode(errors="replace") != name or not name.isprintable() else name
        if name not in after:
            yield name, "existence", f"{shown} is missing."
        elif name not in before:
            yield name, "existence", f"{shown} was not there before."
        else:
            for property in sorted({*before[name], *after[name]}):
                was, now = before[name].get(property), after[name].get(property)
                if not (_roughly_equal(was, now) if property == "allocated" else was == now):
                    yield name, property, f"{shown}: {property} was {_beside(was, now)}, is {_beside(now, was)}."


def _roughly_equal(was: object, now: object) -> bool:
    # An extent tree's or an attribute's own block more; a hole that was filled is found from 32 KiB on. Less room for
    # the same content is no loss: XFS allocates ahead of what a program writes.
    return isinstance(was, int) and isinstance(now, int) and now - was <= 32768 + was // 16


def _beside(value: object, other: object) -> str:
    """A value as a sentence has it: of a list only what the other doesn't have, lest `_short` leave that out."""
    if isinstance(value, list) and isinstance(other, list):
        value = [item for item in value if item not in other] or value
    return _short(value)


def _short(value: object) -> str:
    text = str(value) if isinstance(value, str | int | None) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}... ({len(text)} characters)"


@dataclass(frozen=True)
class Look:
    """All that can be seen of a machine that is switched off. A file is found under its path on the machine; a file
    system's own root is "<mount point>/."."""

    facts: Facts                    # of devices and file systems
    health: list[str]               # what is wrong
    files: Facts
    second_opinion: Facts           # of files, by libarchive's mtree writer and getfattr


def look(machine: Machine) -> Look:
    """Its disks stay as they are."""
    return Look(**run_in_uml("tests.vm.inside", "look", [drive.image for drive in machine.disks], keep=False,
                             memory=MEMORY, seconds=900))


# Files

def walk(top: Path) -> Facts:
    """Every file under a directory, as "/path" (the directory itself is "/."), all that belongs to it but its name."""
    facts: dict[str, dict[str, object]] = {}
    inodes: dict[tuple[int, int], list[str]] = {}
    directory = os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        facts["/."] = _entry(directory, ".")
        for path, status, entry in _walk(directory, "/"):
            facts[path] = entry
            if status.st_nlink > 1 and not stat.S_ISDIR(status.st_mode):
                inodes.setdefault((status.st_dev, status.st_ino), []).append(path)
    finally:
        os.close(directory)
    for paths in inodes.values():
        for path in paths:
            facts[path]["same file as"] = tuple(sorted(set(paths) - {path}))
    return facts


def _walk(directory: int, above: str) -> Iterator[tuple[str, os.stat_result, dict[str, object]]]:
    """Through open directories, not paths: a tree may be deeper than any path may be long."""
    for name in sorted(os.listdir(directory)):
        status = os.stat(name, dir_fd=directory, follow_symlinks=False)
        yield above + name, status, _entry(directory, name)
        if stat.S_ISDIR(status.st_mode):
            inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=directory)
            try:
                yield from _walk(inner, f"{above}{name}/")
            finally:
                os.close(inner)


def _entry(directory: int, name: str) -> dict[str, object]:
    status = os.stat(name, dir_fd=directory, follow_symlinks=False)
    kind = stat.S_IFMT(status.st_mode)
    handle = f"/proc/self/fd/{directory}/{name}"      # for calls that know no dir_fd
    entry: dict[str, object] = {
        "type": KINDS[kind],
        "mode": f"{stat.S_IMODE(status.st_mode):04o}",
        "owner": f"{status.st_uid}:{status.st_gid}",
        "mtime": status.st_mtime_ns,
        "links": status.st_nlink,
    }
    for attribute in os.listxattr(handle, follow_symlinks=False):
        entry[f"attribute {attribute}"] = os.getxattr(handle, attribute, follow_symlinks=False)
    if kind == stat.S_IFLNK:
        entry["target"] = os.readlink(name, dir_fd=directory)
    if kind in (stat.S_IFCHR, stat.S_IFBLK):
        entry["device"] = f"{os.major(status.st_rdev)}:{os.minor(status.st_rdev)}"
    if kind in (stat.S_IFREG, stat.S_IFDIR):
        file = os.open(name, os.O_RDONLY | os.O_NOFOLLOW, dir_fd=directory)
        try:
            entry["flags"] = flags(file)
            if kind == stat.S_IFREG:
                entry |= {"size": status.st_size, "allocated": status.st_blocks * 512, "content": digest(file)}
        finally:
            os.close(file)
    return entry


def flags(file: int) -> str:
    """chattr's letters of an open file."""
    try:
        bits, = struct.unpack("I", fcntl.ioctl(file, FS_IOC_GETFLAGS, bytes(4)))
    except OSError as error:
        if error.errno not in (errno.ENOTTY, errno.EOPNOTSUPP):      # a file system without such flags
            raise
        bits = 0
    return "".join(letter for bit, letter in FLAGS.items() if bits & bit)


def digest(file: int) -> str:
    """SHA-256 over size and all blocks that are not zero, with their places: the same for a hole and its zeros."""
    size = os.fstat(file).st_size
    content = hashlib.sha256(str(size).encode())
    at = 0
    while at < size:
        try:
            at = os.lseek(file, at, os.SEEK_DATA) // BLOCK * BLOCK
        except OSError as error:
            if error.errno != errno.ENXIO:                           # nothing but a hole up to the end
                raise
            break
        if (block := os.pread(file, BLOCK, at)).strip(b"\0"):
            content.update(f" {at} ".encode() + block)
        at += BLOCK
    return content.hexdigest()


# Files, by tools that are not ours

MTREE = ("type", "mode", "uid", "gid", "size", "link", "device", "nlink", "time", "flags", "sha256")


def mtree(top: Path) -> Facts:
    """What libarchive's mtree writer and getfattr say of every file under a directory, names as they quote them."""
    text = run("bsdtar", "-c", "-f", "-", "--format=mtree", "-C", str(top),
               f"--options=mtree:!all,{','.join(f'mtree:{word}' for word in MTREE)}", ".")
    facts: dict[str, dict[str, object]] = {}
    for line in text.splitlines()[1:]:
        name, *words = line.split(" ")
        facts[_unquoted(name)] = {key: value for key, _, value in (word.partition("=") for word in words)}
    dump = run("getfattr", "--recursive", "--physical", "--no-dereference", "--dump", "--match=-", "--encoding=hex",
               "--absolute-names", str(top))
    for record in dump.split("\n\n")[:-1]:
        head, *lines = record.splitlines()
        facts[_unquoted("." + head.removeprefix(f"# file: {top}"))]["attributes"] = tuple(sorted(lines))
    return facts


def _unquoted(name: str) -> str:
    """The path behind ./a\\040b, as `walk` would give it."""
    path = os.fsdecode(re.sub(rb"\\([0-7]{3})", lambda match: bytes((int(match[1], 8),)), os.fsencode(name)))
    return path.removeprefix(".") or "/."
