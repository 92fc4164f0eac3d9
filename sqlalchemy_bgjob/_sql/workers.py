"""SQL of the table of workers: they beat, wait, fall silent, and end."""

from functools import cached_property
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    DateTime,
    Executable,
    Float,
    Integer,
    Select,
    Text,
    and_,
    cast,
    column,
    delete,
    func,
    insert,
    literal,
    not_,
    or_,
    select,
    table,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from .._db.sessions import APPLICATION_NAME_PREFIX
from .words import ONLY, SECOND, Tables, parameter, seconds

_activity = table(
    "pg_stat_activity",
    column("pid", Integer),
    column("backend_start", DateTime(timezone=True)),
    column("application_name", Text),
    column("usename", Text),
    column("datname", Text),
    column("state", Text),
    schema="pg_catalog",
)
_resets = tuple(
    table(name, column("stats_reset", DateTime(timezone=True)), schema="pg_catalog")
    for name in ("pg_stat_bgwriter", "pg_stat_wal", "pg_stat_slru")
)


class WorkerStatements(Tables):
    """How workers tell that they live, and how others find that they do not."""

    @cached_property
    def register(self) -> Executable:
        """A new worker's row. Parameters: id, hostname, pid, version, queues, lease_timeout."""
        return insert(self._worker).values(
            id=parameter("id", BigInteger),
            hostname=parameter("hostname", Text),
            pid=parameter("pid", Integer),
            version=parameter("version", Text),
            queues=parameter("queues", JSONB),
            lease_timeout=parameter("lease_timeout", Float(53)),
            started_at=func.clock_timestamp(),
            beat_at=func.clock_timestamp(),
        )

    @cached_property
    def unregister(self) -> Executable:
        """Remove a worker's row. Parameter: worker."""
        worker = self._worker
        return delete(worker).with_hint(ONLY).where(worker.c.id == parameter("worker", BigInteger))

    @cached_property
    def beat(self) -> Executable:
        """Say that a worker lives; no row comes back once its jobs were taken from it.

        Returns the seconds since its last beat.
        Parameters: worker, listener_pid, listener_started_at.
        """
        worker = self._worker
        me = parameter("worker", BigInteger)
        before = (
            select(worker.c.id, worker.c.beat_at)
            .with_hint(worker, ONLY)
            .where(worker.c.id == me)
            .subquery("before")
        )
        return (
            update(worker)
            .with_hint(ONLY)
            .where(worker.c.id == me, worker.c.lost_at.is_(None), before.c.id == worker.c.id)
            .values(
                beat_at=func.clock_timestamp(),
                listener_pid=parameter("listener_pid", Integer),
                listener_started_at=parameter("listener_started_at", DateTime(timezone=True)),
            )
            .returning(seconds(func.clock_timestamp() - before.c.beat_at))
        )

    @cached_property
    def announce(self) -> Executable:
        """Name the queues in which a worker waits. Parameters: worker, and list queues."""
        worker = self._worker
        return (
            update(worker)
            .with_hint(ONLY)
            .where(worker.c.id == parameter("worker", BigInteger), worker.c.lost_at.is_(None))
            .values(waits_for=parameter("queues", JSONB))
        )

    @cached_property
    def listener_session(self) -> Executable:
        """Pid and start of this very session; the start is null where it is hidden."""
        return select(_activity.c.pid, _activity.c.backend_start).where(
            _activity.c.pid == func.pg_backend_pid()
        )

    @cached_property
    def silent_workers(self) -> Executable:
        """Lock the rows of workers whose last beat is older than their own lease_timeout.

        None, unless the judge has been connected for as long, and has itself beaten lately by the
        clock that it judges by: after an outage or a jump of that clock everyone looks silent.
        Parameters: judge, connected (seconds).
        """
        worker = self._worker
        silence = func.clock_timestamp() - worker.c.beat_at
        return self._lock_workers(
            and_(silence > worker.c.lease_timeout * SECOND, self._judge_is_fit())
        )

    @cached_property
    def beats(self) -> Executable:
        """Id, last beat and lease_timeout of all workers that were not found lost."""
        worker = self._worker
        return (
            select(worker.c.id, worker.c.beat_at, worker.c.lease_timeout)
            .with_hint(worker, ONLY)
            .where(worker.c.lost_at.is_(None))
        )

    @cached_property
    def unchanged_worker(self) -> Executable:
        """Lock a worker's row if it has not beaten since.

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
    def lost_workers(self) -> Executable:
        """Lock the rows of workers that were found lost, while some job of theirs was locked."""
        worker = self._worker
        return (
            select(worker.c.id)
            .with_hint(worker, ONLY)
            .where(worker.c.lost_at.is_not(None))
            .with_for_update(skip_locked=True)
        )

    @cached_property
    def is_eldest(self) -> Executable:
        """Whether a worker is the one, of those that beat, that does what one of them has to do.

        Two may be for a moment, and none where the one with the smallest id has just ended.
        Parameters: worker.
        """
        worker = self._worker
        me = parameter("worker", BigInteger)
        beating = and_(
            worker.c.lost_at.is_(None),
            func.clock_timestamp() - worker.c.beat_at < worker.c.lease_timeout * SECOND,
        )
        return select(func.min(worker.c.id) == me).with_hint(worker, ONLY).where(beating)

    @cached_property
    def ended_workers(self) -> Executable:
        """Workers whose listening session is gone: id and the last beat, to be looked at twice.

        A session that is idle, in a transaction or not, ends at once with its process, so one that
        exists proves that the process lives; one that is hidden from this role may be it. A restart
        of the server ends sessions of the living, so sessions from before it prove nothing.
        """
        worker = self._worker
        return select(worker.c.id, worker.c.beat_at).with_hint(worker, ONLY).where(self._ended())

    @cached_property
    def ended_again(self) -> Executable:
        """Lock a worker's row if its session is still gone and it has not beaten.

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
        worker = self._worker
        session = _activity.alias("session")
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

    def _lock_workers(self, condition: ColumnElement[bool]) -> Select[Any]:
        worker = self._worker
        return (
            select(worker.c.id)
            .with_hint(worker, ONLY)
            .where(worker.c.lost_at.is_(None), condition)
            .with_for_update(skip_locked=True)
        )

    @cached_property
    def end_sessions(self) -> Executable:
        """End a lost worker's sessions, so that row locks of a frozen handler block nobody.

        Waits up to a second for each. Parameters: name (see application_name).
        """
        return select(func.count(func.pg_terminate_backend(_activity.c.pid, 1000))).where(
            _activity.c.application_name == parameter("name", Text),
            _activity.c.usename == func.current_user(),
            _activity.c.datname == func.current_database(),
            _activity.c.pid != func.pg_backend_pid(),
        )

    @cached_property
    def mark_lost(self) -> Executable:
        """It waits for nothing any more, either. Parameter: worker."""
        worker = self._worker
        return (
            update(worker)
            .with_hint(ONLY)
            .where(worker.c.id == parameter("worker", BigInteger), worker.c.lost_at.is_(None))
            .values(lost_at=func.clock_timestamp(), waits_for=literal([], JSONB))
        )


def _up_since() -> ColumnElement[Any]:
    """A moment since when the server has not begun anew, the earliest that is known.

    After the crash of one session it ends all others and begins anew without being started anew. No
    session and no process of its own outlives that, and its statistics begin anew too. So whatever
    is older than now proves that it has been up since then: the oldest session, which is a process
    of the server's own where this role may see those, and else one of this role's; and the oldest
    statistics, of which anybody with the right to may reset each by itself.
    """
    oldest = select(func.min(_activity.c.backend_start)).scalar_subquery()
    resets = [select(func.min(view.c.stats_reset)).scalar_subquery() for view in _resets]
    # Statistics outlive an orderly restart.
    return func.greatest(func.pg_postmaster_start_time(), func.least(oldest, *resets))
