"""A handler's ``timeout``: past its deadline an attempt has failed, unless it says an outcome."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from sqlalchemy_bgjob import AsyncWorker, Complete, MoveToDlq, Reschedule, Retry, constant
from sqlalchemy_bgjob._worker.overdue import UNTIL_OVERDUE, Overdue
from sqlalchemy_bgjob._worker.run import Run
from support.databases import with_driver
from support.running import FLAVORS, Workbench, one_of_each, only_asyncio
from support.tables import new_queue
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context

HOUR = 3600.0
SLOW = constant(HOUR)
with_work_one = pytest.mark.parametrize("how", ["worker", "work_one"])


def run(bench: Workbench, how: str) -> None:
    """Run what is due, by a worker or by work_one."""
    if how == "worker":
        bench.run()
        return
    url = with_driver(bench.url, bench.flavor.driver)
    if not bench.flavor.is_async:
        engine = create_engine(url)
        bench.jobs.work_one(engine, "default")
        engine.dispose()
        return

    async def main() -> None:
        engine = create_async_engine(url)
        await bench.jobs.work_one(engine, "default")
        await engine.dispose()

    asyncio.run(main())


def pass_deadline(ctx: Context[Any]) -> None:
    """As if the handler had blocked for long; a coroutine that awaits would be cancelled."""
    assert ctx.deadline is not None
    assert not ctx.cancelled
    ctx._run.deadline = time.monotonic()
    assert ctx.cancelled


@with_work_one
@pytest.mark.parametrize("uses_session", [True, False])
@one_of_each
def test_a_return_after_the_deadline_is_a_failed_attempt(
    bench: Workbench, uses_session: bool, how: str
) -> None:
    def with_session(session: Session, ctx: Context[Any]) -> None:
        bench.note(session, ctx)
        pass_deadline(ctx)

    def without(ctx: Context[Any]) -> None:
        pass_deadline(ctx)

    body = with_session if uses_session else without
    handler = bench.handler("t", body, uses_session=uses_session, timeout=HOUR, retry=SLOW)
    job_id = bench.enqueue(handler)

    run(bench, how)

    job = bench.job(job_id)
    assert job is not None, "it was taken for complete"
    assert (job.attempt, job.claimed_by) == (1, None)
    assert job.last_error.startswith("TimeoutError: ")
    assert "3600 s" in job.last_error
    assert "\n" not in job.last_error, "it names a frame, and none is the user's"
    assert bench.notes(job_id) == []


@with_work_one
@pytest.mark.parametrize("outcome", [Complete(), Retry(HOUR), Reschedule(HOUR), MoveToDlq("x")])
@one_of_each
def test_an_outcome_that_is_said_after_the_deadline_stands(
    bench: Workbench, outcome: Any, how: str
) -> None:
    def body(session: Session, ctx: Context[Any]) -> Any:
        bench.note(session, ctx)
        pass_deadline(ctx)
        return outcome

    job_id = bench.enqueue(bench.handler("t", body, timeout=HOUR, retry=SLOW))

    run(bench, how)

    assert bench.notes(job_id) == ["written"]
    job = bench.job(job_id)
    match outcome:
        case Complete():
            assert job is None
        case Retry():
            assert (job.attempt, job.last_error) == (1, None)
        case Reschedule():
            assert (job.attempt, job.last_error) == (0, None)
        case MoveToDlq():
            assert bench.dead(job_id).last_error == "x"


@with_work_one
@one_of_each
def test_a_return_in_time_is_complete(bench: Workbench, how: str) -> None:
    job_id = bench.enqueue(bench.handler("t", bench.note, timeout=HOUR))

    run(bench, how)

    assert bench.job(job_id) is None
    assert bench.notes(job_id) == ["written"]


@only_asyncio
@with_work_one
def test_a_coroutine_that_swallows_its_cancellation_has_failed(bench: Workbench, how: str) -> None:
    @bench.jobs.handler("t", timeout=0.05, retry=SLOW)
    async def handler(ctx: Context[AsyncSession]) -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        await ctx.session.run_sync(bench.note, ctx)

    job_id = bench.enqueue(handler)

    run(bench, how)

    assert bench.job(job_id).last_error.startswith("TimeoutError")
    assert bench.notes(job_id) == []


@one_of_each
def test_its_attempts_end_in_the_dlq(bench: Workbench) -> None:
    """A handler that always stops at its timeout is not complete by that, ever."""
    handler = bench.handler(
        "t",
        pass_deadline,
        uses_session=False,
        timeout=HOUR,
        max_attempts=3,
        retry=constant(0.0),
    )
    job_id = bench.enqueue(handler)

    ran = bench.run()

    assert ran.of(job_id) == ["started", "will_be_retried"] * 2 + ["started", "moved_to_dlq"]
    assert bench.dead(job_id).attempt == 3


def going_on(caplog: pytest.LogCaptureFixture) -> list[str]:
    messages = [record.getMessage() for record in caplog.records]
    return [message for message in messages if "goes on beyond its timeout" in message]


@one_of_each
def test_a_handler_that_goes_on_is_named_once(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """And keeps its slot until it returns; the others have theirs."""
    named_twice: list[float] = []

    def deaf(ctx: Context[Any]) -> None:
        def named() -> bool:
            if going_on(caplog) and not named_twice:
                named_twice.append(time.monotonic() + 0.5)
            return bool(named_twice) and time.monotonic() >= named_twice[0]

        suppressing_cancellation(bench, named)

    deaf_one = bench.enqueue(
        bench.handler("deaf", deaf, uses_session=False, timeout=0.05, retry=SLOW)
    )
    timed = bench.handler("timed", bench.note, timeout=HOUR)
    others = [bench.enqueue(timed) for _ in range(10)]

    with caplog.at_level(logging.WARNING, "sqlalchemy_bgjob"):
        ran = bench.run(deadline=60.0)

    assert ran.of(deaf_one) == ["started", "will_be_retried"]
    assert all(ran.of(job_id) == ["started", "completed"] for job_id in others)
    [warning] = going_on(caplog)
    assert deaf_one in warning
    assert "'deaf'" in warning
    assert "0.05 s" in warning


def suppressing_cancellation(bench: Workbench, condition: Callable[[], bool]) -> None:
    """Wait, whoever cancels it."""
    while not condition():
        with suppress(asyncio.CancelledError):
            bench.pause(condition)


def test_a_handler_has_a_second_to_stop_before_it_is_named() -> None:
    jobs = new_queue()

    @jobs.handler("timed", timeout=10.0)
    def timed(ctx: Context[Any]) -> None: ...

    @jobs.handler("free")
    def free(ctx: Context[Any]) -> None: ...

    job: Any = None
    overdue, runs = Overdue(), [Run(job, timed), Run(job, free)]
    overdue.starts(runs[1])
    assert overdue.look_at == float("inf"), "nobody has a timeout"
    overdue.starts(runs[0])
    runs[0].deadline = now = overdue.look_at

    assert overdue.look(runs, now) == ([], [])
    assert overdue.look_at == now + UNTIL_OVERDUE
    assert overdue.look(runs, now + UNTIL_OVERDUE) == ([runs[0]], [])
    assert overdue.look(runs, now + 10.0) == ([], [])
    assert overdue.look_at == float("inf")


def test_a_function_beside_coroutines_has_its_deadline_too(workbench_url: str) -> None:
    """AsyncWorker runs it in a thread."""
    bench = Workbench(FLAVORS[0], workbench_url)  # whose handlers are functions
    bench.reset()
    handler = bench.handler("t", pass_deadline, uses_session=False, timeout=HOUR, retry=SLOW)
    job_id = bench.enqueue(handler)

    async def main() -> None:
        engine = create_async_engine(bench.url)
        async with AsyncWorker(bench.jobs, engine, poll_interval=0.05, listen=False):
            await asyncio.to_thread(wait_until, bench.idle)
        await engine.dispose()

    asyncio.run(main())

    assert bench.job(job_id).last_error.startswith("TimeoutError")
    bench.close()
