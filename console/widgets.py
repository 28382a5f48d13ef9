"""The few parts that every page is made of, drawn with 16 colours and code page 437."""

import textwrap
from collections.abc import Sequence
from typing import ClassVar

from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.color import Color
from textual.filter import LineFilter
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input

WIDTH, HEIGHT = 80, 25
TEXT_WIDTH = 74                # columns 3 to 76
COPYING = 57                   # column at which the status bar's right part starts

_ASCII = str.maketrans({
    **dict.fromkeys("═─", "-"), **dict.fromkeys("║│▌", "|"), **dict.fromkeys("╔╗╚╝┌┐└┘", "+"), "█": "#", "•": "*",
})


# What code page 437 draws for codes below 32; Python's codec has control characters there.
_LOW_GLYPHS = "☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼"


class AsciiGlyphs(LineFilter):
    """For terminals that don't draw code page 437's lines and blocks."""

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [Segment(text.translate(_ASCII), style, control) for text, style, control in segments]


class ReverseVideo(LineFilter):
    """For terminals without colours: what isn't on the blue ground is shown in reverse, what is bright in bold."""

    _BLUE = 4
    _BRIGHT = 8

    def apply(self, segments: list[Segment], background: Color) -> list[Segment]:
        return [Segment(text, self._plain(style), control) for text, style, control in segments]

    def _plain(self, style: Style | None) -> Style:
        ground = style.bgcolor.number if style and style.bgcolor else None
        ink = style.color.number if style and style.color else None
        return Style(reverse=ground not in (None, self._BLUE), bold=ink is not None and ink >= self._BRIGHT)


class Title(Widget):
    """The product's name in the first rows, underlined."""

    def __init__(self, text: str):
        super().__init__()
        self.text = text

    def render_line(self, y: int) -> Strip:
        text = f" {self.text}" if y == 0 else "═" * (len(self.text) + 2)
        return Strip([Segment(text.ljust(WIDTH), self.rich_style)])


class StatusBar(Widget):
    """KEY=Action on the left; what is being copied, or how long a wait lasts, on the right."""

    def __init__(self) -> None:
        super().__init__()
        self.left = ""
        self.right = ""

    def show(self, left: str | None = None, right: str | None = None) -> None:
        """Changes a part, and draws no more than that part."""
        if left is not None and left != self.left:
            self.left = left
            self.refresh()
        if right is not None and drawable(right) != self.right:
            self.right = drawable(right)
            self.refresh(Region(COPYING, 0, WIDTH - COPYING, 1))

    def render_line(self, y: int) -> Strip:
        left = f"  {self.left}"
        text = f"{left[:COPYING]:<{COPYING}}│{shortened(self.right, WIDTH - COPYING - 1)}" if self.right else left
        return Strip([Segment(text[:WIDTH].ljust(WIDTH), self.rich_style)])


class Lines(Widget):
    """Lines of text that change; only those that did are drawn again."""

    def __init__(self, height: int, *, centred: bool = False, id: str | None = None):
        super().__init__(id=id)
        self.lines: list[str] = []
        self.centred = centred
        self.styles.height = height

    def show(self, *lines: str) -> None:
        before, self.lines = self.lines, [drawable(line) for line in lines]
        longest = max(len(before), len(self.lines))
        changed = [y for y in range(longest) if before[y:y + 1] != self.lines[y:y + 1]]
        if changed:
            self.refresh(*(Region(0, y, TEXT_WIDTH, 1) for y in changed))

    def render_line(self, y: int) -> Strip:
        line = (self.lines[y] if y < len(self.lines) else "")[:TEXT_WIDTH]
        text = line.center(TEXT_WIDTH) if self.centred else line.ljust(TEXT_WIDTH)
        return Strip([Segment(text, self.rich_style)])


class Gauge(Widget):
    """The box that shows how far the work is, in steps of half a block."""

    CELLS = 52
    _MARGIN = "     "

    def __init__(self, label: str = "", *, percentage: bool = True, color: str = "bright_yellow"):
        super().__init__()
        self.label = label
        self.percentage = percentage
        self.color = color
        self.done = 0
        self.total = 0

    def show(self, label: str, done: int, total: int) -> None:
        """Draws only the lines that look different from before. Without a total, the bar stays where it is."""
        before = self._lines()
        if total or label != self.label:
            self.done, self.total = done, total
        self.label = drawable(label)
        changed = [Region(1, y, self.size.width - 2, 1) for y, line in enumerate(self._lines()) if line != before[y]]
        if changed:
            self.refresh(*changed)

    @property
    def fraction(self) -> float:
        return min(self.done / self.total, 1.0) if self.total else 0.0

    def _lines(self) -> tuple[str, ...]:
        width = self.CELLS + 2 + 2 * len(self._MARGIN)
        percent = f"{int(self.fraction * 100)}%" if self.percentage and self.total else ""
        return (
            f"╔{'═' * width}╗",
            f"║ {self.label[:width - 2]:<{width - 1}}║",
            f"║{percent.center(width)}║",
            f"║{self._MARGIN}┌{'─' * self.CELLS}┐{self._MARGIN}║",
            f"║{self._MARGIN}│{half_blocks(self.fraction, self.CELLS)}│{self._MARGIN}║",
            f"║{self._MARGIN}└{'─' * self.CELLS}┘{self._MARGIN}║",
            f"╚{'═' * width}╝",
        )

    def render_line(self, y: int) -> Strip:
        line, style = self._lines()[y], self.rich_style
        if y != 4:
            return Strip([Segment(line, style)])
        edge = 2 + len(self._MARGIN)
        fill = style + Style(color=self.color)
        return Strip([Segment(line[:edge], style), Segment(line[edge:-edge], fill), Segment(line[-edge:], style)])


