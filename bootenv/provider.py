"""Providers: another backup product in the place of our backup. This page is enough to write one.

A provider is one executable, in any language, that belongs to root and lies in /etc/asr/providers or
/usr/lib/asr/providers; `asr prepare --provider NAME --to PLACE --disk DISK` uses it. It is called with one word:

    NAME plan        Could the work begin now? What does it need?
    NAME backup      Write the files of this computer to the place.
    NAME restore     Make them again, in the target.

What is known is in its environment:

    ASR_WORK         of plan: backup or restore, whichever is meant; of the others the same as the word
    ASR_SET          the id of the ASR set, a UUID; restore gets that of the backup
    ASR_HOST         the computer's name
    ASR_NAME         HOST-DATE-TIME: a name that no other set of the computer has, fit for a file
    ASR_PLACE        where the backup is: what --to said. A folder is on a volume of its own; in recovery this is where
                     ASR has mounted that volume, read-only. What has a colon before any slash (sftp:host:/dir) is
                     passed on as it is
    ASR_OPTION_KEY   what --option key=VALUE said, for each, a dash in its name as "_"; they are in asr.sif, which is no
                     place for secrets
    ASR_FILES, ASR_BYTES     about how much there is
    ASR_SOURCE       backup: the directory whose whole content is to come back, read-only, other file systems mounted
                     in it where they belong
    ASR_EXCLUDE      backup: what may be left out, a pattern a line: as of a shell, from ASR_SOURCE on without the first
                     slash, "*" takes "/", too, and what lies below is meant with it
    ASR_TARGET       restore: the directory to make it in, its file systems mounted. It may hold half a restore, which
                     the power has cut: make that anew. Delete nothing: what restores lies there, too, in asr-recovery

and on its standard input each secret that it has asked for: its name, a blank, its text, a line feed.

On its standard output ASR reads these lines, whenever they come; others go to the log:

    PROGRESS BYTES FILES ITEM    done so far, and what is at hand; not more often than ten times a second
    DIFFERENCE PATH: WHY         this is not in the backup, or did not come back, as it was
    NOTE TEXT                    of plan: where the backup is, how large, what recovery will need; people read it
    ASK NAME QUESTION            of plan for a restore: a secret that is missing, or wrong; a person is asked for it
    VERIFIED                     of backup: all that was written was read again and compared; ASR says so only then

Exit status 0: the work is done, whatever DIFFERENCEs there are; for a plan, it could begin, or could once what it ASKs
is known. Any other: it failed; the last line on standard error says why. Standard error is in the log. When a person
cancels, it gets SIGTERM, and takes away what it has begun.

It runs as root, without a terminal, with LC_ALL=C.UTF-8. Owners are to be kept as numbers, and ACLs and all extended
attributes with them. Only the executable itself is carried to recovery, on the ASR disk; what it calls must be on the
recovery medium, which has sh, python3, tar, zstd and restic. Swap files, boot loaders and initramfs are ASR's business.
bootenv/providers has two that ship, to look at: tar and restic.
"""

import os
import re
import stat
from collections.abc import Generator, Iterable, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from .carried import gathered, is_whole
from .errors import CommandFailed, NoProvider, ProviderFailed, ToolMissing
from .events import Difference, Event, Progress
from .run import ROOT, lines_of, log
from .sif import OPTION, PROVIDER, PROVIDERS, AsrSet, ProviderReference

SHIPPED = Path(__file__).with_name("providers")
_FOLDERS = ("etc/asr/providers", "usr/lib/asr/providers")
_SECRET = "provider/"                  # begins the names of its secrets among the passphrases of a restore
_WORDS = ("PROGRESS", "DIFFERENCE", "NOTE", "ASK", "VERIFIED")
_LONGEST = 300                         # characters of what it says that are shown


@dataclass(frozen=True)
class Plan:
    """What a provider says before its work."""

    notes: tuple[str, ...] = ()
    questions: Mapping[str, str] = field(default_factory=dict)         # of the secrets that are missing, by name


def find_provider(name: str) -> Path:
    """This machine's executable of a name. Raises NoProvider."""
    for path in (*(ROOT / folder / name for folder in _FOLDERS), SHIPPED / name):
        try:
            status = path.stat()
        except OSError:
            continue
        own = path.parent == SHIPPED           # as safe as this program
        if not own and (status.st_uid not in (0, os.geteuid()) or stat.S_IMODE(status.st_mode) & 0o022):
            raise NoProvider(f"{path} can be changed by others than root.",
                             hint=f"Run  chown root {path}; chmod 755 {path}")
        if os.access(path, os.X_OK) and path.is_file():
            if not own and not runs_on_its_machine():
                raise NoProvider(f"{name} is a provider of this computer, where asr is not installed.",
                                 hint="Install the .deb or the wheel, then run asr from there.")
            return path
    raise NoProvider(f"There is no provider {name}.",
                     hint=f"These ship: {', '.join(sorted(path.name for path in SHIPPED.iterdir()))}.")


def known_providers() -> tuple[str, ...]:
    """The names of those that this machine can use."""
    names = {path.name for folder in (*(ROOT / folder for folder in _FOLDERS), SHIPPED) if folder.is_dir()
             for path in folder.iterdir()}
    usable = []
    for name in sorted(names):
        with suppress(NoProvider):
            find_provider(provider_reference(name).name)
            usable.append(name)
    return tuple(usable)


