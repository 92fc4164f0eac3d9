"""Cancel of running jobs: each ends as cancelled or complete, once, and comes back never."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import (
    AsyncWorker,
    Cancelled,
    CancelResult,
    Complete,
    Context,
    MoveToDlq,
    Reschedule,
    Retry,
    constant,
)
from sqlalchemy_bgjob._worker import overdue
from sqlalchemy_bgjob._worker.drain import Drain
from sqlalchemy_bgjob.testing.points import at
from support.databases import with_driver
from support.running import FLAVORS, Gate, Workbench, one_of_each, only_asyncio
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from support.tuning import Tune

SLOW = constant(3600.0)
BEATS: dict[str, Any] = {"heartbeat_interval": 0.2, "lease_timeout": 10.0}
"""Without notifications, a cancel is found within one."""


class Waiting:
    """A handler that waits to be told to stop, as a cooperative one does."""

    def __init__(self, bench: Workbench, said: str = "nothing") -> None:
        self.bench, self.says = bench, SAID[said]
        self.started: list[str] = []
        self.handler = bench.handler(f"says {said}", self._body, retry=SLOW)

    def _body(self, session: Session, ctx: Context[Any]) -> Any:
        self.bench.note(session, ctx)
        self.started.append(ctx.job.id)
        with suppress(asyncio.CancelledError):
            self.bench.pause(lambda: ctx.cancelled)
        if isinstance(self.says, ValueError):
            raise self.says
        return self.says

    def start(self, count: int = 1) -> list[str]:
        return [self.bench.enqueue(self.handler) for _ in range(count)]

    def cancel(self, *ids: str) -> None:
        """Once they run."""
        wait_until(lambda: {*ids} <= {*self.started})
        for job_id in ids:
            assert self.bench.jobs.cancel(self.bench.outside, job_id) == "asked"


@pytest.mark.core
def test_a_running_job_ends_as_cancelled_and_is_told_once(bench: Workbench) -> None:
    """At once, by notification. Its writes are undone, and others go on."""
    waiting = Waiting(bench)
    gate = Gate(bench)
    other = bench.enqueue(bench.handler("other", lambda s, ctx: gate.hold()))
    (job_id,) = waiting.start()

    def drive() -> None:
        gate.wait()
        waiting.cancel(job_id)
        wait_until(lambda: bench.job(job_id) is None)
        gate.open()

    # No beat comes in this time, at which it would look by itself.
    beats = {"heartbeat_interval": 600.0, "lease_timeout": 1800.0}
    ran = bench.run(during=drive, until=bench.none_left, listen=True, **beats)

    assert ran.of(job_id) == ["started", "cancelled"]
    assert ran.of(other) == ["started", "completed"]
    assert bench.notes(job_id) == []
    assert bench.dead(job_id) is None


SAID: dict[str, Any] = {
    "nothing": None,
    "retry": Retry(0, "again"),
    "reschedule": Reschedule(0),
    "dlq": MoveToDlq("hopeless"),
    "error": ValueError("half-way"),
    "complete": Complete(),
}


@one_of_each
def test_whatever_it_says_then_it_does_not_come_back(bench: Workbench) -> None:
    """But one that says Complete() has finished all the same: what it wrote is kept."""
    handlers = {said: Waiting(bench, said) for said in SAID}
    ids = {said: waiting.start()[0] for said, waiting in handlers.items()}

    def drive() -> None:
        for said, waiting in handlers.items():
            waiting.cancel(ids[said])

    ran = bench.run(during=drive, until=bench.none_left, listen=True, queues={"default": len(SAID)})

    ended = {said: ran.of(job_id) for said, job_id in ids.items()}
    assert ended.pop("complete") == ["started", "completed"]
    assert set(map(tuple, ended.values())) == {("started", "cancelled")}
    assert bench.notes(ids["complete"]) == ["written"]
    assert [bench.notes(ids[said]) for said in ended] == [[]] * 5
    assert bench.sql("SELECT FROM bgjob_dead_job") == []


@one_of_each
def test_a_mark_at_the_very_end_is_either(bench: Workbench) -> None:
    """It comes after the handler's end, and before the COMMIT: never both, and never neither."""
    with_session = bench.handler("with", bench.note)
    without = bench.handler("without", lambda ctx: None, uses_session=False)
    ids = [bench.enqueue(handler) for handler in (with_session, without)]
    answers: list[Any] = []

    with at("handler", lambda job: answers.append(bench.jobs.cancel(bench.outside, job.id))):
        ran = bench.run(until=bench.none_left, listen=True)

    assert answers == ["asked", "asked"]
    ends = [ran.of(job_id) for job_id in ids]
    assert all(end in (["started", "completed"], ["started", "cancelled"]) for end in ends)
    assert bench.notes(ids[0]) == (["written"] if "completed" in ends[0] else [])


