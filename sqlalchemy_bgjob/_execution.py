"""Runs one claimed job: from the row's bytes to a settlement.

Written once. For a coroutine handler the whole run takes place in a greenlet, and only the
handler itself is awaited; a function runs in a thread.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Generic, TypeVar

from sqlalchemy import Connection, Engine

from ._codec import Encoded
from ._errors import describe
from ._lifecycle import ClaimedJob, Fate, Pending
from ._outcomes import (
    INTERRUPTED,
    UNCHANGED,
    Kind,
    Reschedule,
    Retry,
    Settlement,
    as_outcome,
    decide,
    failed,
)
from ._registry import JobType
from ._session import HandlerSession, RowLocked, refused
from ._statements import Statements
from .exceptions import InvalidArg
from .telemetry import JobInfo

S = TypeVar("S")

AFTER_ROW_LOCKED: Final = 5.0
"""Seconds until a job runs again whose end a user's open transaction had held up."""


@dataclass(slots=True, eq=False)
class Run:
    """One run of one job, as the worker and the handler share it."""

    job: ClaimedJob
    handler: JobType[Any]
    lease_lost: bool = False
    cancelled: bool = False
    committing: bool = False  # the handler is done, and what it did may be committed any moment
    deadline: float | None = None
    started_at: float = 0.0
    successor: "Run | None" = None  # the next run of the same job, claimed before this one was told
    untold: bool = False  # nor is its start, which comes after that
    info: JobInfo = field(init=False)

    def __post_init__(self) -> None:
        self.info = job_info(self.job)


class Context(Generic[S]):
    """What a handler is given: its job, and a session that commits together with the job's end."""

    def __init__(self, run: Run, session: Callable[[], S]) -> None:
        self._run, self._make_session = run, session

    @property
    def job(self) -> JobInfo:
        """The job: id, queue, type, attempt, last_error, times and headers."""
        return self._run.info

    @property
    def session(self) -> S:
        """A Session (in a coroutine an AsyncSession), made at the first use.

        What is written through it commits together with the job's end, or not at all.

        Raises:
            RuntimeError: The handler was registered with ``session=False``.
        """
        return self._make_session()

    @property
    def lease_lost(self) -> bool:
        """Whether the job was taken from this worker: what is done now will not be committed."""
        return self._run.lease_lost

    @property
    def cancelled(self) -> bool:
        """Whether the handler should stop: lease lost, worker stopping, or deadline passed."""
        run = self._run
        late = run.deadline is not None and time.monotonic() >= run.deadline
        return run.cancelled or run.lease_lost or late

    @property
    def deadline(self) -> float | None:
        """When the handler's ``timeout`` ends, by ``time.monotonic()``; None for never."""
        return self._run.deadline


@dataclass(frozen=True, slots=True)
class Environment:
    """Where runs take place.

    Attributes:
        connect: Takes a connection for an isolation level (None: the engine's) and a worker.
        disconnect: Gives it back, whatever state it is in.
        await_: The result of a coroutine, within a time limit in seconds.
    """

    statements: Statements
    engine: Engine
    session_factory: Callable[[], Any]
    connect: Callable[[str | None, int], Connection]
    disconnect: Callable[[Connection], None]
    await_: Callable[[Any, float | None], Any]


def execute(environment: Environment, run: Run) -> tuple[Pending, Fate | None]:
    """Run a job: its settlement, and its fate if the handler's own transaction wrote it.

    Never raises: whatever a handler does is an outcome.
    """
    job, handler = run.job, run.handler
    options = handler.options
    run.started_at = time.monotonic()
    if options.timeout is not None:
        run.deadline = run.started_at + options.timeout
    unit = HandlerSession(
        lambda: environment.connect(options.isolation_level, job.worker_id),
        environment.disconnect,
        environment.session_factory,
        environment.engine,
    )
    try:
        settlement, keep = _call(environment, run, unit)
        pending = Pending(job, settlement)
        if keep:
            # In this order, against the interruption, which looks and writes in the opposite one:
            # either it leaves this commit its time, or there is no commit.
            run.committing = True
            if run.cancelled:
                return Pending(job, INTERRUPTED), None
            try:
                return pending, unit.commit(environment.statements, pending)
            except RowLocked as error:
                # Nobody's fault: the attempt is given back, and the slot serves others meanwhile.
                pending.settlement = Settlement(
                    Kind.RETRY, delay=AFTER_ROW_LOCKED, error=describe(error), give_back=True
                )
            except BaseException as error:
                pending.settlement = _after(handler, job, refused(error))
        return pending, None
    except BaseException as error:  # an exception that can't even be looked at
        text = f"a {type(error).__name__} while the handler's end was recorded"
        return Pending(job, _decide(handler, job, Retry(None, text), None)), None
    finally:
        unit.discard()


def _call(environment: Environment, run: Run, unit: HandlerSession) -> tuple[Settlement, bool]:
    """Call the handler: what follows, and whether its writes are kept."""
    job, handler = run.job, run.handler
    try:
        args = (handler.decode(job.arg, job.headers),) if handler.takes_arg else ()
    except InvalidArg as error:
        # No attempt will ever decode it.
        return Settlement(Kind.DEAD, error=describe(error)), False
    except BaseException as error:
        return _after(handler, job, error), False

    def session() -> Any:
        if not handler.options.session:
            raise RuntimeError(f"the handler of {handler.type!r} has session=False")
        return unit.session

    try:
        if handler.options.session:
            unit.enter_scope()
        returned = handler.function(Context(run, session), *args)
        if handler.is_coroutine:
            returned = environment.await_(returned, handler.options.timeout)
        outcome, keep = as_outcome(returned, handler.type), True
    except BaseException as error:
        outcome, keep = failed(error), False
    arg: Encoded | None = None
    if isinstance(outcome, Reschedule) and outcome.arg is not UNCHANGED:
        try:
            arg = handler.codec.encode(outcome.arg)
        except Exception as error:
            return _after(handler, job, error), False
    return _decide(handler, job, outcome, arg), keep


def _after(handler: JobType[Any], job: ClaimedJob, error: BaseException) -> Settlement:
    return _decide(handler, job, failed(error), None)


def _decide(
    handler: JobType[Any], job: ClaimedJob, outcome: Any, arg: Encoded | None
) -> Settlement:
    options = handler.options
    return decide(
        outcome,
        attempt=job.attempt,
        max_attempts=options.max_attempts,
        policy=options.retry,
        arg=arg,
    )


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
