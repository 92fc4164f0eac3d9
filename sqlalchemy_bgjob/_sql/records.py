"""SQL that writes records and counts, and deletes those whose time is over.

What a job's end leaves is written by the statement that takes its row away, so the two are one. A
record is fenced by the lease of the claim that wrote it: an earlier claim comes too late.
"""

from functools import cached_property
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    BigInteger,
    ColumnElement,
    Executable,
    Float,
    FromClause,
    Integer,
    Interval,
    LargeBinary,
    Select,
    Table,
    Text,
    and_,
    case,
    cast,
    delete,
    func,
    insert,
    literal_column,
    not_,
    or_,
    select,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert
from sqlalchemy.sql.selectable import CTE

from ..models import Recording
from .words import ONLY, SECOND, Tables, at, each_held, parameter, unnest

LEFT: Final[dict[str, Any]] = {
    "states": Text(),
    "keeps": Float(53),
    "rans": Float(53),
    "progress": Text(),
    "results": LargeBinary(),
    "content_types": Text(),
}
"""What a run leaves for the record of its job: parameters of the statements that end jobs."""


def kept_columns(job: Table) -> list[ColumnElement[Any]]:
    """The columns of a job's row that its record needs."""
    names = ("id", "queue", "type", "attempt", "lease", "claimed_by", "created_at", "next_run_at")
    return [job.c[name] for name in names]


_LIVE: ColumnElement[str] = literal_column("'live'", Text)


def not_locked(
    record: Table, job_id: ColumnElement[str], *, wait: bool = False
) -> ColumnElement[bool]:
    """That nobody else has locked a job's record, if there is one; then it is locked here.

    An INSERT that finds it there would wait for who has. With *wait* this waits, too.
    """
    it = record.alias("its_record")
    found: Select[Any] = select(literal_column("1")).select_from(it).with_hint(it, ONLY)
    found = found.where(it.c.job_id == job_id).correlate_except(it)
    return or_(not_(found.exists()), found.with_for_update(skip_locked=not wait).exists())


def noted(
    record: Table, gone: FromClause, given: Any, *, attempt: ColumnElement[int], error: Any
) -> CTE:
    """Write the records of jobs that are gone, in the same statement.

    Args:
        record: The table.
        gone: The rows that were deleted.
        given: What their runs leave, by id: the columns of :data:`LEFT`.
        attempt: The attempt that ended.
        error: What went wrong.
    """
    rows = select(
        gone.c.id,
        gone.c.queue,
        gone.c.type,
        given.c.states,
        attempt,
        gone.c.lease,
        gone.c.claimed_by,
        cast(given.c.progress, JSONB),
        given.c.results,
        given.c.content_types,
        error,
        gone.c.created_at,
        gone.c.next_run_at,
        _ago(given.c.rans),
        func.clock_timestamp(),
        _from_now(given.c.keeps),
    ).select_from(gone.join(given, gone.c.id == given.c.ids))
    return _ended(record, rows)


def _ended(record: Table, rows: Select[Any]) -> CTE:
    new = pg_insert(record).from_select([column.name for column in record.c], rows)
    values: dict[str, Any] = {c.name: new.excluded[c.name] for c in record.c if not c.primary_key}
    # Of a job that did not complete, what an attempt said that could not say more.
    unfinished = and_(record.c.ended_at.is_(None), values["state"] != literal_column("'completed'"))
    earlier = func.coalesce(values["progress"], record.c.progress)
    values["progress"] = case((unfinished, earlier), else_=values["progress"])
    return (
        new.on_conflict_do_update(
            index_elements=[record.c.job_id],
            set_=values,
            where=record.c.lease <= new.excluded.lease,
        )
        .returning(record.c.job_id)
        .cte("noted")
    )


def cancelled(record: Table, deleted: FromClause, given: Any, rest: ColumnElement[float]) -> CTE:
    """Write the records of queued jobs that were cancelled, in the same statement.

    Args:
        record: The table.
        deleted: The rows that were deleted.
        given: For how long jobs of a type are kept: types, queues, and seconds.
        rest: Seconds for the other types; null or 0 is not at all.
    """
    by_default = given.c.types == literal_column("'*'")
    known = (
        select(given.c.keeps)
        .where(
            or_(given.c.types == deleted.c.type, by_default & (given.c.queues == deleted.c.queue))
        )
        .order_by(by_default)
        .limit(literal_column("1"))
        .correlate(deleted)
        .scalar_subquery()
    )
    keep: ColumnElement[Any] = func.coalesce(known, rest)
    before = record.alias("before")
    rows = (
        select(
            deleted.c.id,
            deleted.c.queue,
            deleted.c.type,
            literal_column("'cancelled'", Text),
            deleted.c.attempt,
            deleted.c.lease,
            deleted.c.claimed_by,
            literal_column("NULL::jsonb", JSONB),
            literal_column("NULL::bytea", LargeBinary),
            literal_column("NULL", Text),
            literal_column("NULL", Text),
            deleted.c.created_at,
            deleted.c.next_run_at,
            literal_column("NULL::timestamptz"),
            func.clock_timestamp(),
            # One that has a record already keeps it, though this process does not know its type.
            func.coalesce(_from_now(func.nullif(keep, literal_column("0"))), before.c.keep_until),
        )
        .select_from(deleted.outerjoin(before, before.c.job_id == deleted.c.id))
        .with_hint(before, ONLY)
        .where(or_(keep > literal_column("0"), before.c.ended_at.is_(None) & _is_there(before)))
    )
    return _ended(record, rows)


