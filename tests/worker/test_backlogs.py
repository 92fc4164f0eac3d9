"""Beside a backlog nothing that goes before it, or that was committed late, waits for long."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text

from sqlalchemy_bgjob import Context, Worker, enqueue, enqueue_many
from sqlalchemy_bgjob._worker.plan.lanes import (
    SCAN_AT_LEAST_EVERY,
)
from support import wait_until
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Backlog:
    """A worker that has a minute of work before it, and when it began what."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.begun: dict[str, float] = {}
        self.jobs = new_queue()
        self.jobs.metadata.create_all(engine)

        @self.jobs.handler("short", session=False)
        def short(ctx: Context[Any]) -> None:
            self.begun[ctx.job.id] = time.monotonic()
            time.sleep(0.01)

        self.short = short
        enqueue_many(engine, short, [None] * 6_000)

    def begins(self, id: str) -> float:
        """Seconds until a job began, from now on."""
        since = time.monotonic()
        return wait_until(lambda: self.begun.get(id), 20, what=id) - since


@pytest.fixture
def backlog(engine: Engine) -> Iterator[Backlog]:
    backlog = Backlog(engine)
    with Worker(backlog.jobs, engine, queues={"default": 2}, poll_interval=30.0):
        wait_until(lambda: len(backlog.begun) > 100, what="a hundred jobs")
        yield backlog
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM bgjob_job WHERE claimed_by IS NULL"))


def put_by_hand(backlog: Backlog) -> None:
    with backlog.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_job (id, queue, type, next_run_at)"
                " VALUES ('new', 'default', 'short', now() - interval '1 hour')"
            )
        )


@pytest.mark.parametrize(
    "put",
    [
        lambda backlog: enqueue(backlog.engine, backlog.short, id="new", priority=-1),
        put_by_hand,
    ],
    ids=["a priority that is new", "due long before the others"],
)
def test_what_goes_before_a_backlog_is_found_within_seconds(
    backlog: Backlog, put: Callable[[Backlog], None]
) -> None:
    put(backlog)
    assert backlog.begins("new") < SCAN_AT_LEAST_EVERY + 2.0


def test_what_is_committed_late_is_found_within_seconds(backlog: Backlog) -> None:
    """Its time is that of its transaction's begin, which the worker has passed since."""
    with backlog.engine.connect() as connection:
        enqueue(connection, backlog.short, id="early")
        with backlog.engine.begin() as other:
            other.execute(text("UPDATE bgjob_job SET next_run_at = now() WHERE claimed_by IS NULL"))
        done = len(backlog.begun)
        wait_until(lambda: len(backlog.begun) > done + 300, what="what comes after it")
        connection.commit()
        assert backlog.begins("early") < SCAN_AT_LEAST_EVERY + 2.0


@pytest.mark.core
def test_a_retry_finds_its_way_back_into_a_backlog(engine: Engine) -> None:
    """It is due in a moment, and then comes before what was enqueued later."""
    backlog = Backlog(engine)
    tries: list[float] = []

    @backlog.jobs.handler("fails", session=False, retry=lambda attempt, error: 0.5)
    def fails(ctx: Context[Any]) -> None:
        tries.append(time.monotonic())
        if len(tries) == 1:
            raise LookupError

    enqueue(engine, fails, priority=-1)
    with Worker(backlog.jobs, engine, queues={"default": 2}, poll_interval=30.0):
        wait_until(lambda: len(tries) == 2, 20, what="the second try")
        assert len(backlog.begun) < 6_000
        with engine.begin() as connection:
            connection.execute(text("DELETE FROM bgjob_job WHERE claimed_by IS NULL"))
    assert tries[1] - tries[0] < SCAN_AT_LEAST_EVERY + 2.0
