"""Middleware: in which order it is around a handler, and what it can and can't change."""

from __future__ import annotations

import asyncio
import gc
import weakref
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import BGJob, Complete, MoveToDlq, Retry
from sqlalchemy_bgjob._handlers.registry import JobType
from sqlalchemy_bgjob._handlers.served import UnfitHandlers, refuse_lacking_middleware
from sqlalchemy_bgjob.testing import JobKit
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Callable

LATER, NOW = Retry(60), Complete()
said: list[str] = []
color: ContextVar[str] = ContextVar("color")


@pytest.fixture
def jobs() -> BGJob[Any, Any]:
    said.clear()
    return new_queue()


@pytest.fixture(params=["function", "coroutine"])
def is_async(request: pytest.FixtureRequest) -> bool:
    return bool(request.param == "coroutine")


def run(jobs: BGJob[Any, Any], body: Callable[[], Any], *, is_async: bool) -> Any:
    """Run a handler within the middleware that is registered: what comes out."""

    def function(ctx: Any) -> Any:
        return body()

    async def coroutine(ctx: Any) -> Any:
        await asyncio.sleep(0)
        return body()

    handler: Any = jobs.handler("t")(coroutine if is_async else function)
    result = JobKit(jobs).perform(handler)
    return asyncio.run(result) if is_async else result


def fails() -> Any:
    raise LookupError("the handler's")


def returns_it(call: Any, ctx: Any) -> Any:
    return call()


async def async_returns_it(call: Any, ctx: Any) -> Any:
    return await call()


def forgets_it(call: Any, ctx: Any) -> None:
    call()


async def async_forgets_it(call: Any, ctx: Any) -> None:
    await call()


def swallows(call: Any, ctx: Any) -> None:
    try:
        call()
    except Exception as error:
        said.append(str(error))


async def async_swallows(call: Any, ctx: Any) -> None:
    try:
        await call()
    except Exception as error:
        said.append(str(error))


def decides(call: Any, ctx: Any) -> Any:
    try:
        call()
    except LookupError:
        return NOW
    return LATER


async def async_decides(call: Any, ctx: Any) -> Any:
    try:
        await call()
    except LookupError:
        return NOW
    return LATER


def calls_twice(call: Any, ctx: Any) -> Any:
    call()
    return call()


async def async_calls_twice(call: Any, ctx: Any) -> Any:
    await call()
    return await call()


def calls_nothing(call: Any, ctx: Any) -> None: ...


async def async_calls_nothing(call: Any, ctx: Any) -> None: ...


def decides_without(call: Any, ctx: Any) -> Any:
    return NOW


async def async_decides_without(call: Any, ctx: Any) -> Any:
    return NOW


def raises(call: Any, ctx: Any) -> Any:
    call()
    raise MoveToDlq("not allowed")


async def async_raises(call: Any, ctx: Any) -> Any:
    await call()
    raise MoveToDlq("not allowed")


@pytest.mark.parametrize(
    ("pair", "returned", "result"),
    [
        ((returns_it, async_returns_it), LATER, LATER),
        ((returns_it, async_returns_it), None, None),
        ((forgets_it, async_forgets_it), LATER, LATER),
        ((forgets_it, async_forgets_it), None, None),
        ((decides, async_decides), None, LATER),
        ((decides_without, async_decides_without), LATER, NOW),
    ],
)
def test_what_the_handler_returned_is_not_lost(
    jobs: BGJob[Any, Any], is_async: bool, pair: Any, returned: Any, result: Any
) -> None:
    """Only an outcome that the middleware itself returns takes its place."""
    jobs.middleware(*pair)

    assert run(jobs, lambda: returned, is_async=is_async) is result


def test_an_error_that_is_swallowed_stands(jobs: BGJob[Any, Any], is_async: bool) -> None:
    """Middleware that only logs must not complete jobs that have failed."""
    jobs.middleware(swallows, async_swallows)

    with pytest.raises(LookupError, match="the handler's"):
        run(jobs, fails, is_async=is_async)
    assert said == ["the handler's"]


def test_an_outcome_takes_the_place_of_an_error(jobs: BGJob[Any, Any], is_async: bool) -> None:
    jobs.middleware(decides, async_decides)
    assert run(jobs, fails, is_async=is_async) is NOW


def test_an_outcome_that_it_raises_is_the_jobs(jobs: BGJob[Any, Any], is_async: bool) -> None:
    jobs.middleware(raises, async_raises)
    with pytest.raises(MoveToDlq, match="not allowed"):
        run(jobs, lambda: None, is_async=is_async)


@pytest.mark.parametrize(
    ("pair", "words"),
    [
        ((calls_twice, async_calls_twice), "called the handler twice"),
        ((calls_nothing, async_calls_nothing), "did not call the handler; write return call()"),
    ],
)
def test_a_handler_is_called_once(
    jobs: BGJob[Any, Any], is_async: bool, pair: Any, words: str
) -> None:
    """A job that no handler has seen is not complete, and its writes are made once."""
    jobs.middleware(*pair)
    with pytest.raises(RuntimeError, match=words):
        run(jobs, lambda: said.append("ran"), is_async=is_async)
    assert len(said) <= 1


