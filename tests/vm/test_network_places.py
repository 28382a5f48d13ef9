"""Backups on servers: what a keyboard needs to reach them, and nobody where no password is wanted."""

import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from time import monotonic, sleep

import pytest

from bootenv.backup import Source, write_backup
from bootenv.drift import REPAIR
from bootenv.rehearsal import Drive, Guest, Machine, MiB, boot
from bootenv.sif import BackupReference, read_sif, write_sif
from tests.vm import machines, story
from tests.vm.compare import differences, look
from tests.vm.samples import SAMPLES
from tests.vm.test_bad_input import SET, file_system
from tests.vm.test_bad_input import floppy as floppy_with
from tests.vm.test_recovery import finish

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(3600)]

HOST = "10.0.2.2"                      # this computer, as its virtual machines see it
USER, PASSWORD = "ann", "open, \"sesame\" %41"
KIND = "gpt"


@dataclass(frozen=True)
class Servers:
    """The two servers of one folder of this computer."""

    folder: Path
    smb: int                           # ports
    nfs: int

    @property
    def share(self) -> str:
        return f"smb://{USER}@{HOST}:{self.smb}/backups"

    @property
    def export(self) -> str:
        return f"nfs://{HOST}:{self.nfs}/export"


@pytest.fixture
def servers(disks, tmp_path) -> Iterator[Servers]:
    folder = disks / "served"
    folder.mkdir()
    with ExitStack() as stack:
        smb, nfs = free_port(), free_port()
        stack.enter_context(samba(folder, smb, tmp_path / "samba"))
        stack.enter_context(ganesha(folder, nfs, tmp_path / "ganesha"))
        yield Servers(folder, smb, nfs)


@contextmanager
def samba(folder: Path, port: int, own: Path) -> Iterator[None]:
    """An SMB server with a share for USER alone, who is root here."""
    own.mkdir()
    (own / "users").write_text(f"root = {USER}\n")
    directories = "".join(f"{name} directory = {own}\n" for name in ("private", "lock", "state", "cache", "pid"))
    (own / "smb.conf").write_text(f"""[global]
server role = standalone server
smb ports = {port}
bind interfaces only = yes
interfaces = lo
disable netbios = yes
load printers = no
printcap name = /dev/null
disable spoolss = yes
map to guest = never
username map = {own}/users
passdb backend = tdbsam:{own}/passdb.tdb
ncalrpc dir = {own}/ncalrpc
{directories}
[backups]
path = {folder}
read only = no
valid users = root
""")
    conf = str(own / "smb.conf")
    machines.run("smbpasswd", "-c", conf, "-s", "-a", "root", input=f"{PASSWORD}\n{PASSWORD}\n")
    with served(("smbd", "--foreground", "--debug-stdout", "-s", conf), port, own / "log"):
        yield


@contextmanager
def ganesha(folder: Path, port: int, own: Path) -> Iterator[None]:
    """An NFS server whose /export is the folder, writable by root of any computer."""
    own.mkdir()
    (own / "ganesha.conf").write_text(f"""
NFS_CORE_PARAM {{ NFS_Port = {port}; Bind_addr = 127.0.0.1; Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false; }}
NFSV4 {{ Graceless = true; RecoveryBackend = fs; RecoveryRoot = "{own}"; }}
EXPORT {{
    Export_Id = 1; Path = "{folder}"; Pseudo = "/export"; Access_Type = RW; Squash = No_Root_Squash; SecType = sys;
    Protocols = 4; Transports = TCP; FSAL {{ Name = VFS; }}
}}
""")
    argv = ("ganesha.nfsd", "-F", "-f", f"{own}/ganesha.conf", "-L", f"{own}/ganesha.log", "-p", f"{own}/pid")
    with served(argv, port, own / "log"):
        yield


@contextmanager
def served(argv: tuple[str, ...], port: int, log: Path) -> Iterator[None]:
    """A server as long as it is needed; ready when it listens."""
    with log.open("wb") as out, subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=out, stderr=out) as process:
        try:
            until = monotonic() + 60
            while not listens(port):
                assert process.poll() is None, f"{argv[0]} has ended:\n{log.read_text(errors='replace')[-3000:]}"
                assert monotonic() < until, f"{argv[0]} does not listen:\n{log.read_text(errors='replace')[-3000:]}"
                sleep(0.2)
            yield
        finally:
            process.terminate()
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return False
    return True


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


# From the medium

