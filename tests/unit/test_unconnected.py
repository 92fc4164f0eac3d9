"""What a worker was about to do when it could not connect: it is done later. No database."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from sqlalchemy.exc import OperationalError

from sqlalchemy_bgjob._handlers.registry import Registry
from sqlalchemy_bgjob._worker.asking import Asking
from sqlalchemy_bgjob._worker.claiming import Claiming
from sqlalchemy_bgjob._worker.hands import Hands
from sqlalchemy_bgjob._worker.plan.steps import Claim, PassOn, Wait
from sqlalchemy_bgjob._worker.unknown_claims import (
    REFUSED_AGAIN,
    RETURN_AFTER,
    UnknownClaims,
)
from sqlalchemy_bgjob.settings import WorkerSettings
from sqlalchemy_bgjob.telemetry import Events
from support.planning import NOW, caught_up, claim_all, job, jobs, start_all, step
from support.tables import new_queue

UNUSED: Any = None


def refuse() -> None:
    """As psycopg does: no SQLSTATE, and no connection that was lost."""
    raise OperationalError(None, None, Exception("connection refused"))


CONTROL: Any = SimpleNamespace(get=refuse, for_claim=refuse)


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> Hands:
    """Those of a worker that has found nothing for a while, and whose producers notify."""
    monkeypatch.setattr(time, "monotonic", lambda: NOW)
    runtime: Any = SimpleNamespace(wake=lambda: None)
    hands = Hands(runtime, Events(()), {"q": 2}, WorkerSettings())
    caught_up(hands.planner)
    return hands


@pytest.fixture
def claiming(hands: Hands) -> Claiming:
    return Claiming(
        Registry(),
        lambda _: True,
        WorkerSettings(),
        UNUSED,
        control=CONTROL,
        hands=hands,
        heart=UNUSED,
        listener=UNUSED,
        unknown=UNUSED,
        events=Events(()),
    )


def test_a_job_that_is_due_is_looked_for_again(hands: Hands, claiming: Claiming) -> None:
    """Nobody notifies of it, and the next poll is some seconds away."""
    planner = hands.planner
    planner.expect("q", NOW)
    following = step(planner)
    assert isinstance(following, Claim)
    planner.claim_sent("q", NOW, from_head=True)
    assert isinstance(step(planner), Wait), "or this test shows nothing"

    with pytest.raises(OperationalError):
        claiming.claim(following, 7)

    assert isinstance(step(planner), Claim)


def test_a_wake_up_is_passed_on_later(hands: Hands, claiming: Claiming) -> None:
    planner = hands.planner
    claim_all(planner, jobs(2))
    start_all(planner)
    planner.wake("q", NOW, new=True, others=3)
    following = step(planner)
    assert isinstance(following, PassOn)
    planner.passed_on(following.queues)
    assert isinstance(step(planner), Wait), "or this test shows nothing"

    with pytest.raises(OperationalError):
        claiming.pass_on(following, 7)

    assert step(planner) == following


def test_cancels_are_looked_for_again(hands: Hands) -> None:
    """Also those of jobs that have not run for as long as a beat."""
    handler = new_queue().handler("t")(lambda ctx: None)
    claimed = replace(job("a"), handler=handler)
    claim_all(hands.planner, [claimed])
    assert hands.planner.next_start("q", NOW) is claimed
    hands.take_up(claimed)
    hands.look_for_asks()

    with pytest.raises(OperationalError):
        Asking(hands, CONTROL, UNUSED, WorkerSettings()).look(claimed.worker_id)

    assert hands.asks_all


def test_unknown_claims_are_looked_for_as_often_after_a_failure(
    hands: Hands, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may take a while to commit a claim, and longer than the first look."""
    runtime: Any = SimpleNamespace(wake=lambda: None)
    unknown = UnknownClaims(hands, runtime, UNUSED)
    monkeypatch.setattr(unknown, "return_now", lambda *_: refuse())
    unknown.expect(7)

    with pytest.raises(OperationalError):
        unknown.return_due(UNUSED)

    times = []
    monkeypatch.setattr(unknown, "return_now", lambda *_: 0)
    while unknown.due_at < float("inf"):
        times.append(unknown.due_at)
        unknown.return_due(UNUSED)
    assert times == [NOW + REFUSED_AGAIN + pause for pause in RETURN_AFTER]
