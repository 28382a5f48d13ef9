"""Boot recovery, the first stage: from the recovery medium to a disk that starts the minimal OS."""

import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from .asr_disk import SIF, AsrDisk, write_log
from .asr_disk import find_asr_disks as find_sets
from .backup import check_whole, restore_backup
from .bootloader import MEDIUM, MINIMAL_OS, RECOVERY, check_minimal, copy_minimal, install_minimal, recovery_folder
from .carried import gather, gathered
from .commands import missing_tools
from .drivers import Loaded, carry, load_drivers, load_from, release
from .errors import (
    AsrError,
    BackupNotFound,
    CommandFailed,
    DamagedBackup,
    FirmwareDiffers,
    PasswordWanted,
    ProviderFailed,
    TooFewDisks,
    ToolMissing,
    Unsupported,
)
from .events import Difference, Event
from .execute import execute
from .layout import Disk, Filesystem, Layout, LuksContainer
from .match import Match, is_blank, match
from .network import NetworkPlace
from .plan import HEADERS, plan
from .prepare import HEADERS as SAVED_HEADERS
from .probe import mount_table, probe
from .provider import make_plan, provider_of
from .run import LOG, STATE, has_tool, log, run
from .sif import DRIVERS, PROVIDERS, AsrSet, write_sif
from .target import NO_SUCH_KEY, mounted, unmount_left
from .volumes import backups_at, every_backup, find_backup, forget, on_volumes, password_wanted

__all__ = ["Check", "Lock", "checks", "copies_at", "find_copies", "find_sets", "load_drivers", "locks", "match_disks",
           "opens", "recover", "release", "renew", "restart", "server_to_ask"]

COPIED = Path("/run/medium-device")    # the initramfs: the device whose content is in memory now (asr.toram)
BEGUN = STATE / "begun"                # the numbers of the disks that this system has begun to change
_HEAD = 2**20                          # bytes of a disk that are zeros if it is blank

_LATER = "It is not looked for now: the second stage does that."
_ASKS = "The server answers. The second stage asks for the password of {user}: somebody must be there then."


@dataclass(frozen=True)
class Check:
    """One thing looked at before the first write."""

    title: str
    error: AsrError | None = None      # why recovery can't go on
    note: str = ""                     # what a person should know all the same


def checks(disk: AsrDisk, *, without_backup: bool = False) -> Iterator[Check]:
    """Everything that can be known to fail, before anything is changed.

    `without_backup`: a person said that the backup will be connected later; it is not looked for.
    """
    yield Check(f"ASR disk of {disk.set.host}, created {disk.set.created:%Y-%m-%d %H:%M} UTC")
    if disk.set.files_in(DRIVERS):
        yield _load_carried(disk)      # first: the disks and the backup may need them
    yield Check("Firmware", _firmware(disk))
    yield _plan_check(disk)
    yield Check("Recovery files on this medium", _medium_error())
    if disk.set.commands:
        yield _commands_check(disk)
    yield _backup_check(disk, without_backup)
    yield _disks_check(disk)


def find_copies() -> tuple[AsrDisk, ...]:
    """The copies of asr.sif in the backups on this computer's volumes, the newest first: for when the disk is lost."""
    try:
        found = [AsrDisk("", found.place, found.set) for found in every_backup()]
    finally:
        forget()
    return tuple(sorted(found, key=lambda disk: disk.set.created, reverse=True))


def copies_at(place: str) -> tuple[AsrDisk, ...]:
    """The same for a backup, a folder or a place on the network that a person named. Raises what backups_at() does."""
    try:
        found = [AsrDisk("", found.place, found.set) for found in backups_at(place)]
    finally:
        forget()
    return tuple(sorted(found, key=lambda disk: disk.set.created, reverse=True))


