"""What test_disks runs inside user-mode Linux: a machine's disks are made, recorded, lost and made again on others.

    python -m tests.on_disks make SCENARIO FOLDER       on the first disks, with this distribution's tools
    python -m tests.on_disks recover SCENARIO FOLDER    on the others, which start dirty: with the medium's tools
    python -m tests.on_disks record SCENARIO FOLDER     only what tests/record.py makes of it
"""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import bootenv.probe
from bootenv.check import check, part_on, recoverable_part
from bootenv.events import Progress
from bootenv.execute import execute
from bootenv.layout import Layout
from bootenv.match import match
from bootenv.plan import plan
from bootenv.probe import mount_table, probe
from bootenv.sif import AsrSet, new_id, now, read_sif, write_sif
from bootenv.target import assembled, make_swap_files, mounted
from tests.record import instead, recording, save
from tests.scenarios import PASSPHRASE, SCENARIOS

MACHINE = Path("/machine")


def make(name: str, folder: Path) -> None:
    """The machine, on the first disks; before that the same kinds with other ids, on the others."""
    count = SCENARIOS[name].disks
    MACHINE.mkdir()
    os.environ["LVM_SUPPRESS_FD_WARNINGS"] = "1"
    run_script(name, disks(count, count), "dirty")
    stop_using()
    run_script(name, disks(0, count), "own")
    settle()
    with instead(bootenv.probe, "ROOT", MACHINE), recording() as commands:
        everything = probe()
        findings = check(everything, mount_table())
    save(commands, folder / name, MACHINE)
    layout = recoverable_part(part_on(everything, {d.id for d in everything.disks if d.path in disks(0, count)}))
    (folder / "asr.sif").write_bytes(write_sif(AsrSet(id=new_id(), created=now(), host="uml", layout=layout)))
    json.dump([[f.device, f.what, f.verdict, f.why] for f in findings], (folder / "check.json").open("w"))
    stop_using()


def record(name: str, folder: Path) -> None:
    """The machine by itself, for tests/machines."""
    MACHINE.mkdir()
    run_script(name, disks(0, SCENARIOS[name].disks), "vg")
    (MACHINE / "etc").mkdir(exist_ok=True)
    settle()
    with instead(bootenv.probe, "ROOT", MACHINE), recording() as commands:
        check(probe(), mount_table())
    save(commands, folder, MACHINE)


def look(name: str, folder: Path) -> None:
    """The machine in the words of the field's tools, before it is lost."""
    set = read_sif((folder / "asr.sif").read_bytes())
    with assembled(set.layout, secrets(set.layout)):
        settle()
        (folder / "before.json").write_text(json.dumps(what_others_see(set.layout)))
    # Its disks are lost; what was dirty before stays, and runs.
    for disk in reversed(set.layout.disks):
        for partition in set.layout.partitions_of(disk.id):
            shell("wipefs", "--all", "--force", set.layout.path(partition.id), check=False)
        shell("wipefs", "--all", "--force", disk.path)
    shell("btrfs", "device", "scan", "--forget")           # this kernel has seen them; the next one would not have


