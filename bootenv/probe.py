"""What this machine's disks hold, as a Layout: pure parse_* functions, and probe() that fetches their text.

Formats: lsblk(8), sfdisk(8) and findmnt(8) --json, blkid(8) -o udev, mdadm(8) --detail and --examine, lvmreport(7) in
json, cryptsetup(8) luksDump, btrfs-subvolume(8) list, swapon(8) --show, fstab(5), crypttab(5).
"""

import json
import os
import re
import socket
import struct
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any, TypeVar

from .errors import ToolMissing
from .filesystems import read_settings
from .layout import (
    Disk,
    Filesystem,
    Layout,
    LogicalVolume,
    LuksContainer,
    MdArray,
    Mount,
    Partition,
    PhysicalVolume,
    Subvolume,
    SwapFile,
    VolumeGroup,
    mapper_path,
    partition_path,
)
from .run import ROOT, RUNNING, run
from .uefi import parse_boot_options

# Never a disk of the machine: RAM disks, loop devices, optical and floppy drives, network block devices,
# the boot and replay-protected areas of an eMMC.
_NO_DISK = re.compile(r"^(loop|ram|zram|sr|fd|nbd|zd)\d|^mmcblk\d+(boot\d|rpmb)")
T = TypeVar("T", Disk, MdArray)


@dataclass(frozen=True)
class Mounted:
    """A line of the mount table: where, what, and how."""

    point: str
    source: str                # device node, or what a network file system calls itself
    type: str
    root: str = "/"            # the part of the file system that is mounted; not "/" for a bind mount or subvolume


@dataclass(frozen=True)
class Node:
    """A block device as the kernel has it now."""

    path: str
    type: str                  # lsblk's: "disk", "part", "raid1", "crypt", "lvm", "mpath", …
    size: int
    number: str                # "major:minor"
    parents: tuple[str, ...]   # paths

    @property
    def is_array(self) -> bool:
        return self.path.startswith("/dev/md") and self.type != "part"


@dataclass(frozen=True)
class Lvm:
    """What the volume manager reports, before the devices below it have ids."""

    groups: tuple[VolumeGroup, ...] = ()
    logical: tuple[LogicalVolume, ...] = ()
    # By "major:minor" of the device, whose id is still "".
    physical: Mapping[str, PhysicalVolume] = field(default_factory=dict)


def probe() -> Layout:
    """Every disk of this machine with all that lies on it, and where the machine mounts it."""
    text = _lsblk()
    look = _Look(parse_nodes(text), parse_lvm(_report("vgs", _VGS), _report("lvs", _LVS), _report("pvs", _PVS)),
                 dict(parse_crypttab(_file("etc/crypttab"))))
    disks = {disk.path: disk for disk in parse_disks(text)}
    for node in look.nodes:
        if node.path in disks:
            look.disk(disks[node.path])
        elif node.is_array:
            look.array(node)
        if node.path in look.ids and node.path not in look.tables:
            look.content(node)
    layout = look.layout()
    mounted = mount_table()
    btrfs = dict(_mounted_btrfs(layout, mounted))
    layout = replace(
        layout, subvolumes=tuple(s for id, point in btrfs.items() for s in _subvolumes(id, point)),
        filesystems=tuple(replace(f, settings={**f.settings, "quota": True}) if f.id in btrfs and _quota(btrfs[f.id])
                          else f for f in layout.filesystems))
    return replace(layout, mounts=tuple(_mounts(layout, mounted)), swap_files=tuple(_swap_files()),
                   boot_options=parse_boot_options(_optional("efibootmgr", "-v"), layout.partitions))


