"""Frames made into files again: what the restore's worker processes do.

Nothing is written outside the target: each name on the way is opened from its parent's descriptor and no symlink is
followed. What an interrupted restore left is removed and made anew, so that the result is the same. Where the target
is somebody's directory in use, what stands in a file's place stays until the new one is whole: that is made beside it
and renamed.

The order within a file is the kernel's: chown clears capabilities and setuid, writing clears them too, ACLs change
the mode's group bits, attributes can't be set on what is immutable. So: content, owner, mode, ACLs and other extended
attributes, times; the flags that forbid changes only when every hard link is made.
"""

import errno
import fcntl
import os
import stat
import struct
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple

from xxhash import xxh3_64, xxh3_64_hexdigest

from bootenv.archive import DamagedFrame, Place, Record, Volumes, parse_records, salvage, unpack
from bootenv.crew import Message
from bootenv.directories import Directories, allow_depth
from bootenv.member import FLAGS, Extent, Member, Placement, decode, is_swap, padding, stored_size

MALFORMED = (ValueError, KeyError, struct.error, OverflowError)

UNSAFE = "Its path leads out of the target; it was not restored."
SYMLINK = "A symbolic link stands where one of its directories should be; it was not restored."
DAMAGED = "It is damaged in the backup; it was not restored."
NEEDS_ROOT = "Only root can make device nodes; it was not restored."

_GETFLAGS = 0x80006601 | struct.calcsize("l") << 16        # FS_IOC_GETFLAGS is _IOR('f', 1, long)
_SETFLAGS = 0x40006602 | struct.calcsize("l") << 16
# Copy-on-write and compression are a matter of how data are written, so they come first.
_EARLY = "cmC"
# These forbid the changes that restoring makes, links among them, so they come last.
_LAST = "ia"
_FORBID = FLAGS["i"] | FLAGS["a"]
_CREATE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_ACL, _DEFAULT_ACL = "system.posix_acl_access", "system.posix_acl_default"
_SPECIAL = 0o7000
_NO_NAMES = frozenset((b"", b".", b".."))
_FULL = (errno.ENOSPC, errno.EDQUOT)


def is_wanted(path: bytes, only: Collection[bytes]) -> bool:
    """Is it one of these paths, or below one?"""
    return any(path == wanted or not wanted or path.startswith(wanted + b"/") for wanted in only)


def is_safe(path: bytes) -> bool:
    """Relative, and every part a name."""
    return not path or (b"\0" not in path and _NO_NAMES.isdisjoint(path.split(b"/")))


class Taken(NamedTuple):
    """What a directory had that would go on to what is made in it, or forbid that."""

    flags: int = 0
    setgid: int = 0
    acl: bytes = b""


class TargetDirectories(Directories):
    """Directories of the target, made where they are missing, and open to changes.

    A directory that an earlier restore finished would hand its group and default ACL on to what is made in it, or
    forbid changes. Its own header comes again at the end and puts all that back, if it is asked for; if not, who uses
    this does: `taken` tells what was there. `made` are the directories that were missing.
    """

    def __init__(self, root: bytes):
        super().__init__(root)
        self.finishing = False                 # True: their own headers come, so leave them as they are
        self.made: list[bytes] = []
        self.taken: list[tuple[bytes, Taken]] = []

    def open_root(self) -> None:
        self._open_to_changes(b"", self.open(b""))

    def step(self, parent: int, name: bytes) -> int:
        try:
            fd = super().step(parent, name)
        except FileNotFoundError:
            with suppress(FileExistsError):    # another worker was faster
                os.mkdir(name, 0o700, dir_fd=parent)
                self.made.append(self._below(name))
            return super().step(parent, name)
        if not self.finishing:
            self._open_to_changes(self._below(name), fd)
        return fd

    def _below(self, name: bytes) -> bytes:
        return b"/".join((*self._names, name))

    def _open_to_changes(self, path: bytes, fd: int) -> None:
        taken = _open_to_changes(fd)
        if any(taken):
            self.taken.append((path, taken))


