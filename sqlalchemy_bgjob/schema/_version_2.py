"""Version 2 of the tables: what a queue can do beyond running jobs.

New columns and tables for unique keys, groups, schedules, batches, cancellation, expiry, error
history and queue control; and another index for claims. All of it is additive: workers of version
1 go on beside those of version 2.

Each statement can be run again. So a migration that ends half-way goes on where it stopped, and
:mod:`._online` can do the slow parts before, without blocking anybody.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    SmallInteger,
    Table,
    Text,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import CreateIndex, CreateTable, DropIndex, DropTable

from ._elements import (
    AddColumns,
    DropColumns,
    DropIndexUnlessUsed,
    Operations,
    SetStorage,
    table_of,
)
from ._version_1 import STORAGE_1, tables_1

STORAGE_2: Final[dict[str, Mapping[str, str]]] = {
    **STORAGE_1,
    "control": {},
    "seat": {"fillfactor": "50"},
    "unique_period": {},
    "schedule": {},
    "batch": {},
}
_NEW_TABLES: Final = ("control", "seat", "unique_period", "schedule", "batch")
_NEW_COLUMNS: Final[Mapping[str, tuple[str, ...]]] = {
    "job": (
        "unique_key",
        "group_key",
        "turn",
        "waits",
        "batch_id",
        "cancel_at",
        "expires_at",
        "errors",
    ),
    "dead_job": ("unique_key", "group_key", "turn", "batch_id", "errors"),
}
_NEW_INDEXES: Final[Mapping[str, tuple[str, ...]]] = {
    "job": ("due", "unique_key", "waits", "batch_id"),
    "dead_job": ("batch_id",),
}
_moment = DateTime(timezone=True)
_json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_types: Final[dict[str, Any]] = {
    "unique_key": Text,
    "group_key": Text,
    "turn": BigInteger,
    "waits": Boolean,
    "batch_id": Text,
    "cancel_at": _moment,
    "expires_at": _moment,
    "errors": _json,
}


def tables_2(schema: str | None, prefix: str) -> MetaData:
    metadata = tables_1(schema, prefix)
    job = table_of(metadata, "job", schema, prefix)
    dead_job = table_of(metadata, "dead_job", schema, prefix)
    for table, kind in ((job, "job"), (dead_job, "dead_job")):
        for name in _NEW_COLUMNS[kind]:
            table.append_column(Column(name, _types[name]))
    job.indexes.remove(_old_index(job))
    c = job.c
    order = (c.queue, c.priority, c.next_run_at, c.id)
    Index(f"{prefix}job_due_idx", *order, postgresql_where=text("priority >= -32768"))
    given = c.unique_key.is_not(None)
    Index(f"{prefix}job_unique_key_idx", c.unique_key, unique=True, postgresql_where=given)
    waiting = (c.queue, c.group_key, c.priority, c.turn)
    Index(f"{prefix}job_waits_idx", *waiting, postgresql_where=text("waits"))
    for table in (job, dead_job):
        batch = table.c.batch_id
        Index(f"{table.name}_batch_id_idx", batch, postgresql_where=batch.is_not(None))

    def needed(name: str, type_: Any = Text, default: str | None = None) -> Column[Any]:
        server_default = None if default is None else text(default)
        return Column(name, type_, nullable=False, server_default=server_default)

    def now(name: str) -> Column[Any]:
        return Column(name, _moment, nullable=False, server_default=func.now())

    def key(kind: str, *columns: str) -> PrimaryKeyConstraint:
        return PrimaryKeyConstraint(*columns, name=f"{prefix}{kind}_pkey")

    Table(
        f"{prefix}control",
        metadata,
        needed("queue"),
        needed("key", default="''"),
        Column("paused_at", _moment),
        Column("paused_by", Text),
        Column("pause_reason", Text),
        Column("resume_at", _moment),
        Column("max_running", Integer),
        Column("slots", Integer),
        Column("rate", Float(53)),
        Column("rate_per", Float(53)),
        now("updated_at"),
        key("control", "queue", "key"),
        schema=schema,
    )
    Table(
        f"{prefix}seat",
        metadata,
        needed("queue"),
        needed("key"),
        Column("n", Integer, nullable=False, autoincrement=False),
        Column("job_id", Text),
        Column("lease", BigInteger),
        Column("until", _moment),
        key("seat", "queue", "key", "n"),
        schema=schema,
    )
    Table(
        f"{prefix}unique_period",
        metadata,
        needed("key"),
        needed("job_id"),
        needed("until", _moment),
        key("unique_period", "key"),
        schema=schema,
    )
    schedule = Table(
        f"{prefix}schedule",
        metadata,
        needed("name"),
        needed("source"),
        needed("type"),
        needed("queue"),
        needed("priority", SmallInteger, "'0'"),
        Column("arg", LargeBinary),
        Column("headers", _json),
        needed("cron"),
        needed("timezone", default="'UTC'"),
        needed("missed", default="'one'"),
        needed("overlap", default="'skip'"),
        Column("next_at", _moment),
        Column("last_at", _moment),
        Column("paused_at", _moment),
        Column("paused_by", Text),
        Column("pause_reason", Text),
        now("created_at"),
        now("updated_at"),
        Column("missed_from", _moment),
        Column("missed_until", _moment),
        key("schedule", "name"),
        schema=schema,
    )
    Index(f"{prefix}schedule_next_at_idx", schedule.c.next_at)
    until = schedule.c.missed_until
    Index(f"{prefix}schedule_missed_until_idx", until, postgresql_where=until.is_not(None))
    batches = Table(
        f"{prefix}batch",
        metadata,
        needed("id"),
        needed("total", Integer, "'0'"),
        now("created_at"),
        Column("closed_at", _moment),
        Column("finished_at", _moment),
        Column("then_type", Text),
        Column("then_queue", Text),
        Column("then_arg", LargeBinary),
        Column("then_headers", _json),
        needed("on_dead", default="'continue'"),
        key("batch", "id"),
        schema=schema,
    )
    unfinished = batches.c.finished_at.is_(None)
    Index(f"{prefix}batch_unfinished_idx", batches.c.id, postgresql_where=unfinished)
    return metadata


def begin(op: Operations, schema: str | None, prefix: str) -> None:
    """New columns and tables: locks each table for an instant, whatever its size."""
    tables = tables_2(schema, prefix)
    for kind, columns in _NEW_COLUMNS.items():
        op.execute(AddColumns(table_of(tables, kind, schema, prefix), columns))
    for kind in _NEW_TABLES:
        table = table_of(tables, kind, schema, prefix)
        op.execute(CreateTable(table, if_not_exists=True))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            op.execute(CreateIndex(index, if_not_exists=True))
        if STORAGE_2[kind]:
            op.execute(SetStorage(table, STORAGE_2[kind]))


def indexes(schema: str | None, prefix: str) -> Iterator[Index]:
    """The new indexes of tables that have rows already."""
    tables = tables_2(schema, prefix)
    for kind, names in _NEW_INDEXES.items():
        table = table_of(tables, kind, schema, prefix)
        found = {str(index.name): index for index in table.indexes}
        yield from (found[f"{table.name}_{name}_idx"] for name in names)


def end(op: Operations, schema: str | None, prefix: str) -> None:
    """Drop the index that only the claims of version 1 use, unless workers are there.

    Workers of version 1 would go on without it, but slowly. The doctor tells of an index that was
    left.
    """
    tables = tables_1(schema, prefix)
    worker = table_of(tables, "worker", schema, prefix)
    index = _old_index(table_of(tables, "job", schema, prefix))
    op.execute(DropIndexUnlessUsed(index, worker))


def downgrade(op: Operations, schema: str | None, prefix: str) -> None:
    old, new = tables_1(schema, prefix), tables_2(schema, prefix)
    old_index = _old_index(table_of(old, "job", schema, prefix))
    op.execute(CreateIndex(old_index, if_not_exists=True))
    for index in indexes(schema, prefix):
        op.execute(DropIndex(index))
    for kind in reversed(_NEW_TABLES):
        op.execute(DropTable(table_of(new, kind, schema, prefix)))
    for kind, columns in _NEW_COLUMNS.items():
        op.execute(DropColumns(table_of(new, kind, schema, prefix), columns))


def _old_index(job: Table) -> Index:
    return next(index for index in job.indexes if str(index.name).endswith("_claim_idx"))
