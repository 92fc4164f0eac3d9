"""What docs/operating.md says to run is run, and does what it says."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import JobAlreadyExists, enqueue
from support.pooler import POOLED
from support.running import one_of_each
from support.shop import make_tables, note

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from conftest import UrlFor
    from sqlalchemy_bgjob import Context
    from support.running import Workbench

PAGE = Path(__file__).parents[2] / "docs" / "operating.md"
(ENGINES,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
(EMPTY_THE_QUEUE,) = re.findall(r"```sql\n(.*?)```", PAGE.read_text(), re.DOTALL)


def leave_what_a_copy_has(bench: Workbench) -> list[str]:
    """Of production: a due job, one of a worker there, which is silent, and a user's schedule."""

    def handler(ctx: Context[Any]) -> None: ...

    mail = bench.handler("mail", handler, uses_session=False)
    due, running = bench.enqueue(mail), bench.enqueue(mail)
    bench.steal(running)
    bench.jobs.schedules.put(bench.outside, "report:7", mail, every=86_400)
    bench.sql("UPDATE bgjob_worker SET beat_at = now() - interval '1 day', lease_timeout = 1")
    return [due, running]


@one_of_each
def test_a_copy_of_production_runs_its_jobs(bench: Workbench) -> None:
    ids = leave_what_a_copy_has(bench)

    ran = bench.run(deadline=60.0, rescue_interval=0.2)

    assert all("completed" in ran.of(job_id) for job_id in ids)


@one_of_each
def test_an_emptied_copy_runs_nothing(bench: Workbench) -> None:
    leave_what_a_copy_has(bench)
    for statement in EMPTY_THE_QUEUE.split(";"):
        if statement.strip():
            bench.sql(statement)

    ran = bench.run()

    assert ran.named("job_started") == []
    assert bench.sql("SELECT name FROM bgjob_schedule") == []


def test_engines_for_a_pooler_are_the_tested_ones(engine: Engine, url_for: UrlFor) -> None:
    """They enqueue, and tests/system/test_pooler.py gives theirs the same arguments."""
    make_tables(engine)
    passed = {}

    def recorded(create: Callable[..., Any]) -> Callable[..., Any]:
        def make(url: str, *, connect_args: dict[str, Any]) -> Any:
            passed[url] = connect_args
            return create(url, connect_args=connect_args)

        return make

    program: dict[str, Any] = {
        "create_engine": recorded(create_engine),
        "create_async_engine": recorded(create_async_engine),
        "DATABASE_URL": url_for("psycopg"),
        "ASYNC_DATABASE_URL": url_for("asyncpg"),
        "uuid4": uuid4,
    }
    exec(compile(ENGINES, PAGE, "exec"), program)

    async def enqueue_by_asyncpg() -> None:
        await enqueue(program["asyncpg_engine"], note, 2)
        await program["asyncpg_engine"].dispose()

    enqueue(program["engine"], note, 1)
    program["engine"].dispose()
    asyncio.run(enqueue_by_asyncpg())

    assert passed[url_for("psycopg")] == POOLED["psycopg"]
    names, tested = dict(passed[url_for("asyncpg")]), dict(POOLED["asyncpg"])
    given, expected = (each.pop("prepared_statement_name_func")() for each in (names, tested))
    assert names == tested
    assert given.startswith("bgjob_")
    assert len(given) == len(expected)


def test_ids_are_shared_by_tenants_behind_row_security(engine: Engine) -> None:
    """As SECURITY.md says: a hidden job's id is taken, and with "ignore" nothing is made."""
    make_tables(engine)
    with engine.connect() as connection, connection.begin() as transaction:
        for statement in (
            "ALTER TABLE bgjob_job ENABLE ROW LEVEL SECURITY",
            "CREATE POLICY own ON bgjob_job USING (queue = 'mine') WITH CHECK (true)",
            "CREATE ROLE bgjob_tenant",  # gone with the rollback
            "GRANT ALL ON ALL TABLES IN SCHEMA public TO bgjob_tenant",
        ):
            connection.execute(text(statement))
        enqueue(connection, note, 1, id="order-7", queue="other")
        connection.execute(text("SET LOCAL ROLE bgjob_tenant"))

        assert connection.scalar(text("SELECT count(*) FROM bgjob_job")) == 0
        with pytest.raises(JobAlreadyExists):
            enqueue(connection, note, 2, id="order-7", queue="mine")
        ignored = enqueue(connection, note, 2, id="order-7", queue="mine", on_conflict="ignore")
        assert not ignored.inserted
        assert enqueue(connection, note, 2, id="mine-7", queue="mine").inserted
        transaction.rollback()
