"""The server sessions of a worker: their name, how they write times, how long they keep plans."""

import time
from typing import Any, Final

from sqlalchemy import Connection

APPLICATION_NAME_PREFIX: Final = "bgjob/"
PLANS_LAST: Final = 1.0
"""Seconds for which a session keeps its plans at least."""


def application_name(worker_id: int) -> str:
    """The application_name of a worker's sessions, by which others recognize them."""
    return f"{APPLICATION_NAME_PREFIX}{worker_id}"


def name_session(connection: Connection, worker_id: int) -> None:
    """Name this session after its worker, once; see ``application_name``. Commits."""
    if connection.info.get("bgjob_worker") == worker_id:
        return
    with connection.begin():
        connection.exec_driver_sql(f"SET application_name = '{application_name(worker_id)}'")
    connection.info["bgjob_worker"] = worker_id


def writes_iso(connection: Connection) -> bool:
    """Whether times come in a form that the driver reads: psycopg's can read ISO alone."""
    if connection.dialect.driver not in ("psycopg", "psycopg_async"):
        return True
    driver: Any = connection.connection.driver_connection
    style: str | None = driver.info.parameter_status("DateStyle")
    return style is None or style.startswith("ISO")


def write_iso(connection: Connection) -> None:
    """Let the server write times so that the driver can read them. Commits.

    Otherwise no row could be claimed. No round trip where it does so already, as nearly everywhere.
    """
    if not writes_iso(connection):
        connection.exec_driver_sql("SET DateStyle = 'ISO'")
        connection.commit()


def compile_no_plans(connection: Connection) -> None:
    """Turn just-in-time compilation off in this session. Commits.

    The claim of a hundred queues takes 4 ms, and looks to the planner as if it would read a
    hundred times as much. Its compilation took 25 ms each time, and 390 ms for 300 queues.
    """
    with connection.begin():
        connection.exec_driver_sql("SET jit = off")


def plan_once(connection: Connection) -> None:
    """Let this session keep one plan for each statement, whatever the values. Commits, once.

    Left to itself the server plans a claim from several queues anew each time, as it expects ten
    queues of a plan for any number: 1.4 ms, where the claim takes 0.3.
    """
    if connection.info.get("bgjob_plans_once"):
        return
    with connection.begin():
        connection.exec_driver_sql("SET plan_cache_mode = force_generic_plan")
    connection.info["bgjob_plans_once"] = True


def plan_anew(connection: Connection, older_than: float = PLANS_LAST) -> bool:
    """Discard this session's plans if they are older than a second, or *older_than*. Commits.

    Returns whether they were.

    The plan of a prepared statement lasts until the table's statistics change. One that was made
    for a table of a few pages reads the whole table, and would go on doing so after a burst, until
    autovacuum comes by: a claim of 200 among 200,000 took 340 ms.
    """
    now = time.monotonic()
    planned_at = connection.info.setdefault("bgjob_planned_at", now)
    if now - planned_at < older_than:
        return False
    with connection.begin():
        connection.exec_driver_sql("DISCARD PLANS")
    connection.info["bgjob_planned_at"] = now
    return True
