"""Jobs from the hooks of a session: where an outbox is written, whatever the session is doing."""

from __future__ import annotations

from itertools import cycle, repeat
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, delete, event, func, insert, select
from sqlalchemy.orm import Session, object_session

from sqlalchemy_bgjob import enqueue, enqueue_from, enqueue_many
from support.producers import UNITS, Producer, produce
from support.shop import Job, Order, Receipt, jobs, note, send_receipt

if TYPE_CHECKING:
    from collections.abc import Callable


pytestmark = pytest.mark.core

HOOKS = ("before_flush", "after_flush", "after_flush_postexec", "before_commit")
SESSIONS = tuple(kind for kind in UNITS if "Connection" not in kind)

WAYS: dict[str, Callable[[Any], Any]] = {
    "enqueue": lambda session: enqueue(session, send_receipt, Receipt(1)),
    "by type": lambda session: jobs.enqueue(session, "send_receipt", Receipt(1)),
    "generated ids": lambda session: enqueue_many(session, send_receipt, [Receipt(1)]),
    "own ids": lambda session: enqueue_many(session, send_receipt, [Receipt(1)], ids=["one"]),
    "COPY": lambda session: enqueue_many(session, send_receipt, [Receipt(1)] * 600),
    "a query": lambda session: enqueue_from(
        session, send_receipt, select(Order.id.label("order_id"), Order.email.label("id"))
    ),
    "objects": lambda session: session.add(send_receipt.job(Receipt(1))),
}


@pytest.fixture(autouse=True)
def _one_order(shop: Engine) -> None:
    with shop.begin() as connection:
        for table in (Job, Order):
            connection.execute(delete(table))
        connection.execute(insert(Order).values(email="first", total=0))


def stored(shop: Engine) -> int:
    with shop.connect() as connection:
        return connection.execute(select(func.count()).select_from(Job)).scalar_one()


def hooked(
    kind: str,
    shop: Engine,
    hook: str,
    way: Callable[[Session], Any],
    *,
    end: str = "commit",
) -> None:
    """Add an order and end the transaction; the hook calls *way* once."""

    async def body(made: Producer) -> None:
        session = session_of(made, kind)
        event.listen(session, hook, lambda *_: way(session), once=True)
        made.target.add(Order(email="second"))
        if end == "rollback":
            await made.do(made.target.flush())
        await made.do(getattr(made.target, end)())

    produce(kind, shop, body)


def session_of(made: Producer, kind: str) -> Session:
    scoped = kind.startswith(("scoped", "async_scoped", "Flask"))
    target = made.target() if scoped else made.target
    session: Session = getattr(target, "sync_session", target)
    return session


@pytest.mark.parametrize(
    ("kind", "hook"),
    [
        (kind, hook)
        for n, kind in enumerate(SESSIONS)
        for hook in (HOOKS[n % 4], HOOKS[(n + 1) % 4])
    ],
)
def test_a_hook_enqueues_in_the_transaction(kind: str, hook: str, shop: Engine) -> None:
    hooked(kind, shop, hook, WAYS["enqueue"])

    assert stored(shop) == 1


@pytest.mark.parametrize("kind", SESSIONS)
def test_a_rollback_takes_the_job_of_a_hook(kind: str, shop: Engine) -> None:
    hooked(kind, shop, "after_flush", WAYS["own ids"], end="rollback")

    assert stored(shop) == 0


@pytest.mark.parametrize(
    ("kind", "hook", "way"),
    [
        *(("Session-psycopg", hook, way) for hook in HOOKS for way in WAYS),
        # An AsyncSession calls the hooks of the Session in it: each way in one of them will do.
        *zip(repeat("AsyncSession-asyncpg"), cycle(HOOKS), WAYS),
    ],
)
def test_every_way_to_enqueue_works_in_a_hook(kind: str, hook: str, way: str, shop: Engine) -> None:
    hooked(kind, shop, hook, WAYS[way])

    # Before the flush the second order is not there yet.
    assert stored(shop) == {
        "COPY": 600,
        "a query": 1 if hook == "before_flush" else 2,
    }.get(way, 1)


@pytest.mark.parametrize("hook", HOOKS)
def test_jobs_are_cancelled_and_worked_on_in_a_hook(hook: str, shop: Engine) -> None:
    enqueue(shop, note, 1, id="cancelled")
    enqueue(shop, note, 1, queue="own")
    seen: list[Any] = []

    def work(session: Session) -> None:
        seen.append(jobs.cancel(session, "cancelled"))
        jobs.work_one(session, "own", lambda ctx, arg: seen.append(arg))
        seen.append(jobs.redrive(session, jobs.DeadJob.queue == "none").ids)
        seen.append(jobs.prune(session, 0))

    hooked("Session-psycopg", shop, hook, work)

    assert seen == ["cancelled", 1, (), 0]
    assert stored(shop) == 0


@pytest.mark.parametrize("kind", ["Session-psycopg", "AsyncSession-psycopg"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
def test_a_mapper_event_enqueues_by_its_session(kind: str, end: str, shop: Engine) -> None:
    """By the connection that it is given, too; both while the session is flushing."""

    def after_insert(mapper: Any, connection: Any, order: Order) -> None:
        enqueue(object_session(order), send_receipt, Receipt(order.id))
        enqueue_many(connection, send_receipt, [Receipt(order.id)], ids=[str(order.id)])

    event.listen(Order, "after_insert", after_insert)
    try:
        hooked(kind, shop, "after_flush", lambda _: None, end=end)
    finally:
        event.remove(Order, "after_insert", after_insert)

    assert stored(shop) == (2 if end == "commit" else 0)


def test_a_duplicate_in_a_hook_leaves_the_flush_alone(shop: Engine) -> None:
    """All or nothing is about the jobs: the savepoint does not end the flush."""
    enqueue(shop, note, 1, id="one")

    def both(session: Session) -> None:
        with pytest.raises(Exception, match="'one'"):
            enqueue_many(session, note, [1, 2], ids=["one", "two"])

    hooked("Session-psycopg", shop, "after_flush", both)

    with Session(shop) as session:
        assert set(session.scalars(select(Order.email))) == {"first", "second"}
        assert set(session.scalars(select(Job.id))) == {"one"}


def test_a_hook_of_a_nested_flush_keeps_its_savepoint(shop: Engine) -> None:
    """A job from a flush inside a savepoint goes with that savepoint."""
    with Session(shop) as session:
        event.listen(session, "after_flush", lambda *_: WAYS["enqueue"](session))
        with session.begin_nested() as savepoint:
            session.add(Order(email="undone"))
            session.flush()
            savepoint.rollback()
        session.add(Order(email="kept"))
        session.commit()

    assert stored(shop) == 1
