"""The machine that is being recovered, mounted on a folder of the live system."""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from .errors import CommandFailed, TargetNotMounted, WrongPassphrase
from .events import Difference, Event, Progress
from .filesystems import EXT, TOP
from .layout import Filesystem, Layout, LuksContainer, MdArray, Mount
from .plan import LVM, steps_to_stop
from .probe import parse_luks
from .run import log, run, write_out

TARGET = Path("/target")

NO_SUCH_KEY = 2                        # cryptsetup(8), "RETURN CODES"; a header may also take more memory than there is

# Without its recorded options: ro, noexec, nodev or quota would break what is written.
_TYPES = {"ntfs": ("-t", "ntfs3")}
_COMPRESSION = re.compile(r"compress(-force)?(=[a-z]+(:\d+)?)?")
_OPTIONS = {"vfat": "utf8"}            # names as they are in the backup, not in the kernel's default character set


@contextmanager
def mounted(layout: Layout, secrets: Mapping[str, bytes] | None = None, at: Path = TARGET) -> Iterator[Path]:
    """The layout's file systems under `at`, parents before children; unmounted, synced and taken apart at the end.

    `secrets`: passphrases by the ids of their containers. Raises TargetNotMounted and WrongPassphrase, and leaves
    nothing mounted then.
    """
    unmount_left()
    with ExitStack() as stack:
        stack.enter_context(assembled(layout, secrets or {}))
        for mount in layout.mounts_by_depth():
            filesystem = layout.filesystem(mount.filesystem)
            device = layout.path(filesystem.device)
            point = at / mount.point.lstrip("/")
            point.mkdir(parents=True, exist_ok=True)
            if mount.point != "/":
                _set_mount_point(point, mount)
            try:
                _make_writable(device)
                _check(device, filesystem.type)
                run(("mount", *_how(filesystem, mount), device, str(point)))
            except CommandFailed as error:
                raise TargetNotMounted(f"{mount.point} could not be mounted from {device}: {error}",
                                       untouched="No file was written.") from None
            stack.callback(_unmount, point)
        stack.callback(os.sync)
        if layout.mounts and not at.is_mount():
            raise TargetNotMounted("The recovered system's root file system is not mounted.",
                                   untouched="No file was written.")
        yield at


def unmount_left() -> None:
    """Unmounts what work that was killed has left mounted."""
    for point in (TARGET, Path(TOP)):
        if point.is_mount():
            run(("umount", "--recursive", "--lazy", str(point)))


def _unmount(point: Path) -> None:
    """Lazily, if what the restored system's own scripts started is still at work there: all files are written."""
    try:
        run(("umount", str(point)))
    except CommandFailed as error:
        log(f"{point} is unmounted once nothing uses it: {error}")
        run(("umount", "--lazy", str(point)))


@contextmanager
def assembled(layout: Layout, secrets: Mapping[str, bytes], up_to: str = "") -> Iterator[None]:
    """Arrays running, containers open, volume groups active: what is so already stays as it is.

    At the end all is taken apart again that nothing uses, so that a restart finds it clean.
    `up_to`: the id of a device, for which alone this is done. Raises TargetNotMounted, WrongPassphrase.
    """
    wanted = layout.under(up_to) if up_to else {device.id for device in layout.devices}
    order = [device for device in layout.bottom_up() if device.id in wanted]
    try:
        _activate(layout)
        for device in order:
            match device:
                case MdArray():
                    _assemble(device, layout)
                case LuksContainer() if device.name:
                    _open(device, layout, secrets)
                case _:
                    continue
            _activate(layout)                    # a group may lie on what has just appeared
        if any(f.type == "btrfs" and f.others for f in layout.filesystems):
            run(("btrfs", "device", "scan"))
        run(("udevadm", "settle"))
        yield
    finally:
        for device in reversed(order):
            for step in steps_to_stop(device, layout):
                run(step.argv, check=False)      # what this system itself runs from stays


def _activate(layout: Layout) -> None:
    for group in layout.groups:
        if all(os.path.exists(layout.path(volume.device)) for volume in layout.volumes_of(group.id)):
            run(("vgchange", "--activate", "y", *LVM, group.name))


def _assemble(array: MdArray, layout: Layout) -> None:
    if _runs(array):
        _add_late_members(array, layout)
        return
    members = [layout.path(id) for id in (*array.members, *array.spares) if id]
    try:
        run(("mdadm", "--assemble", array.path, "--run", "--uuid", array.id.partition("#")[0],
             *(member for member in members if os.path.exists(member))))
    except CommandFailed as error:
        raise TargetNotMounted(f"The array {array.path} could not be started: {error}",
                               untouched="No file was written.") from None


def _add_late_members(array: MdArray, layout: Layout) -> None:
    """The minimal OS may have started it degraded, before a slow disk was there."""
    parts = Path("/sys/block", Path(array.path).resolve().name, "md")
    for member in filter(None, array.members):
        path = layout.path(member)
        if os.path.exists(path) and not (parts / f"dev-{Path(path).resolve().name}").exists():
            run(("mdadm", array.path, "--re-add", path), check=False)


# The kernel keeps the node of an array that was stopped for a while.
def _runs(array: MdArray) -> bool:
    try:
        state = Path("/sys/block", Path(array.path).resolve().name, "md/array_state").read_text().strip()
    except OSError:
        return False
    return state not in ("clear", "inactive")


