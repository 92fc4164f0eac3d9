"""What an operator does to jobs: cancel, redrive, prune. In the caller's own transaction.

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
    """What a redrive did."""

    ids: tuple[str, ...]
    """The ids of the jobs that are queued again, sorted."""
    left: tuple[str, ...]
    """Those of the dead jobs that were found and stay dead; sorted.

    A job of that id lives, or one of its unique key; or one with that key has come back.
    """


def cancel(models: Models, statements: Statements, target: Any, id: str) -> Any:
    """See :meth:`BGJob.cancel`."""
    id = validation.job_id(id)

    def work(unit: Unit) -> bool:
        return unit.execute(statements.operate.cancel, parameters(id=id)).first() is not None

    return run_in(target, models, work, call="BGJob.cancel")


def redrive(
    models: Models,
    statements: Statements,
    target: Any,
    where: ColumnElement[bool],
    delay: float | timedelta,
    limit: int | None,
) -> Any:
    """See :meth:`BGJob.redrive`."""
    after = timedelta(seconds=validation.seconds("delay", delay))
    statement = statements.operate.redrive(where, validation.limit(limit))

    def work(unit: Unit) -> Redriven:
        rows: Any = unit.execute(statement, parameters(delay=after)).all()
        if unit.can_notify:
            for queue in sorted({queue for _, queue, back in rows if back}):
                unit.execute(statements.enqueue.notify, parameters(queue=queue))
        return Redriven(
            ids=tuple(sorted(id for id, _, back in rows if back)),
            left=tuple(sorted(id for id, _, back in rows if not back)),
        )

    return run_in(target, models, work, call="BGJob.redrive")


def prune(
    models: Models,
    statements: Statements,
    target: Any,
    older_than: float | timedelta,
    where: ColumnElement[bool] | None,
    limit: int | None,
) -> Any:
    """See :meth:`BGJob.prune`."""
    age = timedelta(seconds=validation.seconds("older_than", older_than))
    statement = statements.operate.prune(
        true() if where is None else where, validation.limit(limit)
    )

    def work(unit: Unit) -> int:
        return int(unit.execute(statement, parameters(age=age)).scalar_one())

    return run_in(target, models, work, call="BGJob.prune")
