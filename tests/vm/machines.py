"""Sample machines: small, real Debian systems on disk images, made with the distribution's own tools alone.

Nothing of the product has a hand in them, so that what it brings back can be held against what it never made:

    machine = copy(sample_machine("raid"), folder)     # to be booted, and used up
    recovered = blank(machine, folder)                 # as many new disks of the same sizes
"""

import fcntl
import hashlib
import os
import random
import stat
import struct
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from shlex import quote

from bootenv.rehearsal import Drive, Guest, Machine, MiB, boot, make_disk
from tests.uml import run_in_uml, shell_in_uml
from tests.vm.samples import HOSTNAME, KERNEL_ARGUMENTS, LEFT_OUT, PACKAGES, PASSPHRASE, PASSWORD, SAMPLES, Sample

MEMORY = 1024 * MiB                # of user-mode Linux: XFS and argon2 want some

# What the scripts call. The directory that a mount hides is to come back, too.
TOOLS = r"""
put() {                             # device, mount point, type, options, fsck's order: mounted, and into fstab
    mkdir -p "/target$2"
    if [ "$2" != / ]; then
        chmod 0710 "/target$2"; chown 12:34 "/target$2"; touch -d @1111111111.123456789 "/target$2"
    fi
    mount -t "$3" -o "$4" "$1" "/target$2"
    echo "$(name "$1") $2 $3 $4 0 $5" >>/fstab
}
name() {                            # as installers write it: a logical volume by its name, all else by UUID
    case $1 in /dev/mapper/*) echo "$1" ;; *) echo "UUID=$(uuid "$1")" ;; esac
}
uuid() { blkid -p -o value -s UUID "$1"; }
swap() { echo "$(name "$1") none swap sw 0 0" >>/fstab; }
shim() {                            # UEFI's fallback loader, for the first start: file system of /boot, its place there
    mkdir -p /target/boot/efi/EFI/BOOT /target/boot/efi/EFI/debian
    cp /usr/lib/shim/shimx64.efi.signed /target/boot/efi/EFI/BOOT/BOOTX64.EFI
    cp /usr/lib/grub/x86_64-efi-signed/grubx64.efi.signed /target/boot/efi/EFI/BOOT/grubx64.efi
    cat >/target/boot/efi/EFI/debian/grub.cfg <<END
search --no-floppy --fs-uuid --set=root $(uuid "$1")
linux $2/vmlinuz-$kernel $(cat "$folder/arguments")
initrd $2/initrd.img-$kernel
boot
END
}
"""

BEFORE = r"""
udevadm settle
root=$(awk '$2 == "/" { print "root=" $1; if ($3 == "btrfs") print "rootflags=subvol=@" }' /fstab)
echo $root ro $arguments >$folder/arguments
tar -x -f $tree -C /target --numeric-owner --xattrs --xattrs-include='*'
echo $host >/target/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' $host >/target/etc/hosts
rm -f /target/etc/resolv.conf
echo nameserver 192.0.2.53 >/target/etc/resolv.conf
echo $host | md5sum | cut -c1-32 >/target/etc/machine-id
if [ -d /target/etc/initramfs-tools ]; then      # emulated machines are slow
    printf 'COMPRESS=zstd\nCOMPRESSLEVEL=1\n' >/target/etc/initramfs-tools/conf.d/compress
fi
if [ -d /target/boot/grub ]; then
    printf 'GRUB_DEFAULT=0\nGRUB_TIMEOUT=1\nGRUB_DISTRIBUTOR=Debian\nGRUB_TERMINAL=console\nGRUB_CMDLINE_LINUX="%s"\n' \
        "$arguments" >/target/etc/default/grub
fi
echo root:$password | chroot /target chpasswd --crypt-method SHA256
# They would work at some moment of their own between two looks at the machine.
systemctl --quiet --root=/target mask apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    fstrim.timer systemd-tmpfiles-clean.timer
for point in dev proc sys run; do mount --rbind /$point /target/$point; done
"""
AFTER = r"""
cp /fstab /target/etc/fstab
[ -z "$initramfs" ] || chroot /target $initramfs >&2
cp /target/boot/vmlinuz-$kernel $folder/vmlinuz
cp /target/boot/initrd.img-$kernel $folder/initrd
for point in dev proc sys run; do umount -l /target/$point; done
umount -R /target
if command -v vgchange; then vgchange -an; fi
if command -v cryptsetup; then for name in /dev/mapper/*_crypt; do [ ! -e $name ] || cryptsetup close $name; done; fi
if command -v mdadm; then mdadm --stop --scan; fi
"""


