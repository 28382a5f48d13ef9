"""Plans: what recovery of a recorded machine would run, as people read it, and the order of its steps."""

from dataclasses import replace

import pytest

from bootenv.errors import Unsupported
from bootenv.layout import Disk, Filesystem, Layout, Partition
from bootenv.plan import as_text, plan
from bootenv.sif import read_sif
from tests.conftest import machines
from tests.test_sif import LAYOUT


@pytest.mark.parametrize("machine", machines(), ids=lambda path: path.name)
def test_the_plan_recreates_the_recorded_machine(machine, golden):
    golden(machine / "plan.txt", as_text(plan(read_sif((machine / "asr.sif").read_bytes()).layout)))


EXT4 = {"features": ["extent"], "block_size": 4096, "blocks": 100, "inode_size": 256, "inodes": 64,
        "reserved_blocks": 5, "mount_options": ["acl"], "errors": "continue", "max_mount_count": "-1", "check_days": 0}


def ext4(**changes):
    root = replace(LAYOUT.filesystems[0], settings=EXT4)
    return replace(LAYOUT, filesystems=(replace(root, **changes), LAYOUT.filesystems[1]))


def test_a_table_is_made_before_what_lies_in_it():
    tools = [step.argv[0] for step in plan(ext4())]
    assert tools == ["sfdisk", "mkfs.ext4", "tune2fs", "mkswap"]


def test_old_signatures_go_first_and_inside_out():
    old = Layout((Disk("old", "/dev/sda", 10**10, label="gpt", label_id="x"),),
                 (Partition("a", "old", 1, 2**20, 2**20, "t"), Partition("b", "old", 2, 2**21, 2**20, "t")),
                 (Filesystem("f", "a", "LVM2_member"),))
    wiped = [step.argv[-1] for step in plan(ext4(), old) if step.argv[0] == "wipefs"]
    assert wiped == ["/dev/sda2", "/dev/sda1", "/dev/sda"]
    assert plan(ext4(), old)[3].argv[0] == "sfdisk"


def test_another_disk_is_never_named():
    other = Layout((Disk("other", "/dev/sdb", 10**10, label="gpt", label_id="x"),))
    assert "/dev/sdb" not in as_text(plan(ext4(), other))


def test_sectors_are_the_targets():
    layout = ext4()
    large = replace(layout, disks=(replace(layout.disks[0], sector_size=4096),))
    assert b"/dev/sda1 : start=256, size=262144" in plan(large)[0].stdin
    assert b"/dev/sda1 : start=2048, size=2097152" in plan(layout)[0].stdin


def test_partitions_of_nvme_disks_are_named_as_the_kernel_does():
    layout = ext4()
    nvme = replace(layout, disks=(replace(layout.disks[0], path="/dev/nvme0n1"),))
    assert b"/dev/nvme0n1p5 : " in plan(nvme)[0].stdin


@pytest.mark.parametrize("name", ['"', "\\", "a\nb", 'x" , type=0'])
def test_a_name_cannot_leave_its_quotes(name):
    layout = ext4()
    layout = replace(layout, partitions=(replace(layout.partitions[0], name=name), layout.partitions[1]))
    script = plan(layout)[0].stdin.decode()
    assert script.count('"') == 2
    assert len(script.splitlines()) == 6


def test_what_cannot_be_made_is_refused_before_anything_is():
    with pytest.raises(Unsupported, match="zfs_member, which this version cannot recreate"):
        plan(ext4(type="zfs_member"))
    with pytest.raises(Unsupported, match="does not say block_size"):
        plan(ext4(settings={k: v for k, v in EXT4.items() if k != "block_size"}))
