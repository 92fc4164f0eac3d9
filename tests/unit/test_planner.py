"""The planner: which step follows from which situation. No database, clock or threads."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import count, pairwise
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from sqlalchemy_bgjob._handlers.outcomes import COMPLETED
from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob, Position
from sqlalchemy_bgjob._lifecycle.settle import Fate, Pending
from sqlalchemy_bgjob._worker.plan.lanes import SCAN_EVERY
from sqlalchemy_bgjob._worker.plan.planner import (
    AGAIN,
    LINGER,
    MOST_UNWRITTEN,
    PATIENCE,
    SETTLED_IN,
    Announce,
    Claim,
    Finished,
    HandBack,
    Planner,
    Settle,
    Start,
    Step,
    Wait,
    settle_again_after,
)
from sqlalchemy_bgjob._worker.plan.polling import (
    COOL_DOWN,
    FIRST_POLL,
    IN_VAIN,
    MANY,
    SPARED,
    SPARED_POLL,
    SUSTAINED,
)
from sqlalchemy_bgjob.settings import WorkerSettings

NOW = 1_000.0
MOMENT = datetime(2026, 1, 1, tzinfo=UTC)


def job(id: str = "a", *, queue: str = "q", suspect: bool = False) -> ClaimedJob:
    return ClaimedJob(
        id=id,
        queue=queue,
        type="t",
        arg=None,
        priority=0,
        attempt=1,
        crashes=0,
        lease=1,
        last_error=None,
        headers=None,
        next_run_at=MOMENT,
        created_at=MOMENT,
        updated_at=MOMENT,
        unknown_for=None,
        worker_id=7,
        suspect=suspect,
    )


def jobs(number: int, *, queue: str = "q", suspect: bool = False) -> list[ClaimedJob]:
    return [job(f"job-{n}", queue=queue, suspect=suspect) for n in range(number)]


def done(claimed: ClaimedJob) -> Pending:
    return Pending(claimed, COMPLETED)


def core(slots: int = 2, **options: Any) -> Planner:
    return Planner({"q": slots}, WorkerSettings(**options))


def step(
    core: Planner, now: float = NOW, *, may_start: bool = True, may_claim: bool = True
) -> Step:
    return core.next_step(now, may_start=may_start, may_claim=may_claim)


def claim_all(core: Planner, given: list[ClaimedJob], now: float = NOW, queue: str = "q") -> None:
    """What the worker does with the answer of a claim that found as much as it asked for."""
    core.claim_sent(queue, now)
    core.claimed(queue, given, now)
    core.polled(queue, len(given), len(given), None, now, listening=True)


def caught_up(core: Planner, *queues: str, due_in: float | None = None, now: float = NOW) -> None:
    """It has found nothing for a while, and producers know that it waits."""
    names = queues or ("q",)
    for name in names:
        for _ in range(12):
            core.polled(name, 2, 0, due_in, now, listening=True)
    core.announced(names)


def start_all(core: Planner, now: float = NOW) -> list[ClaimedJob]:
    started = []
    while isinstance(following := step(core, now), Start):
        started.append(following.job)
    return started


def busy(slots: int, *, now: float = NOW, **options: Any) -> tuple[Planner, list[ClaimedJob]]:
    """A core whose slots are all taken."""
    full = core(slots, **options)
    claim_all(full, [job(f"running-{n}") for n in range(slots)], now)
    return full, start_all(full, now)


def taught(slots: int, mean: float, **options: Any) -> Planner:
    """A core that has seen handlers take so long."""
    core_ = core(slots, **options)
    for one in jobs(1):
        claim_all(core_, [one])
        start_all(core_)
        core_.finished(one, mean)
    return core_


# ---- a table of situations ------------------------------------------------------------------


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
    assert full.running == slots
    assert full.next_start("q") is None


def test_a_slot_that_is_free_again_takes_the_next_job() -> None:
    one = core(1)
    claim_all(one, jobs(2))
    (first,) = start_all(one)

    one.finished(first, 0.01)

    following = one.next_start("q")
    assert following is not None
    assert following.id == "job-1"
    assert one.running == 1


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


def test_an_empty_queue_is_polled_at_the_poll_interval() -> None:
    idle = core(2, poll_interval=1.0)
    caught_up(idle)

    following = step(idle)

    assert isinstance(following, Wait)
    assert 0.9 <= following.seconds <= 1.0
    assert step(idle, NOW + 1.0) == Claim("q", 2)


def test_without_notifications_the_first_polls_come_soon_and_then_ever_later() -> None:
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


def test_a_scheduled_job_is_looked_for_when_it_is_due() -> None:
    idle = core(2, poll_interval=1.0)
    caught_up(idle, due_in=0.2)

    following = step(idle)

    assert isinstance(following, Wait)
    assert 0.2 <= following.seconds <= 0.21
    assert step(idle, NOW + 0.21) == Claim("q", 2)


def test_a_job_that_was_due_before_the_answer_came_is_no_busy_loop() -> None:
    idle = core(2)
    caught_up(idle, due_in=-5.0)

    following = step(idle)

    assert isinstance(following, Wait)
    assert following.seconds > 0


def test_a_job_that_this_worker_has_put_off_is_looked_for_when_it_is_due() -> None:
    """Nobody notifies of a retry."""
    idle = core(2, poll_interval=1.0)
    caught_up(idle)

    idle.expect("q", NOW + 0.1)
    idle.expect("q", NOW + 60)
    idle.expect("another worker's", NOW)

    following = step(idle)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(0.1)
    assert step(idle, NOW + 0.1) == Claim("q", 2)


def test_a_full_claim_is_followed_by_another_at_once() -> None:
    many = core(2)
    claim_all(many, jobs(2))
    for one in start_all(many):
        many.finished(one, 10.0)

    assert step(many) == Claim("q", 2)


@pytest.mark.parametrize("queue", ["q", None])
def test_a_notification_ends_the_wait(queue: str | None) -> None:
    idle = core(2)
    caught_up(idle)

    idle.wake(queue, NOW)

    assert step(idle) == Claim("q", 2, woken=True)


def test_a_notification_for_another_queue_wakes_only_that_one() -> None:
    two = Planner({"a": 1, "b": 1}, WorkerSettings())
    caught_up(two, "a", "b")

    two.wake("b", NOW)

    assert step(two) == Claim("b", 1, woken=True)
    two.claim_sent("b", NOW, from_head=True)
    two.head_scanned("b", [0], 0.0, NOW)
    two.polled("b", 1, 0, None, NOW, listening=True)
    assert isinstance(step(two), Wait)


def test_a_notification_during_a_claim_asks_for_another_one() -> None:
    """The claim's snapshot may be older than the commit that notifies."""
    idle = core(2)
    caught_up(idle)
    idle.wake("q", NOW)
    assert step(idle) == Claim("q", 2, woken=True)
    idle.claim_sent("q", NOW)

    idle.wake("q", NOW)
    idle.polled("q", 2, 0, None, NOW, listening=True)

    assert step(idle) == Claim("q", 2)


