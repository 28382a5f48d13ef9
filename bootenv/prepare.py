"""Preparation: on the healthy machine, one backup and an ASR disk that belong together."""

import glob
import os
import re
import shutil
import stat
from collections.abc import Collection, Generator, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from . import asr_disk, backup, carried, network
from .asr_disk import Drive, drives, put
from .backup import Selection, Source, is_lost, read_first, write_backup
from .bootloader import ESP_ROOM, RECOVERY, boot_code, check_minimal, esp_mounts, loader_of, readable_mounts
from .bootloader import ROOM as MINIMAL_ROOM
from .check import LOSS, NOT_RECOVERABLE, Finding, as_lines, check, critical_part, data_volumes, recoverable_part
from .commands import as_text, read_commands
from .destinations import SPLIT, SUFFIX, Destination, Place, alone, at, on_critical_disk, places, volume_of
from .destinations import destination as at_place
from .drift import PACKAGES, REPAIR, installed_packages, notice, package_lines
from .errors import FirmwareDiffers, NeedsRoot, Unsupported, refused
from .events import Difference, Event, noted
from .exclude import LISTED, Excluding
from .files import read_back
from .layout import Layout, Mount, human
from .media import record_verified
from .plan import plan
from .probe import architecture, host_name, kernel_names, kernel_release, mount_table, os_release, probe
from .provider import SHIPPED, back_up, find_provider, make_plan
from .provider import known_providers as known_providers  # of this story, for its front end
from .provider import provider_reference as provider_reference
from .run import ROOT, RUNNING, STATE, inside, log, run
from .sif import DRIVERS, AsrSet, BackupReference, ProviderReference, backup_of, new_id, now, write_sif
from .snapshot import FULL, HOOK, held_still

HEADERS = "var/lib/asr/repair/headers" # of encrypted volumes, as <container's id>.img; only in the backup
SOURCES = STATE / "sources"
_OLDER = f"{REPAIR}.older"             # while a provider works; empty if there was none
_TREE = STATE / "tree"                 # all of them in one, for a provider
_HEADER_LOST = ("Recovery gives it a new header with a new passphrase: it cannot take the old one, with its key slots, "
                "from another product's backup.")
_ELSEWHERE = ("{place} is not looked into here. It must be within reach at recovery, whose network may have to be set "
              "up by hand.")
_NOT_COMPARED = "The provider {name} does not say that it has read the backup back: whether that is whole is not known."
REPORTS = "var/lib/asr/reports"        # what is in each set that was made here, and what is not


@dataclass(frozen=True)
class DataVolume:
    """A mounted file system on disks that the system does not need."""

    point: str
    used: int                          # bytes
    disks: tuple[str, ...]             # device nodes of what recovery makes anew, if it is added
    added: bool = False


@dataclass(frozen=True)
class Survey:
    """What will be protected, and what will not."""

    draft: AsrSet                      # without set id and backup
    left_out: tuple[Difference, ...]   # what recovery will not bring back, and why
    used: int                          # bytes in the file systems to back up: the estimate of size
    findings: tuple[Finding, ...] = ()         # what `asr check` says
    more: tuple[DataVolume, ...] = ()  # what could be protected, too, and what was added of it
    exclude: tuple[str, ...] = ()      # patterns, see exclude.py; the listed ones come on top
    include: tuple[str, ...] = ()

    @property
    def excluding(self) -> Excluding:
        exclude = (*_excluded(self.draft.layout), *LISTED, *self.exclude)
        # The drivers of the set must be in it, whatever was asked for.
        files = tuple(glob.escape(f"{carried.MACHINE}/{file.path}") for file in self.draft.files_in(DRIVERS))
        return {"exclude": exclude, "include": (*self.include, *files), "caches": False}


