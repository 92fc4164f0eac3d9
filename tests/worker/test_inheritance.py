"""Tables that share their rows with others: an archive that inherits, and partitions.

A row's address is unique in one table only, and ``FROM bgjob_job`` reads the rows of all tables
that inherit from it. So every statement says ONLY, and a table without rows of its own is refused.
"""

from __future__ import annotations

import re
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, MetaData, column, select, text, true
from sqlalchemy.dialects import postgresql

from sqlalchemy_bgjob import BGJob, MoveToDlq, Reschedule, Retry, schema
from sqlalchemy_bgjob._handlers.outcomes import COMPLETED, HAND_BACK, Kind, Settlement
from sqlalchemy_bgjob._inspect.doctor import examine
from sqlalchemy_bgjob._lifecycle import claim as claims
from sqlalchemy_bgjob._lifecycle import rescue, settle, workers
from sqlalchemy_bgjob._lifecycle.unknown_claims import return_unknown_claims
from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob._sql.search_terms import parse
from sqlalchemy_bgjob._sql.unique import KEY
from sqlalchemy_bgjob._sql.words import wake_up
from sqlalchemy_bgjob.exceptions import SchemaOutOfDate
from sqlalchemy_bgjob.schema._layouts import GO_DEAD_JOB, GO_JOB, GoTables
from support.rows import ME, OTHER, add, claim, ids, make_tables, pending
from support.running import FLAVORS, Workbench, one_of_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection, Executable

pytestmark = pytest.mark.core

ARCHIVES = (
    "CREATE TABLE job_archive () INHERITS (bgjob_job)",
    "CREATE TABLE dead_job_archive () INHERITS (bgjob_dead_job)",
    "CREATE TABLE worker_archive () INHERITS (bgjob_worker)",
)


def run(connection: Connection, *statements: str) -> None:
    for statement in statements:
        connection.execute(text(statement))


def archived(connection: Connection) -> list[Any]:
    """All rows of all archives, with the version of each."""
    found: list[Any] = []
    for table in ("job_archive", "dead_job_archive", "worker_archive"):
        found += connection.execute(text(f"SELECT xmin, ctid, * FROM {table} ORDER BY id")).all()
    return found


# ---- an archive ----------------------------------------------------------------------------------


@pytest.fixture
def queue(engine: Engine) -> Statements:
    """Tables with archives, which hold jobs of the same ids at the same addresses."""
    statements = Statements(make_tables(engine))
    with engine.begin() as connection:
        run(connection, *ARCHIVES)
        for n in range(40):
            add(connection, f"job-{n:02}", due_in=-60.0)
        # Due, scheduled, and running by either worker; and one of another queue and priority.
        run(
            connection,
            "INSERT INTO job_archive SELECT * FROM ONLY bgjob_job",
            f"UPDATE job_archive SET claimed_by = {ME}, lease = 7 WHERE id LIKE '%1'",
            f"UPDATE job_archive SET claimed_by = {OTHER}, lease = 7 WHERE id LIKE '%2'",
            "UPDATE job_archive SET next_run_at = now() + interval '1 day' WHERE id LIKE '%3'",
            "UPDATE job_archive SET priority = -5 WHERE id LIKE '%4'",
            "INSERT INTO dead_job_archive (id, job_id, queue, type, lease, next_run_at,"
            " job_created_at, job_updated_at, moved_at) SELECT id, id, queue, type, lease, now(),"
            " now(), now(), now() - interval '1 year' FROM ONLY bgjob_job",
            "INSERT INTO worker_archive (id, hostname, pid, version, queues, lease_timeout,"
            f" beat_at, waits_for) VALUES ({OTHER}, 'h', 1, '0', '{{}}', 1, '2020-01-01',"
            """ '["q"]')""",
        )
    return statements


def test_every_transition_leaves_an_archive_alone(engine: Engine, queue: Statements) -> None:
    ends = (
        COMPLETED,
        HAND_BACK,
        Settlement(Kind.RETRY, delay=3_600.0, error="x"),
        Settlement(Kind.DEAD, error="x"),
    )
    with engine.connect() as connection:
        before = archived(connection)
        connection.rollback()
        workers.register(
            connection,
            queue,
            worker_id=ME,
            hostname="h",
            pid=1,
            version="0",
            queues={"q": 1},
            lease_timeout=30.0,
        )

        jobs = claim(connection, queue, 40)
        with connection.begin():
            assert claims.lanes(connection, queue, queue="q") == [0]
            scheduled = claims.next_due(connection, queue, queue="q", priorities=[0])
        assert ids(jobs) == [f"job-{n:02}" for n in range(40)]
        assert scheduled is None
        for n, end in enumerate(ends):
            fates = settle.settle(connection, queue, pending(jobs[n * 8 : n * 8 + 8], end))
            assert {fate for _, fate in fates} == {settle.Fate.SETTLED}
        # The last eight are given back in the three ways in which that is done.
        known = jobs[33:]
        assert return_unknown_claims(connection, queue, worker_id=ME, known=known) == 1
        with connection.begin():
            run(connection, "UPDATE ONLY bgjob_job SET claimed_by = 5 WHERE id = 'job-33'")
        assert rescue.rescue_orphans(connection, queue) == 1
        with connection.begin():
            run(connection, "UPDATE ONLY bgjob_worker SET lost_at = now()")
        (rescued,) = rescue.rescue_rest(connection, queue)
        assert (rescued.worker_id, rescued.jobs) == (ME, 6)

        assert archived(connection) == before


