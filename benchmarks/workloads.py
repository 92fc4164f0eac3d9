"""The workloads of the comparison: those of ``bench`` with yardsticks, for peers, and more."""

import contextlib
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

from sqlalchemy.exc import DBAPIError

from benchmarks.arena import PeerArena
from benchmarks.server_cpu import server_cpu
from benchmarks.situations import IDLE, cost, lasting, pulsed, w13, w14, w15, w16, w17, w18, w19
from sqlalchemy_bgjob._bench.arena import FULL_DRAIN, Arena, Measurement
from sqlalchemy_bgjob._bench.program import Answer, BenchError
from sqlalchemy_bgjob._bench.times import cpu_share, percentile, rate, reached, tenths, waits
from sqlalchemy_bgjob._bench.workloads import (
    KINDS,
    WAYS,
    Variants,
    Workload,
    fill_and_drain,
    w1,
    w2,
    w3,
    w4,
    w5,
    w7,
)

OF_PEERS: Final[Variants] = {"": {}}
"""They are used in one way only."""
PYTHON: Final = ("pgqueuer", "procrastinate")
"""Those that serve many queues by one worker, or start as quickly as it takes for fifty."""

# ---- those of bench -------------------------------------------------------------------------


def w1_by_hand(arena: Arena) -> Iterator[Measurement]:
    """Enqueue: one job, one commit, one client; the same by hand."""
    by_hand = {
        "Session by hand": {"through": "core-session"},
        "Connection by hand": {"through": "core-connection"},
    }
    yield from w1(arena, {**WAYS, **by_hand})


def w3_and_statements(arena: Arena) -> Iterator[Measurement]:
    """Drain by one process; by the statements alone, without a worker."""
    yield from w3(arena)
    jobs = arena.sized(FULL_DRAIN)
    arena.program.call("bulk", jobs=jobs)
    arena.checkpoint()
    answer = arena.program.call("raw")
    arena.check_count(jobs, [{"count": answer["jobs"]}])
    yield arena.measured("W3", jobs, "statements alone", jobs_per_second=jobs / answer["seconds"])
    arena.clean()


def w3_of_peers(arena: Arena) -> Iterator[Measurement]:
    """Drain by one process."""
    variants: Variants = {"": {}, "1 KiB arg": {"arg_bytes": 1024}}
    for variant, options in variants.items():
        jobs, answers = fill_and_drain(arena, **options)
        yield arena.measured("W3", jobs, variant, jobs_per_second=rate(answers))


