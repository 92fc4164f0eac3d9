"""Keeps a process that a handler forks out of the worker, and off the worker's connections.

The child has copies of everything. When its handler returns or raises, it would go on as the
worker: settle the job on the parent's socket and run more jobs, and its ROLLBACK would undo the
parent's writes. So a child that returns to the worker exits. And from the fork on, the worker's
sockets lead nowhere in the child, whatever the child or its garbage collection does with them.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NoReturn
from weakref import WeakSet

from sqlalchemy import Connection

_connections: Final[WeakSet[Any]] = WeakSet()


class Forked(RuntimeError):
    """A session was used in a process other than the one that runs its job."""

    def __str__(self) -> str:
        return (
            "ctx.session belongs to the process that runs the job, and this one was forked from "
            "it; use ctx.session there, or connect anew here"
        )


def file_number(driver: Any) -> int:
    """The file descriptor of a driver's connection."""
    transport = getattr(driver, "_transport", None)  # asyncpg
    number: int = transport.get_extra_info("socket").fileno() if transport else driver.fileno()
    return number


def _driver(connection: Connection) -> Any:
    """The driver's connection; for a proxy of asyncpg.Pool, the connection behind it."""
    driver: Any = connection.connection.driver_connection
    return getattr(driver, "_con", None) or driver


def keep_from_children(connection: Connection) -> None:
    """Cut this connection off in every process that is forked from now on."""
    _connections.add(_driver(connection))


@contextmanager
def kept_from_children(connection: Connection) -> Iterator[None]:
    """Do the same within a block, for a connection that is not the worker's."""
    driver = _driver(connection)
    if driver in _connections:
        yield
        return
    _connections.add(driver)
    try:
        yield
    finally:
        _connections.discard(driver)


def _cut_off() -> None:
    """In the child: replace each of the parent's sockets by one whose other end is closed."""
    closed, other = socket.socketpair()
    other.close()
    with closed:
        for driver in list(_connections):
            with suppress(Exception):  # it has been closed
                os.dup2(closed.fileno(), file_number(driver))
    _connections.clear()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_cut_off)


def leave_if_forked(process: int, type: str | None, error: BaseException | None = None) -> None:
    """Exit if this process is not *process*: a handler forked it, and it came back.

    Args:
        process: The pid of the worker's process.
        type: The type of the job whose handler may have forked; None if unknown.
        error: The handler's exception. The child exits with the code of a SystemExit.
    """
    if os.getpid() != process:
        _leave(process, type, error)


def _leave(process: int, type: str | None, error: BaseException | None) -> NoReturn:
    if isinstance(error, SystemExit) and isinstance(error.code, int | None):
        os._exit(error.code or 0)
    whose = "a handler" if type is None else f"the handler of {type!r}"
    how = "returned" if error is None else f"raised {error.__class__.__name__}"
    words = (
        f"sqlalchemy-bgjob: {whose} in process {process} has forked process {os.getpid()}, which "
        f"{how} and ends here, so that it does not go on as a worker; end such a child by "
        f"os._exit(), or use multiprocessing or subprocess\n"
    )
    with suppress(OSError):  # not sys.stderr: a thread may have held its lock at the fork
        os.write(2, words.encode("utf-8", "backslashreplace"))
    os._exit(1)
