"""The handlers of ``worker``: ``--import`` names their modules, and none at all is an error."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_bgjob._process import process, runners
from support import cli_app as app
from support.cli import run
from support.rows import is_untouched, jobs_left
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from support.commands import Command


ENGINES = """
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

for_threads = create_engine("postgresql+psycopg://127.0.0.1:1/x", pool_size=20)
small = create_engine("postgresql+psycopg://127.0.0.1:1/x", pool_size=2, max_overflow=0)
on_asyncpg = create_async_engine("postgresql+asyncpg://127.0.0.1:1/x", pool_size=20)
created = create_async_engine("postgresql+psycopg://", async_creator=lambda: None)
"""


ALERTS = """
from pathlib import Path
from sqlalchemy_bgjob import Observer

class Alerts(Observer):
    def job_completed(self, job, run):
        with Path(__file__).with_name("told").open("a") as file:
            file.write(job.type + " ")
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
    (package / "alerts.py").write_text(ALERTS)
    (package / "waiting.py").write_text(
        "from shop.db import jobs\n@jobs.handler('call', queue='mail')\nasync def call(ctx): ...\n"
    )
    return tmp_path


@pytest.fixture
def refused(
    monkeypatch: pytest.MonkeyPatch, in_process: None, shop: Path
) -> Iterator[Callable[..., str]]:
    """What a worker is told that does not come to its start."""

    def make(options: runners.WorkerOptions) -> int:
        runners.make_runner(options)
        return 0

    def told(*arguments: str) -> str:
        code, _, err = run("worker", *arguments)
        assert code == 2, err
        return err

    monkeypatch.chdir(shop)
    monkeypatch.setattr(process, "run_worker", make)
    yield told
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]


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
    assert "no handler is registered" in command.stderr
    assert "--import" in command.stderr
    assert "Traceback" not in command.stderr
    assert is_untouched(tables)


@pytest.mark.parametrize("how", ["options", "environment"])
def test_import_and_observer_name_what_a_worker_has(
    tables: Engine, database_url: str, start: Callable[..., Command], shop: Path, how: str
) -> None:
    app.functions.enqueue(tables, "send", queue="mail")
    app.functions.enqueue(tables, "resize", queue="pictures")
    observer, told = "shop.alerts:Alerts()", shop / "shop" / "told"
    options = ["--import", "shop.tasks", "--import", "shop.more", "--observer", observer]
    variable = {}
    if how == "environment":
        options, variable = [], {"BGJOB_IMPORT": "shop.tasks shop.more", "BGJOB_OBSERVER": observer}
    command = start(
        "worker", "shop.db:jobs", *options, cwd=shop, BGJOB_DATABASE_URL=database_url, **variable
    )

    wait_until(lambda: not jobs_left(tables), 60, what=f"the jobs' end\n{command.stderr}")
    wait_until(
        lambda: told.exists() and sorted(told.read_text().split()) == ["resize", "send"],
        60,
        what=f"the observer\n{command.stderr}",
    )


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
        (
            ["shop.db:jobs", "--import", "shop.tasks", "--observer", "shop.alerts:Alerts"],
            "'shop.alerts:Alerts' is a class; write shop.alerts:Alerts()",
        ),
        (
            ["shop.db:jobs", "--import", "shop.tasks", "--observer", "shop.db:other"],
            "'shop.db:other' is of type 'BGJob'; name an object of a subclass of Observer",
        ),
    ],
)
def test_an_import_that_does_not_help_says_why(
    refused: Callable[..., str], arguments: list[str], words: str
) -> None:
    told = refused(*arguments, "--database-url", "postgresql+psycopg://127.0.0.1:1/x")

    assert words in told
    assert ("Traceback" in told) == ("shop.broken" in arguments)
    assert "_loader.py" not in told


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
    refused: Callable[..., str], options: list[str], words: str
) -> None:
    """What an argument of a worker would mend is told as the option that passes it."""
    told = refused("shop.db:jobs", "--import", "shop.tasks", *options)

    assert words in told
    assert "Traceback" not in told
