"""A database that answers and yet refuses claims, or settlements: the worker takes it slowly."""

from __future__ import annotations

import logging
import threading
import time
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, text
from sqlalchemy.orm import DeclarativeBase

from sqlalchemy_bgjob import BGJob, Context, Observer, Worker, enqueue, enqueue_many
from sqlalchemy_bgjob._db.errors import sqlstate
from sqlalchemy_bgjob._worker import rescuer
from sqlalchemy_bgjob._worker.plan import outbox, queue
from sqlalchemy_bgjob.testing.points import at
from support import wait_until
from support.tables import new_queue

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from sqlalchemy_bgjob import JobInfo
    from sqlalchemy_bgjob._handlers.registry import JobType
    from support.tuning import Tune


class Errors(Observer):
    """When each error was told of, and its SQLSTATE."""

    def __init__(self) -> None:
        self.at: list[float] = []
        self.states: list[str | None] = []

    def worker_error(self, error: BaseException) -> None:
        self.at.append(time.monotonic())
        self.states.append(sqlstate(error))


def noting(engine: Engine) -> tuple[BGJob[Any, Any], JobType[None], list[str]]:
    """Tables, a handler that notes the job's id, and what it has noted."""
    jobs = new_queue()
    done: list[str] = []

    @jobs.handler("note", session=False)
    def note(ctx: Context) -> None:
        done.append(ctx.job.id)

    jobs.metadata.create_all(engine)
    return jobs, note, done


def registered(engine: Engine) -> bool:
    with engine.connect() as connection:
        return bool(connection.execute(text("SELECT count(*) FROM bgjob_worker")).scalar())


def claim_unasked(engine: Engine, job: JobInfo) -> None:
    """As a claim that is committed long after its answer was lost."""
    wait_until(lambda: registered(engine), what="the row of the worker")
    with engine.begin() as connection:
        connection.execute(
            text(
                "UPDATE bgjob_job SET claimed_by = (SELECT id FROM bgjob_worker),"
                " lease = lease + 1, attempt = attempt + 1, next_run_at = now() WHERE id = :id"
            ),
            {"id": job.id},
        )


def test_a_worker_finds_what_it_holds_without_knowing(engine: Engine, tune: Tune) -> None:
    """As long as there is nothing of the kind, its loop does not read the table for it."""
    tune(rescuer, _READING_SHARE=1)
    jobs, note, done = noting(engine)
    sweeps: list[str] = []
    returned: list[object] = []
    jobs_in_all = 0

    with (
        at("sweeping", sweeps.append),
        at("returning", returned.append),
        Worker(jobs, engine, orphan_interval=0.05, poll_interval=60.0),
    ):
        while sweeps.count("orphans") < 5:
            jobs_in_all += enqueue_many(engine, note, [None] * 200).inserted
            wait_until(lambda n=jobs_in_all: len(done) == n, what="the jobs of a busy worker")
        in_vain = list(returned)
        late = enqueue(engine, note, delay=60.0)
        claim_unasked(engine, late)
        wait_until(lambda: late.id in done, what="the job that was claimed unasked")

    assert in_vain == []
    assert "unknown" in sweeps
    assert len(returned) == 1


def test_a_look_that_fails_is_not_made_again_before_its_time(engine: Engine, tune: Tune) -> None:
    tune(rescuer, _READING_SHARE=1)  # or a look that takes 0.2 s puts off the next by 20 s
    jobs, note, done = noting(engine)
    looks: list[str] = []

    def look(sweep: str) -> None:
        if sweep in ("orphans", "unknown"):
            looks.append(sweep)
            if looks.count("unknown") == 1 and sweep == "unknown":
                raise ValueError("it takes too long")

    with at("sweeping", look), Worker(jobs, engine, orphan_interval=1.5):
        late = enqueue(engine, note, delay=60.0)
        claim_unasked(engine, late)
        wait_until(lambda: late.id in done, 20, what="the job that was claimed unasked")

    assert looks[-4:] == ["orphans", "unknown"] * 2


def refuse(engine: Engine, change: str, when: str = "") -> None:
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"""
            CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
                AS 'BEGIN RAISE EXCEPTION ''refused''; END';
            CREATE TRIGGER refuse BEFORE {change} ON bgjob_job FOR EACH ROW {when}
                EXECUTE FUNCTION refuse();
            """
        )


def refuse_claims(engine: Engine, queue: str) -> None:
    refuse(engine, "UPDATE", f"WHEN (new.claimed_by IS NOT NULL AND new.queue = '{queue}')")


