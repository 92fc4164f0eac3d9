"""A worker's own sessions go back clean to a pool behind the engine, where close() is no end."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import psycopg
import psycopg2.extensions
import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import AsyncWorker, BGJob, Context, Worker, enqueue
from support.databases import with_driver
from support.processes import FAST
from support.tables import new_queue
from support.waiting import wait_until, wait_until_async

if TYPE_CHECKING:
    from collections.abc import Iterator

STATE = (
    "SELECT current_setting('application_name'), current_setting('client_encoding'),"
    " split_part(current_setting('DateStyle'), ',', 1),"
    " (SELECT count(*) FROM pg_listening_channels()),"
    " current_setting('jit'), current_setting('plan_cache_mode')"
)
UNTOUCHED = (0, "on", "auto")
OWN = 5
"""Those of the loop, the heart, the rescuer and the listener, and another for its test."""
STARTED = {
    "application_name": "the application",
    "client_encoding": "LATIN1",
    "options": "-c DateStyle=German",
}
SETTINGS: dict[str, Any] = {**FAST, "listen": True}


class Returned(list[Any]):
    """Connections whose close() was called, as a pool that gets them back has them."""


@pytest.fixture
def returned() -> Iterator[Returned]:
    yield (returned := Returned())
    for connection in returned:
        connection.end()


def jobs_on(url: str, *, coroutine: bool) -> tuple[BGJob[Any, Any], list[str]]:
    """An application with one due job, and what has run."""
    jobs = new_queue()
    ran: list[str] = []
    plain = create_engine(url)
    jobs.metadata.create_all(plain)

    def function(ctx: Context[Any]) -> None:
        ran.append(ctx.job.id)

    async def of_asyncio(ctx: Context[Any]) -> None:
        ran.append(ctx.job.id)

    enqueue(plain, jobs.handler("t", session=False)(of_asyncio if coroutine else function))
    plain.dispose()
    return jobs, ran


def connect(driver: str, url: str, returned: Returned) -> Any:
    """A connection that is kept, where the pool would close it."""
    made: Any = psycopg.Connection if driver == "psycopg" else psycopg2.extensions.connection

    class Kept(made):  # type: ignore[misc]
        def close(self) -> None:
            returned.append(self)

        def end(self) -> None:
            super().close()

    if driver == "psycopg":
        return Kept.connect(url, **STARTED)
    return psycopg2.connect(url, connection_factory=Kept, **STARTED)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_threads_leave_their_sessions_clean(
    database_url: str, returned: Returned, driver: str
) -> None:
    jobs, ran = jobs_on(database_url, coroutine=False)
    url = database_url.replace("+psycopg", "")
    engine = create_engine(
        with_driver(database_url, driver),
        creator=lambda: connect(driver, url, returned),
        pool_size=12,
    )

    with Worker(jobs, engine, **SETTINGS) as worker:
        wait_until(lambda: ran and worker._loop._listener.listening, what="the worker")
    left = list(returned)
    states = [state_of(connection) for connection in left]
    engine.dispose()

    assert len(left) == OWN
    # psycopg2 goes on to read by what it was told.
    reads = [getattr(connection, "encoding", "LATIN1") for connection in left]
    style = "ISO" if driver == "psycopg2" else "German"  # psycopg2 sets it when it connects
    assert states == [("the application", encoding, style, *UNTOUCHED) for encoding in reads]
    assert [connection.autocommit for connection in left] == [False] * OWN


def state_of(connection: Any) -> tuple[Any, ...]:
    with connection.cursor() as cursor:
        cursor.execute(STATE)
        found = tuple(cursor.fetchone())
    connection.rollback()
    return found


def test_tasks_leave_their_sessions_clean(database_url: str) -> None:
    jobs, ran = jobs_on(database_url, coroutine=True)
    url = database_url.replace("+psycopg", "")
    returned: list[Any] = []

    class Kept(psycopg.AsyncConnection[Any]):
        async def close(self) -> None:
            returned.append(self)

        async def end(self) -> None:
            await super().close()

    async def main() -> None:
        engine = create_async_engine(
            database_url, async_creator=lambda: Kept.connect(url, **STARTED), pool_size=12
        )
        async with AsyncWorker(jobs, engine, **SETTINGS) as worker:
            listener = worker._loop._listener
            await wait_until_async(lambda: ran and listener.listening)
        left = list(returned)
        for connection in left:
            found = await (await connection.execute(STATE)).fetchone()
            states.append((*found, connection.autocommit))
        await engine.dispose()
        for connection in returned:
            await connection.end()

    states: list[Any] = []
    asyncio.run(main())
    assert states == [("the application", "LATIN1", "German", *UNTOUCHED, False)] * OWN
