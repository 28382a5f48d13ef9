"""OS restore: the wizard that runs from the hard disk, and goes through by itself if nobody is there."""

import asyncio
from collections.abc import Callable, Generator, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from textual import events, work
from textual.widget import Widget

from bootenv.errors import AsrError, DamagedBackup
from bootenv.events import Event
from bootenv.layout import human

from .app import HARDWARE_READY, MediumApp
from .network import ADDRESSES, BrowseBackup, NetworkPassword, told
from .screens import (
    Page,
    Passphrase,
    ProgressPage,
    along,
    bullets,
    check_lines,
    clock,
    difference_lines,
    key,
    seconds,
    set_lines,
    text,
)
from .widgets import TEXT_WIDTH, Gauge, Lines, Listing, cut, shortened, wrapped

if TYPE_CHECKING:
    from bootenv.recover import Check
    from bootenv.restore import FoundBackup, Outcome
    from bootenv.sif import AsrSet

T = TypeVar("T")

# Seconds.
_WELCOME = 90
_NEXT = 10
_REBOOT = 15
_CHECK_EVERY = 10

_NOT_RECOVERED = "This computer has NOT been recovered yet."
_PARTLY = "Some files may have been restored already; a restore can be repeated."
_AGAIN = "When your computer starts again, the restore starts again too."


_UNLOCK = (
    "The files of this computer are restored to an encrypted volume. Type its passphrase: from then on, the wizard "
    "goes on by itself."
)


class RestoreApp(MediumApp):
    """Pages 11 to 15."""

    def __init__(self, story: Any, *, hardware_ready: Path = HARDWARE_READY, tick: float = 1.0):
        super().__init__(story, hardware_ready=hardware_ready, tick=tick)
        self.secrets: dict[str, bytes] = {}    # passphrases by the ids of their containers

    async def pages(self) -> None:
        while await self.hardware():
            pass                               # F2 has done its work
        set = await asyncio.to_thread(self.story.pending_set)
        work = self.story.under_way()
        outcome = await self.followed(work) if work else None
        if not outcome:
            await self.passphrases(set)
            await self.password(set)
            wish = await self.ask(WizardWelcome(set))
        while not (outcome := outcome or await self.restored(set, wish)):
            wish = "next"
        await self.ask(Result(set, outcome))

    async def passphrases(self, set: "AsrSet") -> None:
        """Of each encrypted volume, before anything that goes on by itself."""
        for lock in await asyncio.to_thread(self.story.locks, set):
            while lock.container.id not in self.secrets:
                try:
                    name = f"{lock.container.name}  {human(lock.container.size)}"
                    answer = await self.ask(Passphrase(
                        name, opens=partial(self.story.opens, set, lock, dict(self.secrets)), first=_UNLOCK,
                        warning=f"{_NOT_RECOVERED} {_AGAIN}"))
                    assert answer
                    self.secrets[lock.container.id] = answer
                except AsrError as error:
                    await self.ask(self.page_for(error))

    async def password(self, set: "AsrSet") -> None:
        """Of the server that has the backup, before anything that goes on by itself."""
        try:
            while place := await asyncio.to_thread(self.story.server_to_ask, set):
                if await self.ask(NetworkPassword(place, _SERVER, f"{_NOT_RECOVERED} {_AGAIN}")) is None:
                    return
        except AsrError as error:
            # Elsewhere: the wizard says that the backup was not found, and offers to name it.
            if await self.ask(self.page_for(error, "browse")) != "browse":
                await self.password(set)

    async def restored(self, set: "AsrSet", wish: str) -> "Outcome | None":
        """One attempt, from the choice of the backup on; `wish` is what WizardWelcome answers."""
        backup, alone = await self.source(set, wish)
        told = await self.provider_secrets(set, backup)
        if told is None or not await self.ask(Completing(set, backup, alone)):
            return None
        return await self.followed(self.story.restore(set, backup, {**self.secrets, **told}))

    async def provider_secrets(self, set: "AsrSet", backup: "FoundBackup") -> dict[str, bytes] | None:
        """What a provider must be told, asked for anew in each attempt. None: it failed, and that was seen."""
        secrets: dict[str, bytes] = {}
        try:
            asked = await asyncio.to_thread(self.story.questions, set, backup) if set.provider else {}
            for name, question in asked.items():
                opens = partial(self.answers, set, backup, dict(secrets), name)
                answer = await self.ask(BackupSecret(question, opens=opens, first=_SECRET.format(
                    provider=set.provider.name if set.provider else ""), warning=f"{_NOT_RECOVERED} {_AGAIN}"))
                assert answer
                secrets[name] = answer
        except Exception as error:
            await self.ask(self.page_for(error))
            return None
        return secrets

    def answers(self, set: "AsrSet", backup: "FoundBackup", secrets: dict[str, bytes], name: str, typed: bytes) -> bool:
        return name not in self.story.questions(set, backup, {**secrets, name: typed})

    async def followed(self, work: "Generator[Event, None, Outcome]") -> "Outcome | None":
        """The restore, begun by this console or by one that has crashed. None: it failed, and that was seen."""
        try:
            page = ProgressPage("Restore Progress", _PROGRESS, f"{_NOT_RECOVERED} {_AGAIN}")
            return await self.perform(page, work)
        except Exception as error:
            await self.ask(self.page_for(error, heading=_NOT_RECOVERED, changed=_PARTLY))
            return None

    async def source(self, set: "AsrSet", wish: str) -> "tuple[FoundBackup, bool]":
        """The backup to restore, and whether it was found and taken without a key."""
        look = search = partial(self.story.find_backup, set)
        while True:
            if wish == "browse":
                path = await self.ask(BrowseBackup(
                    "Browse for the backup", _BROWSE, set.backup.network or set.backup.place))
                look = partial(self.story.open_backup, path, set) if path else search
            try:
                found = await told(self, partial(Source, set, look, wish == "alone"), _SERVER,
                                   f"{_NOT_RECOVERED} {_AGAIN}")
                if found:
                    return found, wish == "alone"
                wish = "browse"
            except Exception as error:
                wish = await self.ask(self.page_for(error, "browse"))


