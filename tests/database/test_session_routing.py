"""Sessions of several databases: jobs go where the session's own writes go, and with them."""

from __future__ import annotations

import asyncio
from itertools import cycle, repeat
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import (
    Delete,
    Engine,
    Insert,
    MetaData,
    Table,
    Update,
    create_engine,
    delete,
    func,
    insert,
    select,
    text,
    true,
)
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from test_session_hooks import WAYS

from sqlalchemy_bgjob import BGJob, enqueue, enqueue_many
from support.databases import with_driver
from support.shop import Base, Job, Order, jobs, note
from support.tables import new_engine

if TYPE_CHECKING:
    from collections.abc import Callable

    from support import TestServer

pytestmark = pytest.mark.core

DeadJob = jobs.DeadJob


@pytest.fixture(autouse=True)
def _some_jobs(shop: Engine) -> None:
    """Jobs to cancel, to redrive, to prune and to work on."""
    dead = {"queue": "own", "type": "note", "lease": 1}
    times = ("next_run_at", "job_created_at", "job_updated_at")
    dead |= dict.fromkeys(times, func.now())
    with shop.begin() as connection:
        for table in (Job, DeadJob, Order):
            connection.execute(delete(table))
        connection.execute(insert(DeadJob).values(id="1", job_id="redriven", **dead))
        connection.execute(insert(DeadJob).values(id="2", job_id="pruned", **dead))
    enqueue(shop, note, 1, id="cancelled")
    enqueue(shop, note, 1, id="worked on", queue="own")


def left(shop: Engine) -> tuple[int, int, int]:
    """How many jobs, dead jobs and orders there are."""
    with shop.connect() as connection:
        counts = [select(func.count()).select_from(model) for model in (Job, DeadJob, Order)]
        jobs, dead, orders = (connection.execute(count).scalar_one() for count in counts)
    return jobs, dead, orders


USES: dict[str, Callable[[Any], Any]] = {
    **{name: way for name, way in WAYS.items() if name != "objects"},
    "cancel": lambda session: jobs.cancel(session, "cancelled"),
    "redrive": lambda session: jobs.redrive(session, DeadJob.job_id == "redriven"),
    "prune": lambda session: jobs.prune(session, 0, where=DeadJob.job_id == "pruned"),
    "work_one": lambda session: jobs.work_one(session, "own", lambda ctx, arg: None),
}
AFTER: dict[str, tuple[int, int, int]] = {
    "COPY": (602, 2, 1),
    "cancel": (1, 2, 1),
    "redrive": (3, 1, 1),
    "prune": (2, 1, 1),
    "work_one": (1, 2, 1),
}


def by_update_or_delete(session: Any, clause: Any) -> bool:
    """As SQLAlchemy's documentation shows it."""
    return session._flushing or isinstance(clause, Update | Delete)


def by_any_write(session: Any, clause: Any) -> bool:
    return session._flushing or isinstance(clause, Insert | Update | Delete)


def by_is_dml(session: Any, clause: Any) -> bool:
    return session._flushing or bool(getattr(clause, "is_dml", False))


def by_flush_alone(session: Any, clause: Any) -> bool:
    """Of sessions that write by the unit of work, and in no other way."""
    return bool(session._flushing)


RECIPES = (by_update_or_delete, by_any_write, by_is_dml, by_flush_alone)
KINDS = ("Session", "scoped_session", "AsyncSession-psycopg", "AsyncSession-asyncpg")


def follower_of(leader: Engine, kind: str) -> Engine:
    """The same database as a follower of it: where a write fails, or survives the rollback."""
    if kind == "read only":
        if leader.dialect.driver == "asyncpg":
            given: dict[str, Any] = {"server_settings": {"default_transaction_read_only": "on"}}
        else:
            given = {"options": "-c default_transaction_read_only=on"}
        return _created(leader, connect_args=given)
    return leader.execution_options(isolation_level="AUTOCOMMIT")


def _created(leader: Engine, **options: Any) -> Engine:
    if leader.dialect.is_async:
        return create_async_engine(leader.url, **options).sync_engine
    return create_engine(leader.url, **options)


def routing(leader: Engine, follower: Engine, recipe: Callable[..., bool]) -> type[Session]:
    class RoutingSession(Session):
        # To the letter: it takes no other argument.
        def get_bind(self, mapper: Any = None, clause: Any = None) -> Engine:  # type: ignore[override]
            return leader if recipe(self, clause) else follower

    return RoutingSession


def run(
    kind: str, shop: Engine, follower: str, recipe: Callable[..., bool], use: Any, end: str
) -> None:
    """Write an order, *use* the session, and end it."""

    async def synchronous() -> None:
        behind = follower_of(shop, follower)
        cls = routing(shop, behind, recipe)
        session: Any = scoped_session(sessionmaker(class_=cls)) if "scoped" in kind else cls()
        try:
            session.add(Order(email="a"))
            session.flush()
            use(session)
            getattr(session, end)()
        finally:
            session.close()
            if behind.pool is not shop.pool:
                behind.dispose()

    async def asynchronous() -> None:
        driver = kind.split("-")[1]
        engine = create_async_engine(
            with_driver(shop.url.render_as_string(hide_password=False), driver)
        )
        behind = follower_of(engine.sync_engine, follower)
        cls = routing(engine.sync_engine, behind, recipe)
        try:
            async with AsyncSession(sync_session_class=cls) as session:
                session.add(Order(email="a"))
                await session.flush()
                await use(session)
                await getattr(session, end)()
                await session.close()
                if behind.pool is not engine.pool:
                    await session.run_sync(lambda _: behind.dispose())
        finally:
            await engine.dispose()

    asyncio.run(asynchronous() if kind.startswith("Async") else synchronous())


