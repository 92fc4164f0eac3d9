"""Queues that are read by time: their lanes are merged, by the index that all claims use."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sqlalchemy_bgjob._lifecycle import claim as claims
from sqlalchemy_bgjob._lifecycle import claim_one_by_one
from sqlalchemy_bgjob._lifecycle.claim import Look, Position
from sqlalchemy_bgjob._worker.plan.lanes import Lanes
from support.plans import Plan, recorded_plans
from support.rows import ME, OTHER, add, fill, ids, make_tables
from support.tables import new_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

    from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob
    from sqlalchemy_bgjob._sql import Statements
    from support.databases import TestServer
    from support.queue import Queue

pytestmark = pytest.mark.core

MODES = ["auto", "force_custom_plan", "force_generic_plan"]


def take(
    connection: Connection, statements: Statements, limit: int, **options: Any
) -> list[ClaimedJob]:
    given: dict[str, Any] = {"queue": "q", "worker_id": ME} | options
    with connection.begin():
        return claims.claim(connection, statements, limit=limit, by_time=True, **given)


def in_order(queue: Queue) -> list[str]:
    with queue.engine.connect() as connection:
        due = text(
            "SELECT id FROM bgjob_job WHERE next_run_at <= now() ORDER BY next_run_at, priority, id"
        )
        return list(connection.execute(due).scalars())


def test_time_comes_before_priority(queue: Queue) -> None:
    """Which decides between equals, and after it the id."""
    queue.put("late", priority=-9, due_in=-1.0)
    queue.put("early", priority=9, due_in=-60.0)
    queue.put("not yet", priority=-9, due_in=60.0)
    for id, priority in (("d", 2), ("c", 1), ("b", 2), ("a", 1)):
        queue.put(id, priority=priority)
    queue.execute("UPDATE bgjob_job SET next_run_at = now() - '30 s'::interval WHERE id < 'e'")

    taken = ids(take(queue.connection, queue.statements, 10))

    assert taken == ["early", "a", "c", "b", "d", "late"]


@pytest.mark.parametrize("limit", [1, 7, 100])
def test_reading_on_keeps_the_order_to_the_end(queue: Queue, limit: int) -> None:
    """Ten priorities, and times of which many are equal; the head is read once."""
    dice = random.Random(limit)
    with queue.engine.begin() as connection:
        for n in range(300):
            add(connection, f"{n:03}", priority=dice.randrange(10))
            connection.execute(
                text("UPDATE bgjob_job SET next_run_at = now() - :ago * '1 s'::interval")
                if n == 0
                else text(
                    "UPDATE bgjob_job SET next_run_at = date_trunc('second', now())"
                    " - :ago * '1 s'::interval WHERE id = :id"
                ),
                {"ago": dice.randrange(10, 60), "id": f"{n:03}"},
            )
    expected = in_order(queue)
    lanes = Lanes(by_time=True)
    taken = take(queue.connection, queue.statements, limit)
    lanes.head_scanned(range(10), 0.001, 0.0)
    found = ids(taken)
    while len(taken) == limit:
        last = taken[-1]
        lanes.read(Position(last.priority, last.next_run_at, last.id), 0.0, found=True)
        onward = lanes.onward(0.0)
        assert onward is not None
        taken = take(queue.connection, queue.statements, limit, onward=onward)
        found += ids(taken)

    assert found == expected


def test_each_queue_of_one_claim_has_its_own_limit(queue: Queue) -> None:
    for name in ("a", "b"):
        queue.put(f"{name}-last", queue=name, priority=-5, due_in=-1.0)
        queue.put(f"{name}-first", queue=name, priority=5, due_in=-9.0)
        queue.put(f"{name}-second", queue=name, due_in=-5.0)
    looks = [Look(name, limit, by_time=True) for name, limit in (("b", 2), ("none", 9), ("a", 9))]

    with queue.connection.begin():
        found = claims.claim_from_queues(
            queue.connection, queue.statements, looks=looks, worker_id=ME
        )

    assert [ids(of_queue.jobs) for of_queue in found] == [
        ["b-first", "b-second"],
        [],
        ["a-first", "a-second", "a-last"],
    ]
    assert found[0].priorities == [-5, 0, 5]


def test_what_somebody_has_locked_is_passed_over(queue: Queue) -> None:
    with queue.engine.begin() as connection:
        fill(connection, 50, priority=1, due_in=-60.0, prefix="locked-")
    queue.put("free", priority=2, due_in=-30.0)

    with queue.engine.connect() as other:
        other.execute(text("SELECT FROM bgjob_job WHERE id LIKE 'locked-%' FOR UPDATE"))
        assert ids(take(queue.connection, queue.statements, 3)) == ["free"]


def test_row_by_row_the_order_is_the_same(queue: Queue) -> None:
    queue.put("second", priority=-5, due_in=-1.0)
    queue.put("first", priority=5, due_in=-9.0)

    with queue.connection.begin():
        jobs, refused = claim_one_by_one.claim(
            queue.connection, queue.statements, queue="q", limit=1, worker_id=ME, by_time=True
        )

    assert (ids(jobs), refused) == (["first"], {})


def test_two_workers_take_each_job_once(queue: Queue) -> None:
    with queue.engine.begin() as connection:
        for priority in range(4):
            fill(connection, 500, priority=priority, prefix=f"{priority}-")

    def work(worker: int) -> list[str]:
        found: list[str] = []
        with queue.engine.connect() as connection:
            while queue.execute("SELECT count(*) FROM bgjob_job WHERE claimed_by IS NULL"):
                found += ids(take(connection, queue.statements, 20, worker_id=worker))
        return found

    with ThreadPoolExecutor(2) as pool:
        one, two = pool.map(work, (ME, OTHER))

    assert len(one) + len(two) == len({*one, *two}) == 2_000


def test_its_updates_are_hot(queue: Queue) -> None:
    with queue.engine.begin() as connection:
        for priority in range(3):
            fill(connection, 10, priority=priority, prefix=f"{priority}-")
    counts = text(
        "SELECT n_tup_upd, n_tup_hot_upd FROM pg_stat_xact_user_tables"
        " WHERE relid = CAST('bgjob_job' AS regclass)"
    )

    with queue.connection.begin():
        before = queue.connection.execute(counts).one()
        claims.claim(
            queue.connection, queue.statements, queue="q", limit=30, worker_id=ME, by_time=True
        )
        after = queue.connection.execute(counts).one()

    assert tuple(now - then for then, now in zip(before, after, strict=True)) == (30, 30)


@pytest.fixture(scope="module", params=["never analysed", "analysed", "analysed while empty"])
def deep(request: pytest.FixtureRequest, server: TestServer) -> Iterator[tuple[Engine, Statements]]:
    """20,000 jobs in each of three priorities, beside as many of another queue."""
    from sqlalchemy_bgjob._sql import Statements

    with new_engine(server) as engine:
        statements = Statements(make_tables(engine))
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE bgjob_job SET (autovacuum_enabled = off)"))
            if request.param == "analysed while empty":
                fill(connection, 20_000, queue="busy", prefix="busy-")
                connection.execute(text("ANALYZE bgjob_job"))
            for priority in range(3):
                fill(connection, 20_000, priority=priority, prefix=f"{priority}-")
            fill(connection, 20_000, due_in=3_600.0, prefix="later-")
            if request.param == "analysed":
                connection.execute(text("ANALYZE bgjob_job"))
        yield engine, statements


@pytest.mark.parametrize("mode", MODES)
def test_it_reads_what_it_may_take_of_each_lane(deep: tuple[Engine, Statements], mode: str) -> None:
    """By the index of all claims, whatever the statistics say and however deep the lanes are."""
    engine, statements = deep
    limit = 100
    steps: dict[str, Plan] = {}

    with engine.connect() as connection, recorded_plans(connection, mode) as plans:

        def note(name: str, jobs: list[ClaimedJob], wanted: int = limit) -> None:
            assert len(jobs) == wanted
            steps[name] = plans[-1]
            plans.clear()

        for _ in range(7 if mode == "auto" else 1):
            jobs = take(connection, statements, limit)
        note("head", jobs)
        last = jobs[-1]
        onward = [Position(p, last.next_run_at, "") for p in range(3)]
        for _ in range(7 if mode == "auto" else 1):
            jobs = take(connection, statements, limit, onward=onward)
        note("onward", jobs)
        note("absent", take(connection, statements, limit, queue="absent"), 0)
        with connection.begin():
            (found,) = claims.claim_from_queues(
                connection, statements, looks=[Look("q", limit, by_time=True)], worker_id=ME
            )
        note("queues", found.jobs)

    index = "bgjob_job_due_idx"
    for name, plan in steps.items():
        wanted = {f"Index Scan {index}", f"Index Only Scan {index}", "Tid Scan"}
        assert plan.scans() <= wanted, (name, plan.scans())
        assert plan.buffers < 30 * limit, (name, plan.buffers)
