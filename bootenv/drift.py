"""Is the newest ASR set still this computer's? What has changed since, and the reminder until there is a new set."""

import fnmatch
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from datetime import datetime, timedelta
from typing import Any

from .carried import kept
from .check import critical_part, recoverable_part
from .commands import LIST, read_commands
from .errors import BadCommands, NoAsrDisk
from .events import Difference
from .layout import Layout, human
from .probe import probe
from .run import ROOT, RUNNING, has_tool, run
from .sif import DRIVERS, AsrSet, now, read_sif

REPAIR = "var/lib/asr/repair/asr.sif"  # the copy on the machine; in the backup the first member, by the same name
# That were installed then: a name and a version on each line. With the set's id, so that it is in the set's backup, and
# no attempt that failed takes the place of the last that didn't.
PACKAGES = "var/lib/asr/repair/packages-{id}.txt"
NOTICES = "var/lib/asr/notices"        # each a sentence for whoever logs in next
# pam_motd(8) shows it at every login, on the console and over ssh; it is gone with the next start, and made again then.
MOTD = "run/motd.d/50-asr"

# With one of these changed, the system that comes back starts in another way than this one, or from other storage.
IMPORTANT = (
    "linux-image*", "kernel", "kernel-core*", "kernel-default*", "grub*", "shim*", "systemd-boot*", "extlinux*",
    "initramfs-tools*", "dracut*", "lvm2*", "mdadm*", "cryptsetup*", "e2fsprogs", "xfsprogs", "btrfs-progs*",
    "btrfsprogs", "multipath-tools*", "zfs*",
)
_WORDS = {
    "disks": "disk", "partitions": "partition", "arrays": "array", "containers": "encrypted volume",
    "physical_volumes": "physical volume", "groups": "volume group", "logical_volumes": "logical volume",
    "filesystems": "file system", "subvolumes": "subvolume", "mounts": "mount", "swap_files": "swap file",
    "boot_options": "line of the boot menu",
}
_NAMED = 4                             # of the packages that came and went
# As they are on these disks, and no matter of the layout.
_VOLATILE = {"path", "boot_code", "mode", "owner", "group", "modified", "recovery", "active", "cached"}


def newest_set() -> AsrSet:
    """This computer's own copy of its newest set's state. Raises NoAsrDisk if none was prepared, DamagedSif."""
    try:
        return read_sif((ROOT / REPAIR).read_bytes())
    except FileNotFoundError:
        raise NoAsrDisk("No ASR set of this computer was prepared yet.", hint="Prepare one: asr prepare") from None


def find_drift(max_age: timedelta) -> tuple[Difference, ...]:
    """What has changed on this computer since its newest set; () if that is as good as new. Raises as newest_set()."""
    set = newest_set()
    everything = probe()
    return (*layout_drift(set.layout, current_part(everything, set.layout)),
            *kernel_drift(set, running_kernel()),
            *package_drift(recorded_packages(set), installed_packages()),
            *carried_drift(set),
            *age_drift(set.created, now(), max_age))


def package_only_drift() -> tuple[Difference, ...]:
    """The part that package managers ask for after each of their runs: it looks at no disk. Raises as newest_set()."""
    return tuple(package_drift(recorded_packages(newest_set()), installed_packages()))


def current_part(everything: Layout, recorded: Layout) -> Layout:
    """What a set would hold now, with the data volumes that the recorded one holds."""
    system = {mount.point for mount in critical_part(everything).mounts}
    added = {mount.point for mount in recorded.mounts} - system
    return recoverable_part(critical_part(everything, added))


# Comparing

def layout_drift(then: Layout, today: Layout) -> Iterator[Difference]:
    """Each record that came, went or is other than it was."""
    for kind, word in _WORDS.items():
        before, after = ({_key(record): record for record in getattr(layout, kind)} for layout in (then, today))
        for key in before.keys() | after.keys():
            if key not in after:
                yield Difference(_name(before[key], then), f"This {word} is in the set, but not there any more.")
            elif key not in before:
                yield Difference(_name(after[key], today), f"This {word} is new: it is not in the set.")
            elif changed := list(_changes(before[key], after[key])):
                yield Difference(_name(after[key], today), f"This {word} has changed: {', '.join(changed)}.")


def _key(record: Any) -> tuple[Any, ...]:
    """Mounts, subvolumes and swap files are known by what they are of and their place, all others by their id."""
    if hasattr(record, "id"):
        return (record.id,)
    return tuple(getattr(record, name, "") for name in ("filesystem", "point", "path"))


def _name(record: Any, layout: Layout) -> str:
    """What people call it."""
    for name in ("point", "path"):
        if getattr(record, name, ""):
            return str(getattr(record, name))
    known = {device.id for device in layout.devices}
    device = record.id if record.id in known else getattr(record, "device", "")
    return layout.path(device) if device in known else str(getattr(record, "label", "") or record.id)


def _changes(before: Any, after: Any) -> Iterator[str]:
    old, new = asdict(before), asdict(after)
    for name in old:
        if name in _VOLATILE or old[name] == new[name]:
            continue
        if isinstance(old[name], Mapping):
            names = sorted(key for key in old[name].keys() | new[name].keys()
                           if old[name].get(key) != new[name].get(key))
            yield f"{name} ({', '.join(names)})"
        elif name in ("size", "start"):
            yield f"{name} {human(old[name])} -> {human(new[name])}"
        else:
            yield f"{name} {_short(old[name])} -> {_short(new[name])}"


