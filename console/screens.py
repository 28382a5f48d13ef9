"""Pages that any story may need: messages, errors, questions, help, the log, work with a gauge."""

import os
import textwrap
from asyncio import Future, to_thread
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from threading import Event
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from textual import events, work
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Container
from textual.geometry import Size
from textual.screen import ModalScreen, Screen
from textual.timer import Timer
from textual.widget import Widget
from textual.widgets import Input, Static

from bootenv import run
from bootenv.errors import AsrDiskNotBlank, AsrError, DamagedBackup, NewerSchema
from bootenv.events import Difference, Progress
from bootenv.sif import backup_of

from .widgets import (
    HEIGHT,
    TEXT_WIDTH,
    Field,
    Gauge,
    Lines,
    Listing,
    Marks,
    StatusBar,
    Title,
    cut,
    drawable,
    shortened,
    wrapped,
)

if TYPE_CHECKING:
    from bootenv.recover import Check
    from bootenv.sif import AsrSet

    from .app import SetupApp

T = TypeVar("T")

_KEY_NAMES = {"enter": "ENTER", "escape": "ESC"}
_LAST_IN_BAR = ("d", "s", "f1", "f3")
_LOG_LINES = 1000
_SEEN = 3                          # seconds that finished checks stay
_FRAME = 0.1                       # seconds between two moves of a gauge


def key(name: str, action: str, label: str = "") -> list[BindingType]:
    """A key that the status bar shows if it has a label. A letter counts in capitals too."""
    shown = Binding(name, action, label, show=bool(label))
    return [shown, Binding(name.upper(), action, show=False)] if len(name) == 1 else [shown]


def text(content: str, classes: str = "body", id: str | None = None) -> Static:
    return Static(drawable(content), markup=False, classes=classes, id=id)


def bullets(*lines: str) -> Static:
    return text("\n\n".join(f"   •  {line}" for line in lines))


def is_short(size: Size) -> bool:
    """A serial line has 24 lines: the canvas loses its first row there."""
    return size.height < HEIGHT


class Page(Screen[T]):
    """One thing that is said or asked, on the canvas. Its answer comes through the future `answered`."""

    BINDINGS = key("f1", "help", "Help") + key("f3", "leave", "Quit") + key("d", "details") + key("s", "shell")
    HEADING = ""
    EXPLANATION = ""               # what F1 says about this page
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
        with Container(id="canvas", classes="short" if is_short(self.app.size) else ""):
            yield Title(self.app.title)
            if self.HEADING:
                yield text(self.HEADING, "heading")
            yield from self.content()
            yield StatusBar()

    def content(self) -> Iterable[Widget]:
        return ()

    def on_mount(self) -> None:
        self.show_keys()

    def on_resize(self, event: events.Resize) -> None:
        self.query_one("#canvas").set_class(is_short(event.size), "short")

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

    def fail(self, error: Exception) -> None:
        """Where this page was asked, the error is raised."""
        if not self.answered.done():
            self.answered.set_exception(error)

    def action_answer(self, value: T) -> None:
        self.answer(value)

    def count_down(self, seconds: int) -> None:
        """Counts while this page is the one that is seen; time_is_up() comes at the end."""
        self.seconds = seconds
        self._countdown = self.set_interval(self.setup.tick, self._tick)
        self.show_seconds()

    def stop_counting(self) -> None:
        if self._countdown:
            self._countdown.stop()
            self._countdown = None

    @property
    def counting(self) -> bool:
        return self._countdown is not None

    def _tick(self) -> None:
        if self.app.screen is self and self.counting:
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
        self.app.push_screen(HelpPage(self.EXPLANATION))

    def action_details(self) -> None:
        self.app.push_screen(LogPage())

    def action_shell(self) -> None:
        try:
            open_shell()
        except AsrError as error:
            self.app.push_screen(Message("The shell could not be opened.", str(error)))

    def action_leave(self) -> None:
        self.app.push_screen(LeaveQuestion(self.WARNING, self.setup.QUIT), self._maybe_leave)

    def _maybe_leave(self, agreed: bool | None) -> None:
        if agreed:
            self.setup.leave()


