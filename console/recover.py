"""Boot recovery: what the technician sees from the first frame to the first reboot."""

import asyncio
import textwrap
from collections.abc import Generator, Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import events, work
from textual.widget import Widget

from bootenv.errors import BackupNotFound, DamagedBackup, NoAsrDisk
from bootenv.events import Event, Progress
from bootenv.layout import Disk, human

from .app import HARDWARE_READY, MediumApp, T
from .files import restore_files, verify_backup
from .network import ADDRESSES, BrowseBackup, NetworkPassword, told
from .offline import prepare_offline
from .screens import (
    ChecksPage,
    Looking,
    Notice,
    Page,
    Passphrase,
    Work,
    bullets,
    key,
    seconds,
    set_lines,
    text,
    when,
)
from .widgets import TEXT_WIDTH, Gauge, Lines, Listing, Marks, shortened, wrapped

if TYPE_CHECKING:
    from bootenv.asr_disk import AsrDisk
    from bootenv.drivers import Loaded
    from bootenv.match import Choice, Match
    from bootenv.recover import Lock

# How far the technician got.
_WELCOME, _WANTED, _CHANGED = "welcome", "recovery is wanted", "the disks are changed"

# Seconds.
_F6 = 3
_F2 = 10
_FOUND = 4
_DISKS = 15
_REBOOT = 15
_LOOK_EVERY = 1.0


