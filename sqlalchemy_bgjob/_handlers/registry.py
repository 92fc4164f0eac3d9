"""Handlers by type: what ``@jobs.handler`` makes of a function, and how a job finds its handler.

A job is only ever dispatched to a function that was registered here. Nothing is imported by a
name that comes from the database.
"""

import inspect
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from functools import cached_property, update_wrapper
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar, Unpack, overload

from sqlalchemy import func

from .._drafts import validation
from .._drafts.batch import refuse_other_tables
from .._drafts.codec import Codec, Encoded
from .._drafts.draft import Draft, draft, drafts
from .._drafts.options import COLUMNS, JobOptions, OneJobOptions
from .._misuse import refuse_unknown
from ..models import Models
from .additions import Additions
from .kinds import code_of, is_coroutine
from .made import remember
from .middleware import Layer
from .options import HandlerOptions
from .results import result_annotation

if TYPE_CHECKING:
    from .schedules import Definition

if sys.version_info >= (3, 14):
    import annotationlib

A = TypeVar("A")
B = TypeVar("B")


class JobType(Generic[A]):
    """A registered handler: what ``@jobs.handler`` makes of a function. Calling it calls that.

    Attributes:
        type: The name that is stored with each job.
        queue: Where its jobs go, unless enqueue says otherwise.
        function: The function or coroutine that was decorated.
        annotation: The type of a job's arg; a handler that takes chunks gets a list of them.
        resources: The keyword-only parameters that ``provide=`` fills.
        call: What runs a job: the function, within the application's middleware and with its
            resources. Made when one of these changes, and not for each job.
    """

    def __init__(
        self,
        models: Models,
        type: str,
        queue: str,
        function: Callable[..., Any],
        options: HandlerOptions,
        additions: Additions | None = None,
    ) -> None:
        self.additions: Final[Additions] = additions or Additions()
        self.models: Final[Models] = models
        self.type: Final[str] = type
        self.queue: Final[str] = queue
        self.function: Final[Callable[..., Any]] = function
        self.options: Final[HandlerOptions] = options
        self.takes_arg: bool
        self.annotation: Any
        self.resources: tuple[str, ...]
        self.takes_arg, self.annotation, self.resources = _signature(function, self.additions)
        if options.chunk is not None and self.takes_arg:
            self.annotation = _element(function, self.annotation)
        self.codec: Final[Codec] = Codec(self.annotation)
        if self.keep is not None:
            _ = self.result_codec  # a wrong annotation is told here
        self.is_coroutine: Final[bool] = is_coroutine(function)
        self._refuse_async_resources()
        self.call: Callable[..., Any]
        self.compose()
        update_wrapper(self, function, updated=())  # its attributes may be another JobType's

    @cached_property
    def keep(self) -> float | None:
        """For how many seconds the record of a job is kept; None if there is none."""
        recording = self.models.recording
        own = self.options.record
        return None if recording is None else (recording.keep if own is None else own) or None

    @cached_property
    def result_codec(self) -> Codec:
        """Encodes and decodes what the handler gives to ``Complete(result=...)``."""
        return Codec(result_annotation(self.function), takes="is annotated to give")

    def compose(self) -> None:
        """Put what the application has around its jobs around this handler's function."""
        self.call = self.additions.around(
            self.function, self.resources, is_coroutine=self.is_coroutine
        )

    def _refuse_async_resources(self) -> None:
        provider = self.additions.provider
        if self.resources and provider and provider.is_async and not self.is_coroutine:
            raise TypeError(
                f"handler {_full_name(self.function)} is a function, and provide= makes an "
                f"asynchronous context manager, which it can't enter; make the handler a "
                f"coroutine, or the provider one of @contextmanager, which serves both"
            )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Call the decorated function itself, as a unit test does."""
        return self.function(*args, **kwargs)

    def __repr__(self) -> str:
        return f"<handler {self.type!r} on queue {self.queue!r}>"

    def decode(self, arg: bytes | None, headers: Mapping[str, Any] | None) -> A:
        """A row's arg as the handler takes it.

        Raises:
            InvalidArg: No attempt will ever decode it.
        """
        content_type = headers.get(validation.CONTENT_TYPE) if headers else None
        value: A = self.codec.decode(arg, content_type)
        return value

    @overload
    def job(self, arg: A, **options: Unpack[OneJobOptions]) -> Any: ...
    @overload
    def job(
        self: "JobType[B | None]", arg: B | None = None, **options: Unpack[OneJobOptions]
    ) -> Any: ...
    def job(self, arg: Any = None, **options: Unpack[OneJobOptions]) -> Any:
        """Make a ``Job`` for ``session.add()``, whose commit hands it to the workers.

        It sends no statement, so a coroutine need not await it. ``enqueue_many`` takes such jobs
        too.

        Args:
            arg: What the handler gets.
            **options: As for ``enqueue``, without *id* and *on_conflict*. ``session.add`` takes a
                job with *unique* only if the key says ``"raise"``, as its INSERT is a plain one: a
                duplicate is an IntegrityError, which fails the flush. ``enqueue_many`` takes any.

        Raises:
            TypeError: ``id=`` was given. A duplicate would abort the whole flush, so an id of
                your own is for ``enqueue(session, handler, arg, id=...)`` only.
            InvalidArg, ValueError: As for ``enqueue``.
        """
        if "id" in options:
            raise TypeError(
                "job() takes no id=: a duplicate would abort the flush; "
                "use enqueue(session, handler, arg, id=...)"
            )
        refuse_unknown("job", options, OneJobOptions)
        new = self.draft(arg, None, options)
        common = new.common
        columns = dict(zip(COLUMNS, common, strict=False))
        content_type = (common.headers or {}).get(validation.CONTENT_TYPE)
        job = self.models.Job(id=new.id, **columns, arg=Encoded(new.arg, content_type))
        if common.run_at is not None:
            job.next_run_at = common.run_at
        elif common.delay:
            job.next_run_at = func.now() + common.delay
        if common.expires_at is not None:
            job.expires_at = common.expires_at
        elif common.expires_in is not None:
            job.expires_at = func.now() + (common.delay or timedelta()) + common.expires_in
        job.batch_id = common.batch_id
        if new.unique is not None and new.unique.scope != "period":
            job.unique_key = new.unique.stored
        remember(job, new, self.models, options.get("batch"))
        return job

    def draft(
        self, arg: Any, id: str | None, options: JobOptions, *, is_enqueued: bool = True
    ) -> Draft:
        """Check and encode one job, with the application's headers if it *is_enqueued* now."""
        if not self.takes_arg and arg is not None:
            raise TypeError(
                f"the handler of {self.type!r} takes no arg, but one was given; its first "
                f"parameter is the context, so write f(ctx, arg)"
            )
        if is_enqueued:
            options = self.additions.with_headers(self.type, self.queue, options)
        refuse_other_tables(options, self.models)
        return draft(self.codec, self.type, self.queue, arg, id, options)

    def drafts(
        self,
        args: Sequence[Any],
        ids: Sequence[str] | None,
        options: JobOptions,
        unique_of: Callable[[Any], object] | None = None,
    ) -> Iterator[Draft]:
        """Check and encode many jobs, lazily; see :func:`.draft.drafts`."""
        if not self.takes_arg and any(arg is not None for arg in args):
            raise TypeError(
                f"the handler of {self.type!r} takes no arg, but one was given; its first "
                f"parameter is the context, so write f(ctx, arg)"
            )
        options = self.additions.with_headers(self.type, self.queue, options, len(args))
        refuse_other_tables(options, self.models)
        return drafts(self.codec, self.type, self.queue, args, ids, options, unique_of)


