"""``queues``, ``pause``, ``resume``, ``slots`` and ``pressure``: what operators do to queues."""

import json
from datetime import UTC
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from .._process.exits import OK, USAGE, CommandError
from .options import Moment, connection_options, schema_options, source_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection

    from .._inspect.queues import QueueInfo
    from .._queues import QueueMethods

T = TypeVar("T")

_HEAD: Final = ("queue", "due", "scheduled", "running", "slots", "paused")


def _run(
    ctx: click.Context,
    database_url: str | None,
    engine: str | None,
    app_dir: Path,
    schema: str | None,
    table_prefix: str,
    action: "Callable[[Connection, QueueMethods], T]",
) -> T:
    """Run an action in one transaction, with the queue of these tables."""
    from sqlalchemy import MetaData

    from .._process.engines import run_in_transaction
    from .._queues import QueueMethods
    from ..models import build_models
    from ..schema import check as check_schema

    def act(connection: "Connection") -> T:
        check_schema(connection, schema=schema, table_prefix=table_prefix)
        methods = QueueMethods()
        methods.models = build_models(MetaData(), schema=schema, table_prefix=table_prefix)
        try:
            return action(connection, methods)
        except ValueError as error:
            raise CommandError(USAGE, str(error)) from None

    return run_in_transaction(*source_of(ctx, database_url, engine, app_dir), act)


@click.command()
@click.argument("queue")
@click.option("--by", help="Who pauses it; by default the user of this system.")
@click.option("--reason", help="Why, for those who wonder.")
@click.option(
    "--until",
    type=Moment(),
    help="When it is over by itself: a time such as 2026-12-24T18:00+01:00, or a duration such as "
    "30m. By default it has no end.",
)
@connection_options
@schema_options
@click.pass_context
def pause(
    ctx: click.Context,
    /,
    queue: str,
    by: str | None,
    reason: str | None,
    until: Any,
    **where: Any,
) -> int:
    """Let no worker claim from QUEUE.

    All workers obey within a second. What runs goes on to its end.
    """
    by = _user() if by is None else by

    def act(connection: "Connection", queues: "QueueMethods") -> str:
        from .._inspect.queues import paused_queues

        doubt = _doubt(connection, queue, where)
        queues.pause(connection, queue, by=by, reason=reason, until=until)
        click.echo(doubt, err=True, nl=False)
        paused = paused_queues(connection, where["schema"], where["table_prefix"])
        return next((str(one) for one in paused if one.queue == queue), f"{queue!r} is not paused")

    click.echo(_run(ctx, **where, action=act))
    return OK


def _doubt(connection: "Connection", queue: str, where: "Mapping[str, Any]") -> str:
    """A line about a queue that has no jobs, workers or settings: its name may be mistyped."""
    from .._db.errors import did_you_mean
    from .._inspect.queues import all_queues

    known = [one.queue for one in all_queues(connection, where["schema"], where["table_prefix"])]
    if queue in known:
        return ""
    question = did_you_mean(queue, known)
    return f"queue {queue!r} has no jobs and no workers{question and '; '}{question}\n"


def _user() -> str | None:
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # in a container the user id may have no name
        return None


@click.command()
@click.argument("queue")
@connection_options
@schema_options
@click.pass_context
def resume(ctx: click.Context, /, queue: str, **where: Any) -> int:
    """Let workers claim from QUEUE again."""
    was_paused = _run(
        ctx, **where, action=lambda connection, queues: queues.resume(connection, queue)
    )
    state = "is not paused any more" if was_paused else "was not paused"
    click.echo(f"queue {queue!r} {state}")
    return OK


