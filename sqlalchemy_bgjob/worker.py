"""Worker: runs handlers in threads."""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextlib import suppress
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypedDict, Unpack

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from ._arguments import as_observers, check_arguments, check_factory
from ._handlers.around import check_around
from ._handlers.registry import JobType
from ._handlers.served import (
    ONLY_COROUTINES,
    check_handlers,
    refuse_coroutines,
    served_handlers,
    served_queues,
)
from ._misuse import OnlyWith
from ._sql import Statements
from ._worker.attempt import Environment
from ._worker.loop import Dispatcher
from ._worker.permits import HandlerConnections
from ._worker.preflight import check_dialect, own_sockets, pool_permits, refuse_fork
from ._worker.run import Run
from ._worker.runtime import Attendant, RunsJobs
from ._worker.start_line import log_start
from .bgjob import BGJob
from .settings import WorkerSettings
from .telemetry import Observer

logger = logging.getLogger("sqlalchemy_bgjob")

START_TIMEOUT: Final = 10.0
"""Seconds for which a start waits until the worker is registered."""


def say_it_waits() -> None:
    """Log that a start returns before the worker is registered."""
    logger.warning(
        "the worker has not begun within %g s, as the database can't be worked on yet; "
        "it goes on trying, and observers hear why",
        START_TIMEOUT,
    )


class SettingOptions(TypedDict, total=False):
    """The fields of WorkerSettings, as keywords of a worker."""

    heartbeat_interval: float
    lease_timeout: float
    rescue_interval: float
    death_check_interval: float
    orphan_interval: float
    health_interval: float
    poll_interval: float
    shutdown_timeout: float
    unknown_type_grace: float
    max_claim: int
    hold_timeout: float
    listen: bool


def make_settings(settings: WorkerSettings | None, options: SettingOptions) -> WorkerSettings:
    """The settings object, or one made of keywords."""
    if settings is None:
        return WorkerSettings(**options)
    if options:
        raise TypeError(f"give settings= or single settings, not both: {', '.join(options)}")
    return settings


