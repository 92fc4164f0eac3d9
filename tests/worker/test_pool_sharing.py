"""The worker and the user's pool: it takes few connections, says how many, and never starves."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, NullPool, StaticPool, create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from sqlalchemy_bgjob import AsyncWorker, Context, Observer, Worker, enqueue_many
from support import wait_until, wait_until_async
from support.tables import new_queue

if TYPE_CHECKING:
    from conftest import UrlFor

pytestmark = pytest.mark.keeps_tables

SLOTS = 10


class Crowd:
    """Handlers that use their session, and how many did so at the same time."""

    def __init__(self, engine: Engine, *, coroutine: bool = False) -> None:
        self.jobs = new_queue()
        self.jobs.metadata.create_all(engine)
        self.ended = 0
        self.most = 0
        self._inside = 0
        self._lock = threading.Lock()

        def crowd(ctx: Context[Any]) -> None:
            ctx.session.execute(text("SELECT 1"))
            self._enter()
            ctx.session.execute(text("SELECT pg_sleep(0.02)"))
            self._leave()

        async def crowd_async(ctx: Context[Any]) -> None:
            await ctx.session.execute(text("SELECT 1"))
            self._enter()
            await ctx.session.execute(text("SELECT pg_sleep(0.02)"))
            self._leave()

        self.handler = self.jobs.handler("crowd")(crowd_async if coroutine else crowd)

    def _enter(self) -> None:
        with self._lock:
            self._inside += 1
            self.most = max(self.most, self._inside)

    def _leave(self) -> None:
        with self._lock:
            self._inside -= 1
            self.ended += 1

    def left(self, engine: Engine) -> int:
        with engine.connect() as connection:
            return connection.execute(text("SELECT count(*) FROM bgjob_job")).scalar_one()


@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 1, "max_overflow": 0},
        {"pool_size": 1, "max_overflow": 1},
        {"poolclass": StaticPool},
    ],
    ids=["one", "two", "static"],
)
def test_a_pool_below_three_is_refused_with_the_number(
    engine: Engine, database_url: str, options: dict[str, Any]
) -> None:
    """One connection to claim and settle on, one to spare, one for a handler."""
    crowd = Crowd(engine)
    small = create_engine(database_url, **options)

    with pytest.raises(ValueError, match=rf"at least 3.*pool_size={SLOTS + 2}\b"):
        Worker(crowd.jobs, small, queues={"default": SLOTS})
    small.dispose()


def test_a_small_async_pool_is_refused_with_the_number(engine: Engine, url_for: UrlFor) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    crowd = Crowd(engine, coroutine=True)
    small = create_async_engine(url_for("asyncpg"), pool_size=1, max_overflow=0)

    with pytest.raises(ValueError, match=rf"at least 3.*pool_size={SLOTS + 2}\b"):
        AsyncWorker(crowd.jobs, small, queues={"default": SLOTS})


def test_ten_slots_share_a_pool_of_five(
    engine: Engine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """All complete, three at a time; the worker says which size would let all run at once."""
    crowd = Crowd(engine)
    # A handler that waited for the pool itself would fail within a tenth of a second.
    five = create_engine(database_url, pool_size=5, max_overflow=0, pool_timeout=0.1)
    enqueue_many(engine, crowd.handler, [None] * 100)

    with (
        caplog.at_level(logging.WARNING),
        Worker(crowd.jobs, five, queues={"default": SLOTS}),
    ):
        wait_until(lambda: crowd.left(engine) == 0, 30, what="the end of all jobs")

    assert crowd.ended == 100, "a job has failed for want of a connection"
    assert crowd.most <= 3
    assert f"pool_size={SLOTS + 2}" in caplog.text
    assert five.pool.checkedout() == 0  # type: ignore[attr-defined]
    five.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_ten_coroutines_share_a_pool_of_five(engine: Engine, url_for: UrlFor, driver: str) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    crowd = Crowd(engine, coroutine=True)
    enqueue_many(engine, crowd.handler, [None] * 100)

    async def main() -> None:
        five = create_async_engine(url_for(driver), pool_size=5, max_overflow=0, pool_timeout=0.1)
        async with AsyncWorker(crowd.jobs, five, queues={"default": SLOTS}):
            await wait_until_async(lambda: crowd.left(engine) == 0, 30, what="the end of all jobs")
        assert five.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await five.dispose()

    asyncio.run(main())
    assert crowd.ended == 100, "a job has failed for want of a connection"
    assert crowd.most <= 3


@pytest.mark.core
def test_a_pool_for_all_slots_runs_all_at_once(
    engine: Engine, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
    """The number that the warning names is enough, and then nobody is warned."""
    crowd = Crowd(engine)
    together = threading.Barrier(SLOTS)

    @crowd.jobs.handler("together")
    def all_at_once(ctx: Context[Any]) -> None:
        ctx.session.execute(text("SELECT 1"))
        together.wait(20)

    enough = create_engine(database_url, pool_size=SLOTS + 2, max_overflow=0, pool_timeout=0.1)
    enqueue_many(engine, all_at_once, [None] * SLOTS)
    with caplog.at_level(logging.WARNING), Worker(crowd.jobs, enough, queues={"default": SLOTS}):
        wait_until(lambda: crowd.left(engine) == 0, 30, what="all slots at once")

    assert "pool_size" not in caplog.text
    enough.dispose()


@pytest.mark.core
def test_without_a_pool_every_handler_has_its_own_connection(
    engine: Engine, database_url: str
) -> None:
    """NullPool: nothing to share, and nothing left open."""
    crowd = Crowd(engine)
    plain = create_engine(database_url, poolclass=NullPool)
    enqueue_many(engine, crowd.handler, [None] * 50)

    with Worker(crowd.jobs, plain, queues={"default": SLOTS}):
        wait_until(lambda: crowd.left(engine) == 0, 30, what="the end of all jobs")

    assert crowd.ended == 50
    mine = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND application_name LIKE 'bgjob/%'"
    )

    def open_sessions() -> int:
        with engine.connect() as connection:
            return connection.execute(text(mine)).scalar_one()

    wait_until(lambda: open_sessions() == 0, what="the end of all connections")


# ---- the application has taken all ----------------------------------------------------------


SMALL: Any = {"pool_size": 3, "max_overflow": 0, "pool_timeout": 0.2, "pool_pre_ping": True}


class Errors(Observer):
    """What went wrong, by name."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def worker_error(self, error: BaseException) -> None:
        self.names.append(type(error).__name__)


