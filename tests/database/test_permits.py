"""What a worker checks before it begins, and how handlers get their connections."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import TimeoutError as PoolTimeoutError
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool, StaticPool

from sqlalchemy_bgjob import settings
from sqlalchemy_bgjob._handlers.served import check_queues
from sqlalchemy_bgjob._worker import preflight
from sqlalchemy_bgjob._worker.permits import HandlerConnections
from sqlalchemy_bgjob._worker.preflight import check_dialect, pool_permits

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

pytestmark = pytest.mark.core

NOWHERE = "postgresql+psycopg://nobody@127.0.0.1:1/none"
ME = 1001


# ---- queues ---------------------------------------------------------------------------------


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


# ---- permits --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "permits"),
    [
        ({}, 13),  # SQLAlchemy's defaults: 5 and 10 more
        ({"pool_size": 12}, 20),
        ({"pool_size": 3, "max_overflow": 0}, 1),
        ({"pool_size": 1, "max_overflow": 2}, 1),
        ({"pool_size": 0}, None),
        ({"max_overflow": -1}, None),
        ({"poolclass": NullPool}, None),
    ],
)
def test_handlers_get_what_the_pool_holds_but_for_two(
    options: dict[str, Any], permits: int | None
) -> None:
    assert pool_permits(create_engine(NOWHERE, **options), slots=1) == permits


@pytest.mark.parametrize(
    "options",
    [
        {"pool_size": 2, "max_overflow": 0},
        {"pool_size": 1, "max_overflow": 1},
        {"poolclass": StaticPool},
        {"poolclass": SingletonThreadPool},
    ],
)
def test_a_pool_below_three_is_refused_with_the_number_that_is_needed(
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


def test_the_worker_itself_leaves_the_permits_to_the_handlers() -> None:
    """What is spared is what the worker takes from the user's pool at once."""
    assert settings.SPARE_CONNECTIONS == 2
    assert preflight.MIN_POOL == 3


# ---- connections ----------------------------------------------------------------------------


class Permits:
    """Counts, and never blocks."""

    def __init__(self) -> None:
        self.taken = 0

    def acquire(self, *, timeout: float | None = None) -> bool:
        self.taken += 1
        return True

    def release(self) -> None:
        self.taken -= 1
        assert self.taken >= 0


def test_a_connection_takes_a_permit_and_gives_it_back(engine: Engine) -> None:
    permits = Permits()
    connections = HandlerConnections(engine, permits)

    connection = connections.connect(None, ME)
    assert permits.taken == 1
    connections.disconnect(connection)

    assert permits.taken == 0
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0


def test_a_handler_waits_for_a_permit_and_does_not_fail(database_url: str) -> None:
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    connections = HandlerConnections(engine, threading.Semaphore(1))
    first = connections.connect(None, ME)
    got = threading.Event()

    def second() -> None:
        connections.disconnect(connections.connect(None, ME))
        got.set()

    thread = threading.Thread(target=second)
    thread.start()
    assert not got.wait(0.2), "it must wait while the only connection is in use"
    connections.disconnect(first)

    thread.join(20)
    assert got.is_set()
    engine.dispose()


def test_a_server_that_is_down_costs_no_permit() -> None:
    permits = Permits()
    connections = HandlerConnections(create_engine(NOWHERE), permits)

    with pytest.raises(Exception, match="refused"):
        connections.connect(None, ME)

    assert permits.taken == 0


class Cancelled(BaseException):
    """What ends a wait from outside, as asyncio's CancelledError does."""


class EndedAsItIsWoken:
    """A semaphore whose wait is cancelled just after another handler has released it."""

    def __init__(self) -> None:
        self.release_another: Callable[[], None] = lambda: None

    def acquire(self, *, timeout: float | None = None) -> bool:
        self.release_another()
        raise Cancelled

    def release(self) -> None:
        """The wait is over already."""


