"""Which present disk takes a recorded disk's place: by what it is, never by its name."""

import re
from dataclasses import replace

import pytest

from bootenv.errors import DiskTooSmall, DuplicateIds, TooFewDisks
from bootenv.layout import (
    Disk,
    Filesystem,
    Layout,
    LogicalVolume,
    LuksContainer,
    MdArray,
    Mount,
    Partition,
    PhysicalVolume,
    VolumeGroup,
)
from bootenv.match import located, match
from bootenv.probe import parse_content

GB = 10**9


def disk(name, size=10 * GB, **fields):
    return Disk(id=fields.pop("id", name), path=f"/dev/{name}", size=size, **fields)


def recorded(*disks):
    """A layout whose disks each have one partition that needs 8 GB."""
    disks = tuple(replace(d, id=f"table-{d.id}", label="gpt", label_id=f"table-{d.id}") for d in disks)
    return Layout(disks, tuple(Partition(f"{d.id}/1", d.id, 1, 2**20, 8 * GB, "t", uuid=d.id) for d in disks))


def present(*disks):
    return Layout(tuple(disks))


def paths(found):
    return [choice.present.path for choice in found.choices]


def test_two_equal_disks_swapped_are_told_by_serial_number():
    found = match(recorded(disk("sda", serial="A"), disk("sdb", serial="B")),
                  present(disk("sda", serial="B"), disk("sdb", serial="A")))
    assert paths(found) == ["/dev/sdb", "/dev/sda"]
    assert [d.path for d in found.layout.disks] == ["/dev/sdb", "/dev/sda"]
    assert found.choices[0].reason == "same serial number"


def test_a_disk_is_known_by_its_wwn_when_a_bridge_hides_its_serial_number():
    found = match(recorded(disk("sda", wwn="W")), present(disk("sda"), disk("sdb", wwn="W", serial="bridge")))
    assert paths(found) == ["/dev/sdb"]


def test_the_backups_disk_is_never_taken_though_it_fits_best():
    why = {"/dev/sda": "it holds the backup"}
    found = match(recorded(disk("sda")), present(disk("sda"), disk("sdb", 20 * GB)), why)
    assert paths(found) == ["/dev/sdb"]
    with pytest.raises(TooFewDisks, match="sda is not used: it holds the backup"):
        match(recorded(disk("sda")), present(disk("sda")), why)


def test_a_usb_disk_takes_no_inner_disks_place():
    with pytest.raises(TooFewDisks):
        match(recorded(disk("sda", transport="sata")), present(disk("sdb", transport="usb")))


def test_a_blank_disk_is_taken_before_one_with_data():
    full = disk("sda")
    now = Layout((full, disk("sdb", 12 * GB)), filesystems=(Filesystem("x", full.id, "ntfs", label="DATA"),))
    found = match(recorded(disk("sdz")), now)
    assert paths(found) == ["/dev/sdb"]
    assert not found.choices[0].consent


def test_what_is_not_this_computers_needs_consent_and_is_named():
    full = disk("sda", label="gpt", label_id="other")
    now = Layout((full,), (Partition("p", full.id, 1, 2**20, GB, "t"),), (Filesystem("x", "p", "ntfs", label="DATA"),))
    choice = match(recorded(disk("sdz")), now).choices[0]
    assert choice.consent
    assert choice.content == "1 partition: DATA [ntfs]"


def test_a_table_that_only_blkid_knows_is_not_blank():
    mac = disk("sda")
    content = parse_content("ID_PART_TABLE_TYPE=mac\n", mac.id, set())
    choice = match(recorded(disk("sdz")), replace(present(mac), filesystems=(content,))).choices[0]
    assert choice.consent
    assert choice.content == "mac partition table"


def test_the_computers_own_layout_needs_no_consent():
    own = recorded(disk("sda"))
    choice = match(own, own).choices[0]
    assert not choice.consent
    assert choice.content == "this computer's own partitions"


def test_the_own_table_with_another_partition_needs_consent():
    own = recorded(disk("sda"))
    changed = replace(own, partitions=(*own.partitions, Partition("new", own.disks[0].id, 2, 9 * GB, GB, "t")))
    assert match(own, changed).choices[0].consent


def test_a_large_need_gets_the_only_disk_that_is_enough():
    small, large = disk("sda"), disk("sdb", 20 * GB)
    layout = recorded(small, large)
    layout = replace(layout, partitions=(layout.partitions[0], replace(layout.partitions[1], size=15 * GB)))
    assert paths(match(layout, present(disk("sdx", 20 * GB), disk("sdy", 9 * GB)))) == ["/dev/sdy", "/dev/sdx"]


