"""The run over all contestants: one server, a database for each, the workloads in turn."""

import contextlib
import json
import secrets
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
from sqlalchemy import URL, make_url
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.peers import prepare
from benchmarks.report import exit_code, head_lines, target_lines, workload_lines
from benchmarks.targets import judge, medians
from sqlalchemy_bgjob._embedded import EmbeddedPostgres, EmbeddedPostgresError
from sqlalchemy_bgjob._exits import FAILED, SIGNALLED, CommandError
from sqlalchemy_bgjob.bench import (
    OURS,
    Arena,
    BenchError,
    Contestant,
    Measurement,
    Workload,
    document,
    harness_engine,
    our_contestant,
    server_settings,
)

SERVER = {
    "shared_buffers": "1GB",
    # Some peers ask for a pool as large as their concurrency, for each process.
    "max_connections": "250",
}


@dataclass
class Comparison:
    """What was measured, and what went wrong: (contestant, what it said)."""

    measurements: list[Measurement] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)

    def fail(self, contestant: str, problem: object) -> None:
        """Note a failure; the others go on."""
        self.failures.append((contestant, str(problem)))
        click.echo(f"{contestant} failed: {problem}", err=True)


def run_compare(
    peers: Sequence[str],
    workloads: Sequence[Workload],
    *,
    rounds: int,
    scale: float,
    out: Path,
    work_folder: Path,
) -> int:
    """Measure, print, and write the JSON; the exit code.

    Raises:
        CommandError: There is no server.
    """
    signal.signal(signal.SIGTERM, _exit)
    comparison = Comparison()
    work_folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    argvs = dict(_prepared(peers, work_folder, comparison))
    with _server(work_folder) as url:
        engine = harness_engine(url)
        server = server_settings(engine)
        arenas = list(_arenas(url, argvs, scale, comparison))
        for workload in workloads:
            _measure(workload, arenas, rounds, comparison)
    found = document(
        comparison.measurements,
        scale=scale,
        server=server,
        rounds=rounds,
        contestants=comparison.settings,
        failures=comparison.failures,
    )
    return tell(comparison, workloads, found, out)


def tell(
    comparison: Comparison, workloads: Sequence[Workload], found: dict[str, Any], out: Path
) -> int:
    """Print the report, and write *found* and the verdicts as JSON; the exit code."""
    verdicts = judge(medians(comparison.measurements))
    found = {**found, "targets": [asdict(verdict) for verdict in verdicts]}
    out.write_text(json.dumps(found, indent=2) + "\n")
    for line in head_lines(found, comparison.settings, comparison.failures):
        click.echo(line)
    for workload in workloads:
        for line in workload_lines(workload, comparison.measurements):
            click.echo(line)
    for line in target_lines(verdicts):
        click.echo(line)
    return exit_code(verdicts, comparison.failures)


def _exit(number: int, frame: object) -> None:
    raise SystemExit(SIGNALLED + number)


def _prepared(
    peers: Sequence[str], folder: Path, comparison: Comparison
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name in peers:
        click.echo(f"preparing {name} ...", err=True)
        try:
            yield name, tuple(prepare(name, folder))
        except (OSError, subprocess.CalledProcessError) as error:
            comparison.fail(name, error)


@contextlib.contextmanager
def _server(work_folder: Path) -> Iterator[URL]:
    """A new server: with a data folder of its own it runs as durably as any."""
    data = work_folder.absolute() / f"data-{secrets.token_hex(4)}"
    try:
        with EmbeddedPostgres.start(data_dir=data, settings=SERVER) as server:
            yield make_url(server.socket_url)
    except EmbeddedPostgresError as error:
        raise CommandError(FAILED, str(error)) from None
    finally:
        shutil.rmtree(data, ignore_errors=True)


def _arenas(
    url: URL, argvs: dict[str, tuple[str, ...]], scale: float, comparison: Comparison
) -> Iterator[Arena]:
    """Each contestant in a database of its own."""
    for number, name in enumerate([OURS, *argvs]):
        own = url.set(database=f"bench_{number}")
        with harness_engine(url).connect() as connection:
            connection.exec_driver_sql(f"CREATE DATABASE {own.database}")
        if name == OURS:
            contestant = our_contestant(own)
        else:
            dsn = own.set(drivername="postgresql").render_as_string(hide_password=False)
            contestant = Contestant(name, argvs[name], dsn)
        try:
            arena = Arena.prepare(contestant, harness_engine(own), scale)
        except (BenchError, SQLAlchemyError) as error:
            comparison.fail(name, error)
            continue
        comparison.settings[name] = {"version": arena.version, "settings": arena.settings}
        yield arena


def _measure(
    workload: Workload, arenas: Sequence[Arena], rounds: int, comparison: Comparison
) -> None:
    """One workload, round by round over the contestants; who fails in it is left out then."""
    taking_part = [arena for arena in arenas if arena.is_ours or workload.for_all]
    for number in range(1, rounds + 1):
        for arena in list(taking_part):
            name = arena.contestant.name
            click.echo(f"{workload.name}, round {number}: {name} ...", err=True)
            try:
                for measurement in workload.run(arena):
                    comparison.measurements.append(replace(measurement, round=number))
            except (BenchError, SQLAlchemyError) as error:
                comparison.fail(name, f"{workload.name}: {error}")
                taking_part.remove(arena)
                with contextlib.suppress(SQLAlchemyError):
                    arena.clean()
