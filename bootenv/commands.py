"""Commands that the maker of a set wants to run at recovery, before and after the files are restored.

    # /etc/asr/commands.toml
    [[commands]]
    title = "Registering this computer"         # what the screen shows meanwhile
    argv = ["register", "--force"]              # no shell; the first word is a path or found in PATH
    when = "after"                              # or "before"
    where = "system"                            # in the restored system; or "recovery", the minimal OS, as by default
    critical = true                             # its failure is the restore's; by default it is a difference

`asr prepare` puts them into asr.sif, so they are what they were when the set was made. Each runs as root, in the order
of the file, with ASR_TARGET: the directory of the restored system, which is / for a command that runs in it. "after"
is when the files are back, and before the boot loader and initramfs are made. A restore that is repeated runs them
again. What they say is in the log; nobody answers what they ask, and one that takes more than twelve hours is ended,
and has failed. asr.sif is no place for secrets.
"""

import os
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import AsrError, BadCommands, CommandFailed, CriticalCommandFailed, ToolMissing
from .events import Difference, Event, Progress
from .run import ROOT, has_tool, run
from .sif import LIMIT, Command, record_of, why_wrong
from .target import TARGET, chroot, run_in

LIST = "etc/asr/commands.toml"         # on the healthy machine
_LONGEST = 12 * 3600                   # seconds: one may bring a whole database back, but nobody may be there to end it
_PLACES = {"recovery": "in the recovery environment", "system": "in the restored system"}


def read_commands() -> tuple[Command, ...]:
    """What this machine's list says; () if there is none. Raises BadCommands."""
    try:
        data = (ROOT / LIST).read_bytes()
    except FileNotFoundError:
        return ()
    if len(data) > LIMIT:
        raise _bad("it is too large")
    try:
        document = tomllib.loads(data.decode())
    except (ValueError, RecursionError) as error:
        raise _bad(f"it is not TOML: {error}") from None
    rows = document.pop("commands", [])
    if document or not isinstance(rows, list):
        raise _bad(f"there is {min(document, default='commands')}, where only [[commands]] is known")
    return tuple(_command(number, row) for number, row in enumerate(rows, 1))


def _command(number: int, row: object) -> Command:
    try:
        command = record_of(Command, row)
    except ValueError as error:
        raise _bad(f"in command {number}, {error}") from None
    if why := why_wrong(command):
        raise _bad(f"in command {number}, {why}")
    return command


def _bad(why: str) -> BadCommands:
    return BadCommands(f"/{LIST} cannot be used: {why}.", hint="Put that right, or move the file away.")


def as_text(commands: Iterable[Command]) -> str:
    """A line for each, for people."""
    lines = [f"{_when(command)}: {command.title}{' (critical)' if command.critical else ''}\n"
             f"     $ {' '.join(map(_quoted, command.argv))}\n" for command in commands]
    return "".join(lines)


def _when(command: Command) -> str:
    return f"{command.when.capitalize()} the restore, {_PLACES[command.where]}"


def _quoted(word: str) -> str:
    """A word that a stranger wrote must not make a line of its own."""
    return word if word.isprintable() and word and " " not in word else repr(word)


def missing_tools(commands: Iterable[Command]) -> Iterator[Command]:
    """The commands whose program the recovery environment, which this is, does not have."""
    for command in commands:
        program = command.argv[0]
        if command.where != "recovery" or Path(program).is_relative_to(TARGET):
            continue                   # it is on what will be restored
        if not (os.access(program, os.X_OK) if program.startswith("/") else has_tool(program)):
            yield command


def run_commands(commands: Iterable[Command], when: str, target: Path) -> Iterator[Event]:
    """Runs those of "before" or "after". Raises CriticalCommandFailed; another's failure is a Difference."""
    for command in (command for command in commands if command.when == when):
        yield Progress(command.title, item=command.argv[0])
        try:
            if command.where == "system":
                with chroot(target):
                    run_in(target, *command.argv, environment={"ASR_TARGET": "/"}, limit=_LONGEST)
            else:
                run(command.argv, environment={"ASR_TARGET": str(target)}, limit=_LONGEST)
        except (CommandFailed, ToolMissing, OSError) as error:
            if command.critical:
                raise _critical(command, error) from error
            yield Difference(command.title, f"The command failed: {error}")


def _critical(command: Command, error: Exception) -> AsrError:
    return CriticalCommandFailed(f"The critical command {command.title!r} failed: {error}",
                                 hint="Read the log. Press ENTER to restore again.")
