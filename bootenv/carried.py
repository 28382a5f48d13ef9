"""Additional files of a set: drivers and firmware for boot recovery, and the provider of a backup that isn't ours.

`asr add-driver` keeps them in /var/lib/asr/drivers, so that they are in every backup that is made afterwards. Each has
a record in asr.sif. Writing an ASR disk copies them beside asr.sif, by the same paths, if all of them fit; boot
recovery loads them from there, and what it lacks from the backup, if that is at hand. Nothing is loaded or run that is
not as it was recorded.
"""

import gzip
import hashlib
import io
import lzma
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import zstandard

from .asr_disk import AsrDisk, read_file
from .backup import restore_backup
from .errors import AsrError, CommandFailed, NoDriver
from .events import Difference
from .run import ROOT, STATE, inside, log
from .sif import CARRIED_PATH, DRIVERS, PROVIDERS, AsrSet, CarriedFile, why_not_carried
from .volumes import find_backup, forget

MACHINE = "var/lib/asr"                # where the files lie on the machine and in its backup, by their paths
_GATHERED = STATE / "carried"          # and in the recovery environment, by the set's id
_PACKED = {"gz": gzip.decompress, "xz": lzma.decompress,
           # What the kernel's build compresses does not say how large it was.
           "zst": lambda data: zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data)).read()}


# On the healthy machine

def add(names: Iterable[str]) -> list[str]:
    """Keeps drivers and firmware, in the place of older ones of the same names; returns what each is, for people.

    Either all of them are kept or none. Raises NoDriver, OSError.
    """
    found = [(Path(inside(name)), *_looked_at(Path(inside(name)))) for name in names]
    older = [file for file in kept() if file.path not in {path for _, path, _ in found}]
    _check((*older, *(_record(path, source) for source, path, _ in found)))
    for source, path, _ in found:
        goal = _home(path)
        goal.parent.mkdir(parents=True, exist_ok=True)
        (ROOT / MACHINE / DRIVERS).chmod(0o700)
        part = goal.with_name(goal.name + ".part")
        shutil.copyfile(source, part)
        part.rename(goal)
    return [f"{_name(path)}: {what}" for _, path, what in found]


def remove(name: str) -> None:
    """Raises NoDriver if there is none of this name."""
    path = f"{DRIVERS}/{name}"
    if not CARRIED_PATH.fullmatch(path) or not _home(path).is_file():
        raise NoDriver(f"There is no driver {name}.", hint="asr add-driver lists all.")
    _home(path).unlink()
    folder = _home(path).parent
    while folder != ROOT / MACHINE:
        try:
            folder.rmdir()
        except OSError:                # it has others
            return
        folder = folder.parent


def kept() -> tuple[CarriedFile, ...]:
    """The records of all that is kept on this machine. Raises NoDriver for what can't go along."""
    top = ROOT / MACHINE / DRIVERS
    paths = sorted(str(path.relative_to(top.parent)) for path in top.rglob("*") if path.is_file())
    files = tuple(_record(path, _home(path)) for path in paths if not path.endswith(".part"))
    _check(files)
    return files


def _record(path: str, file: Path) -> CarriedFile:
    return CarriedFile(path, file.stat().st_size, _digest(file))


def _check(files: Iterable[CarriedFile]) -> None:
    if why := why_not_carried(files):
        raise NoDriver(f"The drivers cannot go along with a set: {why}.",
                       hint=f"Those that are kept lie in /{MACHINE}/{DRIVERS}; asr add-driver --remove takes one away.")


def listed() -> list[str]:
    """A line for each, for people."""
    return [f"{_name(file.path)}  {file.size:,} bytes" for file in kept()]


def provider_file(program: Path) -> CarriedFile:
    """The record of a provider's executable."""
    return _record(f"{PROVIDERS}/{program.name}", program)


def at_hand(set: AsrSet, program: Path | None = None) -> dict[str, Path]:
    """Those of the set's files that this machine has as they were recorded, by their paths.

    program: the provider's executable on this machine.
    """
    found = {file: _home(file.path) for file in set.files_in(DRIVERS)}
    if program:
        found |= {file: program for file in set.files if file.path == f"{PROVIDERS}/{program.name}"}
    return {file.path: path for file, path in found.items() if is_whole(path, file)}


@contextmanager
def from_backup(set: AsrSet, backup: Path) -> Iterator[dict[str, Path]]:
    """The same, of the set's backup."""
    STATE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STATE) as folder:
        _extract(set.files, backup, Path(folder))
        yield {file.path: Path(folder, file.path) for file in set.files if is_whole(Path(folder, file.path), file)}


