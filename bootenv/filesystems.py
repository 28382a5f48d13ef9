"""Every kind of file system: what its own tools say of it, and the Steps that make the same again.

Each setting and feature is pinned from what was recorded: the medium's tools are never the source's, and their newer
defaults would make file systems that the recovered system's GRUB or kernel cannot read.

Formats: dumpe2fs(8) -h, xfs_info(8), btrfs-inspect-internal(8) dump-super and dump-tree, dump.f2fs(8), fsck.fat(8) -nv,
dump.exfat(8), ntfsinfo(8) -m.
"""

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from .errors import Unsupported
from .layout import Filesystem, Layout, Setting, Subvolume
from .run import run
from .step import Step

EXT = ("ext2", "ext3", "ext4")
TITLE = "Setup is formatting..."
TOP = "/run/asr/btrfs"        # where the top of a btrfs is mounted while its subvolumes are made

Settings = dict[str, Setting]


def read_settings(type: str, path: str) -> Settings:
    """How the file system on a device was made; {} for one that can't be read or has no settings.

    A damaged one has none: no plan can be made of it, and it must not keep others from being recovered.
    """
    if type not in _READERS:
        return {}
    argv, parse = _READERS[type]
    text = run((*argv, path), check=False)
    try:
        settings = parse(text)
        if type == "btrfs":
            settings |= parse_chunks(run(("btrfs", "inspect-internal", "dump-tree", "-t", "chunk", path), check=False))
    except (KeyError, ValueError, AttributeError, TypeError):
        return {}
    return settings


def steps_for_filesystem(filesystem: Filesystem, layout: Layout, subject: str) -> Iterator[Step]:
    """Raises Unsupported for what can't be made, or what is not described enough to be made the same."""
    path = layout.path(filesystem.device)
    if filesystem.type not in MAKERS:
        raise Unsupported(f"{path} holds {filesystem.type}, which this version cannot recreate.")
    maker, needed = MAKERS[filesystem.type]
    missing = needed - filesystem.settings.keys()
    if missing:
        raise Unsupported(f"The ASR disk does not say {', '.join(sorted(missing))} of the file system on {path}.")
    for argv in maker(filesystem, layout, path):
        yield Step(TITLE, argv, subject=subject)


Argvs = Iterator[tuple[str, ...]]


def _label(option: str, filesystem: Filesystem) -> tuple[str, ...]:
    return (option, filesystem.label) if filesystem.label else ()


# ext2, ext3, ext4

# What dumpe2fs shows and what tune2fs -e takes.
_ERRORS = {"Continue": "continue", "Remount read-only": "remount-ro", "Panic": "panic"}
_EXT_NEEDED = {"features", "block_size", "blocks", "inode_size", "inodes", "reserved_blocks", "mount_options", "errors",
               "max_mount_count", "check_days"}
_QUOTAS = {"User quota inode": "usrquota", "Group quota inode": "grpquota", "Project quota inode": "prjquota"}


def parse_ext(text: str) -> Settings:
    """What mke2fs and tune2fs need to make an ext2, ext3 or ext4 file system like the one of dumpe2fs -h."""
    head = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in text.splitlines())}
    # States of a mounted file system, not features that it was made with.
    features = [f for f in head["Filesystem features"].split() if f not in ("needs_recovery", "orphan_present")]
    options = head.get("Default mount options", "(none)")
    settings: Settings = {
        "features": tuple(sorted(features)),
        "block_size": int(head["Block size"]),
        "blocks": int(head["Block count"]),
        "inode_size": int(head.get("Inode size", 128)),    # revision 0 has no other
        "inodes": int(head["Inode count"]),
        "reserved_blocks": int(head["Reserved block count"]),
        "mount_options": () if options == "(none)" else tuple(sorted(options.split())),
        "errors": _ERRORS.get(head["Errors behavior"], "continue"),
        "max_mount_count": head["Maximum mount count"],
        "check_days": int(head["Check interval"].split()[0]) // 86400,   # tune2fs(8) counts in days
    }
    for key, name in (("Flex block group size", "flex_groups"), ("RAID stride", "stride"),
                      ("RAID stripe width", "stripe_width"), ("Total journal blocks", "journal_blocks"),
                      ("Cluster size", "cluster_size")):
        if key in head:
            settings[name] = int(head[key])
    if "Character encoding" in head:           # casefold: "utf8-12.1", and flags such as strict
        settings["encoding"] = head["Character encoding"].split("-")[0]
        if "strict" in head.get("Character encoding flags", ""):
            settings["encoding_flags"] = "strict"
    if quotas := tuple(name for key, name in _QUOTAS.items() if key in head):
        settings["quotas"] = quotas
    return settings


