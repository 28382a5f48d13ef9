"""A machine to rehearse recovery on: QEMU, driven as a technician drives the real one.

The screen is read from the guest's video memory, keys go in as key events, disks and floppies are image files:

    with boot(Machine(disks=(Drive(disk),), cdrom=iso)) as guest:
        guest.wait_for_text("Press F2", seconds=300)
        guest.press("f2")
        guest.insert_floppy(floppy)
        guest.wait_for_reboot(seconds=900)

Everything is software emulation on one processor: times are those of a slow machine, and every wait has a limit.
"""

import asyncio
import json
import os
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from qemu.qmp import EventListener, Message, QMPClient, QMPError
from qemu.qmp.qmp_client import ExecuteError

from bootenv.errors import AsrError, MachineGone, NotSeen, RehearsalFailed, ToolMissing

MiB = 2**20
ROWS, COLUMNS = 25, 80
TEXT_MEMORY = 0xB8000             # VGA text mode: a character and an attribute for each cell
POLL = 0.2                        # seconds between two looks at the screen
KEY_DOWN = 0.05                   # seconds a key is held; then as long again it is not
OVMF = Path("/usr/share/OVMF")    # where Debian and Ubuntu keep the UEFI firmware
FLOPPY_DRIVE = "fdc0"
LIMIT = "disks"                   # of all of them together

Bootable = Literal["cdrom", "disk", "stick", "network"]
Pattern = str | re.Pattern[str]   # str: as it stands; compiled: a regular expression


@dataclass(frozen=True)
class Drive:
    """A disk of the virtual machine. Its image belongs to one running machine at a time: QEMU locks it."""

    image: Path
    format: Literal["raw", "qcow2"] = "raw"
    bus: Literal["virtio", "ide", "scsi", "nvme"] = "virtio"
    serial: str = ""


@dataclass(frozen=True)
class Machine:
    """What is switched on. A floppy drive is always there, as are USB ports, a serial port and a PS/2 keyboard."""

    disks: tuple[Drive, ...] = ()
    cdrom: Path | None = None
    floppy: Path | None = None                   # in the drive from the start
    sticks: tuple[Path, ...] = ()                # raw images of USB sticks, plugged in from the start
    memory: int = 1024 * MiB
    firmware: Literal["bios", "uefi", "secure"] = "bios"
    variables: Path | None = None                # UEFI variables that outlive the machine; made when missing
    boot: tuple[Bootable, ...] = ("cdrom", "disk")
    kernel: Path | None = None                   # started by the firmware itself, whatever is on the disks
    initrd: Path | None = None                   # for that kernel
    arguments: str = ""                          # its command line
    network: bool = False                        # a card, by which this computer is at 10.0.2.2
    tftp: tuple[Path, str] | None = None         # what a start from the network gets: the server's folder, the file
    ssh: int = 0                                 # the port of this computer that is the guest's port 22
    monitor: tuple[int, int] | None = None       # width and height that it asks for; UEFI's default is 1280x800


@dataclass(frozen=True)
class Screen:
    """The text screen: 25 lines of 80 characters, and the colours of each cell (0-15, as VGA numbers them)."""

    text: str
    attributes: bytes

    def foreground(self, row: int, column: int) -> int:
        return self.attributes[row * COLUMNS + column] & 15

    def background(self, row: int, column: int) -> int:
        return self.attributes[row * COLUMNS + column] >> 4 & 7


# Code page 437's glyphs in the places where Python's codec has control characters.
GLYPHS = {**dict(enumerate(" ☺☻♥♦♣♠•◘○◙♂♀♪♫☼►◄↕‼¶§▬↨↑↓→←∟↔▲▼")), 0x7F: "⌂"}


def parse_screen(memory: bytes) -> Screen:
    """The screen in 4000 bytes of VGA text memory."""
    cells = memory[:ROWS * COLUMNS * 2]
    text = cells[::2].decode("cp437").translate(GLYPHS)
    return Screen("\n".join(text[at:at + COLUMNS] for at in range(0, len(text), COLUMNS)), cells[1::2])


