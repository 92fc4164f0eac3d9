"""work_one: one job, run and settled in a transaction that belongs to the caller."""

import os
import sys
import time
from collections.abc import Callable
from typing import Any

from sqlalchemy import Connection, NestedTransaction
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from .. import _lifecycle as lifecycle
from .._db.errors import sqlstate
from .._db.forks import Forked, kept_from_children, leave_if_forked
from .._db.targets import Unit, run_in
from .._drafts import validation
from .._drafts.codec import Encoded
from .._drafts.ids import new_worker_id
from .._handlers.outcomes import (
    UNCHANGED,
    Kind,
    MoveToDlq,
    Outcome,
    Reschedule,
    Retry,
    Settlement,
    crashed_too_often,
    failed,
    unknown_type,
)
from .._handlers.registry import HandlerOptions, JobType, Registry
from .._lifecycle import ClaimedJob, Pending
from .._lifecycle.row_errors import RowKept, RowMissing
from .._sql import statements_of
from ..exceptions import InvalidArg
from ..models import Models
from ..retry import DEFAULT
from ..settings import DEFAULT_MAX_ATTEMPTS, WorkerSettings
from .attempt import settlement_for
from .permits import is_autocommit
from .run import Context, Run
from .session_events import watch
from .transaction import TransactionEnded
from .writes import Writes

_GRACE = WorkerSettings().unknown_type_grace
_NO_SAVEPOINT = frozenset({"3B001", "25P01"})
"""No such savepoint, or no transaction at all: it was ended behind the caller's back."""


def work_one(
    models: Models,
    registry: Registry,
    target: Any,
    queue: str,
    handler: Callable[..., Any] | None,
    session_factory: Callable[[], Any] | None,
) -> Any:
    """See :meth:`sqlalchemy_bgjob.BGJob.work_one`."""
    queue = validation.name("queue", queue)
    given = None if handler is None else _as_job_type(models, queue, handler)

    def work(unit: Unit) -> Outcome | None:
        one = _WorkOne(unit.connection, models, registry, session_factory)
        return one.run(queue, given)

    return run_in(target, models, work, call="BGJob.work_one")


def _as_job_type(models: Models, queue: str, handler: Callable[..., Any]) -> JobType[Any]:
    if isinstance(handler, JobType):
        return handler
    options = HandlerOptions(
        max_attempts=DEFAULT_MAX_ATTEMPTS,
        retry=DEFAULT,
        timeout=None,
        isolation_level=None,
        session=True,
    )
    return JobType(models, "*", queue, handler, options)


