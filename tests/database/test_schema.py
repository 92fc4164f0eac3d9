"""The frozen functions, migration without Alembic, and what a worker asks at its start."""

from __future__ import annotations

import asyncio
import pickle
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import TYPE_CHECKING, Any

import pytest
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from sqlalchemy import (
    Column,
    Connection,
    Engine,
    ForeignKey,
    Index,
    MetaData,
    Table,
    Text,
    TextClause,
    create_engine,
    event,
    text,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import models, schema
from sqlalchemy_bgjob._db.errors import sqlstate
from sqlalchemy_bgjob.exceptions import SchemaOutOfDate, SchemaUnknown
from sqlalchemy_bgjob.schema._elements import table_of
from sqlalchemy_bgjob.schema._foreign_keys import foreign_key_problems
from sqlalchemy_bgjob.schema._names import qualified
from sqlalchemy_bgjob.schema._table_kinds import KINDS
from sqlalchemy_bgjob.schema._versions import STEPS, Step
from support import wait_until, wait_until_async
from support.catalog import catalog, leftovers
from support.tables import NAMES, Names, create_all

if TYPE_CHECKING:
    from collections.abc import Iterator

    from conftest import ExpectedCatalog, UrlFor
    from support.tuning import Tune

every_name = pytest.mark.parametrize("names", NAMES.values(), ids=NAMES)


def by_upgrade(connection: Connection, names: Names) -> None:
    op = Operations(MigrationContext.configure(connection))
    schema.upgrade(op, from_version=0, to_version=2, **names.where)


def by_upgrade_on_connection(connection: Connection, names: Names) -> None:
    schema.upgrade(connection, from_version=0, to_version=2, **names.where)


def by_migrate(connection: Connection, names: Names) -> None:
    assert schema.migrate(connection, **names.where) == 0


def step_by_step(connection: Connection, names: Names) -> None:
    """As the two revisions do."""
    by_version_1(connection, names)
    schema.upgrade(connection, from_version=1, to_version=2, **names.where)


def by_version_1(connection: Connection, names: Names) -> None:
    schema.upgrade(connection, from_version=0, to_version=1, **names.where)


def run_script(connection: Connection, script: str) -> None:
    """Run it as psql would, with its own BEGIN and COMMIT."""
    driver: Any = connection.connection.driver_connection
    driver.execute(script)


WAYS = [
    create_all,
    by_upgrade,
    by_upgrade_on_connection,
    by_migrate,
    step_by_step,
]


@pytest.mark.core
@every_name
@pytest.mark.parametrize("way", WAYS)
def test_every_way_makes_the_same_tables(
    connection: Connection, way: Any, names: Names, expected: ExpectedCatalog
) -> None:
    way(connection, names)

    assert catalog(connection, names.schema, names.prefix) == expected(names)


@pytest.mark.core
@pytest.mark.parametrize("names", [NAMES["plain"], NAMES["weird"]], ids=["plain", "weird"])
@pytest.mark.parametrize("version", [0, 1, 2])
def test_an_online_migration_makes_the_same_tables(
    engine: Engine, names: Names, version: int, expected: ExpectedCatalog
) -> None:
    with engine.connect() as connection:
        if version:
            schema.upgrade(connection, from_version=0, to_version=version, **names.where)
            connection.commit()

        assert schema.migrate_online(connection, **names.where) == version

        assert catalog(connection, names.schema, names.prefix) == expected(names)


@pytest.mark.parametrize("names", [NAMES["plain"], NAMES["weird"]], ids=["plain", "weird"])
def test_the_sql_text_makes_the_same_tables_and_drops_them(
    engine: Engine, names: Names, expected: ExpectedCatalog
) -> None:
    with engine.connect() as connection:
        before = leftovers(connection)

        run_script(connection, schema.migration_sql(**names.where))
        assert catalog(connection, names.schema, names.prefix) == expected(names)
        run_script(connection, schema.migration_sql(from_version=2, to_version=0, **names.where))

        assert leftovers(connection) == before
        assert names.schema is None or leftovers(connection, names.schema) == []


def test_the_models_are_what_was_designed(expected: ExpectedCatalog) -> None:
    """The other tests compare with this; here it is compared with words."""
    tables = expected(Names())

    assert list(tables) == sorted(f"bgjob_{kind}" for kind in KINDS)
    job = tables["bgjob_job"]
    assert job["comment"] == "sqlalchemy-bgjob schema 2 (workers since 1)"
    assert job["storage"] == [
        "autovacuum_vacuum_scale_factor=0.02",
        "autovacuum_vacuum_threshold=1000",
        "fillfactor=50",
    ]
    assert [index[0].partition(" USING ")[2] for index in job["indexes"]] == [
        "btree (batch_id) WHERE (batch_id IS NOT NULL)",
        "btree (queue, priority, next_run_at, id) WHERE (priority >= '-32768'::integer)",
        "btree (id)",
        "btree (unique_key) WHERE (unique_key IS NOT NULL)",
        "btree (queue, group_key, priority, turn) WHERE waits",
    ]
    assert [constraint[0] for constraint in job["constraints"]] == [
        "bgjob_job_attempt_check",
        "bgjob_job_crashes_check",
        "bgjob_job_id_check",
        "bgjob_job_pkey",
        "bgjob_job_queue_check",
        "bgjob_job_times_check",
        "bgjob_job_type_check",
    ]


@every_name
def test_downgrade_leaves_nothing(connection: Connection, names: Names) -> None:
    before = leftovers(connection)
    schema.upgrade(connection, **names.where)
    assert leftovers(connection, names.schema)

    schema.downgrade(connection, from_version=2, to_version=0, **names.where)

    assert leftovers(connection) == before
    if names.schema:
        assert leftovers(connection, names.schema) == []


@pytest.mark.parametrize("version", [1, 2])
def test_a_released_version_never_changes(version: int) -> None:
    """Whoever changes this file's counterpart changes what users' old revisions build."""
    golden = Path(__file__).parents[1] / "data" / f"schema_{version}.sql"

    script = schema.migration_sql(from_version=version - 1, to_version=version)
    assert script == golden.read_text()


def test_sql_needs_no_names_of_psycopg() -> None:
    """The script is for psql: a percent sign stands once."""
    script = schema.migration_sql(**NAMES["weird"].where)

    assert '"We""ird 100% Schema"' in script
    assert "%%" not in script


@pytest.mark.parametrize(
    ("start", "end"), [(1, 0), (0, 3), (-1, 1), (3, 4)], ids=["down", "new", "negative", "both"]
)
def test_upgrade_refuses_versions_it_does_not_know(start: int, end: int) -> None:
    with pytest.raises(ValueError, match=f"from version {start} to {end}: .* 0 to 2"):
        schema.upgrade(None, from_version=start, to_version=end)  # type: ignore[arg-type]


def test_downgrade_refuses_to_go_up() -> None:
    with pytest.raises(ValueError, match="cannot downgrade from version 0 to 1"):
        schema.downgrade(None, from_version=0, to_version=1)  # type: ignore[arg-type]


def test_upgrade_needs_no_right_to_create_a_schema_that_exists(
    connection: Connection,
) -> None:
    connection.execute(text("CREATE ROLE plain_user"))  # gone with the rollback
    connection.execute(text("CREATE SCHEMA app AUTHORIZATION plain_user"))
    connection.execute(text("SET LOCAL ROLE plain_user"))

    schema.upgrade(connection, schema="app")

    assert schema.db_version(connection, schema="app") == 2


# --- migrate() -----------------------------------------------------------------------------------


@pytest.mark.core
def test_migrate_twice_changes_nothing(engine: Engine) -> None:
    with engine.begin() as connection:
        assert schema.migrate(connection) == 0
    with engine.begin() as connection:
        before = catalog(connection)
        assert schema.migrate(connection) == 2
        assert catalog(connection) == before


def test_migrate_commits_nothing(engine: Engine) -> None:
    with engine.connect() as connection:
        schema.migrate(connection)
        connection.rollback()

        assert schema.db_version(connection) == 0


def test_of_eight_migrations_at_once_one_does_it(engine: Engine, expected: ExpectedCatalog) -> None:
    """In eight sessions, as of eight processes: the lock is the server's."""
    all_connected = Barrier(8)
    pooled = create_engine(engine.url, pool_size=8)

    def migrate(_: int) -> int:
        with pooled.connect() as connection:
            all_connected.wait(60)
            found = schema.migrate(connection, schema="app")
            connection.commit()
        return found

    with ThreadPoolExecutor(8) as pool:
        found = sorted(pool.map(migrate, range(8)))
    pooled.dispose()

    assert found == [0, *[2] * 7]
    with engine.connect() as connection:
        assert catalog(connection, "app") == expected(NAMES["schema"])


KILLED = """
import os, signal, sys
from sqlalchemy import create_engine, event
from sqlalchemy_bgjob import schema

engine = create_engine(sys.argv[1], pool_size=1, max_overflow=0)
sent = 0

@event.listens_for(engine, "after_cursor_execute")
def count(*_):
    global sent
    sent += 1
    if sent == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

with engine.begin() as connection:
    schema.migrate(connection)
"""


def advisory_locks(connection: Connection) -> int:
    query = (
        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )
    return connection.execute(text(query)).scalar_one()


def test_a_killed_migration_changes_nothing(
    engine: Engine, database_url: str, expected: ExpectedCatalog
) -> None:
    """It is one transaction, and its lock ends with it; the next one does all of it."""
    sent: list[str] = []
    with engine.connect() as connection:
        event.listen(connection, "before_cursor_execute", lambda *args: sent.append(args[2]))
        schema.migrate(connection)
        connection.rollback()
    assert len(sent) >= 6

    for number in (2, len(sent) // 2, len(sent)):
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, database_url, str(number)], check=False, timeout=60
        )
        assert killed.returncode == -signal.SIGKILL
        with engine.connect() as connection:
            wait_until(lambda c=connection: advisory_locks(c) == 0, what="the lock's end")
            assert leftovers(connection) == []

    alone = create_engine(database_url, pool_size=1, max_overflow=0)
    with alone.begin() as connection:
        assert schema.migrate(connection) == 0
        assert catalog(connection) == expected(NAMES["plain"])
    alone.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_a_cancelled_migration_changes_nothing(
    engine: Engine, url_for: UrlFor, driver: str, expected: ExpectedCatalog
) -> None:
    """While it waits for another session, which makes a table of the same name."""
    waits = text(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )

    def waiting() -> bool:
        with engine.connect() as connection:
            return connection.scalar(waits) == 1

    async def main() -> None:
        one = create_async_engine(url_for(driver), pool_size=1, max_overflow=0)

        async def migrate() -> int:
            async with one.begin() as connection:
                return await connection.run_sync(schema.migrate)

        with engine.connect() as other:
            other.execute(text("CREATE TABLE bgjob_worker (id int)"))
            running = asyncio.create_task(migrate())
            await wait_until_async(waiting, what="the migration to wait")
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            await wait_until_async(lambda: advisory_locks(other) == 0, what="the lock's end")
            other.rollback()
            assert leftovers(other) == []
        assert await migrate() == 0
        await one.dispose()

    asyncio.run(main())
    with engine.connect() as connection:
        assert catalog(connection) == expected(NAMES["plain"])


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2"])
def test_migrate_on_every_driver(url_for: UrlFor, driver: str, expected: ExpectedCatalog) -> None:
    names = NAMES["weird"]
    engine = create_engine(url_for(driver))
    with engine.begin() as connection:
        schema.migrate(connection, **names.where)
        schema.check(connection, **names.where)
        assert schema.storage_drift(connection, **names.where) == []
        assert foreign_key_problems(connection, **names.where) == []
        assert catalog(connection, names.schema, names.prefix) == expected(names)
    engine.dispose()