# QEMU's names (qcodes) of the keys of a US keyboard, for the characters printed on them.
KEYS = {" ": "spc", "\n": "ret", "\t": "tab", "-": "minus", "=": "equal", "[": "bracket_left", "]": "bracket_right",
        ";": "semicolon", "'": "apostrophe", "`": "grave_accent", "\\": "backslash", ",": "comma", ".": "dot",
        "/": "slash"}
SHIFTED = dict(zip('~!@#$%^&*()_+{}|:"<>?', "`1234567890-=[]\\;',./", strict=True))


def key_codes(key: str) -> list[str]:
    """The keys held together for "f2", "ret", "ctrl-alt-delete", or for one printable character of a US keyboard."""
    if len(key) > 1:
        return [code for part in key.split("-") for code in (key_codes(part) if len(part) == 1 else [part])]
    if key in SHIFTED:
        return ["shift", *key_codes(SHIFTED[key])]
    if key.isascii() and key.isupper():
        return ["shift", key.lower()]
    if key in KEYS or (key.isascii() and key.isalnum()):
        return [KEYS.get(key, key)]
    raise ValueError(f"no key of a US keyboard types {key!r}")


def make_disk(path: Path, size: int) -> Path:
    """A blank disk of `size` bytes, sparse. Raises FileExistsError."""
    with path.open("xb") as image:
        image.truncate(size)
    return path


@contextmanager
def boot(machine: Machine, folder: Path | None = None) -> Iterator["Guest"]:
    """Switch a machine on; off at the end of the block, whatever happens in it.

    serial.log and qemu.log are written into `folder` (default: one that goes again). When the block fails, the
    last screen joins them as screen.txt and screen.png, the folder stays, and its name is a note on the exception.
    Raises MachineGone, ToolMissing.
    """
    kept = folder or Path(tempfile.mkdtemp(prefix="asr-rehearsal-"))
    kept.mkdir(parents=True, exist_ok=True)
    guest = Guest(machine, kept)
    try:
        guest.start()
        yield guest
    except BaseException as error:
        guest.leave_evidence()
        error.add_note(f"The machine's last screen and its logs are in {kept}")
        raise
    else:
        guest.power_cut()
        if folder is None:
            shutil.rmtree(kept)
    finally:
        guest.close()


