"""Tables of another program that have the queue's names: refused everywhere, and left alone."""

from __future__ import annotations

import asyncio
import pickle
from typing import TYPE_CHECKING, Any

import pytest
from alembic.autogenerate import produce_migrations
from alembic.operations import Operations
from alembic.runtime.migration import MigrationContext
from alembic.util import CommandError
from click.testing import CliRunner
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine, inspect, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.ext.asyncio import create_async_engine

from sqlalchemy_bgjob import AsyncWorker, BGJob, SchemaOutOfDate, Worker, enqueue, schema
from sqlalchemy_bgjob._inspect.doctor import examine
from sqlalchemy_bgjob.cli import cli
from sqlalchemy_bgjob.exceptions import ForeignTable
from support import wait_until
from support.catalog import catalog
from support.databases import with_driver
from support.running import FLAVORS

if TYPE_CHECKING:
    from collections.abc import Callable

    from sqlalchemy import Connection

    from support.running import Flavor

# As of the Go library's migrations: all columns of its two tables.
_GO_JOB = (
    "CREATE TABLE bgjob_job (id text PRIMARY KEY, queue text NOT NULL, type text NOT NULL,"
    " arg bytea, attempt int NOT NULL, last_error text, next_run_at bigint NOT NULL,"
    " created_at timestamp NOT NULL, updated_at timestamp NOT NULL"
)
_GO_DEAD_JOB = (
    "CREATE TABLE bgjob_dead_job (id bigserial PRIMARY KEY, job_id text NOT NULL,"
    " queue text NOT NULL, type text NOT NULL, arg bytea, attempt int NOT NULL,"
    " last_error text NOT NULL, next_run_at bigint NOT NULL, job_created_at timestamp NOT NULL,"
    " job_updated_at timestamp NOT NULL, moved_at timestamp NOT NULL"
)
_REQUEST_ID = ", request_id text NOT NULL DEFAULT ''"
# What a worker used to ask for.
_COMMENT = "COMMENT ON TABLE bgjob_job IS 'sqlalchemy-bgjob schema 2 (workers since 1)'"

GO, OTHER = "the Go library bgjob's", "another program's"
LAYOUTS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "Go": ("job", GO, (_GO_JOB + _REQUEST_ID + ")", _GO_DEAD_JOB + _REQUEST_ID + ")")),
    "Go of before": ("job", GO, (_GO_JOB + ")", _GO_DEAD_JOB + ")")),
    "Go with our comment": ("job", GO, (_GO_JOB + ")", _GO_DEAD_JOB + ")", _COMMENT)),
    "Go's dead jobs alone": ("dead_job", GO, (_GO_DEAD_JOB + ")",)),
    "another's jobs": ("job", OTHER, ("CREATE TABLE bgjob_job (id int, payload json)",)),
    "another's workers": ("worker", OTHER, ("CREATE TABLE bgjob_worker (id int, name text)",)),
}
every_layout = pytest.mark.parametrize(
    ("theirs", "layout"), [(name, name) for name in LAYOUTS], indirect=["theirs"]
)


def queue(**options: Any) -> BGJob[Any, Any]:
    jobs: BGJob[Any, Any] = BGJob(MetaData(), **options)

    @jobs.handler("noted")
    def noted(ctx: Any, arg: int) -> None: ...

    return jobs


@pytest.fixture
def theirs(engine: Engine, request: pytest.FixtureRequest) -> Engine:
    """A database with another program's tables."""
    with engine.begin() as connection:
        for statement in LAYOUTS[request.param][2]:
            connection.execute(text(statement))
    return engine


def refusal(layout: str) -> str:
    kind, owner, _ = LAYOUTS[layout]
    return f'"bgjob_{kind}" is {owner}, by its columns, and not this queue\'s'


def by_autogenerate(connection: Connection) -> None:
    plugins = ["alembic.autogenerate.*", "sqlalchemy_bgjob"]
    context = MigrationContext.configure(connection, opts={"autogenerate_plugins": plugins})
    produce_migrations(context, queue().metadata)


WAYS: dict[str, Callable[[Connection], object]] = {
    "db_version": schema.db_version,
    "check": schema.check,
    "migrate": schema.migrate,
    "upgrade": schema.upgrade,
    "upgrade by Alembic": lambda c: schema.upgrade(Operations(MigrationContext.configure(c))),
    "create_all": queue().metadata.create_all,
    "autogenerate": by_autogenerate,
}


@every_layout
@pytest.mark.parametrize("way", WAYS)
def test_every_way_to_the_tables_refuses_them(theirs: Engine, layout: str, way: str) -> None:
    """Nothing is changed; and the error says what to do. Alembic prints its own kind of error."""
    with theirs.connect() as connection:
        before = catalog(connection, None, "bgjob_")

        with pytest.raises((ForeignTable, CommandError)) as caught:
            WAYS[way](connection)

        assert catalog(connection, None, "bgjob_") == before
    told = str(caught.value)
    assert told.startswith(refusal(layout))
    assert "by another schema= or table_prefix= of BGJob()" in told
    assert "COMMENT" not in told


