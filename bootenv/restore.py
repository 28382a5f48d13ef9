"""OS restore, the second stage: from the minimal OS on the hard disk to the machine as it was."""

import os
import shutil
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from .asr_disk import SIF, AsrDisk
from .backup import check_whole, list_backup, restore_backup
from .bootloader import (
    MEDIUM,
    RECOVERY,
    esp_mounts,
    install_system,
    left_by_minimal,
    own_fallback,
    recovery_folder,
    remove_minimal,
)
from .carried import gather
from .commands import run_commands
from .errors import AsrError, NoAsrDisk, WrongPassphrase
from .events import Difference, Event, Progress, noted
from .layout import Layout, LuksContainer
from .match import located
from .network import NetworkPlace
from .prepare import HEADERS as SAVED_HEADERS
from .probe import probe
from .provider import make_plan, provider_of, restore_files, secret_of
from .recover import Check, Lock, restart
from .run import LOG, log
from .sif import PROVIDERS, AsrSet, read_sif
from .target import assembled, enroll_keys, make_swap_files, mounted, set_read_only, write_all_out
from .volumes import FoundBackup, find_backup, forget, open_backup, password_wanted

__all__ = ["Check", "FoundBackup", "Lock", "Outcome", "checks", "find_backup", "locks", "open_backup", "opens",
           "pending_set", "questions", "restart", "restore", "server_to_ask"]

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
    if set.provider:
        yield _checked(f"Backup by {set.provider.name}",
                       lambda: make_plan(_program(set), set, "restore", find_backup(set).path))
    else:
        yield _checked("Backup of this set", lambda: check_whole(Path(find_backup(set).path)))


def server_to_ask(set: AsrSet) -> NetworkPlace | None:
    """The place on the network whose password must be said before the restore; None if none must be."""
    return password_wanted(set)


def questions(set: AsrSet, backup: FoundBackup, secrets: Mapping[str, bytes] | None = None) -> Mapping[str, str]:
    """The secrets that a provider needs a person for, and what to ask for each, beside those that it has.

    Raises NoProvider, ProviderFailed.
    """
    if not set.provider:
        return {}
    asked = make_plan(_program(set), set, "restore", backup.path, secrets).questions
    return {secret_of(name): question for name, question in asked.items()}


def _program(set: AsrSet) -> Path:
    """The set's provider, from the folder that this minimal OS was started from. Raises NoProvider."""
    gather(AsrDisk(str(MEDIUM / RECOVERY), "", set), PROVIDERS)
    return provider_of(set)


def locks(set: AsrSet) -> tuple[Lock, ...]:
    """The encrypted volumes whose passphrase is needed, each after those that it lies on."""
    return tuple(Lock(device, header=True) for device in set.layout.bottom_up() if isinstance(device, LuksContainer)
                 and device.name and not os.path.exists(set.layout.path(device.id)))


def opens(set: AsrSet, lock: Lock, secrets: Mapping[str, bytes], passphrase: bytes) -> bool:
    """Whether a passphrase opens a volume, given those of the ones below it.

    What it lies on is put together for that, and taken apart again. Raises TargetNotMounted, and WrongPassphrase if
    one of those below stays closed.
    """
    layout = located(set.layout, probe())
    try:
        with assembled(layout, {**secrets, lock.container.id: passphrase}, lock.container.id):
            return True
    except WrongPassphrase as error:
        if error.container != lock.container.id:
            raise
        return False


def restore(set: AsrSet, backup: FoundBackup, secrets: Mapping[str, bytes] | None = None
            ) -> Generator[Event, None, Outcome]:
    """Puts the files back, makes the disk start the restored system, and returns the Outcome.

    `secrets`: passphrases by the ids of their containers. It may be run again after a power cut: what is there
    already is made anew.
    """
    started = time.monotonic()
    differences: list[Difference] = []
    last = Progress("")
    layout = located(set.layout, probe())
    log(f"Restoring {set.host}, set {set.id}, from {backup.path}")
    with mounted(layout, secrets) as target:
        for event in noted(_work(set, layout, backup, target, secrets or {}), differences):
            if isinstance(event, Progress) and event.total_files:
                last = event
            yield event
        outcome = Outcome("differences" if differences else "recovered", tuple(differences),
                          time.monotonic() - started, last.files, last.done, "/" + str(_REPORTS / "report.txt"))
        _write_report(set, outcome, target)
    forget()
    return outcome


def _work(set: AsrSet, layout: Layout, backup: FoundBackup, target: Path, secrets: Mapping[str, bytes]
          ) -> Generator[Event, None, None]:
    journal = recovery_folder(layout, target) / "journal"      # goes with the minimal OS
    set_read_only(layout, target, False)                       # an earlier run may have come that far
    with own_fallback(set, layout, target):
        yield from run_commands(set.commands, "before", target)
        if set.provider:
            yield from restore_files(_program(set), set, backup.path, target, secrets)
        else:
            yield from restore_backup(Path(backup.path), target, journal=journal)
        shutil.rmtree(target / SAVED_HEADERS, ignore_errors=True)  # they are on their disks
        yield from make_swap_files(layout, target)
        yield from enroll_keys(layout, target, secrets)
        # What they change, the initramfs and read-only subvolumes are to have.
        yield from run_commands(set.commands, "after", target)
        yield from install_system(set, layout, target)
    set_read_only(layout, target, True)
    in_backup = left_by_minimal(layout, target)
    if not set.provider:
        in_backup = _in_backup(Path(backup.path), layout) or in_backup
    yield from remove_minimal(set, layout, target, in_backup)
    yield from write_all_out(layout, target)


def _in_backup(backup: Path, layout: Layout) -> Callable[[str], bool] | None:
    """Whether the backup has a path on an EFI system partition, which knows no case; None without its index."""
    points = tuple(m.point.strip("/").lower() + "/" for m in esp_mounts(layout))
    try:
        names = (os.fsdecode(record.path).lower() for record in list_backup(backup)) if points else iter(())
        known = {name.rstrip("/") for name in names if name.startswith(points)}
    except AsrError as error:
        log(f"What the backup has on the EFI system partition is not known: {error}")
        return None
    return lambda path: path.strip("/").lower() in known


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


def _checked(title: str, look: Callable[[], object]) -> Check:
    try:
        look()
    except AsrError as error:
        return Check(title, error)
    return Check(title)
