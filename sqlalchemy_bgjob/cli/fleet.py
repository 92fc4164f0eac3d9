"""``workers`` and ``stats``: who works, and how the queue is as a whole."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from .._process.exits import OK
from .on_tables import json_option, read, tables_options
from .output import counted, print_json, print_table, shown

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .._inspect.fleet import WorkerInfo
    from ..bgjob import BGJob

_HEAD: Final = ("id", "host", "pid", "state", "running", "silent s", "listens", "version", "queues")
_FAILURES: Final = 10


@click.command()
@tables_options
@json_option
@click.pass_context
def workers(ctx: click.Context, /, as_json: bool, **where: Any) -> int:
    """List the workers: where they run, what they serve, and how long they have been silent.

    A worker is lost when it has been silent for longer than its lease timeout: others take its
    jobs.
    """

    def look(connection: "Connection", _: "BGJob[Any, Any]") -> "list[WorkerInfo]":
        from .._inspect.fleet import workers

        return workers(connection, where["schema"], where["table_prefix"])

    found = read(ctx, where, look)
    if as_json:
        for one in found:
            print_json(asdict(one) | {"alive": one.alive})
        return OK
    print_table(_HEAD, map(_row, found), numbers=("id", "pid", "running", "silent s"))
    return OK


def _row(worker: "WorkerInfo") -> tuple[str, ...]:
    queues = ", ".join(f"{queue}:{slots}" for queue, slots in sorted(worker.queues.items()))
    return (
        *(str(worker.id), worker.hostname, str(worker.pid), "alive" if worker.alive else "lost"),
        *(str(worker.running), f"{worker.silent_for:.1f}", "yes" if worker.listens else "no"),
        *(worker.version, queues),
    )


@click.command()
@tables_options
@json_option
@click.pass_context
def stats(ctx: click.Context, /, as_json: bool, **where: Any) -> int:
    """Tell how the queue is: what waits, who works, and what died in the last hour.

    Of each queue and priority up to 10,000 jobs are counted, and of the jobs that died up to
    10,000. Where counting stops, numbers have a +, and are lower bounds.
    """

    def look(connection: "Connection", jobs: "BGJob[Any, Any]") -> dict[str, Any]:
        from .._inspect import jobs as reads
        from .._inspect.fleet import workers
        from .._inspect.queues import all_queues
        from .._sql import statements_of
        from .._sql.search_terms import parse

        tables, statements = (where["schema"], where["table_prefix"]), statements_of(jobs.models)
        queues, since = all_queues(connection, *tables), parse("since:1h")
        beating = [one for one in workers(connection, *tables) if one.alive]
        return {
            "due": sum(one.due for one in queues),
            "scheduled": sum(one.scheduled for one in queues),
            "running": sum(one.running for one in queues),
            "more": any(one.stopped for one in queues),
            "oldest_age": max((one.oldest_age for one in queues), default=0.0),
            "queues": len(queues),
            "paused": [one.queue for one in queues if one.paused],
            "unserved": [one.queue for one in queues if one.due and not one.workers],
            "workers": len(beating),
            "slots": sum(one.slots for one in queues),
            "died_last_hour": reads.count_dead(connection, statements, since),
            "failures": [
                {"type": one.type, "error_type": one.error_type, "count": one.count}
                for one in reads.dead_groups(connection, statements, since, size=_FAILURES)
            ],
        }

    found = read(ctx, where, look)
    if as_json:
        print_json(found)
    else:
        _print_stats(found)
    return OK


def _print_stats(found: dict[str, Any]) -> None:
    from .._inspect.jobs import MOST

    more = "+" if found["more"] else ""
    states = (f"{found[state]:,}{more} {state}" for state in ("due", "scheduled", "running"))
    click.echo(f"jobs:     {', '.join(states)}")
    click.echo(f"oldest:   due for {found['oldest_age']:.1f} s")
    click.echo(f"workers:  {found['workers']}, with {counted(found['slots'], 'slot')}")
    for name, words in (("paused", "paused:   "), ("unserved", "unserved: ")):
        if found[name]:
            click.echo(words + ", ".join(map(shown, found[name])))
    click.echo(f"dead:     {counted(found['died_last_hour'], most=MOST)} in the last hour")
    for one in found["failures"]:
        click.echo(
            f"{one['count']:>8,}  {shown(one['type'])}: {shown(one['error_type'] or 'no error')}"
        )
