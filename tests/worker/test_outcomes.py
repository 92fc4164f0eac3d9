"""The six outcomes, returned and raised: what becomes of the row, and of the handler's writes."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import psycopg.errors
import pytest
from sqlalchemy import event, text

from sqlalchemy_bgjob import (
    Complete,
    MoveToDlq,
    Reschedule,
    Retry,
    UnknownType,
    WorkerLost,
    constant,
)
from sqlalchemy_bgjob._drafts.codec import Encoded
from sqlalchemy_bgjob._handlers.outcomes import (
    COMPLETED,
    Kind,
    Outcome,
    Settlement,
    as_outcome,
    crashed_too_often,
    decide,
    failed,
    unknown_type,
)
from sqlalchemy_bgjob.retry import MAX_BACKOFF
from support.running import FLAVORS, Workbench, one_of_each

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import Context
    from support import TestServer
    from support.running import Ran

# ---- pure ----------------------------------------------------------------------------------------


def settled(outcome: Outcome, **options: Any) -> Settlement:
    given: dict[str, Any] = {"attempt": 1, "max_attempts": 20, "policy": constant(7.0)} | options
    return decide(outcome, **given)


def test_complete_deletes() -> None:
    assert settled(Complete()) == COMPLETED
    assert as_outcome(None, "t").__class__ is Complete


def test_reschedule_gives_the_attempt_back() -> None:
    assert settled(Reschedule(3)) == Settlement(Kind.RESCHEDULED, delay=3.0, refund_attempt=True)
    arg = Encoded(b"1", None)
    assert settled(Reschedule(timedelta(minutes=1), arg=1), given=arg) == Settlement(
        Kind.RESCHEDULED, delay=60.0, refund_attempt=True, arg=arg
    )


def test_retry_waits_as_it_says_or_by_the_policy() -> None:
    assert settled(Retry(3, "why")) == Settlement(Kind.RETRY, delay=3.0, error="why")
    assert settled(Retry(0)) == Settlement(Kind.RETRY, delay=0.0)
    assert settled(Retry()).delay == 7.0


def test_a_time_may_stand_instead_of_a_delay() -> None:
    at = datetime.now(UTC) + timedelta(hours=1)

    later, again = settled(Reschedule(at=at)), settled(Retry(at=at, error="why"))

    assert later == Settlement(Kind.RESCHEDULED, at=at, refund_attempt=True)
    assert again == Settlement(Kind.RETRY, at=at, error="why")
    assert 3_500 < (later.due_in or 0) <= 3_600
    assert settled(Reschedule(at=datetime(2020, 1, 1, tzinfo=UTC))).due_in == 0.0
    assert settled(Retry(at=at), attempt=20).kind is Kind.DEAD


@pytest.mark.core
@one_of_each
def test_a_job_is_due_at_the_time_that_it_named(bench: Workbench) -> None:
    at = datetime(2100, 1, 1, 12, 30, 0, 123456, tzinfo=UTC)
    past = datetime(2020, 1, 1, tzinfo=UTC)
    outcomes = {
        "later": [Reschedule(at=at)],
        "again": [Retry(at=at)],
        "past": [Retry(at=past), None],
    }
    ids = {
        name: bench.enqueue(bench.handler(name, lambda *args, left=left: left.pop(0)))
        for name, left in outcomes.items()
    }

    bench.run()

    for name, attempt in (("later", 0), ("again", 1)):
        row = bench.job(ids[name])
        assert (row.next_run_at, row.attempt) == (at, attempt)
    assert bench.job(ids["past"]) is None, "a time that has passed is at once"


@pytest.mark.parametrize(
    "outcome", [Retry(3, "why"), Retry(None, "why"), failed(ValueError("why"))]
)
def test_the_last_attempt_is_the_last(outcome: Outcome) -> None:
    assert settled(outcome, attempt=19).kind is Kind.RETRY
    last = settled(outcome, attempt=20)
    assert (last.kind, last.delay, last.refund_attempt) == (Kind.DEAD, None, False)
    assert last.error is not None
    assert "why" in last.error
    assert settled(outcome, attempt=21).kind is Kind.DEAD
    assert settled(outcome, attempt=1_000_000, max_attempts=None).kind is Kind.RETRY


def test_a_last_attempt_without_an_error_has_a_reason() -> None:
    """The row's last error is that of an attempt before: it would not be true."""
    last = settled(Retry(), attempt=7, max_attempts=3)
    assert last.error == "attempt 7 ended in a Retry that names no error, and max_attempts is 3"
    assert settled(Retry(), attempt=7, max_attempts=None).error is None
    assert settled(MoveToDlq(), attempt=7, max_attempts=3).error is None


