"""Finds out within seconds that the other end of a connection is gone without a word.

A host that loses power, or a firewall that forgets a connection, sends no reset. A statement that
was on its way is then waited for until the kernel gives up, a quarter of an hour by default, and a
listener that only waits never hears of it. The kernel can be asked to look sooner.
"""

import select
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy import Connection

from .forks import file_number, keep_from_children

UNANSWERED: Final = 15.0
"""Seconds after which data that was sent and not acknowledged ends the connection."""
IDLE, EVERY, TIMES = 10, 3, 3
"""Seconds of silence before the kernel asks, seconds between its questions, and how many."""
_OPTIONS: Final = (
    ("TCP_USER_TIMEOUT", int(UNANSWERED * 1_000)),
    ("TCP_KEEPIDLE", IDLE),
    ("TCP_KEEPALIVE", IDLE),  # its name on macOS
    ("TCP_KEEPINTVL", EVERY),
    ("TCP_KEEPCNT", TIMES),
)


def enable_keepalive(connection: Connection) -> None:
    """Let the kernel watch this connection, once. What the user has set to be shorter stays.

    It is kept from processes that are forked later, too.
    """
    if connection.info.get("bgjob_watched"):
        return
    connection.info["bgjob_watched"] = True
    keep_from_children(connection)
    # A Unix socket has no such options, and a driver may hide its socket: then all is as before.
    with suppress(Exception):
        _set(_socket(connection.connection.driver_connection))


def may_be_lost(connection: Connection) -> bool:
    """Whether a connection of a pool may have been ended while it was idle.

    The other end has sent what nobody has asked for, its farewell most likely. This costs no round
    trip.
    """
    driver: Any = connection.connection.driver_connection
    is_closed = getattr(driver, "is_closed", None)  # asyncpg, whose event loop has read it
    if is_closed is not None and is_closed():
        return True
    with suppress(Exception):  # a driver may hide its socket, and a system have no poll()
        poll = select.poll()
        poll.register(file_number(driver), select.POLLIN)
        return bool(poll.poll(0))
    return False


@contextmanager
def within(seconds: float, connection: Connection) -> Iterator[None]:
    """Let statements on a connection take at most this long; then it is ended, and they fail.

    Raises:
        Exception: The driver hides its socket.
    """
    with _socket(connection.connection.driver_connection) as copy:
        timer = threading.Timer(seconds, _end, (copy,))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()


def _end(copy: socket.socket) -> None:
    with suppress(OSError):  # the other end was faster, or the block
        copy.shutdown(socket.SHUT_RDWR)


def _socket(driver: Any) -> socket.socket:
    """The connection's own socket as a copy that shares it; to be closed."""
    return socket.socket(fileno=socket.dup(file_number(driver)))


def _set(copy: socket.socket) -> None:
    with copy:
        if copy.family not in (socket.AF_INET, socket.AF_INET6):
            return
        copy.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in _OPTIONS:
            option = getattr(socket, name, None)
            if option is None:
                continue
            now = copy.getsockopt(socket.IPPROTO_TCP, option)
            if now == 0 or now > value:
                copy.setsockopt(socket.IPPROTO_TCP, option, value)
