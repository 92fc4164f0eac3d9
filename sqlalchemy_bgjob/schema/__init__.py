"""Versions of the tables: how to move between them, and a worker's first checks.

One pair of functions serves every way to the tables. Revisions of the user's own Alembic history,
and those in ``alembic_migrations/``, call :func:`upgrade` and :func:`downgrade`;
``sqlalchemy-bgjob migrate`` calls :func:`migrate`, which needs no Alembic at all.

* A released version never changes, so nothing here imports the models: a revision that was written
  for version 1 must always build version 1.
* Changes are additive. New columns come last, and are nullable or have a server default, so that
  older releases can still enqueue. A changed index or check gets a new name: Alembic compares
  names only.
* The version stands in the job table's comment, which Alembic's autogenerate compares. A table of
  versions would be dropped by the user's own autogenerate.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from sqlalchemy import ARRAY, Connection, Table, Text, bindparam, text
from sqlalchemy.schema import SetTableComment

from ..exceptions import SchemaOutOfDate, SchemaUnknown
from ..settings import DEFAULT_PREFIX
from . import records as record_tables
from ._elements import (
    CreateSchemaIfMissing,
    Operations,
    Script,
    SetStorage,
    connection_of,
    table_of,
)
from ._layouts import require_own_tables
from ._names import qualified, translated
from ._online import OnlineOperations, upgrade_online
from ._table_kinds import require_plain_tables
from ._versions import STEPS

LATEST: Final = 2
"""The newest version that this release can build, and the one that its workers need."""

WORKERS_SINCE: Final[Mapping[int, int]] = {1: 1, 2: 1}
"""For each version: the oldest version whose workers can run on it."""

# The advisory lock of concurrent migrations; the number is "bgjob" in ASCII.
_MIGRATION_LOCK: Final = 0x62676A6F62

_COMMENT = re.compile(r"sqlalchemy-bgjob schema (\d+) \(workers since (\d+)\)")


class Version(NamedTuple):
    """The version that the database names, and the oldest one whose workers can run on it."""

    number: int
    workers_since: int


def comment_of(version: int) -> str:
    """The comment of the job table that names a version."""
    return f"sqlalchemy-bgjob schema {version} (workers since {WORKERS_SINCE[version]})"


# --- Migration -----------------------------------------------------------------------------------


def upgrade(
    op: Operations,
    *,
    from_version: int = 0,
    to_version: int = LATEST,
    schema: str | None = None,
    table_prefix: str = DEFAULT_PREFIX,
) -> None:
    """Bring the tables from one version to a newer one; the caller commits.

    Args:
        op: ``alembic.op``, an Alembic ``Operations``, or a SQLAlchemy ``Connection``.
        from_version: The version that is there; 0 for none.
        to_version: The version to reach. A revision must name it: the default changes with the
            next release of this library.
        schema: The tables' schema. It is created if it is missing.
        table_prefix: How the tables' names begin.

    Raises:
        ForeignTable: A table of one of these names is another program's.
        ValueError: The versions do not go up, or this release does not know them.
    """
    _check_versions("upgrade", from_version, to_version)
    connection = connection_of(op)
    if connection is not None:
        require_own_tables(connection, schema=schema, table_prefix=table_prefix)
        if schema is None and translated(connection, schema) is not None:
            op.execute(CreateSchemaIfMissing(schema))  # the steps create a named schema
    for version in range(from_version + 1, to_version + 1):
        STEPS[version].upgrade(op, schema, table_prefix)
        _set_comment(op, version, schema, table_prefix)


def downgrade(
    op: Operations,
    *,
    from_version: int,
    to_version: int = 0,
    schema: str | None = None,
    table_prefix: str = DEFAULT_PREFIX,
) -> None:
    """Bring the tables from one version to an older one; the caller commits.

    Version 0 has no tables, so all jobs are lost. The schema stays: it may hold other things. The
    arguments are those of :func:`upgrade`.

    Raises:
        ValueError: The versions do not go down, or this release does not know them.
    """
    _check_versions("downgrade", to_version, from_version)
    for version in range(from_version, to_version, -1):
        STEPS[version].downgrade(op, schema, table_prefix)
        if version > 1:
            _set_comment(op, version - 1, schema, table_prefix)


def _check_versions(verb: str, lower: int, higher: int) -> None:
    if not 0 <= lower <= higher <= LATEST:
        start, end = (lower, higher) if verb == "upgrade" else (higher, lower)
        raise ValueError(
            f"cannot {verb} from version {start!r} to {end!r}: this release of sqlalchemy-bgjob "
            f"knows the versions 0 to {LATEST}"
        )


def _set_comment(op: Operations, version: int, schema: str | None, prefix: str) -> None:
    table = table_of(STEPS[version].tables(schema, prefix), "job", schema, prefix)
    table.comment = comment_of(version)
    op.execute(SetTableComment(table))


def migrate(
    connection: Connection,
    *,
    schema: str | None = None,
    table_prefix: str = DEFAULT_PREFIX,
    records: bool = False,
) -> int:
    """Bring the tables to the latest version, without Alembic; the caller commits.

    Concurrent calls wait for each other, so every process of a deployment may call it. Newer
    tables that this release's workers can run on are left as they are.

    Args:
        connection: To PostgreSQL, in a READ COMMITTED transaction.
        schema: The tables' schema, which is created if it is missing; by default, the tables are on
            the search path.
        table_prefix: How the tables' names begin.
        records: Whether to make the tables for ``BGJob(records=True)`` too, if they are missing.

    Returns:
        The version that was there before; 0 for none.

    Raises:
        NotAPlainTable: One of them is partitioned, or a view.
        SchemaOutOfDate: The tables are newer than this release can run on.
        ForeignTable: A table of one of these names is another program's.
        SchemaUnknown: There is a job table, but its comment names no version.
        ValueError: The connection is not to PostgreSQL, or not in a READ COMMITTED transaction.
            In AUTOCOMMIT the lock would not last; a stricter snapshot would miss others' commits.
    """
    _require_postgresql(connection)
    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
    _require_read_committed(connection)
    require_plain_tables(connection, schema=schema, table_prefix=table_prefix)
    found = read_version(connection, schema=schema, table_prefix=table_prefix)
    if found.number >= LATEST:
        _check(found, translated(connection, schema), table_prefix)
    else:
        upgrade(
            connection,
            from_version=found.number,
            to_version=LATEST,
            schema=schema,
            table_prefix=table_prefix,
        )
    if records:
        _add_records(connection, schema, table_prefix)
    return found.number


def _add_records(connection: Connection, schema: str | None, table_prefix: str) -> None:
    where: dict[str, Any] = {"schema": schema, "table_prefix": table_prefix}
    there = record_tables.db_version(connection, **where)
    if there < record_tables.LATEST:
        record_tables.upgrade(connection, from_version=there, **where)
    record_tables.check(connection, **where)


def migrate_online(
    connection: Connection,
    *,
    schema: str | None = None,
    table_prefix: str = DEFAULT_PREFIX,
    records: bool = False,
) -> int:
    """As :func:`migrate`, while workers and producers go on, however many rows there are. Commits.

    No table is locked for longer than a second. Where old transactions stand in the way, it waits
    for them. It may be stopped at any moment, and run again.

    Args:
        connection: Idle, outside a transaction, and used by nobody else meanwhile: its isolation
            level is changed.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        records: Whether to make the tables for ``BGJob(records=True)`` too.

    Returns:
        The version that was there before; 0 for none.

    Raises:
        NotAPlainTable, SchemaOutOfDate, ForeignTable, SchemaUnknown, ValueError: As
            :func:`migrate`.
    """
    names: dict[str, Any] = {"schema": schema, "table_prefix": table_prefix}
    _require_postgresql(connection)
    connection.execution_options(isolation_level="READ COMMITTED")
    with connection.begin():
        require_plain_tables(connection, **names)
        found = read_version(connection, **names)
        if found.number == 0 or found.number >= LATEST:
            migrate(connection, **names, records=records)
    if found.number == 0:
        return 0
    operations = OnlineOperations(connection)
    if found.number == LATEST:
        for step in STEPS.values():
            for index in step.indexes(schema, table_prefix):
                operations.mend(index)
    for version in range(found.number + 1, LATEST + 1):
        upgrade_online(operations, STEPS[version], schema, table_prefix)
        _set_comment(operations, version, schema, table_prefix)
    if found.number <= LATEST:
        tables = STEPS[LATEST].tables(schema, table_prefix)
        for kind in STEPS[LATEST].storage:
            operations.clean(table_of(tables, kind, schema, table_prefix))
    if records and found.number < LATEST:
        with connection.begin():
            migrate(connection, **names, records=True)
    return found.number


def _require_postgresql(connection: Connection) -> None:
    if connection.dialect.name != "postgresql":
        raise ValueError(
            f"the queue needs PostgreSQL, and this connection is to {connection.dialect.name!r}; "
            f"give the URL of a PostgreSQL database"
        )


def _require_read_committed(connection: Connection) -> None:
    in_transaction, isolation = connection.execute(
        text(
            "SELECT EXISTS (SELECT FROM pg_locks WHERE pid = pg_backend_pid() AND granted"
            " AND locktype = 'advisory' AND classid = :high AND objid = :low),"
            " current_setting('transaction_isolation')"
        ),
        {"high": _MIGRATION_LOCK >> 32, "low": _MIGRATION_LOCK & 0xFFFF_FFFF},
    ).one()
    if not in_transaction or isolation != "read committed":
        raise ValueError(
            f"the migration needs a transaction in READ COMMITTED, and this connection is in "
            f"{isolation.upper() if in_transaction else 'AUTOCOMMIT'}; use "
            f'connection.execution_options(isolation_level="READ COMMITTED") before its first '
            f"statement"
        )


def migration_sql(
    *,
    from_version: int = 0,
    to_version: int = LATEST,
    schema: str | None = None,
    table_prefix: str = DEFAULT_PREFIX,
    records: bool = False,
) -> str:
    """A migration as SQL for ``psql``: one transaction, up or down. It sends no statement.

    Args:
        from_version: The version that is there; 0 for none.
        to_version: The version to reach. At 0 there are no tables, and no jobs.
        schema, table_prefix: As for :func:`migrate`.
        records: Whether to make, or to drop, the tables of records too.

    Raises:
        ValueError: This release does not know the versions.
    """
    script = Script()
    where: dict[str, Any] = {"schema": schema, "table_prefix": table_prefix}
    if from_version <= to_version:
        upgrade(script, from_version=from_version, to_version=to_version, **where)
        if records:
            record_tables.upgrade(script, **where)
    else:
        if records:
            record_tables.downgrade(script, from_version=record_tables.LATEST, **where)
        downgrade(script, from_version=from_version, to_version=to_version, **where)
    return "\n\n".join(["BEGIN;", *script.statements, "COMMIT;", ""])


# --- What is there -------------------------------------------------------------------------------


def db_version(
    connection: Connection, *, schema: str | None = None, table_prefix: str = DEFAULT_PREFIX
) -> int:
    """The version of the tables in the database; 0 if there are none. It changes nothing.

    Raises:
        ForeignTable: A table of one of these names is another program's.
        SchemaUnknown: There is a job table, but its comment names no version.
    """
    return read_version(connection, schema=schema, table_prefix=table_prefix).number


def read_version(
    connection: Connection, *, schema: str | None = None, table_prefix: str = DEFAULT_PREFIX
) -> Version:
    """As :func:`db_version`, with the oldest version whose workers can run on these tables."""
    schema = translated(connection, schema)
    name = qualified(schema, f"{table_prefix}job")
    row = connection.execute(
        text(
            "SELECT obj_description(oid, 'pg_class') FROM pg_catalog.pg_class"
            " WHERE oid = to_regclass(CAST(:name AS TEXT))"
        ),
        {"name": name},
    ).one_or_none()
    comment: str | None = None if row is None else row[0]
    version = Version(0, 0) if row is None else version_in(comment)
    require_own_tables(
        connection, schema=schema, table_prefix=table_prefix, says_version=version is not None
    )
    if version is None:
        raise SchemaUnknown(name, comment, comment_of(LATEST), LATEST, schema, table_prefix)
    return version


def version_in(comment: str | None) -> Version | None:
    """The version that a table's comment names, or None."""
    match = _COMMENT.match(comment or "")
    return Version(int(match[1]), int(match[2])) if match else None


