"""The heart of a worker: it says that the worker lives.

It has its own thread and connection, and touches only the table of workers. So neither a busy event
loop nor an exhausted pool, a slow claim, a sweep or a lock on the table of jobs can make a worker
look dead. The rules, with their reasons:

* A beat that finds its row taken means that the worker was judged lost. Its runs are told, and it
  goes on under a new id; an id is never taken up again.
* No job is started on an old beat: see :meth:`Heart.fresh`.
* A worker whose loop has not turned for ten minutes stops beating, and others take its jobs.
* The heart keeps for :mod:`.rescuer` how long it has beaten without a gap, by both clocks.
"""

import logging
import os
import socket
import threading
import time
from collections.abc import Mapping
from datetime import datetime
from typing import Final

from sqlalchemy import Connection

from .._db.connections import RECONNECT, OfAnotherLoop, configure
from .._db.direct_statement import may_commit_each
from .._db.errors import passes_by_itself
from .._db.sessions import name_session
from .._drafts.ids import new_worker_id
from .._lifecycle import workers
from .._points import BEAT, BEATING
from .._sql import Statements
from .._version import __version__
from ..settings import WorkerSettings
from ..telemetry import Events
from .hands import Hands
from .runtime import Runtime
from .side_loop import SideLoop
from .unknown_claims import UnknownClaims

logger = logging.getLogger("sqlalchemy_bgjob")

NO_PROGRESS_AFTER: Final = 600.0
"""Seconds without a turn of the worker's loop after which its heart stops."""


REFUSALS: Final = 3
"""Failures to register that do not pass by themselves, until a starting worker gives up."""


