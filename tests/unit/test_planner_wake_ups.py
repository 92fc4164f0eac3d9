"""A producer wakes some of the workers that wait: when a worker wakes another one in its place."""

from __future__ import annotations

import pytest

from sqlalchemy_bgjob._worker.plan.planner import Planner
from sqlalchemy_bgjob._worker.plan.polling import MANY, SPARED, SPARED_POLL
from sqlalchemy_bgjob._worker.plan.queue import AHEAD
from sqlalchemy_bgjob._worker.plan.steps import Announce, Claim, Finished, PassOn, Settle, Wait
from sqlalchemy_bgjob.settings import WorkerSettings
from support.planning import NOW, busy, caught_up, claim_all, core, done, jobs, start_all, step

LONG = 60.0


def full(slots: int = 2, *, mean: float | None = None) -> Planner:
    """A worker whose producers notify it, and whose slots are all taken."""
    worker = core(slots)
    caught_up(worker)
    if mean is not None:
        (one,) = jobs(1)
        claim_all(worker, [one])
        start_all(worker)
        worker.finished(one, mean)
    claim_all(worker, jobs(slots))
    start_all(worker)
    return worker


def assert_passed_on(worker: Planner, queue: str = "q") -> None:
    """The next step wakes another worker, and is done."""
    assert step(worker) == PassOn((queue,))
    worker.passed_on((queue,))


def pass_on_twice(worker: Planner, queue: str = "q") -> None:
    for _ in range(2):
        worker.wake(queue, NOW, new=True, others=3)
        assert_passed_on(worker, queue)


def test_a_full_worker_wakes_another() -> None:
    worker = full()

    worker.wake("q", NOW, new=True, others=3)

    assert_passed_on(worker)
    assert isinstance(step(worker), Wait), "once"


def test_a_worker_that_passes_on_again_waits_no_more() -> None:
    """To say so for a single wake-up would cost more than to pass that on."""
    worker = full()

    pass_on_twice(worker)

    assert step(worker) == Announce(())
    worker.announced(())
    assert isinstance(step(worker), Wait)


def test_each_wake_up_is_passed_on() -> None:
    """The next one may be of a job that the woken worker could not see yet."""
    worker = full()
    pass_on_twice(worker)
    worker.announced(())
    for _ in range(3):
        worker.wake("q", NOW, new=True, others=3)
        assert_passed_on(worker)


def test_a_wake_up_during_a_claim_that_fills_it_is_passed_on() -> None:
    """Nobody asked for the claim, and the worker has no room for what the wake-up is about."""
    worker = core(2)
    caught_up(worker)
    worker.claim_sent("q", NOW)

    worker.wake("q", NOW, new=True, others=3)
    worker.claimed("q", jobs(2), NOW)
    worker.polled("q", 2, 2, None, NOW, listening=True)
    start_all(worker)

    assert_passed_on(worker)


def test_a_full_claim_is_passed_on_though_another_claim_follows() -> None:
    """Short jobs are claimed ahead, before there is time to tell anybody."""
    worker = core(2)
    caught_up(worker)
    worker.wake("q", NOW, new=True, others=3)
    for _ in range(2):
        worker.claim_sent("q", NOW)
        worker.claimed("q", jobs(2), NOW)
        worker.polled("q", 2, 2, None, NOW, listening=True)
    start_all(worker)

    assert_passed_on(worker)


def test_a_worker_that_may_start_nothing_passes_on() -> None:
    """As it has not beaten lately, or no thread can be made."""
    worker = core(2)
    caught_up(worker)

    worker.wake("q", NOW, new=True, others=1)

    assert step(worker, may_start=False) == PassOn(("q",))


def test_where_nobody_else_waits_a_full_worker_keeps_it() -> None:
    worker = full()

    worker.wake("q", NOW, new=True, others=0)

    assert isinstance(step(worker), Wait)
    worker.finished(jobs(1)[0], LONG)
    assert isinstance(step(worker), Claim), "as soon as a slot is free"


def test_a_worker_of_short_jobs_keeps_it() -> None:
    """A slot is free before another worker would have come."""
    worker = full(mean=AHEAD / 2)

    worker.wake("q", NOW, new=True, others=3)

    assert not isinstance(step(worker), PassOn)


def test_it_waits_again_once_it_has_found_nothing() -> None:
    worker = full()
    pass_on_twice(worker)
    worker.announced(())
    worker.finished(jobs(1)[0], LONG)
    assert isinstance(step(worker), Claim)

    worker.claim_sent("q", NOW, from_head=True)
    worker.head_scanned("q", [0], 0.0, NOW)
    worker.polled("q", 1, 0, None, NOW, listening=True)

    assert step(worker) == Announce(("q",))


