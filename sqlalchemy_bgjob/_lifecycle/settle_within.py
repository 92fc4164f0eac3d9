"""Settle jobs within a transaction in which their handler has written: all of them, or none."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from .._db.errors import sqlstate
from .._sql import Statements
from .row_errors import RowKept, RowLocked, RowMissing
from .settle import Pending, lock, still_holds, write

LOCK_TIMEOUT_MS: Final = 500
"""How long a handler's settlement waits for a row that another transaction has locked.

Less than a server's deadlock_timeout: of a circle with a user's transaction, this one gives way."""


def settle_within(
    connection: Connection, statements: Statements, items: Sequence[Pending]
) -> str | None:
    """Write settlements; the caller commits. Waits for a moment for rows that others have locked.

    Returns:
        The transaction's id, if it is known.

    Raises:
        RowLocked: A row is locked for longer: a user's open transaction refers to the job.
        RowMissing: There is no such row with this lease.
        RowKept: There is one, and the statement did not settle it.
    """
    limit = f"SET LOCAL lock_timeout = '{LOCK_TIMEOUT_MS}ms'"
    if any(item.job.keep for item in items):  # the first try waits for the records' rows
        connection.exec_driver_sql(limit)
    with _giving_way(items):
        held, xid = write(connection, statements, items)
    if len(held) == len(items):
        return xid
    items = [item for item in items if item.job.id not in held]
    _refuse_missing(connection, statements, items)
    connection.exec_driver_sql(limit)
    with _giving_way(items):
        lock(connection, statements, items)
        held, xid = write(connection, statements, items)
    if len(held) < len(items):
        items = [item for item in items if item.job.id not in held]
        _refuse_missing(connection, statements, items)
        raise RowKept
    return xid


@contextmanager
def _giving_way(items: Sequence[Pending]) -> Iterator[None]:
    """Let a lock that lasts, or a deadlock with a user's transaction, be nobody's fault."""
    try:
        yield
    except DBAPIError as error:
        if sqlstate(error) in ("55P03", "40P01"):
            raise RowLocked(item.job.id for item in items) from None
        raise


def _refuse_missing(
    connection: Connection, statements: Statements, items: Sequence[Pending]
) -> None:
    missing = [it.job.id for it in items if not still_holds(connection, statements, it)]
    if missing:
        raise RowMissing(missing)
