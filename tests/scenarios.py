"""Storage as real machines have it: how each is made, by the distribution's own tools alone.

A scenario is a shell script for a fresh kernel. $A, $B, $C are its blank disks, $N is a word of its own for names,
$M is where the machine's root belongs. What it leaves mounted below $M is the machine;
arrays, groups and containers that it leaves running are the machine's too.
"""

from dataclasses import dataclass

PASSPHRASE = "correct horse"


@dataclass(frozen=True)
class Scenario:
    script: str
    disks: int = 1
    size: int = 768            # MiB, of each disk
    recoverable: bool = True
    lost: str = ""             # what the field's tools see differently, as asr check said before


# Quick to unlock, and small enough for the kernel that the tests run in.
_LUKS2 = "--type luks2 --pbkdf argon2id --pbkdf-memory 32768 --pbkdf-parallel 1 --pbkdf-force-iterations 4"

SCENARIOS = {
    # Tables

    "gpt-odd": Scenario("""
printf '%s\\n' 'label: gpt' 'first-lba: 34' \\
    'start=34, size=2014, type=21686148-6449-6E6F-744E-656564454649' \\
    "${A}3: start=4096, size=204800, name=\\"root, \\\\x22old\\\\x22 ü\\", attrs=\\"RequiredPartition GUID:60\\"" \\
    "${A}7: size=65536, type=swap" "${A}12: size=300000" | sfdisk -q $A
mkfs.ext4 -q -O ^metadata_csum,^64bit,uninit_bg -I 512 -L "a b'ü" -b 2048 ${A}3
tune2fs -o journal_data,^acl -e remount-ro -c 30 -i 12d ${A}3 >/dev/null
mkswap -q -L 'swäp "x\\' ${A}7
mkfs.ext4 -q -O metadata_csum_seed,project,quota,^resize_inode,^huge_file -N 4096 -m 1 -E stride=4,stripe_width=8 \\
    -J size=8 ${A}12
mount ${A}3 $M; mkdir $M/home; mount ${A}12 $M/home
"""),
    "mbr-logical": Scenario("""
printf '%s\\n' 'label: dos' "${A}1: start=2048, size=204800, bootable" \\
    "${A}3: size=1200000, type=5" "${A}5: size=65536, type=82" "${A}6: size=300000" "${A}7: size=300000" | sfdisk -q $A
mkfs.ext3 -q -b 1024 -m 7 ${A}1
mkswap -q ${A}5
mkfs.ext2 -q -L -dash ${A}6
mkfs.ext4 -q -O casefold,encrypt,verity -E encoding=utf8 ${A}7
mount ${A}1 $M; mkdir $M/var $M/fold; mount ${A}6 $M/var; mount ${A}7 $M/fold || true
"""),
    "gpt-hybrid": Scenario("""
printf '%s\\n' 'label: gpt' 'table-length: 64' "${A}2: start=2048, size=100M, type=uefi" "${A}1: size=300M" |
    sfdisk -q $A
printf '%s\\n' 'unit: sectors' '1 : start=1, size=2047, type=ee' '3 : start=2048, size=204800, type=ef, bootable' |
    sfdisk -q --label-nested dos $A
mkfs.vfat -F 16 -n ESP -i 1234abcd -s 4 ${A}2 >/dev/null
mkfs.ext4 -q ${A}1
mount ${A}1 $M; mkdir -p $M/boot/efi; mount ${A}2 $M/boot/efi
"""),
    "fat-and-others": Scenario("""
printf '%s\\n' 'label: gpt' 'size=64M, type=uefi' size=200M size=100M size=100M size=100M | sfdisk -q $A
mkfs.vfat -F 32 -n 'EFI SYS' ${A}1 >/dev/null
mkfs.ext4 -q ${A}2
mkfs.f2fs -q -f -l 'flash' -O extra_attr,inode_checksum,inode_crtime ${A}3
mkfs.exfat -L 'Camera' -c 8192 ${A}4 >/dev/null
mkntfs -q -Q -F -L 'Dáta' -c 8192 ${A}5
mount ${A}2 $M; mkdir -p $M/boot/efi $M/flash; mount ${A}1 $M/boot/efi; mount ${A}3 $M/flash
"""),

    # File systems

    "xfs": Scenario("""
printf '%s\\n' 'label: gpt' size=320M size=320M | sfdisk -q $A
mkfs.xfs -q -L root -m rmapbt=0,reflink=0 -i size=1024,sparse=0 -n size=8192 -s size=4096 -d agcount=3 ${A}1
mkfs.xfs -q --unsupported -m crc=1,finobt=1,rmapbt=1,bigtime=1,inobtcount=1 -l size=20m,sunit=8 -d su=64k,sw=2 ${A}2
mount ${A}1 $M; mkdir $M/srv; mount ${A}2 $M/srv
""", size=800),
    "xfs-old": Scenario("""
printf '%s\\n' 'label: dos' 'size=320M' 'size=320M' | sfdisk -q $A
mkfs.xfs -q -m crc=0,finobt=0 -i attr=2,projid32bit=0 -n ftype=0 ${A}1
mkfs.xfs -q -m bigtime=0,inobtcount=0 -n version=ci ${A}2
mount ${A}1 $M; mkdir $M/srv; mount ${A}2 $M/srv
""", size=800),
    "btrfs": Scenario("""
printf '%s\\n' 'label: gpt' size=500M | sfdisk -q $A
mkfs.btrfs -q -L system --csum xxhash -n 32k -m dup ${A}1
mount ${A}1 $M
btrfs -q subvolume create $M/@; btrfs -q subvolume create $M/@home; btrfs -q subvolume create $M/@/nested
btrfs -q subvolume create "$M/@/nested/it's, two"; mkdir $M/deep; btrfs -q subvolume create $M/deep/er
btrfs -q subvolume snapshot -r $M/@home $M/before >/dev/null; btrfs -q subvolume set-default $M/@
umount $M
mount -o subvol=@ ${A}1 $M; mkdir $M/home; mount -o subvol=@home ${A}1 $M/home
touch $M/swapfile; chattr +C $M/swapfile; fallocate -l 8M $M/swapfile; chmod 600 $M/swapfile
mkswap -q -L on-btrfs $M/swapfile; swapon $M/swapfile
"""),
    "btrfs-raid": Scenario("""
for d in $A $B $C; do printf 'label: gpt\\nsize=400M\\n' | sfdisk -q $d; done
mkfs.btrfs -q -f -L pool -d raid1 -m raid1c3 -O ^no-holes ${A}1 ${B}1 ${C}1
mount ${A}1 $M; btrfs -q subvolume create $M/data
""", disks=3),

    # Arrays

    "md-mirror": Scenario("""
for d in $A $B; do printf 'label: gpt\\nsize=1M, type=21686148-6449-6E6F-744E-656564454649\\nsize=100M\\nsize=300M\\n' |
    sfdisk -q $d; done
mdadm --create /dev/md1 --run --quiet -l1 -n2 -e1.0 --homehost=server --name=boot --bitmap=none ${A}2 ${B}2
mdadm --create /dev/md2 --run --quiet -l1 -n2 -e1.2 --homehost=server --name=root --bitmap=internal ${A}3 ${B}3
mkfs.ext4 -q /dev/md2; mkfs.ext2 -q /dev/md1
mount /dev/md2 $M; mkdir $M/boot; mount /dev/md1 $M/boot
""", disks=2),
    "md-esp": Scenario("""
for d in $A $B; do printf 'label: gpt\\nsize=64M, type=uefi\\nsize=300M\\n' | sfdisk -q $d; done
mdadm --create /dev/md1 --run --quiet -l1 -n2 -e1.0 --homehost=server --name=esp --bitmap=none ${A}1 ${B}1
mdadm --create /dev/md2 --run --quiet -l1 -n2 -e0.90 --bitmap=none ${A}2 ${B}2
mkfs.vfat -F 32 /dev/md1 >/dev/null; mkfs.ext4 -q /dev/md2
mount /dev/md2 $M; mkdir -p $M/boot/efi; mount /dev/md1 $M/boot/efi
""", disks=2),
    "md-levels": Scenario("""
for d in $A $B $C $D; do
    printf '%s\\n' 'label: gpt' size=40M size=40M size=40M size=40M size=60M size=300M | sfdisk -q $d
done
mdadm --create /dev/md5 --run --quiet -l5 -n3 -x1 -c64 --layout=right-symmetric --bitmap=none ${A}1 ${B}1 ${C}1 ${D}1
mdadm --create /dev/md6 --run --quiet -l6 -n4 -c128 -e1.1 --bitmap=internal --homehost=h --name=six \\
    ${A}2 ${B}2 ${C}2 ${D}2
mdadm --create /dev/md10 --run --quiet -l10 -n4 -c64 --layout=f2 --bitmap=none ${A}3 ${B}3 ${C}3 ${D}3
mdadm --create /dev/md4 --run --quiet -l4 -n3 -c64 --bitmap=none ${A}4 ${B}4 ${C}4
mdadm --create /dev/md0 --run --quiet -l0 -n3 -c32 ${A}5 ${B}5 ${C}5
for n in 5 6 10 4 0; do mkfs.ext4 -q /dev/md$n; done
mkfs.ext4 -q ${A}6
mount ${A}6 $M; for n in 5 6 10 4 0; do mkdir $M/md$n; mount /dev/md$n $M/md$n; done
""", disks=4),
    "md-degraded": Scenario("""
for d in $A $B; do printf 'label: dos\\nsize=300M, type=fd\\n' | sfdisk -q $d; done
mdadm --create /dev/md0 --run --quiet -l1 -n3 -e1.2 --homehost=server --name=0 --bitmap=internal ${A}1 missing ${B}1
mkfs.ext4 -q /dev/md0
mount /dev/md0 $M
""", disks=2),
    "md-partitioned": Scenario("""
mdadm --create /dev/md0 --run --quiet -l1 -n2 -e1.0 --homehost=server --name=disk --bitmap=internal $A $B
printf 'label: gpt\\nsize=100M\\n/dev/md0p3: size=300M, name=root\\n' | sfdisk -q /dev/md0; udevadm settle
mkfs.ext4 -q /dev/md0p3; mkfs.ext4 -q /dev/md0p1
mount /dev/md0p3 $M; mkdir $M/boot; mount /dev/md0p1 $M/boot
""", disks=2),
    "md-unequal": Scenario("""
printf 'label: gpt\\nsize=250M\\nsize=100M\\n' | sfdisk -q $A; printf 'label: dos\\nsize=400M\\n' | sfdisk -q $B
mdadm --create /dev/md0 --run --quiet -l1 -n2 -e1.2 --homehost=server --name=0 --bitmap=none ${A}1 ${B}1
mkfs.ext4 -q /dev/md0; mkfs.ext4 -q ${A}2
mount /dev/md0 $M; mkdir $M/boot; mount ${A}2 $M/boot
""", disks=2),

    # Volumes

    "lvm": Scenario("""
printf 'label: gpt\\nsize=100M\\n/dev/null2: size=600M, type=lvm\\n' | sed "s,/dev/null2,${A}2," | sfdisk -q $A
pvcreate -q -y ${A}2; vgcreate -q -s 8M --addtag fast $N-vg ${A}2; pvchange -q --addtag ssd ${A}2
lvcreate -q -y -L 200M -n root $N-vg; lvcreate -q -y -L 64M -n swap_1 $N-vg
lvcreate -q -y -L 160M -n ho-me $N-vg --addtag x
mkfs.ext4 -q /dev/$N-vg/root; mkswap -q /dev/$N-vg/swap_1; mkfs.ext4 -q /dev/$N-vg/ho-me; mkfs.ext2 -q ${A}1
mount /dev/$N-vg/root $M; mkdir $M/boot $M/home; mount ${A}1 $M/boot; mount /dev/$N-vg/ho-me $M/home
lvcreate -q -y -s -L 16M -n snap $N-vg/root
"""),
    "lvm-kinds": Scenario("""
for d in $A $B $C; do printf 'label: gpt\\nsize=700M\\n' | sfdisk -q $d; pvcreate -q -y ${d}1; done
vgcreate -q $N ${A}1 ${B}1 ${C}1
lvcreate -q -y -n root --type raid1 -m1 -R 512k -L 100M $N ${A}1 ${B}1
lvcreate -q -y -n striped -i3 -I 16k -L 60M $N
lvcreate -q -y -n five --type raid5 -i2 -I 32k -L 60M $N
lvcreate -q -y -n mirror --type mirror -m1 --mirrorlog core -L 40M $N ${B}1 ${C}1
lvcreate -q -y -n linear -L 64M $N ${C}1
for v in root striped five mirror linear; do mkfs.ext4 -q /dev/$N/$v; done
mount /dev/$N/root $M; for v in striped five mirror linear; do mkdir $M/$v; mount /dev/$N/$v $M/$v; done
""", disks=3),
    "lvm-raid": Scenario("""
for d in $A $B $C $D; do pvcreate -q -y $d; done
vgcreate -q $N $A $B $C $D
lvcreate -q -y -n root --type raid10 -i2 -m1 -L 120M $N
lvcreate -q -y -n six --type raid6 -i2 -L 60M $N || lvcreate -q -y -n six --type raid5 -i2 -L 60M $N
lvcreate -q -y -n four --type raid4 -i2 -L 60M $N
for v in root six four; do mkfs.ext4 -q /dev/$N/$v; done
mount /dev/$N/root $M; for v in six four; do mkdir $M/$v; mount /dev/$N/$v $M/$v; done
""", disks=4, size=400),
    "lvm-thin": Scenario("""
printf 'label: gpt\\nsize=100M\\nsize=600M\\n' | sfdisk -q $A
pvcreate -q -y ${A}2; vgcreate -q $N ${A}2
lvcreate -q -y --type thin-pool -n pool -L 440M -c 128k --poolmetadatasize 8M -Zn --discards nopassdown $N
lvcreate -q -y --type thin -V 400M -n root --thinpool pool $N
lvcreate -q -y --type thin -V 1G -n data --thinpool pool $N
mkfs.xfs -q /dev/$N/root; mkfs.ext4 -q /dev/$N/data; mkfs.ext4 -q ${A}1
mount /dev/$N/root $M; mkdir $M/boot $M/data; mount ${A}1 $M/boot; mount /dev/$N/data $M/data
lvcreate -q -y -s -n yesterday $N/root
"""),
    "lvm-cache": Scenario("""
printf 'label: gpt\\nsize=300M\\n' | sfdisk -q $A; printf 'label: gpt\\nsize=200M\\n' | sfdisk -q $B
pvcreate -q -y ${A}1 ${B}1; vgcreate -q $N ${A}1 ${B}1
lvcreate -q -y -n root -L 200M $N ${A}1
lvcreate -q -y --type cache-pool -n fast -L 64M $N ${B}1; lvconvert -q -y --type cache --cachepool $N/fast $N/root
mkfs.ext4 -q /dev/$N/root
mount /dev/$N/root $M
""", disks=2, lost="volumes"),

    # Encryption

    "luks-guided": Scenario(f"""
printf '%s\\n' 'label: gpt' 'size=64M, type=uefi' size=100M size=500M | sfdisk -q $A
printf '{PASSPHRASE}' | cryptsetup luksFormat -q {_LUKS2} --label crypt --key-file - ${{A}}3
printf '{PASSPHRASE}' | cryptsetup open --key-file - ${{A}}3 ${{N}}_crypt
pvcreate -q -y /dev/mapper/${{N}}_crypt; vgcreate -q $N-vg /dev/mapper/${{N}}_crypt
lvcreate -q -y -L 300M -n root $N-vg; lvcreate -q -y -l 100%FREE -n swap_1 $N-vg
mkfs.vfat -F 32 ${{A}}1 >/dev/null; mkfs.ext4 -q ${{A}}2; mkfs.ext4 -q /dev/$N-vg/root; mkswap -q /dev/$N-vg/swap_1
mount /dev/$N-vg/root $M; mkdir -p $M/boot $M/etc; mount ${{A}}2 $M/boot; mkdir $M/boot/efi; mount ${{A}}1 $M/boot/efi
echo "${{N}}_crypt UUID=$(blkid -p -s UUID -o value ${{A}}3) none luks,discard" >$M/etc/crypttab
"""),
    "luks1": Scenario(f"""
printf '%s\\n' 'label: gpt' size=100M size=200M size=300M | sfdisk -q $A
for n in 2 3; do
    printf '{PASSPHRASE}' | cryptsetup luksFormat -q --type luks1 -c serpent-xts-plain64 -s 256 -h sha512 \\
        --pbkdf-force-iterations 1000 --key-file - ${{A}}$n
    printf '{PASSPHRASE}' | cryptsetup open --key-file - ${{A}}$n $N$n
done
mkfs.ext4 -q ${{A}}1; mkfs.ext4 -q /dev/mapper/${{N}}2; mkfs.btrfs -q /dev/mapper/${{N}}3
mount /dev/mapper/${{N}}2 $M; mkdir $M/boot $M/home $M/etc; mount ${{A}}1 $M/boot; mount /dev/mapper/${{N}}3 $M/home
echo "${{N}}3 UUID=$(blkid -p -s UUID -o value ${{A}}3) /etc/keys/home.key luks" >$M/etc/crypttab
"""),
    "luks-on-lvm": Scenario(f"""
printf '%s\\n' 'label: gpt' size=100M size=600M | sfdisk -q $A
pvcreate -q -y ${{A}}2; vgcreate -q $N ${{A}}2; lvcreate -q -y -L 300M -n secret $N; lvcreate -q -y -L 100M -n open $N
printf '{PASSPHRASE}' | cryptsetup luksFormat -q {_LUKS2} --sector-size 4096 -c aes-cbc-essiv:sha256 -s 256 \\
    --key-file - /dev/$N/secret
printf '{PASSPHRASE}' | cryptsetup open --allow-discards --persistent --key-file - /dev/$N/secret $N-root
mkfs.ext4 -q /dev/mapper/$N-root; mkfs.ext4 -q ${{A}}1; mkfs.ext4 -q /dev/$N/open
mount /dev/mapper/$N-root $M; mkdir $M/boot $M/srv; mount ${{A}}1 $M/boot; mount /dev/$N/open $M/srv
"""),

    # Stacks

    "lvm-on-luks-on-md": Scenario(f"""
for d in $A $B; do printf 'label: gpt\\nsize=100M\\nsize=600M\\n' | sfdisk -q $d; done
mdadm --create /dev/md0 --run --quiet -l1 -n2 -e1.2 --homehost=server --name=boot --bitmap=none ${{A}}1 ${{B}}1
mdadm --create /dev/md1 --run --quiet -l1 -n2 -e1.2 --homehost=server --name=crypt --bitmap=internal ${{A}}2 ${{B}}2
printf '{PASSPHRASE}' | cryptsetup luksFormat -q {_LUKS2} --key-file - /dev/md1
printf '{PASSPHRASE}' | cryptsetup open --key-file - /dev/md1 $N
pvcreate -q -y /dev/mapper/$N; vgcreate -q $N-vg /dev/mapper/$N
lvcreate -q -y -L 320M -n root $N-vg; lvcreate -q -y -L 64M -n swap $N-vg
mkfs.ext4 -q /dev/md0; mkfs.xfs -q /dev/$N-vg/root; mkswap -q /dev/$N-vg/swap
mount /dev/$N-vg/root $M; mkdir $M/boot; mount /dev/md0 $M/boot
""", disks=2),
    "whole-disks": Scenario("""
mkfs.ext4 -q $A; pvcreate -q -y $B; vgcreate -q $N $B; lvcreate -q -y -L 200M -n var $N; mkfs.xfs -q -f $C
mkfs.ext4 -q /dev/$N/var
mount $A $M; mkdir $M/var $M/usr; mount /dev/$N/var $M/var; mount $C $M/usr
""", disks=3, size=400),
    "btrfs-on-luks": Scenario(f"""
printf '%s\\n' 'label: gpt' size=100M size=500M | sfdisk -q $A
printf '{PASSPHRASE}' | cryptsetup luksFormat -q {_LUKS2} --key-file - ${{A}}2
printf '{PASSPHRASE}' | cryptsetup open --key-file - ${{A}}2 luks-$N
mkfs.btrfs -q /dev/mapper/luks-$N; mkfs.ext4 -q ${{A}}1
mount /dev/mapper/luks-$N $M; btrfs -q subvolume create $M/root; btrfs -q subvolume create $M/home; umount $M
mount -o subvol=root /dev/mapper/luks-$N $M; mkdir $M/boot $M/home
mount -o subvol=home /dev/mapper/luks-$N $M/home; mount ${{A}}1 $M/boot
"""),

    # Not recoverable

    "multipath": Scenario("""
modprobe -a dm-multipath dm-round-robin
dmsetup create $N-mpath --uuid mpath-36000$N --table \
    "0 $(blockdev --getsz $A) multipath 0 0 1 1 round-robin 0 1 1 $A 1000"
udevadm settle
mkfs.ext4 -q /dev/mapper/$N-mpath
mount /dev/mapper/$N-mpath $M
""", recoverable=False),
    "plain-crypt": Scenario("""
printf secret | cryptsetup open --type plain -c aes-xts-plain64 -s 256 --key-file - $A $N
mkfs.ext4 -q /dev/mapper/$N
mount /dev/mapper/$N $M
""", recoverable=False),
    "md-linear": Scenario("""
for d in $A $B; do printf 'label: gpt\\nsize=100M\\nsize=200M\\n' | sfdisk -q $d; done
mdadm --create /dev/md7 --run --quiet -llinear -n2 ${A}1 ${B}1
mkfs.ext4 -q ${A}2; mkfs.ext4 -q /dev/md7
mount ${A}2 $M; mkdir $M/srv; mount /dev/md7 $M/srv
""", disks=2, recoverable=False),
    "boot-inside-luks": Scenario(f"""
printf '%s\\n' 'label: gpt' size=500M | sfdisk -q $A
printf '{PASSPHRASE}' | cryptsetup luksFormat -q {_LUKS2} --key-file - ${{A}}1
printf '{PASSPHRASE}' | cryptsetup open --key-file - ${{A}}1 $N
mkfs.ext4 -q /dev/mapper/$N
mount /dev/mapper/$N $M
""", recoverable=False),
    "xfs-external-log": Scenario("""
printf '%s\\n' 'label: gpt' size=400M size=100M | sfdisk -q $A
mkfs.xfs -q -l logdev=${A}2,size=64m ${A}1
mount -o logdev=${A}2 ${A}1 $M
""", recoverable=False),
}
