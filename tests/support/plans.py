"""The plans by which the server ran a connection's statements, as ``auto_explain`` tells them.

Not an EXPLAIN made for the test: these are the plans of what the driver prepared and sent.
"""

from __future__ import annotations

import json
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine

_SETTINGS = {
    "auto_explain.log_min_duration": "0",
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.log_timing": "off",
    "auto_explain.log_format": "json",
    "client_min_messages": "log",
}


@dataclass(frozen=True)
class Plan:
    """One statement's plan and what it cost."""

    query: str
    root: dict[str, Any]

    def nodes(self) -> Iterator[dict[str, Any]]:
        todo = [self.root]
        while todo:
            node = todo.pop()
            yield node
            todo += node.get("Plans", ())

    @property
    def buffers(self) -> int:
        """Pages that were looked at, cached or not."""
        return int(self.root["Shared Hit Blocks"]) + int(self.root["Shared Read Blocks"])

    def scans(self, table: str = "bgjob_job") -> set[str]:
        """How the table was read: node type, and index if there is one."""
        return {
            f"{node['Node Type']} {node.get('Index Name', '')}".strip()
            for node in self.nodes()
            if node.get("Relation Name") == table and "Scan" in node["Node Type"]
        }


def let_cleaning_catch_up(engine: Engine) -> None:
    """Wait until the server may clean up after every transaction that has ended by now.

    Index scans mark the entries of dead rows and skip them from then on, once every transaction
    that began before those rows died has ended, in any database of the server. Another test may
    be in a long one. What it begins after this does not matter here. The server's own jobs, such as
    a catalog's ANALYZE, hold snapshots as well, without a transaction id.
    """
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    with autocommit.connect() as connection:
        ended = connection.scalar(text(f"SELECT {_XID.format('xmax')}"))
        passed = text(f"SELECT {_XID.format('xmin')} >= :ended AND {_NO_OLDER_SNAPSHOT}")
        wait_until(
            lambda: connection.scalar(passed, {"ended": ended}), 60, what="older transactions' end"
        )


_XID = "CAST(CAST(pg_snapshot_{}(pg_current_snapshot()) AS text) AS bigint)"
_NO_OLDER_SNAPSHOT = """
    NOT EXISTS (
        SELECT FROM pg_stat_activity
        WHERE pid <> pg_backend_pid()
          AND age(backend_xmin) > age(CAST(CAST(mod(:ended, 4294967296) AS text) AS xid))
    )
"""


@contextmanager
def recorded_plans(connection: Connection, mode: str = "auto") -> Iterator[list[Plan]]:
    """Collect the plans of all statements that run meanwhile; *mode* is ``plan_cache_mode``.

    Statements are prepared at their first use, so a forced generic plan is in force from then on.
    """
    plans: list[Plan] = []

    def note(diagnostic: Any) -> None:
        message = diagnostic.message_primary or ""
        if "plan:" in message:
            parsed = json.loads(message.split("plan:", 1)[1])
            plans.append(Plan(parsed["Query Text"], parsed["Plan"]))

    driver: Any = connection.connection.dbapi_connection
    driver.prepare_threshold = 0
    with connection.begin():
        connection.exec_driver_sql("LOAD 'auto_explain'")
        connection.exec_driver_sql(f"SET plan_cache_mode = {mode}")
        for name, value in _SETTINGS.items():
            connection.exec_driver_sql(f"SET {name} = '{value}'")
    driver.add_notice_handler(note)
    try:
        yield plans
    finally:
        driver.remove_notice_handler(note)
        if not connection.closed:
            connection.invalidate()  # its settings go with it
