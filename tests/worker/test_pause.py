"""A worker obeys what operators set for its queues, while it runs and from its start."""

from __future__ import annotations

import asyncio
import itertools
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, select
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import AsyncWorker, Worker
from support import wait_until
from support.running import FLAVORS, Gate, in_turn, one_of_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.running import Workbench

NEVER = 600.0
"""A rescue_interval at which the rescuer's look, a worker's last resort, comes too late."""

told_or_looking = in_turn("listen", [True, False])
only_one = pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)


def running(bench: Workbench) -> list[str]:
    """The ids of the claimed jobs."""
    return [row.id for row in bench.sql("SELECT id FROM bgjob_job WHERE claimed_by IS NOT NULL")]


def begun(bench: Workbench) -> bool:
    """Whether a worker is registered, with a session that listens."""
    return bool(bench.sql("SELECT 1 FROM bgjob_worker WHERE listener_pid IS NOT NULL"))


@in_turn("listen", [True, False, False, True])
def test_ready_jobs_go_back_and_running_ones_go_on(bench: Workbench, listen: bool) -> None:
    gate, ran = Gate(bench), list[str]()

    def body(ctx: Any) -> None:
        ran.append(ctx.job.id)
        if ctx.job.id == "slow":
            gate.hold()

    handler = bench.handler("t", body, uses_session=False)
    for n in range(20):
        bench.enqueue(handler, id=f"first-{n:02}")
    bench.enqueue(handler, id="slow", priority=1)
    for n in range(20):
        bench.enqueue(handler, id=f"then-{n:02}", priority=2)

    def during() -> None:
        gate.wait()
        wait_until(lambda: len(running(bench)) > 1, what="jobs that are claimed ahead")
        assert bench.jobs.pause(bench.outside, "default") is True
        wait_until(lambda: running(bench) == ["slow"], what="the hand-back")
        gate.open()
        wait_until(lambda: running(bench) == [])
        bench.enqueue(handler, id="new", priority=-1)
        assert len(ran) == 21
        assert bench.jobs.resume(bench.outside, "default") is True

    bench.run(
        during=during,
        until=bench.none_left,
        queues={"default": 1},
        listen=listen,
        rescue_interval=NEVER,
        hold_timeout=NEVER,
        poll_interval=0.2,
    )

    assert ran[:21] == [*(f"first-{n:02}" for n in range(20)), "slow"]
    assert ran[21] == "new"
    assert len(ran) == 42, "each once"


@only_one
def test_a_worker_that_missed_the_notification_sees_it(bench: Workbench) -> None:
    """Here none was sent: the row was written by SQL."""
    handler = bench.handler("t", lambda ctx: None, uses_session=False)

    def waits_for(queues: str) -> bool:
        return bool(bench.sql(f"SELECT 1 FROM bgjob_worker WHERE waits_for = '{queues}'"))

    def during() -> None:
        wait_until(lambda: waits_for('["default"]'))
        bench.sql("INSERT INTO bgjob_control (queue, paused_at) VALUES ('default', now())")
        wait_until(lambda: waits_for("[]"), what="a worker that waits for no producer")
        bench.enqueue(handler, id="a")
        bench.sql("UPDATE bgjob_control SET resume_at = now()")

    bench.run(during=during, until=bench.none_left, listen=True, rescue_interval=0.1)


