"""Metrics for Prometheus, in any registry of ``prometheus-client``.

A worker counts what its own jobs came to. What waits in the database is not its own: the leader
looks at it for the whole fleet, and :class:`Metrics` shows that only in the process of that worker.
So the sum over all processes is right for both, and a scrape sends no statement.
"""

import time
from collections.abc import Iterable
from heapq import nlargest
from typing import Final

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .._inspect.backlog import Backlog
from .._inspect.health import Health
from .._inspect.queues import QueueInfo
from .._version import __version__
from . import FinishedRun, JobInfo, Observer

MOST_TYPES: Final = 1000
"""How many pairs of queue and type have series of their own; a row's type may be any text."""
MOST_QUEUES: Final = 200
"""How many queues have gauges: those with the most jobs. A queue's name may be any text too."""
OTHER: Final = "other"
OUTCOMES: Final = (
    *("completed", "retried", "rescheduled", "dead"),
    *("cancelled", "expired", "unknown_type", "lease_lost"),
)
DURATIONS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 300.0)
WAITS: Final = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0, 7200.0)


class Metrics(Observer, Collector):
    """Counts a worker's jobs: ``observers=[Metrics()]``. One object may serve several workers.

    Args:
        registry: Where the metrics are shown; by default the global one of prometheus-client, in
            which an application's other metrics are.

    Raises:
        ValueError: The registry has such metrics already: give the same object to all workers.
    """

    wants_exceptions = False

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._finished = Counter(
            "bgjob_jobs_finished",
            "Attempts that ended, by what became of the job.",
            ("queue", "type", "outcome"),
            registry=registry,
        )
        self._duration = Histogram(
            "bgjob_job_duration_seconds",
            "How long handlers ran.",
            ("queue", "type"),
            buckets=DURATIONS,
            registry=registry,
        )
        self._wait = Histogram(
            "bgjob_job_wait_seconds",
            "From when a job was due to its claim, by the database's clock.",
            ("queue",),
            buckets=WAITS,
            registry=registry,
        )
        self._errors = Counter(
            "bgjob_worker_errors",
            "Errors that are not a handler's: connections, settlements, the listener.",
            registry=registry,
        )
        self._series: dict[tuple[str, str], _Series] = {}
        self._backlog: tuple[float, Backlog] | None = None
        self._health: Health | None = None
        registry.register(self)

    def describe(self) -> Iterable[Metric]:
        """All gauges without values, so that the registry knows their names."""
        return _families().values()

    def collect(self) -> Iterable[Metric]:
        """The gauges; those of the database only while this process has the leader."""
        families = _families()
        families["build_info"].add_metric((__version__,), 1.0)
        sampled = self._backlog
        if sampled is not None and time.monotonic() - sampled[0] <= sampled[1].valid_for:
            _fill(families, sampled[1], self._health)
        return families.values()

    # ---- what a worker tells ------------------------------------------------------------------

    def job_completed(self, job: JobInfo, run: FinishedRun) -> None:
        """It is done."""
        self._ended("completed", job, run)

    def job_rescheduled(self, job: JobInfo, run: FinishedRun) -> None:
        """It runs again, and nothing has failed."""
        self._ended("rescheduled", job, run)

    def job_will_be_retried(self, job: JobInfo, run: FinishedRun) -> None:
        """It failed, and runs again."""
        self._ended("retried", job, run)

    def job_moved_to_dlq(self, job: JobInfo, run: FinishedRun) -> None:
        """It was given up."""
        self._ended("dead", job, run)

    def job_cancelled(self, job: JobInfo, run: FinishedRun) -> None:
        """It was cancelled while this worker had it."""
        self._ended("cancelled", job, run)

    def job_expired(self, job: JobInfo, run: FinishedRun) -> None:
        """It was too late."""
        self._ended("expired", job, run)

    def job_type_unknown(self, job: JobInfo, run: FinishedRun) -> None:
        """No handler knows it."""
        self._ended("unknown_type", job, run)

    def job_lease_lost(self, job: JobInfo) -> None:
        """Another worker has it."""
        self._ended("lease_lost", job, None)

    def worker_error(self, error: BaseException) -> None:
        """Something else failed."""
        self._errors.inc()

    def health_sampled(self, health: Health) -> None:
        """This worker is the leader; the sample of the queues comes next."""
        self._health = health

    def backlog_sampled(self, backlog: Backlog) -> None:
        """This worker has looked for the fleet."""
        self._backlog = (time.monotonic(), backlog)

    def _ended(self, outcome: str, job: JobInfo, run: FinishedRun | None) -> None:
        series = self._series.get((job.queue, job.type))
        if series is None:
            series = self._new_series(job.queue, job.type)
        series.count(outcome)
        if run is not None and run.seconds > 0:
            series.duration(run.seconds)
            # The claim has set updated_at, by the same clock.
            waited = (job.updated_at - job.next_run_at).total_seconds()
            series.wait(max(waited, 0.0))

    def _new_series(self, queue: str, type: str) -> "_Series":
        key = (queue, type) if len(self._series) < MOST_TYPES else (OTHER, OTHER)
        if (series := self._series.get(key)) is None:
            series = _Series(self._finished, self._duration, self._wait, *key)
            self._series[key] = series
        return series