def test_claims_that_keep_failing_are_tried_ever_more_rarely(engine: Engine) -> None:
    """To reconcile after each failure reads the whole table, and succeeds: no reason to hurry."""

    class Base(DeclarativeBase):
        pass

    jobs = BGJob(Base)
    done: list[str] = []

    @jobs.handler("note")
    def note(ctx: Context) -> None:
        done.append(ctx.job.id)

    Base.metadata.create_all(engine)
    job = enqueue(engine, note)
    refuse_claims(engine, "default")
    errors = Errors()

    with Worker(jobs, engine, observers=[errors]):
        wait_until(lambda: len(errors.at) >= 6, 30, what="six failed claims")
        with engine.begin() as connection:
            connection.execute(text("DROP FUNCTION refuse CASCADE"))
        wait_until(lambda: done == [job.id], 15, what="the job runs")

    # 50 ms that double, each cut by up to a half.
    assert errors.at[5] - errors.at[0] >= 0.5 * 0.05 * (2**5 - 1)


def test_a_queue_whose_claims_are_refused_disturbs_no_other(engine: Engine) -> None:
    """It is tried ever more rarely although the other one goes on, and that one does not wait."""
    jobs, note, done = noting(engine)
    enqueue_many(engine, note, [None] * 200, queue="bad")
    refuse_claims(engine, "bad")
    errors = Errors()
    undisturbed = 0
    with Worker(jobs, engine, queues={"bad": 1, "good": 1}, observers=[errors]):
        wait_until(lambda: errors.at, what="the first refusal")
        for n in range(1, 40):
            began, refused = time.monotonic(), len(errors.at)
            enqueue(engine, note, queue="good")
            wait_until(lambda n=n: len(done) == n, what="the next job of the other queue")
            undisturbed += len(errors.at) == refused
            wait_until(lambda began=began: time.monotonic() >= began + 0.05)
        took = time.monotonic() - errors.at[0]

    print(f"{len(errors.at)} refusals in {took:.1f} s, {undisturbed} jobs with none meanwhile")
    assert undisturbed >= 20, "a job of the other queue waits for the next refusal"
    assert errors.states == ["P0001"] * len(errors.at)
    pauses = [min(0.05 * 2**n, 5.0) / 2 for n in range(len(errors.at) - 1)]
    assert sum(pauses) <= took, "50 ms that double up to 5 s, each cut by up to a half"


def test_a_refused_claim_does_not_read_the_whole_table(engine: Engine) -> None:
    """The server has committed nothing of it, so there is nothing to return."""
    jobs, note, done = noting(engine)
    enqueue(engine, note, queue="bad")
    refuse_claims(engine, "bad")
    errors, returned = Errors(), list[object]()

    with (
        at("returning", returned.append),
        Worker(jobs, engine, queues={"bad": 1, "good": 1}, observers=[errors]),
    ):
        wait_until(lambda: len(errors.at) >= 2, what="refusals, of both queues and of one")
        enqueue(engine, note, queue="good")
        wait_until(lambda: done, what="the job of the other queue")

    assert returned == []


def test_a_job_is_not_left_aside_for_what_its_session_lacks(engine: Engine) -> None:
    """A pooler has taken the session's prepared statements away: in another one all is well."""
    jobs, note, done = noting(engine)
    errors = Errors()
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE SEQUENCE refusals")
        connection.exec_driver_sql(  # the claim of both jobs, and then of the first by itself
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.id = 'first' AND nextval('refusals') <= 2 THEN "
            "RAISE EXCEPTION 'no such statement' USING ERRCODE = '26000'; END IF; "
            "RETURN NEW; END $$"
        )
        connection.exec_driver_sql(
            "CREATE TRIGGER refuse BEFORE UPDATE ON bgjob_job"
            " FOR EACH ROW EXECUTE FUNCTION refuse()"
        )
    enqueue_many(engine, note, [None] * 2, ids=["first", "second"])

    with Worker(jobs, engine, observers=[errors]):
        # Long before the end of the minute for which a row that refuses is left aside.
        wait_until(lambda: len(done) == 2, what="both jobs")

    assert "26000" in errors.states


@pytest.mark.parametrize(
    ("ends", "told"),
    [("SELECT pg_sleep(10)", "57014"), ("SELECT pg_terminate_backend(pg_backend_pid())", "57P01")],
    ids=["statement_timeout", "session ended"],
)
def test_what_can_not_be_handed_back_keeps_no_job_waiting(
    engine: Engine, ends: str, told: str
) -> None:
    """A worker that looks for jobs of its own that it does not know reads the whole table.

    Where a time limit or something on the way does not let it, that happens each time.
    """
    jobs, note, done = noting(engine)

    def refuse(connection: Connection) -> None:
        with connection.begin():
            connection.exec_driver_sql("SET LOCAL statement_timeout = 1")
            connection.exec_driver_sql(ends)

    errors = Errors()
    made = Worker(jobs, engine, observers=[errors], orphan_interval=0.2)
    with at("returning", refuse), made:
        claim_unasked(engine, enqueue(engine, note, delay=60.0))
        wait_until(lambda: told in errors.states, what="a look that was refused")
        for n in range(1, 6):
            enqueue(engine, note)
            wait_until(lambda n=n: len(done) == n, 5, what="a job after it")
        assert set(errors.states) == {told}