def test_a_notification_before_a_claim_asks_for_one_only() -> None:
    idle = core(2)
    caught_up(idle)
    idle.wake("q", NOW)
    idle.claim_sent("q", NOW, from_head=True)
    idle.head_scanned("q", [0], 0.0, NOW)

    idle.polled("q", 2, 0, None, NOW, listening=True)

    assert isinstance(step(idle), Wait)


def test_notifications_that_lead_to_nothing_are_followed_more_and_more_rarely() -> None:
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
    assert step(idle, later) == Claim("q", 2, woken=True)
    idle.claim_sent("q", later, from_head=True)
    idle.head_scanned("q", [0], 0.0, later)
    idle.polled("q", 2, 1, None, later, listening=True)
    idle.wake("q", later + 0.001)
    assert isinstance(step(idle, later + 0.001), Claim)


def test_a_job_put_off_while_a_claim_is_on_its_way_is_not_forgotten() -> None:
    """That claim has not seen it, and its answer must not push the next look into the distance."""
    idle = core(2, poll_interval=30.0)
    caught_up(idle)
    idle.wake("q", NOW)
    assert step(idle) == Claim("q", 2, woken=True)
    idle.claim_sent("q", NOW, from_head=True)
    idle.head_scanned("q", [0], 0.0, NOW)

    idle.expect("q", NOW + 0.5)
    for _ in range(12):
        idle.polled("q", 2, 0, None, NOW + 0.1, listening=True)

    following = step(idle, NOW + 0.1)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(0.4)
    assert isinstance(step(idle, NOW + 0.5), Claim)


