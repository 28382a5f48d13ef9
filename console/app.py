"""What the three stories' applications share: the look, pages one after the other, long work in a thread."""

import asyncio
import os
import sys
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from textual import work
from textual.app import App
from textual.binding import Binding
from textual.filter import LineFilter
from textual.theme import Theme

from bootenv.errors import AsrError
from bootenv.events import Difference, Event
from bootenv.run import log

from .screens import ErrorPage, Inspecting, Leaving, Page, Sheet, UnexpectedPage, Work
from .widgets import AsciiGlyphs, ReverseVideo

T = TypeVar("T")

# Written by init once udev has settled.
HARDWARE_READY = Path("/run/asr/hardware-ready")

CRASHED = 70                           # the exit status of a program that ended because of an error in itself


class Cancelled(Exception):
    """The person left while the work was going on."""


SETUP = Theme(
    "setup", primary="ansi_white", foreground="ansi_white", background="ansi_blue", ansi=True,
    variables={"ansi-foreground": "#AAAAAA", "ansi-background": "#0000AA"},
)


class SetupApp(App[int]):
    """A story told in pages: subclasses implement `pages`.

    `story` has the functions of the bootenv module of the same name; `tick` is how many seconds a second of a
    count-down takes.
    """

    CSS_PATH = Path(__file__).with_name("console.tcss")
    ENABLE_COMMAND_PALETTE = False
    TITLE = "Automated System Recovery Setup"
    QUIT = "To quit and restart your computer, press F3."
    LEAVING = "Your computer is being restarted..."
    BINDINGS: ClassVar = [
        # There is nothing behind Setup that these could go back to.
        Binding("ctrl+q,ctrl+c,ctrl+z", "ignore", show=False, priority=True),
        # ENTER on a serial line is a line feed.
        Binding("ctrl+j", "simulate_key('enter')", show=False, priority=True),
    ]

    def __init__(self, story: Any, *, tick: float = 1.0):
        super().__init__()
        self.story = story
        self.tick = tick
        self.page: Page[Any] | None = None
        self.working: asyncio.Future[Any] | None = None
        self._crash = ""
        self._unseen = ExitStack()
        self._look = _look_for_this_terminal()
        self.animation_level = "none"
        self.register_theme(SETUP)
        self.theme = SETUP.name

    def get_line_filters(self) -> list[LineFilter]:
        return self._look

    def action_ignore(self) -> None:
        """Nothing."""

    def on_mount(self) -> None:
        # init has painted the screen long ago: nothing empty may come between that and the first page.
        self._unseen.enter_context(self.batch_update())
        self.tell()

    @work(exclusive=True, group="story")
    async def tell(self) -> None:
        """All pages, and again from the first one after an error that none of them answered for."""
        while True:
            try:
                await self.pages()
            except Exception as error:
                await self.ask(self.page_for(error))
            else:
                self.leave()
                return

    async def pages(self) -> None:
        raise NotImplementedError

    @work(exclusive=True, group="story")
    async def leave(self) -> None:
        """Ends the story, whatever page it is on, by starting the computer again."""
        while True:
            await self.show(Leaving(self.LEAVING))
            try:
                return await asyncio.to_thread(self.story.restart)
            except Exception as error:
                await self.ask(self.page_for(error))

    async def show(self, page: Page[Any]) -> None:
        """Puts a page in the place of the one before, and of whatever lies over that."""
        page.answered = asyncio.get_running_loop().create_future()
        with self.batch_update():              # a page is drawn once, when it is complete
            while len(self.screen_stack) > 2:
                while not self.screen.is_mounted:      # one that is taken away half made ends the program
                    await asyncio.sleep(0.01)
                await self.pop_screen()
            await (self.switch_screen(page) if self.page else self.push_screen(page))
        self.page = page
        self._unseen.close()

    async def ask(self, page: Page[T]) -> T:
        await self.show(page)
        return await page.answered

    def page_for(self, error: Exception, *offers: str, heading: str = "", changed: str = "") -> Page[str]:
        """The page that says what went wrong and may offer more than to try again. The log gets all there is.

        `changed` is what was changed before, whatever the error says of itself.
        """
        if isinstance(error, AsrError):
            log(f"{error.code} {error}")
            return ErrorPage(error, *offers, heading=heading, changed=changed)
        log(*"".join(traceback.format_exception(error)).splitlines())
        return UnexpectedPage(error, heading)

    async def perform(self, page: Work, events: Generator[Event, None, T]) -> T:
        """Shows a page while a thread does the work; returns what the generator returns, raises what it raises."""
        await self.show(page)
        self.working = asyncio.ensure_future(asyncio.to_thread(_consume, events, page))
        return await asyncio.shield(self.working)      # work goes on when the story is left

    @property
    def crashed(self) -> bool:
        return bool(self._crash)

    async def each(self, items: Iterator[T], seen: Callable[[T], None]) -> list[T]:
        """Takes from an iterator in a thread, and has each item seen here as it comes."""
        taken = []
        while (item := await asyncio.to_thread(next, items, None)) is not None:
            seen(item)
            taken.append(item)
        return taken

    def _handle_exception(self, error: Exception) -> None:
        log(*"".join(traceback.format_exception(error)).splitlines())
        self._crash = f"{type(error).__name__}: {error}"
        super()._handle_exception(error)

    def _print_error_renderables(self) -> None:
        if self._exit_renderables:
            self._exit_renderables.clear()
            print(f"Setup ended because of an error in itself. The log has the details.\n{self._crash[:300]}",
                  file=sys.stderr)


class MediumApp(SetupApp):
    """A story that the medium tells, from a moment on when the computer's devices are still being found.

    hardware_ready: the file that says that all are known.
    """

    # No program of a running system changes that system's keyboard or network.
    BINDINGS = [Binding("f4", "keyboard", show=False, priority=True),
                Binding("f9", "address", show=False, priority=True)]

    def __init__(self, story: Any, *, hardware_ready: Path = HARDWARE_READY, tick: float = 1.0):
        super().__init__(story, tick=tick)
        self.hardware_ready = hardware_ready

    def action_keyboard(self) -> None:
        """Over whatever page there is, which goes on when the layout is chosen."""
        from .keyboard import Keyboard

        self.lay_over(Keyboard)

    def action_address(self) -> None:
        """The same for this computer's address."""
        from .network import Address

        self.lay_over(Address)

    def lay_over(self, sheet: type[Sheet]) -> None:
        """The same key closes it again."""
        if isinstance(self.screen, sheet):
            self.pop_screen()
        else:
            self.push_screen(sheet())

    async def hardware(self) -> bool:
        """Waits until all devices are known. True: F2 came first."""
        return not self.hardware_ready.exists() and await self.ask(Inspecting(self.hardware_ready))


def _consume(events: Generator[Event, None, T], page: Work) -> T:
    """Does the work, leaving what it says about itself on the page."""
    while not page.cancelled.is_set():
        try:
            event = next(events)
        except StopIteration as end:
            return end.value
        if isinstance(event, Difference):
            page.differences.append(event)
        else:
            page.newest = event
    events.close()                     # what it does to clean up, it does now
    raise Cancelled


def _look_for_this_terminal() -> list[LineFilter]:
    look: list[LineFilter] = []
    encoding = getattr(sys.__stderr__, "encoding", None) or "ascii"
    if os.environ.get("ASR_GLYPHS") == "ascii" or encoding.lower() not in ("utf-8", "utf8"):
        look.append(AsciiGlyphs())
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "").startswith("vt"):
        look.append(ReverseVideo())
    return look
