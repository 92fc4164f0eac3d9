"""Row level security: what it hides from a worker's role is told, at the start and by doctor."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, text

from sqlalchemy_bgjob import BGJob, Context, Worker, enqueue
from sqlalchemy_bgjob._inspect import doctor
from sqlalchemy_bgjob.exceptions import WorkerRefused
from sqlalchemy_bgjob.schema._records_1 import RECORD_KINDS
from sqlalchemy_bgjob.schema._table_kinds import KINDS
from support import wait_until
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

TABLES = [f"bgjob_{kind}" for kind in (*KINDS, *RECORD_KINDS)]
ALL = "USING (true) WITH CHECK (true)"
OF_A_TENANT = "TO PUBLIC USING (current_setting('tenant', true) = 'a')"


def run(engine: Engine, *statements: str) -> None:
    with engine.begin() as connection:
        for statement in statements:
            connection.execute(text(statement))


@pytest.fixture
def jobs(engine: Engine) -> BGJob[Any, Any]:
    jobs = new_queue(records=True)
    jobs.metadata.create_all(engine)
    return jobs


@pytest.fixture
def worker_engine(engine: Engine, jobs: BGJob[Any, Any]) -> Iterator[Engine]:
    """As a role that is no owner, with all privileges."""
    role = f"worker_{engine.url.database}"
    run(engine, f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'test'")
    run(engine, *(f'GRANT ALL ON {table} TO "{role}"' for table in TABLES))
    poor = create_engine(engine.url.set(username=role, password="test"), pool_size=12)
    yield poor
    poor.dispose()
    run(engine, f'DROP OWNED BY "{role}"', f'DROP ROLE "{role}"')


def found(engine: Engine) -> list[doctor.Finding]:
    with engine.connect() as connection:
        findings = doctor.examine(connection, schema=None, table_prefix="bgjob_")
    return [finding for finding in findings if finding.check == "row security"]


@pytest.mark.core
@pytest.mark.parametrize(
    ("table", "policy", "lacks"),
    [
        ("bgjob_job", None, "SELECT, UPDATE, DELETE"),
        ("bgjob_job", "FOR SELECT USING (true)", "UPDATE, DELETE"),
        ("bgjob_job", "AS RESTRICTIVE USING (true)", "SELECT, UPDATE, DELETE"),
        ("bgjob_job", "TO postgres USING (true)", "SELECT, UPDATE, DELETE"),
        ("bgjob_dead_job", None, "SELECT, INSERT"),
        ("bgjob_dead_job", "FOR INSERT WITH CHECK (true)", "SELECT"),
        ("bgjob_worker", None, "SELECT, INSERT, UPDATE, DELETE"),
        ("bgjob_control", None, "SELECT"),
        ("bgjob_schedule", None, "SELECT, INSERT, UPDATE"),
        ("bgjob_record", None, "SELECT, INSERT, UPDATE, DELETE"),
        ("bgjob_record", "FOR SELECT USING (true)", "INSERT, UPDATE, DELETE"),
    ],
)
def test_a_worker_that_sees_nothing_is_refused(
    engine: Engine,
    jobs: BGJob[Any, Any],
    worker_engine: Engine,
    table: str,
    policy: str | None,
    lacks: str,
) -> None:
    """It would find an empty table for ever, and nobody would hear of it."""
    run(engine, f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    if policy is not None:
        owner = engine.url.username or "postgres"
        run(engine, f"CREATE POLICY p ON {table} {policy.replace('postgres', owner)}")
    jobs.handler("t")(lambda ctx: None)

    with pytest.raises(WorkerRefused, match=f'{table}".* no policy allows {lacks}; .*BYPASSRLS'):
        Worker(jobs, worker_engine).run()
    (finding,) = found(worker_engine)
    assert finding.level == "problem"
    assert lacks in finding.text
    assert [one.level for one in found(engine)] == ["ok"], "the owner sees all"


@pytest.mark.parametrize("table", ["bgjob_minute", "bgjob_unique_period", "bgjob_batch"])
def test_what_few_jobs_need_is_told_and_keeps_none_waiting(
    engine: Engine,
    jobs: BGJob[Any, Any],
    worker_engine: Engine,
    table: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Counts would be lost, keys that hold for a period refused, and nothing follow a batch."""
    run(engine, f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY")
    jobs.handler("t")(lambda ctx: None)

    with caplog.at_level(logging.WARNING, "sqlalchemy_bgjob"), Worker(jobs, worker_engine) as it:
        wait_until(lambda: it.ready)

    assert f'row level security of "{table}" hides its rows from this role' in caplog.text
    (finding,) = found(worker_engine)
    assert finding.level == "problem"


def test_records_of_another_application_are_none_of_a_workers(
    engine: Engine, jobs: BGJob[Any, Any], worker_engine: Engine
) -> None:
    """One without records asks nothing of their tables."""
    run(engine, "ALTER TABLE bgjob_record ENABLE ROW LEVEL SECURITY")

    plain = new_queue()
    plain.handler("t")(lambda ctx: None)
    with Worker(plain, worker_engine) as worker:
        wait_until(lambda: worker.ready)


@pytest.mark.core
@pytest.mark.parametrize(
    ("policies", "remedy"),
    [
        ((ALL, f"AS RESTRICTIVE {OF_A_TENANT}"), "let no restrictive policy apply"),
        (
            (ALL, "AS RESTRICTIVE FOR UPDATE USING (true) WITH CHECK (queue = 'a')"),
            "let no restrictive policy apply",
        ),
        (("USING (true) WITH CHECK (queue = 'a')",), "run CREATE POLICY"),
        ((OF_A_TENANT, "FOR SELECT USING (true)"), "run CREATE POLICY"),
    ],
)
def test_one_policy_that_may_hide_a_job_is_enough(
    engine: Engine, worker_engine: Engine, policies: tuple[str, ...], remedy: str
) -> None:
    """A restrictive one, or one command that no other policy permits for all rows."""
    run(
        engine,
        "ALTER TABLE bgjob_job ENABLE ROW LEVEL SECURITY",
        *(f"CREATE POLICY p{n} ON bgjob_job {policy}" for n, policy in enumerate(policies)),
    )

    (finding,) = found(worker_engine)
    assert finding.level == "note"
    assert f"To hide none, {remedy}" in finding.text


@pytest.mark.core
def test_a_policy_that_may_hide_jobs_is_told_of(
    engine: Engine,
    jobs: BGJob[Any, Any],
    worker_engine: Engine,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A worker of one tenant is what somebody may want; it runs the jobs that it sees."""
    ran: list[str] = []

    @jobs.handler("t", session=False)
    def handle(ctx: Context[Any]) -> None:
        ran.append(ctx.job.id)

    run(
        engine,
        "ALTER TABLE bgjob_job ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY p ON bgjob_job USING (id LIKE 'mine%')",
    )
    for job_id in ("others", "mine"):
        enqueue(engine, handle, id=job_id)

    with caplog.at_level(logging.WARNING, "sqlalchemy_bgjob"), Worker(jobs, worker_engine):
        wait_until(lambda: ran, what="the job that is seen")

    assert ran == ["mine"]
    assert caplog.text.count("row level security") == 1
    assert [finding.level for finding in found(worker_engine)] == ["note"]


@pytest.mark.core
@pytest.mark.parametrize(
    "policies",
    [
        (ALL,),
        ("USING (true)",),
        (OF_A_TENANT, ALL),
        (OF_A_TENANT, f"AS RESTRICTIVE {ALL}", "AS RESTRICTIVE FOR INSERT WITH CHECK (true)", ALL),
        (
            OF_A_TENANT,
            "FOR SELECT USING (true)",
            "FOR INSERT WITH CHECK (true)",
            "FOR UPDATE USING (true)",
            "FOR DELETE USING (true)",
        ),
    ],
)
def test_policies_that_hide_nothing_are_fine(
    engine: Engine,
    jobs: BGJob[Any, Any],
    worker_engine: Engine,
    caplog: pytest.LogCaptureFixture,
    policies: tuple[str, ...],
) -> None:
    """Of several that permit, one that permits all is enough."""
    for table in TABLES:
        run(
            engine,
            f"ALTER TABLE {table} ENABLE ROW LEVEL SECURITY",
            *(f"CREATE POLICY p{n} ON {table} {policy}" for n, policy in enumerate(policies)),
        )
    jobs.handler("t")(lambda ctx: None)

    with caplog.at_level(logging.WARNING, "sqlalchemy_bgjob"), Worker(jobs, worker_engine):
        pass

    assert "row level security" not in caplog.text
    assert [finding.level for finding in found(worker_engine)] == ["ok"]
