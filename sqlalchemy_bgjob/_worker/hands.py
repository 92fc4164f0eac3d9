"""What one worker has in its hands, and the one lock that guards it.

A claimed job is ready, running, or waits to be settled. The loop, the handlers' threads, the heart
and a signal change that, each under :attr:`Hands.lock`. Nobody waits for the database or for an
observer while holding the lock.
"""

import threading
import time
from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import Final

from .._handlers.outcomes import CANCELLED, interrupted
from .._lifecycle.batches import batches_of
from .._lifecycle.claim import ClaimedJob
from .._lifecycle.settle import Fate, Pending
from .._points import STARTING
from ..settings import WorkerSettings
from ..telemetry import Events, event_of
from .chunk import run_of
from .counts import Counts
from .overdue import Overdue
from .plan.planner import Planner
from .run import Run, job_info
from .runtime import Runtime

PROGRESS_EVERY: Final = 1.0
"""Seconds between two writes of what handlers have said of their progress."""


class Hands:
    """The jobs of one worker.

    Attributes:
        lock: Guards the planner, the runs, and everything documented as *under the lock*.
        planner: The ready jobs and the pending settlements, by queue.
        overdue: When to look for runs that go on beyond their timeout, or though they are asked.
        asks_at: When to look for running jobs that are to be cancelled, by the monotonic clock.
        asks_all: Whether that look is for all jobs, as somebody was told of one; else it is only
            for runs that are older than a beat.
        counts: What ended runs are counted in; None without tables of records.
        ended_batches: Batches of jobs that have ended here, which may be over.
        progressed: Runs whose handler has said something new of its progress.
        progress_at: When that may be written, by the monotonic clock.
        stuck: Runs that go on long after they were told to end, and whether their slot is lost.
        started: How many jobs were started.
        most_starts: After how many starts no other job is started.
    """

    def __init__(
        self,
        runtime: Runtime,
        events: Events,
        queues: Mapping[str, int],
        settings: WorkerSettings,
        by_time: Collection[str] = (),
        counts: Counts | None = None,
    ) -> None:
        self._runtime, self._events, self._settings = runtime, events, settings
        self.lock = threading.RLock()
        self.planner = Planner(queues, settings, by_time)
        self.overdue = Overdue()
        self.asks_at, self.asks_all = inf, False
        self.stuck: dict[Run, bool] = {}
        self.started, self.most_starts = 0, inf
        self.counts = counts
        self.ended_batches = set[str]()
        self.progressed, self.progress_at = set[Run](), inf
        self._progress_from = 0.0
        self._tells_starts = events.wants("job_started")
        self._runs: dict[Run, None] = {}
        """In the order of their starts; two of one job if the lease of the first is over."""

    def wake(self, queue: str | None, *, new: bool = False, others: int = 0) -> None:
        """Look at a queue, or at all of them, at once; see :meth:`.Planner.wake`."""
        with self.lock:
            self.planner.wake(queue, time.monotonic(), new=new, others=others)
        self._runtime.wake()

    def runs(self) -> list[Run]:
        """All runs that go on. Under the lock."""
        return list(self._runs)

    def known(self) -> list[ClaimedJob]:
        """All jobs that this worker knows it has claimed."""
        with self.lock:
            unsettled = [item.job for item in self.planner.unsettled()]
            running = (job for run in self._runs for job in run.jobs)
            return [*unsettled, *running, *self.planner.ready()]

    def lost(self) -> None:
        """All of this worker's leases are over: others have taken its jobs."""
        with self.lock:
            self.planner.forget_ready()
            for run in self._runs:
                run.lease_lost = True

    # ---- one run --------------------------------------------------------------------------------

    def take_up(self, job: ClaimedJob) -> Run:
        """Make a run of a job that leaves the planner, without releasing the lock in between.

        In between, the job would look like an unknown claim, or miss that its lease was lost. Its
        mates leave the planner with it.
        """
        handler = job.handler
        run = run_of(job, handler)
        if STARTING.listeners:
            for one in run.jobs:
                STARTING.reached(one)
        if handler.options.timeout is not None:
            self.overdue.starts(run)
        if job.keep:
            run.tells = self._progressed
        if self.asks_at == inf:
            self.asks_at = time.monotonic() + self._settings.heartbeat_interval
        self._runs[run] = None
        if self._tells_starts:
            for one in run.jobs:
                self._events.emit("job_started", run.info_of(one))
        self.started += len(run.jobs)
        if self.started >= self.most_starts:
            self.planner.draining = True
            self._runtime.wake()
        return run

    def running(self, job: ClaimedJob) -> Run | None:
        """The run of a job under this very lease, if it has started. Under the lock."""
        return next((run for run in self._runs if any(one is job for one in run.jobs)), None)

    def holds(self, run: Run) -> bool:
        """Whether a run is still to be done: it may have been released while it waited."""
        return run in self._runs

    def let_go(self, run: Run) -> bool:
        """Take a run out of these hands; False if it had left them already. Under the lock."""
        if run not in self._runs:
            return False
        del self._runs[run]
        return True

    def interrupt(self, run: Run) -> list[Pending]:
        """Release a run that goes on, its attempts refunded; its settlements. Under the lock."""
        items = [
            Pending(job, CANCELLED if run.is_asked(job) else interrupted(job.last_error))
            for job in run.jobs
        ]
        run.leave(items, time.monotonic())
        self.let_go(run)
        self.planner.finished(run.job, 0.0)
        for item in items:
            self.planner.settle_later(item, 0.0)
        self._runtime.cancel(run)
        return items

    # ---- jobs that are to be cancelled ----------------------------------------------------------

    def look_for_asks(self) -> None:
        """One of this worker's jobs was cancelled: look which, at once. From any thread."""
        with self.lock:
            self.asks_at, self.asks_all = 0.0, True
        self._runtime.wake()

    def ask(self, run: Run, job: ClaimedJob) -> None:
        """Tell a run that a job of it is to be cancelled. Under the lock."""
        if not run.ask(job):
            return  # others of the same call go on
        self.overdue.asked(run)
        if not run.handled:  # what follows the handler is not its own, and must not be cancelled
            self._runtime.cancel(run)

    def cancel_ready(self, job: ClaimedJob) -> None:
        """Cancel a job that has not started. Under the lock."""
        if self.planner.withdraw(job):
            self.planner.settle(Pending(job, CANCELLED), time.monotonic())

    # ---- batches, counts and progress -----------------------------------------------------------

    def note(self, items: Sequence[Pending]) -> None:
        """Count settlements that were committed together, and note their batches. Any thread."""
        batches = batches_of(items)
        if self.counts is not None or batches:
            with self.lock:
                if batches and not self.ended_batches:
                    self._runtime.wake()
                self.ended_batches |= batches
                if self.counts is not None:
                    self.counts.add(items)

    def _progressed(self, run: Run) -> None:
        """A handler has said how far it has come: have that written soon. From any thread."""
        with self.lock:
            self.progressed.add(run)
            is_new = self.progress_at == inf
            if is_new:
                self.progress_at = self._progress_from
        if is_new:
            self._runtime.wake()

    def take_progressed(self, worker_id: int) -> list[Run]:
        """The runs whose progress is to be written now; none is due again for a second."""
        with self.lock:
            taken = [run for run in self.progressed if self.holds(run) and not run.lease_lost]
            self.progressed.clear()
            self.progress_at, self._progress_from = inf, time.monotonic() + PROGRESS_EVERY
        return [run for run in taken if run.job.worker_id == worker_id]

    # ---- runs that do not end -------------------------------------------------------------------

    def give_up_run(self, run: Run, items: Collection[Pending]) -> bool:
        """Settle the jobs of a run that goes on; its slot is lost until it ends. Under the lock.

        Returns False if the run commits just now, and is to be looked at again.
        """
        # As Drain does: first the one flag, then the other.
        before, run.cancelled = run.cancelled, True
        if run.committing:
            run.cancelled = before
            return False
        self.let_go(run)
        self.planner.lose_slot(run.job.queue)
        self.stuck[run] = True
        run.leave(items, time.monotonic())
        for item in items:
            self.planner.settle_later(item, 0.0)
        if not run.handled:
            self._runtime.cancel(run)
        return True

    def end_stuck(self, run: Run) -> None:
        """A stuck run has ended after all. Under the lock."""
        if self.stuck.pop(run):
            self.planner.regain_slot(run.job.queue)

    def give_up(self) -> list[ClaimedJob]:
        """Forget everything; returns the unsettled jobs. Under the lock."""
        left = [item.job for item in self.planner.unsettled()]
        self._runs = {}
        self.planner = Planner({}, self._settings)
        self.planner.draining = True
        return left

    def tell(self, item: Pending, fate: Fate, run: Run | None = None) -> None:
        """Tell observers of a settlement that was committed, or whose lease was lost."""
        if (delay := item.settlement.due_in) is not None and fate is not Fate.STALE:
            with self.lock:  # nobody notifies when a delayed job falls due
                self.planner.expect(item.job.queue, time.monotonic() + delay + 0.001)
        event = "job_lease_lost" if fate is Fate.STALE else event_of(item.settlement)
        if event is None or not self._events.wants(event):
            return
        info = run.info_of(item.job) if run else job_info(item.job)
        if fate is Fate.STALE:
            self._events.emit(event, info)
        else:
            self._events.settled(info, item.settlement, item.seconds)