_SECRET = "The backup was made by {provider}, which needs to be told something that the ASR disk does not say."
_PROGRESS = (
    "The files of the backup are being restored. Then the restored system makes its own initial RAM file system "
    "and boot loader, and your computer restarts.\n\n"
    "Should the power fail now, the restore starts again when the computer is started."
)
_BROWSE = (
    "Type the path of the backup file; disks that could be read are mounted below /run/asr/volumes. Or type the "
    f"address of its folder on the network:\n\n      {ADDRESSES}"
)
_SERVER = (
    "The backup of this computer is on a server, which wants a password. Type it: from then on, the wizard goes on by "
    "itself."
)


_ON_NETWORK = (
    "Please wait while the wizard brings the network up and looks for the backup at {place}. That may take some "
    "minutes."
)


class BackupSecret(Passphrase):
    """What opens a provider's backup."""

    HEADING = "The backup"
    LABEL = "Needed"
    PROMPT = "Type it:"
    WRONG = "This does not open the backup."
    EXPLANATION = (
        "This computer's backup was made by another product, which asks for this. It is kept in this computer's memory "
        "until the next start, and nowhere else.\n\n"
        "F4 chooses the layout of your keyboard. F7 shows what you type, so that you can make sure."
    )


class WizardPage(Page[T]):
    """Goes on by itself after some seconds; any key but the one that goes on at once stops that."""

    GOES_ON = ("n", "N", "enter")

    def on_key(self, event: events.Key) -> None:
        if self.counting and event.key not in self.GOES_ON:
            self.stop_counting()
            self.say_what_next()

    def say_what_next(self) -> None:
        """The lines below the page's text: why it waits and for what."""
        raise NotImplementedError

    def show_seconds(self) -> None:
        self.say_what_next()


