"""The preparation wizard: on the healthy machine, a backup and an ASR disk that belong together."""

import asyncio
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from textwrap import wrap
from typing import TYPE_CHECKING, Any

from textual import work
from textual.binding import Binding
from textual.widget import Widget
from textual.widgets import Input

from bootenv.check import as_lines, verdict
from bootenv.destinations import backup_size, seconds_for
from bootenv.errors import AsrDiskNotBlank, AsrDiskUnformatted, AsrError, PasswordWanted
from bootenv.events import Difference, Progress
from bootenv.layout import human

from .app import Cancelled, SetupApp
from .network import ADDRESSES, NetworkPassword
from .screens import (
    Browse,
    Cancellable,
    Choosing,
    Leaving,
    Looking,
    Notice,
    Page,
    ProgressPage,
    Sheet,
    Work,
    along,
    bullets,
    difference_lines,
    key,
    text,
    tried_again,
)
from .widgets import TEXT_WIDTH, Field, Gauge, Lines, Listing, Marks, cut, shortened, wrapped

if TYPE_CHECKING:
    from bootenv.asr_disk import Drive
    from bootenv.destinations import Destination, Place
    from bootenv.prepare import Survey
    from bootenv.sif import AsrSet, ProviderReference

_FLOPPY = "/dev/fd0"
_TYPED = "?"
_LOOKING = "The wizard is looking at this computer..."
_NO_SET = "There is no ASR set yet."
_NO_DISK = "The backup is complete, but without an ASR disk it recovers nothing."


