"""What an action of the dashboard is, and what it tells."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import Connection

from .visit import Visit


@dataclass(frozen=True, slots=True)
class Done:
    """What an action did: a sentence for people, numbers for scripts, and where to go on.

    And for the audit how many rows it changed, on what it was, and which arg or headers it gave.
    """

    words: str
    facts: dict[str, Any]
    to: str
    changed: int
    details: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)


Action = Callable[[Visit, Connection], Done]
"""Acts in the transaction that it gets, which is committed when it returns."""