def seconds(count: int) -> str:
    return f"{count} second{'s' * (count != 1)}"


def open_shell() -> None:
    """A root shell in a window of the tmux session that this console runs in."""
    socket = os.environ["TMUX"].split(",")[0]
    run.run(("tmux", "-S", socket, "new-window", "-n", "shell",
         "echo 'Type exit and press ENTER to go back to Setup.'; exec ${SHELL:-/bin/sh}"))


class Notice(Page[None]):
    """Something to read; ENTER goes on."""

    BINDINGS = key("enter", "answer(None)", "Continue") + key("escape", "answer(None)")

    def __init__(self, heading: str, *paragraphs: str):
        super().__init__()
        self.HEADING = heading
        self.paragraphs = paragraphs

    def content(self) -> Iterable[Widget]:
        yield from (text(paragraph) for paragraph in self.paragraphs)
        yield bullets("To continue, press ENTER.")


class Leaving(Page[None]):
    """The last thing that is seen."""

    BINDINGS = key("f1", "nothing") + key("f3", "nothing")

    def __init__(self, farewell: str):
        super().__init__()
        self.farewell = farewell

    def content(self) -> Iterable[Widget]:
        yield text(self.farewell, "centred")

    def action_nothing(self) -> None:
        """Too late for that."""


_EXPLAINED = {
    "browse": "To name another place, press B.",
    "retry": "To try again, press ENTER.",
    "copy": "To use the copy that is in the backup, press U.",
    "format": "To format this disk, press F. What is on it, if anything, is lost.",
    "agree": "To format the disks without it, and connect it later, press F8.",
    "cancel": "To go back without changing anything, press ESC.",
}


def explanation(kind: type[AsrError]) -> list[str]:
    """What `asr explain` and F1 say of an error: its number and title, the cause, what was not touched, what to do."""
    return [f"ASR-{kind.number:03d}: {kind.title}", kind.cause,
            kind.untouched or "What had been changed before is said where the error appears.", kind.remedy]


class ErrorPage(Page[str]):
    """What is wrong, what was not touched, what to do. Answers "retry", or what else was offered."""

    BINDINGS = (
        key("b", "answer('browse')", "Browse")
        + key("u", "answer('copy')", "Use Copy")
        + key("f", "answer('format')", "Format")
        + key("f8", "answer('agree')", "Agree")
        + key("enter", "answer('retry')", "Retry")
        + key("escape", "answer('cancel')", "Cancel")
        + key("d", "details", "Details")
        + key("s", "shell", "Shell")
    )

    def __init__(self, error: AsrError, *offers: str, heading: str = "", changed: str = ""):
        super().__init__()
        self.EXPLANATION = "\n\n".join(explanation(type(error))) + (
            "\n\nENTER tries the same thing again, from where it can be repeated safely. D shows the end of the log.")
        brief = len(error.message) <= 2 * TEXT_WIDTH
        self.HEADING = heading or (error.message if brief else "Setup cannot continue.")
        self.error = error
        # What an error says of itself it says as if nothing had happened before it.
        self.untouched = changed or error.untouched
        self.offers = offers if isinstance(error, NewerSchema) else ("retry", *offers)

    def content(self) -> Iterable[Widget]:
        message = self.error.message if self.error.message != self.HEADING else ""
        for paragraph in (message, self.untouched, self.error.hint):
            if paragraph:
                yield text(paragraph)
        explained = _EXPLAINED
        if isinstance(self.error, AsrDiskNotBlank):
            explained = _EXPLAINED | {"agree": "To use this disk all the same, press F8."}
        elif isinstance(self.error, DamagedBackup):
            explained = _EXPLAINED | {"agree": "To format the disks all the same, press F8."}
        yield bullets(*(explained[offer] for offer in explained if offer in self.offers), self.setup.QUIT)
        yield text(f"Error {self.error.code}")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "answer":
            return parameters[0] in self.offers
        return super().check_action(action, parameters)


