"""Processes of a supervisor that are none: each ends when the test says so."""

from __future__ import annotations

import threading
from typing import Any


class FakeChild:
    """A child as the supervisor sees it; a test's own subclass has the list of those made."""

    made: list[Any]

    def __init__(self, arguments: object, *, name: str, inherits: object) -> None:
        self.process, self.name = self, name
        self.pid, self.returncode, self.started_at = 4, 0, 0.0
        self.ended = threading.Event()
        self.got: list[object] = []
        self.made.append(self)

    def wait(self) -> None:
        self.ended.wait(60)

    def send(self, number: int) -> None:
        self.got.append(number)

    def kill(self) -> None:
        self.got.append("killed")
        self.end(-9)

    def end(self, code: int) -> None:
        self.returncode = code
        self.ended.set()

    def close(self) -> None:
        pass
