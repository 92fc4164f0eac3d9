"""JobKit: a test asks and works in its own transaction, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_bgjob import (
    BGJob,
    Complete,
    Context,
    MoveToDlq,
    Reschedule,
    Retry,
    UnknownType,
    Worker,
    enqueue,
    enqueue_many,
)
from sqlalchemy_bgjob.testing import JobKit, waiting, working

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from sqlalchemy_bgjob import Outcome

pytestmark = pytest.mark.keeps_tables


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    sent: Mapped[bool] = mapped_column(default=False)


jobs = BGJob(Base)
bgjob = JobKit(jobs)


@dataclass
class Receipt:
    order_id: int


@jobs.handler("send", queue="mail")
def send(ctx: Context[Session], receipt: Receipt) -> None:
    ctx.session.get_one(Order, receipt.order_id).sent = True


@jobs.handler("chain", queue="chains")
def chain(ctx: Context[Session], left: int) -> None:
    if left:
        enqueue(ctx.session, chain, left - 1)


@jobs.handler("fail", queue="failures")
def fail(ctx: Context[Session]) -> None:
    raise ValueError("broken")


@jobs.handler("later", queue="delays")
def later(ctx: Context[Session], outcome: str) -> Any:
    return {"retry": Retry(60, "not now"), "put off": Reschedule(60)}.get(outcome)


@jobs.handler("delete", queue="mail")
def delete(ctx: Context[Session], order_id: int) -> None:
    ctx.session.delete(ctx.session.get_one(Order, order_id))


@jobs.handler("asend", queue="amail")
async def asend(ctx: Context[AsyncSession], receipt: Receipt) -> None:
    (await ctx.session.get_one(Order, receipt.order_id)).sent = True


@pytest.fixture
def session(engine: Engine) -> Iterator[Session]:
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        yield session


def ordered(session: Session) -> Order:
    order = Order()
    session.add(order)
    session.flush()
    return order


# ---- asking --------------------------------------------------------------------------------------


@pytest.mark.core
def test_what_was_enqueued_is_asserted_by_any_of_its_parts(session: Session) -> None:
    at = datetime(2100, 1, 1, tzinfo=UTC)
    enqueue(session, send, Receipt(7), delay=60, headers={"trace": "x"}, priority=3)
    session.add(send.job(Receipt(8), run_at=at))
    jobs.enqueue(session, "elsewhere", {"n": 1}, queue="q")

    found = bgjob.assert_enqueued(session, send, order_id=7)
    bgjob.assert_enqueued(session, send, Receipt(7), queue="mail", delay=60, headers={"trace": "x"})
    bgjob.assert_enqueued(session, send, {"order_id": 8}, run_at=at)
    bgjob.assert_enqueued(session, send, count=2)
    bgjob.assert_enqueued(session, "elsewhere", n=1)
    bgjob.refute_enqueued(session, send, order_id=9)
    bgjob.refute_enqueued(session, chain)

    assert (found.arg, found.priority, found.attempt, found.running) == (Receipt(7), 3, 0, False)
    assert [job.type for job in bgjob.all_enqueued(session)] == ["send", "send", "elsewhere"]
    assert len(bgjob.all_enqueued(session, send)) == 2


def test_a_failed_assertion_shows_the_nearest_jobs(session: Session) -> None:
    enqueue(session, send, Receipt(8), id="8")
    enqueue(session, chain, 1)

    with pytest.raises(AssertionError) as none:
        bgjob.assert_enqueued(session, send, order_id=7)
    with pytest.raises(AssertionError, match=r"^a job fits, not 2: type 'send'\n  send 8 in"):
        bgjob.assert_enqueued(session, send, count=2)
    with pytest.raises(AssertionError, match=r"^a job fits: type 'chain'\n  chain .*: arg 1$"):
        bgjob.refute_enqueued(session, chain)

    assert "\n  send 8 in 'mail': order_id is 8\n" in str(none.value)


def test_a_misspelt_option_is_no_refutation(session: Session) -> None:
    with pytest.raises(TypeError, match="'queu' is neither an option nor a field"):
        bgjob.refute_enqueued(session, send, queu="mail")
    with pytest.raises(TypeError, match="did you mean 'order_id'"):
        bgjob.assert_enqueued(session, send, {"orderid": 7})
    with pytest.raises(TypeError, match="the options are queue, id, priority, run_at, unique, "):
        bgjob.assert_enqueued(session, fail, xyz=7)
    with pytest.raises(TypeError, match="'chain'; did you mean 'queue'"):
        bgjob.refute_enqueued(session, chain, queues=7)

    bgjob.refute_enqueued(session, "elsewhere", anything=7)


# ---- working -------------------------------------------------------------------------------------


@pytest.mark.core
def test_due_jobs_run_in_the_tests_own_transaction(session: Session, engine: Engine) -> None:
    order = ordered(session)
    enqueue(session, send, Receipt(order.id))
    enqueue(session, chain, 2)

    outcomes = bgjob.work_due(session)

    assert [type(outcome) for outcome in outcomes] == [Complete] * 4
    assert order.sent, "what the handler wrote is seen on the object that the test has"
    session.rollback()
    with Session(engine) as other:
        assert other.scalar(select(func.count()).select_from(Order)) == 0
        assert bgjob.all_enqueued(other) == []


def test_queues_may_be_named(session: Session) -> None:
    enqueue(session, chain, 0)
    enqueue(session, later, "retry")

    assert len(bgjob.work_due(session, "chains", "mail")) == 1

    bgjob.assert_enqueued(session, later)
    bgjob.refute_enqueued(session, chain)


def test_what_a_handler_raises_is_raised(session: Session) -> None:
    enqueue(session, fail)

    with pytest.raises(ValueError, match="broken"):
        bgjob.work_due(session)

    assert bgjob.assert_enqueued(session, fail).attempt == 1


def test_failures_may_be_outcomes_instead(session: Session) -> None:
    enqueue(session, fail)
    enqueue(session, later, "retry")

    (failure, retry) = sorted(
        bgjob.work_due(session, raise_errors=False), key=lambda outcome: str(outcome.error)
    )

    assert isinstance(failure, Retry)
    assert (isinstance(retry, Retry), retry.error) == (True, "not now")


def test_time_passes_for_what_was_put_off(session: Session) -> None:
    enqueue(session, later, "put off")
    enqueue(session, chain, 0, delay=3_600)
    assert len(bgjob.work_due(session)) == 1
    assert bgjob.work_due(session) == []

    bgjob.travel(session, minutes=1)
    assert len(bgjob.work_due(session)) == 1
    bgjob.travel(session, 3_540)
    assert len(bgjob.work_due(session)) == 2

    with pytest.raises(TypeError, match="travel takes how far"):
        bgjob.travel(session)


def test_an_outcome_is_no_error(session: Session) -> None:
    enqueue(session, later, "retry")

    (outcome,) = bgjob.work_due(session)

    assert isinstance(outcome, Retry)


def test_a_type_without_a_handler_is_an_error(session: Session) -> None:
    jobs.enqueue(session, "elsewhere", queue="q")

    with pytest.raises(UnknownType, match="elsewhere") as error:
        bgjob.work_due(session)

    (note,) = error.value.__notes__
    assert "registered: 'asend', 'chain', 'delete', 'fail', 'later', 'send'" in note


def test_a_coroutine_on_a_plain_session_is_told(session: Session) -> None:
    enqueue(session, asend, Receipt(7))

    with pytest.raises(TypeError, match="the handler of 'asend' is a coroutine: give"):
        bgjob.work_due(session)


@pytest.mark.parametrize("method", ["work_due", "wait_for"])
def test_a_target_that_can_not_do_is_refused(session: Session, engine: Engine, method: str) -> None:
    wrong = engine if method == "work_due" else session
    with pytest.raises(TypeError):
        getattr(bgjob, method)(wrong)
    with pytest.raises(TypeError, match="takes no count"):
        bgjob.refute_enqueued(session, send, count=1)


def test_a_job_of_another_type_may_be_unreadable(session: Session) -> None:
    enqueue(session, chain, 1)
    session.execute(update(jobs.Job).values(arg=b"{", priority=7))

    assert bgjob.assert_enqueued(session, chain, priority=7).arg == b"{"


def test_an_object_that_a_job_has_deleted_is_gone(session: Session) -> None:
    order = ordered(session)
    enqueue(session, delete, order.id)

    bgjob.work_due(session)

    assert session.scalar(select(func.count()).select_from(Order)) == 0


def test_jobs_that_enqueue_each_other_without_end_are_noticed(
    session: Session, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(working, "MOST", 10)
    enqueue(session, chain, 20)

    with pytest.raises(RuntimeError, match="do they enqueue each other"):
        bgjob.work_due(session)


def test_a_job_that_another_transaction_holds_is_passed_by(
    session: Session, engine: Engine
) -> None:
    enqueue(engine, chain, 0)
    with Session(engine) as other:
        other.execute(select(jobs.Job.id).with_for_update())

        assert bgjob.work_due(session) == []


# ---- asyncio -------------------------------------------------------------------------------------


def test_the_same_with_an_async_session(session: Session, engine: Engine) -> None:
    async def check() -> None:
        url = engine.url.set(drivername="postgresql+asyncpg")
        async_engine = create_async_engine(url)
        async with AsyncSession(async_engine, expire_on_commit=False) as own:
            order = Order()
            own.add(order)
            await own.flush()
            await enqueue(own, asend, Receipt(order.id))
            await bgjob.assert_enqueued(own, asend, order_id=order.id)
            assert len(await bgjob.work_due(own)) == 1
            assert order.sent
            await bgjob.refute_enqueued(own, asend)
            await own.rollback()
        await bgjob.wait_for(async_engine)
        await async_engine.dispose()

    asyncio.run(check())


def test_a_forgotten_await_is_told(session: Session, engine: Engine) -> None:
    own = JobKit(jobs)

    async def check() -> None:
        async_engine = create_async_engine(engine.url.set(drivername="postgresql+asyncpg"))
        async with AsyncSession(async_engine) as target:
            await own.assert_enqueued(target, "chain", count=1)
            own.refute_enqueued(target, chain)  # type: ignore[unused-coroutine]
            own.wait_for(async_engine)  # type: ignore[unused-coroutine]
        await async_engine.dispose()

    enqueue(session, chain, 1)
    session.commit()
    asyncio.run(check())

    told = (
        r"^bgjob.refute_enqueued\(...\) was never awaited, and 1 more: "
        r"write `await bgjob.refute_enqueued\(...\)`$"
    )
    with pytest.raises(AssertionError, match=told):
        own.check_awaited()
    own.check_awaited()


# ---- without a database --------------------------------------------------------------------------


def test_a_handler_is_performed_with_its_arg_as_a_worker_gives_it() -> None:
    class Orders:
        def get_one(self, kind: Any, id: int) -> Any:
            assert (kind, id) == (Order, 7)
            return order

    order = Order()
    assert bgjob.perform(send, Receipt(7), session=Orders()) is None
    assert order.sent
    assert isinstance(bgjob.perform(later, "retry"), Retry)
    with pytest.raises(RuntimeError, match=r"give perform\(\) session="):
        bgjob.perform(send, Receipt(7))
    with pytest.raises(RuntimeError, match=r"give perform\(\) session="):
        asyncio.run(bgjob.perform(asend, Receipt(7)))


# ---- beside a worker -----------------------------------------------------------------------------


def test_a_test_waits_for_a_real_worker(session: Session, engine: Engine) -> None:
    order = ordered(session)
    session.commit()
    ref = enqueue(engine, send, Receipt(order.id))
    enqueue_many(engine, chain, [3] * 20)
    own = create_engine(engine.url, pool_size=30)

    with Worker(jobs, own, queues=["mail", "chains"]):
        bgjob.wait_for(engine, ref)
        bgjob.wait_for(engine)

    session.refresh(order)
    assert order.sent
    own.dispose()


def test_a_dead_job_and_a_late_one_fail_the_wait(session: Session, engine: Engine) -> None:
    ref = enqueue(engine, fail)
    with pytest.raises(AssertionError) as late:
        bgjob.wait_for(engine, ref, timeout=0.05)
    assert str(late.value) == (
        f"not done after 0.05 s: {ref.id} (fail, attempt 0); the first one was never started: does "
        f"a worker serve its queue, and is it due?"
    )
    with engine.begin() as connection:
        jobs.work_one(connection, "failures")
    with pytest.raises(AssertionError, match=r"last error of the first one: ValueError: broken"):
        bgjob.wait_for(engine, ref, timeout=0.05)
    with engine.begin() as connection:
        bgjob.travel(connection, hours=1)

    with engine.begin() as connection:
        jobs.work_one(connection, "failures", lambda ctx: MoveToDlq("hopeless"))
    with pytest.raises(AssertionError, match=rf"^job {ref.id} \(fail\) is dead: hopeless$"):
        bgjob.wait_for(engine, ref.id)


def test_who_was_dead_before_under_an_id_does_not_fail_the_wait(
    session: Session, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job that has the id now is waited for; and if that is dead too, it is told."""

    def work(outcome: Outcome) -> None:
        with engine.begin() as connection:
            jobs.work_one(connection, "chains", lambda ctx: outcome)

    def work_between_two_looks(outcome: Outcome) -> None:
        clock = SimpleNamespace(monotonic=time.monotonic, sleep=lambda seconds: work(outcome))
        monkeypatch.setattr(waiting, "time", clock)

    enqueue(engine, chain, 0, id="x")
    work(MoveToDlq("hopeless"))
    enqueue(engine, chain, 0, id="x")
    work_between_two_looks(Complete())
    bgjob.wait_for(engine, "x")

    enqueue(engine, chain, 0, id="x")
    work_between_two_looks(MoveToDlq("again"))
    with pytest.raises(AssertionError, match=r"^job x \(chain\) is dead: again$"):
        bgjob.wait_for(engine, "x")
