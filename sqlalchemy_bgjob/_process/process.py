"""One worker process: finds the application, makes engine and worker, and obeys signals.

The worker runs in a thread. The main thread only waits: for a signal, for the end of the worker,
or for the end of the supervisor. So a handler that blocks, even an event loop, blocks no signal.

The first SIGTERM or SIGINT drains; the second releases what runs at once; the third exits. What
arrives within a second of one that counts is the same, see :mod:`._signals`.
"""

import asyncio
import inspect
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.exc import SQLAlchemyError

from .._db.errors import database_message, sqlstate
from .._handlers.served import UnfitHandlers, require_handlers, served_handlers, served_queues
from ..bgjob import BGJob
from ..exceptions import SchemaOutOfDate, WorkerRefused
from ..settings import SPARE_CONNECTIONS, STUCK_AFTER, WorkerSettings
from ..worker import Worker
from . import loader, logs
from .engines import (
    cant_connect,
    failed_to_connect,
    load_engine,
    load_sync_engine,
    make_async_engine,
)
from .exits import DATABASE, FAILED, OK, SCHEMA, SIGNALLED, USAGE, CommandError, exit_now
from .logs import say
from .mailbox import Mailbox
from .queue_option import refuse_lists
from .signals import SIGNALS, Requests
from .urls import ASYNC_DRIVERS, database_url, sync_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

logger = logging.getLogger("sqlalchemy_bgjob")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """What the command line says about a worker.

    Attributes:
        app: Names the BGJob, see :func:`.loader.load`.
        database_url: Where the jobs are; not needed with *engine*.
        engine: Names the application's own Engine or AsyncEngine.
        sync_engine: Names an Engine for functions, beside an AsyncEngine or a URL for asyncpg.
        heart_engine: Names how heart and rescuer connect, beside an AsyncEngine.
        session_factories: Name what makes ``ctx.session``: one for functions, one for coroutines.
        app_dir: Where modules are found that Python's own path does not have.
        around: Names what makes the context that is entered around each job.
        imports: Modules that register handlers, beside the one that *app* names.
        queues: Concurrency by queue; None for all queues that handlers name.
        settings: The worker's.
        parent_pipe: A file that ends when the supervisor does.
    """

    app: str
    database_url: str | None = None
    engine: str | None = None
    sync_engine: str | None = None
    heart_engine: str | None = None
    session_factories: tuple[str, ...] = ()
    app_dir: Path = Path()
    around: str | None = None
    imports: tuple[str, ...] = ()
    queues: Mapping[str, int] | None = None
    settings: WorkerSettings = WorkerSettings()  # noqa: RUF009 - it is frozen
    parent_pipe: int | None = None


def run_worker(options: WorkerOptions) -> int:
    """Run a worker until it is told to stop; the exit code.

    Raises:
        CommandError: It can't run, for a reason that its user can mend.
    """
    process = _Process(options)
    process.obey_signals()
    try:
        worker = make_runner(options)
    finally:
        logs.restore()  # the application is imported, and may have configured logging
    return process.run(worker)


class Runner(Protocol):
    """A worker, of threads or of asyncio, as this module runs it."""

    def run(self, ended: Callable[[], None]) -> None:
        """Work until stopped; calls *ended* when all is settled."""

    def request_stop(self, timeout: float | None = None) -> None:
        """Ask for the end, from another thread."""


