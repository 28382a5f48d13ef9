"""The .deb on machines that run: its timer, its apt hook, what logins say, a job, and that nothing of it stays."""

import tempfile
from dataclasses import replace
from pathlib import Path

import pytest

from bootenv.rehearsal import Drive, Guest, Machine, MiB, boot, make_disk
from tests.vm import machines
from tests.vm.samples import DEPENDS, HOSTNAME, KERNEL_ARGUMENTS, LEFT_OUT, PACKAGES, PASSWORD
from tests.vm.story import done
from tests.vm.test_bad_input import digest

pytestmark = [pytest.mark.vm, pytest.mark.long, pytest.mark.timeout(3600)]

SIZE = 3072 * MiB
START = 2048                           # sector of the only partition
JOB = "asr-job-nightly"


@pytest.mark.parametrize("suite", ["trixie", "bookworm"])
def test_an_installed_computer_says_when_a_set_is_due_and_makes_it_by_itself(
        suite, package, backup_disk, floppy, disks, tmp_path):
    machine = installed(suite, package, disks)
    machine = replace(machine, sticks=(backup_disk,), floppy=floppy)
    with boot(machine, tmp_path / "machine") as guest:
        assert "Welcome" not in (said := log_in(guest)), said
        assert done(guest, "systemctl is-enabled asr-drift.timer; systemctl is-active asr-drift.timer").split() == [
            "enabled", "active"]

        # No set yet.
        done(guest, "systemctl start asr-drift.service", 300)
        assert "No ASR set of this computer was prepared yet" in log_in_again(guest)

        # A job, started as its timer starts it.
        done(guest, "asr schedule add nightly --when daily --to /dev/disk/by-label/BACKUP --disk /dev/fd0", 300)
        assert done(guest, f"systemctl is-active {JOB}.timer").strip() == "active"
        status, _ = guest.serial.run(f"systemctl start {JOB}", 3000)
        journal = done(guest, f"journalctl --no-pager -u {JOB}")
        assert status == 0, journal
        assert "The backup and the ASR disk were read back and match." in journal
        assert "ASR:" not in log_in_again(guest)

        stop_a_job(guest)
        status, output = guest.serial.run(f"systemctl start {JOB}", 3000)
        assert status == 0, output
        assert "ASR:" not in log_in_again(guest)

        # A package that matters: apt's hook says so at once, and logins until there is a new set.
        assert "A new ASR set is due" in done(guest, "apt-get -qq purge acl", 600)
        assert "a new ASR set of this computer is due" in log_in_again(guest)
        done(guest, "systemctl start asr-drift.service", 300)
        assert "a new ASR set of this computer is due" in log_in_again(guest)

        # A place that is not there any more.
        guest.detach_stick(backup_disk)
        status, output = guest.serial.run(f"systemctl start {JOB}", 300)
        assert status, output
        assert "failed" in done(guest, f"systemctl is-failed {JOB}")
        assert "ASR-032" in done(guest, f"journalctl --no-pager -u {JOB} -n 20")
        assert "the backup job nightly FAILED" in log_in_again(guest)

        done(guest, "apt-get -qq purge asr-recovery", 600)
        left = done(guest, "find /etc /usr /run /var/lib/dpkg -name '*asr-*' -o -name 50-asr; "
                           "systemctl list-unit-files --no-legend 'asr*';"
                           " systemctl list-units --all --no-legend 'asr*'")
        assert left.split() == [], left
        assert "ASR:" not in log_in_again(guest)


def stop_a_job(guest: Guest) -> None:
    """As a shutdown does it, in the middle of the backup."""
    hook = "/etc/asr/hooks.d/10-database"
    done(guest, f"mkdir -p /etc/asr/hooks.d && printf '#!/bin/sh\\necho $1 >>/run/hooks\\n' >{hook} && chmod +x {hook}")
    begun = "ls /run/asr/destination/*.part 2>/dev/null"
    done(guest, f"systemctl start --no-block {JOB}; until {begun}; do sleep 0.2; done", 900)
    done(guest, f"systemctl stop {JOB}", 120)
    assert done(guest, "cat /run/hooks").split() == ["before", "after"]
    assert done(guest, "grep -c /run/asr/ /proc/mounts || true").strip() == "0"
    left = done(guest, "mount LABEL=BACKUP /mnt && ls /mnt && umount /mnt").split()
    [whole] = [name for name in left if ".tar.zst" in name]
    assert whole.endswith(".tar.zst")
    assert "the backup job nightly FAILED" in log_in_again(guest)
    done(guest, f"rm {hook}")


def log_in(guest: Guest) -> str:
    """What is said to who logs in."""
    guest.serial.login("root", PASSWORD, 900)
    shown = guest.serial.log.read_text(errors="replace").rpartition("Password")[2]
    guest.serial.run("dmesg --console-off")        # the kernel's messages would stand among the answers
    return shown


def log_in_again(guest: Guest) -> str:
    guest.serial.send("exit\n")
    return log_in(guest)


def installed(suite: str, package: Path, folder: Path) -> Machine:
    """A computer with the package. It is started without a boot loader: nothing here is about starting."""
    tree = machines.cached(f"installed-{suite}.tar", f"{argv(suite, package)} {digest(package)}",
                           lambda tar: machines.run(*argv(suite, package), str(tar)))
    disk = make_disk(folder / "disk.img", SIZE)
    machines.run("sfdisk", "--quiet", "--label", "dos", str(disk), input=f"start={START}, type=83, bootable\n")
    with tempfile.TemporaryDirectory(dir=folder) as root:
        machines.run("tar", "-x", "-f", str(tree), "-C", root, "--numeric-owner", "--xattrs", "--xattrs-include=*")
        machines.run("mkfs.ext4", "-q", "-F", "-d", root, "-E", f"offset={START * 512}", str(disk),
                     f"{(SIZE - START * 512) // 1024}k")
        for name in ("vmlinuz", "initrd.img"):
            (folder / name).write_bytes((Path(root) / name).read_bytes())
    return Machine(disks=(Drive(disk),), boot=(), kernel=folder / "vmlinuz", initrd=folder / "initrd.img",
                   arguments=f"root=/dev/vda1 rw {KERNEL_ARGUMENTS}")


def argv(suite: str, package: Path) -> tuple[str, ...]:
    settings = f"""
cp {package} "$1/asr.deb" && chroot "$1" dpkg --install /asr.deb && rm "$1/asr.deb"
echo root:{PASSWORD} | chroot "$1" chpasswd
echo {HOSTNAME} >"$1/etc/hostname"
echo "/dev/vda1 / ext4 errors=remount-ro 0 1" >"$1/etc/fstab"
systemctl --quiet --root="$1" mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer fstrim.timer
"""
    merged = ("usr-is-merged",) if suite == "bookworm" else ()         # there a script in Perl would merge /usr
    return ("mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join((*PACKAGES, *DEPENDS, *merged))}",
            *(("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",) if merged else ()),
            '--aptopt=APT::Install-Recommends "false"', *(f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT),
            "--dpkgopt=path-include=/usr/share/zoneinfo/Etc/*",
            "--dpkgopt=path-include=/usr/lib/x86_64-linux-gnu/gconv/*",        # mtools reads FAT by them
            f"--customize-hook={settings}", suite)
