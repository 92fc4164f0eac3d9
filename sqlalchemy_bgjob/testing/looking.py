"""What a test asks about the jobs in its transaction: the assertions of the JobKit."""

from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, Final, overload

from sqlalchemy.orm import Session

from .._db.targets import SyncTarget, Unit
from .._drafts.unique import split
from .._handlers.registry import JobType
from ..exceptions import InvalidArg
from ..models import JobMixin
from .matching import ANY, EnqueuedJob, Looked, Wanted, difference, explain, explain_fitting
from .target import Failed, OnTarget

if TYPE_CHECKING:
    from .._db.targets import AsyncTarget


__tracebackhide__: Final = True


class Looking(OnTarget):
    """The assertions."""

    @overload
    def all_enqueued(
        self, target: SyncTarget, handler: JobType[Any] | None = None
    ) -> list[EnqueuedJob]: ...
    @overload
    def all_enqueued(
        self, target: "AsyncTarget", handler: JobType[Any] | None = None
    ) -> Coroutine[Any, Any, list[EnqueuedJob]]: ...
    def all_enqueued(self, target: Any, handler: JobType[Any] | None = None) -> Any:
        """All live jobs that the transaction sees, or those of a handler, in the order of work.

        Args:
            target: Where to look.
            handler: Of this handler alone.

        Returns:
            A list of ``EnqueuedJob``.
        """

        def look(unit: Unit) -> list[EnqueuedJob]:
            found = self._enqueued(unit)
            return [job for job in found if handler is None or job.type == handler.type]

        return self._in(target, look, "all_enqueued")

    @overload
    def assert_enqueued(
        self, target: SyncTarget, handler: JobType[Any] | str, arg: Any = ANY, **wanted: Any
    ) -> EnqueuedJob: ...
    @overload
    def assert_enqueued(
        self, target: "AsyncTarget", handler: JobType[Any] | str, arg: Any = ANY, **wanted: Any
    ) -> Coroutine[Any, Any, EnqueuedJob]: ...
    def assert_enqueued(
        self, target: Any, handler: JobType[Any] | str, arg: Any = ANY, **wanted: Any
    ) -> Any:
        """Assert that a job is enqueued that fits, and return the first one.

        ``bgjob.assert_enqueued(session, send_receipt, order_id=7, queue="mail", delay=60)``

        Args:
            target: Where to look.
            handler: A handler, or the name of a type.
            arg: The whole arg, or a mapping of some of its fields.
            **wanted: ``queue``, ``id``, ``priority``, ``headers`` (some of them), ``delay``
                (seconds or a timedelta), ``run_at``, ``unique`` (a key, or a Unique of a key and
                its scope), ``batch`` (what ``jobs.batch`` gives, or its id), and ``count``: then
                exactly N jobs fit. Anything else is a field of the arg: ``order_id=7``.

        Raises:
            AssertionError: None fits, or not *count* of them do. It shows the nearest three jobs,
                and in what they differ.
            TypeError: A name is neither an option nor a field of the arg.
        """
        looked_for = Wanted.of(handler, arg, wanted)

        def look(unit: Unit) -> EnqueuedJob | Failed:
            jobs = self._enqueued(unit)
            fitting = [job for job in jobs if not difference(job, looked_for)]
            if fitting and looked_for.count in (None, len(fitting)):
                return fitting[0]
            told = explain(self._looked(unit, jobs), fitting, looked_for)
            return Failed(AssertionError(told))

        return self._in(target, look, "assert_enqueued")

    @overload
    def refute_enqueued(
        self, target: SyncTarget, handler: JobType[Any] | str, arg: Any = ANY, **wanted: Any
    ) -> None: ...
    @overload
    def refute_enqueued(
        self, target: "AsyncTarget", handler: JobType[Any] | str, arg: Any = ANY, **wanted: Any
    ) -> Coroutine[Any, Any, None]: ...
    def refute_enqueued(
        self, target: Any, handler: JobType[Any] | str, arg: Any = ANY, **wanted: Any
    ) -> Any:
        """Assert that no job is enqueued that fits.

        The arguments are those of :meth:`assert_enqueued`, without *count*.

        Raises:
            AssertionError: A job fits; it is shown.
            TypeError: A name is neither an option nor a field of the arg.
        """
        if "count" in wanted:
            raise TypeError("refute_enqueued takes no count: no job at all may fit")
        looked_for = Wanted.of(handler, arg, wanted)

        def look(unit: Unit) -> Failed | None:
            fitting = [job for job in self._enqueued(unit) if not difference(job, looked_for)]
            if not fitting:
                return None
            return Failed(AssertionError(explain_fitting(fitting, looked_for)))

        return self._in(target, look, "refute_enqueued")

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
                batch=row.batch_id,
            )
            for row in unit.execute(self._statements.operate.live_jobs)
            for key, scope in [split(row.unique_key, row.period_key)]
        ]

    def _decoded(self, row: Any) -> Any:
        try:
            return self.jobs.decode(row)
        except InvalidArg:  # of another job, perhaps, than the one that is looked for
            return row.arg

    def _looked(self, unit: Unit, jobs: list[EnqueuedJob]) -> Looked:
        """What else there is to tell of where nothing was found."""
        session = unit.target
        new = session.new if isinstance(session, Session) else ()
        return Looked(jobs, unflushed=sum(isinstance(each, JobMixin) for each in new))