def provider_reference(name: str, options: Iterable[str] = ()) -> ProviderReference:
    """A provider and its options, each KEY=VALUE. Raises NoProvider for what asr.sif can't hold."""
    words = dict(option.partition("=")[::2] for option in options)
    if not PROVIDER.fullmatch(name) or not all(OPTION.fullmatch(key) for key in words):
        raise NoProvider("A provider's name has letters, digits, dots and dashes, an option's name small letters and "
                         "dashes.", hint="An option is KEY=VALUE.")
    return ProviderReference(name, words)


def runs_on_its_machine() -> bool:
    """Started from the medium, the program is in a root of its own, where a machine's executables find nothing."""
    return str(ROOT) == "/"


def provider_of(set: AsrSet) -> Path:
    """The executable that goes along with a set, as it was recorded, or the medium's own. Raises NoProvider."""
    assert set.provider
    name = set.provider.name
    file = next((file for file in set.files if file.path == f"{PROVIDERS}/{name}"), None)
    if not file:
        return find_provider(name)
    program = gathered(set) / file.path
    if not is_whole(program, file):
        raise NoProvider(f"The provider {name} of this set is not on the ASR disk as it was recorded.",
                         hint="Insert another ASR disk of this set, or make one: asr make-disk.")
    program.chmod(0o700)
    return program


def make_plan(program: Path, set: AsrSet, work: str, place: str, secrets: Mapping[str, bytes] | None = None) -> Plan:
    """Has a provider say whether "backup" or "restore" could begin. Raises ProviderFailed."""
    notes, questions = [], {}
    for word, said in _said(program, "plan", set, place, secrets or {}, {"ASR_WORK": work}):
        name, _, question = said.partition(" ")
        if word == "NOTE":
            log(f"{program.name}: {said}")
            notes.append(said)
        elif word == "ASK" and re.fullmatch(r"\w{1,40}", name):
            questions[name] = question
    return Plan(tuple(notes), questions)


def back_up(program: Path, set: AsrSet, place: str, source: Path, exclude: Iterable[str]
            ) -> Generator[Event, None, bool]:
    """Returns whether the provider says that it has compared what it wrote. Raises ProviderFailed."""
    patterns = "\n".join(pattern for pattern in exclude if "\n" not in pattern)
    verified = False
    facts = {"ASR_SOURCE": str(source), "ASR_EXCLUDE": patterns}
    with closing(_said(program, "backup", set, place, {}, facts)) as lines:
        for word, said in lines:
            verified |= word == "VERIFIED"
            yield from _event(set, f"Backing up files with {program.name}...", word, said)
    return verified


def restore_files(program: Path, set: AsrSet, place: str, target: Path, secrets: Mapping[str, bytes]
                  ) -> Iterator[Event]:
    """`secrets`: all of the restore, of which the provider gets its own. Raises ProviderFailed."""
    with closing(_said(program, "restore", set, place, secrets, {"ASR_TARGET": str(target)})) as lines:
        for word, said in lines:
            yield from _event(set, f"Restoring files with {program.name}...", word, said)


def secret_of(name: str) -> str:
    """A provider's secret among the passphrases of a restore."""
    return _SECRET + name


def _said(program: Path, word: str, set: AsrSet, place: str, secrets: Mapping[str, bytes],
          more: Mapping[str, str]) -> Generator[tuple[str, str], None, None]:
    """The first word and the rest of each line that is one of ours."""
    assert set.provider
    environment = {
        "ASR_WORK": word, "ASR_SET": set.id, "ASR_HOST": set.host, "ASR_NAME": set.backup.name, "ASR_PLACE": place,
        "ASR_FILES": str(set.backup.files), "ASR_BYTES": str(set.backup.bytes),
        **{f"ASR_OPTION_{key.upper().replace('-', '_')}": value for key, value in set.provider.options.items()}, **more}
    own = [(name.removeprefix(_SECRET), secret) for name, secret in secrets.items() if name.startswith(_SECRET)]
    given = b"".join(b"%b %b\n" % (name.encode(), secret) for name, secret in own)
    try:
        with closing(lines_of((str(program), word), input=given, environment=environment)) as lines:
            for line in lines:
                first, _, rest = line.partition(" ")
                if first in _WORDS:
                    yield first, _printable(rest)
                else:
                    log(f"{program.name}: {line}")
    except (CommandFailed, ToolMissing) as error:
        raise ProviderFailed(f"The provider {program.name} could not do its {word}: {error}",
                             hint="Read the log. Press ENTER to try again.") from None


def _event(set: AsrSet, status: str, word: str, said: str) -> Iterator[Event]:
    if word == "PROGRESS" and (match := re.fullmatch(r"(\d{1,18}) (\d{1,18})(?: (.*))?", said)):
        done, files = int(match[1]), int(match[2])
        yield Progress(status, done, max(set.backup.bytes, done), match[3] or "", "", files,
                       max(set.backup.files, files, 1))
    elif word == "DIFFERENCE":
        what, _, why = said.partition(": ")
        yield Difference(what, why or "It is not as it was.")


def _printable(text: str) -> str:
    """A path may hold anything, and a screen is drawn with what some characters mean."""
    return "".join(c if c.isprintable() else "?" for c in text[:_LONGEST])
