"""The `asr` command."""

import argparse
import errno
import io
import json
import os
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext, redirect_stdout, suppress
from dataclasses import asdict
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from bootenv.errors import AsrError, NeedsRoot
from bootenv.events import Difference, Event, Progress

from . import __version__

# Textual, rich and the rooms of bootenv are imported by the commands that need them: the imports are most of
# a command's start.
if TYPE_CHECKING:
    from bootenv.prepare import Survey
    from bootenv.schedule import Job
    from bootenv.sif import ProviderReference

    from .app import SetupApp

T = TypeVar("T")

_CMDLINE = Path("/proc/cmdline")
_MEDIUM = Path("/run/medium")          # where the initramfs mounts it
_LINE_EVERY = 5                        # seconds, where progress is printed line by line
_MAX_AGE = 30                          # days that a set is good for
_MOST_DAYS = 36500
_LEAST_VOLUME = 4096                   # bytes; of smaller ones there would be millions
_STDOUT = ("-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
_ENDING = (signal.SIGTERM, signal.SIGHUP)      # end the program as Ctrl+C does: what it has begun is taken away


class _Interrupted(KeyboardInterrupt):
    def __init__(self, number: int):
        super().__init__()
        self.number = number


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    arguments = _parsed(argv)
    os.umask(0o022)        # units and notices are for all to read; what is secret is made with its own mode
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):       # a name that the locale has no letters for ends nothing
            stream.reconfigure(errors="backslashreplace")
    status = arguments.failed
    try:
        _end_by(_interrupt)
        status = arguments.run(arguments)
        print(end="", flush=True)
        return status
    except AsrError as error:
        said = [f"asr: {error.code}: {error.message}", *filter(None, [error.untouched, error.hint]),
                f"More about it: asr explain {error.number}"]
        if isinstance(error, NeedsRoot) and _wants_sudo(error):
            return _with_sudo(argv)
    except OSError as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            return 128 + signal.SIGPIPE        # what a shell says of any program that ends so
        said = [": ".join(map(str, filter(None, ["asr", error.filename, error.strerror or error])))]
    except KeyboardInterrupt as error:
        status = 128 + (error.number if isinstance(error, _Interrupted) else signal.SIGINT)
        said = ["asr: interrupted"]
    with suppress(OSError):                    # of a terminal that is gone
        print(*said, sep="\n", file=sys.stderr)
    return status


def _end_by(handler: Any) -> None:
    """What the signals in _ENDING do, but those that are ignored, as nohup has it."""
    for number in _ENDING:
        if signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, handler)


def _interrupt(number: int, _: object) -> None:
    """Once: what cleans up is not to be disturbed."""
    _end_by(signal.SIG_IGN)
    raise _Interrupted(number)


def _shown(app: "SetupApp") -> int:
    """Runs what has a screen, and threads that would not notice a signal's exception; returns its exit status."""
    _end_by(signal.SIG_DFL)
    app.run(mouse=False)
    return app.return_code or 0


def _parsed(argv: list[str]) -> argparse.Namespace:
    arguments, rest = parser().parse_known_args(argv)
    if rest and "paths" in arguments and not any(word.startswith("-") for word in rest):
        arguments.paths = [*arguments.paths, *rest]        # argparse itself takes none behind an option
    elif rest:
        arguments.fail(f"unrecognized arguments: {' '.join(rest)}")
    return arguments


def _reader_is_gone() -> bool:
    """Does whoever read the standard output, such as head, want no more of it?"""
    poll = select.poll()
    poll.register(1, 0)                # errors are always told
    if not any(what & select.POLLERR for _, what in poll.poll(0)):
        return False
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)           # for what the end of the program flushes
    return True


def _wants_sudo(error: NeedsRoot) -> bool:
    """Asks, where somebody can answer."""
    if not (sys.stdin.isatty() and sys.stderr.isatty() and shutil.which("sudo")):
        return False
    print(f"asr: {error.code}: {error.message}", file=sys.stderr)
    try:
        return input("Run it with sudo now? [Y/n] ").strip().lower() in ("", "y", "yes")
    except (EOFError, KeyboardInterrupt):
        return False


