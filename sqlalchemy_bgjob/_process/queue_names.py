"""Names on the command line that look like a list of queues.

A queue may have almost any name, also one with a comma. Only the application's handlers tell which
it is.
"""

from collections.abc import Collection, Iterable
from typing import Final

from .exits import USAGE, CommandError

NO_LIST: Final = (
    "has a comma; give each queue an option of its own, such as --queue mail:10 --queue default, "
    "or BGJOB_QUEUE='mail:10 default'"
)


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
            raise CommandError(USAGE, f"no handler names the queue {queue!r}, which {NO_LIST}")
