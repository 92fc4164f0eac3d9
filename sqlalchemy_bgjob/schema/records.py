"""Versions of the tables of records, which are there only if ``BGJob(records=True)`` asks for them.

They come and go without the others, so they have a version of their own, in the comment of the
table of records. ``sqlalchemy-bgjob migrate --records`` makes them, Alembic's autogenerate writes
``bgjob.records.upgrade(...)``, and the folder ``alembic_migrations/records`` has a revision.
"""

import re
from collections.abc import Iterator
from typing import Any, Final

from sqlalchemy import Connection, Table, text
from sqlalchemy.schema import SetTableComment

from ..exceptions import RecordsOutOfDate
from ..settings import DEFAULT_PREFIX
from . import _records_1
from ._elements import Operations, connection_of, table_of
from ._layouts import require_own_tables
from ._names import qualified, translated
from ._records_1 import RECORD_KINDS, records_1
from ._table_kinds import require_plain_tables

LATEST: Final = 1
"""The newest version that this release can build, and the one that its workers need."""

_COMMENT: Final = re.compile(r"sqlalchemy-bgjob records (\d+)")


def comment_of(version: int) -> str:
    """The comment of the table of records that names a version."""
    return f"sqlalchemy-bgjob records {version}"


def version_in(comment: str | None) -> int:
    """The version that a table's comment names; 0 if it names none."""
    match = _COMMENT.match(comment or "")
    return int(match[1]) if match else 0


def upgrade(
    op: Operations,
    *,
    from_version: int = 0,
    to_version: int = LATEST,
    schema: str | None = None,
    table_prefix: str = DEFAULT_PREFIX,
) -> None:
    """Make the tables of records; the caller commits. Arguments as for ``schema.upgrade``.

    Raises:
        ForeignTable: A table of one of these names is another program's.
        ValueError: The versions do not go up, or this release does not know them.
    """
    _check_versions("upgrade", from_version, to_version)
    connection = connection_of(op)
    if connection is not None:
        require_own_tables(connection, schema=schema, table_prefix=table_prefix, records=True)
    if from_version < to_version:
        # Those that were made before there was an audit stay as they are.
        lacks_audit = connection is not None and _found(connection, schema, table_prefix)[0]
        kinds = ("audit",) if lacks_audit else RECORD_KINDS
        _records_1.upgrade(op, schema, table_prefix, kinds)
        table = table_of(records_1(schema, table_prefix), "record", schema, table_prefix)
        table.comment = comment_of(to_version)
        op.execute(SetTableComment(table))


def downgrade(
    op: Operations,
    *,
    from_version: int,
    to_version: int = 0,
    schema: str | None = None,
    table_prefix: str = DEFAULT_PREFIX,
) -> None:
    """Drop the tables of records, with all that they hold; the caller commits.

    Raises:
        ValueError: The versions do not go down, or this release does not know them.
    """
    _check_versions("downgrade", to_version, from_version)
    if to_version < from_version:
        _records_1.downgrade(op, schema, table_prefix)


def _check_versions(verb: str, lower: int, higher: int) -> None:
    if not 0 <= lower <= higher <= LATEST:
        start, end = (lower, higher) if verb == "upgrade" else (higher, lower)
        raise ValueError(
            f"cannot {verb} the tables of records from version {start!r} to {end!r}: this release "
            f"of sqlalchemy-bgjob knows the versions 0 to {LATEST}"
        )


def db_version(
    connection: Connection, *, schema: str | None = None, table_prefix: str = DEFAULT_PREFIX
) -> int:
    """The version of the tables of records in the database; 0 if there are none, or not all."""
    version, is_whole = _found(connection, schema, table_prefix)
    return version if is_whole else 0


def commented_version(
    connection: Connection, *, schema: str | None = None, table_prefix: str = DEFAULT_PREFIX
) -> int:
    """The version that the comment names, also of tables from before the audit; 0 if it is none."""
    return _found(connection, schema, table_prefix)[0]


def _found(connection: Connection, schema: str | None, table_prefix: str) -> tuple[int, bool]:
    """The version that the comment names, and whether the audit is there too."""
    where = translated(connection, schema)
    given = {kind: qualified(where, f"{table_prefix}{kind}") for kind in ("record", "audit")}
    comment, is_whole = connection.execute(_COMMENT_AND_AUDIT, given).one()
    return version_in(comment), is_whole


def check(
    connection: Connection, *, schema: str | None = None, table_prefix: str = DEFAULT_PREFIX
) -> None:
    """Refuse tables of records that this release's workers cannot run on; nothing is modified.

    Raises:
        NotAPlainTable: One of them is partitioned, or a view.
        RecordsOutOfDate: They are missing, or of another version.
        ForeignTable: A table of one of these names is another program's.
    """
    where: dict[str, Any] = {"schema": schema, "table_prefix": table_prefix}
    require_plain_tables(connection, **where, kinds=RECORD_KINDS)
    require_own_tables(connection, **where, records=True)
    found = db_version(connection, schema=schema, table_prefix=table_prefix)
    if found != LATEST:
        raise RecordsOutOfDate(found, LATEST, translated(connection, schema), table_prefix)


def frozen_tables(
    version: int, *, schema: str | None = None, table_prefix: str = DEFAULT_PREFIX
) -> Iterator[Table]:
    """The tables as they are at a version; none at version 0."""
    if version:
        yield from records_1(schema, table_prefix).tables.values()


_COMMENT_AND_AUDIT = text(
    "SELECT obj_description(to_regclass(CAST(:record AS TEXT)), 'pg_class'),"
    " to_regclass(CAST(:audit AS TEXT)) IS NOT NULL"
)
