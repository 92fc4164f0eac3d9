"""A worker process dies or freezes: its jobs run elsewhere, soon, and nothing runs twice for good.

The tests at small settings run always; those at the defaults take minutes (``-m chaos``).
"""

from __future__ import annotations

import signal
import statistics
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob import enqueue, enqueue_many
from support import wait_until
from support.pooler import PgBouncer
from support.processes import ASYNC, FAST, ONE, THREADS, TWO
from support.proxy import Proxy

if TYPE_CHECKING:
    from conftest import TestServer
    from support.processes import Fleet, WorkerProcess
    from support.worker_app import Crash

STATE = (
    "SELECT 'job', id, lease, attempt, crashes, claimed_by FROM bgjob_job"
    " UNION ALL SELECT 'dead', job_id, lease, attempt, crashes, null FROM bgjob_dead_job"
    " UNION ALL SELECT 'effect', job_id, count(*), null, null, null FROM effect GROUP BY job_id"
    " ORDER BY 1, 2"
)


def ids_of(prefix: str, count: int) -> list[str]:
    return [f"{prefix}-{n:03}" for n in range(count)]


def second_starts(fleet: Fleet, ids: list[str]) -> list[float]:
    """When each of these jobs was started for the second time."""
    starts = fleet.journal.starts()
    return [starts[job_id][1]["at"] for job_id in ids if len(starts.get(job_id, [])) > 1]


def kill_one_of_two(fleet: Fleet, count: int, within: float, **settings: Any) -> None:
    """SIGKILL a process with *count* jobs running; all start in the other one in time."""
    victim = fleet.start(slots=count, **settings)
    killed = ids_of("killed", count)
    enqueue_many(fleet.engine, fleet.app.hold, [60.0] * count, ids=killed)
    fleet.wait_for_starts(count, victim)
    other = fleet.start(slots=count, **settings)

    at = time.monotonic()
    victim.kill()
    wait_until(lambda: len(second_starts(fleet, killed)) == count, 30, what="the second starts")
    took = [start - at for start in second_starts(fleet, killed)]
    fleet.wait_until_done()

    print(f"{count} killed jobs started elsewhere after {min(took):.2f} to {max(took):.2f} s")
    assert max(took) < within
    assert sorted(set(fleet.started_by(other))) == killed
    assert {len(lines) for lines in fleet.journal.starts().values()} == {2}
    fleet.check(killed, with_effects=killed, faults=1)
    assert fleet.workers == 1


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_jobs_of_a_killed_process_start_elsewhere_within_5_s(fleet: Fleet) -> None:
    """At the default settings: the listener's session ends with the process, and is missed."""
    kill_one_of_two(fleet, 10, within=5.0)


@pytest.mark.chaos
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("way", ["direct", "through a pooler"])
def test_twenty_kills_with_fifty_running(fleet: Fleet, server: TestServer, way: str) -> None:
    """At the default settings. Behind a pooler nobody can listen, and silence alone tells."""
    count = 50
    took: list[float] = []
    with ExitStack() as stack:
        options: dict[str, Any] = {"slots": count}
        if way != "direct":
            pooler = stack.enter_context(PgBouncer(server.url, pool_size=80))
            url = pooler.url(fleet.engine.url.render_as_string(hide_password=False))
            options |= {"url": url, "pooled": True, "listen": False}
        victim = fleet.start(**options)
        for n in range(20):
            killed = ids_of(f"kill-{n:02}", count)
            before = len(fleet.started_by(victim))
            enqueue_many(fleet.engine, fleet.app.hold, [120.0] * count, ids=killed)
            fleet.wait_for_starts(before + count, victim)
            survivor = fleet.start(**options)
            at = time.monotonic()
            victim.kill()
            wait_until(
                lambda killed=killed: len(second_starts(fleet, killed)) == count,
                60,
                what="the second starts",
            )
            took += [start - at for start in second_starts(fleet, killed)]
            fleet.wait_until_done()
            victim = survivor

    print(
        f"{len(took)} jobs of 20 killed workers started elsewhere, {way}: "
        f"median {statistics.median(took):.2f} s, worst {max(took):.2f} s"
    )
    assert max(took) < (5.0 if way == "direct" else 40.0)
    fleet.check([*fleet.journal.starts()], with_effects=[*fleet.journal.starts()], faults=1)


