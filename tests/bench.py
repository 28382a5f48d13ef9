"""How fast is the backup engine? `python -m tests.bench backup`, as root; not a test, for it has no verdict.

Installs the peers from Debian, makes the data sets, and runs each peer in turns with ours on the same tree, so that a
noisy machine is as unkind to one as to the other. Restores go to a fresh ext4; a `sync` is in all times. Printed are
the medians, and as ratio the median of (peer's time / ours of the same pair): above 1, ours is faster. --sets, --peers
and --rounds make it shorter, --scale makes the data sets smaller.

To be run with the distribution's python3, which is what the product runs with: one that was built without the
compiler's profile takes half as long again for each line.
"""

import argparse
import compileall
import mmap
import os
import random
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

PACKAGES = ("zstd", "restic", "borgbackup", "fsarchiver", "squashfs-tools", "mmdebstrap")
# What makes a system of some 150,000 entries and 4 GB out of Debian's standard one: a server that also builds.
SYSTEM = ("linux-image-amd64", "linux-headers-amd64", "build-essential", "python3-all-dev", "gdb", "vim", "perl-doc",
          "openssh-server", "nginx", "postgresql", "mariadb-server", "git", "cmake", "golang-go", "nodejs", "npm",
          "texlive-latex-base", "emacs-nox", "default-jdk-headless", "samba", "qemu-system-x86", "libboost-all-dev",
          "locales-all")
_SHARE = 2**28                 # bytes of memory that are handed out at a time
_POPULATE_WRITE = 23           # MADV_POPULATE_WRITE, which mmap doesn't name
KEPT = "--xattrs --xattrs-include='*' --acls"
OURS = f"PYTHONPATH={os.pathsep.join(p or os.getcwd() for p in sys.path)} {sys.executable} -m console"


@dataclass(frozen=True)
class Peer:
    """Shell commands; $TREE, $FILE and $TARGET are set, the two last don't exist or are empty."""

    backup: str
    restore: str
    verify: str = ""


PEERS = {
    "asr": Peer(f"{OURS} pack --level 1 $TREE $FILE",
                f"{OURS} extract $FILE --all --to $TARGET",
                f"{OURS} verify $FILE"),
    "tar+zstd": Peer("tar -S -C $TREE -cf - . | zstd -1 -T0 -q -o $FILE",
                     "zstd -dqc $FILE | tar -C $TARGET -xpf -", "zstd -dqc $FILE > /dev/null"),
    "tar+zstd, keeping what we keep": Peer(
        f"tar -S {KEPT} -C $TREE -cf - . | zstd -1 -T0 -q -o $FILE",
        f"zstd -dqc $FILE | tar -C $TARGET {KEPT} -xpf -"),
    "tar+gzip": Peer("tar -S -C $TREE -czf $FILE .", "tar -C $TARGET -xzpf $FILE"),
    "restic": Peer("export RESTIC_PASSWORD=x; restic -q --no-cache -r $FILE init; cd $TREE; "
                   "restic -q --no-cache -r $FILE backup .",
                   "RESTIC_PASSWORD=x restic -q --no-cache -r $FILE restore latest --target $TARGET"),
    "borg": Peer("borg init -e none $FILE; cd $TREE; borg create -C zstd,1 $FILE::a .",
                 "cd $TARGET; borg extract $FILE::a"),
    "fsarchiver": Peer("fsarchiver savedir -Z 1 -j $(nproc) $FILE.fsa $TREE", "fsarchiver restdir $FILE.fsa $TARGET"),
    "squashfs": Peer("mksquashfs $TREE $FILE -comp zstd -Xcompression-level 1 -quiet -no-progress",
                     "unsquashfs -q -n -f -d $TARGET $FILE"),
    "cp -a": Peer("", "cp -a $TREE/. $TARGET/"),
}


@dataclass(frozen=True)
class Time:
    seconds: float
    cpu: float


