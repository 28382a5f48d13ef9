"""The backups of ASR sets that are there: how old they are, whether they are whole, and how they are got rid of."""

import os
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from . import files
from .archive import files_of
from .destinations import reached, whole
from .errors import BackupNotFound, CommandFailed, DestinationRefused, NeedsRoot
from .events import Difference, Event
from .probe import mount_table
from .run import ROOT, log
from .sif import AsrSet, now
from .volumes import FOLDER, FoundBackup, every_backup, forget

__all__ = ["Medium", "delete", "forget", "known", "record_verified", "verify"]

VERIFIED = "var/lib/asr/verified"      # a file for each set by its id: when it was last compared, and what came out


@dataclass(frozen=True)
class Medium:
    """A backup that can be read now."""

    backup: FoundBackup
    size: int                          # bytes, of all its volumes
    verified: datetime | None = None   # when this computer last compared it
    damaged: int = 0                   # files that were damaged then; -1: the index alone was

    @property
    def set(self) -> AsrSet:
        return self.backup.set


def known() -> tuple[Medium, ...]:
    """All that are found, the newest first. Their volumes stay mounted, read-only, until forget(). Raises NeedsRoot."""
    if os.geteuid():
        raise NeedsRoot("Looking for backups on all volumes needs root.", hint="Quit, and run it with sudo.")
    found = (Medium(backup, sum(file.stat().st_size for file in files_of(whole(Path(backup.path)))),
                    *_last_verified(backup.set.id)) for backup in every_backup())
    return tuple(sorted(found, key=lambda medium: medium.set.created, reverse=True))


def verify(medium: Medium) -> Generator[Event, None, tuple[Difference, ...]]:
    """Compares every file with its checksum, and remembers what came out; returns what is damaged."""
    damaged = yield from files.verify(medium.backup.path)
    record_verified(medium.set.id, files.damaged_files(damaged) or -bool(damaged))
    return damaged


def record_verified(set_id: str, damaged: int) -> None:
    """damaged: as in Medium."""
    path = ROOT / VERIFIED / set_id
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{now().isoformat()} {damaged}\n")


def _last_verified(set_id: str) -> tuple[datetime | None, int]:
    try:
        when, damaged = (ROOT / VERIFIED / set_id).read_text().split()
        return datetime.fromisoformat(when), int(damaged)
    except (OSError, ValueError):
        return None, 0


def delete(medium: Medium) -> None:
    """Removes the backup's file, or all its volumes. All that known() found is unmounted for that.

    Raises BackupNotFound if it is not there any more, DestinationRefused if it can't be removed.
    """
    inner = Path(medium.backup.path).relative_to(FOLDER)
    below = Path(*inner.parts[1:])             # the first names the volume
    forget()
    with _writable(medium.backup.device) as top:
        files = files_of(whole(top / below))
        if not files:
            raise BackupNotFound(f"{medium.backup.place} is not there any more.", hint="Look again: F5.")
        try:
            for file in files:
                file.unlink()
        except OSError as error:
            raise DestinationRefused(f"{medium.backup.place} could not be removed: {error.strerror}.",
                                     hint="Its volume may be read-only.") from None
    (ROOT / VERIFIED / medium.set.id).unlink(missing_ok=True)
    log(f"Removed {medium.backup.place}, set {medium.set.id}, as asked")


@contextmanager
def _writable(device: str) -> Iterator[Path]:
    """A volume's top: where the computer has it mounted, else mounted for this."""
    for mount in mount_table():
        if mount.source == device:
            yield ROOT / mount.point.lstrip("/")
            return
    try:
        with reached(device) as top:
            yield top
    except CommandFailed as error:
        raise DestinationRefused(f"{device} cannot be written: {error}", hint="Look at it with fsck.") from None
