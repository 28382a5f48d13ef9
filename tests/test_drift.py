"""Is the newest set still this computer's? On recorded machines, changed in one thing at a time."""

import json
import os
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from bootenv import carried, commands, drift
from bootenv.drift import (
    MOTD,
    age_drift,
    current_part,
    layout_drift,
    notice,
    package_drift,
    package_lines,
    parse_packages,
    remind,
)
from bootenv.events import Difference
from bootenv.layout import Mount
from bootenv.probe import probe
from bootenv.sif import CarriedFile, new_id, read_sif, write_sif
from console.__main__ import main
from tests.conftest import MACHINES, machines
from tests.record import replayed

RECORDED = [machine for machine in machines() if (machine / "asr.sif").exists()]
LVM = MACHINES / "lvm-bookworm"


def now_and_then(machine):
    with replayed(machine):
        everything = probe()
    recorded = read_sif((machine / "asr.sif").read_bytes()).layout
    return recorded, current_part(everything, recorded)


@pytest.mark.parametrize("machine", RECORDED, ids=lambda machine: machine.name)
def test_a_machine_is_what_its_own_set_says(machine):
    assert list(layout_drift(*now_and_then(machine))) == []


def changed(layout, kind, number=0, **fields):
    records = getattr(layout, kind)
    return replace(layout, **{kind: (*records[:number], replace(records[number], **fields), *records[number + 1:])})


@pytest.mark.parametrize(("change", "said"), [
    (lambda now: changed(now, "filesystems", label="other"), "This file system has changed: label"),
    (lambda now: changed(now, "filesystems", settings={**now.filesystems[0].settings, "features": ("new",)}),
     "has changed: settings (features"),
    (lambda now: changed(now, "partitions", size=now.partitions[0].size + 2**20), "has changed: size"),
    (lambda now: changed(now, "mounts", options="noatime"), "This mount has changed: options"),
    (lambda now: replace(now, mounts=(*now.mounts, Mount("x", "/new"))), "This mount is new: it is not in the set."),
    (lambda now: replace(now, logical_volumes=now.logical_volumes[1:]), "is in the set, but not there any more"),
    (lambda now: changed(now, "groups", tags=("moved",)), "This volume group has changed: tags"),
])
def test_each_kind_of_change_is_named(change, said):
    then, today = now_and_then(LVM)
    assert any(said in reason.why for reason in layout_drift(then, change(today)))


@pytest.mark.parametrize("change", [
    lambda now: changed(now, "disks", path="/dev/sdz"),
    lambda now: changed(now, "mounts", modified=5, mode=0o700, recovery=True),
])
def test_what_only_moved_is_no_change(change):
    then, today = now_and_then(LVM)
    assert change(today) != today
    assert list(layout_drift(then, change(today))) == []


THEN = {"linux-image-6.1:amd64": "6.1.1", "bash:amd64": "5.2", "grub-pc:amd64": "2.06", "vim:amd64": "9"}


def test_a_kernel_and_a_boot_loader_count_in_any_version():
    now = THEN | {"linux-image-6.2:amd64": "6.2.0", "grub-pc:amd64": "2.12"}
    assert list(package_drift(THEN, now)) == [
        Difference("grub-pc:amd64", "2.06 -> 2.12"), Difference("linux-image-6.2:amd64", "not installed -> 6.2.0")]


def test_of_other_packages_what_came_and_went_counts_and_updates_do_not():
    assert list(package_drift(THEN, THEN | {"bash:amd64": "5.3"})) == []
    now = {name: version for name, version in THEN.items() if name != "vim:amd64"}
    now |= {f"game{n}:amd64": "1" for n in range(6)}
    assert list(package_drift(THEN, now)) == [
        Difference("packages", "installed since: game0:amd64, game1:amd64, game2:amd64, game3:amd64 and 2 more"),
        Difference("packages", "removed since: vim:amd64")]


def test_packages_are_not_compared_with_nothing():
    assert list(package_drift({}, THEN)) == list(package_drift(THEN, {})) == []


def test_packages_are_kept_and_read_also_where_several_versions_are_installed():
    packages = parse_packages(["kernel-core.x86_64 6.2", "kernel-core.x86_64 6.1", "bash.x86_64 5", ""])
    assert packages == {"kernel-core.x86_64": "6.1 6.2", "bash.x86_64": "5"}
    assert parse_packages(package_lines(packages).splitlines()) == packages
    assert [reason.what for reason in package_drift({"kernel-core.x86_64": "6.1"}, packages)] == [
        "kernel-core.x86_64", "packages"]


def test_an_old_set_is_due():
    created = datetime(2026, 3, 1, tzinfo=UTC)
    assert list(age_drift(created, created + timedelta(days=30), timedelta(days=30))) == []
    [reason] = age_drift(created, created + timedelta(days=31), timedelta(days=30))
    assert reason.why == "The set is 31 days old; after 30 it is due again."


