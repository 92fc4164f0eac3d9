"""What the planner holds for too long goes back, and is not claimed again at once."""

from __future__ import annotations

import pytest

from sqlalchemy_bgjob._worker.plan.steps import Claim, HandBack, Start, Wait
from support.planning import (
    NOW,
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


def test_a_job_not_started_within_a_second_is_handed_back() -> None:
    quick = taught(1, 0.001)
    claim_all(quick, jobs(10))
    start_all(quick)
    caught_up(quick, now=NOW + 0.99)

    following = step(quick, NOW + 0.99)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(0.01)

    back = step(quick, NOW + 1.0)
    assert isinstance(back, HandBack)
    assert [one.id for one in back.jobs] == [f"job-{n}" for n in range(1, 10)]
    assert quick.ready() == []


def test_jobs_that_may_not_be_started_go_to_those_who_may() -> None:
    """No thread can be made, or the heart can't reach the database: slots are free all the same."""
    stopped = core(3)
    claim_all(stopped, [*jobs(2), job("suspect", suspect=True)])

    for at in (0.0, 0.99):
        assert isinstance(stopped.next_step(NOW + at, may_start=False, may_claim=True), Wait)
    back = stopped.next_step(NOW + 1.0, may_start=False, may_claim=True)

    assert isinstance(back, HandBack)
    assert sorted(one.id for one in back.jobs) == ["job-0", "job-1", "suspect"]


def test_after_a_hand_back_nothing_is_claimed_until_a_run_ends() -> None:
    """Or a long handler makes its worker claim and hand back the same jobs all the time."""
    quick = taught(1, 0.001)
    claim_all(quick, jobs(10))
    (first,) = start_all(quick)
    assert isinstance(step(quick, NOW + 1.0), HandBack)

    now = NOW + 1.0
    while now < NOW + 60:
        following = step(quick, now)
        assert isinstance(following, Wait)
        assert following.seconds > 0.5
        now += following.seconds

    quick.finished(first, 60.0)
    assert step(quick, now) == claim("q", 1)


def test_once_a_run_ends_jobs_are_claimed_ahead_again() -> None:
    """But not within the second in which they were handed back."""
    quick = taught(1, 0.001)
    claim_all(quick, jobs(10))
    (first,) = start_all(quick)
    assert isinstance(step(quick, NOW + 1.0), HandBack)

    quick.finished(first, 0.001)

    assert step(quick, NOW + 1.9) == claim("q", 1)
    assert step(quick, NOW + 2.1) == claim("q", 1 + 50)


def test_suspect_jobs_are_never_held_ahead() -> None:
    quick = taught(2, 0.001)
    claim_all(quick, [*jobs(2), *(job(f"c{n}", suspect=True) for n in range(4))])

    assert [one.id for one in start_all(quick)] == ["c0", "c1"]
    assert [one.id for one in quick.ready()] == ["job-0", "job-1"]


def test_suspects_that_find_no_slot_go_back_at_once() -> None:
    quick = taught(2, 0.001)
    claim_all(quick, [job(f"c{n}", suspect=True) for n in range(4)])
    assert isinstance(step(quick), Start)
    assert isinstance(step(quick), Start)

    back = step(quick)

    assert isinstance(back, HandBack)
    assert [one.id for one in back.jobs] == ["c2", "c3"]


def test_suspects_are_not_claimed_and_handed_back_repeatedly() -> None:
    """While the slots are taken, the table is left alone."""
    quick = taught(1, 0.001)
    poison = [job(f"c{n}", suspect=True) for n in range(5)]
    now, handed_back = NOW, 0

    # The table holds nothing else, so each claim brings these again.
    while now < NOW + 30:
        match step(quick, now):
            case Claim((look,)):
                claim_all(quick, poison[: look.limit], now)
            case HandBack():
                handed_back += 1
            case Wait(seconds):
                assert seconds > 0
                now += seconds

    assert handed_back == 1


def test_after_a_run_the_next_claim_waits_for_no_full_slots() -> None:
    """Short runs follow each other without the loop: it fetches what they will want."""
    quick = taught(10, 0.001, max_claim=20)
    claim_all(quick, jobs(20))
    first = step(quick)
    assert isinstance(first, Start)
    assert isinstance(step(quick), Start), "none has ended"
    quick.finished(first.job, 0.001)
    assert quick.next_start("q", NOW) is not None, "the slot has gone on by itself"

    assert isinstance(step(quick), Claim)
