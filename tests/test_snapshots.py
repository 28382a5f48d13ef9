"""Snapshots hold a file system still while it is read, and are gone afterwards, in a kernel that has them."""

import pytest

from bootenv.snapshot import FULL, LIVE
from tests.uml import run_in_uml

pytestmark = [pytest.mark.disks, pytest.mark.timeout(300)]
INNER = {"inner/file": "before", "inner/innermost/file": "before"}


@pytest.fixture(scope="module")
def outcome(tmp_path_factory):
    folder = tmp_path_factory.mktemp("snapshots")
    disks = [folder / "lvm.img", folder / "btrfs.img"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(600 * 2**20)
    return run_in_uml("tests.on_snapshots", "-", disks, seconds=280)


@pytest.mark.parametrize(("case", "files"), [
    ("xfs", {"file": "before"}),
    ("two", {"file": "before", "home/file": "before", **{f"home/{path}": text for path, text in INNER.items()}}),
])
def test_a_snapshot_holds_what_was_there_before(outcome, case, files):
    assert outcome[case]["files"] == files
    assert not [line for line in outcome[case]["told"] if LIVE in line], outcome[case]["log"]


@pytest.mark.parametrize(("case", "told", "files"), [
    ("no room", f"/: {LIVE}", {"file": "after"}),
    ("mixed", f"/srv: {LIVE}", {"file": "before", "srv/file": "after"}),
])
def test_what_has_no_snapshot_is_read_live_and_the_report_says_so(outcome, case, told, files):
    assert told in outcome[case]["told"]
    assert outcome[case]["files"] == files


def test_a_snapshot_that_ran_full_is_told(outcome):
    assert f"/: {FULL}" in outcome["overrun"]["told"]


def test_no_snapshot_is_left(outcome):
    assert {name: case["left"] for name, case in outcome.items() if case["left"]} == {}
    assert outcome["killed"]["held"], "there was nothing to be removed"


def test_a_snapshot_leaves_no_trace_in_its_directory(outcome):
    before, during, after = outcome["two"]["times"]
    assert len(before) == 3
    assert before == during == after


def test_hooks_run_before_and_after_also_when_the_program_is_killed(outcome):
    for case in outcome.values():
        called = [line.split()[:2] for line in case["hooks"]]
        assert called == [["/etc/asr/hooks.d/10-first", "before"], ["/etc/asr/hooks.d/20-fails", "before"],
                          ["/etc/asr/hooks.d/10-first", "after"], ["/etc/asr/hooks.d/20-fails", "after"]]
    failed = [line for line in outcome["two"]["told"] if "It failed" in line]
    assert failed == ["/etc/asr/hooks.d/20-fails: It failed before the backup; the log has what it said.",
                      "/etc/asr/hooks.d: It failed after the backup; the log has what it said."]


def test_databases_go_on_as_soon_as_every_snapshot_is_there(outcome):
    first_after = next(line for line in outcome["two"]["hooks"] if " after" in line)
    assert "held" in first_after
    assert "asr-snapshot" in first_after
    last_after = next(line for line in outcome["mixed"]["hooks"] if " after" in line)
    assert "asr-snapshot" not in last_after or "held" not in last_after
