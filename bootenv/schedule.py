"""Scheduled jobs: a systemd timer and service each, which are all that is kept of a job.

A job runs `asr prepare` without a person: only to a destination that is there, its output in the journal, and what
fails is said at the next login. https://www.freedesktop.org/software/systemd/man/latest/systemd.time.html
"""

import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from . import network
from .archive import files_of
from .asr_disk import same_machine
from .destinations import Destination, at, whole
from .drift import notice
from .errors import BackupNotFound, CommandFailed, NeedsRoot, NoSuchJob, Unsupported
from .events import Difference
from .provider import find_provider, provider_reference
from .run import ROOT, inside, log, run
from .sif import AsrSet
from .volumes import backups_in

UNITS = Path("etc/systemd/system")
_JOB = "asr-job-"
DRIFT = "asr-drift"
BROKEN = "cannot be read from its units"         # in the place of a job's time
_UNKNOWN = "not known"
_MOST = 36_500                         # backups or days; who types more means something else
_DAYS = {"Mon": "Monday", "Tue": "Tuesday", "Wed": "Wednesday", "Thu": "Thursday", "Fri": "Friday", "Sat": "Saturday",
         "Sun": "Sunday"}

_SERVICE = """\
# Made by asr schedule; asr schedule remove {name} takes it away.
[Unit]
Description=ASR backup job {name}
Documentation=man:asr(1)
{network}
[Service]
Type=oneshot
ExecStart={command}
# Whatever ended it, also a kill: what failed is said at the next login.
ExecStopPost={asr} schedule ended {name}
# Hooks that run after a backup may start a database, and snapshots are removed.
TimeoutStopSec=10min
Nice=10
IOSchedulingClass=idle
"""
_NETWORK = "Wants=network-online.target\nAfter=network-online.target\n"
_TIMER = """\
# Made by asr schedule; asr schedule remove {name} takes it away.
[Unit]
Description=ASR backup job {name}

[Timer]
OnCalendar={when}
# A computer that was off at the time makes it up.
Persistent=true
RandomizedDelaySec=120

[Install]
WantedBy=timers.target
"""
_DRIFT_SERVICE = """\
[Unit]
Description=Is the newest ASR set still this computer's?
Documentation=man:asr(1)

[Service]
Type=oneshot
ExecStart={asr} check --drift --remind
# 1: a new set is due. That is said at login, and no failure of this unit.
SuccessExitStatus=1
Nice=10
"""
_DRIFT_TIMER = """\
[Unit]
Description=Is the newest ASR set still this computer's?

[Timer]
OnBootSec=3min
OnCalendar=daily
RandomizedDelaySec=1h

[Install]
WantedBy=timers.target
"""


@dataclass(frozen=True)
class Job:
    """A backup that is made again and again."""

    name: str
    when: str                          # OnCalendar
    to: str                            # where the backup is written, as for `asr prepare --to`
    disk: str                          # where the ASR disk is written
    keep: int = 0                      # so many of this computer's backups stay there at least; 0: all
    keep_days: int = 0                 # and what is younger than so many days
    add: tuple[str, ...] = ()          # data volumes
    provider: str = ""                 # whose backup it is, if it isn't ours
    options: tuple[str, ...] = ()      # KEY=VALUE for it

    @property
    def broken(self) -> bool:
        """Its units were edited into something else: only its name is known."""
        return self.when == BROKEN

    @property
    def arguments(self) -> tuple[str, ...]:
        """Of `asr prepare`."""
        return ("--to", self.to, "--disk", self.disk, *(word for point in self.add for word in ("--add", point)),
                *(("--provider", self.provider) if self.provider else ()),
                *(word for option in self.options for word in ("--option", option)),
                *(("--keep", str(self.keep)) if self.keep else ()),
                *(("--keep-days", str(self.keep_days)) if self.keep_days else ()))

    @property
    def kept(self) -> str:
        """In words: what stays of older backups."""
        if self.broken:
            return _UNKNOWN
        words = [f"the {self.keep} newest"] if self.keep else []
        words += [f"those of the last {self.keep_days} days"] if self.keep_days else []
        return " and ".join(words) or "all backups"


def job_from(name: str, when: str, to: str, disk: str, keep: str) -> Job:
    """A job as a person typed it. Raises Unsupported for a number that is none."""
    return Job(name, when, lasting(to), lasting(disk), _number(keep))


