"""Indexes that an interrupted ``REINDEX ... CONCURRENTLY`` has left: invalid ones of other names.

Nobody reads them, and each write keeps them up to date. While a REINDEX goes on it has one too, so
to drop them is to wait for its lock, after which there is none of that name.
"""

from typing import Any, Final

from sqlalchemy import Connection, text

from ._names import qualified, translated


def leftovers(connection: Connection, schema: str | None, table: str) -> list[str]:
    """The names of those on a table, as SQL writes them."""
    given = {"table": qualified(translated(connection, schema), table)}
    return [*connection.execute(_LEFT, given).scalars()]


_LEFT: Final[Any] = text(
    """
    SELECT CAST(CAST(c.oid AS regclass) AS TEXT)
    FROM pg_catalog.pg_index i JOIN pg_catalog.pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = to_regclass(CAST(:table AS TEXT)) AND NOT i.indisvalid
      AND c.relname ~ '_cc(new|old)[0-9]*$'
    ORDER BY c.relname
    """
)
