"""What a worker checks before it begins: its queues, the database, the pool."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from sqlalchemy_bgjob._handlers.served import check_queues
from sqlalchemy_bgjob._worker.preflight import check_dialect, pool_permits

if TYPE_CHECKING:
    from collections.abc import Mapping


pytestmark = pytest.mark.core
NOWHERE = "postgresql+psycopg://nobody@127.0.0.1:1/none"


def test_queues_are_names_with_a_concurrency() -> None:
    given = {"mail": 1, "reports": 10_000}

    checked = check_queues(given)

    assert checked == given
    assert checked is not given, "what the caller does to it later must not reach the worker"


@pytest.mark.parametrize(
    ("queues", "words"),
    [
        ({}, "queues= is empty"),
        ({"q": 0}, "the concurrency 0 of queue 'q' is not 1 to 10000"),
        ({"q": -1}, "the concurrency -1"),
        ({"q": 10_001}, "the concurrency 10001"),
        ({"q": True}, "the concurrency True"),
        ({"q": 2.0}, r"the concurrency 2\.0"),
        ({"q": "2"}, "the concurrency '2'"),
        ({"": 1}, "queue"),
        ({"x" * 129: 1}, "queue"),
    ],
)
def test_a_queue_that_cannot_be_served_is_refused(queues: Mapping[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        check_queues(queues)


@pytest.mark.parametrize("url", ["sqlite://", "mysql+pymysql://", "oracle://"])
def test_another_database_is_refused_with_the_remedy(url: str) -> None:
    class Dialect:
        name = url.split(":", maxsplit=1)[0]

    class Fake:
        dialect = Dialect

    engine: Any = Fake if url != "sqlite://" else create_engine(url)

    with pytest.raises(ValueError, match=r"needs PostgreSQL.*postgresql\+psycopg://"):
        check_dialect(engine)


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "asyncpg"])
def test_postgresql_is_accepted_on_each_driver(driver: str) -> None:
    check_dialect(create_engine(f"postgresql+{driver}://"))


@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 2, "max_overflow": 0},
        {"pool_size": 1, "max_overflow": 1},
        {"poolclass": StaticPool},
        {"poolclass": SingletonThreadPool},
    ],
)
def test_a_pool_below_three_is_refused_with_the_needed_size(
    options: dict[str, Any],
) -> None:
    with pytest.raises(ValueError, match=r"at least 3; 12 let all 10 slots .*pool_size=12"):
        pool_permits(create_engine(NOWHERE, **options), slots=10)


def test_fewer_permits_than_slots_are_a_warning_with_the_number(
    caplog: pytest.LogCaptureFixture,
) -> None:
    engine = create_engine(NOWHERE, pool_size=5, max_overflow=0)

    with caplog.at_level(logging.WARNING, "sqlalchemy_bgjob"):
        assert pool_permits(engine, slots=3) == 3
        assert not caplog.records
        assert pool_permits(engine, slots=4) == 3

    assert "4 slots share 3 connections" in caplog.text
    assert "pool_size=6" in caplog.text
