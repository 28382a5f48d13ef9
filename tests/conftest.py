"""What all tests share: no real command below the level of disks, a log that goes nowhere, recorded machines."""

import os
from pathlib import Path

import pytest

import bootenv.run

MACHINES = Path(__file__).parent / "machines"


def machines() -> list[Path]:
    return sorted(path for path in MACHINES.iterdir() if path.is_dir())


@pytest.fixture(autouse=True)
def no_real_commands(request, monkeypatch, tmp_path):
    """Only tests marked disks or vm may change more than memory."""
    monkeypatch.setattr(bootenv.run, "LOG", tmp_path / "setup.log")
    if {"disks", "vm"} & {mark.name for mark in request.node.iter_markers()}:
        return

    def refuse(argv, **_):
        raise AssertionError(f"a test of values started {argv}")

    monkeypatch.setattr(bootenv.run.subprocess, "run", refuse)


@pytest.fixture
def golden(request):
    """Compares text with a file; ASR_UPDATE_GOLDENS=1 writes the file instead, to be read before it is committed."""
    def check(path: Path, text: str) -> None:
        if os.environ.get("ASR_UPDATE_GOLDENS"):
            path.write_text(text)
        assert text == path.read_text()

    return check
