"""What a test asks and does about jobs, in its own transaction: :class:`JobKit`.

Nothing is simulated: a job is enqueued, claimed, run and settled by the statements of production,
in the transaction of the test, which rolls it all back.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Any, Final

from sqlalchemy import Engine, inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from .._db.targets import Unit, run_in
from .._drafts import validation
from .._drafts.unique import split
from .._enqueue.one import JobRef
from .._handlers.outcomes import Outcome
from .._handlers.registry import JobType
from .._lifecycle.claim import ClaimedJob
from .._sql import statements_of
from .._sql.words import parameters
from .._worker.call import begin, check_session_is_wanted
from .._worker.run import Run
from .._worker.work_one import Wanted as WantedJob
from .._worker.work_one import work_in
from ..bgjob import BGJob
from ..exceptions import InvalidArg
from .matching import ANY, EnqueuedJob, Wanted, difference, explain

MOST: Final = 1_000
"""Jobs after which :meth:`JobKit.work_due` takes it that they enqueue each other without end."""


class JobKit:
    """For the tests of an application; the pytest plugin gives one as the fixture ``bgjob``.

    Each *target* is a Session or Connection, or one of their asyncio twins: then await the result.
    With a session, what a job has changed is seen on its objects afterwards.

    Args:
        jobs: The application's BGJob.

    Attributes:
        state: What handlers find as ``ctx.state``, in the place of what ``lifespan=`` of a worker
            yields; a test may set it.
    """

    def __init__(self, jobs: BGJob[Any, Any]) -> None:
        self.jobs = jobs
        self.state: Any = None
        self._statements = statements_of(jobs.models)

    # ---- asking ---------------------------------------------------------------------------------

    def all_enqueued(self, target: Any, handler: JobType[Any] | None = None) -> Any:
        """All jobs, or those of a handler: a list of ``EnqueuedJob`` in the order of work."""

        def look(unit: Unit) -> list[EnqueuedJob]:
            found = self._enqueued(unit)
            return [job for job in found if handler is None or job.type == handler.type]

        return run_in(target, self.jobs.models, look, call="JobKit.all_enqueued")

    def assert_enqueued(
        self, target: Any, handler: JobType[Any] | str, arg: Any = ANY, **wanted: Any
    ) -> Any:
        """The first job that fits; else an AssertionError that shows the nearest ones.

        Args:
            target: Where to look.
            handler: A handler, or the name of a type.
            arg: The whole arg, or a mapping of some of its fields.
            **wanted: ``queue``, ``id``, ``priority``, ``headers`` (some of them), ``delay``
                (seconds or a timedelta), ``run_at``, ``unique`` (a key, or a Unique of a key and
                its scope), and ``count``: then exactly N jobs fit. Anything else is a field of the
                arg: ``order_id=7``.
        """
        looked_for = Wanted.of(handler, arg, wanted)

        def look(unit: Unit) -> EnqueuedJob:
            jobs = self._enqueued(unit)
            fitting = [job for job in jobs if not difference(job, looked_for)]
            if fitting and looked_for.count in (None, len(fitting)):
                return fitting[0]
            raise AssertionError(explain(jobs, fitting, looked_for))

        return run_in(target, self.jobs.models, look, call="JobKit.assert_enqueued")

    def refute_enqueued(
        self, target: Any, handler: JobType[Any] | str, arg: Any = ANY, **wanted: Any
    ) -> Any:
        """An AssertionError if a job fits; the arguments are those of :meth:`assert_enqueued`."""
        if "count" in wanted:
            raise TypeError("refute_enqueued takes no count: no job at all may fit")
        looked_for = Wanted.of(handler, arg, wanted)

        def look(unit: Unit) -> None:
            fitting = [job for job in self._enqueued(unit) if not difference(job, looked_for)]
            if fitting:
                raise AssertionError(f"a job fits {looked_for}: {fitting[0]}")

        return run_in(target, self.jobs.models, look, call="JobKit.refute_enqueued")

    def _enqueued(self, unit: Unit) -> list[EnqueuedJob]:
        return [
            EnqueuedJob(
                id=row.id,
                queue=row.queue,
                type=row.type,
                arg=self._decoded(row),
                priority=row.priority,
                headers=row.headers or {},
                delay=(row.next_run_at - row.created_at).total_seconds(),
                run_at=row.next_run_at,
                attempt=row.attempt,
                running=row.claimed_by is not None,
                unique=key,
                unique_scope=scope,
            )
            for row in unit.execute(self._statements.operate.live_jobs)
            for key, scope in [split(row.unique_key, row.period_key)]
        ]

    def _decoded(self, row: Any) -> Any:
        try:
            return self.jobs.decode(row)
        except InvalidArg:  # of another job, perhaps, than the one that is looked for
            return row.arg

    # ---- working --------------------------------------------------------------------------------

    def work_due(
        self,
        target: Any,
        *queues: str,
        raise_errors: bool = True,
        session_factory: Callable[[], Any] | None = None,
    ) -> Any:
        """Run all due jobs, also those that they enqueue, and settle them; their outcomes.

        All happens in the target's own transaction, each handler in a savepoint of it. A job that
        is put off, by a retry say, is not due again before :meth:`travel`.

        Args:
            target: A Session or Connection in a transaction, or an asyncio twin.
            *queues: Of these alone.
            raise_errors: Raise what a handler raised that is no outcome, once its job is settled
                as failed; and an UnknownType, where no handler is registered.
            session_factory: Makes ``ctx.session``, as for ``work_one``.

        Raises:
            TypeError: The target is an Engine, whose transaction would be over.
            RuntimeError: A thousand jobs have run, and there are more.
        """
        if _is_engine(target):
            raise TypeError("work_due works in a transaction of yours: give it a Session")
        models, registry = self.jobs.models, self.jobs.registry

        def work(unit: Unit) -> list[Outcome]:
            outcomes: list[Outcome] = []
            errors: list[BaseException] = []
            passed_by: set[str] = set()  # all that is due there is locked by others
            while (queue := self._next_queue(unit, queues, passed_by)) is not None:
                if len(outcomes) >= MOST:
                    raise RuntimeError(
                        f"{MOST} jobs have run, and there are more: do they enqueue each other?"
                    )
                outcome = work_in(
                    unit.connection,
                    models,
                    registry,
                    WantedJob(queue),
                    session_factory=session_factory,
                    on_error=errors.append,
                    state=self.state,
                )
                if outcome is None:
                    passed_by.add(queue)
                    continue
                passed_by.clear()
                outcomes.append(outcome)
                if raise_errors and errors:
                    break
            if isinstance(unit.target, Session):
                _refresh(unit.target)
            if raise_errors and errors:
                raise errors[0]
            return outcomes

        return run_in(target, models, work, call="JobKit.work_due")

    def work_one(
        self,
        target: Any,
        job: JobRef | str,
        *,
        due: bool = True,
        raise_errors: bool = True,
        session_factory: Callable[[], Any] | None = None,
    ) -> Any:
        """Run one certain job and settle it; its outcome, or None if there is no such job.

        Args:
            target: As for :meth:`work_due`.
            job: What ``enqueue`` has returned, or an id.
            due: False takes it also if it is scheduled for later.
            raise_errors: As for :meth:`work_due`.
            session_factory: Makes ``ctx.session``, as for ``work_one`` of the application.
        """
        if _is_engine(target):
            raise TypeError("work_one works in a transaction of yours: give it a Session")
        wanted = WantedJob.of(None, job.id if isinstance(job, JobRef) else job, only_due=due)

        def work(unit: Unit) -> Outcome | None:
            errors: list[BaseException] = []
            outcome = work_in(
                unit.connection,
                self.jobs.models,
                self.jobs.registry,
                wanted,
                session_factory=session_factory,
                on_error=errors.append,
                state=self.state,
            )
            if isinstance(unit.target, Session):
                _refresh(unit.target)
            if raise_errors and errors:
                raise errors[0]
            return outcome

        return run_in(target, self.jobs.models, work, call="JobKit.work_one")

    def _next_queue(
        self, unit: Unit, queues: Iterable[str], passed_by: Iterable[str]
    ) -> str | None:
        given = parameters(queues=list(queues), passed_by=list(passed_by))
        found = unit.execute(self._statements.operate.due_queue, given).scalar()
        return None if found is None else str(found)

    def perform(self, handler: JobType[Any], arg: Any = None, *, session: Any = None) -> Any:
        """Call a handler as a worker would, without a database: what it returns or raises.

        The arg is encoded and decoded, so the handler gets what a worker would give it; its
        middleware is around it, and it has its resources. Of a coroutine the result is to be
        awaited.

        Args:
            handler: The handler.
            arg: Its arg.
            session: What ``ctx.session`` is.
        """
        draft = handler.draft(arg, None, {})
        now = datetime.now().astimezone()
        job = ClaimedJob(
            queue=handler.queue,
            worker_id=0,
            id=draft.id,
            type=handler.type,
            arg=draft.arg,
            priority=0,
            attempt=1,
            crashes=0,
            lease=1,
            last_error=None,
            headers=dict(draft.common.headers or {}) or None,
            next_run_at=now,
            created_at=now,
            updated_at=now,
            unknown_for=None,
        )

        def get_session() -> Any:
            check_session_is_wanted(run)
            if session is None:
                raise RuntimeError("the handler uses ctx.session: give perform() session=")
            return session

        run = Run(job, handler)
        run.begin()
        return begin(run, get_session, self.state)

    def travel(self, target: Any, by: float | timedelta | None = None, **units: float) -> Any:
        """Let time pass for all jobs: ``travel(session, hours=1)``. Rows move, clocks stay.

        Args:
            target: Where the jobs are.
            by: Seconds, or a timedelta.
            **units: Those of a timedelta.
        """
        if (by is None) == (not units):
            raise TypeError("travel takes how far: seconds, a timedelta, or hours=1")
        from .faults import let_time_pass  # noqa: PLC0415 - `python -m` runs that module

        return let_time_pass(target, self.jobs, timedelta(**units) if by is None else by)

    # ---- beside a worker ------------------------------------------------------------------------

    def wait_for(self, engine: Any, *jobs: JobRef | str, timeout: float | timedelta = 30.0) -> Any:
        """Wait until a real worker has done these jobs, or all there are.

        Args:
            engine: An Engine, or an AsyncEngine: then await the result.
            *jobs: What ``enqueue`` has returned, or ids.
            timeout: Seconds, or a timedelta.

        Raises:
            TypeError: It is something else, whose transaction might see no end.
            AssertionError: One of them is dead, or they are not done in time; it names them.
        """
        if not _is_engine(engine):
            raise TypeError(
                "wait_for looks in transactions of its own: give it an Engine or an AsyncEngine"
            )
        ids = [job.id if isinstance(job, JobRef) else job for job in jobs]
        limit = validation.seconds("timeout", timeout)
        deadline = time.monotonic() + limit
        given = parameters(ids=ids, every=not ids)

        def left(unit: Unit) -> list[str]:
            rows = unit.execute(self._statements.operate.not_done, given).all()
            for row in rows:
                if row.dead:
                    raise AssertionError(f"job {row.id} ({row.type}) is dead: {row.last_error}")
            return [f"{row.id} ({row.type}, attempt {row.attempt})" for row in rows]

        def is_over(waiting: list[str]) -> bool:
            if waiting and time.monotonic() >= deadline:
                raise AssertionError(f"not done after {limit:g} s: {', '.join(waiting[:3])}")
            return not waiting

        def ask() -> Any:
            return run_in(engine, self.jobs.models, left, call="JobKit.wait_for")

        async def wait() -> None:
            while not is_over(await ask()):  # noqa: ASYNC110 - nobody tells when a job is done
                await asyncio.sleep(_ASK_EVERY)

        if not isinstance(engine, Engine):
            return wait()
        while not is_over(ask()):
            time.sleep(_ASK_EVERY)
        return None


_ASK_EVERY: Final = 0.02


def _is_engine(target: object) -> bool:
    asyncio_module = sys.modules.get("sqlalchemy.ext.asyncio")
    is_async = asyncio_module is not None and isinstance(target, asyncio_module.AsyncEngine)
    return is_async or isinstance(target, Engine)


def _refresh(session: Session) -> None:
    """Load again what the session has in memory: a job had a session of its own.

    Columns alone: a relationship that was loaded stays so, as an AsyncSession can't load it later.
    """
    changed = set(session.dirty)
    for instance in list(session.identity_map.values()):
        if instance in changed:
            continue
        columns = inspect(instance).mapper.column_attrs.keys()
        try:
            session.refresh(instance, attribute_names=columns)
        except InvalidRequestError:  # its row is gone
            session.expire(instance)
