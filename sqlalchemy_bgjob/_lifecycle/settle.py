"""Settle: write what follows from an outcome, if the lease still holds.

Settlements are written as one batch. If the batch is refused, each is written by itself, so that
one row cannot harm its neighbours. If the answer to a COMMIT was lost, the server is asked by the
transaction's id whether it took place.
"""

import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection, Executable

from .._db.encodings import storable
from .._db.errors import describe, lost_connection, sqlstate, summary
from .._db.printable import printable
from .._drafts.ids import new_id
from .._drafts.validation import CONTENT_TYPE
from .._handlers.outcomes import ENDED, GONE, Kind, Settlement
from .._points import WRITE
from .._sql import Statements
from .._sql.settle import SettleStatements
from . import run
from .claim import ClaimedJob
from .give_back import tell_given_back
from .records import as_json, limit_waits
from .row_errors import RowKept

logger = logging.getLogger("sqlalchemy_bgjob")


class Fate(Enum):
    """What became of a settlement."""

    SETTLED = "settled"
    STALE = "stale"  # the lease is not ours any more; nothing was changed
    LOCKED = "locked"  # somebody holds a lock on the row, or the record; to be tried again
    FAILED = "failed"  # the database refused; to be tried again


_LOCK_NOT_AVAILABLE: Final = "55P03"


@dataclass(slots=True, eq=False)
class Pending:
    """A settlement on its way into the database.

    Attributes:
        xid: The transaction whose COMMIT was not answered, if there was one.
        if_committed: What that transaction settled; *settlement* is written if it was aborted.
        seconds: How long the handler took; 0 if it was not called.
        progress: What the handler has said of its progress.
        fate: What became of it, if the handler's own transaction wrote it.
    """

    job: ClaimedJob
    settlement: Settlement
    xid: str | None = None
    if_committed: Settlement | None = None
    error: BaseException | None = None
    tries: int = 0
    seconds: float = 0.0
    progress: dict[str, Any] | None = None
    fate: Fate | None = None


def write(
    connection: Connection, statements: Statements, items: Sequence[Pending]
) -> tuple[set[str], str | None]:
    """Write settlements of one worker. The caller commits.

    Rows that somebody else has locked are passed over. To wait for them, :func:`lock` them first.

    Returns:
        The ids of the jobs whose lease held, and the transaction's id.
    """
    if not items:
        return set(), None
    gone = [item for item in items if item.settlement.kind in GONE]
    dead = [item for item in items if item.settlement.kind is Kind.DEAD]
    released = [item for item in items if item.settlement.kind not in ENDED]
    kept = [] if statements.records is None else _kept(items)
    if kept:
        gone = [item for item in gone if not item.job.keep]
        dead = [item for item in dead if not item.job.keep]
    parts: list[tuple[Iterable[str], str | None]] = []
    if len(gone) == 1:
        job = gone[0].job
        one = {"queue": job.queue, "worker": job.worker_id, "id": job.id, "lease": job.lease}
        xid = run(connection, statements.settle.complete_one, **one).scalar()
        parts.append(((job.id,) if xid is not None else (), xid))
    elif gone:
        parts.append(_delete(connection, _of(statements, gone).complete, gone))
    if released:
        parts.append(
            _move(connection, _of(statements, released).release, released, _release_columns)
        )
    if dead:
        parts.append(_move(connection, _of(statements, dead).bury, dead, _bury_columns))
    if gone := [item for item in kept if item.settlement.kind in GONE]:
        parts.append(_delete(connection, _of(statements, gone).complete_recorded, gone, _left))
    if dead := [item for item in kept if item.settlement.kind is Kind.DEAD]:
        bury = _of(statements, dead).bury_recorded
        parts.append(_move(connection, bury, dead, _bury_columns, _left))
    held = {id for ids, _ in parts for id in ids}
    if WRITE.listeners:
        WRITE.reached(held)
    return held, next((xid for _, xid in parts if xid is not None), None)


def _of(statements: Statements, items: Iterable[Pending]) -> SettleStatements:
    """Those for jobs of one queue, or of several, whose parameters :func:`_fence` gives."""
    return statements.settle_of_queues if _are_of_queues(items) else statements.settle


def _are_of_queues(items: Iterable[Pending]) -> bool:
    return len({item.job.queue for item in items}) > 1


_Columns = Callable[[Connection, Sequence[Pending]], dict[str, Any]]


def _delete(
    connection: Connection, statement: Executable, items: list[Pending], *columns: _Columns
) -> tuple[Iterable[str], str | None]:
    """Run a statement that deletes the rows: which ids were held, and the transaction's id."""
    given = _given(connection, items, columns)
    answer: Any = run(connection, statement, **given).one()
    count, xid, which = answer
    return given["ids"] if count == len(items) else which or (), xid


