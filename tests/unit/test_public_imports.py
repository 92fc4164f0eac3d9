"""What users import, and from where: these paths stay."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

import sqlalchemy_bgjob

PUBLIC = {
    "sqlalchemy_bgjob": sqlalchemy_bgjob.__all__,
    "sqlalchemy_bgjob.aio": ["AsyncWorker"],
    "sqlalchemy_bgjob.alembic_plugin": ["setup"],
    "sqlalchemy_bgjob.bgjob": ["BGJob"],
    "sqlalchemy_bgjob.cli": ["main"],
    "sqlalchemy_bgjob.exceptions": [
        "BGJobError",
        "InvalidArg",
        "JobAlreadyExists",
        "SchemaOutOfDate",
        "UnknownType",
        "WorkerLost",
        "WorkerRefused",
        "WorkerStuck",
    ],
    "sqlalchemy_bgjob.models": ["DeadJobMixin", "JobMixin"],
    "sqlalchemy_bgjob.retry": [
        "GIVE_UP",
        "constant",
        "exponential",
        "on_exception",
        "retry_after",
        "steps",
    ],
    "sqlalchemy_bgjob.schema": [
        "LATEST",
        "check",
        "db_version",
        "downgrade",
        "migrate",
        "migration_sql",
        "migrations_path",
        "upgrade",
    ],
    "sqlalchemy_bgjob.settings": ["WorkerSettings"],
    "sqlalchemy_bgjob.telemetry": ["FinishedRun", "JobInfo", "Observer"],
    "sqlalchemy_bgjob.telemetry.opentelemetry": ["instrument"],
    "sqlalchemy_bgjob.telemetry.prometheus": ["Metrics"],
    "sqlalchemy_bgjob.testing": [
        "EmbeddedPostgres",
        "EmbeddedPostgresError",
        "EnqueuedJob",
        "Fired",
        "Inline",
        "JobKit",
    ],
    "sqlalchemy_bgjob.testing.faults": ["kill_worker_after", "let_time_pass", "main"],
    "sqlalchemy_bgjob.web": ["PERMISSIONS", "Access", "Permission", "dashboard"],
    "sqlalchemy_bgjob.worker": ["Worker"],
}


@pytest.mark.parametrize("module", PUBLIC)
def test_each_public_name_is_where_it_was(module: str) -> None:
    found = importlib.import_module(module)

    assert [name for name in PUBLIC[module] if not hasattr(found, name)] == []


def test_type_checkers_see_the_names_that_are_imported_late() -> None:
    """From the same modules: the two lists are beside each other, and nothing else joins them."""
    tree = ast.parse(Path(sqlalchemy_bgjob.__file__).read_text())
    (checked,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        name.asname: node.module
        for node in checked.body
        if isinstance(node, ast.ImportFrom)
        for name in node.names
    }

    assert seen == sqlalchemy_bgjob._HOME_OF


@pytest.mark.parametrize("greenlet", ["installed", "missing"])
def test_import_of_all_names(greenlet: str) -> None:
    """SQLAlchemy 2.1 does not bring greenlet, and only AsyncWorker needs it."""
    code = f"""
        import sys
        if {greenlet!r} == "missing":
            sys.modules["greenlet"] = None
        from sqlalchemy_bgjob import *
        import sqlalchemy_bgjob
        names = set(dir(sqlalchemy_bgjob))
        assert names <= set(globals()), names - set(globals())
        assert set(sqlalchemy_bgjob._HOME_OF) - names == (
            {{"AsyncWorker"}} if {greenlet!r} == "missing" else set()
        ), names
        try:
            from sqlalchemy_bgjob import AsyncWorker
        except ImportError as error:
            assert "greenlet" in str(error) and {greenlet!r} == "missing"
        else:
            assert {greenlet!r} == "installed"
    """
    subprocess.run([sys.executable, "-W", "error", "-c", textwrap.dedent(code)], check=True)


def test_each_public_module_is_imported_first_without_the_others() -> None:
    """A circle of imports shows only to whoever enters it at the wrong place."""
    code = """
        import importlib, os, sys
        import sqlalchemy.ext.asyncio, sqlalchemy.orm
        failed = []
        for module in sys.argv[1:]:
            if (child := os.fork()) == 0:
                importlib.import_module(module)
                os._exit(0)
            if os.waitpid(child, 0)[1] != 0:
                failed.append(module)
        assert not any(name.startswith("sqlalchemy_bgjob") for name in sys.modules)
        sys.exit(", ".join(failed) or 0)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *PUBLIC]
    subprocess.run(command, check=True)


def test_each_public_module_does_without_what_windows_lacks() -> None:
    """No worker there is promised, but an import must not fail: a test suite has the plugin."""
    code = """
        import asyncio, importlib, os, pkgutil, signal, subprocess, sys, tempfile
        for module in ("fcntl", "grp", "pwd", "resource", "termios", "tty"):
            sys.modules[module] = None
        missing = {
            os: ["chown", "fork", "geteuid", "killpg", "register_at_fork", "sysconf"],
            signal: ["SIGHUP", "SIGKILL", "SIGQUIT", "SIGWINCH"],
        }
        for holder, names in missing.items():
            for name in names:
                delattr(holder, name)
        modules = [*sys.argv[1:], "sqlalchemy_bgjob.pytest_plugin"]
        for module in modules:
            importlib.import_module(module)
        import sqlalchemy_bgjob.cli as commands
        for module in pkgutil.iter_modules(commands.__path__, "sqlalchemy_bgjob.cli."):
            importlib.import_module(module.name)
    """
    command = [sys.executable, "-W", "error", "-c", textwrap.dedent(code), *PUBLIC]
    done = subprocess.run(command, check=False, capture_output=True, text=True)

    assert done.returncode == 0, done.stderr
