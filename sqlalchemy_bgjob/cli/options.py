"""Options that several commands share: database, tables, settings, logs."""

import os
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from .._process.exits import USAGE, CommandError
from ..settings import DEFAULT_PREFIX, WorkerSettings
from .param_types import Seconds, Size

FALLBACK: Final = "DATABASE_URL"
"""What hosting platforms set; it is used last, and a command says so."""


class Source(NamedTuple):
    """Where a command's database is.

    Attributes:
        url: Its URL, if it was given.
        engine: The name of the application's engine, if that is to be used.
        app_dir: Where to look for its module after Python's own path.
    """

    url: str | None
    engine: str | None
    app_dir: Path


def option(name: str, *declarations: str, **attributes: Any) -> Callable[[Any], Any]:
    """An option that the environment can set too: ``--poll-interval`` by BGJOB_POLL_INTERVAL."""
    variable = "BGJOB_" + name.partition("/")[0].removeprefix("--").replace("-", "_").upper()
    attributes = {"envvar": variable, "show_envvar": True, "show_default": True, **attributes}
    return click.option(name, *declarations, **attributes)


def setting_options(command: Any) -> Any:
    """A flag for each setting; WorkerSettings checks the values."""
    for field in reversed(fields(WorkerSettings)):
        flag = "--" + field.name.replace("_", "-")
        number: Any = Seconds() if field.metadata["unit"] == "seconds" else click.FLOAT
        count: Any = Size() if field.metadata["unit"] == "bytes" else click.INT
        kind: Any = {float: number, int: count}.get(field.type)
        if field.type is bool:
            flag, kind = f"{flag}/--no-{flag.removeprefix('--')}", None
        text = field.metadata["help"]
        text = f"{text[0].upper()}{text[1:]}."
        command = option(flag, type=kind, default=field.default, help=text)(command)
    return command


def logging_options(command: Any) -> Any:
    """Options for the level and the format of the log."""
    command = option(
        "--log-level",
        type=click.Choice(["debug", "info", "warning", "error"], case_sensitive=False),
        default="info",
        help="The lowest level that is logged; debug has a line for each job.",
    )(command)
    return option(
        "--log-format",
        type=click.Choice(["text", "json"]),
        default="text",
        help="Plain text, or one JSON object a line.",
    )(command)


_URL: Final = (
    "postgresql+DRIVER://user:password@host/database, DRIVER one of psycopg, asyncpg and psycopg2. "
    "Without a driver it is the first of these that is installed."
)
own_database_option: Final[Callable[[Any], Any]] = option(
    "--database-url", metavar="URL", help=_URL
)
"""Of a command that must not meet the application's database by itself."""
database_option: Final[Callable[[Any], Any]] = option(
    "--database-url",
    metavar="URL",
    help=f"{_URL} {FALLBACK} is used where nothing else names a database.",
)

app_dir_option: Final[Callable[[Any], Any]] = option(
    "--app-dir",
    type=click.Path(exists=True, file_okay=False, resolve_path=True, path_type=Path),
    default=".",
    metavar="FOLDER",
    help="Where the application's modules are. It comes last on Python's path: an installed module "
    "of the same name is imported instead, with a warning.",
)
import_option: Final[Callable[[Any], Any]] = option(
    "--import",
    "imports",
    metavar="MODULE",
    multiple=True,
    help="A module that registers handlers and that APP's own module does not import; may be "
    "repeated.",
)
engine_option: Final[Callable[[Any], Any]] = option(
    "--engine",
    metavar="MODULE:ENGINE",
    help="The application's own Engine or AsyncEngine, instead of one made from the URL. "
    "BGJOB_DATABASE_URL is not used then, and --database-url beside it is refused.",
)


def connection_options(command: Any) -> Any:
    """Options for the database: a URL, or the application's own engine."""
    return database_option(engine_option(app_dir_option(command)))


def source_of(ctx: click.Context, url: str | None, engine: str | None, app_dir: Path) -> Source:
    """Put the application's folder on Python's path; where the command's database is.

    A URL on the command line takes the place of engines from pyproject.toml, and is refused beside
    any other. Where neither is given, the URL is that of DATABASE_URL.
    """
    if str(app_dir) not in sys.path:
        # Last: a sqlalchemy.py of the application must not be taken for SQLAlchemy.
        sys.path.append(str(app_dir))
    by_option = click.core.ParameterSource.COMMANDLINE
    if engine is not None and ctx.get_parameter_source("database_url") is by_option:
        if not is_of_table(ctx, "engine"):
            raise CommandError(
                USAGE,
                "--engine (or BGJOB_ENGINE) names an engine already; leave out --database-url",
            )
        engine = None
    if engine is None and not url and (url := os.environ.get(FALLBACK)):
        _tell_once(ctx, f"using the database of {FALLBACK}")
    return Source(url or None, engine, app_dir)


def is_of_table(ctx: click.Context, parameter: str) -> bool:
    """Whether an option's value comes from pyproject.toml."""
    return ctx.get_parameter_source(parameter) is click.core.ParameterSource.DEFAULT_MAP


def _tell_once(ctx: click.Context, words: str) -> None:
    """Log it, or print it to stderr in a command that has no log; once for all its connections."""
    from .._process import logs

    told: set[str] = ctx.meta.setdefault(__name__, set())
    if words in told:
        return
    told.add(words)
    if logs.configured():
        logs.logger.info("%s", words)
    else:
        click.echo(words, err=True)


def schema_options(command: Any) -> Any:
    """Options for the tables' schema and prefix."""
    command = option("--table-prefix", default=DEFAULT_PREFIX, help="How the tables' names begin.")(
        command
    )
    return option(
        "--schema", help="The schema of the tables; by default the search path finds them."
    )(command)
