"""The tables, as Declarative models that live in the user's own MetaData.

:func:`build_models` maps ``Job``, ``DeadJob`` and ``WorkerRow`` in a registry of their own over
the user's MetaData, so the tables are the same whatever the user's base class adds to its models.
:class:`JobMixin` and :class:`DeadJobMixin` are for users who want columns or relationships of
their own on these tables.

* Every column names its SQL type, so a ``type_annotation_map`` cannot change it.
* Names of constraints and indexes are final (``conv``): a naming convention cannot change them,
  and Alembic compares by name. Whoever changes an index's or check's text changes its name.
* No triggers, no functions, no enum types: Alembic's autogenerate sees all of it.
* Everything compiles on SQLite too, so that a user's own ``create_all()`` there goes on working.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, cast
from weakref import WeakSet

from sqlalchemy import (
    JSON,
    BigInteger,
    CheckConstraint,
    ColumnElement,
    DateTime,
    Float,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    SmallInteger,
    Table,
    Text,
    case,
    event,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import ArgumentError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    Mapper,
    declared_attr,
    has_inherited_table,
    mapped_column,
    registry,
    validates,
)
from sqlalchemy.sql.elements import conv
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from ._drafts import validation
from ._drafts.codec import Codec, Encoded
from ._drafts.ids import new_id
from .schema._layouts import refuse_create_all
from .schema._versions import SetStorage

SCHEMA_VERSION: Final = 1
"""The version of the tables that these models describe."""
WORKERS_SINCE: Final = 1
"""The oldest schema version whose workers can run beside this one."""

DEFAULT_PREFIX: Final = "bgjob_"
_MAX_PREFIX_BYTES = 32  # the longest name derived from it must fit in PostgreSQL's 63 bytes

STORAGE: Final[Mapping[str, Mapping[str, str]]] = {
    "job": {
        # Half of each page stays free for the next version of its rows, so the claim's UPDATE,
        # which changes no indexed column, is HOT: no new index entries, less WAL.
        "fillfactor": "50",
        # Rows live for milliseconds: vacuum by number, not by a share of a backlog.
        "autovacuum_vacuum_scale_factor": "0.02",
        "autovacuum_vacuum_threshold": "1000",
    },
    "dead_job": {},
    # A few rows, updated every few seconds: room on the page keeps beats HOT.
    "worker": {"fillfactor": "50"},
}


def schema_comment(version: int = SCHEMA_VERSION, workers_since: int = WORKERS_SINCE) -> str:
    """The job table's comment, which carries the schema version where Alembic compares it."""
    return f"sqlalchemy-bgjob schema {version} (workers since {workers_since})"


class lease_at_insert(FunctionElement[int]):  # noqa: N801 - reads as the SQL function it is
    """The server's clock in microseconds; leases grow slower, so a later life never meets one."""

    type = BigInteger()
    inherit_cache = True


@compiles(lease_at_insert)
def _lease_default(element: Any, compiler: Any, **_: Any) -> str:
    return "(CAST(EXTRACT(epoch FROM clock_timestamp()) * 1000000 AS BIGINT))"


@compiles(lease_at_insert, "postgresql")
def _lease_postgresql(element: Any, compiler: Any, **_: Any) -> str:
    # To the letter as PostgreSQL gives it back. If the texts differ, Alembic with
    # compare_server_default=True compares the values, and a clock never reads the same twice.
    return "((EXTRACT(epoch FROM clock_timestamp()) * (1000000)::numeric))::bigint"


@compiles(lease_at_insert, "sqlite")
def _lease_sqlite(element: Any, compiler: Any, **_: Any) -> str:
    return "(CAST(strftime('%s', 'now') AS INTEGER) * 1000000)"


_text = Text()
_moment = DateTime(timezone=True)
# A variant rather than plain JSONB: SQLite has no such type. None is SQL NULL, not JSON null.
_json: TypeEngine[Any] = JSON(none_as_null=True).with_variant(
    JSONB(none_as_null=True), "postgresql"
)
_json_codec: Codec = Codec(Any)