async def on_async_engine(url: str, names: Names) -> Any:
    engine = create_async_engine(url)
    async with engine.begin() as connection:
        await connection.run_sync(lambda c: schema.migrate(c, **names.where))
        await connection.run_sync(lambda c: schema.check(c, **names.where))
        assert await connection.run_sync(lambda c: schema.storage_drift(c, **names.where)) == []
        found = await connection.run_sync(lambda c: foreign_key_problems(c, **names.where))
        assert found == []
        made = await connection.run_sync(lambda c: catalog(c, names.schema, names.prefix))
    await engine.dispose()
    return made


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_migrate_over_an_async_engine(
    url_for: UrlFor, driver: str, expected: ExpectedCatalog
) -> None:
    names = NAMES["weird"]

    made = asyncio.run(on_async_engine(url_for(driver), names))

    assert made == expected(names)


@pytest.mark.parametrize("isolation", ["AUTOCOMMIT", "REPEATABLE READ", "SERIALIZABLE"])
def test_migrate_refuses_a_connection_where_locks_have_no_effect(
    engine: Engine, isolation: Any
) -> None:
    with (
        engine.connect().execution_options(isolation_level=isolation) as connection,
        pytest.raises(ValueError, match=f"READ COMMITTED, and this connection is in {isolation}"),
    ):
        schema.migrate(connection)


