"""Who is lost, who decides it, and what becomes of the jobs: the rules, one by one.

Without processes and without waiting for time to pass: rows are aged, sessions ended.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import ExitStack
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Self

import pytest
from sqlalchemy import Connection, Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import Context, Observer, Worker, enqueue, enqueue_many
from sqlalchemy_bgjob._db.sessions import application_name, name_session
from sqlalchemy_bgjob._handlers.outcomes import COMPLETED
from sqlalchemy_bgjob._handlers.registry import Registry
from sqlalchemy_bgjob._lifecycle import claim, settle, workers
from sqlalchemy_bgjob._lifecycle import rescue as rescues
from sqlalchemy_bgjob._lifecycle.rescue import Rescued
from sqlalchemy_bgjob._lifecycle.settle import Fate, Pending
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob._worker import heart as heart_module
from sqlalchemy_bgjob._worker.hands import Hands
from sqlalchemy_bgjob._worker.heart import Heart
from sqlalchemy_bgjob._worker.queue_control import QueueControl
from sqlalchemy_bgjob._worker.rescuer import Rescuer
from sqlalchemy_bgjob._worker.scheduler import Scheduler
from sqlalchemy_bgjob._worker.threads import ThreadRuntime
from sqlalchemy_bgjob._worker.unknown_claims import UnknownClaims
from sqlalchemy_bgjob.settings import WorkerSettings
from sqlalchemy_bgjob.telemetry import Events
from sqlalchemy_bgjob.testing.points import at
from support import wait_until
from support.processes import FAST
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime

    from sqlalchemy_bgjob import FinishedRun, JobInfo
    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres
    from support.tuning import Tune

pytestmark = pytest.mark.keeps_tables

JUDGE, WORKER, OTHER = 1, 2, 3
LEASE = 30.0
HOUR = 3_600.0


class Workers:
    """The queue's tables in one database, with workers and jobs as rows."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.jobs = new_queue()
        self.jobs.metadata.create_all(engine)
        self.statements = statements_of(self.jobs.models)

        @self.jobs.handler("work", session=False)
        def work(ctx: Context[Any]) -> None: ...

        self.work = work

    def execute(self, sql: str, **values: Any) -> Any:
        with self.engine.begin() as connection:
            result = connection.execute(text(sql), values)
            return result.all() if result.returns_rows else None

    def now(self) -> datetime:
        """What the server's clock shows."""
        moment: datetime = self.execute("SELECT clock_timestamp()")[0][0]
        return moment

    def register(self, worker_id: int, *, lease: float = LEASE, silent_for: float = 0.0) -> None:
        with self.engine.connect() as connection:
            workers.register(
                connection,
                self.statements,
                worker_id=worker_id,
                hostname="here",
                pid=worker_id,
                version="1",
                queues={"default": 1},
                lease_timeout=lease,
            )
        self.silence(worker_id, silent_for)

    def silence(self, worker_id: int, seconds: float) -> None:
        """Let a worker's last beat be so long ago."""
        self.execute(
            "UPDATE bgjob_worker SET beat_at = clock_timestamp() - make_interval(secs => :s)"
            " WHERE id = :id",
            s=seconds,
            id=worker_id,
        )

    def claim(self, worker_id: int, count: int = 1) -> list[claim.ClaimedJob]:
        """New jobs in a worker's hands."""
        enqueue_many(self.engine, self.work, [None] * count)
        with self.engine.connect() as connection, connection.begin():
            return claim.claim(
                connection, self.statements, queue="default", limit=count, worker_id=worker_id
            )

    def rescue_silent(self, connected: float = HOUR, judge: int = JUDGE) -> list[Rescued]:
        with self.engine.connect() as connection:
            return rescues.rescue_silent(
                connection, self.statements, judge=judge, connected=connected
            )

    def beat(self, worker_id: int, listener: Any = None) -> float | None:
        with self.engine.connect() as connection:
            return workers.beat(connection, self.statements, worker_id=worker_id, listener=listener)

    def listener(self, connection: Connection) -> tuple[int, Any]:
        """The session of a connection, as a listener tells it."""
        row = connection.execute(self.statements.workers.listener_session).one()
        connection.commit()
        return row[0], row[1]

    def looks(self, connection: Connection, count: int = 2) -> list[Rescued]:
        """What N looks of one judge rescue by the fast path."""
        rescued: list[Rescued] = []
        before = self.look(connection)
        for _ in range(count - 1):
            now = self.look(connection)
            rescued += rescues.rescue_ended(connection, self.statements, before, now)
            before = now
        return rescued

    def look(self, connection: Connection) -> rescues.LookAtWorkers:
        return rescues.look_at_workers(connection, self.statements)

    def rescue_unchanged(
        self, connection: Connection, seen: dict[int, Any], connected: float = HOUR
    ) -> list[Rescued]:
        now = self.look(connection)
        return rescues.rescue_unchanged(
            connection, self.statements, now, seen, judge=JUDGE, connected=connected
        )

    def job_rows(self) -> list[Any]:
        return list(self.execute("SELECT * FROM bgjob_job ORDER BY id"))

    def workers(self) -> list[int]:
        return [row.id for row in self.execute("SELECT id FROM bgjob_worker ORDER BY id")]


@pytest.fixture
def queue(engine: Engine) -> Workers:
    queue = Workers(engine)
    queue.register(JUDGE)
    return queue