@pytest.mark.timeout(600)
def test_what_can_not_be_settled_is_not_heaped_up(engine: Engine, tune: Tune) -> None:
    """All that has run and is not settled would run again if the worker ended."""
    tune(queue, MOST_UNWRITTEN=200)
    tune(outbox, _RETRY_REFUSED=(1.0, 5.0))
    jobs, note, done = noting(engine)
    errors = Errors()
    refuse(engine, "DELETE")
    enqueue_many(engine, note, [None] * 600)

    with Worker(jobs, engine, queues={"default": 2}, observers=[errors], max_claim=50) as worker:
        wait_until(lambda: len(errors.at) >= queue.MOST_UNWRITTEN, 180, what="refused settlements")
        wait_until(lambda: time.monotonic() > errors.at[-1] + 1.0, 180, what="no more of them")
        mended = len(done)
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP FUNCTION refuse CASCADE")
        wait_until(lambda: len(done) == 600, 180, what="the rest, when they are written")
        wait_until(lambda: not worker._loop._hands.planner.busy, 180, what="all settlements")

    assert mended <= queue.MOST_UNWRITTEN + 3 * 50
    assert len(set(done)) == 600


@pytest.mark.parametrize(
    ("broken", "mended", "told"),
    [
        (
            "ALTER TABLE bgjob_job DROP COLUMN unknown_since",
            "ALTER TABLE bgjob_job ADD COLUMN unknown_since timestamptz",
            "42703",
        ),
        ("ALTER TABLE bgjob_job RENAME TO away", "ALTER TABLE away RENAME TO bgjob_job", "42P01"),
        (
            "REVOKE UPDATE ON bgjob_job FROM {role}",
            "GRANT UPDATE ON bgjob_job TO {role}",
            "42501",
        ),
    ],
    ids=["column", "table", "privilege"],
)
def test_broken_tables_are_reported_until_they_are_mended(
    engine: Engine, caplog: pytest.LogCaptureFixture, broken: str, mended: str, told: str
) -> None:
    """It neither ends nor hurries, and works on by itself, and its log says so."""
    jobs, note, done = noting(engine)
    role = f"worker_{engine.url.database}"
    errors = Errors()

    def run(statement: str) -> None:
        with engine.begin() as connection:
            connection.exec_driver_sql(statement.format(role=f'"{role}"'))

    run("CREATE ROLE {role} LOGIN PASSWORD 'test'")
    try:
        run("GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
        poor = create_engine(engine.url.set(username=role, password="test"))
        with Worker(jobs, poor, observers=[errors], poll_interval=0.1):
            first = enqueue(engine, note)
            wait_until(lambda: done == [first.id], what="a job before")

            run(broken)
            wait_until(lambda: errors.states.count(told) >= 4, 20, what="errors that are told")
            run(mended)
            second = enqueue(engine, note)
            wait_until(lambda: done == [first.id, second.id], what="a job after")
        poor.dispose()
    finally:
        run("DROP OWNED BY {role}")
        run("DROP ROLE {role}")

    assert len(errors.at) < 100
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert any(told in warning for warning in warnings)


def test_a_log_that_nobody_reads_keeps_no_signal_from_the_worker(engine: Engine) -> None:
    """A worker of an older release logs of each new type of job that it does not know."""
    jobs = new_queue()
    jobs.metadata.create_all(engine)

    @jobs.handler("known")
    def known(ctx: Context[Any], arg: Any) -> None: ...

    blocked, read = threading.Event(), threading.Event()

    class Full(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "no handler for job type" in record.getMessage():
                blocked.set()
                read.wait(30)

    pipe = Full()
    logger = logging.getLogger("sqlalchemy_bgjob")
    logger.addHandler(pipe)
    try:
        jobs.enqueue(engine, "unknown", None, queue="default")
        with Worker(jobs, engine, queues={"default": 1}) as worker:
            assert blocked.wait(20)
            stopping = threading.Thread(target=worker.request_stop, daemon=True)
            stopping.start()
            stopping.join(5)
            returned = not stopping.is_alive()
            read.set()
        assert returned, "it waits for the one who logs"
    finally:
        read.set()
        logger.removeHandler(pipe)
