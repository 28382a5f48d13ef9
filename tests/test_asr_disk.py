"""The ASR disk, as a floppy image and as a folder, with the real tools on files."""

from dataclasses import replace

import pytest

from bootenv import asr_disk
from bootenv.asr_disk import check_writable, find_asr_disk, read_asr_disk, write_asr_disk
from bootenv.errors import AsrDiskFull, AsrDiskNotBlank, AsrDiskUnwritable, DamagedSif, NoAsrDisk, OtherSet
from bootenv.run import run
from bootenv.sif import new_id, write_sif
from tests.test_sif import SET

pytestmark = pytest.mark.disks
SIF = write_sif(SET)


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
    write_asr_disk(floppy, {"asr.sif": SIF, "setup.log": b"log\n"})
    assert read_asr_disk(floppy) == {"asr.sif": SIF}
    assert "1474560" in run(("stat", "--format=%s", floppy))
    assert run(("mtype", "-i", floppy, "::/setup.log")) == "log\n"


def test_a_folder_will_do(tmp_path):
    write_asr_disk(str(tmp_path), {"asr.sif": SIF})
    assert read_asr_disk(str(tmp_path)) == {"asr.sif": SIF}


def test_the_same_computers_disk_is_written_again_and_other_files_stay(floppy):
    write_asr_disk(floppy, {"asr.sif": SIF, "other.txt": b"keep"})
    newer = write_sif(replace(SET, id=new_id()))
    check_writable(floppy, SET.host)
    write_asr_disk(floppy, {"asr.sif": newer})
    assert read_asr_disk(floppy) == {"asr.sif": newer}
    assert run(("mtype", "-i", floppy, "::/other.txt")) == "keep"


def test_another_computers_disk_is_refused(floppy):
    write_asr_disk(floppy, {"asr.sif": SIF})
    with pytest.raises(AsrDiskNotBlank, match="ASR disk of host"):
        check_writable(floppy, "somebody-else")


def test_a_disk_without_a_file_system_is_refused(tmp_path):
    blank = tmp_path / "blank.img"
    blank.write_bytes(bytes(1440 * 1024))
    with pytest.raises(AsrDiskUnwritable, match="not a readable FAT disk"):
        check_writable(str(blank), "host")


def test_a_full_disk_is_said_to_be_full(floppy):
    write_asr_disk(floppy, {"fill": bytes(1_400_000)})
    with pytest.raises(AsrDiskFull):
        write_asr_disk(floppy, {"asr.sif": bytes(200_000)})


def test_an_empty_drive_has_no_asr_disk(drives):
    with pytest.raises(NoAsrDisk, match="could not find an ASR disk in any drive"):
        find_asr_disk()


def test_the_disk_in_the_drive_is_found(drives, floppy):
    write_asr_disk(floppy, {"asr.sif": SIF})
    drives(floppy)
    assert find_asr_disk().set == SET


def test_a_blank_disk_is_no_asr_disk(drives, floppy):
    write_asr_disk(floppy, {"readme.txt": b"x"})
    drives(floppy)
    with pytest.raises(NoAsrDisk):
        find_asr_disk()


@pytest.mark.parametrize("damage", [lambda d: d[: len(d) // 2], lambda d: d[:100] + bytes([d[100] ^ 4]) + d[101:]],
                         ids=["truncated", "flipped"])
def test_a_damaged_state_file_is_said_to_be_damaged(drives, floppy, damage):
    write_asr_disk(floppy, {"asr.sif": damage(SIF)})
    drives(floppy)
    with pytest.raises(DamagedSif, match=r"ASR\.SIF is damaged"):
        find_asr_disk()


def test_a_damaged_disk_does_not_hide_a_good_one(drives, floppy, tmp_path):
    write_asr_disk(floppy, {"asr.sif": SIF[:50]})
    good = str(tmp_path / "good.img")
    write_asr_disk(good, {"asr.sif": SIF})
    drives(floppy, good)
    assert find_asr_disk().device == good


def test_two_sets_are_not_guessed_between(drives, floppy, tmp_path):
    write_asr_disk(floppy, {"asr.sif": SIF})
    other = str(tmp_path / "other.img")
    write_asr_disk(other, {"asr.sif": write_sif(replace(SET, id=new_id(), host="other"))})
    drives(floppy, other)
    with pytest.raises(OtherSet, match=r"host of .* and other of"):
        find_asr_disk()


def test_a_device_that_is_not_there_is_not_made():
    with pytest.raises(AsrDiskUnwritable, match="There is no device /dev/asr-no-such-drive"):
        write_asr_disk("/dev/asr-no-such-drive", {"asr.sif": SIF})
