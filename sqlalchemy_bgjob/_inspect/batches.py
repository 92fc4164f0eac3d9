"""The batches as their rows have them, and how many of their jobs are left."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from .registered import ask


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """A batch, and what is left of it.

    Attributes:
        id: The batch's, which its jobs have in ``batch_id``.
        total: How many jobs it had at first.
        live: How many of them wait or run.
        dead: How many are dead now.
        on_dead: ``"continue"`` or ``"stop"``: whether dead jobs keep it from finishing.
        then_type, then_queue: Of the job that follows it; None if there is none.
        created_at: When the transaction began that made it.
        finished_at: When it was over; None until then.
        now: The database's time at which this was read.
    """

    id: str
    total: int
    live: int
    dead: int
    on_dead: str
    then_type: str | None
    then_queue: str | None
    created_at: datetime
    finished_at: datetime | None
    now: datetime

    @property
    def ended(self) -> int:
        """How many of its jobs do not wait or run any more, the dead ones among them."""
        return max(self.total - self.live, 0)


def batch(
    connection: Connection, schema: str | None, table_prefix: str, id: str
) -> BatchInfo | None:
    """One batch; None if there is none of this id. The caller ends the transaction."""
    rows: Any = ask(connection, _ONE, schema, table_prefix, id=id, most=None)
    return next((BatchInfo(*row) for row in rows), None)


def batches(
    connection: Connection,
    schema: str | None,
    table_prefix: str,
    *,
    limit: int,
    most: int,
    before: str | None = None,
    unfinished: bool = False,
) -> list[BatchInfo]:
    """Batches, the one that was made last first. The caller ends the transaction.

    Args:
        connection: Its transaction is the caller's.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        limit: The most batches.
        most: How far the jobs of each are counted.
        before: The id of the last one of the page before.
        unfinished: Leave out those that are finished.
    """
    statement = _UNFINISHED if unfinished else _ALL
    asked = {"limit": limit, "most": most, "before": before}
    return [BatchInfo(*row) for row in ask(connection, statement, schema, table_prefix, **asked)]


_READ: Final = "id, total, on_dead, then_type, then_queue, created_at, finished_at"
_COUNTED: Final = """
    SELECT one.id, one.total, live.number, dead.number, one.on_dead, one.then_type,
           one.then_queue, one.created_at, one.finished_at, clock_timestamp()
    FROM ({some}) AS one
    CROSS JOIN LATERAL (
      SELECT count(*) AS number FROM (
        SELECT FROM ONLY {{job}} AS its WHERE its.batch_id = one.id LIMIT CAST(:most AS bigint)
      ) AS some
    ) AS live
    CROSS JOIN LATERAL (
      SELECT count(*) AS number FROM (
        SELECT FROM ONLY {{dead_job}} AS its WHERE its.batch_id = one.id LIMIT CAST(:most AS bigint)
      ) AS some
    ) AS dead
    ORDER BY one.id DESC
"""  # noqa: S608 - no value is in it
_ONE: Final = _COUNTED.format(some=f"SELECT {_READ} FROM ONLY {{batch}} WHERE id = CAST(:id AS text)")
# Ids grow with time, see new_id().
_PAGE: Final = f"""
    SELECT {_READ} FROM ONLY {{{{batch}}}}
    WHERE {{of}} AND (CAST(:before AS text) IS NULL OR id < CAST(:before AS text))
    ORDER BY id DESC LIMIT :limit
"""  # noqa: S608
_ALL: Final = _COUNTED.format(some=_PAGE.format(of="true"))
_UNFINISHED: Final = _COUNTED.format(some=_PAGE.format(of="finished_at IS NULL"))
