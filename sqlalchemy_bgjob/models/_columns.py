"""The columns of each table, as mixins, and what is checked when they are assigned."""

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, cast

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Float,
    Integer,
    LargeBinary,
    SmallInteger,
    Text,
    case,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    Mapped,
    MappedAsDataclass,
    declared_attr,
    has_inherited_table,
    mapped_column,
    validates,
)
from sqlalchemy.types import TypeEngine

from .._drafts import validation
from .._drafts.ids import new_id
from ..settings import DEFAULT_PREFIX
from ._args import ArgAndHeaders, is_sql
from ._errors import ErrorHistory
from ._lease import lease_at_insert

if TYPE_CHECKING:
    from collections.abc import Mapping

text = Text()
moment = DateTime(timezone=True)
# A variant rather than plain JSONB: SQLite has no such type. None is SQL NULL, not JSON null.
json_column: TypeEngine[Any] = JSON(none_as_null=True).with_variant(
    JSONB(none_as_null=True), "postgresql"
)


class _Columns(ArgAndHeaders, ErrorHistory):
    """Columns that live and dead jobs share."""

    def __init_subclass__(cls, **options: Any) -> None:
        # A dataclass constructor demands every column, even those with server defaults.
        if issubclass(cls, MappedAsDataclass):
            raise TypeError(
                f"{cls.__name__} can't be a dataclass; build it on a base of its own over the same "
                f"MetaData: class JobBase(DeclarativeBase): metadata = Base.metadata"
            )
        super().__init_subclass__(**options)

    queue: Mapped[str] = mapped_column(text, nullable=False, sort_order=-89)
    type: Mapped[str] = mapped_column(text, nullable=False, sort_order=-88)
    arg: Mapped[bytes | None] = mapped_column(LargeBinary, sort_order=-87)
    priority: Mapped[int] = mapped_column(
        SmallInteger, nullable=False, server_default="0", sort_order=-86
    )
    attempt: Mapped[int] = mapped_column(
        Integer, nullable=False, server_default="0", sort_order=-85
    )
    # How often a worker was lost while it held the job.
    crashes: Mapped[int] = mapped_column(
        Integer, nullable=False, server_default="0", sort_order=-84
    )
    last_error: Mapped[str | None] = mapped_column(text, sort_order=-81)
    headers: Mapped[dict[str, Any] | None] = mapped_column(json_column, sort_order=-80)
    # No two live jobs have the same one.
    unique_key: Mapped[str | None] = mapped_column(text, sort_order=-75)
    # Jobs of one group share its seats, in the order of their turns: a clock's microseconds.
    group_key: Mapped[str | None] = mapped_column(text, sort_order=-74)
    turn: Mapped[int | None] = mapped_column(BigInteger, sort_order=-73)
    batch_id: Mapped[str | None] = mapped_column(text, sort_order=-71)
    # What went wrong in earlier attempts, oldest first.
    errors: Mapped[list[dict[str, Any]] | None] = mapped_column(json_column, sort_order=-68)

    @hybrid_property
    def arg_json(self) -> Any:
        """The arg as plain JSON values; None when it is absent or is not JSON."""
        content_type = validation.stored_headers(self.headers).get(validation.CONTENT_TYPE)
        if self.arg is None or content_type:
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


