"""Write, find and read the ASR disk: a floppy, a floppy image, a USB stick or a folder with asr.sif in its root.

A disk may carry the sets of several machines: the first one's asr.sif is in the root, each further one's in a folder
of its own. Beside it are the drivers that go along with the set, if they fit. FAT is mtools' business
(https://www.gnu.org/software/mtools/manual/mtools.html): it reads and writes a device or an image without mounting it.
"""

import errno
import json
import os
import re
import stat
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

from .archive import fsync_directory
from .backup import read_first
from .errors import (
    AsrDiskFull,
    AsrDiskNotBlank,
    AsrDiskUnformatted,
    AsrDiskUnwritable,
    AsrError,
    CommandFailed,
    DamagedSif,
    NewerSchema,
    NoAsrDisk,
    OtherSet,
    ToolMissing,
)
from .events import Difference, Event, Progress
from .run import LOG, log, run
from .sif import DRIVERS, PROVIDERS, AsrSet, CarriedFile, read_sif, write_sif

SIF = "asr.sif"
_NEW = "asr.new"                       # asr.sif until it is whole
_FLOPPY_SECTORS = 1440                 # of 1 KiB, as mkfs.fat counts
_LOG_BYTES = 200_000
_NO_DISK = "The backup is not affected; no ASR disk was made."
_NAMED = 4                             # of the files on a disk, so many are shown


@dataclass(frozen=True)
class AsrDisk:
    """A disk with a whole asr.sif, in a drive of this computer."""

    device: str                        # "" for a copy of asr.sif in a backup
    description: str                   # for people
    set: AsrSet
    folder: str = ""                   # that asr.sif is in; "" for the root


@dataclass(frozen=True)
class Content:
    """What is on a disk that a set may be written to."""

    sifs: Mapping[str, bytes]          # asr.sif by its folder, "" for the root
    files: tuple[str, ...] = ()        # what else is in the root
    formatted: bool = True             # False: there is no file system


@dataclass(frozen=True)
class Drive:
    """A drive that an ASR disk may be written in."""

    device: str
    description: str                   # for people


# Finding

def find_asr_disks() -> tuple[AsrDisk, ...]:
    """The sets on the ASR disks in all drives, looked for once, the newest first; each set once.

    Raises NoAsrDisk; DamagedSif or NewerSchema when the only asr.sif found can't be used.
    """
    found: dict[str, AsrDisk] = {}
    error: AsrError | None = None
    for device in _drives():
        try:
            sifs = read_asr_disk(device)
        except AsrError as this:
            log(f"{device}: {this}")
            if "Input/output error" in str(this):
                error = NoAsrDisk(f"The disk in {describe(device)} cannot be read: it is worn out.",
                                  hint="Clean the drive, or use another copy of the ASR disk.")
            continue
        for folder, data in sifs.items():
            try:
                set = read_sif(data)
                found.setdefault(set.id, AsrDisk(device, describe(device), set, folder))
            except (DamagedSif, NewerSchema) as this:
                log(f"{device} {folder}: {this}")
                error = this
    if found:
        return tuple(sorted(found.values(), key=lambda disk: disk.set.created, reverse=True))
    raise error or NoAsrDisk(
        "Setup could not find an ASR disk in any drive.",
        hint="Insert the disk labeled Automated System Recovery Disk and press ENTER.",
    )


def read_asr_disk(place: str) -> dict[str, bytes]:
    """Each asr.sif on an ASR disk, by its folder, "" for the root. Raises CommandFailed for a disk that can't be read.
    """
    return dict(_content(place).sifs)


