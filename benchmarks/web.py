"""A web process at work: requests in one event loop that enqueue, perhaps beside a worker."""

import asyncio
import contextlib
import time
from itertools import count
from typing import Any, Final

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from benchmarks.jobs import App
from sqlalchemy_bgjob import AsyncWorker, enqueue
from sqlalchemy_bgjob._bench.jobs import Answer

REQUESTS: Final = 32
"""At a time."""
WORK: Final = 20_000
"""What a request computes, in additions: some 0.3 ms."""


def web(app: App) -> Answer:
    """Serve requests for ``seconds``; with ``embedded``, a worker in the same event loop.

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
                worker = AsyncWorker(app.jobs, engine, queues=dict.fromkeys(app.queues, 10))
                await stack.enter_async_context(worker)
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
