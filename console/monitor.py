"""A virtual machine's screen and keyboard on the reader's own terminal."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from rich.color import Color
from rich.segment import Segment
from rich.style import Style
from textual import events, work
from textual.app import App, ComposeResult
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static

from bootenv.errors import AsrError

if TYPE_CHECKING:
    from bootenv.rehearsal import Guest, Screen

_LOOKS = 5                             # a second
_COLUMNS = 80

# Textual's names of the keys that a technician uses, and QEMU's.
_KEYS = {"enter": "ret", "escape": "esc", "space": "spc", "backspace": "backspace", "tab": "tab", "up": "up",
         "down": "down", "left": "left", "right": "right", "pageup": "pgup", "pagedown": "pgdn", "home": "home",
         "end": "end", "delete": "delete", "insert": "insert", **{f"f{n}": f"f{n}" for n in range(1, 13)}}

# VGA numbers colours blue first, terminals red first.
_VGA = (0, 4, 2, 6, 1, 5, 3, 7)


class Monitor(App[BaseException | None]):
    """Shows a guest while `story(say)` drives it in a thread; what the reader types, the guest gets.

    `say(text)` writes the line below the screen. The app ends with the story and returns the exception that ended it.
    """

    ENABLE_COMMAND_PALETTE = False
    BINDINGS = [("ctrl+c", "leave", "Leave"), ("ctrl+q", "leave", "Leave")]
    CSS = """
    Screen { align: center top; background: ansi_black; }
    GuestScreen { width: 80; height: 25; }
    #caption { width: 80; height: 1; background: ansi_cyan; color: ansi_black; }
    """

    def __init__(self, guest: "Guest", story: Callable[[Callable[[str], None]], None]):
        super().__init__(ansi_color=True)
        self.guest = guest
        self.story = story

    def compose(self) -> ComposeResult:
        yield GuestScreen()
        yield Static(id="caption", markup=False)

    def on_mount(self) -> None:
        self.play()
        self.watch_guest()

    @work(thread=True)
    def play(self) -> None:
        try:
            self.story(lambda text: self.call_from_thread(self.query_one("#caption", Static).update, f" {text}"))
        except BaseException as error:
            self.call_from_thread(self.exit, error)
        else:
            self.call_from_thread(self.exit, None)

    @work(thread=True)
    def watch_guest(self) -> None:
        while self.is_running:
            try:
                screen = self.guest.look()
            except AsrError:
                return                 # switched off: the story says how it ended
            self.call_from_thread(self.query_one(GuestScreen).show, screen)
            time.sleep(1 / _LOOKS)

    def on_key(self, event: events.Key) -> None:
        key = _KEYS.get(event.key) or (event.character if event.character and event.character.isascii() else None)
        if key:
            event.stop()
            self.send_key(key)

    @work(thread=True)
    def send_key(self, key: str) -> None:
        self.guest.press(key)

    def action_leave(self) -> None:
        self.exit(KeyboardInterrupt())


class GuestScreen(Widget):
    """25 lines of 80 cells in the colours of a VGA screen; only lines that changed are painted."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[list[Segment]] = [[]] * 25

    def show(self, screen: "Screen") -> None:
        new = [line_of(screen, row) for row in range(25)]
        for row, (was, now) in enumerate(zip(self.lines, new, strict=True)):
            if was != now:
                self.lines[row] = now
                self.refresh(Region(0, row, _COLUMNS, 1))

    def render_line(self, y: int) -> Strip:
        return Strip(self.lines[y]) if y < 25 else Strip.blank(_COLUMNS)


def line_of(screen: "Screen", row: int) -> list[Segment]:
    """A row of the screen, cells of one colour together."""
    text = screen.text.splitlines()[row]
    segments: list[Segment] = []
    start = 0
    colours = screen.attributes[row * _COLUMNS:(row + 1) * _COLUMNS]
    for column in range(1, _COLUMNS + 1):
        if column == _COLUMNS or colours[column] != colours[start]:
            style = Style(color=_color(screen.foreground(row, start)), bgcolor=_color(screen.background(row, start)))
            segments.append(Segment(text[start:column], style))
            start = column
    return segments


def _color(vga: int) -> Color:
    return Color.from_ansi(_VGA[vga & 7] + (vga & 8))
