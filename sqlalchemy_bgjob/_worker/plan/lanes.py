"""Where a queue is read on, so that no entry of a job that is gone is walked twice. Pure.

A lane is one priority of a queue. A claim leaves dead entries behind in the index, and as long as
any transaction on the server is open that is older than they are, nothing can take them away: a
claim that began at the head would walk all of them again, and slow down without end. So the next
claim begins where the last one stopped.

That must not miss a job. After a claim that came back short a lane is read from two seconds before
the server's clock, which finds what was committed late; and every second, or when something asks
for it, from the head, which finds everything: retries, jobs that were given back, priorities that
are new. Looks that were asked for take at most a tenth of a worker's time; the others a
five-hundredth, where notifications tell of jobs that are given back: beside a long transaction a
look takes tens of milliseconds, and each job that comes meanwhile waits for it.
"""

from collections import deque
from collections.abc import Sequence
from typing import Final

from ..._drafts.validation import EARLIEST
from ..._lifecycle import Position

LOOK_EVERY: Final = 1.0
"""Seconds between looks at the head, as long as they are short."""
LOOK_AT_LEAST_EVERY: Final = 10.0
LOOK_SHARE: Final = 500
"""A look is followed by this many times its own length without one that nobody has asked for."""
ASKED_SHARE: Final = 10
"""The same for looks that were asked for, and for all looks where no notifications arrive."""
JUST_FOUND: Final = 0.1
"""Seconds after a claim in which a notification of new jobs may be of those that it has found."""
REACH: Final = 1.5
"""Seconds after which a lane is not read on from two seconds ago, but from its head."""
REMEMBERED: Final = 60.0
"""Seconds for which a lane is read that has no jobs any more: most get new ones."""


class Lanes:
    """The lanes of one queue as one worker knows them."""

    def __init__(self) -> None:
        self._positions: tuple[Position, ...] = ()
        self._seen_at: dict[int, float] = {}
        # Of several, as a busy machine makes single ones seem long.
        self._took: deque[float] = deque(maxlen=3)
        self._due_at = 0.0
        self._allowed_at = 0.0  # for what was asked for
        self._cheap_at = 0.0  # for what was most probably found
        self._read_at = float("-inf")
        self._found_at = float("-inf")
        self._asked = False
        self._doubtful = False  # most probably found; if not, it was late or of a new priority
        self._behind = False  # what was asked for is not new
        self._tried = False

    def ask(self, *, new: bool = False) -> None:
        """Something may be found: read on, and if that finds nothing look at the head.

        What is *new* is found by reading on, unless its commit was late or its priority is new too.
        If another job was found instead, or just before, it was most probably that one, and the
        look may wait for its small share of the time.
        """
        self._asked, self._tried = True, False
        self._behind = self._behind or not new

    def onward(self, now: float) -> tuple[Position, ...] | None:
        """Where the next claim reads on; None for the heads of all lanes."""
        if not self._positions or now >= self._due_at:
            return None
        if now >= self._read_at + REACH and now >= self._allowed_at:
            return None
        return None if self.wants_look(now) else self._positions

    def wants_look(self, now: float) -> bool:
        """Whether what was asked for was not found by reading on, and there is time to look."""
        return self.look_in(now) == 0.0

    def sent(self) -> None:
        """A claim from the heads is on its way: what is asked from now on, it may not see."""
        self._asked = self._doubtful = self._behind = self._tried = False

    def look_in(self, now: float) -> float:
        """Seconds until what was asked for, and not found by reading on, may be looked for."""
        if self._asked and self._tried:
            return max(self._allowed_at - now, 0.0)
        return max(self._cheap_at - now, 0.0) if self._doubtful else float("inf")

    def looked(
        self, priorities: Sequence[int], seconds: float, now: float, *, told: bool = True
    ) -> None:
        """A claim from the heads has found these lanes, and took so long.

        *told* says whether notifications arrive of what the next look would find.
        """
        self._seen_at |= dict.fromkeys(priorities, now)
        self._seen_at = {p: at for p, at in self._seen_at.items() if now - at < REMEMBERED}
        self._positions = tuple(Position(p, EARLIEST, "") for p in sorted(self._seen_at))
        self._took.append(seconds)
        took = min(self._took)
        cheap = min(took * (LOOK_SHARE if told else ASKED_SHARE), LOOK_AT_LEAST_EVERY)
        self._read_at = now
        self._allowed_at = now + took * ASKED_SHARE
        self._cheap_at = now + cheap
        self._due_at = now + max(cheap, LOOK_EVERY)

    def read(self, last: Position | None, now: float, *, found: bool) -> None:
        """A claim has read the lanes to their ends; or, full, only as far as *last*."""
        self._tried = True
        self._read_at = now
        if found:
            self._found_at = now
        if self._asked and not self._behind and now < self._found_at + JUST_FOUND:
            self._asked, self._doubtful = False, True
        self._positions = tuple(_read(position, last) for position in self._positions)

    def forget(self) -> None:
        """Begin anew at the heads."""
        self._positions = ()


def _read(position: Position, last: Position | None) -> Position:
    if last is None or position.priority < last.priority:
        return Position(position.priority, None, "")
    return last if position.priority == last.priority else position
