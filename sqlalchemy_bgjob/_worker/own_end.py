"""When a worker drains by itself: at a limit of its life, when idle, when too much is stuck."""

import logging
import random
import time
from collections.abc import Callable
from math import ceil, inf
from typing import Final

from sqlalchemy import Connection

from .._db.errors import lost_connection, summary
from .._lifecycle.batches import look_through
from .._lifecycle.claim import any_due
from .._sql import Statements
from ..exceptions import WorkerStuck
from ..settings import WorkerSettings
from ..telemetry import Events
from .batch_sweep import LASTS, LIMIT, BatchSweep
from .control import ControlConnection
from .drain import Drain
from .hands import Hands
from .memory import resident
from .queue_control import QueueControl
from .retention import Retention
from .scheduler import Scheduler
from .unique_periods import UniquePeriods
from .unknown_claims import UnknownClaims

logger = logging.getLogger("sqlalchemy_bgjob")

ASK_IDLE_EVERY: Final = 0.5
"""Seconds between two questions of a worker with ``until_idle`` whether anything is due."""
MEASURE_EVERY: Final = 1.0
"""Seconds between two looks of a worker with ``max_memory`` at how much it takes."""


class OwnEnd:
    """Begins the drain of a worker that nobody has asked to stop.

    Attributes:
        limit_reached: The setting at whose limit the drain began.
        stuck: Why the worker fails, as too many of its handlers do not end.
    """

    def __init__(
        self,
        settings: WorkerSettings,
        statements: Statements,
        *,
        hands: Hands,
        drain: Drain,
        control: ControlConnection,
        queue_control: QueueControl,
        scheduler: Scheduler,
        unknown: UnknownClaims,
        events: Events,
        slots: int,
        measure: Callable[[], int] = resident,
    ) -> None:
        self._settings, self._statements, self._measure = settings, statements, measure
        self._hands, self._drain, self._control = hands, drain, control
        self._queue_control, self._scheduler, self._unknown = queue_control, scheduler, unknown
        self._events, self._slots = events, slots
        self._most_stuck = ceil(settings.max_stuck * slots)
        self.limit_reached: str | None = None
        self.stuck: WorkerStuck | None = None
        self._over_at, self._measure_at, self._ask_idle_at = inf, inf, 0.0
        self._look_from: str | None = ""  # through the batches; None when that is done
        self._is_tidy = False

    @property
    def look_at(self) -> float:
        """When to look again, by the monotonic clock, if nothing else happens."""
        return min(self._over_at, self._measure_at, self._ask_idle_at or inf)

    def begin(self, now: float) -> None:
        """The worker's life begins: count from here."""
        settings = self._settings
        longer = 1 + random.uniform(0.0, settings.limit_jitter)
        if settings.max_jobs:
            self._hands.most_starts = int(settings.max_jobs * longer)
        if settings.max_lifetime:
            self._over_at = now + settings.max_lifetime * longer
        if settings.max_memory:
            self._measure_at = now

    def look(self, now: float) -> None:
        """Drain if a limit is reached, or if too many slots are taken by what does not end."""
        if self._drain.deadline is not None:
            return
        if len(self._hands.stuck) >= self._most_stuck:
            self.stuck = WorkerStuck(len(self._hands.stuck), self._slots)
            logger.critical("%s", self.stuck)
            self._events.report(self.stuck)
            self._drain.begin(self._settings.shutdown_timeout)
        elif self._hands.started >= self._hands.most_starts:
            self._end_at("max_jobs", f"{self._hands.started:,} jobs were started")
        elif now >= self._over_at:
            self._end_at("max_lifetime", f"this worker is {self._settings.max_lifetime:g} s old")
        elif now >= self._measure_at and self._hands.started:
            # Not before its first job: where a process is too large from the start, each would
            # else be replaced without having done anything.
            self._measure_at = now + MEASURE_EVERY
            if (size := self._measure()) >= self._settings.max_memory:
                words = f"the process takes {size / 2**20:,.0f} MiB"
                self._end_at("max_memory", f"{words} after {self._hands.started:,} jobs")

    def _end_at(self, limit: str, words: str) -> None:
        self.limit_reached = limit
        seconds = self._settings.shutdown_timeout
        logger.info("%s is reached, %s: draining for at most %g s", limit, words, seconds)
        self._drain.begin(seconds)

    def stop_if_idle(self, now: float) -> None:
        """For ``until_idle``: stop if this worker has nothing in its hands and nothing is due.

        Whether anything is due is asked, and not concluded from claims, which pass by locked rows.
        What is in a paused queue does not count.
        """
        may_have_claimed = self._unknown.due_at != inf
        if now < self._ask_idle_at or self._drain.deadline is not None or may_have_claimed:
            return
        schedules_wait = self._scheduler.is_asked or self._scheduler.due_at <= now
        if schedules_wait or not self._queue_control.is_known:
            return
        with self._hands.lock:
            if self._hands.planner.busy or self._hands.ended_batches:
                return
        self._ask_idle_at = now + ASK_IDLE_EVERY
        connection = self._control.get()
        if self._any_due(connection) or self._batches_go_on(connection):
            return
        if not self._is_tidy:
            self._tidy_up(connection)
            self._is_tidy = True
            if self._any_due(connection):
                return
        logger.info("nothing is due, and this worker runs nothing: stopping")
        self._drain.begin(self._settings.shutdown_timeout)

    def _any_due(self, connection: Connection) -> bool:
        with connection.begin():
            queues = self._queue_control.not_paused()
            return any_due(connection, self._statements, queues=queues)

    def _batches_go_on(self, connection: Connection) -> bool:
        """Finish batches that nobody has looked at; False once all were looked at.

        The leader does it now and then. But where each worker ends when it is idle, as under cron,
        none may live for that long.
        """
        until = time.monotonic() + LASTS
        try:
            while self._look_from is not None and time.monotonic() < until:
                looked = look_through(
                    connection, self._statements, after=self._look_from, limit=LIMIT
                )
                self._look_from = looked.last
                if looked.ids:
                    return True  # what follows may be due
        except Exception as error:
            if lost_connection(error):
                raise
            logger.warning("batches were not looked through: %s", summary(error))
            self._look_from = None
        return self._look_from is not None

    def _tidy_up(self, connection: Connection) -> None:
        """Delete what is too old, by one turn of each who does it, which ends in half a second.

        Their turns come within a minute, and none of these workers may live for that long.
        """
        settings, statements, report = self._settings, self._statements, self._events.report
        batches = BatchSweep(statements, settings, report)
        batches.begin(finishes=False)  # see _batches_go_on
        chores: list[Retention | UniquePeriods | BatchSweep] = [
            Retention(statements, settings, lambda: 1, report),
            UniquePeriods(statements),
            batches,
        ]
        for chore in chores:
            try:
                chore.turn(connection)
            except Exception as error:
                if lost_connection(error):
                    raise
                report(error)
                logger.warning("old rows were not deleted: %s", summary(error))
