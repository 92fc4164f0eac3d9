"""Periods of unique keys that are over are deleted; who uses none sends nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from sqlalchemy_bgjob import Unique, enqueue
from sqlalchemy_bgjob._lifecycle.unique_periods import Looked, delete_over
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob._worker import unique_periods
from sqlalchemy_bgjob._worker.unique_periods import UniquePeriods
from sqlalchemy_bgjob.testing.points import at
from support.running import FLAVORS, Workbench, one_of_each

if TYPE_CHECKING:
    from support.tuning import Tune

one = pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)
"""For what the driver and the kind of worker have no part in."""


def add(bench: Workbench, prefix: str, count: int, *, over: str) -> None:
    bench.sql(
        "INSERT INTO bgjob_unique_period (key, job_id, until)"
        f" SELECT :prefix || n, 'x', now() - interval '{over}'"
        " FROM generate_series(1, :count) AS n",
        prefix=prefix,
        count=count,
    )


def left(bench: Workbench) -> list[str]:
    return [row[0] for row in bench.sql("SELECT key FROM bgjob_unique_period ORDER BY key")]


@pytest.mark.core
@one_of_each
def test_a_worker_deletes_what_is_over(bench: Workbench, tune: Tune) -> None:
    """In batches, among many that go on; for an hour a clock may be wrong."""
    tune(unique_periods, BATCH=3, LASTS=0.0, GO_ON_AFTER=0.01)
    bench.handler("t", lambda ctx: None, uses_session=False)
    add(bench, "a", 4, over="2 hours")
    add(bench, "b", 3, over="59 min")
    add(bench, "c", 4, over="2 hours")
    add(bench, "d", 3, over="-1 hour")
    kept = [f"{letter}{n}" for letter in "bd" for n in (1, 2, 3)]

    bench.run(until=lambda: left(bench) == kept, health_interval=0.05)


@one_of_each
def test_without_periods_nothing_is_sent(bench: Workbench) -> None:
    bench.handler("t", lambda ctx: None, uses_session=False)
    bench.sql("TRUNCATE bgjob_unique_period")
    sweeps: list[str] = []

    with at("sweeping", sweeps.append):
        bench.run(until=lambda: sweeps.count("health") > 2, health_interval=0.05)

    assert "periods" not in sweeps


@one
def test_locked_ones_are_left_and_keys_begin_anew(bench: Workbench) -> None:
    """Beside an enqueue that begins a period anew, and does not wait."""
    handler: Any = bench.handler("t", lambda ctx: None, uses_session=False)
    statements = statements_of(bench.jobs.models)
    add(bench, "k", 2, over="2 hours")
    with bench.outside.connect() as caller, bench.outside.connect() as worker:
        assert enqueue(caller, handler, unique=Unique("k1", period=60)).inserted
        assert delete_over(worker, statements, after="", limit=9) == Looked(None, 1)
        caller.commit()
        assert delete_over(worker, statements, after="", limit=9) == Looked(None, 0)

    assert left(bench) == ["k1"]


@one
def test_it_walks_the_primary_key(bench: Workbench) -> None:
    """No batch reads more than its own rows, however many there are."""
    add(bench, "k", 5_000, over="2 hours")
    statement: Any = statements_of(bench.jobs.models).unique_periods.delete_over
    with bench.outside.connect() as connection:
        sql = str(statement.compile(connection.engine))
        given = {"given_after": "k2", "given_limit": 100}
        plan = connection.exec_driver_sql(f"EXPLAIN {sql}", given).scalars().all()
        connection.execute(text("ROLLBACK"))

    assert not any("Seq Scan on bgjob" in line for line in plan), plan


# ---- turns ---------------------------------------------------------------------------------------


class Clock:
    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


def test_a_turn_ends_in_time_and_a_walk_rests_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A table of periods that go on is not read all the time."""
    clock, asked = Clock(), list[str]()
    monkeypatch.setattr(unique_periods, "time", clock)

    def delete(*_: Any, after: str, **options: Any) -> Looked:
        clock.now += 0.3
        asked.append(after)
        return Looked(None if after == "c" else chr(ord(after or "`") + 1), 0)

    monkeypatch.setattr(unique_periods, "delete_over", delete)
    periods = UniquePeriods(None)  # type: ignore[arg-type]
    periods.begin()
    assert periods.due_at == clock.now

    periods.turn(None)  # type: ignore[arg-type]
    assert (asked, periods.due_at) == (["", "a"], clock.now + 1.0)
    periods.turn(None)  # type: ignore[arg-type]
    assert asked == ["", "a", "b", "c"]

    clock.now += 119.0
    periods.begin()
    assert periods.due_at > clock.now
    clock.now += 2.0
    periods.begin()
    assert periods.due_at == clock.now
