"""A Layout on the disks at hand -> the Steps that make it, as a list that can be read before anything happens."""

import re
from collections.abc import Collection, Iterator
from graphlib import TopologicalSorter

from .errors import Unsupported
from .filesystems import steps_for_filesystem
from .layout import (
    EMPTY,
    Device,
    Disk,
    Filesystem,
    Layout,
    LogicalVolume,
    LuksContainer,
    MdArray,
    Partition,
    PhysicalVolume,
    VolumeGroup,
    human,
)
from .run import STATE
from .step import Step

HEADERS = STATE / "headers"            # where saved LUKS headers lie, as <container's id>.img
_PREPARING = "Setup is preparing the disk..."
# Nothing may wait for udev's database or a list of known devices: udev is kept off the disks meanwhile.
LVM = ("--config", "devices{obtain_device_list_from_udev=0 use_devicesfile=0} global{event_activation=0}")
# Levels that keep going when a member is lost; the others know neither bitmap nor layout.
_REDUNDANT = ("raid1", "raid4", "raid5", "raid6", "raid10")
LEVELS = (*_REDUNDANT, "raid0")        # the medium's kernel (6.8 to 6.13) has no "linear"
METADATA = ("0.90", "1.0", "1.1", "1.2")
LV_TYPES = ("linear", "striped", "mirror", "raid0", "raid0_meta", "raid1", "raid4", "raid5", "raid5_la", "raid5_ra",
            "raid5_ls", "raid5_rs", "raid6", "raid6_zr", "raid6_nr", "raid6_nc", "raid10", "thin-pool", "thin")


def plan(layout: Layout, present: Layout = EMPTY, headers: Collection[str] = (), memory: int = 2**62
         ) -> tuple[Step, ...]:
    """The Steps that turn the disks of `layout`, now as in `present`, into that layout; parents before children.

    `headers`: ids of the containers whose saved header is in HEADERS; the others are formatted anew.
    `memory`: bytes of the machine at hand, of which a passphrase's hash takes no more than half.
    Raises Unsupported for a record that this version can't recreate.
    """
    makes: dict[str, Iterator[Step]] = {}        # the steps that make a thing, by its id
    needs: dict[str, set[str]] = {}              # what must be there before it

    def make(id: str, needed: Collection[str], steps: Iterator[Step]) -> None:
        needs[id], makes[id] = {ready(layout, other) for other in needed if other}, steps

    for disk in layout.disks:
        make(disk.id, (), steps_for_table(disk, layout))
    for partition in layout.partitions:
        make(partition.id, (partition.disk,), iter(()))           # made with its table
    for array in layout.arrays:
        make(array.id, (*array.members, *array.spares), steps_for_array(array, layout))
    for container in layout.containers:
        make(container.id, (container.device,), steps_for_container(container, layout, headers, memory))
    for volume in layout.physical_volumes:
        make(f"physical volume {volume.id}", (volume.device,), steps_for_physical_volume(volume, layout))
    for group in layout.groups:
        volumes = layout.volumes_of(group.id)
        make(f"group {group.id}", [f"physical volume {v.id}" for v in volumes], steps_for_group(group, layout))
        logical = [v for v in layout.logical_volumes if v.group == group.id]
        for lv in logical:
            make(lv.id, (f"group {group.id}",), steps_for_logical_volume(lv, layout))
            if lv.pool:
                needs[lv.id].add(lv.pool)        # not its whole group, which it is itself a part of
        make(f"volumes of {group.id}", (), steps_for_uuids(group, logical))
        needs[f"volumes of {group.id}"] |= {f"group {group.id}", *(v.id for v in logical)}
    for filesystem in layout.filesystems:
        subject = describe(filesystem, layout)
        make(f"content of {filesystem.device}", layout.devices_of(filesystem),
             steps_for_filesystem(filesystem, layout, subject))
    order = TopologicalSorter(needs).static_order()
    return (*steps_to_clear(layout, present), *(step for id in order for step in makes.get(id, ())))


def ready(layout: Layout, device: str) -> str:
    """What must have been made before a device can be used: of a logical volume, its whole group."""
    return next((f"volumes of {v.group}" for v in layout.logical_volumes if v.id == device), device)


