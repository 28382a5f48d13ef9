"""Where the minimal OS may lie, what starts it, and what is left of it."""

import os
import re
import subprocess
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from bootenv import bootloader, keymap, network, uefi
from bootenv.bootloader import (
    boot_disks,
    check_minimal,
    copy_minimal,
    esp_mounts,
    loader_of,
    readable_mounts,
    recovery_folder,
    recovery_mount,
)
from bootenv.errors import CommandFailed, Unsupported
from bootenv.events import Difference
from bootenv.layout import (
    BootOption,
    Disk,
    Filesystem,
    Layout,
    LogicalVolume,
    LuksContainer,
    MdArray,
    Mount,
    Partition,
    PhysicalVolume,
    Subvolume,
    SwapFile,
    VolumeGroup,
)

ESP_TYPE = "C12A7328-F81F-11D2-BA4B-00A0C93EC93B"
BIOS_BOOT = "21686148-6449-6E6F-744E-656564454649"
BIOS = SimpleNamespace(id="11111111-2222-3333-4444-555555555555", firmware="bios", loader="grub")
SHIM = "\\EFI\\debian\\shimx64.efi"
UEFI = SimpleNamespace(id=BIOS.id, firmware="uefi", loader="grub")

A, B = (Disk(name, f"/dev/{name}", 2**33, label="gpt") for name in ("sda", "sdb"))


def part(disk, number, type="8300"):
    return Partition(f"{disk.id}/{number}", disk.id, number, number * 2**20, 2**20, type, f"guid-{disk.id}-{number}")


def layout_of(*mounts, **others):
    """A layout of mounts given as (point, device, type); each file system's id is its mount point."""
    filesystems = tuple(Filesystem(point, device, type, uuid=f"uuid{point}") for point, device, type in mounts)
    return Layout(filesystems=filesystems, mounts=tuple(Mount(point, point) for point, _, _ in mounts), **others)


# Two disks: BIOS boot, ESP, /boot on a mirror, the root volume on the group that lies on another mirror.
PARTS = tuple(p for d in (A, B) for p in (part(d, 1, BIOS_BOOT), part(d, 2, ESP_TYPE), part(d, 3), part(d, 4)))
MIRROR = MdArray("aa:bb:cc:00", "/dev/md0", 2**20, "raid1", "1.2", ("sda/3", "sdb/3"))
LARGE = MdArray("aa:bb:cc:01", "/dev/md/vg", 2**20, "raid1", "1.0", ("sda/4", "sdb/4"))
GROUP = VolumeGroup("my-vg", "my-vg")
ROOT = LogicalVolume("my-vg/root", "my-vg", "root", 2**20, volumes=("pv1",))
DEVICES = {"disks": (A, B), "partitions": PARTS, "arrays": (MIRROR, LARGE), "groups": (GROUP,),
           "physical_volumes": (PhysicalVolume("pv1", "aa:bb:cc:01", "my-vg"),), "logical_volumes": (ROOT,)}
SERVER = layout_of(("/", "my-vg/root", "xfs"), ("/boot", "aa:bb:cc:00", "ext4"), ("/boot/efi", "sda/2", "vfat"),
                   ("/srv", "my-vg/root", "ext4"), **DEVICES)


def points(layout):
    return [mount.point for mount in readable_mounts(layout)]


def test_the_best_place_is_boot_then_the_root_then_the_esp():
    assert points(SERVER) == ["/boot", "/", "/boot/efi", "/srv"]
    assert recovery_mount(SERVER).point == "/boot"
    assert recovery_folder(SERVER, Path("/target")) == Path("/target/boot/asr-recovery")


def test_the_place_that_preparation_chose_is_kept():
    chosen = tuple(replace(m, recovery=m.point == "/") for m in SERVER.mounts)
    assert recovery_mount(replace(SERVER, mounts=chosen)).point == "/"


@pytest.mark.parametrize(("device", "readable"), [
    (replace(ROOT, type="raid10"), True),
    (replace(ROOT, type="thin", pool="my-vg/pool"), False),
    (replace(ROOT, cached=True), False),
    (replace(MIRROR, level="raid6"), True),
    (replace(MIRROR, level="linear"), False),               # the medium's kernel has none
    (replace(MIRROR, metadata="imsm"), False),
    (LuksContainer("luks", "sda/4", "open", 2**20), False),
])
def test_what_lies_below_decides_whether_a_volume_can_be_read(device, readable):
    kind = {LogicalVolume: "logical_volumes", MdArray: "arrays", LuksContainer: "containers"}[type(device)]
    devices = DEVICES | {kind: (device,)}
    if kind != "arrays":
        devices |= {"arrays": (MIRROR, LARGE)}
    elif readable or device is not MIRROR:
        devices |= {"logical_volumes": (), "physical_volumes": ()}
    assert points(layout_of(("/", device.id, "ext4"), **devices)) == (["/"] if readable else [])