def test_a_job_without_memory_fails_alone(fleet: Fleet) -> None:
    """MemoryError is a failed attempt like any other; the worker goes on within its limit."""
    process = fleet.start(slots=4)
    ids = ids_of("good", 40)
    enqueue(fleet.engine, fleet.app.greedy, 200, id="greedy")
    enqueue_many(fleet.engine, fleet.app.effect, [None] * len(ids), ids=ids)
    fleet.wait_until_done()

    assert process.alive
    dead = fleet.rows("SELECT job_id, attempt, last_error FROM bgjob_dead_job")
    assert [(row.job_id, row.attempt) for row in dead] == [("greedy", 2)]
    assert dead[0].last_error.startswith("MemoryError")
    fleet.check([*ids, "greedy"], with_effects=ids)


def test_a_polling_worker_that_was_killed_is_found_silent(fleet: Fleet) -> None:
    """Without a listening session the heartbeat alone tells, after lease_timeout."""
    kill_one_of_two(fleet, 4, within=6.0, **FAST, listen=False)


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_jobs_behind_a_dead_network_run_elsewhere(fleet: Fleet) -> None:
    """Nothing is closed and nothing answers; later the worker goes on under a new id."""
    ids = ids_of("held", 4)
    with Proxy(fleet.engine.url.render_as_string(hide_password=False)) as proxy:
        away = fleet.start(url=proxy.url, slots=4, **FAST)
        enqueue_many(fleet.engine, fleet.app.hold, [600.0] * 4, ids=ids)
        fleet.wait_for_starts(4, away)
        other = fleet.start(slots=4, **FAST)

        proxy.blackhole()
        at = time.monotonic()
        fleet.wait_until_done()
        took = time.monotonic() - at
        proxy.pass_on()
        fleet.journal.release()
        wait_until(lambda: fleet.journal.count("lease_lost") == 4, 30, what="lease_lost of each")
        fleet.wait_for(away)

    print(f"jobs behind a dead network completed elsewhere after {took:.1f} s")
    assert took < 10.0
    fleet.check(ids, with_effects=ids, faults=1)
    assert {line["pid"] for line in fleet.journal.read("completed")} == {other.pid}
    assert {len(lines) for lines in fleet.journal.starts().values()} == {2}


@pytest.mark.parametrize(
    ("point", "arrives"),
    [
        # Others end there without a proxy: test_faults.py.
        ("own settlement", True),
        *(
            pytest.param(*others, marks=pytest.mark.chaos)
            for others in (
                ("own settlement", False),
                ("claim", True),
                ("claim", False),
                ("settlement", True),
                ("settlement", False),
                ("move to the DLQ", True),
                ("move to the DLQ", False),
            )
        ),
    ],
)
def test_a_process_is_killed_at_a_commit(fleet: Fleet, point: str, arrives: bool) -> None:
    """Between a COMMIT and its answer, wherever that is: nothing is lost, or done by halves."""
    job = {
        "claim": fleet.app.effect,
        "settlement": fleet.app.quick,
        "own settlement": fleet.app.effect,
        "move to the DLQ": fleet.app.give_up,
    }[point]
    with Proxy(fleet.engine.url.render_as_string(hide_password=False)) as proxy:
        if not arrives:
            fleet.claim_in_transactions()
        # It dies by the kill alone, not for a heartbeat that was late on a busy machine.
        victim = fleet.start(url=proxy.url, **(FAST | {"lease_timeout": 10.0}))
        if point == "claim":
            proxy.cut_commit("effect", sent_by="server", arrives=arrives, hangs=True)
        else:
            # Words that no other statement holds: the job's id may be in a hand-back's, too.
            words = {"own settlement": "INSERT INTO effect", "move to the DLQ": "given up"}
            marker = words.get(point, "the-one")
            proxy.cut_commit(marker, sent_by="client", arrives=arrives, hangs=True)
        enqueue(fleet.engine, job, id="the-one")
        wait_until(lambda: proxy.cuts == 1, what="the COMMIT")
        victim.kill()
        fleet.start(**FAST)
        fleet.wait_until_done()

    dead = fleet.rows("SELECT job_id FROM bgjob_dead_job")
    assert [row.job_id for row in dead] == (["the-one"] if point == "move to the DLQ" else [])
    assert fleet.effects() == ({"the-one": 1} if job is fleet.app.effect else {})
    starts = fleet.journal.starts()["the-one"]
    once = point == "claim" or arrives
    assert len(starts) == (1 if once else 2), starts
    fleet.check(["the-one"], faults=1)


