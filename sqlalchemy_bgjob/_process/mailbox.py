"""What the main thread of a process waits for: events of other threads and of signal handlers.

Not a ``queue.SimpleQueue``: Python runs a signal handler only once the main thread comes by, and a
signal that arrives in the instant between its last look and the lock that it then waits on wakes
nobody. With busy threads 37 of 1,000 signals were noticed only when the wait timed out. A wait on a
socket that the interpreter itself writes to (``signal.set_wakeup_fd``) has no such instant.
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
    """Events in order; to be entered by the thread that reads: signals wake the main thread."""

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
        with contextlib.suppress(OSError):  # full: it has not even looked yet; or it has left
            self._writer.send(b"\0")

    def watch(self, file: int, event: T) -> None:
        """From now on a file that can be read, or that has ended, is this event."""
        self._files[file] = event

    def unwatch(self, file: int) -> None:
        """Watch a file no longer."""
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
