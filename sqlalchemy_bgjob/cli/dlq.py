"""``dlq``: looks at dead jobs, brings them back, deletes them."""

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from .._process.exits import FAILED, OK, USAGE, CommandError
from .on_tables import Acted, act, app_option, json_arg, tables_options, usage_errors
from .output import arg_of, counted, moment, print_job, print_json, shown, tell_of_more
from .param_types import Moment, Seconds

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

    from .._sql import Statements
    from ..bgjob import BGJob
    from ..models import Models

T = TypeVar("T")

_MOST: Final = 100_000
"""The most lines of a list."""
_MOST_IDS: Final = 20
"""Ids that a text names; --json has all."""
_MOST_CHARACTERS: Final = 120
"""Of an error in a list; show has all of it."""
_FILTERS: Final = ("type", "queue", "error_type", "since", "ids")


class _Tables(NamedTuple):
    """The queue's tables, without an application."""

    models: "Models"
    statements: "Statements"


@click.group()
def dlq() -> None:
    """Look at dead jobs, bring them back, or delete them.

    Reading needs the privileges of `grants --dashboard`, and acting those of `grants --operator`.
    """


def _filters(command: Any) -> Any:
    """Options that say which dead jobs are meant. No environment variable and no file sets them."""
    for add in (
        click.option("--id", "ids", multiple=True, metavar="ID", help="Only this job; repeatable."),
        click.option(
            "--since",
            type=Moment(),
            help="Only jobs that died since a time such as 2026-12-24T18:00+01:00, or within a "
            "duration such as 1h.",
        ),
        click.option("--error-type", help="Only errors that begin with this, up to a colon."),
        click.option("--queue", help="Only of this queue."),
        click.option("--where-type", "--type", "type", metavar="TYPE", help="Only of this type."),
    ):
        command = add(command)
    return command


def _common(command: Any) -> Any:
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    return tables_options(as_json(command))


def _limit(default: int | None, help: str, *, most: int | None = None) -> Callable[[Any], Any]:
    range = click.IntRange(1, most)
    return click.option("--limit", type=range, default=default, show_default=True, help=help)


def _where(models: "Models", options: Mapping[str, Any]) -> "ColumnElement[bool]":
    """The condition that a command's filters make together."""
    from sqlalchemy import and_, func, true

    from .._drafts.validation import seconds
    from ..models import error_type_of

    dead = models.dead_job.c
    columns = {"type": dead.type, "queue": dead.queue, "error_type": error_type_of(dead.last_error)}
    given = {name: options[name] for name in columns if options[name] is not None}
    conditions = [columns[name] == value for name, value in given.items()]
    if options["ids"]:
        conditions.append(dead.job_id.in_(options["ids"]))
    if (since := options["since"]) is not None:
        if not isinstance(since, datetime):
            since = func.now() - timedelta(seconds=seconds("since", since))
        conditions.append(dead.moved_at >= since)
    return and_(true(), *conditions)


def _told(options: Mapping[str, Any], **more: Any) -> dict[str, Any]:
    """A command's filters as the audit has them."""
    return {name: options[name] or None for name in _FILTERS} | more


def _is_filtered(options: Mapping[str, Any]) -> bool:
    return any(options[name] not in (None, ()) for name in _FILTERS)


def _run(
    ctx: click.Context,
    options: Mapping[str, Any],
    action: Callable[["Connection", _Tables], T],
    audit: Callable[[T], Acted] | None = None,
) -> T:
    """Connect, check the tables, and do *action* in a transaction; see :func:`.on_tables.act`."""
    from .._sql import statements_of

    try:
        return act(
            ctx,
            options,
            lambda connection, jobs: action(
                connection, _Tables(jobs.models, statements_of(jobs.models))
            ),
            audit=audit,
        )
    except ValueError as error:  # a duration or a rate out of its range
        raise CommandError(USAGE, str(error)) from None


@dlq.command("list")
@_filters
@_limit(50, "The most lines.", most=_MOST)
@_common
@click.pass_context
def list_(
    ctx: click.Context,
    /,
    limit: int,
    as_json: bool,
    **options: Any,
) -> int:
    """List dead jobs, the one that died last first; with --json one object a line."""

    def look(connection: "Connection", tables: _Tables) -> list[Any]:
        which = _where(tables.models, options)
        return list(connection.execute(tables.statements.dead_jobs.page(which, limit + 1)))

    found = _run(ctx, options, look)
    for row in found[:limit]:
        if as_json:
            print_json(_facts(row))
        else:
            error = shown((row.last_error or "").partition("\n")[0], _MOST_CHARACTERS)
            click.echo(
                f"{moment(row.moved_at)}  {shown(row.job_id)}  {shown(row.type)}  "
                f"in {shown(row.queue)}, attempt {row.attempt}: {error or 'no error'}"
            )
    _tell_of_rest(found, limit, options)
    return OK