def _with_sudo(argv: list[str]) -> int:
    this = [sys.argv[0]] if os.access(sys.argv[0], os.X_OK) else [sys.executable, "-m", "console"]
    os.execvp("sudo", ["sudo", *this, *argv])


class _Parser(argparse.ArgumentParser):
    misused = 2                        # the exit status for a command line that is none

    def error(self, message: str) -> NoReturn:
        self.print_usage(sys.stderr)
        self.exit(self.misused, f"{self.prog}: error: {message}\n")


def _number(least: int, most: int) -> Callable[[str], int]:
    """What reads an option's whole number."""
    def read(text: str) -> int:
        if not re.fullmatch("[0-9]{1,20}", text) or not least <= int(text) <= most:
            raise argparse.ArgumentTypeError(f"it takes a whole number from {least} to {most}")
        return int(text)

    return read


def parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="asr", description="Automated System Recovery for Linux.")
    parser.set_defaults(failed=1, fail=parser.error)
    parser.add_argument("--version", action="version", version=f"asr {__version__}")
    parser.set_defaults(run=wizard)
    commands = parser.add_subparsers(metavar="COMMAND")

    command = commands.add_parser("prepare", help="back up this computer's system and make its ASR disk")
    command.add_argument("--to", metavar="DIR|FILE|DEVICE|URL",
                         help="where the backup is written; a volume that is not mounted, or a place on the network "
                              "(nfs://server/export/folder, smb://user@server/share/folder), is mounted for it and "
                              "unmounted again; without --to, a wizard asks")
    command.add_argument("--name", metavar="NAME", default="", help="of the backup's file; else host and time")
    command.add_argument("--add", metavar="MOUNTPOINT", action="append", default=[],
                         help="a data volume on another disk that is to be in the set, too")
    command.add_argument("--disk", metavar="DEVICE|IMAGE|DIR", help="the ASR disk: /dev/fd0, a USB stick, an image")
    _add_provider(command)
    _add_format(command)
    _add_keeping(command)
    _add_patterns(command)
    command.set_defaults(run=prepare, fail=command.error)

    command = commands.add_parser("make-disk", help="write an ASR disk again, on any computer, from a copy of asr.sif")
    command.add_argument("--from", dest="source", metavar="ASR.SIF|BACKUP|URL", default="",
                         help="the copy: a backup of the set, or asr.sif; else this computer's own")
    command.add_argument("--disk", metavar="DEVICE|IMAGE|DIR", required=True, help="where it is written")
    _add_format(command)
    command.set_defaults(run=make_disk)

    command = commands.add_parser("add-driver", help="keep drivers and firmware that recovery needs and its medium "
                                                     "lacks, for all sets made from now on; without FILE, list them")
    command.add_argument("files", metavar="FILE", nargs="*",
                         help="kernel modules, Debian packages, firmware (by its path below a folder named firmware)")
    command.add_argument("--remove", metavar="NAME", action="append", default=[], help="one that is listed")
    command.set_defaults(run=add_driver)

    command = commands.add_parser("check", help="say whether this computer could be recovered, device by device; "
                                                "exit status 0: yes, 1: with losses, 2: no, "
                                                "3: could not look")
    command.add_argument("--json", action="store_true", help="the same for programs")
    command.add_argument("--drift", action="store_true",
                         help="say instead what has changed since the newest ASR set; exit status 0: nothing, 1: a new "
                              "set is due, 3: could not look")
    command.add_argument("--max-age", type=_number(0, _MOST_DAYS), metavar="DAYS", help=f"with --drift ({_MAX_AGE})")
    command.add_argument("--packages", action="store_true", help="with --drift: compare packages alone")
    command.add_argument("--remind", action="store_true", help="with --drift: say it at every login, too")
    command.misused = 3
    command.set_defaults(run=check, failed=3, fail=command.error)

    _add_schedule(commands)

    command = commands.add_parser("plan", help="print what recovery from an asr.sif would run; nothing is changed")
    command.add_argument("sif", metavar="SIF")
    command.set_defaults(run=plan)

    _add_backup_commands(commands)

    command = commands.add_parser("explain", help="say what an error number means and what to do")
    command.add_argument("number", metavar="NUMBER", nargs="?", default="", help="32 or ASR-032; without it, all")
    command.set_defaults(run=explain)

    command = commands.add_parser("console")       # what the recovery medium and the minimal OS call
    command.set_defaults(run=console, fail=command.error)
    return parser


