"""What the firmware starts: GRUB for the minimal OS, then the recovered system's own loader and initramfs."""

import base64
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from . import uefi
from .errors import AsrError, CommandFailed, Unsupported
from .events import Difference, Event, Progress
from .keymap import chosen
from .layout import BootOption, Disk, Layout, LogicalVolume, MdArray, Mount, Partition
from .network import address_set
from .run import STATE, log, run
from .sif import AsrSet
from .target import chroot, run_in

RECOVERY = "asr-recovery"              # the minimal OS's folder, in the root of the mount that it lies on
MINIMAL_OS = ("vmlinuz", "initrd.img", "root.squashfs")        # what it is made of, on the medium and on the disk
MEDIUM = Path("/run/medium")           # where the initramfs left the volume that this system was started from
LIVE = Path("/")                       # the live system's own tree
CMDLINE = Path("/proc/cmdline")
ROOM = 256 * 2**20                     # bytes that the minimal OS takes, with its log and journal
ESP_ROOM = 40 * 2**20                  # bytes that its loaders, kernel and initramfs take of each EFI system partition

InBackup = Callable[[str], bool]       # whether the backup has something at an absolute path; on FAT in any case

_EXT = ("ext2", "ext3", "ext4")
_READABLE = (*_EXT, "xfs", "btrfs", "vfat")
# Features that GRUB 2.12 cannot read: grub-core/fs/ext2.c, xfs.c
_EXT_UNREADABLE = {"casefold", "inline_data", "ea_inode", "dirdata", "compression", "journal_dev"}
_XFS_UNREADABLE = {"exchange", "parent", "metadir"}
# Of arrays and volumes: what both GRUB (disk/diskfilter.c, lvm.c) and the initramfs's kernel start.
_LEVELS = ("raid0", "raid1", "raid4", "raid5", "raid6", "raid10")
_METADATA = ("0.90", "1.0", "1.1", "1.2")
_VOLUMES = ("linear", "striped", "mirror", "raid1", "raid4", "raid5", "raid6", "raid10")

_ESP_TYPES = ("C12A7328-F81F-11D2-BA4B-00A0C93EC93B", "ef")
_BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
_BOOT_CODE = 440                       # bytes of a boot sector before the disk's signature

_MINIMAL_CONFIG = """\
# The minimal OS of Automated System Recovery: it restores the backup and takes itself away.
set timeout=0
{find}
echo "Automated System Recovery is starting..."
linux /{folder}/vmlinuz {arguments}
initrd /{folder}/initrd.img
boot
"""
_OWN_CONFIG = _MINIMAL_CONFIG.encode().partition(b"\n")[0]
_FIND_BIOS = """\
search --no-floppy --fs-uuid --set=root {uuid}
if serial --unit=0 --speed=115200; then
    terminal_output console serial
fi"""
_FIND_UEFI = "# The kernel lies on the volume that GRUB was started from, which is root."
# As on the medium: bootenv/image/grub.cfg. What is beside 80x25 on a framebuffer is as blue as the screen.
_ARGUMENTS = "quiet loglevel=3 nomodeset no-scroll fbcon=font:TER16x32,margin:1"

# Debian's signed GRUB for CDs, and not the one for disks: it reads the second of these files before any other, while
# the other's /EFI/debian/grub.cfg is what a restored Debian has there, and the minimal OS must still start after a
# power cut. It knows neither arrays nor volumes, so the kernel and initramfs lie beside it.
_SHIM = "EFI/asr/shimx64.efi"
_ESP_CONFIG = "boot/grub/x86_64-efi/grub.cfg"
_ESP_KERNEL = {"EFI/asr/vmlinuz": "vmlinuz", "EFI/asr/initrd.img": "initrd.img"}       # in the recovery folder
_ESP_FILES = {  # on the EFI system partition: in this live system
    _SHIM: "usr/lib/shim/shimx64.efi.signed",
    "EFI/asr/grubx64.efi": "usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed",
    "EFI/asr/mmx64.efi": "usr/lib/shim/mmx64.efi.signed",
    # What firmware starts that has forgotten its boot menu, or never kept one.
    "EFI/BOOT/BOOTX64.EFI": "usr/lib/shim/shimx64.efi.signed",
    "EFI/BOOT/grubx64.efi": "usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed",
    "EFI/BOOT/mmx64.efi": "usr/lib/shim/mmx64.efi.signed",
}
_FALLBACK = "EFI/BOOT/BOOTX64.EFI"

