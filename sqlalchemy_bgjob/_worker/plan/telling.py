"""Whom to tell: other workers of what this one can't take, producers of where it waits. Pure."""

from collections.abc import Iterable

from .queue import Queue
from .steps import Announce, PassOn


class Telling:
    """What one worker has to tell."""

    def __init__(self) -> None:
        self._contended: dict[str, Queue] = {}  # other workers may have to be woken for them
        self._waiting: set[str] = set()  # producers are to notify of their jobs
        self._announced: frozenset[str] | None = frozenset()
        # What producers know was found right for this value of *waits*, and nothing has changed.
        self._right_for: bool | None = None

    def changed(self, q: Queue) -> None:
        """Its polling has changed, or whether it is paused."""
        if q.polling.may_pass_on:
            self._contended[q.name] = q
        if q.waits != (q.name in self._waiting):
            self._waiting ^= {q.name}
            self._right_for = None

    def announced(self, queues: Iterable[str] | None) -> frozenset[str]:
        """Producers were told that this worker waits for these; None while it is unknown."""
        self._announced = None if queues is None else frozenset(queues)
        self._right_for = None
        return self._announced or frozenset()

    def to_pass_on(self, now: float, *, looks: bool) -> PassOn | None:
        """Wake other workers in place of this one; *looks* says whether it looks at queues."""
        for q in [q for q in self._contended.values() if not q.polling.may_pass_on]:
            del self._contended[q.name]
        queues = tuple(
            q.name
            for q in self._contended.values()
            if not q.paused and q.polling.passes_on(now, can_look=looks and q.is_free_soon(now))
        )
        return PassOn(queues) if queues else None

    def to_announce(self, *, waits: bool) -> Announce | None:
        """Tell producers where this worker waits, if they do not know; *waits*: at all."""
        if waits is self._right_for:
            return None
        queues = self._waiting if waits else frozenset[str]()
        if queues != self._announced:
            return Announce(tuple(sorted(queues)))
        self._right_for = waits
        return None
