"""The firmware's boot menu: read from every version's text, brought back with as few writes as can be."""

import re

import pytest

from bootenv.layout import BootOption, Disk, Layout, Partition
from bootenv.uefi import (
    OWN,
    Entry,
    Menu,
    commands_to_forget,
    commands_to_restore,
    commands_to_start,
    parse_boot_options,
    parse_menu,
)

GUID1 = "fc72f4c2-5a8e-4c5c-9e0a-0ad8b1c7a001"
GUID2 = "fc72f4c2-5a8e-4c5c-9e0a-0ad8b1c7a002"
SHIM = "\\EFI\\debian\\shimx64.efi"

# The same variables, shown by efibootmgr 17 (bookworm) and 18 (trixie, its dp: lines shortened).
VERSION_17 = f"""\
BootCurrent: 0001
Timeout: 3 seconds
BootOrder: 0002,0001,000A,0004,0007
Boot0001* debian\tHD(1,GPT,{GUID1},0x800,0x100000)/File({SHIM})
Boot0002* Windows Boot Manager\tHD(2,GPT,{GUID2},0x800,0x100000)/File(\\EFI\\Microsoft\\Boot\\bootmgfw.efi)WIN
Boot0003  Linux Boot Manager\tHD(1,MBR,0x1234abcd,0x3f,0x100000)/File(\\EFI\\systemd\\systemd-bootx64.efi)
Boot0004* UEFI PXEv4 (MAC:525400123456)\tPciRoot(0x0)/Pci(0x3,0x0)
Boot000A* a (b) HD(1,GPT,x)/ c\tHD(1,GPT,{GUID1},0x800,0x100000)/File(\\EFI\\a b\\(c)\\x.efi)\\.v.m.l.i.n.u.z. .r.o.o.t.
"""
VERSION_18 = f"""\
BootCurrent: 0001
Timeout: 3 seconds
BootOrder: 0002,0001,000A,0004,0007
Boot0001* debian\tHD(1,GPT,{GUID1},0x800,0x100000)/File({SHIM})
      dp: 04 01 2a 00 01 00 00 00 00 08 00 00 00 00 00 00 00 00 10 00 00 00 00 00 / 7f ff 04 00
Boot0002* Windows Boot Manager\tHD(2,GPT,{GUID2},0x800,0x100000)/File(\\EFI\\Microsoft\\Boot\\bootmgfw.efi)57494e
      dp: 04 01 2a 00 02 00 00 00 00 08 00 00 00 00 00 00 00 00 10 00 00 00 00 00 / 7f ff 04 00
    data: 57 49 4e
Boot0003  Linux Boot Manager\tHD(1,MBR,0x1234abcd,0x3f,0x100000)/File(\\EFI\\systemd\\systemd-bootx64.efi)
      dp: 04 01 2a 00 01 00 00 00 3f 00 00 00 00 00 00 00 00 00 10 00 00 00 00 00 / 7f ff 04 00
Boot0004* UEFI PXEv4 (MAC:525400123456)\tPciRoot(0x0)/Pci(0x3,0x0)
      dp: 02 01 0c 00 d0 41 03 0a 00 00 00 00 / 01 01 06 00 00 03 / 7f ff 04 00
Boot000A* a (b) HD(1,GPT,x)/ c\tHD(1,GPT,{GUID1},0x800,0x100000)/File(\\EFI\\a b\\(c)\\x.efi)5c0076006d006c00
      dp: 04 01 2a 00 01 00 00 00 00 08 00 00 00 00 00 00 00 00 10 00 00 00 00 00 / 7f ff 04 00
    data: 5c 00 76 00 6d 00 6c 00
"""
NEWER = re.sub(r"File\((\\.*?\.efi)\)", r"\1", VERSION_17, flags=re.MULTILINE)      # efivar 39

