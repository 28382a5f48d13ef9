"""R on the Welcome page: files of a backup put onto a disk of the machine, and nothing else."""

import pytest

from bootenv.rehearsal import Drive, Machine, MiB, boot
from bootenv.sif import write_sif
from tests.vm import machines, story
from tests.vm.test_bad_input import SET, backup_disk, digest, file_system

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(900)]


def test_one_file_comes_back_to_the_disk_that_was_named(iso, disks, tmp_path):
    backup, target = disks / "backup.img", disks / "target.img"
    backup_disk(backup, write_sif(SET), disks)
    file_system(target, 64 * MiB, "-L", "DATA")
    kept = digest(backup)

    with boot(Machine(disks=(Drive(target), Drive(backup)), cdrom=iso), tmp_path / "machine") as guest:
        guest.wait_for_text("Welcome to Setup", 300)
        guest.press("r")
        story.sees(guest, "from which backup?", "lost.tar.zst")
        guest.press("ret")
        story.bring_back_one_file(guest)

    assert machines.run("debugfs", "-R", "cat /back/file", str(target)) == "x"
    assert "var" not in machines.run("debugfs", "-R", "ls -p /back", str(target))
    assert machines.run("e2fsck", "-fn", str(target))
    assert digest(backup) == kept
