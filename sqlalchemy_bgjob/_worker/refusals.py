"""Rows and queues that can't be claimed for a while.

A row may refuse an UPDATE, or hold a value that the driver can't read. Claiming row by row finds
and skips it, and takes its neighbours. If no row is to blame, the queue is left alone for a while;
claims from other queues go on.
"""

import logging
import time
from typing import Final

from sqlalchemy import Connection

from .._db.connections import Backoff
from .._db.errors import doubts_session, lost_connection, refuses_a_row, summary
from .._db.printable import printable
from .._lifecycle import claim_one_by_one
from .._lifecycle.claim import ClaimedJob, Look
from .._sql import Statements
from ..telemetry import Events
from .control import ControlConnection
from .hands import Hands

logger = logging.getLogger("sqlalchemy_bgjob")

REFUSAL_LASTS: Final = 60.0
"""Seconds for which a row that could not be claimed is skipped."""


class Refusals:
    """Rows and queues that refused to be claimed lately."""

    def __init__(
        self, hands: Hands, control: ControlConnection, statements: Statements, events: Events
    ) -> None:
        self._hands, self._control = hands, control
        self._statements, self._events = statements, events
        self._rows: dict[tuple[str, str], float] = {}
        self._backoffs: dict[str, Backoff] = {}

    def rows_of(self, queue: str) -> list[str]:
        """The ids to skip in a queue."""
        if not self._rows:
            return []
        now = time.monotonic()
        self._rows = {key: until for key, until in self._rows.items() if until > now}
        return [id for name, id in self._rows if name == queue]

    def over(self, queue: str) -> None:
        """A claim of this queue was not refused."""
        self._backoffs.pop(queue, None)

    def claim_one_by_one(
        self, connection: Connection, look: Look, worker_id: int, error: Exception
    ) -> list[ClaimedJob] | None:
        """Claim row by row, after *error* refused a claim of many. Commits.

        Returns None if no single row is to blame: then the queue is left alone.

        Raises:
            DBAPIError: The connection was lost.
        """
        try:
            with connection.begin():
                jobs, refused = claim_one_by_one.claim(
                    connection,
                    self._statements,
                    queue=look.queue,
                    limit=look.limit,
                    worker_id=worker_id,
                    skip=self.rows_of(look.queue),
                    by_time=look.by_time,
                )
        except Exception as second:
            if lost_connection(second):
                raise
            self._leave_alone(look.queue, second)
            return None
        if not jobs:
            refused = {id: reason for id, reason in refused.items() if refuses_a_row(reason)}
        if not jobs and not refused:
            self._leave_alone(look.queue, error)
            return None
        until = time.monotonic() + REFUSAL_LASTS
        for id, reason in refused.items():
            self._rows[look.queue, id] = until
            self._events.report(reason)
            logger.warning(
                "job %s can't be claimed, its neighbours are: %s", printable(id), summary(reason)
            )
        return jobs

    def _leave_alone(self, queue: str, error: Exception) -> None:
        """Claim nothing from a queue for a while, with backoff for as long as it is refused."""
        backoff = self._backoffs.setdefault(queue, Backoff())
        backoff.log(f"queue {queue!r} can't be claimed from", error)
        self._events.report(error)
        if doubts_session(error):
            self._control.doubt()
        now = time.monotonic()
        with self._hands.lock:
            self._hands.planner.refused(queue, now + backoff.pause(), now)
