"""The checks of what callers write into a row. No database: they are pure."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone, tzinfo
from enum import Enum
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sqlalchemy_bgjob import InvalidArg, Unique
from sqlalchemy_bgjob._drafts import validation
from sqlalchemy_bgjob._handlers.served import check_queues


@given(st.text(min_size=1, max_size=128))
def test_a_name_is_what_postgresql_can_store(text: str) -> None:
    """Returned as it is, or refused; never changed."""
    storable = "\0" not in text and not any("\ud800" <= c <= "\udfff" for c in text)
    if storable:
        assert validation.name("queue", text) == text
    else:
        with pytest.raises(ValueError, match="queue="):
            validation.name("queue", text)


class Kind(str, Enum):  # noqa: UP042 - as many applications have them
    """Names of queues."""

    MAIL = "mail"


def test_a_member_of_an_enum_is_its_text() -> None:
    """And not ``Kind.MAIL``, as in an f-string, such as that of a stored key or a log line."""
    names = [
        validation.name("queue", Kind.MAIL),
        validation.job_id(Kind.MAIL),
        validation.unique_key(Kind.MAIL),
        *check_queues({Kind.MAIL: 1}),
        *check_queues([Kind.MAIL]),
    ]

    assert {f"{name}" for name in names} == {"mail"}
    assert Unique(Kind.MAIL).stored == "l:mail"


@pytest.mark.parametrize("length", [0, 129, 100_000])
def test_the_message_shows_no_more_than_the_limit(length: int) -> None:
    with pytest.raises(ValueError, match=f"has {length} characters; 1 to 128") as refused:
        validation.name("type", "x" * length)
    assert len(str(refused.value)) < 200


def test_an_id_may_be_longer_than_a_name() -> None:
    assert validation.job_id("i" * 255) == "i" * 255
    with pytest.raises(ValueError, match="1 to 255"):
        validation.job_id("i" * 256)


@pytest.mark.parametrize("value", [-32_768, -1, 0, 32_767])
def test_a_priority_is_a_smallint(value: int) -> None:
    assert validation.priority(value) == value


@given(st.integers().filter(lambda n: not -32_768 <= n <= 32_767))
def test_another_priority_is_refused_with_the_range(value: int) -> None:
    with pytest.raises(ValueError, match="not between -32768 and 32767"):
        validation.priority(value)


@given(st.floats(min_value=0, max_value=validation.MAX_DELAY))
def test_seconds_are_seconds(value: float) -> None:
    assert validation.seconds("delay", value) == value


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (timedelta(minutes=1, microseconds=1), 60.000001),
        (timedelta(0), 0.0),
        (7, 7.0),
        (timedelta(days=36_600), 3_162_240_000.0),
    ],
)
def test_a_timedelta_is_its_seconds(value: Any, seconds: float) -> None:
    result = validation.seconds("delay", value)
    assert result == seconds
    assert type(result) is float


@pytest.mark.parametrize(
    "value",
    [-1, -0.001, float("nan"), float("inf"), float("-inf"), 1e15, 10**400, timedelta.max],
    ids=lambda value: str(value)[:20],
)
def test_other_durations_are_refused_with_the_range(value: Any) -> None:
    with pytest.raises(ValueError, match="100 years"):
        validation.seconds("delay", value)


@pytest.mark.parametrize("value", ["1", None, True, 1j, b"1"], ids=repr)
def test_what_is_no_duration_is_a_type_error(value: Any) -> None:
    with pytest.raises(TypeError, match="delay must be seconds"):
        validation.seconds("delay", value)


@given(
    st.datetimes(
        min_value=datetime(1970, 1, 2),  # noqa: DTZ001
        max_value=datetime(9998, 12, 30),  # noqa: DTZ001
        timezones=st.sampled_from(
            [UTC, ZoneInfo("Europe/Berlin"), timezone(timedelta(hours=-11)), ZoneInfo("Asia/Tokyo")]
        ),
    )
)
def test_an_aware_moment_is_returned_as_it_is(value: datetime) -> None:
    assert validation.moment("run_at", value) is value


class Nowhere(tzinfo):
    """A zone that does not know its offset: the datetime is as good as naive."""

    def utcoffset(self, _: datetime | None) -> None:
        return None


@pytest.mark.parametrize("zone", [None, Nowhere()], ids=["none", "nowhere"])
def test_a_naive_moment_is_refused_with_the_remedy(zone: Any) -> None:
    with pytest.raises(ValueError, match=r"has no time zone.*datetime\.now\(UTC\)"):
        validation.moment("run_at", datetime(2030, 1, 1, tzinfo=zone))


def test_a_delay_or_a_moment_but_not_both() -> None:
    at = datetime(2030, 1, 1, tzinfo=UTC)
    assert validation.start(None, None) == (None, None)
    assert validation.start(0, None) == (timedelta(0), None)
    assert validation.start(None, at) == (None, at)
    with pytest.raises(ValueError, match="not both"):
        validation.start(0, at)


def test_headers_are_a_new_plain_dict_or_none() -> None:
    """The caller's own dict is neither kept nor changed."""
    given_ = {"a": (1, 2), "b": {"c": None}}
    result = validation.headers(given_, "application/octet-stream")
    assert result == {"a": [1, 2], "b": {"c": None}, "content-type": "application/octet-stream"}
    assert given_ == {"a": (1, 2), "b": {"c": None}}
    assert validation.headers(None) is None
    assert validation.headers({}) is None
    assert validation.headers(None, "x") == validation.headers({}, "x") == {"content-type": "x"}


def test_the_content_type_is_not_the_callers() -> None:
    for value in ({"content-type": "text/plain"}, {"content-type": None}):
        with pytest.raises(ValueError, match="derived from the arg"):
            validation.headers(value, "application/octet-stream")
    with pytest.raises(ValueError, match="derived from the arg"):
        validation.headers({"content-type": "application/octet-stream"})


def test_headers_are_limited() -> None:
    assert validation.headers({"a": "x" * 65_000})
    with pytest.raises(InvalidArg, match="headers"):
        validation.headers({"a": "x" * 65_536})
