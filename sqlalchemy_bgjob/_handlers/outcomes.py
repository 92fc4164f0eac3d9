"""What one attempt led to, and what follows from it for the row. Pure.

A handler *returns* an outcome to keep its writes, or *raises* one to undo them first; any other
exception is a failed attempt. :func:`decide` turns either into a :class:`Settlement`, the one
description of a row's next state that :mod:`._lifecycle` writes.
"""

import re
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import Enum
from math import isfinite
from typing import Any, Final, Generic

from typing_extensions import TypeVar

from .. import retry
from .._db.errors import RETRY_AT_ONCE, clean, describe, sqlstate, summary
from .._drafts import validation
from .._drafts.codec import Encoded
from ..exceptions import UnknownType, WorkerLost


class Unchanged(Enum):
    """The type of :data:`UNCHANGED`."""

    UNCHANGED = "unchanged"


UNCHANGED: Final = Unchanged.UNCHANGED
"""Reschedule with the arg as it is; None would mean no arg."""


class Outcome(Exception):
    """Base of all outcomes. Return one to keep the handler's writes, raise it to undo them.

    The writes are those through ``ctx.session``. Four outcomes are for handlers: Complete, Retry,
    Reschedule and MoveToDlq.
    """


R = TypeVar("R", default=Any)


class Complete(Outcome, Generic[R]):
    """The job is done, and its row is deleted. Returning None means the same.

    Args:
        result: Kept in the job's record, for ``jobs.record`` and ``jobs.wait``; at most 1 MiB once
            encoded. The handler needs ``record=``. If it is annotated, as in ``-> Complete[Link]``,
            the result must be a Link, otherwise any JSON value or bytes, or the attempt fails.
    """

    def __init__(self, result: R | None = None) -> None:
        super().__init__(*(() if result is None else (result,)))
        self.result: R | None = result


class Retry(Outcome):
    """The attempt failed: run again, or move to the DLQ if ``max_attempts`` is reached.

    Args:
        after: Seconds or a timedelta, by the database's clock from the settlement; by default the
            handler's retry policy decides.
        error: An exception or text, kept as ``last_error``.
        at: An aware datetime, instead of *after*; one that has passed means at once.

    Raises:
        TypeError, ValueError: Both *after* and *at* are given, or a value does not fit.
    """

    def __init__(
        self,
        after: float | timedelta | None = None,
        error: BaseException | str | None = None,
        at: datetime | None = None,
    ) -> None:
        if isinstance(after, str | BaseException):
            raise TypeError(
                f"after must be seconds or a timedelta, not {_type_name(after)}; write "
                f"Retry(error=...) for what went wrong"
            )
        super().__init__(after, error, at)
        self.after: float | None
        self.at: datetime | None
        self.after, self.at = _when(after, at)
        self.error: BaseException | str | None = _checked(error)


class Reschedule(Outcome):
    """Run again later, with the attempt refunded; nothing has failed.

    Args:
        after: Seconds or a timedelta, by the database's clock from the settlement.
        at: An aware datetime, instead of *after*; one that has passed means at once.
        arg: A new arg for the next run; if it is left out, the arg stays.

    Raises:
        TypeError, ValueError: *after* and *at* are both given or both left out, or do not fit.
    """

    def __init__(
        self,
        after: float | timedelta | None = None,
        at: datetime | None = None,
        *,
        arg: Any = UNCHANGED,
    ) -> None:
        super().__init__(after, at)
        self.after: float | None
        self.at: datetime | None
        self.after, self.at = _when(after, at)
        if self.after is None and self.at is None:
            raise TypeError("Reschedule takes when to run again: after= or at=")
        self.arg = arg


class MoveToDlq(Outcome):
    """Give the job up: move it to the DLQ with *error*, an exception or text, as ``last_error``."""

    def __init__(self, error: BaseException | str | None = None) -> None:
        super().__init__(error)
        self.error: BaseException | str | None = _checked(error)


class Cancelled(Outcome):
    """The job was cancelled: its writes are undone, its row is deleted. Not for handlers."""


