"""The threads in which handlers run: as many as are needed, used again, and none waited for."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import create_engine

from sqlalchemy_bgjob import Context, Observer, Worker, enqueue_many
from sqlalchemy_bgjob._worker.threads import Threads
from support import wait_until
from support.tables import new_queue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

DEADLINE = 20.0


@pytest.fixture
def threads() -> Iterator[Threads]:
    threads = Threads()
    yield threads
    threads.close()
    wait_until(lambda: threads._idle == 0)


def idle(threads: Threads, number: int) -> None:
    wait_until(lambda: threads._idle == number and not threads._work, what=f"{number} idle threads")


@pytest.mark.parametrize("number", [1, 2, 50])
def test_all_work_runs_at_the_same_time(threads: Threads, number: int) -> None:
    """None waits for another: each piece of work waits here for all the others."""
    together = threading.Barrier(number + 1)

    for _ in range(number):
        threads.start(lambda: together.wait(DEADLINE) and None)

    together.wait(DEADLINE)
    assert threads._count == number


def test_idle_threads_are_used_again(threads: Threads) -> None:
    names = set()

    for _ in range(30):
        threads.start(lambda: names.add(threading.current_thread().name))
        idle(threads, 1)

    assert names == {"bgjob-handler-1"}


def test_no_more_threads_than_run_at_once(threads: Threads) -> None:
    for _ in range(5):
        together = threading.Barrier(4)
        for _ in range(3):
            threads.start(lambda barrier=together: barrier.wait(DEADLINE) and None)
        together.wait(DEADLINE)
        idle(threads, 3)

    assert threads._count == 3


def test_work_beside_a_notified_thread_gets_a_thread(
    threads: Threads,
) -> None:
    """One idle thread and two pieces of work that need each other."""
    threads.start(lambda: None)
    idle(threads, 1)
    together = threading.Barrier(3)

    for _ in range(2):
        threads.start(lambda: together.wait(DEADLINE) and None)

    together.wait(DEADLINE)
    assert threads._count == 2


def test_each_piece_of_work_runs_once_whoever_starts_it(threads: Threads) -> None:
    ran: list[tuple[int, int]] = []

    def starter(number: int) -> None:
        for n in range(200):
            threads.start(lambda: ran.append((number, n)))  # noqa: B023 - see below

    # The work of one starter sees its later numbers; what counts is how often it ran.
    starters = [threading.Thread(target=starter, args=(number,)) for number in range(8)]
    for one in starters:
        one.start()
    for one in starters:
        one.join(DEADLINE)

    wait_until(lambda: len(ran) >= 1_600, DEADLINE)
    wait_until(lambda: not threads._work and threads._idle == threads._count, DEADLINE)
    assert len(ran) == 1_600


def test_a_failure_of_ours_is_logged_and_the_thread_goes_on(
    threads: Threads, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise RuntimeError("ours")

    with caplog.at_level(logging.ERROR, "sqlalchemy_bgjob"):
        threads.start(fail)
        idle(threads, 1)

    assert "a run ended without a settlement" in caplog.text
    assert "ours" in caplog.text
    done = threading.Event()
    threads.start(done.set)
    assert done.wait(DEADLINE)
    assert threads._count == 1


def test_the_process_waits_for_none_of_them(threads: Threads) -> None:
    daemons = []

    threads.start(lambda: daemons.append(threading.current_thread().daemon))

    wait_until(lambda: daemons)
    assert daemons == [True]


def test_close_ends_idle_threads_and_others_after_their_work() -> None:
    threads = Threads()
    begun, go = threading.Event(), threading.Event()
    found: list[threading.Thread] = []

    def work() -> None:
        found.append(threading.current_thread())
        begun.set()
        go.wait(DEADLINE)

    threads.start(work)
    assert begun.wait(DEADLINE)
    threads.start(lambda: found.append(threading.current_thread()))
    idle(threads, 1)

    threads.close()

    found[1].join(DEADLINE)
    assert not found[1].is_alive()
    assert found[0].is_alive()
    go.set()
    found[0].join(DEADLINE)
    assert not found[0].is_alive()


def test_work_that_comes_after_close_still_runs() -> None:
    """A handler's end may start the next one while the worker is closing."""
    threads = Threads()
    threads.close()
    done = threading.Event()

    threads.start(done.set)

    assert done.wait(DEADLINE)
    wait_until(lambda: threads._idle == 0)


def test_what_has_run_is_not_held_on_to(threads: Threads) -> None:
    """An idle thread must not keep a job and its arg alive."""
    import gc
    import weakref

    class Big:
        def __call__(self) -> None:
            pass

    big = Big()
    reference = weakref.ref(big)
    threads.start(big)
    idle(threads, 1)

    del big
    gc.collect()

    assert reference() is None


