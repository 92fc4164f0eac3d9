"""A worker that stops: what the planner still does, and when it is finished."""

from __future__ import annotations

from sqlalchemy_bgjob._worker.plan.planner import AGAIN
from sqlalchemy_bgjob._worker.plan.steps import Finished, HandBack, Settle, Wait
from support.planning import (
    NOW,
    busy,
    claim_all,
    core,
    done,
    jobs,
    start_all,
    step,
)


def test_draining_hands_back_waits_settles_and_ends() -> None:
    ending = core(1)
    claim_all(ending, jobs(3))
    (running,) = start_all(ending)

    ending.draining = True

    back = step(ending)
    assert isinstance(back, HandBack)
    assert [one.id for one in back.jobs] == ["job-1", "job-2"]
    assert isinstance(step(ending), Wait)
    assert ending.next_start("q", NOW) is None

    ending.finished(running, 0.01)
    ending.settle(item := done(running), NOW)
    assert step(ending) == Settle((item,))
    assert step(ending) == Finished()


def test_a_draining_worker_settles_without_lingering() -> None:
    ending, running = busy(2)
    ending.draining = True
    ending.finished(running[0], 0.01)
    ending.settle(item := done(running[0]), NOW)

    assert step(ending) == Settle((item,))


def test_a_worker_that_stops_before_it_began_has_nothing_to_do() -> None:
    ending = core(1)
    ending.draining = True

    assert step(ending) == Finished()
    assert step(ending, may_start=False, may_claim=False) == Finished()


def test_a_draining_worker_does_not_end_without_a_connection() -> None:
    ending = core(1)
    claim_all(ending, jobs(1))
    ending.draining = True

    assert step(ending, may_claim=False) == Wait(AGAIN)
    assert isinstance(step(ending), HandBack)