def test_what_a_notification_is_of_is_looked_for_ahead_and_then_from_the_head() -> None:
    """Mostly it is of new jobs; a job that was given back stands behind."""
    idle = core(2)
    idle.head_scanned("q", [0], 0.0, NOW)
    caught_up(idle)
    ahead = (Position(0, None, ""),)

    idle.wake("q", NOW)
    assert step(idle) == Claim("q", 2, ahead, woken=True)
    idle.claim_sent("q", NOW)
    idle.polled("q", 2, 0, None, NOW, listening=True)

    assert step(idle) == Claim("q", 2, None)
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
    assert step(idle, due) == Claim("q", 2, ahead, woken=True)
    assert step(idle, due + PATIENCE) == Claim("q", 2, None, woken=True)

    idle.claim_sent("q", due)
    idle.polled("q", 2, 1, None, due, listening=True)
    assert step(idle, due + FIRST_POLL) == Claim("q", 2, None)


def test_what_is_asked_for_during_a_look_is_looked_for_again() -> None:
    """The look's snapshot may be older than the commit that notifies."""
    idle = core(2)
    idle.head_scanned("q", [0], 0.0, NOW)
    caught_up(idle)
    assert step(idle, NOW + 1.0) == Claim("q", 2, None)
    idle.claim_sent("q", NOW + 1.0, from_head=True)

    idle.wake("q", NOW + 1.0)
    idle.head_scanned("q", [0], 0.0, NOW + 1.0)
    idle.polled("q", 2, 0, None, NOW + 1.0, listening=True)

    following = step(idle, NOW + 1.0)
    assert isinstance(following, Claim)
    idle.claim_sent("q", NOW + 1.0)
    idle.polled("q", 2, 0, None, NOW + 1.0, listening=True)
    assert step(idle, NOW + 1.0) == Claim("q", 2, None)


def test_a_look_that_has_to_wait_for_its_share_of_the_time_does_not_wait_for_the_poll() -> None:
    idle = core(2, poll_interval=60.0)
    idle.head_scanned("q", [0], 0.05, NOW)
    caught_up(idle)

    idle.wake("q", NOW + 0.01)
    idle.claim_sent("q", NOW + 0.01)
    idle.polled("q", 2, 0, None, NOW + 0.01, listening=True)

    following = step(idle, NOW + 0.01)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(0.49)
    assert step(idle, NOW + 0.5) == Claim("q", 2, None)


def test_a_worker_that_found_nothing_says_so_and_then_looks_once_more() -> None:
    """What was committed before it was said did not notify."""
    idle = core(2)
    idle.claim_sent("q", NOW)
    idle.polled("q", 2, 0, None, NOW, listening=True)

    assert step(idle) == Announce(("q",))
    idle.announced(("q",))
    assert step(idle) == Claim("q", 2)
    idle.claim_sent("q", NOW)
    idle.polled("q", 2, 0, None, NOW, listening=True)
    assert isinstance(step(idle), Wait)


def test_a_worker_that_hears_nothing_says_nothing() -> None:
    deaf = core(2)
    deaf.polled("q", 2, 0, None, NOW, listening=False)
    assert isinstance(step(deaf), Wait)


def test_under_sustained_load_producers_are_spared_the_notifications() -> None:
    one = core(1)
    caught_up(one)

    one.polled("q", 1, 1, None, NOW, listening=True)
    assert not isinstance(step(one), Announce), "a little work is no reason"
    one.polled("q", 1, 1, None, NOW + SUSTAINED, listening=True)

    assert step(one, NOW + SUSTAINED) == Announce(())


