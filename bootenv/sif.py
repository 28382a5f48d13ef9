"""asr.sif, the state file: one machine's layout, its backup and what must be known to bring it back.

TOML (https://toml.io/en/v1.0.0), UTF-8, at most 1 MiB so that it fits a 1.44 MB disk beside its log:

    signature = "Automated System Recovery"     schema = 1
    [set]         id, created, host, system, kernel, architecture, firmware, loader, memory
    [backup]      name, place, filesystem, path, label, files, bytes, network
    [[disk]]  [[partition]]  [[array]]  [[container]]  [[physical_volume]]  [[group]]  [[logical_volume]]
    [[filesystem]]  [[subvolume]]  [[mount]]  [[swap_file]]  [[boot_option]]
                  the records of bootenv.layout, field by field
    [provider]    name, options: whose backup it is if it isn't ours (provider.py)
    [[files]]     path, size, sha256: what lies beside asr.sif and goes along with the set (carried.py)
    [[commands]]  title, argv, when, where, critical: what runs before and after the restore (commands.py)
    …             tables of other products, kept as they are
    [checksum]    sha256 of every byte before this table; always the last

The file is read as hostile input: it may come from a damaged disk or from a stranger.
"""

import hashlib
import re
import tomllib
import uuid
from collections.abc import Collection, Iterable, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from graphlib import CycleError, TopologicalSorter
from typing import Any, get_args

import tomli_w

from .errors import DamagedSif, NewerSchema
from .layout import (
    EMPTY,
    BootOption,
    Disk,
    Filesystem,
    Layout,
    LogicalVolume,
    LuksContainer,
    MdArray,
    Mount,
    Partition,
    PhysicalVolume,
    Setting,
    Subvolume,
    SwapFile,
    VolumeGroup,
)
from .network import is_address

SIGNATURE = "Automated System Recovery"
SCHEMA = 2                             # 1 where none of these three is there, nor a network place: version 1 would
                                       # leave them out, or not look there
LIMIT = 2**20                          # bytes
_CHECKSUM = b"\n[checksum]\n"
# In the order of the file; each table is the field of Layout of the same name and an s.
_RECORDS: dict[str, type] = {
    "disk": Disk, "partition": Partition, "array": MdArray, "container": LuksContainer,
    "physical_volume": PhysicalVolume, "group": VolumeGroup, "logical_volume": LogicalVolume,
    "filesystem": Filesystem, "subvolume": Subvolume, "mount": Mount, "swap_file": SwapFile,
    "boot_option": BootOption,
}
_OWN = {"signature", "schema", "set", "backup", "provider", "files", "commands", "checksum", *_RECORDS}
_TABLES = ("layout", "backup", "provider", "files", "commands", "extra")    # of AsrSet; the other fields are in [set]
_HYBRID = re.compile(r"label-id: 0x[0-9a-f]{8}|\d+ : start=\d+(, size=\d+)?, type=[0-9a-f]+(, bootable)?")
_MOST_RECORDS = 4096
_MOST_BYTES = 2**63 - 1                # what the kernel's off_t holds
_MOST_FILES, _MOST_OF_FILES = 512, 2**29       # that a set carries along, and bytes: they lie in memory for a while
_MOST_WORDS = 256                      # of a command
# Firmware's names are the kernel's; FAT, mtools and options must not find anything of theirs in them.
DRIVERS, PROVIDERS = "drivers", "providers"                # folders beside asr.sif
CARRIED_PATH = re.compile(rf"({DRIVERS}|{PROVIDERS})(/\w[\w.,+~%@-]*)+", re.ASCII)
PROVIDER = re.compile(r"\w[\w.-]{0,40}", re.ASCII)         # its name, which is a file's
OPTION = re.compile(r"[a-z][a-z0-9-]{0,40}")               # the name of an option of it


@dataclass(frozen=True)
class BackupReference:
    """Where the backup was written, in the words of the user and of the disks."""

    name: str = ""                     # the file's name
    place: str = ""                    # the folder as the user gave it
    filesystem: str = ""               # UUID of the volume it lies on
    path: str = ""                     # folder inside that volume
    label: str = ""                    # the volume's label
    files: int = 0                     # counted before it was written
    bytes: int = 0
    network: str = ""                  # the folder's address, nfs:// or smb://, where it is on no volume