def _open_to_changes(fd: int) -> Taken:
    status = os.fstat(fd)
    flags, setgid, acl = allow_changes(fd), 0, b""
    try:
        # chmod(2) would not let an ordinary user give it back for a group of others.
        if status.st_mode & stat.S_ISGID and (not os.geteuid() or status.st_gid in (os.getegid(), *os.getgroups())):
            os.fchmod(fd, stat.S_IMODE(status.st_mode) & ~stat.S_ISGID)
            setgid = stat.S_ISGID
        if _DEFAULT_ACL in os.listxattr(fd):
            acl = os.getxattr(fd, _DEFAULT_ACL)
            os.removexattr(fd, _DEFAULT_ACL)
    except OSError:
        pass                                   # someone else's directory, which an ordinary user extracts into
    return Taken(flags, setgid, acl)


def allow_changes(fd: int) -> int:
    """Clear immutable and append-only; what of them was set."""
    try:
        bits = int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, b"\0" * 8)[:4], "little")
        if bits & _FORBID:
            fcntl.ioctl(fd, _SETFLAGS, (bits & ~_FORBID).to_bytes(8, "little"))
        return bits & _FORBID
    except OSError:
        return 0                               # this file system has no flags


class TargetFull(Exception):
    """There is no room for a file."""

    def __init__(self, path: bytes):
        super().__init__(path)
        self.path = path


class News(NamedTuple):
    """What an Extractor has to tell since it was last asked."""

    differences: list[tuple[bytes, str]]
    full: list[bytes]          # what does not fit into the target: that ends the restore
    lost: list[bytes]          # what of these is not there as it should be: it was not made
    flags: list[tuple[bytes, str]]             # to be set when all is done
    made: list[bytes]          # directories that were missing, and were not asked for themselves
    taken: list[tuple[bytes, tuple]]           # directories, and what each had that the restore took away
    headed: list[bytes]        # of these, the ones that their own header has put right
    others: bool               # something belongs to the user who extracts it, and to somebody else in the backup


