"""Records this machine for tests/machines: what the commands of probe() print here, and its fstab.

    sudo python -m tests.record FOLDER

FOLDER then holds commands.json and etc/fstab: device names, sizes, UUIDs, labels, serial numbers and mount points,
and nothing from inside a file. Send it in, and your machine is in the tests.
"""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import bootenv.run
from bootenv.probe import probe


def record(folder: Path) -> None:
    rows = []
    real = subprocess.run

    def recording(argv, **options):
        done = real(argv, **options)
        rows.append({"argv": list(argv), "status": done.returncode,
                     "stdout": done.stdout.decode(errors="surrogateescape")})
        return done

    bootenv.run.subprocess.run = recording
    try:
        probe()
    finally:
        bootenv.run.subprocess.run = real
    (folder / "etc").mkdir(parents=True, exist_ok=True)
    (folder / "commands.json").write_text(json.dumps(rows, indent=1))
    shutil.copy(bootenv.run.ROOT / "etc/fstab", folder / "etc/fstab")


if __name__ == "__main__":
    record(Path(sys.argv[1]))
