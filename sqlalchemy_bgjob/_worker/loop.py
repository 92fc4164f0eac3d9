"""The worker's one loop, for threads and for asyncio alike.

It asks :mod:`.plan.planner` what to do next and does it: claims, starts, settles, hands back,
waits. It is plain synchronous code; ``AsyncWorker`` runs it in a greenlet, where a wait or a
statement lets the event loop go on. A :class:`~.runtime.Runtime` has what differs between the two.

No error ends the loop: the error is reported, and the step tried again with backoff. Only a stop
ends it, or a refusal at the start.
"""

import logging
import os
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextvars import copy_context
from dataclasses import replace
from functools import partial
from typing import Any, Final

from .._db.connections import RECONNECT, Backoff
from .._db.errors import note_advice, passes_by_itself, summary
from .._db.forks import leave_if_forked
from .._handlers.outcomes import HAND_BACK
from .._handlers.registry import JobType, Registry
from .._inspect.health import Health
from .._lifecycle import workers
from .._lifecycle.settle import Pending
from .._sql import Statements
from ..models import Models
from ..settings import WorkerSettings
from ..telemetry import Events, Observer
from ..telemetry._job_log import log_observer
from .asking import Asking
from .attempt import Environment
from .claiming import Claiming
from .control import ControlConnection
from .counts import Counts
from .drain import Drain
from .ended_batches import EndedBatches
from .hands import Hands
from .heart import Heart
from .listener import Listener
from .own_end import OwnEnd
from .plan.steps import Announce, Claim, Finished, HandBack, PassOn, Settle, Start, Step, Wait
from .preflight import cant_register, check_database
from .progress import ProgressWriter
from .queue_control import QueueControl
from .rescuer import Rescuer
from .runtime import Attendant, Runtime
from .scheduler import Scheduler
from .settling import Settling
from .slots import Slots
from .unknown_claims import UnknownClaims

logger = logging.getLogger("sqlalchemy_bgjob")

VISIBLE_WITHIN: Final = 1.0
"""Seconds that the first claim waits for the listener, whose session shows other workers when this
process ends. Behind a pooler the listener never works."""


