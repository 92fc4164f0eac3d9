"""Where the next claim of a queue reads on, to skip the index entries of claimed jobs. Pure.

A lane is one priority of a queue. A claim leaves dead entries in the index, and nothing can remove
them while an older transaction is open anywhere on the server. Claims from the head would walk all
of them again, and take longer each time. So the next claim reads on where the last one stopped.

This must not miss a job. After a claim that came back short, a lane is read from two seconds before
the server's clock, which finds jobs that were committed late. Every second, or on request, a head
scan finds everything: retries, jobs that were given back, new priorities.

Requested head scans take at most a tenth of a worker's time. Regular ones take a five-hundredth
where notifications tell of jobs that are given back: beside a long transaction a scan takes tens of
milliseconds, and each job that comes meanwhile waits for it.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Final

from ..._drafts.validation import EARLIEST
from ..._lifecycle.claim import Position

SCAN_EVERY: Final = 1.0
"""Seconds between scans of the head, as long as they are short."""
SCAN_AT_LEAST_EVERY: Final = 10.0
SCAN_SHARE: Final = 500
"""After a scan, the next regular one waits for N times its length."""
REQUESTED_SHARE: Final = 10
"""The same for requested scans, and for all scans where no notifications arrive."""
JUST_FOUND: Final = 0.1
"""Seconds after a claim in which a notification of new jobs may mean those that it has found."""
REACH: Final = 1.5
"""Seconds since the last claim after which lanes are read from the head, not two seconds back."""
REMEMBERED: Final = 60.0
"""Seconds for which an empty lane is still read: most get new jobs."""


class HeadScan(Enum):
    """Why the head is to be scanned before its regular time.

    =================  ==============  ===============  =================  =================
    state              notified        something was    a claim has read   a claim has read
                       of new jobs     given back       on: just found     on: nothing
    =================  ==============  ===============  =================  =================
    NOT_WANTED         NEW             RETURNED         NOT_WANTED         NOT_WANTED
    NEW                NEW             RETURNED         PROBABLY_FOUND     NEW_NOT_FOUND
    NEW_NOT_FOUND      NEW             RETURNED         PROBABLY_FOUND     NEW_NOT_FOUND
    PROBABLY_FOUND     NEW             RETURNED         PROBABLY_FOUND     PROBABLY_FOUND
    RETURNED           RETURNED        RETURNED         STILL_RETURNED     STILL_RETURNED
    STILL_RETURNED     RETURNED        RETURNED         STILL_RETURNED     STILL_RETURNED
    =================  ==============  ===============  =================  =================

    Sending a scan leads from each state to NOT_WANTED.
    """

    NOT_WANTED = "nothing but the regular scan"
    NEW = "new jobs: reading on finds them, unless they are late or of a new priority"
    NEW_NOT_FOUND = "new jobs, and reading on has not found them: scan soon"
    PROBABLY_FOUND = "a job was found, most probably the new one: scan when that is cheap"
    RETURNED = "jobs were given back: reading on may find them"
    STILL_RETURNED = "jobs were given back, and reading on has not found them: scan soon"


_NOTIFIED: Final[Mapping[HeadScan, HeadScan]] = {
    HeadScan.RETURNED: HeadScan.RETURNED,
    HeadScan.STILL_RETURNED: HeadScan.RETURNED,
}
_JUST_FOUND: Final[Mapping[HeadScan, HeadScan]] = {
    HeadScan.NEW: HeadScan.PROBABLY_FOUND,
    HeadScan.NEW_NOT_FOUND: HeadScan.PROBABLY_FOUND,
    HeadScan.RETURNED: HeadScan.STILL_RETURNED,
}
_NOT_FOUND: Final[Mapping[HeadScan, HeadScan]] = {
    HeadScan.NEW: HeadScan.NEW_NOT_FOUND,
    HeadScan.RETURNED: HeadScan.STILL_RETURNED,
}


class Lanes:
    """The lanes of one queue as one worker knows them.

    Attributes:
        by_time: Whether they are merged by time, and not read one after the other.
    """

    def __init__(self, *, by_time: bool = False) -> None:
        self.by_time = by_time
        self._positions: tuple[Position, ...] = ()
        self._seen_at: dict[int, float] = {}
        # The last three scans: on a busy machine, a single one may seem long.
        self._took: deque[float] = deque(maxlen=3)
        self._due_at = 0.0  # the regular scan
        self._allowed_at = 0.0  # a requested scan
        self._cheap_at = 0.0  # a scan that nobody has to have
        self._read_at = float("-inf")
        self._found_at = float("-inf")
        self._wanted = HeadScan.NOT_WANTED

    def notified(self) -> None:
        """There are new jobs: read on, and scan the head if that finds nothing.

        A job that is found then, or was just before, is most probably the new one: the scan may
        wait until it is cheap.
        """
        self._wanted = _NOTIFIED.get(self._wanted, HeadScan.NEW)

    def request_head_scan(self) -> None:
        """Jobs may be where none was before: read on, and then scan the head in any case."""
        self._wanted = HeadScan.RETURNED

    def onward(
        self, now: float, ahead: float = 0.0, *, contended: bool = False
    ) -> tuple[Position, ...] | None:
        """Where the next claim reads on; None for the heads of all lanes.

        The regular scan may come *ahead* seconds early, or later if that is negative. Where claims
        are *contended*, another worker may take the job first, and what reads on finds nothing:
        a scan, where that is cheap, spares the look at the head that would follow.
        """
        if not self._positions or now + ahead >= self._due_at:
            return None
        if now >= self._read_at + REACH and now >= self._allowed_at:
            return None
        if contended and now >= self._cheap_at:
            return None
        return None if self.head_scan_in(now) == 0.0 else self._positions

    def is_scanned_next(self, now: float) -> bool:
        """Whether a claim that reads on now, and finds nothing, is followed by a head scan."""
        return self._scan_in(self._after_reading(now), now) == 0.0

    def head_scan_in(self, now: float) -> float:
        """Seconds until a wanted head scan may be sent; infinity if none is wanted yet."""
        return self._scan_in(self._wanted, now)

    def _scan_in(self, wanted: HeadScan, now: float) -> float:
        match wanted:
            case HeadScan.NEW_NOT_FOUND | HeadScan.STILL_RETURNED:
                return max(self._allowed_at - now, 0.0)
            case HeadScan.PROBABLY_FOUND:
                return max(self._cheap_at - now, 0.0)
            case _:
                return float("inf")

    def head_scan_sent(self) -> None:
        """A claim from the heads was sent, and may not see jobs that come from now on."""
        self._wanted = HeadScan.NOT_WANTED

    def head_scanned(
        self, priorities: Sequence[int], seconds: float, now: float, *, told: bool = True
    ) -> None:
        """A claim from the heads has found these lanes, and took this many seconds.

        *told* says whether notifications arrive of the jobs that the next scan would find.
        """
        self._seen_at |= dict.fromkeys(priorities, now)
        self._seen_at = {p: at for p, at in self._seen_at.items() if now - at < REMEMBERED}
        self._positions = tuple(Position(p, EARLIEST, "") for p in sorted(self._seen_at))
        self._took.append(seconds)
        took = min(self._took)
        cheap = min(took * (SCAN_SHARE if told else REQUESTED_SHARE), SCAN_AT_LEAST_EVERY)
        self._read_at = now
        self._allowed_at = now + took * REQUESTED_SHARE
        self._cheap_at = now + cheap
        self._due_at = now + max(cheap, SCAN_EVERY)

    def read(self, last: Position | None, now: float, *, found: bool) -> None:
        """A claim has read the lanes to their ends or, if it was full, as far as *last*."""
        self._read_at = now
        if found:
            self._found_at = now
        self._wanted = self._after_reading(now)
        read = _read_merged if self.by_time else _read
        self._positions = tuple(read(position, last) for position in self._positions)

    def _after_reading(self, now: float) -> HeadScan:
        just_found = now < self._found_at + JUST_FOUND
        transitions = _JUST_FOUND if just_found else _NOT_FOUND
        return transitions.get(self._wanted, self._wanted)

    def forget(self) -> None:
        """Start again from the heads."""
        self._positions = ()


def _read(position: Position, last: Position | None) -> Position:
    if last is None or position.priority < last.priority:
        return Position(position.priority, None, "")
    return last if position.priority == last.priority else position


def _read_merged(position: Position, last: Position | None) -> Position:
    """All lanes were read as far as the time of the last job; some of them beyond it, perhaps."""
    if last is None:
        return Position(position.priority, None, "")
    return (
        last
        if position.priority == last.priority
        else last._replace(priority=position.priority, id="")
    )