def survey(*, add: Collection[str] = (), exclude: Sequence[str] = (), include: Sequence[str] = (),
           provider: ProviderReference | None = None) -> Survey:
    """Looks at the machine.

    add: mount points of data volumes that are to be in the set; their disks are then recovered like the system's.
    exclude, include: patterns of the user. provider: whose backup it will be, if it isn't ours. Raises NeedsRoot,
    Unsupported for what can't be recovered, FirmwareDiffers, BadCommands, NoProvider.
    """
    if os.geteuid():
        raise NeedsRoot("Preparing an ASR set reads every file and disk, so it needs root.",
                        hint="Run it again with sudo.")
    everything, mounted = probe(), mount_table()
    more = _data_volumes(everything, add)
    if unknown := {*add} - {volume.point for volume in more}:
        raise Unsupported(f"{min(unknown)} is no data volume that can be added.",
                          hint=f"These can be: {', '.join(v.point for v in more) or 'there are none'}.")
    findings = check(everything, mounted, add, kernel_names())
    if bad := next((f for f in findings if f.verdict == NOT_RECOVERABLE), None):
        raise Unsupported(f"{bad.device}: {bad.why}", hint="asr check lists what keeps this computer from recovery.")
    layout = recoverable_part(critical_part(everything, add))
    firmware = "uefi" if Path("/sys/firmware/efi").is_dir() else "bios"
    loader = loader_of(ROOT, layout, firmware)
    other = () if RUNNING else tuple(other_firmware(layout, firmware, loader))
    layout = with_recovery_mount(with_boot_code(with_mount_points(layout), firmware, loader))
    check_minimal(layout, firmware)
    _check_room(layout, firmware)
    plan(layout)                       # what can't be made again must be known now, not after the disaster
    draft = AsrSet(
        id="", created=now(), host=host_name(), system=os_release().get("PRETTY_NAME", ""),
        kernel=kernel_release(), architecture=architecture(), firmware=firmware,
        memory=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), layout=layout, loader=loader,
        provider=provider, files=carried.kept(), commands=read_commands(),
    )
    if provider and (program := find_provider(provider.name)).parent != SHIPPED:
        draft = replace(draft, files=(*draft.files, carried.provider_file(program)))
    used = sum({mount.filesystem: _used(ROOT / mount.point.lstrip("/")) for mount in layout.mounts}.values())
    losses = (Difference(f.device, f.why) for f in findings if f.verdict == LOSS)
    lost = (Difference(c.name or c.id, _HEADER_LOST) for c in layout.containers if provider)
    return Survey(draft, (*losses, *lost, *other, *hidden(layout)), used, findings, more,
                  (*_left_out_snapshots(everything, layout), *exclude), tuple(include))


def _data_volumes(everything: Layout, added: Collection[str]) -> tuple[DataVolume, ...]:
    return tuple(
        DataVolume(mount.point, _used(ROOT / mount.point.lstrip("/")),
                   tuple(disk.path for disk in critical_part(everything, (mount.point,)).disks
                         if disk not in system.disks), mount.point in added)
        for system in [critical_part(everything)] for mount in data_volumes(everything, system))


def _left_out_snapshots(everything: Layout, layout: Layout) -> tuple[str, ...]:
    """Patterns of the btrfs snapshots that are seen in the mounts: they would come back as folders, each in full."""
    kept = {(s.filesystem, s.path) for s in layout.subvolumes}
    paths = [os.path.join(mount.point, os.path.relpath(s.path, mount.subvolume or ".")).lstrip("/")
             for s in everything.subvolumes if (s.filesystem, s.path) not in kept
             for mount in [layout.mount_with(s)] if mount]
    return tuple(f"{glob.escape(path)}/*" for path in paths)


def other_firmware(layout: Layout, firmware: str, loader: str) -> Iterator[Difference]:
    """A machine that does not run may start by another firmware than the medium that looks at it.

    Raises FirmwareDiffers if it does, and tells of it if it may.
    """
    points = [mount.point for mount in esp_mounts(layout)]
    if firmware == "uefi" and not points:
        raise FirmwareDiffers(
            "This medium was started by UEFI, but the computer's own system mounts no EFI system partition: it starts "
            "by BIOS.", hint="Start the medium by BIOS (\"legacy\", \"CSM\") and prepare the system then.")
    if firmware == "bios" and points and loader == "other":
        raise FirmwareDiffers(
            f"This medium was started by BIOS, but the computer's own system starts by UEFI: it has its boot loader on "
            f"{points[0]}, and none that BIOS starts.", hint="Start the medium by UEFI and prepare the system then.")
    if firmware == "bios" and points:
        yield Difference("firmware", f"This medium was started by BIOS, and so must recovery be. The system has "
                                     f"{points[0]} for UEFI, too: if it starts by that, start the medium by UEFI and "
                                     "prepare it again.")


