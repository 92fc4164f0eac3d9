"""Backoff policies: from the failed attempt to the seconds until the next one.

A policy is any callable that takes the number of the failed attempt (from 1) and the exception, if
there was one, and returns seconds or a timedelta. It is not called after the last attempt, nor if
the handler's ``Retry(after=...)`` sets the delay. To give the job up before ``max_attempts``, it
returns None or raises :class:`~sqlalchemy_bgjob.MoveToDlq`.

If it raises or returns anything else, :data:`DEFAULT` is used; ``last_error`` says so each time,
and the log once for each handler.
"""

import random
from collections.abc import Callable
from datetime import timedelta
from math import isfinite

Backoff = Callable[[int, BaseException | None], float]
"""A policy that always gives seconds."""
RetryPolicy = Callable[[int, BaseException | None], float | timedelta | None]
"""From the failed attempt's number and exception: seconds, or None for no further attempt."""

MAX_BACKOFF = 30 * 86_400.0
"""Seconds: no policy can delay a job for longer than 30 days."""


def exponential(
    base: float = 2.0, factor: float = 2.0, maximum: float = 3_600.0, jitter: float = 0.2
) -> Backoff:
    """Wait *base* seconds after the first failure, *factor* times longer after each further one.

    Args:
        base: Seconds after the first failed attempt, above 0.
        factor: At least 1.
        maximum: Seconds at the most, jitter included.
        jitter: Share of the delay that is random, 0 to 1: 0.2 is between 80 % and 100 %.

    Raises:
        ValueError: An argument is out of its range.
    """
    _check("base", base, 0.001, MAX_BACKOFF)
    _check("factor", factor, 1.0, 1_000.0)
    _check("maximum", maximum, base, MAX_BACKOFF)
    _check("jitter", jitter, 0.0, 1.0)

    def policy(attempt: int, error: BaseException | None = None) -> float:
        try:
            delay = base * factor ** max(attempt - 1, 0)
        except OverflowError:  # near attempt 1,000 where the factor is 2
            delay = maximum
        return min(delay, maximum) * (1.0 - jitter * random.random())

    return policy


def constant(seconds: float, jitter: float = 0.0) -> Backoff:
    """Wait the same number of *seconds* after every failure."""
    _check("seconds", seconds, 0.0, MAX_BACKOFF)
    _check("jitter", jitter, 0.0, 1.0)

    def policy(attempt: int, error: BaseException | None = None) -> float:
        return seconds * (1.0 - jitter * random.random())

    return policy


def _check(name: str, value: float, minimum: float, maximum: float) -> None:
    if not isfinite(value) or not minimum <= value <= maximum:
        raise ValueError(f"{name}={value!r} is not between {minimum:g} and {maximum:g}")


DEFAULT = exponential()
