"""A computer whose own system does not run: the recovery medium finds it, opens what is encrypted, and mounts it.

Until a person has chosen a system, nothing is written: volumes are looked into without even replaying their journals.
What was opened and mounted here is closed again whatever happens, also to this process.
"""

import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .errors import Asleep, CommandFailed, NoSystem, SystemIncomplete, ToolMissing
from .events import Difference
from .layout import Mount
from .plan import LVM
from .prepare import SOURCES
from .probe import (
    KERNEL_NAME,
    host_name,
    os_release,
    parse_crypttab,
    parse_fstab,
    parse_subvolumes,
    resolved,
    sleeps_in,
)
from .run import OFFLINE, STATE, afterwards, log, run
from .volumes import FOLDER, LOOK, Volume, forget

__all__ = ["Block", "System", "find_systems", "forget", "locked", "mount", "opened", "opens"]

_OPENED = STATE / "offline-opened"     # commands, a line each, that undo what was opened; the last of them comes first
_TYPES = ("ext2", "ext3", "ext4", "xfs", "btrfs", "f2fs")      # that a system's root may be
_DEVICES = ("/dev/", "UUID=", "LABEL=", "PARTUUID=", "PARTLABEL=")
_NAME = re.compile(r"\w[\w.+-]*", re.ASCII)            # of a mapped device
_ASLEEP = "swsuspend"                  # blkid's word for a swap area with a sleeping machine in it

# First what a wizard that was killed has left, and then all else; somebody may still be about to end.
_CLOSE = f"""
for try in $(seq 40); do
    left=
    for point in {SOURCES}/* {FOLDER}/* {OFFLINE}; do
        ! mountpoint -q "$point" || umount --recursive "$point" || left=yes
    done
    [ "$left" ] || break
    sleep 0.25
done
[ ! -e {_OPENED} ] || {{ tac {_OPENED} >{_OPENED}.tac && . {_OPENED}.tac; }}
rm -f {_OPENED} {_OPENED}.tac
[ ! "$left" ]"""


@dataclass(frozen=True)
class Block:
    """A block device as lsblk(8) has it, and what lies on it."""

    path: str
    type: str                  # "disk", "part", "crypt", "lvm", "raid1", …
    content: str = ""          # the type of its file system, "crypto_LUKS", …
    size: int = 0              # bytes
    uuid: str = ""             # of the content
    label: str = ""
    partuuid: str = ""
    partlabel: str = ""
    inner: str = ""            # of an encrypted one that is open: the node of what is inside


@dataclass(frozen=True)
class Line:
    """A line of fstab(5) that mounts something from a disk."""

    source: str
    point: str
    type: str
    options: tuple[str, ...]
    needed: bool = True        # without it the machine would not come up either

    @property
    def subvolume(self) -> str | None:
        """That it mounts of a btrfs, "" for its top; None if it doesn't say."""
        said = [word.partition("=")[2].strip("/") for word in self.options if word.startswith("subvol=")]
        return said[-1] if said else "" if "subvolid=5" in self.options else None


@dataclass(frozen=True)
class System:
    """An installed system, as its own files describe it."""

    block: Block               # that its root lies on
    name: str                  # of its os-release
    host: str
    subvolume: str = ""        # of a btrfs, that is its root
    default: str = ""          # the subvolume that is mounted if nothing is said
    ids: Mapping[str, str] = field(default_factory=dict)       # the subvolumes' paths, by their numbers
    lines: tuple[Line, ...] = ()       # of its fstab, parents before children
    crypttab: tuple[tuple[str, tuple[str, str]], ...] = ()     # source, and name and key file
    asleep: bool = False       # a swap file holds its memory

    @property
    def points(self) -> tuple[str, ...]:
        """Where it mounts its file systems, the root among them."""
        return tuple(dict.fromkeys(("/", *(line.point for line in self.lines))))


# Reading

def parse_blocks(text: str) -> tuple[Block, ...]:
    """lsblk's tree, each device once."""
    found: dict[str, Block] = {}

    def walk(rows: list[dict[str, Any]]) -> None:
        for row in rows:
            children = row.get("children", [])
            inner = next((child["path"] for child in children if child["type"] == "crypt"), "")
            words = {key: row[key] or "" for key in ("uuid", "label", "partuuid", "partlabel")}
            found.setdefault(row["path"], Block(row["path"], row["type"], row["fstype"] or "", int(row["size"] or 0),
                                                inner=inner, **words))
            walk(children)

    walk(json.loads(text)["blockdevices"])
    return tuple(found.values())


