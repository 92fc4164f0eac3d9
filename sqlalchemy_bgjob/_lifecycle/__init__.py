"""The state machine of a job: every transition between queued, running, dead and gone.

Written once, over a plain ``Connection``: the asyncio side calls the same functions from within a
greenlet. Each docstring says who commits.

A settlement is tried as one batch; what fails for a reason of its own is tried row by row, so
that one row cannot harm its neighbours. Whether a COMMIT whose answer was lost took place is
asked of the server by the transaction's id.
"""

import json
import logging
import time
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from operator import attrgetter
from typing import Any, Final, NamedTuple

from sqlalchemy import Connection, Executable, Result
from sqlalchemy.exc import DBAPIError

from .._db.encodings import storable
from .._db.errors import describe, lost_connection, ran_out_of_time, refuses_a_row, summary
from .._db.idle_statement import IdleStatement
from .._db.sessions import application_name
from .._drafts.ids import new_id
from .._drafts.validation import CONTENT_TYPE
from .._handlers.outcomes import INTERRUPTED, Kind, Settlement
from .._inspect.health import Health, look
from .._points import JUDGED, JUDGING, NOTIFYING, WRITE
from .._sql import Statements
from .._sql.rescue import GiveBack
from .._sql.words import parameters
from .row_errors import RowKept

logger = logging.getLogger("sqlalchemy_bgjob")


REFUSING: Final = 100
"""How many rows that refuse to be claimed are passed over in one claim."""
DOUBTFUL: Final = 10
"""The same, where the refusal may be meant for all rows: a trigger, a privilege."""
REFUSING_LASTS: Final = 0.5
"""Seconds after which no further row is tried."""


@dataclass(slots=True, eq=False)
class ClaimedJob:
    """A row as the claim returned it, and by whom it was claimed."""

    queue: str
    worker_id: int
    id: str
    type: str
    arg: bytes | None
    priority: int
    attempt: int
    crashes: int
    lease: int
    last_error: str | None
    headers: dict[str, Any] | None
    next_run_at: datetime
    created_at: datetime
    updated_at: datetime
    unknown_for: float | None
    # Whether this run may be the one that takes the worker, or the job, down: never held ahead.
    careful: bool = False
    handler: Any = None  # once the worker has found it


class Position(NamedTuple):
    """A lane, and the job after which it is read on; without a time, from two seconds ago."""

    priority: int
    at: datetime | None
    id: str


class Fate(Enum):
    """What became of a settlement."""

    SETTLED = "settled"
    STALE = "stale"  # the lease is not ours any more; nothing was changed
    LOCKED = "locked"  # somebody holds a lock on the row; to be tried again
    FAILED = "failed"  # the database refused; to be tried again


@dataclass(slots=True, eq=False)
class Pending:
    """A settlement on its way into the database.

    Attributes:
        xid: The transaction whose COMMIT was not answered, if there was one.
        if_committed: What that transaction settled; *settlement* is written if it was aborted.
        seconds: How long the handler took.
    """

    job: ClaimedJob
    settlement: Settlement
    xid: str | None = None
    if_committed: Settlement | None = None
    error: BaseException | None = None
    tries: int = 0
    seconds: float = 0.0


def _run(connection: Connection, statement: Executable, **values: Any) -> Result[Any]:
    return connection.execute(statement, parameters(**values))


def claim(
    connection: Connection,
    statements: Statements,
    *,
    queue: str,
    limit: int,
    worker_id: int,
    onward: Sequence[Position] | None = None,
    skip: Collection[str] = (),
    direct: IdleStatement | None = None,
) -> list[ClaimedJob]:
    """Take up to *limit* due jobs of one queue, in order, but for those to skip. Caller commits.

    They are read from the head, or with *onward* from there on in each lane; then *direct*, if
    given, runs the statement, which commits by itself.
    """
    given: dict[str, Any] = {"queue": queue, "limit": limit, "worker": worker_id}
    statement = statements.claim.from_head
    if skip:
        statement, given["skip"] = statements.claim.skipping, list(skip)
    elif onward is not None:
        statement = statements.claim.onward
        given["priority"], given["at"], given["id"] = map(list, zip(*onward, strict=True))
    rows: Any
    if direct is not None and statement is direct.statement:
        rows = direct.fetch(connection, parameters(**given))
    else:
        rows = _run(connection, statement, **given).all()
    jobs = [_claimed(queue, worker_id, row) for row in rows]
    jobs.sort(key=_order)
    return jobs


