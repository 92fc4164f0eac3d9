"""One row that refuses, is locked or can't be read never harms its neighbours."""

import threading
import time

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_bgjob import BGJob, Context, Observer, Worker, enqueue, enqueue_many
from sqlalchemy_bgjob._handlers.outcomes import COMPLETED, Kind, Settlement
from sqlalchemy_bgjob._lifecycle import claim, settle
from sqlalchemy_bgjob._lifecycle.settle import Fate, Pending
from sqlalchemy_bgjob._lifecycle.unknown_claims import return_unknown_claims
from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob._worker import attempt
from sqlalchemy_bgjob.testing.points import at
from support import wait_until
from support.tables import new_queue

# PostgreSQL takes this integer; Python reads none of more than 4,300 digits.
UNREADABLE = '{"a": ' + "9" * 5000 + "}"
FAST = {"heartbeat_interval": 0.5, "lease_timeout": 3.0, "rescue_interval": 0.3}


class Counter(Observer):
    """What was completed, and what went wrong."""

    def __init__(self):
        self.completed = []
        self.errors = []
        self.retried = []
        self.rescheduled = []

    def job_completed(self, job, run):
        self.completed.append(job.id)

    def worker_error(self, error):
        self.errors.append(error)

    def job_will_be_retried(self, job, run):
        self.retried.append((job.id, run.error))

    def job_rescheduled(self, job, run):
        self.rescheduled.append(job.id)


@pytest.fixture
def app(engine):
    """A queue with a handler that does nothing and one that writes a row."""

    class Base(DeclarativeBase):
        pass

    class Note(Base):
        __tablename__ = "note"
        id: Mapped[int] = mapped_column(primary_key=True)
        job_id: Mapped[str]

    class App:
        jobs = BGJob(Base)
        note = Note

    @App.jobs.handler("noop")
    def noop(ctx: Context):
        pass

    @App.jobs.handler("write")
    def write(ctx: Context):
        ctx.session.add(Note(job_id=ctx.job.id))

    App.noop, App.write = noop, write
    App.statements = Statements(App.jobs.models)
    Base.metadata.create_all(engine)
    return App


def left(engine, app):
    with engine.connect() as connection:
        return set(connection.scalars(select(app.jobs.Job.id)))


def refuse_updates(engine):
    """A check that was added to a table that is in use: old rows refuse every UPDATE."""
    with engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE bgjob_job ADD CONSTRAINT low CHECK (priority <> 7) NOT VALID")
        )


@pytest.mark.core
def test_a_row_that_refuses_to_be_claimed_is_left_aside(engine, app):
    """And so is one whose headers no program can read; both are reported."""
    refusing = enqueue(engine, app.noop, priority=7)
    refuse_updates(engine)
    unreadable = enqueue(engine, app.noop, priority=-9)
    with engine.begin() as connection:
        connection.execute(
            text("UPDATE bgjob_job SET headers = CAST(:headers AS jsonb) WHERE id = :id"),
            {"headers": UNREADABLE, "id": unreadable.id},
        )
    enqueue_many(engine, app.noop, [None] * 20)
    events = Counter()

    with Worker(app.jobs, engine, queues={"default": 5}, observers=[events]):
        wait_until(lambda: len(events.completed) == 20)
        later = enqueue(engine, app.noop)
        wait_until(lambda: later.id in events.completed)

    assert left(engine, app) == {refusing.id, unreadable.id}
    assert len(events.errors) >= 2


@pytest.mark.core
def test_rows_that_refuse_at_the_head_keep_nobody_waiting(engine, app):
    """As many as there are slots, and more: the next job gets through."""
    refusing, good = [f"refuses-{n}" for n in range(3)], [f"good-{n}" for n in range(5)]
    enqueue_many(engine, app.noop, [None] * 3, ids=refusing, priority=7)
    refuse_updates(engine)
    events = Counter()

    with Worker(app.jobs, engine, queues={"default": 1}, observers=[events]):
        wait_until(lambda: len(events.errors) >= 3, what="each was tried, and told of")
        enqueue_many(engine, app.noop, [None] * 5, ids=good, priority=8)
        wait_until(lambda: len(events.completed) == 5, 5, what="the others")

    assert sorted(events.completed) == good
    assert left(engine, app) == set(refusing)
    assert len(events.errors) == 3, "for a minute they are not tried again"


@pytest.mark.core
def test_an_unreadable_row_goes_back_without_an_attempt(engine, app):
    """A claim commits by itself, before anybody has read its rows."""
    events = Counter()
    waits = text("SELECT count(*) FROM bgjob_worker WHERE waits_for ? 'default'")

    with Worker(app.jobs, engine, queues={"default": 5}, observers=[events], poll_interval=60):
        with engine.connect() as connection:
            wait_until(lambda: connection.scalar(waits), what="an idle worker")
        with Session(engine) as session:
            session.add(app.jobs.Job(queue="default", type="noop", id="00-unreadable"))
            session.flush()
            session.execute(
                text("UPDATE bgjob_job SET headers = CAST(:headers AS jsonb)"),
                {"headers": UNREADABLE},
            )
            enqueue_many(session, app.noop, [None] * 5)
            session.commit()
        wait_until(lambda: len(events.completed) == 5)

    with engine.connect() as connection:
        row = connection.execute(
            text("SELECT id, attempt, crashes, claimed_by, lease FROM bgjob_job")
        ).one()
    assert row[:4] == ("00-unreadable", 0, 0, None)
    assert row.lease > 0, "it was claimed, and handed back"
    assert [type(error) for error in events.errors] == [ValueError], "no connection was lost"


