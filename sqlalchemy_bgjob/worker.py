"""Worker: runs handlers in threads."""

import logging
import os
import threading
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, Unpack

from sqlalchemy import Engine
from sqlalchemy.orm import Session

from ._arguments import as_observers, check_arguments, check_factory
from ._handlers.around import check_around
from ._handlers.lifespan import Lifespan
from ._handlers.registry import JobType
from ._handlers.served import (
    ONLY_COROUTINES,
    Queues,
    check_handlers,
    read_by_time,
    refuse_coroutines,
    served_handlers,
    served_queues,
)
from ._misuse import OnlyWith
from ._sql import Statements
from ._worker.loop import WorkerLoop
from ._worker.preflight import check_dialect, own_sockets, pool_permits, refuse_fork
from ._worker.start_line import START_TIMEOUT, log_start, say_it_waits
from ._worker.threads import ThreadRuntime, thread_environment
from .bgjob import BGJob
from .settings import SettingOptions, WorkerSettings, make_settings
from .telemetry import Observer

logger: Final[logging.Logger] = logging.getLogger("sqlalchemy_bgjob")


class Worker(OnlyWith):
    """Claims jobs and runs their handlers, which are functions, in threads of this process.

    ``with Worker(jobs, engine, queues={"mail": 10}):`` works in the background while the block goes
    on, and drains at its end. :meth:`run` works in the thread that calls it.

    Args:
        jobs: The :class:`~sqlalchemy_bgjob.BGJob` whose jobs are run.
        engine: An Engine for PostgreSQL, with psycopg or psycopg2. Two connections of its pool are
            the worker's own, so give it a ``pool_size`` of all slots and two.
        queues: How many jobs of each queue run at once, as in ``{"mail": 10}``; or a list of names,
            for 10 each. A :class:`~sqlalchemy_bgjob.Queue` in the place of a number sets the order
            too. By default it serves each queue that a handler names, with 10 jobs at once.
        session_factory: Makes ``ctx.session``: a Session class, a sessionmaker, or a
            scoped_session, which within a handler gives the same session. By default ``Session``.
        around: Called without arguments for each run of a handler; returns a context manager, as
            Flask's ``app.app_context`` does. The job's thread enters it before the handler runs,
            and leaves it after the session's commit. An error on entry is a failed attempt. If
            nothing is returned that can be entered, the job waits, and its attempt is refunded.
        lifespan: Called without arguments when the worker starts; returns a context manager. The
            thread that runs the worker enters it before the first claim, and leaves it when the
            worker has drained. Handlers find what it yields as ``ctx.state``.
        observers: Objects that are told of every event; see :class:`~sqlalchemy_bgjob.Observer`.
        settings: A :class:`~sqlalchemy_bgjob.WorkerSettings`; or give its fields as keywords.

    Raises:
        ValueError: A served queue has coroutine handlers (use ``AsyncWorker``), no handler names a
            queue and none is given, the pool is too small, the engine is not for PostgreSQL, or a
            setting is out of its range.
        TypeError: An argument is of another type; the message says what to write.
    """

    def __init__(
        self,
        jobs: BGJob[Any, Any],
        engine: Engine,
        *,
        queues: Queues | None = None,
        session_factory: Callable[[], Any] | None = None,
        around: Callable[[], Any] | None = None,
        lifespan: Callable[[], AbstractContextManager[Any]] | None = None,
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
        self.settings: WorkerSettings = make_settings(settings, options)
        self._registry = jobs.registry
        self.queues: dict[str, int] = served_queues(self._registry, queues)
        self._by_time = read_by_time(queues)
        refuse_coroutines(self._registry, self.queues)
        functions = served_handlers(self._registry, self.queues)
        check_around(around, functions=[handler.type for handler in functions])
        permits = pool_permits(engine, sum(self.queues.values()))
        self._runtime = ThreadRuntime(engine)
        self._lifespan = Lifespan(lifespan, is_async=False)
        statements = Statements(jobs.models)
        environment = thread_environment(
            engine, statements, session_factory or Session, permits, around, self._lifespan
        )
        self._loop = WorkerLoop(
            jobs.models,
            jobs.registry,
            self._runtime,
            statements,
            lambda handler: environment,
            queues=self.queues,
            by_time=self._by_time,
            settings=self.settings,
            observers=told,
            can_run=_is_function,
        )
        self._begun = threading.Event()
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def ready(self) -> bool:
        """Whether the worker has claimed for the first time, still beats, and does not drain.

        A worker all of whose queues are paused is ready too. Reading it sends no statement, so a
        readiness probe may do so at any time and from any thread.
        """
        return self._loop.ready

    @property
    def alive(self) -> bool:
        """Whether the worker's loop goes on; False if it has stood still for ten minutes.

        Then a handler or a statement blocks it, other workers take its jobs, and only a restart
        helps. A worker that waits for the database is alive. Reading it sends no statement, and any
        thread may do so.
        """
        return self._loop.alive

    @property
    def limit_reached(self) -> str | None:
        """The name of the setting at whose limit the worker began to drain, or None.

        It is one of ``"max_jobs"``, ``"max_lifetime"`` and ``"max_memory"``. A program that calls
        :meth:`run` can tell by it that the worker is to be replaced. Any thread may read it.
        """
        return self._loop.limit_reached

    def run(self) -> None:
        """Work in this thread until the worker has drained.

        It drains after :meth:`request_stop`, which a signal handler or another thread calls; at a
        limit, such as ``max_jobs``; and when there is nothing to do, with ``until_idle``. It waits
        for a database that is not up yet.

        Raises:
            SchemaOutOfDate, WorkerRefused: This database can't be worked on as it is; the message
                says what to do.
            WorkerStuck: Too many handlers did not end. All else is drained; start a new process.
            OperationalError: The password, role or database is wrong.
            ValueError: No handler is registered, or none that a thread can run; or a middleware
                can't go around some of them.
            RuntimeError: The worker was made before a fork, in another process.
            Exception: What *lifespan* raised.
        """
        refuse_fork(self._made_by)
        check_handlers(
            self._registry,
            self.queues,
            can_run=_is_function,
            unless=ONLY_COROUTINES,
            grace=self.settings.unknown_type_grace,
        )
        log_start(
            "threads", self._runtime.engine, self.queues, self._registry, by_time=self._by_time
        )
        try:
            with self._lifespan.entered():
                self._loop.run(self._begun.set)
        finally:
            self._runtime.close()

    def start(self) -> None:
        """Work in a new thread. It returns once the worker is registered.

        If the database is not up yet, or read-only, this returns after 10 s with a warning in the
        log, and the worker waits for the database in the background.

        Raises:
            RuntimeError: This worker was started before; make a new one.
            Exception: As for :meth:`run`.
        """
        if self._thread is not None:
            raise RuntimeError("this worker was started already; make a new one")
        work = partial(copy_context().run, self._run)
        self._thread = threading.Thread(target=work, name="bgjob-worker", daemon=True)
        self._thread.start()
        if not self._begun.wait(START_TIMEOUT):
            say_it_waits()
        self._raise()

    def stop(self, timeout: float | None = None) -> None:
        """Drain: claim no more, hand back jobs that were not started, finish running ones; return.

        After :meth:`run` it only asks, as :meth:`request_stop` does: join the thread that runs it.

        Args:
            timeout: Seconds until jobs that still run are released, their attempt refunded; by
                default the ``shutdown_timeout`` of the settings.

        Raises:
            Exception: What :meth:`run` raised in the background, if it was not raised before.
        """
        self.request_stop(timeout)
        if self._thread is not None:
            self._thread.join()
            self._raise()

    def request_stop(self, timeout: float | None = None) -> None:
        """Ask the worker to drain, and don't wait for it. Call it from any thread.

        Args:
            timeout: As for :meth:`stop`. A later call may give less.
        """
        self._loop.stop(self.settings.shutdown_timeout if timeout is None else timeout)

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
        try:
            self.start()
        except (KeyboardInterrupt, SystemExit):  # no __exit__ will stop it
            self.stop(0.0)
            raise
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
