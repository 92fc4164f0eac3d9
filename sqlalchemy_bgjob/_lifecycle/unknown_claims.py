"""Jobs that a worker has claimed without knowing it: the claim's answer was lost."""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from .._sql import Statements
from . import run
from .claim import ClaimedJob
from .give_back import give_back, tell_given_back


def hand_back_others(
    connection: Connection, statements: Statements, *, worker_id: int, known: Iterable[ClaimedJob]
) -> int:
    """Queue again what a worker has claimed without knowing it; commits. Returns how many.

    For after a claim whose answer was lost: the server may have given jobs that never arrived.
    """
    with connection.begin():
        queues = give_back(
            connection, statements.rescue.hand_back_others, **of_worker(worker_id, known)
        )
    tell_given_back(connection, statements, queues)
    return len(queues)


def held_besides(
    connection: Connection, statements: Statements, *, worker_id: int, known: Iterable[ClaimedJob]
) -> set[tuple[str, int]]:
    """Id and lease of what :func:`hand_back_others` is for. Reads the whole table; commits."""
    with connection.begin():
        rows = run(
            connection, statements.rescue.hand_back_others.held, **of_worker(worker_id, known)
        )
        return {(row.id, row.lease) for row in rows}


def holds_some(
    connection: Connection,
    statements: Statements,
    *,
    worker_id: int,
    jobs: Iterable[tuple[str, int]],
) -> bool:
    """Whether a worker still holds any of these jobs, by id and lease. Commits."""
    jobs = list(jobs)
    given = {"ids": [id for id, _ in jobs], "leases": [lease for _, lease in jobs]}
    with connection.begin():
        found = run(connection, statements.settle.still_held, worker=worker_id, **given)
        return found.first() is not None


def of_worker(worker_id: int, some: Iterable[ClaimedJob]) -> dict[str, Any]:
    # Pairs, not a mapping: a worker may know two leases of one job, the older one lost.
    jobs = [job for job in some if job.worker_id == worker_id]
    ids, leases = [job.id for job in jobs], [job.lease for job in jobs]
    return {"worker": worker_id, "ids": ids, "leases": leases}
