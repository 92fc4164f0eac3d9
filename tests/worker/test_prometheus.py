"""Metrics for Prometheus: what a worker counts, and what the leader shows of the queues."""

from __future__ import annotations

from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import Engine, event

from sqlalchemy_bgjob import Backlog, MoveToDlq, Observer, Reschedule, constant
from sqlalchemy_bgjob._inspect.queues import QueueInfo
from sqlalchemy_bgjob.telemetry import prometheus
from sqlalchemy_bgjob.telemetry.prometheus import Metrics
from support.running import FLAVORS, Workbench, one_of_each, only_threads


def value(registry: CollectorRegistry, name: str, **labels: str) -> float | None:
    return registry.get_sample_value(name, labels)


def nothing(ctx: Any) -> None:
    """The body of a handler."""


@pytest.mark.core
@one_of_each
def test_each_outcome_is_counted_once(bench: Workbench) -> None:
    registry = CollectorRegistry()

    def fails(ctx: Any) -> None:
        raise ValueError("no")

    def gives_up(ctx: Any) -> None:
        raise MoveToDlq("no")

    def waits(ctx: Any) -> Reschedule:
        return Reschedule(3600)

    for name, body in {"a": nothing, "b": fails, "c": gives_up, "d": waits}.items():
        handler = bench.handler(name, body, uses_session=False, retry=constant(3600))
        bench.enqueue(handler)
        bench.enqueue(handler)
    bench.sql("INSERT INTO bgjob_job (id, queue, type) VALUES ('x', 'default', 'unheard-of')")
    bench.run(observers=(Metrics(registry),))

    outcomes = {"a": "completed", "b": "retried", "c": "dead", "d": "rescheduled"}
    for type, outcome in outcomes.items():
        labels = {"queue": "default", "type": type}
        assert value(registry, "bgjob_jobs_finished_total", **labels, outcome=outcome) == 2.0
        assert value(registry, "bgjob_job_duration_seconds_count", **labels) == 2.0
        assert value(registry, "bgjob_jobs_finished_total", **labels, outcome="expired") == 0.0
    unknown = {"queue": "default", "type": "unheard-of", "outcome": "unknown_type"}
    assert value(registry, "bgjob_jobs_finished_total", **unknown) == 1.0
    assert value(registry, "bgjob_job_wait_seconds_count", queue="default") == 8.0


@pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)
def test_waits_are_measured_by_the_servers_clock(bench: Workbench) -> None:
    registry = CollectorRegistry()
    handler = bench.handler("plain", nothing, uses_session=False)
    id = bench.enqueue(handler)
    bench.sql(
        "UPDATE bgjob_job SET next_run_at = now() - interval '100 seconds' WHERE id = :id", id=id
    )

    bench.run(observers=(Metrics(registry),))

    waited = value(registry, "bgjob_job_wait_seconds_sum", queue="default")
    assert waited is not None
    assert 100 <= waited < 160


@pytest.mark.core
@one_of_each
def test_the_leader_shows_what_waits_in_all_queues(bench: Workbench) -> None:
    """Of queues too that it does not serve; and every name passes Prometheus' own parser."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    handler = bench.handler("plain", nothing, uses_session=False)
    bench.enqueue(handler, queue="other", delay=3600)
    id = bench.enqueue(handler, queue='od"d\n')
    bench.sql(
        "UPDATE bgjob_job SET next_run_at = now() - interval '100 seconds' WHERE id = :id", id=id
    )
    bench.jobs.pause(bench.outside, "other")
    bench.sql(
        "INSERT INTO bgjob_dead_job (id, job_id, queue, type, lease, next_run_at,"
        " job_created_at, job_updated_at)"
        " VALUES ('1', 'd', 'default', 't', 1, now(), now(), now())"
    )
    shown: dict[str, Any] = {}

    def sampled() -> bool:
        text = generate_latest(registry).decode()
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                shown[(sample.name, *sample.labels.values())] = sample.value
        return shown.get(("bgjob_workers",)) == 1

    bench.run(health_interval=0.05, observers=(metrics,), until=sampled)

    assert shown["bgjob_queue_jobs", "other", "scheduled"] == 1
    assert shown["bgjob_queue_jobs", 'od"d\n', "due"] == 1
    assert 100 <= shown["bgjob_queue_oldest_age_seconds", 'od"d\n'] < 160
    assert shown["bgjob_queue_paused", "other"] == 1
    assert shown["bgjob_queue_workers", 'od"d\n'] == 0
    assert shown["bgjob_queue_slots", "default"] == 4
    assert shown[("bgjob_dead_jobs",)] == 1
    assert shown[("bgjob_health_problems",)] >= 0
    bench.jobs.resume(bench.outside, "other")


def test_who_is_no_leader_any_more_shows_no_gauges(monkeypatch: pytest.MonkeyPatch) -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    now = 1000.0
    monkeypatch.setattr(prometheus.time, "monotonic", lambda: now)

    metrics.backlog_sampled(Backlog((), dead=3, workers=2, valid_for=125.0))
    assert value(registry, "bgjob_dead_jobs") == 3
    now += 126.0

    assert value(registry, "bgjob_dead_jobs") is None


@only_threads
def test_a_worker_without_metrics_asks_for_no_backlog(bench: Workbench) -> None:
    """The look costs statements only where an observer wants it."""
    sent: list[str] = []
    samples: list[Any] = []

    class Samples(Observer):
        def health_sampled(self, health: Any) -> None:
            samples.append(health)

    def note(connection: Any, cursor: Any, statement: str, *rest: Any) -> None:
        sent.append(statement)

    event.listen(Engine, "before_cursor_execute", note)
    try:
        bench.handler("plain", nothing, uses_session=False)
        bench.run(health_interval=0.05, observers=(Samples(),), until=lambda: len(samples) > 1)
    finally:
        event.remove(Engine, "before_cursor_execute", note)

    assert any("backend_xmin" in statement for statement in sent)
    assert not any("lanes.queue" in statement for statement in sent)


def test_of_many_queues_those_with_the_most_jobs_are_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A queue's name may be any text; how many are left out is told."""
    monkeypatch.setattr(prometheus, "MOST_QUEUES", 2)
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    depths = {"a": (1, 0, 0), "b": (0, 3, 0), "c": (1, 0, 1), "d": (0, 0, 0)}
    queues = [
        QueueInfo(name, *depth, 0, 0, None, 0.0, stopped=False, paused=None)
        for name, depth in depths.items()
    ]

    metrics.backlog_sampled(Backlog(tuple(queues), dead=0, workers=0, valid_for=60.0))

    slots = {name: value(registry, "bgjob_queue_slots", queue=name) for name in depths}
    assert slots == {"a": None, "b": 0, "c": 0, "d": None}
    assert value(registry, "bgjob_queue_jobs", queue="b", state="scheduled") == 3
    assert value(registry, "bgjob_queues_left_out") == 2


def test_types_from_the_table_do_not_make_series_without_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(prometheus, "MOST_TYPES", 3)
    registry = CollectorRegistry()
    metrics = Metrics(registry)

    for number in range(5):
        metrics._new_series("q", f"t{number}").count("completed")

    labels = {"outcome": "completed"}
    assert value(registry, "bgjob_jobs_finished_total", queue="q", type="t2", **labels) == 1
    assert value(registry, "bgjob_jobs_finished_total", queue="q", type="t3", **labels) is None
    assert value(registry, "bgjob_jobs_finished_total", queue="other", type="other", **labels) == 2
