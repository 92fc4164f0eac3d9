"""SQL that inserts jobs with unique keys, and finds, locks or changes those that are there.

* The index decides, and not a look before the INSERT: two callers who come at once never both
  insert.
* Who is told of a queued job has locked it until his COMMIT. A claim passes a locked row by, so the
  job can't start before it sees what the caller has written.
* The lock is shared, so callers with the same key do not wait for each other, unless they change
  the job. A running job is never locked: it could not end.
* Keys are inserted and locked in the order of their characters' codes, whatever the collation, so
  that bulks can't deadlock.
* A queued job that never will run, as it has expired or is marked, loses its key to the new one.
  That happens after all that may wait, and passes by what is locked, so it is no part of a circle.
"""

from functools import cache, partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import (
    CTE,
    ColumnElement,
    Executable,
    Float,
    Select,
    Subquery,
    Text,
    and_,
    case,
    cast,
    false,
    func,
    literal,
    literal_column,
    null,
    or_,
    select,
    true,
    update,
)
from sqlalchemy.dialects.postgresql import Insert
from sqlalchemy.dialects.postgresql import insert as pg_insert

from .._drafts.validation import EARLIEST
from .enqueue import INSERTED, rows_of_many, rows_of_query
from .words import ONLY, SECOND, Tables, Wakeup, at, parameter, woken

if TYPE_CHECKING:
    from collections.abc import Callable

KEY: Final = "bgjob_unique_key"
"""The label of a user's own query that has the stored keys."""
_ONE: ColumnElement[int] = literal_column("1")
_GIVEN_KEY: Final = "unique_key"
_PERIOD: Final = "period"
_KEPT: Final = ("id", "batch_id")
"""What a queued job keeps that is replaced: it is another job of its batch than the new one."""
_REVIVING: Final = ("replace", "earlier")
"""What gives an expired job a later expiry, or none, so that it runs."""


