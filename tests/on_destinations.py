"""What test_destinations runs inside user-mode Linux: volumes that a backup may and may not be written to.

    python -m tests.on_destinations -        with /dev/ubda, /dev/ubdb, /dev/ubdc and /dev/ubdd blank
"""

import json
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

from bootenv import media
from bootenv.backup import Source, write_backup
from bootenv.destinations import POINT, at, destination, places
from bootenv.errors import DestinationRefused
from bootenv.events import Difference
from bootenv.layout import Disk, Layout
from bootenv.sif import write_sif
from tests.on_snapshots import shell
from tests.test_destinations import MiB, a_set
from tests.test_sif import SET

SYSTEM = a_set(Layout((Disk("a", "/dev/ubda", 64 * MiB),)))
USED = 40 * MiB


def main(_: str) -> None:
    tempfile.tempdir = "/run"                  # nothing else can be written here
    media.VERIFIED = "run/verified"            # below /, which is not ours to write
    subprocess.run(("sfdisk", "-q", "/dev/ubda"), input=b"label: gpt\nstart=2048\n", check=True)
    shell("udevadm", "settle")
    shell("mkfs.ext4", "-q", "-L", "root", "/dev/ubda1")
    shell("mkfs.ext4", "-q", "-L", "SMALLER", "/dev/ubdb")
    shell("mkfs.xfs", "-q", "-L", "BACKUP", "/dev/ubdc")
    shell("mkfs.fat", "-n", "TINY", "/dev/ubdd")
    for device in "abcd":
        shell("udevadm", "trigger", f"/dev/ubd{device}")
    shell("udevadm", "settle")
    Path("/run/system").mkdir()
    shell("mount", "/dev/ubda1", "/run/system")
    results: dict[str, object] = {"places": [asdict(place) for place in places(SYSTEM, USED)]}
    results["refused"] = {place: refused(place) for place in (
        "/dev/ubda1", "/run/system", "/run", "/dev/ubdd", "/dev/ubdz", "/nowhere")}
    results["mounts before"] = mounts()
    found = destination(SYSTEM, USED, "/dev/ubdc")
    results["found"] = {"path": str(found.path), "reference": asdict(found.reference), "free": found.free,
                        "speed": found.speed, "warnings": found.warnings}
    results["mounts between"] = mounts()
    with at(found):
        for _ in write_backup(found.path, [Source("/run/system")], ("asr.sif", write_sif(SET)), workers=1):
            pass
        results["mounts meanwhile"] = mounts()
    results["mounts after"] = mounts()
    results["again"] = refused("/dev/ubdc")
    Path("/run/look").mkdir()
    shell("mount", "-o", "ro", "/dev/ubdc", "/run/look")
    results["on the disk"] = sorted(path.name for path in Path("/run/look").iterdir())
    results["read-only"] = refused("/run/look/other.tar.zst")
    shell("umount", "/run/look")
    results["media"] = looked_after()
    results["killed"] = killed()
    json.dump(results, sys.stdout)


def looked_after() -> dict[str, object]:
    """The backup is found, on a volume that is not mounted and on one that is; it is compared and removed."""
    [unmounted] = media.known()
    media.forget()
    Path("/run/rw").mkdir()
    shell("mount", "/dev/ubdc", "/run/rw")
    [mounted] = media.known()
    damaged = [event for event in media.verify(mounted) if isinstance(event, Difference)]
    [verified] = media.known()
    media.delete(verified)
    left = sorted(path.name for path in Path("/run/rw").iterdir())
    again = media.known()
    media.forget()
    shell("umount", "/run/rw")
    return {"places": [unmounted.backup.place, mounted.backup.place], "size": mounted.size, "damaged": damaged,
            "verified": [mounted.verified is not None, verified.verified is not None], "left": left,
            "again": len(again), "mounts": mounts()}


def refused(place: str) -> str:
    try:
        destination(SYSTEM, USED, place)
    except DestinationRefused as error:
        return error.message
    return ""


def mounts() -> list[str]:
    return [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if line.startswith("/dev/ubd")]


def killed() -> list[list[str]]:
    """What is mounted while a process needs it, and once that process was killed."""
    program = ("import signal\nfrom bootenv.destinations import reached\n"
               "with reached('/dev/ubdb'):\n    print('ready', flush=True)\n    signal.pause()\n")
    process = subprocess.Popen((sys.executable, "-c", program), stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "ready\n"
    meanwhile = mounts()
    process.send_signal(signal.SIGKILL)
    process.wait()
    for _ in range(100):
        if str(POINT) not in mounts():
            break
        time.sleep(0.1)
    return [meanwhile, mounts()]


if __name__ == "__main__":
    main(sys.argv[1])