@dataclass(frozen=True)
class ProviderReference:
    """Another backup product that the set's backup is of: what bootenv.provider calls."""

    name: str                          # of its executable
    options: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class CarriedFile:
    """A driver, firmware or provider that goes along with a set."""

    path: str                          # below asr.sif's folder: "drivers/raid.ko", "drivers/firmware/rtl_nic/x.fw"
    size: int                          # bytes
    sha256: str


@dataclass(frozen=True)
class Command:
    """A program that the restore runs, beside all that it does by itself."""

    title: str                         # for people
    argv: tuple[str, ...]              # the first is a path, or found in PATH
    when: str                          # "before" or "after" the files are restored
    where: str = "recovery"            # in the recovery environment, or in the restored "system"
    critical: bool = False             # if it fails, the computer has not been recovered


@dataclass(frozen=True)
class AsrSet:
    """One machine's state and the backup that belongs to it."""

    id: str                            # UUID, the same in all three copies of asr.sif
    created: datetime                  # aware, UTC, whole seconds
    host: str
    system: str = ""                   # PRETTY_NAME of os-release
    kernel: str = ""
    architecture: str = ""
    firmware: str = "bios"             # "bios" or "uefi"
    memory: int = 0                    # bytes
    layout: Layout = EMPTY
    backup: BackupReference = BackupReference()
    loader: str = "grub"               # or "systemd-boot", "extlinux", "other"
    provider: ProviderReference | None = None  # None: the backup is ours
    files: tuple[CarriedFile, ...] = ()
    commands: tuple[Command, ...] = ()         # in the order in which they run
    extra: Mapping[str, Any] = field(default_factory=dict)

    def files_in(self, folder: str) -> tuple[CarriedFile, ...]:
        """What goes along in one of the folders beside asr.sif."""
        return tuple(file for file in self.files if file.path.startswith(f"{folder}/"))


def backup_of(set: AsrSet) -> str:
    """Where a set's backup was written, and by what, for people."""
    if set.provider:
        return f"{set.backup.place} ({set.backup.name}, by {set.provider.name})"
    return f"{set.backup.place.rstrip('/')}/{set.backup.name}"


def write_sif(set: AsrSet) -> bytes:
    """The bytes of asr.sif. Raises ValueError when the machine is too large for the file."""
    head = {f.name: getattr(set, f.name) for f in fields(set) if f.name not in _TABLES}
    schema = SCHEMA if set.files or set.commands or set.provider or set.backup.network else 1
    backup = asdict(set.backup)
    if not set.backup.network:
        del backup["network"]
    document: dict[str, Any] = {"signature": SIGNATURE, "schema": schema, "set": head, "backup": backup}
    for table in _RECORDS:
        records = [_lean(record) for record in getattr(set.layout, table + "s")]
        if records:
            document[table] = records
    if set.provider:
        document["provider"] = _lean(set.provider)
    document |= {table: [_lean(record) for record in getattr(set, table)]
                 for table in ("files", "commands") if getattr(set, table)}
    document |= set.extra
    text = tomli_w.dumps(document, multiline_strings=False).encode()
    sif = text.rstrip(b"\n") + b"\n" + _CHECKSUM + f'sha256 = "{_digest(text)}"\n'.encode()
    if len(sif) > LIMIT:
        raise ValueError(f"asr.sif would have {len(sif)} bytes, more than {LIMIT}")
    return sif


