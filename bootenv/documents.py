"""Backups of some files: one's own, everybody's, or what was chosen. They recover no system, and need no ASR disk."""

import glob
import os
import pwd
from collections.abc import Generator, Iterable, Sequence
from pathlib import Path

from . import backup
from .backup import Entry, Selection, Source, write_backup
from .destinations import SUFFIX, check_new, file_at, refused, volume_of
from .events import Difference, Event, noted
from .files import read_back
from .run import ROOT
from .sif import now

__all__ = ["Entry", "back_up", "destination", "entries", "everyones", "mine", "select"]

# What the kernel shows of itself, in the form of files.
_NO_FILES = backup.PSEUDO - {"autofs", "overlay", "ramfs", "squashfs", "tmpfs"}


def mine() -> tuple[str, ...]:
    """The home of whoever started this, also through sudo."""
    name = os.environ.get("SUDO_USER")
    return (pwd.getpwnam(name).pw_dir if name else os.path.expanduser("~"),)


def everyones() -> tuple[str, ...]:
    """All homes that are there."""
    return tuple(path for path in ("/home", "/root") if (ROOT / path.lstrip("/")).is_dir())


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
    """Counts what will be backed up; returns the Selection."""
    sources, exclude, include = _what(paths)
    return (yield from backup.select(sources, exclude=exclude, include=include))


def back_up(paths: Sequence[str], path: Path, selection: Selection) -> Generator[Event, None, tuple[Difference, ...]]:
    """Writes files and directories to a backup and reads it back; returns what is not in it as it was.

    Raises DestinationFull, DestinationRefused, and DamagedBackup when it reads back differently: it is removed then.
    """
    sources, exclude, include = _what(paths)
    unlike: list[Difference] = []
    writing = write_backup(path, sources, selection=selection, exclude=exclude, include=include)
    # That all else is left out is what was asked for.
    yield from noted((e for e in writing if not (isinstance(e, Difference) and e.what in exclude)), unlike)
    yield from read_back(path)
    return tuple(unlike)


def _what(paths: Iterable[str]) -> tuple[list[Source], tuple[str, ...], tuple[str, ...]]:
    """Each file system that one of the paths is on, all of it left out but the paths."""
    points = {_mount_point(ROOT / path.lstrip("/")) for path in paths}
    sources = [Source(str(point), "" if point == ROOT else str(point.relative_to(ROOT))) for point in sorted(points)]
    return sources, ("*",), tuple(glob.escape(path.strip("/")) for path in paths)


def _mount_point(path: Path) -> Path:
    while path not in (ROOT, path.parent) and not os.path.ismount(path):
        path = path.parent
    return path

