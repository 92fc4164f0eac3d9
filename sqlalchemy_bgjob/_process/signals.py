"""Counts how often a process was told to stop, whatever number of signals that took.

One request to stop often arrives as several signals within milliseconds: systemd signals every
process of the service, and the supervisor passes its own signal on to the same processes. An init
that signals the group, ``timeout`` and ``uv run`` do likewise. So a signal within a second of one
that counts is the same request.
"""

import signal
import time
from collections.abc import Callable
from typing import Final

SIGNALS: Final = (signal.SIGTERM, signal.SIGINT)
SAME_WITHIN: Final = 1.0
"""Seconds, by the monotonic clock when Python runs the signal's handler.

The handler runs in the main thread between two bytecodes, perhaps later than the signal."""


class Requests:
    """The signals that count, in order. Pure, but for the clock; signal handlers may use it."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._counted_at = float("-inf")
        self.numbers: list[int] = []

    def add(self, number: int) -> bool:
        """Note a signal; whether it is a new request, and not an echo of the last."""
        now = self._clock()
        if now - self._counted_at < SAME_WITHIN:
            return False
        self._counted_at = now
        self.numbers.append(number)
        return True
