"""``max_jobs``, ``max_lifetime``, ``max_memory``: a worker that drains at a limit of its life."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import AsyncWorker, Context, Worker, enqueue_many
from sqlalchemy_bgjob._worker import own_end
from sqlalchemy_bgjob._worker.memory import resident
from support import wait_until
from support.tables import new_queue

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from support.tuning import Tune

pytestmark = pytest.mark.keeps_tables

MIB = 2**20


class App:
    """Notes what ran, and may hold a job back."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.ran = engine, list[str]()
        self.started, self.go = threading.Event(), threading.Event()
        self.jobs = jobs = new_queue()

        @jobs.handler("note", session=False)
        def note(ctx: Context, words: str) -> None:
            self.ran.append(words)

        @jobs.handler("block", session=False)
        def block(ctx: Context, words: str) -> None:
            self.started.set()
            assert self.go.wait(60)
            self.ran.append(words)

        self.note, self.block = note, block
        jobs.metadata.create_all(engine)

    def left(self) -> list[Any]:
        """(attempt, claimed_by, last_error) of the jobs that are left, each once."""
        job = self.jobs.models.job
        query = select(job.c.attempt, job.c.claimed_by, job.c.last_error).distinct()
        with self.engine.connect() as connection:
            return [tuple(row) for row in connection.execute(query)]

    def work(self, kind: str, **options: Any) -> Worker | AsyncWorker:
        """Work until a limit is reached."""
        options = {"limit_jitter": 0.0, **options}
        if kind == "threads":
            engine = create_engine(self.engine.url, pool_size=30)
            worker = Worker(self.jobs, engine, **options)
            worker.run()
            engine.dispose()
            return worker
        return asyncio.run(self._work(**options))

    async def _work(self, **options: Any) -> AsyncWorker:
        engine = create_async_engine(self.engine.url.set(drivername="postgresql+psycopg"))
        worker = AsyncWorker(self.jobs, engine, **options)
        await worker.run()
        await engine.dispose()
        return worker


@pytest.fixture
def app(engine: Engine) -> App:
    return App(engine)


@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_exactly_so_many_jobs_run_and_no_attempt_is_spent(app: App, kind: str) -> None:
    """Whatever was claimed beyond is queued again, as if it had not been."""
    enqueue_many(app.engine, app.note, [f"{number}" for number in range(300)])

    worker = app.work(kind, max_jobs=50)

    assert worker.limit_reached == "max_jobs"
    assert len({*app.ran}) == len(app.ran) == 50
    assert app.left() == [(0, None, None)]


def test_the_next_worker_does_the_rest(app: App) -> None:
    enqueue_many(app.engine, app.note, [f"{number}" for number in range(7)])

    for done in (3, 6):
        assert app.work("threads", max_jobs=3).limit_reached == "max_jobs"
        assert len(app.ran) == done
    assert app.work("threads", max_jobs=3, until_idle=True).limit_reached is None

    assert sorted(app.ran) == [f"{number}" for number in range(7)]
    assert app.left() == []


def test_what_runs_at_the_limit_comes_to_its_end(app: App) -> None:
    enqueue_many(app.engine, app.block, ["a"])
    engine = create_engine(app.engine.url)
    worker = Worker(app.jobs, engine, queues={"default": 1}, max_jobs=1, limit_jitter=0)

    with worker:
        assert app.started.wait(60)
        wait_until(lambda: worker.limit_reached, what="the limit")
        assert not worker.ready
        app.go.set()
        wait_until(lambda: not app.left(), what="the end of the job")

    engine.dispose()
    assert app.ran == ["a"]


def test_a_life_ends_where_there_is_nothing_to_do(app: App) -> None:
    """Whatever the poll interval is."""
    worker = app.work("threads", max_lifetime=0.1, poll_interval=3_600)

    assert worker.limit_reached == "max_lifetime"


def test_a_process_that_is_too_large_does_a_job_first(app: App) -> None:
    """Where the limit is below what it takes from the start, the queue still moves."""
    enqueue_many(app.engine, app.note, ["a"])

    worker = app.work("threads", max_memory=1)

    assert worker.limit_reached == "max_memory"
    assert app.ran == ["a"]


def test_memory_is_measured_while_a_job_runs(app: App, tune: Tune) -> None:
    """A single long job may be what takes it."""
    tune(own_end, MEASURE_EVERY=0.01)
    enqueue_many(app.engine, app.block, ["a"])
    engine = create_engine(app.engine.url)
    limit = resident() + 50 * MIB
    options: dict[str, Any] = {"max_memory": limit, "poll_interval": 3_600, "max_lifetime": 300}

    with Worker(app.jobs, engine, queues={"default": 1}, **options) as worker:
        assert app.started.wait(60)
        assert worker.limit_reached is None
        leak = bytearray(b"x") * (150 * MIB)
        wait_until(lambda: worker.limit_reached, what="the limit")
        app.go.set()

    engine.dispose()
    assert worker.limit_reached == "max_memory"
    assert (len(leak), app.ran) == (150 * MIB, ["a"])


def test_the_measure_is_in_bytes() -> None:
    before = resident()
    held = bytearray(b"x") * (64 * MIB)

    assert before > 5 * MIB
    assert 60 * MIB <= resident() - before < 200 * MIB, len(held)


def test_jitter_lets_workers_reach_it_one_after_another(app: App) -> None:
    enqueue_many(app.engine, app.note, [f"{number}" for number in range(300)])

    app.work("threads", max_jobs=100, limit_jitter=1.0)

    assert 100 <= len(app.ran) <= 200
