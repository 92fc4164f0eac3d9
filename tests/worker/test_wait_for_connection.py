"""Handlers that wait for a connection of the pool: the time is not theirs, nor is an attempt spent.

The pool has one connection for handlers, and one handler holds it.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sqlalchemy_bgjob import constant
from support.running import FLAVORS, Gate, one_of_each, only_asyncio, only_threads
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.ext.asyncio import AsyncSession
    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context, JobType
    from support.running import Ran, Workbench

SLOW = constant(3600.0)
SELECT_1 = text("SELECT 1")


def beside_one_that_holds_it(
    bench: Workbench,
    handler: JobType[Any],
    lets_go: Callable[[str], object],
    until: Callable[[], object] | None = None,
) -> tuple[str, Ran]:
    """Run a job of the handler while another holds the connection, until *lets_go* returns."""
    gate, ids = Gate(bench), []

    def holds(session: Session, ctx: Context[Any]) -> None:
        session.execute(SELECT_1)
        gate.hold()

    bench.enqueue(bench.handler("holds", holds))

    def during() -> None:
        gate.wait()
        ids.append(bench.enqueue(handler))
        try:
            lets_go(ids[0])
        finally:
            gate.open()

    pool = {"pool_size": 3, "max_overflow": 0}
    ran = bench.run(
        during=during,
        until=until or bench.none_left,
        queues={"default": 3},
        engine=pool,
        deadline=60.0,
    )
    return ids[0], ran


def was_put_off(bench: Workbench) -> Callable[[str], object]:
    """Let go once the job was queued again, or is dead."""

    def put_off(id: str) -> None:
        wait_until(lambda: bench.job(id) is None or bench.job(id).last_error, 60.0)

    return put_off


def costs_nothing(bench: Workbench, job_id: str, ran: Ran) -> None:
    assert bench.dead(job_id) is None
    assert ran.of(job_id)[-1] == "completed"
    assert set(ran.of(job_id)) <= {"started", "rescheduled", "completed"}
    assert ran.last(job_id).job.attempt == 1


@one_of_each
def test_a_wait_is_not_counted_as_the_handlers_time(bench: Workbench) -> None:
    """It waits for a half of its timeout, works for more than the other, and is not late."""
    deadlines: list[float] = []

    def body(session: Session, ctx: Context[Any]) -> None:
        first = ctx.deadline or 0.0
        deadlines.append(first)
        session.execute(SELECT_1)
        bench.pause(lambda: time.monotonic() > first + 0.2)
        assert not ctx.cancelled
        bench.note(session, ctx)

    handler = bench.handler("t", body, timeout=6.0, max_attempts=1)

    def half_of_it(id: str) -> None:
        wait_until(lambda: deadlines, what="its start")
        wait_until(lambda: time.monotonic() > deadlines[0] - 3.0)

    job_id, ran = beside_one_that_holds_it(bench, handler, half_of_it)

    costs_nothing(bench, job_id, ran)
    assert bench.notes(job_id) == ["written"]


@one_of_each
def test_a_wait_beyond_the_deadline_costs_no_attempt(bench: Workbench) -> None:
    handler = bench.handler("t", bench.note, timeout=0.5, max_attempts=1)

    job_id, ran = beside_one_that_holds_it(bench, handler, was_put_off(bench))

    costs_nothing(bench, job_id, ran)
    assert "no connection within the handler's timeout" in ran.last(job_id).job.last_error
    assert bench.notes(job_id) == ["written"]


@only_threads
def test_time_that_a_handler_has_spent_before_is_its_own(bench: Workbench) -> None:
    """One that is late when it first uses its session has failed, also if that waits."""
    late: list[str] = []

    def body(ctx: Context[Any]) -> None:
        bench.pause(lambda: ctx.cancelled)
        late.append(ctx.job.id)
        ctx.session.execute(SELECT_1)

    handler = bench.handler("t", body, uses_session=False, timeout=0.3, retry=SLOW)

    def is_late(id: str) -> None:
        wait_until(lambda: late, what="its deadline")

    job_id, ran = beside_one_that_holds_it(bench, handler, is_late, bench.idle)

    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert bench.job(job_id).attempt == 1


def by_timeout(use: Callable[[], Any]) -> Any:
    async def waits() -> None:
        async with asyncio.timeout(0.3):
            await use()

    return waits()


def by_wait_for(use: Callable[[], Any]) -> Any:
    return asyncio.wait_for(use(), 0.3)


def by_own_words(use: Callable[[], Any]) -> Any:
    async def waits() -> None:
        try:
            await by_timeout(use)
        except TimeoutError as error:
            raise RuntimeError("the database is slow") from error

    return waits()


def in_a_group(use: Callable[[], Any]) -> Any:
    async def waits() -> None:
        async with asyncio.timeout(0.3), asyncio.TaskGroup() as group:
            group.create_task(use())

    return waits()


@pytest.mark.parametrize("bench", FLAVORS[-1:], ids=str, indirect=True)
@pytest.mark.parametrize("limit", [by_timeout, by_wait_for, by_own_words, in_a_group])
def test_a_timeout_of_the_handlers_own_costs_no_attempt(
    bench: Workbench, limit: Callable[[Callable[[], Any]], Any]
) -> None:
    @bench.jobs.handler("t", max_attempts=1)
    async def handler(ctx: Context[AsyncSession]) -> None:
        await limit(lambda: ctx.session.run_sync(bench.note, ctx))

    job_id, ran = beside_one_that_holds_it(bench, handler, was_put_off(bench))

    costs_nothing(bench, job_id, ran)
    assert "no connection within the handler's timeout" in ran.last(job_id).job.last_error


@only_asyncio
def test_what_fails_beside_the_wait_is_a_failed_attempt(bench: Workbench) -> None:
    """It ends the wait, and is no lack of a connection."""

    @bench.jobs.handler("t", retry=SLOW)
    async def handler(ctx: Context[AsyncSession]) -> None:
        async def fails() -> None:
            await asyncio.sleep(0)
            raise ValueError("of its own")

        async with asyncio.TaskGroup() as group:
            group.create_task(ctx.session.run_sync(bench.note, ctx))
            group.create_task(fails())

    job_id, ran = beside_one_that_holds_it(bench, handler, was_put_off(bench), bench.idle)

    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert bench.job(job_id).attempt == 1
    assert "of its own" in bench.job(job_id).last_error
