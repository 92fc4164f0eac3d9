"""What a worker's log says of jobs, wherever the worker runs: one line for each failed attempt.

The lines go to the logger ``sqlalchemy_bgjob.jobs``. An application that reports failures in
another way can turn them off, and keep what the worker logs of itself.
"""

import logging
import re
import time
from typing import Any, Final
from weakref import WeakSet

from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from .._db.errors import (
    READ_ONLY,
    database_message,
    lacks_prepared,
    lost_connection,
    refused_connection,
    sqlstate,
    stack,
    summary,
)
from .._db.printable import printable
from .._handlers.registry import JobType, Registry
from ..exceptions import NoContextManager
from . import FinishedRun, JobInfo, Observer

logger = logging.getLogger("sqlalchemy_bgjob")
job_logger = logging.getLogger("sqlalchemy_bgjob.jobs")

SAY_AGAIN_AFTER: Final = 5.0
"""Seconds: as long as the longest wait between two attempts to connect."""
_MOST_CHARACTERS: Final = 300
"""Of a message; all of it is in the row's ``last_error``."""
_FRAME: Final = re.compile(r"  (.+:\d+ in .+)")


class LogObserver(Observer):
    """Logs failures of jobs, and errors of the database, as warnings."""

    wants_exceptions = False

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._said: dict[str, float] = {}

    def job_will_be_retried(self, job: JobInfo, run: FinishedRun) -> None:
        """It failed."""
        what = f"failed, next attempt in {run.delay or 0.0:.1f} s"
        self._log(logging.WARNING, job, what, error=run.error)

    def job_moved_to_dlq(self, job: JobInfo, run: FinishedRun) -> None:
        """It was given up."""
        self._log(logging.WARNING, job, "moved to the DLQ", error=run.error)

    def job_cancelled(self, job: JobInfo, run: FinishedRun) -> None:
        """Somebody has cancelled it."""
        self._log(logging.INFO, job, "cancelled")

    def job_lease_lost(self, job: JobInfo) -> None:
        """It runs elsewhere."""
        self._log(logging.WARNING, job, "lost its lease, it runs elsewhere")

    def worker_error(self, error: BaseException) -> None:
        """Log errors of the database, again and again for as long as they last.

        For an error of connecting an operator needs the driver's message. Other messages may quote
        values of rows, so only a summary is logged.
        """
        # asyncpg's errors come unwrapped, with an SQLSTATE; libpq's come without one.
        code = sqlstate(error)
        silent = isinstance(error, OperationalError | InterfaceError) and code is None
        lost = lost_connection(error) and code != READ_ONLY and not lacks_prepared(error)
        if silent or lost or refused_connection(error):
            again = "" if refused_connection(error) else ", trying again"
            self._warn(f"no connection to the database{again}: {database_message(error)}")
        elif isinstance(error, SQLAlchemyError) or code is not None:
            self._warn(f"database error: {summary(error)}")
        elif isinstance(error, NoContextManager):
            cause = f" ({summary(error.__cause__, place=True)})" if error.__cause__ else ""
            self._warn(f"no job can be run: {error}{cause}")

    def _warn(self, words: str) -> None:
        """Log the same words once in five seconds, however many connections met the error."""
        now = time.monotonic()
        self._said = {said: at for said, at in self._said.items() if now - at < SAY_AGAIN_AFTER}
        if words not in self._said:
            self._said[words] = now
            logger.warning("%s", words)

    def _log(
        self, level: int, job: JobInfo, what: str, *, error: str | None = None, **extra: Any
    ) -> None:
        handler = self._registry.find(job.type, job.queue)
        if error is not None:
            extra["error"], place = _headline(error)
            what = f"{what}: {extra['error']}"
            if place is not None:
                extra["place"], what = place, f"{what} ({place})"
        fields = {
            "job_id": job.id,
            "job_type": job.type,
            "queue": job.queue,
            "attempt": job.attempt,
            "max_attempts": handler.options.max_attempts if handler is not None else None,
            **extra,
        }
        job_logger.log(level, "%s %s", _name(job, handler), what, extra=fields)


class DebugLogObserver(LogObserver):
    """Also logs jobs that went well, at debug."""

    def job_completed(self, job: JobInfo, run: FinishedRun) -> None:
        """A job is done."""
        self._log(logging.DEBUG, job, "completed", seconds=round(run.seconds, 6))

    def job_rescheduled(self, job: JobInfo, run: FinishedRun) -> None:
        """It runs again, attempt refunded."""
        self._log(logging.DEBUG, job, f"runs again in {run.delay or 0.0:.1f} s")


def log_observer(registry: Registry) -> LogObserver:
    """The observer that logs; lines for each job cost nothing unless the level is debug."""
    if job_logger.isEnabledFor(logging.DEBUG):
        return DebugLogObserver(registry)
    return LogObserver(registry)


def log_stack(job: Any, handler: JobType[Any], error: BaseException | str | None) -> None:
    """Log the whole traceback of a failed attempt at debug, without values of rows."""
    if isinstance(error, BaseException) and job_logger.isEnabledFor(logging.DEBUG):
        job_logger.debug("%s raised\n%s", _name(job, handler), stack(error))


_complained: WeakSet[JobType[Any]] = WeakSet()


def log_policy_problem(handler: JobType[Any], problem: str) -> None:
    """Log once what is wrong with a handler's retry policy; each ``last_error`` repeats it."""
    if handler not in _complained:
        _complained.add(handler)
        job_logger.warning("handler of %r: %s", handler.type, problem)


def _name(job: Any, handler: JobType[Any] | None) -> str:
    limit = None if handler is None else handler.options.max_attempts
    attempt = f"{job.attempt}" if limit is None else f"{job.attempt} of {limit}"
    return f"job {printable(job.id)} ({printable(job.type)}, attempt {attempt})"


def _headline(error: str) -> tuple[str, str | None]:
    """The message of a described error in one line, and the user's frame that it came from."""
    lines = error.splitlines() or [""]
    frames = [found for line in lines[1:] if (found := _FRAME.fullmatch(line))]
    message = lines[0]
    if len(lines) > 1 and lines[1].startswith("contains "):
        message = f"{message}, {lines[1]}"
    if len(message) > _MOST_CHARACTERS:
        message = f"{message[:_MOST_CHARACTERS]}..."
    return printable(message), printable(frames[-1][1]) if frames else None
