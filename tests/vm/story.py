"""What happens to a machine: prepared, lost, recovered. The tests and the demo tell it."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import monotonic, sleep

from bootenv.rehearsal import Drive, Guest, Machine, NotSeen, boot
from tests.vm import machines
from tests.vm.compare import Allowed, Facts
from tests.vm.samples import PASSPHRASE, PASSWORD, Sample

ASR = "sh /run/cd/asr"                 # from the medium in a machine where nothing is installed

# All that is not as it was, and why.
EXPECTED = [
    Allowed("/boot", "the recovered system made its own initramfs there", ("mtime", "time")),
    Allowed("/boot/.", "the same, where it is a file system of its own", ("mtime", "time")),
    Allowed("/boot/initrd.img-*", "made by the recovered system's own tools"),
    Allowed("/boot/grub/*", "written by the recovered system's own grub-install"),
    Allowed("/var/lib/asr*", "the lost machine got its own copy of the state file after its files were read"),
    Allowed("/var/log", "recovery left its report there"),
    Allowed("/var/log/*", "recovery left its report there, and both machines ran on and wrote their logs"),
    Allowed("/var/lib/systemd", "the seed of random numbers below is made anew", ("mtime", "time")),
    Allowed("/var/lib/systemd/random-seed", "every start writes a new one"),
    Allowed("/etc/lvm/archive*", "LVM writes its metadata down anew when the group that was made anew is started"),
    Allowed("/etc/lvm/backup*", "the same"),
    Allowed("/srv/.snapshots/monday*", "a snapshot is named, not made again"),
    Allowed("/tmp*", "systemd makes and removes folders there at every start", ("mtime", "time")),
    Allowed("/etc/machine-id", "systemd-boot's entry names it, and systemd writes it again", ("mtime", "time")),
    Allowed("/boot/efi/loader", "its random seed is written there", ("mtime", "time")),
    Allowed("/boot/efi/loader/random-seed", "systemd-boot writes a new one at every start"),
    Allowed("/var/tmp", "systemd makes and removes folders there at every start", ("mtime", "time")),
]

# What another product does not keep, as its plan says.
NOT_BY_TAR = [
    Allowed("*/adversarial/flags/*", "GNU tar knows no attributes of chattr", ("flags",)),
    Allowed("*/adversarial/hard_links/*fifo", "and hard links of files alone", ("links", "nlink", "same file as")),
    Allowed("/swap*", "a swap file that is not in the backup is made", ("mtime", "time")),
]

EXPECTED_FACTS = [
    Allowed("content of *", "no tool sets a member's own id", ("UUID_SUB", "UUID_SUB_ENC")),
    Allowed("subvolume @/srv/.snapshots/monday *", "snapshots are named, not made again"),
]

WRITES = 50                            # a second; a real disk takes some seconds to be formatted

# A page that nobody expects: it would wait for somebody for ever.
TROUBLE = re.compile(r"Error ASR-\d+|NOT been recovered")


Way = Callable[[Guest], str]           # to prepare a healthy machine in which root has logged in: what is said of it


def is_floppy(disk: Path) -> bool:
    return disk.stat().st_size == 1440 * 1024


def prepare(sample: Sample, lost: Machine, backup_disk: Path, asr_disk: Path, iso: Path, folder: Path,
            way: Way | None = None) -> tuple[str, Facts]:
    """Switch the healthy machine on, prepare it from the medium, switch it off. The ASR disk is a floppy or a stick.

    What `asr prepare` printed, and what only a running machine tells.
    """
    machine = replace(lost, disks=(*lost.disks, Drive(backup_disk)), cdrom=iso,
                      **({"floppy": asr_disk} if is_floppy(asr_disk) else {"sticks": (asr_disk,)}))
    with boot(machine, folder) as guest:
        machines.log_in(guest, sample)
        facts = running(guest)
        done(guest, "mkdir /run/cd /run/backup && mount -o ro /dev/sr0 /run/cd && mount LABEL=BACKUP /run/backup")
        printed = (way or by_command)(guest)
        done(guest, "umount /run/backup /run/cd")
        switch_off(guest)
        return printed, facts


def by_command(guest: Guest) -> str:
    return done(guest, f"{ASR} prepare --to /run/backup --disk /dev/fd0", seconds=1800)


def by_wizard(guest: Guest) -> str:
    """By keys on the machine's own screen, as somebody does who has never seen it before: nothing is typed."""
    guest.wait_for_text("login: ", 300)
    guest.type("root\n")
    guest.wait_for_text("assword: ", 300)
    guest.type(f"{PASSWORD}\n")
    guest.wait_for_text("# ", 300)
    guest.type(f"unset HISTFILE; clear; {ASR}\n")         # a history is written when the shell ends
    for pattern, key in (
        ("Welcome to the Backup or Restore Wizard", "n"),
        ("What do you want to do", "b"),
        ("All information on this computer", "1"),
        (r"Welcome to the Automated System Recovery.*press N", "n"),
        ("Where should the backup be written", "ret"),
        (r"You have completed the wizard.*press F", "f"),
        ("formatted diskette in drive A", "ret"),
        ("label it as shown", "ret"),
        ("The ASR set is complete", "ret"),
    ):
        page = see(guest, pattern, 1800)
        guest.press(key)
    guest.wait_for_text("# ", 120)
    return page


