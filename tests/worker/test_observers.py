"""What observers are told: exactly what was committed, in order, and never at the worker's cost."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import event

from sqlalchemy_bgjob import (
    Context,
    FinishedRun,
    MoveToDlq,
    Observer,
    Reschedule,
    Retry,
    constant,
    telemetry,
)
from sqlalchemy_bgjob._handlers.outcomes import Kind, Settlement
from sqlalchemy_bgjob._worker.run import job_info
from sqlalchemy_bgjob.telemetry import Events
from sqlalchemy_bgjob.testing.points import at
from support import wait_until
from support.planning import job as claimed
from support.running import Gate, Recorder, Workbench, one_of_each

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy.orm import Session

    from sqlalchemy_bgjob import JobInfo
    from support.tuning import Tune


class Witness(Observer):
    """Looks at the row, from another connection, at the moment it is told."""

    def __init__(self, bench: Workbench) -> None:
        self._bench = bench
        self.saw: dict[str, list[tuple[str, Any]]] = {}

    def _look(self, name: str, job: JobInfo) -> None:
        live, dead = self._bench.job(job.id), self._bench.dead(job.id)
        state = "gone"
        if live is not None:
            state = f"{'running' if live.claimed_by else 'queued'} {live.attempt}"
        if dead is not None:
            state = f"dead {dead.attempt}"
        self.saw.setdefault(job.id, []).append((name, state))

    def job_started(self, job: JobInfo) -> None:
        self.saw.setdefault(job.id, []).append(("started", job.attempt))

    def job_completed(self, job: JobInfo, run: FinishedRun) -> None:
        self._look("completed", job)

    def job_rescheduled(self, job: JobInfo, run: FinishedRun) -> None:
        self._look("rescheduled", job)

    def job_will_be_retried(self, job: JobInfo, run: FinishedRun) -> None:
        self._look("will_be_retried", job)

    def job_moved_to_dlq(self, job: JobInfo, run: FinishedRun) -> None:
        self._look("moved_to_dlq", job)


@pytest.mark.core
@pytest.mark.parametrize("uses_session", [True, False])
@one_of_each
def test_events_come_after_the_commit_that_made_them_true(
    bench: Workbench, uses_session: bool
) -> None:
    outcomes = {
        "completed": (None, "gone"),
        "will_be_retried": (Retry(1000, "x"), "queued 1"),
        "rescheduled": (Reschedule(1000), "queued 0"),
        "moved_to_dlq": (MoveToDlq("x"), "dead 1"),
    }

    def handler_of(name: str) -> str:
        def body(*args: Any) -> Any:
            if uses_session:
                bench.note(args[0], args[1])
            return outcomes[name][0]

        handler = bench.handler(name, body, uses_session=uses_session)
        return bench.enqueue(handler)

    ids = {name: handler_of(name) for name in outcomes}
    witness = Witness(bench)
    bench.run(observers=(witness,))

    for name, job_id in ids.items():
        assert witness.saw[job_id] == [("started", 1), (name, outcomes[name][1])]


@one_of_each
def test_each_transition_is_told_once_and_in_order(bench: Workbench) -> None:
    """A hundred jobs of several attempts each: the story of each one is whole."""

    def body(s: Session, ctx: Context[Any]) -> Any:
        number = ctx.job.headers["n"]
        if number % 3 == 0:
            bench.note(s, ctx, f"attempt {ctx.job.attempt}")
        if ctx.job.attempt <= number % 4:
            raise ValueError(f"attempt {ctx.job.attempt}")
        return MoveToDlq("enough") if number % 5 == 0 else None

    handler = bench.handler("t", body, retry=constant(0.0))
    numbers = {bench.enqueue(handler, headers={"n": n}): n for n in range(100)}
    ran = bench.run(queues={"default": 8}, engine={"pool_size": 10}, deadline=60.0)

    for job_id, number in numbers.items():
        failures = ["started", "will_be_retried"] * (number % 4)
        end = "moved_to_dlq" if number % 5 == 0 else "completed"
        assert ran.of(job_id) == [*failures, "started", end]
        attempts = [e.job.attempt for e in ran.events if e.job and e.subject == job_id]
        assert attempts == [n for n in range(1, number % 4 + 2) for _ in range(2)]


@one_of_each
def test_events_carry_the_lease_they_belong_to(bench: Workbench) -> None:
    """The next attempt may be claimed, and begin, before the thread of this one says its word."""

    def body(s: Session, ctx: Context[Any]) -> Any:
        bench.note(s, ctx)
        if ctx.job.attempt == 2:
            return None
        # After the real COMMIT, and before the worker hears of it.
        event.listen(s, "after_commit", lambda _: bench.pause(claimed_again))
        return Retry(0)

    def claimed_again() -> bool:
        return bool(bench.job(job_id).attempt == 2)

    job_id = bench.enqueue(bench.handler("t", body))
    ran = bench.run()

    first, second = sorted({e.job.lease for e in ran.events if e.job})
    assert ran.of(job_id, lease=first) == ["started", "will_be_retried"]
    assert ran.of(job_id, lease=second) == ["started", "completed"]


@pytest.fixture
def interruptions() -> Iterator[list[int]]:
    """Grows with each interruption of a worker that does not end in time."""
    made: list[int] = []
    with at("drain_interrupted", made.append):
        yield made


@one_of_each
def test_a_commit_that_meets_the_end_of_the_drain_is_told(
    bench: Workbench, interruptions: list[int]
) -> None:
    """The job is done and gone: that is no lost lease."""

    def body(s: Session, ctx: Context[Any]) -> None:
        bench.note(s, ctx)
        # After the real COMMIT, and before the worker hears of it.
        event.listen(s, "after_commit", lambda _: bench.pause(lambda: interruptions))

    job_id = bench.enqueue(bench.handler("t", body))
    ran = bench.run(until=lambda: bench.job(job_id) is None, shutdown_timeout=0.0)

    assert ran.of(job_id) == ["started", "completed"]


@pytest.mark.parametrize("known", [True, False], ids=["known", "not known yet"])
@one_of_each
def test_the_next_start_is_told_while_a_lost_run_goes_on(bench: Workbench, known: bool) -> None:
    """The old run may go on for hours: what it did will not be told at all."""
    gate = Gate(bench)

    def body(s: Session, ctx: Context[Any]) -> None:
        if ctx.job.attempt == 1:
            gate.hold()

    job_id = bench.enqueue(bench.handler("t", body))

    def judged_lost() -> None:
        gate.wait()
        bench.sql("DELETE FROM bgjob_worker")
        if known:
            wait_until(lambda: bench.sql("SELECT FROM bgjob_worker"))
        bench.sql("UPDATE bgjob_job SET claimed_by = NULL, lease = lease + 1")
        # Nobody tells the worker: it is found at the next look from the head.
        wait_until(lambda: bench.job(job_id) is None)
        gate.open()

    ran = bench.run(during=judged_lost, heartbeat_interval=0.2, lease_timeout=10.0)

    leases = sorted({e.job.lease for e in ran.events if e.job})
    assert ran.of(job_id, lease=leases[0])[:1] == ["started"]
    assert ran.of(job_id, lease=leases[-1]) == ["started", "completed"]


@one_of_each
def test_an_observer_that_raises_is_logged_and_others_hear_all(
    bench: Workbench, caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(Observer):
        def job_started(self, job: JobInfo) -> None:
            raise ValueError("not my day")

        def job_completed(self, job: JobInfo) -> None:  # type: ignore[override]
            """Of another shape than it should be."""

    after = Recorder()
    ids = [bench.enqueue(bench.handler("t", lambda ctx: None, uses_session=False))]

    ran = bench.run(observers=(Bad(), after))

    assert [e.name for e in after.events] == [e.name for e in ran.events]
    assert ran.of(ids[0]) == ["started", "completed"]
    assert "observer 'Bad' failed in job_started" in caplog.text
    assert "observer 'Bad' failed in job_completed" in caplog.text


@pytest.mark.core
@one_of_each
def test_an_observer_that_blocks_does_not_delay_the_worker(bench: Workbench) -> None:
    free = threading.Event()

    class Slow(Observer):
        def job_started(self, job: JobInfo) -> None:
            free.wait(30.0)

    handler = bench.handler("t", lambda ctx: None, uses_session=False)
    ids = [bench.enqueue(handler) for _ in range(100)]

    def all_gone_while_it_blocks() -> None:
        wait_until(lambda: bench.sql("SELECT count(*) FROM bgjob_job")[0][0] == 0, 20.0)
        assert not free.is_set()
        free.set()

    ran = bench.run(during=all_gone_while_it_blocks, observers=(Slow(),))

    assert all(ran.of(job_id) == ["started", "completed"] for job_id in ids)


@one_of_each
def test_a_queue_is_empty_is_told_once_for_each_time(bench: Workbench) -> None:
    handler = bench.handler("t", lambda ctx: None, uses_session=False)
    recorder = Recorder()

    def told() -> int:
        return sum(e.name == "queue_is_empty" for e in recorder.events)

    def ended() -> int:
        return sum(e.name == "job_completed" for e in recorder.events)

    def drive() -> None:
        wait_until(lambda: told() == 1)
        for count in (2, 3):
            bench.enqueue(handler)
            wait_until(lambda: (told(), ended()) == (count, count - 1))  # noqa: B023 - at once
        # Several polls later it is still the same emptiness.
        end = time.monotonic() + 0.3
        wait_until(lambda: time.monotonic() > end)

    bench.run(during=drive, observers=(recorder,))

    names = [e.name for e in recorder.events]
    assert names[0] == "queue_is_empty"
    for job in (names[1:4], names[4:]):
        # A poll may find nothing due while the one job still runs, or just after it.
        assert job[0] == "job_started"
        assert sorted(job[1:]) == ["job_completed", "queue_is_empty"]
    assert recorder.events[0].subject == "default"


@one_of_each
def test_a_cut_connection_is_a_worker_error_and_no_job_event(bench: Workbench) -> None:
    """All sessions of the worker are ended again and again while it works."""

    def body(s: Session, ctx: Context[Any]) -> None:
        if ctx.job.headers["n"] % 2:
            bench.note(s, ctx)

    handler = bench.handler("t", body, retry=constant(0.0), max_attempts=None)
    ids = [bench.enqueue(handler, headers={"n": n}) for n in range(150)]

    def cut() -> None:
        for _ in range(5):
            bench.sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE application_name LIKE 'bgjob/%' AND datname = current_database()"
            )
            end = time.monotonic() + 0.2
            wait_until(lambda: time.monotonic() > end)  # noqa: B023 - called at once

    done = lambda: bench.sql("SELECT count(*) FROM bgjob_job")[0][0] == 0  # noqa: E731
    ran = bench.run(during=cut, until=done, deadline=40.0)

    assert ran.named("worker_error")
    assert all(isinstance(e.rest[0], Exception) for e in ran.named("worker_error"))
    for n, job_id in enumerate(ids):
        assert bench.notes(job_id) == (["written"] if n % 2 else [])
        assert ran.of(job_id)[-1] == "completed"
        assert ran.of(job_id).count("completed") == 1


@one_of_each
def test_what_is_told_late_is_told_before_the_stop_returns(bench: Workbench) -> None:
    class Late(Recorder):
        def job_completed(self, job: JobInfo, run: FinishedRun) -> None:
            end = time.monotonic() + 0.01
            wait_until(lambda: time.monotonic() > end)
            super().job_completed(job, run)

    late = Late()
    handler = bench.handler("t", lambda ctx: None, uses_session=False)
    for _ in range(30):
        bench.enqueue(handler)

    bench.run(observers=(late,))

    assert sum(e.name == "job_completed" for e in late.events) == 30


class Claims(Witness):
    """Looks at each claimed job, and hears of unknown types and of the jobs of errors."""

    def __init__(self, bench: Workbench) -> None:
        super().__init__(bench)
        self.errors: list[tuple[str, BaseException]] = []
        self.runs: list[FinishedRun] = []

    def job_claimed(self, job: JobInfo) -> None:
        # Its handler may be done by now, but what was claimed is never as it was enqueued.
        self._look("claimed", job)

    def job_type_unknown(self, job: JobInfo, run: FinishedRun) -> None:
        self._look("type_unknown", job)
        self.runs.append(run)

    def job_error(self, job: JobInfo, error: BaseException) -> None:
        self.errors.append((job.id, error))


@one_of_each
def test_a_claim_is_told_after_its_commit_before_the_start(bench: Workbench) -> None:
    gate = Gate(bench)
    job_id = bench.enqueue(bench.handler("t", lambda ctx: gate.hold(), uses_session=False))
    witness = Claims(bench)

    def during() -> None:
        gate.wait()
        wait_until(lambda: witness.saw.get(job_id), what="the claim to be told")
        gate.open()

    bench.run(observers=(witness,), during=during)

    claimed, started, completed = witness.saw[job_id]
    assert claimed == ("claimed", "running 1")
    assert (started, completed) == (("started", 1), ("completed", "gone"))


@one_of_each
def test_each_job_of_a_large_claim_is_told_once(bench: Workbench) -> None:
    handler = bench.handler("t", lambda ctx: None, uses_session=False)
    ids = {bench.enqueue(handler) for _ in range(50)}
    witness = Claims(bench)

    bench.run(observers=(witness,), hold_timeout=60.0)

    names = {job_id: [name for name, _ in saw] for job_id, saw in witness.saw.items()}
    assert names == {job_id: ["claimed", "started", "completed"] for job_id in ids}


@one_of_each
def test_an_unknown_type_is_told_when_it_is_put_off(bench: Workbench) -> None:
    bench.handler("known", lambda ctx: None, uses_session=False)
    job_id = bench.jobs.enqueue(bench.outside, "tomorrow", queue="default").id
    witness = Claims(bench)

    bench.run(observers=(witness,), until=lambda: len(witness.saw.get(job_id, ())) > 1)

    (_, claim), told = witness.saw[job_id][:2]
    assert claim in ("running 1", "queued 0")
    assert told == ("type_unknown", "queued 0")
    assert (witness.runs[0].delay, witness.runs[0].error) == (1.0, None)


@one_of_each
def test_an_error_that_is_about_a_job_names_it(bench: Workbench) -> None:
    """A trigger refuses the settlement of one; the others' errors have no job."""
    handler = bench.handler("t", lambda ctx: None, uses_session=False)
    good, bad = bench.enqueue(handler, id="good"), bench.enqueue(handler, id="bad")
    witness = Claims(bench)

    refusal = ExitStack()

    def during() -> None:
        wait_until(lambda: witness.errors, what="the refusal to be told")
        wait_until(lambda: bench.job(good) is None, what="the end of the other one")
        refusal.close()

    with refusal:
        refused = "IF OLD.id = 'bad' THEN RAISE 'not now'; END IF; RETURN OLD;"
        refusal.enter_context(bench.trigger(refused))
        ran = bench.run(observers=(witness,), during=during)

    assert {job_id for job_id, _ in witness.errors} == {bad}
    assert witness.errors[0][1] in [event.rest[0] for event in ran.named("worker_error")]


