"""The `asr` command."""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bootenv.errors import AsrError, NeedsRoot
from bootenv.events import Difference, Event, Progress

from . import __version__

# Textual, rich and the rooms of bootenv are imported by the commands that need them: the imports are most of
# a command's start.
if TYPE_CHECKING:
    from bootenv.prepare import Survey

_CMDLINE = Path("/proc/cmdline")
_LINE_EVERY = 5                        # seconds, where progress is printed line by line


def main(argv: list[str] | None = None) -> int:
    arguments = parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except AsrError as error:
        said = [f"asr: {error.code}: {error.message}", *filter(None, [error.untouched, error.hint])]
    except OSError as error:
        said = [f"asr: {error.filename or ''}: {error.strerror or error}"]
    except KeyboardInterrupt:
        said = ["asr: interrupted"]
    print(*said, sep="\n", file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="asr", description="Automated System Recovery for Linux.")
    parser.add_argument("--version", action="version", version=f"asr {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    command = commands.add_parser("prepare", help="back up this computer's system and make its ASR disk")
    command.add_argument("--to", metavar="DIR|FILE", help="where the backup is written; without it, a wizard asks")
    command.add_argument("--disk", metavar="DEVICE|IMAGE|DIR", help="the ASR disk: /dev/fd0, a USB stick, an image")
    command.set_defaults(run=prepare, fail=command.error)

    command = commands.add_parser("plan", help="print what recovery from an asr.sif would run; nothing is changed")
    command.add_argument("sif", metavar="SIF")
    command.set_defaults(run=plan)

    command = commands.add_parser("verify", help="compare every file in a backup with its checksum")
    command.add_argument("backup", metavar="BACKUP")
    command.set_defaults(run=verify)

    command = commands.add_parser("console", help="what the recovery medium shows on its screen")
    command.set_defaults(run=console)
    return parser


def console(arguments: argparse.Namespace) -> int:
    """The stage that the kernel's command line names, on this terminal."""
    from .app import SetupApp

    app: SetupApp
    if stage(_CMDLINE.read_text()) == "restore":
        from bootenv import restore

        from .restore import RestoreApp

        app = RestoreApp(restore)
    else:
        from bootenv import recover

        from .recover import RecoverApp

        app = RecoverApp(recover)
    app.run(mouse=False)
    return app.return_code or 0


def stage(cmdline: str) -> str:
    """What asr.stage= says; the last one counts, as for the kernel."""
    said = [word.removeprefix("asr.stage=") for word in cmdline.split() if word.startswith("asr.stage=")]
    return said[-1] if said else "recover"


def prepare(arguments: argparse.Namespace) -> int:
    """Status 0 only when the set was read back and matches."""
    from bootenv import prepare as story

    if bool(arguments.to) != bool(arguments.disk):
        arguments.fail("--to and --disk go together")
    if not arguments.to and not sys.stdout.isatty():
        arguments.fail("without a terminal, --to and --disk are needed")
    if os.geteuid():
        raise NeedsRoot("Preparing an ASR set reads every file and disk, so it needs root.",
                        hint="Run it again with sudo.")
    survey = story.survey()
    if not arguments.to:
        from .prepare import PrepareApp

        app = PrepareApp(story, survey)
        app.run(mouse=False)
        return app.return_code or 0
    return _prepare(story, survey, arguments.to, arguments.disk)


def _prepare(story: Any, survey: "Survey", to: str, disk: str) -> int:
    destination = story.destination(survey, to)
    for warning in destination.warnings:
        print(f"CAUTION: {warning}")
    story.check_disk(survey.draft, disk)
    selection, _ = followed(story.select(survey))
    set, unlike = followed(story.prepare(survey, destination, selection))
    followed(story.write_disk(set, disk))
    print(f"Backup: {destination.reference.place.rstrip('/')}/{destination.reference.name}", f"ASR disk: {disk}",
          "Label it:", story.label_of(set), sep="\n")
    for left_out in survey.left_out:
        print(f"NOT protected: {left_out.what}: {left_out.why}")
    for difference in unlike:
        print(f"NOT as it was: {printable(f'{difference.what}: {difference.why}')}")
    print("The backup and the ASR disk were read back and match.")
    return 0


def plan(arguments: argparse.Namespace) -> int:
    from bootenv.asr_disk import inside
    from bootenv.plan import as_text
    from bootenv.plan import plan as steps
    from bootenv.sif import read_sif

    print(as_text(steps(read_sif(Path(inside(arguments.sif)).read_bytes()).layout)), end="")
    return 0


def verify(arguments: argparse.Namespace) -> int:
    from bootenv.asr_disk import inside
    from bootenv.backup import verify_backup

    _, damaged = followed(verify_backup(Path(inside(arguments.backup))))
    print(f"{len(damaged)} of its files are damaged." if damaged else "The backup is whole.")
    return 1 if damaged else 0


def followed(events: Iterator[Event]) -> tuple[Any, list[Difference]]:
    """Does long work and prints how far it is: a bar on a terminal, else lines. What it returned, and Differences."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn
    from rich.progress import Progress as Bars

    out = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    columns = (BarColumn(), TextColumn("{task.description}", markup=False))
    differences: list[Difference] = []
    newest, printed = Progress(""), time.monotonic()
    with Bars(*columns, console=out, disable=not out.is_terminal) as bars:
        task = bars.add_task("", total=None)
        while True:
            try:
                event = next(events)
            except StopIteration as end:
                if not out.is_terminal:
                    out.print(progress_line(newest))
                return end.value, differences
            if isinstance(event, Difference):
                differences.append(event)
                out.print(printable(f"{event.what}: {event.why}"))
                continue
            if event.status != newest.status or time.monotonic() - printed >= _LINE_EVERY:
                printed = time.monotonic()
                if newest.status and not out.is_terminal:
                    out.print(progress_line(newest))
            newest = event
            bars.update(task, description=progress_line(event), completed=event.done, total=event.total or None)


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


def printable(text: str) -> str:
    """Paths are bytes: what isn't UTF-8 must not end the program that names it."""
    return text.encode(errors="surrogateescape").decode(errors="replace")


if __name__ == "__main__":
    sys.exit(main())
