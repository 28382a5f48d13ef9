"""The Backup or Restore Wizard: `asr` without arguments."""

import asyncio
import os
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import work
from textual.binding import Binding, BindingType
from textual.widget import Widget

from bootenv.errors import AsrError, BackupNotFound
from bootenv.events import Difference, Event
from bootenv.layout import human
from bootenv.run import log

from .app import Cancelled
from .files import Tree, Verified, Verifying, from_backup, restore_files
from .prepare import PrepareApp, Selecting
from .screens import (
    Browse,
    Cancellable,
    Choosing,
    Looking,
    Notice,
    Page,
    ProgressPage,
    bullets,
    difference_lines,
    key,
    text,
    tried_again,
    when,
)
from .widgets import TEXT_WIDTH, Lines, Listing, Marks, cut, shortened, wrapped

if TYPE_CHECKING:
    from bootenv.backup import Entry, Selection
    from bootenv.media import Medium
    from bootenv.prepare import Survey
    from bootenv.schedule import Job

_NOTHING_YET = "Nothing was backed up yet."


class BackupApp(PrepareApp):
    """Pages 16 and 17 and all that they lead to.

    story, documents, media, schedule: the bootenv modules of these names (story: prepare).

    look: surveys the machine. Its return code is 1 if a set or backup that was begun was not completed.
    """

    TITLE = "Backup or Restore Wizard"

    def __init__(self, story: Any, documents: Any, media: Any, schedule: Any, look: "Callable[..., Survey]",
                 settings: Path, *, tick: float = 1.0):
        super().__init__(story, look=look, tick=tick)
        self.documents, self.media, self.schedule = documents, media, schedule
        self.settings = settings
        self.complete = True
        self.marked: tuple[bytes, ...] = ()            # what is to be backed up, in the tree of this computer's files

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
                wish = await self.advanced()
            if wish == "wizard":
                wizard = True
            elif await self.done(wish):
                return

    async def advanced(self) -> str:
        """Goes from tab to tab until something is chosen that pages() knows."""
        tab = 0
        while True:
            page = self.tab(tab)
            try:
                answer = await self.ask(page)
            except Exception as error:
                answer = ("tab", tab if await tried_again(self, error) else 0)
            finally:
                if tab == Media.NUMBER:
                    await asyncio.to_thread(self.media.forget)
            if isinstance(page, FilesTab):
                self.marked = tuple(page.marked)       # they are there when the person comes back
            if isinstance(answer, str):
                return answer
            if answer[:1] == ("tab",):
                tab = answer[1]
            elif tab == FilesTab.NUMBER:
                if not answer:
                    tab = 0
                elif await self.backed_up_files(list(map(_named, answer))):
                    return "done"
            else:
                await self.managed(*answer)

    def tab(self, number: int) -> Page[Any]:
        if number == FilesTab.NUMBER:
            return FilesTab(self.documents.entries, self.documents.select, self.marked)
        return (Advanced(), Advanced(), Media(self.media.known), Jobs(self.schedule.described))[number]

    async def managed(self, what: str, which: Any) -> None:
        """What the tabs of media and jobs ask for."""
        try:
            while True:
                try:
                    return await self.manage(what, which)
                except AsrError as error:
                    if not await tried_again(self, error):
                        return
        except Cancelled:
            pass
        except Exception as error:
            await self.ask(self.page_for(error, "cancel"))
        finally:
            await asyncio.to_thread(self.media.forget)

    async def manage(self, what: str, which: Any) -> None:
        if what == "browse":
            await asyncio.to_thread(self.media.known)      # its volume is mounted as long as it is looked into
            await from_backup(self, which.backup.path)
        elif what == "verify":
            damaged = await self.perform(Verifying(), self.again(which))
            await self.ask(Verified(which.backup.place, damaged))
        elif what == "delete" and await self.ask(Sure(
                f"Remove the backup of {which.set.host}, {when(which.set.created)}?",
                f"{which.backup.place}\n\nThe ASR disk that belongs to it recovers nothing without it.",
                "To remove it for good")):
            await asyncio.to_thread(self.media.delete, which)
        elif what == "remove" and await self.ask(Sure(
                f"Remove the job {which.name}?", "The backups that it made stay.", "To remove the job")):
            await asyncio.to_thread(self.schedule.remove_job, which.name)
        elif what == "new":
            await self.new_job()

    def again(self, medium: "Medium") -> "Generator[Event, None, tuple[Difference, ...]]":
        """Finds a backup again, since its volume is mounted only as long as it is looked at, and verifies it."""
        if medium.backup.path not in {m.backup.path for m in self.media.known()}:
            raise BackupNotFound(f"{medium.backup.place} is not there any more.", hint="Connect its disk again.")
        return (yield from self.media.verify(medium))

    async def new_job(self) -> None:
        """Asks one thing after the other; what won't do is asked again, and what else was typed stays."""
        await asyncio.to_thread(self.schedule.check_possible)
        said = {name: value for name, *_, value in _JOB}
        at = 0
        while at < len(_JOB):
            name, heading, explanation, _ = _JOB[at]
            answer = await self.ask(Browse(heading, explanation, said[name]))
            if not answer:
                if not at:
                    return
                at -= 1
                continue
            said[name] = answer
            try:
                await asyncio.to_thread(self.schedule.check_answer, name, answer)
                if name == "name" and not await self.may_be_added(answer):
                    continue
                if name == _JOB[-1][0]:
                    job = await asyncio.to_thread(self.schedule.job_from, **said)
                    await asyncio.to_thread(self.schedule.add_job, job)
                at += 1
            except AsrError as error:
                if not await tried_again(self, error):
                    return

    async def may_be_added(self, name: str) -> bool:
        """Whether there is no job of a name, or a person agrees that it goes."""
        if name not in {job.name for job in await asyncio.to_thread(self.schedule.jobs)}:
            return True
        return await self.ask(Sure(
            f"Replace the job {name}?", "There is a job of this name. The new one takes its place, also of what the "
            "command line said of it: data volumes, days, a provider.\n\nThe backups that it made stay.",
            "To replace it"))

    async def done(self, wish: str) -> bool:
        """Does one thing; False: it was left, and another may be chosen."""
        try:
            while True:
                try:
                    return await self.do(wish)
                except AsrError as error:
                    if not await tried_again(self, error):
                        return False
        except Exception as error:
            await self.ask(self.page_for(error, "cancel"))
            return False

    async def do(self, wish: str) -> bool:
        """See done()."""
        if wish == "done":
            return True
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
            while marked := await self.ask(Chosen(self.documents.entries, self.documents.select, self.marked)):
                self.marked = marked
                if await self.backed_up_files(list(map(_named, marked))):
                    return True
            self.marked = ()
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


