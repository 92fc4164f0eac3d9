"""Jobs that this worker holds in the database without knowing of them.

Their claim's answer was lost with the connection. Nobody runs them, and nobody rescues them while
this worker beats, so it has to return them. It looks for them

* after a claim failed, or all leases were lost: at once, and again after 2 and 10 s, as the server
  may take a while to commit the claim (:meth:`UnknownClaims.expect`);
* now and then, in the rescuer's session: a standby or a disk may have stalled a COMMIT for longer
  (:meth:`UnknownClaims.search`).

Either way the worker's own loop returns them, after comparing once more with what it knows.
"""

import logging
import time
from collections.abc import Sequence
from typing import Final

from sqlalchemy import Connection

from .._db.errors import lost_connection
from .._lifecycle import unknown_claims
from .._points import RETURNING
from .._sql import Statements
from .hands import Hands
from .runtime import Runtime

logger = logging.getLogger("sqlalchemy_bgjob")

RETURN_AFTER: Final = (0.0, 2.0, 10.0)
"""Seconds after a lost answer at which the unknown claims are returned."""
LOST_AGAIN: Final = 2.0
REFUSED_AGAIN: Final = 10.0
"""Seconds until the next try, after a lost connection or a refusal by the database."""
SUSPECTED_AGAIN: Final = 1.0
"""Seconds after which a job that was found is checked again: while its claim or settlement is on
its way, any job looks unknown."""


class UnknownClaims:
    """The unknown claims of one worker.

    Args:
        hands: The jobs that it knows of.
        runtime: Whose loop is woken.
        statements: Those of the tables.
    """

    def __init__(self, hands: Hands, runtime: Runtime, statements: Statements) -> None:
        self._hands, self._runtime, self._statements = hands, runtime, statements
        self._times: list[tuple[float, int]] = []  # when to return, for which worker id
        self.suspected: set[tuple[str, str, int]] = set()
        """Id and lease of jobs that were found, to be checked again in the same session."""

    # ---- the worker's loop ----------------------------------------------------------------------

    @property
    def due_at(self) -> float:
        """The monotonic time of the next return."""
        return self._times[0][0] if self._times else float("inf")

    def expect(self, worker_id: int, *, after: Sequence[float] = RETURN_AFTER) -> None:
        """This id may have some: return them after each of these pauses, in seconds."""
        now = time.monotonic()
        with self._hands.lock:
            others = [entry for entry in self._times if entry[1] != worker_id]
            own = [(now + pause, worker_id) for pause in after]
            self._times = sorted(others + own)
        self._runtime.wake()

    def return_due(self, connection: Connection) -> None:
        """Return those whose time has come; the connection is outside a transaction.

        A failure delays only these returns: the worker works on.
        """
        entry, begun = self._times[0], time.monotonic()
        worker_id = entry[1]
        try:
            count = self.return_now(connection, worker_id)
        except Exception as error:
            pause = LOST_AGAIN if lost_connection(error) else REFUSED_AGAIN
            pause = max(pause, (time.monotonic() - begun) * 10)
            self.expect(worker_id, after=[pause + later for later in RETURN_AFTER])
            raise
        with self._hands.lock:
            if entry in self._times:
                self._times.remove(entry)
        if count:
            logger.info("handed back %d jobs whose claim was not answered", count)
            self._hands.wake(None)

    def return_now(self, connection: Connection, worker_id: int) -> int:
        """Return all jobs that this id holds and these hands do not; gives how many. Commits."""
        if RETURNING.listeners:
            RETURNING.reached(connection)
        return unknown_claims.return_unknown_claims(
            connection, self._statements, worker_id=worker_id, known=self._hands.known()
        )

    # ---- the rescuer's session ------------------------------------------------------------------

    def search(self, connection: Connection, worker_id: int) -> None:
        """Read the whole table for jobs that this worker may not know of. Commits."""
        if not self.suspected:
            self.suspected = unknown_claims.find_unknown_claims(
                connection, self._statements, worker_id=worker_id, known=self._hands.known()
            )

    def ask_again(self, connection: Connection, worker_id: int) -> None:
        """Have the loop return found jobs that are still held and still unknown. Commits."""
        suspected, self.suspected = self.suspected, set()
        unknown = suspected - {(job.queue, job.id, job.lease) for job in self._hands.known()}
        if not unknown or not unknown_claims.still_holds_any(
            connection, self._statements, worker_id=worker_id, jobs=unknown
        ):
            return
        with self._hands.lock:
            if all(entry[1] != worker_id for entry in self._times):
                self.expect(worker_id, after=(0.0,))
