"""``queues``, ``pause``, ``resume``, ``slots`` and ``pressure``: what operators do to queues."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from .._process.exits import OK, USAGE, CommandError
from .on_tables import Acted, act, json_option, read, tables_options, usage_errors
from .output import print_json, print_table, shown
from .param_types import Moment

if TYPE_CHECKING:
    from collections.abc import Mapping

    from sqlalchemy import Connection

    from .._inspect.queues import QueueInfo
    from ..bgjob import BGJob

_HEAD: Final = ("queue", "due", "scheduled", "running", "slots", "paused")


@click.command()
@click.argument("queue")
@click.option("--by", help="Who pauses it; by default your user name.")
@click.option("--reason", help="Why it is paused, for others to see.")
@click.option(
    "--until",
    type=Moment(),
    help="When the pause ends by itself: a time such as 2026-12-24T18:00+01:00, or a duration "
    "such as 30m. By default it has no end.",
)
@tables_options
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
    by = user() if by is None else by

    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> str:
        from .._inspect.queues import paused_queues

        doubt = _doubt(connection, queue, where)
        with usage_errors():
            jobs.pause(connection, queue, by=by, reason=reason, until=until)
        click.echo(doubt, err=True, nl=False)
        paused = paused_queues(connection, where["schema"], where["table_prefix"])
        return next((str(one) for one in paused if one.queue == queue), f"{queue!r} is not paused")

    told = {"queue": queue, "by": by, "reason": reason, "until": until}
    click.echo(act(ctx, where, do, audit=lambda _: Acted("pause", 1, told)))
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


def user() -> str | None:
    """The user of this system; None where it has no name."""
    import getpass

    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):  # in a container the user id may have no name
        return None


@click.command()
@click.argument("queue")
@tables_options
@click.pass_context
def resume(ctx: click.Context, /, queue: str, **where: Any) -> int:
    """Let workers claim from QUEUE again."""

    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> bool:
        with usage_errors():
            return jobs.resume(connection, queue)

    told = {"queue": queue}
    was_paused = act(ctx, where, do, audit=lambda changed: Acted("resume", changed, told))
    state = "is not paused any more" if was_paused else "was not paused"
    click.echo(f"queue {queue!r} {state}")
    return OK


@click.command()
@click.argument("queue")
@click.argument("slots", metavar="N|default")
@tables_options
@click.pass_context
def slots(ctx: click.Context, /, queue: str, slots: str, **where: Any) -> int:
    """Let each worker run N jobs of QUEUE at once, instead of its own number.

    All workers obey within a second; "default" gives each its own number back.
    """
    try:
        count = None if slots == "default" else int(slots)
    except ValueError:
        raise CommandError(USAGE, f"{slots!r} is neither a number nor 'default'") from None

    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> None:
        doubt = _doubt(connection, queue, where)
        with usage_errors():
            jobs.set_slots(connection, queue, count)
        click.echo(doubt, err=True, nl=False)

    told = {"queue": queue, "slots": "default" if count is None else count}
    act(ctx, where, do, audit=lambda _: Acted("slots", 1, told))
    each = "as many slots as it was started with" if count is None else f"{count} slots"
    click.echo(f"each worker has {each} for queue {queue!r}")
    return OK


@click.command()
@tables_options
@json_option
@click.pass_context
def queues(ctx: click.Context, /, as_json: bool, **where: Any) -> int:
    """List the queues: their jobs, the slots of the workers that beat, and who paused what.

    It counts up to 10,000 jobs of each priority, the scheduled ones and the others apart. Where it
    stops, numbers have a +, and are lower bounds.
    """

    def look(connection: "Connection", _: "BGJob[Any, Any]") -> "list[QueueInfo]":
        from .._inspect.queues import all_queues

        return all_queues(connection, where["schema"], where["table_prefix"])

    found = read(ctx, where, look)
    if as_json:
        for queue in found:
            print_json(asdict(queue))
    else:
        print_table(_HEAD, map(_row, found), numbers=_HEAD[1:4])
    return OK


def _row(queue: "QueueInfo") -> tuple[str, ...]:
    each = "" if queue.set_slots is None else f" ({queue.set_slots} each)"
    paused = str(queue.paused).partition(" is paused ")[2] if queue.paused else ""
    more = "+" if queue.stopped else ""
    counts = (f"{count}{more}" for count in (queue.due, queue.scheduled, queue.running))
    return (queue.queue, *counts, f"{queue.slots}{each}", paused)


@click.command()
@click.argument("names", metavar="[QUEUE]...", nargs=-1)
@tables_options
@json_option
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

    def look(connection: "Connection", jobs: "BGJob[Any, Any]") -> dict[str, Any]:
        from .._inspect.queues import all_queues

        wanted = names or [queue.queue for queue in all_queues(connection, **tables)]
        with usage_errors():
            return {name: jobs.pressure(connection, name) for name in wanted}

    found = read(ctx, where, look)
    for name, one in found.items():
        if as_json:
            print_json({"queue": name, "due": one.due, "oldest_age": one.oldest_age})
        else:
            age = f", the first for {one.oldest_age:.1f} s" if one.due else ""
            click.echo(f"{shown(name)}: {one.due} due{age}")
    return OK
