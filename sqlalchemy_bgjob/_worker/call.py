"""One call of a handler: from the row's bytes to a settlement, without I/O.

Threads, tasks and ``work_one`` differ in where they call, and in how they write the settlement.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

from .._drafts.codec import Encoded
from .._handlers.outcomes import (
    CANCELLED,
    COMPLETE,
    UNCHANGED,
    Cancelled,
    Complete,
    MoveToDlq,
    Outcome,
    Reschedule,
    Retry,
    Settlement,
    decide,
    failed,
    failed_together,
)
from .._lifecycle.claim import ClaimedJob
from ..exceptions import InvalidArg, InvalidResult
from ..telemetry._job_log import log_policy_problem, log_stack
from .chunk import ChunkRun
from .run import Context, Run


class Conclusion(NamedTuple):
    """What a call came to for one of its jobs.

    Attributes:
        job: The job.
        outcome: What the handler said, or what its error means.
        settlement: What follows from that by the handler's options.
        keeps_writes: Whether the session's writes are to be committed.
        error: What the handler raised, or what is wrong with what it returned.
    """

    job: ClaimedJob
    outcome: Outcome
    settlement: Settlement
    keeps_writes: bool
    error: BaseException | None = None


def begin(run: Run, make_session: Callable[[], Any], state: Any = None) -> Any:
    """Decode the arg and call the function; returns or raises as the function does.

    The function is called within the application's middleware, and with its resources.

    Raises:
        MoveToDlq: The arg can't be decoded, or none of a chunk; no attempt will ever decode it.
        Cancelled: All jobs of a chunk whose arg can be decoded are to be cancelled.
    """
    handler = run.handler
    context = Context(run, make_session, state)
    if not handler.takes_arg:
        return handler.call(context)
    if isinstance(run, ChunkRun):
        args = run.args()
        if not args:
            raise MoveToDlq("no arg of the chunk can be decoded")
        if run.asked_at is not None:
            raise Cancelled
        return handler.call(context, args)
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
        raise RuntimeError(
            f"the handler of {run.handler.type!r} has session=False, so there is no ctx.session; "
            f"register it without session=False"
        )


def conclude(run: Run, returned: Any, error: BaseException | None) -> list[Conclusion]:
    """Conclude from what a handler returned or raised, for each of its jobs.

    Its writes are kept if it returned an outcome, or None before its deadline, unless a new arg
    can't be encoded.
    """
    try:
        if isinstance(run, ChunkRun):
            return _conclude_chunk(run, returned, error)
        return [_conclude(run, returned, error)]
    except Exception as strange:  # an exception that can't even be looked at
        return give_up(run, strange)


def cancelled(run: Run) -> list[Conclusion]:
    """Conclude that the jobs end as cancelled, but those with a bad arg that nobody asked for."""
    if isinstance(run, ChunkRun):
        return [*_undecodable(run), *map(_cancelled, run.called)]
    return [_cancelled(run.job)]


def give_up(run: Run, strange: BaseException) -> list[Conclusion]:
    """Conclude that the attempt failed, by an error met while its end was recorded."""
    text = f"a {type(strange).__name__} while the handler's end was recorded"
    return [_settled(run, job, Retry(None, text), error=strange) for job in run.jobs]


def _conclude_chunk(run: ChunkRun, returned: Any, error: BaseException | None) -> list[Conclusion]:
    """Conclude for the jobs of a chunk: what is undone of one is undone of all."""
    ends = _undecodable(run)
    called = run.called
    said: dict[str, Outcome | None] = {}
    given: dict[str, Encoded | None] = {}
    if error is None:
        try:
            said = run.outcomes(returned)
            given = {id: _given(run, outcome) for id, outcome in said.items()}
        except Exception as useless:
            error = useless
    together = error is not None and len(called) > 1 and not isinstance(error, Outcome)
    if error is not None and together:
        log_stack(run.job, run.handler, error)
    for job in called:
        outcome = said.get(job.id)
        if run.is_asked(job) if error is not None else run.ends_cancelled(job, outcome):
            ends.append(_cancelled(job, error, keeps_writes=error is None))
        elif error is None:
            ends.append(_settled(run, job, outcome or COMPLETE, given[job.id], error=None))
        elif together:
            settlement = failed_together(error, len(called))
            ends.append(Conclusion(job, Retry(0.0, error), settlement, False, error))
        else:
            ends.append(_settled(run, job, failed(error), error=error))
    if all(end.settlement is CANCELLED for end in ends if end.keeps_writes):
        ends = [end._replace(keeps_writes=False) for end in ends]
    return ends


def _undecodable(run: ChunkRun) -> list[Conclusion]:
    """Conclude for the jobs that the handler is not called for."""
    return [
        _cancelled(job, error)
        if run.is_asked(job)
        else _settled(run, job, MoveToDlq(error), error=error)
        for job in run.jobs
        if (error := run.refused.get(job.id)) is not None
    ]


def _cancelled(
    job: ClaimedJob, error: BaseException | None = None, *, keeps_writes: bool = False
) -> Conclusion:
    return Conclusion(job, Cancelled(), CANCELLED, keeps_writes, error)


def _conclude(run: Run, returned: Any, error: BaseException | None) -> Conclusion:
    job = run.job
    if error is None:
        try:
            outcome = run.outcome(returned)
        except (TimeoutError, TypeError) as useless:
            error = useless
    if error is not None:
        outcome = failed(error)
    try:
        given = _given(run, outcome)
    except Exception as refusal:
        return _settled(run, job, failed(refusal), error=refusal)
    return _settled(run, job, outcome, given, error=error)


def _given(run: Run, outcome: Outcome | None) -> Encoded | None:
    """What an outcome brings with it, encoded: the new arg of a Reschedule, or a result."""
    if isinstance(outcome, Reschedule) and outcome.arg is not UNCHANGED:
        return run.handler.codec.encode(outcome.arg)
    if isinstance(outcome, Complete) and outcome.result is not None:
        return _encoded_result(run, outcome.result)
    return None


def _encoded_result(run: Run, result: Any) -> Encoded:
    """A result as its record stores it.

    Raises:
        InvalidResult: It can't be stored, or is none that the handler is annotated to give.
        TypeError: There will be no record, and the result would be lost.
    """
    handler = run.handler
    if handler.keep is None:
        raise TypeError(
            f"the result of {handler.type!r} would be lost: register its handler with "
            f"record=timedelta(...), or make the queue with BGJob(..., record_all=...)"
        )
    try:
        return handler.result_codec.encode(result)
    except InvalidArg as error:
        raise InvalidResult(error.path, error.reason) from None


def _settled(
    run: Run,
    job: ClaimedJob,
    outcome: Outcome,
    given: Encoded | None = None,
    *,
    error: BaseException | None,
) -> Conclusion:
    """Settle an outcome by the handler's options; log a traceback or a bad retry policy."""
    handler = run.handler
    log_stack(job, handler, getattr(outcome, "error", None))
    settlement = decide(
        outcome,
        attempt=job.attempt,
        max_attempts=handler.options.max_attempts,
        policy=handler.options.retry,
        given=given,
    )
    if settlement.policy_problem is not None:
        log_policy_problem(handler, settlement.policy_problem)
    return Conclusion(job, outcome, settlement, error is None, error)