class UnexpectedPage(Page[str]):
    """An error that Setup has no words for."""

    EXPLANATION = (
        "Setup met an error in itself. The log has the details; press D to read its end.\n\n"
        "ENTER goes back to a point from which the work can be repeated safely. S opens a shell in which you can "
        "look around and copy the log."
    )
    BINDINGS = key("enter", "answer('retry')", "Retry") + key("d", "details", "Details") + key("s", "shell", "Shell")

    def __init__(self, error: Exception, heading: str = ""):
        super().__init__()
        self.HEADING = heading
        self.error = error

    def content(self) -> Iterable[Widget]:
        yield Static(drawable(
            "Setup cannot continue because of an unexpected error.\n\n"
            f"{type(self.error).__name__}: {str(self.error)[:300]}\n\n"
            "What was being done at that moment may be incomplete.\n\n"
            f"The details are in the log, {run.LOG}.\n\n"
            "To try again, press ENTER. To read the log, press D."
        ), markup=False, classes="popup fatal")


async def tried_again(app: "SetupApp", error: Exception) -> bool:
    """Says what went wrong. True: the same is to be tried again, from the question that may have been the cause.

    An error in the program itself would only come again.
    """
    return await app.ask(app.page_for(error, "cancel")) == "retry" and isinstance(error, AsrError)


class LeaveQuestion(ModalScreen[bool]):
    """F3 asks."""

    BINDINGS = key("enter", "dismiss(False)") + key("escape", "dismiss(False)") + key("f3", "dismiss(True)")

    def __init__(self, warning: str, quit: str):
        super().__init__()
        self.warning = warning
        self.quit = quit

    def compose(self) -> ComposeResult:
        said = [f"{self.app.title} has not finished.", *filter(None, [self.warning]),
                "   •  To continue, press ENTER.", f"   •  {self.quit}"]
        yield Static(drawable("\n\n".join(said)), markup=False, classes="popup")


class Sheet(Page[None]):
    """Something to read that lies over a page; the page goes on below it."""

    BINDINGS = key("enter", "close") + key("escape", "close", "Back") + key("f1", "close") + key("d", "close")

    def action_close(self) -> None:
        self.app.pop_screen()


class Message(Sheet):
    def __init__(self, heading: str, said: str):
        super().__init__()
        self.HEADING = heading
        self.said = said

    def content(self) -> Iterable[Widget]:
        yield text(self.said)


class HelpPage(Message):
    def __init__(self, explanation: str):
        super().__init__("Help", explanation)

    def content(self) -> Iterable[Widget]:
        yield from super().content()
        yield text("On every page:  F3=Quit  D=Details: the end of the log"
                   + ("  S=Shell" if "TMUX" in os.environ else ""))


class LogPage(Sheet):
    HEADING = "The end of the log"
    BINDINGS = key("s", "shell", "Shell")
    EXPLANATION = "The newest lines are at the end. The arrow keys, PAGE UP and PAGE DOWN move."

    def content(self) -> Iterable[Widget]:
        yield Listing(tail(), height=17, at_end=True)
        yield text(str(run.LOG))


def tail() -> list[str]:
    """The last lines of the log, without their dates."""
    try:
        with run.LOG.open(encoding="utf-8", errors="replace") as file:
            return [part for line in deque(file, _LOG_LINES) for part in textwrap.wrap(
                line.rstrip("\n")[11:], TEXT_WIDTH - 4, subsequent_indent=" " * 9, drop_whitespace=False)]
    except OSError as error:
        return [f"There is no log to show: {error.strerror}."]


