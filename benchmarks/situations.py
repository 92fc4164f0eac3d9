"""Workloads of situations that applications meet: a slow line, an outage, a fleet, a start."""

import contextlib
import time
from collections.abc import Iterator
from statistics import median
from typing import Any, Final

from benchmarks.line import Line
from benchmarks.server_cpu import server_cpu
from sqlalchemy_bgjob._bench.arena import Arena, Measurement
from sqlalchemy_bgjob._bench.program import Running
from sqlalchemy_bgjob._bench.times import percentile, pick_up, rate, waits
from sqlalchemy_bgjob._bench.workloads import fill_and_drain

ROUND_TRIP: Final = 0.004
STARTS: Final = 3
OUTAGES: Final = 3
OUTAGE: Final = 8.0
"""Seconds: long enough for backoffs to have grown."""
COUNTED_LATE: Final = 11.0
"""Seconds until the server's counters have all that a session did before it fell idle."""
IDLE: Final = 20.0
"""Seconds of an idle worker that are measured: of what it does, much comes every five or six."""
_TRANSACTIONS: Final = (
    "SELECT xact_commit + xact_rollback FROM pg_stat_database WHERE datname = current_database()"
)
_SESSIONS: Final = (
    "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
    " AND backend_type = 'client backend'"
)


def lasting(arena: Arena, full: float, least: float = 0.5) -> float:
    """How many seconds instead of *full*."""
    return max(least, full * arena.scale)


def cost(arena: Arena, worker: Running, seconds: float) -> dict[str, float]:
    """What a worker costs that has nothing to do."""
    time.sleep(min(COUNTED_LATE, seconds))
    cpu, server = worker.cpu(), server_cpu(arena.engine)  # first: it asks the server too
    begun, before = time.monotonic(), int(arena.scalar(_TRANSACTIONS))
    time.sleep(seconds)
    took, after = time.monotonic() - begun, int(arena.scalar(_TRANSACTIONS))
    found = {"idle_per_second": (after - before - 1) / took}  # one of them is this count's own
    for name, now, then in (
        ("idle_worker", worker.cpu(), cpu),
        ("idle_server", server_cpu(arena.engine), server),
    ):
        if now is not None and then is not None:
            found[name] = (now - then) / took
    return found


def pulsed(
    arena: Arena, workers: list[Running], jobs: int, interval: float, **options: Any
) -> dict[str, float]:
    """Enqueue a job each interval, end the workers; the median pick-up and the 99th percentile."""
    sent = arena.program.call("pulse", jobs=jobs, interval=interval, **options)["sent"]
    arena.wait_until_drained(jobs, workers)
    answers = [worker.stop() for worker in workers]
    arena.check_count(jobs, answers)
    return pick_up(sent, answers)


def w13(arena: Arena) -> Iterator[Measurement]:
    """20 queues behind a round trip of 4 ms: idle cost, and pick-up at a job a second in each."""
    queues, seconds = 20, lasting(arena, 10)
    jobs = max(round(queues * seconds), queues)
    arena.checkpoint()
    with Line(arena.program, round_trip=ROUND_TRIP) as line:
        options = {"queues": queues, "concurrency": 2, "latency": True}
        with line.far.start("work", **options) as worker:
            worker.wait_until_ready()
            idle = cost(arena, worker, lasting(arena, IDLE))
            # The producer is near: its own round trips are not meant.
            found = pulsed(arena, [worker], jobs, 1 / queues, queues=queues)
    yield arena.measured("W13", jobs, "", **found, **idle)
    arena.clean()


def w14(arena: Arena) -> Iterator[Measurement]:
    """An idle worker of one queue: what it costs the server."""
    arena.checkpoint()
    others = int(arena.scalar(_SESSIONS))
    with arena.program.start("work", latency=True) as worker:
        worker.wait_until_ready()
        idle = cost(arena, worker, lasting(arena, IDLE))
        sessions = int(arena.scalar(_SESSIONS)) - others
        worker.stop()
    yield arena.measured("W14", 0, "", sessions=float(sessions), **idle)
    arena.clean()


def w15(arena: Arena) -> Iterator[Measurement]:
    """From the start of a worker's process to the start of the first job."""
    took = []
    for _ in range(1 + STARTS):
        arena.program.call("bulk", jobs=1)
        begun = time.monotonic()
        with arena.program.start("work") as worker:
            arena.wait_until_drained(1, [worker])
            took.append(worker.stop()["first"] - begun)
        arena.clean()
    # The first one may have to compile what an installed package brings compiled.
    yield arena.measured("W15", 1, "", start_s=median(took[1:]))


