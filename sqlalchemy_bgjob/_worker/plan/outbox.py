"""Settlements that wait to be written: soon and together, or later. Pure."""

from collections import deque
from heapq import heappop, heappush
from itertools import count
from typing import Final

from ..._lifecycle.claim import ClaimedJob
from ..._lifecycle.settle import Fate, Pending

LINGER: Final = 0.010
"""The longest a settlement waits for others to share its statement, in seconds."""
_RETRY_LOCKED: Final = (0.05, 5.0)
_RETRY_REFUSED: Final = (1.0, 60.0)


class Outbox:
    """The settlements of a worker that are not on their way."""

    def __init__(self) -> None:
        self._soon: deque[Pending] = deque()
        self._since = 0.0  # when the first of them began to wait
        self._later: list[tuple[float, int, Pending]] = []  # a heap by time
        self._count = count()

    def __bool__(self) -> bool:
        return bool(self._soon or self._later)

    @property
    def waiting(self) -> int:
        """How many are to be written soon."""
        return len(self._soon)

    def items(self) -> list[Pending]:
        """All of them."""
        return [*self._soon, *(item for _, _, item in self._later)]

    def add(self, item: Pending, now: float) -> None:
        """Write it soon; it waits since then."""
        if now < self._since or not self._soon:
            self._since = now
        self._soon.append(item)

    def add_later(self, item: Pending, at: float) -> None:
        """Write it, not before the given time."""
        heappush(self._later, (at, next(self._count), item))

    def drop(self, job: ClaimedJob) -> None:
        """Forget those of a job."""
        self._soon = deque(item for item in self._soon if item.job is not job)
        self._later = sorted(entry for entry in self._later if entry[2].job is not job)

    def bring_due(self, now: float) -> bool:
        """Let those whose time has come be written soon; whether there are any such now."""
        while self._later and self._later[0][0] <= now:
            at, _, item = heappop(self._later)
            self.add(item, at)
        return bool(self._soon)

    def is_due(self, now: float, batch: float, linger: float) -> bool:
        """Whether there are *batch* to be written, or one has waited for *linger* seconds."""
        return len(self._soon) >= batch or now >= self._since + linger

    def take(self, now: float, most: int) -> tuple[Pending, ...]:
        """Take out the first ones, at most that many; the others wait anew."""
        self._since = now
        return tuple(self._soon.popleft() for _ in range(min(len(self._soon), most)))

    def due_at(self, now: float) -> float:
        """When one of them must be written; infinity if there is none."""
        times = [self._later[0][0]] if self._later else []
        if self._soon:
            times.append(max(self._since + LINGER, now))
        return min(times, default=float("inf"))


def settle_again_after(fate: Fate, tries: int) -> float:
    """Seconds until a settlement that was not written is tried again, after this many *tries*."""
    first, last = _RETRY_LOCKED if fate is Fate.LOCKED else _RETRY_REFUSED
    return float(min(first * 2 ** min(tries, 10), last))  # a row may stay locked for days
