"""Twenty jobs through every kind of session and connection: the caller's transaction decides."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Engine,
    Integer,
    column,
    create_engine,
    delete,
    event,
    func,
    literal,
    select,
    text,
    values,
)
from sqlalchemy.exc import (
    DBAPIError,
    InvalidRequestError,
    PendingRollbackError,
    ProgrammingError,
    ResourceClosedError,
    UnboundExecutionError,
)
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only, greenlet_spawn

from sqlalchemy_bgjob import InvalidArg, JobAlreadyExists, enqueue, enqueue_from, enqueue_many
from sqlalchemy_bgjob._db.errors import sqlstate
from sqlalchemy_bgjob._db.targets import is_autocommit
from support.producers import ASYNC, KINDS, UNITS, Producer, produce
from support.shop import Job, Order, Receipt, jobs, note, send_receipt
from support.tables import new_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from support import TestServer


@pytest.fixture(autouse=True)
def _empty(shop: Engine) -> None:
    with shop.begin() as connection:
        connection.execute(delete(Job))
        connection.execute(delete(Order))


def numbers(first: int, last: int) -> Any:
    """The receipts from first to last, as a query."""
    rows = [(number,) for number in range(first, last + 1)]
    return select(values(column("order_id", Integer), name="given").data(rows))


def stored(shop: Engine) -> list[int]:
    """The order ids of all committed jobs."""
    with shop.connect() as connection:
        args = connection.execute(select(Job.arg_json)).scalars().all()
    return sorted(arg["order_id"] for arg in args)


async def twenty_jobs(made: Producer, first: int = 1) -> None:
    """Add twenty jobs in every way that the target has, numbered from *first*."""
    target = made.target
    for number in range(first, first + 4):
        ref = await made.do(enqueue(target, send_receipt, Receipt(number)))
        assert ref.inserted
    args = [Receipt(number) for number in range(first + 4, first + 8)]
    assert (await made.do(enqueue_many(target, send_receipt, args))).inserted == 4
    new = [send_receipt.job(Receipt(first + 8)), note.job({"order_id": first + 9})]
    assert (await made.do(enqueue_many(target, new))).inserted == 2
    await made.do(jobs.enqueue(target, "elsewhere", {"order_id": first + 10}, queue="other"))
    await made.do(jobs.enqueue(target, "send_receipt", Receipt(first + 11)))
    inserted = await made.do(enqueue_from(target, send_receipt, numbers(first + 12, first + 14)))
    assert inserted == 3
    if made.is_session:
        target.add_all([send_receipt.job(Receipt(first + n)) for n in range(15, 18)])
        arg = {"order_id": first + 18}
        target.add(Job(queue="mail", type="send_receipt", arg=arg))
        target.add(Job(queue="mail", type="send_receipt", arg={"order_id": first + 19}))
    else:
        rest = [Receipt(first + n) for n in range(15, 20)]
        await made.do(enqueue_many(target, send_receipt, rest))


@pytest.mark.core
@pytest.mark.parametrize("kind", KINDS)
def test_committed_jobs_are_there(kind: str, shop: Engine) -> None:
    """Twenty jobs, in every way that a target has; an Engine commits by itself."""

    async def body(made: Producer) -> None:
        await twenty_jobs(made)
        if kind in UNITS:
            assert stored(shop) == []
            await made.commit()

    produce(kind, shop, body)

    assert stored(shop) == list(range(1, 21))


@pytest.mark.parametrize("kind", UNITS)
def test_rolled_back_jobs_are_not(kind: str, shop: Engine) -> None:
    async def body(made: Producer) -> None:
        await twenty_jobs(made)
        await made.rollback()
        await twenty_jobs(made, first=101)
        await made.commit()

    produce(kind, shop, body)

    assert stored(shop) == list(range(101, 121))


@pytest.mark.core
@pytest.mark.parametrize("kind", UNITS)
def test_a_savepoint_that_rolls_back_takes_exactly_its_own_jobs(kind: str, shop: Engine) -> None:
    async def body(made: Producer) -> None:
        await twenty_jobs(made, first=1)
        undone = await made.savepoint()
        await twenty_jobs(made, first=101)
        await made.do(undone.rollback())
        kept = await made.savepoint()
        await twenty_jobs(made, first=201)
        await made.do(kept.commit())
        await made.commit()

    produce(kind, shop, body)

    assert stored(shop) == [*range(1, 21), *range(201, 221)]


BULK: dict[str, Callable[[Any], Any]] = {
    "generated ids": lambda target: enqueue_many(
        target, send_receipt, [Receipt(n) for n in range(50)]
    ),
    "own ids": lambda target: enqueue_many(
        target, send_receipt, [Receipt(n) for n in range(50)], ids=[str(n) for n in range(50)]
    ),
    "jobs": lambda target: enqueue_many(target, [send_receipt.job(Receipt(n)) for n in range(50)]),
    "a query": lambda target: enqueue_from(target, send_receipt, numbers(1, 50)),
}


@pytest.mark.parametrize("way", BULK)
@pytest.mark.parametrize("kind", UNITS)
def test_a_bulk_enqueue_as_the_first_operation_is_rolled_back(
    kind: str, way: str, shop: Engine
) -> None:
    """Drivers send BEGIN late: a COPY before it, for example, would survive the rollback."""

    async def body(made: Producer) -> None:
        await made.do(BULK[way](made.target))
        await made.rollback()
        await made.begin()
        await made.do(BULK[way](made.target))
        await made.rollback()

    produce(kind, shop, body)

    assert stored(shop) == []


@pytest.mark.parametrize("kind", ["Engine-psycopg", "AsyncEngine-psycopg", "AsyncEngine-asyncpg"])
def test_an_engine_keeps_all_or_nothing(kind: str, shop: Engine) -> None:
    async def body(made: Producer) -> None:
        target = made.target
        await made.do(enqueue(target, send_receipt, Receipt(1), id="one"))
        for refused in (
            lambda: enqueue(target, send_receipt, Receipt(2), id="one"),
            lambda: enqueue_many(target, note, [{"order_id": 2}] * 2, ids=["two", "one"]),
        ):
            with pytest.raises(Exception, match="'one'"):
                await made.do(refused())

    produce(kind, shop, body)

    assert stored(shop) == [1]


@pytest.mark.parametrize("kind", UNITS)
def test_the_callers_settings_are_as_before(kind: str, shop: Engine) -> None:
    """Enqueueing changes nothing of the session that the caller goes on to use."""
    settings = {
        "timezone": "Asia/Tokyo",
        "lock_timeout": "77ms",
        "statement_timeout": "55s",
        "application_name": "shop",
        "synchronous_commit": "off",
    }

    async def body(made: Producer) -> None:
        await made.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        for name, value in settings.items():
            await made.execute(text(f"SET LOCAL {name} = '{value}'"))
        before = await shown(made)
        await twenty_jobs(made)
        assert await shown(made) == before
        await made.commit()

    async def shown(made: Producer) -> list[Any]:
        found = await made.execute(text("SELECT name, setting FROM pg_settings ORDER BY name"))
        return [tuple(row) for row in found]

    produce(kind, shop, body)

    assert stored(shop) == list(range(1, 21))


@pytest.mark.parametrize("kind", UNITS)
def test_a_failed_transaction_is_the_callers_to_end(kind: str, shop: Engine) -> None:
    """The error is the one that any other statement would raise there."""

    async def body(made: Producer) -> None:
        with pytest.raises(DBAPIError):
            await made.execute(text("SELECT 1 / 0"))
        with pytest.raises((DBAPIError, PendingRollbackError)) as refused:
            await made.do(enqueue(made.target, send_receipt, Receipt(1)))
        if isinstance(refused.value, DBAPIError):
            code = getattr(refused.value.orig, "sqlstate", None) or refused.value.orig.pgcode
            assert code == "25P02"
        await made.rollback()
        await made.do(enqueue(made.target, send_receipt, Receipt(2)))
        await made.commit()

    produce(kind, shop, body)

    assert stored(shop) == [2]


def test_a_failed_flush_is_the_callers_to_end(shop: Engine) -> None:
    with Session(shop) as session:
        session.add_all([Order(email="a"), Order(email="a")])
        with pytest.raises(DBAPIError):
            session.flush()

        with pytest.raises(PendingRollbackError):
            enqueue(session, send_receipt, Receipt(1))
        with pytest.raises(PendingRollbackError):
            enqueue_many(session, send_receipt, [Receipt(1)], ids=["one"])


@pytest.mark.parametrize("mistake", ["no tables", "no privilege"])
def test_a_table_that_is_not_usable_says_what_to_run(shop: Engine, mistake: str) -> None:
    """The database's error is the caller's as it is, with a note about the queue's tables."""
    role = f"weak_{shop.url.database}"
    with shop.connect() as connection:
        if mistake == "no tables":
            connection.execute(text("SET LOCAL search_path TO pg_catalog"))
        else:
            connection.execute(text(f'CREATE ROLE "{role}"'))
            connection.execute(text(f'SET LOCAL ROLE "{role}"'))
        with pytest.raises(ProgrammingError) as raised:
            enqueue(connection, note, "x")

    notes = " ".join(raised.value.__notes__)
    expected = "sqlalchemy-bgjob migrate" if mistake == "no tables" else "sqlalchemy-bgjob grants"
    assert expected in notes


