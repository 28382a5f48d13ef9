"""What a machine's disks hold: a flat, frozen value of records that name each other by id.

Sizes and starts are bytes. Ids are text and come from what the disks carry (a table's GUID or signature, an array's,
container's or file system's UUID, a volume's name), so that the same content has the same ids on whatever disk it lies.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from graphlib import TopologicalSorter

Setting = str | int | bool | tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class _Table:
    """The head of a partition table, on whatever carries one."""

    sector_size: int = 512     # logical
    label: str = ""            # "gpt", "dos" or "" for none
    label_id: str = ""         # GPT GUID or MBR signature (0x…)
    first_lba: int = 0         # GPT: first usable sector
    table_length: int = 0      # GPT: number of entries


@dataclass(frozen=True)
class Disk(_Table):
    """A whole disk and the head of its partition table."""

    id: str                    # label_id, else serial, else name
    path: str                  # device node on the machine at hand; here and in MdArray all that matching replaces
    size: int
    serial: str = ""
    wwn: str = ""
    model: str = ""
    transport: str = ""        # "usb", "sata", "nvme", "virtio", …
    hybrid: tuple[str, ...] = ()       # GPT: the MBR before it as lines for sfdisk, unless it only protects
    boot_code: str = ""        # base64 of the first 440 bytes, where no known tool makes them anew


@dataclass(frozen=True)
class Partition:
    """A slice of a partition table."""

    id: str                    # "<disk id>/<number>"
    disk: str                  # id of the Disk or MdArray it lies on
    number: int
    start: int
    size: int
    type: str                  # GPT type GUID, or MBR type as hex without 0x
    uuid: str = ""             # GPT unique GUID
    name: str = ""             # GPT name
    attrs: str = ""            # GPT attribute bits, as sfdisk writes them
    bootable: bool = False     # MBR active flag

    @property
    def extended(self) -> bool:
        return self.type in ("5", "f", "85")


@dataclass(frozen=True)
class MdArray(_Table):
    """A software RAID array (md(4)) and, where it is partitioned, the head of its table."""

    id: str                    # its UUID, as mdadm writes it
    path: str                  # device node on the machine at hand
    size: int
    level: str                 # "raid1", "linear", …
    metadata: str              # "0.90", "1.0", "1.1", "1.2", or a vendor's: "imsm"
    members: tuple[str, ...]   # ids of devices by their slot; "" for one that was missing
    spares: tuple[str, ...] = ()
    name: str = ""             # "host:name", metadata 1
    chunk: int = 0
    layout: str = ""           # "left-symmetric", "near=2", …
    bitmap: str = ""           # "internal" or "" for none
    data_offset: int = 0       # of the data on each member, metadata 1


@dataclass(frozen=True)
class LuksContainer:
    """An encrypted device (cryptsetup(8)) and how its header was made."""

    id: str                    # its UUID
    device: str
    name: str                  # below /dev/mapper; "" if it was not open
    size: int                  # of what is inside
    version: int = 2
    label: str = ""
    subsystem: str = ""
    cipher: str = ""           # "aes-xts-plain64"
    key_size: int = 0          # bits
    hash: str = ""
    sector_size: int = 512
    offset: int = 0            # of the data
    pbkdf: str = ""            # "argon2id", "pbkdf2", … of the first key slot
    memory: int = 0            # bytes that pbkdf takes
    iterations: int = 0
    parallel: int = 0
    slots: int = 1             # key slots in use
    tokens: tuple[str, ...] = ()       # "systemd-tpm2", "clevis", …: bound to hardware or a server
    flags: tuple[str, ...] = ()        # persistent ones: "allow-discards"
    key_file: str = ""         # on the machine, as crypttab(5) names it


@dataclass(frozen=True)
class PhysicalVolume:
    """A device that belongs to a volume group."""

    id: str                    # its UUID
    device: str
    group: str                 # id of the VolumeGroup; "" for none
    start: int = 2**20         # of the first extent
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class VolumeGroup:
    id: str                    # its name, with #2 after it where two groups have the same
    name: str
    uuid: str = ""
    extent: int = 4 * 2**20
    tags: tuple[str, ...] = ()


@dataclass(frozen=True)
class LogicalVolume:
    id: str                    # "<group id>/<name>"
    group: str
    name: str
    size: int                  # a thin volume's is virtual
    type: str = "linear"       # lvmsystemid's segment type: "linear", "striped", "raid1", "thin-pool", "thin", …
    uuid: str = ""
    stripes: int = 0           # devices that data is spread over, without parity
    stripe_size: int = 0
    mirrors: int = 0           # copies beside the first
    region: int = 0            # of raid and mirror logs
    log: bool = False          # a mirror's log is on a disk, too
    pool: str = ""             # id of a thin volume's pool
    chunk: int = 0             # of a pool
    pool_metadata: int = 0     # size of a pool's metadata volume
    zero: bool = True          # a pool zeroes new chunks
    discards: str = ""         # a pool's
    volumes: tuple[str, ...] = ()      # ids of the PhysicalVolumes it lies on
    tags: tuple[str, ...] = ()
    read_only: bool = False
    cached: bool = False       # it had a cache, which is not made again
    active: bool = True
    origin: str = ""           # of a snapshot, which is not made again


@dataclass(frozen=True)
class Filesystem:
    """A file system or swap area, and what mkfs needs to make the same again."""

    id: str                    # UUID, else the id of its device
    device: str                # id of the device that it lies on
    type: str                  # "ext4", "swap", …
    uuid: str = ""
    label: str = ""
    settings: Mapping[str, Setting] = field(default_factory=dict)
    others: tuple[str, ...] = ()       # a btrfs's further devices, by its own numbers


@dataclass(frozen=True)
class Subvolume:
    """A subvolume of a btrfs."""

    filesystem: str
    path: str                  # below the top of the file system, without a leading /
    default: bool = False      # what is mounted if nothing else is said
    read_only: bool = False
    snapshot: bool = False     # of another subvolume: not made again unless it is mounted or the default


@dataclass(frozen=True)
class Mount:
    """Where a file system belongs in the machine's tree."""

    filesystem: str            # id of the Filesystem
    point: str                 # absolute path on the recovered machine
    options: str = "defaults"  # as in fstab
    subvolume: str = ""        # path of the btrfs subvolume that is mounted; "" for the top
    mode: int = 0o755          # of the directory below the mount, which no backup of either file system holds
    owner: int = 0
    group: int = 0
    modified: int = 0          # its mtime, nanoseconds since 1970; 0: not known
    recovery: bool = False     # the minimal OS lies on it until the machine is restored


