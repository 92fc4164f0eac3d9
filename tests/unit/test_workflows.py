"""The workflows of GitHub: what they run exists, and they may do no more than they need.

A source distribution has neither them nor the scripts that they run: there is nothing to look at.
"""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml

from sqlalchemy_bgjob import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FILES = sorted((ROOT / ".github" / "workflows").glob("*.y*ml"))
WORKFLOWS: dict[str, dict[Any, Any]] = {
    path.stem: yaml.safe_load(path.read_text()) for path in FILES
}
CHECKOUT = bool(FILES)

MAY_WRITE = {("release", "pypi"): {"id-token"}, ("release", "github"): {"contents"}}
"""By workflow and job: what it may do beyond reading the repository."""


def jobs() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, workflow in WORKFLOWS.items():
        for job, found in workflow["jobs"].items():
            yield name, job, found


def steps() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for name, job, found in jobs():
        for step in found.get("steps", []):
            yield name, job, step


def test_actions_are_pinned_by_their_commit() -> None:
    """A tag can be moved to other code, a commit can't; the tag stands beside it to read."""
    used = [line for path in FILES for line in re.findall(r"uses: (.*)", path.read_text())]
    foreign = [line for line in used if not line.startswith("./")]

    assert bool(foreign) == CHECKOUT
    assert [it for it in foreign if not re.fullmatch(r"[\w./-]+@[0-9a-f]{40} # v[\d.]+", it)] == []
    tags = {(line.partition("@")[0], line.rpartition(" ")[2]) for line in foreign}
    assert len(tags) == len({action for action, _ in tags}), "two versions of one action"


def test_jobs_may_do_no_more_than_they_need() -> None:
    """Nothing by default but to read; what writes is named here, and gets nothing else."""
    for name, workflow in WORKFLOWS.items():
        assert workflow["permissions"] in ({}, {"contents": "read"}), name
        assert not {"pull_request_target", "workflow_run"} & set(workflow[True]), name
    for name, job, found in jobs():
        permissions = found.get("permissions", WORKFLOWS[name]["permissions"])
        writes = {what for what, access in permissions.items() if access != "read"}
        assert writes == MAY_WRITE.get((name, job), set()), f"{name}: {job}"
        assert set(permissions) <= {"contents", *writes}, f"{name}: {job}"


def test_no_job_can_run_for_hours_or_leaves_credentials() -> None:
    assert [
        f"{name}: {job}"
        for name, job, it in jobs()
        if "uses" not in it and "timeout-minutes" not in it
    ] == []
    checkouts = [step for _, _, step in steps() if "actions/checkout@" in step.get("uses", "")]
    assert bool(checkouts) == CHECKOUT
    assert [it for it in checkouts if it.get("with") != {"persist-credentials": False}] == []


def test_no_secret_and_no_name_of_a_tag_gets_into_a_script() -> None:
    """A branch or a tag can be named like a command; as a variable it is not run."""
    assert [path.name for path in FILES if "secrets." in path.read_text()] == []
    inserted = [
        found
        for _, _, step in steps()
        for found in re.findall(r"\$\{\{ *(.*?) *\}\}", step.get("run", ""))
    ]
    assert [it for it in inserted if not it.startswith("matrix.")] == []


def test_what_jobs_run_is_a_session_of_nox() -> None:
    """So all that CI does can be done at home: nothing else but to install, and to publish."""
    others = (r"pip install (-e )?\".*\"", r"bash \.ci/run", r"gh release create .*")
    sessions = matrix_sessions()
    for name, job, step in steps():
        command = step.get("run", "").strip()
        if match := re.match(r"nox -s \"?(\$\{\{ matrix\.session \}\}|\w+)", command):
            sessions.add(match[1])
        else:
            known = not command or any(re.fullmatch(it, command, re.DOTALL) for it in others)
            assert known, f"{name}: {job}: {command}"

    if CHECKOUT:
        noxfile = (ROOT / "noxfile.py").read_text()
        found = set(re.findall(r"^@nox\..*\ndef (\w+)\(", noxfile, re.MULTILINE))
        assert sessions - {"${{ matrix.session }}"} <= found
        assert {"release", "test", "postgres"} <= sessions


