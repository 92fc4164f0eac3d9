"""Observers: what a worker tells about its jobs, after the COMMIT that made it true.

Observers run in their own thread, one event after another. Their errors are logged, and however
long they take, the worker goes on.
"""

import logging
import queue
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, ClassVar, Final

from .._db.errors import note_advice
from .._handlers.outcomes import Kind, Settlement
from .._inspect.backlog import Backlog
from .._inspect.health import Health

logger: Final[logging.Logger] = logging.getLogger("sqlalchemy_bgjob")

MAX_WAITING_EVENTS: Final = 100_000
MAX_WAITING_EXCEPTIONS: Final = 1_000
"""Waiting events above which the next ones have no exception: each keeps a handler's variables."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A job as it was claimed: plain data, valid after its row is gone.

    All times are aware, and by the database's clock.
    """

    id: str
    queue: str
    type: str
    attempt: int
    """Which run this is, from 1."""
    lease: int
    """The number of the claim. It grows with each claim, and tells the runs of a job apart."""
    priority: int
    """Lower runs first."""
    crashes: int
    """How often a worker was lost while it held the job."""
    last_error: str | None
    """The error of the attempt before; None if none has failed."""
    headers: Mapping[str, Any]
    """What travels with the job; empty if nothing does."""
    next_run_at: datetime
    """When the job was due."""
    created_at: datetime
    """When the transaction began that enqueued it."""
    updated_at: datetime
    """When it was claimed."""


@dataclass(frozen=True, slots=True)
class FinishedRun:
    """What a run of a job came to."""

    seconds: float
    """How long the call of the handler took, in a chunk for all its jobs; 0 without a call."""
    delay: float | None = None
    """Seconds until the job is due again; None if it never will be."""
    error: str | None = None
    """What this run has written into ``last_error``; None if nothing has failed."""
    exception: BaseException | None = None
    """The exception that was raised or named, with its traceback; None if there was none.

    Its frames hold what the handler had in its variables: use it, and do not keep it. It is also
    None while observers are a thousand events behind.
    """


class Observer:
    """Hears what a worker does with its jobs. Make a subclass, and override what you want to hear.

    ``Worker(jobs, engine, observers=[Alerts()])``. A method is called after the COMMIT that made
    the event true. All calls come from one thread, one after another. An error in a method is
    logged, and a slow one keeps no job waiting; events beyond 100,000 that wait are dropped.

    The events of one lease of a job come in order. The start of its next run, under the next lease,
    may come before the end of the last run: ``job.lease`` tells the runs apart.
    """

    wants_exceptions: ClassVar[bool] = True
    """Whether it reads ``run.exception``. False frees the handler's variables at once."""

    def job_claimed(self, job: JobInfo) -> None:
        """The worker has claimed the job. Its handler runs soon, or the job is handed back.

        If the answer to a claim is lost, this is not called, and the jobs are queued again.
        """

    def job_started(self, job: JobInfo) -> None:
        """The job's handler is about to run."""

    def job_completed(self, job: JobInfo, run: FinishedRun) -> None:
        """The job is done, and its row is deleted."""

    def job_rescheduled(self, job: JobInfo, run: FinishedRun) -> None:
        """The job runs again after ``run.delay`` seconds, its attempt refunded.

        Either its handler asked for that, and ``run.error`` is None; or the run was not to blame,
        and ``run.error`` says why. Such causes are that there was no connection or context for it,
        that a transaction held a lock on the job's row, or that another job of its chunk had lost
        its lease.
        """

    def job_will_be_retried(self, job: JobInfo, run: FinishedRun) -> None:
        """The attempt failed. The next one is due after ``run.delay`` seconds."""

    def job_moved_to_dlq(self, job: JobInfo, run: FinishedRun) -> None:
        """The job was given up, and is a dead job now."""

    def job_cancelled(self, job: JobInfo, run: FinishedRun) -> None:
        """The job was cancelled after a worker had claimed it: its writes are undone, it is gone.

        A cancel of a queued job deletes its row at once, and no worker hears of it.
        """

    def job_expired(self, job: JobInfo, run: FinishedRun) -> None:
        """The job was not started in time, and is deleted: its handler has ``on_expiry="drop"``.

        By default an expired job is moved to the DLQ, and ``job_moved_to_dlq`` is called.
        """

    def job_type_unknown(self, job: JobInfo, run: FinishedRun) -> None:
        """No handler here knows the job's type: it waits ``run.delay`` seconds, attempt refunded.

        This is called each time that a worker meets the job, until ``unknown_type_grace`` is over.
        Then the job is moved to the DLQ.
        """

    def job_lease_lost(self, job: JobInfo) -> None:
        """The job was taken from this worker, whose run of it changes nothing any more."""

    def queue_is_empty(self, queue: str) -> None:
        """The worker has found nothing due in this queue."""

    def health_sampled(self, health: Health) -> None:
        """The server's health was sampled: by the leader of the workers, every ``health_interval``.

        It is called in that worker alone. ``health.problems`` says what somebody should mend.
        """

    def backlog_sampled(self, backlog: Backlog) -> None:
        """All queues were looked at: by the leader of the workers, every ``health_interval``.

        It is called in that worker alone. If no observer overrides it, the database is not asked.
        """

    def worker_error(self, error: BaseException) -> None:
        """Something failed that is not a handler: a connection, a settlement, the listener.

        The worker tries again by itself, except after a WorkerStuck, by which it ends. During an
        outage, each of its connections reports one error every 5 s.
        """

    def job_error(self, job: JobInfo, error: BaseException) -> None:
        """Something failed that is not a handler, and is about one job.

        The job's settlement was refused, its session found no connection, or there was no thread
        for it. The worker tries again by itself. ``worker_error`` is called for the same error.
        """