class _Look:
    """One look at a machine's devices, from the lower ones to the upper ones."""

    def __init__(self, nodes: list[Node], lvm: Lvm, crypttab: Mapping[str, tuple[str, str]]):
        self.nodes = nodes
        self.lvm = lvm
        self.crypttab = crypttab
        self.disks: list[Disk] = []
        self.partitions: list[Partition] = []
        self.arrays: list[MdArray] = []
        self.containers: list[LuksContainer] = []
        self.filesystems: list[Filesystem] = []
        self.seen: set[str] = set()                # ids
        self.tables: set[str] = set()              # paths of devices that are divided, or are only a part's frame
        paths = {lv.id: mapper_path(group.name, lv.name) for lv in lvm.logical for group in lvm.groups
                 if group.id == lv.group and not lv.origin}
        self.ids = {path: id for id, path in paths.items()}        # of devices, by path

    def layout(self) -> Layout:
        numbers = {node.number: self.ids[node.path] for node in self.nodes if node.path in self.ids}
        volumes = [replace(v, device=numbers[number]) for number, v in self.lvm.physical.items() if number in numbers]
        return Layout(
            disks=tuple(self.disks), partitions=tuple(self.partitions),
            filesystems=tuple(self._with_devices(f) for f in self.filesystems),
            arrays=tuple(self.arrays), containers=tuple(self.containers),
            physical_volumes=tuple(sorted(volumes, key=lambda v: v.id)),
            groups=self.lvm.groups, logical_volumes=self.lvm.logical)

    def _with_devices(self, filesystem: Filesystem) -> Filesystem:
        """A btrfs's devices by their ids, which are all known now."""
        devices = [self.ids[path] for path in filesystem.others if path in self.ids]
        return replace(filesystem, device=devices[0], others=tuple(devices[1:])) if devices else filesystem

    def disk(self, disk: Disk) -> None:
        if any(node.type == "mpath" and disk.path in node.parents for node in self.nodes):
            disk = replace(disk, id=_unique(disk.id, self.seen))
            self.filesystems.append(Filesystem(f"content of {disk.id}", disk.id, "mpath_member"))
            self.tables.add(disk.path)
            own: list[Partition] = []
        elif self._is_member(disk):
            # With its metadata at the end, the disk begins with the array's table or file system.
            disk, own = replace(disk, id=_unique(disk.id, self.seen)), []
        else:
            disk, own = parse_table(run(("sfdisk", "--json", disk.path), check=False), disk, self.seen)
            if disk.label == "gpt":
                text = run(("sfdisk", "--json", "--label-nested", "dos", disk.path), check=False)
                disk = replace(disk, hybrid=tuple(parse_hybrid(text, disk)))
        self.disks.append(disk)
        self._table(disk, own)

    def _is_member(self, disk: Disk) -> bool:
        if any(node.is_array and disk.path in node.parents for node in self.nodes):
            return True
        text = run(("blkid", "--probe", "--output", "udev", disk.path), check=False)
        return "ID_FS_TYPE=linux_raid_member" in text

    def array(self, node: Node) -> None:
        numbers = {n.number: self.ids[n.path] for n in self.nodes if n.path in self.ids}
        array = parse_array(run(("mdadm", "--detail", node.path), check=False), node, numbers)
        if array is None:
            return
        array = replace(array, id=_unique(array.id, self.seen))
        members = {id for id in array.members if id}
        member = next((n.path for n in self.nodes if numbers.get(n.number) in members), "")
        if member and array.metadata.startswith("1."):
            array = replace(array, data_offset=parse_data_offset(run(("mdadm", "--examine", member), check=False)))
        array, own = parse_table(run(("sfdisk", "--json", node.path), check=False), array, self.seen)
        self.arrays.append(array)
        self._table(array, own)

    def _table(self, on: Disk | MdArray, own: list[Partition]) -> None:
        self.ids[on.path] = on.id
        self.partitions += own
        if on.label:
            self.tables.add(on.path)
        for partition in own:
            path = partition_path(on.path, partition.number)
            self.ids[path] = partition.id
            if partition.extended:
                self.tables.add(path)

    def content(self, node: Node) -> None:
        """What lies on a device; of what is opened from that, the id."""
        device = self.ids[node.path]
        if any(node.path in filesystem.others for filesystem in self.filesystems):
            return                     # a further device of a btrfs
        text = run(("blkid", "--probe", "--output", "udev", node.path), check=False)
        found = parse_content(text, device, self.seen)
        children = [n for n in self.nodes if node.path in n.parents]
        if found is None or any(n.is_array for n in children) or node.number in self.lvm.physical:
            # Metadata at a device's end leaves its beginning to look like a file system: the array knows its members.
            return
        if found.type == "crypto_LUKS":
            self._container(found, node, next((n for n in children if n.type == "crypt"), None))
            return
        if found.type == "btrfs":
            text = run(("btrfs", "filesystem", "show", "--raw", node.path), check=False)
            found = replace(found, others=tuple(parse_btrfs_devices(text)))
        self.filesystems.append(replace(found, settings=read_settings(found.type, node.path)))

    def _container(self, found: Filesystem, node: Node, opened: Node | None) -> None:
        container = parse_luks(run(("cryptsetup", "luksDump", node.path), check=False), found)
        name = Path(opened.path).name if opened else ""
        known, key_file = self.crypttab.get(f"UUID={found.uuid}") or self.crypttab.get(node.path) or \
            next(((n, k) for n, k in self.crypttab.values() if n == name), (name, ""))
        container = replace(container, name=name or known, key_file=key_file, size=opened.size if opened else 0)
        self.containers.append(container)
        if opened:
            self.ids[opened.path] = container.id


