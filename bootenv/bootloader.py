"""What the firmware starts: GRUB for the minimal OS, then the recovered system's own loader and initramfs."""

import os
from collections.abc import Iterator
from pathlib import Path

from .errors import CommandFailed, Unsupported
from .events import Difference, Event, Progress
from .layout import Disk, Layout, Mount
from .plan import EXT
from .run import run
from .target import chroot, run_in

RECOVERY = "asr-recovery"              # the minimal OS's folder, in the root of the volume that GRUB reads it from
MINIMAL_OS = ("vmlinuz", "initrd.img", "root.squashfs")        # what it is made of, on the medium and on the disk
MEDIUM = Path("/run/medium")           # where the initramfs left the volume that this system was started from

_MINIMAL_CONFIG = """\
# The minimal OS of Automated System Recovery: it restores the backup and takes itself away.
set timeout=0
search --no-floppy --fs-uuid --set=root {uuid}
if serial --unit=0 --speed=115200; then
    terminal_output console serial
fi
echo "Automated System Recovery is starting..."
linux /{folder}/vmlinuz asr.id={id} asr.stage=restore {arguments}
initrd /{folder}/initrd.img
boot
"""
# As on the medium: bootenv/image/grub.cfg.
_ARGUMENTS = "quiet loglevel=3 nomodeset no-scroll"


def recovery_mount(layout: Layout) -> Mount:
    """The volume that takes the minimal OS: one that GRUB reads without help. Raises Unsupported."""
    for point in ("/", "/boot"):
        for mount in layout.mounts:
            filesystem = layout.filesystem(mount.filesystem)
            if mount.point == point and filesystem.type in EXT:
                return mount
    raise Unsupported("There is no volume that the boot loader of the minimal OS can read.")


def recovery_folder(layout: Layout, target: Path) -> Path:
    return target / recovery_mount(layout).point.lstrip("/") / RECOVERY


def boot_disks(layout: Layout) -> list[Disk]:
    """Every disk that / or /boot stands on: the firmware may start any of them."""
    points = [m for m in layout.mounts if m.point in ("/", "/boot")]
    disks = [d for m in points for d in layout.disks_under(layout.filesystem(m.filesystem).device)]
    return list(dict.fromkeys(disks))


def install_minimal(layout: Layout, set_id: str, target: Path) -> Iterator[Event]:
    """Makes the disks boot the minimal OS, which already lies in its folder on the target."""
    folder = recovery_folder(layout, target)
    (folder / "grub").mkdir(exist_ok=True)
    filesystem = layout.filesystem(recovery_mount(layout).filesystem)
    (folder / "grub/grub.cfg").write_text(_MINIMAL_CONFIG.format(
        uuid=filesystem.uuid, folder=RECOVERY, id=set_id, arguments=_ARGUMENTS))
    for disk in boot_disks(layout):
        yield Progress("Setup is copying files...", item="boot loader")
        run(("grub-install", "--target=i386-pc", f"--boot-directory={folder}",
             "--no-floppy",                      # the ASR disk is still in its drive
             disk.path))
    os.sync()


def install_system(layout: Layout, target: Path) -> Iterator[Event]:
    """The recovered system's own initramfs and GRUB, made by its own tools; what it doesn't have is a Difference."""
    with chroot(target):
        yield Progress("Making the initial RAM file system", item="initramfs")
        if _has(target, "update-initramfs"):
            yield from _own("the initial RAM file system", target, "update-initramfs", "-u", "-k", "all")
        elif _has(target, "dracut"):
            yield from _own("the initial RAM file system", target, "dracut", "--force", "--regenerate-all")
        else:
            yield Difference("initramfs", "The system has no known tool to make it; it is as it was backed up.")
        grub = next((name for name in ("grub-install", "grub2-install") if _has(target, name)), None)
        for disk in boot_disks(layout):
            yield Progress("Installing the boot loader", item=disk.path)
            if grub:
                # Not a Difference: a machine that doesn't start is not recovered.
                run_in(target, grub, "--target=i386-pc", "--no-floppy", disk.path)
        if not grub:
            raise Unsupported("The restored system has no GRUB for BIOS, so it can't be made to start.",
                              untouched="The restored files are complete.")


def _own(what: str, target: Path, *argv: str) -> Iterator[Event]:
    try:
        run_in(target, *argv)
    except CommandFailed as error:
        yield Difference(what, f"It is as it was backed up: {error}")


def _has(target: Path, name: str) -> bool:
    return any((target / folder / name).exists() for folder in ("usr/sbin", "usr/bin", "sbin", "bin"))


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
