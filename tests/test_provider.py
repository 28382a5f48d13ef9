"""Another product's backup in a set: a provider made from the page alone, the two that ship, and what is said of them.

The provider below is what somebody writes who has read bootenv/provider.py and nothing else.
"""

import fcntl
import os
import re
import shutil
import stat
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import bootenv.run
from bootenv import asr_disk, carried, destinations, prepare, provider, recover, restore, volumes
from bootenv.asr_disk import AsrDisk, put, read_asr_disk
from bootenv.backup import Selection, Source
from bootenv.destinations import Destination
from bootenv.errors import AsrDiskFull, BackupNotFound, Busy, NoProvider, ProviderFailed
from bootenv.events import Difference, Progress
from bootenv.layout import SwapFile
from bootenv.match import Match
from bootenv.prepare import Survey
from bootenv.provider import find_provider, make_plan, provider_of, secret_of
from bootenv.sif import PROVIDERS, BackupReference, ProviderReference, read_sif
from bootenv.volumes import FoundBackup
from console.__main__ import main
from tests.test_sif import SET

FROM_THE_PAGE = f"#!{sys.executable}" + """
import os, pathlib, shutil, sys, fnmatch

place = pathlib.Path(os.environ["ASR_PLACE"])
copy = place / os.environ["ASR_NAME"]
secrets = dict(line.rstrip("\\n").split(" ", 1) for line in sys.stdin)

if sys.argv[1] == "plan" and os.environ["ASR_WORK"] == "backup":
    print("NOTE it will be", copy)
elif sys.argv[1] == "plan":
    if not copy.is_dir():
        sys.exit("there is no copy at " + str(copy))
    if secrets.get("word") != os.environ["ASR_OPTION_THE_WORD"][::-1]:
        print("ASK word The word, backwards")
elif sys.argv[1] == "backup":
    source = pathlib.Path(os.environ["ASR_SOURCE"])
    patterns = os.environ["ASR_EXCLUDE"].splitlines()
    done = files = 0
    for path in sorted(source.rglob("*")):
        name = str(path.relative_to(source))
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns):
            continue
        if path.is_dir():
            (copy / name).mkdir(parents=True)
            continue
        if path.name == "locked":
            print(f"DIFFERENCE {name}: It is locked.")
            continue
        shutil.copy2(path, copy / name)
        done, files = done + path.stat().st_size, files + 1
        print("PROGRESS", done, files, name)
    print("some words of its own")
    if "ASR_OPTION_VERIFY" in os.environ:
        print("VERIFIED")
elif sys.argv[1] == "restore":
    if secrets.get("word") != os.environ["ASR_OPTION_THE_WORD"][::-1]:
        sys.exit("the word is wrong")
    shutil.copytree(copy, os.environ["ASR_TARGET"], dirs_exist_ok=True)
"""
OPTIONS = {"the-word": "abc"}


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """A machine's root with some files, whose mounts and hooks are left out, and a place for the backup."""
    root = tmp_path / "root"
    for module in (carried, prepare, provider):
        monkeypatch.setattr(module, "ROOT", root)
        if hasattr(module, "STATE"):
            monkeypatch.setattr(module, "STATE", tmp_path / "state")
    monkeypatch.setattr(destinations, "LOCK", tmp_path / "state/prepare.lock")
    monkeypatch.setattr(bootenv.run, "ROOT", Path("/"))
    monkeypatch.setattr(asr_disk, "LOG", bootenv.run.LOG)
    monkeypatch.setattr(carried, "_GATHERED", tmp_path / "gathered")
    monkeypatch.setattr(provider, "runs_on_its_machine", lambda: True)
    monkeypatch.setattr(prepare, "sources", lambda layout: nullcontext((Source(root),)))
    monkeypatch.setattr(prepare, "held_still", lambda found, unlike: nullcontext(found))
    monkeypatch.setattr(prepare, "joined", lambda found: nullcontext(root))
    for name in ("installed_packages", "package_lines"):
        monkeypatch.setattr(prepare, name, lambda *_: "")
    monkeypatch.setattr(prepare, "notice", lambda *_: None)
    for name in ("etc/hosts", "etc/locked", "home/ann/letter", "tmp/scratch", "swapfile"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    (tmp_path / "place").mkdir()
    return root


@pytest.fixture
def program(machine) -> Path:
    """The provider that was written from the page, installed on the machine."""
    path = machine / "etc/asr/providers/pages"
    path.parent.mkdir(parents=True)
    path.write_text(FROM_THE_PAGE)
    path.chmod(0o755)
    return path


def survey_of(program: Path, **options) -> Survey:
    layout = replace(SET.layout, swap_files=(SwapFile("/swapfile", 4096, ""),))
    draft = replace(SET, id="", layout=layout, provider=ProviderReference("pages", OPTIONS | options),
                    files=(carried.provider_file(program),), backup=BackupReference())
    return Survey(draft, (), 100)


def place_in(tmp_path, name="host-20260314") -> Destination:
    return Destination(tmp_path / "place" / f"{name}.tar.zst",
                       BackupReference(name=name, place=str(tmp_path / "place"), filesystem="uuid"), 10**9)


def prepared(survey, destination):
    """All that preparation says, and the set."""
    set, said = ended(prepare.prepare(survey, destination, Selection(5, 50)))
    return said, set


def differences(events):
    return [event for event in events if isinstance(event, Difference)]


@pytest.fixture
def recovery(tmp_path, monkeypatch):
    """Both stages of recovery with no disk, boot loader or file system of their own: their functions, and the target.
    """
    target, medium = tmp_path / "target", tmp_path / "medium"
    target.mkdir()
    nothing = {name: lambda *_, **__: iter(()) for name in (
        "execute", "copy_minimal", "install_minimal", "make_swap_files", "enroll_keys", "install_system",
        "remove_minimal", "write_all_out")}
    nothing |= {name: lambda *_, **__: None for name in (
        "probe", "plan", "carry", "write_log", "set_read_only", "located", "left_by_minimal", "forget")}
    for story in (recover, restore):
        for name, value in nothing.items():
            if hasattr(story, name):
                monkeypatch.setattr(story, name, value)
        monkeypatch.setattr(story, "mounted", lambda *_: nullcontext(target))
        monkeypatch.setattr(story, "recovery_folder", lambda *_: medium / "asr-recovery")
        monkeypatch.setattr(story, "LOG", bootenv.run.LOG)
    monkeypatch.setattr(restore, "MEDIUM", medium)
    (medium / "asr-recovery").mkdir(parents=True)
    return SimpleNamespace(target=target)


def ended(work):
    """What long work returns, and what it says."""
    said = []
    while True:
        try:
            said.append(next(work))
        except StopIteration as end:
            return end.value, said


def test_a_provider_written_from_the_page_backs_up_and_restores(machine, program, recovery, tmp_path):
    events, set = prepared(survey_of(program), place_in(tmp_path))
    # The totals are ASR's own.
    assert Progress("Backing up files with pages...", len(FROM_THE_PAGE), len(FROM_THE_PAGE), "etc/asr/providers/pages",
                    "", 1, 5) in events
    assert differences(events) == [
        Difference("etc/locked", "It is locked."),
        Difference("backup", "The provider pages does not say that it has read the backup back: whether that is whole "
                             "is not known.")]
    assert "some words of its own" in bootenv.run.LOG.read_text()
    (tmp_path / "disk").mkdir()
    list(put(set, str(tmp_path / "disk"), carried.at_hand(set, program)))
    # Boot recovery has the ASR disk; another program that happens to have the provider's name is none of its business.
    program.write_text("#!/bin/sh\nexit 1\n")
    set = read_sif((tmp_path / "disk/asr.sif").read_bytes())
    assert carried.gather(AsrDisk(str(tmp_path / "disk"), "disk", set), PROVIDERS) == []
    list(recover.recover(AsrDisk("", "disk", set), Match((), set.layout)))
    # The second stage has what lies on the hard disk, and the person.
    shutil.rmtree(carried.gathered(set))
    shutil.rmtree(tmp_path / "disk")
    set = restore.pending_set()
    backup = FoundBackup(str(tmp_path / "place"), "place", set)
    assert restore.questions(set, backup) == {secret_of("word"): "The word, backwards"}
    assert secret_of("word") in restore.questions(set, backup, {secret_of("word"): b"wrong"})
    secrets = {secret_of("word"): b"cba", "a container": b"not the provider's business"}
    assert restore.questions(set, backup, secrets) == {}
    with pytest.raises(ProviderFailed, match="could not do its restore: the word is wrong"):
        ended(restore.restore(set, backup, {secret_of("word"): b"wrong"}))
    outcome, _ = ended(restore.restore(set, backup, secrets))
    assert (outcome.result, outcome.differences) == ("recovered", ())
    there = {str(path.relative_to(recovery.target)) for path in recovery.target.rglob("*") if path.is_file()}
    assert {"etc/hosts", "home/ann/letter"} <= there
    assert not {"etc/locked", "tmp/scratch", "swapfile", prepare._OLDER} & there
    assert (recovery.target / "home/ann/letter").read_text() == "home/ann/letter"
    # The third copy of asr.sif is in the backup of every product.
    assert read_sif((recovery.target / prepare.REPAIR).read_bytes()) == set


def test_secrets_are_in_no_environment_command_line_or_log(machine, program, tmp_path, monkeypatch):
    program.write_text('#!/bin/sh\nenv >&2\necho "$@" >&2\ncat >/dev/null\n')
    set = replace(survey_of(program).draft, id=SET.id)
    make_plan(program, set, "restore", "/place", {secret_of("word"): b"very secret"})
    assert "ASR_PLACE=/place" in bootenv.run.LOG.read_text()
    assert "very secret" not in bootenv.run.LOG.read_text()


def test_only_what_the_provider_says_it_compared_counts_as_verified(machine, program, tmp_path):
    events, set = prepared(survey_of(program, verify="yes"), place_in(tmp_path))
    assert differences(events) == [Difference("etc/locked", "It is locked.")]
    report = (machine / prepare.report_of(set)).read_text()
    assert report.endswith("pages has made the backup, and says that it was read back and matches.\n")
    assert f"Backup      {tmp_path}/place (host-20260314, by pages)" in report
    _, set = prepared(survey_of(program), place_in(tmp_path, "later"))
    assert (machine / prepare.report_of(set)).read_text().endswith("pages has made the backup.\n")


@pytest.mark.parametrize(("script", "why"), [
    ("#!/bin/sh\necho first >&2\necho 'the disk is full' >&2\nexit 3\n", "could not do its backup: the disk is full"),
    ("#!/bin/sh\nexit 3\n", "could not do its backup: exit status 3"),
    ("#!/no/such/shell\n", "is not on this system"),
    ("neither script nor program", "cannot be started: Exec format error"),
    ("#!/bin/sh\nkill -9 $$\n", "exit status -9"),
])
def test_a_provider_that_fails_leaves_no_set_and_is_quoted(script, why, machine, program, tmp_path):
    program.write_text(script)
    (machine / prepare.REPAIR).parent.mkdir(parents=True)
    (machine / prepare.REPAIR).write_bytes(b"the older set")
    with pytest.raises(ProviderFailed, match=re.escape(why)):
        prepared(survey_of(program), place_in(tmp_path))
    assert (machine / prepare.REPAIR).read_bytes() == b"the older set"
    assert not (machine / prepare.REPORTS).exists()


def test_who_cancels_ends_the_provider_which_cleans_up(machine, program, tmp_path):
    program.write_text(f"#!/bin/sh\ntrap 'rm {tmp_path}/half; exit 1' TERM\ntouch {tmp_path}/half\n"
                       "echo PROGRESS 1 1 a\nwhile :; do sleep 0.1; done\n")
    work = prepare.prepare(survey_of(program), place_in(tmp_path), Selection(5, 50))
    assert next(work).item == "a"
    assert (tmp_path / "half").exists()
    work.close()
    assert not (tmp_path / "half").exists()
    assert not (machine / prepare.REPAIR).exists()


def killed_while_a_provider_worked():
    child = os.fork()
    if not child:
        with prepare._copy_to_be_backed_up(b"of a set that will not be"):
            os._exit(0)
    os.waitpid(child, 0)


@pytest.mark.parametrize("older", [b"the older set", b""])
def test_the_machines_own_copy_is_put_back_after_a_kill(older, machine):
    repair = machine / prepare.REPAIR
    repair.parent.mkdir(parents=True)
    if older:
        repair.write_bytes(older)
    killed_while_a_provider_worked()
    assert repair.read_bytes() == b"of a set that will not be"
    destinations.LOCK.parent.mkdir()
    with destinations.LOCK.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(Busy):              # it may be one that lives
            prepare.put_back_copy()
    prepare.put_back_copy()
    assert [path.read_bytes() for path in repair.parent.iterdir()] == ([older] if older else [])


def test_the_copy_of_a_newer_set_stays(machine, program, tmp_path):
    killed_while_a_provider_worked()
    _, set = prepared(survey_of(program), place_in(tmp_path))
    prepare.put_back_copy()
    assert read_sif((machine / prepare.REPAIR).read_bytes()) == set


def test_what_a_provider_says_can_spoil_no_screen(machine, program):
    program.write_text("#!/bin/sh\nprintf 'PROGRESS 1 1 \\033[2Jclear\\n'\nprintf 'PROGRESS -1 x\\n'\n"
                       "printf 'DIFFERENCE a\\tb: c\\n'\nhead -c 300000 /dev/zero | tr '\\0' x\necho\n"
                       "printf 'PROGRESS 99999999999999999999 1 x\\n'\n")
    set = replace(survey_of(program).draft, id=SET.id)
    events = list(provider.back_up(program, set, "/place", Path("/"), ()))
    assert events == [Progress("Backing up files with pages...", 1, 1, "?[2Jclear", "", 1, 1),
                      Difference("a?b", "c")]


# Finding it

def test_a_provider_that_others_may_write_is_refused(machine, program):
    assert find_provider("pages") == program
    program.chmod(0o775)
    with pytest.raises(NoProvider, match="can be changed by others than root"):
        find_provider("pages")
    with pytest.raises(NoProvider, match=r"There is no provider other\."):
        find_provider("other")


def test_where_asr_is_not_installed_only_those_that_ship_can_work(machine, program, monkeypatch):
    monkeypatch.setattr(provider, "runs_on_its_machine", lambda: False)
    with pytest.raises(NoProvider, match="where asr is not installed"):
        find_provider("pages")
    assert find_provider("tar") == provider.SHIPPED / "tar"


def test_a_provider_that_is_not_as_recorded_is_not_run(machine, program, tmp_path):
    set = replace(survey_of(program).draft, id=SET.id)
    (tmp_path / "disk/providers").mkdir(parents=True)
    (tmp_path / "disk/providers/pages").write_text(FROM_THE_PAGE + "#")
    [said] = carried.gather(AsrDisk(str(tmp_path / "disk"), "disk", set), PROVIDERS)
    assert said.what == "providers/pages"
    with pytest.raises(NoProvider, match="not on the ASR disk as it was recorded"):
        provider_of(set)


@pytest.mark.disks
def test_a_disk_without_room_for_the_provider_is_refused(machine, program, tmp_path):
    floppy = str(tmp_path / "floppy.img")
    set = replace(survey_of(program).draft, id=SET.id)
    list(put(set, floppy, carried.at_hand(set, program)))
    program.write_text("#!/bin/sh\n" + "#" * 1_100_000)
    larger = replace(survey_of(program).draft, id=SET.id)
    with pytest.raises(AsrDiskFull):
        list(put(larger, floppy, carried.at_hand(larger, program), agreed=True))
    assert read_sif(read_asr_disk(floppy)[""]) == set, "the older one is as good as it was"
    assert carried.gather(AsrDisk(floppy, "disk", set), PROVIDERS) == []
    program.write_text("#!/bin/sh\n" + "#" * 600_000)     # twice it would not fit
    for word in ("one", "another"):
        program.write_text(program.read_text() + word)
        larger = replace(survey_of(program).draft, id=SET.id)
        list(put(larger, floppy, carried.at_hand(larger, program), agreed=True))
    assert carried.gather(AsrDisk(floppy, "disk", larger), PROVIDERS) == []


# Where the backup is

@pytest.fixture
def disks(tmp_path, monkeypatch):
    """Volumes of this computer, which are folders."""
    def present(*volumes_):
        monkeypatch.setattr(volumes, "_volumes", lambda own: iter(volumes_))
    monkeypatch.setattr(volumes, "forget", lambda: None)
    monkeypatch.setattr(recover, "forget", lambda: None)
    (tmp_path / "usb/backups").mkdir(parents=True)
    usb = SimpleNamespace(uuid="uuid", point=tmp_path / "usb", name="USB (/dev/sdb1)", device="/dev/sdb1",
                          mount=lambda options: True, look=lambda: True)
    return present, usb


ON_USB = replace(SET, provider=ProviderReference("tar"),
                 backup=BackupReference("h-1", "/mnt/backups", "uuid", "/backups", "USB"))


def test_the_place_is_found_on_its_volume_wherever_that_is_now(disks, tmp_path):
    present, usb = disks
    present(SimpleNamespace(uuid="other", point=tmp_path, mount=lambda _: True, look=lambda: True), usb)
    assert volumes.find_backup(ON_USB) == FoundBackup(
        str(tmp_path / "usb/backups"), "/backups on USB (/dev/sdb1)", ON_USB, "/dev/sdb1")
    present()
    with pytest.raises(BackupNotFound, match="The volume USB was not found"):
        volumes.find_backup(ON_USB)


def test_what_is_elsewhere_is_passed_on_as_it_is():
    set = replace(ON_USB, backup=BackupReference("h-1", "sftp:backup@host:/repo"))
    assert volumes.find_backup(set).path == "sftp:backup@host:/repo"
    assert volumes.open_backup("/mnt/elsewhere", set).path == "/mnt/elsewhere"


def test_boot_recovery_says_what_it_can_know(disks, machine, tmp_path, monkeypatch):
    present, usb = disks
    present(usb)
    disk = AsrDisk(str(tmp_path), "disk", ON_USB)
    check = recover._backup_check(disk, False)
    assert (check.title, type(check.error)) == ("Backup by tar", BackupNotFound)   # F8: it is connected later
    assert "h-1.tzst is not in" in check.error.message
    (tmp_path / "usb/backups/h-1.tzst").touch()
    assert recover._backup_check(disk, False) == recover.Check("Backup by tar: /backups on USB (/dev/sdb1)")
    assert recover._backup_check(disk, True).note == recover._LATER
    remote = replace(ON_USB, backup=BackupReference("h-1", "sftp:h:/r"))
    assert "this stage cannot look for it" in recover._backup_check(replace(disk, set=remote), False).error.message
    gone = replace(ON_USB, provider=ProviderReference("gone"))
    assert isinstance(recover._backup_check(replace(disk, set=gone), True).error, NoProvider)


def test_the_wizard_waits_until_the_provider_finds_its_backup(disks, machine, tmp_path, monkeypatch):
    present, usb = disks
    present(usb)
    monkeypatch.setattr(restore, "MEDIUM", tmp_path)
    monkeypatch.setattr(restore, "located", lambda *_: None)
    monkeypatch.setattr(restore, "probe", lambda: None)
    assert isinstance(list(restore.checks(ON_USB))[-1].error, ProviderFailed)
    (tmp_path / "usb/backups/h-1.tzst").touch()
    assert list(restore.checks(ON_USB))[-1] == restore.Check("Backup by tar")


def test_a_folder_is_looked_at_and_what_is_elsewhere_is_not(machine, program, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(prepare, "at_place", lambda set, used, place, name: asked.append(used) or replace(
        place_in(tmp_path, "n.tar.zst"), warnings=(destinations.SPLIT, "It is on the network.")))
    found = prepare.destination(survey_of(program), str(tmp_path / "place"), "")
    assert (asked, found.reference.name) == ([0], "n")         # it may have most of the files already
    assert found.warnings == ("It is on the network.",)
    assert found.notes == (f"it will be {tmp_path}/place/n",)
    found = prepare.destination(survey_of(program), "sftp:h:/repo", "")
    assert found.reference == BackupReference("host-20260314-1509", "sftp:h:/repo")
    assert prepare.provider_place(found) == "sftp:h:/repo"


def test_the_command_says_what_is_known_of_the_backup(machine, program, tmp_path, monkeypatch, capsys):
    asked = {}

    def survey(*, provider, **_):
        asked["provider"] = provider
        return survey_of(program)

    for name, value in {"survey": survey, "check_disk": lambda *_, **__: None,
                        "at_place": lambda set, used, place, name: place_in(tmp_path)}.items():
        monkeypatch.setattr(prepare, name, value)
    monkeypatch.setattr("console.__main__._need_root", lambda what: None)
    (tmp_path / "disk").mkdir()
    assert main(["prepare", "--provider", "pages", "--to", str(tmp_path / "place"), "--disk", str(tmp_path / "disk"),
                 "--option", "the-word=abc"]) == 0
    assert asked["provider"] == ProviderReference("pages", OPTIONS)
    said = capsys.readouterr().out
    assert f"pages: it will be {tmp_path}/place/host-20260314\n" in said
    assert f"Backup: {tmp_path}/place (host-20260314, by pages)\n" in said
    assert "NOT as it was: backup: The provider pages does not say that it has read the backup back" in said
    assert said.endswith("The ASR disk was read back and matches.\n")
    assert (tmp_path / "disk/providers/pages").read_text() == FROM_THE_PAGE


@pytest.mark.parametrize("words", [
    ["--option", "a=b"], ["--provider", "tar"], ["--provider", "../x", "--to", "/a", "--disk", "/b"],
    ["--provider", "tar", "--to", "/a", "--disk", "/b", "--keep", "3"],
    ["--provider", "tar", "--to", "/a", "--disk", "/b", "--option", "A b=c"],
])
def test_words_that_do_not_go_together_are_refused(words, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    with pytest.raises(SystemExit):
        main(["prepare", *words])


# What it is given

JOINED = """
import sys
from pathlib import Path
from bootenv import prepare, run
from bootenv.backup import Source

top = Path(sys.argv[1])
run.LOG, prepare._TREE = top / "log", top / "tree"
with prepare.joined([Source(top / "home's", "home"), Source(top / "anns", "home/ann"), Source(top / "root's")]) as tree:
    print(sorted(str(path.relative_to(tree)) for path in tree.rglob("*")))
    for place in ("", "home", "home/ann"):
        try:
            (tree / place / "new").touch()
        except OSError as error:
            print(error.strerror)
    sys.exit(len(list(tree.iterdir())))        # whatever happens, they are taken apart
"""


@pytest.mark.disks
def test_file_systems_are_joined_read_only_as_they_are_mounted(tmp_path):
    for name in ("root's/etc", "root's/home", "home's/ann", "home's/bob", "anns/letter"):
        (tmp_path / name).mkdir(parents=True)
    done = subprocess.run(("unshare", "--mount", sys.executable, "-c", JOINED, tmp_path), capture_output=True,
                          text=True, cwd=Path(__file__).parents[1])
    assert done.stdout == ("['etc', 'home', 'home/ann', 'home/ann/letter', 'home/bob']\n"
                           + "Read-only file system\n" * 3)
    assert (done.returncode, list((tmp_path / "tree").iterdir())) == (2, [])
    assert (tmp_path / "log").read_text().count("umount --lazy") == 3


# Those that ship

@pytest.fixture
def tree(tmp_path) -> Path:
    top = tmp_path / "tree"
    for name in ("etc/hosts", "home/ann/letter", "home/ann/.cache/x", "tmp/scratch", "home/ann/new\nline"):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_text(name * 100)
    (top / "etc/hosts").chmod(0o604)
    os.link(top / "etc/hosts", top / "etc/hosts2")
    (top / "etc/link").symlink_to("hosts")
    os.setxattr(top / "etc/hosts", "user.note", b"x")
    with (top / "sparse").open("wb") as file:
        file.truncate(2**24)
    os.utime(top / "etc/hosts", ns=(10**18, 10**18 + 123456789))
    return top


def walk(top: Path) -> dict:
    return {str(path.relative_to(top)): (
        stat.filemode(s.st_mode), s.st_uid, s.st_gid, s.st_mtime_ns if path.is_file() else 0, s.st_nlink,
        path.read_bytes() if path.is_file() and not path.is_symlink() else b"",
        os.listxattr(path, follow_symlinks=False))
        for path in top.rglob("*") for s in [path.lstat()] if not path.is_dir()}


def done_by(name, tree, tmp_path, secrets=None, times=1, **options):
    """Backs the tree up and restores it: what was said, in either."""
    program = provider.SHIPPED / name
    place = str(tmp_path / "place")
    set = replace(SET, provider=ProviderReference(name, options), backup=replace(SET.backup, name="h-1"))
    make_plan(program, set, "backup", place)
    said = list(provider.back_up(program, set, place, tree, ("tmp/*", "home/*/.cache/*")))
    make_plan(program, set, "restore", place)
    for file in options.values():
        os.unlink(file)
    (tmp_path / "target").mkdir()
    for _ in range(times):
        again = list(provider.restore_files(program, set, place, tmp_path / "target", secrets or {}))
    return said, again


@pytest.mark.disks
def test_tar_brings_back_what_it_took(tree, tmp_path):
    (tmp_path / "place").mkdir()
    said, again = done_by("tar", tree, tmp_path, times=2)
    shutil.rmtree(tree / "tmp")
    (tree / "tmp").mkdir()
    (tree / "home/ann/.cache/x").unlink()
    assert walk(tmp_path / "target") == walk(tree)
    assert (tmp_path / "target/sparse").stat().st_blocks < 100
    assert (tmp_path / "target/home/ann/.cache").is_dir()
    assert differences(said) == differences(again) == []
    assert said[-1].files == again[-1].files == len(walk(tree))
    assert [path.name for path in (tmp_path / "place").iterdir()] == ["h-1.tzst"]
    with pytest.raises(ProviderFailed, match="is there already"):
        list(provider.back_up(provider.SHIPPED / "tar", replace(
            SET, provider=ProviderReference("tar"), backup=replace(SET.backup, name="h-1")), str(tmp_path / "place"),
            tree, ()))


@pytest.mark.disks
def test_a_damaged_tar_is_a_failure(tree, tmp_path):
    (tmp_path / "place").mkdir()
    done_by("tar", tree, tmp_path)
    data = bytearray((tmp_path / "place/h-1.tzst").read_bytes())
    middle = len(data) // 2                    # some single bits of a frame are for later versions of zstd
    data[middle:middle + 8] = bytes(byte ^ 0xFF for byte in data[middle:middle + 8])
    (tmp_path / "place/h-1.tzst").write_bytes(data)
    set = replace(SET, provider=ProviderReference("tar"), backup=replace(SET.backup, name="h-1"))
    with pytest.raises(ProviderFailed, match="is damaged"):
        list(provider.restore_files(provider.SHIPPED / "tar", set, str(tmp_path / "place"), tmp_path / "target", {}))


@pytest.mark.disks
@pytest.mark.skipif(not shutil.which("restic"), reason="restic is not installed here")
def test_restic_brings_back_what_it_took_and_asks_for_its_password(tree, tmp_path):
    (tmp_path / "password").write_text("secret")
    subprocess.run(("restic", "init", "--quiet", "--repo", tmp_path / "place", "--password-file",
                    tmp_path / "password"), check=True)
    said, again = done_by("restic", tree, tmp_path, {secret_of("password"): b"secret"},
                          **{"password-file": str(tmp_path / "password")})
    (tree / "tmp/scratch").unlink()
    (tree / "home/ann/.cache/x").unlink()
    assert walk(tmp_path / "target") == walk(tree)
    assert differences(said) == differences(again) == []
    set = replace(SET, provider=ProviderReference("restic", {"password-file": str(tmp_path / "password")}),
                  backup=replace(SET.backup, name="h-1"))
    program, place = provider.SHIPPED / "restic", str(tmp_path / "place")
    asks = {"password": "The password of the restic repository"}
    assert make_plan(program, set, "restore", place).questions == asks
    assert make_plan(program, set, "restore", place, {secret_of("password"): b"wrong"}).questions == asks
    known = {secret_of("password"): b"secret"}
    assert make_plan(program, set, "restore", place, known).questions == {}
    with pytest.raises(ProviderFailed, match="has no snapshot of this set"):
        make_plan(program, replace(set, id="11111111-6f0b-4a57-9a52-0d3c1c0e7a11"), "restore", place, known)
    with pytest.raises(ProviderFailed, match="name the file with the repository's password"):
        make_plan(program, set, "backup", place)
    with pytest.raises(ProviderFailed, match="restore"):
        list(provider.restore_files(program, set, place, tmp_path / "target", {secret_of("password"): b"wrong"}))
