"""Workers that are broken on purpose: the checker of histories must object to each.

Each mutant is applied in the process of one worker, before it starts, and takes away one of the
things on which the promises rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from unittest.mock import patch
from weakref import WeakKeyDictionary

from sqlalchemy import BigInteger, Text, and_, delete, func, literal_column, select, text, true

from sqlalchemy_bgjob import FinishedRun, _sql
from sqlalchemy_bgjob._handlers.outcomes import COMPLETED, ends_unstarted
from sqlalchemy_bgjob._handlers.timetable import due
from sqlalchemy_bgjob._lifecycle import (
    batches,
    control,
    rescue,
    settle,
    settle_within,
    unknown_claims,
)
from sqlalchemy_bgjob._lifecycle.row_errors import RowMissing
from sqlalchemy_bgjob._lifecycle.settle import Fate
from sqlalchemy_bgjob._sql.claim import ClaimStatements
from sqlalchemy_bgjob._sql.fire import FireStatements
from sqlalchemy_bgjob._sql.rescue import RescueStatements
from sqlalchemy_bgjob._sql.settle import SettleStatements
from sqlalchemy_bgjob._sql.unique import UniqueStatements
from sqlalchemy_bgjob._sql.words import at, parameter, transaction_id, unnest
from sqlalchemy_bgjob._worker import attempt as attempt_module
from sqlalchemy_bgjob._worker import claiming, handler_session, hands, scheduler, slots

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import ExitStack


def _replace(stack: ExitStack, owner: Any, **changes: Any) -> None:
    # What was built before is not used meanwhile, and what is built meanwhile not after.
    stack.enter_context(patch.object(_sql, "_statements", WeakKeyDictionary()))
    for name, value in changes.items():
        stack.enter_context(patch.object(owner, name, value))


def _change(
    stack: ExitStack, owner: type[Any], name: str, values: Callable[[Any], dict[str, Any]]
) -> None:
    """Let an UPDATE of the table of jobs write other values."""
    original = getattr(owner, name)
    cached: Any = getattr(original, "func", None)  # of a cached property

    def changed(self: Any, *args: Any) -> Any:
        return (cached or original)(self, *args).values(values(self._job))

    _replace(stack, owner, **{name: property(changed) if cached else changed})


# ---- the lease ------------------------------------------------------------------------------


def fence_by_id_alone(stack: ExitStack) -> None:
    """A settlement names the job, and neither its lease nor its worker."""

    def one_by_one(self: Any, given: Any, value: Any, complete: Any) -> Any:
        held = self._job.alias("held")
        one = select(value.label("value")).where(held.c.id == given.c.ids)
        found = complete(held, one.select_from(held)).lateral("found")
        return select(found.c.value).select_from(given.join(found, literal_column("true")))

    def complete_one(self: Any) -> Any:
        held = self._job.alias("held")
        locked: Any = (
            select(literal_column("held.ctid"))
            .select_from(held)
            .where(held.c.id == parameter("id", Text))
            .with_for_update(skip_locked=True)
        )
        return delete(self._job).where(at(locked)).returning(transaction_id())

    _replace(stack, SettleStatements, _one_by_one=one_by_one, complete_one=property(complete_one))


def claim_without_a_new_lease(stack: ExitStack) -> None:
    _change(stack, ClaimStatements, "_claim", lambda job: {"lease": job.c.lease})


def rescue_without_a_new_lease(stack: ExitStack) -> None:
    _change(stack, RescueStatements, "_queue_again", lambda job: {"lease": job.c.lease})


def hand_back_without_a_new_lease(stack: ExitStack) -> None:
    _change(stack, SettleStatements, "release", lambda job: {"lease": job.c.lease})


# ---- settlements ----------------------------------------------------------------------------


def stale_is_taken_for_settled(stack: ExitStack) -> None:
    """What was not found must have been settled."""
    original = handler_session.HandlerSession.commit

    def explain(connection: Any, statements: Any, items: Any) -> Any:
        return [(item, Fate.SETTLED) for item in items]

    def commit(self: Any, *args: Any, **options: Any) -> Any:
        try:
            return original(self, *args, **options)
        except RowMissing:
            return Fate.SETTLED

    _replace(stack, settle, _explain=explain)
    _replace(stack, handler_session.HandlerSession, commit=commit)


def a_release_deletes(stack: ExitStack) -> None:
    """A job that is to run again is dropped."""

    def release(self: Any) -> Any:
        given = unnest(ids=Text(), leases=BigInteger())
        job = self._job
        return delete(job).where(at(self._held(given))).returning(job.c.id, transaction_id())

    _replace(stack, SettleStatements, release=property(release))


def settled_outside_the_handler_s_transaction(stack: ExitStack) -> None:
    """First the handler's writes are committed, and the job's end goes with the next batch."""

    def commit(self: Any, *args: Any, **options: Any) -> None:
        self._session.flush()
        self._settling = True
        if self._connection is not None:
            self._connection.commit()
        self._release()

    _replace(stack, handler_session.HandlerSession, commit=commit)


def an_unfenced_session(stack: ExitStack) -> None:
    """The handler's writes are committed, whether its lease still holds or not."""
    original = settle_within.write  # type: ignore[attr-defined]

    def write(connection: Any, statements: Any, items: Any, **options: Any) -> Any:
        held, xid = original(connection, statements, items, **options)
        return held or {item.job.id for item in items}, xid

    _replace(stack, settle_within, write=write)