def steps_to_clear(layout: Layout, present: Layout) -> Iterator[Step]:
    """Take what stands on the disks apart, the uppermost first, and the old signatures off, children first.

    What is made on a device wipes that device: what was at the same place before is not seen again.
    """
    paths = {disk.path for disk in layout.disks}
    old = [disk for disk in present.disks if disk.path in paths]
    ids = {disk.id for disk in old}
    for device in reversed(present.bottom_up()):
        if present.under(device.id) & ids:
            yield from steps_to_stop(device, present)
    for disk in old:
        for partition in reversed(present.partitions_of(disk.id)):
            if not partition.extended:
                yield Step(_PREPARING, ("wipefs", "--all", "--force", present.path(partition.id)))
        if disk.label or present.content(disk.id):
            yield Step(_PREPARING, ("wipefs", "--all", "--force", disk.path))


def steps_to_stop(device: Device, layout: Layout) -> Iterator[Step]:
    """What keeps the kernel from using what a device lies on."""
    match device:
        case LogicalVolume(active=True):
            yield Step(_PREPARING, ("lvchange", "--yes", "--activate", "n", *LVM,
                                    f"{layout.group(device.group).name}/{device.name}"))
        case LuksContainer(name=name) if name and device.size:
            yield Step(_PREPARING, ("cryptsetup", "close", name))
        case MdArray():
            yield Step(_PREPARING, ("mdadm", "--stop", device.path))


def steps_for_table(disk: Disk | MdArray, layout: Layout) -> Iterator[Step]:
    if not disk.label:
        return
    partitions = layout.partitions_of(disk.id)
    subject = f"{human(disk.size)} {device_name(disk, layout)}"
    yield Step("Setup is partitioning the disk...", (
        "sfdisk",
        "--wipe", "always", "--wipe-partitions", "always",
        disk.path,
    ), as_script(disk, partitions, layout).encode(), subject)


    if isinstance(disk, Disk) and disk.hybrid:
        yield Step("Setup is partitioning the disk...", ("sfdisk", "--label-nested", "dos", "--force", disk.path),
                   "\n".join(("label: dos", "unit: sectors", *disk.hybrid, "")).encode(), subject)


def as_script(disk: Disk | MdArray, partitions: list[Partition], layout: Layout) -> str:
    """The table as an sfdisk(8) script, in the sectors of the disk that it goes onto.

    Numbers come from the device names, so gaps stay gaps. last-lba is left out: it is the end of another disk.
    """
    lines = [f"label: {disk.label}", f"label-id: {disk.label_id}", "unit: sectors"]
    if disk.first_lba:
        lines.append(f"first-lba: {disk.first_lba}")
    if disk.table_length:
        lines.append(f"table-length: {disk.table_length}")
    lines.append("")
    for p in partitions:
        words = [f"start={p.start // disk.sector_size}", f"size={p.size // disk.sector_size}", f"type={p.type}"]
        if p.uuid:
            words.append(f"uuid={p.uuid}")
        if p.name:
            words.append(f'name="{_quoted(p.name)}"')
        if p.attrs:
            words.append(f'attrs="{p.attrs}"')
        if p.bootable:
            words.append("bootable")
        lines.append(f"{layout.path(p.id)} : {', '.join(words)}")
    return "\n".join(lines) + "\n"


def _quoted(name: str) -> str:
    return "".join(f"\\x{ord(c):02x}" if c in '"\\' or ord(c) < 32 else c for c in name)


def steps_for_array(array: MdArray, layout: Layout) -> Iterator[Step]:
    if array.metadata not in METADATA or array.level not in LEVELS:
        raise Unsupported(f"The array {array.path} is of the kind {array.metadata} {array.level}, "
                          "which this version cannot recreate.")
    members = [layout.path(id) if id else "missing" for id in array.members]
    host, _, name = array.name.rpartition(":")
    yield Step("Setup is creating the array...", (
        "mdadm", "--create", array.path,
        "--run", "--force",                       # no question about old signatures or a lone member
        "--metadata", array.metadata,
        "--level", array.level,
        "--raid-devices", str(len(members)),
        "--uuid", array.id.partition("#")[0],
        # The name as recorded, whatever this system is called.
        *((f"--homehost={host or '<none>'}", f"--name={name}") if array.name else ("--homehost=<none>",)),
        *((f"--chunk={array.chunk // 1024}",) if array.chunk else ()),
        *((f"--layout={_md_layout(array.layout)}",) if array.layout else ()),
        *((f"--bitmap={array.bitmap or 'none'}",) if array.level in _REDUNDANT else ()),
        *((f"--data-offset={array.data_offset // 1024}K",) if array.data_offset else ()),
        *((f"--spare-devices={len(array.spares)}",) if array.spares else ()),
        *members, *map(layout.path, array.spares),
    ), subject=f"{human(array.size)} {device_name(array, layout)}")
    yield Step("Setup is creating the array...", ("wipefs", "--all", "--force", array.path))
    yield from steps_for_table(array, layout)


