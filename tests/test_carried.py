"""Drivers that go along with a set: what is taken, where it lies, and that nothing else is loaded."""

import gzip
import hashlib
import lzma
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import zstandard

import bootenv.run
from bootenv import asr_disk, carried, prepare, recover
from bootenv.asr_disk import AsrDisk, put, read_asr_disk
from bootenv.backup import Source, write_backup
from bootenv.drivers import Loaded
from bootenv.errors import BackupNotFound, NoDriver
from bootenv.events import Difference
from bootenv.exclude import Excluder
from bootenv.run import run
from bootenv.sif import DRIVERS, CarriedFile, new_id, write_sif
from bootenv.volumes import FoundBackup
from console.__main__ import main
from tests.test_sif import SET

MODULE = b"\x7fELF" + bytes(60) + b"\0vermagic=6.12.1-amd64 SMP preempt mod_unload \0"


def record(path, data):
    return CarriedFile(path, len(data), hashlib.sha256(data).hexdigest())


RAID = record("drivers/raid.ko", MODULE)
FIRMWARE = record("drivers/firmware/rtl_nic/a.fw", b"firmware")
WITH_DRIVERS = replace(SET, files=(RAID, FIRMWARE))


def put_file(path: Path, data: bytes = MODULE) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def packed(suffix: str) -> bytes:
    return {"": bytes, ".gz": partial(gzip.compress, mtime=0), ".xz": lzma.compress,
            ".zst": zstandard.ZstdCompressor().compress}[suffix](MODULE)


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Path:
    """The root of a machine, and a recovery environment beside it."""
    for module, name, value in (
        (carried, "ROOT", tmp_path / "root"), (bootenv.run, "ROOT", Path("/")), (carried, "STATE", tmp_path / "state"),
        (carried, "_GATHERED", tmp_path / "state/carried"), (asr_disk, "LOG", bootenv.run.LOG),
        (carried, "forget", lambda: None),
    ):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(carried, "find_backup", _not_found)
    (tmp_path / "root").mkdir()
    return tmp_path / "root"


def _not_found(set):
    raise BackupNotFound("It is on none of the disks.")


@pytest.fixture
def filled(machine):
    """With the two drivers of WITH_DRIVERS."""
    put_file(machine / "var/lib/asr" / RAID.path)
    put_file(machine / "var/lib/asr" / FIRMWARE.path, b"firmware")
    return machine


# On the healthy machine

@pytest.mark.parametrize("suffix", ["", ".gz", ".xz", ".zst"])
def test_a_module_is_kept_and_it_is_said_for_which_linux(suffix, machine, tmp_path):
    said = carried.add([put_file(tmp_path / f"new/raid.ko{suffix}", packed(suffix))])
    assert said == [f"raid.ko{suffix}: a driver for Linux 6.12.1-amd64"]
    assert carried.kept() == (record(f"drivers/raid.ko{suffix}", packed(suffix)),)
    assert (machine / "var/lib/asr/drivers").stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize(("given", "kept"), [
    ("usr/lib/firmware/rtl_nic/rtl8168h-2.fw", "firmware/rtl_nic/rtl8168h-2.fw"),
    ("firmware/old/lib/firmware/brcm/x,3-b.txt", "firmware/brcm/x,3-b.txt"),
    ("Downloads/ice.pkg", "firmware/ice.pkg"),
])
def test_firmware_keeps_its_path_below_a_folder_of_that_name(given, kept, machine, tmp_path):
    assert carried.add([put_file(tmp_path / given, b"x")]) == [f"{kept}: firmware"]
    assert (machine / "var/lib/asr/drivers" / kept).read_bytes() == b"x"


@pytest.mark.parametrize(("name", "data", "why"), [
    ("raid.ko", b"hello", "is no kernel module"),
    ("raid.ko", b"\x7fELF" + bytes(99), "is no kernel module"),
    ("raid.ko.xz", b"hello", "cannot be unpacked"),
    ("raid.ko.zst", b"hello", "cannot be unpacked"),
    ("raid.ko.gz", packed(".gz")[:-9], "cannot be unpacked"),
    ("x.deb", b"hello", "is no Debian package"),
    ("a b.bin", b"x", "has a character in its name"),
])
def test_what_is_no_driver_is_refused_and_nothing_of_the_rest_is_kept(name, data, why, machine, tmp_path):
    good = put_file(tmp_path / "new/good.ko")
    with pytest.raises(NoDriver, match=why):
        carried.add([good, put_file(tmp_path / "new" / name, data)])
    assert carried.kept() == ()