def _make_ext(filesystem: Filesystem, layout: Layout, path: str) -> Argvs:
    have: Mapping[str, Any] = filesystem.settings
    extended = [f"{key}={have[key]}" for key in ("stride", "stripe_width", "encoding", "encoding_flags") if key in have]
    if "quotas" in have:
        extended.append("quotatype=" + ":".join(have["quotas"]))
    yield (
        f"mkfs.{filesystem.type}", "-q",
        "-F",                                     # an old signature must not make it ask
        "-U", filesystem.uuid,
        "-L", filesystem.label,
        "-O", ",".join(("none", *have["features"])),   # the source's flags, not this mkfs's defaults
        "-b", str(have["block_size"]),
        *(("-C", str(have["cluster_size"])) if "cluster_size" in have else ()),
        "-I", str(have["inode_size"]),
        "-N", str(have["inodes"]),
        *(("-G", str(have["flex_groups"])) if "flex_groups" in have else ()),
        *(("-J", f"size={have['journal_blocks'] * have['block_size'] // 2**20}") if "journal_blocks" in have else ()),
        *(("-E", ",".join(extended)) if extended else ()),
        path, str(have["blocks"]),                # it may be smaller than its partition
    )
    yield (
        "tune2fs",
        "-r", str(have["reserved_blocks"]),
        "-o", ",".join(_only(have["mount_options"])),
        "-e", have["errors"],
        "-c", have["max_mount_count"],
        "-i", f"{have['check_days']}d",
        path,
    )


# tune2fs(8) adds to what mke2fs.conf of the medium put there: each option is set or cleared by name.
_MOUNT_OPTIONS = ("debug", "bsdgroups", "user_xattr", "acl", "uid16", "nobarrier", "block_validity", "discard",
                  "nodelalloc", "journal_data", "journal_data_ordered", "journal_data_writeback")


def _only(options: tuple[str, ...]) -> list[str]:
    return [f"^{o}" for o in _MOUNT_OPTIONS if o not in options] + list(options)


# XFS

# xfs_info's sections; of its keys, those that stand in two of them get the section's name before theirs.
_XFS_LINE = re.compile(r"(?P<section>[a-z-]*)\s*=(?P<rest>.*)")
_XFS_WORD = re.compile(r"([a-z0-9-]+)=(\d+)")


def parse_xfs(text: str) -> Settings:
    """The keys of xfs_info as they stand, with "naming_" or "log_" before those of these sections."""
    settings: Settings = {}
    section = ""
    for line in text.splitlines():
        match = _XFS_LINE.match(line)
        if not match:
            continue
        section = match["section"] or section
        if section in ("log", "realtime") and match["section"]:
            settings[section] = match["rest"].split()[0]           # "internal", "none" or a device
        elif section == "naming" and match["section"]:
            settings["naming_version"] = match["rest"].split()[1]
        # The rest of the line after a device's path, which may have an = of its own.
        words = match["rest"].partition(" ")[2] if match["section"] == "meta-data" else match["rest"]
        prefix = f"{section}_" if section in ("naming", "log") else ""
        if section != "realtime":
            settings |= {prefix + key: int(value) for key, value in _XFS_WORD.findall(words) if key != "version"}
            if section == "log" and (version := re.search(r"version=(\d)", words)):
                settings["log_version"] = int(version[1])
    if "bsize" not in settings:
        raise ValueError("no XFS")
    return {key: value for key, value in settings.items() if value or key not in _XFS_FEATURES}


# Features that an mkfs.xfs of the source may not have known: what was not recorded was not there.
_XFS_META = ("crc", "finobt", "rmapbt", "reflink", "bigtime", "inobtcount", "metadir")
_XFS_INODE = ("sparse", "nrext64", "exchange")
_XFS_FEATURES = {*_XFS_META, *_XFS_INODE, "naming_parent"} - {"crc"}
_XFS_SMALL, _XFS_SMALL_LOG = 300 * 2**20, 64 * 2**20         # bytes: xfsprogs, mkfs/xfs_mkfs.c, validate_supported()


