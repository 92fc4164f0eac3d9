"""JobKit runs jobs with all that the application has around them, and by the real statements."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypedDict

import pytest
from sqlalchemy.orm import DeclarativeBase, Session

from sqlalchemy_bgjob import BGJob, Complete, Context, Expired, MoveToDlq, Unique, enqueue
from sqlalchemy_bgjob.testing import JobKit

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Iterator

    from sqlalchemy import Engine


class Base(DeclarativeBase): ...


class Resources(TypedDict):
    mailer: str


@contextmanager
def provide(ctx: Context) -> Generator[Resources]:
    seen.append("open")
    yield {"mailer": f"mailer of {ctx.state}"}
    seen.append("close")


jobs = BGJob(Base, provide=provide)
seen: list[str] = []


@jobs.middleware
def around(call: Callable[[], Any], ctx: Context) -> Any:
    seen.append("before")
    return call()


@jobs.handler("send")
def send(ctx: Context, to: str, *, mailer: str) -> None:
    seen.append(f"{to} by {mailer}")
    if to == "nobody":
        raise MoveToDlq("no address")


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    Base.metadata.create_all(engine)
    seen.clear()
    with Session(engine) as session:
        yield session


@pytest.fixture
def bgjob() -> JobKit:
    kit = JobKit(jobs)
    kit.state = "the test"
    return kit


def test_what_is_around_jobs_is_around_them_here(session: Session, bgjob: JobKit) -> None:
    enqueue(session, send, "ada")
    bgjob.work_due(session)
    with bgjob.inline(session):
        enqueue(session, send, "bob")
        session.commit()
    bgjob.perform(send, "eve")

    told = [each for each in seen if " by " in each]
    assert told == [f"{name} by mailer of the test" for name in ("ada", "bob", "eve")]
    assert sorted(seen) == sorted([*told, *["open", "close", "before"] * 3])


def test_keys_cancel_expiry_and_the_dlq_are_real(session: Session, bgjob: JobKit) -> None:
    first = enqueue(session, send, "ada", unique="mail")
    second = enqueue(session, send, "bob", unique="mail")
    assert (second.id, second.inserted) == (first.id, False)
    bgjob.assert_enqueued(session, send, "ada", unique=Unique("mail"), count=1)

    assert jobs.cancel(session, first.id) == "cancelled"
    bgjob.refute_enqueued(session, send)
    assert bgjob.work_one(session, first) is None

    enqueue(session, send, "late", expires=60)
    bgjob.travel(session, minutes=2)
    assert [type(each) for each in bgjob.work_due(session)] == [Expired]

    enqueue(session, send, "nobody")
    assert [type(each) for each in bgjob.work_due(session)] == [MoveToDlq]
    session.rollback()


def test_what_follows_a_batch_runs_in_the_tests_transaction(
    session: Session, bgjob: JobKit
) -> None:
    with jobs.batch(session, then=send.job("all")) as batch:
        for name in ("ada", "bob"):
            enqueue(session, send, name, batch=batch)
    enqueue(session, send, "eve")
    bgjob.assert_enqueued(session, send, batch=batch, count=2)
    bgjob.assert_enqueued(session, send, "eve", batch=None)
    bgjob.refute_enqueued(session, send, "all")

    assert [type(each) for each in bgjob.work_due(session)] == [Complete] * 4
    names = [each.split()[0] for each in seen if " by " in each]
    assert names == ["ada", "bob", "all", "eve"]
    session.rollback()


def test_a_savepoint_of_the_test_takes_its_jobs_with_it(session: Session, bgjob: JobKit) -> None:
    with session.begin_nested() as savepoint:
        enqueue(session, send, "ada")
        assert [type(each) for each in bgjob.work_due(session)] == [Complete]
        enqueue(session, send, "bob")
        savepoint.rollback()

    assert bgjob.all_enqueued(session) == []
