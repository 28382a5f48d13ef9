"""Sample machines: small, real Debian systems on disk images, made with the distribution's own tools alone.

Nothing of the product has a hand in them, so that what it brings back can be held against what it never made:

    disk = sample_machine("gpt")       # a path in the cache; copy it before it is booted
"""

import fcntl
import hashlib
import os
import random
import stat
import struct
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from bootenv.rehearsal import Drive, Machine, MiB, boot, make_disk

SUITE = "trixie"
PASSWORD = "recovery"              # root's
HOSTNAME = "sample"
SECTOR = 512
KERNEL_ARGUMENTS = "console=tty0 console=ttyS0 mitigations=off no_timer_check"

PACKAGES = ("systemd-sysv", "linux-image-amd64", "grub-pc", "initramfs-tools", "zstd", "e2fsprogs", "acl", "attr",
            "libcap2-bin", "login", "passwd", "mount", "udev", "kmod", "procps")

# Emulated machines copy some hundred files a second: what no sample needs stays out.
LEFT_OUT = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/bug/*",
    "/usr/share/lintian/*", "/usr/share/zsh/*", "/usr/share/bash-completion/*", "/usr/share/zoneinfo/[A-TV-Z]*",
    "/usr/lib/x86_64-linux-gnu/gconv/*",
    *(f"/usr/lib/modules/*/kernel/{name}/*" for name in (
        "sound", "samples", "net/bluetooth", "net/mac80211", "net/wireless", "net/netfilter", "net/ipv4/netfilter",
        "net/ipv6/netfilter", "net/bridge", "net/sched", "net/tipc", "net/sctp", "net/batman-adv", "net/can",
        "drivers/accessibility", "drivers/android", "drivers/bluetooth", "drivers/comedi", "drivers/gpu",
        "drivers/hwmon", "drivers/i2c", "drivers/iio", "drivers/infiniband", "drivers/input/joystick",
        "drivers/input/misc", "drivers/input/tablet", "drivers/input/touchscreen", "drivers/leds", "drivers/media",
        "drivers/mfd", "drivers/net", "drivers/platform", "drivers/power", "drivers/regulator", "drivers/staging",
        "drivers/thermal", "drivers/usb/gadget", "drivers/usb/misc", "drivers/usb/serial", "drivers/usb/typec",
        "drivers/video", "drivers/w1", "drivers/watchdog",
    )),
)


@dataclass(frozen=True)
class Part:
    """A partition of a sample machine: a line of sfdisk's script, and what is on it."""

    number: int
    start: int                      # sectors
    size: int                       # sectors
    table: str                      # the rest of the script's line
    mkfs: tuple[str, ...] = ()      # without the device
    point: str = ""                 # mount point, or "none" for swap
    options: str = "defaults"
    check: int = 0                  # fstab's sixth field

    @property
    def uuid(self) -> str:
        return self.mkfs[self.mkfs.index("-U") + 1]

    @property
    def type(self) -> str:
        return "swap" if self.point == "none" else "ext4"


@dataclass(frozen=True)
class Sample:
    """A kind of sample machine."""

    head: tuple[str, ...]           # of sfdisk's script
    parts: tuple[Part, ...]
    size: int = 3072 * MiB

    def part(self, point: str) -> Part:
        return next(part for part in self.parts if part.point == point)


def _uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.sample.invalid"))


def _root(name: str) -> tuple[str, ...]:
    # Trixie's own defaults, whatever mke2fs this computer has.
    return ("mkfs.ext4", "-q", "-F", "-O", "64bit,metadata_csum,metadata_csum_seed,orphan_file", "-I", "256",
            "-U", _uuid(name), "-E", f"hash_seed={_uuid(name + '-hash')}")


def _home(name: str) -> tuple[str, ...]:
    # As little like a default as can be: blocks, inodes, reserve, features, label, check interval.
    return ("mkfs.ext4", "-q", "-F", "-O",
            "^64bit,^metadata_csum,^metadata_csum_seed,^orphan_file,^huge_file,uninit_bg,large_dir,ea_inode",
            "-b", "2048", "-I", "512", "-i", "16384", "-m", "3", "-L", "home sweet home", "-U", _uuid(name),
            "-E", f"hash_seed={_uuid(name + '-hash')},stride=4,stripe_width=16,nodiscard",
            "-e", "remount-ro")


def _swap(name: str) -> tuple[str, ...]:
    return ("mkswap", "-q", "-L", "swäp", "-U", _uuid(name))


# Numbers with gaps, order on disk unlike the numbers, starts off every alignment, names that need quoting, flags.
SAMPLES = {
    "gpt": Sample(
        head=("label: gpt", f"label-id: {_uuid('gpt').upper()}", "first-lba: 34", "table-length: 128"),
        parts=(
            Part(1, 40, 2008, 'type=21686148-6449-6E6F-744E-656564454649, name="BIOS boot"'
                              f", uuid={_uuid('gpt-1').upper()}"),
            Part(3, 526336, 4194304, 'type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name="Débian  röot, \'1\'"'
                                     f", uuid={_uuid('gpt-3').upper()}, attrs=\"LegacyBIOSBootable GUID:59\"",
                 _root("gpt-root"), "/", "errors=remount-ro", 1),
            Part(4, 4099, 262144, 'type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F'
                                  f", uuid={_uuid('gpt-4').upper()}",
                 _swap("gpt-swap"), "none", "sw"),
            Part(7, 4720647, 819200, 'type=933AC7E1-2EB4-4F13-B844-0E14E2AEF915, name="/home Łukasz \\x22Ω\\x22"'
                                     f", uuid={_uuid('gpt-7').upper()}, attrs=\"RequiredPartition GUID:48,63\"",
                 _home("gpt-home"), "/home", "defaults,relatime", 2),
        ),
    ),
    "mbr": Sample(
        head=("label: dos", "label-id: 0x1badb002"),
        parts=(
            Part(1, 2048, 4194304, "type=83, bootable", _root("mbr-root"), "/", "errors=remount-ro", 1),
            Part(3, 4196352, 1572864, "type=f"),
            Part(5, 4198400, 262144, "type=82", _swap("mbr-swap"), "none", "sw"),
            Part(6, 4462655, 819200, "type=83", _home("mbr-home"), "/home", "defaults,relatime", 2),
        ),
    ),
}


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
    """The file that `build` makes, made once for each key; who comes second waits for the first."""
    stem, dot, suffix = name.partition(".")
    made = cache() / f"{stem}-{hashlib.sha256(key.encode()).hexdigest()[:12]}{dot}{suffix}"
    with (cache() / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            for old in cache().glob(f"{stem}-*{dot}{suffix}"):
                old.unlink()
            with tempfile.TemporaryDirectory(dir=cache()) as scratch:
                build(Path(scratch) / name)
                (Path(scratch) / name).rename(made)
    return made


def copy(image: Path, to: Path) -> Path:
    """A copy of a disk that keeps its holes, and shares blocks where the file system can."""
    run("cp", "--sparse=always", "--reflink=auto", str(image), str(to))
    return to


# Building

def sample_machine(name: str) -> Path:
    """The disk of a sample machine, switched off after its first start. Needs root. Never boot it itself: `copy`."""
    # What makes the image is this file, and the tree it starts from.
    tree = base_tree()
    return cached(f"{name}.img", f"{tree.name} {Path(__file__).read_text()}",
                  lambda image: build_machine(SAMPLES[name], tree, image))


def base_tree() -> Path:
    """A bootable trixie as a tar file."""
    argv = ("mmdebstrap", "--variant=minbase", "--mode=root", f"--include={','.join(PACKAGES)}",
            '--aptopt=APT::Install-Recommends "false"', *(f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT),
            "--dpkgopt=path-include=/usr/share/zoneinfo/Etc/*", SUITE)
    return cached("base.tar", repr(argv), lambda tar: run(*argv, str(tar)))


def build_machine(sample: Sample, tree: Path, image: Path) -> None:
    make_disk(image, sample.size)
    write_table(sample, image)
    for part in sample.parts:
        if part.mkfs:
            with loop(image, part.start, part.size) as device:
                run(*part.mkfs, device)
    with mounted(sample, image) as target:
        run("tar", "-x", "-f", str(tree), "-C", str(target), "--numeric-owner", "--xattrs", "--xattrs-include=*")
        configure(sample, target)
        make_difficult(target / "home/user/adversarial", largest=2**32 + 2 * MiB + 1)
        make_difficult(target / "root/adversarial")
        make_mount_points(target)
        install_grub(sample, image, target)
    settle(image)


def write_table(sample: Sample, image: Path) -> None:
    lines = [f"{part.number}: start={part.start}, size={part.size}, {part.table}" for part in sample.parts]
    run("sfdisk", "--no-reread", "--no-tell-kernel", "--wipe=never", str(image),
        input="\n".join((*sample.head, *lines)) + "\n")


@contextmanager
def loop(image: Path, start: int, size: int) -> Iterator[str]:
    """A slice (sectors) of an image as a block device: kernels without partition tables need this."""
    # Between finding a free device and taking it, a test in another process could take it.
    with (cache() / "loop.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        device = run("losetup", "--find", "--show", f"--offset={start * SECTOR}",
                     f"--sizelimit={size * SECTOR}", str(image)).strip()
    try:
        yield device
    finally:
        run("losetup", "--detach", device)


@contextmanager
def mounted(sample: Sample, image: Path) -> Iterator[Path]:
    """The machine's file systems, mounted where they belong under a new directory."""
    with ExitStack() as stack:
        target = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for part in sorted((p for p in sample.parts if p.point.startswith("/")), key=lambda p: p.point):
            point = target / part.point.lstrip("/")
            if not point.exists():
                point.mkdir()
            if part.point != "/":
                point.chmod(0o710)                            # hidden under the mount, and still to come back
                os.chown(point, 12, 34)
                os.utime(point, ns=(1, 1_111_111_111_123_456_789))
            device = stack.enter_context(loop(image, part.start, part.size))
            run("mount", device, str(point))
            stack.callback(run, "umount", str(point))
        yield target


def configure(sample: Sample, target: Path) -> None:
    """What an installer would have asked."""
    fstab = [f"UUID={part.uuid} {part.point} {part.type} {part.options} 0 {part.check}\n"
             for part in sample.parts if part.mkfs]
    for path, text in {
        "etc/fstab": "".join(fstab),
        "etc/hostname": f"{HOSTNAME}\n",
        "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {HOSTNAME}\n",
        "etc/resolv.conf": "nameserver 192.0.2.53\n",
        "etc/machine-id": hashlib.md5(HOSTNAME.encode(), usedforsecurity=False).hexdigest() + "\n",
        "etc/initramfs-tools/conf.d/compress": "COMPRESS=zstd\nCOMPRESSLEVEL=1\n",     # emulated machines are slow
        "etc/default/grub": "GRUB_DEFAULT=0\nGRUB_TIMEOUT=1\nGRUB_DISTRIBUTOR=Debian\nGRUB_TERMINAL=console\n"
                            f'GRUB_CMDLINE_LINUX="{KERNEL_ARGUMENTS}"\n',
    }.items():
        (target / path).write_text(text)
    run("chroot", str(target), "chpasswd", "--crypt-method", "SHA256", input=f"root:{PASSWORD}\n")
    # They would work at some moment of their own between two looks at the machine.
    run("systemctl", f"--root={target}", "mask", "apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer",
        "e2scrub_all.timer", "fstrim.timer", "systemd-tmpfiles-clean.timer")


def install_grub(sample: Sample, image: Path, target: Path) -> None:
    """The machine's own GRUB, from outside: good for one start, which then does it again from within."""
    kernel = next((target / "boot").glob("vmlinuz-*")).name.removeprefix("vmlinuz-")
    (target / "boot/grub/grub.cfg").write_text(
        f"linux /boot/vmlinuz-{kernel} root=UUID={sample.part('/').uuid} {KERNEL_ARGUMENTS}\n"
        f"initrd /boot/initrd.img-{kernel}\nboot\n")
    with ExitStack() as stack:
        disk = stack.enter_context(loop(image, 0, sample.size // SECTOR))
        for kind, source, point in (("--bind", "/dev", "dev"), ("-tproc", "proc", "proc"), ("-tsysfs", "sysfs", "sys")):
            run("mount", kind, source, str(target / point))
            stack.callback(run, "umount", str(target / point))
        # The root is on a loop device of its own, so GRUB takes it for another disk and searches it by UUID.
        run("chroot", str(target), "grub-install", "--target=i386-pc", "--modules=part_gpt part_msdos", disk)


def settle(image: Path) -> None:
    """Start the machine once, so that what a first start writes is written, and its GRUB knows its real disk."""
    with boot(Machine(disks=(Drive(image),), boot=("disk",))) as guest:
        guest.serial.login("root", PASSWORD, seconds=900)
        for command in ("systemctl is-system-running --wait || systemctl --failed",
                        "grub-install /dev/vda && update-grub"):
            status, output = guest.serial.run(command, seconds=600)
            if status:
                raise RuntimeError(f"{command}: exit {status}\n{output}")
        guest.serial.send("systemctl poweroff\n")
        guest.wait_for_shutdown(300)


# Files that are hard to bring back. All of them are the same at every build.

def make_difficult(top: Path, largest: int = 64 * MiB) -> None:
    """A subtree with everything a file can be, with holes in files of up to `largest` bytes.

    Needs root, and a file system that keeps it all (ext4).
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
    os.mknod(top / "block device", 0o600 | stat.S_IFBLK, os.makedev(259, 1048575))
    os.chown(top / "block device", 7, 8)


def symlinks(top: Path) -> None:
    for name, to in (("dangling", "nowhere/at all"), ("absolute", "/etc/passwd"), ("to itself", "to itself"),
                     ("59 bytes", "x" * 59), ("60 bytes", "x" * 60), ("long", "long/" * 200), ("up", "../" * 30),
                     ("to a directory", "..")):
        (top / name).symlink_to(to)
    (top / "odd target").symlink_to(os.fsdecode(b"\xff\n"))
    os.lchown(top / "dangling", 4242, 2424)


def flags(top: Path) -> None:
    for name in ("immutable", "append only", "no dump", "no atime", "synchronous", "all at once"):
        (top / name).write_text(name)
    for name in ("immutable directory", "top of hierarchies"):
        (top / name).mkdir()
    (top / "immutable directory" / "inside").touch()


def set_flags(top: Path) -> None:
    for name, letters in (("immutable", "i"), ("append only", "a"), ("no dump", "d"), ("no atime", "A"),
                          ("synchronous", "S"), ("all at once", "iadASu"), ("immutable directory", "i"),
                          ("top of hierarchies", "T")):
        run("chattr", f"+{letters}", str(top / name))


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
    """Empty directories, some with modes that no tool gives them, and a user's home."""
    for path, mode, owner in (("mnt/odd mount point", 0o1750, 33), ("media/none", 0, 0), ("srv/public", 0o2777, 99)):
        (target / path).mkdir()
        os.chown(target / path, owner, owner)
        (target / path).chmod(mode)
    os.chown(target / "home/user", 1000, 1000)
    (target / "home/user").chmod(0o700)
