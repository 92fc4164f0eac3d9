"""A queue whose schema and tables are called as oddly as PostgreSQL allows lives as any other."""

from __future__ import annotations

import asyncio
import threading
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Engine,
    Integer,
    MetaData,
    column,
    create_engine,
    func,
    insert,
    select,
    text,
    update,
    values,
)
from sqlalchemy.orm import Session
from sqlalchemy.schema import CreateSchema

from sqlalchemy_bgjob import (
    AsyncWorker,
    BGJob,
    Context,
    JobAlreadyExists,
    MoveToDlq,
    Reschedule,
    Retry,
    Worker,
    enqueue,
    enqueue_from,
    enqueue_many,
    schema,
)
from sqlalchemy_bgjob._inspect.doctor import examine
from support import wait_until
from support.running import FLAVORS, Flavor

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import UrlFor

NAMES = {"schema": 'We"ird 100% "Schéma" :x %s {} \\', "table_prefix": 'It\'s 5% "x":y_'}
OTHER = 4711


class Life:
    """A queue of odd names, with a handler for each way in which a job can end."""

    def __init__(self, engine: Engine, *, coroutine: bool) -> None:
        self.engine = engine
        self.jobs: BGJob[Any, Any] = BGJob(MetaData(), **NAMES)
        with engine.begin() as connection:
            connection.execute(CreateSchema(NAMES["schema"]))
            schema.migrate(connection, **NAMES)
        self.done: list[tuple[str, int]] = []

        def end(ctx: Context[Any], how: Any) -> Any:
            self.done.append((ctx.job.id, ctx.job.attempt))
            match how:
                case "retry" if ctx.job.attempt == 1:
                    return Retry(0.01, "again")
                case "reschedule":
                    return Reschedule(0.01, arg="then complete")
                case "die":
                    return MoveToDlq("dead")
            return None

        async def in_session(ctx: Context[Any], how: Any) -> Any:
            await ctx.session.execute(text("SELECT 1"))
            return end(ctx, how)

        def in_thread(ctx: Context[Any], how: Any) -> Any:
            ctx.session.execute(text("SELECT 1"))
            return end(ctx, how)

        async def alone(ctx: Context[Any], how: Any) -> Any:
            return end(ctx, how)

        register = self.jobs.handler
        self.own = register("own")(in_session if coroutine else in_thread)
        self.batch = register("batch", session=False)(alone if coroutine else end)

    def lose(self) -> None:
        """Let a worker have claimed all jobs an hour ago, and fallen silent."""
        job, worker = self.jobs.models.job, self.jobs.models.worker
        silent = {"id": OTHER, "hostname": "h", "pid": 1, "version": "0", "queues": {}}
        with self.engine.begin() as connection:
            ago = func.now() - timedelta(hours=1)
            connection.execute(insert(worker).values(**silent, lease_timeout=1, beat_at=ago))
            connection.execute(update(job).values(claimed_by=OTHER, attempt=1))

    def ids(self, table: Any) -> list[str]:
        with self.engine.connect() as connection:
            return sorted(connection.scalars(select(table)))

    @property
    def live(self) -> list[str]:
        return self.ids(self.jobs.Job.id)

    @property
    def dead(self) -> list[str]:
        return self.ids(self.jobs.DeadJob.job_id)


@contextmanager
def working(life: Life, flavor: Flavor, url: str) -> Iterator[None]:
    """A worker that polls so rarely that only notifications can wake it."""
    settings: Any = {"poll_interval": 60.0, "heartbeat_interval": 0.2, "lease_timeout": 1.0}
    settings |= {"rescue_interval": 0.2, "queues": {"default": 4}}
    if not flavor.is_async:
        engine = create_engine(url)
        with Worker(life.jobs, engine, **settings):
            yield
        engine.dispose()
        return
    from sqlalchemy.ext.asyncio import create_async_engine

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def wait_for(awaitable: Any) -> Any:
        return asyncio.run_coroutine_threadsafe(awaitable, loop).result(30)

    async def make() -> tuple[Any, Any]:
        engine = create_async_engine(url)
        worker = AsyncWorker(life.jobs, engine, **settings)
        await worker.start()
        return engine, worker

    engine, worker = wait_for(make())
    try:
        yield
    finally:
        wait_for(worker.stop())
        wait_for(engine.dispose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


FEW = (FLAVORS[0], *(pytest.param(one, marks=pytest.mark.chaos) for one in FLAVORS[1:]))


@pytest.mark.core
@pytest.mark.parametrize("flavor", FEW, ids=str)
def test_every_operation_works_under_odd_names(
    engine: Engine, url_for: UrlFor, flavor: Flavor
) -> None:
    """All statements of producers, workers, rescuers and operators."""
    life = Life(engine, coroutine=flavor.is_async)
    jobs = life.jobs
    enqueue(engine, life.own, "complete", id="lost")
    life.lose()

    with working(life, flavor, url_for(flavor.driver)):
        wait_until(lambda: ("lost", 2) in life.done, what="the job of a lost worker")
        ways = ["complete", "retry", "reschedule", "die"]
        with Session(engine) as session, session.begin():
            for handler in (life.own, life.batch):
                ids = [f"{way} {handler.type}" for way in ways]
                assert enqueue_many(session, handler, ways, ids=ids).inserted == 4
            with pytest.raises(JobAlreadyExists):
                enqueue(session, life.own, "complete", id="die own")
            rows = [(n,) for n in range(3)]
            numbers = values(column("n", Integer), name="given").data(rows)
            assert enqueue_from(session, life.batch, select(numbers)) == 3
            session.add(life.own.job("complete"))
        enqueue_many(engine, life.batch, range(2_000))
        enqueue(engine, life.own, "complete", id="soon", delay=0.5)
        wait_until(lambda: life.live == [], what="the end of all jobs")

        assert life.dead == ["die batch", "die own"]
        assert jobs.redrive(engine, jobs.DeadJob.job_id == "die own").ids == ("die own",)
        wait_until(lambda: life.live == [], what="the end of a job that was brought back")
        enqueue(engine, life.own, "complete", id="far", delay=3_600)
        assert jobs.cancel(engine, "far")
        with engine.connect() as connection:
            found = examine(connection, **NAMES)
        assert [finding.text for finding in found if finding.level == "problem"] == []
    assert jobs.prune(engine, 0) == 2
    assert (life.live, life.dead) == ([], [])
    once = 1 + 2 * len(ways) + 3 + 1 + 2_000 + 1
    again = {"retry": 2, "reschedule": 2, "redriven": 1}
    assert len(life.done) == once + sum(again.values())
    with engine.connect() as connection:
        assert connection.execute(select(jobs.models.worker.c.id)).all() == []
