"""What operators have set for a worker's queues: when the worker reads it, and that it obeys.

Only the worker's loop reads it, on the connection on which it claims, and before it claims:

* at the start: until then every queue counts as paused;
* when it was asked to: by a notification, or as listening has begun and one may have been missed;
* when a pause that it knows should be over, by the database's clock;
* once a second while it does not listen.

Beside that the rescuer compares what its own regular look shows with what the loop has read, and
asks the loop to read it again if that differs. So a notification that is lost costs a few seconds.
"""

import logging
import time
from collections.abc import Iterable, Mapping
from datetime import UTC
from math import inf
from typing import Any, Final

from sqlalchemy import Connection

from .._db.connections import Backoff
from .._db.errors import lost_connection, summary
from .._db.printable import printable
from .._lifecycle import control
from .._lifecycle.control import QueueState
from .._sql import Statements
from ..telemetry import Events
from .hands import Hands
from .runtime import Runtime

logger = logging.getLogger("sqlalchemy_bgjob")

UNHEARD: Final = 0.9
"""Seconds between two looks of a worker that does not listen."""
ASKED_AGAIN: Final = 0.1
"""The least seconds between two looks: any role that can connect can notify, however often."""
REFUSED_AGAIN: Final = 1.0
"""Seconds until the next look, after one that the database refused."""
LATE: Final = 0.005
"""Seconds after the end of a pause at which the database is asked whether it is over."""
_NOTHING: Final = QueueState(False, None, None, None, None, None)


class QueueControl:
    """What is set for the queues of one worker.

    Args:
        hands: Its planner is told.
        runtime: Whose loop is woken.
        statements: Those of the tables.
        queues: The worker's own slots of each queue.
        events: Told of errors.
    """

    def __init__(
        self,
        hands: Hands,
        runtime: Runtime,
        statements: Statements,
        queues: Mapping[str, int],
        events: Events,
    ) -> None:
        self._hands, self._runtime, self._statements = hands, runtime, statements
        self._events, self._backoff = events, Backoff()
        self._own = dict(queues)
        self._state: dict[str, QueueState] | None = None  # of all queues; None before it is known
        self._asked = True
        self._looked_at = self._next_at = -inf
        self._resumes_at = inf
        hands.planner.control(self._own, self._own.keys(), 0.0)

    # ---- any thread -----------------------------------------------------------------------------

    def ask(self) -> None:
        """Something may have been set: look soon."""
        self._asked = True
        self._runtime.wake()

    def compare(self, shown: Mapping[str, Any] | None) -> None:
        """Look soon, if the rescuer's look has shown something else than the last look."""
        if self._state is not None and (shown or {}) != _compared(self._state):
            self.ask()

    @property
    def is_known(self) -> bool:
        """Whether there was a look, and no other is asked for."""
        return self._state is not None and not self._asked

    def not_paused(self) -> list[str]:
        """The worker's queues from which it claims, as far as that is known."""
        if (state := self._state) is None:
            return []
        return [name for name in self._own if not state.get(name, _NOTHING).is_paused]

    @property
    def all_are_paused(self) -> bool:
        """Whether it is known that there is nothing to claim from."""
        return self._state is not None and not self.not_paused()

    # ---- the worker's loop ----------------------------------------------------------------------

    def due_at(self, *, listening: bool) -> float:
        """The monotonic time of the next look."""
        wanted = -inf if self._asked else self._resumes_at
        if not listening:
            wanted = min(wanted, self._looked_at + UNHEARD)
        return max(wanted, self._next_at)

    def look(self, connection: Connection) -> None:
        """Read what is set, and tell the planner. Commits.

        A refusal is told, and leaves what was known: settlements must not wait for this.

        Raises:
            DBAPIError: The connection was lost.
        """
        self._asked = False  # before the statement: what is set from now on asks again
        begun = time.monotonic()
        try:
            state = control.look(connection, self._statements)
        except Exception as error:
            self._asked, self._next_at = True, begun + REFUSED_AGAIN
            if lost_connection(error):
                raise
            if self._backoff.is_news(begun):
                self._events.report(error)
                nothing = "" if self._state is not None else ", and nothing is claimed until it can"
                words = "it can't be read which queues are paused%s: %s"
                logger.warning(words, nothing, summary(error))
            self._backoff.pause()
            return
        self._backoff.reset()
        self._looked_at, self._next_at = begun, begun + ASKED_AGAIN
        ends = [one.resumes_in for one in state.values() if one.is_paused]
        first = min((end for end in ends if end is not None), default=inf)
        self._resumes_at = time.monotonic() + first + LATE
        before, self._state = self._state or {}, state
        mine = {name: state.get(name, _NOTHING) for name in self._own}
        slots = {name: one.slots or self._own[name] for name, one in mine.items()}
        paused = {name for name, one in mine.items() if one.is_paused}
        with self._hands.lock:
            self._hands.planner.control(slots, paused, time.monotonic())
        for line in _changes(before, mine, self._own):
            logger.info("%s", line)


def _compared(state: Mapping[str, QueueState]) -> dict[str, Any]:
    """The same as :func:`.what_is_set` shows."""
    return {name: [one.is_paused, one.slots] for name, one in state.items()}


def _changes(
    before: Mapping[str, QueueState], now: Mapping[str, QueueState], own: Mapping[str, int]
) -> Iterable[str]:
    """In words: what has changed for the worker's queues."""
    for name, one in now.items():
        was = before.get(name, _NOTHING)
        if one.is_paused and (not was.is_paused or _why(one) != _why(was)):
            yield f"queue {name!r} is paused{_why(one)}: this worker claims nothing of it"
        elif was.is_paused and not one.is_paused:
            yield f"queue {name!r} is not paused any more"
        if one.slots != was.slots:
            own_slots = f"{own[name]} slots, as this worker was told at its start"
            yield f"queue {name!r} has {own_slots if one.slots is None else f'{one.slots} slots'}"


def _why(one: QueueState) -> str:
    by = f" by {printable(one.by)}" if one.by else ""
    reason = f" ({printable(one.reason)})" if one.reason else ""
    until = one.until
    end = f" until {until.astimezone(UTC).isoformat(' ', 'seconds')}" if until else ""
    return f"{by}{reason}{end}"