def mount_table() -> tuple[Mounted, ...]:
    """What is mounted on the machine (under ROOT) from disks and networks, in the machine's own paths."""
    text = run(("findmnt", "--json", "--list", "--real", "--output", "TARGET,SOURCE,FSTYPE,FSROOT"))
    mounted = list(parse_mounted(text, str(ROOT)))
    if any(mount.source.startswith("/dev/dm-") for mount in mounted):
        # A btrfs calls its device as whoever saw it first called it.
        words = run(("lsblk", "--list", "--noheadings", "--output", "KNAME,PATH")).split()
        names = {f"/dev/{kernel}": path for kernel, path in zip(words[::2], words[1::2], strict=True)}
        mounted = [replace(mount, source=names.get(mount.source, mount.source)) for mount in mounted]
    return tuple(mounted)


def parse_nodes(text: str) -> list[Node]:
    """lsblk's tree, each device once, after all that it is made from."""
    nodes: dict[str, Node] = {}

    def walk(rows: list[dict[str, Any]], parent: str) -> None:
        for row in rows:
            path = row["path"]
            known = nodes.get(path) or Node(path, row["type"], int(row["size"] or 0), row["maj:min"], ())
            nodes[path] = replace(known, parents=(*known.parents, parent) if parent else known.parents)
            walk(row.get("children", []), path)

    walk(json.loads(text)["blockdevices"], "")
    order = TopologicalSorter({path: node.parents for path, node in nodes.items()}).static_order()
    return [nodes[path] for path in order]


def parse_disks(text: str) -> Iterator[Disk]:
    """The disks among lsblk's devices, without their tables."""
    for device in json.loads(text)["blockdevices"]:
        if device["type"] != "disk" or device["ro"] or not device["size"] or _NO_DISK.match(device["name"]):
            continue
        serial, wwn = device["serial"] or "", device["wwn"] or ""
        yield Disk(
            id=serial or wwn or device["name"],
            path=device["path"],
            size=int(device["size"]),
            sector_size=int(device["log-sec"]),
            serial=serial,
            wwn=wwn,
            model=(device["model"] or "").strip(),
            transport=device["tran"] or ("virtio" if "virtio" in device["subsystems"] else ""),
        )


def parse_table(text: str, on: T, seen: set[str]) -> tuple[T, list[Partition]]:
    """The disk or array with its table's head, and its partitions; sfdisk says nothing where there is no table.

    A disk's id becomes its table's.
    """
    if not text.strip():
        return replace(on, id=_unique(on.id, seen)) if isinstance(on, Disk) else on, []
    table = json.loads(text)["partitiontable"]
    sector = table.get("sectorsize", on.sector_size)
    on = replace(
        on,
        id=_unique(table.get("id") or on.id, seen) if isinstance(on, Disk) else on.id,
        sector_size=sector,
        label=table["label"],
        label_id=table.get("id", ""),
        first_lba=table.get("firstlba", 0),
        table_length=int(table.get("table-length", 0)),       # only where it is not 128
    )
    return on, [
        Partition(
            id=f"{on.id}/{number}",
            disk=on.id,
            number=number,
            start=row["start"] * sector,
            size=row["size"] * sector,
            type=row["type"],
            uuid=row.get("uuid", ""),
            name=row.get("name", ""),
            attrs=row.get("attrs", ""),
            bootable=row.get("bootable", False),
        )
        for row in table.get("partitions", ())
        for number in [_number(row["node"], table["device"])]
    ]


def parse_hybrid(text: str, disk: Disk) -> list[str]:
    """The MBR of a GPT disk as lines for sfdisk; none where it is the usual one, which only protects the disk."""
    table = json.loads(text)["partitiontable"] if text.strip() else {}
    lines = []
    for row in table.get("partitions", ()):
        words = [f"start={row['start']}"]
        if row["start"] + row["size"] < disk.size // disk.sector_size:
            words.append(f"size={row['size']}")
        words += [f"type={row['type']}", *(["bootable"] if row.get("bootable") else [])]
        lines.append(f"{_number(row['node'], table['device'])} : {', '.join(words)}")
    usual = not lines or (lines == ["1 : start=1, type=ee"] and not int(table["id"], 16))
    return [] if usual else [f"label-id: {table['id']}", *lines]


