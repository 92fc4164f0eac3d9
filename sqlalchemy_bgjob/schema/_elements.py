"""DDL that SQLAlchemy has no construct for, and what runs it."""

from collections.abc import Iterable, Mapping
from typing import Any, Protocol

from sqlalchemy import Column, Connection, Dialect, Index, MetaData, Table
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.schema import DropIndex, ExecutableDDLElement

from ._names import quoted


class Operations(Protocol):
    """Runs or writes statements: ``alembic.op``, a SQLAlchemy ``Connection``, or a script."""

    def execute(self, statement: Any, /) -> Any:
        """Run one statement."""


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


class AddColumns(ExecutableDDLElement):
    """``ALTER TABLE ... ADD COLUMN IF NOT EXISTS``, several columns at once; each is nullable."""

    inherit_cache = False

    def __init__(self, table: Table, columns: Iterable[str]) -> None:
        self.table, self.columns = table, [table.c[name] for name in columns]


@compiles(AddColumns)
def _compile_add_columns(element: AddColumns, compiler: Any, **_: Any) -> str:
    def add(column: Column[Any]) -> str:
        return f"ADD COLUMN IF NOT EXISTS {compiler.get_column_specification(column)}"

    actions = ", ".join(map(add, element.columns))
    return f"ALTER TABLE {compiler.preparer.format_table(element.table)} {actions}"


class DropColumns(ExecutableDDLElement):
    """``ALTER TABLE ... DROP COLUMN``, several columns at once."""

    inherit_cache = False

    def __init__(self, table: Table, columns: Iterable[str]) -> None:
        self.table, self.columns = table, [table.c[name] for name in columns]


@compiles(DropColumns)
def _compile_drop_columns(element: DropColumns, compiler: Any, **_: Any) -> str:
    names = (compiler.preparer.format_column(column) for column in element.columns)
    actions = ", ".join(f"DROP COLUMN {name}" for name in names)
    return f"ALTER TABLE {compiler.preparer.format_table(element.table)} {actions}"


class Reindex(ExecutableDDLElement):
    """``REINDEX INDEX CONCURRENTLY``."""

    inherit_cache = False

    def __init__(self, index: Index) -> None:
        self.index = index


@compiles(Reindex)
def _compile_reindex(element: Reindex, compiler: Any, **_: Any) -> str:
    # DROP INDEX names an index with its schema, as CREATE INDEX does not.
    name = compiler.process(DropIndex(element.index)).strip().removeprefix("DROP INDEX ")
    return f"REINDEX INDEX CONCURRENTLY {name}"


class DropInvalidIndex(ExecutableDDLElement):
    """Drop an index that CREATE INDEX CONCURRENTLY has left half-built, if there is one."""

    inherit_cache = False

    def __init__(self, index: Index) -> None:
        self.index = index


@compiles(DropInvalidIndex)
def _compile_drop_invalid(element: DropInvalidIndex, compiler: Any, **_: Any) -> str:
    drop = compiler.process(DropIndex(element.index)).strip()
    name = drop.removeprefix("DROP INDEX ").replace("'", "''")
    invalid = f"SELECT FROM pg_index WHERE indexrelid = to_regclass('{name}') AND NOT indisvalid"
    return f"DO $bgjob$ BEGIN IF EXISTS ({invalid}) THEN {drop}; END IF; END $bgjob$"


class DropIndexUnlessUsed(ExecutableDDLElement):
    """Drop an index that only older workers use, unless a worker is registered."""

    inherit_cache = False

    def __init__(self, index: Index, worker: Table) -> None:
        self.index, self.worker = index, worker


@compiles(DropIndexUnlessUsed)
def _compile_drop_unless(element: DropIndexUnlessUsed, compiler: Any, **_: Any) -> str:
    drop = compiler.process(DropIndex(element.index, if_exists=True)).strip()
    worker = compiler.preparer.format_table(element.worker)
    return f"DO $bgjob$ BEGIN IF NOT EXISTS (SELECT FROM {worker}) THEN {drop}; END IF; END $bgjob$"


def connection_of(op: Any) -> Connection | None:
    """The connection to PostgreSQL that runs *op*'s statements; None if they are not run there."""
    if isinstance(op, Connection):
        connection = op
    elif not hasattr(op, "get_context") or op.get_context().as_sql:
        return None
    else:
        connection = op.get_bind()
    return connection if connection.dialect.name == "postgresql" else None


class Script:
    """Writes statements down instead of running them."""

    def __init__(self) -> None:
        # By name, since the drivers' own styles double every percent sign.
        self.dialect: Dialect = postgresql.dialect(paramstyle="named")  # type: ignore[no-untyped-call]
        self.statements: list[str] = []

    def execute(self, statement: ExecutableDDLElement, /) -> None:
        sql = str(statement.compile(dialect=self.dialect))
        lines = (line.replace("\t", "    ").rstrip() for line in sql.strip().splitlines())
        self.statements.append("\n".join(lines) + ";")