@click.command()
@click.argument("queue")
@click.argument("slots", metavar="N|default")
@connection_options
@schema_options
@click.pass_context
def slots(ctx: click.Context, /, queue: str, slots: str, **where: Any) -> int:
    """Let each worker run N jobs of QUEUE at once, instead of its own number.

    All workers obey within a second; "default" gives each its own number back.
    """
    try:
        count = None if slots == "default" else int(slots)
    except ValueError:
        raise CommandError(USAGE, f"{slots!r} is neither a number nor 'default'") from None

    def act(connection: "Connection", queues: "QueueMethods") -> None:
        doubt = _doubt(connection, queue, where)
        queues.set_slots(connection, queue, count)
        click.echo(doubt, err=True, nl=False)

    _run(ctx, **where, action=act)
    each = "as many slots as it was started with" if count is None else f"{count} slots"
    click.echo(f"each worker has {each} for queue {queue!r}")
    return OK


@click.command()
@connection_options
@schema_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a queue.")
@click.pass_context
def queues(ctx: click.Context, /, as_json: bool, **where: Any) -> int:
    """List the queues: their jobs, the slots of the workers that beat, and who paused what.

    It counts up to 10,000 jobs of each priority, the scheduled ones and the others apart.
    """

    def act(connection: "Connection", _: "QueueMethods") -> "list[QueueInfo]":
        from .._inspect.queues import all_queues

        return all_queues(connection, where["schema"], where["table_prefix"])

    found = _run(ctx, **where, action=act)
    if as_json:
        for queue in found:
            click.echo(json.dumps(_as_json(queue)))
    else:
        _print_table([_HEAD, *(_row(queue) for queue in found)])
    return OK


def _as_json(queue: "QueueInfo") -> dict[str, Any]:
    paused = queue.paused
    return {
        "queue": queue.queue,
        "due": queue.due,
        "scheduled": queue.scheduled,
        "running": queue.running,
        "workers": queue.workers,
        "slots": queue.slots,
        "set_slots": queue.set_slots,
        "paused": None
        if paused is None
        else {
            "at": paused.at.astimezone(UTC).isoformat(),
            "by": paused.by,
            "reason": paused.reason,
            "until": paused.until and paused.until.astimezone(UTC).isoformat(),
        },
    }


def _row(queue: "QueueInfo") -> tuple[str, ...]:
    each = "" if queue.set_slots is None else f" ({queue.set_slots} each)"
    paused = str(queue.paused).partition(" is paused ")[2] if queue.paused else ""
    counts = (queue.due, queue.scheduled, queue.running)
    return (queue.queue, *map(str, counts), f"{queue.slots}{each}", paused)


def _print_table(rows: list[tuple[str, ...]]) -> None:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (
            cell.rjust(width) if 0 < place < 4 else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        click.echo("  ".join(cells).rstrip())


@click.command()
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@connection_options
@schema_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a queue.")
@click.option(
    "--sql", is_flag=True, help="Print the SQL of an autoscaler for QUEUE; needs no database."
)
@click.pass_context
def pressure(
    ctx: click.Context, /, names: tuple[str, ...], as_json: bool, sql: bool, **where: Any
) -> int:
    """Tell how many jobs wait in each QUEUE, up to 10,001, and for how many seconds.

    Without QUEUE, in all queues. A paused queue counts as empty. With --sql, print a statement that
    returns the number of jobs that are due in QUEUE, as KEDA and others take it.
    """
    tables = {"schema": where["schema"], "table_prefix": where["table_prefix"]}
    if sql:
        from .._inspect.pressure import pressure_sql

        if len(names) != 1:
            raise CommandError(USAGE, "--sql takes one QUEUE")
        click.echo(pressure_sql(names[0], **tables))
        return OK

    def act(connection: "Connection", queues: "QueueMethods") -> dict[str, Any]:
        from .._inspect.queues import all_queues

        wanted = names or [queue.queue for queue in all_queues(connection, **tables)]
        return {name: queues.pressure(connection, name) for name in wanted}

    found = _run(ctx, **where, action=act)
    for name, one in found.items():
        if as_json:
            click.echo(json.dumps({"queue": name, "due": one.due, "oldest_age": one.oldest_age}))
        else:
            age = f", the first for {one.oldest_age:.1f} s" if one.due else ""
            click.echo(f"{name}: {one.due} due{age}")
    return OK