class Registry:
    """The handlers of one :class:`~sqlalchemy_bgjob.BGJob`, and what is around all of them."""

    def __init__(self, additions: Additions | None = None) -> None:
        self.additions: Final[Additions] = additions or Additions()
        self._by_type: dict[str, JobType[Any]] = {}
        self._by_queue: dict[str, JobType[Any]] = {}
        self.schedules: dict[str, Definition] = {}
        """Those declared by ``@jobs.schedule``, by name."""

    def add(self, handler: JobType[Any]) -> None:
        """Register a handler under its type.

        Raises:
            ValueError: The type has a handler already.
        """
        existing = self._by_type.get(handler.type)
        if existing is not None:
            raise ValueError(
                f"the type {handler.type!r} is registered already, by "
                f"{_full_name(existing.function)}; give one of the two another name. If both are "
                f"this function, its module was imported under two names, such as __main__"
            )
        self._by_type[handler.type] = handler

    def add_default(self, handler: JobType[Any]) -> None:
        """Register a queue's handler for jobs whose type has none; a queue has at most one."""
        if handler.queue in self._by_queue:
            raise ValueError(
                f"queue {handler.queue!r} has a default handler already; it can have only one"
            )
        self._by_queue[handler.queue] = handler

    def add_layer(self, layer: Layer) -> None:
        """Put a middleware around all handlers, within those that were added before."""
        self.additions.layers.append(layer)
        for handler in self:
            handler.compose()

    def find(self, type: str, queue: str) -> JobType[Any] | None:
        """The handler for a job, or None if this process knows none."""
        return self._by_type.get(type) or self._by_queue.get(queue)

    def codec(self, type: str, queue: str) -> Codec | None:
        """The codec of the handler for a job; None if this process knows none."""
        handler = self.find(type, queue)
        return None if handler is None else handler.codec

    def find_type(self, type: str) -> JobType[Any] | None:
        """The handler registered for a type itself, never a queue's default."""
        return self._by_type.get(type)

    def queues(self) -> set[str]:
        """The queues that registered handlers name."""
        return {handler.queue for handler in self}

    def __iter__(self) -> Iterator[JobType[Any]]:
        yield from self._by_type.values()
        yield from self._by_queue.values()


