"""The kinds of sample machines, each as people have them: what is installed, how its disks are laid out."""

import uuid
from dataclasses import dataclass
from typing import Literal

import build_iso
from bootenv.rehearsal import MiB

PASSWORD = "recovery"              # root's
PASSPHRASE = "open, sesame"        # of what is encrypted
HOSTNAME = "sample"
# An emulated machine with others beside it may need more than systemd's 90 seconds to see its disks.
KERNEL_ARGUMENTS = "console=tty0 console=ttyS0 mitigations=off no_timer_check systemd.default_device_timeout_sec=900"

PACKAGES = ("systemd-sysv", "linux-image-amd64", "zstd", "e2fsprogs", "fdisk", "acl", "attr", "libcap2-bin", "login",
            "passwd", "mount", "udev", "kmod", "procps")

# Of the program, where it is installed.
DEPENDS = tuple(word.split()[0] for word in build_iso.DEPENDS.split(", "))

# Emulated machines copy some hundred files a second: what no sample needs stays out.
LEFT_OUT = (
    "/usr/share/doc/*", "/usr/share/man/*", "/usr/share/info/*", "/usr/share/locale/*", "/usr/share/bug/*",
    "/usr/share/lintian/*", "/usr/share/zsh/*", "/usr/share/bash-completion/*", "/usr/share/zoneinfo/[A-TV-Z]*",
    "/usr/lib/x86_64-linux-gnu/gconv/*", "/usr/lib/x86_64-linux-gnu/perl/*", "/usr/share/perl/5*",
    *(f"{lib}/modules/*/kernel/{name}/*" for lib in ("/lib", "/usr/lib") for name in (
        "sound", "samples", "net/bluetooth", "net/mac80211", "net/wireless", "net/netfilter", "net/ipv4/netfilter",
        "net/ipv6/netfilter", "net/bridge", "net/sched", "net/tipc", "net/sctp", "net/batman-adv", "net/can",
        "net/ceph", "net/dccp", "net/l2tp", "net/mac802154",
        "net/openvswitch", "net/rds", "net/rxrpc", "net/smc", "net/sunrpc", "net/wireless", "drivers/accessibility",
        "drivers/android", "drivers/bluetooth", "drivers/comedi", "drivers/gpu", "drivers/hwmon", "drivers/i2c",
        "drivers/iio", "drivers/infiniband", "drivers/input/joystick", "drivers/input/misc", "drivers/input/tablet",
        "drivers/input/touchscreen", "drivers/isdn", "drivers/leds", "drivers/media", "drivers/memstick", "drivers/mfd",
        "drivers/mtd", "drivers/net", "drivers/platform", "drivers/power", "drivers/regulator", "drivers/staging",
        "drivers/target", "drivers/thermal", "drivers/usb/gadget", "drivers/usb/misc", "drivers/usb/serial",
        "drivers/usb/typec", "drivers/video", "drivers/w1", "drivers/watchdog", "fs/afs", "fs/ceph", "fs/cifs",
        "fs/coda", "fs/dlm", "fs/gfs2", "fs/jfs", "fs/nfs", "fs/nfsd", "fs/nilfs2", "fs/ocfs2", "fs/orangefs",
        "fs/reiserfs", "fs/smb", "fs/ubifs", "fs/udf",
    )),
)


@dataclass(frozen=True)
class Sample:
    """A kind of sample machine.

    The scripts run in user-mode Linux with the machine's own tree as their root, so that its own tools make its disks:
    `make` leaves its file systems mounted below /target by `put`, `configure` is called when its files are there.
    """

    packages: tuple[str, ...]
    make: str
    configure: str = ""
    early: str = ""                 # mmdebstrap's hook before the packages are installed, in $1
    initramfs: str = ""             # makes one that knows this machine, where the packages' own does not do
    first: tuple[str, ...] = ()     # what its first start does from within
    suite: str = "trixie"
    disks: tuple[int, ...] = (3072 * MiB,)
    firmware: Literal["bios", "uefi", "secure"] = "bios"
    loader: bool = False            # it starts by what `configure` laid down, not by the firmware's own hand
    encrypted: bool = False