def run(*argv: str, input: str = "", status: tuple[int, ...] = (0,)) -> str:
    """A command of this computer, its output, and its own words when it ends with any other status."""
    done = subprocess.run(argv, input=input, text=True, errors="surrogateescape", capture_output=True,
                          env={**os.environ, "LC_ALL": "C.UTF-8"})
    if done.returncode not in status:
        raise RuntimeError(f"{' '.join(argv)}: exit {done.returncode}\n{done.stdout}{done.stderr}")
    return done.stdout


# The cache

def cache() -> Path:
    """The directory of built images."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    directory = Path(base) / "asr" / "machines"
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def cached(name: str, key: str, build: Callable[[Path], object]) -> Path:
    """The file or folder that `build` makes, made once for each key; who comes second waits for the first."""
    stem, dot, suffix = name.partition(".")
    made = cache() / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}{dot}{suffix}"
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            for old in cache().glob(f"{stem}-*{dot}{suffix}"):
                run("rm", "-r", str(old))
            with tempfile.TemporaryDirectory(dir=cache()) as scratch:
                build(Path(scratch) / name)
                (Path(scratch) / name).rename(made)
    return made


# Building

def sample_machine(kind: str) -> Machine:
    """A sample machine, switched off after its first start. Needs root. Never boot it itself: `copy`."""
    sample = SAMPLES[kind]
    tree = base_tree(kind)
    # What makes the images is the tree they start from, its description, and this file.
    folder = cached(f"{kind}.machine", f"{tree.name} {sample} {Path(__file__).read_text()}",
                    lambda folder: build_machine(sample, tree, folder))
    return machine(sample, folder)


def machine(sample: Sample, folder: Path) -> Machine:
    """The machine whose disks and UEFI variables are in a folder."""
    return Machine(
        disks=tuple(Drive(folder / f"disk{number}.img") for number in range(len(sample.disks))), boot=("disk",),
        firmware=sample.firmware, variables=None if sample.firmware == "bios" else folder / "variables.fd")


def copy(machine: Machine, folder: Path) -> Machine:
    """The machine with copies of its disks that keep their holes, and of its variables, in a new folder."""
    folder.mkdir()
    for file in (*(drive.image for drive in machine.disks), machine.variables):
        if file:
            run("cp", "--sparse=always", "--reflink=auto", str(file), str(folder))
    return replace(machine, disks=tuple(replace(drive, image=folder / drive.image.name) for drive in machine.disks),
                   variables=machine.variables and folder / machine.variables.name)


def blank(machine: Machine, folder: Path) -> Machine:
    """A computer of the same make: new disks of the same sizes, UEFI variables as the factory had them."""
    folder.mkdir()
    disks = [Drive(make_disk(folder / drive.image.name, drive.image.stat().st_size), serial=f"NEW{number}")
             for number, drive in enumerate(machine.disks)]
    return replace(machine, disks=tuple(disks), variables=machine.variables and folder / machine.variables.name)


def base_tree(kind: str) -> Path:
    """What a kind's packages install, as a tar file."""
    sample = SAMPLES[kind]
    argv = ("mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES + sample.packages)}",
            '--aptopt=APT::Install-Recommends "false"', *(f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT),
            "--dpkgopt=path-include=/usr/share/zoneinfo/Etc/*",
            *(("--dpkgopt=path-include=/usr/lib/x86_64-linux-gnu/gconv/*",) if "mtools" in sample.packages else ()),
            *(("--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr",) if "usr-is-merged" in sample.packages else ()),
            *((f"--essential-hook={sample.early}",) if sample.early else ()), sample.suite)
    return cached(f"{kind}.tar", repr(argv), lambda tar: run(*argv, str(tar)))


