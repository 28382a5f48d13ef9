"""The boot menu in the variables of UEFI firmware, as efibootmgr(8) shows and writes it.

Firmware keeps it in flash memory that wears out, and some has been broken by writing: a menu that is right already is
not written.
"""

import re
from collections.abc import Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, replace

from .layout import BootOption, Layout, Partition
from .run import run

OWN = "Automated System Recovery"      # the label of the minimal OS's entries

Command = tuple[str, ...]

_ENTRY = re.compile(r"Boot([0-9A-Fa-f]{4})([* ]) ([^\t]*)(?:\t(.*))?")
# HD(number,GPT,uuid,start,size)/File(\path) or, from newer libraries, /\path; optional data may follow at once.
_PLACE = re.compile(r"HD\((\d+),(GPT|MBR),([^,]+)[^)]*\)/(?:File\()?(\\.*?\.efi)", re.IGNORECASE)


@dataclass(frozen=True)
class Entry:
    """A line of the menu; `partuuid` and `loader` are empty for one that starts no file of a partition."""

    id: str                    # "0001" of Boot0001
    label: str
    partuuid: str = ""         # as the kernel has it: a GPT's unique GUID, or an MBR's signature and number
    loader: str = ""
    active: bool = True


@dataclass(frozen=True)
class Menu:
    entries: tuple[Entry, ...] = ()
    order: tuple[str, ...] = ()        # ids; it may name entries that there are not
    next: str = ""                     # id of what starts once, before all others


def menu() -> Menu:
    """This machine's boot menu. Raises CommandFailed where the firmware has none, or hides it."""
    return parse_menu(run(("efibootmgr", "--verbose")))


def parse_menu(text: str) -> Menu:
    """What `efibootmgr --verbose` printed; versions 15 to 18 differ in how they write a path and data."""
    entries = []
    heads = {}
    for line in text.splitlines():
        if found := _ENTRY.match(line):
            id, star, label, path = found.groups()
            place = _PLACE.match(path or "")
            entries.append(Entry(id.upper(), label.rstrip(), partuuid=_of_path(*place.groups()[:3]) if place else "",
                                 loader=place[4] if place else "", active=star == "*"))
        elif not line.startswith(" "):
            head, _, value = line.partition(": ")
            heads[head] = value.strip().upper()
    order = tuple(filter(None, heads.get("BootOrder", "").split(",")))
    return Menu(tuple(entries), order, heads.get("BootNext", ""))


def parse_boot_options(text: str, partitions: Iterable[Partition]) -> tuple[BootOption, ...]:
    """The entries that start something on these partitions, without the minimal OS's own."""
    found = parse_menu(text)
    ids = {partuuid(partition): partition.id for partition in partitions}
    return tuple(
        BootOption(entry.id, entry.label, ids[entry.partuuid], entry.loader, entry.active,
                   found.order.index(entry.id) + 1 if entry.id in found.order else 0)
        for entry in found.entries if entry.partuuid in ids and entry.label != OWN)


def partuuid(partition: Partition) -> str:
    """The kernel's PARTUUID of a partition, in small letters."""
    if partition.uuid:
        return partition.uuid.lower()
    signature = partition.disk.partition("#")[0].removeprefix("0x").lower()
    return f"{signature.zfill(8)}-{partition.number:02x}"


def _of_path(number: str, kind: str, id: str) -> str:
    if kind.upper() == "GPT":
        return id.lower()
    return f"{id.lower().removeprefix('0x').zfill(8)}-{int(number):02x}"


