"""Connections of a worker's own: how it opens them, and how long it waits to try again.

A side engine is what the user's engine is (URL, ``connect_args``, token providers, listeners and
options), but for a pool of its own: a listener and a heart must not take part in the application's
pool, nor wait for it.
"""

import asyncio
import logging
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from sqlalchemy import URL, Connection, Dialect, Engine, Pool, create_engine
from sqlalchemy.engine.interfaces import IsolationLevel

from .encodings import speak_utf8
from .errors import summary
from .keepalive import enable_keepalive
from .leave_clean import leave_clean
from .sessions import PLANS_LAST, name_session, plan_anew

logger = logging.getLogger("sqlalchemy_bgjob")


def side_engine(engine: Engine) -> Engine:
    """An engine that is like the given one in all but its pool: that is its own.

    It has the same listeners, also on the pool, and execution options: a schema_translate_map, or a
    "begin" that sets a role, decides which tables are found.
    """
    pool = engine.pool.recreate()
    if engine.dialect.is_async:
        _refuse_other_loops(pool)
    return engine_like(engine, pool, engine.dialect, engine.url)


class OfAnotherLoop(RuntimeError):
    """A connection belongs to another event loop than that of the thread that is to use it."""

    def __str__(self) -> str:
        return "the engine's creator hands out connections of another event loop"


def _refuse_other_loops(pool: Any) -> None:
    """Look at each connection before its first use, which would break it for its own loop too."""
    create = pool._invoke_creator  # noqa: SLF001 - an event comes too late: SQLAlchemy closes then

    def create_here(record: Any) -> Any:
        connection: Any = create(record)
        driver = getattr(connection, "driver_connection", None)
        loop = getattr(driver, "_loop", None)  # asyncpg's; those of psycopg belong to none
        if driver is None or loop is None or loop is asyncio.get_running_loop():
            return connection
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(driver.terminate)  # a pool has its place back then
        raise OfAnotherLoop

    pool._creator = create_here  # noqa: SLF001


def connects_by_url(engine: Engine) -> bool:
    """Whether ``create_engine`` connects; not so with ``creator=``, ``async_creator=``, ``pool=``.

    What is in the URL means nothing then.
    """
    creator: Any = engine.pool._creator  # noqa: SLF001 - there is no public way
    return getattr(creator, "__module__", None) == create_engine.__module__


class _LikeAnother(Engine):
    """What is listened to on the class Engine is heard by the other engine's listeners already."""

    _sa_propagate_class_events = False


def engine_like(engine: Engine, pool: Pool, dialect: Dialect, url: URL) -> Engine:
    """An engine with the listeners and execution options of another, on a pool of its own.

    As ``engine.execution_options()`` makes one, but that has the other's pool.
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
    """A connection of a side engine, whose session ends with the block and is never used again.

    A session keeps what the server was when it began: one that was opened while the database was
    read-only stays read-only. So whoever has met an error begins a new one. It is left clean, for
    where the engine's creator takes connections from a pool, to close one is to give it back.
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
    """Prepare a new connection for the worker's own statements: watched, and READ COMMITTED.

    Whatever the user's engine says: under AUTOCOMMIT a settlement would not be one step, and under
    REPEATABLE READ claims would fail by serialization errors. And in UTF-8, if the database is.
    """
    enable_keepalive(connection)
    speak_utf8(connection)
    return connection.execution_options(isolation_level=isolation_level)


def commit_each(connection: Connection, each: bool) -> None:
    """Let each statement on the worker's own connection commit by itself, or not.

    The driver's own switch, without a round trip: SQLAlchemy's execution option would add a
    callback to the connection each time. What :func:`configure` has set is undone in any case.
    """
    driver: Any = connection.connection.dbapi_connection
    connection.dialect.set_isolation_level(driver, "AUTOCOMMIT" if each else "READ COMMITTED")


def maintain(connection: Connection, worker_id: int | None, *, patience: float = 0.0) -> None:
    """Before a worker's statements: name the session, and let it plan anew now and then.

    With *patience*, that many seconds later, or earlier if it is negative.
    """
    if worker_id is not None:
        name_session(connection, worker_id)
    plan_anew(connection, PLANS_LAST + patience)


class Backoff:
    """Waits between attempts to reach the database: 50 ms, doubling, up to 5 s, with jitter."""

    FIRST, LAST = 0.05, 5.0

    def __init__(self) -> None:
        self._next = self.FIRST

    @property
    def is_first(self) -> bool:
        """Whether nothing has failed since it worked."""
        return self._next == self.FIRST

    def log(self, what: str, error: BaseException) -> None:
        """Log a failure: the first one is news, the rest of an outage is not."""
        logger.log(logging.INFO if self.is_first else logging.DEBUG, "%s: %s", what, summary(error))

    def reset(self) -> None:
        """It worked: begin anew at the next failure."""
        self._next = self.FIRST

    def pause(self) -> float:
        """Seconds to wait before the next attempt."""
        pause, self._next = self._next, min(self._next * 2, self.LAST)
        return pause * random.uniform(0.5, 1.0)
