"""What the comparison must come to: ratios of medians, and a few absolute limits. Pure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import NamedTuple

from sqlalchemy_bgjob._bench.arena import OURS, Measurement

RATE = "jobs_per_second"


class Key(NamedTuple):
    """One figure of one way to use a queue in one workload."""

    workload: str
    contestant: str
    variant: str
    figure: str


Medians = Mapping[Key, float]
Value = Callable[[Medians], float | None]


def medians(measurements: Iterable[Measurement]) -> dict[Key, float]:
    """The median of each figure over the rounds."""
    found: dict[Key, list[float]] = {}
    for m in measurements:
        for figure, value in m.figures.items():
            found.setdefault(Key(m.workload, m.contestant, m.variant, figure), []).append(value)
    return {key: median(values) for key, values in found.items()}


@dataclass(frozen=True, slots=True)
class Target:
    """A promise, and the value that keeps or breaks it.

    Attributes:
        workload: Where the value comes from.
        what: The value in words.
        value: The value; None if it was not measured.
        limit: What it must be at least, or with *most* at most.
        most: Whether the limit is the most.
    """

    workload: str
    what: str
    value: Value
    limit: float
    most: bool = False

    @property
    def promise(self) -> str:
        """The promise in words."""
        return f"{self.what} {'<=' if self.most else '>='} {self.limit:g}"

    def judge(self, figures: Medians) -> "Verdict":
        """Look whether it is kept."""
        value = self.value(figures)
        if value is None:
            return Verdict(self.workload, self.promise, None, None)
        met = value <= self.limit if self.most else value >= self.limit
        return Verdict(self.workload, self.promise, value, met)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What became of a target; *met* is None if it was not measured."""

    workload: str
    promise: str
    value: float | None
    met: bool | None


def judge(figures: Medians, targets: "Sequence[Target] | None" = None) -> list[Verdict]:
    """The verdicts of all targets."""
    return [target.judge(figures) for target in (TARGETS if targets is None else targets)]


# ---- values ---------------------------------------------------------------------------------


def ours(workload: str, variant: str, figure: str = RATE) -> Value:
    """A figure of sqlalchemy-bgjob."""
    return lambda figures: figures.get(Key(workload, OURS, variant, figure))


def peer(workload: str, name: str, figure: str = RATE) -> Value:
    """A figure of another queue."""
    return lambda figures: figures.get(Key(workload, name, "", figure))


def best_peer(workload: str, figure: str, best: Callable[[Iterable[float]], float]) -> Value:
    """The best of the other queues, where *best* is min or max."""

    def value(figures: Medians) -> float | None:
        theirs = [
            value
            for key, value in figures.items()
            if key.workload == workload
            and key.figure == figure
            and key.contestant != OURS
            and not key.variant
        ]
        return best(theirs) if theirs else None

    return value


def ratio(one: Value, other: Value) -> Value:
    """One value over another."""

    def value(figures: Medians) -> float | None:
        above, below = one(figures), other(figures)
        return None if above is None or not below else above / below

    return value


def share_or_cpu_bound(figures: Medians) -> float | None:
    """The better of: the share of the ideal over 0.8, the used part of a core over 0.9."""
    share = ours("W9", "AsyncWorker", "share_of_ideal")(figures)
    core = ours("W9", "AsyncWorker", "worker_cpu")(figures)
    return None if share is None or core is None else max(share / 0.8, core / 0.9)


# ---- the targets ----------------------------------------------------------------------------


