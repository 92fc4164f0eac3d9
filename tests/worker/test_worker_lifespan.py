"""The lifespan of a worker: entered before its first claim, left when it has drained."""

from __future__ import annotations

import asyncio
import signal
import threading
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import AsyncWorker, Observer, Worker
from support.databases import with_driver
from support.running import FLAVORS, Workbench, one_of_each
from support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy_bgjob import Context

entered: ContextVar[str] = ContextVar("entered", default="not")


class Life:
    """A lifespan, and what happened in it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    @contextmanager
    def sync(self) -> Iterator[dict[str, int]]:
        self.seen.append("in")
        entered.set("within")
        try:
            yield {"number": 7}
        finally:
            self.seen.append("out")

    @asynccontextmanager
    async def asynchronous(self) -> AsyncIterator[dict[str, int]]:
        await asyncio.sleep(0)
        with self.sync() as state:
            yield state
        await asyncio.sleep(0)


@pytest.mark.core
@pytest.mark.parametrize(
    ("bench", "kind"),
    [(FLAVORS[0], "sync"), (FLAVORS[3], "sync"), (FLAVORS[3], "asynchronous")],
    ids=str,
    indirect=["bench"],
)
def test_its_value_is_the_state_of_every_job(bench: Workbench, kind: str) -> None:
    """And handlers see the context variables that it has set."""
    life = Life()

    def body(ctx: Context[Any]) -> None:
        life.seen.append((ctx.state["number"], entered.get()))

    handler = bench.handler("t", body, uses_session=False)
    for _ in range(2):
        bench.enqueue(handler)
    bench.run(lifespan=getattr(life, kind), queues={"default": 1})

    assert life.seen == ["in", (7, "within"), (7, "within"), "out"]


@one_of_each
def test_it_is_left_after_the_jobs_that_a_drain_waits_for(bench: Workbench) -> None:
    life, reached, go = Life(), threading.Event(), threading.Event()

    def body(ctx: Context[Any]) -> None:
        reached.set()
        bench.pause(go.is_set)
        life.seen.append("done")

    def stop_soon() -> None:
        reached.wait(60)
        threading.Timer(0.1, go.set).start()

    job_id = bench.enqueue(bench.handler("t", body, uses_session=False))
    ran = bench.run(lifespan=life.sync, during=stop_soon, until=lambda: True)

    assert life.seen == ["in", "done", "out"]
    assert ran.of(job_id) == ["started", "completed"]


@one_of_each
def test_a_worker_whose_lifespan_fails_does_not_start(bench: Workbench) -> None:
    """It claims nothing, and says why to who starts it."""

    @contextmanager
    def fails() -> Iterator[None]:
        raise LookupError("no such service")
        yield

    job_id = bench.enqueue(bench.handler("t", bench.note))
    with pytest.raises(LookupError, match="no such service"):
        bench.run(lifespan=fails)

    assert bench.job(job_id).attempt == 0


@pytest.mark.parametrize("bench", [FLAVORS[3]], ids=str, indirect=True)
def test_a_run_that_is_cancelled_leaves_it(bench: Workbench) -> None:
    life = Life()
    bench.handler("t", bench.note)

    async def cancel() -> None:
        engine = create_async_engine(with_driver(bench.url, "asyncpg"))
        worker = AsyncWorker(bench.jobs, engine, queues=["default"], lifespan=life.asynchronous)
        task = asyncio.create_task(worker.run())
        await wait_until_async(lambda: life.seen)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await engine.dispose()

    asyncio.run(cancel())

    assert life.seen == ["in", "out"]


@pytest.mark.parametrize("bench", [FLAVORS[3]], ids=str, indirect=True)
def test_a_run_that_is_cancelled_again_and_again_leaves_it(bench: Workbench) -> None:
    """A cancel scope of anyio cancels at every turn of the loop, until it is left."""
    life = Life()

    async def ends_slowly(ctx: Context[Any]) -> None:
        life.seen.append("started")
        for _ in range(20):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)
        life.seen.append("ended")

    bench.jobs.handler("slow", session=False)(ends_slowly)
    job_id = bench.enqueue(bench.jobs.registry.find_type("slow"))

    async def cancel() -> None:
        engine = create_async_engine(with_driver(bench.url, "asyncpg"))
        worker = AsyncWorker(bench.jobs, engine, queues=["default"], lifespan=life.asynchronous)
        task = asyncio.create_task(worker.run())
        await wait_until_async(lambda: "started" in life.seen)
        while not task.done():
            task.cancel()
            await asyncio.sleep(0)
        assert task.cancelled()
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []
        await engine.dispose()

    asyncio.run(cancel())

    assert life.seen == ["in", "started", "ended", "out"]
    assert bench.sql("SELECT FROM bgjob_worker") == []
    assert bench.job(job_id) is None or bench.job(job_id).attempt == 0


@pytest.mark.parametrize("bench", [FLAVORS[3]], ids=str, indirect=True)
def test_a_start_that_is_cancelled_leaves_no_worker(bench: Workbench) -> None:
    """``async with`` has no one to stop it then, and without a database it would wait for ever."""
    bench.handler("t", bench.note)
    errors: list[BaseException] = []

    class Told(Observer):
        def worker_error(self, error: BaseException) -> None:
            errors.append(error)

    async def main() -> None:
        nowhere = create_async_engine("postgresql+asyncpg://nobody@127.0.0.1:1/none")

        async def enter() -> None:
            async with AsyncWorker(bench.jobs, nowhere, queues=["default"], observers=[Told()]):
                pytest.fail("it has no database")

        task = asyncio.create_task(enter())
        await wait_until_async(lambda: errors)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert [task for task in asyncio.all_tasks() if task is not asyncio.current_task()] == []

    asyncio.run(main())


@pytest.mark.parametrize("bench", [FLAVORS[0]], ids=str, indirect=True)
def test_a_start_that_is_interrupted_leaves_no_worker(bench: Workbench) -> None:
    life = Life()
    bench.handler("t", bench.note)

    @contextmanager
    def interrupts() -> Iterator[None]:
        with life.sync():
            signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
            yield

    engine = create_engine(bench.url)
    with (
        pytest.raises(KeyboardInterrupt),
        Worker(bench.jobs, engine, queues=["default"], lifespan=interrupts),
    ):
        pytest.fail("its start was interrupted")

    assert life.seen == ["in", "out"]
    assert bench.sql("SELECT FROM bgjob_worker") == []
    engine.dispose()


@pytest.mark.parametrize("bench", [FLAVORS[0]], ids=str, indirect=True)
def test_a_lifespan_that_no_worker_can_enter_is_refused(bench: Workbench) -> None:
    bench.handler("t", bench.note)
    engine = create_engine(bench.url)
    async_engine = create_async_engine(bench.url)
    for given, words in (
        (nullcontext(), "not a nullcontext; of a generator @contextlib.contextmanager makes one"),
        (3, "not a int"),
        (Life.asynchronous.__wrapped__, "not the function asynchronous"),  # type: ignore[attr-defined]
    ):
        with pytest.raises(TypeError, match=words):
            Worker(bench.jobs, engine, lifespan=given)
        with pytest.raises(TypeError, match=words):
            AsyncWorker(bench.jobs, async_engine, lifespan=given)
    with pytest.raises(TypeError, match="asynchronous context manager, which a Worker can't enter"):
        Worker(bench.jobs, engine, lifespan=Life().asynchronous)  # type: ignore[arg-type]
    engine.dispose()
