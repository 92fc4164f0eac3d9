"""Runs a statement by the driver alone: a claim, whose latency counts.

``Connection.execute`` costs about a quarter of a millisecond in a process that has just slept,
which is a fifth of the time from an enqueue to its handler. Only event listeners would miss
SQLAlchemy; where there are any, SQLAlchemy runs the statement.
"""

import functools
from collections.abc import Iterable
from contextlib import closing
from typing import TYPE_CHECKING, Any, Final, cast

from sqlalchemy import Connection, Dialect, func, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import ClauseElement, Executable

if TYPE_CHECKING:
    from sqlalchemy.sql.compiler import SQLCompiler

_DRIVERS: Final = ("psycopg", "asyncpg")
"""Drivers whose values need no conversion by SQLAlchemy's types; psycopg2's bytes do."""
_EVENTS: Final = (
    "before_execute",
    "after_execute",
    "before_cursor_execute",
    "after_cursor_execute",
)


_DEFAULT_LEVEL: Final = select(func.current_setting("default_transaction_isolation"))


class DirectStatement:
    """A statement for an engine's dialect; it is compiled when it is first needed."""

    def __init__(self, statement: Executable, dialect: Dialect) -> None:
        self.statement = statement
        self._dialect = dialect
        self._compiled: SQLCompiler | None = None

    def compile(self) -> "SQLCompiler":
        """Compile it, once: the first time takes longer than to run it."""
        if self._compiled is None:
            compiled = cast("ClauseElement", self.statement).compile(dialect=self._dialect)
            self._compiled = cast("SQLCompiler", compiled)
        return self._compiled

    def fetch(self, connection: Connection, given: dict[str, Any]) -> list[Any]:
        """Run it on a connection where each statement commits by itself; the rows.

        Raises:
            DBAPIError: As ``Connection.execute`` raises it, but the connection is not invalidated.
        """
        compiled = self.compile()
        values: Any = compiled.construct_params(given)
        if (names := compiled.positiontup) is not None:
            values = tuple(values[name] for name in names)
        driver: Any = connection.connection.dbapi_connection
        kinds: Any = self._dialect.dbapi
        try:
            with closing(driver.cursor()) as cursor:
                cursor.execute(compiled.string, values)
                return list(cursor.fetchall())
        except kinds.Error as error:
            raise DBAPIError.instance(
                compiled.string,
                None,
                error,
                kinds.Error,
                hide_parameters=True,
                connection_invalidated=self._dialect.is_disconnect(error, driver, None),
                dialect=self._dialect,
            ) from error


def may_commit_each(connection: Connection) -> bool:
    """Whether statements on this connection may commit by themselves, one by one.

    asyncpg prepares a statement and runs it in two steps. Where it is told to keep no prepared
    statements, for a pooler in transaction mode, only a transaction keeps both in one server
    session. And a listener of "begin" may set a role or a search_path for the transaction.
    """
    if connection.engine.dispatch.begin or connection.engine.dispatch.commit:
        return False
    if connection.dialect.driver != "asyncpg":
        return True
    driver: Any = connection.connection.dbapi_connection
    return getattr(driver, "_prepared_statement_cache", None) is not None


def prepare(
    statements: Iterable[Executable], connection: Connection
) -> dict[Executable, DirectStatement]:
    """Statements for the driver alone; none where SQLAlchemy must run them in a transaction.

    A statement that commits by itself has the session's default isolation level, and workers skip
    each other's rows under READ COMMITTED only. The server is asked for that, as a listener of
    "connect" may have set it: SQLAlchemy knows what the engine's first session had before. Commits.
    """
    engine = connection.engine
    listened = any(getattr(engine.dispatch, name) for name in _EVENTS)
    translated = engine.get_execution_options().get("schema_translate_map")
    plain = engine.dialect.driver in _DRIVERS and not (engine.echo or listened or translated)
    if not plain or not may_commit_each(connection):
        return {}
    with connection.begin():
        if connection.scalar(_DEFAULT_LEVEL) != "read committed":
            return {}
    return {statement: _for_dialect(statement, engine.dialect) for statement in statements}


@functools.lru_cache(maxsize=16)
def _for_dialect(statement: Executable, dialect: Dialect) -> DirectStatement:
    """One for all connections, as it takes longer to compile it than to connect."""
    return DirectStatement(statement, dialect)
