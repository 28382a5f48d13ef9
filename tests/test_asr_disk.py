"""The ASR disk, as a floppy image and as a folder, with the real tools on files."""

import json
import os
import re
from dataclasses import replace

import pytest

import bootenv.run
from bootenv import asr_disk, files
from bootenv.asr_disk import (
    check_disk,
    find_asr_disks,
    folder_for,
    parse_drives,
    put,
    read_asr_disk,
    write_asr_disk,
)
from bootenv.errors import (
    AsrDiskFull,
    AsrDiskNotBlank,
    AsrDiskUnformatted,
    AsrDiskUnwritable,
    CommandFailed,
    DamagedSif,
    NoAsrDisk,
    ToolMissing,
)
from bootenv.layout import Disk, Layout
from bootenv.run import run
from bootenv.sif import new_id, read_sif, write_sif
from console.__main__ import main
from tests.test_sif import SET

pytestmark = pytest.mark.disks
SIF = write_sif(SET)
NEWER = replace(SET, id=new_id(), created=SET.created.replace(year=2030))
OTHER = replace(SET, id=new_id(), host="web1.example.org", layout=Layout((Disk("other", "/dev/sda", 2**30),)))


def made(set, place, **options):
    return list(put(set, place, **options))


def names(floppy, folder=""):
    return sorted(run(("mdir", "-b", "-i", floppy, f"::/{folder}")).split())


@pytest.fixture(autouse=True)
def own_log(monkeypatch):
    monkeypatch.setattr(asr_disk, "LOG", bootenv.run.LOG)


@pytest.fixture
def floppy(tmp_path):
    return str(tmp_path / "floppy.img")


@pytest.fixture
def drives(monkeypatch):
    def insert(*devices):
        monkeypatch.setattr(asr_disk, "_drives", lambda: iter(devices))
    insert()
    return insert


def test_a_floppy_image_is_made_and_read_back(floppy):
    asr_disk.log("what happened")
    made(SET, floppy)
    assert read_asr_disk(floppy) == {"": SIF}
    assert os.path.getsize(floppy) == 1474560
    assert run(("mlabel", "-s", "-i", floppy, "::")).split()[-1] == "ASR"
    assert names(floppy) == ["::/asr.sif", "::/setup.log"]


def test_a_folder_will_do(tmp_path):
    (tmp_path / "other.txt").touch()
    made(SET, str(tmp_path), agreed=True)
    assert read_asr_disk(str(tmp_path)) == {"": SIF}
    made(OTHER, str(tmp_path), agreed=True)
    assert read_asr_disk(str(tmp_path)) == {"": SIF, "web1.example.org": write_sif(OTHER)}


def test_the_same_computers_disk_is_written_again_after_a_question_and_other_files_stay(floppy):
    made(SET, floppy)
    write_asr_disk(floppy, {"other.txt": b"keep"})
    with pytest.raises(AsrDiskNotBlank, match=r"older set of host, .*, which is replaced\. It holds other\.txt; they"):
        made(NEWER, floppy)
    assert read_asr_disk(floppy) == {"": SIF}
    made(NEWER, floppy, agreed=True)
    assert read_asr_disk(floppy) == {"": write_sif(NEWER)}
    assert run(("mtype", "-i", floppy, "::/other.txt")) == "keep"


def test_another_computers_set_stays_and_ours_gets_a_folder(floppy):
    made(SET, floppy)
    with pytest.raises(AsrDiskNotBlank, match=r"ASR disk of host, of .*; that set stays"):
        check_disk(OTHER, floppy)
    made(OTHER, floppy, agreed=True)
    made(OTHER, floppy, agreed=True)
    assert read_asr_disk(floppy) == {"": SIF, "web1.example.org": write_sif(OTHER)}


def test_a_computer_of_the_same_name_is_another_one():
    twin = replace(SET, id=new_id(), layout=OTHER.layout)
    assert folder_for({"": SIF}, twin) == "host"
    assert folder_for({"": SIF, "HOST": write_sif(OTHER)}, twin) == "host-2"
    assert folder_for({"": write_sif(OTHER), "x": SIF}, NEWER) == "x"
    assert folder_for({"": b"damaged"}, replace(SET, host="../w\xf6b")) == "-w-b"


def test_a_blank_disk_is_formatted_only_if_that_was_asked_for(tmp_path):
    blank = tmp_path / "blank.img"
    blank.write_bytes(bytes(1440 * 1024))
    with pytest.raises(AsrDiskUnformatted, match="not formatted"):
        made(SET, str(blank), agreed=True)
    assert not any(blank.read_bytes())
    made(SET, str(blank), format=True)
    assert read_asr_disk(str(blank)) == {"": SIF}
    assert b"FAT12" in blank.read_bytes()[:512]


def test_a_disk_of_another_kind_is_left_alone_even_if_formatting_was_asked_for(tmp_path):
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(4 * 2**20))
    run(("mkfs.ext4", "-q", "-L", "photos", str(disk)))
    before = disk.read_bytes()
    with pytest.raises(AsrDiskUnwritable, match=r"holds a file system \[ext4\] labeled photos, not FAT"):
        made(SET, str(disk), agreed=True, format=True)
    assert disk.read_bytes() == before


