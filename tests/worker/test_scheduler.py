"""Workers fire schedules: those in their code, and those that users have put."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from sqlalchemy_bgjob._lifecycle.fire import keep_code
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob._worker import scheduler
from sqlalchemy_bgjob.testing import points
from support import wait_until
from support.running import FLAVORS, one_of_each

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.running import Workbench

one = pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)
"""For what the driver and the kind of worker have no part in."""


class Reports:
    """A handler that keeps what its jobs' headers say."""

    def __init__(self, bench: Workbench, **options: Any) -> None:
        self.bench, self.headers = bench, list[dict[str, Any]]()
        self.handler = bench.handler(
            "report", self._report, uses_session=False, session=False, **options
        )

    def _report(self, ctx: Any) -> None:
        self.headers.append(ctx.job.headers)

    def declare(self, cron: str | None = "@yearly", **options: Any) -> None:
        self.bench.jobs.schedule(cron, **options)(self.handler)

    def put(self, name: str = "s", **options: Any) -> None:
        self.bench.jobs.schedules.put(self.bench.outside, name, self.handler, **options)

    def make_due(self, name: str, ago: timedelta = timedelta(seconds=1)) -> None:
        self.bench.sql(
            "UPDATE bgjob_schedule SET next_at = clock_timestamp() - :ago WHERE name = :name",
            name=name,
            ago=ago,
        )

    def add_due(self, ago: timedelta = timedelta(seconds=1)) -> None:
        """As if a worker had run before: the code's schedules have rows, and their time came."""
        definitions = self.bench.jobs.registry.schedules
        with self.bench.outside.connect() as connection:
            statements = statements_of(self.bench.jobs.models)
            keep_code(connection, statements, definitions.values(), starting=True)
        for name in definitions:
            self.make_due(name, ago)

    def fired(self, count: int) -> bool:
        return len(self.headers) >= count and self.bench.none_left()


@one_of_each
def test_a_schedule_in_code_is_fired_while_a_worker_runs(bench: Workbench) -> None:
    """At each second of an interval of one, which is its fire time; the handler is told."""
    reports = Reports(bench)
    reports.declare(None, every=1.0, overlap="allow")

    bench.run(until=lambda: reports.fired(2))

    assert {headers["bgjob-schedule"] for headers in reports.headers} == {"report"}
    times = [datetime.fromisoformat(headers["bgjob-fire-time"]) for headers in reports.headers]
    assert times[1] - times[0] == timedelta(seconds=1)
    assert times[0].microsecond == 0
    assert times[0].utcoffset() == timedelta(0)
    assert abs(datetime.now(UTC) - times[-1]) < timedelta(seconds=20)


@one_of_each
def test_a_restart_makes_up_for_what_was_missed(bench: Workbench) -> None:
    """So a worker that restarts more often than the interval fires it too."""
    reports = Reports(bench)
    reports.declare()
    reports.add_due(ago=timedelta(hours=5))

    bench.run(until=lambda: reports.fired(1))

    assert bench.sql("SELECT next_at > now() FROM bgjob_schedule") == [(True,)]


@one_of_each
def test_a_schedule_that_is_put_is_heard_of(bench: Workbench) -> None:
    """By NOTIFY: the rescuer looks in ten minutes only."""
    reports = Reports(bench)

    def put() -> None:
        listens = "SELECT 1 FROM bgjob_worker WHERE listener_pid IS NOT NULL"
        wait_until(lambda: bench.sql(listens))
        reports.put(every=1.0)

    bench.run(during=put, until=lambda: reports.fired(1), listen=True, rescue_interval=600.0)

    assert reports.headers[0]["bgjob-schedule"] == "s"


@one_of_each
def test_a_schedule_nobody_tells_of_is_found_when_it_is_due(bench: Workbench) -> None:
    """By a look that the rescuer makes in any case."""
    reports = Reports(bench)

    def put() -> None:
        wait_until(lambda: bench.sql("SELECT 1 FROM bgjob_worker"))
        reports.put(cron="@yearly")
        reports.make_due("s")

    bench.run(during=put, until=lambda: reports.fired(1), rescue_interval=0.1)


@one_of_each
def test_a_schedule_behind_a_false_future_is_found(bench: Workbench) -> None:
    """By the rescuer's look, as one that is due: nobody else would ever look."""
    reports = Reports(bench)

    def put() -> None:
        wait_until(lambda: bench.sql("SELECT 1 FROM bgjob_worker"))
        reports.put(every=3600)
        reports.put("none", every=3600)
        bench.sql("UPDATE bgjob_schedule SET next_at = NULL WHERE name = 'none'")
        bench.sql(
            "UPDATE bgjob_schedule SET missed_from = now() - interval '1 s',"
            " missed_until = now() + interval '1 year', last_at = now() + interval '1 year',"
            " next_at = now() + interval '366 days' WHERE name = 's'"
        )

    def is_right() -> bool:
        return bench.sql(
            "SELECT bool_and(next_at < now() + interval '2 hours') FROM bgjob_schedule"
        ) == [(True,)]

    bench.run(during=put, until=lambda: reports.fired(1) and is_right(), rescue_interval=0.1)


