"""The audit, page by page: what was done by the dashboard and the command line."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from sqlalchemy import Connection

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
    limit: int,
    before: tuple[datetime, str],
    who: str | None = None,
    verb: str | None = None,
    with_given: bool = True,
) -> list[AuditRow]:
    """What was done, the last first. The caller ends the transaction.

    Without what was given it may be asked by the role of a dashboard. A filter passes over the
    others, which are as many as people have done.

    Args:
        connection: Its transaction is the caller's.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        limit: The most.
        before: ``at`` and ``id`` of the last one of the page before.
        who, verb: By whom, and what, alone.
        with_given: Whether to read what was given.
    """
    at, id = before
    asked: dict[str, Any] = {"limit": limit, "at": at, "id": id, "who": who, "verb": verb}
    statement = _PAGE if with_given else _PAGE_WITHOUT_GIVEN
    return [AuditRow(*row) for row in ask(connection, statement, schema, table_prefix, **asked)]


_PAGE: Final = """
    SELECT at, id, who, origin, verb, changed, details, given FROM ONLY {audit} AS one
    WHERE (at, id) < (CAST(:at AS timestamptz), CAST(:id AS text))
      AND (CAST(:who AS text) IS NULL OR who = CAST(:who AS text))
      AND (CAST(:verb AS text) IS NULL OR verb = CAST(:verb AS text))
    ORDER BY at DESC, id DESC LIMIT :limit
"""
_PAGE_WITHOUT_GIVEN: Final = _PAGE.replace(", given FROM", ", NULL FROM")