class Listing(Widget, can_focus=True):
    """A list box: a single line around lines of text that the arrow keys move."""

    def __init__(self, lines: Sequence[str], *, height: int, at_end: bool = False, classes: str = ""):
        super().__init__(classes=classes)
        self.lines = [drawable(line) for line in lines]
        self.rows = height - 2
        self.top = max(0, len(self.lines) - self.rows) if at_end else 0
        self.styles.height = height

    def key_up(self) -> None:
        self._move(-1)

    def key_down(self) -> None:
        self._move(1)

    def key_pageup(self) -> None:
        self._move(-self.rows)

    def key_pagedown(self) -> None:
        self._move(self.rows)

    def key_home(self) -> None:
        self._move(-len(self.lines))

    def key_end(self) -> None:
        self._move(len(self.lines))

    def _move(self, by: int) -> None:
        top = max(0, min(self.top + by, len(self.lines) - self.rows))
        if top != self.top:
            self.top = top
            self.refresh()

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y in (0, self.rows + 1):
            left, right = "┌┐" if y == 0 else "└┘"
            return Strip([Segment(f"{left}{self._hint(y).rjust(width - 2, '─')}{right}", self.rich_style)])
        index = self.top + y - 1
        text = self.lines[index] if index < len(self.lines) else ""
        return Strip([Segment(f"│ {text[:width - 4]:<{width - 4}} │", self.rich_style)])

    def _hint(self, y: int) -> str:
        """Says on the box's edge that there is more above or below."""
        above, below = self.top, len(self.lines) - self.rows - self.top
        if y == 0:
            return f" {above} more above ─" if above > 0 else ""
        return f" {below} more below ─" if below > 0 else ""


class Marks(Listing):
    """A list box with a line that is chosen."""

    _CURSOR = Style(color="black", bgcolor="white")

    class Moved(Message):
        """Another line is chosen."""

    def __init__(self, lines: Sequence[str], *, height: int):
        super().__init__(lines, height=height)
        self.chosen = 0

    def show(self, lines: Sequence[str]) -> None:
        self.lines = [drawable(line) for line in lines]
        self._move(0)
        self.refresh()

    def _move(self, by: int) -> None:
        self.chosen = max(0, min(self.chosen + by, len(self.lines) - 1))
        self.top = max(0, min(self.top, self.chosen, len(self.lines) - self.rows), self.chosen - self.rows + 1)
        self.refresh()
        self.post_message(self.Moved())

    def render_line(self, y: int) -> Strip:
        strip = super().render_line(y)
        if y - 1 + self.top != self.chosen or not 0 < y <= self.rows or not self.lines:
            return strip
        line = strip.text
        return Strip([Segment(line[:1], self.rich_style), Segment(line[1:-1], self._CURSOR),
                      Segment(line[-1:], self.rich_style)])


def drawable(text: str) -> str:
    """The text with a question mark for whatever a text console has no glyph for; tabs become blanks."""
    if text.isascii() and text.replace("\n", "").isprintable():
        return text
    return "".join(c if c == "\n" or _has_glyph(c) else "?" for c in text.expandtabs(4))


def _has_glyph(character: str) -> bool:
    if character in _LOW_GLYPHS:
        return True
    try:
        return character.encode("cp437") >= b" " and character.isprintable()
    except UnicodeEncodeError:
        return False


def half_blocks(fraction: float, cells: int) -> str:
    halves = int(fraction * cells * 2)
    return ("█" * (halves // 2) + "▌" * (halves % 2)).ljust(cells)


def wrapped(text: str, width: int = TEXT_WIDTH, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, initial_indent=indent, subsequent_indent=indent)


class Field(Input):
    """A line to type. Textual carries out a key that is a binding later than a letter that was typed after it, so that
    a quick correction would take away the wrong letters: here both happen in their order."""

    EDITING: ClassVar = {"backspace": "delete_left", "delete": "delete_right", "left": "cursor_left",
                         "right": "cursor_right", "home": "home", "end": "end"}

    def on_key(self, event: events.Key) -> None:
        if event.key in self.EDITING:
            event.stop()
            event.prevent_default()
            getattr(self, f"action_{self.EDITING[event.key]}")()


def shortened(text: str, width: int) -> str:
    """A text that is too long keeps its end: of a path, that is the file's name."""
    return text if len(text) <= width else "..." + text[len(text) - width + 3:]


def cut(text: str, width: int) -> str:
    """A text that is too long keeps its beginning."""
    return text if len(text) <= width else text[:width - 3] + "..."