# What an initramfs made for one machine may lack on another, beside what drives the disks that are here.
_DRIVERS = ("virtio_pci", "virtio_blk", "virtio_scsi", "nvme", "ahci", "ata_piix", "sd_mod", "xhci_pci", "ehci_pci",
            "usb_storage", "uas", "mptspi", "mptsas", "mpt3sas", "megaraid_sas", "vmw_pvscsi", "hv_storvsc",
            "xen_blkfront", "sdhci_pci", "mmc_block", "vmd")
# Where a kernel's command line stands.
_COMMAND_LINES = ("/etc/default/grub", "/etc/default/grub.d", "/etc/kernel/cmdline", "/etc/dracut.conf.d",
                  "/boot/grub/grub.cfg", "/boot/grub2/grub.cfg", "/boot/loader/entries",
                  "/boot/efi/loader/entries", "/efi/loader/entries", "/boot/extlinux/extlinux.conf")
_RESUME = "resume_offset=[0-9]+"
_EXTLINUX = ("boot/extlinux", "boot/syslinux", "extlinux", "boot")


# Where the minimal OS lies

def readable_mounts(layout: Layout) -> list[Mount]:
    """The mounts that GRUB and the medium's initramfs read without help, the best place for the minimal OS first."""
    order = ("/boot", "/", *_esp_points(layout))
    mounts = [m for m in layout.mounts_by_depth() if _is_readable(m, layout)]
    return sorted(mounts, key=lambda m: order.index(m.point) if m.point in order else len(order))


def recovery_mount(layout: Layout) -> Mount:
    """The mount that takes the minimal OS: the one that preparation chose, else the best. Raises Unsupported."""
    readable = readable_mounts(layout)
    chosen = [m for m in layout.mounts if m.recovery] or readable
    if not chosen or chosen[0] not in readable:
        raise Unsupported("There is no volume that the boot loader of the minimal OS can read.")
    return chosen[0]


def recovery_folder(layout: Layout, target: Path) -> Path:
    return target / recovery_mount(layout).point.lstrip("/") / RECOVERY


def _is_readable(mount: Mount, layout: Layout) -> bool:
    filesystem = layout.filesystem(mount.filesystem)
    settings = filesystem.settings
    features = settings.get("features", ())
    return (
        filesystem.type in _READABLE and bool(filesystem.uuid)
        and not (filesystem.type in _EXT and isinstance(features, tuple | list) and _EXT_UNREADABLE & set(features))
        and not (filesystem.type == "xfs" and any(settings.get(name) for name in _XFS_UNREADABLE))
        # It becomes a word of the kernel's command line.
        and re.fullmatch(r"[\w.@/+-]*", mount.subvolume, re.ASCII) is not None
        and not any(s.read_only and (s.filesystem, s.path) == (filesystem.id, mount.subvolume)
                    for s in layout.subvolumes)
        and all(_device_is_readable(device, layout) for device in layout.devices_of(filesystem))
    )


def _device_is_readable(id: str, layout: Layout) -> bool:
    match device := layout.device(id):
        case Disk():
            return True
        case Partition():
            return _device_is_readable(device.disk, layout)
        case MdArray():
            fits = device.level in _LEVELS and device.metadata in _METADATA
        case LogicalVolume():
            fits = device.type in _VOLUMES and not device.cached
        case _:
            return False
    return fits and all(_device_is_readable(below, layout) for below in _stands_on(device, layout))


def _stands_on(device: MdArray | LogicalVolume, layout: Layout) -> list[str]:
    """Devices without which it can't be read: of a volume, not its whole group's."""
    if isinstance(device, MdArray):
        return [member for member in device.members if member]
    group = layout.volumes_of(device.group)
    return [v.device for v in group if not device.volumes or v.id in device.volumes]


def _assembled(id: str, layout: Layout) -> Iterator[MdArray | LogicalVolume]:
    """The arrays and volumes that must be started to reach a device, what they stand on first."""
    device = layout.device(id)
    if isinstance(device, Partition):
        yield from _assembled(device.disk, layout)
    elif isinstance(device, MdArray | LogicalVolume):
        for below in _stands_on(device, layout):
            yield from _assembled(below, layout)
        yield device


