"""What runs in user-mode Linux on a sample machine's disks, with this computer's tools: they are put together, and

    python -m tests.vm.inside fill        files that are hard to bring back are written
    python -m tests.vm.inside look        all that can be seen is printed, as compare.Look has it
"""

import json
import re
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from tests.vm import machines
from tests.vm.compare import mtree, walk
from tests.vm.machines import PASSPHRASE, run

Facts = dict[str, dict[str, object]]


@contextmanager
def assembled() -> Iterator[dict[str, str]]:
    """All arrays, containers and volume groups of all disks, started: device -> what it is called in facts."""
    opened: set[str] = set()
    before: dict[str, str] = {}
    while (devices := names()) != before:
        before = devices
        for device in devices:
            if device not in opened and probe(device).get("TYPE") == "crypto_LUKS":
                run("cryptsetup", "open", "--key-file=-", device, f"open{len(opened)}", input=PASSPHRASE)
                opened.add(device)
        run("mdadm", "--assemble", "--scan", status=(0, 1, 2))        # 1 and 2: nothing (more) to assemble
        run("vgchange", "--activate", "y")
        run("udevadm", "settle")
    try:
        yield devices
    finally:
        run("vgchange", "--activate", "n")
        for number in range(len(opened)):
            run("cryptsetup", "close", f"open{number}")
        run("mdadm", "--stop", "--scan")


def names() -> dict[str, str]:
    """Block devices by their nodes, named by what they are on the machine: "disk 0", "disk 0 partition 3", ..."""
    found: dict[str, str] = {}
    for device in _flat(json.loads(run("lsblk", "--json", "--paths", "--output=NAME,TYPE,PKNAME"))["blockdevices"]):
        path, below = device["name"], device["pkname"]
        if device["type"] == "disk" and path.startswith("/dev/ubd"):
            found[path] = f"disk {ord(path[-1]) - ord('a')}"
        elif device["type"] == "part":
            found[path] = f"{found[below]} partition {path.removeprefix(below).lstrip('p')}"
        elif device["type"] == "crypt":
            found[path] = f"container on {found[below]}"
        elif device["type"] == "lvm":
            found[path] = "volume " + re.sub(r"(?<!-)-(?!-)", "/", path.removeprefix("/dev/mapper/")).replace("--", "-")
        elif path.startswith("/dev/md"):
            found[path] = "array " + exported(run("mdadm", "--detail", "--export", path))["MD_NAME"]
    return found


def _flat(devices):
    for device in devices:
        yield device
        yield from _flat(device.get("children", ()))


def probe(device: str) -> dict[str, str]:
    """What blkid finds on a device: TYPE, UUID_ENC, LABEL_ENC, ... as udev has them.

    Encoded: of its plain words two labels can look the same and not be.
    """
    out = run("blkid", "--probe", "--output=udev", device, status=(0, 2))     # 2: nothing
    return dict(re.findall(r"^ID_FS_(\w+)=(.*)$", out, re.MULTILINE))


def exported(text: str) -> dict[str, str]:
    return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)


# Mounting

@contextmanager
def mounted(devices: dict[str, str], *options: str) -> Iterator[dict[str, Path]]:
    """The machine's file systems, each in a place of its own: mount point on the machine -> directory here."""
    with ExitStack() as stack:

        def mount(device: str, *more: str) -> Path:
            top = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            run("mount", "-o", ",".join(("rw", *options, *more)), device, str(top))
            stack.callback(run, "umount", str(top))
            return top

        found = {device: probe(device) for device in devices}
        root = next(top for device, content in found.items()
                    if content.get("TYPE") in ("ext4", "xfs", "btrfs")
                    for top in [mount(device, *["subvol=@"] * (content["TYPE"] == "btrfs"))]
                    if (top / "etc/fstab").exists())
        tops = {}
        for spec, point, kind, said in fstab((root / "etc/fstab").read_text()):
            if kind != "swap":
                device = next(device for device, content in found.items()
                              if device == spec or spec == f"UUID={content.get('UUID')}")
                tops[point] = mount(device, *(word for word in said.split(",") if word.startswith("subvol=")))
        yield tops


def fstab(text: str) -> list[tuple[str, ...]]:
    """What is mounted, where, its type and options."""
    return [tuple(line.split()[:4]) for line in text.splitlines() if line.strip() and not line.startswith("#")]


