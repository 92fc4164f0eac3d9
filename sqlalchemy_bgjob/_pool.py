"""Connections for handlers, out of the user's own pool.

Never more than the pool can give: a handler waits for a permit, and does not fail for the want of
a connection.
"""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

from sqlalchemy import Connection, Engine

from ._lifecycle import name_session, plan_anew
from ._sockets import watch


class Permits(Protocol):
    """A semaphore, as a thread or a greenlet waits for it."""

    def acquire(self) -> Any:
        """Wait for a permit."""

    def release(self) -> None:
        """Give it back."""


class HandlerConnections:
    """Takes connections for handlers, within the number of permits."""

    def __init__(
        self,
        engine: Engine,
        permits: Permits | None,
        close: Callable[[Connection], None] | None = None,
    ) -> None:
        self._engine, self._permits = engine, permits
        self._close = close or give_back

    def connect(self, isolation_level: str | None, worker_id: int) -> Connection:
        """A connection in a transaction mode of its own, named after the worker.

        The engine's isolation level stands unless the handler has one; only AUTOCOMMIT, in which
        the writes and the settlement could not be one step, is overridden.
        """
        if self._permits is not None:
            self._permits.acquire()
        try:
            connection = self._engine.connect()
            try:
                watch(connection)
                if isolation_level is None and is_autocommit(connection):
                    isolation_level = "READ COMMITTED"
                if isolation_level is not None:
                    connection = connection.execution_options(isolation_level=isolation_level)
                name_session(connection, worker_id)
                plan_anew(connection)
            except BaseException:
                self._close(connection)
                raise
        except BaseException:
            self._release()
            raise
        return connection

    def disconnect(self, connection: Connection) -> None:
        """Give a connection back; one that can't be is thrown away."""
        try:
            self._close(connection)
        finally:
            self._release()

    def _release(self) -> None:
        if self._permits is not None:
            self._permits.release()


def give_back(connection: Connection) -> None:
    """Close a connection; throw one away that can't be."""
    try:
        connection.close()
    except Exception:
        with suppress(Exception):
            connection.invalidate()
            connection.close()


def is_autocommit(connection: Connection) -> bool:
    """Whether each statement would be committed by itself."""
    return bool(getattr(connection.connection.dbapi_connection, "autocommit", False))
