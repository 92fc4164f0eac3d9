"""Mistakes that people make in their first hour, and what they are told to write instead."""

from __future__ import annotations

import asyncio
import gc
import inspect
import re
import sqlite3
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import MetaData, column, create_engine, select, text, true
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import (
    AsyncWorker,
    BGJob,
    JobRef,
    Observer,
    Retry,
    Worker,
    enqueue,
    enqueue_from,
    enqueue_many,
    on_exception,
    steps,
)
from sqlalchemy_bgjob._drafts.options import EnqueueOptions
from sqlalchemy_bgjob._handlers.options import HandlerKeywords

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

URL = "postgresql+psycopg://nobody@nowhere.invalid/none"
jobs: BGJob[Any, Any] = BGJob(MetaData())
driver = sqlite3.connect("")
driver.close()


@jobs.handler("send", queue="mail")
def send(ctx: Any, arg: Any) -> None: ...


def plain(ctx: Any) -> None: ...


# ---- handlers ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("register", "words"),
    [
        (lambda: jobs.handler(plain), "write @jobs.handler('plain')"),  # type: ignore[arg-type]
        (jobs.handler, "write for example @jobs.handler('send_receipt')"),
        (lambda: jobs.handler(queue="mail"), "write for example @jobs.handler('send_receipt')"),
        (lambda: jobs.handler(send), "write @jobs.handler('send')"),  # type: ignore[arg-type]
        (lambda: jobs.default_handler(plain), "write @jobs.default_handler()"),  # type: ignore[arg-type]
    ],
)
def test_a_decorator_without_its_name_says_what_to_write(
    register: Callable[[], Any], words: str
) -> None:
    with pytest.raises(TypeError) as caught:
        register()
    assert words in str(caught.value)


# ---- queues --------------------------------------------------------------------------------------


def of_threads(queues: Any) -> Any:
    return Worker(jobs, create_engine(URL, pool_size=12), queues=queues)


def of_asyncio(queues: Any) -> Any:
    sync_engine = create_engine(URL, pool_size=12)
    engine = create_async_engine(URL, pool_size=12)
    return AsyncWorker(jobs, engine, sync_engine=sync_engine, queues=queues)


@pytest.mark.parametrize("worker", [of_threads, of_asyncio])
def test_names_of_queues_alone_get_ten_slots_each(worker: Callable[[Any], Any]) -> None:
    """As ``--queue mail`` does on the command line."""
    assert worker(["mail"]).queues == {"mail": 10}
    assert worker({"mail": 4}).queues == {"mail": 4}


