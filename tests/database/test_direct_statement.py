"""The claim in the driver's own way gives what SQLAlchemy would, and raises what it raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, event, text
from sqlalchemy.exc import DBAPIError, ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.util import greenlet_spawn

from sqlalchemy_bgjob._db.direct_statement import DirectStatement, prepare
from sqlalchemy_bgjob._db.errors import lost_connection, sqlstate
from sqlalchemy_bgjob._drafts.validation import EARLIEST
from sqlalchemy_bgjob._lifecycle import claim as claims
from sqlalchemy_bgjob._lifecycle.claim import Look, Position
from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob._sql.words import parameters
from support.pooler import POOLED
from support.rows import ME, add, ids, make_tables

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection


pytestmark = [pytest.mark.core, pytest.mark.keeps_tables]

GIVEN = parameters(
    queue="q", limit=10, worker=ME, priority=[0, 5], at=[EARLIEST, EARLIEST], id=["", ""]
)


@pytest.fixture
def statements(engine: Engine) -> Statements:
    return Statements(make_tables(engine))


async def with_driver(
    engine: Engine,
    driver: str,
    action: Callable[[Engine, Connection], None],
    connect_args: Mapping[str, Any] | None = None,
) -> None:
    """Do it on a connection of the driver whose statements commit by themselves."""

    def do(engine: Engine) -> None:
        with engine.connect() as connection:
            action(engine, connection.execution_options(isolation_level="AUTOCOMMIT"))

    url = engine.url.set(drivername=f"postgresql+{driver.removesuffix(' async')}")
    if driver == "psycopg":
        do(engine)
        return
    other = create_async_engine(url, connect_args={**(connect_args or {})})
    try:
        await greenlet_spawn(do, other.sync_engine)
    finally:
        await other.dispose()


DRIVERS = pytest.mark.parametrize("driver", ["psycopg", "psycopg async", "asyncpg"])


@DRIVERS
@pytest.mark.anyio
async def test_a_claim_gives_the_rows_that_sqlalchemy_would(
    engine: Engine, statements: Statements, driver: str
) -> None:
    with engine.begin() as connection:
        add(connection, "a", arg=b"\x00\xff", headers='{"k": [1, "x"]}', last_error="before")
        add(connection, "b", priority=5)
        add(connection, "c", unknown_since="2026-01-01 00:00:00+00")

    def claim(engine: Engine, connection: Connection) -> None:
        claim = prepare([statements.claim.onward], connection)[statements.claim.onward]
        heads = [Position(0, EARLIEST, ""), Position(5, EARLIEST, "")]
        given: Any = {"queue": "q", "limit": 10, "worker_id": ME, "onward": heads}
        jobs = claims.claim(connection, statements, **given, direct=claim)
        with engine.connect() as other:  # committed by itself
            held = other.scalar(text("SELECT count(*) FROM bgjob_job WHERE claimed_by IS NOT NULL"))
            other.rollback()
            with other.begin():
                other.execute(text("UPDATE bgjob_job SET claimed_by = NULL, attempt = 0"))
                again = claims.claim(other, statements, **given)
        assert [job.id for job in jobs] == ["a", "c", "b"]
        assert held == 3
        different = {"lease", "updated_at", "unknown_for"}
        for job, same in zip(jobs, again, strict=True):
            for name in set(job.__slots__) - different:
                value, expected = getattr(job, name), getattr(same, name)
                assert value == expected
                assert type(value) is type(expected)
        assert jobs[1].unknown_for == pytest.approx(again[1].unknown_for, abs=60)
        assert type(jobs[1].unknown_for) is type(again[1].unknown_for)

    await with_driver(engine, driver, claim)


@DRIVERS
@pytest.mark.anyio
async def test_errors_are_sqlalchemys_and_tell_a_lost_connection_apart(
    engine: Engine, statements: Statements, driver: str
) -> None:
    def fail(engine: Engine, connection: Connection) -> None:
        claim = DirectStatement(statements.claim.onward, engine.dialect)
        pid = connection.scalar(text("SELECT pg_backend_pid()"))
        connection.execute(text("SET search_path = nowhere"))
        with pytest.raises(ProgrammingError) as wrong:
            claim.fetch(connection, GIVEN)
        assert sqlstate(wrong.value) == "42P01"
        assert not lost_connection(wrong.value)
        assert "1001" not in str(wrong.value), "parameters are not told"
        connection.execute(text("RESET search_path"))
        assert claim.fetch(connection, GIVEN) == [], "the connection goes on"

        with engine.connect() as other:
            other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})
        with pytest.raises(DBAPIError) as lost:
            claim.fetch(connection, GIVEN)
        assert lost_connection(lost.value)
        connection.invalidate()

    await with_driver(engine, driver, fail)


@DRIVERS
@pytest.mark.anyio
async def test_a_claim_from_many_queues_commits_by_itself(
    engine: Engine, statements: Statements, driver: str
) -> None:
    with engine.begin() as connection:
        add(connection, "a", arg=b"\x00\xff", headers='{"k": [1, "x"]}')
        add(connection, "b", queue="other", priority=5)
    looks = [Look("q", 3), Look("other", 3, (Position(5, EARLIEST, ""),))]

    def claim(_: Engine, connection: Connection) -> None:
        of_queues = statements.claim.of_queues
        direct = prepare([of_queues], connection)[of_queues]
        found = claims.claim_from_queues(
            connection, statements, looks=looks, worker_id=ME, direct=direct
        )
        assert [ids(of_queue.jobs) for of_queue in found] == [["a"], ["b"]]
        assert found[0].jobs[0].arg == b"\x00\xff"
        assert found[0].jobs[0].headers == {"k": [1, "x"]}
        with engine.connect() as other:
            held = text("SELECT count(*) FROM bgjob_job WHERE claimed_by IS NOT NULL")
            assert other.scalar(held) == 2

    await with_driver(engine, driver, claim)


def test_it_is_compiled_once_for_all_connections(engine: Engine, statements: Statements) -> None:
    """Or who connects again would need more time for that than for all the rest."""
    with engine.connect() as one, engine.connect() as two:
        first, second = (prepare([statements.claim.onward], it) for it in (one, two))

    assert first[statements.claim.onward] is second[statements.claim.onward]


def test_where_somebody_listens_sqlalchemy_runs_it(engine: Engine, statements: Statements) -> None:
    def usable(engine: Engine) -> bool:
        try:
            with engine.connect() as connection:
                return bool(prepare([statements.claim.onward], connection))
        finally:
            engine.dispose()

    assert usable(engine)
    assert not usable(engine.execution_options(schema_translate_map={None: "other"}))
    assert not usable(create_engine(engine.url, echo=True))
    assert not usable(create_engine(engine.url.set(drivername="postgresql+psycopg2")))
    watched = create_engine(engine.url)
    event.listen(watched, "before_cursor_execute", lambda *_: None)
    assert not usable(watched)
    for name in ("begin", "commit"):
        roles = create_engine(engine.url)
        event.listen(roles, name, lambda _: None)
        assert not usable(roles)
    options = {"options": "-c default_transaction_isolation=serializable"}
    assert not usable(create_engine(engine.url, connect_args=options))
    stricter = create_engine(engine.url)
    event.listen(stricter, "connect", serializable)
    assert not usable(stricter)


def serializable(driver: Any, _: object) -> None:
    driver.execute("SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    driver.commit()


@pytest.mark.anyio
async def test_without_prepared_statements_sqlalchemy_runs_it(
    engine: Engine, statements: Statements
) -> None:
    """So asyncpg is told behind a pooler, where each of its steps might meet another session."""
    found: list[dict[Any, DirectStatement]] = []

    def look(engine: Engine, connection: Connection) -> None:
        found.append(prepare([statements.claim.onward], connection))

    await with_driver(engine, "asyncpg", look, POOLED["asyncpg"])

    assert found == [{}]