def test_a_group_on_a_container_is_as_closed_as_that():
    container = LuksContainer("luks", "sda/4", "open", 2**20)
    devices = DEVICES | {"containers": (container,), "physical_volumes": (PhysicalVolume("pv1", "luks", "my-vg"),)}
    layout = layout_of(("/", "my-vg/root", "ext4"), ("/boot", "sda/3", "ext4"), **devices)
    assert points(layout) == ["/boot"]


@pytest.mark.parametrize(("type", "settings"), [
    ("ext4", {"features": ("extent", "casefold")}), ("xfs", {"exchange": 1}), ("f2fs", {}), ("ntfs", {})])
def test_what_grub_cannot_read_is_no_place(type, settings):
    layout = layout_of(("/", "sda/4", type), **DEVICES)
    root = replace(layout.filesystems[0], settings=settings)
    with pytest.raises(Unsupported, match="no volume that the boot loader"):
        recovery_mount(replace(layout, filesystems=(root,)))


def test_features_that_grub_reads_are_no_obstacle():
    layout = layout_of(("/", "sda/4", "ext4"), **DEVICES)
    root = replace(layout.filesystems[0], settings={"features": ("extent", "metadata_csum", "encrypt", "orphan_file")})
    assert points(replace(layout, filesystems=(root,))) == ["/"]


def config(set, layout):
    return bootloader._config(set, layout)


def test_the_minimal_os_starts_what_it_lies_on_and_nothing_else():
    assert "asr.array=aa:bb:cc:00@/dev/md0 " in config(BIOS, SERVER)
    assert "asr.volume" not in config(BIOS, SERVER)
    on_root = replace(SERVER, mounts=tuple(replace(m, recovery=m.point == "/") for m in SERVER.mounts))
    text = config(BIOS, on_root)
    assert " asr.array=aa:bb:cc:01@/dev/md/vg asr.volume=my-vg/root quiet " in text
    assert "aa:bb:cc:00" not in text
    assert "--set=root uuid/\n" in text


def test_the_minimal_os_has_the_same_keyboard_address_and_way_in(tmp_path, monkeypatch):
    (tmp_path / "keymap").write_text("de-latin1\n")
    (tmp_path / "address").write_text("192.0.2.9/24,192.0.2.1\n")
    monkeypatch.setattr(network, "ADDRESS", tmp_path / "address")
    (tmp_path / "cmdline").write_text("asr.id=0 asr.keymap=us asr.ssh=AAAAC3Nz= asr.toram quiet\n")
    monkeypatch.setattr(keymap, "CHOSEN", tmp_path / "keymap")
    monkeypatch.setattr(bootloader, "CMDLINE", tmp_path / "cmdline")
    text = config(BIOS, SERVER)
    same = "asr.keymap=de-latin1 asr.address=192.0.2.9/24,192.0.2.1 asr.ssh=AAAAC3Nz="
    assert f" asr.stage=restore {same} asr.array=" in text
    assert "asr.toram" not in text


def test_the_minimal_os_on_a_partition_starts_nothing():
    text = config(BIOS, layout_of(("/", "sda/4", "ext4"), **DEVICES))
    assert "asr.array" not in text
    assert "asr.volume" not in text


def test_the_esps_grub_needs_no_volume_but_its_own():
    text = config(UEFI, SERVER)
    assert "linux /EFI/asr/vmlinuz asr.id=11111111-2222-3333-4444-555555555555 asr.stage=restore asr.array=" in text
    assert "search" not in text


def test_grub_reads_a_subvolume_from_the_top():
    layout = layout_of(("/", "sda/4", "btrfs"), **DEVICES)
    layout = replace(layout, mounts=(Mount("/", "/", subvolume="@/root"),))
    text = config(BIOS, layout)
    assert "linux /@/root/asr-recovery/vmlinuz asr.id=11111111" in text
    assert " asr.subvolume=@/root " in text


