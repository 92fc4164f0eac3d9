"""What runs beside a worker's loop on a connection of its own, and connects again when it is lost.

Heart, rescuer and listener are such loops. Each has a side engine, so that neither an exhausted
pool nor a slow statement of the worker's own can keep it from its work.
"""

import threading
from typing import ClassVar

from sqlalchemy import Connection, Engine

from .._db.connections import Backoff, session_of, side_engine
from ..telemetry import Events


class SideLoop:
    """Lives on one connection after the other until it is stopped."""

    interrupted: ClassVar[str]
    """What the log says when a connection is lost."""

    def __init__(self, engine: Engine, events: Events) -> None:
        self._engine, self._events = engine, events
        self._stopping = threading.Event()
        self._backoff = Backoff()
        """Reset by who lives, once the connection has proved itself."""

    def stop(self) -> None:
        """Ask it to end."""
        self._stopping.set()

    def run(self) -> None:
        """Live until stopped; what goes wrong is reported, and tried again after a pause."""
        engine = side_engine(self._engine)
        try:
            while not self._stopping.is_set():
                try:
                    with session_of(engine) as connection:
                        pause = self._live(connection)
                except Exception as error:
                    if not self._stopping.is_set():
                        self._events.report(error)
                        self._backoff.log(self.interrupted, error)
                    pause = self._failed(error)
                self._pause(self._backoff.pause() if pause is None else pause)
        finally:
            engine.pool.dispose()  # no listener of the application's is told of it

    def _live(self, connection: Connection) -> float | None:
        """Work on a new connection. Returns the seconds until the next, or None for the backoff."""
        raise NotImplementedError

    def _failed(self, error: Exception) -> float | None:
        """The connection could not be had, or was lost; returns as :meth:`_live`."""
        return None

    def _pause(self, seconds: float) -> None:
        self._stopping.wait(seconds)