class Work(Page[None]):
    """Long work, done by a thread that leaves here how far it is. It goes on when this page is not seen."""

    def __init__(self) -> None:
        super().__init__()
        self.newest = Progress("")               # a newer one replaces an older one
        self.differences: list[Difference] = []  # none of which is ever left out
        self.cancelled = Event()
        self._shown = self.newest

    def on_mount(self) -> None:
        self.set_interval(_FRAME, self.look)

    def look(self) -> None:
        """A gauge that moved with every event would take the time that the work needs."""
        if self.newest is not self._shown:
            self._shown = self.newest
            self.show_progress(self._shown)

    def show_progress(self, progress: Progress) -> None:
        raise NotImplementedError


class Cancellable(Work):
    """Work that ESC ends, after a question; what it wrote is removed then."""

    BINDINGS = key("escape", "cancel", "Cancel")
    CANCEL = "To cancel the backup, press F3."

    def action_cancel(self) -> None:
        self.app.push_screen(LeaveQuestion(self.WARNING, self.CANCEL), self._maybe_cancel)

    def _maybe_cancel(self, agreed: bool | None) -> None:
        if agreed:
            self.cancelled.set()


class ProgressPage(Work):
    """Backup and restore: how far, how long, how much."""

    def __init__(self, heading: str, explanation: str, warning: str):
        super().__init__()
        self.HEADING, self.EXPLANATION, self.WARNING = heading, explanation, warning
        self.started = self.phase = monotonic()
        self.copied = Progress("")     # the last one that counted files
        self.copying = 0.0             # seconds it took to get there

    def content(self) -> Iterable[Widget]:
        yield Lines(10)
        yield Gauge()

    def on_mount(self) -> None:
        self.query_one(Gauge).show("Progress", 0, 0)
        self.show_fields()
        self.set_interval(1, self.show_fields)

    def show_progress(self, progress: Progress) -> None:
        if progress.total_files:
            if progress.status != self.copied.status:
                self.phase = monotonic()
            self.copied, self.copying = progress, monotonic() - self.phase
            self.query_one(Gauge).show("Progress", progress.done, progress.total)
        self.show_fields()

    def show_fields(self) -> None:
        self.query_one(Lines).show(*progress_lines(
            self.newest, self.copied, self.copying, monotonic() - self.started, len(self.differences)))


def progress_lines(
    progress: Progress, copied: Progress, copying: float, elapsed: float, differences: int
) -> list[str]:
    """The fields of the progress pages. `copied` is the last progress that counted files, after `copying` seconds."""
    rate = copied.done / copying if copying >= 1 else 0.0
    remaining = clock((copied.total - copied.done) / rate) if rate else ""
    if progress.status != copied.status and copied.done:       # what follows the files has no measure
        remaining = "not known for this step"
    return [
        f"Status                {progress.status}",
        f"Elapsed               {clock(elapsed)}",
        f"Estimated remaining   {remaining}",
        f"Processing            {shortened(progress.item, TEXT_WIDTH - 22)}",
        "",
        f"{'':22}{'Processed':>18}{'Estimated':>20}",
        f"Files                 {copied.files:>18,}{copied.total_files:>20,}",
        f"Bytes                 {copied.done:>18,}{copied.total:>20,}",
        f"MB/s                  {rate / 2**20:>18.1f}",
        f"Differences           {differences:>18,}" if differences else "",
    ]


def clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"