def test_a_full_disk_is_said_to_be_full_and_keeps_the_set_that_was_on_it(floppy):
    made(SET, floppy)
    fill = 1440 * 1024
    while fill > 512:
        fill //= 2
        with_room = run(("mdir", "-i", floppy, "::/")).replace(" ", "")
        if int(re.search(r"(\d+)bytesfree", with_room)[1]) > fill + 1024:
            write_asr_disk(floppy, {f"fill{fill}": bytes(fill)})
    with pytest.raises(AsrDiskFull, match=r"no room for asr\.sif"):
        made(NEWER, floppy, agreed=True)
    assert read_asr_disk(floppy) == {"": SIF}
    assert "::/asr.new" not in names(floppy)


def test_a_full_disk_without_room_for_the_log_is_an_asr_disk_all_the_same(floppy):
    asr_disk.log(*["x" * 1000] * 300)
    made(SET, floppy)
    run(("mdel", "-i", floppy, "::/setup.log"))
    write_asr_disk(floppy, {"fill": bytes(1_370_000)})
    made(NEWER, floppy, agreed=True)
    assert names(floppy) == ["::/asr.sif", "::/fill"]


@pytest.mark.parametrize(("errno", "said"), [
    (30, "is write-protected"), (13, "is write-protected"), (6, "There is no disk in"), (123, "There is no disk in"),
    (5, "cannot be read: Input/output error"),
])
def test_what_a_drive_says_is_put_into_words(errno, said, floppy, monkeypatch):
    made(SET, floppy)
    real = os.open

    def open(path, flags, *rest, **more):
        if flags & os.O_RDWR and str(path) == floppy:
            raise OSError(errno, os.strerror(errno))
        return real(path, flags, *rest, **more)

    monkeypatch.setattr(asr_disk.os, "open", open)
    with pytest.raises(AsrDiskUnwritable, match=said):
        made(NEWER, floppy, agreed=True)


def test_a_disk_that_reads_back_differently_is_worn_out(floppy, monkeypatch):
    monkeypatch.setattr(asr_disk, "flush", lambda place: run(("mcopy", "-o", "-i", place, "/etc/hostname",
                                                              "::/asr.sif")))
    with pytest.raises(AsrDiskUnwritable, match="reads back differently") as caught:
        made(SET, floppy)
    assert "worn out" in caught.value.hint


def test_a_device_that_is_not_there_is_not_made():
    with pytest.raises(AsrDiskUnwritable, match="There is no device /dev/asr-no-such-drive"):
        made(SET, "/dev/asr-no-such-drive")


def test_an_image_is_made_in_a_folder_that_is_there(tmp_path):
    with pytest.raises(AsrDiskUnwritable, match=r"There is no folder .*/nowhere"):
        made(SET, str(tmp_path / "nowhere" / "a.img"))


def test_an_empty_drive_has_no_asr_disk(drives):
    with pytest.raises(NoAsrDisk, match="could not find an ASR disk in any drive"):
        find_asr_disks()


def test_the_disk_in_the_drive_is_found(drives, floppy):
    made(SET, floppy)
    drives(floppy)
    assert [disk.set for disk in find_asr_disks()] == [SET]


def test_a_blank_disk_is_no_asr_disk(drives, floppy):
    run(("mkfs.fat", "-C", floppy, "1440"))
    drives(floppy)
    with pytest.raises(NoAsrDisk):
        find_asr_disks()


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: d[:100] + bytes([d[100] ^ 4]) + d[101:]],
                         ids=["truncated", "flipped"])
def test_a_damaged_state_file_is_said_to_be_damaged(drives, floppy, damage):
    made(SET, floppy)
    write_asr_disk(floppy, {"asr.sif": damage(SIF)})
    drives(floppy)
    with pytest.raises(DamagedSif, match=r"ASR\.SIF is damaged"):
        find_asr_disks()


def test_a_disk_that_cannot_be_read_is_not_said_to_be_missing(drives, floppy, monkeypatch):
    made(SET, floppy)
    drives(floppy)

    def worn_out(place):
        raise asr_disk.CommandFailed("mdir failed: plain_io: Input/output error")

    monkeypatch.setattr(asr_disk, "read_asr_disk", worn_out)
    with pytest.raises(NoAsrDisk, match="cannot be read: it is worn out"):
        find_asr_disks()


def test_a_damaged_disk_does_not_hide_a_good_one(drives, floppy, tmp_path):
    made(SET, floppy)
    write_asr_disk(floppy, {"asr.sif": SIF[:50]})
    good = str(tmp_path / "good.img")
    made(SET, good)
    drives(floppy, good)
    assert [disk.device for disk in find_asr_disks()] == [good]


