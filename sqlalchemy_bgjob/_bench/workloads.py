"""The workloads W1 to W11. Each counts every job, and fails if one is missing or was run twice."""

import contextlib
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from .._process.exits import USAGE, CommandError
from .arena import FULL_DRAIN, Answer, Arena, BenchError, Measurement
from .machine import server_cpu
from .times import cpu_share, ended, memory, percentile, rate, reached, waits


def drain(arena: Arena, jobs: int, *, processes: int = 1, **options: Any) -> list[Answer]:
    """Let workers do all jobs that are there: what each has seen.

    Raises:
        BenchError: Not every job was run exactly once.
    """
    arena.checkpoint()
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(arena.contestant.start("work", **options)) for _ in range(processes)
        ]
        drained_at = arena.wait_until_drained(jobs, workers)
        answers = [worker.stop() for worker in workers]
    _check_count(arena, jobs, answers)
    return [ended(answer, drained_at) for answer in answers] if arena.batched else answers


def _check_count(arena: Arena, jobs: int, answers: Iterable[Answer]) -> None:
    run = sum(answer["count"] for answer in answers)
    if run != jobs:
        raise BenchError(f"{arena.contestant.name} has run {run} of {jobs} jobs")


def w1(arena: Arena) -> Iterator[Measurement]:
    """Enqueue: one job, one commit, one client."""
    jobs = arena.sized(2_000)
    ours = {
        "Session": "session",
        "Session by hand": "core-session",
        "Connection": "connection",
        "Connection by hand": "core-connection",
    }
    for variant, through in (ours if arena.is_ours else {"": ""}).items():
        arena.checkpoint()
        answer = arena.contestant.call("enqueue", jobs=jobs, through=through)
        yield arena.measured("W1", jobs, variant, jobs_per_second=jobs / answer["seconds"])
        arena.clean()


def w1b(arena: Arena) -> Iterator[Measurement]:
    """Enqueue: 16 connections beside a worker, commits of 1 ms; with and without wake-up."""
    processes, clients = 4, 4
    jobs = arena.sized(20_000, least=160) // (processes * clients) * clients
    settings = {"commit_delay": "1000"} if arena.may_set("commit_delay") else {}
    for variant, notify in (("wake-up", True), ("no wake-up", False)):
        arena.checkpoint()
        with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as folder:
            worker = stack.enter_context(arena.contestant.start("work", latency=True))
            worker.wait_until_ready()
            go = Path(folder, "go")
            producers = [
                stack.enter_context(
                    arena.contestant.start(
                        "enqueue",
                        jobs=jobs,
                        clients=clients,
                        through="connection",
                        notify=notify,
                        set=settings,
                        go_file=str(go),
                    )
                )
                for _ in range(processes)
            ]
            for producer in producers:
                producer.wait_until_ready()
            go.touch()
            sent = [producer.answer(600) for producer in producers]
            arena.wait_until_drained(jobs * processes, [worker])
            _check_count(arena, jobs * processes, [worker.stop()])
        seconds = max(answer["ended"] for answer in sent) - min(a["began"] for a in sent)
        yield arena.measured(
            "W1b", jobs * processes, variant, jobs_per_second=jobs * processes / seconds
        )
        arena.clean()


def w2(arena: Arena) -> Iterator[Measurement]:
    """Enqueue: all jobs in one transaction."""
    jobs = arena.sized(100_000)
    arena.checkpoint()
    answer = arena.contestant.call("bulk", jobs=jobs)
    yield arena.measured("W2", jobs, "", jobs_per_second=jobs / answer["seconds"])
    arena.clean()


def w3(arena: Arena) -> Iterator[Measurement]:
    """Drain by one process."""
    ours: dict[str, dict[str, Any]] = {
        "AsyncWorker": {},
        "Worker": {"kind": "threads"},
        "AsyncWorker, 1 KiB arg": {"arg_bytes": 1024},
        "Worker, 1 KiB arg": {"kind": "threads", "arg_bytes": 1024},
        "AsyncWorker, concurrency 10": {"concurrency": 10},
        "Worker, concurrency 10": {"kind": "threads", "concurrency": 10},
    }
    theirs: dict[str, dict[str, Any]] = {"": {}, "1 KiB arg": {"arg_bytes": 1024}}
    for variant, options in (ours if arena.is_ours else theirs).items():
        jobs = arena.drained(FULL_DRAIN)
        arena.contestant.call("bulk", jobs=jobs, **options)
        answers = drain(arena, jobs, **options)
        yield arena.measured(
            "W3",
            jobs,
            variant,
            jobs_per_second=rate(answers),
            **_used_cpu(answers),
        )
        arena.clean()
    if arena.is_ours:
        jobs = arena.drained(FULL_DRAIN)
        arena.contestant.call("bulk", jobs=jobs)
        arena.checkpoint()
        answer = arena.contestant.call("raw")
        _check_count(arena, jobs, [{"count": answer["jobs"]}])
        yield arena.measured(
            "W3", jobs, "statements alone", jobs_per_second=jobs / answer["seconds"]
        )
        arena.clean()


