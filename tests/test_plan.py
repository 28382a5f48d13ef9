"""Plans: what recovery of a recorded machine would run, as people read it, and the order of its steps."""

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings

from bootenv.check import NOT_RECOVERABLE, Finding, as_lines, check, critical_part, recoverable_part, verdict
from bootenv.errors import Unsupported
from bootenv.layout import Disk, Filesystem, Layout, Partition, mapper_path
from bootenv.plan import plan
from bootenv.probe import mount_table, probe
from bootenv.sif import AsrSet, read_sif, write_sif
from bootenv.step import Step, as_text
from tests.conftest import machines
from tests.layouts import layouts
from tests.record import replayed
from tests.test_sif import CREATED, LAYOUT


def recorded(machine: Path) -> tuple[Layout, tuple[Finding, ...]]:
    """The machine as preparation would see it."""
    with replayed(machine):
        everything = probe()
        return recoverable_part(critical_part(everything)), check(everything, mount_table())


@pytest.mark.parametrize("machine", machines(), ids=lambda path: path.name)
def test_a_recorded_machine_is_understood(machine, golden):
    layout, findings = recorded(machine)
    golden(machine / "check.txt", as_lines(findings))
    if verdict(findings) == NOT_RECOVERABLE:
        assert not (machine / "asr.sif").exists()
        return
    # One id and one date: only the layout is the machine's.
    set = AsrSet("5a7e1d52-0000-4000-8000-000000000000", CREATED, machine.name, layout=layout)
    golden(machine / "asr.sif", write_sif(set).decode())
    assert read_sif(write_sif(set)).layout == layout


@pytest.mark.parametrize("machine", [m for m in machines() if (m / "asr.sif").exists()], ids=lambda path: path.name)
def test_the_plan_recreates_the_recorded_machine(machine, golden):
    golden(machine / "plan.txt", as_text(plan(read_sif((machine / "asr.sif").read_bytes()).layout)))


def test_there_are_machines_of_several_distributions():
    names = [machine.name for machine in machines()]
    assert len(names) >= 25
    for suite in ("bookworm", "trixie"):
        assert sum(name.endswith(suite) for name in names) >= 5, suite


@settings(deadline=None)
@given(layouts())
def test_any_layout_survives_the_file(layout):
    set = AsrSet("5a7e1d52-0000-4000-8000-000000000000", CREATED, "host", layout=layout)
    assert read_sif(write_sif(set)).layout == layout


@settings(deadline=None)
@given(layouts())
def test_nothing_is_made_before_what_it_lies_on(layout):
    made = {disk.path for disk in layout.disks if not disk.label}
    for step in plan(layout):
        words = [word for word in step.argv if word.startswith("/dev/")]
        made |= made_by(step, layout)
        assert set(words) <= made, step
    assert {layout.path(device.id) for device in layout.devices} <= made


def made_by(step: Step, layout: Layout) -> set[str]:
    """The device nodes that there are once a step has run."""
    match step.argv:
        case ("sfdisk", *_, disk):
            return {disk, *(layout.path(p.id) for p in layout.partitions if layout.path(p.disk) == disk)}
        case ("mdadm", "--create", array, *_):
            return {array}
        case ("cryptsetup", "open", *_, name):
            return {f"/dev/mapper/{name}"}
        case ("lvcreate", *_):
            return {mapper_path(layout.group(v.group).name, v.name) for v in layout.logical_volumes
                    if v.name in step.argv and layout.group(v.group).name in step.argv}
    return set()


@settings(deadline=None)
@given(layouts(), layouts())
def test_no_step_names_a_disk_that_the_layout_does_not(layout, present):
    moved = replace(present, disks=tuple(replace(d, path=d.path.replace("/dev/sd", "/dev/vd")) for d in present.disks),
                    arrays=tuple(replace(a, path=a.path.replace("/dev/md", "/dev/md12")) for a in present.arrays))
    # One of the layout's disks is there, with what somebody else has on it.
    first = replace(moved.disks[0], path=layout.disks[0].path)
    present = replace(moved, disks=(first, *moved.disks[1:]))
    others = {disk.path for disk in present.disks[1:]}
    kept = {present.path(d.id) for d in present.devices if first.id not in present.under(d.id)}
    for step in plan(layout, present):
        assert not {*step.argv} & (others | kept - {layout.path(d.id) for d in layout.devices}), step


EXT4 = {"features": ("extent",), "block_size": 4096, "blocks": 100, "inode_size": 256, "inodes": 64,
        "reserved_blocks": 5, "mount_options": ("acl",), "errors": "continue", "max_mount_count": "-1", "check_days": 0}


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
