"""What a backup holds: find one, look into it, bring a part of it back, compare it with its checksums."""

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .archive import files_of
from .asr_disk import find_asr_disks
from .backup import Entry, damaged_files, list_directory, read_first, restore_backup, verify_backup
from .destinations import volume_of
from .errors import AsrError, DamagedBackup, DestinationRefused, NeedsRoot
from .events import Difference, Event, noted
from .network import TYPES, is_url
from .run import inside, run, write_out
from .sif import read_sif
from .volumes import FOLDER, FoundBackup, backups_at, every_backup, forget

__all__ = ["FOLDER", "Entry", "FoundBackup", "backups", "backups_on", "damaged_files", "disk_of", "entries", "extract",
           "forget", "is_url", "read_back", "verify"]


def backups() -> list[FoundBackup]:
    """Every backup that can be found, the newest first. Raises NeedsRoot."""
    if os.geteuid():
        raise NeedsRoot("Looking for backups on all volumes needs root.",
                        hint="Quit and run it with sudo, or extract from a file: asr extract BACKUP PATH --to DIR")
    return sorted(every_backup(), key=lambda found: found.set.created, reverse=True)


def backups_on(url: str) -> list[FoundBackup]:
    """Every backup at a network place or below, the newest first. Raises NetworkPlaceFailed, PasswordWanted.

    Of a file that the address names, what reading its set raises.
    """
    return sorted(backups_at(url), key=lambda found: found.set.created, reverse=True)


def entries(backup: str, directory: bytes) -> list[Entry]:
    """What is in a directory of the backup. Raises BackupNotFound, DamagedBackup."""
    return list_directory(Path(backup), directory)


def extract(backup: str, paths: Sequence[bytes], folder: str) -> Generator[Event, None, tuple[Difference, ...]]:
    """Brings files and directories back below a folder, by their paths in the backup; returns what is different.

    What is in their place there is replaced. Raises DestinationRefused, DestinationFull, BackupNotFound, DamagedBackup.
    """
    differences: list[Difference] = []
    target = _reached(folder)
    with _writable(target, folder):
        yield from noted(restore_backup(Path(backup), target, only=[os.fsdecode(path) for path in paths],
                                        anywhere=True), differences)
    return tuple(differences)


def verify(backup: str) -> Generator[Event, None, tuple[Difference, ...]]:
    """Compares every file with its checksum; returns the damaged ones. Raises BackupNotFound, DamagedBackup."""
    damaged: list[Difference] = []
    yield from noted(verify_backup(Path(backup)), damaged, "DAMAGED")
    return tuple(damaged)


def read_back(path: Path, as_written: Callable[[], bool] = lambda: True) -> Generator[Event, None, None]:
    """Compares a backup that was just written, and then asks `as_written`.

    What is not whole, or was not compared to its end, must not look as if it were: it is removed. Raises DamagedBackup.
    """
    whole = False
    try:
        damaged = yield from verify(str(path))
        whole = not damaged and as_written()
    finally:
        if not whole:
            for file in files_of(path):
                file.unlink()
    if not whole:
        count = damaged_files(damaged) or 1
        raise DamagedBackup(f"{path.name} was written, but reads back differently in {count} files.",
                            hint="Check the destination's disk, and back up again.",
                            untouched="The damaged backup was removed.")


def disk_of(backup: str) -> str:
    """Is the backup's ASR disk in a drive, and whole? A sentence that says so, or what was found instead."""
    try:
        set = read_sif(read_first(Path(backup)))
    except AsrError as error:
        return f"It is no backup of an ASR set: {error.message}"
    try:
        disks = find_asr_disks()
    except AsrError as error:
        return f"Its ASR disk was not seen: {error.message}"
    if ours := next((disk for disk in disks if disk.set.id == set.id), None):
        return f"Its ASR disk is whole, and in {ours.description}."
    other = disks[0]
    return (f"The ASR disk in {other.description} is of ANOTHER set: {other.set.host}, "
            f"{other.set.created:%Y-%m-%d %H:%M} UTC.")


def _reached(folder: str) -> Path:
    """A folder that a person named, as this process reaches it; the volumes that it has mounted are its own."""
    path = Path(os.path.normpath(folder))
    return path if path.is_relative_to(FOLDER) else Path(inside(folder))


@contextmanager
def _writable(folder: Path, said: str) -> Iterator[None]:
    """The folder is there, and its volume may be written, as long as this takes. Raises DestinationRefused.

    said: the folder as the person named it.
    """
    volume = volume_of(_above(folder, said))
    target, kind, device = volume["target"], volume["fstype"], volume["source"]
    ours = Path(target).is_relative_to(FOLDER)
    if kind in ("tmpfs", "ramfs", "overlay", "squashfs"):
        raise _refused(f"{said} is in this computer's memory and will be gone at the next start.",
                       f"Name a folder below {FOLDER}: there are this computer's volumes.")
    if kind in TYPES and ours:
        raise _refused(f"{said} is on the network, where backups are looked for and nothing is written.",
                       f"Name a folder below {FOLDER} that is on a volume of this computer.")
    # Looked at without its journal, a volume must be mounted anew: ext4 refuses to be made writable then.
    if ours:
        run(("umount", target))
        run(("mount", device, target))
    try:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _refused(f"{said} cannot be made: {error.strerror}.", "Name another folder.") from None
        yield
    finally:
        if ours:
            write_out(Path(target))
            # This mount alone: a running system may have the volume mounted, too, and goes on writing to it.
            run(("mount", "-o", "remount,bind,ro", target))


def _above(folder: Path, said: str) -> Path:
    """The folder, or of those above it the first that is there. Raises DestinationRefused."""
    above = folder
    try:
        while not above.exists():
            above = above.parent
    except OSError as error:
        raise _refused(f"{said} cannot be looked at: {error.strerror}.", "Name another folder.") from None
    if not above.is_dir():
        raise _refused(f"{said} is not a folder." if above == folder else f"{above.name}, above {said}, is not a "
                       "folder.", "Name a folder. One that is not there yet is made.")
    return above


def _refused(what: str, hint: str) -> DestinationRefused:
    return DestinationRefused(what, hint=hint, untouched="Nothing was restored.")
