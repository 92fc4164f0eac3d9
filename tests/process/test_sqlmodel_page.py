"""docs/sqlmodel.md as it stands: its files, what it says of args, and its test.

Its commands are run by test_examples.py.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

import pytest
from sqlmodel import Session, SQLModel, select

from support.pages import ROOT, files_of, importable, other_python_of, package_of

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = "sqlmodel.md"
TEST = "tests/test_receipts.py"


@pytest.fixture
def db(database_url: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module ``shop.db`` of the example, with its tables made."""
    monkeypatch.setenv("DATABASE_URL", database_url)
    others = set(SQLModel.metadata.tables)
    with importable(ROOT / "examples" / "sqlmodel_shop"):
        importlib.import_module("shop.models").create_tables()
        db = importlib.import_module("shop.db")
        yield db
        db.engine.dispose()
    for name in set(SQLModel.metadata.tables) - others:  # all who use SQLModel share them
        SQLModel.metadata.remove(SQLModel.metadata.tables[name])


def test_the_page_shows_the_files_of_the_example() -> None:
    shown = files_of(PAGE)
    assert other_python_of(PAGE) == []
    assert TEST in shown
    assert {p: text for p, text in shown.items() if p != TEST} == package_of("sqlmodel_shop")


def test_its_test_passes_and_leaves_nothing(db: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    program: dict[str, Any] = {}
    exec(files_of(PAGE)[TEST], program)

    program["test_a_receipt_is_sent"](monkeypatch)

    with Session(db.engine) as session:
        assert session.exec(select(program["Order"])).all() == []
        assert session.exec(select(db.jobs.Job)).all() == []