def build_machine(sample: Sample, tree: Path, folder: Path) -> None:
    folder.mkdir()
    images = [make_disk(folder / f"disk{number}.img", size) for number, size in enumerate(sample.disks)]
    with tempfile.TemporaryDirectory(dir=cache(), prefix="root-") as root:
        run("tar", "-x", "-f", str(tree), "-C", root, "--numeric-owner")
        shell_in_uml(script(sample, tree, folder), images, Path(root), shared=[folder, tree.parent], memory=MEMORY,
                     seconds=1800)
    run_in_uml("tests.vm.inside", "fill", images, memory=MEMORY, seconds=1800)
    settle(sample, folder)
    for left in ("vmlinuz", "initrd", "arguments"):
        (folder / left).unlink()


def script(sample: Sample, tree: Path, folder: Path) -> str:
    values = {"folder": folder, "tree": tree, "host": HOSTNAME, "password": PASSWORD, "arguments": KERNEL_ARGUMENTS,
              "initramfs": sample.initramfs}
    return "\n".join((*(f"{name}={quote(str(value))}" for name, value in values.items()),
                      "kernel=$(basename /boot/vmlinuz-* | cut -d- -f2-)",
                      TOOLS, sample.make, BEFORE, sample.configure, AFTER))


def fill(tops: Mapping[str, Path]) -> None:
    """What no distribution puts there: files that are hard to bring back. Mount point -> where it is mounted."""
    root, home = tops["/"], tops.get("/home", tops["/"] / "home")
    make_difficult(home / "user/adversarial", largest=2**32 + 2 * MiB + 1)
    make_difficult(root / "root/adversarial")
    os.chown(home / "user", 1000, 1000)
    (home / "user").chmod(0o700)
    make_mount_points(root)


def settle(sample: Sample, folder: Path) -> None:
    """Start the machine once: what a first start writes is written, and its boot loader knows its real disks."""
    here = machine(sample, folder)
    if not sample.loader:
        here = replace(here, kernel=folder / "vmlinuz", initrd=folder / "initrd", boot=(),
                       arguments=(folder / "arguments").read_text().strip())
    with boot(here) as guest:
        log_in(guest, sample, seconds=900)
        for command in ("systemctl is-system-running --wait || systemctl --failed", *sample.first):
            status, output = guest.serial.run(command, seconds=600)
            if status:
                raise RuntimeError(f"{command}: exit {status}\n{output}")
        guest.serial.send("systemctl poweroff\n")
        guest.wait_for_shutdown(300)


def log_in(guest: Guest, sample: Sample, seconds: float = 600) -> None:
    """At the serial console; where a passphrase is asked for first, it is given."""
    if sample.encrypted:
        guest.serial.expect("Please unlock disk", seconds)
        guest.serial.send(f"{PASSPHRASE}\n")
    guest.serial.login("root", PASSWORD, seconds)


# Files that are hard to bring back. All of them are the same at every build.

def make_difficult(top: Path, largest: int = 64 * MiB) -> None:
    """A subtree with everything a file can be, with holes in files of up to `largest` bytes.

    Needs root, and a file system that keeps it all but chattr's flags, which are those that it knows.
    """
    os.umask(0o022)
    top.mkdir(parents=True)
    holes(top, largest)
    for make in (odd_names, contents, hard_links, owners_and_modes, acls, attributes, specials, symlinks, flags):
        (top / make.__name__).mkdir()
        make(top / make.__name__)
    times(top)
    set_flags(top / "flags")         # last: nothing can be changed in an immutable file, its times neither


