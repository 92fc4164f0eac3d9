"""Where the application's modules are found: last, so that none of them replaces a library."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from support.commands import Command

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NOWHERE = "postgresql+psycopg://127.0.0.1:1/x"
SCRIPT = (str(Path(sys.executable).with_name("sqlalchemy-bgjob")),)
MODULE = (sys.executable, "-m", "sqlalchemy_bgjob")

APP = """
from sqlalchemy import MetaData
from sqlalchemy_bgjob import BGJob
import helpers
jobs = BGJob(MetaData())
@jobs.handler("t")
def t(ctx): ...
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working directory whose modules have names that libraries have too."""
    folder = tmp_path / "application"
    folder.mkdir()
    (folder / "app.py").write_text(APP)
    (folder / "helpers.py").touch()
    for name in ("json", "sqlalchemy", "click", "psycopg", "threading"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('./{name}.py was imported')\n")
    return folder


def run(program: Sequence[str], *arguments: str, cwd: Path, **environment: str) -> tuple[int, str]:
    """Exit code and stderr of a command that ends."""
    done = subprocess.run(
        [*program, *arguments],
        cwd=cwd,
        env={"BGJOB_DATABASE_URL": NOWHERE, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    return done.returncode, done.stderr


@pytest.mark.core
@pytest.mark.parametrize("program", [SCRIPT, MODULE], ids=["script", "module"])
def test_modules_beside_app_replace_no_library(folder: Path, program: Sequence[str]) -> None:
    code, err = run(program, "worker", "app:nothing", cwd=folder)

    assert (code, err.strip()) == (2, "Error: module 'app' has no 'nothing'")


@pytest.mark.parametrize("program", [SCRIPT, MODULE], ids=["script", "module"])
def test_other_commands_look_into_no_working_directory(
    folder: Path, program: Sequence[str]
) -> None:
    code, err = run(program, "migrate", cwd=folder)

    assert (code, "the database refuses" in err) == (3, True), err


@pytest.mark.parametrize("program", [SCRIPT, MODULE], ids=["script", "module"])
def test_modules_beside_app_replace_no_library_in_children(
    folder: Path, tmp_path: Path, program: Sequence[str]
) -> None:
    """They are started by ``-m``, which puts the working directory before everything."""
    if program is SCRIPT:
        (folder / "typing.py").write_text("raise RuntimeError('./typing.py was imported')\n")
    with Command(
        *(tmp_path, "worker", "app:jobs", "--processes", "2"),
        cwd=folder,
        program=program,
        BGJOB_DATABASE_URL=NOWHERE,
    ) as command:
        command.says("no connection to the database")
        assert "was imported" not in command.stderr


def test_app_dir_names_another_folder(
    folder: Path, tmp_path: Path, start: Callable[..., Command]
) -> None:
    options = {"cwd": tmp_path, "BGJOB_DATABASE_URL": NOWHERE}
    start("worker", "app:jobs", "--app-dir", "application", **options).says("no connection")
    start("worker", "app:jobs", BGJOB_APP_DIR="application", **options).says("no connection")
    unknown = start("worker", "ap:jobs", "--app-dir", "application", **options)
    assert unknown.wait() == 2
    assert "did you mean 'app'?" in unknown.stderr
    assert str(folder) in unknown.stderr
    missing = start("worker", "app:jobs", "--app-dir", "nowhere", **options)
    assert missing.wait() == 2
    assert "'nowhere' does not exist" in missing.stderr


def test_an_installed_module_of_the_same_name_is_told(folder: Path, tmp_path: Path) -> None:
    """It comes first; whoever means the other one is told how to get it."""
    installed = tmp_path / "installed"
    installed.mkdir()
    (installed / "app.py").touch()

    code, err = run(
        SCRIPT, "worker", "app:jobs", cwd=folder, PYTHONPATH=str(installed), BGJOB_QUEUE="default"
    )

    assert code == 2
    assert f"'app' is imported from {str(installed / 'app.py')!r}" in err
    assert f"not from {str(folder / 'app.py')!r}" in err
    assert "PYTHONPATH" in err
    assert "module 'app' has no 'jobs'" in err


def test_the_same_module_found_twice_is_nothing_to_tell(folder: Path) -> None:
    """As with an application that is installed in editable mode."""
    code, err = run(SCRIPT, "worker", "helpers:jobs", cwd=folder, PYTHONPATH=f"{folder.parent}")
    assert (code, err.strip()) == (2, "Error: module 'helpers' has no 'jobs'")
    alone = folder.parent / "alone"
    alone.mkdir()
    (alone / "app.py").touch()
    code, err = run(SCRIPT, "worker", "app:jobs", cwd=alone, PYTHONPATH=str(alone))
    assert (code, err.strip()) == (2, "Error: module 'app' has no 'jobs'")
