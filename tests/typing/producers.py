"""What type checkers say to producers. Each ``# E:`` names an error that must be found there.

The word is mypy's; pyright finds an error of the same kind. ``tests/unit/test_typing.py`` runs
both, and nothing imports this file.
"""
# pyright: strict

from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, assert_type

from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import Connection, Engine, delete, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, scoped_session
from sqlmodel import Session as SQLModelSession

from sqlalchemy_bgjob import (
    BatchInfo,
    BGJob,
    BulkResult,
    Context,
    DeadJobMixin,
    DeadSummary,
    JobMixin,
    JobRef,
    JobType,
    MoveToDlq,
    OpenBatch,
    Outcome,
    PastError,
    Redriven,
    Unique,
    enqueue,
    enqueue_from,
    enqueue_many,
)
from sqlalchemy_bgjob.testing.faults import let_time_pass


class Base(DeclarativeBase): ...


jobs = BGJob(Base)
assert_type(jobs, BGJob[JobMixin, DeadJobMixin])
which = jobs.DeadJob.type == "resize"


@dataclass
class Receipt:
    order_id: int


@jobs.handler("send_receipt", queue="mail")
def send_receipt(ctx: Context[Session], receipt: Receipt) -> MoveToDlq | None:
    assert_type(ctx.session, Session)
    assert_type(ctx.job.attempt, int)
    return None


@jobs.handler("resize")
async def resize(ctx: Context[AsyncSession], path: str) -> None:
    assert_type(ctx.session, AsyncSession)


@jobs.handler("clean_up")
def clean_up(ctx: Context[Session]) -> None: ...


@jobs.handler("report")
def report(ctx: Context, month: str | None) -> None: ...


@jobs.handler("anything")
def anything(ctx: Context, arg: Any) -> None: ...


assert_type(send_receipt, JobType[Receipt])
assert_type(resize, JobType[str])
assert_type(clean_up, JobType[None])
assert_type(report, JobType[str | None])


def sync_targets(
    session: Session,
    scoped: scoped_session[Session],
    connection: Connection,
    engine: Engine,
    sqlmodel: SQLModelSession,
    flask: SQLAlchemy,
) -> None:
    assert_type(enqueue(session, send_receipt, Receipt(1)), JobRef)
    assert_type(enqueue(scoped, send_receipt, Receipt(1)), JobRef)
    assert_type(enqueue(connection, send_receipt, Receipt(1)), JobRef)
    assert_type(enqueue(engine, send_receipt, Receipt(1)), JobRef)
    assert_type(enqueue(sqlmodel, send_receipt, Receipt(1)), JobRef)
    assert_type(enqueue(flask.session, send_receipt, Receipt(1)), JobRef)
    assert_type(enqueue_many(session, send_receipt, [Receipt(1)]), BulkResult)
    assert_type(enqueue_many(session, [send_receipt.job(Receipt(1)), clean_up.job()]), BulkResult)
    assert_type(enqueue_from(session, send_receipt, select(jobs.Job.id)), int)
    assert_type(enqueue_from(session, send_receipt, select(jobs.Job.id, jobs.Job.priority)), int)
    assert_type(jobs.enqueue(session, "send_receipt", {"order_id": 1}), JobRef)
    assert_type(enqueue(session, clean_up), JobRef)
    put = jobs.schedules.put(session, "s", send_receipt, Receipt(1), cron="@daily")
    assert_type(put, datetime | None)
    assert_type(jobs.schedules.put(session, "s", clean_up, every=60), datetime | None)
    assert_type(jobs.schedules.pause(session, "s", by="ada"), bool)
    assert_type(jobs.schedule("@daily", timezone="Europe/Berlin")(clean_up), JobType[None])
    assert_type(enqueue(session, resize, "x.png", delay=timedelta(minutes=1)), JobRef)
    assert_type(enqueue(session, report), JobRef)
    assert_type(enqueue(session, report, None), JobRef)
    assert_type(enqueue(session, report, "2026-11"), JobRef)
    assert_type(enqueue(session, anything), JobRef)
    assert_type(enqueue(session, anything, {"order_id": 1}), JobRef)
    enqueue(session, send_receipt, Receipt(1), unique="7")
    enqueue(session, send_receipt, Receipt(1), unique=Unique("7", "queued", on_conflict="replace"))
    enqueue_many(session, send_receipt, [Receipt(1)], unique=lambda receipt: str(receipt.order_id))
    enqueue_many(session, send_receipt, [Receipt(1)], unique=lambda _: Unique("7", period=60))
    enqueue_from(session, send_receipt, select(jobs.Job.id), unique=jobs.Job.id)
    enqueue_from(session, send_receipt, select(jobs.Job.id), unique=Unique(jobs.Job.id, "queued"))
    session.add(send_receipt.job(Receipt(1), unique=Unique("7", on_conflict="raise")))
    session.add(send_receipt.job(Receipt(1)))
    session.add_all([clean_up.job(), report.job(), report.job("2026-11"), anything.job(7)])
    let_time_pass(session, jobs, 60)

    enqueue(session, send_receipt, "7")  # E: misc
    enqueue(session, send_receipt, {"order_id": 7})  # E: misc
    enqueue(session, resize, b"x")  # E: misc
    enqueue(session, clean_up, 1)  # E: misc
    enqueue(session, report, 7)  # E: misc
    enqueue(session, send_receipt)  # E: arg-type
    enqueue(session, send_receipt, None)  # E: misc
    enqueue_many(session, send_receipt)  # E: call-overload
    enqueue_many(session, send_receipt, ["7"])  # E: misc
    enqueue_many(session, send_receipt, Receipt(1))  # E: call-overload
    send_receipt.job("7")  # E: arg-type
    send_receipt.job()  # E: call-arg
    clean_up.job(1)  # E: call-overload
    report.job(7)  # E: call-overload
    enqueue(session, "send_receipt", Receipt(1))  # E: call-overload
    enqueue("session", send_receipt, Receipt(1))  # E: call-overload
    enqueue(session, send_receipt, Receipt(1), on_conflict="update")  # E: call-overload
    enqueue(session, send_receipt, Receipt(1), delay="5")  # E: call-overload
    enqueue(session, send_receipt, Receipt(1), prio=5)  # E: call-overload
    enqueue(session, send_receipt, Receipt(1), unique=7)  # E: call-overload
    enqueue_many(session, send_receipt, [Receipt(1)], unique="7")  # E: call-overload
    Unique("7", "running")  # E: arg-type
    Unique(7)  # E: arg-type
    enqueue_from(session, send_receipt, "SELECT 1")  # E: call-overload