def _is_there(before: Any) -> ColumnElement[bool]:
    there: ColumnElement[bool] = before.c.job_id.is_not(None)
    return there


def _from_now(seconds: ColumnElement[float]) -> ColumnElement[Any]:
    return func.statement_timestamp() + seconds * SECOND


def _ago(seconds: ColumnElement[float]) -> ColumnElement[Any]:
    return func.statement_timestamp() - seconds * SECOND


class RecordStatements:
    """Progress, counts, and retention."""

    def __init__(self, tables: Tables, recording: Recording) -> None:
        self._job = tables.job
        self._record, self._minute = recording.record, recording.minute

    @cached_property
    def progress(self) -> Executable:
        """Write what running jobs of one queue say of their progress.

        A job that this worker does not hold any more is left alone, and so is a record that
        somebody has locked, or that the job's end has written meanwhile. Parameters: queue, worker,
        and lists ids, leases, progress (JSON text), keeps, rans (seconds).
        """
        job, record = self._job, self._record
        given = unnest(
            ids=Text(), leases=BigInteger(), progress=Text(), keeps=Float(53), rans=Float(53)
        )
        holder = parameter("worker", BigInteger)
        held = each_held(
            job,
            given,
            literal_column("held.ctid"),
            holder,
            lambda held, one: one.where(not_locked(record, held.c.id)).limit(1),
            parameter("queue", Text),
        )
        values: dict[str, Any] = {
            "job_id": job.c.id,
            "queue": job.c.queue,
            "type": job.c.type,
            "state": _LIVE,
            "attempt": job.c.attempt,
            "lease": job.c.lease,
            "worker": job.c.claimed_by,
            "progress": cast(given.c.progress, JSONB),
            "enqueued_at": job.c.created_at,
            "due_at": job.c.next_run_at,
            "started_at": _ago(given.c.rans),
            "keep_until": _from_now(given.c.keeps),
        }
        named = job.c.queue == parameter("queue", Text)
        rows = (
            select(*values.values())
            .select_from(job)
            .with_hint(job, ONLY)
            .where(named, at(held), job.c.id.concat(literal_column("''")) == given.c.ids)
        )
        new = pg_insert(record).from_select(list(values), rows)
        changed: dict[str, Any] = {
            name: new.excluded[name] for name in values if name not in ("job_id", "keep_until")
        }
        # The index on keep_until stays as it is: a record of a life before is of no use any more.
        of_this_life = record.c.ended_at.is_(None)
        changed["keep_until"] = case(
            (of_this_life, record.c.keep_until), else_=new.excluded.keep_until
        )
        nothing: dict[str, Any] = dict.fromkeys(
            ("result", "result_content_type", "error", "ended_at")
        )
        later = record.c.lease < new.excluded.lease
        return new.on_conflict_do_update(
            index_elements=[record.c.job_id],
            set_={**changed, **nothing},
            where=or_(later, and_(record.c.lease == new.excluded.lease, of_this_life)),
        )

    @cached_property
    def count(self) -> Executable:
        """Write one row of counts. Parameters: its columns but the time."""
        arrays = dict.fromkeys(("waits", "runs"), ARRAY(BigInteger))
        given: dict[str, Any] = {
            c.name: parameter(c.name, arrays.get(c.name, c.type)) for c in self._minute.c
        }
        return insert(self._minute).values(**{**given, "at": func.statement_timestamp()}).inline()

    @cached_property
    def delete_old(self) -> Executable:
        """Delete records whose time is over, the oldest first; returns how many.

        Those that somebody has locked are passed over. Parameter: limit.
        """
        old = self._record.alias("old")
        return too_old(self._record, old, old.c.keep_until, func.statement_timestamp())

    @cached_property
    def delete_old_counts(self) -> Executable:
        """The same of counts of a certain age. Parameters: age (timedelta), limit."""
        old = self._minute.alias("old")
        before = func.statement_timestamp() - parameter("age", Interval)
        return too_old(self._minute, old, old.c.at, before)


def too_old(table: Table, old: Any, time: Any, before: ColumnElement[Any]) -> Executable:
    """Delete rows of a time before, the oldest first, but locked ones; returns how many."""
    locked: Select[Any] = (
        select(literal_column("old.ctid"))
        .select_from(old)
        .with_hint(old, ONLY)
        .where(time < before)
        .order_by(time)
        .limit(parameter("limit", Integer))
        .with_for_update(skip_locked=True)
    )
    key = next(iter(table.primary_key))
    gone = delete(table).with_hint(ONLY).where(at(locked)).returning(key).cte("gone")
    return select(func.count()).select_from(gone)
