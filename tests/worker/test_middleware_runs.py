"""Middleware in a worker: where it runs, in which transaction, and for how long."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import Context, MoveToDlq, Retry, constant
from support.running import FLAVORS, Workbench, one_of_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy.orm import Session

SLOW = constant(3600.0)


def middleware(bench: Workbench, before: Callable[..., Any], after: Callable[..., Any]) -> None:
    """Call ``before(session, ctx)``, the handler, and ``after(ctx, result)``."""

    def function(call: Callable[[], Any], ctx: Context[Session]) -> Any:
        before(ctx.session, ctx)
        return after(ctx, call())

    async def coroutine(call: Callable[[], Any], ctx: Context[Any]) -> Any:
        await ctx.session.run_sync(before, ctx)
        return after(ctx, await call())

    bench.jobs.middleware(coroutine if bench.flavor.is_async else function)


@pytest.mark.core
@one_of_each
def test_it_is_in_the_jobs_own_transaction(bench: Workbench) -> None:
    """What it writes is committed with the job's end, or undone with it; in the same thread."""
    seen: list[Any] = []

    def before(s: Session, ctx: Context[Any]) -> None:
        seen.append(("before", ctx.job.type, threading.get_ident()))
        bench.note(s, ctx, "by the middleware")

    def after(ctx: Context[Any], result: Any) -> Any:
        seen.append(("after", ctx.job.type, threading.get_ident()))
        return result

    def body(s: Session, ctx: Context[Any]) -> None:
        seen.append(("run", ctx.job.type, threading.get_ident()))
        bench.note(s, ctx)
        if ctx.job.type == "fails":
            raise ValueError("no")

    middleware(bench, before, after)
    fine = bench.enqueue(bench.handler("fine", body))
    fails = bench.enqueue(bench.handler("fails", body, retry=SLOW))
    ran = bench.run()

    assert bench.notes(fine) == ["by the middleware", "written"]
    assert bench.notes(fails) == []
    assert ran.of(fine) == ["started", "completed"]
    assert ran.of(fails) == ["started", "will_be_retried"]
    of_fine = [entry for entry in seen if entry[1] == "fine"]
    assert [entry[0] for entry in of_fine] == ["before", "run", "after"]
    assert len({entry[2] for entry in of_fine}) == 1


@one_of_each
def test_an_outcome_of_its_own_is_the_settlement(bench: Workbench) -> None:
    def before(s: Session, ctx: Context[Any]) -> None:
        if ctx.job.type == "raises":
            raise MoveToDlq("not today")

    def after(ctx: Context[Any], result: Any) -> Any:
        return Retry(3600, "once more") if ctx.job.type == "returns" else result

    middleware(bench, before, after)
    raises = bench.enqueue(bench.handler("raises", bench.note))
    returns = bench.enqueue(bench.handler("returns", bench.note))
    bench.run()

    assert bench.dead(raises).last_error == "not today"
    assert bench.notes(raises) == []
    assert bench.job(returns).last_error == "once more"
    assert bench.notes(returns) == ["written"], "what is returned keeps the writes"


@one_of_each
def test_its_time_counts_for_the_timeout(bench: Workbench) -> None:
    async def endless(call: Callable[[], Any], ctx: Context[Any]) -> Any:
        await asyncio.Event().wait()

    def slow(call: Callable[[], Any], ctx: Context[Any]) -> Any:
        while not ctx.cancelled:
            time.sleep(0.005)
        return call()

    bench.jobs.middleware(endless if bench.flavor.is_async else slow)
    handler = bench.handler("t", lambda ctx: None, uses_session=False, retry=SLOW, timeout=0.1)
    job_id = bench.enqueue(handler)
    bench.run()

    assert bench.job(job_id).last_error.startswith("TimeoutError")


@pytest.mark.parametrize("bench", [FLAVORS[0], FLAVORS[2]], ids=str, indirect=True)
def test_a_worker_does_not_start_beside_one_that_can_not_be_around(bench: Workbench) -> None:
    """Of a served queue or another one: jobs of any handler may come to any queue."""

    def function(call: Callable[[], Any], ctx: Context[Any]) -> Any:
        return call()

    async def coroutine(call: Callable[[], Any], ctx: Context[Any]) -> Any:
        return await call()

    bench.handler("t", bench.note, queue="elsewhere")
    bench.jobs.middleware(function if bench.flavor.is_async else coroutine)

    with pytest.raises(ValueError, match=r"can't go around the .* 't'; give one for these too"):
        bench.run(queues=["elsewhere"])
