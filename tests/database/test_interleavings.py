"""Two operations at once: whatever one does in the middle of the other, it is as if one came first.

Each pair of operations runs on two connections. The first is stopped before each of its statements
and before its COMMIT in turn; then the second one runs, as far as locks let it, and then the first
goes on. The answers and the rows must be those of one of the two serial orders.
"""

from __future__ import annotations

import functools
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import combinations_with_replacement
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import MetaData, event, text

from sqlalchemy_bgjob import BGJob, Unique, enqueue_many
from sqlalchemy_bgjob._handlers.outcomes import COMPLETED, HAND_BACK, Kind, Settlement
from sqlalchemy_bgjob._handlers.timetable import due, timetable
from sqlalchemy_bgjob._lifecycle import rescue, settle
from sqlalchemy_bgjob._lifecycle import workers as worker_rows
from sqlalchemy_bgjob._lifecycle.fire import Serves, fire, look_at_schedules
from sqlalchemy_bgjob._lifecycle.settle import Fate, Pending
from sqlalchemy_bgjob._lifecycle.unknown_claims import return_unknown_claims
from sqlalchemy_bgjob._sql import statements_of
from support import wait_until
from support.rows import claim as claim_now
from support.tables import new_engine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob
    from support.databases import TestServer

SILENT, JUDGE, THIRD = 11, 22, 33
SCENE = """
    DELETE FROM bgjob_job; DELETE FROM bgjob_dead_job; DELETE FROM bgjob_worker;
    DELETE FROM bgjob_schedule;
    INSERT INTO bgjob_schedule (name, source, type, queue, arg, cron, next_at)
    VALUES ('s', 'data', 't', 'q', '"old"', '@yearly', '2020-01-01 00:00:00+00');
    DELETE FROM bgjob_control;
    INSERT INTO bgjob_control (queue, paused_at, slots) VALUES ('both', now(), 3);
    INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout, beat_at) VALUES
      (11, 'host', 1, '0', '{}', 30, now()),
      (22, 'host', 1, '0', '{}', 30, now()),
      (33, 'host', 1, '0', '{}', 30, now());
    INSERT INTO bgjob_job (id, queue, type, lease, unique_key)
    VALUES ('running', 'q', 't', 1000, 'l:running');
    INSERT INTO bgjob_dead_job
      (id, job_id, queue, type, lease, next_run_at, job_created_at, job_updated_at, moved_at,
       unique_key)
    VALUES
      ('d1', 'dead', 'q', 't', 2000, now(), now(), now(), now() - interval '1 hour', 'l:dead'),
      ('d2', 'dead', 'q', 't', 3000, now(), now(), now(), now() - interval '2 hours', 'l:dead');
"""
QUEUED = (
    "INSERT INTO bgjob_job (id, queue, type, lease, unique_key)"
    " VALUES ('queued', 'q', 't', 4000, 'q:queued')"
)
KEYS = [Unique("queued", "queued"), Unique("running"), Unique("dead")]
SILENCE = "UPDATE bgjob_worker SET beat_at = now() - interval '60 s' WHERE id = 11"


class Taken(list[str]):
    """What was claimed by a worker that will look again for what it has passed by."""


