"""Can this machine be brought back? A verdict for each of its devices and file systems, before any disaster."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from .bootloader import readable_mounts
from .filesystems import MAKERS
from .layout import (
    Device,
    Disk,
    Filesystem,
    Layout,
    LogicalVolume,
    LuksContainer,
    MdArray,
    Mount,
    Partition,
    human,
)
from .plan import LEVELS, LV_TYPES, METADATA
from .probe import Mounted

CRITICAL = ("/", "/boot", "/boot/efi", "/efi", "/usr", "/var", "/etc")
RECOVERABLE, LOSS, NOT_RECOVERABLE = "recoverable", "recoverable with losses", "not recoverable"
VERDICTS = (RECOVERABLE, LOSS, NOT_RECOVERABLE)        # their places are `asr check`'s exit statuses

# What another layer keeps on a disk, in a way that this version can't make again.
_LAYERS = {"zfs_member": "ZFS", "bcache": "bcache", "drbd": "DRBD", "mpath_member": "multipath",
           "VDO": "VDO", "isw_raid_member": "firmware RAID", "ddf_raid_member": "firmware RAID"}
# Mounted, and nobody's data: a CD, the medium's own squashfs.
_MEDIA = ("iso9660", "udf", "squashfs")


@dataclass(frozen=True)
class Finding:
    """What recovery will make of one device or mount point."""

    device: str                # path or mount point
    what: str                  # what it is, in brackets its kind
    verdict: str = RECOVERABLE
    why: str = ""              # a sentence, for all but what simply comes back


def verdict(findings: Iterable[Finding]) -> str:
    """The worst of them."""
    return max((f.verdict for f in findings), key=VERDICTS.index, default=NOT_RECOVERABLE)


def as_lines(findings: Iterable[Finding]) -> str:
    """A line for each, the verdict of the whole last."""
    findings = list(findings)
    width = max((len(f.device) for f in findings), default=0)
    lines = [f"{f.device:{width}}  {f.what}" + (f": {f.why}" if f.why else "")
             + (f" ({f.verdict})" if f.verdict != RECOVERABLE else "") for f in findings]
    return "\n".join([*lines, f"This computer is {verdict(findings)}."]) + "\n"


def critical_part(everything: Layout, also: Collection[str] = ()) -> Layout:
    """The disks that the system stands on, all that is on these, and whatever disks that reaches over to.

    also: mount points of further file systems that are to come back with it.
    """
    systems = {m.filesystem for m in everything.mounts if m.point in (*CRITICAL, *also)}
    devices = {d for f in everything.filesystems if f.id in systems for d in everything.devices_of(f)}
    return part_on(everything, {disk.id for disk in everything.disks_under(*devices)})


def part_on(everything: Layout, disks: set[str]) -> Layout:
    """What lies on disks, closed over arrays, volume groups and file systems that lie on further ones."""
    while True:
        devices = {d.id for d in everything.devices if everything.under(d.id) & disks}
        spanning = {d for f in everything.filesystems for d in everything.devices_of(f)
                    if devices & {*everything.devices_of(f)}}
        more = {disk.id for disk in everything.disks_under(*devices, *spanning)}
        if more <= disks:
            break
        disks |= more
    groups = {v.group for v in everything.physical_volumes if v.device in devices}
    filesystems = tuple(f for f in everything.filesystems if f.device in devices)
    ids = {f.id for f in filesystems}
    mounts = tuple(m for m in everything.mounts if m.filesystem in ids)
    return Layout(
        disks=tuple(d for d in everything.disks if d.id in disks),
        partitions=tuple(p for p in everything.partitions if p.id in devices),
        filesystems=filesystems,
        mounts=mounts,
        arrays=tuple(a for a in everything.arrays if a.id in devices),
        containers=tuple(c for c in everything.containers if c.id in devices),
        physical_volumes=tuple(v for v in everything.physical_volumes if v.device in devices),
        groups=tuple(g for g in everything.groups if g.id in groups),
        logical_volumes=tuple(v for v in everything.logical_volumes if v.group in groups),
        subvolumes=tuple(s for s in everything.subvolumes if s.filesystem in ids),
        swap_files=tuple(s for s in everything.swap_files if everything.mount_around(s.path) in mounts),
        boot_options=tuple(b for b in everything.boot_options if b.partition in devices),
    )


def recoverable_part(layout: Layout) -> Layout:
    """Without what is left out or made again empty: snapshots, caches, and content of unknown kinds."""
    kept = {v.id for v in layout.logical_volumes if not v.origin}
    # vgcfgrestore gives no group with thin pools its UUIDs back.
    thin = {v.group for v in layout.logical_volumes if v.type == "thin-pool"}
    used = {(m.filesystem, m.subvolume) for m in layout.mounts}
    makeable = tuple(f for f in layout.filesystems if _makeable(f))
    return replace(
        layout,
        mounts=tuple(m for m in layout.mounts if m.filesystem in {f.id for f in makeable}),
        groups=tuple(replace(g, uuid="") if g.id in thin else g for g in layout.groups),
        logical_volumes=tuple(
            replace(v, cached=False, active=True, read_only=False, uuid="" if v.group in thin else v.uuid)
            for v in layout.logical_volumes if v.id in kept),
        subvolumes=tuple(replace(s, snapshot=False) for s in layout.subvolumes
                         if not s.snapshot or s.default or (s.filesystem, s.path) in used),
        filesystems=tuple(replace(f, settings={k: v for k, v in f.settings.items() if k != "quota"})
                          for f in makeable),
    )


def _makeable(filesystem: Filesystem) -> bool:
    return filesystem.type in MAKERS and not MAKERS[filesystem.type][1] - filesystem.settings.keys()


def data_volumes(everything: Layout, layout: Layout) -> tuple[Mount, ...]:
    """What is mounted from other local disks and could come back with a layout, if it is asked for."""
    ours = {mount.point for mount in layout.mounts}
    return tuple(mount for mount in everything.mounts_by_depth()
                 if mount.point not in ours and _makeable(everything.filesystem(mount.filesystem)))


def check(everything: Layout, mounted: Iterable[Mounted], also: Collection[str] = (),
          named: Mapping[str, Collection[str]] = MappingProxyType({})) -> tuple[Finding, ...]:
    """A line for each device and file system of the critical disks, then for what is mounted from elsewhere.

    also: see critical_part(). named: see probe.kernel_names().
    """
    layout = critical_part(everything, also)
    mounted = list(mounted)
    kept = {(s.filesystem, s.path) for s in recoverable_part(layout).subvolumes}
    return (
        *_system(everything, layout, mounted),
        *(_device(device, layout) for device in layout.devices),
        *(_filesystem(filesystem, layout) for filesystem in layout.filesystems),
        *(Finding(s.path, "[btrfs snapshot]", LOSS, "A snapshot is not made again.")
          for s in layout.subvolumes if (s.filesystem, s.path) not in kept),
        *(Finding(s.path, "[btrfs subvolume]", LOSS, "It is not mounted: it will be recreated empty.")
          for s in layout.subvolumes if (s.filesystem, s.path) in kept and not layout.mount_with(s)),
        *_elsewhere(layout, mounted),
        *(Finding(path, f"names {', '.join(devices)}",
                  why="Other disks may have that name after a recovery: a UUID would be right in any case.")
          for path, devices in named.items()),
    )


def _system(everything: Layout, layout: Layout, mounted: list[Mounted]) -> Iterator[Finding]:
    """What keeps the machine as a whole from being recovered."""
    ours = {mount.point for mount in layout.mounts}
    layers = sorted({_LAYERS[f.type] for f in everything.filesystems if f.type in _LAYERS})
    known = f" This computer uses {' and '.join(layers)}." if layers else ""
    for mount in mounted:
        if mount.point in CRITICAL and mount.point not in ours and not _bound(mount, layout):
            yield Finding(mount.point, f"[{mount.type}]", NOT_RECOVERABLE,
                          f"{mount.point} lies on {mount.source} [{mount.type}], which this version cannot recover."
                          + known)
    if "/" in ours and not readable_mounts(recoverable_part(layout)):
        yield Finding("/", "minimal OS", NOT_RECOVERABLE,
                      "The boot loader of the minimal OS can read no volume of this computer: it needs one outside of "
                      "encryption and thin pools, such as /boot.")


def _device(device: Device, layout: Layout) -> Finding:
    path = layout.path(device.id)
    lies_in = {m.point for f in layout.filesystems for m in layout.mounts if m.filesystem == f.id
               if any(device.id in layout.under(d) for d in layout.devices_of(f))}
    match device:
        case Disk():
            found = Finding(path, f"[{device.label or 'no table'}] {human(device.size)}")
            content = layout.content(device.id)
            if isinstance(content, Filesystem) and content.type == "mpath_member":
                return replace(found, verdict=NOT_RECOVERABLE,
                               why="This version cannot recover multipath disks.")
            return found
        case Partition():
            return Finding(path, f"partition {device.number}, {human(device.size)}")
        case MdArray():
            found = Finding(path, f"[{device.level}, metadata {device.metadata}] {human(device.size)}")
            if device.metadata not in METADATA or device.level not in LEVELS:
                return replace(found, verdict=NOT_RECOVERABLE,
                               why=f"This version cannot make an array {device.level} with metadata "
                                   f"{device.metadata}.")
            if "" in device.members:
                return replace(found, why=f"It lacks {device.members.count('')} of its {len(device.members)} members "
                                          "now, and is made again just so.")
            return found
        case LuksContainer():
            found = Finding(path, f"[LUKS{device.version}] {human(device.size)}")
            if not device.size:
                return replace(found, verdict=LOSS, why="It is not open: it is made again empty.")
            if device.tokens:
                return replace(found, verdict=LOSS,
                               why=f"What opens it by {', '.join(device.tokens)} must be enrolled again if this "
                                   "computer's board changes.")
            return found
        case LogicalVolume():
            found = Finding(path, f"[{device.type}] {human(device.size)}")
            if device.origin:
                return replace(found, verdict=LOSS, why=f"It is a snapshot of {device.origin}, and not made again.")
            if device.type not in LV_TYPES:
                return replace(found, verdict=NOT_RECOVERABLE if lies_in else LOSS,
                               why=f"This version cannot make a volume of the kind {device.type}.")
            if device.cached:
                return replace(found, verdict=LOSS, why="It is made again without its cache.")
            if device.read_only:
                return replace(found, verdict=LOSS, why="It was read-only, and is made again writable.")
            return found


def _filesystem(filesystem: Filesystem, layout: Layout) -> Finding:
    points = sorted(m.point for m in layout.mounts if m.filesystem == filesystem.id)
    path = layout.path(filesystem.device)
    found = Finding(path, f"[{filesystem.type}] " + (", ".join(points) or filesystem.label))
    if filesystem.type in _LAYERS:
        return replace(found, verdict=NOT_RECOVERABLE,
                       why=f"This version cannot recover {_LAYERS[filesystem.type]}.")
    if not filesystem.label.isprintable() or "\ufffd" in filesystem.label:
        return replace(found, verdict=NOT_RECOVERABLE, why="Its label is not UTF-8 text, so it cannot be recorded.")
    if not _makeable(filesystem):
        why = f"This version cannot make {filesystem.type} again." if filesystem.type not in MAKERS else \
            "Its superblock could not be read."
        return replace(found, verdict=NOT_RECOVERABLE if points else LOSS,
                       why=why if points else f"{why} The space it lies on will be empty.")
    have = filesystem.settings
    if have.get("log", "internal") != "internal" or have.get("realtime", "none") != "none":
        return replace(found, verdict=NOT_RECOVERABLE, why="Its log or realtime part lies on another device.")
    if have.get("quota"):
        return replace(found, verdict=LOSS, why="Its quota groups are not made again.")
    if not points and filesystem.type != "swap":
        return replace(found, verdict=LOSS, why="It is not mounted: it will be recreated empty.")
    return found


def _elsewhere(layout: Layout, mounted: list[Mounted]) -> Iterator[Finding]:
    """What is mounted and not in the set."""
    ours = {mount.point for mount in layout.mounts}
    others = [m for m in mounted if m.point not in (*ours, *CRITICAL) and not _bound(m, layout)]
    if views := [m for m in others if m.type == "overlay"]:
        more = f" and {len(views) - 1} more" if views[1:] else ""
        yield Finding(views[0].point + more, "[overlay]",
                      why="Views of other folders, as containers have them: what uses them makes them again.")
    for mount in others:
        if mount.source.startswith("/dev/loop"):
            yield Finding(mount.point, f"{mount.source} [{mount.type}]",
                          why="The image file that is mounted there is backed up like any other file.")
        elif mount.type not in (*_MEDIA, "overlay"):
            yield Finding(mount.point, f"{mount.source} [{mount.type}]", LOSS,
                          f"{mount.source} [{mount.type}] is not on a disk that the system needs.")


def _bound(mount: Mounted, layout: Layout) -> bool:
    """A second mount of what is in the set, or of a part of it."""
    inside = {layout.path(device) for f in layout.filesystems for device in layout.devices_of(f)}
    return mount.source in inside