@pytest.mark.parametrize("subvolume", ["two words", "new\nline", "$root"])
def test_a_subvolume_that_is_no_word_of_a_command_line_is_no_place(subvolume):
    layout = layout_of(("/", "sda/4", "btrfs"), **DEVICES)
    assert points(replace(layout, mounts=(Mount("/", "/", subvolume=subvolume),))) == []


def test_nothing_is_written_into_a_read_only_subvolume():
    layout = layout_of(("/", "sda/4", "btrfs"), **DEVICES)
    layout = replace(layout, mounts=(Mount("/", "/", subvolume="@"),),
                     subvolumes=(Subvolume("/", "@", read_only=True),))
    assert points(layout) == []


def test_every_disk_of_a_mirror_gets_the_loader():
    assert boot_disks(SERVER) == [A, B]


def test_a_raw_physical_volume_or_member_is_never_written():
    raw = replace(B, label="")
    devices = DEVICES | {"disks": (A, raw), "partitions": tuple(p for p in PARTS if p.disk == "sda"), "arrays": (),
                         "physical_volumes": (PhysicalVolume("pv1", "sda/4", "my-vg"),
                                              PhysicalVolume("pv2", "sdb", "my-vg"))}
    assert boot_disks(layout_of(("/", "my-vg/root", "ext4"), **devices)) == [A]


def test_a_gpt_without_a_bios_boot_partition_has_no_room_for_the_loader():
    layout = layout_of(("/", "sda/4", "ext4"), disks=(A,), partitions=(part(A, 4),))
    with pytest.raises(Unsupported, match="BIOS boot partition"):
        check_minimal(layout, "bios")
    check_minimal(replace(layout, disks=(replace(A, label="dos"),)), "bios")


def test_uefi_needs_an_esp_that_is_mounted():
    with pytest.raises(Unsupported, match="EFI system partition"):
        check_minimal(layout_of(("/", "sda/4", "ext4"), **DEVICES), "uefi")
    check_minimal(SERVER, "uefi")


def test_the_firmware_takes_a_mirror_of_esps_for_two():
    esp = MdArray("esp", "/dev/md9", 2**20, "raid1", "1.0", ("sda/2", "sdb/2"))
    layout = layout_of(("/", "sda/4", "ext4"), ("/boot/efi", "esp", "vfat"), **DEVICES | {"arrays": (esp,)})
    mount, = esp_mounts(layout)
    assert [p.id for p in bootloader._partitions_under(mount, layout)] == ["sda/2", "sdb/2"]


# On a machine, as far as one can be without changing any

@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setattr(bootloader, "STATE", tmp_path / "state")
    (tmp_path / "state").mkdir()
    return tmp_path / "state"


@pytest.fixture
def ran(monkeypatch):
    """The commands that would have been run; `ran.menu` is what the firmware shows, None if it has no menu."""
    class Ran(list):
        menu = uefi.Menu()
    ran = Ran()

    def run(argv, *, input=b"", check=True):
        ran.append(argv)
        return ""

    def menu():
        if ran.menu is None:
            raise CommandFailed("EFI variables are not supported on this system.")
        return ran.menu

    monkeypatch.setattr(bootloader, "run", run)
    monkeypatch.setattr(bootloader, "run_in", lambda target, *argv: run(argv))
    monkeypatch.setattr(uefi, "menu", menu)
    return ran


@pytest.fixture
def target(tmp_path, monkeypatch):
    """The lost machine's empty tree, and the live system's loaders."""
    for source in bootloader._ESP_FILES.values():
        (tmp_path / "live" / source).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "live" / source).write_text(source)
    monkeypatch.setattr(bootloader, "LIVE", tmp_path / "live")
    (tmp_path / "target/boot/efi").mkdir(parents=True)
    (tmp_path / "target/boot/asr-recovery").mkdir()
    for name in bootloader.MINIMAL_OS:
        (tmp_path / "target/boot/asr-recovery" / name).write_text(name)
    return tmp_path / "target"


