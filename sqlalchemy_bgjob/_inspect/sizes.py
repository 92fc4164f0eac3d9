"""How large the tables are, and how many dead rows they have: from the server's statistics."""

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ARRAY, Connection, Text, bindparam, text

from ..schema._names import qualified, translated
from ..schema._table_kinds import KINDS


@dataclass(frozen=True, slots=True)
class TableSize:
    """One table of the queue.

    Attributes:
        table: Its name.
        rows, dead_rows: As the server estimates them.
        bytes, index_bytes: Of the table with what belongs to it, and of its indexes.
        vacuumed_at: When it was vacuumed last, by somebody or by the server.
    """

    table: str
    rows: int
    dead_rows: int
    bytes: int
    index_bytes: int
    vacuumed_at: datetime | None


def table_sizes(connection: Connection, schema: str | None, table_prefix: str) -> list[TableSize]:
    """The queue's tables, the largest first."""
    where = translated(connection, schema)
    tables = [qualified(where, f"{table_prefix}{kind}") for kind in KINDS]
    return [TableSize(*row) for row in connection.execute(_SIZES, {"tables": tables})]


_SIZES = text(
    """
    SELECT CAST(relname AS text), n_live_tup, n_dead_tup, pg_table_size(relid),
           pg_indexes_size(relid), greatest(last_vacuum, last_autovacuum)
    FROM pg_catalog.pg_stat_all_tables
    WHERE relid IN (SELECT to_regclass(name) FROM unnest(CAST(:tables AS TEXT[])) AS name)
    ORDER BY pg_total_relation_size(relid) DESC, 1
    """
).bindparams(bindparam("tables", type_=ARRAY(Text)))


def estimated_rows(connection: Connection, schema: str | None, table_prefix: str) -> dict[str, int]:
    """About how many live and dead jobs there are, as ``job`` and ``dead_job``: an estimate."""
    where = translated(connection, schema)
    tables = [qualified(where, f"{table_prefix}{kind}") for kind in ("job", "dead_job")]
    rows = connection.execute(_ESTIMATES, {"tables": tables})
    found = {int(row.n): int(row.rows) for row in rows}
    return {kind: found.get(n, 0) for n, kind in enumerate(("job", "dead_job"), 1)}


_ESTIMATES = text(
    """
    SELECT given.n, pg_stat_get_live_tuples(to_regclass(given.name)) AS rows
    FROM unnest(CAST(:tables AS TEXT[])) WITH ORDINALITY AS given (name, n)
    """
).bindparams(bindparam("tables", type_=ARRAY(Text)))
