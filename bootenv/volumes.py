"""Where the backup is: its place on the network, and every volume that can be read, are looked into for it."""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from . import network
from .backup import read_first
from .errors import BackupNotFound, DamagedBackup, DamagedSif, NewerSchema, NoAsrDisk, OtherSet
from .network import NetworkPlace
from .run import STATE, log, run
from .sif import LIMIT, AsrSet, read_sif

FOLDER = STATE / "volumes"             # where volumes are mounted, read-only, by the names of devices and servers
_SUFFIXES = (".tar.zst", ".tar.zst.001")
_DEPTH = 6                             # folders below a volume's root that are searched

# Somebody's file system is looked into without even replaying its journal.
LOOK = {"ext3": "ro,noload", "ext4": "ro,noload", "xfs": "ro,norecovery,nouuid", "btrfs": "ro,rescue=nologreplay"}
_NO_VOLUME = ("", "swap", "squashfs", "LVM2_member", "linux_raid_member", "crypto_LUKS")


@dataclass(frozen=True)
class FoundBackup:
    """A backup of the set that was asked for, readable now."""

    path: str
    place: str                         # for people: folder and disk
    set: AsrSet
    device: str = ""                   # that it lies on; "" for a path that a person named, or on the network


@dataclass(frozen=True)
class Volume:
    """A file system on a device, to be looked into at a place of its own."""

    device: str
    type: str
    uuid: str
    label: str

    @property
    def name(self) -> str:
        return f"{self.label} ({self.device})" if self.label else self.device

    @property
    def point(self) -> Path:
        return FOLDER / self.device.removeprefix("/dev/").replace("/", "-")

    def mount(self, options: str) -> bool:
        self.point.mkdir(parents=True, exist_ok=True)
        if not self.point.is_mount():
            run(("mount", "-o", options, self.device, str(self.point)), check=False)
        return self.point.is_mount()

    def look(self) -> bool:
        """Mount it so that nothing on it changes; False: it can't be.

        What a running system has mounted can't be mounted with these options: it is seen through that mount.
        """
        if self.mount(LOOK.get(self.type, "ro")):
            return True
        seen = run(("findmnt", "--noheadings", "--first-only", "--output", "TARGET", "--source", self.device),
                   check=False).strip()
        if seen:
            run(("mount", "--bind", "-o", "ro", seen, str(self.point)), check=False)
        return self.point.is_mount()

    def unmount(self) -> None:
        run(("umount", str(self.point)), check=False)


def find_backup(set: AsrSet) -> FoundBackup:
    """The set's backup, at its recorded place or wherever a volume that is not being recovered has it.

    The volume that holds it stays mounted until forget(). Raises BackupNotFound (of the network NetworkPlaceFailed, or
    PasswordWanted), and then leaves all volumes mounted below FOLDER, so that a person can look for it.
    """
    if set.provider:
        return _find_place(set)
    forget()
    trouble = None
    if set.backup.network:
        try:
            return _on_network(network.parse(set.backup.network), set)
        except BackupNotFound as error:
            log(f"{error.code} {error}")
            trouble = error
    if found := on_volumes(set):               # somebody may have brought a copy
        return found
    searched = [volume.name for volume in _candidates(set) if volume.look()]
    if trouble:
        raise trouble
    raise BackupNotFound(
        f"The backup {set.backup.name} of set {set.id} was not found. It was written to {set.backup.place}"
        + (f" on the volume {set.backup.label}" if set.backup.label else "")
        + f". Searched: {', '.join(searched) or 'there is no disk to search'}.",
        hint="Connect the disk that holds the backup and press ENTER.",
    )


def on_volumes(set: AsrSet) -> FoundBackup | None:
    """The set's backup on this computer's volumes. The one that holds it stays mounted until forget()."""
    for volume in _candidates(set):
        if not volume.look():
            continue
        recorded = volume.point / set.backup.path.lstrip("/") / set.backup.name
        found = next((p for p in chain((recorded,), _backups_below(volume.point)) if _set_id(p) == set.id), None)
        volume.unmount()
        if found:
            # With its journal, so that what was written last is there; as before if it is mounted elsewhere, too.
            _ = volume.mount("ro") or volume.look()
            return FoundBackup(str(found), f"/{found.relative_to(volume.point)} on {volume.name}", set, volume.device)
    return None


