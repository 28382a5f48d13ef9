"""The one door to other programs, and the log that goes through it."""

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
_SECONDS_TO_END = 20


def run(
    argv: tuple[str, ...],
    *,
    input: bytes | None = None,
    check: bool = True,
    environment: Mapping[str, str] | None = None,
) -> str:
    """Runs a program to its end and returns what it wrote on stdout, decoded with surrogateescape.

    Its standard input is empty unless `input` is given; it never sees the console's descriptors, since Textual
    draws on stderr. `environment` comes on top of the one that all have. Raises ToolMissing, and CommandFailed
    for an exit status other than 0 unless `check` is False.
    """
    log("+ " + shlex.join(argv))
    try:
        done = subprocess.run(
            argv,
            input=input if input is not None else b"",
            capture_output=True,
            env=_ENVIRONMENT | dict(environment or {}),
            start_new_session=True,   # no terminal to ask on, and the console's signals are not the child's
        )
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
def afterwards(script: str) -> Iterator[subprocess.Popen]:
    """Has a shell script run when the block ends, however it ends: even if this process is killed.

    A shell of its own session waits for the end of a pipe that only this process holds. After the block its
    `returncode` is that of the script; what it writes is in the log.
    """
    log(f"afterwards: {script}")
    with open(LOG if LOG.exists() else os.devnull, "ab") as out:
        keeper = subprocess.Popen(
            ("sh", "-c", f"cat >/dev/null\n{script}"), stdin=subprocess.PIPE, stdout=out, stderr=out,
            env=_ENVIRONMENT, start_new_session=True)
    assert keeper.stdin
    try:
        yield keeper
    finally:
        keeper.stdin.close()
        if keeper.wait():
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
