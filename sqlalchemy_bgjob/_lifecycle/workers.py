"""What a worker says of itself: register, beat, set_waits_for, pass_on, unregister."""

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from .._db.encodings import storable
from .._db.errors import RETRY_AT_ONCE, sqlstate
from .._inspect import backlog
from .._inspect.backlog import Backlog
from .._inspect.health import Health, look
from .._sql import Statements
from . import run
from .claim import ClaimedJob
from .give_back import give_back, tell_given_back
from .unknown_claims import leases_of

BEAT_TRIES: Final = 5
"""How often a beat is tried that meets another change of the worker's row each time."""


def register(
    connection: Connection,
    statements: Statements,
    *,
    worker_id: int,
    hostname: str,
    pid: int,
    version: str,
    queues: dict[str, int],
    lease_timeout: float,
) -> None:
    """Add a worker's row. Commits."""
    with connection.begin():
        run(
            connection,
            statements.workers.register,
            id=worker_id,
            hostname=storable(connection, hostname),
            pid=pid,
            version=version,
            queues=queues,
            lease_timeout=lease_timeout,
        )


def unregister(
    connection: Connection,
    statements: Statements,
    *,
    worker_id: int,
    refused: Iterable[ClaimedJob] = (),
) -> None:
    """Remove a worker's row, and queue again what it may still hold. Commits.

    Attempts are refunded, but for those of *refused*: jobs that have run, and whose settlement was
    refused.
    """
    given = leases_of(worker_id, refused)
    with connection.begin():
        queues: list[str] = []
        if given["ids"]:
            queues += give_back(connection, statements.rescue.give_back_refused, **given)
        queues += give_back(
            connection, statements.rescue.unknown_claims, **leases_of(worker_id, ())
        )
        waited_for = run(connection, statements.workers.unregister, worker=worker_id).scalar()
    tell_given_back(connection, statements, queues)
    # A job may have woken this worker, which has not looked.
    missed = set(waited_for or ()) - set(queues)
    tell_given_back(connection, statements, missed, everybody=False)


def beat(
    connection: Connection,
    statements: Statements,
    *,
    worker_id: int,
    listener: tuple[int, datetime] | None,
) -> float | None:
    """Say that a worker lives. Commits; returns the seconds since its last beat, None if lost.

    Where it commits by itself, its isolation level is the session's default. Under a strict one it
    fails if the worker's loop has just announced something in the same row; it is tried again then.
    """
    pid, started_at = listener or (None, None)
    given = {"worker": worker_id, "listener_pid": pid, "listener_started_at": started_at}
    tries = 0
    while True:
        tries += 1
        try:
            with connection.begin():
                gap = run(connection, statements.workers.beat, **given).scalar()
            return None if gap is None else float(gap)
        except DBAPIError as error:
            if tries == BEAT_TRIES or sqlstate(error) not in RETRY_AT_ONCE:
                raise


def set_waits_for(
    connection: Connection, statements: Statements, *, worker_id: int, queues: Sequence[str]
) -> None:
    """Tell producers of which queues this worker is to be notified. Commits."""
    with connection.begin():
        run(connection, statements.workers.set_waits_for, worker=worker_id, queues=list(queues))


def pass_on(
    connection: Connection, statements: Statements, *, worker_id: int, queues: Sequence[str]
) -> None:
    """Wake another worker for each of these queues, in this worker's place. Commits."""
    with connection.begin():
        for queue in queues:
            run(connection, statements.workers.pass_on, worker=worker_id, queue=queue)


class Sample(NamedTuple):
    """What the leader has seen.

    Attributes:
        health: The server's.
        has_periods: Whether there may be periods of unique keys.
        has_batches: Whether there may be batches.
    """

    health: Health
    has_periods: bool
    has_batches: bool


def sample_health(
    connection: Connection, statements: Statements, *, worker_id: int
) -> Sample | None:
    """Look at the server's health, if this worker is the leader. Commits."""
    tables = statements.tables
    of = {"periods": tables.unique_period, "batches": tables.batch}
    given = {name: tables.name_of(table, connection) for name, table in of.items()}
    with connection.begin():
        statement = statements.workers.is_leader
        row: Any = run(connection, statement, worker=worker_id, **given).one()
        leads, *has = row
        if not leads:
            return None
        return Sample(look(connection, tables.table_names(connection)), *has)


def sample_backlog(connection: Connection, statements: Statements, *, interval: float) -> Backlog:
    """Look at what waits in all queues, as the leader does every *interval* seconds. Commits."""
    tables = statements.tables
    with connection.begin():
        return backlog.look(connection, tables.schema, tables.prefix, interval=interval)
