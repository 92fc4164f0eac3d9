"""The server that the tests run against, and databases on it."""

from __future__ import annotations

import contextlib
import gc
import os
import re
import secrets
import warnings
from typing import TYPE_CHECKING

import psycopg
from psycopg import sql
from sqlalchemy import URL, make_url

from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres
from support.choice import (
    Choice,
    ContainerServer,
    GivenServer,
    LocalServer,
    choose_server,
    programs_of,
)

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from support.pooler import PgBouncer

DISPOSABLE: Mapping[str, str] = {
    # Safe as long as the machine itself does not crash: then the tests start again anyway.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "max_prepared_transactions": "10",
    # Nothing in the tests may depend on the server's zone being UTC.
    "timezone": "Asia/Kathmandu",
}


ALTERED = """
    SELECT
        EXISTS (
            SELECT FROM pg_namespace
            WHERE nspname !~ '^pg_' AND nspname NOT IN ('public', 'information_schema')
        )
        OR (SELECT count(DISTINCT (encoding, datcollate, datctype)) > 1 FROM pg_database
            WHERE datname IN (current_database(), 'template0'))
        OR EXISTS (SELECT FROM pg_prepared_xacts WHERE database = current_database())
        OR EXISTS (SELECT FROM pg_replication_slots WHERE database = current_database())
        OR EXISTS (SELECT FROM pg_extension WHERE extname <> 'plpgsql')
        OR EXISTS (SELECT FROM pg_database JOIN pg_db_role_setting ON oid = setdatabase
                   WHERE datname = current_database())
        OR EXISTS (SELECT FROM pg_database WHERE datname = current_database()
                   AND (datacl IS NOT NULL OR datconnlimit <> -1))
        OR EXISTS (SELECT FROM pg_proc WHERE pronamespace = 'pg_catalog'::regnamespace
                   AND oid >= 16384)
        OR EXISTS (SELECT FROM pg_cast WHERE oid >= 16384)
        OR EXISTS (SELECT FROM pg_default_acl)
        OR EXISTS (SELECT FROM pg_event_trigger)
        OR EXISTS (SELECT FROM pg_foreign_data_wrapper)
        OR EXISTS (SELECT FROM pg_largeobject_metadata)
        OR EXISTS (SELECT FROM pg_publication)
"""
"""Whether a database has more to it than what is in its schema ``public``."""
END_OTHERS = """
    SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()
"""
EMPTY = """
    DROP SCHEMA public CASCADE;
    CREATE SCHEMA public AUTHORIZATION pg_database_owner;
    GRANT USAGE ON SCHEMA public TO PUBLIC;
    COMMENT ON SCHEMA public IS 'standard public schema'
"""


DELETE = """
    SET session_replication_role = replica;
    DO $$
    DECLARE one record;
    BEGIN
        FOR one IN SELECT schemaname, tablename FROM pg_tables
            WHERE schemaname !~ '^(pg_|information_schema)'
        LOOP
            EXECUTE format('DELETE FROM %I.%I', one.schemaname, one.tablename);
        END LOOP;
    END $$
"""
"""All rows of all tables, whatever refers to them."""


def with_driver(url: str | URL, driver: str) -> str:
    """Return the URL for ``psycopg``, ``asyncpg`` or ``psycopg2``."""
    changed = make_url(url).set(drivername=f"postgresql+{driver}")
    return changed.render_as_string(hide_password=False)