@pytest.mark.parametrize(
    ("arrives", "killed"),
    [
        (False, True),
        pytest.param(True, True, marks=pytest.mark.chaos),
        pytest.param(False, False, marks=pytest.mark.chaos),
        pytest.param(True, False, marks=pytest.mark.chaos),
    ],
)
def test_a_sweep_that_is_cut_short_is_made_again(fleet: Fleet, arrives: bool, killed: bool) -> None:
    """At its COMMIT the rescuer dies, or loses its connection: another one, or it, repairs."""
    ids = ids_of("held", 4)
    settings = FAST | {"lease_timeout": 4.0}
    victim = fleet.start(slots=4, **settings)
    enqueue_many(fleet.engine, fleet.app.hold, [60.0] * 4, ids=ids)
    fleet.wait_for_starts(4, victim)
    with Proxy(fleet.engine.url.render_as_string(hide_password=False)) as proxy:
        rescuer = fleet.start(url=proxy.url, slots=4, **settings)
        proxy.cut_commit("WorkerLost", sent_by="client", arrives=arrives, hangs=killed)
        victim.kill()
        wait_until(lambda: proxy.cuts == 1, what="the COMMIT of the sweep")
        if killed:
            rescuer.kill()
            fleet.start(slots=4, **settings)
        wait_until(lambda: len(second_starts(fleet, ids)) == 4, 30, what="the second starts")
        fleet.wait_until_done()

    fleet.check(ids, with_effects=ids, faults=2)


@pytest.mark.parametrize(
    "variant", [ASYNC, pytest.param(THREADS, marks=pytest.mark.chaos)], ids=str
)
def test_a_handler_that_is_busy_for_long_keeps_its_lease(fleet: Fleet) -> None:
    """Also one that blocks the event loop: the heart has a thread and a loop of its own."""
    busy = fleet.start(slots=1, **FAST)
    enqueue(fleet.engine, fleet.app.block, 3 * FAST["lease_timeout"], id="busy")
    fleet.wait_for_starts(1, busy)
    fleet.start(slots=1, **FAST)
    fleet.wait_until_done()

    assert fleet.started_by(busy) == ["busy"]
    assert fleet.journal.count("start") == 1
    assert fleet.journal.count("lease_lost") == 0


@pytest.mark.chaos
@pytest.mark.parametrize("variant", TWO, ids=str)
def test_a_handler_that_lets_nobody_run_loses_its_lease(fleet: Fleet) -> None:
    """C code that holds the GIL: it runs elsewhere, and its effect is there once."""
    for _ in range(2):
        fleet.start(slots=1, **FAST)
    # Both are connected for as long as a judge must be.
    known = time.monotonic()
    wait_until(lambda: time.monotonic() - known > FAST["lease_timeout"], what="a lease's time")
    enqueue(fleet.engine, fleet.app.hog, 4 * FAST["lease_timeout"], id="hog")
    fleet.wait_until_done()
    wait_until(lambda: fleet.journal.count("lease_lost") == 1, 30, what="job_lease_lost")

    first, second = (line["pid"] for line in fleet.journal.read("start"))
    assert first != second
    fleet.check(["hog"], with_effects=["hog"], faults=1)
    assert [line["pid"] for line in fleet.journal.read("completed")] == [second]


