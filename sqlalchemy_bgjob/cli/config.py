"""``config`` and ``completion``: what a command would run with, and the shell's own completion."""

import os
import re
from pathlib import Path
from typing import Any, Final

import click

from .._process.exits import OK, USAGE, CommandError
from .._process.pyproject import OF_THEIR_OWN_DATABASE, defaults
from .on_tables import json_option
from .options import FALLBACK
from .output import print_json, print_table

_PROGRAMS: Final = ("sqlalchemy-bgjob", "bgjob")
_PASSWORDS: Final = re.compile(
    # Up to the last @: a password may have one that should have been escaped.
    r"(?<=://)([^:/]*):(.*)@|(\b(?:ssl)?password=)[^&]*",
    re.IGNORECASE,
)


@click.command()
@click.argument("command", default="worker")
@json_option
@click.pass_context
def config(ctx: click.Context, /, command: str, as_json: bool) -> int:
    """Tell with which options COMMAND would run here, and where each value comes from.

    COMMAND is "worker" unless given. Each option comes from the command line, else from its
    environment variable, else from the table [tool.sqlalchemy-bgjob] of pyproject.toml, else it has
    its default. Passwords of URLs are hidden.
    """
    found = _options(ctx, command)
    if as_json:
        for one in found:
            print_json(one)
    else:
        rows = [(one["option"], _words(one["value"]), one["source"]) for one in found]
        print_table(("option", "value", "from"), rows)
    return OK


def _options(ctx: click.Context, name: str) -> list[dict[str, Any]]:
    parent = ctx.parent
    assert parent is not None
    assert isinstance(parent.command, click.Group)
    commands = parent.command.commands
    if name not in commands or isinstance(commands[name], click.Group):
        raise CommandError(USAGE, f"there is no command {name!r} that has options of its own")
    wanted = commands[name]
    read = click.Context(wanted, info_name=name, parent=parent)
    read.default_map = (defaults(commands, Path(), name) or {}).get(name)
    found = [
        _option(read, one) for one in wanted.params if one.envvar is not None or one.name == "app"
    ]
    named = {one["option"]: one["value"] for one in found}
    may_fall_back = name not in OF_THEIR_OWN_DATABASE
    if may_fall_back and named.get("database-url", "") is None and not named.get("engine"):
        for one in found:
            if one["option"] == "database-url" and FALLBACK in os.environ:
                one |= {"value": _hidden(os.environ[FALLBACK]), "source": FALLBACK}
    return found


def _option(read: click.Context, parameter: click.Parameter) -> dict[str, Any]:
    sources = click.core.ParameterSource
    name = parameter.name or ""
    try:
        parameter.handle_parse_result(read, {}, [])
        value = read.params.get(name)
    except click.MissingParameter:
        value = None
    source = {
        sources.ENVIRONMENT: str(parameter.envvar),
        sources.DEFAULT_MAP: "pyproject.toml",
    }.get(read.get_parameter_source(name) or sources.DEFAULT, "default")
    long = next((one for one in parameter.opts if one.startswith("--")), name)
    return {"option": long.removeprefix("--"), "value": _plain(value), "source": source}


def _plain(value: Any) -> Any:
    """As JSON has it; click marks what nobody gave by a sentinel of its own."""
    if value is None or repr(value) == "Sentinel.UNSET":
        return None
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    if isinstance(value, bool | int | float):
        return value
    return _hidden(str(value))


def _hidden(text: str) -> str:
    return _PASSWORDS.sub(lambda found: f"{found[3]}***" if found[3] else f"{found[1]}:***@", text)


def _words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(_words, value))
    return "" if value is None else str(value)


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(ctx: click.Context, /, shell: str) -> int:
    """Print what makes SHELL complete commands and options, for its start file.

    For bash and zsh: eval "$(bgjob completion bash)". For fish: bgjob completion fish | source.
    """
    from click.shell_completion import get_completion_class

    made = get_completion_class(shell)
    assert made is not None
    for program in _PROGRAMS:
        variable = f"_{program.replace('-', '_').upper()}_COMPLETE"
        click.echo(made(ctx.find_root().command, {}, program, variable).source())
    return OK
