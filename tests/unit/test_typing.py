"""What mypy says to users of the package: the mistakes it finds, and what it knows."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

GOLDEN = sorted((Path(__file__).parents[1] / "typing").glob("*.py"))


@pytest.mark.timeout(240)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.name)
def test_mypy_finds_what_the_file_says(path: Path) -> None:
    """Each marked line has exactly this error, and no other line has any."""
    expected = {
        (number, code)
        for number, line in enumerate(path.read_text().splitlines(), 1)
        for code in re.findall(r"# E: ([a-z-]+)", line)
    }

    done = subprocess.run(
        [sys.executable, "-m", "mypy", "--config-file=", "--strict", "--hide-error-context", path],
        capture_output=True,
        text=True,
        check=False,
        cwd=path.parents[2],
    )

    found = re.findall(rf"{path.name}:(\d+): error: .*\[([a-z-]+)\]$", done.stdout, re.MULTILINE)
    assert {(int(number), code) for number, code in found} == expected, done.stdout + done.stderr
    assert len(expected) > 10
