"""Fixtures for tests of commands and worker processes."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import pytest

from sqlalchemy_bgjob._process import process, runners
from support import cli_app as app
from support.cli import run
from support.proxy import Proxy

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from sqlalchemy import Engine


@pytest.fixture(autouse=True)
def no_database_of_the_users(monkeypatch: pytest.MonkeyPatch) -> None:
    """What whoever runs the tests has set is not for these: a command would fall back to it."""
    monkeypatch.delenv("DATABASE_URL", raising=False)


@pytest.fixture
def tables(engine: Engine) -> Engine:
    """The tables of ``support.cli_app`` in this test's database."""
    app.metadata.create_all(engine)
    return engine


@pytest.fixture
def proxy(database_url: str) -> Iterator[Proxy]:
    """A proxy before the server, which can break and freeze connections."""
    with Proxy(database_url) as proxy:
        yield proxy


@pytest.fixture
def in_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands may run in this process: they leave its logging and its path as they are."""
    monkeypatch.setattr("sqlalchemy_bgjob._process.logs.configure", lambda *args: None)
    monkeypatch.setattr(sys, "path", list(sys.path))


@pytest.fixture
def bgjob(
    tables: Engine, in_process: None, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run a command on this test's database."""
    monkeypatch.setenv("BGJOB_DATABASE_URL", tables.url.render_as_string(hide_password=False))
    return run


@pytest.fixture
def parsed(
    monkeypatch: pytest.MonkeyPatch, in_process: None
) -> Callable[..., runners.WorkerOptions]:
    """What ``worker`` makes of its arguments and environment."""
    seen: list[runners.WorkerOptions] = []

    def run_worker(options: runners.WorkerOptions) -> int:
        seen.append(options)
        return 0

    monkeypatch.setattr(process, "run_worker", run_worker)

    def parse(*arguments: str, **environment: str) -> runners.WorkerOptions:
        code, _, err = run("worker", *arguments, **environment)
        assert code == 0, err
        return seen.pop()

    return parse


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working directory with a few modules in it."""
    (tmp_path / "shopapp").mkdir()
    (tmp_path / "shopapp" / "__init__.py").touch()
    (tmp_path / "shopapp" / "jobs.py").write_text("class App:\n    jobs = 3\napp = App()\n")
    (tmp_path / "shopmain.py").write_text(
        "class Holder:\n"
        "    @property\n"
        "    def broken(self): raise KeyError('inside')\n"
        "holder = Holder()\n"
        "queue = 7\n"
        "def make(): return 8\n"
        "def fails(): raise ValueError('in the factory')\n"
    )
    (tmp_path / "shopbroken.py").write_text("def work():\n    1 / 0\nwork()\n")
    (tmp_path / "shopneeds.py").write_text("import nosuchlibrary\n")
    (tmp_path / "shopexits.py").write_text("raise SystemExit('no settings')\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.startswith("shop")]:
        del sys.modules[name]
