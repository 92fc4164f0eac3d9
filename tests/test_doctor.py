"""``doctor`` finds what is wrong, says what to do, and is content with what is right."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import _doctor, _health
from sqlalchemy_bgjob._errors import sqlstate
from sqlalchemy_bgjob.cli import cli
from support import wait_until
from support.databases import with_driver
from support.tables import NAMES, create_all

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.core

PLAIN = NAMES["plain"]


@pytest.fixture
def tables(engine: Engine) -> Engine:
    with engine.begin() as connection:
        create_all(connection, PLAIN)
    return engine


def run(engine: Engine, *sql: str) -> None:
    with engine.begin() as connection:
        for statement in sql:
            connection.execute(text(statement))


def examine(engine: Engine, **where: Any) -> list[_doctor.Finding]:
    with engine.connect() as connection:
        return _doctor.examine(connection, **{"schema": None, "table_prefix": "bgjob_"} | where)


def problems(engine: Engine, **where: Any) -> list[str]:
    return [found.text for found in examine(engine, **where) if found.level == "problem"]


def test_a_healthy_database_is_fine(tables: Engine) -> None:
    found = examine(tables)

    assert {finding.level for finding in found} == {"ok"}, found
    assert [finding.check for finding in found] == [
        "server",
        "encoding",
        "pooler",
        "clock",
        "tables",
        "structure",
        "storage",
        "foreign keys",
        "privileges",
        "vacuum and notifications",
        "workers",
        "queues",
    ]


@pytest.mark.parametrize("name", ["schema", "weird", "prefix", "no_prefix"])
def test_the_tables_may_be_called_anything(engine: Engine, name: str) -> None:
    names = NAMES[name]
    with engine.begin() as connection:
        create_all(connection, names)

    assert problems(engine, **names.where) == []


def test_missing_tables_are_told_with_the_command(engine: Engine) -> None:
    (problem,) = problems(engine)
    assert "sqlalchemy-bgjob migrate" in problem


@pytest.mark.parametrize(
    ("broken", "told"),
    [
        ("DROP INDEX bgjob_job_claim_idx", "has no index 'bgjob_job_claim_idx' on (queue, prior"),
        (
            (
                "DROP INDEX bgjob_job_claim_idx; CREATE INDEX bgjob_job_claim_idx ON bgjob_job"
                " (queue, priority, next_run_at, id) WHERE claimed_by IS NULL"
            ),
            "the index 'bgjob_job_claim_idx' is not on (queue, priority, next_run_at, id) alone",
        ),
        (
            "DROP INDEX bgjob_job_claim_idx; CREATE INDEX bgjob_job_claim_idx ON bgjob_job (queue)",
            "the index 'bgjob_job_claim_idx' is not on (queue, priority, next_run_at, id) alone",
        ),
        (
            (
                "UPDATE pg_index SET indisvalid = false"
                " WHERE indexrelid = 'bgjob_dead_job_job_id_idx'::regclass"
            ),
            "the index 'bgjob_dead_job_job_id_idx' is invalid; REINDEX it",
        ),
        (
            "ALTER TABLE bgjob_job DROP COLUMN unknown_since",
            "has no column 'unknown_since'; restore it",
        ),
        ("ALTER TABLE bgjob_job DROP CONSTRAINT bgjob_job_pkey", "no constraint 'bgjob_job_pkey'"),
        ("ALTER TABLE bgjob_job RESET (fillfactor)", "ALTER TABLE bgjob_job SET (fillfactor = 50)"),
        (
            "CREATE TABLE receipt (job_id text REFERENCES bgjob_job)",
            "a job that it refers to cannot end; make it ON DELETE SET NULL or ON DELETE CASCADE",
        ),
        (
            (
                "INSERT INTO bgjob_worker"
                " (id, hostname, pid, version, queues, lease_timeout, beat_at)"
                " VALUES (7, 'far', 42, '0', '{}', 30, now() - interval '1 hour')"
            ),
            "worker 7 (pid 42 on far) has been silent for 3600 s",
        ),
        (
            (
                "INSERT INTO bgjob_job (id, queue, type, priority, next_run_at)"
                " VALUES ('a', 'mail', 't', 3, now() - interval '2 min'),"
                " ('b', 'mail', 't', 0, now() + interval '1 h'), ('c', 'other', 't', 0, now())"
            ),
            "queue 'mail': a job has been due for 120 s, and no worker serves this queue",
        ),
        (
            (
                "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout)"
                " VALUES (7, 'near', 42, '0', '{\"mail\": 10}', 30);"
                "INSERT INTO bgjob_job (id, queue, type, next_run_at)"
                " VALUES ('a', 'mail', 't', now() - interval '2 min')"
            ),
            "queue 'mail': a job has been due for 120 s, and its workers are busy or stuck",
        ),
    ],
)
def test_what_is_wrong_is_told(tables: Engine, broken: str, told: str) -> None:
    """One thing is wrong, and one problem is told."""
    run(tables, broken.replace(":", "\\:"))

    (problem,) = problems(tables)

    assert told in problem


def test_an_index_that_was_given_up_half_way_is_told(tables: Engine) -> None:
    """CREATE INDEX CONCURRENTLY leaves it behind when it is cancelled, and nobody uses it."""
    run(tables, "DROP INDEX bgjob_job_claim_idx")
    create = (
        "CREATE INDEX CONCURRENTLY bgjob_job_claim_idx ON bgjob_job"
        " (queue, priority, next_run_at, id) WITH (fillfactor = 50)"
    )
    waits = (
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND starts_with(query, 'CREATE INDEX') AND wait_event_type = 'Lock'"
    )
    alone = tables.execution_options(isolation_level="AUTOCOMMIT")

    def build() -> str | None:
        with alone.connect() as connection, pytest.raises(DBAPIError) as ended:
            connection.exec_driver_sql(create)
        return sqlstate(ended.value)

    def waiting() -> int | None:
        with alone.connect() as connection:
            return connection.exec_driver_sql(waits).scalar()

    with ThreadPoolExecutor() as pool, tables.connect() as writer:
        writer.exec_driver_sql("INSERT INTO bgjob_job (id, queue, type) VALUES ('a', 'q', 't')")
        building = pool.submit(build)
        pid = wait_until(waiting, what="the build to wait")
        writer.exec_driver_sql(f"SELECT pg_cancel_backend({pid})")
        assert building.result(20) == "57014"
        writer.rollback()

    (problem,) = problems(tables)
    assert problem == "the index 'bgjob_job_claim_idx' is invalid; REINDEX it"
    with alone.connect() as connection:
        connection.exec_driver_sql("REINDEX INDEX CONCURRENTLY bgjob_job_claim_idx")
    assert problems(tables) == []


def test_what_a_role_lacks_is_told(tables: Engine) -> None:
    role = f"doctor_{tables.url.database}"
    password = "for this test"
    run(tables, f"CREATE ROLE \"{role}\" LOGIN PASSWORD '{password}'")
    try:
        poor = create_engine(tables.url.set(username=role, password=password))
        found = examine(poor)
        poor.dispose()
    finally:
        run(tables, f'DROP OWNED BY "{role}"', f'DROP ROLE "{role}"')

    told = [finding.text for finding in found if finding.level == "problem"]
    assert [text.split(" which")[0] for text in told] == [
        'this role lacks SELECT, INSERT, UPDATE, DELETE ON "bgjob_job",',
        'this role lacks INSERT, SELECT ("job_id") ON "bgjob_dead_job",',
        'this role lacks SELECT, INSERT, UPDATE, DELETE ON "bgjob_worker",',
    ]
    assert "sqlalchemy-bgjob grants --worker ROLE" in told[0]
    assert found[-1] == _doctor.Finding(
        "workers", "note", "this role may not look at jobs and workers"
    )


# ---- what holds vacuum back -----------------------------------------------------------------


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A transaction is too old as soon as it is there."""
    monkeypatch.setattr(_health, "HELD_BACK_AFTER", 0.0)
    return


