"""The one server that everything here is measured on."""

import contextlib
import secrets
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import URL, make_url

from sqlalchemy_bgjob._bench.command import harness_engine
from sqlalchemy_bgjob._dev.embedded import EmbeddedPostgres, EmbeddedPostgresError
from sqlalchemy_bgjob._process.exits import FAILED, SIGNALLED, CommandError

SETTINGS = {
    "shared_buffers": "1GB",
    # Some peers ask for a pool as large as their concurrency, for each process.
    "max_connections": "250",
}


@contextlib.contextmanager
def running_server(work_folder: Path) -> Iterator[URL]:
    """A new server: with a data folder of its own it runs as durably as any.

    Raises:
        CommandError: It did not start.
    """
    signal.signal(signal.SIGTERM, _exit)
    work_folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    data = work_folder.absolute() / f"data-{secrets.token_hex(4)}"
    try:
        with EmbeddedPostgres.start(data_dir=data, settings=SETTINGS) as server:
            yield make_url(server.socket_url)
    except EmbeddedPostgresError as error:
        raise CommandError(FAILED, str(error)) from None
    finally:
        shutil.rmtree(data, ignore_errors=True)


def new_database(server: URL, name: str) -> URL:
    """Make a database on it."""
    with harness_engine(server).connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    return server.set(database=name)


def libpq(url: URL) -> str:
    """A URL as drivers take it that do not know SQLAlchemy."""
    return url.set(drivername="postgresql").render_as_string(hide_password=False)


def _exit(number: int, frame: object) -> None:
    raise SystemExit(SIGNALLED + number)
