"""BGJob: the queue of one application. Its models, its handlers, and its ways to enqueue."""

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Generic, Unpack, cast, overload

from sqlalchemy import MetaData
from sqlalchemy.orm import DeclarativeBase
from typing_extensions import TypeVar

from ._batches import HasBatches
from ._db.errors import did_you_mean
from ._db.targets import SyncTarget
from ._dead_jobs import DeadJobVerbs
from ._decorators import (
    AroundJobs,
    ChunkDecorator,
    Decorator,
    Provide,
    ResourceChunkDecorator,
    ResourceDecorator,
    TableOptions,
)
from ._drafts import validation
from ._drafts.draft import UNTYPED
from ._drafts.options import EnqueueOptions
from ._enqueue.one import JobRef, enqueue_type
from ._handlers.additions import Additions
from ._handlers.options import (
    ChunkKeywords,
    HandlerKeywords,
    HandlerOptions,
    handler_options,
    keep_time,
)
from ._handlers.registry import JobType, Registry
from ._lifecycle.cancel import HasCancel
from ._lifecycle.schedules import HasSchedules
from ._live_jobs import LiveJobVerbs
from ._misuse import name_of, needs_a_type, refuse_unknown
from ._queues import QueueMethods
from ._records import HasRecords
from ._work_one import HasWorkOne
from .models import (
    ControlMixin,
    DeadJobMixin,
    JobMixin,
    Models,
    ScheduleMixin,
    WorkerMixin,
    build_models,
    check_args_by,
)
from .settings import DEFAULT_PREFIX

if TYPE_CHECKING:
    from ._db.targets import AsyncTarget

J = TypeVar("J", bound=JobMixin, default=JobMixin)
D = TypeVar("D", bound=DeadJobMixin, default=DeadJobMixin)


