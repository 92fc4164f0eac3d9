"""``doctor`` finds what is wrong, says what to do, and is content with what is right."""

from __future__ import annotations

import json
import re
import shlex
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from click.testing import CliRunner
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import Worker, enqueue_many
from sqlalchemy_bgjob._db.errors import sqlstate
from sqlalchemy_bgjob._inspect import doctor
from sqlalchemy_bgjob._inspect import health as health_module
from sqlalchemy_bgjob._process.queue_names import refuse_lists
from sqlalchemy_bgjob.cli import cli
from support import wait_until
from support.databases import with_driver
from support.tables import NAMES, create_all, new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tuning import Tune

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


def examine(engine: Engine, **where: Any) -> list[doctor.Finding]:
    with engine.connect() as connection:
        return doctor.examine(connection, **{"schema": None, "table_prefix": "bgjob_"} | where)


def problems(engine: Engine, **where: Any) -> list[str]:
    return [found.text for found in examine(engine, **where) if found.level == "problem"]


def without_seconds(text: str) -> str:
    """As it is told on a machine of any speed."""
    return re.sub(r"\b\d+ s\b", "N s", text)


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
        "row security",
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
        ("DROP INDEX bgjob_job_due_idx", "has no index 'bgjob_job_due_idx' on (queue, prior"),
        (
            (
                "DROP INDEX bgjob_job_due_idx; CREATE INDEX bgjob_job_due_idx ON bgjob_job"
                " (queue, priority, next_run_at, id) WHERE claimed_by IS NULL"
            ),
            (
                "the index 'bgjob_job_due_idx' is not on (queue, priority, next_run_at, id)"
                " WHERE priority >= -32768"
            ),
        ),
        (
            "DROP INDEX bgjob_job_due_idx; CREATE INDEX bgjob_job_due_idx ON bgjob_job (queue)",
            (
                "the index 'bgjob_job_due_idx' is not on (queue, priority, next_run_at, id)"
                " WHERE priority >= -32768"
            ),
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
            "worker 7 (pid 42 on far) has been silent for N s",
        ),
        (
            (
                "INSERT INTO bgjob_job (id, queue, type, priority, next_run_at)"
                " VALUES ('a', 'mail', 't', 3, now() - interval '2 min'),"
                " ('b', 'mail', 't', 0, now() + interval '1 h'),"
                " ('c', 'other', 't', 0, now() + interval '1 h')"
            ),
            "queue 'mail': 1 job is due, the first for N s, and no worker serves this queue",
        ),
        (
            (
                "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout)"
                " VALUES (7, 'near', 42, '0', '{\"mail\": 10}', 30);"
                "INSERT INTO bgjob_job (id, queue, type, next_run_at)"
                " VALUES ('a', 'mail', 't', now() - interval '2 min')"
            ),
            "queue 'mail': 1 job is due, the first for N s, and its workers are busy or stuck",
        ),
    ],
)
def test_what_is_wrong_is_told(tables: Engine, broken: str, told: str) -> None:
    """One thing is wrong, and one problem is told."""
    run(tables, broken.replace(":", "\\:"))

    (problem,) = problems(tables)

    assert told in without_seconds(problem)


