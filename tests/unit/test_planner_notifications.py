"""What the planner does at a notification, and when it asks producers for them."""

from __future__ import annotations

import pytest

from sqlalchemy_bgjob._lifecycle.claim import Look, Position
from sqlalchemy_bgjob._worker.plan.lanes import SCAN_EVERY
from sqlalchemy_bgjob._worker.plan.planner import PATIENCE, Planner
from sqlalchemy_bgjob._worker.plan.polling import (
    COOL_DOWN,
    FIRST_POLL,
    GAP,
    HEARD,
    IN_VAIN,
    MANY,
    SPARED,
    SPARED_POLL,
    SUSTAINED,
)
from sqlalchemy_bgjob._worker.plan.steps import Announce, Claim, Wait
from sqlalchemy_bgjob.settings import WorkerSettings
from support.planning import NOW, caught_up, claim, core, step


@pytest.mark.parametrize("queue", ["q", None])
def test_a_notification_ends_the_wait(queue: str | None) -> None:
    idle = core(2)
    caught_up(idle)

    idle.wake(queue, NOW)

    assert step(idle) == claim("q", 2)


def test_a_notification_for_another_queue_wakes_only_that_one() -> None:
    two = Planner({"a": 1, "b": 1}, WorkerSettings())
    caught_up(two, "a", "b")

    two.wake("b", NOW)

    assert step(two) == claim("b", 1)
    two.claim_sent("b", NOW, from_head=True)
    two.head_scanned("b", [0], 0.0, NOW)
    two.polled("b", 1, 0, None, NOW, listening=True)
    assert isinstance(step(two), Wait)


def test_a_notification_during_a_claim_asks_for_another_one() -> None:
    """The claim's snapshot may be older than the commit that notifies."""
    idle = core(2)
    caught_up(idle)
    idle.wake("q", NOW)
    assert step(idle) == claim("q", 2)
    idle.claim_sent("q", NOW)

    idle.wake("q", NOW)
    idle.polled("q", 2, 0, None, NOW, listening=True)

    assert step(idle) == claim("q", 2)


def test_a_notification_before_a_claim_asks_for_one_only() -> None:
    idle = core(2)
    caught_up(idle)
    idle.wake("q", NOW)
    idle.claim_sent("q", NOW, from_head=True)
    idle.head_scanned("q", [0], 0.0, NOW)

    idle.polled("q", 2, 0, None, NOW, listening=True)

    assert isinstance(step(idle), Wait)


def test_notifications_in_vain_are_followed_ever_more_rarely() -> None:
    """Anybody may send thousands of them; one that leads to a job is followed at once again."""
    idle = core(2, poll_interval=30.0)
    caught_up(idle)
    claims = []
    for n in range(2_000):
        now = NOW + n / 1_000
        idle.wake("q", now)
        if isinstance(announce := step(idle, now), Announce):
            idle.announced(announce.queues)
        if isinstance(step(idle, now), Claim):
            claims.append(now)
            idle.claim_sent("q", now, from_head=True)
            idle.head_scanned("q", [0], 0.0, now)
            idle.wake("q", now)
            idle.polled("q", 2, 0, None, now, listening=True)

    assert claims[:IN_VAIN] == [NOW + n / 1_000 for n in range(IN_VAIN)]
    assert 30 <= len(claims) - IN_VAIN <= 2.0 / COOL_DOWN + 1

    later = NOW + 10.0
    idle.wake("q", later)
    assert step(idle, later) == claim("q", 2)
    idle.claim_sent("q", later, from_head=True)
    idle.head_scanned("q", [0], 0.0, later)
    idle.polled("q", 2, 1, None, later, listening=True)
    idle.wake("q", later + 0.001)
    assert isinstance(step(idle, later + 0.001), Claim)


