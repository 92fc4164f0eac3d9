"""The control connection, on which a worker's loop claims, settles and hands back."""

import logging
import time
from typing import Final

from sqlalchemy import Connection, Executable

from .._db.connections import commit_each, configure, maintain
from .._db.direct_statement import DirectStatement, prepare
from .._db.errors import summary
from .._db.leave_clean import leave_clean
from .._db.sessions import compile_no_plans, plan_once
from .._sql import Statements
from .heart import Heart
from .runtime import Runtime

logger = logging.getLogger("sqlalchemy_bgjob")


SLOW: Final = 0.005
"""Seconds beyond the network's after which the plan may have been made for a smaller table."""
SLOW_FOR_A_JOB: Final = 0.0001
"""The same for each of its jobs, in addition."""
ROUND_TRIPS: Final = 6
"""How often a transaction waits for the network, as a rule at most; a claim by itself does once."""
RENEWED_AFTER: Final = (1.0, 60.0)
"""Seconds until plans may be discarded again; they double as long as that has not helped."""
DOUBTED_AFTER: Final = 1.0
"""Seconds that a session lives at least, however many queues refuse to be claimed from."""


class ControlConnection:
    """Connects when it is needed, and again after it was dropped.

    Where the driver allows it, the connection *rests* for claims, and while the worker has nothing
    to do: each statement commits by itself, and takes one round trip. Settlements and all else
    begin a transaction.

    Args:
        runtime: Where to connect.
        statements: Those of the tables.
        heart: Knows the worker's id, after which its sessions are named.
        by_time: Whether some queue is read by time.
    """

    def __init__(
        self, runtime: Runtime, statements: Statements, heart: Heart, *, by_time: bool = False
    ) -> None:
        self._runtime, self._heart = runtime, heart
        kinds = (statements.claim, *([statements.claim_by_time] if by_time else ()))
        self._claims = [claim for kind in kinds for claim in (kind.onward, kind.of_queues)]
        self._connection: Connection | None = None
        self._connected_at = 0.0
        self._direct: dict[Executable, DirectStatement] = {}
        self._quickest, self._was_slow = float("inf"), False
        self._renew_at, self._renewed_after = 0.0, RENEWED_AFTER[0]
        self.rests = False
        """Whether each statement commits by itself now."""

    def get(self) -> Connection:
        """The connection, for statements in transactions."""
        connection = self._connected()
        self._rest(connection, False)
        self._maintain(connection, renews=True)
        return connection

    def for_claim(self) -> Connection:
        """The connection, which rests if a claim in one round trip is possible on it."""
        connection = self._connected()
        self._maintain(connection, renews=not self.rests)  # a job that wakes the worker waits
        if self._direct:
            self._rest(connection, True)
        return connection

    def took(self, seconds: float, jobs: int) -> None:
        """Statements about N jobs and queues took that long. If it was slow, plans are renewed.

        The quickest of the session is what one round trip takes, or a little more. If it is slow
        again, the cause is another one, such as a busy machine.
        """
        self._quickest = min(self._quickest, seconds)
        if seconds - self._quickest * ROUND_TRIPS > SLOW + SLOW_FOR_A_JOB * jobs:
            self._was_slow = True
        elif time.monotonic() >= self._renew_at:
            self._renewed_after = RENEWED_AFTER[0]

    def _maintain(self, connection: Connection, *, renews: bool) -> None:
        now = time.monotonic()
        if self._heart.visible:  # no pooler is between, whose next client would get this session
            plan_once(connection)
        renews = renews and self._was_slow and now >= self._renew_at
        if maintain(connection, self._heart.worker_id, plans=renews):
            self._was_slow = False
            self._renew_at = now + self._renewed_after
            self._renewed_after = min(self._renewed_after * 2, RENEWED_AFTER[1])

    def _connected(self) -> Connection:
        if self._connection is None:
            connection = self._runtime.engine.connect()
            try:
                configure(connection)
                compile_no_plans(connection)
                direct = prepare(self._claims, connection)
            except BaseException:
                _end(connection)
                raise
            self._connected_at, self.rests = time.monotonic(), False
            self._quickest = float("inf")
            self._connection, self._direct = connection, direct
        return self._connection

    def direct(self, claim: Executable) -> DirectStatement | None:
        """How to claim in one round trip, while the connection rests."""
        return self._direct.get(claim) if self.rests else None

    def rest(self) -> None:
        """Let the connection rest, if a claim in one round trip is possible on it."""
        if self._connection is not None and self._direct:
            self._maintain(self._connection, renews=True)
            self._rest(self._connection, True)
            for claim in self._direct.values():
                claim.compile()  # before a job waits for that

    def _rest(self, connection: Connection, rests: bool) -> None:
        if self.rests != rests:
            commit_each(connection, rests)
            self.rests = rests

    def doubt(self) -> None:
        """Drop a session that may be at fault, unless it has only just begun."""
        if time.monotonic() - self._connected_at > DOUBTED_AFTER:
            self.drop()

    def drop(self) -> None:
        """End this session: it is lost or may be at fault, or the worker ends."""
        connection, self._connection = self._connection, None
        if connection is not None:
            _end(connection)


def _end(connection: Connection) -> None:
    """End a session. Its settings were changed: it must not go back to the application's pool."""
    try:
        if not connection.invalidated:
            leave_clean(connection)
            connection.invalidate()
        connection.close()
    except Exception as error:
        logger.debug("closing: %s", summary(error))
