"""The context that a worker enters around each job: around its run and its commit."""

from __future__ import annotations

import asyncio
import re
import sys
import threading
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from sqlalchemy_bgjob import Worker, constant
from sqlalchemy_bgjob._exits import CommandError
from sqlalchemy_bgjob._process import WorkerOptions, make_runner
from support.running import FLAVORS, Bench
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context

SLOW = constant(3600.0)
PAGE = Path(__file__).parent.parent / "docs" / "flask.md"
ASYNCIO = [flavor for flavor in FLAVORS if flavor.is_async]
current: ContextVar[str] = ContextVar("current", default="none")


class Contexts:
    """Makes contexts, and writes down what happens in which order."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.seen: list[Any] = []
        self.job_id = ""

    def where(self) -> int:
        return threading.get_ident()

    def settled(self) -> bool:
        return self.bench.job(self.job_id) is None

    @contextmanager
    def sync(self) -> Iterator[None]:
        self.seen.append(("in", self.where()))
        token = current.set("inside")
        try:
            yield
        except ValueError as error:
            self.seen.append(f"told of {error}")
            raise
        finally:
            current.reset(token)
            self.seen.append(("out", self.where(), self.settled()))

    @asynccontextmanager
    async def asynchronous(self) -> AsyncIterator[None]:
        await asyncio.sleep(0)
        with self.sync():
            yield
        await asyncio.sleep(0)


def kinds(test: Callable[..., None]) -> Any:
    return pytest.mark.parametrize(
        ("bench", "kind"),
        [(flavor, "sync") for flavor in FLAVORS] + [(flavor, "asynchronous") for flavor in ASYNCIO],
        ids=str,
        indirect=["bench"],
    )(test)


@pytest.mark.core
@kinds
def test_it_is_around_run_and_commit(bench: Bench, kind: str) -> None:
    """In the thread or task of the job, with what it has set, until the job was settled."""
    contexts = Contexts(bench)

    def body(s: Session, ctx: Context[Any]) -> None:
        contexts.seen.append(("run", contexts.where(), current.get()))
        bench.note(s, ctx)

    contexts.job_id = bench.enqueue(bench.handler("t", body))
    ran = bench.run(around=getattr(contexts, kind))

    thread = contexts.seen[0][1]
    assert contexts.seen == [("in", thread), ("run", thread, "inside"), ("out", thread, True)]
    assert ran.of(contexts.job_id) == ["started", "completed"]
    assert bench.notes(contexts.job_id) == ["written"]


@kinds
def test_it_is_left_when_the_handler_fails(bench: Bench, kind: str) -> None:
    """It is told of the error, and what it makes of it changes nothing."""
    contexts = Contexts(bench)

    def body(ctx: Context[Any]) -> None:
        raise ValueError("no")

    handler = bench.handler("t", body, uses_session=False, retry=SLOW)
    contexts.job_id = bench.enqueue(handler)
    ran = bench.run(around=getattr(contexts, kind))

    assert [entry[0] if isinstance(entry, tuple) else entry for entry in contexts.seen] == [
        "in",
        "told of no",
        "out",
    ]
    assert ran.of(contexts.job_id) == ["started", "will_be_retried"]
    assert "ValueError: no" in bench.job(contexts.job_id).last_error


def test_one_that_fails_on_the_way_in_fails_the_attempt(bench: Bench) -> None:
    calls: list[str] = []

    @contextmanager
    def closed() -> Iterator[None]:
        raise LookupError("no context")
        yield

    job_id = bench.enqueue(
        bench.handler("t", lambda ctx: calls.append("ran"), uses_session=False, retry=SLOW)
    )
    ran = bench.run(around=closed)

    assert calls == []
    assert ran.of(job_id) == ["started", "will_be_retried"]
    assert "LookupError: no context" in bench.job(job_id).last_error
    assert ran.last(job_id).rest[1] > 3500, "the handler's own policy holds"


def test_one_that_fails_on_the_way_out_is_logged(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    @contextmanager
    def sticky() -> Iterator[None]:
        yield
        raise LookupError("can't close")

    job_id = bench.enqueue(bench.handler("t", bench.note))
    ran = bench.run(around=sticky)

    assert ran.of(job_id) == ["started", "completed"]
    assert bench.notes(job_id) == ["written"]
    assert f"job {job_id}: the context around it failed when it was left" in caplog.text


@pytest.mark.parametrize("bench", ASYNCIO, ids=str, indirect=True)
def test_a_stop_that_cancels_a_coroutine_leaves_it(bench: Bench) -> None:
    contexts, reached = Contexts(bench), threading.Event()

    @bench.jobs.handler("t", retry=SLOW)
    async def handler(ctx: Context[Any]) -> None:
        reached.set()
        await asyncio.Event().wait()

    contexts.job_id = bench.enqueue(handler)
    bench.run(around=contexts.asynchronous, until=reached.is_set, shutdown_timeout=0.1)

    assert contexts.seen[-1][0] == "out"
    assert bench.job(contexts.job_id).attempt == 0


@pytest.mark.parametrize("bench", ASYNCIO, ids=str, indirect=True)
def test_the_timeout_of_a_coroutine_counts_its_entering_too(bench: Bench) -> None:
    @asynccontextmanager
    async def endless() -> AsyncIterator[None]:
        await asyncio.Event().wait()
        yield

    @bench.jobs.handler("t", retry=SLOW, timeout=0.2)
    async def handler(ctx: Context[Any]) -> None:
        raise AssertionError("not reached")

    job_id = bench.enqueue(handler)
    bench.run(around=endless)

    assert bench.job(job_id).last_error.startswith("TimeoutError")


def test_what_a_function_can_not_enter_is_named(bench_url: str) -> None:
    bench = Bench(FLAVORS[0], bench_url)
    bench.reset()
    job_id = bench.enqueue(bench.handler("t", bench.note, retry=SLOW))
    bench.run(around=Contexts(bench).asynchronous)

    assert "only coroutines can enter an asynchronous one" in bench.job(job_id).last_error
    bench.close()


def test_what_can_not_be_called_is_refused_at_once(bench_url: str) -> None:
    bench = Bench(FLAVORS[0], bench_url)
    bench.handler("t", bench.note)
    engine = create_engine(bench_url)

    with pytest.raises(TypeError, match=r"such as app\.app_context, not a _GeneratorContext"):
        Worker(bench.jobs, engine, around=Contexts(bench).sync())

    engine.dispose()
    bench.close()


@pytest.mark.parametrize(
    ("name", "words"),
    [("no_such", "has no 'no_such'"), ("POISON_ATTEMPTS", "around= takes a callable")],
)
def test_a_context_that_the_command_line_can_not_use(
    database_url: str, name: str, words: str
) -> None:
    options = WorkerOptions(
        app="support.cli_app:functions",
        database_url=database_url,
        around=f"support.cli_app:{name}",
    )

    with pytest.raises(CommandError) as caught:
        make_runner(options)

    assert words in caught.value.problem
    assert caught.value.exit_code == 2


@pytest.mark.core
def test_the_page_for_flask_is_what_happens(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its Python is run in order; its command has flags that exist."""
    from sqlalchemy_bgjob.cli import cli

    page = PAGE.read_text()
    module = ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", module)  # where SQLAlchemy resolves annotations
    program = vars(module)
    program["DATABASE_URL"] = database_url

    def sent() -> Any:
        with program["app"].app_context():
            order = program["db"].session.get(program["Order"], 1)
            return order.sent_by

    program["wait_until_sent"] = lambda: wait_until(sent, 60)
    blocks = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    for block in blocks:
        exec(compile(block, "docs/flask.md", "exec"), program)
    command = re.search(r"^\$ sqlalchemy-bgjob worker (.*)$", page, re.MULTILINE)
    known = {option for parameter in cli.commands["worker"].params for option in parameter.opts}

    assert len(blocks) == 3
    assert sent() == "shop"
    with program["app"].app_context():
        assert program["db"].session.query(program["jobs"].Job).count() == 0
        engine = program["db"].engine
    for one in (engine, program["engine"]):  # not before its session has given it back
        one.dispose()
    assert command is not None
    assert set(re.findall(r"--[a-z-]+", command[1])) <= known
