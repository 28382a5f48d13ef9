"""Measures the recovery medium: its size, the way from power-on to the F2 prompt and the Welcome page, the least memory
for that, and how much longer the prompt takes than the same kernel to a shell.

    python -m tests.measure dist/asr-recovery.iso

Times are wall-clock seconds of a virtual machine under software emulation, medians of three starts.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bootenv.rehearsal import Drive, Machine, MiB, NotSeen, boot, make_disk

STARTS = 3
MEMORY = (512, 256, 192, 176, 160)                # MiB
LIMIT = 90                                         # seconds until a start counts as failed
MARKS = (("Press any key to boot from CD", "GRUB: press any key"), ("inspecting your computer", "first blue screen"),
         ("Press F6", "F6 prompt"), ("Press F2", "F2 prompt"), ("Welcome to Setup", "the console's first page"))
PROMPT = "Press F2"


def start(iso: Path, memory: int) -> list[float]:
    """Seconds from power-on to each mark, a key being pressed at the first. Raises NotSeen."""
    seen = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, boot(Machine(
            disks=(Drive(make_disk(Path(folder) / "disk.img", 64 * MiB)),),     # without one, GRUB asks for no key
            cdrom=iso, memory=memory * MiB)) as guest:
        for text, _ in MARKS:
            guest.wait_for_text(text, LIMIT)
            seen.append(time.monotonic() - begin)
            if text == MARKS[0][0]:
                guest.press("spc")
    return seen


def from_kernel(iso: Path, folder: Path, arguments: str, text: str) -> float:
    """Seconds from the kernel's start, without firmware and GRUB, to a text on the screen. Raises NotSeen."""
    medium = (folder / "id").read_text().strip()
    machine = Machine(cdrom=iso, boot=(), kernel=folder / "vmlinuz", initrd=folder / "initrd.img",
                      arguments=f"asr.id={medium} quiet loglevel=3 nomodeset no_timer_check {arguments}")
    with boot(machine) as guest:
        begin = time.monotonic()
        guest.wait_for_text(text, 2 * LIMIT)
        return time.monotonic() - begin


def against_a_shell(iso: Path) -> tuple[float, float]:
    """Medians of the seconds to the F2 prompt and to a shell from the same squashfs, in turns."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        subprocess.run(("bsdtar", "-x", "-f", iso, "-C", folder, "--strip-components", "1", "live/vmlinuz",
                        "live/initrd.img", "live/id"), check=True)
        pairs = [(from_kernel(iso, folder, "asr.stage=recover", PROMPT),
                  from_kernel(iso, folder, "init=/bin/sh", "# ")) for _ in range(STARTS)]
    return statistics.median(p for p, _ in pairs), statistics.median(s for _, s in pairs)


def least_memory(iso: Path) -> int:
    """The smallest of MEMORY (MiB) that reaches the console's first page."""
    least = 0
    for memory in MEMORY:
        try:
            start(iso, memory)
        except NotSeen:
            break
        least = memory
    return least


def main(iso: Path) -> None:
    times = list(zip(*(start(iso, 1024) for _ in range(STARTS)), strict=True))
    table = Table("What", "Measured", box=None)
    table.add_row("ISO", f"{iso.stat().st_size / 1e6:.0f} MB")
    for (_, name), seconds in zip(MARKS, times, strict=True):
        table.add_row(f"power-on to: {name}", f"{statistics.median(seconds):.1f} s")
    prompt, shell = against_a_shell(iso)
    table.add_row("kernel's start to the F2 prompt, to a shell", f"{prompt:.1f} s, {shell:.1f} s: {prompt / shell:.2f}")
    table.add_row("least memory to the console's first page", f"{least_memory(iso)} MiB")
    Console().print(table)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
