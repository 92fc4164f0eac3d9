"""When a worker looks again whether batches are over. No database."""

from __future__ import annotations

import time
from dataclasses import replace
from math import inf
from threading import RLock
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from sqlalchemy_bgjob._handlers.outcomes import COMPLETED
from sqlalchemy_bgjob._lifecycle.settle import Pending
from sqlalchemy_bgjob._worker import ended_batches
from sqlalchemy_bgjob._worker.ended_batches import EndedBatches
from sqlalchemy_bgjob._worker.hands import Hands
from sqlalchemy_bgjob.settings import WorkerSettings
from sqlalchemy_bgjob.telemetry import Events
from support.planning import job

if TYPE_CHECKING:
    from collections.abc import Callable

Looks = tuple[EndedBatches, Any]


@pytest.fixture
def looks() -> Looks:
    """And the hands, in which is the batch of a job that has ended."""
    hands: Any = SimpleNamespace(lock=RLock(), ended_batches={"a"})
    unused: Any = SimpleNamespace(get=lambda: None)
    return EndedBatches(hands, unused, unused), hands


def test_one_slow_look_does_not_put_off_the_next_for_long(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have waited for a machine that was busy, or for a new connection."""
    its, hands = looks
    monkeypatch.setattr(ended_batches, "SHARE", 1e9)
    monkeypatch.setattr(ended_batches, "finish", lambda *_: time.sleep(0.001))

    its.finish()

    hands.ended_batches.add("b")
    assert its.due_at <= time.monotonic() + ended_batches.MOST


def test_the_loop_is_woken_for_the_first_batch() -> None:
    """Though the slot goes on with its next job; for further ones it need not be."""
    woken: list[None] = []
    runtime: Any = SimpleNamespace(wake=lambda: woken.append(None))
    hands = Hands(runtime, Events(()), {"q": 2}, WorkerSettings())
    for batch, count in ((None, 0), ("a", 1), ("b", 1)):
        ended = replace(job("1"), extras=batch and [None, batch, None, None])
        hands.note([Pending(ended, COMPLETED)])
        assert len(woken) == count

    assert hands.ended_batches == {"a", "b"}


def raising(error: Exception) -> Callable[..., None]:
    def finish(*_: Any) -> None:
        raise error

    return finish


def test_it_looks_when_there_is_something(looks: Looks, monkeypatch: pytest.MonkeyPatch) -> None:
    """And rests for longer after a look that took longer."""
    its, hands = looks
    monkeypatch.setattr(ended_batches, "finish", lambda *_: time.sleep(0.05))
    assert its.due_at <= time.monotonic()

    begun = time.monotonic()
    its.finish()

    assert hands.ended_batches == set()
    assert its.due_at == inf
    hands.ended_batches.add("b")
    assert its.due_at >= begun + 1.0


def test_a_look_that_fails_is_not_made_again_at_once(
    looks: Looks, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Or the log would be full of it; the leader looks at what was left."""
    its, hands = looks
    monkeypatch.setattr(ended_batches, "finish", raising(LookupError("no right")))

    begun = time.monotonic()
    its.finish()

    assert hands.ended_batches == set()
    hands.ended_batches.add("b")
    assert its.due_at >= begun + 10.0
    assert caplog.text.count("batches were not finished") == 1


def test_what_a_lost_connection_has_left_is_looked_at_again(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    its, hands = looks
    lost = DBAPIError("SELECT", None, Exception(), connection_invalidated=True)
    monkeypatch.setattr(ended_batches, "finish", raising(lost))
    hands.ended_batches.add("b")

    with pytest.raises(DBAPIError):
        its.finish()

    assert hands.ended_batches == {"a", "b"}
    assert its.due_at <= time.monotonic()


def test_without_a_connection_they_stay_to_be_looked_at(looks: Looks) -> None:
    """The error of connecting need not look like that of a lost connection."""
    _, hands = looks
    refused = OperationalError(None, None, Exception("connection refused"))
    control: Any = SimpleNamespace(get=raising(refused))
    its = EndedBatches(hands, control, control)

    with pytest.raises(OperationalError):
        its.finish()

    assert hands.ended_batches == {"a"}
    assert its.due_at <= time.monotonic()
