"""Rescue: take the jobs of workers that have ended or are silent, and those of no worker.

Whoever locks the worker's row first judges, so several judges at once do no harm.
"""

import time
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from sqlalchemy import Connection, Executable
from sqlalchemy.exc import DBAPIError

from .._db.errors import lost_connection
from .._db.sessions import application_name
from .._points import JUDGED, JUDGING
from .._sql import Statements
from . import run
from .fire import NO_SCHEDULES, Serves
from .give_back import give_back, tell_given_back


@dataclass(frozen=True, slots=True)
class Rescued:
    """A lost worker, and how many jobs were taken from it."""

    worker_id: int
    jobs: int


class Seen(NamedTuple):
    """A worker as a look has shown it."""

    worker_id: int
    beat_at: datetime
    lease_timeout: float
    is_lost: bool
    is_silent: bool
    has_ended: bool


class LookAtWorkers(NamedTuple):
    """What one look has shown of all workers.

    Attributes:
        workers: All of them.
        asked, answered: This process's monotonic time before and after.
        schedule_is_due: Whether the worker that looks may fire a schedule that is due.
        control: What is set for queues; None for nothing.
        refusal: Why schedules and queues could not be looked at.
    """

    workers: tuple[Seen, ...]
    asked: float
    answered: float
    schedule_is_due: bool = False
    control: dict[str, Any] | None = None
    refusal: Exception | None = None

    @property
    def ended(self) -> dict[int, datetime]:
        """The workers whose sessions were gone, and the last beat of each."""
        return {seen.worker_id: seen.beat_at for seen in self.workers if seen.has_ended}

    @property
    def shows_silent(self) -> bool:
        """Whether a worker was silent by the server's clock."""
        return any(seen.is_silent and not seen.is_lost for seen in self.workers)

    @property
    def shows_lost(self) -> bool:
        """Whether a lost worker's row is still there, as some of its jobs were locked."""
        return any(seen.is_lost for seen in self.workers)


class Beat(NamedTuple):
    """A worker's last beat, and when it was first seen, by this process's monotonic clock."""

    at: datetime
    seen_at: float


def look_at_workers(
    connection: Connection, statements: Statements, serves: Serves = NO_SCHEDULES
) -> LookAtWorkers:
    """Look at all workers: one short transaction, which judges nobody. Commits.

    If the tables of schedules or queues refuse, it looks at the workers alone: jobs of lost ones
    must be found all the same.
    """
    asked = time.monotonic()
    given = {name: value for name, value in serves._asdict().items() if name != "names"}
    try:
        with connection.begin():
            rows: Any = run(connection, statements.rescue.workers, **given).all()
    except DBAPIError as error:
        if lost_connection(error):
            raise
        with connection.begin():
            alone: Any = run(connection, statements.rescue.workers_alone).all()
        seen = tuple(Seen(*row) for row in alone)
        return LookAtWorkers(seen, asked, time.monotonic(), refusal=error)
    workers = tuple(Seen(*row[:-2]) for row in rows)
    schedule_is_due = any(row[-2] for row in rows)
    control = rows[0][-1] if rows else None
    return LookAtWorkers(workers, asked, time.monotonic(), schedule_is_due, control)


def rescue_ended(
    connection: Connection, statements: Statements, before: LookAtWorkers, now: LookAtWorkers
) -> list[Rescued]:
    """Take the jobs of workers whose sessions were gone at two looks in a row. Commits.

    Args:
        connection: Idle, outside a transaction; both looks were made on it.
        statements: Those of the tables.
        before, now: The two looks.
    """
    rescued: list[Rescued] = []
    ended_before = before.ended
    for worker_id, beat_at in now.ended.items():
        if ended_before.get(worker_id) == beat_at:
            given = {"worker": worker_id, "beat_at": beat_at}
            rescued += _rescue(connection, statements, statements.rescue.ended_again, given)
    return rescued


