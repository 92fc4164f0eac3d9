"""Tells systemd how a worker process does, for a service of ``Type=notify``: see sd_notify(3).

systemd names the socket where it listens in the environment. Without that name nothing is sent, and
no thread runs.
"""

import os
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from ..aio import AsyncWorker
    from ..worker import Worker

READY: Final = "READY=1"
ALIVE: Final = "WATCHDOG=1"
STOPPING: Final = "STOPPING=1"
LOOK_EVERY: Final = 0.1
"""Seconds between looks whether the worker is ready."""
SENT_WITHIN: Final = 1.0
"""Seconds after which a state that systemd does not read is given up."""


def notify(state: str) -> None:
    """Tell systemd a state, if it listens."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # a name that is no file's
        address = f"\0{address[1:]}"
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.settimeout(SENT_WITHIN)
        sender.sendto(state.encode(), address)


@contextmanager
def told_of(worker: "Worker | AsyncWorker") -> Iterator[None]:
    """Meanwhile, tell systemd when the worker is ready, and with ``WatchdogSec`` that it is alive.

    Of several processes under a supervisor each one tells: the service is ready with the first, and
    is restarted when none is alive.
    """
    if not os.environ.get("NOTIFY_SOCKET"):
        yield
        return
    ended = threading.Event()
    threading.Thread(target=_tell, args=(worker, ended), name="bgjob-systemd", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def _tell(worker: "Worker | AsyncWorker", ended: threading.Event) -> None:
    while not worker.ready:
        if ended.wait(LOOK_EVERY):
            return
    notify(READY)
    every = _alive_every()
    while every is not None and not ended.wait(every):
        if worker.alive:
            notify(ALIVE)


def _alive_every() -> float | None:
    """Seconds between signs of life: half of what systemd waits. None if it waits for none."""
    if os.environ.get("WATCHDOG_PID") not in (None, str(os.getpid()), str(os.getppid())):
        return None
    waits = os.environ.get("WATCHDOG_USEC", "")
    return int(waits) / 2e6 if waits.isdigit() and waits != "0" else None
