"""docs/flask.md as it stands: its files, its migration, a worker in a process, and its test.

Its commands are run by test_examples.py.
"""

from __future__ import annotations

import ast
import importlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import text

from support import wait_until
from support.pages import ROOT, files_of, importable, other_python_of, package_of, text_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PAGE = "flask.md"
FOLDER = ROOT / "examples" / "flask_shop"
TEST = "tests/test_receipts.py"
MIGRATION, WORKER = other_python_of(PAGE)
FROM_NOTHING = """
import shlex, sys
from shop import create_app
for command in sys.argv[1:]:
    done = create_app().test_cli_runner().invoke(args=shlex.split(command))
    print(command, done.output, done.exception)
    assert done.exit_code == 0
"""
REFUSE_AT_COMMIT = """
CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN RAISE EXCEPTION ''closed today''; END';
CREATE CONSTRAINT TRIGGER refuse AFTER INSERT ON orders DEFERRABLE INITIALLY DEFERRED
    FOR EACH ROW EXECUTE FUNCTION refuse();
"""


class Shop:
    """The example, imported into this process; every application that was made of it."""

    def __init__(self) -> None:
        package: Any = importlib.import_module("shop")
        self.mails: list[str] = []
        self.apps: list[Any] = []
        self._create_app = package.create_app
        package.create_app = self.create_app
        self.app = self.create_app()
        self.db = importlib.import_module("shop.extensions").db
        self.jobs = importlib.import_module("shop.extensions").jobs
        tasks: Any = importlib.import_module("shop.tasks")
        tasks.send_mail = lambda to, subject, message_id: self.mails.append(to)
        with self.app.app_context():
            self.db.create_all()

    def create_app(self) -> Any:
        self.apps.append(self._create_app())
        return self.apps[-1]

    def orders(self) -> list[dict[str, Any]]:
        return list(self.app.test_client().get("/orders").json)

    def jobs_left(self) -> int:
        with self.app.app_context():
            return int(self.db.session.query(self.jobs.Job).count())

    def close(self) -> None:
        for app in self.apps:
            with app.app_context():
                self.db.engine.dispose()


@pytest.fixture
def shop(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shop]:
    monkeypatch.setenv("DATABASE_URL", database_url)
    with importable(FOLDER):
        shop = Shop()
        yield shop
        shop.close()


def test_the_page_shows_the_files_of_the_example() -> None:
    shown = files_of(PAGE)
    assert TEST in shown
    assert {path: text for path, text in shown.items() if path != TEST} == package_of("flask_shop")


def test_flask_migrate_makes_the_examples_migration(database_url: str, tmp_path: Path) -> None:
    """By the commands of the page, from nothing; then nothing is left to migrate."""
    shutil.copytree(FOLDER / "shop", tmp_path / "shop")
    told = re.findall(r"^\$ flask --app shop (db .*)$", text_of(PAGE), re.MULTILINE)
    assert [shlex.split(command)[1] for command in told] == ["init", "migrate", "upgrade"]

    done = subprocess.run(
        [sys.executable, "-c", FROM_NOTHING, *told, "db check"],
        cwd=tmp_path,
        env={**os.environ, "DATABASE_URL": database_url},
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    [made], [kept] = (folder.glob("migrations/versions/*.py") for folder in (tmp_path, FOLDER))
    assert steps(made) == steps(kept)
    assert MIGRATION in kept.read_text("utf-8")


def steps(migration: Path) -> list[str]:
    """What a migration does, without its comments and its id."""
    tree = ast.parse(migration.read_text("utf-8"))
    return [ast.unparse(part) for part in tree.body if isinstance(part, ast.FunctionDef)]


@pytest.mark.core
def test_a_worker_inside_a_process_sends_the_receipt(shop: Shop) -> None:
    answer = shop.app.test_client().post("/orders", data={"email": "ada@example.com"})
    assert answer.status_code == 201
    assert [order["receipt_sent_at"] for order in shop.orders()] == [None]

    def sent() -> bool:
        return all(order["receipt_sent_at"] for order in shop.orders())

    exec(WORKER, {"wait_until_sent": lambda: wait_until(sent, 60, what="the receipt")})

    assert shop.mails == ["ada@example.com"]
    assert shop.jobs_left() == 0


def test_an_order_that_does_not_commit_leaves_no_job(shop: Shop) -> None:
    """Though the job was enqueued, and written, before the COMMIT failed."""
    with shop.app.app_context():
        shop.db.session.execute(text(REFUSE_AT_COMMIT))
        shop.db.session.commit()

    answer = shop.app.test_client().post("/orders", data={"email": "ada@example.com"})

    assert answer.status_code == 500
    assert (shop.orders(), shop.jobs_left()) == ([], 0)


def test_its_test_passes_and_leaves_nothing(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    program: dict[str, Any] = {}
    exec(files_of(PAGE)[TEST], program)

    program["test_a_receipt_is_sent"](monkeypatch)

    assert (shop.orders(), shop.jobs_left(), shop.mails) == ([], 0, [])
