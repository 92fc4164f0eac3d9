"""The context that a worker enters around each job: around its run and its commit."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import constant
from sqlalchemy_bgjob._process.exits import CommandError
from sqlalchemy_bgjob._process.runners import WorkerOptions, make_runner
from support.running import FLAVORS, Workbench, one_of_each
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context

SLOW = constant(3600.0)
ASYNCIO = [flavor for flavor in FLAVORS if flavor.is_async]
current: ContextVar[str] = ContextVar("current", default="none")


class Contexts:
    """Makes contexts, and writes down what happens in which order."""

    def __init__(self, bench: Workbench) -> None:
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
    first, last = FLAVORS[0], FLAVORS[-1]
    return pytest.mark.parametrize(
        ("bench", "kind"),
        [(first, "sync"), (last, "sync"), (last, "asynchronous")],
        ids=str,
        indirect=["bench"],
    )(test)


@pytest.mark.core
@kinds
def test_it_is_around_run_and_commit(bench: Workbench, kind: str) -> None:
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
def test_it_is_left_when_the_handler_fails(bench: Workbench, kind: str) -> None:
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


@one_of_each
def test_one_that_fails_on_the_way_in_fails_the_attempt(bench: Workbench) -> None:
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
    bench: Workbench, caplog: pytest.LogCaptureFixture
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
def test_a_stop_that_cancels_a_coroutine_leaves_it(bench: Workbench) -> None:
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
def test_the_timeout_of_a_coroutine_counts_its_entering_too(bench: Workbench) -> None:
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


class Order:
    """No context manager; and its likes need arguments."""

    def __init__(self, id: int) -> None:
        self.id = id


class OnlyAsynchronous:
    async def __aenter__(self) -> None: ...

    async def __aexit__(self, *told: object) -> None: ...


@asynccontextmanager
async def asynchronous() -> AsyncIterator[None]:
    yield


def generator() -> Iterator[None]:
    yield


async def asynchronous_generator() -> AsyncIterator[None]:
    yield


async def coroutine() -> None: ...


def fails() -> Any:
    raise LookupError("no such application")


def name_of(around: object) -> str:
    return getattr(around, "__name__", "used once")


FOR_NO_JOB = (Order, generator, asynchronous_generator, coroutine, contextmanager(generator)())
FOR_NO_FUNCTION = (OnlyAsynchronous, asynchronous)


@pytest.mark.parametrize("around", [*FOR_NO_JOB, *FOR_NO_FUNCTION], ids=name_of)
@pytest.mark.parametrize("bench", [FLAVORS[0], FLAVORS[2]], ids=str, indirect=True)
def test_what_could_serve_no_job_is_refused_at_once(bench: Workbench, around: Any) -> None:
    """By both workers, and as the command line's own mistake."""
    calls: list[str] = []
    bench.jobs.handler("function")(lambda ctx: calls.append("ran"))
    if around in FOR_NO_FUNCTION:
        words = r"returns an asynchronous context manager, which the functions .*'function'"
    else:
        words = r"around= takes a callable .*, such as app\.app_context, not "

    with pytest.raises(TypeError, match=words):
        bench.run(around=around)


@pytest.mark.parametrize("around", FOR_NO_FUNCTION, ids=name_of)
@pytest.mark.parametrize("bench", ASYNCIO, ids=str, indirect=True)
def test_an_asynchronous_one_serves_coroutines_alone(bench: Workbench, around: Any) -> None:
    """Functions of queues that are not served here do not count."""
    job_id = bench.enqueue(bench.handler("coroutine", bench.note))
    bench.jobs.handler("function", queue="elsewhere")(lambda ctx: None)

    ran = bench.run(around=around)

    assert ran.of(job_id) == ["started", "completed"]


@pytest.mark.parametrize(
    ("wrong", "words", "uses_session"),
    [
        (fails, "LookupError: no such application", True),
        (Order, "missing 1 required positional argument", False),
        (lambda: None, "gave None, which is no context manager", True),
        (asynchronous_generator, "of type async_generator, which is no", False),
    ],
    ids=["fails", "wants more", "gives None", "gives a generator"],
)
@one_of_each
def test_what_gives_no_context_costs_no_attempt(
    bench: Workbench,
    caplog: pytest.LogCaptureFixture,
    wrong: Any,
    words: str,
    *,
    uses_session: bool,
) -> None:
    """It is nothing of the job's: the queue rests, and goes on once there is one."""
    contexts, mended = Contexts(bench), threading.Event()

    def around() -> Any:
        return contexts.sync() if mended.is_set() else wrong()

    handler = bench.handler(
        "t",
        bench.note if uses_session else lambda ctx: None,
        uses_session=uses_session,
        max_attempts=1,
    )
    ids = [bench.enqueue(handler) for _ in range(20)]
    contexts.job_id = ids[0]

    def mend() -> None:
        wait_until(lambda: any(bench.job(id).last_error for id in ids), what="an error")
        mended.set()

    ran = bench.run(
        around=around,
        during=mend,
        until=lambda: not bench.sql("SELECT FROM bgjob_job"),
        deadline=60.0,
    )

    told = {event.job.last_error for event in ran.events if event.job and event.job.last_error}
    assert all("around= " in error and words in error for error in told)
    assert "sqlalchemy_bgjob/" not in "".join(told), "a frame of the library"
    assert len(told) == 1
    assert all(ran.of(id)[-1] == "completed" for id in ids)
    assert {ran.last(id).job.attempt for id in ids} == {1}  # type: ignore[union-attr]
    assert bench.sql("SELECT FROM bgjob_dead_job") == []
    (refused, *_) = ran.named("worker_error")
    assert refused.subject == "NoContextManager"
    assert caplog.text.count("around= ") == 1, "one line, and no line for each job"


@one_of_each
def test_a_context_that_never_comes_is_not_spun_on(bench: Workbench) -> None:
    """However many jobs are due."""
    calls: list[float] = []

    def never() -> None:
        calls.append(time.monotonic())

    handler = bench.handler("t", lambda ctx: None, uses_session=False, session=False)
    bench.enqueue(handler)
    bench.sql(
        "INSERT INTO bgjob_job (id, queue, type) SELECT 'j' || n, 'default', 't'"
        " FROM generate_series(1, 500) n"
    )
    # Slots and what is claimed ahead, after 0.05, 0.1, 0.2 ... seconds, or the half of that.
    bench.run(around=never, until=lambda: calls and time.monotonic() > calls[0] + 2.0)

    assert len(calls) < 100
    assert bench.sql("SELECT max(attempt), count(*) FROM bgjob_job")[0] == (0, 501)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_such", "has no 'no_such'"),
        ("POISON_ATTEMPTS", "around= takes a callable"),
        ("Base", "not the class Base"),
    ],
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