class Stage:
    """The tables as each run finds them, and the operations on them."""

    def __init__(self, jobs: BGJob[Any, Any], engine: Engine) -> None:
        self.jobs, self.engine = jobs, engine
        self.handler: Any = jobs.handler("same", queue="q")(lambda ctx, arg: None)
        self.statements = statements_of(jobs.models)
        self.held: list[ClaimedJob] = []

    def set(self) -> None:
        """One job runs, one is queued, and one died twice; its worker is silent."""
        with self.engine.begin() as connection:
            connection.execute(text(SCENE))
        with self.engine.connect() as connection:
            self.held = claim_now(connection, self.statements, worker_id=SILENT)
        assert [job.id for job in self.held] == ["running"]
        with self.engine.begin() as connection:
            connection.execute(text(QUEUED))
            connection.execute(text(SILENCE))

    # ---- operations ---------------------------------------------------------------------------

    def claim(self, connection: Connection) -> Any:
        claimed = claim_now(connection, self.statements, worker_id=THIRD)
        return sorted(job.id for job in claimed)

    def take(self, connection: Connection) -> Any:
        return Taken(self.claim(connection))

    def same(self, connection: Connection) -> Any:
        """Enqueue jobs with the unique keys of all the others."""
        new = [f"new-{n}" for n in range(len(KEYS))]
        with connection.begin():
            return enqueue_many(
                connection,
                self.handler,
                list(range(len(KEYS))),
                ids=new,
                unique=KEYS.__getitem__,
                on_conflict="ignore",
            )

    def beat(self, connection: Connection) -> Any:
        gap = worker_rows.beat(connection, self.statements, worker_id=SILENT, listener=None)
        return gap is not None

    def _settle(self, connection: Connection, settlement: Settlement) -> Any:
        items = [Pending(job, settlement) for job in self.held]
        return settle.settle(connection, self.statements, items)

    def complete(self, connection: Connection) -> Any:
        return self._settle(connection, COMPLETED)

    def retry(self, connection: Connection) -> Any:
        return self._settle(connection, Settlement(Kind.RETRY, delay=0.0, error="failed"))

    def bury(self, connection: Connection) -> Any:
        return self._settle(connection, Settlement(Kind.DEAD, error="given up"))

    def hand_back(self, connection: Connection) -> Any:
        return self._settle(connection, HAND_BACK)

    def reconcile(self, connection: Connection) -> Any:
        return return_unknown_claims(connection, self.statements, worker_id=SILENT, known=())

    def rescue(self, connection: Connection) -> Any:
        return rescue.rescue_silent(connection, self.statements, judge=JUDGE, connected=1000.0)

    def cancel(self, connection: Connection) -> Any:
        """What is queued, and what runs."""
        with connection.begin():
            return self.jobs.cancel_where(connection, self.jobs.Job.type == "t")

    def redrive(self, connection: Connection) -> Any:
        with connection.begin():
            return self.jobs.redrive(connection, self.jobs.DeadJob.job_id == "dead")

    def prune(self, connection: Connection) -> Any:
        with connection.begin():
            return self.jobs.prune(connection, 1800)

    def fire(self, connection: Connection) -> Any:
        """As a worker does: look, and fire what is due."""
        serves = Serves([], ["q"], ["t"], [])
        fired = [
            fire(
                connection,
                self.statements,
                it,
                due(timetable(it.cron, it.timezone), it.next_at, it.now, it.missed),
            )
            for it in look_at_schedules(connection, self.statements, serves)
            if it.next_at <= it.now
        ]
        return {"fired": any(fired)}

    def put(self, connection: Connection) -> Any:
        with connection.begin():
            handler = self.jobs.registry.find_type("t")
            assert handler is not None
            next_at = self.jobs.schedules.put(connection, "s", handler, "new", cron="@yearly")
        return next_at and next_at > datetime.now(UTC)

    def pause(self, connection: Connection) -> Any:
        with connection.begin():
            return self.jobs.schedules.pause(connection, "s")

    def remove(self, connection: Connection) -> Any:
        with connection.begin():
            return self.jobs.schedules.remove(connection, "s")

    def pause_queue(self, connection: Connection) -> Any:
        with connection.begin():
            return [self.jobs.pause(connection, queue, by="ada") for queue in ("both", "none")]

    def resume_queue(self, connection: Connection) -> Any:
        with connection.begin():
            return [self.jobs.resume(connection, queue) for queue in ("both", "none")]

    def set_slots(self, connection: Connection) -> Any:
        with connection.begin():
            return [self.jobs.set_slots(connection, queue, 7) for queue in ("both", "none")]

    def unset_slots(self, connection: Connection) -> Any:
        with connection.begin():
            return [self.jobs.set_slots(connection, queue, None) for queue in ("both", "none")]

    # ---- what came of it ------------------------------------------------------------------------

    def settle_down(self, name: str, answer: Any) -> Any:
        """What was locked meanwhile is tried again, as a worker does."""
        if answer == {"fired": False}:
            with self.engine.connect() as connection:
                return self.fire(connection)
        if name == "reconcile":
            with self.engine.connect() as connection:
                return answer + self.reconcile(connection)
        if name == "rescue":
            with self.engine.connect() as connection:
                rest = rescue.rescue_rest(connection, self.statements)
            return sum(worker.jobs for worker in (*answer, *rest)), bool(answer)
        if isinstance(answer, Taken):
            with self.engine.connect() as connection:
                return sorted([*answer, *self.claim(connection)])
        if not (isinstance(answer, list) and answer and isinstance(answer[0], tuple)):
            return answer
        with self.engine.connect() as connection:
            return [
                fate
                if fate is not Fate.LOCKED
                else settle.settle(connection, self.statements, [item])[0][1]
                for item, fate in answer
            ]

    def rows(self) -> Any:
        with self.engine.connect() as connection:
            rescue.rescue_rest(connection, self.statements)
            jobs = connection.execute(
                text(
                    # A redriven job's lease is the clock's.
                    "SELECT CASE WHEN headers ? 'bgjob-schedule' THEN 'fired' ELSE id END,"
                    " CASE WHEN lease < 10000 THEN lease END, claimed_by, attempt, crashes,"
                    " split_part(last_error, ':', 1), arg, cancel_at IS NOT NULL, unique_key"
                    " FROM bgjob_job ORDER BY id"
                )
            ).all()
            dead = connection.execute(
                text(
                    "SELECT job_id, lease, last_error, unique_key FROM bgjob_dead_job"
                    " ORDER BY job_id, lease"
                )
            ).all()
            workers = connection.execute(
                text("SELECT id, now() - beat_at < interval '30 s' FROM bgjob_worker ORDER BY id")
            ).all()
            schedules = connection.execute(
                text("SELECT name, arg, paused_at IS NULL, next_at < now() FROM bgjob_schedule")
            ).all()
            controls = connection.execute(
                text(
                    "SELECT queue, paused_at IS NOT NULL, paused_by, slots FROM bgjob_control"
                    " ORDER BY queue"
                )
            ).all()
        return jobs, dead, workers, schedules, controls