def _move(
    connection: Connection, statement: Executable, items: list[Pending], *columns: _Columns
) -> tuple[Iterable[str], str | None]:
    """Run a statement that queues the rows again, or moves them to the dead table; the same."""
    rows: Any = run(connection, statement, **_given(connection, items, columns)).all()
    return [id for id, _ in rows], rows[0][1] if rows else None


def _given(
    connection: Connection, items: list[Pending], columns: Iterable[_Columns]
) -> dict[str, Any]:
    given = _fence(items)  # it sorts them
    for some in columns:
        given |= some(connection, items)
    return given


def lock(connection: Connection, statements: Statements, items: Sequence[Pending]) -> None:
    """Lock the jobs of one queue and worker, as far as it holds them; wait for who has them locked.

    So whether :func:`write` can settle them, in the same transaction, depends on the rows alone.
    """
    keeps_key = all(item.settlement.kind not in ENDED for item in items)
    statement = statements.settle.lock(keeps_key, _leaves_record(statements, items))
    run(connection, statement, **_fence(list(items))).all()


def _kept(items: Iterable[Pending]) -> list[Pending]:
    """Those of which a record is to be written: the job ends, and its handler says so."""
    return [item for item in items if item.job.keep and item.settlement.kind in ENDED]


def _limit_waits(connection: Connection, statements: Statements, items: Iterable[Pending]) -> None:
    """Let settlements be refused soon for records that somebody has inserted and not committed."""
    if _leaves_record(statements, items):
        limit_waits(connection)


def _leaves_record(statements: Statements, items: Iterable[Pending]) -> bool:
    return statements.records is not None and bool(_kept(items))


def _left(connection: Connection, items: Sequence[Pending]) -> dict[str, Any]:
    """What the runs of these items leave for the records of their jobs."""
    results = [item.settlement.result for item in items]
    return {
        "states": [item.settlement.kind.value for item in items],
        "keeps": [item.job.keep for item in items],
        "rans": [item.seconds or None for item in items],
        "progress": [as_json(connection, item.progress) for item in items],
        "results": [result.data if result else None for result in results],
        "content_types": [result.content_type if result else None for result in results],
    }


def _fence(items: list[Pending]) -> dict[str, Any]:
    # Ids sorted, so that two workers never lock the same rows in opposite orders.
    items.sort(key=_by_id)
    first = items[0].job
    given: dict[str, Any] = {
        "worker": first.worker_id,
        "ids": [item.job.id for item in items],
        "leases": [item.job.lease for item in items],
    }
    if _are_of_queues(items):
        return {"queues": [item.job.queue for item in items], **given}
    return {"queue": first.queue, **given}


_by_id: Final = attrgetter("job.id")


def _release_columns(connection: Connection, items: Sequence[Pending]) -> dict[str, Any]:
    settlements = [item.settlement for item in items]
    return {
        "errors": _errors(connection, items),
        "refunds": [int(s.refund_attempt) for s in settlements],
        "moments": [s.at for s in settlements],
        "delays": [s.delay for s in settlements],
        "keep_errors": [s.keep_error for s in settlements],
        "args": [s.arg.data if s.arg else None for s in settlements],
        "new_args": [s.arg is not None for s in settlements],
        "headers": [_new_headers(item) for item in items],
        "unknowns": [s.kind is Kind.UNKNOWN_TYPE for s in settlements],
    }


def _bury_columns(connection: Connection, items: Sequence[Pending]) -> dict[str, Any]:
    return {
        "errors": _errors(connection, items),
        "dead_ids": [new_id() for _ in items],
        "refunds": [int(item.settlement.refund_attempt) for item in items],
    }


def _errors(connection: Connection, items: Iterable[Pending]) -> list[str | None]:
    return [storable(connection, item.settlement.error) for item in items]


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
    """Settle jobs: one transaction for each worker, and one for what it could not write before.

    Commits. Each item keeps the id of the transaction that has written it. So if the connection is
    lost, the next call can ask what became of that transaction.

    Raises:
        DBAPIError: The connection was lost; call again with the same items on a new one.
    """
    items = list(items)
    groups: dict[tuple[int, bool, int], list[Pending]] = {}
    times: Counter[str] = Counter()
    twice = len({item.job.id for item in items}) < len(items)
    for item in items:
        job = item.job
        # What may be refused again must not take the others' transaction apart each time. And two
        # leases of one job are two groups, or the late one would pass for the settled one.
        key = job.worker_id, item.tries > 0, times[job.id] if twice else 0
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
    held: set[str] = set()
    xid: str | None = None
    try:
        with connection.begin():
            _limit_waits(connection, statements, items)
            held, xid = write(connection, statements, items)
    except Exception as error:
        if lost_connection(error):
            _keep_xid(items, held, xid)
            raise
        if len(items) > 1:
            parts = _by_queue(items) if _are_of_queues(items) else [[item] for item in items]
            return [fate for part in parts for fate in _settle_group(connection, statements, part)]
        return [(items[0], _refused(connection, statements, items[0], error))]
    _keep_xid(items, held, xid)
    back = [item for item in items if item.settlement.kind is Kind.HANDED_BACK]
    if back:
        # Another worker may have a free slot for them.
        queues = {item.job.queue for item in items}
        everybody = any(not item.settlement.keep_error for item in back)  # they were interrupted
        tell_given_back(connection, statements, queues, everybody=everybody)
    fates = [(item, Fate.SETTLED) for item in items if item.job.id in held]
    missing = [item for item in items if item.job.id not in held]
    for part in _by_queue(missing):
        fates += _explain(connection, statements, part)
    return fates