def test_reschedule_and_complete_know_no_last_attempt() -> None:
    assert settled(Reschedule(1), attempt=20).kind is Kind.RESCHEDULED
    assert settled(Complete(), attempt=20) == COMPLETED


def test_move_to_dlq() -> None:
    assert settled(MoveToDlq("gone")) == Settlement(Kind.DEAD, error="gone")
    assert settled(MoveToDlq()) == Settlement(Kind.DEAD)
    assert settled(MoveToDlq(KeyError("k"))).error == "KeyError: 'k'"


def test_serialization_failure_and_deadlock_are_retried_at_once() -> None:
    for error in (psycopg.errors.SerializationFailure(), psycopg.errors.DeadlockDetected()):
        settlement = settled(failed(error), policy=constant(100.0))
        assert (settlement.kind, settlement.delay) == (Kind.RETRY, 0.0)
        assert settled(failed(error), attempt=20).kind is Kind.DEAD
    assert settled(failed(psycopg.errors.UniqueViolation())).delay == 7.0


def test_the_policy_sees_the_attempt_and_the_exception() -> None:
    seen: list[tuple[int, BaseException | None]] = []

    def policy(attempt: int, error: BaseException | None) -> float:
        seen.append((attempt, error))
        return 1.0

    error = ValueError()
    settled(failed(error), attempt=4, policy=policy)
    settled(Retry(None, "text"), attempt=5, policy=policy)

    assert seen == [(4, error), (5, None)]


def broken(attempt: int, error: BaseException | None) -> float:
    raise RuntimeError("a bug in the policy")


def ended(attempt: int, error: BaseException | None) -> float:
    raise SystemExit(1)


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (broken, "raised RuntimeError: a bug in the policy ("),
        (ended, "raised SystemExit: 1 ("),
        (lambda *_: -1.0, "returned -1.0"),
        (lambda *_: float("nan"), "returned nan"),
        (lambda *_: float("inf"), "returned inf"),
        (lambda *_: "10", "returned a str"),
        (lambda: 1.0, "raised TypeError: "),
    ],
)
def test_a_useless_policy_is_replaced_and_said_so(policy: Any, words: str) -> None:
    settlement = settled(failed(ValueError("the cause")), policy=policy)

    assert settlement.kind is Kind.RETRY
    assert settlement.delay is not None
    assert 1.6 <= settlement.delay <= 2.0
    assert settlement.error is not None
    first, last = settlement.error.splitlines()
    assert first == "ValueError: the cause"
    assert last == settlement.policy_problem
    assert last.startswith(f"the retry policy {words}")
    assert "seconds" in last


def gives_up(attempt: int, error: BaseException | None) -> float:
    raise MoveToDlq("no such customer")


def gives_up_by_the_cause(attempt: int, error: BaseException | None) -> float:
    raise MoveToDlq(error)


NO_FURTHER = "ValueError: the cause\nthe retry policy allows no further attempt"


@pytest.mark.parametrize(
    ("policy", "error"),
    [
        (lambda *_: None, NO_FURTHER),
        (gives_up, f"{NO_FURTHER}: no such customer"),
        (lambda *_: MoveToDlq("no such customer"), f"{NO_FURTHER}: no such customer"),
        (gives_up_by_the_cause, NO_FURTHER),
    ],
)
def test_a_policy_may_give_the_job_up(policy: Any, error: str) -> None:
    settlement = settled(failed(ValueError("the cause")), policy=policy, max_attempts=None)

    assert settlement == Settlement(Kind.DEAD, error=error)


