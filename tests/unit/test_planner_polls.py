"""When the planner looks for due jobs of a queue that has none."""

from __future__ import annotations

from itertools import pairwise
from math import inf
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_bgjob._worker.plan.polling import (
    ASKED_AFTER,
    FIRST_POLL,
    GAP,
    HEARD,
    SUSTAINED,
)
from sqlalchemy_bgjob._worker.plan.steps import Announce, Claim, Wait
from support.planning import NOW, caught_up, claim, core, step

if TYPE_CHECKING:
    from sqlalchemy_bgjob._worker.plan.planner import Planner


def poll_of(core: Planner, now: float = NOW) -> float:
    """Seconds until the worker sends the next poll, which it wakes for at each poll interval."""
    for n in range(1_000):
        if isinstance(step(core, now + n / 100), Claim):
            return n / 100
    raise AssertionError("no poll within ten seconds")


def test_an_empty_queue_that_is_notified_is_polled_rarely() -> None:
    idle = core(2, poll_interval=1.0)
    caught_up(idle)

    assert 0.9 * HEARD <= poll_of(idle) <= HEARD


def test_an_empty_queue_that_hears_nothing_is_polled_often() -> None:
    deaf = core(2, poll_interval=1.0)
    caught_up(deaf)

    deaf.wake(None, NOW)
    deaf.claim_sent("q", NOW, from_head=True)
    deaf.polled("q", 2, 0, None, NOW, listening=False)
    assert step(deaf) == Announce(())
    deaf.announced(())

    assert 0.9 <= poll_of(deaf) <= 1.0


def test_without_notifications_polls_come_ever_later() -> None:
    deaf = core(2, poll_interval=1.0)
    now, waits = NOW, []

    for _ in range(12):
        deaf.polled("q", 2, 0, None, now, listening=False)
        following = step(deaf, now)
        assert isinstance(following, Wait)
        waits.append(following.seconds)
        now += following.seconds

    assert 0.9 * FIRST_POLL <= waits[0] <= FIRST_POLL
    assert all(0.9 <= wait <= 1.0 for wait in waits[-3:])
    assert all(after > before for before, after in pairwise(waits[:7]))


def test_work_makes_the_polls_frequent_again() -> None:
    deaf = core(2, poll_interval=1.0)
    for _ in range(12):
        deaf.polled("q", 2, 0, None, NOW, listening=False)

    deaf.polled("q", 2, 1, None, NOW, listening=False)

    following = step(deaf)
    assert isinstance(following, Wait)
    assert following.seconds <= FIRST_POLL


def test_where_producers_notify_nothing_is_polled_for_after_work() -> None:
    idle = core(2, poll_interval=1.0)
    caught_up(idle)

    idle.polled("q", 2, 1, None, NOW, listening=True)

    following = step(idle)
    assert isinstance(following, Wait)
    assert 0.9 <= following.seconds <= 1.0


def test_steady_work_without_notifications_is_polled_for_often() -> None:
    """Not only when it is time to ask for due times: a steady load would wait for each of those."""
    steady = core(2, poll_interval=1.0)
    caught_up(steady)
    steady.head_scanned("q", [0], 0.01, NOW)  # so long that no scan is due meanwhile
    now = NOW
    while now < NOW + SUSTAINED + GAP:
        now += 0.8 * GAP
        steady.wake("q", now, new=True)
        steady.claim_sent("q", now)
        steady.polled("q", 2, 1, None, now, listening=True)

    assert step(steady, now) == Announce(())
    steady.announced(())
    following = step(steady, now)
    assert isinstance(following, Wait)
    assert following.seconds <= FIRST_POLL


def test_what_is_committed_after_the_announcement_is_polled_for() -> None:
    """Its statement came before: it was not to notify, and the poll after that came too early."""
    idle = core(2, poll_interval=60.0)
    idle.polled("q", 2, 0, None, NOW, listening=True)
    idle.announced(("q",))
    idle.claim_sent("q", NOW, from_head=True)
    now = NOW
    for _ in range(6):
        idle.polled("q", 2, 0, None, now, listening=True)
        following = step(idle, now)
        assert isinstance(following, Wait)
        assert following.seconds <= FIRST_POLL + 2 * (now - NOW), "twice as late at most"
        now += following.seconds


def test_jobs_from_before_the_announcement_are_polled_for() -> None:
    idle = core(2, poll_interval=1.0)
    caught_up(idle)

    idle.announced(None)
    idle.polled("q", 2, 1, None, NOW, listening=True)

    assert step(idle) == Announce(("q",))
    idle.announced(("q",))
    assert step(idle) == claim("q", 2)