def test_what_nobody_hears_is_not_even_made() -> None:
    """No JobInfo of a claim, and nothing in the queue."""
    events = Events([Recorder()])
    for name in ("job_claimed", "job_type_unknown", "job_error"):
        assert not events.wants(name)
    assert Events([Claims(None)]).wants("job_claimed")  # type: ignore[arg-type]


# ---- pure ----------------------------------------------------------------------------------------


def test_events_are_dropped_rather_than_waited_for(
    tune: Tune, caplog: pytest.LogCaptureFixture
) -> None:
    tune(telemetry, MAX_WAITING_EVENTS=3)
    busy, free, recorder = threading.Event(), threading.Event(), Recorder()

    class Slow(Observer):
        def queue_is_empty(self, queue: str) -> None:
            busy.set()
            free.wait(10.0)

    events = Events([Slow(), recorder])
    events.start()
    events.emit("queue_is_empty", "0")
    assert busy.wait(10.0)
    for n in range(1, 10):
        events.emit("queue_is_empty", str(n))
    free.set()
    events.stop(timeout=10.0)

    assert [e.subject for e in recorder.events] == ["0", "1", "2", "3"]
    assert caplog.text.count("dropping") == 1


@pytest.mark.parametrize("ends", [SystemExit, KeyboardInterrupt, asyncio.CancelledError])
def test_an_observer_can_not_end_the_thread_of_all(
    ends: type[BaseException], caplog: pytest.LogCaptureFixture
) -> None:
    class Bad(Observer):
        def queue_is_empty(self, queue: str) -> None:
            raise ends

    after = Recorder()
    events = Events([Bad(), after])
    events.start()
    for queue in "ab":
        events.emit("queue_is_empty", queue)
    events.stop(timeout=10.0)

    assert [e.subject for e in after.events] == ["a", "b"]
    assert caplog.text.count("observer 'Bad' failed in queue_is_empty") == 2