def recover(name: str, folder: Path) -> None:
    count = SCENARIOS[name].disks
    set = read_sif((folder / "asr.sif").read_bytes())
    wake_up(disks(count, count))
    settle()
    present = probe()
    found = match(set.layout, present, dict.fromkeys(disks(0, count), "it is the lost one"))
    keys = secrets(set.layout)
    steps = plan(found.layout, present)
    for _ in execute(steps, [disk.path for disk in found.layout.disks], keys):
        pass
    with mounted(found.layout, keys) as target:
        assert [*make_swap_files(found.layout, target)] == [
            Progress("Making swap files", item=swap.path) for swap in found.layout.swap_files]
        for swap in found.layout.swap_files:
            shell("swapon", str(target / swap.path.lstrip("/")))
        for file in (folder / name / "etc").glob("*"):
            (target / "etc").mkdir(exist_ok=True)
            shutil.copyfile(file, target / "etc" / file.name)
        settle()
        with instead(bootenv.probe, "ROOT", target):
            after = probe()
        ours = {d.id for d in after.disks if d.path in disks(count, count)}
        after = recoverable_part(part_on(after, ours))
        shell("swapoff", "--all")
    with assembled(found.layout, keys):
        settle()
        seen = what_others_see(after)
    json.dump({
        "consent": any(choice.consent for choice in found.choices),
        "before": records(set.layout),
        # Without a table or serial number a disk has no name but the kernel's.
        "after": records(after, dict(zip(disks(count, count), disks(0, count), strict=True))),
        "seen": [json.loads((folder / "before.json").read_text()), seen],
        "left": shell("lsblk", "--list", "--noheadings", "--output", "TYPE", *disks(count, count)).split(),
    }, (folder / "outcome.json").open("w"))


def disks(first: int, count: int) -> list[str]:
    return [f"/dev/ubd{'abcdefgh'[first + n]}" for n in range(count)]


def run_script(name: str, paths: list[str], word: str) -> None:
    names = dict(zip("ABCD", paths, strict=False))
    # udev reads a new table once more, and its partitions are gone meanwhile.
    script = 'sfdisk() { command sfdisk "$@"; udevadm settle; }\n' + SCENARIOS[name].script
    shell("bash", "-e", "-c", script, env={**names, "N": f"{word}{len(name)}", "M": str(MACHINE)})


def stop_using() -> None:
    """Takes apart all that runs."""
    shell("bash", "-c", f"""
swapoff -a; umount -R {MACHINE}; vgchange -q -an
for m in $(dmsetup ls --target crypt | cut -f1); do cryptsetup close "$m"; done
vgchange -q -an
for m in /dev/md*; do [ -b $m ] && mdadm --stop $m; done
true""", check=False)
    settle()


def wake_up(paths: list[str]) -> None:
    """What a distribution's udev would have done with the disks that recovery gets."""
    shell("mdadm", "--assemble", "--scan", "--run", check=False)
    settle()
    for _ in range(2):                         # containers in volumes, and volumes in containers
        for path in shell("lsblk", "--list", "--noheadings", "--paths", "--output", "PATH", *paths).split():
            if shell("blkid", "-p", "-s", "TYPE", "-o", "value", path, check=False).strip() == "crypto_LUKS":
                shell("cryptsetup", "open", "--key-file", "-", path, f"old-{Path(path).name}", stdin=PASSPHRASE,
                      check=False)
        shell("vgchange", "-ay", check=False)


def secrets(layout: Layout) -> dict[str, bytes]:
    return {container.id: PASSPHRASE.encode() for container in layout.containers}


def records(layout: Layout, names: Mapping[str, str] | None = None) -> dict[str, object]:
    """Each record as text, with other `names` for device nodes, which belong to the hardware."""
    def text(record: object) -> str:
        words = repr(record)
        for old, new in (names or {}).items():
            words = words.replace(Path(old).name, Path(new).name)
        return words

    # Of two equal disks, either may have taken the other's place.
    anywhere = replace(layout, disks=tuple(replace(disk, path="") for disk in layout.disks))
    return {name: sorted(text(record) for record in value) for name, value in vars(anywhere).items()}