@told_or_looking
def test_a_worker_that_starts_claims_nothing_that_is_paused(
    bench: Workbench, listen: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """It goes on with other queues, and says at its start what is paused."""
    caplog.set_level("INFO")
    attempts: list[str] = []
    bench.handler("t", lambda ctx: attempts.append(ctx.job.id), uses_session=False)
    for queue in ("default", "other"):
        bench.jobs.enqueue(bench.outside, "t", id=queue, queue=queue)
    bench.jobs.pause(bench.outside, "default", by="ada", reason="provider down")

    lease = bench.job("default").lease

    bench.run(until=lambda: attempts, queues={"default": 2, "other": 2}, listen=listen)

    assert attempts == ["other"]
    assert bench.job("default").lease == lease, "never claimed, and not handed back either"
    (line,) = [line for line in caplog.messages if "is paused" in line]
    assert line.startswith("queue 'default' is paused by ada (provider down)")


@told_or_looking
def test_a_pause_ends_without_anybodys_help(bench: Workbench, listen: bool) -> None:
    handler = bench.handler("t", lambda ctx: None, uses_session=False)
    bench.enqueue(handler)
    bench.jobs.pause(bench.outside, "default", until=0.7)
    body = "PERFORM 1 FROM bgjob_control WHERE resume_at <= clock_timestamp(); "
    body += "IF NOT FOUND THEN RAISE EXCEPTION 'too early'; END IF; RETURN NEW;"

    with bench.trigger(body, "BEFORE UPDATE"):
        ran = bench.run(
            until=bench.none_left, listen=listen, rescue_interval=NEVER, poll_interval=30.0
        )

    assert ran.named("worker_error") == []


@told_or_looking
def test_slots_change_while_a_worker_runs(bench: Workbench, listen: bool) -> None:
    gate = Gate(bench)
    handler = bench.handler("t", lambda ctx: gate.hold(), uses_session=False)
    for n in range(8):
        bench.enqueue(handler, id=f"{n}")

    def during() -> None:
        gate.wait()
        wait_until(lambda: len(running(bench)) == 2)
        bench.jobs.set_slots(bench.outside, "default", 5)
        wait_until(lambda: len(running(bench)) == 5)
        bench.jobs.set_slots(bench.outside, "default", None)
        gate.open()

    bench.run(
        during=during,
        until=bench.none_left,
        queues={"default": 2},
        listen=listen,
        rescue_interval=NEVER,
    )


@only_one
def test_fewer_slots_are_kept_from_the_start(bench: Workbench) -> None:
    """With four slots there would soon be two handlers beside each other."""
    most = at_once = 0
    lock = threading.Lock()

    def body(ctx: Any) -> None:
        nonlocal most, at_once
        with lock:
            at_once += 1
            most = max(most, at_once)
        asked = itertools.count()
        bench.pause(lambda: at_once > 1 or next(asked) >= 5)
        with lock:
            at_once -= 1

    handler = bench.handler("t", body, uses_session=False)
    for _ in range(6):
        bench.enqueue(handler)
    bench.jobs.set_slots(bench.outside, "default", 1)

    bench.run(until=bench.none_left, queues={"default": 4})

    assert most == 1


@one_of_each
def test_a_paused_queue_counts_as_idle(bench: Workbench) -> None:
    """A worker with ``until_idle`` ends, and leaves its jobs."""
    ran: list[str] = []
    bench.handler("t", lambda ctx: ran.append(ctx.job.id), uses_session=False)
    for queue in ("default", "other"):
        bench.jobs.enqueue(bench.outside, "t", id=queue, queue=queue)
    bench.jobs.pause(bench.outside, "default")
    url, queues = bench.url.replace("+psycopg", f"+{bench.flavor.driver}"), ["default", "other"]

    if bench.flavor.is_async:

        async def main() -> None:
            engine = create_async_engine(url)
            await AsyncWorker(bench.jobs, engine, queues=queues, until_idle=True).run()
            await engine.dispose()

        asyncio.run(main())
    else:
        engine = create_engine(url, pool_size=25)
        Worker(bench.jobs, engine, queues=queues, until_idle=True).run()
        engine.dispose()

    assert ran == ["other"]
    assert bench.job("default").attempt == 0


@only_one
def test_work_one_is_a_call_of_the_callers_own(bench: Workbench) -> None:
    """To try a job before the queue is resumed."""
    ran: list[str] = []
    handler = bench.handler("t", lambda ctx: ran.append(ctx.job.id), uses_session=False)
    bench.enqueue(handler, id="a")
    bench.jobs.pause(bench.outside, "default")

    engine = create_engine(bench.url)
    bench.jobs.work_one(engine, "default")
    engine.dispose()

    assert ran == ["a"]


@pytest.fixture
def looks() -> Iterator[list[str]]:
    """What is sent of queue control, and by which statement: a look, or with the rescuer's."""
    seen: list[str] = []

    def see(connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if "bgjob_control" in statement:
            seen.append("rescuer" if "lease_timeout" in statement else "look")

    event.listen(Engine, "before_cursor_execute", see)
    yield seen
    event.remove(Engine, "before_cursor_execute", see)


@only_one
def test_what_nobody_sets_costs_no_statement(bench: Workbench, looks: list[str]) -> None:
    """A look or two at the start; after that it comes with what is sent anyway."""
    bench.handler("t", lambda ctx: None, uses_session=False)

    def rescuers_look() -> None:
        count = looks.count("rescuer")
        wait_until(lambda: looks.count("rescuer") >= count + 3)

    def during() -> None:
        wait_until(lambda: begun(bench))
        rescuers_look()
        assert 1 <= looks.count("look") <= 3
        looks.clear()
        rescuers_look()
        assert looks.count("look") == 0

    bench.run(during=during, until=lambda: True, listen=True, rescue_interval=0.1)


@only_one
def test_a_look_that_is_refused_stops_no_settlement(bench: Workbench) -> None:
    """The table is gone, as if it were another role's: what runs ends, what was known holds."""
    gate = Gate(bench)
    handler = bench.handler("t", lambda ctx: gate.hold(), uses_session=False)
    bench.enqueue(handler, id="held")

    def during() -> None:
        gate.wait()
        bench.sql("ALTER TABLE bgjob_control RENAME TO hidden")
        try:
            gate.open()
            wait_until(lambda: bench.job("held") is None, what="the settlement")
            bench.enqueue(handler, id="new")
            wait_until(lambda: bench.job("new") is None, what="the next job")
        finally:
            bench.sql("ALTER TABLE hidden RENAME TO bgjob_control")

    ran = bench.run(during=during)

    assert {event.subject for event in ran.named("worker_error")} <= {"ProgrammingError"}


# ---- readiness ----------------------------------------------------------------------------------


class Watched:
    """A worker of either kind, started and stopped by a test."""

    def __init__(self, bench: Workbench, **options: Any) -> None:
        self.bench, self.options = bench, {"queues": {"default": 1}, **options}
        self.seen: dict[str, bool] = {}

    def run(self, during: Callable[[Any], None]) -> None:
        url = self.bench.url.replace("+psycopg", f"+{self.bench.flavor.driver}")
        if not self.bench.flavor.is_async:
            engine = create_engine(url)
            worker = Worker(self.bench.jobs, engine, **self.options)
            self.seen["made"] = worker.ready
            with worker:
                during(worker)
            self.seen["stopped"] = worker.ready
            engine.dispose()
            return

        async def main() -> None:
            engine = create_async_engine(url)
            worker = AsyncWorker(self.bench.jobs, engine, **self.options)
            self.seen["made"] = worker.ready
            async with worker:
                await asyncio.to_thread(during, worker)
            self.seen["stopped"] = worker.ready
            await engine.dispose()

        asyncio.run(main())


@one_of_each
def test_a_worker_is_ready_from_its_first_claim_to_its_stop(bench: Workbench) -> None:
    gate = Gate(bench)
    handler = bench.handler("t", lambda ctx: gate.hold(), uses_session=False)
    bench.enqueue(handler)
    watched = Watched(bench)

    def during(worker: Any) -> None:
        gate.wait()
        wait_until(lambda: worker.ready)
        worker.request_stop()
        assert not worker.ready, "it drains"
        gate.open()

    watched.run(during)

    assert watched.seen == {"made": False, "stopped": False}


@only_one
def test_a_worker_of_paused_queues_alone_is_ready(bench: Workbench) -> None:
    bench.handler("t", lambda ctx: None, uses_session=False)
    bench.jobs.pause(bench.outside, "default")

    Watched(bench).run(lambda worker: wait_until(lambda: worker.ready))


@one_of_each
def test_a_worker_without_a_heartbeat_is_not_ready(bench: Workbench) -> None:
    """It would start no job either."""
    bench.handler("t", lambda ctx: None, uses_session=False)

    def during(worker: Any) -> None:
        wait_until(lambda: worker.ready)
        heart = worker._loop._heart
        heart.stop()
        heart._last_beat -= 3_600
        assert not worker.ready

    Watched(bench).run(during)


@only_one
def test_a_control_row_is_a_model_to_read(bench: Workbench) -> None:
    from sqlalchemy.orm import Session

    its = bench.jobs.Control
    bench.jobs.pause(bench.outside, "default", by="ada", reason="no", until=3_600)
    bench.jobs.pause(bench.outside, "over")
    bench.jobs.set_slots(bench.outside, "other", 3)
    bench.sql("UPDATE bgjob_control SET resume_at = now() WHERE queue = 'over'")

    with Session(bench.outside) as session:
        (row,) = session.scalars(select(its).where(its.is_paused))
        assert (row.queue, row.paused_by, row.pause_reason) == ("default", "ada", "no")
        rows = session.scalars(select(its).order_by(its.queue))
        assert [(row.queue, row.is_paused, row.slots) for row in rows] == [
            ("default", True, None),
            ("other", False, 3),
            ("over", False, None),
        ]