def test_what_the_state_file_could_not_say_is_not_kept(machine, tmp_path, monkeypatch):
    carried.add([put_file(tmp_path / "firmware/a.fw", b"x")])
    with pytest.raises(NoDriver, match="two files that go along have the same name"):
        carried.add([put_file(tmp_path / "firmware/A.fw", b"x")])      # FAT knows no case
    with pytest.raises(NoDriver, match="two files that go along have the same name"):
        carried.add([put_file(tmp_path / "2/firmware/a.fw/b", b"x")])
    monkeypatch.setattr("bootenv.sif._MOST_OF_FILES", 2**20)
    with pytest.raises(NoDriver, match="more than 512 files or 1 MB"):
        carried.add([put_file(tmp_path / "large.bin", bytes(2**20))])
    assert [file.path for file in carried.kept()] == ["drivers/firmware/a.fw"]
    carried.add([put_file(tmp_path / "firmware/a.fw", b"newer")])
    assert carried.kept()[0].size == 5


def test_a_folder_is_no_file(machine, tmp_path):
    with pytest.raises(NoDriver, match="is no file"):
        carried.add([str(tmp_path)])


def test_the_command_adds_lists_and_removes(machine, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("os.geteuid", lambda: 0)
    assert main(["add-driver"]) == 0
    assert capsys.readouterr().out == "No driver goes along with sets.\n"
    assert main(["add-driver", put_file(tmp_path / "raid.ko"), put_file(tmp_path / "firmware/a/b.fw", b"x")]) == 0
    assert "raid.ko: a driver for Linux 6.12.1-amd64\n" in capsys.readouterr().out
    assert main(["add-driver"]) == 0
    assert capsys.readouterr().out == f"firmware/a/b.fw  1 bytes\nraid.ko  {len(MODULE)} bytes\n"
    assert main(["add-driver", "--remove", "firmware/a/b.fw", "--remove", "raid.ko"]) == 0
    assert not (machine / "var/lib/asr/drivers").exists()
    assert main(["add-driver", "--remove", "../repair/asr.sif"]) == 1
    assert "There is no driver ../repair/asr.sif." in capsys.readouterr().err


def test_a_file_that_has_changed_since_is_not_at_hand(filled):
    assert carried.at_hand(WITH_DRIVERS).keys() == {RAID.path, FIRMWARE.path}
    put_file(filled / "var/lib/asr" / RAID.path, MODULE[:-1] + b"!")
    assert carried.at_hand(WITH_DRIVERS).keys() == {FIRMWARE.path}


def test_drivers_are_in_the_backup_whatever_is_left_out():
    survey = prepare.Survey(WITH_DRIVERS, (), 0, exclude=("var/lib/*",))
    excluder = Excluder(survey.excluding["exclude"], survey.excluding["include"])
    assert excluder.pattern(b"var/lib/asr/drivers/raid.ko") is None
    assert excluder.pattern(b"var/lib/mysql") is not None


# On the ASR disk

@pytest.mark.disks
def test_a_floppy_has_the_drivers_beside_asr_sif(filled, tmp_path):
    floppy = str(tmp_path / "floppy.img")
    assert differences(put(WITH_DRIVERS, floppy, carried.at_hand(WITH_DRIVERS))) == []
    assert read_asr_disk(floppy) == {"": write_sif(WITH_DRIVERS)}
    assert run(("mtype", "-i", floppy, f"::/{FIRMWARE.path}")) == "firmware"
    asr_disk.read_file(floppy, RAID.path, tmp_path / "out", RAID.size)
    assert (tmp_path / "out").read_bytes() == MODULE
    asr_disk.read_file(floppy, RAID.path, tmp_path / "out", 10)        # no more than was recorded, and one byte
    assert (tmp_path / "out").read_bytes() == MODULE[:11]
    asr_disk.read_file(floppy, "drivers/none.ko", tmp_path / "out", 10)
    assert (tmp_path / "out").read_bytes() == b""


@pytest.mark.disks
def test_what_a_newer_set_has_no_more_goes_and_a_persons_own_files_stay(filled, tmp_path):
    floppy = str(tmp_path / "floppy.img")
    list(put(WITH_DRIVERS, floppy, carried.at_hand(WITH_DRIVERS)))
    asr_disk.write_asr_disk(floppy, {"own.ko": b"own"}, "drivers")
    newer = replace(SET, id=new_id(), files=(RAID,))
    with pytest.raises(asr_disk.AsrDiskNotBlank) as said:
        list(put(newer, floppy, carried.at_hand(newer)))
    assert "drivers" not in str(said.value)            # our own are no files that stay
    assert differences(put(newer, floppy, carried.at_hand(newer), agreed=True)) == []
    there = run(("mdir", "-/", "-b", "-i", floppy, "::/")).split()
    assert "::/drivers/raid.ko" in there
    assert "::/drivers/own.ko" in there
    assert f"::/{FIRMWARE.path}" not in there


@pytest.mark.disks
@pytest.mark.parametrize("size", [1_100_000, 2_000_000])    # in the log's room; nowhere
def test_drivers_that_do_not_fit_are_left_out_together_and_that_is_said(size, filled, tmp_path):
    large = bytes(size)
    put_file(filled / "var/lib/asr/drivers/large.deb", large)
    set = replace(SET, files=(RAID, record("drivers/large.deb", large)))
    floppy = str(tmp_path / "floppy.img")
    [said] = differences(put(set, floppy, carried.at_hand(set)))
    assert said.what == "drivers"
    assert said.why.startswith(f"There is no room for {size + RAID.size:,} bytes")
    assert "::/drivers/" not in run(("mdir", "-/", "-b", "-i", floppy, "::/"), check=False)
    assert read_asr_disk(floppy) == {"": write_sif(set)}


def test_drivers_that_are_not_at_hand_are_said(machine, tmp_path):
    (tmp_path / "disk").mkdir()
    [said] = differences(put(WITH_DRIVERS, str(tmp_path / "disk"), {}))
    assert said == Difference("drivers", "2 of 2 are not at hand as they were recorded, so none is on this ASR disk. "
                                         "They are in the backup.")
    assert not (tmp_path / "disk/drivers").exists()


def test_a_disk_made_from_the_backup_has_them(filled, tmp_path, capsys):
    for _ in write_backup(tmp_path / "b.tar.zst", [Source(filled)], ("asr.sif", write_sif(WITH_DRIVERS))):
        pass
    (tmp_path / "disk").mkdir()
    assert main(["make-disk", "--from", str(tmp_path / "b.tar.zst"), "--disk", str(tmp_path / "disk")]) == 0
    assert (tmp_path / "disk" / FIRMWARE.path).read_bytes() == b"firmware"
    assert (tmp_path / "disk" / RAID.path).read_bytes() == MODULE


# In recovery

@pytest.fixture
def disk(filled, tmp_path):
    """An ASR disk with both drivers, as a folder."""
    (tmp_path / "disk").mkdir()
    list(put(WITH_DRIVERS, str(tmp_path / "disk"), carried.at_hand(WITH_DRIVERS)))
    return AsrDisk(str(tmp_path / "disk"), "disk", WITH_DRIVERS)


def gathered(tmp_path) -> set[str]:
    top = tmp_path / "state/carried" / SET.id
    return {str(path.relative_to(top)) for path in top.rglob("*") if path.is_file()}


def test_drivers_come_from_the_disk(disk, tmp_path):
    put_file(tmp_path / "disk/drivers/stranger.ko")
    assert carried.gather(disk, DRIVERS) == []
    assert gathered(tmp_path) == {RAID.path, FIRMWARE.path}


def test_a_driver_that_is_not_as_recorded_is_left_alone_and_said(disk, tmp_path):
    put_file(tmp_path / "disk" / RAID.path, MODULE[:-1] + b"!")
    [said] = carried.gather(disk, DRIVERS)
    assert said.what == "raid.ko"
    assert "not as recorded" in said.why
    assert gathered(tmp_path) == {FIRMWARE.path}


@pytest.mark.parametrize("device", ["disk", ""])       # the disk lacks one; there is no disk at all
def test_what_the_disk_lacks_comes_from_the_backup(device, disk, filled, tmp_path, monkeypatch):
    for _ in write_backup(tmp_path / "b.tar.zst", [Source(filled)], ("asr.sif", write_sif(WITH_DRIVERS))):
        pass
    monkeypatch.setattr(carried, "find_backup", lambda set: FoundBackup(str(tmp_path / "b.tar.zst"), "b", set))
    (tmp_path / "disk" / RAID.path).unlink()
    assert carried.gather(replace(disk, device=device and disk.device), DRIVERS) == []
    assert gathered(tmp_path) == {RAID.path, FIRMWARE.path}


def test_a_link_in_a_strangers_backup_is_no_driver(disk, filled, tmp_path, monkeypatch):
    real = put_file(tmp_path / "elsewhere")
    (filled / "var/lib/asr" / RAID.path).unlink()
    (filled / "var/lib/asr" / RAID.path).symlink_to(real)
    for _ in write_backup(tmp_path / "b.tar.zst", [Source(filled)], ("asr.sif", write_sif(WITH_DRIVERS))):
        pass
    monkeypatch.setattr(carried, "find_backup", lambda set: FoundBackup(str(tmp_path / "b.tar.zst"), "b", set))
    assert [said.what for said in carried.gather(replace(disk, device=""), DRIVERS)] == ["raid.ko"]


def test_setup_says_what_became_of_them_and_goes_on(disk, tmp_path, monkeypatch):
    loaded = [Loaded("raid.ko", "It is for Linux 6.1; this is 6.12."), Loaded("rtl_nic/a.fw")]
    folders = []
    monkeypatch.setattr(recover, "load_from", lambda folder: folders.append(folder) or loaded)
    said = recover._load_carried(disk)
    assert folders == [tmp_path / "state/carried" / SET.id / "drivers"]
    assert (said.title, said.error) == ("Drivers and firmware of the set: 1 in use", None)
    assert said.note == "raid.ko: It is for Linux 6.1; this is 6.12."


def test_drivers_that_cannot_be_loaded_at_all_stop_nothing(disk, monkeypatch):
    def full(folder):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(recover, "load_from", full)
    said = recover._load_carried(disk)
    assert said.error is None
    assert "No space left on device" in said.note


def differences(events):
    return [event for event in events if isinstance(event, Difference)]
