"""Databases that the tests of a module share: of the queue alone, and of an application."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from sqlalchemy import Engine, delete, text
from sqlalchemy.orm import Session

from sqlalchemy_bgjob._sql import Statements
from support.queue import Queue
from support.rows import make_tables
from support.shop import Job, Order
from support.shop import make_tables as make_shop_tables
from support.tables import new_engine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support import TestServer


@pytest.fixture(scope="module")
def tables(server: TestServer) -> Iterator[tuple[Engine, Statements]]:
    """The queue's tables, and one of the user's that refers to a job."""
    with new_engine(server) as engine:
        models = make_tables(engine)
        with engine.begin() as connection:
            connection.execute(text("CREATE TABLE receipt (job_id text REFERENCES bgjob_job)"))
        yield engine, Statements(models)


@pytest.fixture
def queue(tables: tuple[Engine, Statements]) -> Iterator[Queue]:
    """Empty tables, and a connection that never waits for a lock without failing."""
    engine, statements = tables
    with engine.begin() as connection:
        connection.execute(text("TRUNCATE bgjob_job, bgjob_dead_job, bgjob_worker, receipt"))
    with engine.connect() as connection:
        with connection.begin():
            connection.execute(text("SET lock_timeout = '5s'"))
        yield Queue(engine, statements, connection)


@pytest.fixture(scope="module")
def shop(module_engine: Engine) -> Engine:
    """The tables of ``support.shop``, in a database that the tests of a module share."""
    make_shop_tables(module_engine)
    return module_engine


@pytest.fixture
def session(shop: Engine) -> Iterator[Session]:
    """A session that is rolled back."""
    with Session(shop) as session:
        yield session


@pytest.fixture
def clean(shop: Engine) -> Iterator[Engine]:
    """The application's database, for tests that commit."""
    yield shop
    with shop.begin() as connection:
        connection.execute(delete(Job))
        connection.execute(delete(Order))
