"""Records: each way in which a job ends writes its own, with the end itself and never late."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import (
    Complete,
    Context,
    MoveToDlq,
    RecordsOutOfDate,
    Retry,
    constant,
    enqueue,
)
from sqlalchemy_bgjob._inspect.records import Progress
from support.databases import with_driver
from support.recording import RecordingBench
from support.running import FLAVORS, Gate, one_of_each
from support.tables import new_queue
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

KEPT = timedelta(hours=1)


@dataclass
class Link:
    """A result."""

    url: str


@pytest.fixture(params=FLAVORS, ids=str)
def bench(request: pytest.FixtureRequest, workbench_url: str) -> Iterator[RecordingBench]:
    bench = RecordingBench(request.param, workbench_url)
    bench.reset()
    yield bench
    bench.close()


@pytest.fixture
def history(bench: RecordingBench) -> RecordingBench:
    """The same for a queue with ``record_all=``."""
    return RecordingBench(bench.flavor, bench.url, keeps_all=True)


# ---- ends ---------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_result_is_kept_with_the_handlers_writes(bench: RecordingBench) -> None:
    def body(session: Session, ctx: Context[Any]) -> Any:
        bench.note(session, ctx)
        return Complete(result={"url": "/1"})

    kept = bench.enqueue(bench.handler("t", body, record=KEPT))
    plain = bench.enqueue(bench.handler("plain", bench.note))

    bench.run()

    record = bench.record(kept)
    assert (record.state, record.result, record.error) == ("completed", {"url": "/1"}, None)
    assert (record.type, record.queue, record.attempt) == ("t", "default", 1)
    assert record.enqueued_at <= record.started_at <= record.ended_at
    assert record.keep_until - record.ended_at == pytest.approx(KEPT, abs=timedelta(seconds=1))
    assert bench.notes(kept) == bench.notes(plain) == ["written"]
    assert bench.jobs.record(bench.outside, plain) is None


@one_of_each
def test_without_a_session_it_is_kept_by_the_loop(bench: RecordingBench) -> None:
    """Many at once, of both kinds, settled together."""
    results = bench.handler(
        "t", lambda ctx: Complete(result=ctx.job.id), uses_session=False, record=KEPT
    )
    plain = bench.handler("plain", lambda ctx: None, uses_session=False)
    ids = [bench.enqueue(handler) for _ in range(20) for handler in (results, plain)]

    bench.run()

    assert [bench.record(job_id).result for job_id in ids[::2]] == ids[::2]
    assert all(bench.jobs.record(bench.outside, job_id) is None for job_id in ids[1::2])


@one_of_each
@pytest.mark.parametrize("uses_session", [True, False])
def test_a_dead_job_has_its_error(bench: RecordingBench, uses_session: bool) -> None:
    def body(*args: Any) -> Any:
        return MoveToDlq("no such order")

    job_id = bench.enqueue(bench.handler("t", body, uses_session=uses_session, record=KEPT))

    bench.run()

    record = bench.record(job_id)
    assert (record.state, record.error, record.attempt) == ("dead", "no such order", 1)
    assert bench.dead(job_id).last_error == "no such order"


@one_of_each
def test_a_retry_is_no_end(bench: RecordingBench) -> None:
    def body(ctx: Context[Any]) -> Any:
        return Retry(0, "not yet") if ctx.job.attempt == 1 else Complete(result=ctx.job.attempt)

    job_id = bench.enqueue(bench.handler("t", body, uses_session=False, record=KEPT))

    bench.run()

    record = bench.record(job_id)
    assert (record.state, record.result, record.attempt) == ("completed", 2, 2)


@one_of_each
def test_a_job_that_is_cancelled_while_it_runs(bench: RecordingBench) -> None:
    def body(session: Session, ctx: Context[Any]) -> None:
        ctx.progress(1)
        bench.pause(lambda: ctx.cancelled)

    job_id = bench.enqueue(bench.handler("t", body, record=KEPT))

    def drive() -> None:
        wait_until(lambda: bench.job(job_id).claimed_by is not None)
        bench.jobs.cancel(bench.outside, job_id)

    bench.run(during=drive, until=bench.none_left, listen=True)

    assert bench.record(job_id).state == "cancelled"


@one_of_each
def test_a_job_that_was_marked_or_is_too_late(bench: RecordingBench) -> None:
    """It is never started, so it has no start."""
    marked = bench.enqueue(bench.handler("marked", bench.note, record=KEPT))
    late = bench.enqueue(bench.handler("late", bench.note, record=KEPT, on_expiry="drop"))
    buried = bench.enqueue(bench.handler("buried", bench.note, record=KEPT))
    bench.sql("UPDATE bgjob_job SET cancel_at = now() WHERE id = :id", id=marked)
    for job_id in (late, buried):
        bench.sql(
            "UPDATE bgjob_job SET expires_at = now() - interval '1h' WHERE id = :id", id=job_id
        )

    bench.run()

    ended = [bench.record(job_id) for job_id in (marked, late, buried)]
    assert [record.state for record in ended] == ["cancelled", "expired", "dead"]
    assert [record.started_at for record in ended] == [None, None, None]


@one_of_each
def test_a_job_that_took_its_workers_along(bench: RecordingBench) -> None:
    """Its last progress is what it came to."""
    job_id = bench.enqueue(bench.handler("t", bench.note, record=KEPT, max_attempts=3))
    bench.sql("UPDATE bgjob_job SET attempt = 3, crashes = 3")
    bench.sql(
        "INSERT INTO bgjob_record (job_id, queue, type, state, attempt, lease, progress,"
        " enqueued_at, due_at, keep_until) SELECT id, queue, type, 'live', 3, lease,"
        " '{\"done\": 7}', now(), now(), now() + interval '1h' FROM bgjob_job"
    )

    bench.run()

    record = bench.record(job_id)
    assert (record.state, record.progress) == ("dead", Progress(7))
    assert record.error.startswith("WorkerLost")


@one_of_each
def test_a_history_keeps_everything_but_what_says_never(history: RecordingBench) -> None:
    usual = history.enqueue(history.handler("usual", history.note))
    never = history.enqueue(history.handler("never", history.note, record=0))
    unknown = history.jobs.enqueue(history.outside, "nobody's", queue="default").id

    history.run(unknown_type_grace=0.0)

    assert history.record(usual).state == "completed"
    assert history.jobs.record(history.outside, never) is None
    assert history.record(unknown).state == "dead"


@one_of_each
def test_a_run_that_lost_its_lease_writes_nothing(bench: RecordingBench) -> None:
    """Whatever it says: neither its progress nor its end is recorded."""
    gate = Gate(bench)

    def body(session: Session, ctx: Context[Any]) -> Any:
        bench.note(session, ctx)
        gate.hold()
        ctx.progress(99)
        return Complete(result="stale")

    job_id = bench.enqueue(bench.handler("t", body, record=KEPT))

    def drive() -> None:
        gate.wait()
        bench.steal(job_id)
        gate.open()

    ran = bench.run(during=drive, until=lambda: True)

    assert "completed" not in ran.of(job_id)
    assert bench.jobs.record(bench.outside, job_id) is None


# ---- results ------------------------------------------------------------------------------------


@one_of_each
def test_a_result_without_a_record_fails_the_attempt(bench: RecordingBench) -> None:
    """It would be lost without a word."""
    handler = bench.handler("t", lambda s, ctx: Complete(result=1), retry=constant(3600))
    job_id = bench.enqueue(handler)

    bench.run()

    assert "the result of 't' would be lost" in bench.job(job_id).last_error


@one_of_each
@pytest.mark.parametrize(
    ("result", "says"),
    [
        pytest.param("x" * 1_048_577, "1048576", id="too large"),
        pytest.param({"at": object()}, "invalid result at $.at", id="no JSON"),
    ],
)
def test_a_result_that_cant_be_kept(bench: RecordingBench, result: Any, says: str) -> None:
    def body(session: Session, ctx: Context[Any]) -> Any:
        bench.note(session, ctx)
        return Complete(result=result)

    job_id = bench.enqueue(bench.handler("t", body, record=KEPT, retry=constant(3600)))

    bench.run()

    assert says in bench.job(job_id).last_error
    assert bench.notes(job_id) == []


@one_of_each
def test_a_result_is_what_its_annotation_says(bench: RecordingBench) -> None:
    def link(ctx: Context[Any]) -> Complete[Link] | None:
        return Complete(Link("/1"))

    handler = bench.jobs.handler("link", record=KEPT, session=False)(link)
    assert handler.result_codec.annotation is Link
    plain = bench.handler("t", lambda ctx: Complete(b"\x00\xff"), uses_session=False, record=KEPT)
    job_id = bench.enqueue(plain)

    bench.run()

    assert bench.record(job_id).result == b"\x00\xff"
    made = bench.enqueue(handler)
    bench.jobs.work_one(create_engine(bench.url, poolclass=NullPool), id=made)
    assert bench.record(made).result == Link("/1")


# ---- progress -----------------------------------------------------------------------------------


@pytest.mark.core
def test_progress_is_seen_before_the_handlers_commit(bench: RecordingBench) -> None:
    gate = Gate(bench)

    def body(session: Session, ctx: Context[Any]) -> None:
        bench.note(session, ctx)
        ctx.progress(3, of=10, note="página 3 📄")
        gate.hold()
        ctx.progress(10, of=10)

    job_id = bench.enqueue(bench.handler("t", body, record=KEPT))

    def drive() -> None:
        gate.wait()
        wait_until(lambda: bench.jobs.record(bench.outside, job_id))
        record = bench.record(job_id)
        assert (record.state, record.progress) == ("live", Progress(3, 10, "página 3 📄"))
        assert record.ended_at is None
        assert bench.notes(job_id) == []
        gate.open()

    bench.run(during=drive)

    record = bench.record(job_id)
    assert (record.state, record.progress) == ("completed", Progress(10, 10))


@one_of_each
def test_progress_is_written_once_a_second(bench: RecordingBench) -> None:
    """However often it is said: by one statement, which has the latest."""
    bench.sql("CREATE TABLE IF NOT EXISTS writes (n int)")
    bench.sql("DELETE FROM writes")
    bench.sql(
        "CREATE OR REPLACE FUNCTION count_writes() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO writes VALUES (1); RETURN NULL; END $$"
    )
    bench.sql(
        "CREATE TRIGGER counted AFTER INSERT OR UPDATE ON bgjob_record"
        " FOR EACH STATEMENT EXECUTE FUNCTION count_writes()"
    )
    said = 0

    def body(ctx: Context[Any]) -> None:
        def has_said_enough() -> bool:
            nonlocal said
            said += 1
            ctx.progress(said)
            return len(bench.sql("SELECT FROM writes")) >= 6

        bench.pause(has_said_enough)

    ids = [bench.enqueue(bench.handler("t", body, uses_session=False, record=KEPT))]
    began = datetime.now(UTC)
    try:
        bench.run(deadline=60.0)
    finally:
        bench.sql("DROP TRIGGER counted ON bgjob_record")

    # An upsert fires the triggers of INSERT and of UPDATE, so six are three of them: two seconds.
    assert datetime.now(UTC) - began > timedelta(seconds=1.9)
    assert said > 6
    assert bench.record(ids[0]).progress == Progress(said)


@one_of_each
def test_progress_of_a_handler_without_record(bench: RecordingBench) -> None:
    handler = bench.handler("t", lambda s, ctx: ctx.progress(1), retry=constant(3600))
    job_id = bench.enqueue(handler)

    bench.run()

    assert "register its handler with record=" in bench.job(job_id).last_error


# ---- waiting ------------------------------------------------------------------------------------


def test_wait_returns_when_the_job_has_ended(bench: RecordingBench) -> None:
    gate = Gate(bench)

    def body(session: Session, ctx: Context[Any]) -> Any:
        gate.hold()
        return Complete(result=7)

    job_id = bench.enqueue(bench.handler("t", body, record=KEPT))

    def drive() -> None:
        gate.wait()
        with pytest.raises(TimeoutError, match=f"{job_id}.* has not ended within 0.1 s"):
            bench.jobs.wait(bench.outside, job_id, timeout=0.1)
        gate.open()
        record = bench.jobs.wait(bench.outside, job_id, timeout=60)
        assert record is not None
        assert record.result == 7

    bench.run(during=drive)

    assert bench.jobs.wait(bench.outside, "no such job") is None


def test_wait_is_awaited_on_an_asyncio_engine(workbench_url: str) -> None:
    bench = RecordingBench(FLAVORS[3], workbench_url)
    bench.reset()
    asyncio.run(wait_for_one(bench))
    bench.close()


async def wait_for_one(bench: RecordingBench) -> None:
    handler = bench.handler("t", lambda ctx: Complete(result=7), uses_session=False, record=KEPT)
    job_id = bench.enqueue(handler)
    engine = create_async_engine(with_driver(bench.url, "asyncpg"))
    try:
        with pytest.raises(TimeoutError):
            await bench.jobs.wait(engine, job_id, timeout=0.01)
        async with engine.begin() as connection:
            await bench.jobs.work_one(connection, id=job_id)
        record = await bench.jobs.wait(engine, job_id, timeout=60)
        assert record is not None
        assert record.result == 7
        async with engine.connect() as connection:
            with pytest.raises(TypeError, match="Engine or AsyncEngine"):
                bench.jobs.wait(connection, job_id)  # type: ignore[call-overload]
    finally:
        await engine.dispose()


def test_a_job_that_is_redriven_is_waited_for_again(workbench_url: str) -> None:
    bench = RecordingBench(FLAVORS[0], workbench_url)
    bench.reset()
    outcomes = [MoveToDlq("no"), Complete(result=1)]
    job_id = bench.enqueue(
        bench.handler("t", lambda ctx: outcomes.pop(0), uses_session=False, record=KEPT)
    )
    bench.run()
    assert bench.record(job_id).state == "dead"

    bench.jobs.redrive(bench.outside, bench.jobs.DeadJob.job_id == job_id)

    record = bench.record(job_id)
    assert (record.state, record.error, record.ended_at) == ("live", None, None)
    with pytest.raises(TimeoutError):
        bench.jobs.wait(bench.outside, job_id, timeout=0)
    bench.run()
    assert (bench.record(job_id).state, bench.record(job_id).result) == ("completed", 1)
    bench.close()


def test_what_follows_a_batch_is_waited_for(workbench_url: str) -> None:
    """As soon as the batch is committed, though the job has no row before the last one's end."""
    bench = RecordingBench(FLAVORS[0], workbench_url)
    bench.reset()
    page = bench.handler("page", lambda ctx: None, uses_session=False)
    bind = bench.handler("bind", lambda ctx: Complete(result=7), uses_session=False, record=KEPT)
    committing = bench.outside.execution_options(isolation_level="READ COMMITTED")
    with committing.begin() as connection:
        with bench.jobs.batch(connection, then=bind.job()) as batch:
            enqueue(connection, page, batch=batch)
        with bench.jobs.batch(connection) as other:
            enqueue(connection, page, batch=other)

    follower = batch.then_id
    assert follower is not None
    assert bench.jobs.wait(bench.outside, f"{other.id}:then") is None
    with pytest.raises(TimeoutError):
        bench.jobs.wait(bench.outside, follower, timeout=0)

    def drive() -> None:
        record = bench.jobs.wait(bench.outside, follower, timeout=60)
        assert record is not None
        assert record.result == 7

    bench.run(during=drive)
    bench.close()


