"""``worker``: it runs jobs on each driver, with the sessions and engines of the application."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, make_url, text

from sqlalchemy_bgjob import __version__
from sqlalchemy_bgjob._process import runners
from sqlalchemy_bgjob._process.exits import CommandError
from support import cli_app as app
from support.cli import notes
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from conftest import UrlFor
    from support.commands import Command

pytestmark = pytest.mark.keeps_tables


@pytest.mark.core
@pytest.mark.parametrize(
    ("jobs", "driver", "kind", "expected"),
    [
        ("functions", "psycopg", "threads", ["one Session"]),
        ("make_functions()", "psycopg2", "threads", ["one Session"]),
        ("functions", "asyncpg", "asyncio", ["one Session"]),
        ("coroutines", "psycopg", "asyncio", ["one AsyncSession"]),
        ("both", "asyncpg", "asyncio", ["one Session", "two AsyncSession"]),
    ],
)
def test_a_worker_runs_jobs_and_drains_at_the_first_signal(
    tables: Engine,
    url_for: UrlFor,
    start: Callable[..., Command],
    jobs: str,
    driver: str,
    kind: str,
    expected: list[str],
) -> None:
    """Threads or asyncio, by driver and handlers; exit code 0, and nothing is left."""
    command = start(
        "worker",
        f"support.cli_app:{jobs}",
        "--queue",
        "default:3",
        "--database-url",
        url_for(driver),
    )
    app.functions.enqueue(tables, "note", "one")
    if len(expected) > 1:
        app.both.enqueue(tables, "anote", "two", queue="default")

    wait_until(lambda: notes(tables) == expected, 60, what=f"the notes\n{command.stderr}")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0, command.stderr
    database = make_url(url_for(driver)).database
    (started,) = [line for line in command.stderr.splitlines() if "worker of " in line]
    assert f"worker of {kind}, sqlalchemy-bgjob {__version__}: database {database!r} at" in started
    assert "; queues default:3; handlers " in started
    assert "SIGTERM: draining for at most 25 s" in command.stderr
    command.says("INFO sqlalchemy_bgjob: stopped")
    assert "Traceback" not in command.stderr
    with tables.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM bgjob_worker")) == 0


@pytest.mark.parametrize(
    ("refusal", "words"),
    [
        ("the greenlet library is required", r'pip install "sqlalchemy-bgjob\[asyncio\]"'),
        ("something else", "something else"),
    ],
)
def test_asyncio_without_greenlet_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, refusal: str, words: str
) -> None:
    """SQLAlchemy 2.1 brings it no longer by itself."""

    def refuse(*args: object, **options: object) -> None:
        raise ValueError(refusal)

    options = runners.WorkerOptions(
        app="support.cli_app:coroutines", database_url="postgresql+psycopg://h/d"
    )
    monkeypatch.setattr("sqlalchemy.ext.asyncio.create_async_engine", refuse)
    with pytest.raises(CommandError, match=words):
        runners.make_runner(options)


def test_coroutines_need_a_driver_that_has_asyncio(
    url_for: UrlFor, start: Callable[..., Command]
) -> None:
    command = start("worker", "support.cli_app:coroutines", "--database-url", url_for("psycopg2"))

    assert command.wait() == 2
    assert "are coroutines, and the driver 'psycopg2' has no asyncio" in command.stderr


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["functions", "--session-factory", "own_sessions"], ["one OwnSession"]),
        (["coroutines", "--session-factory", "own_async_sessions"], ["one OwnAsyncSession"]),
        (
            ["both", "--session-factory", "OwnSession", "--session-factory", "OwnAsyncSession"],
            ["one OwnSession", "two OwnAsyncSession"],
        ),
        (["functions", "--engine", "engine()"], ["one Session"]),
        (
            ["both", "--engine", "asyncpg_engine()", "--sync-engine", "engine()"],
            ["one Session", "two AsyncSession"],
        ),
        (
            ["coroutines", "--engine", "engine_of_one_loop()", "--heart-engine", "engine()"],
            ["one AsyncSession"],
        ),
    ],
)
def test_an_application_brings_its_own_sessions_and_engine(
    tables: Engine,
    database_url: str,
    start: Callable[..., Command],
    arguments: list[str],
    expected: list[str],
) -> None:
    here = [a if a.startswith("-") else f"support.cli_app:{a}" for a in arguments]
    where = {} if "--engine" in here else {"BGJOB_DATABASE_URL": database_url}
    command = start("worker", *here, "--queue", "default:2", APP_URL=database_url, **where)
    app.functions.enqueue(tables, "note", "one")
    if len(expected) > 1:
        app.both.enqueue(tables, "anote", "two")

    wait_until(lambda: notes(tables) == expected, 60, what=f"the notes\n{command.stderr}")
    command.signal(signal.SIGINT)
    assert command.wait() == 0, command.stderr


@pytest.mark.parametrize(
    ("factories", "words"),
    [
        (["own_sessions", "OwnSession"], "all handlers are functions"),
        (["own_sessions", "OwnSession", "OwnAsyncSession"], "at most one session factory"),
    ],
)
def test_too_many_session_factories_are_refused(factories: list[str], words: str) -> None:
    kind = "functions" if len(factories) == 2 else "both"
    options = runners.WorkerOptions(
        app=f"support.cli_app:{kind}",
        database_url="postgresql+psycopg://h/d",
        session_factories=tuple(f"support.cli_app:{name}" for name in factories),
    )
    with pytest.raises(CommandError, match=words):
        runners.make_runner(options)


def test_what_was_imported_is_left_alone_by_the_collector(
    database_url: str, start: Callable[..., Command], tmp_path: Path
) -> None:
    """A collection that walks through it takes 40 ms, in which no job starts."""
    (tmp_path / "frozen_app.py").write_text(
        "import gc\n"
        "from pathlib import Path\n"
        "from sqlalchemy import MetaData, create_engine\n"
        "from sqlalchemy_bgjob import BGJob, enqueue\n"
        "jobs = BGJob(MetaData())\n"
        "@jobs.handler('frozen')\n"
        "def frozen(ctx):\n"
        "    Path('objects').write_text(str(gc.get_freeze_count()))\n"
        f"engine = create_engine({database_url!r})\n"
        "jobs.metadata.create_all(engine)\n"
        "enqueue(engine, frozen)\n"
    )

    worker = start(
        "worker", "frozen_app:jobs", "--until-idle", "--engine=frozen_app:engine", cwd=tmp_path
    )

    assert worker.wait() == 0, worker.stderr
    assert int((tmp_path / "objects").read_text()) > 50_000