def _add_schedule(commands: Any) -> None:
    group = commands.add_parser("schedule", help="make ASR sets by themselves, at times of systemd's calendar")
    actions = group.add_subparsers(required=True, metavar="ACTION")

    command = actions.add_parser("add", help="add a job, or change the one of that name")
    command.add_argument("name", metavar="NAME")
    command.add_argument("--when", required=True, metavar="CALENDAR", help="'Sun 03:00', daily: see systemd.time(7)")
    command.add_argument("--to", required=True, metavar="DIR|DEVICE|URL",
                         help="where the backups are written; the password of an smb:// user is read from "
                              "/etc/asr/credentials")
    command.add_argument("--disk", required=True, metavar="DEVICE|IMAGE|DIR", help="the ASR disk")
    command.add_argument("--add", metavar="MOUNTPOINT", action="append", default=[], help="a data volume")
    _add_provider(command)
    _add_keeping(command)
    command.set_defaults(run=schedule_add, fail=command.error, include=[])

    command = actions.add_parser("list", help="all jobs")
    command.set_defaults(run=schedule_list)
    command = actions.add_parser("remove", help="remove a job, or with --all every unit of ASR")
    command.add_argument("name", metavar="NAME", nargs="?", default="")
    command.add_argument("--all", action="store_true")
    command.set_defaults(run=schedule_remove, fail=command.error)
    command = actions.add_parser("ended")      # what a job's service calls
    command.add_argument("name", metavar="NAME")
    command.set_defaults(run=schedule_ended)


def _add_provider(command: argparse.ArgumentParser) -> None:
    command.add_argument("--provider", metavar="NAME", default="",
                         help="another backup product that makes the backup, at the place that --to names as it is "
                              "known to that: tar, restic, or an executable in /etc/asr/providers")
    command.add_argument("--option", metavar="KEY=VALUE", action="append", default=[],
                         help="for the provider; no secret, since it is written to the ASR disk")


def _add_keeping(command: argparse.ArgumentParser) -> None:
    command.add_argument("--keep", type=_number(0, 9999), default=0, metavar="N",
                         help="then remove this computer's older backups there, but keep the N newest")
    command.add_argument("--keep-days", type=_number(0, _MOST_DAYS), default=0, metavar="DAYS",
                         help="and keep those that are younger")


def schedule_add(arguments: argparse.Namespace) -> int:
    from bootenv import schedule

    _provider(arguments)               # a mistake in it is better known now
    _need_root("Scheduling a job")
    job = schedule.Job(arguments.name, arguments.when, schedule.lasting(arguments.to), schedule.lasting(arguments.disk),
                       arguments.keep, arguments.keep_days, tuple(arguments.add), arguments.provider,
                       tuple(arguments.option))
    schedule.add_job(job)
    _print_job(job)
    return 0


def schedule_list(arguments: argparse.Namespace) -> int:
    from bootenv import schedule

    jobs = schedule.jobs()
    for job in jobs:
        _print_job(job)
    if not jobs:
        print("No job is scheduled.")
    return 0


def _print_job(job: "Job") -> None:
    from bootenv import schedule

    if job.broken:
        print(f"{job.name}: {schedule.BROKEN}; asr schedule remove {job.name} takes them away")
        return
    form, due = schedule.normalized(job.when)
    print(f"{job.name}: {schedule.in_words(form)}, next {due}", f"    to {job.to}, ASR disk {job.disk}",
          f"    by {job.provider}" if job.provider else f"    keeps {job.kept}", sep="\n")


