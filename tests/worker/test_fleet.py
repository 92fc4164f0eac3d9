"""Many workers that wait for the same queue: a job wakes some of them, and none is missed."""

from __future__ import annotations

import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from sqlalchemy_bgjob import Context, Worker, enqueue, enqueue_many
from sqlalchemy_bgjob._lifecycle import workers
from sqlalchemy_bgjob.testing.points import at
from support import wait_until
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.keeps_tables

RARELY = 60.0
"""A poll interval so long that only a wake-up explains a start."""


class Fleet:
    """Workers in this process, each with a registration of its own."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.jobs = new_queue()
        self.jobs.metadata.create_all(engine)
        self.done: list[str] = []
        self.released = threading.Event()
        self.stack = ExitStack()

        @self.jobs.handler("note", session=False)
        def note(ctx: Context[Any]) -> None:
            self.done.append(ctx.job.id)

        @self.jobs.handler("hold", session=False)
        def hold(ctx: Context[Any]) -> None:
            self.done.append(ctx.job.id)
            self.released.wait(60)

        self.note, self.hold = note, hold

    def start(self, number: int, **options: Any) -> None:
        """Start workers; returns when producers know that all of them wait."""
        options = {"queues": {"default": 2}, "poll_interval": RARELY} | options
        for _ in range(number):
            self.stack.enter_context(Worker(self.jobs, self.engine, **options))
        wait_until(lambda: self.waiting() == number, what="workers that wait")

    def waiting(self) -> int:
        """How many workers producers wake."""
        with self.engine.connect() as connection:
            query = "SELECT count(*) FROM bgjob_worker WHERE waits_for ? 'default'"
            return int(connection.scalar(text(query)) or 0)

    def end(self) -> None:
        self.released.set()
        self.stack.close()


@pytest.fixture
def fleet(engine: Engine) -> Iterator[Fleet]:
    fleet = Fleet(engine)
    yield fleet
    fleet.end()


def test_a_job_costs_few_claims_however_many_workers_wait(fleet: Fleet) -> None:
    number = 12
    claims: list[str] = []
    fleet.start(12)
    with at("claiming", claims.append):
        # After the announcement come polls that are ever more rare.
        wait_until(lambda: none_for_a_while(claims), what="the end of the polls after the start")
        claims.clear()
        for n in range(number):
            enqueue(fleet.engine, fleet.note)
            wait_until(lambda n=n: len(fleet.done) == n + 1, what="the job")
            time.sleep(0.5)  # a job that follows at once finds workers at work
        wait_until(lambda: none_for_a_while(claims), what="the end of the claims")

    print(f"{len(claims) / number:.1f} claims a job")
    # Two look, each once, unless it has just looked at the head. All twelve would be 144.
    assert len(claims) <= 3 * number


def none_for_a_while(claims: list[str]) -> bool:
    """Whether no worker claims for two seconds."""
    before = len(claims)
    time.sleep(2.0)
    return len(claims) == before


def test_many_jobs_of_a_transaction_get_all_workers_to_work(fleet: Fleet) -> None:
    """It wakes two; each that has its hands full wakes another."""
    fleet.start(6)

    enqueue_many(fleet.engine, fleet.hold, [None] * 12)

    wait_until(lambda: len(fleet.done) == 12, what="starts in all slots of all workers")


def test_a_job_finds_the_one_worker_with_a_free_slot(fleet: Fleet) -> None:
    fleet.start(6)
    enqueue_many(fleet.engine, fleet.hold, [None] * 11)
    wait_until(lambda: len(fleet.done) == 11, what="a single slot that is free")

    last = enqueue(fleet.engine, fleet.note)

    wait_until(lambda: last.id in fleet.done, what="the job in that slot")


def test_a_job_that_woke_only_workers_that_had_died_starts(fleet: Fleet) -> None:
    """They are found lost within seconds; those who live are told to look then."""
    fleet.start(1)
    with fleet.engine.begin() as connection:
        started = "pg_postmaster_start_time() + interval '1 hour'"
        connection.execute(
            text(
                "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout,"
                " waits_for, listener_pid, listener_started_at)"
                f" SELECT n, 'h', 1, '0', '{{}}', 30, '[\"default\"]', 2147483647, {started}"
                " FROM generate_series(1, 30) AS n"
            )
        )
    jobs = [enqueue(fleet.engine, fleet.note).id for _ in range(5)]

    wait_until(lambda: set(jobs) <= set(fleet.done), what="all jobs, long before a poll")
    wait_until(lambda: fleet.waiting() == 1, what="the end of the dead")


def test_a_worker_that_drains_is_woken_no_more(fleet: Fleet) -> None:
    with Worker(fleet.jobs, fleet.engine, queues={"default": 2}, poll_interval=RARELY) as ending:
        enqueue(fleet.engine, fleet.hold)
        wait_until(lambda: fleet.done and fleet.waiting() == 1, what="a worker with a free slot")

        ending.request_stop(60)

        wait_until(lambda: fleet.waiting() == 0, what="a worker that waits no more")
        assert not fleet.released.is_set(), "its job still runs"
        fleet.released.set()


def test_a_lost_connection_does_not_end_the_chain(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    failures: list[int] = []

    def fail_once(*args: Any, **options: Any) -> None:
        if not failures:
            failures.append(1)
            lost = "the connection is lost"
            raise OperationalError(lost, None, Exception(), connection_invalidated=True)
        pass_on(*args, **options)

    pass_on = workers.pass_on
    monkeypatch.setattr(workers, "pass_on", fail_once)
    fleet.start(6)

    enqueue_many(fleet.engine, fleet.hold, [None] * 12)

    wait_until(lambda: len(fleet.done) == 12, what="starts in all slots of all workers")
    assert failures
