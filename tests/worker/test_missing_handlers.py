"""A worker that has the wrong handlers, or none: it says so at its start, and buries no job."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, MetaData, create_engine, text

from sqlalchemy_bgjob import AsyncWorker, BGJob, Context, Worker
from support import cli_app as app
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import UrlFor
    from support.commands import Command

NO_HANDLER = "no handler is registered"


@pytest.fixture
def jobs() -> BGJob[Any, Any]:
    return BGJob(MetaData())


def nothing(ctx: Context[Any]) -> None:
    """Completes."""


async def async_nothing(ctx: Context[Any]) -> None:
    """Completes."""


# ---- no handler -----------------------------------------------------------------------------


def untouched(engine: Engine) -> bool:
    """Whether the one job is as it was enqueued, and no worker has registered."""
    with engine.connect() as connection:
        job = connection.execute(text("SELECT claimed_by, attempt, unknown_since FROM bgjob_job"))
        workers = connection.scalar(text("SELECT count(*) FROM bgjob_worker"))
        return (job.all(), workers) == ([(None, 0, None)], 0)


def test_a_worker_without_handlers_does_not_start(jobs: BGJob[Any, Any], engine: Engine) -> None:
    """Else all jobs of the queue were dead after unknown_type_grace."""
    jobs.metadata.create_all(engine)
    jobs.enqueue(engine, "send", 1, queue="mail")
    worker = Worker(jobs, engine, queues={"mail": 1}, unknown_type_grace=0.0)

    with pytest.raises(ValueError, match=rf"{NO_HANDLER}.*import the module.*--import"):
        worker.start()

    assert untouched(engine)


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

    assert untouched(engine)


def test_handlers_that_come_after_the_worker_count(jobs: BGJob[Any, Any], engine: Engine) -> None:
    """A worker may be made where its engine is, and the handlers be imported later."""
    jobs.metadata.create_all(engine)
    worker = Worker(jobs, engine, queues={"default": 1})
    jobs.handler("late", session=False)(nothing)
    jobs.enqueue(engine, "late")

    with worker:
        wait_until(lambda: not left(engine), what="the job's end")


def left(engine: Engine) -> int:
    with engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM bgjob_job")) or 0


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


# ---- queues that do not match -------------------------------------------------------------------


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


# ---- the command line ---------------------------------------------------------------------------


@pytest.fixture
def tables(engine: Engine) -> Engine:
    app.metadata.create_all(engine)
    return engine


ENGINES = """
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

