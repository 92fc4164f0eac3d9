"""What the docs name exists."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"


def test_the_tests_that_reliability_names_exist() -> None:
    """Each by file and name."""
    named = re.findall(r"`(test_\w+\.py)::(test_\w+)`", (DOCS / "reliability.md").read_text())

    assert len(named) > 60
    missing = [
        f"{file}::{name}"
        for file, name in named
        if not re.search(rf"^(async )?def {name}\(", (TESTS / file).read_text(), re.MULTILINE)
    ]
    assert missing == []


def test_links_lead_to_files() -> None:
    """In the README and in every page of the docs."""
    for page in (TESTS.parent / "README.md", *DOCS.rglob("*.md")):
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in link or (page.parent / link).exists(), f"{page.name}: {link}"


def test_actions_are_pinned_by_their_commit() -> None:
    """A tag can be moved to other code; a commit can't."""
    used = [
        line.strip()
        for workflow in sorted((TESTS.parent / ".github" / "workflows").glob("*.y*ml"))
        for line in workflow.read_text().splitlines()
        if re.match(r"\s*-?\s*uses:", line)
    ]

    assert used or not (TESTS.parent / ".github").exists(), "a source distribution has none"
    unpinned = [line for line in used if not re.search(r"@[0-9a-f]{40}( #.*)?$", line)]
    assert unpinned == []
