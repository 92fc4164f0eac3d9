"""What an exception means, and what of it may be stored. Pure.

Database errors are told apart by SQLSTATE and by ``connection_invalidated``, never by message:
messages are translated, and hold the values of rows. The one exception is a refused connection.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    OperationalError,
    PendingRollbackError,
    StatementError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from ..settings import MAX_ERROR_LENGTH
from .frames import causes, places, source

RETRY_AT_ONCE: Final = frozenset({"40001", "40P01"})
"""Serialization failure and deadlock: the same attempt would likely pass now."""

READ_ONLY: Final = "25006"
"""A write on a standby, or in a session that was opened while the database was read-only."""

_MOST_MEMBERS: Final = 5


def sqlstate(error: BaseException | None) -> str | None:
    """The SQLSTATE of a driver's or SQLAlchemy's error; None when there is none."""
    if isinstance(error, StatementError):
        error = error.orig
    for name in ("sqlstate", "pgcode"):
        code: object = None
        with suppress(Exception):  # it may be a property of the user's own error
            code = getattr(error, name, None)
        if isinstance(code, str) and len(code) == 5:
            return code
    return None


def lost_connection(error: BaseException) -> bool:
    """Whether the connection is unusable; the outcome of a COMMIT on it may be unknown."""
    if was_invalidated(error):
        return True
    if isinstance(error, OSError | EOFError):  # asyncpg's connect raises these bare
        return True
    code = sqlstate(error)
    # 08: connection; 57P01-57P03: shut down, crashed, starting up; 53300: too many clients;
    # 25006: a standby, or a session that was opened while the database was read-only.
    unavailable = code is not None and (code[:2] == "08" or code in _UNAVAILABLE)
    return unavailable or lacks_prepared(error)


def lacks_prepared(error: BaseException) -> bool:
    """Whether a session lacks the statement that its driver prepared, or has another client's.

    A pooler shares its server sessions between clients.
    """
    code = sqlstate(error)
    if code != _PROTOCOL:
        return code in _NOT_PREPARED
    # Another client's statement takes more values, or fewer. A pooler's own 08P01 ends the session.
    if not isinstance(error, DBAPIError) or error.statement is None or error.connection_invalidated:
        return False
    by_psycopg = type(error.orig).__module__.startswith("psycopg")
    return not (by_psycopg and _NUMBERED.search(error.statement))


_NOT_PREPARED: Final = frozenset({"26000", "42P05"})
_PROTOCOL: Final = "08P01"
_NUMBERED: Final = re.compile(r"\$\d")
"""A parameter that psycopg did not write: the statement itself is wrong."""


def was_invalidated(error: BaseException) -> bool:
    """Whether SQLAlchemy found an established connection lost; a new one may work."""
    return isinstance(error, DBAPIError) and error.connection_invalidated


def refuses_a_row(error: BaseException) -> bool:
    """Whether a statement failed because of one row; other rows may pass.

    The server rejects a value (class 22) or enforces a constraint (23), or the driver can't read
    the row.
    """
    code = sqlstate(error)
    if code is not None:
        return code[:2] in ("22", "23")
    return not (lost_connection(error) or isinstance(error, InterfaceError | MemoryError))


def ran_out_of_time(error: BaseException) -> bool:
    """Whether statement_timeout, lock_timeout or somebody's cancel ended the statement."""
    return sqlstate(error) in ("57014", "55P03")


def doubts_session(error: BaseException) -> bool:
    """Whether the session itself may be the cause of an error, and a new one may do better.

    True unless the error is known to come from a row, a trigger, a timeout or another transaction.
    """
    # 22, 23: values and constraints; 40: conflicts; P0: what PL/pgSQL raises.
    known = (sqlstate(error) or "")[:2] in ("22", "23", "40", "P0")
    return not (known or ran_out_of_time(error))


_UNAVAILABLE = frozenset({"57P01", "57P02", "57P03", "57P05", "53300", "25P03", "25P04", READ_ONLY})


