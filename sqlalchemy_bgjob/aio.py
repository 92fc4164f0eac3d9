"""AsyncWorker: runs coroutines as tasks, and functions in threads.

The loop of the worker is the one that ``Worker`` has, run in a greenlet: where it waits, the event
loop goes on. The listener is a task beside it. The heart has a thread and an event loop of its own,
so that a handler that blocks this one cannot make the worker look dead.
"""

import asyncio
import logging
import os
import threading
import time
from collections.abc import Callable, Coroutine, Iterable, Mapping
from contextvars import Context, copy_context
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, Unpack

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn

from ._arguments import as_observers, check_arguments, check_factory
from ._handlers.around import check_around
from ._handlers.outcomes import HAND_BACK
from ._handlers.registry import JobType
from ._handlers.served import (
    GIVE_SYNC_ENGINE,
    ONLY_FUNCTIONS,
    check_handlers,
    served_handlers,
    served_queues,
)
from ._lifecycle import Pending
from ._misuse import OnlyAsyncWith
from ._sql import Statements
from ._worker.attempt import Attempt, Environment
from ._worker.loop import Dispatcher
from ._worker.permits import HandlerConnections, give_back
from ._worker.preflight import check_dialect, own_sockets, pool_permits, refuse_fork
from ._worker.run import Run
from ._worker.runtime import Attendant, RunsJobs
from ._worker.start_line import log_start
from ._worker.twin import check_twin, sync_twin
from .bgjob import BGJob
from .settings import WorkerSettings
from .telemetry import Observer
from .worker import (
    START_TIMEOUT,
    SettingOptions,
    ThreadRuntime,
    make_settings,
    say_it_waits,
    thread_environment,
)

logger = logging.getLogger("sqlalchemy_bgjob")

TURN: Final = 0.002
"""Seconds after which jobs that wait for nothing let the rest of the event loop go on."""


