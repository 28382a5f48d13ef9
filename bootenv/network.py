"""Places for a backup on the network: an address as people type it, and how the folder there is mounted.

    nfs://SERVER[:PORT]/EXPORT/FOLDER
    smb://[[DOMAIN;]USER@]SERVER[:PORT]/SHARE/FOLDER          without USER: as a guest

The kernel and its mount helpers speak to the servers: nfs(5), mount.nfs(8), mount.cifs(8). A password is known to
people, or to the file that CREDENTIALS names. It is kept in the memory of this process and given to mount.cifs on its
standard input: no file, no command line and no log has it.
"""

import json
import os
import re
import socket
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from ipaddress import ip_address, ip_interface
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from .errors import CommandFailed, NetworkPlaceFailed, PasswordWanted, ToolMissing
from .run import ROOT, STATE, has_tool, log, run, unmounting

CREDENTIALS = "etc/asr/credentials"    # mount.cifs(8), "credentials": lines username=, password=
TYPES = ("nfs", "nfs4", "cifs", "smb3")                # of file systems that recovery mounts by itself
# By scheme: mount's type, its helper, the helper's package, the server's usual port.
_KINDS = {"nfs": ("nfs", "mount.nfs", "nfs-common (or nfs-utils)", 2049),
          "smb": ("cifs", "mount.cifs", "cifs-utils", 445)}
_TRIED = STATE / "tried"               # where a place is mounted to try a password

# What was set by hand: "192.0.2.9/24,192.0.2.1,192.0.2.53", as set_address() takes it. Init writes it for asr.address=
ADDRESS = STATE / "address"
_RESOLVER = Path("/etc/resolv.conf")

# The recovery environment has the volume that it was started from there, and init writes when all devices are known.
_MEDIUM = Path("/run/medium")
_FOUND = STATE / "hardware-found"

# Seconds. A switch that learns its neighbours first lets nothing through for half a minute.
_LOOK_EVERY = 2
_FOR_HARDWARE = 60
_FOR_A_LINK = 12
_FOR_AN_ADDRESS = 45
_FOR_AN_ANSWER = 10
_FOR_A_MOUNT = 60

# What was typed for servers and their users, as long as this process lives.
_passwords: dict[tuple[str, str], bytes] = {}


@dataclass(frozen=True)
class NetworkPlace:
    """A folder on a server."""

    scheme: str                # "nfs" or "smb"
    server: str                # its name or address
    path: str                  # from "/" on: the export, or the share, and what is below it
    user: str = ""             # "": none, a guest
    domain: str = ""
    port: int = 0              # 0: the usual one

    @property
    def url(self) -> str:
        who = ";".join(_escaped(word, "/:@;") for word in (self.domain, self.user) if word)
        host = self._host + (f":{self.port}" if self.port else "")
        return f"{self.scheme}://{f'{who}@' if self.user else ''}{host}{_escaped(self.path)}"

    @property
    def source(self) -> str:
        """What is mounted, in the words of mount: an export's folder, or the whole share."""
        if self.scheme == "nfs":
            return f"{self._host}:{self.path}"
        return f"//{self.server}/{self.path.split('/')[1]}"

    @property
    def folder(self) -> str:
        """The place in what is mounted, "" for its root."""
        return "/".join(self.path.split("/")[2:]) if self.scheme == "smb" else ""

    @property
    def parent(self) -> "NetworkPlace":
        return replace(self, path=str(PurePosixPath(self.path).parent))

    @property
    def name(self) -> str:
        """For a directory that it is mounted at."""
        return self.scheme + "-" + re.sub(r"[^\w.]+", "-", self.source, flags=re.ASCII).strip("-.")

    @property
    def _host(self) -> str:
        return f"[{self.server}]" if ":" in self.server else self.server


def _escaped(text: str, more: str = "") -> str:
    """Only what would end a part of an address: people read the rest."""
    return "".join(f"%{ord(c):02X}" if c in "%#?" + more else c for c in text)


def is_url(place: str) -> bool:
    """Whether a place that was named is an address of this sort."""
    return bool(re.match(r"(nfs|smb)://", place, re.IGNORECASE))