class Guest:
    """A running machine. Use `boot`."""

    def __init__(self, machine: Machine, folder: Path):
        self.machine = machine
        self.folder = folder
        self.serial = SerialConsole(folder)
        self._sticks: dict[Path, str] = {}
        self._looking = threading.Lock()
        self._resets = EventListener("RESET", lambda event: "'reason': 'guest" in str(event["data"]))
        self._reset_at = 0.0                             # when the last one was, seconds since 1970
        self._unplugged = EventListener("DEVICE_DELETED", lambda event: "'device'" in str(event["data"]))
        self._qmp = QMPClient("rehearsal")
        self._qmp.register_listener(self._resets)
        self._qmp.register_listener(self._unplugged)
        self._process: subprocess.Popen[bytes] | None = None
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, name="qmp", daemon=True).start()

    def start(self) -> None:
        # A socket's path has room for 108 characters: it cannot lie in any folder.
        with tempfile.TemporaryDirectory(prefix="asr-") as short:
            self._wait(self._start(Path(short) / "qmp"), seconds=60)
        for image in self.machine.sticks:
            self._sticks[image] = f"stick{len(self._sticks)}"
        if self.machine.floppy:
            self.insert_floppy(self.machine.floppy)
        self.command("cont")

    async def _start(self, socket: Path) -> None:
        await self._qmp.start_server(str(socket))
        argv = command_line(self.machine, socket, self.folder)
        with (self.folder / "qemu.log").open("wb") as errors, self.serial.log.open("wb") as output:
            # In this thread, not in the caller's: the machine dies with the thread that started it (--pdeathsig).
            self._process = subprocess.Popen(argv, stdin=self.serial.plug, stdout=output, stderr=errors)
        connection = asyncio.ensure_future(self._qmp.accept())
        while not connection.done():
            await asyncio.wait((connection,), timeout=0.1)
            if self._process.poll() is not None:
                connection.cancel()
        # Refusing an image, QEMU either never connects or goes away while it greets.
        if connection.cancelled() or connection.exception():
            raise MachineGone(self._last_words())

    def _last_words(self) -> str:
        assert self._process
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        return "The virtual machine has ended. " + (self.folder / "qemu.log").read_text(errors="replace").strip()

    def _wait(self, work: Coroutine[Any, Any, Any], seconds: float) -> Any:
        future = asyncio.run_coroutine_threadsafe(asyncio.wait_for(work, seconds), self._loop)
        try:
            return future.result()
        finally:
            future.cancel()                              # of use when a key interrupts the wait

    def command(self, name: str, /, **arguments: object) -> Any:
        """One QMP command, and what it returns. Raises MachineGone, RehearsalFailed."""
        try:
            return self._wait(self._qmp.execute(name, {k.replace("_", "-"): v for k, v in arguments.items()}), 60)
        except ExecuteError as error:
            raise RehearsalFailed(f"{name}: {error}") from error
        except QMPError as error:
            raise MachineGone(self._last_words()) from error

    # The console

    def press(self, *keys: str) -> None:
        """Key after key: "f2", "ret", "ctrl-alt-delete", "a", "A"; names as QEMU's qcodes have them."""
        for key in keys:
            held = [{"type": "qcode", "data": code} for code in key_codes(key)]
            self.command("send-key", keys=held, hold_time=int(KEY_DOWN * 1000))
            time.sleep(2 * KEY_DOWN)

    def type(self, text: str) -> None:
        """Text on a US keyboard; a newline is the Enter key."""
        self.press(*text)

    def look(self) -> Screen:
        """The text screen with its colours. Of no use while the guest shows graphics: see `screenshot`.

        UEFI firmware has no text screen: there it is what a terminal on the serial port shows.
        """
        memory = self.folder / "screen.memory"
        with self._looking:                        # a story and a monitor may look at the same time
            if self.machine.firmware != "bios":
                return self.serial.look()
            self.command("pmemsave", val=TEXT_MEMORY, size=ROWS * COLUMNS * 2, filename=str(memory))
            return parse_screen(memory.read_bytes())

    def screen(self) -> str:
        """25 lines of 80 characters."""
        return self.look().text

    def screenshot(self, path: Path) -> Path:
        """The picture on the monitor, as PNG."""
        self.command("screendump", filename=str(path), format="png")
        return path

    def wait_for_text(self, pattern: Pattern, seconds: float) -> str:
        """Look at the screen until the pattern is on it; returns that screen. Raises NotSeen with the last one."""
        deadline = time.monotonic() + seconds
        while not _found(pattern, screen := self.screen()):
            if time.monotonic() > deadline:
                raise NotSeen(f"{_shown(pattern)} was not on the screen within {seconds:.0f} s. The last screen:\n"
                              + screen)
            time.sleep(POLL)
        return screen

    # Media

    def insert_floppy(self, image: Path, *, read_only: bool = False) -> None:
        """Put a 1.44 MB image into the drive, in place of what is there; read_only: its write protection is open."""
        self.command("blockdev-change-medium", id=FLOPPY_DRIVE, filename=str(image), format="raw",
                     read_only_mode="read-only" if read_only else "read-write")

    def eject(self) -> None:
        """Take the floppy out of its drive."""
        self.command("eject", id=FLOPPY_DRIVE, force=True)

    def attach_stick(self, image: Path) -> None:
        """Plug in a USB stick."""
        name = self._sticks[image] = f"stick{len(self._sticks)}"
        self.command("blockdev-add", **_stick_node(name, image))
        self.command("device_add", **_stick(name))

    def detach_stick(self, image: Path, seconds: float = 60) -> None:
        """Pull a USB stick out. Raises NotSeen."""
        name = self._sticks.pop(image)
        self.command("device_del", id=name)
        self._expect(self._unplugged, f"the USB stick {image} unplugged", seconds)
        self.command("blockdev-del", node_name=f"{name}-image")

    def limit_disks(self, writes: int) -> None:
        """The disks together take no more than so many writes a second; 0: as many as this computer can."""
        self.command("qom-set", path=f"/objects/{LIMIT}", property="limits", value={"iops-write": writes})

    # Power

    def wait_for_reboot(self, seconds: float) -> None:
        """Until the guest has reset the machine once more than was waited for so far. Raises NotSeen."""
        deadline = time.monotonic() + seconds
        while True:
            event: Any = self._expect(self._resets, "a reboot", deadline - time.monotonic())
            at = event["timestamp"]["seconds"] + event["timestamp"]["microseconds"] / 1e6
            # Linux pulls the reset line until it is heard: up to four events within some milliseconds.
            again, self._reset_at = at - self._reset_at < 1, at
            if not again:
                return

    def _expect(self, events: EventListener, what: str, seconds: float) -> Message:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            with suppress(TimeoutError):
                return cast(Message, self._wait(events.get(), 1))
            self.command("query-status")           # a machine that is gone will never send it
        raise NotSeen(f"No sign of {what} within {seconds:.0f} s. The last screen:\n{self.screen()}")

    def wait_for_shutdown(self, seconds: float) -> None:
        """Until the guest has switched the machine off. Raises NotSeen, MachineGone if QEMU failed instead."""
        assert self._process
        try:
            if self._process.wait(seconds):
                raise MachineGone(self._last_words())
        except subprocess.TimeoutExpired:
            raise NotSeen(f"Still on after {seconds:.0f} s. The last screen:\n{self.screen()}") from None

    def power_cut(self) -> None:
        """Off, now: the guest has no warning, and keeps what its disks had taken."""
        if self._process and self._process.poll() is None:
            # Not a kill at once: QEMU holds tables of qcow2 images that a real disk would have on its platters.
            with suppress(AsrError, TimeoutError):
                self.command("quit")
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def leave_evidence(self) -> None:
        """screen.txt and screen.png in the folder, and in processor.txt where it is, if the machine still answers."""
        with suppress(AsrError, TimeoutError):
            (self.folder / "screen.txt").write_text(self.screen() + "\n")
            self.screenshot(self.folder / "screen.png")
            looks = [self.command("human-monitor-command", command_line=line)
                     for line in ("info status", "info registers", "info registers")]
            (self.folder / "processor.txt").write_text("\n".join(looks))

    def close(self) -> None:
        """Power off and give back what the machine held."""
        self.power_cut()
        with suppress(QMPError, OSError, EOFError):       # disconnect says again how the connection ended
            self._wait(self._qmp.disconnect(), 30)
        self.serial.close()
        (self.folder / "screen.memory").unlink(missing_ok=True)
        self._loop.call_soon_threadsafe(self._loop.stop)


