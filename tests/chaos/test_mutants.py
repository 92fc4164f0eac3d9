"""Workers that are broken on purpose, each under the fault that brings it out.

Each scenario first runs as it is, and the checker must find nothing; then with each mutant, and it
must object.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sqlalchemy_bgjob import Unique, enqueue, enqueue_many
from support import wait_until
from support.changes import HELD, change, changed, commit
from support.mutants import MUTANTS
from support.processes import FAST
from support.proxy import Proxy

if TYPE_CHECKING:
    from sqlalchemy_bgjob import JobType
    from support.processes import Fleet

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(120)]

IDS = ["job-0", "job-1", "job-2"]


def wait_for_end(fleet: Fleet, seconds: float = 15.0) -> None:
    """Until no job is left, if it comes to that."""
    with contextlib.suppress(AssertionError):
        fleet.wait_until_done(seconds)


def frozen(fleet: Fleet, mutant: str | None) -> list[str]:
    """A worker is frozen for longer than its lease, and goes on while another one is at work."""
    away = fleet.start(slots=3, mutant=mutant, **FAST)
    # There for longer than the time for which it must have been connected to judge.
    enqueue_many(fleet.engine, fleet.app.held_late, [3.0] * 3, ids=IDS)
    fleet.wait_for_starts(3, away)
    other = fleet.start(slots=3, mutant=mutant, **FAST)
    away.signal(signal.SIGSTOP)
    fleet.wait_for_starts(3, other)
    fleet.journal.release()
    away.signal(signal.SIGCONT)
    wait_for_end(fleet)
    fleet.wait_for(away)
    for process in (away, other):
        process.signal(signal.SIGTERM)
        process.wait()
    return fleet.problems(IDS, with_effects=IDS, faults=1)


def killed_within_a_settlement(fleet: Fleet, mutant: str | None) -> list[str]:
    """It was written, and not committed."""
    victim = fleet.start(slots=1, dies_after="write", mutant=mutant, **FAST)
    enqueue(fleet.engine, fleet.app.effect, id="job-0")
    victim.dies()
    fleet.start(slots=1, **FAST)
    wait_for_end(fleet)
    return fleet.problems(["job-0"], with_effects=["job-0"], faults=1)


def two_at_work(fleet: Fleet, mutant: str | None) -> list[str]:
    """Nothing happens to either, for longer than a lease."""
    first = fleet.start(slots=3, **FAST)
    enqueue_many(fleet.engine, fleet.app.nap, [60.0] * 3, ids=IDS)
    fleet.wait_for_starts(3, first)
    fleet.start(slots=3, mutant=mutant, **FAST)
    with contextlib.suppress(AssertionError):
        wait_until(lambda: fleet.journal.count("start") > 3, 5)
    fleet.journal.release()
    wait_for_end(fleet)
    return fleet.problems(IDS)


def answer_lost(fleet: Fleet, mutant: str | None) -> list[str]:
    """The answer to a claim's COMMIT is lost, and the worker lives."""
    with Proxy(fleet.engine.url.render_as_string(hide_password=False)) as proxy:
        fleet.start(url=proxy.url, mutant=mutant, **FAST)
        proxy.cut_commit("quick", sent_by="server")
        enqueue_many(fleet.engine, fleet.app.quick, [None] * 3, ids=IDS)
        wait_for_end(fleet, 8)
        assert proxy.cuts == 1
        return fleet.problems(IDS)


def stopped(fleet: Fleet, mutant: str | None) -> list[str]:
    """A worker is told to end and has no time to drain; another one goes on."""
    first = fleet.start(slots=3, mutant=mutant, shutdown_timeout=0.2, **FAST)
    enqueue_many(fleet.engine, fleet.app.nap, [4.0] * 3, ids=IDS)
    fleet.wait_for_starts(3, first)
    first.signal(signal.SIGTERM)
    first.wait()
    fleet.start(slots=3, **FAST)
    wait_for_end(fleet)
    return fleet.problems(IDS, faults=1)


def row_locked(fleet: Fleet, mutant: str | None) -> list[str]:
    """Somebody holds a lock on the first job, and the others are to be done all the same."""
    enqueue(fleet.engine, fleet.app.quick, id="held", priority=-1)
    with fleet.engine.begin() as connection:
        connection.execute(text("SELECT id FROM bgjob_job WHERE id = 'held' FOR UPDATE"))
        fleet.start(mutant=mutant, **FAST)
        enqueue_many(fleet.engine, fleet.app.quick, [None] * 3, ids=IDS)
        with contextlib.suppress(AssertionError):
            wait_until(lambda: fleet.jobs_left == 1, 5)
        return fleet.problems(IDS, told_within=1.0)


def poison(fleet: Fleet, mutant: str | None) -> list[str]:
    """A job kills its worker; after two attempts it is dead."""
    enqueue(fleet.engine, fleet.app.crash, id="crash")
    for _ in range(4):
        # Not waited for: it may be dead before anybody has seen it.
        process = fleet.start(crash_attempts=2, mutant=mutant, wait=False, **FAST)
        wait_until(lambda process=process: fleet.jobs_left == 0 or not process.alive, 20)
        if process.alive:
            break
        process.dies()
    return fleet.problems(["crash"], faults=1)