def schedule_remove(arguments: argparse.Namespace) -> int:
    from bootenv import schedule

    if bool(arguments.name) == arguments.all:
        arguments.fail("name a job, or say --all")
    _need_root("Removing a job")
    schedule.remove_all() if arguments.all else schedule.remove_job(arguments.name)
    return 0


def schedule_ended(arguments: argparse.Namespace) -> int:
    from bootenv import schedule

    schedule.ended(arguments.name, os.environ.get("SERVICE_RESULT", "it was not run by systemd"))
    return 0


def _add_format(command: argparse.ArgumentParser) -> None:
    command.add_argument("--format-disk", action="store_true", help="give a disk that has no file system a new one")


def _add_patterns(command: argparse.ArgumentParser) -> None:
    command.add_argument("--exclude", metavar="PATTERN", action="append", default=[],
                         help="leave out what this matches, e.g. 'home/*/Videos'; \"*\" takes \"/\", too")
    command.add_argument("--include", metavar="PATTERN", action="append", default=[],
                         help="keep what this matches, whatever else would leave it out")


def _add_backup_commands(commands: Any) -> None:
    command = commands.add_parser("verify", help="compare every file in a backup with its checksum")
    command.add_argument("backup", metavar="BACKUP|URL")
    command.add_argument("--disk", metavar="DEVICE|IMAGE|DIR", help="and see whether this ASR disk belongs to it")
    command.set_defaults(run=verify)

    command = commands.add_parser("list", help="print the paths in a backup")
    command.add_argument("backup", metavar="BACKUP|URL")
    command.set_defaults(run=list_paths)

    command = commands.add_parser("extract", help="bring files back from a backup, reading only what they need")
    command.add_argument("backup", metavar="BACKUP|URL")
    command.add_argument("paths", metavar="PATH", nargs="*", help="a file, or a directory with all that is in it")
    command.add_argument("--all", action="store_true", help="everything")
    command.add_argument("--to", metavar="DIR", required=True, help="where they are put, below the same paths")
    command.set_defaults(run=extract, fail=command.error)

    command = commands.add_parser("pack", help="back up any tree to a file; no ASR disk is made")
    command.add_argument("tree", metavar="TREE")
    command.add_argument("file", metavar="FILE", help="that is written; - for standard output")
    _add_patterns(command)
    command.add_argument("--exclude-caches", action="store_true", help="leave out what a CACHEDIR.TAG marks")
    command.add_argument("--level", type=int, choices=range(1, 8), help="of zstd; else as fast as the destination is")
    command.add_argument("--volume-size", type=_number(_LEAST_VOLUME, 2**60), default=0, metavar="BYTES",
                         help="write FILE.001, FILE.002, ...")
    command.set_defaults(run=pack)


def console(arguments: argparse.Namespace) -> int:
    """The stage that the kernel's command line names, on this terminal."""
    from bootenv.apart import Apart

    from .app import SetupApp

    cmdline = _CMDLINE.read_text()
    if "asr.id=" not in cmdline and not _MEDIUM.exists():
        arguments.fail("this computer was not started from the recovery medium, and F3 would restart it; asr alone "
                       "starts the wizard")
    app: SetupApp
    if stage(cmdline) == "restore":
        from bootenv import restore

        from .restore import RestoreApp

        app = RestoreApp(Apart(restore, "restore"))
    else:
        from bootenv import recover

        from .recover import RecoverApp

        app = RecoverApp(Apart(recover, "recover"), asked=_asked())
    return _shown(app)


def _asked() -> str:
    """What bootenv/image/prompts was answered; waits until it was. "" if it was not started."""
    descriptor = os.environ.pop("ASR_ASKED", "")
    if not descriptor:
        return ""
    with open(int(descriptor)) as answer:
        return answer.read().strip()


def wizard(arguments: argparse.Namespace) -> int:
    """`asr` alone: the Backup or Restore Wizard. What needs root says so where it is chosen."""
    if not sys.stdout.isatty():
        parser().print_help()
        return 1
    from bootenv import documents, media, prepare, schedule

    from .backup import BackupApp, settings_of_this_user

    return _shown(BackupApp(prepare, documents, media, schedule, prepare.survey, settings_of_this_user()))