def matrix_sessions() -> set[str]:
    """The sessions that jobs name in a matrix, without their parameters."""
    rows = [
        row
        for _, _, it in jobs()
        for row in it.get("strategy", {}).get("matrix", {}).get("include", [])
    ]
    return {row["session"].partition("(")[0] for row in rows if "session" in row}


def test_only_a_tag_that_ci_passed_is_published() -> None:
    """In this order: all of CI, the build, PyPI, and then the page of the release."""
    if not CHECKOUT:
        return
    release = WORKFLOWS["release"]

    assert release[True] == {"push": {"tags": ["v*"]}}
    assert release["jobs"]["ci"]["uses"] == "./.github/workflows/ci.yml"
    assert "workflow_call" in WORKFLOWS["ci"][True]
    needs = {job: found.get("needs") for job, found in release["jobs"].items()}
    assert needs == {"ci": None, "build": "ci", "pypi": "build", "github": "pypi"}
    assert release["jobs"]["pypi"]["environment"]["name"] == "pypi"
    run = [step["run"] for step in release["jobs"]["build"]["steps"] if "run" in step]
    assert run[-1] == 'nox -s release -- "$TAG"'


CHANGELOG = """# Changelog

## Unreleased

## 1.2.0 - 2027-01-31

- New.

## 1.1.0 - 2026-12-24

- Old.
"""


def notes_of(tag: str, version: str, changelog: str) -> str:
    spec = importlib.util.spec_from_file_location("release", ROOT / ".ci" / "release.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.notes_of(tag, version, changelog))


def test_notes_of_a_release_are_its_part_of_the_changelog() -> None:
    if CHECKOUT:
        assert notes_of("v1.2.0", "1.2.0", CHANGELOG) == "- New.\n"


def test_a_tag_that_is_not_ready_is_refused() -> None:
    """Another version, lines that no version has, a version without date or lines."""
    if not CHECKOUT:
        return
    late = CHANGELOG.replace("## Unreleased\n", "## Unreleased\n\n- Late.\n")
    for tag, version, changelog, words in [
        ("v1.3.0", "1.2.0", CHANGELOG, "the tag is 'v1.3.0'"),
        ("1.2.0", "1.2.0", CHANGELOG, "the tag is '1.2.0'"),
        ("v1.2.0", "1.2.0", late, "lines under Unreleased"),
        ("v1.3.0", "1.3.0", CHANGELOG, "no section '## 1.3.0 - "),
        ("v1.2.0", "1.2.0", CHANGELOG.replace(" - 2027-01-31", ""), "no section '## 1.2.0 - "),
        ("v1.2.0", "1.2.0", CHANGELOG.replace("- New.\n", ""), "no section '## 1.2.0 - "),
    ]:
        with pytest.raises(ValueError, match=re.escape(words)):
            notes_of(tag, version, changelog)


def test_the_changelog_is_in_order() -> None:
    """What is not released comes first; then each version with its date, the newest first."""
    text = (ROOT / "CHANGELOG.md").read_text()
    first, *headings = re.findall(r"^## (.*)$", text, re.MULTILINE)
    kinds = re.findall(r"^### (.*)$", text, re.MULTILINE)

    assert first == "Unreleased"
    dated = [re.fullmatch(r"(\d+)\.(\d+)\.(\d+) - (\d{4}-\d\d-\d\d)", it) for it in headings]
    found = [(tuple(map(int, it.groups()[:3])), it[4]) for it in dated if it]
    assert len(found) == len(headings) >= 1
    assert found == sorted(found, reverse=True)
    assert set(kinds) <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
    newest = ".".join(map(str, found[0][0]))
    assert newest == __version__ or ".dev" in __version__