def _check_room(layout: Layout, firmware: str) -> None:
    """What would fail only after the disks were formatted. Raises Unsupported."""
    for mount in esp_mounts(layout) if firmware == "uefi" else ():
        room = shutil.disk_usage(ROOT / mount.point.lstrip("/")).free
        needed = ESP_ROOM + (MINIMAL_ROOM if mount.recovery else 0)
        if room < needed:
            raise _no_room(mount.point, room, needed)


def _no_room(point: str, room: int, needed: int) -> Unsupported:
    return Unsupported(f"{point} has {human(room)} free; recovery needs {human(needed)} there for a while.",
                       hint="Make room there, and prepare the set then.")


def with_boot_code(layout: Layout, firmware: str, loader: str) -> Layout:
    """The layout with the boot sectors of disks that no tool makes anew."""
    if firmware == "uefi" or loader == "grub":
        return layout
    return replace(layout, disks=tuple(replace(d, boot_code=boot_code(d.path)) if d.label else d
                                       for d in layout.disks))


def with_recovery_mount(layout: Layout) -> Layout:
    """The layout with the place of the minimal OS: the first that can be read and has room. Raises Unsupported."""
    rooms = {m.point: shutil.disk_usage(ROOT / m.point.lstrip("/")).free for m in readable_mounts(layout)}
    chosen = next((point for point, room in rooms.items() if room >= MINIMAL_ROOM), None)
    if chosen is None:
        most = max(rooms, key=lambda point: rooms[point])
        raise _no_room(most, rooms[most], MINIMAL_ROOM)
    return replace(layout, mounts=tuple(replace(m, recovery=m.point == chosen) for m in layout.mounts))


def hidden(layout: Layout) -> Iterator[Difference]:
    """What lies below the mounts, where nobody sees it."""
    for mount, directory in _below_mounts(layout):
        if any(directory.iterdir()):
            yield Difference(mount.point, "There are older files hidden below this mount; they are left out.")


def with_mount_points(layout: Layout) -> Layout:
    """The layout with what the directories below its mounts are."""
    by_point = {mount.point: mount for mount in layout.mounts}
    for mount, directory in _below_mounts(layout):
        status = directory.stat()              # the deepest parent comes last, and is the right one
        by_point[mount.point] = replace(
            mount, mode=stat.S_IMODE(status.st_mode), owner=status.st_uid, group=status.st_gid,
            modified=max(status.st_mtime_ns, 0))
    return replace(layout, mounts=tuple(by_point.values()))


def _below_mounts(layout: Layout) -> Iterator[tuple[Mount, Path]]:
    """The directory below each mount, by every mount above it: they are seen only where nothing is mounted."""
    with sources(layout) as found:
        for source, parent in zip(found, layout.mounts_by_depth(), strict=True):
            for mount in layout.mounts:
                below = os.path.relpath(mount.point, parent.point)
                directory = Path(str(source.directory)) / below
                if mount.point != parent.point and not below.startswith("..") and directory.is_dir():
                    yield mount, directory


def find_places(survey: Survey) -> tuple[Place, ...]:
    """Where the backup may be written and where not, the best first."""
    return places(survey.draft, survey.used)


def destination(survey: Survey, place: str, name: str = "") -> Destination:
    """A place that the user named, checked and measured.

    Raises DestinationRefused, ProviderFailed; of the network NetworkPlaceFailed, PasswordWanted, ToolMissing.
    """
    if survey.draft.provider:
        return _provider_destination(survey, survey.draft.provider, place, name)
    return at_place(survey.draft, survey.used, place, name)


