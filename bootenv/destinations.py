"""Where a backup may be written: every volume and network place of this computer, and why one won't do."""

import fcntl
import glob
import json
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any

from . import network
from .archive import check_new, lock_if_abandoned
from .asr_disk import same_machine
from .errors import AsrError, Busy, CommandFailed, DestinationRefused, refused
from .layout import Layout, human
from .probe import Mounted, mount_table
from .run import ROOT, STATE, inside, log, run, unmounting
from .sif import AsrSet, BackupReference
from .volumes import Volume, begun_in

SUFFIX = ".tar.zst"
SPLIT = "This FAT volume holds files of up to 4 GB; a larger backup is split into numbered files."
POINT = STATE / "destination"          # where a volume that was not mounted is, as long as it is needed
LOCK = STATE / "prepare.lock"          # of who mounts there, or below prepare.SOURCES
_KINDS = ("disk", "part", "rom")       # of devices that the recovery medium mounts by itself
_TYPES = ("ext2", "ext3", "ext4", "xfs", "btrfs", "vfat", "exfat", "ntfs", "ntfs3", "fuseblk", "f2fs")
_MEMORY = ("tmpfs", "ramfs", "overlay", "squashfs")
# File systems beside network.TYPES that are known to show what another computer holds; others may show any folder.
_REMOTE = ("9p", "afs", "ceph", "davfs", "fuse.ceph", "fuse.curlftpfs", "fuse.davfs", "fuse.glusterfs", "fuse.rclone",
           "fuse.s3fs", "fuse.sshfs", "glusterfs", "lustre")
_THIS_COMPUTER = r"(//|\w+@)?\[?(localhost|127\.|::1\b)"      # begins the source of what it serves itself
_LEAST_FREE = 64 * 2**20               # bytes; less holds no system's backup
_VFAT_FILE = 2**32 - 1                 # bytes, the largest file of FAT32

# What an estimate stands on: zstd's first level makes of a system's files a good half, and of hardly any system less
# than a sixth; two processors compress so many bytes of files in a second.
_SHRINKS = 0.55
_AT_BEST = 1 / 6
_ENGINE = 150 * 2**20
_PROBE = 16 * 2**20                    # bytes written to measure a destination's speed
_PROBE_SECONDS = 3.0
_NETWORK_SECONDS = 5                   # a server that takes longer to say how much is free is not there


@dataclass(frozen=True)
class Place:
    """A volume of this computer, or a network place that is mounted."""

    where: str                 # the mount point; of a volume that is not mounted, the device
    device: str                # device node, or server and path
    type: str                  # of its file system
    label: str = ""
    size: int = 0              # bytes
    free: int = 0              # bytes
    refused: str = ""          # why no backup may be written there, a sentence; "" if one may

    @property
    def doubt(self) -> str:
        """Why it may be lost together with this computer's disks, a sentence; "" if it is on another one."""
        return _doubt(self.where, self.device, self.type)


@dataclass(frozen=True)
class Destination:
    """A place for the backup that recovery will not format."""

    path: Path                 # of the backup file, as this process reaches it
    reference: BackupReference
    free: int                  # bytes
    warnings: tuple[str, ...] = ()
    device: str = ""           # of a volume, or a network place's address, that is mounted only as long as it is needed
    speed: int = 0             # bytes per second that it took; 0: not measured
    notes: tuple[str, ...] = ()        # what a provider says of it


def backup_size(used: int) -> int:
    """About how many bytes the backup of so many bytes of files has."""
    return int(used * _SHRINKS)


def seconds_for(used: int, speed: int) -> float:
    """About how long it takes to write a backup and to read it back, at a destination of this speed."""
    return max(used / _ENGINE, backup_size(used) / speed) + backup_size(used) / speed if speed else 0.0


_held: list[IO[str]] = []              # LOCK, once for each block of alone() that this process is in


@contextmanager
def alone(told: Callable[[str], None] | None = None) -> Iterator[None]:
    """One preparation at a time, and one process that mounts what it needs for that.

    What is found mounted in the block was left by one that was killed. The block may be entered again within itself.
    told: waits for one that is under way, and says so. Raises Busy without.
    """
    lock = _held[0] if _held else _locked(told)
    _held.append(lock)
    try:
        yield
    finally:
        _held.pop()
        if not _held:
            lock.close()


