"""What shells and man(1) say of the `asr` command, made from its own parser so that they can't differ from it.

    python -m console.reference DIRECTORY          man page, completions, desktop entry, hooks, as below /usr
"""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path

from bootenv.commands import __doc__ as commands_page
from bootenv.errors import every_error
from bootenv.provider import __doc__ as provider_page

from . import __version__
from .__main__ import parser

DESKTOP = """\
[Desktop Entry]
Type=Application
Name=Automated System Recovery
Comment=Back up this computer so that it can be recovered after its disks were lost
Exec=asr
Terminal=true
Icon=drive-harddisk
Categories=System;Utility;Archiving;
Keywords=backup;restore;recovery;disaster;
"""
# dnf 4: python3-dnf-plugin-post-transaction-actions; dnf 5: libdnf5-plugin-actions.
DNF4 = "*:any:/usr/bin/asr check --drift --packages --remind\n"
DNF5 = "post_transaction:::enabled=host-only:/usr/bin/asr check --drift --packages --remind\n"

_ABOUT = """\
Automated System Recovery brings a Linux computer back after its disks were lost. On the healthy computer an ASR set is
prepared: one backup file and one small disk. After a disaster the recovery medium is started, F2 is pressed, and the
ASR disk is inserted.

Without a command, the Backup or Restore Wizard starts."""


def commands(of: argparse.ArgumentParser, name: str = "") -> Iterator[tuple[str, str, argparse.ArgumentParser]]:
    """Each command's name ("schedule add"), what it does, and its parser."""
    for action in of._actions:
        if isinstance(action, argparse._SubParsersAction):
            helps = {choice.dest: choice.help or "" for choice in action._choices_actions}
            for word, command in action.choices.items():
                if word in helps:
                    yield f"{name} {word}".strip(), helps[word], command
                    yield from commands(command, f"{name} {word}".strip())


def options(of: argparse.ArgumentParser) -> list[argparse.Action]:
    return [action for action in of._actions if action.option_strings and action.help != argparse.SUPPRESS]


def words_after(name: str) -> list[str]:
    """What may follow a command's name."""
    found = {full: command for full, _, command in commands(parser())}
    of = found[name] if name else parser()
    below = [full.rpartition(" ")[2] for full, _, _ in commands(of) if " " not in full]
    return [*below, *(option for action in options(of) for option in action.option_strings)]


def bash() -> str:
    cases = "\n".join(f'        "{name}") words="{" ".join(words_after(name))}";;'
                      for name in ("", *(name for name, _, _ in commands(parser()))))
    return f"""\
# bash completion of asr(1)
_asr() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} name="" word words=""
    for word in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
        case $word in -*) break;; *) name="${{name:+$name }}$word";; esac
    done
    while :; do
        case $name in
{cases}
        esac
        [ -n "$words" ] || [ -z "$name" ] && break
        case $name in *" "*) name=${{name% *}};; *) name="";; esac
    done
    COMPREPLY=($(compgen -W "$words" -- "$cur"))
}}
complete -o bashdefault -o default -F _asr asr
"""


def zsh() -> str:
    return f"""\
#compdef asr
# zsh completion of asr(1): that for bash
autoload -U +X bashcompinit && bashcompinit
{bash().split(chr(10), 1)[1]}"""


def fish() -> str:
    lines = ["# fish completion of asr(1)", "complete -c asr -f -n __fish_use_subcommand"]
    for name, said, command in commands(parser()):
        above, _, word = name.rpartition(" ")
        where = f"__fish_seen_subcommand_from {above}" if above else "__fish_use_subcommand"
        lines.append(f"complete -c asr -n '{where}' -a {word} -d '{_escaped(said)}'")
        for action in options(command):
            flags = " ".join(f"-l {option[2:]}" if option.startswith("--") else f"-s {option[1:]}"
                             for option in action.option_strings)
            takes = "" if action.nargs == 0 else " -r"
            seen = " ; and ".join(f"__fish_seen_subcommand_from {part}" for part in name.split())
            lines.append(f"complete -c asr -n '{seen}' {flags}{takes} -d '{_escaped(_help(action))}'")
    return "\n".join(lines) + "\n"