class Expired(Outcome):
    """The job expired before it was started, and never will be. Not for handlers."""

    def __str__(self) -> str:
        return "the job expired before it was started"


def _when(
    after: float | timedelta | None, at: datetime | None
) -> tuple[float | None, datetime | None]:
    if after is not None and at is not None:
        raise TypeError("give after= or at=, not both")
    return (
        None if after is None else validation.seconds("after", after),
        None if at is None else validation.moment("at", at),
    )


def _checked(error: object) -> BaseException | str | None:
    if error is None or isinstance(error, BaseException | str):
        return error
    raise TypeError(f"error must be an exception or a str, not {_type_name(error)}")


class Kind(Enum):
    """What happened to the job, as observers are told."""

    COMPLETED = "completed"
    RETRY = "retry"
    RESCHEDULED = "rescheduled"
    DEAD = "dead"
    HANDED_BACK = "handed_back"
    UNKNOWN_TYPE = "unknown_type"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


GONE: Final = (Kind.COMPLETED, Kind.CANCELLED, Kind.EXPIRED)
"""Those whose row is deleted."""
ENDED: Final = (*GONE, Kind.DEAD)
"""Those after which there is no live job."""


@dataclass(frozen=True, slots=True)
class Settlement:
    """The next state of a row.

    Attributes:
        kind: Those of :data:`GONE` delete, DEAD moves to the dead table, the others queue the row
            again.
        delay: Seconds until it is due; with neither *delay* nor *at*, ``next_run_at`` stays.
        at: When it is due, instead of *delay*.
        error: The new ``last_error``; with *keep_error* the old one stays.
        exception: What was raised or named, for the policy and observers.
        refund_attempt: Whether the claim's attempt is not counted.
        arg: A new arg, or None to leave it.
        policy_problem: What is wrong with the handler's retry policy, for the log.
        result: What the handler leaves, for the record of a job that is done.
    """

    kind: Kind
    delay: float | None = None
    at: datetime | None = None
    error: str | None = None
    keep_error: bool = False
    refund_attempt: bool = False
    arg: Encoded | None = None
    policy_problem: str | None = None
    result: Encoded | None = None
    exception: BaseException | None = field(default=None, compare=False, repr=False)

    @property
    def due_in(self) -> float | None:
        """Seconds until it is due; None if it is not put off. To *at* by this machine's clock."""
        if self.at is None:
            return self.delay
        return max((self.at - datetime.now(UTC)).total_seconds(), 0.0)


COMPLETED: Final = Settlement(Kind.COMPLETED)
HAND_BACK: Final = Settlement(Kind.HANDED_BACK, keep_error=True, refund_attempt=True)
_INTERRUPTED: Final = "interrupted by shutdown"
INTERRUPTED: Final = Settlement(Kind.HANDED_BACK, error=_INTERRUPTED, refund_attempt=True)
CANCELLED: Final = Settlement(Kind.CANCELLED)
DROPPED: Final = Settlement(Kind.EXPIRED)

UNKNOWN_TYPE_FIRST_DELAY: Final = 1.0
UNKNOWN_TYPE_MAX_DELAY: Final = 30.0


def as_outcome(returned: object, type: str) -> Outcome:
    """The outcome of a handler that returned.

    Raises:
        TypeError: The value is neither None nor an outcome: a result that would be lost.
    """
    if returned is None:
        return COMPLETE
    if isinstance(returned, _OUTCOMES):
        return returned
    raise TypeError(
        f"handler of {type!r} returned a {_type_name(returned)}; it must return None, "
        f"Complete(), Retry(...), Reschedule(...) or MoveToDlq(...). A result is kept by "
        f"Complete(result=...), where the handler has record="
    )


COMPLETE: Final = Complete()
_OUTCOMES: Final = (Complete, Retry, Reschedule, MoveToDlq)


def _type_name(value: object) -> str:
    return f"class {value.__name__}" if isinstance(value, type) else type(value).__name__


def failed(error: BaseException) -> Outcome:
    """The outcome of a handler that raised: the outcome itself, or a retry."""
    if isinstance(error, _OUTCOMES):
        return error
    after = 0.0 if sqlstate(error) in RETRY_AT_ONCE else None
    return Retry(after, error)