def beats(engine: Engine) -> float:
    """When the worker has last beaten."""
    with engine.connect() as connection:
        query = text("SELECT extract(epoch FROM max(beat_at)) FROM bgjob_worker")
        return float(connection.execute(query).scalar_one())


def end_sessions(engine: Engine, but: set[int]) -> None:
    """End the sessions of the worker, but for those that the test has taken."""
    query = text(
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name LIKE 'bgjob/%' AND NOT (pid = ANY(:but))"
    )
    with engine.begin() as connection:
        connection.execute(query, {"but": list(but)})


def test_an_exhausted_pool_is_waited_for(engine: Engine, database_url: str) -> None:
    """The worker beats, and goes on within seconds once there is a connection."""
    crowd = Crowd(engine)
    shared = create_engine(database_url, **SMALL)
    errors = Errors()
    held: list[Connection] = []

    def take_all() -> bool:
        """The worker's own connections too, as it loses them."""
        pids = {connection.scalar(text("SELECT pg_backend_pid()")) for connection in held}
        if len(held) < 3:
            end_sessions(engine, pids)
            with suppress(PoolTimeoutError):
                held.append(shared.connect())
        return len(held) == 3

    settings: Any = {"heartbeat_interval": 0.2, "poll_interval": 0.1, "observers": [errors]}
    with Worker(crowd.jobs, shared, queues={"default": 2}, **settings):
        enqueue_many(engine, crowd.handler, [None] * 5)
        wait_until(lambda: crowd.left(engine) == 0, what="jobs before")
        wait_until(take_all, what="all connections")
        wait_until(lambda: errors.names.count("TimeoutError") >= 2, what="attempts in vain")
        enqueue_many(engine, crowd.handler, [None] * 5)
        last = beats(engine)
        wait_until(lambda: beats(engine) > last + 0.5, what="beats meanwhile")
        assert crowd.ended == 5

        for connection in held:
            connection.close()
        freed = time.monotonic()
        wait_until(lambda: crowd.left(engine) == 0, what="jobs after")
        took = time.monotonic() - freed

    print(f"went on {took:.1f} s after there were connections")
    assert took < 10.0
    assert crowd.ended == 10
    shared.dispose()


@pytest.mark.chaos
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_exhausted_async_pool_is_waited_for(
    engine: Engine, url_for: UrlFor, driver: str
) -> None:
    """The same in an event loop: it goes on while the worker waits."""
    from sqlalchemy.ext.asyncio import AsyncConnection, create_async_engine

    crowd = Crowd(engine, coroutine=True)
    errors = Errors()

    async def main() -> float:
        shared = create_async_engine(url_for(driver), **SMALL)
        held: list[AsyncConnection] = []

        async def take_all() -> bool:
            pids = {await c.scalar(text("SELECT pg_backend_pid()")) for c in held}
            if len(held) < 3:
                end_sessions(engine, pids)
                with suppress(PoolTimeoutError):
                    held.append(await shared.connect())
            return len(held) == 3

        settings: Any = {"heartbeat_interval": 0.2, "poll_interval": 0.1, "observers": [errors]}
        async with AsyncWorker(crowd.jobs, shared, queues={"default": 2}, **settings):
            await wait_until_async(take_all, what="all connections")
            await wait_until_async(
                lambda: errors.names.count("TimeoutError") >= 2, what="attempts in vain"
            )
            enqueue_many(engine, crowd.handler, [None] * 5)
            last = beats(engine)
            await wait_until_async(lambda: beats(engine) > last + 0.5, what="beats meanwhile")
            assert crowd.ended == 0

            for connection in held:
                await connection.close()
            freed = time.monotonic()
            await wait_until_async(lambda: crowd.left(engine) == 0, what="jobs after")
            took = time.monotonic() - freed
        await shared.dispose()
        return took

    took = asyncio.run(main())
    print(f"went on {took:.1f} s after there were connections")
    assert took < 10.0
    assert crowd.ended == 5
