"""docs/tutorial.md, played from top to bottom: its files, its commands, and what they print."""

from __future__ import annotations

import importlib
import re
import runpy
import shlex
import signal
import sys
from configparser import ConfigParser
from pathlib import Path
from typing import TYPE_CHECKING

import alembic.config
import pytest

from sqlalchemy_bgjob.cli import cli
from support import wait_until
from support.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from support.commands import Command

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
OF_THE_SYSTEM = ("mkdir", "python -m venv", "pip", "createdb", "export", "docker", "systemctl")
"""Commands for which the test has its own folder, environment and server."""


class Reader:
    """Who follows the page: in a folder of their own, with a worker in a second terminal."""

    def __init__(
        self, folder: Path, start: Callable[..., Command], capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.folder, self.start, self.capsys = folder, start, capsys
        self.worker: Command | None = None
        self.ran: list[str] = []

    def write(self, block: str) -> None:
        """Save a file, whose name is in its first line."""
        [name] = re.findall(r"\A# (\S+)\n", block)
        path = self.folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(block)

    def type(self, block: str) -> None:
        """Run each command, and find the lines that it is said to print."""
        for command, *lines in (it.splitlines() for it in block.split("$ ")[1:]):
            if not command.startswith(OF_THE_SYSTEM):
                self.ran.append(command)
                self.run(command, lines)

    def run(self, command: str, lines: list[str]) -> None:
        program, *words = shlex.split(command)
        if words[:1] == ["worker"]:
            self.stop_worker()
            self.worker = self.start(*words, cwd=self.folder)
            self.worker.says("worker of ")
            self.read(lines)
            return
        if "drop_all" in command:
            self.stop_worker()
        forget_shop()
        if program == "alembic":
            alembic.config.main(words)
        elif program == "python":
            python(words)
        else:
            code, out, err = run(*words)
            assert code == 0, out + err
        said = self.capsys.readouterr().out
        assert lines == [] or said_by(lines, said), said

    def read(self, lines: list[str]) -> None:
        """Wait until the worker has said these lines."""
        assert self.worker is not None
        worker = self.worker
        for line in lines:
            wait_until(lambda line=line: said_by([line], worker.stdout + worker.stderr), 60)

    def stop_worker(self) -> None:
        """Press Ctrl-C in the second terminal."""
        if self.worker is not None:
            self.worker.signal(signal.SIGINT)
            assert self.worker.wait() == 0, self.worker.stderr
            self.worker = None


def python(words: list[str]) -> None:
    """Do in this process, with the modules as they stand in the folder, what python would do."""
    if words[0] == "-c":
        exec(words[1], {})
    elif words[0] == "-m":
        assert words == ["-m", "pytest", "tests"]
        names = runpy.run_path("tests/test_receipts.py")
        tests = [names[name] for name in names if name.startswith("test_")]
        assert tests
        for test in tests:
            test()
    else:
        argv, sys.argv = sys.argv, words
        try:
            runpy.run_path(words[0], run_name="__main__")
        finally:
            sys.argv = argv


def forget_shop() -> None:
    """Other tests have a package of this name too, in other folders; and the files change."""
    if "shop.db" in sys.modules:
        sys.modules["shop.db"].engine.dispose()
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]
    importlib.invalidate_caches()


def said_by(lines: list[str], words: str) -> bool:
    """Whether the lines are there, one after another; three dots stand for anything."""
    pattern = "\n".join(re.escape(line).replace(r"\.\.\.", ".*") for line in lines)
    return re.search(f"^{pattern}$", words, re.MULTILINE) is not None


@pytest.fixture
def reader(
    tmp_path: Path,
    database_url: str,
    start: Callable[..., Command],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    in_process: None,
) -> Iterator[Reader]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # a file is changed within a second
    yield Reader(tmp_path, start, capsys)
    forget_shop()


def test_the_tutorial_goes_as_it_says(reader: Reader) -> None:
    """A block after another, as a reader does, with a real worker on a real server."""
    does = {"python": reader.write, "console": reader.type}
    for language, block in BLOCKS:
        if language == "text":
            reader.read(block.splitlines())
        elif language in does:
            does[language](block)

    assert {language for language, _ in BLOCKS} == {"console", "python", "text", "sql", "ini"}
    assert len(reader.ran) == 16
    [revision] = (reader.folder / "migrations" / "versions").glob("*.py")
    assert "bgjob.upgrade(op, from_version=0, to_version=2)" in revision.read_text()
    assert "create_table('orders'" in revision.read_text()


def test_the_tutorials_unit_starts_its_worker() -> None:
    [block] = [block for language, block in BLOCKS if language == "ini"]
    unit = ConfigParser()
    unit.read_string(block)
    program, name, *arguments = shlex.split(unit["Service"]["ExecStart"])

    context = cli.commands[name].make_context(name, arguments)

    assert Path(program).name == "sqlalchemy-bgjob"
    assert context.params["engine"] == "shop.db:engine"
    assert context.params["processes"] == 2
