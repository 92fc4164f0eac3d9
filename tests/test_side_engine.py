"""What the library connects by itself for is like the application's own connections."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from sqlalchemy import MetaData, create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import AsyncWorker, BGJob, Context, enqueue
from sqlalchemy_bgjob.exceptions import WorkerRefused
from support.databases import with_driver
from support.processes import FAST
from support.running import FLAVORS
from support.waiting import wait_until_async

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Engine

    from support.running import Bench

LOST = """
    INSERT INTO {schema}bgjob_worker
      (id, hostname, pid, version, queues, lease_timeout, beat_at)
    VALUES (815, 'elsewhere', 1, '0', '{{}}', 1, now() - interval '1 hour')
"""


@pytest.fixture
def elsewhere(bench: Bench) -> Any:
    """The tables in a schema that is not on the search path."""
    bench.sql("CREATE SCHEMA tenant")
    for name in ("bgjob_job", "bgjob_dead_job", "bgjob_worker", "note"):
        bench.sql(f"ALTER TABLE {name} SET SCHEMA tenant")
    yield
    bench.sql("DROP SCHEMA tenant CASCADE")


def lose_a_job(bench: Bench, job_id: str) -> None:
    bench.sql(LOST.format(schema="tenant."))
    bench.sql(
        "INSERT INTO tenant.bgjob_job (id, queue, type, claimed_by, attempt)"
        " VALUES (:id, 'default', 't', 815, 1)",
        id=job_id,
    )


def done(bench: Bench, job_id: str) -> Callable[[], bool]:
    """Whether the job has ended, with what its handler wrote."""

    def look() -> bool:
        left = bench.sql("SELECT 1 FROM tenant.bgjob_job")
        notes = bench.sql("SELECT 1 FROM tenant.note WHERE job_id = :id", id=job_id)
        return bool(notes) and not left

    return look


def test_a_worker_translates_schemas_in_all_it_does(bench: Bench, elsewhere: None) -> None:
    """Its start, its heart and its rescuer see the tables that its claims see."""
    bench.handler("t", bench.note)
    lose_a_job(bench, "lost")

    bench.run(
        until=done(bench, "lost"),
        deadline=60.0,
        execution={"schema_translate_map": {None: "tenant"}},
        **FAST,
    )

    assert bench.sql("SELECT attempt FROM tenant.bgjob_job") == []
    assert bench.sql("SELECT id FROM tenant.bgjob_worker WHERE lost_at IS NULL") == []


def test_a_worker_is_what_a_begin_listener_makes_it(
    bench: Bench, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here it sets, for each transaction, where the tables are found."""
    bench.handler("t", bench.note)
    lose_a_job(bench, "lost")

    def listen(engine: Engine) -> None:
        @event.listens_for(engine, "begin")
        def begin(connection: Connection) -> None:
            connection.exec_driver_sql("SET LOCAL search_path = tenant")

    _listening(monkeypatch, listen)
    bench.run(until=done(bench, "lost"), deadline=60.0, **FAST, listen=True)

    assert bench.sql("SELECT id FROM tenant.bgjob_worker WHERE lost_at IS NULL") == []


def _listening(monkeypatch: pytest.MonkeyPatch, listen: Callable[[Engine], None]) -> None:
    """Let the bench's engines be listened to."""

    def sync(*args: Any, **options: Any) -> Engine:
        engine = create_engine(*args, **options)
        listen(engine)
        return engine

    def coroutines(*args: Any, **options: Any) -> Any:
        engine = create_async_engine(*args, **options)
        listen(engine.sync_engine)
        return engine

    monkeypatch.setattr("support.running.create_engine", sync)
    monkeypatch.setattr("support.running.create_async_engine", coroutines)


@pytest.mark.parametrize("bench", FLAVORS[1:], indirect=True, ids=str)
def test_a_worker_that_may_not_register_is_refused(bench: Bench) -> None:
    """Nothing that passes by itself keeps it from that: to wait would be silence."""
    bench.handler("t", bench.note)
    bench.sql("ALTER TABLE bgjob_worker ADD CHECK (hostname = 'another') NOT VALID")
    try:
        with pytest.raises(WorkerRefused, match=r"can't register.* 23514 .*doctor"):
            bench.run()
    finally:
        bench.sql("DROP TABLE bgjob_worker")


def test_connections_of_one_event_loop_are_refused_by_name(database_url: str) -> None:
    """The heart has a loop of its own; with an engine of its own the worker begins."""
    jobs: BGJob[Any, Any] = BGJob(MetaData())

    @jobs.handler("t", session=False)
    async def handle(ctx: Context[Any]) -> None:
        ran.append(ctx.job.id)

    ran: list[str] = []
    plain = create_engine(database_url)
    jobs.metadata.create_all(plain)
    job = enqueue(plain, handle)
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
    assert ran == [job.id]
