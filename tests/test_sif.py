"""asr.sif: what is written is read, and nothing else is believed."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
import tomli_w
from hypothesis import given
from hypothesis import strategies as st

from bootenv import sif
from bootenv.errors import AsrError, DamagedSif, NewerSchema
from bootenv.layout import Disk, Filesystem, Layout, Mount, Partition
from bootenv.sif import (
    AsrSet,
    BackupReference,
    CarriedFile,
    Command,
    ProviderReference,
    new_id,
    read_sif,
    write_sif,
)

DISK = Disk("0x1", "/dev/sda", 10**10, label="dos", label_id="0x1", serial="S", model="M")
LAYOUT = Layout(
    (DISK,),
    (Partition("0x1/1", "0x1", 1, 2**20, 2**30, "83", bootable=True), Partition("0x1/5", "0x1", 5, 2**31, 2**30, "82")),
    (Filesystem("root", "0x1/1", "ext4", "root", 'a "label"', {"features": ("a", "b"), "inodes": 5}),
     Filesystem("swap", "0x1/5", "swap", "swap")),
    (Mount("root", "/", "errors=remount-ro"),),
)
CREATED = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)       # workers must name their tests alike
SET = AsrSet(new_id(), CREATED, "host", "Debian", "6.12", "x86_64", "bios", 2**30, LAYOUT,
             BackupReference("h.tar.zst", "/mnt", "uuid", "/b", "BACKUP", 10, 20))

names = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0"), max_size=40)


@given(host=names, label=names, name=names)
def test_any_name_survives(host, label, name):
    filesystem = replace(LAYOUT.filesystems[0], label=label)
    partition = replace(LAYOUT.partitions[0], name=name)
    layout = replace(LAYOUT, filesystems=(filesystem, LAYOUT.filesystems[1]), partitions=(partition,
                     LAYOUT.partitions[1]))
    set = replace(SET, host=host, layout=layout)
    assert read_sif(write_sif(set)) == set


words = st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=20)
commands = st.builds(
    Command, title=st.from_regex(r"[A-Za-z0-9 ]{1,40}", fullmatch=True), when=st.just("after"), critical=st.booleans(),
    argv=st.tuples(st.sampled_from(("ls", "/bin/ls")), words, words), where=st.sampled_from(("recovery", "system")))
files = st.builds(CarriedFile, path=st.from_regex(r"drivers(/[a-z][a-z0-9.,_-]{0,9}){1,3}", fullmatch=True),
                  size=st.integers(0, 2**20), sha256=st.from_regex(r"[0-9a-f]{64}", fullmatch=True))


keys = st.from_regex(r"[a-z][a-z0-9-]{0,20}", fullmatch=True)
providers = st.builds(ProviderReference, name=keys, options=st.dictionaries(keys, words, max_size=3))


@given(files=st.lists(files, max_size=1), commands=st.lists(commands, max_size=4), provider=st.none() | providers)
def test_what_goes_along_survives_and_older_versions_refuse_it(files, commands, provider):
    set = replace(SET, files=tuple(files), commands=tuple(commands), provider=provider)
    assert read_sif(write_sif(set)) == set
    assert (b"\nschema = 2\n" in write_sif(set)) == bool(files or commands or provider)


@pytest.mark.parametrize("url", ["nfs://nas/export", "smb://OFFICE;ann@nas:4450/share/my folder"])
def test_a_place_on_the_network_survives_and_older_versions_refuse_it(url):
    set = replace(SET, backup=replace(SET.backup, network=url))
    assert read_sif(write_sif(set)) == set
    assert b"\nschema = 2\n" in write_sif(set)


def test_a_set_without_one_is_written_as_it_always_was():
    assert b"network" not in write_sif(SET)
    assert b"\nschema = 1\n" in write_sif(SET)


def test_tables_of_other_products_survive():
    set = replace(SET, extra={"acme": {"hooks": ["a", "b"]}})
    assert read_sif(write_sif(set)).extra == {"acme": {"hooks": ["a", "b"]}}


def test_every_flipped_bit_is_noticed():
    data = write_sif(SET)
    for place in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[place] ^= 1 << bit
            with pytest.raises(DamagedSif):
                read_sif(bytes(flipped))


def test_every_truncation_is_noticed():
    data = write_sif(SET).rstrip(b"\n")
    for length in range(len(data)):
        with pytest.raises(DamagedSif):
            read_sif(data[:length])


def test_text_behind_the_checksum_is_noticed():
    with pytest.raises(DamagedSif):
        read_sif(write_sif(SET) + b"\n[backup]\nname='x'\n")


@given(st.binary(max_size=2000))
def test_junk_is_damage_and_nothing_worse(data):
    with pytest.raises(DamagedSif):
        read_sif(data)


def test_a_newer_schema_is_refused_with_a_sentence():
    with pytest.raises(NewerSchema, match="newer version"):
        read_sif(sealed(schema=sif.SCHEMA + 1))


@pytest.mark.parametrize("change", [
    {"set": {}},
    {"set": {"id": "x", "created": CREATED, "host": "h"}},
    {"disk": 5},
    {"disk": [{"id": "d", "path": "/dev/sda", "size": -1}]},
    {"disk": [{"id": "d", "path": "/dev/sda", "size": 2**63}]},
    {"disk": [{"id": "d", "path": "/dev/sda", "size": 5, "label": "gpt", "label_id": "a\nb"}]},
    {"disk": [{"id": "d", "path": "/dev/sda", "size": True}]},
    {"disk": [{"id": "d", "path": "/dev/sda", "size": 5, "colour": "red"}]},
    {"disk": [{"id": "d", "path": "/dev/sda", "size": 5}] * 2},
    {"disk": [{"id": "d", "path": "/dev/sda", "size": 5, "sector_size": 0}]},
    {"partition": [{"id": "p", "disk": "nowhere", "number": 1, "start": 0, "size": 1, "type": "83"}]},
    {"partition": [{"id": "p", "disk": "0x1", "number": 1, "start": 0, "size": 10**11, "type": "83"}]},
    {"partition": [{"id": "p", "disk": "0x1", "number": 1, "start": 0, "size": 1, "type": "83",
                    "attrs": "x\"\nlabel: dos"}]},
    {"partition": [{"id": "p", "disk": "0x1", "number": 1, "start": 0, "size": 1, "type": "83\n5 : size=1"}]},
    {"filesystem": [{"id": "f", "device": "0x1", "type": "ext4; reboot"}]},
    {"filesystem": [{"id": "f", "device": "0x1", "type": "ext4", "uuid": "-F"}]},
    {"filesystem": [{"id": "f", "device": "0x1", "type": "ext4", "settings": {"a": {"b": 1}}}]},
    {"mount": [{"filesystem": "root", "point": "/../etc"}]},
    {"mount": [{"filesystem": "root", "point": "etc"}]},
    {"mount": [{"filesystem": "root", "point": "/etc", "mode": 0o10000}]},
    {"mount": [{"filesystem": "root", "point": "/etc", "owner": 2**32 - 1}]},
    {"backup": {"name": "../x"}},
    {"backup": {"network": "nfs://nas"}},
    {"backup": {"network": "/mnt"}},
    {"backup": {"network": "smb://a,uid=0@nas/share"}},
    {"backup": {"network": "smb://a:b@nas/share"}},
    {"backup": {"network": "nfs://nas/../etc"}},
    {"backup": {"network": "ftp://nas/x"}},
    {"files": [{"path": "drivers/../../etc/passwd", "size": 1, "sha256": "0" * 64}]},
    {"files": [{"path": "/drivers/a.ko", "size": 1, "sha256": "0" * 64}]},
    {"files": [{"path": "drivers/-a.ko", "size": 1, "sha256": "0" * 64}]},
    {"files": [{"path": "drivers/*.ko", "size": 1, "sha256": "0" * 64}]},
    {"files": [{"path": "asr.sif", "size": 1, "sha256": "0" * 64}]},
    {"files": [{"path": f"drivers/{'a/' * 9}a.ko", "size": 1, "sha256": "0" * 64}]},
    {"files": [{"path": "drivers/a.ko", "size": 2**40, "sha256": "0" * 64}]},
    {"files": [{"path": "drivers/a.ko", "size": 1, "sha256": "0" * 63}]},
    {"files": [{"path": "drivers/a.ko", "size": 1}]},
    {"files": [{"path": f"drivers/{name}", "size": 1, "sha256": "0" * 64} for name in ("a.ko", "A.ko")]},
    {"files": [{"path": f"drivers/{name}", "size": 1, "sha256": "0" * 64} for name in ("a", "a/b")]},
    {"files": [{"path": f"drivers/{n}.ko", "size": 1, "sha256": "0" * 64} for n in range(513)]},
    {"files": [{"path": "providers/a b", "size": 1, "sha256": "0" * 64}]},
    {"provider": []},
    {"provider": {}},
    {"provider": {"name": "../x"}},
    {"provider": {"name": "-x"}},
    {"provider": {"name": "x", "options": {"A=b": "c"}}},
    {"provider": {"name": "x", "options": {"a": 5}}},
    {"provider": {"name": "x", "path": "/bin/sh"}},
    {"commands": [{"title": "t", "argv": [], "when": "after"}]},
    {"commands": [{"title": "t", "argv": ["--help"], "when": "after"}]},
    {"commands": [{"title": "t", "argv": ["bin/x"], "when": "after"}]},
    {"commands": [{"title": "t", "argv": "ls", "when": "after"}]},
    {"commands": [{"title": "t", "argv": ["ls"], "when": "never"}]},
    {"commands": [{"title": "t", "argv": ["ls"], "when": "after", "where": "elsewhere"}]},
    {"commands": [{"title": "t", "argv": ["ls"], "when": "before", "where": "system"}]},
    {"commands": [{"title": "a\nb", "argv": ["ls"], "when": "after"}]},
    {"commands": [{"argv": ["ls"], "when": "after"}]},
    {"commands": [{"title": "t", "argv": ["ls"], "when": "after", "critical": "no"}]},
    {"commands": [{"title": "t", "argv": ["ls"], "when": "after", "password": "x"}]},
    {"commands": [{"title": "t", "argv": ["ls"] * 300, "when": "after"}]},
], ids=repr)
def test_hostile_records_are_refused(change):
    with pytest.raises(DamagedSif):
        read_sif(sealed(**change))


def test_a_sealed_document_is_otherwise_read():
    assert read_sif(sealed()).host == "h"


def test_too_many_records_are_refused():
    with pytest.raises(AsrError):
        read_sif(sealed(mount=[{"filesystem": "root", "point": "/"}] * 5000))


def sealed(**change) -> bytes:
    """A document with a right checksum, whatever it says."""
    document = {
        "signature": sif.SIGNATURE, "schema": sif.SCHEMA,
        "set": {"id": SET.id, "created": SET.created, "host": "h"}, "backup": {},
        "disk": [{"id": "0x1", "path": "/dev/sda", "size": 10**10}],
        "filesystem": [{"id": "root", "device": "0x1", "type": "ext4"}],
    } | change
    text = tomli_w.dumps(document).encode()
    return text.rstrip(b"\n") + b"\n\n[checksum]\nsha256 = \"" + sif._digest(text).encode() + b"\"\n"
