"""Claims jobs into the hands of a worker, and decides which of them are run."""

import logging
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from sqlalchemy import Connection

from .._db.errors import lost_connection
from .._handlers.outcomes import HAND_BACK, Settlement, crashed_too_often, unknown_type
from .._handlers.registry import JobType, Registry
from .._lifecycle import claim as claims
from .._lifecycle import workers
from .._lifecycle.claim import ClaimedJob, Position
from .._lifecycle.settle import Pending
from .._points import CLAIM, CLAIMING
from .._sql import Statements
from ..settings import WorkerSettings
from ..telemetry import Events
from .control import ControlConnection
from .hands import Hands
from .heart import Heart
from .listener import Listener
from .plan.planner import PATIENCE
from .plan.steps import Announce, Claim
from .refusals import Refusals
from .unknown_claims import UnknownClaims

logger = logging.getLogger("sqlalchemy_bgjob")


class Claiming:
    """The claims of one worker.

    Args:
        registry: Finds the handler of a job.
        can_run: Whether this worker can run a handler.
        settings: The worker's.
        statements: Those of the tables.
        control: The connection.
        hands: Where claimed jobs go.
        heart, listener: Tell under which id the worker is registered, and whether it is notified.
        unknown: Returns jobs of a claim that got no answer.
        events: Told when a queue is empty.
    """

    def __init__(
        self,
        registry: Registry,
        can_run: Callable[[JobType[Any]], bool],
        settings: WorkerSettings,
        statements: Statements,
        *,
        control: ControlConnection,
        hands: Hands,
        heart: Heart,
        listener: Listener,
        unknown: UnknownClaims,
        events: Events,
    ) -> None:
        self._registry, self._can_run = registry, can_run
        self._settings, self._statements = settings, statements
        self._control, self._hands = control, hands
        self._heart, self._listener = heart, listener
        self._unknown, self._events = unknown, events
        self._refusals = Refusals(hands, control, statements, events)
        self._empty: set[str] = set()
        self._slowest: float | None = None  # a sample that is lost to a race does no harm

    def take_slowest(self) -> float | None:
        """Seconds of the slowest claim since the last call; None if there was none."""
        slowest, self._slowest = self._slowest, None
        return slowest

    def announce(self, step: Announce, worker_id: int) -> None:
        """Tell producers in which queues this worker waits."""
        with self._hands.lock:
            self._hands.planner.announced(None)
        workers.set_waits_for(
            self._control.get(), self._statements, worker_id=worker_id, queues=step.queues
        )
        with self._hands.lock:
            self._hands.planner.announced(step.queues)

    def claim(self, step: Claim, worker_id: int) -> None:
        """Claim jobs and take them into hands. Commits.

        Raises:
            DBAPIError: The connection was lost; jobs that this claim took will be returned.
        """
        # Polls renew the plans a little early, so jobs that wake the worker do not pay for it.
        patience = PATIENCE if step.woken else -PATIENCE
        connection = self._control.as_it_is(patience=patience)
        skip = self._refusals.rows_of(step.queue)
        last: Position | None = None
        due_in: float | None = None
        try:
            try:
                if CLAIMING.listeners:
                    CLAIMING.reached(step.queue)
                begun = time.monotonic()
                jobs, due_in = self._claim_together(connection, step, worker_id, skip)
                self._slowest = max(self._slowest or 0.0, time.monotonic() - begun)
                if jobs and not skip:
                    last = Position(jobs[-1].priority, jobs[-1].next_run_at, jobs[-1].id)
            except Exception as error:
                if lost_connection(error):
                    raise
                if self._control.rests:  # it may be committed, with a row the driver can't read
                    connection = self._control.get()
                    self._unknown.return_now(connection, worker_id)
                one_by_one = self._refusals.claim_one_by_one(connection, step, worker_id, error)
                if one_by_one is None:
                    return
                jobs = one_by_one
            self._refusals.over(step.queue)
            if jobs and CLAIM.listeners:
                CLAIM.reached(jobs)
            self._take(step, worker_id, jobs, due_in, last)
        except BaseException:
            self._unknown.expect(worker_id)
            with self._hands.lock:  # the jobs that it looked for are still to be found
                self._hands.planner.wake(step.queue, time.monotonic())
            raise

    def _claim_together(
        self, connection: Connection, step: Claim, worker_id: int, skip: list[str]
    ) -> tuple[list[ClaimedJob], float | None]:
        """The jobs; or, if there are none, the seconds until the next one is due."""
        claim = partial(
            claims.claim,
            connection,
            self._statements,
            queue=step.queue,
            limit=step.limit,
            worker_id=worker_id,
            onward=step.onward,
            skip=skip,
        )
        direct = self._control.direct if step.onward is not None and not skip else None
        jobs = claim(direct=direct) if direct is not None else []
        if jobs:
            return jobs, None
        with connection.begin():
            if direct is None:
                jobs = claim()
            if step.onward is None:
                # Timed without the claim, this shows how long the way to the heads is.
                begun = time.monotonic()
                priorities = claims.lanes(connection, self._statements, queue=step.queue)
                now = time.monotonic()
                with self._hands.lock:
                    self._hands.planner.head_scanned(step.queue, priorities, now - begun, now)
            else:
                priorities = [position.priority for position in step.onward]
            if jobs:
                return jobs, None
            return [], claims.next_due(
                connection, self._statements, queue=step.queue, priorities=priorities
            )

    def _take(
        self,
        step: Claim,
        worker_id: int,
        jobs: list[ClaimedJob],
        due_in: float | None,
        last: Position | None,
    ) -> None:
        self._tell_if_empty(step.queue, bool(jobs))
        now = time.monotonic()
        is_lost = worker_id != self._heart.worker_id  # jobs claimed under an old id go back
        found = {type: self._find(type, step.queue) for type in {job.type for job in jobs}}
        with self._hands.lock:
            planner = self._hands.planner
            runnable: list[ClaimedJob] = []
            for job in jobs:
                refusal = self._admit(job, found[job.type])
                if refusal is not None:
                    planner.settle(Pending(job, refusal), 0.0)
                elif is_lost:
                    planner.settle(Pending(job, HAND_BACK), now)
                else:
                    runnable.append(job)
            planner.claimed(step.queue, runnable, now)
            planner.polled(
                step.queue,
                step.limit,
                len(jobs),
                due_in,
                now,
                listening=self._listener.listening,
                last=last,
            )
        # Outside the lock: a log that blocks must not keep a signal from ending the worker.
        new = {job.type for job in jobs if job.unknown_for is None}
        for type in sorted(type for type in new if found[type] is None):
            logger.warning("no handler for job type %r in queue %r", type, step.queue)

    def _admit(self, job: ClaimedJob, handler: JobType[Any] | None) -> Settlement | None:
        """Give a claimed job its handler; returns a settlement if the job must not run."""
        if handler is None:
            grace = self._settings.unknown_type_grace
            return unknown_type(job.type, job.unknown_for or 0.0, grace)
        limit = handler.options.max_attempts
        dead = crashed_too_often(job.attempt, limit, job.crashes, job.last_error)
        if dead is not None:
            return dead
        job.suspect = job.crashes > 0 or (limit is not None and job.attempt >= limit)
        job.handler = handler
        return None

    def _find(self, type: str, queue: str) -> JobType[Any] | None:
        handler = self._registry.find(type, queue)
        return handler if handler is not None and self._can_run(handler) else None

    def _tell_if_empty(self, queue: str, found: bool) -> None:
        if found:
            self._empty.discard(queue)
        elif queue not in self._empty:
            self._empty.add(queue)
            self._events.emit("queue_is_empty", queue)
