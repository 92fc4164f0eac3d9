"""``dlq``: looks at dead jobs, brings them back, deletes them."""

import json
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeVar

import click

from .._process.exits import FAILED, OK, USAGE, CommandError
from .options import Moment, Seconds, connection_options, schema_options, source_of

if TYPE_CHECKING:
    from sqlalchemy import ColumnElement, Connection

    from .._sql import Statements
    from ..models import Models

T = TypeVar("T")

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
        click.option("--id", "ids", multiple=True, metavar="ID", help="Of this job; repeatable."),
        click.option(
            "--since",
            type=Moment(),
            help="That died since a time such as 2026-12-24T18:00+01:00, or within a duration such "
            "as 1h.",
        ),
        click.option("--error-type", help="Whose last error begins with this, up to its colon."),
        click.option("--queue", help="Of this queue."),
        click.option("--where-type", "--type", "type", metavar="TYPE", help="Of this type."),
    ):
        command = add(command)
    return command


def _common(command: Any) -> Any:
    as_json = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    return connection_options(schema_options(as_json(command)))


def _limit(default: int | None, help: str) -> Callable[[Any], Any]:
    return click.option(
        "--limit", type=click.IntRange(1), default=default, show_default=True, help=help
    )


def _where(models: "Models", options: Mapping[str, Any]) -> "ColumnElement[bool]":
    """The condition that a command's filters make together."""
    from sqlalchemy import and_, func, true

    from ..models import error_type_of

    dead = models.dead_job.c
    columns = {"type": dead.type, "queue": dead.queue, "error_type": error_type_of(dead.last_error)}
    given = {name: options[name] for name in columns if options[name] is not None}
    conditions = [columns[name] == value for name, value in given.items()]
    if options["ids"]:
        conditions.append(dead.job_id.in_(options["ids"]))
    if (since := options["since"]) is not None:
        moment = since if isinstance(since, datetime) else func.now() - timedelta(seconds=since)
        conditions.append(dead.moved_at >= moment)
    return and_(true(), *conditions)


def _is_filtered(options: Mapping[str, Any]) -> bool:
    return any(options[name] not in (None, ()) for name in _FILTERS)


def _run(
    ctx: click.Context,
    options: Mapping[str, Any],
    action: Callable[["Connection", _Tables], T],
) -> T:
    """Connect, check the tables, and do *action* in a transaction."""
    from sqlalchemy import MetaData

    from .._inspect.own_columns import add_own_columns
    from .._process.engines import run_in_transaction
    from .._sql import statements_of
    from ..models import build_models
    from ..schema import check

    schema, table_prefix = options["schema"], options["table_prefix"]

    def act(connection: "Connection") -> T:
        check(connection, schema=schema, table_prefix=table_prefix)
        models = build_models(MetaData(), schema=schema, table_prefix=table_prefix)
        add_own_columns(connection, models)
        return action(connection, _Tables(models, statements_of(models)))

    source = source_of(ctx, options["database_url"], options["engine"], options["app_dir"])
    return run_in_transaction(*source, act)


@dlq.command("list")
@_filters
@_limit(50, "The most lines.")
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
        return list(connection.execute(tables.statements.dead_jobs.page(which, limit)))

    found = _run(ctx, options, look)
    for row in found:
        if as_json:
            _print_json(_facts(row))
        else:
            error = _shown((row.last_error or "").partition("\n")[0], _MOST_CHARACTERS)
            click.echo(
                f"{_moment(row.moved_at)}  {_shown(row.job_id)}  {_shown(row.type)}  "
                f"in {_shown(row.queue)}, attempt {row.attempt}: {error or 'no error'}"
            )
    _tell_of_none(found, options)
    return OK


@dlq.command()
@_filters
@_limit(100, "The most lines.")
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
        found: list[dead_jobs.DeadSummary] = dead_jobs.summary(*tables, connection, which, limit)
        return found

    found = _run(ctx, options, look)
    for line in found:
        if as_json:
            _print_json(asdict(line))
        else:
            error = _shown(line.error_type or "no error", _MOST_CHARACTERS)
            click.echo(
                f"{line.count:>8}  {_shown(line.type)}: {error}, "
                f"{_moment(line.first)} to {_moment(line.last)}"
            )
    _tell_of_none(found, options)
    return OK


@dlq.command()
@_common
@click.argument("id")
@click.pass_context
def show(ctx: click.Context, /, id: str, as_json: bool, **options: Any) -> int:
    """Show all of a dead job: its arg, headers and errors. ID is the job's, or the dead row's.

    One job id may have died more than once: each time is shown, the last one first. The exit code
    is 1 if there is none.
    """
    from sqlalchemy import or_

    def look(connection: "Connection", tables: _Tables) -> list[Any]:
        dead = tables.models.dead_job.c
        which = or_(dead.job_id == id, dead.id == id)
        page = tables.statements.dead_jobs.page(which, None, with_arg=True)
        return list(connection.execute(page))

    found = _run(ctx, options, look)
    for row in found:
        facts = {**_facts(row), **_contents(row)}
        if as_json:
            _print_json(facts)
        else:
            for name, value in facts.items():
                if name not in ("last_error", "errors"):
                    click.echo(f"{name + ':':<16}{_shown(_text(value))}")
            for entry in row.errors or ():
                click.echo(f"{'error:':<16}{_shown(json.dumps(entry))}")
            click.echo(f"last_error:\n{_shown(row.last_error or 'none', lines=True)}\n")
    if not found:
        click.echo(f"no dead job has the id {id!r}", err=True)
    return OK if found else FAILED


