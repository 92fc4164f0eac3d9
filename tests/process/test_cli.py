"""The command line as a whole: how it starts, and how a mistake in it ends."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from click.testing import CliRunner

from sqlalchemy_bgjob import schema
from sqlalchemy_bgjob.cli import cli
from support.cli import run


def test_help_starts_at_once() -> None:
    """Nobody waits for --help: under 0.3 s of processor time for the whole process."""
    environment = {n: v for n, v in os.environ.items() if not n.startswith("COVERAGE")}

    def seconds() -> float:
        command = [sys.executable, "-m", "sqlalchemy_bgjob", "--help"]
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, env=environment)
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
        assert child.returncode == 0
        return usage.ru_utime + usage.ru_stime

    # The best of several: what else runs on the machine can only make it slower.
    assert any(seconds() < 0.3 for _ in range(30))


@pytest.mark.core
def test_the_command_line_imports_neither_sqlalchemy_nor_asyncio() -> None:
    code = """
        import sys
        from sqlalchemy_bgjob.cli import cli
        for command in ([], ["worker"], ["migrate"], ["import-bgjob"], ["demo"], ["version"],
                        ["queues"], ["pause"], ["resume"], ["slots"], ["pressure"], ["web"],
                        ["dlq", "redrive"], ["jobs", "list"],
                        ["schedules", "list"], ["workers"], ["handlers"], ["enqueue"], ["stats"],
                        ["dev"], ["top"]):
            cli([*command, "--help"], standalone_mode=False)
        print(sorted({"sqlalchemy", "asyncio", "rich", "msgspec"} & set(sys.modules)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("\n[]\n")


@pytest.mark.core
def test_help_imports_no_command_and_names_each() -> None:
    code = """
        import sys
        from sqlalchemy_bgjob.cli import cli
        cli(["--help"], standalone_mode=False)
        prefix = "sqlalchemy_bgjob.cli."
        print([name for name in sys.modules if name.startswith(prefix)])
        assert all(command.name == name for name, command in cli.commands.items())
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    )
    assert done.stdout.endswith("\n[]\n")
    assert re.search(r"^  worker +Run the jobs of an application\.$", done.stdout, re.MULTILINE)


@pytest.mark.core
def test_a_worker_imports_no_other_command(tmp_path: Path) -> None:
    """Not even to read the file whose keys belong to several commands."""
    (tmp_path / "pyproject.toml").write_text(
        '[tool.sqlalchemy-bgjob]\napp = "app:jobs"\nlog-format = "json"\n'
    )
    code = """
        import sys
        from sqlalchemy_bgjob.cli import cli
        cli(["worker", "no_such_module:jobs"], standalone_mode=False)
        prefix = "sqlalchemy_bgjob.cli."
        print(sorted(name.removeprefix(prefix) for name in sys.modules if name.startswith(prefix)))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    assert done.stdout == "['options', 'param_types', 'worker']\n"


@pytest.mark.parametrize("name", ["sqlalchemy-bgjob", "bgjob"])
def test_the_scripts_are_the_command_line(name: str) -> None:
    script = Path(sys.executable).with_name(name)
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"sqlalchemy-bgjob, version \d.*\n", done.stdout)


@pytest.mark.parametrize("command", ["migrate", "doctor", "grants"])
def test_only_migrate_says_that_it_creates_a_schema(command: str) -> None:
    words = " ".join(run(command, "--help")[1].split())

    assert "--schema TEXT The schema of the tables; by default the search path finds" in words
    assert ("creates a --schema that is missing" in words) == (command == "migrate")
    assert "makes it" not in words


@pytest.mark.parametrize(
    ("name", "suggested"),
    [("redrive", "'dlq redrive'"), ("list", "'dlq list' or 'jobs list' or 'schedules list'")],
)
def test_an_unknown_command_names_a_near_one(name: str, suggested: str) -> None:
    result = CliRunner().invoke(cli, [name])

    assert result.exit_code == 2
    assert f"No such command '{name}'." in result.stderr
    assert suggested in result.stderr


def test_a_bug_in_a_command_is_not_made_nice(
    database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(connection: object, **where: object) -> int:
        raise LookupError("inside")

    monkeypatch.setattr(schema, "migrate", broken)
    with pytest.raises(LookupError, match="inside"):
        run("migrate", "--database-url", database_url)


@pytest.mark.parametrize("arguments", [["--help"], ["version"]], ids=" ".join)
def test_output_to_a_full_disk_is_one_sentence(arguments: list[str]) -> None:
    """A script that keeps what a command prints learns that it has not got it."""
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "sqlalchemy_bgjob", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )

    assert done.stderr == "Error: the output can't be written: No space left on device\n"
    assert done.returncode == 1


def test_ctrl_c_outside_of_a_worker_exits_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
        import sqlalchemy_bgjob.cli as cli
        def interrupted(*args, **kwargs): raise KeyboardInterrupt
        cli.cli.commands["version"].callback = interrupted
        import sys
        sys.argv = ["bgjob", "version"]
        cli.main()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=False)
    assert done.returncode == 128 + signal.SIGINT