def test_migrate_refuses_another_database() -> None:
    engine = create_engine("sqlite://")
    with engine.begin() as connection, pytest.raises(ValueError, match=r"PostgreSQL.*'sqlite'"):
        schema.migrate(connection)
    engine.dispose()


# --- The version ---------------------------------------------------------------------------------


def comment(connection: Connection, value: str | None) -> None:
    literal = "NULL" if value is None else f"'{value}'"
    connection.execute(text(f"COMMENT ON TABLE bgjob_job IS {literal}"))


@pytest.mark.core
def test_no_tables_are_version_0_and_refused_with_the_command(connection: Connection) -> None:
    assert schema.db_version(connection) == 0
    assert schema.db_version(connection, schema="no such schema") == 0

    with pytest.raises(SchemaOutOfDate) as caught:
        schema.check(connection, schema="my app", table_prefix="x_")

    assert (caught.value.found, caught.value.needed) == (0, 2)
    told = str(pickle.loads(pickle.dumps(caught.value)))
    assert "table 'x_job' in schema 'my app' does not exist" in told
    assert "`sqlalchemy-bgjob migrate --schema 'my app' --table-prefix x_`" in told
    assert "alembic upgrade head" in told


def test_the_latest_version_is_accepted(connection: Connection) -> None:
    schema.migrate(connection)
    assert schema.db_version(connection) == 2
    schema.check(connection)