def _escaped(said: str) -> str:
    return said.replace("\\", "\\\\").replace("'", "\\'")


def _help(action: argparse.Action) -> str:
    return (action.help or "").replace("%(default)s", str(action.default))


def man() -> str:
    """asr(1), in man(7)'s macros."""
    lines = [f'.TH ASR 1 "" "asr {__version__}" "Automated System Recovery"', ".SH NAME",
             r"asr \- prepare a Linux computer for its recovery, and look into its backups", ".SH SYNOPSIS",
             r".B asr", "[\\fICOMMAND\\fR [\\fIargument\\fR...]]", ".SH DESCRIPTION", *_roff(_ABOUT), ".SH COMMANDS"]
    for _, said, command in commands(parser()):
        usage = " ".join(command.format_usage().removeprefix("usage: ").split())
        lines += [".TP", f".B {_plain(usage)}", _plain(said + ".")]
        for action in options(command):
            if action.dest != "help":
                value = f" \\fI{_plain(str(action.metavar or action.dest.upper()))}\\fR" if action.nargs != 0 else ""
                lines += [".RS", ".TP", f"\\fB{_plain(action.option_strings[0])}\\fR{value}", _plain(_help(action)),
                          ".RE"]
    for heading, page in (("COMMANDS AT RECOVERY", commands_page), ("PROVIDERS", provider_page)):
        lines += [f".SH {heading}", ".nf", *_plain(page or "").splitlines(), ".fi"]
    lines += [".SH FILES"]
    for path, what in (
        ("/var/lib/asr/repair/asr.sif", "the newest set's state: a copy of what is on its ASR disk"),
        ("/var/lib/asr/reports", "a report of each set that was prepared here"),
        ("/var/lib/asr/drivers", "drivers and firmware that go along with every set, kept by asr add-driver"),
        ("/etc/asr/commands.toml", "what recovery runs before and after the restore, see above"),
        ("/etc/asr/providers, /usr/lib/asr/providers", "executables that stand for other backup products, see above"),
        ("/etc/asr/hooks.d", "executables that are called with before and after a backup"),
        ("/run/asr/setup.log", "what the program did since the last start, with each command that it ran"),
        ("~/.config/asr/asr.toml", "whether asr starts as a wizard"),
    ):
        lines += [".TP", f".I {path}", what]
    lines += [".SH ERRORS", "Each error has a number;", r".B asr explain", "says more about it."]
    for kind in every_error():
        lines += [".TP", f"ASR-{kind.number:03d}", _plain(kind.title)]
    lines += [".SH EXIT STATUS", "0 if all is done and as it should be, 1 if not, 2 for a command line that is none.",
              "130 after Ctrl+C, 143 after SIGTERM, 129 after SIGHUP: what was not whole is removed then.",
              r"Of asr check: 0 recoverable, 1 with losses, 2 not recoverable, 3 could not look.",
              r"Of asr check \-\-drift: 0 nothing has changed, 1 a new set is due, 3 could not look."]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield from (".PP", _plain(paragraph))


def _plain(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-")
    return "\n".join("\\&" + line if line.startswith((".", "'")) else line for line in text.splitlines())


FILES = {
    "share/man/man1/asr.1": man,
    "share/bash-completion/completions/asr": bash,
    "share/zsh/site-functions/_asr": zsh,
    "share/fish/vendor_completions.d/asr.fish": fish,
    "share/applications/asr.desktop": lambda: DESKTOP,
    "share/doc/asr-recovery/dnf4/asr.action": lambda: DNF4,
    "share/doc/asr-recovery/dnf5/asr.actions": lambda: DNF5,
}


def write(directory: Path) -> None:
    for name, make in FILES.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(make())


if __name__ == "__main__":
    write(Path(sys.argv[1]))
