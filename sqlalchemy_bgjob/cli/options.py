"""Options that several commands share: database, tables, settings, logs."""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Any, Final, NamedTuple

import click

from .._process.exits import USAGE, CommandError
from .._process.param_type import ParamType
from ..settings import DEFAULT_PREFIX, WorkerSettings

FALLBACK: Final = "DATABASE_URL"
"""What hosting platforms set; it is used last, and a command says so."""
_UNITS: Final[Mapping[str, float]] = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86_400.0}


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


class Seconds(ParamType[float]):
    """A duration: ``2.5``, ``500ms``, ``30s``, ``5m``, ``1h`` or ``30d``; a float of seconds."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        """Parse a duration into seconds."""
        if isinstance(value, int | float):
            return float(value)
        number = str(value).strip().rstrip("dhms")
        unit = str(value).strip()[len(number) :] or "s"
        try:
            return float(number) * _UNITS[unit]
        except (KeyError, ValueError):
            self.fail(
                f"{value!r} is not a duration such as 2.5, 500ms, 30s, 5m, 1h or 30d", param, ctx
            )


class Size(ParamType[int]):
    """A number of bytes: ``300000000``, ``512M`` or ``1.5G``, with 1 K of 1,024 bytes; an int."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Parse a size into bytes."""
        if isinstance(value, int):
            return value
        found = re.fullmatch(
            r"(\d+(?:\.\d+)?) *(?:([KMGT])(?:i?B)?)?", str(value).strip(), re.IGNORECASE
        )
        if found is None:
            self.fail(f"{value!r} is not a size such as 300000000, 512M or 1.5G", param, ctx)
        return int(float(found[1]) * 1024 ** " KMGT".index((found[2] or " ").upper()))


class Moment(ParamType[Any]):
    """A time such as ``2026-12-24T18:00+01:00``, or a duration: a datetime or a float of seconds.

    Whether a duration is meant from now on or back from now, the option says.
    """

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Parse a time or a duration."""
        if isinstance(value, datetime | float):
            return value
        try:
            moment = datetime.fromisoformat(str(value).strip())
        except ValueError:
            try:
                return Seconds().convert(value, param, ctx)
            except click.BadParameter:
                self.fail(
                    f"{value!r} is neither a time such as 2026-12-24T18:00+01:00 nor a duration "
                    f"such as 90s, 30m or 2h",
                    param,
                    ctx,
                )
        if moment.tzinfo is None:
            self.fail(f"{value!r} has no time zone: add Z for UTC, or one such as +01:00")
        return moment


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
        help="Lines to read, or one JSON object a line.",
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
        _tell(f"using the database of {FALLBACK}")
    return Source(url or None, engine, app_dir)


def is_of_table(ctx: click.Context, parameter: str) -> bool:
    """Whether an option's value comes from pyproject.toml."""
    return ctx.get_parameter_source(parameter) is click.core.ParameterSource.DEFAULT_MAP


def _tell(words: str) -> None:
    """Log it, or print it to stderr in a command that has no log."""
    from .._process import logs

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