def decide(
    outcome: Outcome,
    *,
    attempt: int,
    max_attempts: int | None,
    policy: retry.RetryPolicy,
    given: Encoded | None = None,
) -> Settlement:
    """The settlement that follows from an outcome.

    Args:
        outcome: What the handler returned or raised.
        attempt: Which attempt this was, from 1.
        max_attempts: After how many attempts the job is dead; None for never.
        policy: Seconds until the next attempt, if the outcome does not say; it may give the job up.
        given: What it brings with it, encoded: the new arg of a Reschedule, or a result.
    """
    match outcome:
        case Complete():
            return COMPLETED if given is None else Settlement(Kind.COMPLETED, result=given)
        case Reschedule():
            return Settlement(
                Kind.RESCHEDULED, delay=outcome.after, at=outcome.at, refund_attempt=True, arg=given
            )
        case MoveToDlq():
            return _failure(Kind.DEAD, outcome)
        case Retry():
            settlement = _failure(Kind.RETRY, outcome)
            if max_attempts is not None and attempt >= max_attempts:
                # The last error of the row is that of an earlier attempt: not why it is dead.
                error = settlement.error or _NO_REASON.format(attempt, max_attempts)
                return replace(settlement, kind=Kind.DEAD, error=error)
            if outcome.after is not None or outcome.at is not None:
                return replace(settlement, delay=outcome.after, at=outcome.at)
            return _by_policy(policy, attempt, settlement)
        case _:
            raise TypeError(f"{type(outcome).__name__} is not an outcome that can be settled")


def failed_together(error: BaseException, size: int) -> Settlement:
    """The settlement of each job of a call for *size* jobs that raised an error.

    Which of them is to blame shows only when each runs alone. So all are queued again at once, and
    the retry policy is asked when one fails then.
    """
    words = f"raised by one call for {size} jobs; next time this job runs alone"
    text = _joined(describe(error), words)
    return Settlement(Kind.RETRY, delay=0.0, error=text, exception=error)


def put_back(reason: BaseException, delay: float = 0.0) -> Settlement:
    """The settlement of a run that was undone, and that is not the job's own fault."""
    return Settlement(
        Kind.RESCHEDULED, delay=delay, error=describe(reason), refund_attempt=True, exception=reason
    )


_NO_REASON: Final = "attempt {} ended in a Retry that names no error, and max_attempts is {}"


def _failure(kind: Kind, outcome: Retry | MoveToDlq) -> Settlement:
    # ``raise Retry(30, "gateway is down") from error`` names an exception too.
    error = outcome.error
    exception = error if isinstance(error, BaseException) else outcome.__cause__
    return Settlement(kind, error=error_text(error), exception=exception)


def unknown_type(type: str, unknown_for: float, grace: float) -> Settlement:
    """The settlement of a job whose type this worker does not know.

    A worker first met it *unknown_for* seconds ago. The job waits 1 s, then as long again as it has
    waited, up to 30 s: a rolling deploy may bring a worker that knows the type. After *grace*
    seconds the job is dead.
    """
    if unknown_for >= grace:
        error = UnknownType(type, grace)
        return Settlement(Kind.DEAD, error=describe(error), refund_attempt=True, exception=error)
    delay = min(max(unknown_for, UNKNOWN_TYPE_FIRST_DELAY), UNKNOWN_TYPE_MAX_DELAY)
    delay = min(delay, max(grace - unknown_for, 0.0))
    return Settlement(Kind.UNKNOWN_TYPE, delay=delay, keep_error=True, refund_attempt=True)


