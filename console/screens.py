"""Pages that any story may need: messages, errors, questions, help, the log, work with a gauge."""

import os
import textwrap
from asyncio import Future
from collections import deque
from collections.abc import Iterable, Iterator
from datetime import datetime
from typing import TYPE_CHECKING, TypeVar

from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Container
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Static

from bootenv.errors import AsrError, NewerSchema
from bootenv.events import Difference, Progress
from bootenv.run import LOG, run

from .widgets import TEXT_WIDTH, Gauge, Listing, StatusBar, Title, drawable

if TYPE_CHECKING:
    from bootenv.recover import Check
    from bootenv.sif import AsrSet

    from .app import SetupApp

T = TypeVar("T")

_KEY_NAMES = {"enter": "ENTER", "escape": "ESC"}
_LAST_IN_BAR = ("d", "s", "f1", "f3")
_LOG_LINES = 1000
_SEEN = 3                          # seconds that finished checks stay


def key(name: str, action: str, label: str = "") -> list[Binding]:
    """A key that the status bar shows if it has a label. A letter counts in capitals too."""
    shown = Binding(name, action, label, show=bool(label))
    return [shown, Binding(name.upper(), action, show=False)] if len(name) == 1 else [shown]


def text(content: str, classes: str = "body", id: str | None = None) -> Static:
    return Static(drawable(content), markup=False, classes=classes, id=id)


def bullets(*lines: str) -> Static:
    return text("\n\n".join(f"   •  {line}" for line in lines))


class Page(Screen[T]):
    """One thing that is said or asked, on the canvas. Its answer comes through the future `answered`."""

    BINDINGS = [
        *key("f1", "help", "Help"),
        *key("f3", "leave", "Quit"),
        *key("d", "details"),
        *key("s", "shell"),
    ]
    HEADING = ""
    HELP = ""                      # what F1 says about this page
    WARNING = ""                   # what F3 says before it leaves

    answered: "Future[T]"

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0           # left in the count-down
        self._countdown: Timer | None = None

    @property
    def setup(self) -> "SetupApp":
        return self.app            # type: ignore[return-value]

    def compose(self) -> ComposeResult:
        with Container(id="canvas"):
            yield Title(self.app.title)
            if self.HEADING:
                yield text(self.HEADING, "heading")
            yield from self.content()
            yield StatusBar()

    def content(self) -> Iterable[Widget]:
        return ()

    def on_mount(self) -> None:
        self.show_keys()

    def show_keys(self) -> None:
        """The status bar says which keys there are now."""
        shown = [b for _, b, enabled, _ in self.active_bindings.values() if b.show and enabled]
        shown.sort(key=lambda b: _LAST_IN_BAR.index(b.key) + 1 if b.key in _LAST_IN_BAR else 0)
        self.bar.show("  ".join(f"{_KEY_NAMES.get(b.key, b.key.upper())}={b.description}" for b in shown))

    @property
    def bar(self) -> StatusBar:
        return self.query_one(StatusBar)

    def answer(self, value: T) -> None:
        if not self.answered.done():
            self.answered.set_result(value)

    def action_answer(self, value: T) -> None:
        self.answer(value)

    def count_down(self, seconds: int) -> None:
        """Counts while this page is the one that is seen; time_is_up() comes at the end."""
        self.seconds = seconds
        self.show_seconds()
        self._countdown = self.set_interval(self.setup.tick, self._tick)

    def stop_counting(self) -> None:
        if self._countdown:
            self._countdown.stop()
            self._countdown = None

    @property
    def counting(self) -> bool:
        return self._countdown is not None

    def _tick(self) -> None:
        if self.is_current and self.counting:
            self.seconds -= 1
            self.show_seconds()
            if self.seconds <= 0:
                self.stop_counting()
                self.time_is_up()

    def show_seconds(self) -> None:
        self.bar.show(right=f"{seconds(self.seconds)}" if self.counting or self.seconds else "")

    def time_is_up(self) -> None:
        raise NotImplementedError

    def has_key(self, event: events.Key) -> bool:
        """Whether this page means something by a key: where any key will do, these are not any key."""
        return event.key in self.active_bindings

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return "TMUX" in os.environ if action == "shell" else True

    def action_help(self) -> None:
        self.app.push_screen(HelpPage(self.HELP))

    def action_details(self) -> None:
        self.app.push_screen(LogPage())

    def action_shell(self) -> None:
        open_shell()

    def action_leave(self) -> None:
        self.app.push_screen(LeaveQuestion(self.WARNING), self._maybe_leave)

    def _maybe_leave(self, agreed: bool | None) -> None:
        if agreed:
            self.setup.leave()


def seconds(count: int) -> str:
    return f"{count} second{'s' * (count != 1)}"


