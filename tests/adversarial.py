"""A tree with everything that backups lose: `python -m tests.adversarial DIR`, as root, on ext4, xfs or btrfs.

What the file system or an ordinary user can't have is left out; `kinds` of what was made is returned.
"""

import contextlib
import fcntl
import os
import random
import socket
import struct
import sys
from pathlib import Path

DEEP = 4300                    # bytes of the longest path, above the kernel's limit of 4,096 for one call
_GETFLAGS, _SETFLAGS = 0x80086601, 0x40086602


def make(root: Path, entries: int = 3000, sparse: int = 20 * 2**30) -> None:
    """entries: names in the large directory. sparse: apparent bytes of the largest file with holes."""
    root.mkdir(parents=True, exist_ok=True)
    seeded = random.Random(1)
    _contents(root / "contents", seeded)
    _holes(root / "holes", seeded, sparse)
    _names(root / "names")
    _deep(root)
    _links(root / "links")
    _special(root / "special")
    _attributes(root / "attributes")
    _modes(root / "modes")
    _many(root / "many", entries)
    (root / "empty" / "mount point").mkdir(parents=True)
    (root / "empty" / "mount point").chmod(0o1777)
    _times(root)
    _flags(root / "flags")


def _contents(at: Path, seeded: random.Random) -> None:
    at.mkdir()
    for size in (0, 1, 511, 512, 513, 65536, 2**20 - 1, 2**20 + 1, 4 * 2**20, 4 * 2**20 + 1, 13 * 2**20 + 77):
        (at / f"{size}").write_bytes(seeded.randbytes(size))
    (at / "text").write_text("the same line again\n" * 300_000)


