"""What is asked of dead jobs, and their retention.

What users ask runs in the caller's own transaction, and changes nothing.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, true

from .._db.targets import Unit, run_in
from .._drafts import validation
from .._sql import Statements
from ..models import Models
from . import run


@dataclass(frozen=True, slots=True)
class DeadSummary:
    """Dead jobs of one ``type`` that failed in the same way, and their ``count``.

    ``error_type`` is the first line of their ``last_error`` up to its first colon, as that of
    ``DeadJob``. ``first`` and ``last`` are when the first and the last of them died.
    """

    type: str
    error_type: str | None
    count: int
    first: datetime
    last: datetime


def summary(
    models: Models,
    statements: Statements,
    target: Any,
    where: ColumnElement[bool] | None,
    limit: int | None,
) -> Any:
    """See :meth:`BGJob.dead_summary`."""
    condition = true() if where is None else where
    statement = statements.dead_jobs.summary(condition, validation.limit(limit))

    def work(unit: Unit) -> list[DeadSummary]:
        rows: Any = unit.execute(statement)
        return [DeadSummary(*row) for row in rows]

    return run_in(target, models, work, call="BGJob.dead_summary")


def delete_old(connection: Connection, statements: Statements, *, keep: float, limit: int) -> int:
    """Delete up to *limit* jobs that died more than *keep* seconds ago. Commits; how many it was.

    By the database's clock. Rows that somebody has locked are left to the next call.
    """
    given = {"age": timedelta(seconds=keep), "limit": limit}
    with connection.begin():
        return int(run(connection, statements.dead_jobs.delete_old, **given).scalar_one())
