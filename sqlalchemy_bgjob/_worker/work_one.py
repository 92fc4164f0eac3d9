"""work_one: one job, run and settled in a transaction that belongs to the caller."""

import logging
import os
import time
from collections.abc import Callable, Collection
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, NestedTransaction
from sqlalchemy.exc import DBAPIError

from .._db.errors import lost_connection, sqlstate, summary
from .._db.forks import kept_from_children, leave_if_forked
from .._db.targets import Unit, is_autocommit, run_in
from .._drafts import validation
from .._drafts.ids import new_worker_id
from .._handlers.options import HandlerOptions
from .._handlers.outcomes import (
    HAND_BACK,
    Cancelled,
    Expired,
    Kind,
    MoveToDlq,
    Outcome,
    Reschedule,
    Settlement,
    crashed_too_often,
    ends_unstarted,
    unknown_type,
)
from .._handlers.registry import JobType, Registry
from .._job_context import running
from .._lifecycle import claim, settle
from .._lifecycle.batches import batches_of, finish
from .._lifecycle.claim import ClaimedJob
from .._lifecycle.row_errors import RowKept, RowMissing
from .._lifecycle.settle import Pending
from .._sql import Statements, statements_of
from ..exceptions import UnknownType
from ..models import Models
from ..settings import WorkerSettings
from .call import begin, check_session_is_wanted, conclude
from .callers_session import CallersSession
from .chunk import run_of
from .run import Run
from .transaction import TransactionEnded

logger = logging.getLogger("sqlalchemy_bgjob")

_GRACE = WorkerSettings().unknown_type_grace
_NO_SAVEPOINT = frozenset({"3B001", "25P01"})
"""No such savepoint, or no transaction at all: it was ended behind the caller's back."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which job is worked on: the first one of a queue, or the one that has this id."""

    queue: str | None = None
    id: str | None = None
    only_due: bool = True

    @classmethod
    def of(cls, queue: object, id: object, *, only_due: bool = True) -> "Wanted":
        """Check what a caller has given."""
        if (queue is None) == (id is None):
            raise TypeError("work_one takes a queue or an id=, and not both")
        if id is not None:
            return cls(id=validation.job_id(id), only_due=only_due)
        if not only_due:
            raise TypeError("due=False needs id=: of a queue only due jobs are taken")
        return cls(validation.name("queue", queue))

    def claim(self, connection: Connection, statements: Statements) -> ClaimedJob | None:
        """Claim it for a worker that has no row. The caller commits."""
        me = new_worker_id()
        if self.id is not None:
            return claim.claim_by_id(
                connection, statements, id=self.id, worker_id=me, only_due=self.only_due
            )
        assert self.queue is not None
        jobs = claim.claim(connection, statements, queue=self.queue, limit=1, worker_id=me)
        return jobs[0] if jobs else None


def work_one(
    models: Models,
    registry: Registry,
    target: Any,
    queue: str | None,
    handler: Callable[..., Any] | None,
    session_factory: Callable[[], Any] | None,
    state: Any,
    *,
    id: str | None = None,
    due: bool = True,
) -> Any:
    """See :meth:`sqlalchemy_bgjob.BGJob.work_one`."""
    wanted = Wanted.of(queue, id, only_due=due)
    given = None if handler is None else _as_job_type(models, registry, handler)

    def work(unit: Unit) -> Outcome | None:
        return work_in(
            unit.connection,
            models,
            registry,
            wanted,
            given,
            session_factory=session_factory,
            state=state,
        )

    return run_in(target, models, work, call="BGJob.work_one")


def work_in(
    connection: Connection,
    models: Models,
    registry: Registry,
    wanted: Wanted,
    handler: JobType[Any] | None = None,
    *,
    session_factory: Callable[[], Any] | None = None,
    on_error: Callable[[BaseException], None] | None = None,
    state: Any = None,
) -> Outcome | None:
    """Work on one job in the connection's transaction; None if there is none.

    *on_error* is called with what a handler has raised that is no outcome, and with an UnknownType.
    *state* is ``ctx.state``.
    """
    one = _WorkOne(connection, models, registry, session_factory, on_error, state)
    return one.run(wanted, handler)


def _as_job_type(models: Models, registry: Registry, handler: Callable[..., Any]) -> JobType[Any]:
    if isinstance(handler, JobType):
        return handler
    return JobType(models, "*", "*", handler, HandlerOptions(), registry.additions)