class _Columns:
    """What a live and a dead job have in common."""

    def __init_subclass__(cls, **options: Any) -> None:
        # The constructor would want every column, and would know of no server default.
        if issubclass(cls, MappedAsDataclass):
            raise TypeError(
                f"{cls.__name__} can't be a dataclass; build it on a base of its own over the same "
                f"MetaData: class JobBase(DeclarativeBase): metadata = Base.metadata"
            )
        super().__init_subclass__(**options)

    queue: Mapped[str] = mapped_column(_text, nullable=False, sort_order=-89)
    type: Mapped[str] = mapped_column(_text, nullable=False, sort_order=-88)
    arg: Mapped[bytes | None] = mapped_column(LargeBinary, sort_order=-87)
    priority: Mapped[int] = mapped_column(
        SmallInteger, nullable=False, server_default="0", sort_order=-86
    )
    attempt: Mapped[int] = mapped_column(
        Integer, nullable=False, server_default="0", sort_order=-85
    )
    # How often a worker died while it held the job.
    crashes: Mapped[int] = mapped_column(
        Integer, nullable=False, server_default="0", sort_order=-84
    )
    last_error: Mapped[str | None] = mapped_column(_text, sort_order=-81)
    headers: Mapped[dict[str, Any] | None] = mapped_column(_json, sort_order=-80)

    @hybrid_property
    def arg_json(self) -> Any:
        """The arg as plain JSON values; None when it is absent or is not JSON."""
        if self.arg is None or (self.headers or {}).get(validation.CONTENT_TYPE):
            return None
        try:
            return json.loads(self.arg)
        except (ValueError, RecursionError):
            return None

    @arg_json.inplace.expression
    @classmethod
    def _arg_json_sql(cls) -> ColumnElement[Any]:
        # A CASE, since a bytes row would fail the conversion and with it the user's whole query.
        is_json = cls.headers[validation.CONTENT_TYPE].as_string().is_(None)
        return case((is_json, func.convert_from(cls.arg, "UTF8").cast(JSONB)))


class _Checked(dict[str, Any]):
    """Headers that hold the new arg's content type, in place of the one before."""


class JobMixin(_Columns):
    """Columns of a live job; build ``class Job(JobMixin, Base)`` on it for columns of your own.

    A row is *queued* while ``claimed_by`` is null, and *running* while a worker holds it.
    ``arg`` may be assigned any JSON value or bytes: it is encoded on assignment.

    A column of your own may have any default, or be nullable. A default that is a Python function
    is called once for each statement of ``enqueue_many`` and ``enqueue_from``, not for each row:
    use ``server_default`` for values that must differ.
    """

    @declared_attr.directive
    def __tablename__(cls) -> str | None:
        # A subclass of a concrete model shares its table.
        return None if has_inherited_table(cast(Any, cls)) else f"{DEFAULT_PREFIX}job"

    # A client-side default only: with a server default beside it SQLAlchemy would send one INSERT
    # a row, see tests/test_models.py.
    id: Mapped[str] = mapped_column(_text, primary_key=True, default=new_id, sort_order=-90)
    # The number of the claim; it grows with every claim, rescue, hand-back and redrive.
    lease: Mapped[int] = mapped_column(
        BigInteger, nullable=False, server_default=lease_at_insert(), sort_order=-83
    )
    claimed_by: Mapped[int | None] = mapped_column(BigInteger, sort_order=-82)
    next_run_at: Mapped[datetime] = mapped_column(
        _moment, nullable=False, server_default=func.now(), sort_order=-79
    )
    created_at: Mapped[datetime] = mapped_column(
        _moment, nullable=False, server_default=func.now(), sort_order=-78
    )
    updated_at: Mapped[datetime] = mapped_column(
        _moment, nullable=False, server_default=func.now(), sort_order=-77
    )
    # When a worker first met the job without knowing its type.
    unknown_since: Mapped[datetime | None] = mapped_column(_moment, sort_order=-76)

    if TYPE_CHECKING:

        def __init__(
            self,
            *,
            queue: str,
            type: str,
            arg: Any = None,
            id: str = ...,
            priority: int = 0,
            next_run_at: datetime = ...,
            headers: Mapping[str, Any] | None = None,
            **own_columns: Any,
        ) -> None: ...

    @validates("id")
    def _check_id(self, key: str, value: object) -> object:
        return value if _is_sql(value) else validation.job_id(value)

    @validates("queue", "type")
    def _check_name(self, key: str, value: object) -> object:
        return value if _is_sql(value) else validation.name(key, value)

    @validates("priority")
    def _check_priority(self, key: str, value: object) -> object:
        return value if _is_sql(value) else validation.priority(value)

    @validates("next_run_at")
    def _check_next_run_at(self, key: str, value: object) -> object:
        return value if _is_sql(value) else validation.moment(key, value)

    @validates("arg")
    def _encode_arg(self, key: str, value: object) -> object:
        if _is_sql(value):
            return value
        encoded = value if isinstance(value, Encoded) else _json_codec.encode(value)
        own = {k: v for k, v in (self.headers or {}).items() if k != validation.CONTENT_TYPE}
        headers = validation.headers(own or None, encoded.content_type)
        if headers != self.headers:
            self.headers = _Checked(headers or {})
        return encoded.data

    @validates("headers")
    def _check_headers(self, key: str, value: object) -> object:
        if _is_sql(value):
            return value
        if isinstance(value, _Checked):
            return dict(value) or None
        if not isinstance(value, Mapping | None):
            raise TypeError(f"headers must be a mapping, not {type(value).__name__}")
        content_type = (self.headers or {}).get(validation.CONTENT_TYPE)
        if value and validation.CONTENT_TYPE in value:
            content_type = value[validation.CONTENT_TYPE]
        return validation.headers(value, content_type)

    @hybrid_property
    def state(self) -> str:
        """``scheduled``, ``queued`` (due) or ``running``; in Python by this machine's clock."""
        if self.claimed_by is not None:
            return "running"
        return "scheduled" if self.next_run_at > datetime.now(UTC) else "queued"

    @state.inplace.expression
    @classmethod
    def _state_sql(cls) -> ColumnElement[str]:
        return case(
            (cls.claimed_by.is_not(None), "running"),
            (cls.next_run_at > func.now(), "scheduled"),
            else_="queued",
        )

    def __repr__(self) -> str:
        return f"<Job {self.id} {self.type!r} in {self.queue!r}, attempt {self.attempt}>"


