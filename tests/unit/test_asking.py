"""Looking which jobs are to be cancelled, while jobs start. No database."""

from __future__ import annotations

import time
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy_bgjob._worker import asking as asking_module
from sqlalchemy_bgjob._worker.asking import ASKED_AGAIN, Asking
from sqlalchemy_bgjob._worker.hands import Hands
from sqlalchemy_bgjob.settings import WorkerSettings
from sqlalchemy_bgjob.telemetry import Events
from support.planning import job
from support.tables import new_queue

if TYPE_CHECKING:
    import pytest


def test_a_job_that_starts_during_the_look_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """It was claimed and not started when the look began; the next look may be long in coming."""
    runtime: Any = SimpleNamespace(wake=lambda: None, cancel=lambda run: None)
    unused: Any = SimpleNamespace(get=lambda: None)
    hands = Hands(runtime, Events(()), {"q": 2}, WorkerSettings())
    handler = new_queue().handler("t")(lambda ctx: None)
    claimed = replace(job("a"), handler=handler)
    hands.planner.claimed("q", [claimed], time.monotonic())
    started: list[Any] = []

    def find(*_: Any, **given: Any) -> set[str]:
        ready = hands.planner.next_start("q", time.monotonic())
        assert ready is claimed
        started.append(hands.take_up(ready))
        return {one.id for one in given["jobs"]}

    monkeypatch.setattr(asking_module, "find_asked", find)
    hands.look_for_asks()
    Asking(hands, unused, unused, WorkerSettings()).look(claimed.worker_id)

    assert started[0].asked_at is not None


def test_who_is_told_all_the_time_looks_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anybody may notify, however often: jobs are claimed and settled between two looks."""
    now = 1_000.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    runtime: Any = SimpleNamespace(wake=lambda: None, cancel=lambda run: None)
    unused: Any = SimpleNamespace(get=lambda: None)
    hands = Hands(runtime, Events(()), {"q": 2}, WorkerSettings())
    handler = new_queue().handler("t")(lambda ctx: None)
    claimed = replace(job("a"), handler=handler)
    hands.planner.claimed("q", [claimed], now)
    ready = hands.planner.next_start("q", now)
    assert ready is claimed
    hands.take_up(ready)
    looks = 0

    def find(*_: Any, **__: Any) -> set[str]:
        nonlocal now, looks
        now, looks = now + 1.0, looks + 1  # over a slow network
        hands.look_for_asks()
        return set()

    monkeypatch.setattr(asking_module, "find_asked", find)
    asking = Asking(hands, unused, unused, WorkerSettings())
    hands.look_for_asks()
    assert asking.due_at <= now, "at once"

    for _ in range(3):
        asking.look(claimed.worker_id)
        assert asking.due_at == now + ASKED_AGAIN

    assert looks == 3
