"""The connection on which a worker claims: its settings, and when its plans are renewed."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import DataError

from sqlalchemy_bgjob._lifecycle.claim import Look, claim_from_queues
from sqlalchemy_bgjob._sql import Statements
from sqlalchemy_bgjob._worker import control as control_module
from sqlalchemy_bgjob._worker.control import RENEWED_AFTER, ROUND_TRIPS, SLOW, ControlConnection
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Connection, Engine, QueuePool


@pytest.fixture
def statements() -> Statements:
    return Statements(new_queue().models)


@pytest.fixture
def control(engine: Engine, statements: Statements) -> Iterator[ControlConnection]:
    runtime: Any = SimpleNamespace(engine=engine)
    heart: Any = SimpleNamespace(worker_id=7, visible=True)
    control = ControlConnection(runtime, statements, heart)
    try:
        yield control
    finally:
        control.drop()


def test_a_claim_is_not_compiled(control: ControlConnection) -> None:
    """The claim of a hundred queues would be, by its cost as the server guesses it."""
    assert control.get().execute(text("SHOW jit")).scalar() == "off"


def test_a_claim_commits_by_itself_and_a_settlement_does_not(
    control: ControlConnection, engine: Engine
) -> None:
    begun: list[int] = []
    write = text("CREATE TEMPORARY TABLE IF NOT EXISTS settled (n int)")
    xid = text("SELECT pg_current_xact_id_if_assigned() IS NOT NULL")

    for _ in range(2):
        assert control.for_claim() is control.get(), "it is one connection"
        connection = control.for_claim()
        assert control.rests
        with connection.begin():
            connection.execute(write)
            assert not connection.scalar(xid), "it has committed"
        connection = control.get()
        assert not control.rests
        with connection.begin():
            connection.execute(text("INSERT INTO settled VALUES (1)"))
            begun.append(connection.scalar(xid))
    assert begun == [True, True]


def test_where_somebody_listens_claims_stay_in_transactions(
    control: ControlConnection, engine: Engine
) -> None:
    """They may set a role for each transaction, for example."""
    event.listen(engine, "begin", lambda _: None)

    with control.for_claim().begin():
        assert not control.rests


@pytest.mark.parametrize("visible", [True, False])
def test_plans_are_kept_where_no_pooler_is_between(
    control: ControlConnection, *, visible: bool
) -> None:
    """The next client of its session would have to plan in that way too."""
    control._heart.visible = visible

    mode = control.get().execute(text("SHOW plan_cache_mode")).scalar()

    assert mode == ("force_generic_plan" if visible else "auto")


def test_one_plan_serves_any_number_of_queues(
    control: ControlConnection, engine: Engine, statements: Statements
) -> None:
    """The server would plan anew for each claim, which takes four times as long as the claim."""
    statements.tables.job.metadata.create_all(engine)
    for queues in range(1, 21):
        connection = control.for_claim()
        direct = control.direct(statements.claim.of_queues)
        assert direct is not None
        looks = [Look(f"q{n}", 1) for n in range(queues)]
        claim_from_queues(connection, statements, looks=looks, worker_id=7, direct=direct)

    plans = "SELECT sum(generic_plans) > 0, sum(custom_plans) FROM pg_prepared_statements"
    assert control.get().execute(text(plans)).one() == (True, 0)


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


@pytest.mark.parametrize("step", ["compile_no_plans", "prepare"])
def test_a_session_that_was_half_prepared_is_ended(
    control: ControlConnection,
    engine: Engine,
    statements: Statements,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
) -> None:
    """As if statement_timeout ended a step. What was prepared before is of another session."""
    control.for_claim()
    control.drop()
    pids: list[int] = []

    def refuse(*given: Any) -> None:
        connection: Connection = given[-1]
        with connection.begin():
            pids.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
            connection.execute(text("SELECT 1 / 0"))

    with monkeypatch.context() as patch:
        patch.setattr(control_module, step, refuse)
        with pytest.raises(DataError):
            control.for_claim()
        with pytest.raises(DataError):
            control.for_claim()
    connection = control.for_claim()

    assert control.rests
    assert control.direct(statements.claim.of_queues) is not None
    assert connection.execute(text("SHOW jit")).scalar() == "off"
    pids.append(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())
    assert len(set(pids)) == 3, "none was kept, nor given back to the pool"
    assert cast("QueuePool", engine.pool).checkedout() == 1


def test_plans_are_discarded_more_rarely_where_it_is_no_help(
    control: ControlConnection, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a busy machine a statement may be slow, whatever its plan."""
    now, discarded_at = 1_000.0, []
    monkeypatch.setattr(control_module, "time", SimpleNamespace(monotonic=lambda: now))

    def see(_: Any, __: Any, statement: str, *___: Any) -> None:
        if statement == "DISCARD PLANS":
            discarded_at.append(now)

    event.listen(engine, "before_cursor_execute", see)
    connection = control.get()
    control.took(0.0, 0)
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


def test_a_slow_network_is_no_reason_to_discard_plans(
    control: ControlConnection, engine: Engine
) -> None:
    """A settlement waits for it three times; what takes longer still may have a bad plan."""
    network = SLOW * 4
    sent: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda *args: sent.append(args[2]))

    def discards(seconds: float) -> bool:
        control.get().info["bgjob_planned_at"] = 0.0
        control.took(seconds, 0)
        sent.clear()
        control.get()
        return "DISCARD PLANS" in sent

    assert not discards(network)
    assert not discards(network * 3 + SLOW / 2), "a settlement, beside claims of one round trip"
    assert not discards(network * ROUND_TRIPS + SLOW / 2)
    assert discards(network * ROUND_TRIPS + SLOW * 2)

    control.drop()  # the next session may be one of another server
    assert not discards(network * ROUND_TRIPS + SLOW * 2)
