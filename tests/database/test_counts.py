"""What workers have counted, and records, as pages and metrics read them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, MetaData, insert

from sqlalchemy_bgjob import BGJob
from sqlalchemy_bgjob._inspect import counts, records
from sqlalchemy_bgjob._inspect.counts import FIRST_BUCKET, Durations

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.core

HOUR = timedelta(hours=1)
NOW = datetime.now(UTC)


@pytest.fixture
def jobs(engine: Engine) -> BGJob:
    jobs = BGJob(MetaData(), records=True)
    jobs.metadata.create_all(engine)
    return jobs


@pytest.fixture
def connection(jobs: BGJob, engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def add_minute(connection: Connection, jobs: BGJob, **values: Any) -> None:
    row = {
        "at": NOW,
        "worker": 1,
        "queue": "q",
        "type": "t",
        "outcome": "completed",
        "n": 1,
        "waits": [],
        "runs": [],
        "waited": 0.0,
        "ran": 0.0,
    }
    connection.execute(insert(jobs.Minute).values(row | values))


def add_record(connection: Connection, jobs: BGJob, id: str, **values: Any) -> None:
    row = {
        "job_id": id,
        "queue": "q",
        "type": "t",
        "state": "completed",
        "attempt": 1,
        "lease": 1,
        "enqueued_at": NOW,
        "due_at": NOW,
        "ended_at": NOW,
        "keep_until": NOW + HOUR,
    }
    connection.execute(insert(jobs.Record).values(row | values))


def look(connection: Connection, **options: Any) -> counts.History:
    given = {"width": timedelta(minutes=1), "periods": 60, **options}
    return counts.history(connection, None, "bgjob_", **given)


def test_rows_of_all_workers_are_added_up(jobs: BGJob, connection: Connection) -> None:
    """By type and queue, and all of them together."""
    add_minute(connection, jobs, n=3, waits=[1, 2], runs=[0, 0, 3], waited=1.5, ran=6.0)
    add_minute(connection, jobs, worker=2, n=2, waits=[0, 0, 2], runs=[2], waited=1.0, ran=1.0)
    add_minute(connection, jobs, outcome="dead", n=1, waits=[1], runs=[1])
    add_minute(connection, jobs, queue="other", n=7, waits=[0, 0, 0, 0, 1])
    add_minute(connection, jobs, worker=3, at=NOW - 2 * HOUR, n=100)

    found = look(connection)

    assert list(found.types) == [("t", "other"), ("t", "q")]
    both = found.types["t", "q"]
    assert both.outcomes == {"completed": 5, "dead": 1}
    assert both.waits == Durations(6, 2.5, [2, 2, 2])
    assert both.runs == Durations(6, 7.0, [3, 0, 3])
    assert found.all.outcomes == {"completed": 12, "dead": 1}
    assert found.all.waits.buckets == [2, 2, 2, 0, 1]


def test_each_period_has_its_counts_and_empty_ones_none(
    jobs: BGJob, connection: Connection
) -> None:
    """The last one is that of now; they begin at whole multiples of their width."""
    minute = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(minutes=5)
    add_minute(connection, jobs, at=minute + timedelta(seconds=1), n=2, runs=[1, 1])
    add_minute(connection, jobs, at=minute + timedelta(seconds=59), worker=2, n=3, runs=[3])
    add_minute(connection, jobs, at=minute + timedelta(seconds=61), n=4, outcome="retry")

    found = look(connection, periods=30).periods

    assert len(found) == 30
    assert sorted(found) == list(found)
    assert (list(found)[-1] - minute).total_seconds() in (300, 360)  # the minute may be over
    some = {at: one.outcomes for at, one in found.items() if one.n}
    assert some == {minute: {"completed": 5}, minute + timedelta(minutes=1): {"retry": 4}}
    assert found[minute].runs == Durations(5, 0.0, [4, 1])

    wide = look(connection, width=timedelta(minutes=30), periods=48).periods
    assert sum(one.n for one in wide.values()) == 9
    assert all(at.astimezone(UTC).minute in (0, 30) for at in wide)


def test_durations_can_be_those_of_some_minutes(jobs: BGJob, connection: Connection) -> None:
    """And the number of runs is that of all."""
    for ago in range(20):
        at = NOW - timedelta(minutes=ago)
        add_minute(connection, jobs, at=at, n=1, runs=[0] * ago + [1], ran=1.0)

    found = look(connection, width=2 * HOUR, periods=2, sample=10).all

    assert (found.n, found.runs.count, found.runs.seconds) == (20, 2, 2.0)
    first, second = (place for place, n in enumerate(found.runs.buckets) if n)
    assert second - first == 10


def test_nothing_counted_is_nothing_told(jobs: BGJob, connection: Connection) -> None:
    found = look(connection, periods=3)

    assert (len(found.periods), found.types, found.all.n) == (3, {}, 0)


def test_percentiles_are_interpolated_within_a_bucket() -> None:
    assert Durations().p50 is None
    assert Durations(4, 0.0, [0, 4]).p50 == pytest.approx(1.5 * FIRST_BUCKET)
    assert Durations(4, 0.0, [4]).p99 == pytest.approx(0.99 * FIRST_BUCKET)
    many = Durations(100, 0.0, [90, 0, 0, 10])
    assert many.p50 == pytest.approx(FIRST_BUCKET * 50 / 90)
    assert many.p95 == pytest.approx(FIRST_BUCKET * 6)


def test_several_durations_are_one() -> None:
    both = counts.together([Durations(1, 2.0, [1]), Durations(3, 4.0, [0, 3])])

    assert both == Durations(4, 6.0, [1, 3])
    assert counts.together([]) == Durations(0, 0, [])


def test_pages_go_back_in_time_over_all_types(jobs: BGJob, connection: Connection) -> None:
    for number in range(7):
        ended_at = NOW - timedelta(minutes=number)
        add_record(connection, jobs, f"{number}", type=f"t{number % 3}", ended_at=ended_at)
    add_record(connection, jobs, "live", state="live", ended_at=None, progress={"done": 1, "of": 4})

    first = records.page(connection, None, "bgjob_", limit=4)
    last = first[-1]
    assert last.ended_at is not None
    second = records.page(connection, None, "bgjob_", limit=9, after=(last.ended_at, last.id))

    assert [one.id for one in first] == ["live", "0", "1", "2"]
    assert [one.id for one in second] == ["3", "4", "5", "6"]
    assert first[0].progress == records.Progress(1, 4)
    assert first[0].progress.share == 0.25


def test_a_page_can_be_of_one_type_queue_or_state(jobs: BGJob, connection: Connection) -> None:
    add_record(connection, jobs, "1")
    add_record(connection, jobs, "2", type="u", state="dead", error="ValueError: no")
    add_record(connection, jobs, "3", queue="other")

    def ids(**only: Any) -> list[str]:
        return [one.id for one in records.page(connection, None, "bgjob_", limit=9, **only)]

    assert ids() == ["3", "2", "1"]
    assert ids(type="t") == ["3", "1"]
    assert ids(queue="other") == ["3"]
    assert ids(state="dead") == ["2"]
