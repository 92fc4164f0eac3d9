"""Waiting for a condition with a deadline: the only place in the tests that passes time."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

SHORTEST, LONGEST = 0.002, 0.04
"""Seconds between two looks: each half as long again as the one before, as many ask the server."""

T = TypeVar("T")


def wait_until(
    condition: Callable[[], T], deadline_seconds: float = 30.0, *, what: str | None = None
) -> T:
    """Return the first true value of *condition*; fail the test if none comes in time."""
    deadline, pause = time.monotonic() + deadline_seconds, SHORTEST
    while not (value := condition()):
        if time.monotonic() >= deadline:
            raise AssertionError(_complaint(condition, value, deadline_seconds, what))
        time.sleep(pause)
        pause = min(pause * 1.5, LONGEST)
    return value


@overload
async def wait_until_async(
    condition: Callable[[], Awaitable[T]], deadline_seconds: float = 30.0, *, what: str | None = ...
) -> T: ...
@overload
async def wait_until_async(
    condition: Callable[[], T], deadline_seconds: float = 30.0, *, what: str | None = ...
) -> T: ...
async def wait_until_async(
    condition: Callable[[], object], deadline_seconds: float = 30.0, *, what: str | None = None
) -> object:
    """Do the same in an event loop; *condition* may be a coroutine function."""
    deadline, pause = time.monotonic() + deadline_seconds, SHORTEST
    while True:
        result = condition()
        value = await result if inspect.isawaitable(result) else result
        if value:
            return value
        if time.monotonic() >= deadline:
            raise AssertionError(_complaint(condition, value, deadline_seconds, what))
        await asyncio.sleep(pause)
        pause = min(pause * 1.5, LONGEST)


def _complaint(condition: object, value: object, seconds: float, what: str | None) -> str:
    name = what or getattr(condition, "__qualname__", repr(condition))
    return f"not within {seconds:g} s: {name} (last value: {value!r})"
