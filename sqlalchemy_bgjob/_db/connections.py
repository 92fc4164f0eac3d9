"""A worker's own connections: how it opens them, and its backoff when it can't.

A side engine is the user's engine (URL, ``connect_args``, token providers, listeners and options)
with a separate pool: listener and heart must neither use up the application's pool nor wait for it.
"""

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

from sqlalchemy import URL, Connection, Dialect, Engine, Pool, create_engine
from sqlalchemy.engine.interfaces import IsolationLevel

from .encodings import speak_utf8
from .errors import summary
from .keepalive import enable_keepalive
from .leave_clean import leave_clean
from .sessions import name_session, plan_anew, write_iso

logger = logging.getLogger("sqlalchemy_bgjob")


def side_engine(engine: Engine) -> Engine:
    """An engine like the given one, with a pool of its own.

    It keeps the listeners, those of the pool too, and the execution options: a
    schema_translate_map, or a "begin" listener that sets a role, decides which tables are found.
    """
    pool = engine.pool.recreate()
    if engine.dialect.is_async:
        _refuse_other_loops(pool)
    return engine_like(engine, pool, engine.dialect, engine.url)


class OfAnotherLoop(RuntimeError):
    """A connection belongs to another event loop than that of the thread that would use it."""

    def __str__(self) -> str:
        return "the engine's creator hands out connections of another event loop"


def _refuse_other_loops(pool: Any) -> None:
    """Check the loop of each connection before first use, which would break it for its own loop."""
    create = pool._invoke_creator  # noqa: SLF001 - in an event, SQLAlchemy would close it

    def create_here(record: Any) -> Any:
        connection: Any = create(record)
        driver = getattr(connection, "driver_connection", None)
        loop = getattr(driver, "_loop", None)  # asyncpg's; psycopg's have no loop
        if driver is None or loop is None or loop is asyncio.get_running_loop():
            return connection
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(driver.terminate)  # frees its place in a pool
        raise OfAnotherLoop

    pool._creator = create_here  # noqa: SLF001


def connects_by_url(engine: Engine) -> bool:
    """Whether ``create_engine`` connects, and so by the URL.

    With ``creator=``, ``async_creator=`` or ``pool=`` the URL means nothing.
    """
    creator: Any = engine.pool._creator  # noqa: SLF001 - there is no public way
    return getattr(creator, "__module__", None) == create_engine.__module__


class _LikeAnother(Engine):
    """Has the class Engine's listeners from the other engine alone, or each would run twice."""

    _sa_propagate_class_events = False


def engine_like(engine: Engine, pool: Pool, dialect: Dialect, url: URL) -> Engine:
    """An engine with the listeners and execution options of another, on a pool of its own.

    ``engine.execution_options()`` makes such an engine too, but on the same pool.
    """
    made = _LikeAnother(
        pool,
        dialect,
        url,
        logging_name=engine.logging_name,
        hide_parameters=engine.hide_parameters,
        execution_options=engine.get_execution_options(),
    )
    made.dispatch = made.dispatch._join(engine.dispatch)  # noqa: SLF001 - there is no public way
    made._has_events = engine._has_events  # noqa: SLF001
    return made


@contextmanager
def session_of(engine: Engine) -> Iterator[Connection]:
    """A connection of a side engine, whose server session ends with the block.

    A server session that was opened while the database was read-only stays read-only, so after an
    error the caller needs a new one. The connection is left clean: the engine's creator may take
    connections from a pool, and closing one then gives it back.
    """
    with engine.connect() as connection:
        try:
            yield connection
        finally:
            leave_clean(connection)
            connection.invalidate()


def configure(
    connection: Connection, isolation_level: IsolationLevel = "READ COMMITTED"
) -> Connection:
    """Prepare a new connection for the worker.

    It gets keepalive, READ COMMITTED, UTF-8 if the database is, and times that the driver can read.

    The isolation level of the user's engine does not count: under AUTOCOMMIT a settlement would not
    be atomic, and under REPEATABLE READ claims would fail with serialization errors.
    """
    enable_keepalive(connection)
    speak_utf8(connection)
    write_iso(connection)
    return connection.execution_options(isolation_level=isolation_level)


def commit_each(connection: Connection, each: bool) -> None:
    """Let each statement on the worker's own connection commit by itself, or not.

    This is the driver's switch, without a round trip: SQLAlchemy's execution option would add a
    callback to the connection each time. The callback of :func:`configure` resets the level in
    any case.
    """
    driver: Any = connection.connection.dbapi_connection
    connection.dialect.set_isolation_level(driver, "AUTOCOMMIT" if each else "READ COMMITTED")


def maintain(connection: Connection, worker_id: int | None, *, plans: bool) -> bool:
    """Before a worker's statements: name the session, and discard its *plans* when they are old.

    Returns whether they were discarded.
    """
    if worker_id is not None:
        name_session(connection, worker_id)
    return plans and plan_anew(connection)


RECONNECT: Final = 1.0
"""The longest wait, in seconds, of those that find out whether the database is back."""
REPORTED_AFTER: Final = 5.0
"""Seconds between two errors of an outage that observers are told."""


class Backoff:
    """Waits between attempts to reach the database: 50 ms, doubling, with jitter.

    Args:
        last: The longest wait, in seconds; 5 if it is None.
    """

    FIRST, LAST = 0.05, 5.0

    def __init__(self, last: float | None = None) -> None:
        self._next, self._last = self.FIRST, self.LAST if last is None else last
        self._reported_at = float("-inf")

    @property
    def is_first(self) -> bool:
        """Whether no attempt has failed since the last success."""
        return self._next == self.FIRST

    def log(self, what: str, error: BaseException) -> None:
        """Log a failure: the first of an outage as info, the rest as debug."""
        logger.log(logging.INFO if self.is_first else logging.DEBUG, "%s: %s", what, summary(error))

    def is_news(self, now: float) -> bool:
        """Whether observers are to be told of a failure: of the first, then of one every 5 s."""
        if not self.is_first and now < self._reported_at + REPORTED_AFTER:
            return False
        self._reported_at = now
        return True

    def reset(self) -> None:
        """Start again at the shortest wait, after a success."""
        self._next = self.FIRST

    def pause(self) -> float:
        """Seconds to wait before the next attempt."""
        pause, self._next = self._next, min(self._next * 2, self._last)
        return pause * random.uniform(0.5, 1.0)