def w7_of_peers(arena: PeerArena) -> Iterator[Measurement]:
    """Drain beside an open transaction: the first and the last tenth."""
    jobs = arena.sized(100_000)
    with arena.pinned():
        arena.program.call("bulk", jobs=jobs)
        answer = arena.drain(jobs)[0]
    # When the last batches have begun, nothing more is fetched. Where jobs are done in batches,
    # it is therefore the tenth before the last one, from the beginning of one batch to another.
    until = jobs - max(jobs // 10, 2) if arena.batched else jobs
    yield arena.measured("W7", jobs, "", **tenths(answer, jobs, until=until))
    arena.clean()


# ---- more -----------------------------------------------------------------------------------


def w1b(arena: Arena) -> Iterator[Measurement]:
    """Enqueue: 16 connections beside a worker, commits of 1 ms; with and without wake-up."""
    processes, clients = 4, 4
    jobs = arena.sized(20_000, least=160) // (processes * clients) * clients
    program = arena.program
    if _may_set(arena, "commit_delay"):
        slowly = {**program.environment, "PGOPTIONS": "-c commit_delay=1000"}
        program = replace(program, environment=slowly)
    for variant, notify in (("wake-up", True), ("no wake-up", False)):
        arena.checkpoint()
        with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            worker = stack.enter_context(arena.program.start("work", latency=True))
            worker.wait_until_ready()
            go = Path(folder, "go")
            options = {"jobs": jobs, "clients": clients, "notify": notify, "go_file": str(go)}
            producers = [
                stack.enter_context(program.start("together", **options)) for _ in range(processes)
            ]
            for producer in producers:
                producer.wait_until_ready()
            go.touch()
            sent = [producer.answer(600) for producer in producers]
            arena.wait_until_drained(jobs * processes, [worker])
            arena.check_count(jobs * processes, [worker.stop()])
        seconds = max(answer["ended"] for answer in sent) - min(a["began"] for a in sent)
        yield arena.measured(
            "W1b", jobs * processes, variant, jobs_per_second=jobs * processes / seconds
        )
        arena.clean()


def _may_set(arena: Arena, setting: str) -> bool:
    """Whether this role may change a parameter of its sessions."""
    try:
        arena.scalar(f"SELECT set_config('{setting}', '0', false)")
    except DBAPIError:
        return False
    return True


def w6(arena: Arena) -> Iterator[Measurement]:
    """Depth: the first jobs of a small and of a big backlog; a poll where all are scheduled."""
    jobs, backlog = arena.sized(10_000), arena.sized(1_000_000)
    small = _first_of(arena, jobs, jobs)
    big = _first_of(arena, backlog, jobs)
    yield arena.measured("W6", jobs, "small backlog", jobs_per_second=small)
    yield arena.measured("W6", backlog, "big backlog", jobs_per_second=big, ratio=big / small)
    day = 86_400
    arena.program.call("fill", jobs=backlog, delay=day, priorities=5)
    buffers = arena.program.call("poll")["buffers"]
    yield arena.measured("W6", backlog, "idle poll", buffers=sum(buffers.values()))
    arena.clean()


def _first_of(arena: Arena, backlog: int, jobs: int) -> float:
    """Jobs a second of the first so many of a backlog."""
    arena.program.call("fill", jobs=backlog)
    arena.checkpoint()
    with arena.program.start("work", enough=jobs) as worker:
        answer = worker.answer(600)
    arena.clean()
    return (jobs - 1) / (reached(answer, jobs) - float(answer["first"]))


def w7b(arena: Arena) -> Iterator[Measurement]:
    """Pick-up at 500 jobs/s beside an open transaction, from transactions of 300 ms."""
    seconds = lasting(arena, 120)
    window = seconds / 12
    with arena.pinned():
        found, _ = _streamed(arena, rate=500, per_commit=10, held=0.3, seconds=seconds)
    begin, end = found[0][0], found[-1][0]
    early = [wait for at, wait in found if at <= begin + window]
    late = [wait for at, wait in found if at >= end - window]
    yield arena.measured(
        "W7b",
        len(found),
        "AsyncWorker",
        p50_ms=percentile((wait for _, wait in found), 0.5) * 1000,
        p99_ms=percentile((wait for _, wait in found), 0.99) * 1000,
        first_p99_ms=percentile(early, 0.99) * 1000,
        last_p99_ms=percentile(late, 0.99) * 1000,
    )
    arena.clean()


def _streamed(
    arena: Arena, *, seconds: float, **options: Any
) -> tuple[list[tuple[float, float]], dict[str, Answer]]:
    """Enqueue steadily beside one worker: the waits, and what both have answered."""
    arena.checkpoint()
    with arena.program.start("work", latency=True) as worker:
        worker.wait_until_ready()
        # In a process, since its threads would outlive an interrupted harness.
        with arena.program.start("stream", seconds=seconds, **options) as streaming:
            producer = streaming.answer(seconds + 120)
        arena.wait_until_drained(len(producer["sent"]), [worker])
        answer = worker.stop()
    return waits(producer["sent"], [answer]), {"producer": producer, "worker": answer}


def w8(arena: Arena) -> Iterator[Measurement]:
    """A handler that writes a row through ctx.session, against the same by hand."""
    jobs = arena.sized(3_000)
    arena.program.call("bulk", jobs=jobs, kind="threads", handler="session")
    worker = rate(arena.drain(jobs, kind="threads", handler="session", concurrency=1))
    _check_effects(arena, jobs)
    arena.clean()
    arena.program.call("bulk", jobs=jobs, kind="threads", handler="session")
    arena.checkpoint()
    answer = arena.program.call("by_hand")
    _check_effects(arena, jobs)
    by_hand = jobs / answer["seconds"]
    yield arena.measured("W8", jobs, "Worker", jobs_per_second=worker, ratio=worker / by_hand)
    yield arena.measured("W8", jobs, "by hand", jobs_per_second=by_hand)
    arena.clean()


def w8b(arena: Arena) -> Iterator[Measurement]:
    """A handler that writes a row through ctx.session: a call for each job, and one for 100."""
    jobs = arena.sized(10_000)
    for kind, options in KINDS.items():
        for name, handler in (("one a call", "session"), ("100 a call", "chunks")):
            arena.program.call("bulk", jobs=jobs, handler=handler, **options)
            answers = arena.drain(jobs, handler=handler, concurrency=10, **options)
            _check_effects(arena, jobs)
            found = {"jobs_per_second": rate(answers), "worker_cpu": cpu_share(answers[0])}
            yield arena.measured("W8b", jobs, f"{kind}, {name}", **found)
            arena.clean()


def _check_effects(arena: Arena, jobs: int) -> None:
    schema = arena.program.options.get("schema")
    table = f"{schema}.bench_effect" if schema else "bench_effect"
    rows = arena.scalar(f"SELECT count(*) FROM {table}")
    if rows != jobs:
        raise BenchError(f"{jobs} handlers have written {rows} rows")


def w9(arena: Arena) -> Iterator[Measurement]:
    """Handlers that await 1 ms, 256 at once: ideally 256,000 jobs/s."""
    jobs, slots = arena.sized(FULL_DRAIN), 256
    arena.program.call("bulk", jobs=jobs, handler="sleep")
    answer = arena.drain(jobs, handler="sleep", concurrency=slots)[0]
    found = rate([answer])
    yield arena.measured(
        "W9",
        jobs,
        "AsyncWorker",
        jobs_per_second=found,
        share_of_ideal=found / (slots / 0.001),
        worker_cpu=cpu_share(answer),
    )
    arena.clean()


def w10(arena: Arena) -> Iterator[Measurement]:
    """Steady 2,000 jobs/s: pick-up, and what it costs."""
    seconds = lasting(arena, 60)
    position = "pg_current_wal_lsn() - '0/0'::pg_lsn"
    wal, server = int(arena.scalar(f"SELECT {position}")), server_cpu(arena.engine)
    found, answers = _streamed(arena, rate=2_000, per_commit=20, seconds=seconds)
    wal = int(arena.scalar(f"SELECT {position}")) - wal
    after = server_cpu(arena.engine)
    schema = arena.program.options.get("schema") or "public"
    dead = arena.scalar(
        "SELECT n_dead_tup FROM pg_stat_user_tables"
        f" WHERE relname = 'bgjob_job' AND schemaname = '{schema}'"
    )
    jobs = len(found)
    quarter, _, end = memory(answers["worker"])
    figures = {
        "jobs_per_second": jobs / answers["producer"]["seconds"],
        "p50_ms": percentile((wait for _, wait in found), 0.5) * 1000,
        "p99_ms": percentile((wait for _, wait in found), 0.99) * 1000,
        "wal_bytes": wal / jobs,
        "dead_tuples": float(dead or 0),
        "worker_us": answers["worker"]["cpu_seconds"] / jobs * 1e6,
        "producer_us": answers["producer"]["cpu_seconds"] / jobs * 1e6,
        "rss_mib": end / 2**20,
        "rss_growth": end / quarter,
    }
    if server is not None and after is not None:
        figures["server_us"] = (after - server) / jobs * 1e6
    yield arena.measured("W10", jobs, "AsyncWorker", **figures)
    arena.clean()


def memory(answer: Answer) -> tuple[int, int, int]:
    """Resident bytes of a worker at a quarter, at half and at the end of its work."""
    begin, end = answer["first"], answer["last"]
    inside = [s for s in answer["samples"] if begin <= s[0] <= end] or answer["samples"]
    quarter, half = (inside[len(inside) // part] for part in (4, 2))
    return quarter[2], half[2], inside[-1][2]


def w11(arena: Arena) -> Iterator[Measurement]:
    """A tenth of the handlers take 10 s, the others 1 ms; two workers with slots for all slow."""
    jobs = arena.sized(1_000)
    slow = min(lasting(arena, 10, least=0.2), 10.0)
    options: dict[str, Any] = {"handler": "mixed", "concurrency": max(jobs // 10, 1)}
    arena.checkpoint()
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(arena.program.start("work", latency=True, **options))
            for _ in range(2)
        ]
        for worker in workers:
            worker.wait_until_ready()
        sent = arena.program.call("mixed", jobs=jobs, slow_every=10, slow=slow, **options)
        arena.wait_until_drained(jobs, workers)
        answers = [worker.stop() for worker in workers]
    arena.check_count(jobs, answers)
    found = waits([(number, sent["ended"]) for number in range(jobs)], answers)
    yield arena.measured("W11", jobs, "AsyncWorker", longest_wait_s=max(wait for _, wait in found))
    arena.clean()


def w12(arena: Arena, variants: Variants = KINDS) -> Iterator[Measurement]:
    """100 queues: what they cost while they are idle, and pick-up at a job a second in each."""
    queues, seconds = max(arena.sized(100), 2), lasting(arena, 10)
    for variant, options in variants.items():
        arena.checkpoint()
        given = {"queues": queues, "concurrency": 2, "latency": True, **options}
        with arena.program.start("work", **given) as worker:
            worker.wait_until_ready()
            idle = cost(arena, worker, lasting(arena, IDLE))
            jobs = round(queues * seconds)
            found = pulsed(arena, [worker], jobs, 1 / queues, queues=queues)
        yield arena.measured("W12", jobs, variant, **found, **idle)
        arena.clean()


@dataclass(frozen=True, slots=True)
class Compared(Workload):
    """A workload of the comparison, and what other queues run for it, if they take part.

    Attributes:
        of_peers: What they run.
        peers: Those that take part, if not all do.
    """

    of_peers: Callable[[PeerArena], Iterator[Measurement]] | None = None
    peers: tuple[str, ...] | None = None


WORKLOADS: Final[Mapping[str, Compared]] = {
    compared.name: compared
    for compared in (
        Compared("W1", w1_by_hand, partial(w1, variants=OF_PEERS)),
        Compared("W1b", w1b),
        Compared("W2", w2, w2),
        Compared("W3", w3_and_statements, w3_of_peers),
        Compared("W4", w4, partial(w4, variants=OF_PEERS)),
        Compared("W5", w5, partial(w5, variants=OF_PEERS)),
        Compared("W6", w6),
        Compared("W7", w7, w7_of_peers),
        Compared("W7b", w7b),
        Compared("W8", w8),
        Compared("W8b", w8b),
        Compared("W9", w9),
        Compared("W10", w10),
        Compared("W11", w11),
        Compared("W12", w12, partial(w12, variants=OF_PEERS), PYTHON),
        Compared("W13", w13, w13, PYTHON),
        Compared("W14", w14, w14),
        Compared("W15", w15, w15),
        Compared("W16", w16, w16, ("graphile", "pgboss")),
        Compared("W17", w17, w17, PYTHON),
        Compared("W18", w18),
        Compared("W19", w19),
    )
}
