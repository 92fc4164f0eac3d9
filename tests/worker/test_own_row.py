"""A handler, or a trigger of the user's, that takes a job's own row away or keeps it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sqlalchemy_bgjob import MoveToDlq, Retry, constant
from sqlalchemy_bgjob._worker import control, drain
from sqlalchemy_bgjob._worker.plan import outbox
from support.running import Recorder, Workbench, one_of_each, paired
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context
    from support.tuning import Tune

AT_ONCE = constant(0.0)
MISSING = "the job's own row is not there in the transaction of ctx.session"
KEPT = "a trigger keeps the job's row as it is"


def by_orm(bench: Workbench, s: Session, ctx: Context[Any]) -> None:
    s.delete(s.get_one(bench.jobs.Job, ctx.job.id))


def by_sql(bench: Workbench, s: Session, ctx: Context[Any]) -> None:
    s.execute(text("DELETE FROM bgjob_job WHERE id = :id"), {"id": ctx.job.id})


def renamed(bench: Workbench, s: Session, ctx: Context[Any]) -> None:
    s.get_one(bench.jobs.Job, ctx.job.id).id = f"{ctx.job.id}-done"


def lease_changed(bench: Workbench, s: Session, ctx: Context[Any]) -> None:
    s.execute(
        text("UPDATE bgjob_job SET claimed_by = NULL, lease = lease + 1 WHERE id = :id"),
        {"id": ctx.job.id},
    )


def led_elsewhere(bench: Workbench, s: Session, ctx: Context[Any]) -> None:
    s.execute(text("CREATE TEMP TABLE bgjob_job (LIKE bgjob_job) ON COMMIT DROP"))


@pytest.mark.core
@paired("change", [by_orm, by_sql, renamed, lease_changed, led_elsewhere])
def test_a_handler_that_changes_its_own_row_has_failed(
    bench: Workbench, change: Callable[..., None]
) -> None:
    """It is told the reason, each attempt counts, and the last one is the end."""

    def body(s: Session, ctx: Context[Any]) -> None:
        bench.note(s, ctx)
        change(bench, s, ctx)

    handler = bench.handler("t", body, retry=AT_ONCE, max_attempts=3)
    job_id = bench.enqueue(handler, id="own")
    ran = bench.run()

    expected = ["started", "will_be_retried"] * 2 + ["started", "moved_to_dlq"]
    assert ran.of(job_id) == expected
    dead = bench.dead(job_id)
    assert dead.attempt == 3
    assert MISSING in dead.last_error
    assert bench.notes(job_id) == []


@paired("outcome", [Retry(3600), MoveToDlq("given up")])
def test_another_outcome_for_a_row_that_is_gone(bench: Workbench, outcome: Any) -> None:
    def body(s: Session, ctx: Context[Any]) -> Any:
        by_sql(bench, s, ctx)
        return outcome

    job_id = bench.enqueue(bench.handler("t", body, retry=AT_ONCE, max_attempts=1))
    ran = bench.run()

    assert ran.of(job_id) == ["started", "moved_to_dlq"]
    assert MISSING in bench.dead(job_id).last_error


@pytest.mark.parametrize("uses_session", [True, False])
@one_of_each
def test_a_row_that_is_deleted_from_outside_is_a_lost_lease(
    bench: Workbench, uses_session: bool
) -> None:
    """Committed by another session: the job is no more, and nothing is written."""

    def body(*args: Any) -> None:
        if uses_session:
            bench.note(*args)
        bench.sql("DELETE FROM bgjob_job WHERE id = :id", id=args[-1].job.id)

    job_id = bench.enqueue(bench.handler("t", body, uses_session=uses_session))
    recorder = Recorder()
    bench.run(
        observers=(recorder,),
        until=lambda: any(e.name == "job_lease_lost" for e in recorder.events),
        deadline=60.0,
    )

    assert [e.name for e in recorder.events if e.job] == ["job_started", "job_lease_lost"]
    assert bench.job(job_id) is bench.dead(job_id) is None
    assert bench.notes(job_id) == []


@one_of_each
def test_a_trigger_that_keeps_the_row_fails_the_attempt(bench: Workbench) -> None:
    job_id = bench.enqueue(bench.handler("t", bench.note, retry=constant(3600.0)))

    with bench.trigger("RETURN NULL;"):
        ran = bench.run()

    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert KEPT in bench.job(job_id).last_error
    assert bench.job(job_id).attempt == 1
    assert bench.notes(job_id) == []


@paired("how", ["RETURN NULL;", "RAISE EXCEPTION 'no';"])
def test_an_end_that_is_refused_names_no_frame(bench: Workbench, how: str) -> None:
    """None of them is the user's: the handler had returned."""
    job_id = bench.enqueue(bench.handler("t", bench.note, retry=constant(3600.0)))

    with bench.trigger(how):
        bench.run()

    assert (KEPT if "NULL" in how else "P0001") in bench.job(job_id).last_error
    assert "\n" not in bench.job(job_id).last_error


