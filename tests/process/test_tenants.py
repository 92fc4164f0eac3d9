"""examples/tenants: each tenant's job runs as that tenant, by schema and by row."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, select, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import JobAlreadyExists, Worker, enqueue
from support import wait_until
from support.cli import run
from support.rows import query

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from support.commands import Command

FOLDER = Path(__file__).parents[2] / "examples" / "tenants"


def loaded(name: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


@pytest.fixture
def by_schema(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    module = loaded("by_schema", monkeypatch)
    yield module
    module.engine.dispose()
    del sys.modules["by_schema"]


@pytest.fixture
def by_row(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The example with its tables, policies and grants, and roles of its own."""
    roles = {"WEB_URL": f"web_{engine.url.database}", "WORKER_URL": f"worker_{engine.url.database}"}
    monkeypatch.setenv("OWNER_URL", engine.url.render_as_string(hide_password=False))
    for variable, role in roles.items():
        url = engine.url.set(username=role, password="test")
        monkeypatch.setenv(variable, url.render_as_string(hide_password=False))
    web, worker = roles.values()
    with engine.begin() as connection:
        for role in (web, worker):
            connection.execute(text(f"CREATE ROLE \"{role}\" LOGIN PASSWORD 'test'"))
    module = loaded("by_row", monkeypatch)
    module.create_tables()
    code, granted, err = run("grants", "--enqueue", web, "--worker", worker)
    assert code == 0, err
    with engine.begin() as connection:
        connection.exec_driver_sql(granted)
    yield module
    module.web.dispose()
    del sys.modules["by_row"]
    with engine.begin() as connection:
        for role in (web, worker):
            connection.execute(text(f'DROP OWNED BY "{role}"'))
            connection.execute(text(f'DROP ROLE "{role}"'))


def test_a_tenants_worker_sees_its_schema_alone(
    by_schema: Any,
    engine: Engine,
    database_url: str,
    start: Callable[..., Command],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The command of one tenant first; the other's jobs wait for a worker of their own."""
    told = ast.get_docstring(ast.parse((FOLDER / "by_schema.py").read_text())) or ""
    command, _ = re.findall(r"^ *\$ TENANT=\w+ sqlalchemy-bgjob (.*)$", told, re.MULTILINE)
    for tenant, prices in (("globex", [1, 2, 3]), ("acme", [10, 20])):
        by_schema.add_tenant(tenant)
        by_schema.sell(tenant, prices)
    untouched = query(engine, "SELECT * FROM globex.bgjob_job")

    start(*shlex.split(command), cwd=FOLDER, DATABASE_URL=database_url, TENANT="acme")

    wait_until(lambda: not query(engine, "SELECT 1 FROM acme.bgjob_job"), 60, what="acme's report")
    assert query(engine, "SELECT orders, turnover FROM acme.reports") == [(2, 30)]
    assert query(engine, "SELECT * FROM globex.bgjob_job") == untouched != []
    for table in ("reports", "bgjob_worker"):
        assert query(engine, f"SELECT 1 FROM globex.{table}") == []
    monkeypatch.setenv("TENANT", "globex")
    own = by_schema.engine_of_worker()
    with Worker(by_schema.jobs, own):
        wait_until(lambda: not query(engine, "SELECT 1 FROM globex.bgjob_job"), what="globex's")
    own.dispose()
    assert query(engine, "SELECT orders, turnover FROM globex.reports") == [(3, 6)]
    assert query(engine, "SELECT count(*) FROM acme.reports") == [(1,)]


def test_one_worker_runs_each_job_as_its_tenant(
    by_row: Any, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """No query of the handler names a tenant; a job that dies keeps its own."""
    by_row.sell("globex", [1, 2, 3])
    by_row.sell("acme", [10, 20])
    with by_row.session_of("acme") as session:
        assert len(session.scalars(select(by_row.Job.id)).all()) == 1
        assert session.scalars(select(by_row.Order.price)).all() == [10, 20]
        by_row.jobs.enqueue(session, "no_such_type", queue="reports")

    own = create_engine(by_row.WORKER_URL)
    with Worker(by_row.jobs, own, unknown_type_grace=0):
        wait_until(lambda: not query(engine, "SELECT 1 FROM bgjob_job"), what="both reports")
    own.dispose()

    written = "SELECT tenant, orders, turnover FROM reports ORDER BY tenant"
    assert query(engine, written) == [("acme", 2, 30), ("globex", 3, 6)]
    assert query(engine, "SELECT tenant, type FROM bgjob_dead_job") == [("acme", "no_such_type")]
    assert "row level security" not in caplog.text


def test_ids_of_all_tenants_are_one_space(by_row: Any) -> None:
    """Row level security hides a job, and not that its id is taken."""
    with by_row.session_of("acme") as session:
        enqueue(session, by_row.write_report, id="report")

    with by_row.session_of("globex") as session:
        assert session.scalars(select(by_row.Job.id)).all() == []
        with pytest.raises(JobAlreadyExists):
            enqueue(session, by_row.write_report, id="report")


def test_without_a_tenant_nothing_is_enqueued(by_row: Any) -> None:
    """Also on a connection that has been a tenant's before."""
    by_row.sell("acme", [10])

    with by_row.Session(by_row.web) as session:
        with pytest.raises(DBAPIError, match="row-level security"):
            enqueue(session, by_row.write_report)
        session.rollback()
        assert session.scalars(select(by_row.Order.price)).all() == []