def _looked_at(file: Path) -> tuple[str, str]:
    """The path that a file gets in a set, and what it is. Raises NoDriver for what is no driver or firmware."""
    if not file.is_file():
        raise NoDriver(f"{file} is no file.", hint="Name each file; a folder's are named by  FOLDER/*")
    below = file.parts[:-1][::-1]
    module = re.fullmatch(r"(.+\.ko)(?:\.(xz|zst|gz))?", file.name)
    if "firmware" in below:                # by the name that the kernel asks for
        path, what = "/".join(("firmware", *below[:below.index("firmware")][::-1], file.name)), "firmware"
    elif module:
        path, what = file.name, f"a driver for Linux {_release(file, module[2] or '')}"
    elif file.name.endswith(".deb"):
        with file.open("rb") as opened:
            if opened.read(8) != b"!<arch>\n":
                raise NoDriver(f"{file} is no Debian package.")
        path, what = file.name, "a Debian package"
    else:
        path, what = f"firmware/{file.name}", "firmware"
    if not CARRIED_PATH.fullmatch(f"{DRIVERS}/{path}"):
        raise NoDriver(f"{path} has a character in its name that an ASR disk cannot hold.",
                       hint="Use letters, digits and . _ - + , ~ % @ alone.")
    return f"{DRIVERS}/{path}", what


def _release(file: Path, packing: str) -> str:
    """Of the kernel that a module was made for. Raises NoDriver for what is no module."""
    try:
        data = file.read_bytes()
        data = _PACKED[packing](data) if packing else data
    except (EOFError, OSError, lzma.LZMAError, zstandard.ZstdError) as error:
        raise NoDriver(f"{file} cannot be unpacked: {error}") from None
    said = re.search(rb"\0vermagic=([\w.+~-]+) ", data)
    if not data.startswith(b"\x7fELF") or not said:
        raise NoDriver(f"{file} is no kernel module.")
    return said[1].decode()


def _home(path: str) -> Path:
    return ROOT / MACHINE / path


def _name(path: str) -> str:
    return path.removeprefix(f"{DRIVERS}/")


# In the recovery environment

def gathered(set: AsrSet) -> Path:
    """Where gather() brings a set's files, by their paths."""
    return _GATHERED / set.id


def gather(disk: AsrDisk, folder: str) -> list[Difference]:
    """Brings the set's files of a folder here: from the ASR disk, and what it lacks from our backup, if at hand.

    What is already there stays; what can't be had is said.
    """
    here = gathered(disk.set)
    missing = [file for file in disk.set.files_in(folder) if not is_whole(here / file.path, file)]
    for file in missing if disk.device else ():
        (here / file.path).parent.mkdir(parents=True, exist_ok=True)
        try:
            read_file(disk.device, f"{disk.folder}/{file.path}".lstrip("/"), here / file.path, file.size)
        except (CommandFailed, OSError) as error:
            log(f"{file.path} is not on the ASR disk: {error}")
    missing = [file for file in missing if not is_whole(here / file.path, file)]
    if missing and not disk.set.provider:
        try:
            _extract(missing, Path(find_backup(disk.set).path), here)
        except AsrError as error:
            log(f"The backup's copies of {len(missing)} files: {error}")
        finally:
            forget()
    lacking = [file for file in missing if not is_whole(here / file.path, file)]
    for file in lacking:
        with suppress(FileNotFoundError):      # half of it, or another
            (here / file.path).unlink()
    return [Difference(_name(file.path), "It is not as recorded, or missing, on the ASR disk, and the backup's copy is "
                                         "not at hand.") for file in lacking]


def _extract(files: Iterable[CarriedFile], backup: Path, goal: Path) -> None:
    """What a backup has of the files. Raises BackupNotFound, DamagedBackup."""
    paths = {f"{MACHINE}/{file.path}": file.path for file in files}
    STATE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=STATE) as folder:
        for event in restore_backup(backup, Path(folder), only=list(paths), anywhere=True) if paths else ():
            if isinstance(event, Difference):
                log(f"{event.what}: {event.why}")
        for inner, path in paths.items():
            if Path(folder, inner).is_file():
                (goal / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.move(Path(folder, inner), goal / path)


def is_whole(path: Path, file: CarriedFile) -> bool:
    """Whether a path is a file that is as it was recorded."""
    try:
        status = path.lstat()          # a stranger's backup may have a link there
        return stat.S_ISREG(status.st_mode) and status.st_size == file.size and _digest(path) == file.sha256
    except OSError:
        return False


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
