"""Behind PgBouncer in transaction mode: everything works as documented, or the error says how."""

from __future__ import annotations

import asyncio
import logging
import traceback
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import enqueue, enqueue_many
from support import wait_until
from support.databases import with_driver
from support.pooler import NEEDS_SESSIONS, POOLED, PgBouncer
from support.processes import ALL_DRIVERS, FAST, TWO, VARIANTS, Fleet
from support.running import FLAVORS, Workbench
from support.shop import make_tables, note

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from conftest import TestServer

pytestmark = pytest.mark.system


@pytest.fixture(scope="module")
def pooler(server: TestServer) -> Iterator[PgBouncer]:
    # One session, so that two clients are sure to meet in it.
    with PgBouncer(server.url, pool_size=1) as pooler:
        yield pooler


@pytest.fixture(scope="module")
def wide_pooler(server: TestServer) -> Iterator[PgBouncer]:
    with PgBouncer(server.url) as pooler:
        yield pooler


def pooled(pooler: PgBouncer, engine: Engine, driver: str) -> str:
    return pooler.url(with_driver(engine.url, driver))


def none_left(bench: Workbench) -> bool:
    return not bench.sql("SELECT 1 FROM bgjob_job")


SAYS = {"psycopg": "prepare_threshold", "asyncpg": "statement_cache_size"}


def test_enqueue_without_the_setting_names_it_psycopg(engine: Engine, pooler: PgBouncer) -> None:
    make_tables(engine)
    url = pooled(pooler, engine, "psycopg")
    first, second = create_engine(url), create_engine(url)
    with pytest.raises(DBAPIError) as refused:  # noqa: PT012 - whichever comes to it
        for _ in range(20):  # psycopg prepares what was sent five times
            for one in (first, second):
                enqueue(one, note, 1)
    first.dispose()
    second.dispose()
    assert "prepare_threshold" in "".join(traceback.format_exception(refused.value))


def test_enqueue_without_the_setting_names_it_asyncpg(
    engine: Engine, wide_pooler: PgBouncer
) -> None:
    make_tables(engine)
    url = pooled(wide_pooler, engine, "asyncpg")

    async def main() -> None:
        made = create_async_engine(url)

        async def many() -> None:
            for _ in range(50):
                await enqueue(made, note, 1)

        try:
            ends = await asyncio.gather(*(many() for _ in range(5)), return_exceptions=True)
        finally:
            await made.dispose()
        for end in ends:
            if end is not None:
                raise end

    with pytest.raises(DBAPIError) as refused:
        asyncio.run(main())
    assert "statement_cache_size" in "".join(traceback.format_exception(refused.value))


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_enqueue_with_the_setting_is_as_ever(
    driver: str, engine: Engine, pooler: PgBouncer
) -> None:
    make_tables(engine)
    url = pooled(pooler, engine, driver)

    async def asyncpg() -> None:
        engines = [create_async_engine(url, connect_args={**POOLED[driver]}) for _ in range(2)]
        for _ in range(20):
            for one in engines:
                await enqueue(one, note, 1)
        await enqueue_many(engines[0], note, range(1_000))
        for one in engines:
            await one.dispose()

    if driver == "asyncpg":
        asyncio.run(asyncpg())
    else:
        engines = [create_engine(url, connect_args={**POOLED[driver]}) for _ in range(2)]
        for _ in range(20):
            for one in engines:
                enqueue(one, note, 1)
        enqueue_many(engines[0], note, range(1_000))
        for one in engines:
            one.dispose()
    with engine.connect() as connection:
        assert connection.exec_driver_sql("SELECT count(*) FROM bgjob_job").scalar() == 1_040


@pytest.mark.parametrize("variant", TWO, ids=str)
def test_workers_without_the_setting_name_it(fleet: Fleet, pooler: PgBouncer) -> None:
    url = pooler.url(fleet.engine.url.render_as_string(hide_password=False))
    processes = [fleet.start(url=url, wait=False, listen=False, **FAST) for _ in range(2)]
    enqueue_many(fleet.engine, fleet.app.effect, [None] * 200)
    setting = SAYS[fleet.variant.driver]
    wait_until(
        lambda: any(setting in process.log for process in processes), 60, what=f"word of {setting}"
    )