def ended_session(queue: Workers, engine: Engine) -> tuple[int, Any]:
    """A session that listened and is gone."""
    with engine.connect() as connection:
        session = queue.listener(connection)
        connection.invalidate()
    gone = "SELECT count(*) = 0 AS gone FROM pg_stat_activity WHERE pid = :pid"
    wait_until(lambda: queue.execute(gone, pid=session[0])[0].gone, what="the session's end")
    return session


# ---- by silence ---------------------------------------------------------------------------------


@pytest.mark.core
def test_a_silent_worker_is_rescued_in_one_step(queue: Workers) -> None:
    """Its jobs are queued again, each under a new lease, and its row goes."""
    queue.register(WORKER, silent_for=LEASE + 1)
    claimed = queue.claim(WORKER, 3)

    assert queue.rescue_silent() == [Rescued(WORKER, 3)]

    leases = {job.id: job.lease for job in claimed}
    for row in queue.job_rows():
        assert row.claimed_by is None
        assert row.lease == leases[row.id] + 1
        assert row.attempt == 1, "a crash costs the attempt"
        assert row.crashes == 1
        assert row.last_error.startswith("WorkerLost")
    assert queue.workers() == [JUDGE]


def test_a_worker_that_beats_keeps_its_jobs(queue: Workers) -> None:
    """Its own lease_timeout counts, not the judge's."""
    queue.register(WORKER, silent_for=LEASE - 2)
    queue.register(OTHER, lease=HOUR * 2, silent_for=HOUR)
    queue.claim(WORKER)
    queue.claim(OTHER)

    assert queue.rescue_silent(connected=HOUR * 3) == []

    assert {row.crashes for row in queue.job_rows()} == {0}


def test_silence_is_judged_only_after_an_unbroken_connection(queue: Workers) -> None:
    """After an outage everyone looks silent: whoever is back first must not take all jobs."""
    queue.register(WORKER, silent_for=HOUR)
    queue.claim(WORKER)

    assert queue.rescue_silent(connected=LEASE - 1) == []
    assert queue.rescue_silent(connected=LEASE + 1) == [Rescued(WORKER, 1)]


def test_a_judge_that_looks_silent_itself_judges_nobody(queue: Workers) -> None:
    """When the server's clock jumps, the judge is as late as those whom it would judge."""
    queue.register(WORKER)
    queue.claim(WORKER)
    queue.execute("UPDATE bgjob_worker SET beat_at = beat_at - interval '1 hour'")

    assert queue.rescue_silent() == []

    queue.beat(JUDGE)
    assert queue.rescue_silent() == [Rescued(WORKER, 1)]


def test_a_judge_that_was_found_lost_judges_nobody(queue: Workers) -> None:
    queue.register(WORKER, silent_for=HOUR)
    queue.execute("UPDATE bgjob_worker SET lost_at = now() WHERE id = :id", id=JUDGE)

    assert queue.rescue_silent() == []
    assert queue.workers() == [JUDGE, WORKER]


def test_a_beat_that_finds_its_row_lost_is_told(queue: Workers) -> None:
    """The row is not revived: an id is never taken up again."""
    queue.register(WORKER)
    queue.claim(WORKER)
    assert queue.beat(WORKER) is not None
    queue.execute("UPDATE bgjob_worker SET lost_at = now() WHERE id = :id", id=WORKER)
    before = queue.execute("SELECT * FROM bgjob_worker ORDER BY id")

    assert queue.beat(WORKER) is None

    assert queue.execute("SELECT * FROM bgjob_worker ORDER BY id") == before


