"""The sessions of a worker: their name, by which others know them, and how long they keep plans."""

import time
from typing import Final

from sqlalchemy import Connection

APPLICATION_NAME_PREFIX: Final = "bgjob/"
PLANS_LAST: Final = 1.0
"""Seconds for which a session of a worker keeps its plans."""


def application_name(worker_id: int) -> str:
    """The name that all sessions of a worker carry, so that others can tell them."""
    return f"{APPLICATION_NAME_PREFIX}{worker_id}"


def name_session(connection: Connection, worker_id: int) -> None:
    """Name this session after its worker, once; see ``application_name``. Commits."""
    if connection.info.get("bgjob_worker") == worker_id:
        return
    with connection.begin():
        connection.exec_driver_sql(f"SET application_name = '{application_name(worker_id)}'")
    connection.info["bgjob_worker"] = worker_id


def plan_anew(connection: Connection, older_than: float = PLANS_LAST) -> None:
    """Let this session forget its plans, once a second. Commits.

    The plan of a prepared statement lasts until the table's statistics change. Made while the table
    was a few pages long it reads all of it, and after a burst would go on doing so until autovacuum
    comes by: a claim of 200 among 200,000 took 340 ms.
    """
    now = time.monotonic()
    planned_at = connection.info.setdefault("bgjob_planned_at", now)
    if now - planned_at >= older_than:
        with connection.begin():
            connection.exec_driver_sql("DISCARD PLANS")
        connection.info["bgjob_planned_at"] = now