# ---- counts -------------------------------------------------------------------------------------


@one_of_each
def test_a_worker_counts_what_it_has_ended(bench: RecordingBench) -> None:
    """Also of handlers without a record; and what is left is written at its end."""
    good = bench.handler("good", bench.note)
    quick = bench.handler("quick", lambda ctx: None, uses_session=False)
    bad = bench.handler("bad", lambda ctx: MoveToDlq("no"), uses_session=False)
    for handler in (good, quick, quick, bad):
        bench.enqueue(handler)

    bench.run()

    assert (bench.counted("completed"), bench.counted("dead")) == (3, 1)
    (row,) = bench.sql("SELECT n, waits, runs, ran, waited FROM bgjob_minute WHERE type = 'quick'")
    assert (row.n, sum(row.waits), sum(row.runs)) == (2, 2, 2)
    assert 0 < row.ran < 20


@one_of_each
def test_counts_are_written_while_it_works(
    bench: RecordingBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlalchemy_bgjob._worker.counts.EVERY", 0.05)
    bench.enqueue(bench.handler("t", lambda ctx: None, uses_session=False))

    bench.run(until=lambda: bench.counted("completed") == 1)

    assert bench.counted("completed") == 1


@one_of_each
def test_a_worker_that_may_not_count_ends_all_the_same(bench: RecordingBench) -> None:
    """Nothing is lost by that but the counts."""
    job_id = bench.enqueue(bench.handler("t", lambda ctx: None, uses_session=False, record=KEPT))
    bench.sql("ALTER TABLE bgjob_minute ADD CHECK (n < 0)")
    try:
        bench.run()
    finally:
        bench.sql("ALTER TABLE bgjob_minute DROP CONSTRAINT bgjob_minute_n_check")

    assert bench.record(job_id).state == "completed"
    assert bench.sql("SELECT FROM bgjob_worker") == []
    assert bench.counted("completed") == 0


# ---- tables -------------------------------------------------------------------------------------


def test_a_worker_without_the_tables_does_not_start(engine: Any) -> None:
    from sqlalchemy_bgjob import Worker

    new_queue().metadata.create_all(engine)
    jobs = new_queue(records=True)
    jobs.handler("t")(lambda ctx: None)
    pooled = create_engine(engine.url, pool_size=8)
    with pytest.raises(RecordsOutOfDate, match="sqlalchemy-bgjob migrate --records"):
        Worker(jobs, pooled, queues=["default"]).run()
    pooled.dispose()
