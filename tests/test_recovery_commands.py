"""Commands that a set runs at recovery: what is read of the list, and in which order what runs where."""

import contextlib
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bootenv import commands, recover, restore
from bootenv.commands import as_text, missing_tools, read_commands, run_commands
from bootenv.errors import BadCommands, CommandFailed, CriticalCommandFailed, ToolMissing
from bootenv.events import Difference, Progress
from bootenv.layout import EMPTY
from bootenv.sif import BackupReference, Command, ProviderReference, write_sif
from console.__main__ import main
from tests.test_sif import SET

STOP = Command("Stopping the old one", ("stop", "-a"), "before")
NOTE = Command("Writing a note", ("/bin/note", "a b"), "after")
JOIN = Command("Joining the domain", ("join",), "after", "system", critical=True)
ALL = (NOTE, STOP, JOIN)


@pytest.fixture
def etc(tmp_path, monkeypatch) -> Path:
    """Where the list is."""
    monkeypatch.setattr(commands, "ROOT", tmp_path)
    (tmp_path / "etc/asr").mkdir(parents=True)
    return tmp_path / commands.LIST


@pytest.fixture
def ran(monkeypatch):
    """What was run; the programs in `fails` fail."""
    log = SimpleNamespace(calls=[], fails=set(), chroots=0)

    def run(argv, *, environment, limit):
        assert limit, "a command that hangs would never end"
        log.calls.append((argv, environment["ASR_TARGET"]))
        if argv[0] in log.fails:
            raise CommandFailed(f"{argv[0]} failed: no such domain")
        return ""

    @contextlib.contextmanager
    def chroot(target):
        log.chroots += 1
        yield

    monkeypatch.setattr(commands, "run", run)
    monkeypatch.setattr(commands, "run_in", lambda target, *argv, **options: run(argv, **options))
    monkeypatch.setattr(commands, "chroot", chroot)
    return log


def test_no_list_is_no_commands(etc):
    assert read_commands() == ()


def test_the_example_in_the_rooms_docstring_is_read(etc):
    example = "\n".join(line for line in commands.__doc__.splitlines() if line.startswith("    "))
    etc.write_text(example.replace("\n    ", "\n"))
    assert read_commands() == (
        Command("Registering this computer", ("register", "--force"), "after", "system", critical=True),)


@pytest.mark.parametrize(("text", "why"), [
    ("[[commands]", "it is not TOML"),
    ("title = 'x'", "there is title"),
    ("[commands]\ntitle = 'x'", "there is commands"),
    ("[[commands]]\ntitle = 't'\nargv = ['x']\nwhen = 'after'\n[[commands]]\ntitle = 't'\nargv = ['x']",
     "in command 2, the entry 'when' is missing"),
    ("[[commands]]\ntitle = 't'\nargv = 'x y'\nwhen = 'after'", "in command 1, the entry 'argv' has a wrong form"),
    ("[[commands]]\ntitle = 't'\nargv = ['x']\nwhen = 'later'", "in command 1, when is neither"),
    ("[[commands]]\ntitle = 't'\nargv = ['x']\nwhen = 'after'\ntimeout = 5", "in command 1, the entry 'timeout'"),
    ("commands = ['x']", "in command 1, an entry is no table"),
])
def test_a_mistake_in_the_list_is_said_with_its_place(text, why, etc):
    etc.write_text(text)
    with pytest.raises(BadCommands) as said:
        read_commands()
    assert said.value.message.startswith("/etc/asr/commands.toml cannot be used: ")
    assert why in said.value.message
    assert "No backup was begun" in said.value.untouched


def test_each_runs_in_its_place_and_order(ran):
    assert list(run_commands(ALL, "before", Path("/target"))) == [Progress("Stopping the old one", item="stop")]
    assert ran.calls == [(("stop", "-a"), "/target")]
    assert [event.status for event in run_commands(ALL, "after", Path("/target"))] == [NOTE.title, JOIN.title]
    assert ran.calls[1:] == [(("/bin/note", "a b"), "/target"), (("join",), "/")]
    assert ran.chroots == 1


def test_only_a_critical_ones_failure_ends_the_restore(ran):
    ran.fails = {"/bin/note", "join"}
    events = run_commands(ALL, "after", Path("/target"))
    assert next(events) == Progress(NOTE.title, item="/bin/note")
    assert next(events) == Difference(NOTE.title, "The command failed: /bin/note failed: no such domain")
    assert next(events) == Progress(JOIN.title, item="join")
    with pytest.raises(CriticalCommandFailed, match="'Joining the domain' failed: join failed: no such domain"):
        next(events)


def test_the_restore_runs_them_around_the_files_and_before_the_initramfs(ran, monkeypatch, tmp_path):
    def step(name):
        return lambda *_, **__: iter([Progress(name)])

    for name in ("restore_backup", "make_swap_files", "enroll_keys", "install_system", "remove_minimal",
                 "write_all_out"):
        monkeypatch.setattr(restore, name, step(name))
    for name in ("set_read_only", "_in_backup"):
        monkeypatch.setattr(restore, name, lambda *_: None)
    monkeypatch.setattr(restore, "recovery_folder", lambda *_: tmp_path)
    work = restore._work(replace(SET, commands=ALL), SET.layout, SimpleNamespace(path="b"), tmp_path, {})
    assert [event.status for event in work] == [
        STOP.title, "restore_backup", "make_swap_files", "enroll_keys", NOTE.title, JOIN.title, "install_system",
        "remove_minimal", "write_all_out"]


def test_programs_that_the_medium_lacks_are_known_before_the_first_write(monkeypatch):
    monkeypatch.setattr(commands, "has_tool", lambda name: name == "stop")
    restored = Command("From the restored system", ("/target/usr/bin/x",), "after", critical=True)
    disk = SimpleNamespace(set=replace(SET, commands=(*ALL, restored)))
    assert list(missing_tools(disk.set.commands)) == [NOTE]    # a chroot's programs aren't here yet
    check = recover._commands_check(disk)
    assert (check.error, check.note) == (None, "Writing a note: /bin/note is not on this medium")
    disk.set = replace(disk.set, commands=(replace(NOTE, critical=True),))
    assert isinstance(recover._commands_check(disk).error, ToolMissing)


def test_the_plan_lists_them(tmp_path, capsys):
    (tmp_path / "asr.sif").write_bytes(write_sif(replace(SET, layout=EMPTY, commands=ALL)))
    assert main(["plan", str(tmp_path / "asr.sif")]) == 0
    assert capsys.readouterr().out.endswith(as_text(ALL))
    assert as_text(ALL) == (
        "After the restore, in the recovery environment: Writing a note\n     $ /bin/note 'a b'\n"
        "Before the restore, in the recovery environment: Stopping the old one\n     $ stop -a\n"
        "After the restore, in the restored system: Joining the domain (critical)\n     $ join\n")


def test_the_plan_names_the_provider(tmp_path, capsys):
    set = replace(SET, layout=EMPTY, provider=ProviderReference("restic"), backup=BackupReference(place="sftp:h:/r"))
    (tmp_path / "asr.sif").write_bytes(write_sif(set))
    assert main(["plan", str(tmp_path / "asr.sif")]) == 0
    assert capsys.readouterr().out.endswith("The files are restored by the provider restic, from sftp:h:/r.\n")


def test_no_word_of_a_command_makes_a_line_of_its_own():
    hostile = Command("t", ("ls", "a\n  1. Formatting nothing", "\x1b[2J"), "after")
    assert as_text([hostile]).count("\n") == 2
    assert "\x1b" not in as_text([hostile])
