"""OS restore, the second stage: from the minimal OS on the hard disk to the machine as it was."""

import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path

from .asr_disk import SIF
from .backup import restore_backup
from .bootloader import MEDIUM, RECOVERY, install_system, recovery_folder, recovery_mount
from .errors import AsrError, NoAsrDisk
from .events import Difference, Event, Progress
from .layout import Layout
from .match import located
from .probe import probe
from .recover import Check, restart
from .run import LOG, STATE, log
from .sif import AsrSet, read_sif
from .target import mounted
from .volumes import FoundBackup, find_backup, forget, open_backup

__all__ = ["Check", "FoundBackup", "Outcome", "checks", "find_backup", "open_backup", "pending_set", "restart",
           "restore"]

_REPORTS = Path("var/log/asr")         # in the recovered system


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
    forget()
    return outcome


def _work(layout: Layout, backup: FoundBackup, target: Path) -> Iterator[Event]:
    journal = recovery_folder(layout, target) / "journal"      # goes with the minimal OS
    yield from restore_backup(Path(backup.path), target, journal=journal)
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


def _checked(title: str, look: Callable[[], object]) -> Check:
    try:
        look()
    except AsrError as error:
        return Check(title, error)
    return Check(title)
