"""What the library connects by itself for is like the application's own connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
from sqlalchemy import create_engine, event, make_url, text
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import AsyncWorker, BGJob, Context, enqueue
from sqlalchemy_bgjob.exceptions import WorkerRefused
from sqlalchemy_bgjob.schema._table_kinds import KINDS
from support.databases import with_driver
from support.processes import FAST
from support.running import FLAVORS, one_of_each
from support.tables import new_queue
from support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

    from support.running import Workbench


@pytest.fixture
def elsewhere(bench: Workbench) -> Any:
    """The tables in a schema that is not on the search path."""
    bench.sql("CREATE SCHEMA tenant")
    for name in (*(f"bgjob_{kind}" for kind in KINDS), "note"):
        bench.sql(f"ALTER TABLE {name} SET SCHEMA tenant")
    yield
    bench.sql("DROP SCHEMA tenant CASCADE")


def done(bench: Workbench, job_id: str) -> Callable[[], bool]:
    """Whether the job has ended, with what its handler wrote."""

    def look() -> bool:
        left = bench.sql("SELECT 1 FROM tenant.bgjob_job")
        notes = bench.sql("SELECT 1 FROM tenant.note WHERE job_id = :id", id=job_id)
        return bool(notes) and not left

    return look


@one_of_each
def test_a_worker_translates_schemas_in_all_it_does(bench: Workbench, elsewhere: None) -> None:
    """Its start, its heart and its rescuer see the tables that its claims see."""
    bench.handler("t", bench.note)
    bench.put_lost_job("tenant")

    bench.run(
        until=done(bench, "lost"),
        deadline=60.0,
        execution={"schema_translate_map": {None: "tenant"}},
        **FAST,
    )

    assert bench.sql("SELECT attempt FROM tenant.bgjob_job") == []
    assert bench.sql("SELECT id FROM tenant.bgjob_worker WHERE lost_at IS NULL") == []


@one_of_each
def test_a_worker_is_what_a_begin_listener_makes_it(
    bench: Workbench, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it sets, for each transaction, where the tables are found."""
    bench.handler("t", bench.note)
    bench.put_lost_job("tenant")

    def listen(engine: Engine) -> None:
        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("SET LOCAL search_path = tenant")

    _listening(monkeypatch, listen)
    bench.run(until=done(bench, "lost"), deadline=60.0, **FAST, listen=True)

    assert bench.sql("SELECT id FROM tenant.bgjob_worker WHERE lost_at IS NULL") == []


def _listening(monkeypatch: pytest.MonkeyPatch, listen: Callable[[Engine], None]) -> None:
    """Let the workbench's engines be listened to."""

    def sync(*args: Any, **options: Any) -> Engine:
        engine = create_engine(*args, **options)
        listen(engine)
        return engine

    def coroutines(*args: Any, **options: Any) -> Any:
        engine = create_async_engine(*args, **options)
        listen(engine.sync_engine)
        return engine

    for function, made in (("create_engine", sync), ("create_async_engine", coroutines)):
        monkeypatch.setattr(f"support.running.{function}", made)


@pytest.mark.parametrize("bench", FLAVORS[1:], indirect=True, ids=str)
def test_a_worker_that_may_not_register_is_refused(bench: Workbench) -> None:
    """Nothing that passes by itself keeps it from that: to wait would be silence."""
    bench.handler("t", bench.note)
    bench.sql("ALTER TABLE bgjob_worker ADD CHECK (hostname = 'another') NOT VALID")
    try:
        with pytest.raises(WorkerRefused, match=r"can't register.* 23514 .*doctor"):
            bench.run()
    finally:
        bench.sql("DROP TABLE bgjob_worker")


def one_job(engine: Engine) -> tuple[BGJob[Any, Any], list[str], str]:
    """A job of a coroutine: the application, which jobs have run, and its id."""
    jobs = new_queue()
    ran: list[str] = []

    @jobs.handler("t", session=False)
    async def handle(ctx: Context[Any]) -> None:
        ran.append(ctx.job.id)

    jobs.metadata.create_all(engine)
    return jobs, ran, enqueue(engine, handle).id


def test_connections_of_one_event_loop_are_refused_by_name(database_url: str) -> None:
    """The heart has a loop of its own; with an engine of its own the worker begins."""
    plain = create_engine(database_url)
    jobs, ran, job_id = one_job(plain)
    url = database_url.replace("+psycopg", "")

    async def main() -> None:
        loop = asyncio.get_running_loop()

        async def connect() -> Any:
            if asyncio.get_running_loop() is not loop:
                raise RuntimeError("this pool belongs to a different event loop")
            return await asyncpg.connect(url)

        engine = create_async_engine(
            with_driver(database_url, "asyncpg"), async_creator=connect, pool_size=12
        )
        with pytest.raises(WorkerRefused, match="heart_engine="):
            await AsyncWorker(jobs, engine).start()
        async with AsyncWorker(jobs, engine, heart_engine=plain):
            await wait_until_async(lambda: ran)
        await engine.dispose()

    asyncio.run(main())
    plain.dispose()
    assert ran == [job_id]


