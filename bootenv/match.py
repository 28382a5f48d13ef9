"""Recorded disks <-> disks present: by serial number, WWN and identifiers, never by name."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from .errors import DiskTooSmall, DuplicateIds, TooFewDisks
from .filesystems import largest_sector
from .layout import Disk, Filesystem, Layout, LuksContainer, MdArray, PhysicalVolume, human

# GPT keeps a copy of itself in the last 33 sectors: 32 of entries, 1 of header (UEFI 2.10, 5.3).
_GPT_TAIL = 33


@dataclass(frozen=True)
class Choice:
    """One recorded disk and the disk that takes its place."""

    recorded: Disk
    present: Disk
    reason: str                # why this one
    content: str               # what is on it now
    consent: bool              # it holds what is not this computer's: a person must agree


@dataclass(frozen=True)
class Match:
    """A disk for each recorded disk, and the recorded layout on these disks."""

    choices: tuple[Choice, ...]
    layout: Layout


def match(recorded: Layout, present: Layout, excluded: Mapping[str, str] | None = None, begun: Collection[str] = ()
          ) -> Match:
    """The present disk for each recorded one; `excluded` are device nodes that must not be targets.

    The same hardware first, then a disk that already carries what was recorded, then a blank one of the same
    size, a blank larger one, and last one that holds something else. `begun`: device nodes of disks that an earlier
    attempt has cleared already. Raises TooFewDisks, DiskTooSmall and DuplicateIds.
    """
    free = [d for d in present.disks if d.path not in (excluded or {})]
    taken: dict[str, tuple[Disk, str]] = {}
    for known_by, reason in ((_same_hardware, "same serial number"), (_same_table, "carries its partitions")):
        for disk in recorded.disks:
            same = [d for d in free if known_by(disk, d)]
            if disk.id not in taken and len(same) == 1 and _fits(disk, same[0], recorded):
                taken[disk.id] = same[0], reason
                free.remove(same[0])

    def fitting(disk: Disk) -> list[Disk]:
        return [d for d in free if _fits(disk, d, recorded) and _kind(d) == _kind(disk)]

    # The hardest to please first, each gets the smallest disk that is enough: so nobody takes what another must have.
    for disk in sorted(recorded.disks, key=lambda d: (len(fitting(d)), -needed(d, recorded))):
        if disk.id not in taken:
            fit = fitting(disk)
            if not fit:
                raise _no_disk(disk, recorded, free, present, excluded or {})
            own = [d for d in fit if _same_content(disk, d, recorded, present)]
            best = min(own or fit, key=lambda d: (not is_blank(d, present), d.size != disk.size, d.size, d.path))
            taken[disk.id] = best, "carries its content" if own else \
                "same size" if best.size == disk.size else "large enough"
            free.remove(best)
    targets = [disk for disk, _ in taken.values()]
    for disk in present.disks:
        if disk not in targets and (twice := _twice(disk, recorded, present)):
            words = ", ".join(filter(None, (human(disk.size), disk.model, disk.serial)))
            raise DuplicateIds(f"{disk.path} ({words}) is not used, but {twice} that Setup makes anew.",
                               hint="Disconnect that disk and press ENTER.")
    choices = tuple(
        Choice(d, *taken[d.id], "what an earlier attempt left", consent=False) if taken[d.id][0].path in begun
        else _choice(d, *taken[d.id], recorded, present, free) for d in recorded.disks)
    return Match(choices, on_these_disks(recorded, choices, present))


def on_these_disks(recorded: Layout, choices: Sequence[Choice], present: Layout) -> Layout:
    """The recorded layout with the chosen disks' nodes and sector sizes, and with nodes for its arrays."""
    chosen = {c.recorded.id: c.present for c in choices}
    disks = tuple(
        replace(d, path=chosen[d.id].path, sector_size=chosen[d.id].sector_size,
                first_lba=d.first_lba * d.sector_size // chosen[d.id].sector_size) for d in recorded.disks)
    targets = {choice.present.id for choice in choices}
    # An array that stays keeps its node; one of ours that runs already has one.
    kept = {a.path for a in present.arrays if not present.under(a.id) & targets}
    running = {key(a): a.path for a in present.arrays if a.path not in kept}
    arrays: list[MdArray] = []
    for array in recorded.arrays:
        used = {*kept, *(a.path for a in arrays)}
        nodes = (running.get(key(array), array.path), *(f"/dev/md{number}" for number in range(len(used) + 1)))
        arrays.append(replace(array, path=next(node for node in nodes if node not in used)))
    return replace(recorded, disks=disks, arrays=tuple(arrays))


def located(recorded: Layout, present: Layout) -> Layout:
    """The recorded layout on the disks that carry its tables, or its whole-disk contents, now. Raises TooFewDisks."""
    choices: list[Choice] = []
    for number, disk in enumerate(recorded.disks):
        taken = [choice.present for choice in choices]
        same = [d for d in present.disks if d not in taken and _same_content(disk, d, recorded, present)]
        # An array's members are all the same from outside.
        if len(same) != 1 and not (same and isinstance(recorded.content(disk.id), MdArray)):
            raise TooFewDisks(
                f"Disk {number} was partitioned in the first stage, but {len(same)} disks carry its table now.",
                hint="Connect the disk again and press ENTER, or start again from the recovery medium.",
            )
        choices.append(Choice(disk, same[0], "carries this computer's partitions", "", consent=False))
    return on_these_disks(recorded, choices, present)


def key(record: Filesystem | LuksContainer | PhysicalVolume | MdArray) -> str:
    """What content is known by, however its tool writes it."""
    return re.sub(r"#\d+$|[:-]", "", (record.uuid if isinstance(record, Filesystem) else record.id).lower())


def _same_content(recorded: Disk, chosen: Disk, own: Layout, present: Layout) -> bool:
    """The chosen disk holds just what will be made on it: nothing of anybody else's can be lost."""
    if recorded.label or chosen.label:
        return _same_table(recorded, chosen) and _shape(own, recorded) == _shape(present, chosen)
    mine, there = own.content(recorded.id), present.content(chosen.id)
    return bool(mine and there and key(mine) and key(mine) == key(there))


def _twice(disk: Disk, recorded: Layout, present: Layout) -> str:
    """What a disk that stays holds, alone or with others, as recovery will; "" for nothing."""
    names = {group.name for group in recorded.groups}
    made: tuple[Filesystem | LuksContainer | PhysicalVolume | MdArray, ...] = (
        *recorded.filesystems, *recorded.containers, *recorded.physical_volumes, *recorded.arrays)
    ids = {key(record) for record in made} - {""}
    for device in present.devices:
        content = present.content(device.id)
        if not content or disk.id not in present.under(device.id):
            continue
        if isinstance(content, PhysicalVolume) and content.group:
            name = present.group(content.group).name
            if name in names:
                return f"its volume group {name} has the name of one"
        if key(content) in ids:
            return f"{present.path(device.id)} has the same UUID as a volume"
    same = any(_shape(recorded, own) and _same_content(own, disk, recorded, present) for own in recorded.disks)
    return "it has the same partition table as a disk" if same else ""


def needed(disk: Disk, layout: Layout) -> int:
    """The bytes that the disk's partitions (or its file system, where it has no table) need."""
    partitions = layout.partitions_of(disk.id)
    if not disk.label:
        return disk.size
    end = max((p.start + p.size for p in partitions), default=2**20)
    return end + (_GPT_TAIL * disk.sector_size if disk.label == "gpt" else 0)


def _fits(disk: Disk, present: Disk, layout: Layout) -> bool:
    return present.size >= needed(disk, layout) and not _sectors_differ(disk, present, layout)


def _sectors_differ(disk: Disk, present: Disk, layout: Layout) -> str:
    """What the present disk's sectors are too large for; "" for nothing."""
    borders = [disk.first_lba * disk.sector_size if disk.sector_size != present.sector_size else 0]
    borders += [place for p in layout.partitions_of(disk.id) for place in (p.start, p.size)]
    if any(place % present.sector_size for place in borders):
        return "the recorded partitions begin or end within one"
    for filesystem in layout.filesystems:
        most = largest_sector(filesystem)
        if most < present.sector_size and disk.id in layout.under(*layout.devices_of(filesystem)):
            mount = layout.mount_of(filesystem.id)
            return f"{mount.point if mount else filesystem.label} [{filesystem.type}] needs {most}".lstrip()
    return ""


def is_blank(disk: Disk, present: Layout) -> bool:
    return not disk.label and not present.content(disk.id)


def describe_content(disk: Disk, present: Layout) -> str:
    """What is on a disk, for the person who must agree to lose it."""
    if is_blank(disk, present):
        return "blank"
    partitions = present.partitions_of(disk.id)
    # Also what lies on several disks, of which this is one.
    inside = [f"{f.label} [{f.type}]" if f.label else f.type for f in present.filesystems
              if any(disk.id in present.under(device) for device in present.devices_of(f))]
    groups = {v.group for v in present.physical_volumes if v.group and disk.id in present.under(v.device)}
    inside += [f"volume group {present.group(id).name}" for id in sorted(groups)]
    inside += [f"array {a.name or a.path}" for a in present.arrays if disk.id in present.under(a.id)]
    inside += [f"encrypted volume {c.name}".strip() for c in present.containers if disk.id in present.under(c.id)]
    if not disk.label:
        return ", ".join(inside) or "no partitions"
    count = f"{len(partitions)} partition{'s' * (len(partitions) != 1)}"
    return count + (f": {', '.join(inside)}" if inside else "")


def _choice(disk: Disk, chosen: Disk, reason: str, recorded: Layout, present: Layout, free: list[Disk]) -> Choice:
    if _same_content(disk, chosen, recorded, present):
        # A copy that somebody saved from a dying disk carries the table too: then a blank disk lies ready beside it.
        ready = any(is_blank(d, present) and _fits(disk, d, recorded) for d in free)
        if _other_hardware(disk, chosen):              # as has a computer that was installed from the same image
            reason += ", but has another serial number"
        elif _same_hardware(disk, chosen) or not ready:
            return Choice(disk, chosen, reason, "this computer's own partitions", consent=False)
    return Choice(disk, chosen, reason, describe_content(chosen, present), not is_blank(chosen, present))


def _shape(layout: Layout, disk: Disk) -> list[tuple[int, int, int, str]]:
    return [(p.number, p.start, p.size, p.uuid) for p in layout.partitions_of(disk.id)]


def _same_hardware(recorded: Disk, present: Disk) -> bool:
    if recorded.wwn and present.wwn:
        return recorded.wwn == present.wwn
    return bool(recorded.serial) and (recorded.serial, recorded.model) == (present.serial, present.model)


def _other_hardware(recorded: Disk, present: Disk) -> bool:
    """Known to be another disk. Virtual disks often have nothing to know them by."""
    if recorded.wwn and present.wwn:
        return recorded.wwn != present.wwn
    return bool(recorded.serial and present.serial) and recorded.serial != present.serial


def _same_table(recorded: Disk, present: Disk) -> bool:
    return bool(recorded.label_id) and \
        (recorded.label, recorded.label_id.lower()) == (present.label, present.label_id.lower())


# A USB disk takes the place of nothing but a USB disk: it is more likely to be somebody's backup.
def _kind(disk: Disk) -> bool:
    return disk.transport == "usb"


def _no_disk(disk: Disk, recorded: Layout, free: list[Disk], present: Layout, excluded: Mapping[str, str]):
    number = recorded.disks.index(disk)
    usable = [d for d in free if _kind(d) == _kind(disk)]
    kept = "".join(f" {d.path.removeprefix('/dev/')} is not used: {excluded[d.path]}."
                   for d in present.disks if d.path in excluded)
    total = len([d for d in present.disks if d.path not in excluded and _kind(d) == _kind(disk)])
    if total < len(recorded.disks):
        return TooFewDisks(
            f"This computer has {total} disk{'s' * (total != 1)} to recover onto. "
            f"The set needs {len(recorded.disks)} critical disk{'s' * (len(recorded.disks) != 1)}.{kept}",
            hint="Connect the missing disk and press ENTER.",
        )
    best = max(usable, key=lambda d: d.size, default=None)
    if best and best.size >= needed(disk, recorded):
        return DiskTooSmall(
            f"Disk {number} does not fit on {best.path}: its sectors have {best.sector_size} bytes, and "
            f"{_sectors_differ(disk, best, recorded)}.{kept}",
            hint=f"Connect a disk with sectors of {disk.sector_size} bytes, as the recorded one had, and press ENTER.",
        )
    return DiskTooSmall(
        f"Disk {number} needs at least {human(needed(disk, recorded))}; "
        f"the largest free disk has {human(best.size if best else 0)}.{kept}",
        hint="Connect a larger disk and press ENTER.",
    )
