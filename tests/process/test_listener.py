"""Wake-ups: how soon a job starts, with notifications and without, and when the listener is lost.

Workers poll once in half a minute here, so that only a wake-up, or knowing when a job is due, can
start a job in time. Bounds are wide for a busy machine; the times themselves are printed.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import psycopg
import pytest
from sqlalchemy import Engine, text

from sqlalchemy_bgjob import Context, Reschedule, Retry, Worker, enqueue
from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob._worker import listener
from sqlalchemy_bgjob._worker.plan import polling
from sqlalchemy_bgjob._worker.plan.polling import COOL_DOWN, IN_VAIN
from sqlalchemy_bgjob.testing.points import at
from support import wait_until
from support.processes import ALL_DRIVERS, ONE, TWO
from support.running import FLAVORS, Flavor, Workbench, one_of_each
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Callable

    from support.processes import Fleet, WorkerProcess
    from support.tuning import Tune

RARELY = 30.0


def start_times(fleet: Fleet) -> dict[str, float]:
    return {job_id: lines[0]["at"] for job_id, lines in fleet.journal.starts().items()}


def latency(fleet: Fleet, job_id: str, **options: Any) -> float:
    """Seconds from the commit of an enqueue to the job's start."""
    enqueue(fleet.engine, fleet.app.quick, id=job_id, **options)
    committed = time.monotonic()
    return wait_until(lambda: start_times(fleet).get(job_id), 40) - committed


def listener_of(fleet: Fleet, process: WorkerProcess) -> int | None:
    """The session that listens for a process, if it is there."""
    pid = fleet.scalar(
        "SELECT w.listener_pid FROM bgjob_worker w JOIN pg_stat_activity s"
        " ON s.pid = w.listener_pid AND s.backend_start = w.listener_started_at"
        " WHERE w.pid = :pid AND w.lost_at IS NULL",
        pid=process.pid,
    )
    return None if pid is None else int(pid)


@pytest.mark.core
@pytest.mark.parametrize("variant", ALL_DRIVERS, ids=str)
def test_a_killed_listener_listens_again_and_misses_nothing(fleet: Fleet) -> None:
    """Within two seconds; what was enqueued in between starts then, not at the next poll."""
    process = fleet.start(poll_interval=RARELY)
    assert latency(fleet, "before") < 1.0
    first = listener_of(fleet, process)

    fleet.scalar("SELECT pg_terminate_backend(:pid)", pid=first)
    killed = time.monotonic()
    enqueue(fleet.engine, fleet.app.quick, id="between")
    wait_until(lambda: listener_of(fleet, process) not in (None, first), 10, what="a new listener")
    again = time.monotonic() - killed
    between = wait_until(lambda: start_times(fleet).get("between"), 40) - killed
    after = latency(fleet, "after")

    print(f"listening after {again:.2f} s, job between {between:.2f} s, job after {after:.3f} s")
    assert again < 2.0
    assert between < 2.0
    assert after < 1.0


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_a_living_worker_that_loses_its_listener_keeps_its_jobs(fleet: Fleet) -> None:
    """Others look for ended sessions five times a second; it beats elsewhere at once."""
    process = fleet.start(slots=2)
    enqueue(fleet.engine, fleet.app.nap, 600.0, id="nap")
    fleet.wait_for_starts(1, process)
    fleet.start(rescue_interval=0.2)

    seen: set[int | None] = set()
    for _ in range(3):
        old = wait_until(lambda: listener_of(fleet, process), what="a listener")
        seen.add(old)
        fleet.scalar("SELECT pg_terminate_backend(:pid)", pid=old)
        wait_until(
            lambda old=old: listener_of(fleet, process) not in (None, old), what="a new listener"
        )
    fleet.journal.release()
    fleet.wait_until_done()

    assert len(seen) == 3
    assert [line["pid"] for line in fleet.journal.read("start")] == [process.pid]
    assert fleet.journal.count("lease_lost") == 0


@pytest.mark.parametrize("variant", TWO, ids=str)
def test_delayed_jobs_of_several_priorities_start_when_due(fleet: Fleet) -> None:
    """The next due time is the earliest of all priorities, whatever their order.

    A worker that has caught up knows it; its poll is too rare to help.
    """
    fleet.start(poll_interval=RARELY)
    delays = {"low": (0.7, 5), "high": (1.7, -5), "middle": (1.2, 0)}
    for job_id, (delay, priority) in delays.items():
        enqueue(fleet.engine, fleet.app.quick, id=job_id, delay=delay, priority=priority)
    began = time.monotonic()

    wait_until(lambda: len(start_times(fleet)) == 3, 20, what="all starts")

    for job_id, (delay, _) in delays.items():
        assert start_times(fleet)[job_id] - began == pytest.approx(delay, abs=0.4)


FORGED = ["default", "", "other", "\U0001f600", "'; DROP TABLE bgjob_job --", "x" * 7_000]


