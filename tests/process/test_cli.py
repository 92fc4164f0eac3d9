"""The command line: what it accepts, what it answers, and how it ends."""

from __future__ import annotations

import itertools
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
from dataclasses import fields, replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from click import UsageError
from click.testing import CliRunner
from sqlalchemy import Engine, create_engine, make_url, select, text
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import WorkerSettings, __version__, enqueue, schema
from sqlalchemy_bgjob._process import logs, process, runners
from sqlalchemy_bgjob._process.engines import cant_connect
from sqlalchemy_bgjob._process.exits import CommandError
from sqlalchemy_bgjob._process.loader import load
from sqlalchemy_bgjob._process.logs import JsonFormatter
from sqlalchemy_bgjob._process.queue_option import Queue
from sqlalchemy_bgjob._process.signals import Requests
from sqlalchemy_bgjob._process.urls import database_url as parse_url
from sqlalchemy_bgjob._process.urls import sync_url
from sqlalchemy_bgjob.cli import cli
from sqlalchemy_bgjob.cli.options import Seconds
from support import cli_app as app
from support.catalog import catalog
from support.databases import with_driver
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import UrlFor
    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres
    from support.commands import Command


def add(engine: Engine, handler: Any, arg: Any = None) -> None:
    with Session(engine) as session, session.begin():
        enqueue(session, handler, arg)


def notes(engine: Engine) -> list[str]:
    with Session(engine) as session:
        return list(session.scalars(select(app.Note.words).order_by(app.Note.words)))


def rows(engine: Engine) -> list[Any]:
    """(attempt, claimed_by, last_error) of each job."""
    job = app.functions.models.job
    with engine.connect() as connection:
        query = select(job.c.attempt, job.c.claimed_by, job.c.last_error)
        return list(connection.execute(query).all())


# ---- start --------------------------------------------------------------------------------------


def test_help_starts_at_once() -> None:
    """Nobody waits for --help: under 0.15 s of processor time for the whole process."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("COVERAGE")}

    def seconds() -> float:
        command = [sys.executable, "-m", "sqlalchemy_bgjob", "--help"]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        return usage.ru_utime + usage.ru_stime

    # The best of several: what else runs on the machine can only make it slower.
    assert any(seconds() < 0.15 for _ in range(30))


@pytest.mark.core
def test_the_command_line_imports_neither_sqlalchemy_nor_asyncio() -> None:
    code = """
        import sys
        from sqlalchemy_bgjob.cli import cli
        for command in ([], ["worker"], ["migrate"], ["demo"], ["version"]):
            cli([*command, "--help"], standalone_mode=False)
        print(sorted({"sqlalchemy", "asyncio", "rich", "msgspec"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("\n[]\n")


@pytest.mark.parametrize("name", ["sqlalchemy-bgjob", "bgjob"])
def test_the_scripts_are_the_command_line(name: str) -> None:
    script = Path(sys.executable).with_name(name)
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"sqlalchemy-bgjob, version \d.*\n", done.stdout)


def test_version_tells_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)

    assert re.search(r"^psycopg +not installed$", run("version")[1], re.MULTILINE)


def run(*arguments: str, **environment: str) -> tuple[int, str, str]:
    """Run a command in this process: its exit code, stdout and stderr."""
    result = CliRunner().invoke(
        cli, arguments, env=environment, standalone_mode=False, catch_exceptions=False
    )
    return result.return_value or 0, result.stdout, result.stderr


def test_version_names_everything_that_matters() -> None:
    code, out, _ = run("version")

    assert code == 0
    for word in ("sqlalchemy-bgjob", "Python", "SQLAlchemy", "psycopg", "asyncpg", "schema"):
        assert word in out


# ---- options ------------------------------------------------------------------------------------


@pytest.fixture
def parsed(monkeypatch: pytest.MonkeyPatch) -> Callable[..., runners.WorkerOptions]:
    """What ``worker`` makes of its arguments and environment."""
    seen: list[runners.WorkerOptions] = []

    def run_worker(options: runners.WorkerOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(process, "run_worker", run_worker)
    monkeypatch.setattr("sqlalchemy_bgjob._process.logs.configure", lambda *args: None)
    monkeypatch.setattr(sys, "path", list(sys.path))

    def parse(*arguments: str, **environment: str) -> runners.WorkerOptions:
        code, _, err = run("worker", *arguments, **environment)
        assert code == 0, err
        return seen.pop()

    return parse


def test_each_setting_has_a_flag_and_a_variable(
    parsed: Callable[..., runners.WorkerOptions],
) -> None:
    assert parsed("app:jobs").settings == WorkerSettings()

    for field in fields(WorkerSettings):
        flag = "--" + field.name.replace("_", "-")
        other: Any = False if field.default is True else type(field.default)(field.default / 2)
        arguments = ["--no-listen"] if field.name == "listen" else [flag, str(other)]
        expected = replace(WorkerSettings(), **{field.name: other})
        assert parsed("app:jobs", *arguments).settings == expected
        variable = {f"BGJOB_{field.name.upper()}": str(other)}
        assert parsed("app:jobs", **variable).settings == expected


def test_each_flag_has_a_help_text_with_its_variable_and_default() -> None:
    words = " ".join(run("worker", "--help")[1].split())

    for field in fields(WorkerSettings):
        assert "--" + field.name.replace("_", "-") in words
        assert f"BGJOB_{field.name.upper()}" in words
        assert field.metadata["help"][1:] + ". [" in words


@pytest.mark.parametrize("command", ["migrate", "doctor", "grants"])
def test_only_migrate_says_that_it_creates_a_schema(command: str) -> None:
    words = " ".join(run(command, "--help")[1].split())

    assert "--schema TEXT The schema of the tables; by default the search path finds" in words
    assert ("creates a --schema that is missing" in words) == (command == "migrate")
    assert "makes it" not in words


def test_the_rest_may_come_from_the_environment_too(
    parsed: Callable[..., runners.WorkerOptions],
) -> None:
    options = parsed(
        BGJOB_APP="app:jobs",
        BGJOB_DATABASE_URL="postgresql://host/db",
        BGJOB_QUEUE="mail:3 default",
        BGJOB_SESSION_FACTORY="app:Session",
        BGJOB_ENGINE="app:engine",
    )

    assert options.app == "app:jobs"
    assert options.database_url == "postgresql://host/db"
    assert options.queues == {"mail": 3, "default": 10}
    assert options.session_factories == ("app:Session",)
    assert options.engine == "app:engine"
    assert parsed("other:jobs", "--queue", "a:1", BGJOB_APP="app:jobs").app == "other:jobs"


@pytest.mark.parametrize(
    ("given", "expected"),
    [("2.5", 2.5), ("500ms", 0.5), ("30s", 30.0), ("5m", 300.0), ("1h", 3600.0), (3, 3.0)],
)
def test_durations_have_units(given: object, expected: float) -> None:
    assert Seconds().convert(given, None, None) == expected


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("mail:3", ("mail", 3)),
        ("mail", ("mail", 10)),
        ("a:b:3", ("a:b", 3)),
        ("a,b:3", ("a,b", 3)),
        (("a", 1), ("a", 1)),
    ],
)
def test_queues_have_a_concurrency(given: object, expected: tuple[str, int]) -> None:
    assert Queue().convert(given, None, None) == expected


