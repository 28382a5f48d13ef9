"""asr.sif, the state file: one machine's layout, its backup and what must be known to bring it back.

TOML (https://toml.io/en/v1.0.0), UTF-8, at most 1 MiB so that it fits a 1.44 MB disk beside its log:

    signature = "Automated System Recovery"     schema = 1
    [set]         id, created, host, system, kernel, architecture, firmware, memory
    [backup]      name, place, filesystem, path, label, files, bytes
    [[disk]]  [[partition]]  [[filesystem]]  [[mount]]      the records of bootenv.layout, field by field
    …             tables of other products, kept as they are
    [checksum]    sha256 of every byte before this table; always the last

The file is read as hostile input: it may come from a damaged disk or from a stranger.
"""

import hashlib
import re
import tomllib
import uuid
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

import tomli_w

from .errors import DamagedSif, NewerSchema
from .layout import EMPTY, Disk, Filesystem, Layout, Mount, Partition

SIGNATURE = "Automated System Recovery"
SCHEMA = 1
LIMIT = 2**20                          # bytes
_CHECKSUM = b"\n[checksum]\n"
_RECORDS: dict[str, type] = {"disk": Disk, "partition": Partition, "filesystem": Filesystem, "mount": Mount}
_OWN = {"signature", "schema", "set", "backup", "checksum", *_RECORDS}
_MOST_RECORDS = 4096
_MOST_BYTES = 2**63 - 1                # what the kernel's off_t holds


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
    extra: Mapping[str, Any] = field(default_factory=dict)


def write_sif(set: AsrSet) -> bytes:
    """The bytes of asr.sif. Raises ValueError when the machine is too large for the file."""
    head = {f.name: getattr(set, f.name) for f in fields(set) if f.name not in ("layout", "backup", "extra")}
    document: dict[str, Any] = {"signature": SIGNATURE, "schema": SCHEMA, "set": head, "backup": asdict(set.backup)}
    for table in _RECORDS:
        records = [_lean(record) for record in getattr(set.layout, table + "s")]
        if records:
            document[table] = records
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
    layout = Layout(**{table + "s": tuple(_records(document, table)) for table in _RECORDS})
    backup = _record(BackupReference, _table(document, "backup"), "backup")
    head = _record(AsrSet, _table(document, "set"), "set")
    extra = {key: value for key, value in document.items() if key not in _OWN}
    set = AsrSet(**{**{f.name: getattr(head, f.name) for f in fields(head)},
                    "layout": layout, "backup": backup, "extra": extra})
    _check(set)
    return set


def _digest(text: bytes) -> str:
    # The blank line before the seal belongs to neither: editors and mail add and drop it.
    return hashlib.sha256(text.rstrip(b"\n")).hexdigest()


def _lean(record: Any) -> dict[str, Any]:
    """A record without what is empty: the file is read by people."""
    return {key: value for key, value in asdict(record).items() if value is not False and value not in ("", {})}


def _table(document: Mapping[str, Any], name: str) -> dict[str, Any]:
    table = document.get(name)
    if not isinstance(table, dict):
        raise _damaged(f"the table [{name}] is missing")
    return table


def _records(document: Mapping[str, Any], table: str):
    rows = document.get(table, [])
    if not isinstance(rows, list) or len(rows) > _MOST_RECORDS:
        raise _damaged(f"the table [[{table}]] has a wrong form")
    for row in rows:
        yield _record(_RECORDS[table], row, table)


# A key that this version doesn't know is a mistake in the file, not an extension: extensions are tables.
def _record(kind: type, row: Any, table: str) -> Any:
    if not isinstance(row, dict):
        raise _damaged(f"the table [{table}] has a wrong form")
    known = {f.name: f.type for f in fields(kind)}
    for key, value in row.items():
        if key not in known or not _fits(value, known[key]):
            raise _damaged(f"the entry {key!r} of [{table}] has a wrong form")
    try:
        return kind(**row)
    except TypeError as error:
        raise _damaged(f"the table [{table}] is incomplete ({error})") from None


def _fits(value: Any, kind: Any) -> bool:
    if kind is bool:
        return isinstance(value, bool)
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_BYTES
    if kind is str:
        return isinstance(value, str) and "\0" not in value and len(value) <= 4096
    if kind is datetime:
        return isinstance(value, datetime) and value.tzinfo is not None
    # Settings of a file system: scalars and lists of words.
    return isinstance(value, dict) and all(_is_setting(v) for v in value.values())


def _is_setting(value: Any) -> bool:
    if isinstance(value, list):
        return all(isinstance(v, str) and _fits(v, str) for v in value)
    return _fits(value, bool) or _fits(value, int) or _fits(value, str)


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
    layout = set.layout
    records: tuple[Disk | Partition, ...] = (*layout.disks, *layout.partitions)
    devices = [r.id for r in records]
    if len(devices) != len(dict.fromkeys(devices)):
        raise _damaged("two devices have the same id")
    for record in records:
        # These become lines of an sfdisk script: no word may end its line or its quotes.
        words = (record.label, record.label_id) if isinstance(record, Disk) else \
            (record.type, record.uuid, record.attrs.replace(",", "").replace(" ", "").replace(":", ""))
        if not all(re.fullmatch(r"[\w-]*", word, re.ASCII) for word in words):
            raise _damaged(f"the entry of {record.id} has a wrong form")
    for disk in layout.disks:
        if disk.label not in ("", "gpt", "dos") or disk.sector_size not in (512, 1024, 2048, 4096):
            raise _damaged(f"disk {disk.id} has a table of no known kind")
    sizes = {d.id: d.size for d in layout.disks}
    for partition in layout.partitions:
        if partition.disk not in sizes:
            raise _damaged(f"partition {partition.id} lies on no disk")
        if not 0 < partition.number <= 256 or partition.start + partition.size > sizes[partition.disk]:
            raise _damaged(f"partition {partition.id} lies outside its disk")
    for filesystem in layout.filesystems:
        if filesystem.device not in devices:
            raise _damaged(f"file system {filesystem.id} lies on no device")
        if not re.fullmatch(r"[\w.-]+", filesystem.type) or filesystem.uuid.startswith("-"):
            raise _damaged(f"file system {filesystem.id} is of no known kind")
    for mount in layout.mounts:
        if mount.filesystem not in [f.id for f in layout.filesystems]:
            raise _damaged(f"mount point {mount.point} has no file system")
        if not mount.point.startswith("/") or ".." in mount.point.split("/"):
            raise _damaged(f"mount point {mount.point!r} is not an absolute path")
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
