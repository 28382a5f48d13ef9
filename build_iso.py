#!/usr/bin/env python3
"""Builds the recovery medium: one ISO for CD and USB stick, BIOS and UEFI; also, a folder to boot from by network.

Run as root it installs the Debian packages it lacks; it needs nothing else but a system Python of 3.11 or newer.
"""

import argparse
import fcntl
import gzip
import hashlib
import importlib.util
import inspect
import os
import re
import shutil
import struct
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
IMAGE = HERE / "bootenv/image"

TOOLS = {  # program: Debian package
    "mmdebstrap": "mmdebstrap",
    "mksquashfs": "squashfs-tools",
    "xorriso": "xorriso",
    "mcopy": "mtools",
    "mkfs.vfat": "dosfstools",
    "depmod": "kmod",
    "cpio": "cpio",
    "zstd": "zstd",
    "xz": "xz-utils",
}
MODULES = ("rich", "qemu", "xxhash", "zstandard", "pip")   # what this program and the rehearsal import

LINKS = {  # path in the image: what it points at
    "usr/sbin/init": "/usr/lib/asr/bootenv/image/init",
    "usr/sbin/reboot": "/usr/lib/asr/bootenv/image/reboot",
    "usr/sbin/poweroff": "/usr/lib/asr/bootenv/image/reboot",
    "usr/bin/asr": "/usr/lib/asr/bootenv/image/asr-command",
    "usr/sbin/lvm-set-uuids": "/usr/lib/asr/bootenv/image/lvm-set-uuids",
    # The program is appended to the finished squashfs, and that can only be done in a new folder of its root.
    "usr/lib/asr/bootenv": "/asr/bootenv",
    "usr/lib/asr/console": "/asr/console",
}

# What the console's start reads.
PROGRAMS_AT_START = ("/usr/bin/bash", "/usr/bin/dash", "/usr/bin/tmux", "/usr/bin/python3", "/usr/bin/udevadm")
MODULES_AT_START = """
import sys
import argparse, asyncio, hashlib, importlib.util, json, pickle, subprocess, tomllib, xxhash, zstandard
import textual.app, textual.containers, textual.drivers.linux_driver, textual.widgets._input, textual.widgets._static
for module in list(sys.modules.values()):
    for path in (getattr(module, "__cached__", None), getattr(module, "__file__", None)):
        if path and not path.endswith(".py"):
            print(path)
"""

# Left out of the squashfs, since the medium has them beside it or the minimal OS never starts that way.
BESIDE = ("boot/*", "usr/lib/grub/x86_64-efi-signed/grub*")

# What the initramfs puts arrays and volumes together with.
ASSEMBLERS = ("/usr/sbin/mdadm", "/usr/sbin/lvm")

# Modules of the GRUB core image that starts the medium on a BIOS; the rest it loads from the medium.
GRUB_CORE = ("biosdisk", "iso9660", "part_msdos", "part_gpt", "normal", "search", "configfile", "linux", "echo", "test")
# And of the one that a BIOS fetches by PXE: it has nowhere to load more from.
GRUB_PXE = ("pxe", "tftp", "http", "net", "normal", "configfile", "linux", "echo", "test", "serial", "terminal")

PARTS = ("vmlinuz", "initrd.img", "root.squashfs")       # what the medium is made of, in initramfs-init's order

# Debian's packages of non-free firmware: for wired network cards and for disk controllers, and for all that the image
# has drivers for. Only the files that its drivers name are taken from them.
FIRMWARE = {
    "none": (),
    "common": ("firmware-bnx2", "firmware-bnx2x", "firmware-misc-nonfree", "firmware-myricom", "firmware-netxen",
               "firmware-qlogic", "firmware-realtek"),
    "all": ("firmware-bnx2", "firmware-bnx2x", "firmware-cavium", "firmware-intel-misc", "firmware-linux-free",
            "firmware-misc-nonfree", "firmware-myricom", "firmware-netronome", "firmware-netxen", "firmware-qlogic",
            "firmware-realtek"),
}


class BuildFailed(Exception):
    """A sentence for the person who builds."""


@dataclass(frozen=True)
class Build:
    """Where one build takes from and puts into."""

    suite: str          # of Debian
    cache: Path
    output: Path
    firmware: str = "none"                  # a key of FIRMWARE
    append: str = ""                        # to the kernel's command line
    netboot: Path | None = None             # a folder for an HTTP or TFTP server

    @property
    def base(self) -> Path:
        """The part that our code is not in. Its name changes with everything it is made of."""
        parts = [self.suite, str(LINKS), str(BESIDE), *(inspect.getsource(verb) for _, verb in BASE)]
        parts.append(os.environ.get("SOURCE_DATE_EPOCH", ""))
        parts += [(IMAGE / name).read_text() for name in ("packages", "prune", "requirements.txt")]
        return self.cache / f"base-{hashlib.sha256(''.join(parts).encode()).hexdigest()[:16]}"

    @property
    def root(self) -> Path:
        return self.base / "root"

    @property
    def kernel(self) -> str:
        """The kernel's version, as in /lib/modules."""
        return next((self.root / "usr/lib/modules").iterdir()).name

    @property
    def stage(self) -> Path:
        """The tree of the medium."""
        return self.cache / "stage"

    @property
    def log(self) -> Path:
        return self.cache / "build.log"

    def tool(self, *argv: str | Path) -> None:
        """Runs a program with this environment (proxies) and the build's time; its output goes to the log."""
        with self.log.open("ab") as log:
            log.write(f"+ {' '.join(map(str, argv))}\n".encode())
            log.flush()
            done = subprocess.run([str(word) for word in argv], stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                                  env=os.environ | {"SOURCE_DATE_EPOCH": str(epoch())})
        if done.returncode:
            words = " ".join(self.log.read_text(errors="replace").split()[-40:])
            raise BuildFailed(f"{argv[0]} failed (all of it is in {self.log}): {words}")