def test_an_observer_that_never_returns_does_not_hold_the_stop() -> None:
    free = threading.Event()

    class Stuck(Observer):
        def queue_is_empty(self, queue: str) -> None:
            free.wait(60.0)

    events = Events([Stuck()])
    events.start()
    events.emit("queue_is_empty", "q")
    before = time.monotonic()
    events.stop(timeout=0.05)
    assert time.monotonic() - before < 10.0
    free.set()


class Failures(Observer):
    """Keeps what became of each run."""

    def __init__(self) -> None:
        self.runs: dict[str, FinishedRun] = {}

    def job_will_be_retried(self, job: JobInfo, run: FinishedRun) -> None:
        self.runs[job.type] = run

    def job_moved_to_dlq(self, job: JobInfo, run: FinishedRun) -> None:
        self.runs[job.type] = run

    def job_completed(self, job: JobInfo, run: FinishedRun) -> None:
        self.runs[job.type] = run


@pytest.mark.parametrize("uses_session", [True, False])
@one_of_each
def test_observers_get_the_exception_itself(bench: Workbench, uses_session: bool) -> None:
    broken, gone = ValueError("broken"), KeyError("gone")

    def raise_it(*args: Any) -> None:
        raise broken

    def blame_it(*args: Any) -> None:
        raise Retry(1000, "later") from broken

    def give_up(*args: Any) -> Any:
        return MoveToDlq(gone)

    bodies = {"raise": raise_it, "blame": blame_it, "dlq": give_up, "fine": lambda *args: None}
    for name, body in bodies.items():
        bench.enqueue(bench.handler(name, body, uses_session=uses_session))
    told = Failures()

    bench.run(observers=(told,))

    found = told.runs
    assert found["raise"].exception is broken
    assert found["raise"].error is not None
    assert found["raise"].error.startswith("ValueError: broken")
    assert (found["blame"].exception, found["blame"].error) == (broken, "later")
    assert (found["blame"].delay, found["dlq"].delay) == (1000.0, None)
    assert found["dlq"].exception is gone
    assert (found["fine"].exception, found["fine"].error, found["fine"].delay) == (None,) * 3
    assert all(0 <= run.seconds < 60 for run in found.values())


