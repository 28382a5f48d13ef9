"""Drivers and firmware from a second disk (F6), or of the set: loaded now, and carried into the minimal OS.

On the disk they lie at its top or in a folder `drivers`: kernel modules (.ko, also compressed), Debian packages, and
firmware in a folder `firmware`, by the names that the kernel asks for.
"""

import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import AsrError, CommandFailed, Unsupported
from .run import STATE, log, run
from .volumes import every_volume, forget

TAKEN = STATE / "drivers"              # modules/ and firmware/: what the initramfs of the minimal OS gets
UNPACK = {".xz": "xz", ".zst": "zstd", ".gz": "gzip"}
PCI = Path("/sys/bus/pci")

_FIRMWARE = ("lib/firmware", "usr/lib/firmware")       # in a package
_MODULES = ("lib/modules", "usr/lib/modules")
_REJECTED = "Key was rejected"         # EKEYREJECTED, in libc's words


@dataclass(frozen=True)
class Loaded:
    """One file, and what became of it."""

    name: str
    trouble: str = ""                  # why it is of no use; "" for one that is in use now


def release() -> str:
    """Of the kernel that drivers must be made for."""
    return os.uname().release


def load_drivers() -> list[Loaded]:
    """Takes what there is on any volume, loads it and looks at the hardware again. Raises Unsupported for nothing."""
    taken: list[Loaded] = []
    _settle()                          # the disk may have been connected a moment ago
    try:
        for volume in every_volume():
            for folder in (volume, *_named(volume, "drivers")):
                taken += _from_folder(folder)
    finally:
        forget()
    if not taken:
        raise Unsupported(f"No disk has drivers or firmware: no .ko for Linux {release()}, no .deb and no folder named "
                          "firmware, neither at its top nor in a folder named drivers.",
                          hint="Insert the disk with the drivers and press ENTER.")
    return _in_use(taken)


def load_from(folder: Path) -> list[Loaded]:
    """The same from one folder; nothing of use in it is no error."""
    taken = list(_from_folder(folder))
    return _in_use(taken) if taken else []


def _from_folder(folder: Path) -> Iterator[Loaded]:
    files = sorted(folder.iterdir())
    yield from _modules(files)
    for firmware in _named(folder, "firmware"):
        yield from _firmware(firmware)
    for package in (path for path in files if path.suffix.lower() == ".deb"):
        with tempfile.TemporaryDirectory(dir=STATE) as tree:
            try:
                run(("dpkg-deb", "--extract", str(package), tree))
            except CommandFailed as error:
                yield Loaded(package.name, str(error))
                continue
            found = [*_modules(sorted(m for path in _MODULES for m in Path(tree, path, release()).rglob("*.ko*"))),
                     *(f for path in _FIRMWARE for f in _firmware(Path(tree, path)))]
            yield from found or [Loaded(package.name, f"It has neither firmware nor drivers for Linux {release()}.")]


def _named(folder: Path, name: str) -> list[Path]:
    """A FAT volume may have a name in capitals."""
    return [path for path in folder.iterdir() if path.name.lower() == name and path.is_dir()]


def _modules(paths: Iterable[Path]) -> Iterator[Loaded]:
    for path in paths:
        name = path.name.lower()
        packed = next((suffix for suffix in UNPACK if name.endswith(f".ko{suffix}")), "")
        if not packed and not name.endswith(".ko"):
            continue
        name = name.removesuffix(packed)
        made_for = run(("modinfo", "--field=vermagic", str(path)), check=False).split()[:1]
        if made_for != [release()]:
            yield Loaded(name, f"It is for Linux {''.join(made_for) or 'of an unknown version'}; this is {release()}.")
            continue
        goal = TAKEN / "modules" / f"{name}{packed}"
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, goal)
        if packed:
            # busybox, which loads it in the minimal OS, knows fewer compressions.
            try:
                run((UNPACK[packed], "--decompress", "--force", "--quiet", str(goal)))
            except CommandFailed as error:
                yield Loaded(name, str(error))
                continue
            finally:
                goal.unlink(missing_ok=True)
        yield Loaded(name)


def _firmware(folder: Path) -> Iterator[Loaded]:
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        goal = TAKEN / "firmware" / path.relative_to(folder)
        goal.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, goal)
        yield Loaded(str(path.relative_to(folder)))


def _in_use(taken: list[Loaded]) -> list[Loaded]:
    """Firmware comes first: a driver asks for it once."""
    modules = Path("/usr/lib/modules", release(), "updates")
    for source, goal in ((TAKEN / "firmware", Path("/usr/lib/firmware/updates")), (TAKEN / "modules", modules)):
        if source.is_dir():
            shutil.copytree(source, goal, dirs_exist_ok=True)
    run(("depmod",))
    result = []
    for file in taken:
        if file.name.endswith(".ko") and not file.trouble:
            try:
                run(("modprobe", "--", file.name.removesuffix(".ko")))
            except CommandFailed as error:
                why = "Secure Boot is on, and it is not signed with a key that this computer trusts."
                file = Loaded(file.name, why if _REJECTED in str(error) else str(error))
        result.append(file)
        log(f"Driver: {file.name}: {file.trouble or 'in use'}")
    _probe_again()
    _settle()
    return result


def _settle() -> None:
    with suppress(AsrError):
        run(("udevadm", "settle", "--timeout=60"))


def _probe_again() -> None:
    """Devices whose driver has given up, for want of firmware, get another chance."""
    for device in PCI.glob("devices/*"):
        if not (device / "driver").exists():
            with suppress(OSError):
                (PCI / "drivers_probe").write_text(device.name)


def carry(initramfs: Path) -> None:
    """Has an initramfs bring what was taken: the disk that it must find may need it."""
    if TAKEN.is_dir():
        # The kernel unpacks archives that follow one another; initramfs-init looks into /drivers.
        run(("sh", "-c", 'cd "$1" && find drivers | busybox cpio -o -H newc 2>/dev/null | zstd --quiet >>"$2"',
             "sh", str(TAKEN.parent), str(initramfs)))