@pytest.mark.parametrize("alone", [False, True], ids=["in a transaction", "by itself"])
def test_a_refusing_row_keeps_no_other_queue_waiting(engine, app, alone):
    """One claim serves all queues. One that commits by itself has committed before it is read."""
    if not alone:
        event.listen(engine, "begin", lambda _: None)
    with Session(engine) as session:
        session.add(app.jobs.Job(queue="bad", type="noop", id="unreadable"))
        session.flush()
        session.execute(
            text("UPDATE bgjob_job SET headers = CAST(:headers AS jsonb)"),
            {"headers": UNREADABLE},
        )
        for queue in ("bad", "good"):
            enqueue_many(session, app.noop, [None] * 5, queue=queue)
        session.commit()
    events, returned = Counter(), []

    with (
        at("returning", returned.append),
        Worker(app.jobs, engine, queues={"bad": 5, "good": 5}, observers=[events]),
    ):
        wait_until(lambda: len(events.completed) == 10)
        wait_until(lambda: events.errors, what="the error of the other one")

    assert bool(returned) == alone, "what is not committed needs no return"
    assert left(engine, app) == {"unreadable"}
    assert {type(error) for error in events.errors} == {ValueError}


@pytest.mark.core
def test_a_look_that_fails_halfway_has_claimed_nothing(engine, app, monkeypatch):
    """It skips a row that refuses, and so takes several statements, in one transaction."""
    refusing = enqueue(engine, app.noop, priority=-7)
    with engine.begin() as connection:
        connection.execute(
            text("ALTER TABLE bgjob_job ADD CONSTRAINT low CHECK (priority <> -7) NOT VALID")
        )
    events, claim_jobs, failed = Counter(), claim.claim, []

    def fail_once(connection, statements, **given):
        jobs = claim_jobs(connection, statements, **given)
        if jobs and given["skip"] and not failed:
            failed.extend(job.id for job in jobs)
            connection.execute(text("SELECT 1 / 0"))
        return jobs

    monkeypatch.setattr(claim, "claim", fail_once)
    with Worker(app.jobs, engine, observers=[events], orphan_interval=3600.0):
        wait_until(lambda: events.errors, what="the row that refuses")
        later = enqueue(engine, app.noop)
        wait_until(lambda: later.id in events.completed, 15, what="the job is claimed again")

    assert failed == [later.id]
    assert left(engine, app) == {refusing.id}


def test_a_row_that_refuses_to_be_given_back_keeps_no_other(engine, app):
    """Rescue goes on: for its neighbours, and for other workers' jobs."""
    dead, silent = 11, 12
    jobs = [enqueue(engine, app.noop, id=name) for name in ("bad", "good", "silent")]
    with engine.begin() as connection:
        for worker, beat in ((dead, "1 hour"), (silent, "2 hours")):
            connection.execute(
                text(
                    "INSERT INTO bgjob_worker"
                    " (id, hostname, pid, version, queues, lease_timeout, beat_at)"
                    " VALUES (:id, 'h', 1, '0', '{}', 3, now() - CAST(:beat AS interval))"
                ),
                {"id": worker, "beat": beat},
            )
        connection.execute(text("UPDATE bgjob_job SET claimed_by = 11, attempt = 1"))
        connection.execute(text("UPDATE bgjob_job SET claimed_by = 12 WHERE id = 'silent'"))
        connection.execute(text("UPDATE bgjob_job SET priority = 7 WHERE id = 'bad'"))
    refuse_updates(engine)

    with Worker(app.jobs, engine, **FAST):
        wait_until(lambda: left(engine, app) == {"bad"}, 20)

    assert len(jobs) == 3


def test_jobs_of_a_new_release_wait_for_its_workers(engine, app):
    """A rolling deploy: workers of the old release meet a type that they do not know."""
    old, new = new_queue(), new_queue()
    seen = []

    @old.handler("old", session=False)
    @new.handler("old", session=False)
    def of_old(ctx: Context):
        seen.append(("old", ctx.job.attempt))

    @new.handler("new", session=False)
    def of_new(ctx: Context):
        seen.append(("new", ctx.job.attempt))

    met = text("SELECT count(*) FROM bgjob_job WHERE unknown_since IS NOT NULL")
    leaving = Worker(old, engine, queues={"default": 5})
    leaving.start()
    with engine.connect() as connection:
        for job_type in ("old", "new"):
            for _ in range(20):
                new.enqueue(engine, job_type, queue="default")
        wait_until(lambda: connection.scalar(met) == 20, what="types that nobody knows")
        wait_until(lambda: seen.count(("old", 1)) == 20)
        with Worker(new, engine, queues={"default": 5}):
            leaving.stop()
            wait_until(lambda: seen.count(("new", 1)) == 20, what="the new type's jobs")

    assert len(seen) == 40
    assert left(engine, app) == set()