def _by_queue(items: Iterable[Pending]) -> list[list[Pending]]:
    """The items of each queue."""
    parts: dict[str, list[Pending]] = {}
    for item in items:
        parts.setdefault(item.job.queue, []).append(item)
    return [*parts.values()]


def _keep_xid(items: Iterable[Pending], held: set[str], xid: str | None) -> None:
    """After the COMMIT, or where its answer was lost: which transaction has settled the items."""
    for item in items:
        if item.job.id in held:
            item.xid, item.if_committed = xid, item.settlement


def _explain(
    connection: Connection, statements: Statements, items: list[Pending]
) -> list[tuple[Pending, Fate]]:
    """Why rows of one queue were not settled: locked, kept by a trigger, or of another lease."""
    asked = {item: _look_up(connection, statements, item) for item in items if item.xid}
    fence = _fence(items)
    free: set[str] = set()
    with connection.begin():
        held = set(run(connection, statements.settle.still_held, **fence).scalars())
        if held:
            statement = statements.settle.free(_leaves_record(statements, items))
            free.update(run(connection, statement, **fence).scalars())
    fates: list[tuple[Pending, Fate]] = []
    for item in items:
        if item.job.id in free:
            fate = _settle_free(connection, statements, item)
        else:
            fate = Fate.LOCKED if item.job.id in held else asked.get(item) or Fate.STALE
        if fate is Fate.SETTLED and item.if_committed is not None:
            item.settlement = item.if_committed
        fates.append((item, fate))
    return fates


def _settle_free(connection: Connection, statements: Statements, item: Pending) -> Fate:
    """Settle a row that was not settled although this worker holds it and nobody has locked it.

    A trigger keeps it, or its lock was released in between. So lock it first: whether it can be
    settled then depends on the row alone.
    """
    held: set[str] = set()
    xid: str | None = None
    try:
        with connection.begin():
            statement = statements.settle.free(_leaves_record(statements, [item]))
            if not run(connection, statement, **_fence([item])).first():
                return Fate.LOCKED
            _limit_waits(connection, statements, [item])
            held, xid = write(connection, statements, [item])
    except Exception as error:
        if lost_connection(error):
            _keep_xid([item], held, xid)
            raise
        return _refused(connection, statements, item, error)
    if not held:
        return _record_failure(connection, statements, item, RowKept())
    _keep_xid([item], held, xid)
    return Fate.SETTLED


def _look_up(connection: Connection, statements: Statements, item: Pending) -> Fate | None:
    """What became of an unanswered COMMIT: SETTLED, LOCKED while it goes on, None if aborted."""
    try:
        with connection.begin():
            status = run(connection, statements.settle.transaction_status, xid=item.xid).scalar()
    except Exception as error:
        if lost_connection(error):
            raise
        return None  # an id that this server has not reached: after a failover it is another's
    if status == "in progress":
        return Fate.LOCKED
    return Fate.SETTLED if status == "committed" else None


def still_holds(connection: Connection, statements: Statements, item: Pending) -> bool:
    """Whether this worker still holds a job, locked by somebody or not. The caller commits."""
    return bool(run(connection, statements.settle.still_held, **_fence([item])).first())


def _refused(
    connection: Connection, statements: Statements, item: Pending, error: Exception
) -> Fate:
    """The fate of a settlement that ended in an error; it may have waited for a record."""
    if _leaves_record(statements, [item]) and sqlstate(error) == _LOCK_NOT_AVAILABLE:
        return Fate.LOCKED
    return _record_failure(connection, statements, item, error)


def _record_failure(
    connection: Connection, statements: Statements, item: Pending, error: Exception
) -> Fate:
    """Write into last_error why a row refuses its settlement. The worker keeps the job."""
    item.error = error
    text = f"the settlement ({item.settlement.kind.value}) was refused: {describe(error)}"
    try:
        with connection.begin():
            fence = _fence([item])
            run(connection, statements.settle.note_error, error=storable(connection, text), **fence)
    except Exception as second:
        if lost_connection(second):
            raise
        logger.warning(
            "job %s: its error could not be noted: %s", printable(item.job.id), summary(second)
        )
    return Fate.FAILED