_JOB = (
    ("name", "New job: its name", "Small letters, digits and dashes.", "nightly"),
    ("when", "New job: when?",
     "A time of systemd's calendar, such as  daily,  Sun 03:00,  Mon..Fri 22:00  or  *-*-01 04:30", "Sun 03:00"),
    ("to", "New job: where is the backup written?",
     "A folder, a volume's device, or an address on the network: nfs:// or smb://. Recovery must not format its "
     "disk.\n\nThe password of an smb:// user is read from /etc/asr/credentials, which root alone may read.", ""),
    ("disk", "New job: where is the ASR disk written?",
     "A device, a floppy image or a folder that is there when the job runs.", ""),
    ("keep", "New job: how many backups are kept?",
     "So many of the newest stay; older ones of this computer are removed there. 0 keeps all.", "4"),
)
_BROKEN = (
    "The units of the job {name} were edited: what it does cannot be read from them. X removes it; then add it again, "
    "or put the units in /etc/systemd/system right."
)
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


TABS = ("Welcome", "Backup", "Restore and Manage Media", "Schedule Jobs")


def tab_keys() -> list[BindingType]:
    """On each tab, TAB goes to the next; after the last comes the first."""
    return [Binding("tab", "next_tab", "Next Tab", priority=True)]


class Tab(Page[Any]):
    """Page 17: one of the tabs of Advanced Mode. Answers ("tab", number) to see another."""

    NUMBER = 0

    def content(self) -> Iterable[Widget]:
        yield tab_bar(self.NUMBER)
        yield from self.tab()

    def tab(self) -> Iterable[Widget]:
        return ()

    def action_next_tab(self) -> None:
        self.answer(("tab", (self.NUMBER + 1) % len(TABS)))


def tab_bar(number: int) -> Widget:
    """The tabs in a line, the one that is seen in brackets: not everything has colours."""
    return text("  ".join(f"[{name}]" if n == number else f" {name} " for n, name in enumerate(TABS)), "heading")