def read_sif(data: bytes) -> AsrSet:
    """The set that asr.sif describes. Raises DamagedSif, and NewerSchema for a later version's file."""
    if len(data) > LIMIT:
        raise _damaged("it is larger than an asr.sif can be")
    text, found, seal = data.rpartition(_CHECKSUM)
    if not found or not re.fullmatch(rb'sha256 = "([0-9a-f]{64})"\s*', seal):
        raise _damaged("its end is missing")
    # tomllib takes quadratic time for a key of many parts; ours have two.
    if any(key.count(b".") > 8 for key in re.findall(rb"^[^=\"']*", data, re.MULTILINE)):
        raise _damaged("it is not the text that was written")
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError):
        raise _damaged("it is not the text that was written") from None
    if document.get("signature") != SIGNATURE:
        raise _damaged("it is not the state file of an ASR set")
    if _digest(text) != _table(document, "checksum").get("sha256"):
        raise _damaged("its checksum does not match")
    schema = document.get("schema")
    if not isinstance(schema, int) or schema < 1:
        raise _damaged("it does not say its version")
    if schema > SCHEMA:
        raise NewerSchema(
            f"The ASR disk was written by a newer version (schema {schema}; this medium reads {SCHEMA}).",
            hint="Boot a recovery medium at least as new as the ASR disk.",
        )
    layout = Layout(**{table + "s": tuple(_records(document, table, kind)) for table, kind in _RECORDS.items()})
    backup = _record(BackupReference, _table(document, "backup"), "backup")
    head = _record(AsrSet, _table(document, "set"), "set")
    extra = {key: value for key, value in document.items() if key not in _OWN}
    provider = _record(ProviderReference, document["provider"], "provider") if "provider" in document else None
    set = replace(head, layout=layout, backup=backup, provider=provider, extra=extra,
                  files=tuple(_records(document, "files", CarriedFile)),
                  commands=tuple(_records(document, "commands", Command)))
    _check(set)
    return set


def _digest(text: bytes) -> str:
    # The blank line before the seal belongs to neither: editors and mail add and drop it.
    return hashlib.sha256(text.rstrip(b"\n")).hexdigest()


def _lean(record: Any) -> dict[str, Any]:
    """A record without what is as it mostly is: the file is read by people. The id comes first."""
    default = {f.name: f.default for f in fields(record) if f.default is not MISSING}
    found = {key: value for key, value in asdict(record).items() if value != {} and value != default.get(key, MISSING)}
    return {key: found[key] for key in sorted(found, key=lambda key: key != "id")}


def _table(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name)
    if not isinstance(table, dict):
        raise _damaged(f"the table [{name}] is missing")
    return table


def _records(document: Mapping[str, Any], table: str, kind: type):
    rows = document.get(table, [])
    if not isinstance(rows, list) or len(rows) > _MOST_RECORDS:
        raise _damaged(f"the table [[{table}]] has a wrong form")
    for row in rows:
        yield _record(kind, row, table)


def _record(kind: type, row: Any, table: str) -> Any:
    try:
        return record_of(kind, row)
    except ValueError as error:
        raise _damaged(f"in [{table}], {error}") from None


# A key that this version doesn't know is a mistake in the file, not an extension: extensions are tables.
def record_of(kind: type, row: Any) -> Any:
    """A record of TOML's values. Raises ValueError, which says what is wrong with them."""
    if not isinstance(row, dict):
        raise ValueError("an entry is no table")
    known = {f.name: f.type for f in fields(kind)}
    for key, value in row.items():
        if key not in known or not _fits(value, known[key]):
            raise ValueError(f"the entry {key!r} has a wrong form")
    needed = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    if missing := [name for name in needed if name not in row]:
        raise ValueError(f"the entry {missing[0]!r} is missing")
    return kind(**{key: _frozen(value) for key, value in row.items()})


