"""Cancel: delete what waits, and ask the workers of what runs.

A running job belongs to its worker until that settles it, so it is only marked: its worker looks
for the mark, and whoever claims the job next does not start it.
"""

from collections.abc import Coroutine, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

from sqlalchemy import ColumnElement, Connection

from .._db.targets import SyncTarget, Unit, run_in
from .._drafts import validation
from .._handlers.registry import Registry
from .._sql import Statements, statements_of
from .._sql.words import parameters
from ..models import Models
from . import run
from .claim import ClaimedJob
from .unknown_claims import leases_of

if TYPE_CHECKING:
    from .._db.targets import AsyncTarget

Cancellation = Literal["cancelled", "asked"] | None
"""What a cancel of one job did."""


@dataclass(frozen=True, slots=True)
class CancelResult:
    """What ``cancel_where`` has done."""

    cancelled: int
    """How many were queued, and are deleted."""
    asked: int
    """How many are running, and were asked to end."""


def cancel(models: Models, statements: Statements, registry: Registry, target: Any, id: str) -> Any:
    """See :meth:`BGJob.cancel`."""
    given = parameters(id=validation.job_id(id)) | _keeps(statements, registry)

    def work(unit: Unit) -> str | None:
        row = unit.execute(statements.cancel.one(unit.can_notify), given).one()
        return "cancelled" if row.cancelled else "asked" if row.asked else None

    return run_in(target, models, work, call="BGJob.cancel")


def cancel_where(
    models: Models,
    statements: Statements,
    registry: Registry,
    target: Any,
    where: ColumnElement[bool],
    limit: int | None,
) -> Any:
    """See :meth:`BGJob.cancel_where`."""
    limit = validation.limit(limit)
    given = _keeps(statements, registry)

    def work(unit: Unit) -> CancelResult:
        statement = statements.cancel.where(where, limit, notify=unit.can_notify)
        row = unit.execute(statement, given).one()
        return CancelResult(row.cancelled, row.asked)

    return run_in(target, models, work, call="BGJob.cancel_where")


def _keeps(statements: Statements, registry: Registry) -> dict[str, Any]:
    """For how long records of queued jobs are kept, by type; nothing if there are no records."""
    recording = statements.tables.recording
    if recording is None:
        return {}
    handlers = list(registry)
    return parameters(
        types=[handler.type for handler in handlers],
        queues=[handler.queue for handler in handlers],
        keeps=[handler.keep or 0.0 for handler in handlers],
        rest=recording.keep,
    )


class HasCancel:
    """The part of :class:`~sqlalchemy_bgjob.BGJob` that cancels."""

    models: Models
    registry: Registry

    @overload
    def cancel(self, target: SyncTarget, id: str) -> Cancellation: ...
    @overload
    def cancel(self, target: "AsyncTarget", id: str) -> Coroutine[Any, Any, Cancellation]: ...
    def cancel(self, target: Any, id: str) -> Any:
        """Delete a queued job, due or not; ask the worker of a running one to end it.

        The caller commits, and soon: until then the job can't end. A running job then ends as
        cancelled, unless it completes first: a coroutine is cancelled, a function sees
        ``ctx.cancelled``, and what the handler has written is undone. No retry of it starts.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            id: The job's.

        Returns:
            ``"cancelled"`` if it was queued and is deleted, ``"asked"`` if it is running, None if
            there is no such job. Of two concurrent calls one returns ``"cancelled"``.
        """
        return cancel(self.models, statements_of(self.models), self.registry, target, id)

    @overload
    def cancel_where(
        self, target: SyncTarget, where: ColumnElement[bool], *, limit: int | None = None
    ) -> CancelResult: ...
    @overload
    def cancel_where(
        self, target: "AsyncTarget", where: ColumnElement[bool], *, limit: int | None = None
    ) -> Coroutine[Any, Any, CancelResult]: ...
    def cancel_where(
        self, target: Any, where: ColumnElement[bool], *, limit: int | None = None
    ) -> Any:
        """Cancel all the jobs that a condition finds, each as :meth:`cancel` does.

        Args:
            target: A Session, Connection or Engine, or an asyncio twin (then await the result).
            where: Which live jobs, for example ``jobs.Job.type == "send_receipt"``.
            limit: The most to cancel, from 1; by default all.
        """
        statements = statements_of(self.models)
        return cancel_where(self.models, statements, self.registry, target, where, limit)


def find_asked(
    connection: Connection, statements: Statements, *, worker_id: int, jobs: Iterable[ClaimedJob]
) -> set[str]:
    """The ids of those jobs that a worker holds and that are to be cancelled. Commits."""
    by_queue: dict[str, list[ClaimedJob]] = {}
    for job in jobs:
        by_queue.setdefault(job.queue, []).append(job)
    found: set[str] = set()
    with connection.begin():
        for queue, some in by_queue.items():
            given = leases_of(worker_id, some)
            found.update(run(connection, statements.settle.asked, queue=queue, **given).scalars())
    return found