class PrepareApp(SetupApp):
    """Pages 18 to 22. Its return code is 0 once the set was read back and matches.

    look: surveys the machine anew, with `add`, the mount points of the data volumes to be in the set, and `provider`;
    and at first, if there is no survey yet.
    """

    TITLE = "Automated System Recovery Preparation Wizard"
    QUIT = "To quit, press F3."

    survey: "Survey"

    def __init__(self, story: Any, survey: "Survey | None" = None, look: "Callable[..., Survey] | None" = None, *,
                 tick: float = 1.0):
        super().__init__(story, tick=tick)
        if survey:
            self.survey = survey
        self.look = look
        self.complete = False
        self.unlike: tuple[Difference, ...] = ()       # what could not be read as it was
        self.typed = ("", "")                          # the backup's place and name, as they were last
        self.typed_disk = ""                           # and the ASR disk's

    async def pages(self) -> None:
        if self.look and not hasattr(self, "survey"):
            self.survey = await self.ask(Looking(_LOOKING, self.look, _NO_SET))
        await self.prepared()

    async def prepared(self) -> None:
        """The whole wizard, from its welcome to the end of a set."""
        while (wish := await self.ask(Welcome(self.survey, products=bool(self.look)))) != "next":
            await (self.add_volumes() if wish == "add" else self.choose_provider())
        while True:
            while not (set := await self.backed_up()):
                pass
            while not await self.disk_written(set):
                pass
            await self.ask(Label(self.story.label_of(set)))
            self.complete = True
            wish = "report"
            while wish == "report":
                wish = await self.ask(Complete(self.survey, self.unlike))
                if wish == "report":
                    await self.read_report(set)
            if wish != "add":
                return
            await self.add_volumes()

    async def add_volumes(self) -> None:
        """Marks data volumes; the machine is looked at anew, since all that depends on its disks changes."""
        points = [volume.point for volume in self.survey.more if volume.added]
        while (marked := await self.ask(DataVolumes(self.survey, points))) is not None:
            points = list(marked)
            if await self.looked_again(marked, self.survey.draft.provider):
                return

    async def choose_provider(self) -> None:
        """Whose backup it will be: ours, or another product's."""
        name = await self.ask(Providers(lambda: ("", *self.story.known_providers())))
        options = ""
        while name is not None:
            if name and not (options := await self.ask(Options(f"{name}: its options", _OPTIONS, options))):
                return
            try:
                provider = self.story.provider_reference(name, options.split()) if name else None
            except AsrError as error:
                if not await tried_again(self, error):
                    return
            else:
                if await self.looked_again([volume.point for volume in self.survey.more if volume.added], provider):
                    return

    async def looked_again(self, points: Sequence[str], provider: "ProviderReference | None") -> bool:
        """False: it is refused, and something else is to be tried."""
        try:
            assert self.look
            self.survey = await self.ask(
                Looking(_LOOKING, partial(self.look, add=points, provider=provider), _NO_SET))
            return True
        except Exception as error:
            return not await tried_again(self, error)

    async def backed_up(self) -> "AsrSet | None":
        """One attempt, from the destination to the backup that was read back."""
        try:
            destination = await self.destination()
            selection = await self.perform(Selecting(), self.story.select(self.survey))
            page = Backing(self.survey.draft.provider)
            set = await self.perform(page, self.story.prepare(self.survey, destination, selection))
            self.unlike = tuple(page.differences)
            return set
        except Cancelled:
            await self.ask(Notice("The backup was cancelled.", "What was written of it was removed. There is no new "
                                  "ASR set; an older one is as good as it was."))
        except Exception as error:
            await self.ask(self.page_for(error))
        return None

    async def destination(self) -> "Destination":
        """A place that will do, and the word to begin."""
        places = await self.ask(
            Looking(_LOOKING, partial(self.story.find_places, self.survey), _NO_SET))
        best = next((place.where for place in places if not place.refused and not place.doubt), "")
        place, name = self.typed
        at_once = False
        while True:
            page = BackupDestination(self.survey, place or best, name, at_once)
            at_once = False
            try:
                found = await self.ask(page)
            except PasswordWanted as error:
                place, name = self.typed = page.typed
                at_once = await self.ask(NetworkPassword(error.place, warning=_NO_SET)) is not None
                continue
            place, name = self.typed = page.typed
            if found is None:
                place = await self.ask(Places(self.survey, partial(self.story.find_places, self.survey))) or place
            elif await self.ask(Completing(self.survey, found)):
                return found

    async def read_report(self, set: "AsrSet") -> None:
        path = ""
        try:
            said = await asyncio.to_thread(self.story.read_report, set)
            while await self.ask(Report(said, f"/{self.story.report_of(set)}")):
                while path := await self.ask(Browse("Save the report", "Type the path of the file to write.", path)):
                    try:
                        await asyncio.to_thread(self.story.save_report, set, path)
                        await self.ask(Notice("The report was saved.", shortened(path, TEXT_WIDTH)))
                        break
                    except AsrError as error:
                        if not await tried_again(self, error):
                            break
        except Exception as error:
            await self.ask(self.page_for(error, "cancel"))

    async def disk_written(self, set: "AsrSet") -> bool:
        """Asks for disk after disk until one was written and matches; False: from the first drive again."""
        find = partial(self.story.find_drives, set)
        drives = await self.ask(Looking(_LOOKING, find, _NO_DISK))
        place = ""
        if drives and drives[0].device == _FLOPPY:
            place = await self.ask(InsertDiskette(_FLOPPY))
        wish = ""
        while place or (place := await self.other_place(find)):
            try:
                page = Writing(place)
                await self.perform(page, self.story.write_disk(
                    set, place, agreed=wish == "agree", format=wish == "format"))
                self.unlike += tuple(page.differences)
                return True
            except AsrDiskUnformatted as error:
                wish = await self.ask(self.page_for(error, "format", "browse"))
            except AsrDiskNotBlank as error:
                wish = await self.ask(self.page_for(error, "agree", "browse"))
            except Exception as error:
                wish = await self.ask(self.page_for(error, "browse"))
            if wish == "browse":
                place = ""
        return False

    async def other_place(self, find: "Callable[[], tuple[Drive, ...]]") -> str:
        place = await self.ask(Drives(find))
        if place == _TYPED:
            place = await self.ask(Browse("Another place for the ASR disk", _OTHER_DISK, self.typed_disk))
            self.typed_disk = place or self.typed_disk
        return place

    @work(exclusive=True, group="story")
    async def leave(self) -> None:
        """Ends the wizard; work that is going on cleans up first."""
        if self.working and not self.working.done() and isinstance(self.page, Work):
            self.page.cancelled.set()
            await self.show(Leaving("Please wait while the wizard removes what it has written..."))
            await asyncio.wait([self.working])
            self.working.exception()
        self.exit(return_code=0 if self.complete else 1)