@pytest.mark.core
@pytest.mark.parametrize("autoflush", [True, False])
def test_a_session_that_autoflushes_is_flushed_first(autoflush: bool, shop: Engine) -> None:
    """A job may refer to a row by a foreign key, or be made from it by a query."""
    with Session(shop, autoflush=autoflush) as session:
        order = Order(email="a")
        session.add(order)

        query = select(Order.id.label("order_id"))
        inserted = enqueue_from(session, send_receipt, query)
        enqueue_many(session, send_receipt, [Receipt(1)], ids=["one"])

        assert inserted == (1 if autoflush else 0)
        assert (order.id is not None) is autoflush
        session.commit()


def test_a_refused_bulk_enqueue_keeps_the_sessions_objects(shop: Engine) -> None:
    """All or nothing is about the jobs, not about what was flushed before them."""
    with Session(shop) as session:
        enqueue(session, send_receipt, Receipt(1), id="one")
        changed = Order(email="changed")
        session.add(changed)
        session.flush()
        changed.email = "later"
        session.add(Order(email="new"))

        with pytest.raises(Exception, match="'one'"):
            enqueue_many(session, note, [None, None], ids=["zero", "one"])
        session.commit()

        assert set(session.scalars(select(Order.email))) == {"later", "new"}
    assert stored(shop) == [1]


