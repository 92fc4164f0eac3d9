"""``doctor``: looks for problems with the queue's database."""

from dataclasses import asdict
from pathlib import Path

import click

from .._process.exits import FAILED, OK
from .options import connection_options, schema_options, source_of
from .output import print_json, shown


@click.command()
@connection_options
@schema_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_context
def doctor(
    ctx: click.Context,
    /,
    database_url: str | None,
    engine: str | None,
    app_dir: Path,
    schema: str | None,
    table_prefix: str,
    as_json: bool,
) -> int:
    """Look for what is wrong with the queue's database, and say what to do.

    Server, pooler, clocks, tables and indexes, storage parameters, foreign keys, privileges, what
    holds vacuum back, silent workers, queues that nobody serves. The exit code is 1 if anything has
    to be mended.
    """
    from .._inspect.doctor import examine
    from .._process.engines import run_in_transaction

    source = source_of(ctx, database_url, engine, app_dir)
    findings = run_in_transaction(
        *source,
        lambda connection: examine(connection, schema=schema, table_prefix=table_prefix),
    )
    for finding in findings:
        if as_json:
            print_json(asdict(finding))
        else:
            click.echo(f"{finding.level:<8} {finding.check}: {shown(finding.text)}")
    return FAILED if any(finding.level == "problem" for finding in findings) else OK
