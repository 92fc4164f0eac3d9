"""Maps the classes over the user's MetaData, or completes the user's own pair."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, cast

from sqlalchemy import Column, Dialect, MetaData, Table, event
from sqlalchemy.dialects import postgresql
from sqlalchemy.orm import DeclarativeBase, registry

from ..schema._layouts import refuse_create_all
from ..schema._table_kinds import KINDS
from ..settings import DEFAULT_PREFIX
from ._columns import DeadJobMixin, JobMixin, WorkerMixin
from ._ddl import finished
from ._flow_columns import (
    BatchMixin,
    ControlMixin,
    ScheduleMixin,
    SeatMixin,
    UniquePeriodMixin,
)
from ._record_columns import AuditMixin, MinuteMixin, RecordMixin

_OTHERS: Final[Mapping[str, tuple[type, str]]] = {
    "WorkerRow": (WorkerMixin, "worker"),
    "Control": (ControlMixin, "control"),
    "Seat": (SeatMixin, "seat"),
    "UniquePeriod": (UniquePeriodMixin, "unique_period"),
    "Schedule": (ScheduleMixin, "schedule"),
    "Batch": (BatchMixin, "batch"),
}
_POSTGRESQL: Final[Dialect] = postgresql.dialect()  # type: ignore[no-untyped-call]
_MAX_PREFIX_BYTES = 32  # the longest name derived from it must fit in PostgreSQL's 63 bytes


@dataclass(frozen=True, slots=True, eq=False)
class Recording:
    """The classes of records, and for how long the record of a job is kept.

    Attributes:
        keep: Seconds, of handlers that do not say it themselves; None if nothing is kept of them.
    """

    Record: type[Any]
    Minute: type[Any]
    Audit: type[Any]
    keep: float | None

    @property
    def record(self) -> Table:
        """The table of records."""
        return cast(Table, self.Record.__table__)

    @property
    def minute(self) -> Table:
        """The table of counts."""
        return cast(Table, self.Minute.__table__)

    @property
    def audit(self) -> Table:
        """The table of what was done by the dashboard and the command line."""
        return cast(Table, self.Audit.__table__)

    @property
    def tables(self) -> tuple[Table, ...]:
        """All of them."""
        return self.record, self.minute, self.audit


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class Models:
    """The mapped classes of one set of tables, and where these are.

    Attributes:
        recording: Those that are there only if they are asked for.
    """

    Job: type[Any]
    DeadJob: type[Any]
    WorkerRow: type[Any]
    Control: type[Any]
    Seat: type[Any]
    UniquePeriod: type[Any]
    Schedule: type[Any]
    Batch: type[Any]
    Base: type[DeclarativeBase]
    metadata: MetaData
    schema: str | None
    table_prefix: str
    recording: Recording | None

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

    @property
    def control(self) -> Table:
        """The table of what operators have set."""
        return cast(Table, self.Control.__table__)

    @property
    def seat(self) -> Table:
        """The table of seats."""
        return cast(Table, self.Seat.__table__)

    @property
    def unique_period(self) -> Table:
        """The table of unique keys that outlive their jobs."""
        return cast(Table, self.UniquePeriod.__table__)

    @property
    def schedule(self) -> Table:
        """The table of schedules."""
        return cast(Table, self.Schedule.__table__)

    @property
    def batch(self) -> Table:
        """The table of batches."""
        return cast(Table, self.Batch.__table__)

    @property
    def tables(self) -> tuple[Table, ...]:
        """All of them, in the order of :data:`KINDS`; those of records come last."""
        extra = () if self.recording is None else self.recording.tables
        return (*(getattr(self, kind) for kind in KINDS), *extra)


def build_models(
    target: object,
    *,
    schema: str | None = None,
    table_prefix: str = DEFAULT_PREFIX,
    models: tuple[type[Any], type[Any]] | None = None,
    records: bool = False,
    record_all: float | None = None,
) -> Models:
    """Map the models over the MetaData of *target*, or complete the user's own pair.

    With *records* there are tables of records; *record_all* is the seconds for which they keep the
    jobs of all handlers.

    Raises:
        TypeError: *target* has no MetaData, or *models* are not built on the mixins.
        ValueError: The names do not fit, this MetaData has these tables already, or *models*
            override a column of the mixins.
    """
    if models is not None:
        made = _complete(target, models, schema, table_prefix)
    else:
        made = _made(target, schema, table_prefix)
    return _guarded(replace(made, recording=_recording(made, record_all)) if records else made)


def _made(target: object, schema: str | None, table_prefix: str) -> Models:
    metadata = _metadata_of(target)
    check_names(schema, table_prefix)
    schema = schema if schema is not None else metadata.schema
    base = _base_over(metadata)
    job = _map(base, "Job", JobMixin, f"{table_prefix}job", schema)
    dead_job = _map(base, "DeadJob", DeadJobMixin, f"{table_prefix}dead_job", schema)
    return _with_others(base, job, dead_job, schema, table_prefix)


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
        raise ValueError(
            "Job and DeadJob must be in the same MetaData and schema; build both on one base"
        )
    if schema not in (None, table.schema) or table_prefix not in (DEFAULT_PREFIX, prefix):
        raise ValueError(
            "schema= and table_prefix= are those of the classes given as models=; leave them out"
        )
    if target is not None and _metadata_of(target) is not table.metadata:
        raise ValueError(
            "the classes given as models= are not in the target's MetaData; leave the target out"
        )
    check_names(table.schema, prefix)
    _check_columns(job, dead_job)
    base = _base_over(table.metadata)
    return _with_others(base, job, dead_job, table.schema, prefix)


def _check_columns(job: type[Any], dead_job: type[Any]) -> None:
    """Refuse classes that have one of our columns in a way of their own."""
    base = _base_over(MetaData())
    for cls, mixin in ((job, JobMixin), (dead_job, DeadJobMixin)):
        for column in _map(base, mixin.__name__, mixin, cls.__tablename__, None).__table__.c:
            found = cls.__table__.c.get(column.name)
            if found is None or _ddl_of(found) != _ddl_of(column):
                has = "lacks" if found is None else "overrides"
                raise ValueError(
                    f"{cls.__name__} {has} the column {column.name!r}, which is the library's: "
                    f"{_ddl_of(column)}; take your {column.name!r} out of the class, and give a "
                    f"column of your own another name"
                )


def _ddl_of(column: Column[Any]) -> str:
    """A column's type, and what else an INSERT relies on."""
    words = [column.type.compile(_POSTGRESQL)]
    words += [] if column.nullable else ["NOT NULL"]
    words += [] if column.server_default is None else ["with a default"]
    return " ".join(words)


