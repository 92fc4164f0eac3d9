"""What type checkers say to who tests an application; see ``producers.py``."""
# pyright: strict

from datetime import timedelta
from typing import assert_type

from sqlalchemy import Connection, Engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Session

from sqlalchemy_bgjob import BGJob, Context, JobRef, Outcome, enqueue
from sqlalchemy_bgjob.testing import EnqueuedJob, Fired, JobKit


class Base(DeclarativeBase): ...


jobs = BGJob(Base)


@jobs.handler("send")
def send(ctx: Context[Session], order_id: int) -> None: ...


def of_a_session(session: Session, connection: Connection, engine: Engine, bgjob: JobKit) -> None:
    ref = enqueue(session, send, 7)
    assert_type(ref, JobRef)
    assert_type(bgjob.assert_enqueued(session, send, 7, queue="mail", count=1), EnqueuedJob)
    assert_type(bgjob.assert_enqueued(connection, "send", order_id=7), EnqueuedJob)
    assert_type(bgjob.all_enqueued(session), list[EnqueuedJob])
    assert_type(bgjob.work_due(session, "mail"), list[Outcome])
    assert_type(bgjob.work_one(session, ref, due=False), Outcome | None)
    assert_type(bgjob.fire_schedules(session, until=timedelta(days=1)), list[Fired])
    bgjob.refute_enqueued(session, send)
    bgjob.travel(session, hours=1)
    bgjob.wait_for(engine, ref)
    with bgjob.inline(session) as ran:
        assert_type(ran.outcomes, list[Outcome])


async def of_asyncio(
    session: AsyncSession, connection: AsyncConnection, engine: AsyncEngine, bgjob: JobKit
) -> None:
    ref = await enqueue(session, send, 7)
    assert_type(await bgjob.assert_enqueued(session, send, 7), EnqueuedJob)
    assert_type(await bgjob.all_enqueued(connection, send), list[EnqueuedJob])
    assert_type(await bgjob.work_due(session), list[Outcome])
    assert_type(await bgjob.work_one(session, ref.id), Outcome | None)
    assert_type(await bgjob.fire_schedules(session, until=timedelta(days=1)), list[Fired])
    await bgjob.travel(session, timedelta(hours=1))
    await bgjob.wait_for(engine, ref)
    async with bgjob.inline(session) as ran:
        assert_type(ran.outcomes, list[Outcome])


async def forgotten(session: AsyncSession, engine: AsyncEngine, bgjob: JobKit) -> None:
    bgjob.assert_enqueued(session, send)  # E: unused-coroutine
    bgjob.refute_enqueued(session, send)  # E: unused-coroutine
    bgjob.work_due(session)  # E: unused-coroutine
    bgjob.travel(session, hours=1)  # E: unused-coroutine
    bgjob.wait_for(engine)  # E: unused-coroutine


def mistakes(session: Session, bgjob: JobKit) -> None:
    bgjob.assert_enqueued(session, print)  # E: call-overload
    bgjob.wait_for(session)  # E: call-overload
    bgjob.work_due(session, raise_error=False)  # E: call-overload
    bgjob.travel(session, "1h")  # E: call-overload
