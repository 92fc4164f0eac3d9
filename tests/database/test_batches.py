"""Batches: jobs that belong together, and the one that follows when all of them have ended."""

from __future__ import annotations

from contextlib import contextmanager
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, event, false, func, literal, select, text
from sqlalchemy import values as rows_of
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.sql import column
from sqlalchemy.types import Integer

from sqlalchemy_bgjob import (
    BGJob,
    Complete,
    Context,
    InvalidArg,
    JobAlreadyExists,
    Unique,
    enqueue,
    enqueue_from,
    enqueue_many,
)
from sqlalchemy_bgjob._handlers.outcomes import (
    CANCELLED,
    COMPLETED,
    DROPPED,
    HAND_BACK,
    Kind,
    Settlement,
)
from sqlalchemy_bgjob._inspect.batches import batches as listed
from sqlalchemy_bgjob._lifecycle import run, settle
from sqlalchemy_bgjob._lifecycle.batches import Looked, batches_of, finish, forget, look_through
from sqlalchemy_bgjob._lifecycle.settle import Pending
from sqlalchemy_bgjob._sql import statements_of
from sqlalchemy_bgjob.models import DeadJobMixin, JobMixin
from support.producers import UNITS, Producer, produce
from support.rows import claim
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from sqlalchemy_bgjob._drafts.batch import OnDead, OpenBatch

pytestmark = [pytest.mark.core, pytest.mark.keeps_tables]

RETRIED = Settlement(Kind.RETRY, delay=0.0, error="failed")
DEAD = Settlement(Kind.DEAD, error="given up")


