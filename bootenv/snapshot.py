"""File systems as they are at one moment: LVM and btrfs snapshots for the reading, and the administrator's hooks.

What is made here is removed whatever happens, also to this process; what a power cut left behind is removed by the
next run.
"""

import json
import os
import re
import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from .backup import Source
from .errors import CommandFailed, ToolMissing
from .events import Difference
from .run import ROOT, RUNNING, STATE, afterwards, log, run

HOOKS = "/etc/asr/hooks.d"
_NAME = "asr-snapshot"                 # of what is made here
_POINTS = STATE / "snapshots"
_LEAST, _MOST = 0.05, 0.20             # of a volume's size for what changes while its snapshot is there
_LONGEST = 3600                        # seconds for a hook: one that hangs must not keep a job from ever ending

# A snapshot comes and goes as a name in the subvolume's own directory, whose time is to stay what it was.
_MAKE_IN = 'time=$(stat --format=%.Y "$1"); btrfs subvolume snapshot -r "$1" "$2"; touch -m -d "@$time" "$1"'
_REMOVE_FROM = ('test ! -d "$2" || { time=$(stat --format=%.Y "$1") && btrfs subvolume delete "$2" && '
                'touch -m -d "@$time" "$1"; }')

LIVE = "It was read while it was in use: only LVM with room and btrfs can be held still for the reading."
FULL = "Its snapshot ran full while it was read: make room in the volume group, and back up again."
HOOK = "It failed {when} the backup; the log has what it said."


@dataclass(frozen=True)
class _Snapshot:
    """How to make and remove a snapshot of one source, and what to read instead of it."""

    make: tuple[tuple[str, ...], ...]  # nothing: what never changes is read as it is
    remove: str                        # a shell script that is right whether or not the snapshot is there
    sources: tuple[Source, ...]
    volume: str = ""                   # of LVM, where it can run full


@contextmanager
def held_still(sources: Sequence[Source], differences: list[Difference]) -> Iterator[tuple[Source, ...]]:
    """The sources as they are at one moment, as far as their file systems can; the others as they are.

    Hooks run before and after the reading; where everything comes from snapshots, after these are made. What is worth
    telling is added to `differences`, up to the end of the block. Of a machine that does not run nothing moves.
    """
    if not RUNNING:
        yield tuple(sources)
        return
    found: list[Source] = []
    with ExitStack() as stack:
        hooks = stack.enter_context(ExitStack())
        hooks.enter_context(_hooks(differences))
        live = [source for source in sources if not _hold_still(source, stack, found, differences)]
        if not live:
            hooks.close()
        yield (*found, *live)
    differences += [Difference(f"/{source.prefix}", LIVE) for source in live]


def _hold_still(source: Source, stack: ExitStack, found: list[Source], differences: list[Difference]) -> bool:
    """All of the source, or nothing: snapshots of a part of it would be read as files of the rest."""
    try:
        with ExitStack() as made:
            snapshots = list(_snapshots(source, len(found)))
            for snapshot in snapshots:
                made.enter_context(_made(snapshot))
                if snapshot.volume:
                    made.enter_context(_not_full(source, snapshot.volume, differences))
            stack.enter_context(made.pop_all())
    except (CommandFailed, ToolMissing) as error:
        log(f"/{source.prefix} is read live: {error}")
        return False
    found += [source for snapshot in snapshots for source in snapshot.sources]
    return bool(snapshots)


@contextmanager
def _made(snapshot: _Snapshot) -> Iterator[None]:
    if not snapshot.make:
        yield
        return
    run(("sh", "-c", snapshot.remove), check=False)                # an older run's
    with afterwards(_patiently(snapshot.remove)):
        for argv in snapshot.make:
            run(argv)
        yield


def _snapshots(source: Source, number: int) -> Iterator[_Snapshot]:
    """Of the source and of the btrfs subvolumes in it; none for a file system that has no snapshots."""
    row = json.loads(run(("findmnt", "--json", "--nofsroot", "--mountpoint", str(source.directory),
                          "--output", "SOURCE,FSTYPE,FSROOT")))["filesystems"][-1]
    if row["fstype"] == "btrfs":
        yield from _of_subvolumes(source, row["fsroot"])
        return
    _remove_left(_volume(row["source"])["vg_name"], number)
    yield _of_volume(source, number, row, _volume(row["source"]))


def _volume(device: str) -> dict[str, str]:
    report = json.loads(run(("lvs", "--reportformat", "json", "--units", "b", "--nosuffix", "--options",
                             "vg_name,lv_name,lv_size,vg_free,pool_lv", device)))
    volume: dict[str, str] = report["report"][0]["lv"][0]
    return volume


def _remove_left(group: str, number: int) -> None:
    """Snapshots that an older run left in a volume group take its room. Those of this run have lower numbers."""
    for name in run(("lvs", "--noheadings", "--options", "lv_name", group)).split():
        match = re.fullmatch(rf"{_NAME}-(\d+)", name)
        if match and int(match[1]) >= number:
            run(("sh", "-c", _removal(group, int(match[1]))), check=False)