async def async_targets(
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
    connection: AsyncConnection,
    engine: AsyncEngine,
) -> None:
    assert_type(await enqueue(session, send_receipt, Receipt(1)), JobRef)
    assert_type(await enqueue(scoped, send_receipt, Receipt(1)), JobRef)
    assert_type(await enqueue(connection, send_receipt, Receipt(1)), JobRef)
    assert_type(await enqueue(engine, send_receipt, Receipt(1)), JobRef)
    assert_type(await enqueue_many(session, send_receipt, [Receipt(1)]), BulkResult)
    assert_type(await enqueue_many(session, [send_receipt.job(Receipt(1))]), BulkResult)
    assert_type(await enqueue_from(session, send_receipt, select(jobs.Job.id)), int)
    assert_type(await jobs.enqueue(session, "send_receipt", {"order_id": 1}), JobRef)
    session.add(send_receipt.job(Receipt(1)))

    enqueue(session, send_receipt, Receipt(1))  # E: unused-coroutine
    enqueue(engine, send_receipt, Receipt(1))  # E: unused-coroutine
    enqueue_many(session, send_receipt, [Receipt(1)])  # E: unused-coroutine
    enqueue_from(session, send_receipt, select(jobs.Job.id))  # E: unused-coroutine
    jobs.enqueue(session, "send_receipt")  # E: unused-coroutine
    jobs.work_one(session, "mail")  # E: unused-coroutine
    jobs.cancel(session, "id")  # E: unused-coroutine
    jobs.cancel_where(session, jobs.Job.type == "resize")  # E: unused-coroutine
    jobs.redrive(session, jobs.DeadJob.type == "resize")  # E: unused-coroutine
    jobs.prune(session, timedelta(days=30))  # E: unused-coroutine
    jobs.dead_summary(session)  # E: unused-coroutine
    assert_type(await jobs.redrive(session, which, per_second=5), Redriven)
    assert_type(await jobs.redrive(session, which, dry_run=True), dict[str, int])
    assert_type(await jobs.work_one(session, id="7", due=False), Outcome | None)
    let_time_pass(session, jobs, 60)  # E: unused-coroutine
    enqueue(session, clean_up)  # E: unused-coroutine
    enqueue(session, report, "2026-11")  # E: unused-coroutine
    assert enqueue(session, send_receipt, Receipt(1)).inserted  # E: attr-defined
    await enqueue(session, send_receipt)  # E: arg-type
    await enqueue(session, send_receipt, "7")  # E: misc


