"""The models: the same tables on every base, and what a row refuses."""

from __future__ import annotations

import importlib
import warnings
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from flask import Flask
from flask_sqlalchemy import SQLAlchemy
from sqlalchemy import (
    Connection,
    DateTime,
    ForeignKey,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    String,
    Table,
    Text,
    create_engine,
    event,
    func,
    inspect,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncAttrs
from sqlalchemy.orm import (
    DeclarativeBase,
    DeclarativeBaseNoMeta,
    Mapped,
    MappedAsDataclass,
    Session,
    configure_mappers,
    declarative_base,
    deferred,
    mapped_column,
    registry,
    relationship,
)
from sqlmodel import Field, SQLModel

from sqlalchemy_bgjob import BGJob
from sqlalchemy_bgjob.models import DeadJobMixin, JobMixin, Models, build_models
from support.catalog import catalog
from support.tables import CONVENTION, NAMES, Names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import ExpectedCatalog

# --- The bases -----------------------------------------------------------------------------------


def plain() -> Any:
    class Base(DeclarativeBase):
        pass

    return Base


def dataclass_base() -> Any:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    class User(Base):
        __tablename__ = "user"
        id: Mapped[int] = mapped_column(primary_key=True, init=False)
        name: Mapped[str]

    return Base


def dataclass_kw_only() -> Any:
    class Base(MappedAsDataclass, DeclarativeBase, kw_only=True):
        pass

    return Base


def no_meta() -> Any:
    class Base(DeclarativeBaseNoMeta):
        pass

    return Base


def legacy() -> Any:
    return declarative_base()


def sqlmodel() -> Any:
    return SQLModel


def flask_default() -> Any:
    return SQLAlchemy(_flask())


def flask_declarative() -> Any:
    class Base(DeclarativeBase):
        pass

    return SQLAlchemy(_flask(), model_class=Base)


def flask_dataclass() -> Any:
    class Base(MappedAsDataclass, DeclarativeBase):
        pass

    return SQLAlchemy(_flask(), model_class=Base)


def flask_convention() -> Any:
    return SQLAlchemy(_flask(), metadata=MetaData(naming_convention=CONVENTION))


def _flask() -> Flask:
    app = Flask(__name__)
    app.config["SQLALCHEMY_DATABASE_URI"] = "sqlite://"
    return app


def advanced_alchemy_uuid() -> Any:
    return _advanced_alchemy().UUIDBase


def advanced_alchemy_default() -> Any:
    return _advanced_alchemy().DefaultBase


def _advanced_alchemy() -> Any:
    with warnings.catch_warnings():
        # It still uses what SQLAlchemy 2.1 deprecates.
        warnings.simplefilter("ignore", DeprecationWarning)
        return importlib.import_module("advanced_alchemy.base")


def naming_convention() -> Any:
    class Base(DeclarativeBase):
        metadata = MetaData(naming_convention=CONVENTION)

    return Base


def type_map() -> Any:
    class Base(DeclarativeBase):
        type_annotation_map = {  # noqa: RUF012 - as SQLAlchemy documents it
            str: String(50),
            datetime: DateTime(timezone=False),
            int: Text,
            bytes: LargeBinary(10),
            float: Integer,
        }

    return Base


def metadata_schema() -> Any:
    class Base(DeclarativeBase):
        metadata = MetaData(schema="app")

    return Base


def async_attrs() -> Any:
    class Base(AsyncAttrs, DeclarativeBase):
        pass

    return Base


def own_columns() -> Any:
    class Base(DeclarativeBase):
        id: Mapped[int] = mapped_column(primary_key=True)
        created_at: Mapped[datetime] = mapped_column(DateTime(timezone=False))
        tenant: Mapped[str] = mapped_column(String(10), index=True)

    return Base


def a_registry() -> Any:
    return registry()


def a_metadata() -> Any:
    return MetaData()


BASES = [
    plain,
    dataclass_base,
    dataclass_kw_only,
    no_meta,
    legacy,
    sqlmodel,
    flask_default,
    flask_declarative,
    flask_convention,
    advanced_alchemy_uuid,
    advanced_alchemy_default,
    naming_convention,
    type_map,
    metadata_schema,
    async_attrs,
    own_columns,
    a_registry,
    a_metadata,
]
if sqlalchemy.__version__.startswith("2.0."):
    # Flask-SQLAlchemy 3.1.1 cannot even be made with a dataclass base on SQLAlchemy 2.1.
    BASES.append(flask_dataclass)
# Bases that take a mixin without adding to its table.
MIXIN_BASES = [
    plain,
    no_meta,
    legacy,
    flask_default,
    flask_declarative,
    advanced_alchemy_default,
    naming_convention,
    type_map,
    metadata_schema,
    async_attrs,
]


@pytest.fixture
def build() -> Iterator[Callable[..., Models]]:
    """Build models and take their tables out again: some bases share one MetaData per process."""
    built: list[Table] = []

    def make(*args: Any, **options: Any) -> Models:
        made = build_models(*args, **options)
        built.extend([*made.tables])
        return made

    yield make
    for table in built:
        table.metadata.remove(table)


def create(connection: Connection, made: Models) -> None:
    """Make these tables only: a shared MetaData may hold others."""
    if made.schema:
        connection.execute(text(f"CREATE SCHEMA IF NOT EXISTS {made.schema}"))
    made.metadata.create_all(connection, tables=[*made.tables])


def names_of(made: Models) -> Names:
    return NAMES["schema"] if made.schema else NAMES["plain"]


def a_job(**values: Any) -> dict[str, Any]:
    return {"queue": "mail", "type": "send", "arg": {"to": 1}, **values}


@pytest.mark.core
@pytest.mark.parametrize("base", BASES)
def test_the_tables_are_the_same_on_every_base(
    connection: Connection, build: Any, base: Any, expected: ExpectedCatalog
) -> None:
    made = build(base())
    create(connection, made)

    assert catalog(connection, made.schema) == expected(names_of(made))
    assert all(table.info == {} for table in made.tables)


@pytest.mark.core
@pytest.mark.parametrize("base", BASES)
def test_rows_round_trip_on_every_base(connection: Connection, build: Any, base: Any) -> None:
    made = build(base())
    create(connection, made)
    session = Session(connection, join_transaction_mode="create_savepoint")

    session.add(made.Job(**a_job(headers={"request-id": "r1"}, priority=-3)))
    session.commit()
    job = session.scalars(select(made.Job).with_for_update(skip_locked=True)).one()

    assert (job.queue, job.type, job.arg, job.arg_json) == ("mail", "send", b'{"to":1}', {"to": 1})
    assert (job.priority, job.attempt, job.crashes) == (-3, 0, 0)
    assert job.headers == {"request-id": "r1"}
    assert job.state == "queued"
    assert job.next_run_at == job.created_at == job.updated_at
    assert job.next_run_at.utcoffset() is not None
    assert job.lease > 1_700_000_000_000_000
    session.delete(job)
    session.commit()
    assert session.scalars(select(made.Job)).all() == []
    session.close()


@pytest.mark.core
@pytest.mark.parametrize("base", MIXIN_BASES)
def test_mixins_with_an_own_column_make_the_same_tables(
    connection: Connection, build: Any, base: Any, expected: ExpectedCatalog
) -> None:
    target = base()
    parent: Any = getattr(target, "Model", target)

    class Job(JobMixin, parent):  # type: ignore[misc]
        tenant: Mapped[str | None] = mapped_column(Text)
        __tablename__ = "bgjob_job"

    class DeadJob(DeadJobMixin, parent):  # type: ignore[misc]
        tenant: Mapped[str | None] = mapped_column(Text)
        __tablename__ = "bgjob_dead_job"

    made = build(target, models=(Job, DeadJob))
    create(connection, made)
    found = catalog(connection, made.schema)

    for name in ("bgjob_job", "bgjob_dead_job"):
        columns = found[name]["columns"]
        (own,) = [column for column in columns if column[0] == "tenant"]
        columns.remove(own)
        assert own[1:3] == ("text", False)
    assert found == expected(names_of(made))


def test_mixins_on_a_plain_base_suit_dataclasses_and_sqlmodel(
    connection: Connection, build: Any
) -> None:
    """Their own bases cannot take a mixin with ``Mapped`` columns; a second base can."""

    class JobsBase(DeclarativeBase):
        metadata = dataclass_base().metadata

    class Job(JobMixin, JobsBase):
        tenant_id: Mapped[int | None] = mapped_column(ForeignKey("user.id"))

    class DeadJob(DeadJobMixin, JobsBase):
        pass

    made = build(None, models=(Job, DeadJob))

    made.metadata.create_all(connection)
    assert "tenant_id" in inspect(connection).get_columns("bgjob_job")[-1].values()


def test_models_of_several_queues_live_side_by_side(connection: Connection, build: Any) -> None:
    base: Any = plain()
    queues = [
        build(base),
        build(base, table_prefix="x_"),
        build(base, schema="app"),
        build(MetaData(), schema="app", table_prefix="y_"),
    ]
    for made in queues:
        create(connection, made)
    session = Session(connection, join_transaction_mode="create_savepoint")

    for number, made in enumerate(queues):
        session.add_all(made.Job(**a_job()) for _ in range(number))
    session.flush()

    found = [len(session.scalars(select(made.Job)).all()) for made in queues]
    assert found == [0, 1, 2, 3]
    session.close()


# --- What a user's project does with them --------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize("base", [plain, sqlmodel, flask_default, advanced_alchemy_default])
def test_sqlite_has_the_tables_and_a_job_round_trips(build: Any, base: Any) -> None:
    """A user's own test suite may run on SQLite; no worker does."""
    made = build(base())
    engine = create_engine("sqlite://")
    made.metadata.create_all(engine, tables=[*made.tables])

    with Session(engine) as session:
        session.add(made.Job(**a_job(headers={"a": 1})))
        session.add(made.DeadJob(job_id="x", queue="q", type="t", lease=1, **_times()))
        session.commit()
        job = session.scalars(select(made.Job)).one()
        dead = session.scalars(select(made.DeadJob)).one()

        assert (job.arg_json, job.headers, job.attempt) == ({"to": 1}, {"a": 1}, 0)
        assert job.lease > 1_700_000_000_000_000
        assert dead.moved_at is not None
    engine.dispose()


def _times() -> dict[str, datetime]:
    now = datetime.now(UTC)
    return {"next_run_at": now, "job_created_at": now, "job_updated_at": now}


@pytest.mark.core
def test_many_jobs_are_one_statement(connection: Connection, build: Any) -> None:
    """A server default on the primary key beside the client's would make it one INSERT a row."""
    made = build(plain())
    create(connection, made)
    inserts = []
    event.listen(
        connection,
        "before_cursor_execute",
        lambda *args: inserts.append(args[2]) if args[2].startswith("INSERT") else None,
    )
    session = Session(connection, join_transaction_mode="create_savepoint")

    session.add_all(made.Job(**a_job(arg=number)) for number in range(1000))
    session.flush()

    assert 1 <= len(inserts) <= 3
    session.close()


def test_a_user_can_relate_to_jobs(connection: Connection, build: Any) -> None:
    base: Any = plain()
    made = build(base)

    class Order(base):  # type: ignore[misc]
        __tablename__ = "orders"
        id: Mapped[int] = mapped_column(primary_key=True)
        job_id: Mapped[str | None] = mapped_column(ForeignKey("bgjob_job.id", ondelete="SET NULL"))
        job = relationship(lambda: made.Job)

    made.metadata.create_all(connection)
    session = Session(connection, join_transaction_mode="create_savepoint")

    session.add(Order(id=1, job=made.Job(**a_job())))
    session.commit()
    order = session.get_one(Order, 1)
    assert order.job.type == "send"
    session.execute(made.job.delete())
    session.commit()

    assert order.job_id is None
    session.close()


def test_a_subclass_of_own_models_shares_their_table(build: Any) -> None:
    base: Any = plain()

    class Job(JobMixin, base):  # type: ignore[misc]
        pass

    class DeadJob(DeadJobMixin, base):  # type: ignore[misc]
        pass

    class Special(Job):
        pass

    configure_mappers()
    assert Special.__table__ is Job.__table__
    assert len(Job.__table__.indexes) == 4
    build(None, models=(Job, DeadJob))


@pytest.mark.core
def test_hybrids_are_the_same_in_python_and_in_sql(connection: Connection, build: Any) -> None:
    made = build(plain())
    create(connection, made)
    session = Session(connection, join_transaction_mode="create_savepoint")
    later = datetime.now(UTC) + timedelta(hours=1)
    session.add_all(
        [
            made.Job(id="due", **a_job()),
            made.Job(id="later", **a_job(next_run_at=later)),
            made.Job(id="running", **a_job(), claimed_by=7),
            made.Job(id="bytes", **a_job(arg=b"\xff\x00")),
            made.Job(id="none", **a_job(arg=None)),
        ]
    )
    session.commit()
    columns = (made.Job, made.Job.state, made.Job.arg_json)

    rows = session.execute(select(*columns)).all()

    assert len(rows) == 5
    for job, state, arg_json in rows:
        assert (job.state, job.arg_json) == (state, arg_json)
    assert {job.id: state for job, state, _ in rows} == {
        "due": "queued",
        "later": "scheduled",
        "running": "running",
        "bytes": "queued",
        "none": "queued",
    }
    assert {job.id: arg_json for job, _, arg_json in rows}["bytes"] is None
    session.close()


def test_values_may_be_sql_expressions(connection: Connection, build: Any) -> None:
    """They are checked by the table, not in Python."""
    made = build(plain())
    create(connection, made)
    session = Session(connection, join_transaction_mode="create_savepoint")
    job = made.Job(
        id=func.lower("A"),
        queue=func.lower("MAIL"),
        type=func.lower("SEND"),
        priority=func.length("abc"),
        arg=func.convert_to("[1]", "UTF8"),
        headers=func.jsonb_build_object("a", "b"),
        next_run_at=func.now() + timedelta(hours=1),
    )

    session.add(job)
    session.commit()

    assert (job.id, job.queue, job.type, job.priority) == ("a", "mail", "send", 3)
    assert (job.arg_json, job.headers, job.state) == ([1], {"a": "b"}, "scheduled")
    session.close()


def test_an_arg_that_is_no_json_reads_as_none(build: Any) -> None:
    """A row written by SQL may hold anything."""
    job = build(plain()).Job(**a_job())
    vars(job)["arg"] = b"{"

    assert job.arg_json is None


@pytest.mark.parametrize("odd", [["a"], "text", 5, True], ids=str)
def test_headers_that_are_no_object_are_none(build: Any, odd: Any) -> None:
    """A row written by SQL may hold any JSON."""
    job = build(plain()).Job(**a_job())
    vars(job).update(arg=b"[1]", headers=odd)

    assert job.arg_json == [1]
    job.arg = b"x"
    assert job.headers == {"content-type": "application/octet-stream"}
    vars(job)["headers"] = odd
    job.headers = {"b": 2}
    assert job.headers == {"b": 2}


def test_an_arg_sets_its_content_type_whatever_the_order(build: Any) -> None:
    made = build(plain())
    job = made.Job(queue="q", type="t", headers={"a": 1}, arg=b"x")
    assert job.headers == {"a": 1, "content-type": "application/octet-stream"}

    job.headers = {"b": 2}
    assert job.headers == {"b": 2, "content-type": "application/octet-stream"}
    job.arg = {"json": True}
    assert job.headers == {"b": 2}
    job.headers = None
    assert job.headers is None

    with pytest.raises(TypeError, match="headers must be a mapping, not list"):
        job.headers = ["a"]


# --- Refusals ------------------------------------------------------------------------------------


@pytest.mark.core
@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("queue", ""),
        ("queue", "x" * 129),
        ("type", ""),
        ("id", ""),
        ("id", "x" * 256),
        ("attempt", -1),
        ("crashes", -1),
        ("next_run_at", "infinity"),
        ("created_at", "-infinity"),
        ("updated_at", "10000-01-01 00:00+00"),
    ],
)
def test_the_table_refuses_rows_that_would_stop_a_claim(
    connection: Connection, build: Any, column: str, value: Any
) -> None:
    create(connection, build(plain()))
    row = {"id": "1", "queue": "q", "type": "t", column: value}
    names, parameters = ", ".join(row), ", ".join(f":{name}" for name in row)
    cast = parameters.replace(":next_run_at", "CAST(:next_run_at AS timestamptz)")
    for name in ("created_at", "updated_at"):
        cast = cast.replace(f":{name}", f"CAST(:{name} AS timestamptz)")

    with pytest.raises(IntegrityError, match="violates check constraint"):
        connection.execute(text(f"INSERT INTO bgjob_job ({names}) VALUES ({cast})"), row)


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"queue": ""}, "queue='' has 0 characters"),
        ({"type": "x" * 129}, "129 characters; 1 to 128"),
        ({"queue": "a\x00"}, "NUL"),
        ({"id": "x" * 256}, "256 characters; 1 to 255"),
        ({"priority": 40_000}, "-32768 to 32767|between -32768 and 32767"),
        ({"next_run_at": datetime(2030, 1, 1)}, "no time zone"),  # noqa: DTZ001 - the point
    ],
)
def test_a_row_refuses_what_the_table_would_refuse(
    build: Any, values: dict[str, Any], told: str
) -> None:
    made = build(plain())

    with pytest.raises(ValueError, match=told):
        made.Job(**a_job(**values))