class WorkerLoop:
    """One worker's loop.

    Args:
        models: The tables.
        registry: The handlers.
        runtime: Threads or asyncio.
        statements: The tables' statements.
        environment: Where the runs of a handler take place.
        queues: The slots of each queue.
        by_time: Those whose jobs are taken by time before priority.
        settings: The worker's settings.
        observers: Told of events, in addition to the log.
        can_run: Whether this worker can run a handler.
    """

    def __init__(
        self,
        models: Models,
        registry: Registry,
        runtime: Runtime,
        statements: Statements,
        environment: Callable[[JobType[Any]], Environment],
        *,
        queues: Mapping[str, int],
        by_time: Collection[str],
        settings: WorkerSettings,
        observers: Iterable[Observer],
        can_run: Callable[[JobType[Any]], bool],
    ) -> None:
        self._models, self._runtime, self._settings = models, runtime, settings
        self._statements = statements
        self._events = events = Events((log_observer(registry), *observers))
        self._counts = None if statements.records is None else Counts(statements)
        self._hands = hands = Hands(runtime, events, queues, settings, by_time, self._counts)
        self._drain = Drain(hands)
        self._unknown = unknown = UnknownClaims(hands, runtime, statements)
        self._heart = heart = Heart(
            runtime, statements, settings, queues, hands=hands, unknown=unknown, events=events
        )
        self._scheduler = scheduler = Scheduler(registry, queues, runtime, statements, events)
        self._queue_control = queue_control = QueueControl(
            hands, runtime, statements, queues, events
        )
        self._listener = Listener(
            runtime, statements, hands, heart, queue_control, scheduler, events
        )
        self._rescuer = Rescuer(
            runtime,
            statements,
            settings,
            heart,
            unknown,
            queue_control,
            scheduler,
            events,
            on_health=self._tell_health,
            hands=hands,
        )
        self._control = control = ControlConnection(
            runtime, statements, heart, by_time=bool(by_time)
        )
        self._claiming = Claiming(
            registry,
            can_run,
            settings,
            statements,
            control=control,
            hands=hands,
            heart=heart,
            listener=self._listener,
            unknown=unknown,
            events=events,
        )
        self._settling = Settling(hands, control, statements, events)
        self._slots = Slots(hands, runtime, heart, events, environment)
        self._asking = Asking(hands, control, statements, settings)
        self._progress = ProgressWriter(hands, control, statements)
        self._ended_batches = EndedBatches(hands, control, statements)
        self._own_end = OwnEnd(
            settings,
            statements,
            hands=hands,
            drain=self._drain,
            control=control,
            queue_control=queue_control,
            scheduler=scheduler,
            unknown=unknown,
            events=events,
            slots=sum(queues.values()),
        )
        self._announced_by: int | None = None
        self._backoff = Backoff(RECONNECT)
        self._retry_at = 0.0
        self._of_reconnect = 0
        self._visible_by = 0.0

    def stop(self, timeout: float) -> None:
        """Claim no more, hand back ready jobs, and finish running ones. From any thread.

        After *timeout* seconds jobs that still run are released, attempt refunded. May be called
        again with a shorter timeout.
        """
        self._drain.begin(timeout)
        self._runtime.wake()

    @property
    def ready(self) -> bool:
        """Whether it has claimed, or every queue is paused; it still beats, and does not drain."""
        looks = self._claiming.has_claimed or self._queue_control.all_are_paused
        drains = self._hands.planner.draining
        return looks and not drains and self._heart.fresh(time.monotonic())

    @property
    def limit_reached(self) -> str | None:
        """The setting at whose limit it drains by itself."""
        return self._own_end.limit_reached

    @property
    def alive(self) -> bool:
        """Whether this loop has turned within the time after which the heart would stop."""
        return self._heart.has_turned(time.monotonic())

    def run(self, ready: Callable[[], None]) -> None:
        """Work until stopped and drained. *ready* is called once the worker is registered.

        Raises:
            SchemaOutOfDate, WorkerRefused: This database can't be worked on as it is.
            OperationalError: The password, role or database is wrong.
            WorkerStuck: Too many handlers do not end; all else is drained.
        """
        self._slots.context = copy_context()
        self._events.start()
        beside: list[Attendant] = []
        try:
            if not self._begin():
                return
            self._heart.turned(time.monotonic())
            self._own_end.begin(time.monotonic())
            beside.append(self._runtime.spawn("bgjob-heart", self._heart.run))
            beside.append(self._runtime.spawn("bgjob-rescuer", self._rescuer.run))
            if self._settings.listen:
                self._visible_by = time.monotonic() + VISIBLE_WITHIN
                beside.append(self._runtime.attend("bgjob-listener", self._listener.run))
            begun, process = False, os.getpid()
            while not self._drain.is_over():
                # A child process that a coroutine forked gets here when it awaits.
                leave_if_forked(process, None)
                begun = begun or self._has_begun(ready)
                now = time.monotonic()
                self._step(now)
                self._slots.look_at_overdue(now)
                self._own_end.look(now)
                if begun and self._settings.until_idle:
                    self._guarded(partial(self._own_end.stop_if_idle, now), (), mended=False)
        finally:
            self._end(beside)
        if self._own_end.stuck is not None:
            raise self._own_end.stuck

    # ---- the start --------------------------------------------------------------------------

    def _begin(self) -> bool:
        """Wait for the database and check it; False if the worker was stopped meanwhile."""
        while self._drain.deadline is None:
            try:
                connection = self._control.get()
                check_database(connection, self._models)
                return True
            except Exception as error:  # asyncpg's errors of connecting come unwrapped
                if not passes_by_itself(error):
                    note_advice(error)
                    raise
                self._lost_control(error)
                self._heart.turned(time.monotonic())
                self._runtime.wait(max(self._retry_at - time.monotonic(), 0.0))
        return False

    def _has_begun(self, ready: Callable[[], None]) -> bool:
        """Whether the worker is registered, as it must be to claim; if so, call *ready*."""
        if self._heart.worker_id is not None:
            ready()
            return True
        if self._heart.refusal is not None:
            raise cant_register(self._heart.refusal) from self._heart.refusal
        return False

    # ---- one step ---------------------------------------------------------------------------

    def _step(self, now: float) -> None:
        self._heart.turned(now)
        worker_id = self._heart.worker_id
        if self._heart.reconnects != self._of_reconnect:  # the database is back
            self._of_reconnect = self._heart.reconnects
            self._retry_at = min(self._retry_at, now)
        may_claim = worker_id is not None and now >= self._retry_at and self._is_visible(now)
        may_start = self._heart.fresh(now)
        if worker_id is not None and not may_start:
            self._heart.beat_soon()
        may_start = may_start and now >= self._slots.closed_until
        if worker_id != self._announced_by:  # a new row, which announces no queue yet
            self._announced_by = worker_id
            with self._hands.lock:
                self._hands.planner.announced(())
                self._hands.planner.wake(None, now)  # no producer has notified it meanwhile
        if may_claim and self._unknown.due_at <= now:
            # Success here does not mean that the claim that failed before would succeed now.
            self._guarded(lambda: self._unknown.return_due(self._control.get()), (), mended=False)
            return
        if may_claim and self._look_at_queues_at <= now:
            self._guarded(lambda: self._queue_control.look(self._control.get()), (), mended=False)
            return
        if worker_id is not None and now >= self._retry_at and self._attend_to_runs(worker_id, now):
            return
        if may_claim and self._scheduler.due_at <= now and self._drain.deadline is None:
            self._guarded(lambda: self._scheduler.fire_due(self._control.get()), (), mended=False)
            return
        with self._hands.lock:
            planner = self._hands.planner
            planner.listening = self._listener.listening
            step = planner.next_step(now, may_start=may_start, may_claim=may_claim)
            if isinstance(step, Claim):
                for look in step.looks:
                    planner.claim_sent(look.queue, now, from_head=look.onward is None)
            elif isinstance(step, PassOn):
                planner.passed_on(step.queues)
            run = self._hands.take_up(step.job) if isinstance(step, Start) else None
        if run is not None:
            self._slots.start(run)
            self._runtime.yield_to_tasks()
        else:
            self._do(step, now, worker_id)

    def _attend_to_runs(self, worker_id: int, now: float) -> bool:
        """Ask runs to end, write their progress, or finish batches; False if nothing is due."""
        if self._asking.due_at <= now:
            self._guarded(lambda: self._asking.look(worker_id), (), mended=False)
        elif self._hands.progress_at <= now:
            self._guarded(lambda: self._progress.write(worker_id), (), mended=False)
        elif self._ended_batches.due_at <= now:
            self._guarded(self._ended_batches.finish, (), mended=False)
        else:
            return False
        return True

    def _do(self, step: Step, now: float, worker_id: int | None) -> None:
        match step:
            case Wait():
                self._wait(step.seconds, now)
            case Claim():
                assert worker_id is not None
                self._guarded(lambda: self._claiming.claim(step, worker_id), ())
            case Announce():
                assert worker_id is not None
                self._guarded(lambda: self._claiming.announce(step, worker_id), ())
            case PassOn():
                assert worker_id is not None
                self._guarded(lambda: self._claiming.pass_on(step, worker_id), ())
            case Settle():
                self._guarded(lambda: self._settling.settle(step.items), step.items)
            case HandBack():
                items = tuple(Pending(job, HAND_BACK) for job in step.jobs)
                self._guarded(lambda: self._settling.settle(items), items)
            case Start() | Finished():
                pass  # a start is done already, and the drain is over

    @property
    def _look_at_queues_at(self) -> float:
        return self._queue_control.due_at(listening=self._listener.listening)

    def _is_visible(self, now: float) -> bool:
        """Whether others would see this process end, or the wait for that is over.

        Otherwise a job that kills its process at once would delay all jobs claimed with it by a
        whole ``lease_timeout``, at each of its attempts.
        """
        if now < self._visible_by and not self._heart.visible:
            return False
        self._visible_by = 0.0
        return True

    def _wait(self, seconds: float, now: float) -> None:
        self._guarded(self._control.rest, (), mended=False)
        times = [now + seconds, self._hands.overdue.look_at]
        if self._drain.deadline is not None:
            times.append(self._drain.deadline)
        # An entry that is due already waits for another one: the connection, or visibility.
        others = (
            self._retry_at,
            self._visible_by,
            self._unknown.due_at,
            self._own_end.look_at,
            self._look_at_queues_at,
            self._asking.due_at,
            self._hands.progress_at,
            self._ended_batches.due_at,
            self._scheduler.due_at,
        )
        times += [at for at in others if now < at]
        self._runtime.wait(max(min(times) - now, 0.0))

    def _guarded(
        self, action: Callable[[], None], items: Iterable[Pending], *, mended: bool = True
    ) -> None:
        """Do an action that needs the database; on an error, report it and keep its items.

        With *mended*, success resets the backoff of the connection.
        """
        try:
            action()
            if mended:
                self._backoff.reset()
        except Exception as error:
            with self._hands.lock:
                for item in items:
                    self._hands.planner.settle(item, 0.0)
            self._lost_control(error)

    def _lost_control(self, error: BaseException) -> None:
        now = time.monotonic()
        if self._backoff.is_news(now):
            self._events.report(error)
        self._backoff.log("worker interrupted", error)
        self._control.drop()
        self._heart.doubt(now)
        self._retry_at = now + self._backoff.pause()

    def _tell_health(self, health: Health) -> None:
        slowest = self._claiming.take_slowest()
        self._events.emit("health_sampled", replace(health, slowest_claim=slowest))

    # ---- the end ----------------------------------------------------------------------------

    def _end(self, beside: Iterable[Attendant]) -> None:
        with self._hands.lock:
            self._hands.planner.draining = True
        self._listener.stop()
        self._heart.stop()
        self._rescuer.stop()
        for attendant in beside:
            self._runtime.join(attendant, 5.0)
        worker_id = self._heart.worker_id
        counts, refused = self._counts, self._settling.refused
        try:
            if counts is not None:
                self._finally(
                    "a minute of counts was not written",
                    lambda: counts.write(self._control.get(), worker_id, self._hands.lock),
                )
            if self._hands.ended_batches:
                self._finally("batches were not finished", self._ended_batches.finish)
            if worker_id is not None:  # if it fails, others will find it silent, and clean up
                self._finally(
                    "worker not unregistered",
                    lambda: workers.unregister(
                        self._control.get(), self._statements, worker_id=worker_id, refused=refused
                    ),
                )
        finally:
            self._control.drop()
            self._runtime.block(partial(self._events.stop, 5.0))

    def _finally(self, failure: str, action: Callable[[], None]) -> None:
        """Do one of the last actions; if that fails, the next one is done on a new connection."""
        try:
            action()
        except Exception as error:
            self._events.report(error)
            logger.info("%s: %s", failure, summary(error))
            self._control.drop()
