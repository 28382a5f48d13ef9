"""OS restore, the second stage: from the minimal OS on the hard disk to the machine as it was."""

import json
import os
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from .asr_disk import SIF
from .backup import read_first, restore_backup
from .bootloader import MEDIUM, RECOVERY, install_system, recovery_mount
from .errors import AsrError, BackupNotFound, DamagedBackup, DamagedSif, NewerSchema, NoAsrDisk, OtherSet
from .events import Difference, Event, Progress
from .layout import Layout
from .match import located
from .probe import probe
from .recover import Check, restart
from .run import LOG, STATE, log, run
from .sif import AsrSet, read_sif
from .target import mounted

__all__ = ["Check", "FoundBackup", "Outcome", "checks", "find_backup", "open_backup", "pending_set", "restart",
           "restore"]

_VOLUMES = STATE / "volumes"           # where volumes are mounted read-only while the backup is looked for
_SUFFIXES = (".tar.zst", ".tar.zst.001")
_DEPTH = 6                             # folders below a volume's root that are searched
_REPORTS = Path("var/log/asr")         # in the recovered system


@dataclass(frozen=True)
class FoundBackup:
    """A backup of this set that can be read now."""

    path: str
    place: str                         # for people: folder and disk
    set: AsrSet


@dataclass(frozen=True)
class Outcome:
    """How the restore ended, never better than it was."""

    result: str                        # "recovered" or "differences"
    differences: tuple[Difference, ...]
    seconds: float
    files: int
    bytes: int
    report: str                        # path in the recovered system


def pending_set() -> AsrSet:
    """The set whose restore is due, from the folder that this minimal OS was started from."""
    try:
        return read_sif((MEDIUM / RECOVERY / SIF).read_bytes())
    except OSError:
        raise NoAsrDisk("The recovery folder of this hard disk has no asr.sif.",
                        hint="Start again from the recovery medium.") from None


def checks(set: AsrSet) -> Iterator[Check]:
    """What must hold before the restore starts; the wizard's countdown runs only while all do."""
    yield Check(f"State of {set.host}, created {set.created:%Y-%m-%d %H:%M} UTC")
    yield _checked("Hard disks as they were recorded", lambda: located(set.layout, probe()))
    yield _checked("Backup of this set", lambda: find_backup(set))


def find_backup(set: AsrSet) -> FoundBackup:
    """The set's backup: at its recorded place, else wherever a reachable volume has it. Raises BackupNotFound."""
    volumes = list(_mount_volumes(set))
    searched = []
    for volume in sorted(volumes, key=lambda v: v.uuid != set.backup.filesystem):
        recorded = volume.point / set.backup.path.lstrip("/") / set.backup.name
        for path in (recorded, *_backups_on(volume.point)):
            if _set_id(path) == set.id:
                return FoundBackup(str(path), volume.name_of(path), set)
        searched.append(volume.name)
    raise BackupNotFound(
        f"The backup {set.backup.name} of set {set.id} is on none of the disks that can be read: "
        f"{', '.join(searched) or 'there is no other disk'}. It was written to {set.backup.place}"
        + (f" on the volume {set.backup.label}." if set.backup.label else "."),
        hint="Connect the disk that holds it and press ENTER, or press B and name the file.",
        untouched="No file was restored yet. The disks stay as Setup formatted them.",
    )


def open_backup(path: str, set: AsrSet) -> FoundBackup:
    """The backup at a path that a person named. Raises BackupNotFound, DamagedBackup, OtherSet."""
    if not os.path.isfile(path):
        raise BackupNotFound(f"There is no file {path}.", hint="Type the path again.",
                             untouched="No file was restored.")
    other = read_sif(read_first(Path(path)))
    if other.id != set.id:
        raise OtherSet(
            f"The backup belongs to another ASR set: expected {set.host}, {set.created:%Y-%m-%d %H:%M}; "
            f"found {other.host}, {other.created:%Y-%m-%d %H:%M}.",
            hint="Choose the backup that was made together with the ASR disk.", untouched="No file was restored.")
    return FoundBackup(path, path, set)