def _arguments(set: AsrSet, layout: Layout) -> Iterator[str]:
    """The kernel's command line: asr.array= and asr.volume= are all that the initramfs may start."""
    mount = recovery_mount(layout)
    filesystem = layout.filesystem(mount.filesystem)
    yield f"asr.id={set.id} asr.stage=restore"
    yield from _carried()
    if mount.subvolume:
        yield f"asr.subvolume={mount.subvolume}"
    devices = [d for id in layout.devices_of(filesystem) for d in _assembled(id, layout)]
    for device in dict.fromkeys(devices):
        if isinstance(device, MdArray):
            yield f"asr.array={device.id}@{device.path}"
        else:
            yield f"asr.volume={layout.group(device.group).name}/{device.name}"
    yield _ARGUMENTS


def _carried() -> Iterator[str]:
    """What this start was told and the next one needs: the same keyboard, the same address, the same way in."""
    if keymap := chosen():
        yield f"asr.keymap={keymap}"
    if address := address_set():
        yield f"asr.address={address}"
    yield from (word for word in CMDLINE.read_text().split() if word.startswith("asr.ssh="))


def _config(set: AsrSet, layout: Layout) -> str:
    arguments = " ".join(_arguments(set, layout))
    if set.firmware == "uefi":
        return _MINIMAL_CONFIG.format(find=_FIND_UEFI, folder=os.path.dirname(_SHIM), arguments=arguments)
    mount = recovery_mount(layout)
    # GRUB reads a btrfs from its top, whatever its default subvolume is.
    folder = f"{mount.subvolume}/{RECOVERY}".lstrip("/")
    find = _FIND_BIOS.format(uuid=layout.filesystem(mount.filesystem).uuid)
    return _MINIMAL_CONFIG.format(find=find, folder=folder, arguments=arguments)


# What the firmware starts

def boot_disks(layout: Layout) -> list[Disk]:
    """Every disk that / or /boot stands on and that has room for a BIOS loader: the firmware may start any of them.

    A disk without a table, or without a place beside its partitions, is left alone: its first sectors are a physical
    volume's, an array's or a file system's.
    """
    devices = [d for m in layout.mounts if m.point in ("/", "/boot")
               for d in layout.devices_of(layout.filesystem(m.filesystem))]
    return [disk for disk in layout.disks_under(*devices) if _has_room_for_grub(disk, layout)]


def _has_room_for_grub(disk: Disk, layout: Layout) -> bool:
    partitions = layout.partitions_of(disk.id)
    if disk.label == "gpt":
        return any(p.type.upper() == _BIOS_BOOT for p in partitions)
    return disk.label == "dos" and layout.content(disk.id) is None


def esp_mounts(layout: Layout) -> list[Mount]:
    """The mounts of EFI system partitions."""
    return [m for m in layout.mounts_by_depth() if m.point in _esp_points(layout)]


def _esp_points(layout: Layout) -> list[str]:
    return [m.point for m in layout.mounts if layout.filesystem(m.filesystem).type == "vfat" and (
        m.point in ("/boot/efi", "/efi", "/boot") or any(p.type.upper() == _ESP_TYPES[0] or p.type == _ESP_TYPES[1]
                                                         for p in _partitions_under(m, layout)))]


def _partitions_under(mount: Mount, layout: Layout) -> list[Partition]:
    """The partitions that hold a mount's volume: more than one for a mirror, which firmware takes for plain ones."""
    device = layout.filesystem(mount.filesystem).device
    members = next((a.members for a in layout.arrays if a.id == device), (device,))
    return [p for p in layout.partitions if p.id in members]


def check_minimal(layout: Layout, firmware: str) -> None:
    """Raises Unsupported where the minimal OS could not be started from these disks."""
    recovery_mount(layout)
    if firmware == "uefi" and not esp_mounts(layout):
        raise Unsupported("No EFI system partition is mounted, so the minimal OS can't be started by this firmware.",
                          hint="Add the EFI system partition to /etc/fstab and mount it.")
    if firmware == "bios" and not boot_disks(layout):
        raise Unsupported("No disk under / or /boot has room for the boot loader of the minimal OS: "
                          "it takes an MBR, or a GPT with a BIOS boot partition.")


