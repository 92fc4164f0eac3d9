"""The worker's one loop, for threads and for asyncio alike.

It asks :mod:`.plan.planner` what to do next and does it: claims, starts, settles, hands back,
waits. It is plain synchronous code; ``AsyncWorker`` runs it in a greenlet, where a wait or a
statement lets the event loop go on. What differs between the two is a :class:`~.runtime.Runtime`.

Nothing that goes wrong ends the loop: it is reported, and tried again with backoff. Only a stop
does, or a refusal at the start.
"""

import logging
import os
import random
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Final

from sqlalchemy import Connection

from .. import _lifecycle as lifecycle
from .._db.connections import Backoff
from .._db.errors import (
    doubts_session,
    lost_connection,
    note_advice,
    passes_by_itself,
    refuses_a_row,
    summary,
)
from .._db.forks import leave_if_forked
from .._handlers.outcomes import COMPLETED, HAND_BACK, INTERRUPTED, crashed_too_often, unknown_type
from .._handlers.registry import JobType, Registry
from .._inspect.health import Health
from .._lifecycle import ClaimedJob, Fate, Pending, Position
from .._lifecycle.row_errors import RowKept
from .._sql import Statements
from ..models import Models
from ..settings import WorkerSettings
from ..telemetry import Events, Observer, emit_settled, event_of
from ..telemetry._job_log import log_observer
from .attempt import Attempt, Environment
from .control import ControlConnection
from .heart import Heart
from .listener import Listener
from .overdue import Overdue
from .plan.pauses import SPREAD, Pauses
from .plan.planner import (
    PATIENCE,
    Announce,
    Claim,
    Finished,
    HandBack,
    Planner,
    Settle,
    Start,
    Wait,
    settle_again_after,
)
from .preflight import cant_register, check_database
from .rescuer import Rescuer
from .run import Run, job_info
from .runtime import Attendant, Runtime

logger = logging.getLogger("sqlalchemy_bgjob")

VISIBLE_WITHIN: Final = 1.0
"""Seconds that the first claim waits until the listener works, by which others see that a process
has ended; behind a pooler it never does."""
LOST_AGAIN: Final = 2.0
RECONCILE_AGAIN: Final = 10.0
"""Seconds until unknown claims are looked for again, when the database has refused to; the first
one, when the connection was lost meanwhile."""
REFUSAL_LASTS: Final = 60.0
"""Seconds for which a row that could not be claimed is left aside."""
COMMITTED_WITHIN: Final = 2.0
RELEASED_WITHIN: Final = 3.0
"""Seconds beyond ``shutdown_timeout`` for what is being committed, and then for the releases."""
RECONCILE_AFTER: Final = (0.0, 2.0, 10.0)
"""Seconds after a lost answer at which unknown claims are handed back: the server may take a while
to commit what it had been sent."""


