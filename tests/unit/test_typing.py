"""What type checkers say to users of the package: the mistakes they find, and what they know."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
GOLDEN = sorted((ROOT / "tests" / "typing").glob("*.py"))
EXPECTED = {
    (path.name, number): code
    for path in GOLDEN
    for number, line in enumerate(path.read_text().splitlines(), 1)
    for code in re.findall(r"# E: ([a-z-]+)", line)
}
"""By file and line: mypy's name of the error there."""
RULES = {
    "arg-type": {"reportArgumentType", "reportCallIssue", "reportReturnType"},
    "attr-defined": {"reportAttributeAccessIssue", "reportGeneralTypeIssues"},
    "call-arg": {"reportCallIssue"},
    "call-overload": {"reportArgumentType", "reportCallIssue"},
    "misc": {"reportArgumentType", "reportCallIssue"},
    "type-var": {"reportArgumentType", "reportCallIssue"},
    "typeddict-item": {"reportReturnType", "reportArgumentType"},
    "unused-coroutine": {"reportUnusedCoroutine"},
}
"""What pyright calls the same errors."""


@pytest.mark.timeout(240)
def test_mypy_finds_what_the_files_say() -> None:
    """Each marked line has exactly this error, and no other line has any.

    By the project's options, strict ones, so that it finds in the cache what ``nox -s types`` left.
    """
    done = run("mypy", "--hide-error-context", *GOLDEN)

    errors = re.findall(r"(\w+\.py):(\d+): error: .*\[([a-z-]+)\]$", done, re.MULTILINE)
    found = {((name, int(line)), code) for name, line, code in errors}
    assert found == set(EXPECTED.items()), done
    assert len(found) > 50


@pytest.mark.timeout(240)
def test_pyright_finds_the_same() -> None:
    """In its strict mode, which the files ask for."""
    done = run("pyright", "--outputjson", "--pythonpath", sys.executable, *GOLDEN)

    errors = {
        (Path(found["file"]).name, found["range"]["start"]["line"] + 1, found.get("rule"))
        for found in json.loads(done)["generalDiagnostics"]
    }
    assert {(name, line) for name, line, _ in errors} == set(EXPECTED), done
    # On the same line it may also tell what follows from the error.
    expected = {(*where, rule) for where, code in EXPECTED.items() for rule in RULES[code]}
    assert {(name, line) for name, line, _ in errors & expected} == set(EXPECTED), done


def run(checker: str, *arguments: str | Path) -> str:
    command = [sys.executable, "-m", checker, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT).stdout
