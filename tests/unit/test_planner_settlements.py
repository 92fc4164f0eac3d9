"""When the planner settles, and how many settlements share a statement."""

from __future__ import annotations

import pytest

from sqlalchemy_bgjob._lifecycle.settle import Fate
from sqlalchemy_bgjob._worker.plan.outbox import LINGER, settle_again_after
from sqlalchemy_bgjob._worker.plan.planner import AGAIN, SETTLED_IN, Planner
from sqlalchemy_bgjob._worker.plan.queue import MOST_UNWRITTEN
from sqlalchemy_bgjob._worker.plan.steps import Claim, Settle, Wait
from sqlalchemy_bgjob.settings import WorkerSettings
from support.planning import (
    NOW,
    busy,
    caught_up,
    claim_all,
    core,
    done,
    job,
    jobs,
    start_all,
    step,
    taught,
)


def test_a_settlement_put_off_is_written_while_jobs_are_claimed() -> None:
    quick = taught(10, 0.001, max_claim=20)
    claim_all(quick, jobs(15))
    start_all(quick)
    late = done(job("locked"))
    quick.settle_later(late, NOW)

    assert isinstance(step(quick, NOW + SETTLED_IN - 0.001), Claim)
    assert step(quick, NOW + SETTLED_IN) == Settle((late,))


def test_claims_go_before_settlements_but_not_for_long() -> None:
    """Or what is ready runs out meanwhile; and however much there is to claim, all is settled."""
    quick = taught(10, 0.001, max_claim=20)
    claim_all(quick, jobs(20))
    ended = start_all(quick)
    for one in ended:
        quick.finished(one, 0.001)
        quick.settle(done(one), NOW)
    while quick.next_start("q", NOW) is not None:
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


def test_a_settlement_to_be_retried_waits_for_its_time() -> None:
    idle = core(1)
    caught_up(idle)
    idle.settle_later(item := done(job()), NOW + 0.5)

    following = step(idle)
    assert isinstance(following, Wait)
    assert following.seconds == pytest.approx(0.5)
    assert step(idle, NOW + 0.5) == Settle((item,))


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


def test_an_urgent_settlement_does_not_wait_behind_others() -> None:
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