@pytest.mark.usefixtures("at_once")
def test_a_transaction_that_stays_open_is_named(tables: Engine) -> None:
    other = create_engine(tables.url, connect_args={"application_name": "report"})
    with other.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

        (problem,) = problems(tables)

    other.dispose()
    assert f"session {pid} (report, idle in transaction) has been open for 0 s" in problem
    assert f"SELECT pg_terminate_backend({pid})" in problem
    assert problems(tables) == []


def test_a_transaction_that_is_short_is_none_of_it(tables: Engine) -> None:
    with tables.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        connection.execute(text("SELECT 1"))
        assert problems(tables) == []


@pytest.mark.parametrize(
    ("holder", "words"),
    [
        (
            _health.Holder("prepared transaction", "gid-1", None, None, 70.0, 5),
            "prepared transaction 'gid-1' has been open for 70 s",
        ),
        (
            _health.Holder("replication slot", "standby", None, None, None, 2_000_000),
            "replication slot 'standby' is 2000000 transactions behind",
        ),
        (_health.Holder("replication slot", "standby", None, None, None, 2), ""),
        (_health.Holder("session", "", 7, "active", 59.0, 5), ""),
        (
            _health.Holder("session", "", 7, "active", 61.0, 5),
            "session 7 (no application_name, active) has been open for 61 s",
        ),
    ],
)
def test_each_kind_of_holder_is_told_in_words(holder: _health.Holder, words: str) -> None:
    found = _health.Health(holder, (), 0.0).problems

    assert found == [] if not words else words in found[0]


def test_dead_rows_and_full_notifications_are_told() -> None:
    health = _health.Health(None, (_health.DeadRows("bgjob_job", 200_000, 10),), 0.75)

    dead, full = health.problems

    assert "bgjob_job has 200000 dead rows and 10 live ones" in dead
    assert "the server's notification queue is 75% full" in full


# ---- the command ----------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_the_command_prints_what_was_looked_at(tables: Engine, driver: str) -> None:
    url = with_driver(tables.url.render_as_string(hide_password=False), driver)

    fine = CliRunner().invoke(cli, ["doctor", "--database-url", url], standalone_mode=False)
    run(tables, "DROP INDEX bgjob_job_claim_idx")
    broken = CliRunner().invoke(
        cli, ["doctor", "--database-url", url, "--json"], standalone_mode=False
    )

    assert fine.return_value == 0, fine.output
    assert "ok       structure: as designed\n" in fine.output
    assert broken.return_value == 1
    lines = [json.loads(line) for line in broken.output.splitlines()]
    assert [line["check"] for line in lines if line["level"] == "problem"] == ["structure"]