def match_disks(disk: AsrDisk) -> Match:
    """The disks that take the recorded ones' places. Raises what match() does."""
    unmount_left()
    present = probe()
    present = replace(present, filesystems=(*present.filesystems, *_unknown(present)))
    try:
        # Of a backup on the network somebody may have brought a copy.
        found = on_volumes(disk.set) if disk.set.backup.network else find_backup(disk.set)
    except BackupNotFound:
        found = None
    backup = found.device if found else ""
    forget()
    begun = BEGUN.read_text().split() if BEGUN.exists() else ()
    return match(disk.set.layout, present, excluded(disk, present, backup),
                 [found.path for found in present.disks if _number(found) in begun])


def _unknown(present: Layout) -> Iterator[Filesystem]:
    """What has no signature, such as plain dm-crypt and VeraCrypt, and what cannot be read."""
    for disk in present.disks:
        if is_blank(disk, present) and not _begins_with_zeros(disk.path):
            yield Filesystem(f"content of {disk.id}", disk.id, "unknown content")


def _begins_with_zeros(path: str) -> bool:
    try:
        with open(path, "rb") as device:
            return not device.read(_HEAD).strip(b"\0")
    except OSError:
        return False


def _number(disk: Disk) -> str:
    """The kernel's for this disk (sysfs diskseq): no other that is connected later gets it, whatever its name."""
    try:
        return Path(f"/sys/class/block/{Path(disk.path).name}/diskseq").read_text().strip()
    except OSError:
        return ""


@dataclass(frozen=True)
class Lock:
    """An encrypted volume that is to be made, and how its key comes back."""

    container: LuksContainer
    header: bool                       # the saved header is at hand: its old passphrases open it


def server_to_ask(disk: AsrDisk) -> NetworkPlace | None:
    """The place on the network whose password opens the saved headers of encrypted volumes; None: none is needed."""
    if disk.set.provider or not disk.set.layout.containers:
        return None
    try:
        return password_wanted(disk.set)
    finally:
        forget()


def locks(disk: AsrDisk) -> tuple[Lock, ...]:
    """The encrypted volumes that need a passphrase; the headers of all are taken from the backup if it is there."""
    containers = disk.set.layout.containers
    if containers and not disk.set.provider:       # whose backup this stage doesn't look into
        _fetch_headers(disk.set)
    found = [Lock(c, (HEADERS / f"{c.id}.img").exists()) for c in containers]
    # One that was closed when the set was made stays so: its saved header is put back unopened.
    return tuple(lock for lock in found if lock.container.name or not lock.header)


def opens(lock: Lock, passphrase: bytes) -> bool:
    """Whether a passphrase is one of the saved header's. Raises CommandFailed if that can't be said."""
    header = str(HEADERS / f"{lock.container.id}.img")
    try:
        run(("cryptsetup", "open", "--test-passphrase", "--key-file", "-", header), input=passphrase)
    except CommandFailed as error:
        if error.status != NO_SUCH_KEY:
            raise
        return False
    return True


def renew(lock: Lock) -> None:
    """The volume gets a new header, though the old one is at hand."""
    (HEADERS / f"{lock.container.id}.img").unlink()


def _fetch_headers(set: AsrSet) -> None:
    """From the backup into this system's memory."""
    shutil.rmtree(HEADERS, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=STATE) as folder:
        try:
            found = find_backup(set)
            for event in restore_backup(Path(found.path), Path(folder), only=[SAVED_HEADERS], anywhere=True):
                if isinstance(event, Difference):
                    log(f"Saved header: {event.what}: {event.why}")
        except AsrError as error:
            log(f"No saved headers of encrypted volumes: {error}")
        finally:
            forget()
        if (Path(folder) / SAVED_HEADERS).is_dir():
            shutil.move(Path(folder) / SAVED_HEADERS, HEADERS)


