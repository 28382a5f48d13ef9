"""The preparation wizard: on the healthy machine, a backup and an ASR disk that belong together."""

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from textual import work
from textual.widget import Widget
from textual.widgets import Input

from bootenv.check import verdict
from bootenv.errors import AsrError
from bootenv.events import Difference, Progress
from bootenv.layout import human

from .app import SetupApp
from .screens import Browse, Leaving, Page, ProgressPage, Work, bullets, difference_lines, key, text
from .widgets import TEXT_WIDTH, Field, Gauge, Lines, Listing, shortened, wrapped

if TYPE_CHECKING:
    from bootenv.prepare import Destination, Survey
    from bootenv.sif import AsrSet

_FLOPPY = "/dev/fd0"
_NO_SET = "There is no ASR set yet."
_NO_DISK = "The backup is complete, but without an ASR disk it recovers nothing."


class PrepareApp(SetupApp):
    """Pages 18 to 21 and what was achieved. Its return code is 0 once the set was read back and matches."""

    TITLE = "Automated System Recovery Preparation Wizard"
    QUIT = "To quit, press F3."

    def __init__(self, story: Any, survey: "Survey", *, tick: float = 1.0):
        super().__init__(story, tick=tick)
        self.survey = survey
        self.complete = False
        self.unlike: tuple[Difference, ...] = ()       # what could not be read as it was

    async def pages(self) -> None:
        await self.ask(Welcome(self.survey))
        while not (set := await self.backed_up()):
            pass
        while not await self.disk_written(set):
            pass
        await self.ask(Label(self.story.label_of(set)))
        self.complete = True
        await self.ask(Complete(self.survey, self.unlike))

    async def backed_up(self) -> "AsrSet | None":
        """One attempt, from the destination to the backup that was read back."""
        place = ""
        while True:
            destination = await self.ask(BackupDestination(self.survey, place))
            if await self.ask(Completing(self.survey, destination)):
                break
            place = destination.reference.place
        try:
            selection = await self.perform(Selecting(), self.story.select(self.survey))
            page = ProgressPage("Backup Progress", _PROGRESS, f"{_NO_SET} What was written so far is removed.")
            set = await self.perform(page, self.story.prepare(self.survey, destination, selection))
            self.unlike = tuple(page.differences)
            return set
        except Exception as error:
            await self.ask(self.page_for(error))
            return None

    async def disk_written(self, set: "AsrSet") -> bool:
        place = await self.ask(InsertDiskette(_FLOPPY))
        while True:
            try:
                if place:
                    await self.perform(Writing(place), self.story.write_disk(set, place))
                    return True
                wish = "browse"
            except Exception as error:
                wish = await self.ask(self.page_for(error, "browse"))
            if wish == "browse":
                place = await self.ask(Browse("Another place for the ASR disk", _OTHER_DISK))
                if not place:
                    return False

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
    "If you quit now, what was written so far is removed."
)
_OTHER_DISK = (
    "Type a device (a USB stick such as /dev/sdc), the path of a floppy image (it is made if it is not there), or "
    "a folder. asr.sif and setup.log are written there; other files stay."
)


class Welcome(Page[None]):
    """Page 18, first part."""

    HEADING = "Welcome to the Automated System Recovery Preparation Wizard"
    BINDINGS = key("n", "answer(None)", "Next") + key("enter", "answer(None)")
    EXPLANATION = (
        "An ASR set is one backup file and one small disk that belong together. With the two and the recovery "
        "medium, this computer can be brought back after its disks were lost.\n\n"
        "The backup must lie on a disk that recovery does not format, or on the network."
    )
    WARNING = _NO_SET

    def __init__(self, survey: "Survey"):
        super().__init__()
        self.survey = survey

    def content(self) -> Iterable[Widget]:
        draft = self.survey.draft
        points = ", ".join(mount.point for mount in draft.layout.mounts_by_depth())
        disks = ", ".join(disk.path for disk in draft.layout.disks)
        yield text("This wizard makes a backup of this computer's system, and an ASR disk. You need a blank, "
                   "1.44 MB floppy disk or a USB stick.")
        yield text(
            f"      Computer     {draft.host}\n"
            f"      System       {draft.system}\n"
            f"      Disks        {disks[:TEXT_WIDTH - 19]}\n"
            f"      Mounted at   {points[:TEXT_WIDTH - 19]}\n"
            f"      Size         {human(self.survey.used)} before compression\n"
            f"      Verdict      {verdict(self.survey.findings)}"
        )
        if self.survey.left_out:
            yield text("NOT protected:", "heading")
            lines = [line for d in self.survey.left_out for line in difference_lines(d)]
            yield Listing(lines, height=min(len(lines) + 2, 6))
        yield text("   •  To continue, press N.")


