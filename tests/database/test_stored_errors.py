"""What of an error is stored and logged: enough to find the mistake, and nothing secret."""

from __future__ import annotations

import asyncio
import pickle
import traceback
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg.errors
import pytest
from sqlalchemy import Text, create_engine, text
from sqlalchemy.exc import DBAPIError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sqlalchemy_bgjob import JobAlreadyExists, UnknownType, WorkerLost, WorkerRefused
from sqlalchemy_bgjob._db.errors import clean, describe, lost_connection, sqlstate
from sqlalchemy_bgjob.exceptions import NoContextManager
from sqlalchemy_bgjob.settings import MAX_ERROR_LENGTH

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from conftest import UrlFor

CANARY = "canary-5f1c"


def raised(function: Callable[[], Any]) -> Exception:
    with pytest.raises(Exception) as caught:  # noqa: PT011 - any will do
        function()
    return caught.value


def test_type_message_and_place() -> None:
    def deep() -> None:
        raise ValueError("no such order")

    lines = describe(raised(deep)).splitlines()

    assert lines[0] == "ValueError: no such order"
    assert lines[-1].endswith("in deep")
    assert __file__ in lines[-1]


def test_an_error_without_a_message_is_its_type() -> None:
    assert describe(KeyError()) == "KeyError"


def test_causes_are_named_and_suppressed_ones_are_not() -> None:
    def explicit() -> None:
        try:
            {}["first"]
        except KeyError as error:
            raise ValueError("second") from error

    def implicit() -> None:
        try:
            {}["first"]
        except KeyError:
            raise ValueError("second")  # noqa: B904

    def suppressed() -> None:
        try:
            {}["first"]
        except KeyError:
            raise ValueError("second") from None

    for function in (explicit, implicit):
        assert describe(raised(function)).splitlines()[1] == "caused by KeyError: 'first'"
    assert "first" not in describe(raised(suppressed))


def test_a_circle_of_causes_ends() -> None:
    first, second = ValueError("one"), ValueError("two")
    first.__cause__, second.__cause__ = second, first

    assert describe(first).splitlines() == ["ValueError: one", "caused by ValueError: two"]


def test_an_exception_group_names_its_members() -> None:
    group = ExceptionGroup("two of them", [ValueError("a"), KeyError("b")])

    assert describe(group).splitlines() == [
        "ExceptionGroup: two of them (2 sub-exceptions)",
        "contains ValueError: a",
        "contains KeyError: 'b'",
    ]


class BrokenStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("not even this")


class StrOfAnotherType(Exception):
    def __str__(self) -> str:
        return 5  # type: ignore[return-value]  # noqa: PLE0307


class BrokenProperty(Exception):
    @property
    def sqlstate(self) -> str:
        raise RuntimeError("not even this")


@pytest.mark.parametrize("kind", [BrokenStr, StrOfAnotherType, BrokenProperty])
def test_a_broken_exception_is_described(kind: type[Exception]) -> None:
    assert describe(kind("x")).startswith(kind.__name__)
    assert sqlstate(kind("x")) is None


def test_text_that_postgresql_can_store() -> None:
    assert clean("a\x00b\ud800c") == "a\\x00b\\ud800c"
    assert clean("日本語 🙂") == "日本語 🙂"


def test_long_text_keeps_its_beginning_and_end() -> None:
    cut = clean("a" * 1_000_000 + "\x00" * 500_000 + "the end")

    assert len(cut) <= MAX_ERROR_LENGTH
    assert cut.startswith("aaa")
    assert "... cut ..." in cut
    assert cut.endswith("the end")
    assert clean("a" * MAX_ERROR_LENGTH) == "a" * MAX_ERROR_LENGTH


class Base(DeclarativeBase):
    pass


class Card(Base):
    __tablename__ = "card"
    number: Mapped[str] = mapped_column(Text, primary_key=True)
    limit: Mapped[int]


def unique_violation(session: Session) -> None:
    for _ in range(2):
        session.execute(text("INSERT INTO card VALUES (:n, 1)"), {"n": CANARY})


def cast_error(session: Session) -> None:
    session.execute(text("SELECT CAST(CAST(:n AS text) AS int)"), {"n": CANARY})


def missing_parameter(session: Session) -> None:
    session.execute(text("SELECT :n, :m"), {"n": CANARY})


def not_null_at_flush(session: Session) -> None:
    session.add(Card(number=CANARY))
    session.flush()


def after_a_failed_flush(session: Session) -> None:
    session.add(Card(number=CANARY))
    with suppress(SQLAlchemyError):
        session.flush()
    session.execute(text("SELECT 1"))


def wrapped(session: Session) -> None:
    try:
        unique_violation(session)
    except DBAPIError as error:
        raise RuntimeError("could not store the card") from error