@dataclass(frozen=True)
class SwapFile:
    """A file that is swapped to. It is not backed up but made again."""

    path: str                  # absolute, on the recovered machine
    size: int
    uuid: str = ""
    label: str = ""


@dataclass(frozen=True)
class BootOption:
    """A line of a UEFI boot menu that starts a loader on one of the machine's partitions."""

    id: str                    # "0001" of Boot0001
    label: str
    partition: str             # id of the Partition
    loader: str                # \\EFI\\debian\\shimx64.efi
    active: bool = True
    position: int = 0          # in BootOrder, counted from 1; 0: not in it


Device = Disk | Partition | MdArray | LuksContainer | LogicalVolume


@dataclass(frozen=True)
class Layout:
    """All of a machine's disks that recovery answers for."""

    disks: tuple[Disk, ...] = ()
    partitions: tuple[Partition, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    mounts: tuple[Mount, ...] = ()
    arrays: tuple[MdArray, ...] = ()
    containers: tuple[LuksContainer, ...] = ()
    physical_volumes: tuple[PhysicalVolume, ...] = ()
    groups: tuple[VolumeGroup, ...] = ()
    logical_volumes: tuple[LogicalVolume, ...] = ()
    subvolumes: tuple[Subvolume, ...] = ()
    swap_files: tuple[SwapFile, ...] = ()
    boot_options: tuple[BootOption, ...] = ()

    @property
    def tables(self) -> tuple[Disk | MdArray, ...]:
        """What can carry a partition table."""
        return (*self.disks, *self.arrays)

    @property
    def devices(self) -> tuple[Device, ...]:
        """All that a file system can lie on."""
        return (*self.disks, *self.partitions, *self.arrays, *self.containers, *self.logical_volumes)

    def disk(self, id: str) -> Disk:
        return _the(self.disks, id)

    def partition(self, id: str) -> Partition:
        return _the(self.partitions, id)

    def group(self, id: str) -> VolumeGroup:
        return _the(self.groups, id)

    def filesystem(self, id: str) -> Filesystem:
        return _the(self.filesystems, id)

    def device(self, id: str) -> Device:
        return _the(self.devices, id)

    def path(self, id: str) -> str:
        """The device node of a device on the machine at hand."""
        match device := self.device(id):
            case Partition():
                return partition_path(self.path(device.disk), device.number)
            case LuksContainer():
                return f"/dev/mapper/{device.name or f'luks-{device.id}'}"
            case LogicalVolume():
                return mapper_path(self.group(device.group).name, device.name)
            case _:
                return device.path

    def partitions_of(self, disk: str) -> list[Partition]:
        return sorted((p for p in self.partitions if p.disk == disk), key=lambda p: p.number)

    def volumes_of(self, group: str) -> list[PhysicalVolume]:
        return [v for v in self.physical_volumes if v.group == group]

    def below(self, id: str) -> tuple[str, ...]:
        """The ids of the devices that a device is made from."""
        match device := self.device(id):
            case Partition():
                return (device.disk,)
            case MdArray():
                return tuple(filter(None, (*device.members, *device.spares)))
            case LuksContainer():
                return (device.device,)
            case LogicalVolume():
                return (device.pool,) if device.pool else tuple(v.device for v in self.volumes_of(device.group))
            case _:
                return ()

    def bottom_up(self) -> list[Device]:
        """Every device after all that it is made from."""
        order = TopologicalSorter({device.id: self.below(device.id) for device in self.devices}).static_order()
        return [self.device(id) for id in order]

    def under(self, *ids: str) -> set[str]:
        """The ids of the devices and of all that they stand on."""
        found: set[str] = set()
        rest = list(ids)
        while rest:
            if (id := rest.pop()) not in found:
                found.add(id)
                rest += self.below(id)
        return found

    def disks_under(self, *ids: str) -> list[Disk]:
        """The disks that devices stand on."""
        under = self.under(*ids)
        return [disk for disk in self.disks if disk.id in under]

    def devices_of(self, filesystem: Filesystem) -> tuple[str, ...]:
        return (filesystem.device, *filesystem.others)

    def content(self, device: str) -> "Filesystem | LuksContainer | PhysicalVolume | MdArray | None":
        """What lies directly on a device; None for a partition table or nothing."""
        for filesystem in self.filesystems:
            if device in self.devices_of(filesystem):
                return filesystem
        records: tuple[LuksContainer | PhysicalVolume, ...] = (*self.containers, *self.physical_volumes)
        for record in records:
            if record.device == device:
                return record
        return next((a for a in self.arrays if device in a.members or device in a.spares), None)

    def mounts_by_depth(self) -> list[Mount]:
        """Parents before children."""
        return sorted(self.mounts, key=lambda m: (m.point.rstrip("/").count("/"), m.point))

    def mount_of(self, filesystem: str) -> Mount | None:
        return next((m for m in self.mounts if m.filesystem == filesystem), None)

    def mount_with(self, subvolume: Subvolume) -> Mount | None:
        """The mount in which a subvolume can be seen."""
        mounts = [m for m in self.mounts if m.filesystem == subvolume.filesystem
                  and f"{subvolume.path}/".startswith(f"{m.subvolume}/".lstrip("/"))]
        return max(mounts, key=lambda m: len(m.subvolume), default=None)

    def mount_around(self, path: str) -> Mount | None:
        """The mount that a file lies in."""
        mounts = [m for m in self.mounts if path.startswith(m.point.rstrip("/") + "/")]
        return max(mounts, key=lambda m: len(m.point), default=None)

    def mount_at(self, point: str) -> Mount | None:
        return next((m for m in self.mounts if m.point == point), None)


EMPTY = Layout()


def partition_path(disk: str, number: int) -> str:
    """The kernel's name of a partition: sda1, nvme0n1p1 (a p after a digit)."""
    return f"{disk}{'p' if disk[-1].isdigit() else ''}{number}"


def mapper_path(group: str, volume: str) -> str:
    """The device mapper's name of a logical volume: a dash in a name is doubled."""
    return f"/dev/mapper/{group.replace('-', '--')}-{volume.replace('-', '--')}"


# A technician reads sizes as Setup always gave them: whole mebibytes, called MB.
def human(size: int) -> str:
    return f"{size // 2**20} MB"


def _the(records, id):
    for record in records:
        if record.id == id:
            return record
    raise KeyError(id)
