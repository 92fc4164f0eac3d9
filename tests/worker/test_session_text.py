"""What a handler sends to its session as text, and what of that the session understands."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import DDL, event, select, text
from sqlalchemy.exc import DBAPIError

from sqlalchemy_bgjob import constant
from sqlalchemy_bgjob._worker.transaction import TransactionEnded
from support.running import FLAVORS, AllAtOnce, Workbench, names

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context
    from support import TestServer

SLOW = constant(3600.0)
NOTE = "INSERT INTO note (job_id, text) VALUES ('{id}', '{words}')"
LOST_BY_CLOSE = "closed, or removed from its scope, over writes"


def sends(*words: str) -> Callable[..., Any]:
    """A handler that sends these texts; a letter is a note, and in braces the text of one."""

    def body(handlers: Handlers, s: Session, ctx: Context[Any]) -> None:
        for word in words:
            if len(word) == 1:
                handlers.bench.note(s, ctx, word)
            elif word in ("commit", "close"):
                getattr(s, word)()
            else:
                notes = {letter: handlers.written(ctx, letter) for letter in "abc"}
                s.execute(text(word.format(**notes)))

    return body


class Handlers:
    """Each gets its session, its context, and the statement that writes a note."""

    def __init__(self, bench: Workbench) -> None:
        self.bench = bench

    def written(self, ctx: Context[Any], words: str) -> str:
        return NOTE.format(id=ctx.job.id, words=words)

    rolled_back = sends("{a}; ROLLBACK")
    rolled_back_and_begun = sends("{a}; ROLLBACK; BEGIN")
    rolled_back_then_more = sends("{a}; ROLLBACK", "b")
    rolled_back_after_a_commit = sends("a", "commit", "SELECT 1; ROLLBACK")
    behind_an_empty_statement = sends("a", "; ROLLBACK")
    committed = sends("{a}; COMMIT")
    writes_after_a_read_then_closes = sends("SELECT 1; {a}", "close")
    several = sends("SELECT 1; {a}", "commit", "{b}; {c};")
    several_with_a_savepoint = sends("SAVEPOINT here; {b}; ROLLBACK TO here", "a")
    reads_several_then_closes = sends("SET LOCAL lock_timeout = '3s'; SELECT 1", "close")

    def rolled_back_before_an_error(self, s: Session, ctx: Context[Any]) -> None:
        self.bench.note(s, ctx, "a")
        with suppress(DBAPIError):
            s.execute(text("SELECT 1; ROLLBACK; SELECT 1/0"))

    def committed_by_ddl(self, s: Session, ctx: Context[Any]) -> None:
        s.execute(DDL(f"SET LOCAL lock_timeout = '3s'; {self.written(ctx, 'a')}; COMMIT"))

    def behind_comments(self, s: Session, ctx: Context[Any]) -> None:
        self.bench.note(s, ctx, "a")
        with suppress(TransactionEnded):
            s.execute(text("-- all\n/* a /* b */ c */ ROLLBACK"))

    def as_ddl(self, s: Session, ctx: Context[Any]) -> None:
        self.bench.note(s, ctx, "a")
        s.execute(DDL("COMMIT"))

    def as_columns(self, s: Session, ctx: Context[Any]) -> None:
        self.bench.note(s, ctx, "a")
        s.execute(text("ROLLBACK").columns(self.bench.Note.id))

    def as_entities(self, s: Session, ctx: Context[Any]) -> None:
        self.bench.note(s, ctx, "a")
        s.execute(select(self.bench.Note).from_statement(text("ROLLBACK")))

    def in_a_mapper_event(self, s: Session, ctx: Context[Any]) -> None:
        self.bench.note(s, ctx, "a")

        def ends(mapper: Any, connection: Any, target: Any) -> None:
            if target.job_id == ctx.job.id:
                connection.execute(text("ROLLBACK"))

        event.listen(self.bench.Note, "after_insert", ends)
        try:
            self.bench.note(s, ctx, "b")
        finally:
            event.remove(self.bench.Note, "after_insert", ends)

    def returning_columns_then_closes(self, s: Session, ctx: Context[Any]) -> None:
        note = self.bench.Note
        s.execute(text(f"{self.written(ctx, 'a')} RETURNING id").columns(note.id)).all()
        s.close()

    def returning_entities_then_closes(self, s: Session, ctx: Context[Any]) -> None:
        sent = text(f"{self.written(ctx, 'a')} RETURNING *")
        s.scalars(select(self.bench.Note).from_statement(sent)).all()
        s.close()

    def a_semicolon_in_a_value(self, s: Session, ctx: Context[Any]) -> None:
        s.execute(text(self.written(ctx, "a; ROLLBACK")))

    def nothing_was_sent(self, s: Session, ctx: Context[Any]) -> None:
        with suppress(Exception):
            s.execute(text("SELECT :missing"))

    def a_string(self, s: Session, ctx: Context[Any]) -> None:
        s.execute("SELECT 1")  # type: ignore[call-overload]


for name, body in vars(Handlers).items():
    if callable(body):
        body.__name__ = name

SEVERAL: dict[Callable[..., Any], str | list[str]] = {
    Handlers.rolled_back: "TransactionEnded",
    Handlers.rolled_back_and_begun: "TransactionEnded",
    Handlers.rolled_back_then_more: "TransactionEnded",
    Handlers.rolled_back_before_an_error: "TransactionEnded",
    Handlers.rolled_back_after_a_commit: "TransactionEnded",
    Handlers.committed: "TransactionEnded",
    Handlers.committed_by_ddl: "TransactionEnded",
    Handlers.writes_after_a_read_then_closes: LOST_BY_CLOSE,
    Handlers.several: ["a", "b", "c"],
    Handlers.several_with_a_savepoint: ["a"],
    Handlers.reads_several_then_closes: [],
}
"""Several statements in one text, which asyncpg never takes: the error, or what is written."""

SINGLE: dict[Callable[..., Any], str | list[str]] = {
    Handlers.behind_an_empty_statement: "TransactionEnded",
    Handlers.behind_comments: "TransactionEnded",
    Handlers.as_ddl: "TransactionEnded",
    Handlers.as_columns: "TransactionEnded",
    Handlers.as_entities: "TransactionEnded",
    Handlers.in_a_mapper_event: "TransactionEnded",
    Handlers.returning_columns_then_closes: LOST_BY_CLOSE,
    Handlers.returning_entities_then_closes: LOST_BY_CLOSE,
    Handlers.a_semicolon_in_a_value: ["a; ROLLBACK"],
    Handlers.nothing_was_sent: [],
    Handlers.a_string: "should be explicitly declared as text('SELECT 1')",
}

LEAKED = {Handlers.committed: ["a"], Handlers.committed_by_ddl: ["a"]}
"""What the server was told to commit, nobody can undo."""


@pytest.fixture(scope="module", params=FLAVORS, ids=str)
def everything(request: pytest.FixtureRequest, server: TestServer) -> Iterator[AllAtOnce]:
    with AllAtOnce.made(request.param, server, Handlers, (*SEVERAL, *SINGLE)) as made:
        yield made


def check(everything: AllAtOnce, body: Callable[..., Any], expected: str | list[str]) -> None:
    """The error of its attempt; or that the job is completed, and what is written."""
    bench, job_id = everything.bench, everything.ids[body.__name__]
    if isinstance(expected, list):
        assert everything.ran.of(job_id) == ["started", "completed"]
        assert bench.notes(job_id) == expected
        return
    assert everything.ran.of(job_id) == ["started", "will_be_retried"]
    assert expected in bench.job(job_id).last_error
    asyncpg = bench.flavor.driver == "asyncpg"
    assert bench.notes(job_id) == ([] if asyncpg else LEAKED.get(body, []))


@pytest.mark.core
@pytest.mark.parametrize("body", names(SEVERAL))
def test_several_statements_in_one_text(everything: AllAtOnce, body: Callable[..., Any]) -> None:
    """Where one of them ends the transaction, the attempt has failed, whatever comes behind it."""
    expected = SEVERAL[body]
    if everything.bench.flavor.driver == "asyncpg":
        expected = "swallowed" if body is Handlers.rolled_back_before_an_error else "42601"
    check(everything, body, expected)


@pytest.mark.core
@pytest.mark.parametrize("body", names(SINGLE))
def test_one_statement_that_is_sent_as_text(
    everything: AllAtOnce, body: Callable[..., Any]
) -> None:
    check(everything, body, SINGLE[body])


def test_the_worker_of_these_handlers_met_no_error(everything: AllAtOnce) -> None:
    assert everything.ran.named("worker_error") == []
