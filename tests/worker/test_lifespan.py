"""``lifespan``: a worker that starts and ends with an ASGI application."""

from __future__ import annotations

import asyncio
import threading
from typing import TYPE_CHECKING

import pytest
from fastapi import FastAPI
from sqlalchemy import NullPool, create_engine, func, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase

from sqlalchemy_bgjob import AsyncWorker, BGJob, SchemaOutOfDate, Worker, enqueue, lifespan

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine


class Base(DeclarativeBase): ...


jobs = BGJob(Base)
ran = threading.Event()


@jobs.handler("note", queue="notes")
def note(ctx: object) -> None:
    ran.set()


def in_threads(url: str) -> Callable[..., object]:
    return lifespan(Worker, jobs, create_engine(url, poolclass=NullPool), queues=["notes"])


def on_the_loop(url: str) -> Callable[..., object]:
    # No pool: each start has an event loop of its own, and nothing is left to be disposed of.
    engine = create_async_engine(url.replace("+psycopg2", "+psycopg"), poolclass=NullPool)
    return lifespan(AsyncWorker, jobs, engine, queues={"notes": 2})


@pytest.mark.parametrize("make", [in_threads, on_the_loop])
def test_the_worker_lives_as_long_as_the_application(
    engine: Engine, make: Callable[[str], Callable[..., object]]
) -> None:
    Base.metadata.create_all(engine)
    app = FastAPI(lifespan=make(engine.url.render_as_string(hide_password=False)))  # type: ignore[arg-type]

    def workers() -> int:
        with engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(jobs.WorkerRow)) or 0

    async def live() -> None:
        async with app.router.lifespan_context(app):
            assert await asyncio.to_thread(workers) == 1
            await asyncio.to_thread(enqueue, engine, note)
            assert await asyncio.to_thread(ran.wait, 60)

    for _ in range(2):  # an application may be started again, as in tests
        ran.clear()
        asyncio.run(live())
        assert workers() == 0


@pytest.mark.parametrize("make", [in_threads, on_the_loop])
def test_an_application_does_not_start_without_its_tables(
    engine: Engine, make: Callable[[str], Callable[..., object]]
) -> None:
    beside = make(engine.url.render_as_string(hide_password=False))

    async def start() -> None:
        async with beside(None):  # type: ignore[attr-defined]
            raise AssertionError("it started")

    with pytest.raises(SchemaOutOfDate):
        asyncio.run(start())
