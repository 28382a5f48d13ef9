"""The crew of worker processes."""

import time

import pytest

from bootenv import crew
from bootenv.crew import Crew

_SECONDS = 0.05                # of a task


def wait():
    def handle(_):
        time.sleep(_SECONDS)
        yield ("waited",), b""
    return handle


def compute():
    def handle(_):
        end = time.process_time() + _SECONDS
        while time.process_time() < end:
            pass
        yield ("computed",), b""
    return handle


@pytest.mark.parametrize(("work", "grows"), [("wait", True), ("compute", False)])
def test_more_workers_come_where_those_that_are_there_wait(work, grows):
    """Time in a queue for a core counts as work: the tests share the machine."""
    with Crew(f"{__name__}:{work}", ()) as members:
        before = len(members)
        for _ in members.run(("task",) for _ in range(20 * before)):
            members.grow()
        assert len(members) == (crew.MOST if grows else before)


def test_a_number_that_was_asked_for_stays():
    with Crew(f"{__name__}:wait", (), 1) as members:
        for _ in members.run(("task",) for _ in range(12)):
            members.grow()
        assert len(members) == 1