def _content(place: str) -> Content:
    """Raises CommandFailed for a disk that can't be read."""
    if os.path.isdir(place):
        paths = [path for pattern in (SIF, f"*/{SIF}") for path in sorted(Path(place).glob(pattern))]
        return Content({str(path.parent.relative_to(place)).removeprefix("."): path.read_bytes() for path in paths})
    names = _names(run(("mdir", "-b", "-i", place, "::/")))
    # Exit status 1: none found.
    below = _names(run(("mdir", "-b", "-i", place, f"::/*/{SIF}"), check=False))
    paths_on_disk = [name for name in names if name.lower() == SIF] + below
    sifs = {}
    with tempfile.TemporaryDirectory(prefix="asr-") as folder:
        for path in paths_on_disk:
            run(("mcopy", "-n", "-i", place, f"::/{path}", f"{folder}/{SIF}"))
            sifs[path.rpartition("/")[0]] = (Path(folder) / SIF).read_bytes()
            (Path(folder) / SIF).unlink()
    own = {SIF, _NEW, LOG.name} | _carried_by(sifs.get("", b""))
    return Content(sifs, tuple(name for name in names if name.lower() not in own and name.rstrip("/") not in sifs))


def _carried_by(sif: bytes) -> frozenset[str]:
    """The folders in the root that a set put there, as mdir names them."""
    other = _readable(sif)
    return frozenset(f"{file.path.partition('/')[0]}/" for file in other.files) if other else frozenset()


def _names(listing: str) -> list[str]:
    return [line.strip().removeprefix("::/") for line in listing.splitlines()]


def check_belongs(place: str, backup: Path) -> AsrSet:
    """The set that an ASR disk and a backup are of.

    Raises NoAsrDisk, OtherSet, DamagedSif and NewerSchema (of either), BackupNotFound, DamagedBackup, ToolMissing.
    """
    device, hint = filesystem_of(place), "Insert the ASR disk that was made with this backup."
    if not os.path.exists(device):
        raise NoAsrDisk(f"There is no disk, image or folder {place}.", hint=hint)
    if why := _why_no_place(place, device):
        raise NoAsrDisk(why, hint=hint)
    try:
        sifs = read_asr_disk(device)
    except CommandFailed as error:
        unreadable = _why_unreadable(place, device, error)
        raise unreadable if isinstance(unreadable, ToolMissing) else NoAsrDisk(unreadable.message, hint=hint) from None
    if not sifs:
        raise NoAsrDisk(f"{place} has no asr.sif.", hint=hint)
    other = read_sif(read_first(backup))
    sets = [read_sif(data) for data in sifs.values()]
    ours = next((set for set in sets if set.id == other.id), sets[0])
    if ours.id != other.id:
        raise OtherSet(
            f"The disk is of {ours.host}, {ours.created:%Y-%m-%d %H:%M}; the backup is of {other.host}, "
            f"{other.created:%Y-%m-%d %H:%M}.", hint="Take the ASR disk that was made with this backup.")
    return ours


# Writing

def check_disk(set: AsrSet, place: str, *, agreed: bool = False, format: bool = False) -> str:
    """Before anything is written: can the set be put there? Returns the folder that its asr.sif goes into.

    agreed: a person knows what is on the disk, all of which stays but an older set of this computer. format: a disk
    without a file system will be given one. Raises AsrDiskUnwritable, AsrDiskUnformatted, AsrDiskNotBlank.
    """
    return _looked_at(set, place, agreed, format)[0]


def _looked_at(set: AsrSet, place: str, agreed: bool, format: bool) -> tuple[str, Content]:
    """See check_disk(); also what is there now."""
    device = filesystem_of(place)
    if not os.path.exists(device):
        if place.startswith("/dev/"):          # a file of that name would lie in memory
            raise AsrDiskUnwritable(f"There is no device {place}.", hint="Connect the drive, or name another place.")
        if not Path(device).parent.is_dir():
            raise AsrDiskUnwritable(f"There is no folder {Path(place).parent}.", hint="Name a folder that is there.")
        return "", Content({})
    if why := _why_no_place(place, device):
        raise AsrDiskUnwritable(why, hint="Name a drive, an image or a folder.")
    _check_drive(place, device)
    try:
        content = _content(device)
    except CommandFailed as error:
        unreadable = _why_unreadable(place, device, error)
        if isinstance(unreadable, AsrDiskUnformatted) and format:
            return "", Content({}, formatted=False)
        raise unreadable from None
    found = " ".join(_said(content, set))
    if found and not agreed:
        raise AsrDiskNotBlank(f"{place} is not blank. {found}",
                              hint="Insert another disk, or use this one all the same.")
    return folder_for(content.sifs, set), content


