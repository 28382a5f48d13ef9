"""P on the Welcome page: an ASR set of a computer whose own system does not run."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from textual.widget import Widget

from bootenv import offline as story
from bootenv.errors import NoSystem
from bootenv.layout import human
from bootenv.run import OFFLINE

from .screens import Leaving, Looking, Notice, Page, Passphrase, bullets, difference_lines, key, text
from .widgets import TEXT_WIDTH, Lines, Listing, Marks, cut, shortened

if TYPE_CHECKING:
    from bootenv.events import Difference

    from .app import SetupApp

_HERE = Path(__file__).parents[1]
_NOTHING_YET = "Nothing was changed yet."
_MOUNTED = "The system's file systems are mounted now. They are unmounted before you see the Welcome page."

# As bootenv/image/inspecting: blue until the wizard's first page is drawn.
_BLUE = ("\033[37;44m\033[8]\033[2J\033[H\033[2;2HAutomated System Recovery Preparation Wizard\033[3;1H" + "═" * 46
         + "\033[25;1H\033[30;47m\033[K  The wizard is starting...\033[37;44m\033[H")


async def prepare_offline(app: "SetupApp") -> None:
    """From the Welcome page and back to it. Whatever happens, nothing stays mounted or open."""
    with ExitStack() as stack:
        try:
            keeper = await asyncio.to_thread(stack.enter_context, story.opened())
            while await again(app):
                pass
        except Exception as error:
            await app.ask(app.page_for(error, "cancel"))
            return
        await app.show(Leaving("Please wait while Setup unmounts this computer's file systems..."))
        await asyncio.to_thread(stack.close)
    if keeper.returncode:
        await app.ask(Notice("Not all could be unmounted and closed.", "The log says what (D). Restart your "
                             "computer with F3 before you use its disks otherwise."))


async def again(app: "SetupApp") -> bool:
    """One attempt. True: the technician wants another one."""
    try:
        if system := await chosen(app):
            await prepared(app, system)
    except Exception as error:
        return await app.ask(app.page_for(error, "cancel")) == "retry"
    return False


async def chosen(app: "SetupApp") -> "story.System | None":
    """The system to prepare, once all is open that somebody has a passphrase for; None to go back."""
    closed: set[str] = set()           # that are to stay so
    while True:
        # First: a key file of a system that can be read opens others.
        systems: tuple[story.System, ...] = ()
        failure = None
        try:
            systems = await app.ask(Looking("Setup is looking for installed systems...", story.find_systems,
                                            _NOTHING_YET))
        except NoSystem as error:
            failure = error
        locked = [block for block in await asyncio.to_thread(story.locked) if block.path not in closed]
        if not locked:
            if failure:
                raise failure
            return await app.ask(Systems(systems))
        name = "  ".join(filter(None, (locked[0].path, locked[0].label, human(locked[0].size))))
        if not await app.ask(Unlock(name, opens=partial(story.opens, locked[0]), first=_UNLOCK, warning=_NOTHING_YET)):
            closed.add(locked[0].path)


async def prepared(app: "SetupApp", system: "story.System") -> None:
    """Mounts a system and has the wizard prepare it."""
    left = await app.ask(Mounting("Setup is mounting the system's file systems...", partial(story.mount, system),
                                  _MOUNTED))
    if left:
        await app.ask(LeftOut(left))
    await app.show(Leaving("The wizard is starting..."))
    status = wizard(app)
    if status not in (0, 1):           # 1: somebody has left it before its end
        await app.ask(Notice(
            "The wizard ended unexpectedly.", f"Its status was {status}. If its last page did not say that the ASR set "
            "is complete, there is none: what it was writing may be left, and is no backup.",
            "The log has the details: D."))


def wizard(app: "SetupApp") -> int:
    """The wizard on this console, and its exit status. A process of its own, since all that it does is in another root.

    It ends when this process does: what it has mounted is then unmounted.
    """
    with app.suspend():
        print(_BLUE, end="", flush=True)
        return subprocess.run(
            ("setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "console", "prepare"), cwd=_HERE,
            env=os.environ | {"ASR_ROOT": str(OFFLINE), "ASR_CWD": "/"}, check=False).returncode


_UNLOCK = (
    "An installed system may lie on this encrypted volume. Type its passphrase to have it looked into; the volume is "
    "closed again at the end. To leave it closed, press ESC."
)


class Unlock(Passphrase):
    """Answers None to leave the volume closed."""

    BINDINGS = key("escape", "leave_closed", "Leave Closed")
    EXPLANATION = (
        "Setup opens the volume as the computer's own system does, and looks for that system on it. The passphrase is "
        "not kept.\n\n"
        "ESC leaves the volume closed: a system on it is then not found, and of a system on other volumes that needs "
        "it no ASR set can be made.\n\n"
        "F4 chooses the layout of your keyboard. F7 shows what you type, so that you can make sure."
    )

    def show_keys(self) -> None:
        self.bar.show("ENTER=Continue  ESC=Leave Closed  F4=Keyboard  F7=Show  F1=Help  F3=Quit")

    def action_leave_closed(self) -> None:
        self.answer(None)


class Systems(Page["story.System | None"]):
    """What was found. Answers the system to prepare, None to go back."""

    BINDINGS = key("enter", "choose", "Prepare") + key("escape", "answer(None)", "Back")
    EXPLANATION = (
        "A system is known by its /etc/fstab and os-release. Setup has looked at all volumes without changing them.\n\n"
        "ENTER mounts the system and all that its /etc/fstab mounts, so that they can be written to: journals that a "
        "crash left unfinished are finished, and a copy of the ASR set's state is kept in /var/lib/asr, as on a "
        "computer that runs. Then the preparation wizard starts.\n\n"
        "The set is the same as if the system had prepared itself. Its own programs do not run meanwhile."
    )
    WARNING = _NOTHING_YET

    def __init__(self, found: "Sequence[story.System]"):
        super().__init__()
        self.HEADING = "Prepare an ASR set of this system?" if len(found) == 1 else \
            "Prepare an ASR set of which system?"
        self.found = found

    def content(self) -> Iterable[Widget]:
        yield Marks([f"{shortened(system.host, 24):<24}  {shortened(system.name, 42)}" for system in self.found],
                    height=min(len(self.found) + 2, 5))
        yield Lines(4)
        yield text("Its file systems will be mounted, which finishes what a crash left in their journals, and a copy "
                   "of the set's state is kept on them.")
        yield bullets("To prepare the system that is shown in reverse, press ENTER.",
                      "To go back without changing anything, press ESC.")

    def on_mount(self) -> None:
        self.show_keys()
        self.on_marks_moved()

    def on_marks_moved(self) -> None:
        system = self.chosen
        on = f"{system.block.path}  [{system.block.content}]  {human(system.block.size)}"
        self.query_one(Lines).show(
            f"      Computer     {shortened(system.host, TEXT_WIDTH - 19)}",
            f"      System       {shortened(system.name, TEXT_WIDTH - 19)}",
            f"      Lies on      {on}" + (f"  {system.subvolume}" if system.subvolume else ""),
            f"      Mounts       {cut(', '.join(system.points), TEXT_WIDTH - 19)}")

    @property
    def chosen(self) -> "story.System":
        return self.found[self.query_one(Marks).chosen]

    def action_choose(self) -> None:
        self.answer(self.chosen)


class Mounting(Looking):
    """From here on the system's file systems may be written to."""

    EXPLANATION = (
        "The file systems that the system's own /etc/fstab names are mounted as it mounts them itself. That finishes "
        "what a crash left unfinished in their journals; nothing else is changed."
    )


class LeftOut(Notice):
    """What the system itself would start without."""

    def __init__(self, left: "Sequence[Difference]"):
        super().__init__("These are not there, and will not be in the set:")
        self.lines = [line for difference in left for line in difference_lines(difference)]

    def content(self) -> Iterable[Widget]:
        yield Listing(self.lines, height=min(len(self.lines) + 2, 12), classes="lacking")
        yield text("The system's own /etc/fstab says that it starts without them (nofail).")
        yield from super().content()
