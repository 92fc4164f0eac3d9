"""SQL by which a worker registers, beats, and says what it waits for."""

from functools import cached_property

from sqlalchemy import (
    BigInteger,
    DateTime,
    Executable,
    Float,
    Integer,
    Text,
    and_,
    delete,
    func,
    insert,
    select,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB

from .words import ACTIVITY, ONLY, SECOND, Tables, Wakeup, before, parameter, seconds, woken


class WorkerStatements:
    """What a worker writes into its own row, and asks of the others."""

    def __init__(self, tables: Tables) -> None:
        self._worker, self._channel = tables.worker, tables.channel

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
        """Remove a worker's row; returns the queues for which it waited. Parameter: worker."""
        worker = self._worker
        return (
            delete(worker)
            .with_hint(ONLY)
            .where(worker.c.id == parameter("worker", BigInteger))
            .returning(worker.c.waits_for)
        )

    @cached_property
    def beat(self) -> Executable:
        """Say that a worker lives; returns the seconds since its last beat.

        No row comes back once the worker is lost: its jobs were taken from it.
        Parameters: worker, listener_pid, listener_started_at.
        """
        worker = self._worker
        me = parameter("worker", BigInteger)
        old = before(worker, me, worker.c.beat_at)
        return (
            update(worker)
            .with_hint(ONLY)
            .where(worker.c.id == me, worker.c.lost_at.is_(None), old.c.id == worker.c.id)
            .values(
                beat_at=func.clock_timestamp(),
                listener_pid=parameter("listener_pid", Integer),
                listener_started_at=parameter("listener_started_at", DateTime(timezone=True)),
            )
            .returning(seconds(func.clock_timestamp() - old.c.beat_at))
        )

    @cached_property
    def set_waits_for(self) -> Executable:
        """Name the queues of which a worker is to be notified. Parameters: worker, list queues."""
        worker = self._worker
        return (
            update(worker)
            .with_hint(ONLY)
            .where(worker.c.id == parameter("worker", BigInteger), worker.c.lost_at.is_(None))
            .values(waits_for=parameter("queues", JSONB))
        )

    @cached_property
    def pass_on(self) -> Executable:
        """Wake one other worker that waits for a queue. Parameters: worker (who asks), queue.

        The jobs may be new ones, or some that were given back.
        """
        me, queue = parameter("worker", BigInteger), parameter("queue", Text)
        return woken(self._worker, self._channel, queue, of=Wakeup.RETURNED, most=1, but=me)

    @cached_property
    def listener_session(self) -> Executable:
        """Pid and start of the session that asks; the start is null where it is hidden."""
        return select(ACTIVITY.c.pid, ACTIVITY.c.backend_start).where(
            ACTIVITY.c.pid == func.pg_backend_pid()
        )

    @cached_property
    def is_leader(self) -> Executable:
        """Whether this worker is the leader; whether there may be periods of unique keys; batches.

        It does for all of them what one is enough for. A table that has never had a row has no
        size, and to ask for that is to read nothing.

        The leader has the smallest id of all workers that beat. For a moment two workers may take
        themselves for it. When it has just ended, there is none until it counts as silent. So a
        chore must do no harm if it is done twice, or late. Parameters: worker, and the names of the
        tables: periods, batches.
        """
        worker = self._worker
        me = parameter("worker", BigInteger)
        beating = and_(
            worker.c.lost_at.is_(None),
            func.clock_timestamp() - worker.c.beat_at < worker.c.lease_timeout * SECOND,
        )
        has_rows = (
            func.coalesce(func.pg_relation_size(func.to_regclass(parameter(name, Text))), 0) > 0
            for name in ("periods", "batches")
        )
        leads = select(func.min(worker.c.id) == me, *has_rows)
        return leads.with_hint(worker, ONLY).where(beating)
