"""What a test does about jobs in its own transaction: run them, and let time pass."""

from collections.abc import Callable, Coroutine, Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, overload

from sqlalchemy import inspect
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import Session

from .._db.targets import SyncTarget, Unit
from .._enqueue.one import JobRef
from .._handlers.outcomes import Outcome
from .._handlers.registry import JobType
from .._lifecycle.claim import ClaimedJob
from .._sql.words import parameters
from .._worker.call import begin, check_session_is_wanted
from .._worker.chunk import run_of
from .._worker.work_one import Wanted, work_in
from ..bgjob import BGJob
from ..exceptions import UnknownType
from .inline import Inline
from .target import Failed, OnTarget, is_engine

if TYPE_CHECKING:
    from .._db.targets import AsyncTarget

__tracebackhide__: Final = True
MOST: Final = 1_000
"""Jobs after which :meth:`JobKit.work_due` takes it that they enqueue each other without end."""


class Working(OnTarget):
    """What runs jobs, and what makes them due."""

    def __init__(self, jobs: BGJob[Any, Any]) -> None:
        super().__init__(jobs)
        self.state: Any = None

    @overload
    def work_due(
        self,
        target: SyncTarget,
        *queues: str,
        raise_errors: bool = True,
        session_factory: Callable[[], Any] | None = None,
    ) -> list[Outcome]: ...
    @overload
    def work_due(
        self,
        target: "AsyncTarget",
        *queues: str,
        raise_errors: bool = True,
        session_factory: Callable[[], Any] | None = None,
    ) -> Coroutine[Any, Any, list[Outcome]]: ...
    def work_due(
        self,
        target: Any,
        *queues: str,
        raise_errors: bool = True,
        session_factory: Callable[[], Any] | None = None,
    ) -> Any:
        """Run all due jobs, also those that they enqueue, and settle them.

        All happens in the target's own transaction, each handler in a savepoint of it. A job that
        is put off, by a retry say, is not due again before :meth:`travel`. A handler that takes
        chunks is called for one job at a time.

        Args:
            target: A Session or Connection in a transaction, or an asyncio twin.
            *queues: Of these queues alone.
            raise_errors: Raise what a handler raised that is no outcome, once its job is settled
                as failed; and an UnknownType, where no handler is registered.
            session_factory: Makes ``ctx.session``, as for ``work_one``.

        Returns:
            The outcomes of the jobs, in the order in which they ran.

        Raises:
            TypeError: The target is an Engine, whose transaction would be over; or the handler of
                a job is a coroutine, and the target is not of asyncio.
            RuntimeError: A thousand jobs have run, and there are more.
        """
        if is_engine(target):
            raise TypeError("work_due works in a transaction of yours: give it a Session")

        def work(unit: Unit) -> list[Outcome] | Failed:
            outcomes: list[Outcome] = []
            errors: list[BaseException] = []
            too_many = self._work_all(
                unit,
                queues,
                outcomes,
                errors,
                stop_at_error=raise_errors,
                session_factory=session_factory,
            )
            if too_many is not None:
                return Failed(too_many)
            return Failed(errors[0]) if raise_errors and errors else outcomes

        return self._in(target, work, "work_due")

    @overload
    def work_one(
        self,
        target: SyncTarget,
        job: JobRef | str,
        *,
        due: bool = True,
        raise_errors: bool = True,
        session_factory: Callable[[], Any] | None = None,
    ) -> Outcome | None: ...
    @overload
    def work_one(
        self,
        target: "AsyncTarget",
        job: JobRef | str,
        *,
        due: bool = True,
        raise_errors: bool = True,
        session_factory: Callable[[], Any] | None = None,
    ) -> Coroutine[Any, Any, Outcome | None]: ...
    def work_one(
        self,
        target: Any,
        job: JobRef | str,
        *,
        due: bool = True,
        raise_errors: bool = True,
        session_factory: Callable[[], Any] | None = None,
    ) -> Any:
        """Run one certain job and settle it.

        Args:
            target: As for :meth:`work_due`.
            job: What ``enqueue`` has returned, or an id.
            due: False takes it also if it is scheduled for later.
            raise_errors: As for :meth:`work_due`.
            session_factory: As for :meth:`work_due`.

        Returns:
            The job's outcome; None if there is no such job, or it is not due.
        """
        if is_engine(target):
            raise TypeError("work_one works in a transaction of yours: give it a Session")
        wanted = Wanted.of(None, job.id if isinstance(job, JobRef) else job, only_due=due)

        def work(unit: Unit) -> Outcome | Failed | None:
            errors: list[BaseException] = []
            outcome = self._work_on(unit, wanted, errors, session_factory)
            _refresh(unit.target)
            return Failed(errors[0]) if raise_errors and errors else outcome

        return self._in(target, work, "work_one")

    def inline(
        self,
        target: Any,
        *,
        raise_errors: bool = True,
        session_factory: Callable[[], Any] | None = None,
    ) -> Inline:
        """While the block goes on, run the due jobs at each commit, just before it.

        For code that commits, and expects that its jobs are done after that::

            with bgjob.inline(session) as ran:
                sign_up(session, "ada@example.com")     # commits
            assert ran.outcomes == [Complete()]

        With an asyncio twin it is ``async with``. What a transaction that is still open has
        enqueued runs at the end of the block. The code under test never meets the error of a job,
        as in production.

        Args:
            target: A Session: its commits. Or a Connection: those of all sessions bound to it. A
                ``scoped_session`` stands for all sessions that it makes.
            raise_errors: Raise at the end of the block what the first failed handler has raised;
                if the block itself fails, its error names it.
            session_factory: As for :meth:`work_due`.

        Raises:
            TypeError: The target is an Engine, or no session or connection.
            RuntimeError: At the end of the block: a thousand jobs have run at one commit, and there
                were more. No job has run since.
        """
        return Inline(self, target, raise_errors=raise_errors, session_factory=session_factory)

    def perform(self, handler: JobType[Any], arg: Any = None, *, session: Any = None) -> Any:
        """Call a handler as a worker would, without a database.

        The arg is encoded and decoded, so the handler gets what a worker would give it. Its
        middleware is around it, and it has its resources.

        Args:
            handler: The handler.
            arg: Its arg; for a handler that takes chunks, a list of args.
            session: What ``ctx.session`` is.

        Returns:
            What the handler returns; what it raises is raised. Await the result of a coroutine.

        Raises:
            InvalidArg: The handler does not take the arg.
            RuntimeError: The handler uses ``ctx.session``, and *session* is not given.
        """
        args = [arg]
        if handler.options.chunk is not None and handler.takes_arg:
            if not isinstance(arg, list | tuple) or not arg:
                raise TypeError("the handler takes chunks: give perform() a list of args")
            args = list(arg)
        job, *mates = (_claimed(handler, one) for one in args)
        job.mates = tuple(mates)

        def get_session() -> Any:
            check_session_is_wanted(run)
            if session is None:
                raise RuntimeError("the handler uses ctx.session: give perform() session=")
            return session

        run = run_of(job, handler)
        run.begin()
        return self._kept("perform", begin(run, get_session, self.state))

    @overload
    def travel(
        self, target: SyncTarget, by: float | timedelta | None = None, **units: float
    ) -> None: ...
    @overload
    def travel(
        self, target: "AsyncTarget", by: float | timedelta | None = None, **units: float
    ) -> Coroutine[Any, Any, None]: ...
    def travel(self, target: Any, by: float | timedelta | None = None, **units: float) -> Any:
        """Let time pass for all jobs: ``travel(session, hours=1)``. No clock is changed.

        The times of the rows are moved back: those of jobs, live and dead, of pauses, and of the
        periods of unique keys. Schedules stay: see :meth:`JobKit.fire_schedules`.

        Args:
            target: Where the jobs are.
            by: Seconds, or a timedelta.
            **units: Those of a timedelta, such as ``minutes=5``, instead of *by*.
        """
        if (by is None) == (not units):
            raise TypeError("travel takes how far: seconds, a timedelta, or hours=1")
        from .faults import let_time_pass  # noqa: PLC0415 - `python -m` runs that module

        passed: Any = let_time_pass(target, self.jobs, timedelta(**units) if by is None else by)
        return self._kept("travel", passed)

    # ---- what they share ------------------------------------------------------------------------

    def _work_all(
        self,
        unit: Unit,
        queues: Iterable[str],
        outcomes: list[Outcome],
        errors: list[BaseException],
        *,
        stop_at_error: bool = False,
        session_factory: Callable[[], Any] | None = None,
    ) -> RuntimeError | None:
        """Run all due jobs, and add to *outcomes* and *errors* what has become of them.

        Returns what is to be told if they are too many.
        """
        passed_by: set[str] = set()  # all that is due there is locked by others
        count = 0
        too_many: RuntimeError | None = None
        while (queue := self._next_queue(unit, queues, passed_by)) is not None:
            if count >= MOST:
                words = "do they enqueue each other? If not, let the test enqueue fewer"
                too_many = RuntimeError(f"{MOST} jobs have run, and there are more: {words}")
                break
            outcome = self._work_on(unit, Wanted(queue), errors, session_factory)
            if outcome is None:
                passed_by.add(queue)
                continue
            passed_by.clear()
            outcomes.append(outcome)
            count += 1
            if stop_at_error and errors:
                break
        if count:
            _refresh(unit.target)
        return too_many

    def _work_on(
        self,
        unit: Unit,
        wanted: Wanted,
        errors: list[BaseException],
        session_factory: Callable[[], Any] | None,
    ) -> Outcome | None:
        return work_in(
            unit.connection,
            self.jobs.models,
            self.jobs.registry,
            wanted,
            session_factory=session_factory,
            on_error=lambda error: errors.append(self._explained(error)),
            state=self.state,
        )

    def _explained(self, error: BaseException) -> BaseException:
        """What the test is to be told instead of an error that speaks of workers."""
        if not isinstance(error, UnknownType):
            return error
        known = {handler.type: handler for handler in self.jobs.registry}
        if error.type in known:
            return TypeError(
                f"the handler of {error.type!r} is a coroutine: give an AsyncSession or an "
                f"AsyncConnection, and await the result"
            )
        names = ", ".join(map(repr, sorted(known))) or "none"
        error.add_note(
            f"No handler is registered for {error.type!r} (registered: {names}). Import the module "
            f"that defines it, in the fixture bgjob_jobs of conftest.py."
        )
        return error

    def _next_queue(
        self, unit: Unit, queues: Iterable[str], passed_by: Iterable[str]
    ) -> str | None:
        given = parameters(queues=list(queues), passed_by=list(passed_by))
        found = unit.execute(self._statements.operate.due_queue, given).scalar()
        return None if found is None else str(found)


def _refresh(target: object) -> None:
    """Load again what a session has in memory: a job had a session of its own.

    Columns alone: a relationship that was loaded stays so, as an AsyncSession can't load it later.
    """
    if not isinstance(target, Session):
        return
    changed = target.dirty  # by identity: models of SQLModel have no hash
    for instance in list(target.identity_map.values()):
        if instance in changed:
            continue
        columns = inspect(instance).mapper.column_attrs.keys()
        try:
            target.refresh(instance, attribute_names=columns)
        except InvalidRequestError:  # its row is gone
            target.expire(instance)


def _claimed(handler: JobType[Any], arg: Any) -> ClaimedJob:
    """A job as a worker would have claimed it."""
    draft = handler.draft(arg, None, {})
    now = datetime.now().astimezone()
    return ClaimedJob(
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
