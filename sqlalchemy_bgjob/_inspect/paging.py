"""Lists that are read page by page: what of a page fits, and where the next one goes on."""

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Generic, TypeVar

Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Position:
    """Where a page stopped: the next one goes on behind it."""

    time: datetime
    id: str


@dataclass(frozen=True, slots=True)
class Part(Generic[Row]):
    """The part of a list that one page shows.

    Attributes:
        rows: Those that fit, in order.
        following: Where the next page begins; None if this is the last.
        stopped: Whether it stopped because it had looked at so many rows, and not because it is
            full.
    """

    rows: list[Row]
    following: Position | None = None
    stopped: bool = False


def part_of(rows: Iterable[Any], size: int) -> Part[Any]:
    """The part of a list that some rows are, which begin with a time and an id.

    Of each ``fits`` says whether it is one of those that are searched for, and ``is_last`` whether
    the reading stopped there: behind it there may be more.
    """
    fitting: list[Any] = []
    last: Position | None = None
    for row in rows:
        if row.fits and len(fitting) == size:
            return Part(fitting, last)
        last = Position(row[0], row[1])
        if row.fits:
            fitting.append(row)
        if row.is_last:
            return Part(fitting, last, stopped=len(fitting) < size)
    return Part(fitting)