def test_producers_that_notify_often_are_spared_it_for_a_second() -> None:
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


def test_after_many_notifications_in_vain_it_asks_again_when_producers_are_spared_no_more() -> None:
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


# ---- claims follow the handlers' duration ---------------------------------------------------


@pytest.mark.parametrize(
    ("mean", "limit"),
    [
        (60.0, 10),
        (0.5, 10 + 1),  # 10 slots start 1 job within 50 ms
        (0.05, 10 + 10),
        (0.01, 10 + 50),
        (0.000_001, 1_000),
    ],
)
def test_a_claim_takes_as_much_as_starts_within_50_ms(mean: float, limit: int) -> None:
    assert step(taught(10, mean)) == Claim("q", limit)


def test_max_claim_limits_every_claim() -> None:
    assert step(core(1_000, max_claim=50)) == Claim("q", 50)
    assert step(taught(10, 0.000_1, max_claim=20)) == Claim("q", 20)


def test_claims_shrink_when_the_handlers_become_slow() -> None:
    slower = taught(10, 0.001)
    limits = []

    for n in range(40):
        following = step(slower)
        assert isinstance(following, Claim)
        limits.append(following.limit)
        one = job(f"{n}")
        claim_all(slower, [one])
        start_all(slower)
        slower.finished(one, 5.0)

    assert limits[0] == 510
    assert limits[-1] == 10
    assert limits == sorted(limits, reverse=True)


def test_with_all_slots_taken_the_next_batch_is_half_of_what_may_be_held() -> None:
    """Many small claims cost more than one."""
    quick = taught(10, 0.01)  # 50 may be held ahead
    claim_all(quick, jobs(60))
    running = start_all(quick)
    assert isinstance(step(quick), Wait)

    for _ in range(24):
        quick.finished(running.pop(), 0.01)
        following = quick.next_start("q")
        assert following is not None
        running.append(following)
    assert isinstance(step(quick), Wait)

    for _ in range(2):
        quick.finished(running.pop(), 0.01)
        following = quick.next_start("q")
        assert following is not None
        running.append(following)
    assert step(quick) == Claim("q", 26)


# ---- what is held too long goes back --------------------------------------------------------


def test_a_job_that_is_not_started_within_a_second_is_handed_back() -> None:
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


def test_a_queue_that_refuses_is_left_alone_and_then_looked_at() -> None:
    two = Planner({"a": 1, "b": 1}, WorkerSettings())
    two.refused("a", NOW + 5.0, NOW)
    claimed = set()
    for _ in range(4):
        following = step(two)
        assert isinstance(following, Claim)
        two.polled(following.queue, 1, 1, None, NOW, listening=False)
        claimed.add(following.queue)
    assert claimed == {"b"}

    two.wake("a", NOW + 1.0)
    assert {step(two, NOW + 4.9).queue for _ in range(2)} == {"b"}
    assert "a" in {step(two, NOW + 5.0).queue for _ in range(2)}


def test_what_was_handed_back_is_not_claimed_ahead_again_before_a_run_ends() -> None:
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
    assert step(quick, now) == Claim("q", 1)


def test_once_a_run_ends_jobs_are_claimed_ahead_again() -> None:
    """But not within the second in which they were handed back."""
    quick = taught(1, 0.001)
    claim_all(quick, jobs(10))
    (first,) = start_all(quick)
    assert isinstance(step(quick, NOW + 1.0), HandBack)

    quick.finished(first, 0.001)

    assert step(quick, NOW + 1.9) == Claim("q", 1)
    assert step(quick, NOW + 2.1) == Claim("q", 1 + 50)


def test_suspect_jobs_are_started_first() -> None:
    """Of those that came in one claim, in their own order."""
    three = core(3)
    first, second = job("x", suspect=True), job("y", suspect=True)

    claim_all(three, [*jobs(2), first, second])

    assert [one.id for one in start_all(three)] == ["x", "y", "job-0"]


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
            case Claim(limit=limit):
                claim_all(quick, poison[:limit], now)
            case HandBack():
                handed_back += 1
            case Wait(seconds):
                assert seconds > 0
                now += seconds

    assert handed_back == 1


