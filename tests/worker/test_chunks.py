"""Handlers that take chunks: one call for several jobs, and an end for each of them."""

from __future__ import annotations

import logging
import threading
from contextvars import ContextVar, copy_context
from typing import Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import (
    Complete,
    JobLogFilter,
    MoveToDlq,
    Reschedule,
    Retry,
)
from sqlalchemy_bgjob.testing import JobKit
from support.chunks import Chunks
from support.running import FLAVORS, Gate, Workbench, one_of_each, only_threads
from support.waiting import wait_until

LONG: dict[str, Any] = {"heartbeat_interval": 60.0, "lease_timeout": 600.0}
"""No job waits in vain for a chunk that is to become full."""


@pytest.mark.core
def test_one_call_for_the_jobs_of_a_chunk(bench: Workbench) -> None:
    """In the order of their args; full chunks wait for nothing."""
    chunks = Chunks(bench, wait=60)
    ids = chunks.enqueue(*range(20))

    ran = bench.run(queues={"default": 1}, **LONG)

    assert chunks.calls == [list(range(10)), list(range(10, 20))]
    assert chunks.notes(ids) == [["written"]] * 20
    assert [ran.of(job_id) for job_id in ids] == [["started", "completed"]] * 20
    assert ran.last(ids[0]).rest[0] == ran.last(ids[9]).rest[0], "seconds of the call"


@one_of_each
def test_a_chunk_that_is_not_full_starts_after_its_wait(bench: Workbench) -> None:
    chunks = Chunks(bench, wait=0.1)
    ids = chunks.enqueue("a", "b", "c")

    ran = bench.run(**LONG)

    assert chunks.calls == [["a", "b", "c"]]
    assert [ran.of(job_id) for job_id in ids] == [["started", "completed"]] * 3


@one_of_each
def test_a_job_waits_for_the_one_that_makes_it_full(bench: Workbench) -> None:
    chunks = Chunks(bench, chunk=2, wait=60)
    (first,) = chunks.enqueue("a")

    def drive() -> None:
        wait_until(lambda: bench.job(first).claimed_by is not None)
        chunks.enqueue("b")

    bench.run(during=drive, **LONG)

    assert chunks.calls == [["a", "b"]]


@one_of_each
def test_nobody_waits_for_longer_than_a_heartbeat(bench: Workbench) -> None:
    chunks = Chunks(bench, wait=3600)
    chunks.enqueue("a")

    bench.run(heartbeat_interval=0.2, lease_timeout=60.0)

    assert chunks.calls == [["a"]]


@one_of_each
def test_jobs_that_wait_take_no_slot_from_others(bench: Workbench) -> None:
    """Of the same queue, with a single slot."""
    chunks = Chunks(bench, wait=60)
    single = bench.handler("single", bench.note)
    (waiting,) = chunks.enqueue("a")
    others: list[str] = []

    def drive() -> None:
        wait_until(lambda: bench.job(waiting).claimed_by is not None)
        others.extend(bench.enqueue(single) for _ in range(5))
        wait_until(lambda: len(bench.sql("SELECT FROM bgjob_job")) == 1)
        assert chunks.calls == []

    ran = bench.run(during=drive, until=lambda: others, queues={"default": 1}, **LONG)

    assert [ran.of(job_id) for job_id in others] == [["started", "completed"]] * 5
    assert (bench.job(waiting).claimed_by, bench.job(waiting).attempt) == (None, 0), "handed back"


# ---- failures -----------------------------------------------------------------------------------