def by_copy(guest: Guest) -> str:
    """The disk that was made with the backup is lost: another one is made from the backup."""
    said = done(guest, f"{ASR} prepare --to /run/backup --disk /run/lost.img", seconds=1800)
    return said + done(guest, f"{ASR} make-disk --from /run/backup/*.tar.zst --disk /dev/fd0", seconds=300)


def by_provider(guest: Guest) -> str:
    """Another product's backup, a driver that goes along, and a command in each of the four places and times."""
    commands = "".join(
        f'[[commands]]\ntitle = "{when} in {where}"\nwhen = "{when}"\nwhere = "{where}"\n'
        f'argv = ["sh", "-c", "mkdir -p $ASR_TARGET/var/log; echo {when} in {where} >>$ASR_TARGET/var/log/commands"]\n'
        for when, where in (("before", "recovery"), ("after", "recovery"), ("after", "system")))
    done(guest, f"mkdir -p /etc/asr && cat >/etc/asr/commands.toml <<'END'\n{commands}END\n")
    done(guest, f"{ASR} add-driver $(find /lib/modules/ -name minix.ko.xz)", seconds=300)
    return done(guest, f"{ASR} prepare --provider tar --to /run/backup --disk /dev/fd0", seconds=2400)


def by_job(guest: Guest) -> str:
    """The program is installed, and a job makes the set, on an ASR stick. Started as its timer starts it."""
    done(guest, "dpkg --install /run/backup/asr.deb", seconds=600)
    done(guest, "asr schedule add nightly --when daily --to /dev/disk/by-label/BACKUP "
                "--disk /dev/disk/by-label/ASR-STICK --keep 2", seconds=300)
    done(guest, "umount /run/backup && systemctl start asr-job-nightly", seconds=2400)
    said = done(guest, "journalctl --no-pager --output cat --unit asr-job-nightly")
    done(guest, "mount LABEL=BACKUP /run/backup")
    return said


def with_medium(machine: Machine, backup_disk: Path, iso: Path) -> Machine:
    """The machine, in front of which a technician sits."""
    return replace(machine, disks=(*machine.disks, Drive(backup_disk)), cdrom=iso, boot=("cdrom", "disk"))


Say = Callable[[str], None]
Seen = Callable[[str, str], None]


def recover(guest: Guest, asr_disk: Path, *, disks: int = 1, encrypted: bool = False, patience: float = 0,
            say: Say = lambda text: None, seen: Seen = lambda name, screen: None) -> None:
    """What a technician does, from power-on to the first restart: any key, F2, the ASR disk, and hands off.

    `patience` seconds are left to somebody else to press a key first; `say` hears what happens; `seen` gets each page
    with the name of its golden.
    """

    def press(key: str, named: str, pattern: str, patience: float) -> None:
        until = monotonic() + patience
        while monotonic() < until and pattern in guest.screen():
            say(f"Press {named} now, or wait {until - monotonic():.0f} seconds.")
            sleep(0.5)
        if pattern in guest.screen():
            guest.press(key)
        say("")

    say("The machine starts from the recovery medium.")
    first = see(guest, "Press any key to boot from CD|inspecting your computer", 600)
    if "Press any key" in first:       # UEFI knows that there is nothing on a blank disk to boot instead
        seen("01-press-any-key", first)
    press("spc", "any key", "Press any key to boot from CD", min(patience, 3))      # GRUB waits for five seconds
    seen("02-inspecting", see(guest, "inspecting your computer", 600))
    seen("03-prompt-f2", see(guest, "Press F2 to run", 600))
    press("f2", "F2", "Press F2 to run", min(patience, 8))
    seen("05-insert-disk", see(guest, "Please insert the disk labeled", 600))
    if is_floppy(asr_disk):
        guest.insert_floppy(asr_disk)
    else:
        guest.attach_stick(asr_disk)
    say("The ASR disk was inserted. From here on nobody touches the keyboard.")
    for name, pattern in (
        ("05-disk-found", "An ASR disk was found"),
        ("06-checks", f"Hard disks: {disks} of {disks} found"),
        ("07-disks", "will recover these disks"),
        ("08-format", r"Please wait while Setup formats.* /  (Partition|Volume)"),
        ("09-copy", r"Setup copies files.*Copying: "),
        ("10-reboot", "Your computer will reboot"),
    ):
        seen(name, see(guest, pattern, 600))
        if name == "07-disks":
            guest.limit_disks(WRITES)          # a file in memory is formatted before anybody can look
            if encrypted:
                give_passphrase(guest, "header that was saved")
        elif name == "08-format":
            guest.limit_disks(0)
    guest.eject()
    say("The machine restarts from its own disk.")


