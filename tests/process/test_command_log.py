"""The command line's log holds whatever the application configures when it is imported."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import Engine, MetaData

from sqlalchemy_bgjob import BGJob

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from support.commands import Command

pytestmark = pytest.mark.keeps_tables

APPLICATION = """
import logging, logging.config, logging.handlers, queue, sys, warnings
from sqlalchemy import MetaData
from sqlalchemy_bgjob import BGJob

jobs = BGJob(metadata := MetaData())

def configure():
    {configure}

{when}

@jobs.handler("boom", max_attempts=1)
def boom(ctx):
    {late}
    logging.getLogger("shop.own").error("words of the shop")
    warnings.warn("an old way")
    raise ValueError("no such customer")
"""

ON_IMPORT = {
    "dictConfig": 'logging.config.dictConfig({"version": 1, "root": {"level": "WARNING"}})',
    "a console of its own": """logging.config.dictConfig({
        "version": 1,
        "handlers": {"console": {"class": "logging.StreamHandler", "stream": "ext://sys.stdout"}},
        "root": {"level": "ERROR", "handlers": ["console"]},
        "loggers": {"shop.own": {"handlers": ["console"], "propagate": False}},
    })""",
    "a file that is the console": """logging.config.dictConfig({
        "version": 1,
        "handlers": {"out": {"class": "logging.FileHandler", "filename": "/dev/stderr"}},
        "root": {"level": "ERROR", "handlers": ["out"]},
    })""",
    "disable": "logging.disable(logging.CRITICAL)",
    "silenced by name": """
    for name in ("sqlalchemy_bgjob", "sqlalchemy_bgjob.jobs"):
        log = logging.getLogger(name)
        log.handlers, log.propagate, log.disabled = [], False, True
    logging.getLogger("sqlalchemy_bgjob").setLevel(100)
    logging.getLogger().handlers.clear()""",
    "a queue": """
    handler = logging.handlers.QueueHandler(queue.Queue())
    handler.listener = logging.handlers.QueueListener(handler.queue, logging.StreamHandler())
    handler.listener.start()
    logging.basicConfig(handlers=[handler], level="ERROR", force=True)""",
    "rich": """
    from rich.logging import RichHandler
    logging.basicConfig(handlers=[RichHandler()], level="ERROR", force=True)""",
    "warnings": "logging.captureWarnings(False)",
}


@pytest.fixture
def shop(
    tmp_path: Path, engine: Engine, database_url: str, start: Callable[..., Command]
) -> Callable[..., Command]:
    """Start a worker of an application that does this with logging; a job of it waits."""
    jobs: BGJob[Any, Any] = BGJob(metadata := MetaData())
    jobs.handler("boom")(lambda ctx: None)
    metadata.create_all(engine)
    jobs.enqueue(engine, "boom")

    def run(configure: str, *options: str, when: str = "configure()", late: str = "") -> Command:
        code = APPLICATION.format(configure=configure, when=when, late=late)
        (tmp_path / "shop.py").write_text(code)
        arguments = ("worker", "shop:jobs", "--database-url", database_url, *options)
        return start(*arguments, cwd=tmp_path)

    return run


def records(command: Command, *, until: str) -> list[dict[str, Any]]:
    """The lines of a worker's log, which is then ended."""
    command.says(until)
    command.signal(signal.SIGTERM)
    assert command.wait() == 0
    return [json.loads(line) for line in command.stderr.splitlines()]


@pytest.mark.parametrize(
    "configure",
    [
        pytest.param(
            code, id=name, marks=[pytest.mark.chaos] if name in ("rich", "warnings") else []
        )
        for name, code in ON_IMPORT.items()
    ],
)
def test_lines_stay_as_they_were_asked_for(shop: Callable[..., Command], configure: str) -> None:
    command = shop(configure, "--log-format", "json")
    lines = records(command, until="moved to the DLQ")

    assert command.stdout == ""
    messages = [line["message"] for line in lines]
    assert any(message.startswith("worker of ") for message in messages)
    (failed,) = [line for line in lines if "moved to the DLQ" in line["message"]]
    assert failed["error"] == "ValueError: no such customer"
    if "logging.disable" not in configure:  # what the application says is its own affair
        assert "words of the shop" in messages
        assert any("an old way" in message for message in messages)


