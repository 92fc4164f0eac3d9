"""The command line: ``python -m benchmarks compare``, ``... designs`` and ``... features``."""

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from benchmarks.compare import run_compare
from benchmarks.dashboard import run_dashboard
from benchmarks.designs import run_designs
from benchmarks.features import run_features
from benchmarks.open_page import run_open_page
from benchmarks.peers import PEERS
from benchmarks.plot import draw
from benchmarks.records import VARIANTS, run_records
from benchmarks.report import table_lines
from benchmarks.workloads import WORKLOADS
from sqlalchemy_bgjob._bench.workloads import chosen
from sqlalchemy_bgjob._process.exits import CommandError

RESULTS = Path(__file__).parent / "results.json"
PLOTS_FOLDER = Path(__file__).parents[1] / "docs" / "plots"

Decorator = Callable[[Any], Any]

work_folder_option = click.option(
    "--work-folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(tempfile.gettempdir(), "bgjob-benchmarks"),
    show_default=True,
    help="For the peers' environments, which are kept, and the data, which is not; on the disk "
    "that is to be measured, and where the server's account can reach it.",
)

results_argument = click.argument(
    "results", type=click.Path(exists=True, dir_okay=False, path_type=Path), default=RESULTS
)


def rounds_option(default: int) -> Decorator:
    return click.option(
        "--rounds",
        type=click.IntRange(min=1),
        default=default,
        show_default=True,
        help="How often each is measured; the medians count.",
    )


def jobs_option(default: int, what: str) -> Decorator:
    return click.option(
        "--jobs",
        type=click.IntRange(min=1_000),
        default=default,
        show_default=True,
        help=f"How many jobs {what}.",
    )


def out_option(default: Path | None = None) -> Decorator:
    return click.option(
        "--out",
        type=click.Path(dir_okay=False, path_type=Path),
        default=default,
        show_default=default is not None,
        help="A JSON file for every single figure.",
    )


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
def cli() -> None:
    """Measure sqlalchemy-bgjob beside other queues, and its statements beside others."""


@cli.command()
@click.option(
    "--peers", default=",".join(PEERS), show_default=True, help="Which others; empty for none."
)
@click.option("--only", metavar="W1,W3", help="These workloads instead of all.")
@rounds_option(3)
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Multiplies all sizes.",
)
@out_option(RESULTS)
@work_folder_option
def compare(
    peers: str, only: str | None, rounds: int, scale: float, out: Path, work_folder: Path
) -> None:
    """Run the workloads on each queue in turn, on one PostgreSQL, and compare the medians.

    The exit code is 1 if a target is missed, or sqlalchemy-bgjob itself has failed.
    """
    names = [name.strip() for name in peers.split(",") if name.strip()]
    unknown = [name for name in names if name not in PEERS]
    if unknown:
        raise click.BadParameter(
            f"there is no peer {', '.join(map(repr, unknown))}; choose from {', '.join(PEERS)}",
            param_hint="--peers",
        )
    try:
        code = run_compare(
            names,
            chosen(only, WORKLOADS),
            rounds=rounds,
            scale=scale,
            out=out,
            work_folder=work_folder,
        )
    except CommandError as error:
        raise click.ClickException(str(error)) from None
    sys.exit(code)


@cli.command()
@jobs_option(50_000, "each design claims and settles")
@rounds_option(3)
@out_option()
@work_folder_option
def designs(jobs: int, rounds: int, out: Path | None, work_folder: Path) -> None:
    """Run other ways to claim and to settle beside the worker's, in raw psycopg."""
    try:
        run_designs(jobs=jobs, rounds=rounds, out=out, work_folder=work_folder)
    except CommandError as error:
        raise click.ClickException(str(error)) from None


@cli.command()
@jobs_option(20_000, "each feature is measured with; of single enqueues a fiftieth")
@rounds_option(3)
@out_option()
@work_folder_option
def features(jobs: int, rounds: int, out: Path | None, work_folder: Path) -> None:
    """Measure what unique keys, expiry, middleware and others cost, beside none of them."""
    try:
        run_features(jobs=jobs, rounds=rounds, out=out, work_folder=work_folder)
    except CommandError as error:
        raise click.ClickException(str(error)) from None


@cli.command()
@click.option("--jobs", type=click.IntRange(min=1_000), default=1_000_000, show_default=True)
@click.option(
    "--queues",
    type=click.IntRange(min=4),
    default=4,
    show_default=True,
    help="In how many queues they are, with three priorities each.",
)
@click.option("--dead", type=click.IntRange(min=1), default=200_000, show_default=True)
@click.option("--records", type=click.IntRange(min=1), default=1_000_000, show_default=True)
@click.option("--times", type=click.IntRange(min=1), default=7, show_default=True)
def dashboard(jobs: int, queues: int, dead: int, records: int, times: int) -> None:
    """Tell how long each page of the dashboard takes, over so many jobs and records."""
    for line in run_dashboard(jobs, queues, dead, records, times):
        click.echo(line)


@cli.command(name="open-page")
@jobs_option(150_000, "are drained at a time")
@rounds_option(6)
@work_folder_option
def open_page(jobs: int, rounds: int, work_folder: Path) -> None:
    """Drain jobs while a page of the dashboard is open, and while nobody looks."""
    try:
        run_open_page(jobs=jobs, rounds=rounds, work_folder=work_folder, say=click.echo)
    except CommandError as error:
        raise click.ClickException(str(error)) from None


@cli.command()
@jobs_option(20_000, "are drained at a time")
@rounds_option(9)
@work_folder_option
@click.option("--only", metavar="NAME,NAME", help="These variants instead of all.")
def records(jobs: int, rounds: int, work_folder: Path, only: str | None) -> None:
    """Drain jobs that leave nothing, counts, records, and records with results."""
    try:
        names = VARIANTS if only is None else only.split(",")
        run_records(names, jobs=jobs, rounds=rounds, work_folder=work_folder, say=click.echo)
    except CommandError as error:
        raise click.ClickException(str(error)) from None


@cli.command()
@results_argument
def table(results: Path) -> None:
    """Print the table of the README from the JSON file that compare has written."""
    for line in table_lines(json.loads(results.read_text())):
        click.echo(line)


@cli.command()
@results_argument
@click.option(
    "--folder",
    type=click.Path(file_okay=False, path_type=Path),
    default=PLOTS_FOLDER,
    show_default=True,
    help="Where the SVG files go.",
)
def plot(results: Path, folder: Path) -> None:
    """Draw the pictures of the README and the docs from that JSON file."""
    for path in draw(json.loads(results.read_text()), folder):
        click.echo(path)


if __name__ == "__main__":
    cli(prog_name="python -m benchmarks")
