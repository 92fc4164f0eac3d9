"""How often a worker looks at the schedules, if it is told of changes all the time. No database."""

from __future__ import annotations

import time
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from sqlalchemy_bgjob._handlers.registry import Registry
from sqlalchemy_bgjob._lifecycle import fire
from sqlalchemy_bgjob._worker.scheduler import ASKED_AGAIN, Scheduler
from sqlalchemy_bgjob.telemetry import Events

if TYPE_CHECKING:
    import pytest


def test_who_is_told_all_the_time_looks_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of schedules that are put one by one, or by forgery: jobs are claimed and settled too."""
    now = 1_000.0
    runtime: Any = SimpleNamespace(wake=lambda: None)
    unused: Any = None
    scheduler = Scheduler(Registry(), {"q": 1}, runtime, unused, Events(()))

    def look(*_: Any, **__: Any) -> list[Any]:
        nonlocal now
        now += 1.0  # over a slow network
        scheduler.look_soon()
        return []

    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(fire, "look_at_schedules", look)
    assert scheduler.due_at == inf
    scheduler.look_soon()
    assert scheduler.due_at <= now, "at once"

    for _ in range(3):
        scheduler.fire_due(unused)
        assert scheduler.is_asked
        assert scheduler.due_at == now + ASKED_AGAIN


def test_what_is_due_is_not_put_off(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_000.0
    runtime: Any = SimpleNamespace(wake=lambda: None)
    unused: Any = None
    scheduler = Scheduler(Registry(), {"q": 1}, runtime, unused, Events(()))
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(Scheduler, "_fire_due", lambda *_: now + ASKED_AGAIN / 2)

    scheduler.fire_due(unused)
    scheduler.look_soon()

    assert scheduler.due_at == now + ASKED_AGAIN / 2
