"""``worker``: runs the jobs of an application."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import click

from .._process.address import Address
from .._process.exits import USAGE, CommandError
from ..settings import LIMITS, WorkerSettings
from .options import (
    app_dir_option,
    database_option,
    engine_option,
    import_option,
    is_of_table,
    logging_options,
    option,
    setting_options,
    source_of,
)
from .param_types import HostAndPort, Queue

_OF_APPLICATION: Final = (
    app_dir_option,
    import_option,
    option(
        "--queue",
        "queues",
        type=Queue(),
        multiple=True,
        help="A queue to serve and how many of its jobs run at once (10 unless given); may be "
        "repeated. By default every queue that a handler names.",
    ),
    option(
        "--session-factory",
        "session_factories",
        metavar="MODULE:FACTORY",
        multiple=True,
        help="A Session class or sessionmaker that makes ctx.session; twice if both functions and "
        "coroutines need their own.",
    ),
    option(
        "--around",
        metavar="MODULE:CONTEXT",
        help="Makes a context manager that is entered around each job, such as "
        "app:app.app_context.",
    ),
    option(
        "--lifespan",
        metavar="MODULE:CONTEXT",
        help="Makes a context manager that is entered around all the work of each process; its "
        "value is ctx.state.",
    ),
    option(
        "--observer",
        "observers",
        metavar="MODULE:OBSERVER",
        multiple=True,
        help="An Observer, such as app:Alerts(), to be told what was committed. May be repeated.",
    ),
)


def application_options(command: Any) -> Any:
    """What a worker must know of the application beside its BGJob, and of its database."""
    for one in reversed(_OF_APPLICATION):
        command = one(command)
    return command


@click.command()
@click.argument("app", envvar="BGJOB_APP")
@database_option
@application_options
@option(
    "--processes",
    type=click.IntRange(1, 1000),
    default=1,
    help="How many processes to run. A supervisor starts them again when they crash. With a limit "
    "such as --max-jobs it also replaces a single process.",
)
@engine_option
@option(
    "--sync-engine",
    metavar="MODULE:ENGINE",
    help="An Engine for ctx.session of functions, beside an AsyncEngine or a URL for asyncpg. By "
    "default one is made from the URL, where psycopg or psycopg2 can use it.",
)
@option(
    "--heart-engine",
    metavar="MODULE:ENGINE",
    help="An engine for heartbeats and rescues, which have their own event loop. Needed if the "
    "connections of an AsyncEngine belong to one event loop, as those of an asyncpg.Pool do.",
)
@option(
    "--http",
    type=HostAndPort(),
    metavar="HOST:PORT",
    help="Where to answer /metrics, /healthz and /readyz; nowhere by default. The second of "
    "several processes takes the next port, and so on.",
)
@option(
    "--reload",
    is_flag=True,
    help="While you develop: restart when a Python file of --reload-dir changes. Needs pip "
    'install "sqlalchemy-bgjob[reload]".',
)
@option(
    "--reload-dir",
    "reload_dirs",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    multiple=True,
    metavar="FOLDER",
    help="Which folders to watch, instead of --app-dir; may be repeated.",
)
@setting_options
@logging_options
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
    lifespan: str | None,
    observers: tuple[str, ...],
    http: Address | None,
    reload: bool,
    reload_dirs: tuple[Path, ...],
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
    from .._process import logs, supervisor

    child = supervisor.supervised()
    is_limited = any(settings[limit] for limit in LIMITS)
    supervises = child is None and (processes > 1 or is_limited or reload)
    name = "supervisor" if supervises else None
    logs.configure(log_format, log_level, name if child is None else child[1])
    checked = checked_settings(settings)
    source = source_of(ctx, database_url, engine, app_dir)
    if engine is not None and source.engine is None:  # a URL takes the place of the table's engines
        sync_engine = None if is_of_table(ctx, "sync_engine") else sync_engine
        heart_engine = None if is_of_table(ctx, "heart_engine") else heart_engine
    named = slots_of(queues)
    if http is not None and http.port + processes - 1 > 65_535:
        raise CommandError(USAGE, f"--http: {processes} processes need a port each, up to 65535")
    if reload and checked.until_idle:
        raise CommandError(USAGE, "--reload goes on until you end it; leave out --until-idle")
    named_by = ctx.get_parameter_source("reload_dirs")
    if named_by is click.core.ParameterSource.COMMANDLINE and not reload:
        raise CommandError(USAGE, "--reload-dir says what --reload is to watch; add --reload")
    if supervises:
        from .._process.reload import changes

        return supervisor.supervise(
            ctx.obj or sys.argv[1:],
            processes=processes,
            shutdown_timeout=checked.shutdown_timeout,
            until_idle=checked.until_idle,
            changes=changes(reload_dirs or [app_dir]) if reload else None,
        )
    # A file may change twice within the second that bytecode remembers.
    sys.dont_write_bytecode |= reload
    from .._process.collector import collect_rarely

    collect_rarely()
    from .._process.process import run_worker
    from .._process.runners import WorkerOptions

    return run_worker(
        WorkerOptions(
            app=app,
            database_url=source.url,
            engine=source.engine,
            sync_engine=sync_engine,
            heart_engine=heart_engine,
            session_factories=session_factories,
            app_dir=app_dir,
            around=around,
            lifespan=lifespan,
            observers=observers,
            imports=imports,
            queues=named,
            settings=checked,
            http=http and http.of_process(child and child[1]),
            parent_pipe=None if child is None else child[0],
        )
    )


def checked_settings(given: Mapping[str, Any]) -> WorkerSettings:
    """The settings that flags have given.

    Raises:
        CommandError: A value is out of its range.
    """
    try:
        return WorkerSettings(**given)
    except ValueError as error:
        raise CommandError(USAGE, str(error)) from None


def slots_of(queues: Sequence[tuple[str, int]]) -> dict[str, int] | None:
    """The slots of each queue that was named; None if none was.

    Raises:
        CommandError: A queue was named twice.
    """
    named = dict(queues)
    if len(named) < len(queues):
        raise CommandError(USAGE, "a queue is named twice; give each its concurrency once")
    return named or None