def copy_minimal(layout: Layout, target: Path, medium: Path) -> Iterator[Event]:
    """Copies the minimal OS from the medium; done and total are bytes. The id of the set is written last."""
    folder = recovery_folder(layout, target)
    folder.mkdir(exist_ok=True)
    files = [medium / name for name in MINIMAL_OS]
    total = sum(f.stat().st_size for f in files)
    done = 0
    for file in files:
        with file.open("rb") as source, (folder / file.name).open("wb") as copy:
            while chunk := source.read(2**20):
                copy.write(chunk)
                done += len(chunk)
                yield Progress("Setup is copying files...", done, total, file.name)
        if (folder / file.name).stat().st_size != file.stat().st_size:
            raise CommandFailed(f"{file.name} was not copied whole.")
    os.sync()


def install_minimal(set: AsrSet, layout: Layout, target: Path) -> Iterator[Event]:
    """Makes the disks boot the minimal OS, which already lies in its folder on the target. Raises Unsupported."""
    check_minimal(layout, set.firmware)
    yield Progress("Setup is copying files...", item="boot loader")
    if set.firmware == "uefi":
        yield from _install_minimal_uefi(set, layout, target)
    else:
        yield from _install_minimal_bios(set, layout, target)
    os.sync()


def _install_minimal_bios(set: AsrSet, layout: Layout, target: Path) -> Iterator[Event]:
    folder = recovery_folder(layout, target)
    (folder / "grub").mkdir(exist_ok=True)
    (folder / "grub/grub.cfg").write_text(_config(set, layout))
    yield from _on_each(boot_disks(layout), lambda disk: run((
        "grub-install", "--target=i386-pc", f"--boot-directory={folder}",
        "--no-floppy",                           # the ASR disk is still in its drive
        disk.path)))


def _on_each(disks: list[Disk], install: Callable[[Disk], object]) -> Iterator[Event]:
    """Puts a loader onto disks, one of which is enough to start. Raises the last failure if there is none."""
    failures = []
    for disk in disks:
        yield Progress("Installing the boot loader", item=disk.path)
        try:
            install(disk)
        except CommandFailed as error:
            failures.append(error)
            yield Difference(disk.path, f"The computer can't start from this disk: {error}")
    if failures and len(failures) == len(disks):
        # A machine that doesn't start is not recovered.
        raise failures[-1]


