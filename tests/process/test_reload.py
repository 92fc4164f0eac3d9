"""``worker --reload``: a process anew when a file changes, and what a mistake in it leads to."""

from __future__ import annotations

import os
import queue
import signal
import sys
import textwrap
import threading
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import MetaData

from sqlalchemy_bgjob import BGJob
from sqlalchemy_bgjob._process import reload
from sqlalchemy_bgjob._process import supervisor as supervisor_module
from sqlalchemy_bgjob._process.supervisor import Supervisor
from support.children import FakeChild
from support.cli import run
from support.commands import TESTS, Command, process_exists
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from sqlalchemy import Engine

    from support.tuning import Tune

APP = """
    from pathlib import Path
    from sqlalchemy import MetaData
    from sqlalchemy_bgjob import BGJob, Context
    from support.waiting import wait_until
    import words

    jobs = BGJob(MetaData())

    @jobs.handler("note", session=False)
    def note(ctx: Context, folder: str) -> None:
        with Path(folder, "notes").open("a") as notes:
            print(words.WORD, file=notes)

    @jobs.handler("block", session=False)
    def block(ctx: Context, folder: str) -> None:
        Path(folder, "begun").touch()
        wait_until(Path(folder, "go").exists, 120)
        note(ctx, folder)
"""


class Shop:
    """An application in a folder, the command that runs it, and what its jobs have noted."""

    def __init__(self, folder: Path, engine: Engine) -> None:
        self.folder, self.engine = folder, engine
        self.jobs = BGJob(MetaData())
        self.jobs.metadata.create_all(engine)
        self.code = folder / "code"
        self.code.mkdir()
        self.write("shop", textwrap.dedent(APP))
        self.write("words", "WORD = 1\n")
        self.command: Command

    def write(self, module: str, text: str) -> None:
        (self.code / f"{module}.py").write_text(text)

    def enqueue(self, type: str) -> None:
        self.jobs.enqueue(self.engine, type, str(self.folder), queue="default")

    def notes(self) -> list[str]:
        file = self.folder / "notes"
        return file.read_text().split() if file.exists() else []

    def works_as(self, *words: str) -> None:
        """A job that is enqueued now is run, and by this time all words were noted."""
        self.enqueue("note")
        try:
            wait_until(lambda: self.notes() == [*words], 60, what=f"notes of {words}")
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.command.stderr}") from None

    def pids(self) -> list[int]:
        """Of the processes that were started, in order."""
        lines = self.command.stderr.splitlines()
        return [int(line.rpartition(" ")[2]) for line in lines if "process 1 started: pid" in line]


@pytest.fixture
def shop(tmp_path: Path, engine: Engine, database_url: str) -> Iterator[Shop]:
    """Watched from a working directory that is another folder."""
    shop = Shop(tmp_path, engine)
    arguments = ["worker", "shop:jobs", "--app-dir", str(shop.code), "--reload"]
    path = ":".join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    environment = {"BGJOB_DATABASE_URL": database_url, "PYTHONPATH": path}
    with Command(tmp_path, *arguments, **environment) as shop.command:
        yield shop
    wait_until(lambda: not any(map(process_exists, shop.pids())), 60, what="the end of all")


def test_a_changed_file_is_run_and_a_broken_one_is_shown(shop: Shop) -> None:
    """From start to Ctrl-C, as somebody works."""
    shop.works_as("1")

    shop.write("words", "WORD = 2\n")
    shop.command.says("words.py changed: starting anew")
    wait_until(lambda: len(shop.pids()) == 2, 60, what="another process")
    shop.works_as("1", "2")

    shop.write("words", "WORD = (\n")
    shop.command.says("SyntaxError: '(' was never closed")
    shop.command.says("process 1 exited with 2: waiting for a change")
    shop.write("words", "WORD = 3\n")
    shop.works_as("1", "2", "3")

    assert "starting another in" not in shop.command.stderr
    shop.command.signal(signal.SIGINT)
    assert shop.command.wait() == 0, shop.command.stderr


def test_what_runs_ends_before_the_change_is_read(shop: Shop) -> None:
    """Two changes meanwhile are one: the process that comes next has read both."""
    shop.enqueue("block")
    wait_until((shop.folder / "begun").exists, 60, what="the start of a job")

    shop.write("words", "WORD = 2\n")
    shop.command.says("SIGTERM: draining")
    shop.write("more", "")
    shop.command.says("more.py changed")
    assert shop.notes() == []
    (shop.folder / "go").touch()
    shop.works_as("1", "2")

    assert len(shop.pids()) == 2
    assert "second signal" not in shop.command.stderr


def test_what_to_install_is_said(database_url: str, tmp_path: Path) -> None:
    (tmp_path / "watchfiles.py").write_text("raise ImportError('as if it were not there')\n")
    arguments = ["worker", "support.cli_app:functions", "--reload"]
    with Command(
        tmp_path,
        *arguments,
        BGJOB_DATABASE_URL=database_url,
        PYTHONPATH=f"{tmp_path}:{':'.join(filter(None, sys.path))}",
    ) as command:
        assert command.wait() == 2
    assert 'not installed; pip install "sqlalchemy-bgjob[reload]"' in command.stderr


def test_it_does_not_go_with_an_end_when_idle(database_url: str, tmp_path: Path) -> None:
    arguments = ["worker", "support.cli_app:functions", "--reload", "--until-idle"]
    with Command(tmp_path, *arguments, BGJOB_DATABASE_URL=database_url) as command:
        assert command.wait() == 2
    assert "leave out --until-idle" in command.stderr