# "/dev/nvme0n1p3" on "/dev/nvme0n1": the number is what is left, never a digit of the disk's name.
def _number(node: str, disk: str) -> int:
    return int(node.removeprefix(disk).lstrip("p"))


# A cloned disk has the ids of its original; both may be connected.
def _unique(id: str, seen: set[str]) -> str:
    name, number = id, 1
    while name in seen:
        number += 1
        name = f"{id}#{number}"
    seen.add(name)
    return name


def parse_content(text: str, device: str, seen: set[str]) -> Filesystem | None:
    """The file system, swap area or container that blkid -o udev found on a device; None for nothing.

    Two signatures at once are content of the kind "ambivalent", and a table that sfdisk can't read is "mac partition
    table" or the like: somebody's, whatever it is.
    """
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if "ID_FS_AMBIVALENT" in found:
        found["ID_FS_TYPE"] = "ambivalent"
    if "ID_PART_TABLE_TYPE" in found:
        found.setdefault("ID_FS_TYPE", f"{found['ID_PART_TABLE_TYPE']} partition table")
    if "ID_FS_TYPE" not in found:
        return None
    uuid = found.get("ID_FS_UUID", "")
    return Filesystem(id=_unique(uuid or f"content of {device}", seen), device=device, type=found["ID_FS_TYPE"],
                      uuid=uuid, label=_decoded(found.get("ID_FS_LABEL_ENC", "")))


# Of blkid's formats only this one gives every label back: blanks, quotes and what is not ASCII are \xHH.
def _decoded(text: str) -> str:
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), text.encode(errors="surrogateescape"))
    return raw.decode(errors="replace")        # preparation refuses such a label; other disks may have any


_SLOT = re.compile(r"^\s*(?:\d+|-)\s+(\d+)\s+(\d+)\s+(\d+|-)\s+(\S.*?)\s*(?:/dev/\S+)?$", re.MULTILINE)


def parse_array(text: str, node: Node, ids: Mapping[str, str]) -> MdArray | None:
    """An array from mdadm --detail; `ids` are those of devices by "major:minor". None for what is not running."""
    head = {key.strip(): value.strip() for key, _, value in (line.partition(" : ") for line in text.splitlines())}
    if "UUID" not in head or (head.get("Raid Level", "container") == "container" and "Container" not in head):
        return None
    members: dict[int, str] = {}
    spares = []
    for major, minor, slot, state in _SLOT.findall(text):
        id = ids.get(f"{major}:{minor}", "")
        if slot != "-":
            members[int(slot)] = id
        elif id and state == "spare":
            spares.append(id)
    chunk = re.match(r"(\d+)K", head.get("Chunk Size", ""))
    return MdArray(
        id=head["UUID"].split(" ")[0],         # with metadata 0.90, whether it is this host's comes after it
        path=node.path,
        size=node.size,
        level=head["Raid Level"],
        metadata=head.get("Version", "external") if "Container" not in head else "imsm",
        members=tuple(members.get(slot, "") for slot in range(int(head["Raid Devices"]))),
        spares=tuple(spares),
        name=head.get("Name", "").split(" ")[0],
        chunk=int(chunk[1]) * 1024 if chunk else 0,
        # A striped array's says in which order unequal members are filled: files don't mind.
        layout=head.get("Layout", "") if head["Raid Level"] != "raid0" else "",
        bitmap=head.get("Intent Bitmap", "").lower(),
    )


def parse_data_offset(text: str) -> int:
    """Bytes before an array's data on its member, from mdadm --examine; 0 for metadata that has no such thing."""
    found = re.search(r"Data Offset : (\d+) sectors", text)
    return int(found[1]) * 512 if found else 0