def restore(set: AsrSet, backup: FoundBackup) -> Generator[Event, None, Outcome]:
    """Puts the files back, makes the disk start the restored system, and returns the Outcome.

    It may be run again after a power cut: what is there already is made anew.
    """
    started = time.monotonic()
    differences: list[Difference] = []
    last = Progress("")
    layout = located(set.layout, probe())
    log(f"Restoring {set.host}, set {set.id}, from {backup.path}")
    with mounted(layout) as target:
        for event in _work(layout, backup, target):
            if isinstance(event, Difference):
                differences.append(event)
                log(f"DIFFERENCE {event.what}: {event.why}")
            elif event.total_files:
                last = event
            yield event
        outcome = Outcome("differences" if differences else "recovered", tuple(differences),
                          time.monotonic() - started, last.files, last.done, "/" + str(_REPORTS / "report.txt"))
        _write_report(set, outcome, target)
    _take_minimal_away(layout)
    _unmount_volumes()
    return outcome


def _work(layout: Layout, backup: FoundBackup, target: Path) -> Iterator[Event]:
    yield from restore_backup(Path(backup.path), target)
    yield from install_system(layout, target)


def _write_report(set: AsrSet, outcome: Outcome, target: Path) -> None:
    """The report and Setup's log, into the recovered system."""
    folder = target / _REPORTS
    folder.mkdir(parents=True, exist_ok=True)
    result = {"recovered": "recovered", "differences": f"recovered with {len(outcome.differences)} differences"}
    lines = [f"{set.host}: {result[outcome.result]}", f"ASR set {set.id} of {set.created:%Y-%m-%d %H:%M} UTC",
             f"{outcome.files} files, {outcome.bytes} bytes, {outcome.seconds:.0f} seconds", ""]
    lines += [f"{d.what}: {d.why}" for d in outcome.differences]
    (folder / "report.txt").write_text("\n".join(lines) + "\n", errors="backslashreplace")
    (folder / LOG.name).write_bytes(_first_log() + LOG.read_bytes())


def _first_log() -> bytes:
    log_of_boot_recovery = MEDIUM / RECOVERY / LOG.name
    return log_of_boot_recovery.read_bytes() if log_of_boot_recovery.exists() else b""


def _take_minimal_away(layout: Layout) -> None:
    """The minimal OS still runs from its folder; PID 1 removes it when nothing uses it any more."""
    device = layout.path(layout.filesystem(recovery_mount(layout).filesystem).device)
    (STATE / "remove-on-exit").write_text(f"{device} {RECOVERY}\n")


@dataclass(frozen=True)
class _Volume:
    point: Path
    device: str
    uuid: str
    label: str

    @property
    def name(self) -> str:
        return f"{self.label} ({self.device})" if self.label else self.device

    def name_of(self, path: Path) -> str:
        return f"/{path.relative_to(self.point)} on {self.name}"


def _mount_volumes(set: AsrSet) -> Iterator[_Volume]:
    """Every volume that is not being recovered, mounted read-only."""
    own = {f.uuid for f in set.layout.filesystems if f.uuid}
    rows = run(("lsblk", "--json", "--list", "--output", "PATH,TYPE,FSTYPE,UUID,LABEL"))
    for row in json.loads(rows)["blockdevices"]:
        if not row["fstype"] or row["type"] == "loop" or row["uuid"] in own or row["fstype"] in ("swap", "squashfs"):
            continue
        point = _VOLUMES / row["path"].removeprefix("/dev/").replace("/", "-")
        point.mkdir(parents=True, exist_ok=True)
        if not point.is_mount():
            run(("mount", "-o", "ro", row["path"], str(point)), check=False)
        if point.is_mount():
            yield _Volume(point, row["path"], row["uuid"] or "", row["label"] or "")


def _unmount_volumes() -> None:
    for point in _VOLUMES.iterdir() if _VOLUMES.exists() else ():
        run(("umount", "--lazy", str(point)), check=False)


def _backups_on(point: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(point):
        if len(Path(folder).relative_to(point).parts) >= _DEPTH:
            folders.clear()
        yield from (Path(folder) / name for name in sorted(files) if name.endswith(_SUFFIXES))


def _set_id(path: Path) -> str:
    """The set id of a backup; "" for what is not a readable one."""
    try:
        return read_sif(read_first(path)).id
    except (OSError, DamagedBackup, DamagedSif, NewerSchema):
        return ""


def _checked(title: str, look: Callable[[], object]) -> Check:
    try:
        look()
    except AsrError as error:
        return Check(title, error)
    return Check(title)