def claimed(engine, app, count, worker=5):
    with engine.begin() as connection:
        return claim.claim(
            connection, app.statements, queue="default", limit=count, worker_id=worker
        )


@pytest.mark.core
def test_a_lost_commit_is_looked_up_only_without_a_fence(engine, app):
    """After a failover a transaction's id may mean nothing, or another transaction."""
    enqueue_many(engine, app.noop, [None] * 4)
    jobs = claimed(engine, app, 4)
    with engine.begin() as connection:
        xid = int(connection.scalar(text("SELECT CAST(pg_current_xact_id() AS text)")))
        connection.execute(text("CREATE TABLE committed (id int)"))
        connection.execute(
            text("DELETE FROM bgjob_job WHERE id = ANY(:ids)"), {"ids": [jobs[2].id, jobs[3].id]}
        )
    retry = Settlement(Kind.RETRY, delay=0.0)
    items = [
        Pending(jobs[0], COMPLETED, xid=str(xid + 1_000_000)),
        Pending(jobs[1], retry, xid=str(xid), if_committed=COMPLETED),
        Pending(jobs[2], retry, xid=str(xid), if_committed=COMPLETED),
        Pending(jobs[3], COMPLETED, xid=str(xid + 1_000_000)),
    ]

    with engine.connect() as connection:
        fates = dict(settle.settle(connection, app.statements, items))

    assert [fates[item] for item in items] == [
        Fate.SETTLED,
        Fate.SETTLED,
        Fate.SETTLED,
        Fate.STALE,
    ]
    assert [item.settlement for item in items[:3]] == [COMPLETED, retry, COMPLETED]
    with engine.connect() as connection:
        rows = connection.execute(select(app.jobs.Job.id, app.jobs.Job.claimed_by)).all()
    assert rows == [(jobs[1].id, None)]


def test_a_lock_on_the_table_of_jobs_makes_nobody_look_dead(engine, app):
    """CREATE INDEX keeps sweeps waiting for longer than the lease; hearts go on beating."""
    release = threading.Event()
    started = []

    @app.jobs.handler("slow")
    def slow(ctx: Context):
        started.append(ctx.job.attempt)
        release.wait(30)

    settings = FAST | {"orphan_interval": 0.2, "lease_timeout": 2.0}
    enqueue_many(engine, slow, [None] * 2)
    with Worker(app.jobs, engine, **settings), Worker(app.jobs, engine, **settings):
        wait_until(lambda: len(started) == 2)
        with engine.begin() as connection:
            connection.execute(text("LOCK TABLE bgjob_job IN SHARE MODE"))
            end = time.monotonic() + 3.5
            wait_until(lambda: time.monotonic() > end)
        release.set()
        wait_until(lambda: not left(engine, app))

    assert started == [1, 1]


def test_two_leases_of_one_job_are_both_known(engine, app):
    """Whichever comes first, the row under the newer lease is not handed back."""
    enqueue(engine, app.noop)
    old = claimed(engine, app, 1)[0]
    with engine.begin() as connection:
        connection.execute(text("UPDATE bgjob_job SET claimed_by = NULL, lease = lease + 1"))
    new = claimed(engine, app, 1)[0]

    with engine.connect() as connection:
        for known in ([old, new], [new, old]):
            assert return_unknown_claims(connection, app.statements, worker_id=5, known=known) == 0


def test_jobs_with_a_session_wait_briefly_for_open_transactions(engine, app, tune):
    """They are undone and come again, and their slots serve others meanwhile."""
    tune(attempt, AFTER_ROW_LOCKED=1.0)
    with engine.begin() as connection:
        connection.execute(
            text(
                "CREATE TABLE mine (job_id text REFERENCES bgjob_job ON DELETE SET NULL);"
                "CREATE INDEX ON mine (job_id)"
            )
        )
    held = [enqueue(engine, app.write, priority=-1) for _ in range(2)]
    events = Counter()
    with engine.connect() as user, user.begin():
        for job in held:
            user.execute(text("INSERT INTO mine VALUES (:id)"), {"id": job.id})
        with Worker(app.jobs, engine, queues={"default": 2}, observers=[events]):
            enqueue_many(engine, app.write, [None] * 10)
            wait_until(lambda: len(events.completed) == 10, 20)
            wait_until(lambda: set(events.rescheduled) == {job.id for job in held}, 20)
            user.get_transaction().commit()
            wait_until(lambda: len(events.completed) == 12, 30)

    with Session(engine) as session:
        assert session.scalar(select(func.count()).select_from(app.note)) == 12
        assert session.scalar(text("SELECT count(*) FROM mine WHERE job_id IS NULL")) == 2