@pytest.mark.parametrize("size", [6, 12])
def test_an_asyncpg_pool_is_refused_and_stays_whole(database_url: str, size: int) -> None:
    """Its connections are looked at before their first use in the loop of the heart."""
    plain = create_engine(database_url)
    jobs, ran, job_id = one_job(plain)

    async def main() -> None:
        url = database_url.replace("+psycopg", "")
        pool = await asyncpg.create_pool(url, min_size=size, max_size=size)

        async def connect() -> Any:
            return await pool.acquire()

        engine = create_async_engine(
            with_driver(database_url, "asyncpg"), async_creator=connect, pool_size=size
        )
        with pytest.raises(WorkerRefused, match=r"another event loop.*heart_engine="):
            await AsyncWorker(jobs, engine).start()
        await engine.dispose()
        async with AsyncWorker(jobs, engine, heart_engine=plain):
            await wait_until_async(lambda: ran)
        await engine.dispose()
        taken = [await pool.acquire(timeout=60.0) for _ in range(size)]
        assert [await connection.fetchval("SELECT 1") for connection in taken] == [1] * size
        pool.terminate()

    asyncio.run(main())
    plain.dispose()
    assert ran == [job_id]


def test_an_engine_for_the_heart_is_an_engine(database_url: str) -> None:
    jobs = new_queue()
    wrong: Any = database_url

    with pytest.raises(TypeError, match="heart_engine must be an Engine or AsyncEngine, not str"):
        AsyncWorker(jobs, create_async_engine(database_url), heart_engine=wrong)


# ---- the engine for functions of AsyncWorker ------------------------------------------------


def function_and_coroutine(url: str) -> tuple[BGJob[Any, Any], list[str]]:
    """Handlers of two due jobs, that note which role and setting their session has."""
    jobs = new_queue()
    seen: list[str] = []
    look = text("SELECT current_user || ' ' || current_setting('application.tenant', true)")

    @jobs.handler("function", max_attempts=1)
    def function(ctx: Context[Any]) -> None:
        seen.append(ctx.session.scalar(look))

    @jobs.handler("coroutine", max_attempts=1)
    async def coroutine(ctx: Context[Any]) -> None:
        seen.append(await ctx.session.scalar(look))

    plain = create_engine(url)
    jobs.metadata.create_all(plain)
    for handler in (function, coroutine):
        enqueue(plain, handler)
    plain.dispose()
    return jobs, seen


def test_functions_connect_as_coroutines_do(database_url: str) -> None:
    """By connect_args, a listener that gives the user, and one that sets up each connection."""
    jobs, seen = function_and_coroutine(database_url)
    url = make_url(database_url)
    options = {"options": "-c application.tenant=7"}
    engine = create_async_engine(url.set(username="nobody"), pool_size=24, connect_args=options)
    connected = []

    @event.listens_for(engine.sync_engine, "do_connect")
    def provide(dialect: Any, record: Any, args: Any, params: dict[str, Any]) -> None:
        params["user"] = url.username

    @event.listens_for(engine.sync_engine, "connect")
    def connect(connection: Any, record: Any) -> None:
        connected.append(type(connection).__name__)

    async def main() -> None:
        async with AsyncWorker(jobs, engine):
            await wait_until_async(lambda: len(seen) == 2)
        await engine.dispose()

    asyncio.run(main())

    assert seen == [f"{url.username} 7"] * 2
    assert "Connection" in connected


def test_functions_that_can_not_connect_so_are_refused(database_url: str) -> None:
    """What makes connections for asyncio is no use to a thread: sync_engine= is asked for."""
    jobs, _ = function_and_coroutine(database_url)
    url = database_url.replace("+psycopg", "")

    async def connect() -> Any:
        return await psycopg.AsyncConnection.connect(url)

    created = create_async_engine(database_url, async_creator=connect)
    with pytest.raises(ValueError, match="sync_engine="):
        AsyncWorker(jobs, created)

    given = create_async_engine(database_url)

    @event.listens_for(given.sync_engine, "do_connect")
    def provide(dialect: Any, record: Any, args: Any, params: dict[str, Any]) -> None:
        assert asyncio.get_running_loop(), "where the tokens are"

    async def main() -> None:
        with pytest.raises(WorkerRefused, match="sync_engine="):
            await AsyncWorker(jobs, given).run()
        await given.dispose()

    asyncio.run(main())
