"""P on the Welcome page: the set of a system that does not run is the one that it would have made itself."""

import re
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest

from bootenv.asr_disk import read_asr_disk
from bootenv.rehearsal import Guest, Machine, boot
from bootenv.sif import AsrSet, BackupReference, read_sif
from tests.vm import machines, story
from tests.vm.compare import Facts, differences, look
from tests.vm.samples import PASSPHRASE, SAMPLES, Sample

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(3600)]

RECOVERED = "gpt"                      # from the set that was made offline
CRASHES = "luks"                       # the wizard is killed, then the console and the wizard


@pytest.mark.parametrize("kind", ["gpt", "luks", "btrfs", "raid"])
def test_a_set_made_offline_is_the_one_that_the_running_system_makes(kind, iso, sample, backup_disk, floppy, disks,
                                                                     tmp_path):
    lost, sample_ = sample(kind), SAMPLES[kind]
    _, ran = story.prepare(sample_, lost, backup_disk, floppy, iso, tmp_path / "running")
    by_itself = set_on(floppy)
    machines.run("mkfs.fat", "-C", "-F", "12", str(disks / "second.img"), "1440")

    machine = replace(story.with_medium(lost, backup_disk, iso), floppy=disks / "second.img")
    with boot(machine, tmp_path / "offline") as guest:
        start(guest)
        if kind == CRASHES:
            to_wizard(guest, sample_, tmp_path)
            in_shell(guest, "pkill -9 -f 'console prepare'; echo do''ne", "done")
            story.see(guest, "The wizard ended unexpectedly", 120)
            guest.press("ret")
            nothing_is_left(guest)
            to_wizard(guest, sample_, tmp_path)
            in_shell(guest, "pkill -9 -f 'm console'; echo do''ne", "done")
            guest.wait_for_text("The recovery console ended unexpectedly", 120)
            guest.press("ret")
            nothing_is_left(guest)
        to_wizard(guest, sample_, tmp_path)
        through_wizard(guest, tmp_path)
        nothing_is_left(guest)
    offline = set_on(disks / "second.img")
    assert offline.id != by_itself.id
    assert lasting(offline) == lasting(by_itself)

    assert look(lost).health == []
    if kind == RECOVERED:
        brings_back(lost, ran, backup_disk, disks, iso, tmp_path)


def brings_back(lost: Machine, ran: Facts, backup_disk: Path, disks: Path, iso: Path, tmp_path: Path) -> None:
    recovered = machines.blank(lost, disks / "blank")
    with boot(story.with_medium(recovered, backup_disk, iso), tmp_path / "recover") as guest:
        story.recover(guest, disks / "second.img", disks=len(recovered.disks))
        story.restore(guest)
        machines.log_in(guest, SAMPLES[RECOVERED])
        runs = story.running(guest)
        story.switch_off(guest)
    before, after = look(lost), look(recovered)
    assert after.health == []
    assert differences(ran, runs) == []
    assert differences(before.facts, after.facts, story.EXPECTED_FACTS) == []
    assert differences(before.files, after.files, story.EXPECTED) == []


def start(guest: Guest) -> None:
    first = story.see(guest, "Press any key to boot from CD|inspecting your computer", 600)
    if "Press any key" in first:
        guest.press("spc")
    story.see(guest, "Press F2 to run", 600)
    guest.press("ret")


def to_wizard(guest: Guest, sample: Sample, folder: Path) -> None:
    sees(guest, folder, "Welcome to Setup", "p")
    if sample.encrypted:
        sees(guest, folder, "An installed system may lie on this encrypted volume")
        guest.type("wrong\n")
        sees(guest, folder, "This passphrase does not open the volume")
        guest.type(f"{PASSPHRASE}\n")
    sees(guest, folder, "Prepare an ASR set of this system", "ret")
    sees(guest, folder, "This wizard makes a backup of this computer's system", seconds=600)


def through_wizard(guest: Guest, folder: Path) -> None:
    """Keys alone, from its first page to the Welcome page."""
    guest.press("n")
    sees(guest, folder, "Where should the backup be written", "ret")
    sees(guest, folder, "You have completed the wizard", "f")
    sees(guest, folder, "Insert a blank, 1.44 MB", "ret", seconds=1800)
    sees(guest, folder, "label it as shown", "ret")
    sees(guest, folder, "The ASR set is complete", "ret")
    sees(guest, folder, "Welcome to Setup")


def sees(guest: Guest, folder: Path, pattern: str, *keys: str, seconds: float = 300) -> None:
    """Waits for a page, leaves its picture in a folder, and presses keys."""
    story.see(guest, pattern, seconds)
    guest.screenshot(folder / f"{re.sub('[^a-z]+', '-', pattern.lower())}.png")
    guest.press(*keys)


def nothing_is_left(guest: Guest) -> None:
    """On the Welcome page nothing of the system is mounted or open any more."""
    story.see(guest, "Welcome to Setup", 300)
    in_shell(guest, "sleep 15; echo left $(ls /dev/mapper | grep -vc control) $(grep -c asr/[osvt] /proc/mounts)",
             "left 0 0")


def in_shell(guest: Guest, command: str, answer: str) -> None:
    """A command in the window that S opens, and its answer: a UEFI machine's second console is seen by nobody."""
    guest.press("s")
    guest.wait_for_text("Type exit and press ENTER", 120)
    guest.type(f"{command}\n")
    guest.wait_for_text(answer, 120)
    guest.type("exit\n")


def set_on(floppy: Path) -> AsrSet:
    return read_sif(read_asr_disk(str(floppy))[""])


def lasting(set: AsrSet) -> AsrSet:
    """A set without what two sets of one machine may differ in.

    The id and time are a set's own. Of the backup, its name has the time, its size is that of the day's files, and its
    place is what a person called it. Of the memory each kernel keeps a little for itself. The mounts are in the order
    in which something mounted them. In the firmware's boot menu the medium comes before the system now, or it would not
    have been started.
    """
    first = sorted((option for option in set.layout.boot_options if option.position), key=lambda o: o.position)
    options = tuple(replace(option, position=first.index(option) + 1 if option in first else 0)
                    for option in set.layout.boot_options)
    mounts = tuple(sorted(set.layout.mounts, key=lambda mount: mount.point))
    backup = BackupReference(filesystem=set.backup.filesystem, path=set.backup.path, label=set.backup.label)
    return replace(set, id="", created=datetime.min, memory=0, backup=backup,
                   layout=replace(set.layout, mounts=mounts, boot_options=options))
