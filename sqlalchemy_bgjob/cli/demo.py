"""``demo``: shows what the queue promises, on an embedded server."""

from pathlib import Path

import click


@click.command()
@click.argument(
    "folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--database-url",
    metavar="URL",
    help="A PostgreSQL to use instead of the embedded one. Everything is in a schema of its own, "
    "which is dropped at the end.",
)
@click.option("--limit", type=click.IntRange(min=1), help="The most files to read.")
def demo(folder: Path | None, database_url: str | None, limit: int | None) -> int:
    """Index a folder with two workers, kill one of them, and count everything again.

    Without FOLDER it is the source of Python's standard library. For each file one transaction
    inserts a row and enqueues a job; some jobs fail and are retried, one is for a file that does
    not exist. The exit code is 1 unless every file was indexed exactly once and jobs of the killed
    worker were rescued.
    """
    from .._dev.demo import run_demo

    return run_demo(folder, database_url=database_url, limit=limit)
