"""Scheduled jobs: what systemd is given, what stays of older backups, and what is said of failures."""

import os
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from bootenv import destinations, drift, schedule
from bootenv.backup import Source, write_backup
from bootenv.destinations import Destination
from bootenv.drift import MOTD
from bootenv.errors import (
    BackupNotFound,
    NeedsRoot,
    NetworkPlaceFailed,
    NoProvider,
    NoSuchJob,
    PasswordWanted,
    Unsupported,
)
from bootenv.layout import Disk, Layout
from bootenv.schedule import Job, add_job, in_words, jobs, read_job, remove_all, remove_job, retire, superseded
from bootenv.sif import BackupReference, new_id, write_sif
from console.__main__ import main
from tests.test_sif import SET

JOB = Job("nightly", "Sun 03:00", "/dev/disk/by-uuid/1234", "/mnt/My \"100%\" $disk\\x", 3, 30, ("/srv/data", "/opt"))
TODAY = datetime(2026, 3, 14, tzinfo=UTC)


@pytest.fixture
def systemd(monkeypatch, tmp_path):
    """A machine with asr and systemd; what systemctl was asked."""
    asked = []

    def run(argv, **_):
        asked.append(argv)
        if (argv[:2] == ("systemctl", "enable") and "asr-job-broken.timer" in argv) or argv[-1] == "nonsense":
            raise schedule.CommandFailed("Failed to parse")
        if argv[-1] == "2020-01-01":
            return "Normalized form: 2020-01-01 00:00:00\n    Next elapse: never\n"
        return ("Normalized form: Sun *-*-* 03:00:00\n    Next elapse: Sun 2026-03-15 03:00:00 UTC\n"
                if argv[0] == "systemd-analyze" else "")

    for module in (schedule, drift):
        monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(schedule, "run", run)
    monkeypatch.setattr(schedule, "program", lambda: "/usr/bin/asr")
    monkeypatch.setattr("os.geteuid", lambda: 0)
    return asked


def units(root):
    return sorted(path.name for path in (root / schedule.UNITS).iterdir())


def test_a_job_is_what_its_units_say(systemd, tmp_path):
    add_job(JOB)
    assert systemd[-1] == ("systemctl", "enable", "--now", "asr-job-nightly.timer", "asr-drift.timer")
    assert jobs() == [JOB]
    assert units(tmp_path) == ["asr-drift.service", "asr-drift.timer", "asr-job-nightly.service",
                               "asr-job-nightly.timer"]
    service = (tmp_path / schedule.UNITS / "asr-job-nightly.service").read_text()
    assert '"/mnt/My \\"100%%\\" $$disk\\\\x"' in service


def test_a_job_may_be_another_products(systemd, tmp_path, capsys):
    words = ["--when", "Sun 03:00", "--to", "sftp:h:/r", "--disk", "/mnt/stick", "--provider", "restic",
             "--option", "password-file=/root/my password", "--option", "level=3"]
    assert main(["schedule", "add", "nightly", *words]) == 0
    assert "by restic" in capsys.readouterr().out
    assert jobs() == [Job("nightly", "Sun 03:00", "sftp:h:/r", "/mnt/stick", provider="restic",
                          options=("password-file=/root/my password", "level=3"))]
    with pytest.raises(SystemExit):
        main(["schedule", "add", "nightly", *words, "--keep", "3"])
    assert "--keep" in capsys.readouterr().err


def test_a_job_on_the_network_waits_for_it_and_has_its_password_where_it_can_read_it(systemd, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule.network, "ROOT", tmp_path)
    job = replace(JOB, to="smb://ann@nas/backups")
    with pytest.raises(PasswordWanted, match="A job cannot ask"):
        add_job(job)
    assert not (tmp_path / schedule.UNITS).exists()
    path = tmp_path / schedule.network.CREDENTIALS
    path.parent.mkdir(parents=True)
    path.write_text("username=ann\npassword=s3cret\n")
    path.chmod(0o600)
    add_job(job)
    assert jobs() == [job]
    service = (tmp_path / schedule.UNITS / "asr-job-nightly.service").read_text()
    assert "After=network-online.target" in service
    assert "s3cret" not in service
    add_job(JOB)
    assert "network" not in (tmp_path / schedule.UNITS / "asr-job-nightly.service").read_text()
    with pytest.raises(NetworkPlaceFailed, match="a password in the address"):
        add_job(replace(JOB, to="smb://ann:s3cret@nas/backups"))


@pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed here")
@pytest.mark.disks
def test_systemd_takes_the_units(systemd, tmp_path, monkeypatch):
    monkeypatch.setattr(schedule, "program", lambda: "/bin/true")
    before = os.umask(0)                       # systemd warns of units that others may write to
    try:
        assert main(["schedule", "add", "nightly", "--when", JOB.when, "--to", JOB.to, "--disk", JOB.disk]) == 0
    finally:
        os.umask(before)
    paths = [str(path) for path in (tmp_path / schedule.UNITS).iterdir()]
    done = subprocess.run(("systemd-analyze", "verify", "--man=no", *paths), capture_output=True, text=True)
    ours = [line for line in done.stderr.splitlines() if "asr-" in line]
    assert ours == []


def test_a_job_that_systemd_does_not_take_is_not_listed(systemd, tmp_path):
    with pytest.raises(schedule.CommandFailed):
        add_job(replace(JOB, name="broken"))
    assert jobs() == []


def test_another_package_brings_the_drift_timer(systemd, tmp_path):
    (tmp_path / "usr/lib/systemd/system").mkdir(parents=True)
    (tmp_path / "usr/lib/systemd/system/asr-drift.timer").touch()
    add_job(JOB)
    assert units(tmp_path) == ["asr-job-nightly.service", "asr-job-nightly.timer"]


def test_removing_leaves_no_unit_and_no_notice(systemd, tmp_path):
    add_job(JOB)
    add_job(replace(JOB, name="weekly"))
    schedule.ended("nightly", "exit-code")
    remove_job("nightly")
    assert not (tmp_path / MOTD).exists()
    assert [job.name for job in jobs()] == ["weekly"]
    with pytest.raises(NoSuchJob, match="There is no job nightly"):
        remove_job("nightly")
    remove_all()
    assert units(tmp_path) == []
    assert ("systemctl", "disable", "--now", "asr-drift.timer") in systemd


def test_a_job_that_was_edited_is_not_guessed_at(systemd, tmp_path):
    add_job(JOB)
    (tmp_path / schedule.UNITS / "asr-job-nightly.service").write_text("[Service]\nExecStart=/bin/true\n")
    with pytest.raises(NoSuchJob, match="cannot be read"):
        read_job(tmp_path / schedule.UNITS / "asr-job-nightly.timer")


def test_a_broken_job_is_listed_as_such_and_hides_no_other(systemd, tmp_path, capsys):
    for name in ("edited", "negative", "never", "nightly", "when"):
        add_job(replace(JOB, name=name))
    for name, old, new in (("edited.service", "prepare", ""), ("negative.service", "--keep 3", "--keep -1"),
                           ("when.timer", "OnCalendar=Sun 03:00", "OnCalendar=nonsense"),
                           ("never.timer", "Sun 03:00", "2020-01-01")):
        path = tmp_path / schedule.UNITS / f"asr-job-{name}"
        path.write_text(path.read_text().replace(old, new))
    assert [(job.name, job.broken) for job in jobs()] == [
        ("edited", True), ("negative", True), ("never", False), ("nightly", False), ("when", True)]
    assert [(words, due) for _, words, due in schedule.described()][:3] == [
        (schedule.BROKEN, "not known"), (schedule.BROKEN, "not known"), ("2020-01-01 00:00:00", "never")]
    assert main(["schedule", "list"]) == 0
    said = capsys.readouterr().out
    assert "edited: cannot be read from its units" in said
    assert "nightly: every Sunday at 03:00" in said
    assert main(["schedule", "remove", "edited"]) == 0
    assert "edited" not in [job.name for job in jobs()]


@pytest.mark.parametrize("job", [
    replace(JOB, name="../x"), replace(JOB, name="A b"), replace(JOB, when="nonsense"),
    replace(JOB, to="/mnt/a\n[Service]"), replace(JOB, when="daily\nUnit=x.service"), replace(JOB, when="2020-01-01"),
    replace(JOB, to=""), replace(JOB, disk=" "), replace(JOB, to="backups"), replace(JOB, disk="stick"),
    replace(JOB, add=("srv/data",)), replace(JOB, to="sftp:h:/r"), replace(JOB, keep=-1), replace(JOB, keep_days=-1),
    replace(JOB, keep_days=10**9), replace(JOB, provider="tar", to="backups")])