def _make_xfs(filesystem: Filesystem, layout: Layout, path: str) -> Argvs:
    have: Mapping[str, Any] = filesystem.settings
    if have["log"] != "internal" or have["realtime"] != "none":
        raise Unsupported(f"The XFS on {path} keeps its log or its realtime part on another device, which this version "
                          "cannot recreate.")
    size = have["blocks"] * have["bsize"]
    aligned = have.get("sunit", 0)
    data = [f"size={size}", f"agsize={have['agsize'] * have['bsize']}"]
    # In units of 512 bytes; xfs_info counts blocks.
    data += [f"sunit={aligned * have['bsize'] // 512}", f"swidth={have['swidth'] * have['bsize'] // 512}"] \
        if aligned else ["noalign"]
    meta = [f"{key}={have.get(key, 0)}" for key in _XFS_META]
    inode = [f"size={have['isize']}", f"maxpct={have['imaxpct']}"]
    inode += [f"{key}={have.get(key, 0)}" for key in _XFS_INODE]
    if not have["crc"]:
        inode += [f"attr={have.get('attr', 2)}", f"projid32bit={have.get('projid32bit', 0)}"]
    naming = [f"version={'ci' if have.get('naming_ascii-ci') else have['naming_version']}",
              f"size={have['naming_bsize']}", f"ftype={have['naming_ftype']}", f"parent={have.get('naming_parent', 0)}"]
    log = [f"size={have['log_blocks'] * have['log_bsize']}", f"version={have['log_version']}",
           f"sectsize={have['log_sectsz']}", f"lazy-count={have['log_lazy-count']}"]
    if have.get("log_sunit"):
        log.append(f"sunit={have['log_sunit'] * have['log_bsize'] // 512}")
    small = size < _XFS_SMALL or have["log_blocks"] * have["log_bsize"] < _XFS_SMALL_LOG
    yield (
        "mkfs.xfs", "-q", "-f",
        *(("--unsupported",) if small else ()),   # newer ones make none so small, and mount those that there are
        *_label("-L", filesystem),
        "-m", ",".join((f"uuid={filesystem.uuid}", *meta)),
        "-b", f"size={have['bsize']}",
        "-s", f"size={have['sectsz']}",
        "-d", ",".join(data),
        "-i", ",".join(inode),
        "-n", ",".join(naming),
        "-l", ",".join(log),
        path,
    )


# btrfs

# The kernel's names of flags that mkfs sets -> mkfs.btrfs's; the others come by use (compression, raid1c3, …).
_BTRFS_FEATURES = {
    "EXTENDED_IREF": "extref", "SKINNY_METADATA": "skinny-metadata", "NO_HOLES": "no-holes", "MIXED_GROUPS": "mixed-bg",
    "ZONED": "zoned", "FREE_SPACE_TREE": "free-space-tree", "BLOCK_GROUP_TREE": "block-group-tree",
    "RAID56": "raid56", "RAID1C34": "raid1c34",
}

# dump-super's names -> mkfs.btrfs's.
_CHECKSUMS = {"crc32c": "crc32c", "xxhash64": "xxhash", "sha256": "sha256", "blake2": "blake2", "blake2b": "blake2"}


def parse_btrfs(text: str) -> Settings:
    """What mkfs.btrfs needs, from dump-super, but the profiles."""
    head = dict(re.findall(r"^(\S+)\s+(\S+)", text, re.MULTILINE))
    flags = set(re.findall(r"\b[A-Z][A-Z0-9_]+\b", text))
    return {
        "node_size": int(head["nodesize"]),
        "sector_size": int(head["sectorsize"]),
        "bytes": int(head["dev_item.total_bytes"]),
        "checksum": _CHECKSUMS[re.search(r"^csum_type\s+\d+ \((\w+)\)", text, re.MULTILINE)[1]],    # type: ignore[index]
        "features": tuple(sorted(name for flag, name in _BTRFS_FEATURES.items() if flag in flags)),
    }


def parse_chunks(text: str) -> Settings:
    """The profiles of data and metadata, from dump-tree -t chunk. Of two, the newest chunk has the one in force."""
    found: Settings = {}
    for kinds in re.findall(r"\btype ((?:DATA|METADATA|SYSTEM)\S*)", text):
        words = [word for word in kinds.lower().split("|") if word != "single"]
        profile = next((word for word in words if word not in ("data", "metadata", "system")), "single")
        for kind in {"data", "metadata"} & {*words}:
            found[kind] = profile
    return found


def _make_btrfs(filesystem: Filesystem, layout: Layout, path: str) -> Argvs:
    have: Mapping[str, Any] = filesystem.settings
    others = [layout.path(id) for id in filesystem.others]
    known = sorted({*_BTRFS_FEATURES.values()} - {"zoned", "raid56", "raid1c34"})
    features = [name if name in have["features"] else f"^{name}" for name in known]
    features += [name for name in have["features"] if name not in known]
    yield (
        "mkfs.btrfs", "--quiet", "--force",
        "--uuid", filesystem.uuid,
        *_label("--label", filesystem),
        "--nodesize", str(have["node_size"]),
        "--sectorsize", str(have["sector_size"]),
        "--checksum", have["checksum"],
        "--data", have.get("data", "single"),
        "--metadata", have["metadata"],
        "--features", ",".join(features),
        # One size counts for all of several devices: these are used whole.
        *(() if others else ("--byte-count", str(have["bytes"]))),
        path, *others,
    )
    subvolumes = sorted((s for s in layout.subvolumes if s.filesystem == filesystem.id), key=lambda s: s.path)
    if subvolumes:
        yield from _make_subvolumes(subvolumes, path)