def _provider_destination(survey: Survey, provider: ProviderReference, place: str, name: str) -> Destination:
    """A folder of ours is looked at as for our own backup; what is elsewhere, by the provider alone."""
    if re.match(r"[^/]+:", place) and not network.is_url(place):
        name = name or f"{survey.draft.host}-{survey.draft.created:%Y%m%d-%H%M}"
        found = Destination(Path(), BackupReference(name=name, place=place), 0, (_ELSEWHERE.format(place=place),))
    else:
        # How much it will write, it knows: it may have most of the files already.
        found = at_place(survey.draft, 0, place, name)
        found = replace(found, warnings=tuple(warning for warning in found.warnings if warning != SPLIT),
                        reference=replace(found.reference, name=found.reference.name.removesuffix(SUFFIX)))
    set = replace(survey.draft, id=new_id(), backup=replace(found.reference, bytes=survey.used))
    with at(found):
        notes = make_plan(find_provider(provider.name), set, "backup", provider_place(found)).notes
    return replace(found, notes=notes)


def provider_place(destination: Destination) -> str:
    """What a provider is told of where to write."""
    return str(destination.path.parent) if destination.path.name else destination.reference.place


def select(survey: Survey) -> Generator[Event, None, Selection]:
    """Counts what will be backed up; returns the Selection."""
    with sources(survey.draft.layout) as found:
        return (yield from backup.select(found, **survey.excluding))


def prepare(survey: Survey, destination: Destination, selection: Selection) -> Generator[Event, None, AsrSet]:
    """Writes the backup, reads it back, keeps the machine's own copy of asr.sif and a report; returns the AsrSet."""
    reference = replace(destination.reference, files=selection.files, bytes=selection.bytes)
    set = replace(survey.draft, id=new_id(), created=now(), backup=reference)
    sif = write_sif(set)
    log(f"Preparing set {set.id} of {set.host} in {destination.path}")
    repair = ROOT / REPAIR
    # Before the files are read: the backup has the folder as it will be.
    repair.parent.mkdir(parents=True, exist_ok=True)
    unlike: list[Difference] = []
    with alone(), at(destination), _recorded_packages(set):
        put_back_copy()
        work = _provided(survey, set, destination, sif) if set.provider else _written(
            survey, set, destination.path, selection, sif)
        compared = yield from noted(work, unlike)
    _keep(repair, sif)
    notice("drift", "")
    _keep(ROOT / report_of(set), _report(set, survey, unlike, compared).encode(errors="surrogateescape"))
    return set


@contextmanager
def _recorded_packages(set: AsrSet) -> Iterator[None]:
    """What is installed now, on the machine and so in its backup; gone again if the set isn't made."""
    path = ROOT / PACKAGES.format(id=set.id)
    _keep(path, package_lines(installed_packages()).encode())
    try:
        yield
    except BaseException:                  # GeneratorExit, too
        path.unlink()
        raise
    for other in path.parent.glob(Path(PACKAGES.format(id="*")).name):
        if other != path:
            other.unlink()


def _written(survey: Survey, set: AsrSet, path: Path, selection: Selection, sif: bytes
             ) -> Generator[Event, None, bool]:
    """Our own backup. Returns whether it was read back and is what was written: it is, or DamagedBackup is raised."""
    unlike: list[Difference] = []
    with saved_headers(set.layout), sources(set.layout) as live, held_still(live, unlike) as found:
        yield from write_backup(path, found, (REPAIR, sif), selection=selection, **survey.excluding)
    yield from unlike
    yield from read_back(path, lambda: read_first(path) == sif)
    record_verified(set.id, 0)
    return True


