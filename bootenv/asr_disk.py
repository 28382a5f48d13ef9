"""Write, find and read the ASR disk: a floppy, a floppy image, a USB stick or a folder with asr.sif in its root.

FAT is mtools' business (https://www.gnu.org/software/mtools/manual/mtools.html): it reads and writes a device or
an image without mounting it.
"""

import os
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .backup import read_first
from .errors import (
    AsrDiskFull,
    AsrDiskNotBlank,
    AsrDiskUnwritable,
    AsrError,
    CommandFailed,
    DamagedSif,
    NewerSchema,
    NoAsrDisk,
    OtherSet,
)
from .run import ROOT, log, run
from .sif import AsrSet, read_sif

SIF = "asr.sif"
_FLOPPY_SECTORS = 1440                 # of 1 KiB, as mkfs.fat counts


@dataclass(frozen=True)
class AsrDisk:
    """A disk with a whole asr.sif, in a drive of this computer."""

    device: str
    description: str                   # for people
    set: AsrSet


def find_asr_disk() -> AsrDisk:
    """The ASR disk in any drive, looked for once.

    Raises NoAsrDisk; DamagedSif or NewerSchema when the only asr.sif found can't be used; OtherSet when the disks of
    two sets are inserted.
    """
    found, error = [], None
    for device in _drives():
        try:
            data = read_asr_disk(device).get(SIF)
            if data is not None:
                found.append(AsrDisk(device, describe(device), read_sif(data)))
        except (DamagedSif, NewerSchema) as this:
            error = this
        except AsrError as this:
            log(f"{device}: {this}")
    if len({disk.set.id for disk in found}) > 1:
        names = " and ".join(f"{d.set.host} of {d.set.created:%Y-%m-%d %H:%M}" for d in found)
        raise OtherSet(f"ASR disks of different sets are inserted: {names}.",
                       hint="Leave only the disk of this computer inserted and press ENTER.")
    if found:
        return found[0]
    raise error or NoAsrDisk(
        "Setup could not find an ASR disk in any drive.",
        hint="Insert the disk labeled Automated System Recovery Disk and press ENTER.",
    )


def read_asr_disk(place: str) -> dict[str, bytes]:
    """The files in the root of an ASR disk that are ASR's; empty for a disk with none.

    Raises AsrDiskUnwritable never, CommandFailed for a disk that can't be read.
    """
    if os.path.isdir(place):
        return {name: (Path(place) / name).read_bytes() for name in (SIF,) if (Path(place) / name).exists()}
    with tempfile.TemporaryDirectory(prefix="asr-") as folder:
        if SIF not in _names(place):
            return {}
        run(("mcopy", "-n", "-i", place, f"::/{SIF}", folder))
        return {SIF: (Path(folder) / SIF).read_bytes()}


def check_belongs(place: str, backup: Path) -> AsrSet:
    """The set that an ASR disk and a backup are of.

    Raises NoAsrDisk, OtherSet, DamagedSif and NewerSchema (of either), BackupNotFound, DamagedBackup, CommandFailed.
    """
    data = read_asr_disk(place if os.path.isdir(place) else _filesystem_of(place)).get(SIF)
    if data is None:
        raise NoAsrDisk(f"{place} has no asr.sif.", hint="Insert the ASR disk that was made with this backup.")
    ours, other = read_sif(data), read_sif(read_first(backup))
    if ours.id != other.id:
        raise OtherSet(
            f"The disk is of {ours.host}, {ours.created:%Y-%m-%d %H:%M}; the backup is of {other.host}, "
            f"{other.created:%Y-%m-%d %H:%M}.", hint="Take the ASR disk that was made with this backup.")
    return ours


def check_writable(place: str, host: str) -> None:
    """Raises AsrDiskNotBlank when the disk holds another computer's set, AsrDiskUnwritable when it can't be used."""
    try:
        data = read_asr_disk(_filesystem_of(place)).get(SIF) if os.path.exists(place) else None
    except CommandFailed as error:
        raise AsrDiskUnwritable(
            f"{place} is not a readable FAT disk ({error}).",
            hint=f"Insert a formatted disk. To format this one: mkfs.fat -F 12 -n ASR {place}",
        ) from None
    if data is None:
        return
    try:
        other = read_sif(data)
    except (DamagedSif, NewerSchema):
        raise AsrDiskNotBlank(f"{place} holds an asr.sif that this version can't read.",
                              hint="Insert another disk, or delete that file.") from None
    if other.host != host:
        raise AsrDiskNotBlank(f"{place} is the ASR disk of {other.host}, created {other.created:%Y-%m-%d}.",
                              hint="Insert another disk, or delete its asr.sif.")


