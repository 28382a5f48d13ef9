"""The live image's recipe: its scripts, its lists, and that a build takes from its cache what has not changed."""

import os
import re
import struct
import subprocess
import tomllib
from argparse import ArgumentTypeError
from fnmatch import fnmatch
from pathlib import Path

import pytest

import build_iso
from build_iso import IMAGE, Build, BuildFailed

SCRIPTS = sorted(path for path in IMAGE.iterdir() if path.read_bytes().startswith(b"#!/"))
MODULES_DEP = """\
kernel/drivers/scsi/sd_mod.ko: kernel/drivers/scsi/scsi_mod.ko
kernel/drivers/scsi/scsi_mod.ko:
kernel/drivers/scsi/bfa/bfa.ko: kernel/drivers/scsi/scsi_transport_fc.ko
kernel/drivers/scsi/scsi_transport_fc.ko:
kernel/fs/isofs/isofs.ko: kernel/drivers/cdrom/cdrom.ko
kernel/drivers/cdrom/cdrom.ko:
"""


@pytest.fixture
def build(tmp_path):
    build = Build("trixie", tmp_path / "cache", tmp_path / "out/medium.iso")
    build.cache.mkdir()
    return build


@pytest.fixture
def modules(tmp_path):
    (tmp_path / "modules.dep").write_text(MODULES_DEP)
    (tmp_path / "modules.builtin").write_text("kernel/drivers/virtio/virtio_pci.ko\n")
    return tmp_path


@pytest.fixture
def recipe(monkeypatch):
    """A recipe of three steps that write down that they ran; failing(name) makes one of them fail."""
    ran: list[str] = []
    fails: set[str] = set()

    def step(name):
        def verb(build):
            ran.append(name)
            if name in fails:
                raise BuildFailed(name)
            build.base.mkdir(exist_ok=True)
            build.output.parent.mkdir(exist_ok=True)
            build.output.write_bytes(b"iso")
        verb.__name__ = name
        return name, verb

    monkeypatch.setattr(build_iso, "BASE", (step("debian"), step("wheels")))
    monkeypatch.setattr(build_iso, "PROGRAM", (step("code"),))
    return ran, fails


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_scripts_parse_and_can_be_run(script):
    interpreter = "bash" if "bash" in script.read_text().splitlines()[0] else "sh"
    assert subprocess.call((interpreter, "-n", script)) == 0
    assert os.access(script, os.X_OK)


def test_the_boot_menu_parses(tmp_path):
    checkers = [path for path in ("/usr/bin/grub-script-check", "/usr/bin/grub2-script-check") if Path(path).exists()]
    if not checkers:
        pytest.skip("grub-script-check is not installed")
    assert subprocess.call((checkers[0], IMAGE / "grub.cfg")) == 0


def test_the_boot_menu_answers_to_the_keys_that_people_press():
    keys = re.search(r"for key in (.*?); do\n", (IMAGE / "grub.cfg").read_text(), re.S)[1].split()
    assert {"$enter", "$escape", "f2", "f8", "a", "z", "A", "Z", "0", "9"} <= {key.strip('"') for key in keys}
    assert keys[-2:] == ['"', '"']        # the space bar


def test_the_boot_menu_knows_the_keys_that_cannot_be_typed_in_it(build):
    for platform in ("i386-pc", "x86_64-efi"):
        folder = build.root / "usr/lib/grub" / platform
        folder.mkdir(parents=True)
        (folder / "normal.mod").touch()
        (folder / "kernel.img").touch()
    build_iso.grub_files(build, "0123456789abcdef")
    block = (build.stage / "boot/grub/keys.env").read_bytes()
    assert len(block) == 1024
    assert b"\nenter=\r\n" in block
    assert b"\nescape=\x1b\n" in block
    menu = (build.stage / "boot/grub/grub.cfg").read_text()
    assert "asr.id=0123456789abcdef " in menu
    assert "@ID@" not in menu
    assert sorted(path.name for path in (build.stage / "boot/grub").rglob("*.*")) == [
        "grub.cfg", "keys.env", "normal.mod", "normal.mod"]


def test_every_link_into_the_program_has_a_goal():
    goals = [goal.removeprefix("/usr/lib/asr/bootenv/image/") for goal in build_iso.LINKS.values() if "/image/" in goal]
    assert {"init", "reboot", "asr-command", "lvm-set-uuids"} == set(goals)
    assert all((IMAGE / goal).exists() for goal in goals)