_PROGRESS = (
    "The files are being written to the backup, then the whole backup is read again and compared.\n\n"
    "ESC cancels: what was written so far is removed."
)
_PROVIDER_PROGRESS = (
    "{name} writes the backup. Whether it reads it back and compares it, it says itself; if it does not, the last page "
    "says so.\n\n"
    "ESC cancels: what it has begun it is told to take away."
)
_OPTIONS = (
    "Type its options as KEY=VALUE, with a blank between two, or nothing. They are written to the ASR disk: a password "
    "among them would be anybody's. restic, for one, takes  password-file=/root/restic\n\n"
    "What it can do without, it asks for at recovery."
)
_NO_OPTIONS = " "
_OTHER_DISK = (
    "Type a device, the path of a floppy image (it is made if it is not there), or a folder. asr.sif and setup.log "
    "are written there; other files stay."
)


class Welcome(Page[str]):
    """Page 18, first part. Answers "next", "add" to choose data volumes, or "provider" if another may be chosen."""

    HEADING = "Welcome to the Automated System Recovery Preparation Wizard"
    BINDINGS = (key("n", "answer('next')", "Next") + key("enter", "answer('next')") + key("a", "answer('add')", "Add")
                + key("c", "verdict", "Verdict") + key("p", "answer('provider')", "Product"))
    EXPLANATION = (
        "An ASR set is one backup file and one small disk that belong together. With the two and the recovery "
        "medium, this computer can be brought back after its disks were lost.\n\n"
        "The backup must lie on a disk that recovery does not format, or on the network.\n\n"
        "What is listed in red is not in the set. A adds volumes on other disks; C shows what recovery will make of "
        "each device of this computer. P has the backup made, and restored, by another backup product; the disks and "
        "what starts the computer stay ASR's business."
    )
    WARNING = _NO_SET

    def __init__(self, survey: "Survey", *, products: bool = True):
        super().__init__()
        self.survey = survey
        self.products = products and not survey.include        # which a provider knows nothing of

    def content(self) -> Iterable[Widget]:
        draft = self.survey.draft
        points = ", ".join(mount.point for mount in draft.layout.mounts_by_depth())
        disks = ", ".join(disk.path for disk in draft.layout.disks)
        yield text("This wizard makes a backup of this computer's system, and an ASR disk. You need a blank, "
                   "1.44 MB floppy disk or a USB stick.")
        yield text(
            f"      Computer     {cut(draft.host, TEXT_WIDTH - 19)}\n"
            f"      System       {cut(draft.system, TEXT_WIDTH - 19)}\n"
            f"      Disks        {cut(disks, TEXT_WIDTH - 19)}\n"
            f"      Mounted at   {cut(points, TEXT_WIDTH - 19)}\n"
            f"      Size         {human(self.survey.used)} before compression\n"
            f"      Verdict      {verdict(self.survey.findings)}"
            + (f"\n      Backup by    {cut(draft.provider.name, TEXT_WIDTH - 19)}" if draft.provider else "")
        )
        yield from not_protected(self.survey.left_out, 6)
        yield text("   •  To continue, press N." + ("  To add a volume, press A." if self.survey.more else ""))

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if parameters == ("provider",):
            return self.products
        return bool(self.survey.more) if parameters == ("add",) else super().check_action(action, parameters)

    def action_verdict(self) -> None:
        self.app.push_screen(Findings(self.survey))


def not_protected(left_out: "Sequence[Difference]", height: int, heading: str = "NOT protected:") -> Iterable[Widget]:
    """In red: the one thing that must not be overlooked."""
    if left_out:
        yield text(heading, "lacking")
        lines = [line for d in left_out for line in difference_lines(d)]
        yield Listing(lines, height=min(len(lines) + 2, height), classes="lacking")


class Findings(Sheet):
    """What `asr check` says."""

    HEADING = "What recovery will make of this computer"
    EXPLANATION = (
        "A line for each device and file system. What has no word after it comes back as it is.\n\n"
        "asr check prints the same at any time."
    )

    def __init__(self, survey: "Survey"):
        super().__init__()
        self.survey = survey

    def content(self) -> Iterable[Widget]:
        lines = [part for line in as_lines(self.survey.findings).splitlines()
                 for part in wrap(line, TEXT_WIDTH - 4, subsequent_indent="    ")]
        yield Listing(lines, height=18)