class DeadJobMixin(_Columns):
    """Columns of a dead job: what the live row held, and when it was moved.

    The lease is kept, so that a job brought back goes on counting where it stopped.
    """

    @declared_attr.directive
    def __tablename__(cls) -> str | None:
        return None if has_inherited_table(cast(Any, cls)) else f"{DEFAULT_PREFIX}dead_job"

    # An id of its own: the same job id may die more than once.
    id: Mapped[str] = mapped_column(_text, primary_key=True, default=new_id, sort_order=-91)
    job_id: Mapped[str] = mapped_column(_text, nullable=False, sort_order=-90)
    lease: Mapped[int] = mapped_column(BigInteger, nullable=False, sort_order=-83)
    next_run_at: Mapped[datetime] = mapped_column(_moment, nullable=False, sort_order=-79)
    job_created_at: Mapped[datetime] = mapped_column(_moment, nullable=False, sort_order=-78)
    job_updated_at: Mapped[datetime] = mapped_column(_moment, nullable=False, sort_order=-77)
    moved_at: Mapped[datetime] = mapped_column(
        _moment, nullable=False, server_default=func.now(), sort_order=-76
    )

    def __repr__(self) -> str:
        return f"<DeadJob {self.job_id} {self.type!r} in {self.queue!r}, attempt {self.attempt}>"


class WorkerMixin:
    """One row for each worker process that lives, or whose jobs are still being given back."""

    # Chosen by the worker, at random: it knows its id even if the answer to its INSERT is lost.
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hostname: Mapped[str] = mapped_column(_text, nullable=False)
    pid: Mapped[int] = mapped_column(Integer, nullable=False)
    version: Mapped[str] = mapped_column(_text, nullable=False)
    queues: Mapped[Any] = mapped_column(_json, nullable=False)
    # The queues in which it has found nothing: whoever enqueues there wakes it by a notification.
    waits_for: Mapped[Any] = mapped_column(_json, nullable=False, server_default="[]")
    # Seconds; a worker is judged by its own setting, not by the judge's.
    lease_timeout: Mapped[float] = mapped_column(Float(53), nullable=False)
    started_at: Mapped[datetime] = mapped_column(_moment, nullable=False, server_default=func.now())
    beat_at: Mapped[datetime] = mapped_column(_moment, nullable=False, server_default=func.now())
    # Set when its jobs are taken from it; the row goes when none is left.
    lost_at: Mapped[datetime | None] = mapped_column(_moment)
    # The session that listens for this worker: PostgreSQL ends it when the process dies.
    listener_pid: Mapped[int | None] = mapped_column(Integer)
    listener_started_at: Mapped[datetime | None] = mapped_column(_moment)


def _is_sql(value: object) -> bool:
    return hasattr(value, "__clause_element__") or isinstance(value, ColumnElement)


def _table_takes_storage() -> bool:
    """A keyword of Table since SQLAlchemy 2.1: plain autogenerate then renders it too."""
    try:
        # The constructor looks at the name, which dialect_kwargs does not.
        Table("probe", MetaData(), postgresql_with={})
    except ArgumentError:
        return False
    return True