@pytest.mark.core
def test_one_poison_job_fails_alone(bench: Workbench) -> None:
    """What the shared call wrote is undone; then each runs alone, and its policy judges it."""

    def body(ctx: Any, args: list[str], session: Any) -> None:
        if "poison" in args:
            raise ValueError("bad drop")

    chunks = Chunks(bench, body, wait=60)
    ids = chunks.enqueue(*"abcdefghi", "poison")
    poison = ids.pop()

    ran = bench.run(queues={"default": 1}, **LONG)

    assert chunks.calls == [[*"abcdefghi", "poison"], *([one] for one in "abcdefghi"), ["poison"]]
    fine = ["started", "will_be_retried", "started", "completed"]
    assert [ran.of(job_id) for job_id in ids] == [fine] * 9
    assert chunks.notes(ids) == [["written"]] * 9
    assert chunks.notes([poison]) == [[]]
    left = bench.job(poison)
    assert (left.attempt, left.claimed_by) == (2, None)
    assert left.due_in > 3000
    assert "ValueError: bad drop" in left.last_error
    with Session(bench.outside) as session:
        history = session.get_one(bench.jobs.Job, poison).error_history
    assert [past.attempt for past in history] == [1, 2]
    assert "raised by one call for 10 jobs" in history[0].error
    assert "one call" not in history[1].error


@one_of_each
def test_no_policy_gives_up_jobs_that_are_not_to_blame(bench: Workbench) -> None:
    """One that gives up at once is asked only of the job that fails alone."""

    def body(ctx: Any, args: list[str], session: Any) -> None:
        if "poison" in args:
            raise ValueError

    chunks = Chunks(bench, body, retry=lambda attempt, error: None, wait=60, chunk=3)
    ids = chunks.enqueue("a", "poison", "b")

    bench.run(until=bench.none_left, **LONG)

    assert [bench.dead(job_id) is not None for job_id in ids] == [False, True, False]


@one_of_each
def test_each_job_has_an_outcome_of_its_own(bench: Workbench) -> None:
    """Returned by id; the others are complete, and all writes are kept."""

    def body(ctx: Any, args: list[str], session: Any) -> Any:
        outcomes = {
            "later": Retry(3600, "locked"),
            "again": Reschedule(3600, arg="new"),
            "never": MoveToDlq("gone"),
            "done": Complete(),
            "none": None,
        }
        return {job.id: outcomes[a] for job, a in zip(ctx.jobs, args, strict=True) if a != "rest"}

    chunks = Chunks(bench, body, wait=60, chunk=6)
    ids = chunks.enqueue("later", "again", "never", "done", "none", "rest")

    ran = bench.run(**LONG)

    assert chunks.notes(ids) == [["written"]] * 6
    later, again = bench.job(ids[0]), bench.job(ids[1])
    assert (later.attempt, later.last_error) == (1, "locked")
    assert (again.attempt, again.arg) == (0, b'"new"')
    assert bench.dead(ids[2]).last_error == "gone"
    assert [ran.of(job_id)[-1] for job_id in ids[3:]] == ["completed"] * 3


@one_of_each
@pytest.mark.parametrize(
    "returned",
    [
        pytest.param([], id="no-outcome"),
        pytest.param({"stranger": Complete()}, id="a-strangers-id"),
        pytest.param("by-id", id="no-outcome-by-id"),
    ],
)
def test_a_useless_result_undoes_the_call(bench: Workbench, returned: Any) -> None:
    def body(ctx: Any, args: list[str], session: Any) -> Any:
        return {ctx.jobs[0].id: 5} if returned == "by-id" else returned

    chunks = Chunks(bench, body, wait=60, chunk=2)
    ids = chunks.enqueue("a", "b")

    bench.run(**LONG)

    assert chunks.sizes == [2, 1, 1]
    assert chunks.notes(ids) == [[], []]
    assert "TypeError: handler of 'chunks' returned" in bench.job(ids[0]).last_error


@one_of_each
def test_a_named_outcome_is_that_of_all(bench: Workbench) -> None:
    """Nobody's fault is told by one: raised, it undoes the writes, and they stay together."""
    answers: list[Any] = [Reschedule(0), None]

    def body(ctx: Any, args: list[str], session: Any) -> Any:
        if (answer := answers.pop(0)) is not None:
            raise answer

    chunks = Chunks(bench, body, wait=60, chunk=2)
    ids = chunks.enqueue("a", "b")

    bench.run(**LONG)

    assert chunks.sizes == [2, 2]
    assert chunks.notes(ids) == [["written"], ["written"]]


