"""Backups of some files: one's own, everybody's, or what was chosen. They recover no system, and need no ASR disk."""

import glob
import os
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from . import backup
from .archive import check_new
from .backup import Entry, Selection, Source, write_backup
from .destinations import SUFFIX, file_at, volume_of
from .errors import NothingToBackUp, refused
from .events import Difference, Event, noted
from .files import read_back
from .probe import resolved
from .run import ROOT
from .sif import now

__all__ = ["Entry", "back_up", "destination", "entries", "everyones", "mine", "select"]

# What the kernel shows of itself, in the form of files.
_NO_FILES = backup.PSEUDO - {"autofs", "overlay", "ramfs", "squashfs", "tmpfs"}
_ELSE = "Mount what it lies on, or choose the files in the tree."


def mine() -> tuple[str, ...]:
    """The home of whoever started this, also through sudo. Raises NothingToBackUp."""
    name = os.environ.get("SUDO_USER", "")
    # The medium's own program knows the computer's users by that file alone.
    home = dict(_homes()).get(name) or os.path.expanduser(f"~{name}")
    path = _real(home)
    if not _is_home(path):
        raise NothingToBackUp(f"Your home folder {home} is not there, or no folder of its own.", hint=_ELSE)
    return (path,)


def everyones() -> tuple[str, ...]:
    """All homes that are there, also those that lie elsewhere and have a link in /home. Raises NothingToBackUp."""
    tops = {path for path in map(_real, ("/home", "/root")) if _is_home(path)}
    linked = {path for _, home in _homes() if home.startswith("/home/") and _is_home(path := _real(home))}
    # A link in /home that no user has as a home may lead anywhere.
    paths = tops | {path for path in linked if not any(f"{path}/".startswith(f"{top}/") for top in tops)}
    if not paths:
        raise NothingToBackUp("There is neither /home nor /root.", hint=_ELSE)
    return tuple(sorted(paths))


def _homes() -> Iterator[tuple[str, str]]:
    """The computer's users and their homes: passwd(5)."""
    with suppress(OSError), (ROOT / "etc/passwd").open(errors="surrogateescape") as lines:
        for fields in (line.rstrip("\n").split(":") for line in lines):
            if len(fields) == 7:
                yield fields[0], fields[5]


def _is_home(path: str) -> bool:
    return path != "/" and (ROOT / path.lstrip("/")).is_dir()


def entries(directory: bytes) -> list[Entry]:
    """What is in a directory of this computer, by its path without the first slash. Raises OSError."""
    found = []
    no_files = {point for point, kind, _ in backup.mounts() if kind in _NO_FILES}
    with os.scandir(os.path.join(os.fsencode(str(ROOT)), directory)) as listing:
        for entry in listing:
            if entry.path in no_files:
                continue
            if entry.is_symlink():
                found.append(Entry(entry.name, "l", 0))
            elif entry.is_dir():
                found.append(Entry(entry.name, "d", 0))
            elif entry.is_file():
                found.append(Entry(entry.name, "f", entry.stat().st_size))
    return sorted(found, key=lambda entry: (entry.kind != "d", entry.name))


def destination(place: str) -> tuple[Path, str]:
    """The file to write for a folder or file that was named, and a caution, if any. Raises DestinationRefused."""
    path = file_at(place, f"files-{now():%Y%m%d-%H%M}{SUFFIX}")
    check_new(path)
    if not os.access(path.parent, os.W_OK):
        raise refused(f"{place} is not writable.", "Choose another place.")
    volume, root = volume_of(path.parent), volume_of(ROOT)
    if volume["fstype"] in ("tmpfs", "ramfs"):
        return path, f"{place} is in this computer's memory: the backup will be gone at the next start."
    if volume["source"] == root["source"]:
        return path, f"{place} is on the system's own volume: if its disk is lost, so is this backup."
    return path, ""


def select(paths: Sequence[str]) -> Generator[Event, None, Selection]:
    """Counts what will be backed up; returns the Selection. Raises NothingToBackUp for a path that is not there."""
    sources, exclude, include = _what(_there(paths))
    return (yield from backup.select(sources, exclude=exclude, include=include))


def back_up(paths: Sequence[str], path: Path, selection: Selection) -> Generator[Event, None, tuple[Difference, ...]]:
    """Writes files and directories to a backup and reads it back; returns what is not in it as it was.

    Raises NothingToBackUp, DestinationFull, DestinationRefused, and DamagedBackup when it reads back differently: it is
    removed then.
    """
    chosen = _there(paths)
    sources, exclude, include = _what(chosen)
    # That all else is left out is what was asked for.
    beside = {*exclude, *_mounted_beside(chosen)}
    unlike: list[Difference] = []
    writing = write_backup(path, sources, selection=selection, exclude=exclude, include=include)
    yield from noted((e for e in writing if not (isinstance(e, Difference) and e.what in beside)), unlike)
    yield from read_back(path)
    return tuple(unlike)


def _there(paths: Iterable[str]) -> list[str]:
    """The paths without links above what they name. Raises NothingToBackUp for one that names nothing."""
    found = []
    for path in paths:
        above, _, name = path.rstrip("/").rpartition("/")
        real = f"{_real(above).rstrip('/')}/{name}"
        if not os.path.lexists(ROOT / real.lstrip("/")):
            raise NothingToBackUp(f"{path} is not there.", hint=_ELSE)
        found.append(real)
    return found


def _real(path: str) -> str:
    """A path of this computer without links."""
    return f"/{resolved(ROOT, path).relative_to(ROOT)}".removesuffix(".")


def _mounted_beside(paths: Sequence[str]) -> Iterator[str]:
    """The mount points that are neither one of the paths nor below one, as a backup names them."""
    for point, _, _ in backup.mounts():
        path = Path(os.fsdecode(point))
        if path.is_relative_to(ROOT):
            name = str(path.relative_to(ROOT))
            if not any(f"/{name}/".startswith(f"{chosen}/") for chosen in paths):
                yield name


def _what(paths: Sequence[str]) -> tuple[list[Source], tuple[str, ...], tuple[str, ...]]:
    """Each file system that one of the paths is on, all of it left out but the paths."""
    points = {_mount_point(ROOT / path.lstrip("/")) for path in paths}
    sources = [Source(str(point), "" if point == ROOT else str(point.relative_to(ROOT))) for point in sorted(points)]
    return sources, ("*",), tuple(glob.escape(path.strip("/")) for path in paths)


def _mount_point(path: Path) -> Path:
    while path not in (ROOT, path.parent) and not os.path.ismount(path):
        path = path.parent
    return path