@pytest.mark.parametrize(
    ("kind", "recipe", "name"),
    [
        *(("Session", recipe, name) for recipe in RECIPES for name in USES),
        # What get_bind is asked does not hang on it: each use and each recipe, not each pair.
        *zip(repeat("AsyncSession-asyncpg"), cycle(RECIPES), USES),
    ],
)
def test_jobs_go_to_the_leader(kind: str, recipe: Any, name: str, shop: Engine) -> None:
    run(kind, shop, "read only", recipe, USES[name], "commit")

    assert left(shop) == AFTER.get(name, (3, 2, 1))


@pytest.mark.parametrize(
    ("kind", "name"), [*zip(cycle(KINDS[:2]), USES), *zip(cycle(KINDS[2:]), USES)]
)
def test_a_rollback_undoes_them_with_the_writes(kind: str, name: str, shop: Engine) -> None:
    """A follower in AUTOCOMMIT would keep them."""
    run(kind, shop, "autocommit", by_update_or_delete, USES[name], "rollback")

    assert left(shop) == (2, 2, 0)


def test_a_choice_at_random_is_asked_for_once(shop: Engine) -> None:
    """A session that takes another connection for each statement has no transaction."""
    asked: list[Any] = []

    class Choosing(Session):
        def get_bind(self, mapper: Any = None, *, clause: Any = None, **_: Any) -> Engine:
            asked.append(clause)
            return shop.execution_options(number=len(asked))

    with Choosing() as session:
        enqueue_many(session, note, [1], ids=["one"])
        assert len(asked) == 1
        session.commit()

    assert left(shop) == (3, 2, 0)


def test_the_flag_of_a_flush_is_as_before(shop: Engine) -> None:
    """Also where the session's get_bind raises."""

    class Failing(Session):
        def get_bind(self, *args: Any, **kwargs: Any) -> Engine:
            raise ZeroDivisionError

    with Failing() as session:
        with pytest.raises(ZeroDivisionError):
            enqueue(session, note, 1)
        assert session._flushing is False


@pytest.mark.parametrize(
    ("key", "name"),
    [
        *(("base", name) for name in USES),
        *((key, name) for key in ("models", "tables") for name in ("enqueue", "COPY", "redrive")),
    ],
)
def test_binds_by_class_lead_to_the_jobs(key: str, name: str, shop: Engine) -> None:
    """The other database has no such tables."""
    elsewhere = create_engine("postgresql+psycopg://nobody@localhost:1/nowhere")
    mine: dict[str, list[Any]] = {
        "base": [jobs.Base],
        "models": [Job, DeadJob],
        "tables": [Job.__table__, DeadJob.__table__],
    }
    binds = {Base: shop, **dict.fromkeys(mine[key], shop)}
    with Session(elsewhere, binds=binds) as session:
        session.add(Order(email="a"))
        session.flush()
        USES[name](session)
        session.commit()

    assert left(shop) == AFTER.get(name, (3, 2, 1))


def test_binds_without_the_queue_say_what_to_add(shop: Engine) -> None:
    with Session(binds={Base: shop}) as session, pytest.raises(UnboundExecutionError) as refused:
        enqueue(session, note, 1)

    assert any("jobs.Base: engine" in note for note in refused.value.__notes__)


@pytest.mark.parametrize("key", [None, "jobs"])
def test_a_flask_bind_key_leads_to_the_jobs(
    key: str | None, shop: Engine, server: TestServer
) -> None:
    """By the metadata that BGJob was given: the default bind's, or that of a key."""
    from flask import Flask
    from flask_sqlalchemy import SQLAlchemy

    with new_engine(server) as other:
        urls = [e.url.render_as_string(hide_password=False) for e in (shop, other)]
        default, bound = urls if key is None else reversed(urls)
        app = Flask("shop")
        app.config["SQLALCHEMY_DATABASE_URI"] = default
        app.config["SQLALCHEMY_BINDS"] = {"jobs": bound}
        db = SQLAlchemy(app)
        Table("of_the_key", db.metadatas.setdefault("jobs", _bound("jobs")))
        queue: BGJob[Any, Any] = BGJob(db if key is None else db.metadatas[key])

        @queue.handler("note")
        def noted(ctx: Any, arg: int) -> None: ...

        with app.app_context():
            enqueue(db.session, noted, 1)
            enqueue_many(db.session, noted, [2], ids=["two"])
            assert queue.cancel(db.session, "cancelled") == "cancelled"
            assert queue.redrive(db.session, true()).ids == ("pruned", "redriven")
            db.session.commit()
            db.session.execute(text("SELECT 1"))
            db.session.remove()
            for engine in db.engines.values():
                engine.dispose()

    assert left(shop) == (5, 0, 0)


def _bound(key: str) -> MetaData:
    return MetaData(info={"bind_key": key})
