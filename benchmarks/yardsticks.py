"""The yardsticks of the benchmark: the same work by hand, and the statements alone."""

import time
from typing import Any, Final

import psycopg
from sqlalchemy import Connection, Executable, delete, func, insert, select
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.orm import Session

from benchmarks.jobs import App
from sqlalchemy_bgjob._bench.jobs import QUEUE, Answer
from sqlalchemy_bgjob._drafts.ids import new_worker_id
from sqlalchemy_bgjob._drafts.validation import EARLIEST
from sqlalchemy_bgjob._lifecycle import claim as claiming
from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob
from sqlalchemy_bgjob._sql.words import parameters

RAW_BATCH: Final = 200
CLAIM_BATCH: Final = 100


def by_hand(app: App) -> Answer:
    """What a handler with ``ctx.session`` costs when it is written by hand.

    Jobs are claimed in batches, which is not measured; then for each a Session, the INSERT of its
    row, the DELETE of the job that names the lease, and the COMMIT.
    """
    worker_id = new_worker_id()
    done, seconds = 0, 0.0
    with app.engine(2) as engine, engine.connect() as claims:
        while batch := _claimed(app, claims, worker_id):
            began = time.monotonic()
            for job in batch:
                with Session(engine) as session, session.begin():
                    session.execute(insert(app.effect), {"job_id": job.id})
                    session.execute(_fenced(app, job, worker_id))
            seconds += time.monotonic() - began
            done += len(batch)
    return {"jobs": done, "seconds": seconds}


def _claimed(app: App, connection: Connection, worker_id: int) -> list[ClaimedJob]:
    with connection.begin():
        return claiming.claim(
            connection, app.statements, queue=QUEUE, limit=CLAIM_BATCH, worker_id=worker_id
        )


def _fenced(app: App, job: ClaimedJob, worker_id: int) -> Executable:
    c = app.job.c
    return delete(app.job).where(c.id == job.id, c.lease == job.lease, c.claimed_by == worker_id)


def raw(app: App) -> Answer:
    """The limit of the design: its statements on the bare driver, without worker or handlers."""
    worker_id = new_worker_id()
    claim, claim_values = compiled(app.statements.claim.onward)
    complete, complete_values = compiled(app.statements.settle.complete)
    dsn = app.url.set(drivername="postgresql").render_as_string(hide_password=False)
    done, at, last_id = 0, EARLIEST, ""
    with psycopg.connect(dsn) as connection:
        connection.execute("SELECT 1")
        connection.commit()
        began = time.monotonic()
        while True:
            given = parameters(
                queue=QUEUE,
                limit=RAW_BATCH,
                worker=worker_id,
                priority=[0],
                at=[at],
                id=[last_id],
            )
            rows = connection.execute(claim, {**claim_values, **given}).fetchall()
            connection.commit()
            if not rows:
                break
            # Columns as the claim returns them: 0 is the id, 6 the lease, 9 next_run_at.
            at, last_id = max((row[9], row[0]) for row in rows)
            rows.sort(key=lambda row: str(row[0]))
            given = parameters(
                queue=QUEUE,
                worker=worker_id,
                ids=[row[0] for row in rows],
                leases=[row[6] for row in rows],
            )
            connection.execute(complete, {**complete_values, **given}).fetchall()
            connection.commit()
            done += len(rows)
        ended = time.monotonic()
    return {"jobs": done - remaining(app)["remaining"], "seconds": ended - began}


def remaining(app: App) -> Answer:
    """How many jobs are not done."""
    with app.engine() as engine, engine.connect() as connection:
        query = select(func.count()).select_from(app.job)
        return {"remaining": connection.execute(query).scalar_one()}


def compiled(statement: Executable) -> tuple[Any, dict[str, Any]]:
    """A statement as the driver takes it, and the values that it brings along."""
    make: Any = PGDialect_psycopg
    compiled: Any = statement.compile(dialect=make())  # type: ignore[attr-defined]
    return str(compiled), dict(compiled.params)


def poll(app: App) -> Answer:
    """The pages that each statement of a poll reads, by the server's own count."""
    statements = app.statements
    found: dict[str, int] = {}
    with (
        app.engine() as engine,
        engine.connect() as connection,
        connection.begin() as transaction,
    ):
        given = parameters(queue=QUEUE)
        priorities = connection.execute(statements.claim.lanes, given).scalars().all()
        lanes = {
            "priority": list(priorities),
            "at": [None] * len(priorities),
            "id": [""] * len(priorities),
        }
        given = parameters(
            queue=QUEUE,
            limit=RAW_BATCH,
            worker=new_worker_id(),
            priorities=list(priorities),
            **lanes,
        )
        for name in ("from_head", "lanes", "next_due", "onward"):
            text, values = compiled(getattr(statements.claim, name))
            plan = connection.exec_driver_sql(
                f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}",
                {key: given.get(key, value) for key, value in values.items()},
            ).scalar_one()[0]["Plan"]
            found[name] = plan["Shared Hit Blocks"] + plan["Shared Read Blocks"]
        transaction.rollback()
    return {"buffers": found}
