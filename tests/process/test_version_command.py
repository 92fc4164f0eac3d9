"""``version`` names what matters to a report."""

from __future__ import annotations

import re
from importlib import metadata
from typing import TYPE_CHECKING

from support.cli import run

if TYPE_CHECKING:
    import pytest


def test_version_tells_what_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", missing)

    assert re.search(r"^psycopg +not installed$", run("version")[1], re.MULTILINE)


def test_version_names_everything_that_matters() -> None:
    code, out, _ = run("version")

    assert code == 0
    for word in ("sqlalchemy-bgjob", "Python", "SQLAlchemy", "psycopg", "asyncpg", "schema"):
        assert word in out
