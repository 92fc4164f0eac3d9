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
    from sqlalchemy import Engine


@pytest.fixture
def url(tables: Engine, in_process: None, monkeypatch: pytest.MonkeyPatch) -> str:
    """A database that has the tables, and no worker."""
    for name in ("BGJOB_DATABASE_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    return tables.url.render_as_string(hide_password=False)


def set_beat(engine: Engine, seconds: float) -> None:
    with engine.begin() as connection:
        age = text("UPDATE bgjob_worker SET beat_at = clock_timestamp() - :age * interval '1 s'")
        connection.execute(age, {"age": seconds})


def test_a_host_without_a_worker_fails_and_says_what_to_ask(url: str) -> None:
    code, out, err = run("check", "--database-url", url)

    assert (code, out) == (1, "")
    assert f"no worker of host {socket.gethostname()!r} is registered" in err
    assert "schema and table prefix?" in err


def test_a_worker_that_beats_passes_until_it_is_silent(url: str, tables: Engine) -> None:
    slow = {"heartbeat_interval": 300, "lease_timeout": 900}
    with Worker(app.functions, tables, queues={"default": 1}, **slow):
        passes = run("check", "--database-url", url)
        own = run("check", "--database-url", url, "--pid", str(os.getpid()), "--json")
        other = run("check", "--database-url", url, "--pid", "1")
        elsewhere = run("check", "--database-url", url, "--host", "elsewhere")
        set_beat(tables, 901)
        silent = run("check", "--database-url", url)

    assert passes[0] == 0
    assert f"pid {os.getpid()}: beats, last heartbeat" in passes[1]
    assert own[0] == 0
    assert json.loads(own[1])["alive"] is True
    assert (other[0], elsewhere[0]) == (1, 1)
    assert "with pid 1 is registered" in other[2]
    assert silent[0] == 1
    assert "silent, last heartbeat 901" in silent[1]


def test_one_of_two_processes_that_beats_is_enough(url: str, tables: Engine) -> None:
    with Worker(app.functions, tables, queues={"default": 1}):
        with tables.begin() as connection:
            connection.execute(
                text(
                    "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout, "
                    "started_at, beat_at, lost_at) SELECT 1, hostname, 1, version, queues, 30, "
                    "now(), now() - interval '1 h', now() FROM bgjob_worker"
                )
            )
        code, out, _ = run("check", "--database-url", url)

    assert code == 0
    assert "pid 1: lost, last heartbeat 3600" in out


def test_missing_tables_and_servers_have_their_own_codes(engine: Engine, in_process: None) -> None:
    url = engine.url.render_as_string(hide_password=False)

    no_tables = run("check", "--database-url", url, "--table-prefix", "none_")
    no_server = run("check", "--database-url", "postgresql+psycopg://127.0.0.1:1/x")

    assert no_tables[0] == 4
    assert "sqlalchemy-bgjob migrate" in no_tables[2]
    assert no_server[0] == 3


def test_database_url_is_the_fallback_and_that_is_told(
    url: str, tables: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, _, err = run("check", DATABASE_URL=url)
    own = run("check", DATABASE_URL="postgresql://127.0.0.1:1/x", BGJOB_DATABASE_URL=url)

    assert code == 1
    assert err.startswith("the database is that of DATABASE_URL, as BGJOB_DATABASE_URL is not set")
    assert own[0] == 1
    assert "DATABASE_URL" not in own[2]