class RecoverApp(MediumApp):
    """Pages 2 to 10.

    Beside hardware_ready a file says how far the technician got, so that a console that crashed comes back to that.
    """

    def __init__(self, story: Any, *, hardware_ready: Path = HARDWARE_READY, tick: float = 1.0, asked: str = ""):
        super().__init__(story, hardware_ready=hardware_ready, tick=tick)
        self.asked = asked                     # what page 3 was answered while this program started
        self.reached = hardware_ready.with_name("reached")
        self.changed = ""                      # what an earlier attempt did to the disks
        self.without_backup = False            # somebody said that the backup will be connected later
        self.wanted = False        # F2 was pressed: nothing before page 5 needs to be seen again

    async def pages(self) -> None:
        if (work := self.story.under_way()) and await self.resumed(work):
            return await self.ask(Reboot())
        reached = self.reached.read_text() if self.reached.exists() else ""
        if reached == _CHANGED:
            self.changed = _DISKS_CHANGED
        self.wanted = self.wanted or reached in (_WANTED, _CHANGED) or (not reached and await self.prompted())
        while not self.wanted or not (disk := await self.asr_disk()):
            await self.welcome()
        while await self.hardware():
            pass                               # F2 again changes nothing
        while not await self.recovered(disk):
            pass
        await self.ask(Reboot())

    def reach(self, place: str) -> None:
        """Once the disks are changed, there is no way back from that."""
        if not self.changed:
            self.reached.write_text(place)

    async def ask(self, page: Page[T]) -> T:
        if self.changed:
            page.WARNING = self.changed
        return await super().ask(page)

    def page_for(self, error: Exception, *offers: str, heading: str = "", changed: str = "") -> Page[str]:
        return super().page_for(error, *offers, heading=heading, changed=changed or self.changed)

    async def resumed(self, work: Generator[Event, None, None]) -> bool:
        """What an earlier console was doing when it crashed. False: it failed."""
        try:
            self.changed = _DISKS_CHANGED
            await self.perform(Preparing(), work)
        except Exception as error:
            await self.ask(self.page_for(error))
            return False
        return True

    async def prompted(self) -> bool:
        """True: F2 was pressed. Meanwhile devices are being found; they are waited for where they are needed."""
        answer = self.asked
        if answer not in ("f2", "f6", "welcome"):
            if answer:                         # it means the same here, over the prompt, which begins anew
                self.set_timer(0.1, partial(self.simulate_key, answer))
            answer = await self.ask(PromptF6())
        while answer == "f6" or not answer:
            if answer == "f6":
                if await self.hardware():
                    return True
                await self.drivers()
            answer = await self.ask(PromptF2())
        return answer == "f2" or await self.hardware()

    async def drivers(self) -> None:
        """From as many disks as there are; nothing is changed on them."""
        while await self.ask(DriverDisk(self.story.release())):
            try:
                loaded = await self.ask(Looking("Setup is loading drivers and firmware...", self.story.load_drivers))
            except Exception as error:
                if await self.ask(self.page_for(error, "cancel")) == "cancel":
                    return
            else:
                return await self.ask(Drivers(loaded))

    async def welcome(self) -> None:
        self.reach(_WELCOME)
        while (wish := await self.ask(Welcome())) != "recover":
            if wish == "restore":
                await restore_files(self)
            elif wish == "verify":
                await verify_backup(self)
            else:
                await prepare_offline(self)
        self.wanted = True

    async def asr_disk(self) -> "AsrDisk | None":
        """The set to recover: of the ASR disk in a drive, or of a copy; None when the technician went back."""
        self.reach(_WANTED)
        while True:
            try:
                found = await self.ask(InsertDisk())
                if len(found) < 2:
                    return found[0] if found else None
                return await self.ask(Sets("Which computer?", found))
            except Exception as error:
                wish = await self.ask(self.page_for(error, "copy", "cancel"))
                if wish == "cancel":
                    return None
                disk = await self.copy() if wish == "copy" else None
            if disk:
                return disk

    async def copy(self) -> "AsrDisk | None":
        """A copy of asr.sif, when the disk is lost or damaged and the backup is at hand."""
        look, place = self.story.find_copies, ""
        while True:
            trouble: Exception = NoAsrDisk(f"No backup of an ASR set was found{' there' * bool(place)}.",
                                           hint="Connect the disk that holds the backup and press ENTER.")
            try:
                if found := await told(self, partial(Looking, _LOOKING, look, _UNCHANGED), warning=_UNCHANGED):
                    return await self.ask(Sets(_WHICH_COPY, found))
            except Exception as error:
                trouble = error
            wish = await self.ask(self.page_for(trouble, "browse", "cancel"))
            if wish == "browse":
                place = await self.ask(BrowseBackup(_WHICH_COPY, _BROWSE, place)) or place
                look = partial(self.story.copies_at, place) if place else look
            elif wish == "cancel" or not place:
                return None

    async def recovered(self, disk: "AsrDisk") -> bool:
        """One attempt, from the checks to the last file copied."""
        try:
            checks = self.story.checks(disk, without_backup=self.without_backup)
            await self.ask(ChecksPage("Automated System Recovery is starting...", checks))
            match = await asyncio.to_thread(self.story.match_disks, disk)
            await self.ask(Disks(match))
            secrets = await self.passphrases(disk)
            self.reach(_CHANGED)
            self.changed = _DISKS_CHANGED
            await self.perform(Preparing(), self.story.recover(disk, match, secrets))
        except (BackupNotFound, DamagedBackup) as error:
            self.without_backup = await self.ask(self.page_for(error, "agree")) == "agree"
            return False
        except Exception as error:
            await self.ask(self.page_for(error))
            return False
        return True

    async def passphrases(self, disk: "AsrDisk") -> dict[str, bytes]:
        """Of each encrypted volume, by its id."""
        secrets: dict[str, bytes] = {}
        if not self.without_backup and (place := await asyncio.to_thread(self.story.server_to_ask, disk)):
            await self.ask(NetworkPassword(place, _HEADERS_THERE, _UNCHANGED))
        for lock in await asyncio.to_thread(self.story.locks, disk):
            container = lock.container
            name = f"{container.name or disk.set.layout.path(container.device)}  {human(container.size)}"
            answer = None
            if lock.header:
                answer = await self.ask(Passphrase(
                    name, opens=partial(self.story.opens, lock), first=_SAVED_HEADER, renew=True))
                if answer is None:
                    await asyncio.to_thread(self.story.renew, lock)
            if answer is None:
                answer = await self.ask(Passphrase(name, opens=None, first=_new_header(lock)))
                assert answer
            secrets[container.id] = answer
        return secrets


