"""Looks which of a worker's jobs are to be cancelled, and asks their runs to end.

A mark in the job's row says so, and a notification only that there is one: anybody may notify. So
the loop looks at the rows, also while it drains,

* when it was notified: at all its jobs;
* at every beat: at those that have run for longer than a beat. Where notifications don't arrive,
  that is how a cancel is found. Short jobs and idle workers send no statement.

Between two looks the loop has time for jobs, however often it is notified.
"""

import logging
import time
from math import inf
from typing import TYPE_CHECKING, Final

from .._db.errors import lost_connection, summary
from .._lifecycle.cancel import find_asked
from .._sql import Statements
from ..settings import WorkerSettings
from .control import ControlConnection
from .hands import Hands
from .run import Run

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .._lifecycle.claim import ClaimedJob

logger = logging.getLogger("sqlalchemy_bgjob")

ASKED_AGAIN: Final = 0.1
"""The least seconds between two looks: any role that can connect can notify, however often."""


class Asking:
    """The looks of one worker's loop."""

    def __init__(
        self,
        hands: Hands,
        control: ControlConnection,
        statements: Statements,
        settings: WorkerSettings,
    ) -> None:
        self._hands, self._control, self._statements = hands, control, statements
        self._every = settings.heartbeat_interval
        self._rests_until = 0.0

    @property
    def due_at(self) -> float:
        """The monotonic time of the next look; infinite if there is nothing to look at."""
        return max(self._hands.asks_at, self._rests_until)

    def look(self, worker_id: int) -> None:
        """Ask the runs whose jobs are to be cancelled, and cancel such jobs that have not started.

        Raises:
            DBAPIError: There is no connection. The next look is at the next beat, or if a
                notification asked for this one, soon.
        """
        try:
            self._look(worker_id)
        finally:
            self._rests_until = time.monotonic() + ASKED_AGAIN

    def _look(self, worker_id: int) -> None:
        hands = self._hands
        with hands.lock:
            now = time.monotonic()
            everything, hands.asks_all = hands.asks_all, False
            runs = {
                job: run
                for run in hands.runs()
                if run.job.worker_id == worker_id
                for job in run.jobs
                if not run.is_asked(job)
            }
            times = [self._looked_at_from(run, now) for run in runs.values()]
            hands.asks_at = max(min(times), now + self._every) if times else inf
            if everything:
                ready = [job for job in hands.planner.ready() if job.worker_id == worker_id]
            else:
                runs = {j: r for j, r in runs.items() if self._looked_at_from(r, now) <= now}
                ready = []
        if not runs and not ready:
            return
        jobs: list[ClaimedJob] = [*runs, *ready]
        connection: Connection | None = None
        try:
            connection = self._control.get()
            asked = find_asked(connection, self._statements, worker_id=worker_id, jobs=jobs)
        except Exception as error:
            if connection is not None and not lost_connection(error):
                # A claim may work all the same.
                logger.warning("not looked whether jobs are cancelled: %s", summary(error))
                return
            if everything:
                hands.look_for_asks()
            raise
        with hands.lock:
            for job in jobs:
                if job.id not in asked:
                    continue
                run = runs.get(job) or hands.running(job)  # it may have started meanwhile
                if run is None:
                    hands.cancel_ready(job)
                elif hands.holds(run):
                    hands.ask(run, job)

    def _looked_at_from(self, run: Run, now: float) -> float:
        return (run.started_at or now) + self._every