def _uuid(name: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_DNS, f"{name}.sample.invalid"))


def _odd_home(device: str, seed: str = "") -> str:
    """As little like a default as can be: blocks, inodes, reserve, features, label, check interval."""
    return ("mkfs.ext4 -q -F -O ^64bit,^metadata_csum,^metadata_csum_seed,^orphan_file,^huge_file,uninit_bg,large_dir,"
            "ea_inode -b 2048 -I 512 -i 16384 -m 3 -L 'home sweet home' -e remount-ro "
            f"-E stride=4,stripe_width=16,nodiscard{seed} {device}")


ARRAY = "5a3b1e00:c0ffee00:0badcafe:00c0ffee"

SAMPLES = {
    # Numbers with gaps, order on disk unlike the numbers, starts off every alignment, names that need quoting, flags.
    "gpt": Sample(
        packages=("grub-pc", "initramfs-tools"),
        make=f"""
sfdisk --quiet --wipe=never /dev/ubda <<'END'
label: gpt
label-id: {_uuid("gpt").upper()}
first-lba: 34
table-length: 128
1: start=40, size=2008, type=21686148-6449-6E6F-744E-656564454649, name="BIOS boot", uuid={_uuid("gpt-1").upper()}
3: start=526336, size=4194304, type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name="Débian  röot, '1'", \
uuid={_uuid("gpt-3").upper()}, attrs="LegacyBIOSBootable GUID:59"
4: start=4099, size=262144, type=0657FD6D-A4AB-43C4-84E5-0933C84B4F4F, uuid={_uuid("gpt-4").upper()}
7: start=4720647, size=819200, type=933AC7E1-2EB4-4F13-B844-0E14E2AEF915, name="/home Łukasz \\x22Ω\\x22", \
uuid={_uuid("gpt-7").upper()}, attrs="RequiredPartition GUID:48,63"
END
udevadm settle
mkfs.ext4 -q -F -U {_uuid("gpt-root")} -E hash_seed={_uuid("gpt-root-hash")} /dev/ubda3
{_odd_home("/dev/ubda7", f",hash_seed={_uuid('gpt-home-hash')}")}
tune2fs -U {_uuid("gpt-home")} /dev/ubda7
mkswap -q -L swäp -U {_uuid("gpt-swap")} /dev/ubda4
put /dev/ubda3 / ext4 errors=remount-ro 1
put /dev/ubda7 /home ext4 defaults,relatime 2
swap /dev/ubda4
""",
        first=("grub-install /dev/vda && update-grub",),
    ),
    # Secure Boot: shim and the signed GRUB.
    "uefi": Sample(
        packages=("grub-efi-amd64", "grub-efi-amd64-signed", "shim-signed", "efibootmgr", "initramfs-tools",
                  "dosfstools"),
        make="""
sfdisk --quiet /dev/ubda <<END
label: gpt
1: size=256MiB, type=uefi, name="EFI System Partition"
2: size=2560MiB, type=linux
3: type=swap
END
udevadm settle
mkfs.vfat -F 32 -n ESP /dev/ubda1
mkfs.ext4 -q /dev/ubda2
mkswap -q /dev/ubda3
put /dev/ubda2 / ext4 errors=remount-ro 1
put /dev/ubda1 /boot/efi vfat umask=0077 1
swap /dev/ubda3
""",
        configure="shim /dev/ubda2 /boot",
        # The removable path, too, as many an administrator wants it: without NVRAM the machine starts from there.
        first=("grub-install --force-extra-removable && update-grub",),
        firmware="secure", loader=True,
    ),
    # A server that runs since before the last release.
    "raid": Sample(
        suite="bookworm",
        packages=("usr-is-merged", "grub-pc", "initramfs-tools", "mdadm", "lvm2", "xfsprogs"),
        disks=(3072 * MiB, 3072 * MiB),
        make=f"""
for disk in /dev/ubda /dev/ubdb; do
    echo 'type=fd, bootable' | sfdisk --quiet --label dos $disk
done
udevadm settle
mdadm --create /dev/md0 --run --level=1 --raid-devices=2 --metadata=1.2 --bitmap=internal --assume-clean \
    --uuid={ARRAY} --homehost={HOSTNAME} --name=0 /dev/ubda1 /dev/ubdb1
pvcreate /dev/md0
vgcreate sample-vg /dev/md0
lvcreate --yes --size 2000M --name root sample-vg
lvcreate --yes --size 160M --name swap_1 sample-vg
lvcreate --yes --size 640M --name home sample-vg
mkfs.ext4 -q /dev/mapper/sample--vg-root
mkfs.xfs -q -L home -m rmapbt=1,reflink=0,crc=1 -i size=1024 -n size=8192 /dev/mapper/sample--vg-home
mkswap -q /dev/mapper/sample--vg-swap_1
put /dev/mapper/sample--vg-root / ext4 errors=remount-ro 1
put /dev/mapper/sample--vg-home /home xfs defaults 0
swap /dev/mapper/sample--vg-swap_1
""",
        # As mdadm's mkconf writes it. It is there before the initramfs is made, which takes minutes in user-mode Linux.
        early=f"""mkdir "$1/etc/mdadm" && printf '%s\\n' 'HOMEHOST <system>' 'MAILADDR root' \
            'ARRAY /dev/md/0  metadata=1.2 UUID={ARRAY} name={HOSTNAME}:0' >"$1/etc/mdadm/mdadm.conf\"""",
        first=("grub-install /dev/vda && grub-install /dev/vdb && update-grub",),
    ),
    # Debian's guided encrypted layout.
    "luks": Sample(
        packages=("grub-efi-amd64", "grub-efi-amd64-signed", "shim-signed", "efibootmgr", "initramfs-tools", "lvm2",
                  "cryptsetup-initramfs", *DEPENDS),
        make=f"""
sfdisk --quiet /dev/ubda <<END
label: gpt
1: size=128MiB, type=uefi
2: size=512MiB, type=linux
3: type=linux
END
udevadm settle
mkfs.vfat -F 32 /dev/ubda1
mkfs.ext4 -q /dev/ubda2
# As argon2 is on a computer with little memory: an emulated one is slow.
printf %s '{PASSPHRASE}' | cryptsetup luksFormat --batch-mode --type luks2 --pbkdf argon2id --pbkdf-memory 32768 \
    --pbkdf-force-iterations 4 --pbkdf-parallel 1 --key-file=- /dev/ubda3
printf %s '{PASSPHRASE}' | cryptsetup open --allow-discards --key-file=- /dev/ubda3 vda3_crypt
pvcreate /dev/mapper/vda3_crypt
vgcreate sample-vg /dev/mapper/vda3_crypt
lvcreate --yes --size 160M --name swap_1 sample-vg
lvcreate --yes --extents 100%FREE --name root sample-vg
mkfs.ext4 -q /dev/mapper/sample--vg-root
mkswap -q /dev/mapper/sample--vg-swap_1
put /dev/mapper/sample--vg-root / ext4 errors=remount-ro 1
put /dev/ubda2 /boot ext4 defaults 2
put /dev/ubda1 /boot/efi vfat umask=0077 1
swap /dev/mapper/sample--vg-swap_1
""",
        configure="""
echo "vda3_crypt UUID=$(uuid /dev/ubda3) none luks,discard" >>/target/etc/crypttab
shim /dev/ubda2 ""
""",
        initramfs="update-initramfs -u",
        first=("rm -r /boot/efi/EFI/BOOT", "grub-install && update-grub"),
        firmware="secure", loader=True, encrypted=True,
    ),
    # Subvolumes, and systemd-boot.
    "btrfs": Sample(
        packages=("systemd-boot", "btrfs-progs", "initramfs-tools", "dosfstools", "efibootmgr"),
        make="""
sfdisk --quiet /dev/ubda <<END
label: gpt
1: size=300MiB, type=uefi
2: type=4f68bce3-e8cd-4db1-96e7-fbcaf984b709
END
udevadm settle
mkfs.vfat -F 32 /dev/ubda1
mkfs.btrfs -q -L system /dev/ubda2
mkdir /top
mount /dev/ubda2 /top
for name in @ @home @swap; do btrfs -q subvolume create /top/$name; done
umount /top
put /dev/ubda2 / btrfs subvol=@,compress=zstd:1 0
put /dev/ubda2 /home btrfs subvol=@home,compress=zstd:1 0
put /dev/ubda2 /swap btrfs subvol=@swap 0
put /dev/ubda1 /boot/efi vfat umask=0077 1
""",
        configure="""
btrfs -q subvolume create /target/srv/data
echo Monday >/target/srv/data/diary
mkdir /target/srv/.snapshots
btrfs -q subvolume snapshot -r /target/srv/data /target/srv/.snapshots/monday
echo Tuesday >>/target/srv/data/diary
btrfs -q filesystem mkswapfile --size 64m /target/swap/swapfile
echo '/swap/swapfile none swap sw 0 0' >>/fstab
mkdir -p /target/etc/kernel
cp $folder/arguments /target/etc/kernel/cmdline
# For the first start.
mkdir -p /target/boot/efi/EFI/BOOT /target/boot/efi/loader/entries
set -- /usr/lib/systemd/boot/efi/systemd-bootx64.efi*       # signed or not
cp "$1" /target/boot/efi/EFI/BOOT/BOOTX64.EFI
cp /target/boot/vmlinuz-$kernel /target/boot/efi/first-vmlinuz
cp /target/boot/initrd.img-$kernel /target/boot/efi/first-initrd
printf 'linux /first-vmlinuz\\ninitrd /first-initrd\\noptions %s\n' "$(cat $folder/arguments)" \
    >/target/boot/efi/loader/entries/first.conf
""",
        first=("rm /boot/efi/first-* /boot/efi/loader/entries/first.conf", "bootctl install",
               "kernel-install add $(uname -r) /boot/vmlinuz-$(uname -r) /boot/initrd.img-$(uname -r)"),
        firmware="uefi", loader=True,
    ),
    # Logical partitions, XFS on LVM, and an initramfs that knows this machine alone.
    "xfs": Sample(
        packages=("dracut", "grub-pc", "lvm2", "xfsprogs"),
        make=f"""
sfdisk --quiet /dev/ubda <<END
label: dos
label-id: 0x1badb002
1: start=2048, size=1048576, type=83, bootable
3: start=1050624, type=f
5: start=1052672, size=262144, type=82
6: start=1316927, type=8e
END
udevadm settle
mkfs.ext4 -q /dev/ubda1
mkswap -q -L swäp /dev/ubda5
pvcreate /dev/ubda6
vgcreate vg0 /dev/ubda6
lvcreate --yes --size 1900M --name root vg0
lvcreate --yes --size 400M --name home vg0
mkfs.xfs -q -L root /dev/mapper/vg0-root
{_odd_home("/dev/mapper/vg0-home")}
put /dev/mapper/vg0-root / xfs defaults 0
put /dev/ubda1 /boot ext4 defaults 2
put /dev/mapper/vg0-home /home ext4 defaults,relatime 2
swap /dev/ubda5
""",
        initramfs="dracut --force --no-hostonly --regenerate-all",
        first=("dracut --force", "grub-install /dev/vda && update-grub"),
    ),
}
