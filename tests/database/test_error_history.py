"""The history of a job's errors: what is an entry, how many are kept, and who may read it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import PastError
from sqlalchemy_bgjob._handlers.outcomes import (
    COMPLETED,
    HAND_BACK,
    INTERRUPTED,
    Kind,
    Settlement,
    crashed_too_often,
)
from sqlalchemy_bgjob._lifecycle import rescue, workers
from sqlalchemy_bgjob._lifecycle.settle import Fate
from sqlalchemy_bgjob._sql import Statements
from support.queue import Queue
from support.rows import ME, claim, make_tables, pending

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from sqlalchemy_bgjob.models import Models

pytestmark = [pytest.mark.core, pytest.mark.keeps_tables]


@pytest.fixture
def models(engine: Engine) -> Models:
    return make_tables(engine)


@pytest.fixture
def queue(engine: Engine, models: Models) -> Iterator[Queue]:
    with engine.connect() as connection:
        yield Queue(engine, Statements(models), connection)


def retry(error: str | None) -> Settlement:
    return Settlement(Kind.RETRY, delay=0.0, error=error)


def fail(queue: Queue, settlement: Settlement, id: str = "a") -> None:
    """One attempt of the job."""
    (job,) = [job for job in claim(queue.connection, queue.statements) if job.id == id]
    assert queue.settle(pending([job], settlement)) == {id: Fate.SETTLED}


def live(models: Models, engine: Engine, id: str = "a") -> Any:
    with Session(engine) as session:
        return session.get_one(models.Job, id)


def dead(models: Models, engine: Engine) -> Any:
    with Session(engine) as session:
        return session.scalars(select(models.DeadJob)).one()


def told(row: Any) -> list[tuple[int, str]]:
    return [(entry.attempt, entry.error) for entry in row.error_history]


def test_each_failed_attempt_is_an_entry(queue: Queue, models: Models) -> None:
    queue.put("a")
    began = datetime.now(UTC) - timedelta(seconds=5)

    fail(queue, retry("ValueError: 1"))
    fail(queue, retry("ValueError: 2"))

    job = live(models, queue.engine)
    assert told(job) == [(1, "ValueError: 1"), (2, "ValueError: 2")]
    assert [entry.worker_id for entry in job.error_history] == [ME, ME]
    first, second = (entry.at for entry in job.error_history)
    assert began < first < second < datetime.now(UTC) + timedelta(seconds=5)

    fail(queue, Settlement(Kind.DEAD, error="KeyError: 3"))
    assert told(dead(models, queue.engine)) == [*told(job), (3, "KeyError: 3")]


def test_what_does_not_count_is_no_entry(queue: Queue, models: Models) -> None:
    """And the job that never failed has null, as the hot path leaves it."""
    queue.put("a")
    put_off = Settlement(Kind.RESCHEDULED, delay=0.0, error="no connection", refund_attempt=True)
    waits = Settlement(Kind.UNKNOWN_TYPE, delay=0.0, keep_error=True, refund_attempt=True)

    for settlement in (HAND_BACK, INTERRUPTED, put_off, waits, retry(None)):
        fail(queue, settlement)
        assert queue.execute("SELECT errors IS NULL FROM bgjob_job"), settlement

    fail(queue, retry("x"))
    for settlement in (HAND_BACK, INTERRUPTED, put_off, waits, retry(None)):
        fail(queue, settlement)
        assert told(live(models, queue.engine)) == [(2, "x")]


def test_a_completed_job_writes_no_history(queue: Queue, models: Models) -> None:
    for settle in (queue.statements.settle.complete_one, queue.statements.settle.complete):
        assert "errors" not in str(settle)
    assert "errors" not in str(queue.statements.claim.onward)
    queue.put("a")
    fail(queue, COMPLETED)


def test_the_first_and_the_last_nine_are_kept(queue: Queue, models: Models) -> None:
    queue.put("a")
    for n in range(1, 16):
        fail(queue, retry(f"E: {n}"))

    kept = [1, *range(7, 16)]
    assert told(live(models, queue.engine)) == [(n, f"E: {n}") for n in kept]

    fail(queue, Settlement(Kind.DEAD, error="E: 16"))
    assert [attempt for attempt, _ in told(dead(models, queue.engine))] == [1, *range(8, 17)]


def test_a_long_error_loses_its_middle(queue: Queue, models: Models) -> None:
    """By characters, whatever they are: quotes, backslashes and others that JSON escapes."""
    long = 'Begin: "\\\n' + "é" * 5_000 + '"\t end'
    queue.put("a")

    fail(queue, retry(long))

    ((_, error),) = told(live(models, queue.engine))
    assert len(error) <= 2_048
    assert error.startswith('Begin: "\\\n')
    assert error.endswith('"\t end')
    assert "\n... cut ...\n" in error
    assert live(models, queue.engine).last_error == long


@pytest.mark.parametrize("value", ["null", "{}", "7", '"x"', '[1, {}, {"at": 7}]'])
def test_what_sql_has_written_there_is_no_trouble(queue: Queue, models: Models, value: str) -> None:
    """Neither for the settlement, nor for who reads it."""
    queue.put("a")
    queue.execute("UPDATE bgjob_job SET errors = CAST(:value AS jsonb)", value=value)
    assert told(live(models, queue.engine)) == []

    fail(queue, retry("x"))

    assert told(live(models, queue.engine)) == [(1, "x")]


def test_a_lost_worker_is_an_entry(queue: Queue, models: Models) -> None:
    """Of a rescue, and of the burial of a job that took workers along."""
    queue.put("a", last_error="before")
    register(queue, 815)
    claim(queue.connection, queue.statements, worker_id=815)
    queue.execute("UPDATE bgjob_worker SET lost_at = now()")

    rescue.rescue_rest(queue.connection, queue.statements)

    job = live(models, queue.engine)
    (entry,) = job.error_history
    assert (entry.attempt, entry.worker_id) == (1, 815)
    assert entry.error == job.last_error
    assert job.error_type == "WorkerLost"

    (claimed,) = claim(queue.connection, queue.statements)
    poison = crashed_too_often(2, 1, 1, claimed.last_error)
    assert poison is not None
    queue.settle(pending([claimed], poison))
    (first, second) = told(dead(models, queue.engine))
    assert first == (1, entry.error)
    assert second[0] == 1, "it has not run"
    assert second[1].startswith("WorkerLost: 1 of 1 attempts ended")


def test_a_refused_settlement_is_an_entry(queue: Queue, models: Models) -> None:
    """Of a worker that ends: with what last_error says, and where it says nothing, as a crash."""
    queue.put("a", "b")
    register(queue, ME)
    claimed = claim(queue.connection, queue.statements)
    queue.execute("UPDATE bgjob_job SET last_error = 'the trigger' WHERE id = 'a'")

    workers.unregister(queue.connection, queue.statements, worker_id=ME, refused=claimed)

    assert told(live(models, queue.engine)) == [(1, "the trigger")]
    ((_, error),) = told(live(models, queue.engine, "b"))
    assert error.startswith("WorkerLost")


def register(queue: Queue, id: int) -> None:
    workers.register(
        queue.connection,
        queue.statements,
        worker_id=id,
        hostname="h",
        pid=1,
        version="0",
        queues={"q": 1},
        lease_timeout=30.0,
    )


def test_the_time_is_read_in_any_time_zone(queue: Queue, models: Models) -> None:
    queue.put("a")
    for zone in ("Asia/Kolkata", "America/St_Johns"):
        with queue.connection.begin():
            queue.connection.execute(text(f"SET TIME ZONE '{zone}'"))
        fail(queue, retry(zone))
    queue.connection.invalidate()

    entries = live(models, queue.engine).error_history
    assert len(entries) == 2
    assert all(abs(entry.at - datetime.now(UTC)) < timedelta(minutes=1) for entry in entries)
    assert entries[0] == PastError(entries[0].at, 1, ME, "Asia/Kolkata")