def excluded(disk: AsrDisk, present: Layout, backup: str = "") -> dict[str, str]:
    """The disks that must never be written, and why: the medium, the ASR disk, the backup's, by device nodes."""
    recorded = {device for f in present.filesystems if f.uuid and f.uuid == disk.set.backup.filesystem
                for device in present.devices_of(f)}
    mounts = [(mount.source, mount.point) for mount in mount_table()]
    if COPIED.exists():
        mounts.append((COPIED.read_text().strip(), str(MEDIUM)))
    why = {}
    for found in present.disks:
        above = {d.id for d in present.devices if found.id in present.under(d.id)}
        nodes = {present.path(id) for id in above}
        if disk.device in nodes:
            why[found.path] = "it is the ASR disk"
        elif backup in nodes or above & recorded:
            why[found.path] = "it holds the backup"
        elif points := [point for source, point in mounts if source in nodes]:
            why[found.path] = ("it is this recovery medium" if str(MEDIUM) in points else
                               f"it is mounted at {points[0]}")
    return why


def recover(disk: AsrDisk, match: Match, secrets: Mapping[str, bytes] | None = None) -> Iterator[Event]:
    """Partitions, formats and lays down the minimal OS. From here on the disks are changed.

    `secrets`: the passphrases of the encrypted volumes, by their ids; each opens its saved header where that is at
    hand, and is the new one of a header that is made anew.
    """
    layout, set = match.layout, disk.set
    present = probe()
    for choice in match.choices:
        if choice.present not in present.disks:
            raise TooFewDisks(f"The disk that was at {choice.present.path} is not there any more, or was changed.",
                              hint="Press ENTER to look at the disks again.")
    for choice in match.choices:
        with BEGUN.open("a") as begun:
            print(_number(choice.present), file=begun)
    log(f"Recovering {set.host}, set {set.id}, onto " + ", ".join(c.present.path for c in match.choices))
    headers = {c.id for c in layout.containers if (HEADERS / f"{c.id}.img").exists()}
    yield from execute(plan(layout, present, headers, _memory()), [disk.path for disk in layout.disks], secrets)
    with mounted(layout, secrets) as target:
        folder = recovery_folder(layout, target)
        yield from copy_minimal(layout, target, _medium_folder())
        carry(folder / "initrd.img")
        (folder / SIF).write_bytes(write_sif(set))
        if (gathered(set) / PROVIDERS).is_dir():
            shutil.copytree(gathered(set) / PROVIDERS, folder / PROVIDERS, dirs_exist_ok=True)
        yield from install_minimal(set, layout, target)
        # Last: without its id the folder is no minimal OS, and the technician starts again from the medium.
        (folder / "id").write_text(set.id + "\n")
        log("Boot recovery is complete.")
        shutil.copy(LOG, folder / LOG.name)
    if disk.device:
        write_log(disk.device, disk.folder)


def _memory() -> int:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def restart() -> None:
    """Ends the live system in good order and starts the machine again."""
    run(("reboot",))


def _medium_folder() -> Path:
    """Where this live system's own files lie: on the medium, or in a minimal OS that was started again."""
    return next((f for f in (MEDIUM / "live", MEDIUM / RECOVERY) if f.is_dir()), MEDIUM / "live")


def _medium_error() -> AsrError | None:
    missing = [n for n in MINIMAL_OS if not (_medium_folder() / n).is_file()]
    if missing:
        return ToolMissing(f"The recovery medium has no {', '.join(missing)}.",
                           hint="Insert the recovery medium again and press ENTER.")
    return None


def _firmware(disk: AsrDisk) -> AsrError | None:
    here = "uefi" if Path("/sys/firmware/efi").is_dir() else "bios"
    if here != disk.set.firmware:
        return FirmwareDiffers(
            f"The set was made on a computer that starts by {disk.set.firmware.upper()}; "
            f"this medium was started by {here.upper()}.",
            hint=f"Choose {disk.set.firmware.upper()} boot for the recovery medium in the firmware's setup.",
        )
    return None


def _plan_check(disk: AsrDisk) -> Check:
    """A whole plan onto the recorded disks, thrown away: does this version know all, and has it the tools?"""
    try:
        check_minimal(disk.set.layout, disk.set.firmware)
        tools = {step.argv[0] for step in plan(disk.set.layout)} | {"mcopy"}
        tools.add("efibootmgr" if disk.set.firmware == "uefi" else "grub-install")
    except Unsupported as error:
        return Check("Partitions and file systems", error)
    missing = sorted(tool for tool in tools if not has_tool(tool))
    if missing:
        return Check("Partitions and file systems", ToolMissing(
            f"The recovery medium lacks {', '.join(missing)}.", hint="Use a complete recovery medium."))
    count = len(disk.set.layout.filesystems)
    return Check(f"Partitions and file systems: {count} to recreate")


