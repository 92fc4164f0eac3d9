"""The event queue of a process's main thread: events of other threads and of signal handlers.

Not a ``queue.SimpleQueue``, which has a race: Python runs signal handlers in the main thread, and a
signal that arrives between the thread's last check and its wait for the lock does not wake it. With
busy threads 37 of 1,000 signals were noticed only when the wait timed out. A wait on a socket that
the interpreter itself writes to (``signal.set_wakeup_fd``) has no such race.
"""

import contextlib
import select
import signal
import socket
import threading
import time
from collections import deque
from types import TracebackType
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class Mailbox(Generic[T]):
    """Events in order. The reading thread enters it, and should be main for signals to wake it."""

    def __init__(self) -> None:
        self._before: int | None = None
        self._events: deque[T] = deque()
        self._files: dict[int, T] = {}
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)

    def put(self, event: T) -> None:
        """Add an event, and wake the reader. Signal handlers may call it."""
        self._events.append(event)
        with contextlib.suppress(OSError):  # full, so the reader will wake; or closed
            self._writer.send(b"\0")

    def watch(self, file: int, event: T) -> None:
        """Report *event* from now on when a file is readable or at its end."""
        self._files[file] = event

    def unwatch(self, file: int) -> None:
        """Stop watching a file."""
        self._files.pop(file, None)

    def get(self, timeout: float | None = None) -> T | None:
        """The next event; None when there is none within *timeout* seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while not self._events:
            left = None if until is None else until - time.monotonic()
            if left is not None and left <= 0:
                return None
            watched = [self._reader.fileno(), *self._files]
            readable, _, _ = select.select(watched, [], [], left)
            self._events.extend(event for file, event in self._files.items() if file in readable)
            with contextlib.suppress(BlockingIOError):
                self._reader.recv(4096)
        return self._events.popleft()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._before is not None:
            signal.set_wakeup_fd(self._before)
        self._reader.close()
        self._writer.close()
