"""``web``: the dashboard, served by itself."""

import errno
import socket
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .._process.exits import OK, USAGE, CommandError
from .on_tables import bare_jobs, os_account
from .options import connection_options, option, schema_options, source_of

if TYPE_CHECKING:
    from sqlalchemy import Engine
    from sqlalchemy.ext.asyncio import AsyncEngine

    from ..bgjob import BGJob
    from .options import Source


@click.command()
@click.argument("app", metavar="[MODULE:JOBS]", required=False)
@connection_options
@schema_options
@option("--host", default="127.0.0.1", help="The address to listen on.")
@option("--port", type=click.IntRange(0, 65_535), default=8_080, help="0 takes any free one.")
@option("--read-only", is_flag=True, help="Let nobody change anything.")
@option("--environment", help="A name to show on each page, such as production.")
@click.pass_context
def web(
    ctx: click.Context,
    /,
    app: str | None,
    database_url: str | None,
    engine: str | None,
    app_dir: Path,
    schema: str | None,
    table_prefix: str,
    host: str,
    port: int,
    read_only: bool,
    environment: str | None,
) -> int:
    """Serve the dashboard, for whoever opens the address that is printed.

    The address holds a token that lets in one browser, once. With MODULE:JOBS, the application's
    BGJob, it knows the handlers; without, a database is enough. It needs pip install
    "sqlalchemy-bgjob[web-server]".
    """
    require(("starlette", "jinja2", "uvicorn"), "the dashboard", "web-server")
    from .._process.application import load_jobs

    source = source_of(ctx, database_url, engine, app_dir)
    return _serve(
        _bare(source, schema, table_prefix) if app is None else load_jobs(app, app_dir),
        _engine(source),
        host=host,
        port=port,
        read_only=read_only,
        environment=environment,
        is_bare=app is None,
    )


def require(modules: Iterable[str], what: str, extra: str) -> None:
    """Make sure that all can be imported.

    Raises:
        CommandError: One is not installed; *extra* brings it.
    """
    import importlib.util

    for name in modules:
        if importlib.util.find_spec(name) is None:
            raise CommandError(
                USAGE,
                f"{what} needs {name}, which is not installed; pip install "
                f'"sqlalchemy-bgjob[{extra}]"',
            )


def _bare(source: "Source", schema: str | None, table_prefix: str) -> "BGJob[Any, Any]":
    from .._process.engines import run_in_transaction

    return run_in_transaction(
        *source, lambda connection: bare_jobs(connection, schema, table_prefix)
    )


def _engine(source: "Source") -> "Engine | AsyncEngine":
    from .._process.engines import load_engine, make_async_engine
    from .._process.urls import database_url

    if source.engine:
        return load_engine(source.engine, source.app_dir)
    from sqlalchemy import create_engine

    url = database_url(source.url)
    if url.get_driver_name() == "asyncpg":
        return make_async_engine(url, pool_size=4)
    return create_engine(url, pool_size=4)


def listen(host: str, port: int) -> socket.socket:
    """A socket at that address; port 0 is any free one.

    A name that has addresses of both kinds is that of its first IPv4 one.

    Raises:
        CommandError: Somebody has it, or there is no such address.
    """
    if not host:
        raise CommandError(USAGE, "--host is empty; give 0.0.0.0 if all interfaces are meant")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:  # no such name, or none that could be one
        why = error.strerror if isinstance(error, OSError) else "this is no name of a host"
        raise CommandError(USAGE, f"can't listen on {host}: {why}; give another --host") from None
    family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    listening = socket.socket(family)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind(address)
        listening.listen()
    except OSError as error:
        listening.close()
        another = "--port" if error.errno in (errno.EADDRINUSE, errno.EACCES) else "--host"
        raise CommandError(
            USAGE, f"can't listen on {host} port {port}: {error.strerror}; give another {another}"
        ) from None
    return listening


def _serve(jobs: "BGJob[Any, Any]", engine: Any, *, host: str, port: int, **options: Any) -> int:
    import uvicorn

    from .._web.standalone import Key, standalone

    key = Key()
    listening = listen(host, port)
    port = listening.getsockname()[1]
    everywhere = host in ("0.0.0.0", "::")  # noqa: S104 - who gives it knows what it means
    hosts = ["*"] if everywhere else [host, "localhost", "127.0.0.1", "::1"]
    app = standalone(jobs, engine, key, hosts=hosts, user=os_account(), **options)
    shown = "localhost" if everywhere else f"[{host}]" if ":" in host else host
    click.echo(f"The dashboard is at http://{shown}:{port}/enter?token={key.token}")
    elsewhere = " Elsewhere write this machine's name instead of localhost." if everywhere else ""
    click.echo(f"This address works once.{elsewhere} Ctrl-C ends it.", err=True)
    config = uvicorn.Config(app, log_level="warning", timeout_graceful_shutdown=1, lifespan="off")
    # The address holds the token, so requests are not logged.
    config.access_log = False
    with suppress(KeyboardInterrupt):  # uvicorn has stopped by then, and signals once more
        uvicorn.Server(config).run(sockets=[listening])
    return OK
