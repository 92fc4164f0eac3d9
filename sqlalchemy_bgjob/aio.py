"""AsyncWorker: runs coroutines as tasks, and functions in threads.

The worker's loop is that of ``Worker``, run in a greenlet: while it waits, the event loop goes on.
The listener is a task beside it. The heart has its own thread and event loop, so a handler that
blocks this event loop cannot make the worker look dead.
"""

import asyncio
import logging
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager, suppress
from types import TracebackType
from typing import Any, Final, Self, Unpack

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from ._arguments import as_observers, check_arguments, check_factory
from ._handlers.around import check_around
from ._handlers.lifespan import Lifespan
from ._handlers.registry import JobType
from ._handlers.served import (
    GIVE_SYNC_ENGINE,
    ONLY_FUNCTIONS,
    Queues,
    check_handlers,
    read_by_time,
    served_handlers,
    served_queues,
)
from ._misuse import OnlyAsyncWith
from ._sql import Statements
from ._worker.attempt import Environment
from ._worker.loop import WorkerLoop
from ._worker.permits import HandlerConnections
from ._worker.preflight import check_dialect, own_sockets, pool_permits, refuse_fork
from ._worker.start_line import START_TIMEOUT, log_start, say_it_waits
from ._worker.tasks import AsyncPermits, AsyncRuntime, close_apart
from ._worker.threads import ThreadRuntime, thread_environment
from ._worker.twin import check_twin, sync_twin
from .bgjob import BGJob
from .settings import SettingOptions, WorkerSettings, make_settings
from .telemetry import Observer

logger: Final[logging.Logger] = logging.getLogger("sqlalchemy_bgjob")


