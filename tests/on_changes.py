"""What test_compare runs inside user-mode Linux: small disks with a bit of everything, changed step by step.

    python -m tests.on_changes all        with four blank disks; prints what each change was seen as
"""

import json
import sys

from tests.vm.compare import differences, walk
from tests.vm.inside import assembled, facts, health, mounted, names
from tests.vm.machines import run
from tests.vm.samples import PASSPHRASE

MAKE = f"""
sfdisk --quiet /dev/ubda <<END
label: gpt
label-id: 11111111-2222-3333-4444-555555555555
1: size=48MiB, name=one, type=linux
2: size=48MiB, type=uefi
3: size=64MiB, type=lvm
4: size=48MiB, type=linux
END
udevadm settle
mkfs.ext4 -q -L one -U 11111111-2222-3333-4444-777777777777 /dev/ubda1
mkfs.vfat -F 16 -s 4 -i 12345678 /dev/ubda2
vgcreate group /dev/ubda3
lvcreate --yes --size 32M --name home group
mkfs.ext4 -q /dev/group/home
printf %s '{PASSPHRASE}' | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf-memory 32768 \
    --pbkdf-force-iterations 4 --key-file=- /dev/ubda4
mkfs.btrfs -q -L two /dev/ubdb
mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.2 --bitmap=internal --homehost=tiny --name=0 \
    --assume-clean /dev/ubdc /dev/ubdd
mkfs.xfs -q -L three /dev/md0
mount -m /dev/ubdb /b
btrfs -q subvolume create /b/inner
umount /b
mount -m /dev/ubda1 /a
mkdir /a/etc /a/home
chmod 0710 /a/home
echo '# comment\nUUID=11111111-2222-3333-4444-777777777777 / ext4 defaults 0 1
/dev/mapper/group-home /home ext4 defaults 0 2\nUUID=1234-5678 /boot/efi vfat defaults 0 2' >/a/etc/fstab
mount /dev/group/home /a/home
echo hello >/a/home/file
umount /a/home /a
"""

CHANGES = {
    "sfdisk --part-label /dev/ubda 1 eins": "disk 0 partition 1: name was one, is eins.",
    "sfdisk --part-attrs /dev/ubda 1 GUID:63": "disk 0 partition 1: attrs was None, is GUID:63.",
    "sfdisk --part-uuid /dev/ubda 2 99999999-2222-3333-4444-555555555555": "disk 0 partition 2: uuid was ",
    "sfdisk --part-type /dev/ubda 4 swap": "disk 0 partition 4: type was ",
    "sfdisk --disk-id /dev/ubda 99999999-2222-3333-4444-555555555555": "table of disk 0: id was ",
    "tune2fs -L eins /dev/ubda1": "content of disk 0 partition 1: LABEL was one, is eins.",
    "tune2fs -L M-CM-$ /dev/ubda1": "content of disk 0 partition 1: LABEL_ENC was eins, is M-CM-\\x24.",
    "tune2fs -m 2 /dev/ubda1": "file system of disk 0 partition 1: Reserved block count was ",
    "tune2fs -O project -Q prjquota /dev/ubda1": "file system of disk 0 partition 1: Filesystem features was ",
    "tune2fs -c 30 /dev/ubda1": "file system of disk 0 partition 1: Maximum mount count was -1, is 30.",
    "mkfs.vfat -F 16 -s 8 -i 12345678 /dev/ubda2": "file system of disk 0 partition 2: boot sector was ",
    "mkfs.vfat -F 16 -s 8 -i 12345679 /dev/ubda2": "content of disk 0 partition 2: UUID was 1234-5678, is 1234-5679.",
    "vgchange --addtag tag group": "group group: vg_tags was , is tag.",
    "lvresize -q --size +4M group/home": "volume group/home: lv_size was 33554432B, is 37748736B.",
    "lvcreate -q --yes --size 4M --name more group": "volume group/more was not there before.",
    "vgrename -q group club": "group group is missing.",
    "cryptsetup config --label secret /dev/ubda4": "content of disk 0 partition 4: LABEL was None, is secret.",
    "cryptsetup --batch-mode luksUUID --uuid 99999999-2222-3333-4444-555555555555 /dev/ubda4":
        "content of disk 0 partition 4: UUID was ",
    f"printf %s '{PASSPHRASE}' | cryptsetup luksConvertKey --pbkdf pbkdf2 --key-file=- /dev/ubda4":
        "container on disk 0 partition 4: pbkdf was argon2id, is pbkdf2.",
    f"printf %s '{PASSPHRASE}' >/key; printf 2 >/new; cryptsetup luksAddKey --key-file=/key /dev/ubda4 /new":
        "container on disk 0 partition 4: slots was 1, is 2.",
    "btrfs filesystem label /dev/ubdb zwei": "file system of disk 1: label was two, is zwei.",
    "mount /dev/ubdb /b; btrfs property set /b/inner ro true; umount /b":
        "subvolume inner of disk 1: read-only was False, is True.",
    "mount /dev/ubdb /b; btrfs subvolume set-default /b/inner; umount /b":
        "subvolume inner of disk 1: default was False, is True.",
    "mount -o subvolid=5 /dev/ubdb /b; btrfs subvolume create /b/new; umount /b":
        "subvolume new of disk 1 was not there before.",
    "mkfs.btrfs -f -q -n 8192 /dev/ubdb": "file system of disk 1: nodesize was 16384, is 8192.",
    "xfs_admin -L drei /dev/md0": "content of array tiny:0: LABEL was three, is drei.",
    "mkfs.xfs -f -q -L drei -m rmapbt=1 /dev/md0": "file system of array tiny:0: meta-data rmapbt was 0, is 1.",
    "mdadm --grow --bitmap=none /dev/md0": "array tiny:0: Consistency Policy was bitmap, is resync.",
    "mdadm /dev/md0 --fail /dev/ubdd; udevadm settle; mdadm /dev/md0 --remove /dev/ubdd":
        "array tiny:0: Active Devices was 2, is 1.",
}
# What no facts show: what a checker says then.
DAMAGE = {
    "debugfs -w -R 'clri etc' /dev/ubda1": "disk 0 partition 1: ",
    "dd if=/dev/zero of=/dev/md0 bs=1M seek=0 count=1 conv=notrunc": "array tiny:0: ",
    "dd if=/dev/urandom of=/dev/ubda2 bs=512 seek=8 count=8 conv=notrunc": "disk 0 partition 2: ",
}


def main() -> None:
    shell(MAKE)
    with assembled() as devices:
        well = health(devices)
        with mounted(devices, "ro") as tops:
            files = {point: walk(top) for point, top in tops.items()}
        before = facts(devices)
        same = differences(before, facts(devices))
        seen = {}
        for change in CHANGES:
            shell(change)
            run("udevadm", "settle")
            after = facts(names())
            seen[change] = differences(before, after)
            before = after
        for damage in DAMAGE:
            shell(damage)
            seen[damage] = health(names())
    json.dump({"well": well, "same": same, "files": files, "seen": seen}, sys.stdout)


def shell(script: str) -> None:
    print(script, file=sys.stderr)                 # shown when something fails
    run("sh", "-e", "-c", script)


if __name__ == "__main__":
    main()
