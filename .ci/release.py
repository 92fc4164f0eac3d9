"""Check that a tag names the version, and take the version's notes out of the changelog.

    python .ci/release.py v0.1.0 release/notes.md

It refuses what is not ready: another tag, lines that no version has, a version without a date.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def main(tag: str, notes: Path) -> None:
    module = (ROOT / "sqlalchemy_bgjob" / "_version.py").read_text()
    (version,) = re.findall(r'^__version__ = "(.+)"$', module, re.MULTILINE)
    try:
        text = notes_of(tag, version, (ROOT / "CHANGELOG.md").read_text())
    except ValueError as error:
        sys.exit(str(error))
    notes.parent.mkdir(exist_ok=True)
    notes.write_text(text)


def notes_of(tag: str, version: str, changelog: str) -> str:
    """The version's section of the changelog, without its heading.

    Raises:
        ValueError: The tag is another version's, or the changelog is not that of a release.
    """
    if tag != f"v{version}":
        raise ValueError(f"the tag is {tag!r}, and _version.py has {version!r}; make them agree")
    parts = re.split(r"^## (.*)\n", changelog, flags=re.MULTILINE)
    sections = {
        heading: text.strip() for heading, text in zip(parts[1::2], parts[2::2], strict=True)
    }
    if sections.get("Unreleased"):
        raise ValueError(f"CHANGELOG.md has lines under Unreleased; move them to {version}")
    for heading, text in sections.items():
        if re.fullmatch(rf"{re.escape(version)} - \d{{4}}-\d\d-\d\d", heading) and text:
            return f"{text}\n"
    raise ValueError(f"CHANGELOG.md has no section '## {version} - YYYY-MM-DD' with lines in it")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