def crashed_too_often(
    attempt: int, max_attempts: int | None, crashes: int, last_error: str | None
) -> Settlement | None:
    """The settlement of a claimed job that must not start again; None if it may start.

    A job that has spent its attempts must not start if a worker was lost with one of them: it might
    take another worker down. Without a crash it was queued for one more run, as when *max_attempts*
    was lowered meanwhile, so it gets that run.

    Args:
        attempt: Which attempt this would be, from 1.
        max_attempts: How many there may be; None is without end.
        crashes: How often a worker was lost while it held the job.
        last_error: The row's error of the attempt before; it is kept below the reason.
    """
    if max_attempts is None or attempt <= max_attempts or not crashes:
        return None
    lost = WorkerLost(crashes, attempt - 1, max_attempts)
    error = describe(lost)
    if last_error:
        error = clean(f"{error}\n{last_error}")
    return Settlement(Kind.DEAD, error=error, refund_attempt=True, exception=lost)


def ends_unstarted(*, cancelled: bool, expired: bool, on_expiry: str | None) -> Settlement | None:
    """The settlement of a claimed job that was cancelled or has expired; None if it may start.

    Args:
        cancelled: Whether somebody has asked for its end.
        expired: Whether it is too late to start it.
        on_expiry: ``"dlq"`` or ``"drop"``, as its handler says; None if there is no handler, and
            then a worker that has one is to decide.
    """
    if cancelled:
        return CANCELLED
    if not expired or on_expiry is None:
        return None
    if on_expiry == "drop":
        return DROPPED
    reason = Expired()
    return Settlement(Kind.DEAD, error=describe(reason), refund_attempt=True, exception=reason)


def interruptions(last_error: str | None) -> int:
    """How often in a row a job was interrupted by shutdown, as its ``last_error`` says."""
    found = _IN_A_ROW.fullmatch(last_error or "")
    return 0 if found is None else int(found[1] or 1)


def interrupted(last_error: str | None) -> Settlement:
    """The settlement of a run that a shutdown interrupts. Its error counts them.

    An attempt is not spent by that, so nothing else would tell of a job that no worker lives long
    enough to finish.
    """
    times = interruptions(last_error) + 1
    if times == 1:
        return INTERRUPTED
    return replace(INTERRUPTED, error=f"{_INTERRUPTED}, {times} times in a row")


_IN_A_ROW: Final = re.compile(rf"{_INTERRUPTED}(?:, (\d{{1,9}}) times in a row)?")


def error_text(error: BaseException | str | None) -> str | None:
    """An error as ``last_error`` stores it."""
    if error is None:
        return None
    return clean(error) if isinstance(error, str) else describe(error)


def _by_policy(policy: retry.RetryPolicy, attempt: int, settlement: Settlement) -> Settlement:
    """Let the handler's policy say when the next attempt is due, or that there is none.

    A mistake in the policy must not hide the failure: it is recorded below the failure's error.
    """
    raised = settlement.exception
    try:
        answer: object = policy(attempt, raised)
    except MoveToDlq as given_up:
        answer = given_up
    except BaseException as mistake:
        return _by_default(attempt, raised, settlement, f"raised {summary(mistake, place=True)}")
    if answer is None or isinstance(answer, MoveToDlq):
        words = "the retry policy allows no further attempt"
        own = None if answer is None else answer.error
        if own is not None and own is not raised:
            words = f"{words}: {error_text(own)}"
        return replace(settlement, kind=Kind.DEAD, error=_joined(settlement.error, words))
    if isinstance(answer, timedelta):
        answer = answer.total_seconds()
    if not isinstance(answer, int | float):
        return _by_default(attempt, raised, settlement, f"returned a {_type_name(answer)}")
    if not isfinite(answer) or answer < 0:
        return _by_default(attempt, raised, settlement, f"returned {answer!r}")
    return replace(settlement, delay=min(float(answer), retry.MAX_BACKOFF))


def _by_default(
    attempt: int, error: BaseException | None, settlement: Settlement, what: str
) -> Settlement:
    problem = (
        f"the retry policy {what}; it must return seconds from 0 or a timedelta, or None for no "
        f"further attempt; the default delay is used"
    )
    delay = retry.DEFAULT(attempt, error)
    error_and_problem = _joined(settlement.error, problem)
    return replace(settlement, delay=delay, error=error_and_problem, policy_problem=problem)


def _joined(error: str | None, words: str) -> str:
    return clean(words if error is None else f"{error}\n{words}")
