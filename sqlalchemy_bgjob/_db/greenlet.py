"""Awaiting from within a greenlet. Import it only where coroutines run: it needs greenlet."""

import asyncio
from collections.abc import Coroutine
from typing import Any

from sqlalchemy.util import await_only


def await_within(awaitable: Coroutine[Any, Any, Any], timeout: float | None) -> Any:
    """Await a coroutine from within a greenlet, for at most *timeout* seconds; its result."""
    if timeout is None:
        return await_only(awaitable)
    return await_only(_limited(awaitable, timeout))


async def _limited(awaitable: Coroutine[Any, Any, Any], timeout: float) -> Any:
    async with asyncio.timeout(timeout):
        return await awaitable