_TABLE_TAKES_STORAGE: Final = _table_takes_storage()
_finished: WeakSet[Table] = WeakSet()


def _finish(table: Table, kind: str) -> bool:
    """Give a new table its final constraint names and storage parameters; False if it has them."""
    if table in _finished:
        return False
    _finished.add(table)
    table.primary_key.name = conv(f"{table.name}_pkey")
    storage = dict(STORAGE[kind])
    if storage and _TABLE_TAKES_STORAGE:
        table.dialect_kwargs.update(postgresql_with=storage)
    elif storage:
        statement = SetStorage(table, storage).execute_if(dialect="postgresql")
        event.listen(table, "after_create", statement)
    return True


@event.listens_for(JobMixin, "after_mapper_constructed", propagate=True)
def _finish_job(mapper: Mapper[Any], cls: type) -> None:
    table = cast(Table, mapper.local_table)
    # A subclass with a table of its own is joined to the queue's, which is finished already.
    if mapper.inherits is not None or not _finish(table, "job"):
        return
    c = table.c
    # The one index of the claim, in its order. It is full, not partial on claimed_by: a column of
    # an index, or of its predicate, that a claim changes would make every claim non-HOT.
    Index(conv(f"{table.name}_claim_idx"), c.queue, c.priority, c.next_run_at, c.id)
    for name, condition in {
        # The same limits that enqueue checks, for rows written by SQL.
        "queue": func.length(c.queue).between(1, 128),
        "type": func.length(c.type).between(1, 128),
        "id": func.length(c.id).between(1, 255),
        "attempt": c.attempt >= 0,
        "crashes": c.crashes >= 0,
        # 'infinity' and years beyond 9999 have no Python datetime: one such row would make every
        # claim that meets it fail.
        "times": c.next_run_at.between(validation.EARLIEST, validation.LATEST)
        & c.created_at.between(validation.EARLIEST, validation.LATEST)
        & c.updated_at.between(validation.EARLIEST, validation.LATEST),
    }.items():
        table.append_constraint(CheckConstraint(condition, name=conv(f"{table.name}_{name}_check")))
    table.comment = schema_comment()


@event.listens_for(DeadJobMixin, "after_mapper_constructed", propagate=True)
def _finish_dead_job(mapper: Mapper[Any], cls: type) -> None:
    table = cast(Table, mapper.local_table)
    if mapper.inherits is None and _finish(table, "dead_job"):
        # Newest first in lists, oldest first when pruning; found by job when redriving.
        Index(conv(f"{table.name}_moved_at_idx"), table.c.moved_at)
        Index(conv(f"{table.name}_job_id_idx"), table.c.job_id)


@event.listens_for(WorkerMixin, "after_mapper_constructed", propagate=True)
def _finish_worker(mapper: Mapper[Any], cls: type) -> None:
    _finish(cast(Table, mapper.local_table), "worker")


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Models:
    """The mapped classes of one queue, with where their tables are."""

    Job: type[Any]
    DeadJob: type[Any]
    WorkerRow: type[Any]
    Base: type[DeclarativeBase]
    metadata: MetaData
    schema: str | None
    table_prefix: str

    @property
    def job(self) -> Table:
        """The table of live jobs."""
        return cast(Table, self.Job.__table__)

    @property
    def dead_job(self) -> Table:
        """The table of dead jobs."""
        return cast(Table, self.DeadJob.__table__)

    @property
    def worker(self) -> Table:
        """The table of workers."""
        return cast(Table, self.WorkerRow.__table__)


def build_models(
    target: object,
    *,
    schema: str | None = None,
    table_prefix: str = DEFAULT_PREFIX,
    models: tuple[type[Any], type[Any]] | None = None,
) -> Models:
    """Map the models over the MetaData of *target*, or complete the user's own pair.

    Raises:
        TypeError: *target* has no MetaData, or *models* are not built on the mixins.
        ValueError: The names do not fit, or this MetaData has these tables already.
    """
    if models is not None:
        return _complete(target, models, schema, table_prefix)
    metadata = _metadata_of(target)
    check_names(schema, table_prefix)
    schema = schema if schema is not None else metadata.schema
    base = _base_over(metadata)
    return _guarded(
        Models(
            Job=_map(base, "Job", JobMixin, f"{table_prefix}job", schema),
            DeadJob=_map(base, "DeadJob", DeadJobMixin, f"{table_prefix}dead_job", schema),
            WorkerRow=_map(base, "WorkerRow", WorkerMixin, f"{table_prefix}worker", schema),
            Base=base,
            metadata=metadata,
            schema=schema,
            table_prefix=table_prefix,
        )
    )