def test_exceptions_wait_for_those_who_want_them_only() -> None:
    class Plain(Observer):
        wants_exceptions = False

        def job_will_be_retried(self, job: JobInfo, run: FinishedRun) -> None:
            seen.append(run)

    seen: list[FinishedRun] = []
    error = ValueError("x")
    job = job_info(claimed())
    settlement = Settlement(Kind.RETRY, delay=1.0, error="x", exception=error)
    for observers, expected in ([Plain()], None), ([Plain(), Observer()], error):
        events = Events(observers)
        events.start()
        events.settled(job, settlement, 0.5)
        events.stop(timeout=60.0)
        assert seen.pop() == FinishedRun(0.5, 1.0, "x", expected)


def test_nobody_to_tell_costs_no_thread() -> None:
    before = threading.active_count()
    events = Events([])
    events.start()
    events.emit("queue_is_empty", "q")
    assert threading.active_count() == before
    events.stop(timeout=1.0)


def test_all_events_exist_on_the_base_class_and_do_nothing() -> None:
    for name in (
        *("job_started", "job_lease_lost", "queue_is_empty", "worker_error"),
        *("job_claimed", "job_type_unknown", "job_error"),
        *("job_completed", "job_rescheduled", "job_will_be_retried", "job_moved_to_dlq"),
    ):
        assert callable(getattr(Observer(), name))
    Observer().queue_is_empty("q")
