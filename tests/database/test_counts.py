"""What workers have counted, and records, as pages and metrics read them."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Connection, Engine, insert, text

from sqlalchemy_bgjob._inspect import counts, records
from sqlalchemy_bgjob._inspect.counts import FIRST_BUCKET, Durations
from sqlalchemy_bgjob._inspect.registered import ask
from support.plans import recorded_plans
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy_bgjob import BGJob
    from support.tuning import Tune

pytestmark = [pytest.mark.core, pytest.mark.keeps_tables]

HOUR = timedelta(hours=1)


def now() -> datetime:
    """The time of the test, which may be in another hour than that of its import."""
    return datetime.now(UTC)


@pytest.fixture
def jobs(engine: Engine) -> BGJob:
    jobs = new_queue(records=True)
    jobs.metadata.create_all(engine)
    return jobs


@pytest.fixture
def connection(jobs: BGJob, engine: Engine) -> Iterator[Connection]:
    with engine.connect() as connection:
        yield connection


def add_minute(connection: Connection, jobs: BGJob, **values: Any) -> None:
    row = {
        "at": now(),
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
        "enqueued_at": now(),
        "due_at": now(),
        "ended_at": now(),
        "keep_until": now() + HOUR,
    }
    connection.execute(insert(jobs.Record).values(row | values))


def look(connection: Connection, **options: Any) -> counts.History:
    given = {"width": timedelta(minutes=1), "periods": 60, **options}
    return counts.Window(**given).look(connection, None, "bgjob_")


def test_rows_of_all_workers_are_added_up(jobs: BGJob, connection: Connection) -> None:
    """By type and queue, and all of them together."""
    add_minute(connection, jobs, n=3, waits=[1, 2], runs=[0, 0, 3], waited=1.5, ran=6.0)
    add_minute(connection, jobs, worker=2, n=2, waits=[0, 0, 2], runs=[2], waited=1.0, ran=1.0)
    add_minute(connection, jobs, outcome="dead", n=1, waits=[1], runs=[1])
    add_minute(connection, jobs, queue="other", n=7, waits=[0, 0, 0, 0, 1])
    add_minute(connection, jobs, worker=3, at=now() - 2 * HOUR, n=100)

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


def test_no_period_is_lost_when_the_clock_goes_back(
    jobs: BGJob, connection: Connection, tune: Tune
) -> None:
    """A session in Berlin has the time from 2:00 to 3:00 twice in that night."""
    three = datetime(2026, 10, 25, 2, tzinfo=UTC)
    tune(counts, _LAST=f"SELECT CAST('{three}' AS timestamptz)")
    connection.execute(text("SET TIME ZONE 'Europe/Berlin'"))
    add_minute(connection, jobs, at=three - timedelta(minutes=110), n=2)
    add_minute(connection, jobs, at=three - timedelta(minutes=50), n=3)

    found = look(connection, width=timedelta(minutes=30), periods=8).periods

    half_hours = [three - n * timedelta(minutes=30) for n in reversed(range(8))]
    assert {at: one.n for at, one in found.items()} == dict(
        zip(half_hours, [0, 0, 0, 2, 0, 3, 0, 0], strict=True)
    )
    assert list(found) == half_hours


def test_durations_can_be_those_of_some_minutes(jobs: BGJob, connection: Connection) -> None:
    """And the number of runs is that of all."""
    for ago in range(20):
        at = now() - timedelta(minutes=ago)
        add_minute(connection, jobs, at=at, n=1, runs=[0] * ago + [1], ran=1.0)

    found = look(connection, width=2 * HOUR, periods=2, sample=10).all

    assert (found.n, found.runs.count, found.runs.seconds) == (20, 2, 2.0)
    first, second = (place for place, n in enumerate(found.runs.buckets) if n)
    assert second - first == 10


@pytest.mark.parametrize(("width", "periods", "sample"), [(1, 60, 1), (30, 48, 15), (20, 5, 7)])
def test_a_window_is_what_one_plain_statement_finds(
    jobs: BGJob, connection: Connection, width: int, periods: int, sample: int
) -> None:
    """At its first look, and when it reads only what has come since; of rows at any second."""
    given: dict[str, Any] = {"width": timedelta(minutes=width), "periods": periods}
    window = counts.Window(**given, sample=sample)
    chance = random.Random(7)
    ago = [chance.randrange(width * (periods + 2) * 60) for _ in range(400)]
    for seconds in (ago, [n % (width * 60) for n in ago[:50]]):
        now: datetime = connection.execute(text("SELECT now()")).scalar_one()
        for place, back in enumerate(seconds):
            durations = {
                name: [chance.randrange(9) for _ in range(chance.randrange(41))]
                for name in ("waits", "runs")
            }
            add_minute(
                connection,
                jobs,
                at=now - timedelta(seconds=back, milliseconds=chance.randrange(1_000)),
                worker=len(seconds) * 1_000 + place,
                queue=chance.choice("pq"),
                type=chance.choice("tu"),
                outcome=chance.choice(["completed", "dead"]),
                n=chance.randrange(9),
                **durations,
                waited=chance.randrange(9) / 2,
                ran=chance.randrange(9) / 2,
            )

        found = window.look(connection, None, "bgjob_")

        first = next(iter(found.periods))
        plain = {**given, "first": first, "sample": timedelta(minutes=sample)}
        outcomes = connection.execute(PLAIN_OUTCOMES, plain).all()
        assert {
            (row.period, row.queue, row.type): row.outcomes for row in outcomes if row.outcomes
        } == {key: one.outcomes for key, one in by_key(found).items() if one.outcomes}
        durations_of = {
            (row.period, row.queue, row.type): (row.waits, row.runs, row.waited, row.ran)
            for row in connection.execute(PLAIN_DURATIONS, plain)
        }
        assert durations_of == {
            key: (padded(one.waits), padded(one.runs), one.waits.seconds, one.runs.seconds)
            for key, one in by_key(found).items()
            if key in durations_of or one.waits.count or one.runs.count
        }
        connection.commit()  # the next now() is a later one


def by_key(found: counts.History) -> dict[tuple[Any, ...], counts.Counts]:
    return {(at, None, None): one for at, one in found.periods.items()} | {
        (None, queue, type): one for (type, queue), one in found.types.items()
    }


def padded(durations: Durations) -> list[int]:
    return [*durations.buckets, *[0] * (40 - len(durations.buckets))]


_SUMS = ", ".join(
    "ARRAY[" + ", ".join(f"sum(coalesce({one}[{k}], 0))" for k in range(1, 41)) + f"] AS {one}"
    for one in ("waits", "runs")
)
PLAIN_OUTCOMES = text(
    """
    SELECT period, queue, type, jsonb_object_agg(outcome, n) AS outcomes FROM (
      SELECT period, queue, type, outcome, sum(n) AS n
      FROM (SELECT date_bin(:width, at, TIMESTAMPTZ 'epoch') AS period, * FROM bgjob_minute) AS one
      WHERE at >= :first
      GROUP BY GROUPING SETS ((period, outcome), (queue, type, outcome))
    ) AS each GROUP BY 1, 2, 3
    """
)
PLAIN_DURATIONS = text(
    f"""
    SELECT period, queue, type, {_SUMS}, sum(waited) AS waited, sum(ran) AS ran
    FROM (SELECT date_bin(:width, at, TIMESTAMPTZ 'epoch') AS period, * FROM bgjob_minute) AS one
    WHERE at >= :first
      AND at < date_bin(:sample, at, TIMESTAMPTZ 'epoch') + interval '1 minute'
    GROUP BY GROUPING SETS ((period), (queue, type))
    """
)


def test_minutes_that_are_not_read_are_not_looked_at(jobs: BGJob, connection: Connection) -> None:
    """By the key, and not row by row for each of the minutes that are read."""
    connection.execute(A_DAY)
    connection.execute(text("ANALYZE bgjob_minute"))
    connection.commit()
    with recorded_plans(connection) as plans:
        found = look(connection, width=timedelta(minutes=30), periods=48, sample=15)

    assert found.all.n > 5_000
    durations = [plan for plan in plans if "waited" in plan.query]
    assert durations
    rows = sum(
        node["Actual Rows"] * node["Actual Loops"]
        for plan in durations
        for node in plan.nodes()
        if node.get("Relation Name") == "bgjob_minute"
    )
    assert 0 < rows < 10_000


A_DAY = text(
    """
    INSERT INTO bgjob_minute (at, worker, queue, type, outcome, n, waits, runs, waited, ran)
    SELECT now() - minute * interval '1 minute', worker, 'q', 't', 'completed', 1,
           array_fill(50, ARRAY[20]), array_fill(50, ARRAY[20]), 1, 1
    FROM generate_series(0, 1439) AS minute, generate_series(1, 80) AS worker
    """
)


def test_a_further_look_reads_what_is_not_over(jobs: BGJob, connection: Connection) -> None:
    """A row that comes into a period that was over is seen when the next one is."""
    window = counts.Window(timedelta(hours=1), 24)
    add_minute(connection, jobs, at=now() - timedelta(hours=3), n=1)
    add_minute(connection, jobs, at=now(), n=2)
    first = window.look(connection, None, "bgjob_")
    assert first.all.n == 3

    add_minute(connection, jobs, at=now() - timedelta(hours=4), n=10)
    add_minute(connection, jobs, at=now(), worker=2, n=20)

    further = window.look(connection, None, "bgjob_")
    same = list(further.periods)[-1] == list(first.periods)[-1]  # no hour has ended meanwhile
    assert further.all.n == (23 if same else 33)
    assert look(connection, width=timedelta(hours=1), periods=24).all.n == 33


def test_another_look_may_end_a_period_meanwhile(jobs: BGJob, connection: Connection) -> None:
    """Pages are shown from several threads, and each lets go of what is too old."""
    add_minute(connection, jobs, at=now() - timedelta(hours=3), n=1)
    window = counts.Window(HOUR, 24)
    assert window.look(connection, None, "bgjob_").all.n == 1

    class Over(dict[Any, Any]):
        def __contains__(self, part: object) -> bool:
            window._over = {}
            return super().__contains__(part)

    window._over = Over(window._over)
    assert window.look(connection, None, "bgjob_").all.n == 1


def test_a_period_that_ends_lets_little_be_read_anew(
    jobs: BGJob, connection: Connection, tune: Tune
) -> None:
    """Of a day, what has ended, and the part of it that is the oldest."""
    now = datetime(2026, 11, 29, 12, 5, tzinfo=UTC)
    half_hour = timedelta(minutes=30)
    for place in range(60):
        add_minute(connection, jobs, at=now - place * half_hour, n=1, runs=[1])
    window = counts.Window(half_hour, 48)

    def n_and_read(at: datetime) -> tuple[int, int]:
        """How many there are, and of how many periods rows were read for that."""
        begun = at.replace(minute=at.minute // 30 * 30)
        tune(counts, _LAST=f"SELECT CAST('{begun}' AS timestamptz)")
        read: list[Any] = []

        def note(connection: Any, sql: str, *where: Any, **given: Any) -> Any:
            rows = ask(connection, sql, *where, **given)
            if sql == counts._OUTCOMES:
                read.extend(row for row in rows if row.queue is None)
            return rows

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(counts, "ask", note)
            return window.look(connection, None, "bgjob_").all.n, len(read)

    assert n_and_read(now) == (48, 48)
    assert n_and_read(now) == (48, 2)
    for later in range(1, 13):
        at = now + later * half_hour
        add_minute(connection, jobs, at=at, n=1, runs=[1])
        n, read = n_and_read(at)
        assert n == 48
        assert read <= 2 + 2 * 6


def test_what_takes_long_is_left_to_the_next_look(jobs: BGJob, connection: Connection) -> None:
    """The latest is read first, and each look gets on."""
    for hours in range(24):
        add_minute(connection, jobs, at=now() - hours * HOUR, n=1)
    window = counts.Window(HOUR, 24, longest=0.0)

    looks = [window.look(connection, None, "bgjob_") for _ in range(6)]

    numbers = [one.all.n for one in looks]
    assert numbers == sorted(numbers)
    assert numbers[0] <= 2 + 6
    assert numbers[-1] == 24
    for one in looks:
        seen = [at for at, counted in one.periods.items() if counted.n]
        assert min(seen) == one.since, "what there is is complete from then on"
        assert len(one.periods) == 24


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
        ended_at = now() - timedelta(minutes=number)
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