def test_once_a_run_has_ended_the_next_claim_does_not_wait_for_the_slots_to_fill() -> None:
    """Short runs follow each other without the loop: it fetches what they will want."""
    quick = taught(10, 0.001, max_claim=20)
    claim_all(quick, jobs(20))
    first = step(quick)
    assert isinstance(first, Start)
    assert isinstance(step(quick), Start), "none has ended"
    quick.finished(first.job, 0.001)
    assert quick.next_start("q") is not None, "the slot has gone on by itself"

    assert isinstance(step(quick), Claim)


def test_what_is_ready_starts_however_often_another_queue_wants_to_be_looked_at() -> None:
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


def test_handlers_that_take_a_while_are_started_before_more_is_claimed() -> None:
    slow = taught(10, 0.02)
    claim_all(slow, jobs(4))
    first = step(slow)
    assert isinstance(first, Start)
    assert isinstance(step(slow), Start)
    slow.finished(first.job, 0.02)

    assert isinstance(step(slow), Start)
    assert isinstance(step(slow), Start)


def test_a_settlement_that_was_put_off_is_written_while_jobs_are_claimed() -> None:
    quick = taught(10, 0.001, max_claim=20)
    claim_all(quick, jobs(15))
    start_all(quick)
    late = done(job("locked"))
    quick.settle_later(late, NOW)

    assert isinstance(step(quick, NOW + SETTLED_IN - 0.001), Claim)
    assert step(quick, NOW + SETTLED_IN) == Settle((late,))


def test_a_slot_is_filled_first_if_nothing_runs() -> None:
    quick = taught(10, 0.001, max_claim=20)
    claim_all(quick, jobs(5))

    assert isinstance(step(quick), Start)


# ---- settlements ----------------------------------------------------------------------------


def test_jobs_are_claimed_before_others_are_settled_but_not_for_long() -> None:
    """Or what is ready runs out meanwhile; and however much there is to claim, all is settled."""
    quick = taught(10, 0.001, max_claim=20)
    claim_all(quick, jobs(20))
    ended = start_all(quick)
    for one in ended:
        quick.finished(one, 0.001)
        quick.settle(done(one), NOW)
    while quick.next_start("q") is not None:
        pass  # the slots go on by themselves

    assert isinstance(step(quick, NOW), Claim)
    assert isinstance(step(quick, NOW + SETTLED_IN - 0.001), Claim)
    assert isinstance(step(quick, NOW + SETTLED_IN), Settle)


def test_as_many_settlements_as_a_claim_has_jobs_come_first() -> None:
    quick = taught(10, 0.001, max_claim=20)
    claim_all(quick, jobs(15))
    start_all(quick)
    for n in range(20):
        assert isinstance(step(quick), Claim)
        quick.settle(done(job(f"ended-{n}")), NOW)

    settle = step(quick)
    assert isinstance(settle, Settle)
    assert len(settle.items) == 20


def test_an_idle_worker_settles_at_once() -> None:
    idle, running = busy(1)
    idle.finished(running[0], 0.01)

    idle.settle(item := done(running[0]), NOW)

    assert step(idle) == Settle((item,))


def test_a_busy_worker_waits_for_others_to_share_the_statement() -> None:
    full, running = busy(2, max_claim=1_000)
    full.finished(running[0], 60.0)
    full.settle(first := done(running[0]), NOW)
    caught_up(full)

    following = step(full)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(LINGER)

    full.settle(second := done(job("b")), NOW + LINGER / 2)
    assert step(full, NOW + LINGER) == Settle((first, second))


def test_half_a_batch_is_enough_to_settle_at_once() -> None:
    full, _ = busy(2, max_claim=10)
    items = [done(one) for one in jobs(5)]
    for item in items:
        full.settle(item, NOW)

    assert step(full) == Settle(tuple(items))


