"""The medium itself, in every firmware and drive: to the F2 prompt, on both consoles, and what it says if it can't."""

import functools
import http.server
import re
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from bootenv import drivers
from bootenv.rehearsal import Drive, Guest, Machine, MiB, boot, make_disk
from bootenv.run import _ENVIRONMENT
from tests.conftest import REPOSITORY
from tests.vm.story import at_shell

pytestmark = [pytest.mark.vm, pytest.mark.timeout(1800)]

ARGUMENTS = "asr.stage=recover quiet loglevel=3 nomodeset no_timer_check"
PROMPT = "Press F2 to run"
MINUTES = 300                          # seconds to the F2 prompt, on a busy computer


@pytest.fixture
def stick(iso, disks) -> Path:
    """The medium as a USB stick."""
    return shutil.copyfile(iso, disks / "stick.img")


@pytest.fixture(scope="session")
def parts(iso, once) -> Path:
    """The medium's kernel, initramfs and id, to be started with a command line of its own."""
    def unpack(folder: Path) -> None:
        folder.mkdir()
        subprocess.run(("bsdtar", "-x", "-f", iso, "-C", folder, "--strip-components", "1", "live/vmlinuz",
                        "live/initrd.img", "live/id"), check=True)

    return once("medium-parts", unpack)


@pytest.fixture(scope="session")
def network(once) -> Path:
    """What build_iso.py writes for a server."""
    return once("netboot", lambda path: subprocess.run(
        (sys.executable, REPOSITORY / "build_iso.py", "--output", path.with_suffix(".iso"), "--netboot", path),
        check=True, stdin=subprocess.DEVNULL))


def by_medium(iso: Path, stick: Path, medium: str, **settings) -> Machine:
    if medium == "cd":
        return Machine(cdrom=iso, boot=("cdrom", "disk"), **settings)
    return Machine(sticks=(stick,), boot=("stick", "disk"), **settings)


