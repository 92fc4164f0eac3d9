"""When schedules fire: expressions, zones, days of 23 and 25 hours, and what was missed."""

from __future__ import annotations

import random
import zoneinfo
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sqlalchemy_bgjob import next_fire_time
from sqlalchemy_bgjob._handlers.timetable import (
    MISSED_AFTER,
    MOST_MADE_UP,
    Gap,
    begin,
    due,
    every,
    set_right,
    timetable,
)

BERLIN, NEW_YORK, LORD_HOWE = "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"
SANTIAGO = "America/Santiago"


def at(text: str) -> datetime:
    """A moment of 2026, in UTC: month, day and time."""
    return datetime.fromisoformat(f"2026-{text}+00:00")


def some(expression: str, zone: str, first: str, count: int) -> list[datetime]:
    """So many fire times after a moment."""
    found = [at(first)]
    while len(found) <= count:
        found.append(timetable(expression, zone).after(found[-1]))
    return found[1:]


# ---- expressions ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "after", "expected"),
    [
        ("0 9 * * mon-fri", "11-27T08:59:59", "11-27T09:00"),  # a Friday
        ("0 9 * * mon-fri", "11-27T09:00", "11-30T09:00"),
        ("*/15 * * * *", "11-27T09:00:01", "11-27T09:15"),
        ("*/10 * * * * *", "11-27T09:00:01", "11-27T09:00:10"),
        ("0 0 L * *", "02-05T00:00", "02-28T00:00"),
        ("@hourly", "11-27T08:59", "11-27T09:00"),
        ("@daily", "11-27T08:59", "11-28T00:00"),
        ("@Midnight", "11-27T08:59", "11-28T00:00"),
        ("@weekly", "11-27T08:59", "11-29T00:00"),
        ("@monthly", "11-27T08:59", "12-01T00:00"),
        ("@every 90", "11-27T00:00:01", "11-27T00:01:30"),
        ("@every 1", "11-27T00:00:01", "11-27T00:00:02"),
    ],
)
def test_the_next_fire_time(expression: str, after: str, expected: str) -> None:
    assert timetable(expression, "UTC").after(at(after)) == at(expected)


def test_an_interval_fires_at_its_multiples() -> None:
    """So it does not matter when a worker was started."""
    assert every(timedelta(hours=1)) == "@every 3600"
    assert every(1.5) == "@every 1.5"
    assert some("@every 1.5", "UTC", "11-27T00:00:00.7", 3) == [
        at("11-27T00:00:01.5"),
        at("11-27T00:00:03"),
        at("11-27T00:00:04.5"),
    ]


def test_a_next_fire_time_is_for_rescheduling() -> None:
    assert next_fire_time("@daily", BERLIN, after=at("07-01T12:00")) == at("07-01T22:00")
    assert next_fire_time("* * * * *") - datetime.now(UTC) <= timedelta(minutes=1)