@dlq.command()
@_filters
@click.option("--all", "everything", is_flag=True, help="All of them, without a condition.")
@click.option(
    "--delay", type=Seconds(), default=0.0, show_default=True, help="Until the first one is due."
)
@click.option("--per-second", type=click.FLOAT, help="How many fall due in a second.")
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

    The exit code is 1 if some stay dead, because a live job has their id or unique key.
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

    try:
        done = _run(ctx, options, act)
    except ValueError as error:  # a rate or a delay out of its range
        raise CommandError(USAGE, str(error)) from None
    if dry_run:
        counts = ", ".join(f"{_shown(type)} {count}" for type, count in done.items())
        _say(
            {"would_redrive": done},
            f"would redrive {_counted(sum(done.values()))}{counts and ': '}{counts}",
            as_json=as_json,
        )
        return OK
    words = f"redrove {_counted(len(done.ids))}{_named(done.ids)}"
    if done.left:
        words += (
            f"\nleft {_counted(len(done.left))}, as a live job has the id or unique key"
            f"{_named(done.left)}"
        )
    _say({"redriven": done.ids, "left": done.left}, words, as_json=as_json)
    return FAILED if done.left else OK


@dlq.command()
@_filters
@click.option(
    "--older-than", type=Seconds(), required=True, help="Since they died, such as 12h or 30d."
)
@_limit(None, "The most to delete, those that died first.")
@click.option("--dry-run", is_flag=True, help="Delete nothing; only count.")
@_common
@click.pass_context
def prune(
    ctx: click.Context,
    /,
    older_than: float,
    limit: int | None,
    dry_run: bool,
    as_json: bool,
    **options: Any,
) -> int:
    """Delete dead jobs that died long ago, in one transaction."""
    from .._lifecycle import operate

    def act(connection: "Connection", tables: _Tables) -> int:
        which = _where(tables.models, options)
        count: int = operate.prune(*tables, connection, older_than, which, limit, dry_run=dry_run)
        return count

    count = _run(ctx, options, act)
    verb = "would_prune" if dry_run else "pruned"
    _say({verb: count}, f"{verb.replace('_', ' ')} {_counted(count)}", as_json=as_json)
    return OK


# ---- output ------------------------------------------------------------------------------------


def _tell_of_none(found: Sequence[object], options: Mapping[str, Any]) -> None:
    """An empty list says so, on stderr: it may be good news, or a mistyped filter."""
    if not found:
        such = " of this kind" if _is_filtered(options) else ""
        click.echo(f"there are no dead jobs{such}", err=True)


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


def _contents(row: Any) -> dict[str, Any]:
    """The arg as JSON where it is JSON, and else how long it is."""
    arg: Any = None
    if row.arg is not None:
        try:
            arg = json.loads(row.arg)
        except ValueError:
            arg = f"{len(row.arg)} bytes"
    return {"arg": arg, "headers": row.headers, "errors": row.errors}


def _text(value: Any) -> str:
    if isinstance(value, datetime):
        return _moment(value)
    return value if isinstance(value, str) else json.dumps(value)


def _print_json(facts: Mapping[str, Any]) -> None:
    click.echo(json.dumps(facts, default=lambda moment: _utc(moment).isoformat()))


def _moment(moment: datetime) -> str:
    return f"{_utc(moment):%Y-%m-%d %H:%M:%S}Z"


def _utc(moment: datetime) -> datetime:
    """The session of the database may have any time zone."""
    return moment.astimezone(UTC)


def _say(facts: Mapping[str, Any], words: str, *, as_json: bool) -> None:
    if as_json:
        _print_json(facts)
    else:
        click.echo(words)


def _counted(count: int) -> str:
    return f"{count} dead job" if count == 1 else f"{count} dead jobs"


def _named(ids: tuple[str, ...]) -> str:
    """The ids, one a line, for the end of a sentence."""
    lines = [f"\n  {_shown(id)}" for id in ids[:_MOST_IDS]]
    if len(ids) > _MOST_IDS:
        lines.append(f"\n  and {len(ids) - _MOST_IDS} more; --json names all")
    return ":" + "".join(lines) if lines else ""


def _shown(text: str, most: int = 0, *, lines: bool = False) -> str:
    """Text with what would move a terminal's cursor escaped; cut, if *most* is given."""
    if most and len(text) > most:
        text = f"{text[:most]}..."
    return "".join(
        c if c.isprintable() or (lines and c == "\n") else f"\\x{ord(c):02x}" for c in text
    )