def test_a_notification_claims_ahead_and_then_from_the_head() -> None:
    """Mostly it is of new jobs; a job that was given back stands behind."""
    idle = core(2)
    idle.head_scanned("q", [0], 0.0, NOW)
    caught_up(idle)
    ahead = (Position(0, None, ""),)

    idle.wake("q", NOW)
    assert step(idle) == claim("q", 2, ahead)
    idle.claim_sent("q", NOW)
    idle.polled("q", 2, 0, None, NOW, listening=True)

    assert step(idle) == claim("q", 2, None)
    idle.claim_sent("q", NOW, from_head=True)
    idle.head_scanned("q", [0], 0.0, NOW)
    idle.polled("q", 2, 0, None, NOW, listening=True)
    assert isinstance(step(idle), Wait)


def test_a_job_that_was_just_committed_does_not_wait_for_a_look() -> None:
    """A look that is due waits for a moment without notifications; but not for long."""
    idle = core(2)
    idle.head_scanned("q", [0], 0.0, NOW)
    caught_up(idle)
    ahead = (Position(0, None, ""),)
    due = NOW + SCAN_EVERY

    idle.wake("q", due)
    assert step(idle, due) == claim("q", 2, ahead)
    assert step(idle, due + PATIENCE) == claim("q", 2, None)

    idle.claim_sent("q", due)
    idle.polled("q", 2, 1, None, due, listening=True)
    assert step(idle, due + FIRST_POLL) == claim("q", 2, None)


def test_what_is_asked_for_during_a_look_is_looked_for_again() -> None:
    """The look's snapshot may be older than the commit that notifies."""
    idle, later = core(2, poll_interval=1.0), NOW + HEARD
    idle.head_scanned("q", [0], 0.0, NOW)
    caught_up(idle)
    assert step(idle, later) == claim("q", 2, None)
    idle.claim_sent("q", later, from_head=True)

    idle.wake("q", later)
    idle.head_scanned("q", [0], 0.0, later)
    idle.polled("q", 2, 0, None, later, listening=True)

    following = step(idle, later)
    assert isinstance(following, Claim)
    idle.claim_sent("q", later)
    idle.polled("q", 2, 0, None, later, listening=True)
    assert step(idle, later) == claim("q", 2, None)


def test_a_delayed_look_does_not_wait_for_the_poll() -> None:
    idle = core(2, poll_interval=60.0)
    idle.head_scanned("q", [0], 0.05, NOW)
    caught_up(idle)

    idle.wake("q", NOW + 0.01)
    idle.claim_sent("q", NOW + 0.01)
    idle.polled("q", 2, 0, None, NOW + 0.01, listening=True)

    following = step(idle, NOW + 0.01)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(0.49)
    assert step(idle, NOW + 0.5) == claim("q", 2, None)


def test_an_idle_worker_announces_it_and_looks_once_more() -> None:
    """What was committed before it was said did not notify."""
    idle = core(2)
    idle.claim_sent("q", NOW, from_head=True)
    idle.polled("q", 2, 0, None, NOW, listening=True)

    assert step(idle) == Announce(("q",))
    idle.announced(("q",))
    assert step(idle) == claim("q", 2)
    idle.claim_sent("q", NOW, from_head=True)
    idle.polled("q", 2, 0, None, NOW, listening=True)
    assert isinstance(step(idle), Wait)


def test_the_look_after_an_announcement_finds_new_priorities() -> None:
    """The first job of a priority did not notify either, and reading on does not find it."""
    idle = core(2)
    idle.claim_sent("q", NOW, from_head=True)
    idle.head_scanned("q", [0], 0.0, NOW)
    idle.polled("q", 2, 0, None, NOW, listening=True)
    idle.announced(("q",))

    assert step(idle) == Claim((Look("q", 2, (Position(0, None, ""),), asks_due=True),))
    idle.claim_sent("q", NOW)
    idle.polled("q", 2, 0, None, NOW, listening=True)

    assert step(idle) == claim("q", 2)


