"""Moves the rows of the Go library bgjob into the queue's tables, batch by batch.

A batch is one transaction, in which rows leave one table and are in the other: whatever dies when,
each is in exactly one of them. The functions of this module commit.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Executable

from .._drafts import validation
from .._drafts.codec import OCTET_STREAM
from .._drafts.draft import UNTYPED
from .._drafts.ids import new_ids
from .._sql import Statements
from .._sql.go_bgjob import FIRST_DEAD_JOB, FIRST_JOB
from ..exceptions import InvalidArg
from ..schema._layouts import GoTables
from ..settings import MAX_ARG_SIZE
from . import run

BATCH: Final = 200
"""The most rows of one transaction: with the largest args, 200 MiB."""
REQUEST_ID: Final = "request-id"
"""The header that the Go library's request id becomes."""


class Refused(NamedTuple):
    """A row that stays where it is."""

    id: str
    reason: str


class Batch(NamedTuple):
    """What became of the rows of one transaction."""

    moved: int
    refused: Sequence[Refused]


class _Fit(NamedTuple):
    """A row that may be moved."""

    id: Any
    job_id: str
    queue: str
    headers: str | None


def move_jobs(connection: Connection, statements: Statements, go: GoTables) -> Iterator[Batch]:
    """Move all jobs that no Go worker runs now, and notify workers.

    Each batch is committed before it is yielded.
    """
    statement = statements.go_bgjob.move_jobs(go)

    def move(rows: Sequence[_Fit]) -> Iterable[Refused]:
        headers = [row.headers for row in rows]
        given = {"ids": [row.id for row in rows], "headers": headers}
        moved = set(run(connection, statement, **given).scalars())
        for queue in sorted({row.queue for row in rows if row.id in moved}):
            run(connection, statements.enqueue.notify, queue=queue)
        reason = "a live job has this id here; let it end, or cancel it"
        return [Refused(row.job_id, reason) for row in rows if row.id not in moved]

    return _batches(connection, statements.go_bgjob.lock_jobs(go), FIRST_JOB, move)


def move_dead_jobs(connection: Connection, statements: Statements, go: GoTables) -> Iterator[Batch]:
    """Move all dead jobs. Each batch is committed before it is yielded."""
    statement = statements.go_bgjob.move_dead_jobs(go)

    def move(rows: Sequence[_Fit]) -> Iterable[Refused]:
        headers = [row.headers for row in rows]
        given = {"ids": [row.id for row in rows], "headers": headers}
        run(connection, statement, dead_ids=new_ids(len(rows)), **given)
        return ()

    return _batches(connection, statements.go_bgjob.lock_dead_jobs(go), FIRST_DEAD_JOB, move)


def count(connection: Connection, statements: Statements, go: GoTables) -> int:
    """How many rows the Go library's tables have, in a transaction of its own."""
    with connection.begin():
        return sum(run(connection, statements.go_bgjob.count(go)).one())


def _batches(
    connection: Connection,
    lock: Executable,
    first: Mapping[str, Any],
    move: Callable[[Sequence[_Fit]], Iterable[Refused]],
) -> Iterator[Batch]:
    """One pass over a table. Each batch begins after the last row of the one before."""
    after = first
    while True:
        with connection.begin():
            rows = run(connection, lock, limit=BATCH, **after).all()
            judged = [_judge(row) for row in rows]
            refused = [it for it in judged if isinstance(it, Refused)]
            fit = [it for it in judged if isinstance(it, _Fit)]
            if fit:
                refused += move(fit)
        if rows:
            yield Batch(len(rows) - len(refused), refused)
        if len(rows) < BATCH:
            return
        after = {name: rows[-1]._mapping[name] for name in first}  # noqa: SLF001 - a Row's API


def _judge(row: Any) -> _Fit | Refused:
    """Whether a row is within the limits of this queue."""
    try:
        validation.job_id(row.job_id)
        validation.name("queue", row.queue)
        validation.name("type", row.type)
        content_type = _content_type(row.arg)
        request_id = {REQUEST_ID: row.request_id} if row.request_id else None
        headers = validation.headers(request_id, content_type)
    except ValueError as error:
        return Refused(row.job_id, str(error))
    if row.attempt < 0:
        return Refused(row.job_id, f"attempt={row.attempt} is below 0")
    if row.size is not None and row.size > MAX_ARG_SIZE:
        return Refused(row.job_id, f"the arg has {row.size} bytes; {MAX_ARG_SIZE} are allowed")
    if not row.in_range:
        return Refused(row.job_id, "one of its times is not between the years 1970 and 9998")
    return _Fit(row.id, row.job_id, row.queue, json.dumps(headers) if headers else None)


def _content_type(arg: bytes | None) -> str | None:
    """What the arg is: the Go library takes any bytes, and does not say whether they are JSON."""
    try:
        UNTYPED.decode(arg)
    except InvalidArg:
        return OCTET_STREAM
    return None
