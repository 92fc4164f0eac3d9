"""The pytest plugin, in a project of its own that runs pytest."""

from __future__ import annotations

import subprocess
import sys
from importlib.metadata import entry_points
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

PLUGIN = "sqlalchemy_bgjob.pytest_plugin"
COMMAND = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
APP = """
from sqlalchemy import MetaData
from sqlalchemy_bgjob import BGJob

jobs = BGJob(MetaData())

@jobs.handler("greet")
def greet(ctx, name: str): ...
"""
CONFTEST = """
import pytest

@pytest.fixture(scope="session")
def bgjob_jobs():
    from app import jobs
    return jobs
"""
TEST = """
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session
from sqlalchemy_bgjob import enqueue
from app import greet, jobs

def test_sign_up(bgjob, bgjob_postgres):
    engine = create_engine(bgjob_postgres)
    jobs.metadata.create_all(engine)
    with Session(engine) as session:
        enqueue(session, greet, "Ada")
        bgjob.assert_enqueued(session, greet, "Ada")
        assert len(bgjob.work_due(session)) == 1
    engine.dispose()
"""


def run_pytest(folder: Path, **files: str) -> subprocess.CompletedProcess[str]:
    for name, content in {"app": APP, **files}.items():
        (folder / f"{name}.py").write_text(content)
    found = {entry.value for entry in entry_points(group="pytest11")}
    # Where the package is not installed, as when another checkout is tested, it is named.
    by_name = [] if PLUGIN in found else ["-p", PLUGIN]
    return subprocess.run(
        [*COMMAND, *by_name],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_test_has_the_kit_and_a_server(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, conftest=CONFTEST, test_app=TEST)

    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout


def test_a_project_that_names_no_bgjob_is_told_how(tmp_path: Path) -> None:
    done = run_pytest(tmp_path, test_app="def test_it(bgjob): ...")

    assert done.returncode != 0
    assert "write into conftest.py" in done.stdout
    assert "def bgjob_jobs():" in done.stdout


def test_the_plugin_costs_no_import_of_sqlalchemy() -> None:
    words = "import sys, sqlalchemy_bgjob.pytest_plugin; print('sqlalchemy' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