class AsyncRuntime:
    """Waits on the event loop; coroutines run as tasks, functions in threads."""

    def __init__(
        self, engine: Engine, threads: ThreadRuntime, heart_engine: Engine | None = None
    ) -> None:
        self.engine, self.heart_engine = engine, heart_engine or engine
        self._threads = threads
        self._loop = asyncio.get_running_loop()
        self._loop_thread = threading.get_ident()
        self._bell: asyncio.Future[None] = self._loop.create_future()  # of the wait that goes on
        self._woken = False
        self._tasks: dict[asyncio.Task[None], tuple[Run, RunsJobs]] = {}
        self._turn_ends = 0.0
        self._context = copy_context()

    def wait(self, seconds: float) -> None:
        """Wait for wake(), at most so long; the event loop goes on."""
        # An asyncio.Event and a timeout would do; but here each step delays a job. The bell is
        # there before the look whether it rang: a signal handler may ring it in between.
        self._bell = bell = self._loop.create_future()
        if self._woken:
            await_only(asyncio.sleep(0))  # never hog the loop, however often we are woken
        else:
            timer = self._loop.call_later(seconds, self._ring)
            try:
                await_only(bell)
            finally:
                timer.cancel()
        self._woken = False

    def wake(self) -> None:
        """End the wait, or the next one."""
        if not self._woken:
            self._woken = True
            self._call(self._ring)

    def _ring(self) -> None:
        if not self._bell.done():
            self._bell.set_result(None)

    def start(self, run: Run, worker: RunsJobs) -> None:
        """Do a run as a task, or in a thread if its handler is a function."""
        if run.handler.is_coroutine:
            self._call(lambda: self._start_task(run, worker))
        else:
            self._threads.start(run, worker)

    def _start_task(self, run: Run, worker: RunsJobs) -> None:
        task = self._loop.create_task(
            self._work(run, worker),
            name=f"bgjob {run.handler.type}",
            context=self._context.copy(),
        )
        run.task = task
        self._tasks[task] = run, worker
        task.add_done_callback(self._task_ended)

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        run, worker = self._tasks.pop(task)
        if not worker.holds(run):
            return
        # A handler can't come to here: the task was cancelled before it ran, as at the end of the
        # event loop, or it is a mistake of ours. Neither the slot nor the job may be lost with it.
        if not task.cancelled():
            logger.error("a run ended without a settlement", exc_info=task.exception())
        following = worker.ended(run, Pending(run.job, HAND_BACK), None)
        if following is not None:
            worker.start(following)

    async def _work(self, run: Run, worker: RunsJobs) -> None:
        """Do a run, and after it the next one for as long as there is one.

        They share this task: one that waits for nothing costs neither a task nor a switch. But
        what a handler has left behind in the task, the next one must not find.
        """
        task, context = asyncio.current_task(), copy_context()
        assert task is not None
        run.task = task
        if not worker.holds(run):
            return
        while True:
            attempt = worker.attempt(run)
            returned: Any = None
            error: BaseException | None = None
            around = attempt.around
            begin = attempt.begin if around is None else attempt.begin_around
            try:
                if run.handler.options.timeout is None:
                    returned = await begin()
                else:
                    async with asyncio.timeout(run.handler.options.timeout) as run.timer:
                        returned = await begin()
            except GeneratorExit as raised:
                if not (attempt.opened and _is_current(task)):
                    self._closed(attempt, raised, run, worker)
                    raise
                error = raised  # the handler's own, and no end of the coroutine
            except BaseException as raised:
                error = raised
            if attempt.opened:
                ended = await greenlet_spawn(attempt.end, returned, error)
            else:
                ended = attempt.end(returned, error)
            if around is not None:
                await around.leave_async(error)
            run.task = None
            following = worker.ended(run, *ended)
            if following is None:
                return
            if not following.handler.is_coroutine or task.cancelling() or _differs(context):
                worker.start(following)
                return
            run, run.task = following, task
            self._tasks[task] = run, worker
            if time.monotonic() >= self._turn_ends and not await self._give_way(run, worker):
                return

    def _closed(self, attempt: Attempt, raised: GeneratorExit, run: Run, worker: RunsJobs) -> None:
        """End a run whose coroutine is closed: nothing may be awaited any more."""
        if attempt.opened:
            if attempt.around is not None:
                attempt.around.leave(raised)
        else:
            ended = attempt.end(None, raised)
            if attempt.around is not None:
                attempt.around.leave(raised)
            following = worker.ended(run, *ended)
            if following is not None:
                worker.start(following)

    async def _give_way(self, run: Run, worker: RunsJobs) -> bool:
        """Let the event loop go on; whether the run is still to be done then."""
        try:
            await asyncio.sleep(0)
        except asyncio.CancelledError:  # a late one, which the handler before has asked for
            run.started_at = time.monotonic()
            following = worker.ended(run, Pending(run.job, HAND_BACK), None)
            if following is not None:
                worker.start(following)
            return False
        self._turn_ends = time.monotonic() + TURN
        return worker.holds(run)

    def turn(self) -> None:
        """Let the task that was started run up to where it waits: it may do all there is."""
        await_only(asyncio.sleep(0))

    def cancel(self, run: Run) -> None:
        """Cancel a coroutine."""
        if run.task is not None:
            self._call(run.task.cancel)

    def _call(self, function: Callable[[], object]) -> None:
        if threading.get_ident() == self._loop_thread:
            function()
        else:
            try:
                self._loop.call_soon_threadsafe(function)
            except RuntimeError:
                logger.debug("the event loop is closed")

    def spawn(self, name: str, target: Callable[[], None]) -> threading.Thread:
        """Run *target* in a daemon thread, in a greenlet of an event loop of its own."""

        def run() -> None:
            asyncio.run(greenlet_spawn(target))

        thread = threading.Thread(target=run, name=name, daemon=True)
        thread.start()
        return thread

    def attend(self, name: str, target: Callable[[], None]) -> Attendant:
        """Run *target* in a greenlet of this event loop: what it hears, the loop hears at once."""
        return self._loop.create_task(greenlet_spawn(target), name=name)

    def sleep(self, seconds: float) -> None:
        """Wait so long; the event loop goes on."""
        await_only(asyncio.sleep(seconds))

    def join(self, attendant: Attendant, timeout: float) -> None:
        """Wait for a thread or a task to end; the event loop goes on."""
        if isinstance(attendant, threading.Thread):
            self.block(partial(attendant.join, timeout))
        else:
            _, left = await_only(asyncio.wait({attendant}, timeout=timeout))
            for task in left:  # the event loop is the application's, and goes on without us
                task.cancel()
                await_only(asyncio.wait({task}, timeout=1.0))

    def block(self, action: Callable[[], None]) -> None:
        """Do it in a thread of its own: those of the loop's executor may all be taken."""
        done = asyncio.Event()

        def run() -> None:
            try:
                action()
            finally:
                self._call(done.set)

        threading.Thread(target=run, name="bgjob-block", daemon=True).start()
        await_only(done.wait())

    def await_(self, awaitable: Coroutine[Any, Any, Any]) -> Any:
        """The result of a coroutine, awaited in the loop of the calling thread."""
        return await_only(awaitable)

    async def close(self) -> None:
        """Wait for cancelled tasks, and end the idle threads."""
        tasks = self._tasks.keys() - {asyncio.current_task()}
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        self._threads.close()


