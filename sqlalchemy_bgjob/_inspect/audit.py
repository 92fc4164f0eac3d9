"""The audit, page by page: what was done by the dashboard and the command line."""

from dataclasses import dataclass, fields, replace
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

from .paging import Part, Position, part_of
from .registered import ask


@dataclass(frozen=True, slots=True)
class AuditRow:
    """One thing that somebody has done: plain data.

    Attributes:
        at: When, by the server's clock.
        id: Its id.
        who: Who; None if nobody knows.
        origin: By which program: ``dashboard`` or ``command line``.
        verb: What it was.
        changed: How many rows it changed.
        details: On what, without any value of an arg.
        given: The arg and headers that were given; None if none were, or if they were not read.
    """

    at: datetime
    id: str
    who: str | None
    origin: str
    verb: str
    changed: int
    details: Any
    given: Any


def page(
    connection: Connection,
    schema: str | None,
    table_prefix: str,
    *,
    size: int,
    scan: int,
    after: Position | None = None,
    who: str | None = None,
    verb: str | None = None,
    with_given: bool = True,
) -> Part[AuditRow]:
    """What was done, the last first. The caller ends the transaction.

    Without what was given it may be asked by the role of a dashboard. A filter passes over the
    others, as far as so many rows are looked at.

    Args:
        connection: Its transaction is the caller's.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        size: The most rows of the page.
        scan: How many rows it looks at, if not all fit.
        after: Where the page before stopped.
        who, verb: By whom, and what, alone.
        with_given: Whether to read what was given.
    """
    asked: dict[str, Any] = {"who": who, "verb": verb, "limit": size + 1, "scan": scan}
    asked |= {"at": after and after.time, "id": after and after.id}
    statement = _PAGE if with_given else _PAGE_WITHOUT_GIVEN
    part = part_of(ask(connection, statement, schema, table_prefix, **asked), size)
    return replace(part, rows=[AuditRow(*row[:_COLUMNS]) for row in part.rows])


_COLUMNS: Final = len(fields(AuditRow))
# Rows are read in the order of the key, and no further than the page goes.
_PAGE: Final = """
    SELECT * FROM (
      SELECT at, id, who, origin, verb, changed, details, one.given AS given,
             (CAST(:who AS text) IS NULL OR who = CAST(:who AS text))
             AND (CAST(:verb AS text) IS NULL OR verb = CAST(:verb AS text)) AS fits,
             row_number() OVER (ORDER BY at DESC, id DESC) = CAST(:scan AS bigint) AS is_last
      FROM ONLY {audit} AS one
      WHERE (at, id)
            < (coalesce(CAST(:at AS timestamptz), 'infinity'), coalesce(CAST(:id AS text), ''))
      ORDER BY at DESC, id DESC LIMIT CAST(:scan AS bigint)
    ) AS seen
    WHERE fits OR is_last
    ORDER BY at DESC, id DESC LIMIT :limit
"""
_PAGE_WITHOUT_GIVEN: Final = _PAGE.replace("one.given AS given", "NULL AS given")