def _provided(survey: Survey, set: AsrSet, destination: Destination, sif: bytes) -> Generator[Event, None, bool]:
    """The same by another product, which may not say that it has compared anything."""
    assert set.provider
    unlike: list[Difference] = []
    swaps = [glob.escape(swap.path.lstrip("/")) for swap in set.layout.swap_files]
    with _copy_to_be_backed_up(sif), sources(set.layout) as live, held_still(live, unlike) as found, \
            joined(found) as tree:
        compared = yield from back_up(find_provider(set.provider.name), set, provider_place(destination), tree,
                                      (*survey.excluding["exclude"], *swaps, _OLDER))
    yield from unlike
    if not compared:
        yield Difference("backup", _NOT_COMPARED.format(name=set.provider.name))
    return compared


@contextmanager
def _copy_to_be_backed_up(sif: bytes) -> Iterator[None]:
    """The machine's own copy of asr.sif before its time, so that it is in the backup, too."""
    path = ROOT / REPAIR
    _keep(ROOT / _OLDER, path.read_bytes() if path.exists() else b"")
    _keep(path, sif)
    try:
        yield
    except BaseException:                  # GeneratorExit, too
        put_back_copy()
        raise
    (ROOT / _OLDER).unlink()


def put_back_copy() -> None:
    """The machine's own copy of asr.sif, where a provider's backup was not completed. Raises Busy while one works."""
    older = ROOT / _OLDER
    if not older.exists():
        return
    with alone(), suppress(FileNotFoundError):         # its end may have come meanwhile
        if older.stat().st_size:
            older.replace(ROOT / REPAIR)
        else:
            (ROOT / REPAIR).unlink(missing_ok=True)
            older.unlink()


@contextmanager
def joined(found: Sequence[Source]) -> Iterator[Path]:
    """File systems mounted in each other as on the machine, read-only."""
    _TREE.mkdir(parents=True, exist_ok=True)
    if _TREE.is_mount():                   # left by a run that was killed
        run(("umount", "--recursive", "--lazy", str(_TREE)))
    with ExitStack() as stack:
        for source in sorted(found, key=lambda source: source.prefix.count("/") + bool(source.prefix)):
            point = str(_TREE / source.prefix)
            run(("mount", "--bind", os.fsdecode(source.directory), point))
            stack.callback(run, ("umount", "--lazy", point))
            run(("mount", "-o", "remount,bind,ro", point))
        yield _TREE


def _keep(path: Path, data: bytes) -> None:
    """A file that is whole or not there, also after a power cut; for root's eyes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "wb", opener=lambda name, flags: os.open(name, flags, 0o600)) as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    part.rename(path)


def lacks(difference: Difference) -> bool:
    """Does a set lack something that should be in it? What changed while it was read, or is left out, is no lack."""
    return is_lost(difference) or difference.why in (FULL, *(HOOK.format(when=when) for when in ("before", "after")))


def report_of(set: AsrSet) -> str:
    """Where a set's report is kept, below the root."""
    return f"{REPORTS}/{set.created:%Y%m%d-%H%M%S}.txt"


def read_report(set: AsrSet) -> str:
    return (ROOT / report_of(set)).read_bytes().decode(errors="replace")


def save_report(set: AsrSet, place: str) -> None:
    """A copy of the report in a new file at a path that the user named. Raises DestinationRefused."""
    try:
        report = (ROOT / report_of(set)).read_bytes()
        with open(inside(place), "xb") as file:
            file.write(report)
    except FileExistsError:
        raise refused(f"{place} is there already.", "Name another file; nothing is overwritten.") from None
    except OSError as error:
        raise refused(f"{place} could not be written: {error.strerror}.", "Name another file.") from None


def _report(set: AsrSet, survey: Survey, unlike: Sequence[Difference], compared: bool) -> str:
    """What a person wants to know of a set later."""
    lines = [
        f"ASR set {set.id}", label_of(set), "",
        f"System      {set.system}, kernel {set.kernel}",
        f"Backup      {backup_of(set)}" + (f" on the volume {set.backup.label}" if set.backup.label else ""),
        f"Files       {set.backup.files:,}", f"Bytes       {set.backup.bytes:,} before compression",
        f"Mounted at  {', '.join(mount.point for mount in set.layout.mounts_by_depth())}", "",
        *(["Files that go along:", *(f"  {file.path}" for file in set.files), ""] if set.files else []),
        *([as_text(set.commands)] if set.commands else []),
        as_lines(survey.findings)]
    for heading, differences in (("NOT protected:", survey.left_out), ("NOT as it was, or left out:", unlike)):
        lines += [heading, *(f"  {d.what}: {d.why}" for d in differences), *([] if differences else ["  nothing"]), ""]
    end = "The backup was read back and matches." if not set.provider else (
        f"{set.provider.name} has made the backup{', and says that it was read back and matches' * compared}.")
    return "\n".join([*lines, end, ""])


