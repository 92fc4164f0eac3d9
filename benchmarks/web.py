"""A web process at work: requests in one event loop that enqueue, perhaps beside a worker."""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from itertools import count
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from benchmarks.jobs import App
from sqlalchemy_bgjob import AsyncWorker, Worker, enqueue
from sqlalchemy_bgjob._bench.jobs import Answer
from sqlalchemy_bgjob.settings import SPARE_CONNECTIONS

REQUESTS: Final = 32
"""At a time."""
WORK: Final = 20_000
"""What a request computes, in additions: some 0.3 ms."""


def web(app: App) -> Answer:
    """Serve requests for ``seconds``; with ``embedded``, beside a worker in the same process.

    A request reads, computes, enqueues and commits. There is no HTTP: it would be the same for all.
    """
    return asyncio.run(_web(app))


async def _web(app: App) -> Answer:
    url = app.url.set(drivername=f"postgresql+{app.driver}")
    engine = create_async_engine(url, pool_size=REQUESTS + 10, max_overflow=0)
    sent: list[tuple[int, float, float]] = []
    try:
        async with contextlib.AsyncExitStack() as stack:
            if app.options.get("embedded"):
                await stack.enter_async_context(_worker(app, engine))
                await asyncio.sleep(1.0)  # until it listens
            until = time.monotonic() + app.options["seconds"]
            numbers = count()
            clients = [_client(app, engine, numbers, sent, until) for _ in range(REQUESTS)]
            await asyncio.gather(*clients)
            embedded = app.options.get("embedded")
            while embedded and app.recorder.count < len(sent):  # noqa: ASYNC110 - it is the end
                await asyncio.sleep(0.05)
    finally:
        await engine.dispose()
    return {"sent": sent, **app.recorder.answer()}


@contextlib.asynccontextmanager
async def _worker(app: App, engine: AsyncEngine) -> AsyncIterator[None]:
    """A worker in this process: a task of this event loop, or a thread."""
    queues = dict.fromkeys(app.queues, 10)
    if app.is_async:
        async with AsyncWorker(app.jobs, engine, queues=queues):
            yield
        return
    with app.engine(pool_size=10 + SPARE_CONNECTIONS) as of_threads:
        worker = Worker(app.jobs, of_threads, queues=queues)
        await asyncio.to_thread(worker.start)
        try:
            yield
        finally:
            await asyncio.to_thread(worker.stop)


async def _client(
    app: App, engine: AsyncEngine, numbers: "count[int]", sent: list[Any], until: float
) -> None:
    while time.monotonic() < until:
        number = next(numbers)
        async with AsyncSession(engine) as session:
            await session.execute(select(1))
            sum(range(WORK))
            before = time.monotonic()
            await enqueue(session, app.handler, {"n": number})
            await session.commit()
            sent.append((number, before, time.monotonic()))