def put(set: AsrSet, place: str, files: Mapping[str, Path] | None = None, *, agreed: bool = False,
        format: bool = False) -> Iterator[Event]:
    """Writes a set's ASR disk and compares what it then holds; agreed, format: see check_disk().

    files: those of the set's that are at hand, by their paths; the ones that don't get onto the disk are Differences.
    The older asr.sif goes when the new one is whole on the disk. Raises the AsrDisk… errors.
    """
    yield Progress(f"Looking at {place}", 0, 3, SIF)
    sif = write_sif(set)
    folder, content = _looked_at(set, place, agreed, format)
    device = filesystem_of(place)
    if not os.path.exists(device):
        make_image(device)
    elif not content.formatted:
        format_disk(device)
    older = _readable(content.sifs.get(folder, b""))
    # For this and the next asr.sif, and for a log that is written beside the older one.
    reserved = 2 * len(sif) + 2 * _LOG_BYTES
    # Without its provider a set is of no use: that is known before the older one goes, which takes its files with it.
    _check_room(set.files_in(PROVIDERS), device,
                reserved - sum(file.size for file in (older.files if older else ())))
    yield Progress(f"Writing {place}", 1, 3, SIF)
    write_asr_disk(device, {SIF: sif}, folder)
    write_log(device, folder)
    yield Progress(f"Reading {place}", 2, 3, SIF)
    try:
        same = read_asr_disk(device).get(folder) == sif
    except CommandFailed:
        same = False
    if not same:
        raise AsrDiskUnwritable(f"{place} was written, but reads back differently.",
                                hint="The disk is worn out: insert another one.", untouched=_NO_DISK)
    remove_files(device, folder, {file.path for found in (older, set) if found for file in found.files})
    yield from _put_files(set, device, folder, files or {}, reserved)
    yield Progress(f"{place} matches", 3, 3)


def _put_files(set: AsrSet, device: str, folder: str, files: Mapping[str, Path], reserved: int) -> Iterator[Event]:
    """What goes along, beside the set's asr.sif. Raises AsrDiskFull for a provider, without which nothing is restored.
    """
    for kind in (PROVIDERS, DRIVERS):
        wanted = set.files_in(kind)
        lacking = [file.path for file in wanted if file.path not in files]
        if lacking:
            yield Difference(kind, f"{len(lacking)} of {len(wanted)} are not at hand as they were recorded, so none is "
                                   "on this ASR disk." + ("" if set.provider else " They are in the backup."))
            continue
        try:
            _check_room(wanted, device, reserved)
            for file in wanted:
                yield Progress(f"Writing {device}", 2, 3, file.path)
                path = PurePosixPath(folder, file.path)
                write_asr_disk(device, {path.name: files[file.path].read_bytes()}, str(path.parent))
        except AsrDiskFull:
            remove_files(device, folder, {file.path for file in wanted})
            if kind == PROVIDERS:
                raise
            where = ("Setup cannot look for them in another product's backup: take a larger disk." if set.provider else
                     "They are in the backup only: it must be connected when Setup looks at the disks.")
            size = sum(file.size for file in wanted)
            yield Difference(kind, f"There is no room for {size:,} bytes of drivers on this ASR disk. {where}")


