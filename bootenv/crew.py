"""Worker processes that share long work with the main one.

They are started as programs of their own, not forked: the caller may be a thread of a program with many, where a
fork can deadlock. What crosses is marshal (both sides are the same Python) and, beside it, one block of bytes.
"""

import importlib
import marshal
import os
import select
import signal
import struct
import subprocess
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl
from typing import Self

from bootenv.errors import AsrError

Message = tuple[tuple, bytes]
Task = tuple

_HEAD = struct.Struct("<II")                   # bytes of the marshalled value and of the block
_DEPTH = 2                                     # tasks that a worker has in hand, so that it never waits for the next
_PIPE = 2**20
_PROGRAM = "import sys; sys.path[:] = {path!r}; from bootenv.crew import serve; serve({tasks}, {replies})"


class WorkerFailed(AsrError):
    """A worker process ended, or had an error that it doesn't know how to name."""

    number = 35
    untouched = ""


def workers() -> int:
    """One for each core; more than eight would take more memory than the engine may."""
    return min(len(os.sched_getaffinity(0)), 8)


class Crew:
    """Processes that each call `work` ("module:function") with setup once, and what it returns for every task."""

    def __init__(self, work: str, setup: tuple, count: int | None = None):
        self._setup = (*work.split(":"), *setup)
        self._members: list[_Member] = []
        self._count = count or workers()

    def __enter__(self) -> Self:
        try:
            for _ in range(self._count):
                self._members.append(_Member(self._setup))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for member in self._members:
            member.stop()

    def __len__(self) -> int:
        return self._count

    def run(self, tasks: Iterator[Task | None]) -> Iterator[Message]:
        """Hand out the tasks to whoever is free, and yield what comes back, in no order.

        `tasks` may give None: none at the moment, ask again when something has come back. It is asked for no more
        than the workers can take, so that it may be endless, and what comes back is taken one at a time: a slow
        consumer slows the workers.
        """
        more = True
        while True:
            while more and (member := min(self._members, key=lambda m: m.busy)).busy < _DEPTH:
                task = next(tasks, ())
                if task is None:
                    break
                if not task:
                    more = False
                    break
                member.send(task)
            if not any(m.busy for m in self._members):
                return
            yield from self._ready()

    def each(self, task: Task) -> Iterator[Message]:
        """The same task for every worker."""
        for member in self._members:
            member.send(task)
        while any(m.busy for m in self._members):
            yield from self._ready()

    def _ready(self) -> Iterator[Message]:
        poll = select.poll()
        members = {m.replies: m for m in self._members if m.busy}
        for fd in members:
            poll.register(fd, select.POLLIN)
        for fd, _ in poll.poll():
            value, block = _receive(fd)
            if value == ("done",):
                members[fd].busy -= 1
            elif value[0] == "failed":
                raise WorkerFailed("A part of the program failed.", hint=value[1])
            else:
                yield value, block


class _Member:
    def __init__(self, setup: tuple):
        theirs, self._tasks = _pipe()
        self.replies, back = _pipe()
        path = [p or os.getcwd() for p in sys.path]
        program = _PROGRAM.format(path=path, tasks=theirs, replies=back)
        try:
            # -I -S: the path is given, so there is nothing to look for, and it starts in half the time.
            self._process = subprocess.Popen(
                (sys.executable, "-I", "-S", "-c", program), pass_fds=(theirs, back), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        finally:
            os.close(theirs)
            os.close(back)
        self.busy = 0
        _send(self._tasks, setup)

    def send(self, task: Task) -> None:
        self.busy += 1
        with suppress(BrokenPipeError):        # what it said before it ended, or its end, comes with the replies
            _send(self._tasks, task)

    def stop(self) -> None:
        os.close(self._tasks)
        os.close(self.replies)
        self._process.kill()
        self._process.wait()


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    with suppress(OSError):                    # an ordinary user's pipes have an upper limit together
        fcntl(writer, F_SETPIPE_SZ, _PIPE)     # a whole frame fits, so that its maker can go on
    return reader, writer


def _send(fd: int, value: tuple, block: bytes = b"") -> None:
    data = marshal.dumps(value)
    for piece in (_HEAD.pack(len(data), len(block)) + data, block):
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view):]


def _receive(fd: int) -> Message:
    size, block = _HEAD.unpack(_read(fd, _HEAD.size))
    value = marshal.loads(_read(fd, size))
    return value, _read(fd, block)


def _read(fd: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(fd, size)
        if not piece:
            raise WorkerFailed("A part of the program ended early.", hint="The computer may be short of memory.")
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def serve(tasks: int, replies: int) -> None:
    """A worker process's whole life."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)       # Ctrl+C is for the main process, which ends its workers
    try:
        (module, function, *setup), _ = _receive(tasks)
        handle: Callable[[Task], Iterator[Message]] = getattr(importlib.import_module(module), function)(*setup)
        while True:
            task, _ = _receive(tasks)
            for value, block in handle(task):
                _send(replies, value, block)
            _send(replies, ("done",))
    except (WorkerFailed, BrokenPipeError):
        return                                         # the main process is gone or has no more work
    except BaseException:                              # whatever it is, the main process is to tell of it
        _send(replies, ("failed", traceback.format_exc()))