DISK, OTHER = Disk("D", "/dev/nvme0n1", 2**30, label="gpt"), Disk("0x1234abcd", "/dev/sda", 2**30, label="dos")
ESP = Partition("D/1", "D", 1, 2**20, 2**29, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", GUID1.upper())
SECOND = Partition("D/12", "D", 12, 2**29, 2**20, "C12A7328-F81F-11D2-BA4B-00A0C93EC93B", GUID2)
MBR = Partition("0x1234abcd/1", "0x1234abcd", 1, 63 * 512, 2**20, "ef")
LAYOUT = Layout(disks=(DISK, OTHER), partitions=(ESP, SECOND, MBR))
HERE = {GUID1, GUID2, "1234abcd-01"}
DEBIAN = BootOption("0001", "debian", "D/1", SHIM, position=2)


@pytest.mark.parametrize("text", [VERSION_17, VERSION_18, NEWER], ids=["17", "18", "newer"])
def test_the_menu_reads_alike_in_every_version(text):
    assert parse_menu(text) == Menu((
        Entry("0001", "debian", GUID1, SHIM),
        Entry("0002", "Windows Boot Manager", GUID2, "\\EFI\\Microsoft\\Boot\\bootmgfw.efi"),
        Entry("0003", "Linux Boot Manager", "1234abcd-01", "\\EFI\\systemd\\systemd-bootx64.efi", active=False),
        Entry("0004", "UEFI PXEv4 (MAC:525400123456)"),
        Entry("000A", "a (b) HD(1,GPT,x)/ c", GUID1, "\\EFI\\a b\\(c)\\x.efi"),
    ), ("0002", "0001", "000A", "0004", "0007"))


def test_options_belong_to_the_partitions_that_they_start():
    assert parse_boot_options(VERSION_17, (ESP, MBR)) == (
        DEBIAN,
        BootOption("0003", "Linux Boot Manager", "0x1234abcd/1", "\\EFI\\systemd\\systemd-bootx64.efi", active=False),
        BootOption("000A", "a (b) HD(1,GPT,x)/ c", "D/1", "\\EFI\\a b\\(c)\\x.efi", position=3),
    )


def test_the_minimal_os_is_not_part_of_the_machine():
    text = f"BootOrder: 0000\nBoot0000* {OWN}\tHD(1,GPT,{GUID1},0x800,0x100000)/File(\\EFI\\asr\\shimx64.efi)\n"
    assert parse_boot_options(text, (ESP,)) == ()


@pytest.mark.parametrize("text", ["", "EFI variables are not supported on this system.\n", "BootOrder: \n"])
def test_a_menu_that_is_not_there_is_empty(text):
    assert parse_menu(text) == Menu()


def arguments(commands):
    """What the commands say beside efibootmgr --quiet, a line each."""
    return [" ".join(command).removeprefix("efibootmgr --quiet ") for command in commands]


def test_a_menu_that_is_right_is_not_written():
    options = parse_boot_options(VERSION_17, LAYOUT.partitions)
    assert arguments(commands_to_restore(parse_menu(VERSION_17), LAYOUT, options, HERE)) == []


def test_a_new_computer_gets_the_entries_and_their_order():
    present = Menu((Entry("0000", "UEFI DVD"), Entry("0001", "UEFI PXE")), ("0000", "0001"))
    options = [DEBIAN, BootOption("0003", "spare", "D/12", "\\EFI\\x.efi", active=False)]
    assert arguments(commands_to_restore(present, LAYOUT, options, HERE)) == [
        f"--create-only --bootnum 0002 --disk /dev/nvme0n1 --part 1 --label debian --loader {SHIM}",
        "--create-only --bootnum 0003 --disk /dev/nvme0n1 --part 12 --label spare --loader \\EFI\\x.efi",
        "--bootnum 0003 --inactive",
        "--bootorder 0000,0002,0001",
    ]


def test_only_stale_entries_and_doubles_are_removed():
    gone = "00000000-0000-0000-0000-000000000000"
    present = Menu((
        Entry("0001", "debian", gone, SHIM),                  # the lost disk's
        Entry("0002", "debian", GUID2, SHIM),                 # another system's, on a disk that is here
        Entry("0003", "ubuntu", gone, SHIM),
        Entry("0005", "debian", GUID1, SHIM.upper()),
        Entry("0006", "debian", GUID1, SHIM),
    ), ("0003", "0001", "0002", "0006", "0005"))
    assert arguments(commands_to_restore(present, LAYOUT, [DEBIAN], HERE)) == [
        "--bootnum 0001 --delete-bootnum",
        "--bootnum 0006 --delete-bootnum",
        "--bootorder 0003,0005,0002",
    ]


def test_the_minimal_os_stays_first_until_it_is_taken_away():
    own = Entry("0009", OWN, GUID1, "\\EFI\\asr\\shimx64.efi")
    present = Menu((own, Entry("0001", "debian", GUID1, SHIM)), ("0009", "0001"))
    first = BootOption("0001", "debian", "D/1", SHIM, position=1)
    assert arguments(commands_to_restore(present, LAYOUT, [first], HERE)) == []
    assert arguments(commands_to_forget(present)) == ["--bootnum 0009 --delete-bootnum"]


def test_the_minimal_os_starts_next_from_every_partition():
    present = Menu((Entry("0000", "UEFI DVD"),), ("0000", "0042"))
    loader = "\\EFI\\asr\\shimx64.efi"
    commands = arguments(commands_to_start(present, LAYOUT, (ESP, SECOND), loader))
    assert commands == [
        f"--create-only --bootnum 0001 --disk /dev/nvme0n1 --part 1 --label {OWN} --loader {loader}",
        f"--create-only --bootnum 0002 --disk /dev/nvme0n1 --part 12 --label {OWN} --loader {loader}",
        "--bootorder 0001,0002,0000",
        "--bootnext 0001",
    ]
    after = Menu((*present.entries, Entry("0001", OWN, GUID1, loader), Entry("0002", OWN, GUID2, loader)),
                 ("0001", "0002", "0000"), "0001")
    assert arguments(commands_to_start(after, LAYOUT, (ESP, SECOND), loader)) == []