class Dispatcher:
    """One worker's loop and the state it shares with its runs."""

    def __init__(
        self,
        models: Models,
        registry: Registry,
        runtime: Runtime,
        statements: Statements,
        environment: Callable[[JobType[Any]], Environment],
        *,
        queues: Mapping[str, int],
        settings: WorkerSettings,
        observers: Iterable[Observer],
        can_run: Callable[[JobType[Any]], bool],
    ) -> None:
        self._models, self._registry, self._runtime = models, registry, runtime
        self._environment, self._settings, self._can_run = environment, settings, can_run
        self._statements = statements
        self._planner = Planner(queues, settings)
        self._lock = threading.RLock()
        self._events = Events((log_observer(registry), *observers))
        self._tells_starts = self._events.wants("job_started")
        self._runs: dict[str, Run] = {}
        """By job id; with an earlier lease's beside it, which is lost, in ``_late_runs``."""
        self._late_runs: set[Run] = set()
        self._overdue = Overdue()
        self._pauses = Pauses()
        self._announced_by: int | None = None
        self._backoff = Backoff()
        self._retry_at = 0.0
        self._start_backoff = Backoff()
        self._claim_backoffs: dict[str, Backoff] = {}
        self._start_at = 0.0
        self._visible_by = 0.0
        self._disconnected_at = float("-inf")
        self._reconcile_at: list[tuple[float, int]] = []
        self._refused: dict[tuple[str, str], float] = {}
        self._refused_ends: dict[tuple[str, int], ClaimedJob] = {}  # they have run
        self._deadline: float | None = None
        self._interruptions = 0
        self._empty: set[str] = set()
        self._slowest_claim: float | None = None
        self._turned_at = time.monotonic()
        self._heart = Heart(
            runtime,
            self._statements,
            settings,
            queues,
            turned_at=lambda: self._turned_at,
            on_reconnect=self._reconnected,
            on_change=runtime.wake,
            on_lost=self._lost,
            on_error=self._report,
        )
        self._control = ControlConnection(runtime, self._statements, lambda: self._heart.worker_id)
        self._rescuer = Rescuer(
            runtime,
            self._statements,
            settings,
            self._heart,
            known=self._known,
            on_unknown=self._found_unknown,
            on_health=self._tell_health,
            on_error=self._report,
        )
        self._listener = Listener(
            runtime,
            self._statements,
            on_wake=self._wake,
            on_session=self._heart.set_listener,
            on_error=self._report,
        )

    # ---- from other threads -----------------------------------------------------------------

    def stop(self, timeout: float) -> None:
        """Claim no more, hand back what was not started, and finish what runs.

        After *timeout* seconds what still runs is released, its attempt given back. May be called
        again with a shorter timeout.
        """
        with self._lock:
            deadline = time.monotonic() + timeout
            if not self._interruptions:
                self._deadline = min(self._deadline or deadline, deadline)
            self._planner.draining = True
        self._runtime.wake()

    def _wake(self, queue: str | None, *, new: bool = False) -> None:
        with self._lock:
            self._planner.wake(queue, time.monotonic(), new=new)
        self._runtime.wake()

    def _reconnected(self) -> None:
        """The heart has begun another session, perhaps with another server."""
        self._listener.begin_anew()

    def _lost(self, worker_id: int) -> None:
        """The heart found that all jobs were taken from this worker, under its old id."""
        with self._lock:
            self._planner.forget_ready()
            for run in self._all_runs():
                run.lease_lost = True
        # A claim may have come after the judgement; nobody else would look for it soon.
        self._reconcile_soon(worker_id)

    def _all_runs(self) -> list[Run]:
        return [*self._runs.values(), *self._late_runs]

    def _tell_health(self, health: Health) -> None:
        with self._lock:
            slowest, self._slowest_claim = self._slowest_claim, None
        self._events.emit("health_sampled", replace(health, slowest_claim=slowest))

    def _report(self, error: BaseException) -> None:
        note_advice(error)
        self._events.emit("worker_error", error)

    # ---- the loop ---------------------------------------------------------------------------

    def run(self, ready: Callable[[], None]) -> None:
        """Work until stopped and drained. *ready* is called once the worker is registered.

        Raises:
            SchemaOutOfDate, WorkerRefused: This database can't be worked on as it is.
            OperationalError: The password, role or database is wrong.
        """
        self._events.start()
        beside: list[Attendant] = []
        try:
            if not self._begin():
                return
            self._turned_at = time.monotonic()
            beside.append(self._runtime.spawn("bgjob-heart", self._heart.run))
            beside.append(self._runtime.spawn("bgjob-rescuer", self._rescuer.run))
            if self._settings.listen:
                self._visible_by = self._turned_at + VISIBLE_WITHIN
                beside.append(self._runtime.attend("bgjob-listener", self._listener.run))
            begun, process = False, os.getpid()
            while not self._finished():
                # A child that a coroutine has forked, and that awaits, comes to here.
                leave_if_forked(process, None)
                begun = begun or self._has_begun(ready)
                self._step()
                self._name_overdue()
        finally:
            self._end(beside)

    def _begin(self) -> bool:
        """Wait for the database and check it; False if the worker was stopped meanwhile."""
        while self._deadline is None:
            try:
                connection = self._control.get()
                check_database(connection, self._models)
                return True
            except Exception as error:  # asyncpg's own errors of connecting come as they are
                if not passes_by_itself(error):
                    note_advice(error)
                    raise
                self._lost_control(error)
                self._runtime.wait(max(self._retry_at - time.monotonic(), 0.0))
        return False

    def _has_begun(self, ready: Callable[[], None]) -> bool:
        """Whether the worker is registered, without which it claims nothing; *ready* is told."""
        if self._heart.worker_id is not None:
            ready()
            return True
        if self._heart.refusal is not None:
            raise cant_register(self._heart.refusal) from self._heart.refusal
        return False

    def _step(self) -> None:
        self._turned_at = now = time.monotonic()
        worker_id = self._heart.worker_id
        may_claim = worker_id is not None and now >= self._retry_at and self._is_visible(now)
        may_start = self._heart.fresh(now, self._disconnected_at)
        if worker_id is not None and not may_start:
            self._heart.beat_soon()
        may_start = may_start and now >= self._start_at
        if worker_id != self._announced_by:  # a new row, which says nothing yet
            self._announced_by = worker_id
            with self._lock:
                self._planner.announced(())
                self._planner.wake(None, now)  # nobody has notified it meanwhile
        if may_claim and self._reconcile_at and self._reconcile_at[0][0] <= now:
            # That this succeeds does not tell that the claim does which failed before it.
            self._guarded(self._reconcile, (), mended=False)
            return
        with self._lock:
            step = self._planner.next_step(now, may_start=may_start, may_claim=may_claim)
            if isinstance(step, Claim):
                self._planner.claim_sent(step.queue, now, from_head=step.onward is None)
            # In the same lock: a job is never in nobody's hands, where a reconciliation would hand
            # it back, or where it would not hear that its lease was lost.
            run = self._prepare(step.job) if isinstance(step, Start) else None
        match step:
            case Wait():
                self._wait(step.seconds, now)
            case Start():
                assert run is not None
                self.start(run)
                self._runtime.yield_to_tasks()
            case Claim():
                assert worker_id is not None
                self._guarded(lambda: self._claim(step, worker_id), ())
            case Announce():
                assert worker_id is not None
                self._guarded(lambda: self._announce(step, worker_id), ())
            case Settle():
                self._guarded(lambda: self._settle(step.items), step.items)
            case HandBack():
                items = tuple(Pending(job, HAND_BACK) for job in step.jobs)
                self._guarded(lambda: self._settle(items), items)
            case Finished():
                pass

    def _is_visible(self, now: float) -> bool:
        """Whether others would see the end of this process, or it has waited for that enough.

        A job that kills its process at once would else cost all that were claimed with it, at each
        of its attempts, a whole ``lease_timeout``.
        """
        if now < self._visible_by and not self._heart.visible:
            return False
        self._visible_by = 0.0
        return True

    def _wait(self, seconds: float, now: float) -> None:
        self._guarded(self._control.rest, (), mended=False)
        times = [now + seconds, self._overdue.look_at]
        if self._deadline is not None:
            times.append(self._deadline)
        # What is due already waits for one of the others: the connection, or being visible.
        due = [at for at, _ in self._reconcile_at[:1]]
        times += [at for at in (self._retry_at, self._visible_by, *due) if now < at]
        self._runtime.wait(max(min(times) - now, 0.0))

    def _finished(self) -> bool:
        if self._deadline is None:
            return False
        with self._lock:
            if not self._planner.busy:
                return True
            if time.monotonic() < self._deadline:
                return False
            left = self._interrupt()
            finished = not self._planner.busy
        for job in left:
            logger.warning("job %s: left unsettled at shutdown", job.id)
        return finished

    def _interrupt(self) -> list[ClaimedJob]:
        """The time to drain is over: release what runs, attempt given back.

        What is being committed is given COMMITTED_WITHIN; the releases have RELEASED_WITHIN more.
        Returns what is given up then.
        """
        self._interruptions += 1
        more = COMMITTED_WITHIN if self._interruptions == 1 else RELEASED_WITHIN
        self._deadline = time.monotonic() + more
        if self._interruptions > 2:
            # Not even the releases could be written: rescue has to do it.
            left = [item.job for item in self._planner.unsettled()]
            self._runs, self._late_runs = {}, set()
            self._planner = Planner({}, self._settings)
            self._planner.draining = True
            return left
        for run in self._all_runs():
            run.cancelled = True
            if run.committing and self._interruptions == 1:
                continue
            self._forget(run)
            self._planner.finished(run.job, 0.0)
            self._planner.settle_later(Pending(run.job, INTERRUPTED), 0.0)
            self._runtime.cancel(run)
        return []

    def _guarded(
        self, action: Callable[[], None], items: Iterable[Pending], *, mended: bool = True
    ) -> None:
        """Do what needs the database; what fails is reported, and its items are kept."""
        try:
            action()
            if mended:
                self._backoff.reset()
        except Exception as error:
            with self._lock:
                for item in items:
                    self._planner.settle(item, 0.0)
            self._lost_control(error)

    # ---- when the connection is lost --------------------------------------------------------

    def _lost_control(self, error: BaseException) -> None:
        self._report(error)
        self._backoff.log("worker interrupted", error)
        self._control.drop()
        self._disconnected_at = now = time.monotonic()
        self._retry_at = now + self._backoff.pause()

    def _reconcile_soon(self, worker_id: int, *, after: Sequence[float] = RECONCILE_AFTER) -> None:
        now = time.monotonic()
        with self._lock:
            others = [entry for entry in self._reconcile_at if entry[1] != worker_id]
            own = [(now + pause, worker_id) for pause in after]
            self._reconcile_at = sorted(others + own)
        self._runtime.wake()

    def _found_unknown(self, worker_id: int) -> None:
        with self._lock:
            if all(entry[1] != worker_id for entry in self._reconcile_at):
                self._reconcile_soon(worker_id, after=(0.0,))

    def _reconcile(self) -> None:
        """Hand back what a claim without an answer may have given us.

        Nothing waits for it but the next one: as long as it fails, the worker works on.
        """
        entry = self._reconcile_at[0]
        connection, begun = self._control.get(), time.monotonic()
        try:
            count = self._hand_back_unknown(connection, entry[1])
        except Exception as error:
            now = time.monotonic()
            pause = LOST_AGAIN if lost_connection(error) else RECONCILE_AGAIN
            self._reconcile_soon(entry[1], after=(max(pause, (now - begun) * 10),))
            raise
        with self._lock:
            if entry in self._reconcile_at:
                self._reconcile_at.remove(entry)
        if count:
            logger.info("handed back %d jobs whose claim was not answered", count)
            self._wake(None)

    def _hand_back_unknown(self, connection: Connection, worker_id: int) -> int:
        return lifecycle.hand_back_others(
            connection, self._statements, worker_id=worker_id, known=self._known()
        )

    def _known(self) -> list[ClaimedJob]:
        """All jobs that are in the hands of this worker."""
        with self._lock:
            unsettled = [item.job for item in self._planner.unsettled()]
            return [*unsettled, *(run.job for run in self._all_runs()), *self._planner.ready()]

    # ---- claim ------------------------------------------------------------------------------

    def _announce(self, step: Announce, worker_id: int) -> None:
        try:
            lifecycle.announce(
                self._control.get(), self._statements, worker_id=worker_id, queues=step.queues
            )
        except BaseException:
            self._planner.announced(None)
            raise
        self._planner.announced(step.queues)

    def _claim(self, step: Claim, worker_id: int) -> None:
        # Polls renew the plans a little early, so that no job that wakes the worker pays for it.
        patience = PATIENCE if step.woken else -PATIENCE
        connection = self._control.as_it_is(patience=patience)
        skip = self._refusing(step.queue)
        try:
            last: Position | None = None
            due_in: float | None = None
            try:
                begun = time.monotonic()
                jobs, due_in = self._claim_together(connection, step, worker_id, skip)
                self._slowest_claim = max(self._slowest_claim or 0.0, time.monotonic() - begun)
                if jobs and not skip:
                    last = Position(jobs[-1].priority, jobs[-1].next_run_at, jobs[-1].id)
            except Exception as error:
                if lost_connection(error):
                    raise
                if self._control.rests:  # it may be committed, and hold what the driver can't read
                    connection = self._control.get()
                    self._hand_back_unknown(connection, worker_id)
                found = self._claim_one_by_one(connection, step, worker_id, skip, error)
                if found is None:
                    return
                jobs = found
            self._claim_backoffs.pop(step.queue, None)
            self._take(step, worker_id, jobs, due_in, last)
        except BaseException:
            self._reconcile_soon(worker_id)
            with self._lock:  # what it was to look for is still to be looked for
                self._planner.wake(step.queue, time.monotonic())
            raise

    def _claim_together(
        self, connection: Connection, step: Claim, worker_id: int, skip: list[str]
    ) -> tuple[list[ClaimedJob], float | None]:
        claim = partial(
            lifecycle.claim,
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
                # This alone tells how long the way to the heads is; what is claimed takes time too.
                begun = time.monotonic()
                priorities = lifecycle.lanes(connection, self._statements, queue=step.queue)
                now = time.monotonic()
                with self._lock:
                    self._planner.looked(step.queue, priorities, now - begun, now)
            else:
                priorities = [position.priority for position in step.onward]
            if jobs:
                return jobs, None
            return [], lifecycle.next_due(
                connection, self._statements, queue=step.queue, priorities=priorities
            )

    def _claim_one_by_one(
        self,
        connection: Connection,
        step: Claim,
        worker_id: int,
        skip: list[str],
        error: Exception,
    ) -> list[ClaimedJob] | None:
        """Find the rows that refuse to be claimed, and leave them aside for a while.

        None if it is not a matter of single rows: then all of the queue is left alone for a moment,
        and no other queue is the worse for it.
        """
        try:
            with connection.begin():
                jobs, refused = lifecycle.claim_one_by_one(
                    connection,
                    self._statements,
                    queue=step.queue,
                    limit=step.limit,
                    worker_id=worker_id,
                    skip=skip,
                )
        except Exception as second:
            if lost_connection(second):
                raise
            self._leave_alone(step.queue, second)
            return None
        if not jobs:
            refused = {id: reason for id, reason in refused.items() if refuses_a_row(reason)}
        if not jobs and not refused:
            self._leave_alone(step.queue, error)
            return None
        until = time.monotonic() + REFUSAL_LASTS
        for id, reason in refused.items():
            self._refused[step.queue, id] = until
            self._report(reason)
            logger.warning("job %s can't be claimed, its neighbours are: %s", id, summary(reason))
        return jobs

    def _leave_alone(self, queue: str, error: Exception) -> None:
        """Claim nothing from a queue for longer and longer, while the database refuses that."""
        backoff = self._claim_backoffs.setdefault(queue, Backoff())
        backoff.log(f"queue {queue!r} can't be claimed from", error)
        self._report(error)
        if doubts_session(error):
            self._control.doubt()
        now = time.monotonic()
        with self._lock:
            self._planner.refused(queue, now + backoff.pause(), now)

    def _refusing(self, queue: str) -> list[str]:
        """The rows of a queue that refused to be claimed lately."""
        if not self._refused:
            return []
        now = time.monotonic()
        self._refused = {key: until for key, until in self._refused.items() if until > now}
        return [id for name, id in self._refused if name == queue]

    def _take(
        self,
        step: Claim,
        worker_id: int,
        jobs: list[ClaimedJob],
        due_in: float | None,
        last: Position | None,
    ) -> None:
        """Take what a claim gave into hands."""
        self._tell_if_empty(step.queue, bool(jobs))
        now = time.monotonic()
        with self._lock:
            runnable = [job for job in jobs if self._admit(job)]
            if worker_id == self._heart.worker_id:
                self._planner.claimed(step.queue, runnable, now)
            else:  # found lost meanwhile; under the old id they can still be handed back
                for job in runnable:
                    self._planner.settle(Pending(job, HAND_BACK), now)
            self._planner.polled(
                step.queue,
                step.limit,
                len(jobs),
                due_in,
                now,
                listening=self._listener.listening,
                last=last,
            )
        # Not in the lock: a log that nobody reads must not keep a signal from ending the worker.
        left = (job for job in jobs if job.handler is None and job.unknown_for is None)
        for type in sorted({job.type for job in left if self._find(job) is None}):
            logger.warning("no handler for job type %r in queue %r", type, step.queue)

    def _admit(self, job: ClaimedJob) -> bool:
        """Whether a claimed job is to be run; otherwise its settlement is on its way."""
        handler = self._find(job)
        if handler is None:
            settlement = unknown_type(
                job.type, job.unknown_for or 0.0, self._settings.unknown_type_grace
            )
            self._planner.settle(Pending(job, settlement), 0.0)
            return False
        limit = handler.options.max_attempts
        dead = crashed_too_often(job.attempt, limit, job.crashes, job.last_error)
        if dead is not None:
            self._planner.settle(Pending(job, dead), 0.0)
            return False
        job.careful = job.crashes > 0 or (limit is not None and job.attempt >= limit)
        job.handler = handler
        return True

    def _find(self, job: ClaimedJob) -> JobType[Any] | None:
        handler = self._registry.find(job.type, job.queue)
        return handler if handler is not None and self._can_run(handler) else None

    def _tell_if_empty(self, queue: str, found: bool) -> None:
        if found:
            self._empty.discard(queue)
        elif queue not in self._empty:
            self._empty.add(queue)
            self._events.emit("queue_is_empty", queue)

    # ---- run --------------------------------------------------------------------------------

    def _prepare(self, job: ClaimedJob) -> Run:
        run = Run(job, job.handler)
        self._overdue.starts(run)
        earlier = self._runs.get(job.id)
        self._runs[job.id] = run
        if earlier is not None:
            self._late_runs.add(earlier)
        if self._tells_starts:
            self._events.emit("job_started", run.info)
        return run

    def _forget(self, run: Run) -> bool:
        """Take a run out of the hands of this worker; False if it was not in them any more."""
        if self._runs.get(run.job.id) is run:
            del self._runs[run.job.id]
            return True
        if run in self._late_runs:
            self._late_runs.discard(run)
            return True
        return False

    def _name_overdue(self) -> None:
        """Tell of runs that go on beyond their timeout."""
        if (now := self._turned_at) < self._overdue.look_at:
            return
        with self._lock:
            overdue = self._overdue.look(self._all_runs(), now)
        for run in overdue:
            logger.warning(
                "job %s of type %r goes on beyond its timeout of %g s, and keeps its slot until it "
                "returns; let its handler look at ctx.cancelled",
                run.job.id,
                run.job.type,
                run.handler.options.timeout,
            )

    def start(self, run: Run) -> None:
        """Run a job in a slot of its own; if there can be none, hand it back and pause."""
        try:
            self._runtime.start(run, self)
        except Exception as error:  # no thread can be made
            self._report(error)
            logger.warning("job %s can't be started: %s", run.job.id, summary(error))
            now = time.monotonic()
            with self._lock:
                self._start_at = now + self._start_backoff.pause()
                if self._forget(run):
                    self._planner.not_started(run.job)
                    self._planner.settle(Pending(run.job, HAND_BACK), now)
            self._runtime.wake()
        else:
            self._start_backoff.reset()

    def holds(self, run: Run) -> bool:
        """Whether a run is still to be done: it may have been released while it waited."""
        return self._runs.get(run.job.id) is run or run in self._late_runs

    def attempt(self, run: Run) -> Attempt:
        """The call of its handler."""
        return Attempt(self._environment(run.handler), run)

    def work(self, run: Run) -> None:
        """Run a function's job, and after it the next one for as long as there is one."""
        following: Run | None = run
        while following is not None:
            run = following
            if run.handler.is_coroutine:
                self.start(run)
                return
            if not self.holds(run):
                return
            following = self.ended(run, *self.attempt(run).execute())

    def ended(self, run: Run, pending: Pending, fate: Fate | None) -> Run | None:
        """A run has ended: the next one for its slot, if there is one."""
        now = time.monotonic()
        pending.seconds = now - run.started_at
        queue = run.job.queue
        following: Run | None = None
        with self._lock:
            if not self._forget(run):  # released at shutdown
                if fate is Fate.SETTLED:  # and yet its own commit was sooner
                    self._planner.settled(run.job)
                    self._tell(pending, fate, run)
                return None
            if run.connected is False:
                self._put_off(run, pending, now)
            else:
                self._planner.finished(run.job, pending.seconds)
                if self._pauses and run.connected and self._pauses.end(queue):
                    self._planner.go_on(queue, now)
            if fate is None:
                self._planner.settle(pending, now)
            else:
                self._tell(pending, fate, run)
            if self._heart.fresh(now, self._disconnected_at):
                job = self._planner.next_start(queue)
                following = self._prepare(job) if job is not None else None
            if following is not None and not self._planner.needs_attention(queue, now):
                return following
        self._runtime.wake()
        return following

    def _put_off(self, run: Run, pending: Pending, now: float) -> None:
        """A run found no connection, or no context: give its queue's claims a rest, and its job.

        Jobs that use no session are claimed from there when the pause is over, and run.
        """
        queue, error = run.job.queue, pending.error
        if error is not None and self._pauses.begins(queue, now):
            self._report(error)
        until = self._pauses.until(queue, now)
        delay = until - now + random.uniform(0.0, SPREAD)
        pending.settlement = replace(pending.settlement, delay=delay)
        for job in self._planner.put_off(run.job, until, now):
            self._planner.settle(Pending(job, HAND_BACK), now)

    # ---- settle -----------------------------------------------------------------------------

    def _settle(self, items: tuple[Pending, ...]) -> None:
        fates = lifecycle.settle(self._control.get(), self._statements, items)
        now = time.monotonic()
        told = self._events.wants("job_completed")
        for item, fate in fates:
            if fate is Fate.LOCKED or fate is Fate.FAILED:
                pause = settle_again_after(fate, item.tries)
                item.tries += 1
                if fate is Fate.FAILED and _by_session(item.error):
                    self._control.doubt()
                if fate is Fate.FAILED and not item.settlement.give_back:
                    self._refused_ends[item.job.id, item.job.lease] = item.job
                if fate is Fate.FAILED and item.tries == 1 and item.error is not None:
                    self._report(item.error)
                    logger.warning(
                        "job %s can't be settled, it will be tried again: %s",
                        item.job.id,
                        summary(item.error),
                    )
                with self._lock:
                    self._planner.settle_later(item, now + pause)
                continue
            if item.tries:
                self._refused_ends.pop((item.job.id, item.job.lease), None)
                with self._lock:
                    self._planner.written(item)
            if fate is not Fate.SETTLED or item.settlement is not COMPLETED or told:
                self._tell(item, fate, None)

    def _tell(self, item: Pending, fate: Fate, run: Run | None) -> None:
        """Observers hear what was committed, and nothing else."""
        if (delay := item.settlement.delay) is not None and fate is not Fate.STALE:
            with self._lock:  # nobody notifies of a job that is put off
                self._planner.expect(item.job.queue, time.monotonic() + delay + 0.001)
        event = "job_lease_lost" if fate is Fate.STALE else event_of(item.settlement)
        if event is None or not self._events.wants(event):
            return
        info = run.info if run else job_info(item.job)
        if fate is Fate.STALE:
            self._events.emit(event, info)
        else:
            emit_settled(self._events.emit, info, item.settlement, item.seconds)

    # ---- the end ----------------------------------------------------------------------------

    def _end(self, beside: Iterable[Attendant]) -> None:
        with self._lock:
            self._planner.draining = True
        self._listener.stop()
        self._heart.stop()
        self._rescuer.stop()
        for attendant in beside:
            self._runtime.join(attendant, 5.0)
        worker_id = self._heart.worker_id
        try:
            if worker_id is not None:
                lifecycle.unregister(
                    self._control.get(),
                    self._statements,
                    worker_id=worker_id,
                    refused=self._refused_ends.values(),
                )
        except Exception as error:  # others will find this worker silent, and clean up
            self._report(error)
            logger.info("worker not unregistered: %s", summary(error))
        finally:
            self._control.close()
            self._runtime.block(partial(self._events.stop, 5.0))


def _by_session(error: BaseException | None) -> bool:
    """Whether a settlement may have been refused for what the session is, and not by a trigger."""
    return error is not None and not isinstance(error, RowKept) and doubts_session(error)
