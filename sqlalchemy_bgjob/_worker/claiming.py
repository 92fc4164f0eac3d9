"""Claims jobs into the hands of a worker, and decides which of them are run."""

import logging
import time
from collections.abc import Callable
from functools import partial
from math import inf
from typing import Any

from sqlalchemy import Connection

from .._db.errors import lost_connection, sqlstate, summary
from .._handlers.outcomes import (
    HAND_BACK,
    Settlement,
    crashed_too_often,
    ends_unstarted,
    unknown_type,
)
from .._handlers.registry import JobType, Registry
from .._lifecycle import claim as claims
from .._lifecycle import workers
from .._lifecycle.claim import ClaimedJob, Found, Look, Position
from .._lifecycle.settle import Pending
from .._points import CLAIM, CLAIMING
from .._sql import Statements
from ..settings import WorkerSettings
from ..telemetry import Events
from .control import ControlConnection
from .hands import Hands
from .heart import Heart
from .listener import Listener
from .plan.steps import Announce, Claim, PassOn
from .refusals import Refusals
from .run import job_info
from .unknown_claims import UnknownClaims

logger = logging.getLogger("sqlalchemy_bgjob")


def _by_order(looks: tuple[Look, ...]) -> list[tuple[Look, ...]]:
    """Looks in each of the two orders: one statement reads in one order."""
    each = (tuple(look for look in looks if look.by_time is by_time) for by_time in (False, True))
    return [some for some in each if some]


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

    Attributes:
        has_claimed: Whether the database has ever answered a claim.
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
        self._tells_claims = events.wants("job_claimed")
        self._empty: set[str] = set()
        self._found = 0  # by the claim that goes on
        self.has_claimed = False
        self._slowest: float | None = None  # a sample that is lost to a race does no harm

    def take_slowest(self) -> float | None:
        """Seconds of the slowest claim since the last call; None if there was none."""
        slowest, self._slowest = self._slowest, None
        return slowest

    def announce(self, step: Announce, worker_id: int) -> None:
        """Tell producers in which queues this worker waits."""
        try:
            workers.set_waits_for(
                self._control.get(), self._statements, worker_id=worker_id, queues=step.queues
            )
        except BaseException:  # it is unknown what producers see
            with self._hands.lock:
                self._hands.planner.announced(None)
            raise
        with self._hands.lock:
            self._hands.planner.announced(step.queues)

    def pass_on(self, step: PassOn, worker_id: int) -> None:
        """Wake other workers in this one's place; without a connection, that is tried again.

        A notification is a hint: one that the server refuses is logged, and polling finds the job.
        """
        connection: Connection | None = None
        try:
            connection = self._control.get()
            workers.pass_on(connection, self._statements, worker_id=worker_id, queues=step.queues)
        except Exception as error:
            if connection is not None and not lost_connection(error):
                logger.warning("no other worker was woken: %s", summary(error))
                return
            now = time.monotonic()
            with self._hands.lock:
                for queue in step.queues:
                    self._hands.planner.wake(queue, now, new=True, others=1)
            raise

    def claim(self, step: Claim, worker_id: int) -> None:
        """Claim jobs and take them into hands. Commits.

        Raises:
            DBAPIError: There is no connection; jobs that this claim took will be returned.
        """
        try:
            self._control.for_claim()
        except BaseException:
            self._look_again(step)
            raise
        begun, self._found = time.monotonic(), 0
        try:
            for looks in _by_order(step.looks):
                for look in self._claim_together(self._control.for_claim(), looks, worker_id):
                    self._claim_alone(look, worker_id)
        except BaseException:
            self._unknown.expect(worker_id)
            self._look_again(step)
            raise
        self.has_claimed = True
        took = time.monotonic() - begun
        self._slowest = max(self._slowest or 0.0, took)
        self._control.took(took, self._found + len(step.looks))

    def _look_again(self, step: Claim) -> None:
        """Keep in mind that there may be jobs which this claim, that failed, was to find."""
        now = time.monotonic()
        with self._hands.lock:
            for look in step.looks:
                self._hands.planner.wake(look.queue, now)

    def _claim_together(
        self, connection: Connection, looks: tuple[Look, ...], worker_id: int
    ) -> list[Look]:
        """Claim from several queues by one statement; returns those to be claimed from alone.

        A queue is claimed from alone if rows of it are skipped, or if it is the only one, read on
        and not asked for due times: for that there is a quicker statement. If the claim of several
        is refused, each of them is claimed from alone, in a step of its own: settlements must not
        wait for all of them.
        """
        if len(looks) == 1 and looks[0].onward is not None and not looks[0].asks_due:
            return [*looks]
        alone = [look for look in looks if self._refusals.rows_of(look.queue)]
        together = [look for look in looks if look not in alone] if alone else [*looks]
        if not together:
            return alone
        try:
            found = self._look_together(connection, together, worker_id)
        except Exception as error:
            if lost_connection(error):
                raise
            self._return_what_was_claimed(worker_id, error)
            if len(together) == 1:
                return [*looks]
            logger.info("a claim of %d queues was refused: %s", len(together), summary(error))
            now = time.monotonic()
            with self._hands.lock:
                for look in together:
                    self._hands.planner.claim_alone(look.queue, now)
            return alone
        for look, result in zip(together, found, strict=True):
            self._refusals.over(look.queue)
            self._take(look, worker_id, result)
        return alone

    def _look_together(
        self, connection: Connection, looks: list[Look], worker_id: int
    ) -> list[Found]:
        for look in looks:
            self._reached(look.queue)
        claim = partial(
            claims.claim_from_queues,
            connection,
            self._statements,
            looks=looks,
            worker_id=worker_id,
        )
        of_queues = self._statements.claims(by_time=looks[0].by_time).of_queues
        if (direct := self._control.direct(of_queues)) is not None:
            return claim(direct=direct)
        with connection.begin():
            return claim()

    def _claim_alone(self, look: Look, worker_id: int) -> None:
        connection = self._control.for_claim()  # the queue before may have dropped the last one
        skip = self._refusals.rows_of(look.queue)
        self._reached(look.queue)
        try:
            found = self._look_alone(connection, look, worker_id, skip)
        except Exception as error:
            if lost_connection(error):
                raise
            self._return_what_was_claimed(worker_id, error)
            connection = self._control.get()
            one_by_one = self._refusals.claim_one_by_one(connection, look, worker_id, error)
            if one_by_one is None:
                return
            found, skip = Found(one_by_one), ["some"]
        self._refusals.over(look.queue)
        self._take(look, worker_id, found, in_order=not skip)

    def _return_what_was_claimed(self, worker_id: int, error: Exception) -> None:
        """Return the jobs of a claim that is committed, with a row that the driver can't read.

        Of one that the server has refused, nothing is committed: the whole table is not read.
        """
        if self._control.rests and sqlstate(error) is None:
            self._unknown.return_now(self._control.get(), worker_id)

    def _reached(self, queue: str) -> None:
        if CLAIMING.listeners:
            CLAIMING.reached(queue)

    def _look_alone(
        self, connection: Connection, look: Look, worker_id: int, skip: list[str]
    ) -> Found:
        direct = None
        if look.onward is not None and not skip:
            onward = self._statements.claims(by_time=look.by_time).onward
            direct = self._control.direct(onward)
        if direct is None:
            connection = self._control.get()  # for several statements in one transaction
        claim = partial(
            claims.claim,
            connection,
            self._statements,
            queue=look.queue,
            limit=look.limit,
            worker_id=worker_id,
            onward=look.onward,
            skip=skip,
            by_time=look.by_time,
        )
        jobs = claim(direct=direct) if direct is not None else []
        if jobs or (direct is not None and self._is_scanned_next(look.queue)):
            return Found(jobs)
        with connection.begin():
            if direct is None:
                jobs = claim()
            priorities: list[int] | None = None
            seconds = 0.0
            if look.onward is None:
                # Timed without the claim, this shows how long the way to the heads is.
                begun = time.monotonic()
                priorities = claims.lanes(connection, self._statements, queue=look.queue)
                seconds = time.monotonic() - begun
            if jobs:
                return Found(jobs, None, priorities, seconds)
            lanes = priorities or [position.priority for position in look.onward or ()]
            due_in = claims.next_due(
                connection, self._statements, queue=look.queue, priorities=lanes
            )
            return Found(jobs, inf if due_in is None else due_in, priorities, seconds)

    def _is_scanned_next(self, queue: str) -> bool:
        """Whether a look at the head follows, which tells when the next job is due."""
        with self._hands.lock:
            return self._hands.planner.is_scanned_next(queue, time.monotonic())

    def _take(self, look: Look, worker_id: int, found: Found, *, in_order: bool = True) -> None:
        jobs, queue = found.jobs, look.queue
        self._found += len(jobs)
        if jobs and CLAIM.listeners:
            CLAIM.reached(jobs)
        if self._tells_claims:  # before any of them may start
            for job in jobs:
                self._events.emit("job_claimed", job_info(job))
        self._tell_if_empty(queue, bool(jobs))
        last: Position | None = None
        if jobs and in_order:
            last = Position(jobs[-1].priority, jobs[-1].next_run_at, jobs[-1].id)
        now = time.monotonic()
        handlers = {type: self._find(type, queue) for type in {job.type for job in jobs}}
        with self._hands.lock:
            is_lost = worker_id != self._heart.worker_id  # jobs claimed under an old id go back
            planner = self._hands.planner
            runnable: list[ClaimedJob] = []
            for job in jobs:
                refusal = self._admit(job, handlers[job.type])
                if refusal is not None:
                    planner.settle(Pending(job, refusal), 0.0)
                elif is_lost:
                    planner.settle(Pending(job, HAND_BACK), now)
                else:
                    runnable.append(job)
            if runnable:
                planner.claimed(queue, runnable, now)
            if found.priorities is not None:
                planner.head_scanned(queue, found.priorities, found.seconds, now)
            planner.polled(
                queue,
                look.limit,
                len(jobs),
                found.due_in,
                now,
                listening=self._listener.listening,
                last=last,
            )
        # Outside the lock: a log that blocks must not keep a signal from ending the worker.
        new = {job.type for job in jobs if job.unknown_for is None}
        for type in sorted(type for type in new if handlers[type] is None):
            logger.warning("no handler for job type %r in queue %r", type, queue)

    def _admit(self, job: ClaimedJob, handler: JobType[Any] | None) -> Settlement | None:
        """Give a claimed job its handler; returns a settlement if the job must not run."""
        job.served_by(handler, self._statements.tables.recording)
        if job.extras is not None:
            on_expiry = None if handler is None else handler.options.on_expiry
            end = ends_unstarted(cancelled=job.cancelled, expired=job.expired, on_expiry=on_expiry)
            if end is not None:
                return end
        if handler is None:
            grace = self._settings.unknown_type_grace
            return unknown_type(job.type, job.unknown_for or 0.0, grace)
        limit = handler.options.max_attempts
        if job.crashes:
            dead = crashed_too_often(job.attempt, limit, job.crashes, job.last_error)
            if dead is not None:
                return dead
        job.suspect = job.crashes > 0 or (limit is not None and job.attempt >= limit)
        if handler.options.chunk is not None:
            job.shares = job.attempt == 1 and not job.suspect
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
