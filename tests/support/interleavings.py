"""One operation in the middle of another: stopped before each of its statements and its COMMIT.

Each pair of operations runs on two connections. The first is stopped at one place after the other;
then the second one runs, as far as locks let it, and then the first goes on. The answers and the
rows must be those of one of the two serial orders.
"""

from __future__ import annotations

import functools
import threading
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import BigInteger, Column, Identity, MetaData, Table, Text, event, text

from sqlalchemy_bgjob import BGJob
from sqlalchemy_bgjob._lifecycle import settle
from sqlalchemy_bgjob._lifecycle.settle import Fate
from sqlalchemy_bgjob._sql import statements_of
from support.rows import claim as claim_now
from support.tables import new_engine
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Connection, Engine

    from sqlalchemy_bgjob import JobType
    from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob
    from support.databases import TestServer

SILENT, JUDGE, THIRD = 11, 22, 33
_EMPTY = """
    DELETE FROM bgjob_job; DELETE FROM bgjob_dead_job; DELETE FROM bgjob_worker;
    DELETE FROM bgjob_schedule; DELETE FROM bgjob_control; DELETE FROM bgjob_unique_period;
    DELETE FROM bgjob_batch; DELETE FROM change;
"""
_RUNNING = """
    INSERT INTO bgjob_job (id, queue, type, lease, unique_key)
    VALUES ('running', 'q', 't', 1000, 'l:running');
"""
_OTHERS = """
    INSERT INTO bgjob_dead_job
      (id, job_id, queue, type, lease, next_run_at, job_created_at, job_updated_at, moved_at,
       unique_key)
    VALUES
      ('d1', 'dead', 'q', 't', 2000, now(), now(), now(), now() - interval '1 hour', 'l:dead'),
      ('d2', 'dead', 'q', 't', 3000, now(), now(), now(), now() - interval '2 hours', 'l:dead');
    INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout, beat_at) VALUES
      (11, 'host', 1, '0', '{}', 30, now() - interval '60 s'),
      (22, 'host', 1, '0', '{}', 30, now()),
      (33, 'host', 1, '0', '{}', 30, now());
    INSERT INTO bgjob_schedule (name, source, type, queue, arg, cron, next_at, paused_at) VALUES
      ('code', 'code', 't', 'q', '"old"', '@yearly', '2020-01-01 00:00:00+00', null),
      ('paused', 'data', 't', 'q', '"old"', '@yearly', null, now()),
      ('put', 'data', 't', 'q', '"old"', '@yearly', '2020-01-01 00:00:00+00', null);
    INSERT INTO bgjob_control (queue, paused_at, slots) VALUES ('both', now(), 3);
"""
# A redriven job's lease is the clock's, and a new job's id is random.
_JOBS = """
    SELECT CASE WHEN id ~ '^[a-z]' THEN id END AS name, headers ->> 'bgjob-schedule' AS schedule,
           CASE WHEN lease < 10000 THEN lease END AS lease, claimed_by, attempt, crashes, priority,
           split_part(last_error, ':', 1) AS error, arg, cancel_at IS NOT NULL AS asked, unique_key
    FROM bgjob_job ORDER BY name, schedule, arg, unique_key, claimed_by
"""
_DEAD = "SELECT job_id, lease, last_error, unique_key FROM bgjob_dead_job ORDER BY job_id, lease"
_WORKERS = "SELECT id, now() - beat_at < interval '30 s' AS beats FROM bgjob_worker ORDER BY id"
_SCHEDULES = """
    SELECT name, arg, paused_at IS NULL AS fires, next_at < now() AS is_due FROM bgjob_schedule
    ORDER BY name
"""
_CONTROLS = """
    SELECT queue, paused_at IS NOT NULL AS paused, paused_by, slots FROM bgjob_control
    ORDER BY queue
"""
_PERIODS = """
    SELECT key, EXISTS (SELECT FROM bgjob_job WHERE id = job_id) AS lives FROM bgjob_unique_period
    ORDER BY key
"""
_BATCHES = "SELECT id, finished_at IS NOT NULL AS finished FROM bgjob_batch ORDER BY id"
_LOOKS = (_JOBS, _DEAD, _WORKERS, _SCHEDULES, _CONTROLS, _PERIODS, _BATCHES)
_ROWS = "SELECT " + ", ".join(f"(SELECT json_agg(it) FROM ({look}) AS it)" for look in _LOOKS)


class Again(list[str]):
    """What was taken by somebody who will look again for what was locked."""