def _locked(told: Callable[[str], None] | None) -> IO[str]:
    busy = "Another ASR set of this computer is being prepared right now"
    LOCK.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:                 # Ctrl+C may end the wait
        file = stack.enter_context(LOCK.open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                raise Busy(f"{busy}.", hint="Wait until that has ended, then try again.",
                           untouched="That one goes on.") from None
            told(f"{busy}; this one waits until that has ended.")
            fcntl.flock(file, fcntl.LOCK_EX)
        stack.pop_all()
    return file


# Which places there are

def places(set: AsrSet, used: int) -> tuple[Place, ...]:
    """Every place that there is, the one to choose first: the largest suitable volume, then network places.

    Volumes that are not mounted are looked into, without a change on them, to see how much is free.
    """
    # NAME makes it a tree.
    text = run(("lsblk", "--json", "--bytes", "--output", "NAME,PATH,TYPE,FSTYPE,LABEL,SIZE,RO"))
    found = parse_places(text, mount_table(), set.layout)
    measured = (_with_room(place, used) for place in found)
    return tuple(sorted(measured, key=lambda p: (bool(p.refused), not p.device.startswith("/dev/"), -p.free, p.where)))


def parse_places(text: str, mounted: Iterable[Mounted], layout: Layout) -> Iterator[Place]:
    """The places among lsblk's devices and the mounts, not measured yet."""
    mounted = list(mounted)
    critical = {disk.path for disk in layout.disks}
    seen: dict[str, Place] = {}

    def walk(rows: list[dict[str, Any]], on: str) -> None:
        for row in rows:
            path, kind, type = row["path"], row["type"], row["fstype"] or ""
            disk = path if path in critical else on
            # FAT over a whole stick has a partition table in its first sector that says so.
            walk([] if type in _TYPES else row.get("children", []), disk)
            points = [m for m in mounted if m.source == path]
            if kind in ("loop", "rom") or (type not in _TYPES and not points) or path in seen:
                continue
            # Several mounts of one volume are one place: that of the whole volume, if it is among them.
            point = min(points, key=lambda m: (m.root != "/", len(m.point)), default=None)
            place = Place(point.point if point else path, path, type or (point.type if point else ""),
                          row["label"] or "", int(row["size"] or 0))
            seen[path] = replace(place, refused=_why_not(path, kind, place.type, disk, bool(row["ro"])))

    walk(json.loads(text)["blockdevices"], "")
    yield from seen.values()
    for mount in mounted:
        if not mount.source.startswith("/dev/") and mount.type not in _MEMORY:
            yield Place(mount.point, mount.source, mount.type)


def _why_not(device: str, kind: str, type: str, critical: str, read_only: bool) -> str:
    """The sentence that refuses a volume; critical: the disk below it that recovery formats, if any."""
    if critical:
        on = f" lies on {critical}, which" if critical != device else ""
        return f"{device}{on} holds a part of this system: recovery formats it, and the backup with it."
    if kind not in _KINDS:
        return f"{device} is of the kind {kind}, which this version's recovery cannot open."
    if type not in _TYPES:
        return f"{device} has a file system [{type}] that recovery cannot read."
    return f"{device} is read-only." if read_only else ""


def _doubt(place: str, source: str, type: str) -> str:
    if source.startswith("/dev/") or (type in (*network.TYPES, *_REMOTE) and not re.match(_THIS_COMPUTER, source)):
        return ""
    return (f"{place} ({type}) is not known to be elsewhere: if its files lie on a disk that recovery formats, the "
            "backup is lost with it.")


def _with_room(place: Place, used: int) -> Place:
    if place.refused:
        return place
    try:
        size, free = _room(place)
    except AsrError as error:
        return replace(place, refused=error.message)
    return replace(place, size=size, free=free, refused=_too_small(place.where, free, used))


def _room(place: Place) -> tuple[int, int]:
    """Its size and what is free. Raises DestinationRefused."""
    if place.where.startswith("/dev/"):
        volume = Volume(place.device, place.type, "", place.label)
        if not volume.look():
            raise refused(f"{place.device} cannot be mounted.", "Look at it with fsck, or choose another place.")
        try:
            status = os.statvfs(volume.point)
        finally:
            volume.unmount()
        return status.f_blocks * status.f_frsize, status.f_bavail * status.f_frsize
    # In a process that can be ended: a server that is gone never answers.
    words = run(("timeout", "--signal=KILL", str(_NETWORK_SECONDS), "stat", "--file-system", "--format=%S %b %a",
                 str(ROOT / place.where.lstrip("/"))), check=False).split()
    if len(words) != 3:
        raise refused(f"{place.where} does not answer.", "Check its server and cable.")
    block, blocks, free = map(int, words)
    return block * blocks, block * free


def _too_small(where: str, free: int, used: int) -> str:
    if free >= max(_LEAST_FREE, int(used * _AT_BEST)):
        return ""
    return f"{where} has {human(free)} free, which cannot hold a backup of {human(used)} of files."


# The one that is chosen

def destination(set: AsrSet, used: int, place: str, name: str = "") -> Destination:
    """A place that the user named, checked: a folder, the file itself, a volume that is not mounted, or an address.

    name: of the file, "" for one made of the computer's name and the time. Raises DestinationRefused, and for an
    address NetworkPlaceFailed, PasswordWanted, ToolMissing.
    """
    name = name or f"{set.host}-{set.created:%Y%m%d-%H%M}{SUFFIX}"
    if "/" in name or name.startswith("."):
        raise refused(f"{name} is not a file's name.", "Type a name without a slash.")
    if not name.endswith(SUFFIX):
        name += SUFFIX
    if place.startswith("/dev/"):
        return _on_device(set, used, place, name)
    if network.is_url(place):
        return _on_network(set, used, network.parse(place).url, name)
    return _checked(set, used, place, file_at(place, name))


def file_at(place: str, name: str) -> Path:
    """The file of a place that is one, or a folder for a file of this name. Raises DestinationRefused."""
    path = Path(inside(place))
    if path.is_dir():
        path /= name
    elif not path.name.endswith(SUFFIX):
        raise refused(f"There is no folder {place}.", f"Name a folder that is there, or a file that ends in {SUFFIX}.")
    return path


def _on_device(set: AsrSet, used: int, device: str, name: str) -> Destination:
    """A volume by its node: where it is mounted, or mounted for the time being."""
    if not Path(device).exists():
        raise refused(f"There is no device {device}.", "Connect it, or name another place.")
    device = os.path.realpath(device)          # of /dev/disk/by-uuid, by-label
    for mount in mount_table():
        if mount.source == device:
            folder = ROOT / mount.point.lstrip("/")
            return _checked(set, used, mount.point, folder / name)
    if on := on_critical_disk(set.layout, device):         # before anything is mounted
        raise _refused_critical(device, on)
    with reached(device) as folder:
        found = _checked(set, used, device, folder / name)
    return replace(found, device=device, reference=replace(found.reference, place=device))


def _on_network(set: AsrSet, used: int, url: str, name: str) -> Destination:
    """A place on the network, mounted for the time being."""
    with reached(url) as folder:
        found = _checked(set, used, url, folder / name, url)
    return replace(found, device=url, reference=replace(found.reference, place=url))


@contextmanager
def at(destination: Destination) -> Iterator[None]:
    """The destination can be written; what is mounted for that is unmounted, whatever happens."""
    if not destination.device:
        yield
        return
    with reached(destination.device):
        yield


@contextmanager
def reached(device: str) -> Iterator[Path]:
    """A volume, or a place on the network by its address, mounted for writing as long as this takes.

    Raises DestinationRefused, Busy; of the network NetworkPlaceFailed, PasswordWanted, ToolMissing.
    """
    with alone():
        POINT.mkdir(parents=True, exist_ok=True)
        if POINT.is_mount():
            run(("umount", str(POINT)))
        with unmounting(POINT):
            if network.is_url(device):
                yield network.mount(network.parse(device), POINT, write=True)
                return
            try:
                run(("mount", device, str(POINT)))
            except CommandFailed as error:
                raise refused(f"{device} cannot be mounted: {error}", "Choose another place.") from None
            yield POINT


def _checked(set: AsrSet, used: int, place: str, path: Path, url: str = "") -> Destination:
    """url: the address by which the folder was mounted."""
    folder = path.parent
    check_new(path)
    volume = volume_of(folder)
    if volume["fstype"] in _MEMORY:
        raise refused(f"{place} is in this computer's memory and will be gone at the next start.",
                       "Choose a disk that stays.")
    if on := on_critical_disk(set.layout, volume["source"]):
        raise _refused_critical(place, on)
    local = volume["source"].startswith("/dev/")
    kind = run(("lsblk", "--nodeps", "--noheadings", "--output", "TYPE", volume["source"]), check=False).strip()
    if local and kind and (why := _why_not(volume["source"], kind, volume["fstype"], "", False)):
        raise refused(f"{place} will not do: {why}", "Choose a place directly on another disk or on the network.")
    if not os.access(folder, os.W_OK) or os.statvfs(folder).f_flag & os.ST_RDONLY:
        raise refused(f"{place} is not writable.", "Choose another place, or mount it writable." if local else
                      "Let root of this computer write there (NFS: no_root_squash), or choose another place.")
    _remove_abandoned(set, folder)
    status = os.statvfs(folder)
    free = status.f_bavail * status.f_frsize
    if why := _too_small(place, free, used):
        raise refused(why, "Choose a place with more room.")
    inner = "/" + os.path.relpath(folder, POINT if POINT.is_mount() and folder.is_relative_to(POINT)
                                  else ROOT / volume["target"].lstrip("/"))
    inner = os.path.normpath(inner)
    reference = BackupReference(
        name=path.name, place="/" + os.path.relpath(folder, ROOT), filesystem=volume["uuid"] or "",
        path=inner, label=volume["label"] or "",
        network=url or ("" if local else network.url_of(volume, inner)))
    warnings = tuple(_warnings(place, volume, reference.network, free, used))
    return Destination(path, reference, free, warnings, speed=measured(folder))


def _warnings(place: str, volume: dict[str, str], url: str, free: int, used: int) -> Iterator[str]:
    if free < used:
        yield (f"{human(free)} are free; the files to back up have {human(used)} before compression. If it runs full, "
               "no set is made.")
    if volume["fstype"] == "vfat" and backup_size(used) > _VFAT_FILE:
        yield SPLIT
    if doubt := _doubt(place, volume["source"], volume["fstype"]):
        yield doubt
    if url and (user := network.parse(url).user):
        yield (f"{place} is on the network: recovery gets an address by DHCP and mounts it by itself, but asks for the "
               f"password of {user}, which is not kept.")
    elif url:
        yield f"{place} is on the network: recovery gets an address by DHCP and mounts it by itself."
    elif doubt:
        yield f"Recovery does not know how to mount {place}: that must be done by hand then."
    elif not volume["source"].startswith("/dev/"):
        yield (f"{place} is on the network ({volume['fstype']}), in a way that recovery does not know: it must be "
               "mounted by hand then.")


def _remove_abandoned(set: AsrSet, folder: Path) -> None:
    """What backups of this computer that were killed have left: it may be what fills the disk."""
    for first, other in begun_in(folder):
        if same_machine(other, set) and (lock := lock_if_abandoned(first)) >= 0:
            name = whole(first.with_suffix("")).name
            parts = folder.glob(f"{glob.escape(name)}.[0-9][0-9][0-9].part")
            try:
                for part in (*sorted(parts, reverse=True), first):
                    part.unlink(missing_ok=True)       # the first, whose lock this is, last
                log(f"Removed {folder / name}, which was begun at {other.created:%Y-%m-%d %H:%M} and never ended")
            except OSError as error:
                log(f"{first} could not be removed: {error.strerror}")
            finally:
                os.close(lock)


def measured(folder: Path) -> int:
    """Bytes per second that a folder takes, by writing a little that is gone again. Raises DestinationRefused."""
    block = os.urandom(2**20)
    started, written = time.monotonic(), 0
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            while written < _PROBE and time.monotonic() - started < _PROBE_SECONDS:
                file.write(block)
                file.flush()
                os.fdatasync(file.fileno())
                written += len(block)
    except OSError as error:
        raise refused(f"{folder} cannot be written: {os.strerror(error.errno or 0)}.",
                       "Choose another place.") from None
    speed = int(written / max(time.monotonic() - started, 1e-6))
    log(f"{folder} takes {human(speed)} in a second")
    return speed


# What is known of a place

def on_critical_disk(layout: Layout, device: str) -> str:
    """The disk of the layout that a device lies on, through whatever is between; "" for none."""
    under = run(("lsblk", "--inverse", "--list", "--noheadings", "--paths", "--output", "NAME", device), check=False)
    return next((d.path for d in layout.disks if d.path in under.split()), "")


def volume_of(folder: Path) -> dict[str, str]:
    """findmnt's TARGET (in the machine's own paths), SOURCE, FSTYPE, UUID, LABEL, OPTIONS of what a folder lies on."""
    text = run(("findmnt", "--json", "--target", str(folder), "--output", "TARGET,SOURCE,FSTYPE,UUID,LABEL,OPTIONS"))
    row = json.loads(text)["filesystems"][-1]
    point = row["target"]
    if str(ROOT) != "/":
        point = point.removeprefix(str(ROOT)) or "/"
    source = re.sub(r"\[.*\]$", "", row["source"])
    if not row["uuid"] and source.startswith("/dev/"):
        row["uuid"] = run(("blkid", "--probe", "--match-tag", "UUID", "--output", "value", source), check=False).strip()
    return row | {"target": point, "source": source}


def whole(path: Path) -> Path:
    """A backup's name without that of its first volume."""
    return path.with_name(path.name.removesuffix(".001"))


def _refused_critical(place: str, on: str) -> DestinationRefused:
    return refused(f"{place} lies on {on}, a disk that recovery will format.",
                    "Choose a place on another disk or on the network.")
