"""Stopping a worker: what was not started goes back, what runs ends or is released, attempts exact.

A deploy costs no attempt, and leaves nothing claimed.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import signal
import threading
import time
from contextvars import ContextVar, copy_context
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self, cast

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.util import greenlet_spawn

from sqlalchemy_bgjob import AsyncWorker, BGJob, Context, Observer, Worker, enqueue_many
from sqlalchemy_bgjob._worker import tasks
from sqlalchemy_bgjob._worker.attempt import Attempt, Environment
from sqlalchemy_bgjob._worker.run import Run
from sqlalchemy_bgjob._worker.tasks import AsyncRuntime
from sqlalchemy_bgjob._worker.threads import ThreadRuntime
from sqlalchemy_bgjob.testing.points import at
from support import wait_until, wait_until_async
from support.processes import ASYNC, FAST, ONE, THREADS
from support.proxy import Proxy
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from conftest import UrlFor
    from sqlalchemy_bgjob._lifecycle.settle import Pending
    from support.processes import Fleet
    from support.tuning import Tune


def rows(fleet: Fleet) -> dict[str, Any]:
    return {row.id: row for row in fleet.rows("SELECT * FROM bgjob_job ORDER BY id")}


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_sigterm_with_a_hundred_claimed_and_ten_running(fleet: Fleet) -> None:
    """The ten end, the others go back with their attempt unspent.

    How many were claimed follows from how long the short jobs took: about a hundred, fewer on a
    machine that is busy with other things.
    """
    process = fleet.start(slots=10, hold_timeout=60.0)
    # Short jobs teach the worker to claim far ahead.
    enqueue_many(fleet.engine, fleet.app.quick, [None] * 2_000)
    fleet.wait_until_done()
    ids = [f"nap-{n:03}" for n in range(100)]
    enqueue_many(fleet.engine, fleet.app.nap, [3.0] * 100, ids=ids)
    claimed = wait_until(
        lambda: (
            len(fleet.claimed_by(process))
            if len([line for line in fleet.journal.read("start") if line["id"] in ids]) == 10
            else 0
        ),
        what="ten running jobs",
    )
    assert claimed > 10, "it has not claimed ahead"

    at = time.monotonic()
    process.signal(signal.SIGTERM)
    assert process.wait() == 0, process.log
    took = time.monotonic() - at

    print(f"left {took:.1f} s after the signal")
    assert took < 20.0, "it has not left the other jobs alone"
    started = [job_id for job_id in ids if job_id in fleet.journal.starts()]
    assert len(started) == 10
    left = rows(fleet)
    assert sorted(left) == sorted(set(ids) - set(started))
    assert {(row.claimed_by, row.attempt, row.crashes) for row in left.values()} == {(None, 0, 0)}
    assert fleet.workers == 0


@pytest.mark.parametrize(
    ("variant", "how"), [(THREADS, "timeout"), (THREADS, "second signal"), (ASYNC, "second signal")]
)
def test_jobs_that_do_not_end_are_released(fleet: Fleet, how: str) -> None:
    """Their attempt is given back, their lease has grown, and nothing they wrote is left."""
    settings = {"shutdown_timeout": 1.0} if how == "timeout" else {}
    process = fleet.start(slots=4, **settings)
    ids = ["hold-1", "hold-2", "nap-1", "nap-2"]
    enqueue_many(fleet.engine, fleet.app.hold, [600.0] * 2, ids=ids[:2])
    enqueue_many(fleet.engine, fleet.app.nap, [600.0] * 2, ids=ids[2:])
    fleet.wait_for_starts(4, process)
    leases = {line["id"]: line["lease"] for line in fleet.journal.read("start")}

    at = time.monotonic()
    process.signal(signal.SIGTERM)
    if how == "second signal":
        process.signal(signal.SIGINT)
    assert process.wait() == 0, process.log

    assert time.monotonic() - at < 20.0
    left = rows(fleet)
    assert sorted(left) == ids
    for job_id, row in left.items():
        assert (row.claimed_by, row.attempt, row.crashes) == (None, 0, 0)
        assert row.last_error == "interrupted by shutdown"
        assert row.lease > leases[job_id]
    assert fleet.effects() == {}
    assert fleet.workers == 0


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_released_jobs_run_in_another_worker_at_once(fleet: Fleet) -> None:
    """They do not wait for a lease to end."""
    process = fleet.start(slots=2, shutdown_timeout=0.1)
    enqueue_many(fleet.engine, fleet.app.hold, [600.0] * 2, ids=["a", "b"])
    fleet.wait_for_starts(2, process)
    other = fleet.start(slots=2)

    process.signal(signal.SIGTERM)
    left = time.monotonic()
    fleet.wait_for_starts(2, other, 20.0)

    assert time.monotonic() - left < 20.0
    starts = fleet.journal.starts()
    assert [line["attempt"] for line in starts["a"] + starts["b"]] == [1, 1, 1, 1]
    assert process.wait() == 0


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_sigterm_during_an_outage(fleet: Fleet) -> None:
    """Nothing can be settled, and it leaves all the same; others find its jobs."""
    with Proxy(fleet.engine.url.render_as_string(hide_password=False)) as proxy:
        process = fleet.start(url=proxy.url, slots=2, shutdown_timeout=0.5, **FAST)
        enqueue_many(fleet.engine, fleet.app.hold, [600.0] * 2, ids=["a", "b"])
        fleet.wait_for_starts(2, process)
        proxy.refuse()

        at = time.monotonic()
        process.signal(signal.SIGTERM)
        assert process.wait() == 0, process.log
        assert time.monotonic() - at < 40.0

    fleet.start(slots=2, **FAST)
    fleet.wait_until_done()
    assert fleet.effects() == {"a": 1, "b": 1}


def test_sigterm_before_the_database_is_up(fleet: Fleet) -> None:
    """It waits for the database, and hears the signal."""
    with Proxy(fleet.engine.url.render_as_string(hide_password=False)) as proxy:
        proxy.refuse()
        process = fleet.start(url=proxy.url, wait=False)
        wait_until(lambda: fleet.journal.count("error") > 1, 20, what="attempts to connect")

        process.signal(signal.SIGTERM)
        assert process.wait(10) == 0


# ---- in this process ------------------------------------------------------------------------


def make_jobs(engine: Engine, *, coroutine: bool) -> tuple[BGJob[Any, Any], Any, list[str]]:
    jobs = new_queue()
    jobs.metadata.create_all(engine)
    ran: list[str] = []

    def note(ctx: Context[Any]) -> None:
        ctx.session.execute(text("SELECT 1"))
        ran.append(ctx.job.id)

    async def note_async(ctx: Context[Any]) -> None:
        await ctx.session.execute(text("SELECT 1"))
        ran.append(ctx.job.id)

    return jobs, jobs.handler("note")(note_async if coroutine else note), ran


def sessions(engine: Engine) -> int:
    """How many sessions others have in this database."""
    query = text(
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    with engine.connect() as connection:
        return connection.execute(query).scalar_one()


def nothing_is_left(engine: Engine, threads: set[threading.Thread]) -> None:
    """No thread but these, no connection, no row, no claim."""
    wait_until(lambda: set(threading.enumerate()) <= threads, what="the end of all threads")
    wait_until(lambda: sessions(engine) == 0, what="the end of all connections")
    with engine.connect() as connection:
        count = "SELECT (SELECT count(*) FROM bgjob_worker),"
        held = "(SELECT count(*) FROM bgjob_job WHERE claimed_by IS NOT NULL OR attempt > 0)"
        assert connection.execute(text(f"{count} {held}")).one() == (0, 0)


def in_threads(action: Callable[[], None], count: int) -> None:
    """Do the same in so many threads at once; fail if one fails."""
    errors: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert errors == []


def test_16_workers_that_come_and_go_leave_nothing(engine: Engine, database_url: str) -> None:
    jobs, note, ran = make_jobs(engine, coroutine=False)
    before = set(threading.enumerate())
    enqueue_many(engine, note, [None] * 64)
    workers = create_engine(database_url, pool_size=10, max_overflow=40)

    def cycle() -> None:
        with Worker(jobs, workers, queues={"default": 2}, **FAST):
            wait_until(lambda: len(ran) >= 16, 30, what="some jobs")

    in_threads(cycle, 16)

    assert workers.pool.checkedout() == 0  # type: ignore[attr-defined]
    workers.dispose()
    nothing_is_left(engine, before)


def test_16_async_workers_that_come_and_go_leave_nothing(engine: Engine, url_for: UrlFor) -> None:
    """And no task."""
    from sqlalchemy.ext.asyncio import create_async_engine

    jobs, note, ran = make_jobs(engine, coroutine=True)
    before = set(threading.enumerate())
    enqueue_many(engine, note, [None] * 64)

    async def main() -> set[Any]:
        workers = create_async_engine(url_for("asyncpg"), pool_size=10, max_overflow=40)

        async def cycle() -> None:
            async with AsyncWorker(jobs, workers, queues={"default": 2}, **FAST):
                await wait_until_async(lambda: len(ran) >= 16, 30, what="some jobs")

        await asyncio.gather(*(cycle() for _ in range(16)))
        assert workers.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await workers.dispose()
        return asyncio.all_tasks() - {asyncio.current_task()}

    assert asyncio.run(main()) == set()
    nothing_is_left(engine, before)


class Lag:
    """How long the event loop could not run what was due, at worst."""

    def __init__(self) -> None:
        self.worst = 0.0

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._measure())
        await asyncio.sleep(0)  # it is measured from here on
        return self

    async def _measure(self) -> None:
        while True:
            at = time.monotonic()
            await asyncio.sleep(0.005)
            self.worst = max(self.worst, time.monotonic() - at - 0.005)

    async def __aexit__(self, *_: object) -> None:
        await asyncio.sleep(0.01)  # a last look
        self._task.cancel()


def test_the_event_loop_goes_on_while_an_observer_is_slow_to_end(
    engine: Engine, url_for: UrlFor
) -> None:
    """What a stop waits for is no reason to stop everything else in the process."""
    from sqlalchemy.ext.asyncio import create_async_engine

    jobs, _, _ = make_jobs(engine, coroutine=True)
    told, never = threading.Event(), threading.Event()

    class Slow(Observer):
        def queue_is_empty(self, queue: str) -> None:
            told.set()
            never.wait(2.0)

    async def main() -> float:
        workers = create_async_engine(url_for("psycopg"))
        worker = AsyncWorker(jobs, workers, queues={"default": 2}, observers=[Slow()])
        await worker.start()
        await wait_until_async(told.is_set)
        async with Lag() as lag:
            await worker.stop()
        await workers.dispose()
        return lag.worst

    assert asyncio.run(main()) < 1.0


def test_short_coroutines_let_the_event_loop_turn(engine: Engine, url_for: UrlFor) -> None:
    """Each is followed at once by the next one that is claimed: a hundred of them take a second."""
    from sqlalchemy.ext.asyncio import create_async_engine

    jobs = new_queue()
    jobs.metadata.create_all(engine)
    ends: list[float] = []

    @jobs.handler("busy", session=False)
    async def busy(ctx: Context[Any]) -> None:
        until = time.monotonic() + 0.005
        while time.monotonic() < until:
            pass
        ends.append(time.monotonic())

    turns: list[int] = []

    async def look() -> None:
        while len(ends) < 400:
            turns.append(len(ends))
            await asyncio.sleep(0)

    async def main() -> None:
        workers = create_async_engine(url_for("psycopg"))
        enqueue_many(engine, busy, [None] * 400)
        looking = asyncio.create_task(look())
        async with AsyncWorker(jobs, workers, queues={"default": 4}):
            await asyncio.wait_for(looking, 60)
        await workers.dispose()

    asyncio.run(main())

    longest = max(later - sooner for sooner, later in itertools.pairwise(turns))
    assert longest <= 8, f"{longest} jobs ran in one turn of the loop"


class Slots:
    """As much of a worker as its slots ask for: gives out runs one after the other."""

    def __init__(self, *runs: Run) -> None:
        self.waiting = list(runs)
        self.held = set(runs)
        self.settled: list[str] = []
        self.started: list[Run] = []

    def holds(self, run: Run) -> bool:
        return run in self.held

    def attempt(self, run: Run) -> Attempt:
        unused: Any = None
        return Attempt(Environment(unused, unused, unused, unused, unused), run)

    def ended(self, run: Run, items: list[Pending]) -> Run | None:
        self.held.discard(run)
        self.settled += [f"{item.job.id}: {item.settlement.kind.value}" for item in items]
        return self.waiting.pop(0) if self.waiting else None

    def start(self, run: Run) -> None:
        self.started.append(run)


def runs(number: int, function: Any) -> list[Run]:
    """Runs of a coroutine function."""
    jobs = new_queue()
    handler = jobs.handler("t", session=False)(function)
    jobs_ = [cast("Any", SimpleNamespace(id=str(n), type="any", attempt=1)) for n in range(number)]
    return [Run(job, handler) for job in jobs_]


def test_a_coroutine_that_followed_another_is_cancelled_too(engine: Engine) -> None:
    """A run that began in the task of an earlier one does not hold the stop."""
    begun: list[str] = []

    async def hold(ctx: Context[Any]) -> None:
        begun.append("")
        if len(begun) == 2:
            await asyncio.sleep(600)

    first, second = runs(2, hold)
    slots = Slots(first)
    slots.waiting, slots.held = [second], {first, second}

    async def main() -> None:
        runtime = AsyncRuntime(engine, ThreadRuntime(engine))
        runtime.start(first, cast("Any", slots))
        await wait_until_async(lambda: len(begun) == 2)
        runtime.cancel(first)
        await asyncio.sleep(0.01)
        assert slots.settled == ["0: completed"], "the first has ended"
        runtime.cancel(second)
        await wait_until_async(lambda: not runtime._tasks)

    asyncio.run(main())

    assert slots.settled == ["0: completed", "1: retry"]


def test_a_coroutine_that_was_released_is_not_started(engine: Engine) -> None:
    """Its job may run elsewhere by now."""
    ran: list[str] = []

    async def note(ctx: Context[Any]) -> None:
        ran.append("ran")

    released, held = runs(2, note)
    slots = Slots(held)
    slots.waiting = []

    async def main() -> None:
        runtime = AsyncRuntime(engine, ThreadRuntime(engine))
        runtime.start(released, cast("Any", slots))
        runtime.start(held, cast("Any", slots))
        await wait_until_async(lambda: ran and not runtime._tasks)

    asyncio.run(main())

    assert ran == ["ran"]
    assert slots.settled == ["1: completed"]


def in_one_task(
    engine: Engine, first: Run, second: Run, begin: Callable[[], object] = lambda: None
) -> Slots:
    """Start a run, after which the second may be done in the same task."""
    slots = Slots(first)
    slots.waiting, slots.held = [second], {first, second}

    async def main() -> None:
        runtime = AsyncRuntime(engine, ThreadRuntime(engine))
        runtime.start(first, cast("Any", slots))
        begin()
        await wait_until_async(lambda: not runtime._tasks)

    asyncio.run(main())
    return slots


def in_two_tasks(engine: Engine, first: Run, second: Run) -> Slots:
    """Do two runs, of which the second is not to share the task of the first."""
    slots = Slots(first)
    slots.waiting, slots.held = [second], {first, second}

    async def main() -> None:
        runtime = AsyncRuntime(engine, ThreadRuntime(engine))
        runtime.start(first, cast("Any", slots))
        await wait_until_async(lambda: slots.started)
        runtime.start(*slots.started, cast("Any", slots))
        await wait_until_async(lambda: not runtime._tasks)

    asyncio.run(main())
    return slots


VARIABLE: ContextVar[str] = ContextVar("VARIABLE", default="nothing")


def test_a_coroutine_does_not_inherit_context_variables(engine: Engine) -> None:
    """They share a task as long as neither can tell."""
    found: list[str] = []

    async def leave_behind(ctx: Context[Any]) -> None:
        found.append(VARIABLE.get())
        VARIABLE.set("left behind")

    first, second = runs(2, leave_behind)
    slots = in_two_tasks(engine, first, second)

    assert slots.started == [second]
    assert found == ["nothing", "nothing"]


def test_a_coroutine_does_not_inherit_a_cancellation(engine: Engine) -> None:
    """A task that was cancelled stays so for ``asyncio.timeout`` and for TaskGroup."""

    async def cancel_itself(ctx: Context[Any]) -> None:
        task = asyncio.current_task()
        assert task is not None
        assert not task.cancelling()
        task.cancel()
        await asyncio.sleep(600)

    first, second = runs(2, cancel_itself)
    slots = in_two_tasks(engine, first, second)

    assert slots.settled == ["0: retry", "1: retry"]


def test_a_coroutine_cancelled_before_it_begins_goes_back(engine: Engine, tune: Tune) -> None:
    """By what the handler before has left in the event loop."""
    ran: list[str] = []

    async def cancel_later(ctx: Context[Any]) -> None:
        ran.append("ran")
        task = asyncio.current_task()
        assert task is not None
        asyncio.get_running_loop().call_soon(task.cancel)

    first, second = runs(2, cancel_later)
    tune(tasks, TURN=0.0)

    slots = in_one_task(engine, first, second)

    assert ran == ["ran"]
    assert slots.settled == ["0: completed", "1: handed_back"]


class Awkward:
    """A value that refuses to be compared, as an array does."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("the truth value of an array is ambiguous")

    __hash__ = None  # type: ignore[assignment]