@one_of_each
def test_an_arg_that_cant_be_decoded_fails_alone(bench: Workbench) -> None:
    chunks = Chunks(bench, of=list[int], wait=60, chunk=3)
    ids = chunks.enqueue(1, 2, 3)
    bench.sql("UPDATE bgjob_job SET arg = '\"two\"' WHERE id = :id", id=ids[1])

    ran = bench.run(**LONG)

    assert chunks.calls == [[1, 3]]
    assert [ran.of(job_id)[-1] for job_id in ids] == ["completed", "moved_to_dlq", "completed"]
    assert "InvalidArg" in bench.dead(ids[1]).last_error


@one_of_each
def test_a_chunk_of_nothing_but_bad_args_is_not_called(bench: Workbench) -> None:
    chunks = Chunks(bench, of=list[int], wait=60, chunk=2)
    ids = chunks.enqueue(1, 2)
    bench.sql("UPDATE bgjob_job SET arg = '{'")

    bench.run(until=bench.none_left, **LONG)

    assert chunks.calls == []
    assert all("InvalidArg" in bench.dead(job_id).last_error for job_id in ids)


@one_of_each
def test_a_row_that_refuses_its_end_fails_alone(bench: Workbench) -> None:
    """A trigger of the user's, in the transaction of the call."""
    chunks = Chunks(bench, wait=60, chunk=3)
    ids = chunks.enqueue("a", "refused", "b")

    with bench.trigger("IF OLD.arg = '\"refused\"' THEN RAISE 'no'; END IF; RETURN OLD;"):
        bench.run(**LONG)

    assert chunks.sizes == [3, 1, 1, 1]
    assert chunks.notes(ids) == [["written"], [], ["written"]]
    assert bench.job(ids[1]).attempt == 2


@one_of_each
def test_a_call_that_ends_late_has_failed_for_all(bench: Workbench) -> None:
    def body(ctx: Any, args: list[str], session: Any) -> None:
        if len(args) > 1:
            bench.pause(lambda: ctx.cancelled)

    chunks = Chunks(bench, body, wait=60, chunk=2, timeout=0.2)
    ids = chunks.enqueue("a", "b")

    ran = bench.run(**LONG)

    fine = ["started", "will_be_retried", "started", "completed"]
    assert [ran.of(job_id) for job_id in ids] == [fine] * 2
    assert chunks.notes(ids) == [["written"]] * 2


@only_threads
def test_a_call_beyond_its_grace_loses_all_its_jobs(bench: Workbench) -> None:
    """They run alone; what the call does afterwards is undone."""
    release = threading.Event()

    def body(ctx: Any, args: list[str], session: Any) -> None:
        if len(args) > 1:
            release.wait(60)

    chunks = Chunks(bench, body, wait=60, chunk=2, timeout=0.1, grace=0.1)
    ids = chunks.enqueue("a", "b")

    def drive() -> None:
        wait_until(bench.none_left)
        release.set()

    ran = bench.run(during=drive, **LONG)

    fine = ["started", "will_be_retried", "started", "completed"]
    assert [ran.of(job_id) for job_id in ids] == [fine] * 2
    assert chunks.notes(ids) == [["written"]] * 2


# ---- leases -------------------------------------------------------------------------------------


@pytest.mark.core
def test_a_lost_job_keeps_the_whole_call_from_committing(bench: Workbench) -> None:
    """Its writes are among those of the session. The others run again, attempt unspent."""
    stolen: list[str] = []

    def body(ctx: Any, args: list[str], session: Any) -> None:
        if not stolen:
            stolen.append(ctx.jobs[1].id)
            bench.steal(*stolen)

    chunks = Chunks(bench, body, wait=0.1, chunk=3)
    ids = chunks.enqueue("a", "b", "c")

    ran = bench.run(until=lambda: bench.sql("SELECT count(*) FROM bgjob_job")[0][0] == 1, **LONG)

    lost = ids.pop(1)
    assert chunks.calls == [["a", "b", "c"], ["a", "c"]]
    assert ran.of(lost) == ["started", "lease_lost"]
    assert bench.job(lost).claimed_by == 4711
    assert bench.notes(lost) == []
    undone = ["started", "rescheduled", "started", "completed"]
    assert [ran.of(job_id) for job_id in ids] == [undone] * 2
    assert chunks.notes(ids) == [["written"]] * 2


