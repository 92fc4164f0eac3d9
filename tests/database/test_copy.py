"""COPY does what INSERT does, in the caller's transaction, or is not used."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, MetaData, String, create_engine, event, func, select, text
from sqlalchemy.exc import IntegrityError, OperationalError, PendingRollbackError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_bgjob import BGJob, DeadJobMixin, InvalidArg, JobMixin, enqueue_many
from sqlalchemy_bgjob._enqueue import copy as copying
from sqlalchemy_bgjob._enqueue import many as enqueueing
from sqlalchemy_bgjob.testing.points import at
from support.databases import with_driver
from support.producers import Producer, produce
from support.rows import keep_out
from support.shop import Job, Order, make_tables, note, store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.tuning import Tune

MANY = 600
SEVERAL_BLOCKS = 2 * copying.BLOCK + 1
NOW = datetime(2026, 1, 1, tzinfo=UTC)
COPIERS = ["Session-psycopg", "Connection-psycopg", "AsyncSession-psycopg", "AsyncEngine-psycopg"]
UGLY = 'a\tb\\n "c"\r\n\\. \\N ü 🎈'


@pytest.fixture
def shop(engine: Engine) -> Engine:
    make_tables(engine)
    return engine


@pytest.fixture
def copied() -> Iterator[list[object]]:
    """Grows with each COPY."""
    made: list[object] = []
    with at("copying", made.append):
        yield made


def count(engine: Engine) -> int:
    with engine.connect() as connection:
        return int(connection.execute(select(func.count()).select_from(Job)).scalar_one())


@pytest.mark.core
@pytest.mark.parametrize("kind", COPIERS)
@pytest.mark.parametrize("commits", [True, False])
def test_it_belongs_to_the_callers_transaction(
    kind: str, commits: bool, shop: Engine, copied: list[object]
) -> None:
    """Also as its first operation, before SQLAlchemy has sent a BEGIN of its own."""
    own = "Engine" in kind  # a transaction of its own

    async def body(made: Producer) -> None:
        result = await made.do(enqueue_many(made.target, note, range(MANY)))
        assert result.inserted == MANY
        if not own:
            await (made.commit() if commits else made.rollback())

    produce(kind, shop, body)

    assert len(copied) == 1
    assert count(shop) == (MANY if commits or own else 0)


@pytest.mark.parametrize("kind", ["Session-psycopg", "AsyncSession-psycopg"])
def test_what_a_trigger_keeps_out_is_not_counted(
    kind: str, shop: Engine, copied: list[object]
) -> None:
    with shop.begin() as connection:
        keep_out(connection, "NEW.arg < '5'")

    async def body(made: Producer) -> None:
        result = await made.do(enqueue_many(made.target, note, range(MANY)))
        await made.commit()
        assert result.inserted == count(shop) < MANY

    produce(kind, shop, body)

    assert len(copied) == 1


@pytest.mark.core
@pytest.mark.parametrize(
    "values", [[UGLY, None, {"k": [1, UGLY]}], [b"\x00\xff\\x", b""]], ids=["json", "bytes"]
)
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"delay": 90.5, "priority": -7},
        {"run_at": datetime(2030, 1, 2, 3, 4, 5, 678901, tzinfo=UTC)},
        {"headers": {"request-id": UGLY}, "queue": UGLY.replace("\r", "")},
    ],
    ids=["plain", "delay", "run_at", "ugly"],
)
def test_the_rows_are_those_of_an_insert(
    values: list[Any],
    options: dict[str, Any],
    shop: Engine,
    copied: list[object],
    tune: Tune,
) -> None:
    handler = store if isinstance(values[0], bytes) else note
    tune(enqueueing, WORTH_IT=1)
    with Session(shop) as session, session.begin():
        enqueue_many(session, handler, values, **options)
        tune(enqueueing, WORTH_IT=10**9)
        enqueue_many(session, handler, values, **options)

    assert len(copied) == 1
    with Session(shop) as session:
        rows = session.scalars(select(Job).order_by(Job.id)).all()
    different = {"id", "lease"}
    names = [c.name for c in Job.__table__.columns if c.name not in different]
    found = [[getattr(row, name) for name in names] for row in rows]
    assert found[: len(values)] == found[len(values) :]
    assert [row.arg_json if handler is note else row.arg for row in rows[: len(values)]] == values


def test_what_the_session_holds_is_flushed_before(shop: Engine, copied: list[object]) -> None:
    with Session(shop) as session, session.begin():
        session.add(Order(id=1, email="a@example.com"))
        enqueue_many(session, note, range(MANY))
        with shop.connect() as other:
            assert other.execute(select(func.count()).select_from(Order)).scalar() == 0
        assert not session.new
    assert len(copied) == 1


def test_a_savepoint_takes_its_own_jobs_with_it(shop: Engine, copied: list[object]) -> None:
    with Session(shop) as session, session.begin():
        enqueue_many(session, note, range(MANY))
        inner = session.begin_nested()
        enqueue_many(session, note, range(MANY))
        inner.rollback()
    assert len(copied) == 2
    assert count(shop) == MANY


def test_waiting_workers_are_told(shop: Engine, copied: list[object]) -> None:
    from sqlalchemy_bgjob._sql.words import channel_name, own_channel

    insert = (
        "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout, waits_for)"
        " VALUES (1, '', 1, '', '{}', 30, '[\"default\"]')"
    )
    with shop.begin() as connection:
        connection.execute(text(insert))
    with shop.connect() as listener:
        listener.execution_options(isolation_level="AUTOCOMMIT")
        channel = own_channel(channel_name(None, "bgjob_"), 1)
        listener.exec_driver_sql(f'LISTEN "{channel}"')
        with Session(shop) as session, session.begin():
            enqueue_many(session, note, range(MANY))
        driver: Any = listener.connection.driver_connection
        heard = [n.payload for n in driver.notifies(timeout=5.0, stop_after=1)]
    assert len(copied) == 1
    assert heard == ["new 0 default"]


@pytest.mark.core
@pytest.mark.parametrize("kind", ["Session-psycopg", "AsyncSession-psycopg"])
def test_a_refused_row_is_sqlalchemys_error(kind: str, shop: Engine) -> None:
    check = "ALTER TABLE bgjob_job ADD CONSTRAINT short CHECK (length(arg) < 4)"
    with shop.begin() as connection:
        connection.execute(text(check))

    async def body(made: Producer) -> None:
        with pytest.raises(IntegrityError, match="short") as refused:
            await made.do(enqueue_many(made.target, note, [10_000] * MANY))
        assert refused.value.statement is not None
        assert refused.value.statement.startswith("COPY ")
        assert not refused.value.connection_invalidated
        await made.rollback()
        await made.do(enqueue_many(made.target, note, [1] * MANY))
        await made.commit()

    produce(kind, shop, body)
    assert count(shop) == MANY


@pytest.mark.core
@pytest.mark.parametrize("kind", COPIERS)
def test_a_bad_arg_far_down_leaves_the_transaction_usable(kind: str, shop: Engine) -> None:
    """It is found when the first jobs are with the server already."""
    values = [*range(SEVERAL_BLOCKS - 1), float("nan")]
    own = "Engine" in kind  # a transaction of its own

    async def body(made: Producer) -> None:
        await made.do(enqueue_many(made.target, note, range(3)))
        with pytest.raises(InvalidArg, match=rf"at \[{len(values) - 1}\]:"):
            await made.do(enqueue_many(made.target, note, values))
        await made.do(enqueue_many(made.target, note, range(SEVERAL_BLOCKS)))
        if not own:
            await made.commit()

    produce(kind, shop, body)
    assert count(shop) == 3 + SEVERAL_BLOCKS


@pytest.mark.parametrize("number", [MANY, SEVERAL_BLOCKS])
def test_a_lost_connection_is_sqlalchemys_error(number: int, shop: Engine) -> None:
    def cut(_: object) -> None:
        with shop.connect() as other:
            others = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE pid = :pid"
            other.execute(text(others), {"pid": pid})

    with Session(shop) as session:
        pid = session.scalar(select(func.pg_backend_pid()))
        with at("copying", cut), pytest.raises(OperationalError) as lost:
            enqueue_many(session, note, range(number))
        assert lost.value.connection_invalidated
        session.rollback()
    assert count(shop) == 0


@pytest.mark.core
@pytest.mark.parametrize("number", [MANY, SEVERAL_BLOCKS])
def test_a_copy_that_is_cancelled_fails_the_transaction(number: int, shop: Engine) -> None:
    """The server's has failed; a commit that is answered by a rollback must not look like one."""
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    async def main() -> None:
        engine = create_async_engine(with_driver(shop.url, "psycopg"))
        async with AsyncSession(engine) as session:
            session.add(Order(id=1, email="a@example.com"))
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.5):
                    await enqueue_many(session, note, range(number))
            with pytest.raises(PendingRollbackError):
                await session.commit()
        await engine.dispose()

    with shop.connect() as blocker:
        blocker.execute(text("LOCK TABLE bgjob_job IN SHARE MODE"))
        asyncio.run(main())
        blocker.rollback()
    assert count(shop) == 0