class Press:
    """A queue of pages to print, and what is bound when they are printed."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.jobs = engine, new_queue()
        self.jobs.metadata.create_all(engine)
        self.statements = statements_of(self.jobs.models)

        @self.jobs.handler("page", queue="q")
        def page(ctx: Context[Any], number: int) -> None: ...

        @self.jobs.handler("bind", queue="after")
        def bind(ctx: Context[Any], title: str) -> None: ...

        @self.jobs.handler("leaf", queue="q")
        def leaf(ctx: Context[Any], arg: dict[str, int]) -> None: ...

        self.page, self.leaf, self.bind = page, leaf, bind

    def print(self, count: int, *, on_dead: OnDead = "continue", then: bool = True) -> OpenBatch:
        """A batch of pages, committed."""
        follower = self.bind.job("Faust") if then else None
        with (
            self.engine.begin() as connection,
            self.jobs.batch(connection, then=follower, on_dead=on_dead) as batch,
        ):
            enqueue_many(connection, self.page, range(count), batch=batch)
        return batch

    def claim(self, limit: int = 100) -> list[Any]:
        with self.engine.connect() as connection:
            return claim(connection, self.statements, limit=limit)

    def settle(self, jobs: list[Any], settlement: Settlement = COMPLETED) -> list[Pending]:
        """As a worker would, without the look that follows."""
        items = [Pending(job, settlement) for job in jobs]
        with self.engine.connect() as connection:
            settle.settle(connection, self.statements, items)
        return items

    def finish(self, *batches: OpenBatch) -> list[str]:
        with self.engine.connect() as connection:
            return finish(connection, self.statements, [batch.id for batch in batches])

    def sweep(self, **options: Any) -> Looked:
        options = dict[str, Any](after="", limit=100) | options
        with self.engine.connect() as connection:
            return look_through(connection, self.statements, **options)

    def forget(self, keep: float, **options: Any) -> Looked:
        options = dict[str, Any](after="", limit=100) | options
        with self.engine.connect() as connection:
            return forget(connection, self.statements, keep=keep, **options)

    def followers(self) -> list[tuple[str, bytes]]:
        """Id and arg of each job that follows a batch."""
        job = self.jobs.models.job
        query = select(job.c.id, job.c.arg).where(job.c.queue == "after").order_by(job.c.id)
        with self.engine.connect() as connection:
            return [(id, bytes(arg)) for id, arg in connection.execute(query)]

    def info(self, batch: OpenBatch) -> Any:
        return self.jobs.batch_info(self.engine, batch.id)


@pytest.fixture
def press(engine: Engine) -> Press:
    return Press(engine)


# ---- the block ----------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", UNITS)
def test_every_target_makes_a_batch_and_its_jobs(press: Press, kind: str) -> None:
    """Whichever way they come; a rollback leaves nothing."""
    jobs = press.jobs
    rows = rows_of(column("number", Integer), name="given").data([(5,), (6,)])

    async def add(made: Producer, batch: OpenBatch) -> None:
        await made.do(enqueue(made.target, press.page, 1, batch=batch))
        await made.do(jobs.enqueue(made.target, "page", 2, batch=batch, expires=60))
        await made.do(enqueue_many(made.target, press.page, [3, 4], batch=batch))
        query = select(rows.c.number.label("number"))
        await made.do(enqueue_from(made.target, press.leaf, query, batch=batch))
        many = [press.page.job(7, batch=batch), press.page.job(8, batch=batch)]
        await made.do(enqueue_many(made.target, many))
        if made.is_session:
            made.target.add(press.page.job(9, batch=batch))

    async def work(made: Producer) -> OpenBatch:
        is_async = kind.startswith(("Async", "async"))
        for end in (made.rollback, made.commit):
            if is_async:
                async with jobs.batch(made.target, then=press.bind.job("Faust")) as batch:
                    await add(made, batch)
            else:
                with jobs.batch(made.target, then=press.bind.job("Faust")) as batch:
                    await add(made, batch)
            await end()
        return batch

    batch = produce(kind, press.engine, work)

    total = 9 if "ession" in kind or kind.startswith(("Flask", "SQLModel")) else 8
    info = press.info(batch)
    assert (info.total, info.live, info.dead, info.ended) == (total, total, 0, 0)
    assert (info.then_type, info.then_queue, info.finished_at) == ("bind", "after", None)
    with press.engine.connect() as connection:
        whole = connection.scalar(text("SELECT count(*) FROM bgjob_batch"))
        others = connection.scalar(
            text("SELECT count(*) FROM bgjob_job WHERE batch_id IS DISTINCT FROM :id"),
            {"id": batch.id},
        )
    assert (whole, others) == (1, 0)


def test_copied_jobs_belong_to_their_batch(press: Press) -> None:
    """A bulk of many goes by COPY."""
    batch = press.print(2_000)

    assert press.info(batch).total == 2_000


def test_a_session_that_does_not_flush_by_itself_is_flushed(press: Press) -> None:
    with Session(press.engine, autoflush=False) as session:
        with press.jobs.batch(session) as batch:
            session.add(press.page.job(1, batch=batch))
        session.commit()

    assert press.info(batch).total == 1


def test_a_batch_without_jobs_is_finished_at_once(press: Press) -> None:
    batch = press.print(0)

    assert press.info(batch).finished_at is not None
    assert press.followers() == [(batch.then_id, b'"Faust"')]


def without_a_row(press: Press, connection: Connection, batch: OpenBatch) -> None:
    nothing = select(literal(1).label("number")).where(false())
    assert enqueue_from(connection, press.leaf, nothing, batch=batch) == 0


def of_duplicates(press: Press, connection: Connection, batch: OpenBatch) -> None:
    enqueue(connection, press.page, 1, id="there")
    enqueue(connection, press.page, 1, id="there", on_conflict="ignore", batch=batch)
    enqueue_many(connection, press.page, [1], ids=["there"], on_conflict="ignore", batch=batch)


def of_a_duplicate_that_is_told(press: Press, connection: Connection, batch: OpenBatch) -> None:
    enqueue(connection, press.page, 1, id="there")
    with pytest.raises(JobAlreadyExists):
        enqueue(connection, press.page, 1, id="there", batch=batch)


def of_what_is_undone(press: Press, connection: Connection, batch: OpenBatch) -> None:
    savepoint = connection.begin_nested()
    enqueue(connection, press.page, 1, batch=batch)
    savepoint.rollback()


def of_what_is_refused(press: Press, connection: Connection, batch: OpenBatch) -> None:
    with pytest.raises(InvalidArg):
        enqueue(connection, press.page, object(), batch=batch)  # type: ignore[misc]


@pytest.mark.parametrize(
    "add",
    [
        without_a_row,
        of_duplicates,
        of_a_duplicate_that_is_told,
        of_what_is_undone,
        of_what_is_refused,
    ],
)
def test_jobs_that_are_not_inserted_are_not_missed(press: Press, add: Any) -> None:
    """No batch waits for them, and its block ends as one without jobs."""
    with press.engine.begin() as connection, press.jobs.batch(connection) as batch:
        add(press, connection, batch)

    assert press.info(batch).total == 0
    assert press.info(batch).finished_at is not None


def test_a_block_that_raises_leaves_no_batch(press: Press) -> None:
    with press.engine.begin() as connection:
        block = press.jobs.batch(connection, then=press.bind.job("Faust"))
        batch = block.__enter__()
        enqueue(connection, press.page, 1, batch=batch)
        assert not block.__exit__(LookupError, LookupError(), None)
        with pytest.raises(ValueError, match="takes no jobs now"):
            enqueue(connection, press.page, 1, batch=batch)

    assert press.info(batch) is None
    assert press.sweep() == Looked(None, [])


def test_headers_of_the_application_go_with_the_follower(press: Press) -> None:
    press.jobs.on_enqueue(lambda kind, queue: {"request": f"of {kind}"})
    batch = press.print(1)
    press.settle(press.claim())
    press.finish(batch)

    job = press.jobs.models.job
    with press.engine.connect() as connection:
        headers = connection.scalar(select(job.c.headers).where(job.c.id == batch.then_id))
    assert headers == {"request": "of bind"}


# ---- what is refused ----------------------------------------------------------------------------


def test_what_a_batch_can_not_keep_is_refused(press: Press) -> None:
    jobs, engine = press.jobs, press.engine
    other = new_queue(table_prefix="other_")
    elsewhere = other.handler("page", queue="q")(lambda ctx, number: None)
    with engine.begin() as connection:
        for then, words in (
            (press.bind.job("x", delay=60), "delay="),
            (press.bind.job("x", run_at=datetime.now(UTC)), "run_at="),
            (press.bind.job("x", priority=-1), "priority="),
            (press.bind.job("x", unique="k"), "unique="),
            (press.bind.job("x", expires=60), "expires="),
            (elsewhere.job(1), "another BGJob"),
        ):
            with pytest.raises(ValueError, match=words):
                jobs.batch(connection, then=then)
        changed = press.bind.job("x")
        changed.priority = 5
        with pytest.raises(ValueError, match="priority of then= was set after"):
            jobs.batch(connection, then=changed)
        with jobs.batch(connection) as batch, pytest.raises(ValueError, match="nothing follows"):
            _ = batch.then_id
        with pytest.raises(TypeError, match=r"made by handler\.job"):
            jobs.batch(connection, then=press.bind)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="neither 'continue' nor 'stop'"):
            jobs.batch(connection, on_dead="cancel")  # type: ignore[call-overload]
        with jobs.batch(connection) as batch:
            for options in ({"unique": "k"}, {"unique": Unique("k", "queued")}):
                with pytest.raises(ValueError, match="no batch waits for"):
                    enqueue(connection, press.page, 1, batch=batch, **options)  # type: ignore[arg-type]
            with pytest.raises(ValueError, match="another BGJob"):
                enqueue(connection, elsewhere, 1, batch=batch)
            with pytest.raises(TypeError, match="takes what"):
                enqueue(connection, press.page, 1, batch=batch.id)  # type: ignore[call-overload]
            enqueue(connection, press.page, 1, batch=batch)
            with pytest.raises(ValueError, match="has batch="):
                jobs.batch(connection, then=press.bind.job("x", batch=batch))


def test_a_column_of_yours_that_no_follower_has_is_told() -> None:
    """At the block, and not when the last job has ended, months later perhaps."""

    class Base(DeclarativeBase):
        pass

    class Job(JobMixin, Base):
        __tablename__ = "bgjob_job"
        tenant: Mapped[int] = mapped_column()
        note: Mapped[str] = mapped_column(default="none")

    class DeadJob(DeadJobMixin, Base):
        __tablename__ = "bgjob_dead_job"

    jobs = BGJob(models=(Job, DeadJob))
    follower = jobs.handler("t")(lambda ctx: None)
    with pytest.raises(ValueError, match="must have a value, tenant, and"):
        jobs.batch(Session(), then=follower.job())


def test_a_batch_belongs_to_a_transaction(press: Press) -> None:
    """And its jobs to the same one."""
    with pytest.raises(TypeError, match="an engine would make several"):
        press.jobs.batch(press.engine)  # type: ignore[call-overload]
    alone = create_engine(press.engine.url, isolation_level="AUTOCOMMIT")
    with alone.connect() as connection, pytest.raises(ValueError, match="AUTOCOMMIT"):
        press.jobs.batch(connection).__enter__()
    alone.dispose()
    with press.engine.connect() as connection, press.engine.connect() as another:
        with press.jobs.batch(connection) as batch:
            for target in (another, press.engine):
                for add in (
                    lambda to: enqueue(to, press.page, 1, batch=batch),
                    lambda to: enqueue_many(to, press.page, [1], batch=batch),
                    lambda to: enqueue_many(to, [press.page.job(1, batch=batch)]),
                    lambda to: without_a_row(press, to, batch),
                ):
                    with pytest.raises(ValueError, match="begun in another transaction"):
                        add(target)
        connection.commit()

    assert press.info(batch).total == 0
    assert press.claim() == []


def test_a_job_that_is_added_after_the_block_is_refused(press: Press) -> None:
    """Its batch is closed, and may be finished already."""
    with Session(press.engine) as session, press.jobs.batch(session) as batch:
        late = press.page.job(1, batch=batch)
    with Session(press.engine) as session:
        session.add(late)
        with pytest.raises(ValueError, match="begun in another transaction"):
            session.commit()


def test_a_closed_batch_takes_no_job_on_an_idle_connection(press: Press) -> None:
    """That has no transaction, and neither has the batch any more."""
    with press.engine.connect() as connection:
        with press.jobs.batch(connection) as batch:
            late = press.page.job(1, batch=batch)
        connection.commit()
        with pytest.raises(ValueError, match="begun in another transaction"):
            enqueue_many(connection, [late])

    assert press.info(batch).total == 0
    assert press.claim() == []


def test_a_commit_within_the_block_is_refused(press: Press) -> None:
    with Session(press.engine) as session:
        block = press.jobs.batch(session)
        batch = block.__enter__()
        enqueue(session, press.page, 1, batch=batch)
        session.commit()
        with pytest.raises(ValueError, match="commit after the block"):
            block.__exit__(None, None, None)


def test_a_hook_that_runs_in_a_flush_may_make_a_batch(press: Press) -> None:
    batches: list[OpenBatch] = []
    with Session(press.engine) as session:

        @event.listens_for(session, "before_flush")
        def add(session: Session, *_: Any) -> None:
            if not batches:
                with press.jobs.batch(session) as batch:
                    batches.append(batch)
                    enqueue(session, press.page, 1, batch=batch)

        session.add(press.page.job(2))
        session.commit()

    assert press.info(batches[0]).total == 1


# ---- the end ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "last", [COMPLETED, CANCELLED, DROPPED, DEAD], ids=lambda end: end.kind.name
)
def test_it_is_finished_when_the_last_job_has_ended(press: Press, last: Settlement) -> None:
    batch = press.print(3)
    first, second, third = press.claim()

    for job in (first, second):
        assert batches_of(press.settle([job])) == {batch.id}
        assert press.finish(batch) == []
    for unended in (RETRIED, HAND_BACK):
        assert batches_of(press.settle([third], unended)) == set()
        assert press.finish(batch) == []
        (third,) = press.claim()
    assert press.followers() == []

    assert batches_of(press.settle([third], last)) == {batch.id}
    assert press.finish(batch) == [batch.id]
    assert press.finish(batch) == []
    assert press.followers() == [(batch.then_id, b'"Faust"')]
    info = press.info(batch)
    assert (info.ended, info.live, info.dead) == (3, 0, int(last is DEAD))


def test_a_batch_that_stops_waits_for_its_dead_jobs(press: Press) -> None:
    """Until each is redriven and ends, or is deleted."""
    batch = press.print(2, on_dead="stop")
    press.settle(press.claim(), DEAD)
    assert press.finish(batch) == []

    redriven = press.jobs.DeadJob.batch_id == batch.id
    assert len(press.jobs.redrive(press.engine, redriven, limit=1).ids) == 1
    press.settle(press.claim())
    assert press.finish(batch) == []

    with press.engine.begin() as connection:
        connection.execute(press.jobs.models.dead_job.delete())
    assert press.sweep().ids == [batch.id]
    assert press.followers() == [(batch.then_id, b'"Faust"')]


def test_a_job_that_is_redriven_later_lets_nothing_follow_again(press: Press) -> None:
    batch = press.print(1)
    press.settle(press.claim(), DEAD)
    press.finish(batch)

    press.jobs.redrive(press.engine, press.jobs.DeadJob.batch_id == batch.id)
    (again,) = press.claim()
    assert again.batch == batch.id
    press.settle([again])
    assert press.finish(batch) == []
    assert len(press.followers()) == 1


def test_a_replaced_job_stays_in_its_batch(press: Press) -> None:
    """Its key was written by somebody who knows what he does."""
    batch = press.print(1)
    job = press.jobs.models.job
    with press.engine.begin() as connection:
        connection.execute(job.update().values(unique_key="q:k"))
        unique = Unique("k", "queued", on_conflict="replace")
        assert not enqueue(connection, press.page, 2, unique=unique).inserted

    assert press.finish(batch) == []
    press.settle(press.claim())
    assert press.finish(batch) == [batch.id]


def test_cancelled_jobs_end_too(press: Press) -> None:
    """Of a user's transaction nobody looks at what follows, so the leader does."""
    batch = press.print(2)
    assert press.jobs.cancel_where(press.engine, press.jobs.Job.batch_id == batch.id).cancelled == 2

    assert press.sweep().ids == [batch.id]


