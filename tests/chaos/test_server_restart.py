"""PostgreSQL goes away and comes back: workers wait, go on by themselves, and nothing is lost.

After an outage every worker looks silent, and none is: no job of a living worker may be rescued,
which the crashes that each start saw would tell.
"""

from __future__ import annotations

import os
import signal
import time
from typing import TYPE_CHECKING

import pytest
from sqlalchemy import create_engine
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import enqueue, enqueue_many
from support import wait_until
from support.processes import ASYNC, FAST, ONE, THREADS, TWO, Fleet

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres


@pytest.fixture
def engine(own_server: EmbeddedPostgres) -> Iterator[Engine]:
    """An engine whose pool does not hand out connections of before a restart."""
    engine = create_engine(own_server.url, pool_pre_ping=True)
    yield engine
    engine.dispose()


def no_living_worker_was_rescued(fleet: Fleet) -> None:
    assert {line["crashes"] for line in fleet.journal.read("start")} == {0}
    assert fleet.scalar("SELECT count(*) FROM bgjob_dead_job") == 0


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_a_worker_that_was_started_before_the_server(
    fleet: Fleet, own_server: EmbeddedPostgres
) -> None:
    """It waits for the server and works as soon as it is up."""
    ids = [f"job-{n}" for n in range(20)]
    enqueue_many(fleet.engine, fleet.app.effect, [None] * len(ids), ids=ids)
    own_server._halt("fast")
    process = fleet.start(wait=False)
    wait_until(lambda: fleet.journal.count("error") >= 3, 30, what="attempts to connect")

    own_server._launch()
    up = time.monotonic()
    wait_until(lambda: fleet.journal.count("start") > 0, 15, what="the first start")
    took = fleet.journal.read("start")[0]["at"] - up
    fleet.wait_until_done()

    print(f"first start {took:.2f} s after the server was up")
    assert took < 6.0
    assert process.alive
    assert fleet.effects() == dict.fromkeys(ids, 1)
    no_living_worker_was_rescued(fleet)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("variant", "how", "restarts", "over"),
    [
        (THREADS, "crash", 1, 0.0),
        (ASYNC, "fast", 1, 0.0),
        pytest.param(THREADS, "fast", 5, 60.0, marks=pytest.mark.chaos),
        pytest.param(THREADS, "immediate", 5, 60.0, marks=pytest.mark.chaos),
        pytest.param(THREADS, "crash", 5, 60.0, marks=pytest.mark.chaos),
        pytest.param(ASYNC, "fast", 5, 60.0, marks=pytest.mark.chaos),
        pytest.param(ASYNC, "crash", 5, 60.0, marks=pytest.mark.chaos),
    ],
    ids=str,
)
def test_the_server_restarts_under_load(
    fleet: Fleet, own_server: EmbeddedPostgres, how: str, restarts: int, over: float
) -> None:
    """At default settings: two workers go on by themselves, effects are exactly once."""
    first, second = fleet.start(wait=False), fleet.start(wait=False)
    fleet.wait_for(first)
    fleet.wait_for(second)
    each = 150
    ids = [f"job-{n:04}" for n in range(restarts * each)]
    naps = [f"nap-{n}" for n in range(8)]
    enqueue_many(fleet.engine, fleet.app.nap, [4.0] * len(naps), ids=naps)
    wait_until(lambda: len(fleet.journal.starts()) == len(naps), what="running jobs")

    pauses = []
    began = time.monotonic()
    for n in range(restarts):
        due = began + over * n / restarts
        wait_until(lambda due=due: time.monotonic() >= due, over + 1, what="the next restart")
        part = ids[n * each : (n + 1) * each]
        enqueue_many(fleet.engine, fleet.app.effect, [None] * each, ids=part)
        wait_until(lambda n=n: len(fleet.journal.starts()) > len(naps) + n * each, what="the load")
        if how == "crash":
            victim = fleet.scalar(
                "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'bgjob/%' LIMIT 1"
            )
            os.kill(victim, signal.SIGKILL)
            wait_until(lambda victim=victim: _crashed(fleet, victim), 30, what="the recovery")
        elif how == "fast":
            own_server.restart("fast")
        else:
            own_server.restart("immediate")
        up, count = time.monotonic(), fleet.journal.count("start")
        if len(fleet.journal.starts()) < len(naps) + (n + 1) * each:
            wait_until(lambda count=count: fleet.journal.count("start") > count, 20)
            pauses.append(time.monotonic() - up)
        fleet.engine.dispose()
    wait_until(lambda: _done(fleet), 60, what="the end of all jobs")

    print(f"next start {', '.join(f'{pause:.2f} s' for pause in pauses)} after the server was up")
    assert first.alive
    assert second.alive
    fleet.check(ids + naps, with_effects=ids, faults=restarts)
    no_living_worker_was_rescued(fleet)
    starts = fleet.journal.starts()
    assert sorted(starts) == ids + naps
    assert max(len(lines) for lines in starts.values()) <= 1 + restarts
    assert {len(starts[job_id]) for job_id in naps} == {1}, "a nap needs no database"