def test_an_older_version_is_refused_and_migrated(connection: Connection, tune: Tune) -> None:
    schema.migrate(connection)
    version_3(tune)

    with pytest.raises(
        SchemaOutOfDate, match=r"is of version 2, .* need version 3; run `sqlalchemy-bgjob migr"
    ):
        schema.check(connection)
    assert schema.migrate(connection) == 2

    schema.check(connection)
    assert schema.db_version(connection) == 3


def test_a_newer_compatible_version_is_accepted_unchanged(
    connection: Connection,
) -> None:
    schema.migrate(connection)
    comment(connection, "sqlalchemy-bgjob schema 7 (workers since 1)")
    before = catalog(connection)

    schema.check(connection)
    assert schema.migrate(connection) == 7

    assert catalog(connection) == before


def test_a_newer_incompatible_version_is_refused(connection: Connection) -> None:
    schema.migrate(connection)
    comment(connection, "sqlalchemy-bgjob schema 7 (workers since 3)")
    before = catalog(connection)

    for refuse in (schema.check, schema.migrate):
        with pytest.raises(SchemaOutOfDate, match=r"of version 7.*install a newer release"):
            refuse(connection)

    assert catalog(connection) == before


@pytest.mark.parametrize("value", [None, "", "jobs of the shop", "sqlalchemy-bgjob schema x"])
def test_a_table_that_does_not_say_its_version_is_refused(
    connection: Connection, value: str | None
) -> None:
    schema.migrate(connection)
    comment(connection, value)

    for refuse in (schema.db_version, schema.check, schema.migrate):
        with pytest.raises(SchemaUnknown) as caught:
            refuse(connection)

    told = str(pickle.loads(pickle.dumps(caught.value)))
    assert isinstance(caught.value, SchemaOutOfDate)
    assert "another table_prefix= or schema=" in told
    remedy = told.partition("for example: ")[2]
    assert remedy.startswith("COMMENT ON TABLE")
    connection.execute(text(remedy))
    schema.check(connection)


def plain_text(sql: str) -> Any:
    """Text whose colons are no parameters."""
    return text(sql.replace(":", r"\:"))


