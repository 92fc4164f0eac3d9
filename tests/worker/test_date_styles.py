"""Sessions in which times are written in another way: as only few drivers can read, or locally."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from sqlalchemy_bgjob import enqueue_many
from support.databases import with_driver
from support.running import FLAVORS, Workbench

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context

GERMAN = {"connect_args": {"options": "-c DateStyle=German"}}


@pytest.mark.parametrize(
    "bench", [f for f in FLAVORS if f.driver != "asyncpg"], ids=str, indirect=True
)
def test_a_worker_runs_jobs_in_any_date_style(bench: Workbench) -> None:
    """Also of a lost worker, and with checks of the handler's transaction."""
    seen: list[str] = []

    def body(session: Session, ctx: Context[Any]) -> None:
        seen.append(session.connection().exec_driver_sql("SHOW DateStyle").scalar_one())
        bench.note(session, ctx)

    handler = bench.handler("t", body)
    job_id = bench.enqueue(handler)
    bench.put_lost_job()

    bench.run(engine=GERMAN, until=bench.none_left)

    assert bench.notes(job_id) == bench.notes("lost") == ["written"]
    own = "ISO" if bench.flavor.driver == "psycopg2" else "German"  # psycopg2 sets it itself
    assert {style.split(",")[0] for style in seen} == {own}


@pytest.mark.parametrize("bench", FLAVORS, ids=str, indirect=True)
def test_a_handler_may_set_how_times_are_written(bench: Workbench) -> None:
    """It has taken the connection, so its transaction is checked by the time of its start."""

    def body(session: Session, ctx: Context[Any]) -> None:
        connection = session.connection()
        connection.exec_driver_sql("SET LOCAL TIME ZONE 'Europe/Berlin'")
        connection.exec_driver_sql("SET LOCAL DateStyle = 'SQL, DMY'")
        bench.note(session, ctx)

    job_id = bench.enqueue(bench.handler("t", body))

    ran = bench.run(until=bench.none_left)

    assert bench.notes(job_id) == ["written"]
    assert ran.of(job_id) == ["started", "completed"]


def test_many_jobs_are_enqueued_in_any_date_style(bench: Workbench) -> None:
    if bench.flavor.is_async:
        return  # the same function, over the same statements
    handler = bench.handler("t", lambda ctx: None, uses_session=False)
    engine = create_engine(with_driver(bench.url, bench.flavor.driver), **GERMAN)

    assert enqueue_many(engine, handler, range(600)).inserted == 600

    engine.dispose()
