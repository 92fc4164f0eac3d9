"""The columns of the tables beside jobs: control, seats, unique periods, schedules and batches.

A row is there only while its feature is used.
"""

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    LargeBinary,
    SmallInteger,
    and_,
    func,
    or_,
)
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column

from ._columns import json_column, moment, text


class ControlMixin:
    """What operators have set for one queue, or for one group of it.

    ``key`` is the group's, and empty for the queue itself.
    """

    queue: Mapped[str] = mapped_column(text, primary_key=True)
    key: Mapped[str] = mapped_column(text, primary_key=True, server_default="")
    paused_at: Mapped[datetime | None] = mapped_column(moment)
    paused_by: Mapped[str | None] = mapped_column(text)
    pause_reason: Mapped[str | None] = mapped_column(text)
    # When the pause ends by itself.
    resume_at: Mapped[datetime | None] = mapped_column(moment)
    # Of all workers together.
    max_running: Mapped[int | None] = mapped_column(Integer)
    # Of each worker.
    slots: Mapped[int | None] = mapped_column(Integer)
    # At most rate starts in each rate_per seconds.
    rate: Mapped[float | None] = mapped_column(Float(53))
    rate_per: Mapped[float | None] = mapped_column(Float(53))
    updated_at: Mapped[datetime] = mapped_column(moment, nullable=False, server_default=func.now())

    @hybrid_property
    def is_paused(self) -> bool:
        """Whether a pause has begun and is not over; in Python by this machine's clock."""
        lasts = self.resume_at is None or self.resume_at > datetime.now(UTC)
        return self.paused_at is not None and lasts

    @is_paused.inplace.expression
    @classmethod
    def _is_paused_sql(cls) -> ColumnElement[bool]:
        lasts = or_(cls.resume_at.is_(None), cls.resume_at > func.clock_timestamp())
        return and_(cls.paused_at.is_not(None), lasts)


class SeatMixin:
    """Seat *n* of a group: the right to run one of its jobs.

    It is taken only while its job runs under that lease, so nobody has to give it back.
    """

    queue: Mapped[str] = mapped_column(text, primary_key=True)
    key: Mapped[str] = mapped_column(text, primary_key=True)
    n: Mapped[int] = mapped_column(Integer, primary_key=True, autoincrement=False)
    job_id: Mapped[str | None] = mapped_column(text)
    lease: Mapped[int | None] = mapped_column(BigInteger)
    # Of a rate: when the next start is due.
    until: Mapped[datetime | None] = mapped_column(moment)


class UniquePeriodMixin:
    """A unique key that outlives its job, until its period is over."""

    key: Mapped[str] = mapped_column(text, primary_key=True)
    job_id: Mapped[str] = mapped_column(text, nullable=False)
    until: Mapped[datetime] = mapped_column(moment, nullable=False)


class ScheduleMixin:
    """What enqueues a job again and again: its type and arg, and when it fires next."""

    name: Mapped[str] = mapped_column(text, primary_key=True)
    # 'code' or 'data': who may change it.
    source: Mapped[str] = mapped_column(text, nullable=False)
    type: Mapped[str] = mapped_column(text, nullable=False)
    queue: Mapped[str] = mapped_column(text, nullable=False)
    priority: Mapped[int] = mapped_column(SmallInteger, nullable=False, server_default="0")
    arg: Mapped[bytes | None] = mapped_column(LargeBinary)
    headers: Mapped[dict[str, Any] | None] = mapped_column(json_column)
    cron: Mapped[str] = mapped_column(text, nullable=False)
    timezone: Mapped[str] = mapped_column(text, nullable=False, server_default="UTC")
    # What becomes of missed fire times: 'one', 'none' or 'all'.
    missed: Mapped[str] = mapped_column(text, nullable=False, server_default="one")
    # Whether a fire time is left out while the job of an earlier one is queued: 'skip' or 'allow'.
    overlap: Mapped[str] = mapped_column(text, nullable=False, server_default="skip")
    next_at: Mapped[datetime | None] = mapped_column(moment)
    last_at: Mapped[datetime | None] = mapped_column(moment)
    paused_at: Mapped[datetime | None] = mapped_column(moment)
    paused_by: Mapped[str | None] = mapped_column(text)
    pause_reason: Mapped[str | None] = mapped_column(text)
    created_at: Mapped[datetime] = mapped_column(moment, nullable=False, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(moment, nullable=False, server_default=func.now())
    # The last fire times that have passed unmet: from the one, or all, until before the other.
    missed_from: Mapped[datetime | None] = mapped_column(moment)
    missed_until: Mapped[datetime | None] = mapped_column(moment)


class BatchMixin:
    """Jobs that belong together, and what is enqueued when the last of them has ended."""

    id: Mapped[str] = mapped_column(text, primary_key=True)
    total: Mapped[int] = mapped_column(Integer, nullable=False, server_default="0")
    created_at: Mapped[datetime] = mapped_column(moment, nullable=False, server_default=func.now())
    # When its last job was added.
    closed_at: Mapped[datetime | None] = mapped_column(moment)
    finished_at: Mapped[datetime | None] = mapped_column(moment)
    then_type: Mapped[str | None] = mapped_column(text)
    then_queue: Mapped[str | None] = mapped_column(text)
    then_arg: Mapped[bytes | None] = mapped_column(LargeBinary)
    then_headers: Mapped[dict[str, Any] | None] = mapped_column(json_column)
    # 'continue' or 'stop': whether a dead job keeps the batch from finishing.
    on_dead: Mapped[str] = mapped_column(text, nullable=False, server_default="continue")