_EVENTS: Final = tuple(
    name for name, value in vars(Observer).items() if callable(value) and not name.startswith("_")
)


class Events:
    """Hands events over to the observers' thread."""

    def __init__(self, observers: Iterable[Observer]) -> None:
        self._observers = tuple(observers)
        self._queue: queue.Queue[tuple[str, tuple[Any, ...]] | None] = queue.Queue(
            MAX_WAITING_EVENTS
        )
        self._thread: threading.Thread | None = None
        self._dropped = False
        self._keeps_exceptions = any(
            getattr(observer, "wants_exceptions", True) for observer in self._observers
        )
        self._wanted = frozenset(name for name in _EVENTS if self._wants(name))

    def _wants(self, name: str) -> bool:
        own = [getattr(getattr(o, name, None), "__func__", o) for o in self._observers]
        return any(function is not getattr(Observer, name) for function in own)

    def wants(self, name: str) -> bool:
        """Whether any observer overrides this method: if not, the event need not be emitted."""
        return name in self._wanted

    def start(self) -> None:
        """Start the thread, if there is anyone to tell."""
        if self._observers:
            self._thread = threading.Thread(target=self._run, name="bgjob-observers", daemon=True)
            self._thread.start()

    def emit(self, name: str, *args: Any) -> None:
        """Queue an event for observers; never blocks. Drops events beyond 100,000 waiting ones."""
        if self._thread is None or name not in self._wanted:
            return
        try:
            self._queue.put_nowait((name, args))
        except queue.Full:
            if not self._dropped:
                self._dropped = True
                logger.warning("observers are %d events behind: dropping", MAX_WAITING_EVENTS)

    def report(self, error: BaseException, job: JobInfo | None = None) -> None:
        """Tell of an error that is not a handler's, with what may be done about it, and its job."""
        note_advice(error)
        self.emit("worker_error", error)
        if job is not None:
            self.emit("job_error", job, error)

    def settled(self, job: JobInfo, settlement: Settlement, seconds: float) -> None:
        """Tell of a settlement that was committed, of a handler that took *seconds*."""
        event = event_of(settlement)
        if event is None:
            return
        if settlement.kind is Kind.DEAD:
            job = replace(job, attempt=job.attempt - settlement.refund_attempt)
        keeps = self._keeps_exceptions and self._queue.qsize() < MAX_WAITING_EXCEPTIONS
        exception = settlement.exception if keeps else None
        run = FinishedRun(seconds, settlement.due_in, settlement.error, exception)
        self.emit(event, job, run)

    def stop(self, timeout: float) -> None:
        """Deliver the events left, for at most *timeout* seconds, and end the thread."""
        if self._thread is not None:
            try:
                self._queue.put(None, timeout=timeout)
            except queue.Full:
                return
            self._thread.join(timeout)
            self._thread = None

    def _run(self) -> None:
        while (event := self._queue.get()) is not None:
            name, args = event
            for observer in self._observers:
                try:
                    getattr(observer, name)(*args)
                except BaseException:  # it must not end the thread of all
                    logger.exception("observer %r failed in %s", type(observer).__name__, name)
            del event, args  # an exception keeps its handler's variables


_EVENT_OF: Final[Mapping[Kind, str | None]] = {
    Kind.COMPLETED: "job_completed",
    Kind.RESCHEDULED: "job_rescheduled",
    Kind.RETRY: "job_will_be_retried",
    Kind.DEAD: "job_moved_to_dlq",
    Kind.CANCELLED: "job_cancelled",
    Kind.EXPIRED: "job_expired",
    Kind.UNKNOWN_TYPE: "job_type_unknown",
    # Nothing happened to the job that an observer waits for.
    Kind.HANDED_BACK: None,
}


def event_of(settlement: Settlement) -> str | None:
    """The observers' method for a settlement that was committed; None if there is none."""
    return _EVENT_OF[settlement.kind]