def observers_before_the_commit(stack: ExitStack) -> None:
    original_tell = hands.Hands.tell

    def attempt(self: Any, run: Any) -> Any:
        class Eager(attempt_module.Attempt):
            def end(attempt, returned: Any, error: Any) -> Any:  # noqa: N805 - two selves
                for observer in self._events._observers:
                    observer.job_completed(run.info, FinishedRun(0.0))
                return super().end(returned, error)

        return Eager(self._environment(run.handler), run)

    def tell(self: Any, item: Any, fate: Any, run: Any = None) -> None:
        if item.settlement is not COMPLETED:
            original_tell(self, item, fate, run)

    _replace(stack, slots.Slots, attempt=attempt)
    _replace(stack, hands.Hands, tell=tell)


# ---- claims and rescue ----------------------------------------------------------------------


def claims_what_is_claimed(stack: ExitStack) -> None:
    original = ClaimStatements._is_due

    def is_due(self: Any, due: Any, queue: Any) -> Any:
        return original(self, due, queue)[:-1]

    _replace(stack, ClaimStatements, _is_due=is_due)


def claims_wait_for_locks(stack: ExitStack) -> None:
    """Without SKIP LOCKED."""
    _replace(
        stack,
        ClaimStatements,
        _lock_to_claim=lambda self, rows: rows.with_for_update(key_share=True),
    )


def a_lost_claim_is_forgotten(stack: ExitStack) -> None:
    _replace(stack, unknown_claims, return_unknown_claims=lambda *args, **options: 0)


def a_beating_worker_is_rescued(stack: ExitStack) -> None:
    """Every other worker is taken for silent."""

    def silent_workers(self: Any) -> Any:
        others = self._worker.c.id != parameter("judge", BigInteger)
        return self._lock_workers(and_(others, parameter("connected", BigInteger) > 0))

    # The look must show a reason, or no statement follows it.
    _replace(stack, RescueStatements, _silent=lambda self: true())
    _replace(stack, RescueStatements, silent_workers=property(silent_workers))


def a_beat_is_old_when_it_is_first_seen(stack: ExitStack) -> None:
    """Silence by the judge's own clock is counted from before it looked."""
    original = rescue.Beat
    _replace(stack, rescue, Beat=lambda at, seen_at: original(at, seen_at - 3600))


def spent_attempts_are_not_looked_at(stack: ExitStack) -> None:
    """A job that has killed its workers gets one more run, each time."""
    _replace(stack, claiming, crashed_too_often=lambda *args: None)


def a_cancel_is_forgotten(stack: ExitStack) -> None:
    """A job that was to be cancelled, and lost its worker, is started again."""
    _replace(stack, claiming, ends_unstarted=lambda **options: None)


def _if_expired(*, expired: bool) -> Callable[..., Any]:
    return lambda **options: ends_unstarted(**(options | {"expired": expired}))


def expiry_is_not_looked_at(stack: ExitStack) -> None:
    """A job is started whenever it is claimed."""
    _replace(stack, claiming, ends_unstarted=_if_expired(expired=False))