def _used_cpu(answers: Sequence[Answer]) -> dict[str, float]:
    return {"worker_cpu": cpu_share(answers[0])} if "samples" in answers[0] else {}


def w4(arena: Arena) -> Iterator[Measurement]:
    """Drain by two processes."""
    jobs = arena.drained(FULL_DRAIN)
    for variant, options in _kinds(arena).items():
        arena.contestant.call("bulk", jobs=jobs)
        answers = drain(arena, jobs, processes=2, **options)
        yield arena.measured("W4", jobs, variant, jobs_per_second=rate(answers))
        arena.clean()


def _kinds(arena: Arena) -> dict[str, dict[str, str]]:
    if not arena.is_ours:
        return {"": {}}
    return {"AsyncWorker": {"kind": "async"}, "Worker": {"kind": "threads"}}


def w5(arena: Arena) -> Iterator[Measurement]:
    """Pick-up by an idle worker: from the return of enqueue to the handler, a job each 50 ms."""
    jobs = arena.sized(400, least=10)
    for variant, options in _kinds(arena).items():
        arena.checkpoint()
        with arena.contestant.start("work", latency=True, **options) as worker:
            worker.wait_until_ready()
            sent = arena.contestant.call("pulse", jobs=jobs, interval=0.05)["sent"]
            arena.wait_until_drained(jobs, [worker])
            found = waits(sent, [worker.stop()])
        milliseconds = [wait * 1000 for _, wait in found]
        yield arena.measured(
            "W5",
            jobs,
            variant,
            p50_ms=percentile(milliseconds, 0.5),
            p99_ms=percentile(milliseconds, 0.99),
        )
        arena.clean()


def w6(arena: Arena) -> Iterator[Measurement]:
    """Depth: the first jobs of a small and of a big backlog; a poll where all are scheduled."""
    jobs, backlog = arena.sized(10_000), arena.sized(1_000_000)
    small = _first_of(arena, jobs, jobs)
    big = _first_of(arena, backlog, jobs)
    yield arena.measured("W6", jobs, "small backlog", jobs_per_second=small)
    yield arena.measured("W6", backlog, "big backlog", jobs_per_second=big, ratio=big / small)
    day = 86_400
    arena.contestant.call("fill", jobs=backlog, delay=day, priorities=5)
    buffers = arena.contestant.call("poll")["buffers"]
    yield arena.measured("W6", backlog, "idle poll", buffers=sum(buffers.values()))
    arena.clean()


def _first_of(arena: Arena, backlog: int, jobs: int) -> float:
    """Jobs a second of the first so many of a backlog."""
    arena.contestant.call("fill", jobs=backlog)
    arena.checkpoint()
    with arena.contestant.start("work", enough=jobs) as worker:
        answer = worker.answer(600)
    arena.clean()
    return (jobs - 1) / (reached(answer, jobs) - float(answer["first"]))


