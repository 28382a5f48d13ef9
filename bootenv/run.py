"""The one door to other programs, and the log that goes through it."""

import fcntl
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Generator, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from signal import SIGKILL, SIGTERM
from typing import BinaryIO

from .errors import CommandFailed, ToolMissing

# The machine that the program works on: "/" when it is installed there or is the live system itself; where
# the medium's own Python runs against a running machine, that machine's root is bound here.
ROOT = Path(os.environ.get("ASR_ROOT", "/"))

# /run is a RAM disk wherever Linux boots: the log survives a crash of the program and harms no disk.
STATE = Path("/run/asr")
LOG = STATE / "setup.log"

# Where the recovery medium mounts a computer's system that does not run, to prepare it. Of such a computer nothing is
# known but what its disks say: the kernel, its name and its mounts are the medium's.
OFFLINE = STATE / "offline"
RUNNING = ROOT != OFFLINE

# sbin is missing from PATH after su and in some chroots.
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LC_ALL": "C.UTF-8",
    "HOME": "/root",
    "TERM": "dumb",
    "LVM_SUPPRESS_FD_WARNINGS": "1",
}
_LAST_WORDS = 400
_LONGEST_LINE = 2**16                  # bytes
_SECONDS_TO_END = 30

# What a keeper does before its script: it waits for the program's end. systemd stops a job by a signal to all of its
# processes, and sends another one to those that are left then. Neither ends the keeper; and where the program did not
# live to say a word, the script's commands live through it, too. Else they have all signals: `timeout` needs them.
_WAITS = """\
trap : HUP INT TERM
test "$(trap '' HUP INT TERM; cat)" || trap '' HUP INT TERM
"""


def inside(place: str) -> str:
    """A place that a user named, as this process reaches it: device nodes are the same, paths lie under ROOT."""
    if place.startswith("/dev/"):
        node = os.path.realpath(place)         # of /dev/disk/by-uuid, by-label
        return node if os.path.exists(node) else place         # /dev/stdout leads to a pipe, which has no name
    # Started from the medium, the program has left the folder that the user is in.
    here = os.environ.get("ASR_CWD", os.getcwd())
    return str(ROOT / os.path.normpath(os.path.join(here, place)).lstrip("/"))


def run(
    argv: tuple[str, ...],
    *,
    input: bytes | None = None,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
    limit: float | None = None,
) -> str:
    """Runs a program to its end and returns what it wrote on stdout, decoded with surrogateescape.

    Its standard input is empty unless `input` is given; it never sees the console's descriptors, since Textual
    draws on stderr. `environment` comes on top of the one that all have. Raises ToolMissing, and CommandFailed
    for an exit status other than 0 unless `check` is False.

    `limit`: the seconds that it may take, for programs that others wrote. After them it is ended, and has failed. What
    it has left at work in the background is not waited for.
    """
    log("+ " + shlex.join(argv))
    try:
        done = _to_its_end(argv, input or b"", _ENVIRONMENT | dict(environment or {}), limit)
    except FileNotFoundError:
        raise ToolMissing(
            f"The program {argv[0]} is not on this system.",
            hint=f"Install {argv[0]}, or run ASR from the recovery medium, which carries every tool.",
        ) from None
    out = done.stdout.decode(errors="surrogateescape")
    err = done.stderr.decode(errors="replace")
    log(*(out + err).splitlines()[-200:])
    if done.returncode:
        log(f"= exit status {done.returncode}")
        if check:
            words = " ".join((err or out).split())[-_LAST_WORDS:]
            raise CommandFailed(f"{argv[0]} failed: {words or f'exit status {done.returncode}'}",
                                status=done.returncode)
    return out


def _to_its_end(argv: tuple[str, ...], input: bytes, environment: Mapping[str, str], limit: float | None
                ) -> subprocess.CompletedProcess[bytes]:
    """With a limit, output goes to files: a pipe would end only when nobody in the background holds it any more.

    Without one it goes to pipes: AppArmor lets those alone that it confines write to them.
    """
    with _in_memory() as out, _in_memory() as err:
        process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=out if limit else subprocess.PIPE,
            stderr=err if limit else subprocess.PIPE, env=environment,
            start_new_session=True)   # no terminal to ask on, and the console's signals are not the child's
        late = 0
        try:
            said = process.communicate(input, timeout=limit)
        except subprocess.TimeoutExpired:
            _end(process)
            late = 1
            err.write(f"\nIt was ended since it took more than {limit} seconds.".encode())
        except BaseException:
            _let_end(process)
            raise
        if limit:
            said = _all_of(out), _all_of(err)
    return subprocess.CompletedProcess(argv, process.returncode or late, *said)


@contextmanager
def _in_memory() -> Iterator[BinaryIO]:
    """A file, to whose end everybody writes."""
    with open(os.memfd_create("output"), "w+b", buffering=0) as file:
        fcntl.fcntl(file, fcntl.F_SETFL, os.O_APPEND)      # also after a script's >/dev/stderr, which empties it
        yield file