def test_an_operator_leaves_an_archive_alone(engine: Engine, queue: Statements) -> None:
    jobs = BGJob(MetaData())
    with engine.begin() as connection:
        before = archived(connection)
        run(connection, "DELETE FROM ONLY bgjob_job WHERE id = 'job-00'")

        assert jobs.cancel(connection, "job-00") is None
        jobs.cancel_where(connection, jobs.Job.id == "job-00")
        assert jobs.redrive(connection, where=true()).ids == ()
        assert jobs.prune(connection, older_than=0.0) == 0

        assert archived(connection) == before


@one_of_each
def test_a_worker_leaves_an_archive_alone(bench: Workbench) -> None:
    """Whatever becomes of a job; its archived copy is scheduled for tomorrow, or was running."""
    outcomes = (None, Reschedule(3_600.0), Retry(3_600.0), MoveToDlq("no"))
    ran: list[str] = []

    def body(session: Any, ctx: Any) -> Any:
        ran.append(ctx.job.id)
        bench.note(session, ctx)
        return outcomes[int(ctx.job.id) % 4]

    handler = bench.handler("t", body)
    names = [f"{n:03}" for n in range(60)]
    try:
        for statement in ARCHIVES:
            bench.sql(statement)
        for name in names:
            bench.enqueue(handler, id=name)
        bench.sql("INSERT INTO job_archive SELECT * FROM ONLY bgjob_job")
        bench.sql("UPDATE job_archive SET next_run_at = now() + interval '1 day', claimed_by = 7")
        bench.sql("UPDATE job_archive SET claimed_by = NULL WHERE id LIKE '%1'")
        with bench.outside.connect() as connection:
            before = archived(connection)

        bench.run(until=lambda: len(ran) == len(names) and not running(bench))

        assert sorted(ran) == names
        with bench.outside.connect() as connection:
            assert archived(connection) == before
    finally:
        bench.sql("DROP TABLE IF EXISTS job_archive, dead_job_archive, worker_archive")


def running(bench: Workbench) -> bool:
    return bool(bench.sql("SELECT FROM ONLY bgjob_job WHERE claimed_by IS NOT NULL"))


FLAGS = {"unique.find": 3}
"""How many flags a statement has, where it is not one."""


def all_statements(statements: Statements) -> dict[str, Executable]:
    """Every statement that the library has for one set of tables, by name."""
    found: dict[str, Executable] = {}

    def take(name: str, value: Any) -> None:
        if isinstance(value, tuple):
            for n, one in enumerate(value):
                take(f"{name}[{n}]", one)
        else:
            found[name] = value

    for verb, its in vars(statements).items():
        for name, value in vars(type(its)).items():
            if isinstance(value, cached_property):
                take(f"{verb}.{name}", getattr(its, name))
        for name, value in vars(its).items():
            if callable(value) and not name.startswith("_"):  # one for each value of its flags
                for flags in product((False, True), repeat=FLAGS.get(f"{verb}.{name}", 1)):
                    take(f"{verb}.{name}{flags}", value(*flags))
    take_with_arguments(statements, take)
    take("wake_up", wake_up(None, "bgjob_"))
    return found


def take_with_arguments(statements: Statements, take: Callable[[str, Any], None]) -> None:
    """Those that are built from what a user gives."""
    take("cancel.where", statements.cancel.where(true(), 5, notify=True))
    take("operate.redrive", statements.operate.redrive(true(), 5))
    take("operate.redrive spaced", statements.operate.redrive(true(), 5, spaced=True))
    take("operate.run_now", statements.operate.run_now(true(), 5))
    take("operate.edit", statements.operate.edit(("arg", "headers", "priority", "next_run_at")))
    search = parse("arg.x:1 queue:q id:*")
    for table in ("live", "dead"):
        for onward in (False, True):
            for name in (f"{table}_page", f"{table}_found"):
                made = getattr(statements.search, name)(search, onward=onward)
                take(f"search.{name}({onward})", made)
        take(f"search.{table}_count", getattr(statements.search, f"{table}_count")(search))
    take("search.dead_groups", statements.search.dead_groups(search))
    take("operate.prune", statements.operate.prune(true(), 5))
    for name in ("page", "summary", "count", "would_return"):
        take(f"dead_jobs.{name}", getattr(statements.dead_jobs, name)(true(), 5))
    for scope in ("live", "queued", "period"):
        rows: Any = select(column("n"), column(KEY))
        found_from = statements.unique.from_query(rows, scope, "skip", notify=True)
        take(f"unique.from_query({scope})", found_from)
    go = GoTables("go", frozenset({GO_JOB, GO_DEAD_JOB}))
    for name in ("lock_jobs", "lock_dead_jobs", "move_jobs", "move_dead_jobs", "count"):
        take(f"go_bgjob.{name}", getattr(statements.go_bgjob, name)(go))