def test_a_worker_that_hears_nothing_says_nothing() -> None:
    deaf = core(2)
    deaf.polled("q", 2, 0, None, NOW, listening=False)
    assert isinstance(step(deaf), Wait)


def work_for(seconds: float, *, each: float, limit: int = 2) -> Planner:
    """A planner whose polls find one job each, at most as many as they could take."""
    worker = core(2)
    caught_up(worker)
    for n in range(round(seconds / each) + 1):
        worker.polled("q", limit, 1, None, NOW + n * each, listening=True)
    return worker


def test_under_sustained_load_producers_do_not_notify() -> None:
    assert not isinstance(step(work_for(0.5, each=0.005)), Announce), "a little work is no reason"
    assert step(work_for(SUSTAINED, each=0.005), NOW + SUSTAINED) == Announce(())


def test_a_queue_with_pauses_between_its_jobs_is_notified() -> None:
    steady = work_for(SUSTAINED * 3, each=2 * GAP)
    assert not isinstance(step(steady, NOW + SUSTAINED * 3), Announce)


def test_a_backlog_of_long_jobs_is_sustained_load() -> None:
    """There are pauses between the claims, but each finds as much as it can take."""
    backlog = work_for(SUSTAINED, each=10 * GAP, limit=1)
    assert step(backlog, NOW + SUSTAINED) == Announce(())


def test_producers_that_notify_often_pause_for_a_second() -> None:
    """Each of their commits waits for those of the others; a poll finds their jobs as well."""
    idle = core(2)
    caught_up(idle)
    for n in range(MANY):
        assert not isinstance(step(idle), Announce)
        idle.wake("q", NOW + n / 1_000, new=True)
    last = NOW + (MANY - 1) / 1_000

    assert step(idle, last) == Announce(())
    idle.announced(())
    now, polls = last, 0
    while now < last + SPARED - 0.02:
        assert isinstance(step(idle, now), Claim)
        idle.claim_sent("q", now, from_head=True)
        idle.head_scanned("q", [0], 0.0, now)
        idle.polled("q", 2, 0, None, now, listening=True)
        following = step(idle, now)
        assert isinstance(following, Wait), "nothing is announced meanwhile"
        now, polls = now + following.seconds, polls + 1
    assert polls >= SPARED / SPARED_POLL - 2

    idle.claim_sent("q", last + SPARED)
    idle.polled("q", 2, 0, None, last + SPARED, listening=True)
    assert step(idle, last + SPARED) == Announce(("q",))


def test_notifications_are_asked_for_again_after_a_pause() -> None:
    """Or it would neither be told nor look before a whole poll interval has passed."""
    idle = core(2, poll_interval=60.0)
    caught_up(idle)

    def in_vain(now: float) -> None:
        idle.claim_sent("q", now, from_head=True)
        idle.head_scanned("q", [0], 0.0, now)
        idle.polled("q", 2, 0, None, now, listening=True)

    for n in range(MANY):
        idle.wake("q", NOW + n / 1_000, new=True)
        in_vain(NOW + n / 1_000)
    last = NOW + (MANY - 1) / 1_000
    assert step(idle, last) == Announce(())
    idle.announced(())

    now = last
    while not isinstance(following := step(idle, now), Announce):
        if isinstance(following, Claim):
            in_vain(now)
        else:
            assert isinstance(following, Wait)
            now += following.seconds

    assert following == Announce(("q",))
    assert now <= last + SPARED + COOL_DOWN


def test_fewer_notifications_go_on() -> None:
    idle = core(2)
    caught_up(idle)
    for n in range(5 * MANY):
        idle.wake("q", NOW + n * 1.2 / MANY, new=True)
    assert not isinstance(step(idle, NOW + 6.0), Announce)


def test_nobody_knows_what_producers_see_after_a_lost_answer() -> None:
    idle = core(2)
    caught_up(idle)
    idle.announced(None)
    assert step(idle) == Announce(("q",))