def test_what_would_make_another_unit_or_a_useless_one_is_refused(job, systemd, tmp_path):
    with pytest.raises(Unsupported):
        add_job(job)
    assert not (tmp_path / schedule.UNITS).exists()


def test_a_provider_that_is_not_there_is_refused(systemd, tmp_path):
    with pytest.raises(NoProvider, match="There is no provider nosuch"):
        add_job(replace(JOB, keep=0, keep_days=0, provider="nosuch"))
    assert not (tmp_path / schedule.UNITS).exists()


@pytest.mark.parametrize(("what", "value"), [
    ("name", "Nightly Job"), ("when", "nonsense"), ("when", "2020-01-01"), ("keep", "-1"), ("keep", "many"),
    ("keep", "99999"), ("keep", "9" * 5000), ("to", " "), ("disk", "")])
def test_each_answer_is_refused_as_soon_as_it_is_typed(what, value, systemd):
    with pytest.raises(Unsupported):
        schedule.check_answer(what, value)


def test_an_answer_that_will_do_is_taken(systemd):
    for what, value in (("name", "nightly"), ("when", "daily"), ("to", "/mnt"), ("disk", "stick"), ("keep", "0")):
        schedule.check_answer(what, value)


def test_who_cannot_add_a_job_is_told_before_anything_is_asked(systemd, monkeypatch):
    schedule.check_possible()
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(NeedsRoot):
        schedule.check_possible()


def test_a_failed_job_is_said_at_login_until_it_succeeds(systemd, tmp_path):
    schedule.ended("nightly", "exit-code")
    assert "the backup job nightly FAILED (exit-code)" in (tmp_path / MOTD).read_text()
    schedule.ended("other", "success")
    assert "nightly" in (tmp_path / MOTD).read_text()
    schedule.ended("nightly", "success")
    assert not (tmp_path / MOTD).exists()


def test_jobs_are_added_listed_and_removed_at_the_command_line(systemd, capsys):
    assert main(["schedule", "list"]) == 0
    assert capsys.readouterr().out == "No job is scheduled.\n"
    assert main(["schedule", "add", "nightly", "--when", "Sun 03:00", "--to", "/mnt", "--disk", "/mnt", "--keep", "3",
                 "--keep-days", "30"]) == 0
    added = capsys.readouterr().out
    assert added == ("nightly: every Sunday at 03:00, next Sun 2026-03-15 03:00:00 UTC\n    to /mnt, ASR disk /mnt\n"
                     "    keeps the 3 newest and those of the last 30 days\n")
    assert main(["schedule", "list"]) == 0
    assert capsys.readouterr().out == added
    assert main(["schedule", "remove", "nightly"]) == 0
    assert main(["schedule", "remove", "nightly"]) == 1


def test_a_volume_is_named_by_its_uuid_in_a_job(monkeypatch):
    monkeypatch.setattr(schedule, "run", lambda argv, **_: "1234-ABCD\n" if argv[-1] == "/dev/sdb1" else "")
    assert schedule.lasting("/dev/sdb1") == "/dev/disk/by-uuid/1234-ABCD"
    assert schedule.lasting("/dev/sdc") == "/dev/sdc"
    assert schedule.lasting("/dev/fd0") == "/dev/fd0"
    assert schedule.lasting("/mnt/backup") == "/mnt/backup"


def test_a_place_is_named_from_the_first_slash_on_in_a_job_since_its_unit_starts_there(monkeypatch):
    monkeypatch.setenv("ASR_CWD", "/home/ann")
    assert schedule.lasting("backups") == "/home/ann/backups"
    assert schedule.lasting("../floppy.img") == "/home/floppy.img"
    for elsewhere in ("", "/mnt", "nfs://nas/export", "sftp:h:/r", "rest:http://h/r"):
        assert schedule.lasting(elsewhere) == elsewhere


