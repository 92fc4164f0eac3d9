"""The worker and the user's pool: it takes few connections, says how many, and never starves."""

from __future__ import annotations

import asyncio
import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, MetaData, NullPool, StaticPool, create_engine, text

from sqlalchemy_bgjob import AsyncWorker, BGJob, Context, Worker, enqueue_many
from support import wait_until, wait_until_async

if TYPE_CHECKING:
    from conftest import UrlFor

pytestmark = pytest.mark.core

SLOTS = 10


class Crowd:
    """Handlers that use their session, and how many did so at the same time."""

    def __init__(self, engine: Engine, *, coroutine: bool = False) -> None:
        self.jobs = BGJob(MetaData())
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
