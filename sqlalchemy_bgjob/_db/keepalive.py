"""TCP keepalive: finds out within seconds that the other end vanished without a word.

A host that loses power, or a firewall that forgets a connection, sends no reset. The worker would
wait for its statement until the kernel gives up, after a quarter of an hour by default, and a
listener, which sends nothing, would never notice. The kernel can be told to probe sooner.
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
"""Seconds after which unacknowledged data ends the connection."""
IDLE, EVERY, TIMES = 10, 3, 3
"""Seconds of silence before the first probe, seconds between probes, and their number."""
_OPTIONS: Final = (
    ("TCP_USER_TIMEOUT", int(UNANSWERED * 1_000)),
    ("TCP_KEEPIDLE", IDLE),
    ("TCP_KEEPALIVE", IDLE),  # its name on macOS
    ("TCP_KEEPINTVL", EVERY),
    ("TCP_KEEPCNT", TIMES),
)


def enable_keepalive(connection: Connection) -> None:
    """Turn keepalive on for this connection, once; a shorter time that the user has set stays.

    Processes that are forked later are cut off from the connection, too.
    """
    if connection.info.get("bgjob_watched"):
        return
    connection.info["bgjob_watched"] = True
    keep_from_children(connection)
    # A Unix socket has no such options, and a driver may hide its socket: no keepalive then.
    with suppress(Exception):
        _set(_socket(connection.connection.driver_connection))


def may_be_lost(connection: Connection) -> bool:
    """Whether a pooled connection may have ended while it was idle; without a round trip.

    True if the server has sent data unasked, most likely its reason for ending the session.
    """
    driver: Any = connection.connection.driver_connection
    is_closed = getattr(driver, "is_closed", None)  # asyncpg, whose event loop reads the data
    if is_closed is not None and is_closed():
        return True
    with suppress(Exception):  # a driver may hide its socket, or the system lack poll()
        poll = select.poll()
        poll.register(file_number(driver), select.POLLIN)
        return bool(poll.poll(0))
    return False


@contextmanager
def within(seconds: float, connection: Connection) -> Iterator[None]:
    """Limit the time of a block's statements: then the connection is ended, and they fail.

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
    with suppress(OSError):  # the server has closed it, or the block has just ended
        copy.shutdown(socket.SHUT_RDWR)


def _socket(driver: Any) -> socket.socket:
    """A duplicate of the connection's socket, which the caller closes."""
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
