"""Queue jobs again that nobody will settle, and notify workers of them."""

import logging
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection, Executable

from .._db.errors import lost_connection, ran_out_of_time, summary
from .._db.printable import printable
from .._points import NOTIFYING
from .._sql import Statements
from .._sql.rescue import GiveBack
from . import run

logger = logging.getLogger("sqlalchemy_bgjob")


def give_back(connection: Connection, statements: GiveBack, **given: Any) -> list[str]:
    """Queue jobs again, each queue's together or, if a row refuses, one by one. The caller commits.

    Returns:
        The queue of each job.
    """
    by_queue: dict[str, list[Any]] = {}
    for row in run(connection, statements.held, **given):
        by_queue.setdefault(row.queue, []).append(row)
    queues: list[str] = []
    for queue in sorted(by_queue):
        # By id, so that two who give back the same jobs never wait for each other.
        rows = sorted(by_queue[queue])
        queues += [queue] * _give_back(connection, statements.again, queue, rows)
    return queues


def _give_back(connection: Connection, again: Executable, queue: str, rows: list[Any]) -> int:
    ids, leases, _, holders = map(list, zip(*rows, strict=True))
    savepoint = connection.begin_nested()
    try:
        given = {"queue": queue, "ids": ids, "leases": leases, "holders": holders}
        written = len(run(connection, again, **given).all())
        savepoint.commit()
        return written
    except Exception as error:
        if lost_connection(error) or ran_out_of_time(error):
            raise
        savepoint.rollback()
        if len(rows) == 1:
            logger.warning("job %s can't be given back: %s", printable(ids[0]), summary(error))
            return 0
    return sum(_give_back(connection, again, queue, [row]) for row in rows)


def tell_given_back(
    connection: Connection,
    statements: Statements,
    queues: Collection[str],
    *,
    everybody: bool = True,
) -> None:
    """Notify two workers that wait, or all workers, of jobs that were given back. Commits.

    It is a transaction of its own, because a notification is a hint: if it fails, such as when the
    server's queue is full, nothing must be undone. The next head scan finds the jobs.
    """
    if not queues:
        return
    try:
        if NOTIFYING.listeners:
            NOTIFYING.reached(queues)
        with connection.begin():
            for queue in sorted(set(queues)):
                run(connection, statements.rescue.notify_given_back(everybody), queue=queue)
    except Exception as error:
        if lost_connection(error):
            raise
        logger.warning("not told of jobs that were given back: %s", summary(error))
