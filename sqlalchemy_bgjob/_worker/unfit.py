"""Tells whether a handler failed because of its pooled session, and not by its own fault.

A session that began while the database was read-only, or a standby, stays read-only. And behind a
pooler that shares sessions, the statements that the driver prepared may be in another session. The
server is asked only after an error.
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
"""Statements that may well lack a prepared one by the handler's own fault."""


class ReadOnlySession(RuntimeError):
    """A handler has swallowed the error of a read-only session."""

    def __str__(self) -> str:
        return (
            "the session of the handler was read-only, and is replaced; see "
            "default_transaction_read_only, or whether the server was a standby"
        )


def blamed(error: BaseException) -> BaseException | None:
    """The error, or its cause, that may be the session's fault."""
    for cause in causes(error):
        code = sqlstate(cause)
        if code in (READ_ONLY, _ABORTED) or isinstance(cause, PendingRollbackError):
            return cause
        if isinstance(cause, DBAPIError) and lacks_prepared(cause):
            sql = cause.statement or ""
            return None if _PREPARES.match(sql, first_word_at(sql)) else cause
    return None


def fault(connection: Connection, error: BaseException) -> BaseException | None:
    """The error to report if a blamed one is indeed the session's fault; None if it is not.

    A session is at fault if it is read-only by default, and not because a handler has asked for
    that. It is outside a transaction.
    """
    if lacks_prepared(error):
        return error
    with connection.begin():
        if not connection.scalar(is_read_only()):
            return None
    return error if sqlstate(error) == READ_ONLY else ReadOnlySession()


def replace_pooled(connection: Connection, error: BaseException) -> None:
    """End a session, and let the pool replace all that are as old."""
    fairy = connection.connection
    # As SQLAlchemy does for a lost connection; there is no public way.
    connection.engine.pool._invalidate(fairy, error)  # noqa: SLF001
    connection.invalidate(error)