class ChecksPage(Page[None]):
    """Checks, a line each. The first that fails becomes the page's answer: its error is raised where it is asked."""

    EXPLANATION = (
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
        yield Lines(17)

    def on_mount(self) -> None:
        self.work_through()

    @work
    async def work_through(self) -> None:
        try:
            checks = await self.setup.each(self.checks, self.show_check)
        except Exception as error:
            return self.fail(error)
        if failed := next((check.error for check in checks if check.error), None):
            return self.fail(failed)
        self.count_down(_SEEN)

    def show_check(self, check: "Check") -> None:
        self.lines += check_lines(check)
        self.query_one(Lines).show(*self.lines)

    def time_is_up(self) -> None:
        self.answer(None)


def check_lines(check: "Check") -> list[str]:
    result = "failed" if check.error else "warning" if check.note else "OK"
    return [f"{check.title + ' ':.<{TEXT_WIDTH - 10}} {result}", *wrapped(check.note, indent="      ")]


def difference_lines(difference: Difference) -> list[str]:
    """For a list box."""
    return [shortened(difference.what, TEXT_WIDTH - 4), *wrapped(difference.why, TEXT_WIDTH - 4, "    ")]


def set_lines(set: "AsrSet") -> list[str]:
    """What tells one ASR set from another, for people."""
    return [
        f"      Computer     {cut(set.host, TEXT_WIDTH - 19)}",
        f"      System       {cut(set.system, TEXT_WIDTH - 19)}",
        f"      Created      {when(set.created)}",
        f"      Backup       {shortened(backup_of(set), TEXT_WIDTH - 19)}",
    ]


def along(set: "AsrSet") -> str:
    """A line of such a list for what goes along with the set, if anything does."""
    words = [f"{len(set.files)} files"] if set.files else []
    if set.commands:
        before = sum(command.when == "before" for command in set.commands)
        words.append(f"commands: {before} before, {len(set.commands) - before} after the restore")
    return f"\n      With it      {'; '.join(words)}" if words else ""


def when(time: datetime) -> str:
    """The live system does not know the time zone of the machine: UTC, and it says so."""
    return f"{time:%Y-%m-%d %H:%M} UTC"


class Looking(Page[Any]):
    """While something is looked at that takes its time. Answers what that returns, raises what it raises."""

    EXPLANATION = "Disks, volumes and network places are looked at. Nothing on them is changed."

    def __init__(self, heading: str, look: "Callable[[], Any]", warning: str = ""):
        super().__init__()
        self.HEADING, self.WARNING = heading, warning
        self.look = look

    def content(self) -> Iterable[Widget]:
        yield text("Please wait. This takes some seconds.")

    def on_mount(self) -> None:
        self.work_on()

    @work
    async def work_on(self) -> None:
        try:
            self.answer(await to_thread(self.look))
        except Exception as error:
            self.fail(error)


class Choosing(Page[T]):
    """A list of what is found, which takes its time; one of it is chosen, or nothing can be done with `NEEDS`."""

    LOOKING = "Looking..."
    NONE = "There is none."
    NEEDS = "choose"                   # the action that there must be something for

    def __init__(self, find: "Callable[[], Sequence[Any]]"):
        super().__init__()
        self.find = find
        self.found: Sequence[Any] = ()

    def line(self, found: Any) -> str:
        raise NotImplementedError

    def on_mount(self) -> None:
        self.action_look()

    @work(exclusive=True)
    async def action_look(self) -> None:
        marks = self.query_one(Marks)
        marks.show([self.LOOKING])
        try:
            self.found = await to_thread(self.find)
        except Exception as error:
            return self.fail(error)
        marks.show([self.line(found) for found in self.found] or [self.NONE])
        self.show_keys()

    @property
    def chosen(self) -> Any:
        """None while there is nothing."""
        at = self.query_one(Marks).chosen
        return self.found[at] if at < len(self.found) else None

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return bool(self.found) if action == self.NEEDS else super().check_action(action, parameters)


class Inspecting(Page[bool]):
    """Page 2, until all devices are known. Answers whether F2 was pressed."""

    BINDINGS = key("f2", "answer(True)") + key("f3", "leave")
    EXPLANATION = (
        "Setup is finding out which disks, drives and other devices this computer has.\n\n"
        "You can press F2 now: Automated System Recovery then starts at once."
    )

    def __init__(self, ready: Path):
        super().__init__()
        self.ready = ready

    def show_keys(self) -> None:
        self.bar.show("Setup is inspecting your computer's hardware configuration...")

    def on_mount(self) -> None:
        self.set_interval(0.2, self._look)

    def _look(self) -> None:
        if self.ready.exists():
            self.answer(False)


class Browse(Page[str]):
    """Asks for a path. Answers "" when it is cancelled."""

    EXPLANATION = "Type the path and press ENTER. BACKSPACE deletes, the left and right arrows move. ESC goes back."
    BINDINGS = key("escape", "answer('')", "Cancel") + key("f1", "help", "Help")

    def __init__(self, heading: str, explanation: str, value: str = ""):
        super().__init__()
        self.HEADING = heading
        self.explanation = explanation
        self.value = value

    def content(self) -> Iterable[Widget]:
        field = Field(self.value, select_on_focus=False)
        field.cursor_blink = False
        yield text(self.explanation)
        yield field

    def show_keys(self) -> None:
        self.bar.show("ENTER=Continue  ESC=Cancel  F1=Help")

    def on_input_submitted(self, message: Input.Submitted) -> None:
        if message.value.strip():
            self.answer(message.value.strip())


class Passphrase(Page["bytes | None"]):
    """Asks for the passphrase of an encrypted volume: once where it can be tried, twice where it will be a new one.

    Answers None when a new header is wanted in place of the saved one.
    """

    HEADING = "Encrypted volume"
    BINDINGS = key("f7", "show", "Show") + key("f8", "answer(None)", "New Header")
    EXPLANATION = (
        "An encrypted volume needs its passphrase: to be made again, and once more to be filled with its files. It is "
        "kept in this computer's memory until the next start, and nowhere else.\n\n"
        "Where the backup is connected, the volume gets the header that was saved with it, so that all its old "
        "passphrases and keys open it. Without that, it gets a new header with the passphrase that you type.\n\n"
        "F4 chooses the layout of your keyboard. F7 shows what you type, so that you can make sure."
    )

    LABEL = "Volume"
    PROMPT = "Passphrase:"
    EMPTY = "Type the passphrase, then press ENTER."
    TRYING = "Please wait while Setup tries this passphrase..."
    WRONG = "This passphrase does not open the volume."

    def __init__(self, name: str, *, opens: "Callable[[bytes], bool] | None", first: str, renew: bool = False,
                 warning: str = ""):
        super().__init__()
        self.name_of_volume = name
        self.opens = opens                     # None: a new passphrase
        self.first = first                     # why it is asked for
        self.renew = renew                     # a new header may be chosen
        self.WARNING = warning

    def content(self) -> Iterable[Widget]:
        yield text(self.first)
        yield text(f"      {self.LABEL:<12} {shortened(self.name_of_volume, TEXT_WIDTH - 19)}")
        yield text(self.PROMPT if self.opens else "New passphrase, twice:", "heading")
        for _ in range(1 if self.opens else 2):
            field = Field(password=True, select_on_focus=False)
            field.cursor_blink = False
            yield field
        yield Lines(2)

    def show_keys(self) -> None:
        renew = "  F8=New Header" if self.renew else ""
        self.bar.show(f"ENTER=Continue  F4=Keyboard  F7=Show{renew}  F1=Help  F3=Quit")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.renew if action == "answer" else super().check_action(action, parameters)

    def action_show(self) -> None:
        for field in self.query(Field):
            field.password = not field.password

    def on_mount(self) -> None:
        self.show_keys()
        self.query(Field).first().focus()

    @work(exclusive=True)
    async def on_input_submitted(self, message: Input.Submitted) -> None:
        fields = list(self.query(Field))
        typed = {field.value for field in fields}
        passphrase = message.value.encode()
        if not passphrase:
            self.query_one(Lines).show(self.EMPTY)
        elif message.input is not fields[-1]:
            fields[-1].focus()
        elif len(typed) > 1:
            self.query_one(Lines).show("The two are not the same. Type them again.")
            self._again(fields)
        elif self.opens is None:
            self.answer(passphrase)
        else:
            self.query_one(Lines).show(self.TRYING)
            try:
                good = await to_thread(self.opens, passphrase)
            except Exception as error:
                return self.fail(error)
            if good:
                return self.answer(passphrase)
            self.query_one(Lines).show(self.WRONG)
            self._again(fields)

    def _again(self, fields: list[Field]) -> None:
        for field in fields:
            field.value = ""
        fields[0].focus()
