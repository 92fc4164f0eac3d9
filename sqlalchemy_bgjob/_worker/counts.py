"""What one worker counts: ended runs by queue, type and outcome, and how long they took.

It is added up in memory and written once a minute, in rows that no other worker touches. So a crash
loses what it has counted since, which is a minute at most; and no counting makes a job wait.
"""

import random
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any, Final

from sqlalchemy import Connection

from .._handlers.outcomes import COMPLETED, Kind
from .._lifecycle import records
from .._lifecycle.settle import Pending
from .._sql import Statements

EVERY: Final = 60.0
"""Seconds between two writes."""
UNITS: Final = 15_625
"""Of a duration in a second: the first bucket is below one of them, each further twice as wide."""
BUCKETS: Final = 40
SAMPLES: Final = 16
"""Of how many runs that ended together the durations are looked at, at most."""
_UNCOUNTED: Final = (Kind.HANDED_BACK.value, Kind.UNKNOWN_TYPE.value)


class Counts:
    """The counts of one worker. What is added must be added under one lock.

    Attributes:
        due_at: The monotonic time of the next write.
    """

    def __init__(self, statements: Statements) -> None:
        self._statements = statements
        self._cells: defaultdict[_Key, _Cell] = defaultdict(_Cell)
        self.due_at = time.monotonic() + EVERY * random.uniform(0.5, 1.0)

    def add(self, items: Sequence[Pending]) -> None:
        """Count settlements that were committed together.

        Their number is exact. Of many at once, the durations of some stand for those of the others:
        a job that takes 80 microseconds must not be measured for another two.
        """
        if not items:
            return
        # Most of them are alike, and to find those that are not is cheaper than to count by key.
        queue, type, _ = _key(items[0])
        others = [
            item
            for item in items
            if item.settlement is not COMPLETED or item.job.type != type or item.job.queue != queue
        ]
        alike = len(items) - len(others)
        if alike:
            self._cells[queue, type, Kind.COMPLETED.value].n += alike
        for key, n in Counter(map(_key, others)).items():
            if key[2] not in _UNCOUNTED:
                self._cells[key].n += n
        step = -(-len(items) // SAMPLES)
        for place in range(0, len(items), step):
            item = items[place]
            if (key := _key(item))[2] not in _UNCOUNTED:
                self._cells[key].measure(item, min(step, len(items) - place))

    def write(self, connection: Connection, worker_id: int | None, lock: Any) -> None:
        """Write what was counted, and begin anew; without an id, put that off. Commits.

        If the answer to the COMMIT is lost, so is a minute of counts. Counts that the database
        refuses are given up too: it may refuse the next ones.

        Raises:
            DBAPIError: They were not written.
        """
        self.due_at = time.monotonic() + EVERY
        if worker_id is None:
            return
        with lock:
            cells, self._cells = self._cells, defaultdict(_Cell)
        rows = [
            {
                "worker": worker_id,
                "queue": queue,
                "type": type,
                "outcome": outcome,
                "n": cell.n,
                "waits": _without_end(cell.waits),
                "runs": _without_end(cell.runs),
                "waited": cell.waited,
                "ran": cell.ran,
            }
            for (queue, type, outcome), cell in cells.items()
        ]
        if rows:
            records.write_counts(connection, self._statements, rows)


class _Cell:
    __slots__ = ("n", "ran", "runs", "waited", "waits")

    def __init__(self) -> None:
        self.n = 0
        self.waited = self.ran = 0.0
        self.waits, self.runs = [0] * BUCKETS, [0] * BUCKETS

    def measure(self, item: Pending, times: int) -> None:
        """Add the durations of a run, which stands for so many."""
        # By the server's clock: a claim says in updated_at when it was.
        waited = (item.job.updated_at - item.job.next_run_at).total_seconds()
        waited = max(waited, 0.0)
        self.waited += waited * times
        self.waits[_bucket(waited)] += times
        if ran := item.seconds:
            self.ran += ran * times
            self.runs[_bucket(ran)] += times


_Key = tuple[str, str, str]
# The value as Enum keeps it: `value` and the hash of a member are calls into Python.
_key: Final[Callable[[Pending], _Key]] = attrgetter(
    "job.queue", "job.type", "settlement.kind._value_"
)


def _bucket(seconds: float) -> int:
    return min(int(seconds * UNITS).bit_length(), BUCKETS - 1)


def _without_end(buckets: list[int]) -> list[int]:
    """Buckets up to the last one in which something was counted."""
    length = next((k for k in range(BUCKETS, 0, -1) if buckets[k - 1]), 0)
    return buckets[:length]