def test_an_index_that_was_given_up_half_way_is_told(tables: Engine) -> None:
    """CREATE INDEX CONCURRENTLY leaves it behind when it is cancelled, and nobody uses it."""
    run(tables, "DROP INDEX bgjob_job_due_idx")
    create = (
        "CREATE INDEX CONCURRENTLY bgjob_job_due_idx ON bgjob_job"
        " (queue, priority, next_run_at, id) WITH (fillfactor = 50) WHERE priority >= -32768"
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
    assert problem == "the index 'bgjob_job_due_idx' is invalid; REINDEX it"
    with alone.connect() as connection:
        connection.exec_driver_sql("REINDEX INDEX CONCURRENTLY bgjob_job_due_idx")
    assert problems(tables) == []


def test_what_an_interrupted_reindex_has_left_is_told(tables: Engine) -> None:
    run(tables, "CREATE INDEX bgjob_job_due_idx_ccnew1 ON bgjob_job (id)")
    run(
        tables,
        "UPDATE pg_index SET indisvalid = false"
        " WHERE indexrelid = CAST('bgjob_job_due_idx_ccnew1' AS regclass)",
    )

    (problem,) = problems(tables)

    assert problem == (
        "the index bgjob_job_due_idx_ccnew1 was left by an interrupted REINDEX, and slows every "
        "write; once none goes on: sqlalchemy-bgjob migrate, or DROP INDEX CONCURRENTLY "
        "bgjob_job_due_idx_ccnew1"
    )


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
        'this role lacks INSERT, SELECT ("job_id", "batch_id") ON "bgjob_dead_job",',
        'this role lacks SELECT, INSERT, UPDATE, DELETE ON "bgjob_worker",',
        'this role lacks SELECT, INSERT, UPDATE ON "bgjob_schedule",',
        'this role lacks SELECT ON "bgjob_control",',
        'this role lacks SELECT, INSERT, UPDATE, DELETE ON "bgjob_unique_period",',
        'this role lacks SELECT, INSERT, UPDATE, DELETE ON "bgjob_batch",',
    ]
    assert told[4].endswith(
        f'as the owner of the tables run: GRANT SELECT ON "bgjob_control" TO "{role}";'
    )
    assert found[-1] == doctor.Finding(
        "workers", "note", "this role may not look at jobs and workers"
    )


# ---- what holds vacuum back -----------------------------------------------------------------


@pytest.fixture
def at_once(tune: Tune) -> Iterator[None]:
    """A transaction is too old as soon as it is there."""
    tune(health_module, HELD_BACK_AFTER=0.0)
    return


@pytest.mark.usefixtures("at_once")
def test_a_transaction_that_stays_open_is_named(tables: Engine) -> None:
    other = create_engine(tables.url, connect_args={"application_name": "report"})
    with other.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()

        (problem,) = problems(tables)

    other.dispose()
    who = f"session {pid} (report, idle in transaction)"
    assert f"{who} has had a transaction open for N s" in without_seconds(problem)
    assert f"SELECT pg_terminate_backend({pid})" in problem
    assert not any(f"session {pid} " in found for found in problems(tables))


def test_a_transaction_that_is_short_is_none_of_it(tables: Engine) -> None:
    with tables.connect() as connection:
        connection.execution_options(isolation_level="REPEATABLE READ")
        connection.execute(text("SELECT 1"))
        assert problems(tables) == []


@pytest.mark.parametrize(
    ("holder", "words"),
    [
        (
            health_module.Holder("prepared transaction", "gid-1", None, None, 70.0, 5),
            "prepared transaction 'gid-1' has been open for 70 s",
        ),
        (
            health_module.Holder("replication slot", "standby", None, None, None, 2_000_000),
            "replication slot 'standby' is 2000000 transactions behind",
        ),
        (health_module.Holder("replication slot", "standby", None, None, None, 2), ""),
        (health_module.Holder("session", "", 7, "active", 59.0, 5), ""),
        (
            health_module.Holder("session", "", 7, "active", 61.0, 5),
            "session 7 (no application_name, active) has had a transaction open for 61 s",
        ),
    ],
)
def test_each_kind_of_holder_is_told_in_words(holder: health_module.Holder, words: str) -> None:
    found = health_module.Health(holder, (), 0.0).problems

    assert found == [] if not words else words in found[0]


LONG = health_module.Holder("session", "report", 7, "active", 61.0, 5)
SHORT = health_module.Holder("session", "report", 7, "active", 59.0, 5)


