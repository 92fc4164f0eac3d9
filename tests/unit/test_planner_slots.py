"""Which job the planner starts in which slot. No database, clock or threads."""

from __future__ import annotations

from collections import Counter

import pytest

from sqlalchemy_bgjob._worker.plan.planner import AGAIN, Planner
from sqlalchemy_bgjob._worker.plan.steps import Claim, Start, Wait
from sqlalchemy_bgjob.settings import WorkerSettings
from support.planning import (
    NOW,
    busy,
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
    assert step(core(3)) == Claim("q", 3)


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
    assert full.next_start("q") is None


def test_a_slot_that_is_free_again_takes_the_next_job() -> None:
    one = core(1)
    claim_all(one, jobs(2))
    (first,) = start_all(one)

    one.finished(first, 0.01)

    following = one.next_start("q")
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

    assert step(many) == Claim("q", 2)


def test_queues_take_turns() -> None:
    """A queue that is always full does not starve the others."""
    three = Planner({"a": 1, "b": 1, "c": 1}, WorkerSettings())
    claimed = []

    for n in range(9):
        following = step(three)
        assert isinstance(following, Claim)
        claimed.append(following.queue)
        one = job(f"{n}", queue=following.queue)
        claim_all(three, [one], queue=following.queue)
        start_all(three)
        three.finished(one, 10.0)

    assert Counter(claimed) == {"a": 3, "b": 3, "c": 3}
    assert claimed[:3] == claimed[3:6] == claimed[6:]


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