def test_every_statement_reads_and_changes_the_tables_alone() -> None:
    """As PostgreSQL says it: ``ONLY``. An INSERT adds to the named table in any case."""
    from sqlalchemy_bgjob.models import build_models

    statements = all_statements(Statements(build_models(MetaData(), records=True)))
    some = {
        "claim.onward",
        "settle.complete",
        "unique.find(True, True, False)",
        "rescue.give_back[0]",
        "cancel.one(True,)",
        "settle.bury_recorded",
        "records.progress",
        "audit.delete_old",
    }
    assert some <= set(statements)
    assert len(statements) > 50
    reading = re.compile(
        r"(?:FROM|JOIN|UPDATE|,)\s+"
        r"(?=(?:go\.)?bgjob_(?:job|dead_job|worker|schedule|control|unique_period|record|minute|audit)\b(?!\.))"
    )

    for name, statement in statements.items():
        sql = str(statement.compile(dialect=postgresql.dialect()))  # type: ignore[attr-defined]
        assert not reading.search(sql), (name, sql)


# ---- partitions ----------------------------------------------------------------------------------


@pytest.fixture(params=["bgjob_job", "bgjob_dead_job", "bgjob_worker"])
def partitioned(engine: Engine, request: pytest.FixtureRequest) -> str:
    """One of the tables is partitioned, and is in all else what it should be."""
    table: str = request.param
    make_tables(engine)
    with engine.begin() as connection:
        run(
            connection,
            f"ALTER TABLE {table} RENAME TO plain",
            f"CREATE TABLE {table} (LIKE plain INCLUDING ALL EXCLUDING STORAGE EXCLUDING INDEXES)"
            " PARTITION BY HASH (id)",
            f"CREATE TABLE part PARTITION OF {table} FOR VALUES WITH (MODULUS 1, REMAINDER 0)",
            "COMMENT ON TABLE bgjob_job IS 'sqlalchemy-bgjob schema 2 (workers since 1)'",
        )
    return table


def test_a_partitioned_table_is_refused_by_name(engine: Engine, partitioned: str) -> None:
    """By all that looks at the tables before anything is done with them."""
    told = f'"{partitioned}" is a partitioned table'

    with engine.begin() as connection:
        for refuse in (schema.check, schema.migrate):
            with pytest.raises(SchemaOutOfDate, match=told) as caught:
                refuse(connection)
        problems = [
            finding.text
            for finding in examine(connection, schema=None, table_prefix="bgjob_")
            if finding.level == "problem"
        ]

    assert "sqlalchemy-bgjob migrate" in str(caught.value)
    assert problems == [str(caught.value)]


@pytest.mark.parametrize("flavor", FLAVORS, ids=str)
def test_no_worker_starts_on_a_partitioned_table(workbench_url: str, flavor: Any) -> None:
    bench = Workbench(flavor, workbench_url)
    bench.reset()
    bench.handler("known", lambda *_: None)
    bench.sql("ALTER TABLE bgjob_job RENAME TO plain")
    bench.sql(
        "CREATE TABLE bgjob_job (LIKE plain INCLUDING ALL EXCLUDING INDEXES) PARTITION BY HASH (id)"
    )
    bench.sql("COMMENT ON TABLE bgjob_job IS 'sqlalchemy-bgjob schema 2 (workers since 1)'")
    try:
        with pytest.raises(SchemaOutOfDate, match='"bgjob_job" is a partitioned table'):
            bench.run()
    finally:
        bench.sql("DROP TABLE bgjob_job")
        bench.sql("ALTER TABLE plain RENAME TO bgjob_job")
        bench.close()


def test_a_view_in_place_of_a_table_is_refused_by_name(engine: Engine) -> None:
    make_tables(engine)
    with engine.begin() as connection:
        run(
            connection,
            "ALTER TABLE bgjob_dead_job RENAME TO graves",
            "CREATE VIEW bgjob_dead_job AS SELECT * FROM graves",
        )

        with pytest.raises(SchemaOutOfDate, match='"bgjob_dead_job" is a view'):
            schema.check(connection)


def test_doctor_says_that_rows_of_an_archive_are_no_jobs(engine: Engine) -> None:
    make_tables(engine)
    with engine.begin() as connection:
        run(connection, *ARCHIVES[:1])
        (note,) = [
            finding.text
            for finding in examine(connection, schema=None, table_prefix="bgjob_")
            if finding.level == "note"
        ]

    assert 'job_archive inherits from "bgjob_job": its rows are no jobs' in note