# Lines that tell of one making or of use, in the tools' output.
_OWN = re.compile(
    r"Filesystem created|Next check after|Last write time|Last checked|Lifetime writes|Directory Hash Seed|Checksum|"
    r"Last mounted on|Last mount time|Mount count|Journal sequence|Journal start|Free (blocks|inodes)|First orphan|"
    r"Journal (checksum|features)|FAT Length|entry position|Filesystem state|Overhead clusters|Inode blocks|"
    r"^/dev/\S+ ?:|meta-data=|"
    r"^(csum|bytenr|generation|root|chunk_root|log_root|cache_generation|uuid_tree_generation|total_bytes|bytes_used|"
    r"dev_item\.(uuid|bytes_used|devid|generation)|sys_array_size|chunk_root_generation|root_level|compat_ro_flags|"
    r"superblock|incompat_flags|chunk_root_level)\b|"
    r"Creation Time|Update Time|State :|Resync Status|Rebuild Status|Events|Device UUID|Super Offset|Unused Space|"
    r"Bad Block Log|Layout : (-unknown-|original)|Device Role|Number|/dev/ubd|Internal Bitmap|Consistency Policy|"
    r"^\s*(Salt|Digest|MK digest|MK salt|[0-9a-f]{2} [0-9a-f]{2} )|Iterations|Epoch|MK iterations")


def what_others_see(layout: Layout) -> dict[str, list[str]]:
    """Each device in the words of the field's tools, by its id."""
    seen: dict[str, list[str]] = {}
    names = {layout.path(device.id): f"<{device.id}>" for device in layout.devices}

    def tool(*argv: str) -> Iterator[str]:
        for line in shell(*argv, check=False).splitlines():
            if not _OWN.search(line):
                for path in sorted(names, key=len, reverse=True):
                    line = line.replace(path, names[path])
                yield " ".join(line.split())

    for disk in layout.tables:
        seen[f"table {disk.label_id}"] = [*tool("sfdisk", "--dump", layout.path(disk.id))]
    for filesystem in layout.filesystems:
        path = layout.path(filesystem.device)
        argv = {"ext2": ("dumpe2fs", "-h"), "ext3": ("dumpe2fs", "-h"), "ext4": ("dumpe2fs", "-h"),
                "xfs": ("xfs_db", "-r", "-c", "info"), "vfat": ("fsck.fat", "-n", "-v"), "exfat": ("dump.exfat",),
                "btrfs": ("btrfs", "inspect-internal", "dump-super"), "f2fs": ("dump.f2fs", "-d", "1"),
                "ntfs": ("ntfsinfo", "--mft", "--force")}.get(filesystem.type)
        tags = ("-s", "TYPE", "-s", "UUID", "-s", "LABEL", "-s", "BLOCK_SIZE")
        seen[f"file system {filesystem.id}"] = [*tool("blkid", "-p", *tags, "-o", "export", path)]
        if argv and filesystem.type not in ("f2fs", "ntfs"):
            seen[f"file system {filesystem.id}"] += tool(*argv, path)
    for container in layout.containers:
        seen[f"container {container.id}"] = [*tool("cryptsetup", "luksDump", layout.path(container.device))]
    for array in layout.arrays:
        seen[f"array {array.id}"] = sorted(tool("mdadm", "--detail", array.path))
    uuids = "lv_uuid,vg_uuid," if all(group.uuid for group in layout.groups) else ""
    seen["volumes"] = [*tool("lvs", "--noheadings", "-o", f"lv_name,vg_name,{uuids}lv_size,lv_layout,stripes,"
                                                      "stripe_size,region_size,chunk_size,discards,zero,lv_tags",
                             *(f"{layout.group(v.group).name}/{v.name}" for v in layout.logical_volumes))] \
        if layout.logical_volumes else []
    return seen


def settle() -> None:
    shell("udevadm", "settle")


def shell(*argv: str, stdin: str = "", check: bool = True, env: dict[str, str] | None = None) -> str:
    done = subprocess.run(argv, input=stdin, text=True, capture_output=True, env={**os.environ, **(env or {})})
    if check and done.returncode:
        raise RuntimeError(f"{argv}: exit {done.returncode}\n{done.stdout[-2000:]}{done.stderr[-3000:]}")
    return done.stdout


if __name__ == "__main__":
    {"make": make, "look": look, "recover": recover, "record": record}[sys.argv[1]](sys.argv[2], Path(sys.argv[3]))
