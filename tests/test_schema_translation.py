"""``schema_translate_map``: what names the tables by text follows it, as all statements do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import MetaData, text

from sqlalchemy_bgjob import BGJob, schema
from sqlalchemy_bgjob import _lifecycle as lifecycle
from sqlalchemy_bgjob._doctor import examine
from sqlalchemy_bgjob._start import check_database
from sqlalchemy_bgjob._statements import Statements
from sqlalchemy_bgjob.exceptions import SchemaOutOfDate
from support.rows import ME

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

pytestmark = pytest.mark.core


@pytest.fixture(params=[None, "app"])
def name(request: pytest.FixtureRequest) -> str | None:
    """The schema that the models are in, and that is another one in the database."""
    schema_of_models: str | None = request.param
    return schema_of_models


@pytest.fixture
def tenant(engine: Engine, name: str | None) -> Iterator[Connection]:
    """A connection on which that schema is the tenant's; the tables are there and nowhere else."""
    with engine.connect() as made:
        connection = made.execution_options(schema_translate_map={name: "Tenant 1"})
        with connection.begin():
            schema.migrate(connection, schema=name)
        yield connection


def test_migrate_makes_the_tables_where_they_are_used(tenant: Connection, name: str | None) -> None:
    where = "SELECT DISTINCT schemaname FROM pg_tables WHERE tablename LIKE 'bgjob%'"
    with tenant.begin():
        assert tenant.scalars(text(where)).all() == ["Tenant 1"]
        assert schema.migrate(tenant, schema=name) == schema.LATEST
        assert schema.db_version(tenant, schema=name) == schema.LATEST


def test_a_worker_looks_at_the_tables_that_it_works_on(
    tenant: Connection, name: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = BGJob(MetaData(), schema=name)
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


def test_a_look_at_the_health_is_at_the_tables_that_are_used(
    tenant: Connection, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    statements = Statements(BGJob(MetaData(), schema=name).models)
    seen: list[list[str]] = []
    monkeypatch.setattr(lifecycle, "look", lambda _, tables: seen.append([*tables]))
    given: dict[str, Any] = {
        "hostname": "h",
        "pid": 1,
        "version": "0",
        "queues": {},
        "lease_timeout": 30.0,
    }
    lifecycle.register(tenant, statements, worker_id=ME, **given)

    lifecycle.sample_health(tenant, statements, worker_id=ME)

    assert seen == [[f'"Tenant 1"."bgjob_{kind}"' for kind in ("job", "dead_job", "worker")]]