# Facts

def facts(devices: dict[str, str]) -> Facts:
    """Partition tables, and what is on each device and how it was made."""
    said: Facts = {}
    for device, name in devices.items():
        if (name.startswith("disk") and "partition" not in name) or name.startswith("array"):
            said |= table(device, name)
        content = probe(device)
        said[f"content of {name}"] = dict(content)
        if (kind := content.get("TYPE", "").rstrip("234")) in READERS:
            said |= READERS[kind](device, name)
        if name.startswith("array"):
            said[name] = array(device)
    return said | volumes(devices)


def table(disk: str, name: str) -> Facts:
    out = run("sfdisk", "--json", disk, status=(0, 1))                # 1: none
    if not out:
        return {}
    head = json.loads(out)["partitiontable"]
    parts = head.pop("partitions", [])
    return {f"table of {name}": {key: value for key, value in head.items() if key != "device"},
            **{f"{name} partition {part.pop('node').removeprefix(disk).lstrip('p')}": part for part in parts}}


# What dumpe2fs prints of a file system's use; all else is how it was made.
IN_USE = re.compile(r"Last (mounted on|mount time|write time|checked)|Next check after|Mount count|Lifetime writes|"
                    r"Free (blocks|inodes)|Filesystem (created|state)|Checksum|First orphan inode|Overhead clusters|"
                    r"Journal (sequence|start|checksum|features)|Directory Hash Seed")


def settings(text: str) -> dict[str, object]:
    """dumpe2fs's lines but those that tell of the file system's use."""
    lines = (line.partition(":") for line in text.splitlines())
    return {key: " ".join(sorted(value.split())) if "features" in key else value.strip()
            for key, _, value in lines if key and not IN_USE.match(key)}


def ext(device: str, name: str) -> Facts:
    return {f"file system of {name}": settings(run("dumpe2fs", "-h", device))}


def xfs(device: str, name: str) -> Facts:
    return {f"file system of {name}": xfs_info(run("xfs_db", "-r", "-c", "info", device))}


def xfs_info(text: str) -> dict[str, object]:
    """xfs_info's words: "data bsize" -> "4096"."""
    words: dict[str, object] = {}
    section = ""
    for line in text.splitlines():
        section = line.split()[0].partition("=")[0] or section
        words |= {f"{section} {key}": value for key, value in re.findall(r"([\w-]+)=([^\s,]+)", line)
                  if key != "meta-data"}
    return words


def btrfs(device: str, name: str) -> Facts:
    text = run("btrfs", "inspect-internal", "dump-super", device)
    fields = dict(re.findall(r"^([\w.]+)\s+(\S.*)$", text, re.MULTILINE))
    said: Facts = {f"file system of {name}": {
        key: fields[key] for key in ("csum_type", "fsid", "label", "nodesize", "sectorsize", "num_devices",
                                     "incompat_flags", "compat_flags", "compat_ro_flags")}}
    with tempfile.TemporaryDirectory() as top:
        run("mount", "-o", "ro,subvolid=5", device, top)
        listed = re.compile(r"^ID (\d+) .* path (.*)$", re.MULTILINE)
        read_only = dict(listed.findall(run("btrfs", "subvolume", "list", "-r", top)))
        default = re.match(r"ID (\d+)", run("btrfs", "subvolume", "get-default", top))
        for number, path in listed.findall(run("btrfs", "subvolume", "list", top)):
            said[f"subvolume {path} of {name}"] = {"read-only": number in read_only,
                                                   "default": bool(default) and default[1] == number}
        run("umount", top)
    return said


def vfat(device: str, name: str) -> Facts:
    """fsck.fat's words on the boot sector. What it says of the drive's geometry is of no use to anybody."""
    text = run("fsck.fat", "-n", "-v", device).partition("Boot sector contents:")[2].partition("Checking")[0]
    lines = [line.strip() for line in text.splitlines() if not re.search("sectors/track|hidden|^Reclaim", line.strip())]
    return {f"file system of {name}": {"boot sector": list(filter(None, lines))}}


def luks(device: str, name: str) -> Facts:
    header = json.loads(run("cryptsetup", "luksDump", "--dump-json-metadata", device))
    slot = next(iter(header["keyslots"].values()))
    return {f"container on {name}": {
        "segments": header["segments"], "key size": slot["key_size"], "area": slot["area"]["encryption"],
        "pbkdf": slot["kdf"]["type"], "memory": slot["kdf"].get("memory"), "slots": len(header["keyslots"]),
        "tokens": header["tokens"], "flags": header["config"].get("flags")}}


