"""What all tests share: no real command below the level of disks, a log that goes nowhere, recorded machines."""

import fcntl
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import bootenv.run

MACHINES = Path(__file__).parent / "machines"
REPOSITORY = Path(__file__).parents[1]


@pytest.hookimpl(trylast=True)         # when those that are not wanted are gone
def pytest_collection_modifyitems(items):
    """The two machines that take longest begin at once, one on either processor: each gets a half of the list first."""
    longest = [item for item in items if item.name.startswith("test_a_lost_machine_comes_back[")]
    if len(longest) == 2:
        rest = [item for item in items if item not in longest]
        middle = len(items) // 2 - 1
        items[:] = [longest[0], *rest[:middle], longest[1], *rest[middle:]]


def machines() -> list[Path]:
    return sorted(path for path in MACHINES.iterdir() if path.is_dir())


@pytest.fixture(autouse=True)
def no_real_commands(request, monkeypatch, tmp_path):
    """Only tests marked disks or vm may change more than memory."""
    monkeypatch.setattr(bootenv.run, "LOG", tmp_path / "setup.log")
    if {"disks", "vm"} & {mark.name for mark in request.node.iter_markers()}:
        return

    def refuse(argv, *_, **__):
        raise AssertionError(f"a test of values started {argv}")

    monkeypatch.setattr(bootenv.run, "_to_its_end", refuse)
    monkeypatch.setattr(subprocess, "run", refuse)


@pytest.fixture
def golden(request):
    """Compares text with a file; ASR_UPDATE_GOLDENS=1 writes the file instead, to be read before it is committed."""
    def check(path: Path, text: str) -> None:
        if os.environ.get("ASR_UPDATE_GOLDENS"):
            path.write_text(text)
        assert text == path.read_text()

    return check


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], object]], Path]:
    """Makes a file or folder of this name, once for all workers of a run."""
    shared = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:            # workers of one run share the directory above their own
        shared = shared.parent

    def made(name: str, make: Callable[[Path], object]) -> Path:
        with (shared / f"{name}.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not (shared / f"{name}.made").exists():
                make(shared / name)
                (shared / f"{name}.made").touch()
        return shared / name

    return made


@pytest.fixture(scope="session")
def iso(once) -> Path:
    """The recovery medium, built once in a run (or the one that ASR_ISO names)."""
    if given := os.environ.get("ASR_ISO"):
        return Path(given)
    return once("asr-recovery.iso", lambda path: subprocess.run(
        (sys.executable, REPOSITORY / "build_iso.py", "--output", path), check=True, stdin=subprocess.DEVNULL))


@pytest.fixture(scope="session")
def live_tree(iso, once) -> Path:
    """The tree of the medium's live system: its tools, to be run on this computer."""
    def unpack(path: Path) -> None:
        subprocess.run(("bsdtar", "-x", "-f", iso, "-C", path.parent, "live/root.squashfs"), check=True)
        subprocess.run(("unsquashfs", "-quiet", "-no-progress", "-dest", path, path.parent / "live/root.squashfs"),
                       check=True)
        (path.parent / "live/root.squashfs").unlink()

    return once("live-tree", unpack)
