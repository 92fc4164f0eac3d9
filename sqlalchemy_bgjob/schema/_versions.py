"""The frozen versions of the tables, each as the DDL that reaches and leaves it.

A released version never changes. A new version is a new ``tables_N``, which adds to the one before,
and a :class:`Step`. Nothing is shared with the models, which go on changing.
"""

from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    Column,
    Connection,
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
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable, ExecutableDDLElement


class Operations(Protocol):
    """Runs or writes statements: ``alembic.op``, a SQLAlchemy ``Connection``, or a script."""

    def execute(self, statement: Any, /) -> Any:
        """Run one statement."""


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


def _upgrade_to_1(op: Operations, schema: str | None, prefix: str) -> None:
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


def _downgrade_from_1(op: Operations, schema: str | None, prefix: str) -> None:
    tables = tables_1(schema, prefix)
    for kind in reversed(STORAGE_1):
        op.execute(DropTable(table_of(tables, kind, schema, prefix)))


class Step(NamedTuple):
    """One version: its tables, and how to reach and leave it."""

    tables: Callable[[str | None, str], MetaData]
    storage: Mapping[str, Mapping[str, str]]
    upgrade: Callable[[Operations, str | None, str], None]
    downgrade: Callable[[Operations, str | None, str], None]


STEPS: Final[Mapping[int, Step]] = {
    1: Step(tables_1, STORAGE_1, _upgrade_to_1, _downgrade_from_1),
}


def table_of(tables: MetaData, kind: str, schema: str | None, prefix: str) -> Table:
    name = f"{prefix}{kind}"
    return tables.tables[name if schema is None else f"{schema}.{name}"]


class SetStorage(ExecutableDDLElement):
    """``ALTER TABLE ... SET (...)``; a Table of SQLAlchemy 2.0 has no option for it."""

    inherit_cache = False

    def __init__(self, table: Table, storage: Mapping[str, str]) -> None:
        self.table, self.storage = table, storage


@compiles(SetStorage)
def _compile_set_storage(element: SetStorage, compiler: Any, **_: Any) -> str:
    items = ", ".join(f"{name} = {value}" for name, value in element.storage.items())
    return f"ALTER TABLE {compiler.preparer.format_table(element.table)} SET ({items})"


class CreateSchemaIfMissing(ExecutableDDLElement):
    """Create a schema if it is missing.

    ``CREATE SCHEMA IF NOT EXISTS`` needs the privilege to create it even if it exists. The
    connection's ``schema_translate_map`` decides the name, as it does for the tables.
    """

    inherit_cache = False

    def __init__(self, name: str | None) -> None:
        self.name = name


@compiles(CreateSchemaIfMissing)
def _compile_create_schema(element: CreateSchemaIfMissing, compiler: Any, **_: Any) -> str:
    def literal(value: str) -> str:
        escaped = value.replace("'", "''")
        return f"'{escaped}'"

    name: str | None = (compiler.schema_translate_map or {}).get(element.name, element.name)
    name = name or compiler.dialect.default_schema_name or "public"  # as SQLAlchemy takes None
    create = literal(f"CREATE SCHEMA {quoted(name)}")
    block = (
        f"BEGIN IF NOT EXISTS (SELECT FROM pg_namespace WHERE nspname = {literal(name)}) "
        f"THEN EXECUTE {create}; END IF; END"
    )
    sql = f"DO {literal(block)}"
    return sql.replace("%", "%%") if "format" in compiler.dialect.paramstyle else sql


def translated(connection: Connection, schema: str | None) -> str | None:
    """The schema that is meant on this connection, for statements that are text.

    SQLAlchemy's own statements follow ``schema_translate_map``; text does not.
    """
    names: Mapping[str | None, str | None] | None
    names = connection.get_execution_options().get("schema_translate_map")
    return names.get(schema, schema) if names else schema


def qualified(schema: str | None, table: str) -> str:
    return quoted(table) if schema is None else f"{quoted(schema)}.{quoted(table)}"


def quoted(name: str) -> str:
    # Not the dialect's own quoting, which doubles percent signs for some drivers.
    escaped = name.replace('"', '""')
    return f'"{escaped}"'
