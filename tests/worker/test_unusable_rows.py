"""Rows that can't be run, or can't be settled: they harm no neighbour, and nothing is dropped."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text

from sqlalchemy_bgjob import Context, MoveToDlq, constant
from sqlalchemy_bgjob._db.errors import sqlstate
from sqlalchemy_bgjob._lifecycle import settle_within
from sqlalchemy_bgjob._worker import attempt
from sqlalchemy_bgjob._worker.plan import outbox
from support import wait_until
from support.rows import waiting
from support.running import FLAVORS, Flavor, Gate, Recorder, Workbench, one_of_each

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from support.tuning import Tune


@dataclass
class Order:
    number: int


@pytest.mark.core
def test_an_arg_that_can_not_be_decoded_goes_to_the_dlq_alone(bench: Workbench) -> None:
    started: list[Order] = []
    if bench.flavor.is_async:

        @bench.jobs.handler("order")
        async def handler(ctx: Context[Any], order: Order) -> None:
            started.append(order)
    else:

        @bench.jobs.handler("order")
        def handler(ctx: Context[Any], order: Order) -> None:
            started.append(order)

    good = [bench.enqueue(handler, Order(n)) for n in range(3)]
    bad = {
        name: bench.enqueue(handler, Order(7))
        for name in (
            '{"number": "secret"}', '{"number"', "[]", "", "\\377\\376", "[[[[[[", "null",
            f'{{"number": {"9" * 5_000}}}', '{"number": 1e400}', "[" * 3_000 + "]" * 3_000,
            '{"number": 7}' + " " * 1_048_576,
        )
    }  # fmt: skip
    for arg, job_id in bad.items():
        bench.sql(
            "UPDATE bgjob_job SET arg = CAST(:arg AS bytea) WHERE id = :id", arg=arg, id=job_id
        )
    missing = bench.enqueue(handler, Order(7))
    bench.sql("UPDATE bgjob_job SET arg = NULL WHERE id = :id", id=missing)

    ran = bench.run()

    assert sorted(order.number for order in started) == [0, 1, 2]
    assert all(ran.of(job_id) == ["started", "completed"] for job_id in good)
    for job_id in (*bad.values(), missing):
        assert ran.of(job_id) == ["started", "moved_to_dlq"]
        dead = bench.dead(job_id)
        assert dead.last_error.startswith("InvalidArg: invalid arg at $")
        assert "secret" not in dead.last_error
        assert dead.attempt == 1
    assert bench.dead(bad["[]"]).arg == b"[]"


def test_headers_that_are_no_object_count_as_none(bench: Workbench) -> None:
    seen: list[Any] = []
    handler = bench.handler("t", lambda ctx: seen.append(ctx.job.headers), uses_session=False)
    odd = ["[1, 2]", '"text"', "5", "null", "true"]
    for headers in odd:
        job_id = bench.enqueue(handler)
        bench.sql(
            "UPDATE bgjob_job SET headers = CAST(:h AS jsonb) WHERE id = :id", h=headers, id=job_id
        )

    ran = bench.run()

    assert seen == [{}] * len(odd)
    assert len(ran.named("job_completed")) == len(odd)
    assert ran.named("worker_error") == []


@pytest.mark.parametrize("flavor", [FLAVORS[0], FLAVORS[-1]], ids=str)
def test_counters_at_their_end_stop_that_job_alone(flavor: Flavor, workbench_url: str) -> None:
    """A claim adds one to attempt and lease: there is an error, and no number below zero."""
    bench = Workbench(flavor, workbench_url)
    bench.reset()
    handler = bench.handler("t", lambda ctx: None, uses_session=False, max_attempts=None)
    ends = {"attempt": 2**31 - 1, "lease": 2**63 - 1, "crashes": 2**31 - 1}
    for column, end in ends.items():
        for name, value in ((f"{column} at its end", end), (f"{column} before it", end - 1)):
            bench.enqueue(handler, id=name)
            bench.sql(
                f"UPDATE bgjob_job SET {column} = :value WHERE id = :id", id=name, value=value
            )
    others = [bench.enqueue(handler) for _ in range(5)]
    runnable = [*others, *(f"{column} before it" for column in ends), "crashes at its end"]

    ran = bench.run(until=lambda: not any(map(bench.job, runnable)))

    for job_id in runnable:
        assert ran.of(job_id) == ["started", "completed"]
    for column in ("attempt", "lease"):
        row = bench.job(f"{column} at its end")
        assert (getattr(row, column), row.claimed_by) == (ends[column], None)
        assert ran.of(row.id) == []
    told = {sqlstate(event.rest[0]) for event in ran.named("worker_error")}
    assert told == {"22003"}
    bench.close()


@pytest.fixture(params=["SET NULL", "NO ACTION"])
def referring(request: pytest.FixtureRequest, bench: Workbench) -> Iterator[str]:
    rule: str = request.param
    foreign_key = f"REFERENCES bgjob_job ON DELETE {rule}"
    bench.sql(f"CREATE TABLE receipt (id int PRIMARY KEY, job_id text {foreign_key})")
    bench.sql("CREATE INDEX receipt_job_id ON receipt (job_id)")
    yield rule
    bench.sql("DROP TABLE receipt")


@pytest.fixture
def users(bench: Workbench) -> Iterator[Connection]:
    """A user's transaction, open until the test ends it."""
    engine = create_engine(bench.url)
    with engine.connect() as connection:
        yield connection
    engine.dispose()


