"""Which queues are to be looked at: those that are due, first come first. Pure.

What a step costs depends on the queues that are due, not on how many there are: the times of the
others stand in a heap, which is asked for the earliest. A paused queue is never due.
"""

from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from math import inf

from .queue import Queue


class DueQueues:
    """The queues of a worker, by when they are to be polled.

    Each queue is among those that are due, or has one valid entry in the heap, whose time is no
    later than that of its poll, or is paused. An entry that a later one has replaced stays until
    its time.

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
        at = _due_at(q)
        if at < self._entry_at[q.name]:
            self._enter(q, at)

    def at(self, now: float) -> list[Queue]:
        """Those that are due, whether they have room or not; they stay so until they are polled."""
        while self._heap and self._heap[0][0] <= now:
            at, _, q = heappop(self._heap)
            if at == self._entry_at[q.name]:
                self._due[q.name] = q
                self._entry_at[q.name] = -inf
        for q in [q for q in self._due.values() if q.paused or not q.polling.is_due(now)]:
            del self._due[q.name]
            self._enter(q, _due_at(q))
        return [*self._due.values()]

    def give_way(self, queues: Iterable[Queue]) -> None:
        """These were looked at: if they are due again at once, others come first."""
        for q in queues:
            if self._due.pop(q.name, None) is not None:
                self._due[q.name] = q

    def next_at(self) -> float:
        """When the next of those will be due that are not yet."""
        while self._heap:
            at, _, q = self._heap[0]
            if at != self._entry_at[q.name]:
                heappop(self._heap)
            elif (due_at := _due_at(q)) > at:
                heappop(self._heap)
                self._enter(q, due_at)
            else:
                return at
        return inf

    def _enter(self, q: Queue, at: float) -> None:
        self._entry_at[q.name] = at
        if at < inf:
            heappush(self._heap, (at, next(self._count), q))


def _due_at(q: Queue) -> float:
    return inf if q.paused else q.polling.due_at
