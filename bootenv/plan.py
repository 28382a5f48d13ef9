"""A Layout on the disks at hand -> the Steps that make it, as a list that can be read before anything happens."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from typing import Any

from .errors import Unsupported
from .layout import EMPTY, Disk, Filesystem, Layout, Partition, human

EXT = ("ext2", "ext3", "ext4")
SUPPORTED = (*EXT, "swap")
_EXT_SETTINGS = {"features", "block_size", "blocks", "inode_size", "inodes", "reserved_blocks", "mount_options",
                 "errors", "max_mount_count", "check_days"}


@dataclass(frozen=True)
class Step:
    """One command that changes a disk, and what a person is told meanwhile."""

    title: str
    argv: tuple[str, ...]
    stdin: bytes = b""
    subject: str = ""          # the partition and disk at hand, a line each


def plan(layout: Layout, present: Layout = EMPTY) -> tuple[Step, ...]:
    """The Steps that turn the disks of `layout`, now as in `present`, into that layout; parents before children.

    Raises Unsupported for a record that this version can't recreate.
    """
    makes: dict[str, Iterator[Step]] = {}        # the steps that make a thing, by its id
    needs: dict[str, tuple[str, ...]] = {}       # what must be there before it
    for disk in layout.disks:
        needs[disk.id], makes[disk.id] = (), steps_for_disk(disk, layout)
    for partition in layout.partitions:
        needs[partition.id] = (partition.disk,)  # made with its table
    for filesystem in layout.filesystems:
        content = f"content of {filesystem.device}"
        needs[content], makes[content] = (filesystem.device,), steps_for_filesystem(filesystem, layout)
    clear = [step for disk in layout.disks for step in steps_to_clear(disk, present)]
    order = TopologicalSorter(needs).static_order()
    return (*clear, *(step for id in order for step in makes.get(id, ())))


def steps_to_clear(disk: Disk, present: Layout) -> Iterator[Step]:
    """Take the old signatures off, children first: what reappears at its old place is assembled again by itself."""
    old = next((d for d in present.disks if d.path == disk.path), None)
    if old is None:
        return
    for partition in reversed(present.partitions_of(old.id)):
        if not partition.extended:
            yield Step("Setup is preparing the disk...", ("wipefs", "--all", "--force", present.path(partition.id)))
    if old.label or any(f.device == old.id for f in present.filesystems):
        yield Step("Setup is preparing the disk...", ("wipefs", "--all", "--force", old.path))


def steps_for_disk(disk: Disk, layout: Layout) -> Iterator[Step]:
    if not disk.label:
        return
    partitions = layout.partitions_of(disk.id)
    subject = f"{human(disk.size)} {disk_name(disk, layout)}"
    yield Step("Setup is partitioning the disk...", (
        "sfdisk",
        "--wipe", "always", "--wipe-partitions", "always",
        disk.path,
    ), as_script(disk, partitions, layout).encode(), subject)


def as_script(disk: Disk, partitions: list[Partition], layout: Layout) -> str:
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


def steps_for_filesystem(filesystem: Filesystem, layout: Layout) -> Iterator[Step]:
    path = layout.path(filesystem.device)
    subject = describe(filesystem, layout)
    if filesystem.type == "swap":
        yield Step("Setup is formatting...", (
            "mkswap", "--force",                  # an old signature must not make it ask
            *(("--uuid", filesystem.uuid) if filesystem.uuid else ()),
            *(("--label", filesystem.label) if filesystem.label else ()),
            path,
        ), subject=subject)
    elif filesystem.type in EXT:
        yield from _steps_for_ext(filesystem, path, subject)
    else:
        raise Unsupported(f"{path} holds {filesystem.type}, which this version cannot recreate.")


def _steps_for_ext(filesystem: Filesystem, path: str, subject: str) -> Iterator[Step]:
    have: dict[str, Any] = dict(filesystem.settings)
    missing = _EXT_SETTINGS - have.keys()
    if missing:
        raise Unsupported(f"The ASR disk does not say {', '.join(sorted(missing))} of the file system on {path}.")
    extended = [f"{key}={have[key]}" for key in ("stride", "stripe_width") if key in have]
    yield Step("Setup is formatting...", (
        f"mkfs.{filesystem.type}", "-q",
        "-F",                                     # an old signature must not make it ask
        "-U", filesystem.uuid,
        "-L", filesystem.label,
        "-O", ",".join(("none", *have["features"])),   # the source's flags, not this mkfs's defaults
        "-b", str(have["block_size"]),
        "-I", str(have["inode_size"]),
        "-N", str(have["inodes"]),
        *(("-G", str(have["flex_groups"])) if "flex_groups" in have else ()),
        *(("-J", f"size={have['journal_blocks'] * have['block_size'] // 2**20}") if "journal_blocks" in have else ()),
        *(("-E", ",".join(extended)) if extended else ()),
        path, str(have["blocks"]),                # it may be smaller than its partition
    ), subject=subject)
    yield Step("Setup is formatting...", (
        "tune2fs",
        "-r", str(have["reserved_blocks"]),
        "-o", ",".join(_only(have["mount_options"])),
        "-e", have["errors"],
        "-c", have["max_mount_count"],
        "-i", f"{have['check_days']}d",
        path,
    ), subject=subject)


# tune2fs(8) adds to what mke2fs.conf of the medium put there: each option is set or cleared by name.
_MOUNT_OPTIONS = ("debug", "bsdgroups", "user_xattr", "acl", "uid16", "nobarrier", "block_validity", "discard",
                  "nodelalloc", "journal_data", "journal_data_ordered", "journal_data_writeback")


def _only(options: list[str]) -> list[str]:
    return [f"^{o}" for o in _MOUNT_OPTIONS if o not in options] + list(options)


def describe(filesystem: Filesystem, layout: Layout) -> str:
    """The two lines of Setup's format page: what is formatted, and where it lies."""
    device = layout.device(filesystem.device)
    disk = next(layout.disks_under(filesystem.device))
    mount = layout.mount_of(filesystem.id)
    name = mount.point if mount else "swap" if filesystem.type == "swap" else filesystem.label
    what = f"Partition {device.number} [{filesystem.type}]" if isinstance(device, Partition) else f"[{filesystem.type}]"
    return f"{name}  {what}  {human(device.size)}".strip() + f"\non {human(disk.size)} {disk_name(disk, layout)}"


def disk_name(disk: Disk, layout: Layout) -> str:
    """Disk 0 at vda on virtio [GPT]."""
    words = [f"Disk {layout.disks.index(disk)} at {disk.path.removeprefix('/dev/')}"]
    if disk.transport:
        words.append(f"on {disk.transport}")
    label = {"gpt": "[GPT]", "dos": "[MBR]"}.get(disk.label)
    return " ".join(words + ([label] if label else []))


def as_text(steps: tuple[Step, ...]) -> str:
    """The plan as a person reads it, and as tests/machines/*/plan.txt keeps it."""
    lines = []
    for number, step in enumerate(steps, 1):
        lines.append(f"{number:3}. {step.title}" + (f" {step.subject.splitlines()[0]}" if step.subject else ""))
        lines.append("     $ " + " ".join(shlex.quote(word) for word in step.argv))
        lines += [f"     | {line}" for line in step.stdin.decode().splitlines()]
    return "\n".join(lines) + "\n"
