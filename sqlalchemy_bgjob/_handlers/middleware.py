"""Middleware: the application's own functions around each run, composed once for a handler.

A middleware is around the run and not around what becomes of the job: it changes a settlement only
by raising, or by returning an outcome. If it returns None, what the handler returned or raised
stands, even if the middleware has swallowed it. The result of a handler gets lost in no middleware.
"""

from collections.abc import Callable, Iterable
from enum import Enum
from typing import Any, Final, NamedTuple

from .._misuse import name_of
from .kinds import is_coroutine

Call = Callable[..., Any]
"""A handler's function, or what is composed around it: called with the context, and the arg."""


class Missing(Enum):
    """The type of :data:`MISSING`."""

    MISSING = "missing"


MISSING: Final = Missing.MISSING
"""No second function was given, which is not the same as None."""


class Layer(NamedTuple):
    """One middleware: for functions, for coroutines, or for both.

    Attributes:
        function: What is called around functions, in their thread.
        coroutine: What is awaited around coroutines, in their task.
        is_complete: Whether handlers of a kind for which there is none may go without.
    """

    function: Call | None
    coroutine: Call | None
    is_complete: bool

    @classmethod
    def of(cls, first: Any, second: Any = MISSING) -> "Layer":
        """Check what ``jobs.middleware`` was given.

        Raises:
            TypeError: One of them is not a function ``f(call, ctx)``, or both are of one kind.
        """
        given = [one for one in (first, second) if one is not MISSING and one is not None]
        if first is None or not all(map(callable, given)):
            raise TypeError(
                f"a middleware is a function f(call, ctx) that returns call(), or a coroutine "
                f"function that returns await call(), not {first!r}"
            )
        kinds = {is_coroutine(one): one for one in given}
        if len(kinds) < len(given):
            kind = "coroutine functions" if is_coroutine(first) else "functions"
            raise TypeError(
                f"{name_of(first)} and {name_of(second)} are both {kind}; give one for functions "
                f"and one for coroutines, or call jobs.middleware() once for each"
            )
        return cls(kinds.get(False), kinds.get(True), second is not MISSING)

    def lacks(self, *, is_coroutine: bool) -> bool:
        """Whether a handler of a kind would have to go without, and must not."""
        fitting = self.coroutine if is_coroutine else self.function
        return fitting is None and not self.is_complete

    def refuse(self, ctx: Any, *args: Any) -> Any:
        """Instead of a handler that must not go without: a TypeError."""
        raise TypeError(self.why_it_lacks([ctx.jobs[0].type]))

    def why_it_lacks(self, types: Iterable[str]) -> str:
        """What is wrong, and the remedy, for handlers of these types."""
        given = self.function or self.coroutine
        name, named = name_of(given), ", ".join(map(repr, types))
        if self.function is not None:
            kind, what, both = "a function", "coroutines", f"{name}, async_{name}"
        else:
            kind, what, both = "a coroutine function", "functions", f"{name}, sync_{name}"
        return (
            f"the middleware {name} is {kind}, which can't go around the {what} {named}; "
            f"give one for these too, jobs.middleware({both}), or None to leave them without, "
            f"jobs.middleware({name}, None)"
        )


def compose(layers: Iterable[Layer], call: Call, *, is_coroutine: bool) -> Call:
    """What runs a handler within all its middleware; the first layer is the outermost one."""
    for layer in reversed([*layers]):
        around = layer.coroutine if is_coroutine else layer.function
        if around is not None:
            call = (_around_coroutine if is_coroutine else _around_function)(around, call)
    return call


def _around_function(middleware: Call, call: Call) -> Call:
    def run(*args: Any) -> Any:
        inner = _Inner(middleware, call, args)
        try:
            return inner.result(middleware(inner, args[0]))
        finally:
            inner.error = None  # whose traceback leads here: a circle

    return run


def _around_coroutine(middleware: Call, call: Call) -> Call:
    async def run(*args: Any) -> Any:
        inner = _AsyncInner(middleware, call, args)
        try:
            return inner.result(await middleware(inner, args[0]))
        finally:
            inner.error = None

    return run


class _Inner:
    """What a middleware calls, once: the next one, or the handler itself."""

    __slots__ = ("_args", "_call", "_called", "_middleware", "_returned", "error")

    def __init__(self, middleware: Call, call: Call, args: tuple[Any, ...]) -> None:
        self._middleware, self._call, self._args = middleware, call, args
        self._called = False
        self._returned: Any = None
        self.error: BaseException | None = None

    def __call__(self) -> Any:
        self._begin()
        try:
            self._returned = self._call(*self._args)
        except BaseException as error:
            self.error = error
            raise
        return self._returned

    def _begin(self) -> None:
        if self._called:
            raise RuntimeError(
                f"the middleware {name_of(self._middleware)} called the handler twice; to run a "
                f"job again, return Retry(0)"
            )
        self._called = True

    def result(self, returned: Any) -> Any:
        """What the run returns, or raises, after its middleware has *returned*."""
        if returned is not None:
            return returned
        if self.error is not None:
            raise self.error
        if not self._called:
            raise RuntimeError(
                f"the middleware {name_of(self._middleware)} did not call the handler; write "
                f"return call(), in a coroutine return await call(), or return an outcome"
            )
        return self._returned


class _AsyncInner(_Inner):
    """The same for a coroutine."""

    __slots__ = ()

    async def __call__(self) -> Any:
        self._begin()
        try:
            self._returned = await self._call(*self._args)
        except BaseException as error:
            self.error = error
            raise
        return self._returned
