"""SQL that moves the rows of the Go library bgjob into the queue's tables.

A worker of that library keeps a job's row locked while it runs the job: locked rows are passed
over. The library writes due times in whole seconds since 1970, and other times without a time zone,
in UTC.
"""

from collections.abc import Mapping
from typing import Any, Final, TypeAlias

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Executable,
    Integer,
    LargeBinary,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    table,
    tuple_,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.dialects.postgresql import insert as pg_insert

from .._drafts import validation
from ..models import lease_at_insert
from ..schema._layouts import GO_DEAD_JOB, GO_JOB, GoTables
from ..settings import MAX_ARG_SIZE
from .words import ONLY, SECOND, Tables, parameter, unnest

FIRST_JOB: Final[Mapping[str, Any]] = {
    "queue": "",
    "next_run_at": -(2**62),
    "created_at": "-infinity",
    "id": "",
}
"""What stands before every job, as the parameters of :meth:`GoBgjobStatements.lock_jobs`."""
FIRST_DEAD_JOB: Final[Mapping[str, Any]] = {"id": -(2**62)}
"""The same for dead jobs."""

_MICROSECOND: ColumnElement[Any] = literal_column("interval '1 microsecond'")
_Alias: TypeAlias = Any


class GoBgjobStatements:
    """Reads the Go library's tables, and moves what is there. Each is built for one place."""

    def __init__(self, tables: Tables) -> None:
        self._job, self._dead = tables.job, tables.dead

    def lock_jobs(self, go: GoTables) -> Executable:
        """Lock jobs that nobody runs, in the order in which the Go library would run them.

        Returns what decides whether a job fits, and its place: the columns of FIRST_JOB.
        Parameters: limit, and the place after which to begin.
        """
        job = _job(go)
        made_at = cast(job.c.created_at, Text).label("created_at")
        after = tuple_(
            parameter("queue", Text),
            parameter("next_run_at", BigInteger),
            cast(parameter("created_at", Text), DateTime),
            parameter("id", Text),
        )
        order = (job.c.queue, job.c.next_run_at, job.c.created_at, job.c.id)
        found = _judged(job, job.c.id, job.c.created_at, job.c.updated_at)
        return _locked(job, found.add_columns(job.c.next_run_at, made_at), order, after)

    def lock_dead_jobs(self, go: GoTables) -> Executable:
        """Lock dead jobs, in the order of their deaths; the rest as :meth:`lock_jobs`."""
        dead = _dead_job(go)
        found = _judged(
            dead, dead.c.job_id, dead.c.job_created_at, dead.c.job_updated_at, dead.c.moved_at
        )
        return _locked(dead, found, (dead.c.id,), tuple_(parameter("id", BigInteger)))

    def move_jobs(self, go: GoTables) -> Executable:
        """Move locked jobs into the table of jobs; returns the ids of those that were moved.

        A job stays while a live one has its id. Parameters: lists ids, headers (JSON text).
        """
        job, theirs = self._job, _job(go)
        given = unnest(ids=Text(), headers=Text())
        # Jobs that are due in the same second run in the order in which they were made, so each is
        # a microsecond after the one before; a later batch begins after what is there.
        second: ColumnElement[Any] = func.to_timestamp(theirs.c.next_run_at)
        last = (
            select(func.max(job.c.next_run_at) + _MICROSECOND)
            .with_hint(job, ONLY)
            .where(
                job.c.queue == theirs.c.queue,
                job.c.priority == literal_column("0"),
                job.c.next_run_at >= second,
                job.c.next_run_at < second + SECOND,
            )
            .correlate(theirs)
            .scalar_subquery()
        )
        place = func.row_number().over(
            partition_by=(theirs.c.queue, theirs.c.next_run_at),
            order_by=(theirs.c.created_at, theirs.c.id),
        )
        values: dict[str, Any] = {
            "id": theirs.c.id,
            **_kept(theirs),
            "headers": cast(given.c.headers, JSONB),
            "next_run_at": func.coalesce(last, second)
            + (place - literal_column("1")) * _MICROSECOND,
            "created_at": _utc(theirs.c.created_at),
            "updated_at": _utc(theirs.c.updated_at),
        }
        rows = (
            select(*values.values())
            .select_from(given.join(theirs, theirs.c.id == given.c.ids))
            .with_hint(theirs, ONLY)
        )
        moved = (
            pg_insert(job)
            .from_select(list(values), rows)
            .on_conflict_do_nothing(index_elements=[job.c.id])
            .returning(job.c.id)
            .cte("moved")
        )
        gone = delete(theirs).with_hint(ONLY).where(theirs.c.id == moved.c.id)
        return gone.returning(theirs.c.id)

    def move_dead_jobs(self, go: GoTables) -> Executable:
        """Move locked dead jobs into the dead table; returns the id of each job.

        Parameters: lists ids, dead_ids (their new ones), headers (JSON text).
        """
        dead, theirs = self._dead, _dead_job(go)
        given = unnest(ids=BigInteger(), dead_ids=Text(), headers=Text())
        gone = delete(theirs).with_hint(ONLY).where(theirs.c.id == given.c.ids)
        moved = gone.returning(*theirs.c, given.c.dead_ids, given.c.headers).cte("moved")
        values: dict[str, Any] = {
            "id": moved.c.dead_ids,
            "job_id": moved.c.job_id,
            **_kept(moved),
            "headers": cast(moved.c.headers, JSONB),
            "lease": lease_at_insert(),
            "next_run_at": func.to_timestamp(moved.c.next_run_at),
            "job_created_at": _utc(moved.c.job_created_at),
            "job_updated_at": _utc(moved.c.job_updated_at),
            "moved_at": _utc(moved.c.moved_at),
        }
        rows = select(*values.values())
        return insert(dead).from_select(list(values), rows).returning(dead.c.job_id)

    def count(self, go: GoTables) -> Executable:
        """How many jobs, and how many dead jobs, are in the Go library's tables."""
        counts = [
            select(func.count()).select_from(its).with_hint(its, ONLY).scalar_subquery()
            for its in (_job(go), _dead_job(go))
        ]
        return select(*counts)


