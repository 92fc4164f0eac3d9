"""``check``: whether this host's workers beat."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import click

from .._process.exits import DATABASE, FAILED, OK, USAGE, CommandError, exit_now
from .options import connection_options, schema_options, source_of
from .output import print_json, shown
from .param_types import Seconds

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .._inspect.queues import Paused
    from .._inspect.registered import Registered


@click.command()
@connection_options
@schema_options
@click.option("--host", help="As workers register it: by default this machine's host name.")
@click.option("--pid", type=click.INT, help="Ask about this process alone.")
@click.option("--worker", metavar="HOST:PID", help="A process of any host, instead of the two.")
@click.option(
    "--timeout",
    type=Seconds(),
    default=5.0,
    show_default=True,
    help="Seconds after which the database counts as out of reach.",
)
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
    worker: str | None,
    timeout: float,
    as_json: bool,
) -> int:
    """Look whether a worker of this host beats: a light probe, for containers.

    The exit code is 0 if one does, and 1 if none does. It is 3 if the database can't be reached or
    refuses, which is no fault of the worker: it waits and goes on. Paused queues, and privileges
    that this role lacks, are told too, and are no failure.
    """
    import socket
    import threading

    from .._process.engines import run_in_transaction

    source = source_of(ctx, database_url, engine, app_dir)
    if worker is not None:
        if host is not None or pid is not None:
            raise CommandError(USAGE, "--worker names host and pid: leave out --host and --pid")
        host, pid = _host_and_pid(worker)
    of_host = host or socket.gethostname()
    alarm = threading.Timer(timeout, _give_up, (timeout,))  # no driver has a limit for all of it
    alarm.daemon = True
    alarm.start()
    try:
        found = run_in_transaction(
            *source, lambda connection: _look(connection, schema, table_prefix, of_host, pid)
        )
    except CommandError as error:
        if error.exit_code != FAILED:
            raise
        # A probe that restarts on 1 must not do so for a privilege or a timeout.
        raise CommandError(DATABASE, error.problem) from None
    finally:
        alarm.cancel()
    _print(found, as_json=as_json)
    if any(one.alive for one in found.workers):
        return OK
    if not found.workers:
        process = "" if pid is None else f" with pid {pid}"
        click.echo(
            f"no worker of host {of_host!r}{process} is registered; is it up, and does it use "
            f"this database, schema and table prefix?",
            err=True,
        )
    return FAILED


class _Found(NamedTuple):
    workers: "list[Registered]"
    paused: "list[Paused]"
    lacking: str
    """What the role lacks, and its remedy; empty if nothing."""


def _look(
    connection: "Connection", schema: str | None, table_prefix: str, host: str, pid: int | None
) -> _Found:
    from sqlalchemy.exc import DBAPIError

    from .._db.errors import sqlstate
    from .._inspect.queues import paused_queues
    from .._inspect.registered import registered
    from ..schema import check as check_schema
    from ..schema import records
    from ..schema._grants import lacks, remedy

    check_schema(connection, schema=schema, table_prefix=table_prefix)
    recorded = records.commented_version(connection, schema=schema, table_prefix=table_prefix) > 0
    lacking = lacks(
        connection, "worker", schema=schema, table_prefix=table_prefix, records=recorded
    )
    told = "; ".join([*map(str, lacking), remedy(connection, lacking)] if lacking else [])
    try:
        workers = registered(connection, schema, table_prefix, host=host, pid=pid)
        return _Found(workers, paused_queues(connection, schema, table_prefix), told)
    except DBAPIError as error:
        if sqlstate(error) != "42501" or not told:
            raise
        raise CommandError(DATABASE, told) from None


def _print(found: _Found, *, as_json: bool) -> None:
    for one in found.workers:
        if as_json:
            names = [queue.queue for queue in found.paused]
            print_json({**asdict(one), "alive": one.alive, "paused": names})
        else:
            state = "beats" if one.alive else "lost" if one.lost else "silent"
            click.echo(
                f"worker {one.id}, pid {one.pid}: {state}, last heartbeat "
                f"{one.seconds:.1f} s ago (lost after {one.lease_timeout:g} s)"
            )
    if not as_json:
        for queue in found.paused:
            click.echo(str(queue))
    if found.lacking:
        click.echo(shown(found.lacking), err=True)


def _host_and_pid(worker: str) -> tuple[str, int]:
    host, _, pid = worker.rpartition(":")
    if not host or not pid.isdecimal():
        raise CommandError(USAGE, f"--worker={worker!r} is not HOST:PID, such as web-1:4711")
    return host, int(pid)


def _give_up(timeout: float) -> None:
    click.echo(f"Error: the database has not answered within {timeout:g} s", err=True)
    exit_now(DATABASE)
