"""One claim from many queues: each has its own limit, lanes and position."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from math import inf
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import text

from sqlalchemy_bgjob._drafts.validation import EARLIEST
from sqlalchemy_bgjob._lifecycle import claim as claims
from sqlalchemy_bgjob._lifecycle.claim import Look, Position
from support.rows import ME, OTHER, ids, rows

if TYPE_CHECKING:
    from sqlalchemy_bgjob._lifecycle.claim import Found
    from support.queue import Queue

pytestmark = pytest.mark.core


def look(queue: Queue, *looks: Look) -> list[Found]:
    with queue.connection.begin():
        return claims.claim_from_queues(
            queue.connection, queue.statements, looks=looks, worker_id=ME
        )


def test_each_queue_has_its_own_limit_and_order(queue: Queue) -> None:
    for name in ("a", "b", "c"):
        queue.put(f"{name}-late", queue=name, due_in=-1.0)
        queue.put(f"{name}-early", queue=name, due_in=-9.0)
        queue.put(f"{name}-urgent", queue=name, priority=-5, due_in=-1.0)
        queue.put(f"{name}-idle", queue=name, priority=7, due_in=-99.0)

    found = look(queue, Look("c", 3), Look("none", 5), Look("a", 1), Look("b", 9))

    assert [ids(of_queue.jobs) for of_queue in found] == [
        ["c-urgent", "c-early", "c-late"],
        [],
        ["a-urgent"],
        ["b-urgent", "b-early", "b-late", "b-idle"],
    ]
    assert [of_queue.priorities for of_queue in found] == [[-5, 0, 7], [], [-5, 0, 7], [-5, 0, 7]]
    assert {job.queue for job in found[3].jobs} == {"b"}
    taken = {row.id for row in rows(queue.connection).values() if row.claimed_by == ME}
    assert len(taken) == sum(len(of_queue.jobs) for of_queue in found)


def test_what_it_claims_is_what_a_claim_of_one_queue_does(queue: Queue) -> None:
    queue.put("plain", arg=b"\x00\xff", headers='{"k": [1, "x"]}', last_error="before")
    queue.put("unknown", unknown_since=datetime.now(UTC) - timedelta(seconds=60))

    (found,) = look(queue, Look("q", 10))
    queue.execute("UPDATE bgjob_job SET claimed_by = NULL, attempt = 0, lease = lease - 1")
    single = queue.claim()

    for one, other in zip(found.jobs, single, strict=True):
        for name in one.__slots__:
            if name not in ("updated_at", "unknown_for"):
                assert getattr(one, name) == getattr(other, name), name
    assert [job.unknown_for is None for job in found.jobs] == [True, False]


def test_each_queue_is_read_on_from_its_own_positions(queue: Queue) -> None:
    now = datetime.now(UTC)
    for name in ("a", "b"):
        for n in range(4):
            queue.put(f"{name}{n}", queue=name, due_in=n - 60.0)
            queue.put(f"{name}5-{n}", queue=name, priority=5, due_in=n - 60.0)
    behind = {row.id: row.next_run_at for row in rows(queue.connection).values()}

    found = look(
        queue,
        Look("a", 9, (Position(0, behind["a1"], "a1"), Position(5, behind["a5-2"], "a5-2"))),
        Look("b", 9, (Position(5, EARLIEST, ""),)),
        Look("none", 9, (Position(0, None, ""),)),
    )

    assert [ids(of_queue.jobs) for of_queue in found] == [
        ["a2", "a3", "a5-3"],
        ["b5-0", "b5-1", "b5-2", "b5-3"],
        [],
    ]
    assert [of_queue.priorities for of_queue in found] == [None, None, None]
    queue.put("late", queue="a", due_in=-1.0)
    queue.put("too late", queue="a", due_in=-10.0)
    (found_late,) = look(queue, Look("a", 9, (Position(0, None, ""),)))
    assert ids(found_late.jobs) == ["late"], f"two seconds before {now}"


def test_it_tells_when_the_next_job_of_each_queue_is_due(queue: Queue) -> None:
    queue.put("a", queue="a", due_in=500.0)
    queue.put("a1", queue="a", priority=1, due_in=100.0)
    queue.put("b", queue="b", due_in=-1.0)
    queue.put("b1", queue="b", due_in=300.0)
    queue.put("running", queue="c", claimed_by=OTHER)

    a, b, c, onward = (
        found.due_in or 0.0
        for found in look(
            queue, Look("a", 1), Look("b", 1), Look("c", 1), Look("d", 1, (Position(0, None, ""),))
        )
    )

    assert 80 < a <= 100
    assert 280 < b <= 300
    assert c == onward == inf


def test_two_workers_share_the_jobs_of_all_queues(queue: Queue) -> None:
    """The one passes over what the other has locked, and waits for nothing."""
    for name in ("a", "b"):
        queue.put(*(f"{name}{n}" for n in range(6)), queue=name, due_in=-1.0)

    with queue.engine.connect() as connection, connection.begin():
        first = claims.claim_from_queues(
            connection, queue.statements, looks=[Look("a", 2), Look("b", 4)], worker_id=OTHER
        )
        second = look(queue, Look("a", 9), Look("b", 9))

    assert [ids(found.jobs) for found in first] == [["a0", "a1"], ["b0", "b1", "b2", "b3"]]
    assert [ids(found.jobs) for found in second] == [["a2", "a3", "a4", "a5"], ["b4", "b5"]]


def test_a_slow_way_to_a_head_is_told_of_that_queue_alone(queue: Queue) -> None:
    """Dead index entries of one queue make its looks rare, and not those of the others."""
    with queue.engine.connect() as old:
        old.execute(text("SELECT txid_current()"))
        queue.execute(
            "INSERT INTO bgjob_job (id, queue, type, priority, next_run_at)"
            " SELECT 'x' || n, 'slow', 't', n % 30000, now() FROM generate_series(1, 60000) AS n"
        )
        queue.execute("DELETE FROM bgjob_job WHERE queue = 'slow' AND id <> 'x29999'")
        looks = [Look(name, 1, None) for name in ("a", "slow", "b")]
        found = [look(queue, *looks) for _ in range(3)]

    a, slow, b = (
        min(of_queue.seconds for of_queue in column) for column in zip(*found, strict=True)
    )
    assert slow > 2 * a
    assert slow > 2 * b