def _full_name(function: Callable[..., Any]) -> str:
    module = getattr(function, "__module__", "?")
    return f"{module}.{getattr(function, '__qualname__', function)}"


def _signature(
    function: Callable[..., Any], additions: Additions
) -> tuple[bool, Any, tuple[str, ...]]:
    """Whether a handler takes an arg, its annotation (Any if there is none), and its resources."""
    if not callable(function):
        raise TypeError(
            f"a {type(function).__name__} is not callable; put @jobs.handler(...) above a function "
            f"f(ctx) or f(ctx, arg)"
        )
    where = _full_name(function)
    provider = additions.provider
    provided = frozenset[str]() if provider is None else provider.names
    parameters = _parameters(function)
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    by_keyword = [p for p in parameters if p.kind is p.KEYWORD_ONLY]
    resources = tuple(p.name for p in by_keyword if p.name in provided)
    required_rest = [
        p
        for p in parameters
        if p not in positional[:2] and p.default is p.empty and p.kind not in _VARIADIC
        if p.name not in resources
    ]
    if not positional or required_rest:
        by_name = positional and all(p.kind is p.KEYWORD_ONLY for p in required_rest)
        if by_name and provider is not None:
            provider.refuse(where, [p.name for p in required_rest])
        bare = inspect.Signature([p.replace(annotation=p.empty) for p in parameters])
        remedy = "put several values into one dataclass, and register a method when it is bound to"
        raise TypeError(
            f"handler {where} must be f(ctx) or f(ctx, arg), not f{bare}; {remedy} its object"
            + ("; BGJob(..., provide=) fills keyword-only parameters" if by_name else "")
        )
    if len(positional) == 1:
        return False, None, resources
    if positional[1].annotation is inspect.Parameter.empty:
        return True, Any, resources
    arg = positional[1]
    code = inspect.unwrap(code_of(function))
    # Only the arg's annotation: names in the others may be imported for type checkers alone.
    only_arg = SimpleNamespace(__annotations__={arg.name: arg.annotation})
    names = getattr(code, "__globals__", {})
    try:
        hints = typing.get_type_hints(only_arg, globalns=names, include_extras=True)
    except NameError as error:
        written = _parameters(function, as_text=True)[1].annotation
        raise TypeError(
            f"the annotation {written!r} of {where} can't be resolved ({error}); "
            f"define the arg's type at the top level of its module"
        ) from None
    return True, hints[arg.name], resources


def _element(function: Callable[..., Any], annotation: Any) -> Any:
    """What the list that a handler of chunks takes has in it; Any if that is not said."""
    if annotation in (Any, list, Sequence, typing.List):  # noqa: UP006 - as users write it
        return Any
    if typing.get_origin(annotation) in (list, Sequence):
        return typing.get_args(annotation)[0]
    shown = getattr(annotation, "__name__", None) or repr(annotation)
    raise TypeError(
        f"handler {_full_name(function)} takes chunks, so it gets the args of several jobs at "
        f"once; write list[{shown}] instead of {shown}, or leave chunk= out"
    )


def _parameters(function: Callable[..., Any], *, as_text: bool = False) -> list[inspect.Parameter]:
    """A function's parameters; names in their annotations need not exist."""
    if sys.version_info < (3, 14):
        signature = inspect.signature(function)
    else:  # annotations are lazy there, and evaluated all together
        form = annotationlib.Format.STRING if as_text else annotationlib.Format.FORWARDREF
        signature = inspect.signature(function, annotation_format=form)
    return list(signature.parameters.values())


_VARIADIC = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
