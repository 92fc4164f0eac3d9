"""Of what kind the application's callables are: functions, coroutines, context managers."""

import inspect
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Final


def code_of(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function or method that runs when a partial or a callable object is called."""
    while isinstance(function, partial):
        function = function.func
    return function if inspect.isroutine(function) else type(function).__call__


def is_coroutine(function: Callable[..., Any]) -> bool:
    """Whether what it returns is to be awaited."""
    return inspect.iscoroutinefunction(code_of(function))


def makes_no_context(given: object) -> bool:
    """Whether this can't be called for a context manager, again and again."""
    if isinstance(given, type):
        return not (hasattr(given, "__enter__") or hasattr(given, "__aenter__"))
    # A context manager of contextlib is callable too, as a decorator.
    return (
        hasattr(given, "__enter__")
        or not callable(given)
        or inspect.isgeneratorfunction(code_of(given))
        or inspect.isasyncgenfunction(code_of(given))
        or is_coroutine(given)
    )


def makes_async_context(make: Any) -> bool:
    """Whether it certainly makes an asynchronous context manager, which no function can enter."""
    if isinstance(make, type):
        return not hasattr(make, "__enter__")
    return getattr(code_of(make), "__code__", None) is _DECORATED


def what_it_is(given: object) -> str:
    """For an error: what was given instead of something that makes context managers."""
    if isinstance(given, type) or inspect.isroutine(given):
        kind = "class" if isinstance(given, type) else "function"
        return f"the {kind} {given.__name__}, which gives none"
    return f"a {type(given).__name__}"


@asynccontextmanager
async def _decorated() -> AsyncIterator[None]:
    yield


_DECORATED: Final = getattr(_decorated, "__code__", _decorated)
"""The code object that all functions decorated with ``asynccontextmanager`` share."""
