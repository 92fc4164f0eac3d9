"""Deletes rows one by one, where some row refuses to go: by a trigger or a foreign key, say."""

import logging
import time
from collections.abc import Callable, Iterable
from typing import Final, NamedTuple

from sqlalchemy import Connection

from .._db.errors import doubts_session, lost_connection, ran_out_of_time, sqlstate, summary
from .._db.printable import printable

logger = logging.getLogger("sqlalchemy_bgjob")

DOUBTFUL: Final = 10
"""How many rows may refuse to be deleted while none was: all may, as by a trigger."""


class Tried(NamedTuple):
    """What has become of the rows.

    Attributes:
        deleted: The ids of those that are gone.
        refused: Why others are not, by their ids.
        stopped_at: The id of the last one that was tried, if not all were to be.
    """

    deleted: list[str]
    refused: dict[str, Exception]
    stopped_at: str | None


def is_due_to_a_row(error: Exception) -> bool:
    """Whether it may be better one by one, after several were refused together."""
    return not (lost_connection(error) or ran_out_of_time(error) or sqlstate(error) is None)


def delete_one_by_one(
    connection: Connection,
    what: str,
    ids: Iterable[str],
    delete: Callable[[str], bool],
    *,
    until: float,
) -> Tried:
    """Delete rows, each in its own transaction. Commits each.

    It goes on until the monotonic time *until*, or as long as not all may refuse.

    Args:
        connection: Idle, outside a transaction.
        what: How the log calls such a row, before its id.
        ids: The rows'.
        delete: Deletes one; False if it is not there, or locked.
        until: When it stops.

    Raises:
        DBAPIError: The connection was lost, or all that were tried have refused, as the role may
            not; the log names the first one.
    """
    deleted, refused = list[str](), dict[str, Exception]()
    stopped_at = None
    for id in ids:
        try:
            with connection.begin():
                is_gone = delete(id)
        except Exception as error:
            if lost_connection(error):
                raise
            refused[id] = error
        else:  # it is committed: a deferred foreign key refuses at the COMMIT
            deleted += [id] if is_gone else []
        if time.monotonic() > until or (not deleted and len(refused) >= DOUBTFUL):
            stopped_at = id
            break
    if not deleted and refused and all(map(doubts_session, refused.values())):
        # A trigger may raise what a missing privilege does.
        id, why = next(iter(refused.items()))
        logger.warning("%s %s can't be deleted: %s", what, printable(id), summary(why))
        raise why
    return Tried(deleted, refused, stopped_at)
