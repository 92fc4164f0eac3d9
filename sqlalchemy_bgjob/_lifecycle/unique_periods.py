"""Delete periods of unique keys that are over: keys may be without end, and room is not."""

from typing import Any, NamedTuple

from sqlalchemy import Connection

from .._sql import Statements
from . import run


class Looked(NamedTuple):
    """What a look at some periods has come to.

    Attributes:
        last: The key from which on the next one looks; None at the end of the table.
        deleted: How many periods were deleted.
    """

    last: str | None
    deleted: int


def delete_over(
    connection: Connection, statements: Statements, *, after: str, limit: int
) -> Looked:
    """Look at *limit* periods, and delete those that have been over for an hour. Commits.

    By the database's clock. Rows that somebody has locked are left to a later call.
    """
    given = {"after": after, "limit": limit}
    with connection.begin():
        row: Any = run(connection, statements.unique_periods.delete_over, **given).one()
    looked, last, deleted = row
    return Looked(last if looked == limit else None, deleted)