def is_address(url: str) -> bool:
    """Whether parse() takes it."""
    try:
        parse(url)
    except NetworkPlaceFailed:
        return False
    return True


def parse(url: str) -> NetworkPlace:
    """The place of an address. Raises NetworkPlaceFailed, which names the address unless there is a password in it."""
    if re.search(r"//[^@/[]*:(?!\d*/)[^@]*@", url):
        raise NetworkPlaceFailed("There is a password in the address, where others would see it.",
                                 hint="Leave it out: where one is needed, it is asked for.")
    if not url.isprintable():
        raise _no_address("This", "it has a character that cannot be printed")
    try:
        parts = urlsplit(url)
        port = parts.port or 0
    except ValueError:
        raise _no_address(url, "its server or port has a wrong form") from None
    domain, _, user = unquote(parts.username or "").rpartition(";")
    path = "/" + "/".join(part for part in unquote(parts.path).split("/") if part)
    if parts.scheme not in _KINDS:
        raise _no_address(url, "it begins neither with nfs:// nor with smb://")
    if parts.query or parts.fragment:
        raise _no_address(url, "a question mark is written %3F in it, and # is %23")
    # What becomes a word of mount's or one of its options must be nothing else there.
    if not re.fullmatch(r"[\w:][\w.:%-]*", parts.hostname or "", re.ASCII):
        raise _no_address(url, "it names no server")
    if not (path + user + domain).isprintable() or ".." in path.split("/") or "," in user + domain:
        raise _no_address(url, "its folder or user has a wrong form")
    if parts.scheme == "nfs" and parts.username is not None:
        raise _no_address(url, "NFS knows no users in addresses")
    if path == "/" and (parts.scheme == "smb" or not parts.path):
        raise _no_address(url, "it names no share" if parts.scheme == "smb" else "it names no export")
    return NetworkPlace(parts.scheme, parts.hostname or "", path, user, domain, port)


def _no_address(url: str, why: str) -> NetworkPlaceFailed:
    return NetworkPlaceFailed(
        f"{url} is no address of a network place: {why}.",
        hint="Such as  nfs://server/export/folder  or  smb://user@server/share/folder.")


def url_of(mount: Mapping[str, str], inner: str) -> str:
    """The address of a folder in a network file system that is mounted; "" for one that recovery can't mount.

    mount: findmnt's SOURCE, FSTYPE and OPTIONS; inner: the folder's path from where it is mounted, with a first slash.
    """
    options = dict(option.partition("=")[::2] for option in mount["options"].split(","))
    if mount["fstype"] not in TYPES or options.get("sec", "").startswith("krb5"):
        return ""                      # the computer's key to Kerberos is not there
    nfs = re.fullmatch(r"\[?([^/]+?)\]?:(/.*)", mount["source"])
    smb = re.fullmatch(r"//([^/]+)(/.*)", mount["source"])
    found = smb if mount["fstype"] in ("cifs", "smb3") else nfs
    if not found:
        return ""
    port = options.get("port", "")
    place = NetworkPlace("smb" if found is smb else "nfs", found[1], found[2].rstrip("/") + inner.rstrip("/") or "/",
                         options.get("username", "") if found is smb else "", options.get("domain", ""),
                         int(port) if port.isdecimal() and int(port) not in (2049, 445) else 0)
    return place.url if is_address(place.url) else ""


# Passwords

def remember(place: NetworkPlace, password: bytes) -> None:
    """What a person typed, as long as this process lives."""
    _passwords[place.server, place.user] = password


def wants_password(place: NetworkPlace) -> bool:
    """Whether a person must say it. Raises PasswordWanted for a file of passwords that others can read."""
    return bool(place.user) and _password_of(place) is None


def check_unattended(place: NetworkPlace) -> None:
    """Raises PasswordWanted where a job would have nobody to ask."""
    if place.user and _from_file(place.user) is None:
        raise PasswordWanted(f"A job cannot ask for the password of {place.user}, and /{CREDENTIALS} does not have it.",
                             hint=f"Write the lines  username={place.user}  and  password=...  to /{CREDENTIALS}, and "
                             f"run  chmod 600 /{CREDENTIALS}")


