"""What is asked of dead jobs, and their retention.

What users ask runs in the caller's own transaction, and changes nothing.
"""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import ColumnElement, Connection, true

from .._db.targets import Unit, run_in
from .._drafts import validation
from .._sql import Statements
from ..models import Models
from . import run
from .delete_one_by_one import delete_one_by_one


@dataclass(frozen=True, slots=True)
class DeadSummary:
    """How many jobs of one type died of one type of error.

    Attributes:
        type: The jobs' type.
        error_type: The first line of their ``last_error`` up to its first colon, as
            ``DeadJob.error_type`` is: of an exception, the name of its class. None without an
            error.
        count: How many jobs.
        first: When the first of them died, by the database's clock.
        last: When the last of them died.
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


def delete_old(
    connection: Connection,
    statements: Statements,
    *,
    keep: float,
    limit: int,
    skip: Collection[str] = (),
) -> int:
    """Delete up to *limit* jobs that died more than *keep* seconds ago. Commits; how many it was.

    By the database's clock. Rows that somebody has locked are left to the next call, and those of
    the ids in *skip* are left alone.
    """
    given: dict[str, Any] = {"age": timedelta(seconds=keep), "limit": limit}
    statement = statements.dead_jobs.delete_old
    if skip:
        statement, given["skip"] = statements.dead_jobs.delete_old_but, list(skip)
    with connection.begin():
        return int(run(connection, statement, **given).scalar_one())


def delete_old_one_by_one(
    connection: Connection,
    statements: Statements,
    *,
    keep: float,
    limit: int,
    skip: Collection[str],
    until: float,
) -> tuple[int, dict[str, Exception]]:
    """As :func:`delete_old`, where some row refuses; how many it was, and the refusals by id.

    Commits each. It goes on until the monotonic time *until*, or as long as not all may refuse.

    Raises:
        DBAPIError: The connection was lost, or the rows could not even be read, or all that were
            tried have refused, as the role may not; the log names the first one.
    """
    age, its = timedelta(seconds=keep), statements.dead_jobs
    with connection.begin():
        given = {"age": age, "limit": limit, "skip": list(skip)}
        ids = run(connection, its.old_ids, **given).scalars().all()

    def delete(id: str) -> bool:
        return bool(run(connection, its.delete_one, age=age, id=id).scalar_one())

    tried = delete_one_by_one(connection, "dead job of id", ids, delete, until=until)
    return len(tried.deleted), tried.refused