def test_they_stay_in_each_of_several_processes(shop: Callable[..., Command]) -> None:
    command = shop(ON_IMPORT["a console of its own"], "--log-format", "json", "--processes", "2")
    for number in ("1", "2"):  # one may have done the job before the other has begun
        command.says(f'"process": "{number}"')
    lines = records(command, until="moved to the DLQ")

    assert {line["process"] for line in lines} == {"supervisor", "1", "2"}
    assert any("words of the shop" in line["message"] for line in lines)


@pytest.mark.parametrize("configure", ["dictConfig", "disable"])
def test_what_is_configured_later_takes_nothing_away(
    shop: Callable[..., Command], configure: str
) -> None:
    """As by a handler that calls an application's factory at its first job."""
    command = shop(ON_IMPORT[configure], "--log-format", "json", when="", late="configure()")
    command.says("moved to the DLQ")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0

    (line,) = [line for line in command.stderr.splitlines() if "moved to the DLQ" in line]
    assert json.loads(line)["job_type"] == "boom"


def test_text_and_level_hold_too(shop: Callable[..., Command]) -> None:
    command = shop(
        'logging.basicConfig(level="DEBUG", format="%(message)s", force=True)',
        *("--log-level", "warning"),
    )
    command.says("moved to the DLQ")
    command.signal(signal.SIGTERM)
    assert command.wait() == 0

    (line,) = [line for line in command.stderr.splitlines() if "moved to the DLQ" in line]
    assert " WARNING sqlalchemy_bgjob.jobs: job " in line
    assert "words of the shop" in command.stderr
    assert "worker of " not in command.stderr


ELSEWHERE = {
    "root": 'logging.basicConfig(filename="shop.log", level="INFO", force=True)',
    "sqlalchemy_bgjob": """logging.config.dictConfig({
        "version": 1,
        "handlers": {"file": {"class": "logging.FileHandler", "filename": "shop.log"}},
        "loggers": {"sqlalchemy_bgjob": {"handlers": ["file"]}},
    })""",
    "sqlalchemy_bgjob.jobs": """logging.config.dictConfig({
        "version": 1,
        "handlers": {
            "file": {"class": "logging.FileHandler", "filename": "shop.log"},
            "console": {"class": "logging.StreamHandler", "stream": "ext://sys.stderr"},
        },
        "loggers": {"sqlalchemy_bgjob.jobs": {"handlers": ["file", "console"]}},
    })""",
}


@pytest.mark.parametrize("logger", ELSEWHERE)
def test_handlers_that_write_elsewhere_hear_all(
    shop: Callable[..., Command], tmp_path: Path, logger: str
) -> None:
    """A file, an error tracker: they are the application's, and get what the worker says too."""
    command = shop(ELSEWHERE[logger], "--log-format", "json")
    records(command, until="moved to the DLQ")

    log = (tmp_path / "shop.log").read_text()
    assert log.count("moved to the DLQ: ValueError: no such customer") == 1
    assert ("words of the shop" in log) is (logger == "root")


LOGURU = """
import sys
class Logger:
    def write(self, text): print("LOGURU", text, file=sys.stderr)
logger = Logger()
"""


def test_records_are_not_handed_to_loguru_beside(
    shop: Callable[..., Command], tmp_path: Path
) -> None:
    """Its own sink would write each of them to the console once more, in another form."""
    (tmp_path / "loguru.py").write_text(LOGURU)
    (tmp_path / "intercept.py").write_text(
        "import logging\n"
        "from loguru import logger\n"
        "class Intercept(logging.Handler):\n"
        "    def emit(self, record): logger.write(record.getMessage())\n"
    )
    command = shop(
        "from intercept import Intercept\n"
        "    logging.basicConfig(handlers=[Intercept()], level=0, force=True)",
        *("--log-format", "json"),
    )

    assert records(command, until="moved to the DLQ")


def test_an_import_that_fails_after_it_is_told(shop: Callable[..., Command]) -> None:
    command = shop(
        ON_IMPORT["silenced by name"],
        *("--log-format", "json"),
        when="configure(); raise LookupError('no such file')",
    )

    assert command.wait() == 2
    (line,) = [json.loads(line) for line in command.stderr.splitlines()]
    assert "importing 'shop' failed: LookupError: no such file" in line["message"]
