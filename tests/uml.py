"""User-mode Linux: a kernel with partition tables, device mapper, MD and file systems, as a plain process.

Its root is a tree of this computer, "/" or another distribution's, below an overlay in memory: everything may be
written, nothing is kept. Disks are image files, /dev/ubda, /dev/ubdb and so on.
https://docs.kernel.org/virt/uml/user_mode_linux_howto_v2.html
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from shlex import quote
from typing import Any

from bootenv.rehearsal import MiB

REPOSITORY = Path(__file__).parent.parent
OURS = Path("/")
MODULES = "/usr/lib/uml/modules"
# What udev would otherwise put together by itself, as the live image's does not.
MASKED = ("64-md-raid-assembly.rules", "69-lvm.rules")

# The root is changed with pivot_root, not chroot, so that the kernel itself finds modules there (a cipher's, say).
_INIT = """\
#!/bin/sh
export PATH=/usr/sbin:/usr/bin:/sbin:/bin
mount -t tmpfs tmpfs /mnt
mkdir /mnt/lower /mnt/upper /mnt/work /mnt/root /mnt/modules
mount -t hostfs none /mnt/modules -o {modules}
insmod /mnt/modules/*/kernel/fs/overlayfs/overlay.ko
mount -t hostfs none /mnt/lower -o {root}
mount -t overlay -o lowerdir=/mnt/lower,upperdir=/mnt/upper,workdir=/mnt/work root /mnt/root
cd /mnt/root
mkdir -p lib/modules etc/udev/rules.d old
mount -t proc proc proc; mount -t sysfs sysfs sys; mount -t devtmpfs dev dev
mkdir -p dev/shm; mount -t tmpfs tmpfs dev/shm; mount -t tmpfs tmpfs run
mount -t hostfs none lib/modules -o {modules}
for rules in {masked}; do ln -sf /dev/null etc/udev/rules.d/$rules; done
for shared in {folder} {shared}; do mkdir -p .$shared; mount -t hostfs none .$shared -o $shared; done
pivot_root . old
exec chroot . /bin/sh {folder}/start >dev/console 2>&1
"""
_START = """\
export HOME=/root LC_ALL=C.UTF-8 PYTHONDONTWRITEBYTECODE=1
cd /
umount -l old; rmdir old
/usr/lib/systemd/systemd-udevd --daemon; udevadm trigger; udevadm settle
sh -e {folder}/script >{folder}/output 2>{folder}/errors </dev/null
echo $? >{folder}/status
sync
echo o >/proc/sysrq-trigger
sleep 60
"""


def run_in_uml(module: str, argument: str, disks: Sequence[Path], root: Path = OURS, **options: Any) -> Any:
    """Runs `python -m module argument` as root in a fresh kernel with these disks; the JSON that it printed.

    A root that is not ours has its own Python; what we need beside the standard library is where the live image has it.
    """
    python = sys.executable if root == OURS else "PYTHONPATH=/usr/lib/asr python3"
    return json.loads(shell_in_uml(f"cd {REPOSITORY}; {python} -m {module} {quote(argument)}", disks, root,
                                   shared=[REPOSITORY] if root != OURS else [], **options))


def shell_in_uml(script: str, disks: Sequence[Path], root: Path = OURS, *, shared: Iterable[Path] = (),
                 masked: Iterable[str] = MASKED, memory: int = 512 * MiB, keep: bool = True,
                 seconds: float = 120) -> str:
    """What a shell script prints that is run as root in a fresh kernel with these disks.

    `shared` directories of this computer are there by their own names, to be written too. Unless `keep`, the disks
    stay as they are, whatever is written to them. Raises AssertionError with all that was said when a command fails.
    """
    with tempfile.TemporaryDirectory(prefix="uml-") as name:
        folder = Path(name)
        (folder / "script").write_text(script)
        (folder / "start").write_text(_START.format(folder=folder))
        (folder / "init").write_text(_INIT.format(
            folder=folder, root=root, modules=MODULES, masked=" ".join(masked),
            shared=" ".join(str(path) for path in shared)))
        (folder / "init").chmod(0o755)
        registers = folder / "ptrace.so"
        subprocess.run(
            ("gcc", "-O2", "-shared", "-fPIC", "-o", registers, REPOSITORY / "tests/uml_ptrace.c"), check=True)
        images = [str(disk) if keep else f"{folder}/changes{number},{disk}" for number, disk in enumerate(disks)]
        with (folder / "console").open("wb") as console:
            kernel = subprocess.Popen(
                ("linux.uml", f"mem={memory // MiB}M", "root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro",
                 f"init={folder}/init", "quiet", "panic=-1", "con=null", "con0=null,fd:1",
                 f"uml_dir={folder}", f"umid={folder.name}",
                 *(f"ubd{number}={image}" for number, image in enumerate(images))),
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
                env={**os.environ, "TMPDIR": name, "LD_PRELOAD": str(registers)})
            try:
                kernel.wait(seconds)
            except subprocess.TimeoutExpired:
                pass
            finally:
                if kernel.poll() is None:
                    os.killpg(kernel.pid, signal.SIGKILL)         # each of its processes is one of ours
                    kernel.wait()
        said, output, errors, status = (
            (folder / file).read_text(errors="replace") if (folder / file).exists() else ""
            for file in ("console", "output", "errors", "status"))
        if status.strip() != "0":
            raise AssertionError(f"user-mode Linux failed ({status.strip() or f'no end in {seconds} s'}):\n"
                                 f"{said[-2000:]}\n{output[-4000:]}\n{errors[-4000:]}")
        return output
