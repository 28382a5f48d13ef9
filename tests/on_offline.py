"""What test_offline runs inside user-mode Linux: a machine that runs, then stands still, and is found, opened, mounted.

    python -m tests.on_offline SCENARIO        on blank disks; prints what is known of it either way
"""

import json
import os
import re
import signal
import sys
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import bootenv.probe
from bootenv import offline
from bootenv.check import part_on, recoverable_part
from bootenv.errors import NoSystem
from bootenv.layout import Layout
from bootenv.probe import probe
from bootenv.run import LOG, OFFLINE
from tests.on_disks import MACHINE, disks, records, run_script, settle, shell, stop_using
from tests.record import instead
from tests.scenarios import PASSPHRASE, SCENARIOS


def main(name: str) -> None:
    os.environ["LVM_SUPPRESS_FD_WARNINGS"] = "1"
    paths = disks(0, SCENARIOS[name].disks)
    MACHINE.mkdir()
    run_script(name, paths, "own")
    settle()
    describe()
    with instead(bootenv.probe, "ROOT", MACHINE):
        running = probe()
    stop_using()
    before = in_use()
    with offline.opened() as keeper:
        system = found()
        left_out = offline.mount(system)
        with instead(bootenv.probe, "ROOT", OFFLINE), instead(bootenv.probe, "RUNNING", False):
            at_rest = probe()
    json.dump({
        "running": as_text(running, paths), "at rest": as_text(at_rest, paths), "host": system.host,
        "left out": [difference.what for difference in left_out], "closed": keeper.returncode,
        "before": before, "after": in_use(), "after a kill": killed(before),
    }, sys.stdout)


def killed(before: list[str]) -> list[str]:
    """What is in use some time after the program was killed that had a system mounted."""
    child = os.fork()
    if not child:
        with offline.opened():
            offline.mount(found())
            os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    for _ in range(60):
        if (now := in_use()) == before:
            break
        time.sleep(0.25)
    return now


def describe() -> None:
    """The files by which a machine knows itself, as installers write them: for what is mounted and open now."""
    etc = MACHINE / "etc"
    etc.mkdir(exist_ok=True)
    (etc / "hostname").write_text("uml\n")
    (etc / "os-release").write_text('PRETTY_NAME="Linux in user mode"\n')
    rows = json.loads(shell("findmnt", "--json", "--list", "--real", "--output", "TARGET,SOURCE,FSTYPE,FSROOT"))
    lines = []
    for row in rows["filesystems"]:
        point = "/" + os.path.relpath(row["target"], MACHINE)
        if not row["target"].startswith(str(MACHINE)):
            continue
        options = f"subvol={row['fsroot']}" if row["fstype"] == "btrfs" else "defaults"
        source = called(row["source"].partition("[")[0])
        lines.append(f"{source} {point.removesuffix('.')} {row['fstype']} {options}")
    lines += [f"/{Path(path).relative_to(MACHINE)} none swap sw"
              for path in shell("swapon", "--show=NAME", "--noheadings").split() if path.startswith(str(MACHINE))]
    (etc / "fstab").write_text("\n".join([*reversed(lines), ""]))      # in no good order
    with (etc / "crypttab").open("a") as crypttab:
        for name in re.findall(r"(.+)\t", shell("dmsetup", "ls", "--target", "crypt")):
            status = shell("cryptsetup", "status", name)
            device = re.search(r"device: +(\S+)", status)
            assert device
            uuid = shell("blkid", "-p", "-s", "UUID", "-o", "value", device[1]).strip()
            crypttab.write(f"{name} UUID={uuid} none luks\n")


def called(device: str) -> str:
    uuid = shell("blkid", "-p", "-s", "UUID", "-o", "value", device).strip()
    return device if device.startswith("/dev/mapper/") else f"UUID={uuid}"


def found() -> offline.System:
    """As a person who knows every passphrase goes on."""
    while True:
        systems: tuple[offline.System, ...] = ()
        with suppress(NoSystem):
            systems = offline.find_systems()
        locked = offline.locked()
        if not locked:
            assert len(systems) == 1, LOG.read_text()[-8000:]
            return systems[0]
        assert not offline.opens(locked[0], b"wrong")
        assert offline.opens(locked[0], PASSPHRASE.encode())


def in_use() -> list[str]:
    """What is mounted of disks, mapped, and assembled."""
    settle()
    return [*shell("findmnt", "--list", "--real", "--noheadings", "--output", "TARGET,SOURCE").splitlines(),
            *shell("lsblk", "--list", "--noheadings", "--output", "PATH").split()]


def as_text(everything: Layout, paths: list[str]) -> dict[str, object]:
    """What of it recovery answers for. Without mdadm.conf the kernel counts named arrays as they come."""
    layout = recoverable_part(part_on(everything, {disk.id for disk in everything.disks if disk.path in paths}))
    return records(replace(layout, arrays=tuple(replace(array, path="") for array in layout.arrays)))


if __name__ == "__main__":
    main(sys.argv[1])