class Heart(SideLoop):
    """Beats for one worker until it is stopped.

    Args:
        runtime: Where to connect; woken when the worker is registered, after a beat that lets jobs
            start again, and when the worker becomes visible.
        statements: Those of the tables.
        settings: The worker's.
        queues: What the worker serves, for its row.
        hands: Told when all leases are over: the worker was judged lost.
        unknown: Told of the lost id: a claim may have come after the judgement.
        events: Told of errors.
    """

    interrupted = "heartbeat interrupted"
    longest_pause = RECONNECT

    def __init__(
        self,
        runtime: Runtime,
        statements: Statements,
        settings: WorkerSettings,
        queues: Mapping[str, int],
        *,
        hands: Hands,
        unknown: UnknownClaims,
        events: Events,
    ) -> None:
        super().__init__(runtime.heart_engine, events)
        self._runtime, self._statements, self._settings = runtime, statements, settings
        self._queues, self._hands, self._unknown = dict(queues), hands, unknown
        self._urgent = threading.Event()
        self._listener: tuple[int, datetime] | None = None
        self._stuck = False
        self._turned_at = time.monotonic()
        self._last_beat = self._doubted_at = float("-inf")
        self._unbroken_since = float("inf")
        self._refusals = 0
        self.refusal: BaseException | None = None
        """The error that keeps the worker from registering, if it will not pass by itself."""
        self.worker_id: int | None = None
        """The id under which this worker is registered now."""
        self.visible = False
        """Whether others see at once when this process ends: they know the session that listens."""
        self.shortest_lease = settings.lease_timeout
        """The shortest lease of all workers, as the rescuer's last look has shown it."""
        self.reconnects = 0
        """How often the heart has begun a new session, perhaps on another server."""

    def turned(self, now: float) -> None:
        """The worker's loop has turned."""
        self._turned_at = now

    def has_turned(self, now: float) -> bool:
        """Whether the worker's loop has turned lately, or waits for the database as it should."""
        return now - self._turned_at <= NO_PROGRESS_AFTER

    def fresh(self, now: float) -> bool:
        """Whether a job may be started: nobody can have judged this worker lost yet.

        A process that was frozen finds its last beat old by the monotonic clock, and beats first. A
        worker that has lost a connection also beats first: a judge ends the connections of the
        worker that it judges.
        """
        limit = self._settings.lease_timeout - self._settings.heartbeat_interval
        last = self._last_beat
        return self.worker_id is not None and now - last < limit and last >= self._doubted_at

    def doubt(self, now: float) -> None:
        """A connection of this worker was lost: no job is started before the next beat."""
        self._doubted_at = now

    def set_listener(self, session: tuple[int, datetime] | None) -> None:
        """The session that listens has changed: others must hear of it at once."""
        self._listener = session
        self._urgent.set()

    def beat_soon(self) -> None:
        """Beat as soon as possible."""
        self._urgent.set()

    def stop(self) -> None:
        """Ask the thread to end."""
        super().stop()
        self._urgent.set()

    def _failed(self, error: Exception | SystemExit) -> None:
        if passes_by_itself(error):
            return
        # Each try with another loop's connection may cost the application's pool that connection.
        self._refusals = REFUSALS if isinstance(error, OfAnotherLoop) else self._refusals + 1
        if self._refusals == REFUSALS:
            self.refusal = error
            self._runtime.wake()

    def _live(self, connection: Connection) -> None:
        # Each beat commits by itself: if the network died between the beat and its COMMIT, the row
        # would stay locked, and nobody could judge this worker.
        each = may_commit_each(connection)
        connection = configure(connection, "AUTOCOMMIT" if each else "READ COMMITTED")
        settings = self._settings
        self._unbroken_since = time.monotonic()
        next_beat = 0.0
        if self.worker_id is not None:
            # On another server the listener's session is unknown, and looks ended there.
            name_session(connection, self.worker_id)
            self._listener = None
            self.reconnects += 1
        try:
            while not self._stopping.is_set():
                now = time.monotonic()
                if now >= next_beat or self._urgent.is_set():
                    self._urgent.clear()
                    last, longest = self._last_beat, self._longest_gap
                    gap = self._is_stuck(now) or self._beat(connection) > longest
                    if gap or time.monotonic() - last > longest:
                        self._unbroken_since = time.monotonic()
                    self._backoff.reset()
                    next_beat = now + settings.heartbeat_interval
                self._urgent.wait(max(next_beat - time.monotonic(), 0.0))
        finally:
            self._unbroken_since = float("inf")

    def _is_stuck(self, now: float) -> bool:
        still = now - self._turned_at
        was, self._stuck = self._stuck, still > NO_PROGRESS_AFTER
        if self._stuck and not was:
            logger.critical(
                "the worker's loop has not turned for %.0f s: no more heartbeats, so that others "
                "take its jobs; a handler may block the event loop, or a statement never end",
                still,
            )
        return self._stuck

    def unbroken(self, now: float) -> float:
        """Seconds for which this worker has been connected and has beaten without a gap.

        0 while a beat is overdue: the same cause may hold up the beats of other workers.
        """
        if now - self._last_beat > self._longest_gap:
            return 0.0
        return max(now - self._unbroken_since, 0.0)

    @property
    def _longest_gap(self) -> float:
        """Seconds between two beats from which on other workers may have been held up, too."""
        return max(self.shortest_lease / 2, self._settings.heartbeat_interval * 1.5)

    def _beat(self, connection: Connection) -> float:
        """Beat, or register; returns the seconds since the last beat by the server's clock."""
        sent = time.monotonic()
        was_visible = self.visible
        gap: float | None = None
        if self.worker_id is not None:
            gap = self._write_beat(connection, self.worker_id)
            if gap is None:
                lost, self.worker_id = self.worker_id, None
                logger.warning("worker %d was found lost: its jobs run elsewhere", lost)
                self._hands.lost()
                self._unknown.expect(lost)
                gap = float("inf")
        if self.worker_id is None:
            self._register(connection)
            sent = time.monotonic()
        overdue = not self.fresh(sent)
        self._last_beat = sent
        if overdue or self.visible > was_visible:
            self._runtime.wake()
        return gap or 0.0

    def _write_beat(self, connection: Connection, worker_id: int) -> float | None:
        if BEATING.listeners:
            BEATING.reached(connection)
        listener = self._listener
        gap = workers.beat(connection, self._statements, worker_id=worker_id, listener=listener)
        if BEAT.listeners:
            BEAT.reached(worker_id)
        self.visible = gap is not None and listener is not None
        return gap

    def _register(self, connection: Connection) -> None:
        worker_id = new_worker_id()
        # Before the first claim: sessions are found by this name when the worker is lost.
        name_session(connection, worker_id)
        workers.register(
            connection,
            self._statements,
            worker_id=worker_id,
            hostname=socket.gethostname(),
            pid=os.getpid(),
            version=__version__,
            queues=self._queues,
            lease_timeout=self._settings.lease_timeout,
        )
        # Before the beat: if that fails, the row must not be left without an owner.
        self.worker_id = worker_id
        self._write_beat(connection, worker_id)