@one_of_each
def test_without_a_session_only_the_lost_job_is_lost(bench: Workbench) -> None:
    """There is nothing to undo."""
    chunks = Chunks(
        bench,
        lambda ctx, args, session: bench.steal(ctx.jobs[1].id),
        uses_session=False,
        wait=60,
        chunk=3,
    )
    ids = chunks.enqueue("a", "b", "c")

    ran = bench.run(until=lambda: bench.sql("SELECT count(*) FROM bgjob_job")[0][0] == 1, **LONG)

    assert chunks.sizes == [3]
    ends = [ran.of(job_id)[-1] for job_id in ids]
    assert ends == ["completed", "lease_lost", "completed"]


@one_of_each
def test_a_locked_row_delays_its_own_job(bench: Workbench) -> None:
    """The others run again at once."""
    locked: list[Any] = []

    def body(ctx: Any, args: list[str], session: Any) -> None:
        if not locked:
            connection = create_engine(bench.url).connect()
            locked.append(connection)
            connection.exec_driver_sql(
                f"SELECT FROM bgjob_job WHERE id = '{ctx.jobs[0].id}' FOR UPDATE"
            )

    chunks = Chunks(bench, body, wait=0.1, chunk=2)
    ids = chunks.enqueue("a", "b")

    def drive() -> None:
        wait_until(lambda: bench.job(ids[1]) is None)
        locked[0].close()
        locked[0].engine.dispose()

    ran = bench.run(during=drive, until=lambda: bench.job(ids[0]).claimed_by is None, **LONG)

    assert ran.of(ids[1]) == ["started", "rescheduled", "started", "completed"]
    assert chunks.calls == [["a", "b"], ["b"]]
    assert bench.notes(ids[1]) == ["written"]
    assert bench.notes(ids[0]) == []


@one_of_each
def test_a_crashed_worker_leaves_jobs_that_run_alone(bench: Workbench) -> None:
    """One of them may have taken it down."""
    chunks = Chunks(bench, wait=60, chunk=3)
    ids = chunks.enqueue("a", "b", "c")
    bench.sql("UPDATE bgjob_job SET crashes = 1, attempt = 1")

    bench.run(**LONG)

    assert sorted(chunks.calls) == [["a"], ["b"], ["c"]]
    assert chunks.notes(ids) == [["written"]] * 3


# ---- cancel, expiry, drain ----------------------------------------------------------------------


@one_of_each
def test_one_job_of_a_running_chunk_is_cancelled(bench: Workbench) -> None:
    """A handler that looks does nothing for it; one that does not has completed it."""
    ids: list[str] = []

    def body(ctx: Any, args: list[str], session: Any) -> None:
        answer = bench.jobs.cancel(bench.outside, ids[0])
        assert answer == "asked"
        bench.pause(lambda: ctx.cancelled_jobs)
        assert ctx.cancelled_jobs == {ids[0]}
        assert not ctx.cancelled

    chunks = Chunks(bench, body, wait=60, chunk=3)
    ids += chunks.enqueue("a", "b", "c")

    ran = bench.run(until=bench.none_left, listen=True, **LONG)

    assert [ran.of(job_id)[-1] for job_id in ids] == ["cancelled", "completed", "completed"]
    assert chunks.sizes == [3]


@one_of_each
def test_a_cancel_that_a_handler_did_not_see_is_too_late(bench: Workbench) -> None:
    ids: list[str] = []

    def body(ctx: Any, args: list[str], session: Any) -> None:
        bench.jobs.cancel(bench.outside, ids[0])
        bench.pause(lambda: any(run.is_asked(run.job) for run in [ctx._run]))

    chunks = Chunks(bench, body, wait=60, chunk=2)
    ids += chunks.enqueue("a", "b")

    ran = bench.run(until=bench.none_left, listen=True, **LONG)

    assert [ran.of(job_id)[-1] for job_id in ids] == ["completed", "completed"]
    assert chunks.notes(ids) == [["written"]] * 2