class Advanced(Tab):
    """Page 17, first tab."""

    BINDINGS = [*key("a", "answer('set')", "ASR"), *key("b", "answer(('tab', 1))", "Backup"),
                *key("r", "answer(('tab', 2))", "Restore"), *key("w", "answer('wizard')", "Wizard Mode"), *tab_keys()]
    EXPLANATION = (
        "A starts the Automated System Recovery Preparation Wizard. B shows the tree of this computer's files, to mark "
        "what is backed up. R lists the backups that are found: to restore files from them, to verify and to remove "
        "them.\n\nTAB goes from tab to tab."
    )

    def tab(self) -> Iterable[Widget]:
        yield bullets("To prepare an ASR set of this computer, press A.",
                      "To choose files and back them up, press B.",
                      "To restore files from a backup, or to look after backups, press R.",
                      "To go back to the wizard, press W.")


class Media(Choosing[Any], Tab):
    """Page 17, third tab: the sets' backups. Answers ("browse" | "verify" | "delete", Medium)."""

    NUMBER = 2
    BINDINGS = [*key("enter", "take('browse')", "Browse"), *key("v", "take('verify')", "Verify"),
                *key("x", "take('delete')", "Delete"), *key("f5", "look", "Refresh"), *tab_keys()]
    EXPLANATION = (
        "Each backup of an ASR set on this computer's volumes: when it was made, of which computer, its size, and when "
        "it was last compared with its checksums here.\n\n"
        "ENTER opens the backup that is shown in reverse, to restore files from it. V compares all of it. X removes "
        "it, after a question."
    )

    LOOKING = "Looking for backups on every volume..."
    NONE = "No backup was found."
    NEEDS = "take"

    def tab(self) -> Iterable[Widget]:
        yield Lines(1)
        yield Marks([self.LOOKING], height=11)
        yield Lines(4, id="about")

    def on_mount(self) -> None:
        self.query_one(Lines).show("  " + _MEDIUM.format("Created (UTC)", "Age", "Computer", "Size", "Verified"))

    def line(self, found: "Medium") -> str:
        return medium_line(found, datetime.now(UTC))

    def on_marks_moved(self) -> None:
        chosen = self.chosen
        self.query_one("#about", Lines).show(*([
            f"      Computer     {cut(chosen.set.host, TEXT_WIDTH - 19)}",
            f"      System       {cut(chosen.set.system, TEXT_WIDTH - 19)}",
            f"      At           {shortened(chosen.backup.place, TEXT_WIDTH - 19)}",
            f"      Files        {chosen.set.backup.files:,}"] if chosen else []))

    def action_take(self, what: str) -> None:
        self.answer((what, self.chosen))


_MEDIUM = "{:<16} {:>6}  {:<16} {:>9}  {}"


def medium_line(medium: "Medium", today: datetime) -> str:
    days = (today - medium.set.created).days
    verified = f"{medium.verified:%Y-%m-%d}" if medium.verified else "never"
    if medium.damaged:
        verified = f"{medium.damaged} damaged" if medium.damaged > 0 else "index damaged"
    return _MEDIUM.format(f"{medium.set.created:%Y-%m-%d %H:%M}", f"{days} d", cut(medium.set.host, 16),
                          human(medium.size), verified)


class Jobs(Choosing[Any], Tab):
    """Page 17, fourth tab. Answers ("new", None) or ("remove", Job)."""

    NUMBER = 3
    BINDINGS = [*key("n", "answer(('new', None))", "New Job"), *key("x", "remove", "Remove"), *tab_keys()]
    EXPLANATION = (
        "A job prepares an ASR set by itself, at times of systemd's calendar. It runs only if the places for the "
        "backup and the ASR disk are there; its output is in the journal; and whoever logs in is told if it failed."
    )

    LOOKING = "Looking for jobs..."
    NONE = "No job is scheduled."
    NEEDS = "remove"

    def tab(self) -> Iterable[Widget]:
        yield Marks([self.LOOKING], height=10)
        yield Lines(6)

    def line(self, found: "tuple[Job, str, str]") -> str:
        job, words, _ = found
        return cut(f"{job.name:<18} {words}", TEXT_WIDTH - 4)

    def on_marks_moved(self) -> None:
        if self.chosen:
            job, _, due = self.chosen
            self.query_one(Lines).show(*(wrapped(_BROKEN.format(name=job.name)) if job.broken else (
                f"      Next         {due}", f"      Backup       {shortened(job.to, TEXT_WIDTH - 19)}",
                f"      ASR disk     {shortened(job.disk, TEXT_WIDTH - 19)}", f"      Keeps        {job.kept}")))

    def action_remove(self) -> None:
        self.answer(("remove", self.chosen[0]))


