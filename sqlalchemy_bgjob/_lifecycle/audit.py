"""The audit: a row for each thing that somebody did by the dashboard or the command line.

The row is a part of the transaction that does it, so neither is there without the other. Where that
takes several transactions, each has its own row. What changed nothing leaves none.
"""

import json
import math
from collections.abc import Callable, Mapping, Sized
from datetime import timedelta
from itertools import islice
from typing import Any, Final, Literal

from sqlalchemy import Connection

from .._db.encodings import storable
from .._db.printable import printable
from .._drafts.ids import new_id
from .._sql import Statements
from . import run

Origin = Literal["dashboard", "command line"]

LONGEST_NAME: Final = 200
"""Characters of who did it."""
LONGEST_TEXT: Final = 1_200
"""Characters of each text in the JSON: those of a search, and a little more."""
MOST: Final = 500
"""Values of each list or object in the JSON: the ids that a form of the dashboard can have."""
LARGEST_GIVEN: Final = 10_000
"""Characters of what was given, beyond which it is left out."""
_DEEPEST: Final = 20


def write(
    connection: Connection,
    statements: Statements,
    *,
    who: str | None,
    origin: Origin,
    verb: str,
    changed: int,
    details: Mapping[str, Any],
    given: Mapping[str, Any] | None = None,
) -> None:
    """Write down what this transaction has done; the caller commits. Nothing without tables.

    Args:
        connection: In the transaction that has done it.
        statements: Those of the tables.
        who: Who did it; None if nobody knows.
        origin: By which program.
        verb: What it was, as the dashboard names its actions.
        changed: How many rows it changed; of 0 nothing is written.
        details: On what. No value of an arg is in it: whoever may read the table may read this.
        given: The arg and headers that were given, without secrets.
    """
    if statements.audit is None or not changed:
        return
    values = {
        "id": new_id(),
        "who": None if who is None else storable(connection, _cut(str(who), LONGEST_NAME)),
        "origin": origin,
        "verb": verb,
        "changed": int(changed),
        "details": _json(connection, {k: one for k, one in details.items() if one is not None}),
        "given": _json(connection, given, LARGEST_GIVEN) if given else None,
    }
    run(connection, statements.audit.write, **values)


def delete_old(connection: Connection, statements: Statements, *, keep: float, limit: int) -> int:
    """Delete up to *limit* rows that are older than *keep* seconds. Commits; how many it was."""
    assert statements.audit is not None
    given = {"age": timedelta(seconds=keep), "limit": limit}
    with connection.begin():
        return int(run(connection, statements.audit.delete_old, **given).scalar_one())


def _json(connection: Connection, value: Mapping[str, Any], largest: int | None = None) -> str:
    """JSON that this database can store, whatever was given."""
    made = json.dumps(bounded(value, lambda text: storable(connection, text) or ""))
    if largest is None or len(made) <= largest:
        return made
    return json.dumps({"left out": f"{len(made)} characters"})


def bounded(value: Any, kept: Callable[[str], str], depth: int = 0) -> Any:
    """A JSON value whose parts are cut where they are too long, too many or too deep.

    What is cut says so. No text has a character that JSON in PostgreSQL can't have; *kept* replaces
    those that the database can't.
    """
    if depth > _DEEPEST:
        return "..."
    match value:
        case None | bool() | int():
            return value
        case float():
            return value if math.isfinite(value) else str(value)
        case dict():
            some = {
                kept(_cut(str(key), LONGEST_TEXT)): bounded(one, kept, depth + 1)
                for key, one in islice(value.items(), MOST)
            }
            return some | ({"...": _more(value)} if len(value) > MOST else {})
        case list() | tuple():
            first = [bounded(one, kept, depth + 1) for one in value[:MOST]]
            return first + ([_more(value)] if len(value) > MOST else [])
        case _:
            return kept(_cut(str(value), LONGEST_TEXT))


def _more(value: Sized) -> str:
    return f"and {len(value) - MOST} more"


def _cut(text: str, longest: int) -> str:
    """The text in one line, so long at most."""
    shown = printable(text[: longest + 1])
    return shown if len(shown) <= longest else f"{shown[:longest]}..."
