"""What PostgreSQL's catalog says about the tables, to compare the ways that make them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import text

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

Catalog = dict[str, dict[str, Any]]

_TABLES = text(
    """
    SELECT c.oid, c.relname, CAST(c.relpersistence AS TEXT) AS persistence, c.reloptions,
           obj_description(c.oid, 'pg_class') AS comment
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
    WHERE n.nspname = :schema AND c.relkind IN ('r', 'p') AND starts_with(c.relname, :prefix)
    ORDER BY c.relname
    """
)
_COLUMNS = text(
    """
    SELECT a.attname, format_type(a.atttypid, a.atttypmod) AS type, a.attnotnull,
           CAST(a.attidentity AS TEXT), CAST(a.attgenerated AS TEXT), a.attcollation,
           pg_get_expr(d.adbin, d.adrelid) AS default,
           col_description(a.attrelid, a.attnum) AS comment
    FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = :oid AND a.attnum > 0 AND NOT a.attisdropped
    ORDER BY a.attnum
    """
)
# PostgreSQL 18 has a constraint for each NOT NULL, which attnotnull tells for all versions.
_CONSTRAINTS = text(
    """
    SELECT conname, CAST(contype AS TEXT), convalidated, pg_get_constraintdef(oid) AS definition
    FROM pg_constraint WHERE conrelid = :oid AND contype <> 'n' ORDER BY conname
    """
)
_INDEXES = text(
    """
    SELECT pg_get_indexdef(i.indexrelid) AS definition, i.indisvalid, c.reloptions
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE i.indrelid = :oid ORDER BY c.relname
    """
)
_LEFTOVERS = text(
    """
    SELECT 'relation ' || relname FROM pg_class
    WHERE relnamespace = CAST(CAST(:quoted AS TEXT) AS regnamespace)
    UNION ALL SELECT 'type ' || typname FROM pg_type
    WHERE typnamespace = CAST(CAST(:quoted AS TEXT) AS regnamespace)
    UNION ALL SELECT 'function ' || proname FROM pg_proc
    WHERE pronamespace = CAST(CAST(:quoted AS TEXT) AS regnamespace)
    ORDER BY 1
    """
)


def catalog(connection: Connection, schema: str | None = None, prefix: str = "bgjob_") -> Catalog:
    """Return all that the catalog knows of the tables whose names begin with *prefix*."""
    tables = connection.execute(_TABLES, {"schema": schema or "public", "prefix": prefix}).all()
    return {
        table.relname: {
            "persistence": table.persistence,
            "storage": sorted(table.reloptions or ()),
            "comment": table.comment,
            **{
                kind: [tuple(row) for row in connection.execute(query, {"oid": table.oid})]
                for kind, query in (
                    ("columns", _COLUMNS),
                    ("constraints", _CONSTRAINTS),
                    ("indexes", _INDEXES),
                )
            },
        }
        for table in tables
    }


def leftovers(connection: Connection, schema: str | None = None) -> list[str]:
    """Return the names of everything that is in a schema: tables, indexes, types, functions."""
    quoted = '"' + (schema or "public").replace('"', '""') + '"'
    return list(connection.execute(_LEFTOVERS, {"quoted": quoted}).scalars())


def schemas(engine: Engine) -> list[str]:
    """Return the names of the schemas that are not the server's own."""
    with engine.connect() as connection:
        query = "SELECT nspname FROM pg_namespace WHERE nspname NOT LIKE 'pg_%' ORDER BY 1"
        return list(connection.execute(text(query)).scalars())
