"""Long work in a process of its own: when the console that shows it crashes, it goes on, and the next one finds it.

What the work says about itself is a journal in memory, a pickle each, which a reader follows from its beginning. The
lock on it, which the working process holds, tells whether there will be more.
"""

import fcntl
import os
import pickle
import subprocess
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from time import monotonic, sleep
from types import ModuleType
from typing import Any, BinaryIO

from .errors import CommandFailed
from .events import Event, Progress
from .run import LOG, STATE, log

JOURNAL = STATE / "work"
_LOOK = 0.1                            # seconds between two looks for more, and between two records of progress
_HERE = Path(__file__).parents[1]


@dataclass(frozen=True)
class Apart:
    """A story, of which one function does its work in a process of its own."""

    story: ModuleType
    work: str                          # the function's name; it returns a generator of events

    def __getattr__(self, name: str) -> Any:
        return self._work if name == self.work else getattr(self.story, name)

    def _work(self, *arguments: Any) -> Generator[Event, None, Any]:
        begin(f"{self.story.__name__}:{self.work}", *arguments)
        return follow()

    def under_way(self) -> Generator[Event, None, Any] | None:
        """The work that an earlier console began, all that it has said included; None if there is none."""
        return follow() if JOURNAL.exists() else None


def begin(function: str, *arguments: Any) -> None:
    """Starts MODULE:FUNCTION with these arguments, which nobody else sees: there may be secrets among them."""
    JOURNAL.parent.mkdir(parents=True, exist_ok=True)
    JOURNAL.unlink(missing_ok=True)
    with JOURNAL.open("xb") as journal, open(LOG if LOG.exists() else os.devnull, "ab") as out:
        fcntl.flock(journal, fcntl.LOCK_EX)            # the process inherits it
        worker = subprocess.Popen(
            (sys.executable, "-m", __name__, str(journal.fileno())), cwd=_HERE, stdin=subprocess.PIPE, stdout=out,
            stderr=out, pass_fds=(journal.fileno(),), start_new_session=True)
    assert worker.stdin
    with suppress(BrokenPipeError), worker.stdin as stdin:     # why it has ended, its journal says or does not say
        pickle.dump((function, arguments), stdin)


def follow() -> Generator[Event, None, Any]:
    """What the work says, from its beginning; returns what it returns, raises what it raises.

    Work that has failed is forgotten: it can be begun again. Raises CommandFailed if its process is gone.
    """
    for kind, value in _records():
        if kind == "end":
            return value
        if kind == "error":
            JOURNAL.unlink(missing_ok=True)
            raise value
        yield value
    JOURNAL.unlink(missing_ok=True)
    raise CommandFailed("The process that did the work has ended before its time: the log may say why.",
                        hint="Press ENTER to try again.")


def _records() -> Iterator[tuple[str, Any]]:
    with JOURNAL.open("rb") as journal:
        while True:
            ended = _ended(journal)                    # before looking: what it wrote last is not missed
            while (record := _next(journal)) is not None:
                yield record
            if ended:
                return
            sleep(_LOOK)


def _next(journal: BinaryIO) -> tuple[str, Any] | None:
    place = journal.tell()
    try:
        return pickle.load(journal)
    except (EOFError, pickle.UnpicklingError):         # not there yet, or not to its end
        journal.seek(place)
        return None


def _ended(journal: BinaryIO) -> bool:
    try:
        fcntl.flock(journal, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


# In the process that works

def main() -> None:
    with open(int(sys.argv[1]), "wb", buffering=0) as journal:
        function, arguments = pickle.load(sys.stdin.buffer)
        module, _, name = function.partition(":")

        def say(kind: str, value: Any) -> None:
            journal.write(pickle.dumps((kind, value)))

        try:
            end = _told(getattr(import_module(module), name)(*arguments), say)
            say("end", end)
        except Exception as error:
            log(*"".join(traceback.format_exception(error)).splitlines())
            say("error", error)


def _told(events: Generator[Event, None, Any], say: Callable[[str, Any], None]) -> Any:
    """Every difference is told; of progress what is new at the moment."""
    told, status = 0.0, ""
    while True:
        try:
            event = next(events)
        except StopIteration as end:
            return end.value
        if isinstance(event, Progress):
            if event.status == status and monotonic() - told < _LOOK:
                continue
            told, status = monotonic(), event.status
        say("event", event)


if __name__ == "__main__":
    main()
