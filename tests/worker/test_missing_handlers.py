"""A worker that has the wrong handlers, or none: it says so at its start, and buries no job."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine

from sqlalchemy_bgjob import AsyncWorker, BGJob, Context, Worker
from support.rows import is_untouched, jobs_left
from support.tables import new_queue
from support.waiting import wait_until

if TYPE_CHECKING:
    from conftest import UrlFor


pytestmark = pytest.mark.keeps_tables

NO_HANDLER = "no handler is registered"


@pytest.fixture
def jobs() -> BGJob[Any, Any]:
    return new_queue()


def nothing(ctx: Context[Any]) -> None:
    """Completes."""


async def async_nothing(ctx: Context[Any]) -> None:
    """Completes."""


def test_a_worker_without_handlers_does_not_start(jobs: BGJob[Any, Any], engine: Engine) -> None:
    """Else all jobs of the queue were dead after unknown_type_grace."""
    jobs.metadata.create_all(engine)
    jobs.enqueue(engine, "send", 1, queue="mail")
    worker = Worker(jobs, engine, queues={"mail": 1}, unknown_type_grace=0.0)

    with pytest.raises(ValueError, match=rf"{NO_HANDLER}.*import the module.*--import"):
        worker.start()

    assert is_untouched(engine)


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_an_async_worker_without_handlers_does_not_start(
    jobs: BGJob[Any, Any], engine: Engine, url_for: UrlFor, driver: str
) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    jobs.metadata.create_all(engine)
    jobs.enqueue(engine, "send", 1, queue="mail")

    async def main() -> None:
        workers = create_async_engine(url_for(driver))
        worker = AsyncWorker(jobs, workers, queues={"mail": 1}, unknown_type_grace=0.0)
        try:
            with pytest.raises(ValueError, match=NO_HANDLER):
                await worker.start()
        finally:
            await workers.dispose()

    asyncio.run(main())

    assert is_untouched(engine)


def test_handlers_that_come_after_the_worker_count(jobs: BGJob[Any, Any], engine: Engine) -> None:
    """A worker may be made where its engine is, and the handlers be imported later."""
    jobs.metadata.create_all(engine)
    worker = Worker(jobs, engine, queues={"default": 1})
    jobs.handler("late", session=False)(nothing)
    jobs.enqueue(engine, "late")

    with worker:
        wait_until(lambda: not jobs_left(engine), what="the job's end")


def test_coroutines_are_no_handlers_of_threads(jobs: BGJob[Any, Any], engine: Engine) -> None:
    """Also where none of them names a queue that is served."""
    jobs.metadata.create_all(engine)
    jobs.handler("t", queue="reports")(async_nothing)
    worker = Worker(jobs, engine, queues={"mail": 1})

    with pytest.raises(ValueError, match=r"all handlers are coroutines.*AsyncWorker"):
        worker.run()


def test_functions_need_a_sync_engine_to_be_handlers(jobs: BGJob[Any, Any], engine: Engine) -> None:
    """Also where none of them names a queue that is served."""
    from sqlalchemy.ext.asyncio import create_async_engine

    jobs.metadata.create_all(engine)
    jobs.handler("t", queue="reports")(nothing)
    url = engine.url.set(drivername="postgresql+asyncpg")
    worker = AsyncWorker(jobs, create_async_engine(url), queues={"mail": 1})

    with pytest.raises(ValueError, match="sync_engine="):
        asyncio.run(worker.run())


def warnings_of(
    caplog: pytest.LogCaptureFixture, jobs: BGJob[Any, Any], **options: Any
) -> list[str]:
    """What a worker warns of at its start; it finds no database, and is stopped at once."""
    engine = create_engine("postgresql+psycopg://nobody@127.0.0.1:1/none", pool_size=50)
    with caplog.at_level(logging.WARNING, "sqlalchemy_bgjob"):
        worker = Worker(jobs, engine, **options)
        worker.request_stop(0.0)
        worker.run()
    return [r.getMessage() for r in caplog.records if "queue" in r.getMessage()]


def test_queues_that_do_not_match_are_named_once(
    jobs: BGJob[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """As warnings, with the name that was likely meant, and what becomes of the jobs."""
    jobs.handler("send", queue="mail")(nothing)
    jobs.handler("resize", queue="pictures")(nothing)

    served, unserved = warnings_of(caplog, jobs, queues={"mial": 2, "x": 1, "pictures": 1})

    assert "no handler names the queues 'mial' (did you mean 'mail'?), 'x'" in served
    assert "dead after 300 s" in served
    assert "import" in served
    assert unserved == (
        "not served by this worker: the queue 'mail', whose jobs wait for another worker"
    )


def test_without_a_grace_unknown_types_are_dead_at_once(
    jobs: BGJob[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    jobs.handler("send", queue="mail")(nothing)

    (served,) = warnings_of(caplog, jobs, queues={"mail": 1, "x": 1}, unknown_type_grace=0.0)

    assert "dead at once" in served


def test_queues_that_match_are_no_warning(
    jobs: BGJob[Any, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A default handler names its queue too."""
    jobs.handler("send", queue="mail")(nothing)
    jobs.default_handler("anything")(nothing)

    assert warnings_of(caplog, jobs, queues={"mail": 1, "anything": 1}) == []
    assert warnings_of(caplog, jobs) == []
