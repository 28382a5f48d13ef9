"""The machine that is being recovered, mounted on a folder of the live system."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import CommandFailed, TargetNotMounted
from .layout import Layout, Mount
from .plan import EXT
from .run import run

TARGET = Path("/target")


@contextmanager
def mounted(layout: Layout, at: Path = TARGET) -> Iterator[Path]:
    """The layout's file systems under `at`, parents before children; unmounted and synced at the end.

    They are mounted without their recorded options: ro, noexec, nodev or quota would break what is written.
    Raises TargetNotMounted, and leaves nothing mounted then.
    """
    with ExitStack() as stack:
        for mount in layout.mounts_by_depth():
            device = layout.path(layout.filesystem(mount.filesystem).device)
            point = at / mount.point.lstrip("/")
            point.mkdir(parents=True, exist_ok=True)
            if mount.point != "/":
                _set_mount_point(point, mount)
            try:
                _make_writable(device)
                _check(device, layout.filesystem(mount.filesystem).type)
                run(("mount", device, str(point)))
            except CommandFailed as error:
                raise TargetNotMounted(f"{mount.point} could not be mounted from {device}: {error}",
                                       untouched="No file was written.") from None
            stack.callback(run, ("umount", str(point)))
        stack.callback(os.sync)
        if layout.mounts and not at.is_mount():
            raise TargetNotMounted("The recovered system's root file system is not mounted.",
                                   untouched="No file was written.")
        yield at


# After a power cut: nothing is written into a file system that is not whole. 4 and more: errors are left.
def _check(device: str, type: str) -> None:
    if type in EXT and not run(("findmnt", "--noheadings", "--source", device), check=False):
        run(("sh", "-c", 'e2fsck -p "$1"; [ $? -lt 4 ]', "sh", device))


# chown first: it clears bits of the mode.
def _set_mount_point(point: Path, mount: Mount) -> None:
    os.chown(point, mount.owner, mount.group)
    point.chmod(mount.mode)
    if mount.modified:
        os.utime(point, ns=(mount.modified, mount.modified))


# The kernel mounts a device either read-only or writable, everywhere at once: the volume that the minimal OS
# runs from was mounted read-only before anything else ran.
def _make_writable(device: str) -> None:
    point = run(("findmnt", "--noheadings", "--output", "TARGET", "--first-only", "--options", "ro",
                 "--source", device), check=False).strip()
    if point:
        run(("mount", "-o", "remount,rw", point))


@contextmanager
def chroot(target: Path) -> Iterator[None]:
    """/proc, /sys, /dev and a fresh /run with udev's data in the target, so that its own tools run there."""
    with ExitStack() as stack:
        def mount(*argv: str, point: Path) -> None:
            point.mkdir(exist_ok=True)
            run(("mount", *argv, str(point)))
            # Lazy: a daemon that the target's scripts started must not hold the recovery up.
            stack.callback(run, ("umount", "--recursive", "--lazy", str(point)))

        for name in ("proc", "sys", "dev"):
            mount("--rbind", "--make-rslave", f"/{name}", point=target / name)
        mount("-t", "tmpfs", "tmpfs", point=target / "run")
        mount("--rbind", "--make-rslave", "/run/udev", point=target / "run/udev")
        yield


def run_in(target: Path, *argv: str) -> str:
    """Runs one of the target's own programs in the target; use it within chroot()."""
    return run(("chroot", str(target), *argv))
