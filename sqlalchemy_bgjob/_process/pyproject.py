"""Options from ``[tool.sqlalchemy-bgjob]`` of the working directory's ``pyproject.toml``.

A key is an option's long name without its dashes, or ``app``. The command line comes first, then
the environment, then this file. A key that no command knows is an error, as it is a mistake.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Final

import click

from .exits import USAGE, CommandError

TABLE: Final = "sqlalchemy-bgjob"
OF_THEIR_OWN_DATABASE: Final = ("demo", "bench")
"""Commands that must not meet the application's database by themselves: they take nothing from the
table, nor from what a hosting platform sets."""
_MISSPELT: Final = TABLE.replace("-", "_")
_NAMED: Final = re.compile(rf"""tool["']?\s*\.\s*["']?(?:{TABLE}|{_MISSPELT})""".encode())
"""The table's name, which TOML may have in quotes; a file without it is about something else."""
_WHERE: Final = f"[tool.{TABLE}] of pyproject.toml"


def defaults(
    commands: Mapping[str, click.Command], folder: Path, invoked: str | None = None
) -> dict[str, dict[str, Any]] | None:
    """The options of each command, as click's ``default_map`` takes them; None without the table.

    With *invoked*, of that command; the others are looked at only for a key that it does not know.
    None is of those of their own database.

    Raises:
        CommandError: The file is not TOML, or a key or a value is wrong.
    """
    table = _table(folder / "pyproject.toml")
    if not table:
        return None
    known: set[str] = set()
    found: dict[str, dict[str, Any]] = {}
    of_application = (name for name in commands if name not in OF_THEIR_OWN_DATABASE)
    for name in sorted(of_application, key=lambda name: name != invoked):
        if invoked in found and known.issuperset(table):
            break
        found[name] = _of(commands[name], table, known)
    _refuse_unknown(table, known)
    return found


def _of(command: click.Command, table: Mapping[str, Any], known: set[str]) -> dict[str, Any]:
    """The options of a command, or of each command of a group; adds the keys to *known*.

    Those alone that the environment can set too: the queue of one job, or a filter of dead jobs,
    must not come from a file that was written for workers.
    """
    if isinstance(command, click.Group):
        return {name: _of(one, table, known) for name, one in command.commands.items()}
    return _values(_shared(command), table, known)


def _shared(command: click.Command) -> list[click.Parameter]:
    return [one for one in command.params if one.envvar is not None or one.name == "app"]


def _values(
    parameters: Iterable[click.Parameter], table: Mapping[str, Any], known: set[str]
) -> dict[str, Any]:
    keys = dict(_keys(parameters))
    known |= set(keys)
    return {
        keys[key].name or key: _value(key, keys[key], value)
        for key, value in table.items()
        if key in keys
    }


def _table(file: Path) -> dict[str, Any]:
    try:
        content = file.read_bytes()
    except OSError:
        return {}
    if _NAMED.search(content) is None:
        return {}  # it may be as it likes
    import tomllib  # noqa: PLC0415 - most commands have no use of it

    try:
        tool = tomllib.loads(content.decode())["tool"]
    except ValueError as error:
        raise CommandError(USAGE, f"pyproject.toml can't be read: {error}") from None
    except KeyError:  # it stands in a text
        return {}
    if _MISSPELT in tool:
        raise CommandError(USAGE, f"pyproject.toml: write [tool.{TABLE}], not {_MISSPELT!r}")
    table = tool.get(TABLE, {})
    if not isinstance(table, dict):
        raise CommandError(USAGE, f"{_WHERE} must be a table of options")
    return table


def _keys(parameters: Iterable[click.Parameter]) -> Iterable[tuple[str, click.Parameter]]:
    for parameter in parameters:
        if isinstance(parameter, click.Argument) and parameter.name == "app":
            yield "app", parameter  # no other argument: a queue to pause is not the worker's
        for name in parameter.opts:
            if name.startswith("--"):
                yield name.removeprefix("--"), parameter


def _refuse_unknown(table: Mapping[str, Any], known: set[str]) -> None:
    from .._db.errors import did_you_mean  # noqa: PLC0415 - it imports SQLAlchemy

    for key in table:
        if key not in known:
            question = did_you_mean(key, known)
            raise CommandError(
                USAGE,
                f"{_WHERE} has {key!r}, which is no option; "
                f"{question or 'write an option without its dashes, such as log-format'}",
            )


def _value(key: str, parameter: click.Parameter, value: Any) -> Any:
    """A value as click converts it further."""
    if parameter.multiple:
        values = value if isinstance(value, list) else [value]
        if all(isinstance(one, str) for one in values):
            return values
        raise CommandError(USAGE, f'{_WHERE}: {key} must be text or a list of texts: ["a", "b"]')
    is_flag = isinstance(parameter, click.Option) and parameter.is_flag
    if isinstance(value, bool) if is_flag else type(value) in (str, int, float):
        return value
    wanted = "true or false" if is_flag else "text or a number"
    raise CommandError(USAGE, f"{_WHERE}: {key} must be {wanted}, not {value!r}")