def odd_names(top: Path) -> None:
    names = (b"two\nlines", b"not utf-8 \xff\xfe", b"l" * 255, "ü".encode() * 127, b" blank first", b"blank last ",
             b"-rf", b"--help", b"*?[a-z]", b"back\\slash", b"tab\there", b"quote'\"`$HOME", b"\x1b[31mred",
             b"\x01\x7f", b"...", "e\u0301 decomposed".encode(), "\u00e9 composed".encode(), b"#hash#", b"~",
             b"name=value", b"a:b")
    for name in names:
        with open(os.fsencode(top) + b"/" + name, "wb") as file:
            file.write(name)
    (top / "empty directory").mkdir()
    deep = top
    for level in range(12):          # 2,400 bytes: longer than any tar header's own field
        deep = deep / f"{level:02d}".ljust(200, "d")
        deep.mkdir()
    (deep / "deep").write_text("deep")


def contents(top: Path) -> None:
    noise = random.Random(1)
    for size in (0, 1, 511, 512, 513, 4096, 65537, 24 * MiB):
        (top / f"{size} bytes").write_bytes(noise.randbytes(size))
    (top / "zeros").write_bytes(bytes(MiB))                       # written, not a hole
    crowd = top / "crowd"                                         # a directory of many blocks, which ext4 indexes
    crowd.mkdir()
    for number in range(400):
        (crowd / f"{number:04d}".ljust(60, "n")).touch()


