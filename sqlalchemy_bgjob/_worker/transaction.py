"""Notices that a handler has ended the transaction of its session behind the session's back.

A statement that ends it, and is sent as text, is refused before it is sent. There are other ways:
a text of several statements, a connection that the handler has taken, the driver itself (usual with
COPY), a connection that a mapper's event hands out. They are seen twice:

* By the driver's state, at the next statement of the session and before the settlement. That costs
  nothing; but a driver may have begun the next transaction by itself.
* By the time at which the transaction began, before the settlement. That costs two short
  statements, for a handler that takes the connection or sends several statements as one text, and
  none for the others.
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
        self._seen = False  # SQLAlchemy begins it; most drivers do so at their first statement
        self._began_at: Any = None

    def mark(self) -> None:
        """Ask the server when it began, for :meth:`check`."""
        if self._began_at is None:
            self._began_at = self._connection.scalar(transaction_began_at())
            self._seen = True

    def look(self) -> None:
        """See whether the driver is in a transaction still, without asking the server.

        Raises:
            TransactionEnded: It was in one, and is in none.
        """
        if not _is_idle(self._connection.connection.driver_connection):
            self._seen = True
        elif self._seen:
            raise TransactionEnded

    def check(self) -> None:
        """See whether it is the same one still; the server is asked if it was marked.

        Raises:
            TransactionEnded: It is another one, or none.
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