# ---- days of 23 and 25 hours --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "zone", "after", "expected"),
    [
        # The clocks skip 02:00 to 03:00 on March 29.
        ("30 2 * * *", BERLIN, "03-27T12:00", ["03-28T01:30", "03-29T01:00", "03-30T00:30"]),
        # They show 02:00 to 03:00 twice on October 25.
        ("30 2 * * *", BERLIN, "10-24T12:00", ["10-25T00:30", "10-26T01:30"]),
        ("15,45 2 * * *", BERLIN, "10-25T00:20", ["10-25T00:45", "10-26T01:15"]),
        ("15,45 2 * * *", BERLIN, "10-25T01:10", ["10-26T01:15"]),
        ("30 2 * * *", NEW_YORK, "03-07T12:00", ["03-08T07:00", "03-09T06:30"]),
        ("30 1 * * *", NEW_YORK, "10-31T12:00", ["11-01T05:30", "11-02T06:30"]),
        # 02:00 to 02:30 is skipped on October 4, and 01:30 to 02:00 comes twice on April 5.
        ("15 2 * * *", LORD_HOWE, "10-03T00:00", ["10-03T15:30", "10-04T15:15"]),
        ("45 1 * * *", LORD_HOWE, "04-04T00:00", ["04-04T14:45", "04-05T15:15"]),
        ("@daily", LORD_HOWE, "04-04T00:00", ["04-04T13:00", "04-05T13:30"]),
        # No full hour that is shown is passed over, whatever leads up to it.
        # 02:00 to 02:30 is skipped at 15:30 UTC, and 01:30 to 02:00 comes again at 15:00 UTC.
        ("0 */6 * * *", LORD_HOWE, "10-03T13:30", ["10-03T19:00", "10-04T01:00"]),
        ("0 */6 * * *", LORD_HOWE, "10-03T15:40", ["10-03T19:00", "10-04T01:00"]),
        ("*/20 3 * * *", LORD_HOWE, "10-03T13:30", ["10-03T16:00", "10-03T16:20"]),
        ("*/15 0 * * *", LORD_HOWE, "10-03T14:20", ["10-04T13:00", "10-04T13:15"]),
        ("*/10 2 * * *", LORD_HOWE, "04-04T12:00", ["04-04T15:30", "04-04T15:40"]),
        # The clocks skip 00:00 to 01:00 on Sunday, September 6.
        ("*/30 0 * * sun", SANTIAGO, "09-02T00:00", ["09-13T03:00", "09-13T03:30"]),
        ("*/30 0 * * sun", SANTIAGO, "09-06T03:59", ["09-13T03:00", "09-13T03:30"]),
        ("*/30 * * * sun", SANTIAGO, "09-06T03:59", ["09-06T04:00", "09-06T04:30"]),
        ("30 0 * * *", SANTIAGO, "09-05T12:00", ["09-06T04:00", "09-07T03:30"]),
    ],
)
def test_days_of_other_than_24_hours_have_all_their_times(
    expression: str, zone: str, after: str, expected: list[str]
) -> None:
    assert some(expression, zone, after, len(expected)) == [at(moment) for moment in expected]


@pytest.mark.parametrize("expression", ["*/30 * * * *", "0 * * * *", "*/10 * * * *"])
@pytest.mark.parametrize(
    ("zone", "before"),
    [
        *((BERLIN, day) for day in ("03-28T21:00", "10-24T21:00")),
        *((NEW_YORK, day) for day in ("03-08T04:00", "11-01T03:00")),
    ],
)
def test_intervals_follow_the_time_that_passes(expression: str, zone: str, before: str) -> None:
    """None is left out and none comes twice, whatever the clocks show."""
    steps = {b - a for a, b in pairwise(some(expression, zone, before, 40))}

    assert len(steps) == 1


def test_a_shift_by_half_an_hour_keeps_intervals() -> None:
    for before in ("04-04T12:00", "10-03T12:00"):
        steps = {b - a for a, b in pairwise(some("*/30 * * * *", LORD_HOWE, before, 12))}
        assert steps == {timedelta(minutes=30)}