def _short(value: Any) -> str:
    said = " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
    return (said if len(said) <= 40 else said[:37] + "...") or "nothing"


def kernel_drift(set: AsrSet, running: str) -> Iterator[Difference]:
    if running and running != set.kernel:
        yield Difference("kernel", f"The set was made with {set.kernel}; {running} runs now.")


def package_drift(then: Mapping[str, str], today: Mapping[str, str]) -> Iterator[Difference]:
    """What matters to starting and to storage in any version; of the rest, what came and what went.

    Updates of the rest are not named: a machine has them every day, and comes back with the older version. What the
    package managers of two distributions say is not compared with nothing.
    """
    if not then or not today:
        return
    changed = sorted(name for name in then.keys() | today.keys() if then.get(name) != today.get(name))
    for name in changed:
        if _matters(name):
            yield Difference(name, f"{then.get(name, 'not installed')} -> {today.get(name, 'not installed')}")
    for word, names in (("installed", today.keys() - then.keys()), ("removed", then.keys() - today.keys())):
        rest = sorted(name for name in names if not _matters(name))
        if rest:
            more = f" and {len(rest) - _NAMED} more" if len(rest) > _NAMED else ""
            yield Difference("packages", f"{word} since: {', '.join(rest[:_NAMED])}{more}")


def carried_drift(set: AsrSet) -> Iterator[Difference]:
    """Drivers and commands that go along with a set, and that a new one would have otherwise."""
    if {*set.files_in(DRIVERS)} != {*kept()}:
        yield Difference("drivers", "Those that asr add-driver keeps are not those that the set has.")
    try:
        changed = set.commands != read_commands()
    except BadCommands as error:
        yield Difference("commands", error.message)
    else:
        if changed:
            yield Difference("commands", f"/{LIST} is not what it was when the set was made.")


def _matters(name: str) -> bool:
    """name: with the architecture behind a colon (dpkg) or a dot (rpm)."""
    plain = (name.partition(":")[0], name.rpartition(".")[0])
    return any(fnmatch.fnmatchcase(form, pattern) for form in plain for pattern in IMPORTANT)


def age_drift(created: datetime, today: datetime, most: timedelta) -> Iterator[Difference]:
    if today - created > most:
        yield Difference("age", f"The set is {(today - created).days} days old; after {most.days} it is due again.")


# What is compared

def running_kernel() -> str:
    return run(("uname", "--kernel-release")).strip()


def installed_packages() -> dict[str, str]:
    """Name and version of each package, as the machine's own package manager has them; {} where none is known."""
    if (ROOT / "var/lib/dpkg/status").exists() and has_tool("dpkg-query"):
        text = run(("dpkg-query", f"--admindir={ROOT / 'var/lib/dpkg'}", "--show",
                    "--showformat=${db:Status-Status} ${Package}:${Architecture} ${Version}\\n"))
        return parse_packages(line.removeprefix("installed ") for line in text.splitlines()
                              if line.startswith("installed "))
    if (ROOT / "usr/lib/sysimage/rpm").exists() and has_tool("rpm"):
        return parse_packages(run(("rpm", "--root", str(ROOT), "--query", "--all", "--queryformat",
                                   "%{NAME}.%{ARCH} %{VERSION}-%{RELEASE}\\n")).splitlines())
    return {}


def parse_packages(lines: Iterable[str]) -> dict[str, str]:
    """A name and a version in each line. Of packages that several versions may be of (kernels), all of them."""
    found: dict[str, str] = {}
    for line in lines:
        name, _, version = line.strip().partition(" ")
        if name:
            found[name] = f"{found[name]} {version}" if name in found else version
    return {name: " ".join(sorted(versions.split())) for name, versions in found.items()}


def recorded_packages(set: AsrSet) -> dict[str, str]:
    try:
        return parse_packages((ROOT / PACKAGES.format(id=set.id)).read_text(errors="replace").splitlines())
    except FileNotFoundError:
        return {}


def package_lines(packages: Mapping[str, str]) -> str:
    return "".join(f"{name} {version}\n" for name, version in sorted(packages.items()))


# Notices at login

def notice(name: str, sentence: str) -> None:
    """A sentence that everybody sees at login until it is taken away; "" takes it away."""
    path = ROOT / NOTICES / f"{name}.txt"
    if sentence:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(sentence.rstrip("\n") + "\n")
    else:
        path.unlink(missing_ok=True)
    show_notices()


def show_notices() -> None:
    """All notices, where logins show them; on a machine that does not run, its next start does that."""
    if not RUNNING:
        return
    said = [path.read_text(errors="replace") for path in sorted((ROOT / NOTICES).glob("*.txt"))]
    motd = ROOT / MOTD
    if said:
        motd.parent.mkdir(parents=True, exist_ok=True)
        motd.write_text("".join(said))
    else:
        motd.unlink(missing_ok=True)


def remind(reasons: Iterable[Difference]) -> str:
    """The notice that a new set is due, or none if there is no reason. Returns what it says."""
    found, said = list(reasons), ""
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        said = (f"ASR: a new ASR set of this computer is due. {found[0].what}: {found[0].why}{more}\n"
                "     asr check --drift says why; asr prepare makes a new set.")
    notice("drift", said)
    return said

