"""Claim: give due jobs to a worker, and find out where and when to claim next."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from operator import attrgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from .._db.idle_statement import IdleStatement
from .._sql import Statements
from .._sql.words import parameters
from . import run


@dataclass(slots=True, eq=False)
class ClaimedJob:
    """A row as the claim returned it, and by whom it was claimed."""

    queue: str
    worker_id: int
    id: str
    type: str
    arg: bytes | None
    priority: int
    attempt: int
    crashes: int
    lease: int
    last_error: str | None
    headers: dict[str, Any] | None
    next_run_at: datetime
    created_at: datetime
    updated_at: datetime
    unknown_for: float | None
    # It has crashed a worker before, or this is its last attempt: it must start at once or go back.
    suspect: bool = False
    handler: Any = None  # once the worker has found it


class Position(NamedTuple):
    """A lane, and the job after which it is read on.

    Without a time it is read from two seconds ago, for jobs that were committed late.
    """

    priority: int
    at: datetime | None
    id: str


def claim(
    connection: Connection,
    statements: Statements,
    *,
    queue: str,
    limit: int,
    worker_id: int,
    onward: Sequence[Position] | None = None,
    skip: Collection[str] = (),
    direct: IdleStatement | None = None,
) -> list[ClaimedJob]:
    """Claim up to *limit* due jobs of one queue, and return them in order. The caller commits.

    Args:
        connection: Where the statement runs.
        statements: Those of the tables.
        queue: Whose jobs.
        limit: How many at most.
        worker_id: Who gets them.
        onward: Where to read on in each lane. Without it, the lanes are read from the head.
        skip: Ids that are left alone; then the lanes are read from the head.
        direct: Runs the statement, if it is the one that reads onward; then it commits by itself.
    """
    given: dict[str, Any] = {"queue": queue, "limit": limit, "worker": worker_id}
    statement = statements.claim.from_head
    if skip:
        statement, given["skip"] = statements.claim.skipping, list(skip)
    elif onward is not None:
        statement = statements.claim.onward
        given["priority"], given["at"], given["id"] = map(list, zip(*onward, strict=True))
    rows: Any
    if direct is not None and statement is direct.statement:
        rows = direct.fetch(connection, parameters(**given))
    else:
        rows = run(connection, statement, **given).all()
    jobs = [claimed(queue, worker_id, row) for row in rows]
    jobs.sort(key=_order)
    return jobs


_order: Final = attrgetter("priority", "next_run_at", "id")


def claimed(queue: str, worker_id: int, row: Any) -> ClaimedJob:
    """The job of a row that a claim has returned."""
    job = ClaimedJob(queue, worker_id, *row)
    if not isinstance(job.headers, dict):  # written by SQL, where any JSON is possible
        job.headers = None
    return job


def lanes(connection: Connection, statements: Statements, *, queue: str) -> list[int]:
    """The priorities that the jobs of a queue have, ascending. The caller commits."""
    return list(run(connection, statements.claim.lanes, queue=queue).scalars())


def next_due(
    connection: Connection, statements: Statements, *, queue: str, priorities: Sequence[int]
) -> float | None:
    """Seconds until the next scheduled job in these lanes of a queue. The caller commits."""
    if not priorities:
        return None
    given = {"queue": queue, "priorities": list(priorities)}
    delay = run(connection, statements.claim.next_due, **given).scalar()
    return None if delay is None else float(delay)
