"""COPY: how many new jobs at once get into the table fastest, and what it takes for that.

SQLAlchemy has no COPY, so the driver's own is used, in the transaction that the caller's statements
are in. What the server would compute is computed here, from its own clock: COPY takes values only.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from ._registry import NewJob, with_ids

WORTH_IT: Final = 500
"""From so many jobs on it saves more than its opening statement costs."""
_BLOCK: Final = 2_000
_BLOCK_BYTES: Final = 8 * 1_048_576
_COLUMNS: Final = ("id", "queue", "type", "arg", "lease", "priority", "headers", "next_run_at")
_ESCAPES: Final = str.maketrans({"\\": r"\\", "\n": r"\n", "\r": r"\r", "\t": r"\t"})
_NULL: Final = r"\N"


def can_copy(connection: Connection, table: Table) -> bool:
    """Whether COPY does here what an INSERT would do."""
    return (
        connection.dialect.driver in ("psycopg", "psycopg_async")
        and not connection.get_execution_options().get("schema_translate_map")
        # The user's own columns may have defaults that are functions in Python.
        and not any(c.default is not None and c.name not in _COLUMNS for c in table.c)
    )


def copy(connection: Connection, table: Table, jobs: Sequence[NewJob], now: datetime) -> None:
    """Add jobs whose ids are new. The caller's transaction is open, and the caller commits.

    Args:
        connection: The caller's.
        table: Of live jobs.
        jobs: What to add.
        now: When the transaction began, by the server's clock.

    Raises:
        DBAPIError: As an INSERT would.
    """
    columns = ", ".join(_COLUMNS)
    name = connection.dialect.identifier_preparer.format_table(table)
    statement = f"COPY {name} ({columns}) FROM STDIN WITH (FORMAT text, ENCODING 'UTF8')"
    driver: Any = connection.connection.driver_connection
    dialect = connection.dialect
    error_class = dialect.loaded_dbapi.Error
    blocks = _blocks(jobs, now)
    try:
        if dialect.is_async:
            from sqlalchemy.util import await_only  # noqa: PLC0415 - greenlet, which this has

            await_only(_copy_async(driver, statement, blocks))
        else:
            with driver.cursor() as cursor, cursor.copy(statement) as stream:
                for block in blocks:
                    stream.write(block)
    except error_class as error:
        lost = dialect.is_disconnect(error, driver, None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement, None, error, error_class, connection_invalidated=lost, dialect=dialect
        ) from error
    except BaseException:
        # Cancelled, most likely: the server's transaction has failed, and SQLAlchemy, which does
        # not know, would take the answer to the caller's COMMIT for one.
        connection.invalidate()
        raise


async def _copy_async(driver: Any, statement: str, blocks: Iterable[bytes]) -> None:
    async with driver.cursor() as cursor, cursor.copy(statement) as stream:
        for block in blocks:
            await stream.write(block)


def _blocks(jobs: Sequence[NewJob], now: datetime) -> Iterator[bytes]:
    # Ids are made here, while the server takes in the block before.
    largest = max(len(job.arg or b"") for job in jobs)
    size = max(min(_BLOCK, _BLOCK_BYTES // (largest + 1)), 1)
    for at in range(0, len(jobs), size):
        block = with_ids(jobs[at : at + size])
        yield "".join(_lines(block, now)).encode()


def _lines(jobs: Iterable[tuple[str, NewJob]], now: datetime) -> Iterator[str]:
    """Rows in COPY's text format, with what all of them share written once."""
    shared: tuple[Any, ...] = ()
    last_run_at = last_headers = None
    kind = rest = ""
    now = now.astimezone(UTC)  # in another zone, adding a day may add 23 hours
    # As the column's default: the insert's clock in microseconds. These ids have had no lease.
    lease = int(now.timestamp() * 1_000_000)
    for id, (_, queue, type, arg, priority, delay, run_at, headers) in jobs:
        # By identity where things can be equal that are written differently, as 1 and True.
        same = run_at is last_run_at and headers is last_headers
        if not same or shared != (queue, type, priority, delay):
            shared, last_run_at, last_headers = (queue, type, priority, delay), run_at, headers
            kind = f"{queue.translate(_ESCAPES)}\t{type.translate(_ESCAPES)}"
            due = run_at or (now + timedelta(seconds=delay) if delay else now)
            text = json.dumps(headers).translate(_ESCAPES) if headers else _NULL
            rest = f"{lease}\t{priority}\t{text}\t{due.isoformat()}\n"
        data = _NULL if arg is None else rf"\\x{arg.hex()}"
        yield f"{id}\t{kind}\t{data}\t{rest}"
