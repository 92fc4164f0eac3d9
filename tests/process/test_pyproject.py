"""``[tool.sqlalchemy-bgjob]`` of pyproject.toml: options of every command, after all others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from sqlalchemy_bgjob._process.exits import CommandError
from sqlalchemy_bgjob._process.pyproject import defaults
from sqlalchemy_bgjob.cli import cli
from support.cli import run

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from sqlalchemy_bgjob._process import runners

    Parsed = Callable[..., runners.WorkerOptions]

ALL = """
[project]
name = "shop"

[tool.sqlalchemy-bgjob]
app = "shop.db:jobs"
engine = "shop.db:engine"
import = ["shop.tasks", "shop.more"]
queue = "mail:3"
observer = "shop.alerts:alerts"
poll-interval = 2
heartbeat-interval = "4s"
listen = false
schema = "queue"
"""


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Writes the working directory's pyproject.toml."""

    def written(text: str) -> Path:
        (tmp_path / "pyproject.toml").write_text(text, "utf-8")
        return tmp_path

    monkeypatch.chdir(tmp_path)
    return written


def test_a_worker_takes_its_options_from_the_table(
    parsed: Parsed, write: Callable[[str], Path]
) -> None:
    write(ALL)

    options = parsed()

    assert (options.app, options.engine) == ("shop.db:jobs", "shop.db:engine")
    assert options.imports == ("shop.tasks", "shop.more")
    assert options.observers == ("shop.alerts:alerts",)
    assert options.queues == {"mail": 3}
    assert (options.settings.poll_interval, options.settings.heartbeat_interval) == (2.0, 4.0)
    assert options.settings.listen is False


@pytest.mark.parametrize("head", ['[tool."sqlalchemy-bgjob"]', "[ 'tool' . 'sqlalchemy-bgjob' ]"])
def test_the_tables_name_may_stand_in_quotes(
    parsed: Parsed, write: Callable[[str], Path], head: str
) -> None:
    write(ALL.replace("[tool.sqlalchemy-bgjob]", head))

    assert parsed().app == "shop.db:jobs"


def test_flags_come_first_then_the_environment_then_the_table(
    parsed: Parsed, write: Callable[[str], Path]
) -> None:
    write(ALL)

    by_variable = parsed(BGJOB_APP="other:jobs", BGJOB_POLL_INTERVAL="3", BGJOB_QUEUE="a:1")
    by_flag = parsed("third:jobs", "--poll-interval", "5", BGJOB_APP="o:j", BGJOB_POLL_INTERVAL="3")

    assert (by_variable.app, by_variable.settings.poll_interval) == ("other:jobs", 3.0)
    assert by_variable.queues == {"a": 1}
    assert (by_flag.app, by_flag.settings.poll_interval) == ("third:jobs", 5.0)


def test_a_url_by_flag_takes_the_place_of_the_tables_engine(
    parsed: Parsed, write: Callable[[str], Path]
) -> None:
    write(ALL)

    given = parsed("--database-url", "postgresql://host/db")
    from_environment = parsed(BGJOB_DATABASE_URL="postgresql://host/db")

    assert (given.engine, given.database_url) == (None, "postgresql://host/db")
    assert from_environment.engine == "shop.db:engine"


@pytest.mark.parametrize(
    "text", ["", "[project]\nname = 'sqlalchemy-bgjob'\n", "[broken", "x = 'tool.sqlalchemy-bgjob'"]
)
def test_a_file_without_the_table_changes_nothing(
    parsed: Parsed, write: Callable[[str], Path], text: str
) -> None:
    write(text)

    assert parsed("app:jobs").imports == ()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('querry = "a"', "has 'querry', which is no option; did you mean 'queue'"),
        ("xyzzy = 1", "write an option without its dashes"),
        ("queue = 3", "queue must be text or a list of texts"),
        ('listen = "no"', "listen must be true or false, not 'no'"),
        ("processes = [1]", "processes must be text or a number, not [1]"),
        ("queue = [", "pyproject.toml can't be read"),
    ],
)
def test_a_mistake_in_the_table_is_told(write: Callable[[str], Path], line: str, told: str) -> None:
    folder = write(f"[tool.sqlalchemy-bgjob]\n{line}\n")

    with pytest.raises(CommandError) as caught:
        defaults(cli.commands, folder)

    assert caught.value.exit_code == 2
    assert told in str(caught.value)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[tool.sqlalchemy_bgjob]\n", "write [tool.sqlalchemy-bgjob]"),
        ("[[tool.sqlalchemy-bgjob]]\n", "must be a table of options"),
    ],
)
def test_a_table_that_is_none_is_told(write: Callable[[str], Path], text: str, told: str) -> None:
    with pytest.raises(CommandError) as caught:
        defaults(cli.commands, write(text))

    assert told in str(caught.value)


def test_other_engines_of_the_table_go_with_its_engine(
    parsed: Parsed, write: Callable[[str], Path]
) -> None:
    write(ALL + 'sync-engine = "shop.db:sync_engine"\nheart-engine = "shop.db:heart"\n')

    whole, by_url = parsed(), parsed("--database-url", "postgresql://host/db")

    assert (whole.sync_engine, whole.heart_engine) == ("shop.db:sync_engine", "shop.db:heart")
    assert (by_url.sync_engine, by_url.heart_engine) == (None, None)


def test_a_benchmark_never_runs_on_the_applications_database(
    write: Callable[[str], Path],
) -> None:
    write('[tool.sqlalchemy-bgjob]\ndatabase-url = "postgresql://host/db"\n')

    code, _, err = run("bench", DATABASE_URL="postgresql://host/db")

    assert code == 2
    assert "no database" in err
