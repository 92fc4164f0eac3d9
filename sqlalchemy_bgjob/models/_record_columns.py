"""The columns of the tables of records: how jobs have ended, counts of each minute, and the audit.

A BGJob has them only if it is asked to.
"""

import json
from datetime import datetime
from typing import Any

from sqlalchemy import (
    ARRAY,
    JSON,
    BigInteger,
    ColumnElement,
    Float,
    Integer,
    LargeBinary,
    case,
    func,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import Mapped, mapped_column
from sqlalchemy.types import TypeEngine

from ._columns import json_column, moment, text

# A variant: SQLite has no arrays.
_buckets: TypeEngine[Any] = JSON().with_variant(ARRAY(BigInteger), "postgresql")


class RecordMixin:
    """What is kept of a job after its row is gone: how it ended, and what its handler left.

    ``state`` is ``live`` from the first progress until the job has ended; then it is ``completed``,
    ``dead``, ``cancelled`` or ``expired``. If the job is redriven, its record stays as it is until
    the job reports progress or ends again; ``jobs.record`` knows of that.
    """

    job_id: Mapped[str] = mapped_column(text, primary_key=True)
    queue: Mapped[str] = mapped_column(text, nullable=False)
    type: Mapped[str] = mapped_column(text, nullable=False)
    state: Mapped[str] = mapped_column(text, nullable=False)
    attempt: Mapped[int] = mapped_column(Integer, nullable=False)
    # Of the claim that wrote it: what an earlier claim has to say comes too late.
    lease: Mapped[int] = mapped_column(BigInteger, nullable=False)
    # The worker that held the job; null of one that was cancelled while it waited.
    worker: Mapped[int | None] = mapped_column(BigInteger)
    # An object with how much is done, of how much, and a note.
    progress: Mapped[dict[str, Any] | None] = mapped_column(json_column)
    result: Mapped[bytes | None] = mapped_column(LargeBinary)
    # Null is JSON.
    result_content_type: Mapped[str | None] = mapped_column(text)
    error: Mapped[str | None] = mapped_column(text)
    enqueued_at: Mapped[datetime] = mapped_column(moment, nullable=False)
    due_at: Mapped[datetime] = mapped_column(moment, nullable=False)
    # When its last attempt began; null of a job that never started.
    started_at: Mapped[datetime | None] = mapped_column(moment)
    ended_at: Mapped[datetime | None] = mapped_column(moment)
    keep_until: Mapped[datetime] = mapped_column(moment, nullable=False)

    @hybrid_property
    def result_json(self) -> Any:
        """The result as plain JSON values; None when it is absent or is not JSON."""
        if self.result is None or self.result_content_type is not None:
            return None
        return json.loads(self.result)

    @result_json.inplace.expression
    @classmethod
    def _result_json_sql(cls) -> ColumnElement[Any]:
        # A CASE, since bytes would fail the conversion and with it the user's whole query.
        is_json = cls.result_content_type.is_(None)
        return case((is_json, func.convert_from(cls.result, "UTF8").cast(JSONB)))

    def __repr__(self) -> str:
        return f"<Record of {self.job_id} {self.type!r} in {self.queue!r}, {self.state}>"


class MinuteMixin:
    """What one worker has counted in a minute: ended runs of one queue, type and outcome.

    Its worker inserts the row, and nobody changes it. ``waits`` and ``runs`` count by duration:
    place *k*, from 1, counts those below ``64 * 2 ** (k - 1)`` microseconds that no earlier place
    counts. ``waits`` is from when a job was due until it was claimed, ``runs`` how long its handler
    took.
    """

    # The minute in which the counts were written, which is when it is over or a little later.
    at: Mapped[datetime] = mapped_column(moment, primary_key=True)
    worker: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    queue: Mapped[str] = mapped_column(text, primary_key=True)
    type: Mapped[str] = mapped_column(text, primary_key=True)
    # completed, retry, rescheduled, dead, cancelled or expired
    outcome: Mapped[str] = mapped_column(text, primary_key=True)
    n: Mapped[int] = mapped_column(BigInteger, nullable=False)
    waits: Mapped[list[int]] = mapped_column(_buckets, nullable=False)
    runs: Mapped[list[int]] = mapped_column(_buckets, nullable=False)
    # Seconds of all of them together.
    waited: Mapped[float] = mapped_column(Float(53), nullable=False)
    ran: Mapped[float] = mapped_column(Float(53), nullable=False)


class AuditMixin:
    """What somebody has done by the dashboard or the command line, and committed with its effect.

    Rows are inserted, and deleted when they are old. Nobody changes them.
    """

    # The server's clock, at the begin of the transaction.
    at: Mapped[datetime] = mapped_column(moment, primary_key=True, server_default=func.now())
    id: Mapped[str] = mapped_column(text, primary_key=True)
    # As access= of the dashboard names the visitor, or user@host; null if it names nobody.
    who: Mapped[str | None] = mapped_column(text)
    # dashboard or command line
    origin: Mapped[str] = mapped_column(text, nullable=False)
    verb: Mapped[str] = mapped_column(text, nullable=False)
    # How many rows: jobs, dead jobs, or the one of a queue or schedule.
    changed: Mapped[int] = mapped_column(BigInteger, nullable=False)
    # On what: an object with ids, a search, a queue, and the like. No value of an arg is in it.
    details: Mapped[dict[str, Any]] = mapped_column(json_column, nullable=False)
    # The arg and headers that were given, without secrets.
    given: Mapped[dict[str, Any] | None] = mapped_column(json_column)