@one_of_each
def test_a_job_that_was_marked_is_never_started(bench: Workbench) -> None:
    """As after the loss of its worker: whoever claims it ends it, whatever the type."""
    handler = bench.handler("t", bench.note)
    ids = [bench.enqueue(handler), bench.jobs.enqueue(bench.outside, "none", queue="default").id]
    bench.sql("UPDATE bgjob_job SET cancel_at = now(), crashes = 50, attempt = 50")

    ran = bench.run(until=bench.none_left)

    assert [ran.of(job_id) for job_id in ids] == [["cancelled"], ["cancelled"]]
    assert bench.notes(ids[0]) == []


@one_of_each
def test_a_draining_worker_looks_too(bench: Workbench, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its beats, without notifications; so a cancelled job does not hold up a deploy."""
    waiting = Waiting(bench)
    (job_id,) = waiting.start()
    begin = Drain.begin

    def begin_and_cancel(self: Drain, timeout: float) -> None:
        begin(self, timeout)
        waiting.cancel(job_id)

    monkeypatch.setattr(Drain, "begin", begin_and_cancel)
    ran = bench.run(until=lambda: waiting.started, **BEATS)

    assert ran.of(job_id) == ["started", "cancelled"]


@one_of_each
def test_jobs_that_are_ready_are_cancelled_unstarted(bench: Workbench) -> None:
    """Claimed ahead, while the only slot is taken."""
    gate = Gate(bench)
    started: list[str] = []

    def body(ctx: Context[Any]) -> None:
        started.append(ctx.job.id)
        if len(started) == 20:  # the ones before were short, so that some are claimed ahead
            gate.hold()

    handler = bench.handler("t", body, uses_session=False)
    ids = [bench.enqueue(handler) for _ in range(40)]

    def left() -> int:
        return len(bench.sql("SELECT FROM bgjob_job"))

    def drive() -> None:
        gate.wait()
        wait_until(lambda: left() == 21)
        claimed = len(bench.sql("SELECT FROM bgjob_job WHERE claimed_by IS NOT NULL"))
        assert claimed > 1
        done = bench.jobs.cancel_where(bench.outside, bench.jobs.Job.id.in_(ids))
        assert done == CancelResult(cancelled=21 - claimed, asked=claimed)
        wait_until(lambda: left() <= 1)
        gate.open()

    ran = bench.run(
        during=drive,
        until=bench.none_left,
        listen=True,
        queues={"default": 1},
        hold_timeout=60.0,
    )

    assert len(started) == 20
    assert ran.of(started[-1]) == ["started", "cancelled"]
    others = [ran.of(job_id) for job_id in ids if job_id not in started]
    assert others.count(["cancelled"]) + others.count([]) == 20
    assert ["cancelled"] in others


@one_of_each
def test_a_condition_cancels_what_waits_and_what_runs(bench: Workbench) -> None:
    waiting = Waiting(bench)
    waiting.start(6)
    kept = bench.enqueue(bench.handler("kept", bench.note), delay=60)

    def drive() -> None:
        wait_until(lambda: len(waiting.started) == 4)
        where = bench.jobs.Job.type == waiting.handler.type
        assert bench.jobs.cancel_where(bench.outside, where) == CancelResult(2, 4)

    ran = bench.run(during=drive, listen=True)

    assert [ran.of(job_id) for job_id in waiting.started] == [["started", "cancelled"]] * 4
    assert bench.job(kept) is not None


def test_a_function_beside_coroutines_is_asked(workbench_url: str) -> None:
    """In a thread of an AsyncWorker."""
    bench = Workbench(FLAVORS[0], workbench_url)  # whose handlers are functions
    bench.reset()
    waiting = Waiting(bench)
    (job_id,) = waiting.start()

    async def main() -> None:
        engine = create_async_engine(bench.url)
        async with AsyncWorker(bench.jobs, engine, poll_interval=0.05):
            await asyncio.to_thread(waiting.cancel, job_id)
            await asyncio.to_thread(wait_until, bench.none_left)
        await engine.dispose()

    asyncio.run(main())
    assert bench.notes(job_id) == []
    bench.close()


@one_of_each
def test_work_one_ends_what_was_cancelled(bench: Workbench) -> None:
    """The outcome says so; the handler is not called."""
    handler = bench.handler("t", bench.note)
    job_id = bench.enqueue(handler)
    bench.sql("UPDATE bgjob_job SET cancel_at = now()")

    outcome = work_one(bench)

    assert isinstance(outcome, Cancelled)
    assert (bench.job(job_id), bench.notes(job_id)) == (None, [])


def work_one(bench: Workbench) -> Any:
    """Work on one job in a transaction of its own."""
    url = with_driver(bench.url, bench.flavor.driver)
    if not bench.flavor.is_async:
        engine = create_engine(url)
        outcome = bench.jobs.work_one(engine, "default")
        engine.dispose()
        return outcome

    async def main() -> Any:
        engine = create_async_engine(url)
        outcome = await bench.jobs.work_one(engine, "default")
        await engine.dispose()
        return outcome

    return asyncio.run(main())


# ---- what it costs -------------------------------------------------------------------------------


@pytest.fixture
def looks() -> Iterator[list[str]]:
    """The statements that look for marks, of all engines."""
    sent: list[str] = []

    def note(*args: Any) -> None:
        if "held.cancel_at IS NOT NULL" in args[2]:
            sent.append(args[2])

    event.listen(Engine, "before_cursor_execute", note)
    yield sent
    event.remove(Engine, "before_cursor_execute", note)


@one_of_each
def test_a_long_job_is_one_look_a_beat_and_others_none(bench: Workbench, looks: list[str]) -> None:
    """Short jobs and idle workers send none in many beats."""
    short = bench.handler("short", lambda ctx: None, uses_session=False)
    waiting = Waiting(bench)
    beats: list[int] = []
    seen: list[int] = []

    def drive() -> None:
        with at("beat", beats.append):
            while len(beats) < 5:
                bench.enqueue(short)
                wait_until(bench.idle)
            seen.append(len(looks))
            (job_id,) = waiting.start()
            wait_until(lambda: waiting.started)
            beats.clear()
            wait_until(lambda: len(beats) >= 5)
        seen.append(len(looks))
        waiting.cancel(job_id)

    bench.run(
        during=drive, until=bench.none_left, listen=True, heartbeat_interval=0.1, lease_timeout=9.0
    )

    assert seen[0] == 0
    assert 1 <= seen[1] <= 7


@only_asyncio
def test_a_look_that_is_refused_keeps_no_job_waiting(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """As by a role that may not read the column."""
    waiting = Waiting(bench)
    waiting.start()
    quick = bench.handler("quick", bench.note)

    def drive() -> None:
        wait_until(lambda: waiting.started)
        wait_until(lambda: "not looked whether" in caplog.text)
        bench.enqueue(quick)
        wait_until(lambda: len(bench.sql("SELECT FROM bgjob_job")) == 1)
        mended.append(True)
        waiting.cancel(*waiting.started)

    def fail(*args: Any) -> None:
        if "held.cancel_at IS NOT NULL" in args[2] and not mended:
            raise RuntimeError("refused")

    mended: list[bool] = []
    event.listen(Engine, "before_cursor_execute", fail)
    try:
        with caplog.at_level(logging.WARNING, "sqlalchemy_bgjob"):
            bench.run(during=drive, until=bench.none_left, **BEATS)
    finally:
        event.remove(Engine, "before_cursor_execute", fail)


# ---- handlers that do not listen ----------------------------------------------------------------


@only_asyncio
def test_a_coroutine_that_swallows_its_cancellation_is_stuck(
    bench: Workbench, caplog: pytest.LogCaptureFixture, tune: Tune
) -> None:
    """It is named, and counted; when it returns after all, its job is cancelled."""
    tune(overdue, UNTIL_STUCK=0.2)
    started: list[str] = []

    @bench.jobs.handler("deaf")
    async def deaf(ctx: Context[Any]) -> None:
        started.append(ctx.job.id)
        while "does not end although" not in caplog.text:
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(0.01)

    job_id = bench.enqueue(deaf)

    def drive() -> None:
        wait_until(lambda: started)
        assert bench.jobs.cancel(bench.outside, job_id) == "asked"

    with caplog.at_level(logging.WARNING, "sqlalchemy_bgjob"):
        ran = bench.run(during=drive, until=bench.none_left, listen=True)

    assert ran.of(job_id) == ["started", "cancelled"]
    assert caplog.text.count("does not end although") == 1
    assert job_id in caplog.text