@one_of_each
def test_a_cancelled_job_is_not_retried_with_the_others(bench: Workbench) -> None:
    ids: list[str] = []

    def body(ctx: Any, args: list[str], session: Any) -> None:
        if len(args) > 1:
            bench.jobs.cancel(bench.outside, ids[0])
            bench.pause(lambda: ctx._run.is_asked(ctx._run.job))
            raise ValueError

    chunks = Chunks(bench, body, wait=60, chunk=2)
    ids += chunks.enqueue("a", "b")

    ran = bench.run(until=bench.none_left, listen=True, **LONG)

    assert ran.of(ids[0]) == ["started", "cancelled"]
    assert chunks.calls == [["a", "b"], ["b"]]
    assert chunks.notes(ids) == [[], ["written"]]


def cancel_all(bench: Workbench, ctx: Any) -> None:
    """Cancel the jobs of a call from within, once its worker can hear of that, and be told."""
    bench.pause(lambda: bench.sql("SELECT 1 FROM bgjob_worker WHERE listener_pid IS NOT NULL"))
    for job in ctx.jobs:
        bench.jobs.cancel(bench.outside, job.id)
    bench.pause(lambda: ctx.cancelled)


@one_of_each
def test_when_all_are_cancelled_the_call_is_told(bench: Workbench) -> None:
    def body(ctx: Any, args: list[str], session: Any) -> None:
        cancel_all(bench, ctx)

    chunks = Chunks(bench, body, wait=60, chunk=3)
    ids = chunks.enqueue("a", "b", "c")

    ran = bench.run(until=bench.none_left, listen=True, **LONG)

    assert [ran.of(job_id) for job_id in ids] == [["started", "cancelled"]] * 3
    assert chunks.notes(ids) == [[]] * 3


@one_of_each
def test_the_writes_of_a_cancelled_call_are_undone(bench: Workbench) -> None:
    """Though it returns a dict, and though a job beside them has an arg that can't be decoded."""

    def body(ctx: Any, args: list[int], session: Any) -> Any:
        cancel_all(bench, ctx)
        return {ctx.jobs[0].id: Retry(60)}

    chunks = Chunks(bench, body, of=list[int], wait=60, chunk=3)
    ids = chunks.enqueue(1, 2, 3)
    bench.sql("UPDATE bgjob_job SET arg = '\"two\"' WHERE id = :id", id=ids[1])

    ran = bench.run(until=bench.none_left, listen=True, **LONG)

    assert [ran.of(job_id)[-1] for job_id in ids] == ["cancelled", "moved_to_dlq", "cancelled"]
    assert chunks.notes(ids) == [[]] * 3


@one_of_each
def test_jobs_that_wait_are_cancelled_unstarted(bench: Workbench) -> None:
    chunks = Chunks(bench, wait=60)
    (job_id,) = chunks.enqueue("a")

    def drive() -> None:
        wait_until(lambda: bench.job(job_id).claimed_by is not None)
        assert bench.jobs.cancel(bench.outside, job_id) == "asked"

    ran = bench.run(during=drive, until=bench.none_left, listen=True, **LONG)

    assert ran.of(job_id) == ["cancelled"]
    assert chunks.calls == []


@one_of_each
def test_an_expired_job_is_none_of_a_chunk(bench: Workbench) -> None:
    chunks = Chunks(bench, wait=0.1, on_expiry="drop")
    ids = chunks.enqueue("a", "late", "b")
    bench.sql("UPDATE bgjob_job SET expires_at = now() WHERE id = :id", id=ids[1])

    ran = bench.run(**LONG)

    assert chunks.calls == [["a", "b"]]
    assert ran.of(ids[1]) == ["expired"]


@one_of_each
def test_a_drain_that_is_over_releases_all_of_a_chunk(bench: Workbench) -> None:
    gate = Gate(bench)
    chunks = Chunks(
        bench, lambda ctx, args, session: gate.hold(), uses_session=False, wait=60, chunk=3
    )
    ids = chunks.enqueue("a", "b", "c")

    def drive() -> None:
        gate.wait()
        threading.Timer(1.0, gate.open).start()

    bench.run(during=drive, until=lambda: chunks.calls, shutdown_timeout=0.0, **LONG)

    left = [bench.job(job_id) for job_id in ids]
    assert [(job.claimed_by, job.attempt) for job in left] == [(None, 0)] * 3
    assert {job.last_error for job in left} == {"interrupted by shutdown"}


