"""The pages in docs/reference leave out nothing that is public."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from pkgutil import resolve_name

import pytest
from test_public_imports import PUBLIC

from sqlalchemy_bgjob import exceptions
from sqlalchemy_bgjob._process import exits
from sqlalchemy_bgjob.exceptions import BGJobError
from sqlalchemy_bgjob.telemetry import _EVENTS

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
DIRECTIVE = re.compile(
    r"^ *\.\. (module|currentmodule|auto\w+|click):: (\S+)\n(?: +:members:([^\n]*))?", re.MULTILINE
)


def documented() -> set[int]:
    """The ids of all objects for which some page has a directive."""
    found: set[int] = set()
    for page in REFERENCE.glob("*.md"):
        inside = ""
        for kind, target, members in DIRECTIVE.findall(page.read_text()):
            if kind.endswith("module"):
                inside = target
            if kind == "automodule":
                module = importlib.import_module(target)
                names = members.replace(",", " ").split() or vars(module)
                found |= {id(getattr(module, name)) for name in names}
            elif not kind.endswith("module"):
                full = target if target.startswith("sqlalchemy_bgjob") else f"{inside}.{target}"
                found.add(id(resolve_name(full)))
    return found


@pytest.mark.parametrize("module", PUBLIC)
def test_each_public_name_has_its_place_in_the_reference(module: str) -> None:
    """Made by autodoc from its docstring, or by sphinx-click from its options."""
    shown = documented()
    found = importlib.import_module(module)
    names = [name for name in PUBLIC[module] if name not in ("__version__", "main")]

    assert [name for name in names if id(getattr(found, name)) not in shown] == []


def table(page: str) -> list[str]:
    """The first cells of a page's table."""
    return re.findall(r"^\| `?([\w +]+?)`? \|", (REFERENCE / page).read_text(), re.MULTILINE)[1:]


def test_the_table_of_events_is_complete() -> None:
    assert table("events.md") == list(_EVENTS)


def test_the_table_of_errors_is_complete() -> None:
    """Each class of the module of errors, and the root of them."""
    errors = {
        name
        for name, value in vars(exceptions).items()
        if isinstance(value, type) and issubclass(value, BGJobError)
    }
    assert sorted(table("errors.md")) == sorted(errors)


def test_the_table_of_exit_codes_is_complete() -> None:
    codes = [exits.OK, exits.FAILED, exits.USAGE, exits.DATABASE, exits.SCHEMA]
    assert table("exit_codes.md") == [*map(str, codes), f"{exits.SIGNALLED} + n"]