class _Process:
    """The main thread of a worker process."""

    def __init__(self, options: WorkerOptions) -> None:
        self._options = options
        self._events: Mailbox[str] = Mailbox()
        self._own = Requests()
        self._pipe = options.parent_pipe
        if self._pipe is not None:
            os.set_blocking(self._pipe, False)
        self._passed_on = bytearray()  # a byte for each request that the supervisor has passed on
        self._expected = 0  # how many of its signals have arrived
        self._obeyed = 0
        self._error: BaseException | None = None

    def obey_signals(self) -> None:
        """From now on signals are counted, whatever the main thread is doing."""
        for number in SIGNALS:
            signal.signal(number, self._on_signal)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._read_pipe()
        if self._expected < len(self._passed_on):
            # The supervisor's, which has said so before it sent the signal. However late it comes,
            # it is no second request: a signal to the whole service has reached us already.
            self._expected += 1
        else:
            self._own.add(number)
        if self._asked >= 3:
            exit_now(SIGNALLED + number)
        self._events.put("signal")

    def _read_pipe(self) -> bool:
        """Take in what the supervisor has passed on; whether the supervisor is gone."""
        if self._pipe is None:
            return False
        with suppress(BlockingIOError):
            found = os.read(self._pipe, 64)
            # At once: a signal handler may do the same in between.
            self._passed_on.extend(found)
            return not found
        return False

    def run(self, worker: Runner) -> int:
        """Wait for what comes, until the worker has ended; the exit code."""
        thread = threading.Thread(target=self._work, args=(worker,), name="bgjob-main", daemon=True)
        thread.start()
        if self._pipe is not None:
            self._events.watch(self._pipe, "pipe")
        with self._events:
            self._obey(worker)
        thread.join(timeout=2.0)  # an event loop may have a little to tidy up
        if self._error is not None:
            return _failed(self._error, self._options.engine)
        if self._asked < 2:
            return OK
        return SIGNALLED + self._last_signal

    @property
    def _asked(self) -> int:
        """How often this process was told to stop, by signals of its own or by the supervisor."""
        return max(len(self._own.numbers), len(self._passed_on))

    @property
    def _last_signal(self) -> int:
        return self._own.numbers[-1] if self._own.numbers else signal.SIGTERM

    def _obey(self, worker: Runner) -> None:
        """Until the worker has ended."""
        deadline: float | None = None
        while True:
            event = self._events.get(None if deadline is None else deadline - time.monotonic())
            if event is None:
                say(logging.ERROR, "the worker does not end: a handler blocks it; exiting")
                exit_now(FAILED)
            if event == "ended":
                return
            if event == "pipe" and self._pipe is not None and self._read_pipe():
                self._events.unwatch(self._pipe)
                event = "parent gone"
            if deadline is None:
                deadline = time.monotonic() + self._options.settings.shutdown_timeout + STUCK_AFTER
            if event == "parent gone" or self._asked > self._obeyed:
                self._obeyed = self._asked
                self._stop(worker, event)

    def _stop(self, worker: Runner, event: str) -> None:
        seconds = self._options.settings.shutdown_timeout
        if event == "parent gone":
            worker.request_stop()
            say(logging.WARNING, "the supervisor is gone: draining for at most %g s", seconds)
        elif self._asked == 1:
            worker.request_stop()
            name = signal.Signals(self._last_signal).name
            words = "%s: draining for at most %g s; again to stop at once"
            say(logging.INFO, words, name, seconds)
        else:
            worker.request_stop(0.0)
            say(logging.WARNING, "second signal: releasing what runs")

    def _work(self, worker: Runner) -> None:
        try:
            worker.run(lambda: self._events.put("ended"))
        except BaseException as error:
            self._error = error
            self._events.put("ended")


def _failed(error: BaseException, engine: str | None) -> int:
    """What made a worker end by itself: raises it as what a user can read, or logs it."""
    if isinstance(error, UnfitHandlers):
        raise CommandError(USAGE, str(error)) from None
    if isinstance(error, SchemaOutOfDate):
        raise CommandError(SCHEMA, str(error)) from None
    if isinstance(error, WorkerRefused):
        raise CommandError(DATABASE, str(error)) from None
    if isinstance(error, SQLAlchemyError) or sqlstate(error) is not None:
        raise CommandError(DATABASE, f"the database refuses: {database_message(error)}") from None
    if failed_to_connect(error):
        raise cant_connect(error, engine) from None
    logger.critical("the worker failed: %s", type(error).__name__, exc_info=error)
    return FAILED


# ---- what to run ----------------------------------------------------------------------------


def load_jobs(app: str, app_dir: Path) -> BGJob[Any, Any]:
    """The application's BGJob.

    Raises:
        CommandError: It can't be found, or is something else.
    """
    found = loader.load(app, app_dir)
    if isinstance(found, BGJob):
        return found
    what = f"{app!r} is of type {type(found).__name__!r}, not BGJob"
    if inspect.isroutine(found):
        raise CommandError(USAGE, f"{what}; if it makes one, write {app}()")
    module = app.partition(":")[0]
    near = [f"{app}.{name}" for name in _held_by(found)]
    near += [f"{module}:{name}" for name in _held_by(sys.modules[module])]
    remedy = (
        f"did you mean {' or '.join(near)}?"
        if near
        else "name the object that BGJob(...) has made, such as app:jobs"
    )
    raise CommandError(USAGE, f"{what}; {remedy}")


