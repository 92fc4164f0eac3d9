"""Databases and sessions that are not UTF-8: no error's text keeps its job from ending."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine, make_url, text

from sqlalchemy_bgjob import MoveToDlq, Retry
from sqlalchemy_bgjob._db.encodings import UTF8, _plain
from sqlalchemy_bgjob._inspect.doctor import examine
from support.databases import with_driver
from support.running import FLAVORS, Flavor, Workbench

if TYPE_CHECKING:
    from collections.abc import Iterator

    from support.databases import TestServer

pytestmark = pytest.mark.core

TEXT = "it costs 5 € \N{PILE OF POO}"
ESCAPED = r"it costs 5 \u20ac \U0001f4a9"
CASES = [
    *((flavor, "LATIN1") for flavor in FLAVORS),
    # psycopg gives bytes for all text where the session's encoding is SQL_ASCII.
    *((flavor, "SQL_ASCII") for flavor in FLAVORS if flavor.driver != "psycopg"),
    # asyncpg asks for UTF-8 itself.
    *((flavor, "client") for flavor in FLAVORS if flavor.driver != "asyncpg"),
]


def database(server: TestServer, encoding: str) -> str:
    """A database of an encoding; or one whose sessions are of LATIN1."""
    url = server.create_database("encoded")
    name = make_url(url).database
    engine = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        if encoding == "client":
            connection.execute(text(f"ALTER DATABASE {name} SET client_encoding = 'LATIN1'"))
        else:
            connection.execute(text(f"DROP DATABASE {name}"))
            connection.execute(
                text(
                    f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}'"
                    " LC_COLLATE 'C' LC_CTYPE 'C'"
                )
            )
    engine.dispose()
    return url


@pytest.fixture(params=CASES, ids=lambda case: f"{case[0]}-{case[1]}")
def encoded(server: TestServer, request: pytest.FixtureRequest) -> Iterator[tuple[Workbench, str]]:
    flavor, encoding = request.param
    url = database(server, encoding)
    bench = Workbench(flavor, url)
    # The test itself looks on as anybody would.
    bench.outside.dispose()
    bench.outside = create_engine(
        url, isolation_level="AUTOCOMMIT", connect_args={"client_encoding": "UTF8"}
    )
    bench.reset()
    yield bench, encoding
    bench.close()
    server.drop_database(url)


def test_an_error_of_any_text_ends_its_job(
    encoded: tuple[Workbench, str], caplog: pytest.LogCaptureFixture
) -> None:
    """Raised or returned, with a session's writes or without; and what was wrong is said."""
    bench, encoding = encoded

    def fail(ctx: Any) -> None:
        raise ValueError(TEXT)

    def give_up(session: Any, ctx: Any) -> Any:
        bench.note(session, ctx)
        return MoveToDlq(TEXT)

    def again(session: Any, ctx: Any) -> Any:
        bench.note(session, ctx)
        return Retry(3_600.0, TEXT)

    raises = bench.enqueue(bench.handler("raises", fail, uses_session=False, max_attempts=1))
    dies = bench.enqueue(bench.handler("dies", give_up))
    retried = bench.enqueue(bench.handler("retried", again))

    bench.run()

    # The worker's own session is of UTF-8 where the database is.
    stored = TEXT if encoding == "client" else ESCAPED
    assert bench.dead(raises).last_error.startswith(f"ValueError: {stored}")
    assert bench.dead(dies).last_error == ESCAPED
    assert bench.job(retried).last_error == ESCAPED
    assert bench.notes(dies) == bench.notes(retried) == ["written"]
    what = "client_encoding is LATIN1" if encoding == "client" else f"encoding is {encoding}"
    assert any(what in message for message in caplog.messages)


@pytest.mark.parametrize("flavor", [f for f in FLAVORS if f.driver != "asyncpg"], ids=str)
def test_a_session_of_less_than_utf8_runs_every_job(server: TestServer, flavor: Flavor) -> None:
    """What another worker noted or enqueued can be read, and the pool's sessions stay as they are.

    One row that the session can't be sent would be claimed by nobody for ever.
    """
    url = database(server, "client")
    bench = Workbench(flavor, url)
    bench.reset()
    seen: list[str] = []

    def look(session: Any, ctx: Any) -> None:
        bench.note(session, ctx)
        seen.append(session.connection().exec_driver_sql("SHOW client_encoding").scalar_one())

    job_id = bench.enqueue(bench.handler("t", look))
    utf8 = create_engine(url, connect_args={"client_encoding": "UTF8"})
    with utf8.begin() as connection:
        connection.execute(text("UPDATE bgjob_job SET last_error = :text"), {"text": TEXT})
    utf8.dispose()

    bench.run()

    assert bench.notes(job_id) == ["written"]
    assert seen == ["LATIN1"]
    assert bench.dead(job_id) is None
    bench.close()
    server.drop_database(url)


def test_work_one_stores_any_text(encoded: tuple[Workbench, str]) -> None:
    bench, _ = encoded
    if bench.flavor.is_async:
        return  # the same function, over the same statements
    engine = create_engine(with_driver(bench.url, bench.flavor.driver))
    job_id = bench.enqueue(bench.handler("t", lambda ctx: MoveToDlq(TEXT), uses_session=False))

    bench.jobs.work_one(engine, "default")

    assert bench.dead(job_id).last_error == ESCAPED
    engine.dispose()


@pytest.mark.parametrize("told", ["UTF8", "utf-8", "'utf-8'", "UNICODE"])
def test_utf8_is_known_by_each_name_of_it(told: str) -> None:
    assert _plain(told) == UTF8


def test_where_all_is_utf8_no_text_is_changed(bench: Workbench) -> None:
    job_id = bench.enqueue(bench.handler("t", lambda ctx: MoveToDlq(TEXT), uses_session=False))

    bench.run()

    assert bench.dead(job_id).last_error == TEXT


@pytest.mark.parametrize("encoding", ["LATIN1", "client"])
def test_doctor_tells_of_another_encoding(server: TestServer, encoding: str) -> None:
    url = database(server, encoding)
    engine = create_engine(url)
    with engine.connect() as connection:
        found = {
            finding.check: finding
            for finding in examine(connection, schema=None, table_prefix="bgjob_")
        }
    engine.dispose()
    server.drop_database(url)

    assert found["encoding"].level == "problem"
    assert "LATIN1" in found["encoding"].text
    assert "UTF8" in found["encoding"].text
