"""Which present disk takes a recorded disk's place: by what it is, never by its name."""

from dataclasses import replace

import pytest

from bootenv.errors import DiskTooSmall, TooFewDisks
from bootenv.layout import Disk, Filesystem, Layout, Partition
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


def test_borders_must_fall_on_the_sectors_of_the_disk():
    layout = recorded(disk("sda"))
    shifted = replace(layout, partitions=(replace(layout.partitions[0], start=2**20 + 512),))
    large = present(disk("sdb", sector_size=4096))
    assert match(layout, large).layout.disks[0].sector_size == 4096
    with pytest.raises(DiskTooSmall):
        match(shifted, large)