def _held_by(holder: Any) -> list[str]:
    """The names of BGJobs; no property is read, as it may raise, or connect."""
    names = dir(holder)
    return [name for name in names if isinstance(inspect.getattr_static(holder, name, None), BGJob)]


def make_runner(options: WorkerOptions) -> Runner:
    """The worker that suits the driver and the handlers.

    Raises:
        CommandError: The application or the options are not as they must be.
    """
    jobs = load_jobs(options.app, options.app_dir)
    for module in options.imports:
        loader.import_module(module, options.app_dir)
    _refuse_no_handlers(jobs, options)
    refuse_lists(options.queues or (), jobs.registry.queues())
    engine = None
    if options.engine is not None:
        engine = load_engine(options.engine, options.app_dir)
    sync_engine = None
    if options.sync_engine is not None:
        sync_engine = load_sync_engine(options.sync_engine, options.app_dir)
    heart_engine = None
    if options.heart_engine is not None:
        heart_engine = load_engine(options.heart_engine, options.app_dir)
    factories = [_load_factory(target, options.app_dir) for target in options.session_factories]
    around = options.around and loader.load(
        options.around, options.app_dir, example="app:app.app_context"
    )
    try:
        queues = served_queues(jobs.registry, options.queues)
        if engine is None:
            url = database_url(options.database_url)
            return _for_url(
                jobs, url, sync_engine, heart_engine, queues, factories, around, options
            )
        return _for_engine(
            jobs, engine, sync_engine, heart_engine, queues, factories, around, options
        )
    except (ImportError, TypeError, ValueError) as error:  # a driver without its library, say
        raise CommandError(USAGE, str(error)) from None


def _refuse_no_handlers(jobs: BGJob[Any, Any], options: WorkerOptions) -> None:
    try:
        require_handlers(jobs.registry)
    except ValueError as error:
        if not options.imports:
            raise CommandError(USAGE, str(error)) from None
        imported = ", ".join(map(repr, options.imports))
        raise CommandError(
            USAGE,
            f"{imported} registers no handler with {options.app!r}; let its modules use that very "
            f"BGJob, imported by that name",
        ) from None


def _load_factory(target: str, app_dir: Path) -> Any:
    found = loader.load(target, app_dir, example="app:SessionLocal")
    if not callable(found):
        raise CommandError(
            USAGE,
            f"{target!r} is of type {type(found).__name__!r}, which makes no sessions; name a "
            f"Session class or a sessionmaker",
        )
    return found


def _refuse_functions(jobs: BGJob[Any, Any], queues: Mapping[str, int], why: str) -> None:
    """Refuse functions that may use ``ctx.session`` where there is no engine for them."""
    handlers = served_handlers(jobs.registry, queues)
    functions = [h.type for h in handlers if not h.is_coroutine and h.options.session]
    if functions:
        raise CommandError(
            USAGE,
            f"the handlers of {', '.join(map(repr, functions))} are functions, whose ctx.session "
            f"needs a synchronous engine, and {why}; name one by --sync-engine app:sync_engine, or "
            f"register them with session=False",
        )


def _refuse_engines_of_asyncio(options: WorkerOptions) -> None:
    if options.heart_engine is not None:
        raise CommandError(
            USAGE,
            "--heart-engine goes with asyncio, and in this worker of threads the heart connects as "
            "the engine of --engine or the database URL does; leave it out",
        )
    if options.sync_engine is not None:
        raise CommandError(
            USAGE,
            "--sync-engine goes with asyncio, and this worker has threads, whose engine is that of "
            "--engine or of the database URL; leave it out",
        )