def check(
    connection: Connection, *, schema: str | None = None, table_prefix: str = DEFAULT_PREFIX
) -> None:
    """Refuse tables that this release's workers can't run on, as a worker does at its start.

    It changes nothing. Each error says what to do.

    Raises:
        NotAPlainTable: One of them is partitioned, or a view.
        SchemaOutOfDate: They are missing, too old, or too new for this release's workers.
        ForeignTable: A table of one of these names is another program's.
        SchemaUnknown: There is a job table, but its comment names no version.
    """
    require_plain_tables(connection, schema=schema, table_prefix=table_prefix)
    found = read_version(connection, schema=schema, table_prefix=table_prefix)
    _check(found, translated(connection, schema), table_prefix)


def _check(found: Version, schema: str | None, table_prefix: str) -> None:
    if found.number < LATEST or found.workers_since > LATEST:
        raise SchemaOutOfDate(found.number, LATEST, schema, table_prefix)


def storage_drift(
    connection: Connection, *, schema: str | None = None, table_prefix: str = DEFAULT_PREFIX
) -> list[str]:
    """The ``ALTER TABLE`` statements that would set the storage parameters as designed.

    Alembic does not see these: a table made by plain autogenerate on SQLAlchemy 2.0 lacks them.
    Its updates are slower then, not wrong.
    """
    schema = translated(connection, schema)
    storage = STEPS[LATEST].storage
    names = {qualified(schema, f"{table_prefix}{kind}"): kind for kind in storage}
    rows = connection.execute(_OPTIONS, {"names": [*names]})
    found = {
        names[name]: dict(one.split("=", 1) for one in options or ()) for name, options in rows
    }
    script = Script()
    for kind, designed in storage.items():
        there = found.get(kind, {})
        missing = {name: value for name, value in designed.items() if there.get(name) != value}
        if missing:
            tables = STEPS[LATEST].tables(schema, table_prefix)
            script.execute(SetStorage(table_of(tables, kind, schema, table_prefix), missing))
    return script.statements