def stage(cmdline: str) -> str:
    """What asr.stage= says; the last one counts, as for the kernel."""
    said = [word.removeprefix("asr.stage=") for word in cmdline.split() if word.startswith("asr.stage=")]
    return said[-1] if said else "recover"


def prepare(arguments: argparse.Namespace) -> int:
    """Status 0 only when the set was read back and matches, and lacks nothing that should be in it."""
    from bootenv import prepare as story
    from bootenv.run import RUNNING

    if bool(arguments.to) != bool(arguments.disk):
        arguments.fail("--to and --disk go together")
    if not arguments.to and not sys.stdout.isatty():
        arguments.fail("without a terminal, --to and --disk are needed")
    provider = _provider(arguments)
    _need_root("Preparing an ASR set reads every file and disk, and")
    look = partial(story.survey, exclude=arguments.exclude, include=arguments.include, provider=provider)
    if not arguments.to:
        from .app import CRASHED
        from .prepare import PrepareApp

        # From the medium's own console a screen comes before anything that takes its time or may fail.
        app = PrepareApp(story, look(add=arguments.add) if RUNNING else None, look)
        status = _shown(app)
        return CRASHED if app.crashed else status
    # Also until older backups are retired. Of jobs that are due at the same time, one waits for the other.
    with story.alone(partial(print, flush=True)):
        return _prepare(story, look(add=arguments.add), arguments)


def _provider(arguments: argparse.Namespace) -> "ProviderReference | None":
    from bootenv.errors import NoProvider
    from bootenv.provider import provider_reference

    if not arguments.provider:
        if arguments.option:
            arguments.fail("--option is for a --provider")
        return None
    if not arguments.to:
        arguments.fail("--provider needs --to and --disk")
    if arguments.include or arguments.keep or arguments.keep_days:
        arguments.fail("--include, --keep and --keep-days are for ASR's own backups, not for a provider's")
    try:
        return provider_reference(arguments.provider, arguments.option)
    except NoProvider as error:
        arguments.fail(error.message)
        raise


def _prepare(story: Any, survey: "Survey", arguments: argparse.Namespace) -> int:
    from bootenv.check import as_lines
    from bootenv.commands import as_text
    from bootenv.sif import backup_of

    disk = arguments.disk
    print(printable(as_lines(survey.findings)), end="")
    if survey.draft.commands:
        print(printable(as_text(survey.draft.commands)), end="")
    destination = _with_password(lambda: story.destination(survey, arguments.to, arguments.name))
    for warning in destination.warnings:
        print(f"CAUTION: {warning}")
    for note in destination.notes:
        print(f"{arguments.provider}: {note}")
    # Naming a disk is agreeing to its use: what is on it stays.
    story.check_disk(survey.draft, disk, agreed=True, format=arguments.format_disk)
    selection, _ = followed(story.select(survey))
    set, unlike = followed(story.prepare(survey, destination, selection))
    followed(story.write_disk(set, disk, agreed=True, format=arguments.format_disk))
    print(f"Backup: {backup_of(set)}", f"ASR disk: {disk}", "Label it:", story.label_of(set), sep="\n")
    for left_out in survey.left_out:
        print(f"NOT protected: {left_out.what}: {left_out.why}")
    for difference in unlike:
        print(f"NOT as it was: {printable(f'{difference.what}: {difference.why}')}")
    keeping = arguments.keep or arguments.keep_days
    lacking = any(map(story.lacks, unlike))
    if keeping and not lacking:
        from bootenv.schedule import retire

        for gone in retire(set, destination, arguments.keep, arguments.keep_days):
            print(printable(f"{gone.what}: {gone.why}"))
    print(f"Report: /{story.report_of(set)}")
    # Of a provider's backup the lines above say what is known.
    print("The ASR disk was read back and matches." if set.provider else
          "The backup and the ASR disk were read back and match.")
    if lacking:
        print("The set is made, but it lacks what is named above."
              + (" Older backups were kept for that." if keeping else ""))
    return 1 if lacking else 0


