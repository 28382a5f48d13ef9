"""User-mode Linux: a kernel with partition tables, loop devices and file systems, as a plain process.

The machine's own root is its root, read-only; disks are image files, /dev/ubda, /dev/ubdb and so on.
https://docs.kernel.org/virt/uml/user_mode_linux_howto_v2.html
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

_INIT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
mount -t proc proc /proc; mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
/lib/systemd/systemd-udevd --daemon; udevadm trigger; udevadm settle
mount -t tmpfs tmpfs /mnt
mount -t hostfs none /mnt -o {folder}
cd {repository}
{python} -m {module} {argument} >/mnt/result 2>/mnt/errors
echo $? >/mnt/status
sync
halt -f -p
"""


def run_in_uml(module: str, argument: str, disks: list[Path], seconds: int = 120) -> Any:
    """Runs `python -m module argument` as root in a fresh kernel with these disks; the JSON that it printed."""
    with tempfile.TemporaryDirectory(prefix="uml-") as folder:
        init = Path(folder) / "init"
        init.write_text(_INIT.format(folder=folder, repository=Path(__file__).parent.parent, python=sys.executable,
                                     module=module, argument=argument))
        init.chmod(0o755)
        console = subprocess.run(
            ("linux.uml", "mem=384M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro", f"init={init}",
             "quiet", "panic=-1", "con=null", "con0=null,fd:1", f"uml_dir={folder}", f"umid={init.parent.name}",
             *(f"ubd{number}={disk}" for number, disk in enumerate(disks))),
            stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=seconds,
            env={**os.environ, "TMPDIR": folder},
        )
        status = Path(folder) / "status"
        errors = Path(folder) / "errors"
        if not status.exists() or status.read_text().strip() != "0":
            said = errors.read_text() if errors.exists() else ""
            raise AssertionError(f"user-mode Linux failed:\n{console.stdout[-2000:]}\n{said}")
        return json.loads((Path(folder) / "result").read_text())