def write_asr_disk(place: str, files: Mapping[str, bytes]) -> None:
    """Writes files into the root of a device, an image file (made if it isn't there) or a folder, and syncs.

    Raises AsrDiskFull and AsrDiskUnwritable; other files on the disk stay.
    """
    if os.path.isdir(place):
        for name, data in files.items():
            _write_file(Path(place) / name, data)
        return
    if not os.path.exists(place):
        if place.startswith("/dev/"):          # a file of that name would lie in memory
            raise AsrDiskUnwritable(f"There is no device {place}.", hint="Connect the drive, or name another place.")
        run(("mkfs.fat", "-C", "-F", "12", "-n", "ASR", place, str(_FLOPPY_SECTORS)))
    device = _filesystem_of(place)
    with tempfile.TemporaryDirectory(prefix="asr-") as folder:
        for name, data in files.items():
            (Path(folder) / name).write_bytes(data)
            try:
                run(("mcopy", "-o", "-i", device, str(Path(folder) / name), f"::/{name}"))
            except CommandFailed as error:
                if "full" in str(error).lower():
                    raise AsrDiskFull(f"There is no room for {name} on {place}.",
                                      hint="Insert an empty disk.") from None
                raise AsrDiskUnwritable(f"{place} could not be written: {error}",
                                        hint="Open the disk's write protection, or insert another disk.") from None
    flush(place)


def flush(place: str) -> None:
    """What is read from the disk next comes from the disk, not from memory. Raises AsrDiskUnwritable."""
    try:
        with open(place, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if Path(place).is_block_device():
            run(("blockdev", "--flushbufs", place))
    except (OSError, CommandFailed) as error:
        raise AsrDiskUnwritable(f"{place} could not be written to its end: {error}",
                                hint="Insert another disk.") from None


def describe(device: str) -> str:
    """A drive in a person's words."""
    if device.startswith("/dev/fd"):
        return "floppy disk drive " + "AB"[int(device[7:8] or 0)] + ":"
    text = run(("lsblk", "--noheadings", "--nodeps", "--output", "LABEL,SIZE", device), check=False)
    return " ".join([device, *text.split()])


def _drives() -> Iterator[str]:
    """Every floppy drive with a disk in it, then every FAT volume that is not the recovery medium."""
    for number in (0, 1):
        device = f"/dev/fd{number}"
        try:
            # An empty drive answers with ENXIO; udev and lsblk don't look into floppy drives at all.
            os.close(os.open(device, os.O_RDONLY | os.O_CLOEXEC))
        except OSError:
            continue
        yield device
    # Exit status 2: none found.
    found = run(("blkid", "--cache-file", "/dev/null", "--match-token", "TYPE=vfat", "--output", "device"), check=False)
    yield from (device for device in found.split() if not device.startswith("/dev/fd"))


def _filesystem_of(place: str) -> str:
    """A disk's first FAT partition where it has partitions, else the place itself."""
    if not Path(place).is_block_device():
        return place
    text = run(("lsblk", "--noheadings", "--list", "--output", "PATH,FSTYPE", place), check=False)
    rows = [line.split() for line in text.splitlines()]
    return next((row[0] for row in rows if row[1:] == ["vfat"]), place)


def _names(place: str) -> set[str]:
    return {line.strip().removeprefix("::/").lower() for line in run(("mdir", "-b", "-i", place, "::/")).splitlines()}


def _write_file(path: Path, data: bytes) -> None:
    try:
        with path.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        kind = AsrDiskFull if error.errno in (28, 122) else AsrDiskUnwritable
        raise kind(f"{path} could not be written: {error.strerror}.", hint="Use another disk.") from None


def inside(place: str) -> str:
    """A place that a user named, as this process reaches it: device nodes are the same, paths lie under ROOT."""
    if place.startswith("/dev/"):
        return place
    # Started from the medium, the program has left the folder that the user is in.
    here = os.environ.get("ASR_CWD", os.getcwd())
    return str(ROOT / os.path.normpath(os.path.join(here, place)).lstrip("/"))
