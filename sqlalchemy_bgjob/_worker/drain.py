"""The end of a worker: claim no more, finish what runs, release what does not finish in time."""

import logging
import time
from typing import Final

from .._lifecycle.claim import ClaimedJob
from .._points import DRAIN_INTERRUPTED
from .hands import Hands

logger = logging.getLogger("sqlalchemy_bgjob")

COMMITTED_WITHIN: Final = 2.0
RELEASED_WITHIN: Final = 3.0
"""Seconds beyond ``shutdown_timeout`` for what is being committed, and then for the releases."""


class Drain:
    """Begins when the worker is asked to stop, and is over when its hands are empty."""

    def __init__(self, hands: Hands) -> None:
        self._hands = hands
        self._interruptions = 0
        self.deadline: float | None = None
        """When the next step comes by the monotonic clock; None until the worker is to stop."""

    def begin(self, timeout: float) -> None:
        """Finish what runs, for at most *timeout* seconds; again with less to hurry."""
        with self._hands.lock:
            deadline = time.monotonic() + timeout
            if not self._interruptions:
                self.deadline = min(self.deadline or deadline, deadline)
            self._hands.planner.draining = True

    def is_over(self) -> bool:
        """Whether the worker may end; what goes on beyond its time is released here."""
        if self.deadline is None:
            return False
        with self._hands.lock:
            if not self._hands.planner.busy:
                return True
            if time.monotonic() < self.deadline:
                return False
            left = self._interrupt()
            if DRAIN_INTERRUPTED.listeners:
                DRAIN_INTERRUPTED.reached(self._interruptions)
            is_over = not self._hands.planner.busy
        for job in left:
            logger.warning("job %s: left unsettled at shutdown", job.id)
        return is_over

    def _interrupt(self) -> list[ClaimedJob]:
        """The time to drain is over: release what runs. Returns what is given up.

        What is being committed is given COMMITTED_WITHIN, and the releases RELEASED_WITHIN more.
        If not even these could be written, others have to rescue the jobs.
        """
        self._interruptions += 1
        more = COMMITTED_WITHIN if self._interruptions == 1 else RELEASED_WITHIN
        self.deadline = time.monotonic() + more
        if self._interruptions > 2:
            return self._hands.give_up()
        for run in self._hands.runs():
            run.cancelled = True
            if not (run.committing and self._interruptions == 1):
                self._hands.interrupt(run)
        return []