@pytest.mark.parametrize("worker", [of_threads, of_asyncio])
@pytest.mark.parametrize(
    ("queues", "words"),
    [
        ("mail", "write queues={'mail': 10}"),
        (7, "such as {'mail': 10}"),
        ([("mail", 10)], "such as {'mail': 10}"),
        ([], "name at least one"),
        (["mail", "mail"], "names a queue twice"),
        ({"mail": "10"}, "write queues={'mail': 10}"),
    ],
)
def test_other_queues_say_what_to_write(
    worker: Callable[[Any], Any], queues: Any, words: str
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        worker(queues)
    assert words in str(caught.value)


# ---- options -------------------------------------------------------------------------------------

WITH_PRIO: dict[str, Callable[[Any], Any]] = {
    "job": lambda _: send.job(1, prio=5),  # type: ignore[call-arg]
    "enqueue": lambda target: enqueue(target, send, 1, prio=5),  # type: ignore[call-overload]
    "enqueue_many": lambda target: enqueue_many(target, send, [1], prio=5),  # type: ignore[call-overload]
    "enqueue_from": lambda target: enqueue_from(target, send, select(column("n")), prio=5),  # type: ignore[call-overload]
    "BGJob.enqueue": lambda target: jobs.enqueue(target, "send", 1, prio=5),  # type: ignore[call-overload]
    "BGJob.handler": lambda _: jobs.handler("urgent", prio=5),  # type: ignore[call-arg]
    "BGJob.default_handler": lambda _: jobs.default_handler(prio=5),  # type: ignore[call-arg]
}


@pytest.mark.parametrize("name", WITH_PRIO)
def test_an_unknown_option_is_named_at_once(name: str) -> None:
    """Also where the call would only make a coroutine, or where no job is given."""
    with pytest.raises(TypeError, match=r"^[\w.]+\(\) got an unexpected keyword argument 'prio'$"):
        WITH_PRIO[name](AsyncSession())


@pytest.mark.parametrize(
    ("call", "options"), [(enqueue, EnqueueOptions), (BGJob.handler, HandlerKeywords)]
)
def test_help_tells_what_each_option_means(call: Any, options: Any) -> None:
    """The signature names none of them."""
    text = inspect.getdoc(call) or ""
    assert set(re.findall(r"^    (\w+): ", text, re.MULTILINE)) >= options.__optional_keys__


# ---- await ---------------------------------------------------------------------------------------

CALLS: dict[str, Callable[[Any], Any]] = {
    "enqueue": lambda target: enqueue(target, send, 1),
    "enqueue_many": lambda target: enqueue_many(target, send, [1, 2]),
    "enqueue_from": lambda target: enqueue_from(target, send, select(column("n"))),
    "BGJob.enqueue": lambda target: jobs.enqueue(target, "send", 1),
    "BGJob.cancel": lambda target: jobs.cancel(target, "7"),
    "BGJob.cancel_where": lambda target: jobs.cancel_where(target, true()),
    "BGJob.redrive": lambda target: jobs.redrive(target, true()),
    "BGJob.prune": lambda target: jobs.prune(target, timedelta(days=1)),
    "BGJob.dead_summary": jobs.dead_summary,
    "BGJob.work_one": lambda target: jobs.work_one(target, "mail"),
}


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_forgotten_await_names_the_call(driver: str) -> None:
    """Of a session, of a connection, and of an engine."""
    engine: Any = create_async_engine(URL.replace("psycopg", driver))

    def forget() -> None:
        for call in CALLS.values():
            for target in (AsyncSession(engine), engine.connect(), engine):
                call(target)
        gc.collect()

    with pytest.warns(RuntimeWarning) as told:
        forget()

    asyncio.run(engine.dispose())
    words = [str(warning.message).splitlines()[0] for warning in told]
    assert sorted(words) == sorted([f"coroutine '{name}' was never awaited" for name in CALLS] * 3)


# ---- with ----------------------------------------------------------------------------------------


def test_an_async_worker_is_not_entered_by_with() -> None:
    worker: Any = of_asyncio({"mail": 1})
    with pytest.raises(TypeError, match="is entered by `async with`"), worker:
        pass


def test_a_worker_is_not_entered_by_async_with() -> None:
    worker: Any = of_threads({"mail": 1})

    async def enter() -> None:
        async with worker:
            pass

    with pytest.raises(TypeError, match="is entered by `with`"):
        asyncio.run(enter())


# ---- selects -------------------------------------------------------------------------------------


@pytest.mark.parametrize("beside", [[], [column("order_id")]])
def test_a_text_in_a_select_has_no_name(beside: list[Any]) -> None:
    """Beside a column that has one it would be left out of the arg without a word."""
    with pytest.raises(
        ValueError, match=r"text\('n'\) in the select has no name.*column\('name'\)"
    ):
        enqueue_from(Session(create_engine(URL)), send, select(text("n"), *beside))


@pytest.mark.parametrize("given", [text("SELECT 1"), "SELECT 1", None])
def test_what_is_no_select_says_what_to_write(given: Any) -> None:
    with pytest.raises(TypeError, match=r"write for example select\("):
        enqueue_from(Session(create_engine(URL)), send, given)


# ---- what else is told ---------------------------------------------------------------------------


class Shop:
    def handle(self, ctx: Any, arg: Any) -> None: ...


def sync_engine() -> Any:
    return create_engine(URL, pool_size=12)


def session() -> Session:
    return Session(create_engine(URL))


def get_session() -> Iterator[Session]:
    yield session()


MESSAGES: dict[str, tuple[Callable[[], Any], str]] = {
    "type twice": (lambda: jobs.handler("send")(plain), "give one of the two another name"),
    "unbound method": (lambda: jobs.handler("m")(Shop.handle), "bound to its object"),  # type: ignore[arg-type]
    "no function": (lambda: jobs.handler("n")("send"), "above a function f(ctx)"),  # type: ignore[call-overload]
    "retry=3": (lambda: jobs.handler("r", retry=3)(plain), "write constant(10)"),  # type: ignore[arg-type]
    "a plain function": (lambda: enqueue(session(), plain, 1), "decorate it with @jobs.handler"),  # type: ignore[call-overload]
    "a type's name": (lambda: enqueue(session(), "send", 1), "jobs.enqueue(target, 'send', arg)"),  # type: ignore[call-overload]
    "no target": (lambda: enqueue(send, send), "give one of these to enqueue first"),  # type: ignore[call-overload]
    "a class": (lambda: enqueue(Session, send, 1), "not to the class Session"),  # type: ignore[call-overload]
    "a driver's": (
        lambda: enqueue(driver, send, 1),
        "let SQLAlchemy open",
    ),  # type: ignore[call-overload]
    "an id that is no str": (lambda: enqueue(session(), send, 1, id=7), "write id=str(...)"),  # type: ignore[call-overload]
    "a reference for an id": (lambda: jobs.cancel(session(), JobRef("a", True)), "pass its .id"),  # type: ignore[call-overload]
    "steps of a list": (lambda: steps([1, 10]), "write steps(*[1, 10])"),  # type: ignore[arg-type]
    "steps of a text": (lambda: steps("1 s"), "seconds must be a number, not str"),  # type: ignore[arg-type]
    "rules of a class": (lambda: on_exception(OSError), "on_exception({ConnectionError:"),  # type: ignore[arg-type]
    "one arg": (lambda: enqueue_many(session(), send, 5), "needs args, a list"),  # type: ignore[call-overload]
    "many of a function": (lambda: enqueue_many(session(), plain, [5]), "is not a registered"),  # type: ignore[call-overload]
    "jobs.enqueue": (lambda: jobs.enqueue(session(), send, 1), "enqueue(target, send, arg)"),  # type: ignore[call-overload]
    "Retry of a text": (lambda: Retry("down"), "write Retry(error=...)"),  # type: ignore[arg-type]
    "async engine": (lambda: Worker(jobs, create_async_engine(URL)), "use AsyncWorker"),  # type: ignore[arg-type]
    "sync engine": (lambda: AsyncWorker(jobs, sync_engine()), "use Worker for an Engine"),
    "two async engines": (
        lambda: AsyncWorker(jobs, create_async_engine(URL), sync_engine=create_async_engine(URL)),  # type: ignore[arg-type]
        "make it by create_engine",
    ),
    "engine first": (lambda: Worker(sync_engine(), jobs), "takes the BGJob first"),  # type: ignore[arg-type]
    "concurrency=": (lambda: Worker(jobs, sync_engine(), concurrency=3), "queues={'mail': 10}"),  # type: ignore[call-arg]
    "a dict": (lambda: Worker(jobs, sync_engine(), settings={}), "write WorkerSettings(...)"),  # type: ignore[arg-type]
    "a session": (
        lambda: Worker(jobs, sync_engine(), session_factory=session()),  # type: ignore[arg-type]
        "such as sessionmaker(engine)",
    ),
    "a dependency": (
        lambda: Worker(jobs, sync_engine(), session_factory=get_session),
        "get_session() yields it",
    ),
    "an observer": (
        lambda: Worker(jobs, sync_engine(), observers=Observer()),  # type: ignore[arg-type]
        "write observers=[MyObserver()]",
    ),
    "a class of observers": (
        lambda: AsyncWorker(jobs, create_async_engine(URL), observers=[Observer]),  # type: ignore[list-item]
        "write observers=[MyObserver()]",
    ),
}


@pytest.mark.parametrize("name", MESSAGES)
def test_a_mistake_is_answered_with_what_to_write(name: str) -> None:
    call, words = MESSAGES[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert words in str(caught.value)
