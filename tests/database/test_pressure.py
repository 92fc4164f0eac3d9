"""How much waits in a queue: right, cheap, and the same by the SQL for autoscalers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, MetaData, insert, text

from sqlalchemy_bgjob import BGJob, Pressure
from sqlalchemy_bgjob._inspect.pressure import MOST, pressure_sql
from sqlalchemy_bgjob._inspect.queues import all_queues
from sqlalchemy_bgjob.models import build_models
from support.plans import recorded_plans
from support.rows import add, fill
from support.tables import NAMES, create_all, new_queue

if TYPE_CHECKING:
    from support.tables import Names

pytestmark = pytest.mark.core


@pytest.fixture
def jobs(engine: Engine) -> BGJob:
    jobs = new_queue()
    jobs.metadata.create_all(engine)
    return jobs


def by_sql(engine: Engine, queue: str = "q") -> Any:
    with engine.connect() as connection:
        return connection.exec_driver_sql(
            pressure_sql(queue, schema=None, table_prefix="bgjob_")
        ).scalar_one()


def test_it_counts_what_is_due_and_not_claimed(jobs: BGJob, engine: Engine) -> None:
    assert jobs.pressure(engine, "q") == Pressure(0, 0.0)
    with engine.begin() as connection:
        add(connection, "due", due_in=-10)
        add(connection, "oldest", due_in=-500, priority=7)
        add(connection, "running", due_in=-900, claimed_by=1)
        add(connection, "later", due_in=900)
        add(connection, "elsewhere", due_in=-900, queue="other")

    found = jobs.pressure(engine, "q")

    assert found.due == by_sql(engine) == 2
    assert found.oldest_age == pytest.approx(500, abs=30)


def test_it_goes_by_the_clock_in_a_long_transaction(jobs: BGJob, engine: Engine) -> None:
    with engine.connect() as connection:
        connection.execute(text("SELECT now()"))
        with engine.begin() as other:
            add(other, "new", due_in=0)

        assert jobs.pressure(connection, "q").due == 1


def test_a_paused_queue_asks_for_no_worker(jobs: BGJob, engine: Engine) -> None:
    with engine.begin() as connection:
        add(connection, "due")
    jobs.pause(engine, "q")
    assert jobs.pressure(engine, "q") == Pressure(0, 0.0)
    assert by_sql(engine) == 0

    jobs.resume(engine, "q")
    jobs.set_slots(engine, "q", 3)
    assert jobs.pressure(engine, "q").due == by_sql(engine) == 1


def test_counting_stops_and_looks_at_no_scheduled_job(jobs: BGJob, engine: Engine) -> None:
    """It reads about as many jobs as it counts, and by the index."""
    with engine.begin() as connection:
        for priority in (-1, 0, 5):
            fill(connection, 6_000, priority=priority, prefix=f"due{priority}")
            fill(connection, 3_000, priority=priority, due_in=3_600, prefix=f"later{priority}")
        fill(connection, 3_000, queue="other")
        connection.execute(
            text(
                "UPDATE bgjob_job SET next_run_at = now() - interval '1 day'"
                " WHERE id = 'due5000000001'"
            )
        )
    with engine.connect() as connection, recorded_plans(connection) as plans:
        with connection.begin():
            plans.clear()
            found = jobs.pressure(connection, "q")
        (plan,) = plans

    assert found.due == MOST == 10_001
    assert found.oldest_age == pytest.approx(86_400, abs=60), "of the last priority"
    indexes = {node.get("Index Name") for node in plan.nodes() if "Index" in node["Node Type"]}
    assert indexes <= {"bgjob_job_due_idx", "bgjob_control_pkey"}
    read = sum(
        node["Actual Rows"] * node["Actual Loops"]
        for node in plan.nodes()
        if node.get("Relation Name") == "bgjob_job"
    )
    assert read < MOST + 20
    assert str(MOST) in pressure_sql("q", schema=None, table_prefix="bgjob_")


@pytest.mark.parametrize("name", NAMES)
def test_its_sql_quotes_every_name(connection: Connection, name: str) -> None:
    names: Names = NAMES[name]
    queue = 'it\'s 5% of "x":y \\ {z} :queue ?'
    create_all(connection, names)
    models = build_models(MetaData(), **names.where)
    connection.execute(insert(models.job).values(id="a", queue=queue, type="t"))

    driver: Any = connection.connection.driver_connection
    assert driver.execute(pressure_sql(queue, **names.where)).fetchall() == [(1,)]
    assert new_queue(**names.where).pressure(connection, queue).due == 1
    (found,) = all_queues(connection, names.schema, names.prefix)
    assert (found.queue, found.due) == (queue, 1)


def test_the_table_of_queues_tells_jobs_workers_and_pauses(jobs: BGJob, engine: Engine) -> None:
    with engine.begin() as connection:
        for n in range(3):
            add(connection, f"due-{n}", priority=n)
        add(connection, "running", claimed_by=1)
        add(connection, "later", due_in=3_600)
        add(connection, "unserved", queue="files")
        connection.execute(
            text(
                "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout,"
                " beat_at) VALUES (1, 'h', 1, 'x', '{\"q\": 10, \"idle\": 2}', 30, now()),"
                " (2, 'h', 2, 'x', '{\"q\": 5}', 30, now()),"
                " (3, 'h', 3, 'x', '{\"q\": 5}', 30, now() - interval '1 hour')"
            )
        )
    jobs.pause(engine, "q", by="ada", reason="no")
    jobs.set_slots(engine, "idle", 7)
    jobs.pause(engine, "empty", until=1_000)

    with engine.connect() as connection:
        found = {one.queue: one for one in all_queues(connection, None, "bgjob_")}

    assert sorted(found) == ["empty", "files", "idle", "q"]
    q = found["q"]
    assert (q.due, q.scheduled, q.running) == (3, 1, 1)
    assert (q.workers, q.slots, q.set_slots) == (2, 15, None)
    assert q.paused is not None
    assert (q.paused.by, q.paused.reason, q.paused.until) == ("ada", "no", None)
    assert str(q.paused).endswith(" UTC by ada: no")
    idle = found["idle"]
    assert (idle.due, idle.workers, idle.slots, idle.set_slots) == (0, 1, 7, 7)
    assert idle.paused is None
    assert (found["files"].due, found["files"].slots) == (1, 0)
    empty = found["empty"].paused
    assert empty is not None
    assert ", until " in str(empty)


def test_queues_are_counted_up_to_a_number_of_them(jobs: BGJob, engine: Engine) -> None:
    """The other ones are not read, and every number says that it is a lower bound."""
    with engine.begin() as connection:
        for n in range(300):
            add(connection, f"due-{n}", queue=f"q{n:03}")
        add(connection, "urgent", queue="q000", priority=-1)
        connection.execute(text("ANALYZE bgjob_job"))
    with engine.connect() as connection, recorded_plans(connection) as plans:
        found = all_queues(connection, None, "bgjob_", lanes=4)

    assert [(one.queue, one.due, one.stopped) for one in found] == [
        ("q000", 2, True),
        ("q001", 1, True),
        ("q002", 1, True),
    ]
    read = sum(
        node["Actual Rows"] * node["Actual Loops"]
        for plan in plans
        for node in plan.nodes()
        if node.get("Relation Name") == "bgjob_job"
    )
    assert read <= 12

    with engine.connect() as connection:
        assert len(all_queues(connection, None, "bgjob_")) == 300
        whole = all_queues(connection, None, "bgjob_", lanes=302)
    assert (len(whole), any(one.stopped for one in whole)) == (300, False)


def test_many_queues_share_what_is_counted(jobs: BGJob, engine: Engine) -> None:
    """A page of a thousand queues costs no thousandfold."""
    with engine.begin() as connection:
        for n in range(10):
            for place in range(5):
                add(connection, f"due-{n}-{place}", queue=f"q{n}")
        add(connection, "later", queue="q0", due_in=3_600)
        found = {
            most: all_queues(connection, None, "bgjob_", many=4, most=most)
            for most in (None, 1_000, 20, 1)
        }

    assert {most: {one.due for one in queues} for most, queues in found.items()} == {
        None: {4},
        1_000: {4},
        20: {2},
        1: {1},
    }
    assert all(one.stopped for queues in found.values() for one in queues)
