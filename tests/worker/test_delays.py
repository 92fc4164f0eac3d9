"""Delayed jobs start when they are due: no notification comes at that time, and no poll is near."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import MetaData, text

from sqlalchemy_bgjob import BGJob, Context, Reschedule, Worker
from sqlalchemy_bgjob.retry import constant
from support import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

LATE = 10.0
"""Seconds of slack for a busy machine; without an appointment it would be the poll interval."""
POLL = 60.0


class Runs:
    """When a handler ran."""

    def __init__(self, engine: Engine) -> None:
        self.times: list[float] = []
        metadata = MetaData()
        self.jobs: BGJob[Any, Any] = BGJob(metadata)
        metadata.create_all(engine)

    def wait(self, number: int) -> list[float]:
        wait_until(lambda: len(self.times) >= number, 20.0, what=f"{number} runs")
        return self.times


@pytest.fixture
def runs(engine: Engine) -> Iterator[Runs]:
    runs = Runs(engine)

    @runs.jobs.handler("retry", queue="q", retry=constant(0.3))
    def retry(ctx: Context) -> None:
        runs.times.append(time.monotonic())
        if len(runs.times) == 1:
            raise ValueError

    @runs.jobs.handler("at once", queue="q", retry=constant(0.0))
    def at_once(ctx: Context) -> None:
        runs.times.append(time.monotonic())
        if len(runs.times) < 4:
            raise ValueError

    @runs.jobs.handler("in its transaction", queue="q")
    def in_its_transaction(ctx: Context) -> Any:
        runs.times.append(time.monotonic())
        ctx.session.execute(text("SELECT 1"))
        return Reschedule(0.3) if len(runs.times) == 1 else None

    @runs.jobs.handler("once", queue="q")
    def once(ctx: Context) -> None:
        runs.times.append(time.monotonic())

    with Worker(runs.jobs, engine, queues={"q": 2}, poll_interval=POLL):
        yield runs


@pytest.mark.parametrize("type", ["retry", "in its transaction"])
def test_a_job_that_this_worker_has_put_off_starts_on_time(
    engine: Engine, runs: Runs, type: str
) -> None:
    with engine.begin() as connection:
        runs.jobs.enqueue(connection, type, queue="q")

    first, second = runs.wait(2)

    assert 0.3 <= second - first < 0.3 + LATE


@pytest.mark.core
def test_a_retry_at_once_is_at_once(engine: Engine, runs: Runs) -> None:
    with engine.begin() as connection:
        runs.jobs.enqueue(connection, "at once", queue="q")

    times = runs.wait(4)

    assert times[-1] - times[0] < LATE


def test_a_job_that_was_enqueued_with_a_delay_starts_on_time(engine: Engine, runs: Runs) -> None:
    with engine.begin() as connection:
        runs.jobs.enqueue(connection, "once", queue="q")
    runs.wait(1)

    before = time.monotonic()
    with engine.begin() as connection:
        runs.jobs.enqueue(connection, "once", queue="q", delay=0.3)

    assert 0.3 <= runs.wait(2)[1] - before < 0.3 + LATE


def test_the_nearest_of_several_delays_comes_first(engine: Engine, runs: Runs) -> None:
    before = time.monotonic()
    with engine.begin() as connection:
        for delay in (50.0, 0.3, 40.0):
            runs.jobs.enqueue(connection, "once", queue="q", delay=delay)

    assert 0.3 <= runs.wait(1)[0] - before < 0.3 + LATE
