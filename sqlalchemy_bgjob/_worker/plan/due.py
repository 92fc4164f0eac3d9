"""Which queues are to be looked at: those that are due, first come first. Pure.

What a step costs depends on the queues that are due, not on how many there are: the times of the
others stand in a heap, which is asked for the earliest.
"""

from collections.abc import Iterable
from heapq import heappop, heappush, heapreplace
from itertools import count
from math import inf

from .queue import Queue


class DueQueues:
    """The queues of a worker, by when they are to be polled.

    Each queue is either among those that are due or has one valid entry in the heap, whose time is
    no later than that of its poll. An entry that a later one has replaced stays until its time.

    Args:
        queues: All of them.
    """

    def __init__(self, queues: Iterable[Queue]) -> None:
        self._due: dict[str, Queue] = {q.name: q for q in queues}
        self._heap: list[tuple[float, int, Queue]] = []
        self._entry_at: dict[str, float] = dict.fromkeys(self._due, -inf)
        self._count = count()

    def changed(self, q: Queue) -> None:
        """The time of its next poll has changed; a later one is seen when the earlier one comes."""
        at = q.polling.due_at
        if at < self._entry_at[q.name]:
            self._enter(q, at)

    def at(self, now: float) -> list[Queue]:
        """Those that are due, whether they have room or not; they stay so until they are polled."""
        while self._heap and self._heap[0][0] <= now:
            at, _, q = heappop(self._heap)
            if at == self._entry_at[q.name]:
                self._due[q.name] = q
                self._entry_at[q.name] = -inf
        for q in [q for q in self._due.values() if not q.polling.is_due(now)]:
            del self._due[q.name]
            self._enter(q, q.polling.due_at)
        return [*self._due.values()]

    def give_way(self, queues: Iterable[Queue]) -> None:
        """These were looked at: if they are due again at once, others come first."""
        for q in queues:
            if self._due.pop(q.name, None) is not None:
                self._due[q.name] = q

    def next_at(self) -> float:
        """When the next of those will be due that are not yet."""
        while self._heap:
            at, number, q = self._heap[0]
            if at != self._entry_at[q.name]:
                heappop(self._heap)
            elif (due_at := q.polling.due_at) > at:
                heapreplace(self._heap, (due_at, number, q))
                self._entry_at[q.name] = due_at
            else:
                return at
        return inf

    def _enter(self, q: Queue, at: float) -> None:
        self._entry_at[q.name] = at
        heappush(self._heap, (at, next(self._count), q))
