"""The connection on which a worker claims: its settings, and when its plans are renewed."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import MetaData, event, text

from sqlalchemy_bgjob import BGJob
from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob._worker import control as control_module
from sqlalchemy_bgjob._worker.control import RENEWED_AFTER, SLOW, ControlConnection

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine


@pytest.fixture
def control(engine: Engine) -> Iterator[ControlConnection]:
    runtime: Any = SimpleNamespace(engine=engine)
    heart: Any = SimpleNamespace(worker_id=7)
    control = ControlConnection(runtime, Statements(BGJob(MetaData()).models), heart)
    try:
        yield control
    finally:
        control.drop()


def test_a_claim_is_not_compiled(control: ControlConnection) -> None:
    """The claim of a hundred queues would be, by its cost as the server guesses it."""
    assert control.get().execute(text("SHOW jit")).scalar() == "off"


def test_an_ended_workers_session_leaves_the_pool(
    control: ControlConnection, engine: Engine
) -> None:
    of_worker = control.get().execute(text("SELECT pg_backend_pid()")).scalar()
    control.drop()

    with engine.connect() as connection:
        row = connection.execute(text("SELECT pg_backend_pid(), current_setting('jit')")).one()
        at_first = connection.scalar(text("SELECT reset_val FROM pg_settings WHERE name = 'jit'"))
    assert row[0] != of_worker
    assert row[1] == at_first


def test_plans_are_discarded_more_rarely_where_it_is_no_help(
    control: ControlConnection, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a slow network every statement is slow, whatever its plan."""
    now, discarded_at = 1_000.0, []
    monkeypatch.setattr(control_module, "time", SimpleNamespace(monotonic=lambda: now))

    def see(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement == "DISCARD PLANS":
            discarded_at.append(now)

    event.listen(engine, "before_cursor_execute", see)
    connection = control.get()
    for _ in range(200):
        control.took(SLOW * 2, 0)
        connection.info["bgjob_planned_at"] = 0.0
        control.get()
        now += 1.0

    first, longest = RENEWED_AFTER
    waits = [after - before for before, after in itertools.pairwise(discarded_at)]
    assert waits == [min(first * 2**n, longest) for n in range(len(waits))]
    assert waits[-1] == longest

    now += longest
    control.took(SLOW / 2, 0)  # one that is quick, and then a table has grown again
    control.took(SLOW * 2, 0)
    control.get()
    assert discarded_at[-1] == now