def _candidates(set: AsrSet) -> list["Volume"]:
    """The volumes that may hold a set's backup, the recorded one first."""
    own = frozenset(f.uuid for f in set.layout.filesystems if f.uuid)
    return sorted(_volumes(own), key=lambda v: v.uuid != set.backup.filesystem)


def password_wanted(set: AsrSet) -> NetworkPlace | None:
    """The place on the network whose password must be said before the backup can be read; None if none must be."""
    if not set.backup.network:
        return None
    place = network.parse(set.backup.network)
    if not network.wants_password(place) or (not set.provider and on_volumes(set)):
        return None
    return place


def _on_network(place: NetworkPlace, set: AsrSet) -> FoundBackup:
    """The set's backup at a place or anywhere below. Raises BackupNotFound, NetworkPlaceFailed, PasswordWanted."""
    folder = _looked_at(place)
    for path in chain((folder / set.backup.name,), _backups_below(folder)):
        if _set_id(path) == set.id:
            return FoundBackup(str(path), f"{place.url}/{path.relative_to(folder)}", set)
    raise BackupNotFound(f"The backup {set.backup.name} of set {set.id} was not found at {place.url} or below.",
                         hint="Look for it on the server, and name its folder.")


def _looked_at(place: NetworkPlace) -> Path:
    """The folder of a network place, mounted below FOLDER until forget(). Raises NetworkPlaceFailed, PasswordWanted."""
    point = FOLDER / place.name
    if point.is_mount():
        run(("umount", str(point)))            # what was mounted there may be gone
    return network.mount(place, point)


def _find_place(set: AsrSet) -> FoundBackup:
    """Where a provider's backup is: the recorded folder on its volume; what is elsewhere is the provider's to find.

    Raises BackupNotFound.
    """
    forget()
    if set.backup.network:
        return FoundBackup(str(_looked_at(network.parse(set.backup.network))), set.backup.network, set)
    if not set.backup.filesystem:
        return FoundBackup(set.backup.place, set.backup.place, set)
    volumes = list(_volumes(frozenset()))
    for volume in volumes:
        folder = volume.point / set.backup.path.lstrip("/")
        if volume.uuid == set.backup.filesystem and (volume.mount("ro") or volume.look()) and folder.is_dir():
            return FoundBackup(str(folder), f"{set.backup.path} on {volume.name}", set, volume.device)
    for volume in volumes:
        volume.look()
    raise BackupNotFound(
        f"The volume {set.backup.label or set.backup.filesystem} was not found, or has no folder {set.backup.path}. "
        f"The backup was written to {set.backup.place}.",
        hint="Connect the disk that holds the backup and press ENTER.")


def every_volume() -> Iterator[Path]:
    """Where each volume of this computer is mounted, read-only, until forget(); floppy disks, too."""
    forget()
    floppies = (Volume(str(path), "vfat", "", "") for path in sorted(Path("/dev").glob("fd[0-9]")))
    for volume in chain(_volumes(frozenset()), floppies):
        if volume.look():
            yield volume.point


def every_backup() -> Iterator[FoundBackup]:
    """Each ASR set's backup on the volumes of this computer, which stay mounted, read-only, until forget()."""
    forget()
    for volume in _volumes(frozenset()):
        if not volume.look():
            continue
        for path in _backups_below(volume.point):
            if set := _set_of(path):
                yield FoundBackup(str(path), f"/{path.relative_to(volume.point)} on {volume.name}", set, volume.device)


def backups_at(place: str) -> Iterator[FoundBackup]:
    """Each ASR set's backup at a path or an address that a person named, or below; the network's until forget().

    Raises NetworkPlaceFailed, PasswordWanted, and for a file that was named itself BackupNotFound, DamagedBackup,
    DamagedSif and NewerSchema.
    """
    top = _named(place)
    if is_backup(top):
        yield FoundBackup(str(top), place, read_sif(read_first(top)))
        return
    for path in _backups_below(top):
        if set := _set_of(path):
            yield FoundBackup(str(path), f"{place.rstrip('/')}/{path.relative_to(top)}", set)