def test_the_first_is_the_outermost(jobs: BGJob[Any, Any], is_async: bool) -> None:
    """Also around a handler that was registered before."""

    def named(name: str) -> tuple[Any, Any]:
        def function(call: Any, ctx: Any) -> Any:
            said.append(f"{name} in {ctx.job.type}")
            try:
                return call()
            finally:
                said.append(f"{name} out")

        async def coroutine(call: Any, ctx: Any) -> Any:
            said.append(f"{name} in {ctx.job.type}")
            try:
                return await call()
            finally:
                said.append(f"{name} out")

        return function, coroutine

    jobs.middleware(*named("first"))
    jobs.handler("before")(lambda ctx: said.append("before"))
    jobs.middleware(*named("second"))
    run(jobs, lambda: said.append("run"), is_async=is_async)

    assert said == ["first in t", "second in t", "run", "second out", "first out"]
    said.clear()
    before = jobs.registry.find_type("before")
    assert isinstance(before, JobType)
    JobKit(jobs).perform(before)
    assert said[1:4] == ["second in before", "before", "second out"]


def test_it_costs_nothing_where_there_is_none(jobs: BGJob[Any, Any]) -> None:
    """A job is run by a call of the function itself."""
    handler = jobs.handler("t")(lambda ctx: None)
    assert handler.call is handler.function
    jobs.middleware(async_returns_it, None)
    assert handler.call is handler.function, "around coroutines alone"


def test_it_is_a_decorator_that_leaves_the_function(jobs: BGJob[Any, Any]) -> None:
    assert jobs.middleware(returns_it) is returns_it


def test_an_error_that_passed_is_freed_at_once(jobs: BGJob[Any, Any]) -> None:
    """With the handler's variables, which may be large: without the garbage collector."""

    class Large: ...

    seen: list[weakref.ref[Large]] = []

    def body() -> None:
        large = Large()
        seen.append(weakref.ref(large))
        raise LookupError

    jobs.middleware(swallows)
    gc.disable()
    try:
        with pytest.raises(LookupError) as caught:
            run(jobs, body, is_async=False)
        del caught
        assert seen[0]() is None
    finally:
        gc.enable()


def test_what_is_carried_ends_with_the_run(jobs: BGJob[Any, Any]) -> None:
    """Where a job runs in the caller's own context, as in a test, and even if it fails."""
    jobs.carry(color=color)

    @jobs.handler("t")
    def handler(ctx: Any) -> None:
        said.append(f"{ctx.job.headers['color']} {color.get()}")
        color.set("of the handler")
        raise LookupError

    token = color.set("red")
    with pytest.raises(LookupError):
        JobKit(jobs).perform(handler)
    assert color.get() == "red"
    color.reset(token)

    assert said == ["red red"]


@pytest.mark.parametrize(
    ("given", "kind", "words"),
    [
        (returns_it, True, "returns_it is a function, which can't go around the coroutines 'c'"),
        (
            async_returns_it,
            False,
            "async_returns_it is a coroutine function, which can't go around the functions 'f'",
        ),
    ],
)
def test_no_handler_goes_without_unless_told(
    jobs: BGJob[Any, Any], given: Any, kind: bool, words: str
) -> None:
    """A worker that can run it does not start; None says that it may go without."""
    jobs.handler("f")(lambda ctx: None)

    @jobs.handler("c")
    async def coroutine(ctx: Any) -> None: ...

    def can_run(handler: JobType[Any]) -> bool:
        return handler.is_coroutine is kind

    jobs.middleware(given)
    with pytest.raises(UnfitHandlers, match=words) as caught:
        refuse_lacking_middleware(jobs.registry, can_run)
    assert f"jobs.middleware({given.__name__}, None)" in str(caught.value)
    refuse_lacking_middleware(jobs.registry, lambda handler: not can_run(handler))
    wrong = jobs.registry.find_type("c" if kind else "f")
    assert wrong is not None
    with pytest.raises(TypeError, match=words):
        JobKit(jobs).perform(wrong)

    other = new_queue()
    other.middleware(given, None)
    refuse_lacking_middleware(other.registry, lambda handler: True)
    assert run(other, lambda: LATER, is_async=kind) is LATER


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ((3,), "f(call, ctx) that returns call()"),
        ((None,), "f(call, ctx) that returns call()"),
        ((returns_it, 3), "f(call, ctx) that returns call()"),
        ((returns_it, decides), "are both functions; give one for functions and one"),
        ((async_returns_it, async_decides), "are both coroutine functions"),
    ],
)
def test_what_is_no_middleware_is_refused(
    jobs: BGJob[Any, Any], given: tuple[Any, ...], words: str
) -> None:
    with pytest.raises(TypeError) as caught:
        jobs.middleware(*given)
    assert words in str(caught.value)