@pytest.fixture
def machine(monkeypatch, tmp_path):
    """The recorded machine lvm-bookworm, which has a set."""
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    for module in (drift, carried, commands):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(drift, "running_kernel", lambda: "6.1")
    monkeypatch.setattr(drift, "installed_packages", lambda: THEN)
    repair = tmp_path / drift.REPAIR
    repair.parent.mkdir(parents=True)
    recorded = read_sif((LVM / "asr.sif").read_bytes())
    id = new_id()
    repair.write_bytes(write_sif(replace(recorded, id=id, kernel="6.1", created=drift.now())))
    (tmp_path / drift.PACKAGES.format(id=id)).write_text(package_lines(THEN))
    with replayed(LVM):
        yield tmp_path


def test_the_exit_status_says_whether_a_new_set_is_due(machine, monkeypatch, capsys):
    assert main(["check", "--drift"]) == 0
    assert capsys.readouterr().out == "The newest ASR set is still this computer's.\n"
    monkeypatch.setattr(drift, "running_kernel", lambda: "6.2")
    assert main(["check", "--drift"]) == 1
    assert capsys.readouterr().out == ("kernel: The set was made with 6.1; 6.2 runs now.\n"
                                       "A new ASR set is due: asr prepare\n")
    assert main(["check", "--drift", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)[0]["what"] == "kernel"


def test_drivers_and_commands_that_the_set_does_not_have_make_a_new_one_due(machine, tmp_path, capsys):
    (machine / "etc/asr").mkdir(parents=True)
    (machine / commands.LIST).write_text("[[commands]]\ntitle = 't'\nargv = ['true']\nwhen = 'after'\n")
    (machine / "var/lib/asr/drivers").mkdir()
    (machine / "var/lib/asr/drivers/x.deb").write_text("x")
    assert main(["check", "--drift"]) == 1
    said = capsys.readouterr().out
    assert "drivers: Those that asr add-driver keeps are not those that the set has.\n" in said
    assert "commands: /etc/asr/commands.toml is not what it was when the set was made.\n" in said
    set = read_sif((machine / drift.REPAIR).read_bytes())
    (machine / drift.REPAIR).write_bytes(write_sif(replace(
        set, files=(*carried.kept(), CarriedFile("providers/x", 1, "0" * 64)), commands=commands.read_commands())))
    assert main(["check", "--drift"]) == 0
    (machine / commands.LIST).write_text("[[")
    assert main(["check", "--drift"]) == 1
    assert "commands: /etc/asr/commands.toml cannot be used" in capsys.readouterr().out


def test_packages_are_those_of_the_newest_set_and_of_no_attempt_that_failed(machine, monkeypatch, capsys):
    monkeypatch.setattr(drift, "installed_packages", lambda: THEN | {"grub-pc:amd64": "2.12"})
    (machine / drift.PACKAGES.format(id=new_id())).write_text(package_lines(THEN | {"grub-pc:amd64": "2.12"}))
    assert main(["check", "--drift", "--packages"]) == 1
    assert capsys.readouterr().out == "grub-pc:amd64: 2.06 -> 2.12\nA new ASR set is due: asr prepare\n"


def test_without_a_set_or_with_a_damaged_one_a_new_one_is_due(machine, capsys):
    (machine / drift.REPAIR).write_bytes(b"damaged")
    assert main(["check", "--drift"]) == 1
    assert "ASR.SIF is damaged" in capsys.readouterr().out
    (machine / drift.REPAIR).unlink()
    assert main(["check", "--drift", "--packages"]) == 0
    assert capsys.readouterr().out == "", "every run of apt would speak of a set that nobody wanted"
    assert main(["check", "--drift"]) == 1
    assert "No ASR set of this computer was prepared yet." in capsys.readouterr().out


def test_the_reminder_stays_at_login_until_there_is_no_reason(machine, monkeypatch, capsys):
    motd = machine / MOTD
    monkeypatch.setattr(drift, "running_kernel", lambda: "6.2")
    main(["check", "--drift"])
    assert not motd.exists(), "it was not asked to remind"
    main(["check", "--drift", "--remind"])
    assert motd.read_text() == (
        "ASR: a new ASR set of this computer is due. kernel: The set was made with 6.1; 6.2 runs now.\n"
        "     asr check --drift says why; asr prepare makes a new set.\n")
    main(["check", "--drift", "--packages", "--remind"])       # these are as they were, the kernel is not
    assert motd.exists()
    monkeypatch.setattr(drift, "running_kernel", lambda: "6.1")
    main(["check", "--drift", "--remind"])
    assert not motd.exists()


def test_notices_of_several_kinds_stand_beside_each_other(machine):
    notice("job-nightly", "It failed.")
    remind([Difference("a", "b"), Difference("c", "d")])
    assert (machine / MOTD).read_text().splitlines()[0].endswith("a: b (and 1 more)")
    assert "It failed." in (machine / MOTD).read_text()
    remind([])
    assert (machine / MOTD).read_text() == "It failed.\n"
