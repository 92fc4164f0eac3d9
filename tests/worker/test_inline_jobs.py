"""Inline mode: jobs run just before the commit of the code under test, in its transaction."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, func, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    mapped_column,
    scoped_session,
    sessionmaker,
)

from sqlalchemy_bgjob import BGJob, Complete, Context, Retry, enqueue
from sqlalchemy_bgjob.testing import JobKit, working

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

pytestmark = pytest.mark.keeps_tables


class Base(DeclarativeBase): ...


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(default="")
    welcomed: Mapped[bool] = mapped_column(default=False)


jobs = BGJob(Base)
bgjob = JobKit(jobs)


@jobs.handler("welcome")
def welcome(ctx: Context[Session], user_id: int) -> None:
    user = ctx.session.get_one(User, user_id)
    if not user.email:
        raise ValueError("no address")
    user.welcomed = True
    ctx.session.commit()  # of a savepoint here: it must run no jobs


@jobs.handler("twice")
def twice(ctx: Context[Session], user_id: int) -> None:
    enqueue(ctx.session, welcome, user_id)


@jobs.handler("again")
def again(ctx: Context[Session]) -> None:
    enqueue(ctx.session, again)


@jobs.handler("outer")
def outer(ctx: Context[Session]) -> None:
    enqueue(ctx.session, inner)
    ctx.session.commit()
    told.append("outer ends")


@jobs.handler("inner")
def inner(ctx: Context[Session]) -> None:
    told.append("inner begins")


told: list[str] = []


@jobs.handler("awelcome")
async def awelcome(ctx: Context[AsyncSession], user_id: int) -> None:
    (await ctx.session.get_one(User, user_id)).welcomed = True


@pytest.fixture
def connection(engine: Engine) -> Iterator[Connection]:
    """The usual recipe: all of a test in one transaction, which is rolled back."""
    Base.metadata.create_all(engine)
    with engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()
    with Session(engine) as left:
        assert left.scalar(select(func.count()).select_from(User)) == 0
        assert bgjob.all_enqueued(left) == []


@pytest.fixture
def new_session(connection: Connection) -> sessionmaker[Session]:
    return sessionmaker(connection, join_transaction_mode="create_savepoint")


@pytest.fixture
def session(new_session: sessionmaker[Session]) -> Iterator[Session]:
    with new_session() as session:
        yield session


def sign_up(session: Session, email: str = "ada@example.com", handler: Any = welcome) -> User:
    """As an application may do it: the address comes after the job, and after a flush."""
    user = User()
    session.add(user)
    session.flush()
    enqueue(session, handler, user.id)
    session.flush()
    user.email = email
    session.commit()
    return user


def test_a_job_runs_at_the_commit_and_sees_all_of_it(session: Session) -> None:
    with bgjob.inline(session) as ran:
        user = sign_up(session)
        assert user.welcomed, "within the block too"

    assert [type(outcome) for outcome in ran.outcomes] == [Complete]
    bgjob.refute_enqueued(session, welcome)


def test_jobs_of_jobs_run_too(session: Session) -> None:
    with bgjob.inline(session) as ran:
        assert sign_up(session, handler=twice).welcomed

    assert len(ran.outcomes) == 2


def test_a_job_that_commits_ends_before_its_own_jobs_begin(
    connection: Connection, new_session: sessionmaker[Session]
) -> None:
    told.clear()
    with bgjob.inline(connection), new_session.begin() as session:
        enqueue(session, outer)

    assert told == ["outer ends", "inner begins"]


def test_no_job_runs_at_a_flush_or_at_a_savepoints_end(session: Session) -> None:
    with bgjob.inline(session) as ran:
        user = User(email="ada@example.com")
        session.add(user)
        with session.begin_nested():
            session.flush()
            enqueue(session, welcome, user.id)
        session.flush()
        assert ran.outcomes == []
        session.commit()
        assert len(ran.outcomes) == 1


def test_what_is_rolled_back_runs_no_job(session: Session) -> None:
    with bgjob.inline(session) as ran:
        user = User(email="ada@example.com")
        session.add(user)
        session.flush()
        enqueue(session, welcome, user.id)
        session.rollback()

    assert ran.outcomes == []


def test_an_open_transaction_is_worked_at_the_blocks_end(session: Session) -> None:
    user = User(email="ada@example.com")
    with bgjob.inline(session) as ran:
        session.add(user)
        session.flush()
        session.add(welcome.job(user.id))  # never flushed

    assert len(ran.outcomes) == 1
    assert user.welcomed


def test_a_session_without_autoflush_runs_its_jobs(new_session: sessionmaker[Session]) -> None:
    with new_session(autoflush=False, expire_on_commit=False) as session:
        user = User(email="ada@example.com", id=7)
        with bgjob.inline(session):
            session.add(user)
            session.add(welcome.job(7))
            session.commit()

        assert user.welcomed


def test_a_failed_job_does_not_reach_the_code_under_test(session: Session) -> None:
    with pytest.raises(ValueError, match="no address") as failure, bgjob.inline(session) as ran:  # noqa: PT012
        assert not sign_up(session, email="").welcomed
        sign_up(session, email="")

    assert [type(outcome) for outcome in ran.outcomes] == [Retry, Retry]
    assert failure.value.__notes__ == ["Another job has failed too: ValueError: no address"]
    assert bgjob.assert_enqueued(session, welcome, count=2).attempt == 1


def test_a_failed_job_is_named_where_the_test_fails(session: Session) -> None:
    with pytest.raises(AssertionError) as failure, bgjob.inline(session):
        assert sign_up(session, email="").welcomed

    assert failure.value.__notes__ == ["A job has failed before: ValueError: no address"]


def test_failures_may_be_left_to_the_outcomes(session: Session) -> None:
    with bgjob.inline(session, raise_errors=False) as ran:
        sign_up(session, email="")

    assert isinstance(ran.outcomes[0], Retry)


def test_jobs_without_end_fail_the_block_and_no_commit(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the code under test. It is told whatever becomes of the errors of jobs."""
    monkeypatch.setattr(working, "MOST", 3)
    commits = 0
    with (  # noqa: PT012
        pytest.raises(RuntimeError, match="3 jobs have run, and there are more: do they"),
        bgjob.inline(session, raise_errors=False) as ran,
    ):
        enqueue(session, again)
        for _ in range(2):
            session.commit()
            commits += 1
    assert (commits, len(ran.outcomes)) == (2, 3)

    with pytest.raises(LookupError) as failure, bgjob.inline(session):  # noqa: PT012
        session.commit()
        raise LookupError
    assert failure.value.__notes__[0].startswith("In this block: RuntimeError: 3 jobs have run")


