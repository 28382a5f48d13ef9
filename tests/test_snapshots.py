"""Snapshots hold a file system still while it is read, and are gone afterwards, in a kernel that has them."""

import json
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from bootenv import snapshot
from bootenv.backup import Source
from bootenv.errors import CommandFailed
from bootenv.events import Difference
from bootenv.snapshot import FULL, LIVE, held_still
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
    ("older", {"file": "before"}),
    ("read-only", {"file": "before", "fixed/file": "fixed", **INNER}),
    ("two", {"file": "before", "home/file": "before", **{f"home/{path}": text for path, text in INNER.items()}}),
])
def test_a_snapshot_holds_what_was_there_before(outcome, case, files):
    assert outcome[case]["files"] == files
    assert not [line for line in outcome[case]["told"] if LIVE in line], outcome[case]["log"]


@pytest.mark.parametrize(("case", "told", "files"), [
    ("no room", f"/: {LIVE}", {"file": "after"}),
    ("mixed", f"/srv: {LIVE}", {"file": "before", "srv/file": "after"}),
    ("half", f"/: {LIVE}", {"file": "after", "fixed/file": "fixed", "fixed/within/file": "fixed",
                            **dict.fromkeys(INNER, "after")}),
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


# Without a kernel: what is done in which order

BTRFS = json.dumps({"filesystems": [{"source": "/dev/vda1", "fstype": "btrfs", "fsroot": "/"}]})
EXT4 = json.dumps({"filesystems": [{"source": "/dev/vg/root", "fstype": "ext4", "fsroot": "/"}]})
SUBVOLUME = "ID 257 gen 8 top level 5 parent_uuid -                                    path {}\n"


@pytest.fixture
def machine(monkeypatch):
    """What its tools answer, by words of their command lines; and in `done` these lines, and what was removed."""
    machine = SimpleNamespace(answers={}, done=[], told=[])

    def run(argv, *, check=True, limit=None):
        line = " ".join(argv)
        machine.done.append(line)
        answer = next((answer for words, answer in machine.answers.items() if words in line), "")
        if isinstance(answer, Exception):
            raise answer
        return answer() if callable(answer) else answer

    @contextmanager
    def afterwards(script, limit=None):
        try:
            yield
        finally:
            machine.done.append(f"afterwards: {script}")

    monkeypatch.setattr(snapshot, "run", run)
    monkeypatch.setattr(snapshot, "afterwards", afterwards)
    monkeypatch.setattr(snapshot, "ROOT", Path("/no/hooks"))
    return machine


def read(machine):
    """What is read, and what had been done by then."""
    with held_still([Source("/sources/0", "")], machine.told) as found:
        return [(str(source.directory), source.prefix) for source in found], list(machine.done)


def test_snapshots_of_a_part_are_gone_before_the_whole_is_read_live(machine):
    machine.answers = {"findmnt": BTRFS, "list -o -q /sources/0/inner": "",
                       "list -o -q /sources/0": SUBVOLUME.format("inner"), "property get": "ro=false\n",
                       "sh /sources/0/inner": CommandFailed("btrfs failed: No space left on device")}
    found, done = read(machine)
    assert found == [("/sources/0", "")]
    assert machine.told == [Difference("/", LIVE)]
    assert [line for line in done if "afterwards" in line and "/sources/0/.asr-snapshot" in line]
    assert machine.done == done, "nothing is left to be removed"


def test_a_read_only_subvolume_is_read_as_it_is(machine):
    machine.answers = {"findmnt": BTRFS, "list -o -q /sources/0/fixed": "",
                       "get -t subvol /sources/0/fixed": "ro=true\n",
                       "list -o -q /sources/0": SUBVOLUME.format("fixed"), "property get": "ro=false\n"}
    found, done = read(machine)
    assert found == [("/sources/0/.asr-snapshot", ""), ("/sources/0/fixed", "fixed")]
    assert not [line for line in done if "/fixed/.asr-snapshot" in line]
    assert machine.told == []


def test_what_a_power_cut_left_takes_no_room_from_the_next_snapshot(machine):
    def volume():
        left = not any("lvremove --yes vg/asr-snapshot-0" in line for line in machine.done)
        return json.dumps({"report": [{"lv": [{"vg_name": "vg", "lv_name": "root", "lv_size": f"{2**30}",
                                               "vg_free": "0" if left else f"{2**30}", "pool_lv": ""}]}]})

    machine.answers = {"findmnt": EXT4, "vg_free": volume, "lvs --noheadings --options lv_name vg":
                       "  asr-snapshot-0\n  asr-snapshot-x\n  root\n"}
    found, done = read(machine)
    assert found == [("/run/asr/snapshots/0", "")]
    assert machine.told == []
    assert "lvcreate --yes --snapshot --name asr-snapshot-0 --size 204m vg/root" in done
    assert not [line for line in done if "asr-snapshot-x" in line]
