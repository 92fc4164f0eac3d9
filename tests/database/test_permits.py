"""How handlers get connections: no more than the pool can give, and each permit comes back."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import NullPool, QueuePool
from sqlalchemy.util import greenlet_spawn

from sqlalchemy_bgjob import settings
from sqlalchemy_bgjob._worker import permits as permits_module
from sqlalchemy_bgjob._worker import preflight
from sqlalchemy_bgjob._worker.permits import HandlerConnections
from sqlalchemy_bgjob._worker.preflight import pool_permits
from sqlalchemy_bgjob._worker.tasks import AsyncPermits, close_apart
from sqlalchemy_bgjob.testing.points import at
from support import wait_until_async, with_driver

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from support.tuning import Tune


pytestmark = [pytest.mark.core, pytest.mark.keeps_tables]
NOWHERE = "postgresql+psycopg://nobody@127.0.0.1:1/none"
ME = 1001


@pytest.mark.parametrize(
    ("options", "permits"),
    [
        ({}, 13),  # SQLAlchemy's defaults: 5 and 10 more
        ({"pool_size": 12}, 20),
        ({"pool_size": 3, "max_overflow": 0}, 1),
        ({"pool_size": 1, "max_overflow": 2}, 1),
        ({"pool_size": 0}, None),
        ({"max_overflow": -1}, None),
        ({"poolclass": NullPool}, None),
    ],
)
def test_handlers_get_what_the_pool_holds_but_for_two(
    options: dict[str, Any], permits: int | None
) -> None:
    assert pool_permits(create_engine(NOWHERE, **options), slots=1) == permits


def test_the_worker_itself_leaves_the_permits_to_the_handlers() -> None:
    """What is spared is what the worker takes from the user's pool at once."""
    assert settings.SPARE_CONNECTIONS == 2
    assert preflight.MIN_POOL == 3


class Permits:
    """Counts, and never blocks."""

    def __init__(self) -> None:
        self.taken = 0

    def acquire(self, *, timeout: float | None = None) -> bool:
        self.taken += 1
        return True

    def release(self) -> None:
        self.taken -= 1
        assert self.taken >= 0


def test_a_connection_takes_a_permit_and_gives_it_back(engine: Engine) -> None:
    permits = Permits()
    connections = HandlerConnections(engine, permits)

    connection = connections.connect(None, ME)
    assert permits.taken == 1
    connections.disconnect(connection)

    assert permits.taken == 0
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0


def test_a_handler_waits_for_a_permit_and_does_not_fail(database_url: str) -> None:
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    connections = HandlerConnections(engine, threading.Semaphore(1))
    first = connections.connect(None, ME)
    got = threading.Event()

    def second() -> None:
        connections.disconnect(connections.connect(None, ME))
        got.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not got.wait(0.2), "it must wait while the only connection is in use"
    connections.disconnect(first)

    thread.join(20)
    assert got.is_set()
    engine.dispose()


def test_a_server_that_is_down_costs_no_permit() -> None:
    permits = Permits()
    connections = HandlerConnections(create_engine(NOWHERE), permits)

    with pytest.raises(Exception, match="refused"):
        connections.connect(None, ME)

    assert permits.taken == 0


class Cancelled(BaseException):
    """What ends a wait from outside, as asyncio's CancelledError does."""


class EndedAsItIsWoken:
    """A semaphore whose wait is cancelled just after another handler has released it."""

    def __init__(self) -> None:
        self.release_another: Callable[[], None] = lambda: None

    def acquire(self, *, timeout: float | None = None) -> bool:
        if timeout is None:
            return True
        self.release_another()
        raise Cancelled

    def release(self) -> None:
        """The wait is over already."""


def test_a_wait_cancelled_as_it_is_woken_keeps_no_permit(
    database_url: str,
) -> None:
    """Else every later refusal would be waited out, for a connection that nobody has."""
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    returned = EndedAsItIsWoken()
    connections = HandlerConnections(engine, None, returned=returned)
    first = connections.connect(None, ME)
    returned.release_another = lambda: connections.disconnect(first)
    with pytest.raises(Cancelled):
        connections.connect(None, ME)

    returned.release_another = lambda: None
    with engine.connect(), pytest.raises(PoolTimeoutError):
        connections.connect(None, ME)

    engine.dispose()


