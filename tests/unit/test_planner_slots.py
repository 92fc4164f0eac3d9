"""Which job the planner starts in which slot. No database, clock or threads."""

from __future__ import annotations

from collections import Counter

import pytest

from sqlalchemy_bgjob._lifecycle.claim import Look
from sqlalchemy_bgjob._worker.plan.planner import AGAIN, TOGETHER, Planner
from sqlalchemy_bgjob._worker.plan.steps import Claim, Start, Wait
from sqlalchemy_bgjob.settings import WorkerSettings
from support.planning import (
    NOW,
    busy,
    caught_up,
    claim,
    claim_all,
    core,
    job,
    jobs,
    running,
    start_all,
    step,
    taught,
)


def test_the_first_step_claims_as_many_as_there_are_slots() -> None:
    """Nothing is known of the handlers yet, so nothing is claimed ahead."""
    assert step(core(3)) == claim("q", 3)


def test_what_was_claimed_is_started_in_its_order() -> None:
    two = core(2)

    claim_all(two, jobs(2))

    assert [one.id for one in start_all(two)] == ["job-0", "job-1"]


@pytest.mark.parametrize("slots", [1, 2, 7])
def test_never_more_run_than_there_are_slots(slots: int) -> None:
    full = core(slots)
    claim_all(full, jobs(slots + 5))

    assert len(start_all(full)) == slots
    assert running(full) == slots
    assert full.next_start("q", NOW) is None


def test_a_slot_that_is_free_again_takes_the_next_job() -> None:
    one = core(1)
    claim_all(one, jobs(2))
    (first,) = start_all(one)

    one.finished(first, 0.01)

    following = one.next_start("q", NOW)
    assert following is not None
    assert following.id == "job-1"
    assert running(one) == 1


def test_no_beat_no_start() -> None:
    """A worker that may have been found lost starts nothing, and looks again soon."""
    late = core(2)
    claim_all(late, jobs(2))

    assert step(late, may_start=False) == Wait(AGAIN)
    assert isinstance(step(late), Start)


def test_without_a_connection_what_is_claimed_still_runs() -> None:
    cut = core(2)
    claim_all(cut, jobs(2))

    assert isinstance(step(cut, may_claim=False), Start)
    assert isinstance(step(cut, may_claim=False), Start)
    assert step(cut, may_claim=False) == Wait(AGAIN)


def test_a_full_worker_waits_and_does_not_claim() -> None:
    full, _ = busy(2)

    assert isinstance(step(full), Wait)


def test_a_full_claim_is_followed_by_another_at_once() -> None:
    many = core(2)
    claim_all(many, jobs(2))
    for one in start_all(many):
        many.finished(one, 10.0)

    assert step(many) == claim("q", 2)


def test_one_claim_serves_all_queues_that_are_due() -> None:
    """Each gets the same share of it, however much room it has."""
    worker = Planner({"a": 1, "b": 80, "c": 80}, WorkerSettings(max_claim=90))

    assert step(worker) == Claim((Look("a", 1), Look("b", 30), Look("c", 30)))


def test_queues_take_turns_where_a_claim_is_too_small() -> None:
    """A queue that is always full does not starve the others."""
    three = Planner({"a": 1, "b": 1, "c": 1}, WorkerSettings(max_claim=2))
    claimed: list[str] = []

    for n in range(6):
        following = step(three)
        assert isinstance(following, Claim)
        assert len(following.looks) == 2
        for look in following.looks:
            claimed.append(look.queue)
            claim_all(three, [one := job(f"{n}", queue=look.queue)], queue=look.queue)
            assert three.next_start(look.queue, NOW) is one
            three.finished(one, 10.0)

    assert Counter(claimed) == {"a": 4, "b": 4, "c": 4}


def test_a_poll_takes_along_the_queues_that_are_due_soon() -> None:
    three = Planner({"a": 1, "b": 1, "c": 1}, WorkerSettings(poll_interval=1.0))
    caught_up(three, "a")
    caught_up(three, "b", now=NOW + TOGETHER / 2)
    caught_up(three, "c", now=NOW + 0.7)
    three.announced(("a", "b", "c"))
    for queue, now in (("a", NOW), ("b", NOW + TOGETHER / 2), ("c", NOW + 0.7)):
        three.polled(queue, 1, 0, None, now, listening=True)

    following = step(three, NOW + 1.0)

    assert isinstance(following, Claim)
    assert {look.queue for look in following.looks} == {"a", "b"}


