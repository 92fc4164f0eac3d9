"""What keeps the server from cleaning up behind the queue, and how full its notifications are.

Completed jobs are deleted, and the server may reuse their room only when no transaction can see
them any more. One that stays open for an hour keeps an hour of jobs. Claims read on where the last
one stopped, so they do not slow down at once; the table grows all the same.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ARRAY, Connection, Text, bindparam, text

HELD_BACK_AFTER: Final = 60.0
"""Seconds for which a transaction may be open before it is told of."""
DEAD_ROWS: Final = 100_000
"""Dead rows of a table, where they are also more than the live ones, before they are told of."""
NOTIFICATIONS: Final = 0.5
"""How full the server's notification queue may be; at 1 every COMMIT that notifies fails."""
SLOT_BEHIND: Final = 1_000_000
"""By how many transactions a replication slot may be behind."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The oldest of what keeps dead rows from being removed.

    Attributes:
        kind: ``session``, ``prepared transaction`` or ``replication slot``.
        name: Its application_name, its gid, or the slot's name.
        pid: Of the session.
        state: Of the session.
        seconds: How long it has been open; None for a slot.
        transactions: How many transactions have begun since.
    """

    kind: str
    name: str
    pid: int | None
    state: str | None
    seconds: float | None
    transactions: int

    @property
    def too_old(self) -> bool:
        """Whether somebody should do something about it."""
        if self.seconds is None:
            return self.transactions > SLOT_BEHIND
        return self.seconds > HELD_BACK_AFTER

    def __str__(self) -> str:
        match self.kind:
            case "session":
                remedy = f"end it with SELECT pg_terminate_backend({self.pid})"
                who = f"session {self.pid} ({self.name or 'no application_name'}, {self.state})"
            case "prepared transaction":
                remedy = "COMMIT PREPARED or ROLLBACK PREPARED it"
                who = f"prepared transaction {self.name!r}"
            case _:
                remedy = "drop the slot, or find out why its standby is behind"
                who = f"replication slot {self.name!r}"
        if self.seconds is None:
            since = f"is {self.transactions} transactions behind"
        else:
            opened = "has had a transaction open" if self.kind == "session" else "has been open"
            since = f"{opened} for {self.seconds:.0f} s"
        return f"{who} {since} and keeps ended jobs from being removed; {remedy}"


@dataclass(frozen=True, slots=True)
class DeadRows:
    """A table of the queue with more dead rows than live ones, as after each large drain.

    Attributes:
        table: Its name.
        dead: How many rows are dead.
        live: How many are not.
        autovacuum: Whether the server removes them by itself.
    """

    table: str
    dead: int
    live: int
    autovacuum: bool = True

    def told(self, *, held_back: bool) -> str:
        """In words, with what to do: *held_back* while something too old is in the way."""
        if not self.autovacuum:
            remedy = "autovacuum is off for it: turn it on, or VACUUM it"
        elif held_back:
            remedy = "end what holds vacuum back, and autovacuum removes them"
        else:
            remedy = "autovacuum removes them within minutes; if they stay, VACUUM (VERBOSE) it"
        return f"{self.table} has {self.dead} dead rows and {self.live} live ones; {remedy}"


@dataclass(frozen=True, slots=True)
class Health:
    """What a look at the server found.

    Attributes:
        holder: The oldest of what keeps dead rows from being removed; None if there is nothing.
        dead_rows: The queue's tables that have too many.
        notifications: How full the notification queue is, from 0 to 1.
        slowest_claim: Seconds of the slowest claim of this worker since the last look; None where
            there was none.
    """

    holder: Holder | None
    dead_rows: tuple[DeadRows, ...]
    notifications: float
    slowest_claim: float | None = None

    @property
    def problems(self) -> list[str]:
        """What somebody should do something about, in words."""
        found = [str(self.holder)] if self.holder is not None and self._held_back else []
        found += [
            rows.told(held_back=self._held_back) for rows in self.dead_rows if self._stay(rows)
        ]
        if self.notifications > NOTIFICATIONS:
            found.append(
                f"the server's notification queue is {self.notifications:.0%} full: a session that "
                f"listens is in a long transaction; find it in pg_stat_activity and end it"
            )
        return found

    @property
    def notes(self) -> list[str]:
        """What the server mends by itself, in words."""
        return [rows.told(held_back=False) for rows in self.dead_rows if not self._stay(rows)]

    @property
    def _held_back(self) -> bool:
        return self.holder is not None and self.holder.too_old

    def _stay(self, rows: DeadRows) -> bool:
        return self._held_back or not rows.autovacuum


def look(connection: Connection, tables: Iterable[str]) -> Health:
    """Look at the server; the caller ends the transaction. Reads none of the *tables*.

    What other roles do is hidden from a role without ``pg_monitor``: then it finds its own alone.
    """
    holder = connection.execute(_OLDEST).one_or_none()
    dead = connection.execute(_DEAD_ROWS, {"tables": [*tables], "limit": DEAD_ROWS}).all()
    return Health(
        holder=None if holder is None else Holder(*holder),
        dead_rows=tuple(DeadRows(*row) for row in dead),
        notifications=float(connection.execute(_NOTIFICATIONS).scalar_one()),
    )


# A transaction of another database keeps nothing of this one's, but for a standby's feedback.
_OLDEST = text(
    """
    SELECT kind, name, pid, state, CAST(seconds AS float8), transactions FROM (
      SELECT 'session' AS kind, coalesce(application_name, '') AS name, pid, state,
             extract(epoch FROM clock_timestamp() - xact_start) AS seconds,
             greatest(age(backend_xmin), age(backend_xid)) AS transactions
      FROM pg_catalog.pg_stat_activity
      WHERE datname = current_database() AND pid <> pg_backend_pid()
        AND (backend_xmin IS NOT NULL OR backend_xid IS NOT NULL) AND xact_start IS NOT NULL
      UNION ALL
      SELECT 'prepared transaction', gid, NULL, NULL,
             extract(epoch FROM clock_timestamp() - prepared), age(transaction)
      FROM pg_catalog.pg_prepared_xacts
      WHERE database = current_database()
      UNION ALL
      SELECT 'replication slot', CAST(slot_name AS TEXT), NULL, NULL, NULL, age(xmin)
      FROM pg_catalog.pg_replication_slots
      WHERE xmin IS NOT NULL
    ) AS held
    ORDER BY seconds DESC NULLS LAST, transactions DESC
    LIMIT 1
    """
)
_DEAD_ROWS = text(
    """
    SELECT CAST(CAST(relid AS regclass) AS TEXT), n_dead_tup, n_live_tup,
           CAST(current_setting('autovacuum') AS bool) AND coalesce(
             (SELECT CAST(option_value AS bool) FROM pg_options_to_table(reloptions)
              WHERE option_name = 'autovacuum_enabled'), true)
    FROM pg_catalog.pg_stat_all_tables JOIN pg_catalog.pg_class ON oid = relid
    WHERE relid IN (SELECT to_regclass(name) FROM unnest(CAST(:tables AS TEXT[])) AS name)
      AND n_dead_tup > :limit AND n_dead_tup > n_live_tup
    ORDER BY 1
    """
).bindparams(bindparam("tables", type_=ARRAY(Text)))
_NOTIFICATIONS = text("SELECT pg_notification_queue_usage()")