def test_packages_are_names_and_named_once():
    packages = build_iso.listed(IMAGE / "packages")
    assert len(set(packages)) == len(packages)
    assert all(re.fullmatch(r"[a-z0-9][a-z0-9+.-]+", package) for package in packages)
    assert {"linux-image-amd64", "busybox-static", "tmux", "python3", "grub-pc-bin"} <= set(packages)


@pytest.mark.parametrize("needed", [
    "usr/lib/modules/6.12/kernel/drivers/block/floppy.ko.xz",
    "usr/lib/modules/6.12/kernel/drivers/usb/storage/usb-storage.ko.xz",
    "usr/lib/modules/6.12/kernel/drivers/net/ethernet/intel/e1000e/e1000e.ko.xz",
    "usr/lib/modules/6.12/kernel/drivers/md/dm-mod.ko.xz",
    "usr/lib/modules/6.12/kernel/fs/btrfs/btrfs.ko.xz",
    "usr/share/doc/tmux/copyright",
    "usr/lib/udev/rules.d/60-persistent-storage.rules",
    "usr/share/zoneinfo/Europe/Berlin",
])
def test_pruning_spares_what_recovery_needs(needed):
    parents = [str(path) for path in (Path(needed), *Path(needed).parents)]
    assert not [pattern for pattern in build_iso.listed(IMAGE / "prune") if any(fnmatch(p, pattern) for p in parents)]


def test_pruning_leaves_no_trace_of_the_build_machine(build):
    for path in ("etc/resolv.conf", "etc/apt/sources.list", "etc/apt/apt.conf.d/99mmdebstrap", "var/lib/apt/lists/x"):
        (build.root / path).parent.mkdir(parents=True, exist_ok=True)
        (build.root / path).write_text("mirror.example")
    (build.root / "etc/hostname").write_text("buildhost")
    build_iso.prune(build)
    left = {path.name: path.read_text() for path in build.root.rglob("*") if path.is_file()}
    assert left.keys() == {"hostname", "hosts", "machine-id"}
    assert left["hostname"] == "recovery\n"


def test_modules_come_with_what_they_depend_on(modules):
    assert build_iso.module_closure(modules, ["sd-mod", "virtio_pci"]) == [
        "kernel/drivers/scsi/scsi_mod.ko", "kernel/drivers/scsi/sd_mod.ko"]


def test_a_folder_of_modules_without_one_of_them(modules):
    assert build_iso.module_closure(modules, ["-bfa", "drivers/scsi/"]) == [
        "kernel/drivers/scsi/scsi_mod.ko", "kernel/drivers/scsi/scsi_transport_fc.ko",
        "kernel/drivers/scsi/sd_mod.ko"]


def test_an_unknown_module_is_named(modules):
    with pytest.raises(BuildFailed, match="no_such_driver"):
        build_iso.module_closure(modules, ["isofs", "no_such_driver"])


def test_programs_of_the_initramfs_come_with_their_libraries():
    listing = """\
\tlinux-vdso.so.1 (0x00007f591b8cf000)
\tlibcap.so.2 => /lib/x86_64-linux-gnu/libcap.so.2 (0x00007f591b5c8000)
\t/lib64/ld-linux-x86-64.so.2 (0x00007f591b8d1000)
"""
    assert build_iso.libraries(listing) == ["lib/x86_64-linux-gnu/libcap.so.2", "lib64/ld-linux-x86-64.so.2"]


# What the signed GRUB of the minimal OS is, and what starts its arrays and volumes, must be in the image.
def test_the_live_system_has_what_the_minimal_os_starts_from():
    from bootenv.bootloader import _ESP_FILES
    assert not [s for s in _ESP_FILES.values() if any(fnmatch(s, pattern) for pattern in build_iso.BESIDE)]
    modules = build_iso.listed(IMAGE / "initramfs-modules")
    assert {"md-mod", "dm-mod", "dm-raid", "raid1", "raid456", "btrfs", "xfs"} <= set(modules)


def said_by_sh(script):
    with subprocess.Popen(("sh", "-c", script), text=True, stdout=subprocess.PIPE) as shell:
        return shell.communicate()[0]


def function_of(script, name):
    """The text of a shell function of one of the image's scripts."""
    return re.search(rf"^{name}\(\) \{{$.*?^\}}.*?$", (IMAGE / script).read_text(), re.M | re.S)[0]