@pytest.mark.parametrize(("found", "passes_on"), [(2, True), (1, False), (0, False)])
def test_a_claim_that_took_all_it_could_wakes_another(found: int, *, passes_on: bool) -> None:
    """There may be more, and one worker would take it in turns."""
    worker = core(2)
    caught_up(worker)
    worker.wake("q", NOW, new=True, others=3)
    assert isinstance(step(worker), Claim)

    worker.claim_sent("q", NOW)
    worker.claimed("q", jobs(found), NOW)
    worker.polled("q", 2, found, None, NOW, listening=True)
    start_all(worker)

    assert (step(worker) == PassOn(("q",))) is passes_on


def test_a_full_claim_that_no_wake_up_asked_for_wakes_nobody() -> None:
    worker = core(2)
    caught_up(worker)
    worker.wake("q", NOW, new=True, others=3)
    worker.claim_sent("q", NOW)
    worker.polled("q", 2, 1, None, NOW, listening=True)

    claim_all(worker, jobs(2))
    start_all(worker)

    assert not isinstance(step(worker), PassOn)


def test_a_queue_that_rests_is_left_to_others() -> None:
    """Its jobs find no connection here, or the database refuses this worker's claims."""
    worker = core(2)
    caught_up(worker)
    worker.refused("q", NOW + LONG, NOW)

    pass_on_twice(worker)

    assert step(worker) == Announce(())


def test_queues_with_free_slots_go_on_waiting() -> None:
    two = Planner({"a": 1, "b": 1}, WorkerSettings())
    caught_up(two, "a", "b")
    claim_all(two, jobs(1, queue="a"), queue="a")
    start_all(two)

    pass_on_twice(two, "a")

    assert step(two) == Announce(("b",))


def test_a_draining_worker_is_woken_no_more() -> None:
    """It says so before its jobs end, and leaves to others what woke it meanwhile."""
    worker, running = busy(2)
    worker.finished(running[0], LONG)
    caught_up(worker)
    worker.draining = True

    assert step(worker) == Announce(())
    worker.announced(())
    worker.wake("q", NOW, new=True, others=1)
    assert_passed_on(worker)
    worker.finished(running[1], LONG)
    worker.settle(item := done(running[1]), NOW)
    assert step(worker) == Settle((item,))
    assert step(worker) == Finished()


def test_an_idle_worker_that_ends_says_nothing_more() -> None:
    """Its row goes away, and those who wait are told of what may have woken it."""
    worker = core(2)
    caught_up(worker)
    worker.draining = True

    assert step(worker) == Finished()


def test_a_worker_that_hears_no_more_is_woken_no_more() -> None:
    """Else it would be one of the two that a job wakes."""
    worker = core(2)
    caught_up(worker)

    worker.polled("q", 2, 0, None, NOW, listening=False)

    assert step(worker) == Announce(())
    worker.announced(())
    worker.polled("q", 2, 0, None, NOW, listening=True)
    assert step(worker) == Announce(("q",))


def test_a_fleet_counts_the_notifications_that_others_hear() -> None:
    """Each worker hears one of 25; together they are too many for producers all the same."""
    worker = core(2)
    caught_up(worker)
    for n in range(MANY // 25):
        worker.wake("q", NOW + n / 1_000, new=True, others=48)
    end = NOW + MANY // 25 / 1_000

    assert step(worker, end) == Announce(())
    worker.announced(())
    worker.claim_sent("q", end, from_head=True)
    worker.head_scanned("q", [0], 0.0, end)
    worker.polled("q", 2, 0, None, end, listening=True)
    following = step(worker, end)
    assert isinstance(following, Wait)
    assert SPARED_POLL < following.seconds <= min(25 * SPARED_POLL, SPARED), "in turns"


@pytest.mark.parametrize(("others", "from_head"), [(0, False), (1, True)])
def test_who_is_woken_with_others_needs_one_look(others: int, *, from_head: bool) -> None:
    """Another worker takes the job, most of the time: what reads on would have to look twice."""
    worker = core(2)
    worker.head_scanned("q", [0], 0.0001, NOW)
    caught_up(worker)

    worker.wake("q", NOW + 0.2, new=True, others=others)

    following = step(worker, NOW + 0.2)
    assert isinstance(following, Claim)
    assert (following.looks[0].onward is None) is from_head
