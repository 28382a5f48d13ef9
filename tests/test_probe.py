"""What the field's tools print, as records."""

import json
import struct
import uuid

import pytest

from bootenv import probe
from bootenv.layout import Disk, SwapFile
from bootenv.probe import (
    parse_content,
    parse_disks,
    parse_fstab,
    parse_mounted,
    parse_swap_files,
    parse_table,
)


@pytest.mark.parametrize(("encoded", "label"), [
    (r"sw\x20\xc3\xa4\x22\x5cp", 'sw ä"\\p'), ("swäp", "swäp"), ("", ""), (r"\x5cx41", r"\x41"),
])
def test_every_label_is_read_as_it_is(encoded, label):
    text = f"ID_FS_LABEL=whatever\nID_FS_LABEL_ENC={encoded}\nID_FS_UUID=u\nID_FS_TYPE=swap\n"
    assert parse_content(text, "d/1", set()).label == label


def test_a_label_that_is_no_text_keeps_nobody_from_recovering():
    assert parse_content("ID_FS_TYPE=ext4\nID_FS_LABEL_ENC=\\xff\n", "d/1", set()).label == "\ufffd"


def test_two_signatures_are_somebodys_content():
    assert parse_content("ID_FS_AMBIVALENT=other:swap:1 filesystem:ext4:1.0\n", "d", set()).type == "ambivalent"


def test_a_partition_table_that_sfdisk_cannot_read_is_somebodys_content():
    assert parse_content("ID_PART_TABLE_TYPE=mac\n", "d", set()).type == "mac partition table"
    assert parse_content("ID_FS_TYPE=ntfs\nID_PART_TABLE_TYPE=dos\n", "d", set()).type == "ntfs"


def test_clones_are_told_apart():
    seen = set()
    text = "ID_FS_TYPE=ext4\nID_FS_UUID=same\n"
    assert [parse_content(text, f"d/{n}", seen).id for n in (1, 2, 3)] == ["same", "same#2", "same#3"]


def test_what_is_no_disk_of_the_machine_is_left_out():
    row = {"type": "disk", "size": 5, "ro": False, "log-sec": 512, "serial": None, "wwn": None, "model": "M ",
           "tran": None, "subsystems": "block:virtio:pci"}
    names = ("loop0", "zram0", "ram1", "sr0", "fd0", "nbd0", "zd16", "mmcblk0boot0", "mmcblk0rpmb", "mmcblk0", "vda")
    rows = [row | {"name": name, "path": f"/dev/{name}"} for name in names]
    rows += [row | {"name": "sda", "path": "/dev/sda", "ro": True},
             row | {"name": "sdb", "path": "/dev/sdb", "size": 0}]

    disks = list(parse_disks(json.dumps({"blockdevices": rows})))
    assert [disk.path for disk in disks] == ["/dev/mmcblk0", "/dev/vda"]
    assert disks[0].model == "M"
    assert disks[0].transport == "virtio"


def test_partition_numbers_come_from_their_nodes():
    text = '''{"partitiontable": {"label": "dos", "id": "0x1", "device": "/dev/nvme0n1", "unit": "sectors",
        "sectorsize": 4096, "partitions": [{"node": "/dev/nvme0n1p7", "start": 2, "size": 3, "type": "83"}]}}'''
    disk, (partition,) = parse_table(text, Disk("x", "/dev/nvme0n1", 5), set())
    assert (partition.number, partition.start, partition.size) == (7, 8192, 12288)
    assert disk.sector_size == 4096


def test_the_medium_sees_the_machines_mounts_under_its_own_root():
    text = '''{"filesystems": [
        {"target": "/", "source": "overlay", "fstype": "overlay", "fsroot": "/"},
        {"target": "/host", "source": "/dev/sda1", "fstype": "ext4", "fsroot": "/"},
        {"target": "/host/home", "source": "/dev/sda2[/@home]", "fstype": "btrfs", "fsroot": "/@home"},
        {"target": "/hostile", "source": "/dev/sda3", "fstype": "ext4", "fsroot": "/"}]}'''
    assert [(m.point, m.source, m.root) for m in parse_mounted(text, "/host")] == [
        ("/", "/dev/sda1", "/"), ("/home", "/dev/sda2", "/@home")]


def test_the_medium_knows_the_machines_swap_files_by_the_machines_names():
    text = "/dev/vda4 partition 134213632 uuid\n/swap/a\\x20file file 67104768 other label\n/host/file file 4096\n"
    assert list(parse_swap_files(text, "/host")) == [
        SwapFile("/swap/a file", 64 << 20, "other", "label"), SwapFile("/file", 8192)]


def test_a_swap_files_uuid_and_label_are_read_where_the_machine_is_seen(tmp_path, monkeypatch):
    id = uuid.UUID("62ba98b5-25e0-45e9-b49f-84612fddd766")
    header = struct.pack("<III16s16s", 1, 255, 0, id.bytes, "swäp".encode())       # linux/swap.h, from byte 1024 on
    (tmp_path / "file").write_bytes((bytes(1024) + header).ljust(4086, b"\0") + b"SWAPSPACE2")
    monkeypatch.setattr(probe, "ROOT", tmp_path)
    monkeypatch.setattr(probe, "run", lambda argv: "/file file 1044480\n/gone file 4096\n")
    assert list(probe._swap_files()) == [SwapFile("/file", 1 << 20, str(id), "swäp"), SwapFile("/gone", 8192)]


def test_fstab_is_read_with_its_blanks():
    text = "# comment\n\nUUID=a  /mnt/my\\040disk ext4 noatime 0 2\nLABEL=b / ext4\n"
    assert list(parse_fstab(text)) == [
        ("UUID=a", "/mnt/my disk", "ext4", "noatime"), ("LABEL=b", "/", "ext4", "defaults")]
