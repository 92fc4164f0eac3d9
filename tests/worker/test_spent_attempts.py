"""Jobs that wait although their attempts are spent, as after a deploy that lowers max_attempts.

A job that never took its worker along gets the run that it waits for. One that did has had its
starts: it is dead, with a reason that is true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text
from test_work_one_by_id import work as work_one

from sqlalchemy_bgjob import MoveToDlq, Reschedule, Retry, WorkerLost, enqueue
from support.processes import FAST, Fleet
from support.running import one_of_each

if TYPE_CHECKING:
    from support.running import Workbench


def spend(
    bench: Workbench, id: str, *, attempt: int, crashes: int = 0, error: str = "before"
) -> str:
    """Let a queued job have had its attempts."""
    bench.sql(
        "UPDATE bgjob_job SET attempt = :attempt, crashes = :crashes, last_error = :error"
        " WHERE id = :id",
        id=id,
        attempt=attempt,
        crashes=crashes,
        error=error,
    )
    return id


def test_a_job_that_waits_gets_its_run(bench: Workbench) -> None:
    """At the limit or beyond; what it comes to then is what is told of it."""
    seen: dict[str, int] = {}

    def body(ctx: Any) -> None:
        seen[ctx.job.id] = ctx.job.attempt
        if ctx.job.id.startswith("bad"):
            raise ValueError("of its own")

    handler = bench.handler("t", body, uses_session=False, max_attempts=3)
    for attempt in (3, 9):
        for name in ("good", "bad"):
            spend(bench, bench.enqueue(handler, id=f"{name}-{attempt}"), attempt=attempt)

    ran = bench.run()

    assert seen == {"good-3": 4, "good-9": 10, "bad-3": 4, "bad-9": 10}
    for attempt in (3, 9):
        assert ran.of(f"good-{attempt}") == ["started", "completed"]
        assert ran.of(f"bad-{attempt}") == ["started", "moved_to_dlq"]
        dead = bench.dead(f"bad-{attempt}")
        assert dead.last_error.startswith("ValueError: of its own")
        assert dead.attempt == attempt + 1


@one_of_each
def test_a_run_beyond_the_limit_may_end_in_any_way(bench: Workbench) -> None:
    """It may be put off without an end; a failure is its last, and says why."""
    outcomes = {"later": Reschedule(3600), "again": Retry(), "given up": MoveToDlq(), "good": None}
    ids = {
        name: bench.enqueue(
            bench.handler(
                name, lambda ctx, name=name: outcomes[name], uses_session=False, max_attempts=2
            )
        )
        for name in outcomes
    }
    for job_id in ids.values():
        spend(bench, job_id, attempt=6)

    bench.run()

    assert bench.job(ids["good"]) is None
    assert bench.job(ids["later"]).attempt == 6
    again = bench.dead(ids["again"])
    reason = "attempt 7 ended in a Retry that names no error, and max_attempts is 2"
    assert (again.attempt, again.last_error) == (7, reason)
    assert [entry["attempt"] for entry in again.errors] == [7]
    assert bench.dead(ids["given up"]).last_error == "before"


@one_of_each
def test_work_one_runs_a_job_beyond_its_limit_too(bench: Workbench) -> None:
    ran: list[int] = []
    handler = bench.handler(
        "t", lambda ctx: ran.append(ctx.job.attempt), uses_session=False, max_attempts=2
    )
    for name, crashes in (("spent", 0), ("poison", 1)):
        spend(bench, bench.enqueue(handler, id=name), attempt=6, crashes=crashes)

    for name in ("spent", "poison"):
        work_one(bench, name)

    assert ran == [7]
    assert bench.dead("poison").last_error.startswith("WorkerLost: 1 of 6 attempts ended")


@pytest.mark.core
def test_a_job_that_took_workers_along_is_dead_unrun(bench: Workbench) -> None:
    handler = bench.handler("t", lambda ctx: None, uses_session=False, max_attempts=3)
    spend(bench, bench.enqueue(handler, id="poison"), attempt=3, crashes=3)
    # It has failed otherwise since; the limit was 20 then.
    spend(bench, bench.enqueue(handler, id="mixed"), attempt=5, crashes=1, error="ValueError: x")
    spend(bench, bench.enqueue(handler, id="left"), attempt=2, crashes=2)

    ran = bench.run()

    assert ran.of("left") == ["started", "completed"]
    assert ran.of("poison") == ran.of("mixed") == ["moved_to_dlq"]
    assert bench.dead("poison").last_error == f"WorkerLost: {WorkerLost(3, 3, 3)}\nbefore"
    mixed = bench.dead("mixed")
    assert mixed.attempt == 5
    assert mixed.last_error == f"WorkerLost: {WorkerLost(1, 5, 3)}\nValueError: x"


def test_a_moved_in_job_that_kills_is_dead_after_a_start(fleet: Fleet) -> None:
    """It comes with its attempts spent, and none of them is known to have been a crash."""
    enqueue(fleet.engine, fleet.app.crash, None, id="poison")
    with fleet.engine.begin() as connection:
        connection.execute(text("UPDATE bgjob_job SET attempt = 4"))

    process = fleet.start(crash_attempts=4, wait=False, **FAST)
    process.dies()
    fleet.start(crash_attempts=4, **FAST)
    fleet.wait_until_done(60)

    assert [line["attempt"] for line in fleet.journal.starts()["poison"]] == [5]
    (dead,) = fleet.rows("SELECT attempt, crashes, last_error FROM bgjob_dead_job")
    assert (dead.attempt, dead.crashes) == (5, 1)
    assert dead.last_error.startswith("WorkerLost: 1 of 5 attempts ended")
