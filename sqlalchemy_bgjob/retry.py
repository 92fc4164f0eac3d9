"""Backoff policies, for ``@jobs.handler(..., retry=...)``: how long a failed job waits.

A policy is any callable ``f(attempt, error)``. It gets the number of the failed attempt, from 1,
and the exception, or None if there was none. It returns the seconds, or a timedelta, until the next
attempt, by the database's clock from the settlement; more than 30 days are cut to 30 days. To give
the job up before ``max_attempts``, it returns None or raises :class:`~sqlalchemy_bgjob.MoveToDlq`.

It is not called after the last attempt, nor if the handler's ``Retry`` says when to run again, nor
after a serialization failure or a deadlock, which are retried at once.

If a policy raises something else or returns something else, :data:`DEFAULT` is used. Then
``last_error`` says so each time, and the log once for each handler.
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
    """Wait *base* seconds after the first failure, and *factor* times longer after each next one.

    Args:
        base: Seconds after the first failed attempt, from 0.001.
        factor: 1 to 1,000.
        maximum: Seconds at the most, from *base* to 30 days.
        jitter: The share of each delay that is random, 0 to 1: with 0.2 a job waits 80 % to 100 %
            of the delay, so that jobs which failed together don't come back together.

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
    """Wait the same number of seconds after every failure.

    Args:
        seconds: 0 to 30 days.
        jitter: The share of them that is random, as for :func:`exponential`.

    Raises:
        TypeError: An argument is no number.
        ValueError: An argument is out of its range.
    """
    _check("seconds", seconds, 0.0, MAX_BACKOFF)
    _check("jitter", jitter, 0.0, 1.0)

    def policy(attempt: int, error: BaseException | None = None) -> float:
        return seconds * (1.0 - jitter * random.random())

    return policy


def steps(*seconds: float, jitter: float = 0.0) -> Backoff:
    """Wait the first of these seconds after the first failure, the second after the second one.

    The last of them is for all further failures: ``steps(1, 10, 60)`` goes on with 60 s.

    Args:
        *seconds: At least one number, each 0 to 30 days.
        jitter: The share of them that is random, as for :func:`exponential`.

    Raises:
        TypeError: An argument is no number, such as a list.
        ValueError: There is none, or one is out of its range.
    """
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
    """The policy that allows no further attempt: the job moves to the DLQ."""


def retry_after(default: float | RetryPolicy = 30.0) -> RetryPolicy:
    """Wait for as long as the error says, as an HTTP server does by ``Retry-After``.

    The error says so by ``error.retry_after``, which may be seconds, a timedelta or a datetime, or
    by the header ``Retry-After`` of ``error.response``, which may be seconds or a date. So do the
    errors of requests and httpx. A date is compared with this machine's clock.

    Args:
        default: Seconds, or a policy, for an error that does not say.

    Raises:
        ValueError: *default* is out of the range of :func:`constant`.
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

    ``on_exception({CardDeclined: GIVE_UP, (ConnectionError, TimeoutError): steps(1, 10, 60)})``

    Args:
        rules: Policies by class of exceptions, or by a tuple of classes. They are tried in the
            order given, and the first one whose class the exception is an instance of counts.
        otherwise: The policy for all other exceptions, and for a ``Retry`` that names none; by
            default :data:`DEFAULT`.

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
"""The policy of a handler that names none: 2, 4, 8 s and so on, at most an hour, with jitter."""