def open_shell() -> None:
    """A root shell in a window of the tmux session that this console runs in."""
    socket = os.environ["TMUX"].split(",")[0]
    run(("tmux", "-S", socket, "new-window", "-n", "shell",
         "echo 'Type exit and press ENTER to go back to Setup.'; exec ${SHELL:-/bin/sh}"))


class Notice(Page[None]):
    """Something to read; ENTER goes on."""

    BINDINGS = [*key("enter", "answer(None)", "Continue"), *key("escape", "answer(None)")]

    def __init__(self, heading: str, *paragraphs: str):
        super().__init__()
        self.HEADING = heading
        self.paragraphs = paragraphs

    def content(self) -> Iterable[Widget]:
        yield from (text(paragraph) for paragraph in self.paragraphs)
        yield bullets("To continue, press ENTER.")


class Leaving(Page[None]):
    """The last thing that is seen."""

    BINDINGS = [*key("f1", "nothing"), *key("f3", "nothing")]

    def __init__(self, farewell: str):
        super().__init__()
        self.farewell = farewell

    def content(self) -> Iterable[Widget]:
        yield text(self.farewell, "centred")

    def action_nothing(self) -> None:
        """Too late for that."""


class ErrorPage(Page[str]):
    """What is wrong, what was not touched, what to do. Answers "retry", or what else was offered."""

    HELP = (
        "Setup could not go on. This page says what is wrong, what was and was not changed, and what you can do.\n\n"
        "Put right what is wrong and press ENTER: Setup tries the same thing again, from where it can be "
        "repeated safely. D shows the log, which has all messages of the programs that Setup ran."
    )
    BINDINGS = [
        *key("b", "answer('browse')", "Browse"),
        *key("enter", "answer('retry')", "Retry"),
        *key("escape", "answer('cancel')", "Cancel"),
        *key("d", "details", "Details"),
        *key("s", "shell", "Shell"),
    ]
    _EXPLAINED = {
        "browse": "To say where it is, press B.",
        "retry": "To try again, press ENTER.",
        "cancel": "To go back without changing anything, press ESC.",
    }

    def __init__(self, error: AsrError, *offers: str):
        super().__init__()
        self.HEADING = error.message
        self.error = error
        self.offers = offers if isinstance(error, NewerSchema) else ("retry", *offers)

    def content(self) -> Iterable[Widget]:
        for paragraph in (self.error.untouched, self.error.hint):
            if paragraph:
                yield text(paragraph)
        yield bullets(*(self._EXPLAINED[o] for o in self._EXPLAINED if o in self.offers),
                      "To quit and restart your computer, press F3.")
        yield text(f"Error {self.error.code}")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "answer":
            return parameters[0] in self.offers
        return super().check_action(action, parameters)


class UnexpectedPage(Page[str]):
    """An error that Setup has no words for."""

    HELP = (
        "Setup met an error in itself. The log has the details; press D to read its end.\n\n"
        "ENTER goes back to a point from which the work can be repeated safely. S opens a shell in which you can "
        "look around and copy the log."
    )
    BINDINGS = [
        *key("enter", "answer('retry')", "Retry"),
        *key("d", "details", "Details"),
        *key("s", "shell", "Shell"),
    ]

    def __init__(self, error: Exception):
        super().__init__()
        self.error = error

    def content(self) -> Iterable[Widget]:
        yield Static(drawable(
            "Setup cannot continue because of an unexpected error.\n\n"
            f"{type(self.error).__name__}: {str(self.error)[:300]}\n\n"
            "Do not count on anything that was being done when it happened.\n\n"
            f"The details are in the log, {LOG}.\n\n"
            "To try again, press ENTER. To read the log, press D."
        ), markup=False, classes="popup fatal")


class LeaveQuestion(ModalScreen[bool]):
    """F3 asks."""

    BINDINGS = [
        *key("enter", "dismiss(False)"), *key("escape", "dismiss(False)"), *key("f3", "dismiss(True)"),
    ]

    def __init__(self, warning: str):
        super().__init__()
        self.warning = warning

    def compose(self) -> ComposeResult:
        yield Static(drawable(
            "Automated System Recovery has not finished."
            + (f"\n\n{self.warning}" if self.warning else "")
            + "\n\n   •  To continue, press ENTER.\n\n   •  To quit and restart your computer, press F3."
        ), markup=False, classes="popup")


class Sheet(Page[None]):
    """Something to read that lies over a page; the page goes on below it."""

    BINDINGS = [
        *key("enter", "close"), *key("escape", "close", "Back"), *key("f1", "close"), *key("d", "close"),
    ]

    def action_close(self) -> None:
        self.app.pop_screen()


class HelpPage(Sheet):
    HEADING = "Help"

    def __init__(self, about: str):
        super().__init__()
        self.about = about

    def content(self) -> Iterable[Widget]:
        yield text(self.about)
        yield text("Keys on every page:", "heading")
        yield text(
            "F1     Help on the page that you are on\n"
            "F3     Quit: Setup asks first, then your computer restarts\n"
            "D      Details: the end of the log\n"
            + ("S      Shell: a command line; type exit to come back\n" if "TMUX" in os.environ else "")
            + "ESC    Back"
        )


