"""The turns in which the leader looks through the batches."""

from __future__ import annotations

from math import inf
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob._lifecycle.batches import Looked
from sqlalchemy_bgjob._worker import batch_sweep
from sqlalchemy_bgjob._worker.batch_sweep import BatchSweep
from sqlalchemy_bgjob.settings import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Callable

NONE: Any = None
"""A connection and statements that nobody uses."""


def report(error: Exception) -> None: ...


class Looks:
    """What is looked for, and from where on, in place of the real looks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked = list[tuple[str, str]]()
        self.fails = False
        self.last: str | None = None
        for name in ("look_through", "forget"):
            monkeypatch.setattr(batch_sweep, name, self._look(name))

    def _look(self, name: str) -> Callable[..., Looked]:
        def look(*_: Any, after: str, **__: Any) -> Looked:
            self.asked.append((name, after))
            if self.fails:
                raise LookupError("no right")
            return Looked(self.last, [])

        return look


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    return Looks(monkeypatch)


def test_a_turn_that_has_failed_begins_anew(looks: Looks) -> None:
    """And does not go on with what is behind: the batches are to be finished first."""
    sweep = BatchSweep(NONE, WorkerSettings(batch_keep=60.0), report)
    sweep.begin()
    looks.fails = True
    with pytest.raises(LookupError):
        sweep.turn(NONE)
    assert sweep.due_at == inf

    looks.fails = False
    sweep.begin()
    sweep.turn(NONE)

    assert looks.asked == [("look_through", ""), ("look_through", ""), ("forget", "")]
    assert sweep.due_at == inf


def test_what_was_just_looked_through_is_only_deleted(looks: Looks) -> None:
    """By a worker that ends idle: it has finished what was over."""
    for settings in (WorkerSettings(batch_keep=60.0), WorkerSettings(batch_keep=0.0)):
        sweep = BatchSweep(NONE, settings, report)
        sweep.begin(finishes=False)
        sweep.turn(NONE)

    assert looks.asked == [("forget", "")]


def test_a_sample_in_between_does_not_begin_anew(
    looks: Looks, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader's next sample of health may come before the end of the table is reached."""
    monkeypatch.setattr(batch_sweep, "LASTS", 0.0)
    looks.last = "b"
    sweep = BatchSweep(NONE, WorkerSettings(batch_keep=60.0), report)
    sweep.begin()
    sweep.turn(NONE)

    sweep.begin()
    sweep.turn(NONE)

    assert looks.asked == [("look_through", ""), ("look_through", "b")]