class Sure(Page[bool]):
    """A question before something is gone for good. F8 agrees, as everywhere."""

    BINDINGS = key("f8", "answer(True)", "Agree") + key("escape", "answer(False)", "Back")
    EXPLANATION = "F8 does what the page says. ESC goes back, and nothing is changed."

    def __init__(self, heading: str, said: str, agree: str):
        super().__init__()
        self.HEADING, self.said, self.agree = heading, said, agree

    def content(self) -> Iterable[Widget]:
        yield text(self.said)
        yield bullets(f"{self.agree}, press F8.", "To go back without changing anything, press ESC.")


def _named(path: bytes) -> str:
    """A path of the tree as this computer knows it."""
    return f"/{os.fsdecode(path)}"


class Chosen(Tree):
    """The tree of this computer's files: what is in the backup and what is not. Answers what is marked, () to go back.

    select: counts what a backup of some paths would hold.
    """

    HEADING = "Which files are backed up?"
    DO, GOES_ON = "back up", "N"
    BINDINGS = key("n", "go_on", "Next") + key("escape", "answer(())", "Back")
    EXPLANATION = (
        "ENTER opens the directory that is shown in reverse, and closes it again; LEFT closes the one around. SPACE "
        "marks a file, or a directory with all that is in it, with *. N goes on with what is marked.\n\n"
        "The sizes of directories come as they are counted. What is on other disks that are mounted below a directory "
        "is neither in its size nor in the backup."
    )
    WARNING = _NOTHING_YET

    def __init__(self, entries: "Callable[[bytes], list[Entry]]",
                 select: "Callable[[Sequence[str]], Generator[Event, None, Selection]]",
                 marked: Iterable[bytes] = ()):
        super().__init__(entries, marked)
        self.select = select
        self.sizes: dict[bytes, int | None] = {}       # bytes, by directories' paths; None: it could not be counted
        self.sizing = self.left = False

    def show_nodes(self) -> None:
        for node in self.nodes:
            if node.kind == "d":
                node.size = self.sizes.get(node.path)
        super().show_nodes()
        if not self.sizing:
            self.sizing = True
            self.count()

    @work
    async def count(self) -> None:
        """One directory after the other, as long as the page is there."""
        while path := next((n.path for n in self.nodes if n.kind == "d" and n.path not in self.sizes), b""):
            self.sizes[path] = await asyncio.to_thread(self._size_of, path)
            self.show_nodes()
        self.sizing = False

    def _size_of(self, path: bytes) -> int | None:
        try:
            with closing(self.select([_named(path)])) as counting:
                while not self.left:
                    next(counting)
        except StopIteration as end:
            return end.value.bytes
        except (AsrError, OSError) as error:
            log(f"{_named(path)}: {error}")
        return None

    def on_unmount(self) -> None:
        self.left = True                       # a thread can't be ended from outside

    def total(self) -> str:
        sizes = {node.path: node.size for node in self.nodes} | self.sizes
        known = [sizes.get(path) for path in self.marked]
        counted = [size for size in known if size is not None]
        return f", {human(sum(counted))}" if len(counted) == len(known) else ""

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "restore":
            return False
        return super().check_action("restore" if action == "go_on" else action, parameters)

    def action_go_on(self) -> None:
        self.action_restore()


class FilesTab(Chosen):
    """Page 17, second tab: the tree of what is in and out. Answers what is marked, () or ("tab", number)."""

    NUMBER = 1
    HEADING = ""
    BINDINGS = tab_keys()

    def content(self) -> Iterable[Widget]:
        yield tab_bar(self.NUMBER)
        yield from super().content()

    def action_next_tab(self) -> None:
        self.answer(("tab", 2))                # type: ignore[arg-type]


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
        count = f", with {len(unlike)} difference{'s' * (len(unlike) != 1)}." if unlike else "."
        self.HEADING = f"The backup is complete{count}"
        self.path, self.unlike = path, unlike

    def content(self) -> Iterable[Widget]:
        yield text(f"It was read back and matches: {shortened(str(self.path), TEXT_WIDTH - 31)}")
        if self.unlike:
            yield text("NOT in the backup as it was:", "lacking")
            yield Listing([line for d in self.unlike for line in difference_lines(d)], height=9, classes="lacking")
        yield bullets("To finish, press ENTER.")


def settings_of_this_user() -> Path:
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "asr" / "asr.toml"
