"""``schedules``: lists them with their next times, pauses and resumes them, runs one now."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from .._process.exits import FAILED, OK, CommandError
from .on_tables import Acted, act, app_option, json_option, read, tables_options, usage_errors
from .output import moment, print_json, print_table
from .queues import user

if TYPE_CHECKING:
    from datetime import datetime

    from sqlalchemy import Connection

    from .._inspect.schedules import ScheduleInfo
    from ..bgjob import BGJob

_HEAD: Final = ("name", "type", "queue", "cron", "timezone", "last", "next", "paused")


@click.group()
def schedules() -> None:
    """Look at schedules, pause and resume them, or enqueue the job of one now.

    Those of the code have rows here from when a worker has started with them.
    """


@schedules.command("list")
@click.option(
    "--next",
    "times",
    type=click.IntRange(1, 100),
    default=1,
    show_default=True,
    help="How many of the next times to show.",
)
@tables_options
@json_option
@click.pass_context
def list_(ctx: click.Context, /, times: int, as_json: bool, **where: Any) -> int:
    """List the schedules, by name; with --json one object a line, with `next` as a list."""

    def look(connection: "Connection", _: "BGJob[Any, Any]") -> "list[ScheduleInfo]":
        from .._inspect.schedules import schedules

        return schedules(connection, where["schema"], where["table_prefix"], most=100_000)

    found = read(ctx, where, look)
    rows = []
    for one in found:
        upcoming = _upcoming(one, times)
        if as_json:
            facts = asdict(one)
            del facts["now"], facts["next_at"]
            print_json(facts | {"next": upcoming})
        rows.append(
            (
                *(one.name, one.type, one.queue, one.cron, one.timezone, moment(one.last_at)),
                *(", ".join(map(moment, upcoming)), _paused(one)),
            )
        )
    if not as_json:
        print_table(_HEAD, rows)
    return OK


def _upcoming(schedule: "ScheduleInfo", count: int) -> "list[datetime]":
    from .._handlers.timetable import timetable

    if schedule.next_at is None:
        return []
    try:
        return timetable(schedule.cron, schedule.timezone).upcoming(schedule.next_at, count)
    except ValueError:  # SQL may have written what nobody can read
        return [schedule.next_at]


def _paused(schedule: "ScheduleInfo") -> str:
    if schedule.paused_at is None:
        return ""
    by = f" by {schedule.paused_by}" if schedule.paused_by else ""
    reason = f": {schedule.pause_reason}" if schedule.pause_reason else ""
    return f"since {moment(schedule.paused_at)}{by}{reason}"


@schedules.command()
@click.argument("name")
@click.option("--by", help="Who pauses it; by default your user name.")
@click.option("--reason", help="Why it is paused, for others to see.")
@tables_options
@click.pass_context
def pause(
    ctx: click.Context, /, name: str, by: str | None, reason: str | None, **where: Any
) -> int:
    """Let the schedule NAME fire no more. The exit code is 1 if there is none."""
    by = user() if by is None else by

    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> bool:
        with usage_errors():
            return jobs.schedules.pause(connection, name, by=by, reason=reason)

    told = {"name": name, "by": by, "reason": reason}
    if not act(ctx, where, do, audit=lambda found: Acted("schedule-pause", found, told)):
        click.echo(f"there is no schedule {name!r}; `schedules list` names all", err=True)
        return FAILED
    click.echo(f"schedule {name!r} is paused")
    return OK


@schedules.command()
@click.argument("name")
@tables_options
@click.pass_context
def resume(ctx: click.Context, /, name: str, **where: Any) -> int:
    """Let the schedule NAME fire again; what it has missed is not made up for.

    The exit code is 1 if no paused schedule has this name.
    """

    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> "datetime | None":
        with usage_errors():
            return jobs.schedules.resume(connection, name)

    def told(next_at: "datetime | None") -> Acted:
        return Acted("schedule-resume", next_at is not None, {"name": name})

    next_at = act(ctx, where, do, audit=told)
    if next_at is None:
        click.echo(f"there is no schedule {name!r} that is paused", err=True)
        return FAILED
    click.echo(f"schedule {name!r} is not paused any more; it fires next at {moment(next_at)}")
    return OK


@schedules.command("run-now")
@click.argument("name")
@tables_options
@app_option
@click.pass_context
def run_now(ctx: click.Context, /, name: str, app: str | None, **where: Any) -> int:
    """Enqueue the job of the schedule NAME now, whether it is paused or not; prints the job's id.

    With --app, a schedule of the code needs no row yet. The exit code is 1 if there is none.
    """

    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> str:
        with usage_errors():
            try:
                return jobs.schedules.run_now(connection, name)
            except LookupError as error:
                raise CommandError(FAILED, str(error)) from None

    def told(id: str) -> Acted:
        return Acted("schedule-run", 1, {"id": id, "name": name})

    click.echo(act(ctx, where, do, audit=told, app=app))
    return OK
