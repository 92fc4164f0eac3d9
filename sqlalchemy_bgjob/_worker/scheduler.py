"""The scheduler of a worker: it fires the schedules that this worker may fire, when they are due.

The worker's loop calls it on its own connection. It knows when the earliest of these schedules is
due, and looks then. What changes before is heard of by NOTIFY; and the rescuer, whose look at the
workers asks for it too, finds each schedule that a user has put and that is due. So a worker for
which there is no schedule sends no statement here.
"""

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, Final

from sqlalchemy import Connection

from .._db.errors import lost_connection, summary
from .._handlers.registry import Registry
from .._handlers.timetable import MOST_MADE_UP, due, timetable
from .._lifecycle import fire as firing
from .._lifecycle.fire import LIMIT, Serves, Upcoming
from .._points import FIRING
from .._sql import Statements
from ..telemetry import Events
from .runtime import Runtime

logger = logging.getLogger("sqlalchemy_bgjob")

KEPT_EVERY: Final = 60.0
"""Seconds until the rows of schedules in the code are compared with it again."""
BEATEN: Final = 1.0
"""Seconds until a schedule is looked at again that another worker has fired, or somebody locks."""
REFUSED: Final = 30.0
"""Seconds until a schedule is tried again that could not be fired."""
ASKED_AGAIN: Final = 0.1
"""The least seconds between two looks that were asked for: any role that can connect can notify,
however often."""
_NEVER: Final = float("inf")


class Scheduler:
    """The schedules of one worker.

    Args:
        registry: Has the schedules of the code, and the types.
        queues: Those that the worker serves.
        runtime: Whose loop is woken.
        statements: Those of the tables.
        events: Told of errors.
    """

    def __init__(
        self,
        registry: Registry,
        queues: Mapping[str, int],
        runtime: Runtime,
        statements: Statements,
        events: Events,
    ) -> None:
        self._registry, self._queues = registry, list(queues)
        self._runtime, self._statements, self._events = runtime, statements, events
        self._asked = threading.Event()
        self._looked_at = -_NEVER
        self._due_at: float | None = None
        self._keep_at = 0.0
        self._is_starting = True
        self._taken: list[str] = []
        self._refused: dict[str, float] = {}
        """When to try again, by the name of the schedule."""

    @property
    def due_at(self) -> float:
        """The monotonic time of the next look; in the past if there is reason for one now."""
        if self._due_at is None:  # all handlers are registered when a worker starts
            self._due_at = 0.0 if self._registry.schedules else _NEVER
        if self._asked.is_set():
            return min(self._due_at, self._looked_at + ASKED_AGAIN)
        return self._due_at

    @property
    def is_asked(self) -> bool:
        """Whether somebody has told of a change since the last look."""
        return self._asked.is_set()

    def look_soon(self) -> None:
        """Schedules have changed, or one is due. From any thread."""
        self._asked.set()
        self._runtime.wake()

    def serves(self) -> Serves:
        """Which schedules this worker may fire."""
        handlers = list(self._registry)
        return Serves(
            names=sorted(self._registry.schedules),
            queues=self._queues,
            types=[handler.type for handler in handlers if handler.type != "*"],
            open_queues=[handler.queue for handler in handlers if handler.type == "*"],
        )

    def fire_due(self, connection: Connection) -> None:
        """Look, and fire what is due; the connection is outside a transaction.

        Only the loss of the connection is raised: other trouble does not hold up the loop.
        """
        asked = self._asked.is_set()
        self._asked.clear()
        try:
            if self._registry.schedules and time.monotonic() >= self._keep_at:
                self._keep_code(connection)
            if asked:
                self._put_right(connection)
            self._due_at = min(self._fire_due(connection), self._look_again_at())
        except Exception as error:
            if lost_connection(error):
                self._due_at = self._keep_at = 0.0
                raise
            self._events.report(error)
            logger.warning("schedules: %s; looking again in %g s", summary(error), REFUSED)
            self._due_at = time.monotonic() + REFUSED
        finally:  # however long it took, jobs have their time before the next one
            self._looked_at = time.monotonic()

    def _look_again_at(self) -> float:
        return min([self._keep_at if self._registry.schedules else _NEVER, *self._refused.values()])

    def _keep_code(self, connection: Connection) -> None:
        # Before it: if it is refused, those that have rows go on to fire.
        self._keep_at = time.monotonic() + KEPT_EVERY
        taken = firing.keep_code(
            connection,
            self._statements,
            self._registry.schedules.values(),
            starting=self._is_starting,
            on_refusal=self._not_kept,
        )
        self._is_starting = False
        if taken != self._taken:
            self._taken = taken
            for name in taken:
                logger.error(
                    "the schedule %r is not fired: a user has put a row of its name; give it "
                    "another one by name=",
                    name,
                )

    def _not_kept(self, name: str, error: Exception) -> None:
        self._events.report(error)
        logger.warning(
            "the schedule %r of the code has no row, or an old one: %s; trying again in %g s",
            name,
            summary(error),
            KEPT_EVERY,
        )

    def _put_right(self, connection: Connection) -> None:
        """Mend schedules that would not fire: the clock had been ahead, or SQL wrote their rows."""
        found = firing.look_at_schedules(
            connection, self._statements, self.serves(), left_out=self._refused, astray=True
        )
        for one in found:
            try:
                firing.put_right(connection, self._statements, one)
            except Exception as error:
                if lost_connection(error):
                    raise
                self._refuse(one.name, error)

    def _refuse(self, name: str, error: Exception) -> None:
        self._refused[name] = time.monotonic() + REFUSED
        self._events.report(error)
        logger.warning(
            "the schedule %r could not be fired: %s; trying again in %g s",
            name,
            summary(error),
            REFUSED,
        )

    def _fire_due(self, connection: Connection) -> float:
        """Fire what is due; returns the monotonic time at which the next one is."""
        now = time.monotonic()
        self._refused = {name: at for name, at in self._refused.items() if at > now}
        found = firing.look_at_schedules(
            connection, self._statements, self.serves(), left_out=self._refused
        )
        answered = time.monotonic()
        next_at = _NEVER
        for upcoming in found:
            wait = (upcoming.next_at - upcoming.now).total_seconds()
            if wait <= 0:
                wait = self._fire(connection, upcoming)
            next_at = min(next_at, answered + wait + 0.001)
        # More of them than were looked at, and the loop has something else to do in between.
        return min(next_at, answered + 0.01) if _all_due(found) else next_at

    def _fire(self, connection: Connection, upcoming: Upcoming) -> float:
        """Fire one; returns the seconds from the look until it is due again."""
        try:
            table = timetable(upcoming.cron, upcoming.timezone)
            its = due(
                table,
                upcoming.next_at,
                upcoming.now,
                upcoming.missed,
                gap=upcoming.gap,
                last_at=upcoming.last_at,
            )
            if FIRING.listeners:
                FIRING.reached(upcoming.name)
            fired = firing.fire(connection, self._statements, upcoming, its)
        except Exception as error:
            if lost_connection(error):
                raise
            self._refuse(upcoming.name, error)
            return REFUSED
        if fired and its.left_out:
            logger.warning(
                "the schedule %r had missed more than %d times; only the latest are made up for",
                upcoming.name,
                MOST_MADE_UP,
            )
        return (its.following - upcoming.now).total_seconds() if fired else BEATEN


def _all_due(found: list[Any]) -> bool:
    return len(found) == LIMIT and found[-1].next_at <= found[-1].now