class TestServer:
    """A server whose databases the tests make and drop."""

    __test__ = False  # not a test class, whatever its name says

    def __init__(self, url: str, choice: Choice) -> None:
        self.url = with_driver(url, "psycopg")
        self.choice = choice
        self.pooler: PgBouncer | None = None
        """What the databases that are made from now on are reached through."""
        self._token = secrets.token_hex(4)
        self._spare: list[str] = []
        self._spared: set[str] = set()

    def create_database(
        self, name: str = "test", *, template: str = "template0", again: bool = False
    ) -> str:
        """Give an empty database named after *name*: its URL, with psycopg as the driver.

        It may have been another test's before: to make a new one takes five times as long. With
        *again* it has the URL of the one before it, of the same name, which must be dropped.
        """
        slug = re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")[:40]
        database = f"bgjob_{slug}_{self._token if again else secrets.token_hex(4)}"
        if template == "template0" and self.pooler is None:
            self._spared.add(database)
        if template == "template0" and self._spare:
            self._rename(self._spare.pop(), database)
        else:
            self._execute(
                sql.SQL("CREATE DATABASE {} TEMPLATE {}").format(
                    sql.Identifier(database), sql.Identifier(template)
                )
            )
        url = make_url(self.url).set(database=database).render_as_string(hide_password=False)
        return url if self.pooler is None else self.pooler.url(url)

    def drop_database(self, url: str) -> None:
        """End a database with all connections to it; one that is gone is fine."""
        database = make_url(url).database
        assert database is not None
        if not self._emptied(database):
            self._drop(database)

    def delete_rows(self, url: str) -> None:
        """End all connections to a database, and delete all its rows."""
        with self._connect(make_url(url).database) as connection:
            connection.execute(END_OTHERS)
            connection.execute(DELETE)

    def drop_spares(self) -> None:
        """Drop those that are kept for other tests."""
        while self._spare:
            self._drop(self._spare.pop())

    def _emptied(self, database: str) -> bool:
        """Whether it could be emptied for another test, under a name that nobody knows."""
        if database not in self._spared:
            return False
        self._spared.remove(database)
        spare = f"bgjob_spare_{secrets.token_hex(4)}"
        try:
            with self._connect(database) as connection:
                connection.execute(END_OTHERS)
                if connection.execute(ALTERED).fetchone() != (False,):
                    return False
                connection.execute(EMPTY)
            self._rename(database, spare)
        except psycopg.Error:
            return False
        self._spare.append(spare)
        return True

    def _rename(self, old: str, new: str) -> None:
        names = sql.Identifier(old), sql.Identifier(new)
        self._execute(sql.SQL("ALTER DATABASE {} RENAME TO {}").format(*names))

    def _drop(self, database: str) -> None:
        self._execute(
            sql.SQL("DROP DATABASE IF EXISTS {} WITH (FORCE)").format(sql.Identifier(database))
        )

    def version(self) -> str:
        """Return the server's version in its own words."""
        with self._connect() as connection:
            row = connection.execute("SHOW server_version").fetchone()
            assert row is not None
            return str(row[0])

    def _execute(self, statement: sql.Composed) -> None:
        with self._connect() as connection:
            connection.execute(statement)

    def _connect(self, database: str | None = None) -> psycopg.Connection:
        plain = make_url(self.url).set(drivername="postgresql")
        if database is not None:
            plain = plain.set(database=database)
        return psycopg.connect(plain.render_as_string(hide_password=False), autocommit=True)


def docker_answers() -> bool:
    """Whether a Docker daemon is there and answers within two seconds."""
    import docker
    from docker.errors import DockerException

    with warnings.catch_warnings():
        # The client leaves its socket open when nobody answers.
        warnings.simplefilter("ignore", ResourceWarning)
        try:
            client = docker.from_env(timeout=2)
            try:
                return bool(client.ping())
            finally:
                client.close()
        except (DockerException, OSError):
            return False
        finally:
            gc.collect()


def describe(choice: Choice) -> str:
    """Say in a few words which server it is, without its password."""
    match choice:
        case GivenServer(url):
            return f"the server at {make_url(url).render_as_string(hide_password=True)}"
        case ContainerServer(image):
            return f"a container of {image}"
        case LocalServer(None):
            return "the embedded server"
        case LocalServer(bin_dir):
            return f"a server of {bin_dir}"


@contextlib.contextmanager
def running_server(choice: Choice) -> Iterator[TestServer]:
    """Start what was chosen, and stop it."""
    match choice:
        case GivenServer(url):
            given = TestServer(url, choice)
            try:
                yield given
            finally:
                given.drop_spares()
        case ContainerServer(image):
            from testcontainers.postgres import PostgresContainer

            command = " ".join(f"-c {name}={value}" for name, value in DISPOSABLE.items())
            with PostgresContainer(image).with_command(f"postgres {command}") as container:
                yield TestServer(container.get_connection_url(), choice)
        case LocalServer(bin_dir):
            with EmbeddedPostgres.start(settings=DISPOSABLE, bin_dir=bin_dir) as server:
                yield TestServer(server.url, choice)


@contextlib.contextmanager
def private_server(**settings: str) -> Iterator[EmbeddedPostgres]:
    """Run a server that one test has for itself, to stop, kill and restart.

    It is of the version that ``BGJOB_TEST_PG`` names, else the embedded one.
    """
    version = os.environ.get("BGJOB_TEST_PG")
    bin_dir = programs_of(version) if version else None
    with EmbeddedPostgres.start(settings={**DISPOSABLE, **settings}, bin_dir=bin_dir) as server:
        yield server


def chosen_server() -> Choice:
    """Choose for this process, its environment and its machine."""
    return choose_server(os.environ, docker_answers=docker_answers)
