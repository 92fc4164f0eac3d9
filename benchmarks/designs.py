"""The designs of a claim and a settlement, side by side: ``python -m benchmarks designs``.

Each is raw psycopg in one process with the statements of the worker, or a variant of them; there
is no worker, handler or SQLAlchemy at run time. What was chosen, and why, is in docs/decisions.
"""

from __future__ import annotations

import json
import statistics
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any, Final

import click
import psycopg
from sqlalchemy import MetaData, create_engine

from benchmarks.report import origin_lines
from benchmarks.server import libpq, new_database, running_server
from benchmarks.yardsticks import compiled
from sqlalchemy_bgjob import BGJob
from sqlalchemy_bgjob._bench.command import harness_engine, origin
from sqlalchemy_bgjob._bench.machine import server_settings
from sqlalchemy_bgjob._drafts.validation import EARLIEST
from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob._sql.words import parameters

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

WORKER: Final = 7
_FILL: Final = """
    INSERT INTO bgjob_job (id, queue, type, arg)
    SELECT uuidv7()::text, 'default', 't', convert_to('"12345678901234567"', 'UTF8')
    FROM generate_series(1, %s)
"""
_PARTIAL: Final = """
    DROP INDEX bgjob_job_due_idx;
    CREATE INDEX bgjob_job_due_idx ON bgjob_job (queue, priority, next_run_at, id)
    WHERE claimed_by IS NULL
"""
_JOINED: Final = """
    DELETE FROM bgjob_job USING unnest(%(given_ids)s::text[], %(given_leases)s::bigint[])
        AS given(id, lease)
    WHERE bgjob_job.id = given.id AND bgjob_job.lease = given.lease
        AND claimed_by = %(given_worker)s
    RETURNING bgjob_job.id
"""


@dataclass(frozen=True)
class Design:
    """One way to claim and settle.

    Attributes:
        name: What differs from the worker's own.
        batch: Jobs of a claim.
        onward: Whether a claim reads on where the last has stopped.
        pinned: Whether another session keeps a snapshot open meanwhile.
        fused: Whether one transaction settles a batch and claims the next.
        prepare: SQL that changes the table first.
        settle: Another statement to settle by.
    """

    name: str
    batch: int = 200
    onward: bool = True
    pinned: bool = False
    fused: bool = False
    prepare: tuple[str, ...] = ()
    settle: str | None = None


DESIGNS: Final = (
    Design("as the worker does it, batches of 200"),
    Design("batches of 100", batch=100),
    Design("batches of 500", batch=500),
    Design("batches of 1000", batch=1000),
    Design("from the head", onward=False),
    Design("open transaction, reading on", pinned=True),
    Design("open transaction, from the head", pinned=True, onward=False),
    Design("one transaction settles and claims", fused=True),
    Design("one transaction settles and claims, 500", fused=True, batch=500),
    Design("fillfactor 70", prepare=("ALTER TABLE bgjob_job SET (fillfactor = 70)",)),
    Design("fillfactor 100", prepare=("ALTER TABLE bgjob_job SET (fillfactor = 100)",)),
    Design("partial index on what is queued", prepare=(_PARTIAL,)),
    Design("settled by a join in the open", settle=_JOINED),
)


@dataclass
class Figures:
    """What one run came to."""

    rate: float
    first: float
    last: float
    wal: float
    rates: list[float] = field(default_factory=list)