class DataVolumes(Page["tuple[str, ...] | None"]):
    """Which data volumes are in the set, too. Answers their mount points, None to leave it as it is."""

    HEADING = "Data volumes"
    BINDINGS = key("space", "mark", "Mark") + key("enter", "done", "OK") + key("escape", "answer(None)", "Cancel")
    EXPLANATION = (
        "By default a set has the system alone: what its own disks hold. SPACE marks a volume on another disk, with *, "
        "to be in the set, too, and takes the mark away.\n\n"
        "Its disk then becomes one of the set's: recovery makes it anew and restores it, and the backup cannot lie "
        "on it."
    )
    WARNING = _NO_SET

    def __init__(self, survey: "Survey", marked: Iterable[str]):
        super().__init__()
        self.volumes = survey.more
        self.marked = set(marked)

    def content(self) -> Iterable[Widget]:
        yield text("These are on disks that the system does not need. Mark what is to be in the set, too:")
        yield Marks([], height=12)
        yield text("CAUTION: Recovery then formats their disks, too, and the backup cannot lie on them.", "heading")

    def on_mount(self) -> None:
        self.show_marks()

    def show_marks(self) -> None:
        self.query_one(Marks).show([
            f"{'*' if v.point in self.marked else ' '} {shortened(v.point, 34):<34} {human(v.used):>12}  "
            f"{cut(' '.join(v.disks), 18)}" for v in self.volumes])

    def action_mark(self) -> None:
        self.marked ^= {self.volumes[self.query_one(Marks).chosen].point}
        self.show_marks()

    def action_done(self) -> None:
        self.answer(tuple(sorted(self.marked)))


class Providers(Choosing["str | None"]):
    """Which product makes the backup. Answers its name, "" for ASR itself, None to leave it as it is."""

    HEADING = "Which product makes the backup?"
    BINDINGS = key("enter", "choose", "Choose") + key("escape", "answer(None)", "Cancel")
    EXPLANATION = (
        "ASR's own backup is read back and compared, single files come back from it, and recovery finds it wherever "
        "its disk is. Another product, here called a provider, restores the files in its place. Two ship: tar, and "
        "restic for its repositories; more lie in /etc/asr/providers.\n\n"
        "With a provider, encrypted volumes get new headers, so that what else opened them is enrolled again."
    )
    WARNING = _NO_SET

    def content(self) -> Iterable[Widget]:
        yield text("Recovery lays out the disks and makes them start as always. The files are backed up and restored "
                   "by:")
        yield Marks([self.LOOKING], height=11)
        yield bullets("To choose the one that is shown in reverse, press ENTER.")

    def line(self, found: str) -> str:
        return found or "ASR"

    def action_choose(self) -> None:
        self.answer(self.chosen)


class Options(Browse):
    """A line of words, which may be none: answered as a blank then, since "" is who goes back."""

    EXPLANATION = "Type the options and press ENTER, which also goes on without any. ESC goes back."

    def on_input_submitted(self, message: Input.Submitted) -> None:
        self.answer(message.value.strip() or _NO_OPTIONS)