def test_no_hook_of_the_callers_hears_of_a_commit(shop: Engine) -> None:
    """A released savepoint fires after_commit of a Session: nothing is committed then."""
    heard: list[str] = []
    with Session(shop) as session:
        for name in ("after_commit", "after_rollback", "after_soft_rollback"):
            event.listen(session, name, lambda *_, name=name: heard.append(name))
        enqueue_many(session, send_receipt, [Receipt(1)], ids=["one"])
        enqueue_from(session, send_receipt, numbers(2, 2).add_columns(literal("two").label("id")))
        with pytest.raises(Exception, match="'one'"):
            enqueue_many(session, send_receipt, [Receipt(1)], ids=["one"])

        assert heard == []
        session.commit()

    assert heard == ["after_commit"]


@pytest.mark.parametrize("kind", [k for k in UNITS if k.split("-")[0] in (*ASYNC, "Session")])
def test_an_enqueue_without_a_transaction_begins_one(kind: str, shop: Engine) -> None:
    """As any statement does: never a silent transaction of its own."""

    async def body(made: Producer) -> None:
        await made.do(enqueue(made.target, send_receipt, Receipt(1)))
        session = made.target() if "scoped" in kind else made.target
        assert session.in_transaction()

    produce(kind, shop, body)

    assert stored(shop) == []


@pytest.mark.parametrize(
    "wrong",
    [None, "postgresql://x", 7, object(), Session, send_receipt],
    ids=["None", "url", "number", "object", "class", "handler"],
)
def test_another_target_is_refused_by_name(wrong: Any) -> None:
    for use in (
        lambda: enqueue(wrong, send_receipt, Receipt(1)),
        lambda: enqueue_many(wrong, send_receipt, [Receipt(1)]),
        lambda: enqueue_from(wrong, send_receipt, numbers(1, 1)),
        lambda: jobs.enqueue(wrong, "send_receipt", Receipt(1)),
    ):
        with pytest.raises(TypeError, match="Session, scoped_session, Connection or Engine"):
            use()


def test_a_session_that_is_bound_to_nothing_is_refused_at_once() -> None:
    """In the caller, not in a worker; and no other database is found for it."""
    for use in (
        lambda session: enqueue(session, send_receipt, Receipt(1)),
        lambda session: enqueue_many(session, send_receipt, [Receipt(1)]),
        lambda session: enqueue_from(session, send_receipt, numbers(1, 1)),
    ):
        with Session() as session, pytest.raises(UnboundExecutionError):
            use(session)

    async def unbound() -> None:
        async with AsyncSession() as session:
            with pytest.raises(UnboundExecutionError):
                await enqueue(session, send_receipt, Receipt(1))
            with pytest.raises(UnboundExecutionError):
                await enqueue_many(session, send_receipt, [Receipt(1)])

    asyncio.run(unbound())