def _targets() -> Iterable[Target]:
    for way in ("Session", "Connection"):
        value = ratio(ours("W1", way), ours("W1", f"{way} by hand"))
        yield Target("W1", f"{way} / by hand", value, 0.9)
    woken = ratio(ours("W1b", "wake-up"), ours("W1b", "no wake-up"))
    yield Target("W1b", "wake-up / no wake-up", woken, 0.8)
    fastest = best_peer("W2", RATE, max)
    yield Target("W2", "ours / fastest peer", ratio(ours("W2", ""), fastest), 2.0)

    drains = ours("W3", "AsyncWorker"), ours("W3", "Worker")
    for name, limit in (("graphile", 1.1), ("pgqueuer", 2.0)):
        value = ratio(drains[0], peer("W3", name))
        yield Target("W3", f"AsyncWorker / {name}", value, limit)
    limit_of_ours = ours("W3", "statements alone")
    yield Target("W3", "AsyncWorker / statements alone", ratio(drains[0], limit_of_ours), 0.75)
    yield Target("W3", "Worker / pgqueuer", ratio(drains[1], peer("W3", "pgqueuer")), 1.5)
    for kind, drain in zip(("AsyncWorker", "Worker"), drains, strict=True):
        value = ratio(ours("W3", f"{kind}, concurrency 10"), drain)
        yield Target("W3", f"{kind}, concurrency 10 / 100", value, 0.8)
    two = ratio(ours("W4", "AsyncWorker"), peer("W4", "graphile"))
    yield Target("W4", "AsyncWorker / graphile", two, 1.3)

    typical, slow = ours("W5", "AsyncWorker", "p50_ms"), ours("W5", "AsyncWorker", "p99_ms")
    yield Target("W5", "p50 in ms", typical, 1.5, most=True)
    lowest = ratio(typical, best_peer("W5", "p50_ms", min))
    yield Target("W5", "p50 / lowest peer", lowest, 1.0, most=True)
    lowest = ratio(slow, best_peer("W5", "p99_ms", min))
    yield Target("W5", "p99 / lowest peer", lowest, 1.1, most=True)

    depth = ratio(ours("W6", "big backlog"), ours("W6", "small backlog"))
    yield Target("W6", "big / small backlog", depth, 0.9)
    yield Target(
        "W6", "buffers of an idle poll", ours("W6", "idle poll", "buffers"), 200, most=True
    )
    first = ours("W7", "AsyncWorker", "first_per_second")
    last = ours("W7", "AsyncWorker", "last_per_second")
    yield Target("W7", "last / first tenth", ratio(last, first), 0.9)
    fastest = best_peer("W7", "last_per_second", max)
    yield Target("W7", "last tenth / fastest peer", ratio(last, fastest), 1.0)
    yield Target("W7b", "p99 in ms", ours("W7b", "AsyncWorker", "p99_ms"), 50, most=True)
    grown = ratio(
        ours("W7b", "AsyncWorker", "last_p99_ms"), ours("W7b", "AsyncWorker", "first_p99_ms")
    )
    yield Target("W7b", "p99 at last / at first", grown, 2.0, most=True)

    yield Target("W8", "Worker / by hand", ratio(ours("W8", "Worker"), ours("W8", "by hand")), 0.9)
    chunks = ratio(ours("W8b", "AsyncWorker, 100 a call"), ours("W8b", "AsyncWorker, one a call"))
    yield Target("W8b", "chunk=100 / a call for each", chunks, 5.0)
    what = "the better of share of ideal / 0.8, core / 0.9"
    yield Target("W9", what, share_or_cpu_bound, 1.0)
    for what, figure, most in (
        ("bytes of WAL a job", "wal_bytes", 900),
        ("p99 in ms", "p99_ms", 30),
        ("RSS / that at a quarter", "rss_growth", 1.1),
    ):
        yield Target("W10", what, ours("W10", "AsyncWorker", figure), most, most=True)
    longest = ours("W11", "AsyncWorker", "longest_wait_s")
    yield Target("W11", "longest wait in s", longest, 2.0, most=True)
    for workload, variant in (("W12", "AsyncWorker"), ("W13", "")):
        for figure, name, most in (
            ("p50_ms", "p50", 1.2),
            ("p99_ms", "p99", 1.5),
            ("idle_per_second", "idle transactions", 1.5),
            ("idle_worker", "CPU of an idle worker", 1.5),
        ):
            lowest = ratio(ours(workload, variant, figure), best_peer(workload, figure, min))
            yield Target(workload, f"{name} / lowest peer", lowest, most, most=True)
    for workload, what, figure, most in (
        ("W14", "transactions/s", "idle_per_second", 1.1),
        ("W14", "sessions", "sessions", 4),
        ("W16", "seconds", "back_s", 1.0),
        ("W17", "transactions a job: its enqueue and settlement, and claims", "transactions", 5),
    ):
        yield Target(workload, what, ours(workload, "", figure), most, most=True)
    yield Target("W19", "p50 in ms", ours("W19", "worker beside", "p50_ms"), 12, most=True)
    start = ratio(ours("W15", "", "start_s"), peer("W15", "pgqueuer", "start_s"))
    yield Target("W15", "ours / pgqueuer", start, 1.2, most=True)
    yield Target("W18", "drain / drain before", ours("W18", "", "drain_share"), 0.7)
    grown = ratio(ours("W18", "", "last_p99_ms"), ours("W18", "", "first_p99_ms"))
    yield Target("W18", "p99 at last / at first", grown, 1.4, most=True)


TARGETS: Sequence[Target] = tuple(_targets())
