"""``check``: a probe that looks whether this host's workers beat."""

from __future__ import annotations

import json
import os
import socket
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from sqlalchemy_bgjob import Worker
from support import cli_app as app
from support.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from support.commands import Command
    from support.proxy import Proxy


@pytest.fixture
def url(tables: Engine, in_process: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database that has the tables, and no worker."""
    for name in ("BGJOB_DATABASE_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return tables.url.render_as_string(hide_password=False)


def register(engine: Engine, id: int, *, pid: int, silent: float, lost: bool = False) -> None:
    """A worker of this host that has beaten N seconds ago; a real one would beat again."""
    row = text(
        "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout, started_at,"
        " beat_at, lost_at) VALUES (:id, :host, :pid, 'x', '{}', 30, now(),"
        " clock_timestamp() - :silent * interval '1 s', CASE WHEN :lost THEN now() END)"
    )
    given = {"id": id, "host": socket.gethostname(), "pid": pid, "silent": silent, "lost": lost}
    with engine.begin() as connection:
        connection.execute(row, given)


def test_a_host_without_a_worker_fails_and_says_what_to_ask(url: str) -> None:
    code, out, err = run("check", "--database-url", url)

    assert (code, out) == (1, "")
    assert f"no worker of host {socket.gethostname()!r} is registered" in err
    assert "schema and table prefix?" in err


def test_a_worker_that_works_passes(url: str, tables: Engine) -> None:
    with Worker(app.functions, tables, queues={"default": 1}):
        code, out, _ = run("check", "--database-url", url, "--pid", str(os.getpid()))

    assert code == 0
    assert f"pid {os.getpid()}: beats, last heartbeat" in out


def test_a_schema_may_have_a_colon_in_its_name(url: str) -> None:
    where = ("--database-url", url, "--schema", "jobs :b")
    assert run("migrate", *where)[0] == 0

    code, _, err = run("check", *where)

    assert code == 1
    assert "no worker of host" in err


def test_a_worker_is_looked_for_by_host_and_pid(url: str, tables: Engine) -> None:
    register(tables, 7, pid=70, silent=0)

    own = run("check", "--database-url", url, "--pid", "70", "--json")
    other = run("check", "--database-url", url, "--pid", "71")
    elsewhere = run("check", "--database-url", url, "--host", "elsewhere")

    assert own[0] == 0
    assert {name: json.loads(own[1])[name] for name in ("id", "pid", "alive", "lost")} == {
        "id": 7,
        "pid": 70,
        "alive": True,
        "lost": False,
    }
    assert (other[0], elsewhere[0]) == (1, 1)
    assert "with pid 71 is registered" in other[2]


def test_silent_and_lost_workers_fail_unless_one_beats(url: str, tables: Engine) -> None:
    register(tables, 7, pid=70, silent=31)
    register(tables, 8, pid=80, silent=3_600, lost=True)
    none = run("check", "--database-url", url)
    register(tables, 9, pid=90, silent=0)
    one = run("check", "--database-url", url)

    assert (none[0], one[0]) == (1, 0)
    assert "pid 70: silent, last heartbeat 3" in none[1]
    assert "pid 80: lost, last heartbeat 36" in none[1]
    assert one[1].startswith("worker 9, pid 90: beats"), "the latest comes first"


def test_missing_tables_and_servers_have_their_own_codes(engine: Engine, in_process: None) -> None:
    url = engine.url.render_as_string(hide_password=False)

    no_tables = run("check", "--database-url", url, "--table-prefix", "none_")
    no_server = run("check", "--database-url", "postgresql+psycopg://127.0.0.1:1/x")

    assert no_tables[0] == 4
    assert "sqlalchemy-bgjob migrate" in no_tables[2]
    assert no_server[0] == 3


def test_a_database_that_refuses_is_no_reason_to_restart(url: str, tables: Engine) -> None:
    with tables.begin() as connection:
        connection.execute(text("ALTER TABLE bgjob_worker RENAME COLUMN pid TO other"))

    assert run("check", "--database-url", url)[0] == 3


def test_a_database_that_does_not_answer_is_given_up(
    tables: Engine, proxy: Proxy, start: Callable[..., Command]
) -> None:
    proxy.blackhole()

    command = start("check", "--database-url", proxy.url, "--timeout", "0.5")

    assert command.wait() == 3
    assert "has not answered within 0.5 s" in command.stderr


def test_database_url_is_the_fallback_and_that_is_told(
    url: str, tables: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run("check", DATABASE_URL=url)
    own = run("check", DATABASE_URL="postgresql://127.0.0.1:1/x", BGJOB_DATABASE_URL=url)

    assert code == 1
    assert err.startswith("using the database of DATABASE_URL")
    assert own[0] == 1
    assert "DATABASE_URL" not in own[2]


def test_a_command_that_connects_several_times_tells_it_once(url: str) -> None:
    _, out, err = run("jobs", "cancel", "queue:mail", "--yes", DATABASE_URL=url)

    assert out == "the search finds 0 jobs\ncancelled 0 jobs\n"
    assert err == "using the database of DATABASE_URL\n"
