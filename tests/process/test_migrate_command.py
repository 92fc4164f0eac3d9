"""``migrate`` makes the tables, prints SQL, and says what is in its way."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, make_url

from sqlalchemy_bgjob import schema
from support.cli import run
from support.databases import with_driver

if TYPE_CHECKING:
    from conftest import UrlFor
    from support.tuning import Tune


@pytest.mark.core
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_migrate_makes_the_tables_once(driver: str, url_for: UrlFor, engine: Engine) -> None:
    url = url_for(driver)

    assert run("migrate", "--database-url", url) == (
        0,
        "created the tables bgjob_*, version 2\n",
        "",
    )
    with engine.connect() as connection:
        assert schema.db_version(connection) == schema.LATEST
    code, out, _ = run("migrate", BGJOB_DATABASE_URL=url)
    assert (code, out) == (0, "the tables bgjob_* are of version 2: nothing to do\n")


def test_migrate_uses_schema_and_prefix(engine: Engine, database_url: str) -> None:
    where = ["--schema", "shop", "--table-prefix", "q_"]
    code, out, _ = run("migrate", "--database-url", database_url, *where)

    assert (code, out) == (0, "created the tables q_* in schema shop, version 2\n")
    with engine.connect() as connection:
        assert schema.db_version(connection, schema="shop", table_prefix="q_") == 2


def test_migrate_prints_the_same_as_sql(engine: Engine) -> None:
    code, up, _ = run("migrate", "--sql", "--schema", "shop")
    assert code == 0
    assert up == schema.migration_sql(schema="shop")
    code, down, _ = run("migrate", "--sql", "--schema", "shop", "--from", "2", "--to", "0")
    assert code == 0

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.exec_driver_sql(up)
        assert schema.db_version(connection, schema="shop") == 2
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
    database_url: str, monkeypatch: pytest.MonkeyPatch, tune: Tune
) -> None:
    tune(schema, LATEST=3)
    monkeypatch.setattr(schema, "migrate_online", lambda connection, **where: 2)

    code, out, _ = run("migrate", "--database-url", database_url)

    assert (code, out) == (0, "migrated the tables bgjob_* from version 2 to 3\n")
