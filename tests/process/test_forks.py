"""The tests' own forks: they do what a new interpreter does."""

from __future__ import annotations

import importlib
import os
import signal
from typing import TYPE_CHECKING

import pytest

from support.commands import MODULE, Command
from support.forks import IMPORTED, Fork, can_fork

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", IMPORTED)
def test_what_forks_have_is_there(name: str) -> None:
    """A name that is not found costs each fork a second, and fails nowhere."""
    importlib.import_module(name)


@pytest.mark.parametrize("words", [("worker", "nowhere:jobs"), ("nonsense",), ("queues",)])
def test_a_fork_ends_and_speaks_like_an_interpreter(tmp_path: Path, words: tuple[str, ...]) -> None:
    ends = []
    for program in ((), MODULE):
        with Command(tmp_path, *words, program=program, cwd=tmp_path) as command:
            ends.append((command.wait(), command.stdout, command.stderr))
            assert isinstance(command._process, Fork) == (program == ())
    assert ends[0] == ends[1]
    assert ends[0][0] != 0


@pytest.mark.parametrize(
    ("number", "said"), [(signal.SIGKILL, ""), (signal.SIGTERM, ""), (signal.SIGINT, "Traceback")]
)
def test_a_fork_that_is_signalled_at_once_ends_by_it(
    tmp_path: Path, number: signal.Signals, said: str
) -> None:
    file = tmp_path / "output"
    fork = Fork(signal.pause, cwd=tmp_path, env=os.environ, output=(file, file))
    assert fork.poll() is None

    fork.send_signal(number)

    assert fork.wait(60) == -number
    assert file.read_text()[:9] == said


def test_what_an_interpreter_reads_at_its_start_needs_one() -> None:
    assert can_fork({**os.environ, "BGJOB_QUEUES": "mail"})
    assert not can_fork({**os.environ, "PYTHONWARNINGS": "error"})
    assert not can_fork({**os.environ, "TZ": "Asia/Kathmandu"})