_UNCHANGED = "Nothing was changed yet."
_WHICH_COPY = "Use the copy in which backup?"
_LOOKING = "Setup is looking for backups..."
_BROWSE = f"Type the path of a backup's file, or an address on the network:\n\n      {ADDRESSES}"

_HEADERS_THERE = (
    "The headers of this computer's encrypted volumes were saved with the backup, on a server that wants a password. "
    "Without it, the volumes get new headers with new passphrases."
)

_SAVED_HEADER = (
    "This volume gets the header that was saved with the backup. All its passphrases and keys stay as they were. "
    "Type one of its passphrases."
)


def _new_header(lock: "Lock") -> str:
    lost = [f"{lock.container.slots} key slots" if lock.container.slots > 1 else "", *lock.container.tokens]
    lost = [word for word in lost if word]
    return "This volume gets a new header. Type the passphrase that is to open it." + (
        f" The old ones are lost; what else opened it must be enrolled again: {', '.join(lost)}." if lost else "")


_DISKS_CHANGED = (
    "The disks were already changed. Your computer will not start from them until Automated System Recovery has "
    "been run again from this medium."
)



class Prompt(Page[Any]):
    """Page 3: nothing but a line at the bottom, for some seconds."""

    LINE = ""
    SECONDS = 0
    EXPLANATION = (
        "F2 starts Automated System Recovery: this computer's disks are made as they were when its ASR set was "
        "prepared, and its files are restored. You need the ASR disk and the backup.\n\n"
        "If you press nothing, the Welcome page comes next. It offers the same and more. ENTER goes there at once.\n\n"
        "F4 chooses the layout of your keyboard, on this and on every other page.\n\n"
        "Nothing is changed before you have inserted an ASR disk."
    )

    def content(self) -> Iterable[Widget]:
        yield text("To choose the layout of your keyboard, press F4.")

    def show_keys(self) -> None:
        self.bar.show(self.LINE)

    def on_mount(self) -> None:
        self.count_down(self.SECONDS)


class PromptF6(Prompt):
    LINE = "Press F6 if you need to install a third-party driver..."
    SECONDS = _F6
    BINDINGS = key("f6", "answer('f6')") + key("f2", "answer('f2')") + key("enter", "answer('')") + key("f3", "leave")

    def time_is_up(self) -> None:
        self.answer("")


class PromptF2(Prompt):
    LINE = "Press F2 to run Automated System Recovery (ASR)..."
    SECONDS = _F2
    BINDINGS = (
        key("f2", "answer('f2')")
        + key("f6", "answer('f6')")
        + key("enter", "answer('welcome')")
        + key("escape", "answer('welcome')")
        + key("f3", "leave")
    )

    def time_is_up(self) -> None:
        self.answer("welcome")


class DriverDisk(Page[bool]):
    """F6 was pressed. Answers whether there is a disk to look at."""

    HEADING = "Third-party drivers and firmware"
    BINDINGS = key("enter", "answer(True)", "Continue") + key("escape", "answer(False)", "Cancel")
    EXPLANATION = (
        "The recovery medium carries all drivers of the Linux kernel. What it may lack is a driver that is newer than "
        "it, and firmware that its makers may not give away.\n\n"
        "What is on the disk is loaded now, and once more when this computer restores its files. The recovered system "
        "gets nothing of it: it has its own.\n\n"
        "What asr add-driver was given before the ASR set was made is loaded without this page."
    )
    WARNING = "Nothing was changed yet."

    def __init__(self, release: str):
        super().__init__()
        self.release = release

    def content(self) -> Iterable[Widget]:
        yield text("Insert the disk with the drivers: a USB stick, a CD or a floppy disk.")
        yield text("At its top, or in a folder named drivers, Setup looks for")
        yield bullets(f"kernel modules (.ko) for Linux {self.release},",
                      "Debian packages (.deb) with such or with firmware,", "a folder named firmware.")
        yield text("To continue, press ENTER. To go back, press ESC.")


