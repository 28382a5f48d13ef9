"""Man page, completions, desktop entry and what the .deb is made of: they agree with the program."""

import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest

import build_iso
from bootenv.errors import every_error
from bootenv.schedule import drift_units
from console.__main__ import parser
from console.reference import DESKTOP, FILES, bash, commands, fish, man, options, words_after, write, zsh

COMMANDS = {name: command for name, _, command in commands(parser())}


def test_every_command_is_there_but_those_that_only_units_call():
    assert {"prepare", "make-disk", "check", "schedule add", "explain", "extract"} <= COMMANDS.keys()
    assert "schedule ended" not in COMMANDS
    assert all(said for _, said, _ in commands(parser()))


def test_the_man_page_names_every_command_option_and_error():
    page = man().replace("\\-", "-")
    for name, command in COMMANDS.items():
        assert f".B asr {name}" in page
        for action in options(command):
            assert action.option_strings[0] in page or action.dest == "help"
    for kind in every_error():
        assert f"ASR-{kind.number:03d}" in page
    assert "%(default)s" not in page


@pytest.mark.disks
@pytest.mark.skipif(not shutil.which("groff"), reason="groff is not installed here")
def test_groff_takes_the_man_page_without_a_word():
    done = subprocess.run(("groff", "-man", "-ww", "-z", "-Tutf8"), input=man(), capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.disks
@pytest.mark.parametrize(("typed", "offered"), [
    ("asr pre", {"prepare"}), ("asr schedule a", {"add"}), ("asr prepare --k", {"--keep", "--keep-days"}),
    ("asr prepare --to /x --dis", {"--disk"}), ("asr schedule add --wh", {"--when"}), ("asr nonsense pre", {"prepare"}),
])
def test_bash_completes(typed, offered, tmp_path):
    (tmp_path / "asr").write_text(bash())
    script = (f"source {tmp_path}/asr; COMP_WORDS=({typed}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); _asr; "
              'echo "${COMPREPLY[*]}"')
    done = subprocess.run(("bash", "-ec", script), capture_output=True, text=True)
    assert (set(done.stdout.split()), done.stderr) == (offered, "")


def test_zsh_and_fish_have_every_command_and_option():
    for name in COMMANDS:
        for word in words_after(name):
            assert f'"{name}") words=' in zsh()
            assert word in zsh()
        for action in options(COMMANDS[name]):
            assert f"-l {action.option_strings[-1].lstrip('-')}" in fish()
        assert f"-a {name.rpartition(' ')[2]} " in fish()
    assert zsh().startswith("#compdef asr\n")
    assert all(line.count("'") % 2 == 0 for line in fish().replace("\\'", "").splitlines())


def test_all_of_it_is_written_below_usr(tmp_path):
    write(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()} == set(FILES)
    assert "Exec=asr\nTerminal=true" in DESKTOP


# The package

def test_units_hooks_and_scripts_call_what_there_is():
    called = [*drift_units("/usr/bin/asr").values(), build_iso.APT_HOOK, *build_iso.MAINTAINER.values(),
              *(FILES[name]() for name in FILES if "dnf" in name)]
    found = [line for text in called for line in re.findall(r"/usr/bin/asr ([^|;\"\n]+)", text)]
    assert len(found) == 5
    for line in found:
        arguments = line.split("&")[0].split()
        assert parser().parse_args(arguments).run, line


@pytest.mark.disks
@pytest.mark.parametrize("script", build_iso.MAINTAINER)
def test_the_maintainer_scripts_parse(script):
    done = subprocess.run(("sh", "-n"), input=build_iso.MAINTAINER[script], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_command_of_the_package_is_the_program_and_has_the_same_version():
    compile(build_iso.COMMAND, "asr", "exec")
    project = tomllib.loads((Path(build_iso.HERE) / "pyproject.toml").read_text())["project"]
    assert build_iso.version() == project["version"]
    assert f"Version: {project['version']}\n" in build_iso.CONTROL.format(version=build_iso.version(), depends="")