def _check_room(files: Collection[CarriedFile], device: str, reserved: int) -> None:
    """Raises AsrDiskFull if the files would leave less than so many bytes."""
    if not files:
        return
    if os.path.isdir(device):
        status = os.statvfs(device)
        free, cluster = status.f_bavail * status.f_frsize, status.f_frsize
    else:
        # mdir's last line; a FAT of 1.44 MB has clusters of 512 bytes, hardly any has larger ones than the other.
        words = re.findall(r"([\d ]+) bytes free", run(("mdir", "-i", device, "::/")))
        free = int(words[-1].replace(" ", "")) if words else 0
        cluster = 512 if free <= _FLOPPY_SECTORS * 1024 else 32768
    needed = sum(-(-file.size // cluster) * cluster for file in files)
    if needed + reserved > free:
        raise AsrDiskFull(f"{needed + reserved:,} bytes are needed on {device}; {free:,} are free.",
                          hint="Use a larger disk, such as a USB stick.")


def remove_files(device: str, folder: str, paths: Iterable[str]) -> None:
    """Takes files away that are beside an asr.sif, by their paths; those that are not there are no error."""
    for path in sorted(paths):
        if os.path.isdir(device):
            with suppress(OSError):
                Path(device, folder, path).unlink()
        else:
            run(("mdel", "-i", device, f"::/{PurePosixPath(folder, path)}"), check=False)


def read_file(device: str, path: str, goal: Path, size: int) -> None:
    """Copies a file of an ASR disk, at most one byte more than `size`. Raises CommandFailed, OSError."""
    if os.path.isdir(device):
        with Path(device, path).open("rb") as file:
            goal.write_bytes(file.read(size + 1))
        return
    # A damaged disk may call any file endless. One that isn't there is empty.
    run(("sh", "-c", 'mtype -i "$1" "$2" | head -c "$3" >"$4"', "sh", device, f"::/{path}", str(size + 1), str(goal)))


def write_log(device: str, folder: str = "") -> None:
    """The end of the log, beside asr.sif. It says nothing if there is no room or the disk is gone: the log has it."""
    try:
        write_asr_disk(device, {LOG.name: LOG.read_bytes()[-_LOG_BYTES:]}, folder)
    except (AsrError, OSError) as error:
        log(f"{LOG.name} was not written to {device}: {error}")


def folder_for(sifs: Mapping[str, bytes], set: AsrSet) -> str:
    """Where a set goes among those that are there: in the place of this machine's older one, else in one of its own.
    """
    for folder, data in sifs.items():
        other = _readable(data)
        if other and same_machine(other, set):
            return folder
    if not sifs:
        return ""
    name = re.sub(r"[^A-Za-z0-9_.-]", "-", set.host).strip(".")[:40] or "machine"
    taken = {folder.lower() for folder in sifs}
    return next(n for n in (name, *(f"{name}-{number}" for number in range(2, len(taken) + 3)))
                if n.lower() not in taken)


def _said(content: Content, set: AsrSet) -> Iterator[str]:
    """What a person should know of a disk before a set is written to it."""
    for folder, data in content.sifs.items():
        where = f" (in the folder {folder})" if folder else ""
        other = _readable(data)
        if other is None:
            yield f"It holds an asr.sif{where} that this version can't read; it stays."
        elif same_machine(other, set):
            yield f"It holds an older set of {other.host}{where}, of {other.created:%Y-%m-%d %H:%M}, which is replaced."
        else:
            yield f"It is an ASR disk of {other.host}{where}, of {other.created:%Y-%m-%d %H:%M}; that set stays."
    if content.files:
        more = f" and {len(content.files) - _NAMED} more" if len(content.files) > _NAMED else ""
        yield f"It holds {', '.join(content.files[:_NAMED])}{more}; they stay."


def _readable(data: bytes) -> AsrSet | None:
    try:
        return read_sif(data)
    except (DamagedSif, NewerSchema):
        return None


def same_machine(one: AsrSet, other: AsrSet) -> bool:
    """Two machines may have the same name; a disk of one is no disk of the other."""
    return one.host == other.host and bool({d.id for d in one.layout.disks} & {d.id for d in other.layout.disks})


def _why_no_place(place: str, device: str) -> str:
    """The sentence that refuses what no ASR disk can be; to open a FIFO would wait for ever. "" for all else."""
    mode = os.stat(device).st_mode
    if stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISBLK(mode):
        return ""
    return f"{place} is neither a disk, nor an image, nor a folder."


def _check_drive(place: str, device: str) -> None:
    """Raises AsrDiskUnwritable for a drive without a disk, and for a disk that is write-protected."""
    if os.path.isdir(device):
        if not os.access(device, os.W_OK):
            raise AsrDiskUnwritable(f"{place} is not writable.", hint="Name another folder.")
        return
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise AsrDiskUnwritable(f"The disk in {place} is write-protected.",
                                    hint="Take it out, close its write-protect tab, and insert it again; or insert "
                                         "another one.") from None
        if error.errno in (errno.ENXIO, errno.ENOMEDIUM):
            raise AsrDiskUnwritable(f"There is no disk in {place}.", hint="Insert a disk.") from None
        raise AsrDiskUnwritable(f"The disk in {place} cannot be read: {error.strerror}.",
                                hint="It is worn out: insert another one.") from None


def _why_unreadable(place: str, device: str, error: CommandFailed) -> AsrError:
    """A disk that mtools can't read: not formatted, formatted for something else, or worn out."""
    if "code page" in str(error):              # small systems have these in a package of their own
        return ToolMissing("mtools can read no disk: the C library's character sets are not installed.",
                           hint="Install glibc-gconv-extra (Fedora) or libc-gconv-modules-extra (Debian).")
    try:
        with open(device, "rb") as file:
            file.read(18 * 512)                # a floppy's first track: all that matters lies there
    except OSError as reason:
        return AsrDiskUnwritable(f"The disk in {place} cannot be read: {reason.strerror}.",
                                 hint="It is worn out: insert another one.")
    known = run(("blkid", "--probe", "--output", "export", device), check=False)
    found = dict(line.split("=", 1) for line in known.splitlines() if "=" in line)
    if kind := found.get("TYPE") or found.get("PTTYPE"):
        label = f" labeled {found['LABEL']}" if found.get("LABEL") else ""
        if kind == "vfat":
            return AsrDiskUnwritable(f"The disk in {place} is damaged: {error}", hint="Insert another one.")
        return AsrDiskUnwritable(f"{place} holds a file system [{kind}]{label}, not FAT. It is left alone.",
                               hint="Insert another disk. Only a blank one is formatted here.")
    # A disk that says nothing of itself may be formatted; in a file, that is anything: a backup, a letter.
    if os.path.isfile(device) and not _is_blank(device):
        return AsrDiskUnwritable(f"{place} is a file that holds something else than a disk. It is left alone.",
                                 hint="Name another file: one that is not there is made, and one of zeros formatted.")
    return AsrDiskUnformatted(f"The disk in {place} is not formatted, or not for any known system.",
                              hint="Insert another disk, or have this one formatted: what is on it, if anything, is "
                                   "lost then.")


def _is_blank(path: str) -> bool:
    with open(path, "rb") as file:
        return not any(piece.strip(b"\0") for piece in iter(partial(file.read, 2**20), b""))


def make_image(path: str) -> None:
    """The image of an empty, formatted 1.44 MB disk."""
    run(("mkfs.fat", "-C", "-F", "12", "-n", "ASR", path, str(_FLOPPY_SECTORS)))


def format_disk(device: str) -> None:
    """An empty FAT on a disk that has no file system, or in a file of zeros or of none. Raises AsrDiskUnwritable."""
    if os.path.isfile(device) and not os.path.getsize(device):
        os.truncate(device, _FLOPPY_SECTORS * 1024)
    size = os.path.getsize(device) if os.path.isfile(device) else int(
        run(("blockdev", "--getsize64", device)))
    width = ("-F", "12") if size <= 4 * 2**20 else ()
    try:
        run(("mkfs.fat", *width,
             "-I",                             # the whole of a stick, without a partition table
             "-n", "ASR", device))
    except CommandFailed as error:
        raise AsrDiskUnwritable(f"{device} could not be formatted: {error}", untouched=_NO_DISK,
                                hint="The disk is worn out or write-protected: insert another one.") from None


def write_asr_disk(device: str, files: Mapping[str, bytes], folder: str = "") -> None:
    """Writes files into a folder of a FAT disk, an image or a directory, and syncs; what else is there stays.

    An older file of a name goes when the new one is whole. Raises AsrDiskFull and AsrDiskUnwritable.
    """
    if os.path.isdir(device):
        for name, data in files.items():
            _write_file(Path(device) / folder / name, data)
        return
    inside_disk = f"::/{folder}/" if folder else "::/"
    with tempfile.TemporaryDirectory(prefix="asr-") as temporary:
        inner = PurePosixPath(folder)
        for above in (path for path in (*reversed(inner.parents), inner) if path.name):
            run(("mmd", "-D", "s", "-i", device, f"::/{above}"), check=False)      # s: skip it if it is there
        for name, data in files.items():
            (Path(temporary) / name).write_bytes(data)
            try:
                run(("mcopy", "-o", "-i", device, str(Path(temporary) / name), f"{inside_disk}{_NEW}"))
                run(("mdel", "-i", device, f"{inside_disk}{name}"), check=False)
                run(("mren", "-i", device, f"{inside_disk}{_NEW}", f"{inside_disk}{name}"))
            except CommandFailed as error:
                run(("mdel", "-i", device, f"{inside_disk}{_NEW}"), check=False)
                if "full" in str(error).lower():
                    raise AsrDiskFull(f"There is no room for {name} on {device}.",
                                      hint="Insert an empty disk.") from None
                raise AsrDiskUnwritable(f"{device} could not be written: {error}", untouched=_NO_DISK,
                                        hint="The disk is worn out or write-protected: insert another one.") from None
    flush(device)


def flush(place: str) -> None:
    """What is read from the disk next comes from the disk, not from memory. Raises AsrDiskUnwritable."""
    try:
        with open(place, "rb") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if Path(place).is_block_device():
            run(("blockdev", "--flushbufs", place))
    except (OSError, CommandFailed) as error:
        raise AsrDiskUnwritable(f"{place} could not be written to its end: {error}", hint="Insert another disk.",
                                untouched=_NO_DISK) from None


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


def drives(critical: Iterable[str]) -> tuple[Drive, ...]:
    """Where an ASR disk may be written: floppy drives, then USB sticks and cards, but no disk of `critical`."""
    floppies = [Drive(device, describe(device)) for device in ("/dev/fd0", "/dev/fd1") if os.path.exists(device)]
    text = run(("lsblk", "--json", "--bytes", "--output", "NAME,PATH,TYPE,FSTYPE,LABEL,SIZE,RM,HOTPLUG,TRAN,MODEL"))
    return (*floppies, *parse_drives(text, critical))


def parse_drives(text: str, critical: Iterable[str]) -> Iterator[Drive]:
    """Of lsblk's disks those that can be taken away, if FAT or nothing is on them."""
    for row in json.loads(text)["blockdevices"]:
        taken_away = row["rm"] or row["hotplug"] or row["tran"] == "usb"
        if row["type"] != "disk" or not taken_away or row["path"] in critical or row["path"].startswith("/dev/fd"):
            continue
        below = [row] if row["fstype"] else row.get("children", [row])
        volumes = [volume for volume in below if volume["fstype"] in ("vfat", None)]
        for volume in volumes:
            words = (volume["label"] or "", f"{int(volume['size'] or 0) // 10**6} MB", (row["model"] or "").strip(),
                     "" if volume["fstype"] else "not formatted")
            yield Drive(volume["path"], "  ".join(filter(None, words)))


def filesystem_of(place: str) -> str:
    """A disk's first FAT partition where it has partitions, else the place itself."""
    if not Path(place).is_block_device():
        return place
    text = run(("lsblk", "--noheadings", "--list", "--output", "PATH,FSTYPE", place), check=False)
    rows = [line.split() for line in text.splitlines()]
    return next((row[0] for row in rows if row[1:] == ["vfat"]), place)


def _write_file(path: Path, data: bytes) -> None:
    new = path.with_name(_NEW)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with new.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        new.rename(path)
        fsync_directory(path.parent)           # a stick is taken out as soon as it is said that all is well
    except OSError as error:
        with suppress(OSError):
            new.unlink(missing_ok=True)
        kind = AsrDiskFull if error.errno in (errno.ENOSPC, errno.EDQUOT) else AsrDiskUnwritable
        raise kind(f"{path} could not be written: {error.strerror}.", hint="Use another disk.") from None
