"""A worker process and its database: exit codes, and what is waited for."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, create_engine, make_url

from sqlalchemy_bgjob._process import process, runners
from support import cli_app as app
from support.catalog import catalog
from support.cli import add, notes
from support.databases import with_driver
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import UrlFor
    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres
    from support.commands import Command


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


def test_tables_of_a_later_release_exit_with_4_unchanged(
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


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
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


def test_a_wrong_password_exits_with_3_a_late_server_does_not(
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