@dlq.command()
@_filters
@_limit(100, "The most lines.", most=_MOST)
@_common
@click.pass_context
def summary(
    ctx: click.Context,
    /,
    limit: int,
    as_json: bool,
    **options: Any,
) -> int:
    """Count dead jobs by type and error, the most frequent first; with --json one object a line."""
    from dataclasses import asdict

    from .._lifecycle import dead_jobs

    def look(connection: "Connection", tables: _Tables) -> list[dead_jobs.DeadSummary]:
        which = _where(tables.models, options)
        page: list[dead_jobs.DeadSummary] = dead_jobs.summary(*tables, connection, which, limit + 1)
        return page

    found = _run(ctx, options, look)
    for line in found[:limit]:
        if as_json:
            print_json(asdict(line))
        else:
            error = shown(line.error_type or "no error", _MOST_CHARACTERS)
            click.echo(
                f"{line.count:>8,}  {shown(line.type)}: {error}, "
                f"{moment(line.first)} to {moment(line.last)}"
            )
    _tell_of_rest(found, limit, options)
    return OK


@dlq.command()
@_common
@click.argument("id")
@click.pass_context
def show(ctx: click.Context, /, id: str, as_json: bool, **options: Any) -> int:
    """Show all of a dead job: its arg, headers and errors. ID is the job's, or the dead row's.

    One job id may have died more than once: each time is shown, the last one first. Without the
    privilege to read args they are left out. The exit code is 1 if there is none.
    """
    from sqlalchemy import or_

    from ..models import parsed_errors

    def look(connection: "Connection", tables: _Tables) -> list[Any]:
        from .._inspect.reading import can_read_dead_args

        dead = tables.models.dead_job.c
        which = or_(dead.job_id == id, dead.id == id)
        with_arg = can_read_dead_args(connection, tables.models)
        page = tables.statements.dead_jobs.page(which, None, with_arg=with_arg)
        return list(connection.execute(page))

    found = _run(ctx, options, look)
    for row in found:
        facts = {**_facts(row), "arg": arg_of(getattr(row, "arg", None)), "headers": row.headers}
        if as_json:
            print_json(facts | {"errors": row.errors})
        else:
            print_job(facts, parsed_errors(row.errors or ()))
    if not found:
        click.echo(f"no dead job has the id {id!r}", err=True)
    return OK if found else FAILED


@dlq.command()
@_common
@app_option
@click.argument("id")
@click.argument("arg", metavar="JSON")
@click.pass_context
def edit(
    ctx: click.Context, /, id: str, arg: str, app: str | None, as_json: bool, **where: Any
) -> int:
    """Give a dead job another arg, before it is redriven. ID is the job's.

    Of a job that died more than once it is the last time. With --app the arg is checked against the
    handler; without, any JSON will do. A JSON of "-" is read from stdin. The exit code is 1 if no
    dead job has this id.
    """
    value = json_arg(arg)

    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> bool:
        from sqlalchemy.orm import Session

        from .._inspect.jobs import all_of
        from .._sql import statements_of

        found = all_of(connection, statements_of(jobs.models), id, args=False)
        row_id = next((one.row_id for one in found if one.row_id is not None), None)
        with Session(connection, join_transaction_mode="rollback_only") as session, usage_errors():
            dead = session.get(jobs.DeadJob, row_id, with_for_update=True) if row_id else None
            if dead is None:
                return False
            dead.arg = value
            session.flush()
            return True

    def told(found: bool) -> Acted:
        from .._web.redaction import SECRETS, Redaction

        return Acted("edit", found, {"id": id}, {"arg": Redaction(SECRETS).shown(value)})

    if not act(ctx, where, do, audit=told, app=app):
        click.echo(f"no dead job has the id {id!r}", err=True)
        return FAILED
    _say({"edited": id}, f"the arg of {shown(id)} is changed; it is still dead", as_json=as_json)
    return OK


