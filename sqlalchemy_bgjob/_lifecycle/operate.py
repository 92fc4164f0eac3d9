"""What an operator does to jobs: run now, redrive, prune. In the caller's own transaction.

Nothing is committed here, except when the target is an Engine. Each is one statement, so two that
do the same at once have done it once.
"""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from sqlalchemy import ColumnElement, true

from .._db.targets import Unit, run_in
from .._drafts import validation
from .._sql import Statements
from .._sql.words import parameters
from ..models import Models


@dataclass(frozen=True, slots=True)
class Redriven:
    """What a redrive has done."""

    ids: tuple[str, ...]
    """The ids of the jobs that are queued again, sorted."""
    left: tuple[str, ...]
    """The ids of the jobs that were found and stay dead, as a live job has the id or unique key;
    sorted."""


def run_now(
    models: Models,
    statements: Statements,
    target: Any,
    where: ColumnElement[bool],
    limit: int | None,
) -> Any:
    """See :meth:`BGJob.run_now`."""
    statement = statements.operate.run_now(where, validation.limit(limit))

    def work(unit: Unit) -> int:
        queues = unit.execute(statement).scalars().all()
        if unit.can_notify:
            for queue in sorted(set(queues)):
                unit.execute(statements.enqueue.notify, parameters(queue=queue))
        return len(queues)

    return run_in(target, models, work, call="BGJob.run_now")


def redrive(
    models: Models,
    statements: Statements,
    target: Any,
    where: ColumnElement[bool],
    delay: float | timedelta,
    limit: int | None,
    *,
    per_second: float | None = None,
    dry_run: bool = False,
) -> Any:
    """See :meth:`BGJob.redrive`."""
    given: dict[str, Any] = {"delay": timedelta(seconds=validation.seconds("delay", delay))}
    if per_second is not None:
        given["per_second"] = validation.rate("per_second", per_second)
    limit = validation.limit(limit)

    def work(unit: Unit) -> Redriven:
        statement = statements.operate.redrive(where, limit, spaced=per_second is not None)
        rows: Any = unit.execute(statement, parameters(**given)).all()
        if unit.can_notify:
            for queue in sorted({queue for _, queue, back in rows if back}):
                unit.execute(statements.enqueue.notify, parameters(queue=queue))
        return Redriven(
            ids=tuple(sorted(id for id, _, back in rows if back)),
            left=tuple(sorted(id for id, _, back in rows if not back)),
        )

    def look(unit: Unit) -> dict[str, int]:
        counts: Any = unit.execute(statements.dead_jobs.would_return(where, limit)).all()
        return dict(counts)

    return run_in(target, models, look if dry_run else work, call="BGJob.redrive")


def prune(
    models: Models,
    statements: Statements,
    target: Any,
    older_than: float | timedelta,
    where: ColumnElement[bool] | None,
    limit: int | None,
    *,
    dry_run: bool = False,
) -> Any:
    """See :meth:`BGJob.prune`."""
    age = timedelta(seconds=validation.seconds("older_than", older_than))
    condition, limit = true() if where is None else where, validation.limit(limit)
    make = statements.dead_jobs.count if dry_run else statements.operate.prune

    def work(unit: Unit) -> int:
        return int(unit.execute(make(condition, limit), parameters(age=age)).scalar_one())

    return run_in(target, models, work, call="BGJob.prune")
