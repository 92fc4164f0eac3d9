"""The options of ``worker``: flags, variables, units, and what is wrong usage."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

import pytest
from click import UsageError

from sqlalchemy_bgjob import Queue as Served
from sqlalchemy_bgjob import WorkerSettings
from sqlalchemy_bgjob._process import process, runners
from sqlalchemy_bgjob.cli.param_types import Queue, Seconds, Size
from support.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.commands import Command


def test_each_setting_has_a_flag_and_a_variable(
    parsed: Callable[..., runners.WorkerOptions],
) -> None:
    assert parsed("app:jobs").settings == WorkerSettings()

    for field in fields(WorkerSettings):
        flag = "--" + field.name.replace("_", "-")
        if isinstance(field.default, bool):
            other: Any = not field.default
            arguments = [flag if other else flag.replace("--", "--no-")]
        else:
            other = type(field.default)(field.default / 2)
            arguments = [flag, str(other)]
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


def test_the_rest_may_come_from_the_environment_too(
    parsed: Callable[..., runners.WorkerOptions],
) -> None:
    options = parsed(
        BGJOB_APP="app:jobs",
        BGJOB_DATABASE_URL="postgresql://host/db",
        BGJOB_QUEUE="mail:3 default",
        BGJOB_SESSION_FACTORY="app:Session",
        BGJOB_ENGINE="app:engine",
        BGJOB_LIFESPAN="app:lifespan",
    )

    assert options.app == "app:jobs"
    assert options.database_url == "postgresql://host/db"
    assert options.queues == {"mail": 3, "default": 10}
    assert options.session_factories == ("app:Session",)
    assert options.engine == "app:engine"
    assert options.lifespan == "app:lifespan"
    assert parsed("other:jobs", "--queue", "a:1", BGJOB_APP="app:jobs").app == "other:jobs"


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *(("300000000", 300_000_000), ("64K", 65_536), ("512M", 2**29), ("512 MiB", 2**29)),
        *(("1.5g", 1_610_612_736), ("2TB", 2**41), (7, 7)),
    ],
)
def test_sizes_have_units(given: object, expected: int) -> None:
    assert Size().convert(given, None, None) == expected


@pytest.mark.parametrize("given", ["", "M", "-1M", "1.5.2G", "3X", "1e9"])
def test_a_size_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="is not a size such as 300000000"):
        Size().convert(given, None, None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        *(("2.5", 2.5), ("500ms", 0.5), ("30s", 30.0), ("5m", 300.0)),
        *(("1h", 3600.0), ("30d", 2.592e6), (3, 3.0)),
    ],
)
def test_durations_have_units(given: object, expected: float) -> None:
    assert Seconds().convert(given, None, None) == expected


@pytest.mark.parametrize("given", ["", "s", "5md", "1w", "nan", "inf", "-infs"])
def test_a_duration_that_is_none_is_refused(given: str) -> None:
    with pytest.raises(UsageError, match="is not a duration such as"):
        Seconds().convert(given, None, None)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("mail:3", ("mail", 3)),
        ("mail", ("mail", 10)),
        ("a:b:3", ("a:b", 3)),
        ("a,b:3", ("a,b", 3)),
        (("a", 1), ("a", 1)),
        ("mail:3:time", ("mail", Served(3, order="time"))),
        ("a:b:3:time", ("a:b", Served(3, order="time"))),
        ("time", ("time", 10)),
        ("mail:time:3", ("mail:time", 3)),
    ],
)
def test_queues_have_a_concurrency_and_an_order(
    given: object, expected: tuple[str, int | Served]
) -> None:
    assert Queue().convert(given, None, None) == expected


BY_URL = ["--database-url", "postgresql+psycopg://127.0.0.1:1/x"]


@pytest.mark.core
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--queue", "mail:0"], "'mail:0' is not name:concurrency"),
        (["--queue", ":3"], "':3' is not name:concurrency"),
        (["--queue", "mail:0:time"], "'mail:0:time' is not name:concurrency"),
        (["--queue", "mail:time"], "a name with a colon needs both: mail:time:10"),
        (["--queue", "tenant:mail"], "a name with a colon needs both: tenant:mail:10"),
        (["--queue", "a:1", "--queue", "a:2"], "a queue is named twice"),
        (["--poll-interval", "soon"], "'soon' is not a duration"),
        (["--poll-interval", "3x"], "'3x' is not a duration"),
        (["--poll-interval", "nan"], "is not a duration such as"),
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
    monkeypatch: pytest.MonkeyPatch, in_process: None, arguments: list[str], words: str
) -> None:
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