def below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_the_esp_holds_shim_with_the_cds_grub_and_the_fallback(target, ran):
    list(bootloader.install_minimal(UEFI, SERVER, target))
    esp = target / "boot/efi"
    assert below(esp) == ["EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grubx64.efi", "EFI/BOOT/mmx64.efi", "EFI/asr/grubx64.efi",
                          "EFI/asr/initrd.img", "EFI/asr/mmx64.efi", "EFI/asr/shimx64.efi", "EFI/asr/vmlinuz",
                          "boot/grub/x86_64-efi/grub.cfg"]
    assert (esp / "EFI/asr/grubx64.efi").read_text().endswith("gcdx64.efi.signed")
    assert [argv[2] for argv in ran] == ["--create-only", "--bootorder", "--bootnext"]


def test_a_firmware_without_a_menu_starts_the_fallback(target, ran):
    ran.menu = None
    events = list(bootloader.install_minimal(UEFI, SERVER, target))
    assert [e.what for e in events if isinstance(e, Difference)] == ["boot menu"]
    assert (target / "boot/efi/EFI/BOOT/BOOTX64.EFI").exists()


def test_nothing_of_the_minimal_os_stays_but_what_the_backup_has(target, ran, state):
    list(bootloader.install_minimal(UEFI, SERVER, target))
    esp = target / "boot/efi"
    restored = ["EFI", "EFI/BOOT", "EFI/BOOT/BOOTX64.EFI", "EFI/debian", "EFI/debian/shimx64.efi"]
    (esp / "EFI/debian").mkdir()
    for name in restored[2], restored[4]:
        (esp / name).write_text("the machine's own")
    os.utime(esp / "EFI", ns=(5, 5))
    os.utime(esp / "EFI/BOOT", ns=(7, 7))
    ran.menu = uefi.Menu((uefi.Entry("0003", uefi.OWN), uefi.Entry("0001", "debian", "guid-sda-2", SHIM)),
                         ("0003", "0001"))
    layout = replace(SERVER, boot_options=(BootOption("0001", "debian", "sda/2", SHIM, position=1),))
    ran.clear()
    backup = {f"/boot/efi/{name}" for name in restored} | {"/boot/efi"}
    assert list(bootloader.remove_minimal(UEFI, layout, target, backup.__contains__)) == []
    assert below(esp) == ["EFI/BOOT/BOOTX64.EFI", "EFI/debian/shimx64.efi"]
    assert not (esp / "boot").exists()
    assert [(esp / name).stat().st_mtime_ns for name in ("EFI", "EFI/BOOT")] == [5, 7]
    assert [argv[2:] for argv in ran if argv[0] == "efibootmgr"] == [("--bootnum", "0003", "--delete-bootnum")]
    assert (state / "remove-on-exit").read_text() == "/dev/md0\next4\ndefaults\nasr-recovery\n"


def test_without_the_backups_list_what_is_the_minimal_oss_own_goes(target, ran, state, monkeypatch, tmp_path):
    monkeypatch.setattr(bootloader, "LIVE", tmp_path / "live")
    for source in bootloader._ESP_FILES.values():
        (tmp_path / "live" / source).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "live" / source).write_text(f"of the medium: {source}")
    esp = target / "boot/efi"
    for name, source in bootloader._ESP_FILES.items():
        (esp / name).parent.mkdir(parents=True, exist_ok=True)
        (esp / name).write_bytes((tmp_path / "live" / source).read_bytes())
    for name in ("EFI/asr/vmlinuz", "EFI/asr/initrd.img", "EFI/debian/shimx64.efi"):
        (esp / name).parent.mkdir(parents=True, exist_ok=True)
        (esp / name).write_text(name)
    # Which own_fallback() has put there.
    (target / "boot/asr-recovery/fallback0").mkdir()
    (target / "boot/asr-recovery/fallback0/bootx64.efi").write_text("the machine's own")
    (esp / bootloader._ESP_CONFIG).parent.mkdir(parents=True)
    (esp / bootloader._ESP_CONFIG).write_text(bootloader._config(UEFI, SERVER))
    ran.menu = uefi.Menu()
    list(bootloader.remove_minimal(UEFI, SERVER, target, bootloader.left_by_minimal(SERVER, target)))
    assert below(esp) == ["EFI/BOOT/BOOTX64.EFI", "EFI/debian/shimx64.efi"]
    (esp / bootloader._ESP_CONFIG).parent.mkdir(parents=True)
    (esp / bootloader._ESP_CONFIG).write_text("the machine's own")
    list(bootloader.remove_minimal(UEFI, SERVER, target, bootloader.left_by_minimal(SERVER, target)))
    assert (esp / bootloader._ESP_CONFIG).exists()


