"""Fixtures for every test: a real PostgreSQL, and a database of its own for each test."""

from __future__ import annotations

import functools
import gc
import os
import signal
from typing import TYPE_CHECKING, Any, Protocol

import pytest
from hypothesis import HealthCheck, settings
from sqlalchemy import Connection, Engine, create_engine

from support import pooler
from support.catalog import Catalog, catalog
from support.choice import Choice
from support.commands import Command
from support.databases import (
    TestServer,
    chosen_server,
    describe,
    private_server,
    running_server,
    with_driver,
)
from support.processes import THREADS, Fleet, Variant
from support.running import FLAVORS, Workbench
from support.tables import Names, create_all, new_engine
from support.tuning import Tune

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres


class UrlFor(Protocol):
    """The test's database through one driver."""

    def __call__(self, driver: str) -> str: ...


class ExpectedCatalog(Protocol):
    """What ``create_all()`` makes of the models under these names."""

    def __call__(self, names: Names) -> Catalog: ...


CHOICE = pytest.StashKey[Choice]()

# Both look at the clock, and say more of the machine than of the code.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")


def pytest_configure(config: pytest.Config) -> None:
    """Let Ctrl-C reach the commands under test, even if the run was started where it is ignored."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get(pooler.VARIABLE):
        pooler.connect_as_documented()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out, through a pooler, what is about sessions."""
    if os.environ.get(pooler.VARIABLE):
        left_out = [item for item in items if pooler.needs_sessions(item.nodeid)]
        items[:] = [item for item in items if not pooler.needs_sessions(item.nodeid)]
        config.hook.pytest_deselected(items=left_out)


def pytest_collection_finish(session: pytest.Session) -> None:
    """What is there before the first test stays: no search for garbage goes through it again."""
    _let_bounds_come_first(session)
    gc.freeze()


def _let_bounds_come_first(session: pytest.Session) -> None:
    """Where faulthandler ends the process of a test that takes long, its bound is less."""
    end = float(session.config.getini("faulthandler_timeout") or "inf")
    for item in session.items:
        bound = item.get_closest_marker("timeout")
        if bound is not None and bound.args[0] > end - 20:
            item.add_marker(pytest.mark.timeout(end - 20), append=False)


def pytest_report_header(config: pytest.Config) -> str:
    """Say at the top which server it is, and fail there if it cannot be had."""
    try:
        config.stash[CHOICE] = chosen_server()
    except ValueError as error:
        raise pytest.UsageError(str(error)) from None
    return f"PostgreSQL: {describe(config.stash[CHOICE])}"


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """Three for each processor, as tests often wait; none at all for tests asked for by name."""
    if any("::" in name for name in config.args):
        return 0
    return 3 * (os.cpu_count() or 1)


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> Iterator[TestServer]:
    """The server of this run."""
    choice = request.config.stash.get(CHOICE, None) or chosen_server()
    with running_server(choice) as server:
        if not os.environ.get(pooler.VARIABLE):
            yield server
        else:
            with pooler.PgBouncer(server.url) as server.pooler:
                yield server


@pytest.fixture
def database_url(server: TestServer, request: pytest.FixtureRequest) -> Iterator[str]:
    """A new, empty database for this test alone, with psycopg as the driver.

    The tests of a module with the mark ``keeps_tables`` have one after the other the same, where
    they all make the same tables, and find them empty.
    """
    if request.node.get_closest_marker("keeps_tables"):
        kept: Engine = request.getfixturevalue("kept_engine")
        url = kept.url.render_as_string(hide_password=False)
        yield url
        server.delete_rows(url)
        return
    url = server.create_database(request.node.name)
    try:
        yield url
    finally:
        server.drop_database(url)


@pytest.fixture(scope="module")
def kept_engine(server: TestServer) -> Iterator[Engine]:
    """An engine for the database of a module with the mark ``keeps_tables``."""
    with new_engine(server) as engine:
        yield engine


@pytest.fixture
def tune(monkeypatch: pytest.MonkeyPatch) -> Tune:
    """Give constants of the engine other values for this test."""
    return Tune(monkeypatch)


@pytest.fixture
def url_for(database_url: str) -> UrlFor:
    """The URL of this test's database for a driver: psycopg, asyncpg or psycopg2."""
    return lambda driver: with_driver(database_url, driver)


@pytest.fixture
def engine(database_url: str, request: pytest.FixtureRequest) -> Iterator[Engine]:
    """An engine on psycopg for this test's database; disposed of before the database goes.

    Where a module keeps its tables, it knows what was compiled before; a test's events are its own.
    """
    if request.node.get_closest_marker("keeps_tables"):
        kept: Engine = request.getfixturevalue("kept_engine")
        engine: Engine = kept.execution_options()
    else:
        engine = create_engine(database_url)
    try:
        yield engine
    finally:
        engine.dispose()


@pytest.fixture(scope="module")
def module_engine(server: TestServer) -> Iterator[Engine]:
    """An engine for a database that the tests of a module share."""
    with new_engine(server) as engine:
        yield engine


@pytest.fixture
def connection(module_engine: Engine) -> Iterator[Connection]:
    """A transaction in the module's database that is rolled back: DDL too is transactional."""
    with module_engine.connect() as connection, connection.begin() as transaction:
        yield connection
        transaction.rollback()


@pytest.fixture(scope="session")
def expected(server: TestServer) -> Iterator[ExpectedCatalog]:
    """What ``create_all()`` makes of the models, which are the truth."""
    # In a database of its own: a name that an open transaction creates would be waited for.
    with new_engine(server) as engine:

        @functools.cache
        def expect(names: Names) -> Catalog:
            with engine.connect() as connection:
                create_all(connection, names.without_convention())
                return catalog(connection, names.schema, names.prefix)

        yield expect


@pytest.fixture(scope="module")
def workbench_url(server: TestServer) -> Iterator[str]:
    """The database of a module's workbenches, emptied before each test.

    They all have the same URL, so that their engines need not compile all statements anew.
    """
    url = server.create_database("bench", again=True)
    yield url
    server.drop_database(url)


@pytest.fixture(params=FLAVORS, ids=str)
def bench(request: pytest.FixtureRequest, workbench_url: str) -> Iterator[Workbench]:
    """An application and a worker, of each flavor."""
    bench = Workbench(request.param, workbench_url)
    bench.reset()
    yield bench
    bench.close()


@pytest.fixture
def own_server() -> Iterator[EmbeddedPostgres]:
    """A server that this test has for itself, to stop, kill and restart."""
    with private_server() as server:
        yield server


@pytest.fixture
def variant() -> Variant:
    """Which worker a fleet runs; parametrize a test by it for others."""
    return THREADS


@pytest.fixture
def fleet(engine: Engine, tmp_path: Path, variant: Variant) -> Iterator[Fleet]:
    """Worker processes on this test's database, with the tables made; killed at the end."""
    with Fleet(engine, tmp_path, variant) as fleet:
        fleet.create_tables()
        yield fleet


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Command]]:
    """Start commands, which end with the test."""
    started: list[Command] = []

    def start(*arguments: str, **options: Any) -> Command:
        folder = tmp_path / f"command{len(started)}"
        folder.mkdir()
        started.append(Command(folder, *arguments, **options))
        return started[-1]

    yield start
    for command in started:
        command.__exit__(None, None, None)
