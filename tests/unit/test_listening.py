"""How a driver's notifications are waited for."""

from __future__ import annotations

import fcntl
import os
import resource
import socket
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_bgjob._worker.listener import _wait_psycopg2

if TYPE_CHECKING:
    from collections.abc import Iterator

BEYOND = 1_024
"""The first number of a file that ``select.select()`` refuses."""


@pytest.fixture
def many_files() -> Iterator[None]:
    """This process may open so many."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, BEYOND + 100), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


class Notification:
    channel, payload = "channel", "payload"


class Driver:
    """A connection of psycopg2's, as far as it is used; the first poll reads a notification."""

    def __init__(self, number: int) -> None:
        self._number = number
        self.notifies: list[Notification] = []

    def fileno(self) -> int:
        return self._number

    def poll(self) -> None:
        self.notifies.append(Notification())


@pytest.mark.usefixtures("many_files")
def test_psycopg2_is_heard_where_many_files_are_open() -> None:
    """Else a worker in a large application would never be notified."""
    here, there = socket.socketpair()
    with here, there:
        number = fcntl.fcntl(here, fcntl.F_DUPFD, BEYOND)
        there.send(b"!")
        heard: list[tuple[str, str]] = []

        _wait_psycopg2(Driver(number), lambda *it: heard.append(it), 10.0)

        os.close(number)
    assert heard == [("channel", "payload")]