def test_a_policy_is_not_asked_where_the_outcome_says_when() -> None:
    assert settled(Retry(3), policy=gives_up) == Settlement(Kind.RETRY, delay=3.0)
    assert settled(Retry(), policy=lambda *_: timedelta(minutes=2)).delay == 120.0
    assert settled(Retry(), policy=lambda *_: None).error is not None


def test_a_policy_can_not_put_a_job_off_for_ever() -> None:
    assert settled(failed(ValueError()), policy=lambda *_: 1e300).delay == MAX_BACKOFF


@pytest.mark.parametrize("value", [True, 1, "done", {"a": 1}, Complete, Retry, Outcome(), object()])
def test_a_result_that_would_be_lost_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="must return None, Complete"):
        as_outcome(value, "t")


def test_an_outcome_that_is_none_of_the_four_is_a_failure() -> None:
    class Odd(Outcome):
        pass

    outcome = failed(Odd("hm"))
    assert isinstance(outcome, Retry)
    assert settled(outcome).error == "Odd: hm"


@pytest.mark.parametrize(
    "make",
    [
        lambda: Retry("5"),
        lambda: Retry(-1),
        lambda: Retry(float("nan")),
        lambda: Retry(True),
        lambda: Retry(1e12),
        lambda: Retry(1, 404),
        lambda: Retry(1, ValueError),
        lambda: MoveToDlq(404),
        lambda: MoveToDlq({"code": 404}),
        lambda: Reschedule(None),
        lambda: Reschedule(1, datetime.now(UTC)),
        lambda: Retry(1, at=datetime.now(UTC)),
        lambda: Retry(at=datetime.now()),  # noqa: DTZ005 - no time zone
        lambda: Retry(at=3),
        lambda: Reschedule(-0.1),
    ],
)
def test_outcomes_check_their_arguments_where_they_are_made(make: Callable[[], Outcome]) -> None:
    with pytest.raises((TypeError, ValueError)):
        make()


def test_an_unknown_type_waits_longer_each_time_and_then_dies() -> None:
    def delays(grace: float) -> list[float]:
        waited, found = 0.0, []
        while (settlement := unknown_type("t", waited, grace)).kind is Kind.UNKNOWN_TYPE:
            assert (settlement.refund_attempt, settlement.keep_error) == (True, True)
            assert settlement.delay is not None
            found.append(settlement.delay)
            waited += settlement.delay
        assert (settlement.kind, settlement.refund_attempt) == (Kind.DEAD, True)
        assert settlement.error == f"UnknownType: {UnknownType('t', grace)}"
        return found

    assert delays(300.0)[:6] == [1, 1, 2, 4, 8, 16]
    assert max(delays(300.0)) == 30.0
    assert sum(delays(300.0)) == pytest.approx(300.0)
    assert delays(0.0) == []
    assert delays(0.5) == [0.5]


def test_too_many_crashes_keep_the_last_error() -> None:
    settlement = crashed_too_often(4, 3, 3, "WorkerLost: ...")
    assert settlement is not None
    assert (settlement.kind, settlement.refund_attempt) == (Kind.DEAD, True)
    assert settlement.error == f"WorkerLost: {WorkerLost(3, 3, 3)}\nWorkerLost: ..."


@pytest.mark.parametrize(
    ("attempt", "max_attempts", "crashes"), [(3, 3, 3), (4, 3, 0), (9, None, 8)]
)
def test_a_job_may_be_started(attempt: int, max_attempts: int | None, crashes: int) -> None:
    assert crashed_too_often(attempt, max_attempts, crashes, "x") is None


# ---- on every driver -----------------------------------------------------------------------------