def _crashed(fleet: Fleet, victim: int) -> bool:
    """Whether the server is up again after the crash of one session."""
    fleet.engine.dispose()
    try:
        gone = "SELECT count(*) = 0 FROM pg_stat_activity WHERE pid = :pid"
        return bool(fleet.scalar(gone, pid=victim))
    except DBAPIError:
        return False


def _done(fleet: Fleet) -> bool:
    try:
        return fleet.jobs_left == 0
    except DBAPIError:  # of a connection that was made before
        return False


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_after_an_outage_longer_than_the_lease_nobody_is_rescued(
    fleet: Fleet, own_server: EmbeddedPostgres
) -> None:
    """All heartbeats are old, and the workers come back one by one."""
    first, second = fleet.start(slots=3, **FAST), fleet.start(slots=3, **FAST)
    naps = [f"nap-{n}" for n in range(6)]
    enqueue_many(fleet.engine, fleet.app.nap, [600.0] * 6, ids=naps)
    wait_until(lambda: len(fleet.journal.starts()) == 6, 20, what="running jobs")

    own_server._halt("fast")
    down = time.monotonic()
    lease = FAST["lease_timeout"]
    wait_until(lambda: time.monotonic() - down > lease * 1.5, 30, what="the leases' end")
    own_server._launch()
    second.signal(signal.SIGSTOP)  # the first one is back for a second before it
    back = "SELECT beat_at > now() - interval '1 second' FROM bgjob_worker WHERE pid = :pid"
    wait_until(lambda: fleet.scalar(back, pid=first.pid), 20, what="the first one's beat")
    beat = time.monotonic()
    wait_until(lambda: time.monotonic() - beat > lease / 2, what="half a lease")
    second.signal(signal.SIGCONT)
    beat_after = "SELECT beat_at > now() - interval '1 second' FROM bgjob_worker WHERE pid = :pid"
    wait_until(lambda: fleet.scalar(beat_after, pid=second.pid), 20, what="the second one's beat")
    fleet.journal.release()
    fleet.wait_until_done(30)

    starts = fleet.journal.starts()
    assert {job_id: len(lines) for job_id, lines in starts.items()} == dict.fromkeys(naps, 1)
    no_living_worker_was_rescued(fleet)
    assert fleet.journal.count("lease_lost") == 0


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", TWO, ids=str)
def test_an_outage_of_a_minute_at_default_settings(
    fleet: Fleet, own_server: EmbeddedPostgres
) -> None:
    """The same at the defaults; they reconnect within seconds."""
    first, second = fleet.start(slots=3, wait=False), fleet.start(slots=3, wait=False)
    fleet.wait_for(first)
    fleet.wait_for(second)
    naps = [f"nap-{n}" for n in range(6)]
    enqueue_many(fleet.engine, fleet.app.nap, [70.0] * 6, ids=naps)
    wait_until(lambda: len(fleet.journal.starts()) == 6, what="running jobs")

    own_server._halt("fast")
    down = time.monotonic()
    wait_until(lambda: time.monotonic() - down > 60, 70, what="a minute")
    errors = fleet.journal.count("error")
    own_server._launch()
    up = time.monotonic()
    enqueue(fleet.engine, fleet.app.quick, id="late")
    fleet.wait_until_done(60)

    print(f"{errors} errors told during the outage")
    assert errors < 2 * 3 * 40
    assert fleet.journal.starts()["late"][0]["at"] > up
    starts = fleet.journal.starts()
    assert {job_id: len(starts[job_id]) for job_id in naps} == dict.fromkeys(naps, 1)
    no_living_worker_was_rescued(fleet)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("variant", "times"),
    [
        (THREADS, 6),
        pytest.param(THREADS, 120, marks=pytest.mark.chaos),
        pytest.param(ASYNC, 120, marks=pytest.mark.chaos),
    ],
    ids=str,
)
def test_a_worker_goes_on_while_its_sessions_are_ended(fleet: Fleet, times: int) -> None:
    """All of its sessions, twice a second: handlers that need no database do not notice."""
    process = fleet.start()
    naps = [f"nap-{n}" for n in range(4)]
    enqueue_many(fleet.engine, fleet.app.nap, [times / 2] * 4, ids=naps)
    fleet.wait_for_starts(4, process)
    ids: list[str] = []
    end = (
        "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
        " WHERE application_name LIKE 'bgjob/%' OR query LIKE 'LISTEN%'"
    )
    rounds: list[float] = []
    hit: list[int] = []

    def ended() -> bool:
        if not rounds or time.monotonic() - rounds[-1] > 0.5:
            rounds.append(time.monotonic())
            if len(rounds) < times:
                some = [f"job-{len(rounds):03}-{n}" for n in range(10)]
                enqueue_many(fleet.engine, fleet.app.effect, [None] * 10, ids=some)
                ids.extend(some)
                hit.append(fleet.scalar(end))
        return len(rounds) >= times and fleet.jobs_left == 0

    wait_until(ended, times / 2 + 60, what="the end of all jobs")

    print(f"ended {sum(hit)} sessions in {len(hit)} rounds")
    assert sum(hit) >= times
    assert process.alive
    fleet.check([*ids, *naps], with_effects=ids, faults=times)
    assert {len(fleet.journal.starts()[job_id]) for job_id in naps} == {1}
    no_living_worker_was_rescued(fleet)