_order: Final = attrgetter("priority", "next_run_at", "id")


def lanes(connection: Connection, statements: Statements, *, queue: str) -> list[int]:
    """The priorities that the jobs of a queue have, ascending."""
    return list(_run(connection, statements.claim.lanes, queue=queue).scalars())


def _claimed(queue: str, worker_id: int, row: Any) -> ClaimedJob:
    job = ClaimedJob(queue, worker_id, *row)
    if not isinstance(job.headers, dict):  # written by SQL, where any JSON is possible
        job.headers = None
    return job


def claim_one_by_one(
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
    for id in _run(connection, statements.claim.due_ids, **given).scalars().all():
        savepoint = connection.begin_nested()
        try:
            one = {"queue": queue, "worker": worker_id, "id": id}
            rows: Any = _run(connection, statements.claim.one, **one).all()
            jobs += [_claimed(queue, worker_id, row) for row in rows]
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


def next_due(
    connection: Connection, statements: Statements, *, queue: str, priorities: Sequence[int]
) -> float | None:
    """Seconds until the next scheduled job in these lanes of a queue."""
    if not priorities:
        return None
    given = {"queue": queue, "priorities": list(priorities)}
    delay = _run(connection, statements.claim.next_due, **given).scalar()
    return None if delay is None else float(delay)


def announce(
    connection: Connection, statements: Statements, *, worker_id: int, queues: Sequence[str]
) -> None:
    """Tell producers for which queues a worker waits to be woken. Commits."""
    with connection.begin():
        _run(connection, statements.workers.announce, worker=worker_id, queues=list(queues))


def write(
    connection: Connection,
    statements: Statements,
    items: Sequence[Pending],
    *,
    wait: bool = False,
) -> tuple[set[str], str | None]:
    """Write settlements of one queue and worker: whose lease held, and the transaction's id.

    The caller commits. With *wait*, a row that somebody else has locked is waited for.
    """
    if not items:
        return set(), None
    completed = [item for item in items if item.settlement.kind is Kind.COMPLETED]
    dead = [item for item in items if item.settlement.kind is Kind.DEAD]
    released = [item for item in items if item.settlement.kind not in (Kind.COMPLETED, Kind.DEAD)]
    held: set[str] = set()
    xid: str | None = None
    if len(completed) == 1 and not wait:
        job = completed[0].job
        one = {"worker": job.worker_id, "id": job.id, "lease": job.lease}
        xid = _run(connection, statements.settle.complete_one, **one).scalar()
        if xid is not None:
            held.add(job.id)
    elif completed:
        given = _fence(completed)
        answer: Any = _run(connection, statements.settle.complete(wait), **given).one()
        count, xid, which = answer
        held.update(given["ids"] if count == len(completed) else which or ())
    for group, statement, columns in (
        (released, statements.settle.release, _release_columns),
        (dead, statements.settle.bury, _bury_columns),
    ):
        if group:
            given = _fence(group) | columns(group)
            given["errors"] = [storable(connection, item.settlement.error) for item in group]
            rows: Any = _run(connection, statement(wait), **given)
            for job_id, xid in rows:  # noqa: B007 - all rows have the one transaction's id
                held.add(job_id)
    if WRITE.listeners:
        WRITE.reached(held)
    return held, xid


def _fence(items: list[Pending]) -> dict[str, Any]:
    # Ids sorted, so that two workers never lock the same rows in opposite orders.
    items.sort(key=_by_id)
    return {
        "worker": items[0].job.worker_id,
        "ids": [item.job.id for item in items],
        "leases": [item.job.lease for item in items],
    }


_by_id: Final = attrgetter("job.id")


def _release_columns(items: Sequence[Pending]) -> dict[str, Any]:
    settlements = [item.settlement for item in items]
    return {
        "give_backs": [int(s.give_back) for s in settlements],
        "delays": [s.delay for s in settlements],
        "keep_errors": [s.keep_error for s in settlements],
        "args": [s.arg.data if s.arg else None for s in settlements],
        "new_args": [s.arg is not None for s in settlements],
        "headers": [_new_headers(item) for item in items],
        "unknowns": [s.kind is Kind.UNKNOWN_TYPE for s in settlements],
    }


def _bury_columns(items: Sequence[Pending]) -> dict[str, Any]:
    return {
        "dead_ids": [new_id() for _ in items],
        "give_backs": [int(item.settlement.give_back) for item in items],
    }


def _new_headers(item: Pending) -> str | None:
    arg = item.settlement.arg
    if arg is None:
        return None
    headers = {k: v for k, v in (item.job.headers or {}).items() if k != CONTENT_TYPE}
    if arg.content_type:
        headers[CONTENT_TYPE] = arg.content_type
    return json.dumps(headers) if headers else None


def settle(
    connection: Connection, statements: Statements, items: Iterable[Pending]
) -> list[tuple[Pending, Fate]]:
    """Settle jobs and commit: one transaction for each queue and worker.

    Each item keeps the id of the transaction that wrote it, so that after a lost connection the
    next call can ask what became of it.

    Raises:
        DBAPIError: The connection was lost; call again with the same items on a new one.
    """
    items = list(items)
    groups: dict[tuple[str, int, int], list[Pending]] = {}
    times: Counter[str] = Counter()
    twice = len({item.job.id for item in items}) < len(items)
    for item in items:
        job = item.job
        # Two leases of one job are two groups, or the late one would pass for the settled one.
        key = job.queue, job.worker_id, times[job.id] if twice else 0
        group = groups.get(key)
        if group is None:
            group = groups[key] = []
        group.append(item)
        if twice:
            times[job.id] += 1
    fates: list[tuple[Pending, Fate]] = []
    for key in sorted(groups):
        fates += _settle_group(connection, statements, groups[key])
    return fates


def _settle_group(
    connection: Connection, statements: Statements, items: list[Pending]
) -> list[tuple[Pending, Fate]]:
    # The fence decides, not the transaction's id: after a failover an id may mean another
    # transaction. So write first, and ask only for what is not found.
    before = {id(item): (item.xid, item.if_committed) for item in items}
    try:
        with connection.begin():
            held, xid = write(connection, statements, items)
            for item in items:
                if item.job.id in held:
                    item.xid, item.if_committed = xid, item.settlement
    except Exception as error:
        if lost_connection(error):
            raise
        for item in items:
            item.xid, item.if_committed = before[id(item)]
        if len(items) > 1:
            return [
                fate for item in items for fate in _settle_group(connection, statements, [item])
            ]
        return [(items[0], _record_failure(connection, statements, items[0], error))]
    if any(item.settlement.kind is Kind.HANDED_BACK for item in items):
        # Somebody may have a free slot for what found none here.
        queues = {item.job.queue for item in items}
        everybody = any(item.settlement == INTERRUPTED for item in items)
        _tell_given_back(connection, statements, queues, everybody=everybody)
    fates = [(item, Fate.SETTLED) for item in items if item.job.id in held]
    missing = [item for item in items if item.job.id not in held]
    if missing:
        fates += _explain(connection, statements, missing)
    return fates


def _explain(
    connection: Connection, statements: Statements, items: list[Pending]
) -> list[tuple[Pending, Fate]]:
    """Rows that were not settled are locked, kept by a trigger, settled before, or not ours."""
    asked = {id(item): _look_up(connection, statements, item) for item in items if item.xid}
    with connection.begin():
        held = set(_run(connection, statements.settle.still_held, **_fence(items)).scalars())
        free = (
            set(_run(connection, statements.settle.free, **_fence(items)).scalars())
            if held
            else held
        )
    fates: list[tuple[Pending, Fate]] = []
    for item in items:
        if item.job.id in free:
            fate = _settle_free(connection, statements, item)
        else:
            fate = Fate.LOCKED if item.job.id in held else asked.get(id(item)) or Fate.STALE
        if fate is Fate.SETTLED and item.if_committed is not None:
            item.settlement = item.if_committed
        fates.append((item, fate))
    return fates


def _settle_free(connection: Connection, statements: Statements, item: Pending) -> Fate:
    """Settle a row that was not settled before, and that nobody has locked: a trigger keeps it.

    Or the lock was given back in between. So it is locked first, and whether it then can be settled
    is a matter of the row alone.
    """
    before = item.xid, item.if_committed
    refusal: Exception = RowKept()
    try:
        with connection.begin():
            if not _run(connection, statements.settle.free, **_fence([item])).first():
                return Fate.LOCKED
            held, xid = write(connection, statements, [item])
            if held:
                item.xid, item.if_committed = xid, item.settlement
        if held:
            return Fate.SETTLED
    except Exception as error:
        if lost_connection(error):
            raise
        item.xid, item.if_committed = before
        refusal = error
    return _record_failure(connection, statements, item, refusal)


def _look_up(connection: Connection, statements: Statements, item: Pending) -> Fate | None:
    """What an unanswered COMMIT came to: SETTLED, LOCKED while it goes on, None for neither."""
    try:
        with connection.begin():
            status = _run(connection, statements.settle.transaction_status, xid=item.xid).scalar()
    except Exception as error:
        if lost_connection(error):
            raise
        return None  # an id that this server has not come to: it was another one's
    if status == "in progress":
        return Fate.LOCKED
    return Fate.SETTLED if status == "committed" else None


def holds(connection: Connection, statements: Statements, item: Pending) -> bool:
    """Whether a job is still this worker's, locked by somebody or not. The caller commits."""
    return bool(_run(connection, statements.settle.still_held, **_fence([item])).first())


def _record_failure(
    connection: Connection, statements: Statements, item: Pending, error: Exception
) -> Fate:
    """A row that refuses its settlement stays ours, with the reason in last_error."""
    item.error = error
    text = f"the settlement ({item.settlement.kind.value}) was refused: {describe(error)}"
    try:
        with connection.begin():
            fence = _fence([item])
            _run(
                connection, statements.settle.note_error, error=storable(connection, text), **fence
            )
    except Exception as second:
        if lost_connection(second):
            raise
        logger.warning("job %s: its error could not be noted: %s", item.job.id, summary(second))
    return Fate.FAILED


def hand_back_others(
    connection: Connection, statements: Statements, *, worker_id: int, known: Iterable[ClaimedJob]
) -> int:
    """Queue again what a worker has claimed without knowing it; commits. Returns how many.

    For after a claim whose answer was lost: the server may have given jobs that never arrived.
    """
    with connection.begin():
        queues = _give_back(
            connection, statements.rescue.hand_back_others, **_of_worker(worker_id, known)
        )
    _tell_given_back(connection, statements, queues)
    return len(queues)


def held_besides(
    connection: Connection, statements: Statements, *, worker_id: int, known: Iterable[ClaimedJob]
) -> set[tuple[str, int]]:
    """Id and lease of what :func:`hand_back_others` is for. Reads the whole table; commits."""
    with connection.begin():
        rows = _run(
            connection, statements.rescue.hand_back_others.held, **_of_worker(worker_id, known)
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
        found = _run(connection, statements.settle.still_held, worker=worker_id, **given)
        return found.first() is not None


def _of_worker(worker_id: int, some: Iterable[ClaimedJob]) -> dict[str, Any]:
    # Pairs, not a mapping: a worker may know two leases of one job, the older one lost.
    jobs = [job for job in some if job.worker_id == worker_id]
    ids, leases = [job.id for job in jobs], [job.lease for job in jobs]
    return {"worker": worker_id, "ids": ids, "leases": leases}


def beat(
    connection: Connection,
    statements: Statements,
    *,
    worker_id: int,
    listener: tuple[int, datetime] | None,
) -> float | None:
    """Say that a worker lives: seconds since its last beat, None if it was found lost. Commits."""
    pid, started_at = listener or (None, None)
    given = {"worker": worker_id, "listener_pid": pid, "listener_started_at": started_at}
    with connection.begin():
        gap = _run(connection, statements.workers.beat, **given).scalar()
    return None if gap is None else float(gap)


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
        _run(
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
    """Remove a worker's row, and give back what it may still hold. Commits.

    The attempts of *refused*, which have run and whose settlement was refused, are spent.
    """
    given = _of_worker(worker_id, refused)
    with connection.begin():
        queues: list[str] = []
        if given["ids"]:
            queues += _give_back(connection, statements.rescue.give_back_refused, **given)
        queues += _give_back(
            connection, statements.rescue.hand_back_others, **_of_worker(worker_id, ())
        )
        _run(connection, statements.workers.unregister, worker=worker_id)
    _tell_given_back(connection, statements, queues)


@dataclass(frozen=True, slots=True)
class Rescued:
    """A lost worker, and how many jobs were taken from it."""

    worker_id: int
    jobs: int


def rescue_silent(
    connection: Connection, statements: Statements, *, judge: int, connected: float
) -> list[Rescued]:
    """Take the jobs of workers that have not beaten for their own lease_timeout. Commits.

    Args:
        connection: Idle, outside a transaction.
        statements: Those of the tables.
        judge: The worker that looks. It judges nobody unless it has beaten lately itself.
        connected: Seconds for which it was connected and beat without a gap. It judges nobody whose
            lease_timeout is longer: after an outage everyone is silent.
    """
    given = {"judge": judge, "connected": connected}
    return _rescue(connection, statements, statements.rescue.silent_workers, given)


class Beat(NamedTuple):
    """A worker's last beat, and when it was first seen, by this process's monotonic clock."""

    at: datetime
    seen_at: float


def rescue_unchanged(
    connection: Connection,
    statements: Statements,
    seen: dict[int, Beat],
    *,
    judge: int,
    connected: float,
) -> list[Rescued]:
    """Take the jobs of workers whose last beat has not changed for their lease_timeout. Commits.

    What :func:`rescue_silent` does by the server's clock, this does by this process's own: a beat
    from before the server's clock was set back lies ahead of it, and would pass for a sign of life
    until the clock has come there again.

    Args:
        connection: Idle, outside a transaction.
        statements: Those of the tables.
        seen: The last beats that were seen; brought up to date here. Empty at the first look.
        judge, connected: As for :func:`rescue_silent`.
    """
    asked = time.monotonic()
    with connection.begin():
        rows: Any = connection.execute(statements.rescue.beats).all()
    answered = time.monotonic()
    before = dict(seen)
    seen.clear()
    unchanged: list[tuple[int, datetime]] = []
    for worker_id, beat_at, lease_timeout in rows:
        beat = before.get(worker_id)
        if beat is None or beat.at != beat_at:
            beat = Beat(beat_at, answered)
        seen[worker_id] = beat
        if asked - beat.seen_at > lease_timeout and worker_id != judge:
            unchanged.append((worker_id, beat_at))
    rescued: list[Rescued] = []
    for worker_id, beat_at in unchanged:
        given = {"worker": worker_id, "beat_at": beat_at, "judge": judge, "connected": connected}
        rescued += _rescue(connection, statements, statements.rescue.unchanged_worker, given)
    return rescued


def rescue_rest(connection: Connection, statements: Statements) -> list[Rescued]:
    """Take the jobs of lost workers that were locked when the others were taken. Commits."""
    return _rescue(connection, statements, statements.rescue.lost_workers, {})


def sample_health(
    connection: Connection, statements: Statements, *, worker_id: int
) -> Health | None:
    """Look at the server, unless another worker is to do that. Commits."""
    with connection.begin():
        if not _run(connection, statements.workers.is_eldest, worker=worker_id).scalar():
            return None
        return look(connection, statements.tables.table_names(connection))


def rescue_ended(
    connection: Connection, statements: Statements, seen: dict[int, datetime]
) -> tuple[list[Rescued], dict[int, datetime]]:
    """Take the jobs of workers whose process has ended, at the second look. Commits.

    Args:
        connection: Idle, outside a transaction.
        statements: Those of the tables.
        seen: What the look before returned: worker and its last beat.

    Returns:
        What was rescued, and what to pass at the next look.
    """
    with connection.begin():
        now = {row[0]: row[1] for row in connection.execute(statements.rescue.ended_workers)}
    rescued: list[Rescued] = []
    for worker_id, beat_at in now.items():
        if seen.get(worker_id) == beat_at:
            given = {"worker": worker_id, "beat_at": beat_at}
            rescued += _rescue(connection, statements, statements.rescue.ended_again, given)
    return rescued, now


def _rescue(
    connection: Connection,
    statements: Statements,
    locking: Executable,
    given: dict[str, Any],
) -> list[Rescued]:
    if JUDGING.listeners:
        JUDGING.reached()
    rescued: list[Rescued] = []
    given_back: set[str] = set()
    # One transaction judges, marks and takes: a beat meanwhile waits, and finds its row lost.
    with connection.begin():
        for worker_id in _run(connection, locking, **given).scalars().all():
            if JUDGED.listeners:
                JUDGED.reached(worker_id)
            _end_sessions(connection, statements, worker_id)
            _run(connection, statements.rescue.mark_lost, worker=worker_id)
            queues = _give_back(connection, statements.rescue.give_back, worker=worker_id)
            if not _run(connection, statements.rescue.holds_any, worker=worker_id).scalar():
                _run(connection, statements.workers.unregister, worker=worker_id)
            given_back.update(queues)
            rescued.append(Rescued(worker_id, len(queues)))
    _tell_given_back(connection, statements, given_back)
    return rescued


def _give_back(connection: Connection, statements: GiveBack, **given: Any) -> list[str]:
    """Queue jobs again: together, or one by one if some row refuses. Returns the queue of each."""
    savepoint = connection.begin_nested()
    try:
        queues = list(_run(connection, statements.together, **given).scalars())
        savepoint.commit()
        return queues
    except Exception as error:
        if lost_connection(error) or ran_out_of_time(error):
            raise
        savepoint.rollback()
    queues = []
    for id in _run(connection, statements.held, **given).scalars().all():
        savepoint = connection.begin_nested()
        try:
            queues += _run(connection, statements.one, **given, id=id).scalars()
            savepoint.commit()
        except Exception as error:
            if lost_connection(error):
                raise
            savepoint.rollback()
            logger.warning("job %s can't be given back: %s", id, summary(error))
    return queues


def _end_sessions(connection: Connection, statements: Statements, worker_id: int) -> None:
    savepoint = connection.begin_nested()
    try:
        _run(connection, statements.rescue.end_sessions, name=application_name(worker_id))
        savepoint.commit()
    except DBAPIError as error:
        if lost_connection(error):
            raise
        savepoint.rollback()  # no right to end them: locked rows are taken by a later sweep


def rescue_orphans(connection: Connection, statements: Statements) -> int:
    """Queue jobs again whose claim names no worker that exists. Commits. Returns how many.

    Reads the whole table. A claim that was committed after its worker had been found lost ends so.
    """
    with connection.begin():
        queues = _give_back(connection, statements.rescue.give_back_orphans)
    _tell_given_back(connection, statements, queues)
    return len(queues)


def _tell_given_back(
    connection: Connection,
    statements: Statements,
    queues: Collection[str],
    *,
    everybody: bool = True,
) -> None:
    """Wake workers that wait, or everybody, in a transaction of its own.

    A hint that fails, as the server may have no room for it, must undo nothing: the jobs are found
    by the next look at the head.
    """
    if not queues:
        return
    try:
        if NOTIFYING.listeners:
            NOTIFYING.reached(queues)
        with connection.begin():
            for queue in sorted(set(queues)):
                _run(connection, statements.rescue.notify_given_back(everybody), queue=queue)
    except Exception as error:
        if lost_connection(error):
            raise
        logger.warning("not told of jobs that were given back: %s", summary(error))
