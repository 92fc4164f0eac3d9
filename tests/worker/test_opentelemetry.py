"""Traces: spans read back join whoever enqueued a job with its runs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from opentelemetry import baggage, context, trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from sqlalchemy import literal, select
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import MoveToDlq, constant, enqueue, enqueue_from, enqueue_many
from sqlalchemy_bgjob.telemetry.opentelemetry import BUCKETS, instrument
from support.running import Workbench, one_of_each, only_threads

if TYPE_CHECKING:
    from collections.abc import Iterator

    from opentelemetry.sdk.trace import ReadableSpan


class Traced:
    """A workbench whose jobs are instrumented, and all that was recorded."""

    def __init__(self, bench: Workbench, *, parent: bool = False) -> None:
        self._exporter, self._reader = InMemorySpanExporter(), InMemoryMetricReader()
        self.provider = TracerProvider(shutdown_on_exit=False)
        self.provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        self._meters = MeterProvider([self._reader], shutdown_on_exit=False)
        self.tracer = self.provider.get_tracer("the application")
        instrument(
            bench.jobs,
            parent=parent,
            tracer_provider=self.provider,
            meter_provider=self._meters,
        )

    def spans(self, name: str) -> list[ReadableSpan]:
        return [span for span in self._exporter.get_finished_spans() if span.name == name]

    def points(self, name: str) -> list[Any]:
        data = self._reader.get_metrics_data()
        assert data is not None
        return [
            point
            for resource in data.resource_metrics
            for scope in resource.scope_metrics
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        ]

    def close(self) -> None:
        self.provider.shutdown()
        self._meters.shutdown()


@pytest.fixture
def traced(bench: Workbench) -> Iterator[Traced]:
    made = Traced(bench)
    yield made
    made.close()


def context_of(span: ReadableSpan) -> tuple[int, int]:
    assert span.context is not None
    return span.context.trace_id, span.context.span_id


def parent_of(span: ReadableSpan) -> tuple[int, int] | None:
    return None if span.parent is None else (span.parent.trace_id, span.parent.span_id)


def links_of(span: ReadableSpan) -> list[tuple[int, int]]:
    return [(link.context.trace_id, link.context.span_id) for link in span.links]


@pytest.mark.core
@one_of_each
def test_a_run_is_linked_to_the_request(bench: Workbench, traced: Traced) -> None:
    """And the spans of its handler, and baggage, are within it."""
    seen: list[Any] = []

    def body(ctx: Any) -> None:
        with traced.tracer.start_as_current_span("inside"):
            seen.append(baggage.get_baggage("tenant"))

    handler = bench.handler("plain", body, uses_session=False)
    token = context.attach(baggage.set_baggage("tenant", "t1"))
    with traced.tracer.start_as_current_span("request") as request:
        id = bench.enqueue(handler)
    context.detach(token)
    bench.run()

    (send,), (process,) = traced.spans("send default"), traced.spans("process default")
    (inside,) = traced.spans("inside")
    assert parent_of(send) == context_of(request)  # type: ignore[arg-type]
    assert (send.kind, process.kind) == (SpanKind.PRODUCER, SpanKind.CONSUMER)
    assert parent_of(process) is None
    assert links_of(process) == [context_of(send)]
    assert parent_of(inside) == context_of(process)
    assert seen == ["t1"]
    assert dict(process.attributes or {}) == {
        "messaging.system": "sqlalchemy_bgjob",
        "messaging.destination.name": "default",
        "messaging.operation.name": "process",
        "messaging.operation.type": "process",
        "messaging.message.id": id,
        "bgjob.job.type": "plain",
        "bgjob.job.attempt": 1,
    }
    assert process.status.status_code is StatusCode.UNSET


@one_of_each
def test_a_run_can_be_a_part_of_the_requests_trace(bench: Workbench) -> None:
    traced = Traced(bench, parent=True)
    handler = bench.handler("plain", lambda ctx: None, uses_session=False)
    bench.enqueue(handler)
    bench.run()

    (send,), (process,) = traced.spans("send default"), traced.spans("process default")
    assert parent_of(process) == context_of(send)
    assert links_of(process) == []
    traced.close()


@only_threads
def test_a_chunk_is_one_span_that_is_linked_to_all(bench: Workbench, traced: Traced) -> None:
    calls: list[list[int]] = []

    @bench.jobs.handler("chunks", chunk=2, wait=60)
    def chunks(ctx: Any, args: list[int]) -> None:
        calls.append(args)

    ids = [bench.enqueue(chunks, number) for number in range(2)]
    bench.run(queues={"default": 1}, heartbeat_interval=60.0, lease_timeout=600.0)

    sent, (process,) = traced.spans("send default"), traced.spans("process default")
    assert (len(ids), calls) == (2, [[0, 1]])
    assert parent_of(process) is None
    assert links_of(process) == [context_of(one) for one in sent]
    assert process.attributes is not None
    assert process.attributes["messaging.batch.message_count"] == 2
    assert "messaging.message.id" not in process.attributes


@pytest.mark.core
@one_of_each
def test_each_failed_attempt_is_a_failed_span(bench: Workbench, traced: Traced) -> None:
    """Retries have spans of their own, all linked to the one enqueue; no message is recorded."""

    def body(ctx: Any) -> None:
        if ctx.job.attempt == 1:
            raise ValueError("the secret")
        raise MoveToDlq("given up")

    bench.enqueue(bench.handler("fails", body, uses_session=False, retry=constant(0)))
    bench.run(until=bench.none_left)

    (send,), runs = traced.spans("send default"), traced.spans("process default")
    assert [links_of(run) for run in runs] == [[context_of(send)]] * 2
    assert [(run.attributes or {})["error.type"] for run in runs] == ["ValueError", "MoveToDlq"]
    assert [(run.attributes or {})["bgjob.job.attempt"] for run in runs] == [1, 2]
    assert {run.status.status_code for run in runs} == {StatusCode.ERROR}
    assert not any("secret" in run.to_json() for run in runs)
    found = {
        point.attributes["error.type"]: point.count
        for point in traced.points("messaging.process.duration")
    }
    assert found == {"ValueError": 1, "MoveToDlq": 1}


@only_threads
def test_all_ways_to_enqueue_carry_the_trace(bench: Workbench, traced: Traced) -> None:
    """One span for each call; what is sent is counted by jobs, where the process knows them."""
    handler = bench.handler("plain", lambda ctx: None, uses_session=False)
    with Session(bench.outside.execution_options(isolation_level="READ COMMITTED")) as session:
        enqueue(session, handler)
        enqueue_many(session, handler, [None] * 3)
        session.add(handler.job())
        bench.jobs.enqueue(session, "plain")
        enqueue_from(session, handler, select(literal(None).label("arg")))
        session.commit()
    rows = bench.sql("SELECT DISTINCT CAST(headers AS jsonb) ->> 'traceparent' FROM bgjob_job")
    assert len(rows) == 5
    bench.run()

    sends, runs = traced.spans("send default"), traced.spans("process default")
    sent = [context_of(span) for span in sends]
    assert len(sends) == 5
    assert sorted(link for run in runs for link in links_of(run)) == sorted(
        [*sent, sent[1], sent[1]]
    )
    assert [(span.attributes or {}).get("messaging.batch.message_count") for span in sends] == [
        *(None, 3, None, None, None)
    ]
    (counted,) = traced.points("messaging.client.sent.messages")
    (consumed,) = traced.points("messaging.client.consumed.messages")
    (took,) = traced.points("messaging.process.duration")
    assert (counted.value, consumed.value, took.count) == (6, 7, 7)
    assert took.explicit_bounds == BUCKETS


@one_of_each
def test_a_job_of_elsewhere_begins_a_trace(bench: Workbench, traced: Traced) -> None:
    """Its row has no headers, or strange ones; and a job that a job enqueues joins that run."""
    follow = bench.handler("follow", lambda ctx: None, uses_session=False)

    def body(ctx: Any) -> None:
        assert trace.get_current_span().get_span_context().is_valid
        bench.enqueue(follow)

    bench.handler("plain", body, uses_session=False)
    bench.sql(
        "INSERT INTO bgjob_job (id, queue, type, headers) VALUES"
        " ('a', 'default', 'plain', NULL),"
        """ ('b', 'default', 'plain', '{"traceparent": 7, "tracestate": {}}'),"""
        """ ('c', 'default', 'plain', '{"traceparent": "nonsense"}')"""
    )
    bench.run()

    firsts = [
        run
        for run in traced.spans("process default")
        if (run.attributes or {})["bgjob.job.type"] == "plain"
    ]
    sends = traced.spans("send default")
    assert [links_of(run) for run in firsts] == [[], [], []]
    assert {parent_of(send) for send in sends} == {context_of(run) for run in firsts}


@only_threads
def test_it_is_instrumented_once_and_costs_nothing_before(bench: Workbench) -> None:
    handler = bench.handler("plain", lambda ctx: None, uses_session=False)
    assert handler.call is handler.function
    assert bench.jobs.registry.additions.producers == []

    instrument(bench.jobs)  # without an SDK: nothing is recorded, nothing fails
    with pytest.raises(RuntimeError, match=r"already; call instrument\(\) only once"):
        instrument(bench.jobs)
    bench.enqueue(handler)

    assert bench.run().events
