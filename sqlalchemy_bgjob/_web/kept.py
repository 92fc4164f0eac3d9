"""Answers that are shown again for some seconds: those that take the database long."""

import time
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Kept(Generic[T]):
    """The last answer to one question, the same for all visitors, as long as it is young."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._last: tuple[float, T] | None = None

    async def get(self, ask: Callable[[], Awaitable[T]], *, anew: bool = False) -> tuple[T, float]:
        """The answer, and how many seconds old it is. What fails is asked again."""
        now = time.monotonic()
        if anew or self._last is None or now - self._last[0] > self._seconds:
            self._last = now, await ask()
        at, answer = self._last
        return answer, max(now - at, 0.0)

    def forget(self) -> None:
        """Let the next one ask anew."""
        self._last = None