def _with_password(work: Callable[[], T]) -> T:
    """Does work that may need the password of a place on the network; asks for it, where somebody can answer."""
    from getpass import getpass

    from bootenv.errors import PasswordWanted
    from bootenv.network import remember

    while True:
        try:
            return work()
        except PasswordWanted as error:
            if not error.place or not sys.stdin.isatty():
                raise
            print(f"asr: {error.message}", file=sys.stderr)
            remember(error.place, getpass(f"Password of {error.place.user}: ").encode())


@contextmanager
def _file(word: str) -> Iterator[Path]:
    """A file that the user named, on this computer or, by its address, on a server."""
    from bootenv.network import file_at, is_url, parse
    from bootenv.run import inside

    if not is_url(word):
        yield Path(inside(word))
        return
    place = parse(word)
    _need_root("Mounting a place on the network")
    with ExitStack() as mounted:
        yield _with_password(lambda: mounted.enter_context(file_at(place)))


def make_disk(arguments: argparse.Namespace) -> int:
    """The set is what the copy says: no disk of this computer is looked at but the one to be written."""
    from bootenv import carried
    from bootenv.asr_disk import put
    from bootenv.errors import NoAsrDisk, NoProvider
    from bootenv.prepare import REPAIR, label_of, put_back_copy
    from bootenv.provider import find_provider
    from bootenv.run import ROOT, inside
    from bootenv.sif import backup_of
    from bootenv.volumes import is_backup, read_copy

    with ExitStack() as open:
        if not arguments.source:
            put_back_copy()
        source = open.enter_context(_file(arguments.source)) if arguments.source else ROOT / REPAIR
        if not source.exists() and (volume := source.with_name(f"{source.name}.001")).exists():
            source = volume
        if source.exists() and not source.is_file():       # to open a FIFO would wait for ever
            raise NoAsrDisk(f"{arguments.source} is no file.", hint="Name a backup of an ASR set, or its asr.sif.")
        set = read_copy(source)
        program = None
        if set.provider:
            with suppress(NoProvider):         # then what is written says so
                program = find_provider(set.provider.name)
        at_hand = open.enter_context(carried.from_backup(set, source)) if is_backup(source) else carried.at_hand(
            set, program)
        followed(put(set, inside(arguments.disk), at_hand, agreed=True, format=arguments.format_disk))
    print(f"ASR disk: {arguments.disk}", f"It belongs to the backup {backup_of(set)}.",
          "Label it:", label_of(set), "It was read back and matches.", sep="\n")
    return 0


def add_driver(arguments: argparse.Namespace) -> int:
    from bootenv import carried

    _need_root("Looking at the drivers that go along with sets")
    for name in arguments.remove:
        carried.remove(name)
        print(f"{name}: removed")
    for line in carried.add(arguments.files):
        print(line)
    if not arguments.remove and not arguments.files:
        print(*(carried.listed() or ["No driver goes along with sets."]), sep="\n")
    else:
        print("This holds for sets that are made from now on: asr prepare")
    return 0


def explain(arguments: argparse.Namespace) -> int:
    from bootenv.errors import every_error

    kinds = {str(kind.number): kind for kind in every_error()}
    if not arguments.number:
        print(*(f"ASR-{kind.number:03d}  {kind.title}" for kind in kinds.values()), sep="\n")
        return 0
    kind = kinds.get(arguments.number.upper().removeprefix("ASR-").lstrip("0"))
    if not kind:
        print(f"asr: there is no error {arguments.number}; asr explain lists all", file=sys.stderr)
        return 1
    print(f"ASR-{kind.number:03d}: {kind.title}", f"Why: {kind.cause}",
          f"Not touched: {kind.untouched or 'that is said where the error appears.'}", f"What to do: {kind.remedy}",
          sep="\n\n")
    return 0