def test_a_session_of_another_database_is_the_callers_own_error(
    shop: Engine, server: TestServer
) -> None:
    """It has no such table; a job never goes elsewhere than the rest of the transaction."""
    with new_engine(server) as other, Session(other) as session:
        with pytest.raises(ProgrammingError) as refused:
            enqueue(session, send_receipt, Receipt(1))

        assert refused.value.orig is not None
        assert getattr(refused.value.orig, "sqlstate", None) == "42P01"
    assert stored(shop) == []


def test_what_was_closed_for_good_is_refused_at_once(shop: Engine) -> None:
    """A closed connection, and a session that may not be used again."""
    connection = shop.connect()
    connection.close()
    session = Session(shop, close_resets_only=False)
    session.close()

    for use in (
        lambda target: enqueue(target, send_receipt, Receipt(1)),
        lambda target: enqueue_many(target, send_receipt, [Receipt(1)]),
        lambda target: enqueue_many(target, send_receipt, [Receipt(1)], ids=["one"]),
        lambda target: enqueue_from(target, send_receipt, numbers(1, 1)),
    ):
        with pytest.raises(ResourceClosedError):
            use(connection)
        with pytest.raises(InvalidRequestError, match="closed"):
            use(session)
    assert stored(shop) == []


@pytest.mark.parametrize("state", ["expired", "detached", "deleted"])
def test_an_orm_object_is_refused_whatever_its_state(shop: Engine, state: str) -> None:
    """At once, with the remedy, and without a query for what it would have to load."""
    with Session(shop) as session:
        order = Order(email="a")
        session.add(order)
        session.commit()
        if state == "detached":
            session.expunge(order)
        elif state == "deleted":
            session.delete(order)
            session.commit()
        sent: list[str] = []
        with session.connection() as connection:
            event.listen(connection, "before_cursor_execute", lambda *args: sent.append(args[2]))
            with pytest.raises(InvalidArg, match="primary key"):
                enqueue(session, note, {"order": order})
    assert sent == []
    assert stored(shop) == []


def test_a_sharded_session_is_refused(shop: Engine) -> None:
    """It would send the INSERT to every shard."""
    from sqlalchemy.ext.horizontal_shard import ShardedSession

    session = ShardedSession(
        shard_chooser=lambda *_, **__: "a",
        identity_chooser=lambda *_, **__: ["a"],
        execute_chooser=lambda *_, **__: ["a", "b"],
        shards={"a": shop, "b": shop},
    )
    with session:
        for use in (
            lambda: enqueue(session, send_receipt, Receipt(1)),
            lambda: enqueue_many(session, send_receipt, [Receipt(1)]),
            lambda: enqueue_from(session, send_receipt, numbers(1, 1)),
        ):
            with pytest.raises(TypeError, match="shard_id"):
                use()
        shard = session.connection(bind_arguments={"shard_id": "a"})
        enqueue(shard, send_receipt, Receipt(1))
        session.commit()

    assert stored(shop) == [1]


def test_a_session_of_several_databases_uses_the_jobs_own(shop: Engine) -> None:
    with Session(binds={jobs.Base: shop}) as session:
        enqueue(session, send_receipt, Receipt(1))
        enqueue_many(session, send_receipt, [Receipt(2)], ids=["two"])
        session.add(send_receipt.job(Receipt(3)))
        session.commit()

    assert stored(shop) == [1, 2, 3]


def test_a_commit_that_fails_leaves_no_job(shop: Engine) -> None:
    """A constraint that is checked at the COMMIT, and a serialization failure found by it."""
    with shop.begin() as connection:
        connection.execute(text("DROP TABLE IF EXISTS late"))
        connection.execute(text("CREATE TABLE late (n int UNIQUE DEFERRABLE INITIALLY DEFERRED)"))
    for again in (False, True):
        with Session(shop) as session:
            enqueue(session, send_receipt, Receipt(1))
            rows = "(1)" if again else "(1), (1)"
            session.execute(text(f"INSERT INTO late VALUES {rows}"))
            if again:
                session.commit()
            else:
                with pytest.raises(DBAPIError):
                    session.commit()
        assert stored(shop) == ([1] if again else [])

    serializable = shop.execution_options(isolation_level="SERIALIZABLE")
    with Session(serializable) as first, Session(serializable) as second:
        for session in (first, second):
            count = session.scalar(select(func.count()).select_from(Order)) or 0
            session.add(Order(email=f"{count} {id(session)}"))
            enqueue(session, send_receipt, Receipt(2))
        first.commit()
        with pytest.raises(DBAPIError):
            second.commit()
        second.rollback()
        enqueue(second, send_receipt, Receipt(3))
        second.commit()
    assert stored(shop) == [1, 2, 3]


