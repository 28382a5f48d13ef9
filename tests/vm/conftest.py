"""What tests with virtual machines start from: the medium, sample machines, disks that go when the test ends."""

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bootenv.rehearsal import MiB, make_disk
from tests.vm import machines

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def iso(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The recovery medium, built once in a run (or the one that ASR_ISO names)."""
    if given := os.environ.get("ASR_ISO"):
        return Path(given)
    # Workers of one run share the directory above their own.
    shared = tmp_path_factory.getbasetemp().parent if "PYTEST_XDIST_WORKER" in os.environ else (
        tmp_path_factory.getbasetemp())
    built = shared / "asr-recovery.iso"
    with (shared / "iso.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.exists():
            subprocess.run((sys.executable, REPOSITORY / "build_iso.py", "--output", built), check=True,
                           stdin=subprocess.DEVNULL)
    return built


@pytest.fixture
def disks() -> Iterator[Path]:
    """A directory for disk images, which are large: it goes when the test ends."""
    with tempfile.TemporaryDirectory(dir=machines.cache(), prefix="test-") as directory:
        yield Path(directory)


@pytest.fixture
def sample(disks: Path) -> Callable[[str], Path]:
    """A sample machine's disk by its kind, to be used up."""
    return lambda kind: machines.copy(machines.sample_machine(kind), disks / f"{kind}.img")


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