def test_all_sessions_of_a_connection_count(
    connection: Connection, new_session: sessionmaker[Session], engine: Engine
) -> None:
    with bgjob.inline(connection) as ran:
        with new_session.begin() as one:
            user = User(email="ada@example.com")
            one.add(user)
            one.flush()
            enqueue(one, welcome, user.id)
        assert len(ran.outcomes) == 1
        with Session(engine) as other, Session() as unbound:  # they have nothing to do with it
            other.commit()
            unbound.commit()

    assert len(ran.outcomes) == 1


def test_all_sessions_of_a_scoped_session_count(new_session: sessionmaker[Session]) -> None:
    """As in Flask, where each request has another one."""
    scoped = scoped_session(new_session)
    with bgjob.inline(scoped) as ran:
        sign_up(scoped())
        scoped.remove()
        sign_up(scoped())
        scoped.remove()

    assert len(ran.outcomes) == 2


def test_after_the_block_nothing_runs(session: Session) -> None:
    with bgjob.inline(session) as ran:
        pass
    assert not sign_up(session).welcomed

    assert ran.outcomes == []


def test_jobs_that_are_not_due_wait(session: Session) -> None:
    with bgjob.inline(session) as ran:
        user = User(email="ada@example.com")
        session.add(user)
        session.flush()
        enqueue(session, welcome, user.id, delay=60)
        session.commit()
        assert ran.outcomes == []
        bgjob.travel(session, minutes=1)
        session.commit()
        assert len(ran.outcomes) == 1


def test_the_same_with_asyncio(engine: Engine) -> None:
    Base.metadata.create_all(engine)

    async def check() -> None:
        async_engine = create_async_engine(engine.url.set(drivername="postgresql+asyncpg"))
        async with async_engine.connect() as connection:
            await connection.begin()
            new = async_sessionmaker(connection, join_transaction_mode="create_savepoint")
            async with bgjob.inline(connection) as all_of_them, new.begin() as session:
                user = User(id=1)
                session.add(user)
                await session.flush()
                await enqueue(session, awelcome, user.id)
            async with new() as session:
                async with bgjob.inline(session) as ran:
                    await enqueue(session, welcome, 1)  # a function, on asyncio
                    (await session.get_one(User, 1)).email = "ada@example.com"
                    await enqueue(session, awelcome, 1)
                assert (await session.get_one(User, 1)).welcomed
            await connection.rollback()
        await async_engine.dispose()
        assert (len(all_of_them.outcomes), len(ran.outcomes)) == (1, 2)

    asyncio.run(check())


def test_a_wrong_block_or_target_is_told(engine: Engine, session: Session) -> None:
    with pytest.raises(TypeError, match="give it a Session, or a Connection"):
        bgjob.inline(engine)
    with pytest.raises(TypeError, match="not function"):
        bgjob.inline(lambda: None)
    with (
        pytest.raises(TypeError, match="write `async with"),
        bgjob.inline(AsyncSession(create_async_engine("postgresql+asyncpg://"))),
    ):
        pass

    async def check() -> None:
        async with bgjob.inline(session):
            pass

    with pytest.raises(TypeError, match="write `with"):
        asyncio.run(check())


def test_a_commit_of_its_own_transaction_keeps_what_jobs_did(engine: Engine) -> None:
    """No recipe is needed: a test that commits for real has its jobs done for real."""
    own = create_engine(engine.url)
    Base.metadata.create_all(own)
    with Session(own) as session, bgjob.inline(session):
        id = sign_up(session).id
    with Session(own) as other:
        assert other.get_one(User, id).welcomed
        assert bgjob.all_enqueued(other) == []
    own.dispose()
