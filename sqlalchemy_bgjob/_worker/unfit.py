"""Whether a handler has failed for what its pooled session is, and not for what it did itself.

A session keeps what the server was when it began: one that was opened while the database was
read-only, or on a standby, stays so. And once a pooler in front of it shares sessions, the
statements that the driver has prepared are in another one. Only after an error is anything asked.
"""

import re
from typing import Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError, PendingRollbackError

from .._db.errors import READ_ONLY, lacks_prepared, sqlstate
from .._db.frames import causes
from .._db.sql_text import first_word_at
from .._sql.words import is_read_only

_ABORTED: Final = "25P02"
_PREPARES: Final = re.compile(r"(prepare|execute|deallocate)\b", re.IGNORECASE)
"""What may well meet such an error for the handler's own fault."""


class ReadOnlySession(RuntimeError):
    """A handler has swallowed what a read-only session had told it."""

    def __str__(self) -> str:
        return (
            "the session of the handler was read-only, and is replaced; see "
            "default_transaction_read_only, or whether the server was a standby"
        )


def blamed(error: BaseException) -> BaseException | None:
    """The error, or its cause, that may be the fault of the session."""
    for cause in causes(error):
        code = sqlstate(cause)
        if code in (READ_ONLY, _ABORTED) or isinstance(cause, PendingRollbackError):
            return cause
        if isinstance(cause, DBAPIError) and lacks_prepared(cause):
            sql = cause.statement or ""
            return None if _PREPARES.match(sql, first_word_at(sql)) else cause
    return None


def fault(connection: Connection, error: BaseException) -> BaseException | None:
    """What to say of a session, outside a transaction, if a blamed error is its fault indeed.

    One that is read-only by default, and not because a handler has asked for that.
    """
    if lacks_prepared(error):
        return error
    with connection.begin():
        if not connection.scalar(is_read_only()):
            return None
    return error if sqlstate(error) == READ_ONLY else ReadOnlySession()


def replace_pooled(connection: Connection, error: BaseException) -> None:
    """End a session, and let the pool begin others in the place of all that are as old."""
    fairy = connection.connection
    # As SQLAlchemy does for a lost connection; there is no public way.
    connection.engine.pool._invalidate(fairy, error)  # noqa: SLF001
    connection.invalidate(error)
