"""Notices that a handler has ended the transaction of its session behind the session's back.

A statement in text that would end it is refused before it is sent. Other ways are a text of several
statements, a connection that the handler has taken, the driver itself (usual with COPY), and a
connection from a mapper's event. Two checks find them:

* The driver's state, at the session's next statement and before the settlement. This costs nothing,
  but the driver may have begun the next transaction by itself.
* The start time of the transaction, before the settlement. This costs two short statements, only
  for handlers that take the connection or send several statements as one text.
"""

import re
from typing import Any, Final

from sqlalchemy import Connection

from .._db.sql_text import first_word_at
from .._sql.words import transaction_began_at

_IDLE: Final = 0
"""PQTRANS_IDLE of libpq."""
_ENDS_THE_TRANSACTION: Final = re.compile(
    r"(?:commit|end|abort|prepare\s+transaction|"
    r"rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b",
    re.IGNORECASE,
)


class TransactionEnded(RuntimeError):
    """A handler ended the transaction that its session is part of."""

    def __str__(self) -> str:
        return (
            "the handler ended the transaction of its session by SQL or through the connection; "
            "use ctx.session.commit() and ctx.session.rollback()"
        )


def refuse_to_end(sql: str) -> None:
    """Refuse a statement that would end the transaction.

    Raises:
        TransactionEnded: It is COMMIT, ROLLBACK, PREPARE TRANSACTION or a synonym.
    """
    if _ENDS_THE_TRANSACTION.match(sql, first_word_at(sql)):
        raise TransactionEnded


class OpenTransaction:
    """The transaction that a connection has begun, as far as it is known."""

    __slots__ = ("_began_at", "_connection", "_seen")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._seen = False  # most drivers begin it later than SQLAlchemy, at the first statement
        self._began_at: Any = None

    def mark(self) -> None:
        """Ask the server when the transaction began, for :meth:`check`."""
        if self._began_at is None:
            self._began_at = self._connection.scalar(transaction_began_at())
            self._seen = True

    def look(self) -> None:
        """Check that the driver is still in a transaction, without asking the server.

        Raises:
            TransactionEnded: It was in one, and is in none now.
        """
        if not _is_idle(self._connection.connection.driver_connection):
            self._seen = True
        elif self._seen:
            raise TransactionEnded

    def check(self) -> None:
        """Check that the transaction is still the same; asks the server if it was marked.

        Raises:
            TransactionEnded: There is another transaction now, or none.
        """
        self.look()
        marked = self._began_at is not None
        if marked and self._connection.scalar(transaction_began_at()) != self._began_at:
            raise TransactionEnded


def _is_idle(driver: Any) -> bool:
    """Whether a driver's connection is in no transaction; False if it does not tell."""
    is_in_transaction = getattr(driver, "is_in_transaction", None)  # asyncpg
    if is_in_transaction is not None:
        return not is_in_transaction()
    status = getattr(getattr(driver, "info", None), "transaction_status", None)  # both psycopgs
    return status == _IDLE
