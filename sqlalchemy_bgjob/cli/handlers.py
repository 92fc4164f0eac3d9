"""``handlers`` and ``enqueue``: what an application can do, and a job of it."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._process.exits import OK, USAGE, CommandError
from .on_tables import (
    act,
    app_option,
    json_arg,
    json_option,
    tables_options,
    usage_errors,
)
from .options import app_dir_option, import_option, source_of
from .output import print_json, print_table, shown
from .param_types import Seconds

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from .._enqueue.one import JobRef
    from ..bgjob import BGJob


@click.command()
@click.argument("app", envvar="BGJOB_APP")
@click.option("--type", "type", help="Only the handler of this type, with all that it says.")
@app_dir_option
@import_option
@json_option
@click.pass_context
def handlers(
    ctx: click.Context,
    /,
    app: str,
    type: str | None,
    app_dir: Path,
    imports: tuple[str, ...],
    as_json: bool,
) -> int:
    """List the handlers of an application; needs no database.

    APP is as for `worker`. With --json, or --type, the JSON schema of the arg is told too.
    """
    from .._handlers.description import arg_schema, described
    from .._process.application import load_jobs

    source_of(ctx, None, "none", app_dir)  # the folder is on Python's path then
    registry = load_jobs(app, app_dir, imports).registry
    found = sorted(registry, key=lambda one: (one.type, one.queue))
    if type is not None:
        found = [one for one in found if one.type == type]
        if not found:
            known = ", ".join(sorted({one.type for one in registry})) or "none"
            raise CommandError(USAGE, f"no handler is registered for {type!r}; known: {known}")
    if as_json:
        for one in found:
            print_json(described(one) | {"arg_schema": arg_schema(one)})
        return OK
    facts = [described(one) for one in found]
    rows = [(one["type"], one["queue"], one["function"], one["summary"]) for one in facts]
    print_table(("type", "queue", "function", "summary"), rows)
    if type is not None:
        for one in found:
            click.echo(f"\n{described(one)['doc']}\narg: {json.dumps(arg_schema(one), indent=2)}")
    return OK


@click.command()
@click.argument("type")
@click.argument("arg", required=False, metavar="[JSON]")
@tables_options
@app_option
@import_option
@click.option("--queue", help="By default the handler's; without --app it must be named.")
@click.option("--delay", type=Seconds(), help="Until it is due: 30s, 5m, 2h.")
@click.option("--priority", type=click.IntRange(-32768, 32767), default=0, show_default=True)
@click.option("--id", help="The job's id; by default a new one.")
@click.option("--unique", metavar="KEY", help="Add none while a live job has this unique key.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.pass_context
def enqueue(
    ctx: click.Context,
    /,
    type: str,
    arg: str | None,
    app: str | None,
    imports: tuple[str, ...],
    queue: str | None,
    delay: float | None,
    priority: int,
    id: str | None,
    unique: str | None,
    as_json: bool,
    **where: Any,
) -> int:
    """Enqueue a job of TYPE with a JSON arg; prints its id.

    With --app the arg is checked against the handler, and the queue is the handler's. Without, any
    JSON will do. A JSON of "-" is read from stdin.
    """
    value = None if arg is None else json_arg(arg)
    options: dict[str, Any] = {"priority": priority}
    given = {"queue": queue, "delay": delay, "id": id, "unique": unique}
    options |= {name: one for name, one in given.items() if one is not None}

    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> "JobRef":
        from .._process import loader

        for name in imports:
            loader.import_module(name, where["app_dir"])
        with usage_errors():
            if jobs.registry.find_type(type) is None and queue is None:
                known = ", ".join(sorted({one.type for one in jobs.registry})) or "none"
                raise ValueError(
                    f"no handler is known for {type!r} (known: {known}); name the application by "
                    f"--app MODULE:JOBS, or the queue by --queue"
                )
            return jobs.enqueue(connection, type, value, **options)

    ref = act(ctx, where, do, audit=None, app=app)
    if as_json:
        print_json({"id": ref.id, "inserted": ref.inserted})
        return OK
    click.echo(shown(ref.id))
    if not ref.inserted:
        click.echo("nothing was added: a live job has this unique key", err=True)
    return OK
