"""The pytest plugin, in a project of its own that runs pytest."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

from support.kit_project import run_pytest

if TYPE_CHECKING:
    from pathlib import Path

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

def test_nobody_signs_up(bgjob, bgjob_postgres):
    engine = create_engine(bgjob_postgres)
    with Session(engine) as session:
        bgjob.assert_enqueued(session, greet, "Ada")
"""


def run_project(folder: Path, **files: str) -> subprocess.CompletedProcess[str]:
    for name, content in {"app": APP, **files}.items():
        (folder / f"{name}.py").write_text(content)
    return run_pytest(folder, "-p", "no:xdist")


def test_a_test_has_the_kit_and_a_server(tmp_path: Path) -> None:
    done = run_project(tmp_path, conftest=CONFTEST, test_app=TEST)

    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert '>           bgjob.assert_enqueued(session, greet, "Ada")' in done.stdout
    assert "AssertionError: no job is enqueued in this transaction; looked" in done.stdout
    assert "looking.py" not in done.stdout, "the line of the test is shown, and no other"


def test_a_project_that_names_no_bgjob_is_told_how(tmp_path: Path) -> None:
    done = run_project(tmp_path, test_app="def test_it(bgjob): ...")

    assert done.returncode != 0
    assert "write into conftest.py" in done.stdout
    assert "def bgjob_jobs():" in done.stdout


def test_the_plugin_costs_no_import_of_sqlalchemy() -> None:
    words = "import sys, sqlalchemy_bgjob.pytest_plugin; print('sqlalchemy' in sys.modules)"

    done = subprocess.run([sys.executable, "-c", words], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"


def test_a_forgotten_await_fails_the_test(tmp_path: Path) -> None:
    forgotten = """
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from app import greet

def test_it(bgjob):
    session = AsyncSession(create_async_engine("postgresql+asyncpg://"))
    bgjob.assert_enqueued(session, greet, "Ada")
"""
    done = run_project(tmp_path, conftest=CONFTEST, test_app=forgotten)

    assert "1 passed, 1 error" in done.stdout, done.stdout
    assert "bgjob.assert_enqueued(...) was never awaited: write `await bgjob." in done.stdout