def test_a_deadlock_rolls_the_job_back_too(shop: Engine) -> None:
    """The server ends one of the two; its caller tries again, and there is one job of each."""
    with Session(shop) as session:
        session.add_all([Order(id=1, email="a"), Order(id=2, email="b")])
        session.commit()
    both = threading.Barrier(2)
    ended: list[str | None] = []

    def work(number: int, first: int, second: int) -> None:
        for attempt in range(20):  # the next try may run into the other one again
            with Session(shop) as session:
                try:
                    session.execute(text("SET LOCAL deadlock_timeout = '50ms'"))
                    enqueue(session, send_receipt, Receipt(number))
                    session.get(Order, first, with_for_update=True)
                    if attempt == 0:
                        both.wait(20)
                    session.get(Order, second, with_for_update=True)
                    session.commit()
                    return
                except DBAPIError as error:
                    ended.append(sqlstate(error))

    with ThreadPoolExecutor(2) as pool:
        for done in [pool.submit(work, 1, 1, 2), pool.submit(work, 2, 2, 1)]:
            done.result(30)

    assert {*ended} == {"40P01"}
    assert stored(shop) == [1, 2]


def test_a_hook_that_raises_after_the_commit_takes_nothing_back(shop: Engine) -> None:
    def fail(_: Any) -> None:
        raise ZeroDivisionError

    with Session(shop) as session:
        event.listen(session, "after_commit", fail)
        enqueue(session, send_receipt, Receipt(1))
        with pytest.raises(ZeroDivisionError):
            session.commit()

    assert stored(shop) == [1]


def test_another_database_is_refused_before_sql() -> None:
    engine = create_engine("sqlite://")
    with engine.connect() as connection:
        for use in (
            lambda: enqueue(connection, send_receipt, Receipt(1)),
            lambda: enqueue_many(connection, send_receipt, [Receipt(1)]),
            lambda: enqueue_from(connection, send_receipt, numbers(1, 1)),
        ):
            with pytest.raises(ValueError, match="sqlite"):
                use()
    with pytest.raises(ValueError, match="sqlite"):
        enqueue(engine, send_receipt, Receipt(1))
    engine.dispose()


@pytest.mark.parametrize("by_sqlalchemy", [True, False], ids=["by SQLAlchemy", "by a listener"])
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_an_engine_in_autocommit_is_a_transaction_too(
    driver: str, shop: Engine, *, by_sqlalchemy: bool
) -> None:
    """All or nothing, as with any other engine; and AUTOCOMMIT again afterwards."""
    url = shop.url.set(drivername=f"postgresql+{driver}")
    options: dict[str, Any] = {"isolation_level": "AUTOCOMMIT"} if by_sqlalchemy else {}

    def listen(engine: Engine) -> None:
        if not by_sqlalchemy:
            event.listen(engine, "connect", lambda made, _: setattr(made, "autocommit", True))

    def work(do: Callable[[Any], Any], engine: Any) -> None:
        do(enqueue(engine, send_receipt, Receipt(1), id="one"))
        do(enqueue_from(engine, send_receipt, numbers(2, 2)))
        do(enqueue_many(engine, note, [3], ids=["three"]))
        with pytest.raises(JobAlreadyExists):
            do(enqueue_many(engine, note, [4, 5], ids=["four", "one"]))

    if driver == "asyncpg":

        async def in_loop() -> None:
            engine = create_async_engine(url, **options)
            listen(engine.sync_engine)
            await greenlet_spawn(work, await_only, engine)
            async with engine.connect() as connection:
                assert await connection.run_sync(is_autocommit)
            await engine.dispose()

        asyncio.run(in_loop())
    else:
        engine = create_engine(url, **options)
        listen(engine)
        work(lambda done: done, engine)
        with engine.connect() as connection:
            assert is_autocommit(connection)
        engine.dispose()

    with shop.connect() as connection:
        assert connection.execute(select(func.count()).select_from(Job)).scalar() == 3
