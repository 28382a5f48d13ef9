"""What F6 takes from a disk, what it refuses, and what it says."""

from pathlib import Path

import pytest

from bootenv import drivers
from bootenv.drivers import Loaded
from bootenv.errors import CommandFailed, Unsupported

KERNEL = "6.12.1-amd64"


@pytest.fixture
def disk(tmp_path, monkeypatch):
    """An empty disk; modinfo reads a file's own text, dpkg-deb gives out the tree beside the package."""
    ran: list[tuple[str, ...]] = []

    def run(argv, **_):
        ran.append(argv)
        if argv[0] == "modinfo":
            return Path(argv[-1]).read_text()
        if argv[0] == "dpkg-deb" and "broken" in argv[2]:
            raise CommandFailed("dpkg-deb failed: not a Debian format archive")
        if argv[0] == "dpkg-deb":
            for file in ("usr/lib/firmware/intel/ice.pkg", f"lib/modules/{KERNEL}/extra/new.ko",
                         "lib/modules/5.10/extra/old.ko"):
                (Path(argv[3]) / file).parent.mkdir(parents=True, exist_ok=True)
                (Path(argv[3]) / file).write_text(f"{KERNEL} SMP preempt")
        if argv[0] == "modprobe" and argv[-1] == "unsigned":
            raise CommandFailed("modprobe failed: could not insert 'unsigned': Key was rejected by service")
        if argv[0] == "xz" and "broken" in argv[-1]:
            raise CommandFailed("xz failed: File format not recognized")
        if argv[0] == "xz":
            Path(argv[-1]).rename(argv[-1].removesuffix(".xz"))
        return ""

    for name, value in {"run": run, "release": lambda: KERNEL, "TAKEN": tmp_path / "taken", "STATE": tmp_path,
                        "PCI": tmp_path / "pci", "every_volume": lambda: [tmp_path / "disk"], "forget": lambda: None,
                        }.items():
        monkeypatch.setattr(drivers, name, value)
    monkeypatch.setattr(drivers.shutil, "copytree", lambda source, goal, **_: ran.append(("copytree", goal)))
    (tmp_path / "disk/drivers").mkdir(parents=True)
    return tmp_path / "disk", ran


def put(path, text=f"{KERNEL} SMP preempt mod_unload modversions\n"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_modules_at_the_top_and_in_its_folder_are_loaded_and_taken_along(disk, tmp_path):
    folder, ran = disk
    put(folder / "raid.ko")
    put(folder / "drivers/card.ko.xz")
    put(folder / "notes.ko.txt")
    put(folder / "elsewhere/other.ko")
    assert drivers.load_drivers() == [Loaded("raid.ko"), Loaded("card.ko")]
    assert sorted(path.name for path in (tmp_path / "taken/modules").iterdir()) == ["card.ko", "raid.ko"]
    assert [argv[-1] for argv in ran if argv[0] == "modprobe"] == ["raid", "card"]
    assert ran.index(("depmod",)) < ran.index(("modprobe", "--", "raid"))


def test_firmware_keeps_the_name_that_the_kernel_asks_for(disk, tmp_path):
    folder, _ = disk
    put(folder / "FIRMWARE/rtl_nic/rtl8168h-2.fw")     # as a FAT volume may have it
    assert drivers.load_drivers() == [Loaded("rtl_nic/rtl8168h-2.fw")]
    assert (tmp_path / "taken/firmware/rtl_nic/rtl8168h-2.fw").exists()


def test_a_module_for_another_kernel_is_refused_with_both_versions(disk, tmp_path):
    folder, ran = disk
    put(folder / "raid.ko", "6.1.0-40-amd64 SMP preempt\n")
    put(folder / "strange.ko", "")
    assert [file.trouble for file in drivers.load_drivers()] == [
        f"It is for Linux 6.1.0-40-amd64; this is {KERNEL}.",
        f"It is for Linux of an unknown version; this is {KERNEL}."]
    assert "modprobe" not in [argv[0] for argv in ran]
    assert not (tmp_path / "taken/modules").exists()


def test_of_a_package_only_what_is_for_this_kernel_is_taken(disk, tmp_path):
    folder, _ = disk
    put(folder / "broken.deb")
    put(folder / "drivers/good.deb")
    assert drivers.load_drivers() == [
        Loaded("broken.deb", "dpkg-deb failed: not a Debian format archive"), Loaded("new.ko"), Loaded("intel/ice.pkg")]
    assert [path.name for path in (tmp_path / "taken/modules").iterdir()] == ["new.ko"]


def test_a_module_that_cannot_be_unpacked_costs_only_itself(disk, tmp_path):
    folder, _ = disk
    put(folder / "broken.ko.xz")
    put(folder / "raid.ko")
    assert drivers.load_drivers() == [Loaded("broken.ko", "xz failed: File format not recognized"), Loaded("raid.ko")]
    assert [path.name for path in (tmp_path / "taken/modules").iterdir()] == ["raid.ko"]


def test_the_drivers_of_a_set_are_loaded_in_the_same_way(disk):
    folder, _ = disk
    put(folder / "raid.ko")
    put(folder / "firmware/rtl_nic/a.fw")
    assert drivers.load_from(folder) == [Loaded("raid.ko"), Loaded("rtl_nic/a.fw")]
    assert drivers.load_from(folder / "firmware/rtl_nic") == []


def test_secure_boot_is_named_as_the_reason(disk):
    folder, _ = disk
    put(folder / "unsigned.ko")
    assert "Secure Boot is on" in drivers.load_drivers()[0].trouble


def test_a_device_without_a_driver_gets_another_chance(disk, tmp_path):
    folder, _ = disk
    put(folder / "firmware/a.bin")
    for device in ("0000:00:03.0/driver", "0000:00:04.0"):
        (tmp_path / "pci/devices" / device).mkdir(parents=True)
    (tmp_path / "pci/drivers_probe").touch()
    drivers.load_drivers()
    assert (tmp_path / "pci/drivers_probe").read_text() == "0000:00:04.0"


def test_a_disk_without_drivers_says_what_is_looked_for(disk):
    folder, _ = disk
    put(folder / "readme.txt")
    with pytest.raises(Unsupported, match=f"no .ko for Linux {KERNEL}"):
        drivers.load_drivers()
