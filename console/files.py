"""What a backup holds: choose one; mark files in its tree and say where to, or have all of it verified."""

import asyncio
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

from textual import work
from textual.widget import Widget

from bootenv import files as story
from bootenv.errors import AsrError, BackupNotFound
from bootenv.events import Difference, Progress

from .app import Cancelled
from .network import ADDRESSES, BrowseBackup, told
from .screens import (
    Browse,
    Cancellable,
    Looking,
    Page,
    ProgressPage,
    bullets,
    difference_lines,
    key,
    text,
    tried_again,
    when,
)
from .widgets import TEXT_WIDTH, Lines, Listing, Marks, cut, shortened

if TYPE_CHECKING:
    from .app import SetupApp

_BROWSE = "?"
_WARNING = "Nothing was restored yet."


async def restore_files(app: "SetupApp") -> None:
    await _with_chosen(app, "Restore single files: from which backup?", from_backup)


async def verify_backup(app: "SetupApp") -> None:
    await _with_chosen(app, "Verify: which backup?", verified)


async def _with_chosen(app: "SetupApp", question: str, do: "Callable[[SetupApp, str], Awaitable[bool]]") -> None:
    """From the Welcome page and back to it: what is done with one backup after the other, until it says True."""
    choice = _Choice(app, question)
    backup = ""
    try:
        while True:
            try:
                backup = backup or await choice.ask()
                if not backup or await do(app, backup):
                    return
                backup = ""
            except AsrError as error:
                if not await tried_again(app, error):
                    return
                if choice.typed(backup):
                    backup = ""
    except Cancelled:
        pass
    except Exception as error:
        await app.ask(app.page_for(error, "cancel"))
    finally:
        await asyncio.to_thread(story.forget)


async def verified(app: "SetupApp", backup: str) -> bool:
    """False: another one may be verified next."""
    damaged = await app.perform(Verifying(), story.verify(backup))
    await app.ask(Verified(backup, damaged, await asyncio.to_thread(story.disk_of, backup)))
    return False


async def from_backup(app: "SetupApp", backup: str) -> bool:
    """Marks files in a backup and restores them; False: the person went back."""
    marked: tuple[bytes, ...] = ()
    while marked := await app.ask(Tree(partial(story.entries, backup), marked)):
        folder = f"{story.FOLDER}/"
        while folder := await app.ask(Browse("Where to?", _WHERE.format(folder=story.FOLDER), folder)):
            try:
                await restored(app, backup, marked, folder)
                return True
            except AsrError as error:
                if not await tried_again(app, error):
                    break
    return False


class _Choice:
    """Which backup? Between two questions, what was found and what was typed stay as they are."""

    def __init__(self, app: "SetupApp", question: str):
        self.app, self.question = app, question
        self.found: list[story.FoundBackup] | None = None
        self.place = f"{story.FOLDER}/"            # that was typed last
        self.typing = False

    async def ask(self) -> str:
        """A backup's path, "" to go back."""
        if self.found is None:
            self.found = await self.app.ask(Searching())
        while True:
            if not self.typing and (answer := await self.app.ask(Backups(self.found, self.question))) != _BROWSE:
                return answer
            self.typing = False
            path = await self.app.ask(BrowseBackup("Another backup", _BROWSE_FOR, self.place))
            self.place = path or self.place
            if story.is_url(path):
                self.found = await found_on(self.app, path) or self.found
            elif path:
                return path

    def typed(self, path: str) -> bool:
        """Whether a path was: it may be mistyped, and is then asked for first."""
        self.typing = path == self.place
        return self.typing


async def found_on(app: "SetupApp", url: str) -> "list[story.FoundBackup] | None":
    """The backups at an address. None: it can't be reached, and that was seen."""
    while True:
        try:
            if found := await told(app, partial(Looking, _LOOKING.format(place=url), partial(story.backups_on, url),
                                                _WARNING)):
                return found
            raise BackupNotFound(f"There is no backup of an ASR set at {url} or below.", hint="Name another folder.")
        except AsrError as error:
            if await app.ask(app.page_for(error, "cancel")) == "cancel":
                return None


async def restored(app: "SetupApp", backup: str, marked: Sequence[bytes], folder: str) -> None:
    """Raises AsrError if it can't be put there; another place may do."""
    page = ProgressPage("Restoring files", "The files that you marked are restored, and nothing else.",
                        "Files that are restored already stay.")
    differences = await app.perform(page, story.extract(backup, marked, folder))
    await app.ask(Restored(folder, page.copied, differences))


_BROWSE_FOR = f"Type the path of the backup's file, or an address on the network:\n\n      {ADDRESSES}"
_LOOKING = "Setup is looking for backups at {place}..."
_WHERE = (
    "Type the folder that the files are put into. Below it they have the same paths as in the backup, and replace what "
    "is there.\n\nThe volumes of this computer are in {folder}, by the names of their devices. To put the files where "
    "they were, name the folder of the volume alone."
)


