"""``migrate --records`` and ``grants --records``."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqlalchemy_bgjob import schema
from support.cli import run

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from conftest import UrlFor

MADE = "the tables of records are of version 1\n"


@pytest.mark.core
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_migrate_makes_the_tables_of_records(driver: str, url_for: UrlFor, engine: Engine) -> None:
    """At any time, and any number of times."""
    url = url_for(driver)
    assert run("migrate", "--database-url", url)[0] == 0
    with engine.connect() as connection:
        assert schema.records.db_version(connection) == 0

    for _ in range(2):
        code, out, _ = run("migrate", "--records", "--database-url", url)
        assert (code, out) == (0, f"the tables bgjob_* are of version 2: nothing to do\n{MADE}")

    with engine.connect() as connection:
        schema.records.check(connection)


def test_the_sql_of_them_is_printed_alone() -> None:
    code, out, _ = run("migrate", "--sql", "--records", "--from", "2")

    assert code == 0
    assert out == schema.migration_sql(from_version=2, records=True)
    assert "CREATE TABLE bgjob_record" in out
    assert "bgjob_job" not in out
    assert "bgjob_record" not in run("migrate", "--sql")[1]


def test_another_programs_table_is_in_the_way(engine: Engine, database_url: str) -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE bgjob_minute (id int)")

    code, _, err = run("migrate", "--records", "--database-url", database_url)

    assert code == 4
    assert "bgjob_minute" in err
    assert "another program's" in err


def test_grants_name_the_tables_only_if_asked() -> None:
    without = run("grants", "--worker", "jobs", "--dashboard", "eyes")[1]
    both = run("grants", "--worker", "jobs", "--dashboard", "eyes", "--records")[1]

    assert "bgjob_record" not in without
    assert 'GRANT SELECT, INSERT, UPDATE, DELETE ON "bgjob_record" TO "jobs";' in both
    seen = next(line for line in both.splitlines() if '"bgjob_record" TO "eyes"' in line)
    assert '"result"' not in seen