def parse_luks(text: str, found: Filesystem) -> LuksContainer:
    """A container from cryptsetup luksDump; `found` is what blkid says of it."""
    def word(pattern: str) -> str:
        match = re.search(pattern, text, re.MULTILINE)
        return match[1] if match else ""

    def number(pattern: str) -> int:
        return int(word(pattern) or 0)

    container = LuksContainer(found.id, found.device, name="", size=0, label=found.label)
    if word(r"^Version:\s+(\d)") == "1":
        return replace(
            container, version=1, cipher="-".join((word(r"^Cipher name:\s+(\S+)"), word(r"^Cipher mode:\s+(\S+)"))),
            key_size=number(r"^MK bits:\s+(\d+)"), hash=word(r"^Hash spec:\s+(\S+)"),
            offset=number(r"^Payload offset:\s+(\d+)") * 512, pbkdf="pbkdf2",
            iterations=number(r"ENABLED\n\s+Iterations:\s+(\d+)"),
            slots=len(re.findall(r"^Key Slot \d: ENABLED", text, re.MULTILINE)))
    flags = word(r"^Flags:\s+(.*)")
    subsystem = word(r"^Subsystem:\s+(.*)")
    tokens = re.search(r"^Tokens:\n(.*?)^Digests:", text, re.MULTILINE | re.DOTALL)
    return replace(
        container, version=2, subsystem="" if subsystem.startswith("(") else subsystem,
        cipher=word(r"^\tcipher: (\S+)"), key_size=number(r"^\tKey:\s+(\d+) bits"),
        hash=word(r"^\tAF hash:\s+(\S+)"), sector_size=number(r"^\tsector: (\d+)") or 512,
        offset=number(r"^\toffset: (\d+)"), pbkdf=word(r"^\tPBKDF:\s+(\S+)"),
        memory=number(r"^\tMemory:\s+(\d+)") * 1024,
        iterations=number(r"^\tTime cost:\s+(\d+)") or number(r"^\tIterations:\s+(\d+)"),
        parallel=number(r"^\tThreads:\s+(\d+)"),
        slots=len(re.findall(r"^  \d+: luks2$", text, re.MULTILINE)),
        tokens=tuple(re.findall(r"^  \d+: (\S+)", tokens[1], re.MULTILINE)) if tokens else (),
        flags=() if flags.startswith("(") else tuple(flags.split()))


_VGS = "vg_uuid,vg_name,vg_extent_size,vg_tags"
_PVS = "pv_uuid,pv_name,pv_major,pv_minor,vg_uuid,pe_start,pv_tags"
_LVS = ("lv_uuid,vg_uuid,lv_name,lv_layout,lv_role,lv_size,lv_tags,lv_permissions,lv_active,origin,pool_lv,segtype,"
        "data_stripes,stripe_size,region_size,data_copies,chunk_size,lv_metadata_size,mirror_log,zero,"
        "discards,devices")


def parse_lvm(groups: str, logical: str, physical: str) -> Lvm:
    """The reports of vgs, lvs --all and pvs in json, in bytes."""
    rows = {kind: json.loads(text)["report"][0][kind] if text.strip() else []
            for kind, text in (("vg", groups), ("lv", logical), ("pv", physical))}
    seen: set[str] = set()
    found = {row["vg_uuid"]: VolumeGroup(_unique(row["vg_name"], seen), row["vg_name"], row["vg_uuid"],
                                         int(row["vg_extent_size"]), _words(row["vg_tags"]))
             for row in rows["vg"]}
    ids = {uuid: group.id for uuid, group in found.items()}
    return Lvm(
        tuple(found.values()),
        tuple(_logical_volumes(rows["lv"], ids, {row["pv_name"]: row["pv_uuid"] for row in rows["pv"]})),
        {f"{row['pv_major']}:{row['pv_minor']}":
         PhysicalVolume(row["pv_uuid"], "", ids.get(row["vg_uuid"], ""), int(row["pe_start"]), _words(row["pv_tags"]))
         for row in rows["pv"] if row["pv_major"] != "-1"})


