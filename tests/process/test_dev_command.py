"""``dev``: from an empty folder and a file of eight lines to the first job."""

from __future__ import annotations

import importlib.util
import re
import shlex
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import httpx
import pytest
from sqlalchemy import NullPool, create_engine, inspect

from sqlalchemy_bgjob._process.application import only_jobs
from sqlalchemy_bgjob._process.exits import CommandError
from support.cli import run
from support.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from sqlalchemy import Engine

    from support.commands import Command

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "command_line.md"

OWN_MODELS = """
import os
from sqlalchemy import select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy_bgjob import BGJob

class Base(DeclarativeBase): ...
class Visit(Base):
    __tablename__ = "visits"
    id: Mapped[int] = mapped_column(primary_key=True)

jobs = BGJob(Base, schema="queue", table_prefix="q_", records=True)

@jobs.handler("visit")
def visit(ctx, arg):
    ctx.session.add(Visit())
    ctx.session.flush()
    print(f"visit {len(ctx.session.scalars(select(Visit)).all())} of {os.environ['DATABASE_URL']}.")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """An empty folder that every account can reach, as PostgreSQL does not run as root."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def told(command: Command, what: str) -> str:
    """What the command has said of its database or dashboard."""
    wait_until(lambda: "Ctrl-C ends all" in command.stdout or not command.alive, 60)
    found = re.search(rf"^{what}: +(\S+)$", command.stdout, re.MULTILINE)
    assert found is not None, command.stdout + command.stderr
    return found[1]


def prints(command: Command, words: str) -> str:
    """Wait until a job has printed this; the rest of the line."""
    wait_until(lambda: words in command.stdout or not command.alive, 60, what=words)
    assert words in command.stdout, command.stdout + command.stderr
    return command.stdout.partition(words)[2].partition("\n")[0]


def end(command: Command) -> None:
    command.signal(signal.SIGINT)
    assert command.wait() == 0, command.stderr


def test_a_file_of_eight_lines_to_a_job(
    folder: Path, engine: Engine, database_url: str, start: Callable[..., Command]
) -> None:
    """The file and the command of the page; a database that the environment names is let alone."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    (line,) = re.findall(r"^\$ sqlalchemy-bgjob (dev .*)$", PAGE.read_text(), re.MULTILINE)
    assert len(code.splitlines()) <= 8
    (folder / "jobs.py").write_text(code)
    (folder / "pyproject.toml").write_text(
        f'[tool.sqlalchemy-bgjob]\ndatabase-url = "{database_url}"\nengine = "shop:engine"\n'
    )
    production = {"DATABASE_URL": database_url, "BGJOB_DATABASE_URL": database_url}

    began = time.monotonic()
    command = start(*shlex.split(line), cwd=folder, **production, BGJOB_ENGINE="shop:engine")
    prints(command, "hello Ada")
    seconds = time.monotonic() - began

    assert seconds < 60, "10 s on a machine that does nothing else"
    root = told(command, "dashboard")
    with httpx.Client(base_url=root) as browser:
        assert "greet" in browser.get("/handlers").text
        token = {"csrf": browser.cookies["bgjob_csrf"]}
        paused = browser.post("/do/pause", data={**token, "queue": "default", "back": "/queues"})
        assert paused.status_code == 303, paused.text
        assert browser.post("/do/pause", data={"queue": "default"}).status_code == 403
        assert browser.get("/", headers={"host": "evil.example"}).status_code == 400
    url = told(command, "database")
    end(command)

    assert "the database is kept in .bgjob" in command.stdout
    assert "uvicorn" not in command.stderr
    with socket.socket() as gone, pytest.raises(ConnectionRefusedError):
        gone.connect(("127.0.0.1", int(url.rpartition(":")[2].partition("/")[0])))
    assert inspect(engine).get_table_names() == []
    assert (folder / ".bgjob" / ".gitignore").read_text() == "*\n"


def test_data_are_kept_and_mistakes_are_shown(folder: Path, start: Callable[..., Command]) -> None:
    """The application's own tables too, in its own schema; its own code finds the same database."""
    (folder / "shop").mkdir()
    (folder / "shop" / "__init__.py").touch()
    file = folder / "shop" / "tasks.py"
    file.write_text("jobs = (\n")
    arguments = ["dev", "shop/tasks.py", "--enqueue", "visit", "null"]

    first = start(*arguments, cwd=folder)
    first.says("SyntaxError: '(' was never closed")
    first.says("waiting for a change")
    file.write_text(OWN_MODELS)
    where = prints(first, "visit 1 of ")
    assert where == f"{told(first, 'database')}."
    of_dev = create_engine(where.rstrip("."), poolclass=NullPool)
    with of_dev.connect() as connection:
        assert "q_record" in inspect(connection).get_table_names("queue")
    file.write_text(f"{OWN_MODELS}\n# changed\n")
    prints(first, "visit 2 of ")
    end(first)

    (folder / ".bgjob" / ".gitignore").unlink()  # it is for whoever has made the folder
    second = start(*arguments, cwd=folder)
    prints(second, "visit 3 of ")
    assert not (folder / ".bgjob" / ".gitignore").exists()
    third = start(*arguments, cwd=folder)
    assert third.wait() == 3
    assert "Another `dev` may run in '.bgjob': end that" in third.stderr
    prints(second, "visit 3 of ")
    end(second)


