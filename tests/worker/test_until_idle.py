"""``until_idle``: a worker that ends once nothing is due and nothing runs."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import (
    AsyncWorker,
    Context,
    Reschedule,
    Retry,
    Worker,
    enqueue,
    enqueue_many,
)
from support import wait_until
from support.tables import new_queue

if TYPE_CHECKING:
    from sqlalchemy import Engine

pytestmark = pytest.mark.keeps_tables


class App:
    """Handlers of two queues, and what they have done."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.ran = engine, list[str]()
        self.jobs = jobs = new_queue()

        @jobs.handler("note", queue="notes", session=False)
        def note(ctx: Context, words: str) -> None:
            self.ran.append(words)

        @jobs.handler("chain", queue="chains")
        def chain(ctx: Context[Any], left: int) -> None:
            enqueue(ctx.session, note, f"chained {left}", priority=left)
            if left:
                enqueue(ctx.session, chain, left - 1)

        @jobs.handler("later", queue="notes", session=False)
        def later(ctx: Context) -> Retry:
            return Retry(1_000, "not now")

        self.note, self.chain, self.later = note, chain, later
        jobs.metadata.create_all(engine)

    def left(self) -> list[str]:
        """The types of the jobs that are left."""
        job = self.jobs.models.job
        with self.engine.connect() as connection:
            return list(connection.execute(select(job.c.type)).scalars())

    async def work(self, **options: Any) -> None:
        engine = create_async_engine(self.engine.url.set(drivername="postgresql+psycopg"))
        await AsyncWorker(self.jobs, engine, until_idle=True, **options).run()
        await engine.dispose()

    def work_in_threads(self, **options: Any) -> None:
        engine = create_engine(self.engine.url, pool_size=30)
        Worker(self.jobs, engine, until_idle=True, **options).run()
        engine.dispose()


@pytest.fixture
def app(engine: Engine) -> App:
    return App(engine)


@pytest.mark.parametrize("listen", [True, False])
@pytest.mark.parametrize("kind", ["threads", "asyncio"])
def test_it_does_all_there_is_and_what_comes_of_it(app: App, kind: str, listen: bool) -> None:
    enqueue_many(app.engine, app.note, [f"{number}" for number in range(300)])
    enqueue(app.engine, app.note, "first", priority=-5)
    enqueue(app.engine, app.note, "last", priority=5)
    enqueue(app.engine, app.chain, 3)

    if kind == "threads":
        app.work_in_threads(listen=listen)
    else:
        asyncio.run(app.work(listen=listen))

    assert app.left() == []
    assert len(app.ran) == 300 + 2 + 4
    assert {f"chained {left}" for left in range(4)} < {*app.ran}


def test_it_does_not_wait_for_what_is_due_later(app: App) -> None:
    enqueue(app.engine, app.later)
    enqueue(app.engine, app.note, "in an hour", delay=3_600)

    app.work_in_threads()

    assert sorted(app.left()) == ["later", "note"]
    assert app.ran == []


def test_nothing_to_do_is_the_end_at_once(app: App, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")

    app.work_in_threads()

    assert "nothing is due, and this worker runs nothing: stopping" in caplog.text


@pytest.mark.parametrize("listen", [True, False])
def test_what_a_late_end_makes_due_is_done_too(app: App, listen: bool) -> None:
    """The queues were looked at in vain while the handler ran."""
    ends = threading.Event()
    runs = []

    @app.jobs.handler("late", queue="late")
    def late(ctx: Context[Any]) -> Reschedule | None:
        runs.append(ctx.job.attempt)
        if len(runs) > 1:
            return None
        assert ends.wait(60)
        enqueue(ctx.session, app.note, "follows")
        return Reschedule(0)

    enqueue(app.engine, late)
    worker = threading.Thread(target=app.work_in_threads, kwargs={"listen": listen})
    worker.start()
    wait_until(lambda: runs, 60)
    enqueue(app.engine, app.note, "meanwhile")
    wait_until(lambda: app.ran == ["meanwhile"], 60)
    ends.set()
    worker.join(60)

    assert not worker.is_alive()
    assert (app.ran, runs) == (["meanwhile", "follows"], [1, 1])
    assert app.left() == []


def test_a_due_job_that_is_locked_is_waited_for(app: App) -> None:
    enqueue(app.engine, app.note, "locked")
    with app.engine.connect() as other:
        other.execute(select(app.jobs.models.job.c.id).with_for_update())
        worker = threading.Thread(target=app.work_in_threads, kwargs={"poll_interval": 0.1})
        worker.start()
        worker.join(2)
        assert worker.is_alive()
    worker.join(60)

    assert app.ran == ["locked"]


def test_a_handler_that_runs_is_waited_for(app: App) -> None:
    begun, go_on = threading.Event(), threading.Event()

    @app.jobs.handler("slow", queue="slow", session=False)
    def slow(ctx: Context) -> None:
        begun.set()
        assert go_on.wait(60)
        app.ran.append("slow")

    enqueue(app.engine, slow)
    worker = threading.Thread(target=app.work_in_threads)
    worker.start()
    assert begun.wait(60)
    enqueue(app.engine, app.note, "meanwhile")
    go_on.set()
    worker.join(60)

    assert not worker.is_alive()
    assert sorted(app.ran) == ["meanwhile", "slow"]