def _removal(group: str, number: int) -> str:
    name, point = f"{group}/{_NAME}-{number}", _POINTS / str(number)
    return (f"{{ ! mountpoint -q {point} || umount {point}; }} && "
            f"{{ ! lvs {name} >/dev/null 2>&1 || lvremove --yes {name}; }}")


def _of_volume(source: Source, number: int, mount: dict[str, str], volume: dict[str, str]) -> _Snapshot:
    group, name = volume["vg_name"], f"{_NAME}-{number}"
    size = min(int(volume["vg_free"]), int(int(volume["lv_size"]) * _MOST))
    if not volume["pool_lv"] and size < int(volume["lv_size"]) * _LEAST:
        raise CommandFailed(f"the volume group {group} has too little room for a snapshot")
    point = _POINTS / str(number)
    # XFS refuses the snapshot's UUID beside the original's.
    options = "ro,nouuid" if mount["fstype"] == "xfs" else "ro"
    return _Snapshot(
        make=(
            ("lvcreate", "--yes", "--snapshot", "--name", name,
             # Thin snapshots take room from their pool, and aren't activated unless one says so.
             *(("--setactivationskip", "n") if volume["pool_lv"] else ("--size", f"{size // 2**20}m")),
             f"{group}/{volume['lv_name']}"),
            ("mkdir", "-p", str(point)),
            ("mount", "-o", options, f"/dev/{group}/{name}", str(point)),
        ),
        remove=_removal(group, number),
        sources=(Source(point / mount["fsroot"].lstrip("/"), source.prefix),),
        volume="" if volume["pool_lv"] else f"{group}/{name}",
    )


def _of_subvolumes(source: Source, root: str) -> Iterator[_Snapshot]:
    """A snapshot has empty directories where the subvolume has others in it, so each of these has its own.

    But not what is itself a snapshot: recovery makes none again. What is read-only needs none, and can have none.
    """
    place = Path(os.fsdecode(source.directory))
    names = shlex.join((str(place), str(place / f".{_NAME}")))
    lines = run(("btrfs", "subvolume", "list", "-o", "-q", str(place))).splitlines()
    if run(("btrfs", "property", "get", "-t", "subvol", str(place), "ro")).strip() == "ro=true":
        if lines:
            raise CommandFailed(f"{place} is read-only, and has subvolumes in it")
        yield _Snapshot((), "", (source,))
        return
    inner = [line.partition(" path ")[2] for line in lines if " parent_uuid - " in line]
    yield _Snapshot(
        make=(("sh", "-ec", _MAKE_IN, "sh", str(place), str(place / f".{_NAME}")),),
        remove=f"set -- {names}; {_REMOVE_FROM}",
        sources=(Source(place / f".{_NAME}", source.prefix),),
    )
    for path in inner:
        below = os.path.relpath(f"/{path}", root)
        if not below.startswith("..") and Path(below).name != f".{_NAME}":
            yield from _of_subvolumes(Source(place / below, f"{source.prefix}/{below}".lstrip("/")), f"/{path}")


def _patiently(script: str) -> str:
    """Until it succeeds: whoever still reads is about to end."""
    return f"for try in $(seq 40); do {{ {script}; }} && exit 0; sleep 0.25; done; exit 1"


@contextmanager
def _not_full(source: Source, volume: str, differences: list[Difference]) -> Iterator[None]:
    yield
    if run(("lvs", "--noheadings", "--options", "lv_snapshot_invalid", volume), check=False).strip():
        differences.append(Difference(f"/{source.prefix}", FULL))


# Hooks

@contextmanager
def _hooks(differences: list[Difference]) -> Iterator[None]:
    """Each executable in HOOKS is called with "before" and then with "after", in the order of their names."""
    folder = ROOT / HOOKS.lstrip("/")
    names = sorted(p.name for p in folder.iterdir() if os.access(p, os.X_OK) and p.is_file()) if folder.is_dir() else []
    if not names:
        yield
        return
    after = "status=0\n" + "".join(f"{shlex.join(_hook(name, 'after'))} || status=1\n" for name in names)
    with afterwards(f"{after}exit $status", _LONGEST * len(names)) as keeper:
        for name in names:
            try:
                run(_hook(name, "before"), limit=_LONGEST)
            except (CommandFailed, ToolMissing, OSError):
                differences.append(Difference(f"{HOOKS}/{name}", HOOK.format(when="before")))
        yield
    if keeper.returncode:
        differences.append(Difference(HOOKS, HOOK.format(when="after")))


def _hook(name: str, when: str) -> tuple[str, ...]:
    call = (f"{HOOKS}/{name}", when)
    return call if str(ROOT) == "/" else ("chroot", str(ROOT), *call)
