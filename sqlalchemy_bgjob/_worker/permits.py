"""Connections for handlers, out of the user's own pool.

Handlers wait for permits, so they never take more than the pool can give. Where the server gives
fewer, as at its ``max_connections`` or a role's limit, a handler waits for one that is given back.
"""

import random
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final, Protocol

from sqlalchemy import Connection, Engine

from .._db.errors import was_invalidated
from .._db.keepalive import enable_keepalive, may_be_lost
from .._db.sessions import name_session, plan_anew
from .._db.targets import is_autocommit
from .._points import CONNECTING, UNCONNECTED

WAIT_FOR_OTHERS: Final = 30.0
"""Seconds for which a handler that is refused a connection waits for those of other handlers."""
TRY_AGAIN_AFTER: Final = 1.0
"""Seconds, at most, until it tries the server again meanwhile."""


class Permits(Protocol):
    """A semaphore for threads, or for greenlets."""

    def acquire(self, *, timeout: float | None = None) -> Any:
        """Wait for a permit, at most *timeout* seconds."""

    def release(self) -> None:
        """Give a permit back."""


class NoConnectionInTime(TimeoutError):
    """A handler waited for a connection until its time was over."""

    def __str__(self) -> str:
        return (
            "there was no connection within the handler's timeout; give the pool two connections "
            "more than the worker has slots, or the worker fewer slots"
        )


class HandlerConnections:
    """Takes connections for handlers, within the number of permits.

    Args:
        engine: Whose pool they come from.
        permits: As many as the pool can give; None if it has no limit.
        close: Gives a connection back to the pool.
        returned: A semaphore without a permit, by which one handler wakes another.
    """

    def __init__(
        self,
        engine: Engine,
        permits: Permits | None,
        close: Callable[[Connection], None] | None = None,
        returned: Permits | None = None,
    ) -> None:
        self._engine, self._permits = engine, permits
        self._close = close or close_or_discard
        self._returned = returned or threading.Semaphore(0)
        self._lock = threading.Lock()
        self._in_use = 0
        self._given_back = 0  # how often, ever
        self._waiting = 0

    def connect(
        self, isolation_level: str | None, worker_id: int, until: float | None = None
    ) -> Connection:
        """A connection with the handler's isolation level, named after the worker.

        Without one the engine's level stands, unless that is AUTOCOMMIT, in which the writes and
        the settlement could not be one step.

        Args:
            isolation_level: The handler's, or None.
            worker_id: The worker's.
            until: The monotonic time until which it waits for other handlers; None to wait for a
                permit without limit.

        Raises:
            NoConnectionInTime: There was no permit by then.
        """
        if self._permits is not None:
            left = None if until is None else max(until - time.monotonic(), 0.0)
            if not self._permits.acquire(timeout=left):
                raise NoConnectionInTime
        try:
            return self._open_or_wait(isolation_level, worker_id, until)
        except BaseException:
            self._release()
            raise

    def _open_or_wait(
        self, isolation_level: str | None, worker_id: int, until: float | None
    ) -> Connection:
        """Open a connection; if that is refused while others are in use, wait for one of them."""
        longest = time.monotonic() + WAIT_FOR_OTHERS
        until = longest if until is None else min(until, longest)
        inherited = found_lost = False
        while True:
            given_back = self._given_back
            try:
                return self._open(isolation_level, worker_id, inherited=inherited)
            except Exception as error:
                if UNCONNECTED.listeners:
                    UNCONNECTED.reached(error)
                if was_invalidated(error) and not found_lost:
                    inherited, found_lost = False, True
                    continue  # SQLAlchemy has invalidated all that are as old in the pool
                with self._lock:
                    # The last one in use may have come back while this try was refused.
                    came_back = not self._in_use and self._given_back != given_back
                    if time.monotonic() >= until or not (self._in_use or came_back):
                        raise
                    self._waiting += not came_back
            inherited = not came_back and self._wait_for_another()

    def _wait_for_another(self) -> bool:
        """Wait for a moment; True if another handler has ended and left its place to this one.

        The place stays counted as in use until this handler has tried the pool. Otherwise a third
        handler, refused just then, would find nobody to wait for.
        """
        try:
            got = self._returned.acquire(timeout=TRY_AGAIN_AFTER * random.uniform(0.5, 1.0))
        except BaseException:
            if not self._waits_no_more():  # a place was left to it, and it won't take that
                self._returned.acquire()
                self._count(-1)
            raise
        if got or self._waits_no_more():
            return bool(got)
        self._returned.acquire()  # a place was left in this very moment
        return True

    def _waits_no_more(self) -> bool:
        """Stop waiting; False if a place was left already, which the caller has to take."""
        with self._lock:
            if not self._waiting:
                return False
            self._waiting -= 1
            return True

    def _open(self, isolation_level: str | None, worker_id: int, *, inherited: bool) -> Connection:
        try:
            if CONNECTING.listeners:
                CONNECTING.reached()
            connection = self._engine.connect()
        except BaseException:
            if inherited:
                self._count(-1)
            raise
        if not inherited:
            self._count(1)
        try:
            enable_keepalive(connection)
            if isolation_level is None and is_autocommit(connection):
                isolation_level = "READ COMMITTED"
            if isolation_level is not None:
                connection = connection.execution_options(isolation_level=isolation_level)
            name_session(connection, worker_id)
            if may_be_lost(connection):
                plan_anew(connection, 0.0)  # a statement of ours, not the handler's, finds it lost
            else:
                plan_anew(connection)
        except BaseException:
            try:
                self._close(connection)
            finally:
                self._count(-1)
            raise
        return connection

    def _count(self, change: int) -> None:
        with self._lock:
            self._in_use += change

    def disconnect(self, connection: Connection) -> None:
        """Give a connection back; discard one that can't be given back."""
        try:
            self._close(connection)
        finally:
            with self._lock:
                self._given_back += 1
                left = self._waiting > 0
                if left:
                    self._waiting -= 1
                else:
                    self._in_use -= 1
            if left:
                self._returned.release()
            self._release()

    def _release(self) -> None:
        if self._permits is not None:
            self._permits.release()


def close_or_discard(connection: Connection) -> None:
    """Close a connection; discard one that can't be closed."""
    try:
        connection.close()
    except Exception:
        with suppress(Exception):
            connection.invalidate()
            connection.close()
