"""One statement in the driver's own way: the claim of a worker that waits, whose latency counts.

``Connection.execute`` costs about a quarter of a millisecond in a process that has just slept,
which is a fifth of the time from an enqueue to its handler. All else that SQLAlchemy would do is to
tell those who listen; where somebody does, it runs the statement.
"""

from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ClauseElement, Executable

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

_DRIVERS: Final = ("psycopg", "asyncpg")
"""Whose rows come as the statement's types say; psycopg2's bytes do not."""
_EVENTS: Final = (
    "before_execute",
    "after_execute",
    "before_cursor_execute",
    "after_cursor_execute",
)


class IdleStatement:
    """A statement compiled for an engine's dialect."""

    def __init__(self, statement: Executable, engine: Engine) -> None:
        self.statement = statement
        self._dialect = engine.dialect
        compiled = cast("ClauseElement", statement).compile(dialect=engine.dialect)
        self._compiled = cast("SQLCompiler", compiled)
        self._sql = str(compiled)

    def fetch(self, connection: Connection, given: dict[str, Any]) -> list[Any]:
        """The rows, on a connection where each statement commits by itself.

        Raises:
            DBAPIError: As from ``Connection.execute``; the connection is not invalidated.
        """
        values: Any = self._compiled.construct_params(given)
        if (names := self._compiled.positiontup) is not None:
            values = tuple(values[name] for name in names)
        driver: Any = connection.connection.dbapi_connection
        kinds: Any = self._dialect.dbapi
        try:
            with closing(driver.cursor()) as cursor:
                cursor.execute(self._sql, values)
                return list(cursor.fetchall())
        except kinds.Error as error:
            raise DBAPIError.instance(
                self._sql,
                None,
                error,
                kinds.Error,
                hide_parameters=True,
                connection_invalidated=self._dialect.is_disconnect(error, driver, None),
                dialect=self._dialect,
            ) from error


def may_commit_each(connection: Connection) -> bool:
    """Whether statements on this connection may commit by themselves, one by one.

    asyncpg prepares a statement and runs it in two steps. Where it keeps no prepared statements, as
    users of a pooler in transaction mode tell it, only a transaction makes both meet one session.
    And who listens to "begin" may set what lasts for a transaction: a role, or a search_path.
    """
    if connection.engine.dispatch.begin or connection.engine.dispatch.commit:
        return False
    if connection.dialect.driver != "asyncpg":
        return True
    driver: Any = connection.connection.dbapi_connection
    return getattr(driver, "_prepared_statement_cache", None) is not None


def prepare(statement: Executable, connection: Connection) -> IdleStatement | None:
    """The statement in the driver's own way; None where SQLAlchemy must run it in a transaction.

    What commits by itself runs at the session's own isolation level, and only under READ COMMITTED
    do workers pass over each other's rows.
    """
    engine = connection.engine
    listened = any(getattr(engine.dispatch, name) for name in _EVENTS)
    translated = engine.get_execution_options().get("schema_translate_map")
    plain = engine.dialect.driver in _DRIVERS and not (engine.echo or listened or translated)
    if (
        not plain
        or not may_commit_each(connection)
        or connection.default_isolation_level != "READ COMMITTED"
    ):
        return None
    return IdleStatement(statement, engine)
