"""What a backup leaves out by its name: a list for whole systems, the user's patterns, and tagged cache directories.

A pattern is one of fnmatch on the path in the backup, without the first slash; "*" takes "/", too. What lies below a
path that a pattern matches is left out with it. What is included stays, whatever else leaves it out, with all that is
below it and the directories above it.
"""

import fnmatch
import os
import re
from collections.abc import Iterable, Iterator
from typing import TypedDict

# The documented list, for backups of whole systems: nothing here is anybody's data, and all of it is made anew.
TEMPORARY = "Temporary files are left out."
CACHE = "A cache that its program fills again is left out."
SEED = "A seed of random numbers must not be used twice."
LISTED = {
    "tmp/*": TEMPORARY,
    "var/tmp/*": TEMPORARY,
    "var/cache/apt/*.bin": CACHE,
    "var/cache/apt/archives/*.deb": CACHE,
    "var/cache/dnf/*": CACHE,
    "var/cache/libdnf5/*": CACHE,
    "var/cache/yum/*": CACHE,
    "var/cache/zypp/*": CACHE,
    "var/cache/pacman/pkg/*": CACHE,
    "var/cache/PackageKit/*": CACHE,
    "root/.cache/*": CACHE,
    "home/*/.cache/*": CACHE,
    "var/lib/systemd/random-seed": SEED,
}

ASKED = "It is left out, as asked."
TAGGED = "It is a cache, as its CACHEDIR.TAG says; what it holds is left out."
TAG = b"CACHEDIR.TAG"                  # https://bford.info/cachedir/
_SIGNATURE = b"Signature: 8a477f597d28d172789f06886806bc55"


class Excluding(TypedDict):
    """What is left out, as the arguments of select() and write_backup()."""

    exclude: tuple[str, ...]
    include: tuple[str, ...]
    caches: bool               # False: what a CACHEDIR.TAG marks is left out


class Excluder:
    """Which paths in a backup are left out, and by which pattern."""

    def __init__(self, exclude: Iterable[str], include: Iterable[str], first: bytes = b""):
        """first: a path that is left out, whatever is included; no pattern is named for it."""
        self._first = first
        self._patterns = tuple(dict.fromkeys(pattern.strip("/") for pattern in exclude))
        self._exclude = _alternatives(_with_below(pattern) for pattern in self._patterns)
        self._include = _alternatives(
            wanted for pattern in include
            for wanted in (*_above(pattern.strip("/")), _with_below(pattern.strip("/"))))
        tops = {os.fsencode(pattern.partition("/")[0]) for pattern in self._patterns}
        self._everywhere = any(set(top) & set(b"*?[") for top in tops)
        self._tops = tops | ({first.partition(b"/")[0]} if first else set())

    def concerns(self, directory: bytes) -> bool:
        """Can anything in this directory be left out? Asked for each directory, so that files needn't be."""
        return bool(self._tops) and (not directory or self._everywhere or directory.partition(b"/")[0] in self._tops)

    def pattern(self, path: bytes) -> str | None:
        """The pattern that leaves the path out ("": it is what comes first), None if it stays."""
        if path and path == self._first:
            return ""
        if self._exclude is None:
            return None
        name = os.fsdecode(path)
        found = self._exclude.match(name)
        if not found or self.is_included(path):
            return None
        return self._patterns[int(str(found.lastgroup)[1:])]

    def is_included(self, path: bytes) -> bool:
        return self._include is not None and self._include.match(os.fsdecode(path)) is not None


def _above(pattern: str) -> Iterator[str]:
    """Expressions for the directories above: for them "*" takes no "/", or what else is in them would be meant."""
    names = pattern.split("/")
    for count in range(1, len(names)):
        yield fnmatch.translate("/".join(names[:count])).replace(".*", "[^/]*")


def _with_below(pattern: str) -> str:
    return fnmatch.translate(pattern).removesuffix(r"\Z") + r"(?:/(?s:.*))?\Z"


def _alternatives(expressions: Iterable[str]) -> re.Pattern[str] | None:
    """Its groups n0, n1, ... are the expressions."""
    whole = "|".join(f"(?P<n{number}>{expression})" for number, expression in enumerate(expressions))
    return re.compile(whole) if whole else None


def is_tag(directory: int) -> bool:
    """Does a directory's CACHEDIR.TAG say that it is one?"""
    try:
        fd = os.open(TAG, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    except OSError:
        return False
    try:
        return os.read(fd, len(_SIGNATURE)) == _SIGNATURE
    except OSError:
        return False
    finally:
        os.close(fd)
