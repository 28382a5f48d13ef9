"""Worker processes that share long work with the main one.

They are started as programs of their own, not forked: the caller may be a thread of a program with many, where a
fork can deadlock. What crosses is marshal (both sides are the same Python) through a pipe and, beside it, one block of
bytes through memory that both have mapped: through a pipe it would be copied twice more.
"""

import gc
import importlib
import marshal
import mmap
import os
import select
import signal
import struct
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import suppress
from fcntl import F_SETPIPE_SZ, fcntl
from typing import Any, Self

from bootenv.errors import WorkerFailed

Block = bytes | memoryview     # a memoryview is good until the next message is asked for
Message = tuple[tuple, Block]
Task = tuple

_HEAD = struct.Struct("<IIi")                  # bytes of the marshalled value and of the block, and the block's slot
_SLOTS = 3                                     # blocks of a worker that wait for the main process
_SLOT = 3 * 2**20                              # bytes; what is larger goes through the pipe
_DEPTH = 2                                     # tasks that a worker has in hand, so that it never waits for the next
_PIPE = 2**20
_MUCH_WAITING = 0.3            # of the time: more workers than cores cost little, and a core that idles is lost
_MUCH_READING = 0.1            # the same, where the disk is what it waits for, and not the main process
_SECONDS_OF_CREW = 0.15        # until it is looked at again whether more workers would help
# glibc gives each block above 128 KB back to the kernel at once, and then the pages of the next one have to be cleared
# and mapped again: a third of the system time. Frames come and go, so the memory stays about as large all the same.
_KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "67108864", "MALLOC_TRIM_THRESHOLD_": "67108864"}
_PROGRAM = "import sys; sys.path[:] = {path!r}; from bootenv.crew import serve; serve{fds!r}"


MOST = 6                       # workers; more would take more memory than the engine may, which is 256 MiB in all


def workers() -> int:
    """One for each core."""
    return min(len(os.sched_getaffinity(0)), MOST)


class Crew:
    """Processes that each call `work` ("module:function") with setup once, and what it returns for every task."""

    def __init__(self, work: str, setup: tuple, count: int | None = None):
        self._setup = (*work.split(":"), *setup)
        self._members: list[_Member] = []
        self._count = count or workers()
        self._grows = not count
        self._looked = 0.0

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
        return len(self._members)

    def grow(self) -> None:
        """Two more, if those that are there wait much for a disk: it has time for more than one at once.

        To be called now and then, while there is work for more.
        """
        now = time.monotonic()
        passed = now - self._looked
        if not self._grows or len(self) >= MOST or passed < _SECONDS_OF_CREW:
            return
        # Not all at the first look: what was before it is the start.
        waited = sum(member.waited() for member in self._members)
        reading = [member.has_read() for member in self._members]
        much = _MUCH_READING if any(reading) else _MUCH_WAITING
        if self._looked and waited > much * passed * len(self):
            with suppress(OSError):            # the system is short of something: it goes on with those that there are
                for _ in range(min(2, MOST - len(self))):
                    self._members.append(_Member(self._setup))
        self._looked = now

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
            value, block, slot = _receive(fd)
            if value == ("done",):
                members[fd].busy -= 1
            elif value[0] == "failed":
                raise WorkerFailed("A part of the program failed.", hint=value[1])
            elif slot < 0:
                yield value, block
            else:
                yield value, members[fd].slots.block(slot, block)
                members[fd].slots.free()


class _Slots:
    """Memory that a worker fills and the main process reads, in turn, slot by slot."""

    def __init__(self, memory: int, free: int):
        self.fds = memory, free
        self._view = memoryview(mmap.mmap(memory, _SLOTS * _SLOT))
        self._next = 0

    @classmethod
    def make(cls) -> Self:
        memory = os.memfd_create("asr-blocks", os.MFD_CLOEXEC)
        os.ftruncate(memory, _SLOTS * _SLOT)
        return cls(memory, os.eventfd(_SLOTS, os.EFD_CLOEXEC | os.EFD_SEMAPHORE))

    def put(self, block: Block) -> int:
        """The worker's side: the slot that now holds the block; waits until one is free."""
        os.eventfd_read(self.fds[1])
        slot = self._next
        self._view[slot * _SLOT:slot * _SLOT + len(block)] = block
        self._next = (slot + 1) % _SLOTS
        return slot

    def block(self, slot: int, size: int) -> memoryview:
        return self._view[slot * _SLOT:slot * _SLOT + size]

    def free(self) -> None:
        """The main process's side: it is done with the oldest block."""
        os.eventfd_write(self.fds[1], 1)

    def close(self) -> None:
        for fd in self.fds:
            os.close(fd)


