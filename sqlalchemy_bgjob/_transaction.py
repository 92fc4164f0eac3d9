"""Notices that a handler has ended the transaction of its session behind the session's back.

By SQL as text that is seen before it is sent. A handler that takes the connection may end it in
other ways, also by the driver (usual with COPY). That is seen twice: at the next statement of the
session by the driver's state, which costs nothing, and at the settlement by the time at which the
transaction began, since a driver may have begun the next one by itself. The latter costs two short
statements for a handler that takes the connection, and none for the others.
"""

import re
from typing import Any, Final

from sqlalchemy import Connection

from ._sql import transaction_began_at

_IDLE: Final = 0
"""PQTRANS_IDLE of libpq."""
_ENDS_THE_TRANSACTION: Final = re.compile(
    r"(?:\s|--[^\n]*\n|/\*.*?\*/)*(?:commit|end|abort|prepare\s+transaction|"
    r"rollback(?!\s+(?:(?:work|transaction)\s+)?to\b))\b",
    re.IGNORECASE | re.DOTALL,
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
    if _ENDS_THE_TRANSACTION.match(sql):
        raise TransactionEnded


class Mark:
    """Which transaction a connection is in, to be compared later."""

    __slots__ = ("_began_at",)

    def __init__(self, connection: Connection) -> None:
        self._began_at: Any = connection.scalar(transaction_began_at())

    def check_driver(self, connection: Connection) -> None:
        """See whether the driver is in a transaction still, without asking the server.

        Raises:
            TransactionEnded: It is in none.
        """
        if _is_idle(connection.connection.driver_connection):
            raise TransactionEnded

    def check(self, connection: Connection) -> None:
        """See whether it is in that transaction still.

        Raises:
            TransactionEnded: It is in another one, or in none.
        """
        if connection.scalar(transaction_began_at()) != self._began_at:
            raise TransactionEnded


def _is_idle(driver: Any) -> bool:
    """Whether a driver's connection is in no transaction; False if it does not tell."""
    is_in_transaction = getattr(driver, "is_in_transaction", None)  # asyncpg
    if is_in_transaction is not None:
        return not is_in_transaction()
    status = getattr(getattr(driver, "info", None), "transaction_status", None)  # both psycopgs
    return status == _IDLE