def test_a_wait_that_is_cancelled_as_it_is_woken_counts_no_connection_as_in_use(
    database_url: str,
) -> None:
    """Else every later refusal would be waited out, for a connection that nobody has."""
    engine = create_engine(database_url, pool_size=1, max_overflow=0, pool_timeout=0.01)
    returned = EndedAsItIsWoken()
    connections = HandlerConnections(engine, None, returned=returned)
    first = connections.connect(None, ME)
    returned.release_another = lambda: connections.disconnect(first)
    with pytest.raises(Cancelled):
        connections.connect(None, ME)

    returned.release_another = lambda: None
    with engine.connect(), pytest.raises(PoolTimeoutError):
        connections.connect(None, ME)

    engine.dispose()


def test_an_isolation_level_that_is_refused_costs_no_permit_and_no_connection(
    engine: Engine,
) -> None:
    permits = Permits()

    with pytest.raises(Exception, match="NO SUCH LEVEL") as refused:
        HandlerConnections(engine, permits).connect("NO SUCH LEVEL", ME)

    # Its frames are alive, so no garbage collection has given the connection back.
    assert refused.tb is not None
    assert permits.taken == 0
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0


def test_a_connection_that_is_beyond_use_is_thrown_away_and_its_permit_comes_back(
    engine: Engine,
) -> None:
    permits = Permits()
    connections = HandlerConnections(engine, permits)
    connection = connections.connect(None, ME)
    pid = connection.execute(text("SELECT pg_backend_pid()")).scalar()
    with engine.connect() as other:
        other.execute(text("SELECT pg_terminate_backend(:pid, 5000)"), {"pid": pid})

    connections.disconnect(connection)

    assert permits.taken == 0
    assert isinstance(engine.pool, QueuePool)
    assert engine.pool.checkedout() == 0
    following = connections.connect(None, ME)
    assert following.execute(text("SELECT 1")).scalar() == 1
    connections.disconnect(following)


@pytest.mark.parametrize(
    ("of_engine", "of_handler", "expected"),
    [
        (None, None, "read committed"),
        ("REPEATABLE READ", None, "repeatable read"),
        ("REPEATABLE READ", "SERIALIZABLE", "serializable"),
        ("AUTOCOMMIT", None, "read committed"),
        ("AUTOCOMMIT", "SERIALIZABLE", "serializable"),
    ],
)
@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_the_engines_isolation_level_stands_but_for_autocommit(
    url_for: Any, driver: str, of_engine: str | None, of_handler: str | None, expected: str
) -> None:
    """Under AUTOCOMMIT a handler's writes and its settlement could not be one step."""
    options = {"isolation_level": of_engine} if of_engine else {}
    engine = create_engine(url_for(driver), **options)
    connections = HandlerConnections(engine, None)

    connection = connections.connect(of_handler, ME)
    with connection.begin() as transaction:
        level = connection.execute(text("SHOW transaction_isolation")).scalar()
        connection.execute(text("CREATE TABLE t (n int)"))
        transaction.rollback()
    with connection.begin():
        made = connection.execute(text("SELECT to_regclass('t')")).scalar()
    connections.disconnect(connection)

    assert (level, made) == (expected, None)
    with engine.connect() as own:
        driver_connection: Any = own.connection.dbapi_connection
        # The user gets it back as it was.
        assert driver_connection.autocommit == (of_engine == "AUTOCOMMIT")
        if of_engine != "AUTOCOMMIT":
            assert own.get_isolation_level() == (of_engine or "READ COMMITTED")
    engine.dispose()


def test_a_handlers_session_is_named_after_its_worker(engine: Engine) -> None:
    """Whoever rescues the worker's jobs ends its sessions, which are found by this name."""
    connections = HandlerConnections(engine, None)
    names = []

    for worker_id in (ME, ME, ME + 1):
        connection = connections.connect(None, worker_id)
        names.append(connection.execute(text("SHOW application_name")).scalar())
        connections.disconnect(connection)

    assert names == [f"bgjob/{ME}", f"bgjob/{ME}", f"bgjob/{ME + 1}"]