@pytest.mark.parametrize(
    "flavor", [FLAVORS[0], pytest.param(FLAVORS[-1], marks=pytest.mark.chaos)], ids=str
)
def test_a_flood_of_forged_notifications_costs_few_claims(
    flavor: Flavor, workbench_url: str
) -> None:
    """Whoever may connect may notify: no error, few looks, and a job starts all the same."""
    bench = Workbench(flavor, workbench_url)
    bench.reset()
    handler = bench.handler("t", lambda ctx: started.append(time.monotonic()), uses_session=False)
    started: list[float] = []
    enqueued: list[str] = []
    claims: list[float] = []
    sent = 0
    channel = Statements(bench.jobs.models).tables.channel

    def flood() -> None:
        nonlocal sent
        wait_until(lambda: bench.sql("SELECT 1 FROM bgjob_worker WHERE waits_for ? 'default'"))
        claims.clear()
        with psycopg.connect(workbench_url.replace("+psycopg", ""), autocommit=True) as connection:
            begun = time.monotonic()
            while time.monotonic() - begun < 1.5:
                with connection.pipeline():
                    for payload in FORGED * 20:
                        connection.execute("SELECT pg_notify(%s, %s)", (channel, payload))
                sent += 20 * len(FORGED)
                if time.monotonic() - begun > 1.0 and not enqueued:
                    enqueued.append(bench.enqueue(handler))

    with at("claiming", lambda _: claims.append(time.monotonic())):
        ran = bench.run(during=flood, until=lambda: started, poll_interval=RARELY, listen=True)

    print(f"{sent} notifications, {len(claims)} claims")
    assert sent > 1_000
    # A look may be two claims: where the last one ended, and from the head.
    assert len(claims) < 2 * (2 * IN_VAIN + 2.0 / COOL_DOWN)
    assert ran.named("worker_error") == []
    bench.close()


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_polling_alone_is_enough(fleet: Fleet) -> None:
    """Without listening a job starts within the poll interval, a delayed one when it is due."""
    process = fleet.start(listen=False, poll_interval=0.5)
    names = fleet.rows("SELECT query FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
    assert names == []

    assert latency(fleet, "now") < 0.5 + 0.5
    assert latency(fleet, "later", delay=1.2) - 1.2 < 0.5 + 0.5
    assert process.alive


# ---- in this process ------------------------------------------------------------------------


def again_after(outcome: Callable[[], Any], engine: Engine, **settings: Any) -> float:
    """Seconds between the two runs of a job whose first run ends with an outcome."""
    jobs = new_queue()
    jobs.metadata.create_all(engine)
    ran: list[float] = []

    @jobs.handler("again", session=settings.pop("session", False))
    def again(ctx: Context[Any]) -> Any:
        ran.append(time.monotonic())
        if len(ran) > 1:
            return None
        if ctx._run.handler.options.session:
            ctx.session.execute(text("SELECT 1"))
        return outcome()

    enqueue(engine, again)
    with Worker(jobs, engine, poll_interval=RARELY, **settings):
        wait_until(lambda: len(ran) == 2, 40, what="the second run")
    return ran[1] - ran[0]


@pytest.mark.parametrize(
    ("outcome", "session", "listen"),
    [
        (lambda: Reschedule(1.0), True, True),
        (lambda: Reschedule(1.0), False, False),
        (lambda: Retry(1.0, "again"), True, False),
        (lambda: Retry(1.0, "again"), False, True),
    ],
    ids=["reschedule, session", "reschedule", "retry, session", "retry"],
)
def test_a_worker_runs_its_own_delayed_job_when_it_is_due(
    engine: Engine, tune: Tune, outcome: Callable[[], Any], session: bool, listen: bool
) -> None:
    """Nobody notifies of it, and the next poll after the first run is too late."""
    tune(polling, FIRST_POLL=RARELY)

    took = again_after(outcome, engine, session=session, listen=listen)

    assert 0.95 < took < RARELY / 2


def test_what_is_committed_while_a_worker_claims_is_not_missed(engine: Engine) -> None:
    """A notification that arrives during a claim asks for another one."""
    jobs = new_queue()
    jobs.metadata.create_all(engine)
    ran: dict[str, float] = {}

    @jobs.handler("note", session=False)
    def note(ctx: Context[Any]) -> None:
        ran[ctx.job.id] = time.monotonic()

    with Worker(jobs, engine, poll_interval=RARELY):
        late = []
        for n in range(100):
            enqueue(engine, note, id=str(n))
            committed = time.monotonic()
            if n % 3 == 0:
                late.append(wait_until(lambda n=n: ran.get(str(n)), 10) - committed)
        wait_until(lambda: len(ran) == 100, 10, what="all jobs")
    assert max(late) < RARELY / 3


@one_of_each
def test_a_driver_that_can_not_listen_is_told_of_once(
    bench: Workbench, caplog: pytest.LogCaptureFixture, tune: Tune
) -> None:
    """Of a driver that is not known nothing is asked again and again; the worker polls."""
    tune(listener, _DRIVERS=frozenset())
    handler = bench.handler("t", bench.note)

    def words() -> list[str]:
        return [r.getMessage() for r in list(caplog.records) if "LISTEN" in r.getMessage()]

    def during() -> None:
        wait_until(words, what="the warning")
        bench.enqueue(handler)

    ran = bench.run(during=during, listen=True)

    assert len(words()) == 1
    assert "psycopg2 or asyncpg" in words()[0]
    assert ran.named("worker_error") == []
    assert len(ran.named("job_completed")) == 1