class UniqueStatements:
    """One statement for each way to treat a duplicate; all of them insert what is new.

    Those of many jobs take the parameters of :attr:`EnqueueStatements.jobs`, and the list
    unique_key. They return, for each key, its key as stored, the id of the job that has it, and
    whether that is new. Those of a query return one row: how many jobs are new, and how many rows
    the query had.
    """

    def __init__(self, tables: Tables) -> None:
        self._tables, self._job, self._worker = tables, tables.job, tables.worker
        self._period = tables.unique_period
        self.find: Callable[..., Executable] = cache(self._find)
        self.replace: Callable[[bool], Executable] = cache(partial(self._change, "replace"))
        self.earlier: Callable[[bool], Executable] = cache(partial(self._change, "earlier"))
        self.in_period: Callable[[bool], Executable] = cache(self._in_period)

    # ---- many jobs --------------------------------------------------------------------------

    def _find(self, notify: bool, own_ids: bool, wait: bool) -> Executable:
        """Leave what is there as it is, and lock what is queued.

        A key is missing in the answer if its job was enqueued, or locked by somebody else, since
        the statement began: then ask again, with *wait*, to wait for such locks.

        Args:
            notify: Notify workers of new jobs, and of those that they pass by while they are
                locked.
            own_ids: The ids may be taken. Those that are come too, without a key.
            wait: Wait for locks.
        """
        job = self._job
        given, chosen = self._chosen(rows_of_many(unique_key=Text()))
        inserted = self._inserted(chosen, any_unique=own_ids).cte("bgjob_inserted")
        there = _not_in(inserted, chosen)
        renewed = self._renewed(chosen, there, wait=wait)
        held = self._held(there, wait=wait)
        runs = self._with_key(there.c.key).where(job.c.claimed_by.is_not(None)).limit(_ONE)
        running = runs.lateral("running")
        answers = [
            select(inserted.c.unique_key.label("key"), inserted.c.id, true().label("inserted")),
            select(renewed.c.unique_key, renewed.c.id, true()),
            select(held.c.unique_key, held.c.id, false()),
            select(there.c.key, running.c.id, false()).select_from(there.join(running, true())),
        ]
        if own_ids:
            has_id = select(job.c.id).with_hint(job, ONLY).where(job.c.id == given.c.id)
            taken = has_id.limit(_ONE).lateral("taken")
            no_key = cast(null(), Text)
            answers.append(
                select(no_key, taken.c.id, false()).select_from(given.join(taken, true()))
            )
        found = answers[0].union_all(*answers[1:]).subquery("bgjob_found")
        sent = []
        if notify:
            passed_by = select(held.c.queue).where(held.c.due)
            sent = [
                self._sent("bgjob_new", _queues_of(inserted, renewed), Wakeup.NEW),
                self._sent("bgjob_passed_by", passed_by, Wakeup.RETURNED),
            ]
        return _beside(select(found.c.key, found.c.id, found.c.inserted), found, sent)

    def _change(self, on_duplicate: str, notify: bool) -> Executable:
        """Give what is there all but the id (*replace*), or the earlier time (*earlier*)."""
        _, chosen = self._chosen(rows_of_many(unique_key=Text()), on_duplicate)
        done = self._changed(chosen, on_duplicate).cte("bgjob_done")
        is_new = done.c.id.in_(select(chosen.c.id))
        sent = [self._sent("bgjob_told", select(done.c.queue), Wakeup.RETURNED)] if notify else []
        return _beside(select(done.c.unique_key, done.c.id, is_new), done, sent)

    def _in_period(self, notify: bool) -> Executable:
        """Insert a job where no period of its key goes on. One more list: period, in seconds.

        A key is missing in the answer if its period was begun since the statement began: ask again.
        What a trigger has kept out is neither new nor there: null.
        """
        _, chosen = self._chosen(rows_of_many(unique_key=Text(), period=Float(53)), more=(_PERIOD,))
        valid, begun = self._periods(chosen, chosen.c.period * SECOND)
        inserted = self._inserted_in_period(chosen, begun).cte("bgjob_inserted")
        is_in = begun.c.job_id.in_(select(inserted.c.id)).is_(true())
        found = (
            select(begun.c.key, begun.c.job_id, case((is_in, true())).label("inserted"))
            .union_all(select(valid.c.key, valid.c.job_id, false()))
            .subquery("bgjob_found")
        )
        new = select(inserted.c.queue)
        sent = [self._sent("bgjob_new", new, Wakeup.NEW)] if notify else []
        return _beside(select(found.c.key, found.c.job_id, found.c.inserted), found, sent)

    # ---- of a user's own query -----------------------------------------------------------------

    def from_query(
        self, source: Select[Any], scope: str, on_duplicate: str, *, notify: bool
    ) -> Executable:
        """As the others, for the rows of a query, whose label ``bgjob_unique_key`` has the keys.

        Parameters: those of :func:`.enqueue.rows_of_query`, and for a period its seconds.
        """
        given, chosen = self._chosen(rows_of_query(source, KEY), on_duplicate)
        columns: list[Any] = []
        passed_by: Select[Any] | None = None
        if scope == "period":
            length = parameter(_PERIOD, Float(53)) * SECOND
            _, begun = self._periods(chosen, length)
            done = self._inserted_in_period(chosen, begun).cte("bgjob_done")
        elif scope == "queued":
            # One step, that misses none: what is there is written as it is, which locks it.
            done = self._changed(chosen, on_duplicate).cte("bgjob_done")
        else:
            done = self._inserted(chosen, any_unique=False).cte("bgjob_done")
        if scope != "period" and on_duplicate not in _REVIVING:
            there = _not_in(done, chosen)
            renewed = self._renewed(chosen, there, wait=False)
            if scope == "live":
                held = self._held(there, wait=False)
                passed_by = select(held.c.queue).where(held.c.due)
                columns.append(select(func.count()).select_from(held).scalar_subquery())
            each = select(done.c.id, done.c.queue).union_all(select(renewed.c.id, renewed.c.queue))
            done = each.cte("bgjob_all_done")
        new = func.count(done.c.id).filter(done.c.id.in_(select(chosen.c.id)))
        counted = select(new.label("new")).select_from(done).subquery("bgjob_counted")
        rows = select(func.count()).select_from(given).scalar_subquery().label("given")
        sent = []
        if notify:
            sent.append(self._sent("bgjob_told", select(done.c.queue), Wakeup.RETURNED))
            if passed_by is not None:
                sent.append(self._sent("bgjob_passed_by", passed_by, Wakeup.RETURNED))
        return _beside(select(counted.c.new, rows, *columns), counted, sent)

    # ---- what they are made of -----------------------------------------------------------------

    def _chosen(
        self, rows: Select[Any], on_duplicate: str = "skip", more: tuple[str, ...] = ()
    ) -> tuple[CTE, CTE]:
        """The given rows; and of these one for each key, and all without a key.

        It is the first of a key; or the last, if that replaces those before it; or one that runs
        at the earliest of their times.
        """
        names = (*INSERTED, _GIVEN_KEY, *more)
        labelled = (c.label(name) for c, name in zip(rows.selected_columns, names, strict=True))
        place = func.row_number().over().label("place")
        given = rows.with_only_columns(*labelled, place, maintain_column_froms=True).cte(
            "bgjob_given"
        )
        one_key = (given.c.unique_key, case((given.c.unique_key.is_(None), given.c.id)))
        order = given.c.place.desc() if on_duplicate == "replace" else given.c.place
        values: dict[str, ColumnElement[Any]] = {name: given.c[name] for name in names}
        if on_duplicate == "earlier":
            for name in ("priority", "next_run_at"):
                values[name] = func.min(given.c[name]).over(partition_by=one_key)
        nth = func.row_number().over(partition_by=one_key, order_by=order)
        ranked = select(
            *(value.label(name) for name, value in values.items()), nth.label("nth")
        ).subquery("bgjob_ranked")
        chosen = select(*(ranked.c[name] for name in names)).where(ranked.c.nth == _ONE)
        return given, chosen.cte("bgjob_chosen")

    def _with_key(self, key: ColumnElement[Any]) -> Select[Any]:
        """The id of the job that has a key: one probe of the index, whatever the statistics say."""
        job = self._job
        return select(job.c.id).with_hint(job, ONLY).where(job.c.unique_key == key)

    def _held(self, there: CTE, *, wait: bool) -> CTE:
        """The queued jobs with these keys, locked until COMMIT; and whether each is due."""
        job = self._job
        one = (
            self._with_key(there.c.key)
            .add_columns(job.c.queue, (job.c.next_run_at <= func.now()).label("due"))
            .where(job.c.claimed_by.is_(None), ~self._never_runs())
            .with_for_update(read=True, skip_locked=not wait)
            .lateral("held")
        )
        columns = there.c.key.label("unique_key"), one.c.id, one.c.queue, one.c.due
        return select(*columns).select_from(there.join(one, true())).cte("bgjob_held")

    def _never_runs(self) -> ColumnElement[bool]:
        """Whether the next claim of this queued job, whenever it comes, only ends it."""
        job = self._job
        expired = func.coalesce(job.c.expires_at < func.statement_timestamp(), false())
        return and_(job.c.claimed_by.is_(None), or_(job.c.cancel_at.is_not(None), expired))

    def _renewed(self, chosen: CTE, there: CTE, *, wait: bool) -> CTE:
        """Take these keys from jobs that never will run, and insert the new ones.

        What has lost its key has expired for ever, whatever the clock will say: no two run.
        """
        job = self._job
        one = (
            select(literal_column("ctid").label("place"))
            .select_from(job)
            .with_hint(job, ONLY)
            .where(job.c.unique_key == there.c.key, self._never_runs())
            .with_for_update(skip_locked=not wait, key_share=True)
            .lateral("one")
        )
        found = select(there.c.key, one.c.place).select_from(there.join(one, true()))
        ended = found.cte("bgjob_ended")
        freed = (
            update(job)
            .with_hint(ONLY)
            .where(at(select(ended.c.place)))
            .values(unique_key=null(), expires_at=literal(EARLIEST, job.c.expires_at.type))
            .returning(job.c.id)
            .cte("bgjob_freed")
        )
        names = [*INSERTED, _GIVEN_KEY]
        insert, rows = self._new_jobs(chosen, *names)
        # The count makes the INSERT wait for the UPDATE of all of them.
        are_free = select(func.count()).select_from(freed).scalar_subquery() > literal_column("0")
        # IS TRUE keeps the server from making a join of it, see below.
        is_free = chosen.c.unique_key.in_(select(ended.c.key)).is_(true())
        rows = rows.where(is_free, are_free)
        insert = insert.from_select(names, rows).on_conflict_do_nothing()
        return insert.returning(job.c.id, job.c.unique_key, job.c.queue).cte("bgjob_renewed")

    def _new_jobs(self, chosen: CTE, *names: str) -> tuple[Insert, Select[Any]]:
        job = self._job
        rows = select(*(chosen.c[name] for name in names)).order_by(_in_order(chosen.c.unique_key))
        return pg_insert(job), rows

    def _inserted(self, chosen: CTE, *, any_unique: bool) -> Any:
        """Insert what nobody has. It waits for those who insert, claim or end the same key now."""
        job = self._job
        names = [*INSERTED, _GIVEN_KEY]
        insert, rows = self._new_jobs(chosen, *names)
        insert = insert.from_select(names, rows)
        if any_unique:
            insert = insert.on_conflict_do_nothing()
        else:
            insert = insert.on_conflict_do_nothing(
                index_elements=[job.c.unique_key], index_where=job.c.unique_key.is_not(None)
            )
        return insert.returning(job.c.id, job.c.unique_key, job.c.queue)

    def _changed(self, chosen: CTE, on_duplicate: str) -> Any:
        """Insert, or change what is there; either is locked until COMMIT."""
        job = self._job
        names = [*INSERTED, _GIVEN_KEY]
        insert, rows = self._new_jobs(chosen, *names)
        insert = insert.from_select(names, rows)
        new = insert.excluded
        changes: dict[str, Any]
        # Who has seen the job as it was before can't edit it by that.
        seen_as_changed: dict[str, Any] = {"lease": job.c.lease + 1, "updated_at": func.now()}
        match on_duplicate:
            case "replace":
                changes = {name: new[name] for name in INSERTED if name not in _KEPT}
                changes |= seen_as_changed
            case "earlier":
                changes = {
                    name: func.least(job.c[name], new[name]) for name in ("priority", "next_run_at")
                }
                # Neither of the two callers' jobs may be dropped before its own time is over.
                never = job.c.expires_at.is_(None) | new.expires_at.is_(None)
                later = func.greatest(job.c.expires_at, new.expires_at)
                changes["expires_at"] = case((~never, later))
                changes |= seen_as_changed
            case _:
                changes = {"unique_key": new.unique_key}
        return insert.on_conflict_do_update(
            index_elements=[job.c.unique_key],
            index_where=job.c.unique_key.is_not(None),
            set_=changes,
            where=None if on_duplicate in _REVIVING else ~self._never_runs(),
        ).returning(job.c.id, job.c.unique_key, job.c.queue)

    def _periods(self, chosen: CTE, length: ColumnElement[Any]) -> tuple[CTE, CTE]:
        """The periods that go on, not locked; and those that begin here."""
        period = self._period
        # Not now(): a transaction may go on for long, and a test's never ends.
        now = func.statement_timestamp()
        one = (
            select(period.c.key, period.c.job_id)
            .with_hint(period, ONLY)
            .where(period.c.key == chosen.c.unique_key, period.c.until > now)
            .limit(_ONE)
            .lateral("one")
        )
        goes_on = select(one.c.key, one.c.job_id).select_from(chosen.join(one, true()))
        valid = goes_on.cte("bgjob_valid")
        rows = (
            select(chosen.c.unique_key, chosen.c.id, now + length)
            .where(
                chosen.c.unique_key.is_not(None),
                chosen.c.unique_key.not_in(select(valid.c.key)),
            )
            .order_by(_in_order(chosen.c.unique_key))
        )
        insert = pg_insert(period).from_select(["key", "job_id", "until"], rows)
        new = insert.excluded
        begun = (
            insert.on_conflict_do_update(
                index_elements=[period.c.key],
                set_={"job_id": new.job_id, "until": new.until},
                where=period.c.until <= now,
            )
            .returning(period.c.key, period.c.job_id)
            .cte("bgjob_begun")
        )
        return valid, begun

    def _inserted_in_period(self, chosen: CTE, begun: CTE) -> Any:
        """Insert the jobs whose periods begin here, and those without a key."""
        job = self._job
        insert, rows = self._new_jobs(chosen, *INSERTED)
        begins = chosen.c.unique_key.in_(select(begun.c.key))
        rows = rows.where(chosen.c.unique_key.is_(None) | begins)
        return insert.from_select([*INSERTED], rows).returning(job.c.id, job.c.queue)

    def _sent(self, name: str, queues: Any, of: Wakeup) -> Subquery:
        """Notify once for each queue; one row."""
        each = select(queues.subquery().c.queue).distinct().subquery(f"{name}_queues")
        notified = woken(self._worker, self._tables.channel, each.c.queue, of=of)
        lateral = notified.lateral(f"{name}_notified")
        count = func.sum(lateral.c.count).label("count")
        return select(count).select_from(each.join(lateral, true())).subquery(name)


def _in_order(key: ColumnElement[Any]) -> ColumnElement[Any]:
    """The one order of keys, which is that of Python too."""
    return key.collate("C")


def _not_in(inserted: CTE, chosen: CTE) -> CTE:
    """The keys that were not inserted. It makes who asks for them wait until all others were.

    So nobody waits for a key while he has locked one that comes after it.
    """
    keys, new = select(chosen.c.unique_key.label("key")), select(inserted.c.unique_key)
    # Here and elsewhere: no join of what was given, as the server takes it for a few rows, and
    # would compare each with each.
    return keys.where(chosen.c.unique_key.is_not(None)).except_(new).cte("bgjob_there")


def _queues_of(*jobs: CTE) -> Any:
    """The queues of all of these jobs."""
    first, *more = (select(some.c.queue) for some in jobs)
    return first.union_all(*more)


def _beside(rows: Select[Any], source: Any, sent: list[Subquery]) -> Select[Any]:
    """Rows, and with them the notifications, each of which is one row."""
    for one in sent:
        source = source.join(one, true())
    return rows.select_from(source)
