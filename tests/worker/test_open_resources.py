"""Resources in a worker: one set for each attempt, closed whatever becomes of it."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

import pytest
from sqlalchemy import create_engine
from sqlalchemy.util import greenlet_spawn

from sqlalchemy_bgjob import Complete, Context, constant
from sqlalchemy_bgjob._handlers.additions import Additions
from sqlalchemy_bgjob._handlers.registry import Registry
from support.running import FLAVORS, Gate, Workbench, one_of_each
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import JobType

SLOW = constant(3600.0)
only_asyncpg = pytest.mark.parametrize("bench", [FLAVORS[3]], ids=str, indirect=True)


class Resources(TypedDict):
    number: int


class Opened:
    """A provider that counts what is open, and by which error each was closed."""

    def __init__(self) -> None:
        self.opened, self.closed = 0, list[str | None]()
        self.trouble: dict[str, BaseException] = {}

    @contextmanager
    def sync(self, ctx: Context[Any]) -> Iterator[Resources]:
        if "in" in self.trouble:
            raise self.trouble["in"]
        self.opened += 1
        error: BaseException | None = None
        try:
            yield {"number": self.opened}
        except BaseException as raised:
            error = raised
            raise
        finally:
            self.closed.append(None if error is None else type(error).__name__)
            if "out" in self.trouble:
                raise self.trouble["out"]

    @asynccontextmanager
    async def asynchronous(self, ctx: Context[Any]) -> AsyncIterator[Resources]:
        await asyncio.sleep(0)
        with self.sync(ctx) as found:
            yield found

    def of(self, bench: Workbench) -> None:
        """Be the provider of a workbench."""
        provide = self.asynchronous if bench.flavor.is_async else self.sync
        bench.jobs.registry = Registry(Additions(provide))


@pytest.fixture
def opened(bench: Workbench) -> Opened:
    opened = Opened()
    opened.of(bench)
    return opened


def handler(bench: Workbench, type: str, body: Callable[..., Any], **options: Any) -> JobType[Any]:
    """Register ``body(ctx, number)``."""

    def function(ctx: Context[Session], arg: Any = None, *, number: int) -> Any:
        return body(ctx, number)

    async def coroutine(ctx: Context[Any], arg: Any = None, *, number: int) -> Any:
        return await greenlet_spawn(body, ctx, number)

    chosen: Any = coroutine if bench.flavor.is_async else function
    register: Any = bench.jobs.handler(type, **options)
    made: JobType[Any] = register(chosen)
    return made


def write(bench: Workbench, ctx: Context[Any], number: int) -> None:
    session = getattr(ctx.session, "sync_session", ctx.session)
    session.add(bench.Note(job_id=ctx.job.id, text=f"with {number}"))


@pytest.mark.core
@one_of_each
def test_each_attempt_has_its_own_which_are_closed(bench: Workbench, opened: Opened) -> None:
    """On success before the commit, on failure with the error."""

    def body(ctx: Context[Any], number: int) -> Any:
        write(bench, ctx, number)
        if ctx.job.type == "fails":
            raise ValueError("no")
        return Complete()

    fine = bench.enqueue(handler(bench, "fine", body))
    fails = bench.enqueue(handler(bench, "fails", body, retry=SLOW))
    bench.run(queues={"default": 1})

    assert opened.opened == 2
    assert opened.closed == [None, "ValueError"]
    assert bench.notes(fine) == ["with 1"]
    assert bench.job(fails).last_error.startswith("ValueError: no")


@one_of_each
def test_a_job_taken_from_the_worker_closes_them(bench: Workbench, opened: Opened) -> None:
    gate = Gate(bench)
    job_id = bench.enqueue(handler(bench, "t", lambda ctx, number: gate.hold()))

    def steal() -> None:
        gate.wait()
        bench.steal(job_id)
        gate.open()

    bench.run(during=steal, until=lambda: opened.closed)

    assert opened.closed == [None]
    assert bench.job(job_id).claimed_by == 4711


@only_asyncpg
def test_a_timeout_closes_them(bench: Workbench, opened: Opened) -> None:
    @bench.jobs.handler("t", retry=SLOW, timeout=0.1)
    async def endless(ctx: Context[Any], *, number: int) -> None:
        await asyncio.Event().wait()

    job_id = bench.enqueue(endless)  # type: ignore[arg-type]
    bench.run()

    assert opened.closed == ["CancelledError"]
    assert bench.job(job_id).last_error.startswith("TimeoutError")


@one_of_each
def test_a_shutdown_closes_them(bench: Workbench, opened: Opened) -> None:
    """A coroutine's when it is cancelled; a function's when it returns: no thread can be ended."""
    reached, go = threading.Event(), threading.Event()

    @bench.jobs.handler("t", retry=SLOW)
    async def coroutine(ctx: Context[Any], *, number: int) -> None:
        reached.set()
        await asyncio.Event().wait()

    def body(ctx: Context[Any], number: int) -> None:
        reached.set()
        go.wait(60)

    if not bench.flavor.is_async:
        bench.jobs.registry._by_type.clear()
        job_id = bench.enqueue(handler(bench, "t", body))
    else:
        job_id = bench.enqueue(coroutine)  # type: ignore[arg-type]
    bench.run(until=reached.is_set, shutdown_timeout=0.1)
    go.set()

    wait_until(lambda: opened.closed, what="the resources' end")
    assert opened.closed == ["CancelledError" if bench.flavor.is_async else None]
    assert bench.job(job_id).attempt == 0


@one_of_each
@pytest.mark.parametrize("where", ["in", "out"])
def test_a_provider_that_fails_fails_the_attempt(
    bench: Workbench, opened: Opened, where: str
) -> None:
    """On the way out it is before the commit, so what was written is undone."""
    opened.trouble[where] = LookupError("no such thing")
    job_id = bench.enqueue(
        handler(bench, "t", lambda ctx, number: write(bench, ctx, number), retry=SLOW)
    )
    bench.run()

    assert bench.job(job_id).last_error.startswith("LookupError: no such thing")
    assert bench.notes(job_id) == []


@only_asyncpg
def test_opening_them_counts_for_the_timeout(bench: Workbench) -> None:
    @asynccontextmanager
    async def endless(ctx: Context[Any]) -> AsyncIterator[Resources]:
        await asyncio.Event().wait()
        yield {"number": 1}

    bench.jobs.registry = Registry(Additions(endless))

    @bench.jobs.handler("t", retry=SLOW, timeout=0.1)
    async def never(ctx: Context[Any], *, number: int) -> None:
        raise AssertionError("not reached")

    job_id = bench.enqueue(never)  # type: ignore[arg-type]
    bench.run()

    assert bench.job(job_id).last_error.startswith("TimeoutError")


@pytest.mark.core
@one_of_each
def test_work_one_has_middleware_and_resources_too(bench: Workbench, opened: Opened) -> None:
    """Of a registered handler, and of one that is given."""
    seen: list[Any] = []

    def around(call: Any, ctx: Context[Any]) -> Any:
        seen.append(ctx.state)
        return call()

    async def async_around(call: Any, ctx: Context[Any]) -> Any:
        seen.append(ctx.state)
        return await call()

    bench.jobs.middleware(around, async_around)
    registered = handler(bench, "t", lambda ctx, number: seen.append(number))
    for _ in range(2):
        bench.enqueue(registered)

    def given(ctx: Context[Any], *, number: int) -> None:
        seen.append(number)

    async def async_given(ctx: Context[Any], *, number: int) -> None:
        seen.append(number)

    if not bench.flavor.is_async:
        engine = create_engine(bench.url)
        for one in (None, given):
            bench.jobs.work_one(engine, "default", one, state="the state")
        engine.dispose()
    else:
        asyncio.run(work_async(bench, async_given))

    assert seen == ["the state", 1, "the state", 2]
    assert opened.closed == [None, None]
    assert bench.none_left()


async def work_async(bench: Workbench, given: Any) -> None:
    from sqlalchemy.ext.asyncio import create_async_engine

    from support.databases import with_driver

    engine = create_async_engine(with_driver(bench.url, bench.flavor.driver))
    for one in (None, given):
        await bench.jobs.work_one(engine, "default", one, state="the state")
    await engine.dispose()
