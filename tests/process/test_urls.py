"""Database URLs of the command line: the driver, its parameters; no password is printed."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import make_url

from sqlalchemy_bgjob._process.engines import cant_connect
from sqlalchemy_bgjob._process.exits import CommandError
from sqlalchemy_bgjob._process.urls import database_url as parse_url
from sqlalchemy_bgjob._process.urls import sync_url
from support.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import UrlFor
    from sqlalchemy_bgjob._process import runners


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
    """Which drivers seem to be missing."""
    drivers = SimpleNamespace(missing=set())
    monkeypatch.setattr(
        "sqlalchemy_bgjob._process.urls.is_installed", lambda name: name not in drivers.missing
    )
    return drivers


def test_a_url_without_a_driver_takes_the_first_installed(
    installed: SimpleNamespace, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the release of SQLAlchemy would take; the log says which."""
    caplog.set_level(logging.INFO)
    for missing, driver in ((set(), "psycopg"), ({"psycopg"}, "asyncpg"), ({"asyncpg"}, "psycopg")):
        installed.missing = missing
        assert parse_url("postgres://u:p@h/d").drivername == f"postgresql+{driver}"
        assert parse_url("postgresql://u:p@h/d").password == "p"
    assert "names no driver: using asyncpg" in caplog.text

    installed.missing = {"psycopg", "asyncpg", "psycopg2"}
    with pytest.raises(CommandError, match=r'pip install "sqlalchemy-bgjob\[psycopg\]"'):
        parse_url("postgresql://h/d")
    with pytest.raises(CommandError, match=r'sqlalchemy-bgjob\[asyncpg\]" \(installed: none\)'):
        parse_url("postgresql+asyncpg://h/d")


def test_functions_beside_asyncpg_get_a_driver_for_threads(
    installed: SimpleNamespace,
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
    installed.missing = {"psycopg", "asyncpg", "psycopg2"}
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
