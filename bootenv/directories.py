"""Directories below a root, opened name by name.

So no symlink on the way is followed, and a path may be longer than the 4,096 bytes that the kernel takes at once.
"""

import os
import resource


class Directories:
    """The open directories along the path last asked for; the next one, mostly a neighbour, opens only what differs."""

    def __init__(self, root: str | bytes):
        self._fds = [os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        self._names: list[bytes] = []
        self._path = b""

    def open(self, path: bytes) -> int:
        """A descriptor of the directory, good until the next call. Raises OSError (ELOOP, ENOTDIR at a symlink)."""
        if path == self._path:
            return self._fds[-1]
        names = path.split(b"/") if path else []
        common = 0
        for ours, asked in zip(self._names, names, strict=False):
            if ours != asked:
                break
            common += 1
        while len(self._names) > common:
            os.close(self._fds.pop())
            self._names.pop()
        try:
            for name in names[common:]:
                self._fds.append(self.step(self._fds[-1], name))
                self._names.append(name)
        finally:
            self._path = b"/".join(self._names)        # as far as it went, if a step failed
        return self._fds[-1]

    def step(self, parent: int, name: bytes) -> int:
        """From a directory into one of its directories."""
        return os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)

    def close(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def allow_depth() -> None:
    """Let this process have as many open files as it may: a path of 4,096 bytes can have 2,048 directories."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
