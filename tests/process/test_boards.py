"""The boards and alert rules of examples/monitoring: every metric exists, all SQL runs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser
import pytest
import yaml
from prometheus_client import CollectorRegistry
from sqlalchemy import text

from sqlalchemy_bgjob.telemetry.prometheus import Metrics
from support import cli_app as app

if TYPE_CHECKING:
    from sqlalchemy import Engine

FOLDER = Path(__file__).parents[2] / "examples" / "monitoring"
BOARDS = {name: json.loads((FOLDER / name).read_text()) for name in (
    "grafana-prometheus.json", "grafana-postgresql.json"
)}  # fmt: skip
RULES = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
OF_BOARD = [
    target["expr"]
    for panel in BOARDS["grafana-prometheus.json"]["panels"]
    for target in panel["targets"]
]
EXPRESSIONS = [*OF_BOARD, *(rule["expr"] for rule in RULES)]
SQL = {
    panel["title"]: panel["targets"][0]["rawSql"]
    for panel in BOARDS["grafana-postgresql.json"]["panels"]
}
STATES = {"due", "scheduled", "running"}
OUTCOMES = {
    *("completed", "rescheduled", "retried", "dead", "cancelled", "expired", "unknown_type"),
    "lease_lost",
}


def labels_by_metric() -> dict[str, set[str]]:
    """The labels of each series that a worker can show."""
    made = Metrics(CollectorRegistry())
    found = {family.name: set(family._labelnames) for family in made.describe()}
    found["bgjob_jobs_finished_total"] = {"queue", "type", "outcome"}
    found["bgjob_worker_errors_total"] = set()
    found["bgjob_job_duration_seconds_bucket"] = {"queue", "type", "le"}
    found["bgjob_job_wait_seconds_bucket"] = {"queue", "le"}
    return found


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_each_expression_names_what_there_is(expression: str) -> None:
    """Its metrics, their labels, and the values that are compared; and PromQL can parse it."""
    known = labels_by_metric()
    promql_parser.parse(expression.replace("$__rate_interval", "5m"))
    bare = re.sub(r'"[^"]*"', '""', expression)
    metrics = re.findall(r"\bbgjob_\w+", bare)
    labels = {label for metric in metrics for label in known[metric]}
    grouped = [name for group in re.findall(r"by \(([^)]*)\)", bare) for name in group.split(", ")]
    compared = re.findall(r'(\w+)=~?"([^"]*)"', expression)

    assert metrics
    assert {*grouped, *(name for name, _ in compared)} <= labels
    for name, values in compared:
        if name in ("state", "outcome"):
            assert set(values.split("|")) <= STATES | OUTCOMES


def test_each_alert_says_what_to_do() -> None:
    for rule in RULES:
        assert rule["alert"].startswith("Bgjob")
        assert rule["labels"]["severity"] in ("page", "ticket")
        assert set(rule["annotations"]) == {"summary", "action"}
        grouped = set(re.findall(r"\$labels\.(\w+)", str(rule["annotations"])))
        assert grouped <= set(re.findall(r"\w+", rule["expr"])) | {"queue"}


@pytest.mark.parametrize("title", SQL)
def test_each_panel_of_sql_runs(tables: Engine, title: str) -> None:
    """As Grafana sends it, on tables that have a row of each kind."""
    span = r"\1 BETWEEN now() - interval '1 hour' AND now()"
    statement = re.sub(r"\$__timeFilter\((\w+)\)", span, SQL[title])
    assert "$__" not in statement
    with tables.begin() as connection:
        connection.execute(text(
            "INSERT INTO bgjob_worker (id, hostname, pid, version, queues, lease_timeout)"
            " VALUES (1, 'h', 1, '0', '{}', 60)"
        ))  # fmt: skip
        connection.execute(text(
            "INSERT INTO bgjob_job (id, queue, type, claimed_by, last_error)"
            " VALUES ('a', 'q', 't', 1, NULL), ('b', 'q', 't', NULL, 'E: no' || chr(10) || 'x')"
        ))  # fmt: skip
        connection.execute(text(
            "INSERT INTO bgjob_dead_job (id, job_id, queue, type, lease, next_run_at,"
            " job_created_at, job_updated_at, last_error)"
            " VALUES ('1', 'd', 'q', 't', 1, now(), now(), now(), 'E: no')"
        ))  # fmt: skip
        app.functions.pause(connection, "q", by="ada")
        rows = connection.execute(text(statement.replace(":", r"\:"))).mappings().all()

    assert rows
    assert_shows(title, [dict(row) for row in rows])


def assert_shows(title: str, rows: list[dict[str, Any]]) -> None:
    expected: dict[str, dict[str, Any]] = {
        "Queues": {"queue": "q", "due": 1, "running": 1, "scheduled": 0},
        "Paused queues": {"queue": "q", "paused_by": "ada"},
        "Workers": {"hostname": "h", "alive": True},
        "What runs, the longest first": {"id": "a", "hostname": "h"},
        "Failing jobs, by type and error": {"type": "t", "error": "E: no", "jobs": 1},
        "Dead jobs of the time shown, by type and error": {"type": "t", "error": "E: no"},
        "Dead jobs, by the minute": {"metric": "q", "jobs": 1},
        "Dead rows and size": {"table": "bgjob_dead_job"},
    }
    assert expected[title].items() <= rows[0].items()


def test_the_boards_are_whole() -> None:
    for board in BOARDS.values():
        ids = [panel["id"] for panel in board["panels"]]
        assert len(ids) == len(set(ids))
        for panel in board["panels"]:
            assert panel["targets"]
            assert panel["gridPos"]["x"] + panel["gridPos"]["w"] <= 24
            assert panel["datasource"]["uid"] == "${datasource}"
