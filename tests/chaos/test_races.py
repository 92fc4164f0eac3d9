"""All that changes rows, at the same time: no deadlock, nothing lost and nothing done twice."""

from __future__ import annotations

import random
import threading
import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Column, MetaData, Table, Text, create_engine, func, select, text, true
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import BGJob, Context, Observer, Retry, Worker, enqueue, enqueue_many
from sqlalchemy_bgjob._db.errors import sqlstate
from support import wait_until
from support.processes import ASYNC, THREADS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Engine

    from support.processes import Fleet

# A lease that outlasts a busy machine: only workers that never lived are to be rescued.
FAST: Any = {"heartbeat_interval": 0.1, "lease_timeout": 5.0, "rescue_interval": 0.1}
FAST |= {"poll_interval": 0.05, "orphan_interval": 0.2}
REGISTER = text(
    "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout, beat_at)"
    " VALUES (:id, 'h', 1, '0', '{}', 1, now() - interval '1 minute')"
)
CLAIM = text(
    "WITH few AS (SELECT id FROM bgjob_job WHERE claimed_by IS NULL LIMIT 3"
    " FOR NO KEY UPDATE SKIP LOCKED)"
    " UPDATE bgjob_job SET claimed_by = :id, lease = lease + 1, attempt = attempt + 1"
    " WHERE id IN (SELECT id FROM few)"
)
HURRY = text(
    "UPDATE bgjob_job SET next_run_at = now(), crashes = 0"
    " WHERE id IN (SELECT id FROM bgjob_job WHERE claimed_by IS NULL FOR UPDATE SKIP LOCKED)"
)


@pytest.mark.timeout(300)
@pytest.mark.parametrize(
    ("variant", "count"),
    [
        (THREADS, 200),
        pytest.param(THREADS, 2_000, marks=pytest.mark.chaos),
        pytest.param(ASYNC, 2_000, marks=pytest.mark.chaos),
    ],
    ids=str,
)
def test_what_is_rolled_back_is_never_started(fleet: Fleet, count: int) -> None:
    """Transactions and savepoints that end at random, while a worker waits for what they leave."""
    seed = 7 if count < 1_000 else random.randrange(2**32)
    print(f"seed {seed}")
    dice = random.Random(seed)
    process = fleet.start()
    committed: set[str] = set()
    rolled_back: set[str] = set()

    for n in range(count):
        inside: set[str] = set()
        with Session(fleet.engine) as session:
            for part in range(dice.randrange(1, 4)):
                job_id = f"job-{n:05}-{part}"
                savepoint = session.begin_nested() if dice.random() < 0.5 else None
                enqueue(session, fleet.app.effect, id=job_id)
                if savepoint is not None and dice.random() < 0.5:
                    savepoint.rollback()
                    rolled_back.add(job_id)
                else:
                    inside.add(job_id)
            with suppress(ZeroDivisionError):
                if (end := dice.random()) < 0.6:
                    session.commit()
                    committed |= inside
                    continue
                if end < 0.8:
                    raise ZeroDivisionError
                session.rollback()
            rolled_back |= inside
    fleet.wait_until_done(60)

    assert process.alive
    assert len(committed) > count / 2
    assert len(rolled_back) > count / 2
    assert set(fleet.journal.starts()) == committed
    problems = fleet.problems(committed, with_effects=committed, rolled_back=rolled_back)
    assert problems == []


class Errors(Observer):
    """The SQLSTATEs of what went wrong."""

    def __init__(self) -> None:
        self.states: Counter[str | None] = Counter()

    def worker_error(self, error: BaseException) -> None:
        self.states[sqlstate(error)] += 1