def _make_subvolumes(subvolumes: list[Subvolume], path: str) -> Argvs:
    """Before any file is there: else they become plain directories."""
    yield ("mkdir", "-p", TOP)
    yield ("mount", "-o", "subvolid=5", path, TOP)
    for subvolume in subvolumes:
        below = f"{TOP}/{subvolume.path}"
        if not any(subvolume.path.rpartition("/")[0] == other.path for other in subvolumes) and "/" in subvolume.path:
            yield ("mkdir", "-p", str(Path(below).parent))
        yield ("btrfs", "subvolume", "create", below)
        if subvolume.default:
            yield ("btrfs", "subvolume", "set-default", below)
    yield ("umount", TOP)


# The others

def parse_f2fs(text: str) -> Settings:
    def number(key: str) -> int:
        return int(re.search(rf"^{key}\s+\[0x\s*\w+ : (\d+)\]", text, re.MULTILINE)[1])  # type: ignore[index]

    features = re.search(r"superblock features = \S+ : (.*)", text)[1].split()       # type: ignore[index]
    return {
        "features": tuple(sorted(word for word in features if word)),
        "sector_size": 2 ** number("log_sectorsize"),
        "section": number("segs_per_sec"),
        "zone": number("secs_per_zone"),
    }


# dump.f2fs's names of features -> mkfs.f2fs's; "lost_found" and others are its own words.
_F2FS_FEATURES = {"verity": "verity", "encrypt": "encrypt", "extra_attr": "extra_attr", "quota_ino": "quota",
                  "project_quota": "project_quota", "inode_checksum": "inode_checksum",
                  "flexible_inline_xattr": "flexible_inline_xattr", "inode_crtime": "inode_crtime",
                  "lost_found": "lost_found", "sb_checksum": "sb_checksum", "compression": "compression",
                  "quota": "quota", "casefold": "casefold", "readonly": "ro"}


def _make_f2fs(filesystem: Filesystem, layout: Layout, path: str) -> Argvs:
    have: Mapping[str, Any] = filesystem.settings
    features = [_F2FS_FEATURES.get(name, name) for name in have["features"]]
    yield (
        "mkfs.f2fs", "-q", "-f",
        "-U", filesystem.uuid,
        *_label("-l", filesystem),
        *(("-O", ",".join(features)) if features else ()),
        "-s", str(have["section"]),
        "-z", str(have["zone"]),
        path,
    )


def parse_vfat(text: str) -> Settings:
    """From fsck.fat -nv's list of the boot sector."""
    def number(pattern: str, default: str = "") -> int:
        match = re.search(pattern, text)
        return int(match[1] if match else default)

    return {
        "fat": number(r"FATs, (\d+) bit entries"),
        "fats": number(r"(\d+) FATs,"),
        "fat_sectors": number(r"bytes per FAT \(= (\d+) sectors?\)"),
        "sector_size": number(r"(\d+) bytes per logical sector"),
        "cluster": number(r"(\d+) bytes per cluster"),
        "reserved": number(r"(\d+) reserved sectors?"),
        "hidden": number(r"(\d+) hidden sectors?"),
        "root_entries": number(r"(\d+) root directory entries", "0"),
        "sectors": number(r"(\d+) sectors total"),
        "track": number(r"(\d+) sectors/track"),
        "heads": number(r"(\d+) heads"),
        "media": re.search(r"Media byte (0x\w+)", text)[1],        # type: ignore[index]
    }


