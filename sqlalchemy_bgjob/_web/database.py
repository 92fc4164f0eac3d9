"""The dashboard's transactions, on an Engine or an AsyncEngine: the work itself is written once."""

from collections.abc import Callable, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from .._db.errors import sqlstate
from .._inspect.reading import begin_acting, begin_reading

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

T = TypeVar("T")

CONNECTIONS: Final = 4
"""How many of the engine's connections the dashboard takes at once; further requests wait."""
LONGEST_ACTION: Final = 60.0
"""Seconds that a statement of an action may take."""


class NotConnected(ConnectionError):
    """The database can't be reached, or does not let this role in."""


@contextmanager
def _connecting() -> Iterator[None]:
    """Let the errors of connecting be of one kind: with SQLAlchemy 2.0 asyncpg's are bare."""
    try:
        yield
    except Exception as error:
        if isinstance(error, DBAPIError | OSError | PoolTimeout) or sqlstate(error) is not None:
            raise NotConnected from error
        raise


class Database:
    """Runs work in a transaction: to read, or to act. Raises NotConnected where there is none."""

    def __init__(self, engine: "Engine | AsyncEngine") -> None:
        sync_engine: Any = getattr(engine, "sync_engine", engine)
        if not isinstance(sync_engine, Engine):
            raise TypeError(
                f"dashboard() takes an Engine or AsyncEngine, not {type(engine).__name__}"
            )
        if sync_engine.dialect.name != "postgresql":
            raise ValueError(
                f"the queue is in PostgreSQL, and this engine's database is "
                f"{sync_engine.dialect.name!r}; give the engine of the database that has the tables"
            )
        self._engine = engine
        self._limiter: CapacityLimiter | None = None

    async def read(self, work: Callable[[Connection], T]) -> T:
        """Do *work* in a transaction that can change nothing."""

        def reading(connection: Connection) -> T:
            begin_reading(connection)
            return work(connection)

        return await self._run(reading)

    async def act(self, work: Callable[[Connection], T]) -> T:
        """Do *work* in a transaction, and commit it."""

        def acting(connection: Connection) -> T:
            begin_acting(connection, LONGEST_ACTION)
            return work(connection)

        return await self._run(acting)

    async def _run(self, work: Callable[[Connection], T]) -> T:
        if self._limiter is None:  # it belongs to the event loop that is there now
            self._limiter = CapacityLimiter(CONNECTIONS)
        engine = self._engine
        if isinstance(engine, Engine):

            def in_transaction() -> T:
                with ExitStack() as stack:
                    with _connecting():
                        connection = stack.enter_context(engine.connect())
                    return _committed(connection, work)

            return await run_sync(in_transaction, limiter=self._limiter)
        async with self._limiter, AsyncExitStack() as stack:
            with _connecting():
                asynchronous = await stack.enter_async_context(engine.connect())
            return await asynchronous.run_sync(_committed, work)


def _committed(connection: Connection, work: Callable[[Connection], T]) -> T:
    # Over the engine's own level: AUTOCOMMIT would let an action be done by half.
    connection.execution_options(isolation_level="READ COMMITTED")
    with connection.begin():
        return work(connection)
