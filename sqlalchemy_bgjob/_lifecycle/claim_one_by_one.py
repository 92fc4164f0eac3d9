"""Claim row by row, where some row of a queue refuses to be claimed."""

import time
from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import Connection

from .._db.errors import lost_connection, ran_out_of_time, refuses_a_row
from .._sql import Statements
from . import run
from .claim import ClaimedJob, claimed

REFUSING: Final = 100
"""How many rows that refuse to be claimed are passed over in one claim."""
DOUBTFUL: Final = 10
"""The same, where the refusal may be meant for all rows: a trigger, a privilege."""
REFUSING_LASTS: Final = 0.5
"""Seconds after which no further row is tried."""


def claim(
    connection: Connection,
    statements: Statements,
    *,
    queue: str,
    limit: int,
    worker_id: int,
    skip: Collection[str] = (),
) -> tuple[list[ClaimedJob], dict[str, Exception]]:
    """As :func:`claim`, when that was refused: what can be claimed, and the ids that refuse.

    A row may refuse an UPDATE (a check that was added NOT VALID), or hold what the driver can't
    read. Its neighbours are none the worse for it, also where it stands at the head of a queue of
    which only one job is claimed at a time. The caller commits.

    Raises:
        DBAPIError: The connection was lost, or the rows could not even be read.
    """
    given = {"queue": queue, "limit": limit + REFUSING, "skip": list(skip)}
    jobs: list[ClaimedJob] = []
    refused: dict[str, Exception] = {}
    begun, doubtful = time.monotonic(), 0
    for id in run(connection, statements.claim.due_ids, **given).scalars().all():
        savepoint = connection.begin_nested()
        try:
            one = {"queue": queue, "worker": worker_id, "id": id}
            rows: Any = run(connection, statements.claim.one, **one).all()
            jobs += [claimed(queue, worker_id, row) for row in rows]
            savepoint.commit()
        except Exception as error:
            if lost_connection(error):
                raise
            savepoint.rollback()
            if ran_out_of_time(error):
                break  # so would the next ones
            refused[id] = error
            doubtful += not refuses_a_row(error)
        if len(jobs) == limit or time.monotonic() > begun + REFUSING_LASTS:
            break
        if not jobs and doubtful >= limit + DOUBTFUL:
            break
    return jobs, refused