def test_a_statement_takes_two_batches_at_the_most() -> None:
    full, _ = busy(2, max_claim=10)
    items = [done(one) for one in jobs(50)]
    for item in items:
        full.settle(item, NOW)

    sizes = []
    while isinstance(following := step(full), Settle):
        sizes.append(len(following.items))

    assert sizes == [20, 20, 10]


def test_a_settlement_that_is_to_be_tried_later_waits_for_its_time() -> None:
    idle = core(1)
    caught_up(idle)
    idle.settle_later(item := done(job()), NOW + 0.5)

    following = step(idle)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(0.5)
    assert step(idle, NOW + 0.5) == Settle((item,))


def test_a_queue_whose_settlements_are_refused_is_claimed_from_no_more_for_a_while() -> None:
    """What runs there would run again; the other queue goes on."""
    core = Planner({"q": 2, "other": 2}, WorkerSettings())

    def claims() -> set[str]:
        found = set()
        core.wake(None, NOW)
        while isinstance(following := step(core), Claim):
            found.add(following.queue)
            core.claim_sent(following.queue, NOW, from_head=True)
            core.polled(following.queue, following.limit, 0, None, NOW, listening=False)
        assert following != Wait(0.0), "it must not spin"
        return found

    refused = [done(one) for one in jobs(MOST_UNWRITTEN)]
    for item in refused:
        item.tries = 1
    for item in refused[1:]:
        core.settle_later(item, NOW + 1.0)
    assert claims() == {"q", "other"}
    core.settle_later(refused[0], NOW + 1.0)
    assert claims() == {"other"}

    again = step(core, NOW + 1.0)
    assert isinstance(again, Settle)
    for item in again.items:
        item.tries = 2
        core.settle_later(item, NOW + 5.0)
    assert claims() == {"other"}
    core.written(again.items[0])
    assert claims() == {"q", "other"}


def test_a_settlement_that_is_void_is_unwritten_no_more() -> None:
    """A handler's own commit was sooner than the release of its job at a shutdown."""
    core = Planner({"q": 2}, WorkerSettings())
    unwritten = [done(one) for one in jobs(MOST_UNWRITTEN)]
    for item in unwritten:
        item.tries = 1
        core.settle_later(item, NOW + 1.0)
    assert isinstance(step(core), Wait)

    core.settled(unwritten[0].job)

    assert isinstance(step(core), Claim)


def test_what_is_to_be_written_at_once_does_not_wait_behind_what_came_before() -> None:
    """An unknown type or a failed batch: its time has long passed."""
    full, _ = busy(2)
    full.settle(recent := done(job("recent")), NOW)
    full.settle(urgent := done(job("urgent")), 0.0)

    assert step(full, NOW + 0.001) == Settle((recent, urgent))


@pytest.mark.parametrize(
    ("fate", "seconds"),
    [
        (Fate.LOCKED, [0.05, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]),
        (Fate.FAILED, [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]),
    ],
)
def test_a_settlement_is_tried_again_ever_later(fate: Fate, seconds: list[float]) -> None:
    assert [settle_again_after(fate, tries) for tries in range(len(seconds))] == seconds


def test_a_row_that_stays_locked_for_days_overflows_nothing() -> None:
    assert settle_again_after(Fate.LOCKED, 1_000_000) == 5.0


def test_without_a_connection_settlements_are_kept() -> None:
    cut = core(1)
    cut.settle(item := done(job()), NOW)

    assert step(cut, may_claim=False) == Wait(AGAIN)
    assert cut.unsettled() == [item]
    assert step(cut) == Settle((item,))


# ---- the end --------------------------------------------------------------------------------


def test_draining_hands_back_then_waits_for_what_runs_then_settles_then_ends() -> None:
    ending = core(1)
    claim_all(ending, jobs(3))
    (running,) = start_all(ending)

    ending.draining = True

    back = step(ending)
    assert isinstance(back, HandBack)
    assert [one.id for one in back.jobs] == ["job-1", "job-2"]
    assert isinstance(step(ending), Wait)
    assert ending.next_start("q") is None

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


def test_a_draining_worker_does_not_end_while_its_connection_is_down() -> None:
    ending = core(1)
    claim_all(ending, jobs(1))
    ending.draining = True

    assert step(ending, may_claim=False) == Wait(AGAIN)
    assert isinstance(step(ending), HandBack)