def in_a_group(session: Session) -> None:
    raise ExceptionGroup("several", [raised(lambda: unique_violation(session))])


SECRETS = {
    unique_violation: "IntegrityError: UniqueViolation 23505 card_pkey",
    cast_error: "22P02",
    missing_parameter: "StatementError: InvalidRequestError",
    not_null_at_flush: "23502",
    after_a_failed_flush: "PendingRollbackError: the session was used after a flush had failed",
    wrapped: "caused by IntegrityError: UniqueViolation 23505 card_pkey",
    in_a_group: "contains IntegrityError: UniqueViolation 23505 card_pkey",
}


@pytest.fixture(params=["psycopg", "psycopg2", "asyncpg"])
def in_session(
    request: pytest.FixtureRequest, url_for: UrlFor
) -> Iterator[Callable[[Callable[[Session], Any]], Any]]:
    """Call a function with a new session on each driver."""
    url = url_for(request.param)
    if request.param != "asyncpg":
        engine = create_engine(url)

        def call(function: Callable[[Session], Any]) -> Any:
            with Session(engine) as session:
                return function(session)

        yield call
        engine.dispose()
        return

    async def run(function: Callable[[Session], Any]) -> Any:
        async_engine = create_async_engine(url)
        try:
            async with AsyncSession(async_engine) as session:
                return await session.run_sync(function)
        finally:
            await async_engine.dispose()

    yield lambda function: asyncio.run(run(function))


def test_no_parameter_and_no_row_gets_into_the_text(
    in_session: Callable[[Callable[[Session], Any]], Any],
) -> None:
    def create(session: Session) -> None:
        Base.metadata.create_all(session.connection())
        session.commit()

    in_session(create)
    for function, expected in SECRETS.items():
        error = raised(partial(in_session, function))
        described = describe(error)
        assert CANARY not in described, function
        assert expected in described.replace("UniqueViolationError", "UniqueViolation"), described
        assert CANARY in "".join(traceback.format_exception(error)), "there was nothing to hide"


def test_a_value_that_the_driver_refuses_is_not_in_the_text(url_for: UrlFor) -> None:
    """Messages of asyncpg quote the value, down to the error of the conversion."""

    async def fail() -> None:
        connection = await asyncpg.connect(url_for("asyncpg").replace("+asyncpg", ""))
        try:
            await connection.fetchval("SELECT $1::uuid", CANARY)
        finally:
            await connection.close()

    error = raised(lambda: asyncio.run(fail()))

    assert CANARY in str(error)
    assert CANARY not in describe(error)
    assert sqlstate(error) == "22000"


def test_errors_are_told_apart_by_sqlstate_and_not_by_text(url_for: UrlFor) -> None:
    assert sqlstate(psycopg.errors.SerializationFailure()) == "40001"
    assert sqlstate(asyncpg.DeadlockDetectedError()) == "40P01"
    assert sqlstate(ValueError("40001")) is None
    assert sqlstate(None) is None
    assert not lost_connection(ValueError("server closed the connection unexpectedly"))
    assert lost_connection(ConnectionResetError())
    assert lost_connection(psycopg.errors.AdminShutdown())
    assert lost_connection(psycopg.errors.InvalidSqlStatementName())
    assert lost_connection(psycopg.errors.DuplicatePreparedStatement())


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            UnknownType("mail", 300.0),
            (
                "no worker knew the job type 'mail' for 300 s; deploy a worker that has a handler "
                "of it, and redrive the job"
            ),
        ),
        (
            WorkerLost(),
            (
                "the worker that ran the job was lost; find out what ended it, as the job itself "
                "may be the cause"
            ),
        ),
        (
            WorkerLost(2, 5, 3),
            (
                "2 of 5 attempts ended with the worker that ran them, and max_attempts is 3; find "
                "out what ended these workers before you redrive the job, which may be the cause"
            ),
        ),
        (
            JobAlreadyExists(("a", "b", "c", "d")),
            (
                "a live job has the id 'a', 'b', 'c' and 1 more; nothing was enqueued "
                "(on_conflict='ignore' leaves the existing job and goes on)"
            ),
        ),
        (
            JobAlreadyExists(()),
            (
                "a live job has one of the ids or unique keys, or one is given twice; nothing was "
                "enqueued (on_conflict='ignore', or on_conflict='skip' of Unique, leaves such rows "
                "out)"
            ),
        ),
        (WorkerRefused("no", "do this"), "no; do this"),
        (
            NoContextManager("gave None"),
            (
                "around= gave None; the queue's jobs wait, with no attempt spent, until it "
                "returns a context manager, as app.app_context does"
            ),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else "",
)
def test_the_errors_of_the_library_survive_pickling(error: Exception, text: str) -> None:
    restored = pickle.loads(pickle.dumps(error))

    assert type(restored) is type(error)
    assert (str(restored), vars(restored)) == (text, vars(error))
