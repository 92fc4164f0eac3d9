"""The line that a worker logs at its start: enough to see whether it is the right one."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from sqlalchemy_bgjob import AsyncWorker, BGJob, Context, Worker, __version__
from sqlalchemy_bgjob._handlers.served import check_handlers
from sqlalchemy_bgjob._worker.start_line import log_start
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Callable


@pytest.fixture
def jobs() -> BGJob[Any, Any]:
    jobs = new_queue()

    @jobs.handler("send", queue="mail", session=False)
    @jobs.default_handler("rest", session=False)
    def nothing(ctx: Context[Any]) -> None:
        """Completes."""

    return jobs


@pytest.fixture
def line(caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    caplog.set_level(logging.INFO, "sqlalchemy_bgjob")

    def line() -> str:
        (found,) = [m for m in caplog.messages if m.startswith("worker of ")]
        return found

    return line


def test_threads_say_what_they_are(jobs: BGJob[Any, Any], line: Callable[[], str]) -> None:
    url = "postgresql+psycopg://u:secret@127.0.0.1:1/shop?password=secret"
    worker = Worker(jobs, create_engine(url), queues={"mail": 3, "rest": 1})
    worker.request_stop(0.0)
    worker.run()

    assert line() == (
        f"worker of threads, sqlalchemy-bgjob {__version__}: database 'shop' at 127.0.0.1:1; "
        "queues mail:3, rest:1; handlers * (queue rest), send"
    )


def test_asyncio_says_what_it_is(jobs: BGJob[Any, Any], line: Callable[[], str]) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine("postgresql+asyncpg://u:secret@127.0.0.1:1/shop")
    worker = AsyncWorker(jobs, engine, queues={"mail": 3})
    worker.request_stop(0.0)
    asyncio.run(worker.run())

    assert line().startswith(f"worker of asyncio, sqlalchemy-bgjob {__version__}: database 'shop'")
    assert "queues mail:3; handlers" in line()


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("postgresql+psycopg://db.example.com/shop", "database 'shop' at db.example.com"),
        ("postgresql+psycopg:///shop?host=a:1&host=b:2", "database 'shop' at a:1, b:2"),
        ("postgresql+psycopg:///shop?host=/run/pg", "database 'shop' at /run/pg"),
        ("postgresql+psycopg:///shop", "database 'shop'"),
        ("postgresql+psycopg://db.example.com", "a database at db.example.com"),
        ("postgresql+psycopg://", "a database that the URL does not name"),
        ("postgresql+psycopg://u:p@se#cret@x/shop", "database 'shop' at x"),
    ],
)
def test_a_database_is_named_without_its_password(url: str, words: str) -> None:
    from sqlalchemy_bgjob._worker.start_line import describe_database

    assert describe_database(create_engine(url)) == words


def test_a_creator_is_named_and_not_the_url_that_it_ignores() -> None:
    from sqlalchemy.ext.asyncio import create_async_engine
    from sqlalchemy.pool import QueuePool

    from sqlalchemy_bgjob._db.connections import side_engine
    from sqlalchemy_bgjob._worker.start_line import describe_database

    def connect() -> Any:
        """Connects elsewhere."""

    url = "postgresql+psycopg://h/d"
    engines = [
        create_engine(url, creator=connect),
        create_engine(url, pool=QueuePool(connect)),
        create_async_engine(url, async_creator=connect).sync_engine,
    ]
    words = "the database that the engine's creator connects to"
    assert [describe_database(engine) for engine in engines] == [words] * 3
    assert describe_database(side_engine(engines[0])) == words
    assert describe_database(create_async_engine(url).sync_engine) == "database 'd' at h"


def test_of_many_handlers_some_are_named(jobs: BGJob[Any, Any]) -> None:
    from sqlalchemy_bgjob._worker.start_line import describe_handlers

    for number in range(100, 130):
        jobs.handler(f"t{number}", session=False)(lambda ctx: None)

    assert describe_handlers(jobs.registry).endswith("t117 and 12 more")


def test_of_many_queues_some_are_named(
    jobs: BGJob[Any, Any], line: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    queues = {f"q{number:04}": 2 for number in range(1_000)}
    engine = create_engine("postgresql+psycopg://h/d")

    log_start("threads", engine, queues, jobs.registry)
    check_handlers(jobs.registry, queues, can_run=lambda _: True, unless="", grace=1.0)

    assert "queues q0000:2, q0001:2," in line()
    assert ", q0019:2 and 980 more; handlers" in line()
    (warning,) = [m for m in caplog.messages if m.startswith("no handler names the queues")]
    assert "'q0019' and 980 more; jobs there" in warning