def _logical_volumes(rows: list[dict[str, str]], groups: Mapping[str, str], volumes: Mapping[str, str]
                     ) -> Iterator[LogicalVolume]:
    # A row for each segment; a hidden volume, in brackets, is a part of another.
    segments: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in rows:
        segments.setdefault((row["vg_uuid"], row["lv_name"].strip("[]")), []).append(row)

    def lies_on(vg: str, name: str) -> set[str]:
        devices = [re.sub(r"\(\d+\)$", "", word) for row in segments.get((vg, name), ())
                   for word in row["devices"].split(",") if word]
        return {uuid for device in devices
                for uuid in ([volumes[device]] if device in volumes else lies_on(vg, device))}

    for (vg, name), own in segments.items():
        row = own[0]
        if row["lv_name"].startswith("[") or vg not in groups:
            continue
        cached = "cache" in row["lv_layout"].split(",") or row["segtype"] == "writecache"
        # Below a cache, and below a pool, lies what the data is really on.
        below = segments.get((vg, re.sub(r"\(\d+\)$", "", row["devices"].split(",")[0])), own)[0] \
            if cached or row["segtype"] == "thin-pool" else row
        segment = below if cached else row
        thin = row["segtype"] == "thin"
        pool = row["segtype"] == "thin-pool"
        mirror = below["segtype"] == "mirror"          # the old kind: its images are counted as stripes
        stripes, copies = (int(below[key] or 1) for key in ("data_stripes", "data_copies"))
        if mirror:
            stripes, copies = 1, stripes
        yield LogicalVolume(
            id=f"{groups[vg]}/{name}", group=groups[vg], name=name, size=int(row["lv_size"]),
            type=segment["segtype"], uuid=row["lv_uuid"],
            stripes=0 if thin else stripes,
            stripe_size=int(below["stripe_size"] or 0),
            mirrors=copies - 1 if mirror or below["segtype"] in ("raid1", "raid10") else 0,
            region=int(below["region_size"] or 0),
            log=bool(below["mirror_log"]),
            pool=f"{groups[vg]}/{row['pool_lv'].strip('[]')}" if thin and row["pool_lv"] else "",
            chunk=int(row["chunk_size"] or 0) if pool else 0,
            pool_metadata=int(row["lv_metadata_size"] or 0) if pool else 0,
            zero=row["zero"] != "" and row["zero"] != "no" if pool else True,
            discards=row["discards"] if pool else "",
            volumes=tuple(sorted(lies_on(vg, name))),
            tags=_words(row["lv_tags"]),
            read_only=row["lv_permissions"].startswith("read-only") and not pool,
            cached=cached,
            active=bool(row["lv_active"]),
            origin=row["origin"].strip("[]") if "snapshot" in row["lv_role"].split(",") else "",
        )


def _words(text: str) -> tuple[str, ...]:
    return tuple(filter(None, text.split(",")))


def parse_btrfs_devices(text: str) -> list[str]:
    """The paths of a btrfs's devices in the order of their numbers, from btrfs filesystem show --raw."""
    found = re.findall(r"^\s+devid\s+(\d+) size .* path (\S+)", text, re.MULTILINE)
    return [path for _, path in sorted((int(number), path) for number, path in found)]


def parse_subvolumes(text: str, read_only: str, default: str, filesystem: str) -> Iterator[Subvolume]:
    """From btrfs subvolume list -u -q, list -r, and get-default."""
    fixed = set(re.findall(r"^ID (\d+) ", read_only, re.MULTILINE))
    used = re.match(r"ID (\d+) ", default)
    for id, parent, path in re.findall(r"^ID (\d+) .* parent_uuid (\S+)\s.* path (.*)$", text, re.MULTILINE):
        if not path.startswith("<FS_TREE>/DELETED") and path != "DELETED":
            yield Subvolume(filesystem, path.removeprefix("<FS_TREE>/"), bool(used and used[1] == id), id in fixed,
                            snapshot=parent != "-")


def parse_mounted(text: str, root: str = "/") -> Iterator[Mounted]:
    """The mounts under `root`."""
    for row in json.loads(text)["filesystems"]:
        point = _inside(row["target"], root)
        if point:
            yield Mounted(point, re.sub(r"\[.*\]$", "", row["source"] or ""), row["fstype"], row["fsroot"] or "/")


def _inside(path: str, root: str) -> str:
    """A path of this system as the machine has it; "" for one that is not in the machine's tree."""
    if root == "/":
        return path
    return (path[len(root):] or "/") if path == root or path.startswith(root + "/") else ""


def parse_fstab(text: str) -> Iterator[tuple[str, str, str, str]]:
    """The source, mount point, type and options of each line of fstab(5)."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and not words[0].startswith("#"):
            # fstab writes a blank as \040.
            source, point = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), w) for w in words[:2])
            yield source, point, words[2], words[3] if len(words) > 3 else "defaults"


def parse_crypttab(text: str) -> Iterator[tuple[str, tuple[str, str]]]:
    """The source of each line of crypttab(5), and its name and key file ("" for one that is typed)."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 2 and not words[0].startswith("#"):
            key = words[2] if len(words) > 2 and words[2].startswith("/") and not words[2].startswith("/dev/") else ""
            yield words[1].replace('"', ""), (words[0], key)


def kernel_names() -> dict[str, tuple[str, ...]]:
    """The devices that files of the machine's start know by the kernel's names for them, which may change."""
    found = {
        "/etc/fstab": [source for source, _, _, _ in parse_fstab(_file("etc/fstab"))],
        "/etc/crypttab": [source for _, (source, _) in parse_crypttab(_file("etc/crypttab"))],
        **{path: [word.partition("=")[2] for word in _file(path.lstrip("/")).split()
                  if word.startswith(("root=", "resume="))]
           for path in (("/proc/cmdline",) if RUNNING else _COMMAND_LINES)},
    }
    return {path: names for path, devices in found.items()
            if (names := tuple(dict.fromkeys(device for device in devices if KERNEL_NAME.fullmatch(device))))}