class BackupDestination(Page["Destination"]):
    """Page 18, second part: asks until there is a place that will do, and says in words why one won't."""

    HEADING = "Backup Destination"
    EXPLANATION = (
        "Type a folder, or the path of the file to write. The disk must be mounted.\n\n"
        "A disk that recovery formats is refused: the backup would be lost just when it is needed."
    )
    WARNING = _NO_SET

    def __init__(self, survey: "Survey", place: str = ""):
        super().__init__()
        self.survey = survey
        self.place = place

    def content(self) -> Iterable[Widget]:
        disks = ", ".join(disk.path for disk in self.survey.draft.layout.disks)
        yield text("Where should the backup be written? Type a folder or a file name.")
        yield Field(self.place, select_on_focus=False)
        yield text(f"About {human(self.survey.used)} of files will be compressed. The backup cannot lie on {disks}: "
                   "recovery formats that.")
        yield Lines(8)

    def show_keys(self) -> None:
        self.bar.show("ENTER=Next  F1=Help  F3=Quit")

    def on_mount(self) -> None:
        self.query_one(Input).cursor_blink = False

    @work(exclusive=True)
    async def on_input_submitted(self, message: Input.Submitted) -> None:
        if not message.value.strip():
            return
        try:
            self.answer(await asyncio.to_thread(
                self.setup.story.destination, self.survey, message.value.strip()))
        except AsrError as error:
            self.query_one(Lines).show(*wrapped(error.message), "", *wrapped(error.hint))
        except Exception as error:
            self.fail(error)


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
        yield text("You have completed the wizard. It will write this backup:")
        yield text(
            f"      Computer     {self.survey.draft.host}\n"
            f"      Backup       {shortened(where, TEXT_WIDTH - 19)}\n"
            f"      Size         {human(self.survey.used)} before compression\n"
            f"      Free there   {human(self.destination.free)}"
        )
        for warning in self.destination.warnings:
            yield text(f"CAUTION: {warning}", "heading")
        yield bullets("To start the backup, press F.", "To go back, press ESC.")


class Selecting(Work):
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
        "The floppy disk must be formatted for FAT, as floppy disks are sold. ASR's two files are written to it; "
        "other files stay.\n\n"
        "Without a floppy drive, press B and name a USB stick, a floppy image or a folder."
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
        self.label = label.splitlines()

    def content(self) -> Iterable[Widget]:
        yield text("Remove the diskette, and label it as shown:")
        yield Listing(self.label, height=len(self.label) + 2)
        yield text("Keep it in a safe place, away from this computer.")
        yield bullets("To continue, press ENTER.")


class Complete(Page[None]):
    """What was achieved, and what was not."""

    HEADING = "The ASR set is complete."
    BINDINGS = key("enter", "answer(None)", "Finish") + key("f3", "answer(None)")
    EXPLANATION = (
        "To recover this computer, start it from the recovery medium, press F2, and insert the ASR disk.\n\n"
        "Prepare a new set whenever the system, its boot loader or its disks have changed."
    )

    def __init__(self, survey: "Survey", unlike: "tuple[Difference, ...]" = ()):
        super().__init__()
        self.missing = (*survey.left_out, *unlike)

    def content(self) -> Iterable[Widget]:
        yield text("The backup and the ASR disk were read back and match.")
        if self.missing:
            yield text("These are NOT protected:", "heading")
            lines = [line for d in self.missing for line in difference_lines(d)]
            yield Listing(lines, height=min(len(lines) + 2, 10))
        else:
            yield text("Everything that is mounted from this computer's disks is protected.")
        yield bullets("To finish, press ENTER.")