@pytest.mark.parametrize(
    ("holder", "autovacuum", "problem", "words"),
    [
        (None, True, False, "autovacuum removes them within minutes"),
        (SHORT, True, False, "autovacuum removes them within minutes"),
        (LONG, True, True, "end what holds vacuum back"),
        (None, False, True, "autovacuum is off for it: turn it on, or VACUUM it"),
    ],
)
def test_dead_rows_are_told_with_what_is_true_of_them(
    holder: health_module.Holder | None, autovacuum: bool, problem: bool, words: str
) -> None:
    rows = health_module.DeadRows("bgjob_job", 200_000, 10, autovacuum)
    health = health_module.Health(holder, (rows,), 0.0)

    told, others = health.problems, health.notes
    if not problem:
        told, others = others, told

    assert f"bgjob_job has 200000 dead rows and 10 live ones; {words}" in told[-1]
    assert not any("dead rows" in other for other in others)


def test_a_full_notification_queue_is_told() -> None:
    (full,) = health_module.Health(None, (), 0.75).problems

    assert "the server's notification queue is 75% full" in full


# ---- the command ----------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg", "psycopg2"])
def test_the_command_prints_what_was_looked_at(tables: Engine, driver: str) -> None:
    url = with_driver(tables.url.render_as_string(hide_password=False), driver)

    fine = CliRunner().invoke(cli, ["doctor", "--database-url", url], standalone_mode=False)
    run(tables, "DROP INDEX bgjob_job_due_idx")
    broken = CliRunner().invoke(
        cli, ["doctor", "--database-url", url, "--json"], standalone_mode=False
    )

    assert fine.return_value == 0, fine.output
    assert "ok       structure: as designed\n" in fine.output
    assert broken.return_value == 1
    lines = [json.loads(line) for line in broken.output.splitlines()]
    assert [line["check"] for line in lines if line["level"] == "problem"] == ["structure"]


# ---- what an operator sees ------------------------------------------------------------------


def about(engine: Engine, *checks: str) -> list[str]:
    """The lines of some checks, as they are printed but for the colours."""
    found = [one for one in examine(engine) if one.check in checks]
    return [without_seconds(f"{one.level} {one.check}: {one.text}") for one in found]


def add_due_jobs(engine: Engine, count: int, queue: str = "mail") -> None:
    run(
        engine,
        "INSERT INTO bgjob_job (id, queue, type)"
        f" SELECT '{queue}' || n, '{queue}', 't' FROM generate_series(1, {count}) AS n",
    )


def add_worker(engine: Engine, queue: str, silent_for: float = 0) -> None:
    run(
        engine,
        "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout, beat_at)"
        f" SELECT coalesce(max(id), 0) + 1, 'near', 42, '0', '{{\"{queue}\"\\: 10}}', 30,"
        f" now() - {silent_for} * interval '1 s' FROM bgjob_worker",
    )


def test_no_worker_and_no_job_is_fine(tables: Engine) -> None:
    assert about(tables, "workers", "queues") == [
        "ok workers: none runs, and no job is due",
        "ok queues: no job is due",
    ]


def test_due_jobs_without_a_worker_are_a_problem_at_once(tables: Engine) -> None:
    add_due_jobs(tables, 5)

    assert about(tables, "workers", "queues") == [
        "note workers: none runs, and jobs are due",
        (
            "problem queues: queue 'mail': 5 jobs are due, the first for N s, and no worker serves "
            "this queue; start one with --queue mail:10"
        ),
    ]


def test_due_jobs_that_a_worker_serves_are_fine(tables: Engine) -> None:
    add_due_jobs(tables, 5)
    add_worker(tables, "mail")

    assert about(tables, "workers", "queues") == [
        "ok workers: 1 beating",
        "ok queues: no job has been due for N s",
    ]


def test_due_jobs_beside_workers_of_other_queues_are_told(tables: Engine) -> None:
    add_due_jobs(tables, 1_500, "my mail")
    add_worker(tables, "other")

    workers, queue = about(tables, "workers", "queues")

    assert workers == "ok workers: 1 beating"
    assert "queue 'my mail': more than 1000 jobs are due" in queue
    assert queue.endswith("no worker serves this queue; start one with --queue 'my mail:10'")