def test_models_that_do_not_fit_are_told_once(folder: Path, start: Callable[..., Command]) -> None:
    """And a schema of theirs is made, as all else is."""
    file = folder / "jobs.py"
    wrong = OWN_MODELS.replace("mapped_column(primary", "mapped_column(ForeignKey('x.id'), primary")
    file.write_text(f"from sqlalchemy import ForeignKey\n{wrong}")

    command = start("dev", "jobs.py", "--enqueue", "visit", "null", cwd=folder)
    command.says("the tables can't be created: NoReferencedTableError: ")
    command.says("waiting for a change")
    assert "Traceback" not in command.stderr
    own = '__tablename__ = "visits"\n    __table_args__ = {"schema": "of_visits"}'
    file.write_text(OWN_MODELS.replace('__tablename__ = "visits"', own))
    prints(command, "visit 1 of ")
    end(command)


def test_it_leaves_no_process_when_it_is_killed(
    folder: Path, start: Callable[..., Command]
) -> None:
    (folder / "tasks.py").write_text(OWN_MODELS)
    command = start("dev", "tasks.py", "--enqueue", "visit", "null", cwd=folder)
    prints(command, "visit 1 of ")

    command.signal(signal.SIGKILL)
    command.wait()

    def left() -> bytes:
        listed = subprocess.run(["ps", "ax"], capture_output=True, check=True).stdout
        return b"\n".join(it for it in listed.splitlines() if bytes(folder) in it)

    wait_until(lambda: not left(), 60, what="the end of all")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["nothing.py"], "there is no file 'nothing.py' in"),
        (["my-jobs.py"], "'my-jobs' is no module's name"),
        (["my-shop/jobs.py"], "'my-shop' is no module's name"),
        (["jobs.py", "--until-idle"], "leave out --until-idle"),
        (["jobs.py", "--poll-interval", "0"], "poll_interval=0.0 is not between"),
        (["jobs.py", "--data-dir", "jobs.py"], "is a file"),
    ],
)
def test_what_can_not_be_run_is_said(
    folder: Path, start: Callable[..., Command], arguments: list[str], words: str
) -> None:
    (folder / "my-shop").mkdir()
    for name in ("jobs.py", "my-jobs.py", "my-shop/__init__.py", "my-shop/jobs.py"):
        (folder / name).touch()

    command = start("dev", *arguments, cwd=folder)

    assert command.wait() == 2
    assert words in command.stderr


def test_a_port_that_was_asked_for_must_be_free(
    folder: Path, start: Callable[..., Command]
) -> None:
    (folder / "jobs.py").touch()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = start("dev", "jobs.py", "--port", str(port), cwd=folder)
        assert command.wait() == 2
    assert f"can't listen on 127.0.0.1 port {port}: Address already in use" in command.stderr


def test_a_port_is_kept_while_nothing_is_served(
    folder: Path, start: Callable[..., Command]
) -> None:
    """Of two at one port, the second says so; the first serves it once its file is mended."""
    file = folder / "jobs.py"
    file.write_text("jobs = (\n")
    first = start("dev", "jobs.py", cwd=folder)
    root = told(first, "dashboard")
    first.says("waiting for a change")
    port = root.rstrip("/").rpartition(":")[2]

    second = start("dev", "jobs.py", "--port", port, "--data-dir", "other", cwd=folder)
    assert second.wait() == 2
    assert f"can't listen on 127.0.0.1 port {port}: Address already in use" in second.stderr

    file.write_text(OWN_MODELS)
    assert "visit" in httpx.get(f"{root}handlers", timeout=60).text
    end(first)


def test_what_to_install_is_said(monkeypatch: pytest.MonkeyPatch, in_process: None) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util,
        "find_spec",
        lambda name, *args: None if name == "watchfiles" else found(name, *args),
    )

    code, _, err = run("dev", "shop:jobs")

    assert code == 2
    assert "dev needs watchfiles" in err
    assert 'pip install "sqlalchemy-bgjob[dev-server]"' in err


SEVERAL = """
from sqlalchemy import MetaData
from sqlalchemy_bgjob import BGJob
first = BGJob(MetaData())
second = BGJob(MetaData())
again = first
"""


@pytest.mark.parametrize(
    ("module", "words"),
    [
        ("jobs = 7", "'shopjobs' has no BGJob; write in it: jobs = BGJob"),
        (SEVERAL, "has several BGJobs: name shopjobs:first or shopjobs:second"),
    ],
)
def test_a_module_must_have_one_bgjob(modules: Path, module: str, words: str) -> None:
    (modules / "shopjobs.py").write_text(module)
    with pytest.raises(CommandError, match=words):
        only_jobs("shopjobs", modules, ())