class JobMixin(_Columns):
    """The columns of a live job. For columns of your own write ``class Job(JobMixin, Base)``.

    A row is *queued* while ``claimed_by`` is null, and *running* while a worker holds it.
    ``arg`` may be assigned any JSON value or bytes: it is encoded on assignment.

    A column of your own is nullable or has a default. A default that is a Python function is called
    once for each statement of ``enqueue_many`` and ``enqueue_from``, not for each row: use
    ``server_default`` for values that must differ.
    """

    @declared_attr.directive
    def __tablename__(cls) -> str | None:
        # A subclass of a concrete model shares its table.
        return None if has_inherited_table(cast(Any, cls)) else f"{DEFAULT_PREFIX}job"

    # A client-side default only: with a server default beside it SQLAlchemy would send one INSERT
    # a row, see tests/database/test_models.py.
    id: Mapped[str] = mapped_column(text, primary_key=True, default=new_id, sort_order=-90)
    # The number of the claim; it grows with every claim, rescue, hand-back and redrive, and when a
    # queued job is edited.
    lease: Mapped[int] = mapped_column(
        BigInteger, nullable=False, server_default=lease_at_insert(), sort_order=-83
    )
    claimed_by: Mapped[int | None] = mapped_column(BigInteger, sort_order=-82)
    next_run_at: Mapped[datetime] = mapped_column(
        moment, nullable=False, server_default=func.now(), sort_order=-79
    )
    created_at: Mapped[datetime] = mapped_column(
        moment, nullable=False, server_default=func.now(), sort_order=-78
    )
    updated_at: Mapped[datetime] = mapped_column(
        moment, nullable=False, server_default=func.now(), sort_order=-77
    )
    # When a worker first met the job without knowing its type.
    unknown_since: Mapped[datetime | None] = mapped_column(moment, sort_order=-76)
    # True while the job has no seat of its group; it is not due meanwhile.
    waits: Mapped[bool | None] = mapped_column(Boolean, sort_order=-72)
    # Set when somebody asks for the end of a running job.
    cancel_at: Mapped[datetime | None] = mapped_column(moment, sort_order=-70)
    # A job that has not started by then is never started.
    expires_at: Mapped[datetime | None] = mapped_column(moment, sort_order=-69)

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
        return value if is_sql(value) else validation.job_id(value)

    @validates("queue", "type")
    def _check_name(self, key: str, value: object) -> object:
        return value if is_sql(value) else validation.name(key, value)

    @validates("priority")
    def _check_priority(self, key: str, value: object) -> object:
        return value if is_sql(value) else validation.priority(value)

    @validates("next_run_at")
    def _check_next_run_at(self, key: str, value: object) -> object:
        return value if is_sql(value) else validation.moment(key, value)

    @validates("expires_at")
    def _check_expires_at(self, key: str, value: object) -> object:
        return value if value is None or is_sql(value) else validation.moment(key, value)

    @hybrid_property
    def state(self) -> str:
        """``scheduled``, ``queued`` (due) or ``running``; in SQL by the database's clock.

        In Python it is by this machine's clock.
        """
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
    """The columns of a dead job: what the live row held, and when it was moved to the DLQ.

    The lease is kept, so that it never shrinks when the job is redriven.
    """

    @declared_attr.directive
    def __tablename__(cls) -> str | None:
        return None if has_inherited_table(cast(Any, cls)) else f"{DEFAULT_PREFIX}dead_job"

    # An id of its own: the same job id may die more than once.
    id: Mapped[str] = mapped_column(text, primary_key=True, default=new_id, sort_order=-91)
    job_id: Mapped[str] = mapped_column(text, nullable=False, sort_order=-90)
    lease: Mapped[int] = mapped_column(BigInteger, nullable=False, sort_order=-83)
    next_run_at: Mapped[datetime] = mapped_column(moment, nullable=False, sort_order=-79)
    job_created_at: Mapped[datetime] = mapped_column(moment, nullable=False, sort_order=-78)
    job_updated_at: Mapped[datetime] = mapped_column(moment, nullable=False, sort_order=-77)
    moved_at: Mapped[datetime] = mapped_column(
        moment, nullable=False, server_default=func.now(), sort_order=-76
    )

    def __repr__(self) -> str:
        return f"<DeadJob {self.job_id} {self.type!r} in {self.queue!r}, attempt {self.attempt}>"


class WorkerMixin:
    """One row for each worker that lives, or whose jobs are still being given back."""

    # Chosen by the worker, at random: it knows its id even if the answer to its INSERT is lost.
    id: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    hostname: Mapped[str] = mapped_column(text, nullable=False)
    pid: Mapped[int] = mapped_column(Integer, nullable=False)
    version: Mapped[str] = mapped_column(text, nullable=False)
    queues: Mapped[Any] = mapped_column(json_column, nullable=False)
    # The queues that the worker found empty: an enqueue there wakes it by NOTIFY.
    waits_for: Mapped[Any] = mapped_column(json_column, nullable=False, server_default="[]")
    # Seconds; a worker is judged by its own setting, not by the judge's.
    lease_timeout: Mapped[float] = mapped_column(Float(53), nullable=False)
    started_at: Mapped[datetime] = mapped_column(moment, nullable=False, server_default=func.now())
    beat_at: Mapped[datetime] = mapped_column(moment, nullable=False, server_default=func.now())
    # Set when the worker is judged lost; the row is deleted once all its jobs are given back.
    lost_at: Mapped[datetime | None] = mapped_column(moment)
    # The server session that listens for this worker: PostgreSQL ends it when the process dies.
    listener_pid: Mapped[int | None] = mapped_column(Integer)
    listener_started_at: Mapped[datetime | None] = mapped_column(moment)
