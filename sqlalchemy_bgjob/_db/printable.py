"""Text that somebody else wrote, as a terminal or a log may show it. Pure."""

from collections.abc import Iterable
from itertools import islice
from typing import Final

_MOST_NAMED: Final = 20


def enumerated(names: Iterable[str]) -> str:
    """The names in a row, and how many more there are after the first 20."""
    rest = iter(names)
    first = ", ".join(islice(rest, _MOST_NAMED))
    more = sum(1 for _ in rest)
    return f"{first} and {more} more" if more else first


def printable(text: str, *, lines: bool = False) -> str:
    """The text with what would move a cursor, or begin another line, escaped.

    Args:
        text: Such as a queue's name, a reason, an error.
        lines: Whether it may have lines of its own.
    """
    return "".join(
        c if c.isprintable() or (lines and c == "\n") else f"\\x{ord(c):02x}" for c in text
    )
