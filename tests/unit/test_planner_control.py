"""What operators set for a queue, and what the planner does then."""

from __future__ import annotations

from sqlalchemy_bgjob._worker.plan.planner import Planner
from sqlalchemy_bgjob._worker.plan.steps import Announce, Claim, HandBack, PassOn, Start, Wait
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
    start_all,
    step,
    taught,
)

ONE = {"q": 1}


def test_of_a_paused_queue_nothing_is_claimed() -> None:
    paused = core(1)
    paused.control(ONE, {"q"}, NOW)

    for at in (0.0, 1.0, 60.0):
        paused.wake("q", NOW + at, new=True)
        following = step(paused, NOW + at)
        assert isinstance(following, Wait)
        assert following.seconds > 0


def test_other_queues_are_claimed_from() -> None:
    two = Planner({"q": 1, "other": 2}, WorkerSettings())
    two.control({"q": 1, "other": 2}, {"q"}, NOW)

    assert step(two) == claim("other", 2)


def test_ready_jobs_of_a_paused_queue_go_back_at_once() -> None:
    quick = taught(1, 0.001)
    claim_all(quick, jobs(5))
    (running,) = start_all(quick)
    quick.control(ONE, {"q"}, NOW)

    back = step(quick)
    assert isinstance(back, HandBack)
    assert [one.id for one in back.jobs] == [f"job-{n}" for n in range(1, 5)]
    assert quick.busy, "what runs goes on"
    quick.finished(running, 0.001)
    assert not quick.busy


def test_no_slot_takes_a_ready_job_of_a_paused_queue() -> None:
    """A run may end between the look and the hand-back."""
    quick = taught(1, 0.001)
    claim_all(quick, jobs(2))
    (running,) = start_all(quick)
    quick.control(ONE, {"q"}, NOW)

    quick.finished(running, 0.001)
    assert quick.next_start("q", NOW) is None


def test_a_claim_that_comes_after_the_pause_goes_back() -> None:
    late = core(3)
    late.claim_sent("q", NOW)
    late.control({"q": 3}, {"q"}, NOW)
    late.claimed("q", [*jobs(2), job("suspect", suspect=True)], NOW)
    late.polled("q", 3, 3, None, NOW, listening=True)

    back = step(late)
    assert isinstance(back, HandBack)
    assert len(back.jobs) == 3
    assert not late.busy


def test_a_resumed_queue_is_claimed_from_at_once() -> None:
    resumed = core(1)
    resumed.claim_sent("q", NOW, from_head=True)
    resumed.head_scanned("q", [0], 0.0, NOW)
    caught_up(resumed)
    resumed.control(ONE, {"q"}, NOW)
    assert not isinstance(step(resumed), Claim)

    resumed.control(ONE, (), NOW)

    following = step(resumed)
    if isinstance(following, Announce):
        resumed.announced(following.queues)
        following = step(resumed)
    assert following == claim("q", 1), "from the head: jobs of new priorities may have come"


def test_no_producer_wakes_a_worker_of_a_paused_queue() -> None:
    """Each would take part in a lock at COMMIT, and wake who may not claim."""
    told = core(1)
    caught_up(told)
    told.control(ONE, {"q"}, NOW)

    assert step(told) == Announce(())
    told.announced(())
    assert isinstance(step(told), Wait)


def test_a_wake_up_of_a_paused_queue_is_not_passed_on() -> None:
    woken, _ = busy(1)
    woken.wake("q", NOW, new=True, others=3)
    assert isinstance(step(woken), PassOn), "or this test shows nothing"

    woken, _ = busy(1)
    woken.control(ONE, {"q"}, NOW)
    woken.wake("q", NOW, new=True, others=3)
    assert not isinstance(step(woken), PassOn)


def test_more_slots_are_filled_at_once() -> None:
    full, _ = busy(2)
    caught_up(full)
    full.control({"q": 5}, (), NOW)

    following = step(full)
    assert isinstance(following, Claim)
    assert following.looks[0].limit == 3


def test_with_fewer_slots_runs_end_and_none_follows() -> None:
    full, (first, second, third) = busy(3)
    full.control(ONE, (), NOW)

    for ended in (first, second):
        full.finished(ended, 1.0)
        assert not isinstance(step(full), Claim | Start)
    full.finished(third, 1.0)
    assert step(full) == claim("q", 1)


def test_to_set_the_same_again_asks_for_nothing() -> None:
    same = core(1)
    caught_up(same)
    same.control(ONE, (), NOW)

    assert isinstance(step(same), Wait)