class BGJob(
    HasCancel,
    HasSchedules,
    HasRecords,
    HasBatches,
    HasWorkOne,
    LiveJobVerbs,
    DeadJobVerbs,
    AroundJobs,
    QueueMethods,
    Generic[J, D],
):
    """The queue of one application: its tables, its handlers, and its ways to enqueue.

    Write ``jobs = BGJob(Base)`` once for each MetaData, in a module that producers and workers
    import. This sends no statement.

    Args:
        target: What the tables join: a declarative base, a registry, a MetaData, a Flask-SQLAlchemy
            ``db`` or ``SQLModel``. May be left out with *models*.
        schema: The tables' schema, of at most 63 bytes; by default that of the MetaData.
        table_prefix: Begins the tables' names, at most 32 bytes.
        models: Your own classes ``(Job, DeadJob)``, built on JobMixin and DeadJobMixin.
        records: True adds the tables of records: ``Record`` for handlers with ``record=``,
            ``Minute`` for what workers count each minute, and ``Audit`` for what somebody does by
            the dashboard or the command line.
        record_all: Seconds or a timedelta for which the record of each job is kept after the job's
            end, if its handler does not say ``record=`` itself. It adds the tables of records too.
        provide: A function ``f(ctx)`` that returns a context manager. What this yields, a dict that
            is annotated as a TypedDict, fills the keyword-only parameters of handlers. The worker
            enters it for each attempt whose handler takes any of these, within the timeout, and
            leaves it before the job is settled.

    Raises:
        TypeError: *target* has no MetaData, *models* are not mapped classes of these mixins, or
            *provide* does not say what it yields.
        ValueError: The MetaData has such tables already, or a name is too long.
    """

    models: Models

    if TYPE_CHECKING:

        @overload
        def __new__(
            cls, target: object, **tables: Unpack[TableOptions]
        ) -> "BGJob[JobMixin, DeadJobMixin]": ...
        @overload
        def __new__(
            cls,
            target: object = None,
            *,
            models: tuple[type[J], type[D]],
            **tables: Unpack[TableOptions],
        ) -> "BGJob[J, D]": ...
        @overload
        def __new__(
            cls, target: object, *, provide: Provide, **tables: Unpack[TableOptions]
        ) -> "BGJobWithResources[JobMixin, DeadJobMixin]": ...
        @overload
        def __new__(
            cls,
            target: object = None,
            *,
            models: tuple[type[J], type[D]],
            provide: Provide,
            **tables: Unpack[TableOptions],
        ) -> "BGJobWithResources[J, D]": ...
        def __new__(cls, *args: Any, **kwargs: Any) -> Any: ...  # noqa: D102
    else:  # of two in one class mypy takes this one, which can't tell what is made

        def __init__(
            self,
            target: object = None,
            *,
            schema: str | None = None,
            table_prefix: str = DEFAULT_PREFIX,
            models: tuple[type[J], type[D]] | None = None,
            records: bool = False,
            record_all: float | timedelta | None = None,
            provide: Provide | None = None,
        ) -> None:
            self.models = build_models(
                target,
                schema=schema,
                table_prefix=table_prefix,
                models=models,
                records=records or record_all is not None,
                record_all=keep_time("record_all", record_all),
            )
            self.registry = Registry(Additions(provide))
            check_args_by(self.models.DeadJob, self.registry.codec)

    @property
    def Job(self) -> type[J]:  # noqa: N802 - it is a class
        """The mapped class of live jobs. Select it, relate to it, show it."""
        return cast(type[J], self.models.Job)

    @property
    def DeadJob(self) -> type[D]:  # noqa: N802
        """The mapped class of dead jobs, those in the DLQ."""
        return cast(type[D], self.models.DeadJob)

    @property
    def WorkerRow(self) -> type[WorkerMixin]:  # noqa: N802
        """The mapped class of the workers that live. Read its rows, and never write them."""
        return cast(type[WorkerMixin], self.models.WorkerRow)

    @property
    def Control(self) -> type[ControlMixin]:  # noqa: N802
        """The mapped class of what operators have set for queues, such as pauses."""
        return cast(type[ControlMixin], self.models.Control)

    @property
    def Schedule(self) -> type[ScheduleMixin]:  # noqa: N802
        """The mapped class of schedules. Change its rows by :attr:`schedules`."""
        return cast(type[ScheduleMixin], self.models.Schedule)

    @property
    def Base(self) -> type[DeclarativeBase]:  # noqa: N802
        """The base of these classes, for ``Session(binds={Base: engine, jobs.Base: engine})``."""
        return self.models.Base

    @property
    def metadata(self) -> MetaData:
        """The MetaData that the tables joined."""
        return self.models.metadata

    # ---- handlers ---------------------------------------------------------------------------

    @overload
    def handler(
        self, type: str, *, queue: str = "default", **options: Unpack[HandlerKeywords]
    ) -> Decorator: ...
    @overload
    def handler(
        self, type: str, *, queue: str = "default", **options: Unpack[ChunkKeywords]
    ) -> ChunkDecorator: ...
    @needs_a_type
    def handler(self, type: str, *, queue: str = "default", **options: Any) -> Any:
        """Register a function or coroutine ``f(ctx)`` or ``f(ctx, arg)`` as the handler of a type.

        ``@jobs.handler("send_receipt", queue="mail")`` stands above it. The annotation of *arg* is
        the type of the job's arg: ``enqueue`` checks each arg against it, and the handler gets a
        value of it. ``provide=`` of the BGJob fills keyword-only parameters. The function stays
        callable as it was.

        Args:
            type: The name that is stored with each job, at most 128 characters.
            queue: Where its jobs go, unless enqueue says otherwise; at most 128 characters.
            max_attempts: After how many failed attempts a job is moved to the DLQ, by default 20;
                None for never.
            retry: A policy ``f(attempt, error)``, which returns the seconds, or a timedelta, until
                the next attempt. It gets the number of the failed attempt, and its exception, or
                None if there was none. If it returns None, the job is given up. By default an
                exponential backoff; see :mod:`sqlalchemy_bgjob.retry`.
            timeout: Seconds or a timedelta from the handler's start; by default None, without end.
                Time for which its session waits for a connection does not count. At the timeout a
                coroutine is cancelled. A function is only told, by ``ctx.cancelled``, and keeps its
                slot until it returns. If it returns None after the timeout, it has failed with a
                TimeoutError, and its writes are undone; an outcome that it returns or raises
                stands.
            isolation_level: That of the handler's transaction; by default the engine's. The
                settlement is written in this transaction too. A serialization failure, wherever it
                occurs, is a failed attempt that is retried at once: leave *max_attempts* room for
                these.
            session: False for a handler that never uses ``ctx.session``, which is faster.
            grace: Seconds or a timedelta that the handler may take to end after it was told to, by
                its timeout or a cancel. Then the job is settled without it: as failed, or as
                cancelled. What the handler still writes is undone, and its slot is lost until it
                ends; see ``max_stuck``. By default None: the job waits until the handler ends.
            on_expiry: What becomes of a job that was not started before it expired: ``"dlq"``, the
                default, moves it to the DLQ, and ``"drop"`` deletes it.
            chunk: The most jobs of one call of the function, up to 10,000. The function then takes
                a list of args, ``f(ctx, args)``. It returns one outcome for all jobs, or a dict of
                outcomes by job id; jobs that are not in it are complete. By default None: each job
                is a call of its own, with its arg. After a call for several jobs has raised, each
                of them runs alone; see the guide on chunks.
            wait: With *chunk*, how long a job that was claimed waits for others while the chunk is
                not full, in seconds or a timedelta; at most a ``heartbeat_interval``. By default
                0: a call takes the jobs that are there.
            record: Seconds or a timedelta for which a record of each job is kept after its end: how
                it ended, its result and progress. By default ``record_all`` of the BGJob; 0 keeps
                none.

        Raises:
            ValueError: The type has a handler already, a value is out of its range, or *record* is
                given and the BGJob has no tables of records.
            TypeError: The function does not take ``(ctx)`` or ``(ctx, arg)``; its arg can't be
                JSON; with *chunk*, its arg is no list; or it takes something by keyword that
                ``provide=`` does not give.
        """
        given = cast(ChunkKeywords, options)
        checked = handler_options("BGJob.handler", given, ChunkKeywords)

        def register(function: Callable[..., Any]) -> JobType[Any]:
            made = self._make(function, type, queue, checked)
            self.registry.add(made)
            return made

        return register

    def default_handler(
        self,
        queue: str = "default",
        **options: Unpack[HandlerKeywords],
    ) -> Decorator:
        """Register the handler of all jobs of a queue whose type has none.

        ``@jobs.default_handler("mail")`` stands above it. The function finds the type of a job in
        ``ctx.job.type``. The other arguments are those of :meth:`handler`, without *chunk* and
        *wait*.

        Raises:
            ValueError: The queue has a default handler already, or a value is out of its range.
            TypeError: As for :meth:`handler`.
        """
        if callable(queue):
            raise TypeError(
                f"@jobs.default_handler got {name_of(queue)} instead of a queue; write "
                f"@jobs.default_handler(), or name the queue: @jobs.default_handler('mail')"
            )
        checked = handler_options("BGJob.default_handler", options)

        def register(function: Callable[..., Any]) -> JobType[Any]:
            made = self._make(function, "*", queue, checked)
            self.registry.add_default(made)
            return made

        return cast(Decorator, register)

    def _make(
        self, function: Callable[..., Any], type: str, queue: str, options: HandlerOptions
    ) -> JobType[Any]:
        if isinstance(function, JobType):
            function = function.function  # one function may serve several types
        type, queue = validation.name("type", type), validation.name("queue", queue)
        if options.record and self.models.recording is None:
            raise ValueError(
                f"record= of the handler of {type!r} needs the tables of records; make the queue "
                f"with BGJob(..., records=True)"
            )
        return JobType(self.models, type, queue, function, options, self.registry.additions)

    # ---- producers --------------------------------------------------------------------------

    @overload
    def enqueue(
        self, target: SyncTarget, type: str, arg: Any = None, **options: Unpack[EnqueueOptions]
    ) -> JobRef: ...
    @overload
    def enqueue(
        self, target: "AsyncTarget", type: str, arg: Any = None, **options: Unpack[EnqueueOptions]
    ) -> Coroutine[Any, Any, JobRef]: ...
    def enqueue(
        self, target: Any, type: str, arg: Any = None, **options: Unpack[EnqueueOptions]
    ) -> Any:
        """Add a job by the name of its type, for producers that do not import the handler.

        The arguments are those of :func:`sqlalchemy_bgjob.enqueue`, with a name in the place of the
        handler. If the type is registered in this process, its handler checks the arg and names the
        queue. Otherwise the arg may be any JSON value or bytes, and *queue* must be given.

        Raises:
            ValueError: The type is not registered here, and no queue is given.
            JobAlreadyExists, InvalidArg, RuntimeError: As for ``enqueue``.
        """
        refuse_unknown("BGJob.enqueue", options, EnqueueOptions)
        if isinstance(type, JobType):
            raise TypeError(
                f"jobs.enqueue takes the name of a type; with a handler write "
                f"enqueue(target, {name_of(type)}, arg), imported from sqlalchemy_bgjob"
            )
        handler = self.registry.find_type(type)
        if handler is None and options.get("queue") is None:
            near = did_you_mean(type, (known.type for known in self.registry))
            raise ValueError(
                f"the type {type!r} is not registered in this process, so its queue is not "
                f"known; {f'{near} If not, ' if near else ''}give queue="
            )
        additions = self.registry.additions
        return enqueue_type(target, self.models, additions, handler, type, arg, options)

    def decode(self, job: JobMixin | DeadJobMixin) -> Any:
        """The arg of a live or dead job, as its handler takes it. It sends no statement.

        If this process has no handler for the job, the arg is what the row holds: JSON values, or
        bytes. To compare args in SQL, use ``Job.arg_json``.

        Raises:
            InvalidArg: The row's arg is none that the handler takes, or not JSON at all.
        """
        handler = self.registry.find(job.type, job.queue)
        codec = UNTYPED if handler is None or not handler.takes_arg else handler.codec
        headers = validation.stored_headers(job.headers)
        return codec.decode(job.arg, headers.get(validation.CONTENT_TYPE))


if TYPE_CHECKING:

    class BGJobWithResources(BGJob[J, D]):
        """For type checkers alone: what a BGJob is that has ``provide=``."""

        @overload
        def handler(
            self, type: str, *, queue: str = "default", **options: Unpack[HandlerKeywords]
        ) -> ResourceDecorator: ...
        @overload
        def handler(
            self, type: str, *, queue: str = "default", **options: Unpack[ChunkKeywords]
        ) -> ResourceChunkDecorator: ...
        def handler(  # noqa: D102
            self, type: str, *, queue: str = "default", **options: Any
        ) -> Any: ...
        def default_handler(  # noqa: D102
            self, queue: str = "default", **options: Unpack[HandlerKeywords]
        ) -> ResourceDecorator: ...