def _install_minimal_uefi(set: AsrSet, layout: Layout, target: Path) -> Iterator[Event]:
    for mount in esp_mounts(layout):
        esp = target / mount.point.lstrip("/")
        for name, source in _ESP_FILES.items():
            (esp / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(LIVE / source, esp / name)
        for name, source in _ESP_KERNEL.items():
            shutil.copyfile(recovery_folder(layout, target) / source, esp / name)
        (esp / _ESP_CONFIG).parent.mkdir(parents=True, exist_ok=True)
        (esp / _ESP_CONFIG).write_text(_config(set, layout))
    partitions = [p for mount in esp_mounts(layout) for p in _partitions_under(mount, layout)]
    try:
        _write_menu(uefi.commands_to_start(uefi.menu(), layout, partitions, _efi_path(_SHIM)))
    except AsrError as error:
        yield Difference("boot menu", f"The firmware takes no entry for the minimal OS, which starts as the disk's "
                                      f"fallback loader: {error}")


def _write_menu(commands: Iterable[uefi.Command]) -> None:
    for command in commands:
        run(command)


def _efi_path(path: str) -> str:
    return "\\" + path.replace("/", "\\")


@contextmanager
def own_fallback(set: AsrSet, layout: Layout, target: Path) -> Iterator[None]:
    """The minimal OS stays what EFI/BOOT starts while files are restored; at the end the restored loaders move there.

    A firmware that has forgotten its boot menu starts that, also after a power cut in the middle of the restore.
    What is restored there lies in the recovery folder until then, so that the next run finds it.
    """
    places = {}
    with ExitStack() as mounts:
        for mount, place in _fallbacks(layout, target) if set.firmware == "uefi" else ():
            folder = (target / mount.point.lstrip("/") / _FALLBACK).parent
            if folder.is_dir():
                place.mkdir(exist_ok=True)
                places[folder] = place
                run(("mount", "--bind", str(place), str(folder)))
                mounts.callback(run, ("umount", str(folder)))
        yield
    for folder, restored in places.items():
        for top, _, names in os.walk(restored, topdown=False):
            to = folder / Path(top).relative_to(restored)
            to.mkdir(parents=True, exist_ok=True)
            old = {file.name.lower(): file for file in to.iterdir()}
            for name in names:
                old.get(name.lower(), to / name).unlink(missing_ok=True)       # FAT would keep its old name
                shutil.copyfile(Path(top) / name, to / name)
            for copied, original in (*((to / name, Path(top) / name) for name in names), (to, Path(top))):
                status = original.stat()
                os.utime(copied, ns=(status.st_atime_ns, status.st_mtime_ns))


def remove_minimal(set: AsrSet, layout: Layout, target: Path, in_backup: InBackup) -> Iterator[Event]:
    """Takes the minimal OS away: at once what firmware starts, its folder when this system ends.

    It comes last, when the restored system can start. `in_backup` is asked for files and folders.
    """
    if set.firmware == "uefi":
        _check_starts(layout, target, in_backup)
        for mount in esp_mounts(layout):
            for name in (*_ESP_FILES, *_ESP_KERNEL, _ESP_CONFIG):
                _remove(target, f"{mount.point.rstrip('/')}/{name}", mount.point, in_backup)
        try:
            _write_menu(uefi.commands_to_forget(uefi.menu()))
        except AsrError as error:
            log(f"The minimal OS's entries stay in the boot menu: {error}")
        yield from _fallback(layout, target)
    mount = recovery_mount(layout)
    filesystem = layout.filesystem(mount.filesystem)
    options = f"subvol=/{mount.subvolume}" if filesystem.type == "btrfs" else "defaults"
    # bootenv/image/end reads it.
    (STATE / "remove-on-exit").write_text(
        "\n".join((layout.path(filesystem.device), filesystem.type, options, RECOVERY)) + "\n")


def _check_starts(layout: Layout, target: Path, in_backup: InBackup) -> None:
    """Raises Unsupported where nothing is there to start but the minimal OS's own loaders."""
    if _startable(layout, target):
        return
    own = {name.lower(): name for name in _ESP_FILES}
    for mount in esp_mounts(layout):
        esp = target / mount.point.lstrip("/")
        for file in esp.glob("[Ee][Ff][Ii]/*/*.[Ee][Ff][Ii]"):
            name = own.get(str(file.relative_to(esp)).lower())
            if name is None or in_backup(f"{mount.point.rstrip('/')}/{name}"):
                return
    raise Unsupported(
        "The EFI system partition has no boot loader of the restored system, so it can't be made to start.",
        untouched="The restored files are complete.",
        hint="The backup has none: restore another one, or start the system by other means and install its loader.")


def left_by_minimal(layout: Layout, target: Path) -> InBackup:
    """For a backup whose list is not known: of the minimal OS's files, what own_fallback() has seen restored."""
    own = {f"{mount.point.rstrip('/')}/{name}" for mount in esp_mounts(layout) for name in _ESP_FILES}
    restored = {f"{mount.point.rstrip('/')}/{Path(_FALLBACK).parent}/{file.name}".lower()
                for mount, folder in _fallbacks(layout, target) for file in folder.glob("*")}

    def in_backup(path: str) -> bool:
        if path in own:
            return path.lower() in restored
        # Its kernel and initramfs lie in a folder of its own; of other folders only an empty one is removed.
        file = target / path.lstrip("/")
        return path.endswith(f"/{_ESP_CONFIG}") and file.is_file() and not file.read_bytes().startswith(_OWN_CONFIG)

    return in_backup


def _fallbacks(layout: Layout, target: Path) -> Iterator[tuple[Mount, Path]]:
    """The EFI system partitions, and where of each what is restored to EFI/BOOT waits."""
    for number, mount in enumerate(esp_mounts(layout)):
        yield mount, recovery_folder(layout, target) / f"fallback{number}"


def _remove(target: Path, path: str, top: str, in_backup: InBackup) -> None:
    """Removes what the backup does not have, and folders that are then empty; the others keep their times."""
    while path != top and not in_backup(path):
        file = target / path.lstrip("/")
        parent = file.parent.stat() if file.parent.exists() else None
        try:
            file.rmdir() if file.is_dir() else file.unlink(missing_ok=True)
        except OSError:                          # a folder with something in it
            return
        if parent:
            os.utime(file.parent, ns=(parent.st_atime_ns, parent.st_mtime_ns))
        path = os.path.dirname(path)


# The recovered system

def loader_of(root: Path, layout: Layout, firmware: str) -> str:
    """What starts the machine whose root directory this is: "grub", "systemd-boot", "extlinux" or "other"."""
    if firmware == "uefi":
        first = sorted((o for o in layout.boot_options if o.position), key=lambda o: o.position)
        loaders = [o.loader.lower() for o in first]
        for mount in esp_mounts(layout):
            efi = root / mount.point.lstrip("/") / "EFI"
            loaders += [str(p).lower() for p in sorted(efi.glob("*/*")) if p.suffix.lower() == ".efi"]
        kinds = {"grub": r"grub\w*\.efi$|shim\w*\.efi$", "systemd-boot": r"systemd-boot\w*\.efi$"}
        return next((kind for path in loaders for kind, name in kinds.items() if re.search(name, path)), "other")
    codes = [base64.b64decode(boot_code(disk.path)) for disk in layout.disks]
    if any(b"GRUB" in code for code in codes) and _grub_of(root):
        return "grub"
    return "extlinux" if _extlinux_folder(root) else "other"


def boot_code(disk: str) -> str:
    """base64 of the first 440 bytes of a disk."""
    with open(disk, "rb") as file:
        return base64.b64encode(file.read(_BOOT_CODE)).decode()


def install_system(set: AsrSet, layout: Layout, target: Path) -> Iterator[Event]:
    """Makes the restored system start on this machine; what it doesn't have is a Difference.

    Raises CommandFailed and Unsupported for a machine that would not start.
    """
    with chroot(target):
        yield from _forget_old_devices(target)
        yield from _hibernation(layout, target)
        yield from _initramfs(target)
        if set.firmware == "bios":
            yield from _bios_loader(set, layout, target)
    if set.firmware == "uefi":
        yield from _boot_menu(layout, target)


def _forget_old_devices(target: Path) -> Iterator[Event]:
    """What names the disks that were lost, or a start that never came."""
    devices = "/etc/lvm/devices/system.devices"
    if _exists(target, devices):
        # LVM is blind to what this file doesn't list. Without it, it looks at every device.
        run_in(target, "mv", devices, f"{devices}.before-recovery")
        try:
            run_in(target, "vgimportdevices", "--all")
            run_in(target, "rm", f"{devices}.before-recovery")
        except AsrError as error:
            run_in(target, "rm", "-f", devices)
            yield Difference(devices, f"It is now {devices}.before-recovery, since it lists other disks and no new "
                                      f"one could be made: {error}")
    for environment in ("/boot/grub/grubenv", "/boot/grub2/grubenv"):
        editor = next((name for name in ("grub-editenv", "grub2-editenv") if _has(target, name)), None)
        if editor and _exists(target, environment):
            found = [line.partition("=")[0] for line in run_in(target, editor, environment, "list").splitlines()]
            once = [name for name in found if name in ("next_entry", "recordfail", "prev_saved_entry")]
            if once:
                run_in(target, editor, environment, "unset", *once)


def _hibernation(layout: Layout, target: Path) -> Iterator[Event]:
    """The kernel wakes from a swap file by its place on the disk (swsusp-and-swap-files in its documentation), and the
    file that was made anew has another one."""
    try:
        files = run_in(target, "grep", "-Elrs", _RESUME, *_COMMAND_LINES).split()
    except CommandFailed:                        # none has it
        return
    what = "hibernation"
    if len(layout.swap_files) != 1:
        yield Difference(what, f"The place of the swap file must be set anew in {', '.join(files)}.")
        return
    swap = layout.swap_files[0]
    try:
        place = _place_on_disk(target / swap.path.lstrip("/"), layout, swap.path)
        run_in(target, "sed", "-Ei", "--follow-symlinks", f"s/{_RESUME}/resume_offset={place}/g", *files)
    except (CommandFailed, ValueError) as error:
        yield Difference(what, f"The place of {swap.path} could not be set anew in {', '.join(files)}: {error}")
        return
    yield Difference(what, f"{swap.path} lies elsewhere on the disk now: {', '.join(files)} say resume_offset={place}.")


def _place_on_disk(file: Path, layout: Layout, path: str) -> int:
    """In pages, as the kernel counts. Raises CommandFailed, and ValueError for a file that has none."""
    mount = layout.mount_around(path)
    if mount and layout.filesystem(mount.filesystem).type == "btrfs":
        return int(run(("btrfs", "inspect-internal", "map-swapfile", "--resume-offset", str(file))))
    text = run(("filefrag", "-v", f"-b{os.sysconf('SC_PAGE_SIZE')}", str(file)))
    first = re.search(r"^ *0: +0\.\. *\d+: +(\d+)\.\.", text, re.MULTILINE)
    if not first:
        raise ValueError("it has no place")
    return int(first[1])


# Looked up in the target: its symbolic links mean its own tree.
def _exists(target: Path, path: str) -> bool:
    try:
        run_in(target, "test", "-s", path)
    except CommandFailed:
        return False
    return True


def _initramfs(target: Path) -> Iterator[Event]:
    # Debian's dracut has an update-initramfs of its own, which takes no drivers.
    tools = _has(target, "mkinitramfs")
    if tools and _fits_any_computer(target):
        return
    yield Progress("Making the initial RAM file system", item="initramfs")
    what = "the initial RAM file system"
    if tools:
        with _every_driver(target):
            yield from _own(what, target, "update-initramfs", "-u", "-k", "all")
    elif _has(target, "dracut"):
        for kernel in sorted((target / "lib/modules").glob("*/modules.dep")):
            drivers = sorted({*_DRIVERS, *drivers_of_disks()} & _modules(kernel.parent))
            yield from _own(what, target, "dracut", "--force", "--kver", kernel.parent.name,
                            "--add-drivers", " ".join(drivers))
    else:
        yield Difference("initramfs", "The system has no known tool to make it; it is as it was backed up.")


def _fits_any_computer(target: Path) -> bool:
    """Is each kernel's initramfs there, with every driver, as initramfs-tools makes it if not told otherwise?

    Then making it again, for minutes, would give the same: what it has from /etc names devices by their identifiers,
    which came back. LVM's list of devices, of which it has a copy, is the exception.
    """
    if _few_drivers(target) or any((target / "etc/lvm/devices").glob("*")):
        return False
    return all(_exists(target, f"/boot/initrd.img-{kernel.parent.name}")
               for kernel in (target / "lib/modules").glob("*/modules.dep"))


def _few_drivers(target: Path) -> bool:
    """Are initramfs-tools set to take only this machine's drivers?"""
    try:
        run_in(target, "grep", "-Eqrs", "^MODULES=.?(dep|list)", "/etc/initramfs-tools")
    except CommandFailed:
        return False
    return True


@contextmanager
def _every_driver(target: Path) -> Iterator[None]:
    """initramfs-tools that take only this machine's drivers take all of them for once."""
    if not _few_drivers(target):
        yield
        return
    folder = "/etc/initramfs-tools/conf.d"
    run_in(target, "sh", "-c", 'touch -r "$1" /run/time && echo MODULES=most >"$1/zz-recovery"', "sh", folder)
    try:
        yield
    finally:
        run_in(target, "sh", "-c", 'rm "$1/zz-recovery" && touch -r /run/time "$1"', "sh", folder)


def drivers_of_disks() -> set[str]:
    """The kernel modules that this system reaches its disks by: each one's own, its controller's, its bus's."""
    devices = {path for block in Path("/sys/block").glob("*/device")
               for path in (block.resolve(), *block.resolve().parents)}
    links = [path / "driver/module" for path in devices]
    return {link.resolve().name for link in links if link.is_symlink()}


def _modules(folder: Path) -> set[str]:
    """The names of a kernel's modules, with those that are built in."""
    lists = [folder / "modules.dep", folder / "modules.builtin"]
    lines = [line.partition(":")[0] for file in lists if file.exists() for line in file.read_text().splitlines()]
    return {Path(line).name.partition(".")[0].replace("-", "_") for line in lines}


def _bios_loader(set: AsrSet, layout: Layout, target: Path) -> Iterator[Event]:
    if set.loader == "grub":
        grub = _grub_of(target)
        if not grub:
            raise Unsupported("The restored system has no GRUB for BIOS, so it can't be made to start.",
                              untouched="The restored files are complete.")
        yield from _on_each(boot_disks(layout), lambda disk: run_in(
            target, grub, "--target=i386-pc", "--no-floppy", disk.path))
        return
    if set.loader == "extlinux":
        yield Progress("Installing the boot loader", item="extlinux")
        run_in(target, "extlinux", "--install", "/" + _extlinux_folder(target))
    for disk in layout.disks:
        if disk.boot_code:
            run(("dd", f"of={disk.path}", f"bs={_BOOT_CODE}", "count=1", "conv=notrunc"),
                input=base64.b64decode(disk.boot_code)[:_BOOT_CODE])
    if set.loader != "extlinux":
        yield Difference("boot loader", "It is not one that this version knows: the boot sectors are as they were, but "
                                        "what they load may have moved on the disk.")


def _grub_of(root: Path) -> str:
    return next((name for name in ("grub-install", "grub2-install") if _has(root, name)), "")


def _extlinux_folder(root: Path) -> str:
    return next((folder for folder in _EXTLINUX if (root / folder / "ldlinux.sys").is_file()), "")


def _boot_menu(layout: Layout, target: Path) -> Iterator[Event]:
    """The firmware's boot menu as it was recorded; the minimal OS stays first in it until it is taken away."""
    yield Progress("Installing the boot loader", item="boot menu")
    options = _startable(layout, target)
    for option in layout.boot_options:
        if option not in options:
            yield Difference(f"boot menu entry {option.label}", f"There is no file {option.loader} to start.")
    try:
        _write_menu(uefi.commands_to_restore(uefi.menu(), layout, options, _partuuids()))
    except AsrError as error:
        yield Difference("boot menu", f"The firmware did not take the entries that were recorded: {error}")


def _startable(layout: Layout, target: Path) -> list[BootOption]:
    """The recorded options whose loader is there, or lies on a partition that is not mounted."""
    mounts = {p.id: m for m in esp_mounts(layout) for p in _partitions_under(m, layout)}
    return [o for o in layout.boot_options if o.partition not in mounts or _on(mounts[o.partition], target, o.loader)]


def _on(esp: Mount, target: Path, loader: str) -> Path | None:
    file = target / esp.point.lstrip("/") / loader.replace("\\", "/").lstrip("/")
    return file if file.is_file() else None


def _partuuids() -> set[str]:
    return set(run(("lsblk", "--noheadings", "--list", "--output", "PARTUUID")).lower().split())


def _fallback(layout: Layout, target: Path) -> Iterator[Event]:
    """Where the firmware has no entry for it, a loader starts only as EFI/BOOT/BOOTX64.EFI.

    Elsewhere nothing is added to an EFI system partition that had none.
    """
    options = _startable(layout, target)
    try:
        if options and not list(uefi.commands_to_restore(uefi.menu(), layout, options, _partuuids())):
            return
    except AsrError:
        pass
    for mount in esp_mounts(layout):
        esp = target / mount.point.lstrip("/")
        loaders = [_on(mount, target, o.loader) for o in options]
        loaders += sorted(esp.glob("EFI/*/shimx64.efi")) + sorted(esp.glob("EFI/*/*x64.efi"))
        loader = next(filter(None, loaders), None)
        if (esp / _FALLBACK).exists() or loader is None:
            continue
        (esp / _FALLBACK).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(loader, esp / _FALLBACK)
        # shim starts what lies beside it.
        for other in ("grubx64.efi", "mmx64.efi") if "shim" in loader.name.lower() else ():
            if (loader.parent / other).exists():
                shutil.copyfile(loader.parent / other, (esp / _FALLBACK).parent / other)
        yield Difference(f"{mount.point.rstrip('/')}/{_FALLBACK}",
                         f"It is a new copy of {loader.name}, since the firmware has no entry that starts it.")


def _own(what: str, target: Path, *argv: str) -> Iterator[Event]:
    try:
        run_in(target, *argv)
    except CommandFailed as error:
        yield Difference(what, f"It is as it was backed up: {error}")


def _has(target: Path, name: str) -> bool:
    return any((target / folder / name).exists() for folder in ("usr/sbin", "usr/bin", "sbin", "bin"))