def version_3(tune: Tune) -> None:
    """Pretend that there is a third version, with one more column and index."""

    def tables(where: str | None, prefix: str) -> MetaData:
        metadata = STEPS[2].tables(where, prefix)
        job = table_of(metadata, "job", where, prefix)
        job.append_column(Column("tag", Text, server_default=text("''")))
        Index(f"{prefix}job_tag_idx", job.c.tag)
        return metadata

    def begin(op: Any, where: str | None, prefix: str) -> None:
        table = schema.qualified(where, f"{prefix}job")
        op.execute(plain_text(f"ALTER TABLE {table} ADD COLUMN tag TEXT DEFAULT ''"))

    def indexes(where: str | None, prefix: str) -> Iterator[Index]:
        job = table_of(tables(where, prefix), "job", where, prefix)
        yield next(one for one in job.indexes if str(one.name).endswith("tag_idx"))

    def downgrade(op: Any, where: str | None, prefix: str) -> None:
        table = schema.qualified(where, f"{prefix}job")
        op.execute(plain_text(f"ALTER TABLE {table} DROP COLUMN tag"))

    step = Step(tables, STEPS[2].storage, begin, indexes, lambda *_: None, downgrade)
    since = {**schema.WORKERS_SINCE, 3: 1}
    tune(schema, STEPS={**STEPS, 3: step}, WORKERS_SINCE=since, LATEST=3)


@pytest.mark.parametrize("version", [1, 2])
def test_steps_between_versions_carry_the_comment(
    connection: Connection, tune: Tune, version: int
) -> None:
    version_3(tune)
    schema.upgrade(connection, from_version=0, to_version=version)
    first = catalog(connection)
    assert schema.db_version(connection) == version

    schema.upgrade(connection, from_version=version, to_version=version + 1)
    assert schema.db_version(connection) == version + 1
    schema.downgrade(connection, from_version=version + 1, to_version=version)

    assert catalog(connection) == first


# --- Beside workers ------------------------------------------------------------------------------


def test_the_old_claim_index_stays_while_workers_run(connection: Connection) -> None:
    """They may be of the older release, whose claims would walk the whole table without it."""
    by_version_1(connection, Names())
    connection.execute(
        text(
            "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout)"
            " VALUES (7, 'web', 1, '0.1.0', '{}', 30)"
        )
    )

    schema.migrate(connection)

    assert "bgjob_job_claim_idx" in index_names(connection)


def index_names(connection: Connection) -> set[str]:
    names = text("SELECT indexname FROM pg_indexes WHERE starts_with(indexname, 'bgjob')")
    return {*connection.execute(names).scalars()}


def test_an_online_migration_goes_on_where_it_stopped(
    engine: Engine, expected: ExpectedCatalog, tune: Tune
) -> None:
    """Whatever its last statement was; here each of them fails in turn."""
    with engine.connect() as connection:
        by_version_1(connection, Names())
        connection.commit()
    done, failures = 0, 0

    def fail(connection: Connection, *_: Any) -> None:
        nonlocal done, failures
        done += 1
        if done > failures:
            raise RuntimeError("stopped")

    while True:
        with engine.connect() as connection:
            event.listen(connection, "before_execute", fail)
            done = 0
            try:
                # The clean-up comes after the new version was written down.
                assert schema.migrate_online(connection) in (1, 2)
                break
            except RuntimeError:
                failures += 1
    with engine.connect() as connection:
        assert catalog(connection) == expected(Names())
    assert failures > 15


def test_an_online_migration_holds_up_nobody_for_long(engine: Engine) -> None:
    """Beside a reader that stays: enqueues go on while the migration waits for it."""
    with engine.connect() as connection:
        by_version_1(connection, Names())
        connection.commit()
    insert = text("INSERT INTO bgjob_job (id, queue, type) VALUES (:id, 'q', 't')")
    longest = 0.0

    def migrate() -> int:
        with engine.connect() as connection:
            return schema.migrate_online(connection)

    def waits_for_lock() -> bool:
        with engine.connect() as connection:
            waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
            return bool(connection.execute(text(waiting)).scalar())

    with ThreadPoolExecutor() as pool, engine.connect() as reader:
        reader.execute(text("SELECT count(*) FROM bgjob_job"))
        migrating = pool.submit(migrate)
        for number in range(2):
            wait_until(waits_for_lock, what="the migration to wait")
            with engine.begin() as connection:
                begun = time.monotonic()
                connection.execute(insert, {"id": str(number)})
                longest = max(longest, time.monotonic() - begun)
        assert not migrating.done()
        reader.rollback()
        assert migrating.result(60) == 1

    assert longest < 5  # the lock is given up after a second
    with engine.connect() as connection:
        assert schema.db_version(connection) == 2