def holes(top: Path, largest: int) -> None:
    noise = random.Random(3)
    for name, size, islands in (("nothing else", largest // 2, ()), ("at the end", 3 * MiB, (0,)),
                                ("at the start", 3 * MiB + 4096, (3 * MiB,)),
                                ("islands", largest, (MiB, largest // 2 // 4096 * 4096, largest - 1))):
        with (top / f"hole {name}").open("wb") as file:
            for island in islands:
                file.seek(island)
                file.write(noise.randbytes(min(4096, size - island)))
            file.truncate(size)


def hard_links(top: Path) -> None:
    for name in ("one", "two/deeper"):
        (top / name).mkdir(parents=True)
    (top / "one/file").write_text("linked")
    (top / "two/deeper/the same file").hardlink_to(top / "one/file")
    (top / "zz again").hardlink_to(top / "one/file")
    (top / "one/link").symlink_to("file")
    os.link(top / "one/link", top / "two/the same symlink", follow_symlinks=False)
    os.mkfifo(top / "one/fifo")
    os.link(top / "one/fifo", top / "two/the same fifo")


def owners_and_modes(top: Path) -> None:
    for mode in (0o0000, 0o0444, 0o0777, 0o4755, 0o2755, 0o6711, 0o1644, 0o4000):
        file = top / f"file {mode:04o}"
        file.write_text("#!/bin/true\n")
        os.chown(file, 54321, 65534)                              # before chmod: it clears setuid
        file.chmod(mode)
    for mode in (0o0000, 0o0500, 0o1777, 0o2775, 0o3770):
        directory = top / f"directory {mode:04o}"
        directory.mkdir()
        (directory / "inside").touch()
        os.chown(directory, 2**32 - 2, 2**31)                     # the largest there is
        directory.chmod(mode)


def acls(top: Path) -> None:
    (top / "file").touch(0o640)
    (top / "directory").mkdir()
    run("setfacl", "-m", "u:1234:r-x,g:4321:-w-,u:root:rwx,m::r--", str(top / "file"))
    run("setfacl", "-m", "u:1234:rwx,d:u:1234:rw-,d:g::---,d:o::r--", str(top / "directory"))
    (top / "directory" / "heir").touch()
    (top / "directory" / "heiress").mkdir()


def attributes(top: Path) -> None:
    for name, values in {
        "user": {"user.empty": b"", "user.binary": bytes(range(256)), "user.schön": "größe".encode()},
        "trusted": {"trusted.overlay.opaque": b"y", "trusted.long": b"x" * 1200},
        "security": {"security.sample": b"label\0"},
        # CAP_NET_RAW, effective: revision 2, and revision 3 as a container's root 100000 would set it
        # (linux/capability.h, struct vfs_ns_cap_data).
        "capability": {"security.capability": struct.pack("<5I", 0x02000001, 1 << 13, 0, 0, 0)},
        "capability of a namespace": {"security.capability": struct.pack("<6I", 0x03000001, 1 << 13, 0, 0, 0, 100000)},
    }.items():
        (top / name).write_text(name)
        (top / name).chmod(0o755)
        for key, value in values.items():
            os.setxattr(top / name, key, value)
    (top / "directory").mkdir()
    os.setxattr(top / "directory", "user.directory", b"1")
    (top / "symlink").symlink_to("nowhere")
    os.setxattr(top / "symlink", "trusted.symlink", b"1", follow_symlinks=False)


def specials(top: Path) -> None:
    os.mkfifo(top / "fifo", 0o622)
    os.mknod(top / "character device", 0o660 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(top / "block device", 0o600 | stat.S_IFBLK, os.makedev(259, 262143))        # XFS knows no higher
    os.chown(top / "block device", 7, 8)


def symlinks(top: Path) -> None:
    for name, to in (("dangling", "nowhere/at all"), ("absolute", "/etc/passwd"), ("to itself", "to itself"),
                     ("59 bytes", "x" * 59), ("60 bytes", "x" * 60), ("long", "long/" * 200), ("up", "../" * 30),
                     ("to a directory", "..")):
        (top / name).symlink_to(to)
    (top / "odd target").symlink_to(os.fsdecode(b"\xff\n"))
    os.lchown(top / "dangling", 4242, 2424)


# chattr's letters that a file system keeps, by the name that stat(1) has for it.
LETTERS = {"ext2/ext3": "iadASuT", "xfs": "iadAS", "btrfs": "iadASC"}


def flags(top: Path) -> None:
    for name in ("immutable", "append only", "no dump", "no atime", "synchronous", "all at once"):
        (top / name).write_text(name)
    for name in ("immutable directory", "top of hierarchies", "no copy on write"):
        (top / name).mkdir()
    (top / "immutable directory" / "inside").touch()


def set_flags(top: Path) -> None:
    kept = LETTERS[run("stat", "--file-system", "--format=%T", str(top)).strip()]
    for name, letters in (("immutable", "i"), ("append only", "a"), ("no dump", "d"), ("no atime", "A"),
                          ("synchronous", "S"), ("all at once", "iadASu"), ("immutable directory", "i"),
                          ("top of hierarchies", "T"), ("no copy on write", "C")):
        if known := "".join(letter for letter in letters if letter in kept):
            run("chattr", f"+{known}", str(top / name))


# Nanoseconds since 1970. ext4 counts to 2446 from 1901 on, with nanoseconds where inodes have room.
MOMENTS = (0, 1, -1, -1_000_000_000, -1_234_567_890_987_654_321, 999_999_999, 1_000_000_000_000_000_001,
           2**31 * 10**9 - 1, 2**31 * 10**9, 2**32 * 10**9 + 123_456_789, 4_102_444_800_000_000_000)


def times(top: Path) -> None:
    """Every file of the subtree gets a time of its own, directories after what is in them."""
    moments = random.Random(2)
    for path, directories, names in sorted(os.walk(os.fsencode(top), topdown=False)):
        for name in sorted(names + [d for d in directories if os.path.islink(os.path.join(path, d))]):
            _touch(os.path.join(path, name), moments.randrange(2**60))
    for path, _, _ in sorted(os.walk(os.fsencode(top)), reverse=True):
        _touch(path, moments.randrange(2**60))
    for number, moment in enumerate(MOMENTS):
        (top / f"times {number}").touch()
        _touch(os.fsencode(top / f"times {number}"), moment)
    _touch(os.fsencode(top), 1_234_567_891_000_000_000)


def _touch(path: bytes, moment: int) -> None:
    os.utime(path, ns=(moment, moment), follow_symlinks=False)


def make_mount_points(target: Path) -> None:
    """Empty directories, some with modes that no tool gives them."""
    for path, mode, owner in (("mnt/odd mount point", 0o1750, 33), ("media/none", 0, 0), ("srv/public", 0o2777, 99)):
        (target / path).mkdir()
        os.chown(target / path, owner, owner)
        (target / path).chmod(mode)