def rescue_silent(
    connection: Connection, statements: Statements, *, judge: int, connected: float
) -> list[Rescued]:
    """Take the jobs of workers that have not beaten for their own lease_timeout. Commits.

    Args:
        connection: Idle, outside a transaction.
        statements: Those of the tables.
        judge: The worker that looks. It judges nobody unless it has beaten lately itself.
        connected: Seconds for which the judge was connected and beat without a gap. It judges
            nobody whose lease_timeout is longer: after an outage everyone is silent.
    """
    given = {"judge": judge, "connected": connected}
    return _rescue(connection, statements, statements.rescue.silent_workers, given)


def rescue_unchanged(
    connection: Connection,
    statements: Statements,
    now: LookAtWorkers,
    seen: dict[int, Beat],
    *,
    judge: int,
    connected: float,
) -> list[Rescued]:
    """Take the jobs of workers whose last beat has not changed for their lease_timeout. Commits.

    :func:`rescue_silent` goes by the server's clock, this by the process's own. When the server's
    clock is set back, the last beat of a lost worker lies ahead of it: by that clock the worker
    would look alive until the clock has reached the beat again.

    Args:
        connection: Idle, outside a transaction.
        statements: Those of the tables.
        now: What a look has just shown.
        seen: The last beats that were seen; updated here. Empty at the first look.
        judge, connected: As for :func:`rescue_silent`.
    """
    before = dict(seen)
    seen.clear()
    unchanged: list[tuple[int, datetime]] = []
    for worker_id, beat_at, lease_timeout, is_lost, *_ in now.workers:
        if is_lost:
            continue
        beat = before.get(worker_id)
        if beat is None or beat.at != beat_at:
            beat = Beat(beat_at, now.answered)
        seen[worker_id] = beat
        if now.asked - beat.seen_at > lease_timeout and worker_id != judge:
            unchanged.append((worker_id, beat_at))
    rescued: list[Rescued] = []
    for worker_id, beat_at in unchanged:
        given = {"worker": worker_id, "beat_at": beat_at, "judge": judge, "connected": connected}
        rescued += _rescue(connection, statements, statements.rescue.unchanged_worker, given)
    return rescued


def rescue_rest(connection: Connection, statements: Statements) -> list[Rescued]:
    """Take jobs of lost workers that were locked when the others were taken. Commits."""
    return _rescue(connection, statements, statements.rescue.lost_workers, {})


def rescue_orphans(connection: Connection, statements: Statements) -> int:
    """Queue jobs again whose worker has no row. Commits; returns how many.

    They come of a claim that was committed after its worker was found lost. Reads the whole table.
    """
    with connection.begin():
        queues = give_back(connection, statements.rescue.give_back_orphans)
    tell_given_back(connection, statements, queues)
    return len(queues)


def _rescue(
    connection: Connection,
    statements: Statements,
    locking: Executable,
    given: dict[str, Any],
) -> list[Rescued]:
    if JUDGING.listeners:
        JUDGING.reached()
    rescued: list[Rescued] = []
    told: set[str] = set()
    # One transaction judges, marks and takes: a beat meanwhile waits for it, and then finds itself
    # lost.
    with connection.begin():
        for worker_id in run(connection, locking, **given).scalars().all():
            if JUDGED.listeners:
                JUDGED.reached(worker_id)
            _end_sessions(connection, statements, worker_id)
            waited_for = run(connection, statements.rescue.mark_lost, worker=worker_id).scalar()
            queues = give_back(connection, statements.rescue.give_back, worker=worker_id)
            if not run(connection, statements.rescue.holds_any, worker=worker_id).scalar():
                run(connection, statements.workers.unregister, worker=worker_id)
            # A job may have woken only this worker, or only workers that are lost.
            told.update(queues, waited_for or ())
            rescued.append(Rescued(worker_id, len(queues)))
    tell_given_back(connection, statements, told)
    return rescued


def _end_sessions(connection: Connection, statements: Statements, worker_id: int) -> None:
    savepoint = connection.begin_nested()
    try:
        # A listener may have set a role: sessions are seen, and ended, as who has logged in.
        connection.exec_driver_sql("SET LOCAL ROLE NONE")
        run(connection, statements.rescue.end_sessions, name=application_name(worker_id))
    except DBAPIError as error:  # without the right to end them, a later sweep takes locked rows
        if lost_connection(error):
            raise
    savepoint.rollback()  # to the role as it was
