"""The Python of docs/guides/metrics.md and traces.md, as it stands."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import prometheus_client
import pytest
import sentry_sdk
from prometheus_client import CollectorRegistry
from sentry_sdk.transport import Transport
from sqlalchemy.orm import DeclarativeBase

from sqlalchemy_bgjob import BGJob, Observer, Worker
from sqlalchemy_bgjob.telemetry import prometheus
from sqlalchemy_bgjob.telemetry.prometheus import Metrics
from support.pages import text_of
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sentry_sdk.envelope import Envelope
    from sqlalchemy import Engine


def python_of(page: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", text_of(page), re.DOTALL)


class Sent(Transport):
    """Keeps what would be sent to Sentry."""

    items: list[dict[str, Any]]

    def capture_envelope(self, envelope: Envelope) -> None:
        self.items += [item.payload.json for item in envelope.items if item.payload.json]


@pytest.fixture
def sent() -> Iterator[list[dict[str, Any]]]:
    Sent.items = []
    sentry_sdk.init(
        dsn="https://key@sentry.invalid/1",
        transport=Sent,
        traces_sample_rate=1.0,
        default_integrations=False,
        auto_enabling_integrations=False,
    )
    yield Sent.items
    sentry_sdk.get_client().close(timeout=0)
    sentry_sdk.init(default_integrations=False, auto_enabling_integrations=False)


@pytest.fixture
def program(engine: Engine) -> dict[str, Any]:
    class Base(DeclarativeBase):
        pass

    jobs = BGJob(Base)

    @jobs.handler("charge")
    def charge(ctx: Any, number: int) -> None:
        if number < 0:
            raise ValueError("declined")

    Base.metadata.create_all(engine)
    return {"jobs": jobs, "engine": engine, "Worker": Worker, "Observer": Observer}


def work(program: dict[str, Any], *observers: Observer) -> None:
    with Worker(program["jobs"], program["engine"], observers=observers, listen=False):
        wait_until(lambda: not waiting(program["engine"]), 60)


def waiting(engine: Engine) -> int:
    with engine.connect() as connection:
        query = "SELECT count(*) FROM bgjob_job WHERE next_run_at <= clock_timestamp()"
        return int(connection.exec_driver_sql(query).scalar_one())


def test_a_program_shows_its_metrics(
    program: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = CollectorRegistry()  # that of the library can be used once in a process
    monkeypatch.setattr(prometheus.Metrics.__init__, "__defaults__", (registry,))
    monkeypatch.setattr(prometheus_client.generate_latest, "__defaults__", (registry, None)[
        : len(prometheus_client.generate_latest.__defaults__ or ())
    ])  # fmt: skip
    for block in python_of("guides/metrics.md"):
        exec(block, program)

    program["jobs"].enqueue(program["engine"], "charge", 7)
    with program["worker"]:
        wait_until(lambda: not waiting(program["engine"]), 60)

    assert capsys.readouterr().out == "True\n"
    labels = {"queue": "default", "type": "charge", "outcome": "completed"}
    assert registry.get_sample_value("bgjob_jobs_finished_total", labels) == 1


def test_the_tables_of_metrics_are_complete() -> None:
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    metrics._new_series("q", "t").count("completed")
    gauges = {family.name for family in metrics.describe()}
    own = {
        "bgjob_jobs_finished_total",
        "bgjob_job_duration_seconds",
        "bgjob_job_wait_seconds",
        "bgjob_worker_errors_total",
    }
    rows = re.findall(r"^\| `(bgjob_\w+)` \|", text_of("guides/metrics.md"), re.MULTILINE)

    assert sorted(rows) == sorted(gauges | own)


def test_one_call_instruments_the_jobs(program: dict[str, Any]) -> None:
    exec(python_of("guides/traces.md")[0], program)
    program["jobs"].enqueue(program["engine"], "charge", 7)
    work(program)

    assert waiting(program["engine"]) == 0
    assert len(program["jobs"].registry.additions.producers) == 1


def test_sentry_joins_request_and_job(program: dict[str, Any], sent: list[dict[str, Any]]) -> None:
    """Its queue spans have what its page shows; a failed attempt is reported once, in its trace."""
    for block in python_of("guides/traces.md")[1:]:
        exec(block, program)

    with sentry_sdk.start_transaction(op="http.server", name="request") as request:
        for number in (7, -1):
            program["jobs"].enqueue(program["engine"], "charge", number)
    work(program)
    wait_until(lambda: len([one for one in sent if one.get("type") == "transaction"]) == 3, 60)

    runs = [
        one for one in sent if one.get("contexts", {}).get("trace", {}).get("op") == "queue.task"
    ]
    errors = [one for one in sent if one.get("exception")]
    spans = [span for run in runs for span in run["spans"] if span["op"] == "queue.process"]
    assert {run["contexts"]["trace"]["trace_id"] for run in runs} == {request.trace_id}
    assert [span["data"]["messaging.destination.name"] for span in spans] == ["default"] * 2
    assert all(span["data"]["messaging.message.receive.latency"] >= 0 for span in spans)
    assert [error["exception"]["values"][-1]["value"] for error in errors] == ["declined"]
    assert errors[0]["contexts"]["trace"]["trace_id"] == request.trace_id
    assert issubclass(program["Report"], Observer)
