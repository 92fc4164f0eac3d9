"""The control connection, on which a worker's loop claims, settles and hands back."""

import logging
import time
from typing import Final

from sqlalchemy import Connection, Executable

from .._db.connections import commit_each, configure, maintain
from .._db.encodings import changes_encoding
from .._db.errors import summary
from .._db.idle_statement import IdleStatement, prepare
from .._db.leave_clean import leave_clean
from .._sql import Statements
from .heart import Heart
from .runtime import Runtime

logger = logging.getLogger("sqlalchemy_bgjob")


SLOW: Final = 0.005
"""Seconds of a statement after which its plan may have been made for a smaller table."""
SLOW_FOR_A_JOB: Final = 0.0001
"""The same for each of its jobs, in addition."""
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
        self._direct: dict[Executable, IdleStatement] = {}
        self._was_slow = False
        self.rests = False
        """Whether each statement commits by itself now."""

    def get(self) -> Connection:
        """The connection, for statements in transactions."""
        connection = self._connected()
        self._rest(connection, False)
        self._maintain(connection)
        return connection

    def as_it_is(self) -> Connection:
        """The connection, in whatever mode it is."""
        connection = self._connected()
        self._maintain(connection)
        return connection

    def took(self, seconds: float, jobs: int) -> None:
        """A statement about N jobs took that long. If it was slow, plans are made anew."""
        self._was_slow = self._was_slow or seconds > SLOW + SLOW_FOR_A_JOB * jobs

    def _maintain(self, connection: Connection) -> None:
        if maintain(connection, self._heart.worker_id, plans=self._was_slow):
            self._was_slow = False

    def _connected(self) -> Connection:
        if self._connection is None:
            connection = self._runtime.engine.connect()
            self._is_changed = changes_encoding(connection)
            self._connection, self.rests = configure(connection), False
            self._connected_at = time.monotonic()
            claim = self._statements.claim
            self._direct = prepare((claim.onward, claim.of_queues), self._connection)
        return self._connection

    def direct(self, claim: Executable) -> IdleStatement | None:
        """How to claim in one round trip, while the connection rests."""
        return self._direct.get(claim) if self.rests else None

    def rest(self) -> None:
        """Let the connection rest, if a claim in one round trip is possible on it."""
        if self._connection is not None and self._direct:
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