class WizardWelcome(WizardPage[str]):
    """Page 11: checks, and waits longest here. Answers "alone" if it went on by itself, else "next" or "browse"."""

    HEADING = "Welcome to the Automated System Recovery Wizard"
    BINDINGS = (
        key("n", "answer('next')", "Next")
        + key("enter", "answer('next')")
        + key("b", "answer('browse')", "Browse")
        + key("r", "check", "Check Again")
    )
    EXPLANATION = (
        "The partitions of this computer are back. This wizard restores its files from the backup and makes its "
        "disk start the restored system.\n\n"
        "If all checks are OK, it does that by itself after 90 seconds: you need not stay. N goes on at once, to "
        "pages on which you can choose another backup; any other key stops the count-down.\n\n"
        "If the backup was not found, connect the disk that holds it: the wizard looks again every 10 seconds."
    )
    WARNING = f"{_NOT_RECOVERED} {_AGAIN}"

    def __init__(self, set: "AsrSet"):
        super().__init__()
        self.set = set
        self.lines: list[str] = []
        self.failed: AsrError | None = None
        self.checking = True
        self.checked = False       # at least once

    def content(self) -> Iterable[Widget]:
        yield text(f"This wizard restores the files of {self.set.host} from its backup, and makes its disk start "
                   "the restored system.")
        yield Lines(4, id="checks")
        yield Lines(10, id="next")

    def on_mount(self) -> None:
        self.check()

    def action_check(self) -> None:
        if not self.checking:
            self.check()

    @work(exclusive=True)
    async def check(self) -> None:
        """Looks again and again until all is well."""
        while True:
            self.lines, self.checking = [], True
            if self.set.backup.network:
                self.query_one("#next", Lines).show(*wrapped(_ON_NETWORK.format(place=self.set.backup.network)))
            try:
                checks = await self.setup.each(self.setup.story.checks(self.set), self.show_check)
            except Exception as error:
                return self.fail(error)
            self.failed = next((check.error for check in checks if check.error), None)
            self.checking, self.checked = False, True
            self.show_keys()
            self.say_what_next()
            if not self.failed:
                return self.count_down(_WELCOME)
            await asyncio.sleep(_CHECK_EVERY * self.setup.tick)

    def show_check(self, check: "Check") -> None:
        self.lines += check_lines(check)
        self.query_one("#checks", Lines).show(*self.lines)

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        if action == "check" or parameters == ("browse",):
            return self.failed is not None
        if action == "answer":
            return self.checked
        return super().check_action(action, parameters)

    def say_what_next(self) -> None:
        lines = self.query_one("#next", Lines)
        if self.failed:
            left = isinstance(self.failed, DamagedBackup) * ["   •  To restore what is left of it, press N.", ""]
            lines.show(*wrapped(self.failed.message), "", *wrapped(self.failed.hint), "", *left,
                       f"The wizard looks again every {_CHECK_EVERY} seconds and goes on once all is well.")
        elif self.counting:
            lines.show(f"After {_WELCOME} seconds the wizard goes on by itself. Seconds left: {self.seconds}", "",
                       "   •  To continue now, press N.", "",
                       "   •  To stop the count-down, press any other key.")
        else:
            lines.show("The wizard waits for you.", "", "   •  To continue, press N.")

    def time_is_up(self) -> None:
        self.answer("alone")


class Source(WizardPage["FoundBackup | None"]):
    """Page 12: looks for the backup. Answers it, or None to browse for another."""

    HEADING = "Data Recovery Source"
    BINDINGS = key("n", "take", "Next") + key("enter", "take") + key("b", "answer(None)", "Browse")
    EXPLANATION = (
        "This is the backup whose files will be restored. It was looked for at the place that was recorded when "
        "it was made, then on every disk that can be read, by the id of its ASR set: it does not matter if it was "
        "moved or its disk has another name now.\n\n"
        "To restore from another file of the same set, press B and type its path."
    )
    WARNING = f"{_NOT_RECOVERED} {_AGAIN}"

    def __init__(self, set: "AsrSet", look: "Callable[[], FoundBackup]", alone: bool):
        super().__init__()
        self.set = set
        self.look = look
        self.alone = alone
        self.found: FoundBackup | None = None

    def content(self) -> Iterable[Widget]:
        yield text("The wizard restores the files from this backup:")
        yield Lines(7, id="backup")
        yield Lines(6, id="next")

    def on_mount(self) -> None:
        self.show_backup("searching...")
        self.search()

    @work
    async def search(self) -> None:
        try:
            self.found = await asyncio.to_thread(self.look)
        except Exception as error:
            return self.fail(error)
        self.show_backup(self.found.place)
        self.show_keys()
        self.say_what_next()
        if self.alone:
            self.count_down(_NEXT)

    def show_backup(self, place: str) -> None:
        self.query_one("#backup", Lines).show(
            *set_lines(self.set), f"      Found at     {shortened(place, TEXT_WIDTH - 19)}")

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return self.found is not None if action == "take" else super().check_action(action, parameters)

    def action_take(self) -> None:
        self.answer(self.found)

    def say_what_next(self) -> None:
        waiting = (f"The backup was found, so the wizard goes on by itself in {seconds(self.seconds)}."
                   if self.counting else "The backup was found.")
        self.query_one("#next", Lines).show(
            waiting, "", "   •  To restore from this backup, press N.", "", "   •  To choose another one, press B.")

    def time_is_up(self) -> None:
        self.answer(self.found)


