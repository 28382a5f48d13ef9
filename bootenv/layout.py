"""What a machine's disks hold: a flat, frozen value of records that name each other by id.

Sizes and starts are bytes. Ids are text and come from what the disks carry (a table's GUID or signature, a
file system's UUID), so that the same content has the same ids on whatever disk it lies.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

Setting = str | int | bool | list[str]


@dataclass(frozen=True)
class Disk:
    """A whole disk and the head of its partition table."""

    id: str                    # label_id, else serial, else name
    path: str                  # device node on the machine at hand; the only field that matching replaces
    size: int
    sector_size: int = 512     # logical
    label: str = ""            # "gpt", "dos" or "" for none
    label_id: str = ""         # GPT GUID or MBR signature (0x…)
    first_lba: int = 0         # GPT: first usable sector
    table_length: int = 0      # GPT: number of entries
    serial: str = ""
    wwn: str = ""
    model: str = ""
    transport: str = ""        # "usb", "sata", "nvme", "virtio", …


@dataclass(frozen=True)
class Partition:
    """A slice of a disk's partition table."""

    id: str                    # "<disk id>/<number>"
    disk: str                  # id of the Disk it lies on
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
class Filesystem:
    """A file system or swap area, and what mkfs needs to make the same again."""

    id: str                    # UUID, else the id of its device
    device: str                # id of the Partition (or other device) that it lies on
    type: str                  # "ext4", "swap", …
    uuid: str = ""
    label: str = ""
    settings: Mapping[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Mount:
    """Where a file system belongs in the machine's tree."""

    filesystem: str            # id of the Filesystem
    point: str                 # absolute path on the recovered machine
    options: str = "defaults"  # as in fstab
    mode: int = 0o755          # of the directory below the mount, which no backup of either file system holds
    owner: int = 0
    group: int = 0
    modified: int = 0          # its mtime, nanoseconds since 1970; 0: not known


@dataclass(frozen=True)
class Layout:
    """All of a machine's disks that recovery answers for."""

    disks: tuple[Disk, ...] = ()
    partitions: tuple[Partition, ...] = ()
    filesystems: tuple[Filesystem, ...] = ()
    mounts: tuple[Mount, ...] = ()

    def disk(self, id: str) -> Disk:
        return _the(self.disks, id)

    def partition(self, id: str) -> Partition:
        return _the(self.partitions, id)

    def filesystem(self, id: str) -> Filesystem:
        return _the(self.filesystems, id)

    def device(self, id: str) -> Disk | Partition:
        return _the((*self.disks, *self.partitions), id)

    def path(self, id: str) -> str:
        """The device node of a disk or partition on the machine at hand."""
        device = self.device(id)
        if isinstance(device, Disk):
            return device.path
        return partition_path(self.disk(device.disk).path, device.number)

    def partitions_of(self, disk: str) -> list[Partition]:
        return sorted((p for p in self.partitions if p.disk == disk), key=lambda p: p.number)

    def disks_under(self, id: str) -> Iterator[Disk]:
        """The disks that a device stands on."""
        device = self.device(id)
        yield device if isinstance(device, Disk) else self.disk(device.disk)

    def mounts_by_depth(self) -> list[Mount]:
        """Parents before children."""
        return sorted(self.mounts, key=lambda m: (m.point.rstrip("/").count("/"), m.point))

    def mount_of(self, filesystem: str) -> Mount | None:
        return next((m for m in self.mounts if m.filesystem == filesystem), None)


EMPTY = Layout()


def partition_path(disk: str, number: int) -> str:
    """The kernel's name of a partition: sda1, nvme0n1p1 (a p after a digit)."""
    return f"{disk}{'p' if disk[-1].isdigit() else ''}{number}"


# A technician reads sizes as Setup always gave them: whole mebibytes, called MB.
def human(size: int) -> str:
    return f"{size // 2**20} MB"


def _the(records, id):
    for record in records:
        if record.id == id:
            return record
    raise KeyError(id)
