"""Retention: a worker that is told to deletes dead jobs, a few at a time; others send nothing."""

from __future__ import annotations

import logging
from math import inf
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from psycopg.errors import ForeignKeyViolation
from sqlalchemy.exc import IntegrityError

from sqlalchemy_bgjob._lifecycle import audit
from sqlalchemy_bgjob._worker import passed_over, retention
from sqlalchemy_bgjob._worker.retention import Retention
from sqlalchemy_bgjob._worker.unique_periods import UniquePeriods
from sqlalchemy_bgjob.settings import WorkerSettings
from sqlalchemy_bgjob.testing.points import at
from support.running import Recorder, Workbench, one_of_each

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from support.tuning import Tune

DAY = 86_400.0
NO_RECORDS: Any = SimpleNamespace(records=None)
"""What turns ask of the statements."""


def bury(bench: Workbench, count: int, *, days: float, prefix: str) -> None:
    bench.sql(
        "INSERT INTO bgjob_dead_job (id, job_id, queue, type, attempt, lease, next_run_at,"
        " job_created_at, job_updated_at, moved_at) SELECT :prefix || n, :prefix || n, 'default',"
        " 't', 1, 1, now(), now(), now(), now() - make_interval(secs => :ago)"
        " FROM generate_series(1, :count) AS n",
        prefix=prefix,
        ago=days * DAY,
        count=count,
    )


def left(bench: Workbench) -> list[str]:
    return [row[0] for row in bench.sql("SELECT job_id FROM bgjob_dead_job ORDER BY 1")]


@pytest.mark.core
@one_of_each
def test_a_worker_deletes_what_is_too_old(
    bench: Workbench, tune: Tune, caplog: pytest.LogCaptureFixture
) -> None:
    """In batches, and within a second again for as long as there is more."""
    tune(retention, INTERVAL=0.05, BATCH=3, LASTS=0.0, GO_ON_AFTER=0.01)
    bench.handler("t", lambda ctx: None, uses_session=False)
    bury(bench, 10, days=31, prefix="old-")
    bury(bench, 2, days=29, prefix="new-")

    with caplog.at_level(logging.INFO, "sqlalchemy_bgjob"):
        bench.run(until=lambda: len(left(bench)) == 2, dead_keep=30 * DAY)

    assert left(bench) == ["new-1", "new-2"]
    assert "deleted 3 dead jobs that were older than 2.592e+06 s" in caplog.text


@one_of_each
def test_without_the_setting_nothing_is_sent(bench: Workbench, tune: Tune) -> None:
    tune(retention, INTERVAL=0.0)
    bench.handler("t", lambda ctx: None, uses_session=False)
    bury(bench, 1, days=3_000, prefix="old-")
    sweeps: list[str] = []

    with at("sweeping", sweeps.append):
        bench.run(until=lambda: sweeps.count("look") > 1, rescue_interval=0.05)

    assert "retention" not in sweeps
    assert left(bench) == ["old-1"]


@pytest.mark.core
@one_of_each
def test_a_row_that_refuses_keeps_no_other_from_going(
    bench: Workbench, tune: Tune, caplog: pytest.LogCaptureFixture
) -> None:
    """For a foreign key of the application's, or a trigger; though it is the oldest."""
    tune(retention, INTERVAL=0.01, BATCH=3)
    bench.handler("t", lambda ctx: None, uses_session=False)
    bury(bench, 3, days=3, prefix="kept-")
    bury(bench, 7, days=2, prefix="old-")
    bench.sql("CREATE TABLE invoice (dead_id text REFERENCES bgjob_dead_job)")
    bench.sql("INSERT INTO invoice SELECT 'kept-' || n FROM generate_series(1, 3) AS n")
    recorder = Recorder()
    kept = ["kept-1", "kept-2", "kept-3"]

    try:
        bench.run(until=lambda: left(bench) == kept, observers=(recorder,), dead_keep=DAY)
    finally:
        bench.sql("DROP TABLE invoice")

    assert "3 dead jobs can't be deleted, such as that of id kept-1: " in caplog.text
    errors = [event for event in recorder.events if event.name == "worker_error"]
    assert len(errors) == 1  # they are passed over until an hour is over


@one_of_each
def test_whatever_a_trigger_raises_it_keeps_no_other_row(bench: Workbench, tune: Tune) -> None:
    """Its SQLSTATE may look like the role's fault, or the session's."""
    tune(retention, INTERVAL=0.01)
    bench.handler("t", lambda ctx: None, uses_session=False)
    bury(bench, 1, days=3, prefix="kept-")
    bury(bench, 3, days=2, prefix="old-")
    bench.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF OLD.id = 'kept-1' THEN RAISE 'no' USING ERRCODE = 'UX001'; END IF; RETURN OLD; END $$"
    )
    bench.sql(
        "CREATE TRIGGER refuse BEFORE DELETE ON bgjob_dead_job"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )

    try:
        bench.run(until=lambda: left(bench) == ["kept-1"], dead_keep=DAY)
    finally:
        bench.sql("DROP FUNCTION refuse CASCADE")