def check(arguments: argparse.Namespace) -> int:
    """Nothing is written. The status is the verdict's place: 0, 1 or 2."""
    if arguments.drift:
        return drift(arguments)
    if arguments.packages or arguments.remind or arguments.max_age is not None:
        arguments.fail("--packages, --remind and --max-age are for --drift")
    from bootenv.check import VERDICTS, as_lines, verdict
    from bootenv.check import check as findings_of
    from bootenv.probe import kernel_names, mount_table, probe

    _need_root("Looking at this computer's disks")
    findings = findings_of(probe(), mount_table(), named=kernel_names())
    worst = verdict(findings)
    if arguments.json:
        print(json.dumps({"verdict": worst, "findings": [asdict(finding) for finding in findings]}, indent=1))
    else:
        print(printable(as_lines(findings)), end="")
    return VERDICTS.index(worst)


def drift(arguments: argparse.Namespace) -> int:
    from bootenv.drift import find_drift, package_only_drift, remind
    from bootenv.errors import Busy, DamagedSif, NoAsrDisk

    _need_root("Looking at this computer's disks")
    quiet = arguments.packages             # package managers call it so, after each of their runs
    if not quiet:
        from bootenv.prepare import put_back_copy

        with suppress(Busy):
            put_back_copy()
    days = _MAX_AGE if arguments.max_age is None else arguments.max_age
    try:
        found = package_only_drift() if arguments.packages else find_drift(timedelta(days=days))
    except (NoAsrDisk, DamagedSif) as error:
        found = () if quiet else (Difference("ASR set", error.message),)
    # If packages alone are well, a notice about the rest stays.
    if arguments.remind and (found or not arguments.packages):
        remind(found)
    if arguments.json:
        print(json.dumps([asdict(reason) for reason in found], indent=1))
        return 1 if found else 0
    for reason in found:
        print(printable(f"{reason.what}: {reason.why}"))
    if found or not quiet:
        print("A new ASR set is due: asr prepare" if found else "The newest ASR set is still this computer's.")
    return 1 if found else 0


def _need_root(what: str) -> None:
    if os.geteuid():
        raise NeedsRoot(f"{what} needs root.", hint="Run it again with sudo.")


def plan(arguments: argparse.Namespace) -> int:
    from bootenv.commands import as_text as commands_as_text
    from bootenv.plan import plan as steps
    from bootenv.run import inside
    from bootenv.sif import read_sif
    from bootenv.step import as_text

    set = read_sif(Path(inside(arguments.sif)).read_bytes())
    print(as_text(steps(set.layout)), end="")
    print(printable(commands_as_text(set.commands)), end="")
    if set.provider:
        print(printable(f"The files are restored by the provider {set.provider.name}, from {set.backup.place}."))
    return 0


def verify(arguments: argparse.Namespace) -> int:
    from bootenv.backup import damaged_files, verify_backup
    from bootenv.run import inside

    with _file(arguments.backup) as path:
        if arguments.disk:                     # at once: the rest takes long
            from bootenv.asr_disk import check_belongs

            set = check_belongs(inside(arguments.disk), path)
            print(f"The disk and the backup are of one set: {set.host}, {set.created:%Y-%m-%d %H:%M} UTC.")
        _, damaged = followed(verify_backup(path))
    count = damaged_files(damaged)
    print("The backup is whole." if not damaged else f"{count} of its files are damaged." if count else
          "Its index is damaged; its files are not.")
    return 1 if damaged else 0


def list_paths(arguments: argparse.Namespace) -> int:
    from bootenv.backup import list_backup

    with _file(arguments.backup) as path:
        for record in list_backup(path):
            print(f"{record.kind} {record.size:>15,} {on_a_line(record.path)}")
    return 0


def extract(arguments: argparse.Namespace) -> int:
    """Status 0 only when all that was asked for is there as it was."""
    from bootenv.backup import restore_backup
    from bootenv.run import inside

    if bool(arguments.paths) == arguments.all:
        arguments.fail("name the paths, or say --all")
    target = Path(inside(arguments.to))
    with _file(arguments.backup) as path:
        _, unlike = followed(restore_backup(path, target, only=arguments.paths, anywhere=True))
    print(f"Extracted with {len(unlike)} difference{'s' * (len(unlike) != 1)}." if unlike else "Extracted.")
    return 1 if unlike else 0


