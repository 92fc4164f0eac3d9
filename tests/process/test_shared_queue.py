"""Two worker processes share the queue: each job runs once, whoever takes it."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from sqlalchemy_bgjob import enqueue, enqueue_many
from support import wait_until
from support.processes import ONE, TWO

if TYPE_CHECKING:
    from support.processes import Fleet


def each_ran_once(fleet: Fleet, count: int) -> None:
    starts = fleet.journal.starts()
    assert len(starts) == count
    assert {len(lines) for lines in starts.values()} == {1}
    assert {line["attempt"] for lines in starts.values() for line in lines} == {1}
    assert fleet.jobs_left == 0
    assert fleet.scalar("SELECT count(*) FROM bgjob_dead_job") == 0


def test_ten_thousand_jobs_each_run_once(fleet: Fleet) -> None:
    """Claims of two processes never overlap, whatever batches they take."""
    count = 10_000
    first, second = fleet.start(wait=False), fleet.start(wait=False)
    fleet.wait_for(first)
    fleet.wait_for(second)
    began = time.monotonic()

    enqueue_many(fleet.engine, fleet.app.quick, [None] * count)
    fleet.wait_until_done(90)

    print(f"{count} jobs by two processes: {count / (time.monotonic() - began):,.0f} per second")
    each_ran_once(fleet, count)
    for process in (first, second):
        assert len(fleet.started_by(process)) > 0


@pytest.mark.core
@pytest.mark.parametrize("variant", TWO, ids=str)
def test_effects_of_two_processes_are_exactly_once(fleet: Fleet) -> None:
    """What handlers write commits together with the job's end, and once."""
    count = 300
    first, second = fleet.start(wait=False), fleet.start(wait=False)
    fleet.wait_for(first)
    fleet.wait_for(second)

    ids = [f"job-{n:03}" for n in range(count)]
    enqueue_many(fleet.engine, fleet.app.effect, [None] * count, ids=ids)
    fleet.wait_until_done()

    each_ran_once(fleet, count)
    assert fleet.effects() == dict.fromkeys(ids, 1)
    wait_until(lambda: fleet.journal.count("completed") == count, what="all job_completed events")


LATER = (
    "ALTER TABLE bgjob_job ADD COLUMN later jsonb DEFAULT '{}', ADD COLUMN more bigint",
    "ALTER TABLE bgjob_dead_job ADD COLUMN later jsonb, ADD COLUMN more bigint",
    "ALTER TABLE bgjob_worker ADD COLUMN later text NOT NULL DEFAULT ''",
    "CREATE INDEX bgjob_job_later_idx ON bgjob_job (more) WHERE more IS NOT NULL",
    "CREATE TABLE bgjob_later (name text PRIMARY KEY)",
    "COMMENT ON TABLE bgjob_job IS 'sqlalchemy-bgjob schema 9 (workers since 1)'",
)


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_workers_go_on_while_the_tables_move_on(fleet: Fleet) -> None:
    """A deploy migrates first: workers of this release run before, during and after it."""
    ids = [f"job-{n:03}" for n in range(200)]
    before = fleet.start(wait=False)
    fleet.wait_for(before)
    enqueue_many(fleet.engine, fleet.app.effect, [None] * 100, ids=ids[:100])
    fleet.wait_for_starts(10, before)

    with fleet.engine.begin() as connection:
        for statement in LATER:
            connection.execute(text(statement))
    after = fleet.start()
    enqueue_many(fleet.engine, fleet.app.effect, [None] * 100, ids=ids[100:])
    enqueue(fleet.engine, fleet.app.give_up, id="dead")
    fleet.wait_until_done()

    assert before.alive
    assert after.alive
    assert fleet.scalar("SELECT job_id FROM bgjob_dead_job") == "dead"
    fleet.check([*ids, "dead"], with_effects=ids)


def test_a_busy_worker_leaves_the_rest_to_the_other(fleet: Fleet) -> None:
    """A job that one process has no free slot for is taken by another that has."""
    busy = fleet.start(slots=1)
    enqueue(fleet.engine, fleet.app.nap, 20.0, id="long")
    fleet.wait_for_starts(1, busy)
    idle = fleet.start(slots=1)

    began = time.monotonic()
    enqueue(fleet.engine, fleet.app.quick, id="short")
    wait_until(lambda: "short" in fleet.started_by(idle), 5.0, what="the start of the short job")

    assert time.monotonic() - began < 2.0
    assert fleet.started_by(busy) == ["long"]
