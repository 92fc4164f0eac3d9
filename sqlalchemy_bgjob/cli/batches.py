"""``batches``: lists batches with how far each has come, and shows one."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import click

from .._process.exits import FAILED, OK
from .on_tables import json_option, read, tables_options
from .output import moment, print_facts, print_json, print_table, tell_of_more

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection

    from .._inspect.batches import BatchInfo
    from ..bgjob import BGJob

_PAGE: Final = 500
_MOST: Final = 100_000
"""The most that a list shows."""
_HEAD: Final = ("id", "state", "ended", "total", "live", "dead", "on dead", "then", "made")


@click.group()
def batches() -> None:
    """Look at batches: how many of their jobs have ended, and what follows.

    `jobs list batch:ID` and `dlq redrive` are for the jobs of one.
    """


@batches.command("list")
@click.option("--unfinished", is_flag=True, help="Leave out those that are finished.")
@click.option(
    "--limit",
    type=click.IntRange(1, _MOST),
    default=50,
    show_default=True,
    help="The most batches.",
)
@tables_options
@json_option
@click.pass_context
def list_(ctx: click.Context, /, unfinished: bool, limit: int, as_json: bool, **where: Any) -> int:
    """List batches, the one that was made last at the top; with --json one object a line.

    One that is "stopped" waits for its dead jobs alone. Jobs of large batches are counted so far:
    a + marks where that stopped, and a < that fewer have ended.
    """
    from itertools import islice

    def look(connection: "Connection", _: "BGJob[Any, Any]") -> "list[BatchInfo]":
        size = min(limit + 1, _PAGE)
        return list(islice(_pages(connection, where, size, unfinished), limit + 1))

    found = read(ctx, where, look)
    for one in found[:limit] if as_json else ():
        print_json(_facts(one))
    if not as_json:
        print_table(_HEAD, map(_row, found[:limit]), numbers=_HEAD[2:6])
    if len(found) > limit:
        tell_of_more(limit, _MOST)
    return OK


def _pages(
    connection: "Connection", where: Any, size: int, unfinished: bool
) -> "Iterator[BatchInfo]":
    """All of them, page by page."""
    from .._inspect.batches import batches

    tables, before = (where["schema"], where["table_prefix"]), None
    while True:
        page = batches(connection, *tables, limit=size, before=before, unfinished=unfinished)
        yield from page
        if len(page) < size:
            return
        before = page[-1].id


@batches.command()
@click.argument("id")
@tables_options
@json_option
@click.pass_context
def show(ctx: click.Context, /, id: str, as_json: bool, **where: Any) -> int:
    """Show all of one batch, with all of its jobs counted. The exit code is 1 if there is none."""

    def look(connection: "Connection", _: "BGJob[Any, Any]") -> "BatchInfo | None":
        from .._inspect.batches import batch

        return batch(connection, where["schema"], where["table_prefix"], id)

    found = read(ctx, where, look)
    if found is None:
        click.echo(f"there is no batch with the id {id!r}, or not any more", err=True)
        return FAILED
    if as_json:
        print_json(_facts(found))
    else:
        print_facts(_facts(found))
    return OK


# ---- output ------------------------------------------------------------------------------------


def _facts(batch: "BatchInfo") -> dict[str, Any]:
    return {
        "id": batch.id,
        "state": batch.state,
        "ended": batch.ended,
        **{name: value for name, value in asdict(batch).items() if name not in ("id", "now")},
        "then_id": batch.then_id,
    }


def _row(batch: "BatchInfo") -> tuple[str, ...]:
    ended = f"<{batch.ended}" if batch.more_live else str(batch.ended)
    then = f"{batch.then_type} in {batch.then_queue}" if batch.then_type else ""
    return (
        *(batch.id, batch.state, ended, str(batch.total)),
        f"{batch.live}{'+' if batch.more_live else ''}",
        f"{batch.dead}{'+' if batch.more_dead else ''}",
        *(batch.on_dead, then, moment(batch.created_at)),
    )
