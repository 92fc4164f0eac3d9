"""Version 1 of the tables: jobs, dead jobs and workers. It never changes."""

from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
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
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable

from ._elements import CreateSchemaIfMissing, Operations, SetStorage, table_of

STORAGE_1: Final[dict[str, Mapping[str, str]]] = {
    "job": {
        "fillfactor": "50",
        "autovacuum_vacuum_scale_factor": "0.02",
        "autovacuum_vacuum_threshold": "1000",
    },
    "dead_job": {},
    "worker": {"fillfactor": "50"},
}


def tables_1(schema: str | None, prefix: str) -> MetaData:
    metadata = MetaData()
    moment = DateTime(timezone=True)
    json = JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")

    def text_column(name: str, *, nullable: bool = False) -> Column[Any]:
        return Column(name, Text, nullable=nullable)

    def counter(name: str, type_: type[Integer] = Integer) -> Column[Any]:
        return Column(name, type_, nullable=False, server_default=text("'0'"))

    def time(name: str, *, default: bool = False, nullable: bool = False) -> Column[Any]:
        server_default = func.now() if default else None
        return Column(name, moment, nullable=nullable, server_default=server_default)

    def check(table: str, name: str, condition: str) -> CheckConstraint:
        return CheckConstraint(text(condition), name=f"{prefix}{table}_{name}_check")

    earliest, latest = "'1970-01-01 00:00:00+00:00'", "'9999-01-01 00:00:00+00:00'"
    times = " AND ".join(
        f"{name} BETWEEN {earliest} AND {latest}"
        for name in ("next_run_at", "created_at", "updated_at")
    ).replace(":", "\\:")
    job = Table(
        f"{prefix}job",
        metadata,
        text_column("id"),
        text_column("queue"),
        text_column("type"),
        Column("arg", LargeBinary),
        counter("priority", SmallInteger),
        counter("attempt"),
        counter("crashes"),
        Column(
            "lease",
            BigInteger,
            nullable=False,
            server_default=text(
                "((EXTRACT(epoch FROM clock_timestamp()) * (1000000)::numeric))::bigint"
            ),
        ),
        Column("claimed_by", BigInteger),
        text_column("last_error", nullable=True),
        Column("headers", json),
        time("next_run_at", default=True),
        time("created_at", default=True),
        time("updated_at", default=True),
        time("unknown_since", nullable=True),
        PrimaryKeyConstraint("id", name=f"{prefix}job_pkey"),
        check("job", "queue", "length(queue) BETWEEN 1 AND 128"),
        check("job", "type", "length(type) BETWEEN 1 AND 128"),
        check("job", "id", "length(id) BETWEEN 1 AND 255"),
        check("job", "attempt", "attempt >= 0"),
        check("job", "crashes", "crashes >= 0"),
        check("job", "times", times),
        schema=schema,
    )
    order = (job.c.queue, job.c.priority, job.c.next_run_at, job.c.id)
    Index(f"{prefix}job_claim_idx", *order, postgresql_where=job.c.queue.is_not(None))

    dead_job = Table(
        f"{prefix}dead_job",
        metadata,
        text_column("id"),
        text_column("job_id"),
        text_column("queue"),
        text_column("type"),
        Column("arg", LargeBinary),
        counter("priority", SmallInteger),
        counter("attempt"),
        counter("crashes"),
        Column("lease", BigInteger, nullable=False),
        text_column("last_error", nullable=True),
        Column("headers", json),
        time("next_run_at"),
        time("job_created_at"),
        time("job_updated_at"),
        time("moved_at", default=True),
        PrimaryKeyConstraint("id", name=f"{prefix}dead_job_pkey"),
        schema=schema,
    )
    Index(f"{prefix}dead_job_moved_at_idx", dead_job.c.moved_at)
    Index(f"{prefix}dead_job_job_id_idx", dead_job.c.job_id)

    Table(
        f"{prefix}worker",
        metadata,
        Column("id", BigInteger, autoincrement=False),
        text_column("hostname"),
        Column("pid", Integer, nullable=False),
        text_column("version"),
        Column("queues", json, nullable=False),
        Column("waits_for", json, nullable=False, server_default=text("'[]'")),
        Column("lease_timeout", Float(53), nullable=False),
        time("started_at", default=True),
        time("beat_at", default=True),
        time("lost_at", nullable=True),
        Column("listener_pid", Integer),
        time("listener_started_at", nullable=True),
        PrimaryKeyConstraint("id", name=f"{prefix}worker_pkey"),
        schema=schema,
    )
    return metadata


def begin(op: Operations, schema: str | None, prefix: str) -> None:
    if schema is not None:
        op.execute(CreateSchemaIfMissing(schema))
    tables = tables_1(schema, prefix)
    for kind, storage in STORAGE_1.items():
        table = table_of(tables, kind, schema, prefix)
        op.execute(CreateTable(table))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            op.execute(CreateIndex(index))
        if storage:
            op.execute(SetStorage(table, storage))


def downgrade(op: Operations, schema: str | None, prefix: str) -> None:
    tables = tables_1(schema, prefix)
    for kind in reversed(STORAGE_1):
        op.execute(DropTable(table_of(tables, kind, schema, prefix)))
