"""How commands print: tables, JSON lines, moments, and text that moves no terminal's cursor."""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from .._db.printable import printable

if TYPE_CHECKING:
    from ..models import PastError


def print_json(facts: Any) -> None:
    """Print one JSON object on a line; moments are in UTC."""
    click.echo(json.dumps(facts, default=_plain))


def print_table(
    head: Sequence[str], rows: Iterable[Sequence[str]], *, numbers: Iterable[str] = ()
) -> None:
    """Print aligned columns; those of *numbers* to the right."""
    lines = [tuple(head), *(tuple(shown(cell) for cell in row) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    right = {place for place, name in enumerate(head) if name in set(numbers)}
    for line in lines:
        cells = (
            cell.rjust(width) if place in right else cell.ljust(width)
            for place, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        click.echo("  ".join(cells).rstrip())


def moment(at: datetime | None) -> str:
    """A moment in UTC, to the second; empty for none."""
    return "" if at is None else f"{utc(at):%Y-%m-%d %H:%M:%S}Z"


def utc(at: datetime) -> datetime:
    """The same moment in UTC: the session of the database may have any time zone."""
    return at.astimezone(UTC)


def shown(text: str, most: int = 0, *, lines: bool = False) -> str:
    """Text with what would move a terminal's cursor escaped; cut, if *most* is given."""
    if most and len(text) > most:
        text = f"{text[:most]}..."
    return printable(text, lines=lines)


def print_facts(facts: Mapping[str, Any]) -> None:
    """Print what there is of some facts, one on a line."""
    for name, value in facts.items():
        if value is not None:
            plain = moment(value) if isinstance(value, datetime) else value
            text = plain if isinstance(plain, str) else json.dumps(plain)
            click.echo(f"{name + ':':<16}{shown(text)}")


def print_job(facts: Mapping[str, Any], history: "Iterable[PastError]") -> None:
    """Print all of a job: its facts, each error of its history, the last one."""
    print_facts({name: value for name, value in facts.items() if name != "last_error"})
    for past in history:
        first = shown(past.error.partition("\n")[0])
        click.echo(f"{'error:':<16}{moment(past.at)} attempt {past.attempt}: {first}")
    if facts["last_error"]:
        click.echo(f"last_error:\n{shown(facts['last_error'], lines=True)}")
    click.echo()


def counted(count: int, noun: str = "job", *, most: int | None = None) -> str:
    """``1 job``, ``12,345 jobs``; ``more than 10,000 jobs`` of a count that stops at *most*."""
    if most is not None and count > most:
        return f"more than {most:,} {noun}s"
    return f"1 {noun}" if count == 1 else f"{count:,} {noun}s"


def tell_of_more(limit: int, most: int) -> None:
    """Say on stderr that a list was cut at *limit*, and how to see more, up to *most*."""
    further = min(limit * 10, most)
    advice = f"; --limit {further} shows more of them" if further > limit else ""
    click.echo(f"there are more{advice}", err=True)


def arg_of(content: bytes | None) -> Any:
    """A row's arg as JSON where it is JSON, and else how long it is."""
    if content is None:
        return None
    try:
        return json.loads(content)
    except (ValueError, RecursionError):  # SQL may have written any bytes
        return f"{len(content)} bytes"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return utc(value).isoformat()
    return str(value)