class Completing(WizardPage[bool]):
    """Page 13. Answers whether to start; False goes back."""

    HEADING = "Completing the Automated System Recovery Wizard"
    GOES_ON = ("f", "F", "enter")
    BINDINGS = (
        key("f", "answer(True)", "Finish")
        + key("enter", "answer(True)")
        + key("escape", "answer(False)", "Back")
    )
    EXPLANATION = (
        "Finish starts the restore. It cannot be taken back: what is on the recovered partitions now is replaced "
        "by what is in the backup. Other disks are not touched."
    )
    WARNING = f"{_NOT_RECOVERED} {_AGAIN}"

    def __init__(self, set: "AsrSet", backup: "FoundBackup", alone: bool):
        super().__init__()
        self.set = set
        self.backup = backup
        self.alone = alone

    def content(self) -> Iterable[Widget]:
        points = ", ".join(mount.point for mount in self.set.layout.mounts_by_depth())
        yield text("You have completed the wizard. This will be restored:")
        yield text(
            f"      Computer     {self.set.host}\n"
            f"      System       {self.set.system}\n"
            f"      Mounted at   {cut(points, TEXT_WIDTH - 19)}\n"
            f"      Files        {self.set.backup.files:,}\n"
            f"      Bytes        {self.set.backup.bytes:,}\n"
            f"      From         {shortened(self.backup.place, TEXT_WIDTH - 19)}"
            + along(self.set)
        )
        yield text("Then the restored system's boot loader is installed, and your computer restarts.")
        yield Lines(6)

    def on_mount(self) -> None:
        self.say_what_next()
        if self.alone:
            self.count_down(_NEXT)

    def say_what_next(self) -> None:
        waiting = ([f"The restore starts by itself in {seconds(self.seconds)}.", ""] if self.counting else [])
        self.query_one(Lines).show(
            *waiting, "   •  To start the restore, press F.", "", "   •  To go back, press ESC.")

    def time_is_up(self) -> None:
        self.answer(True)


class Result(Page[None]):
    """Page 15: how it ended, and never better than that."""

    BINDINGS = key("enter", "answer(None)", "Restart Computer") + key("f3", "answer(None)")
    EXPLANATION = (
        "Your computer restarts from its own disk, with the restored system. Take the recovery medium and the ASR "
        "disk out, and keep the disk and the backup: they can be used again.\n\n"
        "The report is in the recovered system. It lists every file that did not come back as it was."
    )

    def __init__(self, set: "AsrSet", outcome: "Outcome"):
        super().__init__()
        self.outcome = outcome
        self.good = outcome.result in ("recovered", "differences")
        count = len(outcome.differences)
        self.HEADING = {
            "recovered": f"{set.host} has been recovered.",
            "differences": f"{set.host} has been recovered with {count} difference{'s' * (count != 1)}.",
        }.get(outcome.result, f"{set.host} has NOT been recovered.")

    def content(self) -> Iterable[Widget]:
        yield text(
            f"      Files        {self.outcome.files:,}\n"
            f"      Bytes        {self.outcome.bytes:,}\n"
            f"      Time         {clock(self.outcome.seconds)}\n"
            f"      Report       {self.outcome.report}"
        )
        if self.outcome.differences:
            lines = [line for d in self.outcome.differences for line in difference_lines(d)]
            yield Listing(lines, height=8)
        if self.good:
            yield text("If there is a floppy disk in the drive, remove it.")
            yield Gauge(percentage=False, color="red") if not self.outcome.differences else Lines(1)
        else:
            yield bullets("To restart your computer, press ENTER.", "To look into the log first, press D.")

    def on_mount(self) -> None:
        if self.good:
            self.count_down(_REBOOT)

    def on_key(self, event: events.Key) -> None:
        if self.counting and event.key != "enter":
            self.stop_counting()
            self.say("To restart your computer, press ENTER.")

    def show_seconds(self) -> None:
        self.say(f"Your computer will reboot in {seconds(self.seconds)}...")

    def say(self, line: str) -> None:
        if self.outcome.differences:
            self.query_one(Lines).show(line)
        else:
            self.query_one(Gauge).show(line, _REBOOT - self.seconds, _REBOOT)

    def time_is_up(self) -> None:
        self.answer(None)