@settings(max_examples=150, deadline=None)
@given(
    expression=st.sampled_from(
        [
            *("30 2 * * *", "*/20 * * * *", "0 */6 * * *", "15,45 1-3 * * *", "0 3 * * sun"),
            *("5 1 1 * *", "*/30 0 * * sun"),
        ]
    ),
    zone=st.sampled_from([BERLIN, NEW_YORK, LORD_HOWE, SANTIAGO, "UTC", "Asia/Kathmandu"]),
    seconds=st.integers(0, 10 * 365 * 86_400),
    part=st.floats(0, 0.999),
)
def test_fire_times_grow_and_do_not_depend_on_who_asks(
    expression: str, zone: str, seconds: int, part: float
) -> None:
    table, moment = timetable(expression, zone), at("01-01T00:00") + timedelta(seconds=seconds)

    following = table.after(moment)

    assert moment < following <= moment + timedelta(days=2 * 366)
    assert table.after(moment + (following - moment) * part) == following


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("expression", "zone", "problem"),
    [
        ("0 9 * *", "UTC", "is no cron expression"),
        ("61 * * * *", "UTC", "Bad minute; write minute, hour, day of the month, month and day of"),
        ("0 0 1--100000000 * *", "UTC", "is no cron expression"),
        ("0 0 31 2 *", "UTC", "Bad day-of-month"),
        ("@fortnightly", "UTC", "write five fields, or one of @yearly"),
        ("@every 0.5", "UTC", "is no interval"),
        ("@every day", "UTC", "is no interval"),
        ("@every nan", "UTC", "is no interval"),
        ("* " * 200, "UTC", "at most 255"),
        ("@daily", "Europe/Berlni", "did you mean 'Europe/Berlin'"),
        ("@daily", "", "is not known"),
        ("@daily", "../UTC", "is not known"),
        ("@daily", "America", "is not known"),
    ],
)
def test_what_never_fires_or_is_not_known_is_refused(
    expression: str, zone: str, problem: str
) -> None:
    with pytest.raises(ValueError, match=problem):
        timetable(expression, zone)


@pytest.fixture
def no_zones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine without the database of time zones."""

    def none(name: str) -> Any:
        raise zoneinfo.ZoneInfoNotFoundError(name)

    home = "sqlalchemy_bgjob._handlers.timetable"
    monkeypatch.setattr(f"{home}.ZoneInfo", none)
    monkeypatch.setattr(f"{home}.available_timezones", set)


def test_a_machine_without_zones_is_told_what_to_install(no_zones: None) -> None:
    with pytest.raises(ValueError, match="install the package tzdata"):
        next_fire_time("1 2 3 4 *", "Europe/Oslo")


def test_utc_needs_no_database_of_zones(no_zones: None) -> None:
    """Nor do intervals, which are meant in UTC."""
    assert next_fire_time("1 2 3 4 *", after=at("01-01T00:00")) == at("04-03T02:01")
    assert next_fire_time("@every 97", after=at("01-01T00:00")) > at("01-01T00:00")


@pytest.mark.parametrize("interval", [0, 0.5, timedelta(0)])
def test_too_short_an_interval_is_refused(interval: Any) -> None:
    with pytest.raises(ValueError, match="shortest interval"):
        every(interval)


# ---- what was missed ----------------------------------------------------------------------------

HOURLY = timetable("@hourly", "UTC")


def test_after_an_outage_each_policy_does_as_it_says() -> None:
    """Nobody has worked from 08:30 to 11:20."""
    nine, now = at("11-27T09:00"), at("11-27T11:20")
    hours = [at(f"11-27T{hour}:00") for hour in ("09", "10", "11")]

    found = {policy: due(HOURLY, nine, now, policy) for policy in ("one", "none", "all")}

    assert found["one"].fire_times == hours[-1:]
    assert found["none"].fire_times == []
    assert found["all"].fire_times == hours
    assert {(its.last, its.following) for its in found.values()} == {(hours[-1], at("11-27T12:00"))}


def test_what_is_met_within_a_minute_was_not_missed() -> None:
    nine = at("11-27T09:00")

    assert due(HOURLY, nine, nine + MISSED_AFTER, "none").fire_times == [nine]
    assert due(HOURLY, nine, nine + MISSED_AFTER * 1.01, "none").fire_times == []


def test_a_long_outage_is_made_up_for_by_the_latest() -> None:
    """Quickly, however short the interval is."""
    now = at("11-27T00:00")
    seconds = timetable("* * * * * *", "UTC")

    found = due(seconds, now - timedelta(days=300), now, "all")

    assert len(found.fire_times) == MOST_MADE_UP
    assert found.left_out
    assert found.fire_times[-1] == found.last == now
    assert found.fire_times[0] == now - timedelta(seconds=MOST_MADE_UP - 1)
    assert due(seconds, now - timedelta(days=300), now, "one").fire_times == [now]


def test_a_time_that_is_due_counts_though_the_expression_has_none() -> None:
    """The expression was changed, or the row was written by SQL."""
    odd = at("11-27T09:17")

    assert due(HOURLY, odd, at("11-27T09:20"), "all").fire_times == [odd]
    assert due(HOURLY, odd, at("11-27T10:20"), "all").fire_times == [odd, at("11-27T10:00")]


# ---- a clock that had been ahead -----------------------------------------------------------------


class Row(NamedTuple):
    """What a schedule's row says of its times."""

    next_at: datetime
    last_at: datetime | None = None
    gap: Gap | None = None
    written_at: datetime | None = None