def _make_vfat(filesystem: Filesystem, layout: Layout, path: str) -> Argvs:
    have: Mapping[str, Any] = filesystem.settings
    per_cluster = have["cluster"] // have["sector_size"]
    # Unless told not to align, mkfs.fat makes the tables longer, to end with a cluster, and the whole shorter, to end
    # with a track. Nobody has tracks any more: where only the tables were aligned, the geometry is what gives way.
    tables = per_cluster > 1 and have["reserved"] % per_cluster == have["fat_sectors"] % per_cluster == 0
    whole = have["sectors"] % have["track"] == 0
    aligned = tables or (whole and per_cluster == 1)
    size = have["sectors"] * have["sector_size"]
    yield (
        "mkfs.fat",
        *(() if aligned else ("-a",)),
        "-g", f"{have['heads']}/{have['track'] if whole or not tables else 1}",
        "-F", str(have["fat"]),
        "-i", filesystem.uuid.replace("-", ""),
        "-n", filesystem.label or "NO NAME",
        "-S", str(have["sector_size"]),
        "-s", str(per_cluster),
        "-R", str(have["reserved"]),
        "-f", str(have["fats"]),
        "-h", str(have["hidden"]),
        "-M", have["media"],
        *(("-r", str(have["root_entries"])) if have["fat"] != 32 else ()),
        path, str((size + 1023 if aligned else size) // 1024),      # half a block too much is no whole track
    )


def parse_exfat(text: str) -> Settings:
    return {"cluster": int(re.search(r"Cluster size:\s+(\d+)", text)[1])}            # type: ignore[index]


def _make_exfat(filesystem: Filesystem, layout: Layout, path: str) -> Argvs:
    yield ("mkfs.exfat", *_label("-L", filesystem), "-c", str(filesystem.settings["cluster"]), path)
    yield ("tune.exfat", "-I", "0x" + filesystem.uuid.replace("-", ""), path)


def parse_ntfs(text: str) -> Settings:
    return {"sector_size": int(re.search(r"Sector Size: (\d+)", text)[1]),           # type: ignore[index]
            "cluster": int(re.search(r"Cluster Size: (\d+)", text)[1])}              # type: ignore[index]


def _make_ntfs(filesystem: Filesystem, layout: Layout, path: str) -> Argvs:
    have = filesystem.settings
    yield ("mkntfs", "-q", "-Q", "-F", *_label("-L", filesystem), "-s", str(have["sector_size"]),
           "-c", str(have["cluster"]), path)
    yield ("ntfslabel", f"--new-serial={filesystem.uuid}", path)


def _make_swap(filesystem: Filesystem, layout: Layout, path: str) -> Argvs:
    yield (
        "mkswap", "--force",                      # an old signature must not make it ask
        *(("--uuid", filesystem.uuid) if filesystem.uuid else ()),
        *_label("--label", filesystem),
        path,
    )


_READERS: dict[str, tuple[tuple[str, ...], Callable[[str], Settings]]] = {
    **dict.fromkeys(EXT, (("dumpe2fs", "-h"), parse_ext)),
    "xfs": (("xfs_info",), parse_xfs),
    "btrfs": (("btrfs", "inspect-internal", "dump-super"), parse_btrfs),
    "f2fs": (("dump.f2fs", "-d", "1"), parse_f2fs),
    "vfat": (("fsck.fat", "-n", "-v"), parse_vfat),
    "exfat": (("dump.exfat",), parse_exfat),
    "ntfs": (("ntfsinfo", "--mft", "--force"), parse_ntfs),
}

# Settings, in bytes, that the device's sectors must not exceed: mkfs would refuse, or make another geometry.
_SECTORS = {**dict.fromkeys(EXT, ("block_size",)), "xfs": ("sectsz", "log_sectsz"), "vfat": ("sector_size",)}


def largest_sector(filesystem: Filesystem) -> int:
    """The largest logical sectors, in bytes, of a device that the same file system can be made on."""
    sizes = [filesystem.settings.get(key) for key in _SECTORS.get(filesystem.type, ())]
    return min((size for size in sizes if isinstance(size, int)), default=sys.maxsize)


# What makes each kind, and the settings that it can't do without.
MAKERS: dict[str, tuple[Callable[[Filesystem, Layout, str], Argvs], set[str]]] = {
    **dict.fromkeys(EXT, (_make_ext, _EXT_NEEDED)),
    "xfs": (_make_xfs, {"bsize", "blocks", "agsize", "sectsz", "isize", "imaxpct", "crc", "log", "realtime",
                        "log_blocks", "log_bsize", "log_version", "log_sectsz", "log_lazy-count", "naming_version",
                        "naming_bsize", "naming_ftype", "swidth"}),
    "btrfs": (_make_btrfs, {"node_size", "sector_size", "checksum", "features", "metadata", "bytes"}),
    "f2fs": (_make_f2fs, {"features", "section", "zone"}),
    "vfat": (_make_vfat, {"fat", "fats", "fat_sectors", "sector_size", "cluster", "reserved", "hidden", "sectors",
                          "track", "heads", "media"}),
    "exfat": (_make_exfat, {"cluster"}),
    "ntfs": (_make_ntfs, {"sector_size", "cluster"}),
    "swap": (_make_swap, set()),
}
