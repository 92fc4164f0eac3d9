"""``--queue``: how the command line names a queue that a worker serves.

A queue may have almost any name, and one with a comma looks like a list of queues. Only the
application's handlers tell which it is.
"""

from collections.abc import Collection, Iterable
from typing import Any, Final

import click

from ..settings import DEFAULT_CONCURRENCY
from ..settings import Queue as Served
from .exits import USAGE, CommandError
from .param_type import ParamType

_NO_LIST: Final = (
    "has a comma; give each queue an option of its own, such as --queue mail:10 --queue default, "
    "or BGJOB_QUEUE='mail:10 default'"
)


class Queue(ParamType[tuple[str, int | Served]]):
    """A queue and how many of its jobs run at once: ``mail:10``, or ``mail`` for ten.

    ``mail:10:time`` is read by time before priority.
    """

    name = "name:concurrency"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, int | Served]:
        """Parse the name, the concurrency and the order."""
        if isinstance(value, tuple):
            return value[0], value[1]
        text, of_time, rest = str(value).rpartition(":time")
        by_time = bool(of_time) and not rest and text.rpartition(":")[2].isdecimal()
        name, colon, number = (text if by_time else str(value)).rpartition(":")
        if not colon:
            name, number = number, str(DEFAULT_CONCURRENCY)
        if not name or not (number.isascii() and number.isdecimal()) or int(number) < 1:
            self.fail(f"{value!r} {_problem(name, number, value)}", param, ctx)
        return name, Served(int(number), order="time") if by_time else int(number)


def _problem(name: str, number: str, value: str) -> str:
    if name and "," in number:
        return _NO_LIST
    problem = "is not name:concurrency, such as mail:10"
    if name and number and not number.isdecimal():
        problem += f"; a name with a colon needs both: {value}:{DEFAULT_CONCURRENCY}"
    return problem


def refuse_lists(queues: Iterable[str], named: Collection[str]) -> None:
    """Refuse a name that looks like a list of queues, unless a handler names that queue.

    Args:
        queues: The names on the command line.
        named: The queues that handlers name.

    Raises:
        CommandError: One has a comma, and no handler names it.
    """
    for queue in queues:
        if "," in queue and queue not in named:
            raise CommandError(USAGE, f"no handler names the queue {queue!r}, which {_NO_LIST}")