def check_answer(what: str, value: str) -> None:
    """One of job_from()'s arguments by its name, as soon as it is typed. Raises what add_job() would raise for it."""
    {"name": _check_name, "when": _check_time, "to": _check_destination, "disk": _check_disk,
     "keep": _number}[what](value)


def check_possible() -> None:
    """Raises NeedsRoot, or Unsupported where asr isn't installed."""
    if os.geteuid():
        raise NeedsRoot("Scheduling a job needs root.", hint="Quit, and run it with sudo.")
    program()


def described() -> list[tuple[Job, str, str]]:
    """All jobs, each with its times in words and when it is due next."""
    return [(job, in_words(form), due) for job in jobs() for form, due in [normalized(job.when)]]


def program() -> str:
    """The `asr` that units call. Raises Unsupported where it isn't installed."""
    found = shutil.which("asr") or sys.argv[0]
    if str(ROOT) != "/" or Path(found).name != "asr":
        raise Unsupported("A schedule needs asr installed on this computer: the medium may be gone when a job is due.",
                          hint="Install the .deb or the wheel first.")
    return os.path.abspath(found)


def add_job(job: Job) -> None:
    """Writes and starts a job's timer.

    Raises Unsupported for a name, time, place or number that won't do, CommandFailed, NoProvider; for an address that
    is none NetworkPlaceFailed, for one without a password that a job can read PasswordWanted.
    """
    _check_name(job.name)
    asr = program()
    _check_time(job.when)
    for place, check in ((job.to, _check_destination), (job.disk, _check_disk)):
        check(place)
    if not network.is_url(job.to) and not (job.provider and _is_elsewhere(job.to)):
        _check_absolute(job.to)
    for place in (job.disk, *job.add):
        _check_absolute(place)
    check_keeping(job.keep, job.keep_days)
    if any(not word.isprintable() for word in job.arguments):
        raise Unsupported("A place's name has a character that cannot be printed.", hint="Rename it first.")
    if job.provider:
        find_provider(provider_reference(job.provider, job.options).name)
    command = " ".join(map(_quoted, (asr, "prepare", *job.arguments)))
    _write(f"{_JOB}{job.name}.service", _SERVICE.format(
        name=job.name, command=command, asr=asr, network=_NETWORK if network.is_url(job.to) else ""))
    _write(f"{_JOB}{job.name}.timer", _TIMER.format(name=job.name, when=job.when))
    if not any((ROOT / folder / f"{DRIFT}.timer").exists() for folder in (UNITS, Path("usr/lib/systemd/system"))):
        for name, text in drift_units(asr).items():
            _write(name, text)
    try:
        run(("systemctl", "daemon-reload"))
        run(("systemctl", "enable", "--now", f"{_JOB}{job.name}.timer", f"{DRIFT}.timer"))
    except CommandFailed:
        remove_job(job.name)               # a job that will never run must not be listed
        raise


def _check_name(name: str) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,30}", name):
        raise Unsupported(f"{name or 'An empty word'} is no name for a job.",
                          hint="Use small letters, digits and dashes, 31 at most.")


def _check_time(when: str) -> None:
    _, due = normalized(when)
    if due == "never":
        raise Unsupported(f"{when!r} never comes again.", hint="Such as: daily; Sun 03:00; *-*-01 04:30.")


def _check_destination(place: str) -> None:
    if not place.strip():
        raise Unsupported("The job has no place for its backups.", hint="Name a folder, a device or an address.")
    if network.is_url(place):
        network.check_unattended(network.parse(place))


def _check_disk(place: str) -> None:
    if not place.strip():
        raise Unsupported("The job has no place for the ASR disk.", hint="Name a device, a floppy image or a folder.")


def _check_absolute(place: str) -> None:
    """A unit starts in /, wherever its job was made."""
    if not place.startswith("/"):
        raise Unsupported(f"{place!r} is no whole path.", hint="Type it from its first slash on, as /mnt/backup.")


def check_keeping(keep: int, keep_days: int) -> None:
    """Raises Unsupported for numbers with which backups would go that somebody wants."""
    for number in (keep, keep_days):
        if not 0 <= number <= _MOST:
            raise Unsupported(f"{number} backups or days cannot be kept.",
                              hint=f"Say a number from 1 to {_MOST:,}, or 0 for all.")


