"""Unknown claims: jobs that the database gives to a worker which does not know of them.

The claim was committed, and its answer lost. So the worker hands back all that it holds but for
the jobs it knows of. It knows a job by its lease too: an earlier claim of the same job may be in
its hands.
"""

from collections.abc import Iterable
from typing import Any

from sqlalchemy import Connection

from .._sql import Statements
from . import run
from .claim import ClaimedJob
from .give_back import give_back, tell_given_back


def return_unknown_claims(
    connection: Connection, statements: Statements, *, worker_id: int, known: Iterable[ClaimedJob]
) -> int:
    """Queue jobs again that a worker has claimed without knowing it. Commits; returns how many.

    *known* are the jobs that it knows of. All others that the database gives to it are unknown
    claims.
    """
    with connection.begin():
        queues = give_back(
            connection, statements.rescue.unknown_claims, **leases_of(worker_id, known)
        )
    tell_given_back(connection, statements, queues)
    return len(queues)


def find_unknown_claims(
    connection: Connection, statements: Statements, *, worker_id: int, known: Iterable[ClaimedJob]
) -> set[tuple[str, str, int]]:
    """Queue, id and lease of each unknown claim of a worker; nothing changes. Commits.

    Reads the whole table.
    """
    with connection.begin():
        rows = run(connection, statements.rescue.unknown_claims.held, **leases_of(worker_id, known))
        return {(row.queue, row.id, row.lease) for row in rows}


def still_holds_any(
    connection: Connection,
    statements: Statements,
    *,
    worker_id: int,
    jobs: Iterable[tuple[str, str, int]],
) -> bool:
    """Whether a worker still holds any of these jobs, by queue, id and lease. Commits."""
    by_queue: dict[str, list[tuple[str, int]]] = {}
    for queue, id, lease in jobs:
        by_queue.setdefault(queue, []).append((id, lease))
    with connection.begin():
        for queue, some in by_queue.items():
            ids, leases = map(list, zip(*some, strict=True))
            given = {"queue": queue, "worker": worker_id, "ids": ids, "leases": leases}
            if run(connection, statements.settle.still_held, **given).first() is not None:
                return True
    return False


def leases_of(worker_id: int, some: Iterable[ClaimedJob]) -> dict[str, Any]:
    """Of some jobs those that this worker has claimed: parameters worker, ids and leases."""
    # Pairs, not a mapping: a worker may know two leases of one job, the older one lost.
    jobs = [job for job in some if job.worker_id == worker_id]
    ids, leases = [job.id for job in jobs], [job.lease for job in jobs]
    return {"worker": worker_id, "ids": ids, "leases": leases}
