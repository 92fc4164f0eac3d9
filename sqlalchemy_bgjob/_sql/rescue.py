"""SQL that finds lost workers, and queues jobs again that nobody will settle."""

from collections.abc import Callable, Mapping
from functools import cache, cached_property
from typing import Any, NamedTuple

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Executable,
    Float,
    Select,
    Text,
    and_,
    case,
    cast,
    column,
    func,
    literal,
    literal_column,
    not_,
    or_,
    select,
    table,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from .._db.errors import describe
from .._db.sessions import APPLICATION_NAME_PREFIX
from ..exceptions import WorkerLost
from .control import what_is_set
from .error_history import appended
from .fire import any_due
from .words import (
    ACTIVITY,
    ONLY,
    SECOND,
    Tables,
    Wakeup,
    at,
    before,
    each_held,
    later,
    parameter,
    unnest,
    woken,
)

_resets = tuple(
    table(name, column("stats_reset", DateTime(timezone=True)), schema="pg_catalog")
    for name in ("pg_stat_bgwriter", "pg_stat_wal", "pg_stat_slru")
)


class GiveBack(NamedTuple):
    """How to queue jobs again: first find them, and then write them queue by queue.

    Found jobs are not locked meanwhile; each is written if its lease and its holder are the same.
    """

    held: Executable
    """Id, lease, queue and holder of each job. Its parameters are those that the statement names.
    """
    again: Executable
    """Returns the id of each job. Parameters: queue, and lists ids, leases, holders."""


