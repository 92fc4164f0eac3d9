"""``worker --http``: probes and metrics of a real worker process."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import threading
import urllib.error
import urllib.request
from typing import TYPE_CHECKING, Any

import click
import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import create_engine

from sqlalchemy_bgjob import Worker
from sqlalchemy_bgjob._process import endpoint
from sqlalchemy_bgjob._process.address import Address
from sqlalchemy_bgjob._process.endpoint import Answer, Endpoint, probe
from sqlalchemy_bgjob._process.exits import CommandError
from sqlalchemy_bgjob._worker import heart
from support import cli_app as app
from support.cli import notes, run
from support.running import FLAVORS
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from support.commands import Command
    from support.running import Workbench
    from support.tuning import Tune

LISTENS = re.compile(r"probes and metrics on port (\d+) of 127.0.0.1")


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def port_of(command: Command) -> int:
    command.says("probes and metrics on port")
    (port,) = LISTENS.findall(command.stderr)
    return int(port)


def samples_of(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def worker(database_url: str, tables: Engine, start: Callable[..., Command]) -> Command:
    return start(
        *("worker", "support.cli_app:functions", "--queue", "default:2"),
        *("--database-url", database_url, "--http", "127.0.0.1:0", "--health-interval", "0.1"),
    )


@pytest.mark.core
def test_a_worker_is_watched_from_start_to_end(
    worker: Command, tables: Engine, tmp_path: Path
) -> None:
    """Ready once it has claimed, not while it drains; and its metrics are there all the time."""
    port = port_of(worker)
    wait_until(lambda: get(port, "/readyz") == (200, "ready\n"), 60, what=worker.stderr)
    app.functions.enqueue(tables, "note", "one")
    app.functions.enqueue(tables, "block", str(tmp_path))
    wait_until(lambda: notes(tables) and (tmp_path / "started").exists(), 60)

    def shown() -> dict[tuple[str, ...], float]:
        return samples_of(get(port, "/metrics")[1])

    done = ("bgjob_jobs_finished_total", "completed", "default", "note")
    wait_until(lambda: shown().get(done) == 1.0, 60)
    wait_until(lambda: shown().get(("bgjob_queue_jobs", "default", "running")) == 1.0, 60)
    assert ("process_cpu_seconds_total",) in shown()
    worker.signal(signal.SIGTERM)
    wait_until(lambda: get(port, "/readyz") == (503, "not ready\n"), 60)
    assert get(port, "/healthz") == (200, "alive\n")
    assert shown()[done] == 1.0
    (tmp_path / "go").touch()

    assert worker.wait() == 0, worker.stderr
    with pytest.raises(OSError, match="refused"):
        get(port, "/healthz")


def test_each_supervised_process_has_a_port(
    database_url: str, tables: Engine, start: Callable[..., Command]
) -> None:
    """One that is killed comes back on its own port; the gauges of the fleet are at one of them."""
    first = _two_free_ports()
    command = start(
        *("worker", "support.cli_app:functions", "--processes", "2"),
        *("--database-url", database_url, "--http", f"127.0.0.1:{first}"),
        *("--health-interval", "0.1", "--lease-timeout", "3", "--heartbeat-interval", "0.5"),
    )

    def ready(port: int) -> bool:
        try:
            return get(port, "/readyz")[0] == 200
        except OSError:
            return False

    def pids() -> set[int]:
        with tables.connect() as connection:
            rows = connection.exec_driver_sql("SELECT pid FROM bgjob_worker WHERE lost_at IS NULL")
            return {pid for (pid,) in rows}

    def leaders() -> int:
        both = [samples_of(get(first + n, "/metrics")[1]) for n in range(2)]
        return sum(shown.get(("bgjob_workers",)) == 2.0 for shown in both)

    wait_until(lambda: ready(first) and ready(first + 1), 60, what=command.stderr)
    before = wait_until(lambda: len(pids()) == 2 and pids(), 60)
    wait_until(lambda: leaders() == 1, 60, what="one leader")
    os.kill(min(before), signal.SIGKILL)
    wait_until(lambda: len(pids() - before) == 1, 60, what="another process")
    wait_until(lambda: ready(first) and ready(first + 1), 60)
    command.signal(signal.SIGTERM)
    assert command.wait() == 0, command.stderr


def _two_free_ports() -> int:
    """The first of two neighbours that nobody listens on, below those of outgoing connections."""
    for port in range(21_000 + hash(threading.get_native_id()) % 5000, 32_000, 2):
        with socket.socket() as one, socket.socket() as two:
            try:
                one.bind(("127.0.0.1", port))
                two.bind(("127.0.0.1", port + 1))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


def test_without_the_option_nothing_listens(parsed: Callable[..., Any]) -> None:
    assert parsed("app:jobs").http is None
    assert parsed("app:jobs", BGJOB_HTTP="[::1]:9464").http == Address("::1", 9464)


@pytest.mark.parametrize("given", ["9464", ":9464", "::1:9464", "host:", "host:99999", "host:x"])
def test_an_address_has_a_host_and_a_port(given: str, in_process: None) -> None:
    with pytest.raises(click.UsageError, match="is not HOST:PORT"):
        run("worker", "app:jobs", "--http", given)


def test_a_port_that_is_taken_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(CommandError, match=rf"can't listen on 127.0.0.1:{port}: "):
            Endpoint("127.0.0.1", port, {})


@pytest.fixture
def port() -> Iterator[int]:
    pages = {"/healthz": probe(lambda: True, "alive", "dead")}
    with Endpoint("127.0.0.1", 0, pages) as listening:
        yield listening.port


def answer_to(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client:
        client.sendall(request)
        return b"".join(iter(lambda: client.recv(4096), b""))


def test_a_page_that_fails_is_answered_and_told(caplog: pytest.LogCaptureFixture) -> None:
    """As by a collector of the application's own."""

    def fails(accept: str) -> Answer:
        raise ZeroDivisionError("a collector")

    with Endpoint("127.0.0.1", 0, {"/metrics": fails}) as listening:
        answer = answer_to(listening.port, b"GET /metrics HTTP/1.1\r\n\r\n")

    assert answer.split()[1] == b"500"
    assert "no answer can be made: ZeroDivisionError" in caplog.text


