"""Traces and metrics of OpenTelemetry, by its semantic conventions for messaging.

Each enqueue is a span ``send QUEUE``, whose context goes with the job in its headers. Each run of
the job is a span ``process QUEUE``, linked to that one. Only OpenTelemetry's API is needed. Without
an SDK, or without a call of :func:`instrument`, nothing is kept.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

from opentelemetry import context, metrics, propagate, trace
from opentelemetry.trace import Link, Span, SpanKind, Status, StatusCode

from .._handlers.middleware import Layer
from .._handlers.outcomes import MoveToDlq, Outcome, Retry
from .._version import __version__

if TYPE_CHECKING:
    from opentelemetry.metrics import MeterProvider
    from opentelemetry.trace import TracerProvider

    from .._handlers.registry import Registry

SYSTEM: Final = "sqlalchemy_bgjob"
_SCOPE: Final = "sqlalchemy_bgjob"
BUCKETS: Final = (
    0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
)  # fmt: skip
"""Seconds, as the conventions advise."""
_INSTRUMENTED: Final = "this BGJob is instrumented already; call instrument() only once for it"


def instrument(
    jobs: Any,
    *,
    parent: bool = False,
    tracer_provider: "TracerProvider | None" = None,
    meter_provider: "MeterProvider | None" = None,
) -> None:
    """Trace and measure what a BGJob enqueues and runs. Call it once, where the BGJob is made.

    The propagator that the application has configured writes the headers, such as ``traceparent``.

    Args:
        jobs: The BGJob.
        parent: Whether a run is a part of the trace that enqueued its job. By default a run begins
            a trace of its own, with a link to the other one: a job may run days later, or be one
            of thousands.
        tracer_provider: By default the global one, also if it is set later.
        meter_provider: The same.

    Raises:
        RuntimeError: It was called for this BGJob before.
    """
    registry: Registry = jobs.registry
    if any(isinstance(of, _Instrumentation) for of in registry.additions.producers):
        raise RuntimeError(_INSTRUMENTED)
    made = _Instrumentation(
        trace.get_tracer(_SCOPE, __version__, tracer_provider),
        metrics.get_meter(_SCOPE, __version__, meter_provider),
        parent=parent,
    )
    registry.additions.producers.append(made)
    registry.add_layer(Layer(made.function, made.coroutine, is_complete=True))


class _Instrumentation:
    """The instruments of one BGJob."""

    def __init__(self, tracer: trace.Tracer, meter: metrics.Meter, *, parent: bool) -> None:
        self._tracer, self._parent = tracer, parent
        self._sent = meter.create_counter(
            "messaging.client.sent.messages",
            unit="{message}",
            description="Jobs that were handed to a transaction.",
        )
        self._consumed = meter.create_counter(
            "messaging.client.consumed.messages",
            unit="{message}",
            description="Runs of jobs that were begun.",
        )
        self._duration = meter.create_histogram(
            "messaging.process.duration",
            unit="s",
            description="How long runs of jobs took.",
            explicit_bucket_boundaries_advisory=BUCKETS,
        )

    def __call__(self, type: str, queue: str, count: int | None) -> Mapping[str, Any]:
        """At each enqueue: the headers that carry the span's context to the job."""
        attributes = _attributes("send", queue)
        headers: dict[str, str] = {}
        of_span: dict[str, Any] = {**attributes, "bgjob.job.type": type}
        if count is not None and count != 1:
            of_span["messaging.batch.message_count"] = count
        with self._tracer.start_as_current_span(
            f"send {queue}", kind=SpanKind.PRODUCER, attributes=of_span
        ):
            propagate.inject(headers)
        if count is not None:
            self._sent.add(count, attributes)
        return headers

    def function(self, call: Callable[[], Any], ctx: Any) -> Any:
        """Around functions."""
        with self._run(ctx.jobs) as tell:
            return tell(call())

    async def coroutine(self, call: Callable[[], Any], ctx: Any) -> Any:
        """Around coroutines."""
        with self._run(ctx.jobs) as tell:
            return tell(await call())

    @contextmanager
    def _run(self, jobs: Sequence[Any]) -> Iterator[Callable[[Any], Any]]:
        """A span around a run; *tell* is told what the handler returned, and returns it.

        The run of a chunk is one span with a link to each sender; it has no parent.
        """
        first, is_chunk = jobs[0], len(jobs) > 1
        attributes: dict[str, Any] = _attributes("process", first.queue)
        contexts = [propagate.extract(_texts(job.headers), context.Context()) for job in jobs]
        senders = [trace.get_current_span(one).get_span_context() for one in contexts]
        within = context.Context() if is_chunk else contexts[0]
        has_parent = self._parent and not is_chunk
        links = [] if has_parent else [Link(sender) for sender in senders if sender.is_valid]
        if not has_parent:  # what else came, such as baggage, holds
            within = trace.set_span_in_context(trace.INVALID_SPAN, within)
        of_span = {**attributes, "bgjob.job.type": first.type}
        if is_chunk:
            of_span["messaging.batch.message_count"] = len(jobs)
        else:
            of_span |= {"messaging.message.id": first.id, "bgjob.job.attempt": first.attempt}
        self._consumed.add(len(jobs), attributes)
        span = self._tracer.start_span(
            f"process {first.queue}", within, SpanKind.CONSUMER, of_span, links
        )
        token = context.attach(trace.set_span_in_context(span, within))
        failed: BaseException | None = None

        def tell(returned: Any) -> Any:
            nonlocal failed
            failed = _failure(returned)
            return returned

        begun = time.perf_counter()
        try:
            yield tell
        except BaseException as error:
            failed = _failure(error)
            raise
        finally:
            took = time.perf_counter() - begun
            if failed is not None:
                attributes["error.type"] = name = _name(failed)
                _fail(span, name, failed)
            self._duration.record(took, attributes)
            span.end()
            context.detach(token)


def _attributes(operation: str, queue: str) -> dict[str, Any]:
    return {
        "messaging.system": SYSTEM,
        "messaging.destination.name": queue,
        "messaging.operation.name": operation,
        "messaging.operation.type": operation,
    }


def _texts(headers: Mapping[str, Any]) -> dict[str, str]:
    """Those headers that a propagator can read; others may hold any JSON."""
    return {name: value for name, value in headers.items() if isinstance(value, str)}


def _failure(ended_by: Any) -> BaseException | None:
    """What makes a run a failed one: an exception, or the outcome of a failed attempt."""
    if isinstance(ended_by, Retry | MoveToDlq):
        return ended_by.error if isinstance(ended_by.error, BaseException) else ended_by
    if isinstance(ended_by, Outcome) or not isinstance(ended_by, BaseException):
        return None
    return ended_by


def _name(error: BaseException) -> str:
    kind = type(error)
    if kind.__module__ in ("builtins", "__main__") or isinstance(error, Outcome):
        return kind.__qualname__
    return f"{kind.__module__}.{kind.__qualname__}"


def _fail(span: Span, name: str, error: BaseException) -> None:
    """Mark a span. Not the message, which may quote values of rows."""
    span.set_attribute("error.type", name)
    span.set_status(Status(StatusCode.ERROR, name))