@pytest.mark.parametrize("uses_session", [True, False])
@one_of_each
def test_a_users_open_transaction_refers_to_a_running_job(
    bench: Workbench,
    referring: str,
    users: Connection,
    uses_session: bool,
    caplog: pytest.LogCaptureFixture,
    tune: Tune,
) -> None:
    tune(outbox, _RETRY_REFUSED=(0.1, 1.0))
    tune(settle_within, LOCK_TIMEOUT_MS=200)
    caplog.set_level(logging.WARNING)
    gate, starts = Gate(bench), list[int]()

    def body(*args: Any) -> None:
        starts.append(args[-1].job.attempt)
        if uses_session:
            bench.note(args[0], args[1], str(args[-1].job.attempt))
        if len(starts) == 1:
            gate.hold()

    handler = bench.handler("t", body, uses_session=uses_session, retry=constant(0.2))
    neighbour = bench.handler("n", lambda ctx: None, uses_session=False)
    job_id = bench.enqueue(handler)
    recorder = Recorder()

    def completed() -> int:
        return sum(e.name == "job_completed" for e in recorder.events)

    def refer() -> None:
        gate.wait()
        users.execute(text("INSERT INTO receipt VALUES (1, :id)"), {"id": job_id})
        gate.open()
        # The job can't be settled now, and all others are.
        for count in range(1, 4):
            for _ in range(10):
                bench.enqueue(neighbour)
            wait_until(lambda: completed() == count * 10)  # noqa: B023 - called at once
        assert bench.job(job_id) is not None
        users.commit()
        if referring == "NO ACTION":
            # Before that, an attempt of its own session may have met the row locked.
            wait_until(
                lambda: "23503 receipt_job_id_fkey" in (bench.job(job_id).last_error or ""), 20.0
            )
            for _ in range(10):
                bench.enqueue(neighbour)
            wait_until(lambda: completed() == 40)
            assert bench.job(job_id) is not None
            users.execute(text("DELETE FROM receipt"))
            users.commit()

    bench.run(
        during=refer,
        observers=(recorder,),
        until=lambda: bench.job(job_id) is None,
        deadline=40.0,
    )

    assert bench.dead(job_id) is None
    assert bench.sql("SELECT job_id FROM receipt") == ([(None,)] if referring == "SET NULL" else [])
    assert recorder.events[-1].name in ("job_completed", "queue_is_empty")
    assert len(bench.notes(job_id)) == uses_session
    if not uses_session:
        assert starts == [1], "the handler is not run again for the sake of a settlement"
    named = [r for r in caplog.records if "receipt_job_id_fkey" in r.getMessage()]
    assert bool(named) == (referring == "NO ACTION"), "the worker's start names it"


@pytest.mark.usefixtures("referring")
@one_of_each
def test_a_job_that_is_kept_from_ending_has_not_failed(
    bench: Workbench, users: Connection, tune: Tune
) -> None:
    tune(attempt, AFTER_ROW_LOCKED=0.1)
    tune(settle_within, LOCK_TIMEOUT_MS=200)
    gate = Gate(bench)

    def body(session: Session, ctx: Context[Any]) -> None:
        bench.note(session, ctx)
        if ctx.job.last_error is None:
            gate.hold()

    job_id = bench.enqueue(bench.handler("t", body, max_attempts=1))

    def refer() -> None:
        gate.wait()
        users.execute(text("INSERT INTO receipt VALUES (1, :id)"), {"id": job_id})
        gate.open()
        wait_until(lambda: bench.job(job_id).last_error is not None, 30.0)
        users.rollback()

    ran = bench.run(during=refer, until=lambda: bench.job(job_id) is None, deadline=60.0)

    names = ran.of(job_id)
    assert names[:2] == ["started", "rescheduled"]
    assert names[-2:] == ["started", "completed"]
    assert set(names) == {"started", "rescheduled", "completed"}
    job = ran.last(job_id).job
    assert job is not None
    assert job.attempt == 1
    assert "an open transaction refers to the job" in (job.last_error or "")
    assert bench.notes(job_id) == ["written"]