@pytest.mark.parametrize("queue", ["tenant:mail", "a,b", "mail:1,x", "it's; all", "-v"])
def test_a_worker_takes_the_queue_as_the_doctor_writes_it(tables: Engine, queue: str) -> None:
    """Whatever its name is: a legal one may have colons, commas, blanks and quotes."""
    jobs = new_queue()
    jobs.handler("t", queue=queue, session=False)(lambda ctx: None)
    jobs.enqueue(tables, "t", queue=queue)

    (told,) = about(tables, "queues")
    written = shlex.split(told.rpartition("start one with ")[2])
    command = cli.commands["worker"].make_context("worker", ["app:jobs", *written])

    assert command.params["queues"] == ((queue, 10),)
    refuse_lists([queue], jobs.registry.queues())


@pytest.mark.parametrize("others", [True, False])
def test_a_silent_worker_is_told_by_who_else_runs(tables: Engine, others: bool) -> None:
    add_worker(tables, "mail", silent_for=3600)
    if others:
        add_worker(tables, "mail")

    silent, *rest = about(tables, "workers")

    assert silent.startswith("problem workers: worker 1 (pid 42 on near) has been silent for N s")
    remedy = "another takes its jobs and removes it" if others else "no other runs: start one"
    assert remedy in silent
    assert rest == (["ok workers: 1 beating"] if others else [])


@pytest.mark.parametrize("autovacuum", [True, False])
@pytest.mark.parametrize("held", [True, False])
def test_a_large_drain_is_no_fault_of_anybodys(
    tables: Engine, held: bool, autovacuum: bool, tune: Tune
) -> None:
    """The server's own counters after it: 2,000 dead rows here for 200,000 there."""
    tune(health_module, DEAD_ROWS=1_000, HELD_BACK_AFTER=0.0 if held else 60.0)
    # The server's own may not come in between, where it is not off: its threshold is higher.
    run(
        tables,
        "ALTER TABLE bgjob_job SET (autovacuum_vacuum_threshold = 1000000,"
        " autovacuum_analyze_threshold = 1000000)",
    )
    if not autovacuum:
        run(tables, "ALTER TABLE bgjob_job SET (autovacuum_enabled = false)")
    add_due_jobs(tables, 2_000)
    reader = create_engine(tables.url, isolation_level="REPEATABLE READ")
    with reader.connect() as connection:
        connection.execute(text("SELECT 1"))
        run(tables, "DELETE FROM bgjob_job")
        counted = "SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'bgjob_job'"

        def dead() -> bool:
            with tables.connect() as own:
                return own.execute(text(counted)).scalar_one() >= 2_000

        wait_until(dead, 30, what="the server's counters")
        told = about(tables, "vacuum and notifications")
    reader.dispose()

    *holder, rows = told
    assert len(holder) == (1 if held else 0)
    assert "bgjob_job has 2000 dead rows and 0 live ones; " in rows
    assert rows.startswith("problem" if held or not autovacuum else "note")
    if not autovacuum:
        assert rows.endswith("autovacuum is off for it: turn it on, or VACUUM it")
    elif held:
        assert rows.endswith("end what holds vacuum back, and autovacuum removes them")
    else:
        assert "autovacuum removes them within minutes" in rows


def test_a_real_worker_leaves_a_content_doctor(tables: Engine) -> None:
    """While it runs, and when it has gone."""
    jobs = new_queue()

    @jobs.handler("noted", queue="mail")
    def noted(ctx: Any, arg: int) -> None: ...

    with Worker(jobs, tables):
        enqueue_many(tables, noted, range(50))
        wait_until(lambda: about(tables, "queues") == ["ok queues: no job is due"], 30, what="it")
        assert about(tables, "workers") == ["ok workers: 1 beating"]
        assert problems(tables) == []

    assert {one.level for one in examine(tables)} == {"ok"}
