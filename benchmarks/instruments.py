"""What metrics and traces cost a worker of threads: ``python -m benchmarks.instruments``.

It drains the same jobs, whose handler does nothing, with each of them, in turns, and prints the CPU
of the worker's process for each job: the median of the rounds, in microseconds.
"""

import sys
import time
from collections.abc import Callable
from statistics import median
from typing import Any, Final

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from sqlalchemy import Engine, create_engine, text
from sqlalchemy.orm import DeclarativeBase

from sqlalchemy_bgjob import BGJob, Context, Worker, enqueue_many
from sqlalchemy_bgjob.telemetry.opentelemetry import instrument
from sqlalchemy_bgjob.telemetry.prometheus import Metrics
from sqlalchemy_bgjob.testing import EmbeddedPostgres

JOBS: Final = 20_000
ROUNDS: Final = 5


def _nothing(jobs: BGJob[Any, Any]) -> tuple[Metrics, ...]:
    return ()


def _metrics(jobs: BGJob[Any, Any]) -> tuple[Metrics, ...]:
    return (Metrics(CollectorRegistry()),)


def _api_alone(jobs: BGJob[Any, Any]) -> tuple[Metrics, ...]:
    instrument(jobs)
    return ()


def _sdk(jobs: BGJob[Any, Any]) -> tuple[Metrics, ...]:
    instrument(
        jobs,
        tracer_provider=TracerProvider(shutdown_on_exit=False),
        meter_provider=MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False),
    )
    return ()


WITH: Final[dict[str, Callable[[BGJob[Any, Any]], tuple[Metrics, ...]]]] = {
    "nothing": _nothing,
    "Metrics()": _metrics,
    "instrument(), no SDK": _api_alone,
    "instrument(), SDK, each span kept": _sdk,
}


def drain(engine: Engine, prepare: Callable[[BGJob[Any, Any]], tuple[Metrics, ...]]) -> float:
    """CPU seconds of this process for each job."""

    class Base(DeclarativeBase):
        pass

    jobs: BGJob[Any, Any] = BGJob(Base)

    @jobs.handler("nothing", session=False)
    def nothing(ctx: Context[Any]) -> None:
        """Do nothing."""

    observers = prepare(jobs)
    Base.metadata.create_all(engine)
    enqueue_many(engine, nothing, [None] * JOBS)
    begun = time.process_time()
    Worker(jobs, engine, observers=observers, until_idle=True).run()
    took = time.process_time() - begun
    with engine.begin() as connection:
        assert connection.scalar(text("SELECT count(*) FROM bgjob_job")) == 0
    return took / JOBS


def main() -> None:
    """Measure, on a server of its own."""
    with EmbeddedPostgres.start() as server:
        engine = create_engine(server.url.replace("postgresql:", "postgresql+psycopg:", 1))
        found: dict[str, list[float]] = {name: [] for name in WITH}
        for _ in range(ROUNDS):
            for name, prepare in WITH.items():
                found[name].append(drain(engine, prepare) * 1e6)
        engine.dispose()
    for name, each in found.items():
        sys.stdout.write(
            f"{name:40} {median(each):6.1f} us  ({min(each):.1f} to {max(each):.1f})\n"
        )


if __name__ == "__main__":
    main()
