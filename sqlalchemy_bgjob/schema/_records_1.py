"""Version 1 of the tables of records, which are there only if they are asked for."""

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    Column,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    PrimaryKeyConstraint,
    Table,
    Text,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.schema import CreateIndex, CreateTable, DropTable

from ._elements import CreateSchemaIfMissing, Operations, table_of

RECORD_KINDS: Final = ("record", "minute", "audit")


def records_1(schema: str | None, prefix: str) -> MetaData:
    metadata = MetaData()
    moment = DateTime(timezone=True)
    json = JSON(none_as_null=True).with_variant(JSONB(), "postgresql")

    def needed(name: str, type_: Any = Text) -> Column[Any]:
        return Column(name, type_, nullable=False, autoincrement=False)

    record = Table(
        f"{prefix}record",
        metadata,
        needed("job_id"),
        needed("queue"),
        needed("type"),
        needed("state"),
        needed("attempt", Integer),
        needed("lease", BigInteger),
        Column("worker", BigInteger),
        Column("progress", json),
        Column("result", LargeBinary),
        Column("result_content_type", Text),
        Column("error", Text),
        needed("enqueued_at", moment),
        needed("due_at", moment),
        Column("started_at", moment),
        Column("ended_at", moment),
        needed("keep_until", moment),
        PrimaryKeyConstraint("job_id", name=f"{prefix}record_pkey"),
        schema=schema,
    )
    Index(f"{prefix}record_keep_until_idx", record.c.keep_until)
    Index(f"{prefix}record_type_idx", record.c.type, record.c.ended_at)
    key = ("at", "worker", "queue", "type", "outcome")
    Table(
        f"{prefix}minute",
        metadata,
        needed("at", moment),
        needed("worker", BigInteger),
        needed("queue"),
        needed("type"),
        needed("outcome"),
        needed("n", BigInteger),
        needed("waits", ARRAY(BigInteger)),
        needed("runs", ARRAY(BigInteger)),
        needed("waited", Float(53)),
        needed("ran", Float(53)),
        PrimaryKeyConstraint(*key, name=f"{prefix}minute_pkey"),
        schema=schema,
    )
    Table(
        f"{prefix}audit",
        metadata,
        Column("at", moment, nullable=False, server_default=func.now()),
        needed("id"),
        Column("who", Text),
        needed("origin"),
        needed("verb"),
        needed("changed", BigInteger),
        needed("details", json),
        Column("given", json),
        PrimaryKeyConstraint("at", "id", name=f"{prefix}audit_pkey"),
        schema=schema,
    )
    return metadata


def upgrade(
    op: Operations, schema: str | None, prefix: str, kinds: Iterable[str] = RECORD_KINDS
) -> None:
    if schema is not None:
        op.execute(CreateSchemaIfMissing(schema))
    tables = records_1(schema, prefix)
    for kind in kinds:
        table = table_of(tables, kind, schema, prefix)
        op.execute(CreateTable(table))
        for index in sorted(table.indexes, key=lambda index: str(index.name)):
            op.execute(CreateIndex(index))


def downgrade(op: Operations, schema: str | None, prefix: str) -> None:
    tables = records_1(schema, prefix)
    for kind in reversed(RECORD_KINDS):
        op.execute(DropTable(table_of(tables, kind, schema, prefix)))