# ---- when the system has no thread left ----------------------------------------------------------


@pytest.fixture
def allow(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Says how many more threads for handlers can be started."""
    left = [1_000]
    start = threading.Thread.start

    def start_or_fail(self: threading.Thread) -> None:
        if self.name.startswith("bgjob-handler"):
            if left[0] <= 0:
                raise RuntimeError("can't start new thread")
            left[0] -= 1
        start(self)

    monkeypatch.setattr(threading.Thread, "start", start_or_fail)
    return lambda number: left.__setitem__(0, number)


def test_without_a_new_thread_work_waits_for_one_of_ours(
    threads: Threads, allow: Callable[[int], None]
) -> None:
    go = threading.Event()
    ran: list[int] = []
    allow(1)
    threads.start(lambda: go.wait(DEADLINE) and None)

    for number in range(3):
        threads.start(lambda number=number: ran.append(number))
    assert ran == []
    go.set()

    wait_until(lambda: ran == [0, 1, 2])
    assert threads._count == 1


def test_without_any_thread_the_work_is_refused(
    threads: Threads, allow: Callable[[int], None]
) -> None:
    """And is not done later, when there is one again: whoever was refused has gone on."""
    ran: list[str] = []
    allow(0)
    with pytest.raises(RuntimeError, match="can't start new thread"):
        threads.start(lambda: ran.append("refused"))

    allow(1)
    threads.start(lambda: ran.append("taken"))

    idle(threads, 1)
    assert ran == ["taken"]


@pytest.mark.parametrize("number", [0, 2])
def test_a_worker_outlives_a_time_without_threads(
    engine: Engine, database_url: str, allow: Callable[[int], None], number: int
) -> None:
    """Jobs that can't be started go back, and run when there are threads again."""
    jobs = new_queue()
    jobs.metadata.create_all(engine)
    ran: list[tuple[str, int]] = []
    errors: list[str] = []

    @jobs.handler("t", session=False)
    def t(ctx: Context[Any]) -> None:
        ran.append((ctx.job.id, ctx.job.attempt))

    class Watcher(Observer):
        def worker_error(self, error: BaseException) -> None:
            errors.append(str(error))

    own = create_engine(database_url, pool_size=12)
    allow(number)
    with Worker(jobs, own, queues={"default": 5}, observers=[Watcher()]):
        ids = [f"{n:02}" for n in range(20)]
        enqueue_many(engine, t, [None] * 20, ids=ids)
        if number == 0:
            wait_until(lambda: len(errors) >= 3)
            assert ran == []
            allow(5)
        wait_until(lambda: len(ran) >= 20, 30)
    own.dispose()

    assert sorted(ran) == [(job_id, 1) for job_id in ids]
    assert set(errors) <= {"can't start new thread"}


WAITS = """
import faulthandler
import signal
import sys
import time

from sqlalchemy import create_engine

from sqlalchemy_bgjob._worker.threads import ThreadRuntime

wakes, every, seconds = sys.argv[1] == "wakes", float(sys.argv[2]), float(sys.argv[3])
runtime = ThreadRuntime(create_engine("postgresql+psycopg://"))
signals = waits = 0
longest = 0.0


def handle(*_):
    global signals
    signals += 1
    if wakes:
        runtime.wake()
    busy_until = time.perf_counter() + (0.0 if wakes else 0.001)
    while time.perf_counter() < busy_until:
        pass


faulthandler.dump_traceback_later(20, exit=True)
signal.signal(signal.SIGALRM, handle)
signal.setitimer(signal.ITIMER_REAL, every, every)
ends = time.monotonic() + 1.0
while (begun := time.monotonic()) < ends:
    runtime.wait(seconds)
    longest = max(longest, time.monotonic() - begun)
    waits += 1
signal.setitimer(signal.ITIMER_REAL, 0)
print(signals, waits, longest)
"""


@pytest.mark.parametrize(
    ("handler", "every", "seconds"),
    [("wakes", 0.001, 0.0001), ("does not wake", 0.017, 0.005)],
)
def test_a_wait_in_the_main_thread_ends_whenever_a_signal_comes(
    handler: str, every: float, seconds: float
) -> None:
    """It may come while the wait takes its locks, and take all the time that is left of it."""
    done = subprocess.run(
        [sys.executable, "-c", WAITS, handler, str(every), str(seconds)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 0, done.stderr
    signals, waits, longest = map(float, done.stdout.split())
    assert signals >= 25
    assert waits >= 50
    assert longest < 1.0
