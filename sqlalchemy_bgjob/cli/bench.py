"""``bench``: measures the queue on the user's own database."""

from pathlib import Path

import click

from .options import own_database_option


@click.command()
@own_database_option
@click.option("--only", metavar="W1,W3", help="These workloads instead of all.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="How many jobs are drained in W3; the other sizes follow. 50,000 by default.",
)
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    help="Multiplies all sizes, instead of --jobs.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file for all figures.",
)
def bench(
    database_url: str | None,
    only: str | None,
    jobs: int | None,
    scale: float | None,
    json_path: Path | None,
) -> int:
    """Measure the queue on your own database.

    Enqueue, drain and pick-up, in a schema of its own, which is dropped at the end. In full it
    takes a few minutes, writes a million rows, and leaves the server little time for others. It
    needs psycopg, whatever the driver of the URL.
    """
    from .._bench.command import run_bench

    return run_bench(
        database_url=database_url, only=only, jobs=jobs, scale=scale, json_path=json_path
    )
