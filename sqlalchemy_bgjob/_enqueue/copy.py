"""COPY: the fastest way into the table for many new jobs, and what it requires.

SQLAlchemy has no COPY, so the driver's own is used, in the caller's transaction. COPY takes values
only, so ``lease`` and ``next_run_at`` are computed here, from the server's clock.
"""

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from struct import Struct
from typing import Any, Final

from sqlalchemy import Connection, Table
from sqlalchemy.exc import DBAPIError

from .._db.sessions import writes_iso
from .._drafts.draft import Draft, in_chunks, with_ids
from .._drafts.options import Common
from .._points import COPYING
from ..exceptions import InvalidArg
from ..schema._names import qualified

WORTH_IT: Final = 500
"""From this number of jobs on, COPY saves more than its opening statement costs."""
BLOCK: Final = 2_000
"""The most jobs that are sent at once."""
_BLOCK_BYTES: Final = 8 * 1_048_576
_COLUMNS: Final = (
    "id",
    "queue",
    "type",
    "arg",
    "lease",
    "priority",
    "headers",
    "next_run_at",
    "expires_at",
    "batch_id",
)

# The binary format, as PostgreSQL's manual has it under COPY: each value after its length.
_HEADER: Final = b"PGCOPY\n\xff\r\n\0" + bytes(8)
_TRAILER: Final = b"\xff\xff"
_LENGTH: Final = Struct("!i").pack
_INT16: Final = Struct("!ih").pack
_INT64: Final = Struct("!iq").pack
_COUNT: Final = Struct("!h").pack(len(_COLUMNS))
_NULL: Final = _LENGTH(-1)
_JSONB: Final = b"\x01"
_EPOCH: Final = datetime(2000, 1, 1, tzinfo=UTC)


def can_copy(connection: Connection, table: Table) -> bool:
    """Whether COPY does here what an INSERT would do."""
    return (
        connection.dialect.driver in ("psycopg", "psycopg_async")
        and not connection.get_execution_options().get("schema_translate_map")
        # In the binary format text is sent in the connection's encoding, and ours is UTF-8.
        and _driver_of(connection).info.encoding == "utf-8"
        # The server's clock is read first.
        and writes_iso(connection)
        # The user's own columns may have defaults that are Python functions.
        and not any(c.default is not None and c.name not in _COLUMNS for c in table.c)
    )


def _driver_of(connection: Connection) -> Any:
    return connection.connection.driver_connection


def copy(connection: Connection, table: Table, jobs: Iterable[Draft], now: datetime) -> int:
    """Add jobs with new ids to the caller's open transaction; the caller commits. How many it was.

    A trigger of the application's may keep some out.

    Args:
        connection: The caller's.
        table: The table of live jobs.
        jobs: The jobs, iterated while those before them are sent.
        now: When the transaction began, by the server's clock.

    Raises:
        DBAPIError: As an INSERT would.
        InvalidArg: A job can't be encoded; the transaction has failed, back to the last savepoint.
    """
    columns = ", ".join(_COLUMNS)
    # Not by the dialect, which doubles percent signs: COPY takes no parameters.
    name = qualified(table.schema, table.name)
    statement = f"COPY {name} ({columns}) FROM STDIN WITH (FORMAT binary)"
    driver = _driver_of(connection)
    dialect = connection.dialect
    error_class = dialect.loaded_dbapi.Error
    blocks = _blocks(jobs, now)
    try:
        if dialect.is_async:
            from sqlalchemy.util import await_only  # noqa: PLC0415 - greenlet, which this has

            count: int = await_only(_copy_async(driver, statement, blocks))
        else:
            with driver.cursor() as cursor:
                with cursor.copy(statement) as stream:
                    for block in blocks:
                        stream.write(block)
                count = cursor.rowcount
    except error_class as error:
        lost = dialect.is_disconnect(error, driver, None)
        if lost:
            connection.invalidate(error)
        raise DBAPIError.instance(
            statement, None, error, error_class, connection_invalidated=lost, dialect=dialect
        ) from error
    except InvalidArg:
        raise  # from the jobs; the driver has told the server already
    except BaseException:
        # Most likely a cancellation: the server's transaction has failed. SQLAlchemy does not know,
        # and would take the ROLLBACK that answers the caller's COMMIT for success.
        connection.invalidate()
        raise
    return count


async def _copy_async(driver: Any, statement: str, blocks: Iterable[bytes]) -> Any:
    async with driver.cursor() as cursor:
        async with cursor.copy(statement) as stream:
            for block in blocks:
                await stream.write(block)
        return cursor.rowcount


def _blocks(jobs: Iterable[Draft], now: datetime) -> Iterator[bytes]:
    if COPYING.listeners:
        COPYING.reached()
    # Each block is encoded while the server takes in the one before.
    yield _HEADER
    for chunk in in_chunks(jobs, BLOCK, _BLOCK_BYTES):
        yield b"".join(_rows(with_ids(chunk), now))
    yield _TRAILER


def _rows(jobs: Iterable[tuple[str, Draft]], now: datetime) -> Iterator[bytes]:
    """Rows in COPY's binary format; options that rows share are encoded once."""
    last: Common | None = None
    names = rest = b""
    now = now.astimezone(UTC)  # in another zone, adding a day may add 23 hours
    # As the column's default: the server's clock in microseconds. New ids have had no lease.
    lease = int(now.timestamp() * 1_000_000)
    for id, job in jobs:
        arg, common = job.arg, job.common
        if common is not last:
            last = common
            names = _value(common.queue.encode()) + _value(common.type.encode())
            rest = _INT64(8, lease) + _INT16(2, common.priority)
            headers = common.headers
            rest += _value(_JSONB + json.dumps(headers).encode()) if headers else _NULL
            rest += _INT64(8, _microseconds(_start(common, now)))
            end = _expiry(common, now)
            rest += _NULL if end is None else _INT64(8, _microseconds(end))
            batch = common.batch_id
            rest += _NULL if batch is None else _value(batch.encode())
        data = _NULL if arg is None else _LENGTH(len(arg)) + arg
        yield b"".join((_COUNT, _LENGTH(len(id)), id.encode(), names, data, rest))


def _value(data: bytes) -> bytes:
    return _LENGTH(len(data)) + data


def _start(common: Common, now: datetime) -> datetime:
    if common.run_at is not None:
        return common.run_at
    return now + common.delay if common.delay else now


def _expiry(common: Common, now: datetime) -> datetime | None:
    end = common.expires_in
    return common.expires_at if end is None else now + (common.delay or timedelta()) + end


def _microseconds(moment: datetime) -> int:
    """Microseconds since 2000, as PostgreSQL counts them."""
    return (moment - _EPOCH) // timedelta(microseconds=1)
