"""What test_disks runs inside user-mode Linux: make a machine's disk, record it, make it again, record that.

    python -m tests.on_disks TABLE        with /dev/ubda blank and /dev/ubdb
"""

import json
import subprocess
import sys
from dataclasses import asdict, replace

from bootenv.execute import execute, locked
from bootenv.layout import Layout
from bootenv.match import match
from bootenv.plan import plan
from bootenv.probe import probe
from bootenv.sif import AsrSet, new_id, now, read_sif, write_sif

TABLES = {
    "gpt": """label: gpt
first-lba: 34
/dev/ubda1 : start=34, size=2014, type=21686148-6449-6E6F-744E-656564454649
/dev/ubda3 : start=4096, size=204800, name="root, \\x22old\\x22 ü", attrs="RequiredPartition GUID:60"
/dev/ubda7 : size=65536, type=swap
/dev/ubda12 : size=300000
""",
    "mbr": """label: dos
label-id: 0x4a5b6c7d
/dev/ubda1 : start=2048, size=204800, bootable
/dev/ubda3 : size=700000, type=5
/dev/ubda5 : size=65536, type=82
/dev/ubda6 : size=300000
""",
}
# Not the defaults of any mkfs, old and new: each flag must come back as it was.
CONTENTS = {
    3: ("mkfs.ext4", "-q", "-O", "^metadata_csum,^64bit,uninit_bg", "-I", "512", "-L", "a b'ü", "-b", "2048"),
    12: ("mkfs.ext4", "-q", "-O", "metadata_csum_seed,project,quota,^resize_inode,^huge_file", "-N", "4096", "-m", "1",
         "-E", "stride=4,stripe_width=8", "-J", "size=8"),
    1: ("mkfs.ext3", "-q", "-b", "1024", "-m", "7"),
    6: ("mkfs.ext2", "-q", "-L", "-dash"),
}


def main(table: str) -> None:
    with locked(("/dev/ubda", "/dev/ubdb")):
        make_source(table)
        make_dirty("mbr" if table == "gpt" else "gpt")
    shell("udevadm", "trigger", "--settle")
    before = disk_of(probe(), "/dev/ubda")
    set = read_sif(write_sif(AsrSet(id=new_id(), created=now(), host="uml", layout=before)))
    present = probe()
    found = match(set.layout, present, {"/dev/ubda": "it is the source"})
    for _ in execute(plan(found.layout, present), [disk.path for disk in found.layout.disks]):
        pass
    seen = [what_others_see(disk) for disk in ("/dev/ubda", "/dev/ubdb")]
    # Two disks with the same ids would be told apart; the source is the lost one.
    with locked(("/dev/ubda",)):
        shell("wipefs", "--all", "--force", *(f"/dev/ubda{n}" for n in (*numbers("/dev/ubda"), "")))
    json.dump({
        "consent": found.choices[0].consent,
        "before": asdict(same_place(before)),
        "after": asdict(same_place(disk_of(probe(), "/dev/ubdb"))),
        "seen": seen,
    }, sys.stdout)


def what_others_see(disk: str) -> dict[str, object]:
    """The disk in the words of the field's tools."""
    parts = [f"{disk}{number}" for number in numbers(disk)]
    return {
        "sfdisk": shell("sfdisk", "--dump", disk),
        "blkid": [shell("blkid", "-p", "-o", "export", part, check=False) for part in parts],
        "dumpe2fs": [shell("dumpe2fs", "-h", part) for part in parts if is_ext(part)],
    }


def make_source(table: str) -> None:
    shell("sfdisk", "--quiet", "/dev/ubda", stdin=TABLES[table])
    for number in numbers("/dev/ubda"):
        if number in (5, 7):
            shell("mkswap", "-q", "-L", "swäp \"x\\", f"/dev/ubda{number}")
        elif number in CONTENTS and (table, number) not in (("gpt", 1), ("mbr", 3)):
            shell(*CONTENTS[number], f"/dev/ubda{number}")
    shell("tune2fs", "-o", "journal_data,^acl", "-e", "remount-ro", "-c", "30", "-i", "12d",
          "/dev/ubda3" if table == "gpt" else "/dev/ubda6")


def make_dirty(table: str) -> None:
    """Another table, the same kinds of content at other places."""
    shell("sfdisk", "--quiet", "/dev/ubdb", stdin=TABLES[table].replace("ubda", "ubdb"))
    for number in numbers("/dev/ubdb"):
        shell("mkfs.ext4", "-q", "-F", f"/dev/ubdb{number}", check=False)


def is_ext(part: str) -> bool:
    return shell("blkid", "-p", "-s", "TYPE", "-o", "value", part, check=False).startswith("ext")


def disk_of(layout: Layout, path: str) -> Layout:
    disk = next(d for d in layout.disks if d.path == path)
    partitions = tuple(layout.partitions_of(disk.id))
    devices = {disk.id, *(p.id for p in partitions)}
    return Layout((disk,), partitions, tuple(f for f in layout.filesystems if f.device in devices))


def same_place(layout: Layout) -> Layout:
    return replace(layout, disks=tuple(replace(d, path="") for d in layout.disks))


def numbers(disk: str) -> list[int]:
    table = json.loads(shell("sfdisk", "--json", disk))["partitiontable"]
    return [int(p["node"].removeprefix(disk)) for p in table["partitions"]]


def shell(*argv: str, stdin: str = "", check: bool = True) -> str:
    errors = None if check else subprocess.DEVNULL
    return subprocess.run(argv, input=stdin, text=True, check=check, stdout=subprocess.PIPE, stderr=errors).stdout


if __name__ == "__main__":
    main(sys.argv[1])
