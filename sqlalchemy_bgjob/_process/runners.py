"""Loads what the options name, and makes the worker that suits it."""

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import URL, Engine, create_engine

from .._handlers.served import require_handlers, served_handlers, served_queues
from ..bgjob import BGJob
from ..exceptions import WorkerStuck
from ..settings import SPARE_CONNECTIONS, Queue, WorkerSettings
from ..telemetry import Observer
from ..worker import Worker
from . import loader
from .address import Address
from .application import load_jobs
from .engines import load_engine, load_sync_engine, make_async_engine
from .exits import USAGE, CommandError
from .queue_names import refuse_lists
from .urls import ASYNC_DRIVERS, database_url, sync_url

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from ..aio import AsyncWorker


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """The options of a worker on the command line.

    Attributes:
        app: Names the BGJob, see :func:`.loader.load`.
        database_url: Where the jobs are; not needed with *engine*.
        engine: Names the application's own Engine or AsyncEngine.
        sync_engine: Names an Engine for functions, beside an AsyncEngine or a URL for asyncpg.
        heart_engine: Names the engine of heart and rescuer, beside an AsyncEngine.
        session_factories: Name what makes ``ctx.session``: one for functions, one for coroutines.
        app_dir: Where to look for modules after Python's own path.
        around: Names what makes the context that is entered around each job.
        lifespan: Names what makes the context that is entered around the worker's work.
        observers: Name the objects that are told what was committed.
        imports: Modules that register handlers, beside the one that *app* names.
        queues: Concurrency by queue; None for all queues that handlers name.
        settings: The worker's.
        http: Where to answer probes and show metrics.
        parent_pipe: The file descriptor of a pipe that closes when the supervisor ends.
    """

    app: str
    database_url: str | None = None
    engine: str | None = None
    sync_engine: str | None = None
    heart_engine: str | None = None
    session_factories: tuple[str, ...] = ()
    app_dir: Path = Path()
    around: str | None = None
    lifespan: str | None = None
    observers: tuple[str, ...] = ()
    imports: tuple[str, ...] = ()
    queues: Mapping[str, int | Queue] | None = None
    settings: WorkerSettings = WorkerSettings()  # noqa: RUF009 - it is frozen
    http: Address | None = None
    parent_pipe: int | None = None


