"""The benchmark as a command, and the format of its report.

The workloads are in ``workloads``, the measuring is in ``arena`` and ``times``, and the application
under test in ``app``. ``python -m benchmarks compare`` runs the workloads on other queues too.
"""

import json
import secrets
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

import click
from sqlalchemy import Engine, NullPool, create_engine, make_url
from sqlalchemy.exc import DBAPIError
from sqlalchemy.schema import DropSchema

from .._db.errors import database_message
from .._process.exits import DATABASE, FAILED, OK, SIGNALLED, USAGE, CommandError
from .._process.supervisor import safe_path
from .._process.urls import database_url as parse
from .._process.urls import is_installed, sync_url
from .app import COMMANDS
from .arena import FULL_DRAIN, OURS, Arena, Measurement
from .jobs import App
from .machine import machine, server_settings, versions
from .program import BenchError, Program
from .workloads import WORKLOADS, Workload, chosen

if TYPE_CHECKING:
    from sqlalchemy import URL

# ---- the report -----------------------------------------------------------------------------

FIGURES: Final[Mapping[str, str]] = {
    "jobs_per_second": "{:,.0f} jobs/s",
    "first_per_second": "first tenth {:,.0f} jobs/s",
    "last_per_second": "last tenth {:,.0f} jobs/s",
    "ratio": "ratio {:.2f}",
    "p50_ms": "p50 {:.2f} ms",
    "p99_ms": "p99 {:.2f} ms",
    "worker_cpu": "{:.0%} of a core",
}
"""The format of each figure."""


def columns(rows: Sequence[Sequence[str]], indent: str = "") -> Iterator[str]:
    """Rows as lines, with their columns aligned."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = [f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)]
        yield (indent + "  ".join(cells)).rstrip()


def in_words(figures: Mapping[str, float]) -> str:
    """Figures as text, in one line."""
    return ", ".join(FIGURES[name].format(value) for name, value in figures.items())


def section(workload: Workload, measurements: Sequence[Measurement]) -> Iterator[str]:
    """A workload's title, and a line for each variant."""
    yield f"{workload.name}  {workload.title}"
    rows = [
        (m.variant or m.contestant, f"{m.jobs:,} jobs", in_words(m.figures)) for m in measurements
    ]
    yield from columns(rows, indent="  ")


def origin(server: Mapping[str, str]) -> dict[str, Any]:
    """Versions, machine and server settings, for a JSON file."""
    return {"versions": versions(), "machine": machine(), "server": dict(server)}


def document(
    measurements: Sequence[Measurement], *, scale: float, server: Mapping[str, str], **more: Any
) -> dict[str, Any]:
    """The measurements and their origin, for a JSON file."""
    return {
        "scale": scale,
        **origin(server),
        **more,
        "measurements": [asdict(measurement) for measurement in measurements],
    }


# ---- the command ----------------------------------------------------------------------------


def run_bench(
    *,
    database_url: str | None,
    only: str | None = None,
    jobs: int | None = None,
    scale: float | None = None,
    json_path: Path | None = None,
) -> int:
    """Run the workloads on a database, in a schema that is dropped at the end; the exit code.

    Raises:
        CommandError: Something is not installed, the database refuses, or a measurement failed.
    """
    if jobs is not None and scale is not None:
        raise CommandError(USAGE, "give either --jobs or --scale")
    factor = scale or (jobs or FULL_DRAIN) / FULL_DRAIN
    workloads = chosen(only, WORKLOADS)
    url = _bench_url(database_url)
    for number in _SIGNALS:
        signal.signal(number, _exit)
    try:
        measurements, server = _run_in_schema(url, workloads, factor)
    except BenchError as error:
        raise CommandError(FAILED, str(error)) from None
    except DBAPIError as error:
        raise CommandError(DATABASE, f"the database refuses: {database_message(error)}") from None
    if json_path is not None:
        found = document(measurements, scale=factor, server=server)
        json_path.write_text(json.dumps(found, indent=2) + "\n")
    return OK


_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def _exit(number: int, frame: FrameType | None) -> None:
    raise SystemExit(SIGNALLED + number)


def _bench_url(given: str | None) -> "URL":
    url = sync_url(parse(given))
    if url is None or not is_installed("psycopg"):
        raise CommandError(
            USAGE, 'the benchmark needs psycopg; pip install "sqlalchemy-bgjob[psycopg]"'
        )
    if not is_installed("greenlet"):
        raise CommandError(
            USAGE, 'AsyncWorker needs greenlet; pip install "sqlalchemy-bgjob[asyncio]"'
        )
    return url.set(drivername="postgresql+psycopg")


def async_driver(url: "URL") -> str:
    """The driver for AsyncWorker: asyncpg if it is installed and accepts the URL, else psycopg."""
    takes_it = set(url.query) <= {"host", "port"}
    return "asyncpg" if takes_it and is_installed("asyncpg") else "psycopg"


def our_program(url: "URL", schema: str | None = None) -> Program:
    """This package as the program to measure."""
    options: dict[str, Any] = {"driver": async_driver(url)}
    if schema is not None:
        options["schema"] = schema
    dsn = url.render_as_string(hide_password=False)
    return Program(
        name=OURS,
        argv=(sys.executable, *safe_path(), "-m", "sqlalchemy_bgjob._bench.app"),
        dsn="-",
        options=options,
        environment={"BGJOB_DATABASE_URL": dsn},
        here=lambda command, given: COMMANDS[command](App(dsn, given)),
    )


def harness_engine(url: "URL | str") -> Engine:
    """An engine for the harness, in AUTOCOMMIT."""
    plain = make_url(url).set(drivername="postgresql+psycopg")
    return create_engine(
        plain,
        isolation_level="AUTOCOMMIT",
        poolclass=NullPool,
        # A plan made for a full table must not be kept for the empty one.
        connect_args={"prepare_threshold": None},
    )


def _run_in_schema(
    url: "URL", workloads: Sequence[Workload], scale: float
) -> tuple[list[Measurement], dict[str, str]]:
    schema = f"bgjob_bench_{secrets.token_hex(4)}"
    engine = harness_engine(url)
    server = server_settings(engine)
    click.echo(f"in schema {schema} of PostgreSQL {server['server_version']}", err=True)
    measurements: list[Measurement] = []
    try:
        arena = Arena.prepare(our_program(url, schema), engine, scale)
        for workload in workloads:
            click.echo(f"{workload.name} ...", err=True)
            found = list(workload.run(arena))
            measurements += found
            for line in section(workload, found):
                click.echo(line)
    finally:
        # A second Ctrl-C must not leave the schema behind.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        with engine.connect() as connection:
            connection.execute(DropSchema(schema, cascade=True, if_exists=True))
    return measurements, server