def parse_lines(fstab: str) -> tuple[Line, ...]:
    """The lines of an fstab that mount what lies on disks, parents before children.

    Not those that wait for somebody to mount them; those that mount by themselves at the first look belong to it.
    Other views of what is mounted (bind), memory, swap and network places hold nothing of these disks.
    """
    found: dict[str, Line] = {}
    for source, point, type, options in parse_fstab(fstab):
        words = tuple(options.split(","))
        waits = "noauto" in words and "x-systemd.automount" not in words
        if (point.startswith("/") and type != "swap" and source.startswith(_DEVICES) and not waits
                and not {"bind", "rbind", "_netdev"} & {*words}):
            point = os.path.normpath(point)
            found.setdefault(point, Line(source, point, type, words, "nofail" not in words))
    return tuple(sorted(found.values(), key=lambda line: (line.point.rstrip("/").count("/"), line.point)))


def devices_of(source: str, blocks: Iterable[Block]) -> list[Block]:
    """The devices that a source in fstab(5) or crypttab(5) may mean: of a btrfs each, of a copy that as well."""
    tag, _, value = source.partition("=")
    value = value.strip('"')
    if tag in ("UUID", "PARTUUID"):
        return [block for block in blocks if getattr(block, tag.lower()).lower() == value.lower()]
    if tag in ("LABEL", "PARTLABEL"):
        return [block for block in blocks if getattr(block, tag.lower()) == value]
    path = os.path.realpath(source)
    return [block for block in blocks if path in (block.path, os.path.realpath(block.path))]


def is_root(system: System, blocks: Sequence[Block]) -> bool:
    """Whether the system starts from where it was found: a snapshot or a copy has the fstab of another one.

    A kernel's name for a disk may be another one here: that alone makes no copy of it.
    """
    line = next((line for line in system.lines if line.point == "/"), None)
    if line is None:
        return system.subvolume == system.default
    id = next((word.partition("=")[2] for word in line.options if word.startswith("subvolid=")), "")
    named = line.subvolume if line.subvolume is not None else system.ids.get(id, system.default)
    found = devices_of(line.source, blocks)
    same = system.block in found or any(block.content == "btrfs" and block.uuid == system.block.uuid for block in found)
    return named == system.subvolume and (same or KERNEL_NAME.fullmatch(line.source) is not None)


def names_agree(system: System, blocks: Sequence[Block]) -> bool:
    """Whether the kernel's names in the system's fstab are known to mean the same disks here."""
    return any(line.point == "/" and KERNEL_NAME.fullmatch(line.source) is not None
               and devices_of(line.source, blocks) == [system.block] for line in system.lines)


# Finding

@contextmanager
def opened() -> Iterator[subprocess.Popen]:
    """What is opened and mounted in the block is closed at its end. Its `returncode` says then whether all could be."""
    _OPENED.parent.mkdir(parents=True, exist_ok=True)
    _OPENED.unlink(missing_ok=True)
    with afterwards(_CLOSE) as keeper:
        _activate()
        yield keeper


def find_systems() -> tuple[System, ...]:
    """The systems on all volumes that can be read now. Containers that their key files open are opened.

    Raises NoSystem, Asleep.
    """
    try:
        while True:
            blocks = _blocks()
            found, changed = [], False
            for system, top in _systems(blocks):
                found.append(system)
                changed |= _put_right(system, top, blocks)
            forget()
            if not changed:
                break
    finally:
        forget()
    if any(block.content == _ASLEEP for block in blocks):
        raise _asleep()
    systems = tuple(system for system in found if is_root(system, blocks))
    if not systems:
        raise NoSystem("No installed system was found on this computer's volumes.",
                       hint="Connect its disks and press ENTER. If they are encrypted, their passphrases are needed.")
    return systems


def locked() -> tuple[Block, ...]:
    """The encrypted volumes that are closed."""
    return tuple(block for block in _blocks() if block.content == "crypto_LUKS" and not block.inner)


def opens(block: Block, passphrase: bytes) -> bool:
    """Opens an encrypted volume, and activates what lies in it. False: it is another passphrase."""
    try:
        _open(block, "-", passphrase)
    except CommandFailed as error:
        if "No key available" in str(error):
            return False
        raise
    return True


def _open(block: Block, key_file: str, passphrase: bytes | None = None) -> None:
    """By a name of its own, until a crypttab is read."""
    name = f"luks-{block.uuid}"
    run(("cryptsetup", "open", "--key-file", key_file, block.path, name), input=passphrase)
    _undo("cryptsetup", "close", name)
    _activate()


def _blocks() -> tuple[Block, ...]:
    run(("udevadm", "settle"))
    # NAME makes it a tree.
    return parse_blocks(run(("lsblk", "--json", "--bytes", "--output",
                             "NAME,PATH,TYPE,FSTYPE,SIZE,UUID,LABEL,PARTUUID,PARTLABEL")))