def all_that_has_a_limit_has_expired(stack: ExitStack) -> None:
    """A job that has a time at which it expires is never started."""
    _replace(stack, claiming, ends_unstarted=_if_expired(expired=True))


def a_pause_is_not_seen(stack: ExitStack) -> None:
    """A worker reads what operators have set, and finds nothing."""
    _replace(stack, control, look=lambda *args: {})


def a_crash_costs_nothing(stack: ExitStack) -> None:
    """A rescue gives the attempt back."""
    _change(
        stack,
        RescueStatements,
        "_queue_again",
        lambda job: {"attempt": func.greatest(job.c.attempt - 1, 0)},
    )


# ---- schedules ------------------------------------------------------------------------------


def fires_whatever_it_has_seen(stack: ExitStack) -> None:
    """The statement that fires a schedule does not name the time that was due."""
    _replace(stack, FireStatements, _is_due=lambda self, held: held.c.paused_at.is_(None))


def forgets_what_was_missed(stack: ExitStack) -> None:
    """Only the latest of several times that are due is met, whatever the policy."""
    _replace(
        stack,
        scheduler,
        due=lambda table, first, now, _, **gap: due(table, first, now, "one", **gap),
    )


# ---- unique keys ----------------------------------------------------------------------------


def claims_keep_the_key(stack: ExitStack) -> None:
    """A job that runs still keeps those away that come later."""
    _change(stack, ClaimStatements, "_claim", lambda job: {"unique_key": job.c.unique_key})


def told_without_a_lock(stack: ExitStack) -> None:
    """Who is told of a queued job does not keep it from starting."""

    def held(self: Any, there: Any, *, wait: bool) -> Any:
        job = self._job
        due = (job.c.next_run_at <= func.now()).label("due")
        queued = self._with_key(there.c.key).where(job.c.claimed_by.is_(None))
        one = queued.add_columns(job.c.queue, due).lateral("held")
        columns = there.c.key.label("unique_key"), one.c.id, one.c.queue, one.c.due
        return select(*columns).select_from(there.join(one, true())).cte("bgjob_held")

    _replace(stack, UniqueStatements, _held=held)


# ---- batches --------------------------------------------------------------------------------


def finishes_what_is_finished(stack: ExitStack) -> None:
    """Whoever looks at a batch takes it for one that was not finished yet."""
    original = batches.finish_within

    def finish_within(connection: Any, statements: Any, ids: Any) -> Any:
        again = text("UPDATE bgjob_batch SET finished_at = NULL WHERE id = ANY (:ids)")
        connection.execute(again, {"ids": [*ids]})
        return original(connection, statements, ids)

    _replace(stack, batches, finish_within=finish_within)


def looks_at_batches_before_the_commit(stack: ExitStack) -> None:
    """And not after it, when the ends of their jobs can be seen."""
    original = settle.settle

    def settled(connection: Any, statements: Any, items: Any) -> Any:
        if ended := batches.batches_of(items):
            batches.finish(connection, statements, ended)
        return original(connection, statements, items)

    _replace(stack, settle, settle=settled)
    _replace(stack, hands, batches_of=lambda items: set())


MUTANTS: dict[str, Callable[[ExitStack], None]] = {
    mutant.__name__: mutant
    for mutant in (
        fence_by_id_alone,
        claim_without_a_new_lease,
        rescue_without_a_new_lease,
        hand_back_without_a_new_lease,
        stale_is_taken_for_settled,
        a_release_deletes,
        settled_outside_the_handler_s_transaction,
        an_unfenced_session,
        observers_before_the_commit,
        claims_what_is_claimed,
        claims_wait_for_locks,
        a_lost_claim_is_forgotten,
        a_beating_worker_is_rescued,
        a_beat_is_old_when_it_is_first_seen,
        spent_attempts_are_not_looked_at,
        a_crash_costs_nothing,
        fires_whatever_it_has_seen,
        forgets_what_was_missed,
        a_cancel_is_forgotten,
        expiry_is_not_looked_at,
        all_that_has_a_limit_has_expired,
        a_pause_is_not_seen,
        claims_keep_the_key,
        told_without_a_lock,
        finishes_what_is_finished,
        looks_at_batches_before_the_commit,
    )
}