class _Member:
    def __init__(self, setup: tuple):
        theirs, self._tasks = _pipe()
        self.replies, back = _pipe()
        self.slots = _Slots.make()
        path = [p or os.getcwd() for p in sys.path]
        program = _PROGRAM.format(path=path, fds=(theirs, back, *self.slots.fds))
        try:
            # -I -S: the path is given, so there is nothing to look for, and it starts in half the time.
            self._process = subprocess.Popen(
                (sys.executable, "-I", "-S", "-c", program), env=os.environ | _KEEP_MEMORY,
                pass_fds=(theirs, back, *self.slots.fds), start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        finally:
            os.close(theirs)
            os.close(back)
        self.busy = 0
        self._known = time.monotonic(), 0.0
        self._known_read = b""
        _send(self._tasks, setup)

    def waited(self) -> float:
        """Seconds since the last call in which it neither ran nor waited for a core."""
        try:
            with open(f"/proc/{self._process.pid}/schedstat") as numbers:
                ran, queued, _ = map(int, numbers.read().split())
        except (OSError, ValueError):          # a kernel that doesn't count
            return 0.0
        before, self._known = self._known, (time.monotonic(), (ran + queued) / 1e9)
        return (self._known[0] - before[0]) - (self._known[1] - before[1])

    def has_read(self) -> bool:
        """Did it read anything from a disk, or from a server, since the last call?"""
        try:
            with open(f"/proc/{self._process.pid}/io", "rb") as numbers:
                read = next(line for line in numbers if line.startswith(b"read_bytes:"))
        except (OSError, StopIteration):       # a kernel that doesn't count
            return False
        before, self._known_read = self._known_read, read
        return before not in (b"", read)

    def send(self, task: Task) -> None:
        self.busy += 1
        with suppress(BrokenPipeError):        # what it said before it ended, or its end, comes with the replies
            _send(self._tasks, task)

    def stop(self) -> None:
        os.close(self._tasks)
        os.close(self.replies)
        self.slots.close()
        self._process.kill()
        self._process.wait()


def _pipe() -> tuple[int, int]:
    reader, writer = os.pipe()
    with suppress(OSError):                    # an ordinary user's pipes have an upper limit together
        fcntl(writer, F_SETPIPE_SZ, _PIPE)     # a whole frame fits, so that its maker can go on
    return reader, writer


def _send(fd: int, value: tuple, block: Block = b"", slots: _Slots | None = None) -> None:
    data = marshal.dumps(value)
    if slots and 0 < len(block) <= _SLOT:
        head = _HEAD.pack(len(data), len(block), slots.put(block))
        block = b""
    else:
        head = _HEAD.pack(len(data), len(block), -1)
    for piece in (head + data, block):
        view = memoryview(piece)
        while view:
            view = view[os.write(fd, view):]


def _receive(fd: int) -> tuple[tuple, Any, int]:
    """The value; then the block and -1, or the block's size and its slot."""
    size, block, slot = _HEAD.unpack(_read(fd, _HEAD.size))
    value = marshal.loads(_read(fd, size))
    return value, _read(fd, block) if slot < 0 else block, slot


def _read(fd: int, size: int) -> bytes:
    pieces = []
    while size:
        piece = os.read(fd, size)
        if not piece:
            raise WorkerFailed("A part of the program ended early.", hint="The computer may be short of memory.")
        pieces.append(piece)
        size -= len(piece)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


def serve(tasks: int, replies: int, memory: int, free: int) -> None:
    """A worker process's whole life."""
    gc.disable()                                       # nothing here makes cycles, and looking for them takes time
    signal.signal(signal.SIGINT, signal.SIG_IGN)       # Ctrl+C is for the main process, which ends its workers
    slots = _Slots(memory, free)
    try:
        (module, function, *setup), *_ = _receive(tasks)
        handle: Callable[[Task], Iterator[Message]] = getattr(importlib.import_module(module), function)(*setup)
        while True:
            task, *_ = _receive(tasks)
            for value, block in handle(task):
                _send(replies, value, block, slots)
            _send(replies, ("done",))
    except (WorkerFailed, BrokenPipeError):
        return                                         # the main process is gone or has no more work
    except BaseException:                              # whatever it is, the main process is to tell of it
        _send(replies, ("failed", traceback.format_exc()))