class SerialConsole:
    """The first serial port: what the guest writes is in serial.log, what `send` writes the guest reads."""

    def __init__(self, folder: Path):
        self.log = folder / "serial.log"
        self.plug, self._input = os.pipe()          # the guest's end and ours
        self._seen = 0
        self._shown = 0                             # bytes that the terminal has had
        self._terminal: Any = None

    def send(self, text: str) -> None:
        os.write(self._input, text.encode())

    def look(self) -> Screen:
        """What a terminal on this port shows, without colours. Raises ToolMissing without pyte, which is one."""
        try:
            import pyte
        except ImportError:
            raise ToolMissing("The terminal emulator pyte is not installed.", hint="Install pyte with pip.") from None
        if not self._terminal:
            self._terminal = pyte.ByteStream(pyte.Screen(COLUMNS, ROWS))
        with self.log.open("rb") as log:
            log.seek(self._shown)
            written = log.read()
        self._shown += len(written)
        self._terminal.feed(written)
        return Screen("\n".join(self._terminal.listener.display), bytes(ROWS * COLUMNS))

    def expect(self, pattern: Pattern, seconds: float) -> str:
        """Wait for the pattern in what came since the last `expect`; returns all up to its end. Raises NotSeen."""
        deadline = time.monotonic() + seconds
        while True:
            with self.log.open("rb") as log:
                log.seek(self._seen)
                text = log.read().decode("latin-1")       # a byte each, so that positions are the file's
            if match := _search(pattern, text):
                self._seen += match.end()
                return text[:match.end()].encode("latin-1").decode(errors="replace")
            if time.monotonic() > deadline:
                raise NotSeen(f"{_shown(pattern)} was not on the serial console within {seconds:.0f} s. Its end:\n"
                              + text[-2000:])
            time.sleep(POLL)

    def login(self, user: str, password: str, seconds: float = 300) -> None:
        """Log in at getty's prompt and leave a shell that echoes nothing, for `run`."""
        self.expect("login: ", seconds)
        self.send(f"{user}\n")
        self.expect("assword: ", seconds)
        self.send(f"{password}\n")
        self.expect(re.compile(r"[#$] "), seconds)
        # The echo would hold the marks that `run` waits for; they are typed in two halves until it is off.
        # No history: a machine that is only looked at has no files changed by that.
        self.send("unset HISTFILE; exec env PS1= PS2= ENV= TERM=dumb sh\nstty -echo -onlcr; echo shell''-ready\n")
        self.expect("shell-ready\n", seconds)

    def run(self, command: str, seconds: float = 120) -> tuple[int, str]:
        """Exit status and output (both streams) of a command in a shell below that of `login`. Raises NotSeen."""
        self.send(f"({command}\n) 2>&1 </dev/null; status=$?; echo; echo asr-status-$status-\n")
        output, status, _ = self.expect(re.compile(r"asr-status-\d+-\n"), seconds).rsplit("-", 2)
        return int(status), output.removesuffix("asr-status").removesuffix("\n")

    def close(self) -> None:
        os.close(self.plug)
        os.close(self._input)