_OPTIONS: Final[Any] = text(
    "SELECT its, reloptions FROM unnest(CAST(:names AS TEXT[])) AS given (its)"
    " LEFT JOIN pg_catalog.pg_class ON oid = to_regclass(its)"
).bindparams(bindparam("names", type_=ARRAY(Text)))


# --- For Alembic ---------------------------------------------------------------------------------


def frozen_tables(
    version: int, *, schema: str | None = None, table_prefix: str = DEFAULT_PREFIX
) -> Iterator[Table]:
    """The tables as they are at a version, to tell what belongs to it; none at version 0."""
    if version:
        yield from STEPS[version].tables(schema, table_prefix).tables.values()


def migrations_path() -> Path:
    """The folder of ``env.py`` and ``versions/``, in a checkout as in an installed package.

    For projects with Alembic branches: ``version_locations`` takes
    ``sqlalchemy_bgjob:alembic_migrations/versions``, or ``migrations_path() / "versions"``.
    """
    return Path(__file__).parents[1] / "alembic_migrations"


def revision_options(op: Any) -> dict[str, Any]:
    """Schema and prefix for the shipped revisions, which cannot hold them.

    From ``context.configure(bgjob_schema=..., bgjob_table_prefix=...)`` in ``env.py``, else from
    the options of the same names in ``alembic.ini``.
    """
    context = op.get_context()
    options = {}
    for name in ("schema", "table_prefix"):
        key = f"bgjob_{name}"
        value = context.opts.get(key)
        if value is None and context.config is not None:
            value = context.config.get_main_option(key)
        # An ini file cannot say None.
        if value is not None and (value or name == "table_prefix"):
            options[name] = value
    return options
