"""Records: how jobs have ended, what their handlers left, and how far those that run have come."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final, Literal, get_args

from sqlalchemy import Connection, Row

from .._drafts.batch import FOLLOWER
from .registered import ask

State = Literal["live", "completed", "dead", "cancelled", "expired"]
STATES: Final[tuple[State, ...]] = get_args(State)


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a handler has come, as it has said by ``ctx.progress``.

    Attributes:
        done: How much is done, in the handler's own unit.
        of: How much there is, in the same unit; None if the handler does not say.
        note: The handler's words about it; None without any.
    """

    done: float
    of: float | None = None
    note: str | None = None

    @property
    def share(self) -> float | None:
        """The part that is done, from 0 to 1; None if *of* is None or 0."""
        return None if not self.of else min(max(self.done / self.of, 0.0), 1.0)


@dataclass(frozen=True, slots=True)
class JobRecord:
    """What is kept of a job: plain data, as it was when it was read. All times are the database's.

    If the job was redriven, or enqueued again under its id, it is live, and nothing is told of the
    end before.

    Attributes:
        id: The job's.
        queue: The job's.
        type: The job's.
        state: ``live`` until the job has ended; then ``completed``, ``dead``, ``cancelled`` or
            ``expired``.
        attempt: Which attempt wrote it, from 1.
        progress: What the handler last said by ``ctx.progress``; None if it has not.
        result: What the handler gave to ``Complete(result=...)``, as its annotation says.
        error: Why the job is dead; None of one that is not.
        enqueued_at: When it was enqueued.
        due_at: When its last attempt was due, or is due.
        started_at: When that attempt began; None if it never did.
        ended_at: When the job ended; None while it is live.
        keep_until: When workers may delete the record.
    """

    id: str
    queue: str
    type: str
    state: State
    attempt: int
    progress: Progress | None
    result: Any
    error: str | None
    enqueued_at: datetime
    due_at: datetime
    started_at: datetime | None
    ended_at: datetime | None
    keep_until: datetime


@dataclass(frozen=True, slots=True)
class Found:
    """A record whose result is still encoded, and whether the job itself is there."""

    record: JobRecord | None
    is_live: bool
    result: bytes | None = None
    content_type: str | None = None


def find(
    connection: Connection,
    schema: str | None,
    table_prefix: str,
    id: str,
    *,
    with_result: bool = True,
) -> Found:
    """The record of a job, and whether it is in the table of jobs. The caller ends the transaction.

    Without its result it may be asked by the role of a dashboard.

    A job that was redriven, or enqueued anew under its id, has a record of its earlier life: it is
    told as a live one of which nothing is known yet. The job that follows a batch is live before it
    has a row: as soon as the batch is there.
    """
    statement = _FIND_ALL if with_result else _FIND
    if id.endswith(FOLLOWER):
        statement = statement.replace(_IS_THERE, _IS_THERE_OR_FOLLOWS)
    (row,) = ask(connection, statement, schema, table_prefix, id=id)
    if row.job_id is None:
        return Found(None, row.is_live)
    if not (row.is_live and row.state != "live"):
        if not with_result:
            return Found(_record(row), row.is_live)
        result = None if row.result is None else bytes(row.result)  # psycopg2 gives a view of it
        return Found(_record(row), row.is_live, result, row.result_content_type)
    nothing = dict.fromkeys(("progress", "error", "started_at", "ended_at"))
    return Found(_record(row, state="live", **nothing), is_live=True)


def page(
    connection: Connection,
    schema: str | None,
    table_prefix: str,
    *,
    limit: int,
    after: tuple[datetime, str] | None = None,
    queue: str | None = None,
    type: str | None = None,
    state: State | None = None,
) -> list[JobRecord]:
    """Records, those that ended last first, and live ones before them; without their results.

    Each type is read by itself in the order of the index, so a page takes as long as there are
    types, and not as there are records. A filter by queue or state passes over the others.

    Args:
        connection: The caller ends its transaction.
        schema: The tables' schema; None if they are on the search path.
        table_prefix: How the tables' names begin.
        limit: The most.
        after: ``ended_at`` and ``id`` of the last one of the page before.
        queue, type, state: Of which alone.
    """
    ended_at, id = after or (None, None)
    given: dict[str, Any] = {"queue": queue, "type": type, "state": state, "limit": limit}
    rows = ask(connection, _PAGE, schema, table_prefix, ended_at=ended_at, id=id, **given)
    return [_record(row) for row in rows]


def _record(row: Row[Any], **instead: Any) -> JobRecord:
    said = row.progress if isinstance(row.progress, dict) else None
    values: dict[str, Any] = {
        "id": row.job_id,
        "queue": row.queue,
        "type": row.type,
        "state": row.state,
        "attempt": row.attempt,
        "progress": said and Progress(said.get("done", 0), said.get("of"), said.get("note")),
        "result": None,
        "error": row.error,
        "enqueued_at": row.enqueued_at,
        "due_at": row.due_at,
        "started_at": row.started_at,
        "ended_at": row.ended_at,
        "keep_until": row.keep_until,
    }
    return JobRecord(**{**values, **instead})


_COLUMNS: Final = (
    "job_id, queue, type, state, attempt, progress, error, enqueued_at, due_at, started_at, "
    "ended_at, keep_until"
)
_IS_THERE: Final = "EXISTS (SELECT FROM ONLY {job} AS job WHERE job.id = asked.id)"
_IS_THERE_OR_FOLLOWS: Final = f"""({_IS_THERE} OR EXISTS (
      SELECT FROM ONLY {{batch}} AS batch WHERE batch.id = left(asked.id, -{len(FOLLOWER)})
      AND batch.finished_at IS NULL AND batch.then_type IS NOT NULL))"""
_FIND: Final = f"""
    SELECT {_IS_THERE} AS is_live, {_COLUMNS}
    FROM (SELECT CAST(:id AS text) AS id) AS asked
    LEFT JOIN ONLY {{record}} AS record ON record.job_id = asked.id
"""  # noqa: S608 - no value is in it
_FIND_ALL: Final = _FIND.replace(_COLUMNS, f"{_COLUMNS}, result, result_content_type")
_PAGE: Final = f"""
    WITH RECURSIVE types AS (
      (SELECT type FROM ONLY {{record}}
       WHERE CAST(:type AS text) IS NULL OR type = CAST(:type AS text)
       ORDER BY type LIMIT 1)
      UNION ALL
      SELECT (SELECT min(next.type) FROM ONLY {{record}} AS next
              WHERE next.type > types.type AND CAST(:type AS text) IS NULL)
      FROM types WHERE types.type IS NOT NULL
    )
    SELECT found.* FROM types, LATERAL (
      SELECT {_COLUMNS} FROM ONLY {{record}} AS one
      WHERE one.type = types.type
        AND (CAST(:queue AS text) IS NULL OR one.queue = CAST(:queue AS text))
        AND (CAST(:state AS text) IS NULL OR one.state = CAST(:state AS text))
        AND (CAST(:ended_at AS timestamptz) IS NULL
             OR one.ended_at <= CAST(:ended_at AS timestamptz)
             AND (one.ended_at, one.job_id) < (CAST(:ended_at AS timestamptz), CAST(:id AS text)))
      ORDER BY one.ended_at DESC, one.job_id DESC LIMIT :limit
    ) AS found
    ORDER BY found.ended_at DESC, found.job_id DESC LIMIT :limit
"""  # noqa: S608 - no value is in it
