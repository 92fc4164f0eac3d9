"""What BGJob's decorators take and give, and those that put something around its jobs."""

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any, Concatenate, Protocol, TypedDict, TypeVar, overload

from ._handlers.additions import Carried
from ._handlers.middleware import MISSING, Layer, Missing
from ._handlers.outcomes import Outcome
from ._handlers.registry import JobType, Registry
from ._worker.run import Context

A = TypeVar("A")

Returned = Outcome | None | Awaitable[Outcome | None]
"""What handlers return: functions an outcome or None, coroutines the same when awaited."""
Outcomes = Mapping[str, Outcome | None]
"""Of some jobs of a chunk, by id; the others are complete."""
ChunkReturned = Returned | Outcomes | Awaitable[Outcome | Outcomes | None]
"""What handlers of chunks return: one outcome for all, or some by job."""
Provide = Callable[
    [Context[Any]],
    AbstractContextManager[Mapping[str, object]]
    | AbstractAsyncContextManager[Mapping[str, object]],
]
"""What fills the keyword-only parameters of handlers."""


class TableOptions(TypedDict, total=False):
    """How the tables of a BGJob are named, and whether it has those of records."""

    schema: str | None
    table_prefix: str
    records: bool
    record_all: float | timedelta | None


M = TypeVar("M", bound=Callable[[Callable[[], Any], Context[Any]], Any])
E = TypeVar("E", bound=Callable[[str, str], Mapping[str, Any] | None])


class Decorator(Protocol):
    """What ``@jobs.handler(...)`` returns."""

    @overload
    def __call__(self, function: Callable[[Context[Any], A], Returned]) -> JobType[A]: ...
    @overload
    def __call__(self, function: Callable[[Context[Any]], Returned]) -> JobType[None]: ...


class ResourceDecorator(Protocol):
    """The same of a BGJob with ``provide=``: a handler may have keyword-only parameters too.

    No type says that the others are keyword-only; the registration does.
    """

    @overload
    def __call__(
        self, function: Callable[Concatenate[Context[Any], A, ...], Returned]
    ) -> JobType[A]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Context[Any], ...], Returned]
    ) -> JobType[None]: ...


class ChunkDecorator(Protocol):
    """What ``@jobs.handler(..., chunk=100)`` returns: a handler gets the args of several jobs."""

    @overload
    def __call__(
        self, function: Callable[[Context[Any], list[A]], ChunkReturned]
    ) -> JobType[A]: ...
    @overload
    def __call__(self, function: Callable[[Context[Any]], ChunkReturned]) -> JobType[None]: ...


class ResourceChunkDecorator(Protocol):
    """The same of a BGJob with ``provide=``."""

    @overload
    def __call__(
        self, function: Callable[Concatenate[Context[Any], list[A], ...], ChunkReturned]
    ) -> JobType[A]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[Context[Any], ...], ChunkReturned]
    ) -> JobType[None]: ...


class AroundJobs:
    """The part of :class:`~sqlalchemy_bgjob.BGJob` that puts something around all of its jobs."""

    registry: Registry

    def middleware(self, function: M, other: Callable[..., Any] | Missing | None = MISSING) -> M:
        """Put a function ``f(call, ctx)`` around each run of a handler.

        The function calls ``call()``, once, and returns what that returns; a coroutine function
        awaits it. It runs in the thread or task of the job, within the attempt's timeout. ``ctx``
        is that of the handler, with its session and transaction. The function that is registered
        first is the outermost.

        It changes what becomes of the job only by raising, or by returning an outcome. If it
        returns None, what the handler returned or raised stands.

        Register it before a worker starts. A worker does not start if one of its handlers has no
        middleware of its kind; so give one for each kind of handlers that you have.

        Args:
            function: A function, which goes around functions; or a coroutine function, which goes
                around coroutines.
            other: The same for handlers of the other kind, or None to leave those without.

        Returns:
            *function*, so that this is a decorator.

        Raises:
            TypeError: One of them is no such function, or both are of one kind.
        """
        self.registry.add_layer(Layer.of(function, other))
        return function

    def on_enqueue(self, function: E) -> E:
        """Let a function ``f(type, queue)`` add headers to each job that is enqueued.

        The function returns a mapping, or None for no header. Headers that the caller gives win. It
        is called before any SQL: once for each ``enqueue``, ``jobs.enqueue``, ``handler.job`` and
        ``enqueue_from``, and once for all jobs of an ``enqueue_many`` of one handler. What it
        raises, these calls raise.

        It is not called for rows that are made in another way, such as ``jobs.Job(...)`` or SQL,
        nor for the jobs of a schedule, which have the headers of their schedule.

        Returns:
            The function, so that this is a decorator.

        Raises:
            TypeError: It is a coroutine function, or can't be called.
        """
        self.registry.additions.on_enqueue(function)
        return function

    def carry(self, **variables: ContextVar[Any]) -> None:
        """Carry context variables with each job, as headers of these names.

        ``jobs.carry(request_id=request_id)`` stores the variable's value as the header
        ``request_id`` of each job that is enqueued, unless it is not set or None. Around the
        handler it sets the variable to that value. Call it before you register middleware that
        reads the variable: it is itself made of :meth:`on_enqueue` and :meth:`middleware`.

        Args:
            **variables: ContextVars. Their values must have a JSON form, and the handler gets what
                JSON gives back: a tuple becomes a list.

        Raises:
            TypeError: One of them is no ContextVar.
        """
        carried = Carried(variables)
        self.registry.additions.on_enqueue(carried.headers)
        self.registry.add_layer(Layer.of(carried.function, carried.coroutine))
