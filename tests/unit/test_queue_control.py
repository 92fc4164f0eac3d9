"""When a worker reads what operators have set, and what it does if it can't."""

from __future__ import annotations

import time
from datetime import UTC, datetime
from math import inf
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy.exc import OperationalError, ProgrammingError

from sqlalchemy_bgjob._lifecycle import control
from sqlalchemy_bgjob._lifecycle.control import DrainWait, QueueState
from sqlalchemy_bgjob._worker.hands import Hands
from sqlalchemy_bgjob._worker.queue_control import ASKED_AGAIN, REFUSED_AGAIN, UNHEARD, QueueControl
from sqlalchemy_bgjob.settings import WorkerSettings
from sqlalchemy_bgjob.telemetry import Events

if TYPE_CHECKING:
    from collections.abc import Callable

NOTHING = QueueState(False, None, None, None, None, None)
PAUSED = QueueState(True, None, "ada", "provider down", None, None)


class Desk:
    """A worker of the queues mail and bills, and a table whose state the test sets."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.wakes = 1_000.0, 0
        self.state: dict[str, QueueState] = {}
        self.error: Exception | None = None
        monkeypatch.setattr(time, "monotonic", lambda: self.now)
        monkeypatch.setattr(control, "look", self._read)
        own = {"mail": 2, "bills": 3}
        events, nothing = Events(()), WorkerSettings()
        runtime: Any = self
        self.hands = Hands(runtime, events, own, nothing)
        statements: Any = None
        self.control = QueueControl(self.hands, runtime, statements, own, events)

    def wake(self) -> None:
        self.wakes += 1

    def _read(self, *_: Any) -> dict[str, QueueState]:
        if self.error is not None:
            raise self.error
        return self.state

    def look(self, **state: QueueState) -> None:
        self.state = state
        connection: Any = None
        self.control.look(connection)

    def in_seconds(self, *, listening: bool = True) -> float:
        """How long it is until the next look."""
        return self.control.due_at(listening=listening) - self.now

    def paused(self) -> set[str]:
        queues = self.hands.planner._queues.values()
        return {queue.name for queue in queues if queue.paused}

    def slots(self) -> dict[str, int]:
        return {queue.name: queue.slots for queue in self.hands.planner._queues.values()}


@pytest.fixture
def desk(monkeypatch: pytest.MonkeyPatch) -> Desk:
    return Desk(monkeypatch)


def test_until_the_first_look_every_queue_is_paused(desk: Desk) -> None:
    assert desk.paused() == {"mail", "bills"}
    assert desk.in_seconds() == -inf
    assert not desk.control.all_are_paused, "that is not known yet"

    desk.look()

    assert desk.paused() == set()
    assert desk.control.is_known
    assert desk.control.not_paused() == ["mail", "bills"]


def test_a_worker_that_listens_does_not_look_again(desk: Desk) -> None:
    desk.look()

    assert desk.in_seconds() == inf
    assert desk.in_seconds(listening=False) == pytest.approx(UNHEARD)


def test_who_is_asked_looks_soon_and_not_all_the_time(desk: Desk) -> None:
    desk.look()
    desk.control.ask()

    assert desk.wakes == 1
    assert not desk.control.is_known
    assert desk.in_seconds() == pytest.approx(ASKED_AGAIN)


def test_it_looks_when_a_pause_should_be_over(desk: Desk) -> None:
    until = datetime(2030, 1, 1, tzinfo=UTC)
    desk.look(
        mail=QueueState(True, 30.0, None, None, until, None),
        bills=QueueState(True, 20.0, None, None, until, None),
    )

    assert desk.in_seconds() == pytest.approx(20.0, abs=0.1)
    assert desk.control.all_are_paused


def test_what_is_set_during_a_look_is_read_by_another(desk: Desk) -> None:
    def set_meanwhile(*_: Any) -> dict[str, QueueState]:
        desk.control.ask()
        return {}

    desk._read = set_meanwhile  # type: ignore[method-assign]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(control, "look", set_meanwhile)
        desk.look()

    assert desk.in_seconds() == pytest.approx(ASKED_AGAIN)


@pytest.mark.parametrize(
    ("shown", "asks"),
    [
        ({"mail": [True, None], "other": [False, 5]}, 0),
        ({"mail": [False, None], "other": [False, 5]}, 1),
        ({"mail": [True, None], "other": [False, 6]}, 1),
        ({"mail": [True, None]}, 1),
        (None, 1),
    ],
)
def test_another_sight_of_the_rescuer_asks_for_a_look(
    desk: Desk, shown: dict[str, Any] | None, asks: int
) -> None:
    desk.look(mail=PAUSED, other=QueueState(False, None, None, None, None, 5))

    desk.control.compare(shown)

    assert desk.wakes == asks


def test_slots_are_those_set_or_the_workers_own(desk: Desk) -> None:
    desk.look(mail=QueueState(False, None, None, None, None, 7))
    assert desk.slots() == {"mail": 7, "bills": 3}

    desk.look()
    assert desk.slots() == {"mail": 2, "bills": 3}


def refusal(error: Callable[..., Exception], sqlstate: str) -> Exception:
    original = Exception("refused")
    original.sqlstate = sqlstate  # type: ignore[attr-defined]
    return error("SELECT", {}, original)


def test_a_refused_look_leaves_what_was_known(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    """Settlements must not wait for it, so it raises nothing."""
    desk.look(mail=PAUSED)
    desk.error = refusal(ProgrammingError, "42501")

    for _ in range(3):
        desk.look()

    assert desk.paused() == {"mail"}
    assert desk.in_seconds() == pytest.approx(REFUSED_AGAIN)
    assert len([line for line in caplog.messages if "which queues are paused" in line]) == 1


def test_without_a_first_look_nothing_is_claimed(
    desk: Desk, caplog: pytest.LogCaptureFixture
) -> None:
    desk.error = refusal(ProgrammingError, "42501")
    desk.look()

    assert desk.paused() == {"mail", "bills"}
    assert "nothing is claimed until it can" in caplog.text


def test_a_lost_connection_is_for_the_loop(desk: Desk) -> None:
    desk.look()
    desk.error = refusal(OperationalError, "57P01")

    with pytest.raises(OperationalError):
        desk.look()
    assert desk.in_seconds() == pytest.approx(REFUSED_AGAIN)


def test_it_says_who_paused_what(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    desk.look(mail=PAUSED, other=PAUSED, bills=QueueState(False, None, None, None, None, 9))
    desk.look(mail=PAUSED, bills=QueueState(False, None, None, None, None, 9))
    desk.look()

    assert caplog.messages == [
        "queue 'mail' is paused by ada (provider down): this worker claims nothing of it",
        "queue 'bills' has 9 slots",
        "queue 'mail' is not paused any more",
        "queue 'bills' has 3 slots, as this worker was told at its start",
    ]


def test_who_pauses_writes_no_line_of_the_log(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    desk.look(mail=QueueState(True, None, "ada\nroot", "no\x1b[2J", None, None))

    (words,) = caplog.messages
    assert words.startswith("queue 'mail' is paused by ada\\x0aroot (no\\x1b[2J): ")


# ---- drain --------------------------------------------------------------------------------------


def test_a_drain_does_not_trust_an_early_look() -> None:
    """A worker that has not heard of the pause may just be claiming."""
    wait = DrainWait(None, 0.0)

    assert wait.after(0, 0.0, 0.1) == pytest.approx(control.SEEN_WITHIN - 0.1)
    assert wait.after(0, control.SEEN_WITHIN - 0.01, control.SEEN_WITHIN + 1) == 0.0
    assert wait.after(0, control.SEEN_WITHIN, control.SEEN_WITHIN) is None


def test_a_drain_looks_rarely_where_looks_take_long() -> None:
    wait = DrainWait(None, 0.0)

    pauses = [wait.after(1, 2.0, 2.01) for _ in range(10)]
    assert pauses[0] == pytest.approx(0.1)
    assert pauses[-1] == pytest.approx(1.0)
    assert wait.after(1, 2.0, 5.0) == pytest.approx(30.0)


@pytest.mark.parametrize("timeout", [0.0, 1.0, 3.0])
def test_a_drain_ends_at_its_timeout(timeout: float) -> None:
    """Not before the answer is sure."""
    wait, end = DrainWait(timeout, 0.0), max(timeout, control.SEEN_WITHIN)

    pause = wait.after(4, end - 0.02, end - 0.01)
    assert pause is not None
    assert 0 <= pause <= 0.01 + 1e-6
    assert wait.after(4, end, end) is None
