"""The Backup or Restore Wizard: `asr` without arguments."""

import asyncio
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual.widget import Widget

from bootenv.errors import AsrError
from bootenv.events import Difference

from .app import Cancelled
from .files import Tree, restore_files
from .prepare import Cancellable, PrepareApp, Selecting
from .screens import Browse, Looking, Notice, Page, ProgressPage, bullets, difference_lines, key, text
from .widgets import TEXT_WIDTH, Listing, shortened

if TYPE_CHECKING:
    from bootenv.prepare import Survey

_NOTHING_YET = "Nothing was backed up yet."


class BackupApp(PrepareApp):
    """Page 16 and all that it leads to. story, documents: the bootenv modules of these names (story: prepare).

    look: surveys the machine. Its return code is 1 if a set or backup that was begun was not completed.
    """

    TITLE = "Backup or Restore Wizard"

    def __init__(self, story: Any, documents: Any, look: "Callable[..., Survey]", settings: Path, *, tick: float = 1.0):
        super().__init__(story, look=look, tick=tick)
        self.documents = documents
        self.settings = settings
        self.complete = True

    async def pages(self) -> None:
        wizard = starts_in_wizard_mode(self.settings)
        while True:
            if wizard:
                wish = await self.ask(WizardWelcome(self.settings))
                if wish == "advanced":
                    wizard = False
                    continue
                wish = await self.ask(Choice())
                if wish == "back up":
                    wish = await self.ask(WhatToBackUp())
            else:
                wish = await self.ask(Advanced())
            if wish == "wizard":
                wizard = True
            elif await self.done(wish):
                return

    async def done(self, wish: str) -> bool:
        """Does one thing; False: it was left, and another may be chosen."""
        try:
            if wish == "set":
                assert self.look
                self.survey = await self.ask(Looking("The wizard is looking at this computer...", self.look))
                self.complete = False
                await self.prepared()
                return True
            if wish == "restore":
                await restore_files(self)
            elif wish in ("mine", "everyone"):
                paths = self.documents.mine() if wish == "mine" else self.documents.everyones()
                return await self.backed_up_files(paths)
            elif wish == "choose":
                marked = await self.ask(Chosen(self.documents.entries))
                return bool(marked) and await self.backed_up_files([f"/{os.fsdecode(path)}" for path in marked])
        except Exception as error:
            await self.ask(self.page_for(error, "cancel"))
        return False

    async def backed_up_files(self, paths: Sequence[str]) -> bool:
        """True once they are in a backup that was read back; False: the person went back."""
        place = ""
        while place := await self.ask(Browse("Where should the backup be written?", _WHERE, place)):
            try:
                path, caution = await asyncio.to_thread(self.documents.destination, place)
                if not await self.ask(Begin(paths, path, caution)):
                    continue
                self.complete = False
                selection = await self.perform(Selecting(), self.documents.select(paths))
                unlike = await self.perform(BackingUp(), self.documents.back_up(paths, path, selection))
                self.complete = True
                await self.ask(FilesComplete(path, unlike))
                return True
            except Cancelled:
                self.complete = True           # as asked: nothing of it is left
                await self.ask(Notice("The backup was cancelled.", "What was written of it was removed."))
            except AsrError as error:
                await self.ask(self.page_for(error, "cancel"))
        return False


_WHERE = (
    "Type a folder, or the path of the file to write.\n\nThis backup holds files alone: it does not bring back a "
    "computer whose disk was lost. For that, choose  All information on this computer."
)


def starts_in_wizard_mode(settings: Path) -> bool:
    return not settings.exists() or "wizard = false" not in settings.read_text().splitlines()


def remember_mode(settings: Path, wizard: bool) -> None:
    """What the box on the wizard's first page says. A home that can't be written forgets it, and that stops nothing."""
    try:
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(f"# of asr\nwizard = {'true' if wizard else 'false'}\n")
    except OSError:
        pass


class WizardWelcome(Page[str]):
    """Page 16, first part. Answers "next" or "advanced"."""

    HEADING = "Welcome to the Backup or Restore Wizard"
    BINDINGS = (key("n", "answer('next')", "Next") + key("enter", "answer('next')") + key("w", "mode", "Wizard Mode")
                + key("a", "answer('advanced')", "Advanced Mode"))
    EXPLANATION = (
        "The wizard asks one thing after the other. Advanced Mode shows everything that there is to choose from on one "
        "page.\n\nW changes whether the program starts with this wizard. It is remembered for you alone."
    )

    def __init__(self, settings: Path):
        super().__init__()
        self.settings = settings

    def content(self) -> Iterable[Widget]:
        yield text("This wizard helps you back up or restore the files on your computer.")
        yield text(self._box(), id="box")
        yield bullets("To continue, press N.", "To change the box, press W.",
                      "To choose from everything that there is, press A for Advanced Mode.")

    def _box(self) -> str:
        return f"      [{'x' if starts_in_wizard_mode(self.settings) else ' '}] Always start in wizard mode"

    def action_mode(self) -> None:
        remember_mode(self.settings, not starts_in_wizard_mode(self.settings))
        self.query_one("#box").update(self._box())             # type: ignore[attr-defined]