def opens(place: NetworkPlace, password: bytes) -> bool:
    """Whether a password is the one of the place's user; it is remembered then. Raises NetworkPlaceFailed."""
    remember(place, password)
    try:
        mount(place, _TRIED)
    except PasswordWanted:
        return False
    run(("umount", str(_TRIED)))
    return True


def _password_of(place: NetworkPlace) -> bytes | None:
    return _passwords.get((place.server, place.user)) or _from_file(place.user)


def _from_file(user: str) -> bytes | None:
    """The password of the computer's own file, if that is of this user."""
    path = ROOT / CREDENTIALS
    try:
        status = path.stat()
        said = path.read_text(encoding="utf-8")
    except OSError:
        return None
    except UnicodeDecodeError:
        raise PasswordWanted(f"/{CREDENTIALS} is not text in UTF-8, so it is not used.",
                             hint="Write it again, in that encoding.") from None
    if status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & 0o077:
        raise PasswordWanted(f"/{CREDENTIALS} can be read by others than root, so it is not used.",
                             hint=f"Run  chown root /{CREDENTIALS}; chmod 600 /{CREDENTIALS}")
    # As mount.cifs reads it: blanks before a line's name, and none around its "=".
    found = dict(line.lstrip().partition("=")[::2] for line in said.splitlines())
    return found["password"].encode() if found.get("username") == user and found.get("password") else None


# The network of the recovery environment

@dataclass(frozen=True)
class Card:
    """A network card."""

    name: str
    link: bool                 # a cable, and something at its other end
    addresses: tuple[str, ...] = ()    # that reach beyond its own cable


def parse_cards(text: str) -> tuple[Card, ...]:
    """The cards in what ip(8) says with --json."""
    found = []
    for row in json.loads(text):
        if row.get("link_type") == "ether":
            addresses = (a.get("local", "") for a in row.get("addr_info", ()))
            found.append(Card(row["ifname"], "LOWER_UP" in row["flags"],
                              tuple(a for a in addresses if a and not ip_address(a).is_link_local)))
    return tuple(found)


def bring_up() -> None:
    """Sees to it that the recovery environment has an address: the one that was set, or by DHCP.

    Raises NetworkPlaceFailed.

    On a computer's own system nothing is done: that looks after its network itself.
    """
    if not _MEDIUM.is_dir():
        return
    _wait_for(_FOUND.exists, _FOR_HARDWARE)    # the cards' drivers come last, after what people wait for
    if _has_address():
        return
    if said := address_set():
        return set_address(said)
    _need_card()
    if not run(("pidof", "dhcpcd"), check=False):
        log("The network is brought up by DHCP")
        # What it starts lives on, and would keep a pipe open.
        run(("sh", "-c", "exec dhcpcd --background >>/run/asr/network.log 2>&1"))
    card = _linked()
    _wait_for(_has_address, _FOR_AN_ADDRESS)
    cards = _cards()
    if not any(card.addresses for card in cards):
        raise NetworkPlaceFailed(
            f"No DHCP server has given this computer an address, on {card.name}.",
            hint="See to the DHCP server and press ENTER. Or press F9 and type an address.")
    log("Network: " + "; ".join(f"{card.name} {' '.join(card.addresses)}" for card in cards))


def address_set() -> str:
    """What set_address() was told, or asr.address= on the kernel's command line; "" for DHCP."""
    return ADDRESS.read_text().strip() if ADDRESS.exists() else ""


def set_address(said: str) -> None:
    """Gives the network card that has a link an address by hand, in the minimal OS, too. Raises NetworkPlaceFailed.

    said: its own with the network's length, the gateway's and a name server's, if there are such.
    """
    words = re.split(r"[\s,]+", said.strip())
    try:
        own, others = ip_interface(words[0]), [ip_address(word) for word in words[1:]]
    except ValueError:
        own, others = None, []
    if not own or "/" not in words[0] or len(others) > 2:
        raise NetworkPlaceFailed(f"{said!r} is no address with its network's length.",
                                 hint="Such as  192.0.2.9/24  or, with a gateway and a name server, "
                                      "192.0.2.9/24 192.0.2.1 192.0.2.53")
    gateway, server = [*others, None, None][:2]
    ADDRESS.write_text(",".join(words) + "\n")
    _need_card()
    run(("dhcpcd", "--exit"), check=False)     # it would take the routes away again
    for card in _cards():
        run(("ip", "link", "set", card.name, "up"))
    card = _linked()
    run(("ip", "address", "flush", "dev", card.name, "scope", "global"))
    run(("ip", "address", "add", str(own), "dev", card.name))
    if gateway:
        run(("ip", "route", "replace", "default", "via", str(gateway), "dev", card.name))
    if server:
        _RESOLVER.write_text(f"nameserver {server}\n")
    log(f"Network: {card.name} {own}, as it was set")