class _WorkOne:
    """One job in one caller's transaction."""

    def __init__(
        self,
        connection: Connection,
        models: Models,
        registry: Registry,
        session_factory: Callable[[], Any] | None,
        on_error: Callable[[BaseException], None] | None,
        state: Any,
    ) -> None:
        self._connection, self._registry = connection, registry
        self._on_error, self._state = on_error, state
        self._statements = statements_of(models)
        self._process = os.getpid()
        self._session_factory = session_factory

    def run(self, wanted: Wanted, given: JobType[Any] | None) -> Outcome | None:
        connection = self._connection
        if is_autocommit(connection):
            raise ValueError(
                "work_one needs a transaction, and this connection is in AUTOCOMMIT; "
                "use execution_options(isolation_level='READ COMMITTED')"
            )
        if given is not None and not self._can_run(given):
            raise TypeError(
                f"{given!r} is a coroutine, and this connection is synchronous; "
                f"use an AsyncSession or AsyncConnection"
            )
        job = wanted.claim(connection, self._statements)
        if job is None:
            return None
        handler = given or self._registry.find(job.type, job.queue)
        job.served_by(handler, self._statements.tables.recording)
        on_expiry = None if handler is None else handler.options.on_expiry
        end = ends_unstarted(cancelled=job.cancelled, expired=job.expired, on_expiry=on_expiry)
        if end is not None:
            self._settle(job, end)
            return Cancelled() if end.kind is Kind.CANCELLED else Expired()
        if handler is None or not self._can_run(handler):
            settlement = unknown_type(job.type, job.unknown_for or 0.0, _GRACE)
            dead = settlement.kind is Kind.DEAD
            self._settle(job, settlement)
            self._tell(UnknownType(job.type, _GRACE))
            return MoveToDlq(settlement.error) if dead else Reschedule(settlement.delay or 0.0)
        options = handler.options
        spent = crashed_too_often(job.attempt, options.max_attempts, job.crashes, job.last_error)
        if spent is not None:
            self._settle(job, spent)
            return MoveToDlq(spent.error)
        run = run_of(job, handler)
        run.begin()
        return self._call(run)

    def _can_run(self, handler: JobType[Any]) -> bool:
        return not handler.is_coroutine or self._connection.dialect.is_async

    def _call(self, run: Run) -> Outcome:
        """Run the handler inside a savepoint, which is released when its writes are to be kept."""
        handler = run.handler
        own = CallersSession(
            self._connection, self._session_factory, is_coroutine=handler.is_coroutine
        )
        with own.in_scope() if handler.options.session else nullcontext():
            return self._call_with(run, own)

    def _call_with(self, run: Run, own: CallersSession) -> Outcome:
        savepoint = self._connection.begin_nested()
        try:
            return self._end_with(run, own, savepoint)
        except BaseException as raised:
            # A coroutine that is closed, by a GeneratorExit, may await nothing more.
            if not isinstance(raised, Exception | GeneratorExit):
                self._hand_back(run, own, savepoint)
            raise

    def _end_with(self, run: Run, own: CallersSession, savepoint: NestedTransaction) -> Outcome:
        connection, job = self._connection, run.job

        def get_session() -> Any:
            check_session_is_wanted(run)
            return own.session

        returned: Any = None
        error: Exception | None = None
        try:
            returned = self._returned(run, get_session)
        except Exception as raised:
            error = raised
        (end,) = conclude(run, returned, error)
        if end.keeps_writes:
            try:
                own.commit(outcome_was_named=returned is not None)
                # Within the savepoint: if this fails, a handler's change to the row is undone too.
                self._settle(job, end.settlement, run)
                savepoint.commit()
                self._tell(end.error)
                return end.outcome
            except Exception as refusal:
                (end,) = conclude(run, None, refusal)
        self._discard(own, savepoint)
        if connection.invalidated or connection.get_nested_transaction() is None:
            # The caller's transaction itself is gone.
            raise end.error or TransactionEnded
        _undo(savepoint, end.error)
        self._settle(job, end.settlement, run)
        self._tell(end.error)
        return end.outcome

    def _hand_back(self, run: Run, own: CallersSession, savepoint: NestedTransaction) -> None:
        """Undo an interrupted run: whoever catches what is raised may go on, and commit."""
        if not savepoint.is_active:
            return  # the run is settled, or undone; a savepoint that is left is the caller's own
        with suppress(Exception):  # the transaction itself is lost
            self._discard(own, savepoint)
            savepoint.rollback()
            self._settle(run.job, HAND_BACK)

    def _discard(self, own: CallersSession, savepoint: NestedTransaction) -> None:
        """End the handler's session, and the savepoints within ours that stay in the way."""
        own.discard()
        while (inner := self._connection.get_nested_transaction()) not in (None, savepoint):
            inner.close()  # it could not be released

    def _tell(self, error: BaseException | None) -> None:
        if self._on_error is not None and error is not None and not isinstance(error, Outcome):
            self._on_error(error)

    def _returned(self, run: Run, get_session: Callable[[], Any]) -> Any:
        """What the handler returns, in the process that has called it: a forked child ends."""
        type, token = run.job.type, running.set(run)
        try:
            with kept_from_children(self._connection):
                returned = begin(run, get_session, self._state)
                if run.handler.is_coroutine:
                    returned = _await(returned, run.handler.options.timeout)
        except BaseException as error:
            leave_if_forked(self._process, type, error)
            raise
        finally:
            running.reset(token)
        leave_if_forked(self._process, type)
        return returned

    def _settle(self, job: ClaimedJob, settlement: Settlement, run: Run | None = None) -> None:
        """Write the settlement of a job whose row this transaction has locked.

        Raises:
            RowMissing, RowKept: The handler has changed the row, or a trigger keeps it.
        """
        pending = Pending(job, settlement)
        if run is not None:
            run.leave([pending], time.monotonic())
        held, _ = settle.write(self._connection, self._statements, [pending])
        if not held:  # a transaction of somebody else's may refer to it
            settle.lock(self._connection, self._statements, [pending])
            held, _ = settle.write(self._connection, self._statements, [pending])
        if not held:
            kept = settle.still_holds(self._connection, self._statements, pending)
            raise RowKept if kept else RowMissing
        if batches := batches_of([pending]):
            self._finish(batches)

    def _finish(self, batches: Collection[str]) -> None:
        """Look before the commit, which is the caller's: what others end meanwhile is not seen."""
        try:
            finish(self._connection, self._statements, batches)
        except DBAPIError as error:
            if lost_connection(error):
                raise
            logger.warning("batch %s was not finished: %s", *batches, summary(error))


def _undo(savepoint: NestedTransaction, error: BaseException | None) -> None:
    try:
        savepoint.rollback()
    except DBAPIError as gone:
        if sqlstate(gone) in _NO_SAVEPOINT:
            raise TransactionEnded from error
        raise


def _await(awaitable: Any, timeout: float | None) -> Any:
    from .._db.greenlet import await_within  # noqa: PLC0415 - greenlet, which this caller has

    return await_within(awaitable, timeout)