class Arena:
    """A queue, and threads that each do one thing to it over and over."""

    def __init__(self, engine: Engine, seed: int) -> None:
        self.engine = engine
        metadata = MetaData()
        self.jobs: BGJob[Any, Any] = BGJob(metadata)
        self.effect = Table("effect", metadata, Column("job_id", Text, nullable=False))
        self.seed = seed
        self.done: Counter[str] = Counter()
        self.failures: list[BaseException] = []
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []

        @self.jobs.handler("mixed", max_attempts=2)
        def mixed(ctx: Context[Any], number: int) -> Any:
            if number % 3:
                ctx.session.execute(self.effect.insert().values(job_id=ctx.job.id))
            return Retry(0.01, "again") if number % 5 == 0 else None

        self.handler = mixed
        metadata.create_all(engine)

    def again_and_again(self, name: str, action: Callable[[random.Random], Any]) -> None:
        def run() -> None:
            dice = random.Random(f"{self.seed} {name}")
            while not self._stopping.is_set() and not self.failures:
                try:
                    action(dice)
                    self.done[name] += 1
                except BaseException as error:
                    self.failures.append(error)
                self._stopping.wait(dice.random() * 0.01)

        self._threads.append(threading.Thread(target=run, name=name))
        self._threads[-1].start()

    def stop(self) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(30)

    def count(self, what: Any) -> int:
        with self.engine.connect() as connection:
            return connection.scalar(select(func.count()).select_from(what)) or 0


@pytest.mark.timeout(300)
@pytest.mark.parametrize("seconds", [2.0, pytest.param(60.0, marks=pytest.mark.chaos)])
def test_changes_of_rows_at_the_same_time_never_deadlock(
    engine: Engine, database_url: str, seconds: float
) -> None:
    """Claims, settlements, rescues, redrives, cancels, prunes and enqueues of the same ids."""
    seed = 7 if seconds < 10 else random.randrange(2**32)
    print(f"seed {seed}")
    arena = Arena(engine, seed)
    jobs, ids = arena.jobs, [f"{n:02}" for n in range(40)]
    producers = create_engine(database_url, pool_size=10)
    errors = Errors()
    lost = 0

    def enqueue_some(dice: random.Random) -> None:
        own = dice.sample(ids, 20)
        numbers = [dice.randrange(30) for _ in own]
        enqueue_many(producers, arena.handler, numbers, ids=own, on_conflict="ignore")

    def die(dice: random.Random) -> None:
        """As a worker that claimed some jobs a minute ago, and was never heard of again."""
        nonlocal lost
        worker_id = dice.randrange(2**40)
        with producers.begin() as connection:
            connection.execute(REGISTER, {"id": worker_id})
            lost += connection.execute(CLAIM, {"id": worker_id}).rowcount

    def enough() -> bool:
        """Each had its turns, handlers wrote, and there was something to rescue."""
        turns = len(arena.done) == 9 and min(arena.done.values()) >= 5
        return turns and lost > 5 and arena.count(arena.effect) > 0

    def all_done() -> bool:
        with producers.begin() as connection:  # what has crashed may wait for a minute
            connection.execute(HURRY)
        return arena.count(jobs.Job) == 0

    with producers.connect() as connection:
        deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()"
        before = connection.scalar(text(deadlocks))
    engines = [create_engine(database_url, pool_size=8) for _ in range(2)]
    workers = [
        Worker(jobs, one, queues={"default": 5}, observers=[errors], **FAST) for one in engines
    ]
    for worker in workers:
        worker.start()
    for n in range(2):
        arena.again_and_again(f"enqueue {n}", enqueue_some)
        arena.again_and_again(f"prune {n}", lambda _: jobs.prune(producers, 0, limit=5))
        arena.again_and_again(f"redrive {n}", lambda _: jobs.redrive(producers, true(), limit=5))
        arena.again_and_again(f"cancel {n}", lambda dice: jobs.cancel(producers, dice.choice(ids)))
    arena.again_and_again("die", die)
    begun = time.monotonic()
    wait_until(
        lambda: arena.failures or (time.monotonic() - begun > seconds and enough()),
        seconds + 60,
        what="the end, and enough of all",
    )
    arena.stop()
    wait_until(all_done, 60, what="the end of all jobs")
    for worker in workers:
        worker.stop()

    print(dict(arena.done), f"{lost} jobs lost", dict(errors.states))
    assert arena.failures == []
    assert errors.states == {}
    with producers.connect() as connection:
        assert connection.scalar(text(deadlocks)) == before
    for one in (*engines, producers):
        one.dispose()
