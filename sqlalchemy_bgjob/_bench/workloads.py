"""The workloads. Each counts its jobs, and fails if one is missing or was run twice.

W6 and W8 to W11 are in ``benchmarks/``, with the comparison of this package with others.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from .._process.exits import USAGE, CommandError
from .arena import FULL_DRAIN, Arena, Measurement
from .program import Answer
from .times import cpu_share, pick_up, rate, tenths

Variants = Mapping[str, Mapping[str, Any]]
"""Ways to use a queue: by name, the options of its commands."""

WAYS: Final[Variants] = {
    "Session": {"through": "session"},
    "Connection": {"through": "connection"},
}
KINDS: Final[Variants] = {"AsyncWorker": {"kind": "async"}, "Worker": {"kind": "threads"}}
DRAINS: Final[Variants] = {
    **KINDS,
    "AsyncWorker, 1 KiB arg": {"arg_bytes": 1024},
    "Worker, 1 KiB arg": {"kind": "threads", "arg_bytes": 1024},
    "AsyncWorker, concurrency 10": {"concurrency": 10},
    "Worker, concurrency 10": {"kind": "threads", "concurrency": 10},
}


def w1(arena: Arena, variants: Variants = WAYS) -> Iterator[Measurement]:
    """Enqueue: one job, one commit, one client."""
    jobs = arena.sized(2_000)
    for variant, options in variants.items():
        arena.checkpoint()
        answer = arena.program.call("enqueue", jobs=jobs, **options)
        yield arena.measured("W1", jobs, variant, jobs_per_second=jobs / answer["seconds"])
        arena.clean()


def w2(arena: Arena) -> Iterator[Measurement]:
    """Enqueue: all jobs in one transaction."""
    jobs = arena.sized(100_000)
    arena.checkpoint()
    answer = arena.program.call("bulk", jobs=jobs)
    yield arena.measured("W2", jobs, "", jobs_per_second=jobs / answer["seconds"])
    arena.clean()


def w3(arena: Arena) -> Iterator[Measurement]:
    """Drain by one process."""
    for variant, options in DRAINS.items():
        jobs, answers = fill_and_drain(arena, **options)
        yield arena.measured(
            "W3",
            jobs,
            variant,
            jobs_per_second=rate(answers),
            worker_cpu=cpu_share(answers[0]),
        )


def w4(arena: Arena, variants: Variants = KINDS) -> Iterator[Measurement]:
    """Drain by two processes."""
    for variant, options in variants.items():
        jobs, answers = fill_and_drain(arena, processes=2, **options)
        yield arena.measured("W4", jobs, variant, jobs_per_second=rate(answers))


def fill_and_drain(arena: Arena, *, processes: int = 1, **options: Any) -> tuple[int, list[Answer]]:
    """Enqueue jobs and drain them; their number, and the answer of each worker."""
    jobs = arena.sized(FULL_DRAIN)
    arena.program.call("bulk", jobs=jobs, **options)
    answers = arena.drain(jobs, processes=processes, **options)
    arena.clean()
    return jobs, answers


def w5(arena: Arena, variants: Variants = KINDS) -> Iterator[Measurement]:
    """Pick-up by an idle worker: from the return of enqueue to the handler, a job each 50 ms."""
    jobs = arena.sized(400, least=10)
    for variant, options in variants.items():
        arena.checkpoint()
        with arena.program.start("work", latency=True, **options) as worker:
            worker.wait_until_ready()
            sent = arena.program.call("pulse", jobs=jobs, interval=0.05)["sent"]
            arena.wait_until_drained(jobs, [worker])
            found = pick_up(sent, [worker.stop()])
        yield arena.measured("W5", jobs, variant, **found)
        arena.clean()


def w7(arena: Arena) -> Iterator[Measurement]:
    """Drain beside an open transaction: the first and the last tenth."""
    jobs = arena.sized(100_000)
    with arena.pinned():
        arena.program.call("bulk", jobs=jobs)
        answer = arena.drain(jobs)[0]
    yield arena.measured("W7", jobs, "AsyncWorker", **tenths(answer, jobs))
    arena.clean()


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload and its name."""

    name: str
    run: Callable[[Arena], Iterator[Measurement]]

    @property
    def title(self) -> str:
        """The first line of the docstring of its function."""
        return (self.run.__doc__ or "").partition("\n")[0].rstrip(".")


WORKLOADS: Final[Mapping[str, Workload]] = {
    name: Workload(name, run)
    for name, run in {"W1": w1, "W2": w2, "W3": w3, "W4": w4, "W5": w5, "W7": w7}.items()
}


W = TypeVar("W", bound=Workload)


def chosen(only: str | None, workloads: Mapping[str, W]) -> list[W]:
    """The workloads of a list such as ``W1,W3``; all of them for None.

    Raises:
        CommandError: There is no such workload.
    """
    if only is None:
        return list(workloads.values())
    names = {name.lower(): workload for name, workload in workloads.items()}
    wanted = [name.strip().lower() for name in only.split(",") if name.strip()]
    unknown = [name for name in wanted if name not in names]
    if unknown or not wanted:
        raise CommandError(
            USAGE,
            f"there is no workload {', '.join(map(repr, unknown)) or repr(only)}; "
            f"choose from {', '.join(workloads)}",
        )
    return [workload for name, workload in names.items() if name in wanted]