@one_of_each
def test_a_row_that_is_changed_meanwhile_is_settled(
    bench: Workbench, users: Connection, tune: Tune
) -> None:
    """The settlement waits for whoever changes the row, and finds it where it is then."""
    tune(settle_within, LOCK_TIMEOUT_MS=60_000)
    gate = Gate(bench)

    def body(session: Session, ctx: Context[Any]) -> None:
        bench.note(session, ctx)
        gate.hold()

    job_id = bench.enqueue(bench.handler("t", body, max_attempts=1))

    def change() -> None:
        gate.wait()
        users.execute(text("UPDATE bgjob_job SET headers = '{}' WHERE id = :id"), {"id": job_id})
        gate.open()
        wait_until(lambda: waiting(bench.outside), 30.0)
        users.commit()

    ran = bench.run(during=change)

    assert ran.of(job_id) == ["started", "completed"]
    assert bench.notes(job_id) == ["written"]


@pytest.mark.usefixtures("referring")
@pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)
def test_work_one_waits_for_who_refers_to_its_job(bench: Workbench, users: Connection) -> None:
    job_id = bench.enqueue(bench.handler("t", bench.note))
    users.execute(text("INSERT INTO receipt VALUES (1, :id)"), {"id": job_id})
    engine = create_engine(bench.url)

    def end() -> None:
        wait_until(lambda: waiting(bench.outside), 30.0)
        users.rollback()

    with ThreadPoolExecutor() as pool:
        ended = pool.submit(end)
        bench.jobs.work_one(engine, "default")
        ended.result()

    assert bench.job(job_id) is None
    assert bench.notes(job_id) == ["written"]
    engine.dispose()


@one_of_each
def test_a_row_that_somebody_has_locked_is_settled_later(
    bench: Workbench, users: Connection
) -> None:
    gate = Gate(bench)
    handler = bench.handler("t", lambda ctx: gate.hold(), uses_session=False)
    dies = bench.handler("dies", lambda ctx: MoveToDlq("x"), uses_session=False)
    job_id = bench.enqueue(handler)

    def lock() -> None:
        gate.wait()
        users.execute(text("SELECT FROM bgjob_job WHERE id = :id FOR UPDATE"), {"id": job_id})
        gate.open()
        others = [bench.enqueue(dies) for _ in range(10)]
        wait_until(lambda: all(bench.dead(other) for other in others))
        assert bench.job(job_id).claimed_by is not None
        users.rollback()

    ran = bench.run(during=lock)

    assert ran.of(job_id) == ["started", "completed"]
    assert ran.named("worker_error") == []


@one_of_each
def test_a_check_of_the_users_own_that_refuses_a_settlement(bench: Workbench, tune: Tune) -> None:
    """Such a row is parked with its reason, and settled when the reason is gone."""
    tune(outbox, _RETRY_REFUSED=(0.1, 1.0))
    bench.sql("ALTER TABLE bgjob_dead_job ADD CONSTRAINT no_dead CHECK (type <> 'stuck')")
    try:
        stuck = bench.enqueue(
            bench.handler("stuck", lambda ctx: MoveToDlq("the cause"), uses_session=False)
        )
        dies = bench.handler("dies", lambda ctx: MoveToDlq("x"), uses_session=False)
        others = [bench.enqueue(dies) for _ in range(5)]

        def mend() -> None:
            wait_until(lambda: bench.job(stuck).last_error)
            assert "the settlement (dead) was refused" in bench.job(stuck).last_error
            assert "23514 no_dead" in bench.job(stuck).last_error
            wait_until(lambda: all(bench.dead(other) for other in others))
            bench.sql("ALTER TABLE bgjob_dead_job DROP CONSTRAINT no_dead")

        ran = bench.run(during=mend)
    finally:
        bench.sql("ALTER TABLE bgjob_dead_job DROP CONSTRAINT IF EXISTS no_dead")

    assert ran.of(stuck) == ["started", "moved_to_dlq"]
    assert bench.dead(stuck).last_error == "the cause"
    assert len(ran.named("worker_error")) == 1, "told once, not at each try"


@pytest.mark.parametrize("bench", [FLAVORS[-1]], ids=str, indirect=True)
def test_asyncpg_refuses_a_function_with_a_session_at_the_start(bench: Workbench) -> None:
    @bench.jobs.handler("t")
    def function(ctx: Context[Session]) -> None: ...

    with pytest.raises(ValueError, match="needs a synchronous engine"):
        bench.run()
