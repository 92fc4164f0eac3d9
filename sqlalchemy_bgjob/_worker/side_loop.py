"""A loop beside the worker's, on its own connection, which reconnects when that is lost.

Heart, rescuer and listener are side loops. Each has a side engine, so neither an exhausted pool nor
a slow statement of the worker can hold it up.
"""

import threading
import time
from typing import ClassVar

from sqlalchemy import Connection, Engine

from .._db.connections import Backoff, session_of, side_engine
from ..telemetry import Events


class SideLoop:
    """Works on one connection after another until it is stopped."""

    interrupted: ClassVar[str]
    """What the log says when a connection is lost."""
    longest_pause: ClassVar[float | None] = None
    """Seconds between two attempts to connect, at most; None for those of :class:`.Backoff`."""

    def __init__(self, engine: Engine, events: Events) -> None:
        self._engine, self._events = engine, events
        self._stopping = threading.Event()
        self._backoff = Backoff(self.longest_pause)
        """Reset by :meth:`_live`, once its connection has proved itself."""

    def stop(self) -> None:
        """Ask the loop to end."""
        self._stopping.set()

    def run(self) -> None:
        """Work until stopped; on an error, report it and reconnect after a pause."""
        engine = side_engine(self._engine)
        try:
            while not self._stopping.is_set():
                try:
                    with session_of(engine) as connection:
                        pause = self._live(connection)
                except (Exception, SystemExit) as error:  # also what a hook of the engine's raises
                    if not self._stopping.is_set():
                        if self._backoff.is_news(time.monotonic()):
                            self._events.report(error)
                        self._backoff.log(self.interrupted, error)
                    pause = self._failed(error)
                self._pause(self._backoff.pause() if pause is None else pause)
        finally:
            engine.pool.dispose()  # engine.dispose() would tell the application's listeners

    def _live(self, connection: Connection) -> float | None:
        """Work on a new connection. Returns the seconds until the next, or None for the backoff."""
        raise NotImplementedError

    def _failed(self, error: Exception | SystemExit) -> float | None:
        """Handle a connection that was refused or lost; returns as :meth:`_live` does."""
        return None

    def _pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)
