"""What pages and commands show of jobs: a page that a search finds, counts, and all of one job."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, Final, Literal

from sqlalchemy import ColumnElement, Connection

from .._drafts import validation
from .._sql import Statements
from .._sql.search import MOST_DEATHS
from .._sql.search_condition import condition
from .._sql.search_terms import Search, Term
from .._sql.words import parameters
from ..models import Models, PastError, parsed_errors
from .paging import Part, Position, part_of

SCAN: Final = 10_000
"""How many jobs one page of a search looks at."""
MOST: Final = 10_000
"""How far jobs are counted."""
MOST_OF_BATCHES: Final = 50_000
"""How many jobs of batches are sorted for each page; of more of them it is as of other searches."""


@dataclass(frozen=True, slots=True)
class JobInfo:
    """A live or dead job as its row has it.

    ``row_id`` is the dead row's own id, and None of a live job. ``state`` is one of the states that
    a search knows. ``now`` is the database's time at which it was read. ``arg`` is None unless it
    was asked for.
    """

    id: str
    row_id: str | None
    state: str
    type: str
    queue: str
    priority: int
    attempt: int
    crashes: int
    lease: int
    claimed_by: int | None
    next_run_at: datetime
    created_at: datetime
    updated_at: datetime
    moved_at: datetime | None
    cancel_at: datetime | None
    expires_at: datetime | None
    unknown_since: datetime | None
    unique_key: str | None
    group_key: str | None
    batch_id: str | None
    last_error: str | None
    history: tuple[PastError, ...]
    headers: dict[str, Any]
    now: datetime
    arg: bytes | None = field(default=None, repr=False)

    @property
    def error_type(self) -> str | None:
        """The kind of the last error, as in ``Job.error_type``."""
        if self.last_error is None:
            return None
        return self.last_error.partition("\n")[0].partition(":")[0]


@dataclass(frozen=True, slots=True)
class Group:
    """Dead jobs of one type that failed in the same way."""

    type: str
    error_type: str | None
    count: int
    first: datetime
    last: datetime


def live_page(
    connection: Connection,
    statements: Statements,
    search: Search,
    *,
    size: int,
    after: Position | None = None,
    scan: int = SCAN,
) -> Part[JobInfo]:
    """Live jobs that a search finds, the one that is due first at the top.

    Args:
        connection: In a transaction.
        statements: Those of the tables.
        search: What to look for.
        size: The most jobs of the page.
        after: Where the page before stopped.
        scan: How many jobs it looks at, if not all fit.
    """
    its = statements.search
    by_index = _by_index(connection, its.live_count, search, "id", "key")
    make = its.live_found if by_index else its.live_page
    statement = make(search, onward=after is not None)
    return _page(connection, its.live, _part(connection, statement, size, after, scan))


def dead_page(
    connection: Connection,
    statements: Statements,
    search: Search,
    *,
    size: int,
    after: Position | None = None,
    scan: int = SCAN,
) -> Part[JobInfo]:
    """Dead jobs that a search finds, the one that died last at the top; see :func:`live_page`."""
    its = statements.search
    by_index = _by_index(connection, its.dead_count, search, "id")
    make = its.dead_found if by_index else its.dead_page
    statement = make(search, onward=after is not None)
    return _page(connection, its.dead, _part(connection, statement, size, after, scan))


def count_live(
    connection: Connection, statements: Statements, search: Search, most: int = MOST
) -> int:
    """How many live jobs fit; *most* + 1 stands for more than *most*."""
    return _number(connection, statements.search.live_count(search), most=most + 1)


def count_dead(
    connection: Connection, statements: Statements, search: Search, most: int = MOST
) -> int:
    """How many dead jobs fit; *most* + 1 stands for more than *most*."""
    return _number(connection, statements.search.dead_count(search), most=most + 1)


def dead_groups(
    connection: Connection, statements: Statements, search: Search, *, size: int
) -> list[Group]:
    """Which jobs died of what, the most frequent first: of the :data:`SCAN` that died last."""
    given = parameters(page=size, scan=SCAN)
    rows = connection.execute(statements.search.dead_groups(search), given)
    return [Group(*row) for row in rows]


def deaths(
    connection: Connection, statements: Statements, *, seconds: float, periods: int, scan: int
) -> list[int]:
    """How many jobs died in each of the latest periods, the oldest first."""
    given = parameters(seconds=seconds, periods=periods, scan=scan)
    counts = [0] * periods
    for period, count in connection.execute(statements.search.deaths, given):
        if 0 <= period < periods:
            counts[periods - 1 - period] = count
    return counts


def all_of(
    connection: Connection, statements: Statements, id: str, *, args: bool | Literal["first"]
) -> list[JobInfo]:
    """All that there is of a job: the live one first, then each time it died, the last one first.

    Args:
        connection: In a transaction.
        statements: Those of the tables.
        id: The job's.
        args: Whether to read their args, for which the role needs the right; ``"first"`` reads that
            of the first one alone, as each may be large.
    """
    its = statements.search
    given = parameters(ids=[id])
    live = connection.execute(its.live_with_arg if args else its.live, given)
    found = [_info(row) for row in live]
    wanted = MOST_DEATHS if args else 0
    if args == "first":
        wanted = 1 - len(found)
    dead = connection.execute(its.dead_of(wanted), given)
    return found + [_info(row) for row in dead]


def exists(connection: Connection, statements: Statements, id: str) -> bool:
    """Whether there is a live or a dead job of this id."""
    given = parameters(ids=[id])
    if connection.execute(statements.search.live, given).first() is not None:
        return True
    return connection.execute(statements.search.dead_of(0), given).first() is not None


def live_condition(models: Models, search: Search) -> ColumnElement[bool]:
    """The live jobs that fit a search, for ``jobs.cancel_where`` and the like."""
    return condition(models.job, search)


def dead_condition(models: Models, search: Search) -> ColumnElement[bool]:
    """The dead jobs that fit a search, for ``jobs.redrive`` and ``jobs.prune``."""
    return condition(models.dead_job, search)


def these(models: Models, ids: Iterable[str]) -> ColumnElement[bool]:
    """The live jobs of these ids."""
    return models.job.c.id.in_([*ids])


def these_dead(models: Models, row_ids: Iterable[str]) -> ColumnElement[bool]:
    """The dead jobs whose rows have these ids of their own."""
    return models.dead_job.c.id.in_([*row_ids])


def _by_index(connection: Connection, count: Any, search: Search, *fields: str) -> bool:
    """Whether indexes find all jobs of a search at once: by one of these fields, or by batch."""
    if any(search.only(field) for field in fields):
        return True
    batches = search.only("batch")
    if batches is None:
        return False
    of_batches = count(Search((Term("batch", batches),)))
    most = MOST_OF_BATCHES + 1
    return _number(connection, of_batches, most=most) <= MOST_OF_BATCHES


def _part(
    connection: Connection, statement: Any, size: int, after: Position | None, scan: int
) -> Part[Any]:
    given: dict[str, Any] = {"page": size + 1, "scan": scan}
    if after is not None:
        given |= {"time": after.time, "id": after.id}
    return part_of(connection.execute(statement, parameters(**given)), size)


def _page(connection: Connection, statement: Any, part: Part[Any]) -> Part[JobInfo]:
    ids = [row.id for row in part.rows]
    rows = {row.id: row for row in connection.execute(statement, parameters(ids=ids))}
    # A job that a worker has settled meanwhile is gone.
    jobs = [_info(rows[id]) for id in ids if id in rows]
    return replace(part, rows=jobs)


def _number(connection: Connection, statement: Any, **given: Any) -> int:
    return int(connection.execute(statement, parameters(**given)).scalar_one())


def _info(row: Any) -> JobInfo:
    is_dead = "moved_at" in row._fields
    errors = row.errors if isinstance(row.errors, list) else []
    return JobInfo(
        id=row.job_id if is_dead else row.id,
        row_id=row.id if is_dead else None,
        state="dead" if is_dead else _state(row),
        type=row.type,
        queue=row.queue,
        priority=row.priority,
        attempt=row.attempt,
        crashes=row.crashes,
        lease=row.lease,
        claimed_by=None if is_dead else row.claimed_by,
        next_run_at=row.next_run_at,
        created_at=row.job_created_at if is_dead else row.created_at,
        updated_at=row.job_updated_at if is_dead else row.updated_at,
        moved_at=row.moved_at if is_dead else None,
        cancel_at=None if is_dead else row.cancel_at,
        expires_at=None if is_dead else row.expires_at,
        unknown_since=None if is_dead else row.unknown_since,
        unique_key=row.unique_key,
        group_key=row.group_key,
        batch_id=row.batch_id,
        last_error=row.last_error,
        history=tuple(parsed_errors(errors)),
        headers=validation.stored_headers(row.headers),
        now=row.now,
        arg=getattr(row, "arg", None),
    )


def _state(row: Any) -> str:
    if row.claimed_by is not None:
        return "running" if row.cancel_at is None else "cancelling"
    if row.waits:
        return "waiting"
    if row.next_run_at <= row.now:
        return "due"
    return "retrying" if row.last_error is not None else "scheduled"