OUTCOMES: dict[str, Callable[[], Any]] = {
    "none": lambda: None,
    "complete": Complete,
    "retry": lambda: Retry(1000, "try again"),
    "reschedule": lambda: Reschedule(1000),
    "reschedule_arg": lambda: Reschedule(1000, arg={"page": 2}),
    "dlq": lambda: MoveToDlq("hopeless"),
    "exception": lambda: ValueError("plain"),
}
WAYS = ("return", "raise")
SESSIONS = (True, False)
CASES = [
    (name, way, uses_session)
    for name in OUTCOMES
    for way in WAYS
    for uses_session in SESSIONS
    if (name, way) not in (("none", "raise"), ("exception", "return"))
]
HEADERS = {"request-id": "r-1", "nested": {"list": [1, None, "ü"]}}
ARG = {"page": 1}


@dataclass
class Matrix:
    bench: Workbench
    ran: Ran
    ids: dict[tuple[str, str, bool], str]


@pytest.fixture(scope="module", params=FLAVORS, ids=str)
def matrix(request: pytest.FixtureRequest, server: TestServer) -> Iterator[Matrix]:
    url = server.create_database("outcomes")
    bench = Workbench(request.param, url)
    bench.reset()

    def register(name: str, way: str, uses_session: bool) -> str:
        def body(*args: Any) -> Any:
            if uses_session:
                bench.note(args[0], args[1])
            outcome = OUTCOMES[name]()
            if way == "raise":
                raise outcome
            return outcome

        handler = bench.handler(
            f"{name}-{way}-{uses_session}", body, uses_session=uses_session, retry=constant(2000.0)
        )
        return bench.enqueue(handler, ARG, headers=HEADERS, priority=3)

    ids = {case: register(*case) for case in CASES}
    yield Matrix(bench, bench.run(), ids)
    bench.close()
    server.drop_database(url)


@pytest.mark.core
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case)))
def test_matrix(matrix: Matrix, case: tuple[str, str, bool]) -> None:
    name, way, uses_session = case
    bench, job_id = matrix.bench, matrix.ids[case]
    job, dead = bench.job(job_id), bench.dead(job_id)
    last = matrix.ran.last(job_id)

    assert bench.notes(job_id) == (["written"] if uses_session and way == "return" else [])
    assert matrix.ran.of(job_id)[0] == "started"
    assert len(matrix.ran.of(job_id)) == 2
    assert last.job is not None
    assert (last.job.attempt, last.job.headers, last.job.priority) == (1, HEADERS, 3)

    if name in ("none", "complete"):
        assert (job, dead) == (None, None)
        assert last.name == "job_completed"
        assert 0 <= last.rest[0] < 10
        return
    if name == "dlq":
        assert job is None
        assert last.name == "job_moved_to_dlq"
        assert last.rest == ("hopeless",)
        assert (dead.queue, dead.type) == ("default", f"{name}-{way}-{uses_session}")
        assert (dead.last_error, dead.attempt, dead.headers) == ("hopeless", 1, HEADERS)
        assert (dead.arg, dead.priority, dead.crashes) == (b'{"page":1}', 3, 0)
        assert dead.id != job_id
        assert dead.job_created_at <= dead.moved_at
        return

    assert dead is None
    assert (job.claimed_by, job.headers, job.priority, job.crashes) == (None, HEADERS, 3, 0)
    assert job.arg == (b'{"page":2}' if name == "reschedule_arg" else b'{"page":1}')
    if name.startswith("reschedule"):
        assert (job.attempt, job.last_error) == (0, None)
        assert last.name == "job_rescheduled"
        assert last.rest == (1000.0,)
    else:
        error, delay = {
            "retry": ("try again", 1000.0),
            "exception": ("ValueError: plain", 2000.0),
        }[name]
        assert (job.attempt, job.last_error.splitlines()[0]) == (1, error)
        assert last.name == "job_will_be_retried"
        assert last.rest == (job.last_error, delay)
    assert last.rest[-1] - 60 < job.due_in <= last.rest[-1]


Seen = list[tuple[int, str | None]]


