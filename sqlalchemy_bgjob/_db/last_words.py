"""Why the server ended a session, where the driver would lose the reason.

A server that ends a session sends its reason and then closes the socket. Psycopg may read the
message while no statement is under way, as it does at the end of each one. It takes the message for
a notice then, and the next statement fails with no more than "server closed the connection
unexpectedly": in one case of ten under load. Asyncpg keeps the reason as the cause of the error
that it raises. Psycopg2 has the message, without its SQLSTATE.
"""

from contextlib import suppress
from typing import Any, Final

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from .errors import sqlstate

_KEY: Final = "bgjob_last_words"
_CRASHED: Final = "57P02"
"""Sent as a warning when another server process has crashed and this one must end."""
_DEEPEST: Final = 20


class LastWords:
    """The SQLSTATE that the server sent when it ended a session."""

    __slots__ = ("sqlstate",)

    def __init__(self) -> None:
        self.sqlstate: str | None = None

    def hear(self, notice: Any) -> None:
        """Keep the SQLSTATE of a notice that announces the end of the session."""
        if notice.severity_nonlocalized in ("FATAL", "PANIC") or notice.sqlstate == _CRASHED:
            self.sqlstate = notice.sqlstate


def last_words(connection: Connection) -> LastWords:
    """The last words of a connection's session, recorded from the first call on."""
    info = connection.info
    words: LastWords | None = info.get(_KEY)
    if words is None:
        words = info[_KEY] = LastWords()
        listen = getattr(connection.connection.driver_connection, "add_notice_handler", None)
        if listen is not None:
            listen(words.hear)
    return words


def complete(error: BaseException, words: LastWords | None) -> None:
    """Find the error of an ended session in a chain, and set the SQLSTATE of the reason on it."""
    found: BaseException | None = error
    for _ in range(_DEEPEST):
        if found is None:
            return
        if isinstance(found, DBAPIError) and found.connection_invalidated:
            said = _cause_s(found.orig) or (words.sqlstate if words is not None else None)
            if said is not None:
                with suppress(AttributeError):  # the driver's error allows no attributes
                    found.orig.sqlstate = said  # type: ignore[union-attr]
            return
        found = found.__cause__ or found.__context__


def _cause_s(error: BaseException | None) -> str | None:
    """The SQLSTATE behind asyncpg's error of a lost connection (class 08)."""
    cause = error.__cause__ if error is not None else None
    if (sqlstate(cause) or "")[:2] == "08":
        return sqlstate(cause.__cause__) if cause is not None else None
    return None
