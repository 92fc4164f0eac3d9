"""``jobs``: finds live and dead jobs by a search; cancels live ones, edits them, runs them now."""

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

import click

from .._process.exits import FAILED, OK, USAGE, CommandError
from .on_tables import (
    Acted,
    act,
    app_option,
    json_arg,
    json_option,
    read,
    tables_options,
    usage_errors,
)
from .output import (
    arg_of,
    counted,
    moment,
    print_job,
    print_json,
    print_table,
    shown,
    tell_of_more,
)
from .param_types import Moment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from .._inspect.jobs import JobInfo
    from .._lifecycle.cancel import CancelResult
    from .._lifecycle.edit import Edited
    from .._sql.search_terms import Search
    from ..bgjob import BGJob

_PAGE: Final = 500
_SCAN: Final = 100_000
"""How many jobs one statement of a list looks at."""
_MOST: Final = 100_000
"""The most that a list shows."""
_AT_ONCE: Final = 10_000
"""How many jobs one transaction changes."""
_MOST_CHARACTERS: Final = 80
_HEAD: Final = ("id", "state", "type", "queue", "priority", "attempt", "due or dead at", "error")

_UNEDITED: Final[dict[str | None, str]] = {
    None: "there is no live job with the id {!r}",
    "running": "a worker holds the job {!r}",
    "changed": "the job {!r} has another lease by now",
    "waiting": "the job {!r} waits for others of its group, and has no time before that",
}
"""What is told of a job that an edit left as it was."""

# A search may negate a term by a minus, which must not be read as options of one letter.
_SEARCHING: Final[dict[str, Any]] = {
    "ignore_unknown_options": True,
    "help_option_names": ["--help"],
}
_search_argument: Final = click.argument("search", nargs=-1, type=click.UNPROCESSED)


@click.group()
def jobs() -> None:
    """Find jobs, show them, edit them, cancel them, or let them run now.

    SEARCH is as in the dashboard: all terms must fit, a comma is "or", and a minus before a term is
    "not". Fields are state, queue, type, id, key, group, batch, priority, attempt, worker, error,
    since and arg. For example: state:due queue:mail -type:report* 'priority:>5' since:1h
    arg.user.id:42 'error:"timed out"'. The quotes are for the shell.
    """


@jobs.command("list", context_settings=_SEARCHING)
@_search_argument
@click.option(
    "--limit", type=click.IntRange(1, _MOST), default=50, show_default=True, help="The most jobs."
)
@tables_options
@json_option
@click.pass_context
def list_(
    ctx: click.Context, /, search: tuple[str, ...], limit: int, as_json: bool, **where: Any
) -> int:
    """List jobs: live ones, the one that is due first at the top; or with state:dead, dead ones.

    With --json one object a line, without arg and headers, which `jobs show` has.
    """
    wanted = _parsed(search)

    def look(connection: "Connection", jobs: "BGJob[Any, Any]") -> "list[JobInfo]":
        from itertools import islice

        return list(islice(_found(connection, jobs, wanted), limit + 1))

    found = read(ctx, where, look)
    for job in found[:limit] if as_json else ():
        print_json(_facts(job))
    if not as_json:
        print_table(_HEAD, map(_row, found[:limit]), numbers=("priority", "attempt"))
    if len(found) > limit:
        tell_of_more(limit, _MOST)
    return OK


@jobs.command()
@click.argument("id")
@tables_options
@json_option
@click.pass_context
def show(ctx: click.Context, /, id: str, as_json: bool, **where: Any) -> int:
    """Show all of one job: the live one, and each time that it died, with arg, headers and errors.

    Without the privilege to read args they are left out. The exit code is 1 if there is none.
    """

    def look(connection: "Connection", jobs: "BGJob[Any, Any]") -> "list[JobInfo]":
        from .._inspect.jobs import all_of
        from .._inspect.reading import can_read_args
        from .._sql import statements_of

        args = can_read_args(connection, jobs.models)
        return all_of(connection, statements_of(jobs.models), id, args=args)

    found = read(ctx, where, look)
    for job in found:
        facts = {**_facts(job), "arg": arg_of(job.arg), "headers": job.headers}
        if as_json:
            print_json(facts | {"errors": [asdict(error) for error in job.history]})
        else:
            print_job(facts, job.history)
    if not found:
        click.echo(f"there is no job with the id {id!r}; a job that has ended is gone", err=True)
    return OK if found else FAILED