@one_of_each
def test_attempts_end_at_max_attempts(bench: Workbench) -> None:
    """By Retry and by exceptions alike; last_error is what the next attempt sees."""
    seen: dict[str, Seen] = {"retry": [], "raise": [], "endless": [], "reschedule": []}

    def fails(kind: str) -> Callable[..., Any]:
        def body(s: Session, ctx: Context[Any]) -> Any:
            bench.note(s, ctx, f"{ctx.job.attempt}")
            error = ctx.job.last_error
            seen[kind].append((ctx.job.attempt, error and error.splitlines()[0]))
            number = len(seen[kind])
            if kind == "reschedule":
                return Reschedule(0) if number < 4 else MoveToDlq("enough")
            if kind == "raise":
                raise ValueError(f"error {number}")
            if kind == "endless" and number == 30:
                return Complete()
            return Retry(0, f"error {number}")

        return body

    no_wait = constant(0.0)
    ids = {
        kind: bench.enqueue(bench.handler(kind, fails(kind), max_attempts=most, retry=no_wait))
        for kind, most in {"retry": 3, "raise": 3, "endless": None, "reschedule": 2}.items()
    }
    ran = bench.run()

    assert seen["retry"] == [(1, None), (2, "error 1"), (3, "error 2")]
    assert bench.notes(ids["retry"]) == ["1", "2", "3"]
    assert seen["raise"] == [(1, None), (2, "ValueError: error 1"), (3, "ValueError: error 2")]
    assert bench.notes(ids["raise"]) == []
    for kind, error in (("retry", "error 3"), ("raise", "ValueError: error 3")):
        dead = bench.dead(ids[kind])
        assert (dead.attempt, dead.last_error.splitlines()[0]) == (3, error)
        assert ran.of(ids[kind]) == ["started", "will_be_retried"] * 2 + ["started", "moved_to_dlq"]
    assert [attempt for attempt, _ in seen["endless"]] == list(range(1, 31))
    assert bench.job(ids["endless"]) is None
    assert ran.of(ids["endless"])[-1] == "completed"
    assert seen["reschedule"] == [(1, None)] * 4
    assert bench.dead(ids["reschedule"]).attempt == 1


@one_of_each
def test_the_delay_of_a_retry_is_counted_from_the_settlement(bench: Workbench) -> None:
    """The handler runs for a second; by the claim's clock its retry would be due at once."""

    def slow(s: Session, ctx: Context[Any]) -> Any:
        s.execute(text("SELECT pg_sleep(1)"))
        return Retry(100, "later")

    def slow_without(ctx: Context[Any]) -> Any:
        end = time.monotonic() + 1.0
        bench.pause(lambda: time.monotonic() >= end)
        return Retry(100, "later")

    ids = [
        bench.enqueue(bench.handler("session", slow)),
        bench.enqueue(bench.handler("without", slow_without, uses_session=False)),
    ]
    bench.run()

    for job_id in ids:
        (row,) = bench.sql(
            "SELECT next_run_at - created_at AS due_after, clock_timestamp() - created_at AS age"
            " FROM bgjob_job WHERE id = :id",
            id=job_id,
        )
        assert timedelta(seconds=101) <= row.due_after <= timedelta(seconds=100) + row.age


def test_what_a_handler_gets_to_see_of_its_job(bench: Workbench) -> None:
    seen: list[Any] = []
    handler = bench.handler("t", lambda ctx: seen.append(ctx.job), uses_session=False)
    job_id = bench.enqueue(handler, id="own", headers=HEADERS, priority=-5)

    bench.run()

    (job,) = seen
    assert (job.id, job.queue, job.type, job.attempt) == (job_id, "default", "t", 1)
    assert (job.headers, job.priority, job.last_error, job.crashes) == (HEADERS, -5, None, 0)
    assert job.created_at.tzinfo is not None
    assert job.created_at <= job.next_run_at <= job.updated_at


BAD = object()