def main() -> int:
    options = arguments()
    try:
        if options.packages:
            enter_environment(options.cache)
            for package in (wheel(options.output.parent), deb(options.output.parent, options.cache)):
                print(f"{package}: {package.stat().st_size / 1e6:.1f} MB")
            return 0
        if os.geteuid():
            raise BuildFailed(f"A file system is built as root: run  sudo {sys.argv[0]}{missing_sentence()}")
        install_tools()
        enter_environment(options.cache)
        build = Build(options.suite, options.cache, options.output, options.firmware, options.append, options.netboot)
        with lock(build.cache):
            make(build)
    except BuildFailed as failure:
        print(f"build_iso.py: {failure}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    if options.demo:
        from tests.vm.demo import demo
        return demo(build.output)
    return 0


def arguments() -> argparse.Namespace:
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=HERE / "dist/asr-recovery.iso", metavar="FILE")
    parser.add_argument("--suite", default="trixie", help="Debian release of the live system (%(default)s)")
    parser.add_argument("--cache", type=Path, default=home / "asr", metavar="DIR",
                        help="what the next build needs not make again (%(default)s)")
    parser.add_argument("--firmware", choices=FIRMWARE, default="none",
                        help="Debian's non-free firmware: for wired network cards and disk controllers, or for every "
                             "driver (%(default)s)")
    parser.add_argument("--append", type=kernel_arguments, default="", metavar="ARGUMENTS",
                        help="to the kernel's command line, e.g. 'asr.keymap=de-latin1'")
    parser.add_argument("--netboot", type=Path, metavar="DIR",
                        help="write there what a computer boots from over the network")
    parser.add_argument("--demo", action="store_true", help="then recover a sample machine with it, on this terminal")
    parser.add_argument("--packages", action="store_true",
                        help="make the wheel and the .deb, in the output's directory, and no ISO; this needs no root")
    options = parser.parse_args()
    options.output, options.cache = options.output.absolute(), options.cache.absolute()
    if options.netboot:
        options.netboot = options.netboot.absolute()
    return options


def kernel_arguments(text: str) -> str:
    """Words that mean to GRUB and iPXE what they say. Raises ArgumentTypeError, which argparse shows."""
    if wrong := re.search(r"[^\w.,:/=+@%\- ]", text, re.ASCII):
        raise argparse.ArgumentTypeError(f"{wrong[0]!r} can't be written in a boot menu")
    return " ".join(text.split())


# What the build machine needs

def missing_tools() -> list[str]:
    return sorted({package for program, package in TOOLS.items() if not shutil.which(program)})


def missing_sentence() -> str:
    missing = missing_tools()
    return f" (as root it also installs the missing {', '.join(missing)})" if missing else ""


def install_tools() -> None:
    missing = missing_tools()
    if not any(Path("/usr/share/keyrings").glob("debian-archive-keyring.*")):
        missing.append("debian-archive-keyring")
    if missing:
        apt_install(missing)


