"""Backoff policies: from the failed attempt to the seconds until the next one.

A policy is any callable that takes the number of the failed attempt (from 1) and the exception, if
there was one, and returns seconds or a timedelta. It is not called after the last attempt, nor if
the handler's ``Retry(after=...)`` sets the delay. To give the job up before ``max_attempts``, it
returns None or raises :class:`~sqlalchemy_bgjob.MoveToDlq`.

If it raises or returns anything else, :data:`DEFAULT` is used; ``last_error`` says so each time,
and the log once for each handler.
"""

import random
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from math import isfinite
from typing import Any

Backoff = Callable[[int, BaseException | None], float]
"""A policy that always gives seconds."""
RetryPolicy = Callable[[int, BaseException | None], float | timedelta | None]
"""Takes the failed attempt's number and exception; gives seconds, or None to give the job up."""

MAX_BACKOFF = 30 * 86_400.0
"""The most seconds for which a policy can delay a job, which are 30 days."""


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
        TypeError: An argument is no number.
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


def steps(*seconds: float, jitter: float = 0.0) -> Backoff:
    """Wait each of these *seconds* in turn, and the last of them from then on."""
    given: tuple[Any, ...] = seconds  # a list is a first mistake
    for number in given:
        if isinstance(number, list | tuple):
            raise TypeError(f"steps takes its seconds one by one; write steps(*{number!r})")
        _check("seconds", number, 0.0, MAX_BACKOFF)
    _check("jitter", jitter, 0.0, 1.0)
    if not seconds:
        raise ValueError("steps() takes at least one number of seconds")

    def policy(attempt: int, error: BaseException | None = None) -> float:
        delay = seconds[min(max(attempt, 1), len(seconds)) - 1]
        return delay * (1.0 - jitter * random.random())

    return policy


def GIVE_UP(attempt: int, error: BaseException | None = None) -> None:  # noqa: N802 - a constant
    """The policy that allows no further attempt: the job is dead."""


def retry_after(default: float | RetryPolicy = 30.0) -> RetryPolicy:
    """Wait for as long as the error says, as an HTTP server does by ``Retry-After``.

    That is ``error.retry_after``, or the header ``Retry-After`` of ``error.response``, which may be
    seconds or a date. A date is compared with this machine's clock.

    Args:
        default: Seconds, or a policy, for an error that does not say.
    """
    if not callable(default):
        default = constant(default)

    def policy(attempt: int, error: BaseException | None = None) -> float | timedelta | None:
        seconds = _asked_for(error)
        return default(attempt, error) if seconds is None else min(max(seconds, 0.0), MAX_BACKOFF)

    return policy


def _asked_for(error: BaseException | None) -> float | None:
    """Seconds that an error asks to wait for; None if it does not say, or in no known way."""
    asked: Any = getattr(error, "retry_after", None)
    headers = getattr(getattr(error, "response", None), "headers", None)
    if asked is None and isinstance(headers, Mapping):
        asked = headers.get("retry-after") or headers.get("Retry-After")  # a dict minds the case
    if isinstance(asked, str):
        asked = _parsed(asked)
    if isinstance(asked, datetime):
        moment = asked if asked.tzinfo is not None else asked.replace(tzinfo=UTC)
        return (moment - datetime.now(UTC)).total_seconds()
    if isinstance(asked, timedelta):
        return asked.total_seconds()
    return float(asked) if isinstance(asked, int | float) and isfinite(asked) else None


def _parsed(header: str) -> float | datetime | None:
    try:
        return float(header)
    except ValueError:
        with suppress(ValueError):
            return parsedate_to_datetime(header)
    return None


def on_exception(
    rules: Mapping[type[BaseException] | tuple[type[BaseException], ...], RetryPolicy],
    otherwise: RetryPolicy | None = None,
) -> RetryPolicy:
    """Choose a policy by the exception.

    Args:
        rules: Policies by class, or by several classes. The first that the exception is an
            instance of counts, in the order given; :data:`GIVE_UP` makes the job dead at once.
        otherwise: For all other exceptions, and for a ``Retry`` that names none; by default
            the delays of a handler without a policy.

    Raises:
        TypeError: *rules* is no mapping, a key is no class of exceptions, or a value is no policy.
    """
    if not isinstance(rules, Mapping):
        raise TypeError(
            f"on_exception takes a dict of policies by exception, not {rules!r}; write for example "
            f"on_exception({{ConnectionError: exponential()}}, otherwise=GIVE_UP)"
        )
    chosen = DEFAULT if otherwise is None else otherwise
    for classes, rule in rules.items():
        of: tuple[Any, ...] = classes if isinstance(classes, tuple) else (classes,)
        if not of or not all(
            isinstance(one, type) and issubclass(one, BaseException) for one in of
        ):
            raise TypeError(f"{classes!r} is no class of exceptions, and no tuple of them")
        _check_policy(rule)
    _check_policy(chosen)

    def policy(attempt: int, error: BaseException | None = None) -> float | timedelta | None:
        for classes, rule in rules.items():
            if isinstance(error, classes):
                return rule(attempt, error)
        return chosen(attempt, error)

    return policy


def _check_policy(policy: object) -> None:
    if not callable(policy):
        raise TypeError(f"{policy!r} is no policy; write constant({policy!r}) for seconds")


def _check(name: str, value: float, minimum: float, maximum: float) -> None:
    if not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number, not {type(value).__name__}")
    if not isfinite(value) or not minimum <= value <= maximum:
        raise ValueError(f"{name}={value!r} is not between {minimum:g} and {maximum:g}")


DEFAULT = exponential()
"""The policy of a handler that names none. It waits 2, 4, 8 s and so on, at most an hour."""
