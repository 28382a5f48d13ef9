"""The rehearsal machine itself, with nothing to boot: SeaBIOS says so within a second."""

import os
import subprocess
import sys
import time

import pytest

from bootenv.rehearsal import Drive, Machine, MachineGone, MiB, NotSeen, boot, make_disk

pytestmark = pytest.mark.vm

NOTHING = "No bootable device."


@pytest.fixture
def machine(tmp_path):
    return Machine(disks=(Drive(make_disk(tmp_path / "disk.img", MiB)),), memory=64 * MiB, boot=("disk",))


def test_the_screen_is_read_and_photographed(machine, tmp_path):
    with boot(machine, tmp_path / "run") as guest:
        assert guest.wait_for_text(NOTHING, 60).startswith("SeaBIOS")
        assert guest.screenshot(tmp_path / "screen.png").read_bytes().startswith(b"\x89PNG")
        assert guest.look().foreground(0, 0) == 7


def test_a_key_restarts_it(machine):
    with boot(machine) as guest:
        guest.wait_for_text(NOTHING, 60)
        guest.press("ctrl-alt-delete")
        guest.wait_for_reboot(60)
        with pytest.raises(NotSeen, match="No sign of a reboot within 1 s"):
            guest.wait_for_reboot(1)


def test_media_come_and_go(machine, tmp_path):
    floppy, other = (make_disk(tmp_path / name, 1440 * 1024) for name in ("floppy.img", "other.img"))
    stick = make_disk(tmp_path / "stick.img", MiB)

    def inserted():
        return {drive.get("inserted", {}).get("image", {}).get("filename") for drive in guest.command("query-block")}

    with boot(Machine(floppy=floppy, memory=64 * MiB, boot=())) as guest:
        assert inserted() == {str(floppy)}
        guest.insert_floppy(other)
        assert inserted() == {str(other)}
        guest.eject()
        assert inserted() == {None}
        guest.attach_stick(stick)
        assert str(stick) in inserted()
        guest.detach_stick(stick)
        guest.attach_stick(stick)


def test_two_machines_never_share_a_disk(machine):
    with boot(machine), pytest.raises(MachineGone, match='Failed to get "write" lock'), boot(machine):
        pass


def test_a_failure_leaves_what_was_seen(machine, tmp_path):
    with pytest.raises(NotSeen, match=NOTHING) as failure, boot(machine, tmp_path / "run") as guest:   # noqa: PT012
        guest.wait_for_text(NOTHING, 60)
        guest.wait_for_text("Welcome", 1)
    assert str(tmp_path / "run") in failure.value.__notes__[0]
    assert NOTHING in (tmp_path / "run/screen.txt").read_text()
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "qemu.log", "serial.log", "screen.txt", "screen.png", "processor.txt"}
    assert "EFL=" in (tmp_path / "run/processor.txt").read_text()


def test_a_machine_that_is_gone_is_not_waited_for(machine):
    started = time.monotonic()
    with pytest.raises(MachineGone), boot(machine) as guest:      # noqa: PT012
        guest.power_cut()
        guest.wait_for_reboot(600)
    assert time.monotonic() - started < 60


def test_no_machine_outlives_its_watcher(machine):
    watcher = subprocess.Popen((sys.executable, "-c", f"""
import sys, time
from pathlib import Path
from bootenv.rehearsal import Drive, Machine, boot
with boot(Machine(disks=(Drive(Path({str(machine.disks[0].image)!r})),), boot=())) as guest:
    print(guest._process.pid, flush=True)
    time.sleep(600)
"""), stdout=subprocess.PIPE, text=True)
    pid = int(watcher.stdout.readline())
    os.kill(pid, 0)
    watcher.kill()
    watcher.wait()
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.1)
    pytest.fail(f"QEMU {pid} is still running")
