"""Situations of the planner: jobs that are claimed, slots that are taken, queues that are empty."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy_bgjob._handlers.outcomes import COMPLETED
from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob, Look, Position
from sqlalchemy_bgjob._lifecycle.settle import Pending
from sqlalchemy_bgjob._worker.plan.planner import Planner
from sqlalchemy_bgjob._worker.plan.steps import Claim, Start, Step
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


def claim(queue: str, limit: int, onward: tuple[Position, ...] | None = None) -> Claim:
    """The step that claims from this queue alone."""
    return Claim((Look(queue, limit, onward),))


def claim_all(core: Planner, given: list[ClaimedJob], now: float = NOW, queue: str = "q") -> None:
    """What the worker does with the answer of a claim that found as much as it asked for."""
    core.claim_sent(queue, now)
    core.claimed(queue, given, now)
    core.polled(queue, len(given), len(given), None, now, listening=True)


def caught_up(core: Planner, *queues: str, due_in: float | None = None, now: float = NOW) -> None:
    """It has found nothing for a while, and producers know that it waits."""
    names = queues or ("q",)
    for name in names:
        core.polled(name, 2, 0, due_in, now, listening=True)
    core.announced(names)
    for name in names:
        for _ in range(12):
            core.polled(name, 2, 0, due_in, now, listening=True)


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


def running(core: Planner) -> int:
    """How many jobs run, as the planner counts them."""
    return sum(queue.running for queue in core._queues.values())