@pytest.mark.parametrize("menu", [None, uefi.Menu()], ids=["no menu", "menu that took nothing"])
def test_where_no_entry_starts_the_machine_it_gets_a_fallback(target, ran, state, menu):
    ran.menu = menu
    debian = target / "boot/efi/EFI/debian"
    debian.mkdir(parents=True)
    for name in ("shimx64.efi", "grubx64.efi", "fbx64.efi"):
        (debian / name).write_text(f"debian's {name}")
    layout = replace(SERVER, boot_options=(BootOption("0001", "debian", "sda/2", SHIM, position=1),))
    events = list(bootloader.remove_minimal(UEFI, layout, target, {"/boot/efi"}.__contains__))
    assert [e.what for e in events] == ["/boot/efi/EFI/BOOT/BOOTX64.EFI"]
    fallback = target / "boot/efi/EFI/BOOT"
    assert {p.name: p.read_text() for p in fallback.iterdir()} == {
        "BOOTX64.EFI": "debian's shimx64.efi", "grubx64.efi": "debian's grubx64.efi"}


def test_the_fallback_stays_the_minimal_oss_own_until_all_else_is_there(target, ran, monkeypatch):
    list(bootloader.install_minimal(UEFI, SERVER, target))
    folder, place = target / "boot/efi/EFI/BOOT", target / "boot/asr-recovery/fallback0"
    own = (folder / "BOOTX64.EFI").read_text()

    def restore(text, end=None):
        assert ("mount", "--bind", str(place), str(folder)) in ran
        (place / "fonts").mkdir(exist_ok=True)
        for name in ("bootx64.efi", "fonts/one"):
            (place / name).write_text(text)
            os.utime(place / name, ns=(3, 3))
        for name in ("fonts", "."):
            os.utime(place / name, ns=(5, 5))
        if end:
            raise end

    class PowerCut(Exception):
        pass

    with pytest.raises(PowerCut), bootloader.own_fallback(UEFI, SERVER, target):
        restore("half", PowerCut)
    assert (folder / "BOOTX64.EFI").read_text() == own
    with bootloader.own_fallback(UEFI, SERVER, target):
        restore("the system's")
    assert below(folder) == ["bootx64.efi", "fonts/one", "grubx64.efi", "mmx64.efi"]
    assert (folder / "bootx64.efi").read_text() == "the system's"
    assert [(folder / name).stat().st_mtime_ns for name in (".", "fonts", "fonts/one")] == [5, 5, 3]


@pytest.mark.parametrize("restored", ["", "EFI/debian/readme.txt"])
def test_a_machine_without_a_loader_of_its_own_keeps_the_minimal_os(restored, target, ran, state):
    list(bootloader.install_minimal(UEFI, SERVER, target))
    if restored:
        (target / "boot/efi/EFI/debian").mkdir()
        (target / "boot/efi" / restored).write_text("no loader")
    esp = below(target / "boot/efi")
    with pytest.raises(Unsupported, match="no boot loader of the restored system"):
        list(bootloader.remove_minimal(UEFI, SERVER, target, {"/boot/efi"}.__contains__))
    assert below(target / "boot/efi") == esp
    assert not (state / "remove-on-exit").exists()


def test_a_fallback_that_is_the_minimal_oss_own_byte_for_byte_is_the_systems_if_its_backup_has_it(target, ran, state):
    list(bootloader.install_minimal(UEFI, SERVER, target))
    backup = {"/boot/efi", "/boot/efi/EFI", "/boot/efi/EFI/BOOT", "/boot/efi/EFI/BOOT/BOOTX64.EFI"}
    assert list(bootloader.remove_minimal(UEFI, SERVER, target, backup.__contains__)) == []
    assert below(target / "boot/efi") == ["EFI/BOOT/BOOTX64.EFI"]


def test_an_entry_without_its_loader_is_named(target, ran):
    layout = replace(SERVER, boot_options=(BootOption("0001", "debian", "sda/2", SHIM, position=1),))
    events = list(bootloader._boot_menu(layout, target))
    assert [e.what for e in events if isinstance(e, Difference)] == ["boot menu entry debian"]
    assert [argv for argv in ran if argv[0] == "efibootmgr"] == []


def test_the_exit_removes_the_folder_from_its_subvolume(target, ran, state):
    layout = layout_of(("/", "sda/4", "btrfs"), **DEVICES)
    layout = replace(layout, mounts=(Mount("/", "/", subvolume="@"),))
    list(bootloader.remove_minimal(BIOS, layout, target, lambda path: True))
    assert (state / "remove-on-exit").read_text() == "/dev/sda4\nbtrfs\nsubvol=/@\nasr-recovery\n"


