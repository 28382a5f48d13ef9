"""What tests with virtual machines start from: the medium, sample machines, disks that go when the test ends."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import build_iso
from bootenv.rehearsal import Machine, MiB, make_disk
from tests.vm import machines


@pytest.fixture
def disks() -> Iterator[Path]:
    """A directory for disk images, which are large: it goes when the test ends."""
    with tempfile.TemporaryDirectory(dir=machines.cache(), prefix="test-") as directory:
        yield Path(directory)


@pytest.fixture
def sample(disks: Path) -> Callable[[str], Machine]:
    """A sample machine by its kind, to be used up."""
    return lambda kind: machines.copy(machines.sample_machine(kind), disks / kind)


@pytest.fixture
def backup_disk(disks: Path) -> Path:
    """A disk to keep backups on: a file system without a partition table, labelled BACKUP."""
    image = make_disk(disks / "backup.img", 1024 * MiB)
    machines.run("mkfs.ext4", "-q", "-F", "-L", "BACKUP", str(image))
    return image


@pytest.fixture
def floppy(disks: Path) -> Path:
    """A blank formatted 1.44 MB floppy."""
    machines.run("mkfs.fat", "-C", "-F", "12", str(disks / "floppy.img"), "1440")
    return disks / "floppy.img"


@pytest.fixture
def package(once: Callable[[str, Callable[[Path], object]], Path]) -> Path:
    """The .deb of the program."""
    folder = once("asr.deb", lambda path: build_iso.deb(path, path.with_suffix(".cache")))
    return next(folder.glob("*.deb"))