def _search(pattern: Pattern, text: str) -> re.Match[str] | None:
    return re.search(re.escape(pattern) if isinstance(pattern, str) else pattern, text)


def _found(pattern: Pattern, text: str) -> bool:
    return _search(pattern, text) is not None


def _shown(pattern: Pattern) -> str:
    return repr(pattern if isinstance(pattern, str) else pattern.pattern)


# QEMU's command line. Devices are the same values here and in QMP's blockdev-add and device_add.

def command_line(machine: Machine, socket: Path, folder: Path) -> tuple[str, ...]:
    """argv of a machine that waits, not yet running, for `cont` on the QMP socket. Raises ToolMissing."""
    for tool in ("qemu-system-x86_64", "setpriv"):
        if not shutil.which(tool):
            raise ToolMissing(f"{tool} is not installed.", hint="Install qemu-system-x86 and util-linux.")
    return (
        "setpriv", "--pdeathsig", "KILL",                 # no machine outlives the one who watches it
        "qemu-system-x86_64",
        "-nodefaults", "-no-user-config", "-display", "none",
        "-accel", "tcg,thread=multi,tb-size=512",
        "-smp", "1",                                      # a second processor costs more than it gives under tcg
        "-m", str(machine.memory // MiB),
        "-rtc", "base=utc,clock=host",
        *_firmware(machine, folder),
        "-boot", "strict=on",                             # nothing boots but what machine.boot names
        *_kernel(machine),
        *_network(machine),
        "-S", "-chardev", f"socket,id=qmp,path={socket}", "-mon", "chardev=qmp,mode=control",
        "-chardev", "stdio,id=serial,signal=off", "-serial", "chardev:serial",
        "-object", f"throttle-group,id={LIMIT}",
        *_options("-blockdev", _nodes(machine)),
        *_options("-device", _devices(machine)),
    )


def _options(option: str, values: Iterator[Mapping[str, object]]) -> Iterator[str]:
    for value in values:
        yield from (option, json.dumps(value))


def _firmware(machine: Machine, folder: Path) -> tuple[str, ...]:
    if machine.firmware == "bios":
        return ("-machine", "pc")
    code, blank = {"uefi": ("OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"),
                   "secure": ("OVMF_CODE_4M.secboot.fd", "OVMF_VARS_4M.ms.fd")}[machine.firmware]
    if not (OVMF / code).exists():
        raise ToolMissing(f"{OVMF / code} is missing.", hint="Install ovmf.")
    variables = machine.variables or folder / "variables.fd"
    if not variables.exists() or not machine.variables:
        shutil.copyfile(OVMF / blank, variables)
    return (
        "-machine", "q35,smm=on",
        "-global", "driver=cfi.pflash01,property=secure,value=on",    # only the firmware changes its keys
        "-drive", f"if=pflash,unit=0,format=raw,readonly=on,file={OVMF / code}",
        "-drive", f"if=pflash,unit=1,format=raw,file={variables}",
        "-device", "isa-fdc",                                         # pc has one, q35 not
    )


def _kernel(machine: Machine) -> Iterator[str]:
    if machine.kernel:
        yield from ("-kernel", str(machine.kernel), "-append", machine.arguments)
        if machine.initrd:
            yield from ("-initrd", str(machine.initrd))


def _network(machine: Machine) -> Iterator[str]:
    if machine.network or machine.ssh or machine.tftp:
        forward = f",hostfwd=tcp:127.0.0.1:{machine.ssh}-:22" if machine.ssh else ""
        served = f",tftp={machine.tftp[0]},bootfile={machine.tftp[1]}" if machine.tftp else ""
        # UEFI has drivers of its own; those in the card's ROM (iPXE's) give shim a file of a wrong size.
        rom = {} if machine.firmware == "bios" else {"romfile": ""}
        card = {"driver": "virtio-net-pci", "netdev": "network", **rom, **_bootindex(machine, "network", 0)}
        yield from ("-netdev", f"user,id=network{forward}{served}", *_options("-device", iter((card,))))


def _nodes(machine: Machine) -> Iterator[Mapping[str, object]]:
    for number, drive in enumerate(machine.disks):
        yield {"node-name": f"disk{number}-image", "driver": "throttle", "throttle-group": LIMIT,
               "file": _node(f"disk{number}-file", drive.image, drive.format)}
    for number, image in enumerate(machine.sticks):
        yield _stick_node(f"stick{number}", image)
    if machine.cdrom:
        yield {"node-name": "cdrom-image", "driver": "raw", "read-only": True,
               "file": {"driver": "file", "filename": str(machine.cdrom)}}


def _node(name: str, image: Path, format: str) -> dict[str, object]:
    return {"node-name": name, "driver": format, "discard": "unmap",
            "cache": {"direct": False, "no-flush": True},             # the images outlive no crash of this computer
            "file": {"driver": "file", "filename": str(image), "locking": "on", "discard": "unmap"}}


def _devices(machine: Machine) -> Iterator[Mapping[str, object]]:
    width, height = machine.monitor or (0, 0)
    # Without 64 MiB of its own it could not show 4K. At QEMU's 75 Hz, in mHz here, firmware would not find that in the
    # first block of EDID, the only one that it reads.
    wanted = {"xres": width, "yres": height, "vgamem_mb": 64, "refresh_rate": 30_000} if width else {}
    yield {"driver": "VGA", "id": "monitor", **wanted}
    yield {"driver": "floppy", "id": FLOPPY_DRIVE, "drive-type": "144"}
    yield {"driver": "qemu-xhci", "id": "usb"}
    if any(drive.bus == "scsi" for drive in machine.disks):
        yield {"driver": "virtio-scsi-pci", "id": "scsi"}
    for number, drive in enumerate(machine.disks):
        driver = {"virtio": "virtio-blk-pci", "ide": "ide-hd", "scsi": "scsi-hd", "nvme": "nvme"}[drive.bus]
        yield {"driver": driver, "id": f"disk{number}", "drive": f"disk{number}-image",
               "serial": drive.serial or f"disk{number}", **_bootindex(machine, "disk", number)}
    for number in range(len(machine.sticks)):
        yield {**_stick(f"stick{number}"), **_bootindex(machine, "stick", number)}
    if machine.cdrom:
        yield {"driver": "ide-cd", "id": "cdrom", "drive": "cdrom-image", **_bootindex(machine, "cdrom", 0)}


def _bootindex(machine: Machine, kind: Bootable, number: int) -> dict[str, object]:
    return {"bootindex": machine.boot.index(kind) * 100 + number} if kind in machine.boot else {}


def _stick_node(name: str, image: Path) -> dict[str, object]:
    return _node(f"{name}-image", image, "raw")


def _stick(name: str) -> dict[str, object]:
    return {"driver": "usb-storage", "id": name, "drive": f"{name}-image", "bus": "usb.0", "removable": True}