def _excluded(layout: Layout) -> list[str]:
    """A minimal OS that a power cut left behind: it would come back in the place of the one that restores it."""
    folders = [f"{mount.point.strip('/')}/{RECOVERY}".lstrip("/") for mount in layout.mounts]
    return [pattern for folder in folders for pattern in (folder, f"{folder}/*")]


@contextmanager
def saved_headers(layout: Layout) -> Iterator[None]:
    """The headers of encrypted volumes, on the machine as long as they are being backed up.

    They bring back every key slot. On the ASR disk they would let whoever finds it guess passphrases.
    """
    folder = ROOT / HEADERS
    shutil.rmtree(folder, ignore_errors=True)
    try:
        if layout.containers:
            folder.mkdir(parents=True, mode=0o700)
        for container in layout.containers:
            run(("cryptsetup", "luksHeaderBackup", "--header-backup-file", str(folder / f"{container.id}.img"),
                 layout.path(container.device)))
        yield
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def check_disk(set: AsrSet, place: str, *, agreed: bool = False, format: bool = False) -> None:
    """Before the long work: will a place do for the ASR disk? agreed, format: see asr_disk.check_disk().

    Raises the AsrDisk… errors and DestinationRefused.
    """
    device = inside(place)
    if place.startswith("/dev/"):
        on = Path(device).exists() and on_critical_disk(set.layout, device)
    else:
        folder = Path(device) if Path(device).is_dir() else Path(device).parent
        if not folder.is_dir():
            raise refused(f"There is no folder {folder}.", "Name a folder that is there.")
        on = on_critical_disk(set.layout, volume_of(folder)["source"])
    if on:
        raise refused(f"{place} lies on {on}, a disk that recovery will format.",
                       "Use a floppy disk, a USB stick, or an image or folder on another disk.")
    asr_disk.check_disk(set, device, agreed=agreed, format=format)


def find_drives(set: AsrSet) -> tuple[Drive, ...]:
    """Where the ASR disk may be written."""
    return drives({disk.path for disk in set.layout.disks})


def write_disk(set: AsrSet, place: str, *, agreed: bool = False, format: bool = False) -> Iterator[Event]:
    """Writes the ASR disk and compares what it then holds. Raises the AsrDisk… errors and DestinationRefused."""
    check_disk(set, place, agreed=agreed, format=format)
    program = find_provider(set.provider.name) if set.provider else None
    yield from put(set, inside(place), carried.at_hand(set, program), agreed=agreed, format=format)


def label_of(set: AsrSet) -> str:
    """What to write on the disk's label."""
    return f"Automated System Recovery Disk for {set.host}\ncreated {set.created:%Y-%m-%d at %H:%M} UTC"


@contextmanager
def sources(layout: Layout) -> Iterator[tuple[Source, ...]]:
    """Each mounted file system by itself, without what is mounted on it. Raises Busy."""
    with alone(), ExitStack() as stack:
        found = []
        for number, mount in enumerate(layout.mounts_by_depth()):
            point = SOURCES / str(number)
            point.mkdir(parents=True, exist_ok=True)
            while point.is_mount():            # left by a run that was killed
                run(("umount", str(point)))
            run(("mount", "--bind", str(ROOT / mount.point.lstrip("/")), str(point)))
            stack.callback(run, ("umount", "--lazy", str(point)))
            run(("mount", "--make-private", str(point)))
            found.append(Source(str(point), mount.point.strip("/")))
        yield tuple(found)


def _used(point: Path) -> int:
    return shutil.disk_usage(point).used
