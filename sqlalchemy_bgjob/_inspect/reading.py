"""How a page or a command reads: in a transaction that can change nothing, and not for long."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ARRAY, Connection, Text, bindparam, text

from .._sql.words import is_read_only
from ..models import Models
from ..schema._names import qualified, translated
from ..schema._records_1 import RECORD_KINDS
from ..schema._table_kinds import KINDS

LONGEST: Final = 5.0
"""Seconds that a statement of a read may take."""
LONGEST_WAIT: Final = 5.0
"""Seconds for which an action waits for somebody's lock."""


def begin_reading(connection: Connection) -> None:
    """Make this transaction, which has just begun, one of short statements that change nothing."""
    connection.execute(_READ_ONLY)
    connection.execute(_LIMITS, {"longest": _ms(LONGEST), "wait": _ms(LONGEST_WAIT)})


def begin_acting(connection: Connection, seconds: float) -> None:
    """Let no statement of this transaction take longer, or wait long for a lock."""
    connection.execute(_LIMITS, {"longest": _ms(seconds), "wait": _ms(LONGEST_WAIT)})


def can_write(connection: Connection) -> bool:
    """Whether the server and this role's settings allow to write at all."""
    return not connection.execute(is_read_only()).scalar_one()


def can_read_args(connection: Connection, models: Models) -> bool:
    """Whether this role may read the args of jobs, live and dead; see ``grants --dashboard``."""
    return can_read_dead_args(connection, models) and _can_read(connection, models, "job", "arg")


def can_read_dead_args(connection: Connection, models: Models) -> bool:
    """Whether this role may read those of dead jobs."""
    return _can_read(connection, models, "dead_job", "arg")


def can_read_batches(connection: Connection, models: Models) -> bool:
    """Whether this role may read batches, which ``grants`` of earlier releases left out."""
    return _can_read(connection, models, "batch", "then_type")


def _can_read(connection: Connection, models: Models, kind: str, column: str) -> bool:
    table = _tables(connection, models)[KINDS.index(kind)]
    return bool(connection.execute(_COLUMN, {"table": table, "column": column}).scalar_one())


@dataclass(frozen=True, slots=True)
class Readable:
    """What of the tables of records there is, and this role may read.

    Attributes:
        there: Whether there are such tables.
        records: Whether it may read records.
        results: Whether it may read their results too.
        counts: Whether it may read what workers have counted.
        audit: Whether it may read the audit.
        given: Whether it may read the args that the audit has.
    """

    there: bool
    records: bool
    results: bool
    counts: bool
    audit: bool
    given: bool


def readable(connection: Connection, models: Models) -> Readable:
    """What of the tables of records this role may read, whatever the application says of them."""
    schema = translated(connection, models.schema)
    given = {kind: qualified(schema, f"{models.table_prefix}{kind}") for kind in RECORD_KINDS}
    return Readable(*connection.execute(_READABLE, given).one())


def activity(connection: Connection, models: Models) -> Sequence[int]:
    """Numbers that change when rows do: the server's statistics, so no table is read.

    They lag behind by a second or so.
    """
    found = connection.execute(_ACTIVITY, {"tables": _tables(connection, models)}).one()
    return tuple(int(number) for number in found)


def _tables(connection: Connection, models: Models) -> list[str]:
    schema = translated(connection, models.schema)
    return [qualified(schema, f"{models.table_prefix}{kind}") for kind in KINDS]


def _ms(seconds: float) -> str:
    return f"{seconds * 1_000:.0f}"


_READ_ONLY = text("SET TRANSACTION READ ONLY")
# Compiling a plan takes longer than these statements do.
_LIMITS = text(
    "SELECT set_config('statement_timeout', :longest, true),"
    " set_config('lock_timeout', :wait, true), set_config('jit', 'off', true)"
)
_COLUMN = text("SELECT has_column_privilege(CAST(:table AS text), CAST(:column AS text), 'SELECT')")
_READABLE = text(
    """
    SELECT record IS NOT NULL AND minute IS NOT NULL AND audit IS NOT NULL,
           coalesce(has_column_privilege(record, 'state', 'SELECT'), false),
           coalesce(has_column_privilege(record, 'result', 'SELECT'), false),
           coalesce(has_table_privilege(minute, 'SELECT'), false),
           coalesce(has_column_privilege(audit, 'verb', 'SELECT'), false),
           coalesce(has_column_privilege(audit, 'given', 'SELECT'), false)
    FROM (SELECT CAST(to_regclass(CAST(:record AS text)) AS oid) AS record,
                 CAST(to_regclass(CAST(:minute AS text)) AS oid) AS minute,
                 CAST(to_regclass(CAST(:audit AS text)) AS oid) AS audit) AS named
    """
)
_ACTIVITY = text(
    """
    SELECT coalesce(sum(n_tup_ins), 0), coalesce(sum(n_tup_upd), 0), coalesce(sum(n_tup_del), 0)
    FROM pg_catalog.pg_stat_user_tables
    WHERE relid IN (SELECT to_regclass(name) FROM unnest(CAST(:tables AS text[])) AS name)
    """
).bindparams(bindparam("tables", type_=ARRAY(Text)))