def batches(
    session: Session, scoped: scoped_session[Session], connection: Connection, engine: Engine
) -> str:
    with jobs.batch(session, then=clean_up.job(), on_dead="stop") as batch:
        assert_type(batch, OpenBatch)
        enqueue(session, send_receipt, Receipt(1), batch=batch)
        enqueue_many(session, send_receipt, [Receipt(1)], batch=batch)
        enqueue_from(session, send_receipt, select(jobs.Job.id), batch=batch)
        jobs.enqueue(session, "send_receipt", {"order_id": 1}, batch=batch)
        session.add(send_receipt.job(Receipt(1), batch=batch))
    with jobs.batch(scoped), jobs.batch(connection):
        pass
    assert_type(batch.then_id, str)
    assert_type(jobs.batch_info(engine, batch.id), BatchInfo | None)
    jobs.cancel_where(session, jobs.Job.batch_id == batch.id)
    session.execute(delete(jobs.Batch).where(jobs.Batch.id == batch.id))

    jobs.batch(engine)  # E: call-overload
    jobs.batch(session, then=clean_up)  # E: call-overload
    jobs.batch(session, on_dead="cancel")  # E: call-overload
    enqueue(session, send_receipt, Receipt(1), batch=batch.id)  # E: call-overload
    return batch.id


async def async_batches(
    session: AsyncSession,
    scoped: async_scoped_session[AsyncSession],
    connection: AsyncConnection,
    engine: AsyncEngine,
    other: Session,
) -> None:
    async with jobs.batch(session, then=clean_up.job()) as batch:
        assert_type(batch, OpenBatch)
        await enqueue(session, send_receipt, Receipt(1), batch=batch)
    async with jobs.batch(scoped), jobs.batch(connection):
        pass
    assert_type(await jobs.batch_info(engine, batch.id), BatchInfo | None)

    with jobs.batch(session):  # E: attr-defined
        pass
    async with jobs.batch(other):  # E: attr-defined
        pass
    jobs.batch(engine)  # E: call-overload
    jobs.batch_info(engine, batch.id)  # E: unused-coroutine


def dead_jobs(session: Session) -> None:
    assert_type(jobs.redrive(session, which), Redriven)
    assert_type(jobs.redrive(session, which, dry_run=False, limit=7), Redriven)
    assert_type(jobs.redrive(session, which, dry_run=True), dict[str, int])
    assert_type(jobs.dead_summary(session), list[DeadSummary])
    dead = session.get_one(jobs.DeadJob, "id")
    assert_type(dead.error_history, tuple[PastError, ...])
    assert_type(dead.error_type, str | None)
    session.scalars(select(jobs.DeadJob).where(jobs.DeadJob.error_type == "ValueError"))
    jobs.redrive(session, which, per_second="5")  # E: call-overload


def sync_results_are_not_awaited(session: Session) -> None:
    assert enqueue(session, send_receipt, Receipt(1)).inserted
    assert enqueue(session, send_receipt, Receipt(1)).insertd  # E: attr-defined


def models(session: Session) -> None:
    job = session.get_one(jobs.Job, "id")
    assert_type(job, JobMixin)
    assert_type(job.priority, int)
    assert_type(job.last_error, str | None)
    assert_type(job.state, str)
    session.scalars(select(jobs.Job).where(jobs.Job.state == "queued", jobs.Job.priority < 3))
    session.add(jobs.Job(queue="mail", type="send_receipt", arg={"order_id": 7}))
    jobs.Job(queue="mail")  # E: call-arg
    jobs.Job(queue=7, type="t")  # E: arg-type
    assert job.tenant_id  # E: attr-defined


class Job(JobMixin, Base):
    tenant_id: Mapped[int | None] = mapped_column()


class DeadJob(DeadJobMixin, Base):
    tenant_id: Mapped[int | None] = mapped_column()


own = BGJob(models=(Job, DeadJob))
assert_type(own, BGJob[Job, DeadJob])
assert_type(own.Job, type[Job])
assert_type(own.DeadJob, type[DeadJob])


def own_models(session: Session) -> None:
    job = session.get_one(own.Job, "id")
    assert_type(job.tenant_id, int | None)
    assert_type(session.get_one(own.DeadJob, "id").tenant_id, int | None)
    own.Job(queue="mail", type="t", tenant_id=7)
    assert job.tenant  # E: attr-defined
    BGJob(Base, models=(Job, Job))  # E: type-var


def called_as_a_function(ctx: Context[Session]) -> None:
    send_receipt(ctx, Receipt(1))
