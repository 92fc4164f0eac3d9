"""``import-bgjob``: moves the jobs of the Go library bgjob into the queue's tables."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from .._process.exits import DATABASE, FAILED, OK, USAGE, CommandError
from .options import connection_options, schema_options, source_of

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .._lifecycle.go_bgjob import Refused
    from .._sql import Statements
    from ..schema._layouts import GoTables

_PAUSE: Final = 1.0
"""Seconds between two passes over the Go library's tables."""
_TOLD_EVERY: Final = 5.0
"""Seconds between two lines of progress."""


@click.command()
@connection_options
@schema_options
@click.option(
    "--from-schema",
    help="The schema of the Go library's tables; by default the search path finds them.",
)
@click.option(
    "--once",
    is_flag=True,
    help="Do not wait for jobs that Go workers are running; leave them to the next run.",
)
@click.pass_context
def import_bgjob(
    ctx: click.Context,
    /,
    database_url: str | None,
    engine: str | None,
    app_dir: Path,
    schema: str | None,
    table_prefix: str,
    from_schema: str | None,
    once: bool,
) -> int:
    """Move the jobs of the Go library bgjob into the queue's tables, dead jobs too.

    It may run beside Go workers, and be stopped and started again at any time: each job is in
    exactly one of the tables. It waits for jobs that Go workers are running, and ends when the Go
    library's tables are empty. A row that does not fit stays there; stderr names it, and says why.
    The exit code is 1 if any row is left.
    """
    from .._process.engines import run_connected

    def move(connection: "Connection") -> int:
        with _explained(connection, schema, table_prefix, from_schema):
            go = _find(connection, schema, table_prefix, from_schema)
            return _move(connection, go, schema, table_prefix, once=once)

    source = source_of(ctx, database_url, engine, app_dir)
    return run_connected(*source, move)


def _find(
    connection: "Connection", schema: str | None, table_prefix: str, from_schema: str | None
) -> "GoTables":
    """Where the Go library's tables are, once ours are there too."""
    from .. import schema as tables
    from ..schema._layouts import go_tables

    with connection.begin():
        tables.check(connection, schema=schema, table_prefix=table_prefix)
        go = go_tables(connection, from_schema)
    if go is None:
        where = "on the search path" if from_schema is None else f"in schema {from_schema!r}"
        raise CommandError(
            USAGE,
            f"there are no tables bgjob_job and bgjob_dead_job of the Go library {where}; name "
            f"their schema with --from-schema",
        )
    return go


def _move(
    connection: "Connection",
    go: "GoTables",
    schema: str | None,
    table_prefix: str,
    *,
    once: bool,
) -> int:
    from sqlalchemy import MetaData

    from .._sql import statements_of
    from ..models import build_models

    models = build_models(MetaData(), schema=schema, table_prefix=table_prefix)
    work = _Import(connection, statements_of(models), go)
    try:
        return work.run(once=once)
    finally:
        click.echo(f"moved {work.moved}")


class _Import:
    """One run of the command: what it has moved, and what it has said."""

    def __init__(self, connection: "Connection", statements: "Statements", go: "GoTables") -> None:
        self._connection, self._statements, self._go = connection, statements, go
        self._counts = {"job": 0, "dead job": 0}
        self._told: set[tuple[str, Refused]] = set()
        self._next_line = time.monotonic() + _TOLD_EVERY

    @property
    def moved(self) -> str:
        """How much so far, in words."""
        return " and ".join(_counted(count, kind) for kind, count in self._counts.items())

    def run(self, *, once: bool) -> int:
        """Pass over the tables until they are empty, but for what does not fit; the exit code."""
        from .._lifecycle.go_bgjob import count

        waiting = False
        while True:
            refused = self._pass()
            left = count(self._connection, self._statements, self._go)
            if once or left <= refused:
                if left:
                    click.echo(f"{_counted(left, 'row')} left in {self._go.schema}", err=True)
                return FAILED if left else OK
            if not waiting:
                waiting = True
                click.echo(
                    f"waiting for {_counted(left - refused, 'row')}: a Go worker is running the "
                    f"job, or it was enqueued just now; Ctrl-C stops",
                    err=True,
                )
            time.sleep(_PAUSE)

    def _pass(self) -> int:
        """Move all that can be moved now; how many rows were refused."""
        from .._lifecycle import go_bgjob

        refused = 0
        for kind, move in (("job", go_bgjob.move_jobs), ("dead job", go_bgjob.move_dead_jobs)):
            for batch in move(self._connection, self._statements, self._go):
                self._counts[kind] += batch.moved
                refused += len(batch.refused)
                for row in batch.refused:
                    self._tell_refused(kind, row)
                if time.monotonic() >= self._next_line:
                    self._next_line = time.monotonic() + _TOLD_EVERY
                    click.echo(f"moved {self.moved} so far", err=True)
        return refused

    def _tell_refused(self, kind: str, row: "Refused") -> None:
        """Say it once, however many passes meet it."""
        if (kind, row) not in self._told:
            self._told.add((kind, row))
            click.echo(f"left {kind} {row.id!r}: {row.reason}", err=True)


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


@contextmanager
def _explained(
    connection: "Connection", schema: str | None, table_prefix: str, from_schema: str | None
) -> Iterator[None]:
    """Say what to do about an error of the database, and show no row."""
    from sqlalchemy.exc import DBAPIError

    from .._db.errors import refuses_a_row, sqlstate, summary

    try:
        yield
    except DBAPIError as error:
        if sqlstate(error) == "42501":
            missing = "; ".join(_missing(connection, schema, table_prefix, from_schema))
            raise CommandError(
                DATABASE, f"this role may not move the rows; let their owner run {missing}"
            ) from None
        if refuses_a_row(error):  # the database's own words would show it
            raise CommandError(
                FAILED, f"the tables refuse a row: {summary(error)}; see their checks and triggers"
            ) from None
        raise


def _missing(
    connection: "Connection", schema: str | None, table_prefix: str, from_schema: str | None
) -> list[str]:
    """What to grant: on our tables, and if nothing is missing there, on the Go library's."""
    from ..schema._grants import lacks
    from ..schema._layouts import GO_DEAD_JOB, GO_JOB, go_tables
    from ..schema._names import qualified, quoted

    with connection.begin():
        lacking = lacks(connection, "worker", schema=schema, table_prefix=table_prefix)
        missing = [one.privileges for one in lacking]
        go = go_tables(connection, from_schema)
    if not missing and go is not None:
        theirs = ", ".join(qualified(go.schema, name) for name in (GO_JOB, GO_DEAD_JOB))
        missing = [f"USAGE ON SCHEMA {quoted(go.schema)}", f"SELECT, UPDATE, DELETE ON {theirs}"]
    return [f"GRANT {one} TO this role" for one in missing]