@pytest.mark.timeout(180)
@pytest.mark.parametrize("variant", ALL_DRIVERS, ids=str)
def test_a_worker_is_killed_and_another_completes_its_jobs(
    fleet: Fleet, wide_pooler: PgBouncer
) -> None:
    """LISTEN hears nothing there, so that silence alone tells; and nothing is lost."""
    url = wide_pooler.url(fleet.engine.url.render_as_string(hide_password=False))
    ids = [f"job-{n:03}" for n in range(300)]
    held = [f"held-{n}" for n in range(4)]
    with_settings = {"url": url, "pooled": True, "slots": 4, "wait": False}
    victim = fleet.start(**with_settings, **FAST)
    enqueue_many(fleet.engine, fleet.app.hold, [60.0] * 4, ids=held)
    fleet.wait_for_starts(4, victim)
    other = fleet.start(**with_settings, **FAST)
    enqueue_many(fleet.engine, fleet.app.effect, [None] * len(ids), ids=ids)
    wait_until(lambda: len(fleet.effects()) > 100, what="work by the other")

    victim.kill()
    fleet.wait_until_done(60)

    assert other.alive
    fleet.check([*ids, *held], with_effects=[*ids, *held], faults=1)
    starts = fleet.journal.starts()
    assert {len(starts[job_id]) for job_id in ids} == {1}
    assert {len(starts[job_id]) for job_id in held} == {2}


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
def test_a_listener_that_hears_nothing_is_noticed(fleet: Fleet, wide_pooler: PgBouncer) -> None:
    """Within three seconds, by a notification of its own; then the worker polls."""
    url = wide_pooler.url(fleet.engine.url.render_as_string(hide_password=False))
    process = fleet.start(url=url, pooled=True, wait=False)
    wait_until(lambda: "pooler" in process.log, 15, what="the warning")
    enqueue(fleet.engine, fleet.app.quick, id="polled")
    fleet.wait_until_done(10)
    assert process.log.count("pooler") == 1


@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    "bench", [flavor for flavor in FLAVORS if flavor.driver in SAYS], ids=str, indirect=True
)
def test_a_pooler_that_changes_its_mode_under_a_worker(
    bench: Workbench, server: TestServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The setting is named for as long as it lasts, and no attempt is spent; then all jobs run."""
    handler = bench.handler("t", bench.note, max_attempts=1)
    setting, ids = SAYS[bench.flavor.driver], []

    def words() -> list[str]:
        said = [(record.levelno, record.getMessage()) for record in list(caplog.records)]
        return [words for level, words in said if level >= logging.WARNING and setting in words]

    def said_again() -> bool:
        said = words()
        return len(set(said)) < len(said)

    def jobs_until(condition: Callable[[], bool]) -> bool:
        ids.append(bench.enqueue(handler))
        return condition()

    def change_modes() -> None:
        wait_until(lambda: jobs_until(lambda: len(ids) > 10), what="some jobs")
        wait_until(lambda: none_left(bench), what="the jobs before")
        pooler.change_mode("transaction")
        wait_until(lambda: jobs_until(said_again), 60, what=f"the same word of {setting} again")
        pooler.change_mode("session")
        wait_until(lambda: none_left(bench), 60, what="the jobs that met it")
        ids.extend(bench.enqueue(handler) for _ in range(20))
        wait_until(lambda: none_left(bench), 60, what="the jobs after it")

    with PgBouncer(server.url, mode="session") as pooler:
        bench.url = pooler.url(bench.url)
        ran = bench.run(during=change_modes, **FAST)

    assert [id for id in ids if bench.dead(id)] == []
    assert {ran.of(id)[-1] for id in ids} == {"completed"}


def test_every_test_that_is_left_out_exists(pytestconfig: pytest.Config) -> None:
    """One that was renamed would go through the pooler again, and fail there for no reason."""
    folder = pytestconfig.rootpath / "tests"
    for beginning in NEEDS_SESSIONS:
        file, _, name = beginning.partition("::")
        (path,) = folder.rglob(file)
        assert f"def {name.partition('[')[0]}" in path.read_text(), beginning
