"""What an application adds to all of its jobs: middleware, resources, and headers at enqueue."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from contextvars import ContextVar
from typing import Any, TypeVar

from .._drafts.options import JobOptions
from .._misuse import name_of
from .kinds import is_coroutine
from .middleware import Call, Layer, compose
from .resources import Provider

Producer = Callable[[str, str, int | None], Mapping[str, Any]]
AnyOptions = TypeVar("AnyOptions", bound=JobOptions)


class Additions:
    """What one BGJob adds to its jobs.

    Attributes:
        provider: Fills keyword-only parameters of handlers, if there is one.
        layers: The middleware; the first one is the outermost.
        producers: Called as ``f(type, queue, count)`` at each enqueue, with the number of its jobs
            (None if only the database knows it); they return headers, as those of on_enqueue do.
    """

    def __init__(self, provide: Callable[[Any], Any] | None = None) -> None:
        self.provider: Provider | None = None if provide is None else Provider(provide)
        self.layers: list[Layer] = []
        self.producers: list[Producer] = []
        self._on_enqueue: list[Callable[[str, str], object]] = []

    def around(self, call: Call, resources: tuple[str, ...], *, is_coroutine: bool) -> Call:
        """What runs a handler: its function itself, where nothing is around it.

        Where middleware can't be around it, this fails; a worker does not even start then.
        """
        lacking = self.lacking(is_coroutine=is_coroutine)
        if lacking is not None:
            return lacking.refuse
        if resources and self.provider is not None:
            fill = self.provider.fill_async if is_coroutine else self.provider.fill
            call = fill(call, resources)
        return compose(self.layers, call, is_coroutine=is_coroutine)

    def lacking(self, *, is_coroutine: bool) -> Layer | None:
        """The first middleware that should be around a kind of handlers, and can't."""
        lacking = (layer for layer in self.layers if layer.lacks(is_coroutine=is_coroutine))
        return next(lacking, None)

    # ---- enqueue --------------------------------------------------------------------------------

    def on_enqueue(self, function: Any) -> None:
        """Ask a function for headers at each enqueue.

        Raises:
            TypeError: It is not a plain function.
        """
        if not callable(function) or is_coroutine(function):
            raise TypeError(
                f"jobs.on_enqueue takes a function f(type, queue) that returns headers, not a "
                f"coroutine function, and not {name_of(function)} of any other kind"
            )
        self._on_enqueue.append(function)

    def with_headers(
        self, type: str, queue: str, options: AnyOptions, count: int | None = 1
    ) -> AnyOptions:
        """The options of an enqueue of *count* jobs, with the headers that are added.

        What the caller gives stands, and of two functions what the first one gives.

        Raises:
            TypeError: A function gave something else than a mapping or None.
        """
        if not self._on_enqueue and not self.producers:
            return options
        given = options.get("headers")
        headers: dict[str, Any] = {}
        other: Any = options.get("queue")
        for function in self._on_enqueue:
            added = function(type, other or queue)
            if added is None:
                continue
            if not isinstance(added, Mapping):
                raise TypeError(
                    f"{name_of(function)}, given to on_enqueue, returned a {_type_name(added)}; it "
                    f"must return a mapping of headers, or None"
                )
            headers = {**added, **headers}
        for producer in self.producers:
            headers = {**producer(type, other or queue, count), **headers}
        if not headers or not isinstance(given, Mapping | None):  # which is refused later
            return options
        return {**options, "headers": {**headers, **(given or {})}}  # type: ignore[return-value]


def _type_name(value: object) -> str:
    return type(value).__name__


class Carried:
    """Context variables that go with a job as headers: set where it is enqueued, and where it runs.

    Args:
        variables: By the name of the header.
    """

    def __init__(self, variables: Mapping[str, ContextVar[Any]]) -> None:
        for name, variable in variables.items():
            if not isinstance(variable, ContextVar):
                raise TypeError(
                    f"jobs.carry({name}=...) takes a ContextVar, not a {_type_name(variable)}; "
                    f"write {name} = ContextVar({name!r}) at the top level of a module"
                )
        self._variables = dict(variables)

    def headers(self, type: str, queue: str) -> dict[str, Any]:
        """For on_enqueue: the variables that are set, and not to None."""
        found = {name: variable.get(None) for name, variable in self._variables.items()}
        return {name: value for name, value in found.items() if value is not None}

    def function(self, call: Callable[[], Any], ctx: Any) -> Any:
        """For functions, as middleware."""
        tokens = self._set(ctx.jobs)
        try:
            return call()
        finally:
            _reset(tokens)

    async def coroutine(self, call: Callable[[], Any], ctx: Any) -> Any:
        """For coroutines, as middleware."""
        tokens = self._set(ctx.jobs)
        try:
            return await call()
        finally:
            _reset(tokens)

    def _set(self, jobs: Sequence[Any]) -> list[tuple[ContextVar[Any], Any]]:
        """Set those in which all jobs of the call agree; most calls are for one job."""
        first, *others = (job.headers for job in jobs)
        return [
            (variable, variable.set(first[name]))
            for name, variable in self._variables.items()
            if name in first
            and all(name in headers and headers[name] == first[name] for headers in others)
        ]


def _reset(tokens: list[tuple[ContextVar[Any], Any]]) -> None:
    for variable, token in reversed(tokens):
        with suppress(ValueError):  # a coroutine that is closed from outside, in another context
            variable.reset(token)
