"""What a command does on the queue's tables: one transaction, with or without the application."""

import json
import sys
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import click

from .._process.exits import USAGE, CommandError
from .options import connection_options, option, schema_options, source_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from ..bgjob import BGJob

T = TypeVar("T")


class Acted(NamedTuple):
    """What a command has done, for the audit: see :func:`.._lifecycle.audit.write`."""

    verb: str
    changed: int
    details: Mapping[str, Any]
    given: Mapping[str, Any] | None = None


def tables_options(command: Any) -> Any:
    """Options for the database, and for the names of its tables."""
    return connection_options(schema_options(command))


json_option: Callable[[Any], Any] = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object a line."
)
app_option: Callable[[Any], Any] = option(
    "--app",
    metavar="MODULE:JOBS",
    help="The application's BGJob, as for `worker`. Its tables are used then, whatever --schema "
    "and --table-prefix say.",
)


def read(
    ctx: click.Context,
    where: Mapping[str, Any],
    action: "Callable[[Connection, BGJob[Any, Any]], T]",
) -> T:
    """Do *action* in a transaction that can change nothing, whose statements take 5 s at most."""
    from .._inspect.reading import begin_reading

    return _run(ctx, where, action, None, begin_reading)


def read_often(
    ctx: click.Context,
    where: Mapping[str, Any],
    action: "Callable[[Connection, BGJob[Any, Any]], T]",
    go_on: "Callable[[Callable[[], T]], None]",
) -> None:
    """Connect once, and let *go_on* do *action* as often as it calls what it gets.

    Each time is a transaction as for :func:`read`. One that fails raises what SQLAlchemy raises;
    the next one connects again, if it must.
    """
    from .._inspect.reading import begin_reading
    from .._process.engines import run_connected

    source = source_of(ctx, where["database_url"], where["engine"], where["app_dir"])

    def work(connection: "Connection") -> None:
        with connection.begin():
            jobs = _bare(connection, where)

        def look() -> T:
            with connection.begin():
                begin_reading(connection)
                return action(connection, jobs)

        go_on(look)

    run_connected(*source, work)


def act(
    ctx: click.Context,
    where: Mapping[str, Any],
    action: "Callable[[Connection, BGJob[Any, Any]], T]",
    *,
    audit: Callable[[T], Acted] | None,
    app: str | None = None,
) -> T:
    """Do *action* in a transaction, write down what was done, and commit both.

    Args:
        ctx: The command's.
        where: What :func:`tables_options` have given.
        action: Gets the connection, and the BGJob.
        audit: Tells what was done from what *action* returned; None of what only reads, and of what
            producers do too.
        app: Names the application's BGJob; without, it is one that knows no handler.
    """

    def do(connection: "Connection", jobs: "BGJob[Any, Any]") -> T:
        done = action(connection, jobs)
        if audit is not None:
            _write_down(connection, jobs, audit(done))
        return done

    return _run(ctx, where, do, app, lambda connection: None)


def _write_down(connection: "Connection", jobs: "BGJob[Any, Any]", acted: Acted) -> None:
    from .._lifecycle.audit import write
    from .._sql import statements_of

    statements = statements_of(jobs.models)
    write(connection, statements, who=os_account(), origin="command line", **acted._asdict())


def os_account() -> str:
    """Who runs this command, as the system says and no variable: ``user@host``."""
    import os
    import socket

    try:
        import pwd

        name = pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container the user id may have no name
        name = str(os.getuid())
    except ImportError:  # Windows
        name = os.getlogin()
    return f"{name}@{socket.gethostname()}"


def bare_jobs(connection: "Connection", schema: str | None, table_prefix: str) -> "BGJob[Any, Any]":
    """A BGJob of the tables that are there, for who does without the application.

    It keeps records where the tables do: a record that is there is ended with its job. So it does
    if only the audit is missing; what acts is refused then.
    """
    from sqlalchemy import MetaData

    from ..bgjob import BGJob
    from ..schema import records

    names: Any = {"schema": schema, "table_prefix": table_prefix}
    recorded = records.commented_version(connection, **names) == records.LATEST
    bare: BGJob[Any, Any] = BGJob(MetaData(), **names, records=recorded)
    return bare


def json_arg(text: str, what: str = "arg is") -> Any:
    """The value of an arg that is given as JSON; of "-" what stdin has.

    Args:
        text: The JSON.
        what: How an error names it.

    Raises:
        CommandError: It is not JSON, or stdin is no text.
    """
    try:
        return json.loads(sys.stdin.read() if text == "-" else text)
    except UnicodeDecodeError as error:
        raise CommandError(
            USAGE,
            f"the {what} not JSON: byte {error.start} of stdin is not {error.encoding}; convert it",
        ) from None
    except (ValueError, RecursionError) as error:
        raise CommandError(
            USAGE, f"the {what} not JSON: {error}; a text needs its own quotes: '\"words\"'"
        ) from None


@contextmanager
def usage_errors() -> "Iterator[None]":
    """Let what the library says of a wrong argument be wrong usage."""
    from ..exceptions import InvalidArg, JobAlreadyExists

    try:
        yield
    except (InvalidArg, JobAlreadyExists, LookupError, TypeError, ValueError) as error:
        # A KeyError shows its text in quotes.
        raise CommandError(
            USAGE, str(error.args[0] if type(error) is KeyError else error)
        ) from None


def _run(
    ctx: click.Context,
    where: Mapping[str, Any],
    action: "Callable[[Connection, BGJob[Any, Any]], T]",
    app: str | None,
    begin: "Callable[[Connection], None]",
) -> T:
    from .._process.application import load_jobs
    from .._process.engines import run_in_transaction
    from ..schema import check

    source = source_of(ctx, where["database_url"], where["engine"], where["app_dir"])
    known = None if app is None else load_jobs(app, where["app_dir"])

    def work(connection: "Connection") -> T:
        begin(connection)
        if known is not None:
            models = known.models
            check(connection, schema=models.schema, table_prefix=models.table_prefix)
            return action(connection, known)
        return action(connection, _bare(connection, where))

    return run_in_transaction(*source, work)


def _bare(connection: "Connection", where: Mapping[str, Any]) -> "BGJob[Any, Any]":
    """A BGJob that knows no handler, for the tables that are there, if they are up to date."""
    from .._inspect.own_columns import add_own_columns
    from ..schema import check

    schema, table_prefix = where["schema"], where["table_prefix"]
    check(connection, schema=schema, table_prefix=table_prefix)
    bare = bare_jobs(connection, schema, table_prefix)
    add_own_columns(connection, bare.models)
    return bare