def _all_of(file: BinaryIO) -> bytes:
    file.seek(0)
    return file.read()


def _let_end(process: subprocess.Popen[bytes]) -> None:
    """After Ctrl+C, which it has not seen: LVM that is killed may leave a volume that hangs whoever reads it."""
    try:
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_SECONDS_TO_END)       # reads what would else hold it up
    finally:
        if process.poll() is None:
            os.killpg(process.pid, SIGTERM)


def lines_of(argv: tuple[str, ...], *, input: bytes, environment: Mapping[str, str]
             ) -> Generator[str, None, None]:
    """Runs a program and yields each line of its stdout as it comes, decoded with surrogateescape; stderr: the log.

    `input` is seen by nobody else: there may be secrets in it. If the iterator is closed before its end, the program
    and what it has started get SIGTERM. Raises ToolMissing, and CommandFailed with the last line of stderr.
    """
    log("+ " + shlex.join(argv))
    with open(os.memfd_create("input"), "w+b") as stdin, open(LOG if LOG.exists() else os.devnull, "ab") as err:
        stdin.write(input)
        stdin.seek(0)
        begun = err.tell()
        try:
            process = subprocess.Popen(argv, stdin=stdin, stdout=subprocess.PIPE, stderr=err, start_new_session=True,
                                       env=_ENVIRONMENT | dict(environment))
        except FileNotFoundError:
            raise ToolMissing(f"{argv[0]}, or what it names in its first line, is not on this system.") from None
        except OSError as error:
            raise CommandFailed(f"{argv[0]} cannot be started: {error.strerror}") from None
        assert process.stdout
        try:
            with process.stdout as out:
                while line := out.readline(_LONGEST_LINE):
                    yield line.decode(errors="surrogateescape").rstrip("\n")
            process.wait()
        finally:
            _end(process)
    if process.returncode:
        log(f"= exit status {process.returncode}")
        raise CommandFailed(_last_line(begun) or f"exit status {process.returncode}", status=process.returncode)


def _end(process: subprocess.Popen[bytes]) -> None:
    """It has a while to take away what it has begun."""
    for signal in (SIGTERM, SIGKILL):
        if process.poll() is None:
            os.killpg(process.pid, signal)
            with suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS_TO_END)


def _last_line(begun: int) -> str:
    """Of the log from a place on: what is not said by us, which begins with the time."""
    try:
        with LOG.open("rb") as file:
            file.seek(max(begun, LOG.stat().st_size - _LONGEST_LINE))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    said = [line for line in lines if line.strip() and not re.match(r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ", line)]
    return said[-1].strip()[-_LAST_WORDS:] if said else ""


@contextmanager
def afterwards(script: str, limit: float | None = None) -> Iterator[subprocess.Popen]:
    """Has a shell script run when the block ends, however it ends: even if this process is killed.

    A shell of its own session waits for the end of a pipe that only this process holds. After the block its
    `returncode` is that of the script; what it writes is in the log. `limit`: the seconds that it may take then.
    """
    log(f"afterwards: {script}")
    with open(LOG if LOG.exists() else os.devnull, "ab") as out:
        keeper = subprocess.Popen(
            ("sh", "-c", _WAITS + script), stdin=subprocess.PIPE, stdout=out, stderr=out,
            env=_ENVIRONMENT, start_new_session=True)
    assert keeper.stdin
    try:
        yield keeper
    finally:
        with suppress(BrokenPipeError), keeper.stdin as pipe:
            pipe.write(b"alive")
        with suppress(subprocess.TimeoutExpired):
            keeper.wait(limit)
        _end(keeper)
        if keeper.returncode:
            log(f"= exit status {keeper.returncode} of: {script}")


def unmounting(point: Path, then: str = "") -> AbstractContextManager[subprocess.Popen]:
    """Has what is mounted at a directory unmounted when the block ends, however it ends; `then` is run after it."""
    at = shlex.quote(str(point))
    return afterwards(f"! mountpoint -q {at} || umount {at} || umount --lazy {at}" + (then and f"\n{then} {at}"))


def write_out(point: Path) -> None:
    """What was written to a file system is on its disk. Raises CommandFailed, also if a write failed before: since
    Linux 5.8 this call says so, syncfs(2), and sync(2) never does.
    """
    run(("sync", "--file-system", str(point)))


def log(*lines: str) -> None:
    """Appends lines to setup.log, each with the time in UTC. A log that can't be written stops nothing."""
    stamp = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S")
    try:
        LOG.parent.mkdir(parents=True, exist_ok=True)
        with LOG.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.writelines(f"{stamp} {line}\n" for line in lines)
    except OSError:
        pass


def has_tool(name: str) -> bool:
    return shutil.which(name, path=_ENVIRONMENT["PATH"]) is not None