def test_files_come_from_a_server_and_what_goes_wrong_is_said(servers, iso, disks, tmp_path):
    set = replace(SET, backup=BackupReference(SET.backup.name, "/mnt/backups", network=f"{servers.export}/moved"))
    tree, folder = disks / "tree", servers.folder / "of lost"
    tree.mkdir()
    folder.mkdir()
    (tree / "file").write_text("x")
    for _ in write_backup(folder / SET.backup.name, [Source(tree)], (REPAIR, write_sif(set))):
        pass
    target = disks / "target.img"
    file_system(target, 64 * MiB, "-L", "DATA")
    image = floppy_with(disks, "good", write_sif(set))

    with boot(Machine(disks=(Drive(target),), cdrom=iso, network=True), tmp_path / "machine") as guest:
        guest.command("set_link", name="network", up=False)

        sees = partial(story.sees, guest, seconds=180)

        def browses(url: str) -> None:
            sees("To name another one, press B")
            guest.press("b")
            sees("Another backup")
            guest.press("ctrl-u")
            guest.type(f"{url}\n")

        guest.wait_for_text("Welcome to Setup", 300)
        guest.press("r")
        sees("No backup was found.")
        browses(servers.export)
        sees("No network card has a link")
        guest.command("set_link", name="network", up=True)
        guest.press("ret")
        sees("of lost/", seconds=300)
        sees("To name another one, press B")
        for url, words in ((f"nfs://{HOST}:{servers.nfs}/nothing", "has no export /nothing"),
                           (f"nfs://{HOST}:{free_port()}/x", "nothing answers at its port"),
                           (f"smb://{HOST}:{servers.smb}/backups", "does not let guests into"),
                           ("smb://nas.invalid/backups", "There is no server nas.invalid"),
                           ("smb://nas", "it names no share")):
            browses(url)
            sees(words)
            guest.press("esc")
        browses(servers.share)
        sees("wants the password of ann")
        guest.type("wrong\n")
        sees("The server does not accept this")
        guest.type(f"{PASSWORD}\n")
        sees("of lost/")
        guest.press("ret")
        story.bring_back_one_file(guest, 180)

        guest.insert_floppy(image)
        guest.press("v")
        browses(servers.export)
        sees("of lost/")
        guest.press("ret")
        sees("The backup is whole.")
        sees("Its ASR disk is whole")
        guest.press("ret", "esc")
        sees("Welcome to Setup")

        guest.press("f2")
        sees("has no export /export/moved")
        sees("press F8")
        (servers.folder / "moved").mkdir()
        folder.rename(servers.folder / "moved/deeper")
        guest.press("ret")
        sees("Disk 0 needs at least")                  # the check of the backup went well
        story.at_shell(guest, "grep -rq mount.cifs /run/asr && ! grep -rl sesame /run/asr && echo not''hing", "nothing")

    assert machines.run("debugfs", "-R", "cat /back/file", str(target)) == "x"


# A machine that is lost

@pytest.mark.parametrize("scheme", ["smb", "nfs"])
def test_a_lost_machine_comes_back_from_a_server(scheme, servers, iso, sample, floppy, disks, tmp_path):
    lost = sample(KIND)
    (servers.folder / "of samples").mkdir()
    url = f"{servers.share if scheme == 'smb' else servers.export}/of samples"
    with boot(replace(lost, cdrom=iso, floppy=floppy, network=True), tmp_path / "prepare") as guest:
        machines.log_in(guest, SAMPLES[KIND])
        ran = story.running(guest)
        networked(guest)
        printed = prepared(guest, url, PASSWORD if scheme == "smb" else "")
        story.switch_off(guest)
    print(printed)
    assert "sesame" not in printed
    [backup] = (servers.folder / "of samples").iterdir()
    state = machines.run("mtype", "-i", str(floppy), "::/asr.sif").encode()
    assert read_sif(state).backup.network == url
    assert b"sesame" not in state
    shutil.move(backup, servers.folder / "of samples" / f"renamed-{backup.name}")      # it is known by its set

    recovered = machines.blank(lost, disks / "blank")
    machine = replace(recovered, cdrom=iso, boot=("cdrom", "disk"), network=True)
    with boot(machine, tmp_path / "recover") as guest:
        story.recover(guest, floppy)
        if scheme == "smb":
            story.see(guest, "on a server, which wants a password", 900)
            guest.type(f"{PASSWORD}\n")
        runs = finish(guest, KIND, lambda name, screen: guest.screenshot(tmp_path / f"{name}.png") and None)
    before, after = look(lost), look(recovered)
    assert after.health == []
    assert differences(ran, runs) == []
    assert differences(before.facts, after.facts, story.EXPECTED_FACTS) == []
    assert differences(before.files, after.files, story.EXPECTED) == []


def networked(guest: Guest) -> None:
    """A sample machine has neither drivers nor tools for a network: the medium lends it both, which leaves no trace."""
    story.done(guest, "mkdir /run/cd /run/image && mount -o ro /dev/sr0 /run/cd && "
                      "mount -o ro,loop /run/cd/live/root.squashfs /run/image")
    kernel = "the sample machine's kernel is not the medium's: remove the cached machine, so that it is made anew"
    assert guest.serial.run("test -d /run/image/usr/lib/modules/$(uname -r)")[0] == 0, kernel
    story.done(guest, "modprobe -a -d /run/image virtio_net nfsv4 cifs")
    story.done(guest, "mkdir -p /run/systemd/network && "
                      "printf '[Match]\\nName=e*\\n[Network]\\nDHCP=yes\\n' >/run/systemd/network/card.network && "
                      "systemctl start systemd-networkd && /usr/lib/systemd/systemd-networkd-wait-online --timeout=120",
               seconds=180)


def prepared(guest: Guest, url: str, password: str) -> str:
    """What `asr prepare` printed at its terminal, where a password is asked for and typed."""
    words = f"sh /run/cd/asr prepare --to '{url}' --disk /dev/fd0"
    if not password:
        return story.done(guest, words, seconds=1800)
    guest.serial.send(f"{words}; echo asr-status-$?-\n")
    printed = guest.serial.expect("Password of ann: ", 600)
    guest.serial.send("wrong\n")
    printed += guest.serial.expect("Password of ann: ", 600)
    assert "does not let ann into" in printed
    guest.serial.send(f"{password}\n")
    printed += guest.serial.expect(re.compile(r"asr-status-\d+-"), 1800)
    assert "asr-status-0-" in printed, printed
    return printed