def test_one_loader_is_enough_to_start_and_none_is_a_failure(target, ran, monkeypatch):
    bad = {A.path}

    def grub(target, *argv):
        if argv[-1] in bad:
            raise CommandFailed("no room")

    monkeypatch.setattr(bootloader, "run_in", grub)
    (target / "usr/sbin").mkdir(parents=True)
    (target / "usr/sbin/grub-install").touch()
    events = list(bootloader._bios_loader(BIOS, SERVER, target))
    assert [e.what for e in events if isinstance(e, Difference)] == ["/dev/sda"]
    bad.add(B.path)
    with pytest.raises(CommandFailed, match="no room"):
        list(bootloader._bios_loader(BIOS, SERVER, target))


def test_an_unknown_loader_gets_its_boot_sectors_back_and_is_named(target, ran):
    disk = replace(A, boot_code="TElMTw==")
    events = list(bootloader._bios_loader(SimpleNamespace(loader="other"), replace(SERVER, disks=(disk, B)), target))
    assert ran == [("dd", "of=/dev/sda", "bs=440", "count=1", "conv=notrunc")]
    assert [e.what for e in events if isinstance(e, Difference)] == ["boot loader"]


@pytest.mark.parametrize(("files", "code", "loader"), [
    (["usr/sbin/grub-install"], b"\xeb\x63\x90 GRUB Geom", "grub"),
    (["usr/sbin/grub-install", "boot/extlinux/ldlinux.sys"], b"Missing operating system", "extlinux"),
    (["usr/sbin/lilo"], b"LILO", "other"),
])
def test_the_loader_of_a_bios_machine(tmp_path, files, code, loader):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    (tmp_path / "disk").write_bytes(code.ljust(512, b"\0"))
    layout = Layout(disks=(Disk("d", str(tmp_path / "disk"), 512),))
    assert loader_of(tmp_path, layout, "bios") == loader


@pytest.mark.parametrize(("files", "options", "loader"), [
    (["debian/shimx64.efi", "debian/grubx64.efi"], [], "grub"),
    (["BOOT/BOOTX64.EFI", "systemd/systemd-bootx64.efi"], [], "systemd-boot"),
    (["debian/grubx64.efi", "systemd/systemd-bootx64.efi"], ["\\EFI\\systemd\\systemd-bootx64.efi"], "systemd-boot"),
    (["Linux/linux.efi"], [], "other"),
])
def test_the_loader_of_a_uefi_machine(tmp_path, files, options, loader):
    for file in files:
        (tmp_path / "boot/efi/EFI" / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "boot/efi/EFI" / file).touch()
    layout = replace(SERVER, boot_options=tuple(
        BootOption(str(n), "x", "sda/2", option, position=n) for n, option in enumerate(options, 1)))
    assert loader_of(tmp_path, layout, "uefi") == loader


def test_modules_are_named_as_the_kernel_names_them(tmp_path):
    (tmp_path / "modules.dep").write_text("kernel/drivers/nvme/host/nvme.ko.xz: kernel/x.ko\nkernel/usb-storage.ko:\n")
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio_pci.ko\n")
    assert bootloader._modules(tmp_path) == {"nvme", "usb_storage", "virtio_pci"}


def test_the_minimal_os_is_copied_whole(tmp_path):
    (tmp_path / "medium").mkdir()
    (tmp_path / "boot").mkdir()
    for name in bootloader.MINIMAL_OS:
        (tmp_path / "medium" / name).write_bytes(name.encode() * 10)
    list(copy_minimal(SERVER, tmp_path, tmp_path / "medium"))
    assert below(tmp_path / "boot/asr-recovery") == sorted(bootloader.MINIMAL_OS)


def test_the_script_of_the_minimal_os_parses(tmp_path):
    checker = Path("/usr/bin/grub-script-check")
    if not checker.exists():
        pytest.skip("grub-script-check is not installed")
    (tmp_path / "grub.cfg").write_text(config(UEFI, SERVER))
    assert subprocess.call((checker, tmp_path / "grub.cfg")) == 0


# The initramfs

