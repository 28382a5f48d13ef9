"""What long work says about itself while it goes on: a value, the same for every front end and test."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

from .run import log

T = TypeVar("T")


@dataclass(frozen=True)
class Progress:
    """How far the work is. A newer one replaces an older one.

    done and total are bytes while files are copied, backed up or restored, else steps. total 0: not known yet.
    """

    status: str               # what is being done: "Setup is formatting..."
    done: int = 0
    total: int = 0
    item: str = ""            # the file or device at hand
    subject: str = ""         # lines that say what the work is about: a partition, a disk
    files: int = 0
    total_files: int = 0


@dataclass(frozen=True)
class Difference:
    """One thing that did not come out as recorded; every one of them is in the report."""

    what: str                 # a path or a device
    why: str                  # one sentence


Event = Progress | Difference


def noted(work: Generator[Event, None, T], differences: list[Difference], word: str = "DIFFERENCE"
          ) -> Generator[Event, None, T]:
    """Passes on what work says, with its differences in the list and the log, too; returns what the work returns."""
    with closing(work):
        while True:
            try:
                event = next(work)
            except StopIteration as end:
                return end.value
            if isinstance(event, Difference):
                differences.append(event)
                log(f"{word} {event.what}: {event.why}")
            yield event