@one
def test_until_idle_fires_before_it_ends(bench: Workbench) -> None:
    """Though it may not claim before others can see it."""
    reports = Reports(bench)
    reports.declare()
    reports.add_due()

    bench.run(until=lambda: reports.fired(1), until_idle=True, listen=True)


@pytest.fixture
def asked(bench: Workbench) -> Iterator[list[str]]:
    """The statements about schedules alone that are sent, by any engine."""
    from sqlalchemy import Engine

    sent: list[str] = []

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        if "bgjob_schedule" in statement and "bgjob_worker" not in statement:
            sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    yield sent
    event.remove(Engine, "before_cursor_execute", note)


@one
def test_who_has_no_schedule_asks_for_none(bench: Workbench, asked: list[str]) -> None:
    """Though another service on the same tables has some, which are due: its workers are away."""
    reports = Reports(bench)
    reports.declare()
    reports.add_due()
    bench.jobs.registry.schedules.clear()
    reports.put("foreign", cron="@yearly")
    reports.make_due("foreign")
    bench.sql("UPDATE bgjob_schedule SET type = 'unknown here' WHERE name = 'foreign'")
    asked.clear()
    looks = threading.Semaphore(0)

    with points.at("sweeping", lambda what: looks.release()):
        bench.run(
            until=lambda: all(looks.acquire(timeout=10) for _ in range(12)),
            rescue_interval=0.05,
            heartbeat_interval=0.1,
        )

    assert asked == []
    assert reports.headers == []


@one
def test_a_yearly_schedule_costs_a_start_and_no_more(bench: Workbench, asked: list[str]) -> None:
    reports = Reports(bench)
    reports.declare()
    looks = threading.Semaphore(0)

    with points.at("sweeping", lambda what: looks.release()):
        bench.run(
            until=lambda: all(looks.acquire(timeout=10) for _ in range(12)),
            rescue_interval=0.05,
        )

    assert len([statement for statement in asked if statement.startswith("SELECT")]) == 2
    assert len([statement for statement in asked if statement.startswith("INSERT")]) == 1
    assert len(asked) == 3


@one
def test_a_schedule_that_is_refused_a_row_holds_up_nothing(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as by a constraint of the user's: the others of the code get theirs, and fire."""
    reports = Reports(bench)
    reports.declare(name="refused")
    reports.declare(None, name="other", every=1.0)
    bench.sql("ALTER TABLE bgjob_schedule ADD CONSTRAINT own CHECK (name <> 'refused')")
    try:
        ran = bench.run(until=lambda: reports.fired(1))
    finally:
        bench.sql("ALTER TABLE bgjob_schedule DROP CONSTRAINT own")

    assert reports.headers[0]["bgjob-schedule"] == "other"
    assert ran.named("worker_error")
    assert any("'refused' of the code has no row" in line for line in caplog.messages)


@one
def test_a_schedule_that_can_not_fire_holds_up_nothing(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A trigger of the user's refuses its job, and the zone of another is not known here."""
    monkeypatch.setattr(scheduler, "REFUSED", 0.4)
    reports = Reports(bench)
    other = bench.handler("other", lambda ctx: None, uses_session=False)
    reports.declare()
    bench.jobs.schedule("@yearly", name="refused")(other)
    reports.add_due()
    reports.put("far", cron="@yearly")
    bench.sql("UPDATE bgjob_schedule SET timezone = 'Mars/Olympus' WHERE name = 'far'")
    reports.make_due("far")
    refuse = "IF NEW.type = 'other' THEN RAISE 'no such'; END IF; RETURN NEW;"

    def refusals() -> list[float]:
        told = "'refused' could not be fired"
        return [record.created for record in caplog.records if told in record.getMessage()]

    def done() -> bool:
        return reports.fired(1) and len(refusals()) >= 3

    with caplog.at_level(logging.WARNING), bench.trigger(refuse, "BEFORE INSERT"):
        ran = bench.run(until=done, rescue_interval=0.05)  # each of whose looks finds "far" due

    assert ran.named("worker_error")
    assert min(later - sooner for sooner, later in pairwise(refusals())) > 0.35
    assert any("'far' could not be fired" in line for line in caplog.messages)
    assert len(bench.sql("SELECT FROM bgjob_schedule WHERE next_at < now()")) == 2


@one
def test_a_name_that_a_user_has_taken_is_told(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    reports = Reports(bench)
    reports.put("report", cron="@yearly")
    reports.declare()

    with caplog.at_level(logging.ERROR):
        bench.run(until=lambda: caplog.messages)

    assert "a user has put a row of its name" in caplog.messages[0]


@one
def test_more_than_a_look_shows_are_all_fired(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sqlalchemy_bgjob._lifecycle.fire.LIMIT", 3)
    monkeypatch.setattr(scheduler, "LIMIT", 3)
    reports = Reports(bench)
    for number in range(8):
        reports.declare(name=f"s{number}")
    reports.add_due()

    bench.run(until=lambda: reports.fired(8), rescue_interval=600.0)

    names = sorted(headers["bgjob-schedule"] for headers in reports.headers)
    assert names == [f"s{number}" for number in range(8)]