@pytest.mark.parametrize("way", WAYS)
@one_of_each
def test_a_new_arg_that_can_not_be_stored_is_a_failure(bench: Workbench, way: str) -> None:
    def body(s: Session, ctx: Context[Any]) -> Any:
        bench.note(s, ctx)
        if way == "raise":
            raise Reschedule(1, arg=BAD)
        return Reschedule(1, arg=BAD)

    job_id = bench.enqueue(bench.handler("t", body, retry=constant(3600.0)), ARG)
    bench.run()

    job = bench.job(job_id)
    assert "InvalidArg" in job.last_error
    assert (job.attempt, job.arg) == (1, b'{"page":1}')
    assert bench.notes(job_id) == []


def test_reschedule_changes_the_content_type_with_the_arg(bench: Workbench) -> None:
    def body(ctx: Context[Any]) -> Any:
        return Reschedule(1000, arg=None if ctx.job.type == "none" else b"\x00\xff")

    none = bench.enqueue(bench.handler("none", body, uses_session=False), b"raw", headers=HEADERS)
    raw = bench.enqueue(bench.handler("raw", body, uses_session=False), ARG, headers=HEADERS)
    bench.run()

    assert (bench.job(none).arg, bench.job(none).headers) == (None, HEADERS)
    assert bench.job(raw).arg == b"\x00\xff"
    assert bench.job(raw).headers == HEADERS | {"content-type": "application/octet-stream"}


class Unspeakable(Exception):
    """Nothing about it can be asked."""

    def __str__(self) -> str:
        raise SystemExit

    @property
    def sqlstate(self) -> str:
        raise KeyboardInterrupt


class Fine(Complete):
    pass


def test_exceptions_that_break_the_bookkeeping_do_not(bench: Workbench) -> None:
    errors = {
        "nul": (ValueError("a\x00b\ud800c"), "a\\x00b\\ud800c"),
        "huge": (ValueError("x" * 1_000_000 + "end"), "... cut ..."),
        "unspeakable": (Unspeakable(), "while the handler's end was recorded"),
        "outcome": (Outcome("of none of the four kinds"), "of none of the four kinds"),
        "group": (ExceptionGroup("g", [KeyError("inner")]), "KeyError: 'inner'"),
    }

    def fail_with(error: Exception) -> Callable[..., Any]:
        def body(s: Session, ctx: Context[Any]) -> None:
            bench.note(s, ctx)
            raise error

        return body

    ids = {
        name: bench.enqueue(bench.handler(name, fail_with(error), retry=constant(3600.0)))
        for name, (error, _) in errors.items()
    }
    fine = bench.enqueue(bench.handler("fine", lambda ctx: Fine(), uses_session=False))
    result = bench.enqueue(bench.handler("result", lambda ctx: 42, uses_session=False))
    ran = bench.run()

    for name, (_, expected) in errors.items():
        job = bench.job(ids[name])
        assert (job.attempt, job.claimed_by) == (1, None), name
        assert expected in job.last_error
        assert len(job.last_error) <= 8192
        assert bench.notes(ids[name]) == []
        assert ran.of(ids[name]) == ["started", "will_be_retried"]
    assert ran.of(fine) == ["started", "completed"]
    assert "returned a int" in bench.job(result).last_error


