"""Rows of the queue's tables: many at once, claimed and settled without a worker."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import MetaData, text

from sqlalchemy_bgjob._lifecycle import claim as claims
from sqlalchemy_bgjob._lifecycle.settle import Pending
from sqlalchemy_bgjob.models import Models, build_models

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from sqlalchemy import Connection, Engine, Row
    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob._handlers.outcomes import Settlement
    from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob
    from sqlalchemy_bgjob._sql import Statements

ME, OTHER = 1001, 2002
"""Two workers."""

_FILL = text(
    """
    INSERT INTO bgjob_job (id, queue, type, priority, next_run_at)
    SELECT :prefix || lpad(CAST(n AS text), 9, '0'), :queue, 't', :priority,
           now() + make_interval(secs => :due_in) + n * interval '1 microsecond'
    FROM generate_series(1, :count) AS n
    """
)


def make_tables(engine: Engine) -> Models:
    """Create the tables in a database that has none."""
    metadata = MetaData()
    models = build_models(metadata)
    metadata.create_all(engine)
    return models


def fill(
    connection: Connection,
    count: int,
    *,
    queue: str = "q",
    priority: int = 0,
    due_in: float = -60.0,
    prefix: str = "job-",
) -> None:
    """Insert *count* jobs whose ids and times ascend together."""
    given = {
        "prefix": prefix,
        "queue": queue,
        "priority": priority,
        "due_in": due_in,
        "count": count,
    }
    connection.execute(_FILL, given)


def add(
    connection: Connection,
    id: str,
    *,
    queue: str = "q",
    priority: int = 0,
    due_in: float = -60.0,
    **columns: Any,
) -> None:
    """Insert one job."""
    values = {"id": id, "queue": queue, "type": "t", "priority": priority, **columns}
    names, given = ", ".join(values), ", ".join(f":{name}" for name in values)
    connection.execute(
        text(
            f"INSERT INTO bgjob_job ({names}, next_run_at) "
            f"VALUES ({given}, now() + make_interval(secs => :due_in))"
        ),
        {**values, "due_in": due_in},
    )


def claim(
    connection: Connection,
    statements: Statements,
    limit: int = 10,
    *,
    queue: str = "q",
    worker_id: int = ME,
) -> list[ClaimedJob]:
    """Claim as a worker does, in a transaction of its own."""
    with connection.begin():
        return claims.claim(connection, statements, queue=queue, limit=limit, worker_id=worker_id)


def pending(jobs: Iterable[ClaimedJob], settlement: Settlement) -> list[Pending]:
    """The same settlement for each job."""
    return [Pending(job, settlement) for job in jobs]


def rows(connection: Connection, table: str = "bgjob_job") -> dict[str, Row[Any]]:
    """What the table holds, by the job's id."""
    key = "id" if table == "bgjob_job" else "job_id"
    with connection.begin():
        found = connection.execute(text(f"SELECT * FROM {table} ORDER BY id")).all()
    return {row._mapping[key]: row for row in found}


def ids(jobs: Sequence[ClaimedJob]) -> list[str]:
    """The ids, in the order in which the jobs came."""
    return [job.id for job in jobs]


def query(engine: Engine, sql: str) -> list[tuple[Any, ...]]:
    """The rows that a query returns, as tuples."""
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(sql))]


def waiting(engine: Engine) -> int:
    """How many sessions of the database wait for a lock."""
    statement = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    with engine.connect() as connection:
        return int(connection.execute(text(statement)).scalar_one())


def jobs_left(engine: Engine) -> int:
    """How many jobs there are."""
    with engine.connect() as connection:
        return connection.scalar(text("SELECT count(*) FROM bgjob_job")) or 0


def is_untouched(engine: Engine) -> bool:
    """Whether the one job is as it was enqueued, and no worker has registered."""
    with engine.connect() as connection:
        job = connection.execute(text("SELECT claimed_by, attempt, unknown_since FROM bgjob_job"))
        workers = connection.scalar(text("SELECT count(*) FROM bgjob_worker"))
        return (job.all(), workers) == ([(None, 0, None)], 0)


def keep_out(target: Session | Connection, condition: str) -> None:
    """Let a trigger of the application's keep new jobs out of the table, without a word."""
    body = f"BEGIN IF {condition} THEN RETURN NULL; END IF; RETURN NEW; END"
    function = f"CREATE FUNCTION keep_out() RETURNS trigger LANGUAGE plpgsql AS $${body}$$"
    target.execute(text(function))
    made = "CREATE TRIGGER keep_out BEFORE INSERT ON bgjob_job FOR EACH ROW EXECUTE FUNCTION"
    target.execute(text(f"{made} keep_out()"))