def _fits(value: Any, kind: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_BYTES
    if kind is str:
        return isinstance(value, str) and "\0" not in value and len(value) <= 4096
    if kind is datetime:
        return isinstance(value, datetime) and value.tzinfo is not None
    if kind == tuple[str, ...]:
        return isinstance(value, list) and all(_fits(v, str) for v in value)
    # Settings of a file system: scalars and lists of words.
    return isinstance(value, dict) and all(any(_fits(v, k) for k in get_args(Setting)) for v in value.values())


def _frozen(value: Any) -> Any:
    """TOML's lists, as records have them."""
    if isinstance(value, list):
        return tuple(value)
    return {key: _frozen(inner) for key, inner in value.items()} if isinstance(value, dict) else value


def _check(set: AsrSet) -> None:
    """What the types don't say: ids that refer to something, places inside their disk, sane names."""
    try:
        uuid.UUID(set.id)
    except ValueError:
        raise _damaged("the set id is not a UUID") from None
    if set.firmware not in ("bios", "uefi"):
        raise _damaged("the firmware is neither bios nor uefi")
    if "/" in set.backup.name:
        raise _damaged("the backup's name is a path")
    if set.backup.network and not is_address(set.backup.network):
        raise _damaged("the backup's place on the network has no address that there is")
    if set.loader not in ("grub", "systemd-boot", "extlinux", "other"):
        raise _damaged("the boot loader is of no known kind")
    if set.provider and not (PROVIDER.fullmatch(set.provider.name) and all(
            OPTION.fullmatch(key) and isinstance(value, str) for key, value in set.provider.options.items())):
        raise _damaged("the provider has a name or options that there are not")
    if why := why_not_carried(set.files):
        raise _damaged(why)
    for command in set.commands:
        if why := why_wrong(command):
            raise _damaged(f"the command {command.title!r}: {why}")
    layout = set.layout
    _check_ids(layout)
    _check_tables(layout)
    _check_volumes(layout)
    _check_mounts(layout)


def why_not_carried(files: Iterable[CarriedFile]) -> str:
    """Why files can't go along together, a clause; "" if they can.

    They become files on a FAT disk, in the memory of the recovery environment and on the target.
    """
    files = list(files)
    for file in files:
        if not CARRIED_PATH.fullmatch(file.path) or len(file.path) > 200 or file.path.count("/") > 8:
            return f"{file.path!r} is no path of a file that goes along"
        if not re.fullmatch(r"[0-9a-f]{64}", file.sha256):
            return f"the checksum of {file.path} has a wrong form"
    if len(files) > _MOST_FILES or sum(file.size for file in files) > _MOST_OF_FILES:
        return f"more than {_MOST_FILES} files or {_MOST_OF_FILES >> 20} MB go along"
    paths = [file.path.lower() for file in files]          # FAT knows no case
    folders = {path.rsplit("/", up)[0] for path in paths for up in range(1, path.count("/") + 1)}
    if len(paths) != len({*paths}) or folders & {*paths}:
        return "two files that go along have the same name"
    return ""


def why_wrong(command: Command) -> str:
    """Why a command can't be one, a clause; "" if it can."""
    if not command.title.isprintable() or not 0 < len(command.title) <= 100:
        return "its title is not one line of up to 100 characters"
    if not 0 < len(command.argv) <= _MOST_WORDS or not re.fullmatch(r"[\w/.][^\n]*", command.argv[0]):
        return "argv names no program"
    if "/" in command.argv[0] and not command.argv[0].startswith("/"):
        return f"{command.argv[0]} is a path that does not begin at the root"
    if command.when not in ("before", "after"):
        return 'when is neither "before" nor "after"'
    if command.where not in ("recovery", "system"):
        return 'where is neither "recovery" nor "system"'
    if (command.when, command.where) == ("before", "system"):
        return "before the restore there is no system that it could run in"
    return ""


def _check_ids(layout: Layout) -> None:
    devices = [device.id for device in layout.devices]
    if len(devices) != len({*devices}):
        raise _damaged("two devices have the same id")
    known = {*devices}
    filesystems = {f.id for f in layout.filesystems}
    groups = {g.id for g in layout.groups}
    tables = {d.id for d in layout.tables}
    refers: list[tuple[str, str, Iterable[str], Collection[str]]] = [
        *(("partition", p.id, (p.disk,), tables) for p in layout.partitions),
        *(("array", a.id, filter(None, (*a.members, *a.spares)), known) for a in layout.arrays),
        *(("container", c.id, (c.device,), known) for c in layout.containers),
        *(("physical volume", v.id, (v.device,), known) for v in layout.physical_volumes),
        *(("physical volume", v.id, (v.group,), {*groups, ""}) for v in layout.physical_volumes),
        *(("logical volume", v.id, (v.group,), groups) for v in layout.logical_volumes),
        *(("logical volume", v.id, (v.pool,), {*known, ""}) for v in layout.logical_volumes),
        *(("logical volume", v.id, v.volumes, {v.id for v in layout.physical_volumes}) for v in layout.logical_volumes),
        *(("file system", f.id, layout.devices_of(f), known) for f in layout.filesystems),
        *(("subvolume", s.path, (s.filesystem,), filesystems) for s in layout.subvolumes),
        *(("mount point", m.point, (m.filesystem,), filesystems) for m in layout.mounts),
        *(("boot option", b.id, (b.partition,), known) for b in layout.boot_options),
    ]
    for kind, id, ids, there in refers:
        if not all(other in there for other in ids):
            raise _damaged(f"the {kind} {id} lies on what is not recorded")
    # Nothing may lie on itself, by whatever way round.
    try:
        TopologicalSorter({device: layout.below(device) for device in devices}).prepare()
    except CycleError:
        raise _damaged("its devices lie on each other") from None


def _check_tables(layout: Layout) -> None:
    """These become lines of an sfdisk script: no word may end its line or its quotes."""
    words = [(d.id, word) for d in layout.tables for word in (d.label, d.label_id)]
    words += [(p.id, word) for p in layout.partitions
              for word in (p.type, p.uuid, p.attrs.replace(",", "").replace(" ", "").replace(":", ""))]
    for id, word in words:
        if not re.fullmatch(r"[\w-]*", word, re.ASCII):
            raise _damaged(f"the entry of {id} has a wrong form")
    if not all(_HYBRID.fullmatch(line) for disk in layout.disks for line in disk.hybrid):
        raise _damaged("a hybrid MBR has a wrong form")
    for disk in layout.tables:
        if disk.label not in ("", "gpt", "dos") or disk.sector_size not in (512, 1024, 2048, 4096):
            raise _damaged(f"disk {disk.id} has a table of no known kind")
        if not disk.path.startswith("/dev/") or "/../" in disk.path:
            raise _damaged(f"{disk.path} is no device")
    sizes = {d.id: d.size for d in layout.tables}
    for partition in layout.partitions:
        if not 0 < partition.number <= 256 or partition.start + partition.size > sizes[partition.disk]:
            raise _damaged(f"partition {partition.id} lies outside its disk")


def _check_volumes(layout: Layout) -> None:
    """These become words of commands: none may be taken for an option, or for a path of another device."""
    names = [*(c.name for c in layout.containers if c.name), *(g.name for g in layout.groups),
             *(v.name for v in layout.logical_volumes)]
    # lvm(8), "VALID NAMES"; of the device mapper's own no more are needed.
    bad = [name for name in names if not re.fullmatch(r"[\w+.][\w+.-]*", name, re.ASCII) or name in (".", "..")]
    ids = [*(a.id for a in layout.arrays), *(c.id for c in layout.containers), *(v.id for v in layout.physical_volumes),
           *(g.uuid for g in layout.groups), *(v.uuid for v in layout.logical_volumes)]
    bad += [id for id in ids if not re.fullmatch(r"[\w:-]*(#\d+)?", id, re.ASCII)]
    words = [*(w for a in layout.arrays for w in (a.level, a.metadata, a.layout, a.bitmap)),
             *(w for c in layout.containers for w in (c.cipher, c.hash, c.pbkdf, *c.tokens, *c.flags)),
             *(w for v in layout.logical_volumes for w in (v.type, v.discards)),
             *(tag for g in layout.groups for tag in g.tags), *(tag for v in layout.logical_volumes for tag in v.tags)]
    bad += [word for word in words if not re.fullmatch(r"[\w][\w+./=!:&#-]*|", word, re.ASCII)]
    if bad:
        raise _damaged(f"{bad[0]!r} is no name that there is")


def _check_mounts(layout: Layout) -> None:
    for filesystem in layout.filesystems:
        if not re.fullmatch(r"[\w.-]+", filesystem.type) or filesystem.uuid.startswith("-"):
            raise _damaged(f"file system {filesystem.id} is of no known kind")
    paths = [*(s.path for s in layout.subvolumes), *(m.subvolume for m in layout.mounts if m.subvolume)]
    for path in paths:
        if not path or path.startswith(("/", "-")) or ".." in path.split("/"):
            raise _damaged(f"the subvolume {path!r} is no path")
    for point in (*(m.point for m in layout.mounts), *(f.path for f in layout.swap_files)):
        if not point.startswith("/") or ".." in point.split("/"):
            raise _damaged(f"mount point {point!r} is not an absolute path")
    for mount in layout.mounts:
        if "," in mount.subvolume:               # it becomes one of mount's options
            raise _damaged(f"the subvolume {mount.subvolume!r} cannot be mounted")
        if mount.mode > 0o7777 or max(mount.owner, mount.group) >= 2**32 - 1:
            raise _damaged(f"mount point {mount.point!r} has an owner or mode that there is not")


def _damaged(why: str) -> DamagedSif:
    return DamagedSif(
        f"The file ASR.SIF is damaged: {why}.",
        hint="Insert another ASR disk of this computer, or copy asr.sif from the backup's first member onto this one.",
        untouched="No disk of this computer was changed.",
    )


def new_id() -> str:
    return str(uuid.uuid4())


def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
