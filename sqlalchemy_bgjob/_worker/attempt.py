"""Runs one claimed job: from the row's bytes to a settlement.

Functions, which run in threads, and coroutines share this code. A session, and the job as plain
data, are made on demand: a job that needs neither does not pay for them.
"""

import os
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final

from sqlalchemy import Connection, Engine

from .._db.forks import leave_if_forked
from .._db.frames import causes
from .._handlers.around import Around
from .._handlers.lifespan import Lifespan
from .._handlers.outcomes import (
    CANCELLED,
    COMPLETED,
    INTERRUPTED,
    Outcome,
    Settlement,
    put_back,
)
from .._job_context import running
from .._lifecycle.claim import ClaimedJob
from .._lifecycle.row_errors import RowLocked, RowMissing, RunUndone
from .._lifecycle.settle import Pending
from .._points import HANDLER
from .._sql import Statements
from ..exceptions import NoContextManager
from .call import Conclusion, begin, cancelled, check_session_is_wanted, conclude, give_up
from .handler_session import HandlerSession, JobEnded, explain_commit_error
from .permits import NoConnectionInTime
from .run import Run

AFTER_ROW_LOCKED: Final = 5.0
"""Seconds until a job runs again whose settlement met a lock of a user's transaction."""


@dataclass(frozen=True, slots=True)
class Environment:
    """Where runs take place.

    Attributes:
        connect: Takes a connection for an isolation level (None: the engine's) and a worker id. It
            may wait for other handlers, until a monotonic time (None: the handler sets no limit).
        disconnect: Gives a connection back, whatever state it is in.
        around: Makes the context that is entered around run and commit, if there is one.
        lifespan: Has what handlers find as ``ctx.state``.
        scoped: Whether the handler's session is a scoped_session's.
        process: The pid of the process that runs the worker.
    """

    statements: Statements
    engine: Engine
    session_factory: Callable[[], Any]
    connect: Callable[[str | None, int, float | None], Connection]
    disconnect: Callable[[Connection], None]
    around: Callable[[], Any] | None = None
    lifespan: Lifespan = Lifespan(None, is_async=False)  # noqa: RUF009 - it stays empty
    scoped: bool = field(init=False)
    process: int = field(init=False, default_factory=os.getpid)

    def __post_init__(self) -> None:
        scoped = getattr(self.session_factory, "registry", None) is not None
        object.__setattr__(self, "scoped", scoped)


