"""Steps -> Events: the only loop that changes disks."""

import fcntl
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from .events import Event, Progress
from .run import run
from .step import Step


def execute(steps: Sequence[Step], disks: Sequence[str], secrets: Mapping[str, bytes] | None = None
            ) -> Iterator[Event]:
    """Runs each step to its end, with `disks` (device nodes) to itself; done and total count steps.

    `secrets`: passphrases by the ids of their containers. Raises CommandFailed at the first step that fails.
    """
    with locked(disks):
        for done, step in enumerate(steps):
            yield Progress(step.title, done, len(steps), subject=step.subject)
            run(step.argv, input=(secrets or {})[step.secret] if step.secret else step.stdin)
    # udev looks at the disks only now; what comes next wants its symlinks.
    run(("udevadm", "trigger", "--settle", "--subsystem-match=block"))
    if steps:
        yield Progress(steps[-1].title, len(steps), len(steps), subject=steps[-1].subject)


@contextmanager
def locked(disks: Sequence[str]) -> Iterator[None]:
    """Keeps udev off the disks: else it reads a table again just after sfdisk wrote it, whereby the partitions
    vanish for a moment under mkfs, and assembles what reappears at its old place.
    https://systemd.io/BLOCK_DEVICE_LOCKING/
    """
    held = []
    try:
        for disk in disks:
            held.append(os.open(disk, os.O_RDONLY | os.O_CLOEXEC))
            fcntl.flock(held[-1], fcntl.LOCK_EX)
        yield
    finally:
        for descriptor in held:
            os.close(descriptor)