@jobs.command(context_settings=_SEARCHING)
@_search_argument
@click.option("--yes", is_flag=True, help="Do it; without this, jobs are only counted.")
@tables_options
@json_option
@click.pass_context
def cancel(
    ctx: click.Context, /, search: tuple[str, ...], yes: bool, as_json: bool, **where: Any
) -> int:
    """Cancel the live jobs that SEARCH finds: first says how many, then needs --yes.

    Queued ones are deleted, 10,000 in a transaction. The workers of those that run are asked to end
    them. One job, as id:order-7, needs no --yes.
    """
    wanted = _of_live_jobs(search)
    if not _is_confirmed(ctx, where, wanted, "cancel", yes=yes, as_json=as_json):
        return USAGE
    cancelled = 0
    while True:  # first those that no worker holds: there may be very many
        some = _cancel(ctx, where, _queued(wanted), _AT_ONCE)
        cancelled += some.cancelled
        if some.cancelled < _AT_ONCE:
            break
        click.echo(f"cancelled {counted(cancelled)} so far", err=True)
    rest = _cancel(ctx, where, wanted, None)
    cancelled, asked = cancelled + rest.cancelled, rest.asked
    if as_json:
        print_json({"cancelled": cancelled, "asked": asked})
    else:
        words = f"cancelled {counted(cancelled)}"
        if asked:
            words += f", and asked the workers of {counted(asked)} to end them"
        click.echo(words)
    return OK if cancelled or asked else FAILED


def _queued(search: "Search") -> "Search":
    from .._sql.search_terms import Search, Term

    return Search((*search.terms, Term("state", ("running", "cancelling"), negated=True)))


def _cancel(ctx: click.Context, where: Any, search: "Search", limit: int | None) -> "CancelResult":
    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> "CancelResult":
        from .._inspect.jobs import live_condition

        return jobs.cancel_where(connection, live_condition(jobs.models, search), limit=limit)

    def told(done: "CancelResult") -> Acted:
        return Acted("cancel", done.cancelled + done.asked, _told(search))

    return act(ctx, where, do, audit=told)


@jobs.command("run-now", context_settings=_SEARCHING)
@_search_argument
@click.option("--yes", is_flag=True, help="Do it; without this, jobs are only counted.")
@tables_options
@json_option
@click.pass_context
def run_now(
    ctx: click.Context, /, search: tuple[str, ...], yes: bool, as_json: bool, **where: Any
) -> int:
    """Make the jobs due now that SEARCH finds, and that are scheduled or wait for a retry.

    It first says how many jobs the search finds, then needs --yes; one job, as id:order-7, does
    not.
    """
    wanted = _of_live_jobs(search)
    if not _is_confirmed(ctx, where, wanted, "run", yes=yes, as_json=as_json):
        return USAGE
    count = 0

    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> int:
        from .._inspect.jobs import live_condition

        which = live_condition(jobs.models, wanted)
        return jobs.run_now(connection, which, limit=_AT_ONCE)

    while True:
        done = act(ctx, where, do, audit=lambda count: Acted("run", count, _told(wanted)))
        count += done
        if done < _AT_ONCE:
            break
        click.echo(f"{counted(count)} due so far", err=True)
    if as_json:
        print_json({"due": count})
    else:
        click.echo(f"{counted(count)} {'is' if count == 1 else 'are'} due now")
    return OK if count else FAILED


@jobs.command()
@click.argument("id")
@click.argument("arg", required=False, metavar="[JSON]")
@click.option("--headers", metavar="JSON", help="An object, in place of the headers it has.")
@click.option("--priority", type=click.IntRange(-32768, 32767), help="Lower runs first.")
@click.option(
    "--run-at",
    type=Moment(),
    help="When it is due: a time such as 2026-12-24T18:00+01:00, or after a duration such as 1h.",
)
@click.option(
    "--lease",
    type=click.INT,
    help="Only if it has this lease, as `jobs show --json` told: nobody has changed it since.",
)
@app_option
@tables_options
@json_option
@click.pass_context
def edit(
    ctx: click.Context,
    /,
    id: str,
    arg: str | None,
    headers: str | None,
    priority: int | None,
    run_at: datetime | float | None,
    lease: int | None,
    app: str | None,
    as_json: bool,
    **where: Any,
) -> int:
    """Give a queued job another arg, headers, priority or time; `dlq edit` is for dead ones.

    With --app the arg is checked against the handler; without, any JSON will do. A JSON of "-" is
    read from stdin. The exit code is 1 if nothing is changed: there is no such job, it runs, it
    waits for its group, or it has another lease.
    """
    changes: dict[str, Any] = {}
    if arg is not None:
        changes["arg"] = json_arg(arg)
    if headers is not None:
        changes["headers"] = json_arg(headers, "headers are")
    if priority is not None:
        changes["priority"] = priority
    if run_at is not None:
        changes["run_at" if isinstance(run_at, datetime) else "delay"] = run_at
    if not changes:
        raise CommandError(USAGE, "say what to change: a JSON arg, --headers, --priority, --run-at")

    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> "Edited":
        with usage_errors():
            return jobs.edit(connection, id, lease=lease, **changes)

    def told(answer: "Edited") -> Acted:
        from .._web.redaction import SECRETS, Redaction

        given = {name: changes[name] for name in ("arg", "headers") if name in changes}
        plain = {name: one for name, one in changes.items() if name not in given}
        return Acted(
            "change", answer == "edited", {"id": id, **plain}, Redaction(SECRETS).shown(given)
        )

    answer = act(ctx, where, do, audit=told, app=app)
    if answer != "edited":
        click.echo(f"{_UNEDITED[answer].format(id)}; nothing is changed", err=True)
        return FAILED
    if as_json:
        print_json({"edited": id})
    else:
        click.echo(f"{shown(id)} is changed")
    return OK