class Attempt:
    """One call of a handler, from the row's bytes to a settlement.

    :meth:`begin` calls the function; a coroutine that it returns is awaited by the caller.
    :meth:`end` settles. It needs a thread or a greenlet only if :attr:`opened`.
    """

    __slots__ = ("_environment", "_over", "_run", "_unit", "around")

    def __init__(self, environment: Environment, run: Run) -> None:
        self._environment, self._run = environment, run
        make = environment.around
        self.around = None if make is None else Around(make, run.job.id)
        self._unit: HandlerSession | None = None
        self._over = False

    async def begin_around(self) -> Any:
        """For a coroutine: enter the context around it, then do what :meth:`begin` does."""
        assert self.around is not None
        self._run.begin()
        await self.around.enter_async()
        return await self.begin()

    def begin(self) -> Any:
        """Decode the arg and call the function; returns or raises as the function does."""
        run = self._run
        if self.around is None:
            run.begin()
        if self._environment.scoped and run.handler.options.session:
            self._make_unit().enter_scope()  # before the handler first calls it
        return begin(run, self._session, self._environment.lifespan.state)

    def _session(self) -> Any:
        check_session_is_wanted(self._run)
        if self._unit is None and self._over:
            raise JobEnded
        return (self._unit or self._make_unit()).session

    def _make_unit(self) -> HandlerSession:
        environment = self._environment
        self._unit = HandlerSession(
            self._connect,
            environment.disconnect,
            environment.session_factory,
            environment.engine,
        )
        return self._unit

    def _connect(self) -> Connection:
        """A connection for the session; the deadline moves on by the time that this takes."""
        run, connect = self._run, self._environment.connect
        level, worker_id = run.handler.options.isolation_level, run.job.worker_id
        if run.deadline is None or run.late or self._over:
            return connect(level, worker_id, None)
        asked_at = time.monotonic()
        connection = connect(level, worker_id, run.deadline)
        run.postpone(time.monotonic() - asked_at)
        return connection

    @property
    def opened(self) -> bool:
        """Whether there is a session, which means that :meth:`end` may wait for the database."""
        return self._unit is not None

    def execute(self) -> list[Pending]:
        """Run a function, from :meth:`begin` to :meth:`end`, in a context that is its own."""
        running.set(self._run)
        around = self.around
        if around is not None:
            return self._execute_around(around)
        try:
            returned = self.begin()
        except BaseException as error:
            return self.end(None, error)
        return self.end(returned, None)

    def _execute_around(self, around: Around) -> list[Pending]:
        returned: Any = None
        error: BaseException | None = None
        try:
            self._run.begin()
            around.enter()
            returned = self.begin()
        except BaseException as raised:
            error = raised
        ended = self.end(returned, error)
        around.leave(error)
        return ended

    def end(self, returned: Any, error: BaseException | None) -> list[Pending]:
        """What became of the jobs. Never raises."""
        self._over = True
        run, unit = self._run, self._unit
        run.handled = True
        leave_if_forked(self._environment.process, run.job.type, error)
        if HANDLER.listeners:
            _reached(run)
        if returned is None and error is None and unit is None and run.is_plain:
            return [Pending(run.job, COMPLETED)]
        said = returned if error is None else error
        try:
            if run.is_given_up(said):
                return _pending(cancelled(run))
            if unit is not None and error is not None:
                unit.complete(error)
            excuse = self._excuse(error)
            if excuse is not None and returned is None and not isinstance(error, Outcome):
                return self._put_off(excuse, run.jobs)
            ends = conclude(run, returned, error)
            kept = _pending(end for end in ends if end.keeps_writes)
            if not kept or unit is None:
                return _pending(ends)
            rest = _pending(end for end in ends if not end.keeps_writes)
            # Set one flag, then read the others: an interruption does so in the opposite order.
            # Either it leaves this commit its time, or there is no commit.
            run.committing = True
            if run.cancelled:
                return self._all(INTERRUPTED)
            if run.is_given_up(said):
                return [*(Pending(item.job, CANCELLED) for item in kept), *rest]
            return [*self._commit(unit, kept, outcome_was_named=returned is not None), *rest]
        except BaseException as strange:
            return _pending(give_up(run, strange))
        finally:
            if unit is not None:
                if run.connected is None:
                    run.connected = unit.reached or None
                unit.discard()

    def _all(self, settlement: Settlement) -> list[Pending]:
        return [Pending(job, settlement) for job in self._run.jobs]

    def _commit(
        self, unit: HandlerSession, items: list[Pending], *, outcome_was_named: bool
    ) -> list[Pending]:
        run = self._run
        run.leave(items, time.monotonic())
        by_id = {item.job.id: item for item in items}
        try:
            fate = unit.commit(
                self._environment.statements, items, outcome_was_named=outcome_was_named
            )
            for item in items:
                item.fate = fate
        except RowLocked as locked:
            # Nobody's fault: the attempt is refunded, and the slot serves others meanwhile.
            for id, item in by_id.items():
                item.settlement = put_back(locked, AFTER_ROW_LOCKED if id in locked.ids else 0.0)
        except BaseException as refusal:
            unit.complete(refusal)
            excuse = self._excuse(refusal)
            if excuse is not None:  # the last flush sent its first statement, or its first write
                return self._put_off(excuse, [item.job for item in items])
            for end in conclude(run, None, explain_commit_error(refusal)):
                if (failed := by_id.get(end.job.id)) is not None:
                    failed.settlement = end.settlement
            if isinstance(refusal, RowMissing):
                # Most probably their leases were lost. What was undone of the others is no failure.
                for id in by_id.keys() - refusal.ids:
                    by_id[id].settlement = put_back(RunUndone(len(refusal.ids)))
        return items

    def _excuse(self, error: BaseException | None) -> BaseException | None:
        """Why the handler is not to blame: no context, no connection, or an unfit session.

        Its deadline, or a timeout that it set, may have come while it waited for a connection.
        """
        unit = self._unit
        if unit is None:
            return error if isinstance(error, NoContextManager) else None
        lacks = unit.unconnected
        if isinstance(lacks, Exception):
            return lacks
        if lacks is not None and (self._run.late or _stems_from(error, type(lacks))):
            return NoConnectionInTime()
        return None if error is None else unit.unfit(error)

    def _put_off(self, excuse: BaseException, jobs: Iterable[ClaimedJob]) -> list[Pending]:
        """Refund the attempt; the worker decides how long the jobs wait."""
        self._run.connected = False
        settlement = put_back(excuse)
        return [Pending(job, settlement, error=excuse) for job in jobs]


def _pending(ends: Iterable[Conclusion]) -> list[Pending]:
    return [Pending(end.job, end.settlement) for end in ends]


def _reached(run: Run) -> None:
    for job in run.jobs:
        HANDLER.reached(job)


def _stems_from(error: BaseException | None, cancellation: type[BaseException]) -> bool:
    """Whether an error was caused by a cancellation, as asyncio's TimeoutError is.

    A bare cancellation does not count: the application itself has cancelled the task.
    """
    if error is None or isinstance(error, cancellation):
        return False
    # By type, not identity: the wait may have been in another task of the handler.
    return any(isinstance(cause, cancellation) for cause in causes(error))
