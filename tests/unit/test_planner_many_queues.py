"""A worker of many queues: what a step costs follows from those that are due, and each is found."""

from __future__ import annotations

import random
from math import inf

import pytest

from sqlalchemy_bgjob._worker.plan.due import DueQueues
from sqlalchemy_bgjob._worker.plan.planner import Planner
from sqlalchemy_bgjob._worker.plan.polling import Polling
from sqlalchemy_bgjob._worker.plan.queue import Queue
from sqlalchemy_bgjob._worker.plan.steps import Announce, Claim, Wait
from sqlalchemy_bgjob.settings import WorkerSettings
from support.planning import NOW, step


def idle(number: int) -> tuple[Planner, float]:
    """N queues that are empty, whose producers notify; and a time at which no poll is near."""
    planner = Planner(dict.fromkeys([f"q{n}" for n in range(number)], 2), WorkerSettings())
    planner.listening = True
    moment = NOW
    while not isinstance(following := step(planner, moment), Wait) or following.seconds < 1.0:
        match following:
            case Wait(seconds):
                moment += seconds
            case Announce(queues):
                planner.announced(queues)
            case Claim(looks):
                for look in looks:
                    planner.claim_sent(look.queue, moment, from_head=True)
                    planner.head_scanned(look.queue, [0], 0.001, moment)
                    planner.polled(look.queue, look.limit, 0, inf, moment, listening=True)
            case _:
                pytest.fail(str(following))
    return planner, moment


def looked_at(number: int, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the next steps, up to a wait, look at the time of a queue's next poll."""
    planner, now = idle(number)
    looks = 0
    is_due, due_at = Polling.is_due, Polling.due_at

    def counted(self: Polling, moment: float) -> bool:
        nonlocal looks
        looks += 1
        return is_due(self, moment)

    def counted_at(self: Polling) -> float:
        nonlocal looks
        looks += 1
        return float(due_at.__get__(self))

    with monkeypatch.context() as patch:
        patch.setattr(Polling, "is_due", counted)
        patch.setattr(Polling, "due_at", property(counted_at))
        planner.wake("q1", now, new=True)
        following = step(planner, now)
        assert isinstance(following, Claim)
        assert [look.queue for look in following.looks] == ["q1"]
        planner.claim_sent("q1", now)
        planner.polled("q1", 2, 0, inf, now, listening=True)
        assert isinstance(step(planner, now), Wait)
    return looks


def test_a_step_costs_the_same_however_many_queues_are_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """With one that walked through all of them, a worker of 1,000 queues did nothing else."""
    assert looked_at(500, monkeypatch) <= looked_at(2, monkeypatch)


def test_queues_beyond_a_claim_come_next() -> None:
    names = [f"q{n}" for n in range(10)]
    planner = Planner(dict.fromkeys(names, 1), WorkerSettings(max_claim=4))
    found = []
    for _ in range(5):
        following = step(planner)
        assert isinstance(following, Claim)
        found.append([look.queue for look in following.looks])
        for look in following.looks:  # each is full, and so due again at once
            planner.polled(look.queue, look.limit, look.limit, None, NOW, listening=False)

    assert [name for looks in found for name in looks] == [*names, *names]


def test_paused_queues_are_not_due_until_they_are_resumed() -> None:
    """Nothing looks at them: they would stay due, and each step would walk through them."""
    queues = [Queue(f"q{n}", 1, Polling(1.0)) for n in range(3)]
    first, second, third = queues
    due = DueQueues(queues)
    assert due.at(NOW) == queues
    for q in (second, third):
        q.control(1, paused=True)
        due.changed(q)
    assert due.at(NOW) == [first]

    for q in queues:
        q.polling.wake(NOW)
        due.changed(q)
    assert due.at(NOW) == [first]
    assert due.next_at() == inf

    second.control(1, paused=False)
    due.changed(second)
    assert due.at(NOW) == [first, second]
    assert due.next_at() == inf


@pytest.mark.parametrize("seed", range(20))
def test_whatever_happens_those_are_found_that_are_due(seed: int) -> None:
    rng = random.Random(seed)
    queues = [Queue(f"q{n}", 1, Polling(1.0)) for n in range(8)]
    due = DueQueues(queues)
    now = NOW

    for _ in range(400):
        q = rng.choice(queues)
        match rng.randrange(9):
            case 0:
                q.polling.wake(now, others=rng.randrange(2))
            case 1:
                q.polling.expect(now + rng.random() * 3)
            case 2:
                q.polling.refused(now + rng.random() * 2)
            case 3:
                q.polling.pause(now + rng.choice([0.0, 0.5]))
            case 4:
                q.polling.announced(rng.random() < 0.5)
            case 5:
                due.give_way([q])
            case _:
                q.polling.sent(now)
                q.polling.polled(
                    rng.randrange(2),
                    now,
                    limit=rng.choice([1, 5]),
                    due_in=rng.choice([None, inf, rng.random() * 4]),
                    scan_in=rng.choice([inf, 0.0, 0.2]),
                    listening=rng.random() < 0.8,
                )
        due.changed(q)
        now += rng.choice([0.0, 0.001, 0.02, 0.3, 2.0])

        assert {q.name for q in due.at(now)} == {q.name for q in queues if q.polling.is_due(now)}
        later = [q.polling.due_at for q in queues if not q.polling.is_due(now)]
        assert due.next_at() == min(later, default=inf)