def test_a_queue_that_is_due_twice_is_asked_once() -> None:
    """Its poll is due soon, and a job that was put off is due now."""
    idle = core(2, poll_interval=1.0)
    caught_up(idle)

    idle.expect("q", NOW + 0.9)

    assert step(idle, NOW + 0.9) == claim("q", 2)


def test_a_job_that_wakes_the_worker_waits_for_no_other_queue() -> None:
    two = Planner({"a": 1, "b": 1}, WorkerSettings(poll_interval=1.0))
    caught_up(two, "a", "b")

    two.wake("b", NOW + 0.9 - TOGETHER / 2)

    assert step(two, NOW + 0.9 - TOGETHER / 2) == claim("b", 1)


def test_queues_taken_along_do_not_exceed_the_claim() -> None:
    two = Planner({"a": 1_000, "b": 1_000}, WorkerSettings(poll_interval=1.0))
    caught_up(two, "a", "b")

    now = next(t for n in range(1_000) if isinstance(step(two, t := NOW + n / 100), Claim))
    following = step(two, now)

    assert isinstance(following, Claim)
    assert sum(look.limit for look in following.looks) <= 1_000


def test_frequent_polls_take_nothing_along() -> None:
    two = Planner({"a": 1, "b": 1}, WorkerSettings(poll_interval=0.2))
    for _ in range(12):
        two.polled("b", 1, 0, None, NOW, listening=False)
        two.polled("a", 1, 0, None, NOW - 0.1, listening=False)

    assert step(two, NOW + 0.1) == claim("a", 1)


def test_each_queue_has_slots_of_its_own() -> None:
    two = Planner({"a": 1, "b": 2}, WorkerSettings())
    claim_all(two, jobs(2, queue="a"), queue="a")
    claim_all(two, jobs(2, queue="b"), queue="b")

    assert Counter(one.queue for one in start_all(two)) == {"a": 1, "b": 2}


def test_suspect_jobs_are_started_first() -> None:
    """Of those that came in one claim, in their own order."""
    three = core(3)
    first, second = job("x", suspect=True), job("y", suspect=True)

    claim_all(three, [*jobs(2), first, second])

    assert [one.id for one in start_all(three)] == ["x", "y", "job-0"]


def test_ready_jobs_start_before_another_queue_is_polled() -> None:
    """A notification during each claim, whose jobs others win, keeps a queue due for ever."""
    two = Planner({"a": 8, "b": 8}, WorkerSettings())
    long, short = job("long", queue="a"), job("short", queue="a")
    claim_all(two, [long, short], queue="a")
    start_all(two)
    two.finished(short, 0.0001)
    claim_all(two, jobs(3, queue="a"), queue="a")
    started, now = 0, NOW

    for _ in range(100):
        now += 0.002
        match step(two, now):
            case Start():
                started += 1
            case Claim(queue=queue):
                two.claim_sent(queue, now)
                two.wake("b", now)
                two.polled(queue, 1, 0, None, now, listening=True)

    assert started == 3


def test_slow_handlers_are_started_before_more_is_claimed() -> None:
    slow = taught(10, 0.02)
    claim_all(slow, jobs(4))
    first = step(slow)
    assert isinstance(first, Start)
    assert isinstance(step(slow), Start)
    slow.finished(first.job, 0.02)

    assert isinstance(step(slow), Start)
    assert isinstance(step(slow), Start)


def test_a_slot_is_filled_first_if_nothing_runs() -> None:
    quick = taught(10, 0.001, max_claim=20)
    claim_all(quick, jobs(5))

    assert isinstance(step(quick), Start)


def test_lost_leases_are_forgotten() -> None:
    lost = core(1)
    claim_all(lost, jobs(3))
    start_all(lost)

    lost.forget_ready()
    assert lost.ready() == []
    assert running(lost) == 1
