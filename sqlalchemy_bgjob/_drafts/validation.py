"""What callers may write into a row, checked before any SQL. Pure.

Every way into the table (enqueue, bulk, ``handler.job()``, a plain ``Job(...)``) calls these, so
the rules are the same everywhere and a refusal leaves the caller's transaction as it was.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, TypeGuard

from ..exceptions import InvalidArg
from ..settings import MAX_ID_LENGTH, MAX_NAME_LENGTH
from .codec import Codec

CONTENT_TYPE = "content-type"
"""The header that is set when an arg is not JSON."""

MAX_HEADERS_SIZE = 65_536
MAX_WORDS = 1_000
MAX_DELAY = 100 * 366 * 86_400.0
EARLIEST = datetime(1970, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 1, 1, tzinfo=UTC)

_headers_codec = Codec(dict[str, Any])


def name(what: str, value: object) -> str:
    """A queue's or type's name: 1 to 128 characters without NUL or lone surrogates."""
    return _text(what, value, MAX_NAME_LENGTH)


def job_id(value: object) -> str:
    """An id of the caller's own: 1 to 255 characters without NUL or lone surrogates."""
    if not isinstance(value, str):
        # A JobRef, a Job or a job of a handler's context has the id that was meant.
        own = isinstance(getattr(value, "id", None), str)
        write = "pass its .id" if own else "write id=str(...)"
        raise TypeError(f"id must be a str, not {type(value).__name__}; {write}")
    return _text("id", value, MAX_ID_LENGTH)


def unique_key(value: object) -> str:
    """A unique key: 1 to 255 characters without NUL or lone surrogates."""
    if not isinstance(value, str):
        raise TypeError(
            f"unique must be a str or Unique(...), not {type(value).__name__}; write "
            f"unique=str(...) or unique=Unique(str(...))"
        )
    return _text("unique", value, MAX_ID_LENGTH)


def _text(what: str, value: object, limit: int) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{what} must be a str, not {type(value).__name__}")
    if not 1 <= len(value) <= limit:
        raise ValueError(
            f"{what}={value[:limit]!r} has {len(value)} characters; 1 to {limit} are allowed"
        )
    if "\x00" in value:
        raise ValueError(f"{what}={value!r} contains a NUL character, which PostgreSQL refuses")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{what}={value!r} contains a lone surrogate, which is no text") from None
    # Of a member of an Enum, an f-string would make the name of the member.
    return value if type(value) is str else str.__str__(value)


def words(what: str, value: object) -> str | None:
    """What somebody says of what they did: up to 1,000 characters, or None."""
    return None if value is None else _text(what, value, MAX_WORDS)


def is_int(value: object) -> TypeGuard[int]:
    """Whether a value is an int, and not a bool."""
    return isinstance(value, int) and not isinstance(value, bool)


def priority(value: object) -> int:
    """-32768 to 32767; lower runs first."""
    if not is_int(value):
        raise TypeError(f"priority must be an int, not {type(value).__name__}")
    if not -32_768 <= value <= 32_767:
        raise ValueError(f"priority={value!r} is not between -32768 and 32767")
    return value


def seconds(what: str, value: object) -> float:
    """A duration given as seconds or as a timedelta: 0 to 100 years."""
    if isinstance(value, timedelta):
        value = value.total_seconds()
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(
            f"{what} must be seconds (int or float) or a timedelta, not {type(value).__name__}"
        )
    if not 0 <= value <= MAX_DELAY:  # false for NaN too
        raise ValueError(f"{what}={value!r} s is not between 0 and {MAX_DELAY:g} s (100 years)")
    return float(value)


def number(what: str, value: object) -> int | float:
    """A finite number."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be an int or float, not {type(value).__name__}")
    if not -1e300 < value < 1e300:  # false for NaN too
        raise ValueError(f"{what}={value!r} is not a finite number below 1e300")
    return value


def rate(what: str, value: object) -> float:
    """How many a second: from one in a thousand seconds to a million."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{what} must be an int or float, not {type(value).__name__}")
    if not 0.001 <= value <= 1_000_000:  # false for NaN too
        raise ValueError(f"{what}={value!r} is not between 0.001 and 1000000")
    return float(value)


def limit(value: object) -> int | None:
    """How many rows at most: a positive number, or None for all."""
    if value is None:
        return None
    if not is_int(value):
        raise TypeError(f"limit must be an int or None, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"limit={value!r} is below 1; None means all")
    return value


def moment(what: str, value: object) -> datetime:
    """An aware datetime from 1970 to 9998; a naive one would mean the session's time zone."""
    if not isinstance(value, datetime):
        raise TypeError(f"{what} must be a datetime, not {type(value).__name__}")
    if value.tzinfo is None or value.utcoffset() is None:
        raise ValueError(
            f"{what}={value!r} has no time zone; "
            f"give it one, for example datetime.now(UTC) + timedelta(minutes=5)"
        )
    try:
        in_range = EARLIEST <= value.astimezone(UTC) < LATEST
    except OverflowError:
        in_range = False
    if not in_range:
        raise ValueError(f"{what}={value!r} is not between the years 1970 and 9998")
    return value


def start(delay: object, run_at: object) -> tuple[timedelta | None, datetime | None]:
    """When the first attempt is due: a time from the transaction's start, or a moment."""
    if delay is not None and run_at is not None:
        raise ValueError("give either delay= or run_at=, not both")
    if run_at is not None:
        return None, moment("run_at", run_at)
    return (None if delay is None else timedelta(seconds=seconds("delay", delay))), None


def expiry(value: object, run_at: datetime | None) -> tuple[timedelta | None, datetime | None]:
    """When a job expires: a time from the moment when it is due, or a moment."""
    if value is None:
        return None, None
    if not isinstance(value, datetime):
        after = timedelta(seconds=seconds("expires", value))
        if not after:
            raise ValueError("expires=0 would never let the job start; None is without an expiry")
        if run_at is None:
            return after, None
        value = run_at + min(after, LATEST - run_at.astimezone(UTC) - timedelta(seconds=1))
    at = moment("expires", value)
    if run_at is not None and at <= run_at:
        raise ValueError(
            f"expires={at!r} is not after run_at={run_at!r}, so the job would never start"
        )
    return None, at


def stored_headers(value: object) -> dict[str, Any]:
    """The headers that a row has; none if SQL has put other JSON there."""
    return value if isinstance(value, dict) else {}


def headers(value: object, content_type: str | None = None) -> dict[str, Any] | None:
    """The headers of a row: the caller's JSON object plus the arg's content type; None if empty."""
    if value is None:
        return {CONTENT_TYPE: content_type} if content_type else None
    if not isinstance(value, Mapping):
        raise TypeError(f"headers must be a mapping, not {type(value).__name__}")
    if CONTENT_TYPE in value and value[CONTENT_TYPE] != content_type:
        raise ValueError(f"headers may not set {CONTENT_TYPE!r}: it is derived from the arg")
    try:
        data = _headers_codec.encode(dict(value), max_size=MAX_HEADERS_SIZE).data
    except InvalidArg as error:
        raise InvalidArg(f"headers{error.path[1:]}", error.reason) from None
    # As plain JSON values: the engine's own serializer knows no UUID or datetime.
    result: dict[str, Any] = json.loads(data or b"{}")
    if content_type:
        result[CONTENT_TYPE] = content_type
    return result or None