class _WorkOne:
    """One job in one caller's transaction."""

    def __init__(
        self,
        connection: Connection,
        models: Models,
        registry: Registry,
        session_factory: Callable[[], Any] | None,
    ) -> None:
        self._connection, self._registry = connection, registry
        self._statements = statements_of(models)
        self._process = os.getpid()
        self._session_factory = session_factory

    def run(self, queue: str, given: JobType[Any] | None) -> Outcome | None:
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
        claimed = lifecycle.claim(
            connection, self._statements, queue=queue, limit=1, worker_id=new_worker_id()
        )
        if not claimed:
            return None
        job = claimed[0]
        handler = given or self._registry.find(job.type, queue)
        if handler is None or not self._can_run(handler):
            settlement = unknown_type(job.type, job.unknown_for or 0.0, _GRACE)
            dead = settlement.kind is Kind.DEAD
            self._settle(job, settlement)
            return MoveToDlq(settlement.error) if dead else Reschedule(settlement.delay or 0.0)
        if handler.is_coroutine and not connection.dialect.is_async:
            raise TypeError(
                f"the handler of {handler.type!r} is a coroutine; give work_one an AsyncSession or "
                f"AsyncConnection"
            )
        options = handler.options
        spent = crashed_too_often(job.attempt, options.max_attempts, job.crashes, job.last_error)
        if spent is not None:
            self._settle(job, spent)
            return MoveToDlq(spent.error)
        run = Run(job, handler)
        run.started_at = time.monotonic()
        if options.timeout is not None:
            run.deadline = run.started_at + options.timeout
        return self._call(run)

    def _can_run(self, handler: JobType[Any]) -> bool:
        return not handler.is_coroutine or self._connection.dialect.is_async

    def _call(self, run: Run) -> Outcome:
        """Run the handler inside a savepoint, which is released when its writes are to be kept."""
        connection = self._connection
        job, handler = run.job, run.handler
        savepoint = connection.begin_nested()
        session: Any = None
        writes: Writes | None = None

        def get_session() -> Any:
            nonlocal session, writes
            if not handler.options.session:
                raise RuntimeError(f"the handler of {handler.type!r} has session=False")
            if session is None:
                session, writes = self._make_session(handler)
            return session

        try:
            try:
                args = (handler.decode(job.arg, job.headers),) if handler.takes_arg else ()
            except InvalidArg as error:
                raise MoveToDlq(error) from error
            returned = self._returned(run, get_session, args)
            outcome = run.outcome(returned)
            settlement = settlement_for(handler, job, outcome, _new_arg(handler, outcome))
            if writes is not None:
                _sync(session).commit()
                writes.check(outcome_was_named=returned is not None)
                _close(session)
            # Within the savepoint: if the handler has changed its own row, that is undone with it.
            self._settle(job, settlement)
            savepoint.commit()
            return outcome
        except Exception as error:
            if writes is not None:
                writes.stop()
            if session is not None:
                _close(session)
            while (inner := connection.get_nested_transaction()) not in (None, savepoint):
                inner.close()  # a savepoint that could not be released stays in the way
            if connection.invalidated or inner is None:
                raise  # the caller's transaction itself is gone
            _undo(savepoint, error)
            try:
                outcome = failed(error)
                settlement = settlement_for(handler, job, outcome, _new_arg(handler, outcome))
            except Exception as second:
                outcome = Retry(None, second)
                settlement = settlement_for(handler, job, outcome, None)
            self._settle(job, settlement)
            return outcome

    def _returned(self, run: Run, get_session: Callable[[], Any], args: tuple[Any, ...]) -> Any:
        """What the handler returns, in the process that has called it and in no other."""
        handler, type = run.handler, run.job.type
        try:
            with kept_from_children(self._connection):
                returned = handler.function(Context(run, get_session), *args)
                if handler.is_coroutine:
                    returned = _await(returned, handler.options.timeout)
        except BaseException as error:
            leave_if_forked(self._process, type, error)
            raise
        leave_if_forked(self._process, type)
        return returned

    def _make_session(self, handler: JobType[Any]) -> tuple[Any, Writes]:
        connection = self._connection
        is_async = connection.dialect.is_async
        factory = self._session_factory
        if factory is None:
            factory = sys.modules["sqlalchemy.ext.asyncio"].AsyncSession if is_async else Session
        # A scoped_session may hold the caller's own session: the handler gets another one.
        outer = getattr(factory, "session_factory", factory)()
        session = _sync(outer)
        session.join_transaction_mode = "create_savepoint"
        session.twophase = False
        # The caller's transaction has written already, so the server can't be asked what this has.
        writes = Writes(session, lambda: False)

        def get_bind(*args: Any, **kwargs: Any) -> Connection:
            if os.getpid() != self._process:
                raise Forked
            writes.bound(args, kwargs)
            return connection

        session.get_bind = get_bind  # type: ignore[method-assign]
        watch(session, writes)
        if not handler.is_coroutine:
            outer = session  # a function awaits nothing
        return outer, writes

    def _settle(self, job: ClaimedJob, settlement: Settlement) -> None:
        """Write the settlement of a job whose row this transaction has locked.

        Raises:
            RowMissing, RowKept: The handler has changed the row, or a trigger keeps it.
        """
        pending = Pending(job, settlement)
        held, _ = lifecycle.write(self._connection, self._statements, [pending], wait=True)
        if not held:
            kept = lifecycle.holds(self._connection, self._statements, pending)
            raise RowKept if kept else RowMissing


def _undo(savepoint: NestedTransaction, error: Exception) -> None:
    try:
        savepoint.rollback()
    except DBAPIError as gone:
        if sqlstate(gone) in _NO_SAVEPOINT:
            raise TransactionEnded from error
        raise


def _new_arg(handler: JobType[Any], outcome: Outcome) -> Encoded | None:
    if isinstance(outcome, Reschedule) and outcome.arg is not UNCHANGED:
        return handler.codec.encode(outcome.arg)
    return None


def _sync(session: Any) -> Session:
    result: Session = getattr(session, "sync_session", session)
    return result


def _close(session: Any) -> None:
    _sync(session).close()
    watch(_sync(session), None)


def _await(awaitable: Any, timeout: float | None) -> Any:
    from .._db.greenlet import await_within  # noqa: PLC0415 - greenlet, which this caller has

    return await_within(awaitable, timeout)