def put(now: datetime, row: Row | None = None) -> Row:
    """As who puts a schedule, resumes it or changes its expression at that time."""
    row = row or Row(now)
    times = begin(HOURLY, now, row.gap, row.last_at)
    return Row(times.next_at, row.last_at, times.gap, now)


def fire(row: Row, now: datetime, missed: str = "one") -> tuple[list[datetime], Row]:
    """As a worker does at that time: what is fired, and the row afterwards."""
    if row.gap is not None and row.gap.is_ahead(now) and row.gap.end <= row.next_at:
        times = set_right(HOURLY, now, row.gap, row.last_at, row.written_at)
        row = row._replace(next_at=times.next_at, gap=times.gap)
    if row.next_at > now:
        return [], row
    its = due(HOURLY, row.next_at, now, missed, gap=row.gap, last_at=row.last_at)
    last = its.last if row.last_at is None else max(row.last_at, its.last)
    return its.fire_times, Row(its.following, last, its.gap, row.written_at)


def test_a_clock_that_had_been_ahead_silences_no_schedule() -> None:
    """And what was met in the false future is not met again when it comes."""
    fired, row = fire(Row(at("11-27T09:00")), at("11-27T09:00"))
    for ahead in ("12-01T12:30", "12-01T13:30"):
        more, row = fire(row, at(ahead))
        fired += more
    assert [*map(str, fired[1:])] == ["2026-12-01 12:00:00+00:00", "2026-12-01 13:00:00+00:00"]

    hour, true, found = timedelta(hours=1), at("11-27T10:30"), list[datetime]()
    while true < at("12-01T16:00"):
        more, row = fire(row, true)
        found += more
        true += hour

    times = [at("11-27T10:00") + hour * n for n in range(24 * 4 + 6)]
    assert found == [time for time in times if time not in fired]


@pytest.mark.parametrize("missed", ["one", "none", "all"])
def test_however_the_clock_jumps_no_time_is_met_twice(missed: str) -> None:
    for seed in range(30):
        dice = random.Random(seed)
        now, row = at("11-27T09:30"), Row(at("11-27T10:00"))
        fired: list[datetime] = []
        for _ in range(40):
            jump = dice.choice((0, 0, 0, 0, 50, -50, 300, -300))
            now += timedelta(hours=jump + dice.randrange(3), minutes=dice.randrange(60))
            if dice.random() < 0.2:
                row = put(now, row)
            more, row = fire(row, now, missed)
            fired += more
        assert len(fired) == len(set(fired)), seed


def test_a_small_step_back_meets_nothing_again() -> None:
    fired, row = fire(Row(at("11-27T09:00")), at("11-27T09:00:01"))
    assert fired == [at("11-27T09:00")]

    assert fire(row, at("11-27T08:59:58")) == ([], row)
    assert fire(row, at("11-27T09:30")) == ([], row)


def test_a_small_step_back_makes_up_for_nothing_again() -> None:
    """What was missed in an outage has had its one job."""
    fired, row = fire(Row(at("11-27T09:00")), at("11-27T12:00:01"))
    assert fired == [at("11-27T12:00")]

    assert fire(row, at("11-27T11:59:58")) == ([], row)
    assert fire(row, at("11-27T12:30")) == ([], row)