def w7(arena: Arena) -> Iterator[Measurement]:
    """Drain beside an open transaction: the first and the last tenth."""
    jobs = arena.drained(100_000)
    part = max(jobs // 10, 2)
    with arena.pinned():
        arena.contestant.call("bulk", jobs=jobs)
        answer = drain(arena, jobs)[0]
    first = (part - 1) / (reached(answer, part) - answer["first"])
    # When the last batches have begun, nothing more is fetched. Where jobs are done in batches,
    # it is therefore the tenth before the last one, from the beginning of one batch to another.
    end = jobs - part if arena.batched else jobs
    last = part / (reached(answer, end) - reached(answer, end - part))
    yield arena.measured(
        "W7",
        jobs,
        "AsyncWorker" if arena.is_ours else "",
        first_per_second=first,
        last_per_second=last,
        ratio=last / first,
    )
    arena.clean()


def w7b(arena: Arena) -> Iterator[Measurement]:
    """Pick-up at 500 jobs/s beside an open transaction, from transactions of 300 ms."""
    seconds = arena.lasting(120)
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
    with arena.contestant.start("work", latency=True) as worker:
        worker.wait_until_ready()
        # In a process, since its threads would outlive an interrupted harness.
        with arena.contestant.start("stream", seconds=seconds, **options) as streaming:
            producer = streaming.answer(seconds + 120)
        arena.wait_until_drained(len(producer["sent"]), [worker])
        answer = worker.stop()
    return waits(producer["sent"], [answer]), {"producer": producer, "worker": answer}


def w8(arena: Arena) -> Iterator[Measurement]:
    """A handler that writes a row through ctx.session, against the same by hand."""
    jobs = arena.sized(3_000)
    arena.contestant.call("bulk", jobs=jobs, kind="threads", handler="session")
    worker = rate(drain(arena, jobs, kind="threads", handler="session", concurrency=1))
    _check_effects(arena, jobs)
    arena.clean()
    arena.contestant.call("bulk", jobs=jobs, kind="threads", handler="session")
    arena.checkpoint()
    answer = arena.contestant.call("by_hand")
    _check_effects(arena, jobs)
    by_hand = jobs / answer["seconds"]
    yield arena.measured("W8", jobs, "Worker", jobs_per_second=worker, ratio=worker / by_hand)
    yield arena.measured("W8", jobs, "by hand", jobs_per_second=by_hand)
    arena.clean()


def _check_effects(arena: Arena, jobs: int) -> None:
    schema = arena.contestant.options.get("schema")
    table = f"{schema}.bench_effect" if schema else "bench_effect"
    rows = arena.scalar(f"SELECT count(*) FROM {table}")  # noqa: S608 - our own
    if rows != jobs:
        raise BenchError(f"{jobs} handlers have written {rows} rows")


def w9(arena: Arena) -> Iterator[Measurement]:
    """Handlers that await 1 ms, 256 at once: ideally 256,000 jobs/s."""
    jobs, slots = arena.sized(FULL_DRAIN), 256
    arena.contestant.call("bulk", jobs=jobs, handler="sleep")
    answer = drain(arena, jobs, handler="sleep", concurrency=slots)[0]
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
    seconds = arena.lasting(60)
    position = "pg_current_wal_lsn() - '0/0'::pg_lsn"
    wal, server = int(arena.scalar(f"SELECT {position}")), server_cpu(arena.engine)
    found, answers = _streamed(arena, rate=2_000, per_commit=20, seconds=seconds)
    wal = int(arena.scalar(f"SELECT {position}")) - wal
    after = server_cpu(arena.engine)
    schema = arena.contestant.options.get("schema") or "public"
    dead = arena.scalar(
        "SELECT n_dead_tup FROM pg_stat_user_tables"  # noqa: S608 - our own
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


def w11(arena: Arena) -> Iterator[Measurement]:
    """A tenth of the handlers take 10 s, the others 1 ms; two workers with slots for all slow."""
    jobs = arena.sized(1_000)
    slow = min(arena.lasting(10, least=0.2), 10.0)
    options: dict[str, Any] = {"handler": "mixed", "concurrency": max(jobs // 10, 1)}
    arena.checkpoint()
    with contextlib.ExitStack() as stack:
        workers = [
            stack.enter_context(arena.contestant.start("work", latency=True, **options))
            for _ in range(2)
        ]
        for worker in workers:
            worker.wait_until_ready()
        sent = arena.contestant.call("bulk", jobs=jobs, slow_every=10, slow=slow, **options)
        arena.wait_until_drained(jobs, workers)
        answers = [worker.stop() for worker in workers]
    _check_count(arena, jobs, answers)
    found = waits([(number, sent["ended"]) for number in range(jobs)], answers)
    yield arena.measured("W11", jobs, "AsyncWorker", longest_wait_s=max(wait for _, wait in found))
    arena.clean()


@dataclass(frozen=True, slots=True)
class Workload:
    """One of the workloads, and whether other queues take part in it."""

    name: str
    run: Callable[[Arena], Iterator[Measurement]]
    for_all: bool = False

    @property
    def title(self) -> str:
        """What it is, in a line."""
        return (self.run.__doc__ or "").partition("\n")[0].rstrip(".")


WORKLOADS: Final[Mapping[str, Workload]] = {
    workload.name: workload
    for workload in (
        Workload("W1", w1, for_all=True),
        Workload("W1b", w1b),
        Workload("W2", w2, for_all=True),
        Workload("W3", w3, for_all=True),
        Workload("W4", w4, for_all=True),
        Workload("W5", w5, for_all=True),
        Workload("W6", w6),
        Workload("W7", w7, for_all=True),
        Workload("W7b", w7b),
        Workload("W8", w8),
        Workload("W9", w9),
        Workload("W10", w10),
        Workload("W11", w11),
    )
}


def chosen(only: str | None) -> list[Workload]:
    """The workloads of a list such as ``W1,W3``; all of them without one.

    Raises:
        CommandError: There is no such workload.
    """
    if only is None:
        return list(WORKLOADS.values())
    names = {name.lower(): workload for name, workload in WORKLOADS.items()}
    wanted = [name.strip().lower() for name in only.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise CommandError(
            USAGE,
            f"there is no workload {', '.join(map(repr, unknown)) or repr(only)}; "
            f"choose from {', '.join(WORKLOADS)}",
        )
    return [workload for name, workload in names.items() if name in wanted]
