"""The end of a worker: claim no more, finish what runs, release what does not finish in time."""

import logging
import time
from typing import Final

from .._db.printable import printable
from .._handlers.outcomes import interruptions
from .._lifecycle.claim import ClaimedJob
from .._points import DRAIN_INTERRUPTED
from .hands import Hands

logger = logging.getLogger("sqlalchemy_bgjob")

COMMITTED_WITHIN: Final = 2.0
RELEASED_WITHIN: Final = 3.0
"""Seconds beyond ``shutdown_timeout`` for runs that are committing, and then for the releases."""
OFTEN: Final = 3
"""Interruptions of one job in a row that are told of: each release that comes may do it again."""


class Drain:
    """Begins when the worker is asked to stop, and is over when its hands are empty."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._interruptions = 0
        self.deadline: float | None = None
        """The monotonic time of the next step; None until the worker is to stop."""

    def begin(self, timeout: float) -> None:
        """Finish running jobs within *timeout* seconds; call again with less to hurry."""
        with self._hands.lock:
            deadline = time.monotonic() + timeout
            if not self._interruptions:
                self.deadline = min(self.deadline or deadline, deadline)
            self._hands.planner.draining = True

    def is_over(self) -> bool:
        """Whether the worker may end; once the time is over, this releases what still runs."""
        if self.deadline is None:
            return False
        with self._hands.lock:
            if not self._hands.planner.busy:
                return True
            if time.monotonic() < self.deadline:
                return False
            often: list[tuple[ClaimedJob, int]] = []
            left = self._interrupt(often)
            if DRAIN_INTERRUPTED.listeners:
                DRAIN_INTERRUPTED.reached(self._interruptions)
            is_over = not self._hands.planner.busy
        for job in left:
            logger.warning("job %s: left unsettled at shutdown", printable(job.id))
        for job, times in often:
            logger.warning(
                "job %s of type %r was interrupted by shutdown %d times in a row: it takes longer "
                "than a worker may drain; raise shutdown_timeout, or let it do less at a time",
                printable(job.id),
                job.type,
                times,
            )
        return is_over

    def _interrupt(self, often: list[tuple[ClaimedJob, int]]) -> list[ClaimedJob]:
        """Release the runs, as the time to drain is over. Returns jobs that are given up.

        Jobs that were interrupted *often*, this time included, are added with how often.

        Runs that are committing get COMMITTED_WITHIN, and then the releases RELEASED_WITHIN. If not
        even the releases could be written, other workers have to rescue the jobs.
        """
        self._interruptions += 1
        more = COMMITTED_WITHIN if self._interruptions == 1 else RELEASED_WITHIN
        self.deadline = time.monotonic() + more
        if self._interruptions > 2:
            return self._hands.give_up()
        for run in self._hands.runs():
            run.cancelled = True
            if not (run.committing and self._interruptions == 1):
                for item in self._hands.interrupt(run):
                    times = interruptions(item.settlement.error)
                    if times >= OFTEN:
                        often.append((item.job, times))
        return []