class Drivers(Notice):
    """What became of each."""

    def __init__(self, loaded: "list[Loaded]"):
        useless = [file for file in loaded if file.trouble]
        super().__init__(f"{len(loaded) - len(useless)} of {len(loaded)} drivers and firmware files are in use.")
        self.lines = [line for file in (*useless, *(f for f in loaded if not f.trouble)) for line in (
            shortened(file.name, TEXT_WIDTH - 4), *wrapped(file.trouble, TEXT_WIDTH - 4, "    "))]

    def content(self) -> Iterable[Widget]:
        yield Listing(self.lines, height=min(len(self.lines) + 2, 14))
        yield from super().content()


class Welcome(Page[str]):
    """Page 4."""

    HEADING = "Welcome to Setup."
    BINDINGS = (
        key("f2", "answer('recover')", "ASR")
        + key("r", "answer('restore')", "Restore")
        + key("v", "answer('verify')", "Verify")
        + key("p", "answer('prepare')", "Prepare")
        + key("s", "shell", "Shell")
        + key("f3", "leave", "Restart")
    )
    EXPLANATION = (
        "To bring back a computer that does not start any more, or whose disk was replaced, press F2. You need "
        "the ASR disk (a floppy disk or a USB stick) and the backup that was made with it.\n\n"
        "P makes both of a computer whose own system does not run, and whose disks are well: Setup finds the system, "
        "asks for the passphrases of encrypted volumes, and starts the preparation wizard. A computer that runs is "
        "better prepared by itself: mount this medium there, and run its program  asr prepare.\n\n"
        "Nothing is changed before you have inserted an ASR disk and Setup has checked everything."
    )

    def content(self) -> Iterable[Widget]:
        yield text("Setup brings a computer back from its ASR set: the backup, and the ASR disk that was made with it.")
        yield bullets(
            "To recover this computer with its ASR disk and backup, press F2.",
            "To restore single files from a backup, press R.",
            "To verify a backup and an ASR disk, press V.",
            "To prepare an ASR set of this computer, press P.",
            *(["To work at a command line, press S."] if self.check_action("shell", ()) else []),
            "To choose the layout of your keyboard, press F4.",
            "To quit Setup and restart your computer, press F3.",
        )


class InsertDisk(Page["tuple[AsrDisk, ...]"]):
    """Page 5: looks for the ASR disk until there is one, and says which set it is of. Answers () to go back.

    Of several sets it answers all at once: which it is to be, another page asks.
    """

    BINDINGS = key("escape", "answer(())")
    EXPLANATION = (
        "Insert the disk that is labeled Automated System Recovery Disk with the name of this computer. Setup "
        "looks in every floppy drive and on every USB stick, and goes on by itself once it has found the disk.\n\n"
        "If you press a key and there is no ASR disk, Setup says so. ESC goes back.\n\n"
        "Setup only reads the disk. Nothing is changed."
    )
    WARNING = "Nothing was changed yet."

    def __init__(self) -> None:
        super().__init__()
        self.pressed = asyncio.Event()
        self.found: tuple[AsrDisk, ...] = ()

    def content(self) -> Iterable[Widget]:
        yield text(
            "Please insert the disk labeled:\n\n"
            "      Automated System Recovery Disk\n\n"
            "into the floppy drive or a USB port.\n\n"
            "Press any key when ready."
        )
        yield Lines(6)

    def on_mount(self) -> None:
        self.look()

    def on_key(self, event: events.Key) -> None:
        if self.has_key(event):
            return
        if self.found:
            self.answer(self.found)
        self.pressed.set()

    @work
    async def look(self) -> None:
        while True:
            asked = self.pressed.is_set()
            self.pressed.clear()
            try:
                found = await asyncio.to_thread(self.setup.story.find_sets)
            except NoAsrDisk as error:
                if asked:
                    return self.fail(error)
            except Exception as error:
                return self.fail(error)
            else:
                return self._show(found)
            await self._wait()

    async def _wait(self) -> None:
        with suppress(TimeoutError):
            await asyncio.wait_for(self.pressed.wait(), _LOOK_EVERY * self.setup.tick)

    def _show(self, found: "tuple[AsrDisk, ...]") -> None:
        self.found = found
        if len(found) > 1:
            return self.answer(found)
        self.query_one(Lines).show(f"An ASR disk was found: {found[0].description}", "", *set_lines(found[0].set))
        self.count_down(_FOUND)

    def time_is_up(self) -> None:
        self.answer(self.found)