class Runner(Protocol):
    """A worker of threads or of asyncio, with the engines that it disposes of."""

    def run(self, ended: Callable[..., None]) -> None:
        """Work until stopped; call *ended* when all is settled, with the error if there was one."""

    def request_stop(self, timeout: float | None = None) -> None:
        """Ask the worker to stop; callable from another thread."""

    @property
    def worker(self) -> "Worker | AsyncWorker":
        """The worker, for probes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Application:
    """The loaded objects that the options name.

    Attributes:
        queues: Concurrency by queue.
        given_queues: What tells the worker of them; None for all that handlers name.
        factories: One or two session factories, or none.
        around: Makes the context around each job, or None.
        lifespan: Makes the context around the worker's work, or None.
    """

    jobs: BGJob[Any, Any]
    queues: Mapping[str, int]
    given_queues: Mapping[str, int | Queue] | None
    sync_engine: Engine | None
    heart_engine: "Engine | AsyncEngine | None"
    factories: list[Any]
    around: Any
    lifespan: Any
    observers: list[Observer]
    settings: WorkerSettings


def make_runner(options: WorkerOptions) -> Runner:
    """Make the worker that suits the driver and the handlers.

    Raises:
        CommandError: The application or the options are wrong.
    """
    jobs = load_jobs(options.app, options.app_dir, options.imports)
    _refuse_no_handlers(jobs, options)
    refuse_lists(options.queues or (), jobs.registry.queues())
    try:
        application = _load(jobs, options)
        if options.engine is not None:
            engine = load_engine(options.engine, options.app_dir)
            return _for_engine(application, engine, options.engine)
        return _for_url(application, database_url(options.database_url))
    except (ImportError, TypeError, ValueError) as error:  # a driver without its library, say
        raise CommandError(USAGE, str(error)) from None


def _load(jobs: BGJob[Any, Any], options: WorkerOptions) -> _Application:
    app_dir = options.app_dir
    sync_engine = options.sync_engine and load_sync_engine(options.sync_engine, app_dir)
    heart_engine = options.heart_engine and load_engine(options.heart_engine, app_dir)
    around = options.around and loader.load(options.around, app_dir, example="app:app.app_context")
    lifespan = options.lifespan and loader.load(options.lifespan, app_dir, example="app:lifespan")
    return _Application(
        jobs=jobs,
        queues=served_queues(jobs.registry, options.queues),
        given_queues=options.queues,
        sync_engine=sync_engine or None,
        heart_engine=heart_engine or None,
        factories=[_load_factory(target, app_dir) for target in options.session_factories],
        around=around or None,
        lifespan=lifespan or None,
        observers=_load_observers(options),
        settings=options.settings,
    )


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


def _load_observers(options: WorkerOptions) -> list[Observer]:
    observers = [_load_observer(target, options.app_dir) for target in options.observers]
    if options.http is not None:
        with suppress(ImportError):  # /metrics says what to install
            from ..telemetry.prometheus import Metrics  # noqa: PLC0415 - only who asks pays for it

            if not any(isinstance(one, Metrics) for one in observers):
                observers.append(Metrics())
    return observers


def _load_observer(target: str, app_dir: Path) -> Observer:
    found = loader.load(target, app_dir, example="app:alerts")
    if isinstance(found, Observer):
        return found
    if isinstance(found, type):
        raise CommandError(USAGE, f"{target!r} is a class; write {target}(), which makes an object")
    what = type(found).__name__
    raise CommandError(
        USAGE, f"{target!r} is of type {what!r}; name an object of a subclass of Observer"
    )


def _refuse_functions(application: _Application, why: str) -> None:
    """Refuse functions that may use ``ctx.session`` when there is no engine for it."""
    handlers = served_handlers(application.jobs.registry, application.queues)
    functions = [h.type for h in handlers if not h.is_coroutine and h.options.session]
    if functions:
        raise CommandError(
            USAGE,
            f"the handlers of {', '.join(map(repr, functions))} are functions, whose ctx.session "
            f"needs a synchronous engine, and {why}; name one by --sync-engine app:sync_engine, or "
            f"register them with session=False",
        )


def _refuse_engines_of_asyncio(application: _Application) -> None:
    if application.heart_engine is not None:
        raise CommandError(
            USAGE,
            "--heart-engine goes with asyncio, and in this worker of threads the heart connects as "
            "the engine of --engine or the database URL does; leave it out",
        )
    if application.sync_engine is not None:
        raise CommandError(
            USAGE,
            "--sync-engine goes with asyncio, and this worker has threads, whose engine is that of "
            "--engine or of the database URL; leave it out",
        )


def _for_url(application: _Application, url: URL) -> Runner:
    pool = {"pool_size": sum(application.queues.values()) + SPARE_CONNECTIONS, "max_overflow": 0}
    driver = url.get_driver_name()
    registry = application.jobs.registry
    coroutines = [h for h in registry if h.is_coroutine]
    if driver != "asyncpg" and not (coroutines and driver in ASYNC_DRIVERS):
        served = [h.type for h in coroutines if h.queue in application.queues]
        if served:
            raise CommandError(
                USAGE,
                f"the handlers of {', '.join(map(repr, served))} are coroutines, and the driver "
                f"{driver!r} has no asyncio; use postgresql+psycopg:// or postgresql+asyncpg://",
            )
        _refuse_engines_of_asyncio(application)
        return _ThreadRunner(application, create_engine(url, **pool))
    async_engine = make_async_engine(url, **pool)
    functions = any(not h.is_coroutine and h.options.session for h in registry)
    if functions and application.sync_engine is None:
        for_threads = sync_url(url)
        if for_threads is not None:
            made = create_engine(for_threads, **pool)
            application = replace(application, sync_engine=made)
        else:
            _refuse_functions(application, "none can be made from a URL like this one")
    return _AsyncRunner(application, async_engine)


def _for_engine(application: _Application, engine: "Engine | AsyncEngine", name: str) -> Runner:
    if isinstance(engine, Engine):
        _refuse_engines_of_asyncio(application)
        return _ThreadRunner(application, engine)
    if application.sync_engine is None and not engine.dialect.driver.startswith("psycopg"):
        _refuse_functions(application, f"none can be made from {name!r}")
    return _AsyncRunner(application, engine)


class _ThreadRunner:
    """A Worker."""

    def __init__(self, application: _Application, engine: Engine) -> None:
        factories = application.factories
        if len(factories) > 1:
            raise ValueError("all handlers are functions: give one session factory, not two")
        self._engine = engine
        self.worker = Worker(
            application.jobs,
            engine,
            queues=application.given_queues,
            session_factory=factories[0] if factories else None,
            around=application.around,
            lifespan=application.lifespan,
            observers=application.observers,
            settings=application.settings,
        )
        self.request_stop = self.worker.request_stop

    def run(self, ended: Callable[..., None]) -> None:
        """Work until stopped."""
        try:
            self.worker.run()
        finally:
            self._engine.dispose()
        ended()


class _AsyncRunner:
    """An AsyncWorker, in an event loop of its own."""

    def __init__(self, application: _Application, engine: "AsyncEngine") -> None:
        from ..aio import AsyncWorker  # noqa: PLC0415 - threads need no asyncio

        factories = application.factories
        for_coroutines = [factory for factory in factories if _is_async(factory)]
        for_functions = [factory for factory in factories if not _is_async(factory)]
        if len(for_coroutines) > 1 or len(for_functions) > 1:
            raise ValueError(
                "give at most one session factory for functions and one for coroutines"
            )
        self._engine, self._sync_engine = engine, application.sync_engine
        self.worker = AsyncWorker(
            application.jobs,
            engine,
            sync_engine=application.sync_engine,
            heart_engine=application.heart_engine,
            queues=application.given_queues,
            session_factory=for_coroutines[0] if for_coroutines else None,
            sync_session_factory=for_functions[0] if for_functions else None,
            around=application.around,
            lifespan=application.lifespan,
            observers=application.observers,
            settings=application.settings,
        )
        self.request_stop = self.worker.request_stop

    def run(self, ended: Callable[..., None]) -> None:
        """Work until stopped."""
        asyncio.run(self._run(ended))

    async def _run(self, ended: Callable[..., None]) -> None:
        try:
            await self.worker.run()
        except WorkerStuck as stuck:
            ended(stuck)  # here, for the same reason as below
            raise
        finally:
            await self._engine.dispose()
            if self._sync_engine is not None:
                self._sync_engine.dispose()
        # Here, as asyncio.run() waits for the loop's executor next, whose threads may never end.
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