class RescueStatements:
    """Which workers are lost, and how their jobs, orphans and unknown claims are queued again."""

    def __init__(self, tables: Tables) -> None:
        self._job, self._worker = tables.job, tables.worker
        self._tables = tables
        self.notify_given_back: Callable[[bool], Executable] = cache(self._notify_given_back)

    # ---- who is lost ------------------------------------------------------------------------

    @cached_property
    def workers(self) -> Executable:
        """All workers: id, last beat, lease_timeout, and whether each is lost, silent or ended.

        Locks nothing and judges nobody. Each row also says what :func:`any_due` does of schedules,
        and the parameters are those of that; and what :func:`.what_is_set` does of queues. Nobody
        asks for these by a statement of its own.
        """
        beside = any_due(self._tables), what_is_set(self._tables.control)
        return self._workers().add_columns(*beside)

    @cached_property
    def workers_alone(self) -> Executable:
        """As :attr:`workers`, without schedules and queues, where these can't be read."""
        return self._workers()

    def _workers(self) -> Select[Any]:
        worker = self._worker
        return select(
            worker.c.id,
            worker.c.beat_at,
            worker.c.lease_timeout,
            worker.c.lost_at.is_not(None),
            self._silent(),
            self._ended(),
        ).with_hint(worker, ONLY)

    @cached_property
    def silent_workers(self) -> Executable:
        """Lock the rows of workers whose last beat is older than their own lease_timeout.

        No row is found unless the judge has been connected for as long, and has itself beaten
        lately by the server's clock: after an outage, or a jump of that clock, everyone looks
        silent. Parameters: judge, connected (seconds).
        """
        return self._lock_workers(and_(self._silent(), self._judge_is_fit()))

    def _silent(self) -> ColumnElement[bool]:
        worker = self._worker
        silence = func.clock_timestamp() - worker.c.beat_at
        return silence > worker.c.lease_timeout * SECOND

    @cached_property
    def unchanged_worker(self) -> Executable:
        """Lock a worker's row if its last beat is still beat_at.

        Parameters: as silent_workers, and worker, beat_at.
        """
        worker = self._worker
        return self._lock_workers(
            and_(
                worker.c.id == parameter("worker", BigInteger),
                worker.c.beat_at == parameter("beat_at", DateTime(timezone=True)),
                self._judge_is_fit(),
            )
        )

    def _judge_is_fit(self) -> ColumnElement[bool]:
        worker = self._worker
        judge = worker.alias("judge")
        beats = (
            select(judge.c.id)
            .with_hint(judge, ONLY)
            .where(
                judge.c.id == parameter("judge", BigInteger),
                judge.c.lost_at.is_(None),
                func.clock_timestamp() - judge.c.beat_at < judge.c.lease_timeout / 2 * SECOND,
            )
            .exists()
        )
        return and_(worker.c.lease_timeout <= parameter("connected", Float(53)), beats)

    @cached_property
    def ended_again(self) -> Executable:
        """Lock a worker's row if its sessions are gone and its last beat is still beat_at.

        Parameters: worker, beat_at.
        """
        worker = self._worker
        return self._lock_workers(
            and_(
                worker.c.id == parameter("worker", BigInteger),
                worker.c.beat_at == parameter("beat_at", DateTime(timezone=True)),
                self._ended(),
            )
        )

    def _ended(self) -> ColumnElement[bool]:
        """Whether a worker's process has ended, by what the server has of its sessions.

        ============================== ====================================================
        what is found                  what it proves
        ============================== ====================================================
        the listening session, by pid  It lives: the session ends at once with its process.
        and start
        its start is hidden            It may be that session, so the worker may live.
        another session with its name  It lives, if the session is idle. An active one may
                                       go on with a statement without its process.
        the listening session is older It may live: a restart ends the sessions of the
        than the server's last restart living, too.
        no listening session is known  Nothing.
        none of these                  It has ended.
        ============================== ====================================================
        """
        worker = self._worker
        session = ACTIVITY.alias("session")
        exists = (
            select(session.c.pid)
            .where(
                or_(
                    and_(
                        session.c.pid == worker.c.listener_pid,
                        func.coalesce(session.c.backend_start, worker.c.listener_started_at)
                        == worker.c.listener_started_at,
                    ),
                    and_(
                        session.c.application_name
                        == literal(APPLICATION_NAME_PREFIX, Text) + cast(worker.c.id, Text),
                        # Whoever asks is active, and alive.
                        or_(
                            session.c.state.is_distinct_from("active"),
                            session.c.pid == func.pg_backend_pid(),
                        ),
                    ),
                )
            )
            .exists()
        )
        return and_(
            worker.c.lost_at.is_(None),
            worker.c.listener_pid.is_not(None),
            worker.c.listener_started_at > _up_since(),
            not_(exists),
        )

    @cached_property
    def lost_workers(self) -> Executable:
        """Lock the rows of lost workers. They are there because some of their jobs were locked."""
        worker = self._worker
        return (
            select(worker.c.id)
            .with_hint(worker, ONLY)
            .where(worker.c.lost_at.is_not(None))
            .with_for_update(skip_locked=True)
        )

    def _lock_workers(self, condition: ColumnElement[bool]) -> Select[Any]:
        worker = self._worker
        return (
            select(worker.c.id)
            .with_hint(worker, ONLY)
            .where(worker.c.lost_at.is_(None), condition)
            .with_for_update(skip_locked=True)
        )

    # ---- what is done about it --------------------------------------------------------------

    @cached_property
    def end_sessions(self) -> Executable:
        """End a lost worker's sessions, so that the row locks of a frozen handler are released.

        Waits up to a second for each. Of other logins none is ended. Parameter: name (see
        application_name).
        """
        return select(func.count(func.pg_terminate_backend(ACTIVITY.c.pid, 1000))).where(
            ACTIVITY.c.application_name == parameter("name", Text),
            ACTIVITY.c.usename == func.session_user(),
            ACTIVITY.c.datname == func.current_database(),
            ACTIVITY.c.pid != func.pg_backend_pid(),
        )

    @cached_property
    def mark_lost(self) -> Executable:
        """Mark a worker lost; returns the queues for which it waited. Parameter: worker."""
        worker = self._worker
        me = parameter("worker", BigInteger)
        old = before(worker, me, worker.c.waits_for)
        return (
            update(worker)
            .with_hint(ONLY)
            .where(worker.c.id == me, worker.c.lost_at.is_(None), old.c.id == worker.c.id)
            .values(lost_at=func.clock_timestamp(), waits_for=literal([], JSONB))
            .returning(old.c.waits_for)
        )

    # ---- their jobs ---------------------------------------------------------------------------

    @cached_property
    def unknown_claims(self) -> GiveBack:
        """Queue all jobs of a worker again, but for those it knows of; their attempt is refunded.

        A job is known by its lease: the worker may know an earlier claim of it. Reads the whole
        table, so it is for outages. Parameters: worker, and lists ids, leases (those it knows of).
        """
        held = self._job.alias("held")
        mine = and_(held.c.claimed_by == parameter("worker", BigInteger), not_(_is_given(held)))
        unspent = func.greatest(self._job.c.attempt - 1, 0)
        return GiveBack(_which(held, mine), self._queue_again({"attempt": unspent}))

    @cached_property
    def give_back(self) -> GiveBack:
        """Queue the jobs of a lost worker again. Parameter: worker."""
        held = self._job.alias("held")
        mine = held.c.claimed_by == parameter("worker", BigInteger)
        return GiveBack(_which(held, mine), self._after_a_crash)

    @cached_property
    def give_back_orphans(self) -> GiveBack:
        """Queue jobs again whose worker has no row."""
        held = self._job.alias("held")
        worker = self._worker
        known = (
            select(worker.c.id)
            .with_hint(worker, ONLY)
            .where(worker.c.id == held.c.claimed_by)
            .exists()
        )
        orphaned = and_(held.c.claimed_by.is_not(None), not_(known))
        return GiveBack(_which(held, orphaned), self._after_a_crash)

    @cached_property
    def give_back_refused(self) -> GiveBack:
        """Queue jobs again that have run, and whose settlement is refused.

        It is done as for a lost worker. The attempt counts, so a job whose end can't be written
        runs max_attempts times and no more. last_error already names the refusal. Parameters:
        worker, and lists ids, leases.
        """
        held = self._job.alias("held")
        mine = and_(held.c.claimed_by == parameter("worker", BigInteger), _is_given(held))
        error = func.coalesce(self._job.c.last_error, _lost())
        return GiveBack(_which(held, mine), self._queue_again(self._crashed(error)))

    @cached_property
    def _after_a_crash(self) -> Executable:
        lost = _lost()
        return self._queue_again({**self._crashed(lost), "last_error": lost})

    def _crashed(self, error: ColumnElement[Any]) -> dict[str, Any]:
        """One crash more, and its error in the history.

        After its first crash a job is due as before; after further ones it waits for a time that
        is as good as random. So the jobs of one lost worker spread out, and a job that kills its
        workers is soon claimed alone.
        """
        job = self._job
        # The inner LEAST keeps the power from overflowing.
        longest = func.least(60, func.power(2, func.least(job.c.crashes, 10)))
        spread = func.hashtextextended(job.c.id, job.c.lease).op("&")(literal_column("1023"))
        delay = (
            cast(longest, Float(53)) * cast(spread, Float(53)) / literal_column("1023", Float(53))
        )
        again = case((job.c.crashes > 0, later(delay)), else_=job.c.next_run_at)
        errors = appended(job.c.errors, attempt=job.c.attempt, worker=job.c.claimed_by, error=error)
        return {"crashes": job.c.crashes + 1, "next_run_at": again, "errors": errors}

    def _queue_again(self, values: Mapping[str, Any]) -> Executable:
        job = self._job
        given = unnest(ids=Text(), leases=BigInteger(), holders=BigInteger())
        locked = each_held(
            job,
            given,
            literal_column("held.ctid"),
            given.c.holders,
            lambda held, one: one.with_for_update(skip_locked=True, key_share=True),
            queue := parameter("queue", Text),
        )
        return (
            update(job)
            .with_hint(ONLY)
            .where(job.c.queue == queue, at(locked))
            .values(claimed_by=None, lease=job.c.lease + 1, updated_at=func.now(), **values)
            .returning(job.c.id)
        )

    @cached_property
    def holds_any(self) -> Executable:
        """Whether a worker still holds a job. Parameter: worker."""
        job = self._job
        held = (
            select(job.c.id)
            .with_hint(job, ONLY)
            .where(job.c.claimed_by == parameter("worker", BigInteger))
        )
        return select(held.exists())

    def _notify_given_back(self, everybody: bool) -> Executable:
        """Notify workers, at this transaction's COMMIT, that jobs of a queue were given back.

        Such jobs stand near the head, where busy workers seldom look. So with *everybody*, for what
        is rare, all workers are notified, and else some of those who wait. Parameter: queue.
        """
        queue, tables = parameter("queue", Text), self._tables
        if everybody:
            return select(cast(func.pg_notify(tables.channel_of_given_back, queue), Text))
        return woken(self._worker, tables.channel, queue, of=Wakeup.RETURNED)


