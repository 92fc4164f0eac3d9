"""How many jobs the planner claims: as many as its handlers begin within a short time."""

from __future__ import annotations

import pytest

from sqlalchemy_bgjob._worker.plan.steps import Claim, Wait
from support.planning import NOW, claim, claim_all, core, job, jobs, start_all, step, taught


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
    assert step(taught(10, mean)) == claim("q", limit)


def test_max_claim_limits_every_claim() -> None:
    assert step(core(1_000, max_claim=50)) == claim("q", 50)
    assert step(taught(10, 0.000_1, max_claim=20)) == claim("q", 20)


def test_claims_shrink_when_the_handlers_become_slow() -> None:
    slower = taught(10, 0.001)
    limits = []

    for n in range(40):
        following = step(slower)
        assert isinstance(following, Claim)
        limits.append(following.looks[0].limit)
        one = job(f"{n}")
        claim_all(slower, [one])
        start_all(slower)
        slower.finished(one, 5.0)

    assert limits[0] == 510
    assert limits[-1] == 10
    assert limits == sorted(limits, reverse=True)


def test_with_all_slots_taken_half_a_batch_is_claimed_ahead() -> None:
    """Many small claims cost more than one."""
    quick = taught(10, 0.01)  # 50 may be held ahead
    claim_all(quick, jobs(60))
    running = start_all(quick)
    assert isinstance(step(quick), Wait)

    for _ in range(24):
        quick.finished(running.pop(), 0.01)
        following = quick.next_start("q", NOW)
        assert following is not None
        running.append(following)
    assert isinstance(step(quick), Wait)

    for _ in range(2):
        quick.finished(running.pop(), 0.01)
        following = quick.next_start("q", NOW)
        assert following is not None
        running.append(following)
    assert step(quick) == claim("q", 26)
