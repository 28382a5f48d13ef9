"""The page on which a keyboard's layout is chosen; it lies over whatever page there is."""

from collections.abc import Iterable

from textual import events
from textual.widget import Widget

from bootenv import keymap
from bootenv.errors import AsrError

from .files import Marks
from .screens import Sheet, bullets, key
from .widgets import TEXT_WIDTH, Lines, wrapped


class Names(Marks):
    """A letter goes to the next name that begins with it: it is no key of the page."""

    def on_key(self, event: events.Key) -> None:
        if not event.character or not event.character.isalpha():
            return
        event.stop()
        event.prevent_default()
        below = [*range(self.chosen + 1, len(self.lines)), *range(self.chosen)]
        found = (n for n in below if self.lines[n].lower().startswith(event.character.lower()))
        self._move(next(found, self.chosen) - self.chosen)


class Keyboard(Sheet):
    HEADING = "Which layout has your keyboard?"
    BINDINGS = key("enter", "choose", "Choose")
    EXPLANATION = (
        "The arrow keys move; a letter goes to the next layout whose name begins with it. ENTER takes the one that is "
        "shown in reverse, ESC leaves the layout as it is. A passphrase can be looked at with F7 while it is typed.\n\n"
        "The layout is that of this computer's own keyboard. A serial line and ssh have the layout of the terminal at "
        "their other end."
    )

    def __init__(self) -> None:
        super().__init__()
        self.keymaps = keymap.keymaps()
        self.now = keymap.chosen() or "us"

    def content(self) -> Iterable[Widget]:
        lines = [f"{k.name:<32}{k.language}" for k in self.keymaps]
        yield Names(lines or ["This medium has no keyboard layouts."], height=14)
        yield Lines(2)
        yield bullets(f"To keep {self.now}, press ESC. To take the layout that is marked, press ENTER.")

    def on_mount(self) -> None:
        self.show_keys()
        names = self.query_one(Names)
        names.focus()
        at = [k.name for k in self.keymaps].index(self.now) if self.now in (k.name for k in self.keymaps) else 0
        names._move(at)

    def action_choose(self) -> None:
        if not self.keymaps:
            return self.action_close()
        try:
            keymap.choose(self.keymaps[self.query_one(Names).chosen].name)
        except AsrError as error:
            self.query_one(Lines).show(*wrapped(str(error), TEXT_WIDTH)[:2])
        else:
            self.action_close()
