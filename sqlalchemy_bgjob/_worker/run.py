"""One run of a job, and the context that its handler gets."""

import time
from collections.abc import Callable, Iterable
from typing import Any, Generic

from typing_extensions import TypeVar

from .._db.printable import printable
from .._drafts import validation
from .._handlers.outcomes import Complete, Outcome, as_outcome
from .._handlers.registry import JobType
from .._lifecycle.claim import ClaimedJob
from .._lifecycle.settle import Pending
from ..telemetry import JobInfo

S = TypeVar("S", default=Any)


def job_info(job: ClaimedJob) -> JobInfo:
    """A claimed job as handlers and observers see it."""
    return JobInfo(
        id=job.id,
        queue=job.queue,
        type=job.type,
        attempt=job.attempt,
        lease=job.lease,
        priority=job.priority,
        crashes=job.crashes,
        last_error=job.last_error,
        headers=dict(job.headers or {}),
        next_run_at=job.next_run_at,
        created_at=job.created_at,
        updated_at=job.updated_at,
    )


class Run:
    """One call of a handler, as the worker and the handler share it.

    Attributes:
        job: Its job; of a chunk the first one, whose queue and worker are those of all.
        jobs: All its jobs.
    """

    # Defaults of the class, and no slots: a run that needs none of these does not set them.
    lease_lost: bool = False
    # The worker ends, or has given the job to others: the handler is to stop at once.
    cancelled: bool = False
    # When somebody asked for the job's cancellation, by the monotonic clock.
    asked_at: float | None = None
    # The handler has returned or raised.
    handled: bool = False
    # The handler is done, and its writes may be committed at any moment.
    committing: bool = False
    # Whether it got a usable session, and a context around it; None if it used no session.
    connected: bool | None = None
    deadline: float | None = None
    told_overdue: bool = False
    # It goes on long after it was told to end.
    stuck: bool = False
    started_at: float = 0.0
    task: Any = None  # of a coroutine
    timer: Any = None  # an asyncio.Timeout, of a coroutine with a deadline
    # What the handler has said of its progress, and who sends it on.
    progress: dict[str, Any] | None = None
    tells: Callable[["Run"], None] | None = None
    _info: JobInfo | None = None

    def __init__(self, job: ClaimedJob, handler: JobType[Any]) -> None:
        self.job: ClaimedJob = job
        self.handler: JobType[Any] = handler
        self.jobs: tuple[ClaimedJob, ...] = (job,)

    def begin(self) -> None:
        """The handler is about to be called: its ``timeout`` runs from here."""
        self.started_at = time.monotonic()
        if (timeout := self.handler.options.timeout) is not None:
            self.deadline = self.started_at + timeout

    def leave(self, items: Iterable[Pending], now: float) -> None:
        """Put into settlements what the run leaves for the records of its jobs."""
        seconds = now - self.started_at if self.started_at else 0.0  # it has not begun
        for item in items:
            item.seconds, item.progress = seconds, self.progress

    @property
    def is_plain(self) -> bool:
        """Whether a handler that returned None has completed its one job, whatever the time."""
        return self.deadline is None and self.asked_at is None

    @property
    def late(self) -> bool:
        """Whether the handler's ``timeout`` is over."""
        return self.deadline is not None and time.monotonic() >= self.deadline

    def ask(self, job: ClaimedJob) -> bool:
        """Note that somebody wants a job to be cancelled; whether the whole run is to end."""
        self.asked_at = time.monotonic()
        return True

    def is_asked(self, job: ClaimedJob) -> bool:
        """Whether somebody wants a job to be cancelled."""
        return self.asked_at is not None

    def tell_asked(self) -> frozenset[str]:
        """Tell the handler the ids of its jobs that are to be cancelled."""
        return frozenset() if self.asked_at is None else frozenset({self.job.id})

    def is_given_up(self, said: object) -> bool:
        """Whether it ends as cancelled: it was asked to, and its handler did not say Complete().

        A handler that returns None may have stopped half-way, because ``ctx.cancelled`` told it to.
        """
        return self.asked_at is not None and not isinstance(said, Complete)

    def report(self, done: float, of: float | None, note: str | None) -> None:
        """See :meth:`Context.progress`."""
        if self.handler.keep is None:
            raise RuntimeError(
                f"the progress of {self.job.type!r} is not kept: register its handler with "
                f"record=timedelta(...), or make the queue with BGJob(..., record_all=...)"
            )
        said: dict[str, Any] = {"done": validation.number("done", done)}
        if of is not None:
            said["of"] = validation.number("of", of)
        if note is not None:
            said["note"] = validation.words("note", note)
        self.progress = said
        if self.tells is not None:
            self.tells(self)

    def postpone(self, seconds: float) -> None:
        """Extend the deadline, unless it has cancelled the handler already."""
        timer = self.timer
        if self.deadline is None or (timer is not None and timer.expired()):
            return
        self.deadline += seconds
        if timer is not None:
            timer.reschedule(timer.when() + seconds)

    def outcome(self, returned: object) -> Outcome:
        """The outcome of a handler that returned: the one that it returned, or Complete.

        Raises:
            TimeoutError: It returned None, after its deadline. It may have stopped half-way,
                because ``ctx.cancelled`` told it to.
            TypeError: It returned something else.
        """
        if returned is None and self.late:
            raise TimeoutError(
                f"the handler returned after its timeout of {self.handler.options.timeout:g} s, so "
                f"what it wrote is undone; one that has finished late may return Complete()"
            )
        return as_outcome(returned, self.handler.type)

    @property
    def info(self) -> JobInfo:
        """The job as handlers and observers see it; made when somebody looks."""
        if self._info is None:
            self._info = job_info(self.job)
        return self._info

    def info_of(self, job: ClaimedJob) -> JobInfo:
        """The same of one of its jobs."""
        return self.info

    @property
    def infos(self) -> tuple[JobInfo, ...]:
        """All jobs that its handler is called for."""
        return (self.info,)

    def __str__(self) -> str:
        return f"job {printable(self.job.id)}"