class Sets(Page["AsrDisk | None"]):
    """Which of several sets? None goes back. Nothing is chosen by itself: the wrong one would cost the disks."""

    BINDINGS = key("enter", "choose", "Choose") + key("escape", "answer(None)", "Back")
    EXPLANATION = (
        "Each line is an ASR set that was found. The arrow keys move; below the list is what is known of the set that "
        "is shown in reverse. ENTER takes it.\n\n"
        "Take the set of the computer that stands before you. Nothing is changed yet."
    )
    WARNING = "Nothing was changed yet."

    def __init__(self, heading: str, found: "tuple[AsrDisk, ...]"):
        super().__init__()
        self.HEADING = heading
        self.found = found

    def content(self) -> Iterable[Widget]:
        yield Marks([f"{when(disk.set.created)}  {shortened(disk.set.host, 20):<20}  {shortened(disk.description, 26)}"
                     for disk in self.found], height=10)
        yield Lines(5)
        yield bullets("To recover from the set that is shown in reverse, press ENTER.")

    def on_mount(self) -> None:
        self.on_marks_moved()

    def on_marks_moved(self) -> None:
        self.query_one(Lines).show(*set_lines(self.chosen.set))

    @property
    def chosen(self) -> "AsrDisk":
        return self.found[self.query_one(Marks).chosen]

    def action_choose(self) -> None:
        self.answer(self.chosen)


class Disks(Page[None]):
    """Page 7: goes on by itself unless something would be lost that is not this computer's."""

    HEADING = "Setup will recover these disks:"
    BINDINGS = key("f8", "agree", "Agree") + key("enter", "go_on", "Continue")
    EXPLANATION = (
        "For each disk that was recorded, this page says which disk takes its place, how Setup knows it, and what "
        "is on that disk now. All partitions of these disks are made anew.\n\n"
        "A disk that is blank or has this computer's own partitions is used without a question. If a disk holds "
        "anything else, or has these partitions but another serial number, Setup waits until you agree to lose it.\n\n"
        "Other disks, the recovery medium and the disk that holds the backup are not touched. To stop before "
        "anything is changed, press F3."
    )
    WARNING = "Nothing was changed yet."

    def __init__(self, match: "Match"):
        super().__init__()
        self.choices = match.choices
        self.lost = [f"Disk {n}" for n, choice in enumerate(match.choices) if choice.consent]

    def content(self) -> Iterable[Widget]:
        lines = [line for n, choice in enumerate(self.choices) for line in choice_lines(n, choice)]
        yield Listing(lines, height=min(len(lines) + 2, 11))
        if self.lost:
            yield text(f"CAUTION: What {' and '.join(self.lost)} now holds will be lost. "
                       "Setup does not know it as this computer's own.", "heading")
            yield bullets("To agree to the loss and continue, press F8.",
                          "To quit without changing anything, press F3.")
        else:
            yield text("Setup makes the partitions of these disks anew and formats them. They hold nothing that "
                       "is not this computer's own.")
            yield Lines(1)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action in ("agree", "go_on"):
            return (action == "agree") == bool(self.lost)
        return super().check_action(action, parameters)

    def on_mount(self) -> None:
        if not self.lost:
            self.count_down(_DISKS)

    def show_seconds(self) -> None:
        self.query_one(Lines).show(f"Setup continues in {seconds(self.seconds)}.")

    def action_agree(self) -> None:
        self.answer(None)

    def action_go_on(self) -> None:
        self.answer(None)

    def time_is_up(self) -> None:
        self.answer(None)