@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system with initramfs-tools and a kernel; its programs that ask are played, the others written down."""
    for name, text in {"usr/sbin/mkinitramfs": "#!", "lib/modules/6.1/modules.dep": "x", "boot/initrd.img-6.1": "x",
                       "etc/initramfs-tools/initramfs.conf": "#MODULES=dep\nMODULES=most\n"}.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    ran = []

    def run_in(target, *argv):
        if argv[0] == "grep":
            texts = [path.read_text() for path in (target / argv[3].lstrip("/")).rglob("*") if path.is_file()]
            if not any(re.search(argv[2], text, re.MULTILINE) for text in texts):
                raise CommandFailed("grep")
        elif argv[0] == "test":
            if not (target / argv[2].lstrip("/")).is_file():
                raise CommandFailed("test")
        else:
            ran.append(argv[0])
        return ""

    monkeypatch.setattr(bootloader, "run_in", run_in)
    monkeypatch.setattr(bootloader, "_has", lambda target, tool: tool == "mkinitramfs")
    return SimpleNamespace(root=tmp_path, ran=ran)


def test_an_initramfs_with_every_driver_stays_as_it_was(system):
    assert list(bootloader._initramfs(system.root)) == []
    assert system.ran == []


@pytest.mark.parametrize(("name", "text"), [
    ("etc/initramfs-tools/initramfs.conf", "MODULES=dep\n"),         # made for the lost machine's hardware
    ("etc/initramfs-tools/conf.d/driver-policy", "MODULES=list\n"),
    ("etc/lvm/devices/system.devices", "lists the lost disks"),
    ("lib/modules/6.12/modules.dep", "a kernel without one"),
])
def test_an_initramfs_that_may_not_fit_is_made_again(name, text, system):
    (system.root / name).parent.mkdir(parents=True, exist_ok=True)
    (system.root / name).write_text(text)
    list(bootloader._initramfs(system.root))
    assert "update-initramfs" in system.ran


# Hibernation

FILEFRAG = """\
Filesystem type is: ef53
File size of /target/swapfile is 8388608 (2048 blocks of 4096 bytes)
 ext:     logical_offset:        physical_offset: length:   expected: flags:
   0:        0..    1023:   66258944..  66259967:   1024:             unwritten
   1:     1024..    2047:     180224..    181247:   1024:   66259968: last,unwritten,eof
/target/swapfile: 2 extents found
"""
MENU, CONFIG = "/boot/grub/grub.cfg", "/etc/default/grub"


@pytest.fixture
def command_lines(monkeypatch):
    """A system whose files give a swap file's place; what was run to change them."""
    changed = []

    def run_in(target, *argv):
        if argv[0] == "grep":
            return f"{CONFIG}\n{MENU}\n"
        changed.append(argv)
        return ""

    monkeypatch.setattr(bootloader, "run_in", run_in)
    monkeypatch.setattr(bootloader, "run", lambda argv: FILEFRAG if argv[0] == "filefrag" else "4711\n")
    return changed


@pytest.mark.parametrize(("type", "place"), [("ext4", 66258944), ("btrfs", 4711)])
def test_the_machine_wakes_from_its_new_swap_file(type, place, command_lines):
    layout = layout_of(("/", "vda1", type), swap_files=(SwapFile("/swapfile", 2**23, "s"),))
    differences = list(bootloader._hibernation(layout, Path("/target")))
    assert command_lines == [("sed", "-Ei", "--follow-symlinks", f"s/resume_offset=[0-9]+/resume_offset={place}/g",
                              CONFIG, MENU)]
    assert [d.why for d in differences] == [
        f"/swapfile lies elsewhere on the disk now: {CONFIG}, {MENU} say resume_offset={place}."]


def test_which_of_two_swap_files_it_wakes_from_is_not_guessed(command_lines):
    files = tuple(SwapFile(path, 2**23, "s") for path in ("/swapfile", "/more"))
    (difference,) = bootloader._hibernation(Layout(swap_files=files), Path("/target"))
    assert difference.why == f"The place of the swap file must be set anew in {CONFIG}, {MENU}."
    assert command_lines == []


def test_a_machine_that_never_sleeps_stays_as_it_was(monkeypatch):
    def run_in(target, *argv):
        raise CommandFailed("grep")

    monkeypatch.setattr(bootloader, "run_in", run_in)
    assert list(bootloader._hibernation(Layout(swap_files=(SwapFile("/swapfile", 2**23, "s"),)), Path("/target"))) == []
