"""Backups that are damaged and programs that are killed, at random; what is left must be right.

    python -m tests.harm damage 1000       flips, cuts, zeros, swaps of blocks, one in each backup
    python -m tests.harm kill 50           kills of a backup and of a restore, each begun again
"""

import hashlib
import os
import random
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest.mock import patch

from bootenv import backup as engine
from bootenv import collect
from bootenv.archive import Index, Volumes
from bootenv.backup import Source, restore_backup, verify_backup, write_backup
from bootenv.errors import DamagedBackup
from bootenv.events import Difference

BLOCK = 4096
FAULTS = ("flip", "cut", "zero", "swap")


class Here:
    """A Crew of nobody: the work is done in this process, so that a thousand backups don't start two thousand more."""

    def __init__(self, work: str, setup: tuple, count: int | None = None):
        module, function = work.split(":")
        self._handle = getattr(import_module(module), function)(*setup)

    def __enter__(self) -> "Here":
        return self

    def __exit__(self, *_: object) -> None:
        self._handle.close() if hasattr(self._handle, "close") else None

    def __len__(self) -> int:
        return 1

    def grow(self) -> None:
        """There is nobody to add."""

    def run(self, tasks: Iterator[tuple | None]) -> Iterator[Any]:
        for task in tasks:
            if task:
                yield from self._handle(task)

    def each(self, task: tuple) -> Iterator[Any]:
        yield from self._handle(task)


@contextmanager
def in_small_frames() -> Iterator[None]:
    """Many frames for few bytes, all of them made and read in this process."""
    with patch.object(engine, "Crew", Here), patch.object(engine, "PIECE", 200_000), \
            patch.object(collect, "PIECE", 200_000), patch.object(collect, "BATCH", 20_000):
        mask = os.umask(0o022)
        try:
            yield
        finally:
            os.umask(mask)                     # a worker that restores sets its own


def make_tree(root: Path, files: int, size: int) -> None:
    """Small files in ten directories, hard links, symlinks, two files larger than a frame."""
    seeded = random.Random(3)
    for number in range(files):
        path = root / f"d{number % 10}" / f"f{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes((seeded.randbytes(200) * 100)[:seeded.randrange(size)] + seeded.randbytes(size // 5))
        path.chmod(0o600 + number % 64)
    (root / "large").write_bytes(seeded.randbytes(2**20 + 200_000) + bytes(2**20) + seeded.randbytes(900_000))
    (root / "other").write_bytes(seeded.randbytes(700_000))
    os.link(root / "d0" / "f0", root / "d1" / "linked")
    os.symlink("f0", root / "d0" / "symlink")