def test_a_second_queue_in_the_same_place_is_refused(build: Any) -> None:
    base: Any = plain()
    build(base)

    with pytest.raises(ValueError, match="has a table 'bgjob_job' already"):
        build_models(base)


@pytest.mark.parametrize("target", [None, object(), "postgresql://", dict])
def test_a_target_without_metadata_is_refused(target: Any) -> None:
    with pytest.raises(TypeError, match="has no MetaData"):
        build_models(target)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"schema": ""}, "schema='' has 0 bytes"),
        ({"schema": "ä" * 32}, "has 64 bytes; 1 to 63"),
        ({"table_prefix": "x" * 33}, "has 33 bytes; 32 are allowed"),
    ],
)
def test_names_that_postgresql_would_cut_are_refused(options: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        build_models(MetaData(), **options)


def own_pair(base: Any, job_table: str = "bgjob_job", dead_table: str = "bgjob_dead_job") -> Any:
    class Job(JobMixin, base):  # type: ignore[misc]
        __tablename__ = job_table

    class DeadJob(DeadJobMixin, base):  # type: ignore[misc]
        __tablename__ = dead_table

    return Job, DeadJob


def test_own_models_are_checked() -> None:
    job, dead_job = own_pair(plain())
    other_job, other_dead = own_pair(plain(), "jobs", "dead_jobs")
    foreign = own_pair(plain())
    things: Any = plain()

    class Thing(things):  # type: ignore[misc]
        __tablename__ = "thing"
        id: Mapped[int] = mapped_column(primary_key=True)

    with pytest.raises(TypeError, match="in this order"):
        build_models(None, models=(dead_job, job))
    with pytest.raises(TypeError, match="not a mapped subclass of JobMixin"):
        build_models(None, models=(Thing, dead_job))
    with pytest.raises(ValueError, match="named 'jobs' and 'dead_jobs'"):
        build_models(None, models=(other_job, other_dead))
    with pytest.raises(ValueError, match="MetaData and schema; build both on one base"):
        build_models(None, models=(job, foreign[1]))
    with pytest.raises(ValueError, match="those of the classes given as models=; leave them out"):
        build_models(None, models=(job, dead_job), schema="app")
    with pytest.raises(ValueError, match="the target's MetaData; leave the target out"):
        build_models(plain(), models=(job, dead_job))


def test_representations_name_the_job(build: Any) -> None:
    made = build(plain())

    assert repr(made.Job(id="a", **a_job())) == "<Job a 'send' in 'mail', attempt None>"
    dead = made.DeadJob(job_id="a", queue="mail", type="send", attempt=3)
    assert repr(dead) == "<DeadJob a 'send' in 'mail', attempt 3>"


def test_an_sqlmodel_table_can_refer_to_jobs(connection: Connection, build: Any) -> None:
    made = build(SQLModel)

    class Errand(SQLModel, table=True):
        id: int | None = Field(default=None, primary_key=True)
        job_id: str | None = Field(default=None, foreign_key="bgjob_job.id")

    try:
        create(connection, made)
        SQLModel.metadata.create_all(connection)
        assert "errand" in inspect(connection).get_table_names()
    finally:
        SQLModel.metadata.remove(SQLModel.metadata.tables["errand"])


OVERRIDES: dict[str, tuple[dict[str, Any], str]] = {
    "type": ({"queue": mapped_column(String(20), nullable=False)}, "Job overrides .*'queue'"),
    "null": ({"type": mapped_column(Text)}, "Job overrides .*'type'.*: TEXT NOT NULL;"),
    "default": ({"priority": mapped_column(SmallInteger, nullable=False)}, "with a default"),
    "none": ({"arg": None}, "Job lacks the column 'arg'"),
}


@pytest.mark.parametrize(("own", "problem"), OVERRIDES.values(), ids=OVERRIDES)
def test_a_column_of_ours_is_not_overridden(own: dict[str, Any], problem: str) -> None:
    """Statements and migrations would not fit the table that such a class describes."""
    base: Any = plain()
    job = type("Job", (JobMixin, base), own)
    dead_job = type("DeadJob", (DeadJobMixin, base), {})
    with pytest.raises(ValueError, match=problem):
        BGJob(models=(job, dead_job))


def test_a_column_of_ours_may_be_read_in_another_way() -> None:
    """The same column to the database: loaded only when it is asked for."""
    base: Any = plain()
    job = type("Job", (JobMixin, base), {"arg": deferred(mapped_column(LargeBinary))})
    dead_job = type("DeadJob", (DeadJobMixin, base), {})
    assert BGJob(models=(job, dead_job)).Job is job


@pytest.mark.parametrize("mixin", [JobMixin, DeadJobMixin])
def test_a_dataclass_is_told_to_take_a_plain_base(mixin: type) -> None:
    """And on the base that it names the models work, in the metadata of the dataclasses."""

    class Base(MappedAsDataclass, DeclarativeBase): ...

    with pytest.raises(TypeError, match="Mine can't be a dataclass; build it on a base of its own"):
        type("Mine", (mixin, Base), {})

    class JobBase(DeclarativeBase):
        metadata = Base.metadata

    class Job(JobMixin, JobBase): ...

    class DeadJob(DeadJobMixin, JobBase): ...

    jobs = build_models(Base, models=(Job, DeadJob))
    assert jobs.Job(queue="q", type="t", arg=1).arg == b"1"
    assert jobs.metadata is Base.metadata