_FINAL: Final = frozenset({"28P01", "28000", "3D000"})
"""No password, no such role, no such database."""
# libpq does not pass on the SQLSTATE of a failed connection, so psycopg and psycopg2 have only its
# message. Where that is not English we go on waiting: the safer of the two mistakes.
_FINAL_WORDS: Final = re.compile(
    r"authentication failed for user|no pg_hba\.conf entry|no password supplied|"
    r'role ".*" (does not exist|is not permitted to log in)|database ".*" does not exist|'
    r"permission denied for database"
)


def refused_connection(error: BaseException) -> bool:
    """Whether waiting is useless: the server rejects the password, the role or the database."""
    code = sqlstate(error)
    if code is not None:
        return code in _FINAL
    return isinstance(error, OperationalError) and bool(_FINAL_WORDS.search(str(error.orig)))


def passes_by_itself(error: BaseException) -> bool:
    """Whether a retry may succeed although nobody has mended anything."""
    if lost_connection(error) or ran_out_of_time(error):
        return True
    code = sqlstate(error)
    if code is not None:  # conflicts, resources, locks, operators, I/O
        return code[:2] in ("40", "53", "55", "57", "58")
    # Drivers give no SQLSTATE when nobody answers.
    unreachable = isinstance(error, OperationalError | InterfaceError | PoolTimeoutError)
    return unreachable and not refused_connection(error)


_POOLER: Final = (
    "a pooler in transaction mode keeps no prepared statements: give create_engine, with psycopg, "
    'connect_args={"prepare_threshold": None}; with asyncpg, connect_args={"statement_cache_size": '
    '0, "prepared_statement_cache_size": 0, "prepared_statement_name_func": lambda: '
    'f"bgjob_{uuid.uuid4()}"}'
)
_ADVICE: Final[Mapping[str, str]] = {
    READ_ONLY: "the server is a standby, or default_transaction_read_only is on",
    "25P03": "see idle_in_transaction_session_timeout",
    "25P04": "see transaction_timeout",
    "57014": "see statement_timeout, unless somebody canceled it",
    "42501": "the role lacks a privilege",
    "42P01": "a table is not in this database, or not in the search path",
    "55P03": "see lock_timeout, unless the statement says NOWAIT",
}


def advice(error: BaseException) -> str | None:
    """The setting that a database error points to; None if its SQLSTATE points to none."""
    return _POOLER if lacks_prepared(error) else _ADVICE.get(sqlstate(error) or "")


def note_advice(error: BaseException) -> None:
    """Add the advice to the error as a note, once."""
    found = advice(error)
    if found is not None and found not in getattr(error, "__notes__", ()):
        error.add_note(found)


def database_message(error: BaseException) -> str:
    """Why there is no connection, in the words of the database or driver; passwords are masked.

    Only for errors of connecting: other messages may hold the values of rows.
    """
    orig = error.orig if isinstance(error, DBAPIError) and error.orig is not None else error
    lines = [line.strip() for line in _printed(orig).splitlines() if line.strip()]
    said, remedy = "; ".join(lines[:2]) or type(orig).__name__, advice(error)
    said = _PASSWORD.sub(r"\1***", _BEFORE_AT.sub("***@", said))
    return said if remedy is None else f"{said}; {remedy}"


# A driver may quote part of a URL, such as a host that it can't resolve.
_BEFORE_AT: Final = re.compile(r"[^\s'\"]+@(?=\S)")
_PASSWORD: Final = re.compile(r"(password\s*=\s*)('[^']*'|[^\s&]+)", re.IGNORECASE)


def of_connecting(error: BaseException) -> bool:
    """Whether an error comes from connecting and not from a statement: its message holds no row."""
    code = sqlstate(error)
    if code is not None and code[:2] not in ("08", "28") and code not in _NO_CONNECTION:
        return False
    if isinstance(error, StatementError):
        known = isinstance(error, OperationalError | InterfaceError)
        return error.statement is None and (known or code is not None)
    return code is not None  # asyncpg's own, which SQLAlchemy has not wrapped


_NO_CONNECTION: Final = frozenset({"57P01", "57P02", "57P03", "53300", "3D000"})