def restore(guest: Guest, *, encrypted: bool = False, say: Say = lambda text: None,
            seen: Seen = lambda name, screen: None) -> None:
    """What nobody needs to see: from the minimal OS's start to the last page."""
    if encrypted:
        give_passphrase(guest, "Encrypted volume")
    for name, pattern in (
        ("11-wizard", "Seconds left"),
        ("12-source", "The backup was found, so"),
        ("13-completing", "The restore starts by itself"),
        ("14-progress", r"Restoring files.*remaining +\d.*\d%"),
        ("15-recovered", "has been recovered"),
    ):
        seen(name, see(guest, pattern, 3600))
    say("The machine restarts into the recovered system.")


def see(guest: Guest, pattern: str, seconds: float) -> str:
    """Wait for a page, by a regular expression; a page that says that something went wrong ends the wait."""
    screen = guest.wait_for_text(re.compile(f"{pattern}|{TROUBLE.pattern}", re.DOTALL), seconds)
    for _ in range(10):                # the page may be half painted: it is whole when it stays as it is
        sleep(0.3)
        later = guest.screen()
        if not re.search(pattern, later, re.DOTALL) or shape(later) == shape(screen):
            break
        screen = later
    if TROUBLE.search(screen):
        raise NotSeen(f"Setup stopped:\n{screen}")
    return screen


def sees(guest: Guest, *texts: str, seconds: float = 120) -> None:
    """Wait for each text in turn, however its words are spread over lines."""
    for text in texts:
        guest.wait_for_text(re.compile(r"\s+".join(re.escape(word) for word in text.split())), seconds)


def bring_back_one_file(guest: Guest, seconds: float = 120) -> None:
    """In the tree of the backup that test_bad_input makes: the one file, to the first disk's folder "back"."""
    sees(guest, "Which files?", "file 1", seconds=seconds)             # its size
    guest.press("down", "spc")         # below the directory of the state file
    sees(guest, "1 marked", seconds=seconds)
    guest.press("r")
    sees(guest, "Where to?", seconds=seconds)
    guest.type("vda/back\n")
    sees(guest, "The files were restored.", seconds=seconds)
    guest.press("ret")
    sees(guest, "Welcome to Setup", seconds=seconds)


def shape(screen: str) -> list[str]:
    """A screen without what differs from run to run: numbers, the gauge, the file at hand, blanks between columns."""
    lines = []
    for line in screen.splitlines():
        line = re.sub(r"[█▌]", " ", line)
        line = re.sub(r"(Processing) .*|(.*[^│┌┐└┘ ].*)│(Copying|\d).*", r"\1\2", line)
        line = re.sub(r"^ +│(Copying).*", "", line)
        line = re.sub(r"CD\.+", "CD...", line)                     # GRUB's dots grow
        lines.append(" ".join(re.sub(r"\d[\d:,.-]*", "#", line).replace("# seconds", "# second").split()))
    return [line for line in lines if line]


def give_passphrase(guest: Guest, pattern: str, times: int = 1) -> None:
    """On the page that asks for it: typed, and typed again where it is new."""
    see(guest, pattern, 600)
    for _ in range(times):
        guest.type(PASSPHRASE)
        guest.press("ret")


def at_shell(guest: Guest, command: str, answer: str, seconds: float = 60) -> str:
    """A command on the second console, and the screen once the answer is on it."""
    guest.press("alt-f2")
    guest.type(f"clear; {command}\n")
    screen = guest.wait_for_text(re.compile(answer), seconds)
    guest.press("alt-f1")
    return screen


def running(guest: Guest) -> Facts:
    """What only a running machine tells: the lines of its UEFI boot menu that start from its disks, and its swap."""
    menu = done(guest, "test ! -d /sys/firmware/efi || efibootmgr")
    # A message of the kernel may stand among the lines.
    swap = [line for line in done(guest, "swapon --show=TYPE,SIZE,UUID,LABEL --raw").splitlines()
            if line.startswith(("partition ", "file "))]
    assert swap, "each sample machine has some"
    return {"swap": {"areas": sorted(swap)}, **{
        f"boot option {label}": {"loader": loader, "active": active == "*"}
        for active, label, loader in re.findall(r"^Boot[0-9A-F]{4}([* ]) (.*?)\t(HD\(.*?)\s*$", menu, re.MULTILINE)}}


def done(guest: Guest, command: str, seconds: float = 120) -> str:
    """A command that must succeed, and its output."""
    status, output = guest.serial.run(command, seconds)
    if status:
        raise NotSeen(f"{command}: exit {status}\n{output}")
    return output


def switch_off(guest: Guest) -> None:
    guest.serial.send("systemctl poweroff\n")
    guest.wait_for_shutdown(300)
