"""Queue jobs again that nobody will settle, and notify workers of them."""

import logging
from collections.abc import Collection
from typing import Any

from sqlalchemy import Connection

from .._db.errors import lost_connection, ran_out_of_time, summary
from .._points import NOTIFYING
from .._sql import Statements
from .._sql.rescue import GiveBack
from . import run

logger = logging.getLogger("sqlalchemy_bgjob")


def give_back(connection: Connection, statements: GiveBack, **given: Any) -> list[str]:
    """Queue jobs again, together or, if a row refuses, one by one. The caller commits.

    Returns:
        The queue of each job.
    """
    savepoint = connection.begin_nested()
    try:
        queues = list(run(connection, statements.together, **given).scalars())
        savepoint.commit()
        return queues
    except Exception as error:
        if lost_connection(error) or ran_out_of_time(error):
            raise
        savepoint.rollback()
    queues = []
    for id in run(connection, statements.held, **given).scalars().all():
        savepoint = connection.begin_nested()
        try:
            queues += run(connection, statements.one, **given, id=id).scalars()
            savepoint.commit()
        except Exception as error:
            if lost_connection(error):
                raise
            savepoint.rollback()
            logger.warning("job %s can't be given back: %s", id, summary(error))
    return queues


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