def describe(error: BaseException) -> str:
    """An error as text for ``last_error``: type, message, and the frames that led to it.

    The frames are in Python's order, without this library's. The user's innermost frame is last;
    frames of the libraries that it called come before, under "raised in".

    A database error gives its SQLSTATE and constraint, not its message, which would hold
    parameters and the values of rows. An exception group names its first five members.
    """
    first, *causes = _headlines(error)
    lines = [first, *(f"caused by {cause}" for cause in causes)]
    if isinstance(error, BaseExceptionGroup):
        lines += [f"contains {_headline(member)}" for member in error.exceptions[:_MOST_MEMBERS]]
    found = places(error)
    if found.raised_in:
        lines += ["raised in", *(f"  {place}" for place in found.raised_in), "called from"]
    lines += [f"  {place}" for place in found.called_from]
    return clean("\n".join(lines))


def stack(error: BaseException) -> str:
    """An error as Python shows it: the tracebacks of the error, its causes and its members.

    The messages are those of :func:`describe`, so no values of rows get in.
    """
    shown: list[str] = []
    for cause, headline in zip(causes(error), _headlines(error), strict=False):
        text = f"Traceback (most recent call last):\n{source(cause.__traceback__)}{headline}"
        shown.append(text if not shown else f"caused by\n{text}")
    if isinstance(error, BaseExceptionGroup):
        shown += [f"contains\n{stack(member)}" for member in error.exceptions[:_MOST_MEMBERS]]
    return "\n\n".join(shown)


def _headlines(error: BaseException) -> list[str]:
    """Type and message of an error and its causes, up to the first database error.

    Its causes are the driver's errors, whose messages hold the values of rows.
    """
    lines = []
    for cause in causes(error):
        lines.append(_headline(cause))
        if _is_database_error(cause):
            break
    return lines


def summary(error: BaseException, *, place: bool = False) -> str:
    """The first line of what :func:`describe` says, for a line of the log.

    Args:
        error: What was raised.
        place: Whether to name the user's innermost frame too.
    """
    line = clean(_headline(error)).splitlines()[0]
    called_from = places(error).called_from if place else ()
    return f"{line} ({called_from[-1]})" if called_from else line


def _is_database_error(error: BaseException) -> bool:
    return isinstance(error, StatementError | PendingRollbackError) or sqlstate(error) is not None


def _headline(error: BaseException) -> str:
    name = type(error).__name__
    if isinstance(error, PendingRollbackError):  # its message quotes the error of the flush
        return f"{name}: the session was used after a flush had failed; roll it back first"
    if of_connecting(error):
        return f"{name}: {database_message(error)}"
    if _is_database_error(error):
        orig = error.orig if isinstance(error, StatementError) else error
        parts = [type(orig).__name__, sqlstate(error), _constraint(orig)]
        words = f"{name}: " + " ".join(part for part in parts if part)
        remedy = advice(error)
        return words if remedy is None else f"{words} ({remedy})"
    message = _printed(error)
    return f"{name}: {message}" if message else name


def _printed(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:  # a broken __str__ must not hide the failure
        return "(its message could not be built)"


def _constraint(error: Any) -> str | None:
    diag = getattr(error, "diag", None)
    for holder in (diag, error, getattr(error, "__cause__", None)):
        name = getattr(holder, "constraint_name", None)
        if isinstance(name, str):
            return name
    return None


def clean(text: str) -> str:
    """Text that PostgreSQL can store: no NUL, no lone surrogates, at most 8,192 characters.

    Otherwise the statement that records a failure would itself fail, and the job would never end.
    """
    text = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode("utf-8")
    if len(text) > MAX_ERROR_LENGTH:
        half = (MAX_ERROR_LENGTH - 20) // 2
        text = f"{text[:half]}\n... cut ...\n{text[-half:]}"
    return text


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The known names closest to a wrong one, as a question; empty if none is close."""
    close = difflib.get_close_matches(name, sorted(known), n=3, cutoff=0.5)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else ""