def w16(arena: Arena) -> Iterator[Measurement]:
    """From the end of an outage of 8 s to the start of a job that waits."""
    took = []
    for _ in range(OUTAGES):
        with Line(arena.program) as line, line.far.start("work", latency=True) as worker:
            worker.wait_until_ready()
            line.cut()
            time.sleep(lasting(arena, OUTAGE))
            arena.program.call("pulse", jobs=1)
            begun = time.monotonic()
            line.mend()
            arena.wait_until_drained(1, [worker])
            took.append(worker.stop()["first"] - begun)
        arena.clean()
    yield arena.measured("W16", OUTAGES, "", back_s=median(took))


def w17(arena: Arena) -> Iterator[Measurement]:
    """A fleet of 50 idle workers, and a job a second: what a job costs beyond that, and pick-up."""
    number, jobs = arena.sized(50, least=3), arena.sized(30, least=5)
    arena.checkpoint()
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(arena.program.start("work", latency=True, concurrency=2))
            for _ in range(number)
        ]
        for worker in workers:
            worker.wait_until_ready()
        late = min(COUNTED_LATE, lasting(arena, COUNTED_LATE))
        # For as long as the jobs take below, so that what the workers do periodically cancels out.
        idle = cost(arena, workers[0], jobs + late)["idle_per_second"]
        begun, before = time.monotonic(), int(arena.scalar(_TRANSACTIONS))
        sent = arena.program.call("pulse", jobs=jobs, interval=1.0)["sent"]
        time.sleep(late)
        took, after = time.monotonic() - begun, int(arena.scalar(_TRANSACTIONS))
        answers = [worker.stop() for worker in workers]
    arena.check_count(jobs, answers)
    yield arena.measured(
        "W17",
        jobs,
        "",
        **pick_up(sent, answers),
        transactions=max((after - before - idle * took) / jobs, 0.0),
    )
    arena.clean()


def w18(arena: Arena) -> Iterator[Measurement]:
    """300 jobs/s for five minutes beside an open transaction: pick-up, and a drain after it."""
    _, answers = fill_and_drain(arena)
    before = rate(answers)
    seconds = lasting(arena, 300)
    jobs = max(round(300 * seconds), 50)
    with arena.pinned():
        with arena.program.start("work", latency=True) as worker:
            worker.wait_until_ready()
            sent = arena.program.call("pulse", jobs=jobs, interval=1 / 300)["sent"]
            arena.wait_until_drained(jobs, [worker])
            found = [wait * 1000 for _, wait in waits(sent, [worker.stop()])]
        backlog = arena.sized(20_000)
        arena.program.call("bulk", jobs=backlog)
        beside = rate(arena.drain(backlog))
    tenth = max(len(found) // 10, 1)
    yield arena.measured(
        "W18",
        jobs,
        "",
        p50_ms=percentile(found, 0.5),
        p99_ms=percentile(found, 0.99),
        first_p99_ms=percentile(found[:tenth], 0.99),
        last_p99_ms=percentile(found[-tenth:], 0.99),
        drain_share=beside / before,
    )
    arena.clean()


def w19(arena: Arena) -> Iterator[Measurement]:
    """32 requests at a time in a web process: pick-up by a worker beside it, and by two in it."""
    seconds = lasting(arena, 15)
    arena.checkpoint()
    with arena.program.start("work", latency=True, concurrency=10) as worker:
        worker.wait_until_ready()
        with arena.program.start("web", seconds=seconds) as process:
            sent = process.answer(seconds + 60)["sent"]
        arena.wait_until_drained(len(sent), [worker])
        beside = pick_up(sent, [worker.stop()])
    yield arena.measured("W19", len(sent), "worker beside", **beside)
    kinds = {"async": "worker in the process", "threads": "worker of threads in it"}
    for kind, name in kinds.items():
        with arena.program.start("web", seconds=seconds, embedded=True, kind=kind) as process:
            found = process.answer(seconds + 60)
        within = pick_up(found["sent"], [found])
        yield arena.measured("W19", len(found["sent"]), name, **within)
    arena.clean()