def _is_current(task: asyncio.Task[None]) -> bool:
    """Whether a task runs; not so where its coroutine is closed from outside."""
    try:
        return asyncio.current_task() is task
    except RuntimeError:  # no loop runs any more
        return False


def _differs(context: Context) -> bool:
    """Whether the current context is another one; values that refuse to be compared are."""
    try:
        return copy_context() != context
    except Exception:
        return True


def _give_back_apart(connection: Connection) -> None:
    """Close a connection whatever becomes of this task.

    A cancellation in the middle of a ROLLBACK would cost the pool the connection's place for ever.
    """
    if connection.in_transaction():
        await_only(asyncio.shield(asyncio.ensure_future(greenlet_spawn(give_back, connection))))
    else:
        give_back(connection)


class _AsyncPermits:
    """An asyncio semaphore, waited for from within a greenlet."""

    def __init__(self, permits: int) -> None:
        self._semaphore = asyncio.Semaphore(permits)

    def acquire(self, *, timeout: float | None = None) -> bool:
        if timeout is None:
            return await_only(self._semaphore.acquire())
        try:
            return await_only(asyncio.wait_for(self._semaphore.acquire(), timeout))
        except TimeoutError:
            return False

    def release(self) -> None:
        self._semaphore.release()


class AsyncWorker(OnlyAsyncWith):
    """Claims jobs and runs their handlers: coroutines on the event loop, functions in threads.

    Args:
        jobs: The :class:`~sqlalchemy_bgjob.BGJob` whose jobs are run.
        engine: On PostgreSQL, with psycopg or asyncpg; two of its connections are the worker's.
        sync_engine: For ``ctx.session`` of functions; on psycopg, if left out, one that
            connects as *engine* does, with its arguments, listeners and options.
        heart_engine: How heart and rescuer connect, if they can't as *engine* does: from threads
            and event loops of their own, where a connection that belongs to one loop, as one of an
            ``asyncpg.Pool``, must not be used. To the same tables, past any pooler if possible.
        queues: Concurrency by queue, or names alone for 10 each; by default each queue that a
            handler names.
        session_factory: Makes ``ctx.session`` of coroutines: an AsyncSession class or an
            async_sessionmaker. By default ``AsyncSession``.
        sync_session_factory: The same for functions. By default ``Session``.
        around: As for :class:`~sqlalchemy_bgjob.Worker`; for coroutines it may return an
            asynchronous context manager, which they prefer.
        observers: Told of every event, from a thread of their own.
        settings: A :class:`~sqlalchemy_bgjob.WorkerSettings`; or give its fields as keywords.

    Raises:
        ValueError: A function that is served may use ``ctx.session`` and there is no sync engine,
            the pool is too small, or the engine is not for PostgreSQL.
    """

    def __init__(
        self,
        jobs: BGJob[Any, Any],
        engine: AsyncEngine,
        *,
        sync_engine: Engine | None = None,
        heart_engine: Engine | AsyncEngine | None = None,
        queues: Mapping[str, int] | Iterable[str] | None = None,
        session_factory: Callable[[], Any] | None = None,
        sync_session_factory: Callable[[], Any] | None = None,
        around: Callable[[], Any] | None = None,
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
        self.settings = make_settings(settings, options)
        self.queues = served_queues(jobs.registry, queues)
        self._jobs, self._engine = jobs, engine.sync_engine
        self._around = around
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
        self._dispatcher: Dispatcher | None = None
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

    async def run(self) -> None:
        """Work until :meth:`stop` is called, and everything is drained.

        When this is cancelled, running jobs are released at once, their attempt given back.

        Raises:
            SchemaOutOfDate, WorkerRefused: This database can't be worked on as it is.
            OperationalError: The password, role or database is wrong.
            ValueError: No handler is registered, or none that this worker can run.
        """
        await self._run(lambda: None)

    async def start(self) -> None:
        """Work in a task; returns when the worker is registered, or raises as :meth:`run`.

        A database that is not up yet, or is read-only, is waited for in the background: then it
        returns after 10 s, with a warning in the log.
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
        """Claim no more, hand back what was not started, finish what runs; then return.

        Args:
            timeout: Seconds until coroutines are cancelled and running jobs released, attempt given
                back; by default the ``shutdown_timeout`` of the settings.
        """
        self.request_stop(timeout)
        if self._task is not None:
            await asyncio.wait({self._task})
            await self._task

    def request_stop(self, timeout: float | None = None) -> None:
        """As :meth:`stop`, without waiting. May be called again with a shorter timeout."""
        timeout = self.settings.shutdown_timeout if timeout is None else timeout
        # In this order: the loop may be about to begin in another thread, and looks then.
        self._stop_timeout = timeout
        if self._dispatcher is not None:
            self._dispatcher.stop(timeout)

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
        log_start("asyncio", self._engine, self.queues, self._jobs.registry)
        threads = ThreadRuntime(self._sync_engine or self._engine)
        runtime = AsyncRuntime(self._engine, threads, self._heart_engine)
        self._dispatcher = dispatcher = self._make_dispatcher(runtime, threads)
        if self._stop_timeout is not None:
            dispatcher.stop(self._stop_timeout)
        loop = asyncio.ensure_future(greenlet_spawn(dispatcher.run, ready))
        try:
            await asyncio.shield(loop)
        except asyncio.CancelledError:
            dispatcher.stop(0.0)
            await asyncio.wait({loop})
            raise
        finally:
            await runtime.close()
            if self._own_sync_engine is not None:
                self._own_sync_engine.dispose()

    def _make_dispatcher(self, runtime: AsyncRuntime, threads: ThreadRuntime) -> Dispatcher:
        statements = Statements(self._jobs.models)
        permits = _AsyncPermits(self._permits) if self._permits is not None else None
        connections = HandlerConnections(self._engine, permits, _give_back_apart, _AsyncPermits(0))
        on_loop = Environment(
            statements=statements,
            engine=self._engine,
            session_factory=self._session_factory,
            connect=connections.connect,
            disconnect=connections.disconnect,
            around=self._around,
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
            )
        return Dispatcher(
            self._jobs.models,
            self._jobs.registry,
            runtime,
            statements,
            lambda handler: on_loop if handler.is_coroutine else in_threads,
            queues=self.queues,
            settings=self.settings,
            observers=self._observers,
            can_run=self._can_run,
        )

    def _can_run(self, handler: JobType[Any]) -> bool:
        has_session = self._sync_engine is not None or not handler.options.session
        return handler.is_coroutine or has_session

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.stop()