@pytest.mark.parametrize("number", [10, MANY])
def test_days_have_24_hours_in_every_time_zone(
    number: int, shop: Engine, copied: list[object]
) -> None:
    with Session(shop) as session, session.begin():
        session.execute(text("SET LOCAL TIME ZONE 'Europe/Berlin'"))
        enqueue_many(session, note, range(number), delay=timedelta(days=183))
    with shop.connect() as connection:
        query = "SELECT DISTINCT extract(epoch FROM next_run_at - created_at) FROM bgjob_job"
        assert connection.execute(text(query)).scalars().all() == [183 * 86_400]
    assert len(copied) == (number >= MANY)


def test_what_is_equal_may_be_written_differently(
    shop: Engine, copied: list[object], tune: Tune
) -> None:
    tune(enqueueing, WORTH_IT=1)
    with Session(shop) as session, session.begin():
        enqueue_many(session, [note.job(0, headers={"a": 1}), note.job(1, headers={"a": True})])
    with shop.connect() as connection:
        query = "SELECT headers::text FROM bgjob_job ORDER BY id"
        assert connection.execute(text(query)).scalars().all() == ['{"a": 1}', '{"a": true}']
    assert len(copied) == 1


def test_large_args_go_in_small_blocks(shop: Engine, copied: list[object]) -> None:
    blocks = list(copying._blocks([*note.drafts(["x" * 1_000_000] * 20, None, {})], NOW))
    assert len(blocks) >= 3
    assert sum(block.count(b"default") for block in blocks) == 20