class Searching(Page["list[story.FoundBackup]"]):
    """Looks for backups."""

    HEADING = "Setup is looking for backups..."
    EXPLANATION = "Setup looks on every volume of this computer, and changes nothing on them."

    def on_mount(self) -> None:
        self.look()

    @work
    async def look(self) -> None:
        try:
            self.answer(await asyncio.to_thread(story.backups))
        except Exception as error:
            self.fail(error)


class Backups(Page[str]):
    """Which backup? Answers its path, _BROWSE to name another, "" to go back."""

    BINDINGS = (
        key("enter", "choose", "Choose")
        + key("b", "answer('?')", "Browse")
        + key("escape", "answer('')", "Cancel")
    )
    EXPLANATION = (
        "The list has each backup of an ASR set that was found on this computer's volumes. The arrow keys move, ENTER "
        "takes the one that is shown in reverse.\n\nTo name a backup that is not in the list, press B."
    )
    WARNING = "Nothing was changed."

    def __init__(self, found: Sequence[story.FoundBackup], question: str):
        super().__init__()
        self.HEADING = question
        self.found = found

    def content(self) -> Iterable[Widget]:
        hosts = [cut(b.set.host, 22) for b in self.found]
        width = max(map(len, hosts), default=0)
        lines = [f"{when(b.set.created)}  {host:<{width}}  {shortened(b.place, TEXT_WIDTH - 4 - 20 - width - 4)}"
                 for b, host in zip(self.found, hosts, strict=True)]
        yield Marks(lines or ["No backup was found."], height=9)
        yield Lines(3)
        yield bullets("To choose a backup, press ENTER.", "To name another one, press B.")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return bool(self.found) if action == "choose" else super().check_action(action, parameters)

    def on_mount(self) -> None:
        super().on_mount()
        self.on_marks_moved()

    def on_marks_moved(self) -> None:
        if self.found:
            chosen = self.found[self.query_one(Marks).chosen]
            self.query_one(Lines).show(
                f"      Computer     {cut(chosen.set.host, TEXT_WIDTH - 19)}",
                f"      System       {cut(chosen.set.system, TEXT_WIDTH - 19)}",
                f"      At           {shortened(chosen.place, TEXT_WIDTH - 19)}")

    def action_choose(self) -> None:
        self.answer(self.found[self.query_one(Marks).chosen].path)


class Node:
    """A line of the tree."""

    def __init__(self, path: bytes, depth: int, kind: str, size: int):
        self.path, self.depth, self.kind = path, depth, kind
        self.size = size if kind == "f" else None      # bytes; of a directory only where somebody counts them
        self.open = False