class BackupDestination(Page["Destination | None"]):
    """Page 18, second part: asks until there is a place that will do, and says in words why one won't.

    Answers None to browse; `typed` are the place and the name as they are now.
    """

    HEADING = "Backup Destination"
    # First of all that is pressed: a letter that follows in a hurry goes to the other field already.
    BINDINGS = [*key("f4", "answer(None)", "Browse"), Binding("tab", "other", show=False, priority=True)]
    EXPLANATION = (
        "Type a folder, or choose a volume with F4. A volume that is not mounted is named by its device, a place on "
        f"the network by its address:  {ADDRESSES}.  They are mounted as long as they are needed. TAB goes to the name "
        "and back.\n\n"
        "A disk that recovery formats is refused: the backup would be lost just when it is needed.\n\n"
        "ENTER checks the place, and writes a little there to see how fast it is."
    )
    WARNING = _NO_SET

    def __init__(self, survey: "Survey", place: str = "", name: str = "", at_once: bool = False):
        super().__init__()
        self.survey = survey
        self.typed = (place, name)
        self.checking = at_once        # without another ENTER: its password was asked for meanwhile

    def content(self) -> Iterable[Widget]:
        disks = ", ".join(disk.path for disk in self.survey.draft.layout.disks)
        provider = self.survey.draft.provider
        yield text("Where should the backup be written? A folder, a device, nfs:// or smb://" if not provider else
                   f"Where should {provider.name} write it? A folder, a device, or what it knows as a place:")
        yield Field(self.typed[0], select_on_focus=False, id="place")
        yield text("Its name; left empty, it is the computer's name and the time:")
        yield Field(self.typed[1], select_on_focus=False, id="name")
        shrunk = "" if provider else f" become about {human(backup_size(self.survey.used))}"
        yield text(f"About {human(self.survey.used)} of files{shrunk or ' are backed up'}. "
                   f"The backup cannot lie on {disks}: recovery formats that.")
        yield Lines(6)

    def show_keys(self) -> None:
        self.bar.show("ENTER=Next  F4=Browse  TAB=Name  F1=Help  F3=Quit")

    def on_mount(self) -> None:
        for field in self.query(Input):
            field.cursor_blink = False
        if self.checking:
            self.look()

    def action_other(self) -> None:
        self.focus_next(Input)

    def on_input_changed(self) -> None:
        self.typed = tuple(field.value.strip() for field in self.query(Input))      # type: ignore[assignment]

    def on_input_submitted(self) -> None:
        if self.typed[0] and not self.checking:
            self.checking = True
            self.look()

    @work
    async def look(self) -> None:
        lines = self.query_one(Lines)
        lines.show("Looking at the place, and how fast it is...")
        try:
            self.answer(await asyncio.to_thread(self.setup.story.destination, self.survey, *self.typed))
        except AsrError as error:
            if isinstance(error, PasswordWanted) and error.place:
                return self.fail(error)
            lines.show(*wrapped(error.message), "", *wrapped(error.hint))
        except Exception as error:
            self.fail(error)
        finally:
            self.checking = False


class Places(Choosing[str]):
    """Page 18, Browse: every volume and network place. Answers one, "" to go back."""

    HEADING = "Browse for a backup destination"
    BINDINGS = key("enter", "choose", "Choose") + key("f5", "look", "Refresh") + key("escape", "answer('')", "Cancel")
    EXPLANATION = (
        "Each volume of this computer, and each network place that is mounted, with what is free there. A place with "
        "- before it won't do: below the list it says why.\n\n"
        "Connect a disk, then press F5 to look again. A volume that is not mounted is mounted as long as it is needed. "
        "So is a place on the network, whose address is typed on the page before."
    )
    WARNING = _NO_SET

    def __init__(self, survey: "Survey", find: "Callable[[], tuple[Place, ...]]"):
        super().__init__(find)
        self.survey = survey

    def content(self) -> Iterable[Widget]:
        yield text(f"The backup needs about {human(backup_size(self.survey.used))}.")
        yield Lines(1)
        yield Marks([self.LOOKING], height=11)
        yield Lines(3, id="why")

    def on_mount(self) -> None:
        self.query_one(Lines).show("  " + _PLACE.format("Label", "Place", "File system", "Free"))

    def line(self, found: "Place") -> str:
        return place_line(found)

    def on_marks_moved(self) -> None:
        self.query_one("#why", Lines).show(*wrapped(self.chosen.refused or self.chosen.doubt if self.chosen else ""))

    def action_choose(self) -> None:
        if self.chosen and not self.chosen.refused:
            self.answer(self.chosen.where)


_PLACE = "  {:<15.15} {:<26} {:<13.13} {:>10}"


def place_line(place: "Place") -> str:
    free = human(place.free) if place.free or not place.refused else ""
    return ("-" if place.refused else " ") + _PLACE.format(
        cut(place.label, 15), shortened(place.where, 26), f"[{place.type}]", free)[1:]