class AsyncWorker(OnlyAsyncWith):
    """Claims jobs and runs their handlers: coroutines on the event loop, functions in threads.

    ``async with AsyncWorker(jobs, engine, queues={"mail": 10}):`` works in the background while the
    block goes on, and drains at its end. :meth:`run` works in the task that awaits it.

    Args:
        jobs: The :class:`~sqlalchemy_bgjob.BGJob` whose jobs are run.
        engine: An AsyncEngine for PostgreSQL, with psycopg or asyncpg. Two connections of its pool
            are the worker's own, so give it a ``pool_size`` of all slots and two.
        sync_engine: An Engine for ``ctx.session`` of functions. With psycopg it may be left out:
            the worker makes one that connects as *engine* does, with its arguments, listeners and
            options.
        heart_engine: An engine for heartbeats and rescues, if these can't connect as *engine* does.
            They run in their own threads and event loops, where a connection bound to another loop,
            such as one of an ``asyncpg.Pool``, must not be used. It must reach the same tables,
            and should bypass any pooler.
        queues: How many jobs of each queue run at once, as in ``{"mail": 10}``; or a list of names,
            for 10 each. A :class:`~sqlalchemy_bgjob.Queue` in the place of a number sets the order
            too. By default it serves each queue that a handler names, with 10 jobs at once.
        session_factory: Makes ``ctx.session`` of coroutines: an AsyncSession class, an
            async_sessionmaker, or an async_scoped_session, which within a handler gives the same
            session. By default ``AsyncSession``.
        sync_session_factory: The same for functions. By default ``Session``.
        around: As for :class:`~sqlalchemy_bgjob.Worker`. For coroutines it may return an
            asynchronous context manager; if what it returns is both, coroutines enter that.
        lifespan: As for :class:`~sqlalchemy_bgjob.Worker`, but the worker's task enters it. It may
            return an asynchronous context manager.
        observers: Objects that are told of every event, in a thread of their own; see
            :class:`~sqlalchemy_bgjob.Observer`.
        settings: A :class:`~sqlalchemy_bgjob.WorkerSettings`; or give its fields as keywords.

    Raises:
        ValueError: A served function may use ``ctx.session`` and there is no sync engine, no
            handler names a queue and none is given, the pool is too small, the engine is not for
            PostgreSQL, or a setting is out of its range.
        TypeError: An argument is of another type; the message says what to write.
    """

    def __init__(
        self,
        jobs: BGJob[Any, Any],
        engine: AsyncEngine,
        *,
        sync_engine: Engine | None = None,
        heart_engine: Engine | AsyncEngine | None = None,
        queues: Queues | None = None,
        session_factory: Callable[[], Any] | None = None,
        sync_session_factory: Callable[[], Any] | None = None,
        around: Callable[[], Any] | None = None,
        lifespan: Callable[[], AbstractAsyncContextManager[Any] | AbstractContextManager[Any]]
        | None = None,
        observers: Iterable[Observer] = (),
        settings: WorkerSettings | None = None,
        **options: Unpack[SettingOptions],
    ) -> None:
        check_arguments(jobs, settings, options)
        check_factory(session_factory)
        check_factory(sync_session_factory)
        self._observers = as_observers(observers)
        if not isinstance(engine, AsyncEngine):
            raise TypeError(
                f"AsyncWorker takes an AsyncEngine, not {type(engine).__name__}; write "
                f"AsyncWorker(jobs, create_async_engine(...)), or use Worker for an Engine"
            )
        if sync_engine is not None and not isinstance(sync_engine, Engine):
            raise TypeError(
                f"sync_engine must be an Engine, not {type(sync_engine).__name__}; make it by "
                f"create_engine(...)"
            )
        if not isinstance(heart_engine, Engine | AsyncEngine | None):
            raise TypeError(
                f"heart_engine must be an Engine or AsyncEngine, not "
                f"{type(heart_engine).__name__}; make it by create_engine(...)"
            )
        check_dialect(engine.sync_engine)
        for one in (engine.sync_engine, sync_engine):
            if one is not None:
                own_sockets(one)
        self._made_by = os.getpid()
        self.settings: WorkerSettings = make_settings(settings, options)
        self.queues: dict[str, int] = served_queues(jobs.registry, queues)
        self._by_time = read_by_time(queues)
        self._jobs, self._engine = jobs, engine.sync_engine
        self._around, self._lifespan = around, Lifespan(lifespan, is_async=True)
        if isinstance(heart_engine, AsyncEngine):
            heart_engine = heart_engine.sync_engine
        self._heart_engine = heart_engine or self._engine
        check_dialect(self._heart_engine)
        self._session_factory = session_factory or AsyncSession
        self._sync_session_factory = sync_session_factory or Session
        slots = sum(self.queues.values())
        self._permits = pool_permits(self._engine, slots)
        self._own_sync_engine: Engine | None = None
        functions = [h for h in served_handlers(jobs.registry, self.queues) if not h.is_coroutine]
        check_around(around, functions=[handler.type for handler in functions])
        if sync_engine is None and functions:
            sync_engine = self._make_sync_engine(functions, slots)
        self._sync_engine = sync_engine
        self._sync_permits = None if sync_engine is None else pool_permits(sync_engine, slots)
        self._loop: WorkerLoop | None = None
        self._task: asyncio.Task[None] | None = None
        self._stop_timeout: float | None = None

    def _make_sync_engine(self, functions: list[JobType[Any]], slots: int) -> Engine | None:
        if self._engine.dialect.driver.startswith("psycopg"):
            self._own_sync_engine = sync_twin(self._engine, slots + 2)
            return self._own_sync_engine
        with_session = [h.type for h in functions if h.options.session]
        if with_session:
            raise ValueError(
                f"the handlers of {', '.join(map(repr, with_session))} are functions, and "
                f"ctx.session of a function needs a synchronous engine; {GIVE_SYNC_ENGINE}, "
                f"or register them with session=False"
            )
        return None

    @property
    def ready(self) -> bool:
        """Whether the worker has claimed for the first time, still beats, and does not drain.

        A worker all of whose queues are paused is ready too. Reading it sends no statement, so a
        readiness probe may do so at any time and from any thread.
        """
        return self._loop is not None and self._loop.ready

    @property
    def alive(self) -> bool:
        """Whether the worker's loop goes on; False if it has stood still for ten minutes.

        Then a handler or a statement blocks it, other workers take its jobs, and only a restart
        helps. A worker that waits for the database, or has not begun, is alive. Reading it sends no
        statement, and any thread may do so.
        """
        return self._loop is None or self._loop.alive

    @property
    def limit_reached(self) -> str | None:
        """The name of the setting at whose limit the worker began to drain, or None.

        It is one of ``"max_jobs"``, ``"max_lifetime"`` and ``"max_memory"``. A program that calls
        :meth:`run` can tell by it that the worker is to be replaced. Any thread may read it.
        """
        return None if self._loop is None else self._loop.limit_reached

    async def run(self) -> None:
        """Work in this task until the worker has drained.

        It drains after :meth:`request_stop`, at a limit such as ``max_jobs``, and when there is
        nothing to do, with ``until_idle``. It waits for a database that is not up yet. If this is
        cancelled, running jobs are released at once, their attempt refunded.

        Raises:
            SchemaOutOfDate, WorkerRefused: This database can't be worked on as it is; the message
                says what to do.
            WorkerStuck: Too many handlers did not end. All else is drained; start a new process.
            OperationalError: The password, role or database is wrong; asyncpg raises its own error.
            ValueError: No handler is registered, or none that this worker can run; or a middleware
                can't go around some of them.
            RuntimeError: The worker was made before a fork, in another process.
            Exception: What *lifespan* raised.
        """
        await self._run(lambda: None)

    async def start(self) -> None:
        """Work in a new task. It returns once the worker is registered.

        If the database is not up yet, or read-only, this returns after 10 s with a warning in the
        log, and the worker waits for the database in the background.

        Raises:
            RuntimeError: This worker was started before; make a new one.
            Exception: As for :meth:`run`.
        """
        if self._task is not None:
            raise RuntimeError("this worker was started already; make a new one")
        begun = asyncio.Event()
        self._task = asyncio.create_task(self._run(begun.set), name="bgjob-worker")
        waiting = asyncio.create_task(begun.wait())
        try:
            done, _ = await asyncio.wait(
                {self._task, waiting}, timeout=START_TIMEOUT, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            waiting.cancel()
        if not done:
            say_it_waits()
        if self._task.done():
            await self._task

    async def stop(self, timeout: float | None = None) -> None:
        """Drain: claim no more, hand back jobs that were not started, finish running ones; return.

        After :meth:`run` it only asks, as :meth:`request_stop` does: await the task that runs it.

        Args:
            timeout: Seconds until coroutines are cancelled, and jobs that still run are released,
                their attempt refunded; by default the ``shutdown_timeout`` of the settings.

        Raises:
            Exception: What :meth:`run` raised in the background.
        """
        self.request_stop(timeout)
        if self._task is not None:
            await asyncio.wait({self._task})
            await self._task

    def request_stop(self, timeout: float | None = None) -> None:
        """Ask the worker to drain, and don't wait for it. Call it from any thread.

        Args:
            timeout: As for :meth:`stop`. A later call may give less.
        """
        timeout = self.settings.shutdown_timeout if timeout is None else timeout
        # Set first, as another thread may just make the loop: it reads the timeout after that.
        self._stop_timeout = timeout
        if self._loop is not None:
            self._loop.stop(timeout)

    async def _run(self, ready: Callable[[], None]) -> None:
        refuse_fork(self._made_by)
        if self._own_sync_engine is not None:
            await asyncio.to_thread(check_twin, self._own_sync_engine)
        check_handlers(
            self._jobs.registry,
            self.queues,
            can_run=self._can_run,
            unless=ONLY_FUNCTIONS,
            grace=self.settings.unknown_type_grace,
        )
        log_start("asyncio", self._engine, self.queues, self._jobs.registry, by_time=self._by_time)
        async with self._lifespan.entered_async():
            await self._work(ready)

    async def _work(self, ready: Callable[[], None]) -> None:
        threads = ThreadRuntime(self._sync_engine or self._engine)
        runtime = AsyncRuntime(self._engine, threads, self._heart_engine)
        self._loop = loop = self._make_loop(runtime, threads)
        if self._stop_timeout is not None:
            loop.stop(self._stop_timeout)
        running = asyncio.ensure_future(greenlet_spawn(loop.run, ready))
        try:
            await asyncio.shield(running)
        except asyncio.CancelledError:
            loop.stop(0.0)
            with suppress(Exception):
                await _ended(running)
            raise
        finally:
            try:
                await _ended(asyncio.ensure_future(runtime.close()))
            finally:
                if self._own_sync_engine is not None:
                    self._own_sync_engine.dispose()

    def _make_loop(self, runtime: AsyncRuntime, threads: ThreadRuntime) -> WorkerLoop:
        statements = Statements(self._jobs.models)
        permits = AsyncPermits(self._permits) if self._permits is not None else None
        connections = HandlerConnections(self._engine, permits, close_apart, AsyncPermits(0))
        on_loop = Environment(
            statements=statements,
            engine=self._engine,
            session_factory=self._session_factory,
            connect=connections.connect,
            disconnect=connections.disconnect,
            around=self._around,
            lifespan=self._lifespan,
        )
        sync_engine = self._sync_engine
        in_threads = on_loop
        if sync_engine is not None:
            in_threads = thread_environment(
                sync_engine,
                statements,
                self._sync_session_factory,
                self._sync_permits,
                self._around,
                self._lifespan,
            )
        return WorkerLoop(
            self._jobs.models,
            self._jobs.registry,
            runtime,
            statements,
            lambda handler: on_loop if handler.is_coroutine else in_threads,
            queues=self.queues,
            by_time=self._by_time,
            settings=self.settings,
            observers=self._observers,
            can_run=self._can_run,
        )

    def _can_run(self, handler: JobType[Any]) -> bool:
        has_session = self._sync_engine is not None or not handler.options.session
        return handler.is_coroutine or has_session

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except asyncio.CancelledError:  # no __aexit__ will stop it
            if self._task is not None:
                self._task.cancel()
                with suppress(Exception, asyncio.CancelledError):
                    await _ended(self._task)
            raise
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.stop()


async def _ended(task: asyncio.Future[Any]) -> None:
    """Wait for a task however often this one is cancelled meanwhile, and then raise that.

    A cancel scope of anyio cancels again at every turn of the loop until it is left.
    """
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled
    await task