def _complete(
    target: object, models: tuple[type[Any], type[Any]], schema: str | None, table_prefix: str
) -> Models:
    job, dead_job = models
    pairs: tuple[tuple[Any, type], ...] = ((job, JobMixin), (dead_job, DeadJobMixin))
    for cls, mixin in pairs:
        if not (isinstance(cls, type) and issubclass(cls, mixin) and hasattr(cls, "__table__")):
            raise TypeError(
                f"models= takes mapped classes built on JobMixin and DeadJobMixin, in this order; "
                f"{cls!r} is not a mapped subclass of {mixin.__name__}"
            )
    table = cast(Table, job.__table__)
    prefix = table.name.removesuffix("job")
    dead_table = cast(Table, dead_job.__table__)
    if not table.name.endswith("job") or dead_table.name != f"{prefix}dead_job":
        raise ValueError(
            f"the tables are named {table.name!r} and {dead_table.name!r}; name them "
            f"'<prefix>job' and '<prefix>dead_job', so that migrations find them"
        )
    if table.schema != dead_table.schema or table.metadata is not dead_table.metadata:
        raise ValueError("Job and DeadJob must be in the same MetaData and schema")
    if schema not in (None, table.schema) or table_prefix not in (DEFAULT_PREFIX, prefix):
        raise ValueError("schema= and table_prefix= are those of the classes given as models=")
    if target is not None and _metadata_of(target) is not table.metadata:
        raise ValueError("the classes given as models= are not in the target's MetaData")
    check_names(table.schema, prefix)
    base = _base_over(table.metadata)
    worker = _map(base, "WorkerRow", WorkerMixin, f"{prefix}worker", table.schema)
    return _guarded(Models(job, dead_job, worker, base, table.metadata, table.schema, prefix))


def _guarded(models: Models) -> Models:
    """Let ``create_all()`` refuse another program's tables, which it would pass over.

    Only if it is about to create one of the queue's: whoever asks for others gets them.
    """
    ours = {models.job, models.dead_job, models.worker}

    def before_create(
        metadata: MetaData, connection: object, *, tables: Iterable[Table], **_: Any
    ) -> None:
        if not ours.isdisjoint(tables):
            refuse_create_all(connection, schema=models.schema, table_prefix=models.table_prefix)

    event.listen(models.metadata, "before_create", before_create)
    return models


def _metadata_of(target: object) -> MetaData:
    metadata = target if isinstance(target, MetaData) else getattr(target, "metadata", None)
    if not isinstance(metadata, MetaData):
        raise TypeError(
            f"BGJob() takes a declarative base, a registry, a MetaData, a Flask-SQLAlchemy db or "
            f"SQLModel; {target!r} has no MetaData"
        )
    return metadata


def _base_over(metadata: MetaData) -> type[DeclarativeBase]:
    # A registry of its own: the user's type map, base columns and dataclass rules stay outside.
    namespace = {"metadata": metadata, "registry": registry(metadata=metadata)}
    return cast(type[DeclarativeBase], type("BGJobBase", (DeclarativeBase,), namespace))


def _map(
    base: type[DeclarativeBase], name: str, mixin: type, table: str, schema: str | None
) -> type[Any]:
    namespace: dict[str, Any] = {"__tablename__": table, "__module__": __name__}
    if schema is not None:
        namespace["__table_args__"] = {"schema": schema}
    there = base.metadata.tables.get(f"{schema}.{table}" if schema else table)
    if there in _finished:
        raise ValueError(
            f"this MetaData has a table {table!r} already: call BGJob() once for each MetaData, "
            f"or give the second one its own table_prefix= or schema="
        )
    if there is not None:
        raise ValueError(
            f"this MetaData has a table {table!r} that BGJob() has not made; if it is reflected "
            f"from the database, call BGJob() before reflect(), or before prepare() of automap; "
            f"if it is a table of your own, give BGJob() a table_prefix= or schema="
        )
    return type(name, (mixin, base), namespace)


def check_names(schema: str | None, table_prefix: str) -> None:
    """Refuse names that PostgreSQL would cut short."""
    if schema is not None and not 1 <= len(schema.encode()) <= 63:
        raise ValueError(f"schema={schema!r} has {len(schema.encode())} bytes; 1 to 63 are allowed")
    if len(table_prefix.encode()) > _MAX_PREFIX_BYTES:
        raise ValueError(
            f"table_prefix={table_prefix!r} has {len(table_prefix.encode())} bytes; "
            f"{_MAX_PREFIX_BYTES} are allowed"
        )