def _holes(at: Path, seeded: random.Random, apparent: int) -> None:
    at.mkdir()
    layouts = {
        "only a hole": (2**20, ()),
        "hole at both ends": (2**20, ((400_000, 70_000),)),
        "data at both ends": (2**24, ((0, 5000), (2**24 - 5000, 5000))),
        "very large": (apparent, ((0, 4096), (apparent // 2, 9 * 2**20), (apparent - 100, 100))),
        "many": (2**24, tuple((n * 16384, 4096) for n in range(0, 1024, 2))),
    }
    for name, (size, pieces) in layouts.items():
        with open(at / name, "wb") as file:
            file.truncate(size)
            for offset, length in pieces:
                file.seek(offset)
                file.write(seeded.randbytes(length))


def _names(at: Path) -> None:
    at.mkdir()
    names = [b"new\nline", b"tab\t", b"back\\slash", b"\xff\xfe invalid UTF-8", "ünïcödé ☃".encode(), b" ", b"-rf",
             b"*", b"n" * 255, b"trailing ", b"quote'\"", b"=", b"a%20b", b"...", b"\x01\x1b[31m", b"G" * 99,
             b"H" * 100, b"\xe9" * 255]
    for number, name in enumerate(names):
        path = os.path.join(os.fsencode(at), name)
        with open(path, "wb") as file:
            file.write(b"%d" % number)
    for target in (b"t" * 99, b"t" * 100, b"t/" * 1000 + b"t", b"\xff\xff", b"/absolute", b"../../up"):
        os.symlink(target, os.path.join(os.fsencode(at), b"link %d" % len(target)))


def _deep(root: Path) -> None:
    """Directories one in the other until the path is longer than one call takes."""
    fd = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    path = "deep"
    while len(path) < DEEP:
        name = path if path == "deep" else "d" * 200
        os.mkdir(name, dir_fd=fd)
        inner = os.open(name, os.O_RDONLY | os.O_DIRECTORY, dir_fd=fd)
        os.close(fd)
        fd = inner
        path += "/" + "d" * 200
    file = os.open("file", os.O_WRONLY | os.O_CREAT, 0o640, dir_fd=fd)
    os.write(file, b"deep")
    os.close(file)
    os.close(fd)


def _links(at: Path) -> None:
    """Hard links across directories, of files small and large, of fifos, symlinks and devices."""
    for name in ("a", "b", "c"):
        (at / name).mkdir(parents=True)
    (at / "a" / "file").write_text("has three names")
    os.link(at / "a" / "file", at / "b" / "file")
    os.link(at / "a" / "file", at / "c" / ("long " * 40))
    (at / "a" / "large").write_bytes(b"0123456789abcdef" * (5 * 2**16))
    os.link(at / "a" / "large", at / "c" / "large")
    os.mkfifo(at / "a" / "fifo")
    os.link(at / "a" / "fifo", at / "b" / "fifo")
    os.symlink("file", at / "a" / "symlink")
    os.link(at / "a" / "symlink", at / "b" / "symlink", follow_symlinks=False)


def _special(at: Path) -> None:
    at.mkdir()
    os.mkfifo(at / "fifo", 0o620)
    with socket.socket(socket.AF_UNIX) as listener:
        there = os.open(at, os.O_RDONLY)
        listener.bind(f"/proc/self/fd/{there}/socket")     # a socket's path may have 107 bytes only
        os.close(there)
    with contextlib.suppress(PermissionError):
        os.mknod(at / "null", 0o020666, os.makedev(1, 3))
        os.mknod(at / "disk", 0o060660, os.makedev(259, 1_000_000))


def _attributes(at: Path) -> None:
    at.mkdir()
    (at / "dir").mkdir()
    for name in ("user", "trusted", "security", "acl", "dir/inherits"):
        (at / name).write_text(name)
    os.symlink("user", at / "symlink")
    _set(at / "user", "user.empty", b"")
    _set(at / "user", "user.equals=percent%3D", b"\0binary\n=\xff")
    _set(at / "user", "user.large", b"x" * 3000)
    for number in range(20):
        _set(at / "dir", f"user.many{number}", b"%d" % number)
    _set(at / "trusted", "trusted.overlay.opaque", b"y")
    _set(at / "symlink", "trusted.of.symlink", b"link")
    _set(at / "security", "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))
    _set(at / "security", "security.selinux", b"system_u:object_r:etc_t:s0\0")
    _set(at / "security", "security.ima", b"\x03\x04" + b"s" * 256)
    access = ((1, 7, -1), (2, 5, 12), (2, 4, 70000), (4, 5, -1), (8, 6, 34), (16, 7, -1), (32, 0, -1))
    _set(at / "acl", "system.posix_acl_access", _acl(access))
    _set(at / "dir", "system.posix_acl_access", _acl(access))
    _set(at / "dir", "system.posix_acl_default", _acl(access))


def _set(path: Path, name: str, value: bytes) -> None:
    with contextlib.suppress(OSError):
        os.setxattr(path, name, value, follow_symlinks=False)


def _acl(entries: tuple[tuple[int, int, int], ...]) -> bytes:
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *entry) for entry in entries)


def _modes(at: Path) -> None:
    at.mkdir()
    for mode in (0o4755, 0o2755, 0o6711, 0o1644, 0o000, 0o777, 0o400):
        path = at / f"{mode:o}"
        path.write_text("x")
        with contextlib.suppress(PermissionError):
            os.chown(path, 1234, 5678)
        path.chmod(mode)
    (at / "directory").mkdir()
    with contextlib.suppress(PermissionError):
        os.chown(at / "directory", 0, 99)
        (at / "directory" / "huge ids").write_text("x")
        os.chown(at / "directory" / "huge ids", 4_000_000_000, 2_097_152)
    (at / "directory").chmod(0o2770)
    (at / "directory" / "below setgid").write_text("x")
    os.chown(at / "directory" / "below setgid", os.getuid(), os.getgid())


def _many(at: Path, entries: int) -> None:
    at.mkdir()
    for number in range(entries):
        (at / f"{number:07}").write_text(f"{number}")


def _times(root: Path) -> None:
    at = root / "times"
    at.mkdir()
    for name, ns in (("1901", -2_147_483_648 * 10**9), ("1969", -1), ("half before", -500_000_000), ("epoch", 0),
                     ("nanoseconds", 1_700_000_000_123_456_789), ("2100", 4_102_444_800 * 10**9 + 1)):
        (at / name).write_text(name)
        os.utime(at / name, ns=(ns, ns))
    os.symlink("epoch", at / "symlink")
    os.utime(at / "symlink", ns=(1, 1_234_567_891_000_000_001), follow_symlinks=False)
    for directory in (at, root / "links", root / "names", root / "holes", root):
        os.utime(directory, ns=(7, 1_000_000_000_000_000_007))


def _flags(at: Path) -> None:
    """Immutable, append-only, no dump, no copy-on-write where there is such a thing; one of them with two names."""
    at.mkdir()
    for name, bits in (("immutable", 0x10), ("append", 0x20), ("nodump", 0x40), ("noatime", 0x80), ("nocow", 0x800000),
                       ("directory", 0x10)):
        path = at / name
        if name == "directory":
            path.mkdir()
            (path / "below").write_text("x")
        else:
            path.write_text(name)
            os.link(path, at / f"{name} again")
        set_flags(path, bits)


def set_flags(path: Path, bits: int) -> None:
    """Add FS_*_FL bits where the file system has them; 0 clears those that forbid changes."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _set_flags(fd, bits)
    finally:
        os.close(fd)


def _set_flags(fd: int, bits: int) -> None:
    with contextlib.suppress(OSError):
        present = int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, bytes(8))[:4], "little")
        wanted = present | bits if bits else present & ~0x30
        fcntl.ioctl(fd, _SETFLAGS, wanted.to_bytes(8, "little"))


def get_flags(fd: int) -> int:
    """The FS_*_FL bits that a user sets."""
    try:
        return int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, bytes(8))[:4], "little") & 0x8100F0
    except OSError:
        return 0


def remove(root: Path) -> None:
    """Remove such a tree, whatever it forbids."""
    if root.exists():
        _clear(os.open(root, os.O_RDONLY | os.O_DIRECTORY))
        root.rmdir()


def _clear(fd: int) -> None:
    """Empty a directory and close it: by descriptors, for the paths may be too long."""
    try:
        _set_flags(fd, 0)
        with os.scandir(fd) as listing:
            entries = [(os.fsencode(e.name), e.is_dir(follow_symlinks=False)) for e in listing]
        for name, is_directory in entries:
            if is_directory:
                _clear(os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=fd))
                os.rmdir(name, dir_fd=fd)
                continue
            try:
                os.unlink(name, dir_fd=fd)
            except PermissionError:
                set_flags(Path(f"/proc/self/fd/{fd}") / os.fsdecode(name), 0)
                os.unlink(name, dir_fd=fd)
    finally:
        os.close(fd)


if __name__ == "__main__":
    make(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 3000)