class Choice(Page[str]):
    """Page 16, second part. Answers "back up", "restore" or "" to go back."""

    HEADING = "Backup or Restore"
    BINDINGS = (key("b", "answer('back up')", "Back Up") + key("r", "answer('restore')", "Restore")
                + key("escape", "answer('')", "Back"))
    EXPLANATION = (
        "Restoring brings back single files from any backup that the program made, also from that of an ASR set. To "
        "bring back a whole computer, start it from the recovery medium and press F2."
    )

    def content(self) -> Iterable[Widget]:
        yield text("What do you want to do?")
        yield bullets("To back up files and settings, press B.", "To restore files and settings, press R.")


class WhatToBackUp(Page[str]):
    """Page 16, third part: the four choices. Answers "set", "mine", "everyone", "choose" or "" to go back."""

    HEADING = "What to Back Up"
    BINDINGS = (key("1", "answer('set')", "All") + key("2", "answer('mine')", "Mine")
                + key("3", "answer('everyone')", "Everyone's") + key("4", "answer('choose')", "Choose")
                + key("escape", "answer('')", "Back"))
    EXPLANATION = (
        "The first choice makes an ASR set: a backup of the whole system, and a disk with which this computer can be "
        "brought back after its disks were lost.\n\n"
        "The others back up files alone."
    )

    def content(self) -> Iterable[Widget]:
        yield text("You can specify the items that you want to back up:")
        yield bullets(
            "1  All information on this computer: an ASR set, to recover it with",
            "2  My documents and settings: your home folder",
            "3  Everyone's documents and settings: all home folders",
            "4  Let me choose what to back up")


class Advanced(Page[str]):
    """Page 17: everything at once, for whoever knows what they want."""

    HEADING = "Advanced Mode"
    BINDINGS = (key("a", "answer('set')", "ASR") + key("b", "answer('choose')", "Backup")
                + key("r", "answer('restore')", "Restore") + key("w", "answer('wizard')", "Wizard Mode"))
    EXPLANATION = (
        "A starts the Automated System Recovery Preparation Wizard. B shows the tree of this computer's files, to mark "
        "what is backed up. R lists the backups that are found, to restore files from them.\n\n"
        "Scheduled jobs are made at the command line: asr schedule."
    )

    def content(self) -> Iterable[Widget]:
        yield bullets("To prepare an ASR set of this computer, press A.",
                      "To choose files and back them up, press B.",
                      "To restore files from a backup, press R.",
                      "To go back to the wizard, press W.")


class Chosen(Tree):
    """The tree of this computer's files. Answers what is marked, () to go back."""

    HEADING = "Which files are backed up?"
    DO, GOES_ON = "back up", "N"
    BINDINGS = key("n", "go_on", "Next") + key("escape", "answer(())", "Back")
    EXPLANATION = (
        "ENTER opens the directory that is shown in reverse, and closes it again; LEFT closes the one around. SPACE "
        "marks a file, or a directory with all that is in it, with *. N goes on with what is marked.\n\n"
        "Of a directory, what is on other disks that are mounted below it is not in the backup."
    )
    WARNING = _NOTHING_YET

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "restore":
            return False
        return super().check_action("restore" if action == "go_on" else action, parameters)

    def action_go_on(self) -> None:
        self.action_restore()


class Begin(Page[bool]):
    """What will be written where. False goes back."""

    HEADING = "Completing the Backup Wizard"
    BINDINGS = (key("f", "answer(True)", "Finish") + key("enter", "answer(True)")
                + key("escape", "answer(False)", "Back"))
    EXPLANATION = "Finish starts the backup. It is read back and compared before it counts as done."
    WARNING = _NOTHING_YET

    def __init__(self, paths: Sequence[str], path: Path, caution: str):
        super().__init__()
        self.paths, self.path, self.caution = paths, path, caution

    def content(self) -> Iterable[Widget]:
        yield text("You have completed the wizard. It will back up:")
        yield Listing([shortened(path, TEXT_WIDTH - 4) for path in self.paths],
                      height=min(len(self.paths) + 2, 7))
        yield text(f"      To   {shortened(str(self.path), TEXT_WIDTH - 11)}")
        if self.caution:
            yield text(f"CAUTION: {self.caution}", "heading")
        yield bullets("To start the backup, press F.", "To go back, press ESC.")


class BackingUp(Cancellable, ProgressPage):
    """The files are written and read back."""

    def __init__(self) -> None:
        super().__init__("Backup Progress", "The files are being written to the backup, then it is read again and "
                         "compared.\n\nESC cancels: what was written so far is removed.",
                         "The backup is not complete. What was written so far is removed.")


class FilesComplete(Page[None]):
    """How a backup of files ended."""

    BINDINGS = key("enter", "answer(None)", "Finish") + key("f3", "answer(None)")
    EXPLANATION = "The list has each file that is not in the backup as it was. The log has it, too."

    def __init__(self, path: Path, unlike: "Sequence[Difference]"):
        super().__init__()
        self.HEADING = "The backup is complete" + (f", with {len(unlike)} differences." if unlike else ".")
        self.path, self.unlike = path, unlike

    def content(self) -> Iterable[Widget]:
        yield text(f"It was read back and matches: {shortened(str(self.path), TEXT_WIDTH - 31)}")
        if self.unlike:
            yield text("NOT in the backup as it was:", "lacking")
            yield Listing([line for d in self.unlike for line in difference_lines(d)], height=9, classes="lacking")
        yield bullets("To finish, press ENTER.")


def settings_of_this_user() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "asr" / "asr.toml"
