"""The kinds of the queue's tables: the statements need plain ones.

Rows are fetched by ctid, which is unique within one table. A partitioned table has its rows in
several, and a view has none of its own. A table that others inherit from is a plain one: the
statements leave the children's rows alone, see ``ONLY`` in :mod:`._sql.words`.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

from sqlalchemy import ARRAY, Connection, Text, bindparam, text

from ..exceptions import NotAPlainTable
from ._names import qualified, translated

KINDS: Final = (
    "job",
    "dead_job",
    "worker",
    "control",
    "seat",
    "unique_period",
    "schedule",
    "batch",
)
"""What follows the prefix in the name of each table."""

_NAMES: Final[Mapping[str, str]] = {
    "p": "a partitioned table",
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
}


def require_plain_tables(
    connection: Connection,
    *,
    schema: str | None,
    table_prefix: str,
    kinds: Iterable[str] = KINDS,
) -> None:
    """Refuse tables that are not plain; missing ones are left to other checks.

    Raises:
        NotAPlainTable: One of them is partitioned, a view or the like.
    """
    schema = translated(connection, schema)
    given = {"tables": [*_tables(schema, table_prefix, kinds)]}
    for table, kind in connection.execute(_NOT_PLAIN, given):
        raise NotAPlainTable(table, _NAMES.get(kind, "no table"), schema, table_prefix)


def heirs(connection: Connection, *, schema: str | None, table_prefix: str) -> list[str]:
    """In words: which tables inherit from the queue's, and what that means."""
    schema = translated(connection, schema)
    return [
        f"{heir} inherits from {table}: its rows are no jobs of the queue, none is run or changed; "
        f"ONLY in your own queries leaves them out there too"
        for table in _tables(schema, table_prefix)
        for heir in connection.execute(_HEIRS, {"table": table}).scalars()
    ]


def _tables(schema: str | None, prefix: str, kinds: Iterable[str] = KINDS) -> Iterator[str]:
    yield from (qualified(schema, f"{prefix}{kind}") for kind in kinds)


_NOT_PLAIN: Final[Any] = text(
    "SELECT its, CAST(relkind AS TEXT)"
    " FROM unnest(CAST(:tables AS TEXT[])) WITH ORDINALITY AS given (its, place)"
    " JOIN pg_catalog.pg_class ON oid = to_regclass(its)"
    " WHERE relkind <> 'r' ORDER BY place"
).bindparams(bindparam("tables", type_=ARRAY(Text)))
_HEIRS: Final[Any] = text(
    "SELECT CAST(CAST(inhrelid AS regclass) AS TEXT) FROM pg_catalog.pg_inherits"
    " WHERE inhparent = to_regclass(CAST(:table AS TEXT)) ORDER BY 1"
)