def _for_url(
    jobs: BGJob[Any, Any],
    url: URL,
    sync_engine: Engine | None,
    heart_engine: "Engine | AsyncEngine | None",
    queues: Mapping[str, int],
    factories: list[Any],
    around: Any,
    options: WorkerOptions,
) -> Runner:
    pool_size = sum(queues.values()) + SPARE_CONNECTIONS
    driver = url.get_driver_name()
    coroutines = [h.type for h in jobs.registry if h.is_coroutine]
    if driver != "asyncpg" and not (coroutines and driver in ASYNC_DRIVERS):
        served = [h.type for h in jobs.registry if h.is_coroutine and h.queue in queues]
        if served:
            raise CommandError(
                USAGE,
                f"the handlers of {', '.join(map(repr, served))} are coroutines, and the driver "
                f"{driver!r} has no asyncio; use postgresql+psycopg:// or postgresql+asyncpg://",
            )
        _refuse_engines_of_asyncio(options)
        engine = create_engine(url, pool_size=pool_size, max_overflow=0)
        return _ThreadRunner(jobs, engine, queues, factories, around, options.settings)
    async_engine = make_async_engine(url, pool_size=pool_size, max_overflow=0)
    functions = any(not h.is_coroutine and h.options.session for h in jobs.registry)
    if functions and sync_engine is None:
        for_threads = sync_url(url)
        if for_threads is not None:
            sync_engine = create_engine(for_threads, pool_size=pool_size, max_overflow=0)
        else:
            _refuse_functions(jobs, queues, "none can be made from a URL like this one")
    return _AsyncRunner(
        jobs, async_engine, sync_engine, heart_engine, queues, factories, around, options.settings
    )


def _for_engine(
    jobs: BGJob[Any, Any],
    engine: "Engine | AsyncEngine",
    sync_engine: Engine | None,
    heart_engine: "Engine | AsyncEngine | None",
    queues: Mapping[str, int],
    factories: list[Any],
    around: Any,
    options: WorkerOptions,
) -> Runner:
    if isinstance(engine, Engine):
        _refuse_engines_of_asyncio(options)
        return _ThreadRunner(jobs, engine, queues, factories, around, options.settings)
    if sync_engine is None and not engine.dialect.driver.startswith("psycopg"):
        _refuse_functions(jobs, queues, f"none can be made from {options.engine!r}")
    return _AsyncRunner(
        jobs, engine, sync_engine, heart_engine, queues, factories, around, options.settings
    )


class _ThreadRunner:
    """A Worker."""

    def __init__(
        self,
        jobs: BGJob[Any, Any],
        engine: Engine,
        queues: Mapping[str, int],
        factories: list[Any],
        around: Any,
        settings: WorkerSettings,
    ) -> None:
        if len(factories) > 1:
            raise ValueError("all handlers are functions: give one session factory, not two")
        self._engine = engine
        self._worker = Worker(
            jobs,
            engine,
            queues=queues,
            session_factory=factories[0] if factories else None,
            around=around,
            settings=settings,
        )
        self.request_stop = self._worker.request_stop

    def run(self, ended: Callable[[], None]) -> None:
        """Work until stopped."""
        try:
            self._worker.run()
        finally:
            self._engine.dispose()
        ended()


class _AsyncRunner:
    """An AsyncWorker, in an event loop of its own."""

    def __init__(
        self,
        jobs: BGJob[Any, Any],
        engine: "AsyncEngine",
        sync_engine: Engine | None,
        heart_engine: "Engine | AsyncEngine | None",
        queues: Mapping[str, int],
        factories: list[Any],
        around: Any,
        settings: WorkerSettings,
    ) -> None:
        from ..aio import AsyncWorker  # noqa: PLC0415 - threads need no asyncio

        for_coroutines = [factory for factory in factories if _is_async(factory)]
        for_functions = [factory for factory in factories if not _is_async(factory)]
        if len(for_coroutines) > 1 or len(for_functions) > 1:
            raise ValueError(
                "give at most one session factory for functions and one for coroutines"
            )
        self._engine, self._sync_engine = engine, sync_engine
        self._worker = AsyncWorker(
            jobs,
            engine,
            sync_engine=sync_engine,
            heart_engine=heart_engine,
            queues=queues,
            session_factory=for_coroutines[0] if for_coroutines else None,
            sync_session_factory=for_functions[0] if for_functions else None,
            around=around,
            settings=settings,
        )
        self.request_stop = self._worker.request_stop

    def run(self, ended: Callable[[], None]) -> None:
        """Work until stopped."""
        asyncio.run(self._run(ended))

    async def _run(self, ended: Callable[[], None]) -> None:
        try:
            await self._worker.run()
        finally:
            await self._engine.dispose()
            if self._sync_engine is not None:
                self._sync_engine.dispose()
        # Before asyncio.run() waits for the loop's executor, whose threads may never end.
        ended()


def _is_async(factory: Any) -> bool:
    """Whether a session factory is an async_sessionmaker or a class of AsyncSession."""
    from sqlalchemy.ext.asyncio import (  # noqa: PLC0415
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )

    if isinstance(factory, type):
        return issubclass(factory, AsyncSession)
    return isinstance(factory, async_sessionmaker | async_scoped_session)