class Extractor:
    """Makes the members of frames in the target, as the tasks of backup.restore_backup ask.

    Tasks: ("frame", place, records or None, other names, paths that no hard link is to be made to), ("piece", place,
    path, extents), ("directories", place, which of them although not wanted, of which it is to be told), and ("rest",),
    after which nothing is in hand.
    other names: of files that are wanted by these alone, by the names that the backup has them under.
    anywhere: the target is a directory in use, so what stands in a file's place stays until the new one is whole.
    """

    def __init__(self, backup: Path | None, target: bytes, foreign: Collection[int], only: Collection[bytes],
                 anywhere: bool = False):
        allow_depth()
        self._volumes = Volumes(backup) if backup else None
        self._directories = TargetDirectories(target)
        self._foreign = foreign                # devices whose file systems keep no owners, modes or attributes
        self._only = only
        self._anywhere = anywhere
        self._other_names: Mapping[bytes, bytes] = {}
        self._not_made: Collection[bytes] = ()
        self._safe = b""                       # the directory whose path was found to be safe last
        self._root = os.geteuid() == 0
        self._user = os.geteuid(), os.getegid()
        self._forget()

    def _forget(self) -> None:
        self.differences: list[tuple[bytes, str]] = []
        self._full: list[bytes] = []
        self._lost: list[bytes] = []
        self.flags: list[tuple[bytes, str]] = []
        self._headed: list[bytes] = []
        self._others = False
        self._directories.made, self._directories.taken = [], []

    def news(self) -> News:
        """What is to be told; told once."""
        news = News(
            self.differences, self._full, self._lost, self.flags,
            [path for path in self._directories.made if not self._wanted(path)],
            [(path, tuple(taken)) for path, taken in self._directories.taken], self._headed, self._others)
        self._forget()
        return news

    def close(self) -> None:
        self._directories.close()

    def __call__(self, task: tuple) -> Iterator[Message]:
        if task == ("rest",):
            return
        kind, place, *rest = task
        place = Place(*place)
        item: bytes = b""
        large: tuple = ()
        damaged = False
        try:
            if kind == "piece":
                item = rest[0]
                self._piece(place, *rest)
            elif kind == "directories":
                self._again(place, *rest)
            else:
                item, large = self._frame(place, *rest)
        except DamagedFrame:
            damaged = True
        except TargetFull as full:
            self._full.append(full.path)
        yield ("restored", kind, tuple(place), item, large, damaged, tuple(self.news())), b""

    def _read(self, place: Place) -> bytes:
        assert self._volumes
        return unpack(self._volumes.read(place.place, place.packed), place)

    # A frame's members

    def _frame(self, place: Place, records: bytes | None, other_names: Mapping[bytes, bytes],
               not_made: Collection[bytes]) -> tuple[bytes, tuple]:
        """The last path made, and what pieces are to be added to.

        records: the index's, to save what a damaged frame still has; None for a frame believed to be whole.
        """
        self._other_names, self._not_made = other_names, not_made
        item: bytes = b""
        large: tuple = ()
        members = self.members(self._read(place)) if records is None else self._saved(place, records)
        for member, content in members:
            if member.kind == "f" and stored_size(member) > len(content):
                large = self._large(member, content)
            elif not self._make_plain(member, content):
                self.make(member, content)
            item = member.path
        return item, large

    def members(self, data: bytes, also: Collection[bytes] = ()) -> Iterator[tuple[Member, memoryview]]:
        """What a frame holds, of that which is wanted, and these."""
        view = memoryview(data)
        at = 0
        while at < len(view):
            try:
                member, at = decode(data, at)
            except MALFORMED as error:
                raise DamagedFrame from error
            stored = stored_size(member)
            if self._wanted(member.path) or member.path in also:
                yield member, view[at:at + stored]
            elif member.path in self._other_names:
                yield member._replace(path=self._other_names[member.path]), view[at:at + stored]
            at += stored + padding(stored)

    def _saved(self, place: Place, records: bytes) -> Iterator[tuple[Member, memoryview]]:
        assert self._volumes
        view = memoryview(salvage(self._volumes.read(place.place, place.packed), place))
        for record in parse_records(records):
            path = record.path
            if not self._wanted(path):
                if path not in self._other_names:
                    continue
                path = self._other_names[path]
            head, content = parts(record, view)
            if is_intact(record, head, content):
                yield decode(head, 0)[0]._replace(path=path), content
            elif record.kind != "d":           # these come again
                self._lose(path, DAMAGED)

    def _wanted(self, path: bytes) -> bool:
        return not self._only or is_wanted(path, self._only)

    # One member

    def _make_plain(self, member: Member, content: memoryview) -> bool:
        """The way of most files, all at once; False if make() is to do it, or to find out what is wrong."""
        path, kind, mode, uid, gid, mtime, atime, _, _, _, xattrs, flags, extents = member
        parent, _, name = path.rpartition(b"/")
        if kind != "f" or xattrs or flags or extents is not None or name in _NO_NAMES or b"\0" in name:
            return False
        if parent != self._safe and not is_safe(parent):
            return False
        self._safe = parent
        try:
            directory = self._directories.open(parent)
            fd = os.open(name, _CREATE, mode & 0o777, dir_fd=directory)
        except OSError:
            return False
        made = False
        try:
            try:
                if not content or os.write(fd, content) == len(content):
                    if uid or gid or mode & _SPECIAL or not self._root:
                        self._set_owner(fd, member)
                    os.utime(fd, ns=(atime, mtime))
                    made = True
            finally:
                os.close(fd)
        except OSError:                        # also of close(): a server may tell only then that there is no room
            made = False
        finally:
            if not made:                       # no half file is to have the name
                with suppress(OSError):
                    os.unlink(name, dir_fd=directory)
        return made

    def make(self, member: Member, content: memoryview) -> None:
        """Make it, whatever stands in its place; what goes wrong is a difference. Raises TargetFull."""
        if not is_safe(member.path) or (member.kind == "h" and not (member.link and is_safe(member.link))):
            self._lose(member.path, UNSAFE)
            return
        if member.kind in "cb" and not self._root:
            self._lose(member.path, NEEDS_ROOT)
            return
        parent, _, name = member.path.rpartition(b"/")
        try:
            if member.kind == "d":
                self._directories.open(member.path)
                return
            if member.kind == "h":
                self._link(member)
                return
            directory = self._directories.open(parent)
            make = self._file if member.kind == "f" else self._special
            try:
                make(directory, name, member, content)
            except (FileExistsError, IsADirectoryError):
                self._instead(directory, name, lambda name: make(directory, name, member, content))
        except OSError as error:
            self._failed(member.path, error)
        except (ValueError, OverflowError) as error:       # numbers and names that no file can have
            self._lose(member.path, f"It could not be restored: {error}.")

    def _failed(self, path: bytes, error: OSError) -> None:
        if error.errno in _FULL:
            raise TargetFull(path) from error  # nothing after it would fit either: that ends the restore
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            self._lose(path, SYMLINK)
        else:
            self._lose(path, f"It could not be restored: {os.strerror(error.errno or errno.EIO)}.")

    def _instead(self, directory: int, name: bytes, make: Callable[[bytes], None]) -> None:
        """Make something where something stands."""
        if not self._anywhere:
            self._remove(directory, name)      # a system's disk may have no room for both
            make(name)
            return
        beside = _beside(name)
        with suppress(FileNotFoundError):      # of a restore that was killed
            self._remove(directory, beside)
        try:
            make(beside)
            self._rename(directory, beside, name)
        finally:
            with suppress(FileNotFoundError):  # it is still there if it failed, and if both are one file (rename(2))
                os.unlink(beside, dir_fd=directory)

    def _rename(self, directory: int, beside: bytes, name: bytes) -> None:
        """In the place of what stands there; an empty directory gives way."""
        try:
            os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=directory)
            os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)
        except PermissionError:
            self._allow(directory, name)
            os.rename(beside, name, src_dir_fd=directory, dst_dir_fd=directory)

    def _file(self, directory: int, name: bytes, member: Member, content: memoryview) -> None:
        fd = self._create(directory, name, member)
        try:
            try:
                if member.extents is not None:
                    os.ftruncate(fd, member.size)
                    write_extents(fd, member.extents, content)
                    if is_swap(member, content):
                        os.posix_fallocate(fd, 0, member.size)
                elif content:
                    _write(fd, content)
                self._finish(fd, member)
            finally:
                os.close(fd)
        except BaseException:
            with suppress(OSError):            # no half file is to have the name
                os.unlink(name, dir_fd=directory)
            raise

    def _create(self, directory: int, name: bytes, member: Member) -> int:
        # With umask 0 the mode is final at once for most files. Secret ones are never open to others.
        fd = os.open(name, _CREATE, member.mode & 0o777, dir_fd=directory)
        if member.flags and any(flag in member.flags for flag in _EARLY):
            self._set_flags(fd, member.path, "".join(f for f in member.flags if f in _EARLY))
        return fd

    def _large(self, member: Member, content: memoryview) -> tuple:
        """The file and its first bytes; the pieces and finish() follow.

        Returns the member and how many bytes these were, () if it failed.
        """
        before = len(self.differences)
        path = self._growing(member.path)
        beginning = member._replace(
            path=path, extents=tuple(Placement(member).between(0, len(content))), xattrs=(),
            mode=member.mode | stat.S_IWUSR,   # an ordinary user opens it once more for each piece
            flags="".join(flag for flag in member.flags if flag in _EARLY))
        try:
            self.make(beginning, content)
        except TargetFull as full:
            raise TargetFull(member.path) from full
        self.differences[before:] = [(member.path, why) for _, why in self.differences[before:]]
        if path not in self._lost:
            return tuple(member), len(content)
        self._lost[self._lost.index(path)] = member.path
        return ()

    def _growing(self, path: bytes) -> bytes:
        """By which name a large file is written."""
        parent, slash, name = path.rpartition(b"/")
        return parent + slash + _beside(name) if self._anywhere else path

    def _piece(self, place: Place, path: bytes, extents: Sequence[Extent]) -> None:
        data = memoryview(self._read(place))
        parent, _, name = self._growing(path).rpartition(b"/")
        try:
            fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._directories.open(parent))
            try:
                write_extents(fd, extents, data)
            finally:
                os.close(fd)
        except OSError as error:
            self._failed(path, error)

    def finish(self, member: Member) -> None:
        """A large file's owner and the rest, once all its pieces are there."""
        parent, _, name = self._growing(member.path).rpartition(b"/")
        try:
            directory = self._directories.open(parent)
            fd = os.open(name, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            try:
                self._finish(fd, member, mode_is_set=bool(member.mode & stat.S_IWUSR))
            finally:
                os.close(fd)
            if self._anywhere:
                self._rename(directory, name, member.path.rpartition(b"/")[2])
        except OSError as error:
            self.remove(member.path)
            self._failed(member.path, error)

    def remove(self, path: bytes) -> None:
        """What there is of a large file that does not become whole."""
        parent, _, name = self._growing(path).rpartition(b"/")
        with suppress(OSError):                # it was never made
            self._remove(self._directories.open(parent), name)

    def give_up(self, path: bytes) -> None:
        """A large file of which the backup has not all pieces."""
        self.remove(path)
        self._lose(path, DAMAGED)

    def _special(self, directory: int, name: bytes, member: Member, _: memoryview) -> None:
        self._make_special(directory, name, member)
        if not self._root:
            self._others |= (member.uid, member.gid) != self._user
        elif member.uid or member.gid:
            os.chown(name, member.uid, member.gid, dir_fd=directory, follow_symlinks=False)
        if member.kind != "l" and member.mode & _SPECIAL:
            os.chmod(name, member.mode, dir_fd=directory)      # ours, just made: no symlink
        if member.xattrs:
            self._set_xattrs(b"/proc/self/fd/%d/%b" % (directory, name), member)
        os.utime(name, ns=(member.atime, member.mtime), dir_fd=directory, follow_symlinks=False)

    def _make_special(self, directory: int, name: bytes, member: Member) -> None:
        if member.kind == "l":
            os.symlink(member.link, name, dir_fd=directory)
        elif member.kind == "p":
            os.mkfifo(name, member.mode & 0o777, dir_fd=directory)
        else:
            kind = stat.S_IFCHR if member.kind == "c" else stat.S_IFBLK
            os.mknod(name, member.mode & 0o777 | kind, member.device, dir_fd=directory)

    def _link(self, member: Member) -> None:
        parent, _, name = member.path.rpartition(b"/")
        link = self._other_names.get(member.link, member.link)
        if link == member.path:                # it is made: as the file
            return
        why = f"It is another name of {os.fsdecode(link)}, which was not restored."
        if link in self._not_made:             # what has its name is an older one
            self._lose(member.path, why)
            return
        to_parent, _, to_name = link.rpartition(b"/")
        # Two directories at once: the stack of open ones has but one of them, so keep the first by a copy.
        source = os.dup(self._directories.open(to_parent))
        try:
            directory = self._directories.open(parent)

            def make(name: bytes) -> None:
                os.link(to_name, name, src_dir_fd=source, dst_dir_fd=directory, follow_symlinks=False)

            try:
                make(name)
            except FileExistsError:
                self._instead(directory, name, make)
        except FileNotFoundError:
            self._lose(member.path, why)
        finally:
            os.close(source)

    def _remove(self, directory: int, name: bytes) -> None:
        try:
            os.unlink(name, dir_fd=directory)
        except IsADirectoryError:
            os.rmdir(name, dir_fd=directory)   # only an empty one: no restore is to remove a tree
        except PermissionError:
            self._allow(directory, name)
            os.unlink(name, dir_fd=directory)

    def _allow(self, directory: int, name: bytes) -> None:
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        try:
            allow_changes(fd)
        finally:
            os.close(fd)

    # What is kept of a file beside its content

    def _finish(self, fd: int, member: Member, mode_is_set: bool = True) -> None:
        self._set_owner(fd, member, mode_is_set)
        if member.xattrs:
            self._set_xattrs(fd, member)
        os.utime(fd, ns=(member.atime, member.mtime))
        if member.flags:
            self._set_flags(fd, member.path, "".join(f for f in member.flags if f not in _LAST))
            if any(f in member.flags for f in _LAST):
                self.flags.append((member.path, member.flags))

    def _set_owner(self, fd: int, member: Member, mode_is_set: bool = True) -> None:
        try:
            if not self._root:
                self._others |= (member.uid, member.gid) != self._user
            elif member.uid or member.gid or not mode_is_set:
                os.fchown(fd, member.uid, member.gid)
            if member.mode & _SPECIAL or not mode_is_set:
                os.fchmod(fd, member.mode)
        except OSError as error:
            if error.errno in _FULL:           # a quota
                raise
            if not self._is_foreign(fd):
                self._differs(member.path, "Its owner or mode could not be set.")

    def _set_xattrs(self, file: int | bytes, member: Member) -> None:
        for name, value in member.xattrs:
            try:
                os.setxattr(file, name, value, follow_symlinks=isinstance(file, int))
            except OSError as error:
                if not (isinstance(file, int) and self._is_foreign(file)):
                    self._differs(member.path, f"{name} could not be set: {os.strerror(error.errno or errno.EIO)}.")

    def _set_flags(self, fd: int, path: bytes, letters: str) -> None:
        bits = sum(FLAGS.get(letter, 0) for letter in letters)
        try:
            present = int.from_bytes(fcntl.ioctl(fd, _GETFLAGS, b"\0" * 8)[:4], "little")
            if bits & ~present:
                fcntl.ioctl(fd, _SETFLAGS, (present | bits).to_bytes(8, "little"))
        except OSError:
            self._differs(path, f"Its attributes ({letters}, see chattr) could not be set.")

    def _is_foreign(self, fd: int) -> bool:
        return os.fstat(fd).st_dev in self._foreign

    # Directories, at the end

    def _again(self, place: Place, also: Collection[bytes], tell: Collection[bytes]) -> None:
        """Owner, mode and the rest of the directories in a frame, whichever it is; only when nothing is made any
        more, for each thing made changes its directory's time."""
        for member, _ in self.members(self._read(place), also):
            # A target that is in use is its owner's, and stays as it is.
            if member.kind == "d" and (member.path or not self._anywhere or b"" in also):
                self.finish_directory(member)
                if member.path in tell:
                    self._headed.append(member.path)

    def open_target(self) -> None:
        """Before anything is made in it."""
        self._directories.open_root()

    def finish_directory(self, member: Member) -> None:
        self._directories.finishing = True
        if not is_safe(member.path):
            self._lose(member.path, UNSAFE)
            return
        try:
            fd = os.dup(self._directories.open(member.path))
            try:
                allow_changes(fd)              # an interrupted restore was at the end already
                with suppress(OSError):        # one that was there before could let in who is not in the backup's
                    os.removexattr(fd, _ACL)
                self._set_owner(fd, member, mode_is_set=False)
                if member.xattrs:
                    self._set_xattrs(fd, member)
                if member.flags:
                    self._set_flags(fd, member.path, "".join(f for f in member.flags if f not in _LAST))
                    if any(f in member.flags for f in _LAST):
                        self.flags.append((member.path, member.flags))
                os.utime(fd, ns=(member.atime, member.mtime))
            finally:
                os.close(fd)
        except OSError as error:
            self._failed(member.path, error)

    def give_back(self, path: bytes, taken: Taken, times: tuple[int, int] | None) -> None:
        """What was taken away from a directory, and its times (ns), if they are to stay."""
        self._directories.finishing = True
        try:
            fd = self._directories.open(path)
            if taken.setgid:
                os.fchmod(fd, stat.S_IMODE(os.fstat(fd).st_mode) | taken.setgid)
            if taken.acl:
                os.setxattr(fd, _DEFAULT_ACL, taken.acl)
            if times:
                with suppress(OSError):        # of someone else's directory an ordinary user can't set them
                    os.utime(fd, ns=times)
            if taken.flags:
                self._set_flags(fd, path, "".join(f for f in _LAST if taken.flags & FLAGS[f]))
        except OSError as error:
            why = os.strerror(error.errno or errno.EIO)
            self._differs(path, f"Its setgid bit or default ACL could not be put back: {why}.")

    def forbid(self, path: bytes, letters: str) -> None:
        """The last flags: immutable, append-only."""
        self._directories.finishing = True
        parent, _, name = path.rpartition(b"/")
        try:
            directory = self._directories.open(parent)
            fd = os.open(name or b".", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
        except OSError as error:
            self._failed(path, error)
            return
        try:
            self._set_flags(fd, path, letters)
        finally:
            os.close(fd)

    def _differs(self, path: bytes, why: str) -> None:
        self.differences.append((path, why))

    def _lose(self, path: bytes, why: str) -> None:
        """It is not there, or an older one is."""
        self.differences.append((path, why))
        self._lost.append(path)


def _beside(name: bytes) -> bytes:
    """Under which name in its directory something is made until it is whole. A restore that is begun again knows it."""
    return b".asr-" + sha256(name).hexdigest()[:16].encode()


def parts(record: Record, frame: memoryview) -> tuple[memoryview, memoryview]:
    """A member's headers and content in its frame."""
    content = record.offset + record.head
    return frame[record.offset:content], frame[content:content + record.stored]


def is_intact(record: Record, head: memoryview, content: memoryview) -> bool:
    """Is this member, out of a damaged frame, what the index says of it?"""
    if len(head) != record.head or len(content) != record.stored:
        return False
    checksum = xxh3_64(head)
    checksum.update(content)
    return checksum.hexdigest() == record.checksum and (
        record.sha256 == "-" or sha256(content).hexdigest() == record.sha256)


def write_extents(fd: int, extents: Sequence[Extent], data: memoryview) -> None:
    at = 0
    for offset, length in extents:
        piece = data[at:at + length]
        at += length
        while piece:
            count = os.pwrite(fd, piece, offset)
            piece = piece[count:]
            offset += count


def _write(fd: int, data: memoryview) -> None:
    while data:
        data = data[os.write(fd, data):]


class Checker:
    """Reads frames against their checksums and members against theirs. Tasks: (place, records)."""

    def __init__(self, backup: str):
        self._volumes = Volumes(Path(backup))

    def __call__(self, task: tuple) -> Iterator[Message]:
        place = Place(*task[0])
        packed = self._volumes.read(place.place, place.packed)
        try:
            view, whole = memoryview(unpack(packed, place)), True
        except DamagedFrame:
            view, whole = memoryview(salvage(packed, place)), False
        lost = []
        path = b""
        for record in task[1].split(b"\0"):
            if record:
                # As parse_records() has it, without the values in between: it is done for each file.
                kind, offset, head, checksum, stored, _, _, path = record.split(b" ", 7)
                start = int(offset)
                end = start + int(head) + int(stored)
                right = end <= len(view) and xxh3_64_hexdigest(view[start:end]) == checksum.decode()
                if not right and kind != b"d":
                    lost.append(path)
        yield ("checked", tuple(place), whole, lost, path), b""


def check(backup: str) -> Checker:
    """Begin to verify as a worker process; see crew."""
    return Checker(backup)


def work(backup: str, target: bytes, foreign: frozenset[int], only: tuple[bytes, ...], anywhere: bool) -> Extractor:
    """Begin to restore as a worker process; see crew."""
    os.umask(0)                                # modes go into open() as they are
    return Extractor(Path(backup), target, foreign, only, anywhere)
