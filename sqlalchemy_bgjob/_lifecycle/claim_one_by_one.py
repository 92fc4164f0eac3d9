"""Claim row by row, after a claim of several rows was refused.

A row may refuse the UPDATE, as by a check that was added NOT VALID, or hold what the driver can't
read. It must not keep its neighbours from being claimed.
"""

import time
from collections.abc import Collection
from typing import Any, Final

from sqlalchemy import Connection

from .._db.errors import lost_connection, ran_out_of_time, refuses_a_row
from .._sql import Statements
from . import run
from .claim import ClaimedJob, claimed

REFUSING: Final = 100
"""How many refusing rows one claim passes over at most."""
DOUBTFUL: Final = 10
"""The same, while no row was claimed and all may refuse: a trigger, a privilege."""
REFUSING_LASTS: Final = 0.5
"""Seconds after which a claim tries no further row."""


def claim(
    connection: Connection,
    statements: Statements,
    *,
    queue: str,
    limit: int,
    worker_id: int,
    skip: Collection[str] = (),
    by_time: bool = False,
) -> tuple[list[ClaimedJob], dict[str, Exception]]:
    """As :func:`.claim.claim`: the jobs that were claimed, and the refusals by id. Caller commits.

    Raises:
        DBAPIError: The connection was lost, or the rows could not even be read.
    """
    given = {"queue": queue, "limit": limit + REFUSING, "skip": list(skip)}
    due_ids = statements.claims(by_time=by_time).due_ids
    jobs: list[ClaimedJob] = []
    refused: dict[str, Exception] = {}
    begun, doubtful = time.monotonic(), 0
    for id in run(connection, due_ids, **given).scalars().all():
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
                break  # the next rows would, too
            refused[id] = error
            doubtful += not refuses_a_row(error)
        if len(jobs) == limit or time.monotonic() > begun + REFUSING_LASTS:
            break
        if not jobs and doubtful >= limit + DOUBTFUL:
            break
    return jobs, refused