@dlq.command()
@_filters
@click.option("--all", "everything", is_flag=True, help="All of them, without a condition.")
@click.option(
    "--delay",
    type=Seconds(),
    default=0.0,
    show_default=True,
    help="How long until the first is due.",
)
@click.option("--per-second", type=click.FLOAT, help="How many become due each second.")
@_limit(None, "The most to bring back, those that died first.")
@click.option("--dry-run", is_flag=True, help="Change nothing; count by type.")
@_common
@click.pass_context
def redrive(
    ctx: click.Context,
    /,
    everything: bool,
    delay: float,
    per_second: float | None,
    limit: int | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Queue dead jobs again, in one transaction; prints their ids.

    The exit code is 1 if there are none, or if some stay dead, because a live job has their id or
    unique key.
    """
    from .._lifecycle import operate

    if everything == _is_filtered(options):
        raise CommandError(
            USAGE,
            "say which dead jobs: --type, --queue, --error-type, --since or --id; or --all, "
            "without these",
        )

    def act(connection: "Connection", tables: _Tables) -> Any:
        which = _where(tables.models, options)
        return operate.redrive(
            *tables, connection, which, delay, limit, per_second=per_second, dry_run=dry_run
        )

    def told(done: Any) -> Acted:
        of = _told(options, delay=delay or None, per_second=per_second, limit=limit)
        return Acted("redrive", len(done.ids), of)

    done = _run(ctx, options, act, None if dry_run else told)
    if dry_run:
        counts = ", ".join(f"{shown(type)} {count:,}" for type, count in done.items())
        _say(
            {"would_redrive": done},
            f"would redrive {_dead(sum(done.values()))}{counts and ': '}{counts}",
            as_json=as_json,
        )
        return OK
    words = f"redrove {_dead(len(done.ids))}{_named(done.ids)}"
    if done.left:
        words += (
            f"\nleft {_dead(len(done.left))}, as a live job has the id or unique key"
            f"{_named(done.left)}"
        )
    _say({"redriven": done.ids, "left": done.left}, words, as_json=as_json)
    return OK if done.ids and not done.left else FAILED


@dlq.command()
@_filters
@click.option(
    "--older-than", type=Seconds(), required=True, help="Since they died, such as 12h or 30d."
)
@_limit(None, "The most to delete, those that died first.")
@click.option("--dry-run", is_flag=True, help="Delete nothing; only count.")
@click.option("--yes", is_flag=True, help="Do it; without this, jobs are only counted.")
@_common
@click.pass_context
def prune(
    ctx: click.Context,
    /,
    older_than: float,
    limit: int | None,
    dry_run: bool,
    yes: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Delete dead jobs that died long ago, in one transaction: says how many, then needs --yes."""
    from .._lifecycle import operate

    def act(connection: "Connection", tables: _Tables) -> int:
        which = _where(tables.models, options)
        count: int = operate.prune(*tables, connection, older_than, which, limit, dry_run=True)
        if yes and not dry_run:
            if not as_json:
                click.echo(f"found {_dead(count)}")
            count = operate.prune(*tables, connection, older_than, which, limit)
        return count

    def told(count: int) -> Acted:
        return Acted("delete", count, _told(options, older_than=older_than, limit=limit))

    count = _run(ctx, options, act, told if yes and not dry_run else None)
    verb = "pruned" if yes and not dry_run else "would_prune"
    _say({verb: count}, f"{verb.replace('_', ' ')} {_dead(count)}", as_json=as_json)
    if not (yes or dry_run):
        click.echo("nothing is changed; add --yes to delete them", err=True)
        return USAGE
    return OK


# ---- output ------------------------------------------------------------------------------------


def _tell_of_rest(found: Sequence[object], limit: int, options: Mapping[str, Any]) -> None:
    """Say on stderr that a list is cut, or empty: that may be good news, or a mistyped filter."""
    if not found:
        such = " of this kind" if _is_filtered(options) else ""
        click.echo(f"there are no dead jobs{such}", err=True)
    elif len(found) > limit:
        tell_of_more(limit, _MOST)


def _facts(row: Any) -> dict[str, Any]:
    error_type = None if row.last_error is None else row.last_error.split("\n")[0].split(":")[0]
    return {
        "job_id": row.job_id,
        "id": row.id,
        "type": row.type,
        "queue": row.queue,
        "priority": row.priority,
        "attempt": row.attempt,
        "crashes": row.crashes,
        "moved_at": row.moved_at,
        "job_created_at": row.job_created_at,
        "error_type": error_type,
        "last_error": row.last_error,
    }


def _say(facts: Mapping[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        print_json(facts)
    else:
        click.echo(words)


def _named(ids: tuple[str, ...]) -> str:
    """The ids, one a line, for the end of a sentence."""
    lines = [f"\n  {shown(id)}" for id in ids[:_MOST_IDS]]
    if len(ids) > _MOST_IDS:
        lines.append(f"\n  and {len(ids) - _MOST_IDS} more; --json names all")
    return ":" + "".join(lines) if lines else ""


def _dead(count: int) -> str:
    return counted(count, "dead job")
