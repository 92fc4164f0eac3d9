"""The server's health: what holds vacuum back, and how full the notification queue is.

Completed jobs are deleted, and vacuum frees their space only when no transaction can see them any
more. A transaction that stays open for an hour keeps an hour of jobs. Claims go onward from where
the last one stopped, so they do not slow down at once, but the table grows.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from sqlalchemy import ARRAY, Connection, Text, bindparam, text

HELD_BACK_AFTER: Final = 60.0
"""Seconds for which a transaction may be open before it is a problem."""
DEAD_ROWS: Final = 100_000
"""Dead rows above which a table is reported, if they also outnumber its live rows."""
NOTIFICATIONS: Final = 0.5
"""How full the notification queue may be, from 0 to 1; at 1 every COMMIT that notifies fails."""
SLOT_BEHIND: Final = 1_000_000
"""How many transactions a replication slot may be behind."""


@dataclass(frozen=True, slots=True)
class Holder:
    """The oldest holder of the xmin horizon: it keeps dead rows from being removed.

    Attributes:
        kind: ``session``, ``prepared transaction`` or ``replication slot``.
        name: Its application_name, its gid, or the slot's name.
        pid: The session's; None for the others.
        state: The session's; None for the others.
        seconds: How long it or its transaction has been open; None for a slot.
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
        """Whether it has held back vacuum for so long that somebody should act."""
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
    """A table of the queue with more dead rows than live ones, as after every large drain.

    Attributes:
        table: Its name.
        dead: Number of dead rows.
        live: Number of live rows.
        autovacuum: Whether autovacuum is on for the table.
    """

    table: str
    dead: int
    live: int
    autovacuum: bool = True

    def told(self, *, held_back: bool) -> str:
        """The text, with the remedy; *held_back* if a holder is too old."""
        if not self.autovacuum:
            remedy = "autovacuum is off for it: turn it on, or VACUUM it"
        elif held_back:
            remedy = "end what holds vacuum back, and autovacuum removes them"
        else:
            remedy = "autovacuum removes them within minutes; if they stay, VACUUM (VERBOSE) it"
        return f"{self.table} has {self.dead} dead rows and {self.live} live ones; {remedy}"


@dataclass(frozen=True, slots=True)
class Health:
    """One sample of the server's health.

    Attributes:
        holder: What keeps dead rows from being removed, the oldest; None if nothing does.
        dead_rows: The queue's tables that have too many dead rows.
        notifications: How full PostgreSQL's notification queue is, from 0 to 1.
        slowest_claim: Seconds of this worker's slowest claim since its last sample; None without
            a claim.
    """

    holder: Holder | None
    dead_rows: tuple[DeadRows, ...]
    notifications: float
    slowest_claim: float | None = None

    @property
    def problems(self) -> list[str]:
        """What somebody should mend, in words that end with what to do; empty if all is well."""
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
    """Sample the server's health; the caller ends the transaction. Reads statistics, not *tables*.

    A role without ``pg_monitor`` sees its own sessions only.
    """
    holder = connection.execute(_OLDEST, {"behind": SLOT_BEHIND}).one_or_none()
    dead = connection.execute(_DEAD_ROWS, {"tables": [*tables], "limit": DEAD_ROWS}).all()
    return Health(
        holder=None if holder is None else Holder(*holder),
        dead_rows=tuple(DeadRows(*row) for row in dead),
        notifications=float(connection.execute(_NOTIFICATIONS).scalar_one()),
    )


# Transactions of other databases hold nothing back here, except by a standby's feedback. A slot too
# far behind comes first: a session that is open for a moment must not hide it.
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
    ORDER BY seconds IS NULL AND transactions > :behind DESC, seconds DESC NULLS LAST,
             transactions DESC
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
