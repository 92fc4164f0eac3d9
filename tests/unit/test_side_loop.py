"""What heart, rescuer and listener do about a hook of the application's that raises."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from sqlalchemy_bgjob import Observer
from sqlalchemy_bgjob._db.connections import Backoff
from sqlalchemy_bgjob._worker.side_loop import SideLoop
from sqlalchemy_bgjob.telemetry import Events

if TYPE_CHECKING:
    from sqlalchemy import Connection


class Errors(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.told: list[BaseException] = []

    def worker_error(self, error: BaseException) -> None:
        self.told.append(error)


class Once(SideLoop):
    """Ends with its first connection."""

    interrupted = "interrupted"
    lived = False

    def _live(self, connection: Connection) -> float:
        self.lived = True
        self.stop()
        return 0.0


@pytest.mark.parametrize("raised", [ValueError, SystemExit])
def test_a_hook_that_raises_does_not_end_it(
    raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its heart a worker would claim nothing more, and never say so."""
    monkeypatch.setattr(Backoff, "FIRST", 0.001)
    answers: list[Any] = [raised("not now"), sqlite3.connect(":memory:")]

    def connect() -> Any:
        answer = answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer

    errors = Errors()
    events = Events([errors])
    events.start()
    loop = Once(create_engine("sqlite://", creator=connect), events)
    loop.run()
    events.stop(timeout=10.0)

    assert loop.lived
    assert [type(error) for error in errors.told] == [raised]
