"""Work in a process of its own: what it says arrives whole, and a console that crashes does it no harm."""

import subprocess
import sys
import time

import pytest

from bootenv import apart
from bootenv.apart import Apart
from bootenv.errors import CommandFailed, DamagedBackup
from bootenv.events import Difference, Progress

HERE = sys.modules[__name__]


# The works. The process that does one imports it by name from here.

def three(name):
    for n in range(3):
        yield Progress(f"{name} {n}", n, 3)
    return f"{name} has ended"


def slow(seconds):
    yield Progress("It has begun.")
    time.sleep(seconds)
    yield Difference("a file", "It was damaged.")
    return "slow"


def failing():
    yield Progress("It has begun.")
    raise DamagedBackup("Nothing can be read.", hint="Use another.", untouched="No file was restored.")


def flood():
    for n in range(20_000):
        yield Progress("Restoring files...", n, 20_000)
        if n % 1000 == 0:
            yield Difference(f"file {n}", "It was damaged.")


@pytest.fixture(autouse=True)
def journal(tmp_path, monkeypatch):
    monkeypatch.setattr(apart, "JOURNAL", tmp_path / "work")
    return tmp_path / "work"


def taken(events):
    """All events and what the generator returns."""
    seen = []
    while True:
        try:
            seen.append(next(events))
        except StopIteration as end:
            return seen, end.value


def test_what_work_says_and_returns_arrives():
    events, end = taken(Apart(HERE, "three").three("work"))
    assert [event.status for event in events] == ["work 0", "work 1", "work 2"]
    assert end == "work has ended"


def test_everything_else_of_the_story_is_as_it_was():
    assert Apart(HERE, "three").taken is taken


def test_a_failure_arrives_with_all_its_sentences_and_is_forgotten():
    story = Apart(HERE, "failing")
    with pytest.raises(DamagedBackup) as failure:
        taken(story.failing())
    assert (failure.value.message, failure.value.hint, failure.value.untouched) == (
        "Nothing can be read.", "Use another.", "No file was restored.")
    assert story.under_way() is None


def test_no_difference_is_lost_in_a_flood_of_progress():
    events, _ = taken(Apart(HERE, "flood").flood())
    assert [event.what for event in events if isinstance(event, Difference)] == [
        f"file {n}" for n in range(0, 20_000, 1000)]
    assert len(events) < 200


def test_work_goes_on_when_its_console_is_killed_and_the_next_one_sees_all_of_it(journal):
    console = subprocess.Popen((sys.executable, "-c", f"""
import sys
from pathlib import Path
from bootenv import apart
from tests import test_apart
apart.JOURNAL = Path({str(journal)!r})
for event in apart.Apart(test_apart, "slow").slow(3):
    print(event.status, flush=True)
"""), stdout=subprocess.PIPE, text=True)
    assert console.stdout.readline() == "It has begun.\n"
    console.kill()
    console.wait()
    story = Apart(HERE, "slow")
    for _ in range(2):                 # while it works, and again when it has ended
        events, end = taken(story.under_way())
        assert [type(event) for event in events] == [Progress, Difference]
        assert end == "slow"


def test_work_whose_process_is_gone_is_no_success(monkeypatch):
    processes = []
    start = subprocess.Popen
    monkeypatch.setattr(subprocess, "Popen", lambda *a, **k: processes.append(start(*a, **k)) or processes[-1])
    events = Apart(HERE, "slow").slow(60)
    assert next(events).status == "It has begun."
    processes[0].kill()
    with pytest.raises(CommandFailed, match="before its time"):
        next(events)
    assert Apart(HERE, "slow").under_way() is None
