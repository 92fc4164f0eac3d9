"""Commands that connect as the application does, by ``--engine``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqlalchemy_bgjob import schema
from support.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from support.commands import Command


@pytest.mark.parametrize("own", ["tenant_engine()", "tenant_asyncpg_engine()"])
def test_migrate_and_doctor_take_an_engine(
    engine: Engine, database_url: str, in_process: None, own: str
) -> None:
    """Its options and listeners decide which tables are meant."""
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


@pytest.mark.parametrize("command", ["migrate", "doctor", "import-bgjob", "queues"])
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
    in_process: None,
    command: str,
    arguments: list[str],
    words: str,
) -> None:
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