def _load_carried(disk: AsrDisk) -> Check:
    """The set's own drivers and firmware, loaded; what is of no use is said, and stops nothing."""
    lacking = gather(disk, DRIVERS)
    folder = gathered(disk.set) / DRIVERS
    try:
        loaded = load_from(folder) if folder.is_dir() else []
    except (AsrError, OSError) as error:
        loaded = [Loaded("drivers", str(error))]
    useless = [f"{d.what}: {d.why}" for d in lacking] + [f"{f.name}: {f.trouble}" for f in loaded if f.trouble]
    good = sum(not file.trouble for file in loaded)
    more = f" And {len(useless) - 1} more: D shows the log." if len(useless) > 1 else ""
    return Check(f"Drivers and firmware of the set: {good} in use", note=useless[0] + more if useless else "")


def _commands_check(disk: AsrDisk) -> Check:
    """The minimal OS has the programs that this medium has."""
    missing = list(missing_tools(disk.set.commands))
    if critical := next((command for command in missing if command.critical), None):
        return Check("Commands of the set", ToolMissing(
            f"The critical command {critical.title!r} needs {critical.argv[0]}, which this medium does not have.",
            hint="Use the recovery medium that the set was made for."))
    note = ", ".join(f"{command.title}: {command.argv[0]} is not on this medium" for command in missing)
    return Check(f"Commands of the set: {len(disk.set.commands)}", note=note)


def _backup_check(disk: AsrDisk, without_backup: bool) -> Check:
    """Formatting a disk whose backup is not at hand may lose what was left: a person decides that."""
    if disk.set.provider:
        return _provider_check(disk, without_backup)
    if without_backup:
        return Check("Backup of this set", note=_LATER)
    if not disk.set.backup.filesystem and not disk.set.backup.network:
        return Check("Backup of this set", BackupNotFound(
            f"The backup {disk.set.backup.name} is on the network, at {disk.set.backup.place}, where this stage cannot "
            "look for it.", hint="Make sure that it is there: the second stage asks for it by its path."))
    try:
        found = find_backup(disk.set)
        check_whole(Path(found.path))
        return Check(f"Backup: {found.place}")
    except PasswordWanted as error:
        # A server that answers is as much as can be known without its password.
        return Check("Backup of this set", note=_ASKS.format(user=error.place.user))
    except (BackupNotFound, DamagedBackup) as error:
        return Check("Backup of this set", error)
    finally:
        forget()


def _provider_check(disk: AsrDisk, without_backup: bool) -> Check:
    """The provider must be here; whether it could restore now, it says only of a backup that is on a volume."""
    assert disk.set.provider
    title = f"Backup by {disk.set.provider.name}"
    gather(disk, PROVIDERS)
    try:
        program = provider_of(disk.set)
        if without_backup:
            return Check(title, note=_LATER)
        if not disk.set.backup.filesystem and not disk.set.backup.network:
            return Check(title, BackupNotFound(
                f"The backup is at {disk.set.backup.place}, where this stage cannot look for it.",
                hint="Make sure that it is there: the second stage restores from it."))
        found = find_backup(disk.set)
        make_plan(program, disk.set, "restore", found.path)
        return Check(f"{title}: {found.place}")
    except PasswordWanted as error:
        return Check(title, note=_ASKS.format(user=error.place.user))
    except ProviderFailed as error:
        return Check(title, BackupNotFound(error.message, hint=error.hint))
    except AsrError as error:
        return Check(title, error)
    finally:
        forget()


def _disks_check(disk: AsrDisk) -> Check:
    try:
        found = match_disks(disk)
    except AsrError as error:
        return Check("Hard disks", error)
    return Check(f"Hard disks: {len(found.choices)} of {len(disk.set.layout.disks)} found")
