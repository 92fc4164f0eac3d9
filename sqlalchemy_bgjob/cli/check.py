"""``check``: whether this host's workers beat."""

import json
from dataclasses import asdict
from pathlib import Path

import click

from .._process.exits import FAILED, OK
from .options import connection_options, schema_options, take_engine


@click.command()
@connection_options
@schema_options
@click.option("--host", help="As workers register it: by default this machine's host name.")
@click.option("--pid", type=click.INT, help="Look at this process alone.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a worker.")
@click.pass_context
def check(
    ctx: click.Context,
    /,
    database_url: str | None,
    engine: str | None,
    app_dir: Path,
    schema: str | None,
    table_prefix: str,
    host: str | None,
    pid: int | None,
    as_json: bool,
) -> int:
    """Look whether a worker of this host beats: a light probe, for containers.

    The exit code is 0 if one does, and 1 if none does. It is 3 if the database can't be reached,
    which is no fault of the worker: it waits and goes on.
    """
    import socket

    from .._inspect.probe import workers_of
    from .._process.engines import run_in_transaction

    engine = take_engine(ctx, engine, app_dir)
    of_host = host or socket.gethostname()
    found = run_in_transaction(
        database_url,
        engine,
        app_dir,
        lambda connection: workers_of(
            connection, schema=schema, table_prefix=table_prefix, host=of_host, pid=pid
        ),
    )
    for worker in found:
        if as_json:
            click.echo(json.dumps({**asdict(worker), "alive": worker.alive}))
        else:
            state = "beats" if worker.alive else "lost" if worker.lost else "silent"
            click.echo(
                f"worker {worker.id}, pid {worker.pid}: {state}, last heartbeat "
                f"{worker.seconds:.1f} s ago (lost after {worker.lease_timeout:g} s)"
            )
    if any(worker.alive for worker in found):
        return OK
    if not found:
        process = "" if pid is None else f" with pid {pid}"
        click.echo(
            f"no worker of host {of_host!r}{process} is registered; is it up, and does it use "
            f"this database, schema and table prefix?",
            err=True,
        )
    return FAILED