@pytest.mark.parametrize(("told", "looked_at"), [
    ("arrays= volumes=", ["/dev/md0", "/dev/vda", "/dev/vda1"]),
    ("arrays=' u@/dev/md0' volumes=", ["/dev/md0"]),
    ("arrays=' u@/dev/md0' volumes=' vg/root'", []),
])
def test_the_initramfs_looks_at_no_member_of_what_it_puts_together(tmp_path, told, looked_at):
    for name, size in (("md0", 8), ("vda", 8), ("vda1", 8), ("loop0", 8), ("vdb", 0)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(f"{size}\n")
    script = function_of("initramfs-init", "blocks").replace("/sys/class/block", str(tmp_path))
    assert said_by_sh(f"{told}\n{script}\nblocks").split() == looked_at


@pytest.mark.parametrize(("told", "waited", "ran"), [
    ("arrays= volumes=", 99, []),
    ("arrays=' u:u@/dev/x' volumes=", 0, ["mdadm --assemble /dev/x --uuid=u:u --config=partitions --no-degraded"]),
    ("arrays=' u:u@/dev/x' volumes=", 20, ["mdadm --assemble /dev/x --uuid=u:u --config=partitions --run"]),
    ("arrays= volumes=' my-vg/root'", 0, ["lvm lvchange --activate y --activationmode complete"]),
    ("arrays= volumes=' my-vg/root'", 20, ["lvm lvchange --activate y --activationmode degraded"]),
])
def test_the_initramfs_starts_what_it_is_told_and_waits_for_all_of_it(tmp_path, told, waited, ran):
    functions = "\n".join(function_of("initramfs-init", name) for name in ("put_together", "array", "volume"))
    functions = functions.replace(">/run/put-together.log 2>&1", "").replace("echo 1 >/sys", ": /sys")
    # The stand-ins say how they were called.
    script = f"""
patience=20 waited={waited} {told}
for name in mdadm lvm; do eval "$name() {{ echo $name \"\\$@\"; }}"; done
modprobe() {{ :; }}
ln() {{ :; }}
cat() {{ echo 0; }}
{functions}
put_together"""
    shown = [line for line in said_by_sh(script).splitlines() if line.startswith(("mdadm", "lvm"))]
    assert [" ".join(line.split()[:6]) for line in shown] == ran


def chosen_font(tmp_path, size):
    """How setfont is called for a framebuffer of this size, for the first console."""
    (tmp_path / "size").write_text(f"{size}\n")
    script = function_of("init", "font").replace("/sys/class/graphics/fb0/virtual_size", str(tmp_path / "size"))
    script = "image=image fonts=\n" + script
    said = said_by_sh(f'for name in setfont stty; do eval "$name() {{ echo $name \\"\\$@\\"; }}"; done\n{script}\nfont')
    return [" ".join(line.split()[3:]).removesuffix(".psf.gz") for line in said.splitlines()
            if line.startswith("setfont -C /dev/tty1")]


def test_a_font_is_doubled():
    head = struct.pack("<8I", 0x864ab572, 0, 36, 1, 2, 6, 3, 10) + b"more"
    glyphs = bytes([0b10000000, 0b01000000]) * 3 + bytes([0, 0, 0b11111111, 0b11000000, 0, 0])
    font = build_iso.doubled(head + glyphs + b"unicode")
    assert struct.unpack_from("<8I", font)[4:] == (2, 18, 6, 20)
    assert font[32:36] + font[-7:] == b"moreunicode"
    one = bytes([0b11000000, 0, 0b00110000])
    assert font[36:-7] == one * 6 + bytes(6) + bytes([0xff, 0xff, 0xf0]) * 2 + bytes(6)


@pytest.mark.parametrize(("size", "fonts"), [
    ("640,480", ["16"]),
    ("800,600", ["20x10"]),
    ("1024,768", ["24x12"]),
    ("1280,800", ["32x16"]),
    ("1366,768", ["--double 14"]),
    ("1920,1080", ["--double 20x10"]),
    ("2560,1440", ["--double 28x14"]),
    ("3840,2160", ["--double image/fonts/20x10.psf"]),
    ("320,200", []),                   # no font is small enough: the kernel's stays
])
def test_the_font_is_the_largest_with_which_80x25_fit(tmp_path, size, fonts):
    assert chosen_font(tmp_path, size) == fonts


@pytest.mark.parametrize(("told", "loaded", "said"), [
    ("quiet asr.keymap=us asr.keymap=de-latin1", "--quiet --console=/dev/tty1 de-latin1", ""),
    ("quiet", "", ""),
    ("asr.keymap=xx", "--quiet --console=/dev/tty1 xx", "asr.keymap=xx: there is no such keyboard layout"),
    ("asr.keymap=../../etc/shadow", "", "asr.keymap=../../etc/shadow: there is no such keyboard layout"),
])
def test_the_command_line_names_the_keyboard(tmp_path, told, loaded, said):
    (tmp_path / "cmdline").write_text(told)
    functions = "\n".join(function_of("init", name) for name in ("argument", "keyboard"))
    functions = functions.replace("/proc/cmdline", str(tmp_path / "cmdline")).replace("/run/asr", str(tmp_path))
    script = f'loadkeys() {{ echo "$@" >{tmp_path}/called; [ "$3" = de-latin1 ]; }}\n{functions}\nkeyboard'
    assert said_by_sh(script) == ""
    files = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert files.get("called", "").strip() == loaded
    assert files.get("keymap", "") == ("de-latin1\n" if "de-latin1" in loaded else "")
    assert said in files.get("setup.log", "")


@pytest.mark.parametrize(("told", "address"), [("asr.address=192.0.2.9/24,192.0.2.1 quiet", "192.0.2.9/24,192.0.2.1\n"),
                                               ("quiet", None)])
def test_the_command_line_names_the_address(tmp_path, told, address):
    (tmp_path / "cmdline").write_text(told)
    functions = "\n".join(function_of("init", name) for name in ("argument", "address"))
    functions = functions.replace("/proc/cmdline", str(tmp_path / "cmdline")).replace("/run/asr", str(tmp_path))
    assert said_by_sh(f"{functions}\naddress") == ""
    assert ((tmp_path / "address").read_text() if address else (tmp_path / "address").exists() or None) == address


@pytest.mark.parametrize(("carriers", "leases", "trouble"), [
    ({}, "", "No network card was found"),
    ({"eth0": "0", "eth1": "0"}, "", "No network card has a link (eth0 eth1)"),
    ({"eth0": "0", "eth1": "1"}, "", "No DHCP server gave eth1 an address."),
    ({"eth0": "1", "eth1": "1"}, "eth1", ""),
])
def test_the_network_says_what_it_lacks(tmp_path, carriers, leases, trouble):
    for card, carrier in carriers.items():
        (tmp_path / card / "device").mkdir(parents=True)
        (tmp_path / card / "carrier").write_text(carrier)
    (tmp_path / "lo").mkdir()
    functions = "\n".join(function_of("initramfs-init", name) for name in ("cards", "network"))
    functions = functions.replace("/sys/class/net", str(tmp_path)).replace("/run/udhcpc.log", "/dev/null")
    script = (f'ip() {{ :; }}\nsleep() {{ :; }}\nudhcpc() {{ [ "$2" = "{leases}" ]; }}\n{functions}\n'
              'network && echo good || echo "$trouble"')
    assert said_by_sh(script).startswith(trouble or "good")


def test_the_initramfs_knows_the_medium_by_the_same_checksum(tmp_path):
    for name in build_iso.PARTS:
        (tmp_path / name).write_text(name)
    id = build_iso.medium_id(tmp_path)
    whole = re.search(r"^whole\(\) .*$", (IMAGE / "initramfs-init").read_text(), re.M)[0]
    parts = re.search(r'^parts=".*?"', (IMAGE / "initramfs-init").read_text(), re.M)[0]
    look = f"{parts}\nid={id}\n{whole}\nwhole {tmp_path} && echo whole || echo damaged"
    assert said_by_sh(look) == "whole\n"
    (tmp_path / "root.squashfs").write_text("root.squashfz")
    assert said_by_sh(look) == "damaged\n"


@pytest.mark.parametrize("script", ["grub.cfg", "netboot-grub.cfg", "netboot.ipxe"])
def test_every_start_has_the_id_and_what_was_appended(script):
    text = build_iso.filled(IMAGE / script, "0123456789abcdef", "asr.keymap=fr")
    line = re.search(r"^ *(?:linux|kernel) .*$", text, re.M)[0]
    assert " asr.id=0123456789abcdef " in line
    assert line.endswith(" asr.keymap=fr")
    assert (" asr.http=" in line) == (script != "grub.cfg")
    assert not re.search(r"@[A-Z]+@", text)


def test_what_is_appended_is_words():
    assert build_iso.kernel_arguments(" asr.keymap=fr  asr.ssh=AAAA+/= ") == "asr.keymap=fr asr.ssh=AAAA+/="
    for text in ("a;b", "a'b", 'a"b', "$a", "a\nb", "{a}"):
        with pytest.raises(ArgumentTypeError, match="can't be written in a boot menu"):
            build_iso.kernel_arguments(text)


def test_firmware_is_what_the_drivers_name(build, tmp_path, monkeypatch):
    tree = tmp_path / "tree/usr/lib/firmware"
    for name in ("rtl_nic/a.fw", "rtl_nic/unwanted.fw", "qed/b.bin.xz"):
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(name)
    (tree / "link.fw").symlink_to("rtl_nic/a.fw")
    monkeypatch.setattr(build_iso, "firmware_tree", lambda build: tmp_path / "tree")
    monkeypatch.setattr(build_iso, "output_of", lambda *argv: "rtl_nic/a.fw\nqed/b.bin\nlink.fw\nmissing.fw\n")
    build_iso.copy_firmware(build, [Path("r8169.ko")], tmp_path / "goal")
    assert {str(path.relative_to(tmp_path / "goal")): path.read_text()
            for path in (tmp_path / "goal").rglob("*") if path.is_file()} == {
        "rtl_nic/a.fw": "rtl_nic/a.fw", "qed/b.bin.xz": "qed/b.bin.xz", "link.fw": "rtl_nic/a.fw"}


def test_every_dependency_is_pinned_with_a_hash():
    lock = (IMAGE / "requirements.txt").read_text()
    entries = re.findall(r"^(\S+)==\S+ \\\n(?: +--hash=sha256:[0-9a-f]{64}(?: \\)?\n?)+", lock, re.M)
    pinned = {name.lower().replace("_", "-") for name in entries}
    project = tomllib.loads((build_iso.HERE / "pyproject.toml").read_text())["project"]
    assert {re.split(r"[<>=]", name)[0].replace("_", "-") for name in project["dependencies"]} <= pinned
    assert lock.count("==") == len(entries) + lock.count('"\\(.metadata.name)==')


def test_only_debians_own_host_is_named():
    texts = [build_iso.HERE / "build_iso.py", *(path for path in IMAGE.iterdir() if path.is_file())]
    hosts = {host for text in texts for host in re.findall(r"https?://([\w.-]+)", text.read_text())}
    assert hosts == {"deb.debian.org"}


def test_sources_are_the_mirrors_of_this_machine(monkeypatch):
    monkeypatch.setattr(build_iso.shutil, "which", lambda name: name)
    monkeypatch.setattr(build_iso, "output_of", lambda *argv: (
        "Google http://other.example/\nDebian-Security http://mirror.example/security/\n"
        "Debian http://mirror.example/debian/\n"))
    assert build_iso.debian_sources("trixie") == [
        "deb http://mirror.example/debian trixie main",
        "deb http://mirror.example/debian trixie-updates main",
        "deb http://mirror.example/security trixie-security main",
    ]
    assert build_iso.debian_sources("sid") == ["deb http://mirror.example/debian sid main"]


def test_sources_without_apt_are_debians(monkeypatch):
    monkeypatch.setattr(build_iso.shutil, "which", lambda name: None)
    assert build_iso.debian_sources("sid") == ["deb http://deb.debian.org/debian sid main"]


def test_a_second_build_makes_only_our_code_again(build, recipe):
    ran, _ = recipe
    build_iso.make(build)
    build_iso.make(build)
    assert ran == ["debian", "wheels", "code", "code"]


def test_a_build_goes_on_where_the_last_one_failed(build, recipe):
    ran, fails = recipe
    fails.add("wheels")
    with pytest.raises(BuildFailed, match="wheels"):
        build_iso.make(build)
    fails.clear()
    build_iso.make(build)
    assert ran == ["debian", "wheels", "wheels", "code"]


def test_another_suite_leaves_nothing_of_the_last_base(build, recipe):
    build_iso.make(build)
    other = Build("sid", build.cache, build.output)
    build_iso.make(other)
    assert [path.name for path in build.cache.glob("base-*")] == [other.base.name]


@pytest.mark.parametrize("name", ["packages", "prune", "requirements.txt"])
def test_the_base_is_made_again_when_its_lists_change(build, tmp_path, monkeypatch, name):
    before = build.base
    image = tmp_path / "image"
    image.mkdir()
    for other in ("packages", "prune", "requirements.txt"):
        (image / other).write_bytes((IMAGE / other).read_bytes())
    monkeypatch.setattr(build_iso, "IMAGE", image)
    assert build.base == before
    (image / name).write_text("something-else\n")
    assert build.base != before


def test_what_is_missing_is_said_in_one_sentence(monkeypatch, capsys):
    monkeypatch.setattr(build_iso.shutil, "which", lambda name: None if name in ("xorriso", "mcopy") else name)
    monkeypatch.setattr(build_iso.os, "geteuid", lambda: 1000)
    monkeypatch.setattr(build_iso.sys, "argv", ["./build_iso.py"])
    assert build_iso.main() == 1
    assert capsys.readouterr().err == (
        "build_iso.py: A file system is built as root: run  sudo ./build_iso.py"
        " (as root it also installs the missing mtools, xorriso)\n")