class Tree(Page[tuple[bytes, ...]]):
    """Marks files and directories in a backup. Answers their paths, () to choose another backup.

    entries: what is in a directory, by its path.
    """

    HEADING = "Which files?"
    BINDINGS = (key("enter", "unfold", "Open") + key("right", "unfold") + key("left", "fold")
                + key("space", "mark", "Mark") + key("r", "restore", "Restore") + key("escape", "answer(())", "Back"))
    EXPLANATION = (
        "ENTER opens the directory that is shown in reverse, and closes it again; LEFT closes the one around. SPACE "
        "marks a file, or a directory with all that is in it, with *. R goes on with what is marked.\n\n"
        "What is opened is read from the backup's index; the rest of the backup is not read."
    )
    WARNING = _WARNING

    DO = "restore"
    GOES_ON = "R"

    def __init__(self, entries: "Callable[[bytes], list[story.Entry]]", marked: Iterable[bytes] = ()):
        super().__init__()
        self.entries = entries
        self.nodes: list[Node] = []
        self.marked = set(marked)

    def content(self) -> Iterable[Widget]:
        yield Marks(["Reading..."], height=15)
        yield Lines(1)

    def on_mount(self) -> None:
        self.read(-1)

    @property
    def here(self) -> int:
        return self.query_one(Marks).chosen

    @work(exclusive=True)
    async def read(self, at: int) -> None:
        """Put the content of the directory at a line below it; -1: of the whole backup."""
        above = self.nodes[at].path if at >= 0 else b""
        try:
            entries = await asyncio.to_thread(self.entries, above)
        except Exception as error:
            return self.fail(error)
        depth = self.nodes[at].depth + 1 if at >= 0 else 0
        self.nodes[at + 1:at + 1] = [Node((above and above + b"/" + e.name) or e.name, depth, e.kind, e.size)
                                     for e in entries]
        if at >= 0:
            self.nodes[at].open = True
        self.show_nodes()

    def show_nodes(self) -> None:
        self.query_one(Marks).show([self._line(node) for node in self.nodes] or ["There is nothing."])
        self.query_one(Lines).show(
            f"{len(self.marked):,} marked{self.total()}. To {self.DO} what is marked, press {self.GOES_ON}."
            if self.marked else "To mark a file or directory, press SPACE.")
        self.show_keys()

    def total(self) -> str:
        """What is said of how much is marked."""
        return ""

    def _line(self, node: Node) -> str:
        mark = "*" if self._is_marked(node.path) else " "
        fold = "  " if node.kind != "d" else "- " if node.open else "+ "
        size = " " * 15 if node.size is None else f"{node.size:>15,}"
        name = os.fsdecode(node.path.rpartition(b"/")[2]).encode(errors="replace").decode()
        room = TEXT_WIDTH - 4 - 2 - 15 - 1
        return f"{mark} {shortened('  ' * node.depth + fold + name, room):<{room}} {size}"

    def _is_marked(self, path: bytes) -> bool:
        return path in self.marked or any(path.startswith(marked + b"/") for marked in self.marked)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "restore":
            return bool(self.marked)
        return super().check_action(action, parameters)

    def action_unfold(self) -> None:
        if not self.nodes or self.nodes[self.here].kind != "d":
            return
        if self.nodes[self.here].open:
            self._fold(self.here)
        else:
            self.read(self.here)

    def action_fold(self) -> None:
        """The directory at the cursor if it is open, else the one around it."""
        at = self.here
        if self.nodes and not self.nodes[at].open:
            depth = self.nodes[at].depth
            at = next((n for n in range(at, -1, -1) if self.nodes[n].depth < depth), at)
        if self.nodes and self.nodes[at].open:
            self._fold(at)

    def _fold(self, at: int) -> None:
        end = at + 1
        while end < len(self.nodes) and self.nodes[end].depth > self.nodes[at].depth:
            end += 1
        del self.nodes[at + 1:end]
        self.nodes[at].open = False
        self.query_one(Marks).chosen = at
        self.show_nodes()

    def action_mark(self) -> None:
        if self.nodes:
            self.marked ^= {self.nodes[self.here].path}
            self.show_nodes()

    def action_restore(self) -> None:
        self.answer(tuple(sorted(self.marked)))


class Restored(Page[None]):
    """How it ended."""

    BINDINGS = key("enter", "answer(None)", "Continue")
    EXPLANATION = "The list names each file that is missing or not as it was in the backup. The log has it, too."

    def __init__(self, folder: str, copied: Progress, differences: Sequence[Difference]):
        super().__init__()
        self.HEADING = f"Restored with {len(differences)} differences." if differences else "The files were restored."
        self.folder, self.copied, self.differences = folder, copied, differences

    def content(self) -> Iterable[Widget]:
        yield text(f"They are in {shortened(self.folder, TEXT_WIDTH - 13)}")
        if self.differences:
            yield Listing([line for d in self.differences for line in difference_lines(d)], height=12)
        yield bullets("To continue, press ENTER.")

    def on_mount(self) -> None:
        with suppress(IndexError):
            self.query(Listing)[0].focus()


class Verifying(Cancellable, ProgressPage):
    """A backup is compared with its checksums."""

    CANCEL = "To cancel the comparison, press F3."

    def __init__(self) -> None:
        super().__init__("Verify Progress", "Every file in the backup is compared with its checksum. Nothing is "
                         "changed. ESC cancels.", "What was compared so far counts for nothing.")


class Verified(Page[None]):
    """What came out. disk: a sentence about the ASR disk, "" if it was not looked for."""

    BINDINGS = key("enter", "answer(None)", "Continue") + key("escape", "answer(None)")
    EXPLANATION = (
        "A damaged file can't be restored as it was; all others can. If this computer still runs, prepare a new set, "
        "on another disk.\n\nRecovery needs the ASR disk that was made with the backup. A lost one is written again "
        "from the backup: asr make-disk."
    )

    def __init__(self, place: str, damaged: Sequence[Difference], disk: str = ""):
        super().__init__()
        count = story.damaged_files(damaged)
        are = "is" if count == 1 else "are"
        self.HEADING = (f"{count} of its files {are} DAMAGED." if count else
                        "The backup's index is DAMAGED." if damaged else "The backup is whole.")
        self.place, self.damaged, self.disk = place, damaged, disk

    def content(self) -> Iterable[Widget]:
        yield text(shortened(self.place, TEXT_WIDTH))
        if self.disk:
            yield text(self.disk)
        if self.damaged:
            yield Listing([line for d in self.damaged for line in difference_lines(d)], height=12 - 3 * bool(self.disk),
                          classes="lacking")
        yield bullets("To continue, press ENTER.")
