"""Claim: give due jobs to a worker, and find out where and when to claim next.

A worker claims from all queues that are due for a look by one statement
(:func:`claim_from_queues`). From a single one, where it reads on, it claims by a quicker one
(:func:`claim`).
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from math import inf
from operator import attrgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection

from .._db.direct_statement import DirectStatement
from .._sql import Statements
from .._sql.words import parameters
from ..models import Recording
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
    extras: list[str | None] | None = None  # group, batch, cancelled, expired; most jobs have none
    # It has crashed a worker before, or this is its last attempt: it must start at once or go back.
    suspect: bool = False
    handler: Any = None  # once the worker has found it
    keep: float | None = None  # then, the seconds for which a record of it is to be kept
    # Its handler takes chunks, and it has not failed yet: it may share a call with others.
    shares: bool = False
    mates: tuple["ClaimedJob", ...] = ()  # those that it is started with, in one call

    def served_by(self, handler: Any, recording: Recording | None) -> None:
        """Take the handler that was found for the job, or None."""
        self.handler = handler
        if recording is not None:
            self.keep = recording.keep if handler is None else handler.keep

    @property
    def group(self) -> str | None:
        """The key of its group."""
        return self.extras[0] if self.extras else None

    @property
    def batch(self) -> str | None:
        """The id of its batch."""
        return self.extras[1] if self.extras else None

    @property
    def cancelled(self) -> bool:
        """Whether somebody has asked for its end."""
        return bool(self.extras and self.extras[2])

    @property
    def expired(self) -> bool:
        """Whether it was too late to start it, by the database's clock."""
        return bool(self.extras and self.extras[3])


class Position(NamedTuple):
    """A lane, and the job after which it is read on.

    Without a time it is read from two seconds ago, for jobs that were committed late.
    """

    priority: int
    at: datetime | None
    id: str


class Look(NamedTuple):
    """What is wanted of one queue: at most *limit* jobs, read on from *onward* or from the head.

    A look from the head, or at several queues, also asks when the next job is due; with *asks_due*
    a look at one queue that reads on does so too, by a slower statement. With *by_time* those come
    first that were due first, whatever their priority.
    """

    queue: str
    limit: int
    onward: tuple[Position, ...] | None = None
    asks_due: bool = False
    by_time: bool = False


LEAST: Final = 0.001
"""Seconds that a look at one queue's lanes counts for at least."""


class Found(NamedTuple):
    """What a look at one queue has found.

    Attributes:
        jobs: The claimed jobs, in order.
        due_in: Seconds until the next scheduled job, or infinity; None if it was not asked.
        priorities: The lanes, ascending, if they were looked up.
        seconds: How long that took; at least :data:`LEAST`, as a statement has other costs.
    """

    jobs: list[ClaimedJob]
    due_in: float | None = None
    priorities: list[int] | None = None
    seconds: float = 0.0


