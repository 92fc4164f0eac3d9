"""The run over all contestants: one server, a database for each, the workloads in turn."""

import contextlib
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import click
from sqlalchemy import URL
from sqlalchemy.exc import SQLAlchemyError

from benchmarks.app import COMMANDS
from benchmarks.arena import PeerArena
from benchmarks.jobs import App
from benchmarks.peers import prepare
from benchmarks.report import exit_code, head_lines, target_lines, workload_lines
from benchmarks.server import libpq, new_database, running_server
from benchmarks.targets import Verdict, judge, medians
from benchmarks.workloads import Compared
from sqlalchemy_bgjob._bench.arena import OURS, Arena, Measurement
from sqlalchemy_bgjob._bench.command import document, harness_engine, our_program
from sqlalchemy_bgjob._bench.machine import server_settings
from sqlalchemy_bgjob._bench.program import BenchError, Program

SLOW = 2_000
"""Jobs a second below which a peer's further drains have a tenth of the jobs."""
PACES = {"W3": "jobs_per_second", "W4": "jobs_per_second", "W7": "first_per_second"}
"""The drains, and the figure that tells whether one is slow."""


@dataclass
class Comparison:
    """What was measured, and what went wrong: (contestant, what it said)."""

    measurements: list[Measurement] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)
    settings: dict[str, dict[str, str]] = field(default_factory=dict)
    slow: dict[str, bool] = field(default_factory=dict)
    """Of each peer: whether its further drains are smaller, or they would take all day."""

    def fail(self, contestant: str, problem: object) -> None:
        """Note a failure; the others go on."""
        self.failures.append((contestant, str(problem)))
        click.echo(f"{contestant} failed: {problem}", err=True)


def run_compare(
    peers: Sequence[str],
    workloads: Sequence[Compared],
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
    comparison = Comparison()
    with running_server(work_folder) as url:
        argvs = dict(_prepared(peers, work_folder, comparison))
        server = server_settings(harness_engine(url))
        arenas = list(_arenas(url, argvs, scale, comparison))
        for workload in workloads:
            began = time.monotonic()
            _measure(workload, arenas, rounds, comparison)
            click.echo(f"{workload.name} took {time.monotonic() - began:,.0f} s", err=True)
            # After each one: the whole takes an hour, and what was measured is not to be lost.
            found = document(
                comparison.measurements,
                scale=scale,
                server=server,
                rounds=rounds,
                contestants=comparison.settings,
                failures=comparison.failures,
            )
            verdicts = write(comparison, found, out)
    return tell(comparison, workloads, found, verdicts)


def write(comparison: Comparison, found: dict[str, Any], out: Path) -> list[Verdict]:
    """Write what was *found* and the verdicts as JSON; the verdicts."""
    verdicts = judge(medians(comparison.measurements))
    found = {**found, "targets": [asdict(verdict) for verdict in verdicts]}
    out.write_text(json.dumps(found, indent=2) + "\n")
    return verdicts


def tell(
    comparison: Comparison,
    workloads: Sequence[Compared],
    found: dict[str, Any],
    verdicts: Sequence[Verdict],
) -> int:
    """Print the report; the exit code."""
    for line in head_lines(found, comparison.settings, comparison.failures):
        click.echo(line)
    for workload in workloads:
        for line in workload_lines(workload, comparison.measurements):
            click.echo(line)
    for line in target_lines(verdicts):
        click.echo(line)
    return exit_code(verdicts, comparison.failures)


def _prepared(
    peers: Sequence[str], folder: Path, comparison: Comparison
) -> Iterator[tuple[str, tuple[str, ...]]]:
    for name in peers:
        click.echo(f"preparing {name} ...", err=True)
        try:
            yield name, tuple(prepare(name, folder))
        except (OSError, subprocess.CalledProcessError) as error:
            comparison.fail(name, error)


def _arenas(
    url: URL, argvs: dict[str, tuple[str, ...]], scale: float, comparison: Comparison
) -> Iterator[Arena]:
    """Each contestant in a database of its own."""
    for number, name in enumerate([OURS, *argvs]):
        own = new_database(url, f"bench_{number}")
        ours = name == OURS
        program = ours_with_more(own) if ours else Program(name, argvs[name], libpq(own))
        made = Arena if ours else PeerArena
        try:
            arena = made.prepare(program, harness_engine(own), scale)
        except (BenchError, SQLAlchemyError) as error:
            comparison.fail(name, error)
            continue
        comparison.settings[name] = {"version": arena.version, "settings": arena.settings}
        yield arena


def ours_with_more(url: URL, schema: str | None = None) -> Program:
    """This package, with the commands that only the comparison needs."""
    program = our_program(url, schema)
    dsn = program.environment["BGJOB_DATABASE_URL"]
    return replace(
        program,
        # The peers are installed, and so compiled. This checkout may be told not to keep bytecode.
        environment={**program.environment, "PYTHONDONTWRITEBYTECODE": ""},
        argv=(sys.executable, "-m", "benchmarks.app"),
        here=lambda command, given: COMMANDS[command](App(dsn, given)),
    )


def _measure(
    workload: Compared, arenas: Sequence[Arena], rounds: int, comparison: Comparison
) -> None:
    """One workload, round by round over the contestants; who fails in it is left out then."""
    taking_part = [arena for arena in arenas if _run_of(workload, arena) is not None]
    for number in range(1, rounds + 1):
        for arena in list(taking_part):
            name = arena.program.name
            click.echo(f"{workload.name}, round {number}: {name} ...", err=True)
            try:
                for measurement in _measurements(workload, arena, comparison):
                    comparison.measurements.append(replace(measurement, round=number))
            except (BenchError, SQLAlchemyError) as error:
                comparison.fail(name, f"{workload.name}: {error}")
                taking_part.remove(arena)
                with contextlib.suppress(SQLAlchemyError):
                    arena.clean()


def _run_of(workload: Compared, arena: Arena) -> Callable[[Any], Iterator[Measurement]] | None:
    if not isinstance(arena, PeerArena):
        return workload.run
    takes_part = workload.peers is None or arena.program.name in workload.peers
    return workload.of_peers if takes_part else None


def _measurements(
    workload: Compared, arena: Arena, comparison: Comparison
) -> Iterator[Measurement]:
    """One round of one contestant. A drain that was slow makes those that follow a tenth of it."""
    run, full = _run_of(workload, arena), arena.scale
    name, drains = arena.program.name, workload.name in PACES
    assert run is not None
    try:
        if drains and comparison.slow.get(name):
            arena.scale = full / 10
        for measurement in run(arena):
            yield measurement
            if drains and judge_pace(comparison, measurement):
                arena.scale = full / 10
    finally:
        arena.scale = full


def judge_pace(comparison: Comparison, measurement: Measurement) -> bool:
    """Whether a contestant is slow, by its first drain; ours never is."""
    name = measurement.contestant
    if name == OURS:
        return False
    if name not in comparison.slow:
        comparison.slow[name] = measurement.figures[PACES[measurement.workload]] < SLOW
        if comparison.slow[name]:
            click.echo(f"{name} does less than {SLOW:,} jobs/s: a tenth of the jobs next", err=True)
    return comparison.slow[name]