# ---- searches ----------------------------------------------------------------------------------


def _parsed(words: tuple[str, ...]) -> "Search":
    from .._sql.search_terms import SearchError, parse

    for word in words:
        if word.startswith("--"):
            raise click.NoSuchOption(word)
    try:
        return parse(" ".join(words))
    except SearchError as error:
        raise CommandError(USAGE, str(error)) from None


def _told(search: "Search") -> dict[str, str]:
    """A search as the audit has it."""
    from .._web.redaction import HIDDEN

    return {"search": str(search.hiding_args(HIDDEN))}


def _of_live_jobs(words: tuple[str, ...]) -> "Search":
    search = _parsed(words)
    if not search.terms:
        raise CommandError(USAGE, "say which jobs: for all of a queue write queue:NAME")
    if "dead" in (search.only("state") or ()):
        raise CommandError(USAGE, "these are dead jobs; `dlq redrive` brings them back")
    return search


def _found(
    connection: "Connection", jobs: "BGJob[Any, Any]", search: "Search"
) -> "Iterator[JobInfo]":
    """All that a search finds, page by page."""
    from .._inspect import jobs as reads
    from .._sql import statements_of

    states = search.only("state") or ()
    if "dead" in states and len(states) > 1:
        raise CommandError(USAGE, "dead jobs are in a table of their own: ask for state:dead alone")
    dead = states == ("dead",)
    page_of, wanted = (
        (reads.dead_page, search.without("state")) if dead else (reads.live_page, search)
    )
    statements, after = statements_of(jobs.models), None
    while True:
        page = page_of(connection, statements, wanted, size=_PAGE, after=after, scan=_SCAN)
        yield from page.rows
        after = page.following
        if after is None:
            return


def _is_confirmed(
    ctx: click.Context, where: Any, search: "Search", verb: str, *, yes: bool, as_json: bool
) -> bool:
    """Say how many jobs are meant; whether to go on. One that is named by its id needs no yes."""
    ids = search.only("id")
    if ids is not None and len(ids) == 1:
        return True

    def look(connection: "Connection", jobs: "BGJob[Any, Any]") -> tuple[int, int]:
        from .._inspect.jobs import MOST, count_live
        from .._sql import statements_of

        return count_live(connection, statements_of(jobs.models), search), MOST

    count, most = read(ctx, where, look)
    number = counted(count, most=most)
    if as_json and not yes:
        print_json({f"would_{verb}": min(count, most), "more": count > most})
    else:  # of JSON nothing else may be on stdout
        click.echo(f"the search finds {number}", err=as_json)
    if not yes:
        click.echo(f"nothing is changed; add --yes to {verb} them", err=True)
    return yes


# ---- output ------------------------------------------------------------------------------------


def _facts(job: "JobInfo") -> dict[str, Any]:
    facts = asdict(job)
    for name in ("arg", "headers", "history"):
        del facts[name]
    return facts | {"error_type": job.error_type}


def _row(job: "JobInfo") -> tuple[str, ...]:
    error = (job.last_error or "").partition("\n")[0]
    at = moment(job.moved_at or job.next_run_at)
    return (
        *(job.id, job.state, job.type, job.queue, str(job.priority), str(job.attempt)),
        *(at, shown(error, _MOST_CHARACTERS)),
    )