# mdadm shows near=2, far=2 and offset=2 and takes n2, f2 and o2.
def _md_layout(layout: str) -> str:
    return re.sub(r"^(n|f|o)[a-z]*=(\d+).*", r"\1\2", layout)


def steps_for_container(container: LuksContainer, layout: Layout, headers: Collection[str], memory: int
                        ) -> Iterator[Step]:
    """The saved header brings all key slots back; without it, there is one with the passphrase that is typed."""
    path, title = layout.path(container.device), "Setup is encrypting the volume..."
    uuid = container.id.partition("#")[0]
    subject = f"{human(layout.device(container.device).size)} {device_name(layout.device(container.device), layout)}"
    if container.id in headers:
        yield Step(title, ("cryptsetup", "luksHeaderRestore", "--batch-mode",
                           "--header-backup-file", str(HEADERS / f"{container.id}.img"), path), subject=subject)
    else:
        most = min(container.memory, memory // 2) // 1024
        yield Step(title, (
            "cryptsetup", "luksFormat", "--batch-mode",
            "--type", f"luks{container.version}",
            "--uuid", uuid,
            "--cipher", container.cipher,
            "--key-size", str(container.key_size),
            "--hash", container.hash,
            *(("--label", container.label) if container.label else ()),
            *(("--subsystem", container.subsystem) if container.subsystem else ()),
            *(("--sector-size", str(container.sector_size)) if container.version == 2 else ()),
            "--offset", str(container.offset // 512),
            *(("--pbkdf", container.pbkdf, "--pbkdf-force-iterations", str(container.iterations))
              if container.iterations else ()),
            *(("--pbkdf-memory", str(most), "--pbkdf-parallel", str(container.parallel)) if most else ()),
            "--key-file", "-", path,
        ), subject=subject, secret=container.id)
    if container.name:
        flags = tuple(f"--{_LUKS_FLAGS[flag]}" for flag in container.flags if flag in _LUKS_FLAGS)
        yield Step(title, (
            "cryptsetup", "open", *flags, *(("--persistent",) if flags and container.id not in headers else ()),
            "--key-file", "-", path, container.name,
        ), subject=subject, secret=container.id)
        yield Step(title, ("wipefs", "--all", "--force", layout.path(container.id)), subject=subject)


# Flags in the header of a container, as luksDump shows them and as cryptsetup takes them.
_LUKS_FLAGS = {"allow-discards": "allow-discards", "same-cpu-crypt": "perf-same_cpu_crypt",
               "submit-from-crypt-cpus": "perf-submit_from_crypt_cpus", "no-read-workqueue": "perf-no_read_workqueue",
               "no-write-workqueue": "perf-no_write_workqueue"}


def steps_for_physical_volume(volume: PhysicalVolume, layout: Layout) -> Iterator[Step]:
    yield Step("Setup is creating the volumes...", (
        "pvcreate", "--yes", "-ff", "--zero", "y", *LVM,
        "--uuid", volume.id.partition("#")[0], "--norestorefile",
        "--dataalignment", f"{volume.start}b",
        layout.path(volume.device),
    ))


def steps_for_group(group: VolumeGroup, layout: Layout) -> Iterator[Step]:
    volumes = layout.volumes_of(group.id)
    if not volumes:
        raise Unsupported(f"No disk of the volume group {group.name} is recorded.")
    yield Step("Setup is creating the volumes...", (
        "vgcreate", "--yes", *LVM,
        "--physicalextentsize", f"{group.extent}b",
        *(word for tag in group.tags for word in ("--addtag", tag)),
        group.name,
        *(layout.path(volume.device) for volume in volumes),
    ), subject=f"Volume group {group.name}")
    for volume in volumes:
        if volume.tags:
            yield Step("Setup is creating the volumes...", (
                "pvchange", *LVM, *(word for tag in volume.tags for word in ("--addtag", tag)),
                layout.path(volume.device)))


def steps_for_logical_volume(volume: LogicalVolume, layout: Layout) -> Iterator[Step]:
    if volume.type not in LV_TYPES:
        raise Unsupported(f"The logical volume {volume.id} is of the kind {volume.type}, "
                          "which this version cannot recreate.")
    group = layout.group(volume.group).name
    devices = {v.id: layout.path(v.device) for v in layout.volumes_of(volume.group)}
    striped = volume.stripes > 1 and volume.type != "raid1"
    size: tuple[str, ...] = ("--size", f"{volume.size}b")
    if volume.type == "thin":
        size = ("--virtualsize", f"{volume.size}b", "--thinpool", volume.pool.partition("/")[2])
    yield Step("Setup is creating the volumes...", (
        "lvcreate", "--yes", *LVM,
        "--type", volume.type if volume.type != "linear" else "linear",
        "--name", volume.name,
        *size,
        *(("--wipesignatures", "y", "--zero", "y") if volume.type not in ("thin-pool", "thin") else ()),
        *(("--stripes", str(volume.stripes)) if striped else ()),
        *(("--stripesize", f"{volume.stripe_size}b") if striped and volume.stripe_size else ()),
        *(("--mirrors", str(volume.mirrors)) if volume.mirrors else ()),
        *(("--mirrorlog", "disk" if volume.log else "core") if volume.type == "mirror" else ()),
        *(("--regionsize", f"{volume.region}b") if volume.region and volume.type != "thin-pool" else ()),
        *(("--chunksize", f"{volume.chunk}b", "--poolmetadatasize", f"{volume.pool_metadata}b",
           "--zero", "y" if volume.zero else "n", "--discards", volume.discards or "passdown")
          if volume.type == "thin-pool" else ()),
        *(word for tag in volume.tags for word in ("--addtag", tag)),
        group,
        *(devices[id] for id in volume.volumes if id in devices and volume.type not in ("thin-pool", "thin")),
    ), subject=f"Volume {group}/{volume.name}  {human(volume.size)}")


def steps_for_uuids(group: VolumeGroup, logical: list[LogicalVolume]) -> Iterator[Step]:
    """The UUIDs of the group and its volumes, which GRUB knows them by. LVM restores no group with thin pools so."""
    ids = [("/", group.uuid), *((volume.name, volume.uuid) for volume in logical if volume.uuid)]
    if group.uuid and not any(volume.type == "thin-pool" for volume in logical):
        yield Step("Setup is creating the volumes...",
                   ("lvm-set-uuids", group.name, *(word for pair in ids for word in pair)))


def describe(filesystem: Filesystem, layout: Layout) -> str:
    """The two lines of Setup's format page: what is formatted, and where it lies."""
    device = layout.device(filesystem.device)
    disk = next(iter(layout.disks_under(filesystem.device)))
    mount = layout.mount_of(filesystem.id)
    name = mount.point if mount else "swap" if filesystem.type == "swap" else filesystem.label
    what = f"{_kind(device, layout)} [{filesystem.type}]".strip()
    return f"{name}  {what}  {human(device.size)}".strip() + f"\non {human(disk.size)} {device_name(disk, layout)}"


def _kind(device: Device, layout: Layout) -> str:
    match device:
        case Partition():
            return f"Partition {device.number}"
        case MdArray():
            return f"Array {device.path.removeprefix('/dev/')}"
        case LuksContainer():
            return f"Encrypted volume {device.name}"
        case LogicalVolume():
            return f"Volume {layout.group(device.group).name}/{device.name}"
        case _:
            return ""


def device_name(device: Device, layout: Layout) -> str:
    """Disk 0 at vda on virtio [GPT]."""
    if not isinstance(device, Disk):
        return _kind(device, layout)
    words = [f"Disk {layout.disks.index(device)} at {device.path.removeprefix('/dev/')}"]
    if device.transport:
        words.append(f"on {device.transport}")
    label = {"gpt": "[GPT]", "dos": "[MBR]"}.get(device.label)
    return " ".join(words + ([label] if label else []))