def _named(place: str) -> Path:
    """A file or folder that a person named, as it is reached here. Raises NetworkPlaceFailed, PasswordWanted."""
    if not network.is_url(place):
        return Path(place)
    url = network.parse(place)
    name = Path(url.path).name
    return _looked_at(url.parent) / name if is_backup(Path(name)) else _looked_at(url)


def is_backup(path: Path) -> bool:
    """By its name."""
    return path.name.endswith(_SUFFIXES)


def backups_in(folder: Path) -> Iterator[tuple[Path, AsrSet]]:
    """Each ASR set's backup in a folder (of volumes the first), and its set."""
    for path in sorted(folder.iterdir()):
        if is_backup(path) and (set := _set_of(path)):
            yield path, set


def begun_in(folder: Path) -> Iterator[tuple[Path, AsrSet]]:
    """The same of backups that are not whole: they are being written, or whoever wrote them was killed."""
    for path in sorted(folder.glob("*.part")):
        if is_backup(path.with_suffix("")) and (set := _set_of(path)):
            yield path, set


def open_backup(path: str, set: AsrSet) -> FoundBackup:
    """The backup at a path that a person named, or at an address on the network or anywhere below.

    Raises BackupNotFound, NetworkPlaceFailed, PasswordWanted, DamagedBackup, OtherSet.
    """
    if set.provider:                   # which says whether its backup is there
        return FoundBackup(str(_named(path)) if network.is_url(path) else path, path, set)
    if network.is_url(path) and not is_backup(Path(path)):
        return _on_network(network.parse(path), set)
    file = _named(path)
    if not file.is_file():
        raise BackupNotFound(f"There is no file {path}.", hint="Type the path again.")
    other = read_sif(read_first(file))
    if other.id != set.id:
        raise OtherSet(
            f"The backup belongs to another ASR set: expected {set.host}, {set.created:%Y-%m-%d %H:%M}; "
            f"found {other.host}, {other.created:%Y-%m-%d %H:%M}.",
            hint="Choose the backup that was made together with the ASR disk.")
    return FoundBackup(str(file), path, set)


def read_copy(path: Path) -> AsrSet:
    """The set of a copy of asr.sif: the file itself, or the first in a backup (or in a backup's first volume).

    Raises NoAsrDisk, DamagedSif, NewerSchema, BackupNotFound, DamagedBackup.
    """
    if not path.exists():
        raise NoAsrDisk(f"There is no file {path}.", hint="Name a backup of an ASR set, or a copy of its asr.sif.")
    if is_backup(path):
        return read_sif(read_first(path))
    with path.open("rb") as file:
        return read_sif(file.read(LIMIT + 1))


def forget() -> None:
    """Unmounts what was mounted to be looked into."""
    for point in FOLDER.iterdir() if FOLDER.exists() else ():
        if point.is_mount():
            run(("umount", str(point)), check=False)


def _volumes(own: frozenset[str]) -> Iterator[Volume]:
    """Volumes that may hold a backup; `own` are the UUIDs of those that will be formatted."""
    text = run(("lsblk", "--json", "--list", "--output", "PATH,TYPE,FSTYPE,UUID,LABEL"))
    for row in json.loads(text)["blockdevices"]:
        if row["type"] == "loop" or row["uuid"] in own or (row["fstype"] or "") in _NO_VOLUME:
            continue
        yield Volume(row["path"], row["fstype"], row["uuid"] or "", row["label"] or "")


def _backups_below(point: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(point):
        if len(Path(folder).relative_to(point).parts) >= _DEPTH:
            folders.clear()
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(_SUFFIXES))


def _set_id(path: Path) -> str:
    """The set id of a backup; "" for what is not a readable one."""
    set = _set_of(path)
    return set.id if set else ""


def _set_of(path: Path) -> AsrSet | None:
    try:
        return read_sif(read_first(path))
    except (OSError, BackupNotFound, DamagedBackup, DamagedSif, NewerSchema):
        return None