BY_URL = ["--database-url", "postgresql+psycopg://127.0.0.1:1/x"]


@pytest.mark.core
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--queue", "mail:0"], "'mail:0' is not name:concurrency"),
        (["--queue", ":3"], "':3' is not name:concurrency"),
        (["--queue", "tenant:mail"], "a name with a colon needs both: tenant:mail:10"),
        (["--queue", "a:1", "--queue", "a:2"], "a queue is named twice"),
        (["--poll-interval", "soon"], "'soon' is not a duration"),
        (["--poll-interval", "3x"], "'3x' is not a duration"),
        (["--poll-interval", "nan"], "poll_interval=nan is not between"),
        (["--lease-timeout", "1"], "lease_timeout=1.0 s must be at least three times"),
        (["--processes", "0"], "0 is not in the range"),
        ([], "no database; give --database-url"),
        (["--database-url", "sqlite://"], "the database URL is for 'sqlite'"),
        (["--database-url", "postgresql+mysqldb://x"], "known; use one of psycopg, asyncpg"),
        (["--database-url", "postgresql+json://x"], "known; use one of psycopg, asyncpg"),
        (["--database-url", "postgresql://a:se#cret@x:port/y"], "URL is not understood"),
        (["--engine", "support.cli_app:note"], "not Engine or AsyncEngine"),
        (["--database-url", "postgresql://a:p@se#cret@x/y"], "URL is not understood"),
        (
            ["--session-factory", "support.cli_app:idle_engine"],
            "is of type 'Engine', which makes no sessions; name a Session class or a sessionmaker",
        ),
        (
            ["--queue", "a,b", *BY_URL],
            "'a,b', which has a comma; give each queue an option of its own",
        ),
        (["--queue", "mail,", *BY_URL], "no handler names the queue 'mail,', which has a comma"),
        (["--queue", "mail:3,", *BY_URL], "'mail:3,' has a comma"),
        (["--queue", "mail:3,default:2", *BY_URL], "--queue mail:10 --queue default"),
        (["--engine", "e:e", "--database-url", "postgresql://h/d"], "leave out --database-url"),
        (["--sync-engine", "support.cli_app:note"], "'JobType', not Engine"),
        (
            ["--sync-engine", "support.cli_app:idle_engine", "--database-url", "postgresql://h/d"],
            "--sync-engine goes with asyncio",
        ),
        (["--heart-engine", "support.cli_app:note"], "'JobType', not Engine or AsyncEngine"),
        (
            ["--heart-engine", "support.cli_app:idle_engine", "--database-url", "postgresql://h/d"],
            "--heart-engine goes with asyncio",
        ),
        (
            ["--database-url", "postgresql+asyncpg://h/d?channel_binding=require"],
            "asyncpg takes no 'channel_binding' from a database URL; leave it out",
        ),
        (
            ["--database-url", "postgresql+asyncpg://h/d?command_timeout=5"],
            "none can be made from a URL like this one; name one by --sync-engine",
        ),
        (["--engine", "support.cli_app:idle_asyncpg"], "name one by --sync-engine"),
    ],
)
def test_wrong_usage_is_told_with_2(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    monkeypatch.setattr("sqlalchemy_bgjob._process.logs.configure", lambda *args: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(process, "run_worker", lambda options: runners.make_runner(options) and 0)

    try:
        code, _, err = run("worker", "support.cli_app:functions", *arguments)
    except UsageError as error:
        code, err = error.exit_code, error.format_message()

    assert code == 2
    assert words in err
    assert "cret" not in err


@pytest.mark.core
@pytest.mark.parametrize(
    "arguments", [["--queue", "mail:0"], ["--queue", "a:1", "--queue", "a:2"], ["--no-such"]]
)
def test_wrong_usage_exits_with_2(start: Callable[..., Command], arguments: list[str]) -> None:
    command = start("worker", "support.cli_app:functions", *arguments)

    assert command.wait() == 2
    assert "Error: " in command.stderr
    assert "Traceback" not in command.stderr


# ---- the application ----------------------------------------------------------------------------


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a few modules in it."""
    (tmp_path / "shopapp").mkdir()
    (tmp_path / "shopapp" / "__init__.py").touch()
    (tmp_path / "shopapp" / "jobs.py").write_text("class App:\n    jobs = 3\napp = App()\n")
    (tmp_path / "shopmain.py").write_text(
        "class Holder:\n"
        "    @property\n"
        "    def broken(self): raise KeyError('inside')\n"
        "holder = Holder()\n"
        "queue = 7\n"
        "def make(): return 8\n"
        "def fails(): raise ValueError('in the factory')\n"
    )
    (tmp_path / "shopbroken.py").write_text("def work():\n    1 / 0\nwork()\n")
    (tmp_path / "shopneeds.py").write_text("import nosuchlibrary\n")
    (tmp_path / "shopexits.py").write_text("raise SystemExit('no settings')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("shop")]:
        del sys.modules[name]


@pytest.mark.parametrize(
    ("target", "expected"),
    [("shopmain:queue", 7), ("shopapp.jobs:app.jobs", 3), ("shopmain:make()", 8)],
)
def test_an_object_is_found_by_module_and_name(
    modules: Path, target: str, expected: object
) -> None:
    assert load(target, modules) == expected


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("shopmain", "'shopmain' is not module:object; write it like app:jobs"),
        ("shopmain:", "is not module:object"),
        (":queue", "is not module:object"),
        ("shopmain:que ue", "is not module:object, module:object.attribute or module:factory()"),
        ("shopmain.py:queue", "names a file; write the module's name: shopmain:queue"),
        ("shopapp/jobs.py", "write the module's name: shopapp.jobs:jobs"),
        ("shopmian:queue", "no module 'shopmian' in"),
        ("shopmian:queue", "did you mean 'shopmain'"),
        ("shopapp.job:app", "no module 'shopapp.job' in package 'shopapp'; did you mean 'jobs'?"),
        ("shopmain.sub:app", "no module 'shopmain.sub'"),
        ("shopmain:queu", "module 'shopmain' has no 'queu'; did you mean 'queue'?"),
        ("shopapp.jobs:app.job", "of module 'shopapp.jobs' has no 'job'; did you mean 'jobs'?"),
        ("shopmain:zzz", "module 'shopmain' has no 'zzz'"),
        ("shopmain:queue()", "is not callable; write shopmain:queue without ()"),
    ],
)
def test_a_wrong_name_says_what_was_tried_and_what_is_close(
    modules: Path, target: str, words: str
) -> None:
    with pytest.raises(CommandError) as raised:
        load(target, modules)

    assert words in str(raised.value)
    assert raised.value.exit_code == 2
    assert raised.value.traceback is None, "nothing of the application's has failed"


@pytest.mark.parametrize(
    ("target", "words", "frame"),
    [
        ("shopbroken:x", "importing 'shopbroken' failed: ZeroDivisionError", "in work"),
        ("shopneeds:x", "No module named 'nosuchlibrary'", "import nosuchlibrary"),
        ("shopmain:fails()", "calling 'fails' of module 'shopmain' failed: V", "in fails"),
        ("shopmain:holder.broken", "reading 'broken'", "in broken"),
        ("shopexits:x", "SystemExit: no settings", "shopexits.py"),
    ],
)
def test_a_traceback_begins_in_the_application(
    modules: Path, target: str, words: str, frame: str
) -> None:
    with pytest.raises(CommandError) as raised:
        load(target, modules)

    assert words in str(raised.value)
    trace = raised.value.traceback
    assert trace is not None
    assert frame in trace
    assert "_loader.py" not in trace
    assert "importlib" not in trace


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("support.cli_app:asgi", "'Asgi', not BGJob; did you mean support.cli_app:both or"),
        ("support.cli_app:flask_like", "did you mean support.cli_app:flask_like.jobs or"),
        ("support.cli_app:make_later()", "is a coroutine function; name a plain function"),
        ("support.commands:TESTS", "name the object that BGJob(...) has made, such as app:jobs"),
        ("support.cli_app:make_functions", "if it makes one, write support.cli_app:make_functions"),
        ("support.cli_app:Base", "is of type 'DeclarativeAttributeIntercept', not BGJob"),
        ("support:cli_app", "did you mean support:cli_app.both or support:cli_app.coroutines"),
        ("support.cli_app:nothing", "no handler is registered"),
    ],
)
def test_what_is_no_bgjob_is_refused(target: str, words: str) -> None:
    with pytest.raises(CommandError) as raised:
        runners.make_runner(runners.WorkerOptions(app=target, database_url="postgresql://x/y"))

    assert words in str(raised.value)
    assert raised.value.exit_code == 2


def test_an_application_that_raises_exits_with_2_and_its_traceback(
    modules: Path, start: Callable[..., Command]
) -> None:
    """The working directory is importable, also by the installed script."""
    command = start("worker", "shopbroken:jobs", cwd=modules)

    assert command.wait() == 2
    assert command.stderr.startswith("Traceback (most recent call last):\n")
    assert "Error: importing 'shopbroken' failed" in command.stderr
    assert "sqlalchemy_bgjob/" not in command.stderr


# ---- the URL ------------------------------------------------------------------------------------


def test_a_url_without_a_driver_means_the_first_that_is_installed(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the release of SQLAlchemy would take; the log says which."""
    caplog.set_level(logging.INFO)
    for missing, driver in ((set(), "psycopg"), ({"psycopg"}, "asyncpg"), ({"asyncpg"}, "psycopg")):
        monkeypatch.setattr(
            "sqlalchemy_bgjob._process.urls.is_installed", lambda m, no=missing: m not in no
        )
        assert parse_url("postgres://u:p@h/d").drivername == f"postgresql+{driver}"
        assert parse_url("postgresql://u:p@h/d").password == "p"
    assert "names no driver: using asyncpg" in caplog.text

    monkeypatch.setattr("sqlalchemy_bgjob._process.urls.is_installed", lambda module: False)
    with pytest.raises(CommandError, match=r'pip install "sqlalchemy-bgjob\[psycopg\]"'):
        parse_url("postgresql://h/d")
    with pytest.raises(CommandError, match=r'sqlalchemy-bgjob\[asyncpg\]" \(installed: none\)'):
        parse_url("postgresql+asyncpg://h/d")


def test_functions_beside_asyncpg_get_a_driver_for_threads(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = make_url("postgresql+asyncpg://u:p@h/d?ssl=require")
    found = sync_url(url)
    assert found is not None
    assert found.render_as_string(hide_password=False) == (
        "postgresql+psycopg://u:p@h/d?sslmode=require"
    )
    several = "h/d?host=a:1&host=b:2&target_session_attrs=read-write"
    found = sync_url(make_url(f"postgresql+asyncpg://{several}"))
    assert found == make_url(f"postgresql+psycopg://{several}")
    assert sync_url(make_url("postgresql+asyncpg://h/d?command_timeout=5")) is None
    monkeypatch.setattr("sqlalchemy_bgjob._process.urls.is_installed", lambda module: False)
    assert sync_url(url) is None
    plain = make_url("postgresql+psycopg2://h/d")
    assert sync_url(plain) is plain


def test_asyncpg_gets_sslmode_in_its_own_word() -> None:
    """Hosting platforms write it as libpq has it."""
    found = parse_url("postgresql+asyncpg://u:p@h/d?sslmode=require")
    assert found == make_url("postgresql+asyncpg://u:p@h/d?ssl=require")
    plain = "postgresql+psycopg://u:p@h/d?sslmode=require&channel_binding=require"
    assert parse_url(plain) == make_url(plain)


@pytest.mark.parametrize("command", ["migrate", "doctor"])
@pytest.mark.parametrize(
    ("driver", "query", "code", "words"),
    [
        ("asyncpg", "sslmode=disable", {0, 4, 1}, ""),
        ("asyncpg", "sslmode=no", {3}, "must be one of: disable, allow"),
        ("asyncpg", "prepared_statement_cache_size=x", {2}, "can't connect by this database URL"),
        ("asyncpg", "connect_timeout=3", {2}, "asyncpg takes no 'connect_timeout'"),
        ("psycopg", "no_such=3", {3}, "no_such"),
        ("psycopg2", "no_such=3", {3}, "no_such"),
    ],
)
def test_parameters_of_a_url_are_no_traceback(
    url_for: UrlFor, command: str, driver: str, query: str, code: set[int], words: str
) -> None:
    found, _, err = run(command, "--database-url", f"{url_for(driver)}?{query}")

    assert found in code, err
    assert words in err


def test_an_engine_wins_over_a_url_of_the_environment(
    parsed: Callable[..., runners.WorkerOptions],
) -> None:
    """Which may be there for another command."""
    options = parsed("app:jobs", "--engine", "app:engine", BGJOB_DATABASE_URL="postgresql://h/d")

    assert options.engine == "app:engine"


@pytest.mark.parametrize("target", [None, "app:engine"])
def test_what_can_not_connect_is_told_without_a_password(target: str | None) -> None:
    """Drivers and creators may quote what they were given."""
    quoted = ValueError("can't use postgresql://u:secret@h/d?password=secret")

    problem = cant_connect(quoted, target).problem

    assert "ValueError: can't use" in problem
    assert "secret@" not in problem
    assert "password=secret" not in problem


# ---- migrate ------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_migrate_makes_the_tables_once(driver: str, url_for: UrlFor, engine: Engine) -> None:
    url = url_for(driver)

    assert run("migrate", "--database-url", url) == (
        0,
        "created the tables bgjob_*, version 1\n",
        "",
    )
    with engine.connect() as connection:
        assert schema.db_version(connection) == schema.LATEST
    code, out, _ = run("migrate", BGJOB_DATABASE_URL=url)
    assert (code, out) == (0, "the tables bgjob_* are of version 1: nothing to do\n")


def test_migrate_uses_schema_and_prefix(engine: Engine, database_url: str) -> None:
    where = ["--schema", "shop", "--table-prefix", "q_"]
    code, out, _ = run("migrate", "--database-url", database_url, *where)

    assert (code, out) == (0, "created the tables q_* in schema shop, version 1\n")
    with engine.connect() as connection:
        assert schema.db_version(connection, schema="shop", table_prefix="q_") == 1


def test_migrate_prints_the_same_as_sql(engine: Engine) -> None:
    code, up, _ = run("migrate", "--sql", "--schema", "shop")
    assert code == 0
    assert up == schema.migration_sql(schema="shop")
    code, down, _ = run("migrate", "--sql", "--schema", "shop", "--from", "1", "--to", "0")
    assert code == 0

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(up)
        assert schema.db_version(connection, schema="shop") == 1
        connection.exec_driver_sql(down)
        assert schema.db_version(connection, schema="shop") == 0


def test_migrate_answers_each_trouble_with_its_exit_code(engine: Engine, database_url: str) -> None:
    assert run("migrate")[0] == 2
    assert run("migrate", "--sql", "--to", "99")[0] == 2
    code, _, err = run("migrate", "--to", "1", "--database-url", database_url)
    assert (code, "go with --sql" in err) == (2, True)
    for driver in ("psycopg", "asyncpg"):
        url = f"postgresql+{driver}://u@127.0.0.1:1/x"
        code, _, err = run("migrate", "--database-url", url)
        assert (code, "the database refuses" in err) == (3, True), err
        gone = make_url(with_driver(database_url, driver)).set(database="no_such_database")
        code, _, err = run("migrate", "--database-url", gone.render_as_string(hide_password=False))
        assert (code, "no_such_database" in err) == (3, True), err
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE bgjob_job (id text)")
    assert run("migrate", "--database-url", database_url)[0] == 4
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE bgjob_job")
        connection.exec_driver_sql("CREATE TABLE bgjob_worker (id text)")
    code, _, err = run("migrate", "--database-url", database_url)
    assert (code, "another program's" in err) == (4, True), err
    with engine.begin() as connection:
        connection.exec_driver_sql("DROP TABLE bgjob_worker")
        connection.exec_driver_sql("CREATE TABLE orders (id text)")
        connection.exec_driver_sql("CREATE INDEX bgjob_job_claim_idx ON orders (id)")
    code, _, err = run("migrate", "--database-url", database_url)
    assert (code, "already exists" in err) == (1, True), err


def test_migrate_tells_from_which_version(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(schema, "LATEST", 3)
    monkeypatch.setattr(schema, "migrate", lambda connection, **where: 2)

    code, out, _ = run("migrate", "--database-url", database_url)

    assert (code, out) == (0, "migrated the tables bgjob_* from version 2 to 3\n")


def test_a_bug_in_a_command_is_not_made_nice(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(connection: object, **where: object) -> int:
        raise LookupError("inside")

    monkeypatch.setattr(schema, "migrate", broken)
    with pytest.raises(LookupError, match="inside"):
        run("migrate", "--database-url", database_url)


# ---- commands that connect as the application does ----------------------------------------------


@pytest.mark.parametrize("own", ["tenant_engine()", "tenant_asyncpg_engine()"])
def test_migrate_and_doctor_take_an_engine(
    engine: Engine, database_url: str, monkeypatch: pytest.MonkeyPatch, own: str
) -> None:
    """Its options and listeners decide which tables are meant."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SCHEMA tenant")
    target = ["--engine", f"support.cli_app:{own}"]

    code, out, err = run("migrate", *target, APP_URL=database_url)
    assert (code, "created the tables" in out) == (0, True), err
    with engine.connect() as connection:
        assert schema.db_version(connection, schema="tenant") == schema.LATEST
        assert schema.db_version(connection) == 0
    environment = {"BGJOB_ENGINE": target[1], "BGJOB_DATABASE_URL": "postgresql://h/d"}
    code, out, err = run("doctor", APP_URL=database_url, **environment)
    assert (code, "problem" in out) == (0, False), out + err


@pytest.mark.parametrize("command", ["migrate", "doctor"])
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engine", "support.cli_app:note"], "'JobType', not Engine or AsyncEngine"),
        (["--engine", "support.cli_app:no_such"], "has no 'no_such'"),
        (["--engine", "e:e", "--database-url", "postgresql://h/d"], "leave out --database-url"),
        (["--engine", "support.cli_app:misspelt_asyncpg_engine()"], "can't connect: TypeError"),
        (["--engine", "support.cli_app:tokenless_engine()"], "LookupError: no token ("),
    ],
)
def test_a_wrong_engine_is_told_with_2(
    database_url: str,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    arguments: list[str],
    words: str,
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))

    code, _, err = run(command, *arguments, APP_URL=database_url)

    assert code == 2
    assert words in err


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--engine", "support.cli_app:misspelt_asyncpg_engine()"], 2, "correct its URL"),
        (["--engine", "support.cli_app:misspelt_engine()"], 3, "no_such"),
        (["--engine", "support.cli_app:engine_of_one_loop()"], 3, "--heart-engine"),
        (["--engine", "support.cli_app:tokenless_engine()"], 2, "cli_app.py"),
        (
            ["--database-url", "postgresql+asyncpg://h/d?prepared_statement_cache_size=x"],
            2,
            "can't connect by this database URL: ValueError",
        ),
    ],
)
def test_a_worker_that_can_not_connect_is_no_traceback(
    tables: Engine,
    database_url: str,
    start: Callable[..., Command],
    arguments: list[str],
    code: int,
    words: str,
) -> None:
    """What a driver makes of its arguments, or an application's listener, is no fault of ours."""
    command = start("worker", "support.cli_app:coroutines", *arguments, APP_URL=database_url)

    assert command.wait() == code, command.stderr
    assert "Traceback" not in command.stderr
    assert words in command.stderr.splitlines()[-1]


# ---- the worker at work -------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize(
    ("jobs", "driver", "kind", "expected"),
    [
        ("functions", "psycopg", "threads", ["one Session"]),
        ("make_functions()", "psycopg2", "threads", ["one Session"]),
        ("functions", "asyncpg", "asyncio", ["one Session"]),
        ("coroutines", "psycopg", "asyncio", ["one AsyncSession"]),
        ("coroutines", "asyncpg", "asyncio", ["one AsyncSession"]),
        ("both", "psycopg", "asyncio", ["one Session", "two AsyncSession"]),
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
    assert "Traceback" not in command.stderr
    with tables.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM bgjob_worker")) == 0


def test_asyncio_without_greenlet_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """SQLAlchemy 2.1 brings it no longer by itself."""

    def refuse(message: str) -> Callable[..., Any]:
        def create(*args: object, **options: object) -> None:
            raise ValueError(message)

        return create

    options = runners.WorkerOptions(
        app="support.cli_app:coroutines", database_url="postgresql+psycopg://h/d"
    )
    create = "sqlalchemy.ext.asyncio.create_async_engine"
    monkeypatch.setattr(create, refuse("the greenlet library is required"))
    with pytest.raises(CommandError, match=r'pip install "sqlalchemy-bgjob\[asyncio\]"'):
        runners.make_runner(options)
    monkeypatch.setattr(create, refuse("something else"))
    with pytest.raises(CommandError, match="something else"):
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
        (["functions", "--session-factory", "OwnSession"], ["one OwnSession"]),
        (["coroutines", "--session-factory", "own_async_sessions"], ["one OwnAsyncSession"]),
        (
            ["both", "--session-factory", "own_sessions", "--session-factory", "OwnAsyncSession"],
            ["one OwnSession", "two OwnAsyncSession"],
        ),
        (["functions", "--engine", "engine()"], ["one Session"]),
        (["coroutines", "--engine", "async_engine()"], ["one AsyncSession"]),
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


# ---- signals ------------------------------------------------------------------------------------


def blocked(
    start: Callable[..., Command], engine: Engine, url: str, folder: Path, kind: str, type: str
) -> Command:
    """A worker with a job that runs until the test lets it go."""
    command = start("worker", f"support.cli_app:{kind}", "--database-url", url)
    getattr(app, kind).enqueue(engine, type, str(folder))
    wait_until((folder / "started").exists, 60, what=f"the start of the job\n{command.stderr}")
    return command


@pytest.mark.parametrize("kind", ["functions", "coroutines"])
def test_the_first_signal_lets_a_job_end(
    tables: Engine,
    database_url: str,
    start: Callable[..., Command],
    tmp_path: Path,
    kind: str,
) -> None:
    command = blocked(start, tables, database_url, tmp_path, kind, "block")

    command.signal(signal.SIGINT)
    command.says("SIGINT: draining")
    assert command.alive
    (tmp_path / "go").touch()

    assert command.wait() == 0
    assert rows(tables) == []


@pytest.mark.core
@pytest.mark.parametrize("kind", ["functions", "coroutines"])
def test_the_second_signal_releases_what_runs(
    tables: Engine,
    database_url: str,
    start: Callable[..., Command],
    tmp_path: Path,
    kind: str,
) -> None:
    """Exit code 128 + n; the job is queued again, and a deploy has cost it no attempt."""
    command = blocked(start, tables, database_url, tmp_path, kind, "block")

    command.signal(signal.SIGTERM)
    command.says("SIGTERM: draining")
    command.signal_again(signal.SIGTERM)

    assert command.wait() == 128 + signal.SIGTERM, command.stderr
    assert rows(tables) == [(0, None, "interrupted by shutdown")]


def test_the_third_signal_ends_even_a_blocked_event_loop(
    tables: Engine, database_url: str, start: Callable[..., Command], tmp_path: Path
) -> None:
    command = blocked(start, tables, database_url, tmp_path, "coroutines", "block_loop")

    command.signal(signal.SIGTERM)
    command.says("SIGTERM: draining")
    command.signal_again(signal.SIGTERM)
    command.says("second signal")
    assert command.alive
    command.signal_again(signal.SIGINT)

    assert command.wait(10) == 128 + signal.SIGINT
    assert [(attempt, claimed is None) for attempt, claimed, _ in rows(tables)] == [(1, False)]


def test_a_job_that_does_not_end_is_released_at_the_timeout(
    tables: Engine, database_url: str, start: Callable[..., Command], tmp_path: Path
) -> None:
    """The stop is still a graceful one, and the stuck thread does not hold up the exit."""
    command = start(
        "worker",
        "support.cli_app:functions",
        BGJOB_DATABASE_URL=database_url,
        BGJOB_SHUTDOWN_TIMEOUT="200ms",
    )
    add(tables, app.block, str(tmp_path))
    wait_until((tmp_path / "started").exists, 60)

    command.signal(signal.SIGTERM)

    assert command.wait() == 0
    assert rows(tables) == [(0, None, "interrupted by shutdown")]


def test_a_worker_that_can_not_end_gives_itself_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A blocked event loop can't even release its jobs; rescue will."""
    code = f"""
        import os, threading
        from sqlalchemy_bgjob._process import process, runners
        from sqlalchemy_bgjob import WorkerSettings
        process.STUCK_AFTER = 0.2
        class Stuck:
            def run(self, ended): threading.Event().wait()
            def request_stop(self, timeout=None): print("asked", timeout)
        settings = WorkerSettings(shutdown_timeout=0.1)
        main = process._Process(runners.WorkerOptions(app="", settings=settings))
        main.obey_signals()
        os.kill(os.getpid(), {int(signal.SIGTERM)})
        main.run(Stuck())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "the worker does not end" in done.stderr


def test_two_signals_that_arrive_as_one_are_two() -> None:
    """The system keeps no count of a pending signal; the supervisor's pipe does."""
    reader, writer = os.pipe()
    asked: list[float | None] = []
    said = threading.Event()

    class Holding:
        def run(self, ended: Callable[[], None]) -> None:
            assert said.wait(10)
            ended()

        def request_stop(self, timeout: float | None = None) -> None:
            asked.append(timeout)
            if len(asked) == 1:
                os.write(writer, b"\0")
            else:
                said.set()

    main = process._Process(runners.WorkerOptions(app="", parent_pipe=reader))
    os.write(writer, b"\0")

    assert main.run(Holding()) == 128 + signal.SIGTERM
    assert asked == [None, 0.0]
    os.close(writer)


def test_threads_of_the_application_do_not_hold_up_the_exit() -> None:
    code = """
        import threading
        from sqlalchemy_bgjob._process.exits import leave
        threading.Thread(target=threading.Event().wait).start()
        leave(3, within=0.1)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False, timeout=60)
    assert done.returncode == 3


def test_ctrl_c_outside_of_a_worker_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import sqlalchemy_bgjob.cli as cli
        def interrupted(*args, **kwargs): raise KeyboardInterrupt
        cli.cli.commands["version"].callback = interrupted
        import sys
        sys.argv = ["bgjob", "version"]
        cli.main()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == 128 + signal.SIGINT


# ---- the database -------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_missing_tables_exit_with_4(
    url_for: UrlFor, start: Callable[..., Command], driver: str
) -> None:
    command = start("worker", "support.cli_app:functions", "--database-url", url_for(driver))

    assert command.wait() == 4
    assert "Error: table 'bgjob_job' does not exist" in command.stderr
    assert "run `sqlalchemy-bgjob migrate`" in command.stderr
    assert "Traceback" not in command.stderr


def test_tables_of_a_later_release_are_refused_with_4_and_left_alone(
    tables: Engine, database_url: str, start: Callable[..., Command]
) -> None:
    """Those that do not bear the workers of this one."""
    with tables.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE bgjob_job ADD COLUMN later text")
        comment = "COMMENT ON TABLE bgjob_job IS 'sqlalchemy-bgjob schema 9 (workers since 8)'"
        connection.exec_driver_sql(comment)
        before = catalog(connection)
    for command in (
        start("worker", "support.cli_app:functions", "--database-url", database_url),
        start("migrate", "--database-url", database_url),
    ):
        assert command.wait() == 4, command.stderr
        assert "of version 9" in command.stderr
        assert "install a newer release" in command.stderr
        assert "Traceback" not in command.stderr

    with tables.connect() as connection:
        assert catalog(connection) == before


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_a_database_that_is_not_there_exits_with_3(
    url_for: UrlFor, start: Callable[..., Command], driver: str
) -> None:
    """It would not come by waiting."""
    url = make_url(url_for(driver)).set(database="no_such_database")
    command = start(
        "worker", "support.cli_app:functions", "--database-url", url.render_as_string(False)
    )

    assert command.wait() == 3
    assert 'database "no_such_database" does not exist' in command.stderr
    assert "Traceback" not in command.stderr


def test_a_wrong_password_exits_with_3_and_a_late_server_is_waited_for(
    own_server: EmbeddedPostgres, start: Callable[..., Command]
) -> None:
    """Two troubles with a connection: waiting mends one of them."""
    engine = create_engine(own_server.url)
    app.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE locked LOGIN PASSWORD 'right'")
    hba = own_server.data_dir / "pg_hba.conf"
    hba.write_text(f"host all locked 127.0.0.1/32 scram-sha-256\n{hba.read_text()}")
    with engine.begin() as connection:
        connection.exec_driver_sql("SELECT pg_reload_conf()")
    for driver in ("psycopg", "asyncpg", "psycopg2"):
        url = make_url(with_driver(own_server.url, driver)).set(username="locked", password="wrong")
        command = start(
            "worker", "support.cli_app:functions", "--database-url", url.render_as_string(False)
        )
        assert command.wait() == 3, driver
        assert "password authentication failed" in command.stderr
        assert "wrong" not in command.stderr
        assert "Traceback" not in command.stderr
    add(engine, app.note, "late")
    engine.dispose()

    own_server._halt("fast")
    waiting = {
        driver: start(
            "worker",
            "support.cli_app:functions",
            "--database-url",
            with_driver(own_server.url, driver),
        )
        for driver in ("psycopg", "asyncpg")
    }
    for command in waiting.values():
        command.says("no connection to the database")
    own_server._launch()
    wait_until(lambda: notes(engine), 60, what="the job of the workers that waited")
    for command in waiting.values():
        command.signal(signal.SIGTERM)
    assert [command.wait() for command in waiting.values()] == [0, 0]
    engine.dispose()


def test_a_worker_without_a_database_obeys_signals(start: Callable[..., Command]) -> None:
    command = start(
        "worker",
        "support.cli_app:functions",
        "--database-url",
        "postgresql+psycopg://127.0.0.1:1/x",
    )
    command.says("no connection to the database")

    command.signal(signal.SIGTERM)

    assert command.wait() == 0


def test_a_refusal_exits_with_3(
    tables: Engine, database_url: str, start: Callable[..., Command]
) -> None:
    """Such as that of a standby."""
    with tables.begin() as connection:
        name = connection.engine.url.database
        connection.exec_driver_sql(
            "CREATE FUNCTION public.pg_is_in_recovery() RETURNS bool LANGUAGE sql AS 'SELECT true'"
        )
        connection.exec_driver_sql(f'ALTER DATABASE "{name}" SET search_path = public, pg_catalog')
    command = start("worker", "support.cli_app:functions", "--database-url", database_url)

    assert command.wait() == 3
    assert "Error: this server is a standby" in command.stderr


def test_a_bug_of_the_worker_exits_with_1_and_its_traceback(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken:
        def run(self, ended: object) -> None:
            raise LookupError("inside")

        def request_stop(self, timeout: float | None = None) -> None: ...

    code = process._Process(runners.WorkerOptions(app="")).run(Broken())

    assert code == 1
    assert caplog.records[0].exc_info is not None
    assert "the worker failed: LookupError" in caplog.text


# ---- logs ---------------------------------------------------------------------------------------


def test_json_logs_are_one_object_a_line_and_nothing_else(
    tables: Engine, database_url: str, start: Callable[..., Command]
) -> None:
    command = start(
        *("worker", "support.cli_app:functions", "--database-url", database_url),
        *("--log-format", "json", "--log-level", "debug"),
    )
    add(tables, app.note, "fine")
    add(tables, app.fail, "the words of the handler")
    wait_until(lambda: notes(tables), 60)
    command.says("next attempt in")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0

    assert command.stdout == ""
    lines = [json.loads(line) for line in command.stderr.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= set(line)
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", line["time"])
    done = next(line for line in lines if "completed" in line["message"])
    assert (done["job_type"], done["queue"], done["attempt"]) == ("note", "default", 1)
    failed = next(line for line in lines if "next attempt" in line["message"])
    assert failed["level"] == "warning"
    assert failed["error"] == "ValueError: the words of the handler"
    assert failed["place"].endswith(" in fail")
    assert (failed["attempt"], failed["max_attempts"]) == (1, 20)


def test_json_logs_hold_the_reason_of_an_exit_too(
    modules: Path, start: Callable[..., Command]
) -> None:
    command = start("worker", "shopbroken:jobs", "--log-format", "json", cwd=modules)

    assert command.wait() == 2
    (line,) = [json.loads(line) for line in command.stderr.splitlines()]
    assert line["level"] == "error"
    assert line["exit_code"] == 2
    assert "importing 'shopbroken' failed" in line["message"]
    assert "ZeroDivisionError" in line["exception"]


def test_json_logs_hold_warnings_and_uncaught_exceptions(
    tmp_path: Path, start: Callable[..., Command]
) -> None:
    (tmp_path / "noisy.py").write_text(
        "import threading, warnings\n"
        "warnings.warn('old')\n"
        "def fail(): raise ValueError('thread')\n"
        "thread = threading.Thread(target=fail, name='mine'); thread.start(); thread.join()\n"
    )
    command = start("worker", "noisy:jobs", "--log-format", "json", cwd=tmp_path)

    assert command.wait() == 2
    messages = [json.loads(line)["message"] for line in command.stderr.splitlines()]
    assert any("UserWarning: old" in message for message in messages)
    assert "uncaught ValueError in thread 'mine'" in messages


def test_an_uncaught_exception_is_logged_too(tmp_path: Path) -> None:
    code = """
        from sqlalchemy_bgjob._process import logs
        logs.configure("json", "info", None)
        raise LookupError("outside of everything")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False
    )
    line = json.loads(done.stderr)
    assert (line["level"], line["message"]) == ("critical", "uncaught LookupError")
    assert "outside of everything" in line["exception"]


def test_a_record_becomes_json_whatever_it_holds() -> None:
    formatter = JsonFormatter("2")
    record = logging.makeLogRecord(
        {"msg": "hello %s", "args": ("\ud800\n",), "levelname": "INFO", "name": "x", "created": 0.0}
    )
    record.number, record.thing, record.process_ = 3, object, float("nan")  # type: ignore[attr-defined]
    record.stack_info = "Stack"

    line = json.loads(formatter.format(record))

    assert "\n" not in formatter.format(record)
    assert line["message"] == "hello \ud800\n"
    assert line["time"] == "1970-01-01T00:00:00.000+00:00"
    assert line["process"] == "2"
    assert line["process_"] == "nan"
    assert line["stack"] == "Stack"


def test_of_lines_that_nobody_reads_only_some_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each in a thread of its own: a process that crashes for days would need ever more."""
    read, said = threading.Event(), []

    def log(level: int, words: str) -> None:
        read.wait(60)
        said.append(words)

    monkeypatch.setattr(logs.logger, "log", log)
    monkeypatch.setattr(logs, "_MOST_UNSAID", 1)
    logs.say(logging.INFO, "first")
    logs.say(logging.INFO, "second")
    read.set()
    wait_until(lambda: said)

    monkeypatch.setattr(logs, "_MOST_UNSAID", 2)
    logs.say(logging.INFO, "third")
    assert said == ["first", "third"]


def test_a_line_that_no_thread_is_left_for_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever handles a signal says it, and must go on."""

    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    asked: list[float | None] = []
    worker: Any = SimpleNamespace(request_stop=lambda timeout=None: asked.append(timeout))
    main = process._Process(runners.WorkerOptions(app="unused"))
    main._own = Requests(itertools.count(step=2.0).__next__)

    with main._events:
        for _ in range(2):
            main._on_signal(signal.SIGTERM, None)
            main._stop(worker, "signal")

    assert asked == [None, 0.0]