class Stage:
    """The tables as each run finds them; a subclass has the operations, as methods.

    The jobs of the scene are of the type of ``handler``; ``another`` is for those that come.
    """

    queued_key = "q:queued"
    """The unique key of the job that is queued."""

    def __init__(self, jobs: BGJob[Any, Any], engine: Engine) -> None:
        self.jobs, self.engine = jobs, engine
        self.statements = statements_of(jobs.models)
        self.handler: JobType[Any] = jobs.handler("t", queue="q")(lambda ctx, arg: None)
        self.another: JobType[Any] = jobs.handler("another", queue="q")(lambda ctx, arg: None)
        self.held: list[ClaimedJob] = []

    def set(self) -> None:
        """One job runs, one is queued, and one died twice; the worker of the first is silent."""
        with self.engine.connect() as connection:
            if not self.held:
                with connection.begin():
                    connection.exec_driver_sql(_EMPTY + _RUNNING)
                self.held = claim_now(connection, self.statements, worker_id=SILENT)
                with connection.begin():
                    connection.exec_driver_sql("CREATE TABLE claimed AS TABLE bgjob_job")
            with connection.begin():
                connection.exec_driver_sql(
                    f"{_EMPTY} INSERT INTO bgjob_job TABLE claimed; {_OTHERS}"
                    "INSERT INTO bgjob_job (id, queue, type, lease, unique_key)"
                    f" VALUES ('queued', 'q', 't', 4000, '{self.queued_key}')"
                )

    def settle_down(self, name: str, answer: Any) -> Any:
        """What was locked meanwhile is tried again, as its caller does."""
        if isinstance(answer, Again):
            with self.engine.connect() as connection:
                return sorted([*answer, *getattr(self, name)(connection)])
        if isinstance(answer, list) and answer and isinstance(answer[0], tuple):
            with self.engine.connect() as connection:
                return [
                    fate
                    if fate is not Fate.LOCKED
                    else settle.settle(connection, self.statements, [item])[0][1]
                    for item, fate in answer
                ]
        return answer

    def rows(self) -> Any:
        with self.engine.connect() as connection:
            return connection.exec_driver_sql(_ROWS).one()

    # ---- the two serial orders, and what comes between ------------------------------------------

    def check(self, first: str, second: str) -> None:
        """Let them come at once, both ways round, and stop at each place."""
        for outer, inner in dict.fromkeys([(first, second), (second, first)]):
            forth, places = self._one_by_one(outer, inner)
            (back_answers, back_rows), _ = self._one_by_one(inner, outer)
            serial = [forth, (back_answers[::-1], back_rows)]
            assert places >= 1
            for at in range(places):
                came, _ = self._act(outer, inner, at)
                assert came in serial, f"{inner} before step {at} of {outer}"

    @functools.cache  # noqa: B019 - a stage is for one module of tests
    def _one_by_one(self, first: str, second: str) -> tuple[Any, int]:
        """What comes of them in this order, and how many places there are to stop in the first."""
        return self._act(first, second, None)

    def _act(self, first: str, second: str, at: int | None) -> tuple[Any, int]:
        """What comes of *second* in the middle of *first*, and how many places there are to stop.

        With None, it comes after it.
        """
        self.set()
        one, two = _Stopper(at=at), _Stopper()
        with ThreadPoolExecutor(2) as pool:
            future_one = pool.submit(_run, self.engine, getattr(self, first), one)
            if at is None:
                future_one.result(20)
            assert one.stopped.wait(20)
            future_two = pool.submit(_run, self.engine, getattr(self, second), two)
            wait_until(lambda: _has_ended(future_two) or _waits(self.engine, two.pid), 20)
            one.go_on.set()
            answers = [future_one.result(20), future_two.result(20)]
        settled = [
            self.settle_down(name, answer)
            for name, answer in zip((first, second), answers, strict=True)
        ]
        return (settled, self.rows()), one.seen


AnyStage = TypeVar("AnyStage", bound=Stage)


@contextmanager
def make_stage(server: TestServer, kind: type[AnyStage]) -> Iterator[AnyStage]:
    """The tables, and one in which callers note what they have changed, in a new database."""
    with new_engine(server) as engine:
        jobs: BGJob[Any, Any] = BGJob(MetaData())
        Table("change", jobs.metadata, Column("n", BigInteger, Identity()), Column("key", Text))
        jobs.metadata.create_all(engine)
        yield kind(jobs, engine)


@dataclass
class _Stopper:
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


def _run(engine: Engine, operation: Callable[[Connection], Any], stopper: _Stopper) -> Any:
    try:
        with engine.connect() as connection:
            stopper.pid = connection.connection.driver_connection.info.backend_pid  # type: ignore[union-attr]
            event.listen(connection, "before_cursor_execute", stopper.pass_by)
            event.listen(connection, "commit", stopper.pass_by)
            return operation(connection)
    finally:
        stopper.stopped.set()


def _has_ended(future: Future[Any]) -> bool:
    """Whether it ends within a moment: to ask the server for locks takes longer."""
    return bool(wait([future], 0.01).done)


def _waits(engine: Engine, pid: int | None) -> bool:
    with engine.connect() as connection:
        return bool(
            connection.execute(
                text("SELECT cardinality(pg_blocking_pids(:pid))"), {"pid": pid or 0}
            ).scalar_one()
        )
