"""probe(execute(plan(L))) == L, on disks that start dirty, in a kernel of their own."""

import re

import pytest

from tests.uml import run_in_uml

pytestmark = [pytest.mark.disks, pytest.mark.timeout(300)]


@pytest.fixture(scope="module", params=["gpt", "mbr"])
def outcome(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    disks = [folder / "source.img", folder / "target.img"]
    for disk in disks:
        with disk.open("wb") as file:
            file.truncate(600 * 2**20)
    return run_in_uml("tests.on_disks", request.param, disks)


def test_the_layout_comes_back(outcome):
    assert outcome["after"] == outcome["before"]


def test_somebody_elses_partitions_need_consent(outcome):
    assert outcome["consent"] is True


def test_sfdisk_sees_the_same_table(outcome):
    before, after = outcome["seen"]
    assert after["sfdisk"].replace("ubdb", "ubda") == before["sfdisk"]


def test_blkid_sees_the_same_contents(outcome):
    # 98:0 and 98:16 are the two disks themselves.
    before, after = ([re.sub(r"PART_ENTRY_DISK=98:\d+|/dev/ubd.", "", text) for text in seen["blkid"]]
                     for seen in outcome["seen"])
    assert after == before
    assert any("TYPE=swap" in text for text in after)


# What a file system gets at every mkfs, and what changes whenever it is mounted or written.
OWN = ("Filesystem created", "Next check after", "Last write time", "Last checked", "Lifetime writes",
       "Directory Hash Seed", "Checksum",
       "Last mounted on", "Last mount time", "Mount count", "Journal sequence", "Journal start")


def test_every_ext_setting_is_the_same(outcome):
    for before, after in zip(*(seen["dumpe2fs"] for seen in outcome["seen"]), strict=True):
        lines = [line for line in before.splitlines() if not line.startswith(OWN)]
        assert [line for line in after.splitlines() if not line.startswith(OWN)] == lines
        assert len(lines) > 30