@pytest.mark.parametrize("how", ["RETURN NULL;", "RAISE EXCEPTION 'no';"])
@paired("end", ["complete", "die"])
def test_a_trigger_that_keeps_the_row_does_not_run_the_job_again(
    bench: Workbench, how: str, end: str, tune: Tune
) -> None:
    """Its settlement is tried until the trigger is gone; the row says why, and so does an event."""
    tune(outbox, _RETRY_REFUSED=(0.1, 1.0))
    calls: list[str] = []

    def body(ctx: Context[Any]) -> Any:
        calls.append(ctx.job.id)
        return MoveToDlq("given up") if end == "die" else None

    job_id = bench.enqueue(bench.handler("t", body, uses_session=False))
    recorder = Recorder()

    def mend() -> None:
        wait_until(lambda: bench.job(job_id).last_error, 60)
        seen.append(bench.job(job_id).last_error)

    seen: list[str] = []
    with bench.trigger(how):
        # The worker outlives the trigger, and settles the job then.
        bench.run(
            observers=(recorder,),
            during=mend,
            until=lambda: (
                bench.sql("DROP TRIGGER IF EXISTS of_the_user ON bgjob_job") is not None
                and bench.job(job_id) is None
            ),
            deadline=60.0,
        )

    assert "was refused" in seen[0]
    assert (KEPT if "NULL" in how else "P0001") in seen[0]
    assert len(calls) == 1
    assert any(e.name == "worker_error" for e in recorder.events)
    assert (bench.dead(job_id) is None) == (end == "complete")


@paired("how", ["RETURN NULL;", "RAISE EXCEPTION 'no';"])
def test_a_trigger_that_refuses_a_settlement_keeps_the_session(
    bench: Workbench, how: str, tune: Tune
) -> None:
    """A new session would meet the same trigger."""
    tune(control, DOUBTED_AFTER=0.0)
    tune(outbox, _RETRY_REFUSED=(0.1, 1.0))
    bench.enqueue(bench.handler("t", lambda ctx: None, uses_session=False))
    for name in ("tries", "pid"):  # their changes outlive a ROLLBACK
        bench.sql(f"CREATE SEQUENCE {name}")
    pids: list[int] = []

    def tries_seen() -> int:
        [(last, used)] = bench.sql("SELECT last_value, is_called FROM tries")
        return int(last) if used else 0

    def watch() -> None:
        for tries in range(1, 4):
            wait_until(lambda n=tries: tries_seen() >= n, 60, what="the next try")
            pids.append(bench.sql("SELECT last_value FROM pid")[0][0])

    tells = "PERFORM setval('pid', pg_backend_pid()); PERFORM nextval('tries');"
    try:
        with bench.trigger(f"{tells} {how}"):
            bench.run(
                during=watch,
                until=lambda: bench.sql("DROP TRIGGER IF EXISTS of_the_user ON bgjob_job") == [],
            )
    finally:
        for name in ("tries", "pid"):
            bench.sql(f"DROP SEQUENCE {name}")

    assert len(set(pids)) == 1


@one_of_each
def test_a_refused_settlement_spends_attempts_at_restarts(bench: Workbench, tune: Tune) -> None:
    """A job whose row can't be deleted is not run without end, however often workers restart."""
    tune(drain, COMMITTED_WITHIN=0.1, RELEASED_WITHIN=0.1)
    calls: list[str] = []
    handler = bench.handler(
        "t",
        lambda ctx: calls.append(ctx.job.id),
        uses_session=False,
        session=False,
        max_attempts=2,
    )
    job_id = bench.enqueue(handler)

    def restart() -> Any:
        recorder = Recorder()
        bench.run(
            observers=(recorder,),
            until=lambda: any(e.name == "worker_error" for e in recorder.events),
            shutdown_timeout=0.1,
            deadline=60.0,
        )
        return bench.job(job_id)

    with bench.trigger("RETURN NULL;"):
        rows = [restart() for _ in range(3)]

    assert calls == [job_id] * 2
    assert [(row.attempt, row.claimed_by) for row in rows] == [(1, None), (2, None), (2, None)]
    assert all(KEPT in row.last_error for row in rows)
    assert "(completed) was refused" in rows[1].last_error
    assert "(dead) was refused" in rows[2].last_error