def _systems(blocks: Iterable[Block]) -> Iterator[tuple[System, Path]]:
    """Each folder that looks like a system's root, and where it can be seen now."""
    seen: set[str] = set()
    for block in blocks:
        if block.content not in _TYPES or block.uuid in seen:
            continue
        if block.content == "btrfs":                   # it has its UUID on each of its devices
            seen.add(block.uuid)
        volume = Volume(block.path, block.content, block.uuid, block.label)
        # What somebody has mounted by hand is not mounted once more with other options.
        top_of_all = ",subvolid=5" if block.content == "btrfs" else ""
        if not (volume.mount(LOOK.get(block.content, "ro") + top_of_all) or
                (volume.mount("ro,subvolid=5") if top_of_all else volume.look())):
            continue
        default, ids = _subvolumes(volume.point) if block.content == "btrfs" else ("", {})
        for subvolume in ("", *ids.values()):
            top = volume.point / subvolume
            if _is_system(top):
                yield _described(System(block, "", "", subvolume, default, ids), top, volume.point), top


def _is_system(top: Path) -> bool:
    # Both may be symlinks, which mean nothing in this system.
    return (top / "etc/fstab").exists() and any(
        os.path.lexists(top / name) for name in ("etc/os-release", "usr/lib/os-release"))


def _described(system: System, top: Path, whole: Path) -> System:
    """What its files say; `whole` is the top of the file system that they lie on."""
    fstab = resolved(top, "etc/fstab").read_text(errors="replace")
    crypttab = top / "etc/crypttab"
    system = replace(
        system, name=os_release(top).get("PRETTY_NAME", "") or "an installed system", host=host_name(top),
        lines=parse_lines(fstab),
        crypttab=tuple(parse_crypttab(crypttab.read_text(errors="replace"))) if crypttab.is_file() else ())
    swaps = [source for source, _, type, _ in parse_fstab(fstab) if type == "swap"]
    return replace(system, asleep=any(_sleeps(_place_of(path, system, whole)) for path in swaps
                                      if path.startswith("/") and not path.startswith("/dev/")))


def _place_of(path: str, system: System, whole: Path) -> Path:
    """Where a file of the system is in the file system that its root lies on."""
    mounts = [Mount("", line.point, subvolume=line.subvolume or "") for line in system.lines
              if line.subvolume is not None and path.startswith(line.point.rstrip("/") + "/")]
    around = max(mounts, key=lambda m: len(m.point), default=Mount("", "/", subvolume=system.subvolume))
    return whole / around.subvolume / os.path.relpath(path, around.point)


