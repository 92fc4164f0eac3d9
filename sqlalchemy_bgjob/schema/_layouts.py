"""Whose tables these are: another program's may have the same names.

The Go library bgjob has ``bgjob_job`` and ``bgjob_dead_job`` too, with other columns. A worker
can't run on such tables, and to change them would break the program that they belong to.
"""

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from sqlalchemy import ARRAY, Connection, Text, bindparam, text

from ..exceptions import ForeignTable
from ._elements import table_of
from ._names import qualified, translated
from ._versions import STEPS

_SINCE_ALWAYS: Final[Mapping[str, frozenset[str]]] = {
    "job": frozenset({"lease", "claimed_by"}),
    "dead_job": frozenset({"lease", "crashes"}),
    "worker": frozenset({"beat_at", "lease_timeout"}),
    "control": frozenset({"paused_at", "pause_reason"}),
    "seat": frozenset({"lease", "until"}),
    "unique_period": frozenset({"until", "job_id"}),
    "schedule": frozenset({"next_at", "cron"}),
    "batch": frozenset({"then_type", "on_dead"}),
}
"""Columns of each table in every version that has it. A table with none of them was never ours."""
_RECORDS_SINCE_ALWAYS: Final[Mapping[str, frozenset[str]]] = {
    "record": frozenset({"keep_until", "job_id"}),
    "minute": frozenset({"waits", "outcome"}),
    "audit": frozenset({"verb", "origin"}),
}
"""The same, of tables that are there only if they are asked for."""

_GO: Final = "the Go library bgjob's"

GO_JOB: Final = "bgjob_job"
GO_DEAD_JOB: Final = "bgjob_dead_job"
_TIME: Final = "timestamp without time zone"
_GO_COLUMNS: Final[Mapping[str, Mapping[str, str]]] = {
    table: {
        "queue": "text",
        "type": "text",
        "arg": "bytea",
        "attempt": "integer",
        "last_error": "text",
        "next_run_at": "bigint",
        **its,
    }
    for table, its in {
        GO_JOB: {"id": "text", "created_at": _TIME, "updated_at": _TIME},
        GO_DEAD_JOB: {
            "id": "bigint",
            "job_id": "text",
            "job_created_at": _TIME,
            "job_updated_at": _TIME,
            "moved_at": _TIME,
        },
    }.items()
}
"""The columns of the Go library's tables since its first version. Their names are fixed there."""


def require_own_tables(
    connection: Connection,
    *,
    schema: str | None,
    table_prefix: str,
    says_version: bool = True,
    records: bool = False,
) -> None:
    """Refuse tables of other programs; missing tables are left to other checks.

    Args:
        connection: To PostgreSQL; the caller ends its transaction.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        says_version: Whether the job table's comment says that it is ours. Without it the table
            needs all columns of the first version.
        records: Whether the tables of records are asked for.

    Raises:
        ForeignTable: One of them is another program's.
    """
    schema = translated(connection, schema)
    since_always = {**_SINCE_ALWAYS, **(_RECORDS_SINCE_ALWAYS if records else {})}
    names = {kind: f"{table_prefix}{kind}" for kind in since_always}
    rows = connection.execute(_COLUMNS, {"schema": schema, "names": [*names.values()]}).all()
    for kind, name in names.items():
        types = {column: type for table, column, type, _ in rows if table == name}
        if not types:
            continue
        foreign = since_always[kind].isdisjoint(types)
        if kind == "job" and not says_version:
            foreign = not _FIRST.issubset(types)
        if foreign:
            owner = _GO if _is_go(types) else None
            raise ForeignTable(qualified(schema, name), owner, schema, table_prefix)


def refuse_create_all(
    connection: object, *, schema: str | None, table_prefix: str, records: bool = False
) -> None:
    """As :func:`require_own_tables`, before a ``create_all()``, which skips existing tables.

    Raises:
        ForeignTable: One of them is another program's.
    """
    # A mock connection only prints, and outside of PostgreSQL there is no queue.
    if isinstance(connection, Connection) and connection.dialect.name == "postgresql":
        require_own_tables(connection, schema=schema, table_prefix=table_prefix, records=records)


class GoTables(NamedTuple):
    """Where the Go library's two tables are, and which of them have its newer column."""

    schema: str
    with_request_id: frozenset[str]


def go_tables(connection: Connection, schema: str | None) -> GoTables | None:
    """The tables of the Go library bgjob, or None if there are none.

    Args:
        connection: To PostgreSQL; the caller ends its transaction.
        schema: Where to look; None for the search path.
    """
    given = {"schema": schema, "names": [*_GO_COLUMNS]}
    rows = connection.execute(_COLUMNS, given).all()
    for table, columns in _GO_COLUMNS.items():
        types = {column: type for name, column, type, _ in rows if name == table}
        if not columns.items() <= types.items():
            return None
    with_request_id = {table for table, column, *_ in rows if column == "request_id"}
    return GoTables(next(row[3] for row in rows if row[0] == GO_JOB), frozenset(with_request_id))


def _is_go(types: Mapping[str, str]) -> bool:
    return types.get("next_run_at") == "bigint" and {"queue", "type", "attempt"} <= set(types)


_FIRST: Final = frozenset(table_of(STEPS[1].tables(None, ""), "job", None, "").c.keys())
# By name and not by to_regclass(), which is an error if the role may not use the schema.
_COLUMNS: Final[Any] = text(
    """
    SELECT CAST(c.relname AS TEXT), CAST(a.attname AS TEXT),
           CAST(CAST(a.atttypid AS regtype) AS TEXT), CAST(n.nspname AS TEXT)
    FROM pg_catalog.pg_class c
    JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid
    WHERE c.relname = ANY (CAST(:names AS TEXT[])) AND a.attnum > 0 AND NOT a.attisdropped
      AND (n.nspname = :schema OR :schema IS NULL AND pg_table_is_visible(c.oid))
    """
).bindparams(bindparam("names", type_=ARRAY(Text)), bindparam("schema", type_=Text))