def a_second_life(fleet: Fleet, mutant: str | None) -> list[str]:
    """An id is enqueued again after its end."""
    if mutant is not None:
        with fleet.engine.begin() as connection:
            connection.execute(text("ALTER TABLE bgjob_job ALTER lease SET DEFAULT 0"))
    fleet.start(**FAST)
    for _ in range(2):
        enqueue(fleet.engine, fleet.app.effect, id="job-0")
        fleet.wait_until_done()
    return fleet.problems(["job-0"], with_effects=["job-0"], lives=2)


def two_schedulers(fleet: Fleet, mutant: str | None) -> list[str]:
    """Two workers have a schedule of each second in their code; none works for three seconds."""
    away = "SELECT next_at < now() - interval '3 s' FROM bgjob_schedule"
    for count in (3, 7):
        workers = [fleet.start(schedule=True, mutant=mutant, **FAST) for _ in range(2)]
        wait_until(lambda count=count: len(fleet.fire_times("tick")) >= count, 30)
        if count == 3:
            for worker in workers:
                worker.kill()
            wait_until(lambda: fleet.scalar(away), 30)
    return fleet.schedule_problems("tick", faults=2)


def cancelled_and_killed(fleet: Fleet, mutant: str | None) -> list[str]:
    """A running job is cancelled while its worker is frozen; then the worker is killed."""
    victim = fleet.start(slots=3, mutant=mutant, **FAST)
    enqueue_many(fleet.engine, fleet.app.wait, [60.0] * 3, ids=IDS)
    fleet.wait_for_starts(3, victim)
    victim.signal(signal.SIGSTOP)
    assert fleet.app.jobs.cancel(fleet.engine, "job-0") == "asked"
    victim.kill()
    other = fleet.start(slots=3, mutant=mutant, **FAST)
    fleet.wait_for_starts(2, other)
    fleet.journal.release()
    wait_for_end(fleet)
    return fleet.problems(IDS, faults=1)


def too_late(fleet: Fleet, mutant: str | None) -> list[str]:
    """Two jobs have expired when a worker comes, one to be dropped and one to be dead."""
    for id, handler, seconds in (
        ("job-0", fleet.app.drop, 0.1),
        ("job-1", fleet.app.quick, 0.1),
        ("job-2", fleet.app.drop, 3600),
    ):
        enqueue(fleet.engine, handler, id=id, expires=seconds)
    late = "SELECT count(*) = 2 FROM bgjob_job WHERE expires_at < now()"
    wait_until(lambda: fleet.scalar(late))
    fleet.start(mutant=mutant, **FAST)
    wait_for_end(fleet)
    return fleet.problems(IDS)


def paused(fleet: Fleet, mutant: str | None) -> list[str]:
    """Jobs come while their queue is paused, and the worker has seen it."""
    fleet.start(mutant=mutant, **FAST)
    waits = "SELECT bool_or(CAST(waits_for AS jsonb) ? 'default') FROM bgjob_worker"
    wait_until(lambda: fleet.scalar(waits))
    fleet.app.jobs.pause(fleet.engine, "default")
    with contextlib.suppress(AssertionError):
        wait_until(lambda: not fleet.scalar(waits), 5)
    seen = time.monotonic()
    enqueue_many(fleet.engine, fleet.app.quick, [None] * 3, ids=IDS)
    wait_for_end(fleet, 1.0)
    ended = time.monotonic()
    fleet.app.jobs.resume(fleet.engine, "default")
    wait_for_end(fleet)
    return fleet.problems(IDS, pauses=[(seen, ended)])


def changed_while_it_runs(fleet: Fleet, mutant: str | None) -> list[str]:
    """A caller changes something, and the job that would see it has looked already."""
    fleet.start(slots=2, mutant=mutant, **FAST)
    ids = [changed(fleet.engine, fleet.app.see, fleet.journal, HELD)]
    wait_until(lambda: fleet.journal.count("saw") == 1)
    ids.append(changed(fleet.engine, fleet.app.see, fleet.journal, HELD))
    fleet.journal.release()
    wait_for_end(fleet)
    return fleet.problems(set(ids))


def changed_before_the_commit(fleet: Fleet, mutant: str | None) -> list[str]:
    """A caller is told that the job is there, and commits what it is to see a while later."""
    see, unique = fleet.app.see, Unique("k", "queued")
    with contextlib.ExitStack() as broken:
        if mutant is not None:
            MUTANTS[mutant](broken)
        ids = [changed(fleet.engine, see, fleet.journal, "k")]
        with fleet.engine.connect() as caller:
            number, ref = change(caller, see, "k", unique)
            fleet.start(**FAST)
            wait_for_end(fleet, 2)
            commit(caller, fleet.journal, [("k", number, ref)])
    wait_for_end(fleet)
    return fleet.problems({*ids, ref.id})


