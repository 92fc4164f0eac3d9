"""How long jobs that use a session wait, after one of them found no connection. Pure.

The server may have no room for this role, or refuse its password, while the worker's own sessions
live on. Without a pause the worker would claim jobs only to hand them back. The same holds where
the application gives no context to run them in.
"""

from typing import Final

from ..._db.connections import Backoff

SPREAD: Final = 0.5
"""Seconds over which the return of jobs that were put off together is spread."""


class Pauses:
    """The pause of each queue, which grows for as long as no session finds a connection."""

    def __init__(self) -> None:
        self._backoffs: dict[str, Backoff] = {}
        self._until: dict[str, float] = {}

    def __bool__(self) -> bool:
        return bool(self._backoffs)

    def begins(self, queue: str, now: float) -> bool:
        """Whether this is the first job that finds no connection since the last pause was over."""
        return now >= self._until.get(queue, now)

    def until(self, queue: str, now: float) -> float:
        """When the pause of this queue ends, after one of its jobs found no connection."""
        if self.begins(queue, now):
            backoff = self._backoffs.setdefault(queue, Backoff())
            self._until[queue] = now + backoff.pause()
        return self._until[queue]

    def end(self, queue: str) -> bool:
        """A session has found a connection: whether there was a pause to end."""
        self._until.pop(queue, None)
        return self._backoffs.pop(queue, None) is not None