@one_of_each
def test_a_trigger_that_refuses_all_is_not_asked_for_each(
    bench: Workbench, tune: Tune, caplog: pytest.LogCaptureFixture
) -> None:
    tune(retention, INTERVAL=0.01)
    tune(passed_over, MOST_REFUSED=20)
    bench.handler("t", lambda ctx: None, uses_session=False)
    bury(bench, 100, days=2, prefix="old-")
    bench.sql("CREATE SEQUENCE asked")
    bench.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN PERFORM nextval('asked'); RAISE EXCEPTION 'not for you'; END $$"
    )
    bench.sql(
        "CREATE TRIGGER refuse BEFORE DELETE ON bgjob_dead_job"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    sweeps: list[str] = []

    try:
        with at("sweeping", sweeps.append):
            bench.run(until=lambda: sweeps.count("retention") > 9, dead_keep=DAY)
        ((asked,),) = bench.sql("SELECT last_value FROM asked")
    finally:
        bench.sql("DROP FUNCTION refuse CASCADE")
        bench.sql("DROP SEQUENCE asked")

    assert 20 < asked < 100  # each row of two batches once, and one more for each batch
    assert "dead jobs can't be deleted" in caplog.text


@one_of_each
def test_a_role_that_may_not_delete_goes_on_working(bench: Workbench, tune: Tune) -> None:
    """The turn fails, is told, and comes again at its next time; jobs run meanwhile."""
    tune(retention, INTERVAL=0.01)
    tune(passed_over, REFUSED_AGAIN=0.01)
    handler = bench.handler("t", lambda ctx: None, uses_session=False)
    bench.sql(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql"
        " AS $$ BEGIN RAISE EXCEPTION 'not for you'; END $$"
    )
    bench.sql(
        "CREATE TRIGGER refuse BEFORE DELETE ON bgjob_dead_job"
        " FOR EACH ROW EXECUTE FUNCTION refuse()"
    )
    bury(bench, 1, days=2, prefix="old-")
    bench.enqueue(handler)
    recorder = Recorder()

    def has_failed_twice() -> bool:
        errors = [event for event in recorder.events if event.name == "worker_error"]
        return len(errors) > 1 and bench.none_left()

    try:
        bench.run(until=has_failed_twice, observers=(recorder,), dead_keep=DAY)
        assert left(bench) == ["old-1"]
    finally:
        bench.sql("DROP FUNCTION refuse CASCADE")


@one_of_each
def test_a_worker_until_idle_deletes_before_it_ends(bench: Workbench) -> None:
    """Dead jobs, periods and batches: where cron starts all of them, none lives until its turn."""
    bench.handler("t", lambda ctx: None, uses_session=False)
    bury(bench, 3, days=31, prefix="old-")
    bury(bench, 1, days=29, prefix="new-")
    bench.sql("TRUNCATE bgjob_unique_period, bgjob_batch")
    bench.sql(
        "INSERT INTO bgjob_unique_period (key, job_id, until)"
        " VALUES ('old', 'x', now() - interval '2 h'), ('new', 'x', now())"
    )
    bench.sql(
        "INSERT INTO bgjob_batch (id, created_at, finished_at) SELECT id, at, at"
        " FROM (VALUES ('old', now() - interval '8 days'), ('new', now())) AS given (id, at)"
    )

    def kept() -> list[Any]:
        ids = "SELECT key FROM bgjob_unique_period UNION ALL SELECT id FROM bgjob_batch"
        return [*left(bench), *(row[0] for row in bench.sql(ids))]

    bench.run(until=lambda: kept() == ["new-1", "new", "new"], until_idle=True, dead_keep=30 * DAY)


@one_of_each
def test_a_worker_until_idle_ends_though_it_may_not_delete(
    bench: Workbench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refused(*_: Any) -> None:
        raise LookupError("no right")

    monkeypatch.setattr(UniquePeriods, "turn", refused)
    caplog.set_level("INFO")
    bench.handler("t", lambda ctx: None, uses_session=False)
    bury(bench, 1, days=2, prefix="old-")

    bench.run(until=lambda: "runs nothing: stopping" in caplog.text, until_idle=True, dead_keep=DAY)

    assert "old rows were not deleted: LookupError: no right" in caplog.text
    assert left(bench) == []


# ---- turns ---------------------------------------------------------------------------------------


REFUSAL = IntegrityError("DELETE", None, ForeignKeyViolation())


class Clock:
    now = 1_000.0

    def monotonic(self) -> float:
        return self.now


def report(error: Exception) -> None: ...


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(retention, "time", clock)
    monkeypatch.setattr(passed_over, "time", clock)
    return clock


@pytest.mark.parametrize(("workers", "share"), [(1, 1), (7, 7), (500, 60)])
def test_the_fleet_looks_once_a_minute(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, workers: int, share: int
) -> None:
    """Each worker takes one turn in as many minutes as there are workers."""
    monkeypatch.setattr(retention, "delete_old", lambda *args, **options: 0)
    turns = Retention(NO_RECORDS, WorkerSettings(dead_keep=DAY), lambda: workers, report)
    turns.begin()
    assert clock.now <= turns.due_at <= clock.now + 60

    pauses = []
    for _ in range(200):
        turns.turn(None)  # type: ignore[arg-type]
        pauses.append(turns.due_at - clock.now)

    assert all(54 * share <= pause <= 66 * share for pause in pauses)
    assert abs(sum(pauses) / 200 - 60 * share) < 3 * share


def test_a_turn_ends_in_time_and_goes_on_soon(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rescuer must look for lost workers meanwhile."""
    batches: list[int] = []

    def delete(connection: Connection, statements: Any, **given: Any) -> int:
        clock.now += 0.2
        batches.append(given["limit"])
        return 1_000 if len(batches) < 5 else 7

    monkeypatch.setattr(retention, "delete_old", delete)
    turns = Retention(NO_RECORDS, WorkerSettings(dead_keep=DAY), lambda: 1, report)

    turns.turn(None)  # type: ignore[arg-type]
    assert batches == [1_000] * 3
    assert turns.due_at == clock.now + 1.0
    turns.turn(None)  # type: ignore[arg-type]
    assert len(batches) == 5
    assert turns.due_at > clock.now + 50


def test_what_refused_is_passed_over_for_an_hour(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By all turns; then it is tried again, and may have been mended."""
    passed_over: list[list[str]] = []

    def delete(*args: Any, skip: Any, **options: Any) -> int:
        passed_over.append(list(skip))
        if "x" not in skip and clock.now < 3_000:
            raise REFUSAL
        return 0

    monkeypatch.setattr(retention, "delete_old", delete)
    monkeypatch.setattr(
        retention, "delete_old_one_by_one", lambda *args, **options: (0, {"x": REFUSAL})
    )
    reported: list[Exception] = []
    turns = Retention(NO_RECORDS, WorkerSettings(dead_keep=DAY), lambda: 1, reported.append)

    for _ in range(2):
        turns.turn(None)  # type: ignore[arg-type]
    clock.now += 3_601
    turns.turn(None)  # type: ignore[arg-type]

    assert passed_over == [[], ["x"], ["x"], []]
    assert reported == [REFUSAL]


def test_a_failed_turn_waits_for_the_next(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **options: Any) -> int:
        raise RuntimeError

    monkeypatch.setattr(retention, "delete_old", fail)
    turns = Retention(NO_RECORDS, WorkerSettings(dead_keep=DAY), lambda: 1, report)
    with pytest.raises(RuntimeError):
        turns.turn(None)  # type: ignore[arg-type]
    assert turns.due_at > clock.now + 50


def test_dead_jobs_that_may_not_be_deleted_keep_no_record(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor counts, nor the audit; and the turn has failed, though there is more of these."""
    deleted: list[str] = []

    def fail(*args: Any, **options: Any) -> int:
        raise RuntimeError

    def deletes(what: str) -> Callable[..., int]:
        def delete(*args: Any, **options: Any) -> int:
            clock.now += 1.0
            deleted.append(what)
            return 1_000

        return delete

    monkeypatch.setattr(retention, "delete_old", fail)
    monkeypatch.setattr(retention, "delete_old_records", deletes("records"))
    monkeypatch.setattr(retention, "delete_old_counts", deletes("counts"))
    monkeypatch.setattr(audit, "delete_old", deletes("audit"))
    with_records: Any = SimpleNamespace(records="some")
    turns = Retention(with_records, WorkerSettings(dead_keep=DAY), lambda: 1, report)

    with pytest.raises(RuntimeError):
        turns.turn(None)  # type: ignore[arg-type]

    assert deleted == ["records", "counts", "audit"]
    assert turns.due_at > clock.now + 50


def test_for_ever_is_never_due(clock: Clock) -> None:
    turns = Retention(NO_RECORDS, WorkerSettings(), lambda: 1, report)
    turns.begin()
    assert turns.due_at == inf
