"""`asr check`: the verdict on recorded machines, as people and programs get it."""

import json
import os

import pytest

from bootenv.check import LOSS, NOT_RECOVERABLE, RECOVERABLE, Finding, verdict
from console.__main__ import main
from tests.conftest import MACHINES
from tests.record import replayed


@pytest.mark.parametrize(("machine", "status"), [
    ("gpt-odd-bookworm", 0),
    ("lvm-bookworm", 1),               # it has a snapshot
    ("multipath-bookworm", 2),
])
def test_the_exit_status_is_the_verdict(machine, status, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with replayed(MACHINES / machine):
        assert main(["check"]) == status
        text = capsys.readouterr().out
        assert main(["check", "--json"]) == status
    assert text == (MACHINES / machine / "check.txt").read_text()
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == (RECOVERABLE, LOSS, NOT_RECOVERABLE)[status]
    assert len(said["findings"]) == len(text.splitlines()) - 1


def test_the_worst_finding_decides():
    findings = [Finding("a", "", LOSS), Finding("b", ""), Finding("c", "", NOT_RECOVERABLE)]
    assert verdict(findings) == NOT_RECOVERABLE
    assert verdict(findings[:2]) == LOSS
    assert verdict(findings[1:2]) == RECOVERABLE


def test_a_machine_of_which_nothing_is_known_is_not_called_recoverable():
    assert verdict(()) == NOT_RECOVERABLE


def test_whoever_is_not_root_is_told_so_and_gets_no_verdict(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["check"]) == 3
    assert "needs root" in capsys.readouterr().err
