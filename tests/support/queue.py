"""The queue's tables in a database, as tests of statements and transitions use them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import text

from sqlalchemy_bgjob._lifecycle import settle
from support.rows import add, claim, ids

if TYPE_CHECKING:
    from sqlalchemy import Connection, Engine

    from sqlalchemy_bgjob._lifecycle.claim import ClaimedJob
    from sqlalchemy_bgjob._lifecycle.settle import Fate, Pending
    from sqlalchemy_bgjob._sql import Statements


@dataclass(frozen=True)
class Queue:
    """Tables with jobs as rows, and the connection of one who works on them."""

    engine: Engine
    statements: Statements
    connection: Connection

    def put(self, *names: str, **columns: Any) -> None:
        """Insert due jobs, and commit them."""
        with self.engine.begin() as connection:
            for name in names:
                add(connection, name, **columns)

    def take(self, limit: int = 100, **options: Any) -> list[str]:
        """Claim what is due, and tell the ids."""
        return ids(claim(self.connection, self.statements, limit, **options))

    def claim(self, *names: str, **columns: Any) -> list[ClaimedJob]:
        """Insert jobs, and claim what is due in their queue."""
        self.put(*names, **columns)
        return claim(self.connection, self.statements, queue=columns.get("queue", "q"))

    def settle(self, items: list[Pending]) -> dict[str, Fate]:
        """Settle in one batch, and tell by id what became of each."""
        fates = settle.settle(self.connection, self.statements, items)
        assert len(fates) == len(items)
        return {item.job.id: fate for item, fate in fates}

    def execute(self, sql: str, **given: Any) -> Any:
        """Run a statement in a transaction of its own, and return the first value of its result."""
        with self.engine.begin() as connection:
            result = connection.execute(text(sql), given)
            return result.scalar() if result.returns_rows else None
