"""Resets a worker's own connection before it is closed.

An engine's creator may take connections from a pool behind the engine, such as psycopg_pool's with
``close_returns``. There, closing a connection gives it back, and the next user must not get one
that listens, is named after a worker or commits by itself.
"""

from contextlib import closing, suppress
from typing import Any, Final

from sqlalchemy import Connection

from .keepalive import within

LEFT_WITHIN: Final = 2.0
"""Seconds for the reset: a server that does not answer must not delay the close for long."""
_UNDO: Final = ("UNLISTEN *", "RESET application_name", "RESET jit", "RESET plan_cache_mode")


def leave_clean(connection: Connection) -> None:
    """Undo a worker's settings of the session before its connection is closed; best effort.

    This goes by the driver, past the engine's listeners: they hear neither of it nor of its errors.
    """
    # A connection of asyncpg's pool really ends when it is closed.
    if connection.invalidated or connection.dialect.driver == "asyncpg":
        return
    driver: Any = connection.connection.dbapi_connection
    with suppress(Exception), within(LEFT_WITHIN, connection):  # a lost one needs no cleaning
        driver.rollback()
        with closing(driver.cursor()) as cursor:
            for statement in _UNDO:
                cursor.execute(statement)
            # psycopg2 would go on decoding as UTF-8, which its own API was told; and it has set the
            # DateStyle itself.
            if connection.dialect.driver != "psycopg2":
                cursor.execute("RESET client_encoding")
                cursor.execute("RESET DateStyle")
        driver.commit()
        connection.dialect.reset_isolation_level(driver)