def _number(word: str) -> int:
    if not word.isdecimal() or len(word) > 9:
        raise Unsupported(f"{word!r} is no number of backups.",
                          hint="Type how many backups are to be kept, or 0 for all.")
    check_keeping(int(word), 0)
    return int(word)


def drift_units(asr: str) -> dict[str, str]:
    """The units that look for drift, by their names."""
    return {f"{DRIFT}.service": _DRIFT_SERVICE.format(asr=asr), f"{DRIFT}.timer": _DRIFT_TIMER}


def _quoted(word: str) -> str:
    """A word of a unit's command line: systemd.service(5), "COMMAND LINES"; % and $ are systemd's own."""
    if not re.fullmatch(r"[\w@+=:,./-]+", word):
        word = '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
    return word.replace("%", "%%").replace("$", "$$")


def _write(name: str, text: str) -> None:
    (ROOT / UNITS).mkdir(parents=True, exist_ok=True)
    (ROOT / UNITS / name).write_text(text)


def jobs() -> list[Job]:
    """All jobs, by name, also those that are broken."""
    return [_as_found(path) for path in sorted((ROOT / UNITS).glob(f"{_JOB}*.timer"))]


def _as_found(timer: Path) -> Job:
    try:
        job = read_job(timer)
        normalized(job.when)
        check_keeping(job.keep, job.keep_days)
        return job
    except (NoSuchJob, Unsupported) as error:
        log(f"{timer}: {error}")
        return Job(timer.stem.removeprefix(_JOB), BROKEN, _UNKNOWN, _UNKNOWN)


def read_job(timer: Path) -> Job:
    """A job from its units. Raises NoSuchJob for one that was edited into something else."""
    name = timer.stem.removeprefix(_JOB)
    try:
        [when] = re.findall(r"^OnCalendar=(.*)$", timer.read_text(), re.MULTILINE)
        [command] = re.findall(r"^ExecStart=(.*)$", timer.with_suffix(".service").read_text(), re.MULTILINE)
        words = shlex.split(command.replace("%%", "%").replace("$$", "$"))[2:]
        said = list(zip(words[::2], words[1::2], strict=True))
        one = dict(said)
        return Job(name, when, one["--to"], one["--disk"], int(one.get("--keep", 0)), int(one.get("--keep-days", 0)),
                   tuple(value for key, value in said if key == "--add"), one.get("--provider", ""),
                   tuple(value for key, value in said if key == "--option"))
    except (OSError, ValueError, KeyError):
        raise NoSuchJob(f"The job {name} cannot be read from its units.",
                        hint=f"Remove it with  asr schedule remove {name}  and add it again.") from None


def remove_job(name: str) -> None:
    """Stops a job's timer and takes its units away. Raises NoSuchJob."""
    paths = [ROOT / UNITS / f"{_JOB}{name}{kind}" for kind in (".timer", ".service")]
    if not any(path.exists() for path in paths):
        raise NoSuchJob(f"There is no job {name}.", hint="asr schedule list names all.")
    run(("systemctl", "disable", "--now", f"{_JOB}{name}.timer"), check=False)
    for path in paths:
        path.unlink(missing_ok=True)
    notice(f"job-{name}", "")
    run(("systemctl", "daemon-reload"), check=False)
    # One that has failed would be remembered without its file.
    run(("systemctl", "reset-failed", f"{_JOB}{name}.service"), check=False)


def remove_all() -> None:
    """No unit of ours is left: for the program's removal."""
    for timer in list((ROOT / UNITS).glob(f"{_JOB}*.timer")):
        remove_job(timer.stem.removeprefix(_JOB))
    paths = [ROOT / UNITS / f"{DRIFT}{kind}" for kind in (".timer", ".service")]
    if any(path.exists() for path in paths):
        run(("systemctl", "disable", "--now", f"{DRIFT}.timer"), check=False)
        for path in paths:
            path.unlink(missing_ok=True)
        run(("systemctl", "daemon-reload"), check=False)


def ended(name: str, result: str) -> None:
    """After each run of a job; result: systemd's $SERVICE_RESULT."""
    failed = f"ASR: the backup job {name} FAILED ({result}): its set does not exist, or lacks something.\n" \
             f"     journalctl -u {_JOB}{name} says why."
    notice(f"job-{name}", "" if result == "success" else failed)


