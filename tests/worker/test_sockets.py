"""A peer that is gone without a word: the kernel is asked to notice, on every connection."""

from __future__ import annotations

import asyncio
import socket
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, create_engine, event, text

from sqlalchemy_bgjob import AsyncWorker, Context, Worker, enqueue
from sqlalchemy_bgjob._db import keepalive
from support import wait_until, wait_until_async
from support.tables import new_queue

if TYPE_CHECKING:
    from conftest import UrlFor
    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres


def options(driver: Any) -> tuple[int, int, int]:
    """The time for unanswered data in ms, whether the kernel asks, and after how many seconds."""
    with keepalive._socket(driver) as copy:
        return (
            copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
            copy.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
        )


def look(connection: Connection) -> tuple[int, int, int]:
    return options(connection.connection.driver_connection)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_a_connection_is_watched_and_works_on(url_for: UrlFor, driver: str) -> None:
    engine = create_engine(url_for(driver))
    with engine.connect() as connection:
        assert look(connection)[0] == 0

        keepalive.enable_keepalive(connection)
        keepalive.enable_keepalive(connection)

        assert look(connection) == (15_000, 1, 10)
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_connection_is_watched_and_works_on(url_for: UrlFor, driver: str) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    async def main() -> None:
        engine = create_async_engine(url_for(driver))
        async with engine.connect() as connection:
            await connection.run_sync(keepalive.enable_keepalive)
            assert await connection.run_sync(look) == (15_000, 1, 10)
            assert (await connection.execute(text("SELECT 1"))).scalar() == 1
        await engine.dispose()

    asyncio.run(main())


def test_what_the_user_has_set_shorter_stays(url_for: UrlFor) -> None:
    engine = create_engine(
        url_for("psycopg"), connect_args={"tcp_user_timeout": 5_000, "keepalives_idle": 60}
    )
    with engine.connect() as connection:
        keepalive.enable_keepalive(connection)
        assert look(connection) == (5_000, 1, 10)
    engine.dispose()


def test_a_unix_socket_has_nothing_to_watch(own_server: EmbeddedPostgres) -> None:
    engine = create_engine(own_server.socket_url)
    with engine.connect() as connection:
        keepalive.enable_keepalive(connection)
        assert connection.execute(text("SELECT 1")).scalar() == 1
    engine.dispose()


def test_all_connections_of_a_worker_are_watched(url_for: UrlFor) -> None:
    """To claim and settle, to beat, to listen, and those of handlers."""
    jobs = new_queue()
    producer, engine = create_engine(url_for("psycopg")), create_engine(url_for("psycopg"))
    jobs.metadata.create_all(producer)
    made: list[Any] = []
    event.listen(engine, "connect", lambda driver, record: made.append(driver))
    used: list[bool] = []

    @jobs.handler("look")
    def use(ctx: Context[Any]) -> None:
        ctx.session.execute(text("SELECT 1"))
        used.append(True)

    with Worker(jobs, engine):
        enqueue(producer, use)
        wait_until(lambda: used, what="the handler")
        live = [driver for driver in made if not driver.closed]
        assert len(live) >= 4
        assert {options(driver) for driver in live} == {(15_000, 1, 10)}
    engine.dispose()
    producer.dispose()


def test_all_connections_of_an_async_worker_are_watched(url_for: UrlFor) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    jobs = new_queue()
    sync_engine = create_engine(url_for("psycopg"))
    jobs.metadata.create_all(sync_engine)
    used: list[bool] = []
    made: list[Any] = []

    @jobs.handler("look")
    async def use(ctx: Context[Any]) -> None:
        await ctx.session.execute(text("SELECT 1"))
        used.append(True)

    async def main() -> None:
        engine = create_async_engine(url_for("asyncpg"))
        event.listen(
            engine.sync_engine, "connect", lambda driver, record: made.append(driver._connection)
        )
        async with AsyncWorker(jobs, engine):
            enqueue(sync_engine, use)
            await wait_until_async(lambda: used, what="the handler")
            live = [driver for driver in made if not driver.is_closed()]
            assert len(live) >= 4
            assert {options(driver) for driver in live} == {(15_000, 1, 10)}
        await engine.dispose()

    asyncio.run(main())
    sync_engine.dispose()
