"""What a service of ``Type=notify`` is told, by a socket in the place of systemd's."""

from __future__ import annotations

import os
import signal
import socket
import tempfile
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

from sqlalchemy_bgjob._process import systemd
from support.commands import Command
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from support.tuning import Tune

WATCHED = {"WATCHDOG_USEC": "20000", "WATCHDOG_PID": str(os.getpid())}


class Systemd:
    """Hears what is told, in order."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(address.replace("@", "\0"))
        self._socket.setblocking(False)
        self._heard: list[str] = []

    def heard(self) -> list[str]:
        try:
            while True:
                self._heard.append(self._socket.recv(100).decode())
        except BlockingIOError:
            return self._heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture
def listener() -> Iterator[Systemd]:
    with tempfile.TemporaryDirectory() as folder:  # tmp_path may be too long for a socket
        listener = Systemd(str(Path(folder, "notify")))
        yield listener
        listener.close()


def worker(**state: Any) -> Any:
    return SimpleNamespace(**{"ready": True, "alive": True, **state})


def test_nobody_is_told_who_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    before = threading.active_count()

    with systemd.told_of(worker()):
        assert threading.active_count() == before
        systemd.notify(systemd.STOPPING)

    monkeypatch.setenv("NOTIFY_SOCKET", "/nowhere/at/all")
    systemd.notify(systemd.STOPPING)


def test_it_hears_of_a_worker_once_that_is_ready(
    listener: Systemd, monkeypatch: pytest.MonkeyPatch, tune: Tune
) -> None:
    tune(systemd, LOOK_EVERY=0.001)
    monkeypatch.setenv("NOTIFY_SOCKET", listener.address)
    looks = 0

    class Starting:
        @property
        def ready(self) -> bool:
            nonlocal looks
            looks += 1
            return looks > 3

    starting: Any = Starting()
    with systemd.told_of(starting):
        wait_until(listener.heard, 30, what="word of the worker")

    assert listener.heard() == ["READY=1"]
    assert looks == 4


def test_an_abstract_name_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Systemd(f"@bgjob-{os.getpid()}")
    monkeypatch.setenv("NOTIFY_SOCKET", listener.address)

    systemd.notify(systemd.STOPPING)

    assert listener.heard() == ["STOPPING=1"]
    listener.close()


@pytest.mark.parametrize("pid", [os.getpid(), os.getppid()], ids=["main process", "its child"])
def test_a_watchdog_hears_of_a_live_worker_alone(
    pid: int, listener: Systemd, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", listener.address)
    for name, value in {**WATCHED, "WATCHDOG_PID": str(pid)}.items():
        monkeypatch.setenv(name, value)

    stuck = worker(alive=False)
    with systemd.told_of(stuck):
        wait_until(listener.heard, 30, what="word of the worker")
        assert "WATCHDOG=1" not in listener.heard()
        stuck.alive = True
        wait_until(lambda: listener.heard().count("WATCHDOG=1") > 1, 30, what="signs of life")


@pytest.mark.parametrize(
    ("name", "value"), [("WATCHDOG_PID", "1"), ("WATCHDOG_USEC", ""), ("WATCHDOG_USEC", "0")]
)
def test_another_process_is_not_watched(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for each, given in {**WATCHED, name: value}.items():
        monkeypatch.setenv(each, given)

    assert systemd._alive_every() is None


@pytest.mark.parametrize("processes", [1, 2])
def test_a_service_is_ready_and_stops(
    processes: int, tables: Engine, database_url: str, listener: Systemd, tmp_path: Path
) -> None:
    """Each process says that it is ready; that the service stops is said once."""
    arguments = ["worker", "support.cli_app:functions", "--queue", "default:3"]
    environment = {"BGJOB_DATABASE_URL": database_url, "NOTIFY_SOCKET": listener.address}

    with Command(tmp_path, *arguments, "--processes", str(processes), **environment) as command:
        wait_until(lambda: len(listener.heard()) == processes, 60, what="all that is ready")
        command.signal(signal.SIGTERM)
        assert command.wait() == 0, command.stderr

    assert listener.heard() == [*["READY=1"] * processes, "STOPPING=1"]