def test_a_cancelled_wait_wakes_no_later_one(database_url: str, tune: Tune) -> None:
    """The later one would take that for a place, and fail although another handler has one."""
    tune(permits_module, TRY_AGAIN_AFTER=20.0)
    refusals: list[Exception] = []

    async def main() -> None:
        url = with_driver(database_url, "asyncpg")
        engine = create_async_engine(url, pool_size=1, max_overflow=0, pool_timeout=0.01)
        connections = HandlerConnections(
            engine.sync_engine, None, close_apart, returned=AsyncPermits(0)
        )

        def take() -> asyncio.Task[Connection]:
            refusals.clear()
            return asyncio.create_task(greenlet_spawn(connections.connect, None, ME))

        async def refused(times: int) -> None:
            await wait_until_async(lambda: len(refusals) >= times)

        first = await take()
        cancelled = take()
        await refused(1)
        await greenlet_spawn(connections.disconnect, first)
        cancelled.cancel()  # before it has got what that has left to it
        with pytest.raises(asyncio.CancelledError):
            await cancelled

        tune(permits_module, TRY_AGAIN_AFTER=0.05)
        second = await take()
        third = take()
        await refused(2)
        assert not third.done(), "it must wait for the second"
        await greenlet_spawn(connections.disconnect, second)
        await greenlet_spawn(connections.disconnect, await third)
        await engine.dispose()

    with at("unconnected", refusals.append):
        asyncio.run(main())


def test_a_refused_isolation_level_keeps_no_permit(
    engine: Engine,
) -> None:
    permits = Permits()

    with pytest.raises(Exception, match="NO SUCH LEVEL") as refused:
        HandlerConnections(engine, permits).connect("NO SUCH LEVEL", ME)

    # Its frames are alive, so no garbage collection has given the connection back.
    assert refused.tb is not None
    assert permits.taken == 0
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0


def test_the_permit_of_a_broken_connection_comes_back(
    engine: Engine,
) -> None:
    permits = Permits()
    connections = HandlerConnections(engine, permits)
    connection = connections.connect(None, ME)
    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
    with engine.connect() as other:
        other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    connections.disconnect(connection)

    assert permits.taken == 0
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    following = connections.connect(None, ME)
    assert following.execute(text("SELECT 1")).scalar() == 1
    connections.disconnect(following)


@pytest.mark.parametrize(
    ("of_engine", "of_handler", "expected"),
    [
        (None, None, "read committed"),
        ("REPEATABLE READ", None, "repeatable read"),
        ("REPEATABLE READ", "SERIALIZABLE", "serializable"),
        ("AUTOCOMMIT", None, "read committed"),
        ("AUTOCOMMIT", "SERIALIZABLE", "serializable"),
    ],
)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_the_engines_isolation_level_stands_but_for_autocommit(
    url_for: Any, driver: str, of_engine: str | None, of_handler: str | None, expected: str
) -> None:
    """Under AUTOCOMMIT a handler's writes and its settlement could not be one step."""
    options = {"isolation_level": of_engine} if of_engine else {}
    engine = create_engine(url_for(driver), **options)
    connections = HandlerConnections(engine, None)

    connection = connections.connect(of_handler, ME)
    with connection.begin() as transaction:
        level = connection.execute(text("SHOW transaction_isolation")).scalar()
        connection.execute(text("CREATE TABLE t (n int)"))
        transaction.rollback()
    with connection.begin():
        made = connection.execute(text("SELECT to_regclass('t')")).scalar()
    connections.disconnect(connection)

    assert (level, made) == (expected, None)
    with engine.connect() as own:
        driver_connection: Any = own.connection.dbapi_connection
        # The user gets it back as it was.
        assert driver_connection.autocommit == (of_engine == "AUTOCOMMIT")
        if of_engine != "AUTOCOMMIT":
            assert own.get_isolation_level() == (of_engine or "READ COMMITTED")
    engine.dispose()


def test_a_handlers_session_is_named_after_its_worker(engine: Engine) -> None:
    """Whoever rescues the worker's jobs ends its sessions, which are found by this name."""
    connections = HandlerConnections(engine, None)
    names = []

    for worker_id in (ME, ME, ME + 1):
        connection = connections.connect(None, worker_id)
        names.append(connection.execute(text("SHOW application_name")).scalar())
        connections.disconnect(connection)

    assert names == [f"bgjob/{ME}", f"bgjob/{ME}", f"bgjob/{ME + 1}"]