def _need_card() -> None:
    if not _cards():
        raise NetworkPlaceFailed("This computer has no network card that the recovery medium has a driver for.",
                                 hint="Connect another card, or load its driver: F6 on the medium's first pages.")


def _linked() -> Card:
    """The first card that has a link, once there is one. Raises NetworkPlaceFailed."""
    _wait_for(lambda: any(card.link for card in _cards()), _FOR_A_LINK)
    cards = _cards()
    if card := next((card for card in cards if card.link), None):
        return card
    raise NetworkPlaceFailed(f"No network card has a link: {', '.join(card.name for card in cards)}.",
                             hint="Connect the network cable and press ENTER.")


def _cards() -> tuple[Card, ...]:
    return parse_cards(run(("ip", "-json", "address")))


def _has_address() -> bool:
    """One of IPv4: of IPv6 a router may have given one, while that is still to come."""
    return any("." in address for card in _cards() for address in card.addresses)


def _wait_for(what: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not what() and time.monotonic() < until:
        time.sleep(_LOOK_EVERY)


# Mounting

def mount(place: NetworkPlace, point: Path, *, write: bool = False) -> Path:
    """Mounts the place, in the recovery environment after bringing the network up; returns its folder there.

    All of it ends within a minute or two, whatever the server does. Raises NetworkPlaceFailed, PasswordWanted,
    ToolMissing.
    """
    kind, helper, package, port = _KINDS[place.scheme]
    if not has_tool(helper):
        raise ToolMissing(f"The program {helper} is not on this system.",
                          hint=f"Install {package}, or run ASR from the recovery medium, which carries it.")
    bring_up()
    _reach(place, place.port or port)
    password = _password_of(place) if place.user else b""
    if password is None:
        raise PasswordWanted(f"{place.server} wants the password of {place.user}.", place=place, hint=_PASSWORD)
    point.mkdir(parents=True, exist_ok=True)
    said: list[str] = []
    for version in _VERSIONS[place.scheme]:
        try:
            run(("timeout", "--signal=KILL", str(_FOR_A_MOUNT),
                 "mount", "-t", kind, "-o", ",".join((*_options(place, write), *version)), place.source, str(point)),
                input=password, environment={"PASSWD_FD": "0"} if place.user else None)
            break
        except CommandFailed as error:
            said.append(error.message.removeprefix("timeout failed: "))
    else:
        # Where older versions are not served, the last words are that nobody answers: the first ones say more.
        raise _why(place, said[0] if re.search(_NO_ANSWER, said[-1]) else said[-1])
    if not (folder := point / place.folder).is_dir():
        run(("umount", str(point)))
        raise NetworkPlaceFailed(f"There is no folder {place.folder} in {place.source}.", hint=_MAKE_IT)
    return folder


@contextmanager
def file_at(place: NetworkPlace) -> Iterator[Path]:
    """A file of a server, mounted for reading as long as this takes. Raises as mount() does."""
    if place.scheme == "smb" and not place.folder:
        raise _no_address(place.url, "it names a share and no file in it")
    point = Path(tempfile.mkdtemp(prefix="asr-"))          # a backup may be on its way to the same server
    with unmounting(point, "rmdir"):
        yield mount(place.parent, point) / PurePosixPath(place.path).name


def _options(place: NetworkPlace, write: bool) -> list[str]:
    """nfs(5), mount.cifs(8). A server that is gone must end the work, not hang it.

    A soft mount of NFS gives up after minutes and may lose what was written: the engine sees that by fsync, and by
    reading all of it back. SMB is soft by itself.
    """
    options = ["rw" if write else "ro", "nosuid", "nodev"]
    if place.scheme == "nfs":
        options += ["soft", "timeo=300" if write else "timeo=150", "retrans=2", "retry=0",
                    "nolock"]          # which would want a daemon; nobody else writes these files
        return options + ([f"port={place.port}"] if place.port else [])
    options += [f"username={place.user}"] if place.user else ["guest"]
    options += [f"domain={place.domain}"] if place.domain else []
    return options + ([f"port={place.port}"] if place.port else [])


def _reach(place: NetworkPlace, port: int) -> None:
    """The server is there and listens: mount's own waits are long, and its words for that are few."""
    try:
        socket.create_connection((place.server, port), _FOR_AN_ANSWER).close()
    except socket.gaierror:
        raise NetworkPlaceFailed(f"There is no server {place.server}: its name has no address.",
                                 hint="Type its address in place of its name, or look at the name server.") from None
    except ConnectionRefusedError:
        raise NetworkPlaceFailed(
            f"{place.server} is there, but nothing answers at its port {port} ({place.scheme.upper()}).",
            hint="Start that service on the server, or look at the address.") from None
    except OSError as error:
        log(f"{place.server} port {port}: {error}")
        raise NetworkPlaceFailed(f"The server {place.server} does not answer.",
                                 hint="See whether it is switched on, and look at its cable and its address.") from None


# NFS 4.2 can say of a part of a file that it is a hole, and not every server does that right: one was seen to send
# nothing but zeros. What has no 4.1 is mounted by the version that mount.nfs finds.
_VERSIONS: dict[str, tuple[tuple[str, ...], ...]] = {"nfs": (("vers=4.1",), ()), "smb": ((),)}

_PASSWORD = f"Type it. Where nobody can be asked, it is read from /{CREDENTIALS}."
_MAKE_IT = "Make it on the server, or look at the address."

# What the helpers say, and what it means.
_NO_ANSWER = r"imed out|exit status (124|137)|mount error\((110|111|113)\)|No route|unreachable|refused"
_SAID = (
    (r"reason given by server|mount error\((2|6)\)|mount\.nfs: .*No such file or directory",
     "{server} has no {kind} {path}.", _MAKE_IT),
    (r"access denied by server", "{server} has no export {path}, or none that this computer may mount.",
     "Name this computer's address in the server's list of exports, or look at the address."),
    (r"Protocol not supported|requested NFS version", "{server} speaks no version of NFS that this computer speaks.",
     "NFS 3 or 4 by TCP is needed on the server."),
    (r"mount error\(126\)", "{server} lets nobody in without Kerberos, which recovery cannot use.",
     "Allow passwords (NTLMSSP) for this user on the server."),
    (r"mount error\((95|112)\)", "{server} speaks no version of SMB that this computer speaks.",
     "SMB 2.1 or later is needed on the server."),
    (r"unknown filesystem type|mount error\(19\)|not supported by (the|your) (system|kernel)",
     "The kernel of this computer has no driver for {kind}s.", "Use a kernel that has it, or another place."),
    (_NO_ANSWER,
     "{server} does not answer as a server of {kind}s does.", "See whether it is at work, and try again."),
)


def _why(place: NetworkPlace, said: str) -> NetworkPlaceFailed:
    """What a mount helper's words mean."""
    kind = "share" if place.scheme == "smb" else "export"
    if place.scheme == "smb" and re.search(r"mount error\((13|127|129)\)", said):
        if not place.user:
            return NetworkPlaceFailed(f"{place.server} does not let guests into {place.source}.",
                                      hint="Name a user in the address: smb://USER@SERVER/SHARE/FOLDER")
        _passwords.pop((place.server, place.user), None)
        return PasswordWanted(
            f"{place.server} does not let {place.user} into {place.source}: the password is wrong or has expired, or "
            "the user may not use this share.", place=place, hint=_PASSWORD)
    for pattern, means, hint in _SAID:
        if re.search(pattern, said):
            path = place.source.split("/")[3] if place.scheme == "smb" else place.path
            return NetworkPlaceFailed(means.format(server=place.server, kind=kind, path=path), hint=hint)
    return NetworkPlaceFailed(f"{place.url} cannot be mounted: {said}", hint="Look at the address and at the server.")
