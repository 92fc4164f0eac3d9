"""What completes a new table: names, indexes, checks, storage parameters, the version."""

from collections.abc import Mapping
from typing import Any, Final, cast
from weakref import WeakSet

from sqlalchemy import CheckConstraint, Index, MetaData, Table, event, func, literal_column
from sqlalchemy.exc import ArgumentError
from sqlalchemy.orm import Mapper
from sqlalchemy.sql.elements import conv

from .. import schema
from .._drafts import validation
from ..schema._elements import SetStorage
from ._columns import DeadJobMixin, JobMixin, WorkerMixin
from ._flow_columns import (
    BatchMixin,
    ControlMixin,
    ScheduleMixin,
    SeatMixin,
    UniquePeriodMixin,
)
from ._record_columns import AuditMixin, MinuteMixin, RecordMixin

STORAGE: Final[Mapping[str, Mapping[str, str]]] = {
    "job": {
        # Half of each page stays free for the next version of its rows, so the claim's UPDATE,
        # which changes no indexed column, is HOT: no new index entries, less WAL.
        "fillfactor": "50",
        # Rows live for milliseconds: vacuum by number, not by a share of a backlog.
        "autovacuum_vacuum_scale_factor": "0.02",
        "autovacuum_vacuum_threshold": "1000",
    },
    "dead_job": {},
    # A few rows, updated every few seconds: room on the page keeps beats HOT.
    "worker": {"fillfactor": "50"},
    "control": {},
    # Updated with each job of a group.
    "seat": {"fillfactor": "50"},
    "unique_period": {},
    "schedule": {},
    "batch": {},
    "record": {},
    "minute": {},
    "audit": {},
}


LOWEST_PRIORITY: Final = "-32768"
"""The smallest of a smallint, as text: every row has at least this priority."""


def _table_takes_storage() -> bool:
    """Whether Table takes ``postgresql_with``: plain autogenerate then renders it too."""
    try:
        # The constructor checks the keyword's name; dialect_kwargs does not.
        Table("probe", MetaData(), postgresql_with={})
    except ArgumentError:
        return False
    return True


_TABLE_TAKES_STORAGE: Final = _table_takes_storage()
finished: WeakSet[Table] = WeakSet()


def _finish(table: Table, kind: str) -> bool:
    """Give a new table its final constraint names and storage parameters; False if it has them."""
    if table in finished:
        return False
    finished.add(table)
    table.primary_key.name = conv(f"{table.name}_pkey")
    storage = dict(STORAGE[kind])
    if storage and _TABLE_TAKES_STORAGE:
        table.dialect_kwargs.update(postgresql_with=storage)
    elif storage:
        statement = SetStorage(table, storage).execute_if(dialect="postgresql")
        event.listen(table, "after_create", statement)
    return True


@event.listens_for(JobMixin, "after_mapper_constructed", propagate=True)
def _finish_job(mapper: Mapper[Any], cls: type) -> None:
    table = cast(Table, mapper.local_table)
    # A subclass with a table of its own is joined to the queue's, which is finished already.
    if mapper.inherits is not None or not _finish(table, "job"):
        return
    c = table.c
    # The claim's only index, in the claim's order. It is not partial on claimed_by: a claim that
    # changed a column of an index, or of its predicate, would not be HOT. The predicate holds for
    # every row, and only the statements that are to walk this index repeat it. So no search by id
    # or by address can be planned as such a walk, although it names the queue.
    order = (c.queue, c.priority, c.next_run_at, c.id)
    every = c.priority >= literal_column(LOWEST_PRIORITY)
    Index(conv(f"{table.name}_due_idx"), *order, postgresql_where=every)
    # Of no row that does not use the feature, so claims stay HOT for all others.
    given = c.unique_key.is_not(None)
    Index(conv(f"{table.name}_unique_key_idx"), c.unique_key, unique=True, postgresql_where=given)
    waiting = (c.queue, c.group_key, c.priority, c.turn)
    Index(conv(f"{table.name}_waits_idx"), *waiting, postgresql_where=c.waits)
    _index_batch(table)
    for name, condition in {
        # The same limits that enqueue checks, for rows written by SQL.
        "queue": func.length(c.queue).between(1, 128),
        "type": func.length(c.type).between(1, 128),
        "id": func.length(c.id).between(1, 255),
        "attempt": c.attempt >= 0,
        "crashes": c.crashes >= 0,
        # 'infinity' and years beyond 9999 have no Python datetime: one such row would make every
        # claim that meets it fail.
        "times": c.next_run_at.between(validation.EARLIEST, validation.LATEST)
        & c.created_at.between(validation.EARLIEST, validation.LATEST)
        & c.updated_at.between(validation.EARLIEST, validation.LATEST),
    }.items():
        table.append_constraint(CheckConstraint(condition, name=conv(f"{table.name}_{name}_check")))
    table.comment = schema.comment_of(schema.LATEST)


@event.listens_for(DeadJobMixin, "after_mapper_constructed", propagate=True)
def _finish_dead_job(mapper: Mapper[Any], cls: type) -> None:
    table = cast(Table, mapper.local_table)
    if mapper.inherits is None and _finish(table, "dead_job"):
        # Newest first in lists, oldest first when pruning; found by job when redriving.
        Index(conv(f"{table.name}_moved_at_idx"), table.c.moved_at)
        Index(conv(f"{table.name}_job_id_idx"), table.c.job_id)
        _index_batch(table)


def _index_batch(table: Table) -> None:
    batch = table.c.batch_id
    Index(conv(f"{table.name}_batch_id_idx"), batch, postgresql_where=batch.is_not(None))


def _finish_when_mapped(mixin: type, kind: str) -> None:
    """For a table that has no index beside its key."""

    @event.listens_for(mixin, "after_mapper_constructed", propagate=True)
    def finish(mapper: Mapper[Any], cls: type) -> None:
        _finish(cast(Table, mapper.local_table), kind)


_finish_when_mapped(WorkerMixin, "worker")
_finish_when_mapped(ControlMixin, "control")
_finish_when_mapped(SeatMixin, "seat")
_finish_when_mapped(UniquePeriodMixin, "unique_period")
_finish_when_mapped(MinuteMixin, "minute")
_finish_when_mapped(AuditMixin, "audit")


@event.listens_for(ScheduleMixin, "after_mapper_constructed", propagate=True)
def _finish_schedule(mapper: Mapper[Any], cls: type) -> None:
    table = cast(Table, mapper.local_table)
    if _finish(table, "schedule"):
        Index(conv(f"{table.name}_next_at_idx"), table.c.next_at)
        until = table.c.missed_until
        Index(conv(f"{table.name}_missed_until_idx"), until, postgresql_where=until.is_not(None))


@event.listens_for(BatchMixin, "after_mapper_constructed", propagate=True)
def _finish_batch(mapper: Mapper[Any], cls: type) -> None:
    table = cast(Table, mapper.local_table)
    if _finish(table, "batch"):
        unfinished = table.c.finished_at.is_(None)
        Index(conv(f"{table.name}_unfinished_idx"), table.c.id, postgresql_where=unfinished)


@event.listens_for(RecordMixin, "after_mapper_constructed", propagate=True)
def _finish_record(mapper: Mapper[Any], cls: type) -> None:
    table = cast(Table, mapper.local_table)
    if _finish(table, "record"):
        Index(conv(f"{table.name}_keep_until_idx"), table.c.keep_until)
        Index(conv(f"{table.name}_type_idx"), table.c.type, table.c.ended_at)
        table.comment = schema.records.comment_of(schema.records.LATEST)