def test_too_small_says_both_sizes():
    with pytest.raises(DiskTooSmall, match=r"Disk 0 needs at least 7630 MB; the largest free disk has 3814 MB"):
        match(recorded(disk("sda")), present(disk("sda", 4 * GB)))


def test_too_few_says_both_numbers():
    with pytest.raises(TooFewDisks, match=r"has 1 disk to recover onto\. The set needs 2 critical disks"):
        match(recorded(disk("sda"), disk("sdb")), present(disk("sda")))


def test_the_smallest_disk_that_holds_the_partitions_is_enough():
    gpt_tail = 33 * 512
    assert match(recorded(disk("sda")), present(disk("sda", 2**20 + 8 * GB + gpt_tail)))
    with pytest.raises(DiskTooSmall):
        match(recorded(disk("sda")), present(disk("sda", 2**20 + 8 * GB + gpt_tail - 1)))


def test_the_second_stage_finds_disks_by_their_tables():
    own = recorded(disk("sda"))
    moved = replace(own, disks=(replace(own.disks[0], path="/dev/sdq"),))
    assert located(own, moved).disks[0].path == "/dev/sdq"
    with pytest.raises(TooFewDisks):
        located(own, present(disk("sda")))


def test_a_saved_copy_beside_a_blank_disk_needs_consent():
    own = recorded(disk("sda", serial="dying"))
    clone = replace(own.disks[0], serial="spare", path="/dev/sdb")
    blank = disk("sdc")
    now = replace(own, disks=(clone, blank))
    assert match(own, now).choices[0].consent


@pytest.mark.parametrize(("known_by", "consent"), [
    ({"serial": "A"}, False), ({"serial": "B"}, True), ({"serial": ""}, False),
    ({"serial": "bridge", "wwn": "W"}, False), ({"serial": "A", "wwn": "V"}, True)])
def test_the_own_table_on_a_disk_with_another_serial_number_needs_consent(known_by, consent):
    own = recorded(disk("sda", serial="A", wwn="W"))
    choice = match(own, replace(own, disks=(replace(own.disks[0], **{"wwn": "", **known_by}),))).choices[0]
    assert choice.consent is consent
    assert ("but has another serial number" in choice.reason) is consent
    assert (choice.content == "this computer's own partitions") is not consent


def test_virtual_disks_without_serial_numbers_are_known_by_their_tables():
    own = recorded(disk("vda"))
    assert not match(own, replace(own, disks=(replace(own.disks[0], serial="NEW"),))).choices[0].consent


def test_the_disk_with_the_recorded_serial_number_wins_over_its_copy_which_must_go():
    own = recorded(disk("sda", serial="A"))
    copy = replace(own.disks[0], id="copy", serial="B", path="/dev/sdb")
    parts = tuple(replace(p, id="copy/1", disk="copy") for p in own.partitions)
    with pytest.raises(DuplicateIds, match=r"/dev/sdb \(9536 MB, B\) is not used, but it has the same partition table"):
        match(own, Layout((copy, own.disks[0]), (*parts, *own.partitions)))


GROUP = VolumeGroup("ubuntu-vg", "ubuntu-vg", "uuid of the group")
OF_LVM = replace(recorded(disk("sda", serial="A")), groups=(GROUP,), arrays=(
    MdArray("aaaaaaaa:bbbbbbbb:cccccccc:dddddddd", "/dev/md0", GB, "raid1", "1.2", ("table-sda/1", "")),),
    physical_volumes=(PhysicalVolume("AbC-dEf", "aaaaaaaa:bbbbbbbb:cccccccc:dddddddd", "ubuntu-vg"),),
    filesystems=(Filesystem("root", "ubuntu-vg/root", "ext4", "1234-root"),))
NEW, OTHER = disk("sda", serial="NEW"), disk("sdb", 4 * GB, label="gpt", label_id="other")


def beside(*volumes, filesystems=(), groups=(GROUP,)):
    """A new disk, and one that is too small to be used and has two partitions."""
    parts = tuple(Partition(f"{OTHER.id}/{n}", OTHER.id, n, n * 2**20, 2**20, "t") for n in (1, 2))
    return Layout((NEW, OTHER), parts, filesystems, physical_volumes=volumes, groups=groups)