# Of a machine that does not run, what its kernel will be told is known from its boot loader's files alone.
_COMMAND_LINES = ("/etc/kernel/cmdline", "/boot/grub/grub.cfg", "/boot/grub2/grub.cfg")


KERNEL_NAME = re.compile(r"/dev/((sd|vd|xvd|hd)[a-z]+\d*|(nvme\d+n|mmcblk)\d+(p\d+)?|dm-\d+)")


def parse_swap_files(text: str, root: str = "/") -> Iterator[SwapFile]:
    """The files among what swapon --show has, each with the first page that it does not count.

    A machine that is seen below `root` still has the names that the files had when they were swapped to.
    """
    for line in text.splitlines():
        words = [re.sub(r"\\x([0-9a-f]{2})", lambda m: chr(int(m[1], 16)), word) for word in line.split(" ")]
        if len(words) >= 3 and words[1] == "file":
            yield SwapFile(_inside(words[0], root) or words[0], int(words[2]) + _PAGE, *(words[3:5]))


_PAGE = 4096                   # swapon(8) shows what can be used: the header's page is not


def swap_files_of(root: Path, fstab: str) -> Iterator[SwapFile]:
    """The files that a machine which does not run swaps to once it does."""
    for source, _, type, options in parse_fstab(fstab):
        wanted = type == "swap" and not source.startswith("/dev/") and "noauto" not in options.split(",")
        # There is no file where the line says UUID=…
        if wanted and (found := _swap_header(root / source.lstrip("/"))):
            yield SwapFile(source, *found)


def _swap_header(path: Path) -> tuple[int, str, str] | None:
    """What parse_swap_header() says of a file; None also if it can't be read."""
    try:
        with path.open("rb") as file:
            return parse_swap_header(file.read(_PAGE))
    except OSError:
        return None


def parse_swap_header(page: bytes) -> tuple[int, str, str] | None:
    """Size, UUID and label of a swap area, from its first page (union swap_header of the kernel's linux/swap.h).

    None for what is none, and for one that holds a machine's memory: see sleeps_in().
    """
    if len(page) < _PAGE or page[-10:] != b"SWAPSPACE2":
        return None
    last_page, = struct.unpack_from("<I", page, 1028)
    id, label = page[1036:1052], page[1052:1068].rstrip(b"\0")
    return (last_page + 1) * _PAGE, str(uuid.UUID(bytes=id)) if any(id) else "", label.decode(errors="replace")


def sleeps_in(page: bytes) -> bool:
    """Whether a swap area, of which this is the first page, holds the memory of a machine that was put to sleep."""
    return page[-10:] in (b"S1SUSPEND\0", b"S2SUSPEND\0", b"ULSUSPEND\0", b"LINHIB0001")


def _mounts(layout: Layout, mounted: Iterable[Mounted]) -> Iterator[Mount]:
    """Where the machine mounts its file systems now, with fstab's options where it has the mount point."""
    options = {point: opts for _, point, _, opts in parse_fstab(_file("etc/fstab"))}
    on = {layout.path(device): f for f in layout.filesystems for device in layout.devices_of(f)}
    subvolumes = {(s.filesystem, s.path) for s in layout.subvolumes}
    seen = set()
    for mount in mounted:
        filesystem = on.get(mount.source)
        part = mount.root.strip("/")
        # A second mount of the same file system, or of a directory of it, is a bind mount: nothing to recreate.
        if filesystem and (filesystem.id, part) not in seen and (not part or (filesystem.id, part) in subvolumes):
            seen.add((filesystem.id, part))
            yield Mount(filesystem.id, mount.point, options.get(mount.point, "defaults"), part)


def _mounted_btrfs(layout: Layout, mounted: Iterable[Mounted]) -> Iterator[tuple[str, str]]:
    """The id and a mount point of every btrfs that is mounted: only the kernel knows its subvolumes' paths."""
    points = {mount.source: str(ROOT / mount.point.lstrip("/")) for mount in mounted if mount.type == "btrfs"}
    for filesystem in layout.filesystems:
        point = next((points[p] for d in layout.devices_of(filesystem) if (p := layout.path(d)) in points), "")
        if point:
            yield filesystem.id, point