def freeze_one_of_two(
    fleet: Fleet, *, settings: dict[str, Any], held: int = 5
) -> tuple[WorkerProcess, WorkerProcess, list[str], float]:
    """SIGSTOP a process while its jobs run, the other one beating on."""
    frozen = fleet.start(slots=held * 2, **settings)
    ids = ids_of("held", held) + ids_of("nap", held)
    enqueue_many(fleet.engine, fleet.app.hold, [600.0] * held, ids=ids[:held])
    enqueue_many(fleet.engine, fleet.app.nap, [600.0] * held, ids=ids[held:])
    fleet.wait_for_starts(held * 2, frozen)
    other = fleet.start(slots=held * 2, **settings)
    frozen.signal(signal.SIGSTOP)
    return frozen, other, ids, time.monotonic()


def frozen_and_rescued(
    fleet: Fleet, *, settings: dict[str, Any], within: float, freeze: float = 0.0
) -> None:
    """All jobs of a frozen process complete elsewhere; when it goes on, nothing changes."""
    frozen, other, ids, at = freeze_one_of_two(fleet, settings=settings)

    fleet.wait_until_done(within + 30)
    took = time.monotonic() - at

    print(f"jobs of a frozen process completed elsewhere after {took:.1f} s")
    assert took < within
    assert sorted(fleet.started_by(other)) == sorted(ids)
    held = [job_id for job_id in ids if job_id.startswith("held")]
    assert fleet.effects() == dict.fromkeys(held, 1)

    # An own id lives again: the frozen process must not touch its second life.
    enqueue(fleet.engine, fleet.app.late, 600.0, id=ids[0])
    wait_until(lambda: fleet.claimed_by(other) == [ids[0]], what="the claim of the second life")
    wait_until(lambda: time.monotonic() - at >= freeze, freeze + 5, what="the freeze's end")
    before = fleet.rows(STATE)
    workers = fleet.workers
    fleet.journal.release()
    frozen.signal(signal.SIGCONT)
    lost = lambda: fleet.journal.count("lease_lost")  # noqa: E731
    wait_until(lambda: lost() == len(ids), 30, what="lease_lost of each of its jobs")
    fleet.wait_for(frozen)  # it is a worker again, under another id

    assert fleet.rows(STATE) == before
    assert fleet.workers == workers + 1
    completed = [line["id"] for line in fleet.journal.read("completed")]
    assert sorted(completed) == sorted(ids)
    assert {line["pid"] for line in fleet.journal.read("completed")} == {other.pid}


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_jobs_of_a_frozen_process_complete_elsewhere(fleet: Fleet) -> None:
    """Row locks of its handlers block nobody: the rescuer ends its sessions."""
    frozen_and_rescued(fleet, settings=FAST, within=10.0)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", TWO, ids=str)
def test_a_freeze_of_a_minute_at_default_settings(fleet: Fleet) -> None:
    """The same at the defaults: within 40 seconds."""
    frozen_and_rescued(fleet, settings={}, within=40.0, freeze=60.0)


def frozen_and_kept(fleet: Fleet, *, seconds: float, settings: dict[str, Any]) -> None:
    """A freeze shorter than the lease rescues nothing."""
    frozen, other, ids, at = freeze_one_of_two(fleet, settings=settings)
    beats = "SELECT beat_at FROM bgjob_worker WHERE pid = :pid"
    last = fleet.scalar(beats, pid=frozen.pid)

    wait_until(lambda: time.monotonic() - at >= seconds, seconds + 5, what="the freeze's end")
    assert fleet.scalar(beats, pid=frozen.pid) == last, "it was not frozen"
    assert fleet.claimed_by(frozen) == sorted(ids)
    assert fleet.scalar("SELECT max(crashes) FROM bgjob_job") == 0
    frozen.signal(signal.SIGCONT)
    fleet.journal.release()
    fleet.wait_until_done()

    assert fleet.started_by(other) == []
    fleet.check(ids, with_effects=[id for id in ids if id.startswith("held")])
    assert {len(lines) for lines in fleet.journal.starts().values()} == {1}
    assert fleet.journal.count("lease_lost") == 0


