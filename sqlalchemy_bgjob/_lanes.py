"""Where a queue is read on, so that no entry of a job that is gone is walked twice. Pure.

A lane is one priority of a queue. A claim leaves dead entries behind in the index, and as long as
any transaction on the server is open that is older than they are, nothing can take them away: a
claim that began at the head would walk all of them again, and slow down without end. So the next
claim begins where the last one stopped.

That must not miss a job. After a claim that came back short a lane is read from two seconds before
the server's clock, which finds what was committed late; and every second, or when something asks
for it, from the head, which finds everything: retries, jobs that were given back, priorities that
are new. Looks at the head take at most a tenth of a worker's time.
"""

from collections.abc import Sequence
from datetime import datetime
from typing import Final, NamedTuple

from ._validation import EARLIEST

LOOK_EVERY: Final = 1.0
"""Seconds between looks at the head, as long as they are short."""
LOOK_AT_LEAST_EVERY: Final = 10.0
LOOK_SHARE: Final = 10
"""A look is followed by this many times its own length without one."""
REMEMBERED: Final = 60.0
"""Seconds for which a lane is read that has no jobs any more: most get new ones."""


class Position(NamedTuple):
    """A lane, and the job after which it is read on; without a time, from two seconds ago."""

    priority: int
    at: datetime | None
    id: str


class Lanes:
    """The lanes of one queue as one worker knows them."""

    def __init__(self) -> None:
        self._positions: tuple[Position, ...] = ()
        self._seen_at: dict[int, float] = {}
        self._due_at = 0.0
        self._allowed_at = 0.0
        self._asked = False
        self._tried = False

    def ask(self) -> None:
        """Something may be found: read on, and if that finds nothing look at the head."""
        self._asked, self._tried = True, False

    def onward(self, now: float) -> tuple[Position, ...] | None:
        """Where the next claim reads on; None for the heads of all lanes."""
        if not self._positions or now >= self._due_at:
            return None
        return None if self.wants_look(now) else self._positions

    def wants_look(self, now: float) -> bool:
        """Whether what was asked for was not found by reading on, and there is time to look."""
        return self.look_in(now) == 0.0

    def sent(self) -> None:
        """A claim from the heads is on its way: what is asked from now on, it may not see."""
        self._asked = self._tried = False

    def look_in(self, now: float) -> float:
        """Seconds until what was asked for, and not found by reading on, may be looked for."""
        return max(self._allowed_at - now, 0.0) if self._asked and self._tried else float("inf")

    def looked(self, priorities: Sequence[int], seconds: float, now: float) -> None:
        """A claim from the heads has found these lanes, and took so long."""
        self._seen_at |= dict.fromkeys(priorities, now)
        self._seen_at = {p: at for p, at in self._seen_at.items() if now - at < REMEMBERED}
        self._positions = tuple(Position(p, EARLIEST, "") for p in sorted(self._seen_at))
        self._allowed_at = now + seconds * LOOK_SHARE
        self._due_at = now + min(max(LOOK_EVERY, seconds * LOOK_SHARE), LOOK_AT_LEAST_EVERY)

    def read(self, last: Position | None) -> None:
        """A claim has read the lanes to their ends; or, full, only as far as *last*."""
        self._tried = True
        self._positions = tuple(_read(position, last) for position in self._positions)

    def forget(self) -> None:
        """Begin anew at the heads."""
        self._positions = ()


def _read(position: Position, last: Position | None) -> Position:
    if last is None or position.priority < last.priority:
        return Position(position.priority, None, "")
    return last if position.priority == last.priority else position