def blocked(queue: Workers) -> bool:
    """Whether some session of this database waits for a lock."""
    waiting = (
        "SELECT count(*) AS count FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    return bool(queue.execute(waiting)[0].count)


def test_a_beat_during_the_judgement_finds_the_worker_lost(queue: Workers) -> None:
    """Judging, marking and taking are one transaction: there is no beat between them."""
    queue.register(WORKER, silent_for=HOUR)
    queue.claim(WORKER)
    answers: list[float | None] = []
    beating = threading.Thread(target=lambda: answers.append(queue.beat(WORKER)))

    def beat_meanwhile(judged: int) -> None:
        beating.start()
        wait_until(lambda: blocked(queue), what="the beat that waits")

    with at("judged", beat_meanwhile):
        assert queue.rescue_silent() == [Rescued(WORKER, 1)]

    beating.join(10)
    assert answers == [None]


@pytest.mark.core
def test_two_rescuers_at_once_rescue_once(queue: Workers) -> None:
    """Whoever locks the row first judges; nobody waits, and nothing is counted twice."""
    for worker_id in range(10, 30):
        queue.register(worker_id, silent_for=HOUR)
        queue.claim(worker_id)
    queue.register(OTHER)
    barrier = threading.Barrier(2)
    rescued: list[Rescued] = []

    def rescue(judge: int) -> None:
        barrier.wait(10)
        rescued.extend(queue.rescue_silent(judge=judge))

    threads = [threading.Thread(target=rescue, args=(judge,)) for judge in (JUDGE, OTHER)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert sorted(worker.worker_id for worker in rescued) == list(range(10, 30))
    assert [(row.crashes, row.claimed_by) for row in queue.job_rows()] == [(1, None)] * 20


@pytest.mark.core
def test_a_locked_row_is_taken_by_a_later_sweep(queue: Workers) -> None:
    """A lock that somebody holds on one job keeps neither the others nor the sweep."""
    queue.register(WORKER, silent_for=HOUR)
    first, second = queue.claim(WORKER, 2)

    with queue.engine.connect() as holder, holder.begin():
        holder.execute(text("SELECT 1 FROM bgjob_job WHERE id = :id FOR UPDATE"), {"id": first.id})
        assert queue.rescue_silent() == [Rescued(WORKER, 1)]
        assert queue.workers() == [JUDGE, WORKER], "it stays until it holds nothing"
        with queue.engine.connect() as connection:
            assert rescues.rescue_rest(connection, queue.statements) == [Rescued(WORKER, 0)]
    held = {row.id: row.claimed_by for row in queue.job_rows()}
    assert held == {first.id: WORKER, second.id: None}

    with queue.engine.connect() as connection:
        assert rescues.rescue_rest(connection, queue.statements) == [Rescued(WORKER, 1)]
    assert {row.claimed_by for row in queue.job_rows()} == {None}
    assert queue.workers() == [JUDGE]


@pytest.mark.core
def test_a_row_that_a_foreign_key_looks_at_is_not_in_the_way(queue: Workers) -> None:
    """A user's insert that refers to the job locks its key, and nothing that a rescue changes."""
    queue.register(WORKER, silent_for=HOUR)
    (job,) = queue.claim(WORKER)

    with queue.engine.connect() as holder, holder.begin():
        share = text("SELECT 1 FROM bgjob_job WHERE id = :id FOR KEY SHARE")
        holder.execute(share, {"id": job.id})
        assert queue.rescue_silent() == [Rescued(WORKER, 1)]


@pytest.mark.core
def test_the_sessions_of_a_lost_worker_are_ended(queue: Workers) -> None:
    """A frozen handler's row locks would block the next attempt until it thaws."""
    queue.register(WORKER, silent_for=HOUR)
    (job,) = queue.claim(WORKER)
    with queue.engine.connect() as frozen, queue.engine.connect() as bystander:
        name_session(frozen, WORKER)
        lock = text("SELECT 1 FROM bgjob_job WHERE id = :id FOR UPDATE")
        frozen.execute(lock, {"id": job.id})
        bystander.execute(text("SELECT 1"))

        assert queue.rescue_silent() == [Rescued(WORKER, 1)]

        with pytest.raises(DBAPIError):
            frozen.execute(text("SELECT 1"))
        assert bystander.execute(text("SELECT 1")).scalar() == 1
        frozen.invalidate()


@pytest.mark.core
def test_sessions_are_ended_under_whichever_role(queue: Workers) -> None:
    """A listener of the application's may set one that sees no session, and may end none."""
    role = f"of {queue.engine.url.database}"
    queue.execute(f'CREATE ROLE "{role}"')
    queue.execute(f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{role}"')
    queue.register(WORKER, silent_for=HOUR)
    (job,) = queue.claim(WORKER)
    restricted = create_engine(queue.engine.url)
    event.listen(restricted, "begin", lambda made: made.exec_driver_sql(f'SET LOCAL ROLE "{role}"'))
    try:
        with queue.engine.connect() as frozen, restricted.connect() as judge:
            name_session(frozen, WORKER)
            lock = text("SELECT 1 FROM bgjob_job WHERE id = :id FOR UPDATE")
            frozen.execute(lock, {"id": job.id})

            rescued = rescues.rescue_silent(judge, queue.statements, judge=JUDGE, connected=HOUR)
            assert rescued == [Rescued(WORKER, 1)]

            frozen.invalidate()
    finally:
        restricted.dispose()
        queue.execute(f'DROP OWNED BY "{role}"')
        queue.execute(f'DROP ROLE "{role}"')


@pytest.mark.core
def test_jobs_of_a_crash_part_company(queue: Workers) -> None:
    """The first crash puts a job back at once, the next ones after a growing random wait."""
    queue.register(WORKER, silent_for=HOUR)
    queue.claim(WORKER, 40)
    due = {row.id: row.next_run_at for row in queue.job_rows()}
    assert queue.rescue_silent() == [Rescued(WORKER, 40)]
    assert {row.id: row.next_run_at for row in queue.job_rows()} == due

    queue.register(WORKER, silent_for=HOUR)
    queue.execute("UPDATE bgjob_job SET claimed_by = :id, crashes = 3", id=WORKER)
    before = queue.now()
    assert queue.rescue_silent() == [Rescued(WORKER, 40)]

    times = [row.next_run_at for row in queue.job_rows()]
    assert before <= min(times)
    assert max(times) <= queue.now() + timedelta(seconds=8)
    assert max(times) - min(times) > timedelta(seconds=2), "they all wait for the same time"


def test_a_job_that_has_crashed_for_ever_is_still_rescued(queue: Workers) -> None:
    """Without max_attempts it may crash thousands of times; the wait stays below a minute."""
    queue.register(WORKER, silent_for=HOUR)
    queue.claim(WORKER)
    queue.execute("UPDATE bgjob_job SET crashes = 5000, attempt = 5001")

    assert queue.rescue_silent() == [Rescued(WORKER, 1)]

    (row,) = queue.execute(
        "SELECT crashes, next_run_at <= now() + interval '60 seconds' AS soon FROM bgjob_job"
    )
    assert (row.crashes, row.soon) == (5001, True)


# ---- orphans ------------------------------------------------------------------------------------


def test_a_claim_that_a_lost_worker_commits_is_given_back(
    queue: Workers,
) -> None:
    """Nobody sweeps for a worker that has no row: the search for orphans finds the jobs."""
    queue.register(WORKER, silent_for=HOUR)
    enqueue_many(queue.engine, queue.work, [None] * 2)
    queue.register(OTHER)
    held = queue.claim(OTHER)
    with queue.engine.connect() as late:
        transaction = late.begin()
        claimed = claim.claim(late, queue.statements, queue="default", limit=2, worker_id=WORKER)
        assert queue.rescue_silent() == [Rescued(WORKER, 0)]
        assert queue.workers() == [JUDGE, OTHER]
        transaction.commit()

    with queue.engine.connect() as connection:
        assert rescues.rescue_orphans(connection, queue.statements) == len(claimed) == 2

    claims = {row.id: row.claimed_by for row in queue.job_rows()}
    assert claims == {**{job.id: None for job in claimed}, held[0].id: OTHER}


def test_two_leases_of_one_job_settle_apart(queue: Workers) -> None:
    """A run that lost its lease, and the next run by the same worker, end at the same time."""
    queue.register(WORKER)
    (first,) = queue.claim(WORKER)
    queue.execute("UPDATE bgjob_job SET claimed_by = null, lease = lease + 1")
    with queue.engine.connect() as connection:
        with connection.begin():
            (second,) = claim.claim(
                connection, queue.statements, queue="default", limit=1, worker_id=WORKER
            )
        late, good = Pending(first, COMPLETED), Pending(second, COMPLETED)
        fates = dict(settle.settle(connection, queue.statements, [late, good]))

    assert fates == {late: Fate.STALE, good: Fate.SETTLED}


def test_a_beat_ahead_of_the_clock_that_stays_is_silence(queue: Workers) -> None:
    """The server's clock was set back by an hour: one worker was frozen before, one lives."""
    queue.register(WORKER, lease=2.0, silent_for=-HOUR)
    queue.register(OTHER, lease=2.0, silent_for=-HOUR)
    queue.claim(WORKER, 2)
    kept = queue.claim(OTHER)

    def rescued() -> bool:
        queue.execute("UPDATE bgjob_worker SET beat_at = beat_at + interval '1 s' WHERE id = 3")
        return WORKER not in queue.workers()

    with HeartAtWork(queue, lease_timeout=2.0) as at_work:
        wait_until(rescued, 30, what="the frozen worker's rescue")
        assert at_work.errors == []

    assert OTHER in queue.workers()
    assert {row.id for row in queue.job_rows() if row.claimed_by} == {job.id for job in kept}
    assert sorted(row.crashes for row in queue.job_rows()) == [0, 1, 1]


def test_a_sweep_that_always_fails_hides_no_silence(queue: Workers) -> None:
    """The rescuer begins a new session after each failure, and knows the beats of the last one."""

    def fail(sweep: str) -> None:
        if sweep == "orphans":
            with queue.engine.begin() as connection:
                connection.execute(text("SELECT 1 FROM there_is_no_such_table"))

    queue.register(WORKER, lease=2.0, silent_for=-HOUR)
    queue.claim(WORKER)

    fast = {"lease_timeout": 2.0, "rescue_interval": 0.2, "orphan_interval": 0.2}
    with at("sweeping", fail), HeartAtWork(queue, **fast) as at_work:
        wait_until(lambda: WORKER not in queue.workers(), 60, what="the silent worker's rescue")
        wait_until(lambda: len(at_work.errors) > 1, 60, what="the second failure")

    assert [row.claimed_by for row in queue.job_rows()] == [None]


def test_unchanged_beats_are_judged_with_the_same_care(queue: Workers) -> None:
    """By a judge that beats and was connected for as long; and not once the beat has changed."""
    queue.register(WORKER, silent_for=-HOUR)
    queue.claim(WORKER)

    def look(connected: float = HOUR, ago: float = LEASE + 1) -> list[Rescued]:
        with queue.engine.connect() as connection:
            seen: dict[int, Any] = {}
            queue.rescue_unchanged(connection, seen, connected)
            old = {id: beat._replace(seen_at=beat.seen_at - ago) for id, beat in seen.items()}
            return queue.rescue_unchanged(connection, old, connected)

    assert look(ago=LEASE - 5) == []
    assert look(connected=LEASE - 1) == []
    queue.silence(JUDGE, HOUR)
    assert look() == []
    queue.beat(JUDGE)
    assert look() == [Rescued(WORKER, 1)]


def test_a_beat_during_the_look_is_a_sign_of_life(queue: Workers) -> None:
    queue.register(WORKER, silent_for=-HOUR)
    queue.claim(WORKER)

    with at("judging", lambda _: queue.beat(WORKER)), queue.engine.connect() as connection:
        seen: dict[int, Any] = {}
        for _ in range(2):
            assert queue.rescue_unchanged(connection, seen) == []
            seen |= {id: beat._replace(seen_at=beat.seen_at - HOUR) for id, beat in seen.items()}


def test_a_judge_whose_beat_is_under_way_judges_nobody(queue: Workers) -> None:
    """A server that stood still for a minute has kept everybody from beating."""
    with HeartAtWork(queue) as at_work:
        wait_until(lambda: at_work.heart.unbroken(time.monotonic()) > 0.5, what="a judge")
        assert at_work.heart.unbroken(time.monotonic() + LEASE) == 0.0


# ---- by the end of a session --------------------------------------------------------------------


@pytest.mark.core
def test_a_worker_without_its_session_is_rescued_on_second_look(
    queue: Workers,
) -> None:
    """Its process has ended: PostgreSQL ends the sessions of a process with it."""
    queue.register(WORKER)
    queue.claim(WORKER)
    queue.beat(WORKER, ended_session(queue, queue.engine))

    with queue.engine.connect() as judge:
        assert queue.looks(judge, 1) == []
        assert queue.job_rows()[0].claimed_by == WORKER
        assert queue.looks(judge, 2) == [Rescued(WORKER, 1)]


def test_a_beat_between_the_two_looks_is_a_sign_of_life(queue: Workers) -> None:
    """It has lost its listener, and lives: it beats elsewhere."""
    queue.register(WORKER)
    queue.claim(WORKER)
    session = ended_session(queue, queue.engine)
    queue.beat(WORKER, session)

    with queue.engine.connect() as judge:
        before = queue.look(judge)
        for _ in range(4):
            queue.beat(WORKER, session)
            now = queue.look(judge)
            assert rescues.rescue_ended(judge, queue.statements, before, now) == []
            before = now
    assert queue.job_rows()[0].crashes == 0


def test_a_beat_after_the_second_look_began_is_a_sign_of_life(queue: Workers) -> None:
    """The judgement itself asks again, with the row locked."""
    queue.register(WORKER)
    queue.claim(WORKER)
    session = ended_session(queue, queue.engine)
    queue.beat(WORKER, session)

    with at("judging", lambda _: queue.beat(WORKER, session)), queue.engine.connect() as judge:
        assert queue.looks(judge) == []


def test_a_worker_that_listens_is_left_alone(queue: Workers) -> None:
    queue.register(WORKER)
    queue.claim(WORKER)

    with queue.engine.connect() as listener, queue.engine.connect() as judge:
        queue.beat(WORKER, queue.listener(listener))
        assert queue.looks(judge, 3) == []


def test_another_session_of_the_worker_is_a_sign_of_life(queue: Workers) -> None:
    """Its listener was ended from outside; its heart's session is there."""
    queue.register(WORKER)
    queue.claim(WORKER)
    queue.beat(WORKER, ended_session(queue, queue.engine))

    with queue.engine.connect() as heart, queue.engine.connect() as judge:
        name_session(heart, WORKER)
        assert queue.looks(judge, 3) == []


def test_a_judge_never_finds_itself_ended(queue: Workers) -> None:
    """Its listener hangs, unnoticed; the session that asks is its own."""
    queue.claim(JUDGE)
    queue.beat(JUDGE, ended_session(queue, queue.engine))

    with queue.engine.connect() as judge:
        name_session(judge, JUDGE)
        assert queue.looks(judge, 3) == []


def test_a_worker_without_a_listener_is_judged_by_beats(queue: Workers) -> None:
    queue.register(WORKER, silent_for=LEASE - 5)
    queue.claim(WORKER)

    with queue.engine.connect() as judge:
        assert queue.looks(judge, 3) == []


@pytest.fixture
def stranger(queue: Workers) -> Iterator[Engine]:
    """An engine of a role that may use the tables and sees nothing of others' sessions."""
    role = f"bgjob_stranger_{os.getpid()}"
    queue.execute(f"CREATE ROLE {role} LOGIN")
    queue.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    engine = create_engine(queue.engine.url, connect_args={"options": f"-c role={role}"})
    yield engine
    engine.dispose()
    queue.execute(f"DROP OWNED BY {role}")
    queue.execute(f"DROP ROLE {role}")


@pytest.mark.core
def test_sessions_that_are_hidden_from_the_judge_prove_nothing(
    queue: Workers, stranger: Engine
) -> None:
    """Two roles without pg_monitor: the other's backend_start and state are null."""
    queue.register(WORKER)
    queue.claim(WORKER)

    with queue.engine.connect() as listener, stranger.connect() as judge:
        session = queue.listener(listener)
        queue.beat(WORKER, session)
        shown = text("SELECT backend_start FROM pg_stat_activity WHERE pid = :pid")
        assert judge.execute(shown, {"pid": session[0]}).scalar() is None
        judge.commit()
        assert queue.looks(judge, 3) == []

        queue.beat(WORKER, ended_session(queue, queue.engine))
        with queue.engine.connect() as heart:
            name_session(heart, WORKER)
            assert queue.looks(judge, 3) == []


@pytest.mark.core
@pytest.mark.parametrize("how", ["fast", "immediate", "crash"])
def test_a_restart_of_the_server_is_no_proof_of_death(
    own_server: EmbeddedPostgres, how: Any
) -> None:
    """It ended the sessions of the living too; even when only a backend crashed."""
    engine = create_engine(own_server.url)
    queue = Workers(engine)
    queue.register(WORKER)
    queue.claim(WORKER)
    with engine.connect() as listener:
        session = queue.listener(listener)
        queue.beat(WORKER, session)

        if how == "crash":
            os.kill(session[0], signal.SIGKILL)
        else:
            own_server.restart(how)
        listener.invalidate()
    engine.dispose()
    connect = lambda: _connected(engine, session)  # noqa: E731
    with wait_until(connect, 30, what="the server") as judge:
        assert queue.looks(judge, 3) == []
    assert queue.job_rows()[0].crashes == 0
    engine.dispose()


RESETS = {
    "bgwriter": ("SELECT pg_stat_reset_shared('bgwriter')",),
    "everything": (
        *(f"SELECT pg_stat_reset_shared('{kind}')" for kind in ("bgwriter", "archiver", "wal")),
        "SELECT pg_stat_reset_slru(NULL)",
        "SELECT pg_stat_reset()",
    ),
}


@pytest.fixture
def role(queue: Workers) -> Iterator[Engine]:
    """An engine that logs in as a role which sees its own sessions only."""
    name = f"bgjob_role_{os.getpid()}"
    queue.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'x'")
    queue.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {name}")
    engine = create_engine(queue.engine.url.set(username=name, password="x"))
    yield engine
    engine.dispose()
    queue.execute(f"DROP OWNED BY {name}")
    queue.execute(f"DROP ROLE {name}")


@pytest.mark.core
@pytest.mark.parametrize("reset", RESETS)
def test_reset_statistics_are_no_restart(queue: Workers, reset: str) -> None:
    """Monitoring does that; a process that has ended is seen as soon as before."""
    queue.register(WORKER)
    queue.claim(WORKER)
    queue.beat(WORKER, ended_session(queue, queue.engine))
    for statement in RESETS[reset]:
        queue.execute(statement)

    with queue.engine.connect() as judge:
        assert queue.looks(judge) == [Rescued(WORKER, 1)]


@pytest.mark.core
@pytest.mark.parametrize("reset", RESETS)
def test_reset_statistics_are_no_restart_to_any_role(
    queue: Workers, role: Engine, reset: str
) -> None:
    """To one that sees no server process, its own older sessions tell, or what was not reset."""
    queue.register(WORKER)
    queue.claim(WORKER)

    with ExitStack() as stack:
        if reset == "everything":
            older = stack.enter_context(role.connect())
            assert queue.listener(older)[1] is not None
        queue.beat(WORKER, ended_session(queue, role))
        for statement in RESETS[reset]:
            queue.execute(statement)

        judge = stack.enter_context(role.connect())
        hidden = text("SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'checkpointer'")
        assert judge.execute(hidden).scalar() == 0
        judge.commit()
        assert queue.looks(judge) == [Rescued(WORKER, 1)]


def _connected(engine: Engine, gone: tuple[int, Any]) -> Connection | None:
    """A connection, once the server answers again and the old session is gone."""
    try:
        connection = engine.connect()
        query = text("SELECT count(*) FROM pg_stat_activity WHERE pid = :p AND backend_start = :s")
        left = connection.execute(query, {"p": gone[0], "s": gone[1]}).scalar()
        connection.commit()
    except DBAPIError:
        return None
    if left:
        connection.close()
        return None
    return connection


# ---- the heart ----------------------------------------------------------------------------------


class Errors(Observer):
    def __init__(self) -> None:
        self.seen: list[BaseException] = []

    def worker_error(self, error: BaseException) -> None:
        self.seen.append(error)


class HeartAtWork:
    """Heart and rescuer of a worker, whose loop does nothing but turn."""

    def __init__(self, queue: Workers, **settings: Any) -> None:
        self.lost = 0
        self.turns = True
        self._told, made = Errors(), WorkerSettings(**{**FAST, **settings})
        self.errors = self._told.seen
        self._runtime = runtime = ThreadRuntime(queue.engine)
        self._events = events = Events((self._told,))
        hands = Hands(runtime, events, {"default": 1}, made)
        unknown = UnknownClaims(hands, runtime, queue.statements)
        hands.lost = self._lost  # type: ignore[method-assign]
        self.heart = Heart(
            runtime,
            queue.statements,
            made,
            {"default": 1},
            hands=hands,
            unknown=unknown,
            events=events,
        )
        self.rescuer = Rescuer(
            runtime,
            queue.statements,
            made,
            self.heart,
            unknown,
            QueueControl(hands, runtime, queue.statements, {"default": 1}, events),
            Scheduler(Registry(), {"default": 1}, runtime, queue.statements, events),
            events,
            on_health=lambda _: None,
            hands=hands,
        )

    def _lost(self) -> None:
        assert self.heart.worker_id is None, "no job may be claimed under the old id"
        self.lost += 1

    def _turn(self) -> None:
        while not self._ended.wait(0.05):
            if self.turns:
                self.heart.turned(time.monotonic())

    def __enter__(self) -> Self:
        self._events.start()
        self._ended = threading.Event()
        self._threads = [
            self._runtime.spawn("heart", self.heart.run),
            self._runtime.spawn("rescuer", self.rescuer.run),
            self._runtime.spawn("loop", self._turn),
        ]
        wait_until(lambda: self.heart.fresh(time.monotonic()), what="the first beat")
        return self

    def __exit__(self, *args: object) -> None:
        self._ended.set()
        self.heart.stop()
        self.rescuer.stop()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()
        self._events.stop(10)
        self._runtime.close()


def test_a_heart_that_finds_its_row_lost_goes_on_under_a_new_id(queue: Workers) -> None:
    """An id is never taken up again: what was claimed under it was given away."""
    with HeartAtWork(queue) as at_work:
        first = at_work.heart.worker_id
        queue.execute("UPDATE bgjob_worker SET lost_at = now() WHERE id = :id", id=first)

        wait_until(lambda: at_work.heart.worker_id not in (None, first), what="the new id")

        assert at_work.lost == 1
        assert at_work.heart.worker_id in queue.workers()
        assert at_work.heart.fresh(time.monotonic())


def test_a_worker_whose_loop_stands_still_beats_no_more(
    queue: Workers, tune: Tune, caplog: pytest.LogCaptureFixture
) -> None:
    """Its jobs go to others; once it turns again, it goes on under a new id."""
    tune(heart_module, NO_PROGRESS_AFTER=0.5)
    fast = {"heartbeat_interval": 0.1, "lease_timeout": 1.0, "rescue_interval": 0.1}
    with HeartAtWork(queue, **fast) as stuck, HeartAtWork(queue, **fast) as other:
        first = stuck.heart.worker_id
        stuck.turns = False
        wait_until(lambda: first not in queue.workers(), what="its rescue")
        assert caplog.text.count("has not turned for") == 1
        assert not stuck.heart.fresh(time.monotonic())

        stuck.turns = True
        wait_until(lambda: stuck.heart.worker_id not in (None, first), what="the new id")

        assert (stuck.lost, other.lost) == (1, 0)


def test_a_lost_connection_starts_the_judge_s_time_anew(queue: Workers) -> None:
    """Whoever was away can't tell the silence of the others from its own."""
    connected: list[float] = []

    def look(sweep: str) -> None:
        if sweep == "unchanged" and at_work.heart.worker_id is not None:
            connected.append(at_work.heart.unbroken(time.monotonic()))

    at_work = HeartAtWork(queue, rescue_interval=0.05, heartbeat_interval=0.1)
    with at("sweeping", look), at_work:
        wait_until(lambda: connected and connected[-1] > 0.5, what="half a second of connection")
        name = application_name(at_work.heart.worker_id or 0)
        count = len(connected)
        queue.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = :name",
            name=name,
        )
        # A sweep or two may come before the next beat finds its connection ended.
        wait_until(lambda: min(connected[count:], default=1.0) < 0.5, what="a new beginning")

        wait_until(lambda: connected[-1] > 0.5, what="half a second of connection")
        # The server's clock jumps, or the process was frozen: the beat tells by how much.
        count = len(connected)
        queue.silence(at_work.heart.worker_id or 0, HOUR)
        wait_until(lambda: min(connected[count:], default=1.0) < 0.2, what="a new beginning")
        assert at_work.lost == 0


def test_a_gap_of_half_the_shortest_lease_starts_it_anew(queue: Workers) -> None:
    """The beats of a worker with that lease may have been held up with the judge's own."""
    connected: list[float] = []

    def look(sweep: str) -> None:
        if sweep == "unchanged" and at_work.heart.worker_id is not None:
            connected.append(at_work.heart.unbroken(time.monotonic()))

    queue.register(OTHER, lease=60.0)
    often = {"rescue_interval": 0.05, "heartbeat_interval": 0.1}
    at_work = HeartAtWork(queue, lease_timeout=600.0, **often)
    with at("sweeping", look), at_work:
        wait_until(lambda: connected and connected[-1] > 0.5, what="half a second of connection")
        count = len(connected)
        queue.silence(at_work.heart.worker_id or 0, 40.0)
        wait_until(lambda: min(connected[count:], default=1.0) < 0.2, what="a new beginning")


def test_a_beat_leaves_no_lock_behind_on_a_network_that_dies(queue: Workers) -> None:
    """Between a beat and its COMMIT the row would be locked, and no other worker could judge it."""
    alone: list[bool] = []

    def look(connection: Any) -> None:
        alone.append(connection.connection.dbapi_connection.autocommit)

    with at("beating", look), HeartAtWork(queue, heartbeat_interval=0.1):
        wait_until(lambda: len(alone) > 3, what="some beats")

    assert all(alone)


def test_an_old_beat_is_not_fresh(queue: Workers) -> None:
    """Frozen for longer than lease_timeout - heartbeat_interval: beat first, then start."""
    with HeartAtWork(queue, lease_timeout=3.0, heartbeat_interval=0.5) as at_work:
        now = time.monotonic()
        assert at_work.heart.fresh(now)
        assert not at_work.heart.fresh(now + 2.6)


def test_every_worker_finds_the_others_jobs_without_a_leader(queue: Workers) -> None:
    """The whole heart: a silent worker, a dead one, the rest of a lost one, and an orphan."""
    queue.register(WORKER, silent_for=HOUR)
    queue.claim(WORKER)
    queue.register(OTHER)
    queue.claim(OTHER)
    queue.beat(OTHER, ended_session(queue, queue.engine))
    queue.register(10)
    queue.claim(10)
    queue.execute("UPDATE bgjob_worker SET lost_at = now() WHERE id = 10")
    queue.claim(99)
    queue.execute("UPDATE bgjob_worker SET lease_timeout = 1 WHERE id = :id", id=WORKER)

    with HeartAtWork(queue):
        wait_until(
            lambda: {row.claimed_by for row in queue.job_rows()} == {None}, what="all four jobs"
        )


# ---- the worker ---------------------------------------------------------------------------------


class Told(Observer):
    def __init__(self) -> None:
        self.completed: list[str] = []
        self.lease_lost: list[str] = []

    def job_completed(self, job: JobInfo, run: FinishedRun) -> None:
        self.completed.append(job.id)

    def job_lease_lost(self, job: JobInfo) -> None:
        self.lease_lost.append(job.id)


def test_a_living_worker_that_is_found_lost_tells_its_handlers(queue: Workers) -> None:
    """It goes on under a new id; the late settlement of the first run changes nothing."""
    seen: list[tuple[int, bool]] = []

    @queue.jobs.handler("patient", session=False)
    def patient(ctx: Context[Any]) -> None:
        if ctx.job.attempt == 1:
            wait_until(lambda: ctx.lease_lost, 30, what="lease_lost")
        seen.append((ctx.job.attempt, ctx.lease_lost))

    events = Told()
    settings = {**FAST, "lease_timeout": 15.0, "heartbeat_interval": 5.0}
    with Worker(queue.jobs, queue.engine, queues={"default": 2}, observers=[events], **settings):
        enqueue(queue.engine, patient, id="p")
        (first,) = wait_until(
            lambda: [row.claimed_by for row in queue.job_rows() if row.claimed_by]
        )
        # It may beat between the two, and is not silent then.
        rescued = wait_until(lambda: queue.silence(first, HOUR) or queue.rescue_silent())
        assert rescued == [Rescued(first, 1)]
        wait_until(lambda: not queue.job_rows() and len(seen) == 2, 30, what="both runs")
        wait_until(lambda: events.lease_lost, what="job_lease_lost")

    assert sorted(seen) == [(1, True), (2, False)]
    assert events.completed == events.lease_lost == ["p"]


def test_no_job_is_started_on_an_old_beat(queue: Workers) -> None:
    """A worker that can't beat may have been judged already: it starts nothing."""
    free = threading.Event()
    free.set()
    started: list[float] = []

    @queue.jobs.handler("note", session=False)
    def note(ctx: Context[Any]) -> None:
        started.append(time.monotonic())

    worker = Worker(queue.jobs, queue.engine, **FAST)
    heart = worker._loop._heart
    with at("beating", lambda _: free.wait(60)), worker:
        wait_until(lambda: heart.fresh(time.monotonic()), what="the first beat")
        free.clear()
        wait_until(lambda: not heart.fresh(time.monotonic()), what="an old beat")
        enqueue(queue.engine, note)
        turned = heart._turned_at
        wait_until(lambda: heart._turned_at > turned + 0.5, what="turns of the loop")
        assert started == []

        let_go = time.monotonic()
        free.set()
        wait_until(lambda: started, what="the start")
        assert started[0] >= let_go


def test_a_worker_whose_first_beat_fails_is_registered_once(queue: Workers) -> None:
    """A second row would leave the first one to be found silent by others."""
    failures = [RuntimeError("a pooler has lost the statement")]

    def fail_first(connection: Any) -> None:
        if failures:
            raise failures.pop()

    others = queue.workers()
    enqueue(queue.engine, queue.work)
    with at("beating", fail_first), Worker(queue.jobs, queue.engine, **FAST):
        wait_until(lambda: not queue.job_rows(), 20, what="the end of the job")
        assert len(set(queue.workers()) - set(others)) == 1
    assert failures == []


@pytest.mark.parametrize("starter", ["loop", "slot"])
def test_a_job_is_at_no_time_in_nobody_s_hands(queue: Workers, starter: str) -> None:
    """Between ready and running it must hear that its lease was lost, and be known as held."""
    worker = Worker(queue.jobs, queue.engine, queues={"default": 1}, **FAST)
    told: list[bool] = []
    losing: list[threading.Thread] = []
    target = "bgjob-worker" if starter == "loop" else "bgjob-handler"

    def lose_now(job: Any) -> None:
        if not losing and threading.current_thread().name.startswith(target):
            thread = threading.Thread(target=worker._loop._hands.lost)
            losing.append(thread)
            thread.start()
            thread.join(0.5)  # it must not get through while the job changes hands

    @queue.jobs.handler("look", session=False)
    def look(ctx: Context[Any]) -> None:
        if losing:
            losing[0].join(10)
            told.append(ctx.lease_lost)

    enqueue_many(queue.engine, look, [None] * 50)
    with at("starting", lose_now), worker:
        wait_until(lambda: told, 20, what="a run that was lost while it changed hands")
    assert told[0] is True


def test_claimed_jobs_that_could_not_be_taken_are_handed_back(queue: Workers) -> None:
    """A mistake between the COMMIT of a claim and the start must not strand the jobs."""
    failures = [RuntimeError("a mistake"), RuntimeError("another one")]

    def fail_twice(jobs: Any) -> None:
        if failures:
            raise failures.pop()

    enqueue_many(queue.engine, queue.work, [None] * 5)
    with at("claim", fail_twice), Worker(queue.jobs, queue.engine, **FAST):
        wait_until(lambda: not queue.job_rows(), 20, what="the end of all jobs")
    assert failures == []