def test_a_due_job_is_polled_for_though_another_was_found() -> None:
    idle = core(2, poll_interval=1.0)
    caught_up(idle, due_in=0.15)

    idle.wake("q", NOW + 0.1)
    idle.claim_sent("q", NOW + 0.1, from_head=True)
    idle.head_scanned("q", [0], 0.0, NOW + 0.1)
    idle.polled("q", 2, 1, None, NOW + 0.1, listening=True)

    following = step(idle, NOW + 0.1)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(0.051)


def test_a_notified_job_may_have_come_with_a_delayed_one() -> None:
    """The claim that finds the one does not ask for the other."""
    idle = core(2, poll_interval=60.0)
    idle.head_scanned("q", [0], 0.05, NOW)
    caught_up(idle)

    idle.wake("q", NOW)
    idle.claim_sent("q", NOW)
    idle.polled("q", 2, 1, None, NOW, listening=True)

    assert 0.9 * ASKED_AFTER <= poll_of(idle) <= ASKED_AFTER


def test_a_known_due_time_outlasts_an_answer_that_misses_it() -> None:
    """A job may fall due between the claim and the question when the next one is due."""
    idle = core(2, poll_interval=60.0)
    caught_up(idle, due_in=2.0)

    idle.claim_sent("q", NOW + 1.999)
    idle.polled("q", 2, 0, inf, NOW + 1.999, listening=True)

    following = step(idle, NOW + 1.999)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(0.002)


def test_work_after_the_announcement_leaves_polls_frequent() -> None:
    """What comes late did not notify; the poll that finds it must not wait for an idle worker's."""
    new = core(2, poll_interval=60.0)
    new.polled("q", 2, 0, None, NOW, listening=True)
    new.announced(("q",))
    for n in range(12):
        new.wake("q", NOW + n / 100)
        new.claim_sent("q", NOW + n / 100)
        new.polled("q", 2, 1, inf, NOW + n / 100, listening=True)

    assert poll_of(new, NOW + 0.12) <= FIRST_POLL


def test_a_scheduled_job_is_looked_for_when_it_is_due() -> None:
    idle = core(2, poll_interval=1.0)
    caught_up(idle, due_in=0.2)

    following = step(idle)

    assert isinstance(following, Wait)
    assert 0.2 <= following.seconds <= 0.21
    assert step(idle, NOW + 0.21) == claim("q", 2)


def test_after_a_scheduled_job_the_next_one_is_asked_for_at_once() -> None:
    """The claim that finds the one does not ask; once it is known, polls are rare again."""
    idle = core(2, poll_interval=1.0)
    caught_up(idle, due_in=0.2)
    now = NOW + 0.21
    idle.claim_sent("q", now, from_head=True)
    idle.head_scanned("q", [0], 0.001, now)
    idle.polled("q", 2, 1, None, now, listening=True)

    following = step(idle, now)
    assert isinstance(following, Wait)
    assert following.seconds <= FIRST_POLL
    now += following.seconds
    idle.claim_sent("q", now, from_head=True)
    idle.head_scanned("q", [0], 0.001, now)
    idle.polled("q", 2, 0, inf, now, listening=True)

    following = step(idle, now)
    assert isinstance(following, Wait)
    assert following.seconds >= 0.9


def test_a_job_due_before_the_answer_is_no_busy_loop() -> None:
    idle = core(2)
    caught_up(idle, due_in=-5.0)

    following = step(idle)

    assert isinstance(following, Wait)
    assert following.seconds > 0


def test_a_job_that_was_put_off_is_polled_for_when_due() -> None:
    """Nobody notifies of a retry."""
    idle = core(2, poll_interval=1.0)
    caught_up(idle)

    idle.expect("q", NOW + 0.1)
    idle.expect("q", NOW + 60)
    idle.expect("another worker's", NOW)

    following = step(idle)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(0.1)
    assert step(idle, NOW + 0.1) == claim("q", 2)


def test_a_job_put_off_during_a_claim_is_not_forgotten() -> None:
    """That claim has not seen it, and its answer must not push the next look into the distance."""
    idle = core(2, poll_interval=30.0)
    caught_up(idle)
    idle.wake("q", NOW)
    assert step(idle) == claim("q", 2)
    idle.claim_sent("q", NOW, from_head=True)
    idle.head_scanned("q", [0], 0.0, NOW)

    idle.expect("q", NOW + 0.5)
    for _ in range(12):
        idle.polled("q", 2, 0, None, NOW + 0.1, listening=True)

    following = step(idle, NOW + 0.1)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(0.4)
    assert isinstance(step(idle, NOW + 0.5), Claim)
