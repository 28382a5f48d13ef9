"""What test_snapshots runs inside user-mode Linux: file systems that change while they are backed up.

    python -m tests.on_snapshots -        with /dev/ubda and /dev/ubdb blank
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bootenv.backup import Source, restore_backup, write_backup
from bootenv.events import Difference
from bootenv.run import LOG
from bootenv.snapshot import held_still

WORK = Path("/run/work")
HOOK = """#!/bin/sh
echo "$0 $1 $(test -d /run/work/{0}/.asr-snapshot && echo held) $(lvs --noheadings -o lv_name vg | xargs)" >> /run/hooks
exit {1}
"""


def main(_: str) -> None:
    tempfile.tempdir = "/run"                  # nothing else can be written here
    make()
    results = {name: backed_up(*places) for name, places in {
        "two": [("ext4", ""), ("btrfs", "home")], "xfs": [("xfs", "")], "mixed": [("ext4", ""), ("tmpfs", "srv")],
    }.items()}
    shell("lvcreate", "--yes", "--quiet", "--name", "fill", "--extents", "100%FREE", "vg")
    results["no room"] = backed_up(("ext4", ""))
    shell("lvremove", "--yes", "--quiet", "vg/fill")
    shell("lvcreate", "--yes", "--quiet", "--snapshot", "--name", "asr-snapshot-0", "--size", "16M", "vg/ext4")
    shell("lvcreate", "--yes", "--quiet", "--name", "fill", "--extents", "100%FREE", "vg")
    results["older"] = backed_up(("ext4", ""))
    shell("lvremove", "--yes", "--quiet", "vg/fill")
    with read_only():
        results["read-only"] = backed_up(("btrfs", ""))
    with read_only("within"):
        results["half"] = backed_up(("btrfs", ""))
    results["overrun"] = backed_up(("xfs", ""), flood=120)
    results["killed"] = killed()
    json.dump(results, sys.stdout)


def make() -> None:
    modules = Path("/usr/lib/uml/modules") / os.uname().release / "kernel/drivers/md"
    for name in ("dm-mod", "dm-bufio", "dm-snapshot"):
        shell("insmod", str(modules / f"{name}.ko"))
    shell("mount", "-t", "tmpfs", "tmpfs", "/etc")         # the machine's own is not ours to change
    shell("vgcreate", "--quiet", "vg", "/dev/ubda")
    for name, size, options in (("ext4", "60M", ()), ("xfs", "310M", ("-q",))):
        shell("lvcreate", "--yes", "--quiet", "--name", name, "--size", size, "vg")
        shell(f"mkfs.{name}", *options, f"/dev/vg/{name}")
    shell("mkfs.btrfs", "-q", "/dev/ubdb")
    for name, device in (("ext4", "/dev/vg/ext4"), ("xfs", "/dev/vg/xfs"), ("btrfs", "/dev/ubdb"), ("tmpfs", "tmpfs")):
        (WORK / name).mkdir(parents=True)
        shell("mount", "-t", name, device, str(WORK / name))
    shell("btrfs", "subvolume", "create", str(WORK / "btrfs/inner"))
    shell("btrfs", "subvolume", "create", str(WORK / "btrfs/inner/innermost"))
    hooks = Path("/etc/asr/hooks.d")
    hooks.mkdir(parents=True)
    for name, status in (("10-first", 0), ("20-fails", 3)):
        (hooks / name).write_text(HOOK.format("btrfs", status))
        (hooks / name).chmod(0o755)
    (hooks / "README").write_text("not executable")


@contextmanager
def read_only(*inner: str) -> Iterator[None]:
    """One more subvolume, with others in it, that is read-only."""
    fixed = WORK / "btrfs/fixed"
    for path in (fixed, *(fixed / name for name in inner)):
        shell("btrfs", "subvolume", "create", str(path))
        (path / "file").write_text("fixed")
    shell("btrfs", "property", "set", "-t", "subvol", str(fixed), "ro", "true")
    yield
    shell("btrfs", "property", "set", "-t", "subvol", str(fixed), "ro", "false")
    shell("btrfs", "subvolume", "delete", *(str(path) for path in (*(fixed / name for name in inner), fixed)))


def files() -> list[Path]:
    return [WORK / name for name in ("ext4/file", "xfs/file", "btrfs/file", "btrfs/inner/file",
                                     "btrfs/inner/innermost/file", "tmpfs/file")]


def times() -> dict[str, int]:
    """Of the btrfs directories in which snapshots come and go, in nanoseconds."""
    return {str(path): path.parent.stat().st_mtime_ns for path in files() if "btrfs" in str(path)}


def sources(*places: tuple[str, str]) -> list[Source]:
    return [Source(WORK / name, prefix) for name, prefix in places]


def backed_up(*places: tuple[str, str], flood: int = 0) -> dict[str, object]:
    """A backup of file systems whose files change once the reading may begin; flood: MiB that are written then."""
    Path("/run/hooks").unlink(missing_ok=True)
    for path in files():
        path.write_text("before")
    notes: list[Difference] = []
    before = times()
    Path("/run/b").unlink(missing_ok=True)
    with held_still(sources(*places), notes) as found:
        for path in files():
            path.write_text("after")
        if flood:
            with open(WORK / "xfs/flood", "wb") as file:
                for _ in range(flood):
                    file.write(os.urandom(2**20))
            os.sync()
        during = times()
        told = list(write_backup(Path("/run/b"), found, workers=1))
    after = times()
    (WORK / "xfs/flood").unlink(missing_ok=True)
    shell("rm", "-rf", "/run/out")
    Path("/run/out").mkdir()
    told += list(restore_backup(Path("/run/b"), Path("/run/out"), anywhere=True, workers=1))
    return {
        "files": {str(path.relative_to("/run/out")): path.read_text(errors="replace")
                  for path in Path("/run/out").rglob("*") if path.is_file()},
        "told": [f"{e.what}: {e.why}" for e in (*notes, *told) if isinstance(e, Difference)],
        "hooks": Path("/run/hooks").read_text().splitlines(),
        "left": left(),
        "times": [before, during, after],
        "log": LOG.read_text()[-3000:],
    }


def killed() -> dict[str, object]:
    """A process that is killed while it reads."""
    Path("/run/hooks").unlink(missing_ok=True)
    program = ("import os, signal\nfrom bootenv.snapshot import held_still\nfrom tests.on_snapshots import sources\n"
               "with held_still(sources(('ext4', ''), ('btrfs', 'home'), ('tmpfs', 'srv')), []):\n"
               "    print('ready', flush=True)\n    signal.pause()\n")
    process = subprocess.Popen((sys.executable, "-c", program), stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    held = left()
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(100):
        if not left() and len(Path("/run/hooks").read_text().splitlines()) == 4:
            break
        time.sleep(0.1)
    return {"held": held, "left": left(), "hooks": Path("/run/hooks").read_text().splitlines()}


def left() -> list[str]:
    """Snapshots that are there now."""
    volumes = shell("lvs", "--noheadings", "--options", "lv_name", "vg").split()
    subvolumes = shell("btrfs", "subvolume", "list", str(WORK / "btrfs")).split()
    return sorted(name for name in (*volumes, *subvolumes) if "asr-snapshot" in name)


def shell(*argv: str, check: bool = True) -> str:
    done = subprocess.run(argv, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert not check or done.returncode == 0, f"{argv}: {done.stdout}"
    return done.stdout


if __name__ == "__main__":
    main(sys.argv[1])