class _Series:
    """The children of one queue and type, looked up once: finding one by its labels is slow."""

    def __init__(
        self, finished: Counter, duration: Histogram, wait: Histogram, queue: str, type: str
    ) -> None:
        # All of them, so that each begins at 0: Prometheus sees no increase up to a first value.
        self._counts = {outcome: finished.labels(queue, type, outcome).inc for outcome in OUTCOMES}
        self.duration = duration.labels(queue, type).observe
        self.wait = wait.labels(queue).observe

    def count(self, outcome: str) -> None:
        """One more attempt with this outcome."""
        self._counts[outcome]()


def _families() -> dict[str, GaugeMetricFamily]:
    of_queue = ("queue",)
    listed: tuple[tuple[str, str, tuple[str, ...]], ...] = (
        ("build_info", "The version of sqlalchemy-bgjob; always 1.", ("version",)),
        ("queue_jobs", "Jobs that are not done, by queue and state.", ("queue", "state")),
        ("queue_oldest_age_seconds", "For how long the first due job has been due.", of_queue),
        ("queue_workers", "Workers that beat and serve the queue.", of_queue),
        ("queue_slots", "How many of its jobs these can run at once.", of_queue),
        ("queue_paused", "Whether the queue is paused: 1 or 0.", of_queue),
        ("queues_left_out", "Queues with fewer jobs than all that are shown.", ()),
        ("dead_jobs", "Dead jobs, counted up to 100,000.", ()),
        ("workers", "Workers that beat.", ()),
        ("health_problems", "Problems of the server that somebody should mend.", ()),
        ("notification_queue_usage_ratio", "How full PostgreSQL's notification queue is.", ()),
    )
    return {
        name: GaugeMetricFamily(f"bgjob_{name}", words, labels=labels)
        for name, words, labels in listed
    }


def _depth(queue: QueueInfo) -> int:
    return queue.due + queue.scheduled + queue.running


def _fill(families: dict[str, GaugeMetricFamily], backlog: Backlog, health: Health | None) -> None:
    shown = nlargest(MOST_QUEUES, backlog.queues, key=_depth)
    families["queues_left_out"].add_metric((), len(backlog.queues) - len(shown))
    for one in shown:
        for state in ("due", "scheduled", "running"):
            families["queue_jobs"].add_metric((one.queue, state), getattr(one, state))
        families["queue_oldest_age_seconds"].add_metric((one.queue,), one.oldest_age)
        families["queue_workers"].add_metric((one.queue,), one.workers)
        families["queue_slots"].add_metric((one.queue,), one.slots)
        families["queue_paused"].add_metric((one.queue,), float(one.paused is not None))
    families["dead_jobs"].add_metric((), backlog.dead)
    families["workers"].add_metric((), backlog.workers)
    if health is not None:
        families["health_problems"].add_metric((), len(health.problems))
        families["notification_queue_usage_ratio"].add_metric((), health.notifications)