@pytest.mark.parametrize(("now", "twice"), [
    (beside(PhysicalVolume("another", "sdb/2", GROUP.id)), "its volume group ubuntu-vg has the name of one"),
    # A part of it is lost when the other disk is made anew; what is left keeps the name.
    (beside(PhysicalVolume("one", "sda", GROUP.id), PhysicalVolume("another", "sdb/2", GROUP.id)),
     "its volume group ubuntu-vg has the name of one"),
    (beside(PhysicalVolume("AbC-dEf", "sdb/1", "")), "/dev/sdb1 has the same UUID as a volume"),
    (beside(filesystems=(Filesystem("x", "sdb/2", "LVM2_member", "AbC-dEf"),)), "/dev/sdb2 has the same UUID"),
    (beside(filesystems=(Filesystem("x", "sdb/1", "linux_raid_member", "aaaaaaaa-bbbb-bbbb-cccc-ccccdddddddd"),)),
     "/dev/sdb1 has the same UUID"),
    (beside(filesystems=(Filesystem("root", "sdb/1", "ext4", "1234-root"),)), "/dev/sdb1 has the same UUID"),
])
def test_what_would_be_there_twice_is_said_before_anything_is_written(now, twice):
    with pytest.raises(DuplicateIds, match=rf"/dev/sdb \(3814 MB\) is not used, but {twice}.* that Setup makes anew"):
        match(OF_LVM, now)


def test_a_disk_with_names_of_its_own_may_stay():
    other = VolumeGroup("ubuntu-vg#2", "data", "x")
    now = beside(PhysicalVolume("another", "sdb/2", other.id), groups=(other,),
                 filesystems=(Filesystem("content of sdb/1", "sdb/1", "ext4"),))
    assert paths(match(OF_LVM, now)) == ["/dev/sda"]


def test_a_disk_without_a_table_is_known_by_what_it_holds():
    own = Layout((disk("vda"),), filesystems=(Filesystem("f", "vda", "ext4", "1234"),))
    now = Layout((disk("vdb"), disk("vdc", id="vda")), filesystems=own.filesystems)
    choice = match(own, now).choices[0]
    assert (choice.present.path, choice.reason) == ("/dev/vdc", "carries its content")
    assert choice.consent              # it may be a copy: a blank disk lies beside it


def test_borders_must_fall_on_the_sectors_of_the_disk():
    layout = recorded(disk("sda"))
    shifted = replace(layout, partitions=(replace(layout.partitions[0], start=2**20 + 512),))
    large = present(disk("sdb", sector_size=4096))
    assert match(layout, large).layout.disks[0].sector_size == 4096
    with pytest.raises(DiskTooSmall, match=r"Disk 0 does not fit on /dev/sdb: its sectors have 4096 bytes, and the "
                                           r"recorded partitions begin or end within one\."):
        match(shifted, large)


def encrypted(type, **settings):
    """Two disks, of which the second has a file system within a volume group within a container."""
    layout = recorded(disk("sda"), disk("sdb"))
    return replace(
        layout, containers=(LuksContainer("c", "table-sdb/1", "crypt", GB),), groups=(VolumeGroup("vg", "vg"),),
        physical_volumes=(PhysicalVolume("pv", "c", "vg"),),
        logical_volumes=(LogicalVolume("vg/srv", "vg", "srv", GB),),
        filesystems=(Filesystem("f", "vg/srv", type, "u", settings=settings),), mounts=(Mount("f", "/srv"),))


LARGE = tuple(disk(name, sector_size=4096) for name in ("sdx", "sdy"))


@pytest.mark.parametrize(("layout", "needs"), [
    (encrypted("xfs", sectsz=512, log_sectsz=512), "[xfs] needs 512"),
    (encrypted("xfs", sectsz=4096, log_sectsz=512), "[xfs] needs 512"),
    (encrypted("vfat", sector_size=512), "[vfat] needs 512"),
    (encrypted("ext4", block_size=1024), "[ext4] needs 1024"),
])
def test_a_file_system_is_not_put_on_larger_sectors_than_its_own(layout, needs):
    said = re.escape(f"Disk 1 does not fit on /dev/sdx: its sectors have 4096 bytes, and /srv {needs}.")
    with pytest.raises(DiskTooSmall, match=said):
        match(layout, present(*LARGE))
    # The other disk, which nothing keeps from it, gets the one with larger sectors.
    assert paths(match(layout, present(disk("sdw"), LARGE[1]))) == ["/dev/sdy", "/dev/sdw"]


@pytest.mark.parametrize("layout", [
    encrypted("xfs", sectsz=4096, log_sectsz=4096), encrypted("vfat", sector_size=4096),
    encrypted("ext4", block_size=4096), encrypted("btrfs", sector_size=4096), encrypted("swap")])
def test_a_file_system_that_knows_large_sectors_is_put_on_them(layout):
    assert paths(match(layout, present(*LARGE))) == ["/dev/sdx", "/dev/sdy"]
