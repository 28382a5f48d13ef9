"""Records a machine: what its tools say of its disks, for tests/machines. Nothing on the machine is changed.

    sudo python -m tests.record FOLDER

FOLDER then holds commands.json, with the output of every program that looking at the machine ran, and the few files of
/etc that say how its disks are used. Look through it before you send it: it names disks' serial numbers and labels.
"""

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import bootenv.probe
import bootenv.run
from bootenv.probe import probe
from bootenv.run import ROOT

FILES = ("etc/fstab", "etc/crypttab", "etc/os-release")
_MISSING = 127                         # the shell's exit status for a program that is not there

Commands = list[dict[str, Any]]


@contextmanager
def instead(module: Any, name: str, value: Any) -> Iterator[None]:
    """Something else in a module for a while; the live image has no unittest.mock."""
    real = getattr(module, name)
    setattr(module, name, value)
    try:
        yield
    finally:
        setattr(module, name, real)


@contextmanager
def recording() -> Iterator[Commands]:
    """Collects every program that bootenv runs, with its exit status and what it wrote."""
    commands: Commands = []
    real = bootenv.run._to_its_end

    def run(argv: tuple[str, ...], *options: Any) -> Any:
        entry: dict[str, Any] = {"argv": list(argv), "status": _MISSING, "out": []}
        commands.append(entry)
        done = real(argv, *options)
        entry |= {"status": done.returncode, "out": done.stdout.decode(errors="surrogateescape").splitlines()}
        return done

    with instead(bootenv.run, "_to_its_end", run):
        yield commands


@contextmanager
def replayed(folder: Path) -> Iterator[None]:
    """bootenv sees the recorded machine; a program that was not recorded is an AssertionError."""
    machine = json.loads((folder / "commands.json").read_text())
    recorded = {tuple(entry["argv"]): entry for entry in machine["commands"]}

    def run(argv: tuple[str, ...], *_: Any) -> Any:
        assert argv in recorded, f"{argv} was not recorded"
        entry = recorded[argv]
        if entry["status"] == _MISSING:
            raise FileNotFoundError(argv[0])
        out = "".join(f"{line}\n" for line in entry["out"])
        return SimpleNamespace(returncode=entry["status"], stdout=out.encode(errors="surrogateescape"), stderr=b"")

    with instead(bootenv.run, "_to_its_end", run), \
            instead(bootenv.probe, "ROOT", Path(machine["root"])), \
            instead(bootenv.probe, "_file", lambda name: _text(folder / name)):
        yield


def _text(path: Path) -> str:
    return path.read_text(errors="replace") if path.exists() else ""


def save(commands: Commands, folder: Path, root: Path = ROOT) -> None:
    """`root`: where the machine's own root was mounted while it was looked at."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "commands.json").write_text(json.dumps({"root": str(root), "commands": commands}, indent=1) + "\n")
    for name in FILES:
        if (root / name).is_file():
            (folder / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(root / name, folder / name)


def main(folder: str) -> None:
    with recording() as commands:
        layout = probe()
    save(commands, Path(folder))
    print(f"{len(layout.disks)} disks, {len(layout.filesystems)} file systems; {len(commands)} programs in {folder}.")


if __name__ == "__main__":
    main(sys.argv[1])