def test_another_client_encoding_gets_an_insert(shop: Engine, copied: list[object]) -> None:
    with Session(shop) as session, session.begin():
        session.execute(text("SET LOCAL client_encoding = 'LATIN1'"))
        enqueue_many(session, note, range(MANY), queue="für")
    with Session(shop) as session:
        assert set(session.scalars(select(Job.queue))) == {"für"}
    assert copied == []


def test_row_security_is_respected(shop: Engine, copied: list[object]) -> None:
    """PostgreSQL refuses COPY to whom it applies."""
    name = f"limited_{shop.url.database}"
    with shop.begin() as connection:
        connection.execute(text(f'CREATE ROLE "{name}"'))
        connection.execute(text(f'GRANT ALL ON ALL TABLES IN SCHEMA public TO "{name}"'))
        connection.execute(text("ALTER TABLE bgjob_job ENABLE ROW LEVEL SECURITY"))
        connection.execute(text("CREATE POLICY mine ON bgjob_job USING (queue = 'default')"))
    try:
        with Session(shop) as session, session.begin():
            session.execute(text(f'SET LOCAL ROLE "{name}"'))
            enqueue_many(session, note, range(MANY))
        assert copied == []
        assert count(shop) == MANY
    finally:
        with shop.begin() as connection:
            connection.execute(text(f'DROP OWNED BY "{name}"'))
            connection.execute(text(f'DROP ROLE "{name}"'))


def test_a_default_in_python_of_an_own_column_is_called(
    engine: Engine, copied: list[object]
) -> None:
    class Base(DeclarativeBase):
        pass

    class OwnJob(JobMixin, Base):
        tenant: Mapped[str] = mapped_column(String, default=lambda: "from Python")

    class OwnDeadJob(DeadJobMixin, Base):
        pass

    jobs = BGJob(Base, models=(OwnJob, OwnDeadJob))

    @jobs.handler("own")
    def own(ctx: Any, number: int) -> None:
        """Never run."""

    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        enqueue_many(session, own, range(MANY))
    with Session(engine) as session:
        assert set(session.scalars(select(OwnJob.tenant))) == {"from Python"}
    assert copied == []


def test_a_schema_of_an_odd_name(engine: Engine, copied: list[object]) -> None:
    jobs = BGJob(MetaData(), schema='o"dd Schema', table_prefix='p"x_')

    @jobs.handler("odd")
    def odd(ctx: Any, number: int) -> None:
        """Never run."""

    with engine.begin() as connection:
        connection.execute(text('CREATE SCHEMA "o""dd Schema"'))
        jobs.metadata.create_all(connection)
    with Session(engine) as session, session.begin():
        enqueue_many(session, odd, range(MANY), delay=timedelta(hours=1))
    with Session(engine) as session:
        assert len(session.scalars(select(jobs.Job.id)).all()) == MANY
    assert len(copied) == 1


def test_a_translated_schema_gets_an_insert(engine: Engine, copied: list[object]) -> None:
    jobs = BGJob(MetaData())

    @jobs.handler("tenant")
    def tenant(ctx: Any, number: int) -> None:
        """Never run."""

    translated = create_engine(engine.url).execution_options(
        schema_translate_map={None: "tenant_1"}
    )
    with translated.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant_1"))
        jobs.metadata.create_all(connection)
        enqueue_many(connection, tenant, range(MANY))
    with engine.connect() as connection:
        assert connection.execute(text("SELECT count(*) FROM tenant_1.bgjob_job")).scalar() == MANY
    assert copied == []
    translated.dispose()


def test_few_jobs_are_one_statement(shop: Engine, copied: list[object]) -> None:
    sent: list[str] = []
    with Session(shop) as session, session.begin():
        event.listen(
            session.connection(), "before_cursor_execute", lambda *args: sent.append(args[2])
        )
        enqueue_many(session, note, range(copying.WORTH_IT - 1))
    assert copied == []
    assert len(sent) == 1
