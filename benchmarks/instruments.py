"""What metrics and traces cost a worker of threads: ``python -m benchmarks.instruments``.

It drains the same jobs, whose handler does nothing, without them and with each of them. They take
turns within a round, and each round begins with another one. Told is the CPU of the worker's
process for each job, from the start of the first handler to that of the last one: the median and
the least of the rounds, and the median of what it is more than without, round by round.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from statistics import median
from typing import Any, Final

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult
from opentelemetry.trace import NoOpTracerProvider
from prometheus_client import CollectorRegistry, generate_latest
from sqlalchemy import Engine, MetaData, create_engine, text

from sqlalchemy_bgjob import BGJob, Context, Worker, enqueue_many
from sqlalchemy_bgjob.telemetry.opentelemetry import instrument
from sqlalchemy_bgjob.telemetry.prometheus import Metrics
from sqlalchemy_bgjob.testing import EmbeddedPostgres

JOBS: Final = 4_000
ROUNDS: Final = 15


class _Dropped(SpanExporter):
    """Takes spans in batches, as one that sends them would, and sends none."""

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        return SpanExportResult.SUCCESS


class Plain:
    """Without metrics and traces."""

    name = "nothing"

    def __init__(self, number: int) -> None:
        self.jobs: BGJob[Any, Any] = BGJob(MetaData(), table_prefix=f"i{number}_")
        self.handler = self.jobs.handler("nothing", session=False)(self._handle)
        self.observers: tuple[Metrics, ...] = ()
        self.prepare()

    def prepare(self) -> None:
        """Add what is measured."""

    def look(self) -> None:
        """Read what was measured, as whoever collects it does; once in a drain."""

    def drain(self, engine: Engine) -> float:
        """CPU seconds of this process for each job."""
        with engine.begin() as connection:
            connection.execute(text(f"TRUNCATE {self.jobs.models.job.name}"))
        enqueue_many(engine, self.handler, [None] * JOBS)
        self._starts = count()
        Worker(self.jobs, engine, observers=self.observers, until_idle=True).run()
        assert next(self._starts) == JOBS, "each ran once"
        return (self._ended - self._begun) / (JOBS - 1)

    def _handle(self, ctx: Context[Any]) -> None:
        place = next(self._starts)
        if place == 0:
            self._begun = time.process_time()
        elif place == JOBS // 2:
            self.look()
        elif place == JOBS - 1:
            self._ended = time.process_time()


class Prometheus(Plain):
    """What ``--http`` adds, and one scrape."""

    name = "Prometheus metrics, as of --http"

    def prepare(self) -> None:
        self._registry = CollectorRegistry()
        self.observers = (Metrics(self._registry),)

    def look(self) -> None:
        generate_latest(self._registry)


class Api(Plain):
    """``instrument(jobs)`` where no SDK is configured."""

    name = "instrument(), without an SDK"

    def prepare(self) -> None:
        instrument(self.jobs)


class OtelMetrics(Plain):
    """Metrics of OpenTelemetry, read once."""

    name = "OpenTelemetry metrics"

    def prepare(self) -> None:
        self._reader = InMemoryMetricReader()
        meters = MeterProvider([self._reader], shutdown_on_exit=False)
        instrument(self.jobs, tracer_provider=NoOpTracerProvider(), meter_provider=meters)

    def look(self) -> None:
        self._reader.get_metrics_data()


class OtelTraces(Plain):
    """Traces of OpenTelemetry: a span for each job."""

    name = "OpenTelemetry traces"

    def prepare(self) -> None:
        tracers = TracerProvider(shutdown_on_exit=False)
        tracers.add_span_processor(BatchSpanProcessor(_Dropped()))
        instrument(self.jobs, tracer_provider=tracers, meter_provider=NoOpMeterProvider())


VARIANTS: Final[tuple[Callable[[int], Plain], ...]] = (
    Plain,
    Prometheus,
    Api,
    OtelMetrics,
    OtelTraces,
)


def measure(engine: Engine) -> Iterator[str]:
    """Measure all of them, and tell the figures, line by line."""
    variants = [make(number) for number, make in enumerate(VARIANTS)]
    for variant in variants:
        variant.jobs.metadata.create_all(engine)
        variant.drain(engine)  # not counted
    rounds: list[dict[str, float]] = []
    for number in range(ROUNDS):
        first = number % len(variants)
        turns = variants[first:] + variants[:first]
        rounds.append({variant.name: variant.drain(engine) * 1e6 for variant in turns})
    yield f"{JOBS:,} jobs, {ROUNDS} rounds; CPU of a job in µs: median, least, more than nothing"
    for variant in variants:
        each = [one[variant.name] for one in rounds]
        more = median(one[variant.name] - one[Plain.name] for one in rounds)
        share = median(one[variant.name] / one[Plain.name] - 1 for one in rounds)
        yield f"{variant.name:34}{median(each):7.1f}{min(each):7.1f}{more:+7.1f} ({share:+.1%})"


def main() -> None:
    """Measure, on a server of its own."""
    with EmbeddedPostgres.start() as server:
        engine = create_engine(server.url.replace("postgresql:", "postgresql+psycopg:", 1))
        for line in measure(engine):
            sys.stdout.write(f"{line}\n")
        engine.dispose()


if __name__ == "__main__":
    main()