@pytest.mark.parametrize("missed", ["one", "none", "all"])
def test_a_false_future_silences_nothing(missed: str) -> None:
    """Whatever was put, resumed or fired in it: later each time is met that was not met then."""
    hour = timedelta(hours=1)
    for seed in range(25):
        dice = random.Random(seed)
        true, fired = at("11-27T09:00:01"), list[datetime]()
        row = put(true) if dice.random() < 0.7 else None  # or it is new in the false future

        def work(
            row: Row, now: datetime, hours: int, fired: list[datetime] = fired
        ) -> tuple[Row, datetime]:
            for _ in range(hours):
                more, row = fire(row, now, missed)
                fired += more
                now += hour
            return row, now

        if row is not None:
            row, true = work(row, true, dice.randrange(3))
        now = true + timedelta(days=dice.randrange(1, 4), minutes=dice.choice((0, 30)))
        if row is None or dice.random() < 0.5:
            row = put(now, row)
        row, now = work(row, now, dice.randrange(4))
        if dice.random() < 0.5:
            row = put(now - timedelta(minutes=59), row)

        work(row, true, 24 * 4)

        assert len(fired) == len(set(fired)), seed
        later = [at("11-27T00:00") + hour * n for n in range(24 * 4)]
        assert [time for time in later if time > true and time not in fired] == [], seed


def test_what_was_resumed_in_a_false_future_makes_up_for_nothing() -> None:
    """It was paused when these times passed; what comes after the clock is right is met."""
    row = Row(at("11-27T09:00"), at("11-27T08:00"), None, at("11-20T00:00"))
    resumed = put(at("12-01T09:30"), row)
    assert resumed.next_at == at("12-01T10:00")

    fired, row = fire(resumed, at("11-27T13:30"), "all")
    assert (fired, row.next_at) == ([], at("11-27T14:00"))
    assert fire(row, at("11-27T14:00"), "all")[0] == [at("11-27T14:00")]


def test_what_is_resumed_after_a_false_future_meets_nothing_twice() -> None:
    """Of the times that were met then the row knows."""
    fired, row = fire(Row(at("11-27T09:00")), at("11-27T09:00"))
    for ahead in ("11-27T12:30", "11-27T13:30"):
        more, row = fire(row, at(ahead))
        fired += more
    assert fired[1:] == [at("11-27T12:00"), at("11-27T13:00")]

    row = put(at("11-27T10:30"), row)
    assert row.next_at == at("11-27T11:00")
    assert put(at("11-27T11:30"), row).next_at == at("11-27T14:00")


def test_nothing_is_put_right_that_is_right() -> None:
    """Neither a new schedule, nor one whose missed times make no job."""
    now = at("11-27T11:20")
    for row in (put(now), put(now, Row(now, at("11-20T10:00"))), Row(at("11-27T09:00"))):
        after = fire(row, now, "none")[1]
        assert after.gap is not None
        assert not after.gap.is_ahead(now)


def test_a_short_gap_hides_no_false_future() -> None:
    """A worker that was late by a few seconds leaves one; the clock can't be set back into it."""
    seconds = timetable("* * * * * *", "UTC")
    jump = due(seconds, at("11-27T09:00"), at("11-28T09:00"), "one")
    assert jump.gap == Gap(at("11-27T09:00"), at("11-28T09:00"))

    late = due(seconds, jump.following, at("11-28T09:00:09"), "one", gap=jump.gap)
    assert late.gap == jump.gap


def test_a_row_without_a_next_time_gets_one() -> None:
    now = at("11-27T09:20")

    def next_at(gap: Gap | None, last_at: datetime | None) -> datetime:
        return set_right(HOURLY, now, gap, last_at, None).next_at

    assert next_at(None, None) == at("11-27T10:00")
    assert next_at(None, at("11-27T12:00")) == at("11-27T13:00")
    gap = Gap(at("11-27T10:00"), at("11-28T10:00"))
    assert next_at(gap, at("11-28T12:00")) == at("11-27T10:00")
