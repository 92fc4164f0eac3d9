"""The rescuer of a worker: it judges other workers, and takes the jobs of those that are lost.

Its thread and connection are not the heart's: a sweep may read the whole table of jobs, or wait for
a lock on it, and the worker must beat meanwhile. The rules:

* A worker is judged silent only by one that has itself beaten without a gap for the other's
  ``lease_timeout``, by both clocks: after an outage, a frozen machine or a jump of the server's
  clock, everyone looks silent, and nobody is.
* Either clock may show silence: the server's, or the judge's own monotonic one, by which a beat has
  not changed. The server's may have been set back, which puts the last beat into its future.
* A worker whose process seems to have ended is looked at twice on the same connection.
* One statement looks at all workers; the others follow only when it shows a reason.
* Nothing depends on a leader: every worker looks, and the first one to lock the row judges.
* A failed sweep is tried again at its next turn, and does not hold up the others. If the session
  may be at fault, they go on in a new one.
"""

import logging
import random
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from sqlalchemy import Connection

from .._db.connections import configure
from .._db.errors import doubts_session, lost_connection, summary
from .._db.sessions import name_session
from .._inspect.backlog import Backlog
from .._inspect.health import Health
from .._lifecycle import rescue, workers
from .._lifecycle.rescue import Beat, LookAtWorkers, Rescued
from .._points import SWEEPING
from .._sql import Statements
from ..settings import WorkerSettings
from ..telemetry import Events
from .batch_sweep import BatchSweep
from .counts import Counts
from .hands import Hands
from .heart import Heart
from .queue_control import QueueControl
from .retention import Retention
from .runtime import Runtime
from .scheduler import Scheduler
from .side_loop import SideLoop
from .unique_periods import UniquePeriods
from .unknown_claims import SUSPECTED_AGAIN, UnknownClaims

logger = logging.getLogger("sqlalchemy_bgjob")

CONFIRMED_AFTER: Final = 0.5
"""Seconds after which a worker that seems to have ended is looked at again."""
_READING_SHARE: Final = 100
"""A sweep that reads the table of jobs comes at most once in N times the time that it takes."""
_AT_LEAST_EVERY: Final = 300.0
"""Seconds, however long it took: it may have waited for a lock instead."""
_SILENT: Final = "that fell silent"


class _Turns:
    """Monotonic times of the next sweeps; spread, as workers may have begun together."""

    def __init__(self, settings: WorkerSettings) -> None:
        self.look = self.rest = now = time.monotonic()
        self.orphans = now + settings.orphan_interval * random.random()
        self.sample = now + settings.health_interval * random.random()
        self.again = float("inf")

    @property
    def next(self) -> float:
        """When the first of them is due."""
        return min(self.look, self.orphans, self.sample, self.again)


_Chore = Retention | UniquePeriods | BatchSweep | Counts
"""What is to be done now and then, and says itself when."""


