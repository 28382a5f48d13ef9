"""Places on the network: the pages that ask for a server's password, a place's and this computer's address."""

import re
from asyncio import to_thread
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, TypeVar

from textual import work
from textual.widget import Widget
from textual.widgets import Input

from bootenv import network as story
from bootenv.errors import AsrError, PasswordWanted

from .screens import Browse, Page, Passphrase, Sheet, key, text
from .widgets import Field, Lines, wrapped

if TYPE_CHECKING:
    from bootenv.network import NetworkPlace

    from .app import SetupApp

T = TypeVar("T")

ADDRESSES = "nfs://server/export/folder  or  smb://user@server/share/folder"


class NetworkPassword(Passphrase):
    """Asks for the password of a place's user, which is tried at once. Answers None when it is not to be used."""

    HEADING = "A place on the network"
    BINDINGS = key("escape", "back", "Without")
    LABEL = "Place"
    PROMPT = "Password:"
    WRONG = "The server does not accept this: another password, or no leave for this share."
    TRYING = "Please wait while the server is asked..."
    EMPTY = "Type the password, then press ENTER."
    EXPLANATION = (
        "The server lets only users in who say their password. It is kept in this computer's memory until the program "
        "or the recovery ends, and nowhere else: not on the ASR disk, not in the log.\n\n"
        "ESC goes on without this place. If the backup, or a copy of it, is on a disk that is connected, that is "
        "found all the same.\n\n"
        "F4 chooses the layout of your keyboard in recovery. F7 shows what you type, so that you can make sure."
    )

    def __init__(self, place: "NetworkPlace", first: str = "", warning: str = ""):
        super().__init__(place.url, opens=partial(story.opens, place), warning=warning,
                         first=first or f"The server {place.server} wants the password of {place.user}.")

    def show_keys(self) -> None:
        self.bar.show("ENTER=Continue  ESC=Without  F7=Show  F1=Help  F3=Quit")

    def action_back(self) -> None:
        self.answer(None)


class BrowseBackup(Browse):
    """Asks for a backup by its path, or by an address."""

    EXPLANATION = (
        f"Type a path, or an address:  {ADDRESSES}.  What is below the folder is found, too. ENTER goes on, ESC goes "
        "back.\n\n"
        "In recovery the network gets its address from a DHCP server. Where there is none, F9 sets one, on this and on "
        "every other page. What else a network may need is typed in a shell: ALT+F2 goes there, ALT+F1 comes back."
    )

    def on_input_submitted(self, message: Input.Submitted) -> None:
        # Who types an address need not delete first what the field began with.
        message.value = re.sub(r"^.*(?=(nfs|smb)://)", "", message.value)
        super().on_input_submitted(message)


class Address(Sheet):
    """Sets this computer's address where no DHCP server does; it lies over whatever page there is."""

    HEADING = "This computer's address on the network"
    EXPLANATION = (
        "Type the address and its network's length, then, if there are such, the addresses of the gateway and of a "
        "name server, with blanks between them. ENTER sets it, ESC leaves the network as it is.\n\n"
        "The card that has a link gets it. After the restart from the hard disk it is set again; the recovered system "
        "keeps its own."
    )

    def content(self) -> Iterable[Widget]:
        field = Field(story.address_set().replace(",", " "), select_on_focus=False)
        field.cursor_blink = False
        yield text("An address is needed where a backup is on the network and no DHCP server gives one. Address and "
                   "length, gateway, name server, such as\n\n      192.0.2.9/24 192.0.2.1 192.0.2.53")
        yield field
        yield Lines(4)

    def show_keys(self) -> None:
        self.bar.show("ENTER=Set  ESC=Back")

    @work(exclusive=True)
    async def on_input_submitted(self, message: Input.Submitted) -> None:
        lines = self.query_one(Lines)
        lines.show("Please wait...")
        try:
            await to_thread(story.set_address, message.value)
        except AsrError as error:
            lines.show(*wrapped(error.message), *wrapped(error.hint))
        else:
            self.action_close()


async def told(app: "SetupApp", page: "Callable[[], Page[T]]", first: str = "", warning: str = "") -> T:
    """What a page answers. Where a server wants a password for that, a person is asked, and then the page again.

    Raises PasswordWanted if that is not said.
    """
    while True:
        try:
            return await app.ask(page())
        except PasswordWanted as error:
            if not error.place or await app.ask(NetworkPassword(error.place, first, warning)) is None:
                raise
