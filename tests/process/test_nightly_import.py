"""examples/nightly_import: the script as cron runs it, and psycopg2 without SQLAlchemy."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from types import NoneType
from typing import TYPE_CHECKING, Any

import psycopg2
import pytest
from sqlalchemy import text
from sqlalchemy.orm import Session

from sqlalchemy_bgjob import Complete
from support.rows import query

if TYPE_CHECKING:
    from collections.abc import Iterator

    from sqlalchemy import Engine

    from conftest import UrlFor

FOLDER = Path(__file__).parents[2] / "examples" / "nightly_import"
TOLD = ast.get_docstring(ast.parse((FOLDER / "nightly.py").read_text())) or ""
NAMES = ("nightly", "psycopg2_only")


@pytest.fixture
def nightly(url_for: UrlFor, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The script as a module, in a database where its tables are made."""
    monkeypatch.setenv("DATABASE_URL", url_for("psycopg2"))
    monkeypatch.syspath_prepend(str(FOLDER))
    module = importlib.import_module("nightly")
    module.Base.metadata.create_all(module.engine)
    yield module
    module.engine.dispose()
    for name in NAMES:
        sys.modules.pop(name, None)


def test_the_script_imports_all_and_ends(
    nightly: Any, engine: Engine, url_for: UrlFor, capfd: pytest.CaptureFixture[str]
) -> None:
    """A line that is no number is dead and makes the exit code 1; mended, it is imported next."""
    with engine.begin() as connection:
        connection.execute(text("INSERT INTO lines VALUES (0, 'n/a')"))
    (command,) = re.findall(r"^ *\$ python (nightly\.py .*)$", TOLD, re.MULTILINE)
    arguments = [word.replace("200000", "300") for word in shlex.split(command)]
    assert "300" in arguments

    done = subprocess.run([sys.executable, *arguments], cwd=FOLDER, check=False)

    out, _ = capfd.readouterr()
    assert done.returncode == 1
    assert "300 imported, 1 dead" in out
    assert "301/301" in out
    assert query(engine, "SELECT count(*), min(line) FROM readings") == [(300, 1)]
    assert query(engine, "SELECT job_id FROM bgjob_dead_job") == [("line-0",)]
    with engine.begin() as connection:
        connection.execute(text("UPDATE lines SET words = '20.5' WHERE number = 0"))
    assert nightly.main(["--work"]) == 0
    assert query(engine, "SELECT count(*), min(line) FROM readings") == [(301, 0)]


def test_a_line_with_a_job_is_not_enqueued_again(nightly: Any, engine: Engine) -> None:
    """A run that begins while the jobs of the last one wait adds none of its own."""
    with Session(engine) as session, session.begin():
        nightly.make_lines(session, 3)
        nightly.enqueue_new(session)
        first = nightly.jobs_left(session)
        nightly.enqueue_new(session)

        assert first == nightly.jobs_left(session) == 3


def test_programs_on_psycopg2_alone_hand_over_jobs(nightly: Any, engine: Engine) -> None:
    """In its transaction by SQLAlchemy, by hand without, and from a table without a model."""
    psycopg2_only = importlib.import_module("psycopg2_only")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE inbox AS SELECT 3 AS n"))
        connection.execute(text("INSERT INTO lines VALUES (3, '22.5')"))

    psycopg2_only.in_one_transaction(nightly.engine)
    url = engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with closing(psycopg2.connect(url)) as connection:
        psycopg2_only.by_hand(connection)
    with nightly.engine.begin() as connection:
        assert psycopg2_only.from_a_table_without_a_model(connection) == 1

    outcomes = [nightly.jobs.work_one(nightly.engine, "import") for _ in range(4)]
    assert [type(outcome) for outcome in outcomes] == [Complete, Complete, Complete, NoneType]
    readings = query(engine, "SELECT line, celsius FROM readings ORDER BY line")
    assert readings == [(1, 20.5), (2, 21.5), (3, 22.5)]