def _job(go: GoTables) -> _Alias:
    times = [column(name, DateTime) for name in ("created_at", "updated_at")]
    return _table(GO_JOB, go, column("id", Text), *times)


def _dead_job(go: GoTables) -> _Alias:
    times = [column(name, DateTime) for name in ("job_created_at", "job_updated_at", "moved_at")]
    return _table(GO_DEAD_JOB, go, column("id", BigInteger), column("job_id", Text), *times)


def _table(name: str, go: GoTables, *own: Any) -> _Alias:
    columns = [
        *own,
        column("queue", Text),
        column("type", Text),
        column("arg", LargeBinary),
        column("attempt", Integer),
        column("last_error", Text),
        column("next_run_at", BigInteger),
    ]
    if name in go.with_request_id:
        columns.append(column("request_id", Text))
    return table(name, *columns, schema=go.schema).alias("theirs")


def _judged(theirs: _Alias, job_id: ColumnElement[str], *times: ColumnElement[Any]) -> Select[Any]:
    """What decides whether a row fits. An arg that is too large is not fetched."""
    size = func.octet_length(theirs.c.arg)
    earliest, latest = (
        literal(moment.replace(tzinfo=None), DateTime)
        for moment in (validation.EARLIEST, validation.LATEST)
    )
    last_second = int(validation.LATEST.timestamp()) - 1
    in_range = and_(
        theirs.c.next_run_at.between(0, last_second),
        *(moment.between(earliest, latest) for moment in times),
    )
    request_id = theirs.c.get("request_id", literal("", Text))
    return select(
        theirs.c.id,
        job_id.label("job_id"),
        theirs.c.queue,
        theirs.c.type,
        theirs.c.attempt,
        request_id.label("request_id"),
        size.label("size"),
        case((size <= literal_column(str(MAX_ARG_SIZE)), theirs.c.arg)).label("arg"),
        in_range.label("in_range"),
    )


def _locked(
    theirs: _Alias, found: Select[Any], order: tuple[ColumnElement[Any], ...], after: Any
) -> Executable:
    return (
        found.with_hint(theirs, ONLY)
        .where(tuple_(*order) > after)
        .order_by(*order)
        .limit(parameter("limit", Integer))
        .with_for_update(skip_locked=True)
    )


def _kept(theirs: Any) -> dict[str, Any]:
    """What stays as it is."""
    return {name: theirs.c[name] for name in ("queue", "type", "arg", "attempt", "last_error")}


def _utc(moment: ColumnElement[Any]) -> ColumnElement[Any]:
    return func.timezone(literal_column("'UTC'"), moment)