class Rescuer(SideLoop):
    """Judges the other workers until it is stopped.

    Args:
        runtime: Where to connect.
        statements: Those of the tables.
        settings: The worker's.
        heart: The worker's own, which says whether it is fit to judge.
        unknown: The worker's unknown claims, which the rescuer searches for too.
        queue_control: Compared with what each look at the workers shows of it.
        scheduler: Told when a schedule is due.
        events: Told of errors.
        on_health: Called with each sample of health that this worker takes.
        hands: Have what this worker has counted.
    """

    interrupted = "rescuer interrupted"

    def __init__(
        self,
        runtime: Runtime,
        statements: Statements,
        settings: WorkerSettings,
        heart: Heart,
        unknown: UnknownClaims,
        queue_control: QueueControl,
        scheduler: Scheduler,
        events: Events,
        *,
        on_health: Callable[[Health], None],
        hands: Hands,
    ) -> None:
        super().__init__(runtime.heart_engine, events)
        self._statements, self._settings = statements, settings
        self._heart, self._unknown, self._on_health = heart, unknown, on_health
        self._queue_control, self._scheduler = queue_control, scheduler
        self._hands = hands
        self._retention = Retention(statements, settings, self._fleet, events.report)
        self._periods = UniquePeriods(statements)
        self._batches = BatchSweep(statements, settings, events.report)
        self._chores: dict[str, _Chore] = {
            "retention": self._retention,
            "periods": self._periods,
            "batches": self._batches,
        }
        if hands.counts is not None:
            self._chores["counts"] = hands.counts
        self._sweeps: Mapping[str, Callable[[Connection], None]] = {
            "look": self._look_at_workers,
            "ended": self._rescue_ended,
            "silent": self._rescue_silent,
            "unchanged": self._rescue_unchanged,
            "rest": self._rescue_rest,
            "orphans": self._look_for_orphans,
            "unknown": self._ask_again,
            "health": self._sample_health,
            "retention": self._retention.turn,
            "periods": self._periods.turn,
            "batches": self._batches.turn,
            "counts": self._write_counts,
        }
        self._tells_backlog = events.wants("backlog_sampled")
        self._before: LookAtWorkers | None = None
        self._now: LookAtWorkers | None = None
        self._is_refused = False
        self._beats: dict[int, Beat] = {}
        self._doubtful = False

    def run(self) -> None:
        """Look until stopped, and connect again whenever the connection is lost."""
        self._turns = _Turns(self._settings)
        self._retention.begin()
        super().run()

    def _failed(self, error: Exception | SystemExit) -> None:
        self._turns = _Turns(self._settings)

    def _live(self, connection: Connection) -> None:
        """Look until stopped, or until a sweep has failed for what may be the session's fault."""
        connection = configure(connection)
        settings, turns = self._settings, self._turns
        # The beats are kept: their ages, by this process's clock, hold in any session.
        self._before = self._now = None
        self._unknown.suspected.clear()
        self._doubtful = False
        works_from = time.monotonic() + settings.rescue_interval  # each sweep has had its turn
        while not self._stopping.is_set():
            now = time.monotonic()
            if self._heart.worker_id is not None:
                # A judge that finds this worker lost ends this session too, and so frees the locks
                # of a rescue in which the worker may have been frozen.
                name_session(connection, self._heart.worker_id)
            if now >= turns.look:
                suspects = self._rescue(connection)
                pause = settings.rescue_interval * random.uniform(1.0, 1.2)
                turns.look = now + (min(pause, CONFIRMED_AFTER) if suspects else pause)
            if now >= turns.orphans:
                pause = self._read("orphans", connection, settings.orphan_interval)
                turns.orphans = now + pause * random.uniform(0.9, 1.1)
                if self._unknown.suspected:
                    turns.again = min(turns.again, time.monotonic() + SUSPECTED_AGAIN)
            if now >= turns.again:
                turns.again = float("inf")
                self._sweep("unknown", connection)
            if now >= turns.sample:
                self._sweep("health", connection)
                turns.sample = now + settings.health_interval
            for name, chore in self._chores.items():
                if now >= chore.due_at:
                    self._sweep(name, connection)
            if self._doubtful:
                return
            if now >= works_from:
                self._backoff.reset()
            next_turn = min(turns.next, *(chore.due_at for chore in self._chores.values()))
            self._stopping.wait(max(next_turn - time.monotonic(), 0.0))

    def _read(self, name: str, connection: Connection, interval: float) -> float:
        """Do a sweep that may read the table of jobs; returns the seconds from start to start."""
        begun = time.monotonic()
        self._sweep(name, connection)
        took = time.monotonic() - begun
        return max(interval, min(took * _READING_SHARE, _AT_LEAST_EVERY))

    def _sweep(self, name: str, connection: Connection) -> None:
        try:
            if SWEEPING.listeners:
                SWEEPING.reached(name)
            self._sweeps[name](connection)
        except Exception as error:
            if lost_connection(error):
                raise
            self._doubtful = self._doubtful or doubts_session(error)
            self._events.report(error)
            logger.warning("a sweep failed: %s", summary(error))

    def _rescue(self, connection: Connection) -> bool:
        """Look at all workers, and do what that shows a reason for.

        Returns whether a worker seems to have ended that must be looked at again.
        """
        self._sweep("look", connection)
        if (now := self._now) is None:
            self._sweep("silent", connection)
            return False
        if now.ended:
            self._sweep("ended", connection)
        if now.shows_silent:
            self._sweep("silent", connection)
        self._sweep("unchanged", connection)
        turns = self._turns
        if now.shows_lost and time.monotonic() >= turns.rest:
            # A row that can't be given back makes each of these read.
            pause = self._read("rest", connection, self._settings.rescue_interval)
            turns.rest = time.monotonic() + pause
        return bool(now.ended)

    def _fleet(self) -> int:
        """How many workers live, this one included, as the last look has shown it."""
        seen = () if self._now is None else self._now.workers
        return max(sum(not (worker.is_lost or worker.is_silent) for worker in seen), 1)

    def _look_at_workers(self, connection: Connection) -> None:
        self._before, self._now = self._now, None
        serves = self._scheduler.serves()
        self._now = rescue.look_at_workers(connection, self._statements, serves)
        leases = [worker.lease_timeout for worker in self._now.workers if not worker.is_lost]
        self._heart.shortest_lease = min([self._settings.lease_timeout, *leases])
        if (refusal := self._now.refusal) is not None:
            if not self._is_refused:
                logger.warning("schedules and queues can't be looked at: %s", summary(refusal))
            self._is_refused = True
            return
        self._is_refused = False
        if self._now.schedule_is_due:
            self._scheduler.look_soon()
        self._queue_control.compare(self._now.control)

    def _rescue_ended(self, connection: Connection) -> None:
        if self._before is not None and self._now is not None:
            two = self._before, self._now
            _report(
                rescue.rescue_ended(connection, self._statements, *two), "whose process has ended"
            )

    def _rescue_silent(self, connection: Connection) -> None:
        if (fit := self._fitness()) is not None:
            _report(rescue.rescue_silent(connection, self._statements, **fit), _SILENT)

    def _rescue_unchanged(self, connection: Connection) -> None:
        if self._now is not None and (fit := self._fitness()) is not None:
            seen = self._now, self._beats
            _report(rescue.rescue_unchanged(connection, self._statements, *seen, **fit), _SILENT)

    def _fitness(self) -> dict[str, Any] | None:
        """What makes this worker fit to judge silent ones; None if it has no id."""
        judge = self._heart.worker_id
        unbroken = self._heart.unbroken(time.monotonic())
        return None if judge is None else {"judge": judge, "connected": unbroken}

    def _rescue_rest(self, connection: Connection) -> None:
        rest = rescue.rescue_rest(connection, self._statements)
        _report([worker for worker in rest if worker.jobs], "that was lost")

    def _look_for_orphans(self, connection: Connection) -> None:
        found = rescue.rescue_orphans(connection, self._statements)
        if found:
            logger.warning("gave back %d jobs that no known worker held", found)
        if (worker_id := self._heart.worker_id) is not None:
            self._unknown.search(connection, worker_id)

    def _ask_again(self, connection: Connection) -> None:
        if (worker_id := self._heart.worker_id) is not None:
            self._unknown.ask_again(connection, worker_id)
        else:  # its leases are over, under whichever id it comes back
            self._unknown.suspected.clear()

    def _write_counts(self, connection: Connection) -> None:
        if (counts := self._hands.counts) is not None:
            counts.write(connection, self._heart.worker_id, self._hands.lock)

    def _sample_health(self, connection: Connection) -> None:
        worker_id = self._heart.worker_id
        if worker_id is None:
            return
        sample = workers.sample_health(connection, self._statements, worker_id=worker_id)
        if sample is not None:
            for problem in sample.health.problems:
                logger.warning("%s", problem)
            self._on_health(sample.health)
            if sample.has_periods:
                self._periods.begin()
            if sample.has_batches:
                self._batches.begin()
            if self._tells_backlog:
                self._events.emit("backlog_sampled", self._sample_backlog(connection))

    def _sample_backlog(self, connection: Connection) -> Backlog:
        interval = self._settings.health_interval
        return workers.sample_backlog(connection, self._statements, interval=interval)


def _report(rescued: list[Rescued], how: str) -> None:
    for worker in rescued:
        jobs = "1 job" if worker.jobs == 1 else f"{worker.jobs} jobs"
        logger.warning("took %s from worker %d, %s", jobs, worker.worker_id, how)