def claim(
    connection: Connection,
    statements: Statements,
    *,
    queue: str,
    limit: int,
    worker_id: int,
    onward: Sequence[Position] | None = None,
    skip: Collection[str] = (),
    by_time: bool = False,
    direct: DirectStatement | None = None,
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
        by_time: Take those first that were due first, whatever their priority.
        direct: Runs the statement, if it is the one that reads onward; then it commits by itself.
    """
    given: dict[str, Any] = {"queue": queue, "limit": limit, "worker": worker_id}
    claims = statements.claims(by_time=by_time)
    statement = claims.from_head
    if skip:
        statement, given["skip"] = claims.skipping, list(skip)
    elif onward is not None:
        statement = claims.onward
        given["priority"], given["at"], given["id"] = map(list, zip(*onward, strict=True))
    rows: Any
    if direct is not None and statement is direct.statement:
        rows = direct.fetch(connection, parameters(**given))
    else:
        rows = run(connection, statement, **given).all()
    jobs = [claimed(queue, worker_id, row) for row in rows]
    jobs.sort(key=_BY_TIME if by_time else _BY_PRIORITY)
    return jobs


def claim_from_queues(
    connection: Connection,
    statements: Statements,
    *,
    looks: Sequence[Look],
    worker_id: int,
    direct: DirectStatement | None = None,
) -> list[Found]:
    """Claim from several queues by one statement; the caller commits, unless it runs *direct*.

    Args:
        connection: Where the statement runs.
        statements: Those of the tables.
        looks: What is wanted, of each queue once; all in the same order.
        worker_id: Who gets the jobs.
        direct: Runs the statement, if given; then it commits by itself.

    Returns:
        What was found, one for each look.
    """
    given: dict[str, list[Any]] = {
        name: [] for name in ("queue", "limits", "lanes_from", "lanes_to", "priority", "at", "id")
    }
    for look in looks:
        positions = look.onward or ()
        given["queue"].append(look.queue)
        given["limits"].append(look.limit)
        given["lanes_from"].append(len(given["id"]) + 1)
        for position in positions:
            for name, value in zip(("priority", "at", "id"), position, strict=True):
                given[name].append(value)
        given["lanes_to"].append(len(given["id"]) if look.onward is not None else 0)
    rows: Any
    if direct is not None:
        rows = direct.fetch(connection, parameters(worker=worker_id, **given))
    else:
        claims = statements.claims(by_time=looks[0].by_time)
        rows = run(connection, claims.of_queues, worker=worker_id, **given).all()
    return _found(looks, worker_id, rows)


def _found(looks: Sequence[Look], worker_id: int, rows: Iterable[Any]) -> list[Found]:
    """Sort rows of ``of_queues`` by queue."""
    jobs: dict[str, list[ClaimedJob]] = {look.queue: [] for look in looks}
    lanes: dict[str, list[tuple[int, float | None]]] = {look.queue: [] for look in looks}
    took = dict.fromkeys(jobs, 0.0)
    (*_, last), *rest = rows
    for *values, queue, due_in, read_at in rest:
        if values[0] is not None:
            jobs[queue].append(claimed(queue, worker_id, values))
            continue
        if values[_PRIORITY] is not None:
            lanes[queue].append((values[_PRIORITY], due_in))
        took[queue] += (read_at - last).total_seconds()
        last = read_at
    found: list[Found] = []
    for look in looks:
        jobs[look.queue].sort(key=_BY_TIME if look.by_time else _BY_PRIORITY)
        times = [due_in for _, due_in in lanes[look.queue] if due_in is not None]
        priorities = None if look.onward is not None else [p for p, _ in lanes[look.queue]]
        seconds = max(took[look.queue], LEAST)
        found.append(Found(jobs[look.queue], min(times, default=inf), priorities, seconds))
    return found


_BY_PRIORITY: Final = attrgetter("priority", "next_run_at", "id")
_BY_TIME: Final = attrgetter("next_run_at", "priority", "id")
_PRIORITY: Final = 3
"""Its place among the columns that a claim returns."""


def claimed(queue: str, worker_id: int, row: Any) -> ClaimedJob:
    """The job of a row that a claim has returned."""
    job = ClaimedJob(queue, worker_id, *row)
    if not isinstance(job.headers, dict):  # written by SQL, where any JSON is possible
        job.headers = None
    return job


def claim_by_id(
    connection: Connection, statements: Statements, *, id: str, worker_id: int, only_due: bool
) -> ClaimedJob | None:
    """Claim one certain job that nobody holds, of whichever queue. The caller commits.

    None if there is none, or somebody has locked its row. Unless it is *only_due*, it may be
    scheduled for later.
    """
    statement = statements.claim.by_id(only_due)
    row: Any = run(connection, statement, id=id, worker=worker_id).first()
    return None if row is None else claimed(row[-1], worker_id, row[:-1])


def lanes(connection: Connection, statements: Statements, *, queue: str) -> list[int]:
    """The priorities that the jobs of a queue have, ascending. The caller commits."""
    return list(run(connection, statements.claim.lanes, queue=queue).scalars())


def any_due(connection: Connection, statements: Statements, *, queues: Iterable[str]) -> bool:
    """Whether a job of these queues is due that no worker has claimed. The caller commits."""
    return bool(run(connection, statements.claim.any_due, queues=list(queues)).scalar())


def next_due(
    connection: Connection, statements: Statements, *, queue: str, priorities: Sequence[int]
) -> float | None:
    """Seconds until the next scheduled job in these lanes of a queue. The caller commits."""
    if not priorities:
        return None
    given = {"queue": queue, "priorities": list(priorities)}
    delay = run(connection, statements.claim.next_due, **given).scalar()
    return None if delay is None else float(delay)