class Completing(Page[bool]):
    """Page 18, last part. False goes back."""

    HEADING = "Completing the Automated System Recovery Preparation Wizard"
    BINDINGS = (
        key("f", "answer(True)", "Finish")
        + key("enter", "answer(True)")
        + key("escape", "answer(False)", "Back")
    )
    EXPLANATION = (
        "Finish starts the backup. When it is complete and was read back, the wizard asks for the floppy disk.\n\n"
        "Files that change while they are read are named in the log."
    )
    WARNING = _NO_SET

    def __init__(self, survey: "Survey", destination: "Destination"):
        super().__init__()
        self.survey = survey
        self.destination = destination

    def content(self) -> Iterable[Widget]:
        where = f"{self.destination.reference.place.rstrip('/')}/{self.destination.reference.name}"
        provider = self.survey.draft.provider
        yield text("You have completed the wizard. It will write this backup:")
        yield text(
            f"      Computer     {cut(self.survey.draft.host, TEXT_WIDTH - 19)}\n"
            f"      Backup       {shortened(where, TEXT_WIDTH - 19)}\n"
            + (f"      By           {provider.name}, {human(self.survey.used)} of files" if provider else
               f"      Size         about {human(backup_size(self.survey.used))}, of {human(self.survey.used)} of "
               "files\n"
               f"      Free there   {human(self.destination.free)}\n"
               f"      Time         {self._time()}")
            + along(self.survey.draft)
        )
        for note in self.destination.notes:
            yield text(note)
        for warning in self.destination.warnings:
            yield text(f"CAUTION: {warning}", "heading")
        yield bullets("To start the backup, press F.", "To go back, press ESC.")

    def _time(self) -> str:
        speed = self.destination.speed
        minutes = -int(-seconds_for(self.survey.used, speed) // 60)
        return f"about {minutes} minute{'s' * (minutes != 1)}; the place took {human(speed)} in a second"


class Backing(Cancellable, ProgressPage):
    """Page 19, second part."""

    def __init__(self, provider: "ProviderReference | None" = None):
        super().__init__(
            "Backup Progress", _PROVIDER_PROGRESS.format(name=provider.name) if provider else _PROGRESS,
            f"{_NO_SET} " + ("It is told to take away what it has begun." if provider else
                             "What was written so far is removed."))


class Selecting(Cancellable):
    """Page 19, first part: the files are counted, since nobody knows yet how many there are."""

    HEADING = "Selection Information"
    EXPLANATION = "The files that will be backed up are being counted. Nothing is written yet."
    WARNING = _NO_SET

    def content(self) -> Iterable[Widget]:
        yield text("Please wait while the wizard makes the list of all files.")
        yield Lines(4)

    def show_progress(self, progress: Progress) -> None:
        self.query_one(Lines).show(
            f"      Status       {progress.status}",
            f"      Files        {progress.files:,}",
            f"      Bytes        {progress.done:,}",
            f"      Looking at   {shortened(progress.item, TEXT_WIDTH - 19)}",
        )


class InsertDiskette(Page[str]):
    """Page 20. Answers the place to write to; "" to name another one."""

    HEADING = "The backup is complete."
    BINDINGS = key("enter", "place", "OK") + key("b", "answer('')", "Other Disk")
    EXPLANATION = (
        "ASR's two files are written to the disk. If it is not blank, the wizard says what is on it and asks; if it is "
        "not formatted, the wizard offers to do that.\n\n"
        "B offers USB sticks, memory cards, floppy images and folders."
    )
    WARNING = _NO_DISK

    def __init__(self, place: str):
        super().__init__()
        self.place = place

    def content(self) -> Iterable[Widget]:
        yield text("Insert a blank, 1.44 MB, formatted diskette in drive A:.\n\n"
                   "Recovery information will be written to this diskette.")
        yield bullets("When the diskette is in the drive, press ENTER.",
                      "To use a USB stick, a floppy image or a folder instead, press B.")

    def action_place(self) -> None:
        self.answer(self.place)


class Drives(Choosing[str]):
    """Page 20 where there is no floppy drive, or another disk is wanted. Answers a device, _TYPED, or "" to go back."""

    HEADING = "Where should the ASR disk be written?"
    BINDINGS = (key("enter", "choose", "Choose") + key("t", "answer('?')", "Type a Path") + key("f5", "look", "Refresh")
                + key("escape", "answer('')", "Back"))
    EXPLANATION = (
        "Floppy drives, USB sticks and memory cards. Recovery information will be written to the one that you choose; "
        "what else is on it stays. If it is not blank, the wizard says what is on it and asks.\n\n"
        "Several computers' ASR disks can be on one stick: each has a folder of its own, and recovery asks which.\n\n"
        "T takes the path of a floppy image or a folder instead."
    )
    WARNING = _NO_DISK
    NONE = "There is no floppy drive and no USB stick."

    def content(self) -> Iterable[Widget]:
        yield text("Connect a USB stick and press F5, or insert a diskette. Then choose it:")
        yield Marks([self.LOOKING], height=11)
        yield bullets("To use the one that is shown in reverse, press ENTER.",
                      "To name a floppy image or a folder, press T.")

    def line(self, found: "Drive") -> str:
        return f"{found.device:<14}  {found.description}"

    def action_choose(self) -> None:
        self.answer(self.chosen.device)


class Writing(Work):
    """The ASR disk is written and read again."""

    EXPLANATION = "The ASR disk is being written, then read again and compared. A floppy disk takes a minute."
    WARNING = _NO_DISK

    def __init__(self, place: str):
        super().__init__()
        self.place = place

    def content(self) -> Iterable[Widget]:
        yield text(f"Please wait while the wizard writes\n\n{shortened(self.place, TEXT_WIDTH)}", "centred")
        yield Gauge()

    def show_progress(self, progress: Progress) -> None:
        self.query_one(Gauge).show(progress.status, progress.done, progress.total)


class Label(Page[None]):
    """Page 21."""

    HEADING = "The ASR disk was written, read back, and matches."
    BINDINGS = key("enter", "answer(None)", "OK")
    EXPLANATION = (
        "Write these words on the disk's label. After a disaster, Setup asks for the disk by them, and the date "
        "says which backup it belongs to: a disk and a backup of different sets do not fit together."
    )

    def __init__(self, label: str):
        super().__init__()
        # Whole, since it is copied by hand; a hyphen at a line's end would look like one that divides a word.
        self.label = [part for line in label.splitlines()
                      for part in wrap(line, TEXT_WIDTH - 4, break_on_hyphens=False)]

    def content(self) -> Iterable[Widget]:
        yield text("Remove the diskette, and label it as shown:")
        yield Listing(self.label, height=len(self.label) + 2)
        yield text("Keep it in a safe place, away from this computer.")
        yield bullets("To continue, press ENTER.")


class Complete(Page[str]):
    """Page 22: what was achieved, and what was not. Answers "add", "report" or "finish"."""

    HEADING = "The ASR set is complete."
    BINDINGS = (key("enter", "answer('finish')", "Finish") + key("f3", "answer('finish')")
                + key("r", "answer('report')", "Report") + key("a", "answer('add')", "Add"))
    EXPLANATION = (
        "To recover this computer, start it from the recovery medium, press F2, and insert the ASR disk.\n\n"
        "Prepare a new set whenever the system, its boot loader or its disks have changed.\n\n"
        "A chooses volumes on other disks to protect, and makes another set with them."
    )

    def __init__(self, survey: "Survey", unlike: "tuple[Difference, ...]" = ()):
        super().__init__()
        self.survey = survey
        self.missing = (*survey.left_out, *unlike)

    def content(self) -> Iterable[Widget]:
        provider = self.survey.draft.provider
        yield text("The backup and the ASR disk were read back and match." if not provider else
                   f"The ASR disk was read back and matches. The backup is {provider.name}'s: the report has what is "
                   "known of it.")
        if self.missing:
            yield from not_protected(self.missing, 9, "NOT protected:" if self.missing == self.survey.left_out else
                                     "NOT protected, or not as it was:")
        else:
            yield text("Everything that is mounted from this computer's disks is protected.")
        more = ["To make another set that has more volumes, press A."] if self.survey.more else []
        yield bullets("To finish, press ENTER.", "To read the report, press R.", *more)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return bool(self.survey.more) if parameters == ("add",) else super().check_action(action, parameters)


class Report(Page[bool]):
    """A set's report. Answers whether it is to be saved somewhere."""

    HEADING = "Report"
    BINDINGS = key("w", "answer(True)", "Save Copy") + key("enter", "answer(False)") + key(
        "escape", "answer(False)", "Back")
    EXPLANATION = (
        "What is in the set, and what is not. The arrow keys, PAGE UP and PAGE DOWN move. W saves a copy; the report "
        "itself stays where the line below it says."
    )

    def __init__(self, said: str, path: str):
        super().__init__()
        self.said, self.path = said, path

    def content(self) -> Iterable[Widget]:
        lines = [part for line in self.said.splitlines()
                 for part in wrap(line, TEXT_WIDTH - 4, subsequent_indent="    ") or [""]]
        yield Listing(lines, height=16)
        yield text(self.path)