def lasting(place: str) -> str:
    """A place as a job names it: from / on, where units start, unless it is an address or what a provider alone knows;
    a volume by its UUID, since sdb may be sdc after the next start.
    """
    if not place or _is_elsewhere(place):
        return place
    place = inside(place) if not place.startswith("/") else place
    if not re.match(r"/dev/(sd|vd|hd|nvme|mmcblk|xvd)", place):
        return place
    uuid = run(("blkid", "--match-tag", "UUID", "--output", "value", place), check=False).strip()
    return f"/dev/disk/by-uuid/{uuid}" if uuid else place


def _is_elsewhere(place: str) -> bool:
    """As for `asr prepare`: nfs://server/export, or a provider's sftp:host:/repo."""
    return bool(re.match(r"[^/]+:", place))


# Times, in words

def normalized(when: str) -> tuple[str, str]:
    """systemd's own form of a calendar expression, and when it is due next. Raises Unsupported for one that is none."""
    if when == BROKEN:
        return BROKEN, _UNKNOWN
    try:
        if not when.isprintable():             # it would be a line of its own in the unit
            raise CommandFailed("a character that cannot be printed")
        # --: a time that begins with a dash is no option.
        said = run(("systemd-analyze", "calendar", "--", when))
    except CommandFailed:
        raise Unsupported(f"{when!r} is no time that systemd knows.",
                          hint="Such as: daily; Sun 03:00; Mon..Fri 22:00; *-*-01 04:30. See systemd.time(7)."
                          ) from None
    found = dict(re.findall(r"^ *([\w ]+): (.*)$", said, re.MULTILINE))
    form = found.get("Normalized form") or found.get("Original form") or when
    return form, found.get("Next elapse", "never")


def in_words(form: str) -> str:
    """A normalized calendar expression as people say it; as it is where there are no words for it."""
    match = re.fullmatch(r"(?:([\w.,]+) )?(\*|\d+)-(\*)-(\*|\d+) (\d\d):(\d\d):00", form)
    if not match or match[2] != "*":
        return form
    days, _, _, date, hour, minute = match.groups()
    if days:
        names = re.sub(r"[A-Z][a-z]{2}", lambda name: _DAYS.get(name[0], name[0]), days)
        day = "every " + names.replace("..", " to ").replace(",", ", ")
    else:
        day = "every day" if date == "*" else f"on day {int(date)} of every month"
    if days and date != "*":
        return form
    return f"{day} at {hour}:{minute}"


# What stays

def superseded(older: Sequence[tuple[Path, datetime]], keep: int, keep_days: int, today: datetime) -> list[Path]:
    """The backups that need not stay beside the new one: neither among the `keep` newest nor younger than `keep_days`.

    The new one is the first of those kept, whatever the clock was when the others were made. 0 in both: none need go.
    Raises Unsupported for numbers that are no such.
    """
    check_keeping(keep, keep_days)
    if not keep and not keep_days:
        return []
    newest_first = sorted(older, key=lambda backup: backup[1], reverse=True)
    return [path for path, created in newest_first[max(keep - 1, 0):]
            if not keep_days or today - created > timedelta(days=keep_days)]


def retire(set: AsrSet, destination: Destination, keep: int, keep_days: int) -> Iterator[Difference]:
    """Removes this computer's older backups beside a new one that was read back; what can't be removed is said.

    Raises BackupNotFound if the new one is not there.
    """
    with at(destination):
        folder = destination.path.parent
        ours = {whole(path): other.created for path, other in backups_in(folder) if same_machine(other, set)}
        if ours.pop(destination.path, None) is None:
            raise BackupNotFound(
                f"The new backup {destination.path.name} is not in {folder} any more, or cannot be read there.",
                hint="Look at that disk or server, and make the backup again.",
                untouched="Older backups were kept.")
        for old in superseded(list(ours.items()), keep, keep_days, set.created):
            try:
                for file in files_of(old):
                    file.unlink()
                log(f"Removed {old}, which newer backups supersede")
                yield Difference(old.name, "It was removed: newer backups take its place.")
            except OSError as error:
                yield Difference(old.name, f"It could not be removed: {error.strerror}.")