def _with_others(
    base: type[DeclarativeBase],
    job: type[Any],
    dead_job: type[Any],
    schema: str | None,
    prefix: str,
) -> Models:
    """Map the tables beside those of jobs."""
    others = {
        name: _map(base, name, mixin, f"{prefix}{kind}", schema)
        for name, (mixin, kind) in _OTHERS.items()
    }
    return Models(
        Job=job,
        DeadJob=dead_job,
        **others,
        Base=base,
        metadata=base.metadata,
        schema=schema,
        table_prefix=prefix,
        recording=None,
    )


def _recording(models: Models, keep: float | None) -> Recording:
    """Map the tables of records beside the others."""

    def mapped(name: str, mixin: type, kind: str) -> type[Any]:
        return _map(models.Base, name, mixin, f"{models.table_prefix}{kind}", models.schema)

    return Recording(
        mapped("Record", RecordMixin, "record"),
        mapped("Minute", MinuteMixin, "minute"),
        mapped("Audit", AuditMixin, "audit"),
        keep,
    )


def _guarded(models: Models) -> Models:
    """Let ``create_all()`` refuse another program's tables, which it would take for ours.

    Checked only if the call is about to create one of the queue's tables.
    """
    ours = set(models.tables)

    def before_create(
        metadata: MetaData, connection: object, *, tables: Iterable[Table], **_: Any
    ) -> None:
        if not ours.isdisjoint(tables):
            refuse_create_all(
                connection,
                schema=models.schema,
                table_prefix=models.table_prefix,
                records=models.recording is not None,
            )

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
    namespace: dict[str, Any] = {"__tablename__": table, "__module__": __package__}
    if schema is not None:
        namespace["__table_args__"] = {"schema": schema}
    there = base.metadata.tables.get(f"{schema}.{table}" if schema else table)
    if there in finished:
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
    """Refuse names that PostgreSQL would truncate."""
    if schema is not None and not 1 <= len(schema.encode()) <= 63:
        raise ValueError(f"schema={schema!r} has {len(schema.encode())} bytes; 1 to 63 are allowed")
    if len(table_prefix.encode()) > _MAX_PREFIX_BYTES:
        raise ValueError(
            f"table_prefix={table_prefix!r} has {len(table_prefix.encode())} bytes; "
            f"{_MAX_PREFIX_BYTES} are allowed"
        )
