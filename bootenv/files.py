"""Single files from a backup, on the recovery medium: find a backup, look into it, bring a part of it back."""

import os
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .backup import Entry, list_directory, restore_backup
from .errors import DestinationRefused, NeedsRoot
from .events import Difference, Event
from .run import log, run
from .volumes import FOLDER, FoundBackup, every_backup, forget

__all__ = ["FOLDER", "Entry", "FoundBackup", "backups", "entries", "extract", "forget"]


def backups() -> list[FoundBackup]:
    """Every backup that can be found, the newest first. Raises NeedsRoot."""
    if os.geteuid():
        raise NeedsRoot("Looking for backups on all volumes needs root.",
                        hint="Quit and run it with sudo, or extract from a file: asr extract BACKUP PATH --to DIR")
    return sorted(every_backup(), key=lambda found: found.set.created, reverse=True)


def entries(backup: str, directory: bytes) -> list[Entry]:
    """What is in a directory of the backup. Raises BackupNotFound, DamagedBackup."""
    return list_directory(Path(backup), directory)


def extract(backup: str, paths: Sequence[bytes], folder: str) -> Generator[Event, None, tuple[Difference, ...]]:
    """Brings files and directories back below a folder, by their paths in the backup; returns what is different.

    What is in their place there is replaced. Raises DestinationRefused, DestinationFull, BackupNotFound, DamagedBackup.
    """
    differences = []
    with _writable(Path(folder)):
        for event in restore_backup(Path(backup), Path(folder), only=[os.fsdecode(path) for path in paths],
                                    anywhere=True):
            if isinstance(event, Difference):
                differences.append(event)
                log(f"DIFFERENCE {event.what}: {event.why}")
            yield event
    return tuple(differences)


@contextmanager
def _writable(folder: Path) -> Iterator[None]:
    """The folder is there, and its volume may be written, as long as this takes. Raises DestinationRefused."""
    above = folder
    while not above.exists():
        above = above.parent
    target, kind = run(("findmnt", "--noheadings", "--target", str(above), "--output", "TARGET,FSTYPE")).split()
    if kind in ("tmpfs", "ramfs", "overlay", "squashfs"):
        raise DestinationRefused(f"{folder} is in this computer's memory and will be gone at the next start.",
                                 hint=f"Name a folder below {FOLDER}: there are this computer's volumes.",
                                 untouched="Nothing was restored.")
    # Looked at without its journal, a volume must be mounted anew: ext4 refuses to be made writable then.
    ours = Path(target).is_relative_to(FOLDER)
    device = run(("findmnt", "--noheadings", "--mountpoint", target, "--output", "SOURCE")).strip()
    if ours:
        run(("umount", target))
        run(("mount", device, target))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        if ours:
            run(("mount", "-o", "remount,ro", target))