class LogPage(Sheet):
    HEADING = "The end of the log"
    BINDINGS = [*key("s", "shell", "Shell")]
    HELP = "The newest lines are at the end. The arrow keys, PAGE UP and PAGE DOWN move."

    def content(self) -> Iterable[Widget]:
        yield Listing(tail(), height=17, at_end=True)
        yield text(str(LOG))


def tail() -> list[str]:
    """The last lines of the log, without their dates."""
    try:
        with LOG.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip("\n")[11:] for line in deque(file, _LOG_LINES)]
    except OSError as error:
        return [f"There is no log to show: {error.strerror}."]


class Work(Page[None]):
    """Long work: a gauge, and what is at hand in the status bar. Work goes on when this page is not on top."""

    class Happened(Message):
        """How far the work is; of several, only the newest is worth drawing."""

        def __init__(self, progress: Progress):
            super().__init__()
            self.progress = progress

        def can_replace(self, message: Message) -> bool:
            return isinstance(message, Work.Happened)

    class Differed(Message):
        """One thing that did not come out as recorded; none of them is ever left out."""

        def __init__(self, difference: Difference):
            super().__init__()
            self.difference = difference

    BINDINGS = [*key("f1", "help"), *key("f3", "leave")]

    def __init__(self) -> None:
        super().__init__()
        self.differences: list[Difference] = []
        self._about = ""

    def on_work_happened(self, message: Happened) -> None:
        self.show_progress(message.progress)

    def on_work_differed(self, message: Differed) -> None:
        self.differences.append(message.difference)

    def say(self, about: str) -> None:
        """The lines above the gauge; drawn only when they change."""
        if about != self._about:
            self._about = about
            self.query_one("#about", Static).update(about)

    def show_progress(self, progress: Progress) -> None:
        self.query_one(Gauge).show(progress.status, progress.done, progress.total)


class ChecksPage(Page[None]):
    """Checks, a line each. The first that fails becomes the page's answer: its error is raised where it is asked."""

    HELP = (
        "Setup checks everything that it can before it changes anything. A warning does not stop it.\n\n"
        "If a check fails, Setup says what is wrong and what you can do."
    )
    WARNING = "Nothing was changed yet."

    def __init__(self, heading: str, checks: "Iterator[Check]"):
        super().__init__()
        self.HEADING = heading
        self.checks = checks
        self.lines: list[str] = []

    def content(self) -> Iterable[Widget]:
        yield text("", id="checks")

    def on_mount(self) -> None:
        self.work_through()

    @work
    async def work_through(self) -> None:
        try:
            checks = await self.setup.each(self.checks, self.show_check)
        except Exception as error:
            return self.answered.set_exception(error)
        if failed := next((check.error for check in checks if check.error), None):
            return self.answered.set_exception(failed)
        self.count_down(_SEEN)

    def show_check(self, check: "Check") -> None:
        self.lines += check_lines(check)
        self.query_one("#checks", Static).update(drawable("\n".join(self.lines)))

    def time_is_up(self) -> None:
        self.answer(None)


def check_lines(check: "Check") -> list[str]:
    result = "failed" if check.error else "warning" if check.note else "OK"
    note = textwrap.wrap(check.note, TEXT_WIDTH - 6)
    return [f"{check.title:.<{TEXT_WIDTH - 10}} {result}", *(f"      {line}" for line in note)]


def set_lines(set: "AsrSet") -> list[str]:
    """What tells one ASR set from another, for people."""
    return [
        f"      Computer     {set.host}",
        f"      System       {set.system}",
        f"      Created      {when(set.created)}",
        f"      Backup       {set.backup.place.rstrip('/')}/{set.backup.name}",
    ]


def when(time: datetime) -> str:
    """The live system does not know the time zone of the machine: UTC, and it says so."""
    return f"{time:%Y-%m-%d %H:%M} UTC"


class Browse(Page[str]):
    """Asks for a path. Answers "" when it is cancelled."""

    HELP = "Type the path and press ENTER. BACKSPACE deletes, the left and right arrows move. ESC goes back."
    BINDINGS = [*key("escape", "answer('')", "Cancel"), *key("f1", "help", "Help")]

    def __init__(self, heading: str, explanation: str, value: str = ""):
        super().__init__()
        self.HEADING = heading
        self.explanation = explanation
        self.value = value

    def content(self) -> Iterable[Widget]:
        field = Input(self.value, select_on_focus=False)
        field.cursor_blink = False
        yield text(self.explanation)
        yield field

    def show_keys(self) -> None:
        self.bar.show("ENTER=Continue  ESC=Cancel  F1=Help")

    def on_input_submitted(self, message: Input.Submitted) -> None:
        if message.value.strip():
            self.answer(message.value.strip())
