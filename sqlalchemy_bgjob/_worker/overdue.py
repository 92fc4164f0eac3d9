"""Finds handlers that go on after they were told to end: by their ``timeout``, or by a cancel.

A thread can't be ended, nor can a coroutine that swallows its cancellation: such a handler keeps
its slot until it returns. It is named first, and *stuck* later. Runs that have no timeout and were
not told to end are never looked at.
"""

import time
from collections.abc import Iterable
from typing import Final, NamedTuple

from .run import Run

UNTIL_OVERDUE: Final = 1.0
"""Seconds beyond its deadline that a handler may take to notice it and to return."""
UNTIL_STUCK: Final = 30.0
"""Seconds that a coroutine without ``grace`` may take to end after it was cancelled."""
_NEVER: Final = float("inf")


class Found(NamedTuple):
    """What a look has found, each run once."""

    overdue: list[Run]
    stuck: list[Run]


class Overdue:
    """Knows when to look for overdue and stuck runs, and reports each once."""

    def __init__(self) -> None:
        self.look_at = _NEVER
        """When to look, by the monotonic clock."""

    def starts(self, run: Run) -> None:
        """A run is about to start."""
        if run.handler.options.timeout is not None:
            self.look_at = min(self.look_at, _overdue_at(run), _stuck_at(run))

    def asked(self, run: Run) -> None:
        """A run was asked to end."""
        self.look_at = min(self.look_at, _stuck_at(run))

    def look(self, runs: Iterable[Run], now: float) -> Found:
        """Those of the worker's runs that are newly overdue or stuck.

        The caller sets ``stuck``; a run that it leaves alone is reported again a moment later.
        """
        found = Found([], [])
        times = [_NEVER]
        for run in runs:
            if not run.told_overdue and (at := _overdue_at(run)) < _NEVER:
                if run.deadline is not None and at <= now:
                    run.told_overdue = True
                    found.overdue.append(run)
                else:
                    times.append(at)
            if not run.stuck and (at := _stuck_at(run)) < _NEVER:
                if at <= now:
                    found.stuck.append(run)
                    at = now + UNTIL_OVERDUE
                times.append(at)
        self.look_at = min(times)
        return found


def _deadline(run: Run) -> float:
    if (timeout := run.handler.options.timeout) is None:
        return _NEVER
    # The run's own thread or task sets the deadline, a moment after the start.
    return run.deadline or time.monotonic() + timeout


def _overdue_at(run: Run) -> float:
    return _deadline(run) + UNTIL_OVERDUE


def _stuck_at(run: Run) -> float:
    """When a run counts as stuck; a function without ``grace`` never does."""
    patience = run.handler.options.grace
    if patience is None:
        patience = UNTIL_STUCK if run.handler.is_coroutine else _NEVER
    asked_at = _NEVER if run.asked_at is None else run.asked_at
    return min(_deadline(run), asked_at) + patience
