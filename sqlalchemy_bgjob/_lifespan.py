"""A worker that lives as long as an ASGI application."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, ParamSpec

from .worker import Worker

if TYPE_CHECKING:
    from .aio import AsyncWorker

P = ParamSpec("P")


def lifespan(
    worker: "Callable[P, Worker | AsyncWorker]", *args: P.args, **options: P.kwargs
) -> Callable[[Any], AbstractAsyncContextManager[None]]:
    """A lifespan for FastAPI, Starlette or Litestar that runs a worker beside the application.

    ``FastAPI(lifespan=lifespan(AsyncWorker, jobs, engine, queues={"mail": 10}))``. Each start of
    the application makes a new worker, and the application's end drains it.

    Args:
        worker: ``AsyncWorker``, or ``Worker``, which works in threads.
        *args: The worker's arguments.
        **options: The worker's keywords.

    Returns:
        A function that the application calls with itself when it starts. If the worker can't be
        made or started, that error is raised there, and the application does not start.
    """

    @asynccontextmanager
    async def beside(application: Any) -> AsyncIterator[None]:
        made = worker(*args, **options)
        if not isinstance(made, Worker):
            async with made:
                yield
            return
        # In a thread: a start waits for the database, and a stop for the handlers.
        try:
            await asyncio.to_thread(made.start)
            yield
        finally:
            await asyncio.to_thread(made.stop)

    return beside
