"""Layouts of every shape that the records allow, for hypothesis: random stacks of real kinds."""

import uuid
from dataclasses import replace
from itertools import count

from hypothesis import strategies as st

from bootenv.layout import (
    Disk,
    Filesystem,
    Layout,
    LogicalVolume,
    LuksContainer,
    MdArray,
    Mount,
    Partition,
    PhysicalVolume,
    Subvolume,
    SwapFile,
    VolumeGroup,
)

MiB = 2**20
EXT4 = {"features": ("extent", "filetype"), "block_size": 4096, "blocks": 100, "inode_size": 256, "inodes": 64,
        "reserved_blocks": 5, "mount_options": ("acl",), "errors": "continue", "max_mount_count": "-1",
        "check_days": 0}
XFS = {"bsize": 4096, "blocks": 100000, "agsize": 25000, "sectsz": 512, "isize": 512, "imaxpct": 25, "crc": 1,
       "finobt": 1, "log": "internal", "realtime": "none", "log_blocks": 16384, "log_bsize": 4096, "log_version": 2,
       "log_sectsz": 512, "log_lazy-count": 1, "naming_version": "2", "naming_bsize": 4096, "naming_ftype": 1,
       "sunit": 0, "swidth": 0}
BTRFS = {"node_size": 16384, "sector_size": 4096, "bytes": 200 * MiB, "checksum": "crc32c",
         "features": ("extref", "no-holes"), "data": "single", "metadata": "dup"}
VFAT = {"fat": 32, "fats": 2, "fat_sectors": 800, "sector_size": 512, "cluster": 512, "reserved": 32, "hidden": 0,
        "root_entries": 0, "sectors": 100000, "track": 32, "heads": 64, "media": "0xf8"}
SETTINGS = {"ext4": EXT4, "xfs": XFS, "btrfs": BTRFS, "vfat": VFAT, "swap": {}}
names = st.text("abcdefghijklmnopqrstuvwxyz0123456789_+", min_size=1, max_size=8)
# Words that begin with /dev/ are what the tests know devices by.
texts = st.text(st.characters(exclude_categories=("Cs",), exclude_characters="\0/"), max_size=20)


@st.composite
def layouts(draw) -> Layout:
    """Disks, then layer upon layer of what can lie on a device, then file systems on what is left."""
    random = draw(st.randoms(use_true_random=False))

    numbers_of_ids = count(1)

    def id() -> str:
        return str(uuid.UUID(int=next(numbers_of_ids) << 80, version=4))

    disks, partitions, free = [], [], []
    for number in range(draw(st.integers(1, 4))):
        disk = Disk(id(), f"/dev/sd{'abcdef'[number]}", 4000 * MiB, serial=draw(texts), model=draw(texts))
        label = draw(st.sampled_from(("gpt", "dos", "")))
        if label:
            disk = replace(disk, label=label, label_id=disk.id if label == "gpt" else f"0x{number + 1:08x}")
            numbers = sorted(draw(st.sets(st.integers(1, 128 if label == "gpt" else 4), min_size=1, max_size=4)))
            for place, part in enumerate(numbers):
                partition = Partition(
                    f"{disk.id}/{part}", disk.id, part, (1 + place * 900) * MiB, 900 * MiB,
                    id().upper() if label == "gpt" else "83", uuid=id() if label == "gpt" else "",
                    name=draw(texts) if label == "gpt" else "", bootable=label == "dos" and place == 0)
                partitions.append(partition)
                free.append(partition.id)
        else:
            free.append(disk.id)
        disks.append(disk)
    layout = Layout(tuple(disks), tuple(partitions))
    for _ in range(draw(st.integers(0, 4))):
        layer = draw(st.sampled_from(("array", "container", "group")))
        if layer == "array" and len(free) > 1:
            members = [free.pop(random.randrange(len(free))) for _ in range(2)]
            array = MdArray(f"{len(layout.arrays):08x}:00000000:00000000:00000001",
                            f"/dev/md{len(layout.arrays)}", 800 * MiB, draw(st.sampled_from(("raid1", "raid0"))),
                            draw(st.sampled_from(("0.90", "1.0", "1.2"))), tuple(members),
                            name=f"host:{len(layout.arrays)}")
            layout = replace(layout, arrays=(*layout.arrays, array))
            free.append(array.id)
        elif layer == "container" and free:
            container = LuksContainer(id(), free.pop(random.randrange(len(free))), f"crypt{len(layout.containers)}",
                                      700 * MiB, cipher="aes-xts-plain64", key_size=512, hash="sha256", offset=16 * MiB,
                                      pbkdf="argon2id", memory=2**30, iterations=4, parallel=1)
            layout = replace(layout, containers=(*layout.containers, container))
            free.append(container.id)
        elif layer == "group" and free:
            group = VolumeGroup(f"vg{len(layout.groups)}", f"vg{len(layout.groups)}", id())
            taken = [free.pop(random.randrange(len(free))) for _ in range(random.randint(1, min(2, len(free))))]
            volumes = tuple(PhysicalVolume(id(), device, group.id) for device in taken)
            logical = tuple(LogicalVolume(f"{group.id}/{name}", group.id, name, 100 * MiB, uuid=id(),
                                          volumes=(volumes[0].id,))
                            for name in draw(st.sets(names, min_size=1, max_size=3)))
            layout = replace(layout, groups=(*layout.groups, group),
                             physical_volumes=(*layout.physical_volumes, *volumes),
                             logical_volumes=(*layout.logical_volumes, *logical))
            free += [volume.id for volume in logical]
    filesystems = tuple(
        Filesystem(id(), device, kind, id() if kind != "vfat" else "1234-ABCD", draw(texts), SETTINGS[kind])
        for device in free for kind in [draw(st.sampled_from(sorted(SETTINGS)))])
    mounts = tuple(Mount(f.id, "/" if n == 0 else f"/m{n}", draw(texts)) for n, f in enumerate(filesystems)
                   if f.type != "swap")
    subvolumes = tuple(Subvolume(f.id, path, read_only=draw(st.booleans())) for f in filesystems if f.type == "btrfs"
                       for path in ("@", "@/inner"))
    return replace(layout, filesystems=filesystems, mounts=mounts, subvolumes=subvolumes,
                   swap_files=(SwapFile("/swapfile", 8 * MiB, id()),))
