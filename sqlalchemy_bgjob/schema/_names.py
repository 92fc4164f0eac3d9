"""Names of tables in statements that are text."""

from typing import TYPE_CHECKING

from sqlalchemy import Connection

if TYPE_CHECKING:
    from collections.abc import Mapping


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