def commands_to_restore(
    present: Menu, layout: Layout, options: Sequence[BootOption], here: Set[str],
) -> Iterator[Command]:
    """What makes the menu hold these recorded options again, each once, in their places of the order.

    Right entries stay as they are. Of all others only those are removed that start the same loader under the same
    label from a partition that is not `here`, the PARTUUIDs on this machine. The minimal OS's own stay first.
    """
    left = {entry.id: entry for entry in present.entries}
    ids: dict[str, str] = {}           # in the menu, by recorded ids
    for option in options:
        wanted = _as_entry(option, layout)
        same = [e for e in left.values() if replace(_folded(e), id="", active=True) == wanted]
        if same:
            kept = next((e for e in same if e.id == option.id), same[0])
            ids[option.id] = kept.id
            del left[kept.id]
            if kept.active != option.active:
                yield "efibootmgr", "--quiet", "--bootnum", kept.id, "--active" if option.active else "--inactive"
    recorded = [_as_entry(option, layout) for option in options]
    removed = set()
    for entry in left.values():
        double = replace(_folded(entry), id="", active=True) in recorded
        stale = entry.partuuid and entry.partuuid not in here and any(
            (entry.label, entry.loader.lower()) == (w.label, w.loader) for w in recorded)
        if double or stale:
            removed.add(entry.id)
            yield "efibootmgr", "--quiet", "--bootnum", entry.id, "--delete-bootnum"
    taken = {entry.id for entry in present.entries} - removed
    for option in options:
        if option.id not in ids:
            ids[option.id] = id = option.id if option.id not in taken else _free(taken)
            taken.add(id)
            yield _create(id, option.label, layout.partition(option.partition), layout, option.loader)
            if not option.active:
                yield "efibootmgr", "--quiet", "--bootnum", id, "--inactive"
    # Deleting an entry takes it out of the order.
    present = replace(present, entries=tuple(e for e in present.entries if e.id not in removed))
    yield from _reorder(present, _order(present, {ids[o.id]: o.position for o in options}))


def _as_entry(option: BootOption, layout: Layout) -> Entry:
    return _folded(Entry("", option.label, partuuid(layout.partition(option.partition)), option.loader))


# FAT knows no case.
def _folded(entry: Entry) -> Entry:
    return replace(entry, loader=entry.loader.lower())


def _order(present: Menu, positions: dict[str, int]) -> list[str]:
    own = {entry.id for entry in present.entries if entry.label == OWN}
    order = [id for id in _existing(present) if id not in positions and id not in own]
    for id, position in sorted(positions.items(), key=lambda item: item[1]):
        if position:
            order.insert(position - 1, id)
    return [id for id in present.order if id in own] + order


# The order may name entries that are gone; efibootmgr refuses to write such a one.
def _existing(menu: Menu) -> list[str]:
    ids = {entry.id for entry in menu.entries}
    return [id for id in menu.order if id in ids]


def _reorder(present: Menu, order: list[str]) -> Iterator[Command]:
    if order != _existing(present):
        yield "efibootmgr", "--quiet", "--bootorder", ",".join(order)


def _free(taken: set[str]) -> str:
    return next(id for number in range(0x10000) if (id := f"{number:04X}") not in taken)


def _create(id: str, label: str, partition: Partition, layout: Layout, loader: str) -> Command:
    return ("efibootmgr", "--quiet", "--create-only", "--bootnum", id, "--disk", layout.path(partition.disk),
            "--part", str(partition.number), "--label", label, "--loader", loader)


def commands_to_start(present: Menu, layout: Layout, partitions: Sequence[Partition], loader: str) -> Iterator[Command]:
    """What makes the minimal OS on these partitions start next, and first of all from then on."""
    wanted = [Entry("", OWN, partuuid(partition), loader.lower()) for partition in partitions]
    ids = []
    taken = {entry.id for entry in present.entries}
    for partition, entry in zip(partitions, wanted, strict=True):
        same = [e.id for e in present.entries if replace(_folded(e), id="") == entry]
        if not same:
            same = [_free(taken)]
            taken.update(same)
            yield _create(same[0], OWN, partition, layout, loader)
        ids.append(same[0])
    for old in present.entries:
        if old.label == OWN and old.id not in ids:
            yield "efibootmgr", "--quiet", "--bootnum", old.id, "--delete-bootnum"
    own = {entry.id for entry in present.entries if entry.label == OWN}
    yield from _reorder(present, [*ids, *(id for id in _existing(present) if id not in own)])
    if present.next != ids[0]:
        yield "efibootmgr", "--quiet", "--bootnext", ids[0]


def commands_to_forget(present: Menu) -> Iterator[Command]:
    """What takes the minimal OS's entries out of the menu."""
    own = [entry.id for entry in present.entries if entry.label == OWN]
    if present.next in own:
        yield "efibootmgr", "--quiet", "--delete-bootnext"
    for id in own:
        yield "efibootmgr", "--quiet", "--bootnum", id, "--delete-bootnum"
