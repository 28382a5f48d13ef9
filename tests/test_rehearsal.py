"""What the rehearsal machine's vocabulary means, without a machine."""

import json
from itertools import pairwise

import pytest

from bootenv.rehearsal import Drive, Machine, MiB, command_line, key_codes, make_disk, parse_screen


@pytest.mark.parametrize(("key", "codes"), [
    ("f2", ["f2"]),
    ("ret", ["ret"]),
    ("ctrl-alt-delete", ["ctrl", "alt", "delete"]),
    ("ctrl-c", ["ctrl", "c"]),
    ("a", ["a"]),
    ("A", ["shift", "a"]),
    ("7", ["7"]),
    ("&", ["shift", "7"]),
    ("-", ["minus"]),
    ("_", ["shift", "minus"]),
    ('"', ["shift", "apostrophe"]),
    ("\n", ["ret"]),
])
def test_keys_are_named_as_qemu_names_them(key, codes):
    assert key_codes(key) == codes


def test_every_printable_character_has_its_own_key():
    printable = [chr(code) for code in range(32, 127)]
    assert len({tuple(key_codes(character)) for character in printable}) == 95


@pytest.mark.parametrize("key", ["é", "ß", "É", "\x1b"])
def test_what_no_key_types_is_refused(key):
    with pytest.raises(ValueError, match="no key"):
        key_codes(key)


def test_the_screen_is_code_page_437_with_colours():
    memory = bytearray(b" \x07" * 2000)
    memory[0:8] = b"\xc9\x1f\xcd\x1f\x07\x70\x00\x4e"        # double corner and line, bullet, an empty cell
    memory[-2:] = b"\xdb\x1e"
    screen = parse_screen(bytes(memory))
    lines = screen.text.split("\n")
    assert [len(line) for line in lines] == [80] * 25
    assert lines[0].startswith("╔═•  ")
    assert lines[24][79] == "█"
    assert (screen.foreground(0, 0), screen.background(0, 0)) == (15, 1)       # white on blue
    assert (screen.foreground(0, 2), screen.background(0, 2)) == (0, 7)        # black on grey
    assert screen.background(0, 3) == 4


def test_a_blank_disk_is_sparse_and_overwrites_nothing(tmp_path):
    disk = make_disk(tmp_path / "disk.img", 100 * MiB)
    assert (disk.stat().st_size, disk.stat().st_blocks) == (100 * MiB, 0)
    with pytest.raises(FileExistsError):
        make_disk(disk, MiB)


def test_the_machine_starts_from_what_it_is_told_to(tmp_path):
    machine = Machine(disks=(Drive(tmp_path / "a.img"), Drive(tmp_path / "b, c.img", serial="S1")),
                      sticks=(tmp_path / "stick.img",), cdrom=tmp_path / "cd.iso", boot=("cdrom", "disk"))
    words = command_line(machine, tmp_path / "qmp", tmp_path)
    devices = {device["id"]: device for device in values_of("-device", words)}
    order = sorted((name for name in devices if "bootindex" in devices[name]), key=lambda n: devices[n]["bootindex"])
    assert order == ["cdrom", "disk0", "disk1"]
    assert devices["disk1"]["serial"] == "S1"
    nodes = {node["node-name"]: node for node in values_of("-blockdev", words)}
    assert nodes["disk1-image"]["file"]["file"]["filename"] == str(tmp_path / "b, c.img")


def test_a_kernel_is_started_without_a_boot_loader(tmp_path):
    words = command_line(Machine(kernel=tmp_path / "vmlinuz", initrd=tmp_path / "initrd", arguments="root=/dev/vda ro"),
                         tmp_path / "qmp", tmp_path)
    pairs = dict(pairwise(words))
    assert (pairs["-kernel"], pairs["-initrd"]) == (str(tmp_path / "vmlinuz"), str(tmp_path / "initrd"))
    assert pairs["-append"] == "root=/dev/vda ro"
    assert "-kernel" not in command_line(Machine(), tmp_path / "qmp", tmp_path)


def values_of(option, words):
    return [json.loads(word) for before, word in pairwise(words) if before == option]
