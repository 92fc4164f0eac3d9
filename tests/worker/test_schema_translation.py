"""``schema_translate_map``: what names the tables by text follows it, as all statements do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import create_engine, event, text

from sqlalchemy_bgjob import enqueue, schema
from sqlalchemy_bgjob._inspect.doctor import examine
from sqlalchemy_bgjob._lifecycle import workers
from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob._worker.preflight import check_database
from sqlalchemy_bgjob.exceptions import SchemaOutOfDate
from sqlalchemy_bgjob.schema._grants import grants, lacks
from sqlalchemy_bgjob.schema._table_kinds import KINDS
from support.processes import FAST
from support.rows import ME
from support.running import one_of_each
from support.tables import new_queue
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

    from support.running import Workbench

pytestmark = pytest.mark.core


@pytest.fixture(params=[None, "app"])
def name(request: pytest.FixtureRequest) -> str | None:
    """The schema that the models are in, and that is another one in the database."""
    schema_of_models: str | None = request.param
    return schema_of_models


@pytest.fixture
def tenant(engine: Engine, name: str | None) -> Iterator[Connection]:
    """A connection on which that schema is the tenant's; the tables are there and nowhere else.

    The tenant's own name stands for another schema: whoever translates twice ends there.
    """
    translation = {name: "Tenant 1", "Tenant 1": "Tenant 2"}
    with engine.connect() as made:
        connection = made.execution_options(schema_translate_map=translation)
        with connection.begin():
            schema.migrate(connection, schema=name)
        yield connection


def test_migrate_makes_the_tables_where_they_are_used(tenant: Connection, name: str | None) -> None:
    where = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'bgjob%'"
    with tenant.begin():
        assert tenant.scalars(text(where)).all() == ["Tenant 1"]
        assert schema.migrate(tenant, schema=name) == schema.LATEST
        assert schema.db_version(tenant, schema=name) == schema.LATEST


def test_a_schema_that_stands_for_none_is_the_usual_one(engine: Engine) -> None:
    with engine.begin() as made:
        connection = made.execution_options(schema_translate_map={"app": None})
        schema.migrate(connection, schema="app")
        where = connection.scalars(text("SELECT schemaname FROM pg_tables WHERE tablename ~ 'bgj'"))
        assert where.all() == ["public"] * len(KINDS)
        schema.check(connection, schema="app")


@pytest.mark.parametrize("with_alembic", [False, True], ids=["connection", "alembic"])
def test_upgrade_makes_the_tables_and_their_schema(
    engine: Engine, name: str | None, with_alembic: bool
) -> None:
    """As a migration of each tenant runs it; downgrade takes away the same tables."""
    translation = {name: "Tenant 1", "Tenant 1": "Tenant 2"}
    tables = text("SELECT schemaname FROM pg_tables WHERE tablename LIKE 'bgjob%'")
    schemas = text("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'Tenant%' OR nspname='app'")
    with engine.begin() as made:
        connection = made.execution_options(schema_translate_map=translation)
        op: Any = Operations(MigrationContext.configure(connection)) if with_alembic else connection

        schema.upgrade(op, schema=name)
        assert connection.scalars(tables).all() == ["Tenant 1"] * len(KINDS)
        assert connection.scalars(schemas).all() == ["Tenant 1"]
        assert schema.db_version(connection, schema=name) == schema.LATEST

        schema.downgrade(op, from_version=schema.LATEST, schema=name)
        assert connection.scalars(tables).all() == []


def test_a_worker_looks_at_the_tables_that_it_works_on(
    tenant: Connection, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = new_queue(schema=name)
    with tenant.begin():
        tenant.execute(text('ALTER TABLE "Tenant 1".bgjob_job RESET (fillfactor)'))
        tenant.execute(
            text('CREATE TABLE note (job_id text CONSTRAINT "k" REFERENCES "Tenant 1".bgjob_job)')
        )

    check_database(tenant, jobs.models)

    assert any('ALTER TABLE "Tenant 1".bgjob_job SET' in line for line in caplog.messages)
    assert any("foreign key 'k'" in line for line in caplog.messages)
    with tenant.begin():
        tenant.execute(text('ALTER TABLE "Tenant 1".bgjob_dead_job RENAME TO plain'))
        tenant.execute(text('CREATE VIEW "Tenant 1".bgjob_dead_job AS SELECT 1'))
    with pytest.raises(SchemaOutOfDate, match=r'"Tenant 1"\."bgjob_dead_job" is a view'):
        check_database(tenant, jobs.models)


def test_doctor_looks_at_the_tables_that_are_used(tenant: Connection, name: str | None) -> None:
    with tenant.begin():
        tenant.execute(
            text(
                'INSERT INTO "Tenant 1".bgjob_job (id, queue, type, next_run_at)'
                " VALUES ('a', 'mail', 't', now() - interval '2 min')"
            )
        )
        found = examine(tenant, schema=name, table_prefix="bgjob_")

    (problem,) = [finding.text for finding in found if finding.level == "problem"]
    assert problem.startswith("queue 'mail': ")


def test_the_privileges_asked_for_are_those_of_the_tables_used(
    tenant: Connection, name: str | None
) -> None:
    role = f"weak_{uuid4().hex}"
    with tenant.begin() as transaction:
        tenant.execute(text(f"CREATE ROLE {role}"))
        granted = grants([("worker", role)], schema="Tenant 1", table_prefix="bgjob_")
        tenant.exec_driver_sql(granted)
        tenant.execute(text(f'REVOKE DELETE ON "Tenant 1".bgjob_job FROM {role}'))
        tenant.execute(text(f"SET LOCAL ROLE {role}"))
        lacking = lacks(tenant, "worker", schema=name, table_prefix="bgjob_")
        transaction.rollback()

    assert [one.privileges for one in lacking] == ['DELETE ON "Tenant 1"."bgjob_job"']


def test_a_look_at_the_health_is_at_the_tables_that_are_used(
    tenant: Connection, name: str | None
) -> None:
    statements = Statements(new_queue(schema=name).models)
    sent: list[Any] = []
    event.listen(tenant, "before_cursor_execute", lambda *args: sent.append(args[3]))
    given: dict[str, Any] = {
        "hostname": "h",
        "pid": 1,
        "version": "0",
        "queues": {},
        "lease_timeout": 30.0,
    }
    workers.register(tenant, statements, worker_id=ME, **given)

    assert workers.sample_health(tenant, statements, worker_id=ME) is not None
    assert workers.sample_backlog(tenant, statements, interval=60.0).valid_for == 125.0

    tables = [f'"Tenant 1"."bgjob_{kind}"' for kind in ("job", "dead_job", "worker")]
    assert [given["tables"] for given in sent if "tables" in given] == [tables]


# ---- workers of one tenant, beside the tables of another ----------------------------------------

ITS_ROWS = "SELECT id, claimed_by, attempt FROM public.bgjob_job"


@pytest.fixture
def tenants(bench: Workbench) -> Iterator[Engine]:
    """The tables are in public and in ``tenant``; an engine that works on the latter."""
    bench.sql("CREATE SCHEMA tenant")
    engine = create_engine(bench.url, execution_options={"schema_translate_map": {None: "tenant"}})
    bench.Base.metadata.create_all(engine)
    yield engine
    engine.dispose()
    bench.sql("DROP SCHEMA tenant CASCADE")


@one_of_each
def test_a_tenants_worker_leaves_the_jobs_of_others_alone(
    bench: Workbench, tenants: Engine
) -> None:
    """It runs its own, those of a crashed worker too; neither loop nor rescuer see the others."""
    handler = bench.handler("t", bench.note)
    for where in ("public", "tenant"):
        bench.put_lost_job(where)
    enqueue(bench.outside, handler, id="due")
    enqueue(tenants, handler, id="due")
    before = bench.sql(ITS_ROWS)

    bench.run(
        until=lambda: not bench.sql("SELECT 1 FROM tenant.bgjob_job"),
        deadline=60.0,
        execution={"schema_translate_map": {None: "tenant"}},
        **FAST,
    )

    done = [row.job_id for row in bench.sql("SELECT job_id FROM tenant.note ORDER BY job_id")]
    assert done == ["due", "lost"]
    assert bench.sql(ITS_ROWS) == before
    assert bench.sql("SELECT id FROM public.bgjob_worker") == [(815,)]
    assert bench.sql("SELECT 1 FROM public.note") == []


@one_of_each
def test_a_tenants_job_wakes_its_worker(bench: Workbench, tenants: Engine) -> None:
    """All tenants of one set of models share a channel; whether one waits, its own tables say."""
    handler = bench.handler("t", bench.note)
    waits = "SELECT 1 FROM tenant.bgjob_worker WHERE waits_for ? 'default'"

    def enqueue_one() -> None:
        wait_until(lambda: bench.sql(waits), what="a worker that waits to be notified")
        enqueue(tenants, handler)

    bench.run(
        during=enqueue_one,
        until=lambda: bench.sql("SELECT 1 FROM tenant.note"),
        deadline=60.0,
        poll_interval=3_600.0,
        listen=True,
        execution={"schema_translate_map": {None: "tenant"}},
    )