def described(root: Path) -> dict[str, tuple]:
    """Each path below a directory, and what is to come back of it but the times of directories."""
    found = {}
    for path in sorted(root.rglob("*")):
        status = path.lstat()
        content = (os.readlink(path) if path.is_symlink() else
                   hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        found[str(path.relative_to(root))] = (
            status.st_mode, status.st_uid, 0 if stat.S_ISDIR(status.st_mode) else status.st_mtime_ns, content)
    return found


# Damage

class Damage:
    """One backup, and what becomes of it and of its files when it is damaged."""

    def __init__(self, place: Path, files: int = 80, size: int = 12_000):
        self.place = place
        make_tree(place / "tree", files, size)
        for _ in write_backup(place / "whole", [Source(place / "tree")], workers=1):
            pass
        self.whole = (place / "whole").read_bytes()
        self.tree = described(place / "tree")
        with Volumes(place / "whole") as volumes:
            index = Index(volumes)
            members = {seq: {os.fsdecode(r.path) for r in records} for seq, records in index.members()}
            # Of each frame: where it ends with its description, and what is in it.
            self.frames = [(p.place, p.place + p.packed, p.kind, members.get(p.seq, set())) for p in index.frames()]
            self.end = self.frames[-1][1]

    def trial(self, seed: int) -> None:
        """Raises AssertionError if anything is restored wrongly, or lost without reason or without a word."""
        seeded = random.Random(seed)
        fault = FAULTS[seed % len(FAULTS)]
        damaged, hit = inflict(self.whole, fault, seeded)
        (self.place / "b").write_bytes(damaged)
        out = self.place / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        try:
            found = [e for e in restore_backup(self.place / "b", out, anywhere=True, workers=1)
                     if isinstance(e, Difference)]
        except DamagedBackup:
            # Cut off within the first frame: there is nothing that could be read.
            assert fault == "cut", f"seed {seed}: {fault} at {hit} left nothing"
            assert len(damaged) < self.frames[1][0], f"seed {seed}: nothing was read of {len(damaged)} bytes"
            return
        there = described(out)
        wrong = [path for path, what in there.items() if what != self.tree.get(path)]
        # Of a directory whose frame is lost twice nobody knows the mode; then it is named.
        wrong = [path for path in wrong if not (self.tree[path][3] == "" and path in {d.what for d in found})]
        lost = self.tree.keys() - there.keys()
        excused = set().union(*(names for start, end, _, names in self.frames
                                if any(start < after and before < end for before, after in hit)))
        links = {"d1/linked", "d0/f0"}         # one of them is the file, and lost with it is the other
        if excused & links:
            excused |= links
        assert not wrong, f"seed {seed}: {fault} at {hit}: restored wrongly: {wrong}"
        assert lost <= excused, f"seed {seed}: {fault} at {hit}: undamaged, but lost: {lost - excused}"
        if fault != "cut":
            assert lost <= {d.what for d in found}, f"seed {seed}: {fault} at {hit}: lost without a word: {lost}"
        assert found or not lost, f"seed {seed}: something is lost, and nothing was said"
        if fault != "cut" and any(before < self.end for before, _ in hit):
            verified = [e for e in verify_backup(self.place / "b", workers=1) if isinstance(e, Difference)]
            assert lost - links <= {d.what for d in verified} or any("index" in d.what for d in verified), \
                f"seed {seed}: {fault} at {hit}: verify doesn't name {lost}"


def inflict(whole: bytes, fault: str, seeded: random.Random) -> tuple[bytes, list[tuple[int, int]]]:
    """The damaged bytes, and where they aren't what they were."""
    damaged = bytearray(whole)
    at = seeded.randrange(len(damaged))
    if fault == "cut":
        return bytes(damaged[:at]), [(at, len(whole))]
    if fault == "flip":
        damaged[at] ^= 1 << seeded.randrange(8)
        return bytes(damaged), [(at, at + 1)]
    at = seeded.randrange(len(damaged) // BLOCK) * BLOCK
    end = min(at + BLOCK, len(damaged))
    if fault == "zero":
        damaged[at:end] = bytes(end - at)
        return bytes(damaged), [(at, end)]
    other = seeded.randrange(len(damaged) // BLOCK - 1) * BLOCK
    size = min(end - at, BLOCK)
    damaged[at:at + size], damaged[other:other + size] = whole[other:other + size], whole[at:at + size]
    return bytes(damaged), [(at, at + size), (other, other + size)]


# Kills

PROGRAM = """\
import sys
from pathlib import Path
from bootenv import backup
backup._SECONDS_OF_JOURNAL = 0.02
kind, one, two, journal = sys.argv[1:]
events = backup.write_backup(Path(two), [backup.Source(one)]) if kind == "backup" else \\
    backup.restore_backup(Path(one), Path(two), anywhere=True, journal=Path(journal))
print([e for e in events if isinstance(e, backup.Difference)])
"""


class Kills:
    """A backup and a restore that are killed at random moments, and begun again."""

    def __init__(self, place: Path, files: int = 600, size: int = 60_000):
        self.place = place
        make_tree(place / "tree", files, size)
        self.tree = described(place / "tree")
        self.seconds = {}
        for kind, one, two in (("backup", "tree", "whole"), ("restore", "whole", "out")):
            (place / "out").mkdir(exist_ok=True)
            started = time.monotonic()
            assert self.run(kind, one, two) == "[]\n"
            self.seconds[kind] = time.monotonic() - started
        self.landed = 0                        # kills that came before the program's own end

    def run(self, kind: str, one: str, two: str, kill_after: float = 0.0) -> str:
        process = subprocess.Popen(
            (sys.executable, "-c", PROGRAM, kind, self.place / one, self.place / two, self.place / "journal"),
            env=os.environ | {"PYTHONPATH": os.pathsep.join(p or os.getcwd() for p in sys.path)},
            stdout=subprocess.PIPE, text=True)
        if kill_after:
            try:
                process.wait(kill_after)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGKILL)
                self.landed += 1
        return process.communicate()[0]

    def of_backup(self, seed: int) -> None:
        after = random.Random(seed).uniform(0.02, self.seconds["backup"])
        for path in self.place.glob("b*"):
            path.unlink()
        self.run("backup", "tree", "b", after)
        if (self.place / "b").exists():        # what has the name is whole
            assert self.verified(), f"killed after {after:.3f} s: a backup that isn't whole has its name"
            (self.place / "b").unlink()
        said = self.run("backup", "tree", "b")
        assert said == "[]\n", f"killed after {after:.3f} s: {said}"
        assert self.verified(), f"killed after {after:.3f} s: the next one isn't whole"
        assert [p.name for p in self.place.glob("b*")] == ["b"], f"killed after {after:.3f} s: something is left"

    def verified(self) -> bool:
        return not [e for e in verify_backup(self.place / "b", workers=1) if isinstance(e, Difference)]

    def of_restore(self, seed: int) -> None:
        seeded = random.Random(seed)
        shutil.rmtree(self.place / "out")
        (self.place / "out").mkdir()
        (self.place / "journal").unlink(missing_ok=True)
        kills = [seeded.uniform(0.02, self.seconds["restore"]) for _ in range(seeded.choice((1, 1, 2)))]
        for after in kills:
            self.run("restore", "whole", "out", after)
        said = self.run("restore", "whole", "out")
        assert said == "[]\n", f"killed after {kills}: {said}"
        there = described(self.place / "out")
        unlike = {path for path in self.tree.keys() | there.keys() if self.tree.get(path) != there.get(path)}
        assert not unlike, f"killed after {kills}: {unlike}"
        assert (self.place / "out" / "d1" / "linked").samefile(self.place / "out" / "d0" / "f0")


def main(what: str, count: int) -> None:
    place = Path(tempfile.mkdtemp(prefix="asr-harm-"))
    started = time.monotonic()
    try:
        if what == "damage":
            with in_small_frames():
                damage = Damage(place)
                for seed in range(count):
                    damage.trial(seed)
            print(f"{count} damaged backups in {time.monotonic() - started:.0f} s: nothing wrong, nothing lost unnamed")
        else:
            kills = Kills(place)
            for seed in range(count):
                kills.of_backup(seed)
                kills.of_restore(seed)
            print(f"{kills.landed} kills in {time.monotonic() - started:.0f} s: every second run made it good")
    finally:
        shutil.rmtree(place)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