AWKWARD: ContextVar[object] = ContextVar("AWKWARD")


def test_a_context_that_can_not_be_compared_is_another_one(engine: Engine) -> None:
    async def leave_behind(ctx: Context[Any]) -> None:
        AWKWARD.set(Awkward())

    first, second = runs(2, leave_behind)
    context = copy_context()
    context.run(AWKWARD.set, Awkward())
    slots = context.run(in_two_tasks, engine, first, second)

    assert slots.settled == ["0: completed", "1: completed"]


def test_a_handler_that_raises_generator_exit_has_failed(engine: Engine) -> None:
    """The event loop takes it for the end of the task; the job and its slot go on."""

    async def leave(ctx: Context[Any]) -> None:
        raise GeneratorExit

    first, second = runs(2, leave)
    slots = in_one_task(engine, first, second)

    assert slots.settled == ["0: retry"]
    assert slots.started == [second]
    del first, second, slots
    gc.collect()  # now the event loop says that nobody asked what the task has raised


def test_a_mistake_of_ours_loses_neither_slot_nor_job(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    async def nothing(ctx: Context[Any]) -> None:
        """Completes."""

    first, second = runs(2, nothing)

    def fail(job: Any) -> None:
        raise LookupError("inside")

    with at("handler", fail):
        slots = in_one_task(engine, first, second)

    assert slots.settled == ["0: handed_back"]
    assert slots.started == [second]
    assert "a run ended without a settlement" in caplog.text


def test_a_task_that_is_cancelled_before_it_runs_is_no_mistake(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    """As by an application that cancels all tasks; the job is handed back, and the slot goes on."""
    ran: list[str] = []

    async def run(ctx: Context[Any]) -> None:
        ran.append(ctx.job.id)

    first, second = runs(2, run)
    slots = in_one_task(engine, first, second, lambda: cast("Any", first.task).cancel())

    assert ran == []
    assert slots.settled == ["0: handed_back"]
    assert slots.started == [second]
    assert caplog.records == []


@pytest.mark.core
@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_cancellation_during_a_rollback_loses_no_job(
    engine: Engine, url_for: UrlFor, driver: str
) -> None:
    """Its connection is given back, its slot is free, and the failure is recorded."""
    from sqlalchemy.ext.asyncio import create_async_engine

    jobs = new_queue()
    jobs.metadata.create_all(engine)
    attempts: list[int] = []

    @jobs.handler("t", retry=lambda attempt, error: 0.05)
    async def fail_and_be_cancelled(ctx: Context[Any]) -> None:
        attempts.append(ctx.job.attempt)
        await ctx.session.execute(text("SELECT 1"))
        if len(attempts) < 4:
            task = asyncio.current_task()
            assert task is not None
            asyncio.get_running_loop().call_soon(task.cancel)
            raise LookupError

    async def main() -> None:
        workers = create_async_engine(url_for(driver), pool_size=3, max_overflow=0)
        async with AsyncWorker(jobs, workers, queues={"default": 1}):
            enqueue_many(engine, fail_and_be_cancelled, [None])
            await wait_until_async(lambda: len(attempts) == 4, 20)
        await workers.dispose()

    asyncio.run(main())

    assert attempts == [1, 2, 3, 4]
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM bgjob_job")).scalar() == 0


def test_a_stuck_listener_is_not_left_to_the_application(engine: Engine) -> None:
    """It may be connecting to a host that never answers, while the application's loop goes on."""

    async def main() -> set[asyncio.Task[Any]]:
        runtime = AsyncRuntime(engine, ThreadRuntime(engine))

        def stop_it() -> None:
            runtime.join(runtime.attend("listener", lambda: runtime.sleep(600)), 0.05)

        await greenlet_spawn(stop_it)
        return {task for task in asyncio.all_tasks() if task is not asyncio.current_task()}

    assert asyncio.run(main()) == set()
