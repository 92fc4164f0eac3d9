"""One call of a handler: from the row's bytes to a settlement, without I/O.

Threads, tasks and ``work_one`` differ in where they call, and in how they write the settlement.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from .._drafts.codec import Encoded
from .._handlers.outcomes import (
    UNCHANGED,
    MoveToDlq,
    Outcome,
    Reschedule,
    Retry,
    Settlement,
    decide,
    failed,
)
from ..exceptions import InvalidArg
from ..telemetry._job_log import log_policy_problem, log_stack
from .run import Context, Run


class Conclusion(NamedTuple):
    """What a call came to.

    Attributes:
        outcome: What the handler said, or what its error means.
        settlement: What follows from that by the handler's options.
        keeps_writes: Whether the session's writes are to be committed.
        error: What the handler raised, or what is wrong with what it returned.
    """

    outcome: Outcome
    settlement: Settlement
    keeps_writes: bool
    error: BaseException | None = None


def begin(run: Run, make_session: Callable[[], Any], state: Any = None) -> Any:
    """Decode the arg and call the function; returns or raises as the function does.

    The function is called within the application's middleware, and with its resources.

    Raises:
        MoveToDlq: The arg can't be decoded; no attempt will ever decode it.
    """
    handler = run.handler
    context = Context(run, make_session, state)
    if not handler.takes_arg:
        return handler.call(context)
    try:
        arg = handler.decode(run.job.arg, run.job.headers)
    except InvalidArg as error:
        raise MoveToDlq(error) from error
    return handler.call(context, arg)


def check_session_is_wanted(run: Run) -> None:
    """Refuse a session to a handler that was registered without.

    Raises:
        RuntimeError: ``session=False``.
    """
    if not run.handler.options.session:
        raise RuntimeError(f"the handler of {run.handler.type!r} has session=False")


def conclude(run: Run, returned: Any, error: BaseException | None) -> Conclusion:
    """Conclude from what a handler returned or raised.

    Its writes are kept if it returned an outcome, or None before its deadline, unless a new arg
    can't be encoded.
    """
    try:
        return _conclude(run, returned, error)
    except Exception as strange:  # an exception that can't even be looked at
        return give_up(run, strange)


def give_up(run: Run, strange: BaseException) -> Conclusion:
    """Conclude that the attempt failed, by an error met while its end was recorded."""
    text = f"a {type(strange).__name__} while the handler's end was recorded"
    return _settled(run, Retry(None, text), error=strange)


def _conclude(run: Run, returned: Any, error: BaseException | None) -> Conclusion:
    if error is None:
        try:
            outcome = run.outcome(returned)
        except (TimeoutError, TypeError) as useless:
            error = useless
    if error is not None:
        outcome = failed(error)
    arg: Encoded | None = None
    if isinstance(outcome, Reschedule) and outcome.arg is not UNCHANGED:
        try:
            arg = run.handler.codec.encode(outcome.arg)
        except Exception as refusal:
            return _settled(run, failed(refusal), error=refusal)
    return _settled(run, outcome, arg, error=error)


def _settled(
    run: Run, outcome: Outcome, arg: Encoded | None = None, *, error: BaseException | None
) -> Conclusion:
    """Settle an outcome by the handler's options; log a traceback or a bad retry policy."""
    handler, job = run.handler, run.job
    log_stack(job, handler, getattr(outcome, "error", None))
    settlement = decide(
        outcome,
        attempt=job.attempt,
        max_attempts=handler.options.max_attempts,
        policy=handler.options.retry,
        arg=arg,
    )
    if settlement.policy_problem is not None:
        log_policy_problem(handler, settlement.policy_problem)
    return Conclusion(outcome, settlement, error is None, error)