def apt_install(packages: list[str]) -> None:
    if not shutil.which("apt-get"):
        raise BuildFailed(f"Missing here: {', '.join(packages)}; only on Debian and Ubuntu are they installed for you.")
    print(f"Installing {', '.join(packages)}", flush=True)
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    subprocess.run(("apt-get", "-qq", "update"), check=False, env=environment)
    install = ("apt-get", "-qq", "install", "--no-install-recommends", *packages)
    done = subprocess.run(install, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise BuildFailed(f"apt-get could not install {', '.join(packages)}: {done.stderr.strip()[-300:]}")


def enter_environment(cache: Path) -> None:
    """Starts this program again in an environment of its own, unless this Python has what is needed."""
    if all(importlib.util.find_spec(name) for name in MODULES):
        return
    lock_file = IMAGE / "requirements.txt"
    key = hashlib.sha256(lock_file.read_bytes() + sys.version.encode()).hexdigest()[:16]
    environment = cache / f"python-{key}"
    python = environment / "bin/python"
    if Path(sys.prefix) == environment:
        raise BuildFailed(f"The Python environment {environment} is incomplete; remove it and try again.")
    if not (environment / "complete").exists():
        if not importlib.util.find_spec("ensurepip"):
            apt_install(["python3-venv"])
        print("Installing Python packages", flush=True)
        run_or_fail(sys.executable, "-m", "venv", "--clear", environment)
        run_or_fail(python, "-m", "pip", "install", "--quiet", "--require-hashes", "--only-binary", ":all:",
                    "--requirement", lock_file)
        (environment / "complete").touch()
    os.execv(python, [str(python), *sys.argv])


@contextmanager
def lock(cache: Path) -> Iterator[None]:
    """One build at a time in a cache; another one waits."""
    cache.mkdir(parents=True, exist_ok=True)
    with (cache / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# The steps

def make(build: Build) -> None:
    """Makes the ISO. What an earlier run has finished, and nothing has changed since, is taken from the cache."""
    build.log.write_text("")
    begin = time.monotonic()
    steps = (*PROGRAM, ("Network boot", netboot)) if build.netboot else PROGRAM
    with progress(len(BASE) + len(steps)) as step:
        for title, verb in BASE:
            done = build.base / f"{verb.__name__}.done"
            if done.exists():
                step(f"{title}: cached", None)
                continue
            step(title, partial(verb, build))
            done.touch()
        for title, verb in steps:
            step(title, partial(verb, build))
    remove_other_bases(build)
    size = build.output.stat().st_size / 1e6
    print(f"{build.output}: {size:.1f} MB in {time.monotonic() - begin:.0f} s")


def debian_tree(build: Build) -> None:
    """Debian's packages, from the mirrors of this machine's apt."""
    shutil.rmtree(build.root, ignore_errors=True)
    build.base.mkdir(parents=True, exist_ok=True)
    packages = listed(IMAGE / "packages")
    options = build.base / "apt.conf"
    options.write_text(output_of("apt-config", "dump", "Acquire") if shutil.which("apt-config") else "")
    build.tool(
        "unshare", "--mount",           # what mmdebstrap mounts goes with it, however it ends
        "env", "INITRD=No",             # the kernel's package shall not make one
        "mmdebstrap", "--mode=root", "--variant=minbase",
        f"--include={','.join(packages)}",
        f"--aptopt={options}",          # the proxies and limits that hold here
        "--dpkgopt=path-exclude=/usr/share/man/*",
        "--dpkgopt=force-unsafe-io",    # a power cut here costs a new build, not a system
        build.suite, build.root, *debian_sources(build.suite),
    )


def python_packages(build: Build) -> None:
    """The pinned wheels, and our own names beside them."""
    library = build.root / "usr/lib/asr"
    shutil.rmtree(library, ignore_errors=True)
    version = next((build.root / "usr/lib").glob("python3.*")).name.removeprefix("python")
    build.tool(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--require-hashes",
        "--only-binary", ":all:", "--python-version", version, "--implementation", "cp",
        "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64",
        "--target", library, "--requirement", IMAGE / "requirements.txt",
    )
    (build.root / "usr/lib/python3/dist-packages/asr.pth").write_text("/usr/lib/asr\n")
    for path, goal in LINKS.items():
        link = build.root / path
        link.unlink(missing_ok=True)
        link.symlink_to(goal)


def prune(build: Build) -> None:
    """Removes what recovery never needs, and the traces of the build machine."""
    for pattern in listed(IMAGE / "prune"):
        for path in list(build.root.glob(pattern)):
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
    (build.root / "etc/machine-id").write_text("")
    (build.root / "etc/hostname").write_text("recovery\n")
    (build.root / "etc/hosts").write_text("127.0.0.1 localhost recovery\n::1 localhost\n")


def unpack_modules(build: Build) -> None:
    """Kernel modules lie uncompressed in a squashfs that is compressed: as small, and quicker to load."""
    modules = build.root / "usr/lib/modules"
    build.tool("find", modules, "-name", "*.ko.xz", "-exec", "xz", "--decompress", "--threads=2", "{}", "+")
    build.tool("depmod", "--basedir", build.root, build.kernel)


def base_bytecode(build: Build) -> None:
    compile_python(build, *sorted(f"/{path.relative_to(build.root)}" for path in build.root.glob("usr/lib/python3*")),
                   "/usr/lib/asr")


def base_squashfs(build: Build) -> None:
    squashfs = build.base / "root.squashfs"
    squashfs.unlink(missing_ok=True)
    order = build.base / "order"
    order.write_text("".join(f"{path} {32000 - n}\n" for n, path in enumerate(read_at_start(build))))
    build.tool(
        "mksquashfs", build.root, squashfs, "-noappend", "-no-progress", "-quiet", "-sort", order,
        "-comp", "zstd", "-Xcompression-level", "15", "-xattrs",
        "-wildcards", "-e", "proc/*", "sys/*", "dev/*", "run/*", "tmp/*", "asr", *BESIDE,
    )


def read_at_start(build: Build) -> list[str]:
    """What the console's start reads, in about that order. It lies together, at the beginning: a CD drive takes a tenth
    of a second for each jump, and what is packed together is unpacked once."""
    libraries = re.findall(r"(/\S+) \(", output_of("chroot", str(build.root), "ldd", *PROGRAMS_AT_START))
    modules = output_of("chroot", str(build.root), "python3", "-c", MODULES_AT_START).split()
    return list(dict.fromkeys(os.path.realpath(f"{build.root}{path}")          # a library's name is mostly a link
                              for path in (*PROGRAMS_AT_START, *libraries, *modules)))


def package_list(build: Build) -> None:
    """Name and version of all that the image is made of: Debian's packages, then Python's."""
    listing = output_of("dpkg-query", f"--admindir={build.root}/var/lib/dpkg", "--show")
    wheels = sorted(path.stem.rsplit("-", 1) for path in (build.root / "usr/lib/asr").glob("*.dist-info"))
    (build.base / "packages.txt").write_text(listing + "".join(f"{name}\t{version}\n" for name, version in wheels))


def program(build: Build) -> None:
    """Our own code, appended to the squashfs that holds all the rest."""
    code = build.root / "asr"
    shutil.rmtree(code, ignore_errors=True)
    for package in ("bootenv", "console"):
        shutil.copytree(HERE / package, code / package, ignore=shutil.ignore_patterns("__pycache__"))
    fonts = code / "bootenv/image/fonts"
    fonts.mkdir()
    for font in (build.root / "usr/share/consolefonts").glob("FullCyrSlav-Terminus*x*.psf.gz"):
        size = font.name.removeprefix("FullCyrSlav-Terminus").removesuffix(".gz")
        (fonts / size).write_bytes(doubled(gzip.decompress(font.read_bytes())))
    compile_python(build, "/asr")
    date(build, code)                   # a checkout's files have the time of the checkout
    squashfs = new_stage(build) / "live/root.squashfs"
    shutil.copyfile(build.base / "root.squashfs", squashfs)
    build.tool(
        "mksquashfs", code, squashfs, "-no-progress", "-quiet", "-no-recovery",
        "-keep-as-directory", "-all-root",
    )


def doubled(font: bytes) -> bytes:
    """A console font of twice the size, in the form PSF2 (psf.h of kbd): setfont doubles once, 4K takes it twice."""
    magic, version, start, flags, count, size, height, width = struct.unpack_from("<8I", font)
    line = size // height                       # bytes
    glyphs = b""
    for at in range(start, start + count * size, line):
        bits = f"{int.from_bytes(font[at:at + line], 'big'):0{8 * line}b}"[:width]
        wide = "".join(2 * bit for bit in bits)
        wide += "0" * (-len(wide) % 8)
        glyphs += 2 * int(wide, 2).to_bytes(len(wide) // 8, "big")
    head = struct.pack("<8I", magic, version, start, flags, count, len(glyphs) // count, 2 * height, 2 * width)
    return head + font[32:start] + glyphs + font[start + count * size:]


def firmware(build: Build) -> None:
    """What the drivers of the image ask for, appended to the squashfs; init tells the kernel where it is."""
    if build.firmware == "none":
        return
    tree = build.cache / "firmware"
    shutil.rmtree(tree, ignore_errors=True)
    copy_firmware(build, sorted(build.root.glob("usr/lib/modules/*/**/*.ko")), tree)
    build.tool("mksquashfs", tree, build.stage / "live/root.squashfs", "-no-progress", "-quiet", "-no-recovery",
               "-keep-as-directory", "-all-root")


def initramfs(build: Build) -> None:
    """busybox, what reaches the medium or the volume that the minimal OS lies on, and the script that finds it."""
    tree = build.cache / "initramfs"
    shutil.rmtree(tree, ignore_errors=True)
    (tree / "bin").mkdir(parents=True)
    shutil.copy(build.root / "usr/bin/busybox", tree / "bin/busybox")
    shutil.copy(IMAGE / "initramfs-init", tree / "init")
    shutil.copy(IMAGE / "inspecting", tree / "inspecting")
    for program in ASSEMBLERS:
        shutil.copy(build.root / program.lstrip("/"), tree / "bin")
        for library in libraries(output_of("chroot", str(build.root), "ldd", program)):
            (tree / library).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(build.root / library, tree / library)
    scripts = build.cache / "initramfs.cpio.zst"
    pack(build, tree, scripts)
    # The kernel unpacks archives that follow one another.
    archives = (module_archive(build, listed(IMAGE / "initramfs-modules")), scripts)
    (build.stage / "live/initrd.img").write_bytes(b"".join(archive.read_bytes() for archive in archives))
    shutil.copy(build.root / f"boot/vmlinuz-{build.kernel}", build.stage / "live/vmlinuz")


def boot_files(build: Build) -> None:
    """GRUB for BIOS and, signed, for UEFI; the medium's id and script."""
    stage = build.stage
    live = stage / "live"
    medium = medium_id(live)
    (live / "id").write_text(f"{medium}\n")
    shutil.copy(IMAGE / "asr", stage / "asr")
    (stage / ".disk").mkdir()
    # Debian's signed GRUB for CDs knows its medium by this file.
    (stage / ".disk/info").write_text(f"Automated System Recovery {medium}\n")
    grub_files(build, medium)
    bios_image(build)
    efi_image(build)


def iso(build: Build) -> None:
    build.output.parent.mkdir(parents=True, exist_ok=True)
    date(build, build.stage)
    part = build.output.with_suffix(".part")
    grub = "boot/grub/i386-pc"
    build.tool(
        "xorriso", "-as", "mkisofs", "-quiet", "-r", "-V", "ASR_RECOVERY", "-o", part,
        "--set_all_file_dates", "set_to_mtime",
        # BIOS, as a CD
        "-b", f"{grub}/eltorito.img", "-no-emul-boot", "-boot-load-size", "4", "-boot-info-table", "--grub2-boot-info",
        # BIOS, as a disk
        "--grub2-mbr", build.root / "usr/lib/grub/i386-pc/boot_hybrid.img", "--protective-msdos-label",
        "-partition_offset", "16", "--mbr-force-bootable",
        # UEFI, as both
        "-append_partition", "2", "0xef", build.cache / "efi.img", "-appended_part_as_gpt",
        "-eltorito-alt-boot", "-e", "--interval:appended_partition_2:all::", "-no-emul-boot",
        build.stage,
    )
    part.rename(build.output)
    packages = build.output.with_suffix(".packages.txt")
    shutil.copyfile(build.base / "packages.txt", packages)
    if build.firmware != "none":
        with packages.open("a") as listing:
            listing.write((firmware_tree(build) / "packages.txt").read_text())
    names = (build.output.name, packages.name)
    (build.output.parent / "SHA256SUMS").write_text(checksums(build.output.parent, *names))


def netboot(build: Build) -> None:
    """A folder for any HTTP or TFTP server: the medium's parts, the network's drivers, and what loads them."""
    assert build.netboot
    live, folder = build.stage / "live", build.netboot
    (folder / "grub").mkdir(parents=True, exist_ok=True)
    for name in PARTS:
        shutil.copyfile(live / name, folder / name)
    drivers = module_archive(build, listed(IMAGE / "netboot-modules"), beside=listed(IMAGE / "initramfs-modules"))
    shutil.copyfile(drivers, folder / "netboot.img")
    medium = (live / "id").read_text().strip()
    for source, goal in (("netboot.ipxe", "boot.ipxe"), ("netboot-grub.cfg", "grub/grub.cfg")):
        (folder / goal).write_text(filled(IMAGE / source, medium, build.append))
    # Secure Boot: the firmware starts shim, which fetches GRUB from beside it.
    shutil.copyfile(build.root / "usr/lib/shim/shimx64.efi.signed", folder / "shimx64.efi")
    shutil.copyfile(build.root / "usr/lib/grub/x86_64-efi-signed/grubnetx64.efi.signed", folder / "grubx64.efi")
    core = "/tmp/core.0"
    build.tool("chroot", build.root, "grub-mkimage", "--format=i386-pc-pxe", "--prefix=(pxe)/grub", f"--output={core}",
               *GRUB_PXE)
    shutil.move(build.root / core.lstrip("/"), folder / "grub.0")
    (folder / "SHA256SUMS").write_text(checksums(folder, *PARTS, "netboot.img"))


# Finished steps of BASE are kept; those of PROGRAM are made in every build.
Verb = Callable[[Build], None]
BASE: tuple[tuple[str, Verb], ...] = (
    ("Debian packages", debian_tree),
    ("Python packages", python_packages),
    ("Pruning", prune),
    ("Kernel modules", unpack_modules),
    ("Bytecode", base_bytecode),
    ("Package list", package_list),
    ("Squashfs", base_squashfs),
)
PROGRAM: tuple[tuple[str, Verb], ...] = (
    ("Our code", program),
    ("Firmware", firmware),
    ("Initramfs", initramfs),
    ("Boot loaders", boot_files),
    ("ISO", iso),
)


# What is installed on healthy machines

PYTHONS = ("3.11", "3.12", "3.13", "3.14")     # that the .deb may meet; some packages have a part for each
# What the program runs on any machine; what a machine's storage needs beside them, it has.
DEPENDS = "python3 (>= 3.11), util-linux, fdisk, mtools, dosfstools, e2fsprogs"
CONTROL = """\
Package: asr-recovery
Version: {version}
Architecture: amd64
Maintainer: Automated System Recovery <asr@localhost>
Section: admin
Priority: optional
Depends: {depends}
Suggests: sudo, zstd, restic, nfs-common, cifs-utils, lvm2, mdadm, cryptsetup-bin, xfsprogs, btrfs-progs,
 qemu-system-x86
Description: Automated System Recovery
 Prepares this computer for its recovery: a backup, and an ASR disk that belongs to it. After a disaster, the
 recovery medium makes the disks as they were and restores the files.
"""
COMMAND = """\
#!/usr/bin/python3 -I
import sys

sys.path.insert(0, "/usr/lib/asr")
from console.__main__ import main

sys.exit(main())
"""
# apt calls it after each of its runs; it says something if a kernel, a boot loader or storage tools have changed.
APT_HOOK = """\
DPkg::Post-Invoke { "test ! -x /usr/bin/asr || /usr/bin/asr check --drift --packages --remind || true"; };
"""
MAINTAINER = {
    "postinst": """\
#!/bin/sh
set -e
if [ "$1" = configure ] && command -v systemctl >/dev/null; then
    systemctl enable --quiet asr-drift.timer || true
    if [ -d /run/systemd/system ]; then systemctl daemon-reload; systemctl start asr-drift.timer; fi
fi
""",
    "prerm": """\
#!/bin/sh
set -e
if [ "$1" = remove ] && command -v systemctl >/dev/null; then
    /usr/bin/asr schedule remove --all || true
    if [ -d /run/systemd/system ]; then systemctl stop asr-drift.timer || true; fi
    systemctl disable --quiet asr-drift.timer || true
    rm -f /run/motd.d/50-asr
fi
find /usr/lib/asr -name __pycache__ -prune -exec rm -rf {} +
""",
    "postrm": """\
#!/bin/sh
set -e
if [ -d /run/systemd/system ]; then systemctl daemon-reload; fi
if [ "$1" = purge ]; then rm -rf /var/lib/asr; fi
""",
}


def version() -> str:
    return tomllib.loads((HERE / "pyproject.toml").read_text())["project"]["version"]


def wheel(dist: Path) -> Path:
    """The Python package, for any distribution."""
    run_or_fail(sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", dist, HERE)
    return dist / f"asr_recovery-{version()}-py3-none-any.whl"


def deb(dist: Path, cache: Path) -> Path:
    """A package for Debian and Ubuntu, with the pinned Python packages in it: theirs are too old."""
    from bootenv.schedule import drift_units
    from console.reference import write

    tree = cache / "deb"
    shutil.rmtree(tree, ignore_errors=True)
    library = tree / "usr/lib/asr"
    library.mkdir(parents=True)
    for python in PYTHONS:
        other = cache / f"deb-python-{python}"
        shutil.rmtree(other, ignore_errors=True)
        pip_install(python, library if python == PYTHONS[0] else other)
        for part in other.rglob("*.so"):
            shutil.copy(part, library / part.relative_to(other))
        shutil.rmtree(other, ignore_errors=True)
    for ours in ("bootenv", "console"):
        shutil.copytree(HERE / ours, library / ours, ignore=shutil.ignore_patterns("__pycache__"))
    write(tree / "usr")
    files = {
        "usr/bin/asr": COMMAND, "etc/apt/apt.conf.d/90asr": APT_HOOK, "DEBIAN/conffiles": "/etc/apt/apt.conf.d/90asr\n",
        "DEBIAN/control": CONTROL.format(version=version(), depends=DEPENDS),
        **{f"usr/lib/systemd/system/{name}": text for name, text in drift_units("/usr/bin/asr").items()},
        **{f"DEBIAN/{name}": text for name, text in MAINTAINER.items()},
    }
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    # Whatever the umask here is.
    for path in (tree, *tree.rglob("*")):
        runs = path.is_dir() or path == tree / "usr/bin/asr" or path.name in MAINTAINER
        path.chmod(0o755 if runs or os.access(path, os.X_OK) else 0o644)
    package = dist / f"asr-recovery_{version()}_amd64.deb"
    dist.mkdir(parents=True, exist_ok=True)
    run_or_fail("dpkg-deb", "--build", "--root-owner-group", "-Zxz", tree, package)
    shutil.rmtree(tree)
    return package


def pip_install(python: str, target: Path) -> None:
    """The pinned packages, as they are for a version of Python on amd64."""
    run_or_fail(
        sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-deps", "--require-hashes",
        "--only-binary", ":all:", "--python-version", python, "--implementation", "cp",
        "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux2014_x86_64",
        "--target", target, "--requirement", IMAGE / "requirements.txt")


# What the steps are made of

def listed(path: Path) -> list[str]:
    """The lines of a list, without comments."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return [line for line in lines if line]


def debian_sources(suite: str) -> list[str]:
    """apt source lines for the suite and its security updates, from the mirrors that this machine uses."""
    archive = apt_mirror("Debian") or "http://deb.debian.org/debian"
    security = apt_mirror("Debian-Security") or "http://deb.debian.org/debian-security"
    sources = [f"deb {archive} {suite} main"]
    if suite not in ("sid", "unstable", "testing"):
        sources += [f"deb {archive} {suite}-updates main", f"deb {security} {suite}-security main"]
    return sources


def apt_mirror(label: str) -> str:
    """The address of the first source of this machine's apt whose Release file carries this label, or nothing."""
    if not shutil.which("apt-get"):
        return ""
    found = output_of("apt-get", "indextargets", "--format", "$(LABEL) $(REPO_URI)", "Created-By: Packages")
    pairs = (line.split(maxsplit=1) for line in found.splitlines())
    return next((pair[1].rstrip("/") for pair in pairs if pair[0] == label), "")


def compile_python(build: Build, *places: str) -> None:
    """Bytecode that is believed without a look at its source: without any, the console starts five times slower."""
    build.tool("chroot", build.root, "python3", "-m", "compileall", "-q", "-f", "-j", "0",
               "--invalidation-mode", "unchecked-hash", *places)


def new_stage(build: Build) -> Path:
    shutil.rmtree(build.stage, ignore_errors=True)
    (build.stage / "live").mkdir(parents=True)
    return build.stage


def module_archive(build: Build, wanted: list[str], beside: Sequence[str] = ()) -> Path:
    """The wanted kernel modules, what they depend on and their firmware, as one cpio archive; kept until that changes.

    `beside`: those of an archive that is unpacked before it, and which are not in it again.
    """
    key = repr((wanted, beside, build.firmware))
    archive = build.base / f"modules-{hashlib.sha256(key.encode()).hexdigest()[:16]}.cpio.zst"
    if archive.exists():
        return archive
    tree = build.cache / "modules"
    shutil.rmtree(tree, ignore_errors=True)
    source = build.root / "usr/lib/modules" / build.kernel
    goal = tree / "lib/modules" / build.kernel
    there = module_closure(source, beside)
    modules = [path for path in module_closure(source, wanted) if path not in there]
    for path in (*modules, *there):
        (goal / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(source / path, goal / path)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(source / name, goal / name)
    build.tool("depmod", "--basedir", tree, build.kernel)       # of all of them: it takes the earlier one's place
    for path in there:
        (goal / path).unlink()
    if beside:
        shutil.copy(IMAGE / "lease", tree / "lease")
    if build.firmware != "none":
        copy_firmware(build, [source / path for path in modules], tree / "lib/firmware")
    pack(build, tree, archive)
    return archive


def firmware_tree(build: Build) -> Path:
    """Debian's packages of firmware, unpacked; their names and versions are in packages.txt."""
    packages = FIRMWARE[build.firmware]
    tree = build.base / f"firmware-{hashlib.sha256(' '.join(packages).encode()).hexdigest()[:16]}"
    if not (tree / "packages.txt").exists():
        shutil.rmtree(tree, ignore_errors=True)
        sources = [f"{line} non-free-firmware" for line in debian_sources(build.suite)]
        build.tool("mmdebstrap", "--mode=root", "--variant=extract", f"--include={','.join(packages)}",
                   f"--aptopt={build.base / 'apt.conf'}", build.suite, tree, *sources)
        # Unpacked and not installed, they are in no list; a changelog begins with: source (version) suite.
        (tree / "packages.txt").write_text("".join(
            f"{path.parent.name}\t{gzip.decompress(path.read_bytes()).split()[1].decode().strip('()')}\n"
            for path in sorted(tree.glob("usr/share/doc/firmware-*/changelog.Debian.gz"))))
    return tree


def copy_firmware(build: Build, modules: list[Path], goal: Path) -> None:
    """The files that these modules may ask the kernel for, by the names that they ask for."""
    source = firmware_tree(build) / "usr/lib/firmware"
    goal.mkdir(parents=True)
    names = output_of("modinfo", "--field=firmware", *map(str, modules)).split()
    for name in sorted(set(names)):
        for path in (name, f"{name}.xz", f"{name}.zst"):
            if (source / path).is_file():
                (goal / path).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(source / path, goal / path)


def pack(build: Build, tree: Path, archive: Path) -> None:
    date(build, tree)
    part = archive.with_suffix(".part")
    build.tool(
        "sh", "-c", 'cd "$1" && find . -print0 | sort -z'
        ' | cpio --null --create --quiet --format=newc --owner=0:0 --reproducible | zstd -q -15 -T0 -f -o "$2"',
        "sh", tree, part,
    )
    part.rename(archive)


def date(build: Build, tree: Path) -> None:
    """Gives all of a tree one time, so that the same files make the same bytes."""
    build.tool("find", tree, "-exec", "touch", "--no-dereference", f"--date=@{epoch()}", "{}", "+")


def libraries(listing: str) -> list[str]:
    """The files that ldd(1) lists, as paths below the root."""
    words = (word for line in listing.splitlines() for word in line.split())
    return sorted({word.lstrip("/") for word in words if word.startswith("/") and not word.endswith(":")})


def module_closure(modules: Path, wanted: Sequence[str]) -> list[str]:
    """Paths below `modules` of the wanted modules and what they depend on; initramfs-modules says how one is wanted."""
    needs = {}
    for line in (modules / "modules.dep").read_text().splitlines():
        path, _, others = line.partition(":")
        needs[path] = others.split()
    chosen: set[str] = set()
    for want in sorted(wanted, key=lambda want: want.startswith("-")):
        found = {path for path in needs if is_wanted(path, want)}
        if not found and want.replace("-", "_") not in builtin_modules(modules):
            raise BuildFailed(f"A list of modules in bootenv/image names {want}, which this kernel does not have.")
        chosen = chosen - found if want.startswith("-") else chosen | found
    return sorted(chosen.union(*(needs[path] for path in chosen)))


def is_wanted(path: str, want: str) -> bool:
    want = want.removeprefix("-")
    if want.endswith("/"):
        return path.startswith(f"kernel/{want}")
    return Path(path).stem.replace("-", "_") == want.replace("-", "_")


def builtin_modules(modules: Path) -> set[str]:
    return {Path(line).stem.replace("-", "_") for line in (modules / "modules.builtin").read_text().splitlines()}


def grub_files(build: Build, medium: str) -> None:
    """The menu, what it reads, and the modules of both platforms: signed GRUB has its own built in."""
    grub = build.stage / "boot/grub"
    grub.mkdir(parents=True)
    (grub / "grub.cfg").write_text(filled(IMAGE / "grub.cfg", medium, build.append))
    # A GRUB environment block is 1024 bytes, filled up with #.
    block = b"# GRUB Environment Block\nescape=\x1b\nenter=\r\n"
    (grub / "keys.env").write_bytes(block.ljust(1024, b"#"))
    for platform in ("i386-pc", "x86_64-efi"):
        (grub / platform).mkdir()
        for path in (build.root / "usr/lib/grub" / platform).iterdir():
            if path.suffix in (".mod", ".lst"):
                shutil.copy(path, grub / platform)


def filled(template: Path, medium: str, append: str) -> str:
    """A boot loader's script with the medium's id and what else the kernel is told."""
    return template.read_text().replace("@ID@", medium).replace("@APPEND@", append)


def medium_id(folder: Path) -> str:
    """asr.id=: of what the medium holds, so that the initramfs knows whether it has all of it as it was."""
    return hashlib.sha256(checksums(folder, *PARTS).encode()).hexdigest()[:16]


def checksums(folder: Path, *names: str) -> str:
    """As sha256sum(1) writes them."""
    lines = []
    for name in names:
        with (folder / name).open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n")
    return "".join(lines)


def bios_image(build: Build) -> None:
    source = build.root / "usr/lib/grub/i386-pc"
    core = "/tmp/core.img"
    build.tool("chroot", build.root, "grub-mkimage", "--format=i386-pc", "--prefix=/boot/grub", f"--output={core}",
               *GRUB_CORE)
    made = build.root / core.lstrip("/")
    image = build.stage / "boot/grub/i386-pc/eltorito.img"
    image.write_bytes((source / "cdboot.img").read_bytes() + made.read_bytes())
    made.unlink()


def efi_image(build: Build) -> None:
    """The FAT volume that UEFI firmware starts from: Debian's shim, and its signed GRUB for CDs."""
    image = build.cache / "efi.img"
    image.unlink(missing_ok=True)
    build.tool("mkfs.vfat", "-C", "-n", "ASR_EFI", "-i", "41535245", "--invariant", image, str(8 * 1024))
    build.tool("mmd", "-i", image, "::EFI", "::EFI/BOOT", "::live")
    # By this grub.cfg knows that it is no hard disk's volume.
    build.tool("mcopy", "-i", image, build.stage / "live/id", "::live/id")
    for source, name in {
        "usr/lib/shim/shimx64.efi.signed": "BOOTX64.EFI",
        "usr/lib/shim/mmx64.efi.signed": "mmx64.efi",
        "usr/lib/grub/x86_64-efi-signed/gcdx64.efi.signed": "grubx64.efi",
    }.items():
        build.tool("mcopy", "-i", image, build.root / source, f"::EFI/BOOT/{name}")


def remove_other_bases(build: Build) -> None:
    for path in build.cache.glob("base-*"):
        if path != build.base:
            shutil.rmtree(path)


@cache
def epoch() -> int:
    """The time that files of this build carry: SOURCE_DATE_EPOCH (seconds), or when it began."""
    return int(os.environ.get("SOURCE_DATE_EPOCH") or time.time())


# Running and showing

def output_of(*argv: str) -> str:
    return subprocess.run(argv, check=True, capture_output=True, text=True).stdout


def run_or_fail(*argv: str | Path) -> None:
    if subprocess.run([str(word) for word in argv]).returncode:
        raise BuildFailed(f"{' '.join(map(str, argv[:4]))} failed.")


@contextmanager
def progress(total: int) -> Iterator[Callable[[str, Callable[[], None] | None], None]]:
    """Shows the steps as they are done: a live display on a terminal, else a line each."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
    console = Console()
    columns = (SpinnerColumn(), TextColumn("{task.description:30}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=True) as display:
        task = display.add_task("", total=total)

        def step(title: str, work: Callable[[], None] | None) -> None:
            display.update(task, description=title)
            begin = time.monotonic()
            if work:
                work()
            console.print(f"{title:40}{time.monotonic() - begin:6.1f} s" if work else title, highlight=False)
            display.advance(task)

        yield step


if __name__ == "__main__":
    sys.exit(main())