# ---- around it ----------------------------------------------------------------------------------


@one_of_each
def test_a_chunk_has_jobs_and_no_job(bench: Workbench) -> None:
    """For middleware too, which finds ctx.jobs in every context."""

    def body(ctx: Any, args: list[str], session: Any) -> None:
        with pytest.raises(RuntimeError, match=r"use ctx\.jobs"):
            ctx.job  # noqa: B018
        assert [job.attempt for job in ctx.jobs] == [1]

    chunks = Chunks(bench, body)
    chunks.enqueue("a")
    single = bench.handler("single", lambda s, ctx: bench.note(s, ctx, str(ctx.jobs == (ctx.job,))))
    job_id = bench.enqueue(single)

    bench.run(until=bench.none_left)

    assert bench.notes(job_id) == ["True"]


@one_of_each
def test_what_all_jobs_agree_in_is_carried_and_logged(bench: Workbench) -> None:
    """The rest would be that of one of them."""
    tenant: ContextVar[str] = ContextVar("tenant")
    request_id: ContextVar[str] = ContextVar("request_id")
    seen: list[tuple[Any, ...]] = []

    def body(ctx: Any, args: list[str], session: Any) -> None:
        record = logging.makeLogRecord({})
        JobLogFilter(["tenant", "request_id"]).filter(record)
        fields = {name: vars(record).get(name) for name in ("job_id", "job_type", "tenant")}
        seen.append((tenant.get(None), request_id.get(None), fields, hasattr(record, "request_id")))

    chunks = Chunks(bench, body, wait=60, chunk=2)
    bench.jobs.carry(tenant=tenant, request_id=request_id)

    def request(number: str) -> None:
        tenant.set("acme")
        request_id.set(number)
        chunks.enqueue("a")

    for number in "12":
        copy_context().run(request, number)
    bench.run(**LONG)

    fields = {"job_id": None, "job_type": "chunks", "tenant": "acme"}
    assert seen == [("acme", None, fields, False)]


@one_of_each
def test_middleware_goes_around_the_call_once(bench: Workbench) -> None:
    """With its session; what it returns is the outcome of all."""
    around: list[int] = []

    def function(call: Any, ctx: Any) -> Any:
        call()
        around.append(len(ctx.jobs))
        return Reschedule(3600)

    async def coroutine(call: Any, ctx: Any) -> Any:
        await call()
        around.append(len(ctx.jobs))
        return Reschedule(3600)

    chunks = Chunks(bench, wait=60, chunk=3)
    bench.jobs.middleware(function, coroutine)
    ids = chunks.enqueue("a", "b", "c")

    ran = bench.run(**LONG)

    assert around == [3]
    assert [ran.of(job_id) for job_id in ids] == [["started", "rescheduled"]] * 3
    assert chunks.notes(ids) == [["written"]] * 3


def test_a_test_performs_and_works_on_chunks(database_url: str) -> None:
    """JobKit.perform takes a list, and work_due has a call for each job."""
    bench = Workbench(FLAVORS[0], database_url)
    bench.reset()
    chunks = Chunks(bench, of=list[int])
    kit = JobKit(bench.jobs)

    assert kit.perform(chunks.handler, [1, 2], session=FakeSession()) is None
    with pytest.raises(TypeError, match="a list"):
        kit.perform(chunks.handler, 1)
    with Session(bench.outside.execution_options(isolation_level="READ COMMITTED")) as session:
        for arg in (3, 4):
            bench.jobs.enqueue(session, "chunks", arg)
        outcomes = kit.work_due(session)
    bench.close()

    assert [type(outcome) for outcome in outcomes] == [Complete, Complete]
    assert chunks.calls == [[1, 2], [3], [4]]


class FakeSession:
    def add(self, note: Any) -> None: ...

    def flush(self) -> None: ...