def pack(arguments: argparse.Namespace) -> int:
    """Status 0: the file is whole, and nothing was unreadable. What isn't in it as it was is named."""
    from bootenv.archive import STDOUT
    from bootenv.backup import Source, is_lost, write_backup
    from bootenv.run import inside

    tree = inside(arguments.tree)
    if not os.path.isdir(tree):
        raise NotADirectoryError(errno.ENOTDIR, "There is no such folder: pack takes a folder, with all that is in it",
                                 arguments.tree)
    destination = _packed_to(arguments.file, bool(arguments.volume_size))
    piped = destination == STDOUT
    work = write_backup(
        destination, [Source(tree)], exclude=arguments.exclude, include=arguments.include,
        caches=not arguments.exclude_caches, level=arguments.level, volume_size=arguments.volume_size)
    with redirect_stdout(sys.stderr) if piped else nullcontext():
        _, unlike = followed(work)
        print(f"Packed with {len(unlike)} difference{'s' * (len(unlike) != 1)}." if unlike else "Packed.")
    return 1 if any(map(is_lost, unlike)) else 0


def _packed_to(word: str, volumes: bool) -> Path:
    """A file that is not there yet, what is no file, or STDOUT by any of its names. Raises DestinationRefused."""
    from bootenv.archive import STDOUT, check_new
    from bootenv.errors import refused
    from bootenv.run import ROOT, inside

    if word in _STDOUT:
        return STDOUT
    path = Path(inside(word))
    if path.exists() and not path.is_file() and not path.is_dir():
        # A link to it, or the terminal's own name: the words about the work must not go there.
        return STDOUT if os.path.samestat(path.stat(), os.fstat(1)) else path
    path = Path(os.path.realpath(path))        # a link stays one, and leads to the backup
    if not path.is_relative_to(os.path.realpath(ROOT)) or path.parent == Path("/dev"):
        raise refused(f"{word} would lie in memory.", "Name a file on a disk, or a device that is there.")
    if re.search(r"\.\d{3,}$", path.name) and not volumes:
        raise refused(f"{path.name} ends as the volumes of a backup do, and would be read as one.",
                      "Choose a name that does not end in a number.")
    check_new(path)
    return path


def followed(events: Iterator[Event]) -> tuple[Any, list[Difference]]:
    """Does long work and prints how far it is: a bar on a terminal, else lines. What it returned, and Differences."""
    differences: list[Difference] = []
    newest, printed = Progress(""), time.monotonic()
    with _bar() as bar:
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                if not bar:
                    print(progress_line(newest))
                return end.value, differences
            if isinstance(event, Difference):
                differences.append(event)
                print(on_a_line(os.fsencode(event.what)) + ": " + event.why)
                continue
            if event.status != newest.status or time.monotonic() - printed >= _LINE_EVERY:
                printed = time.monotonic()
                if newest.status and not bar:
                    print(progress_line(newest), flush=True)
            newest = event
            if bar:
                bar(event)


@contextmanager
def _bar() -> Iterator[Callable[[Progress], None] | None]:
    """What draws progress on a terminal; None where there is none, and then rich isn't needed either."""
    if not sys.stdout.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    with Bars(BarColumn(), TextColumn("{task.description}", markup=False), console=out) as bars:
        task = bars.add_task("", total=None)
        yield lambda progress: bars.update(
            task, description=progress_line(progress), completed=progress.done, total=progress.total or None)


def progress_line(progress: Progress) -> str:
    """Backing up files...  37%  1,234 of 5,678 files."""
    words = [progress.status]
    if progress.total:
        words.append(f"{min(progress.done * 100 // progress.total, 100):3}%")
    if progress.total_files:
        words.append(f"{progress.files:,} of {progress.total_files:,} files")
    elif progress.files:
        words.append(f"{progress.files:,} files")
    return printable("  ".join(words))


def on_a_line(path: bytes) -> str:
    """A path with what isn't text, and what would spoil the line, as \\xNN."""
    text = path.decode(errors="backslashreplace")
    return text if text.isprintable() else "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable(text: str) -> str:
    """Paths are bytes: what isn't UTF-8 must not end the program that names it."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