class ThreadRuntime:
    """Waits for a bell to ring, and runs handlers in daemon threads that are used again."""

    def __init__(self, engine: Engine) -> None:
        self.engine = self.heart_engine = engine
        # Held until somebody rings. Not an Event: a signal handler that sets one may interrupt the
        # wait for it, and wait for the lock that this wait holds. Nor a SimpleQueue: of 3.11, a
        # wait that is interrupted just before its time is over goes on without end.
        self._bell = threading.Lock()
        self._bell.acquire()
        self._threads = Threads()

    def wait(self, seconds: float) -> None:
        """Wait for wake(), at most so long."""
        self._bell.acquire(timeout=seconds)

    def wake(self) -> None:
        """End the wait, or the next one."""
        if self._bell.locked():
            with suppress(RuntimeError):  # somebody else has rung meanwhile
                self._bell.release()

    def start(self, run: Run, worker: RunsJobs) -> None:
        """Do a run in a thread, and what follows it there."""
        self._threads.start(partial(worker.work, run))

    def turn(self) -> None:
        """Threads take turns by themselves."""

    def cancel(self, run: Run) -> None:
        """A thread can't be cancelled; the handler sees ``ctx.cancelled``."""

    def spawn(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Run *target* in a daemon thread."""
        thread = threading.Thread(target=target, name=name, daemon=True)
        thread.start()
        return thread

    def attend(self, name: str, target: Callable[[], None]) -> Attendant:
        """Run *target* in a daemon thread."""
        return self.spawn(name, target)

    def sleep(self, seconds: float) -> None:
        """Wait so long."""
        time.sleep(seconds)

    def join(self, attendant: Attendant, timeout: float) -> None:
        """Wait for a thread to end."""
        assert isinstance(attendant, threading.Thread)
        attendant.join(timeout)

    def block(self, action: Callable[[], None]) -> None:
        """Do it: this thread is the worker's own."""
        action()

    def await_(self, awaitable: Coroutine[Any, Any, Any]) -> Any:
        """Threads await nothing."""
        awaitable.close()
        raise TypeError("a coroutine handler needs AsyncWorker")

    def close(self) -> None:
        """End the idle threads."""
        self._threads.close()


class Threads:
    """Daemon threads for handlers: as many as run at once, used again, never waited for at exit."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._work: deque[Callable[[], None]] = deque()
        self._idle = 0
        self._count = 0
        self._closed = False

    def start(self, work: Callable[[], None]) -> None:
        """Run *work* at once: in an idle thread if there is one.

        When the system has no thread left, it waits for one of ours.

        Raises:
            RuntimeError: There is none to wait for either.
        """
        with self._changed:
            self._work.append(work)
            if self._idle >= len(self._work):
                self._changed.notify()
                return
            self._count += 1
            name = f"bgjob-handler-{self._count}"
        try:
            threading.Thread(target=self._run, name=name, daemon=True).start()
        except RuntimeError:
            with self._changed:
                self._count -= 1
                if self._count or work not in self._work:
                    return
                self._work.remove(work)
            raise

    def close(self) -> None:
        """Let idle threads end; those that run end after it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle += 1
                while not self._work and not self._closed:
                    self._changed.wait()
                self._idle -= 1
                if not self._work:
                    self._count -= 1
                    return
                work = self._work.popleft()
            try:
                work()
            except Exception:  # a handler can't raise to here: this is a mistake of ours
                logger.exception("a run ended without a settlement")
            del work


class Worker(OnlyWith):
    """Claims jobs and runs their handlers in threads of this process.

    Args:
        jobs: The :class:`~sqlalchemy_bgjob.BGJob` whose jobs are run.
        engine: On PostgreSQL, with psycopg or psycopg2; two of its connections are the worker's.
        queues: Concurrency by queue, or names alone for 10 each; by default each queue that a
            handler names.
        session_factory: Makes ``ctx.session``: a Session class, a sessionmaker, or a
            scoped_session, which is then the handler's session. By default ``Session``.
        around: Called without arguments for each job. It returns a context manager, as Flask's
            ``app.app_context`` does, which is entered in the job's thread before the handler runs
            and left after its session's commit. An error on the way in is a failed attempt; if
            there is no context manager to enter, the job waits and its attempt is given back.
        observers: Told of every event; see :class:`~sqlalchemy_bgjob.Observer`.
        settings: A :class:`~sqlalchemy_bgjob.WorkerSettings`; or give its fields as keywords.

    Raises:
        ValueError: A queue that is served has coroutine handlers (use ``AsyncWorker``), the pool is
            too small, or the engine is not for PostgreSQL.
    """

    def __init__(
        self,
        jobs: BGJob[Any, Any],
        engine: Engine,
        *,
        queues: Mapping[str, int] | Iterable[str] | None = None,
        session_factory: Callable[[], Any] | None = None,
        around: Callable[[], Any] | None = None,
        observers: Iterable[Observer] = (),
        settings: WorkerSettings | None = None,
        **options: Unpack[SettingOptions],
    ) -> None:
        check_arguments(jobs, settings, options)
        check_factory(session_factory)
        told = as_observers(observers)
        if not isinstance(engine, Engine):
            raise TypeError(
                f"Worker takes an Engine, not {type(engine).__name__}; write "
                f"Worker(jobs, create_engine(...)), or use AsyncWorker for an AsyncEngine"
            )
        check_dialect(engine)
        if engine.dialect.is_async:
            raise TypeError("Worker takes a synchronous engine; use AsyncWorker for this one")
        own_sockets(engine)
        self._made_by = os.getpid()
        self.settings = make_settings(settings, options)
        self._registry = jobs.registry
        self.queues = served_queues(self._registry, queues)
        refuse_coroutines(self._registry, self.queues)
        functions = served_handlers(self._registry, self.queues)
        check_around(around, functions=[handler.type for handler in functions])
        permits = pool_permits(engine, sum(self.queues.values()))
        self._runtime = ThreadRuntime(engine)
        statements = Statements(jobs.models)
        environment = thread_environment(
            engine, statements, session_factory or Session, permits, around
        )
        self._dispatcher = Dispatcher(
            jobs.models,
            jobs.registry,
            self._runtime,
            statements,
            lambda handler: environment,
            queues=self.queues,
            settings=self.settings,
            observers=told,
            can_run=_is_function,
        )
        self._begun = threading.Event()
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def run(self) -> None:
        """Work until :meth:`stop` is called from another thread, and everything is drained.

        Raises:
            SchemaOutOfDate, WorkerRefused: This database can't be worked on as it is.
            OperationalError: The password, role or database is wrong.
            ValueError: No handler is registered, or none that a thread can run.
        """
        refuse_fork(self._made_by)
        check_handlers(
            self._registry,
            self.queues,
            can_run=_is_function,
            unless=ONLY_COROUTINES,
            grace=self.settings.unknown_type_grace,
        )
        log_start("threads", self._runtime.engine, self.queues, self._registry)
        try:
            self._dispatcher.run(self._begun.set)
        finally:
            self._runtime.close()
            self._ended.set()

    def start(self) -> None:
        """Work in a thread of its own; returns when it is registered, or raises as :meth:`run`.

        A database that is not up yet, or is read-only, is waited for in the background: then it
        returns after 10 s, with a warning in the log.
        """
        if self._thread is not None:
            raise RuntimeError("this worker was started already; make a new one")
        self._thread = threading.Thread(target=self._run, name="bgjob-worker", daemon=True)
        self._thread.start()
        if not self._begun.wait(START_TIMEOUT):
            say_it_waits()
        self._raise()

    def stop(self, timeout: float | None = None) -> None:
        """Claim no more, hand back what was not started, finish what runs; then return.

        Args:
            timeout: Seconds until running jobs are released, attempt given back; by default the
                ``shutdown_timeout`` of the settings.
        """
        self.request_stop(timeout)
        if self._thread is not None:
            self._thread.join()
            self._raise()

    def request_stop(self, timeout: float | None = None) -> None:
        """As :meth:`stop`, without waiting. May be called again with a shorter timeout."""
        self._dispatcher.stop(self.settings.shutdown_timeout if timeout is None else timeout)

    def _run(self) -> None:
        try:
            self.run()
        except BaseException as error:
            self._error = error
            logger.error("the worker could not run: %s", error)
        finally:
            self._begun.set()

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            raise error

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.stop()


def _is_function(handler: JobType[Any]) -> bool:
    return not handler.is_coroutine


def thread_environment(
    engine: Engine,
    statements: Statements,
    session_factory: Callable[[], Any],
    permits: int | None,
    around: Callable[[], Any] | None,
) -> Environment:
    """Where functions run: in threads, with sessions of a synchronous engine."""
    semaphore = threading.Semaphore(permits) if permits is not None else None
    connections = HandlerConnections(engine, semaphore)
    return Environment(
        statements=statements,
        engine=engine,
        session_factory=session_factory,
        connect=connections.connect,
        disconnect=connections.disconnect,
        around=around,
    )
