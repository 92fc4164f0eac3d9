"""The slots in which handlers run, from the start of a job to the next job there."""

import logging
import random
import time
from collections.abc import Callable
from contextvars import copy_context
from dataclasses import replace
from typing import Any

from .._db.connections import Backoff
from .._db.errors import summary
from .._db.printable import printable
from .._handlers.outcomes import CANCELLED, HAND_BACK
from .._handlers.registry import JobType
from .._lifecycle.settle import Fate, Pending
from ..telemetry import Events
from .attempt import Attempt, Environment
from .call import conclude
from .hands import Hands
from .heart import Heart
from .plan.pauses import SPREAD, Pauses
from .run import Run
from .runtime import Runtime

logger = logging.getLogger("sqlalchemy_bgjob")


class Slots:
    """Starts runs, and takes their settlements; called back by threads and tasks.

    Attributes:
        closed_until: The monotonic time until which no run is started: there was no thread for it.
        context: The context variables of whoever started the worker, which functions see.
    """

    def __init__(
        self,
        hands: Hands,
        runtime: Runtime,
        heart: Heart,
        events: Events,
        environment: Callable[[JobType[Any]], Environment],
    ) -> None:
        self._hands, self._runtime, self._heart = hands, runtime, heart
        self.holds = hands.holds
        self._events, self._environment = events, environment
        self._pauses = Pauses()
        self._backoff = Backoff()
        self.closed_until = 0.0
        self.context = copy_context()

    def start(self, run: Run) -> None:
        """Start a run in its slot; if no thread can be made, hand its job back and pause."""
        try:
            self._runtime.start(run, self)
        except Exception as error:  # no thread can be made
            self._events.report(error, run.info)
            logger.warning("job %s can't be started: %s", printable(run.job.id), summary(error))
            now = time.monotonic()
            with self._hands.lock:
                self.closed_until = now + self._backoff.pause()
                if self._hands.let_go(run):
                    self._hands.planner.not_started(run.job)
                    for job in run.jobs:
                        self._hands.planner.settle(Pending(job, HAND_BACK), now)
            self._runtime.wake()
        else:
            self._backoff.reset()

    def attempt(self, run: Run) -> Attempt:
        """The call of its handler."""
        return Attempt(self._environment(run.handler), run)

    def work(self, run: Run) -> None:
        """Run a function's job, and then the next one for as long as there is one."""
        following: Run | None = run
        while following is not None:
            run = following
            if run.handler.is_coroutine:
                self.start(run)
                return
            if not self.holds(run):
                return
            # A copy each: no handler finds what an earlier one has left in its thread.
            following = self.ended(run, self.context.copy().run(self.attempt(run).execute))

    def ended(self, run: Run, items: list[Pending]) -> Run | None:
        """A run has ended: returns the next one for its slot, if there is one."""
        now = time.monotonic()
        seconds, queue = now - run.started_at, run.job.queue
        following: Run | None = None
        hands = self._hands
        with hands.lock:
            planner = hands.planner
            if hands.counts is not None or run.job.extras or run.job.mates:
                hands.note([item for item in items if item.fate is Fate.SETTLED])
            if run.stuck:
                hands.end_stuck(run)
                self._runtime.wake()
            if not hands.let_go(run):  # released at shutdown, or given up
                for item in items:
                    if item.fate is Fate.SETTLED:  # but its own commit came first
                        planner.settled(item.job)
                        hands.tell(item, item.fate, run)
                return None
            if run.connected is False:
                self._put_off(run, items, now)
            else:
                planner.finished(run.job, seconds)
                if run.connected and self._pauses and self._pauses.end(queue):
                    planner.go_on(queue, now)
            for item in items:
                if item.fate is None:
                    item.seconds, item.progress = seconds, run.progress
                    planner.settle(item, now)
                else:
                    hands.tell(item, item.fate, run)
            if self._heart.fresh(now):
                job = planner.next_start(queue, now)
                following = hands.take_up(job) if job is not None else None
            if following is not None and not planner.needs_attention(queue, now):
                return following
        self._runtime.wake()
        return following

    def _put_off(self, run: Run, items: list[Pending], now: float) -> None:
        """A run found no connection, or no context: pause its queue's claims, and delay its jobs.

        Ready jobs that may use a session are handed back; the others still run.
        """
        queue, error = run.job.queue, items[0].error
        if error is not None and self._pauses.begins(queue, now):
            self._events.report(error, run.info)
        until = self._pauses.until(queue, now)
        delay = until - now + random.uniform(0.0, SPREAD)
        for item in items:
            item.settlement = replace(item.settlement, delay=delay)
        planner = self._hands.planner
        for job in planner.put_off(run.job, until, now):
            planner.settle(Pending(job, HAND_BACK), now)

    def look_at_overdue(self, now: float) -> None:
        """Log the runs that go on beyond their timeout, and give up those that are stuck."""
        hands = self._hands
        if now < hands.overdue.look_at:
            return
        with hands.lock:
            found = hands.overdue.look(hands.runs(), now)
        for run in found.stuck:
            self._give_up(run)
        for run in found.overdue:
            logger.warning(
                "%s of type %r goes on beyond its timeout of %g s, and keeps its slot until it "
                "returns; let its handler look at ctx.cancelled",
                run,
                run.job.type,
                run.handler.options.timeout,
            )

    def _give_up(self, run: Run) -> None:
        """Count a stuck run; if its handler has a ``grace``, settle its job and lose its slot."""
        hands, grace = self._hands, run.handler.options.grace
        items: list[Pending] = []
        if grace is not None and not run.lease_lost:
            words = f"the handler went on for {grace:g} s after it was told to end"
            # Outside the lock: the retry policy is the application's.
            items = [
                Pending(end.job, CANCELLED if run.is_asked(end.job) else end.settlement)
                for end in conclude(run, None, TimeoutError(words))
            ]
        with hands.lock:
            if not hands.holds(run):
                return  # it has ended meanwhile
            if items and not hands.give_up_run(run, items):
                return
            run.stuck = True
            hands.stuck.setdefault(run, False)
        logger.warning(
            "%s of type %r does not end although it was told to: %s; a function must look at "
            "ctx.cancelled, and a coroutine must not swallow CancelledError",
            run,
            run.job.type,
            "its job is given up" if items else "its slot is taken until it returns",
        )