def test_lost_leases_are_forgotten() -> None:
    lost = core(1)
    claim_all(lost, jobs(3))
    start_all(lost)

    assert [one.id for one in lost.forget_ready()] == ["job-1", "job-2"]
    assert lost.ready() == []
    assert lost.running == 1


# ---- any order of events --------------------------------------------------------------------


@dataclass
class World:
    """The table and the handlers, as the core's driver sees them."""

    due: list[str] = field(default_factory=list)
    running: list[ClaimedJob] = field(default_factory=list)
    settled: list[str] = field(default_factory=list)
    suspect: set[str] = field(default_factory=set)


class Machine(RuleBasedStateMachine):
    """A worker with two queues, whatever its handlers and its connection do."""

    def __init__(self) -> None:
        super().__init__()
        self.options = WorkerSettings(max_claim=6)
        self.slots = {"a": 1, "b": 3}
        self.core = Planner(self.slots, self.options)
        self.world = {name: World() for name in self.slots}
        self.now = NOW
        self.numbers = count()
        self.known: set[str] = set()
        self.finished = False

    # -- what the world does

    @precondition(lambda self: not self.finished)
    @rule(queue=st.sampled_from("ab"), number=st.integers(1, 12), suspect=st.booleans())
    def enqueue(self, queue: str, number: int, suspect: bool) -> None:
        new = [f"{queue}{next(self.numbers)}" for _ in range(number)]
        self.known |= set(new)
        self.world[queue].due += new
        if suspect:
            self.world[queue].suspect |= set(new)
        self.core.wake(queue, self.now)

    @precondition(lambda self: any(world.running for world in self.world.values()))
    @rule(data=st.data(), seconds=st.sampled_from([0.0, 0.0001, 0.01, 1.0, 100.0]))
    def a_handler_ends(self, data: st.DataObject, seconds: float) -> None:
        queue = data.draw(st.sampled_from([q for q in self.world if self.world[q].running]))
        running = self.world[queue].running
        ended = running.pop(data.draw(st.integers(0, len(running) - 1)))
        self.core.finished(ended, seconds)
        self.core.settle(done(ended), self.now)
        if data.draw(st.booleans()) and (following := self.core.next_start(queue)):
            running.append(following)

    @rule(seconds=st.sampled_from([0.000_1, 0.005, 0.02, 0.5, 1.5]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def stop(self) -> None:
        self.core.draining = True

    @precondition(lambda self: not self.finished)
    @rule(may_start=st.booleans(), may_claim=st.booleans(), answers=st.booleans())
    def one_step(self, may_start: bool, may_claim: bool, answers: bool) -> None:
        self.take(may_start, may_claim, answers)

    @precondition(lambda self: not self.finished)
    @rule()
    def steps_until_it_waits(self) -> None:
        """With all in order a wait must come, and must be a real one."""
        for _ in range(1_000):
            following = self.take(may_start=True, may_claim=True, answers=True)
            if isinstance(following, Finished):
                return
            if isinstance(following, Wait):
                assert following.seconds > 0, "a busy loop"
                self.nothing_lingers()
                return
        raise AssertionError("1,000 steps without a wait")

    # -- what the driver does

    def take(self, may_start: bool, may_claim: bool, answers: bool) -> Step:
        following = self.core.next_step(self.now, may_start=may_start, may_claim=may_claim)
        match following:
            case Start(started):
                assert may_start
                self.world[started.queue].running.append(started)
            case Announce(queues):
                assert may_claim
                self.core.announced(queues if answers else None)
            case Claim(queue, limit, onward):
                assert may_claim
                assert may_start
                assert not self.core.draining
                assert 1 <= limit <= self.options.max_claim
                self.core.claim_sent(queue, self.now, from_head=onward is None)
                if answers:
                    self.answer(queue, limit, from_head=onward is None)
            case Settle(items):
                assert may_claim
                for item in items:
                    if answers:
                        self.world[item.job.queue].settled.append(item.job.id)
                    else:
                        self.core.settle(item, 0.0)
            case HandBack(back):
                assert may_claim
                for one in back:
                    self.world[one.queue].due.append(one.id)
            case Wait(seconds):
                assert 0 <= seconds <= self.options.poll_interval
            case Finished():
                assert self.core.draining
                assert not any(world.running for world in self.world.values())
                self.finished = True
        return following

    def answer(self, queue: str, limit: int, *, from_head: bool) -> None:
        world = self.world[queue]
        got, world.due = world.due[:limit], world.due[limit:]
        claimed = [job(id, queue=queue, suspect=id in world.suspect) for id in got]
        self.core.claimed(queue, claimed, self.now)
        if from_head:
            self.core.head_scanned(queue, [0], 0.0, self.now)
        self.core.polled(queue, limit, len(got), None, self.now, listening=True)

    # -- what must hold

    @invariant()
    def no_more_run_than_slots(self) -> None:
        for queue, slots in self.slots.items():
            assert len(self.world[queue].running) <= slots
        assert self.core.running == sum(len(world.running) for world in self.world.values())

    @invariant()
    def each_job_is_in_one_place(self) -> None:
        places: list[str] = []
        for world in self.world.values():
            places += world.due + world.settled + [one.id for one in world.running]
        places += [one.id for one in self.core.ready()]
        places += [item.job.id for item in self.core.unsettled()]
        assert sorted(places) == sorted(self.known)

    def nothing_lingers(self) -> None:
        """At a wait: nothing is due, no slot is idle beside a job, nothing suspect is held."""
        ready = Counter(one.queue for one in self.core.ready())
        for queue, slots in self.slots.items():
            if len(self.world[queue].running) < slots:
                assert not ready[queue]
        assert not any(one.suspect for one in self.core.ready())
        self.now += LINGER
        ends = (Wait, Finished)
        while not isinstance(self.take(may_start=True, may_claim=True, answers=True), ends):
            pass
        assert not self.core.unsettled()

    def teardown(self) -> None:
        """Whatever happened, a stop with time to spare ends."""
        self.core.draining = True
        for _ in range(1_000):
            following = self.take(may_start=True, may_claim=True, answers=True)
            if isinstance(following, Finished):
                break
            if isinstance(following, Wait):
                self.now += max(following.seconds, 0.001)
                for world in self.world.values():
                    for ended in world.running:
                        self.core.finished(ended, 0.01)
                        self.core.settle(done(ended), self.now)
                    world.running = []
        assert self.finished
        self.each_job_is_in_one_place()
        assert not self.core.ready()
        assert not self.core.unsettled()


TestAnyOrder = Machine.TestCase
TestAnyOrder.settings = settings(
    max_examples=100,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)


# ---- pauses of a queue --------------------------------------------------------------------------


def test_a_connection_that_is_found_ends_no_refusal_of_claims() -> None:
    """Refused claims, and sessions without a connection, each have a pause of their own."""
    core = Planner({"q": 2}, WorkerSettings())
    core.claimed("q", [job()], NOW)
    started = core.next_start("q")
    assert started is not None
    core.refused("q", NOW + 60.0, NOW)

    core.put_off(started, NOW + 1.0, NOW)
    core.go_on("q", NOW + 0.5)

    for at in (NOW + 0.5, NOW + 59.0):
        assert not isinstance(core.next_step(at, may_start=True, may_claim=True), Claim)
    assert isinstance(core.next_step(NOW + 60.0, may_start=True, may_claim=True), Claim)


def test_a_refused_claim_shortens_no_pause() -> None:
    core = Planner({"q": 2}, WorkerSettings())
    core.claimed("q", [job()], NOW)
    started = core.next_start("q")
    assert started is not None
    core.put_off(started, NOW + 5.0, NOW)

    core.refused("q", NOW + 1.0, NOW)

    assert not isinstance(core.next_step(NOW + 2.0, may_start=True, may_claim=True), Claim)
    core.go_on("q", NOW + 2.0)
    assert isinstance(core.next_step(NOW + 2.0, may_start=True, may_claim=True), Claim)
