"""The batches as their rows have them, and how many of their jobs are left."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import Connection

from .._db.encodings import storable
from .._drafts.batch import FOLLOWER
from .registered import ask

State = Literal["unfinished", "stopped", "finished"]
COUNTED: Final = 1_000
"""How far the jobs of each batch of a list are counted."""
COUNTED_IN_ALL: Final = 100_000
"""How far those of the larger ones are counted, all together."""


@dataclass(frozen=True, slots=True)
class BatchInfo:
    """A batch, and what is left of it.

    Attributes:
        id: The batch's, which its jobs have in ``batch_id``.
        total: How many jobs it had at first.
        live: How many of them wait or run.
        dead: How many are dead now.
        more_live: Whether more of them wait or run: counting stopped there.
        more_dead: Whether more of them are dead.
        on_dead: ``"continue"`` or ``"stop"``: whether dead jobs keep it from finishing.
        then_type: The type of the job that follows it; None if there is none.
        then_queue: The queue of that job.
        created_at: When the transaction began that made it.
        finished_at: When it was over; None until then.
        now: The database's time at which this was read.
    """

    id: str
    total: int
    live: int
    dead: int
    more_live: bool
    more_dead: bool
    on_dead: str
    then_type: str | None
    then_queue: str | None
    created_at: datetime
    finished_at: datetime | None
    now: datetime

    @property
    def ended(self) -> int:
        """How many of its jobs do not wait or run any more, the dead ones among them.

        It is at most so many, if ``more_live``.
        """
        return max(self.total - self.live, 0)

    @property
    def state(self) -> State:
        """Whether it has ``"finished"``; ``"stopped"`` is one that waits for dead jobs alone."""
        if self.finished_at is not None:
            return "finished"
        waits = self.on_dead == "stop" and self.dead and not self.live
        return "stopped" if waits else "unfinished"

    @property
    def then_id(self) -> str | None:
        """The id of the job that follows; None if there is none."""
        return None if self.then_type is None else f"{self.id}{FOLLOWER}"


def batch(
    connection: Connection, schema: str | None, table_prefix: str, id: str, most: int | None = None
) -> BatchInfo | None:
    """One batch; None if there is none of this id. The caller ends the transaction.

    Args:
        connection: Its transaction is the caller's.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        id: The batch's.
        most: How far its jobs are counted; all of them, if None.
    """
    given = {"id": storable(connection, id), "most": most}
    rows = ask(connection, _ONE, schema, table_prefix, **given)
    return next((BatchInfo(*row) for row in rows), None)


def batches(
    connection: Connection,
    schema: str | None,
    table_prefix: str,
    *,
    limit: int,
    before: str | None = None,
    unfinished: bool = False,
) -> list[BatchInfo]:
    """Batches, the one that was made last first. The caller ends the transaction.

    Jobs of each are counted up to :data:`COUNTED`; then those of larger ones further, as far as
    that is :data:`COUNTED_IN_ALL` together.

    Args:
        connection: Its transaction is the caller's.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        limit: The most batches.
        before: The id of the last one of the page before.
        unfinished: Leave out those that are finished.
    """
    statement = _PAGES[unfinished, before is not None]
    given: dict[str, Any] = {"limit": limit, "most": COUNTED}
    if before is not None:
        given["before"] = storable(connection, before)
    found = [BatchInfo(*row) for row in ask(connection, statement, schema, table_prefix, **given)]
    large = [one.id for one in found if one.more_live or one.more_dead]
    most = COUNTED_IN_ALL // max(len(large), 1)
    if most <= COUNTED or not large:
        return found
    rows = ask(connection, _SOME, schema, table_prefix, ids=large, most=most)
    further = {one.id: one for one in (BatchInfo(*row) for row in rows)}
    return [further.get(one.id, one) for one in found]


def followers(
    connection: Connection,
    schema: str | None,
    table_prefix: str,
    found: Iterable[BatchInfo],
    *,
    records: bool,
) -> set[str]:
    """The ids of the jobs that follow these batches, of which there is something to be seen.

    Args:
        connection: Its transaction is the caller's.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        found: The batches.
        records: Whether to look for records of them too; the role must be able to read these.
    """
    ids = [one.then_id for one in found if one.then_id and one.finished_at]
    if not ids:
        return set()
    statement = _SEEN_OR_RECORDED if records else _SEEN
    return {id for (id,) in ask(connection, statement, schema, table_prefix, ids=ids)}


# One more than *most* is looked for, which tells whether there are more.
_JOBS: Final = """
    SELECT least(count(*), CAST(:most AS bigint)) AS number,
           coalesce(count(*) > CAST(:most AS bigint), false) AS more
    FROM (SELECT FROM ONLY {table} AS its WHERE its.batch_id = one.id
          LIMIT CAST(:most AS bigint) + 1) AS looked_for
"""
_LIVE: Final = _JOBS.format(table="{job}")
_DEAD: Final = _JOBS.format(table="{dead_job}")


def _counted(which: str) -> str:
    """A statement that reads some batches, the last one first, and counts the jobs of each."""
    return f"""
        SELECT one.id, one.total, live.number, dead.number, live.more, dead.more, one.on_dead,
               one.then_type, one.then_queue, one.created_at, one.finished_at, clock_timestamp()
        FROM (SELECT id, total, on_dead, then_type, then_queue, created_at, finished_at
              FROM ONLY {{batch}} {which}) AS one
        CROSS JOIN LATERAL ({_LIVE}) AS live
        CROSS JOIN LATERAL ({_DEAD}) AS dead
        ORDER BY one.id DESC
    """  # noqa: S608 - no value is in it


_ONE: Final = _counted("WHERE id = CAST(:id AS text)")
_SOME: Final = _counted("WHERE id = ANY(CAST(:ids AS text[]))")
_UNFINISHED: Final = "finished_at IS NULL"
_BEHIND: Final = "id < CAST(:before AS text)"
# Ids grow with time, see new_id().
_PAGE: Final = "ORDER BY id DESC LIMIT :limit"
_PAGES: Final = {
    (False, False): _counted(_PAGE),
    (False, True): _counted(f"WHERE {_BEHIND} {_PAGE}"),
    (True, False): _counted(f"WHERE {_UNFINISHED} {_PAGE}"),
    (True, True): _counted(f"WHERE {_UNFINISHED} AND {_BEHIND} {_PAGE}"),
}
"""By whether only unfinished ones are read, and whether a page was before."""
_SEEN: Final = """
    SELECT asked.id FROM unnest(CAST(:ids AS text[])) AS asked (id)
    WHERE EXISTS (SELECT FROM ONLY {job} AS job WHERE job.id = asked.id)
       OR EXISTS (SELECT FROM ONLY {dead_job} AS dead WHERE dead.job_id = asked.id)
"""
_SEEN_OR_RECORDED: Final = f"""{_SEEN}
       OR EXISTS (SELECT FROM ONLY {{record}} AS record WHERE record.job_id = asked.id)
"""