def _subvolumes(filesystem: str, point: str) -> list[Subvolume]:
    text = run(("btrfs", "subvolume", "list", "-u", "-q", point), check=False)
    read_only = run(("btrfs", "subvolume", "list", "-r", point), check=False)
    default = run(("btrfs", "subvolume", "get-default", point), check=False)
    return sorted(parse_subvolumes(text, read_only, default, filesystem), key=lambda s: s.path)


def _quota(point: str) -> bool:
    return bool(run(("btrfs", "qgroup", "show", point), check=False).strip())


def _swap_files() -> Iterator[SwapFile]:
    if not RUNNING:
        yield from swap_files_of(ROOT, _file("etc/fstab"))
        return
    text = run(("swapon", "--show=NAME,TYPE,SIZE,UUID,LABEL", "--noheadings", "--raw", "--bytes"))
    for swap in parse_swap_files(text, str(ROOT)):
        # Where the machine is seen below another root, swapon(8) does not find the file to look into.
        header = _swap_header(ROOT / swap.path.lstrip("/"))
        yield replace(swap, uuid=header[1], label=header[2]) if header else swap


def _lsblk() -> str:
    return run(("lsblk", "--json", "--bytes", "--output",
                "NAME,PATH,TYPE,SIZE,LOG-SEC,SERIAL,WWN,MODEL,TRAN,RO,SUBSYSTEMS,MAJ:MIN"))


def _report(program: str, columns: str) -> str:
    return _optional(program, *(("--all",) if program == "lvs" else ()), "--reportformat", "json",
                     "--units", "b", "--nosuffix", "--options", columns)


def _optional(*argv: str) -> str:
    """What a program says that a machine without such things need not have."""
    try:
        return run(argv, check=False)
    except ToolMissing:
        return ""


def _file(name: str) -> str:
    """A text file of the machine; "" where it has none."""
    try:
        return (ROOT / name).read_text(errors="replace")
    except OSError:
        return ""


def host_name(root: Path = ROOT) -> str:
    """The machine's name; of one that does not run, as its hostname(5) has it."""
    if RUNNING and root == ROOT:
        return socket.gethostname()
    try:
        lines = resolved(root, "etc/hostname").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line.strip() for line in lines if line.strip() and not line.startswith("#")), "localhost")


def kernel_release() -> str:
    """The kernel that runs; of a machine that does not, the newest that its boot loader finds, "" for none."""
    if RUNNING:
        return os.uname().release
    modules = [path for folder in ("usr/lib/modules", "lib/modules") for path in (ROOT / folder).glob("*")]
    found = {path.name for path in modules
             if (path / "vmlinuz").exists() or os.path.lexists(ROOT / "boot" / f"vmlinuz-{path.name}")}
    return max(found, key=version_key, default="")


def version_key(version: str) -> list[tuple[int, int, str]]:
    """For sorting: 6.12.10 is newer than 6.12.9."""
    return [(1, int(word), "") if word.isdigit() else (0, 0, word) for word in re.findall(r"\d+|[^\d.+-]+", version)]


# ELF's e_machine, and what uname(1) says on such a machine.
_MACHINES = {3: "i686", 40: "armv7l", 62: "x86_64", 183: "aarch64", 243: "riscv64"}


def architecture() -> str:
    """uname(1)'s word for the machine; of one that does not run, what its programs are made for."""
    if RUNNING:
        return os.uname().machine
    for name in ("usr/bin/env", "bin/cat", "bin/sh"):
        try:
            with resolved(ROOT, name).open("rb") as file:
                head = file.read(20)
        except OSError:
            continue
        if head[:4] == b"\x7fELF":
            return _MACHINES.get(head[18], "")
    return ""


def resolved(root: Path, name: str) -> Path:
    """A file below a root without links on the way to it: they mean what they mean there, and not in this system.

    One that goes round in a circle stays a link.
    """
    parts, path = name.split("/")[::-1], root
    links = 0
    while parts:
        part = parts.pop()
        if part == "..":
            path = path.parent if path != root else root
        elif (path / part).is_symlink() and links < _LINKS:
            links += 1
            goal = os.readlink(path / part)
            path = root if goal.startswith("/") else path
            parts += goal.split("/")[::-1]
        else:
            path /= part
    return path


_LINKS = 40                    # as for the kernel: path_resolution(7)


def os_release(root: Path = ROOT) -> dict[str, str]:
    """The machine's os-release(5)."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        try:
            lines = resolved(root, name).read_text().splitlines()
        except OSError:
            continue
        return {k: v.strip("\"'") for k, _, v in (line.partition("=") for line in lines)}
    return {}
