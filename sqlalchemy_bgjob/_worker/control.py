"""The control connection, on which a worker's loop claims, settles and hands back."""

import logging
import time
from typing import Final

from sqlalchemy import Connection

from .._db.connections import commit_each, configure, maintain
from .._db.encodings import changes_encoding
from .._db.errors import summary
from .._db.idle_statement import IdleStatement, prepare
from .._db.leave_clean import leave_clean
from .._sql import Statements
from .heart import Heart
from .runtime import Runtime

logger = logging.getLogger("sqlalchemy_bgjob")


DOUBTED_AFTER: Final = 1.0
"""Seconds that a session lives at least, however many queues refuse to be claimed from."""


class ControlConnection:
    """Connects when it is needed, and again after it was dropped.

    While a worker has nothing to do its connection *rests*: each statement commits by itself, and
    the claim for a job that wakes the worker takes one round trip. Otherwise statements run in
    transactions.

    Args:
        runtime: Where to connect.
        statements: Those of the tables.
        heart: Knows the worker's id, after which its sessions are named.
    """

    def __init__(self, runtime: Runtime, statements: Statements, heart: Heart) -> None:
        self._runtime, self._statements, self._heart = runtime, statements, heart
        self._connection: Connection | None = None
        self._is_changed = False
        """Whether the session was changed, and must not go back to the application's pool."""
        self._connected_at = 0.0
        self._direct: IdleStatement | None = None
        self.rests = False
        """Whether each statement commits by itself now."""

    def get(self) -> Connection:
        """The connection, for statements in transactions."""
        connection = self._connected()
        self._rest(connection, False)
        maintain(connection, self._heart.worker_id)
        return connection

    def as_it_is(self, *, patience: float = 0.0) -> Connection:
        """The connection, in whatever mode it is; *patience* is for ``maintain``."""
        connection = self._connected()
        maintain(connection, self._heart.worker_id, patience=patience)
        return connection

    def _connected(self) -> Connection:
        if self._connection is None:
            connection = self._runtime.engine.connect()
            self._is_changed = changes_encoding(connection)
            self._connection, self.rests = configure(connection), False
            self._connected_at = time.monotonic()
            self._direct = prepare(self._statements.claim.onward, self._connection)
        return self._connection

    @property
    def direct(self) -> IdleStatement | None:
        """How to claim in one round trip, while the connection rests."""
        return self._direct if self.rests else None

    def rest(self) -> None:
        """Let the connection rest, if a claim in one round trip is possible on it."""
        if self._connection is not None and self._direct is not None:
            self._rest(self._connection, True)

    def _rest(self, connection: Connection, rests: bool) -> None:
        if self.rests != rests:
            commit_each(connection, rests)
            self.rests = rests

    def doubt(self) -> None:
        """Drop a session that may be at fault, unless it has only just begun."""
        if time.monotonic() - self._connected_at > DOUBTED_AFTER:
            self.drop()

    def drop(self) -> None:
        """Drop this connection: it is lost, or its session may be at fault."""
        self._close(invalidate=True)

    def close(self) -> None:
        """Give the connection back: the worker ends."""
        self._close(invalidate=self._is_changed)

    def _close(self, *, invalidate: bool) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            try:
                if invalidate and not connection.invalidated:
                    leave_clean(connection)
                    connection.invalidate()
                connection.close()
            except Exception as error:
                logger.debug("closing: %s", summary(error))