@pytest.mark.parametrize("way", ["online", "at the latest version", "in one transaction"])
def test_a_half_built_index_is_mended(engine: Engine, way: str) -> None:
    with engine.connect() as connection:
        by_version_1(connection, Names())
        schema.upgrade(connection, from_version=1, to_version=2)
        before = 2 if way == "at the latest version" else 1
        comment(connection, f"sqlalchemy-bgjob schema {before} (workers since 1)")
        connection.execute(
            text(
                "UPDATE pg_index SET indisvalid = false"
                " WHERE indexrelid = 'bgjob_job_due_idx'::regclass".replace(":", r"\:")
            )
        )
        connection.commit()

        migrate = schema.migrate if way == "in one transaction" else schema.migrate_online
        assert migrate(connection) == before

        valid = "SELECT bool_and(indisvalid) FROM pg_index"
        assert connection.execute(text(valid)).scalar()


def reindex(engine: Engine, index: str) -> str | None:
    """The SQLSTATE with which it ended; None if it was done."""
    alone = engine.execution_options(isolation_level="AUTOCOMMIT")
    with alone.connect() as connection:
        try:
            connection.execute(as_text(f"REINDEX INDEX CONCURRENTLY {index}"))
        except DBAPIError as error:
            return sqlstate(error)
    return None


def as_text(sql: str) -> TextClause:
    return text(sql.replace(":", r"\:"))


def waiting_for(engine: Engine, statement: str) -> int | None:
    """The pid of a session in which such a statement waits for a lock."""
    waits = text(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND starts_with(query, :statement) AND wait_event_type = 'Lock'"
    )
    with engine.connect() as connection:
        return connection.execute(waits, {"statement": statement}).scalar()


@pytest.mark.parametrize("name", ["plain", "weird"])
@pytest.mark.parametrize("version", [1, 2])
def test_what_an_interrupted_reindex_left_is_dropped(
    engine: Engine, name: str, version: int
) -> None:
    """As of a migration that a deadlock with another one has ended; and it happens twice."""
    names = NAMES[name]
    invalid = text("SELECT count(*) FROM pg_index WHERE NOT indisvalid")
    with engine.connect() as connection:
        by_version_1(connection, names)
        if version == 2:
            schema.upgrade(connection, from_version=1, to_version=2, **names.where)
        connection.commit()
    for table, index in (("job", "job_pkey"), ("dead_job", "dead_job_job_id_idx")):
        full_name = qualified(names.schema, names.prefix + index)
        for _ in range(2):
            with ThreadPoolExecutor() as pool, engine.connect() as writer:
                of = qualified(names.schema, names.prefix + table)
                writer.execute(as_text(f"LOCK {of} IN ROW EXCLUSIVE MODE"))
                building = pool.submit(reindex, engine, full_name)
                pid = wait_until(lambda: waiting_for(engine, "REINDEX"), what="the REINDEX to wait")
                writer.execute(text("SELECT pg_cancel_backend(:pid)"), {"pid": pid})
                assert building.result(20) == "57014"

    with engine.connect() as connection:
        assert connection.execute(invalid).scalar() == 4
        connection.rollback()
        assert schema.migrate_online(connection, **names.where) == version
        assert connection.execute(invalid).scalar() == 0


def test_a_reindex_that_goes_on_is_waited_for(engine: Engine) -> None:
    """It has an invalid index too, until it is done."""
    with engine.connect() as connection:
        schema.migrate(connection)
        connection.commit()
        before = index_names(connection)

    def migrate() -> int:
        with engine.connect() as connection:
            return schema.migrate_online(connection)

    with ThreadPoolExecutor() as pool, engine.connect() as writer:
        writer.execute(text("LOCK bgjob_job IN ROW EXCLUSIVE MODE"))
        building = pool.submit(reindex, engine, "bgjob_job_due_idx")
        wait_until(lambda: waiting_for(engine, "REINDEX"), what="the REINDEX to wait")
        migrating = pool.submit(migrate)
        wait_until(lambda: waiting_for(engine, "DROP INDEX"), what="the migration to wait")
        writer.rollback()
        assert building.result(60) is None
        assert migrating.result(60) == 2

    with engine.connect() as connection:
        assert index_names(connection) == before