@pytest.mark.parametrize("variant", ONE, ids=str)
def test_a_short_freeze_rescues_nothing(fleet: Fleet) -> None:
    """Its sessions are there, and its last beat is younger than the lease."""
    settings = {**FAST, "lease_timeout": 8.0, "heartbeat_interval": 0.5}
    frozen_and_kept(fleet, seconds=3.0, settings=settings)


@pytest.mark.chaos
@pytest.mark.timeout(300)
@pytest.mark.parametrize("variant", TWO, ids=str)
def test_a_freeze_of_fifteen_seconds_at_default_settings(fleet: Fleet) -> None:
    """The same at the defaults."""
    frozen_and_kept(fleet, seconds=15.0, settings={})


def poisoned(
    fleet: Fleet, *, max_attempts: int, good: int, how: Crash | None = None, **settings: Any
) -> None:
    """One job kills its process; two processes are started again as often as they die."""
    ids = ids_of("good", good)
    enqueue_many(fleet.engine, fleet.app.effect, [None] * (good // 2), ids=ids[: good // 2])
    enqueue(fleet.engine, fleet.app.crash, how, id="poison")
    enqueue_many(fleet.engine, fleet.app.effect, [None] * (good - good // 2), ids=ids[good // 2 :])
    began = time.monotonic()
    fleet_of_two = [
        fleet.start(crash_attempts=max_attempts, wait=False, **settings) for _ in range(2)
    ]

    def ended() -> bool:
        for n, process in enumerate(fleet_of_two):
            if not process.alive:
                fleet_of_two[n] = fleet.start_again(process)
        return fleet.jobs_left == 0

    wait_until(ended, 60.0 * max_attempts, what="the end of all jobs, the poison one included")

    print(f"poison job dead after {time.monotonic() - began:.1f} s and {max_attempts} starts")
    starts = fleet.journal.starts()
    assert [line["attempt"] for line in starts.pop("poison")] == list(range(1, max_attempts + 1))
    assert sorted(starts) == ids
    worst = max(line["attempt"] for lines in starts.values() for line in lines)
    print(f"most attempts of a good job: {worst}")
    assert worst <= 5
    assert fleet.effects() == dict.fromkeys(ids, 1)
    dead = fleet.rows("SELECT job_id, attempt, last_error FROM bgjob_dead_job")
    assert [(row.job_id, row.attempt) for row in dead] == [("poison", max_attempts)]
    assert dead[0].last_error.startswith(f"WorkerLost: {max_attempts} of {max_attempts} ")


@pytest.mark.parametrize(
    ("how", "most"),
    [
        (None, 2),
        pytest.param(None, 4, marks=pytest.mark.chaos),
        pytest.param("exit at once", 4, marks=pytest.mark.chaos),
        pytest.param("segmentation fault", 4, marks=pytest.mark.chaos),
    ],
)
def test_a_job_that_kills_its_process_dies_alone(
    fleet: Fleet, how: Crash | None, most: int
) -> None:
    """It is dead after exactly max_attempts starts, and its neighbours complete."""
    poisoned(fleet, max_attempts=most, good=100, how=how, **FAST)


@pytest.mark.chaos
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("variant", TWO, ids=str)
def test_a_job_that_kills_its_process_twenty_times(fleet: Fleet) -> None:
    """The same at the default settings and the default max_attempts."""
    poisoned(fleet, max_attempts=20, good=100)
