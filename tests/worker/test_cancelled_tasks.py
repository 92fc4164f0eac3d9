"""Tasks that are cancelled anywhere, and connections that can't be set up: nothing leaks."""

from __future__ import annotations

import asyncio
import gc
import random
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Column,
    MetaData,
    Table,
    Text,
    create_engine,
    event,
    func,
    insert,
    select,
    text,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from sqlalchemy_bgjob import AsyncWorker, BGJob, Context, Worker, constant, enqueue_many
from sqlalchemy_bgjob._db.connections import Backoff
from support import wait_until, wait_until_async, with_driver
from support.tables import new_queue

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from support.tuning import Tune

CANCELLATIONS = 250
JOBS = 100
SEED = 20261125
BACKENDS = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    " AND backend_type = 'client backend'"
)

END = text(
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
def test_five_hundred_cancellations_leak_nothing(driver: str, engine: Engine) -> None:
    """In every await there is, half on each driver: of a statement, a savepoint, a commit."""
    dice = random.Random(SEED)
    metadata = MetaData()
    jobs = BGJob(metadata)
    effect = Table("effect", metadata, Column("job_id", Text, nullable=False))

    @jobs.handler("fragile", retry=constant(0.01), max_attempts=None)
    async def fragile(ctx: Context[AsyncSession], number: int) -> None:
        await ctx.session.execute(insert(effect).values(job_id=ctx.job.id))
        await asyncio.sleep(dice.random() * 0.01)
        async with ctx.session.begin_nested():
            await ctx.session.execute(select(func.pg_sleep(dice.random() * 0.005)))
        async with asyncio.timeout(5.0):
            await asyncio.sleep(dice.random() * 0.005)

    metadata.create_all(engine)
    enqueue_many(engine, fragile, range(JOBS))

    def done() -> bool:
        with engine.connect() as connection:
            job = jobs.models.job
            return connection.scalar(select(func.count()).select_from(job)) == 0

    def backends() -> int:
        with engine.connect() as connection:
            return connection.scalar(BACKENDS) or 0

    def no_more_than_its_own() -> bool:
        # psycopg leaves what it was connecting when its task was cancelled to the collector.
        gc.collect()
        return backends() <= 12 + 3

    async def main() -> int:
        made = create_async_engine(with_driver(engine.url, driver), pool_size=12, max_overflow=0)
        cancelled = 0
        async with AsyncWorker(jobs, made, queues={"default": 10}):
            while cancelled < CANCELLATIONS:
                running = [t for t in asyncio.all_tasks() if t.get_name() == "bgjob fragile"]
                if running and dice.choice(running).cancel():
                    cancelled += 1
                elif not running and done():
                    enqueue_many(engine, fragile, range(JOBS))
                await asyncio.sleep(dice.random() * 0.004)

            await wait_until_async(done, 60, what="the end of all jobs")
            await wait_until_async(
                lambda: all(t.get_name() != "bgjob fragile" for t in asyncio.all_tasks()),
                what="the end of all tasks",
            )
            # One whose connection was cut by a cancellation takes a moment to end.
            await wait_until_async(
                no_more_than_its_own, what="no more than pool, heart, watch and listener"
            )
        assert made.pool.checkedout() == 0
        await made.dispose()
        return cancelled

    assert asyncio.run(main()) >= CANCELLATIONS
    with engine.connect() as connection:
        each = select(func.count()).select_from(effect).group_by(effect.c.job_id)
        counts = connection.scalars(each).all()
        dead = connection.scalar(select(func.count()).select_from(jobs.models.dead_job))
    assert set(counts) == {1}
    assert len(counts) >= JOBS
    assert dead == 0


def test_connections_that_can_not_be_set_up_are_closed(engine: Engine, tune: Tune) -> None:
    """A hook of the user's fails fifty times, and then the worker works."""
    tune(Backoff, LAST=0.1)
    jobs = new_queue()
    ran: list[int] = []

    @jobs.handler("plain", session=False)
    def plain(ctx: Context[Any], number: int) -> None:
        ran.append(number)

    jobs.metadata.create_all(engine)
    hooked = create_engine(engine.url)
    broken: list[int] = []
    failures: list[int] = []

    @event.listens_for(hooked, "connect")
    def fails(*_: Any) -> None:
        if broken and len(failures) < 50:
            failures.append(1)
            raise RuntimeError("no token")

    worker = Worker(jobs, hooked)
    worker.start()
    try:
        broken.append(1)
        with engine.connect() as connection:
            connection.execute(END)
        enqueue_many(engine, plain, range(20))
        wait_until(lambda: len(ran) == 20, what="the jobs")
        with engine.connect() as connection:
            backends = connection.scalar(BACKENDS) or 0
        assert backends <= 5 + 3
    finally:
        worker.stop()
        hooked.dispose()
    assert len(failures) == 50