def _lost() -> ColumnElement[str]:
    return literal(describe(WorkerLost()), Text)


def _which(held: Any, condition: ColumnElement[bool]) -> Executable:
    columns = held.c.id, held.c.lease, held.c.queue, held.c.claimed_by
    return select(*columns).with_hint(held, ONLY).where(condition)


def _is_given(held: Any) -> ColumnElement[bool]:
    """Whether a job is one of those given by id and lease."""
    given = unnest(ids=Text(), leases=BigInteger())
    found = given.c.ids == held.c.id, given.c.leases == held.c.lease
    return select(given.c.ids).where(*found).exists()


def _up_since() -> ColumnElement[Any]:
    """The earliest moment since which the server is known not to have restarted.

    After the crash of one session the server ends all others and recovers, without a new
    postmaster. No session and no background process outlives that, and the statistics are reset
    too. So the oldest of these proves that the server has been up since then: sessions, those of
    background processes included where this role may see them; and three kinds of statistics, each
    of which may be reset by itself.
    """
    oldest = select(func.min(ACTIVITY.c.backend_start)).scalar_subquery()
    resets = [select(func.min(view.c.stats_reset)).scalar_subquery() for view in _resets]
    # Statistics outlive an orderly restart.
    return func.greatest(func.pg_postmaster_start_time(), func.least(oldest, *resets))
