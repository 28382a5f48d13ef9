"""The first thing to try: a sample machine is prepared, loses its disk, and comes back before the reader's eyes."""

import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bootenv.rehearsal import Guest, Machine, MiB, boot, make_disk
from console.monitor import Monitor
from tests.vm import machines, story
from tests.vm.compare import differences, look
from tests.vm.samples import SAMPLES

KIND = "gpt"
PATIENCE = 20                          # seconds for the reader to press a key before the demo does


def demo(iso: Path) -> int:
    """Tells the whole story with `iso`; 0 when the recovered machine is equal to the lost one. Needs root."""
    out = Console(highlight=False)
    times: dict[str, float] = {}

    @contextmanager
    def part(title: str) -> Iterator[None]:
        out.print(f"[bold]{title}[/]")
        begin = time.monotonic()
        yield
        times[title] = time.monotonic() - begin

    with tempfile.TemporaryDirectory(dir=machines.cache(), prefix="demo-") as folder:
        here = Path(folder)
        with part("A small Debian machine is made and started once"):
            lost = machines.copy(machines.sample_machine(KIND), here / "lost")
        backup_disk = make_disk(here / "backup.img", 1024 * MiB)
        machines.run("mkfs.ext4", "-q", "-F", "-L", "BACKUP", str(backup_disk))
        machines.run("mkfs.fat", "-C", "-F", "12", str(here / "floppy.img"), "1440")
        floppy = here / "floppy.img"
        with part("It is prepared: a backup on its second disk, and an ASR disk"):
            printed, _ = story.prepare(SAMPLES[KIND], lost, backup_disk, floppy, iso, here / "prepare")
            out.print(printed, markup=False)
        with part("Its disk is lost; the recovery medium brings it back onto a blank one"):
            recovered = machines.blank(lost, here / "blank")
            recover(story.with_medium(recovered, backup_disk, iso), floppy, here / "recover", out)
        with part("The lost and the recovered disk are compared"):
            before, after = look(lost), look(recovered)
            found = [*after.health, *differences(before.facts, after.facts, story.EXPECTED_FACTS),
                     *differences(before.files, after.files, story.EXPECTED)]
    table = Table("What", "Time", box=None)
    for title, seconds in times.items():
        table.add_row(title, f"{seconds:.0f} s")
    out.print(table)
    out.print(f"Compared: partition table, file systems, and {len(before.files)} files and folders by type, mode, "
              "owner, times, links, attributes, ACLs and content.")
    for sentence in found:
        out.print(sentence, markup=False)
    out.print(f"[bold]{len(found)} differences.[/]" if found else "[bold]The machine is as it was.[/]")
    return 1 if found else 0


def recover(machine: Machine, floppy: Path, folder: Path, out: Console) -> None:
    """On the reader's terminal if there is one, else every page is printed once."""
    with boot(machine, folder) as guest:
        if sys.stdin.isatty() and sys.stdout.isatty():
            watch(guest, floppy)
        else:
            def seen(name: str, screen: str) -> None:
                out.print(page(screen), markup=False)

            story.recover(guest, floppy, seen=seen)
            story.restore(guest, seen=seen)
        machines.log_in(guest, SAMPLES[KIND])
        out.print("Logged in on the recovered machine.")
        story.switch_off(guest)


def watch(guest: Guest, floppy: Path) -> None:
    def tell(say: Callable[[str], None]) -> None:
        story.recover(guest, floppy, patience=PATIENCE, say=say)
        story.restore(guest, say=say)

    error = Monitor(guest, tell).run(mouse=False)
    if error:
        raise error


def page(screen: str) -> str:
    """A screen without the blank lines that end it."""
    return re.sub(r"( +\n)+$", "", screen) + "\n" + "-" * 80
