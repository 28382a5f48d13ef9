"""What this machine's disks hold, as a Layout: pure parse_* functions, and probe() that fetches their text.

Formats: lsblk(8) and sfdisk(8) --json, blkid(8) -o udev, findmnt(8) --json, dumpe2fs(8) -h.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from .layout import Disk, Filesystem, Layout, Mount, Partition, Setting, partition_path
from .run import ROOT, run

# Never a disk of the machine: RAM disks, loop devices, optical and floppy drives, network block devices,
# the boot and replay-protected areas of an eMMC.
_NO_DISK = re.compile(r"^(loop|ram|zram|sr|fd|nbd|zd)\d|^mmcblk\d+(boot\d|rpmb)")


@dataclass(frozen=True)
class Mounted:
    """A line of the mount table: where, what, and how."""

    point: str
    source: str                # device node, or what a network file system calls itself
    type: str
    root: str = "/"            # the part of the file system that is mounted; not "/" for a bind mount or subvolume


def probe() -> Layout:
    """Every disk of this machine with its table, contents and the mount points of /etc/fstab."""
    disks, partitions, filesystems = [], [], []
    seen: set[str] = set()
    for disk in parse_disks(_lsblk()):
        disk, own = parse_table(run(("sfdisk", "--json", disk.path), check=False), disk, seen)
        disks.append(disk)
        partitions += own
        devices = [(p.id, partition_path(disk.path, p.number)) for p in own if not p.extended] or [(disk.id, disk.path)]
        for device, path in devices:
            text = run(("blkid", "--probe", "--output", "udev", path), check=False)
            if filesystem := parse_content(text, device, seen):
                filesystems.append(_with_settings(filesystem, path))
    layout = Layout(tuple(disks), tuple(partitions), tuple(filesystems))
    return replace(layout, mounts=tuple(_mounts(layout)))


def mount_table() -> tuple[Mounted, ...]:
    """What is mounted on the machine (under ROOT) from disks and networks, in the machine's own paths."""
    text = run(("findmnt", "--json", "--list", "--real", "--output", "TARGET,SOURCE,FSTYPE,FSROOT"))
    return tuple(parse_mounted(text, str(ROOT)))


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


