"""Writes settlements, in batches where possible, and retries those that are refused."""

import logging
import time
from dataclasses import replace

from .._db.errors import doubts_session, summary
from .._db.printable import printable
from .._handlers.outcomes import COMPLETED
from .._lifecycle import settle
from .._lifecycle.claim import ClaimedJob
from .._lifecycle.row_errors import RowKept
from .._lifecycle.settle import Fate, Pending
from .._points import SETTLE
from .._sql import Statements
from ..telemetry import Events
from .control import ControlConnection
from .hands import Hands
from .plan.outbox import settle_again_after
from .run import job_info

logger = logging.getLogger("sqlalchemy_bgjob")


class Settling:
    """The settlements that one worker's loop writes."""

    def __init__(
        self, hands: Hands, control: ControlConnection, statements: Statements, events: Events
    ) -> None:
        self._hands, self._control = hands, control
        self._statements, self._events = statements, events
        self._tells_completed = events.wants("job_completed")
        self._refused: dict[tuple[str, int], ClaimedJob] = {}

    @property
    def refused(self) -> list[ClaimedJob]:
        """Jobs that have run, and whose settlement the database refuses: their attempt is spent."""
        return list(self._refused.values())

    def settle(self, items: tuple[Pending, ...]) -> None:
        """Write these settlements and tell of them; keep those that can't be written for later.

        Raises:
            DBAPIError: The connection was lost; pass the same items again.
        """
        connection = self._control.get()
        begun = time.monotonic()
        fates = settle.settle(connection, self._statements, items)
        self._control.took(time.monotonic() - begun, len(items))
        settled = [item for item, fate in fates if fate is Fate.SETTLED]
        if SETTLE.listeners and settled:
            SETTLE.reached(settled)
        self._hands.note(settled)
        now = time.monotonic()
        for item, fate in fates:
            if fate is Fate.LOCKED or fate is Fate.FAILED:
                self._try_again(item, fate, now)
                continue
            if item.tries:
                self._refused.pop((item.job.id, item.job.lease), None)
                with self._hands.lock:
                    self._hands.planner.written(item)
            if (
                fate is not Fate.SETTLED
                or item.settlement is not COMPLETED
                or self._tells_completed
            ):
                self._hands.tell(item, fate)

    def _try_again(self, item: Pending, fate: Fate, now: float) -> None:
        pause = settle_again_after(fate, item.tries)
        item.tries += 1
        if item.settlement.exception is not None:  # it may wait for days, with all that it keeps
            item.settlement = replace(item.settlement, exception=None)
        if fate is Fate.FAILED:
            self._report(item)
        with self._hands.lock:
            self._hands.planner.settle_later(item, now + pause)

    def _report(self, item: Pending) -> None:
        job, error = item.job, item.error
        if error is not None and not isinstance(error, RowKept) and doubts_session(error):
            self._control.doubt()  # perhaps the session is at fault, and not a trigger
        if not item.settlement.refund_attempt:
            self._refused[job.id, job.lease] = job
        if item.tries == 1 and error is not None:
            self._events.report(error, job_info(job))
            logger.warning(
                "job %s can't be settled, it will be tried again: %s",
                printable(job.id),
                summary(error),
            )
