"""Backoff policies: usable seconds for every attempt that there can be."""

from __future__ import annotations

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