OPERATIONS = (
    "claim",
    "beat",
    "complete",
    "retry",
    "bury",
    "hand_back",
    "reconcile",
    "rescue",
    "cancel",
    "redrive",
    "prune",
    "same",
)
OF_SCHEDULES = ("fire", "put", "pause", "remove")
CONTROLS = ("pause_queue", "resume_queue", "set_slots", "unset_slots")
PAIRS = [
    *combinations_with_replacement(OPERATIONS, 2),
    *combinations_with_replacement(OF_SCHEDULES, 2),
    *combinations_with_replacement(CONTROLS, 2),
]
# Who is told of a job locks it, and a claim passes it by until the next one.
PAIRS[PAIRS.index(("claim", "same"))] = ("take", "same")


@dataclass
class Stopper:
    """Lets a connection's statements pass until it has come to the one where it is to stop."""

    at: int | None = None
    seen: int = 0
    pid: int | None = None
    stopped: threading.Event = field(default_factory=threading.Event)
    go_on: threading.Event = field(default_factory=threading.Event)

    def pass_by(self, *_: Any) -> None:
        if self.seen == self.at:
            self.stopped.set()
            assert self.go_on.wait(20)
        self.seen += 1


def run(engine: Engine, operation: Callable[[Connection], Any], stopper: Stopper) -> Any:
    try:
        with engine.connect() as connection:
            stopper.pid = connection.execute(text("SELECT pg_backend_pid()")).scalar_one()
            connection.rollback()
            event.listen(connection, "before_cursor_execute", stopper.pass_by)
            event.listen(connection, "commit", stopper.pass_by)
            return operation(connection)
    finally:
        stopper.stopped.set()


def act(stage: Stage, first: str, second: str, at: int | None) -> tuple[Any, int]:
    """What comes of *second* in the middle of *first*, and how many places there are to stop.

    With None, it comes after it.
    """
    stage.set()
    one, two = Stopper(at=at), Stopper()
    with ThreadPoolExecutor(2) as pool:
        future_one = pool.submit(run, stage.engine, getattr(stage, first), one)
        if at is None:
            future_one.result(20)
        assert one.stopped.wait(20)
        future_two = pool.submit(run, stage.engine, getattr(stage, second), two)
        wait_until(lambda: future_two.done() or waits(stage.engine, two.pid), 20)
        one.go_on.set()
        answers = [future_one.result(20), future_two.result(20)]
    settled = [
        stage.settle_down(name, answer)
        for name, answer in zip((first, second), answers, strict=True)
    ]
    return (settled, stage.rows()), one.seen


@functools.cache
def one_by_one(stage: Stage, first: str, second: str) -> tuple[Any, int]:
    """What comes of them in this order, and how many places there are to stop in the first."""
    return act(stage, first, second, None)


def waits(engine: Engine, pid: int | None) -> bool:
    with engine.connect() as connection:
        return bool(
            connection.execute(
                text("SELECT cardinality(pg_blocking_pids(:pid))"), {"pid": pid or 0}
            ).scalar_one()
        )


@pytest.fixture(scope="module")
def stage(server: TestServer) -> Iterator[Stage]:
    with new_engine(server) as engine:
        jobs: BGJob[Any, Any] = BGJob(MetaData())
        jobs.metadata.create_all(engine)

        @jobs.handler("t", queue="q")
        def handle(ctx: Any, arg: str) -> None: ...

        yield Stage(jobs, engine)


@pytest.mark.parametrize(("first", "second"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_it_is_as_if_one_came_first(stage: Stage, first: str, second: str) -> None:
    """Both ways round, and at each place."""
    for outer, inner in dict.fromkeys([(first, second), (second, first)]):
        forth, places = one_by_one(stage, outer, inner)
        (back_answers, back_rows), _ = one_by_one(stage, inner, outer)
        serial = [forth, (back_answers[::-1], back_rows)]
        assert places >= 1
        for at in range(places):
            came, _ = act(stage, outer, inner, at)
            assert came in serial, f"{inner} before step {at} of {outer}"