def test_work_one_finishes_in_the_callers_transaction(press: Press) -> None:
    batch = press.print(2)
    with press.engine.connect() as connection:
        for _ in range(2):
            press.jobs.work_one(connection, "q")
        assert press.jobs.batch_info(connection, batch.id).finished_at is not None  # type: ignore[union-attr]
        connection.rollback()

    assert press.followers() == []
    assert press.info(batch).finished_at is None


@pytest.mark.parametrize("code", ["23514", "UX001"])
def test_work_one_ends_its_job_though_the_follower_is_refused(
    press: Press, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    """The job is not to blame, nor is who works on it; the leader tries again."""
    batch = press.print(1)
    with refusing(press.engine, batch.then_id, code), press.engine.begin() as connection:
        assert isinstance(press.jobs.work_one(connection, "q"), Complete)
    assert f"batch {batch.id}" in caplog.text

    assert press.claim() == []
    assert press.sweep().ids == [batch.id]


# ---- two at once --------------------------------------------------------------------------------


def test_of_two_who_end_the_last_jobs_one_finishes(press: Press) -> None:
    """Neither sees the other's end before its own is committed; the later one sees both."""
    batch = press.print(2)
    one, other = press.claim()
    with press.engine.connect() as first, press.engine.connect() as second:
        begun = [connection.begin() for connection in (first, second)]
        for connection, job in ((first, one), (second, other)):
            settle.write(connection, press.statements, [Pending(job, COMPLETED)])
        begun[0].commit()
        assert finish(first, press.statements, [batch.id]) == []
        begun[1].commit()
        assert finish(second, press.statements, [batch.id]) == [batch.id]
        assert finish(first, press.statements, [batch.id]) == []

    assert len(press.followers()) == 1


def test_a_batch_that_somebody_has_locked_is_left_to_the_sweep(press: Press) -> None:
    batch = press.print(1)
    press.settle(press.claim())
    with press.engine.connect() as user:
        user.execute(select(press.jobs.models.batch).with_for_update())
        assert press.finish(batch) == []
        assert press.sweep().ids == []

    assert press.sweep().ids == [batch.id]


def test_a_row_that_refers_to_a_batch_does_not_put_it_off(press: Press) -> None:
    """A foreign key of the user's locks the batch's key until that transaction has ended."""
    batch = press.print(1)
    press.settle(press.claim())
    refers = select(press.jobs.models.batch).with_for_update(read=True, key_share=True)
    with press.engine.connect() as user:
        user.execute(refers)
        assert press.finish(batch) == [batch.id]
        assert press.forget(0.0).ids == []

    assert len(press.followers()) == 1
    assert press.forget(0.0).ids == [batch.id]


# ---- the sweep ----------------------------------------------------------------------------------


def test_the_sweep_goes_on_behind_where_it_stopped(press: Press) -> None:
    """And finishes what nobody has looked at, as a worker was killed before it could."""
    batches = [press.print(1) for _ in range(3)]
    waits = press.print(1)
    press.settle([job for job in press.claim() if job.batch != waits.id])
    ids = sorted(batch.id for batch in batches)

    assert press.sweep(limit=2) == Looked(ids[1], ids[:2])
    assert press.sweep(after=ids[1], limit=2) == Looked(waits.id, ids[2:])
    assert press.sweep(limit=1) == Looked(waits.id, [])
    assert press.sweep(after=waits.id, limit=1) == Looked(None, [])
    assert press.sweep(after=ids[1], limit=3) == Looked(None, [])
    assert len(press.followers()) == 3


def test_a_follower_that_is_refused_holds_up_no_other_batch(
    press: Press, caplog: pytest.LogCaptureFixture
) -> None:
    """By a constraint of the user's; it follows when that is gone."""
    refused, fine = press.print(1), press.print(1)
    press.settle(press.claim())
    with press.engine.begin() as connection:
        rule = f"CONSTRAINT of_the_user CHECK (id <> '{refused.then_id}')"
        connection.exec_driver_sql(f"ALTER TABLE bgjob_job ADD {rule}")
    try:
        assert press.sweep().ids == [fine.id]
        assert press.finish(refused) == []
        assert f"batch {refused.id} is over, and what follows is refused" in caplog.text
    finally:
        with press.engine.begin() as connection:
            connection.exec_driver_sql("ALTER TABLE bgjob_job DROP CONSTRAINT of_the_user")

    assert press.sweep().ids == [refused.id]
    assert len(press.followers()) == 2


def test_a_unique_index_of_yours_loses_no_follower(press: Press) -> None:
    """One that it meets is a refusal, and no job that is there already."""
    batch = press.print(1)
    press.settle(press.claim())
    with press.engine.begin() as connection:
        enqueue(connection, press.bind, "another")
        rule = "CREATE UNIQUE INDEX of_the_user ON bgjob_job (type)"
        connection.exec_driver_sql(rule)
    try:
        assert press.finish(batch) == []
        assert press.info(batch).finished_at is None
    finally:
        with press.engine.begin() as connection:
            connection.exec_driver_sql("DROP INDEX of_the_user")

    assert press.finish(batch) == [batch.id]


@pytest.mark.parametrize("code", ["UX001", "42501", "42703"])
def test_what_a_trigger_says_holds_up_no_other_batch(press: Press, code: str) -> None:
    """Whatever its SQLSTATE, which may be one of its own."""
    refused, fine = press.print(1), press.print(1)
    press.settle(press.claim())
    with refusing(press.engine, refused.then_id, code):
        assert press.sweep().ids == [fine.id]

    assert press.sweep().ids == [refused.id]


@pytest.mark.parametrize("code", ["UX001", "42501", "42703"])
def test_the_only_batch_that_is_over_is_named_too(
    press: Press, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    """Though its error is raised: it may be the role's, or the session's."""
    refused = press.print(1)
    press.settle(press.claim())
    with refusing(press.engine, refused.then_id, code), pytest.raises(DBAPIError):
        press.finish(refused)

    assert f"batch {refused.id}, or what follows it, is refused" in caplog.text
    assert press.followers() == []
    assert press.finish(refused) == [refused.id]


@contextmanager
def refusing(
    engine: Engine, id: str | None, code: str, *, on: str = "INSERT ON bgjob_job"
) -> Iterator[None]:
    """A trigger of the user's that does not want a job, or what is done to another row."""
    row = "OLD" if on.startswith("DELETE") else "NEW"
    with engine.begin() as connection:
        connection.exec_driver_sql(
            f"CREATE FUNCTION of_the_user() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            f"IF {row}.id = '{id}' THEN RAISE 'no' USING ERRCODE = '{code}'; END IF; "
            f"RETURN {row}; END $$"
        )
        connection.exec_driver_sql(
            f"CREATE TRIGGER of_the_user BEFORE {on} FOR EACH ROW EXECUTE FUNCTION of_the_user()"
        )
    try:
        yield
    finally:
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP FUNCTION of_the_user CASCADE")


def test_old_batches_are_forgotten(press: Press) -> None:
    """Those that are not finished never are."""
    old, new, unfinished = press.print(0), press.print(0), press.print(1)
    table = press.jobs.models.batch
    with press.engine.begin() as connection:
        before = func.now() - text("interval '1 hour'")
        connection.execute(table.update().where(table.c.id == old.id).values(finished_at=before))
        connection.execute(table.update().values(created_at=before))

    assert press.forget(1_800.0, limit=1) == Looked(old.id, [old.id])
    assert press.forget(1_800.0, after=old.id, limit=1) == Looked(new.id, [])
    assert press.forget(1_800.0, limit=1) == Looked(new.id, [])
    with press.engine.connect() as connection:
        statement = press.statements.batches.forget
        assert run(connection, statement, ids=[unfinished.id]).all() == []
        found = listed(connection, None, "bgjob_", limit=9)
        left = listed(connection, None, "bgjob_", limit=9, unfinished=True)
        behind = listed(connection, None, "bgjob_", limit=9, before=found[0].id)
    assert [one.id for one in found] == [unfinished.id, new.id]
    assert [one.id for one in left] == [unfinished.id]
    assert [one.id for one in behind] == [new.id]


def test_an_old_batch_that_refuses_to_go_keeps_no_other(press: Press) -> None:
    """As by a foreign key of the user's, though it is the oldest; it is told and passed over."""
    batches = [press.print(0).id for _ in range(4)]
    kept, *others = sorted(batches)
    with referring(press.engine, kept):
        looked = press.forget(0.0)
        assert (looked.last, looked.ids, [*looked.refused]) == (None, others, [kept])
        new = press.print(0)
        assert press.forget(0.0, skip=[kept]) == Looked(None, [new.id])

    assert press.forget(0.0) == Looked(None, [kept])


def test_where_all_old_batches_may_refuse_few_are_asked(press: Press) -> None:
    """And where time runs out, one; the next look goes on behind it."""
    ids = sorted(press.print(0).id for _ in range(12))
    with referring(press.engine, *ids):
        for until, asked in ((inf, 10), (-inf, 1)):
            looked = press.forget(0.0, until=until)
            assert (looked.last, looked.ids) == (ids[asked - 1], [])
            assert [*looked.refused] == ids[:asked]
        assert [*press.forget(0.0, after=ids[9]).refused] == ids[10:]


@pytest.mark.parametrize("code", ["UX001", "42501"])
def test_an_old_batch_that_a_trigger_keeps_keeps_no_other(
    press: Press, caplog: pytest.LogCaptureFixture, code: str
) -> None:
    """Whatever SQLSTATE it raises. Where all refuse, it may be the role that may not."""
    kept, other = sorted(press.print(0).id for _ in range(2))
    with refusing(press.engine, kept, code, on="DELETE ON bgjob_batch"):
        looked = press.forget(0.0)
        assert (looked.ids, [*looked.refused]) == ([other], [kept])
        with pytest.raises(DBAPIError):
            press.forget(0.0)
        assert f"batch {kept} can't be deleted: " in caplog.text

    assert press.forget(0.0).ids == [kept]


@contextmanager
def referring(engine: Engine, *ids: str) -> Iterator[None]:
    """Rows of the user's that refer to batches, by a key that is looked at when one is deleted."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE invoice (batch_id text REFERENCES bgjob_batch)"))
        rows = [{"id": id} for id in ids]
        connection.execute(text("INSERT INTO invoice VALUES (:id)"), rows)
    try:
        yield
    finally:
        with engine.begin() as connection:
            connection.execute(text("DROP TABLE invoice"))


def test_a_look_at_a_batch_reads_by_its_index(press: Press) -> None:
    """However many jobs there are, of no batch and of others."""
    batch = press.print(1)
    with press.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_job (id, queue, type, batch_id) "
                "SELECT 'x' || n, 'q', 't', CASE WHEN n > 5000 THEN 'another' END "
                "FROM generate_series(1, 10000) AS n"
            )
        )
        connection.execute(text("ANALYZE bgjob_job, bgjob_batch, bgjob_dead_job"))
        plan = _plan(connection, press.statements.batches.finish(True), ids=[batch.id])

    assert not any("Seq Scan on bgjob_job" in line for line in plan), "\n".join(plan)
    assert any("Index Cond: (batch_id = " in line for line in plan), "\n".join(plan)


def test_the_sweep_reads_what_is_unfinished_by_its_index(press: Press) -> None:
    """However many finished ones are kept."""
    press.print(1)
    with press.engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO bgjob_batch (id, finished_at) "
                "SELECT '0' || n, now() FROM generate_series(1, 5000) AS n"
            )
        )
        connection.execute(text("ANALYZE bgjob_batch"))
        plan = _plan(connection, press.statements.batches.unfinished, after="", limit=500)
        connection.rollback()

    assert any("bgjob_batch_unfinished_idx" in line for line in plan), "\n".join(plan)


def _plan(connection: Connection, statement: Any, **given: Any) -> list[str]:
    compiled = statement.compile(connection.engine)
    parameters = compiled.params | {f"given_{name}": value for name, value in given.items()}
    return list(connection.exec_driver_sql(f"EXPLAIN {compiled}", parameters).scalars())