def member(device: str, name: str) -> Facts:
    fields = dict(re.findall(r"^\s*([\w /]+?) : (.*)$", run("mdadm", "--examine", device), re.MULTILINE))
    return {f"member on {name}": {key: fields.get(key) for key in (
        "Version", "Array UUID", "Name", "Raid Level", "Raid Devices", "Data Offset", "Super Offset", "Layout",
        "Chunk Size", "Internal Bitmap", "Array Size", "Device Role")}}


def array(device: str) -> dict[str, object]:
    fields = dict(re.findall(r"^\s*([\w /]+?) : (.*)$", run("mdadm", "--detail", device), re.MULTILINE))
    return {key: fields.get(key) for key in (
        "Version", "Raid Level", "Array Size", "Raid Devices", "Total Devices", "Active Devices", "Failed Devices",
        "Spare Devices", "Consistency Policy", "Intent Bitmap", "Layout", "Chunk Size", "Name", "UUID")}


READERS = {"ext": ext, "xfs": xfs, "btrfs": btrfs, "vfat": vfat, "crypto_LUKS": luks, "linux_raid_member": member}


def volumes(devices: dict[str, str]) -> Facts:
    """LVM in its own words."""

    def report(tool: str, columns: str) -> list[dict[str, object]]:
        out = run(tool, "--all" if tool == "lvs" else "--verbose", "--reportformat=json", "--units=b", "-o", columns)
        return next(iter(json.loads(out)["report"][0].values()))

    said: Facts = {}
    for volume in report("pvs", "pv_name,pv_uuid,vg_name,pv_size,pe_start,pv_tags"):
        said[f"physical volume on {devices[str(volume.pop('pv_name'))]}"] = volume
    for group in report("vgs", "vg_name,vg_uuid,vg_extent_size,vg_size,vg_tags,pv_count,lv_count"):
        said[f"group {group.pop('vg_name')}"] = group
    for volume in report("lvs", "vg_name,lv_name,lv_uuid,lv_size,segtype,stripes,stripe_size,chunk_size,pool_lv,"
                                "lv_tags,lv_permissions"):
        said[f"volume {volume.pop('vg_name')}/{volume.pop('lv_name')}"] = volume
    return said


# Health

CHECKS = {"ext": ("e2fsck", "-f", "-n"), "xfs": ("xfs_repair", "-n"), "btrfs": ("btrfs", "check", "--readonly"),
          "vfat": ("fsck.fat", "-n")}
COMPLAINTS = re.compile("UNEXPECTED INCONSISTENCY|WARNING|skipping journal|ALERT|[Dd]irty bit")


def health(devices: dict[str, str]) -> list[str]:
    """What the checkers find wrong on disks that were switched off properly, and arrays that lack a member."""
    wrong = []
    for device, name in devices.items():
        if check := CHECKS.get(probe(device).get("TYPE", "").rstrip("234")):
            try:
                found = run(*check, device)
            except RuntimeError as error:
                wrong.append(f"{name}: {error}")
            else:
                if COMPLAINTS.search(found):
                    wrong.append(f"{name}: {found}")
        if name.startswith("array") and (array(device)["Active Devices"] != array(device)["Raid Devices"]):
            wrong.append(f"{name}: {array(device)}")
    return wrong


def look(devices: dict[str, str]) -> dict[str, object]:
    found = {"facts": facts(devices), "health": health(devices)}
    files: dict[str, object] = {}
    others: dict[str, object] = {}
    with mounted(devices, "ro") as tops:
        for point, top in tops.items():
            files |= {point.rstrip("/") + path: entry for path, entry in walk(top).items()}
            others |= {point.rstrip("/") + path: entry for path, entry in mtree(top).items()}
    return {**found, "files": files, "second_opinion": others}


def main(what: str) -> None:
    with assembled() as devices:
        if what == "fill":
            with mounted(devices) as tops:
                machines.fill(tops)
            print("{}")
        else:
            json.dump(look(devices), sys.stdout, default=lambda value: value.hex())     # values of attributes: bytes


if __name__ == "__main__":
    main(sys.argv[1])