class Table:
    """The queue's tables in one database, and the statements as the driver takes them."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.metadata = MetaData()
        statements = Statements(BGJob(self.metadata).models)
        self.head = compiled(statements.claim.from_head)
        self.onward = compiled(statements.claim.onward)
        self.complete = compiled(statements.settle.complete)

    def fill(self, jobs: int, prepare: tuple[str, ...]) -> None:
        """Make the tables anew, with so many jobs."""
        engine = create_engine(self.dsn.replace("postgresql:", "postgresql+psycopg:", 1))
        self.metadata.drop_all(engine)
        self.metadata.create_all(engine)
        engine.dispose()
        with psycopg.connect(self.dsn, autocommit=True) as connection:
            for sql in prepare:
                connection.execute(sql)
            connection.execute(_FILL, [jobs])
            connection.execute("VACUUM ANALYZE bgjob_job")
            connection.execute("CHECKPOINT")


def run(table: Table, design: Design, jobs: int) -> Figures:
    """Claim and settle so many jobs."""
    table.fill(jobs, design.prepare)
    with ExitStack() as stack:
        if design.pinned:
            other = stack.enter_context(psycopg.connect(table.dsn))
            other.execute("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
            other.execute("SELECT count(*) FROM bgjob_job")
        connection = stack.enter_context(psycopg.connect(table.dsn))
        before = _wal(connection)
        began = time.perf_counter()
        marks = [(0, began)]
        marks += [(done, time.perf_counter()) for done in _rounds(connection, table, design)]
        assert marks[-1][0] == jobs, f"{marks[-1][0]} of {jobs} jobs"
        wal = _wal(connection) - before
    tenth = jobs // 10
    return Figures(
        jobs / (marks[-1][1] - began),
        _rate(marks, 0, tenth),
        _rate(marks, jobs - tenth, jobs),
        wal / jobs,
    )


def _rounds(connection: psycopg.Connection[Any], table: Table, design: Design) -> Iterator[int]:
    at, last, done = EARLIEST, "", 0
    rows: list[Any] = []
    while True:
        given = parameters(
            queue="default", limit=design.batch, worker=WORKER, priority=[0], at=[at], id=[last]
        )
        if rows:
            done += _settle(connection, table, design, rows)
            if not design.fused:
                connection.commit()
            yield done
        sql, values = table.onward if design.onward else table.head
        rows = connection.execute(sql, {**values, **given}).fetchall()
        connection.commit()
        if not rows:
            return
        # Columns as the claim returns them: 0 is the id, 6 the lease, 9 next_run_at.
        at, last = max((row[9], row[0]) for row in rows)


def _settle(
    connection: psycopg.Connection[Any], table: Table, design: Design, rows: list[Any]
) -> int:
    rows.sort(key=lambda row: str(row[0]))
    given = parameters(
        queue="default",
        worker=WORKER,
        ids=[row[0] for row in rows],
        leases=[row[6] for row in rows],
    )
    if design.settle is not None:
        return len(connection.execute(design.settle, given).fetchall())
    sql, values = table.complete
    answer = connection.execute(sql, {**values, **given}).fetchone()
    assert answer is not None
    return int(answer[0])


def _wal(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT pg_current_wal_insert_lsn() - '0/0'::pg_lsn").fetchone()
    connection.commit()
    return int(row[0]) if row else 0


def _rate(marks: list[tuple[int, float]], since: int, until: int) -> float:
    first = next(mark for mark in reversed(marks) if mark[0] <= since)
    last = next(mark for mark in marks if mark[0] >= until)
    return (last[0] - first[0]) / (last[1] - first[1])


def compare_designs(
    dsn: str, jobs: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Figures]:
    """Each design in turn, so many times; the medians."""
    table = Table(dsn)
    found: dict[str, list[Figures]] = {design.name: [] for design in DESIGNS}
    for _ in range(rounds):
        for design in DESIGNS:
            found[design.name].append(run(table, design, jobs))
    own = statistics.median(figures.rate for figures in found[DESIGNS[0].name])
    medians = {}
    say(f"{'':42} {'jobs/s':>8} {'ratio':>6} {'first 10 %':>10} {'last 10 %':>10} {'WAL/job':>8}")
    for name, runs in found.items():
        rate, first, last, wal = (
            statistics.median(getattr(figures, part) for figures in runs)
            for part in ("rate", "first", "last", "wal")
        )
        middle = Figures(rate, first, last, wal, [figures.rate for figures in runs])
        medians[name] = middle
        say(
            f"{name:42} {middle.rate:8,.0f} {middle.rate / own:6.2f} {middle.first:10,.0f} "
            f"{middle.last:10,.0f} {middle.wal:8.0f}"
        )
    return medians


def run_designs(*, jobs: int, rounds: int, out: Path | None, work_folder: Path) -> None:
    """Compare them on a server of their own, print the table, and write the JSON.

    Raises:
        CommandError: There is no server.
    """
    with running_server(work_folder) as url:
        found = origin(server_settings(harness_engine(url)))
        for line in origin_lines(found):
            click.echo(line)
        click.echo(f"jobs: {jobs:,}; rounds: {rounds}\n")
        designs = compare_designs(libpq(new_database(url, "designs")), jobs, rounds, click.echo)
    if out is not None:
        figures = {name: asdict(figures) for name, figures in designs.items()}
        found = {**found, "jobs": jobs, "rounds": rounds, "designs": figures}
        out.write_text(json.dumps(found, indent=2) + "\n")