def parse_table(text: str, disk: Disk, seen: set[str]) -> tuple[Disk, list[Partition]]:
    """The disk with its table's head, and its partitions; sfdisk says nothing where there is no table."""
    if not text.strip():
        return replace(disk, id=_unique(disk.id, seen)), []
    table = json.loads(text)["partitiontable"]
    sector = table.get("sectorsize", disk.sector_size)
    disk = replace(
        disk,
        id=_unique(table.get("id") or disk.id, seen),
        sector_size=sector,
        label=table["label"],
        label_id=table.get("id", ""),
        first_lba=table.get("firstlba", 0),
        table_length=table.get("tablelength", 0),
    )
    return disk, [
        Partition(
            id=f"{disk.id}/{number}",
            disk=disk.id,
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

    Two signatures at once are content of the kind "ambivalent": somebody's, whatever it is.
    """
    found = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if "ID_FS_AMBIVALENT" in found:
        found["ID_FS_TYPE"] = "ambivalent"
    if "ID_FS_TYPE" not in found:
        return None
    uuid = found.get("ID_FS_UUID", "")
    return Filesystem(id=_unique(uuid or f"content of {device}", seen), device=device, type=found["ID_FS_TYPE"],
                      uuid=uuid, label=_decoded(found.get("ID_FS_LABEL_ENC", "")))


# Of blkid's formats only this one gives every label back: blanks, quotes and what is not ASCII are \xHH.
def _decoded(text: str) -> str:
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda m: bytes([int(m[1], 16)]), text.encode(errors="surrogateescape"))
    return raw.decode(errors="replace")        # preparation refuses such a label; other disks may have any


# What dumpe2fs shows and what tune2fs -e takes.
_ERRORS = {"Continue": "continue", "Remount read-only": "remount-ro", "Panic": "panic"}


def parse_ext(text: str) -> dict[str, Setting]:
    """What mke2fs and tune2fs need to make an ext2, ext3 or ext4 file system like the one of dumpe2fs -h."""
    head = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    # States of a mounted file system, not features that it was made with.
    features = [f for f in head["Filesystem features"].split() if f not in ("needs_recovery", "orphan_present")]
    options = head.get("Default mount options", "(none)")
    settings: dict[str, Setting] = {
        "features": sorted(features),
        "block_size": int(head["Block size"]),
        "blocks": int(head["Block count"]),
        "inode_size": int(head.get("Inode size", 128)),    # revision 0 has no other
        "inodes": int(head["Inode count"]),
        "reserved_blocks": int(head["Reserved block count"]),
        "mount_options": [] if options == "(none)" else sorted(options.split()),
        "errors": _ERRORS.get(head["Errors behavior"], "continue"),
        "max_mount_count": head["Maximum mount count"],
        "check_days": int(head["Check interval"].split()[0]) // 86400,   # tune2fs(8) counts in days
    }
    for key, name in (("Flex block group size", "flex_groups"), ("RAID stride", "stride"),
                      ("RAID stripe width", "stripe_width"), ("Total journal blocks", "journal_blocks")):
        if key in head:
            settings[name] = int(head[key])
    return settings


def parse_mounted(text: str, root: str = "/") -> Iterator[Mounted]:
    """The mounts under `root`."""
    for row in json.loads(text)["filesystems"]:
        point = row["target"]
        if root != "/":
            if point != root and not point.startswith(root + "/"):
                continue
            point = point[len(root):] or "/"
        yield Mounted(point, re.sub(r"\[.*\]$", "", row["source"] or ""), row["fstype"], row["fsroot"] or "/")


def parse_fstab(text: str) -> Iterator[tuple[str, str, str]]:
    """The source, mount point and options of each line of fstab(5)."""
    for line in text.splitlines():
        words = line.split()
        if len(words) >= 3 and not words[0].startswith("#"):
            # fstab writes a blank as \040.
            source, point = (re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), w) for w in words[:2])
            yield source, point, words[3] if len(words) > 3 else "defaults"


def _mounts(layout: Layout) -> Iterator[Mount]:
    """Where the machine mounts its file systems now, with fstab's options where it has the mount point."""
    fstab = ROOT / "etc/fstab"
    text = fstab.read_text(errors="replace") if fstab.exists() else ""
    options = {point: opts for _, point, opts in parse_fstab(text)}
    on = {layout.path(f.device): f for f in layout.filesystems}
    seen = set()
    for mount in mount_table():
        filesystem = on.get(mount.source)
        # A second mount of the same file system is a bind mount: nothing to recreate.
        if filesystem and mount.root == "/" and filesystem.id not in seen:
            seen.add(filesystem.id)
            yield Mount(filesystem.id, mount.point, options.get(mount.point, "defaults"))


def _lsblk() -> str:
    return run(("lsblk", "--json", "--bytes", "--nodeps", "--output",
                "NAME,PATH,TYPE,SIZE,LOG-SEC,SERIAL,WWN,MODEL,TRAN,RO,SUBSYSTEMS"))


def _with_settings(filesystem: Filesystem, path: str) -> Filesystem:
    if filesystem.type not in ("ext2", "ext3", "ext4"):
        return filesystem
    # A damaged one has no settings: no plan can be made of it, and it must not keep others from being recovered.
    text = run(("dumpe2fs", "-h", path), check=False)
    return replace(filesystem, settings=parse_ext(text) if "Filesystem features" in text else {})


def os_release(root: Path = ROOT) -> dict[str, str]:
    """The machine's os-release(5)."""
    for name in ("etc/os-release", "usr/lib/os-release"):
        try:
            lines = (root / name).read_text().splitlines()
        except OSError:
            continue
        return {k: v.strip("\"'") for k, _, v in (line.partition("=") for line in lines)}
    return {}
