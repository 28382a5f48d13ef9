"""What happens to a machine: prepared, lost, recovered. The tests and the demo tell it."""

import re
from collections.abc import Callable
from pathlib import Path
from time import monotonic, sleep

from bootenv.rehearsal import Drive, Guest, Machine, NotSeen, Pattern, boot
from tests.vm.machines import PASSWORD

# A page that nobody expects: it would wait for somebody for ever.
TROUBLE = re.compile(r"Error ASR-\d+|NOT been recovered")


def prepare(disk: Path, backup_disk: Path, floppy: Path, iso: Path, folder: Path) -> str:
    """Switch the healthy machine on, prepare it from the medium, switch it off; what `asr prepare` printed."""
    machine = Machine(disks=(Drive(disk), Drive(backup_disk)), cdrom=iso, floppy=floppy, boot=("disk",))
    with boot(machine, folder) as guest:
        guest.serial.login("root", PASSWORD)
        done(guest, "mkdir /run/cd /run/backup && mount -o ro /dev/sr0 /run/cd && mount /dev/vdb /run/backup")
        printed = done(guest, "sh /run/cd/asr prepare --to /run/backup --disk /dev/fd0", seconds=1800)
        done(guest, "umount /run/backup /run/cd")
        switch_off(guest)
        return printed


def technician(guest: Guest, floppy: Path, *, patience: float = 0, say: Callable[[str], None] = lambda text: None,
               seen: Callable[[str, str], None] = lambda name, screen: None) -> None:
    """From power-on to the second restart: any key, F2, the floppy, any key, and hands off.

    `patience` seconds are left to somebody else to press a key first; `say` hears what happens; `seen` gets each page
    with the name of its golden.
    """

    def page(name: str, pattern: Pattern, seconds: float = 600) -> None:
        screen = see(guest, pattern, seconds)
        if name:
            seen(name, screen)

    def press(key: str, named: str, pattern: str, patience: float) -> None:
        until = monotonic() + patience
        while monotonic() < until and pattern in guest.screen():
            say(f"Press {named} now, or wait {until - monotonic():.0f} seconds.")
            sleep(0.5)
        if pattern in guest.screen():
            guest.press(key)
        say("")

    say("The machine starts from the recovery medium.")
    page("", "Press any key to boot from CD")
    press("spc", "any key", "Press any key to boot from CD", min(patience, 3))      # GRUB waits for five seconds
    page("02-inspecting", "inspecting your computer")
    page("03-prompt-f2", "Press F2 to run")
    press("f2", "F2", "Press F2 to run", min(patience, 8))
    page("05-insert-disk", "Please insert the disk labeled")
    guest.insert_floppy(floppy)
    say("The floppy was inserted. From here on nobody touches the keyboard.")
    page("05-disk-found", "An ASR disk was found")
    page("06-checks", "Hard disks: 1 of 1 found")
    page("07-disks", "will recover these disks")
    page("08-format", re.compile(r"Please wait while Setup formats.* /  Partition", re.DOTALL))
    page("09-copy", re.compile(r"Setup copies files.*Copying: ", re.DOTALL))
    page("10-reboot", "Your computer will reboot")
    guest.eject()
    say("The machine restarts from its own disk.")
    page("11-wizard", "Seconds left")
    page("12-source", re.compile("The backup was found, so"))
    page("13-completing", "The restore starts by itself")
    page("14-progress", re.compile(r"Restoring files.*remaining +\d.*\d%", re.DOTALL))
    page("15-recovered", "has been recovered", 3600)
    say("The machine restarts into the recovered system.")


def see(guest: Guest, pattern: Pattern, seconds: float) -> str:
    """Wait for a page; a page that says that something went wrong ends the wait."""
    either = re.compile(f"{pattern.pattern if isinstance(pattern, re.Pattern) else re.escape(pattern)}|"
                        + TROUBLE.pattern, re.DOTALL)
    screen = guest.wait_for_text(either, seconds)
    if TROUBLE.search(screen):
        raise NotSeen(f"Setup stopped:\n{screen}")
    return screen


def shape(screen: str) -> list[str]:
    """A screen without what differs from run to run: numbers, the gauge, the file at hand, blanks between columns."""
    lines = []
    for line in screen.splitlines():
        line = re.sub(r"[█▌]", " ", line)
        line = re.sub(r"(Processing) .*|(.*[^│┌┐└┘ ].*)│(Copying|\d).*", r"\1\2", line)
        line = re.sub(r"^ +│(Copying).*", "", line)
        lines.append(" ".join(re.sub(r"\d[\d:,.-]*", "#", line).replace("# seconds", "# second").split()))
    return [line for line in lines if line]


def log_in(guest: Guest) -> None:
    guest.serial.login("root", PASSWORD, seconds=600)


def done(guest: Guest, command: str, seconds: float = 120) -> str:
    """A command that must succeed, and its output."""
    status, output = guest.serial.run(command, seconds)
    if status:
        raise NotSeen(f"{command}: exit {status}\n{output}")
    return output


def switch_off(guest: Guest) -> None:
    guest.serial.send("systemctl poweroff\n")
    guest.wait_for_shutdown(300)