def on_serial(guest: Guest, text: str, seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while text not in guest.serial.look().text:
        assert time.monotonic() < deadline, f"{text!r} is not on the serial console:\n{guest.serial.look().text}"
        time.sleep(0.5)


# The matrix. Of it, what nothing else starts is in every run: a stick, and no hard disk at all.

@pytest.mark.parametrize(("firmware", "medium"), [
    pytest.param(firmware, medium, marks=[] if (firmware, medium) == ("bios", "usb") else pytest.mark.long)
    for firmware in ("bios", "uefi", "secure") for medium in ("cd", "usb")])
def test_both_consoles_come_to_the_prompt_within_512_mib_and_without_a_disk(firmware, medium, iso, stick, tmp_path):
    machine = by_medium(iso, stick, medium, firmware=firmware, memory=512 * MiB)
    with boot(machine, tmp_path / "machine") as guest:
        guest.wait_for_text(PROMPT, MINUTES)
        on_serial(guest, PROMPT)
        guest.serial.send("\x1bOQ")                    # F2 of a VT220
        guest.wait_for_text("Please insert the disk labeled", 60)
        guest.press("spc")
        guest.wait_for_text("could not find an ASR disk", 60)
        guest.press("esc")                             # what one console begins, the other goes on with
        on_serial(guest, "Welcome to Setup")
        if firmware == "bios":                         # whose second console can be read
            loses_its_serial_line(guest)


def loses_its_serial_line(guest: Guest) -> None:
    """What is on the screen stays, and whoever connects again sees it."""
    said = guest.serial.log.stat().st_size
    guest.press("alt-f2")
    guest.wait_for_text("# ", 120)
    at_shell(guest, "pkill -HUP -f ignore-size; echo do''ne", "done", 120)
    guest.wait_for_text("Welcome to Setup", 60)
    deadline = time.monotonic() + 60
    while b"Welcome to Setup" not in guest.serial.log.read_bytes()[said:]:
        assert time.monotonic() < deadline, "nothing more came on the serial console"
        time.sleep(0.5)
    guest.serial.send("\x1bOQ")
    guest.wait_for_text("Please insert the disk labeled", 60)


@pytest.mark.long
@pytest.mark.parametrize("monitor", [(800, 600), (1280, 800), (1920, 1080), (3840, 2160)])
def test_the_screen_fills_the_monitor(monitor, iso, tmp_path):
    with boot(Machine(cdrom=iso, firmware="uefi", monitor=monitor), tmp_path / "machine") as guest:
        guest.wait_for_text(PROMPT, MINUTES)
        guest.press("f1")                              # nothing counts down below it
        guest.wait_for_text("ESC=Back", 60)
        width, height, pixels = picture(guest, tmp_path / "screen.ppm")
        guest.screenshot(tmp_path / "screen.png")      # for people
    assert (width, height) == monitor
    bar = [n for n, pixel in enumerate(pixels) if pixel == b"\xaa\xaa\xaa"]
    assert max(n % width for n in bar) / width > 0.8
    assert max(n // width for n in bar) / height > 0.8
    # The bar is one line of 25, the text a small part, and all else is blue: also what is beside 80x25.
    assert sum(pixel == b"\0\0\xaa" for pixel in pixels) / len(pixels) > 0.88


def picture(guest: Guest, path: Path) -> tuple[int, int, list[bytes]]:
    """The monitor's width, height and pixels, once they stay as they are: the serial line has a page before it."""
    before = b""
    while True:
        guest.command("screendump", filename=str(path), format="ppm")
        if (now := path.read_bytes()) == before:
            break
        before = now
        time.sleep(4)
    _, size, _, data = now.split(b"\n", 3)
    width, height = map(int, size.split())
    return width, height, [data[n:n + 3] for n in range(0, len(data), 3)]


@pytest.mark.long
@pytest.mark.parametrize("firmware", ["bios", "uefi"])
@pytest.mark.parametrize("medium", ["cd", "usb"])
def test_a_forgotten_medium_starts_the_hard_disk(firmware, medium, iso, stick, live_tree, disks, tmp_path):
    disk = disks / "disk.img"
    if firmware == "bios":
        # mov ax, 0x0e00 + character; int 0x10 for each; hlt
        said = b"".join(b"\xb8" + bytes([letter, 0x0E]) + b"\xcd\x10" for letter in b"The disk starts")
        disk.write_bytes((said + b"\xf4\xeb\xfd").ljust(510, b"\0") + b"\x55\xaa" + bytes(MiB))
    else:
        efi_disk(disk, live_tree)
    machine = replace(by_medium(iso, stick, medium, firmware=firmware), disks=(Drive(disk),))
    with boot(machine, tmp_path / "machine") as guest:
        guest.wait_for_text("Press any key to boot from CD", 120)
        guest.wait_for_text("The disk starts", 120)


def efi_disk(image: Path, tree: Path) -> None:
    """A disk whose fallback loader says that it was started: GRUB, with words of its own."""
    (tree / "tmp/said.cfg").write_text('echo "The disk starts"\nsleep 300\n')
    subprocess.run(("chroot", tree, "grub-mkimage", "--format=x86_64-efi", "--config=/tmp/said.cfg", "--prefix=/",
                    "--output=/tmp/said.efi", "echo", "sleep", "minicmd"), check=True)
    make_disk(image, 64 * MiB)
    subprocess.run(("sfdisk", "-q", image), input=b"label: gpt\nstart=2048, type=uefi\n", check=True)
    volume = image.with_suffix(".fat")
    subprocess.run(("mkfs.vfat", "-C", volume, str(48 * 1024)), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(("mmd", "-i", volume, "::EFI", "::EFI/BOOT"), check=True)
    subprocess.run(("mcopy", "-i", volume, tree / "tmp/said.efi", "::EFI/BOOT/BOOTX64.EFI"), check=True)
    with image.open("r+b") as disk:
        disk.seek(2048 * 512)
        disk.write(volume.read_bytes())


@pytest.mark.long
def test_of_two_media_the_one_that_was_started_is_used(iso, stick, parts, tmp_path):
    id = (parts / "id").read_text().strip().encode()
    stick.write_bytes(stick.read_bytes().replace(id, bytes(reversed(id))))     # which Linux finds first
    with boot(Machine(cdrom=iso, sticks=(stick,), boot=("cdrom",)), tmp_path / "machine") as guest:
        guest.wait_for_text("Press any key to boot from CD", 120)      # else the stick, a disk to GRUB, is started
        guest.press("spc")
        guest.wait_for_text(PROMPT, MINUTES)
        at_shell(guest, "grep ' /run/medium ' /proc/mounts", "/dev/sr0 /run/medium")


@pytest.mark.long
def test_a_damaged_medium_says_so_on_every_console_and_a_good_one_takes_its_place(iso, stick, disks, tmp_path):
    good = shutil.copyfile(stick, disks / "good.img")
    image = stick.read_bytes()
    place = next(found.start() for found in re.finditer(b"hsqs", image) if found.start() % 2048 == 0)
    stick.write_bytes(image[:place] + b"\0\0\0\0" + image[place + 4:])
    with boot(Machine(sticks=(stick,), boot=("stick",)), tmp_path / "machine") as guest:
        guest.wait_for_text("cannot be read: the medium is damaged.", MINUTES)
        on_serial(guest, "cannot be read: the medium is damaged.")
        guest.attach_stick(good)
        time.sleep(10)
        guest.type("exit\n")
        guest.wait_for_text(PROMPT, MINUTES)


@pytest.mark.long
def test_what_the_command_line_asks_for(iso, parts, disks, tmp_path):
    """asr.toram, asr.keymap and asr.ssh; and a console that is killed comes back."""
    key = tmp_path / "key"
    subprocess.run(("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key), check=True)
    public = key.with_suffix(".pub").read_text().split()[1]
    id = (parts / "id").read_text().strip()
    machine = Machine(
        cdrom=iso, boot=(), kernel=parts / "vmlinuz", initrd=parts / "initrd.img", ssh=free_port(),
        arguments=f"{ARGUMENTS} asr.id={id} asr.toram asr.keymap=de-latin1 asr.ssh={public}")
    with boot(machine, tmp_path / "machine") as guest:
        guest.wait_for_text(PROMPT, MINUTES)
        guest.press("alt-f2")
        guest.type("echo yyyy\n")
        guest.wait_for_text("zzzz", 60)                # the German keyboard's y is the American z
        guest.press("alt-f1", "f4")
        guest.wait_for_text("Which layout", 60)
        for _ in range(20):
            guest.press("u")
            time.sleep(1)
            if marked(guest).split() == ["us", "American"]:
                break
        guest.press("ret")
        guest.wait_for_text(re.compile("Press F2 to run|Welcome to Setup"), 60)
        guest.command("eject", id="cdrom", force=True)
        at_shell(guest, "grep ' /run/medium ' /proc/mounts; echo 3 >/proc/sys/vm/drop_caches", "copy /run/medium tmpfs")

        login = ("ssh", "-i", key, "-p", str(machine.ssh), "-o", "StrictHostKeyChecking=no", "-o",
                 f"UserKnownHostsFile={tmp_path / 'hosts'}", "-o", "ConnectTimeout=60", "root@127.0.0.1")
        said = subprocess.run((*login, "cat /run/asr/keymap"), capture_output=True, text=True, timeout=180)
        assert said.stdout == "us\n", said.stderr
        with subprocess.Popen((*login, "-tt"), stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                              env={"TERM": "xterm", "PATH": "/usr/bin"}) as terminal:
            time.sleep(30)
            terminal.terminate()
            assert b"Welcome to Setup" in terminal.stdout.read()

        at_shell(guest, "pkill -9 -f 'm console'; sleep 2; echo do''ne", "done")
        guest.wait_for_text("The recovery console ended unexpectedly (status 137)", 60)
        on_serial(guest, "S=Shell")
        guest.press("ret")             # which repeats itself on a busy computer, and then goes through the prompts
        guest.wait_for_text(re.compile(f"Press F6|{PROMPT}|Welcome to Setup"), MINUTES)


def marked(guest: Guest) -> str:
    """The line of a list that is shown in reverse."""
    screen = guest.look()
    return next((line[4:75] for row, line in enumerate(screen.text.splitlines()[:24])
                 if screen.background(row, 5) == 7), "")


@pytest.mark.long
def test_drivers_come_from_a_second_disk_and_from_what_was_carried(iso, parts, live_tree, disks, tmp_path, monkeypatch):
    net = next((live_tree / "usr/lib/modules").iterdir()) / "kernel/drivers/net"
    # What an earlier F6 left for the minimal OS.
    monkeypatch.setattr(drivers, "TAKEN", disks / "drivers")
    put(net / "eql.ko", disks / "drivers/modules/eql.ko")
    put(parts / "id", disks / "drivers/firmware/asr/carried.bin")
    initrd = shutil.copyfile(parts / "initrd.img", disks / "initrd.img")
    put(live_tree / "usr/bin/busybox", disks / "bin/busybox").chmod(0o755)
    monkeypatch.setitem(_ENVIRONMENT, "PATH", f"{disks / 'bin'}:{_ENVIRONMENT['PATH']}")
    drivers.carry(initrd)
    # And a stick for the next one.
    stick = disks / "drivers.img"
    subprocess.run(("mkfs.vfat", "-C", stick, "8192"), check=True, stdout=subprocess.DEVNULL)
    subprocess.run(("mmd", "-i", stick, "::drivers", "::drivers/firmware"), check=True)
    subprocess.run(("mcopy", "-i", stick, net / "dummy.ko", "::drivers/dummy.ko"), check=True)
    subprocess.run(("mcopy", "-i", stick, parts / "id", "::drivers/firmware/asr-new.bin"), check=True)

    machine = Machine(cdrom=iso, sticks=(stick,), boot=(), kernel=parts / "vmlinuz", initrd=initrd,
                      arguments=f"{ARGUMENTS} asr.id={(parts / 'id').read_text().strip()}")
    with boot(machine, tmp_path / "machine") as guest:
        guest.wait_for_text(PROMPT, MINUTES)
        guest.press("f6")
        for _ in range(6):             # USB is looked at after what people wait for
            guest.wait_for_text("Insert the disk with the drivers: ", 60)
            guest.press("ret")
            if "2 of 2 drivers" in guest.wait_for_text(re.compile("files are in use|ASR-"), 120):
                break
            guest.press("ret")
        guest.press("ret")
        guest.wait_for_text(PROMPT, 60)
        at_shell(guest, "grep -c ^dummy /proc/modules; modinfo -n eql dummy; ls /lib/firmware/updates",
                 r"1 *\n/lib/modules/\S+/updates/eql.ko *\n/lib/modules/\S+/updates/dummy.ko *\nasr  asr-new.bin")


def put(source: Path, goal: Path) -> Path:
    goal.parent.mkdir(parents=True, exist_ok=True)
    return shutil.copyfile(source, goal)


@pytest.mark.long
def test_the_network_gives_the_medium_or_a_reason(network, disks, tmp_path):
    served = disks / "served"
    served.mkdir()
    asked: list[str] = []
    start = (network / "boot.ipxe").read_text()
    initrd = disks / "initrd"
    initrd.write_bytes((network / "initrd.img").read_bytes() + (network / "netboot.img").read_bytes())
    with server(served, asked) as port:
        machine = Machine(
            kernel=network / "vmlinuz", initrd=initrd, network=True, memory=512 * MiB, boot=(),
            arguments=f"{ARGUMENTS} {re.search('asr.id=[0-9a-f]+', start)[0]} asr.http=http://10.0.2.2:{port}/asr")
        with boot(machine, tmp_path / "machine") as guest:
            guest.command("set_link", name="network", up=False)
            guest.wait_for_text("No network card has a link", MINUTES)
            on_serial(guest, "No network card has a link")
            guest.command("set_link", name="network", up=True)
            guest.type("exit\n")
            guest.wait_for_text(re.compile(r"could not be fetched:[^~]*\s404 "), 120)
            shutil.copytree(network, served / "asr")
            with (served / "asr/root.squashfs").open("r+b") as squashfs:
                squashfs.seek(2**20)
                byte = squashfs.read(1)[0]
                squashfs.seek(2**20)
                squashfs.write(bytes([byte ^ 1]))
            guest.type("exit\n")
            guest.wait_for_text("is damaged, or belongs to another asr.id", 180)
            shutil.copyfile(network / "root.squashfs", served / "asr/root.squashfs")
            guest.type("exit\n")
            guest.wait_for_text(PROMPT, MINUTES)
    assert asked.count("/asr/vmlinuz") == 3


@pytest.mark.long
@pytest.mark.parametrize(("firmware", "file"), [
    ("bios", "boot.ipxe"), ("bios", "grub.0"), ("uefi", "shimx64.efi"), ("secure", "shimx64.efi")])
def test_a_computer_starts_from_its_network_card(firmware, file, network, disks, tmp_path):
    (disks / "asr").symlink_to(network)
    asked: list[str] = []
    with server(disks, asked, port=80), boot(
            Machine(firmware=firmware, tftp=(network, file), boot=("network",)), tmp_path / "machine") as guest:
        guest.wait_for_text(PROMPT, MINUTES)
        on_serial(guest, PROMPT)
    assert {"/asr/initrd.img", "/asr/netboot.img", "/asr/root.squashfs"} <= {*asked}


@contextmanager
def server(folder: Path, asked: list[str], port: int = 0) -> Iterator[int]:
    """An HTTP server's port; the paths that were asked for."""
    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_request(self, *_: object) -> None:
            asked.append(self.path)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(
            ("127.0.0.1", port), functools.partial(Handler, directory=folder)) as http_server:
        threading.Thread(target=http_server.serve_forever, daemon=True).start()
        yield http_server.server_address[1]
        http_server.shutdown()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