def test_sets_of_several_computers_are_all_found_and_each_once(drives, floppy, tmp_path):
    made(SET, floppy)
    made(OTHER, floppy, agreed=True)
    copy = str(tmp_path / "copy.img")
    made(SET, copy)
    newer = str(tmp_path / "newer.img")
    made(NEWER, newer)
    drives(floppy, copy, newer)
    found = find_asr_disks()
    assert (found[0].set.id, found[0].device, found[0].folder) == (NEWER.id, newer, "")
    assert {(disk.set.id, disk.device, disk.folder) for disk in found[1:]} == {
        (SET.id, floppy, ""), (OTHER.id, floppy, "web1.example.org")}


def test_formatting_is_for_a_disk_without_a_file_system_whatever_was_asked(floppy, tmp_path):
    made(SET, floppy)
    write_asr_disk(floppy, {"photo.jpg": b"keep"})
    made(NEWER, floppy, agreed=True, format=True)
    assert read_asr_disk(floppy) == {"": write_sif(NEWER)}
    assert run(("mtype", "-i", floppy, "::/photo.jpg")) == "keep"
    (tmp_path / "folder").mkdir()
    made(SET, str(tmp_path / "folder"), format=True)
    assert read_asr_disk(str(tmp_path / "folder")) == {"": SIF}


def test_mtools_without_character_sets_is_not_the_disks_fault(floppy, monkeypatch):
    made(SET, floppy)

    def without(argv, **options):
        raise CommandFailed("mdir failed: Error converting to codepage 850 Invalid argument Error setting code page")

    monkeypatch.setattr(asr_disk, "run", without)
    with pytest.raises(ToolMissing, match="character sets are not installed"):
        check_disk(NEWER, floppy, agreed=True)


def test_it_is_said_whether_a_backups_disk_is_in_a_drive(floppy, drives, monkeypatch):
    monkeypatch.setattr(files, "read_first", lambda path: SIF)
    assert files.disk_of("x.tar.zst") == ("Its ASR disk was not seen: Setup could not find an ASR disk in any drive.")
    made(OTHER, floppy)
    drives(floppy)
    assert "is of ANOTHER set: web1.example.org" in files.disk_of("x.tar.zst")
    made(SET, floppy, agreed=True)
    assert files.disk_of("x.tar.zst") == f"Its ASR disk is whole, and in {asr_disk.describe(floppy)}."
    write_asr_disk(floppy, {"asr.sif": SIF[:-9]})
    write_asr_disk(floppy, {"asr.sif": SIF[:-9]}, "host")
    assert "was not seen: The file ASR.SIF is damaged" in files.disk_of("x.tar.zst")
    monkeypatch.setattr(files, "read_first", lambda path: b"not an asr.sif")
    assert "It is no backup of an ASR set" in files.disk_of("x.tar.zst")


def test_drives_are_what_can_be_taken_away_and_holds_no_other_file_system():
    def row(path, fstype=None, rm=False, tran=None, size=16 * 10**9, children=(), **more):
        return {"path": path, "type": "disk", "fstype": fstype, "label": None, "size": size, "rm": rm, "hotplug": rm,
                "tran": tran, "model": "Stick", **({"children": list(children)} if children else {}), **more}

    rows = [row("/dev/sda", children=[row("/dev/sda1", "vfat")]), row("/dev/sdb", tran="usb"),
            row("/dev/sdc", tran="usb", children=[row("/dev/sdc1", "vfat", label="PHOTOS"), row("/dev/sdc2", "ext4")]),
            row("/dev/sdd", tran="usb", children=[row("/dev/sdd1", "ext4")]), row("/dev/mmcblk0", "vfat", rm=True),
            row("/dev/sde", "vfat", tran="usb"),
            row("/dev/sdf", "vfat", tran="usb", children=[row("/dev/sdf1", "vfat")])]
    found = {d.device: d.description for d in parse_drives(json.dumps({"blockdevices": rows}), {"/dev/sde"})}
    assert found == {"/dev/sdb": "16000 MB  Stick  not formatted", "/dev/sdc1": "PHOTOS  16000 MB  Stick",
                     "/dev/mmcblk0": "16000 MB  Stick", "/dev/sdf": "16000 MB  Stick"}


def test_a_lost_disk_is_written_again_from_a_copy_on_any_computer(floppy, tmp_path, capsys):
    (tmp_path / "asr.sif").write_bytes(SIF)
    assert main(["make-disk", "--from", str(tmp_path / "asr.sif"), "--disk", floppy]) == 0
    said = capsys.readouterr().out
    assert "Automated System Recovery Disk for host" in said
    assert said.endswith("It was read back and matches.\n")
    assert [read_sif(data) for data in read_asr_disk(floppy).values()] == [SET]
    assert main(["make-disk", "--from", str(tmp_path / "nothing"), "--disk", floppy]) == 1
    (tmp_path / "asr.sif").write_bytes(SIF[:-9])
    assert main(["make-disk", "--from", str(tmp_path / "asr.sif"), "--disk", floppy]) == 1
    assert "ASR-010: There is no file" in (errors := capsys.readouterr().err)
    assert "ASR-011" in errors