def _sleeps(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return sleeps_in(file.read(4096))
    except OSError:
        return False


def _subvolumes(point: Path) -> tuple[str, dict[str, str]]:
    """The default subvolume of a btrfs that is mounted from its top, and all of them by their numbers."""
    text = run(("btrfs", "subvolume", "list", "-u", "-q", str(point)), check=False)
    default = run(("btrfs", "subvolume", "get-default", str(point)), check=False)
    ids = dict(re.findall(r"^ID (\d+) .* path (.*)$", text, re.MULTILINE))
    found = list(parse_subvolumes(text, "", default, ""))
    kept = {s.path for s in found}
    return next((s.path for s in found if s.default), ""), {id: path for id, path in ids.items() if path in kept}


def _put_right(system: System, top: Path, blocks: Sequence[Block]) -> bool:
    """Encrypted volumes get the names that the system has for them, and are opened by its key files.

    Whether there is anything new to look at.
    """
    changed = False
    for source, (name, key_file) in system.crypttab:
        block = next(iter(devices_of(source, blocks)), None)
        if block is None or block.content != "crypto_LUKS" or not _NAME.fullmatch(name):
            continue
        provisional = f"luks-{block.uuid}"
        try:
            if not block.inner and key_file and (top / key_file.lstrip("/")).is_file():
                _open(block, str(top / key_file.lstrip("/")))
                changed = True
            elif block.inner == f"/dev/mapper/{provisional}" and not os.path.exists(f"/dev/mapper/{name}"):
                run(("dmsetup", "rename", provisional, name))
                _OPENED.write_text(_OPENED.read_text().replace(_undoing("cryptsetup", "close", provisional),
                                                               _undoing("cryptsetup", "close", name)))
                changed = True
        except (CommandFailed, ToolMissing) as error:
            log(f"{block.path} of {system.host}: {error}")
    return changed


def _activate() -> None:
    """Arrays, volume groups and file systems of which all devices have appeared."""
    _assemble()
    before = _active()
    run(("vgchange", "--activate", "y", *LVM), check=False)
    for group in sorted(_active() - before):
        _undo("vgchange", "--activate", "n", *LVM, group)
    run(("btrfs", "device", "scan"), check=False)


def _active() -> set[str]:
    """The groups with volumes that are active."""
    return {*run(("lvs", "--noheadings", "--options", "vg_name", "--select", "lv_active=active", *LVM),
                 check=False).split()}


def parse_arrays(text: str) -> Iterator[tuple[str, str]]:
    """The device and UUID of each array that mdadm --examine --scan lists.

    One that is called HOST:0 is /dev/md0 on its own host; here it would be taken for a stranger's, and get a number of
    the other end.
    """
    for line in text.splitlines():
        words = line.split()
        facts = dict(word.split("=", 1) for word in words if "=" in word)
        if words[:1] == ["ARRAY"] and len(words) > 1 and words[1].startswith("/dev/md") and "UUID" in facts:
            name = facts.get("name", words[1]).rpartition(":")[2].removeprefix("/dev/md").removeprefix("/")
            yield f"/dev/md{name}" if name.isdigit() else f"/dev/md/{name}", facts["UUID"]


def _assemble() -> None:
    """Arrays of which nothing is missing that they still had when they were last in use."""
    for path, id in parse_arrays(run(("mdadm", "--examine", "--scan"), check=False)):
        try:
            run(("mdadm", "--assemble", path, "--uuid", id))
        except CommandFailed:              # it runs already, or lacks a disk: mdadm's words are in the log
            continue
        _undo("mdadm", "--stop", path)


def _undo(*argv: str) -> None:
    with _OPENED.open("a") as file:
        file.write(_undoing(*argv))


def _undoing(*argv: str) -> str:
    return f"{shlex.join(argv)} || left=yes\n"


# Mounting

def mount(system: System) -> tuple[Difference, ...]:
    """The system and all that its fstab mounts, below OFFLINE, to be written to; what it comes up without is named.

    A journal that was not finished is finished by that. Raises Asleep; SystemIncomplete, and then leaves nothing
    mounted.
    """
    if system.asleep:
        raise _asleep()
    blocks = _blocks()
    wanted, differences = [], []
    for line in system.lines:
        if line.point == "/":
            continue
        found, why = _found(line, system, blocks)
        if found:
            wanted.append((line, found))
        elif line.needed:
            raise SystemIncomplete(
                f"{line.point} of {system.host} cannot be mounted: {why}",
                hint=f"Connect the disk of {line.source} and press ENTER; or give its line in the system's /etc/fstab "
                     "the word nofail.")
        else:
            differences.append(Difference(line.point, f"It is not mounted: {why}"))
    OFFLINE.mkdir(parents=True, exist_ok=True)
    if OFFLINE.is_mount():             # by an attempt that failed later
        run(("umount", "--recursive", str(OFFLINE)))
    root = next((line.options for line in system.lines if line.point == "/"), ("defaults",))
    try:
        _mount(system.block, system.block.content, root, OFFLINE)
        for line, block in wanted:
            try:
                _mount(block, line.type, line.options, OFFLINE / line.point.lstrip("/"))
            except (CommandFailed, OSError) as error:
                if line.needed:
                    raise _incomplete(line.point, block, error) from None
                differences.append(Difference(line.point, f"It is not mounted: {error}"))
    except CommandFailed as error:
        raise _incomplete("/", system.block, error) from None
    except BaseException:
        run(("umount", "--recursive", str(OFFLINE)), check=False)
        raise
    return tuple(differences)


def _found(line: Line, system: System, blocks: Sequence[Block]) -> tuple[Block | None, str]:
    """The device of a line, or why there is none."""
    if KERNEL_NAME.fullmatch(line.source) and not names_agree(system, blocks):
        return None, f"its /etc/fstab calls the disk {line.source}, and that name may be another disk's here."
    found = devices_of(line.source, blocks)
    if not found:
        return None, f"there is no {line.source} on this computer."
    if found[1:] and found[0].content != "btrfs":
        names = ", ".join(block.path for block in found)
        return None, f"{names} are each {line.source}: one is a copy of the other."
    return found[0], ""


def _mount(block: Block, type: str, options: Iterable[str], point: Path) -> None:
    if os.path.realpath(point) != str(point):
        raise CommandFailed("there is a symlink in its path")
    point.mkdir(parents=True, exist_ok=True)
    run(("mount", *(("-t", type) if type not in ("auto", "none") else ()), "-o", ",".join(options), block.path,
         str(point)))


def _incomplete(point: str, block: Block, error: Exception) -> SystemIncomplete:
    return SystemIncomplete(f"{point} could not be mounted from {block.path}: {error}",
                            hint="Look at it with a shell (S): fsck says whether it is damaged.",
                            untouched="What had been mounted was unmounted again. Nothing else was changed.")


def _asleep() -> Asleep:
    return Asleep("This computer was put to sleep (hibernated), and its memory is in its swap space.",
                  hint="Start it, shut it down, and prepare it then. Or start it without waking it (noresume).")