@every_layout
@pytest.mark.parametrize("again", [False, True])
def test_tables_without_the_queue_are_created_beside_them(
    theirs: Engine, layout: str, *, again: bool
) -> None:
    """Whoever asks for none of the queue's tables gets what is asked for."""
    metadata = queue().metadata
    mine = Table("mine", metadata, Column("id", Integer, primary_key=True))
    if again:
        metadata.create_all(theirs, tables=[mine])

    metadata.create_all(theirs, tables=[mine])

    assert inspect(theirs).has_table("mine")
    with pytest.raises(ForeignTable):
        metadata.create_all(theirs)
    with pytest.raises(ForeignTable):
        metadata.create_all(theirs, checkfirst=False)


def test_the_error_is_one_of_the_schema_and_survives_pickling() -> None:
    error = ForeignTable('"t"', None, "s", "p_")

    copied = pickle.loads(pickle.dumps(error))

    assert isinstance(copied, SchemaOutOfDate)
    assert (str(copied), copied.schema) == (str(error), "s")


@every_layout
def test_the_command_line_refuses_them(theirs: Engine, layout: str) -> None:
    url = theirs.url.render_as_string(hide_password=False)

    told = [
        CliRunner().invoke(cli, [command, "--database-url", url], standalone_mode=False)
        for command in ("migrate", "doctor")
    ]

    assert told[0].return_value == 4
    assert told[1].return_value == 1
    assert all(refusal(layout) in result.output for result in told)


@pytest.mark.core
@pytest.mark.parametrize("flavor", FLAVORS, ids=str)
@pytest.mark.parametrize("theirs", ["Go", "Go with our comment"], indirect=True)
def test_no_worker_starts_on_them(theirs: Engine, flavor: Flavor) -> None:
    url = with_driver(theirs.url.render_as_string(hide_password=False), flavor.driver)
    jobs = queue()

    async def start() -> None:
        engine = create_async_engine(url)
        functions = create_engine(theirs.url)
        try:
            with pytest.raises(ForeignTable):
                await AsyncWorker(jobs, engine, sync_engine=functions).start()
        finally:
            await engine.dispose()
            functions.dispose()

    if flavor.is_async:
        asyncio.run(start())
        return
    engine = create_engine(url)
    with pytest.raises(ForeignTable):
        Worker(jobs, engine).start()
    engine.dispose()


@pytest.mark.parametrize("theirs", ["Go"], indirect=True)
def test_who_enqueues_into_them_is_told_where_to_look(theirs: Engine) -> None:
    jobs = queue()
    handler = jobs.registry.find("noted", "default")

    with pytest.raises(ProgrammingError) as refused:
        enqueue(theirs, handler, 1)

    assert any("sqlalchemy-bgjob doctor" in note for note in refused.value.__notes__)


@pytest.mark.parametrize("theirs", ["Go"], indirect=True)
@pytest.mark.parametrize("place", [{"schema": "jobs"}, {"table_prefix": "py_bgjob_"}])
def test_a_place_of_its_own_works_beside_them(theirs: Engine, place: dict[str, str]) -> None:
    """By migrate and by create_all(); the doctor is content, and their tables are as before."""
    with theirs.begin() as connection:
        before = catalog(connection, None, "bgjob_")
        schema.migrate(connection, **place)
    jobs = queue(**place)
    jobs.metadata.create_all(theirs)
    handler = jobs.registry.find("noted", "default")
    enqueue(theirs, handler, 1)

    def left() -> int:
        with theirs.connect() as connection:
            return connection.execute(jobs.models.job.select()).rowcount

    with Worker(jobs, theirs):
        wait_until(lambda: left() == 0, 30, what="the end of the job")

    where = {"schema": None, "table_prefix": "bgjob_"} | place
    with theirs.connect() as connection:
        assert catalog(connection, None, "bgjob_") == before
        assert not [one for one in examine(connection, **where) if one.level == "problem"]


def test_ours_of_any_name_are_not_refused(engine: Engine) -> None:
    """Also without their comment, as a dump may leave them, and beside a missing column."""
    jobs = queue()
    jobs.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(text("COMMENT ON TABLE bgjob_job IS NULL"))
        with pytest.raises(SchemaOutOfDate, match="COMMENT ON TABLE") as caught:
            schema.check(connection)
        assert not isinstance(caught.value, ForeignTable)
        connection.execute(text(_COMMENT))
        connection.execute(text("ALTER TABLE bgjob_job DROP COLUMN unknown_since"))
        schema.check(connection)
    jobs.metadata.create_all(engine)
    assert inspect(engine).has_table("bgjob_job")