@pytest.mark.parametrize(("form", "words"), [
    ("*-*-* 00:00:00", "every day at 00:00"), ("Sun *-*-* 03:00:00", "every Sunday at 03:00"),
    ("Mon..Fri *-*-* 22:00:00", "every Monday to Friday at 22:00"),
    ("Sat,Sun *-*-* 01:30:00", "every Saturday, Sunday at 01:30"),
    ("*-*-01 04:30:00", "on day 1 of every month at 04:30"), ("*-*-* *:00/15:00", "*-*-* *:00/15:00"),
    ("Mon *-*-01 04:30:00", "Mon *-*-01 04:30:00"), ("2027-*-* 01:00:00", "2027-*-* 01:00:00"),
])
def test_times_are_said_in_words_where_there_are_some(form, words):
    assert in_words(form) == words


def backups(*ages):
    return [(Path(f"{age}"), TODAY - timedelta(days=age)) for age in ages]


@pytest.mark.parametrize(("keep", "days", "gone"), [
    (0, 0, []), (1, 0, [3, 9, 40, 100]),
    (2, 0, [9, 40, 100]), (2, 30, [40, 100]), (4, 30, [100]), (0, 30, [40, 100]), (1, 1, [3, 9, 40, 100]),
    (9, 1, []),
])
def test_what_is_neither_among_the_newest_nor_young_goes_beside_the_new_one(keep, days, gone):
    assert superseded(backups(40, 9, 100, 3), keep, days, TODAY) == [Path(str(age)) for age in gone]


@pytest.mark.parametrize(("keep", "days"), [(-1, 0), (0, -1), (3, -1), (0, 10**9), (10**6, 0)])
def test_numbers_that_are_none_remove_nothing(keep, days):
    with pytest.raises(Unsupported):
        superseded(backups(40, 9), keep, days, TODAY)


def written(tmp_path, **sets):
    """Backups of these sets, each by its name, in the folder "to"."""
    (tmp_path / "tree").mkdir()
    (tmp_path / "to").mkdir()
    made = {name: replace(set, id=new_id()) for name, set in sets.items()}
    for name, set in made.items():
        for _ in write_backup(tmp_path / "to" / f"{name}.tar.zst", [Source(tmp_path / "tree")],
                              ("asr.sif", write_sif(set)), volume_size=4096 if name == "older" else 0):
            pass
    return made


def test_only_this_computers_older_backups_are_removed(tmp_path, monkeypatch):
    monkeypatch.setattr(destinations, "run", None)
    twin = replace(SET, layout=Layout((Disk("another", "/dev/sda", 2**30),)))
    made = written(tmp_path, old=replace(SET, created=TODAY), older=replace(SET, created=TODAY - timedelta(days=1)),
                   new=replace(SET, created=TODAY + timedelta(days=1)), twin=replace(twin, created=TODAY),
                   other=replace(SET, host="web1", created=TODAY))
    (tmp_path / "to/letter.tar.zst").write_text("somebody's")
    destination = Destination(tmp_path / "to/new.tar.zst", BackupReference(), 0)
    assert [gone.what for gone in retire(made["new"], destination, 2, 0)] == ["older.tar.zst"]
    assert sorted(path.name for path in (tmp_path / "to").iterdir()) == [
        "letter.tar.zst", "new.tar.zst", "old.tar.zst", "other.tar.zst", "twin.tar.zst"]
    missing = Destination(tmp_path / "to/missing.tar.zst", BackupReference(), 0)
    with pytest.raises(BackupNotFound, match=r"The new backup missing\.tar\.zst is not in"):
        list(retire(made["new"], missing, 1, 0))
    assert (tmp_path / "to/old.tar.zst").exists(), "something was removed though the new one is not there"


def test_the_new_backup_stays_though_the_clock_went_back(tmp_path, monkeypatch):
    monkeypatch.setattr(destinations, "run", None)
    made = written(tmp_path, older=replace(SET, created=TODAY + timedelta(days=300)),
                   old=replace(SET, created=TODAY + timedelta(days=301)), new=replace(SET, created=TODAY))
    destination = Destination(tmp_path / "to/new.tar.zst", BackupReference(), 0)
    assert [gone.what for gone in retire(made["new"], destination, 2, 0)] == ["older.tar.zst"]
    assert [gone.what for gone in retire(made["new"], destination, 1, 0)] == ["old.tar.zst"]
    assert [path.name for path in (tmp_path / "to").iterdir()] == ["new.tar.zst"]