def _open(container: LuksContainer, layout: Layout, secrets: Mapping[str, bytes]) -> None:
    if os.path.exists(layout.path(container.id)):
        return
    if container.id not in secrets:
        raise WrongPassphrase(f"The encrypted volume {container.name} needs its passphrase.", container=container.id,
                              untouched="No file was written.")
    try:
        run(("cryptsetup", "open", "--key-file", "-", layout.path(container.device), container.name),
            input=secrets[container.id])
    except CommandFailed as error:
        if error.status != NO_SUCH_KEY:
            raise TargetNotMounted(f"The encrypted volume {container.name} could not be opened: {error}",
                                   untouched="No file was written.") from None
        raise WrongPassphrase(f"The encrypted volume {container.name} could not be opened: {error}",
                              container=container.id, hint="Type its passphrase again.",
                              untouched="No file was written.") from None


def make_swap_files(layout: Layout, target: Path) -> Iterator[Event]:
    """Swap files are in no backup; one that can't be made again is a Difference."""
    for swap in layout.swap_files:
        path = target / swap.path.lstrip("/")
        holder = layout.mount_around(swap.path)
        yield Progress("Making swap files", item=swap.path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.unlink(missing_ok=True)
            path.touch(mode=0o600)
            if holder and layout.filesystem(holder.filesystem).type == "btrfs":
                run(("chattr", "+C", str(path)))           # else it can't be swapped to; only while it is empty
            run(("fallocate", "--length", str(swap.size), str(path)))
            run(("mkswap", *(("--uuid", swap.uuid) if swap.uuid else ()),
                 *(("--label", swap.label) if swap.label else ()), str(path)))
        except (CommandFailed, OSError) as error:
            yield Difference(swap.path, f"The swap file could not be made: {error}")


def enroll_keys(layout: Layout, target: Path, secrets: Mapping[str, bytes]) -> Iterator[Event]:
    """Key files open their volumes again, also where a header was made anew; what is lost is a Difference."""
    for container in layout.containers:
        device = layout.path(container.device)
        key_file = target / container.key_file.lstrip("/")
        if container.key_file and key_file.is_file() and container.id in secrets:
            try:
                run(("cryptsetup", "open", "--test-passphrase", "--key-file", str(key_file), device))
            except CommandFailed:
                try:
                    run(("cryptsetup", "luksAddKey", "--batch-mode", "--key-file", "-", device, str(key_file)),
                        input=secrets[container.id])
                except CommandFailed as error:
                    yield Difference(container.key_file, f"It does not open {container.name}: {error}")
        now = parse_luks(run(("cryptsetup", "luksDump", device), check=False), Filesystem(container.id, "", ""))
        if now.slots < container.slots or set(container.tokens) - set(now.tokens):
            lost = [f"{container.slots - now.slots} key slots"] if now.slots < container.slots else []
            lost += sorted(set(container.tokens) - set(now.tokens))
            yield Difference(container.name or container.id,
                             f"Its header was made anew: {', '.join(lost)} must be enrolled again.")


def set_read_only(layout: Layout, target: Path, now: bool) -> None:
    """Subvolumes that were read-only become so again once their files are there; writable before that."""
    for subvolume in layout.subvolumes:
        mount = layout.mount_with(subvolume)
        if subvolume.read_only and mount:
            inner = subvolume.path.removeprefix(mount.subvolume).strip("/")
            run(("btrfs", "property", "set", str(target / mount.point.lstrip("/") / inner), "ro", str(now).lower()))


def write_all_out(layout: Layout, target: Path) -> Iterator[Event]:
    """All that was restored is on its disk. What is not, since writing it failed later on, is a Difference."""
    for mount in layout.mounts_by_depth():
        yield Progress("Writing to the disks", item=mount.point)
        try:
            write_out(target / mount.point.lstrip("/"))
        except CommandFailed as error:
            yield Difference(mount.point, f"Not all of it could be written to its disk: {error}")


def _how(filesystem: Filesystem, mount: Mount) -> tuple[str, ...]:
    options = _OPTIONS.get(filesystem.type, "")
    if filesystem.type == "btrfs":
        # Compressed as it was: what filled its disk so would not fit otherwise.
        compressed = [word for word in mount.options.split(",") if _COMPRESSION.fullmatch(word)]
        options = ",".join((f"subvol=/{mount.subvolume}" if mount.subvolume else "subvolid=5", *compressed))
    return (*_TYPES.get(filesystem.type, ()), *(("-o", options) if options else ()))


# After a power cut: nothing is written into a file system that is not whole. 4 and more: errors are left.
def _check(device: str, type: str) -> None:
    if run(("findmnt", "--noheadings", "--source", device), check=False):
        return
    if type in EXT:
        run(("sh", "-c", 'e2fsck -p "$1"; [ $? -lt 4 ]', "sh", device))
    elif type == "vfat":
        run(("sh", "-c", 'fsck.fat -a "$1"; [ $? -lt 2 ]', "sh", device))


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


def run_in(target: Path, *argv: str, environment: Mapping[str, str] | None = None, limit: float | None = None) -> str:
    """Runs one of the target's own programs in the target; use it within chroot()."""
    return run(("chroot", str(target), *argv), environment=environment, limit=limit)