def choice_lines(number: int, choice: "Choice") -> list[str]:
    """A recorded disk and the one in its place, for the list on page 7."""
    what = "WILL BE LOST   " if choice.consent else "which holds    "
    return [
        f"Disk {number} was     {disk_line(choice.recorded)}",
        f"in its place   {choice.present.path}  {disk_line(choice.present)}",
        f"reason         {choice.reason}",
        *textwrap.wrap(choice.content, TEXT_WIDTH - 4, initial_indent=what, subsequent_indent=" " * len(what)),
    ]


def disk_line(disk: Disk) -> str:
    return "  ".join(part for part in (human(disk.size), disk.model, disk.transport) if part)


# What is said above the gauge, by the beginning of what the work says about itself.
_ABOUT = {
    "Setup is formatting": "Please wait while Setup formats the partition\n\n",
    "Setup is copying": "Please wait while Setup copies files\nto the recovery folder.\n"
                        "This might take several minutes to complete.",
}
_OTHERWISE = "Please wait while Setup prepares your disks.\n\n"


class Preparing(Work):
    """Pages 8 and 9: partitions are made, the minimal OS is copied."""

    BINDINGS = key("f1", "help") + key("f3", "leave")      # the bar is for the file that is copied
    EXPLANATION = (
        "Setup makes and formats the partitions, then copies the files that restore your computer from its own "
        "disk after the next start.\n\n"
        "Should the power fail now, start from the recovery medium again: nothing is lost but time."
    )
    WARNING = _DISKS_CHANGED

    def content(self) -> Iterable[Widget]:
        yield Lines(7, centred=True)
        yield Gauge()

    def show_progress(self, progress: Progress) -> None:
        about = next((a for s, a in _ABOUT.items() if progress.status.startswith(s)), _OTHERWISE)
        self.query_one(Lines).show(*about.splitlines(), *progress.subject.splitlines())
        self.query_one(Gauge).show(progress.status, progress.done, progress.total)
        copying = progress.status.startswith("Setup is copying") and progress.item
        self.bar.show(right=f"Copying: {progress.item}" if copying else "")


class Reboot(Page[None]):
    """Page 10."""

    BINDINGS = key("enter", "answer(None)", "Restart Computer") + key("f1", "help") + key("f3", "answer(None)")
    EXPLANATION = (
        "Your computer now has its disks back and starts from its own disk. There, Setup restores its files by "
        "itself.\n\n"
        "Leave the disk that holds the backup connected. Do not press a key when the computer offers to boot from "
        "CD. If it starts from the recovery medium all the same, take the medium out."
    )

    def content(self) -> Iterable[Widget]:
        yield text(
            "This portion of Setup has completed successfully.\n\n"
            "If there is a floppy disk in the drive, remove it.\n\n"
            "To restart your computer, press ENTER.\n"
            "When your computer restarts, Setup will continue.",
            "centred",
        )
        yield Gauge(percentage=False, color="red")

    def on_mount(self) -> None:
        self.count_down(_REBOOT)

    def show_seconds(self) -> None:
        self.query_one(Gauge).show(
            f"Your computer will reboot in {seconds(self.seconds)}...", _REBOOT - self.seconds, _REBOOT)

    def time_is_up(self) -> None:
        self.answer(None)
