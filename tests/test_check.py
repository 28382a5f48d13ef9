"""`asr check`: the verdict on recorded machines, as people and programs get it."""

import json
import os
from dataclasses import replace

import pytest

import bootenv.probe
from bootenv.check import (
    LOSS,
    NOT_RECOVERABLE,
    RECOVERABLE,
    Finding,
    check,
    critical_part,
    data_volumes,
    verdict,
)
from bootenv.layout import Disk, Filesystem, Layout, Mount, Partition
from bootenv.probe import Mounted, kernel_names, probe
from console.__main__ import main
from tests.conftest import MACHINES
from tests.record import replayed


@pytest.mark.parametrize(("machine", "status"), [
    ("gpt-odd-bookworm", 0),
    ("lvm-bookworm", 1),               # it has a snapshot
    ("multipath-bookworm", 2),
])
def test_the_exit_status_is_the_verdict(machine, status, monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    with replayed(MACHINES / machine):
        assert main(["check"]) == status
        text = capsys.readouterr().out
        assert main(["check", "--json"]) == status
    assert text == (MACHINES / machine / "check.txt").read_text()
    said = json.loads(capsys.readouterr().out)
    assert said["verdict"] == (RECOVERABLE, LOSS, NOT_RECOVERABLE)[status]
    assert len(said["findings"]) == len(text.splitlines()) - 1


def with_data_disk():
    """The recorded machine lvm-bookworm, and another disk beside it with a file system at /srv/data."""
    with replayed(MACHINES / "lvm-bookworm"):
        layout = probe()
    disk = Disk("data", "/dev/sdz", 2**33, label="gpt", label_id="data")
    return replace(
        layout, disks=(*layout.disks, disk),
        partitions=(*layout.partitions, Partition("data/1", "data", 1, 2**20, 2**32, "X")),
        filesystems=(*layout.filesystems, Filesystem("data-fs", "data/1", "swap"),
                     Filesystem("d2", "data", "unknown")),
        mounts=(*layout.mounts, Mount("data-fs", "/srv/data"), Mount("d2", "/srv/other")))


def test_a_data_volume_brings_its_whole_disk_and_only_if_it_is_asked_for():
    everything = with_data_disk()
    system = critical_part(everything)
    assert "/dev/sdz" not in {disk.path for disk in system.disks}
    assert [mount.point for mount in data_volumes(everything, system)] == ["/srv/data"], "what can't be made is offered"
    added = critical_part(everything, ("/srv/data",))
    assert {disk.path for disk in added.disks} - {disk.path for disk in system.disks} == {"/dev/sdz"}
    assert {mount.point for mount in added.mounts} >= {"/srv/data"} | {mount.point for mount in system.mounts}
    mounted = [Mounted("/srv/data", "/dev/sdz1", "swap", "/")]
    assert [f.verdict for f in check(everything, mounted) if f.device == "/srv/data"] == [LOSS]
    assert [f.verdict for f in check(everything, mounted, ("/srv/data",)) if f.device == "/srv/data"] == []
    # What else is on that disk comes with it, and this can't be made again.
    assert verdict(check(everything, mounted, ("/srv/data",))) == NOT_RECOVERABLE


FSTAB = """\
# /dev/sdb1 /old ext4
/dev/sda1 / ext4
UUID=x /home ext4
/dev/mapper/vg-a /a xfs
/dev/nvme0n1p2 none swap
/dev/sr0 /cd iso9660
"""


def test_a_name_that_may_be_another_disks_after_a_recovery_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(bootenv.probe, "ROOT", tmp_path)
    for path, text in {"etc/fstab": FSTAB, "etc/crypttab": "open UUID=x none\n",
                       "proc/cmdline": "quiet root=/dev/sda1 resume=LABEL=x"}.items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(text)
    findings = check(Layout(), (), named=kernel_names())
    assert [(f.device, f.what, f.verdict) for f in findings] == [
        ("/etc/fstab", "names /dev/sda1, /dev/nvme0n1p2", RECOVERABLE),
        ("/proc/cmdline", "names /dev/sda1", RECOVERABLE)]


def test_the_worst_finding_decides():
    findings = [Finding("a", "", LOSS), Finding("b", ""), Finding("c", "", NOT_RECOVERABLE)]
    assert verdict(findings) == NOT_RECOVERABLE
    assert verdict(findings[:2]) == LOSS
    assert verdict(findings[1:2]) == RECOVERABLE


def test_a_machine_of_which_nothing_is_known_is_not_called_recoverable():
    assert verdict(()) == NOT_RECOVERABLE


def test_whoever_is_not_root_is_told_so_and_gets_no_verdict(monkeypatch, capsys):
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert main(["check"]) == 3
    assert "needs root" in capsys.readouterr().err
