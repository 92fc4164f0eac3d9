"""Names handlers that go on after their ``timeout``.

A thread can't be ended, nor can a coroutine that swallows its cancellation: such a handler keeps
its slot until it returns. If no handler has a timeout, runs are never looked at.
"""

import time
from collections.abc import Iterable
from typing import Final

from .run import Run

UNTIL_OVERDUE: Final = 1.0
"""Seconds beyond its deadline that a handler may take to notice it and to return."""
_NEVER: Final = float("inf")


class Overdue:
    """Knows when to look for overdue runs, and reports each once."""

    def __init__(self) -> None:
        self.look_at = _NEVER
        """When to look, by the monotonic clock."""

    def starts(self, run: Run) -> None:
        """A run is about to start."""
        if run.handler.options.timeout is not None:
            self.look_at = min(self.look_at, _overdue_at(run))

    def look(self, runs: Iterable[Run], now: float) -> list[Run]:
        """The overdue ones of the worker's runs that were not reported yet."""
        waiting = [
            run for run in runs if run.handler.options.timeout is not None and not run.told_overdue
        ]
        found = [run for run in waiting if run.deadline is not None and _overdue_at(run) <= now]
        for run in found:
            run.told_overdue = True
        self.look_at = min(
            (_overdue_at(run) for run in waiting if not run.told_overdue), default=_NEVER
        )
        return found


def _overdue_at(run: Run) -> float:
    # The run's own thread or task sets the deadline, a moment after the start.
    deadline = run.deadline or time.monotonic() + (run.handler.options.timeout or 0.0)
    return deadline + UNTIL_OVERDUE