@pytest.mark.parametrize(
    ("request_line", "status"),
    [
        (b"GET /nothing HTTP/1.1\r\n\r\n", b"404"),
        (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"404"),
        (b"POST /healthz HTTP/1.1\r\n\r\n", b"501"),
        (b"HEAD /healthz?x=1 HTTP/1.1\r\n\r\n", b"200"),
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /" + b"x" * 70_000 + b" HTTP/1.1\r\n\r\n", b"414"),
        (b"\x16\x03\x01\x02\x00\x01\x00\r\n\r\n", b"400"),
    ],
)
def test_bad_requests_are_answered(port: int, request_line: bytes, status: bytes) -> None:
    assert status in answer_to(port, request_line)[:600]
    assert get(port, "/healthz") == (200, "alive\n")


def test_slow_clients_keep_no_probe_waiting(port: int) -> None:
    """Any number that say nothing: the newest connection is served, the oldest is closed."""
    silent = [socket.create_connection(("127.0.0.1", port), timeout=60) for _ in range(40)]
    try:
        assert get(port, "/healthz") == (200, "alive\n")
        assert silent[0].recv(1) == b"", "it was closed"
        assert threading.active_count() < 40
    finally:
        for one in silent:
            one.close()


def test_a_silent_client_is_left_alone(port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "TIMEOUT", 0.05)
    pages = {"/healthz": probe(lambda: False, "alive", "dead")}
    with (
        Endpoint("127.0.0.1", 0, pages) as hasty,
        socket.create_connection(("127.0.0.1", hasty.port), timeout=60) as client,
    ):
        assert client.recv(1) == b""
        assert get(hasty.port, "/healthz") == (503, "dead\n")


def test_many_clients_at_once_are_all_answered(port: int) -> None:
    """As many as may be connected."""
    answers: list[tuple[int, str]] = []
    clients = [
        threading.Thread(target=lambda: answers.extend(get(port, "/healthz") for _ in range(20)))
        for _ in range(8)
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()

    assert answers == [(200, "alive\n")] * 160


def test_without_the_library_metrics_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "prometheus_client", None)
    with Endpoint("127.0.0.1", 0, {"/metrics": endpoint.metrics_page()}) as listening:
        code, words = get(listening.port, "/metrics")

    assert (code, words) == (501, 'pip install "sqlalchemy-bgjob[prometheus]"\n')


@pytest.mark.parametrize("bench", FLAVORS[:1], ids=str, indirect=True)
def test_a_loop_that_does_not_turn_is_not_alive(bench: Workbench, tune: Tune) -> None:
    bench.handler("plain", lambda session, ctx: None)
    worker = Worker(bench.jobs, create_engine(bench.url), queues={"default": 1})
    assert worker.alive

    tune(heart, NO_PROGRESS_AFTER=-1.0)
    assert not worker.alive
