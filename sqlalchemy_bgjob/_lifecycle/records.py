"""What is written of jobs beside their rows: progress and counts; and for how long it is kept.

How a job ended is written with its settlement, see :mod:`.settle`, or its :mod:`.cancel`.
"""

import json
import time
from collections.abc import Iterable
from datetime import timedelta
from typing import Any, Final

from sqlalchemy import Connection

from .._db.encodings import storable
from .._db.errors import lost_connection
from .._sql import Statements
from .._sql.words import parameters
from . import run
from .claim import ClaimedJob

LOCKED_FOR_MS: Final = 200
"""Milliseconds that the loop waits for who has inserted the record of a job and not committed yet.
Records that somebody has locked are passed over at once."""

Said = tuple[ClaimedJob, dict[str, Any] | None, float]
"""A running job, its progress, and since when it runs by the monotonic clock."""


def as_json(connection: Connection, said: dict[str, Any] | None) -> str | None:
    """A handler's progress as the database can store it: JSON of ASCII characters.

    JSON of another character would be refused where the database is not in UTF-8, and with it the
    settlement.
    """
    if said is None:
        return None
    if "note" in said:
        said = {**said, "note": storable(connection, said["note"])}
    return json.dumps(said)


def limit_waits(connection: Connection) -> None:
    """In this transaction wait for no lock for long: other jobs wait for the loop meanwhile."""
    connection.exec_driver_sql(f"SET LOCAL lock_timeout = '{LOCKED_FOR_MS}ms'")


def write_progress(
    connection: Connection, statements: Statements, worker_id: int, said: Iterable[Said]
) -> None:
    """Write the progress of jobs that a worker still holds, but of those whose records are locked.

    Commits. If that of one is refused, each is written by itself, and the error is raised in the
    end.
    """
    said = list(said)
    try:
        _write_progress(connection, statements, worker_id, said)
    except Exception as error:
        if lost_connection(error) or len(said) == 1:
            raise
        refused: list[Exception] = []
        for one in said:
            try:
                _write_progress(connection, statements, worker_id, [one])
            except Exception as its_own:
                if lost_connection(its_own):
                    raise
                refused.append(its_own)
        if refused:
            raise refused[0] from None


def _write_progress(
    connection: Connection, statements: Statements, worker_id: int, said: Iterable[Said]
) -> None:
    assert statements.records is not None
    by_queue: dict[str, list[Said]] = {}
    for one in sorted(said, key=lambda one: one[0].id):
        by_queue.setdefault(one[0].queue, []).append(one)
    now = time.monotonic()
    with connection.begin():
        limit_waits(connection)
        for queue, some in sorted(by_queue.items()):
            given: dict[str, Any] = {
                "ids": [job.id for job, *_ in some],
                "leases": [job.lease for job, *_ in some],
                "progress": [as_json(connection, progress) for _, progress, _ in some],
                "keeps": [job.keep for job, *_ in some],
                "rans": [now - began for *_, began in some],
            }
            run(connection, statements.records.progress, queue=queue, worker=worker_id, **given)


def write_counts(
    connection: Connection, statements: Statements, rows: list[dict[str, Any]]
) -> None:
    """Write what a worker has counted; see the columns of ``MinuteMixin``. Commits."""
    assert statements.records is not None
    with connection.begin():
        connection.execute(statements.records.count, [parameters(**row) for row in rows])


def delete_old_records(connection: Connection, statements: Statements, *, limit: int) -> int:
    """Delete up to *limit* records whose time is over. Commits; how many it was.

    By the database's clock. Rows that somebody has locked are left to the next call.
    """
    assert statements.records is not None
    with connection.begin():
        return int(run(connection, statements.records.delete_old, limit=limit).scalar_one())


def delete_old_counts(
    connection: Connection, statements: Statements, *, keep: float, limit: int
) -> int:
    """Delete up to *limit* rows of counts that are older than *keep* seconds. Commits; how many."""
    assert statements.records is not None
    given = {"age": timedelta(seconds=keep), "limit": limit}
    with connection.begin():
        return int(run(connection, statements.records.delete_old_counts, **given).scalar_one())