def batch_of(fleet: Fleet, handler: JobType[None], ids: list[str]) -> str:
    """Enqueue jobs as a batch; the id of the job that follows."""
    app = fleet.app
    with (
        fleet.engine.begin() as connection,
        app.jobs.batch(connection, then=app.quick.job()) as batch,
    ):
        enqueue_many(connection, handler, [None] * len(ids), ids=ids, batch=batch)
    assert batch.then_id is not None
    return batch.then_id


def completed(fleet: Fleet, id: str) -> bool:
    return any(line["id"] == id for line in fleet.journal.read("completed"))


def batch_at_work(fleet: Fleet, mutant: str | None) -> list[str]:
    """The jobs of a batch end one by one, and the leader does not look meanwhile."""
    fleet.start(slots=1, mutant=mutant, health_interval=3600.0, **FAST)
    follower = batch_of(fleet, fleet.app.quick, IDS)
    with contextlib.suppress(AssertionError):
        wait_until(lambda: completed(fleet, follower), 10)
    return fleet.problems([*IDS, follower], told_within=1.0)


def batch_with_a_late_end(fleet: Fleet, mutant: str | None) -> list[str]:
    """A job of a batch is redriven after the end of the one that follows, and dies again."""
    worker = fleet.start(mutant=mutant, **FAST)
    follower = batch_of(fleet, fleet.app.give_up, ["job-0"])
    wait_until(lambda: completed(fleet, follower), 30)
    fleet.app.jobs.redrive(fleet.engine, fleet.app.jobs.DeadJob.job_id == "job-0")
    wait_until(lambda: fleet.journal.count("dead") == 2, 30)
    worker.signal(signal.SIGTERM)
    worker.wait()  # it has looked then
    return fleet.problems([follower], told_within=1.0)


EACH: list[tuple[Any, str, str]] = [
    (frozen, "fence_by_id_alone", r"lease \d+ ended it, and \d+ had been started"),
    (frozen, "claim_without_a_new_lease", r"went to \d+ without a new lease"),
    (frozen, "rescue_without_a_new_lease", r"went to None without a new lease"),
    (frozen, "stale_is_taken_for_settled", r"ended 2 times"),
    (frozen, "an_unfenced_session", r"2 effects instead of 1"),
    (
        killed_within_a_settlement,
        "settled_outside_the_handler_s_transaction",
        r"2 effects instead of 1",
    ),
    (killed_within_a_settlement, "observers_before_the_commit", r"ended 2 times"),
    (two_at_work, "a_beating_worker_is_rescued", r"started 2 times with 0 failures and 0 faults"),
    (
        two_at_work,
        "a_beat_is_old_when_it_is_first_seen",
        r"started 2 times with 0 failures and 0 faults",
    ),
    (two_at_work, "claims_what_is_claimed", r"was taken by \d+"),
    (answer_lost, "a_lost_claim_is_forgotten", r"committed, and never started"),
    (stopped, "hand_back_without_a_new_lease", r"went to None without a new lease"),
    (stopped, "a_release_deletes", r"gone, and completed 0 times"),
    (row_locked, "claims_wait_for_locks", r"committed, and never started"),
    (poison, "a_crash_costs_nothing", r"started [34] times with 0 failures and 1 faults"),
    (
        poison,
        "spent_attempts_are_not_looked_at",
        r"started [34] times with 0 failures and 1 faults",
    ),
    (two_schedulers, "fires_whatever_it_has_seen", r"fired 2 times for"),
    (two_schedulers, "forgets_what_was_missed", r"never fired for"),
    (
        cancelled_and_killed,
        "a_cancel_is_forgotten",
        r"cancelled under lease \d+, and started under \d+",
    ),
    (
        too_late,
        "expiry_is_not_looked_at",
        r"started with lease \d+, by which it was claimed too late",
    ),
    (too_late, "all_that_has_a_limit_has_expired", r"ended as expired .*, and was not too late"),
    (paused, "a_pause_is_not_seen", r"started in a pause"),
    (a_second_life, "leases_begin_anew", r"inserted with lease 0, which is not new"),
    (changed_while_it_runs, "claims_keep_the_key", r"committed, and no run has seen it"),
    (changed_before_the_commit, "told_without_a_lock", r"committed, and no run has seen it"),
    (batch_at_work, "looks_at_batches_before_the_commit", r":then: committed, and never started"),
    (
        batch_with_a_late_end,
        "finishes_what_is_finished",
        r":then: (not ended|started 2 times with 0 failures and 0 faults)",
    ),
]
SCENARIOS = list(dict.fromkeys(scenario for scenario, _, _ in EACH))


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_the_worker_as_it_is_passes(fleet: Fleet, scenario: Any) -> None:
    assert scenario(fleet, None) == []


@pytest.mark.parametrize(
    ("scenario", "mutant", "objection"), EACH, ids=[mutant for _, mutant, _ in EACH]
)
def test_each_mutant_is_rejected(fleet: Fleet, scenario: Any, mutant: str, objection: str) -> None:
    problems = scenario(fleet, mutant)

    assert any(re.search(objection, problem) for problem in problems), problems


def test_no_mutant_is_left_out() -> None:
    assert {mutant for _, mutant, _ in EACH} == {*MUTANTS, "leases_begin_anew"}
