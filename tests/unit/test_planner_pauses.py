"""How long a queue rests that refuses claims, settlements or connections."""

from __future__ import annotations

from sqlalchemy_bgjob._lifecycle.claim import Look
from sqlalchemy_bgjob._worker.plan.planner import Planner
from sqlalchemy_bgjob._worker.plan.queue import MOST_UNWRITTEN
from sqlalchemy_bgjob._worker.plan.steps import Claim, Settle, Wait
from sqlalchemy_bgjob.settings import WorkerSettings
from support.planning import (
    NOW,
    claim,
    claim_all,
    done,
    job,
    jobs,
    step,
)


def test_a_queue_that_refuses_is_left_alone_and_then_looked_at() -> None:
    two = Planner({"a": 1, "b": 1}, WorkerSettings())
    two.refused("a", NOW + 5.0, NOW)
    assert step(two) == claim("b", 1)

    two.wake("a", NOW + 1.0)
    assert step(two, NOW + 4.9) == claim("b", 1)
    assert step(two, NOW + 5.0) == Claim((Look("b", 1), Look("a", 1)))


def test_after_a_refused_claim_each_queue_is_claimed_from_alone() -> None:
    """One of them may be to blame; those that are not are claimed from together again."""
    three = Planner({"a": 1, "b": 1, "c": 1}, WorkerSettings())
    for queue in ("a", "b", "c"):
        three.claim_alone(queue, NOW)

    assert step(three) == claim("a", 1)
    three.refused("a", NOW + 5.0, NOW)
    assert step(three) == claim("b", 1)
    three.polled("b", 1, 0, None, NOW, listening=False)
    assert step(three) == claim("c", 1)
    three.polled("c", 1, 0, None, NOW, listening=False)

    for queue in ("b", "c"):
        three.wake(queue, NOW + 5.0)
    found = [step(three, NOW + 5.0) for _ in range(2)]
    assert claim("a", 1) in found
    assert Claim((Look("b", 1), Look("c", 1))) in found


def test_a_queue_claimed_from_alone_has_its_turn() -> None:
    """The others are always full, and are claimed from together."""
    three = Planner({"a": 1, "b": 1, "c": 1}, WorkerSettings())
    three.claim_alone("b", NOW)
    found = []

    for n in range(4):
        following = step(three)
        assert isinstance(following, Claim)
        found.append({look.queue for look in following.looks})
        for look in following.looks:
            claim_all(three, [one := job(f"{n}", queue=look.queue)], queue=look.queue)
            assert three.next_start(look.queue, NOW) is one
            three.finished(one, 10.0)

    assert {"b"} in found


def test_refused_settlements_pause_the_claims_of_their_queue() -> None:
    """What runs there would run again; the other queue goes on."""
    core = Planner({"q": 2, "other": 2}, WorkerSettings())

    def claims() -> set[str]:
        found = set()
        core.wake(None, NOW)
        while isinstance(following := step(core), Claim):
            for look in following.looks:
                found.add(look.queue)
                core.claim_sent(look.queue, NOW, from_head=True)
                core.polled(look.queue, look.limit, 0, None, NOW, listening=False)
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


def test_a_connection_that_is_found_ends_no_refusal_of_claims() -> None:
    """Refused claims, and sessions without a connection, each have a pause of their own."""
    core = Planner({"q": 2}, WorkerSettings())
    core.claimed("q", [job()], NOW)
    started = core.next_start("q", NOW)
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
    started = core.next_start("q", NOW)
    assert started is not None
    core.put_off(started, NOW + 5.0, NOW)

    core.refused("q", NOW + 1.0, NOW)

    assert not isinstance(core.next_step(NOW + 2.0, may_start=True, may_claim=True), Claim)
    core.go_on("q", NOW + 2.0)
    assert isinstance(core.next_step(NOW + 2.0, may_start=True, may_claim=True), Claim)