def run(command: str, **names: Path) -> Time:
    """Run a shell command, and sync what it wrote."""
    environment = os.environ | {name: str(path) for name, path in names.items()} | {
        "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes", "BORG_RELOCATED_REPO_ACCESS_IS_OK": "yes"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    started = time.monotonic()
    done = subprocess.run(("sh", "-c", f"({command}); status=$?; sync -f $PLACE; exit $status"), env=environment,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{command}: {done.stderr[-500:]}")
    return Time(seconds, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)


# Data sets

def make_sets(place: Path, names: list[str], scale: float) -> dict[str, Path]:
    """Those that are not there yet."""
    makers = {"system": system, "small": lambda at: many_small(at, int(200_000 * scale)),
              "large": lambda at: few_large(at, int(2 * 2**30 * scale))}
    place.mkdir(parents=True, exist_ok=True)
    for name in names:
        if not (place / name).exists():
            makers[name](place / name)
    return {name: place / name for name in names}


def system(at: Path) -> None:
    """Debian trixie: real sizes, names and contents."""
    subprocess.run(("mmdebstrap", "--mode=root", "--quiet", "--variant=standard", f"--include={','.join(SYSTEM)}",
                    "trixie", at), check=True)


def many_small(at: Path, count: int) -> None:
    """Files of 2 to 8 KB of program text, a hundred in a directory."""
    seeded = random.Random(1)
    text = b"".join(p.read_bytes() for p in sorted(Path(os.__file__).parent.glob("*.py")))
    for number in range(count):
        directory = at / f"{number // 10_000:03}" / f"{number // 100 % 100:02}"
        if number % 100 == 0:
            directory.mkdir(parents=True)
        size = seeded.randrange(2048, 8192)
        start = seeded.randrange(len(text) - size)
        (directory / f"{number:07}").write_bytes(text[start:start + size])


def few_large(at: Path, size: int) -> None:
    """Two large files, half of them compressible, and one with ten times as many bytes, nearly all a hole."""
    at.mkdir()
    seeded = random.Random(2)
    block = seeded.randbytes(2**20) + b"the same again " * 70_000
    for name in ("one", "two"):
        with open(at / name, "wb") as file:
            while file.tell() < size:
                file.write(block)
    with open(at / "sparse", "wb") as file:
        file.truncate(10 * size)
        for piece in range(64):
            file.seek(piece * 10 * size // 64)
            file.write(seeded.randbytes(size // 128))


# Measuring

@contextmanager
def fresh_ext4(place: Path, size: int) -> Iterator[Path]:
    """On a loop device that goes past the page cache, as a disk does: else each byte would be copied there twice."""
    image, target = place / "ext4", place / "target"
    target.mkdir(exist_ok=True)
    with open(image, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, size)
    subprocess.run(("mkfs.ext4", "-q", "-F", image), check=True)
    device = subprocess.run(("losetup", "--direct-io=on", "--find", "--show", image), check=True, capture_output=True,
                            text=True).stdout.strip()
    try:
        subprocess.run(("mount", device, target), check=True)
        yield target
    finally:
        subprocess.run(("umount", target), check=True)
        subprocess.run(("losetup", "--detach", device), check=True)
        image.unlink()


class Ballast:
    """All memory that is free, held but for a rest, and handed out when something else takes that.

    A virtual machine may give its free pages back to its host, at any moment; then the first use of each costs many
    times what a program does with it, most of all where two processes come upon them at once.
    """

    def __init__(self) -> None:
        self._held: list[mmap.mmap] = []
        Thread(target=self._hand_out, daemon=True).start()

    def take(self) -> None:
        while _free() > 5 * _SHARE:
            share = mmap.mmap(-1, _SHARE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            share.madvise(mmap.MADV_HUGEPAGE)  # handing out single pages would take a core's time from who is measured
            share.madvise(_POPULATE_WRITE)
            self._held.append(share)

    def _hand_out(self) -> None:
        while True:
            time.sleep(0.01)
            if _free() < 4 * _SHARE and self._held:
                self._held.pop().close()


def _free() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def measure(peer: Peer, tree: Path, place: Path, size: int, cold: bool, ballast: Ballast) -> dict[str, Time]:
    """backup, restore and verify, as far as the peer can; size: bytes of the tree."""
    output = place / "out"
    remove(output)
    output.mkdir()
    file = output / "backup"
    times = {}
    os.sync()                                  # what was before is nobody's to wait for
    if cold:
        drop_caches()
    ballast.take()
    if peer.backup:
        times["backup"] = run(peer.backup, TREE=tree, FILE=file, PLACE=output)
    if cold:
        return times
    warm(output)                               # we drop what we wrote from memory, the peers don't
    if peer.verify:
        times["verify"] = run(peer.verify, FILE=file, PLACE=output)
    with fresh_ext4(place, 2 * size + 2**30) as target:
        warm(output)
        ballast.take()
        times["restore"] = run(peer.restore, TREE=tree, FILE=file, TARGET=target, PLACE=target)
    remove(output)
    return times


def warm(output: Path) -> None:
    for path in output.rglob("*"):
        if path.is_file():
            subprocess.run(("cat", path), stdout=subprocess.DEVNULL, check=True)


def remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


def drop_caches() -> None:
    Path("/proc/sys/vm/drop_caches").write_text("3\n")


def backup(options: argparse.Namespace) -> None:
    missing = [p for p in PACKAGES if not (Path("/var/lib/dpkg/info") / f"{p}.list").exists()]
    if missing:
        subprocess.run(("apt-get", "install", "-y", "-q", *missing), check=True, stdout=subprocess.DEVNULL)
    for package in ("bootenv", "console"):     # as an installed program's are: else each start might compile them
        compileall.compile_dir(Path(__file__).parents[1] / package, quiet=1)
    place = Path(tempfile.mkdtemp(prefix="asr-bench-", dir=options.place))
    try:
        sets = make_sets(Path(options.trees or place), options.sets, options.scale)
        ballast = Ballast()
        for name, tree in sets.items():
            bench_set(name, tree, place, ballast, options)
    finally:
        remove(place)


def bench_set(name: str, tree: Path, place: Path, ballast: Ballast, options: argparse.Namespace) -> None:
    size = sum(p.lstat().st_blocks * 512 for p in tree.rglob("*"))
    files = sum(1 for _ in tree.rglob("*"))
    cold = ", cold cache" if options.cold else ""
    print(f"\n{name}: {files:,} entries, {size / 1e9:.2f} GB{cold}; medians of {options.rounds}; "
          f"{os.cpu_count()} cores, {time.strftime('%Y-%m-%d')}\n")
    print("| | backup s | CPU s | ratio | restore s | CPU s | ratio | verify s | ratio |\n|" + "---|" * 9)
    for peer in options.peers:
        if options.cold and not PEERS[peer].backup:
            continue
        pairs = []
        for turn in range(options.rounds):
            names = ("asr", peer) if turn % 2 else (peer, "asr")
            times = {name: measure(PEERS[name], tree, place, size, options.cold, ballast) for name in names}
            pairs.append((times["asr"], times[peer]))
        print("| asr, in turns with |" + row([ours for ours, _ in pairs], None))
        print(f"| {peer} |" + row([theirs for _, theirs in pairs], [ours for ours, _ in pairs]), flush=True)


def row(times: list[dict[str, Time]], ours: list[dict[str, Time]] | None) -> str:
    cells = []
    for kind in ("backup", "restore", "verify"):
        if kind not in times[0]:
            cells += ["", "", ""]
            continue
        cells += [f"{statistics.median(t[kind].seconds for t in times):.1f}",
                  f"{statistics.median(t[kind].cpu for t in times):.1f}"]
        ratios = [t[kind].seconds / o[kind].seconds for t, o in zip(times, ours or (), strict=False)]
        cells.append(f"**{statistics.median(ratios):.2f}**" if ratios else "")
    del cells[7]                               # verify's CPU
    return " " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("backup",))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--sets", nargs="+", default=["system", "small", "large"])
    parser.add_argument("--peers", nargs="+", default=[name for name in PEERS if name != "asr"])
    parser.add_argument("--trees", help="where the data sets are made and stay, for the next time; in /dev/shm their "
                                        "cache is surely hot")
    parser.add_argument("--place", default="/var/tmp", help="where the backups and the file system to restore to lie")
    parser.add_argument("--cold", action="store_true", help="drop the caches before each backup; nothing is restored")
    options = parser.parse_args()
    backup(options)


if __name__ == "__main__":
    main()