def test_folders_alone_reload_nothing_and_that_is_said(in_process: None) -> None:
    code, _, err = run("worker", "support.cli_app:functions", "--reload-dir", ".")

    assert (code, "add --reload" in err) == (2, True)


# ---- the parts by themselves --------------------------------------------------------------------


def test_only_python_files_count(tmp_path: Path) -> None:
    """Not what editors, Git and Python write beside them."""
    for name in ("package", "__pycache__", ".git"):
        (tmp_path / name).mkdir()
    found = reload.changes([tmp_path])
    told: queue.SimpleQueue[list[str]] = queue.SimpleQueue()
    threading.Thread(target=lambda: [told.put(files) for files in found], daemon=True).start()

    def is_told() -> bool:
        (tmp_path / "begin.py").touch()
        return not told.empty()

    wait_until(is_told, 60, what="the first change")
    for name in ("__pycache__", ".git"):
        (tmp_path / name / "module.py").touch()
    (tmp_path / ".module.py.swp").touch()
    (tmp_path / "readme.txt").touch()
    (tmp_path / "package" / "last.py").touch()

    seen: set[str] = set()
    while not any(path.endswith("last.py") for path in seen):
        seen |= {*told.get(timeout=60)}
    assert seen == {str(tmp_path / "begin.py"), str(tmp_path / "package" / "last.py")}


def test_a_folder_that_may_not_be_read_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the data of a container's database. Root may read all, so nothing is made here."""
    asked: dict[str, Any] = {}

    def watch(*folders: Path, **options: Any) -> Iterator[Any]:
        asked.update(options)
        return iter(())

    monkeypatch.setattr("watchfiles.watch", watch)

    assert list(reload.changes([tmp_path])) == []
    assert asked["ignore_permission_denied"] is True


class Child(FakeChild):
    """One of this file's supervisors."""

    made: list[Child]


class Bench:
    """A supervisor whose files and processes are the test's."""

    def __init__(self, shutdown_timeout: float) -> None:
        self.children = Child.made
        self.changed: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.supervisor = Supervisor(["worker"], 1, shutdown_timeout, changes=self._changes())
        self.codes: list[int] = []
        run = self.supervisor.run
        threading.Thread(target=lambda: self.codes.append(run()), daemon=True).start()
        self.wait_for(1)

    def _changes(self) -> Iterator[list[str]]:
        while True:
            found = self.changed.get()
            if isinstance(found, Exception):
                raise found
            yield found

    def wait_for(self, count: int) -> Child:
        wait_until(lambda: len(self.children) == count, what=f"{count} processes")
        return self.children[-1]

    def end(self) -> int:
        self.supervisor.on_signal(signal.SIGINT, None)
        found = wait_until(lambda: self.codes, what="the end")
        assert found
        return found[0]


@pytest.fixture
def children(monkeypatch: pytest.MonkeyPatch) -> list[Child]:
    monkeypatch.setattr(supervisor_module, "Child", Child)
    Child.made = []
    return Child.made


def test_a_process_that_does_not_drain_is_killed(
    children: list[Child], tune: Tune, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as one whose module never comes to its end when it is imported."""
    tune(supervisor_module, STUCK_AFTER=0.05)
    bench = Bench(shutdown_timeout=0.05)

    bench.changed.put(["a.py"])
    bench.wait_for(2).end(2)
    wait_until(lambda: "waiting for a change" in caplog.text)

    assert children[0].got == [signal.SIGTERM, "killed"]
    assert bench.end() == 0


def test_ctrl_c_while_a_change_drains_releases_nothing(children: list[Child]) -> None:
    """It is the first request of whoever is there: the process drains already."""
    bench = Bench(shutdown_timeout=30)

    bench.changed.put(["a.py"])
    wait_until(lambda: children[0].got)
    bench.supervisor.on_signal(signal.SIGINT, None)
    wait_until(lambda: bench.supervisor._passed_on == 1)
    bench.changed.put(["b.py"])
    children[0].end(0)

    assert wait_until(lambda: bench.codes) == [0]
    assert children[0].got == [signal.SIGTERM]
    assert len(children) == 1


def test_a_crash_is_met_as_ever(children: list[Child]) -> None:
    bench = Bench(shutdown_timeout=30)

    children[0].end(1)
    bench.wait_for(2).end(3)  # the database refuses: no restart mends it, but a change may
    bench.changed.put(["a.py"])
    bench.wait_for(3)
    bench.supervisor.on_signal(signal.SIGINT, None)
    wait_until(lambda: children[2].got)
    children[2].end(0)

    assert wait_until(lambda: bench.codes) == [0]


def test_files_that_cant_be_watched_end_it(
    children: list[Child], caplog: pytest.LogCaptureFixture
) -> None:
    """Rather than to go on with code of which nobody knows how old it is."""
    bench = Bench(shutdown_timeout=30)

    with caplog.at_level("ERROR", "sqlalchemy_bgjob"):
        bench.changed.put(OSError("inotify limit reached"))
        wait_until(lambda: children[0].got)
        children[0].end(0)
        assert wait_until(lambda: bench.codes) == [1]
    assert (
        "can't watch files: inotify limit reached; stopping; watch a smaller folder" in caplog.text
    )