class Context(Generic[S]):
    """What a handler gets: its job, and a session that commits together with the job's end.

    A handler that takes chunks gets one for all the jobs of a call.
    """

    __slots__ = ("_make_session", "_run", "state")

    def __init__(self, run: Run, session: Callable[[], S], state: Any = None) -> None:
        self._run, self._make_session = run, session
        self.state: Any = state
        """What the worker's ``lifespan=`` yields; None without one."""

    @property
    def job(self) -> JobInfo:
        """The job, as it was claimed.

        Raises:
            RuntimeError: The handler takes chunks, and has :attr:`jobs`.
        """
        run = self._run
        if run.handler.options.chunk is not None:
            raise RuntimeError(
                f"the handler of {run.handler.type!r} takes chunks, and is called for several "
                f"jobs: use ctx.jobs, which handlers of single jobs have too"
            )
        return run.info

    @property
    def jobs(self) -> tuple[JobInfo, ...]:
        """The job, as a tuple of one; in a chunk all jobs of the call, in the order of the args."""
        return self._run.infos

    @property
    def session(self) -> S:
        """A Session, in a coroutine an AsyncSession. It connects at its first statement.

        What the handler writes through it commits together with the job's end, or not at all. The
        worker makes that commit; the handler's own ``commit()`` is like the end of a savepoint.

        Raises:
            RuntimeError: The handler was registered with ``session=False``.
        """
        return self._make_session()

    @property
    def wanted(self) -> tuple[str, ...]:
        """The names of the resources that the handler takes. A provider needs to open no others."""
        return self._run.handler.resources

    def progress(self, done: float, *, of: float | None = None, note: str | None = None) -> None:
        """Tell how far the handler has come, for ``jobs.record`` and the dashboard.

        The worker writes it on a connection of its own, at most once a second for each job, and
        only the latest. So others see it while the handler goes on, whatever becomes of its
        session. This call never waits. The last one stays in the job's record. ``work_one`` writes
        it when the job has ended.

        Args:
            done: How much is done.
            of: How much there is, in the same unit.
            note: What there is to say about it, at most 1,000 characters.

        Raises:
            RuntimeError: The handler keeps no record, see ``record=``; or it takes chunks.
            TypeError, ValueError: An argument is no finite number, or no text.
        """
        self._run.report(done, of, note)

    @property
    def lease_lost(self) -> bool:
        """Whether the job was taken from this worker. Then what the handler writes is undone."""
        return self._run.lease_lost

    @property
    def cancelled(self) -> bool:
        """Whether the handler should stop. Look at it in a long loop of a function.

        It is true if the job, or each job of the chunk, was cancelled; if a lease was lost; if the
        deadline has passed; and if the worker drains and its ``shutdown_timeout`` is over.

        A handler that returns None after its deadline has failed; see ``timeout``. If its job was
        cancelled, it ends as cancelled, unless the handler returns ``Complete()``.
        """
        run = self._run
        return run.cancelled or run.asked_at is not None or run.lease_lost or run.late

    @property
    def cancelled_jobs(self) -> frozenset[str]:
        """The ids of the jobs of this call that somebody wants to be cancelled.

        If the handler of a chunk has seen a job here, the job ends as cancelled, unless the handler
        returns ``Complete()`` for it. So do nothing for it, or undo in a savepoint what was done.
        """
        return self._run.tell_asked()

    @property
    def deadline(self) -> float | None:
        """When the handler's ``timeout`` ends, by ``time.monotonic()``; None without a timeout.

        Time for which the session waits for a connection is added, so it may move on.
        """
        return self._run.deadline
