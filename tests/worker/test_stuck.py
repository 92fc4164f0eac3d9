"""Hard limits: a handler that does not end loses its job, then its slot, then its worker."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from unittest.mock import MagicMock

import pytest

from sqlalchemy_bgjob import WorkerStuck, constant
from sqlalchemy_bgjob._handlers.outcomes import HAND_BACK, INTERRUPTED, interrupted, interruptions
from sqlalchemy_bgjob._worker.hands import Hands
from sqlalchemy_bgjob._worker.overdue import UNTIL_OVERDUE, UNTIL_STUCK, Overdue
from sqlalchemy_bgjob._worker.plan.steps import Finished
from sqlalchemy_bgjob._worker.run import Run
from sqlalchemy_bgjob.settings import WorkerSettings
from support import planning
from support.running import Workbench, one_of_each, only_asyncio
from support.tables import new_queue
from support.waiting import wait_until

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context

SLOW = constant(3600.0)
SHORT: dict[str, Any] = {"timeout": 0.05, "grace": 0.1, "retry": SLOW}


class Deaf:
    """A handler that returns only when the test lets it."""

    def __init__(self, bench: Workbench, **options: Any) -> None:
        self.bench, self.release = bench, threading.Event()
        self.started: list[str] = []
        self.ended: list[str] = []
        options = {"uses_session": False} | SHORT | options
        self.handler = bench.handler("deaf", self._body, **options)

    def _body(self, *given: Any) -> None:
        ctx: Context[Any] = given[-1]
        if len(given) > 1:
            self.bench.note(*given)
        self.started.append(ctx.job.id)
        if ctx.job.attempt == 1:
            while not self.release.is_set():
                with suppress(asyncio.CancelledError):
                    self.bench.pause(self.release.is_set)
        self.ended.append(ctx.job.id)


def released(bench: Workbench, job_id: str) -> bool:
    job = bench.job(job_id)
    return bool(job.claimed_by is None and job.attempt == 1)


@pytest.mark.core
@one_of_each
def test_after_its_grace_the_job_is_settled_without_it(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """As a failed attempt, told once; what it does later changes nothing. Its slot comes back."""
    deaf = Deaf(bench, uses_session=True, timeout=0.5)  # it needs that for its connection
    job_id = bench.enqueue(deaf.handler)
    quick = bench.handler("quick", bench.note)
    seen: list[Any] = []

    def drive() -> None:
        wait_until(lambda: released(bench, job_id))
        seen.append(bench.job(job_id))
        bench.enqueue(quick)  # the other slot serves it
        wait_until(lambda: len(bench.sql("SELECT FROM bgjob_job")) == 1)
        deaf.release.set()
        wait_until(lambda: deaf.ended)

    with caplog.at_level(logging.WARNING, "sqlalchemy_bgjob"):
        ran = bench.run(during=drive, queues={"default": 2}, max_stuck=1.0)

    (job,) = seen
    assert job.last_error.startswith("TimeoutError: the handler went on for 0.1 s after it was")
    assert (job.attempt, round(job.due_in, -3)) == (1, 4000.0)
    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert bench.notes(job_id) == []
    assert bench.job(job_id).lease == job.lease, "nothing was settled later"
    assert caplog.text.count("its job is given up") == 1


@one_of_each
def test_the_next_attempt_may_run_beside_it(bench: Workbench) -> None:
    """Under its own lease; and the slot of the first serves others once that has ended."""
    deaf = Deaf(bench, retry=constant(0.0))
    job_id = bench.enqueue(deaf.handler)

    def drive() -> None:
        wait_until(lambda: bench.job(job_id) is None)
        assert deaf.ended == [job_id]
        deaf.release.set()
        wait_until(lambda: len(deaf.ended) == 2)

    ran = bench.run(during=drive, queues={"default": 2}, max_stuck=1.0)

    assert ran.of(job_id) == ["started", "will_be_retried", "started", "completed"]


@one_of_each
def test_a_cancelled_job_is_cancelled_after_the_grace(bench: Workbench) -> None:
    """Without a timeout."""
    deaf = Deaf(bench, timeout=None)
    job_id = bench.enqueue(deaf.handler)

    def drive() -> None:
        wait_until(lambda: deaf.started)
        assert bench.jobs.cancel(bench.outside, job_id) == "asked"
        wait_until(lambda: bench.job(job_id) is None)
        assert deaf.ended == []
        deaf.release.set()
        wait_until(lambda: deaf.ended)

    ran = bench.run(during=drive, until=bench.none_left, listen=True, max_stuck=1.0)

    assert ran.of(job_id) == ["started", "cancelled"]


@one_of_each
def test_too_many_stuck_handlers_end_the_worker(bench: Workbench) -> None:
    """It claims no more, drains what runs, and says why."""
    deaf = Deaf(bench)
    stuck = [bench.enqueue(deaf.handler) for _ in range(2)]
    may_end = threading.Event()

    def body(session: Session, ctx: Context[Any]) -> None:
        bench.note(session, ctx)
        bench.pause(may_end.is_set)

    running = bench.enqueue(bench.handler("running", body))
    late: list[str] = []

    def drive() -> None:
        wait_until(lambda: all(released(bench, job_id) for job_id in stuck))
        late.append(bench.enqueue(bench.handler("late", bench.note)))
        may_end.set()
        wait_until(lambda: bench.job(running) is None)
        wait_until(lambda: not bench.sql("SELECT FROM bgjob_worker"))
        deaf.release.set()

    with pytest.raises(WorkerStuck, match=r"^2 of 4 slots are taken by handlers that do not end"):
        bench.run(during=drive, until=lambda: len(deaf.ended) == 2)

    assert bench.notes(running) == ["written"]


@only_asyncio
def test_a_coroutine_that_ends_at_its_timeout_is_not_stuck(bench: Workbench) -> None:
    @bench.jobs.handler("t", timeout=0.05, grace=30.0, retry=SLOW)
    async def handler(ctx: Context[Any]) -> None:
        await asyncio.Event().wait()

    ids = [bench.enqueue(handler) for _ in range(8)]

    ran = bench.run()

    assert [ran.of(job_id) for job_id in ids] == [["started", "will_be_retried"]] * 8


# ---- pure ----------------------------------------------------------------------------------------


def test_when_a_run_is_stuck() -> None:
    jobs = new_queue()

    @jobs.handler("a", timeout=10.0, grace=5.0)
    def limited(ctx: Context[Any]) -> None: ...

    @jobs.handler("b", grace=5.0)
    def only_asked(ctx: Context[Any]) -> None: ...

    @jobs.handler("c")
    async def coroutine(ctx: Context[Any]) -> None: ...

    @jobs.handler("d")
    def free(ctx: Context[Any]) -> None: ...

    job: Any = None
    runs = [Run(job, handler) for handler in (limited, only_asked, coroutine, free)]
    overdue = Overdue()
    for run in runs:
        overdue.starts(run)
    runs[0].deadline = 110.0
    assert overdue.look(runs, 100.0) == ([], [])
    assert overdue.look_at == 110.0 + UNTIL_OVERDUE
    for run in runs[1:]:
        run.asked_at = 120.0
        overdue.asked(run)

    assert overdue.look(runs, 114.9) == ([runs[0]], [])
    assert overdue.look(runs, 115.0) == ([], [runs[0]])
    assert overdue.look(runs, 115.1) == ([], [runs[0]]), "until the caller has counted it"
    runs[0].stuck = True
    assert overdue.look(runs, 124.9) == ([], [])
    assert overdue.look(runs, 125.0) == ([], [runs[1]])
    runs[1].stuck = True
    assert overdue.look(runs, 120.0 + UNTIL_STUCK) == ([], [runs[2]])
    runs[2].stuck = True
    assert overdue.look(runs, 1e9) == ([], [])
    assert overdue.look_at == float("inf")


def test_a_lost_slot_takes_no_job_and_holds_up_no_drain() -> None:
    core, (first, second) = planning.busy(2)

    core.lose_slot("q")
    core.finished(first, 1.0)
    core.claimed("q", planning.jobs(2), planning.NOW)
    assert len(planning.start_all(core)) == 1, "of two slots one is left"
    assert core.withdraw(core.ready()[0])
    assert core.ready() == []
    core.regain_slot("q")
    core.claimed("q", [second], planning.NOW)
    assert len(planning.start_all(core)) == 1

    core, _ = planning.busy(1)
    core.lose_slot("q")
    core.draining = True
    assert planning.step(core) == Finished()


@pytest.mark.parametrize("before", [True, False])
def test_a_run_that_commits_just_now_is_not_told_to_end(before: bool) -> None:
    """It is looked at again; only a drain may have told it so before."""
    hands = Hands(MagicMock(), MagicMock(), {"q": 1}, WorkerSettings())
    run = MagicMock(committing=True, cancelled=before)

    assert hands.give_up_run(run, []) is False
    assert run.cancelled is before


def test_what_operators_set_gives_no_lost_slot_back() -> None:
    """A worker reads that again and again; and a regained slot is no more than it had."""
    core, _ = planning.busy(2)
    core.lose_slot("q")
    core.control({"q": 2}, (), planning.NOW)
    core.claimed("q", planning.jobs(3), planning.NOW)
    assert planning.start_all(core) == []

    core.regain_slot("q")
    core.control({"q": 2}, (), planning.NOW)
    assert len(planning.start_all(core)) == 1


# ---- interruptions -------------------------------------------------------------------------------


def test_interruptions_in_a_row_are_counted() -> None:
    """In the job's own error, which the next claim returns."""
    error: str | None = None
    for times in range(1, 5):
        settlement = interrupted(error)
        assert (settlement.kind, settlement.refund_attempt) == (HAND_BACK.kind, True)
        error = settlement.error
        assert interruptions(error) == times

    assert error == "interrupted by shutdown, 4 times in a row"
    assert interrupted("ValueError: x") == interrupted(None) == INTERRUPTED
    assert [interruptions(other) for other in (None, "", "ValueError: x")] == [0, 0, 0]


@one_of_each
def test_a_job_that_deploys_keep_from_ending_is_named(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """At the third interruption in a row."""
    started, may_end = threading.Event(), threading.Event()

    def run_on(ctx: Context[Any]) -> None:
        started.set()
        bench.pause(may_end.is_set)

    handler = bench.handler("t", run_on, uses_session=False)
    job_id = bench.enqueue(handler)
    bench.sql("UPDATE bgjob_job SET last_error = 'interrupted by shutdown'")
    warned: list[int] = []

    for _ in range(2):
        started.clear()  # a job that is claimed and not started is handed back, not interrupted
        with caplog.at_level(logging.WARNING, "sqlalchemy_bgjob"):
            bench.run(until=started.is_set, shutdown_timeout=0.0)
        warned.append(caplog.text.count("times in a row: it takes longer"))
    may_end.set()

    assert warned == [0, 1]
    assert "interrupted by shutdown 3 times in a row" in caplog.text
    job = bench.job(job_id)
    assert (job.attempt, job.last_error) == (0, "interrupted by shutdown, 3 times in a row")
