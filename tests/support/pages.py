"""Pages of the docs whose Python is a project of several files: package ``shop``."""

from __future__ import annotations

import ast
import importlib
import re
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]


def files_of(page: str) -> dict[str, str]:
    """By its path what a page shows of each file; the first line of such a block is the path."""
    return dict(re.findall(r"```python\n# (\S+\.py)\n(.*?)```", text_of(page), re.DOTALL))


def other_python_of(page: str) -> list[str]:
    """The blocks that are no file."""
    return re.findall(r"```python\n(?!# \S+\.py\n)(.*?)```", text_of(page), re.DOTALL)


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text("utf-8")


def package_of(example: str) -> dict[str, str]:
    """By its path each file of an example's package that has more than a docstring."""
    folder = ROOT / "examples" / example
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in (folder / "shop").rglob("*.py")
        if len(ast.parse(path.read_text("utf-8")).body) > 1
    }


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Let ``shop`` be imported from a folder: others have a package of this name too."""
    _forget_shop()
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        _forget_shop()


def _forget_shop() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "shop"]:
        del sys.modules[name]