for_threads = create_engine("postgresql+psycopg://127.0.0.1:1/x", pool_size=20)
small = create_engine("postgresql+psycopg://127.0.0.1:1/x", pool_size=2, max_overflow=0)
on_asyncpg = create_async_engine("postgresql+asyncpg://127.0.0.1:1/x", pool_size=20)
created = create_async_engine("postgresql+psycopg://", async_creator=lambda: None)
"""


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """An application whose handlers are in a module of their own, as in most."""
    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "db.py").write_text(
        "from sqlalchemy import MetaData\n"
        "from sqlalchemy_bgjob import BGJob\n"
        "jobs = BGJob(MetaData())\n"
        "other = BGJob(MetaData())\n"
    )
    (package / "tasks.py").write_text(
        "from shop.db import jobs\n@jobs.handler('send', queue='mail')\ndef send(ctx): ...\n"
    )
    (package / "more.py").write_text(
        "from shop.db import jobs\n@jobs.handler('resize', queue='pictures')\ndef f(ctx): ...\n"
    )
    (package / "broken.py").write_text("1 / 0\n")
    (package / "engines.py").write_text(ENGINES)
    (package / "waiting.py").write_text(
        "from shop.db import jobs\n@jobs.handler('call', queue='mail')\nasync def call(ctx): ...\n"
    )
    return tmp_path


def test_the_command_line_refuses_to_start_without_handlers(
    tables: Engine, database_url: str, start: Callable[..., Command], shop: Path
) -> None:
    app.functions.enqueue(tables, "send", queue="mail")
    command = start(
        *("worker", "shop.db:jobs", "--queue", "mail:10", "--unknown-type-grace", "0"),
        cwd=shop,
        BGJOB_DATABASE_URL=database_url,
    )

    assert command.wait() == 2, command.stderr
    assert NO_HANDLER in command.stderr
    assert "--import" in command.stderr
    assert "Traceback" not in command.stderr
    assert untouched(tables)


@pytest.mark.core
@pytest.mark.parametrize("how", ["options", "environment"])
def test_import_names_the_modules_of_handlers(
    tables: Engine, database_url: str, start: Callable[..., Command], shop: Path, how: str
) -> None:
    app.functions.enqueue(tables, "send", queue="mail")
    app.functions.enqueue(tables, "resize", queue="pictures")
    options, variable = ["--import", "shop.tasks", "--import", "shop.more"], {}
    if how == "environment":
        options, variable = [], {"BGJOB_IMPORT": "shop.tasks shop.more"}
    command = start(
        "worker", "shop.db:jobs", *options, cwd=shop, BGJOB_DATABASE_URL=database_url, **variable
    )

    wait_until(lambda: not left(tables), 60, what=f"the jobs' end\n{command.stderr}")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["shop.db:jobs", "--import", "shop.task"], "no module 'shop.task' in package 'shop'; did"),
        (["shop.db:jobs", "--import", "shop/tasks.py"], "write the module's name: shop.tasks"),
        (["shop.db:jobs", "--import", "shop.tasks:send"], "write the module's name: shop.tasks"),
        (["shop.db:jobs", "--import", "shop tasks"], "'shop tasks' is not a module's name"),
        (["shop.db:jobs", "--import", "shop.broken"], "importing 'shop.broken' failed"),
        (
            ["shop.db:other", "--import", "shop.tasks"],
            "'shop.tasks' registers no handler with 'shop.db:other'",
        ),
    ],
)
def test_an_import_that_does_not_help_says_why(
    start: Callable[..., Command], shop: Path, arguments: list[str], words: str
) -> None:
    command = start(
        "worker", *arguments, cwd=shop, BGJOB_DATABASE_URL="postgresql+psycopg://127.0.0.1:1/x"
    )

    assert command.wait() == 2, command.stderr
    assert words in command.stderr
    assert ("Traceback" in command.stderr) == ("shop.broken" in arguments)
    assert "_loader.py" not in command.stderr


def test_the_command_line_warns_once_of_queues(start: Callable[..., Command], shop: Path) -> None:
    command = start(
        *("worker", "shop.db:jobs", "--import", "shop.tasks", "--queue", "male:10"),
        *("--log-level", "warning"),
        cwd=shop,
        BGJOB_DATABASE_URL="postgresql+psycopg://127.0.0.1:1/x",
    )

    command.says("no connection to the database")
    assert command.stderr.count("no handler names the queue 'male' (did you mean 'mail'?)") == 1
    assert command.stderr.count("not served by this worker") == 1


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["waiting", "--engine", "shop.engines:for_threads"], "--engine app:async_engine"),
        (["waiting", "--database-url", "postgresql+psycopg2://127.0.0.1:1/x"], "or a URL for"),
        (["tasks", "--engine", "shop.engines:on_asyncpg"], "--sync-engine app:sync_engine"),
    ],
)
def test_a_mistyped_queue_beside_the_wrong_engine_is_told(
    start: Callable[..., Command], shop: Path, arguments: list[str], words: str
) -> None:
    """In a sentence, with the queue that was meant, also where no handler is of the served ones."""
    module, *options = arguments
    command = start(
        *("worker", "shop.db:jobs", "--import", f"shop.{module}", "--queue", "mial:2", *options),
        cwd=shop,
    )

    assert command.wait() == 2, command.stderr
    assert words in command.stderr
    assert "no handler names the queue 'mial' (did you mean 'mail'?)" in command.stderr
    assert "Traceback" not in command.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "shop.engines:created"], "--sync-engine app:sync_engine"),
        (
            ["--engine", "shop.engines:on_asyncpg", "--sync-engine", "shop.engines:small"],
            "pool holds 2 connections, and a worker needs at least 3",
        ),
        (["--engine", "shop.engines:for_threads", "--queue", "mail:20000"], "--queue mail:10)"),
    ],
)
def test_the_command_line_refuses_in_its_own_words(
    start: Callable[..., Command], shop: Path, options: list[str], words: str
) -> None:
    """What an argument of a worker would mend is told as the option that passes it."""
    command = start("worker", "shop.db:jobs", "--import", "shop.tasks", *options, cwd=shop)

    assert command.wait() == 2, command.stderr
    assert words in command.stderr
    assert "Traceback" not in command.stderr
