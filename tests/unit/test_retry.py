"""Backoff policies: usable seconds for every attempt that there can be."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_bgjob import retry

attempts = st.one_of(st.integers(1, 50), st.integers(300, 1_100), st.integers(1, 2**31 - 1))


@given(
    attempt=attempts,
    base=st.floats(0.001, 3_600.0),
    factor=st.floats(1.0, 1_000.0),
    more=st.floats(0.0, 86_400.0),
    jitter=st.floats(0.0, 1.0),
)
def test_every_delay_is_above_zero_and_within_the_maximum(
    attempt: int, base: float, factor: float, more: float, jitter: float
) -> None:
    policy = retry.exponential(base, factor, base + more, jitter)

    assert 0 < policy(attempt, None) <= base + more


@given(attempt=attempts)
def test_without_jitter_no_delay_is_shorter_than_the_one_before(attempt: int) -> None:
    policy = retry.exponential(1.5, 1.7, 9_000.0, 0.0)

    assert policy(attempt, None) <= policy(attempt + 1, None)


def test_the_defaults_double_from_two_seconds_to_an_hour() -> None:
    policy = retry.exponential(jitter=0.0)

    delays = [policy(attempt, None) for attempt in range(1, 14)]

    assert delays == [2, 4, 8, 16, 32, 64, 128, 256, 512, 1_024, 2_048, 3_600, 3_600]


@pytest.mark.parametrize("attempt", [310, 1_024, 1_025, 10_000, 2**31 - 1])
def test_nothing_overflows(attempt: int) -> None:
    assert retry.exponential(jitter=0.0)(attempt, ValueError("x")) == 3_600.0
    assert retry.exponential(1.0, 1_000.0, retry.MAX_BACKOFF, 0.0)(attempt) == retry.MAX_BACKOFF


def test_an_attempt_below_one_counts_as_the_first() -> None:
    assert retry.exponential(jitter=0.0)(0) == 2.0


def test_jitter_takes_away_up_to_its_share() -> None:
    policy = retry.exponential(100.0, jitter=0.2)

    delays = [policy(1) for _ in range(500)]

    assert 80.0 < min(delays) < 85.0
    assert 95.0 < max(delays) <= 100.0


def test_a_constant_is_constant() -> None:
    policy = retry.constant(3.0)

    assert {policy(attempt, None) for attempt in (1, 2, 310, 2**31 - 1)} == {3.0}


def test_a_constant_with_jitter_varies() -> None:
    delays = [retry.constant(10.0, jitter=0.5)(1) for _ in range(200)]

    assert all(5.0 <= delay <= 10.0 for delay in delays)
    assert max(delays) - min(delays) > 2.0


def test_a_constant_may_be_zero() -> None:
    assert retry.constant(0.0)(1) == 0.0


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"base": 0.0}, "base"),
        ({"base": -1.0}, "base"),
        ({"base": float("nan")}, "base"),
        ({"base": retry.MAX_BACKOFF * 2}, "base"),
        ({"factor": 0.5}, "factor"),
        ({"factor": float("inf")}, "factor"),
        ({"factor": 1_001.0}, "factor"),
        ({"base": 10.0, "maximum": 9.0}, "maximum"),
        ({"maximum": retry.MAX_BACKOFF + 1}, "maximum"),
        ({"jitter": 1.1}, "jitter"),
        ({"jitter": -0.1}, "jitter"),
    ],
)
def test_an_argument_out_of_its_range_is_named_with_the_range(
    options: dict[str, float], name: str
) -> None:
    with pytest.raises(ValueError, match=rf"^{name}=\S+ is not between \S+ and \S+$"):
        retry.exponential(**options)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [((-1.0,), "seconds"), ((float("inf"),), "seconds"), ((1.0, 2.0), "jitter")],
)
def test_a_constant_checks_its_arguments(arguments: tuple[float, ...], name: str) -> None:
    with pytest.raises(ValueError, match=f"^{name}="):
        retry.constant(*arguments)


# ---- by the exception ----------------------------------------------------------------------------


class Limited(Exception):
    """As the exceptions of HTTP clients: it has a response, or says itself how long to wait."""

    def __init__(self, headers: dict[str, str] | None = None, **attributes: object) -> None:
        super().__init__()
        self.response = SimpleNamespace(headers=headers)
        vars(self).update(attributes)


def test_steps_come_in_turn_and_the_last_one_stays() -> None:
    policy = retry.steps(1, 10, 60)

    assert [policy(attempt) for attempt in (0, 1, 2, 3, 4, 2**31 - 1)] == [1, 1, 10, 60, 60, 60]
    assert 5.0 <= retry.steps(10, jitter=0.5)(1) <= 10.0


@pytest.mark.parametrize("arguments", [(), (1, -1), (float("inf"),)])
def test_steps_checks_its_arguments(arguments: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="seconds"):
        retry.steps(*arguments)


def test_the_first_class_that_fits_chooses_the_policy() -> None:
    policy = retry.on_exception(
        {
            ConnectionRefusedError: retry.GIVE_UP,
            (OSError, TimeoutError): retry.constant(5),
            ConnectionError: retry.constant(1),
        },
        otherwise=retry.constant(7),
    )

    assert policy(1, ConnectionRefusedError()) is None
    assert policy(1, ConnectionResetError()) == 5.0, "OSError stands before ConnectionError"
    assert policy(1, ValueError()) == 7.0
    assert policy(1, None) == 7.0


def test_without_otherwise_the_default_delays_are_left() -> None:
    assert 1.6 <= (retry.on_exception({})(1, ValueError()) or 0) <= 2.0  # type: ignore[operator]


@pytest.mark.parametrize(
    "rules", [{"ValueError": retry.constant(1)}, {(): retry.constant(1)}, {ValueError: 5}, {int: 5}]
)
def test_a_rule_that_can_not_be_one_is_refused(rules: dict[Any, Any]) -> None:
    with pytest.raises(TypeError):
        retry.on_exception(rules)


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (Limited(retry_after=12), 12.0),
        (Limited(retry_after=timedelta(minutes=1)), 60.0),
        (Limited({"retry-after": "20"}), 20.0),
        (Limited({"Retry-After": "20.5"}), 20.5),
        (Limited({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}), 0.0),
        (Limited({"Retry-After": "1e99"}), retry.MAX_BACKOFF),
        (Limited({"Retry-After": "-5"}), 0.0),
        (Limited({"Retry-After": "soon"}), 30.0),
        (Limited({"Retry-After": "nan"}), 30.0),
        (Limited({}), 30.0),
        (Limited(), 30.0),
        (Limited(retry_after=object()), 30.0),
        (ValueError(), 30.0),
        (None, 30.0),
    ],
)
def test_retry_after_does_as_the_server_asks(error: BaseException | None, seconds: float) -> None:
    assert retry.retry_after(default=30)(1, error) == seconds


def test_a_date_to_retry_after_is_a_number_of_seconds() -> None:
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)

    seconds = retry.retry_after()(1, Limited({"Retry-After": date}))

    assert isinstance(seconds, float)
    assert 3_500 < seconds <= 3_601


def test_an_error_that_does_not_say_may_have_a_policy() -> None:
    policy = retry.retry_after(default=retry.steps(1, 2))

    assert [policy(attempt, ValueError()) for attempt in (1, 2, 3)] == [1, 2, 2]
