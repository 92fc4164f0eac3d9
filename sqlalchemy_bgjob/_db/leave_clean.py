"""What a session of a worker's own still is after the worker: nothing but a session.

An engine's creator may take connections from a pool behind the engine, such as psycopg_pool's with
``close_returns``. Such a connection goes on when it is closed, for whoever takes it next: it must
not listen, be named after a worker, or commit by itself then.
"""

from contextlib import closing, suppress
from typing import Any, Final

from sqlalchemy import Connection

from .keepalive import within

LEFT_WITHIN: Final = 2.0
"""Seconds: a server that answers no more keeps nobody from closing a connection."""
_UNDO: Final = ("UNLISTEN *", "RESET application_name")


def leave_clean(connection: Connection) -> None:
    """Undo on a connection what lasts for its session, before it is closed; as well as possible.

    By the driver alone: no listener of the engine's is told of it, nor of its errors.
    """
    # asyncpg's pool gives out what ends when it is closed.
    if connection.invalidated or connection.dialect.driver == "asyncpg":
        return
    driver: Any = connection.connection.dbapi_connection
    with suppress(Exception), within(LEFT_WITHIN, connection):  # one that is lost is as clean
        driver.rollback()
        with closing(driver.cursor()) as cursor:
            for statement in _UNDO:
                cursor.execute(statement)
            # psycopg2 would go on to read by the one that it was told, which is UTF-8.
            if connection.dialect.driver != "psycopg2":
                cursor.execute("RESET client_encoding")
        driver.commit()
        connection.dialect.reset_isolation_level(driver)