# --- What Alembic does not see -------------------------------------------------------------------


@pytest.mark.core
def test_missing_storage_parameters_come_with_their_remedy(
    connection: Connection, expected: ExpectedCatalog
) -> None:
    names = NAMES["schema"]
    schema.migrate(connection, **names.where)
    assert schema.storage_drift(connection, **names.where) == []
    connection.execute(text("ALTER TABLE app.bgjob_job RESET (autovacuum_vacuum_threshold)"))
    connection.execute(text("ALTER TABLE app.bgjob_job SET (fillfactor = 90)"))
    connection.execute(text("ALTER TABLE app.bgjob_worker RESET (fillfactor)"))

    statements = schema.storage_drift(connection, **names.where)

    assert statements == [
        "ALTER TABLE app.bgjob_job SET (fillfactor = 50, autovacuum_vacuum_threshold = 1000);",
        "ALTER TABLE app.bgjob_worker SET (fillfactor = 50);",
    ]
    for statement in statements:
        connection.execute(text(statement))
    assert schema.storage_drift(connection, **names.where) == []
    assert catalog(connection, "app") == expected(names)


def test_storage_parameters_of_an_administrator_are_no_drift(
    connection: Connection,
) -> None:
    schema.migrate(connection)
    connection.execute(text("ALTER TABLE bgjob_dead_job SET (fillfactor = 80)"))
    connection.execute(text("ALTER TABLE bgjob_job SET (autovacuum_enabled = true)"))

    assert schema.storage_drift(connection) == []


@pytest.mark.core
def test_foreign_keys_that_block_or_slow_settlements_are_named(connection: Connection) -> None:
    metadata = MetaData()
    models.build_models(metadata)

    def referring(name: str, on_delete: str | None, target: str = "bgjob_job.id") -> Table:
        return Table(
            name,
            metadata,
            Column("job_id", Text, ForeignKey(target, ondelete=on_delete, name=f"{name}_fk")),
            Column("note", Text),
        )

    good = referring("good", "SET NULL")
    Index("good_idx", good.c.job_id, good.c.note)
    partial = referring("good partial", "CASCADE")
    Index("partial_idx", partial.c.job_id, postgresql_where=partial.c.job_id.is_not(None))
    blocking = referring("blocking", None)
    Index("blocking_idx", blocking.c.job_id)
    referring("Both", "RESTRICT")
    slow = referring("slow", "CASCADE")
    Index("slow_idx", slow.c.note, slow.c.job_id)
    other = referring("slow partial", "SET NULL")
    Index("other_idx", other.c.job_id, postgresql_where=other.c.note == "x")
    referring("dead", None, "bgjob_dead_job.id")
    referring("batch", None, "bgjob_batch.id")
    metadata.create_all(connection)

    problems = foreign_key_problems(connection, schema=None, table_prefix="bgjob_")

    found = {problem.name: (problem.blocks, problem.unindexed) for problem in problems}
    assert found == {
        "Both_fk": (True, True),
        "batch_fk": (True, True),
        "blocking_fk": (True, False),
        "dead_fk": (True, True),
        "slow partial_fk": (False, True),
        "slow_fk": (False, True),
    }
    told = {problem.name: str(problem) for problem in problems}
    assert told["Both_fk"] == (
        "foreign key 'Both_fk' of \"Both\" (job_id): a job that it refers to cannot end; make it "
        "ON DELETE SET NULL or ON DELETE CASCADE; and every job's end reads the whole table; "
        "create an index on (job_id)"
    )
    assert told["blocking_fk"] == (
        "foreign key 'blocking_fk' of blocking (job_id): a job that it refers to cannot end; "
        "make it ON DELETE SET NULL or ON DELETE CASCADE"
    )
    assert told["batch_fk"] == (
        "foreign key 'batch_fk' of batch (job_id): no batch that it refers to is ever deleted; "
        "make it ON DELETE SET NULL or ON DELETE CASCADE; and every old batch's deletion reads "
        "the whole table; create an index on (job_id)"
    )
