"""docs/guides/records.md: its blocks are one program, which runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "records.md"


@pytest.mark.core
def test_the_program_of_the_page_runs(
    database_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    program: dict[str, Any] = {"DATABASE_URL": database_url}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL):
        exec(compile(block, PAGE.name, "exec", dont_inherit=True), program)
    program["engine"].dispose()

    assert "3 of 3: page 3" in capsys.readouterr().out