@pytest.mark.core
@one_of_each
def test_a_policy_of_the_users_decides_about_each_attempt(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    """One that gives up, and one with a mistake, which is logged once and noted each time."""

    def fail(s: Session, ctx: Context[Any]) -> None:
        bench.note(s, ctx)
        raise LookupError("no such customer")

    def mistaken(attempt: int, error: BaseException | None) -> float:
        return {1: 0.0}[attempt]

    gone = bench.enqueue(bench.handler("gone", fail, retry=lambda attempt, error: None))
    handler = bench.handler("mistaken", fail, retry=mistaken)
    again = [bench.enqueue(handler) for _ in range(3)]
    bench.run(until=lambda: all("KeyError: 2" in (bench.job(id).last_error or "") for id in again))

    dead = bench.dead(gone)
    assert dead.attempt == 1
    assert dead.last_error.startswith("LookupError: no such customer\n")
    assert dead.last_error.endswith("the retry policy allows no further attempt")
    assert bench.notes(gone) == []
    told = [r.getMessage() for r in caplog.records if "retry policy" in r.getMessage()]
    (line,) = told
    assert line.startswith("handler of 'mistaken': the retry policy raised KeyError: 2 (")
    assert " in mistaken)" in line


class Ending(BaseException):
    """As a library might raise it to end a program."""


@pytest.mark.parametrize(
    ("error", "uses_session"),
    [
        (SystemExit, False),
        (KeyboardInterrupt, True),
        (GeneratorExit, True),
        (GeneratorExit, False),
        (Ending, True),
    ],
)
@one_of_each
def test_what_ends_a_program_ends_an_attempt(
    bench: Workbench, error: type[BaseException], uses_session: bool
) -> None:
    """And neither the worker nor its event loop: others run meanwhile and after it."""

    def end(*given: Any) -> None:
        if uses_session:
            bench.note(*given)
        raise error

    handler = bench.handler("end", end, uses_session=uses_session, retry=constant(3600.0))
    ended = bench.enqueue(handler)
    others = bench.handler("other", lambda ctx: None, uses_session=False)
    fine = [bench.enqueue(others) for _ in range(3)]

    ran = bench.run()

    job = bench.job(ended)
    assert (job.attempt, job.claimed_by) == (1, None)
    assert job.last_error.startswith(error.__name__)
    assert ran.of(ended) == ["started", "will_be_retried"]
    assert [ran.of(job_id)[-1] for job_id in fine] == ["completed"] * 3
    assert bench.notes(ended) == []


CANARY = "canary-77d0"


def test_no_parameter_of_a_query_gets_into_the_row_or_the_log(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="sqlalchemy_bgjob")

    def at_once(s: Session, ctx: Context[Any]) -> None:
        s.execute(text("SELECT CAST(CAST(:secret AS text) AS int)"), {"secret": CANARY})

    def at_the_flush(s: Session, ctx: Context[Any]) -> None:
        s.add(bench.Note(job_id=CANARY))

    def at_the_commit(s: Session, ctx: Context[Any]) -> None:
        s.add_all(bench.Note(job_id=CANARY, text=CANARY, late=1) for _ in range(2))

    def swallowed(s: Session, ctx: Context[Any]) -> None:
        at_the_flush(s, ctx)
        with suppress(Exception):
            s.flush()

    def after_the_commit(s: Session, ctx: Context[Any]) -> None:
        def hook(_: Session) -> None:
            bench.sql("SELECT CAST(CAST(:secret AS text) AS int)", secret=CANARY)

        bench.note(s, ctx)
        event.listen(s, "after_commit", hook)

    bodies = (at_once, at_the_flush, at_the_commit, swallowed, after_the_commit)
    ids = [
        bench.enqueue(bench.handler(body.__name__, body, retry=constant(3600.0)), {"arg": CANARY})
        for body in bodies
    ]
    ran = bench.run()

    assert all(bench.job(job_id).last_error for job_id in ids[:4])
    assert bench.job(ids[4]) is None
    assert CANARY not in "".join(bench.job(job_id).last_error for job_id in ids[:4])
    assert "after the commit" in caplog.text
    assert CANARY not in caplog.text
    assert CANARY not in repr(ran.events)


@pytest.mark.parametrize("raised", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
@one_of_each
def test_what_a_hook_after_the_commit_raises_changes_nothing(
    bench: Workbench, raised: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    """The job is settled by then, and is told as complete."""

    def body(s: Session, ctx: Context[Any]) -> None:
        def hook(_: Session) -> None:
            raise raised

        bench.note(s, ctx)
        event.listen(s, "after_commit", hook)

    job_id = bench.enqueue(bench.handler("t", body))
    ran = bench.run()

    assert ran.of(job_id) == ["started", "completed"]
    assert bench.notes(job_id) == ["written"]
    assert "after the commit" in caplog.text
