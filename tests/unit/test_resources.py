"""Resources: which names a provider gives, who takes them, and when they are closed."""

from __future__ import annotations

import asyncio
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

import pytest
from sqlalchemy import MetaData

from sqlalchemy_bgjob import BGJob, Context, Retry
from sqlalchemy_bgjob.testing import JobKit

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from a_module_that_is_not_there import Unknown  # type: ignore[import-not-found]


class Resources(TypedDict):
    mailer: str
    client: Unknown


class Some(TypedDict, total=False):
    mailer: str


said: list[Any] = []


@contextmanager
def provide(ctx: Unknown) -> Iterator[Resources]:
    said.append(("open", ctx.job.type, ctx.wanted))
    try:
        yield {"mailer": "the mailer", "client": "the client"}
    finally:
        said.append("closed")


@asynccontextmanager
async def async_provide(ctx: Unknown) -> AsyncIterator[Resources]:
    await asyncio.sleep(0)
    with provide(ctx) as found:
        yield found
    await asyncio.sleep(0)


def plain(ctx: Context) -> AbstractContextManager[Resources]:
    return provide(ctx)


class AnObject:
    @contextmanager
    def __call__(self, ctx: Context) -> Iterator[Resources]:
        with provide(ctx) as found:
            yield found


def made(provide: Any) -> BGJob[Any, Any]:
    said.clear()
    return BGJob(MetaData(), provide=provide)


def perform(jobs: BGJob[Any, Any], handler: Any, *args: Any) -> Any:
    result = JobKit(jobs).perform(handler, *args)
    return asyncio.run(result) if handler.is_coroutine else result


@pytest.mark.core
@pytest.mark.parametrize(
    "provider",
    [provide, plain, AnObject(), partial(provide), async_provide],
    ids=["generator", "function", "object", "partial", "asynchronous"],
)
def test_a_handler_gets_what_it_takes_by_keyword(provider: Any) -> None:
    """The names for type checkers in the provider's annotations need not exist."""
    jobs = made(provider)

    async def coroutine(ctx: Any, arg: int, *, mailer: str, other: int = 3) -> Retry:
        said.append((arg, mailer, other))
        return Retry(60)

    def function(ctx: Any, *, client: Unknown, mailer: str) -> None:
        said.append((client, mailer))

    wants = jobs.handler("c")(coroutine)
    assert isinstance(perform(jobs, wants, 7), Retry)
    assert said == [("open", "c", ("mailer",)), (7, "the mailer", 3), "closed"]

    if provider is not async_provide:
        said.clear()
        perform(jobs, jobs.handler("f")(function))
        assert said[1:] == [("the client", "the mailer"), "closed"]


def test_a_handler_that_takes_none_pays_for_none() -> None:
    jobs = made(provide)
    handler = jobs.handler("t")(lambda ctx, *, other=1: said.append(other))

    assert handler.call is handler.function
    perform(jobs, handler)
    assert said == [1]


@pytest.mark.parametrize("is_async", [False, True])
def test_an_error_closes_them_and_is_the_handlers(is_async: bool) -> None:
    """Even if the provider swallows it, which is not for the provider to decide."""

    @contextmanager
    def swallows(ctx: Context) -> Iterator[Some]:
        try:
            yield {"mailer": "m"}
        except LookupError as error:
            said.append(f"told of {error}")

    jobs = made(swallows)

    def function(ctx: Any, *, mailer: str) -> None:
        raise LookupError("no")

    async def coroutine(ctx: Any, *, mailer: str) -> None:
        raise LookupError("no")

    with pytest.raises(LookupError):
        perform(jobs, jobs.handler("t")(coroutine if is_async else function))
    assert said == ["told of no"]


def test_what_is_not_there_this_time_has_its_default() -> None:
    """A key that a TypedDict need not have."""

    @contextmanager
    def nothing(ctx: Context) -> Iterator[Some]:
        yield {}

    jobs = made(nothing)
    perform(jobs, jobs.handler("t")(lambda ctx, *, mailer="default": said.append(mailer)))
    assert said == ["default"]
    with pytest.raises(TypeError, match="'mailer'"):
        perform(jobs, jobs.handler("u")(lambda ctx, *, mailer: None))


def test_what_is_yielded_is_a_mapping() -> None:
    @contextmanager
    def none(ctx: Context) -> Iterator[Some]:
        yield None  # type: ignore[misc]

    jobs = made(none)
    with pytest.raises(TypeError, match="a NoneType, and not a mapping; yield a dict"):
        perform(jobs, jobs.handler("t")(lambda ctx, *, mailer: None))


@pytest.mark.core
def test_a_name_that_it_does_not_give_is_refused_at_once() -> None:
    """When the handler is registered, and so before any worker starts."""
    jobs = made(provide)

    with pytest.raises(
        TypeError, match=r"'mailr', and provide= gives client, mailer; did you mean"
    ):
        jobs.handler("t")(lambda ctx, *, mailr: None)
    with pytest.raises(TypeError, match="add it to the TypedDict"):
        jobs.handler("t")(lambda ctx, arg, *, mailer, zzz: None)
    with pytest.raises(TypeError, match=r"provide=\) fills keyword-only parameters"):
        made(None).handler("t")(lambda ctx, *, mailer: None)
    assert not list(jobs.registry)


def test_a_function_can_not_have_asynchronous_ones() -> None:
    jobs = made(async_provide)
    with pytest.raises(TypeError, match="make the handler a coroutine, or the provider one of"):
        jobs.handler("t")(lambda ctx, *, mailer: None)
    jobs.handler("u")(lambda ctx, *, other=1: None)


def untyped(ctx): ...  # type: ignore[no-untyped-def]


def of_a_dict(ctx: Any) -> AbstractContextManager[dict[str, Any]]: ...  # type: ignore[empty-body]


def of_unknown(ctx: Any) -> AbstractContextManager[Unknown]: ...


@pytest.mark.parametrize(
    ("provider", "words"),
    [
        (untyped, "untyped does not say what it yields; write @contextmanager"),
        (of_a_dict, "of_a_dict is not annotated with a TypedDict; write"),
        (of_unknown, "'Unknown' is not defined"),
        (nullcontext({}), "not a nullcontext"),
        (3, "not a int"),
        (Resources, "not the class Resources"),
        (provide.__wrapped__, "not the function provide"),  # type: ignore[attr-defined]
    ],
)
def test_a_provider_says_what_it_yields(provider: Any, words: str) -> None:
    with pytest.raises(TypeError) as caught:
        made(provider)
    assert words in str(caught.value)
