"""``config`` tells where each option comes from; ``completion`` makes a shell complete."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.cli import run


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a table of options."""
    (tmp_path / "pyproject.toml").write_text(
        '[tool.sqlalchemy-bgjob]\npoll-interval = "2s"\nheartbeat-interval = 4\n'
        'queue = ["mail:3"]\n'
    )
    monkeypatch.chdir(tmp_path)
    return tmp_path


def options(*words: str, **environment: str) -> dict[str, dict[str, Any]]:
    code, out, err = run("config", *words, "--json", **environment)
    assert (code, err) == (0, "")
    return {one["option"]: one for one in map(json.loads, out.splitlines())}


def test_each_value_has_its_source() -> None:
    """The environment comes before the table, and a default after all."""
    url = "postgresql://ada:s3cret@h/d?password=s3cret&sslpassword=s3cret"
    given = {"BGJOB_POLL_INTERVAL": "7s", "BGJOB_DATABASE_URL": url}
    found = options("worker", **given)

    def told(name: str) -> tuple[Any, str]:
        return found[name]["value"], found[name]["source"]

    assert told("poll-interval") == (7.0, "BGJOB_POLL_INTERVAL")
    assert told("heartbeat-interval") == (4.0, "pyproject.toml")
    assert told("processes") == (1, "default")
    assert told("app") == (None, "default")
    hidden = "postgresql://ada:***@h/d?password=***&sslpassword=***"
    assert told("database-url") == (hidden, "BGJOB_DATABASE_URL")
    assert found["queue"]["source"] == "pyproject.toml"
    assert "s3cret" not in run("config", **given)[1]


@pytest.mark.parametrize("user", ["me", "me@srv"])
@pytest.mark.parametrize("password", ["s3cret", "s3@cret", "s3cret@"])
def test_no_password_is_told(user: str, password: str) -> None:
    """Also one with a character that should have been escaped."""
    url = f"postgresql://{user}:{password}@host/d"

    assert "cret" not in run("config", BGJOB_DATABASE_URL=url)[1]


def test_the_platforms_database_is_named_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:s3cret@h/d")
    found = options("doctor")["database-url"]
    assert (found["value"], found["source"]) == ("postgresql://u:***@h/d", "DATABASE_URL")


def test_what_a_command_ignores_is_not_shown(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bench and demo must not meet the application's database by themselves."""
    monkeypatch.setenv("DATABASE_URL", "postgresql://h/platform")
    (folder / "pyproject.toml").write_text(
        '[tool.sqlalchemy-bgjob]\ndatabase-url = "postgresql://h/application"\n'
    )
    assert options("doctor")["database-url"]["source"] == "pyproject.toml"

    found = options("bench")["database-url"]
    assert (found["value"], found["source"]) == (None, "default")
    given = options("bench", BGJOB_DATABASE_URL="postgresql://h/d")["database-url"]
    assert given["source"] == "BGJOB_DATABASE_URL"
    assert options("demo") == {}


def test_what_has_no_options_is_told() -> None:
    for name in ("no_such", "dlq"):
        code, _, err = run("config", name)
        assert (code, f"there is no command {name!r}" in err) == (2, True)


def test_a_table_for_people() -> None:
    code, out, _ = run("config")
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("heartbeat-interval ")]
    assert line.split() == ["heartbeat-interval", "4.0", "pyproject.toml"]


@pytest.mark.parametrize(("shell", "words"), [("zsh", "compdef"), ("fish", "complete --no-files")])
def test_a_shell_gets_a_script_for_both_names(shell: str, words: str) -> None:
    code, out, _ = run("completion", shell)
    assert (code, words in out) == (0, True)
    assert "_BGJOB_COMPLETE" in out
    assert "_SQLALCHEMY_BGJOB_COMPLETE" in out


def test_bash_completes_commands_and_options() -> None:
    """By the script that is printed, in a bash of its own."""
    programs = str(Path(sys.executable).parent)
    script = """
        eval "$(bgjob completion bash)"
        COMP_WORDS=(bgjob dl); COMP_CWORD=1; _bgjob_completion bgjob; echo "${COMPREPLY[@]}"
        COMP_WORDS=(bgjob dlq redrive --per); COMP_CWORD=3; COMPREPLY=(); _bgjob_completion bgjob
        echo "${COMPREPLY[@]}"
    """
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"},
    )
    assert done.stdout.split() == ["dlq", "--per-second"], done.stderr
